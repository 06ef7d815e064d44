"""Run nmap on many hosts at once, drop every open port that somebody already accepted, mail the rest.

    rc text --parse_rc--> Blocks --read_config--> Config
                                                    | Scan            (nmap and files; read_run tells what is left)
                                                    v
                     Run: DIR-NAME/20261124-040654/{targets.xml, 192.0.2.1.xml, ..., run.json}
                                                    | read_run
                                                    v
       HostResults --fold(State)--> Changes --find(Groups)--> Changes --make_report--> Report
                                                                                         | make_message
                                                                                         v
                                                                        EmailMessage --send_mail--> out

Arrows only go forward, and the run directory is the only thing that passes from scanning to reporting. A section
of this file uses itself and the sections above it; inside a section public names come before their helpers.
"""
from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime
import difflib
import errno
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
import socket
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
T = TypeVar("T")

class AuditError(Exception):
    """What stops an audit: an exit status (sysexits.h's), and what standard error shows, one line a mistake."""
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status

# ---- Types ----------------------------------------------------------------------------------------------------------
class Where(NamedTuple):
    """A place in an rc file, line and column counted from 1; or an option, then there is no line."""
    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file

class Line(NamedTuple):
    """`WORD VALUE`: a line of the rc file, or an option. An empty word: no statement at all."""
    word: str
    value: str
    where: Where
    value_where: Where

@dataclass(frozen=True, slots=True)
class Rule:
    """`ignore` or `expect` PORT PROTOCOL STATE SERVICE, in lower case."""
    port: str
    protocol: str
    state: str
    service: str
    where: Where
    group: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.where.file)}:{self.where.line}"

@dataclass(frozen=True, slots=True)
class Group:
    """The hosts that any of `tags` matches, the rules that ignore ports of theirs, the ports they must show."""
    name: str
    tags: tuple[Callable[[HostResult], bool], ...]
    ignores: tuple[Rule, ...]
    expects: tuple[Rule, ...]

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

Looked = tuple[tuple[str, str], ...]  # (protocol, nmap's list of its ports), as in scaninfo

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
    rule: Rule | None = None  # what ignores it or, where it is missing, expects it

@dataclass(frozen=True, slots=True)
class Changes:
    """What a run says beside its baseline and, once the rules were heard, what of it they accept."""
    findings: tuple[Finding, ...]
    asked: int  # hosts that were up in their last result and were asked again
    lost: int  # of those: down or failed now
    ignored: tuple[Finding, ...] = ()

class Report(NamedTuple):
    """A report's text, the same without its findings, scan_report.csv, and the counts that decide about telling it."""
    text: str
    head: str
    csv: str
    counts: Mapping[str, int]

class Output(NamedTuple):
    """What an nmap process left: its status (negative: killed by that signal), its output, the end of its errors."""
    status: int
    out: bytes
    err: str
    seconds: float

Mistakes = list[tuple[Where, str]]  # each: what is wrong; what to do
Block = tuple[Line | None, tuple[Line, ...]]  # the lines behind a head: `group NAME`, `end group NAME`, or the start
State = Mapping[str, Known]  # by address

def shown(text: str, width: int = 200) -> str:
    """A stranger's text made visible and harmless, and cut to `width` characters: for terminals, mails, errors.

    What moves the cursor, hides or turns text (Unicode's categories C and Z, but for the blank) becomes like `\\x1b`.
    """
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
    if word.upper() != "NMAP" and re.fullmatch(r'"[^"]*"', value):
        return Line(word, value[1:-1], where, where._replace(column=column + 1))
    return Line(word, str(value), where, where._replace(column=column))

# ---- Understanding the rc file --------------------------------------------------------------------------------------
MOST_ADDRESSES, MOST_LETTERS = 1 << 20, 9999  # of all targets, of one target
KINDS = {"tcp udp sctp ip": "protocol", "open closed filtered unfiltered open|filtered closed|filtered": "state"}
RULES = ("ignore", "expect")
RULE_FIELDS = ("port", "protocol", "state", "service")
# What says where nmap's output goes or its targets come from, flags bundled before it; and what only begins so.
REFUSED = re.compile(r"--?([46AFfhnRrvVdq]*[oi]|ap|resu|sty|=|$)")
NOT_REFUSED = ("open", "osscan-guess", "osscan-limit", "iflist", "ip-options", "initial-rtt-timeout", "host-timeout",
               "noninteractive", "no-stylesheet")

def _meant(word: str, known: Iterable[str], manual: str = "nmap-audit.rc(5)") -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else f"; see {manual}"

def _addresses(text: str) -> tuple[str, ...]:
    from email.utils import formataddr, getaddresses
    return tuple(map(formataddr, getaddresses([text])))

