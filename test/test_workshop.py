"""The workshop: --accept, --why, --test-config and --unused-rules, which look at the rules and at what is stored.

    desk.store(host("10.0.0.1", "25 tcp open smtp", name="mail.example.net"))     a finished run of these machines
    desk.ask("--why", "10.0.0.1", rules="group ...")        the program's answer, with this text as its rc file

The answers are asked for within this process, which is ten times as fast, where nothing but the answer is looked at.
"""
import contextlib
import fcntl
import functools
import io
import ipaddress
import json
import os
import re
import signal
import subprocess
import tempfile
import textwrap
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

import nmap_audit
from bench import networks
from conftest import Result
from nights import read_csv, tables

RUN, NEXT, LAST, DAY = "20261124-020000", "20261125-020000", "20261126-020000", "2026-11-24"
SYSTEMS = {"linux": ("Linux 2.6.32", "Linux", "Linux", "2.6.X"),
           "windows": ("Microsoft Windows 10", "Microsoft", "Windows", "10")}
TCP = {"tcp": "1-1000"}


def host(address, *ports, name=(), system=None):
    """A machine; a port is `25 tcp open smtp`, or its four columns."""
    columns = [port.split(" ") if isinstance(port, str) else port for port in ports]
    shown = tuple(networks.Shown(int(number), *more) for number, *more in columns)
    return networks.Host(address, (name,) if isinstance(name, str) else tuple(name), SYSTEMS.get(system, system), shown)


class Desk:
    """One DIR-NAME and one rc file, and what is asked about them."""

    def __init__(self, run, rc, folder):
        self.run, self.rc, self.directory = run, rc, folder / "runs"

    def store(self, *hosts, run_id=RUN, looked=None, **options):
        ports = looked or {"tcp": "1-10000", "udp": "1-1000"}
        return networks.write_run(self.directory, hosts, run_id=run_id, looked=ports, **options)

    def ask(self, *argv, rules=""):
        """The first line of the rules is line 1 of nmap-audit.rc."""
        config = self.rc(textwrap.dedent(rules).lstrip("\n"))
        return inside("--config", config, "--dir-name", self.directory, *argv)

    def findings(self, rules=""):
        """(address, port, protocol) of all that the report shows."""
        found = self.ask("--process-only", "--no-human", rules=rules)
        assert found.status in (0, 2), found
        return {row_key(row) for row in read_csv(found.out)}


def inside(*argv):
    """The program's answer without a process of its own."""
    handlers, mask = {each: signal.getsignal(each) for each in nmap_audit.SIGNALS}, os.umask(0o077)
    try:
        with tempfile.TemporaryFile("w+", encoding="utf-8") as out, contextlib.redirect_stderr(io.StringIO()) as err:
            with contextlib.redirect_stdout(out):
                status = nmap_audit.main([str(word) for word in argv])
            out.seek(0)
            return Result(status, out.read(), err.getvalue())
    finally:
        os.umask(mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def row_key(row):
    return row["IP"], row["Port"], row["Protocol"]


@pytest.fixture
def desk(run, rc, tmp_path):
    return Desk(run, rc, tmp_path)


def note(folder, address, **changes):
    """Changes what run.json notes of a host, or with no address of the run."""
    path = folder / "run.json"
    record = json.loads(path.read_text())
    (record["hosts"].setdefault(address, {"outcome": "audited", "reason": "", "seconds": 1.0, "start": 0})
     if address else record).update(changes)
    path.write_text(json.dumps(record))


def test_the_made_up_network_is_what_it_says(tmp_path):
    hosts = networks.network(3000)
    assert hosts == networks.network(3000) != networks.network(3000, seed=2)
    assert len({each.address for each in hosts}) == 3000 and sum(each.odd for each in hosts) == 60
    assert len({each.role for each in hosts}) == 40 and len({each.system for each in hosts}) == 6
    folder = networks.write_run(tmp_path, hosts[:99])
    read = nmap_audit.read_run(folder).hosts
    assert {result.outcome for result in read.values()} == {"audited"} and len(read) == 99     # its ports add up
    networks.write_document(tmp_path / "one.xml", hosts[:99])
    with open(tmp_path / "one.xml", "rb") as file:
        one = nmap_audit.read_xml(file)
    assert not one.problem and [result.ports for result, _ in one.hosts] == [
        read[result.address].ports for result, _ in one.hosts]


# ---- --accept ----------------------------------------------------------------------------------

class Accepted(NamedTuple):
    """A group that --accept printed: tags as (word, value), rules as (four fields, on how many hosts it says)."""
    name: str
    tags: list[tuple[str, str]]
    rules: list[tuple[tuple[str, ...], int]]


HEAD = re.compile(r"\n# From (\d{8}-\d{6}|\S+): (\d+) ports? on (\d+) hosts?\.")
IGNORE = re.compile(r"    ignore (\S+) (\S+) (\S+) (\S+)  # on (\d+) hosts?")
TAG = re.compile(r"    (ip|hostname|os) (\S.*?)\s*")


def accepted(text):
    """The groups in --accept's output; a line that is no rc text of the agreed form fails."""
    first, second, *lines = text.splitlines()
    assert HEAD.fullmatch(f"{first}\n{second}"), second
    groups = []
    for line in lines:
        if line.startswith("group "):
            groups.append(Accepted(line[6:], [], []))
        elif line.startswith("end group "):
            assert line[10:] == groups[-1].name
        elif found := IGNORE.fullmatch(line):
            groups[-1].rules.append((found.groups()[:4], int(found[5])))
        elif found := TAG.fullmatch(line):
            groups[-1].tags.append((found[1], found[2]))
        else:
            assert not line or line.startswith("#"), line
    for group in groups:
        assert group.tags and group.rules and len({word for word, _ in group.tags}) == 1, group
    return groups


@functools.lru_cache(maxsize=None)
def globbing(pattern):
    return re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL).fullmatch


def glob(pattern, text):
    """Whether a pattern, `*` in it for any run of characters, is the whole text."""
    return globbing(pattern)(text) is not None


def members_of(tags, results):
    """The hosts in a group with these tags, told from rc-language's table and not by the program."""
    tests = [{"ip": ip_test, "hostname": name_test, "os": os_test}[word](value) for word, value in tags]
    return [result for result in results if any(test(result) for test in tests)]


def os_test(value):
    return lambda result: any(value.lower() in guess.lower() for guess in result.os)


def name_test(value):
    def names(result):
        every = [name.lower() for name in result.names]
        return every + ([name.partition(".")[0] for name in every] if "." not in value else [])
    return lambda result: any(glob(value.lower(), name) for name in names(result))


def ip_test(text):
    """For the address, or the addresses of the subnet or range, that a text names."""
    low, dash, high = text.partition("-")
    net = ipaddress.ip_network(low, strict=False)
    whole = high if {".", ":"} & set(high) else f"{low.rpartition('.')[0]}.{high}"
    first, last = net[0], ipaddress.ip_address(whole) if dash else net[-1]
    return lambda result: net.version == parsed(result.address).version and first <= parsed(result.address) <= last


@functools.lru_cache(maxsize=None)
def parsed(address):
    try:
        return ipaddress.ip_address(address)
    except ValueError:
        return ipaddress.ip_address("::")       # made up; no tag names it


def hides(fields, port):
    """Whether a rule of these four fields matches a port."""
    low, dash, high = fields[0].partition("-")
    number = int(low) <= port.number <= int(high) if dash else glob(low, str(port.number))
    rest = (port.protocol, port.state, port.service)
    return number and all(glob(pattern.lower(), text.lower()) for pattern, text in zip(fields[1:], rest))


def key(result, port):
    """A port as row_key has it."""
    return result.address, str(port.number), nmap_audit.shown(port.protocol)


def check_accepted(text, folder, shown, elsewhere=frozenset()):
    """What --accept printed of a run hides all that it was asked for, and is for nothing else.

    shown: the findings that it was asked for. elsewhere: those that it was not asked for; what is in neither, rules
    of the rc file ignore already.
    """
    results = [result for result in nmap_audit.read_run(folder).hosts.values() if result.outcome == "audited"]
    found = HEAD.match(text)
    assert (int(found[2]), int(found[3])) == (len(shown), len({address for address, *_ in shown}))
    hidden = set()
    for group in accepted(text):
        members = members_of(group.tags, results)
        assert members, group
        for fields, _ in group.rules:
            for member in members:
                ports = [port for port in member.ports if hides(fields, port) and port.state != "closed"]
                assert ports, f"{member.address} is in {group.tags} and does not show {fields}"
                hidden.update(key(member, port) for port in ports)
    assert shown <= hidden
    assert not hidden & elsewhere, "hides what it was not asked for"


OFFICE = (host("10.0.0.1", "22 tcp open ssh", "80 tcp open http", name="web1.example.net", system="linux"),
          host("10.0.0.2", "22 tcp open ssh", "80 tcp open http", name="web2.example.net", system="linux"),
          host("10.0.0.3", "22 tcp open ssh", "25 tcp open smtp", "53 udp open domain", "53 tcp open domain",
               name="mail.example.net", system="linux"),
          host("10.0.0.65", "135 tcp open msrpc", "445 tcp open microsoft-ds", name="pc1.example.net",
               system="windows"),
          host("10.0.0.66", "135 tcp open msrpc", "445 tcp open microsoft-ds", "6667 tcp open irc",
               name="pc2.example.net", system="windows"),
          host("2001:db8::25", "25 tcp open smtp", "22 tcp open ssh"))


def test_accept(desk, golden):
    folder = desk.store(*OFFICE)
    shown = desk.findings()
    found, again = (desk.run("--config", desk.rc(""), "--dir-name", desk.directory, "--accept",
                             env={"PYTHONHASHSEED": seed}) for seed in "12")
    assert (found.status, found.err) == (0, "") and found == again
    golden("workshop/accept.txt", found.out, keep=(RUN, DAY))
    check_accepted(found.out, folder, shown)
    assert desk.findings(found.out) == set()
    assert desk.ask("--accept", rules=found.out).out.splitlines()[-1] == "# Nothing to accept."


