"What holds the packages together besides the contracts of import-linter."

import json
import subprocess
import sys
from pathlib import Path

import pytest

WATCH = """
import importlib, json, pkgutil, sys
import mypt

TABLES = (dict, list, set)

def tables(module):
    own = {n: v for n, v in vars(module).items() if isinstance(v, TABLES) and n[:2] != '__'}
    return {n: (id(v), sorted(map(repr, v))) for n, v in own.items()}

names = [m.name for m in pkgutil.walk_packages(mypt.__path__, 'mypt.') if m.name != 'mypt._modidx']
seen, changed = {}, []
for name in sys.argv[1:] or names:
    importlib.import_module(name)
    for other in [m for m in sys.modules if m.startswith('mypt.')]:
        now = tables(sys.modules[other])
        if seen.setdefault(other, now) != now:
            changed.append(f'importing {name} changes a table of {other}')
            seen[other] = now
print(json.dumps(dict(changed=changed, modules=len(seen))))
"""


def run(folder, code=WATCH, *args):
    command = [sys.executable, '-c', code, *args]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_a_module_changes_no_table_of_another(root):
    out = run(root)
    assert out['changed'] == [] and out['modules'] > 90


def test_a_table_that_an_import_changes_is_seen(tmp_path):
    package = tmp_path / 'mypt'
    package.mkdir()
    (package / '__init__.py').touch()
    (package / 'gates.py').write_text('GATES = {}\n')
    (package / 'gold.py').write_text('from mypt.gates import GATES\nGATES["gold"] = 1\n')
    code = f'import sys; sys.path.insert(0, {str(tmp_path)!r})\n{WATCH}'
    changed = run(tmp_path, code, 'mypt.gates', 'mypt.gold')['changed']
    assert changed == ['importing mypt.gold changes a table of mypt.gates']


def test_only_the_command_line_imports_by_a_string(root):
    guilty = [p for p in (root / 'mypt').rglob('*.py') if 'import_module' in p.read_text()]
    assert [p.name for p in guilty] == ['cli.py']


@pytest.mark.parametrize('module', ['mypt.cli', 'mypt.data.masks', 'mypt.curriculum.run'])
def test_a_module_loads_alone(root, module):
    "Each first in a fresh interpreter: no order of imports is needed."
    code = f'import json, {module}\nprint(json.dumps({{}}))'
    assert run(Path(root), code) == {}
