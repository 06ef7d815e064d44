"""What settings, targets, tags and rules mean, once they are read."""
import json
import re
from pathlib import Path

import pytest

import nmap_audit
from nights import sorted_out
from nmap_audit import HostResult, Port, Run

PORT = Port(25, "tcp", "open", "smtp")


def config(text, *argv):
    lines = list(nmap_audit.parse_options(list(argv)))
    return nmap_audit.read_config(nmap_audit.parse_rc(text, "nmap-audit.rc"), lines, text)


def refusal(text, *argv):
    with pytest.raises(nmap_audit.AuditError) as caught:
        config(text, *argv)
    return caught.value


def found(text, host):
    """The changes of a first audit of one host, after the rules of an rc text."""
    run = Run(Path("20261124-020000"), {host.address: host}, {})
    groups = config(text).groups
    return sorted_out(nmap_audit.find(run, {}, groups))


def member(tag, host):
    """Whether a group of one tag holds a host: then its one rule hides the host's one port."""
    return not found(f"group a\n{tag}\nignore * * * *\nend group", host).findings


def host(address="192.0.2.7", names=(), os=(), ports=(PORT,), outcome="audited"):
    return HostResult(address, outcome, names=tuple(names), os=tuple(os), ports=tuple(ports),
                      looked="1-100/tcp")


# ---- Settings -----------------------------------------------------------------------------------

def test_defaults():
    found = config("")
    assert (found.nmap, found.max_threads, found.detail, found.tell) == (("nmap", "-F"), 10, "low", "changes")
    assert (found.ips, found.email_to, found.email_from, found.email_subject, found.dir_name) == ((), (), (), "", ())
    assert (found.sendmail, found.smtp_server, found.smtp_tls) == ("", "", "none")
    assert (found.resume, found.groups) == (None, ())
    assert not any((found.quiet, found.scan_only, found.process_only, found.no_human, found.no_csv,
                    found.no_csv_headings))


@pytest.mark.parametrize("root, env, folder", [
    (True, {}, "/var/lib/nmap-audit"), (False, {"XDG_STATE_HOME": "/state"}, "/state/nmap-audit"),
    (False, {"HOME": "/home/me"}, "/home/me/.local/state/nmap-audit"),
    (False, {"HOME": "/home/me", "XDG_STATE_HOME": ""}, "/home/me/.local/state/nmap-audit")])
def test_default_folder(monkeypatch, root, env, folder):
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("os.geteuid", lambda: 0 if root else 1000)
    assert config("").folders == (Path(folder),)


@pytest.mark.parametrize("text, argv, name, value", [
    ("IPS 192.0.2.1\nIPS 192.0.2.2", ["--ips", "192.0.2.3"], "ips", ("192.0.2.3",)),
    ("EMAIL-TO a@example.net", ["--email-to", "b@example.net"], "email_to", ("b@example.net",)),
    ("FROM a@example.net", ["--email-from", "b@example.net"], "email_from", ("b@example.net",)),
    ("SUBJECT a", ["--email-subject", "b"], "email_subject", "b"),
    ("NMAP nmap -O", ["--nmap", "nmap -sV"], "nmap", ("nmap", "-sV")),
    ("DETAIL high", ["--detail", "none"], "detail", "none"),
    ("MAX-THREADS 3", ["--max-threads", "4"], "max_threads", 4),
    ("DIR-NAME /a,/b", ["--dir-name", "/c"], "dir_name", ("/c",)),
    ("QUIET no", ["--quiet"], "quiet", True),
    ("NO-CSV", ["--csv"], "no_csv", False),
    ("NO-HUMAN", ["--human"], "no_human", False),
    ("NO-CSV-HEADINGS", ["--csv-headings"], "no_csv_headings", False),
    ("TELL always", ["--tell", "errors"], "tell", "errors"),
])
def test_the_command_line_wins(text, argv, name, value):
    assert getattr(config(text, *argv), name) == value
    assert getattr(config(text), name) != value


