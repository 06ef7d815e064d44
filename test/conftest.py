"""What the tests share: an rc file, the program as a process, fake programs, goldens, the lab.

    rc(text)            the text as an rc file in the test's folder
    run(*argv)          the program as a real process; Result(status, out, err)
    start(*argv)        the same, still running: a Popen that does not outlive the test
    fake(name, ...)     a fake of test/bin first on PATH; returns what tells of its calls
    inside(*argv)       the program in this process: no start of Python to pay
    nights              audits night after night with run, see nights.py
    no_real_nmap        the fake stands first on PATH; for whole files, by pytest.mark.usefixtures
    golden(name, text)  compares with test/data/NAME; --regold rewrites it and shows what changed
    corpus              the folder of real nmap XML, or the test is skipped
    listen, network, postfix    see labtools.py
"""
import difflib
import email
import email.policy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest

import labtools
import nmap_audit
from nights import Nights

HERE = Path(__file__).parent
ROOT = HERE.parent
PROGRAM = ROOT / "nmap_audit.py"
FOREIGN = ("XDG_", "LC_", "LANGUAGE", "MAILTO")     # taken out of the environment of every run
TIME = r"\d\d:\d\d(:\d\d(\.\d+)?)?"
DAY, MONTH = "(Mon|Tue|Wed|Thu|Fri|Sat|Sun)", "[JFMASOND][a-z]{2}"
VOLATILE = [(re.compile(pattern), text) for pattern, text in (
    (r"(?i)(message-id:\s*)<[^>]*>", r"\1<MESSAGE-ID>"),
    (rf"{DAY}, \d+ {MONTH} \d{{4}} {TIME} [+-]\d{{4}}", "MAIL-DATE"),
    (rf"{DAY} {MONTH} [ \d]\d {TIME} \d{{4}}", "NMAP-DATE"),
    (rf"\b\d{{4}}-\d\d-\d\d[T ]{TIME}( ?(Z|UTC|[+-]\d\d:?\d\d))?", "DATE-AND-TIME"),
    (r"\b\d{8}-\d{6}\b", "YYYYMMDD-HHMMSS"),
    (r"\b\d{4}-\d\d-\d\d\b", "YYYY-MM-DD"),
    (r"={15}\d+==", "BOUNDARY"),
    (r"\b\d+(\.\d+)?( s\b| seconds?\b)", r"N\2"),
    (r"(?i)\b(pid|process) \d+", r"\1 N"),
    (r"(?i)\b(nmap(?:-audit)?) \d+\.\d+(\.\d+)?\b", r"\1 VERSION"),
    (r"(?i)\bpython \d+\.\d+(\.\d+)?\b", "Python VERSION"))]


class Result(NamedTuple):
    """How a program ended: its status as a shell sees it (128+n for signal n), what it wrote."""
    status: int
    out: str
    err: str


# ---- Options and reports -----------------------------------------------------------------------

def pytest_addoption(parser):
    parser.addoption("--regold", action="store_true",
                     help="rewrite the golden files of test/data, showing what changes")
    parser.addoption("--whole", action="store_true",
                     help="a test that is skipped has failed, unless it is for the corpus")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    wanted = item.config.getoption("--whole") and report.skipped and not hasattr(report, "wasxfail")
    if wanted and "corpus" not in str(report.longrepr):
        report.outcome, report.longrepr = "failed", f"nothing may be left out: {report.longrepr[-1]}"
    return report


def pytest_terminal_summary(terminalreporter):
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                for text in (text for name, text in report.user_properties if name == "regold"):
                    terminalreporter.write_line(text)


# ---- The program -------------------------------------------------------------------------------

@pytest.fixture
def rc(tmp_path):
    """rc(text, name="nmap-audit.rc") -> Path. Bytes are written as they are."""
    def write(text, name="nmap-audit.rc"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else textwrap.dedent(text).encode())
        return path
    return write


@pytest.fixture
def start(tmp_path):
    """start(*argv) -> Popen, in a session of its own, without a terminal.

    env is added to the test's environment (None takes a name out), or with clean=True to nothing;
    prefix is a command that is to run the program, stdin a text or a file.
    """
    started = []

    def begin(*argv, env=None, cwd=None, stdin=None, clean=False, prefix=()):
        words = [*prefix, sys.executable, PROGRAM, *argv]
        process = subprocess.Popen(
            [os.fspath(word) for word in words], env=environment(tmp_path, env or {}, clean),
            cwd=cwd or tmp_path, stdin=stdin or subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True)
        started.append(process)
        return process
    yield begin
    for process in started:
        end(process)


