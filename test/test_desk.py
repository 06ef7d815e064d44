"""What lies on the desk: HTML in mail and browser, the text in a mail, the CSV in a spreadsheet, the terminal."""
import html.parser
import json
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import unicodedata
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

import nmap_audit
from labtools import wait_until
from nights import read_csv, up

A, B, C, D = "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4"
TO = ("--email-to", "root@example.net")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
OFFICE, TMUX = shutil.which("soffice"), shutil.which("tmux")
terminal = pytest.mark.skipif(not TMUX, reason="tmux is not installed")
browser = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")
kept = pytest.mark.skipif("report.html" not in Path(nmap_audit.__file__).read_text(), reason="nothing keeps the HTML")
STRANGE = ("<script>alert(1)</script>", "\"onload=\"alert(1)", "'onmouseover='x", "</td></table><h1>x",
           "<img src=//x.example>", "&amp;&lt;", "<!--", "]]>", "&#60;b&#62;", "<style>*{display:none}", "javascript:x",
           "\u202e<b>", "<h3>New", "<td>", "<p>", "</div>")
LIGHT, DARK = (255, 255, 255), (18, 18, 18)     # what a browser paints below a page that has no colour of its own


@pytest.fixture
def sent(fake):
    return fake("sendmail")


@pytest.fixture
def busy(nights, sent):
    """busy(*argv): the second of two nights, in whose report every table has a row."""
    def night(*argv):
        nights.rules = """
            group mail
                ip 10.0.0.1
                ip 10.0.0.11
                expect 25 tcp open smtp
                ignore 993 tcp open imaps until 2031-03-09
                ignore 80 udp open http
            end group mail
            group web
                hostname web*
                ignore 443 tcp open *
            end group web"""
        nights.ips, ports = "10.0.0.1-12", [(25, "tcp", "open", "smtp"), (993, "tcp", "open", "imaps"), 21]
        old = {A: up(*ports, names=["mail.example.net"], os=[["Linux 5.4", 99, "Linux", "Linux"]]),
               B: up(443, names=["web1.example.net"]), C: up(22), D: up((7, "tcp", "filtered", "echo"), 8),
               "10.0.0.5": up(9), "10.0.0.6": up(9)}
        nights.audit(old, *TO, scanned={"tcp": "1-1000"})
        new = {A: up(ports[1], 21, (80, "tcp", "open", "http", "Apache <2.4>"), names=["mail.example.net"],
                     os=[["Linux 5.4", 99, "Linux", "Linux"]]),
               B: up(443, names=["mail2.example.net"]), C: up(22, fault={"timedout": True}),
               D: up((7, "tcp", "open", "echo"), (8, "udp", "open")), "10.0.0.6": up(9, 10),
               "10.0.0.11": up(*ports), "10.0.0.12": up(9, fault={"exit": 1, "stderr": "no <route> & \"more\""})}
        return nights.audit(new, *TO, *argv, scanned={"tcp": "1-1000", "udp": "8"})
    return night


def report_of(night, detail="low"):
    """The report of a night's run, made again of what is stored."""
    run, text = nmap_audit.read_run(night.folder), night.record["rc"]
    groups = nmap_audit.read_config(nmap_audit.parse_rc(text, "nmap-audit.rc"), ()).groups
    state, _ = nmap_audit.last_told(run)
    findings = nmap_audit.find(run, state or {}, groups, near=True)
    return nmap_audit.make_report(run, findings, nmap_audit.Config(detail=detail))


# ---- HTML --------------------------------------------------------------------------------------

