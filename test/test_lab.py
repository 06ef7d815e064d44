"""The real world: real nmap, a real Postfix, cron's environment, a network of namespaces, IPv6.

The first section holds the fakes of test/bin against the real nmap, so that the other tests may
believe them.
"""
import csv
import datetime
import email.utils
import io
import json
import os
import re
import signal
import subprocess
import time
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import pytest

import labtools

BIN = Path(__file__).parent / "bin"
PORTS = "2121,3128,8080,8081,10000"         # nmap has a name for each
COLUMNS = ("IP", "Hostname", "OS", "Port", "Protocol", "State", "Service", "Version", "Change",
           "First Seen")


# ---- The fakes ---------------------------------------------------------------------------------

def shape(text):
    """{path of an element: the attributes that it always has}, but for what only nmap knows."""
    found = {}

    def walk(element, path):
        path = f"{path}/{element.tag}"
        found[path] = found.get(path, set(element.attrib)) & set(element.attrib)
        for child in element:
            if child.tag not in ("hosthint", "distance", "cpe", "osclass"):
                walk(child, path)
    walk(ET.fromstring(text), "")
    return found


def accounts(text):
    """(listed and counted, looked at) ports of each host."""
    root = ET.fromstring(text)
    looked = sum(int(info.get("numservices")) for info in root.iter("scaninfo"))
    return [(len(host.findall("ports/port"))
             + sum(int(extra.get("count")) for extra in host.findall("ports/extraports")), looked)
            for host in root.iter("host")]


def scan(fake, *words, **options):
    return subprocess.run([fake.program, *words], capture_output=True, timeout=20, **options)


def world(**fault):
    """A host with 60 closed ports that has the fault, one that has none."""
    hosts = {"10.0.0.1": {"ports": [[25, "tcp", "open", "smtp", "Postfix smtpd"]], "fault": fault},
             "10.0.0.2": {"names": ["b.example.net"], "ports": [[22]]}}
    return {"scanned": "1-60", "hosts": hosts}


def test_fake_lists_targets_as_nmap_does(fake, real_nmap):
    faked = fake("nmap", resolve={"web1": "10.0.0.9"})
    words = ("-sL", "-n", "--exclude", "10.0.0.2", "-oX", "-", "--", "10.0.0.1-3", "localhost",
             "10.1,2.3.4/31", "10.0.0.300", "::1", "10.0.0.0/33", "127.0.0.1,7-8")
    real = subprocess.run(["nmap", *words], executable=real_nmap, capture_output=True, timeout=20)
    mine = scan(faked, *words)
    times = re.compile(rb'\d{10}|[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d [\d:]{8} \d{4}|\d\.\d\d')
    assert times.sub(b"", mine.stdout) == times.sub(b"", real.stdout)
    assert set(mine.stderr.splitlines()) | {b'Illegal netmask in "10.0.0.0/33". Assuming /32 '
                                            b'(one host)'} == set(real.stderr.splitlines())
    assert mine.returncode == real.returncode == 0
    assert faked.lists == [[str(faked.program), *words]] and faked.scans == []


def test_fake_scan_is_shaped_as_nmaps(fake, listen, real_nmap):
    address = labtools.loopback(1)
    listen(address, 8080, banner=b"220 lab.example ESMTP Postfix\r\n")
    words = ("-sT", "-p1-60,8080", "-oX", "-", "--", address)
    real = subprocess.run([real_nmap, "-n", "-sV", *words], capture_output=True, timeout=60)
    faked = fake("nmap", hosts={address: {"names": ["a.example.net"], "ports": [
        [8080, "tcp", "open", "smtp", {"product": "Postfix smtpd", "hostname": "lab.example"}]]}})
    mine = scan(faked, *words)
    wanted, got = shape(real.stdout), shape(mine.stdout)
    del got["/nmaprun/host/hostnames/hostname"]
    got.pop("/nmaprun/host/ports/port/service/cpe", None)
    assert got == wanted
    assert accounts(mine.stdout) == accounts(real.stdout) == [(61, 61)]