def test_the_places_of_targets():
    text = "\n  IPS 192.0.2.1\nips = 192.0.2.2"
    assert config(text).place("IPS") == "nmap-audit.rc:2:7, nmap-audit.rc:3:7"
    assert config(text, "--ips", "192.0.2.3").place("IPS") == "--ips"


def test_a_mistake_of_the_command_line_is_told_first():
    error = refusal("DETAIL hihg", "--detail", "everything")
    assert error.status == 64
    assert [line.split(" ")[0] for line in str(error).split("\n")] == ["--detail:", "nmap-audit.rc:1:8:"]
    assert refusal("DETAIL hihg", "--detail", "low").status == 78


@pytest.mark.parametrize("text, argv, status, place", [
    ("SCAN-ONLY\nPROCESS-ONLY", [], 78, "nmap-audit.rc:2:1: "),
    (" PROCESS-ONLY\nSCAN-ONLY on", [], 78, "nmap-audit.rc:1:2: "),
    ("PROCESS-ONLY", ["--process-only", "--resume"], 64, "--process-only: "),
    ("", ["--process-only", "--scan-only"], 64, "--process-only: ")])
def test_two_halves_are_none(text, argv, status, place):
    error = refusal(text, *argv)
    assert error.status == status and str(error).startswith(place) and "; take one of them out" in str(error)


@pytest.mark.parametrize("text, argv, halves", [
    ("SCAN-ONLY", ["--process-only"], (False, True)), ("PROCESS-ONLY", ["--scan-only"], (True, False)),
    ("PROCESS-ONLY", ["--resume"], (False, False)), ("SCAN-ONLY", ["--resume"], (True, False)),
    ("SCAN-ONLY\nPROCESS-ONLY no", [], (True, False))])
def test_the_half_of_the_command_line_wins(text, argv, halves):
    found = config(text, *argv)
    assert (found.scan_only, found.process_only) == halves


@pytest.mark.parametrize("name", [
    option.name for option in nmap_audit.OPTIONS.values() if option.variable and option.metavar])
def test_a_value_is_never_missing_in_silence(name):
    assert refusal(name).status == 78
    assert refusal(f'{name} ""').status == 78
    assert refusal(f"{name} # none").status == 78


@pytest.mark.parametrize("text, value", [
    ("", True), ("yes", True), ("On", True), ("1", True), ("no", False), ("OFF", False), ("0", False)])
@pytest.mark.parametrize("name", ["QUIET", "SCAN-ONLY", "PROCESS-ONLY", "NO-HUMAN", "NO-CSV", "NO-CSV-HEADINGS"])
def test_switches(name, text, value):
    assert getattr(config(f"{name} {text}"), name.lower().replace("-", "_")) is value


@pytest.mark.parametrize("text, people", [
    ("root", ("root",)), ("root@example.net", ("root@example.net",)), ("a@b,c@d", ("a@b", "c@d")),
    ("a@b , c@d", ("a@b", "c@d")), ("Ann <a@b>", ("Ann <a@b>",)), ("Änne <a@b>", ("Änne <a@b>",)),
    ("J. Doe <a@b>", ("J. Doe <a@b>",)), ("Doe (IT) <a@b>", ("Doe (IT) <a@b>",)),
    ("a@[127.0.0.1]", ("a@[127.0.0.1]",)), ("root@host (Net Audit)", ("root@host (Net Audit)",)),
    ('a@b, "B .x" <c@d>', ("a@b", '"B .x" <c@d>')), ('"A (B). C" <a@b>', ('"A (B). C" <a@b>',)),
    ('"Doe, J" <a@b>, c@d', ('"Doe, J" <a@b>', "c@d"))])
def test_mail_addresses(text, people):
    assert config(f"EMAIL-TO {text}").email_to == people