class Page(html.parser.HTMLParser):
    """An HTML document read strictly: what is open must be closed in turn; its tables and paragraphs by their texts."""
    ALONE = ("meta", "br", "link", "img", "input", "hr", "base")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.wrong = [], set(), [], []
        self.paragraphs, self.tables, self.title = [], {}, ""
        self.feed(text)
        self.close()
        self.wrong += [f"{tag} is not closed" for tag in self.open]

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag not in self.ALONE:
            self.open.append(tag)
        if tag == "p":
            self.paragraphs.append([""])
        elif tag == "br":
            self.paragraphs[-1].append("")
        elif tag == "h3":
            self.title = ""
        elif tag == "table":
            self.tables[self.title] = []
        elif tag == "tr":
            self.tables[self.title].append([])
        elif tag in ("td", "th"):
            self.tables[self.title][-1].append("")

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(f"</{tag}> on line {self.getpos()[0]}")

    def handle_data(self, data):
        if "p" in self.open:
            self.paragraphs[-1][-1] += data
        elif "h3" in self.open:
            self.title += data
        elif "td" in self.open or "th" in self.open:
            self.tables[self.title][-1][-1] = (self.tables[self.title][-1][-1] + data).strip()
        elif data.strip() and "title" not in self.open:
            self.wrong.append(f"text outside of everything: {data.strip()[:60]}")

    def handle_comment(self, data):
        self.wrong.append(f"a comment: {data[:60]}")

    def unknown_decl(self, data):
        self.wrong.append(f"a declaration: {data[:60]}")


def read_page(text):
    page = Page(text)
    assert page.wrong == []
    return page


def text_tables(report):
    """{title: [headings, *rows]} of a text report, the cells cut at the columns of the dashes."""
    found, blocks = {}, report.split("\n\n")
    for title, block in zip(blocks, blocks[1:]):
        lines = block.splitlines()
        if len(lines) > 2 and set(lines[1]) <= {"-", " "}:
            spans = [match.span() for match in re.finditer("-+", lines[1])]
            found[title] = [[line[start:end].strip() for start, end in spans] for line in [lines[0], *lines[2:]]]
    return found


@pytest.mark.parametrize("detail", ("none", "low", "medium", "high"))
def test_the_html_says_what_the_text_says(busy, detail):
    """The same first and last lines, and the same tables with the same rows."""
    night = busy("--detail", detail)
    report = report_of(night, detail)
    assert report.text == night.report
    page, text = read_page(report.html), text_tables(report.text)
    assert len(text) >= {"none": 3, "low": 10, "medium": 11, "high": 13}[detail]
    assert {title: page.tables.get(title) for title in text} == text
    lines = report.text.splitlines()
    assert page.paragraphs[0] == lines[:lines.index("")]
    last = report.text.split("\n\n")[-1].splitlines()
    assert page.paragraphs[-1] == last and last[0].startswith("Ports ignored: ")


def test_what_only_the_html_has_counts_right(busy):
    """How the hosts fared, and the ports that are found most often."""
    night = busy()
    report, first = report_of(night), {}
    page = read_page(report.html)
    for title in set(page.tables) - set(text_tables(report.text)):
        first[title] = [row[:2] for row in page.tables[title]]
    hosts, often = sorted(first.values(), key=lambda rows: rows[0][0] != "audited")
    outcomes = [host["outcome"] for host in night.record["hosts"].values()]
    assert hosts == [["audited", str(outcomes.count("audited"))], ["not audited", "2"],
                     ["down", str(outcomes.count("down"))]]
    assert [int(count) for _, count in often] == sorted((int(count) for _, count in often), reverse=True)
    assert sum(int(count) for _, count in often) <= len(night.record["findings"])


def test_the_longest_bar_is_that_of_the_most(nights, sent):
    """And no bar is empty, however few the ports are beside the others."""
    nights.ips, shares = "10.0.0.1-40", {22: 40, 23: 19, 25: 4, 80: 1}
    night = nights.audit({f"10.0.0.{at}": up(*((port, "tcp", "open", "x") for port in shares if at <= shares[port]))
                          for at in range(1, 41)}, *TO)
    found = read_page(report_of(night).html).tables
    often, = (rows for title, rows in found.items() if "accept first" in title)
    assert [row[:2] for row in often] == [[f"{port}/tcp x", str(most)] for port, most in shares.items()]
    lengths = [len(row[2]) for row in often]
    assert lengths == sorted(lengths, reverse=True) and lengths[0] > lengths[1] > lengths[2] >= lengths[3] > 0


