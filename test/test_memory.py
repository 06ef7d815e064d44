"""What a run remembers of those before it: new, standing, changed, gone, and what is no baseline."""
import time
import collections
import datetime
import json
import random
import re
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

import nmap_audit
from nights import FIRST_DAY, Nights, changes, read_csv, up

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
SMTP, HTTP = (A, 25, "tcp"), (A, 80, "tcp")
DAY = datetime.timedelta(days=1)


@pytest.fixture(autouse=True)
def no_real_nmap(fake):
    """Whatever a test gets wrong, nothing real is scanned."""
    fake("nmap", hosts={})


@pytest.fixture
def nights(run, rc, fake, tmp_path):
    return Nights(run, rc, fake, tmp_path)


def counts(night):
    """Findings and gone, of the report's first line."""
    return tuple(map(int, re.fullmatch(r"\d+ of \d+ hosts audited, (\d+) findings, (\d+) gone",
                                       night.first).groups()))


# ---- Changes -----------------------------------------------------------------------------------

def test_a_first_audit_is_a_first_look(nights):
    night = nights.audit({A: up(25)})
    assert night.changes == {SMTP: "first look"}
    assert night.out == night.report and night.status == 0


def test_a_first_audit_reports_though_nothing_is_found(nights):
    night = nights.audit({A: up()})
    assert night.out.startswith("1 of 1 hosts audited, 0 findings, 0 gone\n")
    assert nights.audit({A: up()}).out == ""


def test_new_and_standing(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up(25, 80)})
    assert night.changes == {SMTP: "standing", HTTP: "new"}
    assert nights.audit({A: up(25, 80)}).changes == {SMTP: "standing", HTTP: "standing"}


def test_changed_tells_both_states(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up((25, "tcp", "filtered", "smtp"))})
    assert night.changes == {SMTP: "changed"}
    assert "open→filtered" in night.report
    assert night.rows[0]["State"] == "filtered"
    assert nights.audit({A: up((25, "tcp", "filtered", "smtp"))}).changes == {SMTP: "standing"}


def test_filtered_after_open_is_changed_and_not_gone(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up((25, "tcp", "filtered"))})
    assert counts(night) == (1, 0)


@pytest.mark.parametrize("state", ("open", "open|filtered"))
def test_gone(nights, state):
    nights.audit({A: up((53, "udp", state, "domain"))})
    night = nights.audit({A: up()}, scanned={"udp": "1-100"})
    assert night.changes == {(A, 53, "udp"): "gone"}
    assert counts(night) == (0, 1)
    assert nights.audit({A: up()}, scanned={"udp": "1-100"}).out == ""


def test_a_filtered_port_is_never_gone(nights):
    nights.audit({A: up((25, "tcp", "filtered"))})
    night = nights.audit({A: up()})
    assert night.changes == {} and counts(night) == (0, 0)


def test_closed_and_listed_is_gone(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up((25, "tcp", "closed", "smtp"), rest="filtered")})
    assert night.changes == {SMTP: "gone"}


def test_gone_is_keyed_by_protocol(nights):
    dns = (53, "udp", "open", "domain"), (53, "tcp", "open", "domain")
    nights.audit({A: up(*dns)})
    assert nights.audit({A: up(dns[0])}, scanned={"tcp": "53", "udp": "53"}).changes == {
        (A, 53, "tcp"): "gone", (A, 53, "udp"): "standing"}


def test_an_ignored_port_that_goes_is_told(nights):
    nights.rules = "group all\n ip *\n ignore * * * *\nend group all"
    assert nights.audit({A: up(25)}).changes == {}
    assert nights.audit({A: up(25)}).out == ""
    night = nights.audit({A: up()})
    assert night.changes == {SMTP: "gone"} and "gone" in night.out


def test_a_gone_port_that_comes_back_is_new(nights):
    first = nights.audit({A: up(25)})
    nights.audit({A: up()})
    night = nights.audit({A: up(25)})
    assert night.changes == {SMTP: "new"}
    assert night.rows[0]["First Seen"] == f"{nights.day}" != first.rows[0]["First Seen"]


def test_host_gone_is_one_line_and_not_one_a_port(nights):
    nights.audit({A: up(25, 80), B: up(), C: up()})
    night = nights.audit({B: up(), C: up()})
    assert night.changes == {} and counts(night) == (0, 1)
    assert night.tables["Hosts gone: up before, down now (1)"] == [A]
    assert nights.audit({B: up(), C: up()}).out == ""


def test_a_host_that_comes_back_is_compared_with_what_it_showed(nights):
    nights.audit({A: up(25, 80), B: up(), C: up()})
    nights.audit({B: up(), C: up()})
    night = nights.audit({A: up(25, 22), B: up(), C: up()})
    assert night.changes == {SMTP: "standing", (A, 22, "tcp"): "new", HTTP: "gone"}


