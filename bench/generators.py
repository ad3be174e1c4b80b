"""Ten thousand episodes of every kind, one core: seconds each, and as a share of the twenty that
the contract allows.

python bench/generators.py      # prints a table, writes bench/results/generators.json

"""

from datetime import date
from pathlib import Path
from time import perf_counter
import json
import os
import platform

os.environ['OMP_NUM_THREADS'] = '1'
from mypt.curriculum.run import GENERATORS, find_by_name

N, LIMIT, FEWER = (
    10_000,
    20.0,
    {'gold': 4000},
)  # gold questions are written by hand, and there are only so many

if __name__ == '__main__':
    rows = {}
    for kind in GENERATORS:
        if kind == 'replay':
            continue  # cuts a dataset that somebody must have made
        t = perf_counter()
        n = sum(1 for _ in find_by_name('kind', kind, GENERATORS)(FEWER.get(kind, N), seed=42))
        rows[kind] = dict(episodes=n, seconds=round(perf_counter() - t, 2))
        print(
            f'{kind:<12} {n:>7,} episodes {rows[kind]["seconds"]:>7.2f} s  '
            f' {rows[kind]["seconds"] / LIMIT:.0%} of the limit',
            flush=True,
        )
    out = Path(__file__).parent / 'results' / 'generators.json'
    out.write_text(
        json.dumps(
            dict(
                date=str(date.today()),
                machine=platform.processor() or platform.machine(),
                cores=1,
                python=platform.python_version(),
                results=rows,
            ),
            indent=1,
        )
        + '\n'
    )
