"""Run nmap on many hosts at once, drop every open port that somebody already accepted, mail the rest.

    rc text --parse_rc--> Blocks --read_config--> Config --run_scan--> DIR-NAME/20261124-040654/{192.0.2.1.xml, ...,
    run.json} --read_run--> HostResults --fold(State)--> Changes --find(Groups)--> Changes --make_report--> Report
    --make_message--> EmailMessage --send_mail--> out

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
import socket
import subprocess
import sys
import tempfile
import time
import traceback
import unicodedata
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

STATUSES = {
    0: "the audit is complete and the report delivered, whatever it found",
    1: "what --fail-on names was found",
    2: "the audit is incomplete: not every host was audited",
    os.EX_USAGE: "the command line is wrong",
    os.EX_DATAERR: "no nmap XML where it was asked for",
    os.EX_NOINPUT: "the rc file or the run is not there",
    os.EX_UNAVAILABLE: "nmap cannot be started, or the mail could not be delivered",
    os.EX_SOFTWARE: "a bug of this program",
    os.EX_CANTCREAT: "DIR-NAME cannot be created",
    os.EX_IOERR: "a file cannot be written",
    os.EX_TEMPFAIL: "another audit is running on this DIR-NAME",
    os.EX_CONFIG: "the rc file is wrong",
    128: "ended by a signal (128 and its number)",
}
OUTCOMES = ("timed out", "failed", "cut off", "not scanned", "down", "audited")  # in the order of reports

T = TypeVar("T")


class AuditError(Exception):
    """What stops an audit: an exit status of STATUSES, and what standard error shows, one line a mistake."""

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


Mistakes = list[tuple[Where, str]]  # each: what is wrong; what to do


class Line(NamedTuple):
    """`WORD VALUE`: a line of the rc file, or an option. An empty word: no statement at all."""

    word: str
    value: str
    where: Where
    value_where: Where


class Block(NamedTuple):
    """The lines behind a head: `group NAME`, `end group NAME`, or None at the file's start."""

    head: Line | None
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """`ignore` or `expect` PORT PROTOCOL STATE SERVICE, in lower case; `until`: the first day it does not hold."""

    port: str
    protocol: str
    state: str
    service: str
    where: Where
    group: str
    until: datetime.date | None = None

    def __str__(self) -> str:
        return f"{os.path.basename(self.where.file)}:{self.where.line}"


@dataclass(frozen=True, slots=True)
class Group:
    """The hosts that any of `tags` matches, the rules that ignore ports of theirs, the ports they must show."""

    name: str
    where: Where
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


State = Mapping[str, Known]  # by address


