"""The table of faults, one test a line of it, each named after its id.

Every test runs the whole program as a process and looks at all that the table promises: the exit
status, what is said and how often, what stays on disk, what is left running, and no traceback.
"""
import csv
import datetime
import io
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import nmap_audit
from labtools import wait_until

HERE = Path(__file__).parent
NOBODY = 65534
OPEN = {"ports": [[25, "tcp", "open", "smtp"]]}
FUTURE = "20991231-235959"
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

# Runs a command and writes its peak memory (kB), that of whatever it waited for included, to a file.
MEASURE = """
import resource, subprocess, sys
status = subprocess.call(sys.argv[2:])
open(sys.argv[1], "w").write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(status if status >= 0 else 128 - status)
"""


# ---- An audit to be disturbed ------------------------------------------------------------------

class Audit:
    """An rc file with a DIR-NAME of its own, called as often as a test likes."""

    def __init__(self, rc, run, start, folder):
        self.run, self.start, self.write = run, start, rc
        self.state, self.peak, self.rc = folder / "state", folder / "peak", None

    def config(self, *lines, ips=("10.0.0.1",), mail=False):
        """Writes the rc file; mail: to root@example.net."""
        every = [f"IPS {target}" for target in ips] + [f"DIR-NAME {self.state}"]
        every += ["EMAIL-TO root@example.net"] * mail
        alone = ["BATCH 1"] * ("BATCH" in nmap_audit.VARIABLES)     # a fault is of one host
        self.rc = self.write("\n".join([*every, *lines, *alone]) + "\n")

    def __call__(self, *argv, traceback=False, **options):
        result = self.run("--config", self.rc, *argv, **options)
        if not traceback:
            tidy(result)
        return result

    def begin(self, *argv, **options):
        return self.start("--config", self.rc, *argv, **options)

    def measured(self, *argv, **options):
        """(result, peak memory in MB)"""
        result = self(*argv, prefix=(sys.executable, "-c", MEASURE, self.peak), **options)
        return result, int(self.peak.read_text()) // 1024

    @property
    def runs(self):
        return sorted(path for path in self.state.iterdir() if re.fullmatch(r"\d{8}-\d{6}", path.name))

    @property
    def record(self):
        return json.loads((self.runs[-1] / "run.json").read_bytes())

    @property
    def outcomes(self):
        return {address: note["outcome"] for address, note in self.record["hosts"].items()}

    @property
    def xml(self):
        """The names of the newest run's results; each is whole."""
        paths = sorted(path for path in self.runs[-1].glob("*.xml") if not path.name.startswith("targets"))
        for path in paths:
            ET.parse(path)
        return [path.name for path in paths]


@pytest.fixture
def audit(rc, run, start, tmp_path):
    return Audit(rc, run, start, tmp_path)


def tidy(result):
    """Every line of standard error is a status line or a message, and none a traceback."""
    for line in result.err.splitlines():
        assert re.match(r"nmap-audit: |\[\d+/\d+\] ", line), result.err
    assert "Traceback" not in result.out + result.err and "a bug" not in result.err, result.err


def said(result):
    """The messages on standard error."""
    return [line for line in result.err.splitlines() if line.startswith("nmap-audit: ")]


def first(result):
    """(N, M, F, G) of the report's first line."""
    found = re.match(r"(\d+) of (\d+) hosts audited, (\d+) findings, (\d+) gone\n", result.out)
    assert found, result.out[:300]
    return tuple(map(int, found.groups()))


def under(text, title):
    """What a report shows under a title: up to the next one."""
    found = re.search(rf"^{title}[^\n]*\(\d+\)[^\n]*\n\n(.*?)(?:\n\n|\Z)", text, re.M | re.S)
    return found[1] if found else ""


def body(mail):
    return mail.get_body(("plain",)).get_content()


def table(text):
    """scan_report.csv as mappings."""
    return list(csv.DictReader(io.StringIO(text.lstrip("\ufeff"), newline="")))


