"""Run nmap on many hosts at once, drop every open port that somebody already accepted, mail the rest.

    rc text --parse_rc--> Blocks --read_config--> Config --Scanner--> Run: DIR-NAME/20261124-040654/{*.xml, run.json}
    Run --read_run--> HostResults --find(State, Groups)--> Findings --make_report--> Report
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
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import unicodedata
import urllib.parse
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
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

class Where(NamedTuple):
    """A place in an rc file, line and column counted from 1; or an option, then there is no line."""
    file: str
    line: int = 0
    column: int = 0
    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file
    @property
    def short(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line}" if self.line else self.file

# `WORD VALUE`: a line of the rc file, or an option.
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
    value: str
    where: Where
    matches: Callable[[HostResult], bool]
    keys: tuple[Any, ...] = ()

@dataclass(frozen=True, eq=False)
class Group:
    """The hosts that any of `tags` matches, and the rules on their ports."""
    name: str
    where: Where
    tags: tuple[Tag, ...]
    rules: tuple[Rule, ...]
    @functools.cached_property
    def by_word(self) -> Mapping[str, Sequence[Rule]]:
        """The rules by their word; by their port, those of several ports under `*`; by the service that they name."""
        return gathered((word, rule) for rule in self.rules for word in (
            rule.word, rule.fields[0] if rule.fields[0].isdigit() else "*",
            rule.fields[3] if "*" not in rule.fields[3] else ""))

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
NOTHING = Port(0, "", "")

class HostResult(NamedTuple):
    """What a run knows of one address: exactly one outcome of OUTCOMES and, when it is not audited, why."""
    address: str
    outcome: str
    reason: str = ""
    names: tuple[str, ...] = ()
    os: tuple[str, ...] = ()  # nmap's best guesses, each as its name and as "vendor family"
    ports: tuple[Port, ...] = ()
    looked: str = ""  # at which ports: `1-100,8080/tcp 53/udp`, see looked_at()
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

PORT_CHANGES = ("new", "changed", "first look", "standing")

class Finding(NamedTuple):
    """A port of a host, or the host or a rule itself, and what is to be said of it: a word of TABLES."""
    host: HostResult
    change: str
    port: Port = NOTHING
    before: str = ""  # its state in the baseline; of a host: its outcome there
    rules: tuple[Rule, ...] = ()  # that ignore it, expect it, all but accept it, or lapse
    why: str = ""  # of a host: its outcome, or clean; of a rule: why it does not accept the port, or when it ends
    @property
    def table(self) -> str:
        """Where it is told: its change, or `ignored` where a rule accepts the port."""
        return "ignored" if self.rules and self.change in PORT_CHANGES else self.change

class Report(NamedTuple):
    """A report as text, as HTML and as scan_report.csv (empty where not wanted), and how often each thing is said."""
    text: str
    html: str
    csv: str
    counts: Mapping[str, int]  # by change and by outcome; and `findings`

# What an nmap process left: its status (negative: killed by that signal), its output, the end of its errors.
Output = NamedTuple("Output", [("status", int), ("out", bytes), ("err", str), ("seconds", float)])
Mistakes = dict[Where, str]  # what is wrong; what to do: one a place
Block = tuple[Line, ...]  # a group from its head to its end, which may lack; or lines outside any
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
        text = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text[:width + 1])
    return text if len(text) <= width else text[:max(width - 3, 0)] + "..."

# ---- Reading the rc file --------------------------------------------------------------------------------------------
RC_BYTES = 1 << 20
# The grammar knows only shape: words are looked up later, so that a misspelt one, or none, hides no other mistake.
GRAMMAR = r"""
    start: _NL? outside (ended outside | unended)*
    outside: (setting | end)*
    ended: group setting* end
    unended: group setting*
    group: "group"i [VALUE] _NL
    end: "end"i [VALUE] _NL
    setting: NAME _SEPARATOR? [VALUE] _NL
    NAME: /[^ \t\r\f\v\n#][^ \t\r\f\v\n=:"]*/
    _SEPARATOR.2: /=|:(?!:)/
    VALUE.1: /(?:"[^"\n]*"|[^ \t\r\f\v\n#]|(?<=[=:])#)(?:"[^"\n]*"|[^ \t\r\f\v\n]|[ \t\r\f\v]+(?![ \t\r\f\v\n#]))*/
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
    with contextlib.suppress(UnicodeError):
        return data.decode("utf-8-sig")
    return data.decode("latin-1")

def parse_rc(text: str, file: str) -> tuple[Block, ...]:
    """The blocks of an rc file's text."""
    blocks = _parser().parse(text + "\n").children
    return tuple(tuple(_line(node, file) for node in block.children) for block in blocks if block.children)
@functools.lru_cache(maxsize=1)
def _parser() -> Any:
    from lark import Lark  # --help and --version do without it
    return Lark(GRAMMAR, parser="lalr", lexer="contextual", propagate_positions=True)
def _line(node: Any, file: str) -> Line:
    name, value = [node.data, *node.children][-2:]
    where = Where(file, node.meta.line, node.meta.column)
    word, text, column = str(name), str(value or ""), getattr(value, "column", where.column)
    quoted = word.upper() != "NMAP" and re.fullmatch(r'"[^"]*"', text) is not None
    return Line(word, text[quoted:len(text) - quoted], where, where._replace(column=column + quoted))

# ---- Understanding the rc file --------------------------------------------------------------------------------------
MOST_ADDRESSES, MOST_LETTERS = 1 << 20, 9999  # of all targets, of one target
RULES = ("ignore", "expect")
PLACES = "variables stand outside groups, tags, rules and 'end group' inside, see nmap-audit.rc(5)"
FIELDS = {"port": "N, N-M below 65536", "protocol": "tcp, udp, sctp, ip",  # a rule's; what each may be beside `*`
          "state": "open, closed, filtered, unfiltered, open|filtered, closed|filtered", "service": "NAME"}
SHIFTS = (8, 20, 64, 96, 128)  # an address without that many of its last bits is a key
NUMBER = "(?:0|[1-9][0-9]{0,4})"  # what begins with another 0 is octal to some
# What says where nmap's output goes or its targets come from, short flags bundled before it; and what only begins so.
REFUSED = re.compile(r"--?([oi]|ap|resu|sty|=|$)|-[46AFfhnRrvVdq]+[oi]")
NOT_REFUSED = " open osscan-guess osscan-limit iflist ip-options initial-rtt-timeout host-timeout noninteractive"
NAME = r"(?!-)(?:[\w-]+\.)*(?!0[xX])(?=[\w-]*[A-Za-z])[\w-]+\.?"  # `1234`, `0x7f.1` are addresses to resolvers
TARGET = rf"(?a:(?:{NAME}|[0-9*,-]+(?:\.[0-9*,-]+){{3}})(?:/[^,\s]*)?|[^,\s:]*:[^,\s]*)"
def _meant(word: str, known: Iterable[str], otherwise: str = PLACES) -> str:
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
        stray = re.fullmatch(r"[\d*,-]+(\.[\d*,-]+){3}(/\d+)?", word) and not re.match("-([DS]|sI|-?(ex|dns|ip))", last)
        if stray or REFUSED.match(word) and (len(name) < 2 or f" {name}" not in NOT_REFUSED):
            raise ValueError(f"'{shown(word, 60)}' cannot stand here, it is this program's", "take it out")
    return words

def nmap_at(words: Sequence[str]) -> int:
    """The index of the word that is nmap; the words before it (ssh HOST, srun, sudo) run it somewhere."""
    return next((i for i, word in enumerate(words) if os.path.basename(word) == "nmap"), 0)

def count_addresses(target: str) -> int:
    """How many addresses a target is (nmap(1), TARGET SPECIFICATION). ValueError where nmap would read another one."""
    base, _, mask = target.partition("/")
    width = 128 if ":" in base else 32
    with contextlib.suppress(ValueError):  # a mask above the width is one, too
        if len(target) <= MOST_LETTERS and re.fullmatch(rf"[\w.:,*%-]+(/{NUMBER})?", target, re.ASCII):
            one = ipaddress.IPv6Address(base) if width == 128 else re.fullmatch(NAME, base, re.ASCII)
            return (1 if one else math.prod(map(len, octets(base)))) << width - int(mask or width)
    raise ValueError(f"'{shown(target, 60)}' is read otherwise by nmap", "write an address, subnet, range or name")

def octets(text: str) -> tuple[frozenset[int], ...]:
    """The four sets of numbers that `192.0.2,7.*` or `10.0.0.1-9` stand for; ValueError for any other text."""
    def numbers(piece: str) -> bytes:
        low, dash, high = piece.replace("*", "-").partition("-")
        return bytes(range(int(low or 0), int(high or (255 if dash else low)) + 1))  # ValueError above 255
    piece = rf"(?:\*|{NUMBER}?-{NUMBER}?|{NUMBER})"
    fine = re.fullmatch(rf"{piece}(?:[,.]{piece})*", text) and text.count(".") == 3
    parts = [list(map(numbers, part.split(","))) for part in text.split(".")] if fine else [[b""]]
    if not all(map(all, parts)):
        raise ValueError
    return tuple(frozenset(b"".join(part)) for part in parts)
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
        if line.where.line and not self.variable:
            raise ValueError(f"{self.name} stands on the command line only", f"write --{self.name.lower()} there")
        try:
            if re.fullmatch(self.pattern, line.value):
                return self.convert(line.value)
        except ValueError as error:
            if len(error.args) == 2:
                raise
        raise ValueError(f"'{shown(line.value, 60)}' cannot be {self.name}",
                         f"write {self.metavar or 'one of yes, no or nothing'}: {self.help}")

TEXT = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+"
PLAIN = "(?![^\u2010-\u201f]*[\u2010-\u201f])"  # no dashes and quotes of word processors
PERSON = (r"\s*(?![^,]*[\x00-\x1f\x7f-\x9f])(?a:(?:\"[^\"]*\"\s*|[^<>\",@]*)<[^\s<>\",@]+(?:@[^\s<>\",@]+)?>|"
          r"[!#-'*+.-9=?^-~A-Z-]+(?:@[\w.:[\]-]+)?)\s*")
SERVER = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?"
Texts = tuple[str, ...]
def _opt(default: T, *settings: Any, **more: Any) -> T:
    return field(default=default, metadata={"option": Option(*settings, **more)})
def _switch(heading: str, text: str, **more: Any) -> bool:
    return _opt(False, "(?i:yes|on|1|no|off|0|)", heading, "", text,
                lambda on: on.lower() not in ("no", "off", "0"), **more)

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
    detail: str = _opt("low", "(?i:none|low|med|medium|high)", "reporting", "LEVEL", "none, low, med, high", str.lower)
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
    accept: str | None = _opt(None, ".*", "rules", "[LIMIT]", "rules for what the last report shows", variable=False)
    why: str = _opt("", TEXT, "rules", "HOST[:PORT]", "what ignores a host's ports", variable=False)
    unused_rules: bool = _switch("rules", "name the rules that never were of use", variable=False)
    quiet: bool = _switch("settings", "no status lines, for cron")
    groups: tuple[Group, ...] = ()
    ips_where: str = ""  # where its targets stand
    rc_text: str = ""
    @property
    def folders(self) -> tuple[Path, ...]:
        state = "/var/lib" if os.geteuid() == 0 else os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return tuple(Path(name).absolute() for name in self.dir_name or (os.path.expanduser(f"{state}/nmap-audit"),))

OPTIONS: tuple[Option, ...] = tuple(each.metadata["option"]._replace(name=each.name.upper().replace("_", "-"))
                                    for each in fields(Config) if each.metadata)
VARIABLES = {name: option for option in OPTIONS if option.variable for name in (option.name, *option.aliases)}

def read_config(blocks: Sequence[Block], options: Sequence[Line], rc_text: str = "") -> Config:
    """The settings in force: the command line's over the file's. AuditError with all mistakes, one a line."""
    mistakes, names, values, held = Mistakes(), dict[str, Line](), dict[str, Any](), dict[str, Sequence[Line]]()
    groups = tuple(_read_group(head, lines, names, mistakes) for head, *lines in blocks if head.word == "group")
    other = {"SCAN-ONLY": "PROCESS-ONLY", "PROCESS-ONLY": "SCAN-ONLY"}  # which gives way where one is an option
    gone = {other.get(line.word) for line in options}
    lines = [line for block in blocks if block[0].word != "group" for line in block if line.word.upper() not in gone]
    found = gathered(_read_lines([*lines, *options], {each.name: each for each in OPTIONS} | VARIABLES, mistakes))
    if mistakes:
        status = os.EX_CONFIG if all(where.line for where in mistakes) else os.EX_USAGE
        raise AuditError(status, "\n".join(f"{where}: {shown(text, 900)}" for where, text in sorted(mistakes.items())))
    for option, read in found.items():
        held[option.name], last = zip(*(each for each in read if each[0].where.file == read[-1][0].where.file))
        values[option.name.lower().replace("-", "_")] = tuple(itertools.chain(*last)) if option.many else last[-1]
    ips_where = ", ".join(str(line.value_where) for line in held.get("IPS", ()))
    return Config(**values, groups=groups, ips_where=ips_where, rc_text=rc_text)
def _read_lines(lines: Iterable[Line], words: Mapping[str, Option], mistakes: Mistakes) -> Iterator[tuple[Any, Any]]:
    for line in lines:
        word = line.word.lower() if words is INSIDE else line.word.upper()
        try:
            if word not in words:
                known = [] if {word.lower(), word.upper()} & {*INSIDE, *VARIABLES} else [*words, "GROUP"]
                raise ValueError(f"unknown word '{shown(line.word, 30)}'", _meant(word, known))
            yield words[word], (line, words[word].read(line))
        except ValueError as error:
            what, do = error.args
            if odd := re.search(r"[^\x00-\x7f\w]", f"{line.word} {line.value}"[:200]):
                do = f"type the {unicodedata.name(odd[0], 'character').lower()} (U+{ord(odd[0]):04X}) in it anew"
            mistakes[line.value_where if word in words else line.where] = f"{what}; {do}"
def _read_group(head: Line, lines: list[Line], names: dict[str, Line], mistakes: Mistakes) -> Group:
    name, key = shown(" ".join(head.value.split()), 90), _folded(head.value)
    end = lines.pop() if lines and lines[-1].word == "end" else None
    if not end or _folded(end.value) not in ("group", f"group {key}"):
        mistakes[(end or head).where] = f"group '{name}' is not ended; write 'end group {name}' below its rules"
    if (first := names.setdefault(key, head)) is not head or not key:
        mistakes[head.where] = f"'{name}' is no name, or that of line {first.where.line}; give it one of its own"
    found = [(option.name, line, read) for option, (line, read) in _read_lines(lines, INSIDE, mistakes)]
    tags = tuple(Tag(word, line.value, line.where, *read) for word, line, read in found if word not in RULES)
    rules = tuple(Rule(word, read[0], line.where, head.value, read[1]) for word, line, read in found if word in RULES)
    for tag in (tag for tag in tags if tag.word != tags[0].word):
        what = f"'{tag.word}' among the {tags[0].word} tags of line {tags[0].where.line}"
        mistakes.setdefault(tag.where, f"{what}; the tags of a group are of one class, make two groups")
    if len(found) == len(lines) and not (tags and rules):
        mistakes.setdefault(head.where, f"group '{name}' has no {'rule' if tags else 'hosts'}; write tags and rules")
    return Group(head.value, head.where, tags, rules)
def _folded(name: str) -> str:
    return " ".join(name.lower().replace('"', "").split())

@functools.lru_cache(maxsize=4096)
def numeric(address: str) -> tuple[int, int, str]:
    """(IP version, address as a number, its text), by which addresses are sorted and compared; version 9 for a name."""
    with contextlib.suppress(ValueError):
        return (parsed := ipaddress.ip_address(address)).version, int(parsed), address
    return 9, 0, address

def like(pattern: str, text: str) -> bool:
    """Whether a pattern, in which `*` is any run of characters, is the text; in time linear in the text."""
    return pattern == "*" or (_glob(pattern).match(text) is not None if "*" in pattern else pattern == text)
@functools.lru_cache(maxsize=1 << 14)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(re.sub(r"[?[]", r"[\g<0>]", pattern)))  # its * does not backtrack

def host_keys(host: HostResult) -> Iterator[Any]:
    """What a tag that matches the host has one of among its keys, if it has any."""
    version, number, _ = numeric(host.address)
    yield from ((version, shift, number >> shift) for shift in SHIFTS)
    for name in map(str.lower, host.names):
        yield from (name, name.partition(".")[0], name[:4], *(name[dot.start():] for dot in re.finditer(r"\.", name)))
def _ip_tag(text: str) -> tuple[Any, ...]:
    if text == "*":
        return (lambda host: True),
    sets = octets(text) if text.count(".") == 3 and not re.search("[:/]", text) else ()
    ends = [".".join(map(str, map(end, sets))) for end in (min, max)] if sets else text.split("-")
    nets = [ipaddress.ip_network(end, strict=False) for end in ends]
    first, last = (nets[0].version, int(nets[0][0])), (nets[-1].version, int(nets[-1][-1]))
    if len(nets) > 1 + ("/" not in text) or first[0] != last[0] or first > last:
        raise ValueError
    shift = next(shift for shift in SHIFTS if (last[1] >> shift) - (first[1] >> shift) < 64)
    keys = tuple((first[0], shift, number) for number in range(first[1] >> shift, (last[1] >> shift) + 1))
    return (lambda host: first <= numeric(host.address)[:2] <= last and all(
        int(part) in octet for part, octet in zip(host.address.split("."), sets))), keys
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
    plain, *until = re.split(r"(?<=\S)\s+until\s+(?=[0-9]{4}-[0-9]{2}-[0-9]{2}$)", text.lower())
    words = re.sub(r"(?<!\S)([\d*-]+)/(\w+|\*)(?!\S)", r"\1 \2", plain).split()
    kinds = [_kind(word) for word in words]
    lacking = [kind for kind in FIELDS if kind not in kinds]
    if len(words) != 4 or len(lacking) != kinds.count("*"):
        wanted = [f"one {kind} ({FIELDS[kind]} or *)" for kind in lacking] or ["four words, then until 2027-03-31"]
        raise ValueError(f"'{shown(text, 60)}' is read as {', '.join(kinds)}", f"write {', '.join(wanted)}")
    fields = tuple(dict(zip(kinds, words)).get(kind, "*") for kind in FIELDS)
    return fields, "".join(str(datetime.date.fromisoformat(day)) for day in until)
def _kind(word: str) -> str:
    """Which field a word can only be."""
    if re.fullmatch(r"[0-9*,:-]*[0-9][0-9*,:-]*", word):
        ends = re.fullmatch(rf"({NUMBER})(?:-({NUMBER}))?|[0-9]*\*[0-9*]*", word)
        return "port" if ends and int(ends[1] or 0) <= int(ends[2] or ends[1] or 0) < 65536 else "impossible port"
    return word if word == "*" else next((kind for kind in FIELDS if word in FIELDS[kind].split(", ")), "service")
INSIDE = {name: Option(pattern, "", metavar, text, read, name=name) for name, pattern, metavar, text, read in (
    ("ip", "[0-9A-Fa-f:.,*/-]+", "ADDRESS|SUBNET|RANGE", "no name; like 192.0.2.25 192.0.2.0/28 192.0.2.1-9", _ip_tag),
    ("hostname", rf"{PLAIN}(?!\d+(?:\.[\d*]+){{3}}$)[^\s,:]+", "NAME", "no address; * is any part", _hostname_tag),
    ("os", PLAIN + r".*\S.*", "TEXT", "a part of what nmap calls the system", _os_tag),
    *((name, PLAIN + ".+", "PORT PROTOCOL STATE SERVICE [until 2027-03-31]", "* for any", _rule) for name in RULES))}

# ---- Reading a run --------------------------------------------------------------------------------------------------
RUN_ID, VERSION, TIME = re.compile(r"\d{8}-\d{6}"), 1, "%Y-%m-%dT%H:%M:%S%z"  # of run.json, and as it notes times
PIECE = 1 << 20  # expat before 2.6 takes minutes for a large attribute that comes in small pieces
# What is kept: elements of a document and of a host, attributes of a port (also its state's and service's).
OF_DOCUMENT = ("nmaprun", "scaninfo", "finished", "hosts")
OF_HOST = ("host", "status", "address", "hostname", "osmatch", "osclass", "extraports", "ports", "port")
OF_PORT = ("portid", "protocol", "state", "name", "product", "version", "extrainfo")
STATUSES = {"up": "audited", "down": "down", "unknown": "not scanned"}
FORBIDDEN = re.compile(rb"&#(?:0*(?:[0-8]|1[1245-9]|2\d|3[01])|x0*(?:[0-8bcef]|1[\da-f]));", re.IGNORECASE)
STORED = ("address", "outcome", "names", "os", "ports", "file")  # what run.json keeps of a host of a State
Attrs = dict[str, str]
same_port = functools.lru_cache(maxsize=1 << 14)(Port)  # one object for equal ports

def opened(words: Iterable[str]) -> bool:
    """Whether --open is among nmap's words: then hosts without open ports are not listed."""
    return not {"-op", "-ope", "-open", "--op", "--ope", "--open"}.isdisjoint(words)

class Document:
    """nmap's XML (its DTD, files of nmap 3.27 to 7.97), kept as it is read: order and completeness don't matter."""
    def __init__(self) -> None:
        # Each host, and how many ports it lists or sums up (None: it does not say); why the document is not whole;
        # attributes of elements by their name, of hosts only the last one's.
        self.hosts, self.problem = list[tuple[HostResult, int | None]](), ""
        self.of = {name: [Attrs()] for name in OF_DOCUMENT} | {name: list[Attrs]() for name in OF_HOST}
    def start(self, name: str, attrs: Attrs) -> None:
        if name in ("host", "hosthint"):
            self.end_host()
        if name in self.of:
            self.of[name].append(attrs)
        elif name in ("state", "service") and self.of["port"]:
            self.of["port"][-1].update(attrs)  # no attribute's name is in two of port, state and service
    def end_host(self) -> None:
        """Keeps the host that was read last, whole or not: it ends where another starts, or with the document."""
        of = self.of
        addresses = [each["addr"] for each in of["address"] if each.get("addrtype") != "mac" and each.get("addr")]
        state = of["status"][0].get("state") if of["status"] else "up"
        if of["host"] and addresses and state in STATUSES:
            late, start, end = map(of["host"][0].get, ("timedout", "starttime", "endtime"))
            names = dict.fromkeys(name for each in of["hostname"] if (name := each.get("name")))
            systems = dict.fromkeys(_best(of["osmatch"]) + _best(of["osclass"]))
            ports = {port.key: port for port in [_port(*map(each.get, OF_PORT)) for each in of["port"]]}
            host = HostResult(addresses[0], "timed out" if late == "true" else STATUSES[state], "", tuple(names),
                              tuple(filter(None, systems)), tuple(ports.values()),
                              seconds=max(_int(end) - _int(start or end), 0))
            counted = len(of["port"]) + sum(_int(each.get("count")) for each in of["extraports"])
            self.hosts.append((host, counted if of["ports"] else None))
        of |= {name: [] for name in OF_HOST}

def read_xml(file: Any) -> Document:
    """The document in a binary file, and why it is not whole. Entities are refused, and nothing is ever fetched."""
    from defusedxml.expatreader import DefusedExpatParser  # --help and --version do without these
    from xml.sax import SAXException
    document, reader = Document(), DefusedExpatParser(forbid_external=False)  # nmap 6.45's DOCTYPE names an address
    try:
        reader.feed(b"")  # now there is an expat, which shall call nothing but what keeps an element
        expat: Any = getattr(reader, "_parser")
        expat.StartElementHandler, expat.EndElementHandler = document.start, None
        expat.CharacterDataHandler = expat.ProcessingInstructionHandler = None
        while piece := file.read(PIECE) + file.readline(PIECE):  # no reference is cut in two
            reader.feed(FORBIDDEN.sub(b"?", piece))  # what XML forbids, and nmap has written
        reader.close()
    except (SAXException, ValueError, LookupError) as error:
        why = re.sub(r"^<unknown>:(\d+):\d+", r"line \1", str(error).partition("(")[0])
        document.problem = f"not whole: {shown(why, 120)}"
    document.end_host()
    end = document.of["finished"][-1]
    if not document.problem and not (document.of["nmaprun"][-1] and end):
        document.problem = "not whole: nmap's closing lines are missing"
    elif end.get("exit", "success") != "success":
        document.problem = f"nmap gave up: {shown(end.get('errormsg', ''), 120)}"
    return document
def _int(text: str | None) -> int:
    return int(text) if text and len(text) < 11 and text.isascii() and text.isdigit() else 0
@functools.lru_cache(maxsize=1 << 14)  # a network has many equal ports
def _port(*attributes: str | None) -> Port:
    number, protocol, state, service, product, version, more = (each or "" for each in attributes)
    words = filter(None, (product, version, more and f"({more})"))
    return Port(_int(number), protocol, state, service, " ".join(words))
def _best(guesses: Sequence[Attrs]) -> list[str]:
    """What the guesses of the highest accuracy name: a system, or its vendor and family."""
    most = max((_int(each.get("accuracy")) for each in guesses), default=0)
    best = (each for each in guesses if _int(each.get("accuracy")) == most)
    return [" ".join(filter(None, map(each.get, ("name", "vendor", "osfamily")))) for each in best]

def judge(document: Document, file: str, asked: str = "") -> Iterator[HostResult]:
    """The document's hosts with the outcome that the whole document gives them.

    asked: whom nmap was asked for. Then ports must add up to what scaninfo says (lost writes of nmap show so), but for
    --open, with which nmap does not list all of them, and a host without open ports not at all.
    """
    run, scans = document.of["nmaprun"][-1], document.of["scaninfo"]
    services = sum(_int(scan.get("numservices")) for scan in scans)
    looked = sys.intern(" ".join(f"{scan['services']}/{scan.get('protocol')}" for scan in scans if "services" in scan))
    listless = opened(run.get("args", "").split())
    unlisted = asked and listless and not document.hosts and document.of["hosts"][-1].get("up") == "1"
    for host, counted in [(HostResult(asked, "audited"), services)] if unlisted else document.hosts:
        outcome, reason = host.outcome, "its --host-timeout passed" * (host.outcome == "timed out")
        if document.problem and outcome != "not scanned":
            outcome, reason = "cut off", document.problem
        elif outcome == "audited" and counted is None and services:
            outcome, reason = "timed out", "nmap lists none of its ports"
        elif outcome == "audited" and asked and not listless and (counted or 0) != services:
            outcome, reason = "cut off", f"its ports do not add up: nmap scanned {services} and shows {counted}"
        yield host._replace(outcome=outcome, reason=reason, looked=looked, file=file, start=_int(run.get("start")))

def joined(earlier: HostResult, later: HostResult, *, over: bool) -> HostResult:
    """A later result with the ports that an earlier one lists; over: but for those it looked at and does not list."""
    listed, looked = {port.key for port in later.ports}, looked_at(later.looked) if over else ()
    kept = tuple(port for port in earlier.ports if port.key not in listed and port.key not in looked)
    text = " ".join(sorted({*earlier.looked.split(), *later.looked.split()}))
    return later._replace(ports=kept + later.ports, looked=sys.intern(text))  # most hosts share it

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
def looked_at(looked: str) -> frozenset[str]:
    """The keys of the ports in nmap's lists of them (scaninfo/@services), with the protocol: `1-4,8/tcp 53/udp`."""
    return frozenset(f"{number}/{protocol}" for text, _, protocol in (each.rpartition("/") for each in looked.split())
                     for low, high in re.findall(r"(?<![^,])(\d{1,5})(?:-(\d{1,5}))?(?![^,])", text)
                     for number in range(int(low), int(high or low) + 1))

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

def noted(host: HostResult, names: Iterable[str] = ("outcome", "reason", "seconds", "start")) -> dict[str, Any]:
    """What run.json notes of a host."""
    return {name: getattr(host, name) for name in names}

def record_json(record: Mapping[str, Any]) -> bytes:
    """A record as run.json holds it: the hosts of a State by what was looked at, since most of them share that."""
    states = {name: gathered((host.looked, noted(host, STORED)) for host in state.values())
              for name in ("before", "state") if (state := record.get(name)) is not None}
    return json.dumps({**record, **states}, indent=0).encode()

def read_record(folder: Path) -> dict[str, Any]:
    """A run's run.json; empty where it cannot be used: then the XML tells."""
    try:
        record: dict[str, Any] = json.loads((folder / "run.json").read_bytes(), object_hook=_host)
        if record["version"] != VERSION or not {"told", "status", "nmap", "ips"} <= record.keys():
            return {}
        for note in record["hosts"].values():
            OUTCOMES.index(note["outcome"]), note["reason"] + "", note["seconds"] + note["start"]
        return record | {name: {host.address: host._replace(looked=looked) for looked, several in record[name].items()
                                for host in several} for name in ("before", "state") if record.get(name) is not None}
    except (OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
        return {}
def _host(found: dict[str, Any]) -> Any:
    """A host of a State, its ports shared with others; any other object of run.json as it is."""
    if not isinstance(found.get("ports"), list):
        return found
    ports = tuple(itertools.starmap(same_port, found["ports"]))
    return HostResult(**found | {"names": tuple(found["names"]), "os": tuple(found["os"]), "ports": ports})

def read_run(folder: Path, record: dict[str, Any] | None = None) -> Run:
    """What a run directory, or any folder with nmap's XML, holds: a result for each address that was asked for."""
    record = record or read_record(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    paths = {name: path for name in names if name[0] != "." and os.path.isfile(path := os.path.join(folder, name))}
    lists = paths.keys() & {"targets.xml", "targets6.xml"}
    files = [_read_file(paths[name]) for name in sorted(lists if record or lists else paths)]
    found = merged(itertools.chain(*(hosts for hosts, _ in files)))
    if not record and not lists:
        hosts = {address: host for address, host in found.items() if host.outcome != "not scanned"}
        return Run(folder, hosts, {}, tuple(remark for _, remark in files if remark))
    hosts = {}
    for address, note in (dict.fromkeys(found) | record.get("hosts", {})).items():
        path = paths.get(result_name(address)) or paths.get(result_name(address, ".part"), "")
        listed = found.get(address, NOBODY).names
        host = HostResult(address, "not scanned", "there is no result of it", listed, file=path)
        of_this_run = [each for each in _read_file(path, address)[0] if not note or note["start"] == each.start]
        kept = ("seconds",) if note and note["outcome"] == "audited" else ("outcome", "reason", "seconds")
        hosts[address] = merged([host, *of_this_run])[address]._replace(**{name: note[name] for name in kept if note})
    remark = f"{folder}/run.json is lost, damaged or of another version; its XML is read instead"
    return Run(folder, hosts, record, (remark,) * (not record))
def _read_file(path: str, asked: str = "") -> tuple[list[HostResult], str]:
    """The hosts of a file, of one of our own only the address that it is of; and what is wrong with the file."""
    document = Document()
    try:
        with open(path, "rb") as file:
            if path.lower().endswith(".xml") or re.match(rb"(?s)\W*<.*nmaprun", file.read(4096).replace(b"\0", b"")):
                file.seek(0)
                document = read_xml(file)
    except OSError as error:
        document.problem = str(error.strerror)
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
        Path(part).unlink(missing_ok=True)

def say(text: str, before: str = "", live: str = "") -> None:
    """Writes lines to standard error, which nobody may be reading; on a terminal `live`, which the next replaces."""
    with contextlib.suppress(OSError, AttributeError, ValueError):
        wipe = "\r\x1b[J" * (sys.stderr.isatty() and os.environ.get("TERM", "dumb") != "dumb")  # all of a shrunk line
        drawn = f"{wipe}\x1b[?7l{live}\x1b[?7h\r"  # cut by the terminal where it is too long
        lines = [f"{wipe}{before}{line}\n" for line in text.splitlines()]
        sys.stderr.write(drawn if live and wipe else "".join(lines))
complain = functools.partial(say, before="nmap-audit: ")

def locked(directory: Path) -> TextIO:
    """Makes DIR-NAME and holds its lock while the file that comes back is open. AuditError where it cannot."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if {os.lstat(directory).st_uid, os.stat(directory).st_uid} - {0, os.geteuid()}:
            raise PermissionError(1, "it is somebody else's", "owner")  # who could put links into it
        file = open(os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+", errors="replace")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate()
        os.write(file.fileno(), f"pid {os.getpid()} since {time.strftime('%F %T')}\n".encode())
        return file
    except BlockingIOError:
        who = shown(file.read(80).strip())
        raise AuditError(os.EX_TEMPFAIL, f"{directory}: another audit is running ({who}); wait for its end") from None
    except OSError as error:
        what = f"{directory}: {error.strerror} ({error.filename or 'lock'}); change DIR-NAME"
        raise AuditError(os.EX_CANTCREAT, what) from None

def list_runs(directory: Path) -> list[Path]:
    """The run folders of DIR-NAME, oldest first."""
    paths = directory.iterdir() if directory.is_dir() else ()
    return sorted(path for path in paths if RUN_ID.fullmatch(path.name) and path.is_dir() and not path.is_symlink())

def make_run(directory: Path) -> Path:
    """A new run folder, named by the local time; by a later one where the clock stepped back, so that names sort."""
    newest = max(filter(RUN_ID.fullmatch, os.listdir(directory)), default="19700101-000000")
    later = datetime.datetime.strptime(newest, "%Y%m%d-%H%M%S") + datetime.timedelta(seconds=1)
    (folder := directory / max(datetime.datetime.now(), later).strftime("%Y%m%d-%H%M%S")).mkdir(mode=0o700)
    return folder

# ---- Scanning -------------------------------------------------------------------------------------------------------
FILE_OPTIONS = "--?(exclude-?file|datadir|servicedb|versiondb|script-args-file)"  # their files may stand here
OUTPUT_BYTES, ERROR_BYTES, MOST_BATCH, MOST_REFUSALS = 256 << 20, 1 << 20, 256, 8
LEAST_BATCH = {"-s[A-Z]*U": 8, "-O|-A": 13, "-sV|-sC|-A|--script": 64}  # what a process is worth, by what NMAP holds
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CUT_END = b'<!-- nmap-audit: nmap ended %s -->\n<runstats><finished exit="success"/></runstats>\n</nmaprun>\n'
HOST_ELEMENT = re.compile(rb"<host[ >].*?</host>\s*", re.DOTALL)  # nmap escapes every < that is no tag's
# A command, and what is done with what it leaves: that gives the jobs that come of it, if any.
Job = NamedTuple("Job", [("words", Sequence[str]), ("done", Callable[[Output], Sequence[Any] | None])])

def find_program(name: str) -> str | None:
    """A program's full path; looked for where cron's PATH does not reach, too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/usr/sbin:/usr/lib")

def nmap_words(nmap: Sequence[str]) -> list[str]:
    """NMAP's words with the program's full path. AuditError where there is none."""
    if not (program := find_program(nmap[0])):
        raise AuditError(os.EX_UNAVAILABLE, f"{shown(nmap[0])}: not found; apt-get install nmap, or change NMAP")
    local = nmap_at(nmap) == 0
    return [os.path.abspath(program), *(os.path.abspath(word) if local and re.fullmatch(FILE_OPTIONS, before) else word
                                        for before, word in zip(nmap, nmap[1:]))]

def list_words(words: Sequence[str]) -> list[str]:
    """The command that lists targets: of nmap's options only those that the list depends on (-sL refuses others)."""
    at = nmap_at(words) + 1
    kept = [*words[:at], "-sL", "-n"]
    for word, value in zip(words[at:], [*words[at + 1:], "-"]):
        if re.fullmatch("--?(exclude|exclude-?file|dns-servers|system-dns|6)(=.*)?", word.replace("_", "-"), re.DOTALL):
            kept += [word, value][:1 if "=" in word or value.startswith("-") else 2]
    return kept

class Nmap(subprocess.Popen[bytes]):
    """A job's command at work. It writes to files without a name: whatever ends it, what it wrote by then is there."""
    def __init__(self, job: Job, folder: Path, working: dict[int, Nmap]) -> None:
        self.job, self.started = job, time.monotonic()
        self.files = tempfile.TemporaryFile(dir=folder), tempfile.TemporaryFile(dir=folder)
        env = {name: value for name, value in os.environ.items() if not re.match("NMAP(DIR|_ARGS|_(UN)?PRIV)", name)}
        # A kill -9 of this program must end nmap too, and only the kernel is left to see to that.
        guard = [setpriv, "--pdeathsig", "KILL"] if (setpriv := find_program("setpriv")) else []
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # else one ends us when it is started and not yet known
        try:
            super().__init__([*guard, *job.words], stdin=subprocess.DEVNULL, stdout=self.files[0], stderr=self.files[1],
                             env=env, cwd="/", start_new_session=True, preexec_fn=_free)  # no stranger's script is in /
            working[self.pid] = self
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    def end(self, status: int) -> Sequence[Job]:
        with self.files[0] as out, self.files[1] as err:
            out.seek(0)
            err.seek(max(0, err.seek(0, os.SEEK_END) - ERROR_BYTES))
            self.returncode, said = status, err.read().decode("utf-8", "replace")
            return self.job.done(Output(status, out.read(), said, time.monotonic() - self.started)) or ()
def _free() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    with contextlib.suppress(ValueError, OSError):  # there is a lower limit
        resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, OUTPUT_BYTES))  # kills what writes without an end

def run_jobs(jobs: Iterable[Job], folder: Path, workers: int) -> None:
    """Runs commands, so many at once, those that come of others first; nothing of them is left running, ever."""
    waiting, working, places = list(jobs), dict[int, Nmap](), threading.Semaphore(workers)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody is told how a process ended
    try:
        while waiting or working:
            if waiting and places.acquire(blocking=False):
                try:
                    Nmap(job := waiting.pop(0), folder, working)
                except OSError as error:
                    places.release()
                    waiting[:0] = job.done(Output(os.EX_OSERR, b"", str(error), 0)) or ()
            else:
                pid, status = os.wait()
                if ended := working.pop(pid, None):
                    places.release()
                    _stop([ended], 0)  # its group, which may still write
                    waiting[:0] = ended.end(os.waitstatus_to_exitcode(status))
    finally:
        _stop(working.values(), signal.SIGTERM)
        for nmap in working.values():
            nmap.end(-signal.SIGTERM)
def _stop(processes: Collection[Nmap], first: int) -> None:
    for number in (first, *[0] * 100, signal.SIGKILL):  # in two seconds they may end by themselves
        if processes := [each for each in processes if _reached(each, number)]:
            time.sleep(0.02)
def _reached(process: Nmap, number: int) -> bool:
    with contextlib.suppress(OSError):  # there is nobody in its group any more
        process.poll()
        os.killpg(process.pid, number)
        return True
    return False

def split_hosts(out: bytes, end: bytes) -> list[bytes]:
    """A batch's output as a document without hosts, then one a host, byte for byte; `end` is theirs if it has none."""
    parts = HOST_ELEMENT.split(re.sub(rb"(?s)<hosthint>.*?</hosthint>\s*", b"", out))  # there is a hint for each host
    ending = parts[-1] if b"<finished" in parts[-1] else end
    return [b"".join(parts), *(parts[0] + host + ending for host in HOST_ELEMENT.findall(out))]

def batch_results(output: Output, batch: Sequence[str]) -> Iterator[tuple[HostResult, bytes]]:
    """The outcome of each address of a batch, with the document that shows it (empty: there is none)."""
    status, single = output.status, len(batch) == 1  # then there is one document, as it is
    how = f"with status {status}" if status >= 0 else f"by signal {-status} ({signal.strsignal(-status)})"
    documents = [output.out] if single else split_hosts(output.out, CUT_END % how.encode())
    read = [(read_xml(io.BytesIO(data)), data) for data in documents]
    listed = [(host, data) for document, data in read[not single:] for host in judge(document, "", batch[0])]
    found, rest = {host.address: (host, data) for host, data in listed}, read[0][0]
    strange = [*collections.Counter(host.address for host, _ in listed) - collections.Counter(batch)]
    total, up = (_int(rest.of["hosts"][-1].get(name)) for name in ("total", "up"))
    lost = total < len(batch) or up > sum(host.outcome != "down" for host, _ in found.values())
    unlisted = HostResult("", "cut off" if rest.problem else "failed" if lost else "down", rest.problem or (
        "nmap did not look at it, or does not list it" * lost), start=_int(rest.of["nmaprun"][-1].get("start")))
    for address in batch:
        host, data = found.get(address, (unlisted, output.out))
        if status and (single or host.outcome != "audited"):
            host = host._replace(outcome="failed", reason=f"nmap ended {how}: {_last_words(output.err)}".rstrip(": "))
        elif strange:
            host = host._replace(outcome="cut off", reason=f"nmap lists {shown(strange[0], 60)} twice, or unasked")
        yield host._replace(address=address, seconds=round(output.seconds, 1) if single else host.seconds), data
def _last_words(err: str) -> str:
    lines = (line for line in err.splitlines() if line.strip(" !QUITNG") and not line.startswith(("\t", "stack")))
    return shown(" / ".join(map(str.strip, lines))[-300:], 300)

class Scanner:
    """The program at work on a run: what nmap says is kept, what goes wrong is told and leaves one of the statuses."""
    began = saved = whole = worked = 0.0  # when scanning began, run.json was written; seconds of work in all, and done
    done = ports = 0  # addresses scanned, and the ports found so far
    work: dict[str, float] = {}  # by address: its seconds last time, and one
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
            self.fail(os.EX_IOERR, f"{error.filename or [*things, 'a file'][0]}: {error.strerror}; see to the disk and "
                      "its permissions, what could not be kept is told again")
        return None
    def save(self, run: Run, **more: Any) -> None:
        run.record.update(more)
        self.attempt(write_file, run.folder / "run.json", record_json(run.record))
    def scan_targets(self) -> None:
        """Scans each address that nmap lists of the targets and that has no whole result."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]  # a process needs two, and three to be started
        self.workers = max(1, min(self.config.max_threads, (files - 24) // 2))
        words, record = list_words(self.words), self.run.record
        lists = gathered((f"targets{'6' * ('-6' in words or ':' in target)}.xml", target) for target in self.config.ips)
        try:
            run_jobs([job for name, targets in lists.items() for job in self._jobs(
                words, targets, len(targets), functools.partial(self._listed, name))], self.run.folder, self.workers)
            if not record["hosts"]:
                raise AuditError(os.EX_CONFIG, f"{self.config.ips_where}: every address of IPS is excluded; change one")
        finally:
            say("", live=" " * (not self.config.quiet))
            self.save(self.run, status="interrupted")  # it will be finished when its report is made
    def _jobs(self, words: Sequence[str], targets: Sequence[str], size: int, done: Callable[..., Any]) -> list[Job]:
        zones = {target.partition("%")[0]: target for target in self.config.ips if "%" in target}
        six = ["-6"] * (":" in "".join(targets[:1]) and "-6" not in words)
        parts = [targets[at:at + size] for at in range(0, len(targets), size)]
        return [Job([*words, *six, "-oX", "-", "--", *(zones.get(target, target) for target in part)],
                    functools.partial(done, part)) for part in parts]
    def _listed(self, name: str, targets: Sequence[str], output: Output) -> Sequence[Job]:
        """Notes which targets nmap cannot list; what it lists is scanned, first those that took longest last time."""
        config, document, hosts = self.config, read_xml(io.BytesIO(output.out)), self.run.record["hosts"]
        whole = self.attempt(write_file, self.run.folder / name, output.out) and not (output.status or document.problem)
        missing = re.findall(r'Failed to resolve "([^"\n]*)"', output.err) if whole else targets
        reason = "nmap could not resolve it" if whole else f"nmap could not list it: {_last_words(output.err)}"
        hosts |= {shown(each): noted(HostResult("", "failed", reason)) for each in missing if shown(each) not in hosts}
        runs = (read_record(folder) for folder in reversed(list_runs(self.run.folder.parent)))
        last = next((run["hosts"] for run in runs if run.get("status") == "finished"), dict[str, Any]())
        work = {host.address: 1 + last.get(host.address, noted(NOBODY))["seconds"] for host, _ in document.hosts
                if host.address not in hosts}
        self.began, self.work, self.whole = time.monotonic(), {**self.work, **work}, self.whole + sum(work.values())
        slowest_first = sorted(work, key=work.__getitem__, reverse=True)
        processes = self.workers * math.ceil(len(work) / self.workers / MOST_BATCH) or 1  # few waves: each mostly waits
        least = min((size for kind, size in LEAST_BATCH.items() if re.search(kind, " ".join(config.nmap))), default=32)
        size = 1 if opened(config.nmap) else config.batch or max(least, math.ceil(len(work) / processes))
        return self._jobs(self.words, slowest_first, size, functools.partial(self._scanned, False))
    def _scanned(self, again: bool, batch: Sequence[str], output: Output) -> Sequence[Job]:
        """Keeps what nmap says of a batch; what it did not finish is tried again in smaller ones, down to one."""
        began = output.status <= 0 or 128 <= output.status < 255 or b"<scaninfo" in output.out
        self.patience = math.inf if began else self.patience - (len(batch) == 1)
        hope = self.patience >= 0 and not (again and len(batch) == 1)
        found = gathered((hope and host.outcome in ("cut off", "failed"), (host, data))
                         for host, data in batch_results(output, batch))
        for host, data in found.get(False, ()):
            self._keep(host, data)
        rest = [host.address for host, _ in found.get(True, ())]
        return self._jobs(self.words, rest, max(1, len(batch) // 8), functools.partial(self._scanned, True))
    def _keep(self, host: HostResult, data: bytes) -> None:
        """Notes a result and says so: a line for each host; on a terminal one for all, drawn again and again."""
        whole, total = host.outcome in ("audited", "timed out"), len(self.work)
        path = self.run.folder / result_name(host.address, ".xml" if whole else ".part")
        if host.outcome != "down" and data and not self.attempt(write_file, path, data):
            host = host._replace(outcome="failed", reason="its result could not be written")
        self.run.record["hosts"][host.address] = noted(host)
        ports = sum(port.state != "closed" for port in host.ports)
        self.done, self.ports, self.worked = self.done + 1, self.ports + ports, self.worked + self.work[host.address]
        left = datetime.timedelta(seconds=int((time.monotonic() - self.began) * (self.whole / self.worked - 1)))
        what = f"{ports} port{'s' * (ports != 1)}" if host.outcome == "audited" else host.outcome
        bar = f"[{'#' * (10 * self.done // total):-<10}]"
        if not self.config.quiet:
            say(f"[{self.done}/{total}] {shown(str(host), 100)} {what}, {host.seconds:.1f} s",
                live=f"{bar} {self.done}/{total} hosts, {self.ports} ports, {left} left")
        if time.monotonic() - self.saved > 10 + total / 1000:
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
    state, remarks, lost = run.record.get("before"), list[str](), list[Path]()
    if run.record.get("told") and "before" in run.record:
        return state, []
    for folder in reversed([each for each in list_runs(home(run.folder)) if each.name < run.folder.name]):
        if not (record := read_record(folder)):  # read_run says why
            lost.append(folder)
        elif record["told"] and "state" in record:
            state = record["state"]
            break
    for each in map(read_run, reversed(lost)):
        state = fold(state or {}, each) or state
        remarks += each.remarks
    return state, remarks

# ---- Filtering ------------------------------------------------------------------------------------------------------
def differing(rule: Rule, fields: Fields, day: str = "") -> list[str]:
    """Which fields of a rule do not hold those of a port, or of another rule; `until` where it has ended by a day."""
    fine = (_within(rule.fields[0], fields[0]), *map(like, rule.fields[1:], fields[1:]), rule.holds(day))
    return [name for name, well in zip((*FIELDS, "until"), fine) if not well]
def _within(ports: str, others: str) -> bool:
    low, dash, high = ports.partition("-")
    least, _, most = others.partition("-")
    if dash:
        return least.isdigit() and int(low) <= int(least) and int(most or least) <= int(high)
    return ports == "*" or not most and like(ports, others)

@functools.lru_cache(maxsize=1 << 16)
def accepting(groups: tuple[Group, ...], fields: Fields, day: str) -> tuple[Rule, ...]:
    """The rules of these groups that accept a port."""
    return tuple(rule for group in groups for word in (fields[0], "*") for rule in group.by_word.get(word, ())
                 if not differing(rule, fields, day))

@functools.lru_cache(1 << 16)
def near_misses(groups: tuple[Group, ...], fields: Fields, day: str) -> dict[Rule, str]:
    """The rules that would accept a port but for one thing, and that; of another port where they name its service."""
    found, words = dict[Rule, str](), list(filter(None, (*fields, "*")))
    for rule in (rule for group in groups for word in words for rule in group.by_word.get(word, ())):
        if len(found) == 8:
            break  # more of them help nobody
        wrong = differing(rule, fields, day)
        if wrong == ["until"]:
            found[rule] = f"it ended on {rule.until}"
        elif len(wrong) == 1 and "*" not in rule.fields[3 if wrong == ["port"] else 0]:
            at = list(FIELDS).index(wrong[0])
            found[rule] = f"its {wrong[0]} is {rule.fields[at]} and nmap says {fields[at] or 'none'}"
    return found

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
    key = "/".join(rule.fields[:2])
    shut = rule.fields[2] == "closed" and key in looked_at(host.looked) and all(key != port.key for port in host.ports)
    return shut or any(not differing(rule, port.fields) for port in host.ports)

def find(run: Run, state: State, groups: Sequence[Group]) -> list[Finding]:
    """What a run says beside what is remembered: of rules, then of each address and its ports in their order."""
    day, groups_of = run_day(run), index(groups)
    late = str(datetime.date.fromisoformat(day) + datetime.timedelta(days=14))  # rules that end by then are named
    found = [Finding(NOBODY, "lapsing", rules=(rule,), why=rule.until + " (ended)" * (not rule.holds(day)))
             for group in groups for rule in group.rules if not rule.holds(late)]
    for host in sorted(run.hosts.values(), key=lambda host: numeric(host.address)):
        known, members, audited = state.get(host.address, NOBODY), groups_of(host), host.outcome == "audited"
        rows = sorted(_ports(host, known, members, day), key=lambda each: (each.port.protocol, each.port.number))
        said = {"host gone": known.outcome == "audited" and host.outcome == "down",
                "host new": audited and state and known is NOBODY,
                "regrouped": audited and known is not NOBODY and (known.names, known.os) != (host.names, host.os)
                and groups_of(known) != members,
                "not audited": not audited and host.outcome != "down"}
        rows += (Finding(host, change) for change, so in said.items() if so)
        clean = audited and all(each.table == "ignored" for each in rows)
        found += (*rows, Finding(host, "host", before=known.outcome, why="clean" if clean else host.outcome))
    return found
def _ports(host: HostResult, known: HostResult, members: tuple[Group, ...], day: str) -> Iterator[Finding]:
    lost, audited = {port.key: port for port in known.ports}, host.outcome == "audited"
    for port in (port for port in host.ports if port.state != "closed"):
        before, rules = lost.pop(port.key, NOTHING), accepting(members, port.fields, day)
        change = "new" if port.key in looked_at(known.looked) else "first look"
        if before.state:
            change = "standing" if before.state == port.state else "changed"
        port = same_port(*port[:5], before.first_seen or day)
        yield Finding(host, change, port, before.state, rules)
        if not rules:
            yield from (Finding(host, "near", port, "", (rule,), why)
                        for rule, why in near_misses(members, port.fields, day).items())
    looked = looked_at(host.looked) if audited else ()
    yield from (Finding(host, "gone", port, port.state) for port in lost.values()
                if port.state in ("open", "open|filtered") and port.key in looked)
    expected = (rule for group in members for rule in group.by_word.get("expect", ()))
    yield from (Finding(host, "missing", Port(_int(rule.fields[0]), *rule.fields[1:]), "", (rule,))
                for rule in expected if audited and rule.holds(day) and not met(rule, host))

# ---- Reporting ------------------------------------------------------------------------------------------------------
LOW = ("HOST", "PORT", "PROTOCOL", "STATES", "SERVICE")
FULL = ("ADDRESS", "NAME", "OS", *LOW[1:], "VERSION", "FIRST SEEN")
TABLES: dict[str, tuple[str, tuple[str, ...]]] = {  # title and columns; without any they are LOW or FULL
    "not audited": ("Not audited", ("HOST", "FILE")),
    "lapsing": ("Rules that lapse", ("LINE", "GROUP", "UNTIL", "RULE")),
    "missing": ("Missing: expected and not there", (*LOW, "LINE", "GROUP")),
    "new": ("New", ()), "changed": ("Changed", ()), "first look": ("First look", ()),
    "standing": ("Standing: told before, neither accepted nor closed", ()), "gone": ("Gone", ()),
    "host gone": ("Hosts gone: up before, down now", ("HOST",)), "host new": ("Hosts new", ("HOST",)),
    "regrouped": ("Hosts that changed group (their name or OS guess changed)", ("HOST",)),
    "near": ("Near misses: rules that would accept a port but for one thing", (*LOW[:3], "LINE", "WHY")),
    "ignored": ("Ignored", (*LOW, "LINE", "GROUP")),
    "host": ("Hosts", ("HOST", "OUTCOME", "SECONDS", "FILE"))}
SHOWN = {"none": 2, "low": 11, "med": 12, "medium": 12, "high": 14}  # how many of them a level of DETAIL shows
LISTS = {**dict.fromkeys(PORT_CHANGES, "findings"), "gone": "gone", "host gone": "gone", "missing": "missing",
         "host new": "hosts_new", "regrouped": "regrouped", "ignored": "ignored"}  # which of run.json's holds a table
TELLING = ("findings", "gone", "missing", "regrouped", "lapsing", "not audited")  # what is worth a mail
CSV = {"IP": "ADDRESS", "Hostname": "NAME", "OS": "OS", "Port": "PORT", "Protocol": "PROTOCOL", "State": "STATE",
       "Service": "SERVICE", "Version": "VERSION", "Change": "CHANGE", "First Seen": "FIRST SEEN"}
FORMULA = tuple("=+-@|%\uff1d\uff0b\uff0d\uff20")  # what begins one
WIDTHS = {"NAME": 40, "OS": 30, "SERVICE": 24, "VERSION": 40, "GROUP": 30, "WHY": 80, "FILE": 4096}
STYLES = {"<h3>(Not audited|Missing|New|Changed)": r'<h3><span style="color:#d33">\1</span>',
          "<h3>(Gone|Hosts gone)": r'<h3><span style="color:#a4c">\1</span>',
          "<table>": '<table style="display:block;overflow:auto;white-space:nowrap;text-align:left">',
          "<(t[dh])>": r'<\1 style="padding:1px 8px">'}
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>nmap-audit</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"></head>
<body style="font:14px sans-serif;overflow-wrap:anywhere">
{}</body></html>
"""
Found = Mapping[str, Sequence[Finding]]  # by table
Section = tuple[str, Sequence[str], Sequence[Sequence[str]]]  # title, headings, rows
MOST_ROWS, MOST_BARS = 20000, 8  # of a table, of the most frequent ports

def make_report(run: Run, findings: Sequence[Finding], config: Config) -> Report:
    """The report of a run as DETAIL and NO-HUMAN want it; a phone's preview of the mail shows its first line."""
    of = gathered((each.table, each) for each in findings)
    counts = collections.Counter(name for each in findings for name in {
        each.table, LISTS.get(each.table, ""), each.host.outcome if each.table == "host" else ""})
    head, foot, tables = _head(of, counts), _foot(run, of, counts, config.detail == "high"), [*_tables(of, config)]
    text, page = "\n\n".join(_parts(head, tables, foot, "simple")) + "\n", ""
    if not config.no_human and (config.email_to or not config.process_only):
        page = PAGE.format("\n".join(_parts(head, [*_bars(of, counts), *tables], foot, "html")))
        for pattern, styled in STYLES.items():
            page = re.sub(pattern, styled, page)
    rows = [each for each in findings if each.port.state and each.table not in ("ignored", "near")]
    return Report(text, page, "" if config.no_csv else make_csv(rows, not config.no_csv_headings), counts)
def _head(of: Found, counts: Mapping[str, int]) -> str:
    asked = [each.host.outcome for each in of.get("host", ()) if each.before == "audited"]
    lost = asked.count("down") + asked.count("failed")
    lines = {f"{counts['audited']} of {counts['host'] - counts['down']} hosts audited, {counts['findings']} findings, "
             f"{counts['gone']} gone": True,
             f"WARNING: {lost} of {len(asked)} hosts that were up before are down or failed now: "
             "the scanner's own network may be broken": lost * 2 > len(asked),
             f"WARNING: expected and missing: {counts['missing']}; the scanner may be blind": counts["missing"],
             "All clear.": not any(counts[name] for name in TELLING)}
    return "\n".join(line for line, so in lines.items() if so)
def _foot(run: Run, of: Found, counts: Mapping[str, int], high: bool) -> str:
    rules = {rule for each in of.get("ignored", ()) for rule in each.rules}
    whole = run.record.get("adds_up", RUN_ID.fullmatch(run.folder.name))
    return "\n".join((
        f"Ports ignored: {counts['ignored']}, by rules: {len(rules)}",
        f"Addresses: {len(run.hosts)}, of them audited: {counts['audited']}, down: {counts['down']}, "
        f"not audited: {counts['not audited']}",
        *(f"Note: {shown(remark, 300)}" for remark in run.remarks), f"Raw data: {run.folder}",
        *[f"nmap command: {shown(shlex.join(run.record.get('nmap', ['unknown'])), 400)}"] * high,
        *["Ports were not added up: nmap was run with --open, or by another program"] * (high and not whole)))
def _tables(of: Found, config: Config) -> Iterator[Section]:
    """What the level shows; of the hosts that were not audited a table for each reason, in the order of OUTCOMES."""
    for change in itertools.islice(TABLES, SHOWN[config.detail]):
        title, columns = TABLES[change]
        columns = columns or (LOW if config.detail == "low" else FULL)
        kinds = gathered(((OUTCOMES.index(each.host.outcome), each.host.reason) if change == "not audited" else (0, ""),
                          each) for each in of.get(change, ()) if not (config.no_human and each.port.state))
        for (at, reason), several in sorted(kinds.items()):
            why = f": {OUTCOMES[at]}: {shown(reason, 400)}" * (change == "not audited")
            more = f", {len(several) - MOST_ROWS} rows more than here" * (len(several) > MOST_ROWS)
            rows = [[shown(said[name], WIDTHS.get(name, 60)) for name in columns]
                    for said in map(texts, several[:MOST_ROWS])]
            yield f"{title} ({len(several)}{more}){why}", [name.replace("STATES", "STATE") for name in columns], rows
def _bars(of: Found, counts: Mapping[str, int]) -> Iterator[Section]:
    often = collections.Counter(f"{each.port.key} {each.port.service}" for change in PORT_CHANGES
                                for each in of.get(change, ()))
    for title, bars in (("Hosts", [(name, counts[name]) for name in ("audited", "not audited", "down")]),
                        ("Most frequent: accept first", often.most_common(MOST_BARS))):
        most = max((count for _, count in bars), default=0)
        yield title, (), [(shown(name, 40), str(count), "\u2588" * -(-count * 12 // most))
                          for name, count in bars if count]
def _parts(head: str, tables: Iterable[Section], foot: str, form: str) -> Iterator[str]:
    """What a report consists of, in tabulate's form: `simple`, or `html` with all that was found escaped."""
    from html import escape
    from tabulate import tabulate
    def part(tag: str, text: str) -> str:
        return f"<{tag}>{escape(text)}</{tag}>".replace("\n", "<br>") if form == "html" else text
    yield part("p", head)
    for title, headings, rows in (table for table in tables if table[2]):
        # A letter that takes two columns is two to tabulate with a NUL behind it.
        wide = [[cell if cell.isascii() else "".join(char + "\0" * (unicodedata.east_asian_width(char) in "WF")
                                                     for char in cell) for cell in row] for row in rows]
        yield part("h3", title)
        yield tabulate(wide, headings, tablefmt=form, disable_numparse=True).replace("\0", "")
    yield part("p", foot)

def texts(finding: Finding) -> dict[str, str]:
    """What a finding says, by column, as strangers wrote it."""
    host, change, port, before, rules, why = finding
    number = rules[0].fields[0] if change == "missing" else str(port.number)
    return {"HOST": str(host), "ADDRESS": host.address, "NAME": "".join(host.names[:1]), "OS": "".join(host.os[:1]),
            "PORT": number if port.state else "", "PROTOCOL": port.protocol, "STATE": port.state,
            "STATES": f"{before}\u2192" * (change == "changed") + port.state, "SERVICE": port.service,
            "VERSION": port.version, "CHANGE": change, "FIRST SEEN": port.first_seen, "BEFORE": before,
            "LINE": ", ".join(rule.where.short for rule in rules), "GROUP": ", ".join(rule.group for rule in rules),
            "RULE": ", ".join(" ".join(rule.fields) for rule in rules), "SECONDS": f"{host.seconds:.1f}",
            "FILE": host.file, **dict.fromkeys(("WHY", "OUTCOME", "UNTIL"), why)}

def list_findings(findings: Iterable[Finding]) -> dict[str, list[dict[str, str]]]:
    """The findings as run.json lists them."""
    keys = {name: name.lower().replace(" ", "_") for name in (*CSV.values(), "BEFORE", "LINE", "GROUP")}
    told = ((LISTS[each.table], texts(each)) for each in findings if each.table in LISTS)
    of = gathered((name, {key: said[column] for column, key in keys.items()}) for name, said in told)
    return {name: of.get(name, []) for name in LISTS.values()}

def make_csv(findings: Sequence[Finding], headings: bool) -> str:
    """scan_report.csv: RFC 4180, with the byte-order mark that spreadsheets want; empty where there is no row."""
    cells = ([shown(said[name], 1000) for name in CSV.values()] for said in map(texts, findings))
    rows = (["'" + cell if cell.lstrip()[:1] in FORMULA else cell for cell in row] for row in cells)  # ' makes it text
    file = io.StringIO()
    csv.writer(file).writerows(itertools.chain([CSV] * headings, rows))
    return "\ufeff" + file.getvalue() if findings else ""

# ---- Mailing --------------------------------------------------------------------------------------------------------
SENDMAIL_SECONDS, SMTP_SECONDS, SMTP_WAITS = 120, 60, (1, 5, 15)  # the last: before another try, where one can help
FINAL = re.compile(r"\(5\d\d, |SSL|NotSupported|NotFound|Permission|^Value")  # an error, as repr shows it, that stays

def make_message(text: str, html: str, attachment: str, config: Config) -> bytes:
    """The mail that tells a report: To, From and Subject as given; html and attachment only where there are any."""
    from email import message, policy, utils
    here = re.sub(r"[^A-Za-z0-9.-]", "", os.uname().nodename) or "localhost"
    mail = message.EmailMessage(policy=policy.SMTP.clone(cte_type="7bit"))
    for name, value in {
            "From": ", ".join(config.email_from) or f"nmap-audit@{here}", "To": ", ".join(config.email_to),
            "Subject": config.email_subject or f"nmap-audit report for {here}", "Date": utils.localtime(),
            "Message-ID": utils.make_msgid("nmap-audit", here), "Auto-Submitted": "auto-generated"}.items():
        mail[name] = value
    mail.set_content(text)
    if html:
        mail.add_alternative(html, subtype="html")
    if attachment:
        mail.add_attachment(attachment.encode(), "text", "csv", filename="scan_report.csv", params={"charset": "utf-8"})
    return mail.as_bytes()

def send_mail(data: bytes, config: Config) -> tuple[bool, str]:
    """Delivers a mail to those its headers name: whether anybody got it, and what went wrong."""
    program = config.sendmail or (not config.smtp_server and find_program("sendmail"))
    for wait in (0, *SMTP_WAITS):
        time.sleep(wait)
        try:
            return True, _to_sendmail(program, data) if program else _to_smtp(data, config)
        except (OSError, ValueError, subprocess.SubprocessError) as error:  # smtplib's errors are OSErrors, too
            problem = f"mail not delivered by {program or config.smtp_server or 'localhost'}: {shown(str(error), 300)}"
            if program or FINAL.search(repr(error)):
                break
    return False, problem
def _to_sendmail(program: str, data: bytes) -> str:
    with tempfile.TemporaryFile() as said:
        done = subprocess.run([program, "-oi", "-t"], input=data.replace(b"\r\n", b"\n"), stdout=said, stderr=said,
                              timeout=SENDMAIL_SECONDS, start_new_session=True)
        said.seek(0)
        if done.returncode:
            raise ValueError(f"{_last_words(said.read(9999).decode(errors='replace'))} (status {done.returncode})")
    return ""
def _to_smtp(data: bytes, config: Config) -> str:
    import smtplib
    import ssl
    from email import message_from_bytes, policy
    tls, server = config.smtp_tls, urllib.parse.urlsplit(f"//{config.smtp_server or 'localhost'}")
    context = ssl.create_default_context()
    connect = functools.partial(smtplib.SMTP_SSL, context=context) if tls == "tls" else smtplib.SMTP  # know their ports
    with connect(server.hostname or "", server.port or 587 * (tls == "starttls"), timeout=SMTP_SECONDS) as smtp:
        if tls == "starttls":
            smtp.starttls(context=context)
        if config.smtp_user:
            smtp.login(config.smtp_user, Path(config.smtp_password_file).read_text().strip())
        refused = smtp.send_message(message_from_bytes(data, policy=policy.SMTP))
    return f"refused: {shown(str(refused), 400)}; the others have the report" if refused else ""

# ---- Workshop -------------------------------------------------------------------------------------------------------
ASKED = re.compile(r"(?:([^:\[\]]+|\[[^\[\]]+\]):)?0*(\d+)(?:/(tcp|udp|sctp|ip))?")
SUBNETS = {4: (30, 29, 28, 27, 26, 25, 24), 6: (124, 120, 112, 64)}  # that groups are made of
SAFE = {"os": r"[A-Za-z0-9][A-Za-z0-9 .,:()/+_-]*", "hostname": r"(?!-)[a-z0-9*_.-]+", "ip": r"[0-9A-Fa-f.:/]+"}
NOWHERE = Where("")
Named = tuple[str, str]  # the word and the value of a tag

def select(asked: str, findings: Iterable[Finding]) -> tuple[Rule, list[Finding]]:
    """The ports, as a rule, that HOSTS[:PORT[/PROTOCOL]] or PORT[/PROTOCOL] means, and what is found of them and HOSTS,
    which are what an `ip` or a `hostname` tag may hold. AuditError (64) where they are none."""
    match = ASKED.fullmatch(asked)
    named, number, protocol = match.groups("*") if match else (asked, "*", "*")
    named = re.sub(r"^\[(.*)\]$", r"\1", named)
    try:
        ports = Rule("", _rule(f"{number} {protocol} * *")[0], NOWHERE, "")
        tag = _tag("hostname" if re.fullmatch(r"[\w.*-]*[A-Za-z][\w.*-]*", named) else "ip", named)
    except ValueError:
        raise AuditError(os.EX_USAGE, f"'{shown(asked, 60)}' is not HOST[:PORT[/PROTOCOL]] or PORT[/PROTOCOL]; write "
                         "HOST as behind ip or hostname, an IPv6 address and port as [2001:db8::1]:25") from None
    return ports, [each for each in findings if tag.matches(each.host) and (
        each.change == "host" or each.change in (*PORT_CHANGES, "near") and not differing(ports, each.port.fields))]
def _tag(word: str, value: str) -> Tag:
    return Tag(word, value, NOWHERE, *INSIDE[word].read(Line(word, value, NOWHERE, NOWHERE)))

def explain(run: Run, findings: Sequence[Finding], config: Config) -> str:
    """Which groups hold hosts, and what ignores their ports or almost would, a line each; AuditError as in select()."""
    (asked, said), groups_of, lines = select(config.why, findings), index(config.groups), list[str]()
    if not said:
        raise AuditError(os.EX_NOINPUT, f"{run.folder}: has no host {shown(config.why, 60)}; name one of its hosts")
    for *rows, (host, *_) in gathered((each.host.address, each) for each in said).values():
        why = f": {shown(host.reason)}" * (host.reason != "")
        lines.append(f"{shown(str(host))}: {host.outcome} in {run.folder.name}{why}")
        lines += [f"  in group '{group.name}' by {tag.where.short} ({tag.word} {tag.value})"
                  for group in groups_of(host) for tag in group.tags if tag.matches(host)] or ["  in no group"]
        for _, change, port, _, rules, why in rows:
            what = ", ".join(f"{rule.where.short} ({rule.group})" for rule in rules)
            lines.append(f"    {rules[0].where.short} would, but {why}" if change == "near" else
                         f"  {port.key} {port.state} {shown(port.service, 40)}".rstrip()
                         + (f": ignored by {what}" if rules else ": no rule ignores it"))
        if asked.fields[0] != "*" and not rows:
            key = "/".join(asked.fields[:2]).removesuffix("/*")
            lines.append(f"  {key}: {'closed or not listed' if in_reach(asked, host.looked) else 'not looked at'}")
    return "\n".join(lines) + "\n"

def suggest(run: Run, findings: Sequence[Finding], config: Config) -> str:
    """Groups, as rc text, that accept the findings that --accept asks for, and no port of any other host or run: those
    of most hosts first, outliers by their addresses. AuditError as in select()."""
    day, taken = run_day(run), {_folded(group.name) for group in config.groups}
    asked = [each for each in select(config.accept or "*", findings)[1] if each.table in PORT_CHANGES]
    wanted, shows = (gathered((each.port.fields, each.host.address) for each in several) for several in (
        asked, asked + [each for each in findings if each.table == "ignored"]))
    members = _candidates(run.hosts.values())
    groups = gathered((tags, (-count, int(fields[0]), fields)) for fields, several in sorted(wanted.items())
                      for tags, count in _cover({*several}, {*shows[fields]}, members))
    names = (name for at in itertools.count(1) if (name := f"accepted {day} {at}") not in taken)
    text = f"# From {run.folder.name}: {len(asked)} ports on {len({each.host.address for each in asked})} hosts.\n"
    for tags, rules in sorted(groups.items(), key=lambda item: [sum(count for count, *_ in item[1]), len(item[1])]):
        name, rows = next(names), [f"{word} {value}" for word, value in tags]
        rows += [f"ignore {_written(fields)}  # on {-count} hosts" for count, _, fields in sorted(rules)]
        text += "\n    ".join([f"\ngroup {name}", *rows]) + f"\nend group {name}\n"
    return text if groups else text + "# Nothing to accept.\n"
def _cover(asked: set[str], showing: set[str], members: Mapping[Named, set[str]]
           ) -> Iterator[tuple[tuple[Named, ...], int]]:
    """The tags of groups that hold these addresses and none that does not show the port; how many; outliers last."""
    usable = {tag: several for tag, several in members.items() if several <= showing}
    left = {address for address in asked if re.fullmatch(SAFE["ip"], address) and numeric(address)[0] < 9}
    while left:
        count, best = max(((len(left & several), tag) for tag, several in usable.items()), default=(0, ("", "")))
        outliers = tuple(("ip", address) for address in sorted(left, key=numeric))
        yield ((best,), len(asked & usable[best])) if count > 1 else (outliers, len(left))
        left = left - usable[best] if count > 1 else set()
def _candidates(hosts: Iterable[HostResult]) -> dict[Named, set[str]]:
    """The tags that groups may be made of, with the addresses that each matches."""
    names = set[Named]()
    for host in hosts:
        version, number, _ = numeric(host.address)
        label, dot, domain = "".join(host.names[:1]).lower().partition(".")
        names |= {("os", guess) for guess in host.os}
        names |= {("hostname", name + dot + domain) for name in ("*", re.sub(r"\d+", "*", label)) if dot or name != "*"}
        names |= {("ip", str(ipaddress.ip_network((number, bits), strict=False))) for bits in SUBNETS.get(version, ())}
    tags = [_tag(*name) for name in sorted(names) if re.fullmatch(SAFE[name[0]], name[1])]
    groups_of = index([Group("", NOWHERE, (tag,), ()) for tag in tags])
    found = gathered((group.tags[0], host.address) for host in hosts for group in groups_of(host))
    return {(tag.word, tag.value): {*several} for tag, several in found.items()}
def _written(fields: Fields) -> str:
    """A port as a rule; what an rc file cannot hold is written as `*`."""
    words = {"protocol": fields[1], "state": fields[2],
             "service": re.sub(r"^([\d*-]+)/", r"\1*", re.sub(r'[^!-~]|[#"*]', "*", fields[3]) or "*")}
    return " ".join([fields[0], *(word if _kind(word) == kind else "*" for kind, word in words.items())])

def unused(groups: Sequence[Group], runs: Iterable[Run]) -> str:
    """The rules that were put to the test in these runs, and were of no use; the groups that held no host."""
    tested, used, total, groups_of = collections.Counter[Any](), set[Any](), 0, index(groups)
    for total, run in enumerate(runs, 1):
        seen, day = set[tuple[Group, str]](), run_day(run)
        for host in (host for host in run.hosts.values() if host.outcome != "down"):
            used.update(members := groups_of(host))
            if host.outcome == "audited":
                seen |= {(group, host.looked) for group in members}
                used.update(*(accepting(members, port.fields, day) for port in host.ports),
                            (rule for group in members for rule in group.by_word.get("expect", ()) if met(rule, host)))
        tested.update({*groups} | {rule for group, looked in seen for rule in group.rules
                                   if rule.holds(day) and in_reach(rule, looked)})
    idle = sorted((each.where, times, each) for each, times in tested.items() if each not in used)
    told = "".join(f"{where.short}: group '{each.name}': held no host in {times} runs\n" if isinstance(each, Group) else
                   f"{where.short}: {each.word} {' '.join(each.fields)} ({each.group}): of no use in {times} runs that "
                   "looked\n" for where, times, each in idle)
    return f"Of {total} finished runs on record:\n" + (told or "Every rule was of use, or was never put to the test.\n")

def in_reach(rule: Rule, looked: str) -> bool:
    """Whether a scan that looks at these ports looks at any port of a rule."""
    key, keys = "/".join(rule.fields[:2]), looked_at(looked)
    return key in keys or re.search("[*-]", key) is not None and any(
        like(rule.fields[1], protocol) and _within(rule.fields[0], number)
        for number, _, protocol in (each.partition("/") for each in keys))

# ---- Command line ---------------------------------------------------------------------------------------------------
FIRST_OF = (os.EX_SOFTWARE, os.EX_IOERR, os.EX_UNAVAILABLE, 2, 1, 0)  # which of its statuses an audit ends with
FLAGS = {f"--{option.name.lower()}": option for option in [each for each in OPTIONS if each.option] + [
    Option("", "settings", "", "the version", name="VERSION"), Option("", "settings", "", "this text", name="HELP")]}
POSITIVE = {flag.replace("no-", "", 1): flag for flag in FLAGS if "--no-" in flag}  # take it back; in full only

def parse_options(argv: Sequence[str]) -> Iterator[Line]:
    """The command line as settings, read as Perl's Getopt::Long reads it: any case, `-config`, abbreviations."""
    rest = list(reversed(argv))
    while rest:
        word, equals, value = rest.pop().partition("=")
        flag = re.sub("^--?(no(?=[ch]))?(?=[a-z])", lambda start: "--" + "no-" * bool(start[1]), word.lower())
        hits = list({POSITIVE.get(flag, flag)} & FLAGS.keys()) or [each for each in FLAGS if each.startswith(flag)]
        if len(hits) != 1:
            what = f"write it in full; {' or '.join(hits)}" if hits else f"unknown; {_meant(flag, FLAGS, 'see --help')}"
            raise AuditError(os.EX_USAGE, f"{shown(flag, 60)}: {what}")
        option, where = FLAGS[hits[0]], Where(hits[0])
        takes = option.metavar[:1]  # "[": a value that may be left out
        if takes and not equals and rest and (takes != "[" or rest[-1][:1] != "-"):
            equals, value = "=", rest.pop()
        if takes != "[" and bool(takes) != bool(equals):
            raise AuditError(os.EX_USAGE, f"{where}: {'needs a' if takes else 'takes no'} value; see --help")
        yield Line(option.name, "no" if flag in POSITIVE else value, where, where)

class Audit(Scanner):
    """What the command line asks for: a scan, a report, or both; or what is printed of the rules."""
    base: Sequence[tuple[State, list[str]]] = ()  # what --baseline names, in the place of what was told last
    def obey(self, argv: Sequence[str]) -> None:
        """Does what the command line says, and leaves its statuses."""
        lines = list(parse_options(argv))
        given = {line.word: line.value for line in lines}
        if given.keys() & {"HELP", "VERSION"}:
            _show(_help_text() if "HELP" in given else f"nmap-audit {__version__}\n")
            return
        _catch_signals()
        self.config = config = _configured(lines, given.get("CONFIG", ""))
        if config.baseline:  # before anything is scanned
            place = home(config.folders[0]) if RUN_ID.fullmatch(config.baseline) else Path.cwd()
            self.base = [(fold({}, _stored(place / config.baseline)), [f"compared with {config.baseline}"])]
        if not (config.process_only or config.unused_rules or config.why or config.accept is not None):
            return self.scan(argv)
        runs = list(map(_stored, config.folders))
        if config.unused_rules:
            _show(unused(config.groups, itertools.chain.from_iterable(map(_runs, config.folders))))
        elif config.why or config.accept is not None:
            _show((explain if config.why else suggest)(*self._view(runs)[:2], config))
        else:
            self.report(runs)
    def scan(self, argv: Sequence[str]) -> None:
        config, directory = self.config, self.config.folders[0]
        if not 0 < sum(map(count_addresses, config.ips)) <= MOST_ADDRESSES:
            where = config.ips_where or config.config
            raise AuditError(os.EX_CONFIG, f"{where}: IPS names none, or over {MOST_ADDRESSES}; name those to scan")
        if len(config.folders) > 1:
            raise AuditError(os.EX_USAGE, "--dir-name: several are for --process-only; name one")
        self.words = nmap_words(config.nmap)
        with locked(directory):
            self.run = self._begin(argv) if config.resume is None else self._take_up(config.resume)
            self.scan_targets()
            self._send_kept(directory)
            self.run.record.update(status="finished", ended=time.strftime(TIME))
            self.report([read_run(self.run.folder, self.run.record)])
            self._prune(directory)
    def _begin(self, argv: Sequence[str]) -> Run:
        config, folder = self.config, make_run(self.config.folders[0])
        record: dict[str, Any] = {
            "version": VERSION, "program": f"nmap-audit {__version__}", "status": "running", "told": False,
            "started": time.strftime(TIME), "ended": None, "command_line": list(argv), "rc": config.rc_text,
            "nmap": config.nmap, "adds_up": not opened(config.nmap), "ips": config.ips, "hosts": {}}
        write_file(folder / "run.json", record_json(record))
        return Run(folder, {}, record)
    def _take_up(self, name: str) -> Run:
        run = _stored(self.config.folders[0], name, finished=False)
        if (run.record["nmap"], run.record["ips"]) != (list(self.config.nmap), list(self.config.ips)):
            raise AuditError(os.EX_USAGE, f"--resume: {run.folder.name} had another NMAP or IPS; leave --resume out")
        run.record["hosts"] = {each.address: noted(each) for each in run.hosts.values()
                               if each.outcome in ("audited", "down")}
        return run
    def _prune(self, directory: Path) -> None:
        """Takes away the oldest runs; never one that a later report needs, or whose mail waits."""
        records = {run: read_record(run) for run in list_runs(directory)} if self.config.keep_runs else {}
        finished = [run for run, record in records.items() if record.get("status") == "finished"]
        needed = [*finished[-self.config.keep_runs:], *[run for run in finished if records[run]["told"]][-1:]]
        for run in records:
            if run < min(needed, default=run) and not (directory / "unsent" / f"{run.name}.eml").exists():
                self.attempt(shutil.rmtree, run)
    def _view(self, runs: Sequence[Run]) -> tuple[Run, list[Finding], bool]:
        """What runs say as one, beside what was known and after the rules were heard; whether nothing was known."""
        told = list(map(last_told, runs))
        for run, (state, _) in zip(runs, told):
            run.record["before"] = state
        states, remarks = zip(*(self.base or told))
        before = dict(sorted(itertools.chain(*map(dict.items, filter(None, states))), key=lambda item: item[1].file))
        notes = (*itertools.chain(*(run.remarks for run in runs), *remarks),
                 *(f"with the results in {run.folder}" for run in runs[1:]))
        run = runs[0]._replace(remarks=notes, hosts=merged(itertools.chain(*(run.hosts.values() for run in runs))))
        return run, find(run, before, self.config.groups), all(state is None for state in states)
    def report(self, runs: Sequence[Run]) -> None:
        """Tells what runs say, as one; and notes that it was told of the run at work, or of a DIR-NAME's newest."""
        config, (run, findings, first) = self.config, self._view(runs)
        report = make_report(run, findings, config)
        self.statuses.append(2 * bool(report.counts["not audited"]))
        if config.scan_only:
            return self.save(runs[0])
        self.statuses.append(int(any(map(report.counts.get, config.fail_on))))
        untold = [each for each in runs if each.record.get("status") == "finished" and not each.record["told"]
                  and (not config.process_only or list_runs(each.folder.parent)[-1:] == [each.folder])]
        for each in untold:
            self.save(each, **list_findings(findings))
        name = run.folder.name if untold else time.strftime("%Y%m%d-%H%M%S-processed")
        if self._tell(report, run.folder, home(run.folder) / "unsent" / f"{name}.eml", first):
            self._settle(untold)
    def _tell(self, report: Report, folder: Path, unsent: Path, first: bool) -> bool | None:
        config, counts = self.config, report.counts
        wanted = counts["not audited"] or config.tell == "always" or config.tell == "changes" and (
            first or any(map(counts.get, TELLING)))
        mail = make_message(report.text, report.html, report.csv, config) if wanted and config.email_to else b""
        files = {"report.txt": report.text.encode(), "report.html": report.html.encode(),
                 "scan_report.csv": report.csv.encode(), "report.eml": mail}
        for name, data in [item for item in files.items() if item[1] and not config.process_only]:
            self.attempt(write_file, folder / name, data)
        if mail:
            return self._mail(mail, unsent, report.text)
        if config.no_human and (counts["not audited"] or counts["gone"]):
            say(report.text)  # what no row of the table says must not be lost
        return not wanted or self.attempt(_show, report.csv if config.no_human else report.text)
    def _mail(self, mail: bytes, unsent: Path, text: str) -> bool | None:
        """Sends a mail; where that fails it waits in `unsent`, or else is printed. Says whether it is told."""
        kept = not self.config.process_only and _keep(unsent, mail)  # one that is killed now sends the same again
        sent, problem = send_mail(mail, self.config)
        if sent:
            self.attempt(unsent.unlink, True)
        elif kept := kept or _keep(unsent, mail):
            problem += f"; {unsent} keeps the report, the next run sends it"
        if problem:
            self.fail(os.EX_UNAVAILABLE, problem)
        return sent or not kept and self.attempt(_show, text)
    def _settle(self, runs: Iterable[Run]) -> None:
        for run in (run for run in runs if run.record and not run.record["told"]):
            self.save(run, status="finished", told=True, state=fold(last_told(run)[0] or {}, run))
    def _send_kept(self, directory: Path) -> None:
        for unsent in sorted((directory / "unsent").glob("[!.]*.eml")):
            if not self._mail(unsent.read_bytes(), unsent, ""):
                return
            self._settle([read_run(directory / unsent.stem)])
def _show(text: str) -> bool:
    """Writes to standard output, in any locale. AuditError (74) where it cannot be written."""
    try:
        with open(sys.stdout.fileno(), "wb", closefd=False) as out:
            out.write(text.encode())
        return True
    except (OSError, AttributeError, ValueError) as error:
        raise AuditError(os.EX_IOERR, f"standard output: {error}; give it a place to write to") from None
def _help_text() -> str:
    """--help, from the tables: 80 columns, a block for each heading."""
    rows = gathered((each.heading, f"  {f'{flag} {each.metavar}':<26}{each.help}\n") for flag, each in FLAGS.items())
    blocks = "\n".join(f"{heading.capitalize()}:\n{''.join(lines)}" for heading, lines in rows.items())
    usage = "nmap-audit --config FILE [OPTION]...\nRun nmap on many hosts, drop what is accepted, mail the rest."
    return f"Usage: {usage}\n\n{blocks}\nOptions may be abbreviated. See nmap-audit(1) and nmap-audit.rc(5).\n"
def _catch_signals() -> None:
    """From now on a signal ends the program, once; one that is ignored (nohup's SIGHUP) stays so."""
    def stop(number: int, _: Any) -> None:
        for each in SIGNALS:
            signal.signal(each, lambda *_: None)  # one that came at the same time stops no cleaning up
        complain(f"ended by {signal.Signals(number).name}; --resume goes on")
        raise SystemExit(128 + number)
    for number in (each for each in SIGNALS if signal.getsignal(each) != signal.SIG_IGN):
        signal.signal(number, stop)
def _configured(lines: Sequence[Line], path: str) -> Config:
    if not path:
        raise AuditError(os.EX_USAGE, "--config: is always needed; name the rc file, see nmap-audit(1)")
    config = read_config(parse_rc(text := read_rc(path), path), lines, text)
    if config.process_only and (config.scan_only or config.resume is not None):
        raise AuditError(os.EX_USAGE, "--process-only: stands beside --scan-only or --resume; give one of them")
    for name, bits in ((path, 0o022 * (os.geteuid() == 0)), (config.smtp_password_file, 0o077)):
        with contextlib.suppress(OSError):
            found = os.stat(name)
            if found.st_mode & bits or bits and found.st_uid not in (0, os.geteuid()):
                complain(f"{name}: warning: {'writable' if name == path else 'readable'} by others; see chmod(1)")
    return config
def _keep(unsent: Path, mail: bytes) -> bool:
    with contextlib.suppress(OSError):
        unsent.parent.mkdir(mode=0o700, exist_ok=True)
        return unsent.exists() or write_file(unsent, mail)
    return False
def _runs(path: Path, finished: bool = True) -> Iterator[Run]:
    """The runs of a DIR-NAME, newest first, that are finished, or are not; a run, or other XML, stands for itself."""
    folders = [] if RUN_ID.fullmatch(path.name) else list_runs(path)
    for folder in reversed(folders or [path] * path.is_dir()):
        record = read_record(folder)
        if finished == (not folders or record.get("status", "finished") == "finished"):
            yield read_run(folder, record)
def _stored(path: Path, name: str = "", finished: bool = True) -> Run:
    if not (run := next((each for each in _runs(path, finished) if name in ("", each.folder.name)), None)):
        raise AuditError(os.EX_NOINPUT, f"{path}: holds no {'un' * (not finished)}finished run {name}".rstrip()
                         + "; name one that it holds, or scan without --resume and --process-only")
    if finished and not run.hosts:
        complain("\n".join(run.remarks))
        raise AuditError(os.EX_DATAERR, f"{run.folder}: holds no nmap XML; --dir-name names what to process")
    return run

def main(argv: Sequence[str] | None = None) -> int:
    """Runs the program with these arguments (None: the command line's): its exit status. A signal is a SystemExit."""
    os.umask(0o077)
    gc.set_threshold(100_000)  # there are many values and few cycles
    audit = Audit(Config())
    try:
        audit.attempt(functools.partial(audit.obey, sys.argv[1:] if argv is None else argv))
    except Exception:  # a bug: the one traceback that a user may see
        audit.fail(os.EX_SOFTWARE, f"a bug; please report it with all this:\n{traceback.format_exc()}")
    return min(audit.statuses, key=bytes(FIRST_OF).find)  # any other stands alone

if __name__ == "__main__":
    raise SystemExit(main())