@pytest.mark.parametrize("detail", ("low", "high"))
def test_the_html_is_harmless_and_whole(busy, detail):
    """It runs nothing, sends for nothing, and says of itself what a browser must know."""
    text = report_of(busy(), detail).html
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>\n") and page.wrong == []
    assert page.tags <= {"html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "br", "div", "span",
                         "table", "thead", "tbody", "tr", "td", "th"}
    assert {name for name, _ in page.attributes} <= {"lang", "charset", "name", "content", "style", "cellpadding"}
    styles = " ".join(value for name, value in page.attributes if name == "style")
    assert styles and not re.search(r"url|import|expression|@|//|position", styles)
    assert ("charset", "utf-8") in page.attributes and ("lang", "en") in page.attributes
    assert ("name", "viewport") in page.attributes and ("content", "light dark") in page.attributes


def test_what_strangers_write_is_text(nights, sent):
    """H2: names, services, versions and OS guesses, whatever they hold; and what the rc file says."""
    nights.ips = f"10.0.0.1-{len(STRANGE)}"
    nights.rules = "group <i>&\"x\n ip 10.0.0.1\n expect 7 tcp open <u>\n end group"
    night = nights.audit({f"10.0.0.{at}": up((25, "tcp", "open", text, text), names=[text], os=[[text, 99, text, text]])
                          for at, text in enumerate(STRANGE, 1)}, *TO, "--detail", "medium")
    page = read_page(report_of(night, "medium").html)
    assert not page.tags & {"script", "img", "i", "u", "b", "h1", "style"}
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onmouseover"}
    _, *rows = next(rows for title, rows in page.tables.items() if title.startswith("First look"))
    columns = [[nmap_audit.shown(text, width) for text in STRANGE] for width in (40, 30, 24, 40)]
    assert [[row[at] for row in rows] for at in (1, 2, 6, 7)] == columns
    assert any("<u>" in row and "<i>&\"x" in row for rows in page.tables.values() for row in rows)


@kept
@pytest.mark.parametrize("detail", ("low", "high"))
def test_the_folder_of_the_run_keeps_the_html(busy, detail):
    night = busy("--detail", detail)
    assert (night.folder / "report.html").read_text(encoding="utf-8") == report_of(night, detail).html
    assert (night.folder / "report.html").stat().st_mode & 0o777 == 0o600


@kept
def test_the_mail_has_the_report_twice_and_the_table(busy, sent):
    night = busy()
    mail, = sent.mails[1:]
    assert mail.get_content_type() == "multipart/mixed"
    both, table = mail.iter_parts()
    assert both.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in both.iter_parts()] == ["text/plain", "text/html"]
    plain, page = (part.get_content().replace("\r\n", "\n") for part in both.iter_parts())
    assert plain == night.report and page == (night.folder / "report.html").read_text(encoding="utf-8")
    assert (table.get_content_type(), table.get_filename()) == ("text/csv", "scan_report.csv")
    assert mail.get_body().get_content_type() == "text/html" and max(map(len, sent.raw[1].split(b"\n"))) <= 998


@kept
def test_a_mail_without_a_table_has_the_report_twice(nights, sent):
    nights.rules = "TELL always"
    for argv in ((), ("--no-csv",)):
        nights.audit({A: up(*[25] * bool(argv))}, *TO, *argv)
        types = [part.get_content_type() for part in sent.mails[-1].walk() if not part.is_multipart()]
        assert types == ["text/plain", "text/html"], argv


@kept
def test_no_human_no_html(busy, sent):
    night = busy("--no-human")
    assert not (night.folder / "report.html").exists()
    assert "text/html" not in {part.get_content_type() for part in sent.mails[1].walk()}


@kept
@pytest.mark.parametrize("argv", (("--scan-only",), ("--process-only",)))
def test_what_makes_no_report_keeps_no_html(nights, sent, argv):
    """A scan by itself has none yet, and what only processes writes into no run."""
    nights.audit({A: up(25)}, "--scan-only")
    result = nights.process() if argv == ("--process-only",) else None
    assert not (nights.runs[-1] / "report.html").exists() and (result is None or result.status == 0)


