"Small rooms: limits on modules, functions, lines and notebooks, and a title with a summary at every door."

import ast, re
from pathlib import Path
from tools.notebooks import ROOT, Notebook, python_files, read_notebooks, report

MODULE, FUNCTION, LINE, NOTEBOOK = (400, 45, 140, 150_000)  # Lines, lines, characters, bytes
MOST_LINES = 120  # Characters that nine lines of ten in a module keep to


def long_functions(tree: ast.AST, where: str) -> list[str]:
    "Functions of more than `FUNCTION` lines, decorators not counted."
    defs = (n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef)))
    sizes = ((n, n.end_lineno - n.lineno + 1) for n in defs)
    return [
        f'{where}: {n.name} has {size} lines, {FUNCTION} at most'
        for n, size in sizes
        if size > FUNCTION
    ]


def long_lines(source: str, where: str) -> list[str]:
    "Lines of more than `LINE` characters."
    lines = enumerate(source.splitlines(), 1)
    return [
        f'{where} line {i}: {len(l)} characters, {LINE} at most' for i, l in lines if len(l) > LINE
    ]


def check_code(source: str, where: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except SyntaxError as e:
        return [f'{where}: {e}']
    return long_functions(tree, where) + long_lines(source, where)


def wide_module(lines: list[str], where: str) -> list[str]:
    "A module in which more than one line of ten is wider than `MOST_LINES`."
    wide = sum(len(l) > MOST_LINES for l in lines)
    if wide <= max(1, len(lines) / 10):
        return []
    return [
        f'{where}: {wide} of {len(lines)} exported lines are wider than {MOST_LINES} characters, one in ten at most'
    ]


def check_opening(nb: Notebook) -> list[str]:
    "The first cell is `# Title` and `> one line`, alone: nbdev moves the whole cell into the page's head."
    first = nb.cells[0].source.strip() if nb.cells else ''
    if not re.match(r'# \S[^\n]*\n\s*\n?> \S', first):
        return [f'nbs/{nb.name}: the first cell is not `# Title` and `> one-line summary`']
    _, rest = re.split(r'^> .*$', first, maxsplit=1, flags=re.M)
    more = [
        l for l in rest.splitlines() if l.strip() and not re.match(r'- \S+:', l)
    ]  # But for `- key: value`
    said = f'nbs/{nb.name}: the first cell goes on after the summary, and the site drops that; split it there'
    return [said] if more else []


def check_notebook(nb: Notebook) -> list[str]:
    out = check_opening(nb)
    size = nb.path.stat().st_size
    if size >= NOTEBOOK:
        out.append(f'nbs/{nb.name}: {size:,} bytes, less than {NOTEBOOK:,} wanted')
    exported = sum(len(c.source.splitlines()) - len(c.directives) for c in nb.codes if c.exported)
    lines = [l for c in nb.codes if c.exported for l in c.source.splitlines() if l.strip()]
    out += wide_module(lines, f'nbs/{nb.name}')
    if exported > MODULE:
        out.append(f'nbs/{nb.name}: exports {exported} lines, {MODULE} at most')
    for c in nb.codes:
        out += check_code(c.code, f'nbs/{nb.name} cell {c.number}')
    return out


def check(root: Path = ROOT) -> list[str]:
    out = [p for nb in read_notebooks(root) for p in check_notebook(nb)]
    for f in python_files(root):
        out += check_code(f.read_text(encoding='utf-8'), f.relative_to(root).as_posix())
    return out


if __name__ == '__main__':
    report('room sizes', check())
