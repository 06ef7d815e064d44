"""The man pages and README.md say what the program does; the pages are clean mdoc."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nmap_audit
from nights import up

ROOT = Path(__file__).resolve().parent.parent
COMMAND, FORMAT = ROOT / "man" / "nmap-audit.1", ROOT / "man" / "nmap-audit.rc.5"
TEMPLATE = ROOT / "nmap-audit.rc"
SECTIONS = {
    COMMAND: ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "OUTCOMES", "THE REPORT",
              "BATCHES AND MACHINES", "ENVIRONMENT", "FILES", "EXIT STATUS", "EXAMPLES", "DIAGNOSTICS",
              "SEE ALSO", "HISTORY", "AUTHORS", "CAVEATS", "SECURITY CONSIDERATIONS"],
    FORMAT: ["NAME", "DESCRIPTION", "LINE FORMAT", "VARIABLES", "GROUPS", "TAGS", "RULES",
             "EXTENSIONS", "FILES", "EXAMPLES", "DIAGNOSTICS", "COMPATIBILITY", "SEE ALSO",
             "CAVEATS"],
}
README, CHANGES = ROOT / "README.md", ROOT / "CHANGES.md"
POSITIVE = {"--csv", "--human", "--csv-headings", "--nocsv"}    # Perl's; --help does not list them
NMAP = {"--privileged", "--version-light", "--append-output", "--stylesheet", "--host-timeout", "--open",
        "--excludefile", "--exclude-file", "--datadir", "--servicedb", "--versiondb", "--script-args-file"}
VARIABLES = [option for option in nmap_audit.OPTIONS.values() if option.variable]
EITHER = pytest.mark.parametrize("page", [COMMAND, FORMAT], ids=lambda page: str(page.name))


def section(page: Path, name: str) -> str:
    """The source of one section of a page, without its headline."""
    found = re.search(rf"^\.Sh {name}\n(.*?)(?=^\.Sh |\Z)", page.read_text(), re.M | re.S)
    assert found, f"{page.name} has no section {name}"
    return found[1]


def item(page: Path, within: str, head: str) -> str:
    """The text of one `.It` of a section; several heads in a row share one text."""
    found = re.search(rf"^\.It {head}(?=[ \n])[^\n]*\n(?:\.It [^\n]*\n)*(.*?)(?=^\.It |\Z)",
                      section(page, within), re.M | re.S)
    assert found, f"{page.name} has no item {head}"
    return found[1]


def literal(text: str) -> str:
    """Literal text as the reader sees it."""
    return text.replace("\\-", "-").replace("\\&", "").replace("\\e", "\\")


def displays(page: Path) -> list[str]:
    """The literal displays of a page: blocks, and single lines."""
    found = re.findall(r"^\.Bd -literal[^\n]*\n(.*?)^\.Ed$|^\.Dl ([^\n]*)$", page.read_text(),
                       re.M | re.S)
    return [literal(block or line) for block, line in found]


def printed(*arguments: str) -> str:
    """What the program prints on standard output, as on a plain terminal of 80 columns."""
    return subprocess.run([sys.executable, str(ROOT / "nmap_audit.py"), *arguments],
                          env={**os.environ, "COLUMNS": "80", "NO_COLOR": "1"},
                          capture_output=True, text=True, check=True).stdout


def help_options() -> list[str]:
    """The long options that begin an entry of --help, in its order; what explanations mention does not count."""
    return re.findall(r"^ {1,8}(--[a-z-]+)", printed("--help"), re.M)


def man_options() -> list[str]:
    found = re.findall(r"^\.It Fl -([a-z-]+)", section(COMMAND, "OPTIONS"), re.M)
    return ["--" + name for name in found]


# ---- Options and variables ----------------------------------------------------------------------


def test_the_page_has_the_options_of_the_help() -> None:
    """In the same order, below the same headings."""
    assert man_options() == help_options() != []
    headings = re.findall(r"^\.Ss (.*)$", section(COMMAND, "OPTIONS"), re.M)
    assert headings == re.findall(r"^(\w+):$", printed("--help"), re.M)


def test_the_help_has_the_options_of_the_table() -> None:
    names = {f"--{option.name.lower()}" for option in nmap_audit.OPTIONS.values() if option.heading}
    assert sorted(help_options()) == sorted(names | {"--version", "--help"})


def test_the_synopsis_names_every_option() -> None:
    named = re.findall(r"(?:Fl|\|) -([a-z-]+)", section(COMMAND, "SYNOPSIS"))
    assert {"--" + name for name in named} == set(man_options())


def test_the_page_has_the_variables_of_the_table() -> None:
    described = re.findall(r"^\.It Ic ([A-Z-]+)", section(FORMAT, "VARIABLES"), re.M)
    assert sorted(described) == sorted(nmap_audit.VARIABLES) != []


@pytest.mark.parametrize("option", VARIABLES, ids=lambda option: str(option.name))
def test_variable_and_option_name_each_other(option: nmap_audit.Option) -> None:
    """rc(5) names the option of every variable, and nmap-audit(1) the variable of every option."""
    variable = item(FORMAT, "VARIABLES", f"Ic {option.name}")
    if not option.heading:
        assert "No option." in variable
    else:
        flag = f"Fl -{option.name.lower()}"
        assert f".{flag} ." in variable
        after = item(COMMAND, "OPTIONS", flag).partition("In the file:\n")[2]
        assert all(f".Ic {name}" in after for name in (option.name, *option.aliases))


def test_an_option_without_variable_names_none() -> None:
    for option in set(man_options()) - {f"--{option.name.lower()}" for option in VARIABLES}:
        assert "In the file:" not in item(COMMAND, "OPTIONS", f"Fl {option[1:]}")


def strays(words) -> list[str]:
    """The words that begin no option."""
    known = {*help_options(), *POSITIVE, *NMAP}
    return [word for word in words if not any(option.startswith(word.lower()) for option in known)]


@EITHER
def test_a_page_names_no_option_that_is_not_there(page: Path) -> None:
    """Wherever it stands; it may be abbreviated, and what is nmap's is known by name."""
    assert strays(f"-{name}" for name in re.findall(r"\bFl (-[a-z-]*)", page.read_text())) == []


