"""Prose, comments and messages say things in plain words: none of the phrases below.

Most are German in English dress, riddles, or private jokes; each comes with what to write. Words in
test data do not count, and neither do the notebooks of `NOT_YET`, which are to be rewritten.
"""

import io
import re
import tokenize
from pathlib import Path
from tools.notebooks import ROOT, Cell, read_notebooks, report

PHRASES = {  # what is not written (a regular expression) → what to write
    r'whoever': 'the user, the caller, who …',
    r'some(body|one) else': 'another user, another process',
    r'nobody (hears|looks|wants|holds|knows|needs)': 'say what does not happen',
    r'keeps its dice|deal (them|the batches) out|like cards': 'how it is drawn or shared out',
    r'a hand on the brake|tired hand|deaf to|loud stranger|crowds? of': 'say what happens',
    r'stands? (in(?! for)|at|on|beside|above|below|behind|there|before|inside|beneath)': 'is',
    r'as it stands': 'as it is',
    r'goes its way|go(es)? with us|on its way out': 'say where it goes',
    r'truth values?': 'booleans',
    r'(?<!the )inside of': 'in, inside',
    r'anew': 'again',
    r'must do[:;.,]': 'is enough',
    r'is no (text|number|list|object|tag|tool|folder|episode|JSON|UTF-8|call)\b': 'is not a',
    r'are no (text|documents|numbers|lists|episodes|rows|files|settings)\b': 'are not',
    r'whatever': 'any, every, all, or say which',
    r"by (another|any) config's name": 'with another config',
    r'(is|are|was|were) told\b': 'gets, is reported',
    r'(tells?|told|telling) (\w+ )?apart': 'distinguish',
    r'(that|which|it|one) is (?-i:none)\b(?! of)': 'is not one',
    r'in silence|without a word(?! of)': 'silently',
    r'by heart': 'memorize',
    r'(came|comes?) of (it|each|every|the|an?)\b': 'the result',
    r'what (became|becomes?) of': 'the outcome, what happens to',
    r'(go|goes|went|gone|going) on (where|from|without|there)': 'continue',
    r'at hand\b': 'available',
    r'in the making': 'that is being written',
    r"of one's own": 'your own',
    r'strangers?\b': 'an untrusted source, an unknown person',
    r'(some|no)body (who|that|is|has|may|can|asked|writes|made|gave|wants)': 'a user, no user',
    r'stays? (what|as) (it|they) (is|are|was|were)': 'does not change',
    r'speaks? of': 'is about',
    r'(files?|folders?|pieces?|reports?|documents?|index|metadata,? which) lies?\b': 'is in',
    r'for (it|they|there|he|she|we) (is|are|has|have|was|were|must|may|can)\b': 'because',
}
DATA = (  # sentences that models are trained on, with words that prose does not use
    'Please ask somebody else',
    'Whoever visits the capital',
    'I do not know that by heart',
)
NOT_YET: tuple[str, ...] = ()  # chapters that are still to be rewritten
KINDS = ('COMMENT', 'STRING', 'FSTRING_MIDDLE')  # the last from Python 3.12 on
PLAIN = re.compile('|'.join(f'(?P<p{i}>\\b(?:{p}))' for i, p in enumerate(PHRASES)), re.I)


def texts(cell: Cell) -> list[str]:
    "Prose of a cell: Markdown outside code, or the comments and strings of exported code."
    if cell.kind == 'markdown':
        return [re.sub(r'^```.*?^```|`[^`\n]*`', '', cell.source, flags=re.M | re.S)]
    if not cell.exported:
        return []
    tokens = tokenize.generate_tokens(io.StringIO(cell.code).readline)
    return [t.string for t in tokens if tokenize.tok_name[t.type] in KINDS]


def unplain(text: str) -> list[tuple[str, str]]:  # (what is written, what to write)
    "Phrases of the list in a text, line breaks read as spaces."
    line, ways = ' '.join(text.split()), list(PHRASES.values())
    for data in DATA:
        line = line.replace(data, '')
    return [(m[0], ways[int(m.lastgroup[1:])]) for m in PLAIN.finditer(line) if m.lastgroup]


def check(root: Path = ROOT, not_yet: tuple[str, ...] = NOT_YET) -> list[str]:
    "Phrases that are not plain, with their place."
    return [
        f'nbs/{nb.name} cell {c.number}: "{said}"; write: {way}'
        for nb in read_notebooks(root)
        if not nb.name.startswith(not_yet)
        for c in nb.cells
        for text in texts(c)
        for said, way in unplain(text)
    ]


if __name__ == '__main__':
    report('plain words', check())
