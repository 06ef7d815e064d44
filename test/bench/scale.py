"""Scale: as many targets as a /16 has, and an nmap that costs nothing: what is left is the program's own work."""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import measure

HERE = Path(__file__).resolve().parent
# Runs the program and leaves what it took alone, without the nmaps that it waited for.
OWN = """
import json, resource, sys, time
start = time.monotonic()
import nmap_audit
status = nmap_audit.main(sys.argv[2:])
own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
json.dump({"wall": time.monotonic() - start, "cpu": own.ru_utime + own.ru_stime, "megabytes": own.ru_maxrss >> 10,
           "nmap": others.ru_utime + others.ru_stime}, open(sys.argv[1], "w"))
sys.exit(status)
"""
LIST = ('<host><status state="unknown" reason="user-set" reason_ttl="0"/>\n<address addr="{}" addrtype="ipv4"/>\n'
        '</host>\n')


def main():
    if not shutil.which("cc"):
        return print("Nothing is measured at scale here: no C compiler (Debian: gcc, libc6-dev)")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "bin").mkdir()
        subprocess.run(["cc", "-O2", "-o", folder / "bin" / "nmap", HERE / "nmap.c"], check=True)
        env = measure.environment(folder, PATH=f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
        sizes, rows = {4096: "10.0.0.0/20", 65_536: "10.0.0.0/16"}, []
        for what, every, batch, hard in (("all down", 1 << 20, "auto", 0), ("one in 16 up", 16, "auto", 0),
                                         ("all up", 1, "auto", 0), ("all up, 64 files open at most", 1, "auto", 64),
                                         ("one in 16 up, BATCH 1", 16, "1", 0)):
            used = {count: scan(folder, env | {"FAKE_UP": str(every)}, count, target, batch, hard)
                    for count, target in sizes.items() if count < max(sizes) or batch == "auto"}
            rows += [(what, count, *(each[key] for key in ("wall", "cpu")), each["cpu"] / count * 1000,
                      each["cpu"] / used[4096]["cpu"] * 4096 / count, each["nmap"], each["processes"],
                      each["megabytes"]) for count, each in used.items()]
        measure.show("Targets, and a fake nmap of no cost",
                     ("targets", "count", "wall s", "own CPU s", "ms a target", "to linear", "nmap's CPU s", "nmaps",
                      "peak MB"), rows,
                     f"{measure.TYPED} --config FILE --ips 10.0.0.0/16 --batch auto --scan-only --quiet")


def scan(folder, env, count, target, batch, hard):
    """What a scan took, and how many processes it started."""
    runs, listed, took, calls, rc = (folder / each for each in ("runs", "list.xml", "took.json", "calls", "empty.rc"))
    rc.write_text("")
    with open(listed, "w") as file:
        file.write('<?xml version="1.0"?>\n<!DOCTYPE nmaprun>\n<nmaprun scanner="nmap" args="nmap -sL" start="1">\n')
        file.writelines(LIST.format(measure.address(number)) for number in range(count))
        file.write(f'<runstats><finished exit="success"/><hosts up="0" down="{count}" total="{count}"/></runstats>\n'
                   '</nmaprun>\n')
    limit = ["sh", "-c", f'ulimit -n {hard}; exec "$@"', "sh"] if hard else []
    words = [*limit, sys.executable, "-c", OWN, took, "--config", rc, "--dir-name", runs, "--ips", target,
             "--batch", batch, "--scan-only", "--quiet"]
    measure.measure(*words, env=env | {"FAKE_LIST": str(listed), "FAKE_CALLS": str(calls)})
    shutil.rmtree(runs)
    processes = calls.stat().st_size
    calls.unlink()
    return {**json.loads(took.read_text()), "processes": processes}


if __name__ == "__main__":
    main()