@EITHER
def test_a_page_names_no_variable_that_is_not_there(page: Path) -> None:
    named = set(re.findall(r"\bIc ([A-Z][A-Z-]+)(?=[ \n])", page.read_text()))
    assert named - {"SMTP-"} <= set(nmap_audit.VARIABLES)


@pytest.mark.parametrize("path", [README, CHANGES, TEMPLATE], ids=lambda path: str(path.name))
def test_no_other_text_names_what_is_not_there(path: Path) -> None:
    """A word of capitals with a dash is a variable."""
    text = path.read_text()
    assert strays(re.findall(r"(?<![\w-])--[A-Za-z][a-zA-Z-]*", text)) == []
    names = set(re.findall(r"(?<![\w$/-])[A-Z]+-[A-Z]+(?:-[A-Z]+)*(?![\w-])", text))
    assert names <= set(nmap_audit.VARIABLES)


def test_the_defaults_of_the_pages_are_those_of_the_program() -> None:
    config = nmap_audit.Config()
    for name, default in (("NMAP", f"Ql {' '.join(config.nmap)} ."), ("MAX-THREADS", f" {config.max_threads}."),
                          ("DETAIL", f"Cm {config.detail} ,"), ("TELL", f"Cm {config.tell} ."),
                          ("KEEP-RUNS", f" {config.keep_runs},"), ("BATCH", "Cm auto ."),
                          ("SMTP-TLS", f"Cm {config.smtp_tls} .")):
        assert default in item(FORMAT, "VARIABLES", f"Ic {name}").partition("The default is")[2], name


def test_the_template_names_every_variable() -> None:
    """By one of its names, set or in a comment; and what it sets are variables."""
    text = TEMPLATE.read_text()
    words = set(re.findall(r"(?<![\w-])[A-Z][A-Z-]*[A-Z](?![\w-])", text))
    assert [v.name for v in VARIABLES if not words & {v.name, *v.aliases}] == []
    outside = re.sub(r"^\s*group .*?^\s*end group.*?$", "", text, flags=re.M | re.S | re.I)
    keywords = re.findall(r"^[ \t]*([A-Za-z][\w-]*)", outside, re.M)
    assert {word.upper() for word in keywords} <= set(nmap_audit.VARIABLES)