@pytest.mark.parametrize("text", [
    "a@b@c", "a b@c", "root example.net", "not an address", "@", ",", "a@b,,c@d", "<>", "a@b\x0bBcc: c@d", "a@b; c@d",
    "Ann a@b", "ä@b", "a@b c@d", "Ann <ä@b>", "Ann <a@ä.net>", "Ann <a(b@c>",
    # which the library that writes mails cannot read
    "root@[127.0.0.1", "ops@example.net, : <root@example.net>", ". <a@b>", "Ops: day <a@b>, Ops; night <c@d>",
    "J.<a@b>", "a@b:25", "(). <a@b>"])
def test_no_mail_addresses(text):
    assert refusal(f"EMAIL-TO {text}").status == 78


ODD = [("NMAP", ","), ("NMAP", " , "), ("DIR-NAME", "''"), ("EMAIL-TO", "''"), ("EMAIL-FROM", "''")]  # but values


@pytest.mark.parametrize("name, value", [
    (name, value) for name in ("DIR-NAME", "EMAIL-TO", "IPS", "EMAIL-FROM", "NMAP")
    for value in (",", " , ", '" "', "''") if (name, value) not in ODD])
def test_values_of_nothing(name, value):
    """They must not pass for no value at all: the audit would go somewhere else."""
    assert refusal(f"{name} {value}").status == 78
    option = f"--{name.lower()}"
    assert refusal("", f"{option}={value.strip(chr(34))}").status == 64


# ---- Targets ------------------------------------------------------------------------------------

@pytest.mark.parametrize("target, count", [
    ("192.0.2.1", 1), ("192.0.2.0/24", 256), ("192.0.2.0/32", 1), ("192.0.2.0/31", 2), ("0.0.0.0/0", 1 << 32),
    ("192.0.2.1-20", 20), ("192.0.2.1,7-8", 3), ("192.0.2,7.*", 512), ("192.0.2.*", 256), ("192.0.2.-", 256),
    ("192.0.2.250-", 6), ("192.0.2.-5", 6), ("*.*.*.*", 1 << 32), ("192.0.2.1,1,1-2", 2), ("10.0.0-1.0/31", 4),
    ("www", 1), ("www.example.net", 1), ("www.example.net.", 1), ("www.example.net/24", 256), ("3com.net", 1),
    ("1e4", 1), ("a-b.c_d", 1), ("::", 1), ("2001:db8::1", 1), ("2001:db8::/112", 65536), ("::/0", 1 << 128),
    ("fe80::1%eth0", 1), ("::ffff:192.0.2.1", 1)])
def test_count_of_addresses(target, count):
    assert nmap_audit.count_addresses(target) == count
    assert config(f"IPS {target}").ips == (target,)


@pytest.mark.parametrize("target", [
    "10.0.0.0/33", "10.0.0.300", "10.0.0.5-2", "010.0.0.1", "1234", "10.0.0.256", "10.0.0", "10.0.0.0.0", "10.0.0.0/",
    "10.0.0.0/-1", "10.0.0.0/+8", "10.0.0.0/08", "10.0.0.0/24/24", "10.0.0.0/255.255.255.0", "10.0.0.1-2-3", "10.0.0.",
    ".0.0.1", "10..0.1", "10.0.0.1,", "10.0.0.,1", "10.0.0.01", "10.0.0.0-08", "10.0.0.1-300", "10.0.0.**", "1", "0",
    "4294967295", "0x7f000001", "0x7f.0.0.1", "127.1", "2001:db8::/129", "2001:db8:::1", "2001:db8::zz", ":", "::1::",
    "2001:db8::1-5", "2001:db8::*", "", " ", "-evil", "-iL", "--", "a b", "a;b", "$(a)", "`a`", "a|b", "a\nb", "a\0b",
    "%H", "*", "www.*.net", "[::1]", "http://www.example.net/", "a@b", "münchen", "１.2.3.4", "192.0.2.1‐9",
    "999.0.0.1", "1.2.3.4-1.2.3.9"])