def test_a_table_that_is_cut_says_so_in_html():
    """R7: as in the text."""
    host = nmap_audit.HostResult(A, "audited")
    findings = tuple(nmap_audit.Finding(host, "new", nmap_audit.Port(number, "tcp", "open"))
                     for number in range(1, 20101))
    run = nmap_audit.Run(nmap_audit.Path("/x/20261124-020000"), {A: host}, {})
    report = nmap_audit.make_report(run, findings, nmap_audit.Config())
    assert report.html.count("<tr>") < 20050 and "100 rows more" in report.text and "100 rows more" in report.html


# ---- HTML in a real browser --------------------------------------------------------------------

def chromium(folder, *words):
    done = subprocess.run([CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                           "--no-first-run", f"--user-data-dir={folder}/chromium", *words],
                          capture_output=True, text=True, timeout=60)
    return done.stdout


def seen(text, script, width, folder, *words):
    """What a script finds in a page that a browser shows in a frame of this width; no window is so narrow."""
    outer = folder / f"seen-{width}.html"
    ask = html.escape(f"const page = this.contentDocument; document.title = JSON.stringify({script})")
    frame = f'style="width:{width}px;height:900px;border:0" srcdoc="{html.escape(text)}" onload="{ask}"'
    outer.write_text('<!DOCTYPE html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
                     f"<title></title><iframe {frame}></iframe>", encoding="utf-8")
    found = re.search("<title>(.+?)</title>", chromium(folder, "--window-size=1400,1000", "--dump-dom", *words,
                                                       f"file://{outer}"))
    assert found
    return json.loads(html.unescape(found[1]))


@browser
@pytest.mark.parametrize("detail", ("low", "high"))
@pytest.mark.parametrize("width", (375, 1280))
def test_a_browser_shows_it_without_scrolling_sideways(busy, tmp_path, width, detail):
    """On a phone and on a desk: no page that is wider than its screen, no number in two lines."""
    wide, screen, rows, broken = seen(report_of(busy(), detail).html, """[
        page.documentElement.scrollWidth, page.documentElement.clientWidth, page.querySelectorAll("tr").length,
        [...page.querySelectorAll("td")].filter(cell => {
            const range = page.createRange();
            range.selectNodeContents(cell);
            const tops = [...range.getClientRects()].map(each => each.top);
            return /^[0-9.]+$/.test(cell.innerText.trim()) && new Set(tops).size > 1;
        }).map(cell => cell.innerText)]""", width, tmp_path)
    assert screen == width and rows > 20
    assert wide <= screen and broken == []


@browser
@pytest.mark.parametrize("scheme, ground", (("light", LIGHT), ("dark", DARK)))
def test_every_text_stands_out_from_its_ground(busy, tmp_path, scheme, ground):
    """3 to 1 at least, as WCAG asks for headings, on a screen that is light or dark; running text 7 to 1."""
    dark, colours = seen(report_of(busy()).html, """[
        page.defaultView.matchMedia("(prefers-color-scheme: dark)").matches,
        [...page.querySelectorAll("p, h3, th, td")].map(each => {
            const style = page.defaultView.getComputedStyle(each);
            return [each.tagName, each.innerText.slice(0, 40), style.color, style.backgroundColor];
        })]""", 800, tmp_path, *["--force-dark-mode"] * (scheme == "dark"))
    assert dark == (scheme == "dark") and len(colours) > 50
    for tag, text, colour, behind in colours:
        assert behind == "rgba(0, 0, 0, 0)", text
        least = 3 if tag == "H3" else 7
        assert contrast(tuple(map(int, re.findall(r"\d+", colour)))[:3], ground) >= least, (text, colour)


def contrast(first, second):
    """How much lighter the one colour is than the other, as WCAG counts it."""
    def light(colour):
        parts = [part / 255 / 12.92 if part / 255 <= 0.04045 else ((part / 255 + 0.055) / 1.055) ** 2.4
                 for part in colour]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] + 0.05
    more, less = sorted((light(first), light(second)), reverse=True)
    return more / less


