"""What always holds, tried on texts, files and findings that nobody thought of."""
import csv
import functools
import io
import ipaddress
import itertools
import re
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings, strategies as st

import nmap_audit
from nights import sorted_out, stored
from nmap_audit import AuditError, Finding, HostResult, Port, Run

VALID = [nmap_audit.read_rc(str(path)) for path in sorted((Path(__file__).parent / "data/rc/valid").glob("*.rc"))]
# The same examples in every run: new ones are for the fuzzer.
settings.register_profile("quick", deadline=None, max_examples=200, derandomize=True, database=None,
                          suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])
settings.load_profile("quick")


def config(text):
    return nmap_audit.read_config(nmap_audit.parse_rc(text, "a.rc"), (), text)


def parses(text):
    """A text is a configuration, or says line by line what is wrong with it."""
    try:
        config(text)
    except AuditError as error:
        assert error.status == 78
        for line in str(error).split("\n"):
            found = re.fullmatch(r"a\.rc:(\d+):(\d+): \S.*", line)
            assert found and line.isprintable() and len(line) < 500, ascii(line[:500])
            assert 1 <= int(found[1]) <= text.count("\n") + 1


# ---- The rc file --------------------------------------------------------------------------------

WORDS = st.sampled_from([
    "group", "end", "end group", "ip", "hostname", "os", "ignore", "expect", "until", "IPS", "EMAIL-TO", "EMAIL-FROM",
    "SUBJECT", "NMAP", "DIR-NAME", "DETAIL", "QUIET", "MAX-THREADS", "SMTP-SERVER", "KEEP-RUNS", "TELL", "25", "tcp",
    "open", "smtp", "*", "25/tcp", "10.0.0.1", "10.0.0.0/24", "10.0.0.1-9", "2001:db8::/64", "a@b.c", "Linux", "high",
    "nmap", "-oX", "2027-03-31", "mail servers", '"', "'", "=", ":", "#", ",", "\\", "<", "\n", "\r\n", " ", "\t", "\f",
    "\0", "\x1b", "\x85", "\u2028", "\xa0", "\u017f", "\u0131", "\u212a", "\u201c", "\u200f", "\ud800", "9" * 5000])
LINES = st.lists(WORDS | st.text(max_size=5), max_size=8).map(" ".join)


@given(st.text() | st.lists(LINES, max_size=10).map("\n".join) | st.lists(WORDS, max_size=30).map("".join))
def test_any_text_parses_or_says_where_it_is_wrong(text):
    parses(text)


@given(st.binary())
def test_any_bytes_parse_or_say_where_they_are_wrong(data):
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            text = nmap_audit.read_rc(file.name)
        except AuditError as error:
            assert error.status == 78 and str(error).startswith(f"{file.name}:1:1: ")
        else:
            parses(text)


@given(st.sampled_from(VALID), st.randoms(use_true_random=False), st.lists(WORDS, min_size=1, max_size=4))
def test_a_changed_file_parses_or_says_where_it_is_wrong(text, chance, pieces):
    for piece in pieces:
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice((0, 0, 1, 2, 5, 40)))
        text = text[:start] + chance.choice((piece, "", text[end:end + 20])) + text[end:]
    parses(text)


@given(st.sampled_from(sorted(nmap_audit.VARIABLES)), LINES | st.text())
def test_any_value_is_read_or_refused(name, value):
    parses(f"{name} {value}")


@given(st.sampled_from(["ip", "hostname", "os", "ignore", "expect"]), LINES | st.text())
def test_any_line_of_a_group_is_read_or_refused(word, value):
    parses(f"group a\nip *\nignore * * * *\nend group a\ngroup b\n{word} {value}\nend group")


@given(st.lists(LINES | st.text(max_size=9), max_size=4))
def test_any_command_line_is_read_or_refused_in_one_line(argv):
    try:
        lines = list(nmap_audit.parse_options(argv))
        nmap_audit.read_config(nmap_audit.parse_rc("", "a.rc"), lines)
    except AuditError as error:
        assert error.status == 64
        for line in str(error).split("\n"):
            assert line.isprintable() and len(line) < 500, ascii(line[:500])