def test_no_target(target):
    with pytest.raises(ValueError):
        nmap_audit.count_addresses(target)
    if target.strip() and "\n" not in target:
        assert refusal(f"IPS {target}").status == 78
    if target:
        assert refusal("", f"--ips={target}").status == 64


@pytest.mark.parametrize("text, targets", [
    ("10.0.0.1,10.0.0.2", ["10.0.0.1", "10.0.0.2"]),
    ("10.0.0.1,7-8", ["10.0.0.1,7-8"]),
    ("10.0.0.1 , 10.0.0.2", ["10.0.0.1", "10.0.0.2"]),
    ("10.0.0.1,2,10.0.0.3", ["10.0.0.1,2", "10.0.0.3"]),
    ("10.0.0.1,2,3,10.0.0.4,5", ["10.0.0.1,2,3", "10.0.0.4,5"]),
    ("10.0.0.0/24,10.1.0.0/24", ["10.0.0.0/24", "10.1.0.0/24"]),
    ("10.0.0.1,2/31,www", ["10.0.0.1,2/31", "www"]),
    ("10.0,1.0.1,2", ["10.0,1.0.1,2"]),
    ("www,mail.example.net", ["www", "mail.example.net"]),
    ("2001:db8::1,2001:db8::2,10.0.0.1", ["2001:db8::1", "2001:db8::2", "10.0.0.1"]),
    ("www,10.0.0.1,3", ["www", "10.0.0.1,3"])])
def test_commas_between_targets(text, targets):
    assert config(f"IPS {text}").ips == config("", "--ips", text).ips == tuple(targets)


@pytest.mark.parametrize("text, sets", [
    ("192.0.2.1", [{192}, {0}, {2}, {1}]), ("1-3.*.4,6-7.-2", [{1, 2, 3}, set(range(256)), {4, 6, 7}, {0, 1, 2}])])
def test_octets(text, sets):
    assert list(map(set, nmap_audit.octets(text))) == sets


# ---- NMAP ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("words", [
    "-oX f", "-oX=f", "-oXf", "--oX f", "--oX=f", "-oN f", "--oN f", "-oG f", "-oS f", "-oM f", "-oA f", "-oA=f",
    "--oA f", "-oH f", "-oJ f", "-o f", "-of", "--o f", "-oX -", "-F -oX f -n", "-iL f", "-iL=f", "-iLf", "--iL f",
    "--iL=f", "-iR 10", "-iR=10", "-iR10", "--iR 10", "-i f", "--append-output", "--append_output", "-append-output",
    "--append", "--app", "--ap", "-ap", "--resume f", "--resume=f", "-resume f", "--resu f", "--stylesheet f",
    "--stylesheet=f", "-stylesheet f", "--styl f", "--sty f", "-sty f", "'-oX' f", "-\"oX\" f", "-o\\X f", "--", "-"])
def test_nmap_words_that_cannot_stand(words):
    error = refusal(f"NMAP nmap {words}")
    assert error.status == 78 and re.match(r"nmap-audit\.rc:1:6: '.*' cannot be NMAP: '-.*' is left to", str(error))
    assert refusal("", "--nmap", f"nmap {words}").status == 64
    assert refusal(f"NMAP ssh -v probe sudo /usr/bin/nmap -sS {words}").status == 78


@pytest.mark.parametrize("words", ["-Ao f", "-4o f", "-6of", "-Ani f", "-fo f", "-Fi f", "-Anif", "-nRo f"])
def test_nmap_short_options_in_one_word(words):
    """getopt reads `-Ao f` as `-A -o f`."""
    assert refusal(f"NMAP nmap {words}").status == 78


