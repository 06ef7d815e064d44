"""The command line: the options of 2003 and what was added, read as Perl's Getopt::Long read them; exit statuses."""
import os
import re
import tempfile
from pathlib import Path

import pytest

import nmap_audit

# What a crontab of 2003 may say: every name, and the setting it stands for. A switch has no value.
SWITCHES = {"no-human": "NO-HUMAN", "nohuman": "NO-HUMAN", "no-csv": "NO-CSV", "nocsv": "NO-CSV",
            "no-csv-headings": "NO-CSV-HEADINGS", "nocsv-headings": "NO-CSV-HEADINGS", "scan-only": "SCAN-ONLY",
            "process-only": "PROCESS-ONLY", "quiet": "QUIET", "version": "VERSION", "help": "HELP"}
VALUES = {"config": "FILE", "ips": "192.0.2.1", "email-to": "root@example.net", "email-from": "root@example.net",
          "email-subject": "Open ports", "nmap": "nmap -sS", "detail": "high", "max-threads": "3", "dir-name": "/a"}
LEGACY = {**SWITCHES, **{name: name.upper() for name in VALUES}}
POSITIVE = {"csv": "NO-CSV", "human": "NO-HUMAN", "csv-headings": "NO-CSV-HEADINGS"}
NEW = {"resume": ["--resume", "20261124-020000"], "tell": ["--tell", "always"], "batch": ["--batch", "7"],
       "keep-runs": ["--keep-runs", "9"], "baseline": ["--baseline", "20261124-020000"],
       "fail-on": ["--fail-on", "new,gone"], "why": ["--why", "10.0.0.1:25/tcp"], "accept": ["--accept", "25/tcp"]}
NEW_SWITCHES = ("test-config", "unused-rules")
XML = """<?xml version="1.0"?>
<!DOCTYPE nmaprun>
<nmaprun scanner="nmap" start="1795485600" version="7.93"><scaninfo type="syn" protocol="tcp" numservices="2"
services="24-25"/><host starttime="1795485600"><status state="up"/><address addr="127.0.0.1" addrtype="ipv4"/>
<ports><extraports state="closed" count="1"/><port protocol="tcp" portid="25"><state state="open"/>
<service name="smtp"/></port></ports></host>
<runstats><finished time="1795485601" exit="success"/><hosts up="1" down="0" total="1"/></runstats></nmaprun>
"""


def read(*argv):
    """The settings of a command line, as names and values."""
    return [(line.word, line.value) for line in nmap_audit.parse_options(list(argv))]


def refused(*argv):
    with pytest.raises(nmap_audit.AuditError) as caught:
        read(*argv)
    assert caught.value.status == 64 and "\n" not in str(caught.value)
    return str(caught.value)


def words(name, option):
    return [option] if name in SWITCHES else [option, VALUES[name]]


def meaning(prefix):
    """The settings that an abbreviation may stand for, were there but the options of 2003."""
    return {prefix: LEGACY[prefix]}.values() if prefix in LEGACY else {
        setting for name, setting in LEGACY.items() if name.startswith(prefix)}


PREFIXES = sorted({name[:length] for name in LEGACY for length in range(1, len(name) + 1)})


def one_line(result, status):
    err = result.err[:1000]
    assert (result.status, result.out) == (status, "") and "Traceback" not in err, err
    assert re.fullmatch(r"nmap-audit: [^\n]+; [^\n]+\n", err), err
    return err


def one_usage_error(result):
    return one_line(result, 64)


# ---- Names --------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", LEGACY)
@pytest.mark.parametrize("spelling", ["--{}", "-{}", "--{}=", "-{}="])
@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_every_legacy_option(name, spelling, case):
    value = VALUES.get(name, "")
    if spelling.endswith("="):
        word = case(spelling.format(name)) + (value or "1")
        assert read(word) == [(LEGACY[name], value)] if value else refused(word)
    else:
        assert read(*words(name, case(spelling.format(name)))) == [(LEGACY[name], value)]