def test_host_new(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up(25), B: up(80)})
    assert night.changes == {SMTP: "standing", (B, 80, "tcp"): "first look"}
    assert night.tables["Hosts new (1)"] == [B]
    assert not any(title.startswith("Hosts new") for title in nights.audit({A: up(25), B: up(80)}).tables)


def test_a_new_host_without_findings_stands_in_the_report_and_is_no_reason_for_one(nights):
    nights.audit({A: up()})
    night = nights.audit({A: up(), B: up()})
    assert night.tables["Hosts new (1)"] == [B] and night.out == ""


def test_first_seen_is_the_first_run_of_an_unbroken_row(nights):
    first = nights.audit({A: up(25)})
    for _ in range(2):
        night = nights.audit({A: up(25)})
        assert night.rows[0]["First Seen"] == f"{FIRST_DAY + DAY}" == first.rows[0]["First Seen"]
    night = nights.audit({A: up((25, "tcp", "filtered"))})
    assert night.rows[0]["First Seen"] == f"{FIRST_DAY + DAY}"


def test_first_seen_of_a_gone_port_is_told(nights):
    nights.audit({A: up(25)})
    nights.audit({A: up(25)})
    assert nights.audit({A: up()}).rows[0]["First Seen"] == f"{FIRST_DAY + DAY}"


# ---- Port lists --------------------------------------------------------------------------------

def test_a_shorter_list_erases_nothing(nights):
    nights.audit({A: up(25, 80)}, scanned="1-100")
    night = nights.audit({A: up(25, 80)}, scanned="1-50")
    assert night.changes == {SMTP: "standing"}
    assert nights.audit({A: up(25, 80)}, scanned="1-100").changes == {SMTP: "standing", HTTP: "standing"}


def test_gone_is_told_when_it_is_looked_at_again(nights):
    nights.audit({A: up(25, 80)}, scanned="1-100")
    assert nights.audit({A: up(25)}, scanned="1-50").changes == {SMTP: "standing"}
    assert nights.audit({A: up(25)}, scanned="1-100").changes == {SMTP: "standing", HTTP: "gone"}


def test_a_longer_list_is_a_first_look_there(nights):
    nights.audit({A: up(25, 80)}, scanned="1-50")
    night = nights.audit({A: up(22, 25, 80)}, scanned="1-100")
    assert night.changes == {(A, 22, "tcp"): "new", SMTP: "standing", HTTP: "first look"}


def test_what_was_once_looked_at_is_new_later(nights):
    nights.audit({A: up()}, scanned="1-100")
    nights.audit({A: up()}, scanned="1-50")
    assert nights.audit({A: up(80)}, scanned="1-100").changes == {HTTP: "new"}


def test_another_protocol_is_a_first_look(nights):
    nights.audit({A: up()}, scanned={"tcp": "1-100"})
    night = nights.audit({A: up((53, "udp"))}, scanned={"tcp": "1-100", "udp": "53"})
    assert night.changes == {(A, 53, "udp"): "first look"}


def test_a_ping_scan_erases_nothing(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up(25)}, "--nmap", "nmap -sn")
    assert night.changes == {} and counts(night) == (0, 0) and night.status == 0
    assert nights.audit({A: up(25)}).changes == {SMTP: "standing"}


# ---- What is no baseline -----------------------------------------------------------------------

@pytest.mark.parametrize("fault", (
    pytest.param({"exit": 1}, id="failed"), pytest.param({"cut": -40}, id="cut off"),
    pytest.param({"timedout": True}, id="timed out"), pytest.param({"empty": True}, id="empty"),
    pytest.param({"lost": 25}, id="lost write")))
def test_a_failed_night_erases_nothing(nights, fault):
    nights.audit({A: up(25), B: up(), C: up()})
    night = nights.audit({A: up(25, fault=fault), B: up(), C: up()})
    assert night.status == 2 and counts(night)[1] == 0
    assert night.first.startswith("2 of 3 hosts audited")
    assert nights.audit({A: up(25, 80), B: up(), C: up()}).changes == {SMTP: "standing", HTTP: "new"}


def test_a_cut_off_result_tells_what_it_holds_and_is_no_baseline(nights):
    nights.audit({A: up()})
    night = nights.audit({A: up(25, fault={"cut": -40})})
    assert night.changes == {SMTP: "new"} and night.status == 2
    assert nights.audit({A: up(25)}).changes == {SMTP: "new"}


def test_a_scan_only_run_is_no_baseline(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up(25, 80)}, "--scan-only")
    assert night.out == "" and not night.record["told"]
    assert nights.audit({A: up(25, 80)}).changes == {SMTP: "standing", HTTP: "new"}


