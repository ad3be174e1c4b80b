"""How a notebook looks: a title with a summary first, small exported cells, a file that loads
quickly.
"""

import re
from pathlib import Path

from tools.measure import all_imports, code_lines
from tools.notebooks import ROOT, Cell, Notebook, read_notebooks, report

CELL = 45  # lines of an exported cell
USUAL = 26  # lines that nine exported cells of ten stay under
NOTEBOOK = 150_000  # bytes


def check_opening(nb: Notebook) -> list[str]:
    "The first cell is `# Title` and `> one line`, alone: nbdev moves it into the page's head."
    first = nb.cells[0].source.strip() if nb.cells else ''
    if not re.match(r'# \S[^\n]*\n\s*\n?> \S', first):
        return [f'nbs/{nb.name}: the first cell is not `# Title` and `> one-line summary`']
    _, rest = re.split(r'^> .*$', first, maxsplit=1, flags=re.M)
    more = [line for line in rest.splitlines() if line.strip() and not re.match(r'- \S+:', line)]
    if not more:
        return []
    return [
        f'nbs/{nb.name}: the first cell goes on after the summary, which the site drops; split it'
    ]


def size(cell: Cell) -> int:
    "Lines of code of an exported cell; 0 for imports and for what is no Python."
    try:
        return 0 if not cell.exported or all_imports(cell.code) else len(code_lines(cell.code))
    except SyntaxError:
        return 0


def check_notebook(nb: Notebook) -> list[str]:
    "Opening, size of the file, size of each exported cell."
    problems = check_opening(nb)
    bytes_ = nb.path.stat().st_size
    if bytes_ >= NOTEBOOK:
        problems.append(f'nbs/{nb.name}: {bytes_:,} bytes, less than {NOTEBOOK:,} wanted')
    for c in nb.codes:
        if (n := size(c)) > CELL:
            problems.append(f'nbs/{nb.name} cell {c.number}: exports {n} lines, {CELL} at most')
    return problems


def check_usual(notebooks: list[Notebook]) -> list[str]:
    "Nine exported cells of ten are small."
    sizes = [n for nb in notebooks for c in nb.codes if (n := size(c))]
    large = sum(n >= USUAL for n in sizes)
    if large <= max(1, len(sizes) / 10):
        return []
    return [
        f'{large} of {len(sizes)} exported cells have {USUAL} lines or more, one in ten at most'
    ]


def check(root: Path = ROOT) -> list[str]:
    "All notebooks under nbs/."
    notebooks = read_notebooks(root)
    return [p for nb in notebooks for p in check_notebook(nb)] + check_usual(notebooks)


if __name__ == '__main__':
    report('cells', check())