def living(marker):
    """The processes that have the marker in their environment or command line, this one left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            text = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
            if os.fsencode(str(marker)) in text and int(folder.name) != os.getpid():
                found.append((int(folder.name), text[:80]))
    return found


def nmaps(faked):
    """The fake nmaps that are still running."""
    return [pid for pid, text in living(faked.path) if b"nmap" in text and b"nmap_audit" not in text]


def world(*addresses, **hosts):
    """Hosts that have one open port each, and others."""
    return {address: OPEN for address in addresses} | hosts


def sleepers(last, first_asleep=2, **fault):
    """10.0.0.1 to 10.0.0.LAST, of which the later never end."""
    return {f"10.0.0.{n}": {**OPEN, "fault": {"sleep": 300, **fault} if n >= first_asleep else {}}
            for n in range(1, last + 1)}


def limited(*words):
    """A prefix: root without the right to read what is closed to it."""
    return ("setpriv", "--bounding-set", "-dac_override,-dac_read_search", "--inh-caps",
            "-dac_override,-dac_read_search", *words)


def through_sh(command):
    """A prefix: the program run by a line of sh, where it is "$@"."""
    return ("sh", "-c", command, "sh")


# ---- Scanning ----------------------------------------------------------------------------------

def test_S1_no_nmap(audit, tmp_path):
    audit.config("NMAP no-such-nmap -F")
    result = audit(env={"PATH": str(tmp_path)})
    assert result.status == 69 and result.out == ""
    assert len(said(result)) == 1 and "install" in result.err and "no-such-nmap" in result.err
    assert not audit.state.exists()


def test_S2_unknown_option(audit, fake, real_nmap):
    post = fake("sendmail")
    audit.config("NMAP nmap -F --bogus-option", ips=["127.0.0.1-40"], mail=True)
    result = audit()
    assert result.status == 2
    text = body(post.mails[0])
    assert text.startswith("0 of 40 hosts audited")
    assert text.count("unrecognized option") == 1 and "'--bogus-option'" in text
    assert set(audit.outcomes.values()) == {"failed"}
    assert all(text.count(f"127.0.0.{n}\n") + text.count(f"127.0.0.{n} ") >= 1 for n in range(1, 41))


def test_S3_empty_or_cut_xml(audit, fake):
    cut = {f"10.0.0.{n}": {**OPEN, "fault": {"cut": size}} for n, size in
           enumerate((0, 1, 100, 500, 900, 1200, -1, -12, -100), 1)}
    cut["10.0.0.7"]["fault"] = {"cut": -3}
    fake("nmap", hosts={**cut, "10.0.0.10": {**OPEN, "fault": {"empty": True}}, "10.0.0.11": OPEN})
    audit.config(ips=["10.0.0.1-11"])
    result = audit()
    assert result.status == 2
    assert first(result)[:2] == (1, 11)
    outcomes = audit.outcomes
    assert outcomes.pop("10.0.0.11") == "audited" and set(outcomes.values()) == {"cut off"}
    assert audit.xml == ["10.0.0.11.xml"]
    assert len(re.findall(r"^Not audited .*cut off", result.out, re.M)) >= 1


def test_S4_nmap_killed_for_one_host(audit, fake):
    hosts = world("10.0.0.1", "10.0.0.3")
    faked = fake("nmap", hosts={**hosts, "10.0.0.2": {**OPEN, "fault": {"kill": 9, "once": 1}},
                                "10.0.0.4": {**OPEN, "fault": {"kill": 9}}})
    audit.config(ips=["10.0.0.1-4"])
    result = audit()
    assert result.status == 2 and first(result)[:2] == (3, 4)
    assert audit.outcomes == {"10.0.0.1": "audited", "10.0.0.2": "audited", "10.0.0.3": "audited",
                              "10.0.0.4": "failed"}
    assert "signal 9 (Killed)" in audit.record["hosts"]["10.0.0.4"]["reason"]
    alone = [argv[argv.index("--") + 1:] for argv in faked.scans]
    assert alone.count(["10.0.0.4"]) in (1, 2) and faked.scanned.count("10.0.0.4") == 2
    assert faked.scanned.count("10.0.0.2") == 2 and alone[-1] in (["10.0.0.4"], ["10.0.0.2"])


def test_S5_target_not_resolved(audit, fake, real_nmap):
    audit.config("NMAP nmap -6 -n -F", ips=["127.0.0.1", "::1"])
    result = audit()
    assert result.status == 2 and first(result)[:2] == (1, 2)
    assert re.search(r"^127\.0\.0\.1\b", result.out, re.M) and "resolve" in result.out
    assert audit.outcomes == {"127.0.0.1": "failed", "::1": "audited"}
    fake("nmap", hosts=world("10.0.0.1"), resolve={"six.example.net": "fe80::1"})
    audit.config(ips=["nosuch.example.net", "six.example.net", "10.0.0.1"])
    result = audit()
    assert result.status == 2 and first(result)[:2] == (1, 3)
    for name in ("nosuch.example.net", "six.example.net"):
        assert re.search(rf"^{name}\b", result.out, re.M), result.out
    audit.config(ips=["nosuch.example.net"])
    result = audit()
    assert result.status == 2 and first(result)[:2] == (0, 1), "none resolved: S5, not S6"


def test_S6_all_excluded(audit, fake, real_nmap):
    audit.config("NMAP nmap -n -F --exclude 127.0.0.0/30", ips=["127.0.0.1", "127.0.0.2"])
    result = audit()
    assert result.status == 78 and result.out == ""
    assert f"{audit.rc}:1:5" in result.err and f"{audit.rc}:2:5" in result.err
    assert len(said(result)) == 1 and "exclude" in result.err
    fake("nmap", hosts={})
    audit.config("NMAP nmap -F --exclude 10.0.0.0/30", ips=["10.0.0.1", "nosuch.example.net"])
    assert audit().status == 2, "a target that did not resolve makes it S5"


def test_S7_host_timeout(audit, fake):
    fake("nmap", hosts=world("10.0.0.1", "10.0.0.2"))
    audit.config(ips=["10.0.0.1-2"])
    assert audit().status == 0
    fake("nmap", hosts=world("10.0.0.1", **{"10.0.0.2": {**OPEN, "fault": {"timedout": True}}}))
    result = audit()
    assert result.status == 2 and first(result) == (1, 2, 1, 0)
    assert audit.outcomes["10.0.0.2"] == "timed out"
    assert not under(result.out, "Gone") and re.search(r"^Not audited .*timed out", result.out, re.M)
    fake("nmap", hosts=world("10.0.0.1", "10.0.0.2"))
    result = audit()
    assert result.status == 0 and "10.0.0.2" in under(result.out, "Standing")


def test_S8_a_list_that_fails_when_resuming_takes_nothing_away(audit, fake):
    faked = fake("nmap", hosts=sleepers(2))
    audit.config("MAX-THREADS 1", "BATCH 1", ips=["10.0.0.1", "10.0.0.2"])
    process = audit.begin()
    wait_until(lambda: "10.0.0.2" in faked.scanned or process.poll(), 20, "no scan")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=10)
    assert audit.outcomes == {"10.0.0.1": "audited"}
    listed = (audit.runs[-1] / "targets.xml").read_bytes()
    fake("nmap", text="#!/bin/sh\nexit 1\n")
    result = audit("--resume")
    assert (audit.runs[-1] / "targets.xml").read_bytes() == listed
    assert result.status == 2 and audit.outcomes == {"10.0.0.1": "audited", "10.0.0.2": "failed"}
    assert first(result)[:2] == (1, 2)


@pytest.mark.parametrize("number, stubborn", [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_S8_stopped_by_a_signal(audit, fake, number, stubborn):
    faked = fake("nmap", hosts=sleepers(6, stubborn=stubborn))
    audit.config("MAX-THREADS 3", ips=["10.0.0.1-6"])
    process = audit.begin()
    wait_until(lambda: {"10.0.0.2", "10.0.0.3"} <= set(faked.scanned) and len(faked.scanned) >= 4
               or process.poll(), 20, "no scan")
    time.sleep(0.3)
    stopped = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert time.monotonic() - stopped < 5
    assert process.returncode in (-number, 128 + number)
    assert nmaps(faked) == []
    assert out == b"" and b"Traceback" not in err and b"--resume" in err
    assert audit.record["status"] == "interrupted"
    assert audit.outcomes == {"10.0.0.1": "audited"} and audit.xml == ["10.0.0.1.xml"]
    faked.forget()
    fake("nmap", hosts=world(*(f"10.0.0.{n}" for n in range(1, 7))))
    result = audit("--resume")
    assert result.status == 0 and first(result)[:3] == (6, 6, 6)
    assert sorted(faked.scanned) == [f"10.0.0.{n}" for n in range(2, 7)]
    assert len(audit.runs) == 1 and audit.record["status"] == "finished"


@pytest.mark.parametrize("then", ["--resume", None])
def test_S9_killed_itself(audit, fake, then):
    faked = fake("nmap", hosts=sleepers(5))
    audit.config("MAX-THREADS 3", ips=["10.0.0.1-5"])
    process = audit.begin()
    wait_until(lambda: len(faked.scanned) >= 4 or process.poll(), 20, "no scan")
    time.sleep(0.3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_until(lambda: not nmaps(faked), 1, f"outlived: {nmaps(faked)}")
    assert audit.record["status"] not in ("finished", "interrupted") and audit.record["ended"] is None
    assert audit.xml == ["10.0.0.1.xml"]
    killed = audit.runs[-1]
    faked.forget()
    fake("nmap", hosts=world(*(f"10.0.0.{n}" for n in range(1, 6))))
    if then:
        result = audit(then)
        assert sorted(faked.scanned) == [f"10.0.0.{n}" for n in range(2, 6)]
        assert audit.runs == [killed]
    else:
        result = audit()
        assert len(faked.scanned) == 5 and audit.runs[0] == killed and len(audit.runs) == 2
        assert json.loads((killed / "run.json").read_bytes())["ended"] is None
    assert result.status == 0 and first(result)[:3] == (5, 5, 5)


def test_S10_needs_root(audit, real_nmap):
    audit.config("NMAP nmap --unprivileged -sS -F", ips=["127.0.0.1"])
    result = audit()
    assert result.status == 2 and first(result)[:2] == (0, 1)
    assert audit.outcomes == {"127.0.0.1": "failed"}
    assert "requires root privileges" in result.out


REFUSED = ("-oX out.xml", "-oX=out.xml", "--oX out.xml", "-oXout.xml", "-oN out", "-oG -", "-oS x", "-oA x", "-oM x",
           "-o x", "-ox", "-oH x", "--append-output", "--append", "--app", "--resume x", "--resum x", "--resu x",
           "-resume x", "-iL x", "-iL=x", "--iL x", "-iR 5", "--iR 5", "-iLx", "-i x", "--stylesheet x",
           "-stylesheet=x", "--style x", "-nofoo", "-Fo foo", "-nixyz", "-vFoX x")
ALLOWED = ("--open", "-open", "--osscan-guess", "--osscan-limit", "-O", "--version-intensity 2", "-p1-20", "--reason",
           "--script x", "--initial-rtt-timeout 1s", "-n --privileged", "--script-args a=-oX", "-6 -O", "-sO", "-PO1")


def test_S11_output_and_input_options(audit, fake, run):
    faked = fake("nmap", hosts=world("10.0.0.1"))
    failed = []
    for words in REFUSED:
        audit.config(f"NMAP nmap {words}")
        status = nmap_audit.main(["--config", str(audit.rc)])
        failed += [words] * (status != 78)
    audit.config("NMAP nmap -F -oX out.xml")
    result = audit()
    assert result.status == 78 and "'-oX'" in result.err and f"{audit.rc}:3:" in result.err
    result = run("--config", audit.rc, "--nmap", "nmap --resum x", "--ips", "10.0.0.1")
    assert result.status in (64, 78) and "'--resum'" in result.err
    for words in ALLOWED:
        nmap_audit.read_config(nmap_audit.parse_rc(f"NMAP nmap {words}", "rc"), [])
    assert not failed, f"passed: {failed}"
    assert faked.calls == []
    audit.config("NMAP nmap --open --osscan-guess")
    result = audit()
    assert result.status == 0 and first(result)[:2] == (1, 1)


HOSTILE = ("-oX/tmp/pwned", "--script=evil", "$(touch pwned)", "`touch pwned`", ";touch pwned", "a b", "10.0.0.1;id",
           "x\ny", "10.0.0.1\n-iL /etc/passwd", "|id", "a&b", "<x", "10.0.0.1'", "a\\b", "\u00e9.example.net")


def test_S12_hostile_words(audit, fake, run, tmp_path):
    faked = fake("nmap", hosts=world("10.0.0.1"))
    audit.config(ips=["10.0.0.1"])
    for value in HOSTILE[:6]:
        result = run("--config", audit.rc, f"--ips={value}")
        tidy(result)
        assert result.status in (64, 78) and value.split("\n")[0] in result.err, value
    for value in HOSTILE:
        with pytest.raises(nmap_audit.AuditError) as caught:
            nmap_audit.read_config((), [nmap_audit.Line("IPS", value, *[nmap_audit.Where("--ips")] * 2)])
        assert caught.value.status in (64, 78)
    assert faked.calls == []
    names = ("-dir", "two words", "a;touch pwned", "$(touch pwned)", "%H %d", "`touch pwned`", "--config")
    for name in names:
        result = run("--config", audit.rc, f"--dir-name={name}", cwd=tmp_path)
        tidy(result)
        assert result.status == 0 and (tmp_path / name).is_dir(), (name, result.err)
        assert len(list((tmp_path / name).glob("2*/10.0.0.1.xml"))) == 1
    result = run("--config", audit.rc, "--dir-name", "new\nline", cwd=tmp_path)
    tidy(result)
    assert result.status in (64, 78)
    names = ["../../../etc/x", "-oX", "a;b", "$(touch pwned)", "new\nline"]
    fake("nmap", hosts={"10.0.0.1": {**OPEN, "names": names}})
    before = {path.name for path in tmp_path.iterdir()}
    result = audit()
    assert result.status == 0 and {path.name for path in tmp_path.iterdir()} == before | {"state"}
    assert not list(tmp_path.rglob("pwned")) and not Path("/pwned").exists()
    assert {path.name for path in audit.runs[-1].iterdir()} >= {"10.0.0.1.xml", "report.txt"}


def test_S13_most_hosts_down(audit, fake):
    every = [f"10.0.0.{n}" for n in range(1, 6)]
    fake("nmap", hosts=world(*every))
    audit.config(ips=["10.0.0.1-5"])
    assert audit().status == 0
    fake("nmap", hosts=world(every[0]))
    result = audit()
    second = result.out.splitlines()[1]
    assert "4 of 5" in second and "network" in second and "broken" in second
    assert result.status == 0 and first(result)[:2] == (1, 1)
    fake("nmap", hosts=world(*every[:3]))
    assert "broken" not in audit().out


def test_S14_flood(audit, fake):
    fake("nmap", hosts={"10.0.0.1": {**OPEN, "fault": {"flood_err": 100, "exit": 1}},
                        "10.0.0.2": {**OPEN, "fault": {"flood_out": 100}}, "10.0.0.3": OPEN})
    audit.config("MAX-THREADS 2", ips=["10.0.0.1-3"])
    result, peak = audit.measured()
    assert result.status == 2 and audit.outcomes["10.0.0.1"] == "failed"
    assert audit.outcomes["10.0.0.3"] == "audited"
    assert audit.outcomes["10.0.0.2"] in ("failed", "cut off", "audited")
    assert len(result.out) < 20_000 and len(result.err) < 20_000
    assert "I say so again" in result.out
    assert sum(path.stat().st_size for path in audit.runs[-1].iterdir()) < 300e6
    assert peak < 500, f"{peak} MB"


LOSSY = """#!/bin/sh
# nmap whose {k}-th write to standard output is lost; the list of targets is not disturbed
case " $* " in *" -sL "*) exec {nmap} "$@";; esac
pipe=$(mktemp -u {folder}/pipe.XXXXXX) && mkfifo "$pipe" || exit 99
cat "$pipe" &
strace -qq -o {folder}/log.{k}.$$ -P "$pipe" -e trace=write -e signal=none \
    -e inject=write:error=ENOSPC:when={k} {nmap} "$@" > "$pipe"
