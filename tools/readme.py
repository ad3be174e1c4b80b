"README.md is nbs/index.ipynb as GitHub shows Markdown; its pictures lie in index_files/."

import html
import re
import shutil
import sys
from pathlib import Path
from tools.markdown import svg_tag, to_markdown
from tools.notebooks import ROOT, read_notebook, report

FILES = 'index_files'
WIDTH = 85  # of a line of code, which a page then shows whole
NOTICE = '<!-- Made from nbs/index.ipynb by `make export`; edit that. -->\n\n'


def relink(md: str) -> str:
    """Links and pictures of nbs/index.ipynb as seen from the folder above; addresses, anchors and
    code stay.
    """
    part = r'(\]\(|(?:src|href|srcset)=")(?![a-z]+:|#|/|index_files/)([^)"]+)'

    def point(m):
        return m[1] + (m[2][3:] if m[2].startswith('../') else f'nbs/{m[2]}')

    blocks = re.split(r'(^```.*?^```$)', md, flags=re.M | re.S)
    return ''.join(b if b.startswith('```') else re.sub(part, point, b) for b in blocks)


def render(
    root: Path = ROOT,
) -> dict[str, str]:  # Path from the root → text, README.md and its pictures
    "Everything that the index makes."
    out = {}

    def figure(svg: str, alt: str) -> str:
        name = f'{FILES}/figure-{len(out) + 1}.svg'
        out[name] = svg_tag(svg).rstrip() + '\n'
        return f'<img src="{name}" alt="{html.escape(alt)}">'

    md = to_markdown(read_notebook(root / 'nbs/index.ipynb', root / 'nbs').cells, picture=figure)
    md = re.sub(
        r'^``` \{=html\}\n(.*?)\n```$', r'\1', md, flags=re.M | re.S
    )  # GitHub takes HTML as it is
    md = re.sub(r'^``` \{\.output[^}]*\}$', '```', md, flags=re.M)
    md = re.sub(r'<iframe.*?</iframe>\n*', '', md, flags=re.S)  # GitHub shows none; the site does
    return {'README.md': NOTICE + relink(md), **out}


def long(md: str) -> list[str]:
    "Lines of code, not of output, that scroll sideways on a page."
    blocks = re.findall(r'^```\w+\n(.*?)^```', md, re.M | re.S)
    return [line for b in blocks for line in b.splitlines() if len(line) > WIDTH]


def check(root: Path = ROOT) -> list[str]:
    "What differs from what the index makes."
    want = render(root)
    out = [
        f'{n} is out of step with nbs/index.ipynb; run `make export`'
        for n, text in want.items()
        if not (f := root / n).is_file() or f.read_text(encoding='utf-8') != text
    ]
    out += [
        f'nbs/index.ipynb: a line of {len(line)} in code, {WIDTH} at most: {line}'
        for line in long(want['README.md'])
    ]
    left = [
        f'{FILES}/{f.name}'
        for f in sorted((root / FILES).glob('*'))
        if f'{FILES}/{f.name}' not in want
    ]
    return out + [
        f'{n} is a picture of nothing in nbs/index.ipynb; run `make export`' for n in left
    ]


def write(root: Path = ROOT):
    "Write README.md and its pictures."
    shutil.rmtree(root / FILES, ignore_errors=True)
    for name, text in render(root).items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    write() if '--write' in sys.argv else report('README', check())
