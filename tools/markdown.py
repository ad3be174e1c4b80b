"""A notebook as Markdown, cell by cell, obeying the directives that Quarto knows; for the README
and for pandoc.
"""

import base64
import html
import re
from typing import Callable
from tools.notebooks import Cell

HIDDEN = {'hide', 'export', 'exporti', 'default_exp'}  # nbdev leaves these cells out of the site


def fence(text: str, info: str = '') -> str:  # `info` as pandoc writes it: 'python' or '{=html}'
    "A code block whose fence is longer than any run of backticks inside."
    ticks = '`' * max(3, 1 + max((len(m) for m in re.findall(r'`+', text)), default=0))
    return f'{ticks}{" " * (info[:1] == "{")}{info}\n{text.rstrip()}\n{ticks}'


def text_of(value: str | list[str]) -> str:
    "A field of a notebook, which may be a list of lines."
    return value if isinstance(value, str) else ''.join(value)


def svg_tag(text: str) -> str:
    "The `<svg>` element alone, without XML declaration and doctype."
    return text[text.index('<svg') :]


def data_uri(kind: str, data: bytes) -> str:
    "Bytes as a data URI."
    return f'data:{kind};base64,{base64.b64encode(data).decode()}'


def image(source: str, alt: str) -> str:
    "A figure as HTML."
    return f'<img class="figure" alt="{html.escape(alt)}" src="{source}">'


def picture(svg: str, alt: str) -> str:  # An image of its own: its rules and ids stay inside it
    "An SVG output as an embedded image."
    return image(data_uri('image/svg+xml', svg_tag(svg).encode()), alt)


def output_markdown(
    output: dict,
    asis: bool,
    picture: Callable[[str, str], str] = picture,
    alt: str = '',  # What a figure shows, from `fig-alt` of its cell
) -> str:
    "One output; `picture` turns an SVG into HTML."
    if output['output_type'] == 'stream':
        text = text_of(output['text'])
        return (
            ''
            if output['name'] == 'stderr'
            else text
            if asis
            else fence(text, '{.output tabindex=0}')
        )
    data = {k: text_of(v) for k, v in output.get('data', {}).items() if isinstance(v, (str, list))}
    if 'text/markdown' in data:
        return data['text/markdown']
    if 'text/html' in data:
        return fence(data['text/html'], '{=html}')
    if 'image/svg+xml' in data:
        return fence(picture(data['image/svg+xml'], alt), '{=html}')
    if png := data.get('image/png'):
        return fence(image('data:image/png;base64,' + ''.join(png.split()), alt), '{=html}')
    if 'text/latex' in data:
        return data['text/latex']
    text = data.get('text/plain', '')
    return text if asis else fence(text, '{.output tabindex=0}') if text else ''


def folded(code: str, summary: str, opened: bool) -> str:
    "Source behind a triangle."
    return (
        '<details'
        f' class="code"{" open" * opened}><summary>{summary}</summary>\n\n{code}\n\n</details>'
    )


def code_markdown(cell: Cell, fold: bool = False, **kw) -> list[str]:  # Source and outputs
    "A code cell's parts, each a block."
    d = cell.directives
    if d.get('include') == 'false':
        return []
    source = '\n'.join(
        line for line in cell.source.splitlines() if not re.match(r'\s*#\s*\|', line)
    ).strip('\n')
    block = fence(source, 'python') if source and d.get('echo') != 'false' else ''
    how = d.get('code-fold', 'true' if fold else 'false')
    if block and how in ('true', 'show'):
        block = folded(block, d.get('code-summary', 'Code').strip('"\''), how == 'show')
    alt = d.get('fig-alt', '').strip('"\'')
    outs = [] if d.get('output') == 'false' else cell.outputs
    return [block, *(output_markdown(o, d.get('output') == 'asis', alt=alt, **kw) for o in outs)]


def to_markdown(cells: list[Cell], **kw) -> str:
    "All that a reader sees of `cells`."
    blocks = []
    for c in cells:
        if c.kind == 'markdown':
            blocks.append(c.source)
        elif c.kind == 'code' and not HIDDEN & c.directives.keys():
            blocks += code_markdown(c, **kw)
    return '\n\n'.join(b.strip('\n') for b in blocks if b.strip()) + '\n'
