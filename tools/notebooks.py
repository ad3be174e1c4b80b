"Reading the notebooks: cells, their directives, what they export and how high they stand."

import ast
import json
import re
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Cell:
    "One cell of a notebook."

    kind: str  # 'code', 'markdown' or 'raw'
    source: str
    outputs: list
    raw: dict  # As it stands in the file
    number: int  # From 0

    @cached_property
    def directives(
        self,
    ) -> dict[str, str]:  # `#| eval: false` is {'eval': 'false'}, `#| export` is {'export': ''}
        found = (
            re.findall(r'^\s*#\s*\|\s*([\w-]+):?[ \t]*(.*?)\s*$', self.source, re.M)
            if self.kind == 'code'
            else []
        )
        return dict(found)

    @property
    def exported(self) -> bool:
        return bool({'export', 'exporti', 'exports'} & self.directives.keys())

    @cached_property
    def code(
        self,
    ) -> str:  # Python alone: magics and shell lines blanked, so that line numbers stay
        if self.kind != 'code' or self.source.lstrip().startswith('%%'):
            return ''
        return re.sub(r'^[ \t]*[%!](?!=)\S.*$', '', self.source, flags=re.M)

    @cached_property
    def tree(self) -> ast.Module:  # Raises SyntaxError
        return ast.parse(self.code)


@dataclass(frozen=True)
class Notebook:
    "One notebook, with its place under nbs/."

    path: Path
    name: str  # Relative to nbs/, with forward slashes
    cells: list[Cell]
    metadata: dict

    @cached_property
    def module(self) -> str | None:  # 'mypt.data.masks' of `#| default_exp data.masks`
        name = next(
            (c.directives['default_exp'] for c in self.cells if c.directives.get('default_exp')),
            None,
        )
        return name and f'mypt.{name}'

    @cached_property
    def number(self) -> int | None:  # The chapter; None for all else
        m = re.match(r'(\d+)_', self.name)
        return int(m[1]) if m else None

    @property
    def codes(self) -> list[Cell]:
        return [c for c in self.cells if c.kind == 'code']


def read_notebook(path: Path, nbs: Path) -> Notebook:
    "Read one notebook; `nbs` is the folder that names are relative to."
    nb = json.loads(path.read_text(encoding='utf-8'))
    cells = [
        Cell(c['cell_type'], ''.join(c['source']), c.get('outputs', []), c, i)
        for i, c in enumerate(nb['cells'])
    ]
    return Notebook(path, path.relative_to(nbs).as_posix(), cells, nb['metadata'])


def read_notebooks(root: Path = ROOT) -> list[Notebook]:
    "All that nbdev sees: everything under nbs/ but names that begin with a dot or an underscore."
    nbs = root / 'nbs'

    def hidden(p):
        return any(o[0] in '._' for o in p.relative_to(nbs).parts)

    paths = (p for p in sorted(nbs.rglob('*.ipynb')) if not hidden(p))
    return [read_notebook(p, nbs) for p in paths]


def python_files(root: Path = ROOT) -> list[Path]:
    "Python that people write outside notebooks."
    return [
        root / 'setup.py',
        *(p for d in ('tools', 'tests', 'bench') for p in sorted((root / d).rglob('*.py'))),
    ]


def report(name: str, problems: list[str]):
    "Print the problems of one check and leave with 0 or 1."
    print('\n'.join(problems) or f'{name}: nothing to say')
    sys.exit(bool(problems))