status=$?
wait
rm -f "$pipe"
exit $status
"""


def test_S15_a_write_of_nmap_is_lost(audit, fake, listen, real_nmap, tmp_path):
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    ports = [listen("127.0.0.1", 0).port for _ in range(3)]
    missing = []
    for k in range(1, 13):
        fake("nmap", LOSSY.format(k=k, nmap=real_nmap, folder=tmp_path))
        audit.config(f"NMAP nmap -n -p1-20,{','.join(map(str, ports))}", ips=["127.0.0.1"])
        result = audit()
        injected = any("INJECTED" in path.read_text() for path in tmp_path.glob(f"log.{k}.*"))
        found = [port for port in ports if re.search(rf"127\.0\.0\.1.* {port} +tcp +open", result.out)]
        if audit.outcomes == {"127.0.0.1": "audited"}:
            assert result.status == 0
            missing += [k] * (found != ports)
        else:
            assert result.status == 2 and "127.0.0.1" in result.out.split("Not audited", 1)[1]
            assert audit.outcomes["127.0.0.1"] in ("cut off", "timed out", "failed")
        if not injected:
            break
    assert not injected and k > 2, f"no end at {k}"
    assert missing == [], "audited, with ports missing"


def test_S16_targets_that_nmap_reads_otherwise(audit, fake):
    faked = fake("nmap", hosts={})
    wrong = ("10.0.0.0/33", "10.0.0.300", "10.0.0.5-2", "010.0.0.1", "1234", "10.0.0.1/08", "0x7f.1", "10.1",
             "fe80::1/129", "10.0.0.1,", "10.0.0.1 10.0.0.2/40", "10.0.0.-1.5", "10.0.0.1-300")
    for value in wrong[:5]:
        audit.config(ips=["10.0.0.1", value])
        result = audit()
        assert result.status == 78 and result.out == "", value
        assert len(said(result)) == 1 and f"{audit.rc}:2:5: " in result.err and value in result.err
    audit.config(ips=wrong)
    result = audit()
    assert result.status == 78
    assert [int(line) for line in re.findall(rf"{audit.rc}:(\d+):", result.err)] == list(range(1, len(wrong) + 1))
    assert faked.calls == [] and not audit.state.exists()


def test_S17_blind_scanner(audit, fake):
    hosts = world(*(f"10.0.0.{n}" for n in range(1, 4)))
    rules = ("group all", "ip 10.0.0.0/24", "expect 25 tcp open smtp", "end group all")
    fake("nmap", scanned="1-60", hosts=hosts)
    audit.config(*rules, ips=["10.0.0.1-3"])
    assert audit().status == 0
    blind = {address: {"rest": "filtered"} for address in hosts}
    fake("nmap", scanned="1-60", hosts=blind)       # a firewall that drops the probes, -sT
    result = audit()
    assert "missing" in result.out.splitlines()[1] and "blind" in result.out.splitlines()[1]
    assert under(result.out, "Missing").count("10.0.0.") == 3
    fake("nmap", scanned="1-60", hosts={})          # no link
    result = audit()
    assert "3 of 3" in result.out.splitlines()[1] and "broken" in result.out.splitlines()[1]
    fake("nmap", scanned="1-60", hosts={address: {"ports": [*OPEN["ports"], [26]]} for address in hosts})
    result = audit()
    assert under(result.out, "New").count(" 26 ") == 3
    assert "First look" not in result.out and "Hosts new" not in result.out


def test_S18_hostile_environment(audit, fake, real_nmap, tmp_path):
    script = "hostrule = function() return true end\naction = function() io.open('{}', 'w'):close() end\n" \
        "description = ''\ncategories = {{'safe'}}\n".format(tmp_path / "pwned")
    folder = tmp_path / "here"
    for path in (folder / "mine.nse", folder / "scripts" / "mine.nse", tmp_path / "data" / "nmap-services"):
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(script)
    bad = {"NMAP_ARGS": "-p 1-3", "NMAP_UNPRIVILEGED": "1", "NMAPDIR": str(tmp_path / "data"),
           "NMAP_PRIVILEGED": "1"}
    audit.config("NMAP nmap -n -p1-9", ips=["127.0.0.1"])
    result = audit(env=bad, cwd=folder)
    assert result.status == 0 and first(result)[:2] == (1, 1)
    text = (audit.runs[-1] / "127.0.0.1.xml").read_text()
    assert 'services="1-9"' in text and 'type="syn"' in text or os.geteuid() != 0
    audit.config("NMAP nmap -n -p1-9 --script mine.nse", ips=["127.0.0.1"])
    result = audit(env=bad, cwd=folder)
    assert result.status == 2 and audit.outcomes == {"127.0.0.1": "failed"}
    assert not (tmp_path / "pwned").exists()
    faked = fake("nmap", hosts=world("10.0.0.1"))
    audit.config()
    assert audit(env=bad, cwd=folder).status == 0
    for call in faked.calls:
        assert not set(bad) & set(call["env"]) and call["cwd"] != str(folder)


def test_S19_overlapping_targets(audit, fake):
    faked = fake("nmap", hosts=world("10.0.0.1", "10.0.0.2"), resolve={"web.example.net": "10.0.0.1"})
    audit.config(ips=["10.0.0.1", "10.0.0.0/30", "web.example.net", "10.0.0.1-2", "10.0.0.2,10.0.0.1"])
    result = audit()
    assert result.status == 0 and first(result)[:3] == (2, 2, 2)
    assert sorted(faked.scanned) == [f"10.0.0.{n}" for n in range(4)]


def test_S20_too_many_addresses(audit, fake):
    faked = fake("nmap", hosts={})
    sixteen = [f"10.{n}.0.0/16" for n in range(16)]
    for ips in (["10.0.0.0/8"], ["2001:db8::/64"], ["::/0"], ["*.*.*.*"], [*sixteen, "192.0.2.1"],
                ["10.0.0.1", "0.0.0.0/0"]):
        audit.config(ips=ips)
        result, peak = audit.measured()
        assert result.status == 78 and result.out == "", ips
        assert len(said(result)) == 1 and "1048576" in result.err.replace(",", ""), result.err
        assert peak < 100, f"{peak} MB"
    assert faked.calls == [] and not audit.state.exists()


# ---- Storage and locking -----------------------------------------------------------------------

def test_F1_directory_impossible(audit, fake, tmp_path):
    faked = fake("nmap", hosts=world("10.0.0.1"))
    (tmp_path / "file").write_text("")
    audit.config()
    for folder in (tmp_path / "file" / "state", tmp_path / "file", "/proc/none/state", "/sys/nothing"):
        result = audit("--dir-name", folder)
        assert result.status == 73 and result.out == "", folder
        assert len(said(result)) == 1 and str(folder) in result.err
    if os.geteuid() == 0 and shutil.which("setpriv"):
        (tmp_path / "closed").mkdir(mode=0o500)
        assert audit("--dir-name", tmp_path / "closed", prefix=limited()).status == 73
    assert faked.calls == []


@contextmanager
def tmpfs(folder, size):
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.decode()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@needs_root
def test_F2_disk_full(audit, fake):
    hosts = {f"10.0.0.{n}": {**OPEN, "raw": f'<x y="{"z" * 30000}"/>'} for n in range(1, 13)}
    fake("nmap", hosts=hosts)
    post = fake("sendmail")
    audit.config("MAX-THREADS 2", ips=["10.0.0.1-12"], mail=True)
    with tmpfs(audit.state, "200k"):
        result = audit()
        assert result.status in (2, 74)
        assert sum("No space left" in line for line in said(result)) == 1, result.err
        kept = audit.xml
        assert 2 <= len(kept) < 12
        for path in audit.runs[-1].iterdir():
            assert not path.name.startswith("."), "a half file is left"
        assert isinstance(audit.record["hosts"], dict)
        assert not list(audit.state.rglob("*.eml")) or all(
            path.read_bytes().endswith(b"\n") for path in audit.state.rglob("*.eml"))
        text = body(post.mails[0])
        assert re.match(rf"{len(kept)} of 12 hosts audited", text), text[:200]
        assert "Not audited" in text


def test_F3_two_runs_at_once(audit, fake, tmp_path):
    faked = fake("nmap", hosts={"10.0.0.1": {**OPEN, "fault": {"sleep": 2.5, "once": 1}}})
    audit.config()
    process = audit.begin()
    wait_until(lambda: faked.scans or process.poll(), 20, "no scan")
    began = time.monotonic()
    result = audit()
    assert time.monotonic() - began < 2 and process.poll() is None
    assert result.status == 75 and len(said(result)) == 1
    assert f"pid {process.pid}" in result.err and time.strftime("%Y-%m-%d") in result.err
    assert audit("--dir-name", tmp_path / "other").status == 0
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out.startswith(b"1 of 1 hosts audited"), err
    assert len(audit.runs) == 1


def test_F4_two_runs_in_one_second(audit, fake, tmp_path):
    fake("nmap", hosts=world("10.0.0.1"))
    audit.config()
    for _ in range(3):
        assert audit().status == 0
    assert len(audit.runs) == 3
    ids = {nmap_audit.make_run(tmp_path).name for _ in range(5)}
    assert len(ids) == 5


def test_F9_a_folder_of_no_day(audit, fake):
    """Its name looks like a run's."""
    fake("nmap", hosts=world("10.0.0.1"))
    audit.config()
    for name in ("20231345-000000", "00000000-999999"):
        (audit.state / name).mkdir(mode=0o700, parents=True)
    for _ in range(3):
        assert audit().status == 0
    names = [path.name for path in audit.runs]
    assert len(names) == 5 and names[1] == "20231345-000000" and all(name > "2026" for name in names[2:])
    for name in ("99991231-235959", "99991399-000000"):
        (audit.state / name).mkdir(mode=0o700)
        assert audit().status == 0
    assert len(audit.runs) == 9
    folder = audit.runs[2].rename(audit.state / "20260231-000000")
    result = audit("--process-only", "--dir-name", folder)
    assert result.status == 0 and result.out.startswith("1 of 1 hosts audited"), result.err


