"""The report and scan_report.csv: what an administrator reads at each level of DETAIL.

The goldens of test/data/report are what the program printed; pytest --regold rewrites them.
"""
import re
import tracemalloc
from pathlib import Path

import pytest

import nmap_audit
from nights import read_csv, up
from nmap_audit import Config, Finding, HostResult, Port, Run

RULES = """
group mail servers
    ip 10.0.0.1-2
    ignore 25 tcp open smtp
    ignore 993 tcp open imaps
    expect 587 tcp open *
end group mail servers
group web servers
    hostname web*
    ignore 80 tcp open http*
    ignore 8080 tcp open http-proxy
end group web servers
"""
FIRST = {
    "10.0.0.1": up((25, "tcp", "open", "smtp"), (587, "tcp", "open", "submission"), (21, "tcp", "open", "ftp"),
                   names=["mail.example.net"]),
    "10.0.0.2": up((25, "tcp", "open", "smtp"), (587, "tcp", "open", "submission"), names=["mail2.example.net"]),
    "10.0.0.3": up((80, "tcp", "open", "http"), (22, "tcp", "open", "ssh"), names=["web1.example.net"]),
    "10.0.0.4": up((23, "tcp", "open", "telnet")), "10.0.0.5": up(), "10.0.0.6": up(), "10.0.0.9": up()}
SECOND = {
    "10.0.0.1": up((25, "tcp", "open", "smtp", "Postfix smtpd"), (587, "tcp", "filtered", "submission"),
                   (993, "tcp", "open", "imaps"), names=["mail.example.net"],
                   os=[["Linux 5.0 - 5.14", 98, "Linux", "Linux"]]),
    "10.0.0.2": up((25, "tcp", "open", "smtp", "Postfix smtpd"), names=["mail2.example.net"]),
    "10.0.0.3": up((80, "tcp", "open", "http", {"product": "nginx", "version": "1.10"}),
                   (22, "tcp", "filtered", "ssh"), (8080, "tcp", "open", "http-proxy"), names=["dns.example.net"]),
    "10.0.0.5": up(fault={"timedout": True}), "10.0.0.6": up((443, "tcp"), fault={"cut": -60}),
    "10.0.0.7": up((4444, "tcp", "open", None), (31337, "tcp", "open", "Elite", "a rather long banner, as attackers "
                                                 "and vendors like to give them, of more than forty characters"),
                   names=["a-host-name-that-is-longer-than-most.of-a-rather-deep.domain.example.net"]),
    "10.0.0.8": up(fault={"exit": 1, "stderr": "dnet: Failed to open device eth0\nQUITTING!"}), "10.0.0.9": up()}
pytestmark = pytest.mark.usefixtures("no_real_nmap")


@pytest.fixture
def nights(nights):
    nights.ips, nights.rules = "10.0.0.1-12 nosuch.example.net".replace(" ", "\nIPS "), RULES
    return nights


@pytest.fixture
def night(nights):
    """A night on which everything happened."""
    nights.audit(FIRST, scanned="1-1000")
    return nights.audit(SECOND, scanned="1-1000,4444,8080,31337")


def stable(text):
    """Without the times that hosts took, and what depends on the length of the test's folder."""
    text = re.sub(r"(?m)^(\S.*  (?:clean|audited|down|failed|cut off|timed out) +)(\d+\.\d)",
                  lambda found: found[1] + "N".rjust(len(found[2])), text)
    return re.sub("-{61,}", "-" * 61, text)


# ---- Goldens -----------------------------------------------------------------------------------

@pytest.mark.parametrize("detail", ("none", "low", "medium", "high"))
def test_report(nights, night, golden, detail):
    result = nights.process("--detail", detail, folder=night.folder)
    golden(f"report/{detail}.txt", stable(result.out))
    assert result.status == 2 and result.err == ""


def test_csv(nights, night, golden):
    result = nights.process("--no-human", folder=night.folder)
    golden("report/scan_report.csv", result.out)
    assert result.out.encode() == (night.folder / "scan_report.csv").read_bytes()


