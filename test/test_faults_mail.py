"""The faults of delivering a report, M1 to M7, and what strangers write into it, H1 and H3 to H8."""
import csv
import io
import os
import re
import shutil
import subprocess
import time
import unicodedata
from pathlib import Path

import pytest

import nmap_audit
from nights import read_csv, tables, up

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
TO = ("--email-to", "root@example.net")
NOWHERE = "SMTP-SERVER 127.0.0.1:9"
ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.usefixtures("no_real_nmap")


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(nmap_audit, "SENDMAIL_SECONDS", 1)


def waiting(nights):
    folder = nights.directory / "unsent"
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def check_kept(nights, night):
    """The report is kept, one line says where, the status is 69."""
    assert night.status == 69 and night.out == ""
    line, = night.err.splitlines()
    path = nights.directory / "unsent" / f"{night.folder.name}.eml"
    assert line.startswith("nmap-audit: mail not delivered") and str(path) in line
    assert waiting(nights) == [path.name] and path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes() == (night.folder / "report.eml").read_bytes()
    assert night.record["status"] == "finished" and not night.record["told"]
    assert night.report.startswith("1 of 1 hosts audited, 1 findings")


def check_sent_first(nights, night, fake):
    """The next run sends the mail that waits, then its own."""
    sendmail = fake("sendmail")
    nights.rules, nights.run = "", nights.whole
    kept = (night.folder / "report.eml").read_bytes()
    last = nights.audit({A: up(25, 80)}, *TO)
    assert last.status == 0 and waiting(nights) == []
    assert sendmail.raw[0] == kept.replace(b"\r\n", b"\n") and len(sendmail.mails) == 2
    assert last.changes == {(A, 25, "tcp"): "standing", (A, 80, "tcp"): "new"}
    assert night.record["told"]
    nights.audit({A: up(25, 80)}, *TO)
    assert len(sendmail.mails) == 3


# ---- Delivering --------------------------------------------------------------------------------

def test_M1_no_sendmail_and_no_smtp_server(nights, inside, fake):
    nights.whole, nights.run, nights.rules = nights.run, inside, NOWHERE
    night = nights.audit({A: up(25)}, *TO)
    check_kept(nights, night)
    check_sent_first(nights, night, fake)


@pytest.mark.parametrize("fault", ({"exit": 75}, {"unread": 75}, {"kill": 9}, {"exit": 1}))
def test_M2_sendmail_fails(nights, fake, fault):
    fake("sendmail", **fault)
    nights.whole = nights.run
    night = nights.audit({A: up(25)}, *TO)
    check_kept(nights, night)
    check_sent_first(nights, night, fake)


def test_M2_sendmail_hangs(nights, inside, fake, impatient):
    sendmail = fake("sendmail", hang=60)
    nights.whole, nights.run = nights.run, inside
    started = time.monotonic()
    night = nights.audit({A: up(25)}, *TO)
    assert time.monotonic() - started < 20
    check_kept(nights, night)
    assert sendmail.mails == []
    check_sent_first(nights, night, fake)


def test_M2_sendmail_leaves_a_child_that_holds_its_pipes(nights, inside, fake, impatient, tmp_path):
    """A daemon of its own making; the mail was taken."""
    fake("sendmail", text=f"#!/bin/sh\ncat > {tmp_path}/mail\nsleep 30 &\nexit 0\n")
    nights.run = inside
    started = time.monotonic()
    night = nights.audit({A: up(25)}, *TO)
    assert time.monotonic() - started < 20 and night.status in (0, 69)


BAD_TEXTS = ("a\nBcc: x@example.net", "a\rb", "a\x00b", "a\x1bb", "a\x85b", "a\u2028Bcc: x@example.net", "a\x0bb")


@pytest.mark.parametrize("option", ("--email-to", "--email-from", "--email-subject"))
@pytest.mark.parametrize("text", [text for text in BAD_TEXTS if "\0" not in text], ids=ascii)
def test_M5_control_characters_of_the_command_line(nights, fake, option, text):
    sendmail = fake("sendmail")
    result = nights.run("--config", nights.config, *TO, option, text)
    assert result.status == 64 and option in result.err and sendmail.calls == []
    assert len(result.err.splitlines()) == 1 and not nights.directory.exists()


@pytest.mark.parametrize("line", (
    b"EMAIL-SUBJECT a\x1bb", b"EMAIL-TO a\x07@example.net", b"FROM a b c", b"EMAIL-TO gr\xc3\xbcn@example.net",
    b"EMAIL-TO a@b@c", b"EMAIL-SUBJECT a\xe2\x80\xa8Bcc: x", b"EMAIL-TO"), ids=ascii)