def _nmap(text: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{str(error).lower()}; quote as in a shell") from None
    for word in words[nmap_at(words) + 1:]:
        name = word.strip("-").partition("=")[0].replace("_", "-")
        fine = len(name) > 1 and any(long.startswith(name) for long in NOT_REFUSED)
        if REFUSED.match(word) and not fine:
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

NAME = r"(?!-)(?:[\w-]+\.)*(?!0[xX])[\w-]*[A-Za-z][\w-]*\.?"  # not `1234` or `0x7f.1`: resolvers read addresses there
TARGET = re.compile(rf"(?:{NAME}|[0-9*,-]+(?:\.[0-9*,-]+){{3}}|[^,]*:[^,]*)(?:/[^,]*)?", re.ASCII)

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

TEXT = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+"
PERSON = (r"\s*(?![^,]*[\x00-\x1f\x7f-\x9f])(?a:(?:\"[^\"]*\"\s*|[^<>\",@]*)<[^\s<>\",@]+(?:@[^\s<>\",@]+)?>|"
          r"[!#-'*+.-9=?^-~A-Z-]+(?:@[\w.:[\]-]+)?)\s*")
SERVER = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?"
SWITCH = "(?i:yes|on|1|no|off|0|)"

def _opt(default: T, *settings: Any, **more: Any) -> T:
    described: T = field(default=default, metadata={"option": Option(*settings, **more)})
    return described

def _switch(heading: str, text: str) -> bool:
    return _opt(False, SWITCH, heading, "", text, lambda text: text.lower() in ("yes", "on", "1", ""))

@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings in force, each field with the option that sets it; then what the rc file says beside them."""
    config: str = _opt("", TEXT, "settings", "FILE", "the rc file; always needed", variable=False)
    ips: tuple[str, ...] = _opt((), TEXT, "scanning", "TARGETS", "addresses, subnets, names", _targets, many=True)
    nmap: tuple[str, ...] = _opt(("nmap", "-F"), rf"(?=.*\w){TEXT}", "scanning", "CMD", "nmap -F, or another", _nmap)
    max_threads: int = _opt(10, "[1-9][0-9]{0,8}", "scanning", "N", "processes at a time: a whole number from 1", int)
    dir_name: tuple[str, ...] = _opt((), rf"(?=.*[^\s,]){TEXT}", "settings", "DIR[,DIR2..]", "where runs are stored",
                                     lambda text: tuple(filter(None, map(str.strip, text.split(",")))))
    resume: str | None = _opt(None, "[0-9-]*", "scanning", "[RUN-ID]", "go on with an unfinished run", variable=False)
    scan_only: bool = _switch("scanning", "scan and store, report nothing")
    process_only: bool = _switch("reporting", "report from what is stored, scan nothing")
    detail: str = _opt("low", "(?i:none|low|med|medium|high)", "reporting", "LEVEL", "one of none, low, med, high",
                       lambda text: re.sub("^med$", "medium", text.lower()))
    no_human: bool = _switch("reporting", "no table in the text")
    no_csv: bool = _switch("reporting", "no scan_report.csv")
    no_csv_headings: bool = _switch("reporting", "scan_report.csv without its first line")
    email_to: tuple[str, ...] = _opt((), f"{PERSON}(,{PERSON})*", "mailing", "ADDR", "address to mail to", _addresses,
                                     many=True)
    email_from: tuple[str, ...] = _opt((), PERSON, "mailing", "ADDR", "the sender's address", _addresses, ("FROM",))
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
    found = _read_lines(lines, VARIABLES, mistakes)
    given = _read_lines(options, {option.name: option for option in OPTIONS}, wrong)
    for status, several in ((os.EX_USAGE, wrong), (os.EX_CONFIG, mistakes)):
        if several:
            raise AuditError(status, "\n".join(f"{where}: {shown(text, 900)}" for where, text in sorted(several)))
    targets = [[str(line.value_where) for line in each if line.word.upper() == "IPS"] for each in (options, lines)]
    return Config(**{**found, **given}, groups=groups, ips_where=", ".join(targets[0] or targets[1]), rc_text=rc_text)

def _read_lines(lines: Iterable[Line], known: Mapping[str, Option], mistakes: Mistakes) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for line in lines:
        option = known.get(line.word.upper())
        if not option:
            mistakes.append((line.where, _stray(line, (*VARIABLES, "GROUP"), (*TAGS, *RULES), "outside any group")))
            continue
        name = option.name.lower().replace("-", "_")
        try:
            taken_back = option.many and not line.value and not line.where.line  # by `--email-to=`
            if not taken_back and not re.fullmatch(option.pattern, line.value):
                what = f"'{shown(line.value, 60)}' cannot be" if line.value else "missing is the value of"
                raise ValueError(f"{what} {option.name}; write {option.metavar or 'one of yes, no'}: {option.help}")
            value = () if taken_back else option.convert(line.value)
            values[name] = values.get(name, ()) + value if option.many else value
        except ValueError as error:
            mistakes.append((line.value_where, str(error)))
    return values

def _stray(line: Line, here: Iterable[str], elsewhere: Iterable[str], place: str) -> str:
    word, known = shown(line.word, 30), list(here)
    if not word:
        return f"'{shown(line.value, 30)}' begins with no word; write WORD VALUE, or # before a comment"
    if {word.lower(), word.upper()} & set(elsewhere):
        return f"'{word}' stands {place}; variables stand above the groups, tags and rules inside one"
    return f"unknown word '{word}'" + _meant(word.upper() if known[0].isupper() else word.lower(), known)

def _structure(blocks: Sequence[Block]) -> Iterator[tuple[Where, str]]:
    """What is wrong with the heads of groups and their ends: each group ends, under its own name, before the next."""
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
    tags: list[tuple[str, Where, Callable[[HostResult], bool]]] = []
    rules: dict[str, list[Rule]] = {word: [] for word in RULES}
    for line in lines:
        word = line.word.lower()
        try:
            if word in TAGS and not line.value:
                raise ValueError(f"'{word}' needs a value; write it behind the word")
            if word in TAGS:
                tags.append((word, line.where, TAGS[word](line.value)))
            elif word in RULES:
                rules[word].append(_read_rule(line, head.value))
            else:
                mistakes.append((line.where, _stray(line, (*TAGS, *RULES, "end"), VARIABLES, "inside a group")))
        except ValueError as error:
            mistakes.append((line.value_where, str(error)))
    if not head.value:
        mistakes.append((head.where, "a group needs a name; write 'group NAME'"))
    mistakes += ((where, f"'{word}' among the {tags[0][0]} tags of line {tags[0][1].line}; the tags of a group are of "
                  "one class, make two groups") for word, where, _ in tags if word != tags[0][0])
    if len(mistakes) == before and not (tags and any(rules.values())):
        mistakes.append((head.where, f"group '{head.value}' has no {'rule' if tags else 'hosts'}; "
                         "give it ip, hostname or os tags, and ignore lines"))
    return Group(head.value, tuple(tag for *_, tag in tags), *map(tuple, rules.values()))

def _read_rule(line: Line, group: str) -> Rule:
    """`PORT PROTOCOL STATE SERVICE`: the original's order is lost, so fields are told apart by kind."""
    words = re.sub(r"(?<!\S)([\d*-]+)/(\w+|\*)(?!\S)", r"\1 \2", line.value.lower()).split()
    kinds: dict[str, str] = {}
    for word in words:
        if word != "*" and kinds.setdefault(kind := _kind(word), word) is not word:
            raise ValueError(f"two fields of one kind, '{shown(kinds[kind], 30)}' and '{shown(word, 30)}'; "
                             "write PORT PROTOCOL STATE SERVICE")
    if len(words) != 4:
        lacking = ", ".join(kind for kind in RULE_FIELDS if kind not in kinds)
        raise ValueError(f"{len(words)} of four fields{' (no ' + lacking + ')' if lacking else ''}; "
                         "write PORT PROTOCOL STATE SERVICE, * for any")
    port, protocol, state, service = (kinds.get(kind, "*") for kind in RULE_FIELDS)
    return Rule(port, protocol, state, service, line.where, group)

def _kind(word: str) -> str:
    if re.fullmatch(r"[0-9]+-[0-9]+|[0-9*]*[0-9][0-9*]*", word):
        low, _, high = word.partition("-")
        ends = [int(end) if re.fullmatch("0|[1-9][0-9]{0,4}", end) else 1 << 16 for end in (low, high) if end.isdigit()]
        if ends != sorted(ends) or max(ends, default=0) > 65535:
            raise ValueError(f"port '{shown(word, 30)}' is over 65535 or runs backwards; write a number, N-M or *")
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
    return _glob(pattern).match(text) is not None

@functools.lru_cache(maxsize=1 << 14)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(re.sub(r"[?[]", r"[\g<0>]", pattern)))  # its * does not backtrack

