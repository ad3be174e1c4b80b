"""The project as a package: one source of metadata, a wheel that holds everything, a Makefile that
does what it says.
"""

import ast
import configparser
import email
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, metadata
import pytest
import yaml
from packaging.specifiers import SpecifierSet


@pytest.fixture(scope='module')
def settings(root):
    ini = configparser.ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    return ini['DEFAULT']


@pytest.fixture(scope='module')
def wheel(root, tmp_path_factory):
    "A wheel built from what git would hand out, with nothing fetched."
    src, out = tmp_path_factory.mktemp('src') / 'mypt', tmp_path_factory.mktemp('wheel')
    shutil.copytree(root / 'mypt', src / 'mypt', ignore=shutil.ignore_patterns('__pycache__'))
    for f in ('tools', 'tests'):
        shutil.copytree(root / f, src / f, ignore=shutil.ignore_patterns('__pycache__'))
    for f in root.iterdir():
        if f.is_file():
            shutil.copy(f, src)
    offline = ['-q', '--no-deps', '--no-build-isolation', '--no-index']
    cmd = [sys.executable, '-m', 'pip', 'wheel', *offline, '-w', str(out), str(src)]
    subprocess.run(cmd, check=True, capture_output=True)
    return zipfile.ZipFile(next(out.glob('*.whl')))


def test_wheel_holds_everything(root, wheel):
    packed = set(wheel.namelist())
    kinds = ('.py', '.json', '.jsonl', '.js', '.css', '.tiktoken', '.LICENSE')
    want = {p.relative_to(root).as_posix() for p in (root / 'mypt').rglob('*') if p.suffix in kinds}
    assert 'mypt/assets/gpt2.tiktoken' in want and want - packed == set()
    assert not [n for n in packed if n.startswith(('tests/', 'tools/', 'nbs/', 'bench/'))]


def test_wheel_metadata(settings, wheel):
    name = next(n for n in wheel.namelist() if n.endswith('METADATA'))
    meta = email.message_from_bytes(wheel.read(name))
    assert (meta['Name'], meta['Version'], meta['Summary']) == (
        'mypt-lm',
        settings['version'],
        settings['description'],
    )
    assert meta['License-Expression'] == 'Apache-2.0' or meta['License'] == 'Apache-2.0'
    assert 'torch>=2.10' in meta.get_all('Requires-Dist') and meta['Requires-Python'] == '>=3.10'
    extras = set(meta.get_all('Provides-Extra'))
    assert extras == {
        k.removesuffix('_requirements') for k in settings if k.endswith('_requirements')
    }
    assert {
        'dev',
        'bench',
        'hub',
        'serve',
        'widgets',
        'translate',
        'constrain',
        'documents',
    } <= extras
    assert wheel.read(name.replace('METADATA', 'entry_points.txt')).decode().split() == [
        '[console_scripts]',
        'mypt',
        '=',
        'mypt.cli:main',
        '[nbdev]',
        'mypt',
        '=',
        'mypt._modidx:d',
    ]


def test_build_needs_no_torch(root):
    requires = re.search(r'^requires = (\[.*\])', (root / 'pyproject.toml').read_text(), re.M)
    assert ast.literal_eval(requires[1]) == ['setuptools>=70.1']


def test_pyproject_agrees_with_settings(root, settings):
    text = (root / 'pyproject.toml').read_text()
    assert f'name = "{settings["lib_name"]}"' in text
    section = re.search(r'\[tool\.nbdev\]\n(.*?)\n\n', text, re.S)[1]
    for k, v in re.findall(r'^(\w+) = (.*)$', section, re.M):
        assert settings[k].lower() == v.strip('"').lower(), k


def wrong_installs(text, extras):
    "What a text tells a reader to install that is not ours, or has no such extra."
    wanted = re.findall(r'pip install [^\n`]*?\bmypt(?!-lm)\b[^\n`]*', text)
    wanted += re.findall(r"(?:version|distribution|metadata)\('mypt'\)", text)
    named = '|'.join(extras)
    wanted += re.findall(rf'\bmypt\[(?:{named})\]', text)
    asked = re.findall(r"pip install (?:-e )?'(?:mypt-lm|\.)\[([\w,]+)\]'", text)
    return wanted + [e for group in asked for e in group.split(',') if e not in extras]


@pytest.mark.parametrize(
    'text, wrong',
    [
        ("pip install 'mypt-lm[hub]'", []),
        ('pip install mypt', ['pip install mypt']),
        ("pip install 'mypt[hub]'", ["pip install 'mypt[hub]'", 'mypt[hub]']),
        ("'mypt[hub] @ git+https://x'", ['mypt[hub]']),
        ("pip install 'mypt-lm[hup]'", ['hup']),
        ("metadata.version('mypt')", ["version('mypt')"]),
    ],
)
def test_wrong_installs(text, wrong):
    assert wrong_installs(text, {'hub', 'dev'}) == wrong


