"""The audit refused, or killed at, each of its steps, one after another: `python test/sweep.py`, needs strace.

A small audit with a history, in which a port is new and another is gone, is run once for every write, fsync, rename,
mkdir, unlink and every new file of DIR-NAME by the program, which fails there (ENOSPC) or is killed there.
Then the next normal run is made. Each time it must hold that

  told      the news was told by this run, or this run did not end with 0
  not lost  what this run did not tell, the next one tells
  whole     run.json and the results parse, history is old or new, nobody saw a traceback, the next run ends with 0

Last, the real nmap loses each of its writes: the host is not audited, or its open port is told.
"""
import argparse
import collections
import concurrent.futures
import email
import email.policy
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

PROGRAM = Path(__file__).resolve().parent.parent / "nmap_audit.py"
SYSCALLS = ("write", "fsync", "rename", "mkdir", "unlink", "openat")
ACTIONS = {"ENOSPC": "error=ENOSPC", "KILL": "signal=KILL"}
SECONDS = 30                            # no run takes longer

NMAP = """#!/bin/sh
case " $* " in *" -sL "*) cat {world}/list; exit;; esac
while [ "$1" != -- ]; do shift; done
shift
for address; do cat "{world}/$address"; done > {world}/hosts.$$
sed -e "s/START/$(date +%s)/; s/UP/$#/" -e "/^HOSTS/{{r {world}/hosts.$$" -e "d;}}" {world}/scan
rm {world}/hosts.$$
"""
SENDMAIL = """#!/bin/sh
part=$(mktemp "$MAILS/part.XXXXXX") && cat > "$part" && mv "$part" "$MAILS/mail.${part##*.}"
"""
DOCUMENT = """<?xml version="1.0"?>
<!DOCTYPE nmaprun>
<nmaprun scanner="nmap" args="nmap -F" start="START" version="7.93">
<scaninfo type="syn" protocol="tcp" numservices="100" services="1-99,4444"/>
HOSTS
<runstats><finished time="START" exit="success"/><hosts up="UP" down="0" total="UP"/></runstats>
</nmaprun>
"""
PORT = '<port protocol="tcp" portid="{}"><state state="open" reason="syn-ack"/></port>'
LOSSY = """#!/bin/sh
case " $* " in *" -sL "*) exec {nmap} "$@";; esac
pipe=$(mktemp -u {folder}/pipe.XXXXXX) && mkfifo "$pipe" || exit 99
cat "$pipe" &
strace -qq -o {folder}/nmap.$$ -P "$pipe" -e trace=write -e signal=none -e inject=write:error=ENOSPC:when={k} \\
    {nmap} "$@" > "$pipe"
status=$?
wait
rm -f "$pipe"
exit $status
"""


class Step(NamedTuple):
    """Where a run is disturbed: at the k-th of its calls of syscall."""
    mode: str                           # mail, or print
    syscall: str
    action: str
    k: int


class Ended(NamedTuple):
    """What a run left: its status, what it wrote, what it mailed."""
    status: int
    out: str
    err: str
    mails: tuple

    @property
    def texts(self):
        return (self.out, *self.mails)

    def tells(self):
        """Whether the port that is new and the one that is gone are told."""
        return any(re.search(r"\b4444\b", under(text, "New")) for text in self.texts) \
            and any(re.search(r"\b23\b", under(text, "Gone")) for text in self.texts)


def under(text, title):
    """What a report shows under a title."""
    found = re.search(rf"^{title}[^\n]*\(\d+\)\n\n(.*?)(?:\n\n|\Z)", text, re.M | re.S)
    return found[1] if found else ""


def host(address, state, *ports):
    """nmap's XML of a host with these open ports."""
    return f'<host><status state="{state}"/><address addr="{address}" addrtype="ipv4"/>' + (
        f'<ports><extraports state="closed" count="{100 - len(ports)}"/>{"".join(map(PORT.format, ports))}</ports>'
        if ports else "") + "</host>\n"


