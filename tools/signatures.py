"""A processor for nbdev: no Markdown of links where the site would show it as it is.

nbdev links every name in backticks: those in the comments of a signature, inside a code block, and
those that are the text of a link already. `procs` in settings.ini names this processor.
"""

import re

FENCED = re.compile(r'^(`{3,})[^\n]*\n.*?^\1', re.M | re.S)
LINK = re.compile(r'\[`([^`\n]+)`\]\([^)\s]+\)')
NESTED = re.compile(r'\[([^\[\]]*(?:\[`[^`\n]+`\]\([^)\s]+\)[^\[\]]*)+)\](?=\()')


def unlinked(markdown: str) -> str:
    "Links inside fenced code, and inside the text of a link, become the names that they showed."
    plain = FENCED.sub(lambda block: LINK.sub(r'`\1`', block[0]), markdown)
    return NESTED.sub(lambda text: '[' + LINK.sub(r'`\1`', text[1]) + ']', plain)


TERM = re.compile(r'^(?=\*\*\[([^\[\]]+)\]\([^)\s]+\)\*\*: )', re.M)


def with_anchors(markdown: str) -> str:
    "A term of the glossary, `**[Term](page)**: …` at the start of a line, gets an anchor."

    def anchor(term):
        name = re.sub(r'\W+', '-', term[1].lower()).strip('-')
        return f'<span id="term-{name}"></span>'

    return TERM.sub(anchor, markdown)


def plain_signatures(cell):
    "A cell's own text, and what `show_doc` made of it; nbdev calls it for each cell."
    if cell['cell_type'] == 'markdown':
        cell['source'] = with_anchors(unlinked(cell['source']))
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        if 'text/markdown' in data:
            text = data['text/markdown']
            data['text/markdown'] = unlinked(text if isinstance(text, str) else ''.join(text))