@pytest.mark.parametrize("limit, wanted", [pytest.param(*each, id=each[0].replace("/", "-")) for each in (
    ("10.0.0.1", lambda address, port, protocol: address == "10.0.0.1"),
    ("10.0.0.0/30", lambda address, port, protocol: address in ("10.0.0.1", "10.0.0.2", "10.0.0.3")),
    ("10.0.0.2-65", lambda address, port, protocol: address in ("10.0.0.2", "10.0.0.3", "10.0.0.65")),
    ("10.0.0.3-10.0.0.66", lambda address, port, protocol: address in ("10.0.0.3", "10.0.0.65", "10.0.0.66")),
    ("10.0.0.1,66", lambda address, port, protocol: address in ("10.0.0.1", "10.0.0.66")),
    ("10.0.*.*", lambda address, port, protocol: ":" not in address),
    ("2001:db8::/64", lambda address, port, protocol: ":" in address),
    ("2001:db8::25", lambda address, port, protocol: ":" in address),
    ("22/tcp", lambda address, port, protocol: port == "22"),
    ("53/udp", lambda address, port, protocol: (port, protocol) == ("53", "udp")),
    ("53/tcp", lambda address, port, protocol: (port, protocol) == ("53", "tcp")),
    ("22", lambda address, port, protocol: port == "22"),
    ("53", lambda address, port, protocol: port == "53"),
    ("web*", lambda address, port, protocol: address in ("10.0.0.1", "10.0.0.2")),
    ("MAIL.example.net", lambda address, port, protocol: address == "10.0.0.3"),
    ("mail:53/udp", lambda address, port, protocol: (address, port, protocol) == ("10.0.0.3", "53", "udp")),
    ("*.example.net:22", lambda address, port, protocol: ":" not in address and port == "22"),
    ("10.0.0.0/30:22/tcp", lambda address, port, protocol: port == "22" and ":" not in address),
    ("10.0.0.65-66:445", lambda address, port, protocol: port == "445"),
    ("[2001:db8::25]", lambda address, port, protocol: ":" in address),
    ("[2001:db8::25]:25", lambda address, port, protocol: ":" in address and port == "25"),
    ("[2001:db8::/64]:22/tcp", lambda address, port, protocol: ":" in address and port == "22"),
    ("*", lambda address, port, protocol: True),
    ("10.0.0.4", None), ("2/tcp", None), ("22/udp", None), ("www.example.net", None), ("10.0.0.1:25", None))])
def test_accept_within_a_limit(desk, limit, wanted):
    """What the limit names is accepted, and everything else is found as before."""
    folder = desk.store(*OFFICE)
    every = desk.findings()
    shown = {row for row in every if wanted and wanted(*row[:3])}
    found = desk.ask("--accept", limit)
    assert (found.status, found.err) == (0, "")
    check_accepted(found.out, folder, shown, every - shown)
    assert ("# Nothing to accept." in found.out) == (not wanted)
    assert desk.findings(found.out) == every - shown


@pytest.mark.parametrize("limit", ["10.0.0.300", "10.0.0", "22/tcp/udp", "/tcp", "22/", "70000/tcp", "70000",
                                   "10.0.0.0/33", "2001:db8:::1", "22/xyz", "10.0.0.9-10.0.0.1", "10.0.0.1:",
                                   "10.0.0.1:x", "10.0.0.300:25", "[10.0.0.1", "2001:db8::25:25/tcp", ""])
def test_a_wrong_limit_is_refused(desk, limit):
    desk.store(*OFFICE)
    found = desk.ask("--accept", limit)
    if limit:
        assert (found.status, found.out) == (64, "") and f"'{limit}'" in found.err
        assert "HOST[:PORT[/PROTOCOL]]" in found.err and len(found.err.splitlines()) == 1
    else:
        assert (found.status, found.out) == (0, desk.ask("--accept").out)


def test_accept_stays_within_what_is_asked_for_among_ignored_ones(desk):
    """What the rc file ignores already is not accepted again, and what was not asked for stays."""
    rules = """
        group mail
            ip 10.0.0.3
            ignore 25 tcp open smtp
            ignore 22 tcp open ssh
        end group mail
        """
    folder = desk.store(*OFFICE)
    every = desk.findings(rules)
    shown = {row for row in every if row[1:3] == ("22", "tcp")}
    assert len(every) == 15 - 2 and len(shown) == 3
    found = desk.ask("--accept", "22/tcp", rules=rules)
    check_accepted(found.out, folder, shown, every - shown)
    assert desk.findings(textwrap.dedent(rules) + found.out) == every - shown


def test_only_ports_that_are_shown_are_accepted(desk):
    """Not what is gone, missing, closed or ignored; but what a host shows that was cut off, in whatever state it is."""
    rules = "group a\n ip 10.0.0.1\n ignore 80 tcp open http\n expect 81 tcp open http\nend group a\n"
    desk.store(host("10.0.0.1", "25 tcp open smtp", "80 tcp open http"), record=False)
    folder = desk.store(host("10.0.0.1", "26 tcp filtered smtp", "27 tcp closed nsw-fe", "80 tcp open http",
                             "53 udp open|filtered domain"),
                        host("10.0.0.2", "30 tcp open x"), run_id=NEXT)
    note(folder, "10.0.0.2", outcome="cut off", reason="it is")
    report = inside("--config", desk.rc(rules), "--dir-name", desk.directory, "--process-only").out
    assert {"Gone (1)", "Missing: expected and not there (1)"} <= tables(report).keys(), report
    found = desk.ask("--accept", rules=rules)
    assert found.out.startswith(f"\n# From {NEXT}: 3 ports on 2 hosts.\n")
    written = sorted(fields for each in accepted(found.out) for fields, _ in each.rules)
    assert written == [("26", "tcp", "filtered", "smtp"), ("30", "tcp", "open", "x"),
                       ("53", "udp", "open|filtered", "domain")]
    report = inside("--config", desk.rc(rules + found.out), "--dir-name", desk.directory, "--process-only").out
    assert {"Gone (1)", "Missing: expected and not there (1)"} <= tables(report).keys()
    assert report.startswith("1 of 2 hosts audited, 0 findings, 1 gone\n")


def test_the_best_group_and_the_most_frequent_port_come_first(desk):
    """Each rule says on how many hosts of its group it is of use; the best group is of use to the most of them.

    What is of use to equally many stands in the order of ports.
    """
    hosts = networks.network(400)
    folder = desk.store(*hosts, looked=networks.LOOKED)
    shown, groups = desk.findings(), accepted(desk.ask("--accept").out)
    results = nmap_audit.read_run(folder).hosts.values()
    totals = []
    for group in groups:
        members = members_of(group.tags, results)
        for fields, count in group.rules:
            assert count == sum(key(member, port) in shown for member in members for port in member.ports
                                if hides(fields, port)), (group.tags, fields)
        order = [(-count, int(port)) for (port, *_), count in group.rules]
        assert order == sorted(order), group
        totals.append(sum(count for _, count in group.rules))
    assert totals == sorted(totals, reverse=True)


@pytest.mark.parametrize("gone", ["failed", "down"])
def test_what_is_remembered_of_a_host_keeps_it_out_of_what_is_accepted(desk, gone):
    """It had no such port when it was audited last; should it have one tomorrow, that is news."""
    web = [host(f"10.0.0.{at}", *["22 tcp open ssh"] * (at < 7), "80 tcp open http", name=f"web{at}.example.net",
                system="linux") for at in (5, 6, 7)]
    desk.store(*web)
    assert desk.ask("--process-only").status == 0       # it is told
    folder = desk.store(*web[:2], run_id=NEXT)
    note(folder, "10.0.0.7", outcome=gone, reason="of itself")
    for limit in ("", "22/tcp"):
        groups = [each for each in accepted(desk.ask("--accept", limit).out)
                  if ("22", "tcp", "open", "ssh") in [fields for fields, _ in each.rules]]
        assert [each.tags for each in groups] == [[("ip", "10.0.0.5"), ("ip", "10.0.0.6")]], limit


WEB = [host(f"10.0.0.{at}", *["22 tcp open ssh"] * (at < 7), name=f"web{at}.example.net") for at in (5, 6, 7)]


@pytest.mark.parametrize("order", ["berlin,oslo", "oslo,berlin"])
def test_what_any_folder_remembers_keeps_a_host_out_of_what_is_accepted(desk, order):
    oslo, berlin = Desk(desk.run, desk.rc, desk.directory), Desk(desk.run, desk.rc, desk.directory)
    oslo.directory, berlin.directory = desk.directory / "oslo", desk.directory / "berlin"
    oslo.store(WEB[2])
    assert oslo.ask("--process-only").status == 0       # it is told
    note(oslo.store(run_id=NEXT), "10.0.0.7", outcome="down")
    berlin.store(*WEB[:2], run_id=NEXT)
    folders = ",".join(str(desk.directory / each) for each in order.split(","))
    group, = accepted(desk.ask("--dir-name", folders, "--accept").out)
    assert group.tags == [("ip", "10.0.0.5"), ("ip", "10.0.0.6")]


def test_what_a_baseline_says_keeps_a_host_out_of_what_is_accepted(desk):
    desk.store(*WEB)                                    # and nobody was told
    note(desk.store(*WEB[:2], run_id=NEXT), "10.0.0.7", outcome="down")
    group, = accepted(desk.ask("--baseline", RUN, "--accept").out)
    assert group.tags == [("ip", "10.0.0.5"), ("ip", "10.0.0.6")]


@pytest.mark.parametrize("before, after", [
    ({"name": "web1.example.net"}, {"name": "db1.example.net"}), ({"system": "linux"}, {"system": None}),
    ({"name": "web1.example.net"}, {"name": ()})])
@pytest.mark.parametrize("shown", [(), ("22 tcp open ssh",)])
def test_a_host_that_left_its_group_is_accepted_as_it_is_now(desk, before, after, shown):
    """Its old name or system holds it no more."""
    others = [host(f"10.0.0.{at}", "22 tcp open ssh", name=f"web{at}.example.net", system=before.get("system"))
              for at in (42, 73)]
    desk.store(host("10.0.0.1", *shown, **before), *others)
    assert desk.ask("--process-only").status == 0       # it is told
    desk.store(host("10.0.0.1", "22 tcp open ssh", **after), *others, run_id=NEXT)
    assert desk.findings(desk.ask("--accept").out) == set()


@pytest.mark.parametrize("hosts, tags", [
    ((("10.0.0.12", ""), ("10.0.0.13", "")), [("ip", "10.0.0.12/30")]),
    ((("10.0.0.7", ""), ("10.0.0.8", "")), [("ip", "10.0.0.0/28")]),
    ((("2001:db8::1", ""), ("2001:db8::2", "")), [("ip", "2001:db8::/124")]),
    ((("10.0.0.1", "one.example"), ("10.9.0.1", "two.example")), [("ip", "10.0.0.1"), ("ip", "10.9.0.1")]),
    ((("10.0.0.1", "one."), ("10.9.0.1", "two.")), [("ip", "10.0.0.1"), ("ip", "10.9.0.1")]),
    ((("10.0.0.1", "one.example.net"), ("10.9.0.1", "two.example.net")), [("hostname", "*.example.net")])])
