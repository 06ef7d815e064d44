"""Run nmap on many hosts at once, drop every open port that somebody already accepted, mail the rest.

    rc text --parse_rc--> Blocks --read_config--> Config --Scanner--> Run: DIR-NAME/20261124-040654/{*.xml, run.json}
    Run --read_run--> HostResults --find(State, Groups)--> Findings --make_report--> Report
    Report --make_message--> mail --send_mail--> out

Arrows only go forward, and the run directory is the only thing that passes from scanning to reporting. A section
of this file uses itself and the sections above it; inside a section public names come before their helpers."""
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
PORT_CHANGES = ("new", "changed", "first look", "standing")  # of a port that is there
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

Line = NamedTuple("Line", [("word", str), ("value", str), ("where", Where), ("value_where", Where)])  # `WORD VALUE`

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
    def by(self) -> Mapping[str, Sequence[Rule]]:
        """The rules by their word, by `port 25` or, those of several ports, `port *`, and by `service smtp`."""
        return gathered((key, rule) for rule in self.rules for key in (
            rule.word, f"port {rule.fields[0] if rule.fields[0].isdigit() else '*'}", f"service {rule.fields[3]}"))

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
NOBODY = HostResult("", "not scanned", "there is no result of it")

class Run(NamedTuple):
    """A run directory, read: results by address; run.json, empty where unusable; remarks on what was odd."""
    folder: Path
    hosts: Mapping[str, HostResult]
    record: dict[str, Any]
    remarks: tuple[str, ...] = ()

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