def test_fake_marks_what_nmap_marks(fake):
    faked = fake("nmap", scanned={"tcp": "1-10", "udp": "53"}, hosts={
        "10.0.0.1": {"names": ["<i>&--'"], "os": [["Linux 5.4", 98, "Linux", "Linux"]],
                     "mac": "02:00:00:00:00:01", "ports": [[7], [9, "tcp", "filtered", "discard"],
                                                           [53, "udp", "open|filtered"], [99]]},
        "10.0.0.2": {"rest": "filtered"}})
    words = ("-v", "-oX", "-", "--", "10.0.0.1-3")
    root = ET.fromstring(scan(faked, *words).stdout)
    assert accounts(scan(faked, "-oX", "-", "--", "10.0.0.1-3").stdout) == [(11, 11), (11, 11)]
    assert [host.find("status").get("state") for host in root.iter("host")] == ["up", "up", "down"]
    assert root.find("host/hostnames/hostname").get("name") == "<i>&--'"
    assert [port.get("portid") for port in root.iter("port")] == ["7", "9", "53"]
    assert root.find("runstats/hosts").attrib == {"up": "2", "down": "1", "total": "3"}
    opened = ET.fromstring(scan(faked, "--open", "-oX", "-", "--", "10.0.0.1-2").stdout)
    assert len(opened.findall("host")) == 1 and len(opened.findall("host/ports/port")) == 2
    assert opened.find("runstats/hosts").get("up") == "2"
    always = ET.fromstring(scan(faked, "-Pn", "-oX", "-", "--", "10.0.0.3").stdout)
    assert always.find("host/ports/extraports").get("state") == "filtered"


@pytest.mark.parametrize("fault, status, holds", [
    pytest.param({}, 0, [(60, 60), (60, 60)], id="none"),
    pytest.param({"exit": 3, "stderr": "no"}, 3, b"", id="exit"),
    pytest.param({"kill": 9}, -9, None, id="kill"),
    pytest.param({"kill": 9, "after": True}, -9, [(60, 60), (60, 60)], id="kill-after"),
    pytest.param({"exit": 1, "after": True}, 1, [(60, 60), (60, 60)], id="exit-after"),
    pytest.param({"empty": True}, 0, b"", id="empty"),
    pytest.param({"cut": 300}, 0, None, id="cut"),
    pytest.param({"cut": -5}, 0, None, id="cut-end"),
    pytest.param({"lost": 25}, 0, [(59, 60), (60, 60)], id="lost"),
    pytest.param({"timedout": True}, 0, [(0, 60), (60, 60)], id="timedout"),
    pytest.param({"gone": True}, 0, [(60, 60)], id="gone"),
    pytest.param({"missing": True}, 0, [(60, 60)], id="missing"),
    pytest.param({"error": "no"}, 1, [(60, 60), (60, 60)], id="error"),
    pytest.param({"flood_err": 2, "flood_out": 2}, 0, [(60, 60), (60, 60)], id="flood"),
])
def test_fake_misbehaves(fake, fault, status, holds):
    faked = fake("nmap", **world(**fault))
    done = scan(faked, "-oX", "-", "--", "10.0.0.1", "10.0.0.2")
    assert done.returncode == status
    if holds is None:
        assert done.stdout
        with pytest.raises(ET.ParseError):
            ET.fromstring(done.stdout)
    else:
        assert (accounts(done.stdout) if done.stdout else b"") == holds
    assert faked.scanned == ["10.0.0.1", "10.0.0.2"]


def test_fake_misbehaves_once_for_another_and_late(fake):
    faked = fake("nmap", **world(once=2, wrong="10.9.9.9"))
    seen = [ET.fromstring(scan(faked, "-oX", "-", "--", "10.0.0.1").stdout)
            .find("host/address").get("addr") for _ in range(3)]
    assert seen == ["10.9.9.9", "10.9.9.9", "10.0.0.1"]
    fake("nmap", **world(sleep=30, stubborn=True))
    process = subprocess.Popen([faked.program, "-oX", "-", "--", "10.0.0.1"],
                               stdout=subprocess.PIPE)
    assert process.stdout.readline().startswith(b"<?xml")
    process.terminate()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.kill()
    process.communicate()
    assert scan(faked, "--bogus", "-oX", "-", "--", "10.0.0.1").returncode == 255


