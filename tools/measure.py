"""How the code is laid out, in numbers: `python -m tools.measure [ROOT]`.

Counts exported code and prose before the first phase; a change of layout shows the table before
and after.
"""

import ast
import io
import re
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

from tools.notebooks import ROOT, Notebook, read_notebooks

SILENT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.COMMENT,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
BRANCHES = (ast.If, ast.IfExp, ast.For, ast.While, ast.ExceptHandler, ast.comprehension)


def code_lines(source: str) -> list[str]:
    "Lines with code on them: no blank lines, comments or directives."
    return [line for line in source.splitlines() if re.match(r'\s*[^#\s]', line)]


def lexical_tokens(source: str) -> int:
    "Tokens of Python, without comments, newlines and indentation."
    stream = tokenize.generate_tokens(io.StringIO(source).readline)
    return sum(t.type not in SILENT for t in stream)


def complexity(function: ast.AST) -> int:
    "One more than the branches of a function, boolean operators included."
    count = 1
    for node in ast.walk(function):
        if isinstance(node, BRANCHES):
            count += 1
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
    return count


def module_names(root: Path) -> dict[str, set[str]]:
    "Public and private top-level names of every module."
    names = defaultdict(set)
    for path in sorted((root / 'mypt').rglob('*.py')):
        if path.name in ('__init__.py', '_modidx.py'):
            continue
        for node in ast.parse(path.read_text(encoding='utf-8')).body:
            names[module_of(path, root)] |= bound(node)
    return names


def bound(node: ast.stmt) -> set[str]:
    "Names that a top-level statement defines; imports and dunders do not count."
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, 'target', None)]
    found = (n for t in targets if t for n in ast.walk(t) if isinstance(n, ast.Name))
    return {n.id for n in found if isinstance(n.ctx, ast.Store) and not n.id.startswith('__')}


def module_of(path: Path, root: Path) -> str:
    "The dotted name of a file."
    return '.'.join(path.relative_to(root).with_suffix('').parts)


def namesakes(root: Path) -> dict[str, list[str]]:
    "Names that two modules define, with those modules."
    bearers = defaultdict(list)
    for module, names in module_names(root).items():
        for name in names:
            bearers[name].append(module)
    return {name: mods for name, mods in sorted(bearers.items()) if len(mods) > 1}


def imports(path: Path, root: Path) -> set[str]:
    "Modules of the package that a file names in its import statements."
    here, out = module_of(path, root).split('.'), set()
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[: -node.level]
            out.add('.'.join([*base, *(node.module or '').split('.')]).rstrip('.'))
    return out


def circles(root: Path) -> int:
    "Modules that reach themselves by their imports."
    paths = [p for p in (root / 'mypt').rglob('*.py') if p.name != '_modidx.py']
    graph = {module_of(p, root): imports(p, root) for p in paths}

    def reached(start: str) -> set[str]:
        todo, seen = list(graph[start]), set()
        while todo:
            module = todo.pop()
            if module not in seen:
                seen.add(module)
                todo += graph.get(module, ())
        return seen

    return sum(module in reached(module) for module in graph)


def before_phase_1(notebooks: list[Notebook]) -> list[Notebook]:
    "Numbered notebooks that stand before the one of phase 1."
    numbered = [nb for nb in notebooks if nb.number is not None]
    return [nb for nb in numbered if nb.number < phase_1(numbered)]


def phase_1(numbered: list[Notebook]) -> int:
    "The number of the notebook of phase 1."
    return next(nb.number for nb in numbered if 'format_lock' in nb.name)


def prose(nb: Notebook) -> int:
    "Words of Markdown."
    return sum(len(c.source.split()) for c in nb.cells if c.kind == 'markdown')


def percentiles(values, *qs: int) -> str:
    "Some percentiles, as a cell of the table."
    cut = np.percentile(values, qs) if len(values) else [0] * len(qs)
    return ' / '.join(f'{v:.0f}' for v in cut)


def measure(root: Path) -> dict[str, str]:
    "The table, name by name."
    notebooks = [nb for nb in read_notebooks(root) if nb.module]
    cells = [c.code for nb in notebooks for c in nb.codes if c.exported]
    defs = [c for c in cells if not all_imports(c)]
    lines = [line for cell in cells for line in code_lines(cell)]
    functions = [
        node
        for cell in cells
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    lengths = [len(code_lines(cell)) for cell in defs]
    folders = Counter(p.parent.name for p in (root / 'mypt').rglob('*.py') if p.stem[0] != '_')
    shared = namesakes(root)
    early = before_phase_1(notebooks)
    tokens = sum(map(lexical_tokens, cells))
    return {
        'modules per folder, most': f'{max(folders.values())} in {folders.most_common(1)[0][0]}/',
        'folders, modules': f'{len(folders)}, {sum(folders.values())}',
        'modules in circles': str(circles(root)),
        'tokens a line': f'{tokens / len(lines):.1f}',
        'line width p50 / p90 / p99': percentiles([len(line) for line in lines], 50, 90, 99),
        'lines over 100': str(sum(len(line) > 100 for line in lines)),
        'exported cell p50 / p90 / max': percentiles(lengths, 50, 90, 100),
        'exported cells over 45': str(sum(n > 45 for n in lengths)),
        'functions with more than 15 branches': str(sum(complexity(f) > 16 for f in functions)),
        'public names in two modules': str(sum(name[0] != '_' for name in shared)),
        'names in two modules': str(len(shared)),
        'code lines exported': f'{len(lines):,}',
        'before phase 1: notebooks': str(len(early)),
        'before phase 1: words': f'{sum(map(prose, early)):,}',
        'before phase 1: exported lines': f'{sum(exported_lines(nb) for nb in early):,}',
    }


def all_imports(code: str) -> bool:
    "Is there nothing but imports in a cell?"
    return all(isinstance(n, (ast.Import, ast.ImportFrom)) for n in ast.parse(code).body)


def exported_lines(nb: Notebook) -> int:
    "Code lines that a notebook exports."
    return sum(len(code_lines(c.code)) for c in nb.codes if c.exported)


if __name__ == '__main__':
    root = Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT
    for name, value in measure(root).items():
        print(f'{name:<38} {value}')