def test_M5_the_line_of_the_rc_file(run, rc, tmp_path, line):
    result = run("--config", rc(b"IPS 10.0.0.1\n" + line + b"\n"), "--dir-name", tmp_path / "runs")
    assert result.status == 78 and "nmap-audit.rc:2:" in result.err and not (tmp_path / "runs").exists()


def test_M5_other_letters_are_encoded(nights, fake):
    sendmail = fake("sendmail")
    night = nights.audit({A: up(25)}, "--email-to", "Zoë Müller <root@example.net>", "--email-from",
                         "Prüfer <audit@example.net>", "--email-subject", "Prüfung ✓ " + "ü" * 200)
    mail, = sendmail.mails
    assert night.status == 0 and sendmail.raw[0].split(b"\n\n")[0].isascii()
    assert mail["Subject"] == "Prüfung ✓ " + "ü" * 200
    assert (mail["To"].addresses[0].display_name, mail["To"].addresses[0].addr_spec) == (
        "Zoë Müller", "root@example.net")
    assert mail["From"].addresses[0].display_name == "Prüfer"


def test_M6_a_report_of_50_megabytes(run, rc, fake, tmp_path):
    sendmail = fake("sendmail")
    folder, banner = tmp_path / "xml", "x" * 990
    folder.mkdir()
    with open(folder / "large.xml", "w") as file:
        file.write("<?xml version='1.0'?><!DOCTYPE nmaprun><nmaprun start='1'><host><status state='up'/>"
                   f"<address addr='{A}' addrtype='ipv4'/><ports>")
        for port in range(1, 50_001):
            file.write(f"<port protocol='tcp' portid='{port}'><state state='open'/>"
                       f"<service name='http' product='{port}{banner}'/></port>")
        file.write("</ports></host><runstats><finished exit='success'/></runstats></nmaprun>")
    result = run("--config", rc("EMAIL-TO root@example.net\n"), "--process-only", "--dir-name", folder,
                 prefix=("prlimit", "--as=1500000000"))
    assert (result.status, result.err) == (0, "")
    mail, = sendmail.mails
    table = list(mail.iter_attachments())[0].get_payload(decode=True)
    assert len(table) > 49e6 and table.count(b"\r\n") == 50_001
    assert len(mail.get_body().get_content()) < 5e6


KILLER = """#!/bin/sh
cat >> {folder}/kept.mail
[ -e {folder}/killed ] && exit 0
touch {folder}/killed
kill -9 $PPID
"""


def test_M7_killed_between_sending_and_noting_it(nights, fake, tmp_path):
    fake("sendmail", text=KILLER.format(folder=tmp_path))
    night = nights.audit({A: up(25)}, *TO)
    assert night.status == 137 and waiting(nights) == [f"{night.folder.name}.eml"]
    last = nights.audit({A: up(25)}, *TO)
    assert last.status == 0 and waiting(nights) == []
    first, again, second = re.findall(r"(?mi)^message-id: *(\S+)", (tmp_path / "kept.mail").read_text())
    assert first == again != second
    assert last.changes == {(A, 25, "tcp"): "standing"} and night.record["told"]


def test_M7_sendmail_says_no_after_it_took_the_mail(nights, fake):
    sendmail = fake("sendmail", late=75, once=1)
    assert nights.audit({A: up(25)}, *TO).status == 69
    assert nights.audit({A: up(25)}, *TO).status == 0
    first, again, second = (mail["Message-ID"] for mail in sendmail.mails)
    assert first == again != second


# ---- What strangers write ----------------------------------------------------------------------

FORMULAS = ("=cmd|' /C calc'!A0", "+1+1", "-2+3", "@SUM(1+1)*cmd|' /C calc'!A0", "\t=1+1", "\r=1+1", "  =1+1",
            "=HYPERLINK(\"http://example.net\")", "%0A=1+1", "|calc", "＝1+1", "'=1+1", "\n=1+1", "\"=1+1", ";=1+1")


@pytest.fixture
def formulas(nights):
    """A night with formulas for banners, services and names."""
    nights.ips = f"10.0.0.1-{len(FORMULAS)}"
    return nights.audit({f"10.0.0.{n}": up((25, "tcp", "open", text, text), names=[text], os=[[text, 99, "x", "y"]])
                         for n, text in enumerate(FORMULAS, 1)}, *TO)


@pytest.fixture
def sent(fake):
    return fake("sendmail")