@pytest.mark.parametrize("words", [
    "--open", "-open", "--ope", "--op", "--osscan-guess", "--osscan_guess", "-osscan-guess", "--osscan-limit", "-O",
    "-O1", "-sO", "-PO", "-F", "-n", "-Pn", "-P0", "-PN", "-sP", "-A", "-T4", "-sS -sU", "-p 1-100", "-p-",
    "-p T:1,U:2",
    "--reason", "--version-intensity 9", "-sV --allports", "--script default,safe", "--script-args a.o=1,b=2",
    "-e eth0",
    "--exclude 10.0.0.1", "--excludefile /etc/no", "--dns-servers 192.0.2.53", "--host-timeout 15m", "-f", "-6", "-vv",
    "-d", "--privileged", "--stats-every 1s", "-sI zombie", "--ip-options R", "-D RND:10", "-S 192.0.2.1", "-sn",
    "--min-rate 100", "--traceroute", "-einfo0", "-host-timeout 15m", "-initial-rtt-timeout 100ms", "--adler32",
    "--resolve-all", "--disable-arp-ping", "--discovery-ignore-rst", "--noninteractive", "--no-stylesheet"])
def test_nmap_words_that_may_stand(words):
    assert config(f"NMAP nmap {words}").nmap == ("nmap", *words.split())


@pytest.mark.parametrize("text, words", [
    ("nmap -sV '--script=a b'", ["nmap", "-sV", "--script=a b"]), ('nmap "a # b" # c', ["nmap", "a # b"]),
    ("/opt/nmap/bin/nmap -F", ["/opt/nmap/bin/nmap", "-F"]),
    ("ssh -o BatchMode=yes probe nmap -sS", ["ssh", "-o", "BatchMode=yes", "probe", "nmap", "-sS"]),
    ("srun --output=/dev/null -i none nmap -F", ["srun", "--output=/dev/null", "-i", "none", "nmap", "-F"]),
    ("nmap $(reboot) ; `x` | y > z & *", ["nmap", "$(reboot)", ";", "`x`", "|", "y", ">", "z", "&", "*"])])
def test_nmap_is_split_as_a_shell_would(text, words):
    assert list(config(f"NMAP {text}").nmap) == words


# ---- Tags ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("tag, address, inside", [
    ("192.0.2.7", "192.0.2.7", True), ("192.0.2.7", "192.0.2.70", False),
    ("192.0.2.0/29", "192.0.2.7", True), ("192.0.2.0/29", "192.0.2.8", False), ("192.0.2.5/29", "192.0.2.1", True),
    ("192.0.2.0/255.255.255.248", "192.0.2.7", True), ("0.0.0.0/0", "203.0.113.9", True),
    ("0.0.0.0/0", "2001:db8::1", False),
    ("192.0.2.5-9", "192.0.2.5", True), ("192.0.2.5-9", "192.0.2.9", True), ("192.0.2.5-9", "192.0.2.10", False),
    ("192.0.2.250-192.0.3.5", "192.0.3.0", True), ("192.0.2.250-192.0.3.5", "192.0.3.6", False),
    ("192.0.2.250-192.0.3.5", "192.0.2.249", False),
    ("192.0.2-3,5.1,7-8", "192.0.5.8", True), ("192.0.2-3,5.1,7-8", "192.0.4.8", False),
    ("192.*.2.*", "192.9.2.8", True), ("192.*.2.*", "192.9.3.8", False),
    ("*", "192.0.2.7", True), ("*", "2001:db8::1", True), ("*.*.*.*", "2001:db8::1", False),
    ("2001:db8::1", "2001:db8::1", True), ("2001:DB8:0:0::1", "2001:db8::1", True),
    ("2001:db8::1", "2001:db8::2", False),
    ("2001:db8::/64", "2001:db8::ffff:1", True), ("2001:db8::/64", "2001:db8:1::1", False),
    ("2001:db8::1", "192.0.2.7", False), ("::/0", "192.0.2.7", False), ("fe80::1", "fe80::1%eth0", True),
    ("::ffff:192.0.2.7", "192.0.2.7", False)])
def test_ip_tags(tag, address, inside):
    assert member(f"ip {tag}", host(address)) is inside