@pytest.mark.parametrize("prefix", [each for each in PREFIXES if len(meaning(each)) == 1])
def test_every_abbreviation_means_what_it_meant(prefix):
    setting, = meaning(prefix)
    name = next(name for name in LEGACY if LEGACY[name] == setting)
    for spelling in (f"--{prefix}", f"-{prefix}", f"--{prefix.upper()}"):
        assert read(*words(name, spelling)) == [(setting, VALUES.get(name, ""))]


@pytest.mark.parametrize("prefix", [each for each in PREFIXES if len(meaning(each)) > 1])
def test_every_ambiguous_abbreviation_is_refused(prefix):
    message = refused(f"--{prefix}", "x")
    assert message == refused(f"-{prefix}", "x")
    for setting in meaning(prefix):
        assert f"--{setting.lower()}" in message


def test_what_is_wrong_with_an_option_is_told_as_such(run, rc):
    """And not as what is wrong with a line of the file would be."""
    result = run("--config", rc(""), "--baseline=")
    assert result.status == 64 and "'' cannot be BASELINE; write RUN-ID|DIR" in result.err


def test_the_tables_of_this_file_are_complete():
    names = {option.name for option in nmap_audit.OPTIONS.values() if option.heading} | {"VERSION", "HELP"}
    assert names == {*LEGACY.values(), *map(str.upper, NEW), *map(str.upper, NEW_SWITCHES)}


def test_no_new_option_begins_as_a_legacy_one_does():
    assert {name[0] for name in LEGACY} == set("cdehimnpqsv")
    assert not {name[0] for name in (*NEW, *NEW_SWITCHES)} & set("cdehimnpqsv")


@pytest.mark.parametrize("name", NEW)
def test_every_new_option(name):
    assert read(*NEW[name]) == [(name.upper(), NEW[name][1])]
    assert read(f"-{name.upper()}={NEW[name][1]}") == [(name.upper(), NEW[name][1])]


@pytest.mark.parametrize("name", NEW_SWITCHES)
def test_every_new_switch(name):
    for spelling in (f"--{name}", f"-{name.upper()}"):
        assert read(spelling) == [(name.upper(), "")]
        assert refused(f"{spelling}=1")


@pytest.mark.parametrize("argv, settings", [
    (["--csv"], [("NO-CSV", "no")]), (["-csv"], [("NO-CSV", "no")]), (["--Human"], [("NO-HUMAN", "no")]),
    (["--csv-headings"], [("NO-CSV-HEADINGS", "no")]), (["-c", "f"], [("CONFIG", "f")]),
    (["--c", "f"], [("CONFIG", "f")]),
    (["-h"], [("HELP", "")]), (["--h"], [("HELP", "")]), (["-v"], [("VERSION", "")]), (["-q"], [("QUIET", "")]),
    (["-i", "a", "-d", "low"], [("IPS", "a"), ("DETAIL", "low")]), (["--conf", "f"], [("CONFIG", "f")]),
    (["--proc"], [("PROCESS-ONLY", "")]), (["--email-t", "a"], [("EMAIL-TO", "a")])])
def test_habits_of_perl(argv, settings):
    if argv == ["-i", "a", "-d", "low"]:
        assert "--detail" in refused(*argv) and "--dir-name" in refused(*argv)
        argv, settings = ["-i", "a", "-de", "low"], settings
    assert read(*argv) == settings


@pytest.mark.parametrize("word", [
    "cs", "hu", "csv-", "csv-h", "hum", "csvs", "no-c", "noc", "noh-", "no_csv", "nono-csv"])
def test_positive_forms_only_in_full(word):
    message = refused(f"--{word}")
    assert "unknown" in message or "write it in full" in message


@pytest.mark.parametrize("argv", [
    ["file"], ["-"], ["--"], ["--config", "f", "extra"], [""], [" "], ["---quiet"], ["--=x"], ["-1"], ["--9"],
    ["--quiet", "yes"], ["--\n"], ["\x1b[2J"], ["\udcff"], ["--ips", "a", "b"], ["/quiet"], ["+quiet"]])
def test_what_is_no_option(argv):
    assert refused(*argv).isprintable()