def test_first_audit(nights, golden):
    golden("report/first.txt", stable(nights.audit(FIRST).out))


def test_all_clear(nights, golden):
    nights.ips, nights.rules = "10.0.0.1-4", "TELL always"
    nights.audit({"10.0.0.1": up()})
    golden("report/all-clear.txt", stable(nights.audit({"10.0.0.1": up()}).out))


def test_broken_network(nights, golden):
    nights.ips, nights.rules = "10.0.0.1-9", ""
    nights.audit(FIRST)
    golden("report/broken-network.txt", stable(nights.audit({"10.0.0.1": FIRST["10.0.0.1"]}).out))


def test_other_xml(run, rc, golden, tmp_path):
    """Plain XML of another scanner, and files that cannot be read."""
    folder, data = tmp_path / "xml", Path(__file__).parent / "data" / "nmap"
    folder.mkdir()
    for name in ("several-hosts", "ports", "raw-bytes", "cut-after-the-port", "exit-error", "entity-bomb"):
        text = (data / f"{name}.xml").read_bytes()
        (folder / f"{name}.xml").write_bytes(text)
    result = run("--config", rc(""), "--process-only", "--dir-name", folder, "--detail", "high")
    golden("report/other-xml.txt", stable(result.out))


# ---- The text ----------------------------------------------------------------------------------

def test_line_one(night):
    assert re.fullmatch(r"\d+ of \d+ hosts audited, \d+ findings, \d+ gone", night.first)
    assert night.first.startswith("5 of 9 hosts audited")      # 4 are down, one target does not resolve


def test_one_line_a_finding(nights, night):
    """The address repeated, never wrapped."""
    for detail in ("low", "medium"):
        text = nights.process("--detail", detail, folder=night.folder).out
        for row in night.rows:
            lines = [line for line in text.splitlines() if line.startswith(row["IP"])
                     and re.search(rf"\s{row['Port']}\s", line)]
            assert lines, row
    assert max(map(len, text.splitlines())) < 330


def test_a_version_stays_as_it_is(nights, night):
    """1.10 is not 1.1."""
    assert "nginx 1.10" in nights.process("--detail", "medium", folder=night.folder).out
    assert [row["Version"] for row in night.rows if row["Port"] == "80"] == ["nginx 1.10"]


def test_who_was_not_audited_is_told_with_reason_and_file(nights, night):
    for detail in ("none", "low", "medium", "high"):
        text = nights.process("--detail", detail, folder=night.folder).out
        for words in ("10.0.0.5", "10.0.0.6", "10.0.0.8", "nosuch.example.net", "host-timeout",
                      "dnet: Failed to open device eth0", f"{night.folder}/10.0.0.6.part"):
            assert words in text, (detail, words)


def test_detail_none_tells_no_finding(nights, night):
    text = nights.process("--detail", "none", folder=night.folder).out
    assert "imaps" not in text and "31337" not in text


def test_what_rules_ignore_is_counted_and_shown_by_high_only(nights, night):
    for detail in ("none", "low", "medium", "high"):
        text = nights.process("--detail", detail, folder=night.folder).out
        assert re.search(r"^Ports ignored: 3, by rules: 2$", text, re.MULTILINE)
        ignored = text.partition("\nIgnored (3)\n")[2].partition("\nHosts (13)\n")[0]
        assert len(re.findall(r"nmap-audit\.rc:\d+  +mail servers", ignored)) == (3 if detail == "high" else 0)


def test_high_shows_every_host_and_the_command(nights, night):
    text = nights.process("--detail", "high", folder=night.folder).out
    for host in range(1, 13):
        assert re.search(rf"^10\.0\.0\.{host}( |$)", text, re.MULTILINE)
    assert "nmap -F" in text


def test_med_is_medium(nights, night):
    texts = {nights.process("--detail", word, folder=night.folder).out for word in ("med", "medium", "MED")}
    assert len(texts) == 1


def test_sorted_by_address_and_port(night):
    rows = [(tuple(map(int, row["IP"].split("."))), row["Protocol"], int(row["Port"])) for row in night.rows]
    assert rows == sorted(rows) and len(rows) > 5