def _ip_tag(text: str) -> Callable[[HostResult], bool]:
    low, _, high = text.partition("-")
    with contextlib.suppress(ValueError):
        net = ipaddress.ip_network(text if ":" in text or "/" in text else "", strict=False)
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
    return lambda host: any(like(f"*{_folded(text)}*", guess.lower()) for guess in host.os)

TAGS = {"ip": _ip_tag, "hostname": _hostname_tag, "os": _os_tag}

# ---- Reading a run --------------------------------------------------------------------------------------------------
OPEN = re.compile("--?op(en?)?")  # nmap's --open hides hosts without open ports
RUN_ID = re.compile(r"\d{8}-\d{6}")
VERSION = 1  # of run.json
TIME = "%Y-%m-%dT%H:%M:%S%z"  # as run.json notes it
PIECE = 1 << 20  # expat before 2.6 takes minutes for a large attribute that comes in small pieces
HOST_BYTES = 64 << 20  # no document of one host is longer
KEPT = ("nmaprun", "scaninfo", "finished", "hosts", "host", "status", "address", "hostname", "osmatch", "osclass",
        "extraports", "ports")
FORBIDDEN = re.compile(rb"&#(?:0*(?:[0-8]|1[1245-9]|2\d|3[01])|x0*(?:[0-8bcef]|1[\da-f]));", re.IGNORECASE)
XML_START = re.compile(rb"(\xef\xbb\xbf)?\s*<(\?xml|!--|!DOCTYPE nmaprun|nmaprun)|\xff\xfe|\xfe\xff")
Parts = dict[str, list[dict[str, Any]]]  # attributes of elements, by the elements' name

class Document(DefusedExpatParser):
    """nmap's XML (its DTD, and files of nmap 3.27 to 7.97), read as it is fed: order and completeness don't matter.

    `top` holds the attributes of the elements outside hosts; `hosts` what each <host> says, its outcome as far as the
    host alone tells, and the number of its ports that nmap listed or summed up. `problem`: why it is not whole.
    Entities are refused, the DOCTYPE that nmap writes is not, and nothing is ever fetched.
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
    """What a <host> says; None where it has no address. One of a list scan (of unknown state) is not scanned."""
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
        texts = (" ".join(filter(None, map(each.get, words))) for each in part[tag]
                 if _int(each.get("accuracy")) == best)
        found.update((text, None) for text in texts if text)
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
        read_state(record.get("state", {"lists": [], "hosts": {}}))
        return (record, ()) if usable else ({}, (f"{folder}/run.json is of another version; its XML is read instead",))
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
        return {}, (f"{folder}/run.json cannot be read; its XML is read instead",)

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
    """An address's result, from its file and from what run.json says of it; the worse of both."""
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
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_file() or path.name.startswith("."):
            continue
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
        opened = own and any(map(OPEN.fullmatch, document.first("nmaprun").get("args", "").split()))
        results += judge(document, str(path), strict=own and not opened, asked=path.name if opened else "")
        remarks += [f"{path}: {document.problem}"] * bool(document.problem)
    return results, tuple(remarks)

