"""The book reads from the first chapter to the last: a chapter that leans on an unread module links
to its notebook.

A module is read when an earlier chapter exports it, or when this chapter or an earlier one links
to its notebook.
"""

import posixpath
import re
from pathlib import Path

from tools.light_imports import imports
from tools.notebooks import ROOT, Notebook, read_notebooks, report


def links(nb: Notebook) -> set[str]:
    "Notebooks that the prose of `nb` links to, by their names under nbs/."
    here = posixpath.dirname(nb.name)
    targets = re.findall(r'\]\(([^)#\s]+\.ipynb)', '\n'.join(prose(nb)))
    return {posixpath.normpath(posixpath.join(here, t)) for t in targets}


def prose(nb: Notebook) -> list[str]:
    "The Markdown cells."
    return [c.source for c in nb.cells if c.kind == 'markdown']


def leans_on(nb: Notebook) -> set[str]:
    "Modules of the package that the exported cells import."
    found = set()
    for c in nb.codes:
        if c.exported:
            found |= {module for module, _ in imports(c.tree) if module.startswith('mypt.')}
    return found


def chapters(notebooks: list[Notebook]) -> list[Notebook]:
    "The numbered notebooks, in reading order."
    return sorted((nb for nb in notebooks if nb.number is not None), key=lambda nb: nb.number or 0)


def check(root: Path = ROOT) -> list[str]:
    "Chapters whose exported code imports what a reader has not met."
    notebooks = read_notebooks(root)
    home = {nb.module: nb.name for nb in notebooks if nb.module}
    problems, met, numbers = [], set(), {}
    for nb in chapters(notebooks):
        if nb.number in numbers:
            problems.append(f'nbs/{nb.name} has the number of nbs/{numbers[nb.number]}')
        numbers[nb.number] = nb.name
        met |= links(nb)
        for module in sorted(leans_on(nb)):
            if module not in home:
                problems.append(f'nbs/{nb.name} imports {module}, which no notebook exports')
            elif home[module] not in met:
                problems.append(
                    f'nbs/{nb.name} leans on {module}; link to {home[module]} in its text'
                )
        met.add(nb.name)
    return problems


if __name__ == '__main__':
    report('reading order', check())
