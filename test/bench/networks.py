"""Made-up networks as nmap shows them: for tests and benchmarks of what reads, filters and accepts.

    hosts = network(5000)                       always the same ones; another seed makes others
    run = write_run(directory, hosts)           DIR-NAME/20261124-020000: one XML file a host, and run.json
    write_document(path, hosts)                 all in one file, as nmap -oX writes it
    text = rules(hosts)                         rc text that accepts all but the outliers' odd ports

A network has six operating systems and up to forty roles: kinds of machines with ports and host names of their own.
Machines of a role stand side by side in blocks of 8 to 64 addresses, several roles in each /24. Of a hundred machines
two are outliers: they show ports that no other machine of their role has. Nothing but Python is needed.
"""
import datetime
import ipaddress
import itertools
import json
import random
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import quoteattr

RUN_ID = "20261124-020000"
LOOKED = {"tcp": "1-10000", "udp": "53,67-69,123,137-138,161-162,500,514,631,1434,1900,4500,5353"}
SCANS = {"tcp": "syn", "udp": "udp", "sctp": "sctpinit", "ip": "ipproto"}
SYSTEMS = {  # the name, vendor, family and generation of what nmap takes a machine for
    "linux": ("Linux 4.15 - 5.8", "Linux", "Linux", "5.X"),
    "server": ("Microsoft Windows Server 2016", "Microsoft", "Windows", "2016"),
    "desktop": ("Microsoft Windows 10 1709 - 1909", "Microsoft", "Windows", "10"),
    "bsd": ("FreeBSD 12.0-RELEASE - 13.0-CURRENT", "FreeBSD", "FreeBSD", "12.X"),
    "cisco": ("Cisco IOS 15.0 - 15.4", "Cisco", "IOS", "15.X"),
    "printer": ("HP LaserJet printer (Jetdirect)", "HP", "embedded", "")}
SERVICES = {  # by port and first letter of the protocol: the service and its product
    "21": ("ftp", "vsftpd"), "22": ("ssh", "OpenSSH"), "23": ("telnet", ""), "25": ("smtp", "Postfix smtpd"),
    "53": ("domain", "ISC BIND"), "53u": ("domain", "ISC BIND"), "67u": ("dhcps", ""), "68u": ("dhcpc", ""),
    "69u": ("tftp", ""), "80": ("http", "nginx"), "88": ("kerberos-sec", "Microsoft Windows Kerberos"),
    "110": ("pop3", "Dovecot pop3d"), "111": ("rpcbind", ""), "123u": ("ntp", "NTP v4"),
    "135": ("msrpc", "Microsoft Windows RPC"), "137u": ("netbios-ns", ""), "139": ("netbios-ssn", ""),
    "143": ("imap", "Dovecot imapd"), "161u": ("snmp", "SNMPv3 server"), "389": ("ldap", "OpenLDAP"),
    "443": ("https", "nginx"), "445": ("microsoft-ds", ""), "500u": ("isakmp", ""), "514": ("shell", ""),
    "514u": ("syslog", ""), "515": ("printer", ""), "548": ("afp", "Netatalk"), "554": ("rtsp", ""),
    "587": ("submission", "Postfix smtpd"), "631": ("ipp", "CUPS"), "636": ("ldapssl", "OpenLDAP"),
    "873": ("rsync", ""), "993": ("imaps", "Dovecot imapd"), "995": ("pop3s", "Dovecot pop3d"),
    "1433": ("ms-sql-s", "Microsoft SQL Server"), "1521": ("oracle", "Oracle TNS listener"), "1883": ("mqtt", ""),
    "2049": ("nfs", ""), "3000": ("ppp", ""), "3128": ("http-proxy", "Squid http proxy"), "3260": ("iscsi", ""),
    "3306": ("mysql", "MySQL"), "3389": ("ms-wbt-server", ""), "4500u": ("nat-t-ike", ""), "5060": ("sip", ""),
    "5353u": ("zeroconf", ""), "5357": ("wsdapi", ""), "5432": ("postgresql", "PostgreSQL DB"),
    "5672": ("amqp", "RabbitMQ"), "5900": ("vnc", "RealVNC"), "5985": ("wsman", ""), "6379": ("redis", ""),
    "8009": ("ajp13", ""), "8080": ("http-proxy", "Jetty"), "8443": ("https-alt", "Apache Tomcat"),
    "9000": ("cslistener", ""), "9090": ("zeus-admin", ""), "9100": ("jetdirect", ""), "9200": ("wap-wsp", ""),
    "9418": ("git", "")}
