"""Reading nmap's XML: what 42 versions of it, and of others who imitate it, have written.

The files of test/data/nmap are small, made by hand, and named by what they show.
"""
import io
import os
import shutil
from pathlib import Path

import pytest

import nmap_audit
from nights import Nights, read_csv, up

DATA = Path(__file__).parent / "data" / "nmap"
A = "192.0.2.1"
SMTP = (25, "tcp", "open", "smtp", "")
pytestmark = pytest.mark.usefixtures("no_real_nmap")


@pytest.fixture
def folder(tmp_path):
    """folder(name, ...) -> a folder that holds these files of test/data/nmap."""
    made = tmp_path / "xml"

    def fill(*names):
        made.mkdir(exist_ok=True)
        for name in names:
            shutil.copy(DATA / f"{name}.xml", made / f"{name}.xml")
        return made
    return fill


@pytest.fixture
def process(run, rc):
    """process(folder, *argv): a report of what the folder holds."""
    def report(path, *argv):
        return run("--config", rc("DETAIL low\n"), "--process-only", "--dir-name", path, *argv)
    return report


def read(path):
    return nmap_audit.read_run(path)


def one(path):
    """The one host of a folder."""
    hosts = read(path).hosts
    assert list(hosts) == [A]
    return hosts[A]


def ports(host):
    return [(port.number, port.protocol, port.state, port.service, port.version) for port in host.ports]


# ---- What is read ------------------------------------------------------------------------------

@pytest.mark.parametrize("name", (
    "plain", "doctype-address", "hosthint", "between-hosts", "unknown-elements", "osclass-beside", "osclass-inside",
    "os-without-accuracy", "names", "mac-first", "empty-address", "no-exit", "ports-do-not-add-up"))
def test_an_audited_host_with_one_port(folder, name):
    path = folder(name)
    host = one(path)
    assert (host.outcome, host.reason, ports(host)) == ("audited", "", [SMTP])
    assert host.looked == "1-100/tcp"
    assert read(path).remarks == ()


def test_every_file_is_read_by_a_test():
    """A file that no test names shows nothing."""
    text = Path(__file__).read_text()
    names = [path.stem for path in DATA.glob("*.xml")]
    assert len(names) > 30 and [name for name in names if f'"{name}"' not in text] == []


def test_the_order_of_elements_means_nothing(folder):
    host = one(folder("order"))
    assert (host.outcome, ports(host)) == ("audited", [(25, "tcp", "open", "smtp", "Postfix smtpd")])
    assert (host.names, host.os) == (("mail.example.net",), ("Linux 5.4",))
    assert host.looked == "1-100/tcp"


def test_ports(folder):
    """No service, open|filtered, an owner, a port twice, port 0, four protocols, a version in three parts."""
    assert ports(one(folder("ports"))) == [
        (0, "tcp", "filtered", "", ""), (25, "tcp", "open", "", ""),
        (53, "udp", "open|filtered", "domain", ""), (36412, "sctp", "open", "s1-control", ""),
        (6, "ip", "open", "tcp", ""), (80, "tcp", "open", "http", "nginx 1.10 (Ubuntu)")]


@pytest.mark.parametrize("name, os_guesses", (
    ("osclass-beside", {"Linux 2.6.20", "Linux 2.6.22", "Linux Linux"}),
    ("osclass-inside", {"Linux 5.4", "Linux Linux"}),
    ("os-without-accuracy", {"FreeBSD 4.7", "FreeBSD FreeBSD"}), ("plain", set())))
def test_the_best_guesses_of_the_os(folder, name, os_guesses):
    assert set(one(folder(name)).os) == os_guesses


@pytest.mark.parametrize("name, names", (
    ("names", ("www.example.net", "web1.example.net")), ("plain", ("mail.example.net",)), ("mac-first", ())))
def test_host_names(folder, name, names):
    assert one(folder(name)).names == names


def test_one_host_a_port_is_one_host(folder):
    hosts = read(folder("masscan")).hosts
    assert {address: sorted(port.number for port in host.ports) for address, host in hosts.items()} == {
        A: [25, 80], "192.0.2.2": [22]}
    assert {host.outcome for host in hosts.values()} == {"audited"}


def test_a_host_without_a_start_took_no_time(folder):
    assert {host.seconds for host in read(folder("masscan")).hosts.values()} == {0}


def test_several_hosts_of_one_file(folder, process):
    path = folder("several-hosts")
    hosts = read(path).hosts
    assert {address: (host.outcome, len(host.ports)) for address, host in hosts.items()} == {
        "192.0.2.9": ("audited", 0), "192.0.2.10": ("audited", 1), "192.0.2.11": ("down", 0),
        "2001:db8::25": ("audited", 1)}
    assert process(path).out.startswith("3 of 3 hosts audited, 2 findings, 0 gone\n")


