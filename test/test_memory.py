"""What a run remembers of those before it: new, standing, changed, gone, and what is no baseline."""
import collections
import datetime
import itertools
import random
import re
import shutil
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nmap_audit
from nights import FIRST_DAY, changes, read_csv, sorted_out, stored, up
from nmap_audit import HostResult, Port, Run

A, B, C = "10.0.0.1", "10.0.0.2", "10.0.0.3"
SMTP, HTTP = (A, 25, "tcp"), (A, 80, "tcp")
DAY = datetime.timedelta(days=1)
EXPECT = "group mail\n ip 10.0.0.1\n expect 25 tcp open *\nend group mail"
pytestmark = pytest.mark.usefixtures("no_real_nmap")


@pytest.fixture
def nights(nights, inside):
    """Without the start of a program for each night."""
    nights.run = inside
    return nights


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
    nights.interrupt(nights.audit({A: up(25, 80)}))
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
    nights.rules = "TELL always\ngroup all\n ip *\n ignore 22 tcp open *\nend group all"
    nights.audit({A: up()})
    for hosts in ({A: up()}, {A: up(22)}, {A: up(22), B: up()}):    # an accepted port, and a new host with nothing
        night = nights.audit(hosts)
        assert night.out.splitlines()[:2] == [night.first, "All clear."] and night.out == night.report


@pytest.mark.parametrize("hosts", (
    pytest.param({A: up(22, 25), B: up(), C: up()}, id="new"), pytest.param({A: up(), B: up(), C: up()}, id="gone"),
    pytest.param({A: up(22), B: up()}, id="host gone"), pytest.param({A: up(22), B: up(fault={"exit": 1}), C: up()},
                                                                     id="incomplete")))
def test_nothing_else_is_an_all_clear(nights, hosts):
    nights.rules = "TELL always\ngroup all\n ip *\n ignore 22 tcp open *\nend group all"
    nights.audit({A: up(22), B: up(), C: up()})
    assert "All clear." in nights.audit({A: up(22), B: up(), C: up()}).out
    assert "All clear." not in nights.audit(hosts).out


def test_tell_errors_is_silent_even_the_first_time(nights):
    night = nights.audit({A: up(25)}, "--tell", "errors")
    assert night.out == "" and night.status == 0


def test_detail_none_tells_an_incomplete_run(nights):
    nights.audit({A: up(), B: up()})
    night = nights.audit({A: up(), B: up(fault={"exit": 1})}, "--detail", "none")
    assert night.status == 2 and night.out.startswith("1 of 2 hosts audited") and B in night.out


@pytest.mark.parametrize("what, before, now, status", (
    ("findings", up(25), up(25), 1), ("findings", up(25), up(25, 80), 1), ("findings", up(25), up(), 0),
    ("new", up(25), up(25, 80), 1), ("new", up(25), up(25), 0), ("new", up(25), up((25, "tcp", "filtered")), 0),
    ("gone", up(25), up(), 1), ("gone", up(), up(25), 0), ("missing", up(25), up(), 0),
    ("new,gone", up(25), up(), 1), ("missing,new", up(25), up(25), 0), ("missing,findings", up(25), up(25), 1)))
def test_fail_on(nights, what, before, now, status):
    nights.audit({A: before, B: up()})
    assert nights.audit({A: now, B: up()}, "--fail-on", what).status == status
    again = nights.process("--fail-on", what)
    assert again.status == status and again.out == nights.process().out


def test_without_fail_on_nothing_that_is_found_is_a_failure(nights):
    nights.rules = EXPECT
    assert nights.audit({A: up(22), B: up(25)}).status == 0
    assert nights.audit({A: up(23), C: up()}).status == 0


def test_fail_on_missing(nights):
    nights.rules = EXPECT
    assert nights.audit({A: up(25)}, "--fail-on", "missing").status == 0
    assert nights.audit({A: up()}, "--fail-on", "missing").status == 1
    assert nights.audit({A: up()}, "--fail-on", "findings,new,gone").status == 0


def test_fail_on_findings_hears_the_rules(nights):
    nights.rules = "group all\n ip *\n ignore 25 tcp open *\nend group all"
    assert nights.audit({A: up(25)}, "--fail-on", "findings").status == 0
    assert nights.audit({A: up(25, 80)}, "--fail-on", "findings").status == 1


def test_a_host_that_is_gone_counts_as_gone(nights):
    nights.audit({A: up(), B: up(), C: up()})
    assert nights.audit({A: up(), B: up()}, "--fail-on", "gone").status == 1


def test_fail_on_does_not_depend_on_what_is_told(nights):
    night = nights.audit({A: up(25)}, "--tell", "errors", "--detail", "none", "--fail-on", "findings")
    assert (night.status, night.out) == (1, "")
    assert nights.audit({A: up(25)}, "--scan-only", "--fail-on", "findings").status == 0


def test_the_rank_of_fail_on(nights, fake):
    """An incomplete audit and a mail that failed come first; both at once are the mail's status."""
    fake("sendmail", exit=75)
    whole, broken = {A: up(25)}, {A: up(25), B: up(fault={"exit": 1})}
    fail, mail = ("--fail-on", "findings"), ("--email-to", "root@example.net")
    assert nights.audit(broken, *fail).status == 2
    assert nights.audit(whole, *fail).status == 1
    assert nights.audit(whole, *fail, *mail).status == 69
    assert nights.audit(broken, *fail, *mail).status == 69


@pytest.mark.parametrize("what", ("bogus", "new,bogus", "", "new,", ",new", "new gone", "news", "finding"))
def test_what_cannot_be_failed_on(nights, fake, what):
    nmap = fake("nmap", hosts={})
    result = nights.run("--config", nights.config, "--fail-on", what)
    assert (result.status, result.out) == (64, "") and "FAIL-ON" in result.err.upper() and nmap.calls == []


# ---- Runs that are kept ------------------------------------------------------------------------

@pytest.mark.parametrize("keep", (1, 2, 3))
def test_keep_runs(nights, keep):
    nights.rules = f"KEEP-RUNS {keep}"
    made = []
    for turn in range(5):
        made.append(nights.audit({A: up(25)}).folder)
        assert nights.runs == made[-keep:]
    assert nights.audit({A: up(25, 80)}).changes == {SMTP: "standing", HTTP: "new"}


