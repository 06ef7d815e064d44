"""Batches: one nmap process gets many addresses, and its output becomes one document a host.

What is finished is kept, what is not is tried again with fewer neighbours, and no address is ever lost on the way.
"""
import csv
import io
import json
import os
import re
import signal
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

import nmap_audit

from labtools import wait_until
from nights import Stored

ELEMENT = re.compile(rb"<host[ >].*?</host>\n", re.DOTALL)
HINT = re.compile(rb"<hosthint>.*?</hosthint>\n", re.DOTALL)       # of all hosts of a batch, so of others
HOST = {"ports": [[25, "tcp", "open", "smtp"]]}
# Between the program and nmap: keeps what each scan wrote, byte for byte, and hands it on.
KEEP = """#!/bin/sh
case " $* " in *" -sL "*) exec "$@" ;; esac
"$@" > {folder}/$$
status=$?
cat {folder}/$$
exit $status
"""


class Batches(Stored):
    """An audit of 10.0.0.0/16 with a fake nmap in which a test says what goes wrong."""

    def __init__(self, rc, run, start, fake, folder):
        self.rc, self.run, self.start, self.fake = rc, run, start, fake
        self.folder, self.state = folder, folder / "state"

    def hosts(self, count, faults=None, **more):
        """Ten ones: 10.0.0.1 to 10.0.0.10; each has a port of its own, and some have a fault."""
        self.addresses = [f"10.0.{at >> 8}.{at & 255}" for at in range(1, count + 1)]
        made = {address: {"ports": [[at % 100 + 1, "tcp", "open", f"service{at}"]]}
                for at, address in enumerate(self.addresses)}
        for address, fault in (faults or {}).items():
            made[address]["fault"] = fault
        self.nmap = self.fake("nmap", hosts={**made, **more}, scanned="1-100")
        return self

    def config(self, *lines, ips=None):
        ips = ips or [f"IPS {address}" for address in self.addresses]
        return self.rc("\n".join([f"DIR-NAME {self.state}", *ips, *lines]) + "\n")

    def audit(self, *lines, argv=(), ips=None, **options):
        result = self.run("--config", self.config(*lines, ips=ips), *argv, **options)
        assert "Traceback" not in result.err and "a bug" not in result.err, result.err
        return result

    @property
    def sizes(self):
        """How many addresses each process got, in the order of their start."""
        return [len(words) - words.index("--") - 1 for words in self.nmap.scans]

    @property
    def ports(self):
        """{address: its ports} of the CSV."""
        found, text = {}, (self.last / "scan_report.csv").read_text().removeprefix("\ufeff")
        for row in csv.DictReader(io.StringIO(text)):
            found.setdefault(row["IP"], []).append(int(row["Port"]))
        return found

    def documents(self):
        """{address: bytes} of the results, each of which is a whole document of that one host."""
        found = {}
        for path in self.last.glob("10*.xml"):
            root = ET.fromstring((data := path.read_bytes()).replace(b"&#x1b;", b"?"))
            assert [host.find("address").get("addr") for host in root.iter("host")] == [path.stem]
            found[path.stem] = data
        return found


@pytest.fixture
def batches(rc, run, start, fake, tmp_path):
    return Batches(rc, run, start, fake, tmp_path)


def expected(batches, *but):
    """What the CSV says where every host but these was audited: its own port, and no one else's."""
    return {address: [at % 100 + 1] for at, address in enumerate(batches.addresses) if address not in but}


# ---- How many addresses ------------------------------------------------------------------------

@pytest.mark.parametrize("batch, threads, count, sizes", (
    ("1", 4, 9, [1] * 9), ("7", 3, 20, [7, 7, 6]), ("7", 1, 14, [7, 7]), ("100", 4, 9, [9])))