def test_a_scan_only_run_that_was_processed_is_a_baseline(nights):
    nights.audit({A: up(25)})
    nights.audit({A: up(25, 80)}, "--scan-only")
    told = nights.process()
    assert told.status == 0 and "New (1)" in told.out
    assert nights.audit({A: up(25, 80)}).changes == {SMTP: "standing", HTTP: "standing"}


def test_gone_in_a_scan_only_run_is_told_by_the_next(nights):
    nights.audit({A: up(25)})
    nights.audit({A: up()}, "--scan-only")
    assert nights.audit({A: up()}).changes == {SMTP: "gone"}


def test_an_old_scan_only_run_is_processed_and_stays_no_baseline(nights):
    nights.audit({A: up(25)})
    old = nights.audit({A: up(25, 80)}, "--scan-only")
    nights.audit({A: up(25)}, "--scan-only")
    assert "New (1)" in nights.process(folder=old.folder).out
    assert not old.record["told"]
    assert nights.audit({A: up(25, 80)}).changes == {SMTP: "standing", HTTP: "new"}


def test_an_unsent_run_is_no_baseline_until_it_is_sent(nights, fake):
    mail = ("--email-to", "root@example.net")
    sendmail = fake("sendmail")
    nights.audit({A: up(25)}, *mail)
    fake("sendmail", exit=75)
    night = nights.audit({A: up(25, 80)}, *mail)
    assert night.status == 69 and not night.record["told"]
    assert nights.audit({A: up(25, 80)}, *mail).changes[HTTP] == "new"
    fake("sendmail")
    last = nights.audit({A: up(25, 80)}, *mail)
    assert last.changes == {SMTP: "standing", HTTP: "standing"}
    assert len(sendmail.mails) == 4 and not list((nights.directory / "unsent").iterdir())
    assert night.record["told"]


def test_a_run_that_was_sent_late_keeps_what_only_it_saw(nights, fake):
    """The night after it could not look at the host, and both mails go out together at last."""
    mail = ("--email-to", "root@example.net")
    fake("sendmail")
    nights.audit({A: up(25), B: up()}, *mail)
    fake("sendmail", exit=75)
    assert nights.audit({A: up(25, 80), B: up()}, *mail).changes[HTTP] == "new"
    nights.audit({A: up(fault={"exit": 1}), B: up()}, *mail)
    fake("sendmail")
    assert nights.audit({A: up(25), B: up()}, *mail).changes == {SMTP: "standing", HTTP: "gone"}


def test_an_unfinished_run_is_no_baseline(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up(25, 80)})
    record = night.record
    record.update(status="running", told=False, ended=None)
    del record["state"]
    (night.folder / "run.json").write_text(json.dumps(record))
    assert nights.audit({A: up(25, 80)}).changes == {SMTP: "standing", HTTP: "new"}


# ---- When it is told ---------------------------------------------------------------------------

QUIET_NIGHT, LOUD_NIGHT, BROKEN_NIGHT = {A: up()}, {A: up(25)}, {A: up(fault={"exit": 1})}


@pytest.mark.parametrize("tell, told", (
    ("changes", (False, True, True)), ("always", (True, True, True)), ("errors", (False, False, True))))
def test_tell(nights, tell, told):
    nights.rules = f"TELL {tell}"
    nights.audit({A: up()})
    for hosts, expected in zip((QUIET_NIGHT, LOUD_NIGHT, BROKEN_NIGHT), told):
        assert bool(nights.audit(hosts).out) is expected


def test_the_option_tell_wins(nights):
    nights.rules = "TELL errors"
    assert nights.audit({A: up(25)}, "--tell", "always").out


def test_tell_always_gives_an_all_clear(nights):
    nights.audit({A: up()})
    assert nights.audit({A: up()}, "--tell", "always").out.startswith(
        "1 of 1 hosts audited, 0 findings, 0 gone\n")


def test_tell_errors_is_silent_even_the_first_time(nights):
    night = nights.audit({A: up(25)}, "--tell", "errors")
    assert night.out == "" and night.status == 0


def test_detail_none_tells_an_incomplete_run(nights):
    nights.audit({A: up(), B: up()})
    night = nights.audit({A: up(), B: up(fault={"exit": 1})}, "--detail", "none")
    assert night.status == 2 and night.out.startswith("1 of 2 hosts audited") and B in night.out


# ---- Runs that are kept ------------------------------------------------------------------------

def test_history_costs_no_more_with_more_runs(nights):
    """The newest run.json holds all: the XML of older runs is not needed."""
    nights.audit({A: up(25), B: up(22)})
    nights.audit({A: up(25, 80), B: up(22)})
    for path in nights.directory.glob("*/*.xml"):
        path.unlink()
    assert nights.audit({A: up(25), B: up(22)}).changes == {
        SMTP: "standing", HTTP: "gone", (B, 22, "tcp"): "standing"}


