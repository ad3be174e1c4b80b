"Every public name that a notebook exports says what it is in one line; its page shows it."

import ast
from pathlib import Path
from tools.notebooks import ROOT, Cell, read_notebooks, report

DEFS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def undocumented(cell: Cell) -> list[str]:  # Names
    "Public functions and classes of an exported cell without a docstring."
    if not cell.exported:
        return []
    try:
        body = cell.tree.body
    except SyntaxError:
        return []
    return [
        n.name
        for n in body
        if isinstance(n, DEFS) and n.name[0] != '_' and not ast.get_docstring(n)
    ]


def check(root: Path = ROOT) -> list[str]:
    return [
        f'nbs/{nb.name} cell {c.number}: {name} has no docstring'
        for nb in read_notebooks(root)
        for c in nb.codes
        for name in undocumented(c)
    ]


if __name__ == '__main__':
    report('docstrings', check())