@pytest.mark.parametrize("rule, option, kept", (
    ("", (), 4), ("KEEP-RUNS 0", (), 4), ("KEEP-RUNS 2", ("--keep-runs", "0"), 4), ("", ("--keep-runs", "2"), 2),
    ("KEEP-RUNS 3", ("--keep-runs=1",), 1), ("KEEP-RUNS 9", (), 4)))
def test_where_keep_runs_may_stand(nights, rule, option, kept):
    for _ in range(3):
        nights.audit({A: up()})
    nights.rules = rule
    nights.audit({A: up()}, *option)
    assert len(nights.runs) == kept


def test_by_default_an_old_unfinished_run_stays_too(nights):
    unfinished = nights.audit({A: up(25)})
    nights.interrupt(unfinished)
    for option in ((), ("--keep-runs", "0")):
        nights.audit({A: up(25)}, *option)
    assert nights.runs[0] == unfinished.folder and len(nights.runs) == 3


@pytest.mark.parametrize("text", ("-1", "two", "1.5", "", "1 2"))
def test_what_keep_runs_cannot_be(nights, text):
    nights.audit({A: up()})
    assert nights.run("--config", nights.config, f"--keep-runs={text}").status == 64
    nights.rules = f"KEEP-RUNS {text}"
    result = nights.run("--config", nights.config)
    assert result.status == 78 and re.search(r"nmap-audit\.rc:4:\d+: .*KEEP-RUNS", result.err)
    assert len(nights.runs) == 1


LONG_AGO = (({A: up(25, 80), B: up(22), C: up()}, "1-100"), ({A: up(25), B: up(22), C: up()}, "1-50"),
            ({A: up(25), B: up(fault={"exit": 1}), C: up()}, "1-50"), ({A: up(25), B: up(22)}, "1-50"),
            ({A: up(25), B: up(22)}, "1-50"))


def test_what_was_known_outlives_the_run_that_saw_it(nights):
    """What only the first run looked at, who was down since, and since when a port is open."""
    nights.rules = "KEEP-RUNS 1"
    first, *_ = [nights.audit(hosts, scanned=scanned) for hosts, scanned in LONG_AGO]
    assert len(nights.runs) == 1 and not first.folder.exists()
    night = nights.audit({A: up(25, 80), B: up(), C: up(21)}, scanned="1-100")
    assert night.changes == {SMTP: "standing", HTTP: "standing", (B, 22, "tcp"): "gone", (C, 21, "tcp"): "new"}
    seen = {(row["IP"], row["Port"]): row["First Seen"] for row in night.rows}
    first_day = f"{FIRST_DAY + DAY}"
    assert seen == {(A, "25"): first_day, (A, "80"): first_day, (B, "22"): first_day, (C, "21"): f"{nights.day}"}
    assert not any(title.startswith("Hosts new") for title in night.tables)


def test_the_oldest_run_that_is_kept_still_gives_the_report_of_its_day(nights):
    nights.rules = "KEEP-RUNS 2\ngroup all\n ip *\n ignore 22 tcp open *\n expect 443 tcp open *\nend group all"
    history = ({A: up(22, 25), B: up(80)}, {A: up(22, 25, 80), B: up(fault={"exit": 1})}, {A: up(22), B: up(80)},
               {A: up(22), C: up(21)}, {A: up(), B: up(80), C: up(21)}, {A: up(22)})
    made = []
    for hosts in history:
        made.append(nights.audit(hosts))
        for night in made[-2:]:
            again = nights.process(folder=night.folder)
            assert (again.out, again.status) == (night.report, night.status), night.folder
    assert nights.runs == [night.folder for night in made[-2:]]


def test_a_scan_only_run_that_is_kept_still_has_its_baseline(nights):
    nights.audit({A: up(25)})
    old = nights.audit({A: up(25, 80)}, "--scan-only")
    nights.audit({A: up(25)})
    told = nights.process(folder=old.folder).out
    assert "New (1)" in told and "Standing: told before, neither accepted nor closed (1)" in told
    nights.audit({A: up(25)}, "--scan-only", "--keep-runs", "3")
    assert len(nights.runs) == 3 and nights.runs[0] == old.folder
    assert nights.process(folder=old.folder).out == told


def test_the_last_run_that_was_told_stays_and_all_that_came_after_it(nights):
    nights.rules = "KEEP-RUNS 1"
    made = [nights.audit({A: up(25)}), *[nights.audit({A: up()}, "--scan-only") for _ in range(3)]]
    assert nights.runs == [night.folder for night in made]
    last = nights.audit({A: up()})
    assert last.changes == {SMTP: "gone"} and nights.runs == [last.folder]


def test_a_run_whose_mail_waits_stays_until_it_is_sent(nights, fake):
    nights.rules = "KEEP-RUNS 1\nEMAIL-TO root@example.net"
    fake("sendmail")
    nights.audit({A: up(25)})
    fake("sendmail", exit=75)
    made = [nights.audit({A: up(25, 80)}) for _ in range(3)]
    assert {night.folder for night in made} <= set(nights.runs)
    assert len(list((nights.directory / "unsent").iterdir())) == 3
    sendmail = fake("sendmail")
    last = nights.audit({A: up(25, 80)})
    assert last.changes == {SMTP: "standing", HTTP: "standing"} and nights.runs == [last.folder]
    assert len(sendmail.mails) == 5


def test_an_old_run_whose_mail_waits_stays_beside_newer_ones_that_were_told(nights, fake):
    """Its mail can still not be sent, theirs need none: nothing is worth telling."""
    nights.rules = "KEEP-RUNS 1\nEMAIL-TO root@example.net\nTELL errors"
    fake("sendmail", exit=75)
    waits = nights.audit({A: up(), B: up(fault={"exit": 1})})
    for _ in range(2):
        last = nights.audit({A: up(), B: up()})
    assert nights.runs == [waits.folder, last.folder]


