"""The rc language: every file of data/rc/valid means what its .json says, every one of data/rc/invalid is refused with
exactly the lines of its .err. `pytest test/test_rc.py --regold` rewrites both, and shows what changes.
"""
import json
import re
import time
from pathlib import Path

import pytest

import nmap_audit

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(__file__).parent / "data" / "rc"
VALID, INVALID = (sorted((DATA / name).glob("*.rc")) for name in ("valid", "invalid"))
SETTINGS = [option.name.lower().replace("-", "_") for option in nmap_audit.OPTIONS.values() if option.name != "CONFIG"]

each_valid = pytest.mark.parametrize("path", VALID, ids=lambda path: path.stem)
each_invalid = pytest.mark.parametrize("path", INVALID, ids=lambda path: path.stem)


def config(text, file="nmap-audit.rc"):
    return nmap_audit.read_config(nmap_audit.parse_rc(text, file), (), text)


def dump(text, file):
    """What an rc file says, as plain values: settings that are not the default, and its groups."""
    found, default = config(text, file), nmap_audit.Config()
    settings = {name: getattr(found, name) for name in SETTINGS if getattr(found, name) != getattr(default, name)}
    groups = [{"name": group.name, "line": group.where.line,
               "tags": [f"{tag.word} {tag.value}" for tag in group.tags],
               "ignore": [rule_text(rule) for rule in group.rules if rule.word == "ignore"],
               "expect": [rule_text(rule) for rule in group.rules if rule.word == "expect"]}
              for group in found.groups]
    return {"settings": settings, "groups": groups}


def rule_text(rule):
    return f"{rule.where.line}: {' '.join(rule.fields)}"


def mistakes(text, file="nmap-audit.rc"):
    with pytest.raises(nmap_audit.AuditError) as caught:
        config(text, file)
    assert caught.value.status == 78
    return str(caught.value)


# ---- Both folders -------------------------------------------------------------------------------

def test_folders_are_not_empty():
    assert len(VALID) >= 15 and len(INVALID) >= 100


@each_valid
def test_valid(path, golden):
    text = json.dumps(dump(nmap_audit.read_rc(str(path)), path.name), indent=1, ensure_ascii=False) + "\n"
    golden(f"rc/valid/{path.stem}.json", text)


@each_invalid
def test_invalid(path, golden):
    text = mistakes(nmap_audit.read_rc(str(path)), path.name) + "\n"
    golden(f"rc/invalid/{path.stem}.err", text)


def test_no_expectation_without_its_file():
    left = {path.stem for path in (DATA / "valid").glob("*.json")} - {path.stem for path in VALID}
    left |= {path.stem for path in (DATA / "invalid").glob("*.err")} - {path.stem for path in INVALID}
    assert not left


@each_invalid
def test_every_mistake_has_a_place_what_is_wrong_and_what_to_do(path):
    text = nmap_audit.read_rc(str(path))
    rows = text.split("\n")
    lines = mistakes(text, path.name).split("\n")
    for line in lines:
        found = re.fullmatch(rf"{re.escape(path.name)}:(\d+):(\d+): \S.*; .*\w.*", line)
        assert found, line
        assert 1 <= int(found[1]) <= len(rows) and 1 <= int(found[2]) <= len(rows[int(found[1]) - 1]) + 1, line
        assert line.isprintable() and len(line) <= 400, line
    assert lines == sorted(lines, key=lambda line: [int(part) for part in line.split(":")[1:3]])
    assert len(lines) == len(set(lines))


@each_invalid
def test_line_ends_and_tabs_do_not_change_what_is_said(path):
    text = nmap_audit.read_rc(str(path))
    assert mistakes(re.sub("\r?\n", "\r\n", text), path.name) == mistakes(text, path.name)
    tabs = mistakes(re.sub("(?m)^ +", "\t", text), path.name)
    assert without_columns(tabs) == without_columns(mistakes(text, path.name))


def without_columns(text):
    return re.sub(r"(?m)^([^:]*:\d+:)\d+:", r"\1", text)


# ---- Lines --------------------------------------------------------------------------------------

