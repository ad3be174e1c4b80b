"""Exported code stands on the site: `#| exports`, which nbdev shows, rather than `#| export`, of
which a page has the signature at most and no method.

Imports are left out. A cell that has a reason to stay away says so in a line of its own,
`# hidden: it is a table of 400 words`. `python -m tools.visible --write` turns the rest.
"""

import json
import re
import sys
from pathlib import Path

from tools.measure import all_imports
from tools.notebooks import ROOT, Cell, read_notebooks, report

EXPORT = re.compile(r'^(\s*#\s*\|\s*)export(?=\s*$)', re.M)
HIDDEN = re.compile(r'^# hidden: \S', re.M)


def invisible(cell: Cell) -> bool:
    "Is it exported code that the site leaves out without a reason?"
    if cell.kind != 'code' or not {'export', 'exporti'} & cell.directives.keys():
        return False
    return not all_imports(cell.code) and not HIDDEN.search(cell.source)


def check(root: Path = ROOT) -> list[str]:
    "Exported cells that no reader of the site sees."
    return [
        f'nbs/{nb.name} cell {c.number}: exported and not shown; `#| exports`, or `# hidden: why`'
        for nb in read_notebooks(root)
        for c in nb.codes
        if invisible(c)
    ]


def write(root: Path = ROOT):
    "Show them."
    for nb in read_notebooks(root):
        todo = {c.number for c in nb.codes if invisible(c)}
        if not todo:
            continue
        whole = json.loads(nb.path.read_text(encoding='utf-8'))
        for i in todo:
            text = EXPORT.sub(r'\1exports', nb.cells[i].source, count=1)
            whole['cells'][i]['source'] = text.splitlines(keepends=True)
        text = json.dumps(whole, indent=1, ensure_ascii=False, sort_keys=True) + '\n'
        nb.path.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    write() if '--write' in sys.argv else report('visible', check())