def test_an_unfinished_run_that_is_newer_stays(nights):
    nights.audit({A: up(25)})
    first, second = nights.audit({A: up(25)}), nights.audit({A: up(25)})
    nights.interrupt(first)
    nights.interrupt(second)
    nights.fake("nmap", hosts={A: up(25, 80)})
    for each in (first, second):
        result = nights.run("--config", nights.config, "--keep-runs", "1", "--resume", each.folder.name)
        assert result.status == 0 and changes(read_csv((each.folder / "scan_report.csv").read_text())) == {
            SMTP: "standing", HTTP: "new" if each is first else "standing"}
        assert nights.runs == ([first.folder, second.folder] if each is first else [second.folder])


def test_a_run_that_ends_before_it_is_finished_takes_nothing_away(nights, fake):
    nights.audit({A: up(25)})
    nights.audit({A: up(25)})
    before = nights.runs
    assert nights.run("--config", nights.config, "--keep-runs", "1", "--nmap", "no-such-nmap").status == 69
    assert nights.runs == before


def test_only_a_run_takes_runs_away(nights):
    made = [nights.audit({A: up(25)}) for _ in range(3)]
    nights.rules = "KEEP-RUNS 1"
    for folder in (None, made[0].folder):
        assert nights.process(folder=folder).status == 0
    assert nights.runs == [night.folder for night in made]


def test_what_is_no_run_of_ours_stays(nights, tmp_path):
    """A link, a file and a folder of another name, in a DIR-NAME that runs are taken from."""
    nights.audit({A: up(25)})
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    (nights.directory / "20010101-000000").symlink_to(elsewhere)
    (nights.directory / "20010102-000000").write_text("a file")
    (nights.directory / "20010103-000000-old").mkdir()
    before = set(nights.directory.iterdir())
    nights.rules = "KEEP-RUNS 1"
    night = nights.audit({A: up(25)})
    after = set(nights.directory.iterdir())
    assert after - before == {night.folder} and len(before - after) == 1 and (elsewhere / "kept").exists()


def test_history_costs_no_more_with_more_runs(nights):
    """The newest run.json holds all: the XML of older runs is not needed."""
    nights.audit({A: up(25), B: up(22)})
    nights.audit({A: up(25, 80), B: up(22)})
    for path in nights.directory.glob("*/*.xml"):
        path.unlink()
    assert nights.audit({A: up(25), B: up(22)}).changes == {
        SMTP: "standing", HTTP: "gone", (B, 22, "tcp"): "standing"}


# ---- Process-only ------------------------------------------------------------------------------

def test_a_report_that_was_sent_late_stays_the_report_of_its_day(nights, fake):
    """What it was compared with then counts, although more has been told since."""
    mail = ("--email-to", "root@example.net")
    fake("sendmail")
    nights.audit({A: up(25)}, *mail)
    fake("sendmail", exit=75)
    late = [nights.audit({A: up(25, 80)}, *mail) for _ in range(2)]
    assert [night.changes[HTTP] for night in late] == ["new", "new"]
    fake("sendmail")
    assert nights.audit({A: up(25, 80)}, *mail).changes[HTTP] == "standing"
    for night in late:
        assert night.record["told"] and nights.process(folder=night.folder).out == night.report, night.folder


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


# ---- Another baseline --------------------------------------------------------------------------

def test_baseline(nights):
    first = nights.audit({A: up(25), B: up(22), C: up()})
    nights.audit({A: up(25, 80), B: up(22), C: up()})
    night = nights.audit({A: up(80), C: up()})
    assert night.changes == {SMTP: "gone", HTTP: "standing"} and counts(night) == (1, 2)
    for name in (first.folder.name, first.folder):
        for where in (None, night.folder):
            again = nights.process("--no-human", "--baseline", name, folder=where)
            assert changes(read_csv(again.out)) == {SMTP: "gone", HTTP: "new"}


def test_baseline_is_that_run_only(nights):
    """Not what runs before it knew: the host that failed and the ports that it did not look at are first looks."""
    nights.audit({A: up(25, 80), B: up(22)}, scanned="1-100")
    second = nights.audit({A: up(25), B: up(22, fault={"exit": 1})}, scanned="1-50")
    nights.audit({A: up(25, 80), B: up(22)}, scanned="1-100")
    again = nights.process("--no-human", "--baseline", second.folder.name)
    assert changes(read_csv(again.out)) == {
        SMTP: "standing", HTTP: "first look", (B, 22, "tcp"): "first look"}
    assert {row["First Seen"] for row in read_csv(again.out) if row["Port"] == "25"} == {f"{FIRST_DAY + 2 * DAY}"}


def test_a_baseline_of_plain_xml_or_of_another_dir_name(nights, tmp_path):
    first = nights.audit({A: up(25)})
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(first.folder / f"{A}.xml", plain / "old.xml")
    other = nights.directory = tmp_path / "other"
    nights.audit({A: up(25, 80)})
    nights.audit({A: up(22)})
    nights.directory = tmp_path / "runs"
    for baseline, gone in ((plain, SMTP), (other, (A, 22, "tcp"))):
        assert nights.audit({A: up(80)}, "--baseline", baseline).changes == {gone: "gone", HTTP: "new"}


def test_baseline_changes_nothing_that_is_stored(nights, tmp_path):
    first = nights.audit({A: up(25), B: up()})
    nights.audit({A: up(25, 80), B: up(22)})
    day, kept, found = nights.day, tmp_path / "kept", []
    shutil.copytree(nights.directory, kept)
    for option in ((), ("--baseline", first.folder.name)):
        shutil.rmtree(nights.directory)
        shutil.copytree(kept, nights.directory)
        night = nights.audit({A: up(80, 21), B: up(22)}, *option, day=day + DAY)
        later = nights.audit({A: up(80), B: up(22)})
        found.append((night, night.changes, night.record["state"], later.report, later.record["state"]))
    (_, usual, *stored), (night, compared, *stored_too) = found
    assert stored == stored_too
    assert usual == {SMTP: "gone", (A, 21, "tcp"): "new", HTTP: "standing", (B, 22, "tcp"): "standing"}
    assert compared == {SMTP: "gone", (A, 21, "tcp"): "new", HTTP: "new", (B, 22, "tcp"): "new"}