@pytest.mark.parametrize("text, subject", [
    ("EMAIL-SUBJECT a#b", "a#b"),
    ("EMAIL-SUBJECT a #b", "a"),
    ("EMAIL-SUBJECT a\t#b", "a"),
    ('EMAIL-SUBJECT "a #b"', "a #b"),
    ('EMAIL-SUBJECT "a #b" #c', "a #b"),
    ('EMAIL-SUBJECT a "b #c" d', 'a "b #c" d'),
    ('EMAIL-SUBJECT a "b #c', 'a "b'),
    ('EMAIL-SUBJECT "a', '"a'),
    ('EMAIL-SUBJECT a"', 'a"'),
    ('EMAIL-SUBJECT "a" "b"', '"a" "b"'),
    ('EMAIL-SUBJECT " a "', " a "),
    ("EMAIL-SUBJECT   two  words  ", "two  words"),
    ("EMAIL-SUBJECT = a", "a"),
    ("EMAIL-SUBJECT == a", "= a"),
    ("EMAIL-SUBJECT : = a", "= a"),
    ("EMAIL-SUBJECT=#1", "#1"),
    ("EMAIL-SUBJECT\fa", "a"),
])
def test_value_of_a_line(text, subject):
    assert config(text).email_subject == subject
    assert config(f"QUIET\n  {text}\r\nQUIET").email_subject == subject


@pytest.mark.parametrize("text", ["", "\n", " \t\r\n", "# only\n#comments", "\n\n\n"])
def test_nothing_means_the_defaults(text):
    assert config(text) == nmap_audit.Config(rc_text=text)


def test_long_runs_of_nothing_cost_little():
    assert config("\n" * 200_000 + "QUIET" + " " * 200_000 + "#" * 200_000).quiet


@pytest.mark.parametrize("text", [
    "IPS 192.0.2.1\n" * 20_000, "IPS " + "192.0.2.1," * 4000 + "192.0.2.2", "IPS " + "1," * 4000 + "1.1.1.1",
    "EMAIL-TO a@example.net\n" * 20_000, "group a\nip *\n" + "ignore 25 tcp open smtp\n" * 20_000 + "end group",
], ids=["lines", "commas", "octets", "people", "rules"])
def test_long_lists_cost_little(text):
    started = time.process_time()
    config(text)
    assert time.process_time() - started < 3


@pytest.mark.parametrize("word", ["groups", "groupe", "ends", "endgroup", "end-group", "ipx", "oss", "ignores"])
def test_a_keyword_is_a_whole_word(word):
    assert f":4:1: unknown word '{word}'; " in mistakes(
        f"group a\nip *\nignore * * * *\n{word} a\nend group a")


@pytest.mark.parametrize("wrong, right", [
    ("IPZ 192.0.2.1", "IPS"), ("EMAILTO a@example.net", "EMAIL-TO"), ("ip-s 192.0.2.1", "IPS"),
    ("Max-Thread 5", "MAX-THREADS"), ("DIRNAME /a", "DIR-NAME"), ("no-cvs", "NO-CSV"), ("froom a@example.net", "FROM"),
    ("groups a", "GROUP"), ("grup a", "GROUP"), ("group a\nhostnam www\nend group", "hostname"),
    ("group a\nignor 1 tcp open a\nend group", "ignore"),
    ("group a\nexpct 1 tcp open a\nend group", "expect"),
])
def test_did_you_mean(wrong, right):
    assert f"; did you mean '{right}'?" in mistakes(wrong)


@pytest.mark.parametrize("head", ["grup a", "groups a", "ip *", "end group", "nonsense"])
def test_what_follows_a_line_that_cannot_stand_outside_is_not_told(head):
    text = f"{head}\nip *\nhostname www\nIgnore 25 tcp open smtp\nexpect 1 tcp\nend group a\n"
    lines = mistakes(f"{text}IPZ 1\nQUIET\n{text}QUIET maybe\nip *").split("\n")
    assert [line.split(":")[1] for line in lines] == ["1", "7", "9", "15", "16"]


# ---- Groups -------------------------------------------------------------------------------------

