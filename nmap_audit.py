"""Run nmap on many hosts at once, drop every open port that somebody already accepted, mail the rest.

    rc text --parse_rc--> Blocks --read_config--> Config --Scanner--> Run: DIR-NAME/20261124-040654/{*.xml, run.json}
    Run --read_run--> HostResults --find(State, Groups)--> Changes --make_report--> Report
    Report --make_message--> mail --send_mail--> out

Arrows only go forward, and the run directory is the only thing that passes from scanning to reporting. A section
of this file uses itself and the sections above it; inside a section public names come before their helpers.
"""
from __future__ import annotations

import collections
import contextlib
import csv
import datetime
import difflib
import fcntl
import fnmatch
import functools
import gc
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
import threading
import time
import traceback
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, TextIO, TypeVar

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
        return f"{os.path.basename(self.file)}:{self.line}"

# `WORD VALUE`: a line of the rc file, or an option. An empty word: no statement at all.
Line = NamedTuple("Line", [("word", str), ("value", str), ("where", Where), ("value_where", Where)])

class Rule(NamedTuple):
    """`ignore` or `expect` PORT PROTOCOL STATE SERVICE, in lower case; from the day `until` on it does not hold."""
    word: str
    fields: Fields
    where: Where
    group: str
    until: str = ""
    def holds(self, day: str) -> bool:
        return not self.until or day < self.until

class Tag(NamedTuple):
    """`ip`, `hostname` or `os` VALUE: its hosts; they have one of its keys (see host_keys), or are asked."""
    word: str
    where: Where
    matches: Callable[[HostResult], bool]
    keys: tuple[Any, ...] = ()

@dataclass(frozen=True, eq=False)
class Group:
    """The hosts that any of `tags` matches, and the rules on their ports."""
    name: str
    tags: tuple[Tag, ...]
    rules: tuple[Rule, ...]
    @functools.cached_property
    def by_port(self) -> Mapping[str, Sequence[Rule]]:
        return gathered((rule.fields[0] if rule.fields[0].isdigit() else "*", rule) for rule in self.rules)
    @functools.cached_property
    def expected(self) -> Sequence[Rule]:
        return [rule for rule in self.rules if rule.word == "expect"]

class Port(NamedTuple):
    """A port that nmap lists one by one, in nmap's words; service and version may be empty."""
    number: int
    protocol: str
    state: str
    service: str = ""
    version: str = ""
    first_seen: str = ""  # a date
    @property
    def key(self) -> str:
        """`25/tcp`, as nmap prints it."""
        return f"{self.number}/{self.protocol}"
    @property
    def fields(self) -> Fields:
        return str(self.number), self.protocol, self.state, self.service.lower()

class HostResult(NamedTuple):
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
    file: str = ""  # its XML; in a State the name of its run
    def __str__(self) -> str:
        return f"{self.address} ({self.names[0]})" if self.names else self.address
NOBODY = HostResult("", "")

class Run(NamedTuple):
    """A run directory, read: results by address; run.json, empty where unusable; remarks on what was odd."""
    folder: Path
    hosts: Mapping[str, HostResult]
    record: dict[str, Any]
    remarks: tuple[str, ...] = ()

class Finding(NamedTuple):
    """A port of a host, or the host itself (then it has no port), and what is to be said of it: a word of TITLES."""
    host: HostResult
    change: str
    port: Port = Port(0, "", "")
    before: str = ""  # its state in the baseline
    rules: tuple[Rule, ...] = ()  # those that ignore it or, where it is missing, expect it
    why: str = ""  # of a host: its outcome, or clean; of a rule: that it has ended

class Changes(NamedTuple):
    """What a run says beside its baseline, with what the rules accept put apart."""
    findings: tuple[Finding, ...]
    asked: int  # hosts that were up in their last result and were asked again
    lost: int  # of those: down or failed now
    ignored: tuple[Finding, ...] = ()
    lapsing: tuple[Finding, ...] = ()  # rules that end within 14 days, or have ended

# A report as text, the same without its findings, scan_report.csv; and the counts that decide about telling it.
Report = NamedTuple("Report", [("text", str), ("head", str), ("csv", str), ("counts", Mapping[str, int])])
# What an nmap process left: its status (negative: killed by that signal), its output, the end of its errors.
Output = NamedTuple("Output", [("status", int), ("out", bytes), ("err", str), ("seconds", float)])
Mistakes = dict[Where, str]  # what is wrong; what to do: one a place
Block = tuple[Line | None, tuple[Line, ...]]  # the lines behind a head: `group NAME`, `end group NAME`, or the start
State = Mapping[str, HostResult]  # what is remembered, by address: the ports of all its results

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
    start: _NL? top section*
    top: _statement*
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
    top, *sections = ([_line(each, file) for each in node.children] for node in _parser().parse(text + "\n").children)
    return (None, tuple(top)), *((head, tuple(lines)) for head, *lines in sections)

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
RULES = ("ignore", "expect")
FIELDS = {"port": "N N-M", "protocol": "tcp udp sctp ip",  # a rule's, and what they may be beside `*`
          "state": "open closed filtered unfiltered open|filtered closed|filtered", "service": "NAME"}
SHIFTS = (8, 20, 64, 96, 128)  # an address without that many of its last bits is a key
NUMBER = "(?:0|[1-9][0-9]{0,4})"  # what begins with another 0 is octal to some
# What says where nmap's output goes or its targets come from, flags bundled before it; and what only begins so.
REFUSED = re.compile(r"--?([46AFfhnRrvVdq]*[oi]|ap|resu|sty|=|$)")
NOT_REFUSED = ("open", "osscan-guess", "osscan-limit", "iflist", "ip-options", "initial-rtt-timeout", "host-timeout",
               "noninteractive", "no-stylesheet")
NAME = r"(?!-)(?:[\w-]+\.)*(?!0[xX])(?=[\w-]*[A-Za-z])[\w-]+\.?"  # `1234`, `0x7f.1` are addresses to resolvers
TARGET = rf"(?a:(?:{NAME}|[0-9*,-]+(?:\.[0-9*,-]+){{3}})(?:/[^,\s]*)?|[^,\s:]*:[^,\s]*)"
def _meant(word: str, known: Iterable[str], otherwise: str = "see nmap-audit.rc(5)") -> str:
    near = [name for name in known if name.startswith(word[:5])] or difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else otherwise
def _addresses(text: str) -> Texts:
    from email.utils import formataddr, getaddresses
    return tuple(map(formataddr, getaddresses([text])))
def _words(text: str) -> Texts:
    return tuple(filter(None, map(str.strip, text.split(","))))
def _nmap(text: str) -> Texts:
    words = tuple(shlex.split(text))
    for last, word in zip(words[nmap_at(words):], words[nmap_at(words) + 1:]):
        name = word.strip("-").partition("=")[0].replace("_", "-")
        fine = len(name) > 1 and any(long.startswith(name) for long in NOT_REFUSED)
        stray = re.fullmatch(r"[\d*,-]+(\.[\d*,-]+){3}(/\d+)?", word) and not re.match("-([DS]|sI|-?(ex|dns|ip))", last)
        if stray or REFUSED.match(word) and not fine:
            raise ValueError(f"'{shown(word, 60)}' cannot stand here, it is this program's", "take it out")
    return words

def nmap_at(words: Sequence[str]) -> int:
    """The index of the word that is nmap; the words before it (ssh HOST, srun, sudo) run it somewhere."""
    return next((i for i, word in enumerate(words) if os.path.basename(word) == "nmap"), 0)

def count_addresses(target: str) -> int:
    """How many addresses a target is (nmap(1), TARGET SPECIFICATION). ValueError where nmap would read another one."""
    base, _, mask = target.partition("/")
    width = 128 if ":" in base else 32
    fine = len(target) <= MOST_LETTERS and re.fullmatch(rf"[\w.:,*%-]+(/{NUMBER})?", target, re.ASCII)
    with contextlib.suppress(ValueError):
        if fine and int(mask or 0) <= width and (width == 32 or numeric(base)[0] == 6):
            size = 1 if width == 128 or re.fullmatch(NAME, base, re.ASCII) else math.prod(map(len, octets(base)))
            return size << (width - int(mask or width))
    raise ValueError(f"'{shown(target, 60)}' is read as something else by nmap, or not at all",
                     f"write an address, an ASCII name, numbers up to 255 with - or , between, a subnet up to /{width}")

def octets(text: str) -> tuple[frozenset[int], ...]:
    """The four sets of numbers that `192.0.2,7.*` or `10.0.0.1-9` stand for; ValueError for any other text."""
    def numbers(piece: str) -> range:
        low, dash, high = piece.replace("*", "-").partition("-")
        return range(int(low or 0), int(high or (255 if dash else low)) + 1)
    piece = rf"(?:\*|{NUMBER}?-{NUMBER}?|{NUMBER})"
    fine = re.fullmatch(rf"{piece}(?:[,.]{piece})*", text)
    parts = [[numbers(each) for each in part.split(",")] for part in text.split(".")] if fine else []
    if len(parts) != 4 or not all(each and each[-1] < 256 for each in itertools.chain(*parts)):
        raise ValueError
    return tuple(frozenset(itertools.chain(*part)) for part in parts)
def _targets(text: str) -> Texts:
    """The targets of one IPS value: a comma parts them only where whole targets stand on both its sides."""
    found = re.findall(rf"({TARGET})\s*(?:,\s*(?=\S)|$)|(.+)", text)
    return tuple(target for target in map("".join, found) if count_addresses(target))

class Option(NamedTuple):
    """What the text behind a word must match and how it becomes a value, where it may stand, what it is for."""
    pattern: str
    heading: str
    metavar: str  # empty: a switch
    help: str
    convert: Callable[[str], Any] = str  # ValueError where it cannot be, best with what is wrong and what to do
    aliases: tuple[str, ...] = ()  # other names in the rc file
    option: bool = True  # may stand on the command line
    variable: bool = True  # may stand in the rc file
    many: bool = False  # repeated ones add up
    name: str = ""  # EMAIL-TO
    def read(self, line: Line) -> Any:
        if self.many and not line.value and not line.where.line:
            return ()  # `--email-to=` takes back what the file says
        try:
            if re.fullmatch(self.pattern, line.value):
                return self.convert(line.value)
        except ValueError as error:
            if len(error.args) == 2:
                raise
        what = f"'{shown(line.value, 60)}' cannot be" if line.value else "missing is the value of"
        raise ValueError(f"{what} {self.name}", f"write {self.metavar or 'one of yes, no or nothing'}: {self.help}")