ROLES = [  # share of the machines, system, host name, ports
    (2, "linux", "web{}.dmz.example.net", "22 80 443"),
    (1, "linux", "proxy{}.dmz.example.net", "22 3128"),
    (1, "linux", "mx{}.dmz.example.net", "22 25 587 993"),
    (1, "linux", "mail{}.example.net", "22 25 110 143 993 995"),
    (1, "bsd", "ns{}.example.net", "22 53 53u"),
    (1, "bsd", "fw{}.example.net", "22 500u 4500u"),
    (1, "linux", "ldap{}.srv.example.net", "22 389 636"),
    (2, "linux", "app{}.srv.example.net", "22 8080 8443"),
    (2, "linux", "tomcat{}.srv.example.net", "22 8009 8080"),
    (1, "linux", "db{}.srv.example.net", "22 5432"),
    (1, "linux", "my{}.srv.example.net", "22 3306"),
    (1, "linux", "ora{}.srv.example.net", "22 111 1521"),
    (1, "linux", "cache{}.srv.example.net", "22 6379"),
    (1, "linux", "queue{}.srv.example.net", "22 5672"),
    (1, "linux", "search{}.srv.example.net", "22 9200"),
    (1, "linux", "git{}.dev.example.net", "22 80 9418"),
    (1, "linux", "ci{}.dev.example.net", "22 3000 8080"),
    (1, "linux", "log{}.srv.example.net", "22 514 514u"),
    (1, "linux", "mon{}.srv.example.net", "22 80 3000 9090"),
    (1, "bsd", "nas{}.srv.example.net", "22 111 548 2049"),
    (1, "bsd", "san{}.srv.example.net", "22 3260"),
    (1, "bsd", "backup{}.srv.example.net", "22 873"),
    (2, "linux", "node{}.hpc.example.net", "22 111 123u"),
    (1, "server", "dc{}.corp.example.net", "53 88 135 139 389 445 636 3389"),
    (1, "server", "file{}.corp.example.net", "135 137u 139 445 3389"),
    (1, "server", "sql{}.corp.example.net", "135 139 445 1433 3389"),
    (1, "server", "iis{}.corp.example.net", "80 135 443 445 3389"),
    (2, "server", "ts{}.corp.example.net", "135 139 445 3389 5985"),
    (1, "server", "wsus{}.corp.example.net", "135 139 445 3389 8443"),
    (12, "desktop", "ws{}.office.example.net", "135 139 445 5357"),
    (8, "desktop", "nb{}.office.example.net", "135 137u 445"),
    (3, "desktop", "dev{}.office.example.net", "22 135 139 445 5900"),
    (2, "desktop", "till{}.shop.example.net", "135 445 5900"),
    (3, "cisco", "sw{}.net.example.net", "22 161u"),
    (1, "cisco", "rt{}.net.example.net", "22 23 161u"),
    (1, "cisco", "ap{}.net.example.net", "80 443 161u"),
    (3, "printer", "prn{}.office.example.net", "80 515 631 9100"),
    (2, "printer", "mfp{}.office.example.net", "21 80 443 515 9100 161u"),
    (2, "linux", "", "80 554"),  # cameras; what has no name is found by its address or system only
    (3, "linux", "phone{}", "80 5060 68u")]
ODD = ("", "unknown", "irc", "vnc", "socks5", "http-alt", "backdoor", "bittorrent-tracker")

