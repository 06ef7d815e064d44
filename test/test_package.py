"""The package: its shape, its versions, the shipped rc file, and that it works once installed."""

import ast
import configparser
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tarfile
import time
import venv
from pathlib import Path

import pytest

import nmap_audit

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = ROOT / 'nmap-audit.rc'
TOP = {'setup.cfg', 'setup.py', 'nmap_audit.py', 'nmap-audit.rc', 'man', 'test', 'README.md',
       'LICENSE', 'CHANGES.md', 'MANIFEST.in', 'Makefile', '.ci', '.gitignore'}
PACKAGES = {'defusedxml', 'lark', 'tabulate'}
PAGES = {'share/man/man1/nmap-audit.1': 'man/nmap-audit.1',
         'share/man/man5/nmap-audit.rc.5': 'man/nmap-audit.rc.5',
         'share/doc/nmap-audit/nmap-audit.rc': 'nmap-audit.rc',
         'share/bash-completion/completions/nmap-audit': 'man/examples/bash/nmap-audit',
         'share/zsh/site-functions/_nmap-audit': 'man/examples/zsh/_nmap-audit'}
EXAMPLES = 'share/doc/nmap-audit/examples'
UNITS = 'lib/systemd/system'
OPTIONS = {f'--{name.lower()}' for name, each in nmap_audit.OPTIONS.items() if each.heading} | {'--version', '--help'}
VERSION = f'nmap-audit {nmap_audit.__version__}\n'
# what a caller's shell, a test run or a make above this one must not add to an installation
CLEAN = {name: value for name, value in os.environ.items()
         if not re.match('COV|MAKE|MFLAGS|PYTHON|VIRTUAL_ENV', name)}