def test_fake_sendmail(fake):
    faked = fake("sendmail")
    mails = b"Subject: one\n\n.\nFrom here\n", b"Subject: two\n\nb\r\n"
    for mail in mails:
        assert scan(faked, "-oi", "-t", input=mail).returncode == 0
    assert faked.raw == list(mails) and faked.mails[1]["Subject"] == "two"
    assert [call["argv"][1:] for call in faked.calls] == [["-oi", "-t"]] * 2
    fake("sendmail", exit=75, once=1)
    assert [scan(faked, "-t", input=mail).returncode for mail in mails] == [75, 0]
    fake("sendmail", late=1)
    assert scan(faked, input=b"late").returncode == 1
    assert faked.raw == [*mails, mails[1], b"late"]
    fake("sendmail", kill=signal.SIGKILL)
    assert scan(faked, input=b"killed").returncode == -signal.SIGKILL


# ---- Loopback and Postfix ----------------------------------------------------------------------

def newest(folder):
    """The newest run of a DIR-NAME."""
    return sorted(path for path in folder.iterdir() if re.fullmatch(r"\d{8}-\d{6}", path.name))[-1]


def rows_of(data):
    """The rows of a scan_report.csv, as mappings."""
    text = data.decode("utf-8-sig")
    assert data.startswith(b"\xef\xbb\xbf") and text.count("\r\n") == text.count("\n")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert tuple(rows[0]) == COLUMNS
    return [dict(zip(COLUMNS, row)) for row in rows[1:]]


def findings(folder):
    """{(address, port, change)} of a run's scan_report.csv."""
    path = folder / "scan_report.csv"
    data = path.read_bytes() if path.exists() else b""
    return {(row["IP"], int(row["Port"]), row["Change"]) for row in rows_of(data)} \
        if data else set()


@pytest.fixture
def three_hosts(listen):
    """Addresses of a file server, a web server called web1.example.net, another; a name server."""
    files, web, other, names = map(labtools.loopback, (1, 2, 3, 53))
    for address, ports in ((files, (2121, 8080)), (web, (3128, 8080)), (other, (8081, 10000))):
        for port in ports:
            listen(address, port)
    listen(names, 53, "udp", answer=labtools.name_server(
        {files: "files.example.net", web: "web1.example.net", other: "other.example.org"}))
    return files, web, other, names


GROUPS = """
    group file servers
        ip {files}
        ignore 2121 tcp open ccproxy-ftp
    end group file servers
    group web
        hostname web*
        hostname *.example.com
        ignore 3128 tcp open squid-http
    end group web
    group unix
        os Solaris
        os Linux
        os FreeBSD
        ignore 8081 tcp open blackice-icecap
    end group unix
    """


def test_every_kind_of_group_and_real_mail(rc, run, postfix, three_hosts, tmp_path, real_nmap):
    files, web, other, names = three_hosts
    path = rc(f"""
        EMAIL-TO kinds@lab.example, more@lab.example
        EMAIL-FROM scanner@lab.example
        EMAIL-SUBJECT The lab's Prüfung: 100 %
        SENDMAIL {postfix.sendmail}
        IPS {files}
        IPS {web}
        IPS {other}
        DIR-NAME {tmp_path}/audits
        NMAP nmap -sS -p {PORTS} -O --osscan-guess --max-os-tries 1 --dns-servers {names}
        """ + GROUPS.format(files=files))
    before = time.time()
    done = run("--config", path)
    assert (done.status, done.out) == (0, "")
    assert len(re.findall(r"^\[[123]/3\] .*\d+ ports, [\d.]+ s$", done.err, re.M)) == 3, done.err

    folder = newest(tmp_path / "audits")
    guesses = {host: (folder / f"{host}.xml").read_text().count('osfamily="Linux"')
               for host in (files, web, other)}
    if not all(guesses.values()):
        pytest.skip(f"nmap does not take this machine for a Linux: {guesses}")
    (mail,) = postfix.mails("kinds@lab.example")
    assert len(postfix.mails("more@lab.example")) == 1
    assert (mail["From"], mail["To"]) == ("scanner@lab.example",
                                          "kinds@lab.example, more@lab.example")
    assert mail["Subject"] == "The lab's Prüfung: 100 %"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert re.fullmatch(r"<[^<>@\s]+@[^<>@\s]+>", mail["Message-ID"])
    assert before - 2 < email.utils.parsedate_to_datetime(mail["Date"]).timestamp() < time.time()
    body = mail.get_body(("plain",)).get_content()
    assert body.startswith("3 of 3 hosts audited, 3 findings, 0 gone\n")
    assert "web1.example.net" in body and "2121" not in body and "3128" not in body

    (attachment,) = mail.iter_attachments()
    assert attachment.get_content_type() == "text/csv"
    assert attachment.get_filename() == "scan_report.csv"
    data = attachment.get_payload(decode=True)
    assert data == (folder / "scan_report.csv").read_bytes()
    rows = rows_of(data)
    today = datetime.date.fromtimestamp(before).isoformat()
    assert [(r["IP"], r["Hostname"], r["Port"], r["Protocol"], r["State"], r["Service"],
             r["Change"], r["First Seen"]) for r in rows] == [
        (files, "files.example.net", "8080", "tcp", "open", "http-proxy", "first look", today),
        (web, "web1.example.net", "8080", "tcp", "open", "http-proxy", "first look", today),
        (other, "other.example.org", "10000", "tcp", "open", "snet-sensor-mgmt", "first look",
         today)]
    assert all("Linux" in row["OS"] for row in rows)