def test_a_batch_of_so_many(batches, batch, threads, count, sizes):
    result = batches.hosts(count).audit(f"BATCH {batch}", f"MAX-THREADS {threads}", "NMAP nmap -F")
    assert (result.status, sorted(batches.sizes, reverse=True)) == (0, sizes)
    assert sorted(batches.nmap.scanned) == sorted(batches.addresses)
    assert batches.ports == expected(batches)


def test_the_option_wins_over_the_file(batches):
    batches.hosts(6).audit("BATCH 1", argv=["--batch", "3"])
    assert batches.sizes == [3, 3]


def auto(batches, nmap, threads, target):
    """The sizes of the batches of a fake network in which all is down."""
    batches.hosts(0).nmap.forget()
    result = batches.audit(f"MAX-THREADS {threads}", f"NMAP {nmap}", argv=["--scan-only", "--quiet"],
                           ips=[f"IPS {target}"])
    assert result.status == 0, result
    assert len(batches.nmap.scanned) == len(set(batches.nmap.scanned)) == sum(batches.sizes)
    assert sum(batches.sizes) == 1 << 32 - int(target.partition("/")[2])
    return batches.sizes


def test_auto_keeps_every_process_busy(batches):
    """256 addresses and ten processes: a few processes of many hosts, not one a host and not one for all."""
    sizes = auto(batches, "nmap -F", 10, "10.0.0.0/24")
    assert 5 <= len(sizes) <= 40
    assert max(sizes) <= 64


@pytest.mark.parametrize("words, processes", (
    ("-sS -F", 8), ("-sU --top-ports 20", 10), ("-sS -O -F", 10), ("-sT -sV -F", 4)))
def test_auto_is_one_wave_where_it_can_be(batches, words, processes):
    """A process waits the same for few hosts as for many: a second wave would cost as much as the first."""
    sizes = auto(batches, f"nmap {words}", 10, "10.0.0.0/24")
    assert len(sizes) == processes and sum(sizes) == 256 and max(sizes) - min(sizes) <= max(sizes) / 2


@pytest.mark.parametrize("threads, target, sizes", (
    (2, "10.0.0.0/20", [256] * 16), (3, "10.0.0.0/22", [171] * 5 + [169])))
def test_auto_is_at_most_256_in_waves_of_the_same_size(batches, threads, target, sizes):
    assert sorted(auto(batches, "nmap -F", threads, target), reverse=True) == sizes


@pytest.mark.parametrize("lines", (["NMAP nmap -F --open"], ["NMAP nmap -F -open", "BATCH 5"]))
def test_with_open_each_address_has_a_process(batches, lines):
    """Who has nothing open is then not listed, and could not be told from who was lost."""
    batches.hosts(6)
    down = {"10.0.0.3": {"state": "down"}}
    batches.nmap = batches.fake("nmap", scanned="1-100", hosts={
        **dict.fromkeys(batches.addresses, {}), "10.0.0.1": HOST, "10.0.0.4": HOST, **down})
    result = batches.audit(*lines)
    assert (result.status, batches.sizes) == (0, [1] * 6)
    assert batches.outcomes == {**dict.fromkeys(batches.addresses, "audited"), **dict.fromkeys(down, "down")}


def test_no_batch_mixes_address_families(batches):
    batches.hosts(3, **{f"2001:db8::{at}": HOST for at in (1, 2, 3)})
    result = batches.audit("BATCH 10", "IPS 2001:db8::1", "IPS 2001:db8::2", "IPS 2001:db8::3")
    assert (result.status, sorted(batches.sizes)) == (0, [3, 3])
    for words in batches.nmap.scans:
        assert {":" in word for word in words[words.index("--") + 1:]} == {"-6" in words}
    assert len(batches.outcomes) == 6 and set(batches.outcomes.values()) == {"audited"}