HEAD = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE nmaprun>
<?xml-stylesheet href="file:///usr/bin/../share/nmap/nmap.xsl" type="text/xsl"?>
<!-- Nmap 7.93 scan initiated {date} as: {args} -->
<nmaprun scanner="nmap" args={quoted} start="{start}" startstr="{date}" version="7.93" xmloutputversion="1.05">
"""
TAIL = """<runstats><finished time="{end}" timestr="{date}" summary="Nmap done at {date}; {count} IP addresses \
({count} hosts up) scanned in 60.00 seconds" elapsed="60.00" exit="success"/>\
<hosts up="{count}" down="0" total="{count}"/>
</runstats>
</nmaprun>
"""


class Shown(NamedTuple):
    """A port, in nmap's words."""
    number: int
    protocol: str = "tcp"
    state: str = "open"
    service: str = ""
    product: str = ""
    version: str = ""


class Host(NamedTuple):
    """A machine that is up: what nmap shows of it, its role (an index of ROLES), whether it is an outlier."""
    address: str
    names: tuple[str, ...] = ()
    system: tuple[str, str, str, str] | None = None  # name, vendor, family, generation
    ports: tuple[Shown, ...] = ()
    role: int = -1
    odd: bool = False


def network(hosts=5000, *, roles=40, outliers=0.02, seed=1, first="10.0.0.0"):
    """These many machines, by address from `first` on, the same ones for the same arguments.

    roles: how many of ROLES there are; outliers: the share of machines that show odd ports.
    """
    dice = random.Random(seed)
    weights = [share for share, *_ in ROLES[:roles]]
    blocks = itertools.chain.from_iterable(
        itertools.repeat(dice.choices(range(roles), weights)[0], dice.choice((8, 16, 32, 64)))
        for _ in itertools.count())
    # every role is there, however few machines there are
    dealt = itertools.chain(range(roles), blocks)
    counts, found = [0] * roles, []
    for number, role in zip(_numbers(first), itertools.islice(dealt, hosts)):
        counts[role] += 1
        found.append(_machine(str(ipaddress.ip_address(number)), role, counts[role], dice))
    for at in dice.sample(range(hosts), round(hosts * outliers)):
        found[at] = _outlier(found[at], dice)
    return found


def _numbers(first):
    """Addresses from one on, without those that end in 0 or 255."""
    start = int(ipaddress.ip_address(first))
    return (number for number in itertools.count(start) if number & 255 not in (0, 255))


def _machine(address, role, count, dice):
    _, system, name, ports = ROLES[role]
    shown = []
    for word in ports.split():
        service, product = SERVICES[word]
        number, udp = int(word.rstrip("u")), word.endswith("u")
        state, version = "open|filtered", f"{dice.randrange(1, 9)}.{dice.randrange(20)}"
        shown.append(Shown(number, "udp" if udp else "tcp", state if udp and not product else "open", service, product,
                           version if product else ""))
    return Host(address, (name.format(count),) if name else (), SYSTEMS[system], tuple(shown), role)


def _outlier(host, dice):
    """The same machine with one or two ports that do not belong to its role."""
    odd = [Shown(number, "tcp", dice.choice(("open", "open", "open", "filtered")), dice.choice(ODD))
           for number in dice.sample(range(1024, 10000), dice.choice((1, 1, 2)))]
    taken = {port.number for port in host.ports}
    return host._replace(ports=host.ports + tuple(port for port in odd if port.number not in taken), odd=True)


# ---- As XML ------------------------------------------------------------------------------------

def host_xml(host, *, start=0, looked=LOOKED):
    """The machine's <host>; its ports add up to those that were looked at."""
    names = "".join(f"<hostname name={quoteattr(name)} type=\"PTR\"/>\n" for name in host.names)
    version = "ipv6" if ":" in host.address else "ipv4"
    return (f'<host starttime="{start}" endtime="{start + 9}"><status state="up" reason="echo-reply" '
            f'reason_ttl="63"/>\n<address addr={quoteattr(host.address)} addrtype="{version}"/>\n'
            f'<hostnames>\n{names}</hostnames>\n<ports>{"".join(_extraports(host, looked))}'
            f'{"".join(map(_port_xml, sorted(host.ports, key=lambda port: (port.protocol, port.number))))}</ports>\n'
            f'{_system_xml(host.system)}<times srtt="412" rttvar="97" to="100000"/>\n</host>\n')