# ---- Process-only ------------------------------------------------------------------------------

def body(text):
    return text.replace("\r\n", "\n")


def test_process_only_of_an_old_run_gives_the_report_of_its_day(nights):
    nights.rules = "group all\n ip *\n ignore 22 tcp open *\n expect 443 tcp open *\nend group all"
    history = ({A: up(22, 25), B: up(80)}, {A: up(22, 25, 80), B: up(fault={"exit": 1})},
               {A: up(22), B: up(80)}, {A: up(22), C: up(21)}, {A: up(), B: up(80), C: up(21)})
    made = [nights.audit(hosts) for hosts in history]
    for night in made:
        again = nights.process(folder=night.folder)
        assert body(again.out) == night.report, night.folder
        assert again.status == night.status


def test_process_only_of_dir_name_takes_the_newest_finished_run(nights):
    nights.audit({A: up(25)})
    night = nights.audit({A: up(25, 80)})
    assert nights.process().out == night.report


def test_process_only_writes_nothing(nights):
    nights.audit({A: up(25)})
    nights.audit({A: up(25, 80)})
    before = {path: path.stat().st_mtime_ns for path in nights.directory.rglob("*")}
    nights.process()
    assert {path: path.stat().st_mtime_ns for path in nights.directory.rglob("*")} == before


def test_process_only_does_not_scan(nights, fake):
    night = nights.audit({A: up(25)})
    nmap = fake("nmap", hosts={})
    nmap.forget()
    assert nights.process(folder=night.folder).status == 0
    assert nmap.calls == []


def test_process_only_of_a_scan_only_run_tells_it_once(nights):
    nights.audit({A: up()})
    nights.audit({A: up(25)}, "--scan-only")
    assert "New (1)" in nights.process().out
    assert "New (1)" in nights.process().out        # the report of that day, as often as it is asked for
    assert "New" not in nights.audit({A: up(25)}).report


def test_several_directories_make_one_report(nights, tmp_path):
    nights.audit({A: up(25)})
    first = nights.audit({A: up(25, 80)})
    nights.directory = tmp_path / "second"
    nights.audit({B: up(22)})
    second = nights.audit({B: up(22, 80)})
    both = nights.run("--config", nights.config, "--process-only", "--no-human", "--dir-name",
                      f"{first.folder.parent},{second.folder.parent}")
    assert both.status == 0
    assert changes(read_csv(both.out)) == {
        SMTP: "standing", HTTP: "new", (B, 22, "tcp"): "standing", (B, 80, "tcp"): "new"}


def test_several_directories_that_looked_at_one_host(nights, tmp_path):
    """Two scanners, two port lists, one host: it is audited once, with the ports of both."""
    first = nights.audit({A: up(25)}, scanned="1-50")
    nights.directory = tmp_path / "second"
    second = nights.audit({A: up(80)}, scanned="51-100")
    both = nights.run("--config", nights.config, "--process-only", "--dir-name",
                      f"{first.folder},{second.folder}")
    assert both.out.startswith("1 of 1 hosts audited, 2 findings, 0 gone\n")


def test_a_host_that_one_of_two_scanners_saw_is_not_down(nights, tmp_path):
    first = nights.audit({A: up(25)})
    nights.directory = tmp_path / "second"
    nights.audit({A: up(25), B: up(), C: up()})
    second = nights.audit({B: up(), C: up()})
    both = nights.run("--config", nights.config, "--process-only", "--dir-name",
                      f"{first.folder},{second.folder}")
    assert "Hosts gone" not in both.out, both.out
    assert both.out.startswith("3 of 3 hosts audited, 1 findings, 0 gone\n")


# ---- Without run.json --------------------------------------------------------------------------

HISTORY = (({A: up(25, 80), B: up(22), C: up()}, "1-100"), ({A: up(25), B: up(22), C: up()}, "1-50"),
           ({A: up(25), B: up(fault={"exit": 1}), C: up()}, "1-100"), ({A: up(25, 443), C: up(53)}, "1-500"))
LAST = {A: up(25, 80, 443), B: up(21), C: up(53)}


def test_without_run_json_the_xml_gives_the_same_findings(nights):
    made = [nights.audit(hosts, scanned=scanned) for hosts, scanned in HISTORY]
    kept = nights.folder / "kept"
    shutil.copytree(nights.directory, kept)
    expected = nights.audit(LAST, scanned="1-500")
    nights.drop(expected)
    for night in made:
        nights.forget(night)
    actual = nights.audit(LAST, scanned="1-500", day=nights.day)
    assert actual.rows == expected.rows


@pytest.mark.parametrize("damage", (
    pytest.param(b"", id="empty"), pytest.param(b'{"version": 1, "hos', id="cut"),
    pytest.param(b'{"version": 99, "hosts": {}}', id="from a future version"),
    pytest.param(b"[]", id="no mapping"), pytest.param(b"\xff\x00", id="binary")))