@pytest.mark.parametrize("options, fault", (("-F", {}), ("-F -v", {}), ("-F", {"flood_out": 1})))
def test_a_document_is_the_head_the_element_and_the_end_byte_for_byte(batches, tmp_path, options, fault):
    batches.hosts(9)
    odd = {"names": ["<i>&--'\x1b", "m\u00e4rz.example.net"], "mac": "02:00:00:00:00:01",
           "os": [["Linux", 98, "L", "L"]],
           "raw": '<hostscript><script id="x" output="&lt;host&gt;&#xa;&lt;/host&gt; &#x1b;"/></hostscript>\n'}
    hosts = {address: {**HOST, **odd} for address in batches.addresses[:7]}
    batches.nmap = batches.fake("nmap", hosts=hosts, scanned="1-100", fault=fault)  # and two are down
    (tmp_path / "raw").mkdir()
    batches.fake("keep", text=KEEP.format(folder=tmp_path / "raw"))
    result = batches.audit("BATCH 5", f"NMAP keep nmap {options}")
    assert result.status == 0
    documents, seen = batches.documents(), set()
    for path in (tmp_path / "raw").iterdir():
        elements = list(ELEMENT.finditer(whole := path.read_bytes()))
        head, end = HINT.sub(b"", whole[:elements[0].start()]), whole[elements[-1].end():]
        assert end.endswith(b"</nmaprun>\n")
        for element in elements:
            if b'<status state="up"' in element[0]:
                address = re.search(rb'addr="([0-9.]+)"', element[0])[1].decode()
                assert documents[address] == head + element[0] + end
                seen.add(address)
    assert seen == set(documents) == set(hosts)
    assert [batches.outcomes[address] for address in batches.addresses[7:]] == ["down"] * 2


def test_the_report_is_the_same_whatever_the_batches(batches):
    reports = []
    for batch in ("1", "7", "auto"):
        batches.hosts(12)
        batches.state = batches.folder / f"state-{batch}"
        result = batches.audit(f"BATCH {batch}")
        again = batches.run("--config", batches.config(), "--process-only", "--no-human", "--dir-name", batches.last)
        text = (batches.last / "scan_report.csv").read_bytes().decode()
        assert again.out == text
        reports.append((result.status, text, result.out.replace(str(batches.last), "")))
    assert reports[0] == reports[1] == reports[2]


# ---- What goes wrong ---------------------------------------------------------------------------

@pytest.mark.parametrize("fault", (
    pytest.param({"here": True, "kill": 9}, id="killed"),
    pytest.param({"here": True, "kill": 9, "half": True}, id="killed in the middle of a host"),
    pytest.param({"here": True, "kill": 11}, id="crashed"),
    pytest.param({"here": True, "exit": 3, "stderr": "too bad"}, id="gave up")))
def test_what_was_whole_when_nmap_died_is_kept(batches, fault):
    batches.hosts(16, {"10.0.0.7": {**fault, "once": True}})
    result = batches.audit("BATCH 16")
    assert result.status == 0
    assert batches.outcomes == dict.fromkeys(batches.addresses, "audited")
    assert batches.ports == expected(batches)
    asked = batches.nmap.scanned
    assert [asked.count(address) for address in batches.addresses] == [1] * 6 + [2] * 10
    assert max(batches.sizes[1:]) < 16
    documents = batches.documents()
    assert len(documents) == 16
    end = documents["10.0.0.1"].rpartition(b"</host>")[2]
    assert b"nmap-audit" in end                 # not nmap's own end: it says who put it there, and why
    assert (b"by signal" if "kill" in fault else b"with status 3") in end
    assert b"nmap-audit" not in documents["10.0.0.16"]
    again = batches.run("--config", batches.config(), "--process-only", "--no-human", "--dir-name", batches.last)
    assert again.status == 0 and len(again.out.splitlines()) == 17