@dataclass(frozen=True, slots=True)
class Finding:
    """A port of a host, or the host itself (then it has no port), and what is to be said of it: a word of TITLES.

    `rule` is what ignores the port or, where it is missing, expects it; `before` its state in the baseline.
    """

    host: HostResult
    change: str
    port: Port = Port(0, "", "")
    first_seen: str = ""
    before: str = ""
    rule: Rule | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run says beside its baseline and, once the rules were heard, what of it they accept."""

    findings: tuple[Finding, ...]
    asked: int  # hosts that were up in their last result and were asked again
    lost: int  # of those: down or failed now
    ignored: tuple[Finding, ...] = ()
    lapsing: tuple[Rule, ...] = ()  # end within 14 days, or have ended


@dataclass(frozen=True, slots=True)
class Report:
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


def shown(text: str, width: int = 200) -> str:
    """A stranger's text made visible, harmless and bounded: for a terminal, a mail's body, an error.

    What moves the cursor, hides or turns text (Unicode's categories C and Z, but for the blank) becomes an escape
    like `\\x1b`; more than `width` characters end in `...`.
    """
    text = text[:width + 1]
    if not (text.isascii() and text.isprintable()):
        text = "".join(char if char == " " or unicodedata.category(char)[0] not in "CZ" else ascii(char)[1:-1]
                       for char in text)
    return text if len(text) <= width else text[:max(width - 3, 0)] + "..."


# ---- Reading the rc file --------------------------------------------------------------------------------------------

RC_BYTES = 8 << 20

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
    VALUE: /(?:"[^"\n]*"|[^ \t\r\f\v\n#])(?:"[^"\n]*"|[^ \t\r\f\v\n]|[ \t\r\f\v]+(?![ \t\r\f\v\n#]))*/
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
        raise AuditError(os.EX_CONFIG, f"{path}:1:1: not a text file of at most 8 MiB; --config names the rc file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def parse_rc(text: str, file: str) -> tuple[Block, ...]:
    """The blocks of an rc file's text; the first holds what stands before any group."""
    tree = _parser().parse(text + "\n")
    sections = [node for node in tree.children if node.data == "section"]
    top = Block(None, tuple(_line(node, file) for node in tree.children if node.data != "section"))
    return top, *(Block(lines[0], tuple(lines[1:]))
                  for lines in ([_line(node, file) for node in section.children] for section in sections))


@functools.lru_cache(maxsize=1)
def _parser() -> Any:
    from lark import Lark  # --help and --version do without it
    return Lark(GRAMMAR, parser="lalr", lexer="contextual", propagate_positions=True)


def _line(node: Any, file: str) -> Line:
    """The statement of a tree's node; `group` and `end` are words like any other."""
    tokens = {token.type: token for token in node.children}
    where = Where(file, node.meta.line, node.meta.column)
    word = {"begin": "group", "end": "end"}.get(node.data, str(tokens.get("NAME", "")))
    value = tokens.get("VALUE", tokens.get("JUNK", ""))
    value_where = where._replace(column=getattr(value, "column", where.column))
    if word.upper() != "NMAP" and re.fullmatch(r'"[^"]*"', value):
        return Line(word, value[1:-1], where, value_where._replace(column=value_where.column + 1))
    return Line(word, str(value), where, value_where)


# ---- Understanding the rc file --------------------------------------------------------------------------------------

MOST_ADDRESSES = 1 << 20
PROTOCOLS = ("tcp", "udp", "sctp", "ip")
STATES = ("open", "closed", "filtered", "unfiltered", "open|filtered", "closed|filtered")
RULES = ("ignore", "expect")
RULE_FIELDS = ("port", "protocol", "state", "service")
DETAILS = {"none": "none", "low": "low", "med": "medium", "medium": "medium", "high": "high"}
FAIL_ON = ("findings", "new", "gone", "missing")


def _match(pattern: str, what: str, convert: Callable[[str], T]) -> Callable[[str], T]:
    """A converter of texts that match a pattern."""
    def check(text: str) -> T:
        if not re.fullmatch(pattern, text):
            raise ValueError(f"'{shown(text, 60)}' is not {what}")
        return convert(text)
    return check


def _one_of(choices: Mapping[str, T]) -> Callable[[str], T]:
    """A converter of the words of a table."""
    def check(text: str) -> T:
        if text.lower() not in choices:
            raise ValueError(f"'{shown(text, 30)}' is not one of {', '.join(filter(None, choices))}"
                             + _meant(text.lower(), choices))
        return choices[text.lower()]
    return check


def _words(*words: str) -> Callable[[str], str]:
    return _one_of({word: word for word in words})


def _list_of(convert: Callable[[str], T]) -> Callable[[str], tuple[T, ...]]:
    return lambda text: tuple(convert(piece.strip()) for piece in text.split(",") if piece.strip())


def _meant(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean '{near[0]}'?" if near else "; see nmap-audit.rc(5)"


def _number(least: int) -> Callable[[str], int]:
    return _match("0|[1-9][0-9]{0,8}" if not least else "[1-9][0-9]{0,8}", f"a whole number from {least} on", int)


_text = _match(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+", "a text without control characters; take them out", str)
_server = _match(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?", "a server; write HOST or HOST:PORT", str)
_date = _match(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])", "a date; write one like 2027-03-31",
               datetime.date.fromisoformat)
_yes = _one_of({"yes": True, "on": True, "1": True, "": True, "no": False, "off": False, "0": False})


def _addresses(text: str) -> tuple[str, ...]:
    from email.utils import formataddr, getaddresses
    pairs = getaddresses([_text(text)])
    if not all(re.fullmatch(r"[!-~]+", address) and address.count("@") < 2 for _, address in pairs):
        raise ValueError(f"'{shown(text, 60)}' is not a mail address; write one like root@example.net")
    return tuple(map(formataddr, pairs))


def _nmap(text: str) -> tuple[str, ...]:
    """The words of NMAP. Refused is what says where nmap's output goes, or its targets come from."""
    try:
        words = tuple(shlex.split(_text(text)))
    except ValueError as error:
        raise ValueError(f"{str(error).lower()}; quote as in a shell") from None
    for word in words[nmap_at(words) + 1:]:
        name = re.sub("^--?", "", word).partition("=")[0].replace("_", "-")
        fine = any(option.startswith(name) and len(name) > 1 for option in ("open", "osscan-guess", "osscan-limit"))
        refused = r"o.*|i[LR].*|i|app?e?n?d?|append-.*|resu.*|styl.*|"
        if word.startswith("-") and re.fullmatch(refused, name) and not fine:
            raise ValueError(f"'{shown(word, 60)}' cannot stand here: nmap's targets and output are this program's; "
                             "take it out")
    return words


def nmap_at(words: Sequence[str]) -> int:
    """The index of the word that is nmap; the words before it (ssh HOST, srun, sudo) run it somewhere."""
    return next((i for i, word in enumerate(words) if os.path.basename(word) == "nmap"), 0)


def count_addresses(target: str) -> int:
    """How many addresses nmap makes of one target; a name counts as one.

    Raises ValueError where nmap would scan something else than what stands there, or nothing (nmap(1), TARGET
    SPECIFICATION): a mask that is too large, an octet over 255, a backward range, a leading zero, `1234`.
    """
    base, slash, mask = target.partition("/")
    width = 128 if ":" in base else 32
    if not re.fullmatch(r"[A-Za-z0-9.:/,*%_-]+", target):
        raise ValueError(f"'{shown(target, 60)}' is no target; write an address, a subnet, a range or a name")
    if slash and not (re.fullmatch(r"0|[1-9][0-9]{0,2}", mask) and int(mask) <= width):
        raise ValueError(f"'{shown(target, 60)}' has a mask that is not between /0 and /{width}, "
                         "nmap would scan something else; correct it")
    if width == 128:
        ipaddress.IPv6Address(base)
    size = 1 if width == 128 or _is_name(base) else math.prod(map(len, octets(base)))
    return size << (width - int(mask or width))


def octets(text: str) -> tuple[frozenset[int], ...]:
    """The four sets of numbers that `192.0.2,7.*` or `10.0.0.1-9` stand for; ValueError for any other text."""
    def numbers(piece: str) -> range:
        low, dash, high = ("0", "-", "255") if piece == "*" else piece.partition("-")
        if re.fullmatch("([0-9]|[1-9][0-9]+)?", low) and re.fullmatch("([0-9]|[1-9][0-9]+)?", high) and piece:
            least, most = int(low or 0), int(high or 255) if dash else int(low)
            if least <= most <= 255:
                return range(least, most + 1)
        raise ValueError(f"'{shown(text, 60)}' has an octet '{shown(piece, 20)}', nmap would scan something else or "
                         "nothing; octets are numbers up to 255, with no 0 in front, or ranges from low to high")

    parts = text.split(".")
    if len(parts) != 4:
        raise ValueError(f"'{shown(text, 60)}' has not four octets, nmap would scan something else or nothing; "
                         "write an address like 192.0.2.1, or a name")
    return tuple(frozenset(itertools.chain(*map(numbers, part.split(",")))) for part in parts)


def _is_name(text: str) -> bool:
    """`web1.example.net`; not `1234` or `0x7f.1`, which resolvers take for addresses."""
    return bool(re.fullmatch(r"(?!-)([\w-]+\.)*(?!0x)[\w-]*[a-z][\w-]*\.?", text, re.ASCII | re.IGNORECASE))


def _targets(text: str) -> tuple[str, ...]:
    """The targets of one IPS value: a comma parts them only where whole targets stand on both its sides."""
    def whole(target: str) -> bool:
        base = target.partition("/")[0]
        return re.fullmatch(r"[0-9*,-]+(\.[0-9*,-]+){3}(/[0-9]*)?", target) is not None \
            or ":" in target and "," not in target or _is_name(base)

    pieces = [piece.strip() for piece in text.split(",")]
    parted: dict[int, tuple[str, ...]] = {len(pieces): ()}
    for start in reversed(range(len(pieces))):
        ends = (end for end in range(start + 1, len(pieces) + 1)
                if end in parted and whole(",".join(pieces[start:end])))
        if end := next(ends, 0):
            parted[start] = (",".join(pieces[start:end]), *parted[end])
    targets = parted.get(0, (text,))
    return tuple(target for target in targets if count_addresses(target))


class Option(NamedTuple):
    """How a setting's text becomes a value of Config, where it may stand and what --help says of it."""

    convert: Callable[[str], Any]
    heading: str
    metavar: str = ""  # empty: a switch
    help: str = ""  # empty: the setting has no option
    aliases: tuple[str, ...] = ()  # other names in the rc file
    variable: bool = True  # may stand in the rc file
    many: bool = False  # repeated ones add up
    optional: bool = False  # the option's value may be left out
    name: str = ""  # EMAIL-TO

    @property
    def flag(self) -> str | None:
        """`--email-to`, or None for what may stand in the rc file only."""
        return "--" + self.name.lower() if self.help else None


def _option(default: T, *settings: Any, **more: Any) -> T:
    described: T = field(default=default, metadata={"option": Option(*settings, **more)})
    return described


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings in force, each field with the option that sets it; then what the rc file says beside them."""

    config: str = _option("", _text, "settings", "FILE", "the rc file; always needed", variable=False)
    ips: tuple[str, ...] = _option((), _targets, "scanning", "TARGETS", "nmap targets: addresses, subnets, names",
                                   many=True)
    nmap: tuple[str, ...] = _option(("nmap", "-F"), _nmap, "scanning", "CMD", "nmap and its options (nmap -F)")
    max_threads: int = _option(10, _number(1), "scanning", "N", "nmap processes at a time (10)")
    dir_name: tuple[str, ...] = _option((), _list_of(_text), "settings", "DIR[,DIR2..]", "where runs are stored")
    resume: str | None = _option(None, str, "scanning", "RUN-ID", "go on with the newest unfinished run, or with this",
                                 variable=False, optional=True)
    scan_only: bool = _option(False, _yes, "scanning", help="scan and store, report nothing")
    process_only: bool = _option(False, _yes, "reporting", help="report from what is stored, scan nothing")
    detail: str = _option("low", _one_of(DETAILS), "reporting", "LEVEL", "none, low, med or high (low)")
    no_human: bool = _option(False, _yes, "reporting", help="no table in the text")
    no_csv: bool = _option(False, _yes, "reporting", help="no scan_report.csv")
    no_csv_headings: bool = _option(False, _yes, "reporting", help="scan_report.csv without its first line")
    baseline: str = _option("", _text, "reporting", "RUN", "compare with this run, not with the last results",
                            variable=False)
    email_to: tuple[str, ...] = _option((), _addresses, "mailing", "ADDR", "who gets the report (printed if nobody)",
                                        many=True)
    email_from: tuple[str, ...] = _option((), _addresses, "mailing", "ADDR", "the sender", ("FROM",))
    email_subject: str = _option("", _text, "mailing", "TEXT", "the subject", ("SUBJECT",))
    tell: str = _option("changes", _words("changes", "always", "errors"), "mailing", "WHEN",
                        "changes (default), always or errors")
    sendmail: str = _option("", _text, "mailing", "PATH")
    smtp_server: str = _option("", _server, "mailing", "HOST[:PORT]")
    smtp_tls: str = _option("none", _words("none", "starttls", "tls"), "mailing", "HOW")
    smtp_user: str = _option("", _text, "mailing", "NAME")
    smtp_password_file: str = _option("", _text, "mailing", "FILE")
    keep_runs: int = _option(0, _number(0), "settings", "N", "keep the last N finished runs only (0: all)")
    fail_on: tuple[str, ...] = _option((), _list_of(_words(*FAIL_ON)), "reporting", "WHAT",
                                       f"exit 1 for any of: {','.join(FAIL_ON)}", variable=False)
    quiet: bool = _option(False, _yes, "settings", help="no status lines, for cron")
    groups: tuple[Group, ...] = ()
    wheres: Mapping[str, tuple[Where, ...]] = field(default_factory=dict)  # by field: where its values stand
    rc_text: str = ""

    @property
    def folders(self) -> tuple[Path, ...]:
        """The directories of DIR-NAME, the first being the one that is written."""
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        default = "/var/lib/nmap-audit" if os.geteuid() == 0 else os.path.join(state, "nmap-audit")
        return tuple(map(Path, self.dir_name or (default,)))


OPTIONS: tuple[Option, ...] = tuple(each.metadata["option"]._replace(name=each.name.upper().replace("_", "-"))
                for each in fields(Config) if each.metadata)
VARIABLES = {name: option for option in OPTIONS if option.variable for name in (option.name, *option.aliases)}


def read_config(blocks: Sequence[Block], options: Sequence[Line], rc_text: str = "") -> Config:
    """The settings in force: the command line's over the file's over the defaults.

    Raises AuditError with every mistake of the file, or of the command line, one a line.
    """
    wrong: Mistakes = []
    mistakes: Mistakes = list(_structure(blocks))
    groups = tuple(_read_group(head, lines, mistakes) for head, lines in blocks if head and head.word == "group")
    lines = [line for head, lines in blocks if not head or head.word == "end" for line in lines]
    found, wheres = _read_lines(lines, VARIABLES, mistakes)
    given, places = _read_lines(options, {option.name: option for option in OPTIONS}, wrong)
    for status, several in ((os.EX_USAGE, wrong), (os.EX_CONFIG, mistakes)):
        if several:
            raise AuditError(status, "\n".join(f"{where}: {text}" for where, text in sorted(several)))
    return Config(**{**found, **given}, groups=groups, wheres={**wheres, **places}, rc_text=rc_text)


def _read_lines(lines: Iterable[Line], known: Mapping[str, Option], mistakes: Mistakes) -> tuple[Any, Any]:
    """Values, and the places they come from, by field of Config."""
    values: dict[str, Any] = {}
    wheres: dict[str, tuple[Where, ...]] = {}
    for line in lines:
        option = known.get(line.word.upper())
        if not option:
            mistakes.append((line.where, _stray(line, VARIABLES, (*TAGS, *RULES), "outside any group")))
            continue
        name = option.name.lower().replace("-", "_")
        try:
            if option.metavar and not line.value and not option.optional:
                raise ValueError(f"the value of {option.name} is missing; write it behind the name")
            value = option.convert(line.value)
            values[name] = values.get(name, ()) + value if option.many else value
            wheres[name] = (*wheres.get(name, ()), line.value_where)
        except ValueError as error:
            mistakes.append((line.value_where, str(error)))
    return values, wheres


def _stray(line: Line, here: Iterable[str], elsewhere: Iterable[str], place: str) -> str:
    """What is wrong with a line whose word is not one of those that may stand here."""
    word = shown(line.word, 30)
    if not word:
        return f"'{shown(line.value, 30)}' begins with no word; write WORD VALUE, or # before a comment"
    if {word.lower(), word.upper()} & set(elsewhere):
        return f"'{word}' stands {place}; variables stand above the groups, tags and rules inside one"
    known = sorted(here)
    return f"unknown word '{word}'" + _meant(word.upper() if known[0].isupper() else word.lower(), known)


def _structure(blocks: Sequence[Block]) -> Iterator[tuple[Where, str]]:
    """What is wrong with the heads of groups and their ends: each group ends, under its own name, before the next."""
    names: dict[str, Where] = {}
    opened: Line | None = None
    for head, _ in (*blocks[1:], Block(None, ())):
        if head and head.word == "end":
            what, _, name = _folded(head.value).partition(" ")
            if not opened:
                yield head.where, "'end' where no group is open; take it out, or write 'group NAME' above"
            elif what != "group" or name and name.strip('"') != _folded(opened.value):
                yield head.where, f"'end {shown(head.value, 60)}' where group '{opened.value}' is open; " \
                    f"write 'end group {opened.value}'"
        elif opened:
            yield opened.where, f"group '{opened.value}' is not ended; write 'end group {opened.value}' below its rules"
        opened = head if head and head.word == "group" else None
        if opened and names.setdefault(_folded(opened.value), opened.where) != opened.where:
            yield opened.where, f"group '{opened.value}' stands on line {names[_folded(opened.value)].line} already; " \
                "give one of them another name"


def _folded(name: str) -> str:
    return " ".join(name.lower().split())


def _read_group(head: Line, lines: Iterable[Line], mistakes: Mistakes) -> Group:
    """A group; what is wrong with its lines is added to the mistakes."""
    before = len(mistakes)
    tags: list[tuple[str, Where, Callable[[HostResult], bool]]] = []
    rules: dict[str, list[Rule]] = {word: [] for word in RULES}
    for line in lines:
        word = line.word.lower()
        try:
            if word in TAGS:
                tags.append((word, line.where, TAGS[word](_text(line.value))))
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
    return Group(head.value, head.where, tuple(tag for *_, tag in tags), *map(tuple, rules.values()))


def _read_rule(line: Line, group: str) -> Rule:
    """`PORT PROTOCOL STATE SERVICE [until DATE]`: the original's order is lost, so fields are told apart by kind."""
    words = re.sub(r"(?<!\S)([\d*-]+)/(\w+|\*)(?!\S)", r"\1 \2", line.value.lower()).split()
    until = _date(words[-1]) if words[-2:-1] == ["until"] else None
    words = words[:-2] if until else words
    kinds: dict[str, str] = {}
    for word in words:
        if word != "*" and kinds.setdefault(kind := _kind(word), word) is not word:
            raise ValueError(f"two fields of one kind, '{shown(kinds[kind], 30)}' and '{shown(word, 30)}'; "
                             "write PORT PROTOCOL STATE SERVICE")
    if len(words) != 4:
        lacking = ", ".join(kind for kind in RULE_FIELDS if kind not in kinds)
        raise ValueError(f"{len(words)} fields in place of four{' (no ' + lacking + ')' if lacking else ''}; "
                         "write PORT PROTOCOL STATE SERVICE, * for any")
    port, protocol, state, service = (kinds.get(kind, "*") for kind in RULE_FIELDS)
    return Rule(port, protocol, state, service, line.where, group, until)


def _kind(word: str) -> str:
    if re.fullmatch(r"[0-9]+-[0-9]+|[0-9*]*[0-9][0-9*]*", word):
        low, dash, high = word.partition("-")
        if dash and int(low) > int(high) or any(end.isdigit() and int(end[:9]) > 65535 for end in (low, high)):
            raise ValueError(f"port '{shown(word, 30)}' is over 65535 or runs backwards; write a number, N-M or *")
        return "port"
    return "protocol" if word in PROTOCOLS else "state" if word in STATES else "service"


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
    if ":" in text or "/" in text:
        net = ipaddress.ip_network(text, strict=False)
        low, high = str(net.network_address), str(net.broadcast_address)
    if ":" in text or "/" in text or high.count(".") == 3:
        first, last = numeric(low), numeric(high)
        if not 9 > first[0] == last[0] or first > last:
            raise ValueError(f"'{shown(text, 60)}' is no range of addresses; write one like 192.0.2.1-192.0.2.9")
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

RUN_ID = re.compile(r"\d{8}-\d{6}")
PIECE = 1 << 20  # expat before 2.6 takes minutes for a large attribute that comes in small pieces
HOST_BYTES = 64 << 20  # no document of one host is longer
KEPT = frozenset(("nmaprun", "scaninfo", "finished", "hosts", "status", "address", "hostname", "osmatch", "osclass",
                  "extraports", "ports"))
FORBIDDEN = re.compile(rb"&#(?:0*(?:[0-8]|1[1245-9]|2\d|3[01])|x0*(?:[0-8bcef]|1[\da-f]));", re.IGNORECASE)
VERSION = 1  # of run.json


class Document(DefusedExpatParser):
    """nmap's XML (its DTD, and files of nmap 3.27 to 7.97), read as it is fed: order and completeness don't matter.

    `top` holds the attributes of the elements outside hosts, by name; `hosts` what each <host> says, its outcome as
    far as the host alone tells; `counted` the ports of each that nmap listed or summed up. `problem`: why it is not
    whole, `remark`: what was odd. Entities and external references are refused, the DOCTYPE that nmap writes is not.
    """

    def __init__(self) -> None:
        super().__init__()
        self.top: dict[str, list[dict[str, str]]] = {name: [] for name in KEPT}
        self.hosts: list[HostResult] = []
        self.counted: list[int] = []
        self.problem = self.remark = ""
        self._part = self.top
        self._port: dict[str, Any] = {}
        self._ports: list[dict[str, Any]] = []

    @property
    def run(self) -> dict[str, str]:
        """The attributes of <nmaprun>."""
        return self.top["nmaprun"][0] if self.top["nmaprun"] else {}

    def start_element(self, name: str, attrs: Any) -> None:
        """Called by expat."""
        if name == "port":
            self._port = attrs
            self._ports.append(attrs)
        elif name in ("state", "service"):
            self._port[name] = attrs  # no attribute of <port> has these names
        elif name in KEPT:
            self._part[name].append(attrs)
        elif name in ("host", "hosthint"):
            self._part = {name: [] for name in KEPT} | {"host": [attrs]}
            self._ports = []

    def end_element(self, name: str) -> None:
        """Called by expat."""
        if name in ("host", "hosthint"):
            if name == "host":
                self.end_host()
            self._part = self.top

    def end_host(self) -> None:
        """Keeps what the current <host> holds, whole or not."""
        part, ports = self._part, [_port(**_port_words(port)) for port in self._ports]
        if part is not self.top and (host := _host(part, ports)):
            self.hosts.append(host)
            self.counted.append(len(ports) + sum(_int(extra.get("count")) for extra in part["extraports"]))


def read_xml(file: Any) -> Document:
    """The document in a binary file. Characters that XML forbids, and nmap has written, become question marks."""
    document = _parse(iter(lambda: file.read(PIECE), b""))
    if "invalid token" in document.problem:  # bytes over 0x7f, by an nmap that declared no encoding
        file.seek(0)
        document = _parse([file.read(HOST_BYTES).decode("latin-1").encode()])
        document.remark = "read as Latin-1"
    return document


def _parse(pieces: Iterable[bytes]) -> Document:
    document = Document()
    try:
        for piece in pieces:
            document.feed(FORBIDDEN.sub(b"?", piece))
        document.close()
    except (SAXException, DefusedXmlException, ValueError, LookupError) as error:
        document.problem = f"not whole: {shown(' '.join(str(error).split()), 120)}"
        document.end_host()
    end = document.top["finished"]
    if not document.problem and not (document.run and end):
        document.problem = "not whole: nmap's closing lines are missing"
    elif end and end[-1].get("exit", "success") != "success":
        document.problem = f"nmap gave up: {shown(end[-1].get('errormsg', ''), 120)}"
    return document


def _int(text: str | None) -> int:
    return int(text) if text and text.isascii() and text.isdigit() else 0


def _port_words(port: dict[str, Any]) -> dict[str, str]:
    service = port.get("service", {})
    words = [service.get("product"), service.get("version"), f"({info})" if (info := service.get("extrainfo")) else ""]
    return {"number": port.get("portid", ""), "protocol": port.get("protocol", ""), "service": service.get("name", ""),
            "state": port.get("state", {}).get("state", "unknown"), "version": " ".join(filter(None, words))}


@functools.lru_cache(maxsize=1 << 14)  # a network has many equal ports: they share memory
def _port(number: str, protocol: str, state: str, service: str, version: str) -> Port:
    return Port(_int(number), protocol, state, service, version)


def _host(part: dict[str, list[dict[str, str]]], ports: list[Port]) -> HostResult | None:
    """What a <host> says; None where it has no address. One of a list scan (of unknown state) is not scanned."""
    addresses = [each["addr"] for each in part["address"] if each.get("addrtype") != "mac" and each.get("addr")]
    state = part["status"][0].get("state", "") if part["status"] else "up"
    if not addresses or state not in ("up", "down", "unknown"):
        return None
    attrs = part["host"][0]
    names = dict.fromkeys(name for each in part["hostname"] if (name := each.get("name")))
    unique = {port.key: port for port in ports}
    outcome = {"up": "audited", "down": "down"}.get(state, "not scanned")
    outcome = "timed out" if attrs.get("timedout") == "true" else outcome
    reason = "its --host-timeout passed" if outcome == "timed out" else "" if part["ports"] else "no ports"
    return HostResult(addresses[0], outcome, reason, tuple(names), _best_os(part), tuple(unique.values()),
                      start=_int(attrs.get("starttime")),
                      seconds=max(_int(attrs.get("endtime")) - _int(attrs.get("starttime")), 0))


def _best_os(part: dict[str, list[dict[str, str]]]) -> tuple[str, ...]:
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

    strict: their ports must add up (listed and summed up, as many as scaninfo says), which shows lost writes of nmap.
    asked: who it is that nmap counts as up and, because of --open, does not list; empty without --open.
    """
    looked = tuple((info.get("protocol", ""), info.get("services", "")) for info in document.top["scaninfo"])
    services = sum(_int(info.get("numservices")) for info in document.top["scaninfo"])
    start = _int(document.run.get("start"))
    results = []
    for host, counted in zip(document.hosts, document.counted):
        outcome, reason = host.outcome, host.reason
        if document.problem:
            outcome, reason = "cut off", document.problem
        elif outcome == "audited" and reason and services:
            outcome, reason = "timed out", "nmap lists none of its ports"
        elif outcome == "audited" and strict and counted != services:
            outcome, reason = "cut off", f"its ports do not add up: nmap scanned {services} and shows {counted}"
        elif outcome in ("audited", "down"):
            reason = ""
        results.append(replace(host, outcome=outcome, reason=reason, looked=looked, file=file, start=start))
    if asked and not results and not document.problem and [each.get("up") for each in document.top["hosts"]] == ["1"]:
        return [HostResult(asked, "audited", looked=looked, file=file, start=start)]
    return list(merged(results).values())


def merged(results: Iterable[HostResult]) -> dict[str, HostResult]:
    """Results by address: of several, the latest and, of the others, the ports that later ones did not look at."""
    found: dict[str, HostResult] = {}
    for host in sorted(results, key=lambda host: host.start):
        found[host.address] = _merge(found[host.address], host) if host.address in found else host
    return found


def _merge(earlier: HostResult, later: HostResult) -> HostResult:
    listed = {port.key for port in later.ports}
    kept = tuple(port for port in earlier.ports if port.key not in listed and not (
        earlier.start < later.start and looked_at(later.looked, port.number, port.protocol)))
    return replace(later, ports=kept + later.ports, looked=join_looked(earlier.looked, later.looked),
                   names=later.names or earlier.names, os=later.os or earlier.os)


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


def read_record(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A run's run.json and remarks on it; empty where it cannot be used: then the XML tells."""
    try:
        record = json.loads((folder / "run.json").read_bytes())
        if isinstance(record, dict) and record.get("version") == VERSION and isinstance(record.get("hosts"), dict):
            return record, ()
        return {}, (f"{folder}/run.json is not of version {VERSION}; its XML is read in its place",)
    except FileNotFoundError:
        return {}, ()
    except (OSError, ValueError, RecursionError):
        return {}, (f"{folder}/run.json cannot be read; the XML is read in its place",)


def read_targets(folder: Path) -> dict[str, tuple[str, ...]]:
    """The addresses of a run's target list, in nmap's order, each with the names it was given by."""
    targets: dict[str, tuple[str, ...]] = {}
    for name in ("targets.xml", "targets6.xml"):
        with contextlib.suppress(FileNotFoundError), open(folder / name, "rb") as file:
            for host in read_xml(file).hosts:
                targets[host.address] = (*targets.get(host.address, ()), *host.names)
    return targets


def read_run(folder: Path) -> Run:
    """What a run directory, or any folder with nmap's XML, holds: a result for each address that was asked for.

    A folder with a target list is this program's: its addresses are the list's, and their ports must add up.
    """
    record, remarks = read_record(folder)
    targets = read_targets(folder)
    found, more = _read_files(folder, bool(targets))
    if not targets and not record:
        return Run(folder, found, record, (*remarks, *more))
    hosts = {target: HostResult(target, "failed", reason) for target, reason in record.get("unresolved", {}).items()}
    for address in itertools.chain(targets, set(record.get("hosts", ())) - set(targets)):
        host = _recorded(address, found.get(address.partition("%")[0]) or found.get(result_name(address)), record)
        hosts[address] = replace(host, names=tuple(dict.fromkeys((*host.names, *targets.get(address, ())))))
    return Run(folder, hosts, record, (*remarks, *more))


def _recorded(address: str, found: HostResult | None, record: Mapping[str, Any]) -> HostResult:
    """An address's result, from its file and from what run.json says of it; the worse of both."""
    note = record.get("hosts", {}).get(address)
    host = replace(found or HostResult(address, "not scanned", "there is no result of it"), address=address)
    if not note:
        return host if record.get("status") != "finished" else HostResult(address, "not scanned", "it was passed over")
    if note["outcome"] == "audited" and host.start != note["start"]:
        return HostResult(address, "cut off", "its file is not there, or not of this run", seconds=note["seconds"])
    return replace(host, outcome=note["outcome"], reason=note["reason"], seconds=note["seconds"])


def noted(host: HostResult) -> dict[str, Any]:
    """What run.json notes of a host."""
    return {"outcome": host.outcome, "reason": host.reason, "seconds": host.seconds, "start": host.start}


def _read_files(folder: Path, own: bool) -> tuple[dict[str, HostResult], list[str]]:
    """The results in a folder's files that hold nmap's XML, whatever they are called, by address; and remarks."""
    results: list[HostResult] = []
    remarks: list[str] = []
    for path in sorted(folder.iterdir()):
        if not path.is_file() or own and path.name.startswith("targets"):
            continue
        try:
            with open(path, "rb") as file:
                start = file.read(4096)
                xml = re.match(rb"(\xef\xbb\xbf)?\s*<(\?xml|!--|!DOCTYPE nmaprun|nmaprun)|\xff\xfe|\xfe\xff", start)
                if not (xml and b"nmaprun" in start.replace(b"\0", b"") or path.suffix.lower() == ".xml"):
                    continue
                file.seek(0)
                document = read_xml(file)
        except OSError as error:
            remarks.append(f"{path}: {error.strerror}")
            continue
        opened = own and has_open(shlex.split(document.run.get("args", "")))
        judged = judge(document, str(path), strict=own and not opened, asked=path.name if opened else "")
        results += (host for host in judged if host.outcome != "not scanned")
        if problem := document.problem or document.remark:
            remarks.append(f"{path}: {problem}")
    return merged(results), remarks


# ---- Keeping files --------------------------------------------------------------------------------------------------


def write_file(path: Path, data: bytes) -> None:
    """Puts data under a name, synced: whole or, with an OSError, not at all. A link of that name is replaced."""
    handle, part = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(handle)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    names = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(names)
    os.close(names)


class Store:
    """Writes files; of those that cannot be written the first is told of, by `complain`, and `failed` is set."""

    def __init__(self, complain: Callable[[str], None]) -> None:
        self.complain, self.failed = complain, False

    def keep(self, path: Path, data: bytes) -> bool:
        """Writes a file, and says whether that went well."""
        try:
            path.parent.mkdir(exist_ok=True, mode=0o700)
            write_file(path, data)
            return True
        except OSError as error:
            if not self.failed:
                self.complain(f"{path}: {error.strerror}; free the disk, what could not be written is told once more")
            self.failed = True
            return False

    def save(self, folder: Path, record: Mapping[str, Any]) -> bool:
        """Writes run.json, old or new but never half."""
        return self.keep(folder / "run.json", json.dumps(record, indent=0).encode())


def make_directory(path: Path) -> None:
    """Makes DIR-NAME, mode 0700. AuditError where that fails, or where somebody else could put links into it."""
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        owners = {os.lstat(path).st_uid, os.stat(path).st_uid}
    except OSError as error:
        raise AuditError(os.EX_CANTCREAT, f"{path}: {error.strerror}; DIR-NAME names where runs are stored") from None
    if owners - {0, os.geteuid()} or not os.access(path, os.W_OK | os.X_OK):
        raise AuditError(os.EX_CANTCREAT, f"{path}: belongs to somebody else, or cannot be written; "
                         "DIR-NAME names where runs are stored")


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Holds DIR-NAME/lock, which says who and since when; the kernel lets go of it however the program ends."""
    with open(os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise AuditError(os.EX_TEMPFAIL, f"{directory}: another audit is running ({shown(file.read(80).strip())}); "
                             "wait for its end, or use another DIR-NAME") from None
        file.truncate(0)
        file.write(f"pid {os.getpid()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield


def list_runs(directory: Path) -> list[Path]:
    """The run folders of DIR-NAME, oldest first."""
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if RUN_ID.fullmatch(path.name) and path.is_dir()
                  and not path.is_symlink())


def make_run(directory: Path) -> Path:
    """A new run folder, named by the local time; by a later one where the clock stepped back, so that names sort."""
    moment = datetime.datetime.now().replace(microsecond=0)
    runs = list_runs(directory)
    if runs:
        moment = max(moment, datetime.datetime.strptime(runs[-1].name, "%Y%m%d-%H%M%S") + datetime.timedelta(seconds=1))
    folder = directory / moment.strftime("%Y%m%d-%H%M%S")
    folder.mkdir(mode=0o700)
    return folder


# ---- Scanning -------------------------------------------------------------------------------------------------------

TARGET_OPTIONS = {"exclude": 1, "excludefile": 1, "exclude-file": 1, "dns-servers": 1, "system-dns": 0, "6": 0}
FILE_OPTIONS = ("excludefile", "exclude-file", "datadir", "servicedb", "versiondb", "script-args-file")
NMAP_VARIABLES = ("NMAP_ARGS", "NMAP_PRIVILEGED", "NMAP_UNPRIVILEGED", "NMAPDIR")
LIST_BYTES = 256 << 20
ERROR_BYTES = 4096
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def has_open(words: Iterable[str]) -> bool:
    """Whether --open, in any spelling of nmap's, is among its words: then it hides hosts without open ports."""
    return any(re.fullmatch("--?op(e(n)?)?", word) for word in words)


def find_program(name: str) -> str | None:
    """A program's full path; looked for where cron's PATH does not reach, too."""
    places = ("/usr/local/bin", "/usr/local/sbin", "/usr/bin", "/usr/sbin", "/bin", "/sbin", "/usr/lib")
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *places)))