def test_F5_stale_lock(audit, fake):
    fake("nmap", hosts=world("10.0.0.1"))
    audit.config()
    audit.state.mkdir(mode=0o700)
    (audit.state / "lock").write_text(f"pid {os.getpid()} since 2020-01-01 00:00:00\n" * 20)
    assert audit().status == 0
    assert os.fsencode(str(os.getpid())) not in (audit.state / "lock").read_bytes()


def test_F6_modes(audit, fake):
    fake("nmap", hosts=world("10.0.0.1", **{"10.0.0.2": {**OPEN, "fault": {"cut": 900}}}))
    fake("sendmail", exit=75)
    audit.config(ips=["10.0.0.1-2"], mail=True)
    assert audit(prefix=through_sh('umask 000; exec "$@"')).status == 69
    fake("sendmail")
    paths = [audit.state, *audit.state.rglob("*")]
    assert {"run.json", "10.0.0.1.xml", "10.0.0.2.part", "report.txt", "lock", "unsent"} <= {p.name for p in paths}
    wrong = [(path, oct(mode)) for path in paths if (mode := stat.S_IMODE(path.lstat().st_mode))
             != (0o700 if path.is_dir() else 0o600)]
    assert wrong == []


PLANTS = """#!/bin/sh
for name in run.json report.txt scan_report.csv 10.0.0.1.xml targets.xml
do
    for run in {state}/2*
    do ln -sf {victim} "$run/$name"
    done
done
NMAP_FAKE={world} exec {program} "$@"
"""


@needs_root
def test_F7_planted_links(audit, fake, tmp_path):
    faked = fake("nmap", hosts=world("10.0.0.1"))
    audit.config()
    outside, victim = tmp_path / "outside", tmp_path / "victim"
    outside.mkdir(mode=0o700)
    victim.write_text("precious")

    audit.state.symlink_to(outside)                         # DIR-NAME is another user's link
    os.lchown(audit.state, NOBODY, NOBODY)
    result = audit()
    assert result.status == 73 and str(audit.state) in result.err and len(said(result)) == 1
    audit.state.unlink()
    audit.state.mkdir()
    os.chown(audit.state, NOBODY, NOBODY)                   # or another user's directory
    assert audit().status == 73
    assert faked.calls == [] and not list(outside.iterdir())
    os.chown(audit.state, 0, 0)

    now = datetime.datetime.now()                           # run folders that are links
    for seconds in range(-1, 15):
        name = (now + datetime.timedelta(seconds=seconds)).strftime("%Y%m%d-%H%M%S")
        (audit.state / name).symlink_to(outside)
    result = audit()
    assert result.status in (0, 73) and not list(outside.iterdir())
    for path in audit.state.iterdir():
        if path.is_symlink():
            path.unlink()

    (audit.state / "lock").unlink(missing_ok=True)          # the lock is a link
    (audit.state / "lock").symlink_to(victim)
    result = audit()
    assert result.status in (0, 73, 74) and victim.read_text() == "precious"
    (audit.state / "lock").unlink()

    program = faked.program.rename(tmp_path / "bin" / "real-fake")   # files of the run folder are links
    fake("nmap", PLANTS.format(state=audit.state, victim=victim, world=faked.path, program=program))
    result = audit()
    assert result.status == 0 and victim.read_text() == "precious"
    assert not [path for path in audit.runs[-1].iterdir() if path.is_symlink() and path.name != "targets.xml"]


NONSENSE = ('[]', 'null', '{"version": 1, "hosts": {"10.0.0.1": 3}}',
            '{"version": 1, "hosts": {}, "told": true, "state": []}',
            '{"version": 1, "hosts": {}, "told": true, "state": {"lists": [], "hosts": {"10.0.0.1": {"x": 1}}}}')
NONSENSE += tuple(json.dumps({"version": 1, "hosts": {}, "told": True, "status": "finished", "nmap": [], "ips": [],
                              **more})
                  for more in ({"before": {"lists": []}}, {"before": [1]}, {"state": None}))