TEXT = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+"
PLAIN = "(?![^\u2010-\u201f]*[\u2010-\u201f])"  # no dashes and quotes of word processors
PERSON = (r"\s*(?![^,]*[\x00-\x1f\x7f-\x9f])(?a:(?:\"[^\"]*\"\s*|[^<>\",@]*)<[^\s<>\",@]+(?:@[^\s<>\",@]+)?>|"
          r"[!#-'*+.-9=?^-~A-Z-]+(?:@[\w.:[\]-]+)?)\s*")
SERVER = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?"
Texts = tuple[str, ...]
def _opt(default: T, *settings: Any, **more: Any) -> T:
    described: T = field(default=default, metadata={"option": Option(*settings, **more)})
    return described
def _switch(heading: str, text: str) -> bool:
    return _opt(False, "(?i:yes|on|1|no|off|0|)", heading, "", text, lambda on: on.lower() not in ("no", "off", "0"))

@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings in force, each field with the option that sets it; then what the rc file says beside them."""
    config: str = _opt("", TEXT, "settings", "FILE", "the rc file; always needed", variable=False)
    ips: Texts = _opt((), TEXT, "scanning", "TARGETS", "addresses, subnets, names", _targets, many=True)
    nmap: Texts = _opt(("nmap", "-F"), rf"(?=.*\w){PLAIN}{TEXT}", "scanning", "CMD", "nmap's words, quoted", _nmap)
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
    fail_on: Texts = _opt((), "(?:(?:findings|new|gone|missing)(?:,(?!$)|$))+", "reporting", "WHAT[,WHAT..]",
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
        state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
        default = "/var/lib/nmap-audit" if os.geteuid() == 0 else os.path.join(state, "nmap-audit")
        return tuple(Path(name).absolute() for name in self.dir_name or (default,))

OPTIONS: tuple[Option, ...] = tuple(each.metadata["option"]._replace(name=each.name.upper().replace("_", "-"))
                                    for each in fields(Config) if each.metadata)
VARIABLES = {name: option for option in OPTIONS if option.variable for name in (option.name, *option.aliases)}
ADVICE = (  # what people write, tried on `WORD VALUE` of a line that is refused, and what to write instead
    (rf"({'|'.join(option.name for option in OPTIONS if not option.variable)}|HELP|VERSION)\b",
     r"it is an option of the command line only, --\1"),
    (r"end-?group\b|(?:group|end)\b.*\{| [{}[]", "write 'group NAME', and 'end group NAME' below its rules"),
    (r"(?:ignore|expect) .*(?:until|\d{4}-\d\d-\d\d)", "write the first day without the rule, like 'until 2027-03-31'"),
    (r"(?:ignore|expect) .*,", "write a rule for each, or a range N-M; no commas"),
    (r"(?:ip|hostname) .*[, ]|IPS .* ", "write one value a line"),
    (r"ip ([a-z].*)", r"write 'hostname \1'"),
    (r"hostname ([\da-f.:*]+)$", r"write 'ip \1'"))

def read_config(blocks: Sequence[Block], options: Sequence[Line], rc_text: str = "") -> Config:
    """The settings in force: the command line's over the file's. AuditError with all mistakes, one a line."""
    wrong, mistakes = Mistakes(), Mistakes()
    for line, what, do in _structure(blocks):
        mistakes.setdefault(line.where, _told(line, what, do))
    groups = tuple(_read_group(head, lines, mistakes) for head, lines in blocks if head and head.word == "group")
    lines = [line for head, lines in blocks if not head or head.word == "end" for line in lines]
    found = gathered(_read_lines(lines, VARIABLES, mistakes))
    found |= gathered(_read_lines(options, {option.name: option for option in OPTIONS}, wrong))
    for status, bad in ((os.EX_USAGE, wrong), (os.EX_CONFIG, mistakes)):
        if bad:
            raise AuditError(status, "\n".join(f"{where}: {shown(text, 900)}" for where, text in sorted(bad.items())))
    values: dict[str, Any] = {option.name.lower().replace("-", "_"): sum((value for _, value in read), ())
                              if option.many else read[-1][1] for option, read in found.items()}
    where = [str(line.value_where) for option, read in found.items() if option.name == "IPS" for line, _ in read]
    return Config(**values, groups=groups, ips_where=", ".join(where), rc_text=rc_text)
def _read_lines(lines: Iterable[Line], words: Mapping[str, Option], mistakes: Mistakes) -> Iterator[tuple[Any, Any]]:
    for line in lines:
        option = words.get(line.word.lower()) or words.get(line.word.upper())
        try:
            if not option:
                raise ValueError(*_stray(line, words))
            yield option, (line, option.read(line))
        except ValueError as error:
            mistakes.setdefault(line.value_where if option else line.where, _told(line, *error.args))
def _stray(line: Line, here: Mapping[str, Option]) -> tuple[str, str]:
    word, inside = shown(line.word, 30), here is INSIDE
    if not word:
        return f"'{shown(line.value.rstrip(), 30)}' begins with no word", "write WORD VALUE, or # before a comment"
    if line.word.upper() in VARIABLES or line.word.lower() in INSIDE:
        return (f"'{word}' stands {'inside a' if inside else 'outside any'} group",
                "variables stand above the groups, tags and rules inside one")
    return f"unknown word '{word}'", _meant(word.lower() if inside else word.upper(),
                                            [*here, "end" if inside else "GROUP"])
def _told(line: Line, what: str, do: str) -> str:
    text = f"{line.word} {line.value}"[:200].rstrip(" \t\r\f\v")
    if odd := re.search(r"[^\x00-\x7f\w]", text):
        return f"{what}; type the {unicodedata.name(odd[0], 'character').lower()} (U+{ord(odd[0]):04X}) in it anew"
    found = (match.expand(advice) for pattern, advice in ADVICE if (match := re.match(pattern, text, re.IGNORECASE)))
    return f"{what}; {shown(next(found, do), 160) if line.where.line else do}"
def _structure(blocks: Sequence[Block]) -> Iterator[tuple[Line, str, str]]:
    names: dict[str, Line] = {}
    for (head, _), (after, _) in zip(blocks, [*blocks[1:], (None, ())]):
        end = after if after and after.word == "end" else None
        if head and head.word == "group":
            name, key = shown(" ".join(head.value.split()), 90), f"group {_folded(head.value)}"
            if not end:
                nested = ", groups do not nest" if after else ""
                yield head, f"group '{name}' is not ended", f"write 'end group {name}' below its rules{nested}"
            elif _folded(end.value).replace('"', "") not in ("group", key.replace('"', "")):
                what = shown(f"end {end.value}".rstrip(), 90)
                yield end, f"'{what}' in group '{name}'", f"write 'end group {name}'"
            if not head.value:
                yield head, "a group needs a name", "write 'group NAME'"
            elif names.setdefault(key, head) is not head:
                yield head, f"group '{name}' stands on line {names[key].where.line} already", "give one another name"
        elif end:
            yield end, "'end' where no group is open", "take it out, or write 'group NAME' above"
def _folded(name: str) -> str:
    return " ".join(name.lower().split())
def _read_group(head: Line, lines: Iterable[Line], mistakes: Mistakes) -> Group:
    before, found = len(mistakes), list(_read_lines(lines, INSIDE, mistakes))
    tags = tuple(Tag(option.name, line.where, *value) for option, (line, value) in found if option.name not in RULES)
    rules = tuple(Rule(option.name, value[0], line.where, head.value, value[1]) for option, (line, value) in found
                  if option.name in RULES)
    for tag in (tag for tag in tags if tag.word != tags[0].word):
        mistakes.setdefault(tag.where, f"'{tag.word}' among the {tags[0].word} tags of line {tags[0].where.line}; "
                            "the tags of a group are of one class, make two groups")
    if len(mistakes) == before and not (tags and rules):
        mistakes.setdefault(head.where, f"group '{head.value}' has no {'rule' if tags else 'hosts'}; "
                            "give it ip, hostname or os tags, and ignore lines")
    return Group(head.value, tags, rules)

@functools.lru_cache(maxsize=4096)
def numeric(address: str) -> tuple[int, int, str]:
    """(IP version, address as a number, zone), by which addresses are sorted and compared; version 9 for a name."""
    base, _, zone = address.partition("%")
    for version, family in ((4, socket.AF_INET), (6, socket.AF_INET6)):
        with contextlib.suppress(OSError, ValueError):
            return version, int.from_bytes(socket.inet_pton(family, base), "big"), zone
    return 9, 0, address

def like(pattern: str, text: str) -> bool:
    """Whether a pattern, in which `*` is any run of characters, is the text; in time linear in the text."""
    return pattern == "*" or (_glob(pattern).match(text) is not None if "*" in pattern else pattern == text)

@functools.lru_cache(maxsize=1 << 14)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(re.sub(r"[?[]", r"[\g<0>]", pattern)))  # its * does not backtrack

def host_keys(host: HostResult) -> list[Any]:
    """What a tag that matches the host has one of among its keys, if it has any."""
    version, number, _ = numeric(host.address)
    keys: list[Any] = [(version, shift, number >> shift) for shift in SHIFTS]
    for name in map(str.lower, host.names):
        keys += [name, name.partition(".")[0], name[:4], *(name[dot.start():] for dot in re.finditer(r"\.", name))]
    return keys
def _ip_tag(text: str) -> tuple[Any, ...]:
    if text == "*":
        return (lambda host: True),
    sets: tuple[frozenset[int], ...] = ()
    low, _, high = text.partition("-")
    if "/" in text:
        net = ipaddress.ip_network(text, strict=False)
        low, high = str(net[0]), str(net[-1])
    elif ":" not in text and high.count(".") < 3:
        sets = octets(text)
        low, high = (".".join(map(str, map(end, sets))) for end in (min, max))
    (version, least, _), (other, most, _) = numeric(low), numeric(high or low)
    if not 9 > version == other or least > most:
        raise ValueError
    shift = next(shift for shift in SHIFTS if (most >> shift) - (least >> shift) < 64)
    return (lambda host: (version, least) <= numeric(host.address)[:2] <= (version, most) and all(
        numeric(host.address)[1] >> 24 - 8 * at & 255 in octet for at, octet in enumerate(sets))), tuple(
            (version, shift, number) for number in range(least >> shift, (most >> shift) + 1))
def _hostname_tag(text: str) -> tuple[Any, ...]:
    pattern = text.lower().rstrip(".")
    literal = re.match(r"[^*]*\Z|[^*]{4}", pattern) or re.search(r"\.[^*]*\Z", pattern)
    return (lambda host: any(like(pattern, name) or "." not in pattern and like(pattern, name.partition(".")[0])
                             for name in map(str.lower, host.names))), (literal[0],) if literal else ()
def _os_tag(text: str) -> tuple[Any, ...]:
    pattern = f"*{_folded(text)}*"
    return (lambda host: any(like(pattern, guess.lower()) for guess in host.os)),
def _rule(text: str) -> tuple[Any, ...]:
    """`PORT PROTOCOL STATE SERVICE [until DATE]`: the original's order is lost, so fields are told apart by kind."""
    text, *until = re.split(r"(?<=\S)\s+until\s+(?=\S+$)", text.lower())
    words = re.sub(r"(?<!\S)([\d*-]+)/(\w+|\*)(?!\S)", r"\1 \2", text).split()
    kinds = gathered((_kind(word), word) for word in words if word != "*")
    lacking = [kind for kind in FIELDS if kind not in kinds]
    several = next((found for found in kinds.values() if len(found) > 1), None)
    if len(words) != 4:
        raise ValueError(f"not four fields but {len(words)}{', no ' * bool(lacking)}{', '.join(lacking)}",
                         "write four, each one word: PORT PROTOCOL STATE SERVICE, * for any")
    if several:  # one of them is meant for a field that lacks: what is most like one, or stands in its place
        kind, known = lacking[0], FIELDS[lacking[0]].split()
        place = words[list(FIELDS).index(kind)]
        wrong = max(several, key=lambda word: (bool(difflib.get_close_matches(word, known)), word == place))
        raise ValueError(f"'{shown(wrong, 30)}' is no {kind}", _meant(wrong, known, f"write {', '.join(known)} or *"))
    port, protocol, state, service = (kinds.get(kind, ["*"])[0] for kind in FIELDS)
    return (port, protocol, state, service), "".join(map(_date, until))
