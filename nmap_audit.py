"""Run nmap on many hosts at once, drop every open port that somebody already accepted, mail the rest.

    rc text --parse_rc--> Blocks --read_config--> Config --Scanner--> Run: DIR-NAME/20261124-040654/{*.xml, run.json}
    Run --read_run--> HostResults --fold(State)--> Changes --find(Groups)--> Changes --make_report--> Report
    Report --make_message--> EmailMessage --send_mail--> out

Arrows only go forward, and the run directory is the only thing that passes from scanning to reporting. A section
of this file uses itself and the sections above it; inside a section public names come before their helpers.
"""
from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime
import difflib
import fcntl
import fnmatch
import functools
import io
import ipaddress
import itertools
import json
import math
import os
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
import urllib.parse
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from xml.sax import SAXException

from defusedxml.common import DefusedXmlException
from defusedxml.expatreader import DefusedExpatParser

if TYPE_CHECKING:
    from email.message import EmailMessage

__version__ = "1.0.0"
OUTCOMES = ("timed out", "failed", "cut off", "not scanned", "down", "audited")  # in the order of reports
K = TypeVar("K")
T = TypeVar("T")

class AuditError(Exception):
    """What stops an audit: an exit status (sysexits.h's), and what standard error shows, one line a mistake."""
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

# ---- Types ----------------------------------------------------------------------------------------------------------
Fields = tuple[str, str, str, str]  # port, protocol, state and service: of a port, or a rule's patterns of them
Looked = tuple[tuple[str, str], ...]  # (protocol, nmap's list of its ports), as in scaninfo

class Where(NamedTuple):
    """A place in an rc file, line and column counted from 1; or an option, then there is no line."""
    file: str
    line: int = 0
    column: int = 0
    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file
    @property
    def short(self) -> str:
        """`nmap-audit.rc:41`, as reports name a line."""
        return f"{os.path.basename(self.file)}:{self.line}" if self.line else self.file

# `WORD VALUE`: a line of the rc file, or an option. An empty word: no statement at all.
Line = NamedTuple("Line", [("word", str), ("value", str), ("where", Where), ("value_where", Where)])

@dataclass(frozen=True, slots=True)
class Rule:
    """`ignore` or `expect` PORT PROTOCOL STATE SERVICE, in lower case; from the day `until` on it does not hold."""
    word: str
    fields: Fields
    where: Where
    group: str
    until: str = ""

@dataclass(frozen=True, eq=False)
class Group:
    """The hosts that any of `tags` matches, and the rules on their ports."""
    name: str
    tags: tuple[Callable[[HostResult], bool], ...]
    rules: tuple[Rule, ...]

@dataclass(frozen=True, slots=True)
class Port:
    """A port that nmap lists one by one, in nmap's words; service and version may be empty."""
    number: int
    protocol: str
    state: str
    service: str = ""
    version: str = ""
    @property
    def key(self) -> str:
        """`25/tcp`, as nmap prints it."""
        return f"{self.number}/{self.protocol}"
    @property
    def fields(self) -> Fields:
        """What rules are compared with."""
        return str(self.number), self.protocol, self.state, self.service.lower()

@dataclass(frozen=True, slots=True)
class HostResult:
    """What a run knows of one address: exactly one outcome of OUTCOMES and, when it is not audited, why."""
    address: str
    outcome: str
    reason: str = ""
    names: tuple[str, ...] = ()
    os: tuple[str, ...] = ()  # nmap's best guesses, each as its name and as "vendor family"
    ports: tuple[Port, ...] = ()
    looked: Looked = ()
    start: int = 0  # seconds since 1970 on the scanner's clock
    seconds: float = 0.0
    file: str = ""
    def __str__(self) -> str:
        return f"{self.address} ({self.names[0]})" if self.names else self.address

@dataclass(frozen=True, slots=True)
class Run:
    """A run directory, read: results by address; run.json, empty where unusable; remarks on what was odd."""
    folder: Path
    hosts: Mapping[str, HostResult]
    record: dict[str, Any]
    remarks: tuple[str, ...] = ()

class Known(NamedTuple):
    """What is remembered of an address; `ports` maps 25/tcp to (state, service, date first seen)."""
    run_id: str = ""  # of the last audited result
    up: bool = False
    name: str = ""
    os: str = ""
    groups: tuple[str, ...] = ()
    looked: Looked = ()
    ports: Mapping[str, tuple[str, str, str]] = {}

@dataclass(frozen=True, slots=True)
class Finding:
    """A port of a host, or the host itself (then it has no port), and what is to be said of it: a word of TITLES."""
    host: HostResult
    change: str
    port: Port = Port(0, "", "")
    first_seen: str = ""
    before: str = ""  # its state in the baseline
    rules: tuple[Rule, ...] = ()  # those that ignore it or, where it is missing, expect it

@dataclass(frozen=True, slots=True)
class Changes:
    """What a run says beside its baseline and, once the rules were heard, what of it they accept."""
    findings: tuple[Finding, ...]
    asked: int  # hosts that were up in their last result and were asked again
    lost: int  # of those: down or failed now
    ignored: tuple[Finding, ...] = ()
    lapsing: tuple[Rule, ...] = ()  # end within 14 days, or have ended

# A report as text, the same without its findings, scan_report.csv; and the counts that decide about telling it.
Report = NamedTuple("Report", [("text", str), ("head", str), ("csv", str), ("counts", Mapping[str, int])])
# What an nmap process left: its status (negative: killed by that signal), its output, the end of its errors.
Output = NamedTuple("Output", [("status", int), ("out", bytes), ("err", str), ("seconds", float)])
Mistakes = list[tuple[Where, str]]  # each: what is wrong; what to do
Block = tuple[Line | None, tuple[Line, ...]]  # the lines behind a head: `group NAME`, `end group NAME`, or the start
State = Mapping[str, Known]  # by address

def gathered(pairs: Iterable[tuple[K, T]]) -> dict[K, list[T]]:
    """What comes with each key, in the order of its coming."""
    found: dict[K, list[T]] = {}
    for key, thing in pairs:
        found.setdefault(key, []).append(thing)
    return found

def shown(text: str, width: int = 200) -> str:
    """A stranger's text cut to `width` characters, what moves the cursor, hides or turns text made visible: `\\x1b`."""
    if not (text.isascii() and text.isprintable()):
        with contextlib.suppress(UnicodeError):  # nmap writes UTF-8 byte by byte, as &#xc3;&#xbc;
            text = text.encode("latin-1").decode()
        text = text[:width + 1]
        text = "".join(char if char == " " or unicodedata.category(char)[0] not in "CZ" else ascii(char)[1:-1]
                       for char in text)
    return text if len(text) <= width else text[:max(width - 3, 0)] + "..."

# ---- Reading the rc file --------------------------------------------------------------------------------------------
RC_BYTES = 1 << 20

# The grammar knows only shape: words are looked up later, so that a misspelt one is told as such. What is no statement
# becomes one too (junk), so that one bad line does not hide the mistakes of all others.
GRAMMAR = r"""
    start: _NL? _statement* section*
    section: (begin | end) _statement*
    begin: "group"i VALUE? _NL
    end: "end"i VALUE? _NL
    _statement: setting | junk
    setting: NAME _SEPARATOR? VALUE? _NL
    junk: JUNK _NL
    NAME: /[a-z][^ \t\r\f\v\n=:"]*/i
    _SEPARATOR.2: /=|:(?!:)/
    VALUE.1: /(?:"[^"\n]*"|[^ \t\r\f\v\n#]|(?<=[=:])#)(?:"[^"\n]*"|[^ \t\r\f\v\n]|[ \t\r\f\v]+(?![ \t\r\f\v\n#]))*/
    JUNK: /[^ \t\r\f\v\na-z#][^\n]*/i
    _NL: /([ \t\r\f\v]*(#[^\n]*)?\n)+/
    %ignore /[ \t\r\f\v]+/
"""

def read_rc(path: str) -> str:
    """An rc file's text: UTF-8, or Latin-1 where it is not valid UTF-8. AuditError where there is no such text."""
    try:
        with open(path, "rb") as file:
            data = file.read(RC_BYTES + 1)
    except OSError as error:
        raise AuditError(os.EX_NOINPUT, f"{path}: {error.strerror}; --config names the rc file") from None
    if len(data) > RC_BYTES or b"\0" in data:
        raise AuditError(os.EX_CONFIG, f"{path}:1:1: not a text file of at most 1 MiB; --config names the rc file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")

def parse_rc(text: str, file: str) -> tuple[Block, ...]:
    """The blocks of an rc file's text; the first holds what stands before any group."""
    nodes = _parser().parse(text + "\n").children
    sections = ([_line(each, file) for each in node.children] for node in nodes if node.data == "section")
    top = tuple(_line(node, file) for node in nodes if node.data != "section")
    return (None, top), *((head, tuple(lines)) for head, *lines in sections)

@functools.lru_cache(maxsize=1)
def _parser() -> Any:
    from lark import Lark  # --help and --version do without it
    return Lark(GRAMMAR, parser="lalr", lexer="contextual", propagate_positions=True)
def _line(node: Any, file: str) -> Line:
    tokens = {token.type: token for token in node.children}
    where = Where(file, node.meta.line, node.meta.column)
    word = {"begin": "group", "end": "end"}.get(node.data, str(tokens.get("NAME", "")))
    value = tokens.get("VALUE", tokens.get("JUNK", ""))
    column = getattr(value, "column", where.column)
    quoted = word.upper() != "NMAP" and re.fullmatch(r'"[^"]*"', value) is not None
    return Line(word, str(value)[quoted:len(value) - quoted], where, where._replace(column=column + quoted))

# ---- Understanding the rc file --------------------------------------------------------------------------------------
MOST_ADDRESSES, MOST_LETTERS = 1 << 20, 9999  # of all targets, of one target
RULES, FIELDS = ("ignore", "expect"), ("port", "protocol", "state", "service")
KINDS = {"tcp udp sctp ip": "protocol", "open closed filtered unfiltered open|filtered closed|filtered": "state"}
# What says where nmap's output goes or its targets come from, flags bundled before it; and what only begins so.
REFUSED = re.compile(r"--?([46AFfhnRrvVdq]*[oi]|ap|resu|sty|=|$)")
NOT_REFUSED = ("open", "osscan-guess", "osscan-limit", "iflist", "ip-options", "initial-rtt-timeout", "host-timeout",
               "noninteractive", "no-stylesheet")
NAME = r"(?!-)(?:[\w-]+\.)*(?!0[xX])[\w-]*[A-Za-z][\w-]*\.?"  # not `1234` or `0x7f.1`: resolvers read addresses there
TARGET = re.compile(rf"(?:{NAME}|[0-9*,-]+(?:\.[0-9*,-]+){{3}}|[^,]*:[^,]*)(?:/[^,]*)?", re.ASCII)
def _meant(word: str, known: Iterable[str], manual: str = "nmap-audit.rc(5)") -> str:
    near = [name for name in known if name.startswith(word[:4])] or difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else f"; see {manual}"
def _addresses(text: str) -> tuple[str, ...]:
    from email.utils import formataddr, getaddresses
    return tuple(map(formataddr, getaddresses([text])))