def test_a_group_is_as_narrow_as_may_be(desk, hosts, tags):
    """The smallest subnet that holds the hosts, and never all hosts of a top-level domain."""
    desk.store(*(host(address, "22 tcp open ssh", name=name or ()) for address, name in hosts))
    group, = accepted(desk.ask("--accept").out)
    assert group.tags == tags


def test_accepted_rules_may_be_appended_to_a_line_without_an_end(desk):
    desk.store(*OFFICE)
    rules = "group a\n ip 10.0.0.1\n ignore 1 tcp open x\nend group a"
    assert desk.findings(rules + desk.ask("--accept", rules=rules).out) == set()


def test_the_names_of_groups_never_collide(desk):
    rules = """
        group accepted 2026-11-24 1
            ip 10.0.0.200
            ignore 1 tcp open a
        end group
        group Accepted  2026-11-24   2
            ip 10.0.0.200
            ignore 1 tcp open a
        end group
        group "accepted 2026-11-24 4"
            ip 10.0.0.200
            ignore 1 tcp open a
        end group
        """
    desk.store(*OFFICE)
    found = desk.ask("--accept", rules=rules)
    names = [group.name for group in accepted(found.out)]
    assert len(names) > 2 and all(re.fullmatch(r"accepted 2026-11-24 \d+", name) for name in names)
    taken = {f"accepted 2026-11-24 {number}" for number in (1, 2, 4)}
    assert not taken & set(names) and len(names) == len(set(names))
    once = textwrap.dedent(rules) + found.out
    assert desk.findings(once) == set()
    desk.store(host("10.0.0.9", "9 tcp open discard"), run_id="20261124-030000")
    more = desk.ask("--accept", rules=once)
    assert len(accepted(more.out)) == 1
    assert desk.findings(once + more.out) == set()


def test_accepting_a_large_network_takes_one_round(desk):
    """The rules are far fewer than the ports they accept, and accept nothing else."""
    folder = desk.store(*networks.network(2000), looked=networks.LOOKED)
    shown = desk.findings()
    assert len(shown) > 6000
    found = desk.ask("--accept")
    check_accepted(found.out, folder, shown)
    assert desk.findings(found.out) == set()
    assert found.out.count("    ignore ") < 200


def test_accepting_networks_of_the_corpus_takes_one_round(desk, corpus):
    files = [line.split("\t") for line in (corpus / "INDEX.tsv").read_text().splitlines()[1:]]
    largest = sorted((row for row in files if row[0].startswith("files/") and row[8].isdigit()),
                     key=lambda row: (int(row[7]), int(row[8])))[-6:]
    for row in largest:
        folder = desk.directory / Path(row[0]).stem
        folder.mkdir(parents=True)
        (folder / "a.xml").write_bytes((corpus / row[0]).read_bytes())
        there = Desk(desk.run, desk.rc, folder.parent)
        there.directory = folder
        shown = there.findings()
        assert shown, row
        found = there.ask("--accept")
        check_accepted(found.out, folder, shown)
        assert there.findings(found.out) == set(), row[0]


# What nobody calls a service, a host or a system, and a scanned machine may.
STRANGE = ("#", "# x", "a #b", "a#b", '"', 'a"b', '"a"', "'", "a b", " a", "a ", "\n", "a\nend group\ngroup x\nos *",
           "\r", "\t", "*", "a*b", "**", "?", "[a]", "\\", "end group", "end", "group x", "ignore", "until",
           "until 2031-01-01", "open", "tcp", "25", "1-5", "*5", "80/http", "80/tcp", "http/80", "=", "=a", ":", "a:b",
           "::", "$(reboot)", "ä", "\u2028", "\u202e", "\x7f", "-", "-a", "a" * 300, "open|filtered", "İ", "ſ", ",",
           ";", "%", "/")


def test_strange_services_stay_in_their_rule(desk):
    """Only what a rule cannot hold becomes `*`, and even so it hides nothing more."""
    hosts = [host(f"10.0.0.{at}", ("25", "tcp", "open", service), "25 udp open x", "26 tcp open y")
             for at, service in enumerate(STRANGE, 1)]
    folder = desk.store(*hosts)
    every = desk.findings()
    shown = {row for row in every if row[1:3] == ("25", "tcp")}
    assert len(shown) == len(STRANGE)
    found = desk.ask("--accept", "25/tcp")
    check_accepted(found.out, folder, shown, every - shown)
    assert desk.findings(found.out) == every - shown
    written = {fields[3] for group in accepted(found.out) for fields, _ in group.rules}
    assert {"a:b", "'", "$(reboot)", "?", "[a]", "\\", ",", "http/80", "a" * 300} <= written
    for text in written - {"*"}:
        assert any(glob(text, service.lower()) and len(text.replace("*", "")) >= len(re.findall(
            r'[^\x00-\x20"#*/\x7f-\uffff]', service)) for service in STRANGE), text


def test_strange_names_and_systems_stay_in_their_group(desk):
    hosts = [host(f"10.0.{at}.{more}", ("25", "tcp", "open", "smtp"), (str(100 + more), "tcp", "open", "x"),
                  name=text, system=(text, text, "x", "")) for at, text in enumerate(STRANGE, 1) for more in (1, 2)]
    hosts.append(host("10.0.99.1", "26 tcp open smtp", name="plain.example.net", system="linux"))
    folder = desk.store(*hosts)
    every = desk.findings()
    shown = {row for row in every if row[1] != "26"}
    found = desk.ask("--accept", "10.0.0.0-10.0.98.255")
    check_accepted(found.out, folder, shown, every - shown)
    assert desk.findings(found.out) == every - shown


def test_addresses_that_no_tag_can_hold(desk):
    """A made-up file names a host by what is no address: nothing is written that would break the file."""
    for address in ("not an address", "10.0.0.1#", "fe80::1%eth0", "fe80::2%Eth-0", "a\nb"):
        folder = desk.directory / "odd"
        folder.mkdir(parents=True)
        (folder / "a.xml").write_text(networks.document([host(address, "25 tcp open smtp"),
                                                         host("10.0.0.9", "26 tcp open smtp")]))
        found = inside("--config", desk.rc(""), "--dir-name", folder, "--accept")
        assert found.status == 0, (address, found)
        after = inside("--config", desk.rc(found.out), "--dir-name", folder, "--process-only", "--no-human")
        assert after.status in (0, 2), (address, found.out, after.err)
        left = {row["IP"] for row in read_csv(after.out)}
        assert left == {nmap_audit.shown(address)}, address
        assert [line for line in found.out.splitlines()[2:] if line.startswith("#")] == [
            f"# No ip tag can hold {nmap_audit.shown(address)}."], found.out
        (folder / "a.xml").unlink()
        folder.rmdir()


TEXTS = st.sampled_from(["smtp", "http", "http", "ssh", ""]) | st.sampled_from(STRANGE) | st.text(max_size=6)
STATES = ("open", "open", "filtered", "open|filtered", "o pen", "*", "99999", "9-1")
HOST_NAMES = ("web1.example.net", "web2.example.net", "web.example.net", "db1.example.net", "web1")
PORTS = st.lists(st.tuples(st.sampled_from("25 26 80".split()), st.sampled_from(["tcp", "tcp", "udp", "ip"]),
                           st.sampled_from(STATES), TEXTS),
                 min_size=1, max_size=4, unique_by=lambda port: port[:2])
NAMES = st.sampled_from([(), *HOST_NAMES]) | TEXTS
GUESSES = st.sampled_from([None, "linux", "windows"]) | TEXTS.map(lambda text: (text, text, "x", ""))
ADDRESSES = st.sampled_from([f"10.0.0.{last}" for last in range(1, 12)] + ["2001:db8::1", "2001:db8::2", "10.0.1.1"])
NETWORKS = st.lists(st.tuples(ADDRESSES, PORTS, NAMES, GUESSES), min_size=1, max_size=7, unique_by=lambda row: row[0])
LIMITS = st.sampled_from([None, None, "25/tcp", "10.0.0.0/30", "10.0.0.1"])


@settings(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(NETWORKS, LIMITS)
def test_accepting_empties_the_report_of_any_network_and_hides_nothing_else(rows, limit):
    hosts = [host(address, *ports, name=name, system=system) for address, ports, name, system in rows]
    with tempfile.TemporaryDirectory() as name:
        xml, config = Path(name) / "results" / "a.xml", Path(name) / "nmap-audit.rc"
        xml.parent.mkdir()
        text = networks.document(hosts, looked={"tcp": "1-100", "udp": "1-100", "ip": "1-100"})
        xml.write_text(re.sub("[^\t\n\r -\ufffd]", "?", text), encoding="utf-8", errors="replace")
        config.write_text("")

        def findings():
            found = inside("--config", config, "--dir-name", xml.parent, "--process-only", "--no-human")
            assert found.status in (0, 2), found
            return {row_key(row) for row in read_csv(found.out)}
        every = findings()
        found = inside("--config", config, "--dir-name", xml.parent, "--accept", *[limit] * bool(limit))
        assert (found.status, found.err) == (0, "")
        config.write_text(found.out)
        left = findings()
        asked = {row for row in every if not limit or row[1:3] == tuple(limit.split("/")) or (
            "." in limit and parsed(row[0]) in ipaddress.ip_network(limit))}
        assert left == every - asked
        check_accepted(found.out, xml.parent, asked, every - asked)


MACHINES = st.dictionaries(
    st.sampled_from([f"10.0.0.{last}" for last in (1, 2, 3, 8, 9)] + ["2001:db8::1"]),
    st.tuples(st.sampled_from(["audited", "audited", "failed", "down"]), st.sets(st.sampled_from(["25", "80"])),
              st.sampled_from([(), *HOST_NAMES]), st.sampled_from([None, "linux", "windows"])), min_size=1)


@settings(max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MACHINES, min_size=2, max_size=3))
def test_accepting_after_many_nights_empties_the_report_and_holds_nobody_who_is_known_to_be_without(nights):
    """All nights but the last are told, so what a machine showed when it was audited last is remembered."""
    with tempfile.TemporaryDirectory() as name:
        directory, config, known = Path(name) / "runs", Path(name) / "nmap-audit.rc", {}
        config.write_text("")
        ask = functools.partial(inside, "--config", config, "--dir-name", directory)
        for at, machines in enumerate(nights):
            up = [host(address, *(f"{port} tcp open x" for port in sorted(ports)), name=name, system=system)
                  for address, (outcome, ports, name, system) in machines.items() if outcome == "audited"]
            folder = networks.write_run(directory, up, run_id=f"2026112{at + 1}-020000", looked={"tcp": "1-100"})
            for address, (outcome, *_) in machines.items():
                if outcome != "audited":
                    note(folder, address, outcome=outcome, reason="of itself" if outcome == "failed" else "")
            if at + 1 < len(nights):
                assert ask("--process-only").status in (0, 2)
            known |= {result.address: result for result in nmap_audit.read_run(folder).hosts.values()
                      if result.outcome == "audited"}
        found = ask("--accept")
        config.write_text(found.out)
        left = read_csv(ask("--process-only", "--no-human").out)
        assert [row for row in left if row["Change"] != "gone"] == []
        for group in accepted(found.out):
            for fields, _ in group.rules:
                assert all(any(hides(fields, port) for port in member.ports)
                           for member in members_of(group.tags, known.values())), (group, fields)