@browser
@pytest.mark.parametrize("width", (375, 1280))
@pytest.mark.parametrize("scheme", ("light", "dark"))
def test_a_browser_draws_it(busy, tmp_path, width, scheme):
    """A picture of the size of the screen, with something on it."""
    page, picture = tmp_path / "report.html", tmp_path / f"report-{width}-{scheme}.png"
    page.write_text(report_of(busy()).html, encoding="utf-8")
    chromium(tmp_path, f"--window-size={width},900", *["--force-dark-mode"] * (scheme == "dark"),
             f"--screenshot={picture}", f"file://{page}")
    data = picture.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", data[16:24]) == (width, 900)
    assert len(data) > 10_000


# ---- The text in a mail ------------------------------------------------------------------------

def test_the_text_fits_78_columns_where_the_data_do(busy, nights):
    """With names of usual length; a path is as long as it is, and what names rules has columns more."""
    report = report_of(busy()).text.replace(str(nights.directory), "/var/lib/nmap-audit")
    blocks = report.split("\n\n")
    assert len(blocks) > 20 and max(len(line) for line in blocks[0].splitlines()) <= 78
    for title, block in zip(blocks, blocks[1:]):
        if not title.startswith(("Missing", "Not audited")):
            assert [line for line in block.splitlines() if len(line) > 78 and "/var/lib" not in line] == [], title


def on_screen(line):
    """The columns of a terminal or a mail reader: what stands in each; a wide letter takes two."""
    cells = []
    for char in line:
        cells += [char, ""] if unicodedata.east_asian_width(char) in "WF" else [char]
    return cells


@pytest.mark.parametrize("names", (
    ("a", "gr\u00fcn", "\u03b1\u03b2\u03b3", "\u0436\u0437"),
    ("a", "\u6771\u4eac", "\u30c6\u30b9\u30c8", "\uc11c\uc6b8", "\u3042\u3044"),
    ("a", "\uff41\uff42", "\uff0e\uff0c", "\u4e00\ufe30"), ("a\u4eacb\u4eac", "\u4eac" * 60, "x" * 60, "")),
    ids=("narrow", "wide", "other wide", "mixed"))
@pytest.mark.parametrize("detail", ("low", "medium"))
def test_columns_stand_below_each_other_whatever_the_letters(nights, sent, names, detail):
    """Cut at the columns of the dashes, every line gives the texts of its cells."""
    night = nights.audit({f"10.0.0.{at}": up((25, "tcp", "open", "smtp", name), names=[name])
                          for at, name in enumerate(names, 1)}, *TO, "--detail", detail)
    block = night.report.partition("First look (4)\n\n")[2].partition("\n\n")[0].splitlines()
    spans = [match.span() for match in re.finditer("-+", block[1])]
    assert len(block) == 6 and len(spans) == (5 if detail == "low" else 9)
    found = [["".join(on_screen(line)[start:end]).strip() for start, end in spans] for line in block[2:]]
    for cells, (at, name) in zip(found, enumerate(names, 1)):
        address, short = f"10.0.0.{at}", nmap_audit.shown(name, 40)
        whole = nmap_audit.shown(f"{address} ({name})" if name else address, 60)
        assert cells == ([whole, "25", "tcp", "open", "smtp"] if detail == "low" else
                         [address, short, "", "25", "tcp", "open", "smtp", short, "2031-03-02"])


def test_the_first_line_of_the_mail_tells_all(busy, sent):
    """A phone's preview: what was audited, found and gone."""
    busy()
    plain = next(part for part in sent.mails[1].walk() if part.get_content_type() == "text/plain")
    first = plain.get_content().splitlines()[0]
    assert re.fullmatch(r"\d+ of \d+ hosts audited, \d+ findings, \d+ gone", first) and len(first) <= 78


# ---- The CSV in a spreadsheet ------------------------------------------------------------------

