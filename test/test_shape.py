"""The shape of nmap_audit.py: one file that is read from above, short functions, few packages, no shell."""
import ast
import re
import symtable
import sys
from pathlib import Path

import pytest

import nmap_audit

SOURCE = Path(nmap_audit.__file__).read_text()
TREE = ast.parse(SOURCE)
PACKAGES = {"lark", "defusedxml", "tabulate"}
BANNER = re.compile(r"# ---- (\S.*\S) -+")


def functions():
    return [node for node in ast.walk(TREE) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def calls():
    return [node for node in ast.walk(TREE) if isinstance(node, ast.Call)]


def sections():
    """(first line, name) of every section, the head of the file included."""
    found = [(number, match[1]) for number, line in enumerate(SOURCE.splitlines(), 1) if (match := BANNER.match(line))]
    return [(0, "head"), *found]


def section_of(line):
    return sum(line >= first for first, _ in sections()) - 1


class WithoutAnnotations(ast.NodeTransformer):
    """What is left of a tree when it runs."""

    def visit_AnnAssign(self, node):
        self.generic_visit(node)
        value = node.value or ast.Constant(None)
        return ast.copy_location(ast.Assign([node.target], value), node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_FunctionDef(self, node):
        self.generic_visit(node)
        node.returns = None
        return node

    visit_AsyncFunctionDef = visit_FunctionDef


def defined(node):
    """The names that a statement of the module gives a meaning."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)}


def used(text):
    """The module's names that a statement uses, those in its functions included."""
    def walk(table, top):
        for symbol in table.get_symbols():
            if symbol.is_referenced() and (top or symbol.is_global()):
                yield symbol.get_name()
        for child in table.get_children():
            yield from walk(child, False)
    return set(walk(symtable.symtable(text, "nmap_audit.py", "exec"), True))


def downward_uses():
    """(line, name) of every use of a name of a section below."""
    where = {name: section_of(node.lineno) for node in TREE.body for name in defined(node)}
    plain = WithoutAnnotations().visit(ast.parse(SOURCE))
    for before, after in zip(TREE.body, ast.fix_missing_locations(plain).body):
        for name in sorted(used(ast.unparse(after))):
            if where.get(name, 0) > section_of(before.lineno):
                yield before.lineno, name


# ---- These checks see what they look for --------------------------------------------------------

@pytest.mark.parametrize("text, names", [
    ("def f(x):\n return g(x)", {"g"}), ("def f():\n x = 1\n return lambda: x + y", {"y"}),
    ("class A(B):\n c = d\n def e(self):\n  return f(self.g)", {"B", "d", "f"}),
    ("a = [b for b in c]", {"c"}), ("@d\ndef f(x=e): pass", {"d", "e"}), ("a = b", {"b"})])
def test_uses_are_seen(text, names):
    assert used(text) == names


def test_annotations_are_no_uses():
    tree = WithoutAnnotations().visit(ast.parse(
        "def f(a: A, *b: B, **c: C) -> D:\n e: E = 1\n g: G\nclass H:\n i: I\n j: J = k"))
    assert set().union(*map(used, map(ast.unparse, ast.fix_missing_locations(tree).body))) == {"k"}


# ---- The file -----------------------------------------------------------------------------------

def test_the_file_is_short():
    lines = SOURCE.splitlines()
    assert len(lines) < 1600
    assert max(map(len, lines)) <= 120
    assert "\t" not in SOURCE and SOURCE.isascii()


def test_no_function_is_long():
    long = {node.name: node.end_lineno - node.lineno + 1 for node in functions()}
    assert {name: lines for name, lines in long.items() if lines > 25} == {}


def test_sections_have_banners():
    names = [name for _, name in sections()]
    assert len(names) >= 10 and len(set(names)) == len(names)
    ends = {len(line) for line in SOURCE.splitlines() if BANNER.match(line)}
    assert len(ends) == 1


def test_a_section_uses_itself_and_what_is_above():
    assert list(downward_uses()) == []


def test_imports():
    tops = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Import):
            tops |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level
            tops.add(node.module.partition(".")[0])
    assert tops - sys.stdlib_module_names == PACKAGES
    assert not tops & {"pickle", "marshal", "shelve", "ctypes"}


def test_no_shell():
    for call in calls():
        assert not [each for each in call.keywords if each.arg == "shell"], call.lineno
    named = {ast.unparse(call.func) for call in calls()}
    assert not named & {"os.system", "os.popen", "asyncio.create_subprocess_shell", "subprocess.getoutput",
                        "subprocess.getstatusoutput", "eval", "exec"}


def test_no_globals_that_change():
    assert not [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.Global)]
    assert not [function.name for function in functions() for default in function.args.defaults
                if isinstance(default, (ast.List, ast.Dict, ast.Set))]


def test_no_fault_is_swallowed():
    assert not [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.ExceptHandler) and node.type is None]


def test_only_the_command_line_exits():
    first = next(first for first, name in sections() if name == "Command line")
    exits = [node.lineno for node in ast.walk(TREE) if isinstance(node, ast.Name) and node.id == "SystemExit"]
    assert min(exits) > first and max(exits) == TREE.body[-1].end_lineno
    assert not {ast.unparse(call.func) for call in calls()} & {"sys.exit", "os._exit", "exit", "quit"}


def test_public_functions_and_classes_say_what_they_are():
    silent = [node.name for node in TREE.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
              and not node.name.startswith("_") and not ast.get_docstring(node)]
    assert silent == []


def test_the_grammar_is_free_of_conflicts():
    pytest.importorskip("interegular")
    from lark import Lark
    Lark(nmap_audit.GRAMMAR, parser="lalr", lexer="contextual", strict=True)