# ---- Keeping files --------------------------------------------------------------------------------------------------
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
        self.config = config
        self.statuses = [0]
        self.folder, self.record = Path(), dict[str, Any]()  # of the run at work, and its run.json

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

    def keep(self, path: Path, data: bytes) -> bool:
        """Writes a file, and says whether that went well."""
        return self.attempt(write_file, path, data) is not None

    def save(self) -> None:
        """Writes run.json as it stands, old or new but never half."""
        self.keep(self.folder / "run.json", json.dumps(self.record, indent=0).encode())

LOCK_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW

def make_directory(path: Path) -> None:
    """Makes DIR-NAME, mode 0700. AuditError where that fails, or where somebody else could put links into it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        if {os.lstat(path).st_uid, os.stat(path).st_uid} - {0, os.geteuid()}:
            raise PermissionError(errno.EPERM, "it is somebody else's", "owner")
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
    last = [datetime.datetime.strptime(run.name, "%Y%m%d-%H%M%S") for run in list_runs(directory)[-1:]]
    second = datetime.timedelta(seconds=1)
    moment = max([datetime.datetime.now(), *(each + second for each in last)])
    while os.path.lexists(folder := directory / moment.strftime("%Y%m%d-%H%M%S")):
        moment += second
    folder.mkdir(mode=0o700)
    return folder

# ---- Scanning -------------------------------------------------------------------------------------------------------
TARGET_OPTIONS = {"exclude": 1, "excludefile": 1, "exclude-file": 1, "dns-servers": 1, "system-dns": 0, "6": 0}
FILE_OPTIONS = "--?(exclude-?file|datadir|servicedb|versiondb|script-args-file)"  # their files may stand here
NMAP_VARIABLES = ("NMAP_ARGS", "NMAP_PRIVILEGED", "NMAP_UNPRIVILEGED", "NMAPDIR")
LIST_BYTES, ERROR_BYTES = 256 << 20, 4096
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
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

async def run_nmap(words: Sequence[str], limit: int) -> Output:
    """Runs a command to its end, or until it wrote `limit` bytes; whatever happens, nothing of it is left running."""
    started = time.monotonic()
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
    readers = [asyncio.create_task(_read(process.stdout, limit, process)),
               asyncio.create_task(_read(process.stderr, ERROR_BYTES))]
    try:
        status = await process.wait()
        await asyncio.wait(readers, timeout=5)  # a grandchild may hold the pipes for ever
    finally:
        await _end(process, readers)
    out, err = (b"" if reader.cancelled() else reader.result() for reader in readers)
    return Output(status, out, err.decode("utf-8", "replace"), time.monotonic() - started)

async def _read(stream: asyncio.StreamReader, most: int, process: asyncio.subprocess.Process | None = None) -> bytes:
    """The last bytes of a stream; with a process all of it, and that process is killed when it writes more."""
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece
        if len(kept) > most and process:
            process.kill()
            break
        del kept[:-most]
    return bytes(kept)

async def _end(process: asyncio.subprocess.Process, readers: Sequence[asyncio.Task[bytes]]) -> None:
    """Ends a process with its group, which is asked first and killed two seconds later, and what still reads of it."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.returncode is None or not all(reader.done() for reader in readers):
            with contextlib.suppress(ProcessLookupError, asyncio.TimeoutError, asyncio.CancelledError):
                os.killpg(process.pid, number)
                await asyncio.wait_for(process.wait(), 2)
    for reader in readers:
        reader.cancel()
    await asyncio.wait(readers)

def split_hosts(out: bytes) -> list[bytes]:
    """A batch's output as one document a host, its element byte for byte; the last one has none, or a broken one."""
    spans = [match.span() for match in HOST_ELEMENT.finditer(out)]
    head, tail = (out[:spans[0][0]], out[spans[-1][1]:]) if spans else (out, b"")
    return [*(head + out[start:end] + tail for start, end in spans), head + tail]

def batch_results(output: Output, batch: Sequence[str], opened: bool) -> dict[str, tuple[HostResult, bytes]]:
    """The outcome of each address of a batch, with the document that shows it (empty: there is none)."""
    found: dict[str, tuple[HostResult, bytes]] = {}
    for data in split_hosts(output.out):
        document = read_xml(io.BytesIO(data))
        for host in judge(document, "", strict=not opened, asked=batch[0] if opened else ""):
            found.setdefault(host.address, (host, data))
    listed = sum(host.outcome != "down" for address, (host, _) in found.items() if address in batch)
    others, results = found.keys() - set(batch), {}
    for address in batch:
        host, data = found.get(address) or (_unlisted(document, address, listed, len(batch)), output.out)
        if output.status:
            how = f"by {signal.Signals(-output.status).name}" if output.status < 0 else f"with status {output.status}"
            host = replace(host, outcome="failed", reason=f"nmap ended {how}: {_last_words(output.err)}".rstrip(": "))
        elif others:
            host = replace(host, outcome="cut off", reason=f"nmap lists {shown(', '.join(others), 60)}, not asked for")
        results[address] = replace(host, address=address, seconds=round(output.seconds, 1)), data
    return results

def _unlisted(rest: Document, address: str, listed: int, batch: int) -> HostResult:
    if rest.problem:
        return HostResult(address, "cut off", rest.problem)
    if _int(rest.first("hosts").get("total")) < batch:
        return HostResult(address, "failed", "nmap did not look at it")
    if _int(rest.first("hosts").get("up")) > listed:
        return HostResult(address, "cut off", "nmap counted a host as up and did not list it, or listed another")
    return HostResult(address, "down", start=_int(rest.first("nmaprun").get("start")))

