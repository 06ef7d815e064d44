"""What the benchmarks share: commands measured, tables of ratios, nmap XML and rc files to work on.

CPU is user and system time of a process and of all that it waited for; memory is the peak of the largest of them.
What does not end within LIMIT seconds counts as endless.
Every ratio is against a peer measured in the same run: seconds of another day, or another machine, say nothing.
"""
import math
import os
import shlex
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = (sys.executable, "-c", "import sys, nmap_audit; sys.exit(nmap_audit.main())")  # compiled, as it is installed
TYPED, LIMIT = "nmap-audit", 240


class Used(NamedTuple):
    """What a command took, and how it ended."""
    wall: float
    cpu: float
    megabytes: int
    status: int
    out: str
    err: str


def environment(folder, **changes):
    """Python from this clone, its byte code kept in a folder, and nothing that depends on who calls."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(folder / "pycache"), "HOME": str(folder),
            "LC_ALL": "C.UTF-8", **changes}


def measure(*words, env=None, cwd=None, times=1, statuses=(0,)):
    """The fastest of several calls. RuntimeError where it ends with another status."""
    return min((_once([str(word) for word in words], env, cwd, statuses) for _ in range(times)),
               key=lambda used: used.cpu)


def _once(words, env, cwd, statuses):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        start = time.monotonic()
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, cwd=cwd)
        alarm = threading.Timer(LIMIT, process.kill)
        alarm.start()
        _, status, usage = os.wait4(process.pid, 0)
        alarm.cancel()
        wall, process.returncode = time.monotonic() - start, os.waitstatus_to_exitcode(status)
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(1 << 20).decode(errors="replace"))
    if wall >= LIMIT:
        return Used(math.inf, math.inf, usage.ru_maxrss >> 10, process.returncode, *texts)
    if process.returncode not in statuses:
        raise RuntimeError(f"{shlex.join(words)}: {process.returncode}\n{texts[1][-2000:]}")
    return Used(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss >> 10, process.returncode, *texts)


def audit(*argv, **options):
    """nmap-audit with these arguments, measured."""
    return measure(*PROGRAM, *argv, **options)


def show(title, headings, rows, *commands):
    """One table, and the commands that it is of."""
    print(f"{title}\n")
    cells = [[f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    print(tabulate(cells, headings, disable_numparse=True, colalign=("left", *["right"] * (len(headings) - 1))))
    print("\n" + "".join(f"  {command}\n" for command in commands), flush=True)


# ---- Something to read -------------------------------------------------------------------------

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE nmaprun>
<?xml-stylesheet href="file:///usr/bin/../share/nmap/nmap.xsl" type="text/xsl"?>
<!-- Nmap 7.93 scan initiated Tue Nov 24 02:00:00 2026 as: nmap -sS -sV -O -oX - -&#45; 10.0.0.0/16 -->
<nmaprun scanner="nmap" args="nmap -sS -sV -O -oX - -- 10.0.0.0/16" start="1795485600" \
startstr="Tue Nov 24 02:00:00 2026" version="7.93" xmloutputversion="1.05">
<scaninfo type="syn" protocol="tcp" numservices="1000" services="1-1000"/>
<verbose level="0"/>
<debugging level="0"/>
"""
TAIL = """<runstats><finished time="1795485700" timestr="Tue Nov 24 02:01:40 2026" summary="Nmap done at Tue Nov 24 \
02:01:40 2026; {0} IP addresses ({0} hosts up) scanned in 100.00 seconds" elapsed="100.00" exit="success"/>\
<hosts up="{0}" down="0" total="{0}"/>
</runstats>
</nmaprun>
"""
SERVICES = [(21, "ftp", "vsftpd"), (22, "ssh", "OpenSSH"), (25, "smtp", "Postfix smtpd"), (53, "domain", "ISC BIND"),
            (80, "http", "nginx"), (110, "pop3", "Dovecot pop3d"), (111, "rpcbind", ""), (135, "msrpc", "Windows RPC"),
            (139, "netbios-ssn", "Samba smbd"), (143, "imap", "Dovecot imapd"), (389, "ldap", "OpenLDAP"),
            (443, "http", "Apache httpd"), (445, "netbios-ssn", "Samba smbd"), (515, "printer", ""),
            (548, "afp", "Netatalk"), (587, "smtp", "Postfix smtpd"), (631, "ipp", "CUPS"), (873, "rsync", ""),
            (993, "imap", "Dovecot imapd"), (995, "pop3", "Dovecot pop3d")]