def _date(text: str) -> str:
    with contextlib.suppress(ValueError):
        if re.fullmatch(r"\d{4}-\d\d-\d\d", text):
            return str(datetime.date.fromisoformat(text))
    raise ValueError(f"'{shown(text, 30)}' is no date", "write the first day without the rule, like 2027-03-31")
def _kind(word: str) -> str:
    if re.fullmatch(r"[0-9*,:-]*[0-9][0-9*,:-]*", word):
        ends = re.fullmatch(rf"({NUMBER})(?:-({NUMBER}))?|[0-9]*\*[0-9*]*", word)
        if not ends or ends[1] and not int(ends[1]) <= int(ends[2] or ends[1]) < 65536:
            raise ValueError(f"'{shown(word, 30)}' is no port up to 65535, or runs backwards", "write N, N-M or *")
        return "port"
    return next((kind for kind, words in FIELDS.items() if word in words.split()), "service")
INSIDE = {name: Option(pattern, "", metavar, text, read, name=name) for name, pattern, metavar, text, read in (
    ("ip", "(?!.*:.*-$)[0-9A-Fa-f:.,*/-]+", "ADDRESS|SUBNET|RANGE", "like 192.0.2.25, 192.0.2.0/28, 192.0.2.1-9",
     _ip_tag),
    ("hostname", rf"{PLAIN}(?!\d+(?:\.[\d*]+){{3}}$)[^\s,:]+", "NAME", "a host's, * is any part of it", _hostname_tag),
    ("os", PLAIN + r".*\S.*", "TEXT", "a part of what nmap calls the system", _os_tag),
    *((name, PLAIN + ".+", "PORT PROTOCOL STATE SERVICE", "all four fields, * for any", _rule) for name in RULES))}

# ---- Reading a run --------------------------------------------------------------------------------------------------
OPEN = re.compile("--?op(en?)?")  # nmap's --open hides hosts without open ports
RUN_ID, VERSION, TIME = re.compile(r"\d{8}-\d{6}"), 1, "%Y-%m-%dT%H:%M:%S%z"  # of run.json, and as it notes times
PIECE = 1 << 20  # expat before 2.6 takes minutes for a large attribute that comes in small pieces
# What is kept: elements of a host, attributes of a port (also its state's and service's).
OF_HOST = ("host", "status", "address", "hostname", "osmatch", "osclass", "extraports", "ports", "port")
OF_PORT = ("portid", "protocol", "state", "name", "product", "version", "extrainfo")
GUESS = ("accuracy", "name", "vendor", "osfamily")
STATES = {"up": "audited", "down": "down", "unknown": "not scanned"}
FORBIDDEN = re.compile(rb"&#(?:0*(?:[0-8]|1[1245-9]|2\d|3[01])|x0*(?:[0-8bcef]|1[\da-f]));", re.IGNORECASE)
XML_START = re.compile(rb"(\xef\xbb\xbf|\xff\xfe|\xfe\xff)?\s*<([?!].*)?nmaprun", re.DOTALL)
Attrs = dict[str, str]
same_port = functools.lru_cache(maxsize=1 << 14)(Port)  # one object for equal ports

def opened(words: Iterable[str]) -> bool:
    """Whether --open is among nmap's words: then hosts without open ports are not listed."""
    return any(map(OPEN.fullmatch, words))

class Document:
    """nmap's XML (its DTD, files of nmap 3.27 to 7.97), kept as it is read: order and completeness don't matter.

    `top`: attributes outside hosts; `hosts`: each host, and how many ports it lists or sums up (None: it does not say).
    """
    def __init__(self) -> None:
        self.top: dict[str, Attrs] = {"nmaprun": {}, "finished": {}, "hosts": {}}
        self.scans, self.hosts, self.problem = list[Attrs](), list[tuple[HostResult, int | None]](), ""
        self._parts: dict[str, list[Attrs]] = {name: [] for name in OF_HOST}
        self._acts: dict[str, Callable[[Attrs], object]] = {name: each.append for name, each in self._parts.items()}
        self._acts |= {name: each.update for name, each in self.top.items()} | {"scaninfo": self.scans.append}
        self._acts |= {"state": self._detail, "service": self._detail, "host": self.end_host,
                       "hosthint": lambda _: self.end_host()}
    def start(self, name: str, attrs: Attrs) -> None:
        if act := self._acts.get(name):
            act(attrs)
    def _detail(self, attrs: Attrs) -> None:
        for port in self._parts["port"][-1:]:
            port.update(attrs)  # no attribute's name is in two of port, state and service
    def end_host(self, *following: Attrs) -> None:
        """Keeps the host that was read last, whole or not: it ends where another starts, or with the document."""
        of = self._parts
        addresses = [each["addr"] for each in of["address"] if each.get("addrtype") != "mac" and each.get("addr")]
        state = of["status"][0].get("state") if of["status"] else "up"
        if of["host"] and addresses and state in STATES:
            late, start, end = map(of["host"][0].get, ("timedout", "starttime", "endtime"))
            names = dict.fromkeys(name for each in of["hostname"] if (name := each.get("name")))
            ports = {port.key: port for port in [_port(*map(each.get, OF_PORT)) for each in of["port"]]}
            guesses = (tuple(tuple(map(each.get, GUESS)) for each in of[tag]) for tag in ("osmatch", "osclass"))
            host = HostResult(addresses[0], "timed out" if late == "true" else STATES[state], "", tuple(names),
                              _best_os(*guesses), tuple(ports.values()),
                              seconds=max(_int(end) - _int(start), 0) if start else 0)
            counted = len(of["port"]) + sum(_int(each.get("count")) for each in of["extraports"])
            self.hosts.append((host, counted if of["ports"] else None))
        for several in of.values():
            several.clear()
        of["host"] += following

def read_xml(file: Any) -> Document:
    """The document in a binary file, and why it is not whole. Entities are refused, and nothing is ever fetched."""
    from defusedxml.common import DefusedXmlException  # --help and --version do without these
    from defusedxml.expatreader import DefusedExpatParser
    from xml.sax import SAXException
    document, reader = Document(), DefusedExpatParser(forbid_external=False)  # nmap 6.45's DOCTYPE names an address
    try:
        reader.feed(b"")  # now there is an expat, which shall call nothing but what keeps an element
        expat: Any = getattr(reader, "_parser")
        expat.StartElementHandler, expat.EndElementHandler = document.start, None
        expat.CharacterDataHandler = expat.ProcessingInstructionHandler = None
        while piece := file.read(PIECE):
            whole = piece if piece.endswith(b"\n") else piece + file.readline(PIECE)  # no reference is cut in two
            reader.feed(FORBIDDEN.sub(b"?", whole))  # what XML forbids, and nmap has written
        reader.close()
    except (SAXException, DefusedXmlException, ValueError, LookupError) as error:
        why = re.sub(r"^<unknown>:(\d+):\d+", r"line \1", str(error).partition("(")[0])
        document.problem = f"not whole: {shown(why, 120)}"
    document.end_host()
    end = document.top["finished"]
    if not document.problem and not (document.top["nmaprun"] and end):
        document.problem = "not whole: nmap's closing lines are missing"
    elif end.get("exit", "success") != "success":
        document.problem = f"nmap gave up: {shown(end.get('errormsg', ''), 120)}"
    return document
def _int(text: str | None) -> int:
    return int(text) if text and len(text) < 11 and text.isascii() and text.isdigit() else 0
@functools.lru_cache(maxsize=1 << 14)  # a network has many equal ports
def _port(number: str | None, protocol: str | None, state: str | None, service: str | None, *more: str | None) -> Port:
    words = *more[:2], more[2] and f"({more[2]})"
    return Port(_int(number), protocol or "", state or "", service or "", " ".join(filter(None, words)))
@functools.lru_cache(maxsize=1 << 12)
def _best_os(*kinds: tuple[tuple[str | None, ...], ...]) -> tuple[str, ...]:
    """The guesses of the highest accuracy: names, then vendors and families (beside osmatch before nmap 6.00)."""
    found: dict[str, None] = {}
    for guesses in kinds:
        best = max((_int(accuracy) for accuracy, *_ in guesses), default=0)
        found.update((" ".join(filter(None, words)), None) for accuracy, *words in guesses if _int(accuracy) == best)
    return tuple(filter(None, found))

