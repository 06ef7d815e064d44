"""The start of the program, against an empty Python: what cron, a shell's completion and a person wait for."""
import sys
import tempfile
from pathlib import Path

import measure

TIMES = 15


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = measure.environment(folder)
        small = folder / "small.rc"
        small.write_text("IPS 10.0.0.1\ngroup a\nip 10.0.0.1\nignore 25 tcp open smtp\nend group a\n")
        (folder / "one").mkdir()
        measure.write_hosts(folder / "one" / "host.xml", [1])
        calls = {"python3 -c pass": (sys.executable, "-c", "pass"),
                 "python3 -c 'import argparse'": (sys.executable, "-c", "import argparse"),
                 f"{measure.TYPED} --version": (*measure.PROGRAM, "--version"),
                 f"{measure.TYPED} --help": (*measure.PROGRAM, "--help"),
                 f"{measure.TYPED} --config small.rc --process-only --dir-name one":
                     (*measure.PROGRAM, "--config", small, "--process-only", "--dir-name", folder / "one"),
                 "python3 nmap_audit.py --version (from the source)":
                     (sys.executable, measure.ROOT / "nmap_audit.py", "--version")}
        for words in calls.values():                                # byte code and the disk's cache
            measure.measure(*words, env=env)
        used = {command: measure.measure(*words, env=env, times=TIMES) for command, words in calls.items()}
    least = used["python3 -c pass"]
    measure.show(f"Start: the fastest of {TIMES}", ("command", "CPU ms", "to an empty Python", "peak MB"), [
        (command, f"{each.cpu * 1000:.0f}", each.cpu / least.cpu, each.megabytes) for command, each in used.items()])


if __name__ == "__main__":
    main()