def _last_words(err: str) -> str:
    lines = (line for line in err.splitlines() if line.strip(" !QUITNG") and not line.startswith(("\t", "stack")))
    return shown(" / ".join(map(str.strip, lines))[-300:], 300)

class Scanner(Shell):
    """Runs nmap on what IPS names, and keeps what it says in the run's folder."""
    saved = 0.0  # when run.json was last written
    total = 0  # addresses

    def scan_targets(self) -> None:
        """Scans each address of the target list that has no result yet."""
        try:
            asyncio.run(self._run())
        finally:
            self.record["status"] = "interrupted"  # it will be finished when its report is made
            self.save()

    async def _run(self) -> None:
        self.words = nmap_words(self.config.nmap)
        if not self.record["listed"]:
            await self._list()
        hosts = read_run(self.folder, self.record).hosts
        if not hosts:
            raise AuditError(os.EX_CONFIG, f"{self.config.ips_where}: every address of IPS is excluded; change one")
        self.total = len(hosts) - len(self.record["unresolved"])
        await self._scan([host.address for host in hosts.values() if host.outcome == "not scanned"])

    async def _list(self) -> None:
        words = list_words(self.words)
        for name, six in (("targets.xml", False), ("targets6.xml", True)):
            targets = [each for each in self.config.ips if ("-6" in words or ":" in each) == six]
            if not targets:
                continue
            extra = ["-6"] if six and "-6" not in words else []
            output = await run_nmap([*words, *extra, "-oX", "-", "--", *targets], LIST_BYTES)
            unresolved, reason = re.findall(r'Failed to resolve "([^"\n]*)"', output.err), "nmap could not resolve it"
            stored = self.keep(self.folder / name, output.out)
            if output.status or not stored or read_xml(io.BytesIO(output.out)).problem:
                unresolved, reason = targets, f"nmap could not list it: {_last_words(output.err)}"
            self.record["unresolved"] |= {shown(target): reason for target in unresolved}
        self.record["listed"] = True
        self.save()

    async def _scan(self, addresses: Sequence[str]) -> None:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a process needs three files, for a moment four
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        semaphore = asyncio.Semaphore(max(1, min(self.config.max_threads, (hard - 24) // 4)))
        tasks: set[asyncio.Task[None]] = set()
        try:
            for address in addresses:
                await semaphore.acquire()
                done = {task for task in tasks if task.done()}
                tasks -= done
                await asyncio.gather(*done)  # raises what they raised
                task = asyncio.create_task(self._batch([address]))
                task.add_done_callback(lambda _: semaphore.release())
                tasks.add(task)
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _batch(self, batch: Sequence[str], again: bool = False) -> None:
        words = [*self.words, *["-6"] * (":" in batch[0] and "-6" not in self.words)]
        zones = {target.partition("%")[0]: target for target in self.config.ips if "%" in target}
        asked = [zones.get(address, address) for address in batch]
        output = await run_nmap([*words, "-oX", "-", "--", *asked], HOST_BYTES * len(batch))
        for address, (host, data) in batch_results(output, batch, any(map(OPEN.fullmatch, words))).items():
            died = host.outcome == "cut off" or host.outcome == "failed" and not 0 <= output.status < 128
            if died and not again:
                await self._batch([address], again=True)
            else:
                self._keep(host, data)

    def _keep(self, host: HostResult, data: bytes) -> None:
        if host.outcome != "down" and data:
            name = self.folder / result_name(host.address)
            path = name if host.outcome in ("audited", "timed out") else name.with_suffix(".part")
            if not self.keep(path, data):
                host = replace(host, outcome="failed", reason="its result could not be written")
        self.record["hosts"][host.address] = noted(host)
        count = sum(port.state != "closed" for port in host.ports)
        what = f"{count} port{'s' if count != 1 else ''}" if host.outcome == "audited" else host.outcome
        if not self.config.quiet:
            done, who = len(self.record["hosts"]), shown(" ".join((host.address, *host.names[:1])), 100)
            say(f"[{done}/{self.total}] {who} {what}, {host.seconds:.1f} s")
        if time.monotonic() - self.saved > 10:
            self.save()
            self.saved = time.monotonic()

def noted(host: HostResult) -> dict[str, Any]:
    """What run.json notes of a host."""
    return {"outcome": host.outcome, "reason": host.reason, "seconds": host.seconds, "start": host.start}

# ---- Remembering ----------------------------------------------------------------------------------------------------
def fold(state: State, run: Run, groups: Sequence[Group]) -> tuple[dict[str, Known], Changes]:
    """The state after a run, and what the run changed. What a run did not look at stays as it was, and is not gone."""
    after, findings, asked, lost = dict(state), list[Finding](), 0, 0
    for host in run.hosts.values():
        known = state.get(host.address, Known())
        asked += known.up
        lost += known.up and host.outcome in ("down", "failed")
        findings += (_compare(host, port, known, run_day(run)) for port in host.ports)
        if host.outcome == "audited":
            now = after[host.address] = _remember(host, known, run, groups)
            findings += _gone(host, known)
            findings += [Finding(host, "host new")] * bool(state and not known.run_id)
            if known.run_id and known.groups != now.groups and (known.name, known.os) != (now.name, now.os):
                findings.append(Finding(host, "regrouped"))
        elif host.outcome == "down" and known.up:
            after[host.address] = known._replace(up=False)
            findings.append(Finding(host, "host gone"))
    return after, Changes(tuple(findings), asked, lost)

def run_day(run: Run) -> str:
    """The date of a run, like 2026-11-24: its name's or, in a folder of other origin, that of its newest result."""
    if RUN_ID.fullmatch(run.folder.name):
        return f"{run.folder.name[:4]}-{run.folder.name[4:6]}-{run.folder.name[6:8]}"
    return datetime.date.fromtimestamp(max((host.start for host in run.hosts.values()), default=0)).isoformat()

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

def _remember(host: HostResult, known: Known, run: Run, groups: Sequence[Group]) -> Known:
    """What an audited result makes of what was known: ports that it did not look at are kept."""
    kept = {key: value for key, value in known.ports.items()
            if not looked_at(host.looked, int(key.partition("/")[0]), key.partition("/")[2])}
    now = {port.key: (port.state, port.service, known.ports.get(port.key, ("", "", run_day(run)))[2])
           for port in host.ports if port.state != "closed"}
    names = tuple(group.name for group in groups if any(tag(host) for tag in group.tags))
    return Known(run.folder.name, True, "".join(host.names[:1]), "".join(host.os[:1]), names,
                 join_looked(known.looked, host.looked), kept | now)

def last_told(run: Run, groups: Sequence[Group]) -> tuple[dict[str, Known] | None, list[str]]:
    """What the last run told before this one left, None for nothing; and remarks. The XML stands in for a run.json."""
    replay, remarks, state = list[Path](), list[str](), None
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

# ---- Filtering ------------------------------------------------------------------------------------------------------
PORT_CHANGES = ("new", "changed", "first look", "standing")

def find(run: Run, changes: Changes, groups: Sequence[Group]) -> Changes:
    """The changes with what any rule of any group accepts put apart, and what is expected and missing added."""
    members = {address: [group for group in groups if any(tag(host) for tag in group.tags)]
               for address, host in run.hosts.items()}
    told, ignored = list[Finding](), list[Finding]()
    for finding in (each for each in changes.findings if each.port.state != "closed"):
        rules = (rule for group in members[finding.host.address] for rule in (*group.ignores, *group.expects)
                 if finding.change in PORT_CHANGES and accepts(rule, finding.port))
        if rule := next(rules, None):
            ignored.append(replace(finding, rule=rule))
        else:
            told.append(finding)
    told += (Finding(host, "missing", Port(_int(rule.port), rule.protocol, rule.state, rule.service), rule=rule)
             for host in run.hosts.values() if host.outcome == "audited"
             for group in members[host.address] for rule in group.expects if not _met(rule, host))
    return replace(changes, findings=tuple(told), ignored=tuple(ignored))

def accepts(rule: Rule, port: Port) -> bool:
    """Whether all four fields of a rule match a port."""
    low, dash, high = rule.port.partition("-")
    number = int(low) <= port.number <= int(high) if dash else like(rule.port, str(port.number))
    return number and rule.protocol in ("*", port.protocol) and rule.state in ("*", port.state) \
        and like(rule.service, port.service.lower())

def _met(rule: Rule, host: HostResult) -> bool:
    """Whether a host shows what a rule expects; `closed` is shown too by a port that was looked at and not listed."""
    if any(accepts(rule, port) for port in host.ports):
        return True
    return rule.state == "closed" and rule.port.isdigit() and looked_at(host.looked, int(rule.port), rule.protocol) \
        and not any(str(port.number) == rule.port and port.protocol == rule.protocol for port in host.ports)

# ---- Reporting ------------------------------------------------------------------------------------------------------
MOST_ROWS = 20000  # of a table
TITLES = {"missing": "Missing: expected and not there", "new": "New", "changed": "Changed", "first look": "First look",
          "standing": "Standing: told before, neither accepted nor closed", "gone": "Gone",
          "host gone": "Hosts gone: up before, down now", "host new": "Hosts new",
          "regrouped": "Hosts that changed group (their name or OS guess changed)"}
LOW = ("HOST", "PORT", "PROTOCOL", "STATES", "SERVICE")
FULL = ("ADDRESS", "NAME", "OS", "PORT", "PROTOCOL", "STATES", "SERVICE", "VERSION", "FIRST SEEN")
CSV = {"IP": "ADDRESS", "Hostname": "NAME", "OS": "OS", "Port": "PORT", "Protocol": "PROTOCOL", "State": "STATE",
       "Service": "SERVICE", "Version": "VERSION", "Change": "CHANGE", "First Seen": "FIRST SEEN"}
FORMULA = tuple("=+-@|%\uff1d\uff0b\uff0d\uff20")  # what a formula begins with
WIDTHS = {"HOST": 60, "NAME": 40, "OS": 30, "SERVICE": 24, "VERSION": 40, "GROUP": 30}
Section = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, headings, rows

def make_report(run: Run, changes: Changes, *, detail: str, headings: bool) -> Report:
    """The report of a run at a level of DETAILS; a phone's preview of the mail shows its first line."""
    hosts = sorted(run.hosts.values(), key=lambda host: numeric(host.address))
    of = {change: [each for each in changes.findings if each.change == change] for change in TITLES}
    audited, down = (sum(host.outcome == outcome for host in hosts) for outcome in ("audited", "down"))
    counts = {"findings": sum(len(of[change]) for change in PORT_CHANGES), "new": len(of["new"]),
              "gone": len(of["gone"]) + len(of["host gone"]), "missing": len(of["missing"]),
              "not audited": len(hosts) - audited - down, "regrouped": len(of["regrouped"])}
    head = [f"{audited} of {len(hosts) - down} hosts audited, {counts['findings']} findings, {counts['gone']} gone"]
    if changes.lost * 2 > changes.asked:
        head.append(f"WARNING: {changes.lost} of {changes.asked} hosts that were up before are down or failed now: "
                    "the scanner's own network may be broken")
    if of["missing"]:
        head.append(f"WARNING: expected and missing: {len(of['missing'])}; the scanner may be blind")
    foot = [f"Ports ignored: {len(changes.ignored)}, by rules: {len({each.rule for each in changes.ignored})}",
            f"Addresses: {len(hosts)}, of them audited: {audited}, down: {down}, not audited: {counts['not audited']}",
            *(f"Note: {shown(remark, 300)}" for remark in run.remarks), f"Raw data: {run.folder}", *(
                [f"nmap command: {shown(shlex.join(run.record.get('nmap', ['unknown'])), 400)}"] * (detail == "high"))]
    bad = list(_not_audited(hosts))
    tables = [] if detail == "none" else [_table(title, of[change], detail) for change, title in TITLES.items()]
    more = _everything(hosts, changes) if detail == "high" else []
    events = [_table(TITLES[change], of[change], detail) for change in ("host gone", "host new", "regrouped")]
    return Report(_lay_out(head, [*bad, *tables, *more], foot), _lay_out(head, [*bad, *events], foot),
                  make_csv(changes.findings, headings), counts)

def columns(each: Finding) -> dict[str, str]:
    """A finding's texts, as strangers wrote them, by column."""
    host, port, rule, name = each.host, each.port, each.rule, "".join(each.host.names[:1])
    return {"HOST": f"{host.address} ({name})" if name else host.address, "ADDRESS": host.address, "NAME": name,
            "OS": "".join(host.os[:1]), "PROTOCOL": port.protocol, "SERVICE": port.service, "VERSION": port.version,
            "PORT": rule.port if rule and each.change == "missing" else str(port.number) if port.state else "",
            "STATES": f"{each.before}\u2192{port.state}" if each.change == "changed" else port.state,
            "STATE": port.state, "CHANGE": each.change, "FIRST SEEN": each.first_seen, "LINE": str(rule or ""),
            "GROUP": rule.group if rule else ""}

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
        rows = [(shown(columns(Finding(host, ""))["HOST"], 60), host.file) for host in several]
        yield f"Not audited ({len(rows)}): {outcome}: {shown(reason, 400)}", ("HOST", "FILE"), rows

def _everything(hosts: Sequence[HostResult], changes: Changes) -> Iterator[Section]:
    yield _table("Ignored", changes.ignored, "low", "LINE", "GROUP")
    loud = {each.host.address for each in changes.findings}
    yield f"Hosts ({len(hosts)})", ("HOST", "OUTCOME", "SECONDS", "FILE"), [
        (shown(columns(Finding(host, ""))["HOST"], 60), host.outcome if host.outcome != "audited"
         or host.address in loud else "clean", f"{host.seconds:.1f}", host.file) for host in hosts]

def _lay_out(head: list[str], sections: Iterable[Section], foot: list[str]) -> str:
    from tabulate import tabulate
    parts = ["\n".join(head)]
    for title, headings, rows in sections:
        if rows:
            parts += [title, tabulate(rows[:MOST_ROWS], headings, tablefmt="simple", disable_numparse=True)]
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
    here = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname()) or "localhost"
    mail = message.EmailMessage(policy=policy.SMTP.clone(cte_type="7bit"))
    headers = {"From": ", ".join(config.email_from) or f"nmap-audit@{here}", "To": ", ".join(config.email_to),
               "Subject": config.email_subject or f"nmap-audit report for {here}", "Date": utils.localtime(),
               "Message-ID": utils.make_msgid("nmap-audit", here), "Auto-Submitted": "auto-generated"}
    for name, value in headers.items():
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
FIRST_OF = (os.EX_SOFTWARE, os.EX_IOERR, os.EX_UNAVAILABLE, 2, 0)  # which of its statuses an audit ends with

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
        make_directory(directory)
        with locked(directory):
            self.folder, self.record = self._begin(config, argv) if config.resume is None else self._take_up()
            self.scan_targets()
            self._send_kept()
            self.record |= {"status": "finished", "ended": time.strftime(TIME)}
            run = read_run(self.folder, self.record)
            if config.scan_only:
                self._note([run], told=False)
                self.statuses += [2 * (host.outcome not in ("audited", "down")) for host in run.hosts.values()]
            else:
                self.report([run], [run], scanned=True)

    def _begin(self, config: Config, argv: Sequence[str]) -> tuple[Path, dict[str, Any]]:
        record: dict[str, Any] = {
            "version": VERSION, "program": f"nmap-audit {__version__}", "status": "running", "told": False,
            "started": time.strftime(TIME), "ended": None, "command_line": list(argv), "rc": config.rc_text,
            "nmap": config.nmap, "adds_up": not any(map(OPEN.fullmatch, config.nmap)), "ips": config.ips,
            "listed": False, "unresolved": {}, "hosts": {}}
        folder = make_run(config.folders[0])
        write_file(folder / "run.json", json.dumps(record, indent=0).encode())
        return folder, record

    def _take_up(self) -> tuple[Path, dict[str, Any]]:
        config, directory = self.config, self.config.folders[0]
        runs = [run for run in map(read_run, list_runs(directory)) if config.resume in ("", run.folder.name)
                and run.record.get("status", "finished") != "finished"]
        if not runs:
            raise AuditError(os.EX_NOINPUT, f"{directory}: has no unfinished run {config.resume}".rstrip()
                             + "; start a new one, without --resume")
        folder, record = runs[-1].folder, runs[-1].record
        if (record["nmap"], record["ips"]) != (list(config.nmap), list(config.ips)):
            raise AuditError(os.EX_USAGE, f"--resume: {folder.name} had another NMAP or IPS; start without --resume")
        record["hosts"] = {host.address: noted(host) for host in runs[-1].hosts.values()
                           if host.outcome in ("audited", "down")}
        return folder, record

    def process(self) -> None:
        """A report of what is stored."""
        runs = [read_run(_stored(path)) for path in self.config.folders]
        for run in (run for run in runs if not run.hosts):
            complain("\n".join(run.remarks))
            raise AuditError(os.EX_DATAERR, f"{run.folder}: holds no nmap XML; --dir-name names what to process")
        untold = [run for run in runs if run.record.get("status") == "finished" and not run.record["told"]
                  and list_runs(run.folder.parent)[-1:] == [run.folder]]
        self.report(runs, untold, scanned=False)

    def report(self, runs: Sequence[Run], untold: Sequence[Run], *, scanned: bool) -> None:
        """Tells what runs say, as one; of those not told before, run.json notes it. scanned: the one run is new."""
        config, states = self.config, [last_told(run, self.config.groups) for run in runs]
        known = [state for state, _ in states if state is not None]
        run = replace(runs[0], hosts=merged(itertools.chain(*(run.hosts.values() for run in runs))))
        before = dict(sorted(itertools.chain(*(state.items() for state in known)), key=lambda item: item[1].run_id))
        changes = find(run, fold(before, run, config.groups)[1], config.groups)
        remarks = itertools.chain(*(run.remarks for run in runs), *(remarks for _, remarks in states),
                                  (f"with the results in {run.folder}" for run in runs[1:]))
        report = make_report(replace(run, remarks=tuple(remarks)), changes, detail=config.detail,
                             headings=not config.no_csv_headings)
        for each, (state, _) in zip(runs, states):
            if each in untold:
                each.record["state"] = state_json(fold(state or {}, each, config.groups)[0])
        self._tell(run.folder, report, untold, first=not known, scanned=scanned)
        self.statuses.append(2 * bool(report.counts["not audited"]))

    def _tell(self, folder: Path, report: Report, untold: Sequence[Run], *, first: bool, scanned: bool) -> None:
        config, counts = self.config, report.counts
        changed = first or counts["findings"] or counts["gone"] or counts["missing"] or counts["regrouped"]
        wanted = config.tell == "always" or counts["not audited"] or config.tell == "changes" and changed
        text, table = report.head if config.no_human else report.text, "" if config.no_csv else report.csv
        mail = make_message(text, table, config).as_bytes() if wanted and config.email_to else b""
        name = folder.name if untold else time.strftime("%Y%m%d-%H%M%S-processed")
        unsent = (folder.parent if RUN_ID.fullmatch(folder.name) else folder) / "unsent" / f"{name}.eml"
        files = {folder / "report.txt": report.text.encode(), folder / "scan_report.csv": table.encode(),
                 folder / "report.eml": mail, unsent: mail}
        if mail and scanned:
            self.attempt(os.makedirs, unsent.parent, 0o700, True)
        for path, data in files.items() if scanned else ():
            if data:
                self.keep(path, data)
        self._note(untold, told=False)
        if config.no_human and not mail and (counts["not audited"] or counts["gone"]):
            say(text)  # what no row of the table says must not be lost
        if self._mail(mail, unsent, text) if mail else not wanted or self.attempt(
                show, table if config.no_human else text) is not None:
            self._note(untold, told=True)

    def _note(self, runs: Iterable[Run], *, told: bool) -> None:
        for run in runs:
            self.keep(run.folder / "run.json", json.dumps(run.record | {"told": told}, indent=0).encode())

    def _mail(self, mail: bytes, unsent: Path, text: str) -> bool:
        """Sends a mail that waits in `unsent`: whether it is told. What could not be kept there either is printed."""
        try:
            if refused := send_mail(mail, self.config):
                self.fail(os.EX_UNAVAILABLE, refused)
            self.attempt(unsent.unlink, True)
            return True
        except AuditError as error:
            with contextlib.suppress(OSError):
                if not unsent.exists():
                    unsent.parent.mkdir(mode=0o700, exist_ok=True)
                    write_file(unsent, mail)
            waits = f"; {unsent} keeps the report, the next run sends it" * unsent.exists()
            self.fail(error.status, f"{error}{waits}")
            return not waits and self.attempt(show, text) is not None

    def _send_kept(self) -> None:
        for unsent in sorted((self.config.folders[0] / "unsent").glob("[!.]*.eml")):
            if not self._mail(unsent.read_bytes(), unsent, ""):
                return
            run = read_run(self.config.folders[0] / unsent.stem)
            if "state" in run.record:  # made anew: what was told since it was made is not in it
                state = last_told(run, self.config.groups)[0] or {}
                run.record.update(status="finished", state=state_json(fold(state, run, self.config.groups)[0]))
                self._note([run], told=True)

def _stored(path: Path) -> Path:
    runs = [] if RUN_ID.fullmatch(path.name) else list_runs(path)
    finished = [run for run in runs if read_record(run)[0].get("status", "finished") == "finished"]
    if not path.is_dir() or runs and not finished:
        raise AuditError(os.EX_NOINPUT, f"{path}: holds no finished run; --dir-name names what to process")
    return finished[-1] if runs else path

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
        show(help_text() if "HELP" in given else f"nmap-audit {__version__}\n")
        return 0
    catch_signals()
    if not (path := given.get("CONFIG")):
        raise AuditError(os.EX_USAGE, "--config: is always needed; name the rc file, see nmap-audit(1)")
    text = read_rc(path)
    config = read_config(parse_rc(text, path), lines, text)
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