def test_the_same_address_in_two_files_is_one_host(folder, process):
    result = process(folder("plain", "ports"))
    assert result.out.startswith("1 of 1 hosts audited, 6 findings, 0 gone\n")


def test_one_file_with_a_thousand_hosts(tmp_path, process):
    path = tmp_path / "many"
    path.mkdir()
    hosts = "".join(f"<host><status state='up'/><address addr='10.0.{n // 250}.{n % 250}' addrtype='ipv4'/><ports>"
                    f"<port protocol='tcp' portid='25'><state state='open'/></port></ports></host>"
                    for n in range(1000))
    (path / "all.xml").write_text(f"<?xml version='1.0'?><!DOCTYPE nmaprun><nmaprun start='1'>{hosts}"
                                  "<runstats><finished exit='success'/></runstats></nmaprun>")
    assert process(path).out.startswith("1000 of 1000 hosts audited, 1000 findings, 0 gone\n")


# ---- Outcomes ----------------------------------------------------------------------------------

@pytest.mark.parametrize("name, outcome, found", (
    ("ping-scan", "audited", []), ("no-ports", "timed out", []), ("timed-out", "timed out", []),
    ("down", "down", []), ("exit-error", "cut off", [SMTP]), ("cut-in-a-tag", "cut off", [(25, "tcp", "open", "", "")]),
    ("cut-after-the-port", "cut off", [SMTP]), ("cut-after-the-host", "cut off", [SMTP]),
    ("cut-before-the-end", "cut off", [SMTP])))
def test_outcome(folder, name, outcome, found):
    host = one(folder(name))
    assert (host.outcome, ports(host)) == (outcome, found)
    assert bool(host.reason) is (outcome in ("timed out", "cut off"))


@pytest.mark.parametrize("name", ("no-ports", "timed-out", "exit-error", "cut-in-a-tag", "cut-before-the-end"))
def test_what_is_not_audited_is_listed_with_its_file(folder, process, name):
    path = folder(name, "several-hosts")
    result = process(path)
    assert result.out.startswith("3 of 4 hosts audited") and result.status == 2
    assert A in result.out and f"{path}/{name}.xml" in result.out


def test_nmap_s_own_reason_is_told(folder, process):
    assert "Could not open a raw socket" in process(folder("exit-error")).out


def test_a_timed_out_host_loses_no_port(run, rc, fake, tmp_path):
    nights = Nights(run, rc, fake, tmp_path)
    nights.audit({"10.0.0.1": up(25), "10.0.0.2": up()})
    night = nights.audit({"10.0.0.1": up(25, fault={"timedout": True}), "10.0.0.2": up()})
    assert night.first == "1 of 2 hosts audited, 0 findings, 0 gone"


@pytest.mark.parametrize("name", ("comment-first", "entity-bomb", "external-entity"))
def test_a_file_that_cannot_be_read_is_named(folder, process, name):
    path = folder(name, "plain")
    result = process(path)
    assert result.out.startswith("1 of 1 hosts audited, 1 findings, 0 gone\n")
    assert f"{path}/{name}.xml" in result.out
    assert "root:" not in result.out + result.err


@pytest.mark.parametrize("name", ("comment-first", "entity-bomb", "external-entity", "apple-double", "not-nmap"))
def test_a_folder_without_a_host_is_wrong(folder, process, name):
    result = process(folder(name))
    assert result.status == 65 and result.out == "" and "no nmap XML" in result.err


def test_an_empty_folder_is_wrong(tmp_path, process):
    (tmp_path / "empty").mkdir()
    assert process(tmp_path / "empty").status == 65
    assert process(tmp_path / "nowhere").status == 66


# ---- Characters --------------------------------------------------------------------------------

def test_control_characters_lose_no_host(folder):
    host = one(folder("control-references"))
    assert (host.outcome, [port.number for port in host.ports]) == ("audited", [25])
    assert host.names[0].startswith("m") and "\x1b" not in host.names[0]


@pytest.mark.parametrize("before", range(7))
def test_a_control_character_where_a_piece_of_the_file_ends(before):
    """What is read at once may end within a reference."""
    head, tail = (DATA / "plain.xml").read_bytes().split(b"mail.example.net")
    padding = b"x" * (nmap_audit.PIECE - len(head) - before)
    hosts = judged(head + padding + b"&#x1b;" + tail)
    assert [host.outcome for host in hosts] == ["audited"] and hosts[0].names[0].endswith("x?")


