"""A processor for nbdev: no links inside code blocks of the site.

nbdev links every name in backticks of a `show_doc`, those in the comments of a signature too, and
inside a code block the reader would see the Markdown of the link. `procs` in settings.ini names it.
"""

import re

FENCED = re.compile(r'^(`{3,})[^\n]*\n.*?^\1', re.M | re.S)
LINK = re.compile(r'\[`([^`\n]+)`\]\([^)\s]+\)')


def unlinked(markdown: str) -> str:
    "Links inside fenced code become the names that they showed; all else stays."
    return FENCED.sub(lambda block: LINK.sub(r'`\1`', block[0]), markdown)


def plain_signatures(cell):
    "What `show_doc` made of one cell, without links in its code; nbdev calls it for each cell."
    for output in cell.get('outputs', []):
        data = output.get('data', {})
        if 'text/markdown' in data:
            text = data['text/markdown']
            data['text/markdown'] = unlinked(text if isinstance(text, str) else ''.join(text))