PRODUCT = ' product="{}" version="2.{}.1"'
SYSTEMS = ["Linux 4.15 - 5.8", "Linux 2.6.32", "Microsoft Windows 10 1709 - 1909", "FreeBSD 12.0-RELEASE",
           "HP LaserJet printer", "Cisco IOS 15.0"]


def address(number):
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def host(number, ports=10):
    """The <host> of 10.0.0.0 + number: ports of the twenty SERVICES, from another one on for each host."""
    shown = sorted(SERVICES[(number * 7 + at) % len(SERVICES)] for at in range(min(ports, len(SERVICES))))
    lines = "".join(
        f'<port protocol="tcp" portid="{port}"><state state="open" reason="syn-ack" reason_ttl="64"/><service name='
        f'"{name}"{PRODUCT.format(product, number % 7) if product else ""} '
        f'ostype="Unix" method="probed" conf="10"><cpe>cpe:/a:vendor:{name}:2.{number % 7}.1</cpe></service></port>\n'
        for port, name, product in shown)
    system = SYSTEMS[number % len(SYSTEMS)]
    return ('<host starttime="1795485600" endtime="1795485690"><status state="up" reason="echo-reply" '
            f'reason_ttl="63"/>\n<address addr="{address(number)}" addrtype="ipv4"/>\n<hostnames>\n'
            f'<hostname name="host{number}.dept'
            f'{number % 97}.example.net" type="PTR"/>\n</hostnames>\n<ports><extraports state="closed" '
            f'count="{1000 - len(shown)}">\n<extrareasons reason="reset" count="{1000 - len(shown)}" proto="tcp" '
            f'ports="1-1000"/>\n</extraports>\n{lines}</ports>\n<os><portused state="open" proto="tcp" portid="22"/>\n'
            f'<osmatch name="{system}" accuracy="98" line="67241">\n<osclass type="general purpose" vendor="'
            f'{system.split()[0]}" osfamily="{system.split()[0]}" osgen="5.X" accuracy="98"><cpe>cpe:/o:vendor:kernel:5'
            '</cpe></osclass>\n</osmatch>\n</os>\n<uptime seconds="1234567" lastboot="Tue Nov 10 02:00:00 2026"/>\n'
            '<distance value="2"/>\n<tcpsequence index="257" difficulty="Good luck!" values="9C4F,3A1B,77D2,1F0E,8B6A,'
            '2C9D"/>\n<ipidsequence class="All zeros" values="0,0,0,0,0,0"/>\n<tcptssequence class="1000HZ" values="'
            '1A2B,3C4D,5E6F,7081,92A3,B4C5"/>\n<times srtt="412" rttvar="97" to="100000"/>\n</host>\n')


def write_hosts(path, numbers, ports=10):
    """One document of these hosts; its size."""
    numbers = list(numbers)
    with open(path, "w") as file:
        file.write(HEAD)
        file.writelines(host(number, ports) for number in numbers)
        file.write(TAIL.format(len(numbers)))
    return os.path.getsize(path)


def write_files(folder, count):
    """One document a host; their size."""
    folder.mkdir()
    return sum(write_hosts(folder / f"{address(number)}.xml", [number]) for number in range(count))


def write_rules(path, groups, each=10, kinds=("ip", "hostname", "os")):
    """An rc file with these many groups of `each` rules; a host is in a few. Fifty accept most ports of SERVICES."""
    lines = ["EMAIL-SUBJECT a benchmark"]
    for group in range(groups):
        kind, at = kinds[group % len(kinds)], group // len(kinds)
        tags = {"ip": f"ip 10.0.{at % 256}.{at // 256 % 4 * 64}/26", "hostname": f"hostname *.dept{at}.example.net",
                "name": f"hostname host{at}.dept{at % 97}.example.net",
                "os": f"os {SYSTEMS[at % len(SYSTEMS)] if at < 20 else f'Linux {at}.*'}"}
        rules = [f"ignore {port} tcp open {name}" for port, name, _ in
                 (SERVICES[(at * 7 + step) % (len(SERVICES) - 1)] for step in range(min(each, len(SERVICES) - 1)))]
        rules += [f"ignore {2000 + number} tcp open service{number}" for number in range(each - len(rules))]
        lines += [f"group {kind} {at}", f"    {tags[kind]}", *(f"    {rule}" for rule in rules), "end group"]
    path.write_text("\n".join(lines) + "\n")
    return path