def test_with_a_broken_run_json_the_xml_gives_the_same_findings(nights, damage):
    nights.audit({A: up(25)})
    night = nights.audit({A: up(25, 80)})
    (night.folder / "run.json").write_bytes(damage)
    last = nights.audit({A: up(25, 443)}, scanned="1-443")
    assert last.changes == {SMTP: "standing", HTTP: "gone", (A, 443, "tcp"): "new"} or \
        last.changes == {SMTP: "standing", HTTP: "gone", (A, 443, "tcp"): "first look"}
    assert "run.json" in last.report
    assert (night.folder / "run.json").read_bytes() == damage


# ---- Expect --------------------------------------------------------------------------

EXPECT = "group mail\n ip 10.0.0.1\n expect 25 tcp open *\nend group mail"


def test_what_is_expected_is_missing_until_it_is_back(nights):
    nights.rules = EXPECT
    assert nights.audit({A: up(25)}).changes == {}
    assert nights.audit({A: up(25)}).out == ""
    for change in ("gone, missing", "missing", "missing"):
        night = nights.audit({A: up()})
        assert night.changes == {SMTP: change} and night.out == night.report
        assert A in night.tables["Missing: expected and not there (1)"]
        assert re.match("WARNING: .*expected.*missing", night.report.splitlines()[1])
    assert nights.audit({A: up(25)}).out == ""


def test_another_state_is_missing(nights):
    nights.rules = EXPECT
    night = nights.audit({A: up((25, "tcp", "filtered", "smtp"))})
    assert A in night.tables["Missing: expected and not there (1)"]


def test_an_expected_port_of_another_host_is_not_missing(nights):
    nights.rules = EXPECT
    night = nights.audit({A: up(25), B: up()})
    assert "Missing" not in night.report


@pytest.mark.parametrize("host", (
    pytest.param(up(fault={"exit": 1}), id="failed"), pytest.param(up(fault={"timedout": True}), id="timed out"),
    pytest.param({"state": "down"}, id="down")))
def test_only_an_audited_host_can_miss_something(nights, host):
    nights.rules = EXPECT
    nights.audit({A: up(25), B: up(), C: up()})
    assert "Missing" not in nights.audit({A: host, B: up(), C: up()}).report


def test_an_expected_closed_port_may_be_unlisted(nights):
    nights.rules = "group all\n ip *\n expect 25 tcp closed *\nend group all"
    assert "Missing" not in nights.audit({A: up()}).report
    assert nights.audit({A: up(25)}).changes == {SMTP: "missing, new"}


# ---- Groups ------------------------------------------------------------------------------------

BY_NAME = ("group mail\n hostname mail*\n ignore 25 tcp open *\nend group mail\n"
           "group web\n hostname web*\n ignore 80 tcp open *\nend group web")


def test_a_host_of_another_group_is_told(nights):
    nights.rules = BY_NAME
    nights.audit({A: up(25, names=["mail.example.net"])})
    night = nights.audit({A: up(25, names=["web.example.net"])})
    assert night.changes == {SMTP: "standing"}
    assert "changed group" in night.report and "web.example.net" in night.report


def test_a_host_of_another_group_without_findings_stands_in_the_report(nights):
    nights.rules = BY_NAME
    nights.audit({A: up(names=["mail.example.net"])})
    assert "changed group" in nights.audit({A: up(names=["web.example.net"])}).report


def test_the_same_groups_under_another_name_are_not_told(nights):
    nights.rules = BY_NAME
    nights.audit({A: up(names=["mail1.example.net"])})
    assert nights.audit({A: up(names=["mail2.example.net"])}).out == ""


# ---- The network -------------------------------------------------------------------------------

def test_most_hosts_down_at_once_is_said_on_line_two(nights):
    nights.audit({A: up(), B: up(), C: up()})
    night = nights.audit({A: up()})
    assert "network may be broken" in night.report.splitlines()[1] and "2 of 3" in night.report.splitlines()[1]
    assert nights.audit({A: up(), B: up(), C: up()}).changes == {}


def test_half_of_the_hosts_down_is_no_broken_network(nights):
    nights.audit({A: up(), B: up()})
    assert "may be broken" not in nights.audit({A: up()}).report


# ---- A long history ----------------------------------------------------------------------------