class Place:
    """The folder in which everything happens: the program, a world before and after, and a history of the former."""

    def __init__(self, folder):
        self.folder = folder
        self.module = folder / "module"     # nothing else is ever put there: Python lists a changed folder again
        self.module.mkdir()
        shutil.copy(PROGRAM, self.module)
        for name, ports in (("before", (22, 23)), ("after", (22, 4444))):
            world = folder / name
            world.mkdir()
            every = host("10.0.0.1", "unknown") + host("10.0.0.2", "unknown")
            (world / "list").write_text(DOCUMENT.replace("HOSTS", every).replace("UP", "0").replace("START", "0"))
            (world / "scan").write_text(DOCUMENT)
            (world / "10.0.0.1").write_text(host("10.0.0.1", "up", *ports))
            (world / "10.0.0.2").write_text(host("10.0.0.2", "up", 22))
            self.program(world / "nmap", NMAP.format(world=world))
        self.program(folder / "sendmail", SENDMAIL)
        for mode in ("mail", "print"):
            self.write_rc(folder / mode, mode, "before")
            first = self.run(folder / mode)
            if first.status or first.err:
                raise SystemExit(f"the undisturbed audit ends with {first.status}:\n{first.err}")

    @staticmethod
    def program(path, text):
        path.write_text(text)
        path.chmod(0o755)

    def write_rc(self, case, mode, world, nmap="-F", ips="10.0.0.1-2"):
        case.mkdir(exist_ok=True)
        (case / "rc").write_text(
            f"IPS {ips}\nDIR-NAME {case}/state\nNMAP {self.folder / world}/nmap {nmap}\nMAX-THREADS 1\nQUIET\n"
            f"SENDMAIL {self.folder}/sendmail\n" + "EMAIL-TO root@example.net\n" * (mode == "mail"))

    def run(self, case, *prefix):
        """A run of the audit, perhaps under strace."""
        mails = Path(tempfile.mkdtemp(prefix="mails.", dir=case))
        env = {"PATH": os.environ["PATH"], "MAILS": str(mails), "PYTHONHASHSEED": "0",
               "TMPDIR": str(self.folder), "PYTHONPYCACHEPREFIX": str(self.folder / "cache"),
               "PYTHONPATH": str(self.module)}
        code = "import nmap_audit; raise SystemExit(nmap_audit.main())"
        done = subprocess.run([*prefix, sys.executable, "-c", code, "--config", case / "rc"], env=env, cwd=case,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
        limit = time.monotonic() + 5    # a sendmail whose sender was killed
        while list(mails.glob("part.*")) and time.monotonic() < limit:
            time.sleep(0.02)
        return Ended(done.returncode, done.stdout, done.stderr, tuple(map(read_mail, sorted(mails.glob("mail.*")))))

    def steps(self, mode):
        """The calls of an undisturbed run that are to be disturbed: (syscall, k)."""
        self.run(self.copy(Step(mode, "warm", "up", 0)))     # Python has compiled all that it needs
        case = self.copy(Step(mode, "none", "none", 0))
        self.run(case, "strace", "-qq", "-y", "-o", case / "trace", "-e", f"trace={','.join(SYSCALLS)}")
        counts = collections.Counter()
        for line in (case / "trace").read_text(errors="replace").splitlines():
            syscall = line.partition("(")[0]
            counts[syscall] += 1
            if syscall in SYSCALLS and (syscall != "openat" or f"{case}/state" in line and "O_CREAT" in line):
                yield syscall, counts[syscall]

    def copy(self, step):
        """The history of a mode in a folder of its own, the world as it is after."""
        case = self.folder / "-".join(map(str, step))
        shutil.copytree(self.folder / step.mode, case)
        self.write_rc(case, step.mode, "after")
        return case

    def disturb(self, step):
        """(whether there was such a step, what went wrong)"""
        case = self.copy(step)
        this = self.run(case, "strace", "-qq", "-o", case / "trace", "-e", f"trace={step.syscall}", "-e",
                        f"inject={step.syscall}:{ACTIONS[step.action]}:when={step.k}")
        trace = (case / "trace").read_text(errors="replace")
        happened = bool(re.search(r"^(?!openat).*\(INJECTED|^openat.*O_CREAT.*\(INJECTED|^\+\+\+ killed", trace, re.M))
        wrong = [f"after it: {each}" for each in damage(case / "state")]
        following = self.run(case)
        wrong += [f"after the next run: {each}" for each in damage(case / "state")]
        wrong += verdict(this, following)
        if wrong:
            wrong += [*re.findall("^.*INJECTED.*$", trace, re.M),
                      f"status {this.status}: {this.err.strip()[-600:]}",
                      f"next: status {following.status}: {following.err.strip()[-600:]}"]
        shutil.rmtree(case)
        return happened, wrong

    def lose(self, nmap, k, port):
        """The same for the real nmap's k-th write of a scan of one open port."""
        case, world = self.folder / f"nmap-{k}", self.folder / f"lossy-{k}"
        world.mkdir()
        self.program(world / "nmap", LOSSY.format(nmap=nmap, folder=world, k=k))
        self.write_rc(case, "mail", world.name, f"-n -p1-20,{port}", "127.0.0.1")
        this = self.run(case)
        happened = any("(INJECTED)" in path.read_text() for path in world.glob("nmap.*"))
        self.program(world / "nmap", f'#!/bin/sh\nexec {nmap} "$@"\n')
        following = self.run(case)
        wrong = [f"damage: {each}" for each in damage(case / "state")]
        told = [any(re.search(rf"127\.0\.0\.1.* {port} +tcp +open", text) for text in run.texts)
                for run in (this, following)]
        if not this.status and not told[0]:
            wrong.append("audited, without its open port")
        if this.status not in (0, 2) or following.status or not told[1]:
            wrong.append(f"status {this.status}, then {following.status}: {this.err}{following.err}")
        return happened, wrong


def read_mail(path):
    message = email.message_from_bytes(path.read_bytes(), policy=email.policy.default)
    part = message.get_body(("plain",))
    return part.get_content().replace("\r\n", "\n") if part else ""


def damage(state):
    """What is half written under a final name."""
    for path in state.rglob("*"):
        try:
            if path.name == "run.json":
                assert isinstance(json.loads(path.read_bytes())["hosts"], dict)
            elif path.suffix == ".xml":
                ET.parse(path)
            elif path.suffix in (".eml", ".txt", ".csv"):
                assert path.read_bytes().endswith(b"\n")
        except (ValueError, KeyError, TypeError, AssertionError, ET.ParseError) as error:
            yield f"{path.relative_to(state)}: {type(error).__name__} {error}"


def verdict(this, following):
    """What of the promises does not hold."""
    if not this.tells():
        if this.status == 0:
            yield "SILENT: it ended with 0 and told not all"
        if not following.tells():
            yield "LOST: neither it nor the next run told all"
    if any("Traceback" in run.out + run.err or "a bug" in run.err for run in (this, following)):
        yield "TRACEBACK"
    if following.status:
        yield "the next run failed"
    texts = [text for text in following.texts if "Standing" in text or "First look" in text]
    if not texts or any(re.search(r" 22\b", under(text, title)) for text in texts for title in ("First look", "New")):
        yield "HALF: the next run does not know the history"


# ---- All of them -------------------------------------------------------------------------------

class Tally:
    """How often each kind of step was disturbed, and with what result."""

    def __init__(self):
        self.passed, self.failed = collections.Counter(), collections.Counter()

    def add(self, step, wrong):
        (self.failed if wrong else self.passed)[step[:3]] += 1
        if wrong:
            print(f"FAILED {' '.join(map(str, step))}: " + "\n    ".join(wrong), flush=True)

    def show(self):
        print(f"{'report':8}{'call':8}{'fault':8}{'steps':>6}{'passed':>8}{'failed':>8}")
        for kind in dict.fromkeys((*self.passed, *self.failed)):
            passed, failed = self.passed[kind], self.failed[kind]
            print("".join(f"{word:8}" for word in kind) + f"{passed + failed:6}{passed:8}{failed:8}")
        print(f"{sum(self.passed.values())} passed, {sum(self.failed.values())} failed")
        return int(any(self.failed.values()))


def all_steps(place, every):
    """What there is to disturb; where the report is printed only its writes differ."""
    steps = [Step("mail", syscall, action, k) for syscall, k in place.steps("mail") for action in ACTIONS]
    steps += [Step("print", syscall, action, k) for syscall, k in place.steps("print") if syscall == "write"
              for action in ACTIONS]
    return sorted(steps, key=lambda step: (step.mode, SYSCALLS.index(step.syscall), step.action))[::every]


def beyond(steps):
    """The steps behind the last of each kind: there are none."""
    last = {}
    for step in steps:
        if step.syscall != "openat" and step.action == "ENOSPC":
            last[step[:3]] = max(step.k, last.get(step[:3], 0))
    return [Step(*kind, k + 1) for kind, k in last.items()]


def sweep(place, pool, tally, every):
    steps = all_steps(place, every)
    for step, (happened, wrong) in zip(steps, pool.map(place.disturb, steps)):
        tally.add(step, wrong if happened else ["there was no such step"])
    for step in beyond(steps) if every == 1 else []:
        while (found := place.disturb(step))[0]:
            tally.add(step, found[1])
            step = step._replace(k=step.k + 1)


def sweep_nmap(place, tally, every):
    nmap = shutil.which("nmap")
    if not nmap:
        print("nmap is not installed: its lost writes are left out")
        return
    with socket.create_server(("127.0.0.1", 0)) as server:
        for k in itertools.count(1, every):
            happened, wrong = place.lose(nmap, k, server.getsockname()[1])
            if not happened:
                break
            tally.add(Step("mail", "nmap's", "ENOSPC", k), wrong)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th step")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="audits at a time (2)")
    options = parser.parse_args()
    if not shutil.which("strace"):
        raise SystemExit("strace is not installed")
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="sweep.") as folder:
        place = Place(Path(folder).resolve())
        with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
            sweep(place, pool, tally, options.every)
        sweep_nmap(place, tally, options.every)
    return tally.show()


if __name__ == "__main__":
    raise SystemExit(main())
