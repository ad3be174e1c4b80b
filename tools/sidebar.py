"The sidebar of the site, by floors: written into _quarto.yml from what lies in nbs/, and checked against it."

import re, sys
from pathlib import Path
from tools.notebooks import ROOT, Notebook, read_notebooks, report

FLOORS = {
    'The data path': (0, 9),
    'The model': (10, 19),
    'Training': (20, 25),
    'Making data': (26, 39),
    'Retrieval and tools': (40, 48),
    'Judging': (49, 58),
    'The phases': (59, 69),
    'Faces': (70, 99),
}
FOLDERS = {'tutorials': 'Tutorials', 'how_to': 'How to', 'explanations': 'Explanations'}
BLOCK = re.compile(r'(?<=    contents:)[^\n]*\n(?:      .*\n)*')


def command_pages(root: Path = ROOT) -> list[str]:
    "The pages that tools.man writes."
    return [
        p.relative_to(root / 'nbs').as_posix() for p in sorted((root / 'nbs/commands').glob('*.md'))
    ]


def sections(
    notebooks: list[Notebook], commands=()
) -> dict[str, list[str]]:  # Section → names under nbs/, '' for what stands alone
    "Who goes where; a notebook that fits nowhere goes under 'Elsewhere'."
    out = {
        '': ['index.ipynb'],
        **{f: [] for f in FLOORS},
        **{f: [] for f in FOLDERS.values()},
        'Command line': list(commands),
        'Elsewhere': [],
    }
    for nb in notebooks:
        if nb.name == 'index.ipynb':
            continue
        floor = next(
            (
                f
                for f, (lo, hi) in FLOORS.items()
                if nb.number is not None and lo <= nb.number <= hi
            ),
            None,
        )
        out[floor or FOLDERS.get(nb.name.split('/')[0], 'Elsewhere')].append(nb.name)
    return {k: v for k, v in out.items() if v}


def sidebar_yaml(notebooks: list[Notebook], commands=()) -> str:
    "The lines below `contents:`."
    lines = []
    for section, names in sections(notebooks, commands).items():
        if section:
            lines += [f'      - section: {section}', '        contents:']
        lines += [f'{" " * (10 if section else 6)}- {n}' for n in names]
    return '\n' + ''.join(f'{l}\n' for l in lines)


def in_step(
    text: str, notebooks: list[Notebook], commands=()
) -> str:  # _quarto.yml as it ought to be
    "`text` with its sidebar replaced; ValueError where it has none."
    if not BLOCK.search(text):
        raise ValueError('_quarto.yml has no `    contents:` under its sidebar')
    return BLOCK.sub(lambda _: sidebar_yaml(notebooks, commands), text, count=1)


def check(root: Path = ROOT) -> list[str]:
    yml, link = root / '_quarto.yml', root / 'nbs/_quarto.yml'
    linked = link.is_symlink() and link.resolve() == yml.resolve()
    out = [] if linked else ['nbs/_quarto.yml is not a link to ../_quarto.yml']
    text = yml.read_text(encoding='utf-8')
    if text != in_step(text, read_notebooks(root), command_pages(root)):
        out.append('_quarto.yml: the sidebar and nbs/ are out of step; run `make export`')
    return out


def write(root: Path = ROOT):
    yml = root / '_quarto.yml'
    text = in_step(yml.read_text(encoding='utf-8'), read_notebooks(root), command_pages(root))
    yml.write_text(text, encoding='utf-8')


if __name__ == '__main__':
    write() if '--write' in sys.argv else report('sidebar', check())