SORT = """
Sub Sort(source, target)
  Dim how_read(2) As New com.sun.star.beans.PropertyValue
  how_read(0).Name = "Hidden" : how_read(0).Value = True
  how_read(1).Name = "FilterName" : how_read(1).Value = "Text - txt - csv (StarCalc)"
  how_read(2).Name = "FilterOptions" : how_read(2).Value = "44,34,76,1"
  book = StarDesktop.loadComponentFromURL(source, "_blank", 0, how_read())
  cursor = book.Sheets.getByIndex(0).createCursor()
  cursor.gotoEndOfUsedArea(True)
  Dim by(2) As New com.sun.star.table.TableSortField
  by(0).Field = 3 : by(0).IsAscending = True
  by(1).Field = 4 : by(1).IsAscending = True
  by(2).Field = 1 : by(2).IsAscending = True
  Dim how_sorted(1) As New com.sun.star.beans.PropertyValue
  how_sorted(0).Name = "SortFields" : how_sorted(0).Value = by()
  how_sorted(1).Name = "ContainsHeader" : how_sorted(1).Value = True
  cursor.sort(how_sorted())
  Dim how_written(0) As New com.sun.star.beans.PropertyValue
  how_written(0).Name = "FilterName" : how_written(0).Value = "Text - txt - csv (StarCalc)"
  book.storeToURL(target, how_written())
  book.close(True)
End Sub"""
LIBRARY = """<?xml version="1.0"?>
<!DOCTYPE library:library PUBLIC "-//OpenOffice.org//DTD OfficeDocument 1.0//EN" "library.dtd">
<library:library xmlns:library="http://openoffice.org/2000/library" library:name="Standard" library:readonly="false"
 library:passwordprotected="false"><library:element library:name="Desk"/></library:library>"""
MODULE = """<?xml version="1.0"?>
<!DOCTYPE script:module PUBLIC "-//OpenOffice.org//DTD OfficeDocument 1.0//EN" "module.dtd">
<script:module xmlns:script="http://openoffice.org/2000/script" script:name="Desk" script:language="StarBasic">{}
</script:module>"""


@pytest.mark.skipif(not OFFICE, reason="soffice (Debian: libreoffice-calc) is not installed")
def test_libreoffice_sorts_by_number(nights, sent, tmp_path):
    """By port, protocol and host name, as the article does it."""
    names = ["b", "a", "c", "d"]
    night = nights.audit({address: up(9100, 80, (80, "udp"), 443, (161, "udp"), names=[f"{name}.example.net"])
                          for address, name in zip((A, B, C, D), names)}, *TO,
                         scanned={"tcp": "80,443,9100", "udp": "80,161"})
    office = [OFFICE, f"-env:UserInstallation=file://{tmp_path}/office", "--headless", "--norestore"]
    subprocess.run([*office, "--terminate_after_init"], capture_output=True, timeout=110)    # makes the profile
    basic = tmp_path / "office" / "user" / "basic" / "Standard"
    (basic / "script.xlb").write_text(LIBRARY)
    (basic / "Desk.xba").write_text(MODULE.format(escape(SORT)))
    macro = f'macro:///Standard.Desk.Sort("file://{night.folder}/scan_report.csv","file://{tmp_path}/sorted.csv")'
    done = subprocess.run([*office, macro], capture_output=True, text=True, timeout=110)
    assert (tmp_path / "sorted.csv").exists(), done.stderr
    rows = read_csv((tmp_path / "sorted.csv").read_text(encoding="utf-8"))
    found = [(int(row["Port"]), row["Protocol"], row["Hostname"]) for row in rows]
    assert len(found) == 20 and found == sorted(found) and [row["Port"] for row in rows[:5]] == ["80"] * 5


# ---- The terminal ------------------------------------------------------------------------------

PROGRESS = re.compile(r"\[(#*)-*\] (\d+)/(\d+) hosts, (\d+) ports, \d+:\d\d:\d\d left")