@pytest.mark.parametrize("tag, name, inside", [
    ("www.example.net", "www.example.net", True), ("WWW.Example.net", "www.EXAMPLE.net", True),
    ("www.example.net", "www.example.net.evil", False), ("www", "www.example.net", True), ("www", "www", True),
    ("www", "www2.example.net", False), ("ww", "www.example.net", False), ("example", "www.example.net", False),
    ("www*", "www2.example.net", True), ("w*", "web.example.net", True), ("*.example.net", "a.b.example.net", True),
    ("*.example.net", "example.net", False), ("*", "anything", True), ("mail*.net", "mail1.example.net", True),
    ("mail?", "mail1", False), ("[a-z]", "a", False), ("mail.example.net.", "mail.example.net", True),
    ("mail-*-1", "mail-x-1.example.net", True), ("mail.", "mail.example.net", True)])
def test_hostname_tags(tag, name, inside):
    assert member(f"hostname {tag}", host(names=[name])) is inside
    assert member(f"hostname {tag}", host(names=["other.invalid", name])) is (inside or tag == "*")


def test_a_host_without_a_name_or_an_os_has_none_that_matches():
    assert not member("hostname *", host())
    assert not member("os *", host())


@pytest.mark.parametrize("tag, guess, inside", [
    ("Linux", "Linux 5.4", True), ("linux", "Linux 5.4", True), ("5.4", "Linux 5.4", True),
    ("Lin*4", "Linux 5.4", True),
    ("Windows Server", "Microsoft Windows  Server 2019", False), ("Windows  Server", "Microsoft Windows Server", True),
    ("Windows*2019", "Microsoft Windows Server 2019", True), ("Solaris", "Linux 5.4", False), ("*", "Linux", True),
    ("Linux?5", "Linux 5", False), ("2.6.[0-9]", "Linux 2.6.1", False), ("2.6.1", "Linux 2x6.1", False)])
def test_os_tags(tag, guess, inside):
    assert member(f"os {tag}", host(os=[guess])) is inside
    assert member(f"os {tag}", host(os=["Acme Thing", guess])) is (inside or tag == "*")


def test_any_tag_of_a_group_is_enough():
    for tags, inside in (("ip 192.0.2.1\nip 192.0.2.7", True), ("ip 192.0.2.7\nip 192.0.2.1", True),
                         ("ip 192.0.2.1\nip 192.0.2.2", False)):
        assert member(tags, host("192.0.2.7")) is inside


# ---- Rules --------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule, port, hidden", [
    ("25 tcp open smtp", PORT, True), ("25 TCP Open SMTP", PORT, True), ("* * * *", PORT, True),
    ("25 * * *", PORT, True), ("* tcp * *", PORT, True), ("* * open *", PORT, True), ("* * * smtp", PORT, True),
    ("26 tcp open smtp", PORT, False), ("25 udp open smtp", PORT, False), ("25 tcp filtered smtp", PORT, False),
    ("25 tcp open http", PORT, False), ("25 tcp open smt", PORT, False), ("25 tcp open s*", PORT, True),
    ("2* tcp open *", PORT, True), ("*5 tcp open *", PORT, True), ("2*5 tcp open *", PORT, True),
    ("5* tcp open *", PORT, False), ("20-30 tcp open *", PORT, True), ("25-25 tcp open *", PORT, True),
    ("26-30 tcp open *", PORT, False), ("20-24 tcp open *", PORT, False),
    ("13* tcp open *", Port(13, "tcp", "open"), True), ("13* tcp open *", Port(1390, "tcp", "open"), True),
    ("25 tcp open *", Port(25, "tcp", "open"), True), ("25 tcp open smtp", Port(25, "tcp", "open"), False),
    ("25 tcp open s*", Port(25, "tcp", "open"), False), ("25 tcp open SMTP", Port(25, "tcp", "open", "SMTP"), True),
    ("53 udp open *", Port(53, "udp", "open|filtered"), False),
    ("53 udp open|filtered *", Port(53, "udp", "open|filtered"), True),
    ("53 udp open|filtered *", Port(53, "udp", "open"), False), ("* ip * *", Port(47, "ip", "open"), True),
    ("* * unfiltered *", Port(47, "tcp", "unfiltered"), True),
    ("80 tcp open http?", Port(80, "tcp", "open", "httpx"), False)])