def nmap_words(nmap: Sequence[str]) -> list[str]:
    """NMAP's words with full paths, since nmap is started where no stranger's script lies. AuditError without nmap."""
    program = find_program(nmap[0])
    if not program:
        raise AuditError(os.EX_UNAVAILABLE, f"{shown(nmap[0])}: not found; install it (Debian: apt-get install nmap), "
                         "or name it in NMAP")
    words = [os.path.abspath(program), *nmap[1:]]
    for at, word in enumerate(words[:-1]):
        if nmap_at(nmap) == 0 and re.sub("^--?", "", word) in FILE_OPTIONS and os.path.exists(words[at + 1]):
            words[at + 1] = os.path.abspath(words[at + 1])
    return words


def list_words(words: Sequence[str]) -> list[str]:
    """The command that lists targets: of nmap's options only those that the list depends on (-sL refuses others)."""
    at = nmap_at(words) + 1
    kept, rest = [*words[:at], "-sL", "-n"], iter(words[at:])
    for word in rest:
        name, equals, _ = re.sub("^--?", "", word).replace("_", "-").partition("=")
        if word.startswith("-") and name in TARGET_OPTIONS:
            kept += [word, *itertools.islice(rest, 0 if equals else TARGET_OPTIONS[name])]
    return kept


async def run_nmap(words: Sequence[str], limit: int = HOST_BYTES) -> Output:
    """Runs a command to its end, or until it wrote `limit` bytes; whatever happens, nothing of it is left running."""
    started = time.monotonic()
    env = {name: value for name, value in os.environ.items() if name not in NMAP_VARIABLES}
    # A kill -9 of this program must end nmap too, and only the kernel is left to see to that.
    guard = [setpriv, "--pdeathsig", "KILL"] if (setpriv := find_program("setpriv")) else []
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*guard, *words, stdin=asyncio.subprocess.DEVNULL, stdout=pipe,
                                                   stderr=pipe, env=env, cwd="/", start_new_session=True)
    assert process.stdout and process.stderr
    readers = [asyncio.create_task(_head(process.stdout, limit, process)), asyncio.create_task(_tail(process.stderr))]
    try:
        status = await process.wait()
        await asyncio.wait(readers, timeout=5)  # a grandchild may hold the pipes for ever
    finally:
        for reader in readers:
            reader.cancel()
        await _end(process)
    out, err = ((bytes(reader.result()) if reader.done() and not reader.cancelled() else b"") for reader in readers)
    return Output(status, out, err.decode("utf-8", "replace"), time.monotonic() - started)