@pytest.mark.parametrize("argv", [["--bogus"], ["--quite"], ["-x"], ["--configs", "f"], ["--no"], ["--no-no"], ["-z=1"],
                                  ["--ip\x1b[2J"], ["--" + "q" * 5000], ["--éa"], ["--smtp-server", "a"],
                                  ["--sendmail", "a"], ["--from", "a"], ["--subject", "a"]])
def test_unknown_options(argv):
    message = refused(*argv)
    assert message.isprintable() and len(message) < 300 and "; " in message


# ---- Values -------------------------------------------------------------------------------------

@pytest.mark.parametrize("argv, value", [
    (["--ips", "10.0.0.1,10.0.0.2"], "10.0.0.1,10.0.0.2"), (["--ips=a=b"], "a=b"), (["--ips=-5"], "-5"),
    (["--email-subject=--quiet"], "--quiet"), (["--nmap=-F"], "-F"), (["--dir-name=-d"], "-d"), (["-ips=-iL"], "-iL"),
    (["--email-subject", ""], ""), (["--email-subject="], ""), (["--email-subject=a\nb"], "a\nb"),
    (["--dir-name=/a b,/c"], "/a b,/c"), (["--config=--config"], "--config"), (["--dir-name=-"], "-"),
    (["--email-subject", "-Report for X"], "-Report for X"), (["--email-subject", "- a"], "- a"),
    (["--email-subject", "--NoCsv a"], "--NoCsv a"), (["--email-subject=-Report=X"], "-Report=X"),
    (["--nmap", "nmap -sS -O"], "nmap -sS -O"), (["--nmap", "-sS -O"], "-sS -O"), (["--ips=--"], "--")])
def test_values(argv, value):
    (_, found), = read(*argv)
    assert found == value


@pytest.mark.parametrize("argv", [["--ips", "-iL"], ["--email-subject", "--quiet"], ["--dir-name", "-d"],
                                  ["--config", "--config"], ["--nmap", "-F"]])
def test_a_word_that_looks_like_an_option_is_no_value_of_another(argv):
    try:
        assert read(*argv) == [(argv[0].strip("-").upper(), argv[1])]
    except nmap_audit.AuditError as error:
        assert error.status == 64


@pytest.mark.parametrize("argv, settings", [
    (["--resume"], [("RESUME", "")]), (["--resume", "--quiet"], [("RESUME", ""), ("QUIET", "")]),
    (["--resume", "20261124-020000", "--quiet"], [("RESUME", "20261124-020000"), ("QUIET", "")]),
    (["--accept", "-q"], [("ACCEPT", ""), ("QUIET", "")]), (["--accept"], [("ACCEPT", "")]),
    (["--resume="], [("RESUME", "")]), (["-res=20261124-020000"], [("RESUME", "20261124-020000")])])
def test_a_value_that_may_be_left_out(argv, settings):
    assert read(*argv) == settings


def test_values_with_commas_and_repeated_options():
    def config(*argv):
        return nmap_audit.read_config(nmap_audit.parse_rc("", "rc"), list(nmap_audit.parse_options(list(argv))))
    assert config("--ips", "10.0.0.1,10.0.0.2").ips == ("10.0.0.1", "10.0.0.2")
    assert config("--ips", "10.0.0.1", "--ips", "10.0.0.2,web").ips == ("10.0.0.1", "10.0.0.2", "web")
    assert config("--email-to", "a@b,c@d", "--email-to", "e@f").email_to == ("a@b", "c@d", "e@f")
    assert config("--dir-name", "/a, /b").dir_name == ("/a", "/b")
    assert config("--detail", "low", "--detail", "high").detail == "high"
    assert config("--email-to", "a@b", "--email-to=").email_to == ("a@b",)
    assert config("--email-to=").email_to == ()


@pytest.mark.parametrize("name", VALUES)
def test_a_value_that_is_not_there(run, rc, fake, tmp_path, name):
    fake("nmap", hosts={})
    argv = [] if name == "config" else ["--config", rc(f"IPS 127.0.0.1\nDIR-NAME {tmp_path}/runs")]
    assert f"--{name}" in one_usage_error(run(*argv, f"--{name}"))