# A report as text, as HTML and as scan_report.csv (empty where not wanted); how often each change and outcome is said.
Report = NamedTuple("Report", [("text", str), ("html", str), ("csv", str), ("counts", Mapping[str, int])])
# What an nmap process left: its status (negative: killed by that signal), its output, the end of its errors.
Output = NamedTuple("Output", [("status", int), ("out", bytes), ("err", str), ("seconds", float)])
Mistakes = dict[Where, str]  # what is wrong; what to do: one a place
Block = Sequence[Line]  # a group from its head to its end, which may lack; or lines outside any
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
    outside: (line{NAME} | line{END})*
    ended: line{GROUP} line{NAME}* line{END}
    unended: line{GROUP} line{NAME}*
    line{word}: word _SEPARATOR? [VALUE] _NL
    GROUP: "group"i
    END: "end"i
    NAME: /[^ \t\r\f\v\n#][^ \t\r\f\v\n=:"]*/
    _SEPARATOR.2: /=|:(?!:)/
    VALUE.1: /(?:"[^"\n]*"|[^ \t\r\f\v\n#]|(?<=[=:])#)(?:"[^"\n]*"|[^ \t\r\f\v\n]|[ \t\r\f\v]+(?![ \t\r\f\v\n#]))*/
    _NL: /([ \t\r\f\v]*(#[^\n]*)?\n)+/
    %ignore /[ \t\r\f\v]+/"""

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

def parse_rc(text: str, file: str) -> list[Block]:
    """The blocks of an rc file's text."""
    blocks = _parser().parse(text + "\n").children
    return [[_line(file, *node.children) for node in block.children] for block in blocks if block.children]
@functools.lru_cache(maxsize=1)
def _parser() -> Any:
    from lark import Lark  # --help and --version do without it
    return Lark(GRAMMAR, parser="lalr", lexer="contextual")
def _line(file: str, word: Any, value: Any) -> Line:
    text = value if word.upper() == "NMAP" else re.sub('^"([^"]*)"$', r"\1", value or "")
    return Line(str(word), str(text or ""), *(Where(file, word.line, each.column) for each in (word, value or word)))

# ---- Understanding the rc file --------------------------------------------------------------------------------------
MOST_ADDRESSES, MOST_LETTERS = 1 << 20, 9999  # of all targets, of one target
RULES = ("ignore", "expect")
PLACES = "variables stand outside groups, tags, rules and 'end group' inside, other options on the command line"
FIELDS = {"port": "N, N-M below 65536", "protocol": "tcp, udp, sctp, ip",  # a rule's; what each may be beside `*`
          "state": "open, closed, filtered, unfiltered, open|filtered, closed|filtered", "service": "NAME"}
NUMBER = "(?:0|[1-9][0-9]{0,4})"  # what begins with another 0 is octal to some
# What says where nmap's output goes or its targets come from, short flags bundled before it; and what only begins so.
REFUSED = re.compile(r"--?([oi]|ap|resu|sty|=|$)|-[46AFfhnRrvVdq]+[oi]")
NOT_REFUSED = " open osscan-guess osscan-limit iflist ip-options initial-rtt-timeout host-timeout noninteractive"
NAME = r"(?!-)(?:[\w-]+\.)*(?!0[xX])(?=[\w-]*[A-Za-z])[\w-]+\.?"  # `1234`, `0x7f.1` are addresses to resolvers
FOUR = r"[0-9*,-]+(?:\.[0-9*,-]+){3}(?:/[0-9]+)?"  # octets; any other whole target has a letter or a colon
def _meant(word: str, known: Iterable[str], otherwise: str = PLACES) -> str:
    near = [name for name in known if name.startswith(word[:5])] or difflib.get_close_matches(word, list(known), 1)
    return f"did you mean '{near[0]}'?" if near else otherwise
def _words(text: str) -> Texts:
    return tuple(filter(None, map(str.strip, re.findall(r'(?:"[^"]*"|[^,])+', text))))
def _nmap(text: str) -> Texts:
    words = tuple(shlex.split(text))
    for last, word in itertools.pairwise(words[nmap_at(words):]):
        name = word.strip("-").partition("=")[0].replace("_", "-")
        stray = re.fullmatch(FOUR, word) and not re.match("-([DS]|sI|-?(ex|dns|ip))", last)
        if stray or REFUSED.match(word) and (len(name) < 2 or f" {name}" not in NOT_REFUSED):
            raise ValueError(f"'{shown(word, 60)}' is left to this program; take it out, targets belong to IPS")
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
    raise ValueError(f"nmap reads '{shown(target, 60)}' otherwise; write one address, subnet, range or name")

def octets(text: str) -> tuple[frozenset[int], ...]:
    """The four sets of numbers that `192.0.2,7.*` or `10.0.0.1-9` stand for; ValueError for any other text."""
    def numbers(piece: str) -> bytes:
        ends = re.fullmatch(rf"({NUMBER})|({NUMBER}?)-({NUMBER}?)|\*", piece)
        low, high = (ends[1] or ends[2] or 0, ends[1] or ends[3] or 255) if ends else (1, 0)
        return bytes(range(int(low), int(high) + 1))  # none where it is no piece, ValueError above 255
    parts = [[*map(numbers, part.split(","))] for part in text.split(".")]
    if len(parts) != 4 or not all(map(all, parts)):
        raise ValueError
    return tuple(frozenset(b"".join(part)) for part in parts)
def _targets(text: str) -> Texts:
    """The targets of one IPS value: a comma parts them only where whole targets stand on both its sides."""
    found = re.findall(rf"({FOUR}|[^,\s:A-Za-z]*[:A-Za-z][^,\s]*)\s*(?:,\s*(?=\S)|$)|(.+)", text)
    return tuple(target for target in map("".join, found) if count_addresses(target))

class Option(NamedTuple):
    """What the text behind a word must match and how it becomes a value, where it may stand, what it is for."""
    pattern: str
    metavar: str  # empty: a switch
    heading: str  # of --help; empty: not on the command line
    help: str
    convert: Callable[[str], Any] = str  # ValueError where it cannot be, best with `why; what to do`
    aliases: tuple[str, ...] = ()  # other names in the rc file
    variable: bool = True  # may stand in the rc file
    many: bool = False  # repeated ones add up, and `--email-to=` takes back what the file says
    name: str = ""  # EMAIL-TO
    def read(self, text: str) -> Any:
        if not re.fullmatch(self.pattern, text):
            raise ValueError
        return self.convert(text)

TEXT = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]+"
PLAIN = "(?![^\u2010-\u201f]*[\u2010-\u201f])"  # no dashes and quotes of word processors
ADDR = r"[!#-'*+.-9=?^-~A-Z-]+(?:@(?:[\w.-]+|\[[\w.:]+\]))?(?: \([^(),<>@]*\))?"  # and a comment
PERSON = rf'\s*(?!\.|[^,]*[\x00-\x1f\x7f-\x9f]|[^",]*(?:[\s)]\.|\.<))(?a:(?:"[^"]*"\s*|[^<>",@:;]*)<{ADDR}>|{ADDR})\s*'
SERVER = r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(:[0-9]{1,5})?"
Texts = tuple[str, ...]
def _opt(default: T, *settings: Any, **more: Any) -> T:
    return field(default=default, metadata={"option": Option(*settings, **more)})
_switch = functools.partial(_opt, False, "(?i:yes|on|1|no|off|0|)", "",
                            convert=lambda on: on.lower() not in ("no", "off", "0"))

@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The settings in force, each field with the option that sets it; then what the rc file says beside them."""
    config: str = _opt("", TEXT, "FILE", "settings", "the rc file; always needed", variable=False)
    ips: Texts = _opt((), TEXT, "TARGET[,TARGET..]", "scanning", "address, subnet, range, name", _targets, many=True)
    nmap: Texts = _opt(("nmap", "-F"), rf"(?=.*\w){PLAIN}{TEXT}", "CMD", "scanning", "words, quotes in pairs", _nmap)
    max_threads: int = _opt(10, "[1-9][0-9]{0,8}", "N", "scanning", "processes at a time: a whole number from 1", int)
    batch: str = _opt("auto", "(?i:auto)|[1-9][0-9]{0,8}", "N|auto", "scanning", "addresses for a process: N, or auto")
    dir_name: Texts = _opt((), rf"(?=.*[^\s,]){TEXT}", "DIR[,DIR2..]", "settings", "where runs are stored", _words)
    keep_runs: int = _opt(0, "[0-9]{1,9}", "N", "settings", "how many runs to keep: a whole number, 0 for all", int)
    resume: str | None = _opt(None, "[0-9-]*", "[RUN-ID]", "scanning", "go on with an unfinished run", variable=False)
    scan_only: bool = _switch("scanning", "scan and store, report nothing")
    process_only: bool = _switch("reporting", "report from what is stored, scan nothing")
    baseline: str = _opt("", TEXT, "RUN-ID|DIR", "reporting", "compare with this run", variable=False)
    detail: str = _opt("low", "(?i:none|low|med|medium|high)", "LEVEL", "reporting", "none, low, med, high", str.lower)
    no_human: bool = _switch("reporting", "no table in the text")
    no_csv: bool = _switch("reporting", "no scan_report.csv")
    no_csv_headings: bool = _switch("reporting", "scan_report.csv without its first line")
    fail_on: Texts = _opt((), "(?:(?:findings|new|gone|missing)(?:,(?!$)|$))+", "WHAT[,WHAT..]", "reporting",
                          "status 1 for findings, new, gone, missing", _words, variable=False)
    email_to: Texts = _opt((), f"{PERSON}(,{PERSON})*", "ADDR[,..]", "mailing", "address to mail to", _words, many=True)
    email_from: Texts = _opt((), PERSON, "ADDR", "mailing", "the sender's address", _words, ("FROM",))
    email_subject: str = _opt("", TEXT, "TEXT", "mailing", "the subject", str, ("SUBJECT",))
    tell: str = _opt("changes", "changes|always|errors", "WHEN", "mailing", "one of changes, always, errors")
    sendmail: str = _opt("", TEXT, "PATH", "", "the program that takes mail")
    smtp_server: str = _opt("", SERVER, "HOST[:PORT]", "", "the server that takes mail")
    smtp_tls: str = _opt("none", "none|starttls|tls", "HOW", "", "one of none, starttls, tls")
    smtp_user: str = _opt("", TEXT, "NAME", "", "the name to log in with")
    smtp_password_file: str = _opt("", TEXT, "FILE", "", "what holds its password")
    accept: str | None = _opt(None, ".*", "[LIMIT]", "rules", "rules for what the last report shows", variable=False)
    why: str = _opt("", TEXT, "HOST[:PORT]", "rules", "what ignores a host's ports", variable=False)
    test_config: bool = _switch("rules", "look for what is odd in the rc file", variable=False)
    unused_rules: bool = _switch("rules", "name the rules that never were of use", variable=False)
    quiet: bool = _switch("settings", "no status lines, for cron")
    groups: tuple[Group, ...] = ()
    sources: Mapping[str, Sequence[Line]] = field(default_factory=dict)  # the lines in force, by option
    rc_text: str = ""
    @property
    def folders(self) -> tuple[Path, ...]:
        state = "/var/lib" if os.geteuid() == 0 else os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return tuple(Path(name).absolute() for name in self.dir_name or (os.path.expanduser(f"{state}/nmap-audit"),))
    def place(self, name: str) -> str:
        return ", ".join(str(line.value_where) for line in self.sources.get(name, ())) or self.config
    def unfit(self) -> Iterator[tuple[str, str]]:
        """The options that no scan can start with, and why; what to do."""
        if not (self.process_only or 0 < sum(map(count_addresses, self.ips)) <= MOST_ADDRESSES):
            yield "IPS", f"IPS names none, or over {MOST_ADDRESSES}; name those to scan"
        if len(self.folders) > 1 and not self.process_only:
            yield "DIR-NAME", "several are for PROCESS-ONLY; name one"
    def refusal(self, name: str, what: str) -> AuditError:
        return AuditError(os.EX_USAGE if self.place(name)[:2] == "--" else os.EX_CONFIG, f"{self.place(name)}: {what}")

OPTIONS: dict[str, Option] = {(name := each.name.upper().replace("_", "-")): each.metadata["option"]._replace(name=name)
                              for each in fields(Config) if each.metadata}
VARIABLES = {name: each for each in OPTIONS.values() if each.variable for name in (each.name, *each.aliases)}

def read_config(blocks: Sequence[Block], options: Sequence[Line], rc_text: str = "") -> Config:
    """The settings in force: the command line's over the file's. AuditError with all mistakes, one a line."""
    mistakes, names, values, sources = Mistakes(), dict[str, Line](), dict[str, Any](), dict[str, Sequence[Line]]()
    groups = tuple(_read_group(head, lines, names, mistakes) for head, *lines in blocks if head.word.lower() == "group")
    against = {"SCAN-ONLY": "PROCESS-ONLY", "RESUME": "PROCESS-ONLY", "PROCESS-ONLY": "SCAN-ONLY"}  # option, variable
    undone = [line._replace(word=against[line.word], value="no") for line in options if line.word in against]
    outside = [line for block in blocks if block[0].word.lower() != "group"
               for before, line in zip((None, *block), block)
               # What can only stand in a group is of one that a mistake before it began.
               if not before or before.word.upper() in VARIABLES or line.word.lower() not in (*INSIDE, "end")]
    found = gathered(_read_lines([*outside, *undone, *options], OPTIONS | VARIABLES, mistakes))
    for option, read in found.items():
        sources[option.name], last = zip(*(each for each in read if each[0].where.file == read[-1][0].where.file))
        values[option.name.lower().replace("-", "_")] = tuple(itertools.chain(*last)) if option.many else last[-1]
    if values.get("process_only") and (values.get("scan_only") or "resume" in values):
        mistakes[sources["PROCESS-ONLY"][-1].where] = "it stands beside SCAN-ONLY or --resume; take one of them out"
    if mistakes:
        status = os.EX_CONFIG if all(where.line for where in mistakes) else os.EX_USAGE
        raise AuditError(status, "\n".join(f"{where}: {shown(text, 900)}" for where, text in sorted(mistakes.items())))
    return Config(**values, groups=groups, sources=sources, rc_text=rc_text)
def _read_lines(lines: Iterable[Line], words: Mapping[str, Option], mistakes: Mistakes) -> Iterator[tuple[Any, Any]]:
    for line in lines:
        word = line.word.lower() if words is INSIDE else line.word.upper()
        try:
            if word in words and (words[word].variable or not line.where.line):
                taken_back = words[word].many and not line.value and not line.where.line
                yield words[word], (line, () if taken_back else words[word].read(line.value))
                continue
            known = {word.lower(), word.upper()} & {"end", "group", *INSIDE, *OPTIONS, *VARIABLES}
            place, what = line.where, f"{'misplaced' if known else 'unknown'} word '{shown(line.word, 30)}'"
            do = _meant(word, [] if known else [*words, "GROUP", "end group"])
        except ValueError as error:
            why, ours, do = str(error).partition("; ")  # Python's reasons are not for users
            place, what = line.value_where, f"'{shown(line.value, 60)}' cannot be {word}" + f": {why}" * bool(ours)
            do = do or f"write {words[word].metavar or 'one of yes, no or nothing'}: {words[word].help}"
        if odd := re.search(r"[^\x00-\x7f\w]", f"{line.word} {line.value}"[:200]):
            do = f"type the {unicodedata.name(odd[0], 'character').lower()} (U+{ord(odd[0]):04X}) in it anew"
        mistakes[place] = f"{what}; {do}"
def _read_group(head: Line, lines: list[Line], names: dict[str, Line], mistakes: Mistakes) -> Group:
    name, key = shown(" ".join(head.value.split()), 90), _folded(head.value)
    end = lines.pop() if lines and lines[-1].word.lower() == "end" else head._replace(value="")
    found = [(option.name, line, read) for option, (line, read) in _read_lines(lines, INSIDE, mistakes)]
    tags = tuple(Tag(word, line.value, line.where, *read) for word, line, read in found if word not in RULES)
    rules = tuple(Rule(word, read[0], line.where, head.value, read[1]) for word, line, read in found if word in RULES)
    first, whole = names.setdefault(key, head), len(found) == len(lines)
    mistakes |= {tag.where: f"'{tag.word}' among the {tags[0].word} tags of line {tags[0].where.line}; "
                 "the tags of a group are of one class, make two groups" for tag in tags if tag.word != tags[0].word}
    mistakes |= {at.where: f"group '{name}' has {what}" for what, at, so in (  # the last one of a place holds
        (f"no {'rule' if tags else 'hosts'}; write tags and rules", head, whole and not (tags and rules)),
        (f"no end of its own; write 'end group {name}'", end, _folded(end.value) not in {"group", f"group {key}"}),
        (f"the name of line {first.where.line}; write one of its own", head, first is not head),
        ("no name; write one of its own", head, not key)) if so}
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
    yield from ((version, shift, number >> shift) for shift in range(0, 36 if version == 4 else 132, 4))
    for name in map(str.lower, host.names):
        yield from (name, name.partition(".")[0], name[:4], *(name[dot.start():] for dot in re.finditer(r"\.", name)))
def _ip_tag(text: str) -> tuple[Any, ...]:
    if text == "*":
        return (lambda host: True),
    sets = octets(text) if text.count(".") == 3 and not re.search("[:/]", text) else ()
    ends = [".".join(map(str, map(end, sets))) for end in (min, max)] if sets else text.split("-")
    nets = [ipaddress.ip_network(end, strict=False) for end in ends]
    version, low, high = nets[0].version, int(nets[0][0]), int(nets[-1][-1])
    if len(nets) > 1 + ("/" not in text) or version != nets[-1].version or low > high:
        raise ValueError
    shift = -(-(low ^ high).bit_length() // 4) * 4  # without that many of their last bits they are the same
    return (lambda host: (version, low) <= numeric(host.address)[:2] <= (version, high) and all(
        int(part) in octet for part, octet in zip(host.address.split("."), sets))), ((version, shift, low >> shift),)
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
    found = dict(zip(map(_kind, words), words))
    lacking = [f"one {kind} ({FIELDS[kind]} or *)" for kind in FIELDS if kind not in found]
    if len(words) != 4 or len(lacking) != words.count("*"):
        wanted = ", ".join(lacking) or "four words, then until 2027-03-31"
        raise ValueError(f"it is read as {shown(', '.join(map(_kind, words)), 90)}; write {wanted}")
    return tuple(found.get(kind, "*") for kind in FIELDS), "".join(map(str, map(datetime.date.fromisoformat, until)))
def _kind(word: str) -> str:
    """Which field a word can only be."""
    if re.fullmatch(r"[0-9*,:-]*[0-9][0-9*,:-]*", word):
        ends = re.fullmatch(rf"({NUMBER})(?:-({NUMBER}))?|[0-9]*\*[0-9*]*", word)
        return "port" if ends and int(ends[1] or 0) <= int(ends[2] or ends[1] or 0) < 65536 else "impossible port"
    return word if word == "*" else next((kind for kind in FIELDS if word in FIELDS[kind].split(", ")), "service")
INSIDE = {name: Option(pattern, metavar, "", text, read, name=name) for name, pattern, metavar, text, read in (
    ("ip", "[0-9A-Fa-f:.,*/-]+", "ADDRESS|SUBNET|RANGE", "one a line, no name; 192.0.2.0/28 or 192.0.2.1-9", _ip_tag),
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
lists_all = {"-op", "-ope", "-open", "--op", "--ope", "--open"}.isdisjoint  # nmap's words; these leave out hosts
STATUSES = {"up": "audited", "down": "down", "unknown": "not scanned"}
FORBIDDEN = re.compile(rb"&#(?:0*(?:[0-8]|1[1245-9]|2\d|3[01])|x0*(?:[0-8bcef]|1[\da-f]));", re.IGNORECASE)
Attrs = dict[str, str]
same_port = functools.lru_cache(maxsize=1 << 14)(Port)  # one object for equal ports

class Document:
    """nmap's XML (its DTD, files of nmap 3.27 to 7.97), kept as it is read: order and completeness don't matter."""
    def __init__(self) -> None:
        # Each host, and how many ports it lists or sums up (None: it does not say); why the document is not whole; at
        # which ports nmap looked; attributes of elements by their name, of hosts only the last one's.
        self.hosts, self.problem, self.looked = list[tuple[HostResult, int | None]](), "", ""
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
            ports = {port.key: port for port in [_port(*map(each.get, OF_PORT)) for each in of["port"]]}
            host = HostResult(addresses[0], "timed out" if late == "true" else STATUSES[state], "",
                              tuple(_named(of["hostname"])), tuple(_named(of["osmatch"]) | _named(of["osclass"])),
                              tuple(ports.values()), seconds=max(_int(end) - _int(start or end), 0))
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
        if not (document.of["nmaprun"][-1] and document.of["finished"][-1]):
            raise ValueError("nmap's closing lines are missing")
    except (SAXException, ValueError, LookupError) as error:
        why = re.sub(r"^<unknown>:(\d+):\d+", r"line \1", str(error).partition("(")[0])
        document.problem = f"not whole: {shown(why, 120)}"
    document.end_host()
    scans = (scan for scan in document.of["scaninfo"] if "services" in scan)
    document.looked = sys.intern(" ".join(f"{scan['services']}/{scan.get('protocol')}" for scan in scans))
    if (end := document.of["finished"][-1]).get("exit", "success") != "success":
        document.problem = f"nmap gave up: {shown(end.get('errormsg', ''), 120)}"
    return document
def _int(text: str | None) -> int:
    return int(text) if text and len(text) < 11 and text.isascii() and text.isdigit() else 0
@functools.lru_cache(maxsize=1 << 14)  # a network has many equal ports
def _port(*attributes: str | None) -> Port:
    number, protocol, state, service, product, version, more = (each or "" for each in attributes)
    words = filter(None, (product, version, more and f"({more})"))
    return Port(_int(number), protocol, state, service, " ".join(words))
def _named(elements: Sequence[Attrs]) -> dict[str, None]:
    """What elements name, of guesses those of the highest accuracy: a host, a system, or its vendor and family."""
    most = max((_int(each.get("accuracy")) for each in elements), default=0)
    best = (each for each in elements if _int(each.get("accuracy")) == most)
    names = (" ".join(filter(None, map(each.get, ("name", "vendor", "osfamily")))) for each in best)
    return dict.fromkeys(filter(None, names))

def judge(document: Document, file: str, asked: str = "") -> Iterator[HostResult]:
    """The document's hosts as all of it judges them; asked: whom nmap was to scan, then a lost write of its shows."""
    run, services = document.of["nmaprun"][-1], sum(_int(scan.get("numservices")) for scan in document.of["scaninfo"])
    all_listed = lists_all(run.get("args", "").split())  # if not, ports need not add up, and a host may lack
    unlisted = asked and not (all_listed or document.hosts) and document.of["hosts"][-1].get("up") == "1"
    for host, counted in [(HostResult(asked, "audited"), services)] if unlisted else document.hosts:
        outcome, reason = host.outcome, "its --host-timeout passed" * (host.outcome == "timed out")
        if document.problem and outcome != "not scanned":
            outcome, reason = "cut off", document.problem
        elif outcome == "audited" and counted is None and services:
            outcome, reason = "timed out", "nmap lists none of its ports"
        elif outcome == "audited" and asked and all_listed and (counted or 0) != services:
            outcome, reason = "cut off", f"its ports do not add up: nmap scanned {services} and shows {counted}"
        yield host._replace(outcome=outcome, reason=reason, looked=document.looked, file=file,
                            start=_int(run.get("start")))

def joined(earlier: HostResult, later: HostResult, *, over: bool) -> HostResult:
    """A later result with the ports that an earlier one lists; over: but for those it looked at and does not list."""
    listed, looked = {port.key for port in later.ports}, looked_at(later.looked) if over else ()
    kept = tuple(port for port in earlier.ports if port.key not in listed and port.key not in looked)
    return later._replace(ports=kept + later.ports, looked=_united(earlier.looked, later.looked))
@functools.lru_cache(maxsize=64)  # most hosts share theirs
def _united(*lists: str) -> str:
    return " ".join(sorted({*" ".join(lists).split()}))

def merged(results: Iterable[HostResult]) -> dict[str, HostResult]:
    """Results by address: the latest, down only where it never answered, and the ports that only others looked at."""
    found: dict[str, HostResult] = {}
    for host in sorted(results, key=lambda host: (host.outcome != "not scanned", host.outcome != "down", host.start)):
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
    with contextlib.suppress(ValueError):  # it has no such name
        return str(datetime.datetime.strptime(run.folder.name, "%Y%m%d-%H%M%S").date())
    return datetime.date.fromtimestamp(max((host.start for host in run.hosts.values()), default=0)).isoformat()

def result_name(address: str, ending: str = ".xml") -> str:
    """The name of an address's file: `:` and `%` of IPv6 become `_`, and so does whatever no address holds."""
    return re.sub(r"[^0-9A-Za-z.-]", "_", address) + ending

def noted(host: HostResult) -> dict[str, Any]:
    """What run.json notes of a host."""
    return {name: getattr(host, name) for name in ("outcome", "reason", "seconds", "start")}

def record_json(record: Mapping[str, Any]) -> bytes:
    """A record as run.json holds it: the hosts of a State by what was looked at, since most of them share that."""
    states = {name: gathered((host.looked, host._replace(looked="")._asdict()) for host in state.values())
              for name in ("before", "state") if (state := record.get(name)) is not None}
    return json.dumps({**record, **states}, indent=0).encode()

def read_record(folder: Path) -> dict[str, Any]:
    """A run's run.json; empty where it cannot be used: then the XML tells."""
    with contextlib.suppress(OSError, ValueError, RecursionError, LookupError, AttributeError, TypeError):
        record: dict[str, Any] = json.loads((folder / "run.json").read_bytes(), object_hook=_host)
        for note in record["hosts"].values():
            OUTCOMES.index(note["outcome"]), note["reason"] + "", note["seconds"] + note["start"]
        if record["version"] == VERSION and {"told", "status", "nmap", "ips"} <= record.keys():
            return record | {name: {host.address: host._replace(looked=looked) for looked, hosts in record[name].items()
                                    for host in hosts} for name in ("before", "state") if record.get(name) is not None}
    return {}
def _host(found: dict[str, Any]) -> Any:
    """A host of a State, its ports shared with others; any other object of run.json as it is."""
    ports = found.get("ports")
    return found if not isinstance(ports, list) else HostResult(**found | {
        "names": tuple(found["names"]), "os": tuple(found["os"]), "ports": tuple(itertools.starmap(same_port, ports))})

def read_run(folder: Path, record: dict[str, Any] | None = None) -> Run:
    """What a run directory, or any folder with nmap's XML, holds: a result for each address that was asked for."""
    record = record or read_record(folder)
    names = os.listdir(folder) if folder.is_dir() else []
    paths = {name: path for name in names if name[0] != "." and os.path.isfile(path := os.path.join(folder, name))}
    lists = paths.keys() & {"targets.xml", "targets6.xml"}  # a run's; other folders were asked for what they hold
    files = [_read_file(paths[name]) for name in sorted(lists if record else lists or paths)]
    hosts = merged(host for found, _ in files for host in found if lists or host.outcome != "not scanned")
    for address, note in (dict.fromkeys(hosts if lists else ()) | record.get("hosts", {})).items():
        path = paths.get(result_name(address)) or paths.get(result_name(address, ".part"), "")
        host = NOBODY._replace(address=address, names=hosts.get(address, NOBODY).names, file=path)
        of_this_run = [each for each in _read_file(path, address)[0] if not note or note["start"] == each.start]
        kept = ("seconds",) if note and note["outcome"] == "audited" else ("outcome", "reason", "seconds")
        hosts[address] = merged([host, *of_this_run])[address]._replace(**{name: note[name] for name in kept if note})
    lost = f"{folder}/run.json is lost, damaged or of another version; its XML is read instead"
    remarks = [lost] * bool(lists or "run.json" in paths) + [remark for _, remark in files if remark]
    return Run(folder, hosts, record, () if record else tuple(remarks))
def _read_file(path: str, asked: str = "") -> tuple[list[HostResult], str]:
    """The hosts of a file (asked: the address that one of our own is of), and what is wrong with the file."""
    try:
        with open(path, "rb") as file:
            begin = file.peek()[:4096].replace(b"\0", b"")
            is_xml = path.lower().endswith(".xml") or re.match(rb"(?s)\W*<.*nmaprun", begin)
            document = read_xml(file) if is_xml else Document()
    except OSError as error:
        return [], f"{path}: {error.strerror}"
    return list(judge(document, path, asked)), document.problem and f"{path}: {document.problem}"

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
        sys.stderr.write(drawn if live and wipe else "".join(f"{wipe}{before}{line}\n" for line in text.splitlines()))
complain = functools.partial(say, before="nmap-audit: ")

def locked(directory: Path) -> TextIO:
    """Makes DIR-NAME and holds its lock while the file that comes back is open. AuditError where it cannot."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if {os.lstat(directory).st_uid, os.stat(directory).st_uid} - {0, os.geteuid()}:
            raise PermissionError(1, "it is somebody else's", "owner")  # who could put links into it
        file = open(os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+", errors="replace")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(file.write(f"pid {os.getpid()} since {time.strftime('%F %T')}\n"))
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
    now = datetime.datetime.now()
    for name in filter(RUN_ID.fullmatch, os.listdir(directory)):
        with contextlib.suppress(ValueError, OverflowError):  # it is of no day
            now = max(now, datetime.datetime.strptime(name, "%Y%m%d-%H%M%S") + datetime.timedelta(seconds=1))
    (folder := directory / now.strftime("%Y%m%d-%H%M%S")).mkdir(mode=0o700)
    return folder

# ---- Scanning -------------------------------------------------------------------------------------------------------
FILE_OPTIONS = "--?(exclude-?file|datadir|servicedb|versiondb|script-args-file)"  # their files may stand here
OUTPUT_BYTES, ERROR_BYTES, MOST_BATCH, MOST_REFUSALS = 256 << 20, 1 << 20, 256, 32
LEAST_BATCH = {"-s[A-Z]*U": 8, "-O|-A": 13, "-sV|-sC|--script": 64, "": 32}  # what a process is worth, by NMAP
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CUT_END = b'<!-- nmap-audit: nmap ended %s -->\n<runstats><finished exit="success"/></runstats>\n</nmaprun>\n'
HOST_ELEMENT = re.compile(rb"<host[ >].*?</host>\s*", re.DOTALL)  # nmap escapes every < that is no tag's
# A command, and what is done with what it leaves: that gives the jobs that come of it, if any.
Job = NamedTuple("Job", [("words", Sequence[str]), ("done", Callable[[Output], Iterable[Any] | None])])

def find_program(name: str) -> str | None:
    """A program's full path; looked for where cron's PATH does not reach, too."""
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/local/bin:/usr/bin:/usr/sbin:/usr/lib")

def nmap_words(nmap: Sequence[str]) -> list[str]:
    """NMAP's words with the program's full path. AuditError where there is none."""
    if not (program := find_program(nmap[0])):
        raise AuditError(os.EX_UNAVAILABLE, f"{shown(nmap[0])}: not found; apt-get install nmap, or change NMAP")
    return [os.path.abspath(program), *(
        os.path.abspath(word) if re.fullmatch(FILE_OPTIONS, before) and os.path.exists(word) else word
        for before, word in zip(nmap, nmap[1:]))]  # one that is not here may be where ssh goes

def list_words(words: Sequence[str]) -> list[str]:
    """The command that lists targets: of nmap's options only those that the list depends on (-sL refuses others)."""
    at, valued = nmap_at(words), "--?(exclude|exclude[-_]?file|dns[-_]servers)"  # a value is the next word, or behind =
    kept = [word for before, word in zip(words[at:], words[at + 1:])
            if re.fullmatch(valued, before) or re.match(f"({valued}|--?(system[-_]dns|6))(=|$)", word)]
    return [*words[:at + 1], "-sL", "-n", *kept]

class Nmap(subprocess.Popen[bytes]):
    """A job's command at work. It writes to files without a name: whatever ends it, what it wrote by then is there."""
    def __init__(self, job: Job, folder: Path, working: dict[int, Nmap]) -> None:
        self.job, self.started = job, time.monotonic()
        self.files = tempfile.TemporaryFile(dir=folder), tempfile.TemporaryFile(dir=folder)
        env = {name: value for name, value in os.environ.items() if not re.match("NMAP(DIR|_ARGS|_(UN)?PRIV)", name)}
        # A kill -9 of this program must end nmap too, and only the kernel is left to see to that.
        guard = [setpriv, "--pdeathsig", "KILL"] if (setpriv := find_program("setpriv")) else []
        late, limits = list[int](), resource.getrlimit(resource.RLIMIT_FSIZE)
        # A signal now would end us when nmap is started and not yet known: it has to wait.
        stops = {each: signal.signal(each, lambda number, _: late.append(number)) for each in SIGNALS}
        try:
            with contextlib.suppress(ValueError):  # there is a lower limit
                resource.setrlimit(resource.RLIMIT_FSIZE, (OUTPUT_BYTES, limits[1]))  # kills what writes without an end
            super().__init__([*guard, *job.words], stdin=subprocess.DEVNULL, stdout=self.files[0], stderr=self.files[1],
                             env=env, cwd="/", start_new_session=True)  # no stranger's script is in /
            working[self.pid] = self
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            for number, stop in stops.items():
                signal.signal(number, stop)
        for each in late:
            signal.raise_signal(each)
    def end(self, status: int) -> Iterable[Job]:
        with self.files[0] as out, self.files[1] as err:
            out.seek(0)
            err.seek(max(0, err.seek(0, os.SEEK_END) - ERROR_BYTES))
            self.returncode, said = status, err.read().decode("utf-8", "replace")
            return self.job.done(Output(status, out.read(), said, time.monotonic() - self.started)) or ()

def run_jobs(jobs: Iterable[Job], folder: Path, workers: int) -> None:
    """Runs commands, so many at once, those that come of others first; nothing of them is left running, ever."""
    jobs, waiting, working, places = iter(jobs), list[Job](), dict[int, Nmap](), threading.Semaphore(workers)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it is ignored, nobody is told how a process ended
    try:
        while (waiting := waiting or [*itertools.islice(jobs, 1)]) or working:
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
    done = ports = refusals = 0  # addresses scanned, ports found so far, how often in a row nmap did not begin to scan
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
        config, folder, hosts = self.config, self.run.folder, self.run.record["hosts"]
        workers = max(1, min(config.max_threads, (os.sysconf("SC_OPEN_MAX") - 24) // 2))  # a process needs two files
        self.zones = {target.partition("%")[0]: target for target in config.ips if "%" in target}
        self.work = dict[str, float]()  # by address: its seconds last time, and one
        try:
            run_jobs(self._jobs(list_words(self.words), config.ips, MOST_ADDRESSES, self._listed), folder, workers)
            if not self.work and not hosts:
                raise config.refusal("IPS", "every address of IPS is excluded; change one")
            runs = (read_record(run) for run in reversed(list_runs(folder.parent)))
            last = next((run["hosts"] for run in runs if run.get("status") == "finished"), dict[str, Any]())
            self.work |= {address: 1 + last[address]["seconds"] for address in self.work.keys() & last}
            self.began, self.whole, self.worked = time.monotonic(), sum(self.work.values()), 0.0  # seconds of work
            slowest = sorted(self.work, key=self.work.__getitem__, reverse=True)
            shares = workers * math.ceil(len(self.work) / workers / MOST_BATCH) or 1  # few waves: each mostly waits
            least = next(size for kind, size in LEAST_BATCH.items() if re.search(kind, " ".join(config.nmap)))
            size = int(config.batch) if config.batch.isdigit() else max(least, math.ceil(len(self.work) / shares))
            size = size if lists_all(config.nmap) else 1
            run_jobs(self._jobs(self.words, slowest, size, functools.partial(self._scanned, False)), folder, workers)
        finally:
            say("", live=" " * (not config.quiet))
            self.save(self.run, status="interrupted")  # it will be finished when its report is made
    def _jobs(self, words: Sequence[str], targets: Iterable[str], size: int, done: Callable[..., Any]) -> Iterator[Job]:
        """Commands for so many targets each, of one address family."""
        for six, family in gathered((":" in target, target) for target in targets).items():
            for part in (family[at:at + size] for at in range(0, len(family), size)):
                yield Job([*words, *["-6"] * (six and "-6" not in words), "-oX", "-", "--",
                           *(self.zones.get(each, each) for each in part)], functools.partial(done, part))
    def _listed(self, targets: Sequence[str], output: Output) -> None:
        """Notes what nmap lists, and which targets it cannot."""
        document, hosts = read_xml(io.BytesIO(output.out)), self.run.record["hosts"]
        path = self.run.folder / f"targets{'6' * (':' in targets[0])}.xml"
        whole = not (output.status or document.problem) and self.attempt(write_file, path, output.out)
        missing = re.findall(r'Failed to resolve "([^"\n]*)"', output.err) if whole else targets
        reason = "nmap could not resolve it" if whole else f"nmap could not list it: {_last_words(output.err)}"
        hosts |= {shown(each): noted(HostResult("", "failed", reason)) for each in missing if shown(each) not in hosts}
        self.work |= {host.address: 1 for host, _ in document.hosts if host.address not in hosts}
    def _scanned(self, again: bool, batch: Sequence[str], output: Output) -> Iterator[Job]:
        """Keeps what nmap says of a batch; what it did not finish is tried again in smaller ones, down to one."""
        self.refusals = 0 if not output.status or b"<scaninfo" in output.out else self.refusals + 1
        hope = self.refusals < MOST_REFUSALS and not (again and len(batch) == 1)
        found = gathered((hope and host.outcome in ("cut off", "failed"), (host, data))
                         for host, data in batch_results(output, batch))
        for host, data in found.get(False, ()):
            self._keep(host, data)
        rest = [host.address for host, _ in found.get(True, ())]
        return self._jobs(self.words, rest, max(1, len(batch) // 8), functools.partial(self._scanned, True))
    def _keep(self, host: HostResult, data: bytes) -> None:
        """Notes a result and says so: a line for each host; on a terminal one for all, drawn again and again."""
        of, ports = len(self.work), sum(port.state != "closed" for port in host.ports)
        path = self.run.folder / result_name(host.address, ".part" if host.outcome in ("cut off", "failed") else ".xml")
        if host.outcome != "down" and data and not self.attempt(write_file, path, data):
            host = host._replace(outcome="failed", reason="its result could not be written")
        self.run.record["hosts"][host.address] = noted(host)
        self.done, self.ports, self.worked = self.done + 1, self.ports + ports, self.worked + self.work[host.address]
        left = datetime.timedelta(seconds=int((time.monotonic() - self.began) * (self.whole / self.worked - 1)))
        what = f"{ports} port{'s' * (ports != 1)}" if host.outcome == "audited" else host.outcome
        if not self.config.quiet:
            say(f"[{self.done}/{of}] {shown(str(host), 100)} {what}, {host.seconds:.1f} s",
                live=f"[{'#' * (10 * self.done // of):-<10}] {self.done}/{of} hosts, {self.ports} ports, {left} left")
        if self.done % (of // 20 + 1) == 0:  # often enough for one that is killed, and not at each of 65,536
            self.save(self.run)

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
            now = host._replace(ports=ports, start=0, seconds=0.0, file=run.folder.name)
            after[host.address] = joined(known, now, over=True)
        elif host.outcome == "down" and known.outcome == "audited":
            after[host.address] = known._replace(outcome="down")
    return after

def last_told(run: Run) -> tuple[dict[str, HostResult] | None, list[str]]:
    """What the last run told before this one left, None for nothing; and remarks. The XML stands in for a run.json."""
    state, remarks, lost = run.record.get("before"), list[str](), list[Path]()
    earlier = [] if run.record.get("told") else list_runs(home(run.folder))
    for folder in reversed([each for each in earlier if each.name < run.folder.name]):
        if not (record := read_record(folder)):  # read_run says why
            lost.append(folder)
        elif "state" in record:  # it was told
            state = record["state"]
            break
    for each in map(read_run, reversed(lost)):
        state = fold(state or {}, each) or state
        remarks += each.remarks
    return state, remarks

# ---- Filtering ------------------------------------------------------------------------------------------------------
def differing(rule: Rule, fields: Fields, day: str = "") -> list[int]:
    """Which fields of a rule do not hold those of a port, or of another rule; behind them, that it ended by a day."""
    fine = (_within(rule.fields[0], fields[0]), *map(like, rule.fields[1:], fields[1:]), rule.holds(day))
    return [at for at, well in enumerate(fine) if not well]
def _within(ports: str, others: str) -> bool:
    low, dash, high = ports.partition("-")
    least, _, most = others.partition("-")
    if dash:
        return least.isdigit() and int(low) <= int(least) and int(most or least) <= int(high)
    return ports == "*" or not most and like(ports, others)

def rules_by(groups: Iterable[Group], *keys: str) -> Iterator[Rule]:
    """The rules of groups under any of these keys, see Group.by."""
    return (rule for group in groups for key in keys for rule in group.by.get(key, ()))

@functools.lru_cache(maxsize=1 << 16)
def accepting(groups: tuple[Group, ...], fields: Fields, day: str) -> tuple[Rule, ...]:
    """The rules of these groups that accept a port."""
    return tuple(rule for rule in rules_by(groups, f"port {fields[0]}", "port *") if not differing(rule, fields, day))

@functools.lru_cache(1 << 16)
def near_misses(groups: tuple[Group, ...], fields: Fields, day: str) -> dict[Rule, str]:
    """The rules that would accept a port but for one thing, and that; of another port where they name its service."""
    likely = dict.fromkeys(rules_by(groups, f"port {fields[0]}", f"service {fields[3]}", "port *"))
    near = ((rule, wrong[0]) for rule in likely if len(wrong := differing(rule, fields, day)) == 1)
    found = ((rule, f"it ended on {rule.until}" if at == len(FIELDS) else
              f"its {[*FIELDS][at]} is {rule.fields[at]} and nmap says {fields[at] or 'none'}")
             for rule, at in near if at == len(FIELDS) or (rule.fields[0] != "*" if at else "*" not in rule.fields[3]))
    return dict(itertools.islice(found, 8))  # more of them help nobody

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

def find(run: Run, state: State, groups: Sequence[Group], near: bool = False) -> list[Finding]:
    """What a run says beside what is remembered: of rules, then of each address and its ports (near: misses too)."""
    day, groups_of = run_day(run), index(groups)
    late = str(datetime.date.fromisoformat(day) + datetime.timedelta(days=14))  # rules that end by then are named
    found = [Finding(NOBODY, "lapsing", rules=(rule,), why=rule.until + " (ended)" * (not rule.holds(day)))
             for group in groups for rule in group.rules if not rule.holds(late)]
    for host in sorted(run.hosts.values(), key=lambda host: numeric(host.address)):
        known, members, audited = state.get(host.address, NOBODY), groups_of(host), host.outcome == "audited"
        rows = sorted(_ports(host, known, members, day, near), key=lambda each: (each.port.protocol, each.port.number))
        said = {"host gone": known.outcome == "audited" and host.outcome == "down",
                "host new": audited and state and known is NOBODY,
                "regrouped": audited and known is not NOBODY and (known.names, known.os) != (host.names, host.os)
                and groups_of(known) != members, "not audited": not audited and host.outcome != "down"}
        rows += (Finding(host, change) for change, so in said.items() if so)
        clean = audited and all(each.table == "ignored" for each in rows)
        found += (*rows, Finding(host, "host", before=known.outcome, why="clean" if clean else host.outcome))
    return found
def _ports(host: HostResult, known: HostResult, members: tuple[Group, ...], day: str, near: bool) -> Iterator[Finding]:
    lost, audited = {port.key: port for port in known.ports}, host.outcome == "audited"
    for port in (port for port in host.ports if port.state != "closed"):
        before, rules = lost.pop(port.key, NOTHING), accepting(members, port.fields, day)
        change = ("standing" if before.state == port.state else "changed") if before.state else (
            "new" if port.key in looked_at(known.looked) else "first look")
        yield Finding(host, change, same_port(*port[:5], before.first_seen or day), before.state, rules)
        for rule, why in near_misses(members, port.fields, day).items() if near and not rules else ():
            yield Finding(host, "near", port, "", (rule,), why)
    looked = looked_at(host.looked) if audited else ()
    yield from (Finding(host, "gone", port, port.state) for port in lost.values()
                if port.state in ("open", "open|filtered") and port.key in looked)
    yield from (Finding(host, "missing", Port(_int(rule.fields[0]), *rule.fields[1:]), "", (rule,))
                for rule in rules_by(members, "expect") if audited and rule.holds(day) and not met(rule, host))

# ---- Reporting ------------------------------------------------------------------------------------------------------
LOW = ("host", "port", "protocol", "states", "service")
FULL = ("address", "name", "os", *LOW[1:], "version", "first_seen")
TABLES: dict[str, tuple[str, ...]] = {  # run.json's list of it, its title and columns (none: LOW or FULL)
    "not audited": ("", "Not audited", "host", "file"),
    "lapsing": ("", "Rules that lapse", "line", "group", "until", "rule"),
    "missing": ("missing", "Missing: expected and not there", *LOW, "line", "group"),
    "new": ("findings", "New"), "changed": ("findings", "Changed"), "first look": ("findings", "First look"),
    "standing": ("findings", "Standing: told before, neither accepted nor closed"), "gone": ("gone", "Gone"),
    "host gone": ("gone", "Hosts gone: up before, down now", "host"), "host new": ("hosts_new", "Hosts new", "host"),
    "regrouped": ("regrouped", "Hosts that changed group (their name or OS guess changed)", "host"),
    "near": ("", "Near misses: rules that would accept a port but for one thing", *LOW[:3], "line", "why"),
    "ignored": ("ignored", "Ignored", *LOW, "line", "group"),
    "host": ("", "Hosts", "host", "outcome", "seconds", "file")}
SHOWN = {"none": 2, "low": 11, "med": 12, "medium": 12, "high": 14}  # how many of them a level of DETAIL shows
TELLING = ("findings", "gone", "missing", "regrouped", "lapsing", "not audited")  # what is worth a mail
CSV = {"IP": "address", "Hostname": "name", "OS": "os", "Port": "port", "Protocol": "protocol", "State": "state",
       "Service": "service", "Version": "version", "Change": "change", "First Seen": "first_seen"}
FORMULA = r"^(?=\s*[-=+@|%\uff1d\uff0b\uff0d\uff20])"  # the place before one; a ' there makes it text
WIDTHS = {"name": 40, "os": 30, "service": 24, "version": 40, "group": 30, "why": 80, "file": 4096}
COLOURS = {**dict.fromkeys(("not audited", "missing", "new", "changed"), "#d33"), "gone": "#a4c", "host gone": "#a4c"}
TABLE = '<table cellpadding="4" style="display:block;overflow:auto;white-space:nowrap;text-align:left">'
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>nmap-audit</title><meta name="color-scheme" content="light dark">
<meta name="viewport" content="width=device-width"></head><body style="font:14px sans-serif;overflow-wrap:anywhere">
{}</body></html>\n"""
Found = Mapping[str, Sequence[Finding]]  # by table
Section = tuple[str, str, Sequence[str], Sequence[Sequence[str]]]  # colour, title, headings, rows; or only a text
MOST_ROWS, MOST_BARS = 20000, 8  # of a table, of the most frequent ports

def make_report(run: Run, findings: Sequence[Finding], config: Config) -> Report:
    """The report of a run as DETAIL and NO-HUMAN want it; a phone's preview of the mail shows its first line."""
    of = gathered((each.table, each) for each in findings)
    counts = collections.Counter(name for each in findings for name in {
        each.table, TABLES[each.table][0], each.host.outcome if each.table == "host" else ""})
    head, foot = _frame(run, of, counts, config.detail == "high")
    rest = [*_tables(of, config), foot]
    text, page = "\n\n".join(_parts([head, *rest], "simple")) + "\n", ""
    if not config.no_human and (config.email_to or not config.process_only):
        page = PAGE.format("\n".join(_parts([head, *_bars(of, counts), *rest], "html")).replace("<table>", TABLE))
    rows = [each for each in findings if each.port.state and each.table not in ("ignored", "near")]
    return Report(text, page, "" if config.no_csv else make_csv(rows, not config.no_csv_headings), counts)
def _frame(run: Run, of: Found, counts: Mapping[str, int], high: bool) -> Iterator[Section]:
    """The first lines, and the last."""
    asked = [each.host.outcome for each in of.get("host", ()) if each.before == "audited"]
    lost = asked.count("down") + asked.count("failed")
    rules = {rule for each in of.get("ignored", ()) for rule in each.rules}
    whole = run.record.get("adds_up", RUN_ID.fullmatch(run.folder.name))
    first = {f"{counts['audited']} of {counts['host'] - counts['down']} hosts audited, {counts['findings']} findings, "
             f"{counts['gone']} gone": True,
             f"WARNING: {lost} of {len(asked)} hosts that were up before are down or failed now: "
             "the scanner's own network may be broken": lost * 2 > len(asked),
             f"WARNING: expected and missing: {counts['missing']}; the scanner may be blind": counts["missing"],
             "All clear.": not any(counts[name] for name in TELLING)}
    last = {f"Ports ignored: {counts['ignored']}, by rules: {len(rules)}": True,
            f"Addresses: {len(run.hosts)}, of them audited: {counts['audited']}, down: {counts['down']}, "
            f"not audited: {counts['not audited']}": True,
            **{f"Note: {shown(remark, 300)}": True for remark in run.remarks}, f"Raw data: {run.folder}": True,
            f"nmap command: {shown(shlex.join(run.record.get('nmap', ['unknown'])), 400)}": high,
            "Ports were not added up: nmap was run with --open, or by another program": high and not whole}
    for lines in (first, last):
        yield "inherit", "\n".join(line for line, so in lines.items() if so), (), ()
def _tables(of: Found, config: Config) -> Iterator[Section]:
    """What the level shows; of the hosts that were not audited a table for each reason, in the order of OUTCOMES."""
    for change in itertools.islice(TABLES, SHOWN[config.detail]):
        title, columns = TABLES[change][1], TABLES[change][2:] or (LOW if config.detail == "low" else FULL)
        kinds = gathered(((OUTCOMES.index(each.host.outcome), each.host.reason) if change == "not audited" else (0, ""),
                          each) for each in of.get(change, ()) if not (config.no_human and each.port.state))
        for (at, reason), several in sorted(kinds.items()):
            why = f": {OUTCOMES[at]}: {shown(reason, 400)}" * (change == "not audited")
            more = f", {len(several) - MOST_ROWS} rows more than here" * (len(several) > MOST_ROWS)
            headings = [name.upper().replace("STATES", "STATE").replace("_", " ") for name in columns]
            rows = [[shown(said[name], WIDTHS.get(name, 60)) for name in columns]
                    for said in map(texts, several[:MOST_ROWS])]
            yield COLOURS.get(change, "inherit"), f"{title} ({len(several)}{more}){why}", headings, rows
def _bars(of: Found, counts: Mapping[str, int]) -> Iterator[Section]:
    ports = (each.port for change in PORT_CHANGES for each in of.get(change, ()))
    often = collections.Counter(shown(f"{port.key} {port.service}", 40) for port in ports)
    hosts = {name: counts[name] for name in ("audited", "not audited", "down") if counts[name]}
    for title, bar in (("Hosts", hosts), ("Most frequent: accept first", dict(often.most_common(MOST_BARS)))):
        rows = [(name, str(count), "\u2588" * math.ceil(count * 12 / max(bar.values()))) for name, count in bar.items()]
        yield from [("inherit", title, (), rows)] * bool(rows)
def _parts(sections: Iterable[Section], form: str) -> Iterator[str]:
    """What a report consists of, in tabulate's form: `simple`, or `html` with all that was found escaped."""
    from html import escape
    from tabulate import tabulate
    for colour, text, headings, rows in sections:
        tag = "h3" if rows else "p"
        yield f'<{tag} style="color:{colour}">{escape(text)}</{tag}>'.replace("\n", "<br>") if form == "html" else text
        # A letter that takes two columns is two to tabulate with a NUL behind it.
        wide = [[cell if cell.isascii() else "".join(char + "\0" * (unicodedata.east_asian_width(char) in "WF")
                                                     for char in cell) for cell in row] for row in rows]
        if rows:
            yield tabulate(wide, headings, tablefmt=form, disable_numparse=True).replace("\0", "")

def texts(finding: Finding) -> dict[str, str]:
    """What a finding says, by column, as strangers wrote it."""
    host, change, port, before, rules, why = finding
    return {"host": str(host), "address": host.address, "name": "".join(host.names[:1]), "os": "".join(host.os[:1]),
            "port": rules[0].fields[0] if change == "missing" else str(port.number) * bool(port.state),
            **dict(zip(Port._fields[1:], port[1:])), "states": f"{before}\u2192" * (change == "changed") + port.state,
            "change": change, "before": before, "file": host.file, **dict.fromkeys(("why", "outcome", "until"), why),
            "line": ", ".join(rule.where.short for rule in rules), "group": ", ".join(rule.group for rule in rules),
            "rule": ", ".join(" ".join(rule.fields) for rule in rules), "seconds": f"{host.seconds:.1f}"}

def list_findings(findings: Iterable[Finding]) -> dict[str, list[dict[str, str]]]:
    """The findings as run.json lists them."""
    told = ((TABLES[each.table][0], texts(each)) for each in findings if TABLES[each.table][0])
    of = gathered((name, {key: said[key] for key in (*CSV.values(), "before", "line", "group")}) for name, said in told)
    return {name: of.get(name, []) for name, *_ in TABLES.values() if name}

def make_csv(findings: Sequence[Finding], headings: bool) -> str:
    """scan_report.csv: RFC 4180, with the byte-order mark that spreadsheets want; empty where there is no row."""
    file = io.StringIO()
    rows = ([re.sub(FORMULA, "'", shown(said[name], 1000)) for name in CSV.values()] for said in map(texts, findings))
    csv.writer(file).writerows(itertools.chain([CSV] * headings, rows))
    return "\ufeff" + file.getvalue() if findings else ""

# ---- Mailing --------------------------------------------------------------------------------------------------------
SENDMAIL_SECONDS, SMTP_SECONDS, SMTP_WAITS = 120, 60, (1, 5, 15)  # the last: before another try, where one can help
FINAL = re.compile(r"\w+\((\{.*\()?5\d\d, |SSL|SMTPNot|FileNot|Permission|Value")  # how repr begins of what stays

def make_message(text: str, html: str, attachment: str, config: Config) -> bytes:
    """The mail that tells a report: To, From and Subject as given; html and attachment only where there are any."""
    from email import message, policy, utils
    here = re.sub(r"[^A-Za-z0-9.-]", "", os.uname().nodename) or "localhost"
    mail = message.EmailMessage(policy=policy.SMTP.clone(cte_type="7bit"))
    for name, value in {"From": ", ".join(config.email_from) or f"nmap-audit@{here}", "To": ", ".join(config.email_to),
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
            if program or FINAL.match(repr(error)):
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
    told = [f"{who}: {code} {words.decode(errors='replace')}" for who, (code, words) in refused.items()]
    return f"refused: {shown(', '.join(told), 400)}; the others have the report" if told else ""

# ---- Workshop -------------------------------------------------------------------------------------------------------
ASKED = re.compile(r"(?:([^:\[\]]+|\[[^\[\]]+\]):)?0*(\d+)(?:/(tcp|udp|sctp|ip))?")
SUBNETS = {4: (30, 29, 28, 27, 26, 25, 24), 6: (124, 120, 112, 64)}  # that groups are made of
SAFE = re.compile(r"os [A-Za-z0-9][A-Za-z0-9 .,:()/+_-]*|hostname (?!-)[a-z0-9*_.-]+|ip [0-9A-Fa-f.:/]+")  # a tag
NOWHERE, NO_SERVICE = Where(""), r"[^a-z0-9_.:+*/-]|^ssl/"  # what nmap has in no service's name

def select(asked: str, findings: Iterable[Finding]) -> tuple[Rule, list[Finding]]:
    """The ports of HOSTS[:PORT[/PROTOCOL]] or PORT[/PROTOCOL], as a rule, and what is found there. AuditError (64)."""
    match = ASKED.fullmatch(asked.lower())
    named, number, protocol = match.groups("*") if match else (asked, "*", "*")
    try:
        ports = Rule("", _rule(f"{number} {protocol} * *")[0], NOWHERE, "")
        tag = _tag("hostname" if re.fullmatch(r"[\w.*-]*[A-Za-z][\w.*-]*", named) else "ip",
                   re.sub(r"^\[(.*)\]$", r"\1", named))
    except ValueError:
        raise AuditError(os.EX_USAGE, f"'{shown(asked, 60)}' is not HOST[:PORT[/PROTOCOL]] or PORT[/PROTOCOL]; write "
                         "like web*, 192.0.2.0/28:25, 161/udp or [2001:db8::1]:25/tcp") from None
    return ports, [each for each in findings if tag.matches(each.host) and (each.change == "host" or each.change in (
        *PORT_CHANGES, "near", "gone", "missing") and not differing(ports, each.port.fields))]
def _tag(word: str, value: str) -> Tag:
    return Tag(word, value, NOWHERE, *INSIDE[word].read(value))

def explain(run: Run, findings: Sequence[Finding], config: Config) -> str:
    """Which groups hold hosts, and what ignores their ports or almost would, a line each; AuditError as in select()."""
    (asked, said), groups_of, lines = select(config.why, findings), index(config.groups), list[str]()
    if not said:
        raise AuditError(os.EX_NOINPUT, f"{run.folder}: has no host {shown(config.why, 60)}; name one of its hosts")
    for *rows, (host, *_) in gathered((each.host.address, each) for each in said).values():
        lines.append(f"{shown(str(host))}: {host.outcome} in {run.folder.name}: {shown(host.reason)}".rstrip(": "))
        lines += [f"  in group '{group.name}' by {tag.where.short} ({tag.word} {tag.value})"
                  for group in groups_of(host) for tag in group.tags if tag.matches(host)] or ["  in no group"]
        for each in rows:
            what, it = ", ".join(f"{rule.where.short} ({rule.group})" for rule in each.rules), texts(each)
            how = {"gone": "gone since the last report", "missing": f"missing, expected by {what}"}.get(
                each.change, f"ignored by {what}" if each.rules else "no rule ignores it")
            line = f"  {it['port']}/{it['protocol']} {it['state']} {shown(it['service'], 40)}".rstrip() + f": {how}"
            lines.append(f"    {it['line']} would, but {each.why}" if each.change == "near" else line)
        if asked.fields[0] != "*" and not rows:
            known = {"audited": "closed or not listed" if in_reach(asked, host.looked) else "not looked at"}
            lines.append(f"  {'/'.join(asked.fields[:2]).removesuffix('/*')}: {known.get(host.outcome, 'not known')}")
    return "\n".join(lines) + "\n"

def suggest(run: Run, findings: Sequence[Finding], config: Config, memories: Iterable[State]) -> str:
    """Groups, as rc text, that accept what is asked for and no port of others, remembered ones too; see select()."""
    day, taken = run_day(run), {_folded(group.name) for group in config.groups}
    asked = [each for each in select(config.accept or "*", findings)[1] if each.table in PORT_CHANGES]
    wanted, shows = (gathered((each.port.fields, each.host.address) for each in several) for several in (
        asked, asked + [each for each in findings if each.table == "ignored"]))
    odd = {each.host.address for each in asked if numeric(each.host.address)[0] == 9 or "%" in each.host.address}
    members = _candidates(run.hosts.values(), itertools.chain(*(state.values() for state in memories)))
    groups = gathered((tags, (-count, int(fields[0]), fields)) for fields, several in sorted(wanted.items())
                      for tags, count in _cover({*several} - odd, {*shows[fields]}, members))
    names = (name for at in itertools.count(1) if (name := f"accepted {day} {at}") not in taken)
    text = f"\n# From {run.folder.name}: {len(asked)} ports on {len({each.host.address for each in asked})} hosts.\n"
    text += "".join(f"# No ip tag can hold {shown(address)}.\n" for address in sorted(odd))
    for name, (tags, rules) in zip(names, sorted(groups.items(), key=lambda item: sum(count for count, *_ in item[1]))):
        rows = [f"ignore {_written(port)}  # on {-count} host{'s' * (count < -1)}" for count, _, port in sorted(rules)]
        text += "\n    ".join([f"\ngroup {name}", *tags, *rows]) + f"\nend group {name}\n"
    return text if groups else text + "# Nothing to accept.\n"
def _cover(asked: set[str], showing: set[str], of: Mapping[str, Sequence[set[str]]]) -> Iterator[tuple[Texts, int]]:
    """The tags of groups that hold these addresses and none that does not show the port; how many; outliers last."""
    usable, left = {tag: now for tag, (now, ever) in of.items() if ever <= showing}, set(asked)
    while usable and len(left & usable[best := max(usable, key=lambda tag: (
            len(left & usable[tag]), tag[:2], tag[:2] == "ip" and int(tag.split("/")[1]), tag))]) > 1:
        yield (best,), len(asked & usable[best])
        left -= usable[best]
    if left:
        yield tuple(f"ip {address}" for address in sorted(left, key=numeric)), len(left)
def _candidates(hosts: Iterable[HostResult], known: Iterable[HostResult]) -> dict[str, Sequence[set[str]]]:
    """The tags that groups may be made of, each with the addresses that it matches now, and ever as far as is known."""
    tags = set[str]()
    for host in hosts:
        version, number, _ = numeric(host.address)
        label, dot, domain = "".join(host.names[:1]).lower().partition(".")
        tags |= {f"os {guess}" for guess in host.os} | {f"hostname {name}{dot}{domain}" for name in (
            "*", re.sub(r"\d+", "*", label)) if name != "*" or "." in domain}
        tags |= {f"ip {ipaddress.ip_network((number, bits), strict=False)}" for bits in SUBNETS.get(version, ())}
    groups_of = index([Group(tag, NOWHERE, (_tag(*tag.split(" ", 1)),), ()) for tag in tags if SAFE.fullmatch(tag)])
    now, then = (gathered((of.name, one.address) for one in each for of in groups_of(one)) for each in (hosts, known))
    return {tag: ({*several}, {*several, *then.get(tag, ())}) for tag, several in now.items()}
def _written(fields: Fields) -> str:
    """A port as a rule; what an rc file cannot hold is written as `*`."""
    words = *fields[1:3], re.sub(r"^([\d*-]+)/", r"\1*", re.sub(r'[^!-~]|[#"*]', "*", fields[3]) or "*")
    return " ".join([fields[0], *(word if _kind(word) == kind else "*" for kind, word in zip([*FIELDS][1:], words))])

def unused(groups: Sequence[Group], runs: Iterable[Run]) -> str:
    """The rules that were put to the test in these runs, and were of no use; the groups that held no host."""
    tested, used, total, groups_of = collections.Counter[Rule](), set[object](), 0, index(groups)
    for total, run in enumerate(runs, 1):
        seen, day = set[tuple[Group, str]](), run_day(run)
        for host, members in ((host, groups_of(host)) for host in run.hosts.values() if host.outcome != "down"):
            used.update(members, *(accepting(members, port.fields, day) for port in host.ports),
                        ["ip", "hostname" * bool(host.names), "os" * bool(host.os)])  # what tags could be judged
            if host.outcome == "audited":
                seen |= {(group, host.looked) for group in members}
                used.update(rule for rule in rules_by(members, "expect") if met(rule, host))
        tested.update({rule for group, looked in seen for rule in group.rules
                       if rule.holds(day) and in_reach(rule, looked)})
    idle = [f"{rule.where.short}: {rule.word} {' '.join(rule.fields)}{rule.until and ' until ' + rule.until} "
            f"({rule.group}): {'never met' if rule.word == 'expect' else 'of no use'}; runs that looked: {tested[rule]}"
            for group in groups for rule in group.rules if tested[rule] and rule not in used]
    idle += [f"{group.where.short}: group '{group.name}': held no host" for group in groups
             if group not in used and group.tags[0].word in used]
    return "\n".join([f"Finished runs on record: {total}", *(idle or ["Every rule was of use, or never tested."]), ""])

def in_reach(rule: Rule, looked: str) -> bool:
    """Whether a scan that looks at these ports looks at any port of a rule."""
    key, keys = "/".join(rule.fields[:2]), looked_at(looked)
    return key in keys or re.search("[*-]", key) is not None and any(
        _within(rule.fields[0], each.split("/")[0]) and like(rule.fields[1], each.split("/")[1]) for each in keys)

def oddities(config: Config, looked: str, problem: str, today: str) -> Iterator[tuple[object, str]]:
    """What a run would put up with: where, what; what to do. looked: at which ports NMAP looks; and its problem."""
    yield from ((config.place(name), what) for name, what in (*config.unfit(), ("NMAP", problem), (
        "NMAP", "with --open nobody can tell if ports add up; take it out" * (not lists_all(config.nmap)))) if what)
    for name, lines in config.sources.items():
        yield from ((line.where, f"{name} stands again on line {lines[-1].where.line}, which holds; take one out")
                    for line in lines[:-1] if lines[-1].where.line and not VARIABLES[name].many)
        if name in ("CONFIG", "DIR-NAME", "SENDMAIL", "SMTP-PASSWORD-FILE") and not lines[-1].value.startswith("/"):
            yield lines[-1].where, f"{name} is a relative path; write it in full, cron starts somewhere else"
    same = gathered((frozenset((tag.word, _folded(tag.value)) for tag in group.tags), group) for group in config.groups)
    every = [rule for group in config.groups for tag in group.tags if tag[:2] == ("ip", "*") for rule in group.rules]
    for groups in same.values():
        alike = gathered((frozenset((*rule[:2], rule.until) for rule in group.rules), group) for group in groups)
        for first, *more in alike.values():
            yield from ((group.where, f"group '{group.name}' differs from '{first.name}' in nothing but its name; "
                         "take one out") for group in more)
        yield from _odd_rules([rule for first, *_ in alike.values() for rule in first.rules], every, looked, today)
def _odd_rules(rules: Sequence[Rule], every: Sequence[Rule], looked: str, today: str) -> Iterator[tuple[Where, str]]:
    """What is odd about the rules for the same hosts; every: those for all hosts."""
    whole = Group("", NOWHERE, (), tuple(rule for rule in (*rules, *every) if not rule.until))
    for rule in rules:  # a wider `expect` asks for less
        wider = next((each.where.line for each in accepting((whole,), rule.fields, "") if each.word == rule.word and (
            rule.word == "ignore" if differing(rule, each.fields) else  # of equal ones those for all hosts come first
            rule.until or (each not in every, each.where) < (rule not in every, rule.where))), 0)
        odd = {f"this rule ended on {rule.until}; take it out, or write a later day": not rule.holds(today),
               f"line {wider} holds this, too; take this one out": wider,
               f"this accepts any port of group '{rule.group}'; name the ports":
               {rule.fields[0], rule.fields[2]} <= {"*", "0-65535", "1-65535", "open"} and rule.fields[3] == "*",
               "nmap names no service so; write what a report shows": re.search(NO_SERVICE, rule.fields[3]),
               "NMAP scans no port of it; take it out, or see to -p and -sU": looked and not in_reach(rule, looked)}
        yield from ((rule.where, what) for what, so in odd.items() if so)

def settings(config: Config) -> str:
    """The settings in force, a line each as an rc file has it, and where each comes from."""
    text = ""
    for each in dict.fromkeys(VARIABLES.values()):
        value = getattr(config, "folders" if each.name == "DIR-NAME" else each.name.lower().replace("-", "_"))
        default = " ".join(map(str, value)) if isinstance(value, tuple) else "no" if value is False else str(value)
        lines = config.sources.get(each.name) or [Line("", default, Where("default"), NOWHERE)]
        for line in lines[0 if each.many else -1:]:
            text += f"{each.name:<20}{shown(line.value, 100) or 'yes' * (not each.metavar):<40}  {line.where.short}\n"
    return text

# ---- Command line ---------------------------------------------------------------------------------------------------
FIRST_OF = (os.EX_SOFTWARE, os.EX_IOERR, os.EX_UNAVAILABLE, 2, 1, 0)  # which of its statuses an audit ends with
FLAGS = {f"--{option.name.lower()}": option for option in [each for each in OPTIONS.values() if each.heading] + [
    Option("", "", "settings", "the version", name="VERSION"), Option("", "", "settings", "this text", name="HELP")]}
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
        if config.test_config or config.unused_rules or config.why or config.accept is not None:
            _show(self.answer())
        elif config.process_only:
            self.report(list(map(_stored, config.folders)))
        else:
            self.scan(argv)
    def answer(self) -> str:
        """What --test-config, --unused-rules, --why or --accept prints."""
        config = self.config
        if config.test_config:
            for where, what in oddities(config, *self._try_nmap(), time.strftime("%F")):
                complain(f"{where}: warning: {shown(what, 900)}")
            return settings(config)
        runs = list(map(_stored, config.folders))
        if config.unused_rules:
            return unused(config.groups, itertools.chain.from_iterable(map(_runs, config.folders)))
        run, findings, memories = self._view(runs)
        return explain(run, findings, config) if config.why else suggest(run, findings, config, memories)
    def _try_nmap(self) -> tuple[str, str]:
        """At which ports nmap looks, and what it complains of, without any target; it is asked on this machine only."""
        try:
            words, outputs = nmap_words(self.config.nmap), list[Output]()
        except AuditError as error:
            return "", str(error)
        if nmap_at(words) or any(re.match("--?script", word) for word in words):  # a script may send by itself
            return "", ""
        run_jobs([Job([words[0], "-iL", "/dev/null", "-oX", "-", *words[1:]], outputs.append)], Path("/tmp"), 1)
        looked = read_xml(io.BytesIO(outputs[0].out)).looked
        return looked, (f"nmap says: {_last_words(outputs[0].err)}; change NMAP, or run this as root"
                        if outputs[0].status else "it looks at no port; take -sn and the like out" * (not looked))
    def scan(self, argv: Sequence[str]) -> None:
        config, directory = self.config, self.config.folders[0]
        for name, what in config.unfit():
            raise config.refusal(name, what)
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
            "nmap": config.nmap, "adds_up": lists_all(config.nmap), "ips": config.ips, "hosts": {}}
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
    def _view(self, runs: Sequence[Run]) -> tuple[Run, list[Finding], list[State]]:
        """What runs say as one, beside what was known and after the rules were heard; and all that is remembered."""
        told = list(map(last_told, runs))
        for run, (state, _) in zip(runs, told):
            run.record["before"] = state
        states, remarks = zip(*(self.base or told))
        before = dict(sorted(itertools.chain(*map(dict.items, filter(None, states))), key=lambda item: item[1].file))
        notes = (*itertools.chain(*(run.remarks for run in runs), *remarks),
                 *(f"with the results in {run.folder}" for run in runs[1:]))
        run = runs[0]._replace(remarks=notes, hosts=merged(itertools.chain(*(run.hosts.values() for run in runs))))
        near = self.config.why != "" or "near" in [*TABLES][:SHOWN[self.config.detail]]
        memories = [state for state, _ in (*self.base, *told) if state is not None]
        return run, find(run, before, self.config.groups, near), memories
    def report(self, runs: Sequence[Run]) -> None:
        """Tells what runs say, as one; and notes that it was told of the run at work, or of a DIR-NAME's newest."""
        config, (run, findings, memories) = self.config, self._view(runs)
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
        if self._tell(report, run.folder, home(run.folder) / "unsent" / f"{name}.eml", not memories):
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
    return min(audit.statuses, key=lambda each: FIRST_OF.index(each) if each in FIRST_OF else -1)

if __name__ == "__main__":
    raise SystemExit(main())