# ---- The table ---------------------------------------------------------------------------------

def test_csv_rows_end_in_crlf_and_begin_with_a_mark(night):
    data = (night.folder / "scan_report.csv").read_bytes()
    assert data.startswith(b"\xef\xbb\xbfIP,Hostname,OS,Port,Protocol,State,Service,Version,Change,First Seen\r\n")
    assert data.count(b"\n") == data.count(b"\r\n") == len(night.rows) + 1


def test_no_csv_headings(nights, night):
    whole = nights.process("--no-human", folder=night.folder).out
    rows = nights.process("--no-human", "--no-csv-headings", folder=night.folder).out
    assert rows.removeprefix("\ufeff") == whole.split("\r\n", 1)[1]


def test_the_csv_holds_gone_and_missing(night):
    assert {row["Change"] for row in night.rows} == {
        "new", "changed", "standing", "first look", "gone", "missing"}


def test_quotes_commas_and_line_ends_are_rfc_4180(nights):
    odd = 'a "quoted", one\nwith lines'
    nights.ips, nights.rules = "10.0.0.1", ""
    row, = nights.audit({"10.0.0.1": up((25, "tcp", "open", "smtp", odd))}).rows
    assert row["Version"].startswith('a "quoted", one') and row["Version"].endswith("with lines")
    assert "\n" not in row["Version"]


def test_port_0_is_shown(nights):
    night = nights.audit({"10.0.0.1": up((0, "tcp", "open"))}, scanned="0-100")
    assert night.rows[0]["Port"] == "0"
    assert re.search(r"^10\.0\.0\.1 +0 +tcp +open", night.report, re.MULTILINE)


# ---- Large reports -----------------------------------------------------------------------------

def large(rows):
    ports = tuple(Port(number % 65535 + 1, ("tcp", "udp")[number // 65535], "open", "http", "Apache httpd 2.4.1",
                       "2031-03-01")
                  for number in range(rows))
    host = HostResult("10.0.0.1", "audited", ports=ports, looked="1-65535/tcp")
    run = Run(Path("20310301-020000"), {host.address: host}, {})
    return run, [*(Finding(host, "first look", port) for port in ports), Finding(host, "host")]


def test_a_table_of_more_than_20000_rows_is_cut_and_says_so():
    run, findings = large(65535)
    report = nmap_audit.make_report(run, findings, Config())
    assert len(report.text.splitlines()) < 20_100
    assert "45535" in report.text.replace(",", "")
    assert report.text.startswith("1 of 1 hosts audited, 65535 findings, 0 gone\n")
    assert len(read_csv(report.csv)) == 65535


def test_a_report_takes_bounded_memory():
    run, findings = large(20_000)
    long = run.hosts["10.0.0.1"]._replace(names=("x" * 10_000,))
    findings = [each._replace(host=long) for each in findings]
    tracemalloc.start()
    try:
        report = nmap_audit.make_report(run._replace(hosts={"10.0.0.1": long}), findings, Config(detail="medium"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 200e6 and max(map(len, report.text.splitlines())) < 330


# ---- Odd text ----------------------------------------------------------------------------------

@pytest.mark.parametrize("text, expected", (
    ("plain text", "plain text"), ("grün", "grün"), ("\x1b[31mred", r"\x1b[31mred"), ("a\tb", r"a\tb"),
    ("a\r\nb", r"a\r\nb"), ("\u202egnp.exe", r"\u202egnp.exe"), ("a\0b", r"a\x00b"), ("a\x9bb", r"a\x9bb"),
    ("a\u2028b", r"a\u2028b"), ("a\u00a0b", r"a\xa0b"), ("", "")))
def test_shown(text, expected):
    assert nmap_audit.shown(text) == expected


def test_shown_is_bounded():
    assert nmap_audit.shown("x" * 500) == "x" * 197 + "..."
    assert nmap_audit.shown("x" * 200) == "x" * 200
    assert len(nmap_audit.shown("\x1b" * 1_000_000, 40)) <= 40
