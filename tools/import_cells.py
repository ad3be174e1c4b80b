"An import never shares a cell with other code, for building the site runs every cell that has one."

import ast
from pathlib import Path
from tools.notebooks import ROOT, Cell, read_notebooks, report

IMPORT = (ast.Import, ast.ImportFrom)


def mixed(cell: Cell) -> bool:
    """Does `cell` mix? An exported cell may import inside its functions (an optional package, say),
    no other cell may.
    """
    if cell.kind != 'code' or cell.directives.get('eval') == 'false':
        return False
    try:
        body = cell.tree.body
    except SyntaxError:
        return False
    found = any(isinstance(n, IMPORT) for n in (body if cell.exported else ast.walk(cell.tree)))
    return found and not all(isinstance(n, IMPORT) for n in body)


def check(root: Path = ROOT) -> list[str]:
    "Cells that mix."
    return [
        f'nbs/{nb.name} cell {c.number} mixes an import with other code; give the import a cell of'
        ' its own'
        for nb in read_notebooks(root)
        for c in nb.codes
        if mixed(c)
    ]


if __name__ == '__main__':
    report('import cells', check())