# ---- Targets and patterns -----------------------------------------------------------------------

def naive_octet(text):
    """The numbers of an octet as nmap reads them, one by one."""
    found = set()
    for piece in text.split(","):
        low, dash, high = ("0", "-", "255") if piece == "*" else piece.partition("-")
        if not piece or not all(re.fullmatch("0|[1-9][0-9]*", end) for end in (low or "0", high or "0")):
            raise ValueError(piece)
        numbers = [number for number in range(256)
                   if int(low or 0) <= number <= (int(high or 255) if dash else int(low))]
        if not numbers or dash and int(high or 255) > 255 or int(low or 0) > 255:
            raise ValueError(piece)
        found.update(numbers)
    return found


def naive_count(target):
    base, slash, mask = target.partition("/")
    octets = [naive_octet(octet) for octet in base.split(".")]
    if len(octets) != 4 or slash and not (re.fullmatch("0|[1-9][0-9]?", mask) and int(mask) <= 32):
        raise ValueError(target)
    count = 2 ** (32 - int(mask or 32))
    for octet in octets:
        count *= len(octet)
    return count


NUMBERS = st.integers(0, 300).map(str) | st.sampled_from(["", "00", "01", "-", "*", "255", "256"])
PIECES = NUMBERS | st.tuples(NUMBERS, NUMBERS).map("-".join)
OCTETS = st.lists(PIECES, min_size=1, max_size=3).map(",".join)
MASKS = st.sampled_from(["", "", "/", "/0", "/8", "/24", "/31", "/32", "/33", "/08", "/-1"])
FOURS = st.lists(OCTETS | st.integers(0, 255).map(str), min_size=3, max_size=5).map(".".join)
V4 = st.tuples(FOURS, MASKS).map("".join)


def counted(count, target):
    try:
        return count(target)
    except ValueError:
        return "refused"


@given(V4)
@settings(max_examples=500)
def test_addresses_are_counted_as_if_one_by_one(target):
    assert counted(nmap_audit.count_addresses, target) == counted(naive_count, target)


@given(st.text() | LINES | st.text("0123456789abcdefx.:/,*%_-", max_size=30))
@settings(max_examples=500)
def test_any_target_is_accepted_or_refused(target):
    count = counted(nmap_audit.count_addresses, target)
    assert count == "refused" or count >= 1 and re.fullmatch(r"[A-Za-z0-9.:/,*%_-]+", target) and target[0] != "-"


@given(st.lists(OCTETS, min_size=4, max_size=4).map(".".join))
def test_octets_are_sets_of_numbers(text):
    def naive(text):
        return [naive_octet(octet) for octet in text.split(".")]
    assert counted(lambda text: list(map(set, nmap_audit.octets(text))), text) == counted(naive, text)


def naive_like(pattern, text):
    if not pattern:
        return not text
    if pattern[0] == "*":
        return naive_like(pattern[1:], text) or bool(text) and naive_like(pattern, text[1:])
    return bool(text) and pattern[0] == text[0] and naive_like(pattern[1:], text[1:])


@given(st.text("ab*", max_size=8), st.text("ab", max_size=8))
@settings(max_examples=500)
def test_a_pattern_matches_what_a_naive_one_does(pattern, text):
    assert nmap_audit.like(pattern, text) == naive_like(pattern, text)


@given(st.text("a*?[]!-^$.+\\()|{}\n\ud800", max_size=6), st.text("a?[]!-^$.+\\()|{}\n\ud800", max_size=6))
@settings(max_examples=500)
def test_nothing_but_a_star_is_special_in_a_pattern(pattern, text):
    assert nmap_audit.like(pattern, text) == naive_like(pattern, text)
    assert nmap_audit.like(text, text)


def test_patterns_take_time_linear_in_the_text():
    assert not nmap_audit.like("*a" * 30 + "*b", "a" * 100_000)


