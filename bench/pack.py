"""Pack a million episode lengths: mypt against a plain best-fit decreasing, one episode at a time,
in the same run.

python bench/pack.py            # prints a table, writes bench/results/pack.json

"""

from bisect import bisect_left, insort
from datetime import date
from pathlib import Path
from statistics import median
from time import perf_counter
import json
import platform
import sys
import numpy as np
from mypt.data.packing import pack_lengths

N, CAP, TRIES = 1_000_000, 1024, 5
RNG = np.random.default_rng(0)
LENGTHS = {
    'uniform 20-900': RNG.integers(20, 901, N),
    'about 30 (format lock)': np.clip(RNG.normal(30, 8, N).astype(int), 8, None),
}


def plain_bfd(lens, cap):
    """The textbook, done well: a bisection over the distinct rooms that are open, a stack of rows
    for each.
    """
    rooms, rows, placed, n_rows = [], {}, np.empty(len(lens), np.int64), 0
    for i in np.argsort(-lens, kind='stable').tolist():
        n = int(lens[i])
        at = bisect_left(rooms, n)
        if at == len(rooms):
            room, row = cap, n_rows
            n_rows += 1
        else:
            room = rooms[at]
            row = rows[room].pop()
            if not rows[room]:
                del rooms[at]
        placed[i] = row
        if left := room - n:
            stack = rows.setdefault(left, [])
            if not stack:
                insort(rooms, left)
            stack.append(row)
    return placed


def timed(f, *args):
    t = perf_counter()
    out = f(*args)
    return perf_counter() - t, out


def measure(lens):
    "Both packers, taking turns."
    times = {pack_lengths: [], plain_bfd: []}
    for _ in range(TRIES):
        for f in times:
            seconds, rows = timed(f, lens, CAP)
            times[f].append(seconds)
            totals = np.sort(np.bincount(rows, weights=lens))
            if f is pack_lengths:
                ours = totals
            assert totals.max() <= CAP and np.array_equal(totals, ours), 'the two packers disagree'
    mine, plain = (median(times[f]) for f in (pack_lengths, plain_bfd))
    return dict(
        seconds=round(mine, 4),
        plain_seconds=round(plain, 3),
        ratio=round(plain / mine, 1),
        all_seconds=[round(t, 4) for t in times[pack_lengths]],
        all_plain_seconds=[round(t, 3) for t in times[plain_bfd]],
        rows=len(ours),
        fill=round(float(lens.sum() / len(ours) / CAP), 5),
    )


def main():
    result = {name: measure(lens) for name, lens in LENGTHS.items()}
    print(f'{N:,} lengths into rows of {CAP}, medians of {TRIES}')
    for name, r in result.items():
        print(
            f'{name:24s} mypt {r["seconds"]:.3f} s  plain {r["plain_seconds"]:.2f} s  ratio'
            f' {r["ratio"]:.0f}x  fill {r["fill"]:.2%}'
        )
    machine = f'{platform.system()} {platform.machine()}, {cpu()}'
    out = dict(
        bench='pack',
        date=date.today().isoformat(),
        machine=machine,
        python=platform.python_version(),
        numpy=np.__version__,
        n=N,
        cap=CAP,
        tries=TRIES,
        results=result,
    )
    path = Path(__file__).parent / 'results' / 'pack.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(out, indent=1) + '\n')
    return 0 if all(r['seconds'] <= 1 for r in result.values()) else 1


def cpu():
    "The processor's name where Linux tells it."
    info = Path('/proc/cpuinfo')
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(':', 1)[1].strip() for line in lines if line.startswith('model name')]
    return f'{len(names)}x {names[0]}' if names else platform.processor()


if __name__ == '__main__':
    sys.exit(main())
