"""What is kept is kept for every reader: no machine's paths anywhere; no warnings, times or
addresses in notebooks.
"""

import json
import re
import subprocess
from pathlib import Path
from tools.notebooks import ROOT, Cell, Notebook, read_notebooks, report

FOLDERS = ('work', 'tmp', 'root', 'home', 'Users', 'mnt')
MACHINE_PATH = re.compile(r'(?<![\w.~\-/<])/(?:%s)/[\w.~-]+|\b[A-Z]:\\Users\\' % '|'.join(FOLDERS))
ADDRESS = re.compile(r'\bat 0x[0-9a-f]{6,}')
PROGRESS = re.compile(
    r'\d+it/s|it/s[,\]]|s/it[,\]]|\b\d\d:\d\d<\d\d:\d\d'
)  # What tqdm leaves behind
TIMES = re.compile(r'Wall time:|CPU times:')
KEPT = {
    'a machine path': MACHINE_PATH,
    'an address': ADDRESS,
    'a progress bar': PROGRESS,
    'a time': TIMES,
}


def texts(output: dict) -> list[str]:
    "All text of one output but pictures in base64."
    data = {
        k: v for k, v in output.get('data', {}).items() if not k.startswith('image/') or 'svg' in k
    }
    return [
        o if isinstance(o, str) else ''.join(o) if isinstance(o, list) else json.dumps(o)
        for o in (output.get('text', ''), *data.values())
    ]


def check_output(output: dict) -> list[str]:
    "What is wrong with one kept output."
    out = []
    if output['output_type'] == 'error':
        out.append('keeps an error')
    if output.get('name') == 'stderr':
        out.append('keeps stderr')
    for text in texts(output):
        out += [
            f'keeps {what}: {m[0]!r}'
            for what, pattern in KEPT.items()
            if (m := pattern.search(text))
        ]
    return out


def check_cell(cell: Cell) -> list[str]:
    "Outputs, and what Jupyter notes beside them."
    out = [p for o in cell.outputs for p in check_output(o)]
    if cell.raw.get('execution_count') is not None:
        out.append('keeps an execution count')
    if 'execution' in cell.raw['metadata']:
        out.append('keeps execution times')
    return out


def check_notebook(nb: Notebook) -> list[str]:
    "Kept outputs of one notebook."
    return [f'nbs/{nb.name} cell {c.number} {p}' for c in nb.codes for p in check_cell(c)]


def check_text(name: str, text: str) -> list[str]:
    "Machine paths in one text file."
    hits = ((i, MACHINE_PATH.search(line)) for i, line in enumerate(text.splitlines(), 1))
    return [f'{name} line {i}: a machine path, {m[0]!r}' for i, m in hits if m]


def tracked(root: Path = ROOT) -> list[Path]:
    "Files that git knows and that still exist; none outside a checkout."
    p = subprocess.run(['git', 'ls-files', '-z'], cwd=root, capture_output=True, text=True)
    return [f for o in p.stdout.split('\0') if o and (f := root / o).is_file()]


def check(root: Path = ROOT) -> list[str]:
    "All notebooks, and machine paths in every other text file that git knows."
    out = [p for nb in read_notebooks(root) for p in check_notebook(nb)]
    for f in tracked(root):
        if f.suffix in ('.ipynb', '.tiktoken', '.png', '.ico'):
            continue
        try:
            out += check_text(f.relative_to(root).as_posix(), f.read_text(encoding='utf-8'))
        except UnicodeDecodeError:
            pass
    return out


if __name__ == '__main__':
    report('clean outputs', check())
