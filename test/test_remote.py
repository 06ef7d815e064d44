"""Scanners somewhere else: NMAP may be `ssh probe nmap`, or `srun -n1 nmap`.

A real sshd and a real Slurm, both on loopback with files and ports of their own, scan addresses of 127.0.0.0/8.
"""
import csv
import shutil
import signal

import pytest

import labtools
from labtools import loopback, running, wait_until
from nights import Stored

SLOW = "nmap -sT -n --max-rate 1 -p1-1000"      # a quarter of an hour


class Remote(Stored):
    """An audit of three addresses of loopback by a far nmap; the second has a port open."""

    def __init__(self, far, words, env, rc, run, start, folder):
        self.far, self.words, self.env = far, words, env
        self.rc, self.run, self.start, self.state = rc, run, start, folder / "state"
        self.addresses = [loopback(place) for place in (31, 32, 33)]

    def config(self, nmap, *lines, ips=None):
        return self.rc("\n".join([f"DIR-NAME {self.state}", f"IPS {ips or self.addresses[0] + '-33'}",
                                  f"NMAP {self.words} {nmap}", *lines]) + "\n")

    def audit(self, nmap, *lines, **more):
        result = self.run("--config", self.config(nmap, *lines, **more), env=self.env, timeout=40)
        assert "Traceback" not in result.err, result.err
        return result

    def begin(self, nmap, *lines, **more):
        """An audit whose nmap is at work, over there."""
        process = self.start("--config", self.config(nmap, *lines, **more), env=self.env)
        wait_until(lambda: running("--max-rate", self.addresses[0]), 20, "the far nmap")
        return process


def ssh(words):
    if problem := labtools.no_sshd():
        pytest.skip(problem)
    return labtools.Sshd(), lambda far: (f"ssh -F {far.config} probe {words}", {})


def slurm(words):
    if problem := labtools.no_slurm():
        pytest.skip(problem)
    return labtools.Slurm(), lambda far: (f"srun -n1 {words}", {"SLURM_CONF": far.config})


@pytest.fixture
def remote(request, rc, run, start, tmp_path):
    """A far machine by the kind and the words before nmap that the test is parametrized with."""
    if shutil.which("nmap") is None:
        pytest.skip("nmap is not installed")
    kind, words = request.param
    far, reach = kind(words)
    with far:
        yield Remote(far, *reach(far), rc, run, start, tmp_path)
    wait_until(lambda: not running(loopback(31)), 5, "no nmap is left")


def kinds(ssh_words="", slurm_words=""):
    return pytest.mark.parametrize("remote", [(ssh, ssh_words), (slurm, slurm_words)], indirect=True,
                                   ids=("ssh", "srun"))


# ---- What works --------------------------------------------------------------------------------

@kinds("env")
def test_a_far_nmap_lists_and_scans(remote, listen):
    listen(remote.addresses[1], 8080)
    result = remote.audit("nmap -sT -n -p8080,8081", "BATCH 2", "MAX-THREADS 2")
    assert result.status == 0, result
    assert remote.outcomes == dict.fromkeys(remote.addresses, "audited")
    assert (remote.last / "targets.xml").read_bytes().count(b"<host>") == 3
    rows = list(csv.DictReader((remote.last / "scan_report.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert [(row["IP"], row["Port"]) for row in rows] == [(remote.addresses[1], "8080")]
    assert [(remote.last / f"{address}.xml").exists() for address in remote.addresses] == [True] * 3


# ---- What ends ---------------------------------------------------------------------------------

# Without a terminal sshd tells nobody over there that ssh is gone: setpriv ends nmap with sshd's process.
@kinds("setpriv --pdeathsig TERM")
def test_a_signal_ends_the_far_nmap(remote):
    process = remote.begin(SLOW, "BATCH 3")
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert process.returncode in (-signal.SIGTERM, 143), err
    assert b"Traceback" not in err
    wait_until(lambda: not running(remote.addresses[0]), 5, "the far nmap is gone")
    assert (remote.record["status"], remote.outcomes) == ("interrupted", {})


@kinds("", "-I2")
def test_a_machine_that_is_lost_leaves_nothing_clean(remote):
    """srun may even end with status 0 then."""
    process = remote.begin(SLOW, "BATCH 1", ips=remote.addresses[0])
    remote.far.lose()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 2, err
    assert out.startswith(b"0 of 1 hosts audited")
    assert set(remote.outcomes.values()) <= {"failed", "cut off"} and list(remote.outcomes) == remote.addresses[:1]
    assert f"\n{remote.addresses[0]}".encode() in out
    assert b"Traceback" not in err
    again = remote.run("--config", remote.config(SLOW), "--process-only", "--dir-name", remote.last)
    assert again.status == 2 and again.out.startswith("0 of 1 hosts audited")


@kinds("", "-I1")
def test_a_machine_that_is_not_there_audits_nothing(remote):
    remote.far.lose()
    result = remote.audit("nmap -sT -n -p8080")
    assert result.status == 2, result
    assert result.out.startswith("0 of 1 hosts audited")
    assert "nmap could not list it" in result.out
    assert "Connection refused" in result.out or "Unable to allocate resources" in result.out