def test_bytes_over_0x7f_lose_no_host(folder, process):
    """Raw Latin-1, no encoding declared: read, or cut off there; never lost and never clean in silence."""
    path = folder("raw-bytes")
    host, result = one(path), process(path)
    assert [port.key for port in host.ports] == ["25/tcp"]
    assert host.outcome == "cut off" or host.ports[0].version == "Grün"
    assert result.status == (0 if host.outcome == "audited" else 2) and f"{path}/raw-bytes.xml" in result.out


@pytest.mark.parametrize("change", (
    pytest.param(lambda text: b"\xef\xbb\xbf" + text.encode(), id="a byte-order mark"),
    pytest.param(lambda text: text.replace("\n", "\r\n").encode(), id="CRLF"),
    pytest.param(lambda text: text.replace("UTF-8", "UTF-16").encode("utf-16"), id="UTF-16"),
    pytest.param(lambda text: text.replace("UTF-8", "iso-8859-1").replace("mail.", "m\xe4il.").encode("latin-1"),
                 id="Latin-1, declared"),
    pytest.param(lambda text: text.replace("\n", "").encode(), id="one line"),
    pytest.param(lambda text: (text + "\n\n").encode(), id="blank lines behind")))
def test_encodings(folder, change):
    path = folder("plain")
    (path / "plain.xml").write_bytes(change((DATA / "plain.xml").read_text()))
    assert (one(path).outcome, ports(one(path))) == ("audited", [SMTP])


def test_cut_at_every_tenth_byte():
    """Never clean, never a crash; what was whole is used."""
    data = (DATA / "plain.xml").read_bytes()
    whole = len(data.rstrip()) - len("</nmaprun>")
    for size in range(0, whole, 10):
        hosts = judged(data[:size])
        assert all(host.outcome == "cut off" for host in hosts), size
        if size > data.index(b"</ports>"):
            assert [port.number for port in hosts[0].ports] == [25]


def judged(data):
    return list(nmap_audit.judge(nmap_audit.read_xml(io.BytesIO(data)), "file"))


def test_a_large_attribute_is_read_in_bounded_time():
    """20 MB; expat before 2.6 takes a minute where it comes in small pieces."""
    data = (DATA / "plain.xml").read_bytes().replace(b"mail.example.net", b"x" * 20_000_000)
    assert len(judged(data)[0].names[0]) == 20_000_000


# ---- Whose files they are ----------------------------------------------------------------------

@pytest.fixture
def night(run, rc, fake, tmp_path):
    nights = Nights(run, rc, fake, tmp_path)
    nights.ips = "10.0.0.1-2"
    night = nights.audit({"10.0.0.1": up(25), "10.0.0.2": up(80)})
    return nights, night


@pytest.mark.parametrize("damage", (
    pytest.param(lambda text: "".join(line for line in text.splitlines(True) if 'portid="25"' not in line)
                 .replace("</host>", "</ports></host>"), id="a port is lost"),
    pytest.param(lambda text: text[:text.index("<runstats>")], id="cut"),
    pytest.param(lambda text: text[:text.index("<host ")], id="cut before the host"),
    pytest.param(lambda text: "", id="empty")))
@pytest.mark.parametrize("with_record", (True, False))
def test_own_files_must_be_whole_and_add_up(night, damage, with_record):
    nights, made = night
    path = made.folder / "10.0.0.1.xml"
    path.write_text(damage(path.read_text().replace("</ports>", "")))
    if not with_record:
        (made.folder / "run.json").unlink()
    result = nights.process(folder=made.folder)
    assert result.status == 2 and result.out.startswith("1 of 2 hosts audited")


def test_published_files_need_not_add_up(folder):
    assert one(folder("ports-do-not-add-up")).outcome == "audited"


def test_the_file_of_another_host_is_not_this_host(night):
    nights, made = night
    shutil.copy(made.folder / "10.0.0.2.xml", made.folder / "10.0.0.1.xml")
    result = nights.process(folder=made.folder)
    assert result.status == 2 and result.out.startswith("1 of 2 hosts audited")


def test_the_file_of_an_older_scan_is_not_this_scan(night):
    nights, made = night
    path = made.folder / "10.0.0.1.xml"
    text = path.read_text()
    start = text.split('start="')[1].split('"')[0]
    path.write_text(text.replace(f'start="{start}"', f'start="{int(start) - 86400}"'))
    result = nights.process(folder=made.folder)
    assert result.status == 2 and result.out.startswith("1 of 2 hosts audited")


def test_a_file_that_is_gone_is_not_clean(night):
    nights, made = night
    (made.folder / "10.0.0.1.xml").unlink()
    result = nights.process(folder=made.folder)
    assert result.status == 2 and result.out.startswith("1 of 2 hosts audited, 1 findings")