def test_what_is_whole_in_a_batch_that_is_cut_off_is_kept(batches):
    """A full disk over there: status 0, and a document without its last hosts."""
    result = batches.hosts(16, {"10.0.0.7": {"cut": -1500, "once": True}}).audit("BATCH 16")
    assert result.status == 0 and set(batches.outcomes.values()) == {"audited"}
    assert batches.ports == expected(batches) and len(batches.documents()) == 16
    asked = [batches.nmap.scanned.count(address) for address in batches.addresses]
    whole = asked.index(2)
    assert whole > 8 and asked == [1] * whole + [2] * (16 - whole)


@pytest.mark.parametrize("fault", ({"after": True, "kill": 9}, {"after": True, "exit": 1}))
def test_what_was_whole_when_nmap_died_at_its_end_is_kept(batches, fault):
    result = batches.hosts(16, {"10.0.0.7": fault}).audit("BATCH 16")
    assert (result.status, batches.sizes) == (0, [16])
    assert batches.ports == expected(batches) and len(batches.documents()) == 16


@pytest.mark.parametrize("fault, outcome, reason", (
    pytest.param({"kill": 9}, "failed", "signal 9 (Killed)", id="killed at once"),
    pytest.param({"here": True, "kill": 9}, "failed", "signal 9 (Killed)", id="killed"),
    pytest.param({"here": True, "kill": 9, "half": True}, "failed", "signal 9 (Killed)",
                 id="killed in the middle of it"),
    pytest.param({"exit": 1, "stderr": "QUITTING: too bad"}, "failed", "too bad", id="status 1"),
    pytest.param({"error": "too bad"}, "failed", "status 1", id="error"),
    pytest.param({"empty": True}, "cut off", "not whole", id="empty"),
    pytest.param({"cut": 400}, "cut off", "not whole", id="cut early"),
    pytest.param({"cut": -30}, "cut off", "not whole", id="cut late"),
    pytest.param({"lost": [7]}, "cut off", "add up", id="a lost port"),
    pytest.param({"timedout": True}, "timed out", "host-timeout", id="timed out"),
    pytest.param({"missing": True}, "failed", "did not look", id="missing"),
    pytest.param({"wrong": "10.9.9.9"}, "cut off", "10.9.9.9", id="another address"),
    pytest.param({"wrong": "10.0.0.8"}, "cut off", "10.0.0.8", id="a neighbour's address")))
def test_one_bad_host_costs_no_neighbour(batches, fault, outcome, reason):
    """.7 is bad for ever, 31 share its process: they are all audited, and 10.0.0.40 is down as it was."""
    bad = "10.0.0.7"
    batches.hosts(32, {bad: fault}).addresses.append("10.0.0.40")
    result = batches.audit("BATCH 33", "MAX-THREADS 4")
    assert result.status == 2
    assert batches.outcomes == {**dict.fromkeys(batches.addresses, "audited"), bad: outcome, "10.0.0.40": "down"}
    assert reason in batches.record["hosts"][bad]["reason"]
    assert result.out.startswith("31 of 32 hosts audited")
    told = batches.ports
    told.pop(bad, None)                         # what a broken result does hold is told
    assert told == expected(batches, bad, "10.0.0.40")
    assert len(batches.sizes) <= 30, batches.sizes
    assert batches.nmap.scanned.count(bad) <= 6
    assert bad not in batches.documents() or outcome == "timed out"


def test_several_bad_hosts_in_a_large_batch(batches):
    bad = {f"10.0.0.{at}": {"here": True, "kill": 9} for at in (1, 50, 51, 100)}
    result = batches.hosts(100, bad).audit("BATCH 100", "MAX-THREADS 4", "QUIET")
    assert result.status == 2
    assert {address for address, outcome in batches.outcomes.items() if outcome != "audited"} == set(bad)
    assert batches.ports == expected(batches, *bad)
    assert len(batches.sizes) < 60, len(batches.sizes)


