"""What a training step costs, as one thing at a time grows: four curves, and how straight they are.

    python bench/cost.py

A Llama shape (4 layers, 256 wide) in float32 on a CPU. Each curve's points take turns, so that
the machine's moods fall on all alike; the median of each point is kept, with a least-squares
line and how much of the variation it explains.

- episodes: one row of 2,048 tokens cut into 1, 2, 4 … 64 equal episodes: attention costs Σ len²,
so time falls with 1/n. - length: the tokens of a batch of episodes of 64 tokens, from 512 to
8,192: time grows in proportion. - vocabulary: 512 … 50,304 at 512 supervised positions: in
proportion again, and no logits of other positions. - memory: greatest resident memory of a
process that trains 1 … 8 rows of 512 tokens, each in a process of its own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
import numpy as np
import torch
from mypt.data.batches import collate
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT

ROOT = Path(__file__).resolve().parent


class Row:
    def __init__(self, lens, vocab, seed=0):
        rng = np.random.default_rng(seed)
        self.ids, self.segments = (
            rng.integers(0, vocab, sum(lens)),
            np.repeat(np.arange(1, len(lens) + 1), lens),
        )
        self.weights = np.concatenate([np.arange(n) >= n * 3 // 4 for n in lens])


def step_of(batch, vocab=2048, layers=4):
    torch.manual_seed(0)
    model = GPT(
        ModelConfig(n_layer=layers, n_head=4, n_embd=256, block_size=8192, vocab_size=vocab)
    ).train()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step():
        model.loss(batch).backward()
        opt.step()
        opt.zero_grad()

    return step


def timed(steps, rounds):
    "Median seconds of each step; they take turns, and the first round warms up."
    times = {k: [] for k in steps}
    for i in range(rounds + 1):
        for k, step in steps.items():
            t = time.perf_counter()
            step()
            if i:
                times[k].append(time.perf_counter() - t)
    return {k: statistics.median(v) for k, v in times.items()}


def straight(xs, ys):
    "Line through the points, and the share of the variation that it explains."
    slope, at0 = np.polyfit(xs, ys, 1)
    rest = np.asarray(ys) - (slope * np.asarray(xs) + at0)
    return dict(slope=float(slope), at_zero=float(at0), r2=float(1 - rest.var() / np.var(ys)))


def episodes(rounds):
    ns = (1, 2, 4, 8, 16, 32, 64)
    med = timed({n: step_of(collate([Row([2048 // n] * n, 2048)])) for n in ns}, rounds)
    return dict(
        x=list(ns),
        seconds=list(med.values()),
        squares=[2048**2 // n for n in ns],
        line=straight([2048**2 / n for n in ns], list(med.values())),
    )


def length(rounds):
    ns = (512, 1024, 2048, 4096, 8192)
    med = timed({n: step_of(collate([Row([64] * (n // 64), 2048)])) for n in ns}, rounds)
    return dict(x=list(ns), seconds=list(med.values()), line=straight(ns, list(med.values())))


def vocabulary(rounds):
    vs = (512, 4096, 16384, 32768, 50304)
    med = timed({v: step_of(collate([Row([64] * 32, v)]), v, layers=1) for v in vs}, rounds)
    return dict(x=list(vs), seconds=list(med.values()), line=straight(vs, list(med.values())))


def memory(_):
    ns, peaks = (1, 2, 3, 4, 6, 8), []
    for n in ns:
        out = subprocess.run(
            [sys.executable, __file__, '--rows', str(n)], capture_output=True, text=True, check=True
        )
        peaks.append(int(out.stdout) / 2**20)
    return dict(x=list(ns), mib=peaks, line=straight(ns, peaks))


def train_rows(n):
    "Train two steps on `n` rows, print the process's greatest resident memory in bytes."
    step = step_of(collate([Row([32] * 16, 8192, i) for i in range(n)]), 8192)
    step()
    step()
    # `getrusage` would pass on the peak of the process that started this one
    print(
        next(
            int(line.split()[1]) * 1024
            for line in open('/proc/self/status')
            if line.startswith('VmHWM')
        )
    )


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--rows', type=int, help='what the memory curve runs')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    if a.rows:
        return train_rows(a.rows)
    result = {}
    for curve in (episodes, length, vocabulary, memory):
        r = result[curve.__name__] = curve(a.rounds)
        ys = r.get('seconds') or r['mib']
        print(
            f'{curve.__name__}: {r["x"][0]:,} → {r["x"][-1]:,} costs {ys[-1] / ys[0]:.2f} times as'
            f' much, a line explains {r["line"]["r2"]:.1%}'
        )
    result |= dict(
        threads=a.threads,
        machine=cpu_name(),
        versions=dict(torch=torch.__version__, python=platform.python_version()),
        date=time.strftime('%Y-%m-%d'),
    )
    (ROOT / 'results' / 'cost.json').write_text(json.dumps(result, indent=1) + '\n')


def cpu_name():
    try:
        return next(
            line.split(':')[1].strip()
            for line in open('/proc/cpuinfo')
            if line.startswith('model name')
        )
    except (OSError, StopIteration):
        return platform.processor()


if __name__ == '__main__':
    sys.exit(main())