HOSTS = [f"10.0.0.{n}" for n in range(1, 13)]
PORTS = (21, 22, 25, 53, 80, 110, 143, 443, 993, 3306)
LISTS = ("1-100", "1-1000", "1-4000", "22,80,443")
STATES = ("open", "open", "open", "filtered", "closed")
FAST_NMAP = """#!/bin/sh
# Writes what $WORLD holds: list, head, tail, ADDRESS.host; ADDRESS.fail fails, ADDRESS.cut lacks its end.
for word; do [ "$word" = -sL ] && exec cat "$WORLD/list"; done
while [ "$1" != -- ]; do shift; done
shift
for address; do [ -e "$WORLD/$address.fail" ] && { echo "no luck" >&2; exit 1; }; done
cat "$WORLD/head"
up=0
for address; do
    [ -e "$WORLD/$address.host" ] && { up=$((up+1)); cat "$WORLD/$address.host"; }
    [ -e "$WORLD/$address.cut" ] && exit 0
done
echo "<runstats><finished time='$(date +%s)' exit='success'/>\
<hosts up='$up' down='$(($#-up))' total='$#'/></runstats></nmaprun>"
"""


def numbers(text):
    """The numbers of nmap's list of ports."""
    found = set()
    for piece in text.split(","):
        low, _, high = piece.partition("-")
        found.update(range(int(low), int(high or low) + 1))
    return found


class Network:
    """A made-up network that lives on, night after night."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.ports = {host: {port: "open" for port in self.random.sample(PORTS, 3)} for host in HOSTS}
        self.up = dict.fromkeys(HOSTS, True)

    def live(self):
        for host in HOSTS:
            if self.random.random() < .06:
                self.up[host] = not self.up[host]
            if self.random.random() < .25:
                port = self.random.choice(PORTS)
                self.ports[host][port] = self.random.choice(STATES)
            if self.ports[host] and self.random.random() < .15:
                del self.ports[host][self.random.choice(sorted(self.ports[host]))]

    def night(self):
        """{host: outcome}, the port list, as the scanner will see them."""
        faults = {host: self.random.choice(("failed", "cut off", "timed out"))
                  for host in HOSTS if self.random.random() < .06}
        if self.random.random() < .04:
            faults = dict.fromkeys(HOSTS, "failed")
        return {host: faults.get(host, "audited") if self.up[host] else "down" for host in HOSTS}, \
            self.random.choice(LISTS)

    def write(self, world, outcomes, services, moment):
        shutil.rmtree(world, ignore_errors=True)
        world.mkdir()
        asked = numbers(services)
        head = (f"<?xml version='1.0'?>\n<!DOCTYPE nmaprun>\n<nmaprun args='nmap' start='{moment}'>\n"
                f"<scaninfo type='connect' protocol='tcp' numservices='{len(asked)}' services='{services}'/>\n")
        world.joinpath("head").write_text(head)
        targets = "".join(f"<host><status state='unknown'/><address addr='{host}' addrtype='ipv4'/></host>"
                          for host in HOSTS)
        world.joinpath("list").write_text(
            f"<?xml version='1.0'?>\n<nmaprun args='nmap -sL' start='{moment}'>{targets}<runstats>"
            f"<finished exit='success'/><hosts up='0' down='12' total='12'/></runstats></nmaprun>")
        for host, outcome in outcomes.items():
            shown = {port: state for port, state in self.ports[host].items() if port in asked}
            ports = "".join(f"<port protocol='tcp' portid='{port}'><state state='{state}'/></port>"
                            for port, state in shown.items())
            extra = f"<extraports state='closed' count='{len(asked) - len(shown)}'/>"
            late = outcome == "timed out"
            attribute = " timedout='true'" if late else ""
            text = (f"<host starttime='{moment}' endtime='{moment}'{attribute}>"
                    f"<status state='up'/><address addr='{host}' addrtype='ipv4'/>"
                    f"{'' if late else '<ports>' + extra + ports + '</ports>'}</host>\n")
            if outcome in ("audited", "cut off", "timed out"):
                world.joinpath(f"{host}.host").write_text(text)
            if outcome in ("failed", "cut off"):
                world.joinpath(f"{host}.{'cut' if outcome == 'cut off' else 'fail'}").touch()


class Naive:
    """The whole history, read anew for every question, as audit.md words it."""

    def __init__(self):
        self.runs = []      # (day, outcomes, {host: {port: state}}, ports looked at, told)

    def add(self, day, folder, outcomes):
        """Reads the XML that the program kept of a run."""
        seen, looked = {}, {}
        for host, outcome in outcomes.items():
            path = folder / f"{host}.{'part' if outcome == 'cut off' else 'xml'}"
            text = path.read_text() if path.exists() else ""
            assert bool(text) is (outcome in ("audited", "cut off", "timed out")), (host, outcome)
            if not text:
                continue
            if outcome == "cut off":
                text += "</nmaprun>"
            tree = ElementTree.fromstring(text.replace("<!DOCTYPE nmaprun>", ""))
            looked[host] = numbers(tree.find("scaninfo").get("services"))
            seen[host] = {int(port.get("portid")): port.find("state").get("state") for port in tree.iter("port")}
        self.runs.append([day, outcomes, seen, looked, False])

    def told(self, index):
        self.runs[index][4] = True

    def results(self, host, before, outcomes=("audited",)):
        """The results of a host in runs that were told, the latest first."""
        for day, every, seen, looked, told in reversed(self.runs[:before]):
            if told and every[host] in outcomes:
                yield day, every[host], seen.get(host, {}), looked.get(host, set())

    def port_before(self, host, port, before):
        """The port's state in the last audited result that looked there; None: none did. "": not listed."""
        for _, _, seen, looked in self.results(host, before):
            if port in looked:
                return seen.get(port, "closed")
        return None

    def first_seen(self, host, port, before, day):
        for then, _, seen, looked in self.results(host, before):
            if port in looked:
                if seen.get(port, "closed") == "closed":
                    break
                day = then
        return day

    def expected(self, index):
        """(rows of the CSV, hosts gone, hosts new) of a run."""
        day, outcomes, seen, looked, _ = self.runs[index]
        rows, lost, new = set(), set(), set()
        any_before = any(True for host in HOSTS for _ in self.results(host, index))
        for host, outcome in outcomes.items():
            now = seen.get(host, {})
            for port, state in now.items():
                before = self.port_before(host, port, index)
                change = "first look" if before is None else "new" if before == "closed" else \
                    "standing" if before == state else "changed"
                if state != "closed":
                    rows.add((host, port, state, change, self.first_seen(host, port, index, day)))
            last = next(self.results(host, index, ("audited", "down")), None)
            if outcome == "down" and last and last[1] == "audited":
                lost.add(host)
            if outcome != "audited":
                continue
            if any_before and not any(True for _ in self.results(host, index)):
                new.add(host)
            for port in looked[host]:
                if now.get(port, "closed") == "closed" and \
                        self.port_before(host, port, index) in ("open", "open|filtered"):
                    state = self.port_before(host, port, index)
                    rows.add((host, port, state, "gone", self.first_seen(host, port, index, day)))
        return rows, lost, new