@pytest.mark.parametrize("end", [
    "end group mail  servers", "END GROUP MAIL SERVERS", "end  group\tMail Servers", "end group", "End Group  # so",
    'end group "mail servers"', "end group mail servers # so"])
def test_ends_of_a_group(end):
    group, = config(f"group Mail servers\nip *\nignore 25 tcp open smtp\n{end}\nQUIET").groups
    assert group.name == "Mail servers"


@pytest.mark.parametrize("end", [
    "end", "end mail servers", "end group mail", "end group servers", "end group mail servers 2", "end groups",
    "endgroup mail servers", "end group # mail servers\nend group", "group end"])
def test_wrong_ends_of_a_group(end):
    assert mistakes(f"group mail servers\nip *\nignore 25 tcp open smtp\n{end}")


def test_settings_may_stand_between_and_below_groups():
    text = "group a\nip *\nignore 25 tcp open smtp\nend group a\n"
    found = config(f"{text}IPS 192.0.2.1\n{text.replace('a', 'b')}IPS 192.0.2.2\n".replace("bp", "ap"))
    assert found.ips == ("192.0.2.1", "192.0.2.2") and len(found.groups) == 2


# ---- Rules --------------------------------------------------------------------------------------

FIELDS = ("25", "tcp", "open", "smtp")
ORDERS = ["port protocol state service", "service state protocol port", "protocol port service state",
          "state protocol port service", "service port state protocol"]


@pytest.mark.parametrize("word", ["ignore", "expect"])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("wild", range(16))
def test_fields_in_any_order_with_any_wildcards(word, order, wild):
    fields = {name: "*" if wild >> at & 1 else text
              for at, (name, text) in enumerate(zip(("port", "protocol", "state", "service"), FIELDS))}
    line = " ".join(fields[name] for name in order.split())
    group, = config(f"group a\nip *\n{word} {line}\nend group").groups
    rule, = group.rules
    assert rule.word == word and {name: dict(zip(nmap_audit.FIELDS, rule.fields))[name] for name in fields} == fields


@pytest.mark.parametrize("word, text", [(word, text) for word in ("ignore", "expect") for text in (
    "", "25", "25 tcp", "25 tcp open", "25/tcp open", "25/tcp smtp", "open smtp", "* * *", "* * * * *",
    "25 tcp open smtp *", "25 25 open smtp", "tcp tcp open smtp", "25 tcp open open", "25 tcp smtp mail")])
def test_every_field_once(word, text):
    assert ":3:" in mistakes(f"group a\nip *\n{word} {text}\nend group")


@pytest.mark.parametrize("text, port", [
    ("25 tcp open smtp", "25"), ("0 ip open *", "0"), ("65535 tcp open *", "65535"), ("0-65535 tcp open *", "0-65535"),
    ("25-25 tcp open *", "25-25"), ("13* tcp open *", "13*"), ("*3 tcp open *", "*3"), ("1*3* tcp open *", "1*3*")])
def test_ports(text, port):
    assert config(f"group a\nip *\nignore {text}\nend group").groups[0].rules[0].fields[0] == port


@pytest.mark.parametrize("port", ["65536", "99999", "1000000", "25-24", "1-65536", "70000-80000", "0000070000", "025",
                                  "9" * 5000, "1-" + "9" * 5000])
def test_ports_that_do_not_exist(port):
    assert mistakes(f"group a\nip *\nignore {port} tcp open *\nend group").startswith("nmap-audit.rc:3:8: ")


# ---- Reading the file ---------------------------------------------------------------------------

@pytest.mark.parametrize("data, text", [
    (b"a\xe4b", "aäb"), ("aäb".encode(), "aäb"), (b"\xef\xbb\xbfa", "a"), (b"", ""), (b"a\r\nb", "a\r\nb"),
    (bytes(range(1, 256)), bytes(range(1, 256)).decode("latin-1"))])
def test_text_of_a_file(tmp_path, data, text):
    (tmp_path / "rc").write_bytes(data)
    assert nmap_audit.read_rc(str(tmp_path / "rc")) == text


def test_the_shipped_file_is_valid():
    text = nmap_audit.read_rc(str(ROOT / "nmap-audit.rc"))
    assert config(text).groups