def test_H1_no_cell_begins_like_a_formula(sent, formulas):
    assert len(formulas.rows) == len(FORMULAS)
    for row, text in zip(formulas.rows, FORMULAS):
        for name in ("Hostname", "OS", "Service", "Version"):
            cell = row[name]
            assert not re.match(r"\s*[=+\-@\t\r|%＝＋－＠]", cell), (name, cell)
            readable = cell.encode().decode("unicode_escape") if text.isascii() else cell
            assert text.strip() in readable, (name, cell)


def test_H1_libreoffice_shows_text(sent, formulas, tmp_path):
    """A real spreadsheet: no cell became a formula, or the result of one."""
    office = shutil.which("soffice")
    if not office:
        pytest.skip("soffice (Debian: libreoffice-calc) is not installed")
    done = subprocess.run(
        [office, f"-env:UserInstallation=file://{tmp_path}/office", "--headless", "--convert-to", "fods",
         "--outdir", tmp_path, formulas.folder / "scan_report.csv"], capture_output=True, text=True, timeout=110)
    sheet = tmp_path / "scan_report.fods"
    assert sheet.exists(), done.stderr
    text = sheet.read_text()
    assert text.count("<table:table-row") > len(FORMULAS) and "table:formula" not in text
    assert "SUM(1+1)" in text


NASTY = ("\x1b[31mred\x1b[0m", "bell\x07", "\u202egnp.exe", "nul\x00nul", "x" * 10_000, "\x9b31m", "a\u2028b",
         "line\nfeed", "\u200bzero\u200b", "\ufeffmark", "back\x08\x08space", "del\x7f", "\U000e0041tag",
         "combining" + "\u0301" * 500)


@pytest.mark.parametrize("detail", ("low", "high"))
def test_H3_nothing_moves_the_cursor(nights, fake, detail):
    sendmail = fake("sendmail")
    nights.ips = f"10.0.0.1-{len(NASTY)}"
    night = nights.audit({f"10.0.0.{n}": up((25, "tcp", "open", text, text), names=[text])
                          for n, text in enumerate(NASTY, 1)}, *TO, "--detail", detail)
    assert night.status == 0 and night.first.startswith(f"{len(NASTY)} of {len(NASTY)} hosts audited")
    bodies = {part.get_content_type(): part.get_content().replace("\r\n", "\n")
              for part in sendmail.mails[0].walk() if part.get_content_maintype() == "text"}
    again = nights.process("--detail", detail, folder=night.folder).out
    for text in (*bodies.values(), night.report, night.err, again):
        shown = text.removeprefix("\ufeff").replace("\n", "")
        assert not [char for char in shown if unicodedata.category(char)[0] == "C"]
    for text in (bodies["text/plain"], night.report, night.err, again):
        assert max(map(len, text.splitlines()), default=0) < 400
    table = (night.folder / "scan_report.csv").read_bytes().decode().removeprefix("\ufeff")
    assert not [char for char in table if unicodedata.category(char)[0] == "C" and char not in "\r\n"]
    assert len(list(csv.reader(io.StringIO(table, newline="")))) == len(NASTY) + 1


def test_H3_status_lines_and_errors(nights, fake):
    nights.fake("nmap", hosts={})
    config = nights.rc(f"IPS 10.0.0.1-3\nDIR-NAME {nights.directory}\n")
    nights.fake("nmap", hosts={A: up(names=["\x1b[2Jname"]), B: up(names=["n" * 10_000]),
                               C: up(fault={"exit": 1, "stderr": "\x1b[2J\x07bad " + "z" * 100_000})})
    result = nights.run("--config", config)
    assert result.status == 2
    for text in (result.out, result.err):
        assert not [char for char in text if unicodedata.category(char)[0] == "C" and char != "\n"]
        assert max(map(len, text.splitlines())) < 500


def test_H4_a_forged_name_works_as_the_rule_says_and_the_manual_warns(nights):
    nights.rules = "group mail\n hostname mail*\n ignore 25 tcp open *\nend group mail"
    night = nights.audit({A: up(25, names=["mail.attacker.example"]), B: up(25, names=["web.example.net"])})
    assert night.changes == {(B, 25, "tcp"): "first look"}
    manual = (ROOT / "man" / "nmap-audit.rc.5").read_text()
    assert re.search(r"forge", manual, re.IGNORECASE)