def hosts_under(report, title):
    found = re.search(rf"^{title} \(\d+\)\n\n.*\n-.*\n((?:.+\n)+)", report, re.MULTILINE)
    return set(found[1].split()) if found else set()


def check_night(naive, index, night):
    rows, lost, new = naive.expected(index)
    found = {(row["IP"], int(row["Port"]), row["State"], row["Change"], row["First Seen"]) for row in night.rows}
    assert found == rows, (index, sorted(found ^ rows))
    assert hosts_under(night.report, "Hosts gone: up before, down now") == lost, index
    assert hosts_under(night.report, "Hosts new") == new, index
    tally = collections.Counter(naive.runs[index][1].values())
    assert night.first == (f"{tally['audited']} of {len(HOSTS) - tally['down']} hosts audited, "
                           f"{sum(change != 'gone' for *_, change, _ in rows)} findings, "
                           f"{sum(change == 'gone' for *_, change, _ in rows) + len(lost)} gone")


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seed", (1, 2))
def test_a_long_history(nights, fake, tmp_path, monkeypatch, seed):
    """30 nights a seed; every report is what a naive reading of all XML says, mails fail now and then."""
    network, naive, waiting, alone = Network(seed), Naive(), [], []
    fake("sendmail")
    nights.fake = lambda name, **_: None
    nights.ips = f"10.0.0.1-{len(HOSTS)}"
    nights.rules = "EMAIL-TO root@example.net\nTELL always\nBATCH 1"
    fake("nmap", text=FAST_NMAP)
    monkeypatch.setenv("WORLD", str(tmp_path / "world"))
    for index in range(30):
        network.live()
        outcomes, services = network.night()
        day = FIRST_DAY + DAY * (index * 2)
        moment = int(datetime.datetime.combine(day, datetime.time(2)).timestamp())
        network.write(tmp_path / "world", outcomes, services, moment)
        broken, silent = network.random.random() < .15, network.random.random() < .1
        fake("sendmail", **({"exit": 75} if broken else {}))
        night = nights.audit({}, *["--scan-only"] * silent, day=day)
        if not broken:
            while waiting:
                naive.told(waiting.pop())
        naive.add(f"{day}", night.folder, outcomes)
        complete = set(outcomes.values()) <= {"audited", "down"}
        if silent:
            assert night.status == (0 if complete else 2)
            continue
        assert night.status == (69 if broken else 0 if complete else 2), night
        check_night(naive, index, night)
        if not waiting:
            alone.append(night)
        if broken:
            waiting.append(index)
        else:
            naive.told(index)
    nights.rules = "TELL always"
    for night in alone[::4]:
        assert nights.process(folder=night.folder).out == night.report, night.folder


