"Numbers are heights: a notebook imports only from lower ones, and light modules load nothing heavy."

import ast, json, re, subprocess, sys
from configparser import ConfigParser
from pathlib import Path
from tools.notebooks import ROOT, Notebook, read_notebooks, report

TORCH_FROM = 7  # 07_batches is the first that may import torch


def imports(
    tree: ast.AST,
) -> list[tuple[str, str]]:  # (module, name) for each import; name '' for a plain `import module`
    "Every import in `tree`, at any depth."
    out = []
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            out += [(a.name, '') for a in n.names]
        if isinstance(n, ast.ImportFrom):
            out += [('.' * n.level + (n.module or ''), a.name) for a in n.names]
    return out


def _one(nb: Notebook, heights: dict[str, int], where: str, module: str, name: str) -> str | None:
    if module.startswith('.'):
        return f'{where} imports from {module!r}; write `from mypt.… import …`'
    if module == 'torch' or module.startswith('torch.'):
        return (
            f'{where} imports torch; only notebooks from {TORCH_FROM:02d} up may'
            if nb.number < TORCH_FROM
            else None
        )
    if module.split('.')[0] != 'mypt':
        return None
    target = f'{module}.{name}' if f'{module}.{name}' in heights else module
    if name == '*':
        return f'{where} imports * from {module}; name what it needs'
    if target == 'mypt':
        return None
    if target not in heights:
        return f'{where} imports {target}, which no notebook exports'
    if target != nb.module and heights[target] >= nb.number:
        return f'{where} imports {target} from height {heights[target]:02d}; it stands at {nb.number:02d}'


def check_heights(notebooks: list[Notebook]) -> list[str]:
    "Imports that go up or sideways, of every cell in the numbered notebooks."
    heights, problems = {}, []
    for nb in notebooks:
        if nb.number is None or nb.module is None:
            continue
        if nb.module in heights:
            problems.append(f'nbs/{nb.name} exports {nb.module}, as another notebook does')
        heights[nb.module] = nb.number
    seen = {}
    for nb in notebooks:
        if nb.number is None:
            continue
        if nb.number in seen:
            problems.append(f'nbs/{nb.name} has the number of nbs/{seen[nb.number]}')
        seen[nb.number] = nb.name
        for c in nb.codes:
            try:
                found = imports(c.tree)
            except SyntaxError:
                continue  # nbdev_test shows it better
            said = (_one(nb, heights, f'nbs/{nb.name} cell {c.number}', m, n) for m, n in found)
            problems += dict.fromkeys(filter(None, said))
    return problems


def required(
    root: Path = ROOT,
) -> tuple[set[str], set[str]]:  # Import names, as far as they follow from the package's
    "What every installation has, and what stands only in an extra."
    ini = ConfigParser(delimiters=['='])
    ini.read(root / 'settings.ini', encoding='utf-8')
    names = lambda reqs: {
        re.split(r'[<>=!~\[]', r)[0].lower().replace('-', '_') for r in reqs.split()
    }
    core = names(ini['DEFAULT']['requirements'])
    extra = set().union(
        *(names(v) for k, v in ini['DEFAULT'].items() if k.endswith('_requirements'))
    )
    return core, extra - core


def check_core(notebooks: list[Notebook], core: set[str]) -> list[str]:
    "Exported modules import core requirements at their top; what is optional they import where it is used."
    known, problems = core | set(sys.stdlib_module_names) | {'mypt'}, []
    for nb, c in ((nb, c) for nb in notebooks for c in nb.codes if c.exported):
        try:
            top = [n for n in c.tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
        except SyntaxError:
            continue
        strange = {m.split('.')[0] for m, _ in imports(ast.Module(top, [])) if m[0] != '.'} - known
        where = f'nbs/{nb.name} cell {c.number}'
        problems += [
            f'{where} exports an import of {m}, which is optional' for m in sorted(strange)
        ]
    return problems


def check_light(modules: list[str], banned: set[str], root: Path = ROOT) -> list[str]:
    "Import each module in a fresh interpreter and look at what came along."
    code = (
        'import importlib, json, sys\nout = {}\n'
        f'for m in {modules!r}:\n    importlib.import_module(m)\n'
        f'    out[m] = sorted({banned!r} & {{o.split(".")[0] for o in sys.modules}})\n    if out[m]: break\n'
        'print(json.dumps(out))'
    )
    p = subprocess.run([sys.executable, '-c', code], cwd=root, capture_output=True, text=True)
    if p.returncode:
        return [f'importing {", ".join(modules)} fails: {p.stderr.strip().splitlines()[-1]}']
    return [
        f'`import {m}` loads {", ".join(bad)}'
        for m, bad in json.loads(p.stdout.splitlines()[-1]).items()
        if bad
    ]


def check(root: Path = ROOT) -> list[str]:
    nbs = read_notebooks(root)
    light = [
        'mypt',
        *(
            nb.module
            for nb in nbs
            if nb.module and nb.number is not None and nb.number < TORCH_FROM
        ),
    ]
    core, extra = required(root)
    heavy = extra | {'torch', 'IPython', 'matplotlib'}
    return check_heights(nbs) + check_core(nbs, core) + check_light(light, heavy, root)


if __name__ == '__main__':
    report('import order', check())