def _nmap(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{str(error).lower()}; quote as in a shell") from None
    for last, word in zip(words[nmap_at(words):], words[nmap_at(words) + 1:]):
        name = word.strip("-").partition("=")[0].replace("_", "-")
        fine = len(name) > 1 and any(long.startswith(name) for long in NOT_REFUSED)
        stray = re.fullmatch(r"[\d*,-]+(\.[\d*,-]+){3}(/\d+)?", word) and not re.match("-([DS]|sI|-?(ex|dns|ip))", last)
        if stray or REFUSED.match(word) and not fine:
            raise ValueError(f"'{shown(word, 60)}' cannot stand here, it is this program's; take it out")
    return words

def nmap_at(words: Sequence[str]) -> int:
    """The index of the word that is nmap; the words before it (ssh HOST, srun, sudo) run it somewhere."""
    return next((i for i, word in enumerate(words) if os.path.basename(word) == "nmap"), 0)

def count_addresses(target: str) -> int:
    """How many addresses a target is (nmap(1), TARGET SPECIFICATION). ValueError where nmap would read another one."""
    base, slash, mask = target.partition("/")
    width = 128 if ":" in base else 32
    if len(target) > MOST_LETTERS or not re.fullmatch(r"[A-Za-z0-9.:/,*%_-]+", target):
        raise ValueError(f"'{shown(target, 60)}' is no target; write an address, a subnet, a range or a name")
    if slash and not (re.fullmatch(r"0|[1-9][0-9]{0,2}", mask) and int(mask) <= width):
        raise ValueError(f"'{shown(target, 60)}' has no mask that nmap knows; write one from /0 to /{width}")
    if width == 128 and numeric(base)[0] != 6:
        raise ValueError(f"'{shown(target, 60)}' is no IPv6 address; write one like 2001:db8::1")
    size = 1 if width == 128 or re.fullmatch(NAME, base, re.ASCII) else math.prod(map(len, octets(base)))
    return size << (width - int(mask or width))

def octets(text: str) -> tuple[frozenset[int], ...]:
    """The four sets of numbers that `192.0.2,7.*` or `10.0.0.1-9` stand for; ValueError for any other text."""
    def numbers(piece: str) -> range:
        low, dash, high = ("0", "-", "255") if piece == "*" else piece.partition("-")
        least, most = (int(low or 0), int(high or 255)) if dash else (int(low), int(low))
        if not least <= most <= 255 or re.search(r"(^|-)0\d|[^\d*-]", piece):
            raise ValueError
        return range(least, most + 1)
    try:
        first, second, third, fourth = (frozenset(itertools.chain(*map(numbers, part.split(","))))
                                        for part in text.split("."))
        return first, second, third, fourth
    except ValueError:
        raise ValueError(f"'{shown(text, 60)}' is read as something else by nmap, or not at all; write four numbers up "
                         "to 255 with no 0 in front, ranges from low to high, or a name") from None
def _targets(text: str) -> tuple[str, ...]:
    """The targets of one IPS value: a comma parts them only where whole targets stand on both its sides."""
    found: list[str] = []
    for piece in re.split(r"\s*,\s*", text):
        whole = [len(each) < MOST_LETTERS and TARGET.fullmatch(each) for each in (*found[-1:], piece)]
        found[-1:] = [*found[-1:], piece] if all(whole) or not found else [f"{found[-1]},{piece}"]
    return tuple(target for target in found if count_addresses(target))

class Option(NamedTuple):
    """What a setting's text must match and how it becomes a value of Config, where it may stand, what it is for."""
    pattern: str
    heading: str
    metavar: str  # empty: a switch
    help: str
    convert: Callable[[str], Any] = str
    aliases: tuple[str, ...] = ()  # other names in the rc file
    option: bool = True  # may stand on the command line
    variable: bool = True  # may stand in the rc file
    many: bool = False  # repeated ones add up
    name: str = ""  # EMAIL-TO
    def read(self, line: Line) -> tuple[Option, tuple[Line, Any]]:
        """Itself, with a line and its value. ValueError where the text is none."""
        if self.many and not line.value and not line.where.line:
            return self, (line, ())  # `--email-to=` takes back what the file says
        if not re.fullmatch(self.pattern, line.value):
            what = f"'{shown(line.value, 60)}' cannot be" if line.value else "missing is the value of"
            raise ValueError(f"{what} {self.name}; write {self.metavar or 'one of yes, no'}: {self.help}")
        return self, (line, self.convert(line.value))

TEXT = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+"
PERSON = (r"\s*(?![^,]*[\x00-\x1f\x7f-\x9f])(?a:(?:\"[^\"]*\"\s*|[^<>\",@]*)<[^\s<>\",@]+(?:@[^\s<>\",@]+)?>|"
          r"[!#-'*+.-9=?^-~A-Z-]+(?:@[\w.:[\]-]+)?)\s*")
SERVER = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?"
FAIL_ON = "findings|new|gone|missing"
Texts = tuple[str, ...]
def _opt(default: T, *settings: Any, **more: Any) -> T:
    described: T = field(default=default, metadata={"option": Option(*settings, **more)})
    return described
def _switch(heading: str, text: str) -> bool:
    return _opt(False, "(?i:yes|on|1|no|off|0|)", heading, "", text, lambda on: on.lower() not in ("no", "off", "0"))
def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, map(str.strip, text.split(","))))

@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings in force, each field with the option that sets it; then what the rc file says beside them."""
    config: str = _opt("", TEXT, "settings", "FILE", "the rc file; always needed", variable=False)
    ips: Texts = _opt((), TEXT, "scanning", "TARGETS", "addresses, subnets, names", _targets, many=True)
    nmap: Texts = _opt(("nmap", "-F"), rf"(?=.*\w){TEXT}", "scanning", "CMD", "nmap -F, or another", _nmap)
    max_threads: int = _opt(10, "[1-9][0-9]{0,8}", "scanning", "N", "processes at a time: a whole number from 1", int)
    batch: int = _opt(0, "(?i:auto)|[1-9][0-9]{0,8}", "scanning", "N|auto", "addresses for one process: N, or auto",
                      lambda text: int(text) if text.isdigit() else 0)
    dir_name: Texts = _opt((), rf"(?=.*[^\s,]){TEXT}", "settings", "DIR[,DIR2..]", "where runs are stored", _words)
    keep_runs: int = _opt(0, "[0-9]{1,9}", "settings", "N", "how many runs to keep: a whole number, 0 for all", int)
    resume: str | None = _opt(None, "[0-9-]*", "scanning", "[RUN-ID]", "go on with an unfinished run", variable=False)
    scan_only: bool = _switch("scanning", "scan and store, report nothing")
    process_only: bool = _switch("reporting", "report from what is stored, scan nothing")
    baseline: str = _opt("", TEXT, "reporting", "RUN-ID|DIR", "compare with this run", variable=False)
    detail: str = _opt("low", "(?i:none|low|med|medium|high)", "reporting", "LEVEL", "one of none, low, med, high",
                       lambda text: re.sub("^med$", "medium", text.lower()))
    no_human: bool = _switch("reporting", "no table in the text")
    no_csv: bool = _switch("reporting", "no scan_report.csv")
    no_csv_headings: bool = _switch("reporting", "scan_report.csv without its first line")
    fail_on: Texts = _opt((), f"({FAIL_ON})(,({FAIL_ON}))*", "reporting", "WHAT[,WHAT..]",
                          "status 1 for findings, new, gone, missing", _words, variable=False)
    email_to: Texts = _opt((), f"{PERSON}(,{PERSON})*", "mailing", "ADDR", "address to mail to", _addresses, many=True)
    email_from: Texts = _opt((), PERSON, "mailing", "ADDR", "the sender's address", _addresses, ("FROM",))
    email_subject: str = _opt("", TEXT, "mailing", "TEXT", "the subject", str, ("SUBJECT",))
    tell: str = _opt("changes", "changes|always|errors", "mailing", "WHEN", "one of changes, always, errors")
    sendmail: str = _opt("", TEXT, "mailing", "PATH", "the program that takes mail", option=False)
    smtp_server: str = _opt("", SERVER, "mailing", "HOST[:PORT]", "the server that takes mail", option=False)
    smtp_tls: str = _opt("none", "none|starttls|tls", "mailing", "HOW", "one of none, starttls, tls", option=False)
    smtp_user: str = _opt("", TEXT, "mailing", "NAME", "the name to log in with", option=False)
    smtp_password_file: str = _opt("", TEXT, "mailing", "FILE", "what holds its password", option=False)
    quiet: bool = _switch("settings", "no status lines, for cron")
    groups: tuple[Group, ...] = ()
    ips_where: str = ""  # where its targets stand
    rc_text: str = ""
    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories of DIR-NAME, absolute; the first is the one that is written."""
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        default = "/var/lib/nmap-audit" if os.geteuid() == 0 else os.path.join(state, "nmap-audit")
        return tuple(Path(name).absolute() for name in self.dir_name or (default,))

OPTIONS: tuple[Option, ...] = tuple(each.metadata["option"]._replace(name=each.name.upper().replace("_", "-"))
                                    for each in fields(Config) if each.metadata)
VARIABLES = {name: option for option in OPTIONS if option.variable for name in (option.name, *option.aliases)}

def read_config(blocks: Sequence[Block], options: Sequence[Line], rc_text: str = "") -> Config:
    """The settings in force: the command line's over the file's. AuditError with all mistakes, one a line."""
    wrong, mistakes = Mistakes(), Mistakes(_structure(blocks))
    groups = tuple(_read_group(head, lines, mistakes) for head, lines in blocks if head and head.word == "group")
    lines = [line for head, lines in blocks if not head or head.word == "end" for line in lines]
    found = gathered(_read_lines(lines, {name: option.read for name, option in VARIABLES.items()}, mistakes))
    found |= gathered(_read_lines(options, {option.name: option.read for option in OPTIONS}, wrong))
    for status, bad in ((os.EX_USAGE, wrong), (os.EX_CONFIG, mistakes)):
        if bad:
            raise AuditError(status, "\n".join(f"{where}: {shown(text, 900)}" for where, text in sorted(bad)))
    values: dict[str, Any] = {option.name.lower().replace("-", "_"): sum((value for _, value in read), ())
                              if option.many else read[-1][1] for option, read in found.items()}
    where = [str(line.value_where) for option, read in found.items() if option.name == "IPS" for line, _ in read]
    return Config(**values, groups=groups, ips_where=", ".join(where), rc_text=rc_text)
def _read_lines(lines: Iterable[Line], readers: Mapping[str, Callable[[Line], T]], mistakes: Mistakes) -> Iterator[T]:
    """What the readers, by word, make of lines."""
    for line in lines:
        try:
            if reader := readers.get(line.word.lower()) or readers.get(line.word.upper()):
                yield reader(line)
            else:
                mistakes.append((line.where, _stray(line, list(readers))))
        except ValueError as error:
            mistakes.append((line.value_where, str(error)))
def _stray(line: Line, here: list[str]) -> str:
    word, inside = shown(line.word, 30), "ip" in here
    if not word:
        return f"'{shown(line.value.rstrip(), 30)}' begins with no word; write WORD VALUE, or # before a comment"
    if line.word.upper() in VARIABLES or line.word.lower() in (*TAGS, *RULES):
        return (f"'{word}' stands {'inside a' if inside else 'outside any'} group; variables stand above the groups, "
                "tags and rules inside one")
    return f"unknown word '{word}'" + _meant(word.lower() if inside else word.upper(),
                                             [*here, "end" if inside else "GROUP"])