@pytest.mark.parametrize("batch", ("auto", "64"))
def test_an_option_that_nmap_does_not_know_starts_no_thousand_processes(batches, batch):
    batches.hosts(0)
    result = batches.audit("NMAP nmap --bogus", f"BATCH {batch}", "QUIET", ips=["IPS 10.0.0.0/22"])
    assert result.status == 2
    assert len(batches.sizes) < 256
    assert len(batches.outcomes) == 1024 and set(batches.outcomes.values()) == {"failed"}
    report = (batches.last / "report.txt").read_text()
    assert report.startswith("0 of 1024 hosts audited") and report.count("unrecognized option '--bogus'") == 1


def test_what_nmap_refuses_at_first_is_tried_again_alone(batches):
    """A probe that was busy for a moment: every host is audited."""
    result = batches.hosts(12, {"10.0.0.5": {"exit": 255, "stderr": "busy", "once": True}}).audit("BATCH 12")
    assert (result.status, set(batches.outcomes.values())) == (0, {"audited"})


@pytest.mark.parametrize("number, kept", ((signal.SIGTERM, 4), (signal.SIGINT, 4), (signal.SIGKILL, 0)))
def test_ended_in_the_middle_of_a_batch(batches, number, kept):
    """What nmap had finished by then is kept; --resume scans the rest, and only that."""
    batches.hosts(10, {"10.0.0.5": {"here": True, "sleep": 60, "once": True}})
    process = batches.start("--config", batches.config("BATCH 10"), "--scan-only")
    wait_until(Path(f"{batches.nmap.path}.here").exists, 20, "the fifth host's turn")
    time.sleep(0.2)                             # until the program has read what is written
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert process.returncode in (-number, 128 + number), err
    assert b"Traceback" not in err
    wait_until(lambda: not any(map(alive, batches.nmap.calls)), 3, "nmap is gone")
    done = batches.addresses[:kept]
    assert sorted(batches.documents()) == sorted(done)
    assert batches.outcomes == dict.fromkeys(done, "audited")
    assert batches.record["status"] == ("interrupted" if kept else "running")
    before = len(batches.nmap.scanned)
    result = batches.run("--config", batches.config("BATCH 10"), "--resume")
    assert result.status == 0
    assert batches.nmap.scanned[before:] == batches.addresses[kept:]
    assert batches.ports == expected(batches) and len(batches.documents()) == 10