# ---- Rules and groups ---------------------------------------------------------------------------

ADDRESSES = st.sampled_from(["192.0.2.1", "192.0.2.2", "192.0.2.130", "2001:db8::1"])
PORTS = st.builds(Port, st.sampled_from([22, 25, 80, 8080]), st.sampled_from(["tcp", "udp"]),
                  st.sampled_from(["open", "filtered", "open|filtered", "closed"]),
                  st.sampled_from(["", "ssh", "smtp", "http", "http-proxy"]))
LOOKED = st.sampled_from(["1-100/tcp", "1-10000/tcp", "22,80/tcp 1-9000/udp", ""])


def unique(ports):
    return tuple({port.key: port for port in ports}.values())


@st.composite
def hosts(draw):
    """A host's result as nmap gives it: a port in it was looked at."""
    looked, outcome = draw(LOOKED), draw(st.sampled_from(["audited"] * 4 + ["down", "failed"]))
    ports = [port for port in draw(st.lists(PORTS, max_size=5))
             if port.key in nmap_audit.looked_at(looked)]
    return HostResult(draw(ADDRESSES), outcome, names=draw(st.sampled_from([(), ("www.example.net",), ("mail",)])),
                      os=draw(st.sampled_from([(), ("Linux 5.4",), ("Windows",)])),
                      ports=unique(ports) if outcome == "audited" else (), looked=looked, start=1795485600)


@st.composite
def runs(draw, number=1):
    found = {host.address: host for host in draw(st.lists(hosts(), max_size=4))}
    return Run(Path(f"2026112{number}-020000"), found, {})


RULES = st.tuples(
    st.sampled_from(["ignore", "ignore", "expect"]), st.sampled_from(["22", "25", "80*", "1-100", "*"]),
    st.sampled_from(["tcp", "udp", "*"]), st.sampled_from(["open", "filtered", "closed", "open|filtered", "*"]),
    st.sampled_from(["ssh", "http*", "*"])
).map(" ".join)
TAGS = st.sampled_from([["ip *", "ip 192.0.2.1", "ip 192.0.2.0/25", "ip 2001:db8::/64"],
                        ["hostname www*", "hostname mail"], ["os Linux", "os *"]]).flatmap(
    lambda tags: st.lists(st.sampled_from(tags), min_size=1, max_size=3))
GROUPS = st.lists(st.tuples(TAGS, st.lists(RULES, min_size=1, max_size=4)), max_size=3)


def rc_text(groups):
    return "".join("\n".join([f"group {number}", *tags, *rules, "end group\n"])
                   for number, (tags, rules) in enumerate(groups))


def found(run, groups, state=None):
    read = config(rc_text(groups)).groups
    return sorted_out(nmap_audit.find(run, state or {}, read))


def told(changes):
    """What a report would tell, but for which rule it was that accepts a port."""
    return sorted({(each.host.address, each.change, each.port.key, each.port.state,
                    str([rule.fields for rule in each.rules]))
                   for each in changes.findings})


def hidden(changes):
    return sorted((each.host.address, each.change, each.port.key) for each in changes.ignored)


def ports_told(changes):
    return {(each.host.address, each.port) for each in changes.findings if each.change in nmap_audit.PORT_CHANGES}


@given(runs(), GROUPS, st.randoms(use_true_random=False))
def test_the_order_of_rules_and_groups_never_matters(run, groups, chance):
    mixed = [(chance.sample(tags, len(tags)), chance.sample(rules, len(rules))) for tags, rules in groups]
    mixed = chance.sample(mixed, len(mixed))
    one, other = found(run, groups), found(run, mixed)
    assert (told(one), hidden(one)) == (told(other), hidden(other))