class Screen:
    """A terminal with a shell in it, where the program runs: what stands on it, and what came to it."""

    def __init__(self, folder, env):
        self.raw, self.place = folder / "raw", tempfile.mkdtemp(prefix="na-")      # the path of a socket must be short
        self.words = [TMUX, "-S", f"{self.place}/tmux", "-f", "/dev/null"]
        settings = " ".join(f"{name}={shlex.quote(str(value))}" for name, value in env.items())
        self.tmux("new-session", "-d", "-s", "desk", "-x", "80", "-y", "24", "-c", folder,
                  f"env {settings} PS1='$ ' sh")
        self.tmux("pipe-pane", "-O", f"cat > {self.raw}")
        self.wait(lambda: "$" in self.text, "the shell is there")

    def tmux(self, *words):
        return subprocess.run([*self.words, *map(str, words)], capture_output=True, text=True, timeout=20,
                              check=True).stdout

    @property
    def text(self):
        return self.tmux("capture-pane", "-p", "-S", "-200").rstrip("\n")

    @property
    def last(self):
        return "".join(self.text.splitlines()[-1:])

    def type(self, text):
        self.tmux("send-keys", "-l", text)
        self.tmux("send-keys", "Enter")

    def wait(self, true, what, seconds=20):
        try:
            return wait_until(true, seconds, what)
        except TimeoutError as error:
            pytest.fail(f"{error}\n{self.text}", False)


@pytest.fixture
def screen(tmp_path):
    made = []

    def make(**more):
        env = {name: value for name, value in os.environ.items()
               if name in ("NMAP_FAKE", "PATH", "LANG") or name.startswith("COVERAGE_")}
        made.append(Screen(tmp_path, {**env, **more}))
        return made[-1]
    yield make
    for one in made:
        one.tmux("kill-server")
        shutil.rmtree(one.place)


@pytest.fixture
def slow(rc, fake, tmp_path):
    """The command of an audit of one host after another."""
    def command(*argv, hosts=8, seconds=0.3):
        fake("nmap", hosts={f"10.0.0.{at}": up(22, 25, names=[f"host{at}.example.net"], fault={"sleep": seconds})
                            for at in range(1, hosts + 1)})
        config = rc(f"IPS 10.0.0.1-{hosts}\nDIR-NAME {tmp_path}/runs\nMAX-THREADS 1\nBATCH 1\n")
        return shlex.join([sys.executable, str(nmap_audit.__file__), "--config", str(config), *argv])
    return command


def started(screen, command):
    """The progress is on the screen: its line."""
    screen.type(command)
    screen.wait(lambda: PROGRESS.search(screen.last), "progress")
    return PROGRESS.fullmatch(screen.last)


@terminal
def test_progress_is_one_line_drawn_again_and_again(slow, screen):
    command = slow() + "; echo status $?"
    screen = screen()
    line = started(screen, command)
    assert line, screen.last
    assert line[3] == "8" and int(line[4]) == 2 * int(line[2])
    shown = screen.text
    screen.wait(lambda: int(PROGRESS.match(screen.last)[2]) > int(line[2]), "more of it")
    assert len(screen.text.splitlines()) == len(shown.splitlines()) and len(PROGRESS.findall(screen.text)) == 1
    screen.wait(lambda: "status 0" in screen.text, "the end")
    assert not PROGRESS.search(screen.text)
    lines = screen.text.splitlines()
    assert "8 of 8 hosts audited, 16 findings, 0 gone" in lines     # at the start of its line, nothing behind it
    raw = screen.raw.read_bytes().decode()
    drawn = [(int(done), len(bar)) for bar, done, *_ in PROGRESS.findall(raw)]
    assert drawn == sorted(drawn) and [done for done, _ in drawn] == list(range(1, 9)) and drawn[-1][1] == 10


