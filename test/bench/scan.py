"""Scanning: a network of namespaces, most of its addresses dead, against one nmap for all and one nmap a host.

Nothing leaves the machine: the network is a bridge with no way out, made here and taken down again.
"""
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

import measure

sys.path.insert(0, str(measure.ROOT / "test"))
import labtools  # noqa: E402

THREADS, UP = 10, 40
SERVICES = ["tcp:22:SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", "tcp:25:220 mail.example.net ESMTP Postfix\r\n",
            "tcp:21:220 (vsFTPd 3.0.3)\r\n", "tcp:80:HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\n\r\n",
            "tcp:110:+OK Dovecot ready.\r\n", "tcp:143:* OK [CAPABILITY IMAP4rev1] Dovecot ready.\r\n", "tcp:3306:J",
            "tcp:8080:", "udp:53", "udp:123", "udp:161"]
SCANS = (("-sS -F", "10.99.0.0/24"), ("-sT -sV -F", "10.99.0.0/24"), ("-sS -O -F", "10.99.0.0/24"),
         ("-sU --top-ports 20", "10.99.0.0/24"), ("-sS -F", "10.99.0.0/22"))
EACH = ('nmap -sL -n {target} | sed -n "s/^Nmap scan report for //p" | '
        "xargs -P {threads} -I% {nmap} -oX {folder}/%.xml %")


def main(words):
    if problem := labtools.no_network():
        return print(f"No scan is measured here: {problem}")
    chosen = [scan for scan in SCANS if not words or f"{scan[0]} {scan[1]}" in words]
    for bits in (24, 22):
        scans = [scan for scan in chosen if scan[1].endswith(str(bits))]
        if scans:
            with tempfile.TemporaryDirectory() as name:
                in_network(Path(name), bits, scans)


def in_network(folder, bits, scans):
    """Forty hosts spread over the network, each with some of SERVICES."""
    size = 1 << 32 - bits
    network = labtools.Network(*(2 + at * (size - 4) // UP for at in range(UP)), bits=bits)
    try:
        for at, host in enumerate(network.hosts.values()):
            host.serve_all(*(SERVICES[(at * 3 + step) % len(SERVICES)] for step in range(1 + at % 5)))
        for options, target in scans:
            compare(folder, network.scanner.prefix, f"nmap -n {options}", target)
    finally:
        network.close()


def compare(folder, prefix, nmap, target):
    """One table: the program and its peers scan the same addresses, one after another."""
    env = measure.environment(folder)
    (folder / "empty.rc").write_text("")
    audit = ["--config", folder / "empty.rc", "--ips", target, "--nmap", nmap, "--max-threads", THREADS, "--quiet"]
    each = EACH.format(target=target, threads=THREADS, nmap=nmap, folder=folder)
    calls = {"one nmap for all": [*nmap.split(), "-oX", folder / "all.xml", target],
             "one nmap a host, ten at once": ["sh", "-c", each],
             measure.TYPED: [*measure.PROGRAM, *audit, "--dir-name", folder / str(time.monotonic_ns())]}
    used = {}
    for what, words in calls.items():
        time.sleep(2)                                   # what the hosts' kernels hold back of ICMP comes back
        used[what] = measure.measure(*prefix, *words, env=env)
    first = used[measure.TYPED].out.splitlines()[0]
    best = min(each.wall for what, each in used.items() if what != measure.TYPED)
    measure.show(f"{nmap} {target}: {first}", ("who", "wall s", "CPU s", "to 1.1 x the faster peer + 0.6 s"),
                 [(what, each.wall, each.cpu, each.wall / (1.1 * best + 0.6)) for what, each in used.items()],
                 shlex.join(map(str, calls["one nmap for all"])).replace(f"{folder}{os.sep}", ""),
                 each.replace(f"{folder}{os.sep}", ""),
                 f"{measure.TYPED} {shlex.join(map(str, audit))}".replace(f"{folder}{os.sep}", ""))


if __name__ == "__main__":
    main(sys.argv[1:])