async def _head(stream: asyncio.StreamReader, limit: int, process: asyncio.subprocess.Process) -> bytearray:
    kept = bytearray()
    while piece := await stream.read(1 << 16):
        kept += piece
        if len(kept) > limit:
            _signal(process, signal.SIGKILL)
            break
    return kept


async def _tail(stream: asyncio.StreamReader) -> bytes:
    kept = b""
    while piece := await stream.read(1 << 16):
        kept = (kept + piece)[-ERROR_BYTES:]
    return kept


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _end(process: asyncio.subprocess.Process) -> None:
    """Ends a process and its group: asked first, two seconds later killed."""
    if process.returncode is None:
        _signal(process, signal.SIGTERM)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(process.wait(), 2)
    _signal(process, signal.SIGKILL)
    await process.wait()


HOST_ELEMENT = re.compile(rb"<host[ >].*?</host>\s*", re.DOTALL)  # nmap escapes every < that is no tag's


def split_hosts(out: bytes) -> list[bytes]:
    """A batch's output as one document a host, its element byte for byte; the last one has none, or a broken one."""
    spans = [match.span() for match in HOST_ELEMENT.finditer(out)]
    head, tail = (out[:spans[0][0]], out[spans[-1][1]:]) if spans else (out, b"")
    if len(spans) > 1:
        head = re.sub(rb"<hosthint>.*?</hosthint>\s*", b"", head, flags=re.DOTALL)
    return [*(head + out[start:end] + tail for start, end in spans), head + tail]