@pytest.mark.parametrize("way", ["sendmail", "smtp"])
def test_cron(way, rc, run, listen, postfix, tmp_path, real_nmap):
    """env -i, PATH=/usr/bin:/bin, no HOME, no terminal, LANG=C, in /: mail at first, then none."""
    address, to = labtools.loopback(11 if way == "smtp" else 12), f"cron-{way}@lab.example"
    listener = listen(address, 8080)
    listen(address, 3128)
    server = {"sendmail": f"SENDMAIL {postfix.sendmail}",
              "smtp": f"SMTP-SERVER 127.0.0.1:{postfix.port}\nSMTP-TLS none"}[way]
    text = (f"EMAIL-TO {to}\nEMAIL-FROM lab@lab.example\nSUBJECT Nachtprüfung\n{server}\n"
            f"IPS {address}\nDIR-NAME {tmp_path}/audits\nNMAP nmap -n -p {PORTS}\n"
            f"group Büro\n ip {address}\n ignore 3128 tcp open *\n ignore 8080 tcp open *\n"
            "end group Büro\n")
    path = rc(text)

    def cron():
        done = run("--config", path, "--quiet", clean=True, cwd="/",
                   env={"PATH": "/usr/bin:/bin", "LANG": "C", "SHELL": "/bin/sh"})
        assert (done.status, done.out, done.err) == (0, "", "")

    cron()                                          # the first audit of a DIR-NAME always tells
    (mail,) = postfix.mails(to)
    assert mail["Subject"] == "Nachtprüfung"
    assert "1 of 1 hosts audited, 0 findings, 0 gone" in mail.get_body(("plain",)).get_content()
    assert not list(mail.iter_attachments())
    cron()
    listener.close()
    cron()
    mails = postfix.mails(to, 2)
    assert len(mails) == 2
    assert mails[1].get_body(("plain",)).get_content().startswith(
        "1 of 1 hosts audited, 0 findings, 1 gone\n")
    (attachment,) = mails[1].iter_attachments()
    assert [(row["IP"], row["Port"], row["Change"])
            for row in rows_of(attachment.get_payload(decode=True))] == [(address, "8080", "gone")]
    assert mails[0]["Message-ID"] != mails[1]["Message-ID"]
    rc(text.replace("8080 tcp", "9999 tcp"))        # still silent, once told
    cron()
    time.sleep(0.5)
    assert len(postfix.raw(to)) == 2


def test_cron_with_latin_1_and_a_name_from_afar(rc, run, listen, postfix, tmp_path, real_nmap):
    """A PTR name of any bytes and an rc file of 2003 do no harm under LANG=C."""
    address, names = labtools.loopback(13), labtools.loopback(54)
    listen(address, 8080)
    listen(names, 53, "udp", answer=labtools.name_server({address: "=cmd|' /C calc'!A0"}))
    path = rc(f"EMAIL-TO latin@lab.example\nSUBJECT Pr\xfcfung\nSENDMAIL {postfix.sendmail}\n"
              f"IPS {address}\nDIR-NAME {tmp_path}/audits\n"
              f"NMAP nmap -p 8080,8081 --dns-servers {names}\n".encode("latin-1"))
    done = run("--config", path, "--quiet", clean=True, cwd="/",
               env={"PATH": "/usr/bin:/bin", "LANG": "C"})
    assert (done.status, done.out, done.err) == (0, "", "")
    (mail,) = postfix.mails("latin@lab.example")
    assert mail["Subject"] == "Prüfung"
    (attachment,) = mail.iter_attachments()
    (row,) = rows_of(attachment.get_payload(decode=True))
    assert row["Port"] == "8080" and row["Hostname"][:1] not in ("=", "+", "-", "@")