@terminal
def test_a_terminal_that_shrinks_keeps_one_line(slow, screen):
    """Nothing of the longer line stays, be the terminal narrow or wide again."""
    command = slow(hosts=10, seconds=0.4)
    screen = screen()
    screen.tmux("set-option", "-g", "window-size", "manual")
    started(screen, f"PS1=; clear; echo above; {command}; echo status $?")
    for width, pattern in ((30, r"\[[#-]{10}\] \d+/10 hosts.{1,10}"), (100, PROGRESS.pattern)):
        drawn = screen.raw.stat().st_size
        screen.tmux("resize-window", "-x", width, "-y", "24")
        screen.wait(lambda: screen.raw.stat().st_size > drawn + 70, "drawn again, twice")
        visible = screen.tmux("capture-pane", "-p").strip()
        assert re.fullmatch(f"(above\n)?{pattern}", visible), visible
    screen.wait(lambda: "\nstatus 0" in screen.text, "the end")
    assert "\n10 of 10 hosts audited" in screen.text


@terminal
def test_ctrl_c_leaves_the_terminal_as_it_was(slow, screen):
    command = slow(hosts=40)
    screen = screen()
    screen.type("stty -g > before; stty -a | grep -o 'columns [0-9]*'")
    started(screen, command + "; echo status $?; stty -g > after; cmp before after && echo sa''me")
    screen.tmux("send-keys", "C-c")
    screen.wait(lambda: "same" in screen.text, "the end", 10)
    screen.wait(lambda: screen.last.startswith("$"), "the prompt")
    lines = screen.text.splitlines()
    assert "status 130" in lines and any("ended by SIGINT; --resume goes on" in line for line in lines)
    assert not PROGRESS.search(screen.text) and "Traceback" not in screen.text
    assert screen.tmux("display-message", "-p", "#{cursor_flag} #{alternate_on}") == "1 0\n"


@terminal
@pytest.mark.parametrize("how", ("NO_COLOR=1", "TERM=dumb", "2> told", "--quiet"))
def test_no_colour_no_terminal_no_word(slow, screen, tmp_path, how):
    """NO_COLOR: no colour. TERM=dumb, or into a file: a line for each host. --quiet: nothing but the report."""
    command = slow(*[how] * how.startswith("--"), hosts=4, seconds=0.1) + f" {how}" * how.startswith("2")
    screen = screen()
    screen.type(f"cd {tmp_path}; {how if '=' in how else ''} {command}; echo status $?")
    screen.wait(lambda: "\nstatus 0" in screen.text, "the end")
    raw = screen.raw.read_bytes().decode().partition("echo status")[2]
    report = raw.partition("\n")[2].partition("status 0")[0]
    assert "4 of 4 hosts audited, 8 findings, 0 gone" in report
    if how == "NO_COLOR=1":
        assert not re.search(r"\x1b\[[\d;]*m", report) and len(PROGRESS.findall(report)) == 4
        return
    assert not PROGRESS.search(report) and "\r" not in report.replace("\r\n", "\n") and "\x1b" not in report
    told = report if how == "TERM=dumb" else (tmp_path / "told").read_text() if how.startswith("2") else ""
    told = re.findall(r"^\[.*(?=[\r\n])", told.replace("\r", ""), re.M)
    assert [line.partition(" ")[0] for line in told] == [f"[{at}/4]" for at in range(1, 5)] * (how != "--quiet")
    form = r"\[\d/4\] 10\.0\.0\.\d \(host\d\.example\.net\) 2 ports, \d+\.\d s"
    assert all(re.fullmatch(form, line) for line in told)


@terminal
def test_a_warning_does_not_run_into_the_progress(slow, screen, tmp_path):
    """What is said meanwhile has a line of its own, and the progress goes on below it."""
    command = slow(hosts=5)
    screen = screen()
    started(screen, f"{command}; echo status $?")
    (tmp_path / "runs").rename(tmp_path / "moved")          # from now on nothing can be kept
    screen.wait(lambda: "\nstatus 74" in screen.text, "the end")
    said = [line for line in screen.text.splitlines() if "nmap-audit: " in line]
    assert said and all(line.startswith("nmap-audit: ") for line in said)


def test_nobody_reads_standard_error(slow, run):
    """It is closed: the audit goes on."""
    command = shlex.split(slow(hosts=2, seconds=0))[2:]
    done = run(*command, prefix=("sh", "-c", 'exec "$@" 2>&-', "sh"))
    assert done.status == 0 and done.out.startswith("2 of 2 hosts audited")