def judge(document: Document, file: str, asked: str = "") -> list[HostResult]:
    """The document's hosts with the outcome that the whole document gives them.

    asked: whom nmap was asked for. Then ports must add up to what scaninfo says (lost writes of nmap show so), but for
    --open, with which nmap does not list all of them, and a host without open ports not at all.
    """
    listless = opened(document.top["nmaprun"].get("args", "").split())
    services = sum(_int(scan.get("numservices")) for scan in document.scans)
    start = _int(document.top["nmaprun"].get("start"))
    looked = join_looked(tuple((scan.get("protocol", ""), scan.get("services", "")) for scan in document.scans))
    unlisted = asked and listless and not document.hosts and document.top["hosts"].get("up") == "1"
    results = []
    for host, counted in [(HostResult(asked, "audited"), services)] if unlisted else document.hosts:
        outcome, reason = host.outcome, "its --host-timeout passed" * (host.outcome == "timed out")
        if document.problem and outcome != "not scanned":
            outcome, reason = "cut off", document.problem
        elif outcome == "audited" and counted is None and services:
            outcome, reason = "timed out", "nmap lists none of its ports"
        elif outcome == "audited" and asked and not listless and (counted or 0) != services:
            outcome, reason = "cut off", f"its ports do not add up: nmap scanned {services} and shows {counted}"
        results.append(host._replace(outcome=outcome, reason=reason, looked=looked, file=file, start=start))
    return results

def joined(earlier: HostResult, later: HostResult, *, over: bool) -> HostResult:
    """A later result with the ports that an earlier one lists; over: but for those it looked at and does not list."""
    listed = {port.key for port in later.ports}
    kept = tuple(port for port in earlier.ports if port.key not in listed and not (
        over and looked_at(later.looked, port.number, port.protocol)))
    return later._replace(ports=kept + later.ports, looked=join_looked(earlier.looked, later.looked))

def merged(results: Iterable[HostResult]) -> dict[str, HostResult]:
    """Results by address: of several, the latest and, of the others, the ports that later ones did not look at."""
    found: dict[str, HostResult] = {}
    rank = {"not scanned": 0, "down": 1}  # who answered one of two scanners is not down
    for host in sorted(results, key=lambda host: (rank.get(host.outcome, 2), host.start)):
        if earlier := found.get(host.address):
            host = joined(earlier, host, over=earlier.start < host.start)._replace(
                names=tuple(dict.fromkeys(host.names + earlier.names)), os=host.os or earlier.os)
        found[host.address] = host
    return found

@functools.lru_cache(maxsize=64)
def port_set(text: str) -> frozenset[int]:
    """The numbers in nmap's `1-4,8` (scaninfo/@services)."""
    ends = (re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", piece) for piece in text.split(","))
    return frozenset(itertools.chain(*(range(int(m[1]), int(m[2] or m[1]) + 1) for m in ends if m)))

@functools.lru_cache(maxsize=1 << 14)
def looked_at(looked: Looked, number: int, protocol: str) -> bool:
    """Whether a scan of these port lists looked at a port."""
    return any(protocol == one and number in port_set(text) for one, text in looked)

@functools.lru_cache(maxsize=256)
def join_looked(*several: Looked) -> Looked:
    """Port lists as one; the same object for the same lists."""
    lists = gathered(itertools.chain(*several))
    return tuple((protocol, ",".join(dict.fromkeys(",".join(texts).split(",")))) for protocol, texts in lists.items())

def home(folder: Path) -> Path:
    """The DIR-NAME of a run; a folder of other origin is its own."""
    return folder.parent if RUN_ID.fullmatch(folder.name) else folder

def run_day(run: Run) -> str:
    """The date of a run, like 2026-11-24: its name's or, in a folder of other origin, that of its newest result."""
    if RUN_ID.fullmatch(run.folder.name):
        return f"{run.folder.name[:4]}-{run.folder.name[4:6]}-{run.folder.name[6:8]}"
    return datetime.date.fromtimestamp(max((host.start for host in run.hosts.values()), default=0)).isoformat()

def result_name(address: str, ending: str = ".xml") -> str:
    """The name of an address's file: `:` and `%` of IPv6 become `_`, and so does whatever no address holds."""
    return re.sub(r"[^0-9A-Za-z.-]", "_", address) + ending

def state_json(state: State) -> dict[str, Any]:
    """A state as run.json holds it: port lists once each, since most hosts share them."""
    lists = {looked: at for at, looked in enumerate(dict.fromkeys(host.looked for host in state.values()))}
    hosts = {address: {"outcome": host.outcome, "names": host.names, "os": host.os, "ports": host.ports,
                       "looked": lists[host.looked], "run": host.file} for address, host in state.items()}
    return {"lists": list(lists), "hosts": hosts}

def read_state(data: Mapping[str, Any]) -> dict[str, HostResult]:
    """The state in run.json."""
    lists = [tuple(map(tuple, looked)) for looked in data["lists"]]
    return {address: HostResult(address, known["outcome"], "", tuple(known["names"]), tuple(known["os"]),
                                _shared(known)["ports"], lists[known["looked"]], file=known["run"])
            for address, known in data["hosts"].items()}
def _shared(found: dict[str, Any]) -> dict[str, Any]:
    if found.keys() >= {"ports", "looked"}:  # a host of a state, no target that is called `ports`
        found["ports"] = tuple(itertools.starmap(same_port, found["ports"]))
    return found

def noted(host: HostResult) -> dict[str, Any]:
    """What run.json notes of a host."""
    return {"outcome": host.outcome, "reason": host.reason, "seconds": host.seconds, "start": host.start}

def read_record(folder: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A run's run.json and remarks on it; empty where it cannot be used: then the XML tells."""
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_bytes(), object_hook=_shared)
        if record["version"] != VERSION or not {"told", "status", "nmap", "ips"} <= record.keys():
            return {}, (f"{folder}/run.json is of another version; its XML is read instead",)
        for note in record["hosts"].values():
            OUTCOMES.index(note["outcome"]), note["reason"] + "", note["seconds"] + note["start"]
        list(map(read_state, [record.get("state", {"lists": [], "hosts": {}}), *filter(None, [record.get("before")])]))
        return record, ()
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError) as error:
        remark = f"{folder}/run.json cannot be read; its XML is read instead"
        return {}, (remark,) * (not isinstance(error, FileNotFoundError))

def read_run(folder: Path, record: dict[str, Any] | None = None) -> Run:
    """What a run directory, or any folder with nmap's XML, holds: a result for each address that was asked for."""
    record, remarks = (record, ()) if record else read_record(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    paths = {name: path for name in names if name[0] != "." and os.path.isfile(path := os.path.join(folder, name))}
    lists = [paths[name] for name in ("targets.xml", "targets6.xml") if name in paths]
    own = bool(record or lists)
    files = [_read_file(path) for path in (lists if own else sorted(paths.values()))]
    found = merged(itertools.chain(*(hosts for hosts, _ in files)))
    if not own:
        hosts = {address: host for address, host in found.items() if host.outcome != "not scanned"}
        return Run(folder, hosts, {}, tuple(remark for _, remark in files if remark))
    hosts = {target: HostResult(target, "failed", reason) for target, reason in record.get("unresolved", {}).items()}
    for address, note in (dict.fromkeys(found) | record.get("hosts", {})).items():
        mine = [paths[name] for name in map(result_name, [address] * 2, (".xml", ".part")) if name in paths][:1]
        hosts[address] = _recorded(found.get(address, HostResult(address, "not scanned")), mine, note)
    return Run(folder, hosts, record, remarks or (f"{folder}/run.json is lost",) * (not record))
def _recorded(listed: HostResult, paths: Sequence[str], note: Mapping[str, Any] | None) -> HostResult:
    results = itertools.chain([listed], *(_read_file(path, listed.address)[0] for path in paths))
    host = merged(results)[listed.address]
    if host.outcome == "not scanned":
        host = host._replace(reason="there is no result of it", file="".join(paths[-1:]))
    elif note and note["start"] != host.start:
        host = host._replace(outcome="cut off", reason="its file is not of this run", ports=())
    if note and note["outcome"] != "audited":
        host = host._replace(outcome=note["outcome"], reason=note["reason"])
    return host._replace(seconds=note["seconds"]) if note else host
def _read_file(path: str, asked: str = "") -> tuple[list[HostResult], str]:
    """The hosts of a file, of one of our own only the address that it is of; and what is wrong with the file."""
    try:
        with open(path, "rb") as file:
            if not path.lower().endswith(".xml") and not XML_START.match(file.read(4096).replace(b"\0", b"")):
                return [], ""
            file.seek(0)
            document = read_xml(file)
    except OSError as error:
        return [], f"{path}: {error.strerror}"
    hosts = [host for host in judge(document, path, asked) if asked in ("", host.address)]
    return hosts, document.problem and f"{path}: {document.problem}"

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
    finally:
        with contextlib.suppress(OSError):
            os.unlink(part)

def say(text: str, before: str = "") -> None:
    """Writes lines to standard error, which nobody may be reading."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        for line in text.splitlines():
            print(before + line, file=sys.stderr, flush=True)
complain = functools.partial(say, before="nmap-audit: ")

def locked(directory: Path) -> TextIO:
    """Makes DIR-NAME and holds its lock while the file that comes back is open. AuditError where it cannot."""
    try:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        if {os.lstat(directory).st_uid, os.stat(directory).st_uid} - {0, os.geteuid()}:
            raise PermissionError(1, "it is somebody else's", "owner")  # who could put links into it
        file = open(os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        who = shown((directory / "lock").read_text(errors="replace").strip(), 80)
        raise AuditError(os.EX_TEMPFAIL, f"{directory}: another audit is running ({who}); wait for its end, or use "
                         "another DIR-NAME") from None
    except OSError as error:
        what = f"{directory}: {error.strerror} ({error.filename or 'lock'}); change DIR-NAME"
        raise AuditError(os.EX_CANTCREAT, what) from None
    with contextlib.suppress(OSError):  # a full disk does not make the lock less held
        file.truncate(0)
        os.write(file.fileno(), f"pid {os.getpid()} since {time.strftime('%F %T')}\n".encode())
    return file

def list_runs(directory: Path) -> list[Path]:
    """The run folders of DIR-NAME, oldest first."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in paths if RUN_ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink())

def make_run(directory: Path) -> Path:
    """A new run folder, named by the local time; by a later one where the clock stepped back, so that names sort."""
    moment, newest = datetime.datetime.now(), max(filter(RUN_ID.fullmatch, os.listdir(directory)), default="")
    if moment.strftime("%Y%m%d-%H%M%S") <= newest:
        moment = datetime.datetime.strptime(newest, "%Y%m%d-%H%M%S") + datetime.timedelta(seconds=1)
    (folder := directory / moment.strftime("%Y%m%d-%H%M%S")).mkdir(mode=0o700)
    return folder

# ---- Scanning -------------------------------------------------------------------------------------------------------
TARGET_OPTIONS = "--?(exclude|exclude-?file|dns-servers|system-dns|6)(=.*)?"
FILE_OPTIONS = "--?(exclude-?file|datadir|servicedb|versiondb|script-args-file)"  # their files may stand here
NMAP_VARIABLES = ("NMAP_ARGS", "NMAP_PRIVILEGED", "NMAP_UNPRIVILEGED", "NMAPDIR")
OUTPUT_BYTES, ERROR_BYTES, MOST_BATCH, MOST_REFUSALS = 256 << 20, 1 << 20, 256, 8
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LEAST_BATCH = {"-s[A-Z]*U": 8, "-O|-A": 13, "-sV|-sC|-A|--script": 64}  # what a process is worth, by what NMAP holds
CUT_END = (b'<!-- nmap-audit: nmap ended %s, after it had written this host -->\n<runstats><finished exit="success"/>'
           b'<hosts up="1" down="0" total="1"/></runstats>\n</nmaprun>\n')
HINT = re.compile(rb"<hosthint>.*?</hosthint>\s*", re.DOTALL)  # there is one for each host of a batch
HOST_ELEMENT = re.compile(rb"<host[ >].*?</host>\s*", re.DOTALL)  # nmap escapes every < that is no tag's
# A command, and what is done with what it leaves: that gives the jobs that come of it, if any.
Job = NamedTuple("Job", [("words", Sequence[str]), ("done", Callable[[Output], Sequence[Any] | None])])

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
    kept = [*words[:at], "-sL", "-n"]
    for word, value in zip(words[at:], [*words[at + 1:], "-"]):
        if re.fullmatch(TARGET_OPTIONS, word.replace("_", "-"), re.DOTALL):
            kept += [word, value][:1 if "=" in word or value.startswith("-") else 2]
    return kept

class Nmap(subprocess.Popen[bytes]):
    """A job's command at work. It writes to files without a name: whatever ends it, what it wrote by then is there."""
    def __init__(self, job: Job, folder: Path, working: dict[int, Nmap]) -> None:
        self.job, self.started = job, time.monotonic()
        self.files = tempfile.TemporaryFile(dir=folder), tempfile.TemporaryFile(dir=folder)
        env = {name: value for name, value in os.environ.items() if name not in NMAP_VARIABLES}
        # A kill -9 of this program must end nmap too, and only the kernel is left to see to that.
        guard = [setpriv, "--pdeathsig", "KILL"] if (setpriv := find_program("setpriv")) else []
        free = functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, SIGNALS)
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # else one ends us when it is started and not yet known
        try:
            super().__init__([*guard, *job.words], stdin=subprocess.DEVNULL, stdout=self.files[0], stderr=self.files[1],
                             env=env, cwd="/", start_new_session=True, preexec_fn=free)  # no stranger's script is in /
            working[self.pid] = self
        finally:
            free()
    def end(self, status: int) -> Sequence[Job]:
        with self.files[0] as out, self.files[1] as err:
            out.seek(0)
            err.seek(max(0, err.seek(0, os.SEEK_END) - ERROR_BYTES))
            self.returncode, said = status, err.read().decode("utf-8", "replace")
            return self.job.done(Output(status, out.read(), said, time.monotonic() - self.started)) or ()