def test_postfix_refuses_one_of_two(rc, run, listen, postfix, tmp_path, real_nmap):
    address = labtools.loopback(14)
    listen(address, 8080)
    path = rc(f"""
        EMAIL-TO taken@lab.example, refused@lab.example
        EMAIL-FROM lab@lab.example
        SMTP-SERVER 127.0.0.1:{postfix.port}
        IPS {address}
        DIR-NAME {tmp_path}/audits
        NMAP nmap -n -p 8080
        """)
    done = run("--config", path)
    assert done.status == 69
    assert "refused@lab.example" in done.err and "Traceback" not in done.err
    assert len(postfix.mails("taken@lab.example")) == 1
    assert not postfix.raw("refused@lab.example")


# ---- A network of namespaces -------------------------------------------------------------------

def report_of(done, status=0):
    assert done.status == status, done.err
    assert "Traceback" not in done.err
    return done.out


def test_network(network, rc, run, tmp_path, real_nmap):
    net = network(2, 4, 5, 6)                       # .3 is down
    net[2].serve(22, 8080)
    net[4].serve(25, 80)
    net[4].drop("80")
    net[5].serve(22)
    net[6].serve(8080)
    path = rc(f"""
        IPS 10.99.0.2-6
        DIR-NAME {tmp_path}/audits
        NMAP nmap -n -p 22,25,80,8080
        TELL always
        group everyone
            ip 10.99.0.0/28
            ignore 22 tcp open ssh
        end group everyone
        """)

    def audit(first):
        report = report_of(run("--config", path, prefix=net.scanner.prefix))
        assert report.splitlines()[0] == first
        return report, findings(newest(tmp_path / "audits"))

    _, found = audit("4 of 4 hosts audited, 4 findings, 0 gone")
    ports = {("10.99.0.2", 8080), ("10.99.0.4", 25), ("10.99.0.4", 80), ("10.99.0.6", 8080)}
    assert found == {(*port, "first look") for port in ports}
    (filtered,) = [row for row in rows_of((newest(tmp_path / "audits") / "scan_report.csv")
                                          .read_bytes()) if row["Port"] == "80"]
    assert filtered["State"] == "filtered"
    assert not (newest(tmp_path / "audits") / "10.99.0.3.xml").exists()

    net[5].stop(22)                                 # a service goes, though a rule accepts it
    net[4].accept()                                 # and a firewall
    _, found = audit("4 of 4 hosts audited, 4 findings, 1 gone")
    assert found == {(*port, "changed" if port[1] == 80 else "standing") for port in ports} \
        | {("10.99.0.5", 22, "gone")}

    net[6].down()                                   # a host goes
    report, found = audit("3 of 3 hosts audited, 3 findings, 1 gone")
    here = {port for port in ports if port[0] != "10.99.0.6"}
    assert found == {(*port, "standing") for port in here}
    assert re.search(r"(?i)hosts? gone.*10\.99\.0\.6", report, re.S)
    assert "broken" not in report

    report, found = audit("3 of 3 hosts audited, 3 findings, 0 gone")       # told once
    assert found == {(*port, "standing") for port in here} and "10.99.0.6" not in report

    net[6].up()                                     # host and service are back, one more is new
    net[5].serve(22)
    net[2].serve(25)
    _, found = audit("4 of 4 hosts audited, 5 findings, 0 gone")
    assert found == {(*port, "standing") for port in ports} | {("10.99.0.2", 25, "new")}
    net[5].stop(22)                                 # back means that it can go again
    audit("4 of 4 hosts audited, 5 findings, 1 gone")