def output(*words: str | Path, cwd: Path = ROOT, **more: str) -> str:
    """The standard output of a program that must end well and say nothing on standard error."""
    done = subprocess.run([str(word) for word in words], cwd=cwd, env={**CLEAN, **more},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def setup_cfg() -> configparser.ConfigParser:
    """As setuptools reads it: with interpolation, so that a stray percent sign fails here."""
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    assert all(config.items(section) is not None for section in config.sections())
    return config


def settings() -> list[list[str]]:
    """The words of the template's lines that are in force."""
    lines = [line.split() for line in TEMPLATE.read_text().splitlines()]
    return [words for words in lines if words and not words[0].startswith('#')]


def examples() -> str:
    """The template with its examples in force, but for SCAN-ONLY: PROCESS-ONLY excludes it."""
    text = re.sub(r'^# (?!SCAN-ONLY)([A-Z-]+  )', r'\1', TEMPLATE.read_text(), flags=re.M)
    return re.sub(r'^# group .*?^# end group', lambda found: found[0].replace('\n# ', '\n')[2:],
                  text, flags=re.M | re.S)


# ---- Shape -------------------------------------------------------------------------------------


def test_the_top_level_is_the_agreed_one() -> None:
    if not (ROOT / '.git').exists():
        pytest.skip('not a clone')
    listed = output('git', '-c', f'safe.directory={ROOT}', 'ls-files', '--cached', '--others',
                    '--exclude-standard')
    assert {line.split('/')[0] for line in listed.splitlines()} == TOP


def test_three_packages_at_run_time() -> None:
    needs = setup_cfg()['options']['install_requires'].split()
    assert {re.split('[<>=!~]', need)[0] for need in needs} == PACKAGES


def test_the_module_imports_nothing_else() -> None:
    """Not even inside a function."""
    nodes = list(ast.walk(ast.parse((ROOT / 'nmap_audit.py').read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or '' for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {name.split('.')[0] for name in names} - set(sys.stdlib_module_names) <= PACKAGES


def test_the_version_is_that_of_the_newest_changes() -> None:
    found = re.search(r'^## (\S+)', (ROOT / 'CHANGES.md').read_text(), re.M)
    assert found and found[1] == nmap_audit.__version__


# ---- The shipped rc file -----------------------------------------------------------------------


def test_the_template_is_ascii() -> None:
    assert TEMPLATE.read_bytes().isascii()


def test_the_template_sets_only_what_it_needs() -> None:
    """No EMAIL-TO: the report comes to the screen; no DIR-NAME: the default suits every user."""
    variables = [words[0] for words in settings() if words[0].isupper()]
    assert variables == ['IPS', 'NMAP', 'MAX-THREADS', 'DETAIL']


def test_the_template_has_the_groups_of_the_original() -> None:
    assert [words[1:] for words in settings() if words[0] == 'group'] == [['windows'], ['unix']]
    keywords = {words[0] for words in settings() if words[0].islower()}
    assert keywords == {'group', 'os', 'ignore', 'end'}


def test_the_rules_of_the_template_name_services_of_nmap() -> None:
    """A rule whose service nmap calls otherwise would never match."""
    lines = Path('/usr/share/nmap/nmap-services').read_text().splitlines()
    known = {tuple(re.split(r'[\s/]', line)[:3:2]) for line in lines}
    rules = {(words[4], words[2]) for words in settings() if words[0] == 'ignore'}
    assert rules and rules <= known


def test_the_template_works_as_it_is(tmp_path: Path) -> None:
    program = ROOT / 'nmap_audit.py'
    report = output(sys.executable, program, '--config', TEMPLATE, '--dir-name', tmp_path)
    assert report.startswith('1 of 1 hosts audited, ')


def test_the_examples_of_the_template_are_right(tmp_path: Path) -> None:
    """Nothing is stored, so there is nothing to report (65 or 66); a mistake comes first (78)."""
    (tmp_path / 'all.rc').write_text(examples())
    (tmp_path / 'runs').mkdir()
    program = str(ROOT / 'nmap_audit.py')
    done = subprocess.run([sys.executable, program, '--config', 'all.rc', '--dir-name', 'runs'],
                          cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode in (65, 66) and 'all.rc:' not in done.stderr, done.stderr
    assert examples().count('\ngroup ') == 5 and '\n# IPS ' not in examples()


# ---- Installed ---------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The files of the package alone: building leaves its traces here, not in the clone."""
    source = tmp_path / 'source'
    shutil.copytree(ROOT / 'man', source / 'man')
    for name in TOP - {'test', 'man', '.ci', '.gitignore'}:
        shutil.copy(ROOT / name, source)
    return source


def same(prefix: Path) -> None:
    """The man pages and the template lie below the prefix."""
    for installed, source in PAGES.items():
        assert (prefix / installed).read_bytes() == (ROOT / source).read_bytes()
    assert (prefix / EXAMPLES / 'nmap-audit.cron').exists()


def test_pip_installs_it(copy: Path, tmp_path: Path) -> None:
    place = tmp_path / 'venv'
    venv.create(place, symlinks=True, with_pip=True)
    pip = [place / 'bin' / 'python3', '-m', 'pip', '--quiet', '--disable-pip-version-check']
    output(*pip, 'install', copy)
    assert output(place / 'bin' / 'nmap-audit', '--version', cwd=tmp_path) == VERSION
    same(place)


def test_make_installs_it(tmp_path: Path) -> None:
    """Staged and moved, as a package is built; then run with everything around it hostile."""
    stage, prefix = tmp_path / 'stage', tmp_path / 'prefix'
    output('sh', '-c', f'umask 077; exec make install DESTDIR={stage} PREFIX={prefix}')
    entries = list((stage / prefix.relative_to('/')).rglob('*'))
    assert [entry for entry in entries if entry.stat().st_mode & 0o044 != 0o044] == []
    files = [entry for entry in entries if entry.is_file()]
    assert [file for file in files if str(stage).encode() in file.read_bytes()] == []
    (stage / prefix.relative_to('/')).rename(prefix)
    same(prefix)
    names_the_program(prefix)
    for name in ('lark', 'nmap_audit', 'json', 'sitecustomize'):
        (tmp_path / f'{name}.py').write_text('raise SystemExit("not mine")\n')
    program, hostile = prefix / 'bin' / 'nmap-audit', str(tmp_path)
    assert output(program, '--version', cwd=tmp_path, PYTHONPATH=hostile) == VERSION
    output('make', 'uninstall', f'PREFIX={prefix}')
    assert [file for file in prefix.rglob('*') if not file.is_dir()] == []


def names_the_program(prefix: Path) -> None:
    """The unit and the crontab start what is installed, and systemd finds nothing wrong with its files."""
    program = prefix / 'bin' / 'nmap-audit'
    service, timer = (prefix / UNITS / f'nmap-audit.{kind}' for kind in ('service', 'timer'))
    started = re.search('^ExecStart=(.*)$', service.read_text(), re.M)
    crontab = (prefix / EXAMPLES / 'nmap-audit.cron').read_text()
    job = re.search(r'^[\d*]+(?: [\d*/-]+){4}  root  (.*)$', crontab, re.M)
    assert started and job and '%' not in job[1]
    for command in (started[1], job[1]):
        assert command.startswith(f'{program} --quiet --config /')
    if shutil.which('systemd-analyze'):
        done = subprocess.run(['systemd-analyze', 'verify', '--man=no', service, timer], capture_output=True, text=True)
        assert (done.returncode, [line for line in done.stderr.splitlines() if 'nmap-audit' in line]) == (0, [])


def test_the_archive_holds_what_a_test_run_needs(copy: Path) -> None:
    """Every file of the clone, but what is for git alone; and the wheel beside it."""
    shutil.copytree(ROOT / 'test', copy / 'test', ignore=shutil.ignore_patterns('__pycache__'))
    shutil.copytree(ROOT / '.ci', copy / '.ci')
    here = {str(path.relative_to(copy)) for path in copy.rglob('*') if path.is_file()}
    output('make', 'dist', f'VENV={ROOT / ".venv"}', cwd=copy)
    archive, = (copy / 'dist').glob('*.tar.gz')
    assert archive.name == f'nmap_audit-{nmap_audit.__version__}.tar.gz'
    with tarfile.open(archive) as tar:
        packed = {member.name.partition('/')[2]: member for member in tar if member.isfile()}
    added = {name for name in packed if name.startswith('nmap_audit.egg-info/')} | {'PKG-INFO'}
    assert set(packed) == here | added
    assert packed['.ci/run'].mode & 0o111 and packed['test/bin/nmap'].mode & 0o111
    assert len(list((copy / 'dist').glob('*.whl'))) == 1


# ---- Completions -------------------------------------------------------------------------------


def typed(shell: list[str], *lines: str, cwd: Path) -> str:
    """What an interactive shell shows when this is typed; what stands for a key is a control character."""
    main, side = pty.openpty()
    process = subprocess.Popen(shell, stdin=side, stdout=side, stderr=side, cwd=cwd, start_new_session=True,
                               env={**CLEAN, 'PS1': '$ ', 'TERM': 'dumb', 'HOME': str(cwd), 'COLUMNS': '200'})
    os.close(side)
    shown, limit = '', time.monotonic() + 20
    try:
        for line in lines:
            os.write(main, line.encode())
            quiet = time.monotonic()
            while time.monotonic() < min(quiet + 0.4, limit):
                if select.select([main], [], [], 0.1)[0]:
                    shown += os.read(main, 65536).decode(errors='replace')
                    quiet = time.monotonic()
    finally:
        process.kill()
        process.wait()
        os.close(main)
    return shown.replace('\r', '')


def bash(*words: str, cwd: Path) -> set[str]:
    """What the completion of bash offers for the last of these words."""
    script = ('compopt() { :; }; source "$1"; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _nmap_audit; '
              'printf "%s\\n" "${COMPREPLY[@]}"')
    source = ROOT / 'man/examples/bash/nmap-audit'
    return set(output('bash', '--norc', '-c', script, 'bash', source, 'nmap-audit', *words, cwd=cwd).split())


@pytest.mark.parametrize('words, offered', [
    ([''], OPTIONS), (['--'], OPTIONS), (['--no'], {'--no-human', '--no-csv', '--no-csv-headings'}),
    (['--quiet', '--fail'], {'--fail-on'}), (['--detail', ''], {'none', 'low', 'med', 'high'}),
    (['--detail', '=', 'm'], {'med'}), (['--detail', '='], {'none', 'low', 'med', 'high'}),
    (['--tell', 'a'], {'always'}), (['--fail-on', ''], {'findings', 'new', 'gone', 'missing'}),
    (['--fail-on', 'gone,n'], {'gone,new'}), (['--batch', ''], {'auto'}), (['--nmap', ''], set()),
    (['--config', 'au'], {'audit.rc', 'audits'}), (['--dir-name', ''], {'audits', 'more'}),
    (['--dir-name', 'audits,m'], {'audits,more'}), (['--dir-name', '=', 'audits,m'], {'audits,more'}),
    (['--scan-only', '--q'], {'--quiet'}), (['--resume', ''], set()), (['--resume', '--scan'], {'--scan-only'})])
def test_bash_completes(tmp_path: Path, words: list[str], offered: set[str]) -> None:
    (tmp_path / 'audit.rc').touch()
    for name in ('audits', 'more'):
        (tmp_path / name).mkdir()
    assert bash(*words, cwd=tmp_path) == offered


def test_bash_completes_as_one_types(tmp_path: Path) -> None:
    """In an interactive bash, found where it is installed."""
    (tmp_path / 'my audit.rc').touch()
    shown = typed(['bash', '--norc', '-i'], f'. {ROOT}/man/examples/bash/nmap-audit\n',
                  'nmap-audit --conf\tmy\t--det\tl\t--proc\t', '\x01echo \n', cwd=tmp_path)
    assert re.search('^nmap-audit --config my audit.rc --detail low --process-only *$', shown, re.M), shown


def zsh(*lines: str, cwd: Path) -> str:
    start = (f'fpath=({ROOT}/man/examples/zsh $fpath); autoload -Uz compinit; compinit -u -D; setopt nobeep; '
             'unsetopt automenu; LISTMAX=999; bindkey -e\n')
    return typed(['zsh', '-f', '-i'], start, *lines, cwd=cwd)


@pytest.mark.skipif(not shutil.which('zsh'), reason='zsh is not installed')
def test_zsh_completes(tmp_path: Path) -> None:
    shown = zsh('nmap-audit --\t', cwd=tmp_path).partition('bindkey')[2]
    assert set(re.findall(r'^ *(--[a-z-]+) +-- ', shown, re.M)) == OPTIONS, shown


@pytest.mark.skipif(not shutil.which('zsh'), reason='zsh is not installed')
def test_zsh_completes_values(tmp_path: Path) -> None:
    (tmp_path / 'audit.rc').touch()
    (tmp_path / 'audits').mkdir()
    shown = zsh('nmap-audit --conf\taudit.\t--det\tme\t--dir\tau\t --fail-on gone,fi\t', '\x01echo \n',
                'nmap-audit --tell \t', cwd=tmp_path)
    assert re.search('^nmap-audit --config=audit.rc --detail=med --dir-name=audits --fail-on gone,findings *$', shown,
                     re.M), shown
    assert re.search('^always +changes +errors *$', shown, re.M), shown


def test_make_says_what_it_can_do() -> None:
    """Each target that is for people stands in the list that plain `make` prints."""
    makefile = (ROOT / 'Makefile').read_text()
    targets = set(re.findall(r'^([a-z]+):', makefile, re.M)) - {'help', 'machine'}
    assert {'audit', 'test', 'check', 'install'} <= targets
    assert targets == set(re.findall(r'\bmake ([a-z]+)', output('make')))
