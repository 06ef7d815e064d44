"""Which findings the rules of the rc file accept."""
import datetime
import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nmap_audit
from nights import sorted_out, up
from nmap_audit import HostResult, Port, Run

HOST = HostResult("192.0.2.25", "audited", names=("mail.example.net", "smtp.example.org"),
                  os=("Linux 5.4", "Linux Linux"), looked="1-65535/tcp")
SMTP = Port(25, "tcp", "open", "smtp", "Postfix smtpd")


def read(text):
    return nmap_audit.read_config(nmap_audit.parse_rc(text, "rc"), ()).groups


def group(*lines, tag="ip *", name="g"):
    return "\n".join([f"group {name}", tag, *lines, f"end group {name}"]) + "\n"


def judge(text, *ports, host=HOST):
    """The changes of a run of one host, once the rules were heard."""
    host = host._replace(ports=ports) if ports else host
    run = Run(Path("20310301-020000"), {host.address: host}, {})
    return sorted_out(nmap_audit.find(run, {}, read(text)))


def ignored(rule, port=SMTP, host=HOST, **more):
    return not judge(group(f"ignore {rule}", **more), port, host=host).findings


def member(tag, host=HOST):
    return ignored("* * * *", host=host, tag=tag)


# ---- A rule ------------------------------------------------------------------------------------

@pytest.mark.parametrize("rule", (
    "25 tcp open smtp", "* * * *", "25 * * *", "* tcp * *", "* * open *", "* * * smtp", "20-30 tcp open smtp",
    "25-25 tcp open smtp", "2* tcp open smtp", "*5 tcp open smtp", "*25* tcp open smtp", "25 tcp open s*p",
    "25 tcp open *", "25 tcp open smtp*", "25 tcp open *m*", "25/tcp open smtp", "25 TCP Open SMTP",
    "open tcp 25 smtp", "smtp open tcp 25", "tcp 25 open smtp", "1-65535 tcp open *"))
def test_a_rule_that_matches(rule):
    assert ignored(rule)


@pytest.mark.parametrize("rule", (
    "26 tcp open smtp", "25 udp open smtp", "25 tcp closed smtp", "25 tcp open http", "26-30 tcp open smtp",
    "1-24 tcp open smtp", "3* tcp open smtp", "*2 tcp open smtp", "25 tcp open|filtered smtp", "25 tcp filtered *",
    "25 tcp open smtps", "25 tcp open smt", "25 tcp open mtp*", "2 tcp open smtp", "255 tcp open smtp",
    "25 sctp open smtp", "25 ip open *", "25 tcp unfiltered smtp", "25 tcp closed|filtered smtp"))
def test_a_rule_that_does_not_match(rule):
    assert not ignored(rule)


@pytest.mark.parametrize("fields", tuple(itertools.permutations(("25", "tcp", "open", "smtp"))))
def test_fields_in_any_order(fields):
    assert ignored(" ".join(fields))
    assert not ignored(" ".join(fields), Port(25, "tcp", "open", "smtps"))


@pytest.mark.parametrize("field", range(4))
def test_every_field_counts(field):
    words = ["25", "tcp", "open", "smtp"]
    words[field] = ["26", "udp", "filtered", "smtps"][field]
    assert not ignored(" ".join(words))
    words[field] = "*"
    assert ignored(" ".join(words))


def test_open_is_not_open_or_filtered():
    port = Port(53, "udp", "open|filtered", "domain")
    assert not ignored("53 udp open domain", port)
    assert not ignored("53 udp filtered domain", port)
    assert ignored("53 udp open|filtered domain", port)


def test_a_port_without_a_service_matches_only_a_star():
    port = Port(8443, "tcp", "open")
    assert ignored("8443 tcp open *", port)
    assert not ignored("8443 tcp open unknown", port)
    assert not ignored("8443 tcp open https", port)
    assert not ignored("8443 tcp open ?*", port)


@pytest.mark.parametrize("service", ("a.b", "a[b]", "a?b", "http-proxy", "ms-wbt-server", "a+b", "(x)"))
def test_only_a_star_is_special(service):
    assert ignored(f"25 tcp open {service}", Port(25, "tcp", "open", service))
    assert not ignored(f"25 tcp open {service}", Port(25, "tcp", "open", "axb"))