@given(runs(), GROUPS, GROUPS)
def test_a_group_never_adds_a_finding(run, groups, more):
    """It may add what is missing, and no more."""
    assert ports_told(found(run, groups + more)) <= ports_told(found(run, groups))
    ignoring = [(tags, [rule for rule in rules if not rule.startswith("expect")] or ["ignore 22 tcp open ssh"])
                for tags, rules in more]
    assert set(told(found(run, groups + ignoring))) <= set(told(found(run, groups)))


@given(runs(), GROUPS)
def test_accepting_every_finding_empties_the_report(run, groups):
    rest = found(run, groups)
    rules = [([f"ip {each.host.address}"], [
        f"ignore {each.port.number} {each.port.protocol} {each.port.state} {each.port.service or '*'}"])
        for each in rest.findings if each.change in nmap_audit.PORT_CHANGES]
    again = found(run, groups + rules)
    assert not ports_told(again)
    assert len(again.ignored) == len(rest.ignored) + len(ports_told(rest))


@given(runs())
def test_a_port_is_told_exactly_once(run):
    changes = found(run, [])
    assert ports_told(changes) == {(host.address, port._replace(first_seen="2026-11-21"))
                                   for host in run.hosts.values() for port in host.ports if port.state != "closed"}


# ---- What is remembered -------------------------------------------------------------------------

HEAD = '<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE nmaprun>\n<nmaprun start="{}" version="7.93">\n'
TAIL = '<runstats><finished time="1" exit="success"/><hosts up="1" down="0" total="1"/></runstats></nmaprun>\n'


def xml(host):
    ports = "".join(f'<port protocol="{port.protocol}" portid="{port.number}"><state state="{port.state}"/>'
                    + (f'<service name="{port.service}"/>' if port.service else "") + "</port>" for port in host.ports)
    count = len(nmap_audit.looked_at(host.looked)) - len(host.ports)
    infos = "".join(
        f'<scaninfo protocol="{look[-3:]}" services="{look[:-4]}" numservices="{len(nmap_audit.looked_at(look))}"/>'
        for look in host.looked.split())
    names = "".join(f'<hostname name="{name}" type="PTR"/>' for name in host.names)
    return (HEAD.format(host.start) + infos + f'<host starttime="{host.start}"><status state="up"/>'
            f'<address addr="{host.address}" addrtype="ipv4"/><hostnames>{names}</hostnames><ports>'
            f'<extraports state="closed" count="{count}"/>{ports}</ports></host>' + TAIL)


def store(directory, run):
    """A run as it lies on the disk when its run.json is lost; then read back."""
    folder = directory / run.folder.name
    folder.mkdir()
    for host in run.hosts.values():
        if host.outcome == "audited":
            (folder / (host.address.replace(":", "_") + ".xml")).write_text(xml(host))
    return nmap_audit.read_run(folder)


ONE_AFTER_THE_OTHER = st.tuples(*(runs(number) for number in (1, 2, 3)))


@given(ONE_AFTER_THE_OTHER)
@settings(max_examples=60)
def test_the_state_is_the_same_from_run_json_and_from_the_xml(several):
    with tempfile.TemporaryDirectory() as name:
        state, later = {}, Run(Path(name, "20261129-020000"), {}, {})
        for number, run in enumerate(several, 1):
            read = store(Path(name), run._replace(hosts={address: host._replace(start=1795485600 + 86400 * number)
                                                         for address, host in run.hosts.items() if host.looked}))
            state = nmap_audit.fold(state, read)
            again, remarks = nmap_audit.last_told(later)
            assert (again or {}) == state and not remarks
        record = {"version": 1, "status": "finished", "told": True, "nmap": [], "ips": [], "hosts": {},
                  "state": state}
        (read.folder / "run.json").write_bytes(nmap_audit.record_json(record))
        assert nmap_audit.last_told(later) == (state, [])


@given(ONE_AFTER_THE_OTHER)
def test_the_state_survives_its_storage(several):
    state = {}
    for run in several:
        state = nmap_audit.fold(state, run)
        assert stored(state) == state