@pytest.mark.parametrize("word", ["ignore", "expect"])
def test_rules(word, rule, port, hidden):
    changes = found(f"group a\nip *\n{word} {rule}\nend group", host(ports=[port]))
    assert [each.port._replace(first_seen="") for each in changes.ignored] == [port] * hidden
    assert [each.port._replace(first_seen="") for each in changes.findings
            if each.change != "missing"] == [port] * (not hidden)


def test_expected_and_missing():
    text = "group a\nip *\nexpect 22 tcp open ssh\nexpect 25 tcp open smtp\nend group"
    missing, = found(text, host()).findings
    assert (missing.change, missing.port.number, missing.rules[0].where.line) == ("missing", 22, 3)
    assert not found(text, host(ports=(), outcome="failed")).findings
    assert not found(text.replace("22", "22*").replace("25 tcp", "22 tcp"),
                     host(ports=[Port(22, "tcp", "open", "ssh"), Port(22, "tcp", "open", "smtp")])).findings


@pytest.mark.parametrize("service", ["expect", "ignore", "port", "until"])
def test_a_service_may_be_called_like_a_word_of_rules(service):
    """It was taken for a rule of that word, so that what only may be there was missing."""
    text = f"group a\nip *\nignore 24 tcp open {service}\nignore 25 tcp open smtp\nend group"
    assert not found(text, host()).findings
    odd = Port(24, "tcp", "open", service)
    assert [each.change for each in found(text.replace("24 tcp", "23 tcp"), host(ports=[odd])).findings
            if each.port.number == 24] == ["first look"]


def test_a_rule_of_any_group_is_enough():
    one = "group one\nip 192.0.2.7\nignore 80 tcp open http\nend group\n"
    two = "group two\nhostname www\nignore 25 tcp open smtp\nend group\n"
    for text in (one + two, two + one):
        assert not found(text, host(names=["www"])).findings
        assert found(text, host(names=["mail"])).findings


def test_config_is_plain_enough_for_a_record():
    text = "IPS 192.0.2.1\nNMAP nmap -sS"
    assert config(text).rc_text == text
    assert json.loads(json.dumps([config(text).ips, config(text).nmap])) == [["192.0.2.1"], ["nmap", "-sS"]]


# ---- Targets belong to IPS ----------------------------------------------------------------------

@pytest.mark.parametrize("nmap", ["nmap 192.0.2.1", "nmap -F 192.0.2.0/24", "nmap -F 10.0-3.*.1-9",
                                  "sudo nmap 192.0.2.1", "ssh 192.0.2.9 sudo nmap -F 192.0.2.1"])
def test_a_target_in_nmap_is_refused(nmap):
    assert re.search(r"'[\d.*/-]+' is left to .*, targets belong to IPS", str(refusal(f"NMAP {nmap}")))


@pytest.mark.parametrize("nmap", [
    "nmap -D 192.0.2.1,192.0.2.2 -F", "nmap -S 192.0.2.9 -e eth0", "nmap --exclude 192.0.2.1", "ssh 192.0.2.9 nmap -F",
    "nmap --dns-servers 192.0.2.53 -F", "nmap -sI 192.0.2.7 -F", "nmap --exclude=192.0.2.1", "nmap -p 1,2-3 -F"])
def test_an_address_that_an_option_takes_is_fine(nmap):
    assert config(f"NMAP {nmap}").nmap == tuple(nmap.split())


def test_half_a_range_of_ipv6_is_none():
    with pytest.raises(nmap_audit.AuditError):
        config("group a\nip 2001:db8::1-\nignore * * * *\nend group")


def test_a_long_target_takes_no_time():
    """Twice as many colons, not four times as long: this one took minutes."""
    assert refusal("IPS " + ":" * 200_000 + " x").status == 78