@pytest.mark.parametrize("damage", ["cut", "empty", "future", "deleted"])
def test_F8_run_json_damaged(audit, fake, damage):
    fake("nmap", scanned="1-60", hosts=world("10.0.0.1"))
    audit.config()
    assert audit().status == 0
    path = audit.runs[0] / "run.json"
    data = path.read_bytes()
    bad = {"cut": data[:len(data) // 2], "empty": b"", "deleted": None,
           "future": json.dumps({**json.loads(data), "version": 99}).encode()}[damage]
    path.unlink() if bad is None else path.write_bytes(bad)
    fake("nmap", scanned="1-60", hosts={"10.0.0.1": {"ports": [[25, "tcp", "open", "smtp"], [26]]}})
    result = audit()
    assert result.status == 0
    assert " 25 " in under(result.out, "Standing") and " 26 " in under(result.out, "New"), result.out
    assert (path.read_bytes() if path.exists() else None) == bad, "overwritten in place"
    told = [line for line in result.out.splitlines() + said(result) if f"{audit.runs[0].name}/run.json" in line]
    assert told, f"no warning\n{result.out}"


def test_F8_run_json_of_another_shape(audit, fake):
    fake("nmap", hosts=world("10.0.0.1"))
    audit.config()
    assert audit().status == 0
    path, wrong = audit.runs[0] / "run.json", []
    for text in NONSENSE:
        path.write_text(text)
        for argv in (["--process-only", "--dir-name", audit.runs[0]], []):
            result = audit(*argv, traceback=True)
            wrong += [(text, argv[:1], result.status, said(result)[:1])] * (result.status not in (0, 65))
        assert path.read_text() == text
        for folder in audit.runs[1:]:
            shutil.rmtree(folder)
    assert wrong == []


def test_F9_clock_steps_back(audit, fake):
    fake("nmap", hosts=world("10.0.0.1"))
    audit.config()
    began = time.time()
    assert audit(env={"TZ": "AAA-9"}).status == 0           # nine hours ahead: local time steps back
    assert audit(env={"TZ": "BBB+2"}).status == 0
    ids = [datetime.datetime.strptime(path.name, "%Y%m%d-%H%M%S") for path in audit.runs]
    assert ids[1] - ids[0] == datetime.timedelta(seconds=1)
    (audit.state / FUTURE).mkdir(mode=0o700)
    assert audit().status == 0
    newest = audit.runs[-1]
    assert newest.name == "21000101-000000"
    ended = time.time()
    for path in audit.runs:
        if path.name != FUTURE:
            record = json.loads((path / "run.json").read_bytes())
            start, end = (datetime.datetime.fromisoformat(record[key]).timestamp() for key in ("started", "ended"))
            assert began - 1 <= start <= end <= ended + 1
            assert all(note["seconds"] >= 0 for note in record["hosts"].values())


def test_F10_some_steps_of_the_sweep():
    if not shutil.which("strace"):
        pytest.skip("strace is not installed")
    done = subprocess.run([sys.executable, HERE / "sweep.py", "--every", "19"], capture_output=True, text=True,
                          timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^\d+ passed, 0 failed$", done.stdout.splitlines()[-1]), done.stdout


def test_F11_run_folder_removed(audit, fake, tmp_path):
    faked = fake("nmap", hosts=world("10.0.0.1", "10.0.0.2"))
    program = faked.program.rename(tmp_path / "bin" / "real-fake")
    fake("nmap", f'#!/bin/sh\ncase " $* " in *" -sL "*) ;; *) rm -rf {audit.state}/2*;; esac\nexec {program} "$@"\n')
    audit.config(ips=["10.0.0.1-2"])
    result = audit()
    assert result.status == 74
    assert not re.match("[12] of", result.out), result.out
    assert len([line for line in said(result) if "No such file" in line]) == 1, result.err


# ---- Reading results ---------------------------------------------------------------------------

HOST = ('<host starttime="1" endtime="2"><status state="up"/><address addr="{address}" addrtype="ipv4"/><ports>'
        '<port protocol="tcp" portid="{port}"><state state="open"/><service name="{service}"/></port>'
        '<extraports state="closed" count="9"/></ports></host>\n')
PLAIN = ('{prolog}<nmaprun scanner="nmap" args="nmap -F" start="1700000000" version="7.93">\n'
         '<scaninfo type="syn" protocol="tcp" numservices="10" services="21-30"/>\n{hosts}'
         '<runstats><finished time="1700000009" exit="success"/><hosts up="1" down="0" total="1"/></runstats>\n'
         '</nmaprun>\n')
PROLOG = '<?xml version="1.0"?>\n<!DOCTYPE nmaprun>\n'


def document(*addresses, prolog=PROLOG, port=25, service="smtp", hosts=""):
    every = "".join(HOST.format(address=address, port=port, service=service) for address in addresses)
    return PLAIN.format(prolog=prolog, hosts=every + hosts)


@pytest.fixture
def folder(tmp_path):
    """folder({name: text or bytes}) -> a folder with these files, to process."""
    path = tmp_path / "folder"

    def fill(files):
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return path
    return fill


def test_R1_entities(audit, fake, folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("swordfish")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/x"
        bomb = '<!DOCTYPE nmaprun [<!ENTITY a "ha">' + "".join(
            f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 20}">' for n in range(12)) + "]>\n"
        blow = f'<!DOCTYPE nmaprun [<!ENTITY m "{"A" * 100_000}">]>\n'
        files = {
            "bomb.xml": document("10.0.0.1", prolog=bomb, service="&m;"),
            "blow.xml": document("10.0.0.2", prolog=blow, service="&m;" * 20_000),
            "file.xml": document("10.0.0.3", prolog=f'<!DOCTYPE nmaprun [<!ENTITY x SYSTEM "file://{secret}">]>',
                                 hosts="<x>&x;</x>"),
            "http.xml": document("10.0.0.4", prolog=f'<!DOCTYPE nmaprun [<!ENTITY x SYSTEM "{url}">]>',
                                 hosts="<x>&x;</x>"),
            "parameter.xml": document("10.0.0.5", prolog=f'<!DOCTYPE nmaprun [<!ENTITY % x SYSTEM "{url}"> %x;]>'),
            "dtd.xml": document("10.0.0.6", prolog=f'<!DOCTYPE nmaprun SYSTEM "{url}">'),
            "public.xml": document("10.0.0.7", prolog=f'<!DOCTYPE nmaprun PUBLIC "x" "{url}">'),
            "plain.xml": document("10.0.0.8")}
        path = folder(files)
        audit.config()
        result, peak = audit.measured("--process-only", "--dir-name", path, timeout=20)
        assert result.status in (0, 2) and peak < 200, f"{peak} MB"
        for name in ("bomb.xml", "blow.xml", "file.xml", "http.xml", "parameter.xml"):
            assert name in result.out + result.err, name
        assert "swordfish" not in result.out and "10.0.0.8" in result.out
        for name in files:
            if name != "plain.xml":
                fake("nmap", f'#!/bin/sh\ncase " $* " in *" -sL "*) cat {tmp_path}/list;; '
                             f'*) cat {path}/{name};; esac\n')
                address = re.search(r"10\.0\.0\.\d", files[name])[0]
                (tmp_path / "list").write_text(document(address).replace('state="up"', 'state="unknown"'))
                audit.config(ips=[address])
                result = audit()
                refused = name not in ("dtd.xml", "public.xml")
                outcome = audit.outcomes[address]
                assert outcome == "cut off" and result.status == 2 or not refused and outcome == "audited", name
        with pytest.raises(BlockingIOError):
            server.accept()


def test_R2_cut_everywhere(audit, fake, real_nmap):
    whole = subprocess.run(["nmap", "-n", "-F", "-sV", "--version-light", "-oX", "-", "--", "127.0.0.1"],
                           stdout=subprocess.PIPE, timeout=60).stdout
    end = whole.index(b"</nmaprun>") + len(b"</nmaprun>")
    outcome = {}
    for size in [*range(0, end, 100), end - 1, end - 5, end - len(b"</nmaprun>"), end - 12, end]:
        read = nmap_audit.read_xml(io.BytesIO(whole[:size]))
        hosts = nmap_audit.judge(read, "x", "127.0.0.1")
        outcome[size] = {host.outcome for host in hosts}
        assert size == end or read.problem, size
    assert outcome.pop(end) == {"audited"}
    assert set.union(*outcome.values()) == {"cut off"}
    assert outcome[max(size for size in outcome if size < end)] == {"cut off"}, "what is whole is used"
    every = {f"10.0.0.{n}": {"ports": [[25, "tcp", "open", "smtp"], [26], [27]], "fault": {"cut": 100 * n}}
             for n in range(1, 31)}
    fake("nmap", scanned="1-60", hosts=every)
    audit.config(ips=["10.0.0.1-30"])
    result = audit()
    cut = [address for address, outcome in audit.outcomes.items() if outcome == "cut off"]
    assert len(cut) >= 12 and set(audit.outcomes.values()) <= {"cut off", "audited"}
    assert result.status == 2 and first(result)[:2] == (30 - len(cut), 30)
    for address in cut:
        assert re.search(rf"^{address}\b", result.out.split("Not audited")[-1] if len(cut) == 1 else result.out, re.M)
    assert any(re.search(rf"^{address} +25 +tcp +open", under(result.out, "First look"), re.M) for address in cut)


def test_R3_odd_bytes(audit, folder):
    text = document("10.0.0.1", service="x")
    crlf, sixteen = text.replace("\n", "\r\n"), text.replace('version="1.0"', 'version="1.0" encoding="UTF-16"')
    files = {
        "raw-control.xml": document("10.0.0.1", service="a\x1b[2Jb"), "nul.xml": document("10.0.0.2", service="a\0b"),
        "reference.xml": document("10.0.0.3", service="a&#x1b;&#0;&#7;b"),
        "latin1.xml": document("10.0.0.4", service="caf\xe9").encode("latin-1"),
        "utf16.xml": sixteen.replace("10.0.0.1", "10.0.0.5").encode("utf-16"),
        "bom.xml": b"\xef\xbb\xbf" + text.replace("10.0.0.1", "10.0.0.6").encode(),
        "crlf.xml": crlf.replace("10.0.0.1", "10.0.0.7"),
        "bad-utf8.xml": document("10.0.0.8", service="\xe9").replace("1.0\"?", '1.0" encoding="UTF-8"?').encode(
            "latin-1"),
        "unknown.xml": text.replace('version="1.0"', 'version="1.0" encoding="klingon"').replace(
            "10.0.0.1", "10.0.0.9"),
        "surrogate.xml": document("10.0.0.10", service="&#xd800;"),
        "comment-first.xml": "<!-- x -->\n" + text.replace("10.0.0.1", "10.0.0.11"),
        "utf32.xml": text.replace("10.0.0.1", "10.0.0.12").encode("utf-32"), "nothing.xml": b"",
        "zeros.xml": bytes(9999)}
    path = folder(files)
    audit.config()
    result = audit("--process-only", "--dir-name", path)
    assert result.status in (0, 2)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", result.out + result.err)
    for number in (3, 4, 5, 6, 7):
        assert re.search(rf"^10\.0\.0\.{number} +25 ", under(result.out, "First look"), re.M), (number, result.out)
    for name, data in files.items():
        address = re.search(rb"10\.0\.0\.\d+", data.encode() if isinstance(data, str) else data.replace(b"\0", b""))
        named = name in result.out + result.err
        assert named or address and re.search(rf"\b{re.escape(address[0].decode())}\b", result.out), name


def test_R4_many_hosts_many_files(audit, folder):
    masscan = PLAIN.format(prolog='<?xml version="1.0"?>\n', hosts="".join(
        f'<host endtime="1700000005"><address addr="10.9.0.1" addrtype="ipv4"/><ports><port protocol="tcp" '
        f'portid="{port}"><state state="open" reason="syn-ack"/></port></ports></host>\n' for port in (21, 22, 80)))
    masscan = re.sub(r"<scaninfo[^\n]*\n", "", masscan).replace('scanner="nmap"', 'scanner="masscan"')
    thousand = [f"10.{n // 250}.1.{n % 250}" for n in range(1000)]
    path = folder({"masscan.xml": masscan, "thousand.xml": document(*thousand), "one.xml": document("10.8.0.1"),
                   "two.xml": document("10.8.0.1", port=26)})
    audit.config()
    result = audit("--process-only", "--dir-name", path, "--no-human")
    assert result.status == 0
    rows = table(result.out)
    ports = {}
    for row in rows:
        ports.setdefault(row["IP"], []).append(row["Port"])
    assert ports["10.9.0.1"] == ["21", "22", "80"] and ports["10.8.0.1"] == ["25", "26"]
    assert len(ports) == 1002 and all(ports[address] == ["25"] for address in thousand)
    result = audit("--process-only", "--dir-name", path)
    assert first(result)[:2] == (1002, 1002)


@needs_root
def test_R5_other_files(audit, folder):
    path = folder({"notes.txt": "read me", "picture.png": b"\x89PNG\0\0", "scan": document("10.0.0.1"),
                   "result.XML": document("10.0.0.2"), "closed.xml": document("10.0.0.3"), ".hidden": b"x",
                   "ant.xml": "<project/>", "closed.txt": "secret"})
    for name in ("closed.xml", "closed.txt"):
        (path / name).chmod(0)
    (path / "sub").mkdir()
    (path / "sub" / "deep.xml").write_text(document("10.0.0.4"))
    (path / "dir.xml").mkdir()
    os.mkfifo(path / "pipe.xml")
    (path / "dangling.xml").symlink_to("/nowhere")
    (path / "loop.xml").symlink_to("loop.xml")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path / "socket.xml"))
        audit.config()
        result = audit("--process-only", "--dir-name", path, prefix=limited(), timeout=10)
    assert result.status in (0, 2)
    assert "closed.xml" in result.out + result.err and "Permission denied" in result.out + result.err
    assert first(result)[0] == 2 and "10.0.0.1" in result.out and "10.0.0.2" in result.out
    for name in ("notes.txt", "picture.png", "pipe.xml", "socket.xml", "deep.xml", "10.0.0.4"):
        assert name not in result.out + result.err, name


