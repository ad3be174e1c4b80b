"""What a chapter gives its reader.

    python -m tools.book [ROOT]              in numbers
    python -m tools.book --chapters [ROOT]   in words: its naive version, its picture, its oracle

In numbers: one line for every notebook that exports code, then the sum of the numbered chapters and
of all. `lesson` is lines of code that show what the exported code does, per line of exported code;
`text` is lines of Markdown per line of exported code. Fastcore's notebooks, counted in the same
way, have .83 and .33, nbdev's .40 and .20, claudette's 1.51 and .72. A page counts as having a
naive version, an oracle or exercises where a heading or a sentence says so; the words are listed
below, so that a false count can be found.

In words: the failure is what an output in the section of the naive version shows, with the sentence
behind it; the picture is the first one; the oracle is the sentence that names it.
"""

import re
import sys
import textwrap
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tools.cells import size
from tools.measure import all_imports, code_lines, percentiles, prose
from tools.notebooks import ROOT, Cell, Notebook, read_notebooks

IMAGE = re.compile(r'!\[|<img |```\{?mermaid|<svg ')
NAIVE = re.compile(r'\bnaive|\bobvious way|\bsimplest way|\bfirst try|\bthe slow way', re.I)
ORACLE = re.compile(
    r'\boracles?\b|\btransformers\b|\btorch\.|\btorch has\b|F\.\w+|scipy|sklearn|tiktoken|brute'
    r'|\bsqlite3\b|jsonschema|\bjinja2?\b|independent'
)
EXERCISES = re.compile(r'^#+ Exercises', re.M)
HEADING = re.compile(r'^(#+) (.*)$', re.M)
NUMBER = re.compile(
    r'\d|\b(one (of|in)|two|three|four|five|six|seven|eight|nine|ten|all|none|not one|half)\b', re.I
)
WIDE = 160  # characters of an entry


@dataclass(frozen=True)
class Page:
    "What is counted on one notebook."

    name: str
    sizes: list[int]  # Lines of each exported cell
    lessons: int  # Lines of code that is not exported
    lines: int  # Of Markdown that say something
    words: int
    pictures: int
    naive: bool
    oracle: bool
    exercises: bool


def lesson_lines(cell: Cell) -> int:
    "Lines of code that a reader sees run: what is exported, imported or hidden is none."
    if cell.exported or 'hide' in cell.directives:
        return 0
    try:
        return 0 if all_imports(cell.code) else len(code_lines(cell.code))
    except SyntaxError:  # A cell that shows a magic
        return 0


