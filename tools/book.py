"""What a chapter gives its reader, in numbers: `python -m tools.book [ROOT]`.

One line for every notebook that exports code, then the sum of the numbered chapters and of all.
`lesson` is lines of code that show what the exported code does, per line of exported code; `text`
is lines of Markdown per line of exported code. Fastcore's notebooks, counted in the same way, have
.83 and .33, nbdev's .40 and .20, claudette's 1.51 and .72.
A page counts as having a naive version, an oracle or exercises where a heading or a sentence says
so; the words are listed below, so that a false count can be found.
"""

import re
import sys
from dataclasses import dataclass
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


if __name__ == '__main__':
    root = Path(sys.argv[1]).resolve() if sys.argv[1:] else ROOT
    print('\n'.join(table(read_notebooks(root))))