def batch_results(output: Output, batch: Sequence[str], opened: bool) -> dict[str, tuple[HostResult, bytes]]:
    """The outcome of each address of a batch, with the document that shows it (empty: there is none)."""
    found: dict[str, tuple[HostResult, bytes]] = {}
    for data in split_hosts(output.out):
        document = read_xml(io.BytesIO(data))
        for host in judge(document, "", strict=not opened, asked=batch[0] if opened else ""):
            found.setdefault(host.address, (host, data))
    listed = sum(host.outcome != "down" for host, _ in found.values())
    results = {}
    for address in batch:
        host, data = found.get(address.partition("%")[0]) or (_unlisted(document, address, listed, len(batch)), b"")
        if output.status:
            ended = f"was killed by {signal.Signals(-output.status).name}" if output.status < 0 else \
                f"ended with status {output.status}"
            host = replace(host, outcome="failed", reason=f"nmap {ended}: {_last_words(output.err)}".rstrip(": "))
        elif host.outcome != "audited" and host.outcome != "down" and not data:
            data = output.out
        results[address] = replace(host, address=address, seconds=round(output.seconds, 1)), data
    return results


def _unlisted(rest: Document, address: str, listed: int, batch: int) -> HostResult:
    """The outcome of an address that nmap's output does not list."""
    totals = rest.top["hosts"][-1] if rest.top["hosts"] else {}
    if rest.problem:
        return HostResult(address, "cut off", rest.problem)
    if _int(totals.get("total")) < batch:
        return HostResult(address, "failed", "nmap did not look at it")
    if _int(totals.get("up")) > listed:
        return HostResult(address, "cut off", "nmap counted a host as up and did not list it")
    return HostResult(address, "down", start=_int(rest.run.get("start")))


def _last_words(err: str) -> str:
    lines = [line.strip() for line in err.splitlines() if line.strip()]
    return shown(" / ".join(lines[-2:]), 300)


class Scan:
    """A scan at work in a run folder: what is known of it goes to `record` (run.json), status lines to `say`."""

    def __init__(self, config: Config, folder: Path, record: dict[str, Any], store: Store,
                 say: Callable[[str], None]) -> None:
        self.config, self.folder, self.record, self.store, self.say = config, folder, record, store, say
        self.words = nmap_words(config.nmap)
        self.total = 0
        self.saved = self.cost = 0.0  # when run.json was last written, and how long that took

    def run(self) -> None:
        """Scans each address of the target list that has no result yet. AuditError where a signal ended it."""
        try:
            asyncio.run(self._run())
        except asyncio.CancelledError:
            raise AuditError(128 + self.record["signal"], "ended by a signal; --resume goes on") from None

    async def _run(self) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()

        def stop(number: int) -> None:
            self.record["signal"] = number
            assert task
            task.cancel()

        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup's SIGHUP stays ignored
                loop.add_signal_handler(number, stop, number)
        await self._list()
        addresses = list(read_targets(self.folder))
        self.total = len(addresses)
        zones = {target.partition("%")[0]: target for target in self.config.ips if "%" in target}
        await self._scan([zones.get(each, each) for each in addresses if each not in self.record["hosts"]])
        self.save()

    async def _list(self) -> None:
        """Has nmap expand the targets, IPv4 and IPv6 apart; stores its lists, notes what does not resolve."""
        if self.record["listed"]:
            return
        words = list_words(self.words)
        whole = True
        for name, six in (("targets.xml", False), ("targets6.xml", True)):
            targets = [each for each in self.config.ips if ("-6" in words or ":" in each) == six]
            if not targets:
                continue
            extra = ["-6"] if six and "-6" not in words else []
            output = await run_nmap([*words, *extra, "-oX", "-", "--", *targets], LIST_BYTES)
            self.store.keep(self.folder / name, output.out)
            unresolved = re.findall(r'Failed to resolve "([^"\n]*)"', output.err)
            reason = "nmap could not resolve it"
            if output.status or read_xml(io.BytesIO(output.out)).problem:
                unresolved, reason = targets, f"nmap could not list it: {_last_words(output.err)}"
            self.record["unresolved"] |= {shown(target): reason for target in unresolved}
            whole = whole and not unresolved
        self.record["listed"] = True
        if whole and not read_targets(self.folder):
            where = ", ".join(map(str, self.config.wheres.get("ips", ())))
            raise AuditError(os.EX_CONFIG, f"{where}: every address of IPS is excluded; "
                             "change IPS, or NMAP's --exclude")
        self.save()

    async def _scan(self, addresses: Sequence[str]) -> None:
        """Gives addresses to nmap processes, of which MAX-THREADS run at a time."""
        semaphore = asyncio.Semaphore(_threads(self.config.max_threads))
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
        """Scans a batch; an address whose nmap died, or whose result is cut off, is tried once more, alone."""
        six = ["-6"] if ":" in batch[0] and "-6" not in self.words else []
        output = await run_nmap([*self.words, *six, "-oX", "-", "--", *batch], HOST_BYTES * len(batch))
        for address, (host, data) in batch_results(output, batch, has_open(self.words)).items():
            died = host.outcome == "cut off" or host.outcome == "failed" and not 0 <= output.status < 128
            if died and not again:
                await self._batch([address], again=True)
            else:
                self._keep(host, data)

    def _keep(self, host: HostResult, data: bytes) -> None:
        """Stores a result: its document first, then its outcome."""
        if host.outcome != "down" and data:
            name = result_name(host.address)
            name = name if host.outcome in ("audited", "timed out") else name[:-3] + "part"
            if not self.store.keep(self.folder / name, data) and host.outcome == "audited":
                host = replace(host, outcome="failed", reason="its result could not be written")
        self.record["hosts"][host.address] = noted(host)
        count = sum(port.state != "closed" for port in host.ports)
        what = f"{count} port{'s' if count != 1 else ''}" if host.outcome == "audited" else host.outcome
        names = f" {shown(host.names[0], 60)}" if host.names else ""
        done = len(self.record["hosts"])
        self.say(f"[{done}/{self.total}] {host.address}{names} {what}, {host.seconds:.1f} s")
        if time.monotonic() - self.saved > 10 + 50 * self.cost:  # often, but never the larger part of the work
            self.save()

    def save(self) -> None:
        """Writes run.json as it stands."""
        started = time.monotonic()
        self.store.save(self.folder, self.record)
        self.saved = time.monotonic()
        self.cost = self.saved - started


def _threads(wanted: int) -> int:
    """As many processes as asked for, and as the limit of open files allows (each needs three)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(1, min(wanted, (hard - 24) // 4))


# ---- Remembering ----------------------------------------------------------------------------------------------------


def fold(state: State, run: Run, groups: Sequence[Group]) -> tuple[dict[str, Known], Changes]:
    """The state after a run, and what the run changed. What a run did not look at stays as it was, and is not gone."""
    after, day = dict(state), run_day(run)
    findings: list[Finding] = []
    for host in run.hosts.values():
        known = state.get(host.address, Known())
        findings += (_compare(host, port, known, day) for port in host.ports)
        if host.outcome == "audited":
            after[host.address] = _remember(host, known, run, groups)
            findings += _gone(host, known)
            findings += _host_changes(host, known, after[host.address], bool(state))
        elif host.outcome == "down" and known.up:
            after[host.address] = known._replace(up=False)
            findings.append(Finding(host, "host gone"))
    asked = [host for host in run.hosts.values() if state.get(host.address, Known()).up]
    return after, Changes(tuple(findings), len(asked), sum(host.outcome in ("down", "failed") for host in asked))


def run_day(run: Run) -> str:
    """The date of a run, like 2026-11-24: its name's or, in a folder of other origin, that of its newest result."""
    if RUN_ID.fullmatch(run.folder.name):
        return f"{run.folder.name[:4]}-{run.folder.name[4:6]}-{run.folder.name[6:8]}"
    return datetime.date.fromtimestamp(max((host.start for host in run.hosts.values()), default=0)).isoformat()


def _compare(host: HostResult, port: Port, known: Known, day: str) -> Finding:
    """A listed port beside what is known of it."""
    if port.key in known.ports:
        before, _, first_seen = known.ports[port.key]
        return Finding(host, "standing" if before == port.state else "changed", port, first_seen, before)
    looked = looked_at(known.looked, port.number, port.protocol)
    return Finding(host, "new" if looked else "first look", port, day)


def _gone(host: HostResult, known: Known) -> Iterator[Finding]:
    """What was open, was looked at again, and is closed or not listed."""
    there = {port.key for port in host.ports if port.state != "closed"}
    for key, (state, service, first_seen) in known.ports.items():
        number, _, protocol = key.partition("/")
        if state in ("open", "open|filtered") and key not in there and looked_at(host.looked, int(number), protocol):
            yield Finding(host, "gone", Port(int(number), protocol, state, service), first_seen, state)


def _host_changes(host: HostResult, known: Known, now: Known, any_known: bool) -> Iterator[Finding]:
    if any_known and not known.run_id:
        yield Finding(host, "host new")
    if known.run_id and known.groups != now.groups and (known.name, known.os) != (now.name, now.os):
        yield Finding(host, "regrouped")


def _remember(host: HostResult, known: Known, run: Run, groups: Sequence[Group]) -> Known:
    """What an audited result makes of what was known: ports it did not look at are kept."""
    kept = {key: value for key, value in known.ports.items()
            if not looked_at(host.looked, int(key.partition("/")[0]), key.partition("/")[2])}
    now = {port.key: (port.state, port.service, known.ports.get(port.key, ("", "", run_day(run)))[2])
           for port in host.ports if port.state != "closed"}
    names = tuple(group.name for group in groups if any(tag(host) for tag in group.tags))
    return Known(run.folder.name, True, (*host.names, "")[0], (*host.os, "")[0], names,
                 join_looked(known.looked, host.looked), kept | now)