def _structure(blocks: Sequence[Block]) -> Iterator[tuple[Where, str]]:
    heads = [head._replace(value=shown(" ".join(head.value.split()), 90)) for head, _ in blocks if head]
    names: dict[str, Where] = {}
    for before, head, after in zip([None, *heads], heads, [*heads[1:], None]):
        name = _folded(head.value)
        if head.word == "group" and (not after or after.word == "group"):
            yield head.where, f"group '{head.value}' is not ended; write 'end group {head.value}' below its rules"
        if head.word == "group" and names.setdefault(name, head.where) != head.where:
            yield head.where, f"group '{head.value}' stands on line {names[name].line} already; give one another name"
        if head.word == "end" and (not before or before.word == "end"):
            yield head.where, "'end' where no group is open; take it out, or write 'group NAME' above"
        elif head.word == "end" and before and name.replace('"', "") not in (
                "group", f"group {_folded(before.value)}".replace('"', "")):
            yield head.where, f"'end {head.value}' in group '{before.value}'; write 'end group {before.value}'"
def _folded(name: str) -> str:
    return " ".join(name.lower().split())
def _read_group(head: Line, lines: Iterable[Line], mistakes: Mistakes) -> Group:
    before = len(mistakes)
    readers: dict[str, Callable[[Line], Any]] = {
        **dict.fromkeys(TAGS, _read_tag), **dict.fromkeys(RULES, functools.partial(_read_rule, group=head.value))}
    found = list(_read_lines(lines, readers, mistakes))
    tags = [each for each in found if not isinstance(each, Rule)]
    rules = tuple(each for each in found if isinstance(each, Rule))
    if not head.value:
        mistakes.append((head.where, "a group needs a name; write 'group NAME'"))
    mistakes += ((line.where, f"'{line.word.lower()}' among the {tags[0][0].word.lower()} tags of line "
                  f"{tags[0][0].where.line}; the tags of a group are of one class, make two groups")
                 for line, _ in tags if line.word.lower() != tags[0][0].word.lower())
    if len(mistakes) == before and not (tags and rules):
        mistakes.append((head.where, f"group '{head.value}' has no {'rule' if tags else 'hosts'}; "
                         "give it ip, hostname or os tags, and ignore lines"))
    return Group(head.value, tuple(matches for _, matches in tags), rules)
def _read_rule(line: Line, group: str) -> Rule:
    """`PORT PROTOCOL STATE SERVICE [until DATE]`: the original's order is lost, so fields are told apart by kind."""
    words = re.sub(r"(?<!\S)([\d*-]+)/(\w+|\*)(?!\S)", r"\1 \2", line.value.lower()).split()
    *words, until = [*words[:-2], _date(words[-1])] if len(words) > 4 and words[-2] == "until" else [*words, ""]
    kinds: dict[str, str] = {}
    for word in words:
        if word != "*" and kinds.setdefault(kind := _kind(word), word) is not word:
            raise ValueError(f"two fields of one kind, '{shown(kinds[kind], 30)}' and '{shown(word, 30)}'; "
                             "write PORT PROTOCOL STATE SERVICE")
    if len(words) != 4:
        lacking = ", ".join(kind for kind in FIELDS if kind not in kinds)
        raise ValueError(f"{len(words)} of four fields{' (no ' + lacking + ')' if lacking else ''}; "
                         "write PORT PROTOCOL STATE SERVICE, * for any")
    port, protocol, state, service = (kinds.get(kind, "*") for kind in FIELDS)
    return Rule(line.word.lower(), (port, protocol, state, service), line.where, group, until)
def _date(text: str) -> str:
    with contextlib.suppress(ValueError):
        if len(text) == 10:
            return str(datetime.date.fromisoformat(text))
    raise ValueError(f"'{shown(text, 30)}' is no date; write the first day without the rule, like 2027-03-31")
def _kind(word: str) -> str:
    if re.fullmatch(r"[0-9*,:-]*[0-9][0-9*,:-]*", word):
        numbers = filter(str.isdigit, word.split("-"))
        ends = [int(end) if re.fullmatch("0|[1-9][0-9]{0,4}", end) else 1 << 16 for end in numbers]
        if ends != sorted(ends) or max(ends, default=0) > 65535 or not re.fullmatch(r"[0-9]+-[0-9]+|[0-9*]+", word):
            raise ValueError(f"'{shown(word, 30)}' is no port up to 65535, or runs backwards; write a number, N-M or *")
        return "port"
    return next((kind for words, kind in KINDS.items() if word in words.split()), "service")

@functools.lru_cache(maxsize=4096)
def numeric(address: str) -> tuple[int, int, str]:
    """(IP version, address as a number, zone), by which addresses are sorted and compared; version 9 for a name."""
    base, _, zone = address.partition("%")
    with contextlib.suppress(ValueError):
        ip = ipaddress.ip_address(base)
        return ip.version, int(ip), zone
    return 9, 0, address

def like(pattern: str, text: str) -> bool:
    """Whether a pattern, in which `*` is any run of characters, is the text; in time linear in the text."""
    return pattern == "*" or (_glob(pattern).match(text) is not None if "*" in pattern else pattern == text)

@functools.lru_cache(maxsize=1 << 14)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(re.sub(r"[?[]", r"[\g<0>]", pattern)))  # its * does not backtrack
def _read_tag(line: Line) -> tuple[Line, Callable[[HostResult], bool]]:
    if not line.value:
        raise ValueError(f"'{line.word.lower()}' needs a value; write it behind the word")
    return line, TAGS[line.word.lower()](line.value)
def _ip_tag(text: str) -> Callable[[HostResult], bool]:
    low, _, high = text.partition("-")
    with contextlib.suppress(ValueError):
        net = ipaddress.ip_network(text if "%" not in text else "", strict=False)
        low, high = str(net.network_address), str(net.broadcast_address)
    if ":" in text or "/" in text or high.count(".") == 3:
        first, last = numeric(low), numeric(high)
        if not 9 > first[0] == last[0] or first > last:
            raise ValueError(f"'{shown(text, 60)}' is no address, subnet or range; write one like 192.0.2.0/28")
        return lambda host: first[:2] <= numeric(host.address)[:2] <= last[:2]
    sets = octets("*.*.*.*" if text == "*" else text)
    return lambda host: text == "*" or numeric(host.address)[0] == 4 and all(
        numeric(host.address)[1] >> 24 - 8 * at & 255 in octet for at, octet in enumerate(sets))
def _hostname_tag(text: str) -> Callable[[HostResult], bool]:
    pattern = text.lower().rstrip(".")
    return lambda host: any(like(pattern, name) or "." not in pattern and like(pattern, name.partition(".")[0])
                            for name in map(str.lower, host.names))
def _os_tag(text: str) -> Callable[[HostResult], bool]:
    pattern = f"*{_folded(text)}*"
    return lambda host: any(like(pattern, guess.lower()) for guess in host.os)
TAGS = {"ip": _ip_tag, "hostname": _hostname_tag, "os": _os_tag}

# ---- Reading a run --------------------------------------------------------------------------------------------------
OPEN = re.compile("--?op(en?)?")  # nmap's --open hides hosts without open ports
RUN_ID = re.compile(r"\d{8}-\d{6}")
VERSION, TIME = 1, "%Y-%m-%dT%H:%M:%S%z"  # of run.json, and as it notes times
PIECE = 1 << 20  # expat before 2.6 takes minutes for a large attribute that comes in small pieces
HOST_BYTES = 64 << 20  # no document of one host is longer
KEPT = ("nmaprun", "scaninfo", "finished", "hosts", "host", "status", "address", "hostname", "osmatch", "osclass",
        "extraports", "ports")
FORBIDDEN = re.compile(rb"&#(?:0*(?:[0-8]|1[1245-9]|2\d|3[01])|x0*(?:[0-8bcef]|1[\da-f]));", re.IGNORECASE)
XML_START = re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|!--|!DOCTYPE nmaprun|nmaprun)|\xff\xfe|\xfe\xff")
Parts = dict[str, list[dict[str, Any]]]  # attributes of elements, by the elements' name

def opened(words: Iterable[str]) -> bool:
    """Whether --open is among nmap's words: then hosts without open ports are not listed."""
    return any(map(OPEN.fullmatch, words))

class Document(DefusedExpatParser):
    """nmap's XML (its DTD, and files of nmap 3.27 to 7.97), read as it is fed: order and completeness don't matter.

    `top`: attributes outside hosts. `hosts`: each host, and how many of its ports nmap listed or summed up. `problem`:
    why it is not whole. Entities are refused, the DOCTYPE that nmap writes is not, and nothing is ever fetched.
    """
    def __init__(self) -> None:
        super().__init__(forbid_external=False)  # nmap 6.45's DOCTYPE names an address; it is never asked for
        self.top: Parts = {name: [] for name in KEPT}
        self.hosts: list[tuple[HostResult, int]] = []
        self.problem = ""
        self._part, self._ports, self._port = self.top, list[Any](), dict[str, Any]()
    def external_entity_ref(self, context: str, base: str | None, sysid: str, pubid: str | None) -> int:
        return 1  # as if it were empty
    def start_element(self, name: str, attrs: Any) -> None:
        if name == "port":
            self._port = attrs
            self._ports.append(attrs)
        elif name in ("state", "service"):
            self._port["<" + name] = attrs  # no attribute is called so
        elif name in ("host", "hosthint"):
            self._part, self._ports = {name: [] for name in KEPT} | {"host": [attrs]}, []
        elif name in self.top:
            self._part[name].append(attrs)
    def end_element(self, name: str) -> None:
        if name == "host":
            self.end_host()
        if name in ("host", "hosthint"):
            self._part = self.top
    def end_host(self) -> None:
        """Keeps what the current <host> holds, whole or not."""
        if self._part is not self.top and (host := _host(self._part, tuple(map(_port, self._ports)))):
            summed = sum(_int(extra.get("count")) for extra in self._part["extraports"])
            self.hosts.append((host, len(self._ports) + summed))
    def first(self, name: str) -> dict[str, str]:
        """The attributes of an element outside hosts; empty where there is none."""
        return self.top[name][0] if self.top[name] else {}

def read_xml(file: Any) -> Document:
    """The document in a binary file. Characters that XML forbids, and nmap has written, become question marks."""
    document = Document()
    try:
        for piece in iter(lambda: file.read(PIECE), b""):
            document.feed(FORBIDDEN.sub(b"?", piece))
        document.close()
    except (SAXException, DefusedXmlException, ValueError, LookupError) as error:
        why = re.sub(r"^<unknown>:(\d+):\d+", r"line \1", str(error).partition("(")[0])
        document.problem = f"not whole: {shown(why, 120)}"
        document.end_host()
    end = document.first("finished")
    if not document.problem and not (document.first("nmaprun") and end):
        document.problem = "not whole: nmap's closing lines are missing"
    elif end.get("exit", "success") != "success":
        document.problem = f"nmap gave up: {shown(end.get('errormsg', ''), 120)}"
    return document