def addressed(data):
    """Whether a well-formed document holds a scanned host that has an address."""
    return any(each.get("addr") for host in ET.fromstring(data).iter("host") for each in host.findall("address")
               if each.get("addrtype") != "mac" and (host.find("status") is None or host.find("status").get("state")))


def test_R6_the_corpus(audit, corpus):
    lines = (corpus / "INDEX.tsv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    expanded = []
    for row in rows:
        data = (corpus / row["file"]).read_bytes()
        read = nmap_audit.read_xml(io.BytesIO(data))
        hosts = nmap_audit.judge(read, row["file"])
        if row["well_formed"] == "yes" and not re.search(rb"<!ENTITY|<!DOCTYPE nmaprun [PS]", data):
            assert not read.problem.startswith("not whole: ") or b"<finished" not in data, (row["file"], read.problem)
            assert hosts or not addressed(data), row["file"]
        expanded += [row["file"]] * ("root:x" in str(hosts) or "/bin/bash" in str(hosts))
    assert expanded == []
    audit.config()
    untold = []
    for name in sorted({row["file"].rsplit("/", 1)[0] for row in rows if row["file"].startswith("files-bad/")}):
        path = corpus / name
        result = audit("--process-only", "--dir-name", path, timeout=30)
        assert result.status in (0, 2, 65), name
        untold += [str(file.relative_to(corpus)) for file in path.iterdir()
                   if file.name not in result.out + result.err]
    assert untold == []


def test_R6_the_corpus_folder_by_folder(audit, corpus):
    audit.config()
    folders = sorted({path.parent for path in (corpus / "files").rglob("*") if path.is_file()})
    script = "import sys, nmap_audit\nfor path in sys.argv[2:]:\n" \
        "    status = nmap_audit.main(['--config', sys.argv[1], '--process-only', '--dir-name', path])\n" \
        "    print('STATUS', status, path)\n"
    done = subprocess.run([sys.executable, "-c", script, audit.rc, *folders], capture_output=True, cwd=HERE.parent,
                          timeout=120, text=True, errors="replace")
    assert done.returncode == 0, done.stderr
    statuses = re.findall(r"^STATUS (\d+) (.*)$", done.stdout, re.M)
    assert len(statuses) == len(folders)
    assert [pair for pair in statuses if pair[0] not in ("0", "2", "65")] == []
    assert "Traceback" not in done.stdout + done.stderr


def test_R7_huge(audit, fake, folder):
    fake("nmap", hosts={"10.0.0.1": {"ports": [["1-65535", "tcp", "open", "x"]]}}, scanned="1-65535")
    post = fake("sendmail")
    audit.config(mail=True)
    result, peak = audit.measured(timeout=45)
    assert result.status == 0 and peak < 500, f"{peak} MB"
    mail = post.mails[0]
    assert len(table(next(mail.iter_attachments()).get_content())) == 65535
    text = body(mail)
    assert text.startswith("1 of 1 hosts audited, 65535 findings")
    assert len(re.findall(r"^10\.0\.0\.1 +\d+ +tcp", text, re.M)) == 20_000 and "45535" in text
    audit.config()
    result, peak = audit.measured("--process-only", timeout=45)
    assert result.status == 0 and peak < 500, f"{peak} MB"
    assert len(re.findall(r"^10\.0\.0\.1 +\d+ +tcp", result.out, re.M)) == 20_000 and "45535" in result.out

    path = folder({"long.xml": document("10.0.0.2", service="A" * 20_000_000)})
    result, peak = audit.measured("--process-only", "--dir-name", path, timeout=20)
    assert result.status in (0, 2) and peak < 500, f"{peak} MB"
    assert "10.0.0.2" in result.out and len(result.out) < 10_000


def test_R7_twenty_megabytes_from_nmap(audit, fake):
    fake("nmap", hosts={"10.0.0.1": {**OPEN, "raw": f'<script id="x" output="{"A" * 20_000_000}"/>'}})
    audit.config()
    result, peak = audit.measured(timeout=40)
    assert result.status in (0, 2) and peak < 500, f"{peak} MB"
    assert audit.outcomes["10.0.0.1"] in ("audited", "cut off")


def test_R8_another_hosts_or_an_older_file(audit, fake):
    wrong = {"10.0.0.2": {**OPEN, "fault": {"wrong": "10.0.0.9"}}}
    fake("nmap", hosts=world("10.0.0.1", "10.0.0.3", "10.0.0.4", **wrong))
    audit.config(ips=["10.0.0.1-4"])
    result = audit()
    assert result.status == 2 and first(result)[:2] == (3, 4)
    assert audit.outcomes["10.0.0.2"] in ("cut off", "failed") and "10.0.0.9" not in audit.outcomes
    older = audit.runs[-1]
    time.sleep(1.1)
    fake("nmap", hosts=world("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"))
    assert audit().status == 0
    newest = audit.runs[-1]
    shutil.copy(older / "10.0.0.1.xml", newest / "10.0.0.1.xml")        # older
    shutil.copy(newest / "10.0.0.4.xml", newest / "10.0.0.3.xml")       # of another host
    result = audit("--process-only")
    assert result.status == 2 and first(result)[:2] == (2, 4), result.out
    for address in ("10.0.0.1", "10.0.0.3"):
        assert re.search(rf"^{address}\b", result.out.split("Not audited", 1)[1], re.M)


# ---- The rc file -------------------------------------------------------------------------------

def test_C1_no_text(audit, run, rc, tmp_path):
    (tmp_path / "closed.rc").write_text("IPS 10.0.0.1\n")
    (tmp_path / "closed.rc").chmod(0)
    for path, status in ((tmp_path / "missing.rc", 66), (tmp_path, 66), (rc("", "empty.rc"), 78),
                         (rc(bytes(range(256)) * 40, "binary.rc"), 78), (rc(os.urandom(5000), "random.rc"), 78),
                         (rc("IPS " + "1" * 10_000_000, "long.rc"), 78), (rc("x" * 7_000_000, "word.rc"), 78),
                         (rc("# comment\n\n", "comments.rc"), 78), (rc("\ufeff", "bom.rc"), 78)):
        began = time.monotonic()
        result = run("--config", path)
        tidy(result)
        assert result.status == status and result.out == "", (path, result)
        assert said(result) and str(path) in result.err and len(result.err) < 20_000, path
        assert time.monotonic() - began < 5, path
    if os.geteuid() == 0:
        result = run("--config", tmp_path / "closed.rc", prefix=limited())
        tidy(result)
        assert result.status == 66 and "Permission denied" in result.err and "closed.rc" in result.err


MISTAKES = """\
EMIAL-TO root@example.net           #1:1 unknown word
IPS 10.0.0.300                      #2:5 300
IPS                                 #3:1 cannot be IPS
MAX-THREADS many                    #4:13 whole number
MAX-THREADS 0                       #5:13 whole number
DETAIL lots                         #6:8 none, low, med, high
QUIET perhaps                       #7:7 one of
EMAIL-TO not an address at all      #8:10 address
NMAP nmap -oX x                     #9:6 -oX
NMAP nmap 'x                        #10:6 quot
TELL sometimes                      #11:6 one of
MAX-THREADS -1                      #12:13 whole number
ignore 25 tcp open smtp             #13:1 group
= x                                 #14:1 word
SMTP-SERVER a b                     #15:13 HOST
SMTP-TLS maybe                      #16:10 one of
end group nothing                   #17:1 'end group' inside
group mixed                         #
    ip 10.0.0.1                     #
    hostname web                    #20:5 one class
    ignore 25 tcp open smtp         #
end group mixed                     #
group wrong fields                  #
    ip 10.0.0.999                   #24:8 999
    ip                              #25:5 ip
    ignore 25 tcp open              #26:12 one service
    ignore 25 26 open smtp          #27:12 protocol
    ignore 25 tcp udp smtp          #28:12 state
    ignore 70000 tcp open x         #29:12 65536
    ignore 9-5 tcp open x           #30:12 impossible port
    ignore 25 tcp open a b          #31:12 four
    ignore 25-30-40 tcp open x      #32:12 impossible port
    ignore 25 tcp open              #33:12 one service
    ip 10.0.0.9-10.0.0.1            #34:8 range
    ip fe80::/200                   #35:8 fe80
    IPS 10.0.0.1                    #36:5 misplaced word
    ingore 25 tcp open smtp         #37:5 ignore
    expect                          #38:5 PORT PROTOCOL STATE SERVICE
end group wrong                     #39:1 wrong fields
group Twice                         #
    os Linux                        #
    ignore 1 tcp open x             #
end group                           #
group twice                         #44:1 40
    os Linux                        #
    ignore 1 tcp open x             #
end group twice                     #
group nobody                        #48:1 hosts
    ignore 1 tcp open x             #
end group nobody                    #
group no rule                       #51:1 rule
    ip 10.0.0.1                     #
end group no rule                   #
group                               #54:1 name
    ip 10.0.0.1                     #
    ignore 1 tcp open x             #
end group                           #
group open                          #58:1 end group open
    ip 10.0.0.1                     #
    ignore 1 tcp open x             #
group last                          #61:1 end group last
    ip 10.0.0.1                     #
    ignore 1 tcp open x             #
"""


def test_C2_every_mistake(run, rc):
    wanted = re.findall(r"#(\d+):(\d+) (.*)$", MISTAKES, re.M)
    path = rc(re.sub(r" *#.*$", "", MISTAKES, flags=re.M))
    result = run("--config", path)
    tidy(result)
    assert result.status == 78 and result.out == ""
    found = {}
    for line in said(result):
        match = re.fullmatch(rf"nmap-audit: {re.escape(str(path))}:(\d+):(\d+): (.*)", line)
        assert match, line
        found.setdefault(match[1], []).append(match.groups())
    problems = [("what to do?", *one) for several in found.values() for one in several if ";" not in one[2]]
    for line, column, word in wanted:
        fitting = [one for one in found.get(line, ()) if one[1] == column and word.lower() in one[2].lower()]
        problems += [] if fitting else [(line, column, word, found.get(line))]
    assert problems == []
    assert set(found) == {line for line, _, _ in wanted}, "a mistake where there is none"


@needs_root
def test_C3_open_to_others(audit, fake, tmp_path):
    fake("nmap", hosts=world("10.0.0.1"))
    secret = tmp_path / "password"
    secret.write_text("x\n")
    secret.chmod(0o600)
    audit.config(f"SMTP-PASSWORD-FILE {secret}", "SMTP-USER x", "SMTP-SERVER localhost")
    audit.rc.chmod(0o600)
    assert said(audit()) == []
    for mode in (0o602, 0o620):
        audit.rc.chmod(mode)
        result = audit()
        assert result.status == 0 and len(said(result)) == 1 and str(audit.rc) in result.err, oct(mode)
        assert "writ" in result.err
    audit.rc.chmod(0o600)
    for mode in (0o604, 0o640):
        secret.chmod(mode)
        result = audit()
        assert result.status == 0 and len(said(result)) == 1 and str(secret) in result.err, oct(mode)
    audit.rc.chmod(0o600)
    secret.chmod(0o600)
    os.chown(audit.rc, NOBODY, 0)
    result = audit()
    assert result.status == 0 and len(said(result)) == 1, "another user's rc file can be written by that user"


SAMPLE = """IPS 192.0.2.0/24, web.example.net
EMAIL-TO "root@example.net"  # who
NMAP nmap -sS -p1-65535 "--script" default
group mail servers
    ip 192.0.2.25
    ip 192.0.2.32/28
    ignore 25 tcp open smtp
    expect 993/tcp open imaps
end group mail servers
group windows
    os Windows*
    ignore 13* * open|filtered *
end group
"""
pieces = st.sampled_from([*SAMPLE.split(" "), "\n", "group x\n", "end\n", '"', "#", "=", ":", "*", "\0", "\ufeff",
                          "\r"])
mutated = st.lists(st.tuples(st.integers(0, len(SAMPLE)), st.integers(0, 12), st.text(max_size=4) | pieces),
                   min_size=1, max_size=8)


def mutate(changes):
    text = SAMPLE
    for at, size, new in changes:
        text = text[:at] + new + text[at + size:]
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.binary(max_size=300) | mutated.map(mutate) | st.lists(pieces, max_size=40).map(
    lambda words: " ".join(words).encode()))
