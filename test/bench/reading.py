"""Reading and reporting: --process-only over many hosts, with 500 rules, against raw expat and other readers.

Expat counts <port> over the same bytes and does nothing else: nothing that reads XML in Python can be faster.
"""
import shutil
import sys
import tempfile
from pathlib import Path

import measure

HOSTS, MANY = 10_000, 65_536
EXPAT = """
import os, sys
from xml.parsers import expat

def count(name, attrs):
    global ports
    ports += name == "port"

ports, place = 0, sys.argv[1]
for name in [os.path.join(place, each) for each in os.listdir(place)] if os.path.isdir(place) else [place]:
    parser = expat.ParserCreate()
    parser.StartElementHandler = count
    with open(name, "rb") as file:
        parser.ParseFile(file)
print(ports)
"""
LIBNMAP = """
import os, sys
from libnmap.parser import NmapParser

ports, place = 0, sys.argv[1]
for name in [os.path.join(place, each) for each in os.listdir(place)] if os.path.isdir(place) else [place]:
    ports += sum(len(host.services) for host in NmapParser.parse_fromfile(name).hosts)
print(ports)
"""


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rules = measure.write_rules(folder / "rules.rc", 50)
        files, one, many = folder / "files", folder / "one", folder / "many"
        size = measure.write_files(files, HOSTS)
        for place, count in ((one, HOSTS), (many, MANY)):
            place.mkdir()
            measure.write_hosts(place / "hosts.xml", range(count))
        env = measure.environment(folder)
        audits = {place: (*measure.PROGRAM, "--config", rules, "--process-only", "--dir-name", place)
                  for place in (files, one, many)}
        measure.measure(*audits[one], env=env, statuses=(0, 2))     # byte code
        compare(env, files, audits[files], files, size)
        compare(env, one, audits[one], one / "hosts.xml", size)
        linear(env, audits[one], audits[many])


def compare(env, place, audit, peers, size):
    """The program, and who else reads the same bytes."""
    calls = {f"{measure.TYPED} --process-only": audit,
             "expat, counting <port>": (sys.executable, "-c", EXPAT, peers),
             "python-libnmap, parsing": (sys.executable, "-c", LIBNMAP, peers)}
    if shutil.which("ndiff") and not peers.is_dir():
        calls["ndiff, the file against itself"] = ("ndiff", peers, peers)
    used = {what: measure.measure(*words, env=env, times=2, statuses=(0, 2)) for what, words in calls.items()}
    least = used["expat, counting <port>"].cpu
    files = "one file each" if peers.is_dir() else "in one file"
    measure.show(f"{HOSTS} hosts, {size / 1e6:.0f} MB, {files}, 500 rules", ("reader", "CPU s", "to expat", "peak MB"),
                 [(what, each.cpu, each.cpu / least, each.megabytes) for what, each in used.items()],
                 f"{measure.TYPED} --config rules.rc --process-only --dir-name {place.name}",
                 f"python3 -c 'xml.parsers.expat ...' {place.name}", f"python3 -c 'libnmap.parser ...' {place.name}")


def linear(env, few, many):
    """Six times as many hosts take six times as long."""
    rows = [(count, measure.measure(*words, env=env, times=2)) for count, words in ((HOSTS, few), (MANY, many))]
    least = rows[0][1]
    measure.show("As hosts grow in number", ("hosts", "CPU s", "CPU ms a host", "to linear", "peak MB"), [
        (count, used.cpu, used.cpu / count * 1000, used.cpu / least.cpu * HOSTS / count, used.megabytes)
        for count, used in rows], f"{measure.TYPED} --config rules.rc --process-only --dir-name many")


if __name__ == "__main__":
    main()