def test_the_version_means_nothing():
    assert ignored("25 tcp open smtp", Port(25, "tcp", "open", "smtp", "Sendmail 8.9"))


@pytest.mark.parametrize("protocol", ("tcp", "udp", "sctp", "ip"))
@pytest.mark.parametrize("state", ("open", "filtered", "unfiltered", "open|filtered", "closed|filtered"))
def test_protocols_and_states(protocol, state):
    port = Port(7, protocol, state, "echo")
    assert ignored(f"7 {protocol} {state} echo", port)
    assert len(judge(group("ignore 8 * * *"), port).findings) == 1


def test_a_closed_port_is_no_finding():
    assert not judge("", Port(25, "tcp", "closed", "smtp")).findings
    assert not judge(group("ignore 25 tcp open smtp"), Port(25, "tcp", "closed", "smtp")).findings


def test_without_groups_all_is_told():
    assert len(judge("", SMTP, Port(80, "tcp", "open")).findings) == 2


# ---- Groups ------------------------------------------------------------------------------------

@pytest.mark.parametrize("tag", (
    "ip 192.0.2.25", "ip 192.0.2.0/24", "ip 192.0.2.16/28", "ip 192.0.2.25/32", "ip 192.0.2.20-30",
    "ip 192.0.2.20-192.0.2.30", "ip 192.0.2.25-25", "ip 192.0.2.*", "ip 192.0.*.25", "ip *", "ip *.*.*.*",
    "ip 192.0.1-3.25", "ip 192.0.2.1,25", "ip 192.0.2.1,20-30", "ip 0.0.0.0/0"))
def test_an_ip_tag_that_matches(tag):
    assert member(tag)


@pytest.mark.parametrize("tag", (
    "ip 192.0.2.2", "ip 192.0.2.250", "ip 192.0.2.0/28", "ip 192.0.3.0/24", "ip 192.0.2.1-24", "ip 192.0.2.26-30",
    "ip 192.0.2.26-192.0.3.1", "ip 192.0.3.*", "ip 192.0.2.1,5", "ip 2001:db8::/32", "ip 10.0.0.0/8"))
def test_an_ip_tag_that_does_not_match(tag):
    assert not member(tag)


@pytest.mark.parametrize("tag, expected", (
    ("ip 2001:db8::25", True), ("ip 2001:db8::/32", True), ("ip 2001:DB8:0::25", True), ("ip *", True),
    ("ip 2001:db8::26", False), ("ip 2001:db9::/32", False), ("ip 0.0.0.0/0", False), ("ip *.*.*.*", False)))
def test_ip_tags_of_ipv6(tag, expected):
    assert member(tag, HOST._replace(address="2001:db8::25")) is expected


@pytest.mark.parametrize("tag, expected", (
    ("hostname mail.example.net", True), ("hostname MAIL.Example.NET", True), ("hostname mail", True),
    ("hostname smtp.example.org", True), ("hostname smtp", True), ("hostname *.example.net", True),
    ("hostname m*", True), ("hostname *", True), ("hostname ma*l.*.net", True), ("hostname mail.example.net.", True),
    ("hostname example", False), ("hostname mail.example", False), ("hostname mail1", False),
    ("hostname *.example.com", False), ("hostname ail", False), ("hostname mail.example.org", False)))
def test_hostname_tags(tag, expected):
    assert member(tag) is expected


def test_a_host_without_names_has_no_hostname():
    assert not member("hostname *", HOST._replace(names=()))


@pytest.mark.parametrize("tag, expected", (
    ("os Linux", True), ("os linux 5.4", True), ("os linux", True), ("os nux 5", True), ("os L*5.4", True),
    ("os Linux Linux", True), ("os *", True), ("os Windows", False), ("os Linux 5.5", False)))
def test_os_tags(tag, expected):
    assert member(tag) is expected


def test_a_host_without_a_guess_has_no_os():
    assert not member("os *", HOST._replace(os=()))


