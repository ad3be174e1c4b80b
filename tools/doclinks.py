"""A name in backticks becomes a link to its documentation; it must be the name that the reader is
told about.

Fails on a name that two modules define, and on a link to something that its notebook neither
defines nor imports.
"""

import ast
import re
from pathlib import Path

from tools.measure import namesakes
from tools.notebooks import ROOT, Notebook, read_notebooks, report

BACKTICKS = re.compile(r'`([^`\s]+?)(?:\(\))?`')  # as nbdev finds them


def symbols(root: Path = ROOT) -> dict[str, str]:
    "Name → module, of all that the package documents; methods as `Class.method`."
    text = (root / 'mypt/_modidx.py').read_text(encoding='utf-8')
    index = ast.literal_eval(text[text.index('{') :])
    found = {}
    for module, names in index['syms'].items():
        for name in names:
            found[name.removeprefix(module + '.')] = module
    return found


def in_prose(nb: Notebook) -> list[tuple[int, str]]:
    "(cell number, name) of everything in backticks outside code blocks."
    found = []
    for c in nb.cells:
        if c.kind != 'markdown':
            continue
        text = re.sub(r'^```.*?^```', '', c.source, flags=re.M | re.S)
        lines = (line for line in text.splitlines() if not line.startswith('    '))
        found += [(c.number, name) for line in lines for name in BACKTICKS.findall(line)]
    return found


def imported(nb: Notebook) -> set[tuple[str, str]]:
    "(module, name) of everything that a cell of the notebook imports."
    found = set()
    for c in nb.codes:
        try:
            nodes = list(ast.walk(c.tree))
        except SyntaxError:
            continue
        for node in nodes:
            if isinstance(node, ast.ImportFrom):
                found |= {(node.module or '', a.name) for a in node.names}
    return found


def check_notebook(nb: Notebook, known: dict[str, str], shared: dict[str, list[str]]) -> list[str]:
    "Links of one notebook that lead to another module's namesake, or to what it does not use."
    problems, names = [], imported(nb)
    for number, text in in_prose(nb):
        module = known.get(text)
        if module is None or module == nb.module:
            continue
        name = text.split('.')[0]
        where = f'nbs/{nb.name} cell {number}: `{text}`'
        if name in shared:
            problems.append(f'{where} is defined in {" and ".join(shared[name])}')
        elif (module, name) not in names:
            problems.append(
                f'{where} links to {module}, which the notebook does not import it from; '
                'import it, link to the notebook, or use no backticks'
            )
    return problems


def check(root: Path = ROOT) -> list[str]:
    "Public names that two modules define, and links that mislead."
    known, shared = symbols(root), namesakes(root)
    public = [n for n in shared if not n.startswith('_')]
    problems = [f'`{n}` is defined in {" and ".join(shared[n])}; rename one' for n in public]
    return problems + [p for nb in read_notebooks(root) for p in check_notebook(nb, known, shared)]


if __name__ == '__main__':
    report('doc links', check())
