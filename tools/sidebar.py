"The sidebar of the site: written into _quarto.yml from what lies in nbs/, and checked against it."

import re
import sys
from pathlib import Path

from tools.notebooks import ROOT, Notebook, read_notebooks, report

PARTS = {  # part of the book → number of its first chapter
    'Data': 0,
    'Model': 8,
    'Training': 14,
    'Evaluation': 17,
    'The curriculum': 19,
}
FIRST = 'tutorials/your_assistant.ipynb'  # what most people come for
ORDER = ('first_phase', 'your_data', 'base_to_agent', 'gpu')  # of the tutorials; others follow
GUIDES = {'tutorials': 'Tutorials', 'how_to': 'How to', 'explanations': 'Explanations'}
# in the order of the layers; notebooks that the book leans on and a first reader skips
PACKAGES = (
    *('base', 'commands', 'data', 'model', 'sources', 'inference', 'train', 'interop'),
    *('curate', 'agent', 'report', 'eval', 'serve', 'curriculum'),
)
BLOCK = re.compile(r'(?<=    contents:)[^\n]*\n(?:      .*\n)*')


def command_pages(root: Path = ROOT) -> list[str]:
    "The pages that tools.man writes."
    names = [
        p.relative_to(root / 'nbs').as_posix() for p in sorted((root / 'nbs/commands').glob('*.md'))
    ]
    return sorted(names, key=lambda name: name != 'commands/all.md')  # the list of all comes first


def part_of(number: int) -> str:
    "The part of the book that a chapter belongs to."
    return [part for part, first in PARTS.items() if first <= number][-1]


def place_of(name: str) -> int:
    "Where a tutorial stands among its kind."
    stem = Path(name).stem
    return ORDER.index(stem) if stem in ORDER else len(ORDER)


def section_of(nb: Notebook) -> str:
    "The section of the sidebar that lists a notebook."
    if nb.number is not None:
        return part_of(nb.number)
    folder = nb.name.split('/')[0]
    if folder in GUIDES:
        return GUIDES[folder]
    return f'Package {folder}' if folder in PACKAGES else 'Elsewhere'


def sections(notebooks: list[Notebook], commands=()) -> dict[str, list[str]]:
    "Section → names under nbs/; the section '' holds what stands alone."
    packages = [f'Package {p}' for p in PACKAGES]
    out = {'': ['index.ipynb', *(nb.name for nb in notebooks if nb.name == FIRST)]}
    out |= {s: [] for s in ('Tutorials', 'How to', *PARTS, 'Explanations')}
    out |= {'Command line': list(commands)} | {s: [] for s in (*packages, 'Elsewhere')}
    for nb in notebooks:
        if nb.name not in ('index.ipynb', FIRST):
            out[section_of(nb)].append(nb.name)
    out['Tutorials'].sort(key=place_of)
    return {section: names for section, names in out.items() if names}


def sidebar_yaml(notebooks: list[Notebook], commands=()) -> str:
    "The lines below `contents:`."
    lines = []
    for section, names in sections(notebooks, commands).items():
        if section:
            lines += [f'      - section: {section}', '        contents:']
        indent = ' ' * (10 if section else 6)
        lines += [f'{indent}- {name}' for name in names]
    return '\n' + ''.join(f'{line}\n' for line in lines)


def in_step(text: str, notebooks: list[Notebook], commands=()) -> str:
    "_quarto.yml with its sidebar replaced; raises `ValueError` where it has none."
    if not BLOCK.search(text):
        raise ValueError('_quarto.yml has no `    contents:` under its sidebar')
    return BLOCK.sub(lambda _: sidebar_yaml(notebooks, commands), text, count=1)


def check(root: Path = ROOT) -> list[str]:
    "The link nbs/_quarto.yml, and the sidebar."
    yml, link = root / '_quarto.yml', root / 'nbs/_quarto.yml'
    linked = link.is_symlink() and link.resolve() == yml.resolve()
    problems = [] if linked else ['nbs/_quarto.yml is not a link to ../_quarto.yml']
    text = yml.read_text(encoding='utf-8')
    if text != in_step(text, read_notebooks(root), command_pages(root)):
        problems.append('_quarto.yml: the sidebar and nbs/ are out of step; run `make export`')
    return problems


def write(root: Path = ROOT):
    "Bring the sidebar up to date."
    yml = root / '_quarto.yml'
    text = yml.read_text(encoding='utf-8')
    text = in_step(text, read_notebooks(root), command_pages(root))
    yml.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    write() if '--write' in sys.argv else report('sidebar', check())