def text_lines(nb: Notebook) -> int:
    "Lines of Markdown, at a hundred characters each however they are wrapped."
    texts = (c.source for c in nb.cells if c.kind == 'markdown')
    paragraphs = (line for text in texts for line in re.split(r'\n\s*\n', text))
    return sum(-(-len(' '.join(p.split())) // 100) for p in paragraphs if p.strip())


def pictures(cell: Cell) -> int:
    "Images in the text of a cell, or in what it shows; a table is no picture."
    if cell.kind == 'markdown':
        return len(IMAGE.findall(cell.source))
    data = [o.get('data', {}) for o in cell.outputs]
    found = sum(key.startswith('image/') for d in data for key in d)
    pages = (''.join(d.get('text/html', '')) for d in data)
    return found + sum(
        '<svg' in page or 'class="inspector' in page or 'class="mt"' in page for page in pages
    )


def lesson_text(nb: Notebook) -> str:
    "All that is not exported: Markdown and the code of lessons."
    return '\n'.join(c.source for c in nb.cells if not c.exported)


def page(nb: Notebook) -> Page:
    "Count one notebook."
    text = lesson_text(nb)
    return Page(
        name=nb.name.removesuffix('.ipynb'),
        sizes=[n for c in nb.codes if (n := size(c))],
        lessons=sum(map(lesson_lines, nb.codes)),
        lines=text_lines(nb),
        words=prose(nb),
        pictures=sum(map(pictures, nb.cells)),
        naive=bool(NAIVE.search(text)),
        oracle=bool(ORACLE.search(text)),
        exercises=bool(EXERCISES.search(text)),
    )


def row(name: str, pages: list[Page]) -> str:
    "One line of the table; for several pages a count of those that have a thing."

    def mark(field: str) -> str:
        n = sum(bool(getattr(p, field)) for p in pages)
        return ('yes' if n else '-') if len(pages) == 1 else str(n)

    sizes = [n for p in pages for n in p.sizes]
    lesson = sum(p.lessons for p in pages) / max(1, sum(sizes))
    text = sum(p.lines for p in pages) / max(1, sum(sizes))
    shown = str(pages[0].pictures) if len(pages) == 1 else mark('pictures')
    marks = ' '.join(f'{mark(f):>6}' for f in ('naive', 'oracle', 'exercises'))
    words = sum(p.words for p in pages)
    cut = percentiles(sizes, 50, 90, 100)
    return f'{name:<34} {cut:>14} {lesson:>7.2f} {text:>5.2f} {words:>8,} {shown:>8} {marks}'


def table(notebooks: list[Notebook]) -> list[str]:
    "Every page, then the chapters, the rest and all."
    pages = [page(nb) for nb in notebooks if nb.module]
    numbered = {nb.name.removesuffix('.ipynb') for nb in notebooks if nb.number is not None}
    chapters = [p for p in pages if p.name in numbered]
    rest = [p for p in pages if p.name not in numbered]
    head = f'{"notebook":<34} {"p50 / p90 / max":>14} {"lesson":>6} {"text":>5} {"words":>8}'
    lines = [f'{head} {"pictures":>8} {"naive":>6} {"oracle":>6} {"exerc.":>6}']
    lines += [row(p.name, [p]) for p in pages]
    for name, group in (('chapters', chapters), ('other pages', rest), ('all', pages)):
        lines.append(row(f'{len(group)} {name}', group))
    return lines


@dataclass(frozen=True)
class Chapter:
    "What a chapter teaches against: each entry is a line, '' where none was found."

    name: str
    naive: str  # what the naive version gets wrong, and the number that shows it
    picture: str
    oracle: str

    @property
    def missing(self) -> list[str]:
        return [k for k in ('naive', 'picture', 'oracle') if not getattr(self, k)]

    def __str__(self):
        said = [(k, getattr(self, k) or '-') for k in ('naive', 'picture', 'oracle')]
        return '\n'.join([self.name, *(f'  {k:<9}{text}' for k, text in said)])


def sentences(text: str) -> list[str]:
    "The sentences of a Markdown cell without its headings, images and links."
    text = re.sub(r'!\[[^\]]*\]\([^)]*\)', '', HEADING.sub('', text))
    text = re.sub(r'\[([^\]]*)\]\([^)]*\)', r'\1', text)
    found = re.split(r'(?<=[.!?:])\s+(?=[A-Z`*"<])', ' '.join(text.split()))
    return [s for s in found if s]


def shown(cell: Cell) -> str:
    "The text of what a cell shows; '' where it is a picture or nothing."
    texts = (o.get('text') or o.get('data', {}).get('text/plain') or '' for o in cell.outputs)
    found = (' '.join(''.join(t).split()) for t in texts)
    return next((t for t in found if t and not t.startswith('<')), '')


def naive_cells(nb: Notebook) -> list[Cell]:
    "The section of the naive version, up to the next heading of its level."
    found: list[Cell] = []
    level = 0
    for c in nb.cells:
        heads = HEADING.findall(c.source) if c.kind == 'markdown' else []
        if level and any(len(marks) <= level for marks, _ in heads):
            break
        if not level:
            level = next((len(marks) for marks, title in heads if NAIVE.search(title)), 0)
        if level:
            found.append(c)
    return found


def failure(nb: Notebook) -> str:
    """The first output of the naive section that is followed by a sentence with a number, and that
    sentence; else the first output with a number, and the sentence behind or before it.
    """
    said, best = '', (-1, '')
    for c, after in pairwise([*naive_cells(nb), None]):
        if c.kind == 'markdown':
            said = (sentences(c.source) or [said])[-1]
        elif c.outputs:
            follows = after is not None and after.kind == 'markdown' and sentences(after.source)
            sentence, output = follows[0] if follows else said, shown(c)
            score = 2 if NUMBER.search(sentence) else int(bool(re.search(r'\d', output)))
            number = f' [{textwrap.shorten(output, 60, placeholder=" …")}]' if output else ''
            if score > best[0]:
                best = score, textwrap.shorten(sentence, WIDE, placeholder=' …') + number
    return best[1]


def picture(nb: Notebook) -> str:
    "The first picture: its file and what it shows, or the code that draws it."
    for c in nb.cells:
        image = c.kind == 'markdown' and re.search(r'!\[([^\]]*)\]\(([^)]*)\)', c.source)
        if image:
            text = ' '.join(f'{image[2]}: {image[1]}'.split())
            return textwrap.shorten(text, WIDE, placeholder=' …')
        if c.kind == 'code' and pictures(c):
            drawn = f'drawn by `{code_lines(c.code)[-1].strip()}`'
            return c.directives.get('fig-alt', '').strip('"') or drawn
    return ''


def oracle(nb: Notebook) -> str:
    "The sentence that names the oracle, or else the independent way of computing."
    texts = [c.source for c in nb.cells if c.kind == 'markdown']
    for pattern in (re.compile(r'\boracle', re.I), ORACLE):
        for text in texts:
            head = HEADING.search(text)
            said = sentences(text)
            named = [s for s in said if pattern.search(s)] or said * bool(
                head and pattern.search(head[2])
            )
            if named:
                return textwrap.shorten(named[0], WIDE, placeholder=' …')
    return ''


def chapters(notebooks: list[Notebook]) -> list[Chapter]:
    "The numbered notebooks, each with its failure, its picture and its oracle."
    return [
        Chapter(nb.name.removesuffix('.ipynb'), failure(nb), picture(nb), oracle(nb))
        for nb in notebooks
        if nb.number is not None
    ]


if __name__ == '__main__':
    given = [a for a in sys.argv[1:] if a != '--chapters']
    notebooks = read_notebooks(Path(given[0]).resolve() if given else ROOT)
    found = chapters(notebooks) if '--chapters' in sys.argv else table(notebooks)
    print('\n'.join(map(str, found)))
