"""Feeds both readers what coverage leads to: python test/fuzz.py rc|xml [libFuzzer's options].

`make fuzz` runs both for as long as asked. What the readers may say of a bad file is a located
mistake, or a problem of the document; anything else that comes out of them is a bug and ends this.
"""
import io
import re
import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))
with atheris.instrument_imports(include=["nmap_audit", "lark", "xml", "defusedxml"]):
    import nmap_audit

LOCATED = re.compile(r"fuzz\.rc:\d+:\d+: .")


def read_rc(data):
    """Any text parses or raises mistakes, each with its place."""
    text = data.decode("utf-8", "replace").replace("\0", "")
    try:
        nmap_audit.read_config(nmap_audit.parse_rc(text, "fuzz.rc"), ())
    except nmap_audit.AuditError as error:
        assert error.status == 78 and all(map(LOCATED.match, str(error).split("\n"))), str(error)


def read_xml(data):
    """Any bytes are a document, whole or with a problem, and its hosts have an outcome each."""
    document = nmap_audit.read_xml(io.BytesIO(data))
    for host in nmap_audit.judge(document, "fuzz.xml", "127.0.0.1"):
        assert host.outcome in nmap_audit.OUTCOMES
        assert host.outcome != "audited" or not document.problem
        assert nmap_audit.shown(host.address).isprintable()


SEEDS = {"rc": ["nmap-audit.rc", *Path(__file__).parent.glob("data/rc/*/*.rc")],
         "xml": [*Path(__file__).parent.glob("data/nmap/*.xml")]}

if __name__ == "__main__":
    kind, *options = sys.argv[1:] or ["rc"]
    folder = Path(__file__).parent.parent / ".fuzz" / kind
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(SEEDS[kind]):
        if Path(seed).exists():
            (folder / f"seed-{number}").write_bytes(Path(seed).read_bytes())
    atheris.Setup([sys.argv[0], str(folder), *options], {"rc": read_rc, "xml": read_xml}[kind])
    atheris.Fuzz()