@given(runs(1), runs(2))
def test_the_same_run_again_is_nothing_new(first, other):
    for before in ({}, nmap_audit.fold({}, other)):
        state = nmap_audit.fold(before, first)
        again = first._replace(folder=Path("20261129-020000"))
        after, changes = nmap_audit.fold(state, again), sorted_out(nmap_audit.find(again, state, ()))
        audited = [each for each in changes.findings if each.host.outcome == "audited" and each.port.state != "closed"]
        assert {each.change for each in audited} <= {"standing"}
        assert {address: known.ports for address, known in after.items()} == {
            address: known.ports for address, known in state.items()}


@given(runs(1), runs(2))
def test_what_was_not_looked_at_is_never_gone(first, second):
    state = nmap_audit.fold({}, first)
    after, changes = nmap_audit.fold(state, second), sorted_out(nmap_audit.find(second, state, ()))
    gone = {(each.host.address, each.port.key) for each in changes.findings if each.change == "gone"}
    for address, known in state.items():
        now = second.hosts.get(address, HostResult(address, "not scanned"))
        for port in known.ports:
            looked = now.outcome == "audited" and port.key in nmap_audit.looked_at(now.looked)
            assert looked or (address, port.key) not in gone and port in after[address].ports
            listed = port.key in {each.key for each in now.ports if each.state != "closed"}
            was_open = port.state in ("open", "open|filtered")
            assert ((address, port.key) in gone) == (looked and was_open and not listed)


PORT_LISTS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 5)), max_size=4)


def list_text(pairs):
    return ",".join(f"{low}-{low + more}" if more else str(low) for low, more in pairs)


@given(PORT_LISTS)
def test_port_lists_are_sets(pairs):
    assert nmap_audit.looked_at(f"{list_text(pairs)}/tcp") == {
        f"{number}/tcp" for low, more in pairs for number in range(low, low + more + 1)}


LISTS = st.dictionaries(st.sampled_from(["tcp", "udp", "sctp"]), PORT_LISTS.map(list_text)).map(
    lambda lists: " ".join(f"{text}/{protocol}" for protocol, text in lists.items()))


@given(LISTS, LISTS, LISTS)
def test_joined_port_lists_are_unions(one, two, three):
    hosts = [HostResult("192.0.2.1", "audited", looked=text) for text in (one, two, three)]
    both = functools.partial(nmap_audit.joined, over=True)
    joined = functools.reduce(both, hosts)
    assert nmap_audit.looked_at(joined.looked) == set().union(*map(nmap_audit.looked_at, (one, two, three)))
    for each in (*hosts, joined):
        for again in (both(joined, each), both(each, joined)):  # it does not grow
            assert sorted(again.looked.split()) == sorted(joined.looked.split())


# ---- Keys of tags --------------------------------------------------------------------------------

V4_TEXTS = st.lists(st.sampled_from("0 1 2 7 10 63 64 192 255".split()), min_size=4, max_size=4).map(".".join)
V6_TEXTS = st.lists(st.sampled_from(["0", "1", "db8", "ffff", "2001"]), min_size=8, max_size=8).map(":".join)
IP_TAGS = st.one_of(
    V4_TEXTS, V6_TEXTS, FOURS, st.just("*"), st.tuples(V4_TEXTS, st.integers(0, 32)).map("{0[0]}/{0[1]}".format),
    st.tuples(V6_TEXTS, st.integers(0, 128)).map("{0[0]}/{0[1]}".format),
    st.lists(V4_TEXTS | V6_TEXTS, min_size=2, max_size=2).map("-".join))
NAME_TEXTS = st.text("ab.-", max_size=9) | st.sampled_from(["mail.example.net", "MAIL", "mail-1", "a.b.example.net"])
NAME_TAGS = st.one_of(NAME_TEXTS, st.text("ab*.-", max_size=8),
                      st.lists(NAME_TEXTS | st.just("*"), min_size=2, max_size=4).map("".join))


def tag_of(word, value):
    """A tag, or None where the value is none."""
    try:
        return config(f"group a\n{word} {value}\nignore * * * *\nend group").groups[0].tags[0]
    except AuditError:
        return None