# ---- The rest of the command --------------------------------------------------------------------


def exit_statuses() -> set[int]:
    """Every os.EX_ of the module, but for what stands in for the status of an nmap that could not start."""
    tree = ast.parse((ROOT / "nmap_audit.py").read_text())
    output = {id(node.args[0]) for node in ast.walk(tree) if isinstance(node, ast.Call)
              and isinstance(node.func, ast.Name) and node.func.id == "Output"}
    return {getattr(os, node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
            and node.attr.startswith("EX_") and id(node) not in output}


def test_the_exit_statuses_are_those_of_the_program() -> None:
    """sysexits.h's that the module names; 0, 1 by --fail-on, 2 for an incomplete audit, 128 + n for a signal."""
    text = section(COMMAND, "EXIT STATUS")
    listed = [int(status) for status in re.findall(r"^\.It (\d+)$", text, re.M)]
    assert listed == sorted({0, 1, 2} | exit_statuses()) and len(listed) > 8
    assert "\n.It 128+ Ns Ar n\n" in text


def test_the_order_of_the_exit_statuses() -> None:
    named = re.search(r"the first of: a signal, ([\d, ]+)\.", section(COMMAND, "EXIT STATUS"))
    assert named and tuple(map(int, named[1].split(", "))) == nmap_audit.FIRST_OF


def test_version() -> None:
    assert printed("--version") == f"nmap-audit {nmap_audit.__version__}\n"


def test_help_fits_80_columns() -> None:
    lines = printed("--help").splitlines()
    assert lines and [line for line in lines if len(line) > 80] == []


def example() -> dict[str, object]:
    """The run.json between the two marks of the page."""
    found = re.search(r'^\.\\" BEGIN run\.json\n\.Bd [^\n]*\n(.*?)^\.Ed\n\.\\" END run\.json$',
                      COMMAND.read_text(), re.M | re.S)
    assert found
    read = json.loads(literal(found[1]))
    assert isinstance(read, dict)
    return read


def test_the_example_has_an_integer_version() -> None:
    assert type(example()["version"]) is int


def form(value: object) -> object:
    """What a value is made of; of several members or rows, the one is as good as the other."""
    if isinstance(value, dict) and not all(re.fullmatch(r"[a-z_]+", key) for key in value):
        return [form(each) for each in value.values()][:1]
    if isinstance(value, dict):
        return {key: form(each) for key, each in value.items()}
    return [form(each) for each in value][:1] if isinstance(value, list) else type(value)


def test_the_example_is_like_a_real_run_json(rc, run, fake, tmp_path) -> None:
    fake("nmap", hosts={"127.0.0.1": up(22, 25)})
    path = rc(f"IPS 127.0.0.1\nIPS nosuch.invalid\nDIR-NAME {tmp_path}/runs\n"
              "group everywhere\nip *\nignore 22 tcp open *\nend group\n")
    assert run("--config", path).status == 2
    record, = (json.loads(file.read_text()) for file in tmp_path.glob("runs/*/run.json"))
    shown = example()
    assert set(record) == set(shown) and record["findings"] and record["ignored"]
    for key in set(shown) - {"before", "state"}:
        assert form(record[key]) == form(shown[key]), key


# ---- The reports that are shown -----------------------------------------------------------------


def host(address: str, outcome: str = "audited", reason: str = "", **more) -> nmap_audit.HostResult:
    return nmap_audit.HostResult(address, outcome, reason, **more)


def made(folder: str, hosts: list, findings: list, ignored=()) -> str:
    """A report at DETAIL low, as the program makes it."""
    run = nmap_audit.Run(Path(folder), {each.address: each for each in hosts}, {})
    told = [*findings, *ignored, *(nmap_audit.Finding(each, "host") for each in hosts),
            *(nmap_audit.Finding(each, "not audited") for each in hosts if each.outcome not in ("audited", "down"))]
    return nmap_audit.make_report(run, told, nmap_audit.Config()).text


def test_the_report_of_the_page_is_one_of_the_program() -> None:
    folder = "/var/lib/nmap-audit/20261124-021500"
    web = host("192.0.2.12", names=("web1.example.net",))
    slow = host("192.0.2.77", "timed out", "its --host-timeout passed", file=f"{folder}/192.0.2.77.xml")
    others = [f"192.0.2.{number}" for number in range(1, 255) if number not in (12, 77)]
    hosts = [web, slow, *map(host, others[:40]), *(host(address, "down") for address in others[40:])]
    rules = [nmap_audit.Rule("ignore", ("*", "tcp", "open", "*"), nmap_audit.Where("x.rc", line, 1), "x")
             for line in range(9)]
    ignored = [nmap_audit.Finding(web, "standing", nmap_audit.Port(number, "tcp", "open"), rules=(rules[number % 9],))
               for number in range(118)]
    finding = nmap_audit.Finding(web, "new", nmap_audit.Port(8080, "tcp", "open", "http-proxy"), "2026-11-24")
    report = made(folder, hosts, [finding], ignored)
    assert report in displays(COMMAND)


def test_the_report_of_the_readme_is_one_of_the_program() -> None:
    """Its numbers and its folder are those of a real run."""
    shown = re.search(r"^    (1 of 1 hosts.*?Raw data: (\S+))$", README.read_text(), re.M | re.S)
    assert shown
    here = host("127.0.0.1", names=("localhost",))
    findings = [nmap_audit.Finding(here, "first look", nmap_audit.Port(number, "tcp", "open", service))
                for number, service in ((22, "ssh"), (25, "smtp"), (631, "ipp"))]
    assert made(shown[2], [here], findings) == shown[1].replace("\n    ", "\n") + "\n"


@pytest.mark.parametrize("path", [README, CHANGES], ids=lambda path: str(path.name))
def test_what_a_text_links_to_is_there(path: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text())
    assert [link for link in links if not (ROOT / link).is_file()] == [] and (links or path == CHANGES)


def test_the_readme_opens_with_two_commands() -> None:
    assert re.findall(r"^    (make \w+)", README.read_text(), re.M)[:2] == ["make audit", "make test"]


def test_the_outcomes_and_changes_of_the_page() -> None:
    found = re.findall(r"^\.It ([a-z ]+)$", section(COMMAND, "OUTCOMES"), re.M)
    assert sorted(found) == sorted(nmap_audit.OUTCOMES)
    found = re.findall(r"^\.It ([a-z ]+)$", section(COMMAND, "THE REPORT"), re.M)
    lists = {change: listed for change, (listed, *_) in nmap_audit.TABLES.items()}
    assert sorted(found) == sorted(change for change, listed in lists.items() if listed not in ("", "ignored"))


def test_the_columns_of_the_csv() -> None:
    named = re.search(r"these columns:\n(.*?)\.\n", section(COMMAND, "THE REPORT"), re.S)
    assert named and named[1].replace("\n", " ").split(", ") == list(nmap_audit.CSV)


def test_the_example_has_the_documented_keys() -> None:
    before = COMMAND.read_text().split(".Ss The file run.json\n")[1].split('.\\" BEGIN')[0]
    heads = re.findall(r"^\.It Cm (.*)$", before, re.M)
    assert sorted(key for head in heads for key in head.split(" , ")) == sorted(example())


# ---- The worked example -------------------------------------------------------------------------

PROMPTED = "(?:nmap-audit|rev)"     # what a command of it begins with, behind the prompt


def network() -> dict[str, object]:
    """The hosts of `Growing the filter`, for the fake nmap."""
    rpc = ((135, "tcp", "open", "msrpc"), (139, "tcp", "open", "netbios-ssn"), (445, "tcp", "open", "microsoft-ds"),
           (137, "udp", "open", "netbios-ns"), (138, "udp", "open|filtered", "netbios-dgm"))
    isakmp, mysql = (500, "udp", "open|filtered", "isakmp"), (3306, "tcp", "open", "mysql")
    unix, mail = [(22, "tcp", "open", "ssh"), (123, "udp", "open", "ntp")], (25, "tcp", "open", "smtp")
    web, snmp = [(80, "tcp", "open", "http"), (443, "tcp", "open", "https")], (161, "udp", "open", "snmp")
    printer = ((515, "tcp", "open", "printer"), (9100, "tcp", "open", "jetdirect"), snmp)
    server, desktop = "Microsoft Windows 2000 Server SP4", "Microsoft Windows 10 1607"
    kinds = [("win", 10, 10, (server, "Microsoft", "Windows"), [*rpc, isakmp]),
             ("app", 32, 12, ("Linux 5.4", "Linux", "Linux"), unix),
             ("mail", 25, 2, ("Linux 5.4", "Linux", "Linux"), [*unix, mail, (993, "tcp", "open", "imaps")]),
             ("web", 80, 3, ("Linux 5.4", "Linux", "Linux"), unix + web),
             ("printer", 96, 4, ("HP LaserJet printer", "HP", "embedded"), printer),
             ("pc", 128, 24, (desktop, "Microsoft", "Windows"), rpc)]
    more = {"web3": [snmp], "pc17": [mysql]}
    named = ((first + at, f"{kind}{at + 1}", system, ports) for kind, first, count, system, ports in kinds
             for at in range(count))
    return {f"192.0.2.{number}": up(*ports, *more.get(name, ()), names=[f"{name}.example.net"],
                                    os=[[system[0], 98, *system[1:]]]) for number, name, system, ports in named}


def test_the_filter_grows_as_the_page_says(rc, fake, tmp_path) -> None:
    """Each display is a piece of the rc file, or commands with what they print; [...] stands for the rest."""
    fake("nmap", hosts=network())
    fake("nmap-audit", text=f'#!/bin/sh\nexec {sys.executable} {ROOT / "nmap_audit.py"} "$@"\n')
    path = rc(f"IPS 192.0.2.0/24\nNMAP nmap -sS -sU -O -F\nDIR-NAME {tmp_path}/runs\n")
    text = section(COMMAND, "EXAMPLES").partition(".Ss Growing the filter\n")[2].partition(".Ss ")[0]
    shown, counts = re.findall(r"^\.Bd -literal\n(.*?)^\.Ed$", literal(text), re.M | re.S), []
    for display in shown:
        if display.startswith("group "):
            with path.open("a") as file:            # the rule still holds when this runs
                file.write(re.sub(r"\d{4}-\d\d-\d\d", "2099-12-31", display))
            continue
        for command, expected in re.findall(rf"^# ({PROMPTED}\b.*(?:\n {{6}}.*)*)\n((?:(?!# {PROMPTED}).*\n)*)",
                                            display, re.M):
            command = command.replace("/etc/nmap-audit.rc", str(path))
            command = command.replace("/var/lib/nmap-audit", f"{tmp_path}/runs")
            done = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
            real, expected = (re.sub(r"\d{8}-\d{6}", "RUN-ID", re.sub(r"\d{4}-\d\d-\d\d", "DATE", each)) for each in
                              (done.stdout.replace(f"{tmp_path}/runs", "/var/lib/nmap-audit"), expected))
            assert (done.returncode, done.stderr) == (0, "")
            assert real == expected or expected.endswith("\n[...]\n") and real.startswith(expected[:-6]), real
            counts += map(int, re.findall(r"audited, (\d+) findings", real))
    assert counts == sorted(counts, reverse=True) and counts[0] > 200 and counts[-1] == 0 and len(counts) == 4


# ---- The examples of the rc file ----------------------------------------------------------------


def rc_examples() -> list[str]:
    """What the pages show of rc files; a rule by itself is put into a group."""
    found = []
    for text in displays(COMMAND) + displays(FORMAT):
        word = text.split()[0].lower()
        if word in ("ignore", "expect"):
            found.append(f"group example\nip *\n{text}\nend group\n")
        elif word == "group" or word.upper() in nmap_audit.VARIABLES:
            found.append(text)
    return found


@pytest.mark.parametrize("text", rc_examples())
def test_an_example_is_a_valid_rc_file(text: str) -> None:
    assert nmap_audit.read_config(nmap_audit.parse_rc(text, "example.rc"), ())


def test_the_pages_have_examples_of_all_words() -> None:
    lines = "\n".join(rc_examples()).splitlines()
    words = {line.split()[0].lower() for line in lines if line}
    assert words >= {"group", "end", "ip", "hostname", "os", "ignore", "expect", "ips", "nmap"}


def test_the_orders_of_a_rule_s_fields_are_one_rule() -> None:
    """The display in `The order of the fields` claims so."""
    part = section(FORMAT, "RULES").split(".Ss The order of the fields")[1].split(".Ss")[0]
    lines = re.findall(r"^ignore .*$", part, re.M)
    text = "group example\nip *\n" + "\n".join(lines) + "\nend group\n"
    config = nmap_audit.read_config(nmap_audit.parse_rc(text, "example.rc"), ())
    port = nmap_audit.Port(25, "tcp", "open", "smtp")
    others = (port._replace(number=26), port._replace(protocol="udp"),
              port._replace(state="closed"), port._replace(service="smtps"))
    assert len(lines) == len(config.groups[0].rules) == 3
    for rule in config.groups[0].rules:
        assert not nmap_audit.differing(rule, port.fields, "")
        assert all(nmap_audit.differing(rule, other.fields, "") for other in others)


# ---- The pages as mdoc --------------------------------------------------------------------------


@EITHER
def test_the_sections_stand_in_order(page: Path) -> None:
    assert re.findall(r"^\.Sh (.*)$", page.read_text(), re.M) == SECTIONS[page]


@EITHER
def test_mandoc_finds_nothing(page: Path, tmp_path: Path) -> None:
    """Every page that it refers to lies beside it, so that what is installed does not matter."""
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed")
    for name, number in re.findall(r"^\.Xr (\S+) (\d)", page.read_text(), re.M):
        (tmp_path / f"{name}.{number}").touch()
    shutil.copy(page, tmp_path)
    done = subprocess.run(["mandoc", "-T", "lint", page.name], cwd=tmp_path,
                          capture_output=True, text=True)
    errors = [line for line in done.stderr.splitlines() if "outdated mandoc.db" not in line]
    assert (done.stdout, errors) == ("", [])


@EITHER
def test_groff_finds_nothing(page: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    done = subprocess.run(["groff", "-mdoc", "-ww", "-z", str(page)],
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@EITHER
def test_no_word_was_taken_for_a_macro(page: Path) -> None:
    """`.Ss In a script` renders as `<a> script`, and no linter says so: In is a macro."""
    heads = re.findall(r"^\.(?:Ss|Sh|Nd|Dl|Dq|Ql|Em|Li) (.*)$", page.read_text(), re.M)
    macros = r"(?:^| )(?:An|At|Do|Es|In|It|Lb|No|So|Sy|Up) "
    assert [head for head in heads if re.search(macros, head)] == []


@EITHER
def test_a_sentence_ends_its_line(page: Path) -> None:
    """One sentence a line, so that a change shows as what it is."""
    text = re.sub(r"^\.Bd .*?^\.Ed$", "", page.read_text(), flags=re.M | re.S)
    lines = [line for line in text.splitlines() if not line.startswith(".")]
    assert [line for line in lines if re.search(r"[a-z)][.?!] +[A-Z]", line)] == []


@EITHER
@pytest.mark.parametrize("words", (["mandoc", "-T", "utf8", "-O", "width=78"],
                                   ["groff", "-mdoc", "-Tutf8", "-rLL=78n"]), ids=("mandoc", "groff"))
def test_no_line_is_wider_than_78_columns(page: Path, words: list[str]) -> None:
    """Examples are not broken, so they show here."""
    if shutil.which(words[0]) is None:
        pytest.skip(f"{words[0]} is not installed")
    text = subprocess.run([*words, str(page)], capture_output=True, text=True, check=True).stdout
    lines = re.sub(r"\x1b\[[0-9;]*m|.\x08", "", text).splitlines()
    assert len(lines) > 300 and [line for line in lines if len(line) > 78] == []


@EITHER
def test_a_line_of_the_source_fits_80_columns(page: Path) -> None:
    assert [line for line in page.read_text().splitlines() if len(line) > 80] == []