def test_every_hint_installs_what_is_ours(root, settings):
    "`mypt` is somebody else's on the package index; import and command are `mypt` all the same."
    extras = {k.removesuffix('_requirements') for k in settings if k.endswith('_requirements')}
    assert settings['lib_name'] == 'mypt-lm' and settings['lib_path'] == 'mypt'
    texts = [p for d in ('nbs', 'mypt', 'bench', 'tools', '.github') for p in (root / d).rglob('*')]
    kinds = ('.ipynb', '.md', '.py', '.yml', '.js', '.html')
    texts = [p for p in (*texts, *root.glob('*.md')) if p.suffix in kinds]
    read = {p.relative_to(root).as_posix(): p.read_text(encoding='utf-8') for p in texts}
    hints = [p for p, text in read.items() if "pip install 'mypt-lm[" in text]
    assert len(hints) > 10
    assert {p: w for p, text in read.items() if (w := wrong_installs(text, extras))} == {}


def test_version_in_package(root, settings):
    assert f'__version__ = "{settings["version"]}"' in (root / 'mypt/__init__.py').read_text()


def test_nbdev_pins(settings):
    assert {'nbdev==2.4.14', 'execnb<0.2', 'fastcore<2', 'ghapi<2'} <= set(
        settings['dev_requirements'].split()
    )


def test_constraints(root, settings):
    "torch is pinned without a build tag, once; every requirement of ours is pinned too."
    pins = re.findall(r'^([\w.-]+)==(\S+)', (root / 'constraints.txt').read_text(), re.M)
    names = {n.lower().replace('_', '-'): v for n, v in pins}
    assert (
        len(names) == len(pins)
        and names['torch'] == '2.13.0'
        and not [v for v in names.values() if '+' in v]
    )
    ours = {
        re.split('[<>=]', r)[0]
        for k, v in settings.items()
        if k.endswith('requirements')
        for r in v.split()
    }
    assert {o.lower().replace('_', '-') for o in ours} - names.keys() <= {'setuptools'}


def test_ci_calls_make_test_alone(root):
    lines = [
        line
        for line in (root / '.ci/run').read_text().splitlines()
        if line and not line.startswith('#')
    ]
    assert lines == ['set -euo pipefail', 'cd "$(dirname "$0")/.."', 'exec make test']
    assert os.access(root / '.ci/run', os.X_OK)


# ---- Makefile


def make(cwd, *args, **env):
    "Run make with an environment of its own; stdout and stderr together."
    clean = {k: v for k, v in os.environ.items() if not k.startswith('MAKE') and k != 'MFLAGS'}
    p = subprocess.run(['make', *args], cwd=cwd, env=clean | env, text=True, capture_output=True)
    return p.returncode, p.stdout + p.stderr


@pytest.fixture
def clone(root, tmp_path):
    """A copy of what the Makefile's stamps depend on, with a python3 that only notes how it was
    called.
    """
    for f in ('Makefile', 'settings.ini', 'setup.py', 'pyproject.toml', 'constraints.txt'):
        shutil.copy(root / f, tmp_path / f)
    fake = tmp_path / 'fake/python3'
    fake.parent.mkdir()
    fake.write_text(
        '#!/bin/sh\necho "$@" >>"$CALLS"\n'
        'case "$*" in "-m venv "*) mkdir -p "$3/bin"; cp "$0" "$3/bin/python";; esac\n'
    )
    fake.chmod(0o755)
    return tmp_path


def test_make_sets_up_once(clone):
    env = dict(PYTHON=str(clone / 'fake/python3'), CALLS=str(clone / 'calls'))
    code, out = make(clone, 'setup', **env)
    assert code == 0 and 'setup: ready' in out
    calls = (clone / 'calls').read_text()
    assert (
        '-m venv .venv' in calls
        and 'torch==2.13.0 -e .[dev]' in calls
        and '-c constraints.txt' in calls
    )
    code, out = make(clone, 'setup', **env)
    assert code == 0 and len(out.splitlines()) == 1 and out.startswith('setup: ready')
    assert (clone / 'calls').read_text() == calls  # The second run had nothing to do
    stamp = (clone / '.venv/.dev.stamp').stat().st_mtime
    os.utime(clone / 'settings.ini', (stamp + 5, stamp + 5))
    make(clone, 'setup', **env)
    assert (clone / 'calls').read_text() != calls


def test_demo_needs_no_development_extra(clone):
    env = dict(PYTHON=str(clone / 'fake/python3'), CALLS=str(clone / 'calls'))
    make(clone, '.venv/.core.stamp', **env)
    assert '-e .' in (clone / 'calls').read_text() and '[dev]' not in (clone / 'calls').read_text()