@pytest.mark.parametrize("argv", [
    ["--ips", "10.0.0.0/33"], ["--max-threads", "0"], ["--detail", "hihg"], ["--nmap", "nmap -oX f"],
    ["--nmap", " "], ["--email-to", "a b@c"], ["--email-subject", "a\nb"], ["--tell", "never"],
    ["--quiet=maybe"], ["--ips", " "], ["--ips=-5"], ["--scan-only", "--process-only"],
    ["--dir-name", "a,b", "--scan-only"], ["file"], ["--bogus"],
    ["--email-subject", "a\udcffb"]], ids=lambda argv: " ".join(argv).encode("ascii", "backslashreplace").decode())
def test_usage_errors_are_one_line(run, rc, fake, tmp_path, argv):
    fake("nmap", hosts={})
    rc(f"IPS 127.0.0.1\nDIR-NAME {tmp_path}/runs")
    if argv == ["--email-subject", "a\udcffb"]:
        argv = ["--email-subject", b"a\xffb\n"]
    one_usage_error(run("--config", "nmap-audit.rc", *argv, env={"HOME": tmp_path}))
    assert not (tmp_path / "runs").exists()


# ---- --help, --version, --config ----------------------------------------------------------------

@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--HELP"], ["--quiet", "--help"], ["--help", "--version"]])
def test_help(run, argv):
    result = run(*argv)
    assert (result.status, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[0].casefold().startswith("usage: nmap-audit --config file")
    assert max(map(len, lines)) <= 80 and not any(line != line.rstrip() for line in lines)
    headings = [line for line in lines if re.fullmatch(r"[A-Za-z ]+:", line)]
    assert len(headings) >= 3 and len(lines) <= 60
    entries = re.findall(r"^  (--[a-z-]+)", result.out, re.M)
    assert sorted(entries) == sorted({f"--{setting.lower()}" for setting in LEGACY.values()}
                                     | {f"--{name}" for name in (*NEW, *NEW_SWITCHES)})


@pytest.mark.parametrize("argv", [["--version"], ["-v"], ["-Version"], ["--config", "missing", "--version"]])
def test_version(run, argv):
    result = run(*argv)
    assert result == (0, f"nmap-audit {nmap_audit.__version__}\n", "")
    assert nmap_audit.__version__ == "1.0.0"


@pytest.mark.parametrize("argv", [[], ["--quiet"], ["--config", ""], ["--config="], ["--ips", "127.0.0.1"]])
def test_config_is_always_needed(run, argv):
    assert "--config" in one_usage_error(run(*argv))


def test_the_last_config_holds(run, rc, fake, tmp_path):
    fake("nmap", hosts={})
    rc(f"IPS 127.0.0.1\nDIR-NAME {tmp_path}/runs")
    assert run("--config", "missing.rc", "--config", "nmap-audit.rc").status == 0


# ---- Whole runs ---------------------------------------------------------------------------------

@pytest.mark.parametrize("argv", [
    ["--config", "nmap-audit.rc"], ["-config", "nmap-audit.rc"], ["--config=nmap-audit.rc"], ["-c", "nmap-audit.rc"],
    ["--CONFIG", "nmap-audit.rc"], ["--Conf=nmap-audit.rc"]])
def test_legacy_lines_of_a_crontab(run, rc, fake, tmp_path, argv):
    nmap = fake("nmap", hosts={"127.0.0.1": {"ports": [[25, "tcp", "open", "smtp"]]}})
    rc(f"IPS 127.0.0.9\nDIR-NAME {tmp_path}/runs\nDETAIL none")
    result = run(*argv, "--ips", "127.0.0.1,127.0.0.2", "-detail=low", "--nocsv", "--max", "2", "--quiet")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith("1 of 1 hosts audited, 1 findings, 0 gone\n") and "smtp" in result.out
    assert sorted(nmap.scanned) == ["127.0.0.1", "127.0.0.2"]
    assert not list(tmp_path.glob("runs/*/scan_report.csv"))


def test_several_directories(run, rc, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.xml").write_text(XML.replace("127.0.0.1", f"127.0.0.{ord(name)}"))
    result = run("--config", rc("PROCESS-ONLY"), "--dir-name", "a,b")
    assert result.status == 0 and "127.0.0.97" in result.out and "127.0.0.98" in result.out


def test_a_file_name_that_begins_with_a_hyphen(run, rc, tmp_path):
    (tmp_path / "-d").mkdir()
    (tmp_path / "-d" / "x.xml").write_text(XML)
    rc("PROCESS-ONLY", "-rc")
    assert run("--config=-rc", "--dir-name=-d").status == 0


def test_csv_alone_on_standard_output(run, rc, tmp_path):
    (tmp_path / "x.xml").write_text(XML)
    result = run("--config", rc("NO-HUMAN\nNO-CSV-HEADINGS"), "--process-only", "--dir-name", tmp_path)
    assert result.status == 0 and result.out.startswith("\ufeff127.0.0.1,") and result.out.endswith("\r\n")
    result = run("--config", rc("NO-HUMAN"), "--process-only", "--dir-name", tmp_path, "--human")
    assert result.out.startswith("1 of 1 hosts audited")


# ---- Exit statuses ------------------------------------------------------------------------------

@pytest.mark.parametrize("make, status, says", [
    (lambda path: None, 66, "No such file"),
    (lambda path: path.mkdir(), 66, "Is a directory"),
    (lambda path: path.symlink_to(path), 66, "symbolic links"),
    (lambda path: path.touch(), 78, "IPS"),
    (lambda path: path.write_bytes(b"\x7fELF\x02\x01\x01\0\0\0" * 100), 78, ":1:1: "),
    (lambda path: path.write_bytes(b"\x7fELF\x02\x01\x01"), 78, ":1:1: "),
    (lambda path: path.write_bytes(b"x" * (10 << 20)), 78, ":1:1: "),
    (lambda path: path.write_bytes(b"IPS " + b"1" * (7 << 20)), 78, "1 MiB"),
    (lambda path: path.write_bytes(b"IPS " + b":" * (1 << 19)), 78, ":1:5: "),
    (lambda path: path.write_bytes(b"IPS " + b"a" * (1 << 19) + b"!"), 78, ":1:5: "),
    (lambda path: path.write_bytes("IPS 127.0.0.1\n".encode("utf-16")), 78, ":1:1: "),
], ids=["missing", "directory", "loop", "empty", "binary", "binary without NUL",
        "10 MB", "7 MB", "1 MB", "1 MB of letters", "UTF-16"])
def test_rc_files_that_are_none(run, tmp_path, make, status, says):
    path = tmp_path / "nmap-audit.rc"
    make(path)
    assert says in one_line(run("--config", path, "--dir-name", tmp_path / "runs", timeout=30), status)


def test_an_unreadable_rc_file(run):
    prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "nmap-audit.rc")
        path.touch(0o200)
        result = run("--config", path, prefix=prefix, cwd="/")
    if "can't open file" in result.err or result.status == 126:
        pytest.skip("only root may reach this folder")
    assert "Permission denied" in one_line(result, 66)


def test_every_mistake_of_an_rc_file_is_a_line(run, rc):
    path = rc("IPZ 127.0.0.1\nDETAIL hihg\ngroup a\nip 127.0.0.300\n")
    result = run("--config", path)
    assert (result.status, result.out) == (78, "")
    starts = [line[:len(f"nmap-audit: {path}:1:1: ")] for line in result.err.splitlines()]
    assert starts == [f"nmap-audit: {path}:{place}: " for place in ("1:1", "2:8", "3:1", "4:4")]


@pytest.mark.parametrize("target", [
    "10.0.0.0/33", "10.0.0.300", "10.0.0.5-2", "010.0.0.1", "1234", "-evil", "10.0.0.0/8"])
def test_s16_targets_that_nmap_would_misread(run, rc, fake, tmp_path, target):
    nmap = fake("nmap", hosts={})
    path = rc(f"# so\nIPS {target}\nDIR-NAME {tmp_path}/runs")
    assert f"{path}:2:5: " in one_line(run("--config", path), 78)
    assert not nmap.calls and not (tmp_path / "runs").exists()


@pytest.mark.parametrize("words", ["-oX f", "--oA=f", "--append", "--resume f", "-iL f", "-iR 3", "--stylesheet f"])
def test_s11_nmap_options_that_are_this_programs(run, rc, fake, tmp_path, words):
    nmap = fake("nmap", hosts={})
    path = rc(f"IPS 127.0.0.1\nNMAP nmap -F {words}\nDIR-NAME {tmp_path}/runs")
    assert words.split()[0] in one_line(run("--config", path), 78)
    assert not nmap.calls


@pytest.mark.parametrize("words", ["--open", "--osscan-guess"])
def test_s11_nmap_options_that_look_alike(run, rc, fake, tmp_path, words):
    fake("nmap", hosts={"127.0.0.1": {"ports": [[25, "tcp", "open", "smtp"]]}})
    assert run("--config", rc(f"IPS 127.0.0.1\nNMAP nmap {words}\nDIR-NAME {tmp_path}/runs")).status == 0


@pytest.mark.parametrize("argv, status, says", [
    (["--process-only", "--dir-name", "nothing"], 66, "nothing"),
    (["--process-only", "--dir-name", "empty"], 65, "empty"),
    (["--process-only", "--dir-name", "other"], 65, "other"),
    (["--process-only", "--dir-name", "nmap-audit.rc"], 66, "nmap-audit.rc"),
    (["--dir-name", "empty", "--resume"], 66, "resume"),
    (["--dir-name", "empty", "--resume", "20261124-020000"], 66, "20261124-020000"),
    (["--dir-name", "good", "--nmap", "no-such-program -F"], 69, "no-such-program"),
    (["--dir-name", "nmap-audit.rc/x"], 73, "nmap-audit.rc"),
])
def test_other_refusals(run, rc, fake, tmp_path, argv, status, says):
    fake("nmap", hosts={})
    for name in ("empty", "other", "good"):
        (tmp_path / name).mkdir()
    (tmp_path / "good" / "x.xml").write_text(XML)
    (tmp_path / "other" / "notes.txt").write_text("nothing of nmap's")
    rc("IPS 127.0.0.1")
    assert says in one_line(run("--config", "nmap-audit.rc", *argv), status)


@pytest.mark.parametrize("word, option", [("SCAN-ONLY", "--process-only"), ("PROCESS-ONLY", "--scan-only")])
def test_a_half_on_the_command_line_wins_over_the_other_in_the_file(rc, fake, run, tmp_path, word, option):
    nmap = fake("nmap", hosts={"10.0.0.1": {"ports": [[25, "tcp", "open"]]}})
    argv = ["--config", rc(f"IPS 10.0.0.1\n{word}\n"), "--dir-name", tmp_path / "runs"]
    assert run("--config", rc("IPS 10.0.0.1\n"), "--dir-name", tmp_path / "runs").status == 0
    before = len(nmap.calls)
    assert run(*argv, option).status == 0
    assert (len(nmap.calls) > before) is (option == "--scan-only")


@pytest.mark.parametrize("text, argv, status, place", [
    ("\n DIR-NAME a, b", [], 78, "{path}:2:11: "), ("DIR-NAME a, b", ["--dir-name", "c,d"], 64, "--dir-name: "),
    ("IPS 10.0.0.0/8", [], 78, "{path}:1:5: "), ("", ["--ips", "10.0.0.0/8"], 64, "--ips: ")])
def test_what_a_scan_cannot_do_is_told_where_it_stands(run, rc, fake, tmp_path, text, argv, status, place):
    fake("nmap", hosts={})
    path = rc(text if "IPS" in text or "--ips" in argv else f"{text}\nIPS 10.0.0.1")
    assert place.format(path=path) in one_line(run("--config", path, *argv, cwd=tmp_path), status)