def alive(call):
    try:
        state = Path(f"/proc/{call['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_few_descriptors_and_many_processes(batches):
    limit = ("sh", "-c", 'ulimit -n 64; exec "$@"', "sh")
    result = batches.hosts(200).audit("BATCH 4", "MAX-THREADS 50", "QUIET", prefix=limit)
    assert (result.status, batches.sizes) == (0, [4] * 50)
    assert batches.ports == expected(batches)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_result_that_cannot_be_written_is_not_audited(batches, tmp_path):
    """A file system without room for all: of a batch, what has no room is failed, and what has it is kept."""
    result = batches.hosts(40).audit("BATCH 40", "QUIET", prefix=(
        "unshare", "-m", "sh", "-c", f'mkdir -p {batches.state} && mount -t tmpfs -o size=96k none {batches.state} && '
        f'"$@"; status=$?; cp -r {batches.state} {tmp_path}/copy; exit $status', "sh"))
    assert result.status in (2, 74), result
    batches.state = tmp_path / "copy"
    written = batches.documents()
    assert 0 < len(written) < 40
    assert "see to the disk" in result.err or "No space left" in result.err


# ---- Which go first ----------------------------------------------------------------------------

def test_those_that_took_longest_last_time_go_first(batches):
    """In a run that was finished; all others as they are listed."""
    slow = {"10.0.0.3": 0.6, "10.0.0.5": 1.2}
    batches.hosts(6, {address: {"sleep": seconds} for address, seconds in slow.items()})
    assert batches.audit("BATCH 1", "MAX-THREADS 1").status == 0
    assert batches.nmap.scanned == batches.addresses        # nobody knew
    notes = batches.record["hosts"]
    assert all(notes[address]["seconds"] >= seconds for address, seconds in slow.items())
    for address in notes.keys() - slow:
        notes[address]["seconds"] = 0.1
    (batches.last / "run.json").write_text(json.dumps(batches.record | {"hosts": notes}))
    batches.hosts(8).nmap.forget()
    (batches.state / "20991231-235959").mkdir(mode=0o700)   # has no end
    assert batches.audit("BATCH 1", "MAX-THREADS 1").status == 0
    assert batches.nmap.scanned == [f"10.0.0.{at}" for at in (5, 3, 1, 2, 4, 6, 7, 8)]


def test_history_is_read_once(batches, inside, monkeypatch):
    """However many lists there are."""
    batches.hosts(2, **{"2001:db8::1": HOST})
    batches.audit("IPS 2001:db8::1")
    read, asked = nmap_audit.read_record, []
    monkeypatch.setattr(nmap_audit, "read_record", lambda folder: asked.append(folder.name) or read(folder))
    before = batches.last.name
    assert inside("--config", batches.config("IPS 2001:db8::1"), "--scan-only").status == 0
    assert set(batches.outcomes.values()) == {"audited"} and len(batches.outcomes) == 3
    assert asked.count(before) == 2                 # how long its hosts took; what it told


# ---- What a process may leave ------------------------------------------------------------------

def test_a_process_that_nmap_leaves_behind_is_ended(batches, tmp_path):
    """Nobody waits for it."""
    batches.hosts(2)
    batches.fake("leave", text=f'#!/bin/sh\nsleep 300 & echo $! >> {tmp_path}/left\n"$@"\n')
    began = time.monotonic()
    assert batches.audit("NMAP leave nmap -F", "BATCH 1").status == 0
    assert time.monotonic() - began < 10
    left = (tmp_path / "left").read_text().split()
    assert len(left) == 3
    wait_until(lambda: not any(alive({"pid": pid}) for pid in left), 3, "the sleepers are gone")


@pytest.mark.parametrize("stream", (1, 2))
def test_output_without_an_end(batches, stream):
    """The kernel ends it, and the report says so."""
    batches.hosts(3)
    batches.fake("endless", text='#!/bin/sh\ncase " $* " in *" 10.0.0.2 "*) '
                 f'head -c 300000000 /dev/zero >&{stream} || kill -XFSZ $$;; esac\nexec "$@"\n')
    result = batches.audit("NMAP endless nmap -F", "BATCH 1", "QUIET", ips=["IPS 10.0.0.1-3"])
    assert result.status == 2
    assert batches.outcomes == {"10.0.0.1": "audited", "10.0.0.2": "failed", "10.0.0.3": "audited"}
    assert "nmap ended by signal 25 (File size limit exceeded)" in (batches.last / "report.txt").read_text()


def test_every_name_that_is_not_resolved_is_told(batches):
    """However much nmap says of them."""
    names = [f"a-name-of-some-length-{at}.example.net" for at in range(300)]
    result = batches.hosts(1).audit(ips=["IPS 10.0.0.1", *(f"IPS {name}" for name in names)])
    assert result.status == 2 and result.out.startswith("1 of 301 hosts audited")
    assert sorted(batches.outcomes) == sorted(["10.0.0.1", *names])
    assert {batches.record["hosts"][name]["reason"] for name in names} == {"nmap could not resolve it"}


def test_where_the_end_of_a_process_is_not_told(batches):
    """Some start their children with SIGCHLD ignored."""
    result = batches.hosts(4, {"10.0.0.2": {"after": True, "exit": 3}}).audit(
        "BATCH 1", prefix=("sh", "-c", 'trap "" CHLD; exec "$@"', "sh"))
    assert result.status == 2
    assert batches.outcomes == {**dict.fromkeys(batches.addresses, "audited"), "10.0.0.2": "failed"}


def test_ended_while_nmap_lists(batches):
    """--resume lists again."""
    batches.hosts(3)
    hosts = dict.fromkeys(batches.addresses, HOST)
    batches.nmap = batches.fake("nmap", hosts=hosts, list_fault={"sleep": 60})
    process = batches.start("--config", batches.config())
    wait_until(lambda: batches.nmap.lists, 20, "the list")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert process.returncode in (-signal.SIGTERM, 143) and b"Traceback" not in err, err
    assert batches.record["status"] == "interrupted" and set(batches.outcomes.values()) == {"failed"}
    batches.fake("nmap", hosts=hosts)
    result = batches.audit(argv=["--resume"])
    assert result.status == 0 and result.out.startswith("3 of 3 hosts audited")


def test_a_name_that_is_a_word_of_run_json(batches):
    """And that is not resolved, so that it stands there."""
    batches.hosts(1).audit(ips=["IPS 10.0.0.1", "IPS ports"])
    record = nmap_audit.read_record(batches.last)
    assert record["hosts"]["ports"]["reason"] == "nmap could not resolve it"


def test_what_nmap_is_started_with(batches, tmp_path):
    """No signal is kept from it, no file is open but three, nothing of its own is where it works."""
    batches.hosts(2).fake("look", text=f"""#!/bin/bash
grep ^Sig[BI] /proc/self/status | cut -f 2 | xargs >> {tmp_path}/signals
pwd >> {tmp_path}/seen
ulimit -S -f >> {tmp_path}/seen
ls /proc/$$/fd >> {tmp_path}/seen
readlink /proc/$$/fd/0 >> {tmp_path}/seen
ps -o pgid= $$ | grep -wc $$ >> {tmp_path}/seen
exec "$@"
""")
    assert batches.audit("NMAP look nmap -F", "BATCH 2").status == 0
    assert (tmp_path / "seen").read_text().split() == ["/", "262144", "0", "1", "2", "255", "/dev/null", "1"] * 2
    for line in (tmp_path / "signals").read_text().splitlines():            # 255 is bash's own
        blocked, ignored = (int(word, 16) & 0x7fffffff for word in line.split())
        assert blocked == 0 and ignored == 0


def test_a_file_of_addresses_is_looked_for_here(batches, tmp_path):
    """Also where another command starts nmap, and for the list of targets, too."""
    (tmp_path / "few").write_text("10.0.0.2\n")
    batches.hosts(3)
    assert batches.audit("NMAP env nmap -F --excludefile few", cwd=tmp_path).status == 0
    assert sorted(batches.outcomes) == ["10.0.0.1", "10.0.0.3"]


@pytest.mark.parametrize("words, kept", (
    ("nmap -F", ""), ("nmap -6 -F -T4", "-6"), ("ssh -6 probe nmap -F --system_dns", "--system_dns"),
    ("nmap --exclude 10.0.0.1 -F -exclude=10.0.0.2", "--exclude 10.0.0.1 -exclude=10.0.0.2"),
    ("nmap --dns-servers 192.0.2.53 --exclude_file -F -sS", "--dns-servers 192.0.2.53 --exclude_file -F")))
def test_what_the_list_of_targets_depends_on(words, kept):
    """An option that takes a value takes the next word, whatever it is."""
    before, nmap, _ = words.partition("nmap")
    assert nmap_audit.list_words(words.split()) == f"{before}{nmap} -sL -n {kept}".split()


def test_jobs_are_made_when_they_are_started(tmp_path):
    """Those that come of others go before those that were there."""
    made, ended = [], []

    def job(name):
        made.append(name)

        def done(output):
            assert (output.status, output.out) == (0, f"{name}\n".encode())
            assert len(made) - len(ended) <= 5      # at work, the next, and another
            ended.append(name)
            return map(job, "ab" if name == "0" else ())
        return nmap_audit.Job(["/bin/echo", name], done)
    nmap_audit.run_jobs(map(job, "0123456789"), tmp_path, 3)
    assert sorted(ended) == list("0123456789ab") and made.index("b") < 9


# ---- What comes in between ---------------------------------------------------------------------

def test_a_signal_while_processes_start_leaves_none(batches, tmp_path):
    """Also none that another command started, as ssh, sudo and srun do."""
    batches.hosts(60)
    batches.fake("wrapper", text='#!/bin/sh\n"$@"\nexit $?\n')
    batches.fake("slow", text=f'#!/bin/sh\ncase " $* " in *" -sL "*) exec "$@" ;; esac\necho $$ >> {tmp_path}/at\n'
                 'exec sleep 30\n')
    for number in range(6):
        (tmp_path / "at").write_text("")
        process = batches.start("--config", batches.config("NMAP wrapper slow nmap", "BATCH 1", "MAX-THREADS 60"))
        wait_until(lambda: (tmp_path / "at").read_text(), 20, "the first process")
        time.sleep(number / 60)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (143, -15)
        left = (tmp_path / "at").read_text().split()
        wait_until(lambda: not any(alive({"pid": pid}) for pid in left), 3, "all are gone")


def test_a_wrapper_that_ends_before_its_last_writer(batches):
    batches.hosts(3).fake("log", text='#!/bin/bash\nexec > >(sleep 0.3; cat)\n"$@"\n')
    assert batches.audit("NMAP log nmap -F", "BATCH 1").status == 0
    assert batches.ports == expected(batches)


def test_a_signal_without_a_name(batches):
    batches.hosts(2, {"10.0.0.2": {"kill": 40}})
    result = batches.audit("BATCH 1")
    assert result.status == 2 and "nmap ended by signal 40 (Real-time signal 6)" in result.out
    assert batches.outcomes == {"10.0.0.1": "audited", "10.0.0.2": "failed"}


@pytest.mark.parametrize("fault", ({"lost": 1}, {"timedout": True}, {"kill": 9, "here": True, "half": True}))
def test_resume_scans_all_that_has_no_whole_result(batches, fault):
    """Also what has a result that is not whole."""
    batches.hosts(2, {"10.0.0.1": fault, "10.0.0.2": {"sleep": 60}})
    process = batches.start("--config", batches.config("BATCH 1", "MAX-THREADS 2"))
    wait_until(lambda: list(batches.state.glob("*/10.0.0.1.*")), 20, "the first result")
    process.send_signal(signal.SIGTERM)
    process.wait(20)
    batches.hosts(2)
    result = batches.audit("BATCH 1", "MAX-THREADS 2", argv=["--resume"])
    assert result.status == 0 and batches.ports == expected(batches)


def test_a_document_holds_no_hint_of_other_hosts(batches):
    """There is one for each host of a batch, so they would grow with its square."""
    hosts = {f"10.0.1.{at}": {**HOST, "mac": "00:00:5e:00:53:01"} for at in range(1, 4)}
    batches.hosts(1, **hosts)
    batches.addresses += hosts
    assert batches.audit("BATCH 9").status == 0
    assert not [path for path in batches.last.glob("10*.xml") if b"<hosthint" in path.read_bytes()]


@pytest.mark.parametrize("key, value", (("seconds", "12"), ("seconds", None), ("seconds", [1]), ("outcome", "zzz"),
                                        ("outcome", None), ("outcome", []), ("reason", 5), ("start", "x")))
def test_a_damaged_note_of_a_host(batches, key, value):
    """The run's XML is read instead; the next run is none the worse."""
    batches.hosts(2).audit("BATCH 1")
    record = batches.record
    record["hosts"]["10.0.0.1"][key] = value
    (batches.last / "run.json").write_text(json.dumps(record))
    damaged = batches.last
    assert batches.audit("BATCH 1", argv=["--process-only", "--detail", "high"]).status == 0
    assert batches.audit("BATCH 1").status == 0 and batches.last != damaged