def state_json(state: State) -> dict[str, Any]:
    """A state as run.json holds it: port lists once each, since most hosts share them."""
    lists = {text: at for at, text in enumerate(dict.fromkeys(
        text for known in state.values() for _, text in known.looked))}
    hosts = {address: known._asdict() | {"looked": {protocol: lists[text] for protocol, text in known.looked}}
             for address, known in state.items()}
    return {"lists": list(lists), "hosts": hosts}


def read_state(data: Mapping[str, Any]) -> dict[str, Known]:
    """The state in run.json."""
    lists = data["lists"]
    return {address: Known(**{
        **known, "groups": tuple(known["groups"]), "ports": {key: tuple(port) for key, port in known["ports"].items()},
        "looked": tuple((protocol, lists[at]) for protocol, at in known["looked"].items())})
        for address, known in data["hosts"].items()}


def last_state(directory: Path, before: str, groups: Sequence[Group]) -> tuple[dict[str, Known] | None, list[str]]:
    """What the last run that was told, of those before a run-id, left; None where there was none; and remarks.

    Runs whose run.json is lost are read from their XML.
    """
    replay: list[Path] = []
    remarks: list[str] = []
    state = None
    for folder in reversed([run for run in list_runs(directory) if run.name < before]):
        record, more = read_record(folder)
        remarks += more
        if not record:
            replay.append(folder)
        elif record.get("told") and "state" in record:
            state = read_state(record["state"])
            break
    for run in (read_run(folder) for folder in reversed(replay)):
        if any(host.outcome == "audited" for host in run.hosts.values()):
            state = fold(state or {}, run, groups)[0]
    return state, remarks


# ---- Filtering ------------------------------------------------------------------------------------------------------

PORT_CHANGES = ("new", "changed", "first look", "standing")


def find(run: Run, changes: Changes, groups: Sequence[Group]) -> Changes:
    """The changes with what any rule of any group accepts put apart, and what is expected and missing added."""
    today = datetime.date.fromisoformat(run_day(run))
    members = {address: [group for group in groups if any(tag(host) for tag in group.tags)]
               for address, host in run.hosts.items()}
    told, ignored = [], []
    for finding in changes.findings:
        rules = (rule for group in members[finding.host.address] for rule in (*group.ignores, *group.expects)
                 if finding.change in PORT_CHANGES and accepts(rule, finding.port, today))
        if rule := next(rules, None):
            ignored.append(replace(finding, rule=rule))
        elif finding.port.state != "closed":
            told.append(finding)
    told += (Finding(host, "missing", Port(_int(rule.port), rule.protocol, rule.state, rule.service), rule=rule)
             for host in run.hosts.values() if host.outcome == "audited"
             for group in members[host.address] for rule in group.expects if not _met(rule, host, today))
    every = (rule for group in groups for rule in (*group.ignores, *group.expects))
    lapsing = (rule for rule in every if rule.until and rule.until <= today + datetime.timedelta(days=14))
    return replace(changes, findings=tuple(told), ignored=tuple(ignored), lapsing=tuple(lapsing))


def accepts(rule: Rule, port: Port, today: datetime.date) -> bool:
    """Whether all four fields of a rule that still holds match a port."""
    if rule.until and today >= rule.until:
        return False
    low, dash, high = rule.port.partition("-")
    number = int(low) <= port.number <= int(high) if dash else like(rule.port, str(port.number))
    return number and rule.protocol in ("*", port.protocol) and rule.state in ("*", port.state) \
        and like(rule.service, port.service.lower())


def _met(rule: Rule, host: HostResult, today: datetime.date) -> bool:
    """Whether a host shows what a rule expects; `closed` is shown too by a port that was looked at and not listed."""
    if any(accepts(rule, port, today) for port in host.ports) or rule.until and today >= rule.until:
        return True
    return rule.state == "closed" and rule.port.isdigit() and looked_at(host.looked, int(rule.port), rule.protocol) \
        and not any(str(port.number) == rule.port and port.protocol == rule.protocol for port in host.ports)


# ---- Reporting ------------------------------------------------------------------------------------------------------

MOST_ROWS = 20000  # of a table
TITLES = {
    "missing": "Missing: expected and not there", "new": "New", "changed": "Changed", "first look": "First look",
    "standing": "Standing: told before, neither accepted nor closed", "gone": "Gone",
    "host gone": "Hosts gone: up before, down now", "host new": "Hosts new",
    "regrouped": "Hosts that are of other groups, since their name or OS guess changed",
}
COLUMNS: dict[str, Callable[[Finding], str]] = {
    "HOST": lambda each: " ".join((each.host.address, *(f"({name})" for name in each.host.names[:1]))),
    "ADDRESS": lambda each: each.host.address,
    "NAME": lambda each: "".join(each.host.names[:1]),
    "OS": lambda each: "".join(each.host.os[:1]),
    "PORT": lambda each: each.rule.port if each.rule and each.change == "missing" else str(each.port.number or ""),
    "PROTOCOL": lambda each: each.port.protocol,
    "STATE": lambda each: each.port.state,
    "STATE NOW": lambda each: f"{each.before}\u2192{each.port.state}" if each.change == "changed" else each.port.state,
    "SERVICE": lambda each: each.port.service,
    "VERSION": lambda each: each.port.version,
    "CHANGE": lambda each: each.change,
    "FIRST SEEN": lambda each: each.first_seen,
    "LINE": lambda each: str(each.rule or ""),
    "GROUP": lambda each: each.rule.group if each.rule else "",
}
LOW = {"HOST": "HOST", "PORT": "PORT", "PROTOCOL": "PROTOCOL", "STATE": "STATE NOW", "SERVICE": "SERVICE"}
FULL = {"ADDRESS": "ADDRESS", "NAME": "NAME", "OS": "OS", **dict(list(LOW.items())[1:]), "VERSION": "VERSION",
        "FIRST SEEN": "FIRST SEEN"}
CSV = {"IP": "ADDRESS", "Hostname": "NAME", "OS": "OS", "Port": "PORT", "Protocol": "PROTOCOL", "State": "STATE",
       "Service": "SERVICE", "Version": "VERSION", "Change": "CHANGE", "First Seen": "FIRST SEEN"}
WIDTHS = {"HOST": 60, "NAME": 40, "OS": 30, "SERVICE": 24, "VERSION": 40, "GROUP": 30}


class Section(NamedTuple):
    """A part of a report: a table under a title."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


def make_report(run: Run, changes: Changes, *, detail: str, headings: bool) -> Report:
    """The report of a run at a level of DETAILS; a phone's preview of the mail shows its first line."""
    hosts = sorted(run.hosts.values(), key=lambda host: numeric(host.address))
    of = {change: [each for each in changes.findings if each.change == change] for change in TITLES}
    audited, down = (sum(host.outcome == outcome for host in hosts) for outcome in ("audited", "down"))
    counts = {"findings": sum(len(of[change]) for change in PORT_CHANGES), "new": len(of["new"]),
              "gone": len(of["gone"]) + len(of["host gone"]), "missing": len(of["missing"]),
              "lapsing": len(changes.lapsing), "not audited": len(hosts) - audited - down}
    head = [f"{audited} of {len(hosts) - down} hosts audited, {counts['findings']} findings, {counts['gone']} gone"]
    if changes.lost * 2 > changes.asked:
        head.append(f"WARNING: {changes.lost} of {changes.asked} hosts that were up before are down or failed now: "
                    "the scanner's own network may be broken")
    if of["missing"]:
        head.append(f"WARNING: {len(of['missing'])} expected services are missing; the scanner may be blind")
    ends = (f"Note: rule {rule} {'ended' if str(rule.until) <= run_day(run) else 'will end'} on {rule.until}"
            for rule in changes.lapsing)
    foot = [f"{len(changes.ignored)} ports ignored by {len({each.rule for each in changes.ignored})} rules",
            f"{len(hosts)} addresses: {audited} audited, {down} down, {counts['not audited']} not audited",
            *ends, *(f"Note: {shown(remark, 300)}" for remark in run.remarks), f"Raw data: {run.folder}"]
    bad = list(_not_audited(hosts))
    tables = [] if detail == "none" else [_table(title, of[change], detail) for change, title in TITLES.items()]
    more = _everything(run, hosts, changes) if detail == "high" else []
    return Report(_lay_out(head, [*tables, *bad, *more], foot), _lay_out(head, bad, foot),
                  make_csv(changes.findings, headings), counts)


def make_csv(findings: Iterable[Finding], headings: bool) -> str:
    """scan_report.csv: RFC 4180, with the byte-order mark that spreadsheets want; empty where there is no row."""
    rows = [[_cell(COLUMNS[name](each)) for name in CSV.values()] for each in _sorted(findings) if each.port.state]
    file = io.StringIO()
    csv.writer(file).writerows([list(CSV), *rows] if headings else rows)
    return "\ufeff" + file.getvalue() if rows else ""


def make_rows(findings: Iterable[Finding]) -> list[dict[str, str]]:
    """Findings as run.json holds them, by the names of scan_report.csv's columns."""
    return [{name.lower().replace(" ", "_"): COLUMNS[column](each) for name, column in CSV.items()}
            | ({"rule": str(each.rule)} if each.rule else {}) for each in _sorted(findings)]


def _cell(text: str) -> str:
    """A cell that no spreadsheet runs: what would begin a formula stands behind an apostrophe."""
    text = shown(text, 1000)
    return "'" + text if text.lstrip()[:1] in tuple("=+-@|%\uff1d\uff0b\uff0d\uff20") else text


def _sorted(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda each: (numeric(each.host.address), each.port.protocol, each.port.number))


def _table(title: str, findings: Sequence[Finding], detail: str, **more: str) -> Section:
    """Findings as a table; one of hosts has no columns for ports."""
    layout = {"HOST": "HOST"} if findings and not findings[0].port.state else LOW if detail == "low" else FULL
    columns = {**layout, **more}
    return Section(f"{title} ({len(findings)})", list(columns), [
        [shown(COLUMNS[name](each), WIDTHS.get(name, 60)) for name in columns.values()] for each in _sorted(findings)])


def _not_audited(hosts: Sequence[HostResult]) -> Iterator[Section]:
    """The hosts that were not audited, a table for each reason, since a thousand of them often have but one."""
    reasons: dict[tuple[int, str], list[HostResult]] = {}
    for host in hosts:
        if host.outcome not in ("audited", "down"):
            reasons.setdefault((OUTCOMES.index(host.outcome), host.reason), []).append(host)
    for (outcome, reason), several in sorted(reasons.items()):
        yield Section(f"Not audited ({len(several)}): {OUTCOMES[outcome]}: {shown(reason, 400)}", ("HOST", "FILE"), [
            (COLUMNS["HOST"](Finding(replace(host, address=shown(host.address)), "")), host.file) for host in several])


