"""What became of the rows: what each verb says, and what it wrote; for tests/fuzz.py."""

import json
import re
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Outcome:
    "What a command did."

    folder: Path
    code: int
    out: str
    err: str

    def rows(self, name: str) -> int:
        "Lines of a file that are not blank."
        path = self.folder / name
        return (
            sum(bool(line.strip()) for line in path.read_bytes().split(b'\n'))
            if path.exists()
            else 0
        )

    def rows_in(self, name: str) -> int:
        raw = (self.folder / name).read_bytes().removeprefix(b'\xef\xbb\xbf')
        return sum(bool(line.strip()) for line in raw.split(b'\n'))


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    return [int(n.replace(',', '')) for n in found.groups()] if found else []


def converted(o: Outcome) -> str:
    "Every line is an episode or a rejected row; the rejects file holds each of them."
    raw = (o.folder / 'in.jsonl').read_bytes().removeprefix(b'\xef\xbb\xbf').lstrip()
    n_in = o.rows_in('in.jsonl')
    if o.code:
        none = _numbers(r'none of ([\d,]+) rows? could be used', o.err)
        told = not none or none[0] == n_in or raw.startswith(b'[')
        return '' if told else f'{n_in} lines, {none[0]} reported'
    n, read = _numbers(r': ([\d,]+) episodes?; \S+ of ([\d,]+) rows?', o.out)
    reasons = re.findall(r'^  ([\d,]+) rows?: ', o.out, re.M)
    rejected = sum(int(k.replace(',', '')) for k in reasons)
    in_file = o.rows('out.jsonl.rejects.jsonl')
    if raw.startswith(b'['):
        n_in = read  # a list has more or fewer elements than lines
    if read != n_in or n != o.rows('out.jsonl') or rejected != in_file or n + rejected != read:
        return (
            f'{n_in} lines: {read} read, {n} used, {o.rows("out.jsonl")} written, {rejected} told'
        )
    return ''


def checked(o: Outcome) -> str:
    if o.code == 2 or 'JSON array' in o.out:
        return ''
    fine, bad = _numbers(r'([\d,]+) fine, ([\d,]+) to mend', o.out)
    listed = len(o.out.strip().split('\n')) - 1
    n_in = o.rows_in('in.jsonl')
    return '' if fine + bad == n_in and listed == bad else f'{n_in} lines: {fine} + {bad}, {listed}'


def prepared(o: Outcome) -> str:
    if o.code:
        return '' if not (o.folder / 'd').exists() else 'a folder is left behind'
    meta = json.loads((o.folder / 'd' / 'dataset_metadata.json').read_text())
    n = meta['num_train_episodes'] + meta['num_val_episodes']
    rejected, n_in = o.rows('d/rejects.jsonl'), o.rows_in('in.jsonl')
    fine = n + rejected == n_in == meta['rows_read'] and rejected == meta['rows_rejected']
    return '' if fine else f'{n_in} lines: {n} + {rejected}, read {meta["rows_read"]}'


def mixed(o: Outcome) -> str:
    if o.code:
        return '' if not o.rows('out.jsonl') else 'an output is left behind'
    n_in = o.rows_in('in.jsonl') + o.rows_in('good.jsonl')
    return '' if o.rows('out.jsonl') == n_in else f'{n_in} rows, {o.rows("out.jsonl")} written'


def deduplicated(o: Outcome) -> str:
    if o.code:
        return '' if not o.rows('out.jsonl') else 'an output is left behind'
    n_in, n = o.rows_in('in.jsonl'), o.rows('out.jsonl')
    told = o.rows('dropped.jsonl')
    return '' if n + told == n_in else f'{n_in} rows: {n} kept, {told} told'


def as_many(o: Outcome) -> str:
    "As many rows out as in."
    if o.code:
        return '' if not o.rows('out.jsonl') else 'an output is left behind'
    n_in, n = o.rows_in('in.jsonl'), o.rows('out.jsonl')
    return '' if n == n_in else f'{n_in} rows, {n} written'


def counted(o: Outcome) -> str:
    "All rows are counted, replay text apart."
    if o.code:
        return ''
    report = json.loads((o.folder / 'r.json').read_text())
    d = report.get('diversity', report)
    n_in, n = o.rows_in('in.jsonl'), d['episodes'] + d['replay']
    return '' if n == n_in else f'{n_in} rows, {n} counted'


def extracted(o: Outcome) -> str:
    if o.code:
        return ''
    n_in, n = o.rows_in('in.jsonl'), o.rows('t/episode_ids.txt')
    return '' if n == n_in else f'{n_in} rows, {n} ids'
