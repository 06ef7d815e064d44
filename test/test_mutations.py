"""Ten thousand files that somebody broke: a fixed set, in which every run finds the same."""
import io
import random
import re
from pathlib import Path

import pytest

import nmap_audit

DATA = Path(__file__).parent / "data"
RC = [path.read_bytes() for path in sorted(DATA.glob("rc/*/*.rc"))]
XML = [path.read_bytes() for path in sorted(DATA.glob("nmap/*.xml"))]
LOCATED = re.compile(r"m\.rc:\d+:\d+: [^\n]+")
WORDS = [b"group ", b"end group", b"\n", b"\r\n", b"#", b'"', b"=", b":", b"*", b"ignore ", b"\xff", b"\x1b", b"/33",
         b"<host>", b"</host>", b"<port ", b"&#27;", b"&x;", b"]]>", b"<!--", b"<?", b"<state ", b"\0",
         b"10.0.0.300"]


def mutate(data, chance):
    """A file with up to six edits: bytes cut, doubled, moved, turned or put in."""
    for _ in range(chance.randrange(1, 7)):
        at, length = chance.randrange(len(data) + 1), chance.choice((1, 1, 2, 8, 64, 400))
        data = chance.choice((
            lambda: data[:at] + data[at + length:],
            lambda: data[:at] + data[at:at + length] * 2 + data[at + length:],
            lambda: data[:at] + chance.choice(WORDS) + data[at:],
            lambda: data[:at] + bytes([chance.randrange(256)]) + data[at + 1:],
            lambda: data[at:at + length] + data[:at] + data[at + length:],
        ))()
    return data


@pytest.mark.parametrize("seed", range(10))
def test_a_mutated_rc_file_parses_or_its_mistakes_have_places(seed):
    chance = random.Random(seed)
    for _ in range(500):
        text = mutate(chance.choice(RC), chance).replace(b"\0", b"").decode("latin-1")
        try:
            config = nmap_audit.read_config(nmap_audit.parse_rc(text, "m.rc"), (), text)
            assert all(group.tags and group.rules for group in config.groups)
        except nmap_audit.AuditError as error:
            assert error.status == 78 and all(map(LOCATED.fullmatch, str(error).split("\n"))), (text, str(error))


@pytest.mark.parametrize("seed", range(10))
def test_a_mutated_xml_file_never_looks_better_than_it_is(seed):
    chance = random.Random(seed)
    for _ in range(500):
        data = mutate(chance.choice(XML), chance)
        document = nmap_audit.read_xml(io.BytesIO(data))
        for host in nmap_audit.judge(document, "m.xml", "127.0.0.1"):
            assert host.outcome in nmap_audit.OUTCOMES
            assert not (document.problem and host.outcome in ("audited", "down")), data