def test_any_tag_of_a_group():
    text = "group g\nip 10.0.0.1\nip 192.0.2.25\nip 10.0.0.2\nignore 25 tcp open smtp\nend group g\n"
    assert not judge(text, SMTP).findings


def test_any_rule_of_any_group():
    text = group("ignore 80 tcp open *", name="a") + group("ignore 22 tcp open *", "ignore 25 tcp open *", name="b") \
        + group("ignore 25 tcp open *", tag="ip 10.0.0.1", name="c")
    assert not judge(text, SMTP).findings
    assert len(judge(text, SMTP, Port(23, "tcp", "open")).findings) == 1


def test_which_rule_it_was():
    text = "\n\n" + group("ignore 80 tcp open *", "ignore 25 tcp open *")
    rule = judge(text, SMTP).ignored[0].rules[0]
    assert (rule.where.short, rule.group, rule.where.line) == ("rc:6", "g", 6)


def test_a_rule_of_a_group_of_others_does_not_help():
    assert not ignored("25 tcp open smtp", tag="ip 192.0.2.26")


# ---- Expect ------------------------------------------------------------------------------------

def test_what_is_expected_is_accepted():
    changes = judge(group("expect 25 tcp open smtp"), SMTP)
    assert not changes.findings and len(changes.ignored) == 1


@pytest.mark.parametrize("port", (
    Port(25, "tcp", "filtered", "smtp"), Port(25, "udp", "open", "smtp"), Port(26, "tcp", "open", "smtp"),
    Port(25, "tcp", "open", "tcpwrapped"), Port(25, "tcp", "closed", "smtp")))
def test_what_is_expected_and_not_there_is_missing(port):
    changes = judge(group("expect 25 tcp open smtp"), port)
    assert [each.change for each in changes.findings if each.change == "missing"] == ["missing"]


def test_expected_closed():
    text = group("expect 25 tcp closed smtp")
    assert not judge(text, Port(25, "tcp", "closed", "smtp")).findings
    assert not judge(text, Port(80, "tcp", "closed")).findings


@pytest.mark.parametrize("host", ("failed", "cut off", "timed out", "not scanned", "down"))
def test_only_an_audited_host_misses_something(host):
    changes = judge(group("expect 25 tcp open smtp"), host=HOST._replace(outcome=host))
    assert not changes.findings


def test_rules_accept_no_change_but_of_ports_that_are_there(nights):
    """With everything ignored, what is gone is told, and nothing else."""
    nights.rules = group("ignore * * * *")
    nights.audit({"10.0.0.1": up(25, 80), "10.0.0.2": up(22), "10.0.0.3": up()})
    night = nights.audit({"10.0.0.1": up((25, "tcp", "filtered"), 443), "10.0.0.3": up()})
    assert night.changes == {("10.0.0.1", 80, "tcp"): "gone"}
    assert night.first == "2 of 2 hosts audited, 0 findings, 2 gone"


# ---- Until -------------------------------------------------------------------------------------

RUN_DAY = datetime.date(2031, 3, 1)     # of judge()


def on(days):
    return f"{RUN_DAY + datetime.timedelta(days)}"


@pytest.mark.parametrize("days, holds, named", (
    (400, True, False), (15, True, False), (14, True, True), (2, True, True), (1, True, True), (0, False, True),
    (-1, False, True), (-400, False, True)))
def test_a_rule_with_an_end(days, holds, named):
    changes = judge(group(f"ignore 25 tcp open smtp until {on(days)}", "ignore 80 tcp open *"), SMTP)
    assert (not changes.findings, len(changes.ignored)) == (holds, holds)
    assert [(each.rules[0].until, each.rules[0].where.line) for each in changes.lapsing] == [(on(days), 3)] * named
    expected = judge(group(f"expect 25 tcp open smtp until {on(days)}"), SMTP)
    assert (not expected.findings, len(expected.ignored), len(expected.lapsing)) == (holds, holds, named)
    missing = judge(group(f"expect 25 tcp open smtp until {on(days)}"), Port(25, "tcp", "closed", "smtp"))
    assert [each.change for each in missing.findings] == ["missing"] * holds and len(missing.lapsing) == named