def _int(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0
def _port(attrs: Mapping[str, Any]) -> Port:
    service = attrs.get("<service", {})
    words = service.get("product"), service.get("version"), service.get("extrainfo") and f"({service['extrainfo']})"
    return _shared_port(_int(attrs.get("portid")), attrs.get("protocol", ""), attrs.get("<state", {}).get("state", ""),
                        service.get("name", ""), " ".join(filter(None, words)))
_shared_port = functools.lru_cache(maxsize=1 << 14)(Port)  # a network has many equal ports
def _host(part: Parts, ports: tuple[Port, ...]) -> HostResult | None:
    addresses = [each["addr"] for each in part["address"] if each.get("addrtype") != "mac" and each.get("addr")]
    state = part["status"][0].get("state", "") if part["status"] else "up"
    if not addresses or state not in ("up", "down", "unknown"):
        return None
    attrs = part["host"][0]
    outcome = {"up": "audited", "down": "down"}.get(state, "not scanned")
    outcome, reason = ("timed out", "its --host-timeout passed") if attrs.get("timedout") == "true" else (
        outcome, "" if part["ports"] else "no ports")
    start, end = _int(attrs.get("starttime")), _int(attrs.get("endtime"))
    names = dict.fromkeys(name for each in part["hostname"] if (name := each.get("name")))
    return HostResult(addresses[0], outcome, reason, tuple(names), _best_os(part),
                      tuple({port.key: port for port in ports}.values()), seconds=max(end - start, 0) if start else 0)
def _best_os(part: Parts) -> tuple[str, ...]:
    """The guesses of the highest accuracy: names, then vendors and families (beside osmatch before nmap 6.00)."""
    found: dict[str, None] = {}
    for tag, words in (("osmatch", ("name",)), ("osclass", ("vendor", "osfamily"))):
        best = max((_int(each.get("accuracy")) for each in part[tag]), default=0)
        found.update((text, None) for each in part[tag] if _int(each.get("accuracy")) == best
                     and (text := " ".join(filter(None, map(each.get, words)))))
    return tuple(found)

def judge(document: Document, file: str, *, strict: bool, asked: str) -> list[HostResult]:
    """The document's hosts with the outcome that the whole document gives them.

    strict: their ports must add up, listed and summed up, to what scaninfo says; lost writes of nmap show so.
    asked: who it is that nmap counts as up and, because of --open, does not list; empty without --open.
    """
    looked = tuple((info.get("protocol", ""), info.get("services", "")) for info in document.top["scaninfo"])
    services = sum(_int(info.get("numservices")) for info in document.top["scaninfo"])
    start = _int(document.first("nmaprun").get("start"))
    hosts = document.hosts
    if asked and not hosts and document.first("hosts").get("up") == "1":
        hosts = [(HostResult(asked, "audited"), services)]
    results = []
    for host, counted in hosts:
        outcome, reason = host.outcome, host.reason if host.outcome == "timed out" else ""
        if document.problem and outcome != "not scanned":
            outcome, reason = "cut off", document.problem
        elif outcome == "audited" and host.reason and services:
            outcome, reason = "timed out", "nmap lists none of its ports"
        elif outcome == "audited" and strict and counted != services:
            outcome, reason = "cut off", f"its ports do not add up: nmap scanned {services} and shows {counted}"
        results.append(replace(host, outcome=outcome, reason=reason, looked=looked, file=file, start=start))
    return list(merged(results).values())

def merged(results: Iterable[HostResult]) -> dict[str, HostResult]:
    """Results by address: of several, the latest and, of the others, the ports that later ones did not look at."""
    found: dict[str, HostResult] = {}
    rank = {"not scanned": 0, "down": 1}  # who answered one of two scanners is not down
    for host in sorted(results, key=lambda host: (rank.get(host.outcome, 2), host.start)):
        if earlier := found.get(host.address):
            listed = {port.key for port in host.ports}
            kept = tuple(port for port in earlier.ports if port.key not in listed and not (
                earlier.start < host.start and looked_at(host.looked, port.number, port.protocol)))
            host = replace(host, ports=kept + host.ports, looked=join_looked(earlier.looked, host.looked),
                           names=tuple(dict.fromkeys(host.names + earlier.names)), os=host.os or earlier.os)
        found[host.address] = host
    return found

@functools.lru_cache(maxsize=64)
def port_set(text: str) -> frozenset[int]:
    """The numbers in nmap's `1-4,8` (scaninfo/@services)."""
    ends = (re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", piece) for piece in text.split(","))
    return frozenset(itertools.chain(*(range(int(m[1]), int(m[2] or m[1]) + 1) for m in ends if m)))

def looked_at(looked: Looked, number: int, protocol: str) -> bool:
    """Whether a scan of these port lists looked at a port."""
    return any(protocol == one and number in port_set(text) for one, text in looked)

@functools.lru_cache(maxsize=256)
def join_looked(first: Looked, second: Looked) -> Looked:
    """Both port lists as one."""
    joined = dict(first)
    for protocol, text in second:
        had = joined.get(protocol, text)
        more, most = port_set(text) - port_set(had), port_set(text) >= port_set(had)
        joined[protocol] = text if most else f"{had},{text}" if more else had
    return tuple(joined.items())

def home(folder: Path) -> Path:
    """The DIR-NAME of a run; a folder of other origin is its own."""
    return folder.parent if RUN_ID.fullmatch(folder.name) else folder

def run_day(run: Run) -> str:
    """The date of a run, like 2026-11-24: its name's or, in a folder of other origin, that of its newest result."""
    if RUN_ID.fullmatch(run.folder.name):
        return f"{run.folder.name[:4]}-{run.folder.name[4:6]}-{run.folder.name[6:8]}"
    return datetime.date.fromtimestamp(max((host.start for host in run.hosts.values()), default=0)).isoformat()

def result_name(address: str) -> str:
    """The name of an address's file: `:` and `%` of IPv6 become `_`, and so does whatever no address holds."""
    return re.sub(r"[^0-9A-Za-z.-]", "_", address) + ".xml"

def state_json(state: State) -> dict[str, Any]:
    """A state as run.json holds it: port lists once each, since most hosts share them."""
    lists = {known.looked: at for at, known in enumerate({known.looked: known for known in state.values()}.values())}
    hosts = {address: known._asdict() | {"looked": lists[known.looked]} for address, known in state.items()}
    return {"lists": list(lists), "hosts": hosts}

def read_state(data: Mapping[str, Any]) -> dict[str, Known]:
    """The state in run.json."""
    lists = [tuple(map(tuple, looked)) for looked in data["lists"]]
    return {address: Known(**known | {"groups": tuple(known["groups"]), "looked": lists[known["looked"]],
                                      "ports": {key: tuple(port) for key, port in known["ports"].items()}})
            for address, known in data["hosts"].items()}

def read_record(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A run's run.json and remarks on it; empty where it cannot be used: then the XML tells."""
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_bytes())
        usable = record["version"] == VERSION and {"told", "status", "nmap", "ips"} <= record.keys() and all(
            note.keys() >= {"outcome", "reason", "seconds", "start"} for note in record["hosts"].values())
        list(map(read_state, [record.get("state", {"lists": [], "hosts": {}}), *filter(None, [record.get("before")])]))
        return (record, ()) if usable else ({}, (f"{folder}/run.json is of another version; its XML is read instead",))
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        remark = f"{folder}/run.json cannot be read; its XML is read instead"
        return {}, (remark,) * (not isinstance(error, FileNotFoundError))

def read_run(folder: Path, record: dict[str, Any] | None = None) -> Run:
    """What a run directory, or any folder with nmap's XML, holds: a result for each address that was asked for."""
    record, remarks = (record, ()) if record else read_record(folder)
    own = bool(record) or any((folder / name).exists() for name in ("targets.xml", "targets6.xml"))
    results, more = _read_files(folder, own)
    found = merged(results)
    if not own:
        return Run(folder, {key: host for key, host in found.items() if host.outcome != "not scanned"}, {}, more)
    hosts = {target: HostResult(target, "failed", reason) for target, reason in record.get("unresolved", {}).items()}
    asked = [host.address for host in results if host.outcome == "not scanned"]
    for address in dict.fromkeys((*asked, *record.get("hosts", ()))):
        hosts[address] = _recorded(folder, address, found.get(result_name(address)) or found.get(address), record)
    return Run(folder, hosts, record, remarks if record else (f"{folder}/run.json is lost", *remarks))
def _recorded(folder: Path, address: str, found: HostResult | None, record: Mapping[str, Any]) -> HostResult:
    note = record.get("hosts", {}).get(address, {"outcome": "audited", "reason": "", "seconds": 0, "start": None})
    part = (folder / result_name(address)).with_suffix(".part")
    host = replace(found or HostResult(address, "not scanned"), address=address, seconds=note["seconds"])
    if host.outcome == "not scanned":
        host = replace(host, reason="there is no result of it", file=str(part) * part.exists())
    elif note["start"] not in (None, host.start):
        host = replace(host, outcome="cut off", reason="its file is not of this run", ports=())
    return host if note["outcome"] == "audited" else replace(host, outcome=note["outcome"], reason=note["reason"])
def _read_files(folder: Path, own: bool) -> tuple[list[HostResult], tuple[str, ...]]:
    results, remarks = list[HostResult](), list[str]()
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    for path in (path for path in paths if path.is_file() and not path.name.startswith(".")):
        try:
            with open(path, "rb") as file:
                start = file.read(4096)
                named = XML_START.match(start) and b"nmaprun" in start.replace(b"\0", b"")
                if not named and path.suffix.lower() != ".xml":
                    continue
                file.seek(0)
                document = read_xml(file)
        except OSError as error:
            remarks.append(f"{path}: {error.strerror}")
            continue
        listless = own and opened(document.first("nmaprun").get("args", "").split())
        hosts = judge(document, str(path), strict=own and not listless, asked=path.name if listless else "")
        results += [host for host in hosts if not own or numeric(path.stem)[0] == 9 or host.address in
                    (path.stem, path.name)]  # a host's file speaks of no other
        remarks += [f"{path}: {document.problem}"] * bool(document.problem)
    return results, tuple(remarks)

# ---- Keeping files --------------------------------------------------------------------------------------------------
LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW

def write_file(path: Path, data: bytes) -> bool:
    """Puts data under a name, synced: whole or, with an OSError, not at all. A link of that name is replaced."""
    handle, part = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(part, path)
        return True
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise

def say(text: str, before: str = "") -> None:
    """Writes lines to standard error, which nobody may be reading."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        for line in text.splitlines():
            print(before + line, file=sys.stderr, flush=True)
complain = functools.partial(say, before="nmap-audit: ")

class Shell:
    """A call of the program at work. What goes wrong is told at once and leaves its exit status; one of them counts."""
    def __init__(self, config: Config) -> None:
        self.config, self.statuses = config, [0]
        self.run = Run(Path(), {}, {})  # the one at work
    def fail(self, status: int, text: str) -> None:
        """Tells of what went wrong; of files that cannot be written, only the first."""
        if status != os.EX_IOERR or status not in self.statuses:
            complain(text)
        self.statuses.append(status)
    def attempt(self, act: Callable[..., T], *things: Any) -> T | None:
        """What an act gives back; None where it failed, which is told."""
        try:
            return act(*things)
        except AuditError as error:
            self.fail(error.status, str(error))
        except OSError as error:
            self.fail(os.EX_IOERR, f"{error.filename or things[0]}: {error.strerror}; free the disk, what could not be "
                      "kept is told again")
        return None
    def save(self, run: Run) -> None:
        """Writes run.json as it stands, old or new but never half."""
        self.attempt(write_file, run.folder / "run.json", json.dumps(run.record, indent=0).encode())

def make_directory(path: Path) -> None:
    """Makes DIR-NAME, mode 0700. AuditError where that fails, or where somebody else could put links into it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if {os.lstat(path).st_uid, os.stat(path).st_uid} - {0, os.geteuid()}:
            raise PermissionError(1, "it is somebody else's", "owner")
        os.close(os.open(path / "lock", LOCK_FLAGS, 0o600))
    except OSError as error:
        raise AuditError(os.EX_CANTCREAT, f"{path}: {error.strerror} ({error.filename}); change DIR-NAME") from None

@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds DIR-NAME/lock, which says who and since when; the kernel lets go of it however the program ends."""
    try:
        with open(os.open(directory / "lock", LOCK_FLAGS, 0o600), "r+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # a full disk does not make the lock less held
                file.truncate(0)
                os.write(file.fileno(), f"pid {os.getpid()} since {time.strftime('%F %T')}\n".encode())
            yield
    except BlockingIOError:
        who = shown((directory / "lock").read_text().strip(), 80)
        raise AuditError(os.EX_TEMPFAIL, f"{directory}: another audit is running ({who}); wait for its end, or use "
                         "another DIR-NAME") from None

def list_runs(directory: Path) -> list[Path]:
    """The run folders of DIR-NAME, oldest first."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in paths if RUN_ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink())

def make_run(directory: Path) -> Path:
    """A new run folder, named by the local time; by a later one where the clock stepped back, so that names sort."""
    moments = [datetime.datetime.strptime(run.name, "%Y%m%d-%H%M%S") for run in list_runs(directory)[-1:]]
    second = datetime.timedelta(seconds=1)
    moment = max([datetime.datetime.now(), *(each + second for each in moments)])
    while os.path.lexists(folder := directory / moment.strftime("%Y%m%d-%H%M%S")):
        moment += second
    folder.mkdir(mode=0o700)
    return folder

# ---- Scanning -------------------------------------------------------------------------------------------------------
TARGET_OPTIONS = {"exclude": 1, "excludefile": 1, "exclude-file": 1, "dns-servers": 1, "system-dns": 0, "6": 0}
FILE_OPTIONS = "--?(exclude-?file|datadir|servicedb|versiondb|script-args-file)"  # their files may stand here
NMAP_VARIABLES = ("NMAP_ARGS", "NMAP_PRIVILEGED", "NMAP_UNPRIVILEGED", "NMAPDIR")
LIST_BYTES, ERROR_BYTES, MOST_BATCH, MOST_REFUSALS = 256 << 20, 4096, 256, 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAST_BATCH = {"-s[A-Z]*U": 8, "-O|-A": 13, "-sV|-sC|-A|--script": 64}  # what a process is worth, by what NMAP holds
CUT_END = (b'<!-- nmap-audit: nmap ended %s, after it had written this host -->\n<runstats><finished exit="success"/>'
           b'<hosts up="1" down="0" total="1"/></runstats>\n</nmaprun>\n')
HOST_ELEMENT = re.compile(rb"<host[ >].*?</host>\s*", re.DOTALL)  # nmap escapes every < that is no tag's

def find_program(name: str) -> str | None:
    """A program's full path; looked for where cron's PATH does not reach, too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/usr/sbin:/usr/lib")

def nmap_words(nmap: Sequence[str]) -> list[str]:
    """NMAP's words with the program's full path. AuditError where there is none."""
    if not (program := find_program(nmap[0])):
        raise AuditError(os.EX_UNAVAILABLE, f"{shown(nmap[0])}: not found; install it (Debian: apt-get install nmap), "
                         "or name it in NMAP")
    words = [os.path.abspath(program), *nmap[1:]]
    return [os.path.abspath(word) if re.fullmatch(FILE_OPTIONS, before) and nmap_at(nmap) == 0 else word
            for before, word in zip(["", *words], words)]

def list_words(words: Sequence[str]) -> list[str]:
    """The command that lists targets: of nmap's options only those that the list depends on (-sL refuses others)."""
    at = nmap_at(words) + 1
    kept, rest = [*words[:at], "-sL", "-n"], iter(words[at:])
    for word in rest:
        name, equals, _ = re.sub("^--?", "", word).replace("_", "-").partition("=")
        if word.startswith("-") and name in TARGET_OPTIONS:
            kept += [word, *itertools.islice(rest, 0 if equals else TARGET_OPTIONS[name])]
    return kept

async def run_nmap(words: Sequence[str], limit: int, out: bytearray) -> Output:
    """Runs a command to its end, or until it wrote `limit` bytes to `out`; nothing of it is left running, ever."""
    started, said = time.monotonic(), bytearray()
    env = {name: value for name, value in os.environ.items() if name not in NMAP_VARIABLES}
    # A kill -9 of this program must end nmap too, and only the kernel is left to see to that.
    guard = [setpriv, "--pdeathsig", "KILL"] if (setpriv := find_program("setpriv")) else []
    try:
        process = await asyncio.create_subprocess_exec(
            *guard, *words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env,
            cwd="/", start_new_session=True)  # no stranger's script lies in /
    except OSError as error:
        return Output(os.EX_OSERR, b"", str(error), 0)
    assert process.stdout and process.stderr
    readers = [asyncio.create_task(_read(process.stdout, out, limit, process)),
               asyncio.create_task(_read(process.stderr, said, ERROR_BYTES))]
    try:
        status = await process.wait()
        await asyncio.wait(readers, timeout=5)  # a grandchild may hold the pipes for ever
    finally:
        await _end(process, readers)
    return Output(status, bytes(out), said.decode("utf-8", "replace"), time.monotonic() - started)
async def _read(stream: asyncio.StreamReader, kept: bytearray, most: int,
                process: asyncio.subprocess.Process | None = None) -> None:
    """Keeps the last bytes of a stream; with a process all of it, and that process is killed when it writes more."""
    while piece := await stream.read(1 << 16):
        kept += piece
        if len(kept) > most and process:
            process.kill()
            break
        del kept[:-most]
async def _end(process: asyncio.subprocess.Process, readers: Sequence[asyncio.Task[None]]) -> None:
    """Ends a process with its group, which is asked first and killed two seconds later, and what still reads of it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None or not all(reader.done() for reader in readers):
            with contextlib.suppress(ProcessLookupError, asyncio.TimeoutError, asyncio.CancelledError):
                os.killpg(process.pid, number)
                await asyncio.wait_for(process.wait(), 2)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)

def split_hosts(out: bytes, end: bytes = b"") -> list[bytes]:
    """A batch's output as a document a host, each element byte for byte, and one without; `end` where there is none."""
    spans = [match.span() for match in HOST_ELEMENT.finditer(out)]
    head, tail = (out[:spans[0][0]], out[spans[-1][1]:]) if spans else (out, b"")
    ending = tail if b"<finished" in tail or not end else end
    return [*(head + out[start:stop] + ending for start, stop in spans), head + tail]

def batch_results(output: Output, batch: Sequence[str], open_only: bool) -> dict[str, tuple[HostResult, bytes]]:
    """The outcome of each address of a batch, with the document that shows it (empty: there is none)."""
    found: dict[str, tuple[HostResult, bytes]] = {}
    how = f"by {signal.Signals(-output.status).name}" if output.status < 0 else f"with status {output.status}"
    for data in split_hosts(output.out, CUT_END % how.encode() if len(batch) > 1 else b""):
        rest = read_xml(io.BytesIO(data))
        for host in judge(rest, "", strict=not open_only, asked=batch[0] if open_only and not found else ""):
            twice = replace(host, outcome="cut off", reason="nmap lists it twice")
            found[host.address] = (twice if host.address in found else host), data
    total, up = (_int(rest.first("hosts").get(name)) for name in ("total", "up"))
    others, results = ", ".join(found.keys() - set(batch)), {}
    unlisted = HostResult("", "down", start=_int(rest.first("nmaprun").get("start")))
    if rest.problem or up > sum(host.outcome != "down" for host, _ in found.values()):
        unlisted = HostResult("", "cut off", rest.problem or "nmap counted a host as up and did not list it")
    elif total < len(batch):
        unlisted = HostResult("", "failed", "nmap did not look at it")
    for address in batch:
        host, data = found.get(address, (unlisted, output.out))
        if output.status and not (len(batch) > 1 and host.outcome == "audited"):
            host = replace(host, outcome="failed", reason=f"nmap ended {how}: {_last_words(output.err)}".rstrip(": "))
        elif others:
            host = replace(host, outcome="cut off", reason=f"nmap lists {shown(others, 60)}, not asked for")
        seconds = host.seconds if len(batch) > 1 else round(output.seconds, 1)
        results[address] = replace(host, address=address, seconds=seconds), data
    return results
def _last_words(err: str) -> str:
    lines = (line for line in err.splitlines() if line.strip(" !QUITNG") and not line.startswith(("\t", "stack")))
    return shown(" / ".join(map(str.strip, lines))[-300:], 300)

def batch_size(config: Config, left: int, workers: int) -> int:
    """How many addresses a process gets of so many: all go in one wave where they can, since a process mostly waits."""
    least = min((size for kind, size in LEAST_BATCH.items() if re.search(kind, " ".join(config.nmap))), default=32)
    return 1 if opened(config.nmap) else config.batch or min(MOST_BATCH, max(least, -(-left // workers)))

class Scanner(Shell):
    """Runs nmap on what IPS names, and keeps what it says in the run's folder."""
    saved, total = 0.0, 0  # when run.json was last written, and how many addresses there are
    begun, refused = False, 0  # whether any nmap did its work, and how many would not, for single addresses
    def scan_targets(self) -> None:
        """Scans each address of the target list that has no result yet."""
        try:
            asyncio.run(self._run())
        finally:
            self.run.record["status"] = "interrupted"  # it will be finished when its report is made
            self.save(self.run)
    async def _run(self) -> None:
        record, self.words = self.run.record, nmap_words(self.config.nmap)
        if not record["listed"]:
            await self._list(record)
        hosts = read_run(self.run.folder, record).hosts
        if not hosts:
            raise AuditError(os.EX_CONFIG, f"{self.config.ips_where}: every address of IPS is excluded; change one")
        asked = [host.address for host in hosts.values() if host.outcome == "not scanned"]
        self.total = len(hosts) - len(record["unresolved"])
        for family in gathered((":" in address, address) for address in asked).values():
            await self._scan(family)
    async def _list(self, record: dict[str, Any]) -> None:
        words = list_words(self.words)
        for name, six in (("targets.xml", False), ("targets6.xml", True)):
            if not (targets := [each for each in self.config.ips if ("-6" in words or ":" in each) == six]):
                continue
            extra = ["-6"] if six and "-6" not in words else []
            output = await run_nmap([*words, *extra, "-oX", "-", "--", *targets], LIST_BYTES, bytearray())
            unresolved, reason = re.findall(r'Failed to resolve "([^"\n]*)"', output.err), "nmap could not resolve it"
            stored = self.attempt(write_file, self.run.folder / name, output.out)
            if output.status or not stored or read_xml(io.BytesIO(output.out)).problem:
                unresolved, reason = targets, f"nmap could not list it: {_last_words(output.err)}"
            record["unresolved"] |= {shown(target): reason for target in unresolved}
        record["listed"] = True
        self.save(self.run)
    async def _scan(self, addresses: Sequence[str]) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a process needs three files, for a moment four
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        workers = max(1, min(self.config.max_threads, (hard - 24) // 4))
        semaphore, tasks, at = asyncio.Semaphore(workers), set[asyncio.Task[None]](), 0
        try:
            while at < len(addresses):
                await semaphore.acquire()
                done = {task for task in tasks if task.done()}
                tasks -= done
                await asyncio.gather(*done)  # raises what they raised
                size = batch_size(self.config, len(addresses) - at * (len(addresses) > workers * MOST_BATCH), workers)
                tasks.add(task := asyncio.create_task(self._batch(addresses[at:at + size])))
                task.add_done_callback(lambda _: semaphore.release())
                at += size
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    async def _batch(self, batch: Sequence[str], again: bool = False) -> None:
        """Scans addresses with one nmap; what it does not finish is tried again in smaller batches, down to one."""
        words = [*self.words, *["-6"] * (":" in batch[0] and "-6" not in self.words)]
        zones = {target.partition("%")[0]: target for target in self.config.ips if "%" in target}
        asked, out, open_only = [zones.get(address, address) for address in batch], bytearray(), opened(words)
        try:
            output = await run_nmap([*words, "-oX", "-", "--", *asked], HOST_BYTES + (len(batch) << 20), out)
        except asyncio.CancelledError:  # what it had finished is kept
            ended = batch_results(Output(-signal.SIGTERM, bytes(out), "", 0), batch, open_only)
            for host, data in (each for each in ended.values() if each[0].outcome == "audited"):
                self._keep(host, data)
            raise
        began = output.status <= 0 or 128 <= output.status < 255 or b"<scaninfo" in output.out
        self.begun, self.refused = self.begun or began, self.refused + (len(batch) == 1)
        results, size = batch_results(output, batch, open_only), max(1, len(batch) // 8)
        rest = [address for address, (host, _) in results.items()
                if host.outcome in ("cut off", "failed") and (len(batch) > 1 or began and not again)]
        for address in (address for address in batch if address not in rest):
            self._keep(*results[address])
        while rest and (self.begun or self.refused <= MOST_REFUSALS):  # else nmap refuses to all
            part, rest = rest[:size], rest[size:]
            await self._batch(part, again=True)
        for address in rest:
            self._keep(*results[address])
    def _keep(self, host: HostResult, data: bytes) -> None:
        name = self.run.folder / result_name(host.address)
        path = name if host.outcome in ("audited", "timed out") else name.with_suffix(".part")
        if host.outcome != "down" and data and not self.attempt(write_file, path, data):
            host = replace(host, outcome="failed", reason="its result could not be written")
        self.run.record["hosts"][host.address] = noted(host)
        count, done = sum(port.state != "closed" for port in host.ports), len(self.run.record["hosts"])
        what = f"{count} port{'s' * (count != 1)}" if host.outcome == "audited" else host.outcome
        if not self.config.quiet:
            say(f"[{done}/{self.total}] {shown(str(host), 100)} {what}, {host.seconds:.1f} s")
        if time.monotonic() - self.saved > 10 + done / 1000:
            self.save(self.run)
            self.saved = time.monotonic()

def noted(host: HostResult) -> dict[str, Any]:
    """What run.json notes of a host."""
    return {"outcome": host.outcome, "reason": host.reason, "seconds": host.seconds, "start": host.start}

# ---- Filtering ------------------------------------------------------------------------------------------------------
PORT_CHANGES = ("new", "changed", "first look", "standing")
LAPSE_DAYS = 14  # before its end a rule is named

def accepts(rule: Rule, fields: Fields) -> bool:
    """Whether all four fields of a rule match those of a port."""
    low, dash, high = rule.fields[0].partition("-")
    number = int(low) <= int(fields[0]) <= int(high) if dash else like(low, fields[0])
    return number and all(map(like, rule.fields[1:], fields[1:]))

def groups_of(host: HostResult, groups: Iterable[Group]) -> tuple[Group, ...]:
    """The groups that a host is in."""
    return tuple(group for group in groups if any(tag(host) for tag in group.tags))

def find(run: Run, changes: Changes, groups: Sequence[Group]) -> Changes:
    """The changes with what any rule of any group accepts put apart, and what is expected and missing added."""
    day = run_day(run)
    late = str(datetime.date.fromisoformat(day) + datetime.timedelta(days=LAPSE_DAYS))
    members = {address: groups_of(host, groups) for address, host in run.hosts.items()}
    @functools.lru_cache(maxsize=1 << 16)
    def accepting(asked: tuple[Group, ...], shown_as: Fields) -> tuple[Rule, ...]:
        return tuple(rule for group in asked for rule in group.rules
                     if accepts(rule, shown_as) and not (rule.until and rule.until <= day))
    told, ignored = list[Finding](), list[Finding]()
    for finding in (each for each in changes.findings if each.port.state != "closed"):
        asked = members[finding.host.address] if finding.change in PORT_CHANGES else ()
        rules = accepting(asked, finding.port.fields)
        (ignored if rules else told).append(replace(finding, rules=rules) if rules else finding)
    told += (Finding(host, "missing", Port(_int(rule.fields[0]), *rule.fields[1:]), rules=(rule,))
             for host in run.hosts.values() if host.outcome == "audited"
             for group in members[host.address] for rule in group.rules
             if rule.word == "expect" and not (rule.until and rule.until <= day) and not met(rule, host))
    return replace(changes, findings=tuple(told), ignored=tuple(ignored), lapsing=tuple(
        rule for group in groups for rule in group.rules if "" < rule.until <= late))

def met(rule: Rule, host: HostResult) -> bool:
    """Whether a host shows what a rule expects; `closed` is shown too by a port that was looked at and not listed."""
    if any(accepts(rule, port.fields) for port in host.ports):
        return True
    port, protocol, state, _ = rule.fields
    return state == "closed" and port.isdigit() and looked_at(host.looked, int(port), protocol) \
        and not any(each.key == f"{port}/{protocol}" for each in host.ports)

# ---- Remembering ----------------------------------------------------------------------------------------------------
def fold(state: State, run: Run, groups: Sequence[Group]) -> tuple[dict[str, Known], Changes]:
    """The state after a run, and what the run changed. What a run did not look at stays as it was, and is not gone."""
    after, findings, asked, lost = dict(state), list[Finding](), 0, 0
    day = run_day(run)
    for host in run.hosts.values():
        known = state.get(host.address, Known())
        asked += known.up
        lost += known.up and host.outcome in ("down", "failed")
        findings += (_compare(host, port, known, day) for port in host.ports)
        if host.outcome == "audited":
            now = after[host.address] = _remember(host, known, run.folder.name, day)._replace(
                groups=tuple(group.name for group in groups_of(host, groups)))
            findings += _gone(host, known)
            findings += [Finding(host, "host new")] * bool(state and not known.run_id)
            if known.run_id and known.groups != now.groups and (known.name, known.os) != (now.name, now.os):
                findings.append(Finding(host, "regrouped"))
        elif host.outcome == "down" and known.up:
            after[host.address] = known._replace(up=False)
            findings.append(Finding(host, "host gone"))
    return after, Changes(tuple(findings), asked, lost)
def _compare(host: HostResult, port: Port, known: Known, day: str) -> Finding:
    if port.key in known.ports:
        before, _, first_seen = known.ports[port.key]
        return Finding(host, "standing" if before == port.state else "changed", port, first_seen, before)
    return Finding(host, "new" if looked_at(known.looked, port.number, port.protocol) else "first look", port, day)
def _gone(host: HostResult, known: Known) -> Iterator[Finding]:
    there = {port.key for port in host.ports if port.state != "closed"}
    for key, (state, service, first_seen) in known.ports.items():
        number, _, protocol = key.partition("/")
        if state in ("open", "open|filtered") and key not in there and looked_at(host.looked, int(number), protocol):
            yield Finding(host, "gone", Port(int(number), protocol, state, service), first_seen, state)
def _remember(host: HostResult, known: Known, run_id: str, day: str) -> Known:
    kept = {key: value for key, value in known.ports.items()
            if not looked_at(host.looked, int(key.partition("/")[0]), key.partition("/")[2])}
    now = {port.key: (port.state, port.service, known.ports.get(port.key, ("", "", day))[2])
           for port in host.ports if port.state != "closed"}
    return Known(run_id, True, "".join(host.names[:1]), "".join(host.os[:1]), (),
                 join_looked(known.looked, host.looked), kept | now)

def last_told(run: Run, groups: Sequence[Group]) -> tuple[dict[str, Known] | None, list[str]]:
    """What the last run told before this one left, None for nothing; and remarks. The XML stands in for a run.json."""
    replay, remarks, before = list[Path](), list[str](), run.record.get("before")
    state = read_state(before) if before else None
    if run.record.get("told") and "before" in run.record:
        return state, []
    siblings = list_runs(run.folder.parent) if RUN_ID.fullmatch(run.folder.name) else []
    for folder in reversed([each for each in siblings if each.name < run.folder.name]):
        record, more = read_record(folder)
        remarks += more
        if not record:
            replay.append(folder)
        elif record["told"] and "state" in record:
            state = read_state(record["state"])
            break
    for each in map(read_run, reversed(replay)):
        if any(host.outcome == "audited" for host in each.hosts.values()):
            state = fold(state or {}, each, groups)[0]
            remarks += each.remarks
    return state, remarks

# ---- Reporting ------------------------------------------------------------------------------------------------------
MOST_ROWS = 20000  # of a table
TITLES = {"missing": "Missing: expected and not there", "new": "New", "changed": "Changed", "first look": "First look",
          "standing": "Standing: told before, neither accepted nor closed", "gone": "Gone",
          "host gone": "Hosts gone: up before, down now", "host new": "Hosts new",
          "regrouped": "Hosts that changed group (their name or OS guess changed)"}
LISTS = {"findings": PORT_CHANGES, "gone": ("gone", "host gone"), "missing": ("missing",), "hosts_new": ("host new",),
         "regrouped": ("regrouped",)}  # of run.json
TELLING = ("findings", "gone", "missing", "regrouped", "lapsing", "not audited")  # what is worth a mail
LOW = ("HOST", "PORT", "PROTOCOL", "STATES", "SERVICE")
FULL = ("ADDRESS", "NAME", "OS", "PORT", "PROTOCOL", "STATES", "SERVICE", "VERSION", "FIRST SEEN")
CSV = {"IP": "ADDRESS", "Hostname": "NAME", "OS": "OS", "Port": "PORT", "Protocol": "PROTOCOL", "State": "STATE",
       "Service": "SERVICE", "Version": "VERSION", "Change": "CHANGE", "First Seen": "FIRST SEEN"}
WIDE = "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]"
FORMULA = tuple("=+-@|%\uff1d\uff0b\uff0d\uff20")  # what a formula begins with
WIDTHS = {"HOST": 60, "NAME": 40, "OS": 30, "SERVICE": 24, "VERSION": 40, "GROUP": 30}
Section = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, headings, rows

def make_report(run: Run, changes: Changes, *, detail: str, headings: bool) -> Report:
    """The report of a run at a level of DETAIL; a phone's preview of the mail shows its first line."""
    hosts = sorted(run.hosts.values(), key=lambda host: numeric(host.address))
    of = gathered((finding.change, finding) for finding in changes.findings)
    audited, down = (sum(host.outcome == name for host in hosts) for name in ("audited", "down"))
    counts = {name: sum(len(of.get(change, ())) for change in several)
              for name, several in {**LISTS, "new": ("new",)}.items()}
    counts |= {"lapsing": len(changes.lapsing), "audited": audited, "down": down,
               "not audited": len(hosts) - audited - down}
    head, foot = _head(counts, changes, len(hosts)), _foot(run, changes, counts, detail)
    bad = [*_not_audited(hosts), (f"Rules that lapse ({len(changes.lapsing)})", ("LINE", "GROUP", "UNTIL", "RULE"), [
        (rule.where.short, shown(rule.group, 30), rule.until + " (ended)" * (rule.until <= run_day(run)),
         shown(" ".join(rule.fields), 60)) for rule in changes.lapsing])]
    tables = {change: _table(title, of.get(change, []), detail) for change, title in TITLES.items()}
    body = [] if detail == "none" else [*tables.values()]
    body += _everything(hosts, changes) if detail == "high" else []
    events = [tables[change] for change in ("host gone", "host new", "regrouped")]
    return Report(_lay_out(head, [*bad, *body], foot), _lay_out(head, [*bad, *events], foot),
                  make_csv(changes.findings, headings), counts)
def _head(counts: Mapping[str, int], changes: Changes, hosts: int) -> list[str]:
    head = [f"{counts['audited']} of {hosts - counts['down']} hosts audited, {counts['findings']} findings, "
            f"{counts['gone']} gone"]
    if changes.lost * 2 > changes.asked:
        head.append(f"WARNING: {changes.lost} of {changes.asked} hosts that were up before are down or failed now: "
                    "the scanner's own network may be broken")
    if counts["missing"]:
        head.append(f"WARNING: expected and missing: {counts['missing']}; the scanner may be blind")
    return head + ["All clear."] * (not any(counts[name] for name in TELLING))
def _foot(run: Run, changes: Changes, counts: Mapping[str, int], detail: str) -> list[str]:
    more = [f"nmap command: {shown(shlex.join(run.record.get('nmap', ['unknown'])), 400)}"]
    if not run.record.get("adds_up", RUN_ID.fullmatch(run.folder.name)):
        more.append("Ports were not added up: nmap was run with --open, or by another program")
    rules = {rule for finding in changes.ignored for rule in finding.rules}
    return [f"Ports ignored: {len(changes.ignored)}, by rules: {len(rules)}",
            f"Addresses: {len(run.hosts)}, of them audited: {counts['audited']}, down: {counts['down']}, "
            f"not audited: {counts['not audited']}", *(f"Note: {shown(remark, 300)}" for remark in run.remarks),
            f"Raw data: {run.folder}", *more[:2 * (detail == "high")]]

def columns(each: Finding) -> dict[str, str]:
    """A finding's texts, as strangers wrote them, by column."""
    host, port, rules = each.host, each.port, each.rules
    return {"HOST": str(host), "ADDRESS": host.address, "NAME": "".join(host.names[:1]), "OS": "".join(host.os[:1]),
            "PROTOCOL": port.protocol, "SERVICE": port.service, "VERSION": port.version, "STATE": port.state,
            "PORT": rules[0].fields[0] if each.change == "missing" else str(port.number) if port.state else "",
            "STATES": f"{each.before}\u2192{port.state}" if each.change == "changed" else port.state,
            "CHANGE": each.change, "FIRST SEEN": each.first_seen, "BEFORE": each.before,
            "LINE": ", ".join(rule.where.short for rule in rules), "GROUP": ", ".join(rule.group for rule in rules)}

def list_findings(changes: Changes) -> dict[str, list[dict[str, str]]]:
    """The findings as run.json lists them."""
    lists = {name: [each for each in changes.findings if each.change in several] for name, several in LISTS.items()}
    return {name: [{key.lower().replace(" ", "_"): text for key, text in columns(each).items()
                    if key not in ("HOST", "STATES")} for each in _sorted(several)]
            for name, several in {**lists, "ignored": changes.ignored}.items()}

def make_csv(findings: Iterable[Finding], headings: bool) -> str:
    """scan_report.csv: RFC 4180, with the byte-order mark that spreadsheets want; empty where there is no row."""
    told = (columns(each) for each in _sorted(findings) if each.port.state)
    cells = ([shown(each[name], 1000) for name in CSV.values()] for each in told)
    # No spreadsheet runs a cell that begins with an apostrophe.
    rows = [["'" + cell if cell.lstrip()[:1] in FORMULA else cell for cell in row] for row in cells]
    file = io.StringIO()
    csv.writer(file).writerows([list(CSV), *rows] if headings else rows)
    return "\ufeff" + file.getvalue() if rows else ""
def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda each: (numeric(each.host.address), each.port.protocol, each.port.number))
def _table(title: str, findings: Sequence[Finding], detail: str, *more: str) -> Section:
    names = [*(LOW if detail == "low" else FULL), *more]
    if findings and not findings[0].port.state:
        names = ["HOST"]
    elif findings and findings[0].change == "missing":
        names += ["LINE", "GROUP"]
    return f"{title} ({len(findings)})", [name.replace("STATES", "STATE") for name in names], [
        [shown(columns(each)[name], WIDTHS.get(name, 60)) for name in names] for each in _sorted(findings)]
def _not_audited(hosts: Iterable[HostResult]) -> Iterator[Section]:
    bad = sorted((host for host in hosts if host.outcome not in ("audited", "down")),
                 key=lambda host: (OUTCOMES.index(host.outcome), host.reason))
    for (outcome, reason), several in itertools.groupby(bad, key=lambda host: (host.outcome, host.reason)):
        rows = [(shown(str(host), 60), host.file) for host in several]
        yield f"Not audited ({len(rows)}): {outcome}: {shown(reason, 400)}", ("HOST", "FILE"), rows
def _everything(hosts: Sequence[HostResult], changes: Changes) -> Iterator[Section]:
    yield _table("Ignored", changes.ignored, "low", "LINE", "GROUP")
    loud = {each.host.address for each in changes.findings}
    yield f"Hosts ({len(hosts)})", ("HOST", "OUTCOME", "SECONDS", "FILE"), [
        (shown(str(host), 60), host.outcome if host.outcome != "audited" or host.address in loud else "clean",
         f"{host.seconds:.1f}", host.file) for host in hosts]
def _lay_out(head: list[str], sections: Iterable[Section], foot: list[str]) -> str:
    from tabulate import tabulate
    parts = ["\n".join(head)]
    for title, headings, rows in sections:
        if rows:
            wide = [[re.sub(WIDE, "\\g<0>\0", cell) for cell in row] for row in rows[:MOST_ROWS]]  # two columns each
            table = tabulate(wide, headings, tablefmt="simple", disable_numparse=True)
            parts += [title, table.replace("\0", "")]
        if len(rows) > MOST_ROWS:
            parts.append(f"... and {len(rows) - MOST_ROWS} rows more")
    return "\n\n".join([*parts, "\n".join(foot)]) + "\n"

# ---- Mailing --------------------------------------------------------------------------------------------------------
SENDMAIL_SECONDS, SMTP_SECONDS = 120, 60
SMTP_WAITS = (1, 5, 15)  # seconds before another try, where one can help
SMTP_PORTS = {"none": 25, "starttls": 587, "tls": 465}

def make_message(body: str, attachment: str, config: Config) -> EmailMessage:
    """The mail that tells a report: To, From and Subject as given, the table of findings attached."""
    from email import message, policy, utils
    here = re.sub(r"[^A-Za-z0-9.-]", "", os.uname().nodename) or "localhost"
    mail = message.EmailMessage(policy=policy.SMTP.clone(cte_type="7bit"))
    for name, value in {
            "From": ", ".join(config.email_from) or f"nmap-audit@{here}", "To": ", ".join(config.email_to),
            "Subject": config.email_subject or f"nmap-audit report for {here}", "Date": utils.localtime(),
            "Message-ID": utils.make_msgid("nmap-audit", here), "Auto-Submitted": "auto-generated"}.items():
        mail[name] = value
    mail.set_content(body)
    if attachment:
        mail.add_attachment(attachment.encode(), "text", "csv", filename="scan_report.csv", params={"charset": "utf-8"})
    return mail

def send_mail(data: bytes, config: Config) -> str:
    """Delivers a mail to those its headers name; says whom the server refused. AuditError (69) if nobody got it."""
    if program := config.sendmail or (not config.smtp_server and find_program("sendmail")):
        return _to_sendmail(program, data)
    for wait in (*SMTP_WAITS, 0):
        try:
            return _to_smtp(data, config)
        except (OSError, ValueError) as error:  # smtplib's errors are OSErrors, too
            codes = [getattr(error, "smtp_code", 0), *(code for code, _ in getattr(error, "recipients", {}).values())]
            final = max(codes) >= 500 or re.search("SSL|NotSupported|NotFound|Permission|Value", type(error).__name__)
            if final or not wait:
                raise AuditError(os.EX_UNAVAILABLE, f"mail not delivered by {config.smtp_server or 'localhost'}: "
                                 f"{shown(str(error), 300)}") from None
        time.sleep(wait)
    return ""
def _to_sendmail(program: str, data: bytes) -> str:
    with tempfile.TemporaryFile() as said:
        try:
            subprocess.run([program, "-oi", "-t"], input=data.replace(b"\r\n", b"\n"), stdout=said, stderr=said,
                           timeout=SENDMAIL_SECONDS, check=True, start_new_session=True)
        except (OSError, subprocess.SubprocessError) as error:
            said.seek(0)
            how = getattr(error, "strerror", "") or f"status {getattr(error, 'returncode', 'none in time')}"
            why = f"{program}: {how} {_last_words(said.read(ERROR_BYTES).decode('utf-8', 'replace'))}"
            raise AuditError(os.EX_UNAVAILABLE, f"mail not delivered: {why.rstrip()}") from None
    return ""
def _to_smtp(data: bytes, config: Config) -> str:
    import smtplib
    import ssl
    from email import message_from_bytes, utils
    server = urllib.parse.urlsplit(f"//{config.smtp_server or 'localhost'}")
    context = ssl.create_default_context()
    connect = functools.partial(smtplib.SMTP_SSL, context=context) if config.smtp_tls == "tls" else smtplib.SMTP
    headers = message_from_bytes(data)
    sender, people = ([address for _, address in utils.getaddresses(headers.get_all(name, []))]
                      for name in ("From", "To"))
    with connect(server.hostname or "", server.port or SMTP_PORTS[config.smtp_tls], timeout=SMTP_SECONDS) as smtp:
        if config.smtp_tls == "starttls":
            smtp.starttls(context=context)
        if config.smtp_user:
            smtp.login(config.smtp_user, Path(config.smtp_password_file).read_text().strip())
        refused = smtp.sendmail(sender[0], people, data)
    return "; ".join(f"{who}: refused: {code} {shown(why.decode('utf-8', 'replace'))}; the others have the report"
                     for who, (code, why) in refused.items())

# ---- Command line ---------------------------------------------------------------------------------------------------
FIRST_OF = (os.EX_SOFTWARE, os.EX_IOERR, os.EX_UNAVAILABLE, 2, 1, 0)  # which of its statuses an audit ends with

def show(text: str) -> bool:
    """Writes to standard output, in any locale. AuditError (74) where it cannot be written."""
    try:
        with open(sys.stdout.fileno(), "wb", closefd=False) as out:
            out.write(text.encode())
        return True
    except (OSError, AttributeError, ValueError) as error:
        raise AuditError(os.EX_IOERR, f"standard output: {error}; give it a place to write to") from None

FLAGS = {option.name.lower(): option for option in OPTIONS if option.option} | {
    "version": Option("", "settings", "", "the version", name="VERSION"),
    "help": Option("", "settings", "", "this text", name="HELP")}

def parse_options(argv: Sequence[str]) -> Iterator[Line]:
    """The command line as settings, read as Perl's Getopt::Long reads it: any case, `-config`, abbreviations."""
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        match = re.fullmatch("--?([A-Za-z][^=]*)(=.*)?", word, re.DOTALL)
        option = match and _option_named(match[1].lower())
        takes = option.metavar[:1] if option else ""  # "[": a value that may be left out
        if not match or not option or (match[2] if not takes else takes != "[" and not match[2] and not rest):
            raise AuditError(os.EX_USAGE, f"'{shown(word, 60)}': no option, or a value too many or few; see --help")
        positive = match[1].lower() in ("csv", "human", "csv-headings")  # of Perl's negatable switches
        value = match[2] and match[2][1:]
        if value is None and takes and rest and (takes != "[" or rest[-1][:1] != "-"):
            value = rest.pop()
        yield Line(option.name, "no" if positive else value or "", *[Where(f"--{option.name.lower()}")] * 2)
def _option_named(word: str) -> Option:
    name = re.sub("^(no(?=[ch])|(?=(csv|human|csv-headings)$))", "no-", word)
    hits = [name] if name in FLAGS else [each for each in FLAGS if each.startswith(name)]
    if len(hits) != 1:
        what = f"may be --{', --'.join(hits)}; write it in full" if hits else "unknown" + _meant(word, FLAGS, "--help")
        raise AuditError(os.EX_USAGE, f"--{shown(word, 60)}: {what}")
    return FLAGS[hits[0]]

def help_text() -> str:
    """--help, from the tables: 80 columns, a block for each heading."""
    text = "Usage: nmap-audit --config FILE [OPTION]...\nRun nmap on many hosts, drop what is accepted, mail the rest."
    for heading in dict.fromkeys(option.heading for option in FLAGS.values()):
        rows = ((f"--{name} {each.metavar}", each.help) for name, each in FLAGS.items() if each.heading == heading)
        text += f"\n\n{heading.capitalize()}:\n" + "\n".join(f"  {flag:<26}{what}" for flag, what in rows)
    return text + "\n\nOptions may be abbreviated. See nmap-audit(1) and nmap-audit.rc(5).\n"

def catch_signals() -> None:
    """From now on a signal ends the program, once; one that is ignored (nohup's SIGHUP) stays so."""
    def stop(number: int, _: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        complain(f"ended by {signal.Signals(number).name}; --resume goes on")
        raise SystemExit(128 + number)  # asyncio lets this one through at once, and ends its tasks
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)

class Audit(Scanner):
    """What the command line asks for: a scan, a report, or both."""
    def scan(self, argv: Sequence[str]) -> None:
        """A scan and, without --scan-only, its report."""
        config, directory = self.config, self.config.folders[0]
        if not config.ips or sum(map(count_addresses, config.ips)) > MOST_ADDRESSES:
            raise AuditError(os.EX_CONFIG, f"{config.ips_where or config.config}: IPS names no address, or more than "
                             f"{MOST_ADDRESSES}; name those to scan")
        if len(config.folders) > 1:
            raise AuditError(os.EX_USAGE, "--dir-name: several are for --process-only; name one")
        nmap_words(config.nmap)
        if config.baseline:
            _stored(config.baseline, directory)
        make_directory(directory)
        with locked(directory):
            self.run = self._begin(argv) if config.resume is None else self._take_up()
            self.scan_targets()
            self._send_kept()
            self.run.record.update(status="finished", ended=time.strftime(TIME))
            run = read_run(self.run.folder, self.run.record)
            self.report([run], [run], scanned=True)
            self._prune(directory)
    def _begin(self, argv: Sequence[str]) -> Run:
        config, folder = self.config, make_run(self.config.folders[0])
        record: dict[str, Any] = {
            "version": VERSION, "program": f"nmap-audit {__version__}", "status": "running", "told": False,
            "started": time.strftime(TIME), "ended": None, "command_line": list(argv), "rc": config.rc_text,
            "nmap": config.nmap, "adds_up": not opened(config.nmap), "ips": config.ips, "listed": False,
            "unresolved": {}, "hosts": {}}
        write_file(folder / "run.json", json.dumps(record, indent=0).encode())
        return Run(folder, {}, record)
    def _take_up(self) -> Run:
        config, directory = self.config, self.config.folders[0]
        runs = [run for run in map(read_run, list_runs(directory)) if config.resume in ("", run.folder.name)
                and run.record.get("status", "finished") != "finished"]
        if not runs:
            raise AuditError(os.EX_NOINPUT, f"{directory}: has no unfinished run {config.resume}".rstrip()
                             + "; start a new one, without --resume")
        run, record = runs[-1], runs[-1].record
        if (record["nmap"], record["ips"]) != (list(config.nmap), list(config.ips)):
            raise AuditError(os.EX_USAGE, f"--resume: {run.folder.name} had another NMAP or IPS; leave --resume out")
        record["hosts"] = {each.address: noted(each) for each in run.hosts.values()
                           if each.outcome in ("audited", "down")}
        return run
    def _prune(self, directory: Path) -> None:
        """Takes away the oldest runs; never one that a later report needs, or whose mail waits."""
        records = {run: read_record(run)[0] for run in list_runs(directory)} if self.config.keep_runs else {}
        finished = [run for run, record in records.items() if record.get("status") == "finished"]
        needed = {*[run for run in finished if records[run]["told"]][-1:], *finished[-self.config.keep_runs:]}
        for run in records:
            if run < min(needed, default=run) and not (directory / "unsent" / f"{run.name}.eml").exists():
                self.attempt(shutil.rmtree, run)
    def process(self) -> None:
        """A report of what is stored."""
        runs = [_stored(path) for path in self.config.folders]
        self.report(runs, [run for run in runs if run.record.get("status") == "finished" and not run.record["told"]
                           and list_runs(run.folder.parent)[-1:] == [run.folder]], scanned=False)
    def _view(self, runs: Sequence[Run]) -> tuple[Run, Changes, bool]:
        """What runs say as one, beside what was known and after the rules were heard; whether nothing was known."""
        groups, base = self.config.groups, self.config.baseline
        states = [last_told(run, groups) for run in runs]
        for run, (state, _) in (pair for pair in zip(runs, states) if not pair[0].record.get("told")):
            run.record["before"] = None if state is None else state_json(state)
        if base:
            states = [(fold({}, _stored(base, home(runs[0].folder)), groups)[0], [f"compared with {base}"])]
        known = [state for state, _ in states if state is not None]
        before = dict(sorted(itertools.chain(*(state.items() for state in known)), key=lambda item: item[1].run_id))
        remarks = (*itertools.chain(*(run.remarks for run in runs), *(more for _, more in states)),
                   *(f"with the results in {run.folder}" for run in runs[1:]))
        run = replace(runs[0], remarks=remarks, hosts=merged(itertools.chain(*(run.hosts.values() for run in runs))))
        return run, find(run, fold(before, run, groups)[1], groups), not known
    def report(self, runs: Sequence[Run], untold: Sequence[Run], *, scanned: bool) -> None:
        """Tells what runs say, as one; of those not told before, run.json notes it. scanned: the one run is new."""
        config, (run, changes, first) = self.config, self._view(runs)
        self.statuses.append(2 * any(host.outcome not in ("audited", "down") for host in run.hosts.values()))
        if scanned and config.scan_only:
            return self.save(runs[0])
        report = make_report(run, changes, detail=config.detail, headings=not config.no_csv_headings)
        for each in untold:
            each.record.update(list_findings(changes))
        self._tell(run.folder, report, untold, first=first, scanned=scanned)
        self.statuses.append(int(any(map(report.counts.get, config.fail_on))))
    def _tell(self, folder: Path, report: Report, untold: Sequence[Run], *, first: bool, scanned: bool) -> None:
        config, counts = self.config, report.counts
        changed = first or any(counts[name] for name in TELLING)
        wanted = config.tell == "always" or counts["not audited"] or config.tell == "changes" and changed
        text, table = report.head if config.no_human else report.text, "" if config.no_csv else report.csv
        mail = make_message(text, table, config).as_bytes() if wanted and config.email_to else b""
        unsent = home(folder) / "unsent" / f"{folder.name if untold else time.strftime('%Y%m%d-%H%M%S-processed')}.eml"
        if mail and scanned:
            self.attempt(os.makedirs, unsent.parent, 0o700, True)
        files = {folder / "report.txt": report.text.encode(), folder / "scan_report.csv": table.encode(),
                 folder / "report.eml": mail, unsent: mail}
        for path, data in [item for item in files.items() if item[1] and scanned]:
            self.attempt(write_file, path, data)
        for run in untold:
            self.save(run)
        if config.no_human and not mail and (counts["not audited"] or counts["gone"]):
            say(text)  # what no row of the table says must not be lost
        if self._mail(mail, unsent, text) if mail else not wanted or self.attempt(
                show, table if config.no_human else text) is not None:
            for run in untold:
                self._settle(run)
    def _settle(self, run: Run) -> None:
        """Notes that a run was told, and what is known since: its results on top of what was told before."""
        state, _ = last_told(run, self.config.groups)
        after, _ = fold(state or {}, run, self.config.groups)
        run.record.update(status="finished", told=True, state=state_json(after))
        self.save(run)
    def _mail(self, mail: bytes, unsent: Path, text: str) -> bool:
        try:
            if refused := send_mail(mail, self.config):
                self.fail(os.EX_UNAVAILABLE, refused)
            self.attempt(unsent.unlink, True)
            return True
        except AuditError as error:
            with contextlib.suppress(OSError):
                unsent.parent.mkdir(mode=0o700, exist_ok=True)
                unsent.exists() or write_file(unsent, mail)
            waits = f"; {unsent} keeps the report, the next run sends it" * unsent.exists()
            self.fail(error.status, f"{error}{waits}")
            return not waits and self.attempt(show, text) is not None
    def _send_kept(self) -> None:
        for unsent in sorted((self.config.folders[0] / "unsent").glob("[!.]*.eml")):
            if not self._mail(unsent.read_bytes(), unsent, ""):
                return
            run = read_run(self.config.folders[0] / unsent.stem)
            if run.record and not run.record["told"]:
                self._settle(run)
def _stored(name: str | Path, directory: Path = Path()) -> Run:
    path = Path(name).absolute() if not RUN_ID.fullmatch(str(name)) else directory / name
    runs = [] if RUN_ID.fullmatch(path.name) else list_runs(path)
    finished = [run for run in runs if read_record(run)[0].get("status", "finished") == "finished"]
    if not path.is_dir() or runs and not finished:
        raise AuditError(os.EX_NOINPUT, f"{path}: holds no finished run; name a run, or what holds some")
    if not (run := read_run(finished[-1] if finished else path)).hosts:
        complain("\n".join(run.remarks))
        raise AuditError(os.EX_DATAERR, f"{run.folder}: holds no nmap XML; --dir-name names what to process")
    return run

def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments (None: the command line's) and returns its exit status."""
    os.umask(0o077)
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except AuditError as error:
        complain(str(error))
        return error.status
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {error.strerror}; see to the disk and its permissions")
        return os.EX_IOERR
    except SystemExit as ended:
        return int(ended.code or 0)
    except Exception as error:  # a bug: the one traceback that a user may see
        complain(f"a bug: {type(error).__name__}: {shown(str(error))}; please report it with what follows")
        say(traceback.format_exc())
        return os.EX_SOFTWARE
def _run(argv: Sequence[str]) -> int:
    lines = list(parse_options(argv))
    given = {line.word: line.value for line in lines}
    if given.keys() & {"HELP", "VERSION"}:
        return not show(help_text() if "HELP" in given else f"nmap-audit {__version__}\n")
    catch_signals()
    if not (path := given.get("CONFIG")):
        raise AuditError(os.EX_USAGE, "--config: is always needed; name the rc file, see nmap-audit(1)")
    config = read_config(parse_rc(text := read_rc(path), path), lines, text)
    half = ("SCAN-ONLY" in given) - ("PROCESS-ONLY" in given)  # where the file names the other half, this one wins
    if config.process_only and (config.scan_only and not half or config.resume is not None and half <= 0):
        raise AuditError(os.EX_USAGE, "--process-only: stands beside --scan-only or --resume; give one of them")
    for name, bits in ((path, 0o022 * (os.geteuid() == 0)), (config.smtp_password_file, 0o077)):
        with contextlib.suppress(OSError):
            found = os.stat(name)
            if found.st_mode & bits or bits and found.st_uid not in (0, os.geteuid()):
                complain(f"{name}: {'writable' if name == path else 'readable'} by others; see chmod(1)")
    audit = Audit(replace(config, scan_only=config.scan_only and half >= 0))
    audit.process() if config.process_only and half <= 0 else audit.scan(argv)
    return min(audit.statuses, key=FIRST_OF.index)

if __name__ == "__main__":
    raise SystemExit(main())