def test_network_of_the_scanner_is_down(network, rc, run, tmp_path, real_nmap):
    """The report says so in its second line, and what was known before stays known."""
    net = network(2, 4)
    net[2].serve(8080)
    net[4].serve(25)
    path = rc(f"""
        IPS 10.99.0.2,4
        DIR-NAME {tmp_path}/audits
        NMAP nmap -n -p 25,8080
        TELL always
        group mail
            ip 10.99.0.4
            expect 25 tcp open smtp
        end group mail
        """)

    def audit():
        return run("--config", path, prefix=net.scanner.prefix)

    report_of(audit())
    net.scanner.down()
    done = audit()
    assert done.status in (0, 2), done.err
    first, second = done.out.splitlines()[:2]
    assert first.startswith("0 of ")
    assert "network may be broken" in second
    net.scanner.up()
    report = report_of(audit())
    assert report.startswith("2 of 2 hosts audited, 1 findings, 0 gone\n")
    assert findings(newest(tmp_path / "audits")) == {("10.99.0.2", 8080, "standing")}


def test_scanner_behind_its_own_firewall(network, rc, run, tmp_path, real_nmap):
    """With -sT nmap says nothing of it; an unmet expect comes before all else."""
    net = network(2)
    net[2].serve(25)
    path = rc(f"""
        IPS 10.99.0.2
        DIR-NAME {tmp_path}/audits
        NMAP nmap -n -sT -p 25,8080
        group mail
            ip 10.99.0.2
            expect 25 tcp open smtp
        end group mail
        """)
    assert report_of(run("--config", path, prefix=net.scanner.prefix)).startswith(
        "1 of 1 hosts audited, 0 findings, 0 gone\n")
    net.scanner.run("nft", "add table inet lab; "
                    "add chain inet lab output { type filter hook output priority 0; }; "
                    "add rule inet lab output tcp dport 1-65535 drop")
    report = report_of(run("--config", path, prefix=net.scanner.prefix))
    assert "missing" in report.splitlines()[1].lower(), report
    assert any(change == "missing" for _, _, change in findings(newest(tmp_path / "audits")))


# ---- IPv6 --------------------------------------------------------------------------------------

def test_ipv6_gets_its_option_by_itself(fake, listen, rc, run, tmp_path, real_nmap):
    try:
        port = listen("::1", 0).port
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")
    address = labtools.loopback(21)
    listen(address, 8080)
    log = tmp_path / "argv.log"
    fake("nmap", text=f'#!/bin/sh\necho "$*" >>{log}\nexec {real_nmap} "$@"\n')
    path = rc(f"""
        IPS ::1
        IPS {address}
        DIR-NAME {tmp_path}/audits
        NMAP nmap -n -p 8080,{port}
        """)
    report = report_of(run("--config", path))
    assert report.startswith("2 of 2 hosts audited, ")
    folder = newest(tmp_path / "audits")
    assert {("::1", port, "first look"), (address, 8080, "first look")} <= findings(folder)
    assert {"targets.xml", "targets6.xml", "__1.xml", f"{address}.xml"} <= set(os.listdir(folder))
    calls = [(" ".join(words).count(" -6"), words[words.index("--") + 1:])
             for words in (line.split() for line in log.read_text().splitlines())]
    assert Counter((six, target) for six, targets in calls for target in targets) == Counter(
        {(1, "::1"): 2, (0, address): 2})           # once to list, once to scan
    assert json.loads((folder / "run.json").read_text())


def test_a_folder_of_real_results_is_read_again(listen, rc, run, tmp_path, real_nmap):
    """--process-only on what nmap itself wrote: plain XML, and no DIR-NAME of ours."""
    address = labtools.loopback(22)
    listen(address, 8080)
    folder = tmp_path / "scans"
    folder.mkdir()
    labtools.call("nmap", "-n", "-p", PORTS, "-oX", folder / "night.xml", address)
    path = rc(f"IPS 192.0.2.0/24\nDIR-NAME {tmp_path}/audits\nNMAP nmap -n\n")
    before = sorted(folder.iterdir())
    report = report_of(run("--config", path, "--process-only", "--dir-name", folder))
    assert report.startswith("1 of 1 hosts audited, 1 findings, 0 gone\n")
    assert address in report and "8080" in report
    assert sorted(folder.iterdir()) == before