# ---- --why -------------------------------------------------------------------------------------

RULES = """\
group mail servers
    ip 10.0.0.3
    ip 10.0.0.16/28
    ignore 25 tcp open smtp
    expect 993 tcp open imaps
    ignore 110 tcp open pop3 until 2026-11-20
end group mail servers
group all
    ip *
    ignore 22 tcp open ssh
    ignore 25 tcp open *
end group all
group linux
    os Linux
    ignore 80-89 tcp open http
    ignore 12* tcp open ssh
end group linux
group windows
    os Windows
    ignore 135 tcp open loc-srv
    ignore 136 tcp open epmap
    ignore 445 tcp filtered microsoft-ds
    ignore 139 udp open netbios-ssn
    ignore 3389 udp closed ms-wbt-server
end group windows
group named
    hostname mail*
    ignore 8080 tcp open http-proxy
end group named
"""
MAIL = host("10.0.0.3", "22 tcp open ssh", "25 tcp open smtp", "993 tcp open imaps", "110 tcp open pop3",
            "53 tcp open domain", "53 udp open domain", "81 tcp open http", "8080 tcp open http-proxy",
            name=("mail.example.net", "mx.example.net"), system="linux")
PC = host("10.0.0.65", "135 tcp open msrpc", "137 tcp open epmap", "445 tcp open microsoft-ds",
          "139 tcp open netbios-ssn", "3389 tcp open ms-wbt-server", "9 tcp open", "22 tcp open ssh",
          name="pc1.example.net", system="windows")
SIX = host("2001:db8::25", "25 tcp open smtp")
TWINS = (host("10.0.0.70", "9 tcp open discard", name="twin.example.net"),
         host("10.0.0.71", "9 tcp open discard", name="twin.example.net"))
WHY_MAIL = """\
10.0.0.3 (mail.example.net): audited in 20261124-020000
  in group 'mail servers' by nmap-audit.rc:2 (ip 10.0.0.3)
  in group 'all' by nmap-audit.rc:9 (ip *)
  in group 'linux' by nmap-audit.rc:14 (os Linux)
  in group 'named' by nmap-audit.rc:27 (hostname mail*)
"""
WHY_PC = """\
10.0.0.65 (pc1.example.net): audited in 20261124-020000
  in group 'all' by nmap-audit.rc:9 (ip *)
  in group 'windows' by nmap-audit.rc:19 (os Windows)
"""
SMTP = "  25/tcp open smtp: ignored by nmap-audit.rc:4 (mail servers), nmap-audit.rc:11 (all)\n"
TCP_DOMAIN, UDP_DOMAIN = ("  53/tcp open domain: no rule ignores it\n", "  53/udp open domain: no rule ignores it\n")


@pytest.fixture
def office(desk):
    """A run of these machines, with rules of every kind."""
    desk.folder = desk.store(MAIL, PC, SIX, *TWINS, host("10.0.0.80", "9 tcp open discard"),
                             looked={"tcp": "1-10000", "udp": "1-1000"})
    note(desk.folder, "10.0.0.90", outcome="down")
    note(desk.folder, "10.0.0.80", outcome="timed out", reason="its --host-timeout passed")
    return desk


@pytest.mark.parametrize("asked, answer", [pytest.param(*each, id=each[0].replace("/", "-")) for each in (
    ("10.0.0.3:25", WHY_MAIL + SMTP),
    ("10.0.0.3:25/tcp", WHY_MAIL + SMTP),
    ("mail.example.net:25", WHY_MAIL + SMTP),
    ("MAIL.Example.Net:25", WHY_MAIL + SMTP),
    ("mx.example.net:25/tcp", WHY_MAIL + SMTP),
    ("10.0.0.3:53", WHY_MAIL + TCP_DOMAIN + UDP_DOMAIN),
    ("10.0.0.3:53/udp", WHY_MAIL + UDP_DOMAIN),
    ("10.0.0.3:22", WHY_MAIL + "  22/tcp open ssh: ignored by nmap-audit.rc:10 (all)\n"),
    ("10.0.0.3:993", WHY_MAIL + "  993/tcp open imaps: ignored by nmap-audit.rc:5 (mail servers)\n"),
    ("10.0.0.3:81", WHY_MAIL + "  81/tcp open http: ignored by nmap-audit.rc:15 (linux)\n"),
    ("10.0.0.3:8080", WHY_MAIL + "  8080/tcp open http-proxy: ignored by nmap-audit.rc:28 (named)\n"),
    ("10.0.0.3:7", WHY_MAIL + "  7: closed or not listed\n"),
    ("10.0.0.3:7/udp", WHY_MAIL + "  7/udp: closed or not listed\n"),
    ("10.0.0.3:10001", WHY_MAIL + "  10001: not looked at\n"),
    ("10.0.0.3:10001/tcp", WHY_MAIL + "  10001/tcp: not looked at\n"),
    ("10.0.0.3:25/sctp", WHY_MAIL + "  25/sctp: not looked at\n"),
    ("10.0.0.65:135", WHY_PC + "  135/tcp open msrpc: no rule ignores it\n"
     "    nmap-audit.rc:20 would, but its service is loc-srv and nmap says msrpc\n"),
    ("10.0.0.65:137", WHY_PC + "  137/tcp open epmap: no rule ignores it\n"
     "    nmap-audit.rc:21 would, but its port is 136 and nmap says 137\n"),
    ("10.0.0.65:445/tcp", WHY_PC + "  445/tcp open microsoft-ds: no rule ignores it\n"
     "    nmap-audit.rc:22 would, but its state is filtered and nmap says open\n"),
    ("10.0.0.65:139", WHY_PC + "  139/tcp open netbios-ssn: no rule ignores it\n"
     "    nmap-audit.rc:23 would, but its protocol is udp and nmap says tcp\n"),
    ("10.0.0.65:3389", WHY_PC + "  3389/tcp open ms-wbt-server: no rule ignores it\n"),     # two fields differ
    ("2001:db8::25", "2001:db8::25: audited in 20261124-020000\n  in group 'all' by nmap-audit.rc:9 (ip *)\n"
     "  25/tcp open smtp: ignored by nmap-audit.rc:11 (all)\n"),
    ("[2001:db8::25]", "2001:db8::25: audited in 20261124-020000\n  in group 'all' by nmap-audit.rc:9 (ip *)\n"
     "  25/tcp open smtp: ignored by nmap-audit.rc:11 (all)\n"),
    ("[2001:db8::25]:25", "2001:db8::25: audited in 20261124-020000\n  in group 'all' by nmap-audit.rc:9 (ip *)\n"
     "  25/tcp open smtp: ignored by nmap-audit.rc:11 (all)\n"),
    ("[2001:DB8:0:0::25]:26/tcp", "2001:db8::25: audited in 20261124-020000\n"
     "  in group 'all' by nmap-audit.rc:9 (ip *)\n  26/tcp: closed or not listed\n"))])
def test_why(office, asked, answer):
    assert office.ask("--why", asked, rules=RULES) == (0, answer, "")


def test_why_of_a_whole_host_has_each_of_its_ports(office):
    found = office.ask("--why", "10.0.0.3", rules=RULES)
    ports = [line for line in found.out.splitlines() if re.match(r"  \d", line)]
    assert [line.split(":")[0] for line in ports] == [
        "  22/tcp open ssh", "  25/tcp open smtp", "  53/tcp open domain", "  81/tcp open http", "  110/tcp open pop3",
        "  993/tcp open imaps", "  8080/tcp open http-proxy", "  53/udp open domain"]
    assert found.out.startswith(WHY_MAIL) and SMTP in found.out


def test_why_of_a_rule_that_has_ended(office):
    found = office.ask("--why", "10.0.0.3:110", rules=RULES)
    assert found.out.startswith(WHY_MAIL + "  110/tcp open pop3: no rule ignores it\n")
    assert re.search(r"^    nmap-audit\.rc:6 would, but .*2026-11-20", found.out, re.MULTILINE), found.out


def test_why_of_a_host_in_no_group_and_of_several_hosts_of_one_name(office):
    rules = "group a\n ip 10.0.0.70\n ignore 9 tcp open discard\nend group"
    found = office.ask("--why", "twin.example.net", rules=rules)
    assert found.out.startswith(
        "10.0.0.70 (twin.example.net): audited in 20261124-020000\n"
        "  in group 'a' by nmap-audit.rc:2 (ip 10.0.0.70)\n"
        "  9/tcp open discard: ignored by nmap-audit.rc:3 (a)\n"
        "10.0.0.71 (twin.example.net): audited in 20261124-020000\n"
        "  in no group\n"
        "  9/tcp open discard: no rule ignores it\n") and (found.status, found.err) == (0, "")


def test_why_names_every_tag_that_puts_a_host_into_a_group(office):
    rules = "group a\n ip 10.0.0.3\n ip 10.0.0.0/24\n ip 10.0.1.0/24\n ignore 1 tcp open a\nend group"
    assert office.ask("--why", "10.0.0.3:25", rules=rules).out.splitlines()[:4] == [
        "10.0.0.3 (mail.example.net): audited in 20261124-020000", "  in group 'a' by nmap-audit.rc:2 (ip 10.0.0.3)",
        "  in group 'a' by nmap-audit.rc:3 (ip 10.0.0.0/24)", "  25/tcp open smtp: no rule ignores it"]