def test_process_only_with_a_baseline_writes_nothing(nights):
    first = nights.audit({A: up(25)})
    nights.audit({A: up(25, 80)})
    before = {path: path.read_bytes() for path in nights.directory.rglob("*") if path.is_file()}
    assert nights.process("--baseline", first.folder.name).status == 0
    assert {path: path.read_bytes() for path in nights.directory.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("baseline", ("20200101-000000", "/nowhere", "runs/20200101-000000"))
def test_a_baseline_that_is_not_there(nights, fake, baseline):
    nights.audit({A: up(25)})
    nmap = fake("nmap", hosts={})
    nmap.forget()
    for result in (nights.process("--baseline", baseline),
                   nights.run("--config", nights.config, "--baseline", baseline)):
        assert (result.status, result.out) == (66, "") and baseline in result.err
    assert nmap.calls == [] and len(nights.runs) == 1


def test_a_baseline_that_holds_no_results(nights, tmp_path):
    nights.audit({A: up(25)})
    (tmp_path / "empty").mkdir()
    result = nights.process("--baseline", tmp_path / "empty")
    assert result.status in (65, 66) and result.out == "" and f"{tmp_path}/empty" in result.err


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


# ---- Expect ------------------------------------------------------------------------------------

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


# ---- Until -------------------------------------------------------------------------------------

UNTIL = "group all\n ip *\n ignore 25 tcp open * until {}\n ignore 110 tcp open *\nend group all"
LAPSE = "Rules that lapse (1)"
LINE = "nmap-audit.rc:6"


def lapsing(report):
    """The row of the rule that lapses, or nothing; there is never another."""
    title = re.search(r"^Rules that lapse.*$", report, re.MULTILINE)
    if not title:
        return ""
    heading, ruler, *rows, _ = re.split("\n", re.search(rf"^{re.escape(LAPSE)}\n\n((.+\n)+)", report, re.M)[1])
    assert heading.split() == ["LINE", "GROUP", "UNTIL", "RULE"] and set(ruler) == {"-", " "} and len(rows) == 1
    return rows[0]


@pytest.mark.parametrize("days, told, named", (
    pytest.param(15, False, False, id="15 days before"), pytest.param(14, True, True, id="14 days before"),
    pytest.param(1, True, True, id="the day before"), pytest.param(0, True, True, id="that day"),
    pytest.param(-1, True, True, id="the day after"), pytest.param(-400, True, True, id="long after")))
def test_until(nights, days, told, named):
    nights.audit({A: up()}, day=FIRST_DAY)
    end = FIRST_DAY + DAY * (days + 1)
    nights.rules = UNTIL.format(end)
    night = nights.audit({A: up(25, 110)})
    assert night.changes == ({} if days > 0 else {SMTP: "new"})
    assert bool(night.out) is told and night.out in ("", night.report)
    row = lapsing(night.report)
    assert bool(row) is named
    if named:
        assert re.match(rf"{re.escape(LINE)} +all +{end}\b.* 25 tcp open \*", row)


def test_what_a_rule_accepted_until_its_day_is_a_finding_from_then_on(nights):
    nights.rules = UNTIL.format(FIRST_DAY + 3 * DAY)
    nights.audit({A: up(25)})
    assert nights.audit({A: up(25)}).changes == {}                      # the last day on which it holds
    night = nights.audit({A: up(25)})
    assert night.changes == {SMTP: "standing"} and night.rows[0]["First Seen"] == f"{FIRST_DAY + DAY}"
    assert night.record["ignored"] == [] and counts(night) == (1, 0)
    nights.rules = UNTIL.format(FIRST_DAY + 300 * DAY)                  # it got a later day
    night = nights.audit({A: up(25)})
    assert (night.changes, night.out) == ({}, "") and "lapse" not in night.report


@pytest.mark.parametrize("tell, days, mails", (
    ("changes", 15, 0), ("changes", 14, 1), ("changes", 1, 1), ("changes", -30, 1), ("errors", 14, 0),
    ("always", 15, 1)))
def test_a_rule_that_lapses_is_worth_a_mail(nights, fake, tell, days, mails):
    """Nothing else is: the port is accepted still, or is not there."""
    nights.audit({A: up(110)}, day=FIRST_DAY)
    sendmail = fake("sendmail")
    end = FIRST_DAY + DAY * (days + 1)
    nights.rules = f"EMAIL-TO root@example.net\nTELL {tell}\n" + UNTIL.format(end)
    night = nights.audit({A: up(110)})
    assert night.status == 0 and counts(night) == (0, 0)
    assert len(sendmail.mails) == mails
    if mails and days < 15:
        text = next(sendmail.mails[0].walk()) if not sendmail.mails[0].is_multipart() else sendmail.mails[0]
        assert f"{end}" in text.get_body(("plain",)).get_content() and "All clear." not in night.report


@pytest.mark.parametrize("detail", ("none", "low", "medium", "high"))
def test_every_report_names_a_rule_that_lapses(nights, detail):
    nights.audit({A: up()})
    nights.rules = UNTIL.format(nights.day + 9 * DAY)
    night = nights.audit({A: up(25)}, "--detail", detail)
    assert LINE in lapsing(night.report) and night.out == night.report
    assert LINE in lapsing(nights.audit({A: up(25)}, "--no-human", "--detail", detail, "--email-to", "").report)


def test_the_day_of_the_run_counts_and_not_that_of_the_report(nights):
    nights.rules = UNTIL.format(FIRST_DAY + 5 * DAY)
    made = [nights.audit({A: up(25)}) for _ in range(2)]
    for _ in range(5):
        nights.day += DAY
    made.append(nights.audit({A: up(25)}))
    assert [night.changes for night in made] == [{}, {}, {SMTP: "standing"}]
    for night in made:
        assert nights.process(folder=night.folder).out == night.report


def test_an_expectation_with_an_end(nights):
    nights.rules = EXPECT.replace("open *", f"open * until {FIRST_DAY + 3 * DAY}")
    assert nights.audit({A: up()}).changes == {SMTP: "missing"}
    night = nights.audit({A: up()})
    assert night.changes == {SMTP: "missing"} and LINE in lapsing(night.report)
    night = nights.audit({A: up()})                                     # that day it ends
    assert night.changes == {} and "Missing" not in night.report and LINE in lapsing(night.report)


def test_an_expectation_accepts_until_its_day(nights):
    nights.rules = EXPECT.replace("open *", f"open * until {FIRST_DAY + 2 * DAY}")
    assert nights.audit({A: up(25)}).changes == {}
    assert nights.audit({A: up(25)}).changes == {SMTP: "standing"}


@pytest.mark.parametrize("word", ("ignore", "expect"))
@pytest.mark.parametrize("date", ("2031-02-30", "31.3.2031", "20310301", "2031-13-01", "soon", "2031-W10-1",
                                  "2031-060", "0000-01-01", "2031-03-01T00:00", "2031/03/01", "until", "12031-03-01"))
def test_a_date_that_is_none(nights, fake, word, date):
    nmap = fake("nmap", hosts={})
    nights.rules = UNTIL.format(date).replace("ignore 25", f"{word} 25")
    result = nights.run("--config", nights.config)
    assert (result.status, result.out) == (78, "") and nmap.calls == []
    place, text = re.fullmatch(r"nmap-audit: \S*nmap-audit\.rc:(\d+:\d+): (.*)\n", result.err).groups()
    assert place == "6:9" and date.lower() in text.lower() and "2027-03-31" in text


@pytest.mark.parametrize("rule", (
    "25 tcp open * until", "25 tcp open until 2031-05-01", "25 tcp open * 2031-05-01", "25 tcp open * 2031-05-01 until",
    "until 2031-05-01", "25 tcp open * until 2031-05-01 2031-06-01"))
def test_an_end_in_a_rule_that_lacks_something(nights, rule):
    nights.rules = f"group all\n ip *\n ignore {rule}\nend group all"
    result = nights.run("--config", nights.config)
    assert result.status == 78 and re.match(r"nmap-audit: \S*nmap-audit\.rc:6:\d+: .", result.err)


def test_a_service_may_be_called_until(nights):
    nights.rules = "group all\n ip *\n ignore 25 tcp open until\nend group all"
    assert nights.audit({A: up((25, "tcp", "open", "until"))}).changes == {}


def test_the_word_may_be_in_any_case_and_after_fields_in_any_order(nights):
    nights.rules = f"group all\n ip *\n IGNORE open tcp 25 * Until {FIRST_DAY + 2 * DAY}\nend group all"
    assert nights.audit({A: up(25)}).changes == {}
    assert nights.audit({A: up(25)}).changes == {SMTP: "standing"}


# ---- The lists of run.json ---------------------------------------------------------------------

KEYS = {"address", "name", "os", "port", "protocol", "state", "service", "version", "change", "first_seen", "before",
        "line", "group"}
COLUMNS = {"IP": "address", "Hostname": "name", "OS": "os", "Port": "port", "Protocol": "protocol", "State": "state",
           "Service": "service", "Version": "version", "Change": "change", "First Seen": "first_seen"}


def check_lists(night):
    """What run.json lists is what the CSV, the tables and the counts of the report say."""
    record = night.record
    lists = {name: record[name] for name in ("findings", "gone", "missing", "hosts_new", "regrouped", "ignored")}
    for entry in (entry for several in lists.values() for entry in several):
        assert entry.keys() == KEYS and all(isinstance(text, str) for text in entry.values())
    for name, changes_there in (("findings", {"new", "changed", "first look", "standing"}), ("missing", {"missing"}),
                                ("gone", {"gone", "host gone"}), ("hosts_new", {"host new"}),
                                ("regrouped", {"regrouped"}),
                                ("ignored", {"new", "changed", "first look", "standing"})):
        assert {entry["change"] for entry in lists[name]} <= changes_there, name
    ports = [entry for name in ("findings", "gone", "missing") for entry in lists[name] if entry["port"]]
    told = [{column: entry[key] for column, key in COLUMNS.items()} for entry in ports]
    assert sorted(told, key=str) == sorted(night.rows, key=str)
    assert counts(night) == (len(lists["findings"]), len(lists["gone"]))
    hosts = {"host gone": set(), "host new": set(), "regrouped": set()}
    for entry in (entry for several in lists.values() for entry in several if not entry["port"]):
        hosts[entry["change"]].add(entry["address"])
    for change, title in (("host gone", "Hosts gone"), ("host new", "Hosts new"),
                          ("regrouped", "Hosts that changed group")):
        assert hosts[change] == {cell.split(" ")[0] for cell in cells(night, title)}
    rules = {line for entry in lists["ignored"] for line in entry["line"].split(", ")}
    assert f"\nPorts ignored: {len(lists['ignored'])}, by rules: {len(rules)}\n" in night.report
    return lists


def cells(night, title):
    """The first cells of the table whose title begins so, of which there are as many as it says."""
    for name, rows in night.tables.items():
        if name.startswith(title):
            assert name.endswith(f"({len(rows)})")
            return rows
    return []


LISTED = """
group mail
 hostname mail*
 ignore 25 tcp open smtp
 ignore 20-30 tcp open *
 expect 587 tcp open *
end group mail
group web
 hostname web*
 ignore 80 tcp open http
end group web
group all
 ip *
 ignore 25 * open smtp
end group all"""


def test_the_lists_of_run_json(nights):
    nights.rules, nights.ips = LISTED, "10.0.0.1-6"
    smtp, pop, http = (25, "tcp", "open", "smtp"), (110, "tcp", "open", "pop3"), (80, "tcp", "open", "http")
    first = nights.audit({
        A: up(smtp, pop, (587, "tcp", "open", "submission"), names=["mail.example.net"]),
        B: up(smtp, (53, "tcp"), http),
        C: up(http, names=["web.example.net"]), "10.0.0.4": up(), "10.0.0.5": up(22)}, scanned="1-600")
    lists = check_lists(first)
    assert {name: len(several) for name, several in lists.items()} == {
        "findings": 4, "gone": 0, "missing": 0, "hosts_new": 0, "regrouped": 0, "ignored": 4}
    night = nights.audit({
        A: up((25, "tcp", "open", "smtp", {"product": "Postfix", "version": "1.10"}), (110, "tcp", "filtered", "pop3"),
              (443, "tcp", "open", "https"), names=["mail.example.net"], os=[["Linux 5.0", 98, "Linux", "Linux"]]),
        B: up(smtp, http), C: up(http, names=["dns.example.net"]), "10.0.0.5": up(22, fault={"exit": 1}),
        "10.0.0.6": up((995, "tcp", "open", None))}, scanned="1-1000")
    lists = check_lists(night)
    mail = {"address": A, "name": "mail.example.net", "os": "Linux 5.0", "protocol": "tcp", "version": "", "line": "",
            "group": "", "before": ""}
    day, before = f"{nights.day}", f"{nights.day - DAY}"
    assert [entry for entry in lists["findings"] if entry["address"] == A] == [
        {**mail, "port": "110", "state": "filtered", "service": "pop3", "change": "changed", "first_seen": before,
         "before": "open"},
        {**mail, "port": "443", "state": "open", "service": "https", "change": "new", "first_seen": day}]
    assert {(entry["address"], entry["port"], entry["change"]) for entry in lists["gone"]} == {
        (A, "587", "gone"), (B, "53", "gone"), ("10.0.0.4", "", "host gone")}
    assert [(entry["address"], entry["port"], entry["line"], entry["group"]) for entry in lists["missing"]] == [
        (A, "587", "nmap-audit.rc:9", "mail")]
    assert [entry["address"] for entry in lists["hosts_new"]] == ["10.0.0.6"]
    assert [entry["address"] for entry in lists["regrouped"]] == [C]
    assert [(entry["address"], entry["port"], entry["line"], entry["version"], entry["before"])
            for entry in lists["ignored"]] == [
        (A, "25", "nmap-audit.rc:7, nmap-audit.rc:8, nmap-audit.rc:17", "Postfix 1.10", "open"),
        (B, "25", "nmap-audit.rc:17", "", "open")]
    assert lists["ignored"][0]["group"] == "mail, mail, all"


def test_the_lists_hold_what_strangers_wrote_as_they_wrote_it(nights):
    """The CSV puts an apostrophe before a formula and cuts long texts; run.json is no spreadsheet."""
    names = ["=cmd|' /C calc'!A0", "a" * 2000, "x\x1b[31m", "gr\xfc\xdfe.example.net"]
    nights.ips = "10.0.0.1-4"
    night = nights.audit({f"10.0.0.{n}": up((25, "tcp", "open", name), names=[name])
                          for n, name in enumerate(names, 1)})
    found = [entry["name"] for entry in night.record["findings"]]
    assert found[:2] == names[:2] and "31m" in found[2] and len(found) == 4
    assert [entry["service"] for entry in night.record["findings"]] == found


def test_the_lists_are_those_of_the_report_whatever_it_shows(nights):
    """Neither the level of detail nor a report that is not told leaves anything out."""
    nights.rules = LISTED
    nights.audit({A: up(25, 80), B: up(22)})
    night = nights.audit({A: up(80, 110), C: up()}, "--detail", "none", "--no-human", "--no-csv", "--tell", "errors")
    lists = {name: len(night.record[name]) for name in ("findings", "gone", "hosts_new", "ignored")}
    assert night.out == "" and lists == {"findings": 2, "gone": 2, "hosts_new": 1, "ignored": 0}


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


def test_a_host_of_another_group_that_was_down_in_between_is_told(nights):
    nights.rules = BY_NAME
    nights.audit({A: up(names=["mail.example.net"]), B: up()})
    nights.audit({B: up()})
    assert "changed group" in nights.audit({A: up(names=["web.example.net"]), B: up()}).report


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


def test_most_hosts_failed_at_once_is_said_on_line_two(nights):
    nights.audit({A: up(), B: up(), C: up()})
    night = nights.audit({A: up(fault={"exit": 1}), C: up()})
    assert "network may be broken" in night.report.splitlines()[1] and "2 of 3" in night.report.splitlines()[1]


def test_half_of_the_hosts_down_is_no_broken_network(nights):
    nights.audit({A: up(), B: up()})
    assert "may be broken" not in nights.audit({A: up()}).report


# ---- A year ------------------------------------------------------------------------------------

HOSTS = [f"10.0.0.{n}" for n in range(1, 51)]
TRUSTED = HOSTS[:20]                # their open port 22 is accepted
PORTS = (21, 22, 25, 53, 80, 110, 143, 443, 993, 3306)
LISTS = ("1-100", "1-1000", "1-4000", "22,80,443")
STATES = ("open", "open", "open", "filtered", "open|filtered", "closed")
FAST_NMAP = """#!/bin/sh
# Writes what $WORLD holds: list, head, ADDRESS.host; with ADDRESS.fail it fails, and after ADDRESS.cut it stops.
for word; do [ "$word" = -sL ] && exec cat "$WORLD/list"; done
while [ "$1" != -- ]; do shift; done
shift
cd "$WORLD" && up=0 files=head
for address; do
    [ -e $address.fail ] && { echo "no luck" >&2; exit 1; }
    [ -e $address.host ] && up=$((up+1)) files="$files $address.host"
    [ -e $address.cut ] && exec cat $files
done
cat $files
echo "<runstats><finished time='0' exit='success'/><hosts up='$up' down='$(($#-up))' total='$#'/></runstats></nmaprun>"
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
        self.up = dict.fromkeys(HOSTS, True) | dict.fromkeys(HOSTS[-5:], False)

    def live(self):
        for host in HOSTS:
            if self.random.random() < (.02 if self.up[host] else .2):
                self.up[host] = not self.up[host]
            if self.random.random() < .06:
                self.ports[host][self.random.choice(PORTS)] = self.random.choice(STATES)
            if self.ports[host] and self.random.random() < .03:
                del self.ports[host][self.random.choice(sorted(self.ports[host]))]

    def night(self):
        """{host: outcome}, the port list, as the scanner will see them."""
        faults, luck, services = {}, self.random.random(), self.random.choice(LISTS)
        if luck < .02:
            return dict.fromkeys(HOSTS, "failed"), services
        if luck < .2:
            faults = {host: self.random.choice(("failed", "cut off", "timed out"))
                      for host in self.random.sample(HOSTS, self.random.randrange(1, 4))}
        if self.random.random() < .02:
            self.up.update(dict.fromkeys(self.random.sample(HOSTS, 40), False))
        return {host: faults.get(host, "audited") if self.up[host] else "down" for host in HOSTS}, services

    def write(self, world, outcomes, services, moment):
        shutil.rmtree(world, ignore_errors=True)
        world.mkdir()
        asked = numbers(services)
        start = f"<?xml version='1.0'?>\n<!DOCTYPE nmaprun>\n<nmaprun args='nmap' start='{moment}'>\n"
        targets = "".join(f"<host><status state='unknown'/><address addr='{host}' addrtype='ipv4'/></host>\n"
                          for host in HOSTS)
        (world / "list").write_text(f"{start}{targets}<runstats><finished exit='success'/>"
                                    f"<hosts up='0' down='0' total='{len(HOSTS)}'/></runstats></nmaprun>")
        (world / "head").write_text(
            f"{start}<scaninfo type='connect' protocol='tcp' numservices='{len(asked)}' services='{services}'/>\n")
        for host, outcome in outcomes.items():
            shown = {port: state for port, state in self.ports[host].items() if port in asked}
            ports = (f"<ports><extraports state='closed' count='{len(asked) - len(shown)}'/>"
                     + "".join(f"<port protocol='tcp' portid='{port}'><state state='{state}'/></port>"
                               for port, state in shown.items()))
            text = (f"<host starttime='{moment}' endtime='{moment}'{' timedout=' * (outcome == 'timed out')}"
                    f"{repr('true') * (outcome == 'timed out')}><status state='up'/>"
                    f"<address addr='{host}' addrtype='ipv4'/>")
            rest = {"audited": f"{ports}</ports></host>\n", "timed out": "</host>\n", "cut off": ports}
            if outcome in rest:
                (world / f"{host}.host").write_text(text + rest[outcome])
            if outcome in ("failed", "cut off"):
                (world / f"{host}.{'cut' if outcome == 'cut off' else 'fail'}").touch()


class Naive:
    """The whole history, read anew for every question, as the manual words it."""

    def __init__(self):
        self.runs = []      # (day, outcomes, {host: {port: state}}, {host: ports looked at}, told)

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
                text += "</ports></host></nmaprun>"
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
        """The port's state in the last audited result that looked there; None: none did."""
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

    def was_up(self, host, before):
        return next((outcome for _, outcome, *_ in self.results(host, before, ("audited", "down"))), "") == "audited"

    def expected(self, index):
        """(rows of the CSV, rows that a rule accepts, hosts gone, hosts new, a broken network) of a run."""
        day, outcomes, seen, looked, _ = self.runs[index]
        rows, accepted, new = set(), set(), set()
        any_before = any(True for host in HOSTS for _ in self.results(host, index))
        for host, outcome in outcomes.items():
            now = seen.get(host, {})
            for port, state in now.items():
                before = self.port_before(host, port, index)
                change = "first look" if before is None else "new" if before == "closed" else \
                    "standing" if before == state else "changed"
                if state != "closed":
                    (accepted if host in TRUSTED and (port, state) == (22, "open") else rows).add(
                        (host, port, state, change, self.first_seen(host, port, index, day)))
            if outcome != "audited":
                continue
            if any_before and not any(True for _ in self.results(host, index)):
                new.add(host)
            for port in looked[host].intersection(PORTS):
                state = self.port_before(host, port, index)
                if now.get(port, "closed") == "closed" and state in ("open", "open|filtered"):
                    rows.add((host, port, state, "gone", self.first_seen(host, port, index, day)))
        up = [host for host in HOSTS if self.was_up(host, index)]
        lost = [host for host in up if outcomes[host] in ("down", "failed")]
        return rows, accepted, {host for host in lost if outcomes[host] == "down"}, new, len(lost) * 2 > len(up)


def check_night(naive, index, night):
    rows, accepted, lost, new, broken = naive.expected(index)
    found = {(row["IP"], int(row["Port"]), row["State"], row["Change"], row["First Seen"]) for row in night.rows}
    assert found == rows, (index, sorted(found ^ rows))
    lists = check_lists(night)
    assert {(entry["address"], int(entry["port"]), entry["state"], entry["change"], entry["first_seen"])
            for entry in lists["ignored"]} == accepted, index
    assert set(cells(night, "Hosts gone")) == lost and set(cells(night, "Hosts new")) == new, index
    assert ("network may be broken" in night.report.splitlines()[1]) is broken, index
    tally = collections.Counter(naive.runs[index][1].values())
    found = sum(change != "gone" for *_, change, _ in rows)
    assert night.first == (f"{tally['audited']} of {len(HOSTS) - tally['down']} hosts audited, "
                           f"{found} findings, "
                           f"{sum(change == 'gone' for *_, change, _ in rows) + len(lost)} gone")


@pytest.mark.timeout(300)
def test_a_year(nights, fake, tmp_path, monkeypatch):
    """Every report of 365 nights is what a naive reading of all XML says; mails fail, runs only scan, old ones go."""
    network, naive, waiting, made, alone = Network(1), Naive(), [], [], []
    nights.fake = lambda name, **_: None
    nights.ips = f"10.0.0.1-{len(HOSTS)}"
    rules = f"TELL always\nKEEP-RUNS 10\ngroup trusted\n ip 10.0.0.1-{len(TRUSTED)}\n ignore 22 tcp open *\nend group"
    nights.rules = f"EMAIL-TO root@example.net\n{rules}"
    fake("nmap", text=FAST_NMAP)
    fake("sendmail", text="#!/bin/sh\ncat > /dev/null\nexit $SENDMAIL_STATUS\n")
    monkeypatch.setenv("WORLD", str(tmp_path / "world"))
    monkeypatch.setattr(nmap_audit.os, "fsync", lambda _: None)     # the disk's time, and most of the year
    for index in range(365):
        network.live()
        outcomes, services = network.night()
        day = FIRST_DAY + DAY * index
        moment = int(datetime.datetime.combine(day, datetime.time(2)).timestamp())
        network.write(tmp_path / "world", outcomes, services, moment)
        broken, silent = network.random.random() < .1, network.random.random() < .05
        monkeypatch.setenv("SENDMAIL_STATUS", "75" if broken else "0")
        night = nights.audit({}, *["--scan-only"] * silent, day=day)
        made.append(night.folder)
        if not broken:
            while waiting:
                naive.told(waiting.pop())
        naive.add(f"{day}", night.folder, outcomes)
        assert nights.runs[-10:] == made[-10:] and len(nights.runs) < 20
        complete = 0 if set(outcomes.values()) <= {"audited", "down"} else 2
        if silent:
            assert night.status == (69 if broken and waiting else complete)
            continue
        assert night.status == (69 if broken else complete), night
        check_night(naive, index, night)
        if not waiting and not broken:
            alone.append(night)
        if broken:
            waiting.append(index)
        else:
            naive.told(index)
    assert collections.Counter(outcome for _, outcomes, *_ in naive.runs for outcome in outcomes.values()).keys() == {
        "audited", "down", "failed", "cut off", "timed out"}
    nights.rules = rules
    for night in (night for night in alone if night.folder.exists()):
        assert nights.process(folder=night.folder).out == night.report, night.folder


# ---- Any history -------------------------------------------------------------------------------

LOOKS = ("1-3/tcp", "1-2/tcp", "3/tcp", "1-3/udp", "2/udp")


@st.composite
def results(draw, address):
    """Any result of a host: of ports that were looked at, some are listed."""
    looked = draw(st.lists(st.sampled_from(LOOKS), max_size=2, unique_by=lambda look: look[-3:]))
    ports = tuple(Port(number, protocol, draw(st.sampled_from(STATES)), draw(st.sampled_from(("", "smtp"))))
                  for text, _, protocol in (look.partition("/") for look in looked)
                  for number in sorted(numbers(text)) if draw(st.booleans()))
    outcome = draw(st.sampled_from(("audited", "audited", *nmap_audit.OUTCOMES)))
    whole = outcome in ("audited", "cut off")
    return HostResult(address, outcome, names=draw(st.sampled_from(((), ("mail",), ("web", "mail")))),
                      os=draw(st.sampled_from(((), ("Linux",)))), ports=ports if whole else (),
                      looked=" ".join(looked))


HISTORIES = st.lists(st.fixed_dictionaries({}, optional={A: results(A), B: results(B)}), min_size=1, max_size=7)


def as_runs(history):
    return [Run(Path(f"/{FIRST_DAY + DAY * index:%Y%m%d}-020000"), hosts, {}) for index, hosts in enumerate(history)]


def audited(history, address):
    """(day, result) of each night on which the host was audited, the latest first."""
    return [(f"{FIRST_DAY + DAY * index}", hosts[address]) for index, hosts in reversed(list(enumerate(history)))
            if address in hosts and hosts[address].outcome == "audited"]


def looks(history, address, key):
    """(day, state, service) of each audited night that looked at the port; "closed" where it was not listed."""
    number, _, protocol = key.partition("/")
    for day, host in audited(history, address):
        lists = dict(reversed(look.split("/")) for look in host.looked.split())
        if int(number) in numbers(lists.get(protocol, "0")):
            yield next(((day, port.state, port.service) for port in host.ports if port.key == key), (day, "closed", ""))


KEYS_LOOKED = [f"{number}/{protocol}" for protocol in ("tcp", "udp") for number in (1, 2, 3)]


@settings(deadline=None, max_examples=300)
@given(HISTORIES)
def test_run_by_run_as_much_is_known_as_from_all_runs_at_once(history):
    state = {}
    for run in as_runs(history):
        after = nmap_audit.fold(state, run)
        state = stored(after)
        assert state == after
    assert state.keys() == {address for address in (A, B) if audited(history, address)}
    for address, known in state.items():
        day, last = audited(history, address)[0]
        assert known.file == f"{day.replace('-', '')}-020000"
        assert (known.names, known.os) == (last.names, last.os)
        heard = [hosts[address].outcome for hosts in history if address in hosts]
        assert known.outcome == [outcome for outcome in heard if outcome in ("audited", "down")][-1]
        for key in KEYS_LOOKED:
            nights = list(looks(history, address, key))
            assert (key in nmap_audit.looked_at(known.looked)) is bool(nights)
            row = list(itertools.takewhile(lambda night: night[1] != "closed", nights))
            ports = {port.key: (port.state, port.service, port.first_seen) for port in known.ports}
            assert ports.get(key) == ((*row[0][1:], row[-1][0]) if row else None), key


@settings(deadline=None, max_examples=300)
@given(HISTORIES)
def test_what_changed_is_what_all_runs_before_say(history):
    *before, last = history
    state = {}
    for run in as_runs(history)[:-1]:
        state = nmap_audit.fold(state, run)
    found = sorted_out(nmap_audit.find(as_runs(history)[-1], state, ()))
    ports = {(each.host.address, each.port.key): each.change for each in found.findings if each.port.state
             and (each.change == "gone" or each.port.state != "closed")}
    expected = {}
    for address, host in last.items():
        listed = {port.key: port.state for port in host.ports if port.state != "closed"}
        for key in KEYS_LOOKED:
            was = next((state for _, state, _ in looks(before, address, key)), None)
            if key in listed:
                expected[address, key] = {None: "first look", "closed": "new", listed[key]: "standing"}.get(
                    was, "changed")
            elif host.outcome == "audited" and was in ("open", "open|filtered") and \
                    key in nmap_audit.looked_at(host.looked):
                expected[address, key] = "gone"
    assert ports == expected
    hosts = {(each.host.address, each.change) for each in found.findings if not each.port.state}
    assert hosts == {
        (address, change) for address, host in last.items() for change, true in (
            ("host new", host.outcome == "audited" and not audited(before, address)
             and (audited(before, A) or audited(before, B))),
            ("host gone", host.outcome == "down" and address in state and state[address].outcome == "audited")) if true}


# ---- Several scanners --------------------------------------------------------------------------

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
