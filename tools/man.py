"""A page for each command, made from what `mypt VERB --help` reads: the function's own comments,
its examples, its report.

The pages lie in nbs/commands/, so that they stand on GitHub too; `make export` writes them, and
the check compares.
"""

import re
import sys
from importlib.util import find_spec
from pathlib import Path
from mypt.cli import for_shell, shown_default, verb_parser
from mypt.commands.table import STAGES, VERBS, flags_of, signature_of, value_of
from mypt.commands.examples import REPORTS, examples_of
from tools.notebooks import ROOT, read_notebook, report

FOLDER = 'commands'


def page_of(verb: str) -> str:  # 'prepare-jobs plan' → 'commands/prepare-jobs-plan.md'
    "Where the page of a command lies, under nbs/."
    return f'{FOLDER}/{verb.replace(" ", "-")}.md'


def table(head: tuple, rows: list[tuple]) -> str:
    "A Markdown table; what would end a cell is escaped."

    def cell(s):
        return s.replace('|', r'\|').replace('<', r'\<')

    widths = (
        (7, 4, 4, 14) if len(head) == 4 else (6, 16)
    )  # pandoc shares a page's width by the dashes
    lines = [
        ' | '.join(head),
        ' | '.join('-' * w for w in widths),
        *(' | '.join(map(cell, r)) for r in rows),
    ]
    return '\n'.join(f'| {line} |' for line in lines)


def options(verb: str) -> str:
    "The table of a command's parameters."
    row, rows = VERBS[verb], []
    for p in signature_of(row.target)[1]:
        plain = [f for f in flags_of(p, row.aliases) if '-' not in f[2:]]
        names = [p.name.upper(), *plain] if p.name in row.positional else plain
        if p.type is bool and p.default is not False:
            names = [*names, f'--no-{p.name}']
        value = (
            'switch' if p.type is bool else f'{value_of(p)} …' if p.type is list else value_of(p)
        )
        rows.append(
            (
                ', '.join(f'`{n}`' for n in names),
                value,
                'needed' if p.required else shown_default(p),
                for_shell(p.help),
            )
        )
    if verb in REPORTS and not any(r[0] == '`--json`' for r in rows):
        rows.append(('`--json`', 'switch', '', 'One JSON object on stdout, messages on stderr'))
    return table(('option', 'value', 'default', 'what it does'), rows)


def notebook_of(verb: str) -> str:  # '06_prepare.ipynb'
    "The notebook that the command's function is written in."
    module = VERBS[verb].target.split(':')[0]
    return re.search(
        r'File to edit: (?:\.\./)+nbs/(\S+\.ipynb)', find_spec(module).loader.get_source(module)
    )[1]


WIDTH = 85  # of a line of an example, so that a page shows it whole


def in_lines(call: str) -> str:
    "A call of the command line, gone on in further lines where it is long."
    lines = ['']
    for word in re.split(r' (?=--)', call):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > WIDTH:
            lines.append('   ')
        lines[-1] = f'{lines[-1]} {word}' if lines[-1] else word
    return ' \\\n'.join(lines)


def title_of(notebook: str) -> str:
    "The title of a notebook under nbs/."
    return read_notebook(ROOT / 'nbs' / notebook, ROOT / 'nbs').cells[0].source.split('\n')[0][2:]


def page(verb: str) -> str:  # Markdown with front matter
    "One command's page."
    row, (doc, _) = VERBS[verb], signature_of(VERBS[verb].target)
    beside = [v for v, r in VERBS.items() if r.stage == row.stage and v != verb]
    codes = {
        0: 'done',
        1: 'judged and found wanting',
        2: 'the call or its input was wrong; one line on stderr says what to do',
        130: 'ended with Ctrl-C',
    }
    parts = [
        '## Synopsis',
        f'```text\n{verb_parser(verb).usage}\n```',
        for_shell(doc) + '.',
        '## Options',
        options(verb),
        'Words in a flag may be joined by `_` or by `-`.',
        '## Examples',
        '\n\n'.join(f'```bash\n# {why}\n{in_lines(call)}\n```' for call, why in examples_of(verb)),
    ]
    if verb in REPORTS:
        keys = [(f'`{k}`', v or k.replace('_', ' ')) for k, v in REPORTS[verb][1].items()]
        parts += ['## Report', table(('key', 'what it holds'), keys)]
    parts += [
        '## Exit codes',
        table(('code', 'meaning'), [(str(c), t) for c, t in codes.items() if c != 1 or row.failed]),
        '## See also',
        ', '.join(
            [
                f'[{title_of(notebook_of(verb))}](../{notebook_of(verb)})',
                *(f'[mypt {v}]({Path(page_of(v)).name})' for v in beside),
            ]
        ),
    ]
    return (
        f'---\ntitle: "mypt {verb}"\ndescription: "{row.help}"\n---\n\n' + '\n\n'.join(parts) + '\n'
    )


def overview_page() -> str:
    "All commands on one page, by stage."
    parts = [
        f'## {title}\n\n'
        + table(
            ('command', 'what it does'),
            [
                (f'[mypt {v}]({Path(page_of(v)).name})', r.help)
                for v, r in VERBS.items()
                if r.stage == stage
            ],
        )
        for stage, title in STAGES.items()
    ]
    return (
        '---\ntitle: "All commands"\ndescription: "By stage, from data to a model that is'
        ' judged"\n---\n\n' + '\n\n'.join(parts) + '\n'
    )


def pages() -> dict[str, str]:  # Name under nbs/ → text, in the order of the table
    "All that ought to lie in nbs/commands/."
    return {f'{FOLDER}/all.md': overview_page()} | {
        page_of(v): page(v) for stage in STAGES for v, r in VERBS.items() if r.stage == stage
    }


def check(root: Path = ROOT) -> list[str]:
    "Pages that are out of step, missing, or of no command."
    want, nbs = pages(), root / 'nbs'
    there = {p.relative_to(nbs).as_posix() for p in (nbs / FOLDER).glob('*.md')}
    wrong = [
        name
        for name, text in want.items()
        if name not in there or (nbs / name).read_text(encoding='utf-8') != text
    ]
    left = sorted(there - want.keys())
    return [f'nbs/{n}: out of step with the command; run `make export`' for n in wrong + left]


def write(root: Path = ROOT):
    "Write every page and remove those of no command."
    folder, want = root / 'nbs' / FOLDER, pages()
    folder.mkdir(exist_ok=True)
    for old in folder.glob('*.md'):
        if f'{FOLDER}/{old.name}' not in want:
            old.unlink()
    for n, text in want.items():
        (root / 'nbs' / n).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    write() if '--write' in sys.argv else report('commands', check())