def write_run(network, directory, day, outcomes, services):
    """A run's folder as the program leaves it, but for run.json."""
    folder = directory / f"{day:%Y%m%d}-020000"
    moment = int(datetime.datetime.combine(day, datetime.time(2)).timestamp())
    world = directory.parent / "world"
    network.write(world, outcomes, services, moment)
    folder.mkdir(parents=True)
    head = (world / "head").read_text()
    shutil.copy(world / "list", folder / "targets.xml")
    hosts = {}
    for host, outcome in outcomes.items():
        path = world / f"{host}.host"
        if path.exists():
            end = "" if outcome == "cut off" else (
                "<runstats><finished exit='success'/><hosts up='1' down='0' total='1'/></runstats></nmaprun>")
            name = f"{host}.{'part' if outcome == 'cut off' else 'xml'}"
            (folder / name).write_text(head + path.read_text() + end)
        hosts[host] = {"outcome": outcome, "reason": "", "seconds": 1.0, "start": moment}
    return folder, {"version": 1, "status": "finished", "told": True, "nmap": ["nmap"], "ips": [], "unresolved": {},
                    "hosts": hosts}


@pytest.mark.parametrize("seed", range(3, 9))
def test_a_long_history_by_its_functions(tmp_path, seed):
    """60 nights a seed with the functions that whole runs use; now and then run.json is lost for good."""
    network, naive, directory = Network(seed), Naive(), Path(tmp_path / "runs")
    for index in range(60):
        network.live()
        outcomes, services = network.night()
        day = FIRST_DAY + DAY * index
        folder, record = write_run(network, directory, day, outcomes, services)
        (folder / "run.json").write_text(json.dumps(record))
        naive.add(f"{day}", folder, outcomes)
        run = nmap_audit.read_run(folder)
        assert {host.address: host.outcome for host in run.hosts.values()} == outcomes
        state, _ = nmap_audit.last_told(run, ())
        after, found = nmap_audit.fold(state or {}, run, ())
        found = nmap_audit.find(run, found, ())
        report = nmap_audit.make_report(run, found, detail="low", headings=True)
        rows, lost, new = naive.expected(index)
        actual = {(row["IP"], int(row["Port"]), row["State"], row["Change"], row["First Seen"])
                  for row in read_csv(report.csv)}
        assert actual == rows, (index, sorted(actual ^ rows))
        assert hosts_under(report.text, "Hosts gone: up before, down now") == lost
        assert hosts_under(report.text, "Hosts new") == new
        record["told"] = network.random.random() < .9
        if record["told"]:
            naive.told(index)
        record["state"] = nmap_audit.state_json(after)
        (folder / "run.json").write_text(json.dumps(record))
        assert nmap_audit.read_state(json.loads(json.dumps(record["state"]))) == after


def test_two_scanners_in_any_order_have_the_newest_baseline(nights, tmp_path, run, rc, fake):
    """What the last look at an address told counts, whichever directory is named first."""
    first, second = tmp_path / "one", tmp_path / "two"
    for folder, ports in ((first, [[25], [80]]), (second, [[25]])):
        fake("nmap", hosts={"10.0.0.1": {"ports": ports}})
        assert run("--config", rc(f"IPS 10.0.0.1\nDIR-NAME {folder}\nQUIET")).status == 0
        time.sleep(1.1)
    told = {run("--config", rc("QUIET"), "--process-only", "--tell", "always", "--dir-name", f"{one},{two}").out
            .splitlines()[0] for one, two in ((first, second), (second, first))}
    assert len(told) == 1


def test_no_table_never_hides_who_was_not_audited_or_is_gone(run, rc, fake, tmp_path):
    path = rc(f"IPS 10.0.0.1-2\nDIR-NAME {tmp_path}/runs\nQUIET\nNO-HUMAN\ngroup all\nip *\nignore * * * *\nend group")
    fake("nmap", hosts={"10.0.0.1": {"ports": [[25]]}, "10.0.0.2": {"ports": [[25]]}})
    assert run("--config", path) == (0, "", "")
    fake("nmap", hosts={"10.0.0.1": {"ports": [[25]], "fault": {"exit": 1}}})
    result = run("--config", path)
    assert (result.status, result.out) == (2, "") and "Not audited (1)" in result.err and "Hosts gone" in result.err


def test_a_directory_without_results_is_never_passed_over(run, rc, fake, tmp_path):
    fake("nmap", hosts={"10.0.0.1": {"ports": [[25]]}})
    assert run("--config", rc(f"IPS 10.0.0.1\nDIR-NAME {tmp_path}/runs\nQUIET")).status == 0
    (tmp_path / "empty").mkdir()
    result = run("--config", rc("QUIET"), "--process-only", "--dir-name", f"{tmp_path}/runs,{tmp_path}/empty")
    assert result.status == 65 and f"{tmp_path}/empty" in result.err