def _everything(run: Run, hosts: Sequence[HostResult], changes: Changes) -> Iterator[Section]:
    """What DETAIL high adds: what was ignored and by which line, every host, what was run."""
    yield _table("Ignored", changes.ignored, "low", LINE="LINE", GROUP="GROUP")
    loud = {each.host.address for each in changes.findings}
    yield Section(f"Hosts ({len(hosts)})", ("HOST", "OUTCOME", "SECONDS", "FILE"), [
        (shown(COLUMNS["HOST"](Finding(host, "")), 60), host.outcome if host.outcome != "audited"
         or host.address in loud else "clean", f"{host.seconds:.1f}", host.file) for host in hosts])
    yield Section("Run", ("WHAT", "VALUE"), [
        ("nmap command", shown(shlex.join(run.record.get("nmap", ["unknown"])), 400)),
        ("ports of each host", "add up" if run.record.get("adds_up") else "not added up (--open, or other XML)")])


def _lay_out(head: list[str], sections: Iterable[Section], foot: list[str]) -> str:
    """A report's text; a table is cut after MOST_ROWS rows, and says so."""
    from tabulate import tabulate
    parts = ["\n".join(head)]
    for title, headings, rows in sections:
        if rows:
            parts += [title, tabulate(rows[:MOST_ROWS], headings, tablefmt="simple", disable_numparse=True)]
        if len(rows) > MOST_ROWS:
            parts.append(f"... and {len(rows) - MOST_ROWS} rows more")
    return "\n\n".join([*parts, "\n".join(foot)]) + "\n"


def tells(report: Report, tell: str, first: bool) -> bool:
    """Whether TELL wants a report told: decided when all rules have been heard."""
    if tell == "always" or report.counts["not audited"]:
        return True
    wanted = ("findings", "gone", "missing", "lapsing")
    return tell == "changes" and (first or any(report.counts[each] for each in wanted))


# ---- Mailing --------------------------------------------------------------------------------------------------------

SENDMAIL_SECONDS = 120
SMTP_SECONDS = 60
SMTP_WAITS = (1, 5, 15)  # seconds before another try, where one can help
SMTP_PORTS = {"none": 25, "starttls": 587, "tls": 465}


def make_message(body: str, attachment: str, config: Config) -> EmailMessage:
    """The mail that tells a report: To, From and Subject as given, the table of findings attached."""
    from email import message, policy, utils
    mail = message.EmailMessage(policy=policy.SMTP)
    mail["From"] = config.email_from or f"nmap-audit@{_this_host()}"
    mail["To"] = ", ".join(config.email_to)
    mail["Subject"] = config.email_subject or f"nmap-audit report for {_this_host()}"
    mail["Date"] = utils.localtime()
    mail["Message-ID"] = utils.make_msgid("nmap-audit", _this_host())
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(body)
    if attachment:
        mail.add_attachment(attachment.encode(), "text", "csv", filename="scan_report.csv", params={"charset": "utf-8"})
    return mail


def _this_host() -> str:
    name = re.sub(r"[^A-Za-z0-9.-]", "", socket.gethostname())
    return name or "localhost"


def send_mail(data: bytes, config: Config) -> str:
    """Delivers a whole mail to those its headers name, in bounded time; says whom the server refused, if only some.

    AuditError (69) where nobody got it.
    """
    if program := config.sendmail or (not config.smtp_server and find_program("sendmail")):
        return _to_sendmail(program, data)
    for wait in (*SMTP_WAITS, None):
        try:
            return _to_smtp(data, config)
        except OSError as error:  # smtplib's errors are OSErrors, too
            if wait is None or not _passes(error):
                raise AuditError(os.EX_UNAVAILABLE, f"mail not delivered: {shown(str(error), 300)}") from None
            time.sleep(wait)
    raise AssertionError


def _passes(error: OSError) -> bool:
    """Whether an error of SMTP may be over a little later: a 4xx answer, a lost connection."""
    import smtplib
    import ssl
    if isinstance(error, smtplib.SMTPRecipientsRefused):
        return all(400 <= code < 500 for code, _ in error.recipients.values())
    if isinstance(error, smtplib.SMTPResponseException):
        return 400 <= error.smtp_code < 500
    return not isinstance(error, (ssl.SSLError, smtplib.SMTPNotSupportedError))