@pytest.mark.parametrize("address, outcome", [("10.0.0.80", "timed out"), ("10.0.0.90", "down")])
def test_why_of_a_host_that_was_not_audited(office, address, outcome):
    found = office.ask("--why", address, rules=RULES)
    assert found.status == 0 and found.out.startswith(f"{address}: {outcome} in 20261124-020000"), found


@pytest.mark.parametrize("asked", ["10.0.0.80:26", "10.0.0.90:26", "10.0.0.80:20000"])
def test_why_of_a_port_of_a_host_that_was_not_audited(office, asked):
    """It is not called closed: nobody knows."""
    assert office.ask("--why", asked, rules=RULES).out.endswith(f"\n  {asked.partition(':')[2]}: not known\n")


def test_why_of_what_is_gone_or_missing(desk):
    """What the report says of a port is said of it here, too."""
    rules = ("group a\n ip 10.0.0.1\n expect 25 tcp open smtp\n expect 80-89 tcp open http\n ignore 22 tcp open ssh\n"
             "end group\n")
    desk.store(host("10.0.0.1", "22 tcp open ssh", "25 tcp open smtp", "79 tcp open finger"))
    assert desk.ask("--process-only", rules=rules).status == 0      # it is told
    desk.store(host("10.0.0.1", "22 tcp open ssh", "25 tcp filtered smtp"), run_id=NEXT)
    assert desk.ask("--why", "10.0.0.1", rules=rules).out == f"""\
10.0.0.1: audited in {NEXT}
  in group 'a' by nmap-audit.rc:2 (ip 10.0.0.1)
  80-89/tcp open http: missing, expected by nmap-audit.rc:4 (a)
  22/tcp open ssh: ignored by nmap-audit.rc:5 (a)
  25/tcp filtered smtp: no rule ignores it
    nmap-audit.rc:3 would, but its state is open and nmap says filtered
  25/tcp open smtp: missing, expected by nmap-audit.rc:3 (a)
  79/tcp open finger: gone since the last report
"""
    assert desk.ask("--why", "10.0.0.1:79", rules=rules).out.splitlines()[2:] == [
        "  79/tcp open finger: gone since the last report"]


@pytest.mark.parametrize("asked", ["10.0.0.99", "10.0.0.99:25", "nobody.example.net", "2001:db8::26",
                                   "[2001:db8::26]:25", "mail.example.net.evil", "nobody*", "192.0.2.0/24",
                                   "10.0.0.4-64:25"])
def test_why_of_a_host_that_the_run_does_not_hold(office, asked):
    found = office.ask("--why", asked, rules=RULES)
    assert (found.status, found.out) == (66, "")
    assert asked.strip("[]").partition("]")[0].partition(":25")[0] in found.err and len(found.err.splitlines()) == 1


@pytest.mark.parametrize("asked", ["10.0.0.3:x", "10.0.0.3:", "10.0.0.3:25/", "10.0.0.3:25/tcp/x", "10.0.0.3/33", "",
                                   ":25", "[10.0.0.3", "10.0.0.3:99999", "10.0.0.3:25/tpc", "2001:db8::25:25/tcp"])
def test_why_that_is_asked_wrongly_says_how_to_ask(office, asked):
    found = office.ask(f"--why={asked}", rules=RULES)
    assert found.status in (64, 66) and found.out == "" and "HOST[:PORT" in found.err


def test_why_of_a_port_that_nmap_has_no_name_for(office):
    found = office.ask("--why", "10.0.0.65:9", rules="group a\n ip *\n ignore 9 tcp open discard\nend group")
    assert "\n  9/tcp open: no rule ignores it\n" in found.out
    assert re.search(r"\n    nmap-audit\.rc:3 would, but its service is discard and nmap says \S+\n", found.out)


def test_why_reads_the_newest_finished_run_or_the_one_that_is_named(desk):
    desk.store(host("10.0.0.1", "25 tcp open smtp"))
    desk.store(host("10.0.0.1", "26 tcp open smtp"), run_id=NEXT)
    note(desk.store(host("10.0.0.1", "27 tcp open smtp"), run_id=LAST), "", status="running")
    assert "26/tcp open smtp" in desk.ask("--why", "10.0.0.1").out
    found = desk.ask("--why", "10.0.0.1", "--dir-name", desk.directory / RUN)
    assert "25/tcp open smtp" in found.out and "27/tcp" not in found.out


def test_why_shows_what_strangers_write(desk):
    desk.store(host("10.0.0.1", ("25", "tcp", "open", "a\u202e\nb" * 100), name="x\u202e\n.example.net" + "y" * 5000))
    found = desk.ask("--why", "10.0.0.1")
    assert found.status == 0 and len(found.out.splitlines()) == 3
    assert all(line.isprintable() and len(line) < 300 for line in found.out.splitlines())


@pytest.mark.parametrize("asked, addresses", [pytest.param(*each, id=each[0].replace("/", "-")) for each in (
    ("*", ["10.0.0.3", "10.0.0.65", "10.0.0.70", "10.0.0.71", "10.0.0.80", "10.0.0.90", "2001:db8::25"]),
    ("10.0.0.0/24:25", ["10.0.0.3", "10.0.0.65", "10.0.0.70", "10.0.0.71", "10.0.0.80", "10.0.0.90"]),
    ("10.0.0.3/25", ["10.0.0.3", "10.0.0.65", "10.0.0.70", "10.0.0.71", "10.0.0.80", "10.0.0.90"]),
    ("10.0.0.65-70", ["10.0.0.65", "10.0.0.70"]),
    ("twin*:9", ["10.0.0.70", "10.0.0.71"]),
    ("25/tcp", ["10.0.0.3", "10.0.0.65", "10.0.0.70", "10.0.0.71", "10.0.0.80", "10.0.0.90", "2001:db8::25"]),
    ("[2001:db8::/64]:25", ["2001:db8::25"]))])
def test_why_of_many_hosts_tells_of_each_in_the_order_of_addresses(office, asked, addresses):
    """The same as asked for one by one."""
    found, port = office.ask("--why", asked, rules=RULES), re.search(r"(?:^|:)(\d+(?:/\w+)?)$", asked)
    behind = f":{port[1]}" if port and asked not in ("10.0.0.3/25", "10.0.0.65-70") else ""
    single = [office.ask("--why", (f"[{each}]" if ":" in each else each) + behind, rules=RULES).out
              for each in addresses]
    assert (found.status, found.err) == (0, "") and found.out == "".join(single)


@pytest.mark.parametrize("detail, shown", [("none", False), ("low", False), ("med", True), ("high", True)])
def test_near_misses_in_the_report(office, detail, shown):
    """Nothing is near where a rule accepts the port, and the title counts the rows."""
    report = office.ask("--process-only", "--detail", detail, rules=RULES).out
    title = "Near misses: rules that would accept a port but for one thing (5)"
    assert (title in tables(report)) == shown == ("Near misses" in report)
    if shown:
        rows = [re.split(r"\s{2,}", line) for line in report.split(f"{title}\n\n")[1].split("\n\n")[0].splitlines()]
        assert rows[0] == ["HOST", "PORT", "PROTOCOL", "LINE", "WHY"] and len(rows) == 7
        assert rows[2:] == [
            ["10.0.0.3 (mail.example.net)", "110", "tcp", "nmap-audit.rc:6", "it ended on 2026-11-20"],
            *(["10.0.0.65 (pc1.example.net)", *more] for more in (
                ["135", "tcp", "nmap-audit.rc:20", "its service is loc-srv and nmap says msrpc"],
                ["137", "tcp", "nmap-audit.rc:21", "its port is 136 and nmap says 137"],
                ["139", "tcp", "nmap-audit.rc:23", "its protocol is udp and nmap says tcp"],
                ["445", "tcp", "nmap-audit.rc:22", "its state is filtered and nmap says open"]))]


def test_near_misses_are_looked_for_only_where_they_are_shown(office, monkeypatch):
    asked, near_misses = [], nmap_audit.near_misses
    monkeypatch.setattr(nmap_audit, "near_misses", lambda *what: asked.append(what) or near_misses(*what))
    for argv in (["--process-only"], ["--process-only", "--detail", "none"], ["--accept"]):
        assert office.ask(*argv, rules=RULES).out and not asked
    for argv in (["--process-only", "--detail", "med"], ["--process-only", "--detail", "high"], ["--why", "10.0.0.65"]):
        assert office.ask(*argv, rules=RULES).out and asked
        asked.clear()


@pytest.mark.parametrize("rule, near", [
    ("25 tcp open smtps", "its service is smtps and nmap says smtp"), ("25 tcp open s*t", "its service is s*t"),
    ("25 tcp filtered smtp", "its state is filtered"), ("25 udp open smtp", "its protocol is udp"),
    ("26 tcp open smtp", "its port is 26 and nmap says 25"), ("26-30 tcp open smtp", "its port is 26-30"),
    ("3* tcp open smtp", "its port is 3*"), ("2* tcp open smtps", "its service is smtps"),
    ("25 tcp open smtp until 2026-11-24", "it ended on 2026-11-24"),
    ("20-30 tcp open smtps", "its service is smtps"),
    ("26 tcp open smtps", ""), ("26 tcp open *", ""), ("26 tcp open s*", ""), ("* tcp filtered *", ""),
    ("* tcp open http", ""), ("25 udp filtered smtp", ""), ("26 tcp open smtp until 2026-11-24", ""),
    ("25 tcp open smtp until 2026-11-25", "accepted")])
def test_what_a_near_miss_is(desk, rule, near):
    """A rule of the host's that names the port or, where that is what differs, the service; one field, or its end."""
    desk.store(host("10.0.0.1", "25 tcp open smtp"))
    rules = f"group a\n ip 10.0.0.1\n ignore {rule}\nend group"
    report = desk.ask("--process-only", "--detail", "med", rules=rules).out
    why = desk.ask("--why", "10.0.0.1:25", rules=rules).out
    said = near not in ("", "accepted")
    assert (f"nmap-audit.rc:3 would, but {near}" in why) == said == (f"  nmap-audit.rc:3  {near}" in report), report
    assert (" would, but " in why) == said == ("Near misses" in report), why
    assert ("ignored by" in why) == (near == "accepted")


# ---- --test-config -----------------------------------------------------------------------------