@pytest.fixture
def run(start):
    """run(*argv, env=None, cwd=None, stdin=None, timeout=60, clean=False, prefix=()) -> Result"""
    def whole(*argv, timeout=60, stdin=None, **options):
        pipe = subprocess.PIPE if isinstance(stdin, (str, bytes)) else stdin
        process = start(*argv, stdin=pipe, **options)
        text = stdin.encode() if isinstance(stdin, str) else stdin if pipe != stdin else None
        try:
            out, err = process.communicate(text, timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, err = process.communicate()
            pytest.fail(f"no end within {timeout} s\n{out.decode(errors='replace')[-2000:]}\n"
                        f"{err.decode(errors='replace')[-2000:]}")
        return result(process.returncode, out, err)
    return whole


@pytest.fixture
def inside(capfd, monkeypatch):
    """inside(*argv, env=None) -> Result, as run does, but in this process, and waiting less for mail."""
    monkeypatch.setattr(nmap_audit, "SMTP_WAITS", (.01, .01, .01))
    monkeypatch.setattr(nmap_audit, "SMTP_SECONDS", 2)
    handlers, mask = {number: signal.getsignal(number) for number in nmap_audit.SIGNALS}, os.umask(0o022)

    def call(*argv, env=None):
        capfd.readouterr()
        with mock.patch.dict(os.environ, env or {}):
            status = nmap_audit.main(list(map(str, argv)))
        return Result(status, *capfd.readouterr())
    yield call
    os.umask(mask)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def environment(folder, changes, clean):
    """The test's, without what changes a run; or, clean, nothing but what measures coverage."""
    kept = {name: value for name, value in os.environ.items()
            if (name.startswith("COVERAGE_") if clean else not name.startswith(FOREIGN))}
    home = {} if clean else {"HOME": str(folder)}
    return {name: str(value) for name, value in {**kept, **home, **changes}.items()
            if value is not None}


def result(status, out, err):
    return Result(128 - status if status < 0 else status,
                  out.decode("utf-8", "surrogateescape"), err.decode("utf-8", "surrogateescape"))


def end(process):
    """No process of the session is left, and no pipe is open."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


# ---- Fake programs -----------------------------------------------------------------------------

@pytest.fixture
def fake(tmp_path, monkeypatch):
    """fake("nmap", hosts={...}), fake("sendmail", exit=75), fake("ssh", text="#!/bin/sh...").

    Only the fakes that a test asks for are there, in a folder that stands first on PATH. What may
    be said to nmap and sendmail stands in test/bin/nmap and test/bin/sendmail; asked for again,
    a fake behaves differently from then on.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def install(name, text=None, **world):
        write_program(folder / name, text or (HERE / "bin" / name).read_text())
        if text is not None:
            return folder / name
        made = FAKES[name](tmp_path / f"fake-{name}", folder / name)
        made.become(monkeypatch, world)
        return made
    return install


def write_program(path, text):
    """With this Python, where the system has none of its own."""
    if not os.path.exists("/usr/bin/python3"):
        text = text.replace("#!/usr/bin/python3", f"#!{sys.executable}", 1)
    path.write_text(text)
    path.chmod(0o755)


class Fake:
    """A fake program: its file, and what it was called with."""

    def __init__(self, path, program):
        self.path, self.program = Path(f"{path}{self.ending}"), program

    @property
    def calls(self):
        """The log: one mapping a call, in the order in which they began."""
        try:
            lines = Path(f"{self.path}.log").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def forget(self):
        """As if it had never been called; what happens once happens again."""
        for path in self.path.parent.glob(self.path.name + ".*"):
            path.unlink()


class FakeNmap(Fake):
    ending = ".json"

    def become(self, monkeypatch, world):
        self.path.write_text(json.dumps(world))
        monkeypatch.setenv("NMAP_FAKE", str(self.path))

    @property
    def scans(self):
        """The words of every call that scanned."""
        return [call["argv"] for call in self.calls if "--" in call["argv"]
                and "-sL" not in call["argv"]]

    @property
    def lists(self):
        """The words of every call that only listed its targets."""
        return [call["argv"] for call in self.calls if "-sL" in call["argv"]]

    @property
    def scanned(self):
        """Every address that a scan was asked for, as often as it was."""
        return [word for argv in self.scans for word in argv[argv.index("--") + 1:]]


class FakeSendmail(Fake):
    ending = ".mails"

    def become(self, monkeypatch, world):
        for name in list(os.environ):
            if name.startswith("SENDMAIL_FAKE_"):
                monkeypatch.delenv(name)
        for name, value in world.items():
            monkeypatch.setenv(f"SENDMAIL_FAKE_{name.upper()}", str(int(value)))
        monkeypatch.setenv("SENDMAIL_FAKE", str(self.path))

    @property
    def raw(self):
        """The bytes of every mail it kept."""
        data = self.path.read_bytes() if self.path.exists() else b""
        return [data[call["start"]:call["start"] + call["size"]] for call in self.calls
                if call["start"] is not None]

    @property
    def mails(self):
        return [email.message_from_bytes(mail, policy=email.policy.default) for mail in self.raw]

    def forget(self):
        super().forget()
        self.path.unlink(missing_ok=True)


FAKES = {"nmap": FakeNmap, "sendmail": FakeSendmail}


@pytest.fixture
def no_real_nmap(fake):
    """Whatever a test gets wrong, nothing real is scanned."""
    fake("nmap", hosts={})


@pytest.fixture
def nights(run, rc, fake, tmp_path):
    return Nights(run, rc, fake, tmp_path)


# ---- Goldens and the corpus --------------------------------------------------------------------

@pytest.fixture
def golden(request, tmp_path):
    """golden(name, text, keep=()): the text, masked, is what test/data/NAME holds."""
    def compare(name, text, keep=()):
        path, new = HERE / "data" / name, mask(text, tmp_path, keep)
        old = path.read_bytes().decode() if path.exists() else ""
        difference = "\n".join(difflib.unified_diff(
            old.splitlines(), new.splitlines(), f"test/data/{name}", "now", lineterm=""))
        if request.config.getoption("--regold") and (old != new or not path.exists()):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(new.encode())
            request.node.user_properties.append(
                ("regold", difference or f"test/data/{name}: line ends or an empty file"))
        elif old != new:
            pytest.fail(f"{difference or 'the line ends differ'}\n(--regold rewrites it)", False)
    return compare


def mask(text, folder, keep=()):
    """Without what differs from run to run: folders, dates, run ids, seconds, versions, this host.

    A masked text is as wide as before where tables hold it. What is in keep is left as it is.
    """
    for path, name in ((folder, "/TMP"), (ROOT, "/ROOT")):
        text = text.replace(str(path), name)
    for name in {socket.getfqdn(), socket.gethostname()} - {"localhost"}:
        text = re.sub(rf"(?<![\w.-]){re.escape(name)}(?![\w-])", "THIS-HOST", text)
    for pattern, new in VOLATILE:
        text = pattern.sub(lambda found: found[0] if found[0] in keep else found.expand(new), text)
    return text


@pytest.fixture(scope="session")
def corpus():
    """The folder of real nmap XML: NMAP_AUDIT_CORPUS, or ../shared/corpus beside the clone."""
    folder = Path(os.environ.get("NMAP_AUDIT_CORPUS") or ROOT.parent / "shared" / "corpus")
    if not (folder / "INDEX.tsv").exists():
        pytest.skip(f"no corpus of real nmap XML in {folder} (NMAP_AUDIT_CORPUS says where)")
    return folder


# ---- The lab -----------------------------------------------------------------------------------

@pytest.fixture
def listen():
    """listen(address, port, protocol="tcp", banner=b"") -> Listener; closed after the test."""
    with labtools.Listeners() as listeners:
        yield listeners.add


@pytest.fixture
def network():
    """network(*hosts) -> Network of namespaces, taken down after the test."""
    need(labtools.no_network())
    made = []

    def make(*hosts):
        made.append(labtools.Network(*hosts))
        return made[-1]
    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="session")
def postfix():
    """A real Postfix of its own that delivers to a folder; one for each worker process."""
    need(labtools.no_postfix())
    with labtools.Postfix() as server:
        yield server


@pytest.fixture(scope="session")
def real_nmap():
    """The path of the real nmap."""
    path = shutil.which("nmap")
    need("" if path else "nmap is not installed")
    return path


def need(problem):
    if problem:
        pytest.skip(problem)


def pytest_collection_modifyitems(items):
    """One Postfix at a time: what needs it runs in one worker."""
    for item in items:
        if "postfix" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("postfix"))