def _to_sendmail(program: str, data: bytes) -> str:
    with subprocess.Popen([program, "-oi", "-t"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            _, err = process.communicate(data.replace(b"\r\n", b"\n"), SENDMAIL_SECONDS)
            why = f"status {process.returncode}: {_last_words(err[-ERROR_BYTES:].decode('utf-8', 'replace'))}"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            why = f"no answer in {SENDMAIL_SECONDS} s"
    if process.returncode:
        raise AuditError(os.EX_UNAVAILABLE, f"mail not delivered: {program} gave {why}")
    return ""


def _to_smtp(data: bytes, config: Config) -> str:
    import smtplib
    import ssl
    from email import message_from_bytes, utils
    host, _, port = re.sub(r"^\[(.*)\](?::(\d+))?$", r"\1 \2", config.smtp_server or "localhost").partition(
        " " if "[" in config.smtp_server else ":")
    context = ssl.create_default_context()
    connect = functools.partial(smtplib.SMTP_SSL, context=context) if config.smtp_tls == "tls" else smtplib.SMTP
    headers = message_from_bytes(data)
    sender, people = ([address for _, address in utils.getaddresses(headers.get_all(name, []))]
                      for name in ("From", "To"))
    with connect(host, int(port or SMTP_PORTS[config.smtp_tls]), timeout=SMTP_SECONDS) as server:
        if config.smtp_tls == "starttls":
            server.starttls(context=context)
        if config.smtp_user:
            server.login(config.smtp_user, Path(config.smtp_password_file).read_text().strip())
        refused = server.sendmail(sender[0], people, data)
    return "; ".join(f"{who}: refused: {code} {shown(why.decode('utf-8', 'replace'))}; the others have the report"
                     for who, (code, why) in refused.items())


# ---- Command line ---------------------------------------------------------------------------------------------------

LEGACY = ("config", "ips", "email-to", "email-from", "email-subject", "nmap", "detail", "max-threads", "no-human",
          "nohuman", "no-csv", "nocsv", "no-csv-headings", "nocsv-headings", "scan-only", "process-only", "dir-name",
          "quiet", "version", "help")
SWITCHES = (Option(_yes, "settings", help="the version, in one line", name="VERSION"),
            Option(_yes, "settings", help="this text", name="HELP"))
FLAGS = {option.name.lower(): option for option in (*OPTIONS, *SWITCHES) if option.help}
FIRST_OF = (os.EX_SOFTWARE, os.EX_IOERR, os.EX_UNAVAILABLE, 2, 1, 0)  # which status an audit ends with


def parse_options(argv: list[str]) -> Iterator[Line]:
    """The command line as settings, read as Perl's Getopt::Long reads it: any case, `-config`, abbreviations."""
    rest = list(reversed(argv))
    while rest:
        word = rest.pop()
        match = re.fullmatch(r"--?([A-Za-z][^=]*)(=.*)?", word, re.DOTALL)
        if not match:
            raise AuditError(os.EX_USAGE, f"'{shown(word, 60)}': is no option; see nmap-audit --help")
        option, value = _option_named(match[1].lower()), match[2] and match[2][1:]
        if match[1].lower() in ("csv", "human", "csv-headings"):
            value = "no"
        elif value is None and option.metavar and not (option.optional and (not rest or rest[-1].startswith("-"))):
            value = rest.pop() if rest else ""
        where = Where(option.flag or "")
        yield Line(option.name, value or "", where, where)


def _option_named(word: str) -> Option:
    """The option of a name or an abbreviation; a legacy name wins over a new one, a whole one over all."""
    named = {name: FLAGS[re.sub("^no(?=[ch])", "no-", name)] for name in LEGACY} | FLAGS
    if word in ("csv", "human", "csv-headings"):
        return FLAGS[f"no-{word}"]
    for names in ([word], LEGACY, tuple(named)):
        hits = {named[name].name: named[name] for name in names if name in named and name.startswith(word)}
        if len(hits) == 1:
            return hits.popitem()[1]
        if hits:
            raise AuditError(os.EX_USAGE, f"--{word}: may be --{', --'.join(hits).lower()}; write it in full")
    raise AuditError(os.EX_USAGE, f"--{shown(word, 60)}: unknown option" + _meant(word, named).replace(
        "nmap-audit.rc(5)", "nmap-audit --help"))


def help_text() -> str:
    """--help, from the tables: 80 columns, a block for each heading."""
    blocks = ["Usage: nmap-audit --config FILE [OPTION]...",
              "Run nmap on many hosts, drop every open port that a rule of the rc file accepts,\nmail the rest."]
    for heading in dict.fromkeys(option.heading for option in FLAGS.values()):
        options = [option for option in FLAGS.values() if option.heading == heading]
        blocks.append("\n".join([f"{heading.capitalize()}:", *(
            f"  {f'{option.flag} {option.metavar}':<26}{option.help}" for option in options)]))
    return "\n\n".join([*blocks, "Names may be abbreviated. See nmap-audit(1) and nmap-audit.rc(5)."]) + "\n"


def catch_signals() -> None:
    def stop(number: int, _: Any) -> None:
        raise AuditError(128 + number, f"ended by {signal.Signals(number).name}; --resume goes on")

    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)


def say(text: str) -> None:
    """Writes a line to standard error, which nobody may be reading."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        print(text, file=sys.stderr, flush=True)


def complain(text: str) -> None:
    """Tells of what is wrong, a line each."""
    for line in text.splitlines():
        say(f"nmap-audit: {line}")


def show(text: str) -> None:
    """Writes to standard output, in any locale. AuditError (74) where it cannot be written."""
    try:
        sys.stdout.buffer.write(text.encode())
        sys.stdout.flush()
    except (OSError, AttributeError, ValueError) as error:
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python complains once more when it ends
        raise AuditError(os.EX_IOERR, f"standard output: {error}; give it a place to write to") from None


class Audit:
    """A call of the program at work. What goes wrong is told at once and leaves its exit status; one of them counts."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.statuses = [0]
        self.store = Store(functools.partial(self.fail, os.EX_IOERR))

    def fail(self, status: int, text: str) -> None:
        """Tells of what went wrong."""
        complain(text)
        self.statuses.append(status)

    def status(self) -> int:
        """The exit status."""
        return min(self.statuses, key=FIRST_OF.index)

    def scan(self) -> int:
        """A scan and, without --scan-only, its report."""
        config = self.config
        wheres = ", ".join(map(str, config.wheres.get("ips", (config.config,))))
        if not config.ips or sum(map(count_addresses, config.ips)) > MOST_ADDRESSES:
            raise AuditError(os.EX_CONFIG, f"{wheres}: IPS names {'over a million' if config.ips else 'no'} addresses; "
                             f"name those to scan, {MOST_ADDRESSES} at most")
        if len(config.folders) > 1:
            raise AuditError(os.EX_USAGE, "--dir-name: several are for --process-only; name one")
        nmap_words(config.nmap)
        directory = config.folders[0].absolute()
        make_directory(directory)
        with locked(directory):
            self._scan(directory, *(self._begin(directory) if config.resume is None else self._take_up(directory)))
        return self.status()

    def _scan(self, directory: Path, folder: Path, record: dict[str, Any]) -> None:
        scan = Scan(self.config, folder, record, self.store, (lambda _: None) if self.config.quiet else say)
        try:
            scan.run()
        except AuditError:
            record["status"] = "interrupted"
            scan.save()
            raise
        catch_signals()
        self._send_kept(directory)
        run = read_run(folder)
        record |= {"status": "finished", "ended": _now()}
        if self.config.scan_only:
            self.store.save(folder, record)
            self.statuses += [2] * any(host.outcome not in ("audited", "down") for host in run.hosts.values())
        else:
            self._report(run, [folder], record, scanned=True)
        self._prune(directory)

    def _begin(self, directory: Path) -> tuple[Path, dict[str, Any]]:
        """A new run's folder and the start of its run.json."""
        config = self.config
        try:
            folder = make_run(directory)
        except OSError as error:
            raise AuditError(os.EX_CANTCREAT, f"{directory}: {error.strerror}; free the disk") from None
        record: dict[str, Any] = {
            "version": VERSION, "program": f"nmap-audit {__version__}", "run": folder.name, "status": "running",
            "started": _now(), "ended": None, "told": False, "nmap": list(config.nmap), "ips": list(config.ips),
            "adds_up": not has_open(config.nmap), "rc": config.rc_text, "listed": False, "unresolved": {}, "hosts": {}}
        if not self.store.save(folder, record):
            raise AuditError(os.EX_CANTCREAT, f"{folder}: cannot be written; free the disk")
        return folder, record

    def _take_up(self, directory: Path) -> tuple[Path, dict[str, Any]]:
        """An unfinished run, its whole results kept. AuditError where there is none, or it asked for something else."""
        config = self.config
        runs = ((folder, read_record(folder)[0]) for folder in reversed(list_runs(directory))
                if config.resume in ("", folder.name))
        unfinished = ((folder, record) for folder, record in runs if record.get("status", "finished") != "finished")
        folder, record = next(unfinished, (directory, {}))
        if not record:
            raise AuditError(os.EX_NOINPUT, f"{directory}: has no unfinished run {config.resume}".rstrip()
                             + "; start a new one, without --resume")
        for name, value in (("nmap", config.nmap), ("ips", config.ips)):
            if record[name] != list(value):
                raise AuditError(os.EX_USAGE, f"--resume: {folder.name} ran with another {name.upper()}; "
                                 "start a new run, without --resume")
        record["hosts"] = {host.address: noted(host) for host in read_run(folder).hosts.values()
                           if host.outcome in ("audited", "down")}
        return folder, record

    def process(self) -> int:
        """A report of what is stored."""
        folders = [_stored(path.absolute()) for path in self.config.folders]
        runs = [read_run(folder) for folder in folders]
        hosts = merged(host for run in runs for host in run.hosts.values())
        if not hosts:
            raise AuditError(os.EX_DATAERR, f"{folders[0]}: holds no nmap XML; --dir-name names what to process")
        others = [f"with the results in {folder}" for folder in folders[1:]]
        run = replace(runs[0], hosts=hosts, remarks=(*itertools.chain(*(run.remarks for run in runs)), *others))
        newest = list_runs(folders[0].parent)[-1:] == folders and run.record.get("status") == "finished"
        self._report(run, folders, run.record if newest and not run.record["told"] else None, scanned=False)
        return self.status()

    def _report(self, run: Run, folders: Sequence[Path], record: dict[str, Any] | None, *, scanned: bool) -> None:
        """Reports a run, the result of these folders; notes it in run.json (record) and, just scanned, beside it."""
        report, results, wanted = self._make(run, folders)
        text, table = report.head if self.config.no_human else report.text, "" if self.config.no_csv else report.csv
        mail = make_message(text, table, self.config).as_bytes() if wanted and self.config.email_to else b""
        name = time.strftime("%Y%m%d-%H%M%S-processed") if record is None else run.folder.name
        unsent = _home(folders[0]) / "unsent" / f"{name}.eml"
        files = {"report.txt": text.encode(), "scan_report.csv": table.encode(), "report.eml": mail}
        kept = {run.folder / name: data for name, data in files.items() if scanned} | {unsent: mail}
        for path, data in kept.items():
            if data:
                self.store.keep(path, data)
        if record is not None:
            record |= results
            self.store.save(run.folder, record)
        told = self._mail(mail, unsent, text) if mail else not wanted or self._show(
            table if self.config.no_human else text)
        if record is not None and told:
            record["told"] = True
            self.store.save(run.folder, record)
        failing = any(report.counts[name] for name in self.config.fail_on)
        self.statuses.append(2 if report.counts["not audited"] else int(failing))

    def _make(self, run: Run, folders: Sequence[Path]) -> tuple[Report, dict[str, Any], bool]:
        """The report of a run beside its baseline, what run.json says of it, and whether TELL wants it told."""
        config = self.config
        state: dict[str, Known] = {}
        remarks = list(run.remarks)
        first = True
        for folder in folders:
            known, more = self._baseline(folder) if config.baseline else \
                last_state(_home(folder), folder.name, config.groups)
            first = first and known is None
            state |= known or {}
            remarks += more
        after, changes = fold(state, run, config.groups)
        changes = find(run, changes, config.groups)
        report = make_report(replace(run, remarks=tuple(remarks)), changes, detail=config.detail,
                             headings=not config.no_csv_headings)
        results = {"counts": dict(report.counts), "findings": make_rows(changes.findings),
                   "ignored": make_rows(changes.ignored), "state": state_json(after)}
        return report, results, tells(report, config.tell, first)

    def _baseline(self, folder: Path) -> tuple[dict[str, Known], list[str]]:
        """The state that the run named by --baseline (its run-id, or its folder) alone gives."""
        named = _home(folder) / self.config.baseline
        if not named.is_dir():
            raise AuditError(os.EX_NOINPUT, f"--baseline: {named} is no folder; name a run-id of DIR-NAME, or a folder")
        return fold({}, read_run(named), self.config.groups)[0], []

    def _mail(self, mail: bytes, unsent: Path, text: str) -> bool:
        """Sends a mail that waits in `unsent`: whether it is told. What could not be kept there either is printed."""
        try:
            refused = send_mail(mail, self.config)
            unsent.unlink(missing_ok=True)
        except AuditError as error:
            waits = f"; the report is kept in {unsent}, the next run sends it" if unsent.exists() else ""
            self.fail(error.status, f"{error}{waits}")
            return not waits and self._show(text)
        if refused:
            self.fail(os.EX_UNAVAILABLE, refused)
        return True

    def _show(self, text: str) -> bool:
        """Prints a report: whether it is told."""
        try:
            show(text)
            return True
        except AuditError as error:
            self.fail(error.status, str(error))
            return False

    def _send_kept(self, directory: Path) -> None:
        """Sends what could not be delivered before, oldest first, until one still cannot be."""
        for unsent in sorted((directory / "unsent").glob("*.eml")):
            if not self._mail(unsent.read_bytes(), unsent, ""):
                return
            if record := read_record(directory / unsent.stem)[0]:
                record["told"] = True
                self.store.save(directory / unsent.stem, record)

    def _prune(self, directory: Path) -> None:
        """Removes what is older than the newest KEEP-RUNS finished runs, but no run whose mail still waits."""
        keep = self.config.keep_runs
        runs = list_runs(directory) if keep else []
        finished = [run for run in runs if read_record(run)[0].get("status") == "finished"]
        for run in runs if len(finished) > keep else []:
            if run < finished[-keep] and not (directory / "unsent" / f"{run.name}.eml").exists():
                shutil.rmtree(run, ignore_errors=True)


def _now() -> str:
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")


def _stored(path: Path) -> Path:
    """The folder that --process-only reads for a DIR-NAME: its newest finished run, or itself. AuditError for none."""
    if not path.is_dir():
        raise AuditError(os.EX_NOINPUT, f"{path}: is no folder; --dir-name names what to process")
    runs = [] if RUN_ID.fullmatch(path.name) else list_runs(path)
    finished = [run for run in runs if read_record(run)[0].get("status", "finished") == "finished"]
    if runs and not finished:
        raise AuditError(os.EX_NOINPUT, f"{path}: has no finished run yet; --resume goes on with {runs[-1].name}")
    return finished[-1] if runs else path


def _home(folder: Path) -> Path:
    """The DIR-NAME of a run's folder; a folder of other origin is its own."""
    return folder.parent if RUN_ID.fullmatch(folder.name) else folder


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments (None: the command line's) and returns its exit status."""
    os.umask(0o077)
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except AuditError as error:
        complain(str(error))
        return error.status
    except Exception as error:  # a bug: the one traceback that a user may see
        complain(f"a bug: {type(error).__name__}: {shown(str(error))}; please report it with what follows\n"
                 + traceback.format_exc().rstrip())
        return os.EX_SOFTWARE


def _run(argv: list[str]) -> int:
    lines = list(parse_options(argv))
    words = {line.word for line in lines}
    if words & {"HELP", "VERSION"}:
        show(help_text() if "HELP" in words else f"nmap-audit {__version__}\n")
        return 0
    catch_signals()
    path = next((line.value for line in lines if line.word == "CONFIG"), "")
    if not path:
        raise AuditError(os.EX_USAGE, "--config: is always needed; name the rc file, see nmap-audit(1)")
    text = read_rc(path)
    config = read_config(parse_rc(text, path), lines, text)
    if config.scan_only and config.process_only:
        raise AuditError(os.EX_USAGE, "--scan-only: stands beside --process-only; give one of them, or neither")
    return Audit(config).process() if config.process_only else Audit(config).scan()


if __name__ == "__main__":
    raise SystemExit(main())