def keeps_the_law(tag, host):
    keys = set(nmap_audit.host_keys(host))
    return not tag.matches(host) or not tag.keys or bool(keys & set(tag.keys))


@given(IP_TAGS, V4_TEXTS | V6_TEXTS | st.just("fe80::1%eth0"), st.integers(-70, 70))
@settings(max_examples=1000)
def test_an_address_that_a_tag_matches_has_one_of_its_keys(value, address, steps):
    if tag := tag_of("ip", value):
        version, number, _ = nmap_audit.numeric(value.partition("-")[0].partition("/")[0])
        near = [version(max(number + steps, 0)) for version in (ipaddress.IPv4Address, ipaddress.IPv6Address)
                if 0 <= number + steps < 1 << 32]
        for each in [address, *map(str, near)]:
            assert keeps_the_law(tag, HostResult(each, "audited"))
        assert len(tag.keys) <= 64 and (tag.keys or value == "*")


@given(NAME_TAGS, st.lists(NAME_TEXTS, max_size=3))
@settings(max_examples=1000)
def test_a_name_that_a_tag_matches_has_one_of_its_keys(value, names):
    if tag := tag_of("hostname", value):
        for found in (names, [value.replace("*", "x")], [value.replace("*", "") + ".more"]):
            assert keeps_the_law(tag, HostResult("192.0.2.1", "audited", names=tuple(found)))


def test_keys_part_hosts():
    """Of 65,536 addresses and names few are in question for a tag of one."""
    tags = [tag_of("ip", "10.1.2.3"), tag_of("ip", "10.1.2.0/24"), tag_of("hostname", "h258"),
            tag_of("hostname", "mail-258*"), tag_of("hostname", "*.n258.example.net")]
    hosts = [HostResult(f"10.1.{number >> 8}.{number & 255}", "audited", names=(f"h{number}.n{number}.example.net",))
             for number in range(1024)]
    for tag in tags:
        assert sum(bool(set(tag.keys) & set(nmap_audit.host_keys(host))) for host in hosts) <= 256, tag
    assert tag_of("os", "Linux").keys == () == tag_of("ip", "*").keys == tag_of("hostname", "*a*").keys


# ---- What is told -------------------------------------------------------------------------------

HARMLESS = st.text("abcXYZ 0159.,;\"'()/_\u00e4\u20ac", max_size=20).map(str.strip)
HOSTILE = st.text(max_size=30) | st.tuples(
    st.sampled_from(["", " ", "\t", "\r", "\n", "\xa0", "\ufeff", "\u200b", "\x00", "\v", "'", "=", "+", "-", "@"]),
    st.sampled_from(["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(1)", "\uff1d1", "|x", "%y"])).map("".join)


def findings(texts):
    """Findings whose every text is a stranger's."""
    return st.lists(st.builds(
        lambda address, number, name, os, service, version, first_seen: Finding(
            HostResult(address, "audited", names=(name,), os=(os,)), "new",
            Port(number, "tcp", "open", service, version, first_seen)),
        st.just("192.0.2.1") | texts, st.integers(0, 65535), texts, texts, texts, texts, texts),
        max_size=4)


def rows(text):
    assert not text or text.startswith("\ufeff")
    return list(csv.reader(io.StringIO(text[1:], newline=""), strict=True))


def columns(each):
    return [each.host.address, each.host.names[0], each.host.os[0], str(each.port.number), "tcp", "open",
            each.port.service, each.port.version, "new", each.port.first_seen]


@given(findings(HARMLESS))
def test_the_csv_reads_back_to_what_was_written(several):
    read = rows(nmap_audit.make_csv(several, headings=False))
    assert sorted(read) == sorted(map(columns, several))