def test_H5_a_name_is_never_part_of_a_path(nights, tmp_path):
    names = ["../../../../../../tmp/evil", "/etc/passwd", "a/b/c", "..", "new\nline", "%H", "$(id)", "x" * 500]
    before = set(tmp_path.iterdir())
    nights.ips = f"10.0.0.1-{len(names)}"
    night = nights.audit({f"10.0.0.{n}": up(25, names=[name]) for n, name in enumerate(names, 1)})
    assert night.status == 0 and len(night.rows) == len(names)
    expected = {"run.json", "targets.xml", "report.txt", "scan_report.csv"} \
        | {f"10.0.0.{n}.xml" for n in range(1, len(names) + 1)}
    assert {path.name for path in night.folder.iterdir()} - {"report.html"} == expected
    assert {path.name for path in set(tmp_path.iterdir()) - before} <= {
        "runs", "nmap-audit.rc", "fake-nmap.json", "fake-nmap.json.log"}
    assert sorted(path.name for path in nights.directory.iterdir()) == [night.folder.name, "lock"]
    assert not os.path.exists("/tmp/evil")


def test_H6_a_forced_time_out_stands_first(nights):
    nights.audit({A: up(25), B: up(), C: up()})
    night = nights.audit({A: up(fault={"exit": 1}), B: up(fault={"cut": -60}), C: up(25, fault={"timedout": True}),
                          "10.0.0.4": up()})
    assert night.status == 2 and night.first.endswith("0 gone")
    titles = [title for title in night.tables if title.startswith("Not audited")]
    assert len(titles) == 3 and "timed out" in titles[0]
    assert night.tables[titles[0]] == [C]
    assert tables(nights.process("--detail", "none").out)[titles[0]] == [C]


@pytest.mark.parametrize("pattern", ("*a*a*a*a*a*b", "*" * 50 + "b", "*a" * 30 + "b", "a*" * 30 + "b"))
@pytest.mark.parametrize("text", ("a" * 100_000, "ab" * 50_000 + "c", "a" * 50_000 + "c" * 50_000),
                         ids=("a", "abc", "ac"))
def test_H7_wildcards_take_time_linear_in_the_text(pattern, text):
    started = time.process_time()
    assert not nmap_audit.like(pattern, text)
    assert time.process_time() - started < 2


def test_H7_a_whole_audit_with_such_a_name(nights):
    nights.rules = "group a\n hostname *a*a*a*a*a*b\n ignore * * * *a*a*a*a*a*b\nend group a"
    started = time.monotonic()
    night = nights.audit({A: up((25, "tcp", "open", "a" * 100_000), names=["a" * 100_000])})
    assert len(night.rows) == 1 and time.monotonic() - started < 10


@pytest.mark.parametrize("before, after", (
    pytest.param({"names": ["mail.example.net"]}, {"names": ["web.example.net"]}, id="name"),
    pytest.param({"names": ["mail.example.net"]}, {}, id="no name"),
    pytest.param({"os": [["Windows", 99, "", ""]]}, {"os": [["Linux 5.4", 99, "", ""]]}, id="OS guess")))
def test_H8_a_host_that_changes_its_group(nights, before, after):
    nights.rules = ("group mail\n hostname mail*\n ignore 25 tcp open *\nend group mail\n"
                    "group web\n hostname web*\n ignore 80 tcp open *\nend group web\n"
                    "group linux\n os Linux\n ignore 22 tcp open *\nend group linux\nTELL always")
    nights.audit({A: up(443, **before), B: up()})
    night = nights.audit({A: up(443, **after), B: up()})
    title, = (title for title in night.tables if "group" in title)
    assert [row.split()[0] for row in night.tables[title]] == [A]
    assert not any("group" in title for title in nights.audit({A: up(443, **after), B: up()}).tables)


def test_H1_an_apostrophe_is_all_that_is_added(sent, nights):
    """Plain text stays as it is."""
    night = nights.audit({A: up((25, "tcp", "open", "smtp", "Postfix (x) a-b=c+d@e"))})
    assert read_csv((night.folder / "scan_report.csv").read_bytes().decode())[0]["Version"] == "Postfix (x) a-b=c+d@e"


def test_H2_html_is_escaped(nights):
    night = nights.audit({A: up((25, "tcp", "open", "smtp", "<script>\"onload=&"))})
    assert "<script>" not in (night.folder / "report.html").read_text()


def test_H8_a_host_that_moves_into_an_accepted_group_is_told_at_once(nights):
    """A forged name can hide findings: that it changed the group is told even when nothing else is."""
    nights.rules = ("group mail\n hostname mail*\n ignore 25 tcp open *\nend group mail\n"
                    "group web\n hostname web*\n ignore * tcp open *\nend group web")
    nights.audit({A: up(25, names=["mail.example.net"])})
    night = nights.audit({A: up(25, names=["web.example.net"])})
    assert any("changed group" in title for title in night.tables) and "changed group" in night.out