def _extraports(host, looked):
    for protocol, text in looked.items():
        count = _size(text) - sum(port.protocol == protocol for port in host.ports)
        if count:
            yield f'<extraports state="closed" count="{count}">\n</extraports>\n'


def _size(text):
    ends = (piece.partition("-") for piece in text.split(","))
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def _port_xml(port):
    more = "".join(f" {name}={quoteattr(text)}" for name, text in (("product", port.product), ("version", port.version))
                   if text)
    service = f'<service name={quoteattr(port.service)}{more} method="probed" conf="10"/>' if port.service else ""
    return (f'<port protocol="{port.protocol}" portid="{port.number}"><state state="{port.state}" reason="syn-ack" '
            f'reason_ttl="63"/>{service}</port>\n')


def _system_xml(system):
    if not system:
        return ""
    name, vendor, family, generation = map(quoteattr, system)
    return (f'<os><osmatch name={name} accuracy="98" line="1">\n<osclass type="general purpose" vendor={vendor} '
            f'osfamily={family} osgen={generation} accuracy="98"/>\n</osmatch>\n</os>\n')


def document(hosts, *, start=0, looked=LOOKED):
    """nmap's XML of these machines, whole."""
    hosts, date = list(hosts), f"{datetime.datetime.fromtimestamp(start):%a %b %d %H:%M:%S %Y}"
    args = "nmap -sS -sU -sV -O -oX - " + (hosts[0].address if len(hosts) == 1 else "10.0.0.0/8")
    info = "".join(f'<scaninfo type="{SCANS[protocol]}" protocol="{protocol}" numservices="{_size(text)}" '
                   f'services="{text}"/>\n' for protocol, text in looked.items())
    return "".join([HEAD.format(date=date, args=args, quoted=quoteattr(args), start=start), info,
                    *(host_xml(host, start=start, looked=looked) for host in hosts),
                    TAIL.format(end=start + 60, date=date, count=len(hosts))])


def write_document(path, hosts, **options):
    """All machines in one file; its path."""
    Path(path).write_text(document(hosts, **options), encoding="utf-8")
    return Path(path)


def write_run(directory, hosts, *, run_id=RUN_ID, told=False, record=True, looked=LOOKED):
    """A finished run of DIR-NAME with one XML file a machine; its folder.

    record: with a run.json, as of a run whose report was not made or, told, was; without, only XML is there.
    """
    folder = Path(directory) / run_id
    folder.mkdir(parents=True, mode=0o700)
    start = int(datetime.datetime.strptime(run_id, "%Y%m%d-%H%M%S").timestamp())
    for host in hosts:
        name = host.address.replace(":", "_").replace("%", "_")
        with open(f"{folder}/{name}.xml", "w", encoding="utf-8") as file:
            file.write(document([host], start=start, looked=looked))
    if record:
        when = datetime.datetime.fromtimestamp(start).astimezone().strftime("%Y-%m-%dT%H:%M:%S%z")
        (folder / "run.json").write_text(json.dumps({
            "version": 1, "program": "nmap-audit 1.0.0", "status": "finished", "told": told, "started": when,
            "ended": when, "command_line": [], "rc": "", "nmap": ["nmap", "-sS", "-sU", "-sV", "-O"], "adds_up": True,
            "ips": ["10.0.0.0/8"],
            "hosts": {host.address: {"outcome": "audited", "reason": "", "seconds": 9.0, "start": start}
                      for host in hosts}}))
    return folder


def rules(hosts, *, odd=False):
    """Groups, as rc text, that accept what the roles of these machines show; with odd, what outliers show, too."""
    text = []
    for role in sorted({host.role for host in hosts}):
        mine = [host for host in hosts if host.role == role]
        name = ROLES[role][2].format("*")
        tags = [f"hostname {name}"] if name else [f"ip {host.address}" for host in mine]
        shown = dict.fromkeys(f"ignore {port.number} {port.protocol} {port.state} {port.service or '*'}"
                              for host in mine for port in (host.ports if odd else _machine("", role, 0, random).ports))
        text += [f"group role {role}", *(f"    {line}" for line in (*tags, *shown)), f"end group role {role}", ""]
    return "\n".join(text)