def run_jobs(jobs: Iterable[Job], folder: Path, workers: int) -> None:
    """Runs commands, so many at once, those that come of others first; nothing of them is left running, ever."""
    fresh, more, working, places = iter(jobs), list[Job](), dict[int, Nmap](), threading.Semaphore(workers)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody is told how a process ended
    try:
        while True:
            while (job := more.pop() if more else next(fresh, None)) and places.acquire(blocking=False):
                try:
                    Nmap(job, folder, working)
                except OSError as error:
                    places.release()
                    more += job.done(Output(os.EX_OSERR, b"", str(error), 0)) or ()
            more += [job] if job else []  # there is no place for it yet
            if not working:
                return
            pid, status = os.wait()
            if ended := working.pop(pid, None):
                places.release()
                _stop([ended], 0)  # its group, which may still write
                more += ended.end(os.waitstatus_to_exitcode(status))
    finally:
        _stop(working.values())
        for nmap in working.values():
            nmap.end(-signal.SIGTERM)
def _stop(processes: Collection[Nmap], *first: int) -> None:
    for number in (*first, signal.SIGTERM, signal.SIGKILL):
        until, sent = time.monotonic() + 2, [_signal(process, number) for process in processes]
        while any(sent) and time.monotonic() < until:
            time.sleep(0.02)
            sent = [process.poll() is None or number == 0 and _signal(process, 0) for process in processes]
def _signal(process: Nmap, number: int) -> bool:
    with contextlib.suppress(OSError):  # there is nobody in its group any more
        os.killpg(process.pid, number)
        return process.poll() is None or number == 0
    return False

def split_hosts(out: bytes, end: bytes = b"") -> list[bytes]:
    """A batch's output as a document a host, each element byte for byte, and one without; `end` where there is none."""
    spans = [match.span() for match in HOST_ELEMENT.finditer(out)]
    head, tail = (HINT.sub(b"", out[:spans[0][0]]), out[spans[-1][1]:]) if spans else (out, b"")
    ending = tail if b"<finished" in tail or not end else end
    return [*(head + out[start:stop] + ending for start, stop in spans), head + tail]

def batch_results(output: Output, batch: Sequence[str]) -> Iterator[tuple[HostResult, bytes]]:
    """The outcome of each address of a batch, with the document that shows it (empty: there is none)."""
    found, strange = dict[str, tuple[HostResult, bytes]](), ""
    signals = {each.value: each.name for each in signal.Signals}  # without the real-time ones
    how = f"with status {output.status}" if output.status >= 0 else (
        f"by {signals.get(-output.status, -output.status)} ({signal.strsignal(-output.status)})")
    for data in split_hosts(output.out, CUT_END % how.encode() if len(batch) > 1 else b""):
        rest = read_xml(io.BytesIO(data))
        for host in judge(rest, "", batch[0]) if rest.hosts or not found else []:
            strange = strange if host.address in batch and host.address not in found else host.address
            found[host.address] = host, data
    total, up = (_int(rest.top["hosts"].get(name)) for name in ("total", "up"))
    unlisted = HostResult("", "down", start=_int(rest.top["nmaprun"].get("start")))
    if rest.problem or up > sum(host.outcome != "down" for host, _ in found.values()):
        unlisted = HostResult("", "cut off", rest.problem or "nmap counted a host as up and did not list it")
    elif total < len(batch):
        unlisted = HostResult("", "failed", "nmap did not look at it")
    for address in batch:
        host, data = found.get(address, (unlisted, output.out))
        if output.status and not (len(batch) > 1 and host.outcome == "audited"):
            host = host._replace(outcome="failed", reason=f"nmap ended {how}: {_last_words(output.err)}".rstrip(": "))
        elif strange:
            host = host._replace(outcome="cut off", reason=f"nmap lists {shown(strange, 60)} twice, or unasked")
        yield host._replace(address=address, seconds=host.seconds if len(batch) > 1 else round(output.seconds, 1)), data
def _last_words(err: str) -> str:
    lines = (line for line in err.splitlines() if line.strip(" !QUITNG") and not line.startswith(("\t", "stack")))
    return shown(" / ".join(map(str.strip, lines))[-300:], 300)