NMAP = """#!/usr/bin/python3 -SE
import json, sys
with open(__file__ + ".calls", "a") as file:
    file.write(json.dumps(sys.argv) + "\\n")
said, status = {said!r}, {status}
sys.stderr.write(said)
if not status:
    print({xml!r})
sys.exit(status)
"""
WITH_VALUE = ("-oX", "-p", "--exclude", "--excludefile", "--top-ports", "--exclude-file")


@pytest.fixture
def nmap(fake):
    """nmap(ports, said, status): a fake that was called without targets; its calls are in nmap.calls."""
    def install(ports={"tcp": "1-1000"}, said="", status=0):
        install.path = fake("nmap", text=NMAP.format(
            xml=networks.document([], looked=ports), said=said, status=status))
        return install
    install.calls = lambda: [json.loads(line) for line in Path(f"{install.path}.calls").read_text().splitlines()
                             ] if Path(f"{install.path}.calls").exists() else []
    return install


def holds_a_target(argv):
    """Whether nmap would scan with these words: whatever is no option, nor the value of one, is a target.

    With -iL nmap reads targets from that file only, and nothing is in /dev/null.
    """
    words = iter(argv[1:])
    if argv[1:3] == ["-iL", "/dev/null"]:
        return any(word.startswith(("-iL", "-iR")) for word in argv[3:])
    for word in words:
        if word in WITH_VALUE:
            next(words)
        elif not word.startswith("-") or word == "--" or word.startswith("-iL") or word.startswith("-iR"):
            return True
    return False


def warnings(result):
    """Standard error as (place, what, what to do); every line must be a warning with all three."""
    found = [re.fullmatch(r"nmap-audit: (.*): warning: (.*); (.*)", line) for line in result.err.splitlines()]
    assert all(found), result.err
    return [match.groups() for match in found]


def group(*rules, name="mail"):
    """rc text of a group; its first rule is on its third line."""
    return "".join([f"group {name}\n    ip 10.0.0.0/24\n", *(f"    {rule}\n" for rule in rules), f"end group {name}\n"])


BASE = "IPS 10.0.0.0/30\nDIR-NAME /var/lib/nmap-audit-test\n"
ODD_FILES = {  # by name: an rc text, what nmap looks at, the lines that a warning stands on
    "nothing-odd": (BASE + group("ignore 25 tcp open smtp", "expect 26 udp * *", "ignore 1-65535 tcp closed *"),
                    {"tcp": "1-1000", "udp": "26"}, []),
    "port-outside": (BASE + group(
        "ignore 25 tcp open smtp", "ignore 8080 tcp open http-proxy", "ignore 53 udp open domain",
        "expect 9000-9100 tcp open *", "ignore 99* tcp open *", "ignore 500-9000 * closed *", "ignore * udp closed *",
        "ignore 40 sctp * *"), TCP, [6, 7, 8, 11, 12]),
    "until-passed": (BASE + group(
        "ignore 25 tcp open smtp until 2020-01-31", "ignore 26 tcp open smtp until 2099-12-31",
        "expect 27 tcp open smtp until 2020-01-31"), TCP, [5, 7]),
    "duplicates": (BASE + group(
        "ignore 25 tcp open smtp", "ignore 26 tcp open smtp", "ignore smtp open tcp 25", "expect 27 tcp open smtp",
        "expect 27/tcp open smtp"), TCP, [7, 9]),
    "covered": (BASE + group(
        "ignore 25 tcp open smtp", "ignore 20-30 tcp open *", "ignore 80 tcp open http", "ignore 80 * open http",
        "ignore 100-110 tcp open x", "ignore 90-120 tcp * x*", "ignore 200 tcp open y", "ignore 200 tcp filtered *",
        "ignore 300 tcp open z", "expect 300 tcp open *"), TCP, [5, 7, 9]),
    "accepted-everywhere-below": (BASE + group("ignore 25 tcp open smtp", "ignore 26 tcp open x") + "".join(
        f"group all{at}\n ip *\n ignore 25 tcp open smtp\n ignore {at} tcp open x\nend group all{at}\n"
        for at in (1, 2)), TCP, [5, 15]),
    "expect-asks-for-less": (BASE + group(
        "expect 80 tcp open http", "expect 443 tcp open *", "expect * tcp open *", "expect 443 tcp open *"),
        TCP, [7, 8]),
    "alike-but-dates": (BASE + group(
        "ignore 80 tcp open http until 2099-01-01", "ignore 80 tcp open http", "ignore 81 tcp open *",
        "ignore 81 tcp open **", "ignore 82 tcp open http", "ignore 82 tcp open http until 2099-01-01"),
        TCP, [5, 8, 10]),
    "set-thrice": (BASE + "DETAIL low\nDETAIL med\nDETAIL high\n", TCP, [3, 4]),
    "a-strange-name": (BASE + group("ignore 80 tcp open http") + group(
        "ignore 80 tcp open http", name="b\x1b[31mRED"), TCP, [7]),
    "everything-that-is-open": (BASE + group(
        "ignore 0-65535 tcp open *", "ignore 1-65535 * * *", "ignore * udp open|filtered *",
        "ignore 1-65534 tcp open *", "ignore * tcp open x"), {"tcp": "1-65535", "udp": "1-9"}, [5, 6, 8]),
    "accepted-everywhere": (BASE + group("ignore 25 tcp open smtp", "ignore 26 tcp open *", "expect 22 tcp open ssh")
                            + "group all\n ip 10.0.0.9\n ip *\n ignore 25 tcp * smtp\n ignore 26 tcp open x\n"
                            " ignore 22 tcp open *\nend group all\n", TCP, [5]),
    "no-service": (BASE + group(
        'ignore 25 tcp open "smtp"', "ignore 25 tcp open smtp;", "ignore 25 tcp open 'smtp'",
        "ignore 443 tcp open ssl/http",
        "ignore 25 tcp open \u00absmtp\u00bb", "ignore 6000 tcp open X11:1", "ignore 1720 tcp open h.323/q.931",
        "ignore 1 tcp open at-3+x_*"), {"tcp": "1-9999"}, [5, 6, 7, 8, 9]),
    "no-targets": ("DIR-NAME /var/lib/a,/var/lib/b\n", TCP, [None, 1]),
    "no-ports": (BASE + "NMAP nmap -sn\n", {}, [3]),
    "everything": (BASE + group("ignore * * * *") + group("ignore 1 tcp * *", "ignore 2 tcp open x", name="web"),
                   TCP, [5, 9, 10]),
    "alike-groups": (BASE + group("ignore 25 tcp open smtp", "ignore 26 tcp open smtp", "expect 27 tcp open *")
                     + group("ignore 26 tcp open smtp", "ignore 25 * * *", "ignore 27 tcp open x", name="web")
                     + group("ignore 26 tcp open smtp", name="other hosts").replace("/24", "/25"), TCP, [5, 11]),
    "groups-of-another-name": (BASE + group("ignore 25 tcp open smtp", "expect 26 tcp open smtp") + group(
        "expect 26 tcp open smtp", "ignore 25/tcp open smtp", name="web") + group("ignore 25 tcp open smtp", name="x"),
        TCP, [8, 15]),
    "set-twice": (BASE + "DETAIL low\nEMAIL-TO a@example.net\nIPS 10.0.0.9\nDETAIL high\nEMAIL-TO b@example.net\n"
                  "FROM a@example.net\nEMAIL-FROM b@example.net\n", TCP, [3, 8]),
    "relative-paths": ("IPS 10.0.0.0/30\nDIR-NAME runs\nSENDMAIL bin/sendmail\nSMTP-PASSWORD-FILE password\n", TCP,
                       [2, 3, 4]),
}


@pytest.mark.parametrize("name", ODD_FILES)
def test_warnings(desk, nmap, golden, tmp_path, name):
    text, ports, lines = ODD_FILES[name]
    nmap(ports)
    config = desk.rc(text)
    found = desk.run("--config", config, "--test-config")
    assert found.status == 0
    assert [place.rpartition(":")[0] for place, *_ in warnings(found)] == [
        f"{config}:{line}" if line else "" for line in lines]
    golden(f"workshop/{name}.err", found.err, keep=re.findall(r"\d{4}-\d\d-\d\d", text))


@pytest.mark.parametrize("name, mode, warned", [
    ("writable-by-others", 0o646, True), ("writable-by-the-group", 0o664, True), ("readable-by-all", 0o644, False)])
def test_warning_of_an_rc_file_that_others_can_write(desk, nmap, golden, name, mode, warned):
    if os.geteuid():
        pytest.skip("only root's file can be meant for somebody else")
    nmap()
    config = desk.rc(BASE)
    config.chmod(mode)
    found = desk.run("--config", config, "--test-config")
    assert found.status == 0 and bool(found.err) == warned
    if warned:
        golden(f"workshop/{name}.err", found.err)


def test_warning_of_a_relative_rc_file(desk, nmap, golden, tmp_path):
    nmap()
    desk.rc(BASE)
    found = desk.run("--config", "nmap-audit.rc", "--test-config", cwd=tmp_path)
    assert found.status == 0 and len(warnings(found)) == 1
    golden("workshop/relative-rc.err", found.err)


@pytest.mark.parametrize("name, said", [
    pytest.param("option-unknown", "nmap: unrecognized option '--bogus'\nSee the output of nmap -h for a summary of "
                 "options.\n", id="option"),
    pytest.param("needs-root", "You requested a scan type which requires root privileges.\nQUITTING!\n", id="root"),
    pytest.param("port-list-wrong", "Ports to be scanned must be between 0 and 65535 inclusive\nQUITTING!\n",
                 id="ports")])
def test_warning_in_the_words_of_nmap(desk, nmap, golden, name, said):
    nmap(said=said, status=1)
    config = desk.rc("IPS 10.0.0.1\nNMAP nmap -sS --bogus\n" + group("ignore 25 tcp open smtp"))
    found = desk.run("--config", config, "--test-config")
    (place, what, _), = warnings(found)     # nothing is said of rules, since no port list is known
    assert found.status == 0 and place == f"{config}:2:6" and said.split("\n")[0] in what
    golden(f"workshop/{name}.err", found.err)


def test_warning_where_nmap_is_not_found(desk, golden, tmp_path):
    config = desk.rc("IPS 10.0.0.1\nNMAP no-such-nmap -F\n")
    found = desk.run("--config", config, "--test-config")
    assert found.status == 0 and [place for place, *_ in warnings(found)] == [f"{config}:2:6"]
    golden("workshop/nmap-not-found.err", found.err)