def test_peers_get_an_environment_of_their_own(clone):
    env = dict(PYTHON=str(clone / 'fake/python3'), CALLS=str(clone / 'calls'))
    make(clone, '.venv-bench/.bench.stamp', **env)
    assert '-e .[bench]' in (clone / 'calls').read_text() and not (clone / '.venv').exists()


@pytest.mark.parametrize(
    'script, words',
    [
        (
            'case "$*" in *version_info*) exit 1;; -V) echo Python 3.8.1;; esac',
            ('mypt needs Python 3.10', '3.8.1', 'make PYTHON='),
        ),
        (
            'case "$*" in *ensurepip*) exit 1;; esac',
            ('without venv and pip', 'install python3-venv'),
        ),
    ],
)
def test_a_python_that_will_not_do(clone, script, words):
    (clone / 'fake/python3').write_text(f'#!/bin/sh\n{script}\n')
    code, out = make(clone, 'setup', PYTHON=str(clone / 'fake/python3'))
    assert code != 0 and all(w in out for w in words) and not (clone / '.venv').exists()


def test_make_help_names_every_target(root):
    code, out = make(root)
    targets = re.search(r'^\.PHONY: (.*)$', (root / 'Makefile').read_text(), re.M)[1].split()
    assert code == 0 and {'setup', 'demo', 'test', 'bench', 'docs', 'lab', 'clean'} <= set(targets)
    assert [line.split()[1] for line in out.splitlines()] == targets


def pins(path) -> dict[str, str]:
    "Package → version of a file of requirements."
    found = re.findall(r'^([\w.-]+)==([\w.]+)', path.read_text(), re.M)
    return {name.lower().replace('_', '-'): version for name, version in found}


def test_the_lock_is_in_step_with_the_constraints(root, settings):
    "Each package of the lock has a hash, and the version that constraints.txt names."
    lock, constraints = root / '.github/requirements.txt', pins(root / 'constraints.txt')
    locked = pins(lock)
    assert {k: locked[k] for k in locked.keys() & constraints.keys()} == {
        k: constraints[k] for k in locked.keys() & constraints.keys()
    }
    wanted = settings['requirements'] + ' ' + settings['dev_requirements']
    names = re.findall(r'(?:^|\s)([A-Za-z][\w.-]*)(?=[=<>~\s]|$)', wanted)
    assert {n.lower().replace('_', '-') for n in names} - locked.keys() == set()
    blocks = re.split(r'\n(?=\S)', lock.read_text().strip())
    assert all('--hash=sha256:' in block for block in blocks)


def test_every_pin_can_be_met(root):
    "By the first Python that its marker admits: pip searches without end where one cannot."
    unmet = []
    for line in (root / 'constraints.txt').read_text().splitlines():
        name, _, marker = line.partition('==')
        first = re.search(r'>= "([\d.]+)"', marker)
        if not first:
            continue
        try:
            needs = metadata(name)['Requires-Python'] or ''
        except PackageNotFoundError:  # in .venv-bench alone
            continue
        if not SpecifierSet(needs).contains(first[1]):
            unmet.append(f'{line}: needs Python {needs}')
    assert unmet == []


_FETCHES = re.compile(r'\b(?:curl|wget|npm pack)\b')


def test_what_a_workflow_fetches_is_compared_with_a_hash(root):
    "Quarto was fetched by an action that takes whatever the release holds."
    fetched = []
    for path in (root / '.github/workflows').glob('*.yml'):
        for job in yaml.safe_load(path.read_text())['jobs'].values():
            for step in job['steps']:
                assert 'quarto-actions' not in step.get('uses', '')
                if _FETCHES.search(step.get('run', '')):
                    fetched.append((step['env'], step['run']))
    assert len(fetched) == 2
    for env, script in fetched:
        kind, digest = next((k, env[k]) for k in env if k.startswith('SHA'))
        assert re.fullmatch(r'[0-9a-f]{64}|[0-9a-f]{128}', digest)
        check = f'{kind.lower()}sum --check'
        assert re.search(rf'{_FETCHES.pattern}.*\n.*\${kind}  .*{check}\n.*\btar xzf', script)


def test_workflows_run_what_was_read_and_may_write_nothing(root):
    "Actions by commit; a job that may write runs one action of the host and no command."
    for path in (root / '.github/workflows').glob('*.yml'):
        flow = yaml.safe_load(path.read_text())
        assert flow['permissions'] == {'contents': 'read'}, path.name
        for name, job in flow['jobs'].items():
            used = [step['uses'] for step in job['steps'] if 'uses' in step]
            assert all(re.fullmatch(r'[\w./-]+@[0-9a-f]{40}', u) for u in used), (path.name, name)
            if 'permissions' in job:
                assert all(u.startswith('actions/') for u in used), (path.name, name)
                assert not any('run' in step for step in job['steps']), (path.name, name)
