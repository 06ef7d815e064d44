"""Rules: ten against ten thousand over many hosts, by what their groups go by; and reading an rc file of them."""
import sys
import tempfile
from pathlib import Path

import measure

HOSTS, PORTS, GROUPS, RULES = 65_536, 2, 1000, 10
KINDS = {"ip (subnets)": ("ip",), "hostname (without *)": ("name",), "hostname (with *)": ("hostname",), "os": ("os",),
         "all of these": ("ip", "hostname", "os", "name")}
READ = """
import sys, nmap_audit
text = nmap_audit.read_rc(sys.argv[1])
nmap_audit.read_config(nmap_audit.parse_rc(text, sys.argv[1]), [], text)
"""
LARK = """
import sys, nmap_audit
nmap_audit.parse_rc(nmap_audit.read_rc(sys.argv[1]), sys.argv[1])
"""
INI = """
import configparser, sys
file = configparser.ConfigParser(interpolation=None)
file.read(sys.argv[1])
"""


def main():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        env = measure.environment(folder)
        (folder / "many").mkdir()
        measure.write_hosts(folder / "many" / "hosts.xml", range(HOSTS), PORTS)
        over_hosts(folder, env)
        reading(folder, env)


def over_hosts(folder, env):
    files = {f"{RULES} rules, ip": measure.write_rules(folder / "few.rc", 1, RULES, ("ip",))}
    files |= {f"{GROUPS * RULES} rules, {what}": measure.write_rules(folder / f"{at}.rc", GROUPS, RULES, kinds)
              for at, (what, kinds) in enumerate(KINDS.items())}
    files[f"{GROUPS * RULES} rules, one group"] = measure.write_rules(folder / "one.rc", 1, GROUPS * RULES, ("ip",))
    used = {what: measure.audit("--config", path, "--process-only", "--no-human", "--no-csv", "--dir-name",
                                folder / "many", env=env, statuses=(0, 2)) for what, path in files.items()}
    least = next(iter(used.values()))
    measure.show(f"{HOSTS} hosts, {HOSTS * PORTS} ports", ("rules, groups by", "CPU s", f"to {RULES} rules", "peak MB"),
                 [(what, each.cpu, each.cpu / least.cpu, each.megabytes) for what, each in used.items()],
                 f"{measure.TYPED} --config FILE --process-only --no-human --no-csv --dir-name many")


def reading(folder, env):
    rc, ini, empty = folder / "rules.rc", folder / "rules.ini", folder / "empty.rc"
    text = measure.write_rules(rc, GROUPS, RULES).read_text()
    empty.write_text("")
    blocks = text.replace("end group\n", "").split("\ngroup ")[1:]
    ini.write_text("".join(f"[{block.splitlines()[0]}]\n" + "".join(
        f"{at} = {line.strip()}\n" for at, line in enumerate(block.splitlines()[1:])) for block in blocks))
    calls = {"rc file without a rule (imports)": (READ, empty), f"rc file of {GROUPS * RULES} rules": (READ, rc),
             "the same, its blocks and lines only": (LARK, rc), "configparser, as many lines": (INI, ini)}
    used = {what: measure.measure(sys.executable, "-c", *words, env=env, times=3) for what, words in calls.items()}
    least = used["configparser, as many lines"].cpu
    measure.show(f"Reading an rc file, {len(text.splitlines())} lines", ("what", "CPU s", "to configparser", "peak MB"),
                 [(what, each.cpu, each.cpu / least, each.megabytes) for what, each in used.items()],
                 "python3 -c 'nmap_audit.read_config(nmap_audit.parse_rc(...), ...)' FILE")


if __name__ == "__main__":
    main()