def test_a_real_nmap_is_asked_for_its_ports(desk, real_nmap):
    rules = group("ignore 25 tcp open smtp", "ignore 80 tcp open http")
    for options, lines in (("-p 80,443", [3]), ("-p 1-25", [4]), ("-sU -p 25", [3, 4]), ("-F", []),
                           ("--exclude 10.0.0.9 -p 80", [3]), ("-6 -p 80", [3])):
        found = desk.run("--config", desk.rc(f"{rules}NMAP {real_nmap} {options}\nIPS 10.0.0.1\n"), "--test-config")
        assert found.status == 0
        assert [int(place.split(":")[1]) for place, *_ in warnings(found)] == lines, (options, found.err)


RANGES = ("2*", "20-30", "20-29", "*5", "1-5", "5", "25", "2*5", "200-205", "1-9", "*1*", "10-15", "1*", "*", "1-65535")


def numbers(ports):
    """The ports that a rule's first field stands for."""
    return {number for number in range(1, 65536) if hides((ports, "*", "*", "*"), nmap_audit.Port(number, "", ""))}


def test_only_what_is_held_by_another_rule_is_called_so(desk, nmap):
    """By itself or in part, a range that only looks like a pattern's digits is not: 2* holds 20-29 and not 20-30."""
    nmap({"tcp": "1-65535"})
    held = {ports: numbers(ports) for ports in RANGES}
    for wider in RANGES:
        others = [ports for ports in RANGES if ports != wider]
        rules = "".join(f"group {at}\n ip 10.0.0.{at}\n ignore {ports} tcp open x\n ignore {wider} tcp open x\n"
                        "end group\n" for at, ports in enumerate(others))
        found = [int(place.split(":")[1]) for place, *_ in warnings(desk.ask("--test-config", rules=BASE + rules))]
        told = {others[line // 5 - 1] for line in found if line % 5 == 0}
        assert [ports for ports in told if not held[ports] <= held[wider]] == [], wider
        assert told >= {ports for ports in others if ports.isdigit() and held[ports] <= held[wider]}, wider


def test_settings_and_where_they_come_from(desk, nmap):
    nmap()
    config = desk.rc("IPS 10.0.0.1\nIPS 10.0.0.2\nMAX-THREADS 5\nMAX-THREADS 7\nDETAIL high\nQUIET\nDIR-NAME /srv/a\n"
                     "NMAP nmap -sS --script 'a b'\nFROM a@example.net\nTELL always\nBATCH 3\nBATCH 4\n")
    found = desk.run("--config", config, "--test-config", "--detail", "low", "--max-threads=9", "--ips", "10.0.0.3")
    rows = dict(line.split(None, 1) for line in found.out.splitlines())
    assert [line.split(None, 1)[0] for line in found.out.splitlines()] == list(rows)
    said = {name: re.split(r"\s{2,}", text.strip()) for name, text in rows.items()}
    assert said["DETAIL"] == ["low", "--detail"]
    assert "DETAIL" not in found.err        # the option stands in its place, not beside it
    assert said["MAX-THREADS"] == ["9", "--max-threads"]
    assert said["DIR-NAME"] == ["/srv/a", "nmap-audit.rc:7"]
    assert said["NMAP"] == ["nmap -sS --script 'a b'", "nmap-audit.rc:8"]
    assert said["EMAIL-FROM"] == ["a@example.net", "nmap-audit.rc:9"]
    assert said["TELL"] == ["always", "nmap-audit.rc:10"]
    assert said["QUIET"] == ["yes", "nmap-audit.rc:6"] and said["SCAN-ONLY"] == ["no", "default"]
    assert said["KEEP-RUNS"] == ["0", "default"] and said["BATCH"] == ["4", "nmap-audit.rc:12"]
    assert said["IPS"] == ["10.0.0.3", "--ips"]
    variables = {option.name for option in nmap_audit.OPTIONS.values() if option.variable}
    assert set(rows) == variables and "CONFIG" not in rows
    assert "SMTP-PASSWORD-FILE" in rows


def test_settings_in_force_are_those_of_a_run(desk, nmap):
    """The defaults that a person would look up: where results are kept, who sends, to whom, which subject."""
    nmap()
    found = desk.run("--config", desk.rc(""), "--test-config", env={"XDG_STATE_HOME": "/srv/state"})
    rows = {line.split(None, 1)[0]: line for line in found.out.splitlines()}
    where = "/var/lib/nmap-audit" if os.geteuid() == 0 else "/srv/state/nmap-audit"
    assert re.fullmatch(rf"DIR-NAME +{where} +default", rows["DIR-NAME"])
    for name, value in {"BATCH": "auto", "NMAP": "nmap -F", "MAX-THREADS": "10", "KEEP-RUNS": "0", "DETAIL": "low",
                        "QUIET": "no", "SMTP-TLS": "none", "EMAIL-TO": ""}.items():
        assert re.fullmatch(rf"{name} +{value} +default", rows[name]), rows[name]
    found = desk.run("--config", desk.rc("EMAIL-TO a@example.net\nBATCH auto\nQUIET\n"), "--test-config", "--email-to=")
    rows = {line.split(None, 1)[0]: line for line in found.out.splitlines()}
    assert re.fullmatch(r"EMAIL-TO +--email-to", rows["EMAIL-TO"])      # which takes back what the file says
    assert re.fullmatch(r"BATCH +auto +nmap-audit\.rc:2", rows["BATCH"])
    assert re.fullmatch(r"QUIET +yes +nmap-audit\.rc:3", rows["QUIET"])


@pytest.mark.parametrize("text, argv, status", [
    ("", (), 0), ("IPS 10.0.0.1\n", (), 0), ("IPZ 10.0.0.1\n", (), 78), ("group a\n", (), 78), (b"\0", (), 78),
    (None, (), 66), ("", ("--ips", "10.0.0.300"), 64), ("", ("--tesst-config",), 64)])
def test_statuses(desk, nmap, tmp_path, text, argv, status):
    nmap()
    config = tmp_path / "nothing.rc" if text is None else desk.rc(text)
    found = desk.run("--config", config, "--test-config", *argv)
    assert found.status == status and bool(found.out) == (status == 0), found


def picture(folder):
    """All that is in a folder: names, modes, sizes, times, contents."""
    return {path: (path.lstat().st_mode, path.lstat().st_size, path.lstat().st_mtime_ns,
                   path.read_bytes() if path.is_file() else b"") for path in sorted(folder.rglob("*"))}


ASKED = {"accept": ("--accept",), "why": ("--why", "10.0.0.1"), "test-config": ("--test-config",),
         "unused-rules": ("--unused-rules",)}


@pytest.mark.parametrize("asked", ASKED)
def test_it_only_looks(desk, nmap, fake, tmp_path, asked):
    """Nothing is scanned, mailed or written, a held lock does not matter, and no other setting changes that."""
    nmap()
    mails = fake("sendmail")
    for run_id in (RUN, NEXT):
        desk.store(host("10.0.0.1", "25 tcp open smtp"), run_id=run_id)
    (desk.directory / "lock").write_text("pid 1 since 2026-11-24 02:00:00\n")
    config = desk.rc("IPS 10.0.0.1\nEMAIL-TO root@example.net\nTELL always\nKEEP-RUNS 1\n"
                     "group a\n ip *\n ignore 26 tcp open smtp\nend group\n")
    before = picture(desk.directory)
    with open(desk.directory / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for more in ((), ("--process-only",), ("--detail=high", "--no-human", "--email-to=a@example.net")):
            found = desk.run("--config", config, "--dir-name", desk.directory, *ASKED[asked], *more)
            assert found.status == 0 and found.out, found
    assert picture(desk.directory) == before
    assert mails.calls == [] and {path.name for path in tmp_path.iterdir()} == {"bin", "runs", "nmap-audit.rc"}
    assert bool(nmap.calls()) == (asked == "test-config") and not any(map(holds_a_target, nmap.calls()))


@pytest.mark.parametrize("asked", ["accept", "why", "unused-rules"])
def test_a_folder_that_is_not_there_is_not_made(desk, tmp_path, asked):
    found = desk.ask(*ASKED[asked])
    assert (found.status, found.out) == (66, "") and not desk.directory.exists() and str(desk.directory) in found.err


def test_the_configuration_is_tested_before_any_folder_is_there(desk, nmap):
    nmap()
    assert desk.ask("--test-config").status == 0 and not desk.directory.exists()


@pytest.mark.parametrize("words", [
    "nmap -F", "nmap -6 -F", "nmap -sS -sU -p T:1-100,U:53", "nmap --exclude 10.0.0.1 -F",
    "nmap --excludefile /dev/null -F", "nmap -F 192.0.2.0/24", "nmap 192.0.2.1 -F", "nmap -F scanme.example.net",
    "sudo nmap -F", "ssh probe nmap -F", "nmap --exclude=10.0.0.1 192.0.2.1", "nmap --exclude 10.0.0.1 192.0.2.1"])
def test_nmap_is_asked_without_targets(desk, nmap, fake, words):
    """Whatever NMAP says: no call that could scan, and nothing that is run on another machine."""
    nmap()
    for name in ("ssh", "sudo"):
        fake(name, text='#!/bin/sh\necho "$@" >> "$0.calls"\n')
    assert desk.ask("--test-config", rules=f"IPS 10.0.0.1\nNMAP {words}\n").status in (0, 78)
    for argv in nmap.calls():
        everything = "--exclude" in argv and argv[argv.index("--exclude") + 1].startswith("0.0.0.0/0")
        assert not holds_a_target(argv) or everything, argv
    assert not list(nmap.path.parent.glob("s*.calls"))


@pytest.mark.parametrize("words", ["nmap -F --script=broadcast-ping", "nmap -F --script a --script-args newtargets",
                                   "nmap -sV -script a"])
def test_nmap_is_not_asked_where_scripts_would_run(desk, nmap, words):
    """They run without a target, too, may send to anybody, and may name targets."""
    nmap()
    found = desk.ask("--test-config", rules=f"IPS 10.0.0.1\nNMAP {words}\n" + group("ignore 9999 tcp open x"))
    assert found.status == 0 and not warnings(found) and not nmap.calls()


@pytest.mark.parametrize("words", [("-F", "127.0.0.1"), ("127.0.0.1", "-sn"), ("-6", "-F", "::1")])
def test_a_real_nmap_takes_targets_from_the_empty_file_only(real_nmap, words):
    done = subprocess.run([real_nmap, "-iL", "/dev/null", "-oX", "-", *words], capture_output=True, text=True,
                          timeout=60)
    assert 'total="0"' in done.stdout and "<host>" not in done.stdout and "<host " not in done.stdout


# ---- --unused-rules ----------------------------------------------------------------------------

FIRST = "Finished runs on record: {}\n"
USED = "Every rule was of use, or never tested.\n"


def test_unused_rules(desk):
    for run_id in (RUN, NEXT, LAST):
        desk.store(MAIL, PC, run_id=run_id)
    nobody = "group nobody\n ip 192.0.2.1\n ignore 1 tcp open a\nend group nobody\n"
    found = desk.ask("--unused-rules", rules=RULES + nobody)
    assert found == (0, FIRST.format(3) + """\
nmap-audit.rc:16: ignore 12* tcp open ssh (linux): of no use; runs that looked: 3
nmap-audit.rc:20: ignore 135 tcp open loc-srv (windows): of no use; runs that looked: 3
nmap-audit.rc:21: ignore 136 tcp open epmap (windows): of no use; runs that looked: 3
nmap-audit.rc:22: ignore 445 tcp filtered microsoft-ds (windows): of no use; runs that looked: 3
nmap-audit.rc:23: ignore 139 udp open netbios-ssn (windows): of no use; runs that looked: 3
nmap-audit.rc:30: group 'nobody': held no host
""", "")


def test_a_rule_of_no_use_is_named_as_it_is_written(desk):
    desk.store(host("10.0.0.1", "25 tcp open smtp"))
    rules = "group a\n ip 10.0.0.1\n ignore 80 tcp open http until 2099-12-31\n ignore smtps open tcp 26\nend group\n"
    assert desk.ask("--unused-rules", rules=rules).out == FIRST.format(1) + (
        "nmap-audit.rc:3: ignore 80 tcp open http until 2099-12-31 (a): of no use; runs that looked: 1\n"
        "nmap-audit.rc:4: ignore 26 tcp open smtps (a): of no use; runs that looked: 1\n")


def test_an_expectation_that_was_never_met(desk):
    desk.store(MAIL)
    desk.store(MAIL, run_id=NEXT)
    rules = """\
group unix
    ip 10.0.0.3
    expect 26 tcp open smtp
    expect 25 tcp open smtp
    expect 9 tcp closed *
    expect 22 tcp closed *
end group unix
"""
    assert desk.ask("--unused-rules", rules=rules) == (0, FIRST.format(2) + """\
nmap-audit.rc:3: expect 26 tcp open smtp (unix): never met; runs that looked: 2
nmap-audit.rc:6: expect 22 tcp closed * (unix): never met; runs that looked: 2
""", "")


@pytest.mark.parametrize("rules", [pytest.param(text, id=name) for name, text in {
    "all of use": "ignore 25 tcp open smtp",
    "beside another rule": "ignore 25 tcp open smtp\n ignore 25 tcp open *\n ignore * tcp open smtp\n"
                           " ignore 25 * * smtp\n expect 25 tcp open smtp\n ignore 20-30 tcp open s*p",
    "not looked at": "ignore 5000 tcp open x\n ignore 25 tcp open smtp",
    "protocol not looked at": "ignore 25 udp open x\n ignore 25 sctp open smtp\n ignore * udp * *",
    "range not looked at": "ignore 2000-3000 tcp open x\n ignore 25 tcp open smtp\n expect 2000-3000 tcp open x",
    "digits not looked at": "ignore 25* tcp open smtp\n ignore *2222 tcp open x",
    "range of use": "ignore 1-65535 tcp open smtp\n ignore 25-25 tcp open *\n ignore 2-1000 tcp open smtp",
    "wildcards of use": "ignore 2* tcp open smtp\n ignore *5 tcp open *\n ignore * * * *",
    "expectation met": "expect 25 tcp open smtp\n expect 9 tcp closed *\n expect * tcp open *"}.items()])
def test_rules_that_were_of_use_or_not_put_to_the_test_are_not_named(desk, rules):
    desk.store(host("10.0.0.1", "25 tcp open smtp"), looked=TCP)
    text = f"group a\n ip 10.0.0.1\n {rules}\nend group a\n"
    assert desk.ask("--unused-rules", rules=text) == (0, FIRST.format(1) + USED, "")


def test_only_runs_that_looked_are_counted(desk):
    rules = "group a\n ip 10.0.0.1\n ignore 80 tcp open http\n ignore 25 tcp open smtp\nend group\n"
    desk.store(host("10.0.0.1", "25 tcp open smtp"), looked={"tcp": "1-50"})
    desk.store(host("10.0.0.1", "25 tcp open smtp"), looked={"tcp": "1-100"}, run_id=NEXT)
    note(desk.store(host("10.0.0.1", "25 tcp open smtp"), looked={"tcp": "1-100"}, run_id="20261127-020000"), "",
         status="running")
    desk.store(host("10.0.0.1", "25 tcp open smtp"), looked={"tcp": "1-100"}, run_id=LAST)
    desk.store(host("10.0.0.2", "25 tcp open smtp"), looked={"tcp": "1-100"}, run_id="20261128-020000")
    assert desk.ask("--unused-rules", rules=rules).out == FIRST.format(4) + (
        "nmap-audit.rc:3: ignore 80 tcp open http (a): of no use; runs that looked: 2\n")


def test_a_rule_that_was_of_use_once_is_not_named(desk):
    rules = "group a\n ip 10.0.0.1\n ignore 25 tcp open smtp\nend group\n"
    desk.store(host("10.0.0.1", "25 tcp open smtp"))
    for run_id in (NEXT, LAST):
        desk.store(host("10.0.0.1", "26 tcp open smtp"), run_id=run_id)
    assert desk.ask("--unused-rules", rules=rules).out == FIRST.format(3) + USED


@pytest.mark.parametrize("outcome", ["timed out", "failed", "cut off"])
def test_a_group_whose_hosts_were_never_audited_is_not_named(desk, outcome):
    """Its hosts are there: what they show is not known, and so neither its rules nor the group are of no use."""
    rules = "group a\n ip 10.0.0.1\n ignore 80 tcp open http\n expect 25 tcp open smtp\nend group\n"
    for run_id in (RUN, NEXT):
        note(desk.store(host("10.0.0.1"), host("10.0.0.2", "80 tcp open http"), run_id=run_id), "10.0.0.1",
             outcome=outcome, reason="of itself")
    assert desk.ask("--unused-rules", rules=rules).out == FIRST.format(2) + USED


def test_only_the_hosts_of_a_rules_own_group_put_it_to_the_test(desk):
    """Two groups hold hosts that were scanned differently."""
    rules = ("group a\n ip 10.0.0.1\n ignore 80 tcp open http\nend group\n"
             "group b\n ip 10.0.0.2\n ignore 80 tcp open http\nend group\n")
    desk.store(host("10.0.0.1"), looked={"tcp": "1-50"})
    networks.write_run(desk.directory / "more", [host("10.0.0.2")], looked={"tcp": "1-100"})
    (desk.directory / "more" / RUN / "10.0.0.2.xml").rename(desk.directory / RUN / "10.0.0.2.xml")
    start = json.loads((desk.directory / "more" / RUN / "run.json").read_text())["hosts"]["10.0.0.2"]["start"]
    note(desk.directory / RUN, "10.0.0.2", start=start)
    assert desk.ask("--unused-rules", rules=rules).out == FIRST.format(1) + (
        "nmap-audit.rc:7: ignore 80 tcp open http (b): of no use; runs that looked: 1\n")


def test_a_rule_that_ignored_a_port_of_a_host_cut_off_was_of_use(desk):
    rules = "group a\n ip 10.0.0.0/24\n ignore 25 tcp open smtp\nend group\n"
    folder = desk.store(host("10.0.0.1", "25 tcp open smtp"), host("10.0.0.2"))
    note(folder, "10.0.0.1", outcome="cut off", reason="of itself")
    assert desk.ask("--unused-rules", rules=rules).out == FIRST.format(1) + USED


@pytest.mark.parametrize("name, system, words", [
    ((), None, ""), ("pc.example.net", None, "hostname"), ((), "linux", "os"),
    ("pc.example.net", "linux", "hostname os")])
def test_a_group_is_named_only_where_its_tags_could_hold_a_host(desk, name, system, words):
    """Without -O no host has an operating system, and with -n none has a name."""
    desk.store(host("10.0.0.1", "25 tcp open smtp", name=name, system=system))
    rules = ("group hostname\n hostname web*\n ignore 1 tcp open x\nend group\n"
             "group os\n os Solaris\n ignore 1 tcp open x\nend group\n"
             "group ip\n ip 192.0.2.1\n ignore 1 tcp open x\nend group\n")
    said = re.findall("group '(.*)': held no host", desk.ask("--unused-rules", rules=rules).out)
    assert said == [*words.split(), "ip"]


def test_unused_rules_without_rules(desk):
    desk.store(MAIL)
    assert desk.ask("--unused-rules").out == FIRST.format(1) + USED


def test_rules_of_a_generated_network_are_all_of_use(desk):
    """And of a group too many, just that is told."""
    hosts = networks.network(500)
    for run_id in (RUN, NEXT):
        desk.store(*hosts, run_id=run_id, looked=networks.LOOKED)
    rules = networks.rules(hosts, odd=True)
    assert desk.findings(rules) == set()
    assert desk.ask("--unused-rules", rules=rules).out == FIRST.format(2) + USED
    more = rules + "group x\n os Plan 9\n ignore 564 tcp open 9pfs\nend group x\n"
    line = len(rules.splitlines()) + 1
    assert desk.ask("--unused-rules", rules=more).out == FIRST.format(2) + (
        f"nmap-audit.rc:{line}: group 'x': held no host\n")


def test_near_misses_are_few_however_many_rules_there_are():
    """Of 300 rules for one service at other ports, eight are named; ports without a service have none."""
    rules = tuple(nmap_audit.Rule("ignore", (str(port), "tcp", "open", service), nmap_audit.Where("rc", port, 1), "g")
                  for port in range(1, 301) for service in ("http", "*"))
    group = nmap_audit.Group("g", nmap_audit.Where("rc"), (), rules)
    assert len(nmap_audit.near_misses((group,), ("8080", "tcp", "open", "http"), DAY)) == 8
    assert nmap_audit.near_misses((group,), ("8080", "tcp", "open", ""), DAY) == {}
