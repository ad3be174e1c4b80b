"""What an import brings along: optional packages only where they are used, no torch in light
modules, no strings that import.

Layers and circles are import-linter's business (`lint-imports`, contracts in pyproject.toml).

"""

import ast
import json
import re
import subprocess
import sys
from configparser import ConfigParser
from pathlib import Path

from tools.notebooks import ROOT, Notebook, read_notebooks, report

AT_ONCE = ('documents', 'html_text', 'index_file', 'readers', 'retrieval', 'words')
LIGHT = (
    *('mypt', 'mypt.cli', 'mypt.errors', 'mypt.files', 'mypt.commands.', 'mypt.data.'),
    *(f'mypt.agent.{m}' for m in AT_ONCE),  # for `mypt search`
)
USES_TORCH = {'mypt.data.batches'}
IMPORT_NAMES = dict(pyyaml='yaml', python_docx='docx')  # where it is not the package's
STRINGS_IMPORT = {'mypt.cli'}  # the only module that may import by a string


def imports(tree: ast.AST) -> list[tuple[str, str]]:
    "(module, name) of each import in `tree`, at any depth; name '' for a plain `import module`."
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(a.name, '') for a in node.names]
        if isinstance(node, ast.ImportFrom):
            found += [('.' * node.level + (node.module or ''), a.name) for a in node.names]
    return found


def exported(notebooks: list[Notebook]) -> list[tuple[Notebook, str, ast.Module]]:
    "Notebook, place and tree of every exported cell that is Python."
    found = []
    for nb in notebooks:
        for c in nb.codes:
            if not c.exported:
                continue
            try:
                found.append((nb, f'nbs/{nb.name} cell {c.number}', c.tree))
            except SyntaxError:
                continue  # nbdev_test shows it better
    return found


def check_forms(notebooks: list[Notebook]) -> list[str]:
    "Imports of the package are absolute, named, and not made from strings."
    problems = []
    for nb, where, tree in exported(notebooks):
        for module, name in imports(tree):
            if module.startswith('.'):
                problems.append(f'{where} imports from {module!r}; write `from mypt.… import …`')
            elif name == '*':
                problems.append(f'{where} imports * from {module}; name what it needs')
            elif name == 'import_module' and nb.module not in STRINGS_IMPORT:
                problems.append(
                    f'{where} imports by a string, which hides a circle; import the name'
                )
    return problems


def required(root: Path = ROOT) -> tuple[set[str], set[str]]:
    "Import names of what every installation has, and of what only an extra brings."
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')

    def names(requirements: str) -> set[str]:
        packages = (re.split(r'[<>=!~\[]', r)[0] for r in requirements.split())
        plain = {p.lower().replace('-', '_') for p in packages}
        return {IMPORT_NAMES.get(p, p) for p in plain}

    settings = ini['DEFAULT']
    core = names(settings['requirements'])
    extras = (names(v) for k, v in settings.items() if k.endswith('_requirements'))
    return core, set().union(*extras) - core


def check_core(notebooks: list[Notebook], core: set[str]) -> list[str]:
    "Exported modules import core requirements at their top, optional ones where they are used."
    known, problems = core | set(sys.stdlib_module_names) | {'mypt'}, []
    for _, where, tree in exported(notebooks):
        top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        packages = {m.split('.')[0] for m, _ in imports(ast.Module(top, [])) if m[0] != '.'}
        for package in sorted(packages - known):
            problems.append(f'{where} exports an import of {package}, which is optional')
    return problems


def check_used(notebooks: list[Notebook], core: set[str]) -> list[str]:
    "Every core requirement is imported by an exported cell."
    used = {m.split('.')[0] for _, _, tree in exported(notebooks) for m, _ in imports(tree)}
    return [f'settings.ini requires {r}, and no module imports it' for r in sorted(core - used)]


def check_light(modules: list[str], banned: set[str], root: Path = ROOT) -> list[str]:
    "Import each module in a fresh interpreter and look at what came along."
    code = (
        'import importlib, json, sys\nout = {}\n'
        f'for m in {modules!r}:\n    importlib.import_module(m)\n'
        f'    out[m] = sorted({banned!r} & {{o.split(".")[0] for o in sys.modules}})\n'
        '    if out[m]: break\n'
        'print(json.dumps(out))'
    )
    done = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    if done.returncode:
        return [f'importing {", ".join(modules)} fails: {done.stderr.strip().splitlines()[-1]}']
    loaded = json.loads(done.stdout.splitlines()[-1])
    return [f'`import {m}` loads {", ".join(bad)}' for m, bad in loaded.items() if bad]


def is_light(module: str) -> bool:
    "Must this module load without torch and without anything optional?"
    inside = any(module == m or (m[-1] == '.' and module.startswith(m)) for m in LIGHT)
    return inside and module not in USES_TORCH


def check(root: Path = ROOT) -> list[str]:
    "All of the above."
    notebooks = read_notebooks(root)
    core, extra = required(root)
    modules = [nb.module for nb in notebooks if nb.module and is_light(nb.module)]
    heavy = extra | {'torch', 'IPython', 'matplotlib'}
    problems = check_forms(notebooks) + check_core(notebooks, core) + check_used(notebooks, core)
    return problems + check_light(['mypt', *modules], heavy, root)


if __name__ == '__main__':
    report('light imports', check())
