"""Audits night after night: what the tests of the memory, of reports and of mails share.

    nights = Nights(run, rc, fake, tmp_path)
    nights.rules = "group ..."                  what the rc file says beside IPS and DIR-NAME
    night = nights.audit({"10.0.0.1": up(25)})  a run with a fake nmap that shows these hosts
    night.changes                               {(address, port, protocol): change}, of its CSV

A run gets the time of its start as its name, or a later one where a later one is there already. So
a day is chosen by an empty run folder of that day, there while the program runs.

With nights.run = inside (conftest.py) a night costs 0.1 seconds and not 0.4.
"""
import csv
import datetime
import io
import json
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import nmap_audit

FIRST_DAY = datetime.date(2031, 3, 1)       # a day after any on which the tests run


class Night(NamedTuple):
    """A run: how it ended, its folder and what is in it."""
    status: int
    out: str
    err: str
    folder: Path

    @property
    def report(self):
        return (self.folder / "report.txt").read_text()

    @property
    def first(self):
        return self.report.splitlines()[0]

    @property
    def record(self):
        return json.loads((self.folder / "run.json").read_text())

    @property
    def rows(self):
        path = self.folder / "scan_report.csv"
        return read_csv(path.read_bytes().decode()) if path.exists() else []

    @property
    def changes(self):
        return changes(self.rows)

    @property
    def tables(self):
        return tables(self.report)


class Stored:
    """What lies in a DIR-NAME, `state`: its newest run."""

    @property
    def last(self):
        return max(self.state.glob("[0-9]*-[0-9]*"))

    @property
    def record(self):
        return json.loads((self.last / "run.json").read_bytes())

    @property
    def outcomes(self):
        return {address: note["outcome"] for address, note in self.record["hosts"].items()}


def stored(state):
    """A state as it comes back from a run.json."""
    with tempfile.TemporaryDirectory() as name:
        Path(name, "run.json").write_bytes(nmap_audit.record_json({
            "version": 1, "told": True, "status": "finished", "nmap": [], "ips": [], "hosts": {}, "state": state}))
        return nmap_audit.read_record(Path(name))["state"]


class Nights:
    """The audits of one DIR-NAME."""

    def __init__(self, run, rc, fake, folder, **world):
        self.run, self.rc, self.fake, self.folder, self.world = run, rc, fake, folder, world
        self.directory = folder / "runs"
        self.rules, self.ips, self.day = "", "10.0.0.1-4", FIRST_DAY

    @property
    def config(self):
        return self.rc(f"IPS {self.ips}\nDIR-NAME {self.directory}\nQUIET\n{self.rules}\n")

    @property
    def runs(self):
        return sorted(path for path in self.directory.iterdir() if path.name[:8].isdigit())

    def audit(self, hosts, *argv, day=None, env=None, **world):
        """One run, a day after the one before or on the day that is given."""
        self.fake("nmap", hosts=hosts, **{**self.world, **world})
        self.day = day or self.day + datetime.timedelta(days=1)
        place = self.directory / f"{self.day:%Y%m%d}-015959"
        place.mkdir(parents=True)
        before = set(self.runs)
        result = self.run("--config", self.config, *argv, env=env)
        if place.exists():                      # KEEP-RUNS takes it for an old run
            place.rmdir()
        made = sorted(set(self.runs) - before)
        assert len(made) == 1, result
        return Night(*result, made[0])

    def process(self, *argv, folder=None, env=None):
        """--process-only of a folder, else of DIR-NAME."""
        return self.run("--config", self.config, "--process-only", "--dir-name",
                        folder or self.directory, *argv, env=env)

    def interrupt(self, night):
        """The run as one that was killed before it had a result."""
        record = night.record
        for name in ("state", "before", "findings", "gone", "missing", "hosts_new", "regrouped", "ignored"):
            record.pop(name, None)
        record.update(status="running", told=False, ended=None, hosts={})
        for path in night.folder.iterdir():
            if path.name != "targets.xml":
                path.unlink()
        (night.folder / "run.json").write_text(json.dumps(record))

    def forget(self, night):
        """The run without its run.json and what was made of it: nothing but nmap's XML."""
        for path in night.folder.iterdir():
            if path.suffix not in (".xml", ".part"):
                path.unlink()

    def drop(self, night):
        shutil.rmtree(night.folder)


def up(*ports, **more):
    """A host that is up: a port is a number, or what the fake nmap takes."""
    return {"ports": [[port, "tcp", "open", f"service{port}"] if isinstance(port, int) else list(port)
                      for port in ports], **more}


def read_csv(text):
    """The rows of a scan_report.csv that begins with headings, as mappings."""
    return list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"), newline="")))


def changes(rows):
    """What is said of each port; of one that is gone and was expected, "gone, missing"."""
    found = {}
    for row in rows:
        found.setdefault((row["IP"], int(row["Port"]), row["Protocol"]), []).append(row["Change"])
    return {key: ", ".join(sorted(several)) for key, several in found.items()}


def tables(report):
    """{title without its count: [first cell of each row]} of a report's tables."""
    found, blocks = {}, report.split("\n\n")
    for title, block in zip(blocks, blocks[1:]):
        lines = block.splitlines()
        if len(lines) > 2 and set(lines[1]) <= {"-", " "}:
            found[title] = [line.split("  ")[0].strip() for line in lines[2:]]
    return found


def sorted_out(findings):
    """Findings by what becomes of them: those that are told, those that rules accept, near misses, rules that lapse."""
    other = {"ignored": [], "near": [], "lapsing": [], "host": [], "not audited": []}
    told = [each for each in findings if each.table not in other]
    for each in findings:
        other.get(each.table, []).append(each)
    return SimpleNamespace(findings=told, **{name.replace(" ", "_"): several for name, several in other.items()})