def make_batches(config: Config, addresses: Iterable[str], workers: int) -> Iterator[Sequence[str]]:
    """The addresses of each process: all go in one wave where they can, since a process mostly waits."""
    least = min((size for kind, size in LEAST_BATCH.items() if re.search(kind, " ".join(config.nmap))), default=32)
    for family in gathered((":" in address, address) for address in addresses).values():
        at = 0
        while at < len(family):
            left = len(family) - at * (len(family) > workers * MOST_BATCH)
            size = 1 if opened(config.nmap) else config.batch or min(MOST_BATCH, max(least, -(-left // workers)))
            yield family[at:at + size]
            at += size

class Scanner:
    """The program at work on a run: what nmap says is kept, what goes wrong is told and leaves one of the statuses."""
    saved, total = 0.0, 0  # when run.json was last written, and how many addresses there are
    patience = float(MOST_REFUSALS)  # how often nmap may refuse a single address; once it did any work, endless
    def __init__(self, config: Config) -> None:
        self.config, self.statuses, self.words, self.run = config, [0], list[str](), Run(Path(), {}, {})
    def fail(self, status: int, text: str) -> None:
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
        self.attempt(write_file, run.folder / "run.json", json.dumps(run.record, indent=0).encode())
    def scan_targets(self) -> None:
        """Scans each address of the target list that has no whole result, first those that took longest last time."""
        record = self.run.record
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)  # the kernel kills what writes without an end
        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES if hard < 0 else min(hard, OUTPUT_BYTES), hard))
        try:
            if not record["listed"]:
                self._list(record)
            if not (hosts := read_run(self.run.folder, record).hosts):
                raise AuditError(os.EX_CONFIG, f"{self.config.ips_where}: every address of IPS is excluded; change one")
            self.total = len(hosts) - len(record["unresolved"])
            self._scan([each for each in hosts if each not in record["hosts"] and each not in record["unresolved"]])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            record["status"] = "interrupted"  # it will be finished when its report is made
            self.save(self.run)
    def _list(self, record: dict[str, Any]) -> None:
        words = list_words(self.words)
        families = gathered(("-6" in words or ":" in target, target) for target in self.config.ips)
        record["unresolved"] = {}
        run_jobs([self._job(words, targets, functools.partial(self._listed, f"targets{'6' * six}.xml", targets))
                  for six, targets in families.items()], self.run.folder, len(families))
        record["listed"] = True
        self.save(self.run)
    def _listed(self, name: str, targets: Sequence[str], output: Output) -> None:
        reason, stored = "nmap could not resolve it", self.attempt(write_file, self.run.folder / name, output.out)
        if output.status or not stored or read_xml(io.BytesIO(output.out)).problem:
            reason = f"nmap could not list it: {_last_words(output.err)}"
        else:
            targets = re.findall(r'Failed to resolve "([^"\n]*)"', output.err)
        self.run.record["unresolved"] |= {shown(target): reason for target in targets}
    def _scan(self, addresses: Sequence[str]) -> None:
        runs = (read_record(folder)[0] for folder in reversed(list_runs(self.run.folder.parent)))
        last = next((run["hosts"] for run in runs if run.get("status") == "finished"), dict[str, Any]())
        slowest_first = sorted(addresses, key=lambda address: -last.get(address, {"seconds": 0})["seconds"])
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # a process needs two files, and three to be started
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        workers = max(1, min(self.config.max_threads, (hard - 24) // 2))
        run_jobs(map(self._batch, make_batches(self.config, slowest_first, workers)), self.run.folder, workers)
    def _job(self, words: Sequence[str], targets: Sequence[str], done: Callable[[Output], Sequence[Job] | None]) -> Job:
        zones = {target.partition("%")[0]: target for target in self.config.ips if "%" in target}
        six = ["-6"] * (":" in targets[0] and "-6" not in words)
        return Job([*words, *six, "-oX", "-", "--", *(zones.get(target, target) for target in targets)], done)
    def _batch(self, batch: Sequence[str], again: bool = False) -> Job:
        return self._job(self.words, batch, functools.partial(self._scanned, batch, again))
    def _scanned(self, batch: Sequence[str], again: bool, output: Output) -> Sequence[Job]:
        """Keeps what nmap says of a batch; what it did not finish is tried again in smaller ones, down to one."""
        began = output.status <= 0 or 128 <= output.status < 255 or b"<scaninfo" in output.out
        self.patience = math.inf if began else self.patience - (len(batch) == 1)
        size, rest = max(1, len(batch) // 8), []
        for host, data in batch_results(output, batch):
            hope = self.patience >= 0 if len(batch) > 1 else began and not again
            if hope and host.outcome in ("cut off", "failed"):
                rest.append(host.address)
            else:
                self._keep(host, data)
        return [self._batch(rest[at:at + size], again=True) for at in reversed(range(0, len(rest), size))]
    def _keep(self, host: HostResult, data: bytes) -> None:
        ending = ".xml" if host.outcome in ("audited", "timed out") else ".part"
        path = self.run.folder / result_name(host.address, ending)
        if host.outcome != "down" and data and not self.attempt(write_file, path, data):
            host = host._replace(outcome="failed", reason="its result could not be written")
        self.run.record["hosts"][host.address] = noted(host)
        ports, done = sum(port.state != "closed" for port in host.ports), len(self.run.record["hosts"])
        what = f"{ports} port{'s' * (ports != 1)}" if host.outcome == "audited" else host.outcome
        if not self.config.quiet:
            say(f"[{done}/{self.total}] {shown(str(host), 100)} {what}, {host.seconds:.1f} s")
        if time.monotonic() - self.saved > 10 + self.total / 1000:
            self.save(self.run)
            self.saved = time.monotonic()

# ---- Remembering ----------------------------------------------------------------------------------------------------
def fold(state: State, run: Run) -> dict[str, HostResult]:
    """The state after a run: what it did not look at stays as it was."""
    after, day = dict(state), run_day(run)
    for host in run.hosts.values():
        known = state.get(host.address, NOBODY)
        since = {port.key: port.first_seen for port in known.ports}
        if host.outcome == "audited":
            ports = tuple(same_port(*port[:4], "", since.get(port.key, day)) for port in host.ports
                          if port.state != "closed")
            now = host._replace(reason="", ports=ports, start=0, seconds=0.0, file=run.folder.name)
            after[host.address] = joined(known, now, over=True)
        elif host.outcome == "down" and known.outcome == "audited":
            after[host.address] = known._replace(outcome="down")
    return after

def last_told(run: Run) -> tuple[dict[str, HostResult] | None, list[str]]:
    """What the last run told before this one left, None for nothing; and remarks. The XML stands in for a run.json."""
    replay, remarks, before = list[Path](), list[str](), run.record.get("before")
    state = read_state(before) if before else None
    if run.record.get("told") and "before" in run.record:
        return state, []
    siblings = list_runs(run.folder.parent) if RUN_ID.fullmatch(run.folder.name) else []
    for folder in reversed([each for each in siblings if each.name < run.folder.name]):
        if not (record := read_record(folder)[0]):  # read_run says why
            replay.append(folder)
        elif record["told"] and "state" in record:
            state = read_state(record["state"])
            break
    for each in map(read_run, reversed(replay)):
        if any(host.outcome == "audited" for host in each.hosts.values()):
            state = fold(state or {}, each)
            remarks += each.remarks
    return state, remarks

# ---- Filtering ------------------------------------------------------------------------------------------------------
PORT_CHANGES = ("new", "changed", "first look", "standing")

def accepts(rule: Rule, fields: Fields, day: str = "") -> bool:
    """Whether all four fields of a rule match those of a port, and it holds on a day."""
    low, dash, high = rule.fields[0].partition("-")
    number = int(low) <= int(fields[0]) <= int(high) if dash else like(low, fields[0])
    return number and all(map(like, rule.fields[1:], fields[1:])) and rule.holds(day)

@functools.lru_cache(maxsize=1 << 16)
def accepting(groups: tuple[Group, ...], fields: Fields, day: str) -> tuple[Rule, ...]:
    """The rules of these groups that accept a port."""
    return tuple(rule for group in groups for port in (fields[0], "*") for rule in group.by_port.get(port, ())
                 if accepts(rule, fields, day))

def index(groups: Sequence[Group]) -> Callable[[HostResult], tuple[Group, ...]]:
    """What tells the groups of a host: found by the keys of their tags, where tags have keys, and else asked for."""
    keyed = gathered((key, (at, tag)) for at, group in enumerate(groups) for tag in group.tags
                     for key in tag.keys or [tag.word])
    @functools.lru_cache(maxsize=1 << 12)
    def of_os(guesses: tuple[str, ...]) -> set[int]:
        return {at for at, tag in keyed.get("os", ()) if tag.matches(HostResult("", "", os=guesses))}
    def groups_of(host: HostResult) -> tuple[Group, ...]:
        likely = itertools.chain(*(keyed.get(key, ()) for key in (*host_keys(host), "ip", "hostname")))
        return tuple(groups[at] for at in sorted({at for at, tag in likely if tag.matches(host)} | of_os(host.os)))
    return groups_of

def met(rule: Rule, host: HostResult) -> bool:
    """Whether a host shows what a rule expects; `closed` is shown too by a port that was looked at and not listed."""
    if any(accepts(rule, port.fields) for port in host.ports):
        return True
    port, protocol, state, _ = rule.fields
    return state == "closed" and port.isdigit() and looked_at(host.looked, int(port), protocol) \
        and not any(each.key == f"{port}/{protocol}" for each in host.ports)

def find(run: Run, state: State, groups: Sequence[Group]) -> Changes:
    """What a run says beside what is remembered, with what any rule of any group accepts put apart."""
    day, groups_of = run_day(run), index(groups)
    late = str(datetime.date.fromisoformat(day) + datetime.timedelta(days=14))  # rules that end by then are named
    told, ignored, asked, lost = list[Finding](), list[Finding](), 0, 0
    for host in run.hosts.values():
        known, members = state.get(host.address, NOBODY), groups_of(host)
        up = known.outcome == "audited"
        asked += up
        lost += up and host.outcome in ("down", "failed")
        for change, port, before in _changed(host, known, day):
            rules = accepting(members, port.fields, day)
            (ignored if rules else told).append(Finding(host, change, port, before, rules))
        told += [Finding(host, "host gone")] * (up and host.outcome == "down")
        if host.outcome == "audited":
            told += _events(host, known, members, day)
            new = known is NOBODY
            told += [Finding(host, "host new")] * bool(state and new)
            called = [(each.names[:1], each.os[:1]) for each in (known, host)]
            told += [Finding(host, "regrouped")] * (not new and called[0] != called[1] and groups_of(known) != members)
    lapsing = (Finding(NOBODY, "lapsing", rules=(rule,), why=" (ended)" * (not rule.holds(day)))
               for group in groups for rule in group.rules if not rule.holds(late))
    return Changes(_sorted(told), asked, lost, _sorted(ignored), tuple(lapsing))
def _sorted(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda each: (numeric(each.host.address), each.port.protocol, each.port.number)))
def _changed(host: HostResult, known: HostResult, day: str) -> Iterator[tuple[str, Port, str]]:
    was = {port.key: port for port in known.ports}
    for port in (port for port in host.ports if port.state != "closed"):
        if before := was.get(port.key):
            change = "standing" if before.state == port.state else "changed"
            yield change, same_port(*port[:5], before.first_seen), before.state
        else:
            looked = looked_at(known.looked, port.number, port.protocol)
            yield "new" if looked else "first look", same_port(*port[:5], day), ""
def _events(host: HostResult, known: HostResult, members: Iterable[Group], day: str) -> Iterator[Finding]:
    there = {port.key for port in host.ports if port.state != "closed"}
    for port in known.ports:
        if port.state in ("open", "open|filtered") and port.key not in there and looked_at(
                host.looked, port.number, port.protocol):
            yield Finding(host, "gone", port, port.state)
    for rule in (rule for group in members for rule in group.expected if rule.holds(day) and not met(rule, host)):
        yield Finding(host, "missing", Port(_int(rule.fields[0]), *rule.fields[1:]), "", (rule,))

# ---- Reporting ------------------------------------------------------------------------------------------------------
TITLES = {"lapsing": "Rules that lapse", "missing": "Missing: expected and not there", "new": "New",
          "changed": "Changed", "first look": "First look",
          "standing": "Standing: told before, neither accepted nor closed", "gone": "Gone",
          "host gone": "Hosts gone: up before, down now", "host new": "Hosts new",
          "regrouped": "Hosts that changed group (their name or OS guess changed)",
          "ignored": "Ignored", "host": "Hosts", "not audited": "Not audited"}
TABLES = {"none": 1, "low": 10, "medium": 10, "high": 12}  # how many of them a level of DETAIL shows
LISTS = {"findings": PORT_CHANGES, "gone": ("gone", "host gone"), "missing": ("missing",), "hosts_new": ("host new",),
         "regrouped": ("regrouped",)}
TELLING = ("findings", "gone", "missing", "regrouped", "lapsing", "not audited")  # what is worth a mail
LOW = ("HOST", "PORT", "PROTOCOL", "STATES", "SERVICE")
FULL = ("ADDRESS", "NAME", "OS", "PORT", "PROTOCOL", "STATES", "SERVICE", "VERSION", "FIRST SEEN")
COLUMNS = {"ignored": (*LOW, "LINE", "GROUP"), "host gone": ("HOST",), "host new": ("HOST",), "regrouped": ("HOST",),
           "not audited": ("HOST", "FILE"), "lapsing": ("LINE", "GROUP", "UNTIL", "RULE"),
           "host": ("HOST", "OUTCOME", "SECONDS", "FILE")}  # of others LOW or FULL
CSV = {"IP": "ADDRESS", "Hostname": "NAME", "OS": "OS", "Port": "PORT", "Protocol": "PROTOCOL", "State": "STATE",
       "Service": "SERVICE", "Version": "VERSION", "Change": "CHANGE", "First Seen": "FIRST SEEN"}
WIDE = "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]"
FORMULA = tuple("=+-@|%\uff1d\uff0b\uff0d\uff20")  # what a formula begins with
WIDTHS = {"NAME": 40, "OS": 30, "SERVICE": 24, "VERSION": 40, "GROUP": 30, "FILE": 4096}
Section = tuple[str, Sequence[str], Sequence[Finding]]  # title, columns, rows
MOST_ROWS = 20000  # of one

def make_report(run: Run, changes: Changes, *, detail: str, headings: bool) -> Report:
    """The report of a run at a level of DETAIL; a phone's preview of the mail shows its first line."""
    hosts = sorted(run.hosts.values(), key=lambda host: numeric(host.address))
    of = gathered((each.change, each) for each in (*changes.findings, *changes.lapsing))
    outcomes = {"audited": 0, "down": 0} | collections.Counter(host.outcome for host in hosts)
    counts = {name: sum(len(of.get(change, ())) for change in several) for name, several in LISTS.items()}
    counts |= {"new": len(of.get("new", ())), "lapsing": len(changes.lapsing), **outcomes,
               "not audited": len(hosts) - outcomes["audited"] - outcomes["down"]}
    loud = {each.host.address for each in changes.findings}
    of |= {"ignored": [*changes.ignored], "host": [Finding(host, "host", why="clean" if host.outcome == "audited"
           and host.address not in loud else host.outcome) for host in hosts]}
    lapsing, *body = (_table(change, of.get(change, ()), detail) for change in [*TITLES][:TABLES[detail]])
    bad = [*_not_audited(hosts), lapsing]
    head, foot = _head(counts, changes, len(hosts)), _foot(run, changes, counts, detail)
    events = [_table(change, of.get(change, ()), detail) for change in ("host gone", "host new", "regrouped")]
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

# A finding's texts, as strangers wrote them, by column.
TEXTS: dict[str, Callable[[Finding], str]] = {
    "HOST": lambda each: str(each.host), "ADDRESS": lambda each: each.host.address, "FILE": lambda each: each.host.file,
    "NAME": lambda each: "".join(each.host.names[:1]), "OS": lambda each: "".join(each.host.os[:1]),
    "PORT": lambda each: each.rules[0].fields[0] if each.change == "missing" else str(each.port.number)
    if each.port.state else "", "PROTOCOL": lambda each: each.port.protocol, "STATE": lambda each: each.port.state,
    "STATES": lambda each: f"{each.before}\u2192" * (each.change == "changed") + each.port.state,
    "SERVICE": lambda each: each.port.service, "VERSION": lambda each: each.port.version,
    "CHANGE": lambda each: each.change, "FIRST SEEN": lambda each: each.port.first_seen,
    "OUTCOME": lambda each: each.why, "SECONDS": lambda each: f"{each.host.seconds:.1f}",
    "BEFORE": lambda each: each.before, "LINE": lambda each: ", ".join(rule.where.short for rule in each.rules),
    "GROUP": lambda each: ", ".join(rule.group for rule in each.rules),
    "UNTIL": lambda each: each.rules[0].until + each.why, "RULE": lambda each: " ".join(each.rules[0].fields)}

def list_findings(changes: Changes) -> dict[str, list[dict[str, str]]]:
    """The findings as run.json lists them."""
    lists = {name: [each for each in changes.findings if each.change in several] for name, several in LISTS.items()}
    keys = (*CSV.values(), "BEFORE", "LINE", "GROUP")
    return {name: [{key.lower().replace(" ", "_"): TEXTS[key](each) for key in keys} for each in several]
            for name, several in {**lists, "ignored": changes.ignored}.items()}

def make_csv(findings: Iterable[Finding], headings: bool) -> str:
    """scan_report.csv: RFC 4180, with the byte-order mark that spreadsheets want; empty where there is no row."""
    told = [each for each in findings if each.port.state]
    cells = ([shown(TEXTS[name](each), 1000) for name in CSV.values()] for each in told)
    rows = (["'" + cell if cell.lstrip()[:1] in FORMULA else cell for cell in row] for row in cells)  # ' makes it text
    file = io.StringIO()
    csv.writer(file).writerows(itertools.chain([CSV] * headings, rows))
    return "\ufeff" + file.getvalue() if told else ""
def _table(change: str, findings: Sequence[Finding], detail: str) -> Section:
    names = COLUMNS.get(change) or (*(LOW if detail == "low" else FULL), *["LINE", "GROUP"] * (change == "missing"))
    return f"{TITLES[change]} ({len(findings)})", names, findings
def _not_audited(hosts: Iterable[HostResult]) -> Iterator[Section]:
    bad = sorted((host for host in hosts if host.outcome not in ("audited", "down")),
                 key=lambda host: (OUTCOMES.index(host.outcome), host.reason))
    for (outcome, reason), several in itertools.groupby(bad, key=lambda host: (host.outcome, host.reason)):
        title, names, told = _table("not audited", [Finding(host, "not audited") for host in several], "")
        yield f"{title}: {outcome}: {shown(reason, 400)}", names, told
def _lay_out(head: Sequence[str], sections: Iterable[Section], foot: Sequence[str]) -> str:
    from tabulate import tabulate
    parts = ["\n".join(head)]
    for title, names, told in sections:
        rows = [[re.sub(WIDE, "\\g<0>\0", shown(TEXTS[name](each), WIDTHS.get(name, 60))) for name in names]
                for each in told[:MOST_ROWS]]  # wide characters take two columns each
        if rows:
            headings = [name.replace("STATES", "STATE") for name in names]
            parts += [title, tabulate(rows, headings, tablefmt="simple", disable_numparse=True).replace("\0", "")]
        if len(told) > MOST_ROWS:
            parts.append(f"... and {len(told) - MOST_ROWS} rows more")
    return "\n\n".join([*parts, "\n".join(foot)]) + "\n"

# ---- Mailing --------------------------------------------------------------------------------------------------------
SENDMAIL_SECONDS, SMTP_SECONDS, SMTP_WAITS = 120, 60, (1, 5, 15)  # the last: before another try, where one can help

def make_message(text: str, attachment: str, config: Config) -> bytes:
    """The mail that tells a report: To, From and Subject as given, the table of findings attached."""
    from email import message, policy, utils
    here = re.sub(r"[^A-Za-z0-9.-]", "", os.uname().nodename) or "localhost"
    mail = message.EmailMessage(policy=policy.SMTP.clone(cte_type="7bit"))
    for name, value in {
            "From": ", ".join(config.email_from) or f"nmap-audit@{here}", "To": ", ".join(config.email_to),
            "Subject": config.email_subject or f"nmap-audit report for {here}", "Date": utils.localtime(),
            "Message-ID": utils.make_msgid("nmap-audit", here), "Auto-Submitted": "auto-generated"}.items():
        mail[name] = value
    mail.set_content(text)
    if attachment:
        mail.add_attachment(attachment.encode(), "text", "csv", filename="scan_report.csv", params={"charset": "utf-8"})
    return mail.as_bytes()

def send_mail(data: bytes, config: Config) -> str:
    """Delivers a mail to those its headers name; says whom the server refused. AuditError (69) if nobody got it."""
    program = config.sendmail or (not config.smtp_server and find_program("sendmail"))
    for wait in (*SMTP_WAITS, 0):
        try:
            return _to_sendmail(program, data) if program else _to_smtp(data, config)
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # smtplib's errors are OSErrors, too
            codes = [getattr(error, "smtp_code", 0), *(code for code, _ in getattr(error, "recipients", {}).values())]
            final = max(codes) >= 500 or re.search("SSL|NotSupported|NotFound|Permission|Value", type(error).__name__)
            if final or program or not wait:
                by = program or config.smtp_server or "localhost"
                raise AuditError(os.EX_UNAVAILABLE, f"mail not delivered by {by}: {shown(str(error), 300)}") from None
        time.sleep(wait)
    return ""
def _to_sendmail(program: str, data: bytes) -> str:
    with tempfile.TemporaryFile() as said:
        done = subprocess.run([program, "-oi", "-t"], input=data.replace(b"\r\n", b"\n"), stdout=said, stderr=said,
                              timeout=SENDMAIL_SECONDS, start_new_session=True)
        said.seek(0)
        if done.returncode:
            words = _last_words(said.read(ERROR_BYTES).decode("utf-8", "replace"))
            raise ValueError(f"status {done.returncode} {words}".rstrip())
    return ""
def _to_smtp(data: bytes, config: Config) -> str:
    import smtplib
    import ssl
    from email import message_from_bytes, utils
    server = urllib.parse.urlsplit(f"//{config.smtp_server or 'localhost'}")
    context = ssl.create_default_context()
    connect = functools.partial(smtplib.SMTP_SSL, context=context) if config.smtp_tls == "tls" else smtplib.SMTP
    headers = message_from_bytes(data)
    sender, people = ([address for _, address in utils.getaddresses([headers[name]])] for name in ("From", "To"))
    port = server.port or 587 * (config.smtp_tls == "starttls")  # 0: smtplib knows the two others
    with connect(server.hostname or "", port, timeout=SMTP_SECONDS) as smtp:
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

FLAGS = {option.name.lower(): option for option in (
    *(each for each in OPTIONS if each.option), Option("", "settings", "", "the version", name="VERSION"),
    Option("", "settings", "", "this text", name="HELP"))}

def parse_options(argv: Sequence[str]) -> Iterator[Line]:
    """The command line as settings, read as Perl's Getopt::Long reads it: any case, `-config`, abbreviations."""
    rest = list(reversed(argv))
    while rest:
        word, equals, value = rest.pop().partition("=")
        option, implied = _option_named(word.lower())
        takes = option.metavar[:1]  # "[": a value that may be left out
        if takes and not equals and rest and (takes != "[" or rest[-1][:1] != "-"):
            equals, value = "=", rest.pop()
        if takes != "[" and bool(takes) != bool(equals):
            what = "needs a value" if takes else "takes no value"
            raise AuditError(os.EX_USAGE, f"--{option.name.lower()}: {what}; see --help")
        yield Line(option.name, value or implied, *[Where(f"--{option.name.lower()}")] * 2)
def _option_named(word: str) -> tuple[Option, str]:
    """The option, and the value that goes without saying: `--csv` is `no` to `--no-csv`, which `--nocsv` is, too."""
    positive = re.fullmatch("--?(csv|human|csv-headings)", word)
    name = re.sub("^--?(no(?=[ch]))?", lambda start: "no-" * bool(positive or start[1]), word)
    hits = [each for each in FLAGS if name not in ("", word) and each.startswith(name)]
    hits = [name] if name in hits else hits
    if len(hits) != 1:
        near = _meant(name, FLAGS, "see --help")
        what = f"may be --{', --'.join(hits)}; write it in full" if hits else f"unknown; {near}"
        raise AuditError(os.EX_USAGE, f"{shown(name, 60)}: {what}")
    return FLAGS[hits[0]], "no" * bool(positive)

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
        raise SystemExit(128 + number)
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, stop)

class Audit(Scanner):
    """What the command line asks for: a scan, a report, or both."""
    def scan(self, argv: Sequence[str]) -> None:
        config, directory = self.config, self.config.folders[0]
        if not config.ips or sum(map(count_addresses, config.ips)) > MOST_ADDRESSES:
            raise AuditError(os.EX_CONFIG, f"{config.ips_where or config.config}: IPS names no address, or more than "
                             f"{MOST_ADDRESSES}; name those to scan")
        if len(config.folders) > 1:
            raise AuditError(os.EX_USAGE, "--dir-name: several are for --process-only; name one")
        self.words = nmap_words(config.nmap)
        if config.baseline:
            _stored(config.baseline, directory)
        with locked(directory):
            self.run = self._begin(argv) if config.resume is None else self._take_up()
            self.scan_targets()
            self._send_kept()
            self.run.record.update(status="finished", ended=time.strftime(TIME))
            self.report([read_run(self.run.folder, self.run.record)])
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
        unfinished = (each for each, finished in _kept(directory) if not finished and config.resume in ("", each.name))
        if not (folder := next(unfinished, None)):
            what = f"has no unfinished run {config.resume or 'at all'}"
            raise AuditError(os.EX_NOINPUT, f"{directory}: {what}; start a new one, without --resume")
        run = read_run(folder)
        if (run.record["nmap"], run.record["ips"]) != (list(config.nmap), list(config.ips)):
            raise AuditError(os.EX_USAGE, f"--resume: {folder.name} had another NMAP or IPS; leave --resume out")
        run.record["hosts"] = {each.address: noted(each) for each in run.hosts.values()
                               if each.outcome in ("audited", "down")}
        return run
    def _prune(self, directory: Path) -> None:
        """Takes away the oldest runs; never one that a later report needs, or whose mail waits."""
        records = {run: read_record(run)[0] for run in list_runs(directory)} if self.config.keep_runs else {}
        finished = [run for run, record in records.items() if record.get("status") == "finished"]
        needed = [*finished[-self.config.keep_runs:], *[run for run in finished if records[run]["told"]][-1:]]
        for run in records:
            if run < min(needed, default=run) and not (directory / "unsent" / f"{run.name}.eml").exists():
                self.attempt(shutil.rmtree, run)
    def _view(self, runs: Sequence[Run]) -> tuple[Run, Changes, bool]:
        """What runs say as one, beside what was known and after the rules were heard; whether nothing was known."""
        groups, base = self.config.groups, self.config.baseline
        states = [last_told(run) for run in runs]
        for run, (state, _) in (pair for pair in zip(runs, states) if not pair[0].record.get("told")):
            run.record["before"] = None if state is None else state_json(state)
        if base:
            states = [(fold({}, _stored(base, home(runs[0].folder))), [f"compared with {base}"])]
        known = itertools.chain(*(state.items() for state, _ in states if state))
        before = dict(sorted(known, key=lambda item: item[1].file))
        remarks = (*itertools.chain(*(run.remarks for run in runs), *(more for _, more in states)),
                   *(f"with the results in {run.folder}" for run in runs[1:]))
        run = runs[0]._replace(remarks=remarks, hosts=merged(itertools.chain(*(run.hosts.values() for run in runs))))
        return run, find(run, before, groups), all(state is None for state, _ in states)
    def report(self, runs: Sequence[Run]) -> None:
        """Tells what runs say, as one; and notes that it was told of the run at work, or of a DIR-NAME's newest."""
        config, (run, changes, first) = self.config, self._view(runs)
        self.statuses.append(2 * any(host.outcome not in ("audited", "down") for host in run.hosts.values()))
        if config.scan_only:
            return self.save(runs[0])
        report = make_report(run, changes, detail=config.detail, headings=not config.no_csv_headings)
        untold = [each for each in runs if each.record.get("status") == "finished" and not each.record["told"]
                  and (not config.process_only or list_runs(each.folder.parent)[-1:] == [each.folder])]
        for each in untold:
            each.record.update(list_findings(changes))
            self.save(each)
        self.statuses.append(int(any(map(report.counts.get, config.fail_on))))
        name = run.folder.name if untold else time.strftime("%Y%m%d-%H%M%S-processed")
        if self._tell(report, run.folder, home(run.folder) / "unsent" / f"{name}.eml", first):
            self._settle(untold)
    def _tell(self, report: Report, folder: Path, unsent: Path, first: bool) -> bool | None:
        config, counts = self.config, report.counts
        worth = {"always": True, "changes": first or any(counts[name] for name in TELLING), "errors": False}
        wanted = worth[config.tell] or counts["not audited"]
        text, table = report.head if config.no_human else report.text, "" if config.no_csv else report.csv
        mail = make_message(text, table, config) if wanted and config.email_to else b""
        if mail and not config.process_only:
            self.attempt(os.makedirs, unsent.parent, 0o700, True)
        files = {folder / "report.txt": report.text.encode(), folder / "scan_report.csv": table.encode(),
                 folder / "report.eml": mail, unsent: mail}
        for path, data in [item for item in files.items() if item[1] and not config.process_only]:
            self.attempt(write_file, path, data)
        if config.no_human and not mail and (counts["not audited"] or counts["gone"]):
            say(text)  # what no row of the table says must not be lost
        printed = table if config.no_human else text
        return self._mail(mail, unsent, text) if mail else not wanted or self.attempt(show, printed)
    def _mail(self, mail: bytes, unsent: Path, text: str) -> bool | None:
        """Sends a mail; where that fails it waits in `unsent`, or else is printed. Says whether it is told."""
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
            return not waits and self.attempt(show, text)
    def _settle(self, runs: Iterable[Run]) -> None:
        for run in (run for run in runs if run.record and not run.record["told"]):
            state, _ = last_told(run)
            run.record.update(status="finished", told=True, state=state_json(fold(state or {}, run)))
            self.save(run)
    def _send_kept(self) -> None:
        for unsent in sorted((self.config.folders[0] / "unsent").glob("[!.]*.eml")):
            if not self._mail(unsent.read_bytes(), unsent, ""):
                return
            self._settle([read_run(self.config.folders[0] / unsent.stem)])
def _kept(path: Path) -> Iterator[tuple[Path, bool]]:
    """The runs of a DIR-NAME, newest first, and whether each is finished; a run, or other XML, stands for itself."""
    runs = [] if RUN_ID.fullmatch(path.name) else list_runs(path)
    for folder in reversed(runs or [path] * path.is_dir()):
        yield folder, not runs or read_record(folder)[0].get("status", "finished") == "finished"
def _stored(name: str | Path, directory: Path = Path()) -> Run:
    path = directory / name if RUN_ID.fullmatch(str(name)) else Path(name).absolute()
    if not (folder := next((each for each, finished in _kept(path) if finished), None)):
        raise AuditError(os.EX_NOINPUT, f"{path}: holds no finished run; name a run, or what holds some")
    if not (run := read_run(folder)).hosts:
        complain("\n".join(run.remarks))
        raise AuditError(os.EX_DATAERR, f"{folder}: holds no nmap XML; --dir-name names what to process")
    return run

def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments (None: the command line's): its exit status. A signal is a SystemExit."""
    os.umask(0o077)
    gc.set_threshold(100_000)  # there are many values and few cycles
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except AuditError as error:
        complain(str(error))
        return error.status
    except OSError as error:
        complain(f"{error.filename or 'a file'}: {error.strerror}; see to the disk and its permissions")
        return os.EX_IOERR
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
    config = replace(config, scan_only=config.scan_only and half >= 0, process_only=config.process_only and half <= 0)
    if config.process_only and (config.scan_only or config.resume is not None):
        raise AuditError(os.EX_USAGE, "--process-only: stands beside --scan-only or --resume; give one of them")
    for name, bits in ((path, 0o022 * (os.geteuid() == 0)), (config.smtp_password_file, 0o077)):
        with contextlib.suppress(OSError):
            found = os.stat(name)
            if found.st_mode & bits or bits and found.st_uid not in (0, os.geteuid()):
                complain(f"{name}: warning: {'writable' if name == path else 'readable'} by others; see chmod(1)")
    audit = Audit(config)
    audit.report(list(map(_stored, config.folders))) if config.process_only else audit.scan(argv)
    return min(audit.statuses, key=FIRST_OF.index)

if __name__ == "__main__":
    raise SystemExit(main())