def test_rules_that_lapse_are_named_in_groups_of_others_too():
    """And as often as they stand there: each is a line to be taken out."""
    rule = f"ignore 25 tcp open smtp until {on(3)}"
    lapsing = judge(group(rule, rule, name="a") + group(rule, tag="ip 10.0.0.1", name="b"), SMTP).lapsing
    assert [(each.rules[0].group, each.rules[0].where.line) for each in lapsing] == [("a", 3), ("a", 4), ("b", 8)]


def test_another_rule_without_an_end_holds_on():
    ended, lasting = f"ignore 25 tcp open smtp until {on(-9)}", "ignore 25 tcp open *"
    for rules in ((ended, lasting), (lasting, ended)):
        assert not judge(group(*rules), SMTP).findings


# ---- Properties --------------------------------------------------------------------------------

TEXTS = st.text("ab.*[?]-", max_size=8)


@given(TEXTS, st.text("ab.[?]-", max_size=12))
def test_like_is_what_a_regular_expression_says(pattern, text):
    naive = ".*".join(map(re.escape, pattern.split("*")))
    assert nmap_audit.like(pattern, text) is bool(re.fullmatch(naive, text))


PORTS = st.builds(Port, st.integers(1, 40), st.sampled_from(("tcp", "udp")),
                  st.sampled_from(("open", "filtered", "open|filtered")),
                  st.sampled_from(("", "smtp", "smtps", "http")), first_seen=st.just("2031-03-01"))
RULES = st.tuples(st.sampled_from(("*", "25", "1-20", "2*", "*5")), st.sampled_from(("*", "tcp", "udp")),
                  st.sampled_from(("*", "open", "filtered", "open|filtered")),
                  st.sampled_from(("*", "smtp", "s*", "*p"))).map(" ".join)
GROUPS = st.lists(st.tuples(st.sampled_from(("ip *", "ip 192.0.2.25", "ip 10.0.0.1", "hostname mail", "os bsd")),
                            st.lists(RULES, min_size=1, max_size=3)), max_size=4)


def write(groups, more=""):
    return "".join(group(*(f"ignore {rule}{more}" for rule in rules), tag=tag, name=f"g{at}")
                   for at, (tag, rules) in enumerate(groups))


def told(groups, ports):
    return {each.port for each in judge(write(groups), *ports).findings}


@settings(deadline=None)
@given(GROUPS, st.lists(PORTS, min_size=1, max_size=6, unique_by=lambda port: port.key), st.randoms())
def test_order_means_nothing(groups, ports, random):
    expected = told(groups, ports)
    shuffled = [(tag, random.sample(rules, len(rules))) for tag, rules in random.sample(groups, len(groups))]
    assert told(shuffled, ports) == expected


@settings(deadline=None)
@given(GROUPS, GROUPS, st.lists(PORTS, min_size=1, max_size=6, unique_by=lambda port: port.key))
def test_a_rule_more_never_tells_more(groups, more, ports):
    assert told(groups + more, ports) == told(groups, ports) & told(more, ports)


@settings(deadline=None)
@given(GROUPS, st.lists(PORTS, min_size=1, max_size=6, unique_by=lambda port: port.key), st.integers(-20, 20))
def test_before_its_day_an_end_changes_nothing_and_then_everything(groups, ports, days):
    found = judge(write(groups, f" until {on(days)}"), *ports)
    assert {each.port for each in found.findings} == (told(groups, ports) if days > 0 else set(ports))
    assert len(found.lapsing) == (sum(len(rules) for _, rules in groups) if days <= 14 else 0)


@settings(deadline=None)
@given(RULES, PORTS)
def test_a_rule_matches_when_all_four_fields_do(rule, port):
    number, protocol, state, service = rule.split()
    low, dash, high = number.partition("-")
    fits = int(low) <= port.number <= int(high) if dash else \
        re.fullmatch(number.replace("*", ".*"), str(port.number)) is not None
    expected = fits and protocol in ("*", port.protocol) and state in ("*", port.state) \
        and re.fullmatch(service.replace("*", ".*"), port.service) is not None
    assert ignored(rule, port) is expected