def test_C4_random_files(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "random.rc"
    path.write_bytes(data)
    try:
        text = nmap_audit.read_rc(str(path))
        config = nmap_audit.read_config(nmap_audit.parse_rc(text, str(path)), [], text)
    except nmap_audit.AuditError as error:
        assert error.status == 78
        for line in str(error).splitlines():
            assert re.match(rf"{re.escape(str(path))}:\d+:\d+: .", line), line
            assert "\x1b" not in line and "\0" not in line
    else:
        assert isinstance(config, nmap_audit.Config)


# ---- Surroundings ------------------------------------------------------------------------------

def test_E1_cron(audit, fake, real_nmap, tmp_path):
    cron = {"PATH": "/usr/bin:/bin", "LANG": "C", "SHELL": "/bin/sh"}
    audit.config("group b\u00fcro", "hostname m\u00fcller*", "ignore 7 tcp open caf\u00e9", "end group b\u00fcro",
                 ips=["127.0.0.1"])
    result = audit(clean=True, env=cron, cwd="/")
    assert result.status == 0 and first(result)[:2] == (1, 1)
    strange = {"names": ["m\u00fcller.example.net"], "os": [["B\u00fcro-OS \u2603", 99, "\u00e9", "x"]],
               "ports": [[7, "tcp", "open", "smtp", "caf\u00e9 \U0001f600 \udcff"]]}
    faked = fake("nmap", hosts={"10.0.0.1": strange})
    post = fake("sendmail")
    audit.config(f"NMAP {faked.program}", f"SENDMAIL {post.program}", "EMAIL-SUBJECT B\u00fcro", "DETAIL high",
                 mail=True)
    result = audit(clean=True, cwd="/", env={**cron, "NMAP_FAKE": faked.path, "SENDMAIL_FAKE": post.path})
    assert result.status == 0 and result.out == ""
    assert "1 of 1 hosts audited, 1 findings" in body(post.mails[0])
    audit.config(f"NMAP {faked.program}")
    for locale in ("C", "POSIX", "xx_YY.nonsense"):
        result = audit("--process-only", clean=True, cwd="/", env={**cron, "LANG": locale, "PYTHONUTF8": "0",
                                                                   "PYTHONCOERCECLOCALE": "0"})
        assert result.status == 0 and first(result)[:2] == (1, 1)


BROKEN = {"closed": 'exec "$@" >&-', "full": 'exec "$@" >/dev/full', "all closed": 'exec "$@" <&- >&- 2>&-',
          "all full": 'exec "$@" >/dev/full 2>/dev/full', "errors closed": 'exec "$@" 2>&-'}


@pytest.mark.parametrize("how", [*BROKEN, "pipe"])
def test_E2_no_standard_output(audit, fake, run, how):
    if how == "pipe" and not shutil.which("bash"):
        pytest.skip("bash is not installed")
    prefix = through_sh(BROKEN[how]) if how in BROKEN else (
        "bash", "-c", '"$@" | true; exit ${PIPESTATUS[0]}', "bash")
    fake("nmap", hosts=world("10.0.0.1"))
    post = fake("sendmail")
    audit.config(mail=True)
    result = audit(prefix=prefix)
    assert result.status == 0 and len(post.mails) == 1
    assert body(post.mails[0]).startswith("1 of 1 hosts audited")
    fake("nmap", hosts={"10.0.0.1": {"ports": [[25, "tcp", "open", "smtp"], [26, "tcp", "open"]]}})
    audit.config()
    result = audit(prefix=prefix)
    assert result.status == (0 if how == "errors closed" else 74)
    if how != "errors closed":
        assert audit.record["told"] is False
        assert len(said(result)) == (0 if how.startswith("all") else 1)
        assert " 26 " in under(audit().out, "First look|New"), "the next run tells it"
    if how != "pipe":
        result = run("--help", prefix=prefix)
        tidy(result)
        assert result.status == (0 if how == "errors closed" else 74)


FAST = r"""#!/bin/sh
# 10.1.0-15.1-250 listed at once; every host that is asked for is up with port 25 open
six=; listing=
while [ $# -gt 0 ] && [ "$1" != -- ]
do
    case $1 in -sL) listing=1;; esac
    shift
done
shift
printf '<?xml version="1.0"?>\n<!DOCTYPE nmaprun>\n<nmaprun scanner="nmap" args="nmap" start="1700000000">\n'
up=0
if [ "$listing" ]
then
    a=0
    while [ $a -lt 16 ]
    do
        b=1
        while [ $b -le 250 ]
        do
            printf '<host><status state="unknown"/><address addr="10.1.%d.%d" addrtype="ipv4"/></host>\n' $a $b
            b=$((b + 1))
        done
        a=$((a + 1))
    done
else
    printf '<scaninfo type="syn" protocol="tcp" numservices="1" services="25"/>\n'
    for address
    do
        printf '<host><status state="up"/><address addr="%s" addrtype="ipv4"/><ports>' "$address"
        printf '<port protocol="tcp" portid="25"><state state="open"/><service name="smtp"/></port></ports></host>\n'
        up=$((up + 1))
    done
fi
printf '<runstats><finished exit="success"/><hosts up="%d" down="0" total="%d"/></runstats></nmaprun>\n' $up $up
"""


def test_E3_few_descriptors(audit, fake):
    fake("nmap", FAST)
    audit.config("QUIET", "MAX-THREADS 200", ips=["10.1.0-15.1-250"])
    began = time.monotonic()
    result = audit(prefix=through_sh('ulimit -n 64; exec "$@"'), timeout=150)
    assert result.status == 0 and first(result)[:3] == (4000, 4000, 4000)
    assert said(result) == []
    assert time.monotonic() - began < 60


def test_E4_relative_names(audit, fake, run, tmp_path):
    fake("nmap", hosts=world("10.0.0.1"))
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "my.rc").write_text("IPS 10.0.0.1\nDIR-NAME state/deep\n")
    for _ in range(2):
        result = run("--config", "my.rc", cwd=tmp_path / "here")
        tidy(result)
        assert result.status == 0 and first(result)[:2] == (1, 1)
    assert len(list((tmp_path / "here" / "state" / "deep").glob("2*/10.0.0.1.xml"))) == 2
    assert "Standing" in result.out
    result = run("--config", "my.rc", "--process-only", cwd=tmp_path / "here")
    assert result.status == 0 and first(result)[:2] == (1, 1)
    post = fake("sendmail")
    (tmp_path / "here" / "post").symlink_to(post.program)
    for number, program in enumerate(("./post", "sendmail"), 1):
        (tmp_path / "here" / "my.rc").write_text(f"IPS 10.0.0.1\nSENDMAIL {program}\nEMAIL-TO root\nTELL always\n")
        assert run("--config", "my.rc", "--dir-name", "new", cwd=tmp_path / "here").status == 0
        assert len(post.mails) == number