@given(findings(HOSTILE), st.booleans())
def test_no_cell_of_the_csv_is_a_formula(several, headings):
    text = nmap_audit.make_csv(several, headings)
    read = rows(text)
    assert len(read) == len(several) + (headings and bool(several))
    assert text.count("\r\n") == len(read) == text.count("\r") == text.count("\n")
    for cell in itertools.chain(*read):
        assert cell[:1] not in tuple("=+-@\t\r"), ascii(cell)
        assert cell.lstrip()[:1] not in tuple("=+-@"), ascii(cell)
        assert cell.isprintable() and len(cell) <= 1001, ascii(cell)
    text.encode()


@given(st.text(), st.integers(3, 80))
def test_what_strangers_write_is_shown_harmlessly(text, width):
    visible = nmap_audit.shown(text, width)
    assert visible.isprintable()
    assert len(visible) <= width
    assert not set(visible) & set("\u202e\u2066\u200b\xad\ufeff\xa0\u2028")
    visible.encode()
    if text.isascii() and text.isprintable() and len(text) <= width:
        assert visible == text
    assert nmap_audit.shown(text[:5], 200) == nmap_audit.shown(nmap_audit.shown(text[:5], 200), 200)


@given(runs(), GROUPS, st.sampled_from(["none", "low", "medium", "high"]))
@settings(max_examples=60)
def test_a_report_counts_what_it_tells(run, groups, detail):
    findings = nmap_audit.find(run, {}, config(rc_text(groups)).groups)
    changes, report = sorted_out(findings), nmap_audit.make_report(run, findings, nmap_audit.Config(detail=detail))
    up = [host for host in run.hosts.values() if host.outcome != "down"]
    audited = [host for host in up if host.outcome == "audited"]
    first, _, _ = report.text.partition("\n")
    told = len(ports_told(changes))
    assert first == f"{len(audited)} of {len(up)} hosts audited, {told} findings, 0 gone"
    assert report.counts["not audited"] == len(up) - len(audited)


# ---- Batches ------------------------------------------------------------------------------------

ELEMENTS = st.lists(st.tuples(
    st.sampled_from(["<host>", '<host starttime="1" endtime="2">', '<host a="&lt;/host&gt;">']),
    st.sampled_from(["", "<hostnames></hostnames>", '<hostname name="&lt;host&gt;"/>', "\n<status state='up'/>\n",
                     "\xe4", '<hostscript><script id="x" output="&lt;/host&gt;"/></hostscript>', "<!-- -->"])).map(
    lambda pair: f"{pair[0]}{pair[1]}</host>".encode("latin-1")), max_size=5)


@given(ELEMENTS, st.sampled_from([b"", b"\n", b"<taskend/>\n"]), st.booleans())
def test_a_batch_is_split_byte_for_byte(elements, between, hints):
    head = b"<nmaprun>" + b"<hosthint><status/></hosthint>" * hints
    tail = b"<runstats><finished/><hosts/></runstats></nmaprun>"
    rest, *single = nmap_audit.split_hosts(head + between.join(elements) + tail, b"")
    assert len(single) == len(elements)
    for document, element in zip(single, elements):
        assert document.startswith(b"<nmaprun>") and document.endswith(tail) and document.count(b"</host>") == 1
        assert document[document.index(b"<host>" if b"<host>" in element[:6] else b"<host "):].startswith(element)
    assert rest.startswith(b"<nmaprun>") and rest.endswith(tail) and b"</host>" not in rest


@given(st.binary())
def test_any_output_is_split(data):
    documents = nmap_audit.split_hosts(data, b"end")
    assert documents and all(isinstance(each, bytes) for each in documents)


@given(st.binary() | st.sampled_from(["127.0.0.1", "::1"]).map(
    lambda address: xml(HostResult(address, "audited", looked="1-9/tcp")).encode()), st.integers(0, 700))
def test_any_xml_is_read(data, cut):
    document = nmap_audit.read_xml(io.BytesIO(data[:cut]))
    assert document.problem or data[:cut].rstrip().endswith(b"</nmaprun>")
    for host in nmap_audit.judge(document, "", "127.0.0.1"):
        assert host.outcome == "cut off" or not document.problem