def test_the_element_of_a_host_is_kept_byte_for_byte(night):
    """What nmap wrote, in a whole document."""
    _, made = night
    data = (made.folder / "10.0.0.1.xml").read_bytes()
    assert data.startswith(b"<?xml") and data.rstrip().endswith(b"</nmaprun>")
    assert data.count(b"<host ") + data.count(b"<host>") == 1 and b"service25" in data


def test_other_things_in_a_folder_are_passed_over(folder, process, tmp_path):
    path = folder("plain")
    (path / "notes.txt").write_text("nothing\n")
    (path / "sub.xml").mkdir()
    (path / "empty.xml").touch()
    (path / "binary").write_bytes(bytes(range(256)) * 100)
    os.mkfifo(path / "pipe.xml")
    (path / "lost.xml").symlink_to(tmp_path / "nowhere")
    result = process(path)
    assert result.out.startswith("1 of 1 hosts audited, 1 findings, 0 gone\n") and result.status == 0


def test_any_name_will_do(folder, process):
    path = folder("plain")
    (path / "plain.xml").rename(path / "scan-of-monday")
    assert process(path).out.startswith("1 of 1 hosts audited")


@pytest.mark.parametrize("text", ("", "{", "[]", '{"version": 99}'))
def test_a_damaged_run_json_beside_other_xml_is_named(folder, process, text):
    """Whatever lists of targets are lost with it."""
    path = folder("plain")
    assert "run.json" not in process(path).out
    (path / "run.json").write_text(text)
    result = process(path)
    assert result.out.startswith("1 of 1 hosts audited, 1 findings, 0 gone\n") and result.status == 0
    assert f"Note: {path}/run.json is lost, damaged or of another version; its XML is read instead\n" in result.out


def test_ips_filters_nothing_when_processing(folder, run, rc):
    result = run("--config", rc("IPS 10.9.9.9\n"), "--process-only", "--dir-name", folder("plain"), "--no-human")
    assert [row["IP"] for row in read_csv(result.out)] == [A]
    assert result.status == 0


def test_merged_keeps_the_latest_and_what_only_an_earlier_scan_looked_at(folder, tmp_path):
    path = folder("plain")
    later = (DATA / "plain.xml").read_text().replace('start="1700000000"', 'start="1700100000"')
    later = later.replace('services="1-100"', 'services="20-30"').replace('"100"', '"11"').replace('"99"', '"10"')
    (path / "later.xml").write_text(later.replace('portid="25"', 'portid="21"').replace('"smtp"', '"ftp"'))
    earlier = (DATA / "plain.xml").read_text().replace("</ports>", '<port protocol="tcp" portid="80"><state '
                                                       'state="open"/></port></ports>')
    (path / "plain.xml").write_text(earlier)
    assert sorted(port.number for port in one(path).ports) == [21, 80]


def test_port_lists():
    assert nmap_audit.looked_at("1-3,7/tcp") == {"1/tcp", "2/tcp", "3/tcp", "7/tcp"}
    assert nmap_audit.looked_at("") == nmap_audit.looked_at("/tcp") == set()
    assert nmap_audit.looked_at(looked("1-3/tcp", "7/tcp 53/udp")) == {"1/tcp", "2/tcp", "3/tcp", "7/tcp", "53/udp"}
    assert looked("1-3/tcp", "7/tcp 1-3/tcp") == looked("7/tcp 1-3/tcp", "1-3/tcp") == "1-3/tcp 7/tcp"
    assert looked("", "1-3/tcp") == looked("1-3/tcp", "") == looked("1-3/tcp", "1-3/tcp") == "1-3/tcp"


def test_hosts_share_their_port_list(monkeypatch):
    """It is put together once, whatever list each of them had from where."""
    done = []
    monkeypatch.setattr(nmap_audit, "sorted", lambda lists: done.append(lists) or sorted(lists), raising=False)
    several = [looked(" ".join(["1-3/tcp", "7/tcp"]), " ".join(["53/udp", "7/tcp"])) for _ in range(9)]
    assert several[0] == "1-3/tcp 53/udp 7/tcp" and len(set(map(id, several))) == 1
    assert len(done) == 1


def looked(*texts):
    """What was looked at by one scan and another."""
    one, two = (nmap_audit.HostResult("192.0.2.1", "audited", looked=text) for text in texts)
    return nmap_audit.joined(one, two, over=True).looked


@pytest.mark.parametrize("text", ("x", "-", "1-", "-1", "1-2-3", "123456", "1 2", "1,,/", "tcp/1/", "/"))
def test_odd_port_lists_hold_no_port_that_was_not_looked_at(text):
    assert nmap_audit.looked_at(f"{text}/tcp") <= {"1/tcp", "2/tcp"}