def asked(run, path, **more):
    """What --test-config says of an rc file, on standard error; it ends with 0 whatever that is."""
    result = run("--config", path, "--test-config", **more)
    assert result.status == 0 and all(": warning: " in line for line in result.err.splitlines()), result
    return result.err


def test_S10_an_nmap_that_needs_root_is_told_beforehand(run, rc, fake):
    fake("nmap", text="#!/bin/sh\necho 'You requested a scan type which requires root privileges.' >&2\n"
                      "echo 'QUITTING!' >&2\nexit 1\n")
    path = rc("IPS 127.0.0.1\nNMAP nmap -sS\n")
    assert f"{path}:2:6: warning: " in asked(run, path) and "requires root privileges" in asked(run, path)


def test_E4_relative_paths_are_told_beforehand(run, rc, tmp_path):
    path = rc("IPS 127.0.0.1\nDIR-NAME runs\n")
    assert f"{path}:2:1: warning: DIR-NAME is a relative path" in asked(run, path)
    assert "--config: warning: CONFIG is a relative path" in asked(run, path.name, cwd=tmp_path)
    assert "relative" not in asked(run, rc(f"IPS 127.0.0.1\nDIR-NAME {tmp_path}/runs\n"))


def test_S15_an_nmap_whose_losses_cannot_be_seen_is_told_beforehand(run, rc):
    path = rc("IPS 127.0.0.1\nNMAP nmap --open -F\n")
    assert f"{path}:2:6: warning: " in asked(run, path) and "--open" in asked(run, path)
