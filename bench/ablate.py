"""What each optimization of the training step is worth: taken away one at a time, predicted first,
then measured.

    python bench/ablate.py

A Llama shape (6 layers, 256 wide, vocabulary 50,304) in float32 on a CPU, batches of 4 rows of
1,024 tokens, packed with chat of about 30 tokens, a quarter of them supervised. The complete
step and its crippled twins take turns within one process; a line says how many times longer the
twin takes per real token than the complete step. The prediction is mypt.train.cost's, on a machine
whose two numbers (products and memory traffic) are measured first, in the same process.
Everything goes to bench/results/ablate.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
import numpy as np
import torch
from mypt.data.batches import collate
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT
from mypt.model.loss import head_loss
from mypt.data.packing import plan_rows
from mypt.train.cost import Machine, step_parts
import itertools

ROOT = Path(__file__).resolve().parent
CFG = ModelConfig(n_layer=6, n_head=4, n_embd=256, block_size=1024, vocab_size=50304)
ROWS, BLOCK = 4, 1024


class Row:
    "One packed row, as `mypt.data.dataset` gives it."

    def __init__(self, episodes):
        self.ids, self.weights = (np.concatenate(x) for x in zip(*episodes, strict=False))
        self.segments = np.repeat(np.arange(1, len(episodes) + 1), [len(i) for i, _ in episodes])


def episodes_of(n, rng):
    "(ids, mask): 18–42 tokens, the last quarter supervised."
    for length in rng.integers(18, 43, n).tolist():
        yield rng.integers(0, 50256, length), np.arange(length) >= length * 3 // 4


def this_machine(seconds=1.0):
    "Products and memory traffic a second, both at their best, in float32."

    def best(f, work):
        f()
        times, end = [], time.perf_counter() + seconds
        while time.perf_counter() < end or len(times) < 5:
            t = time.perf_counter()
            f()
            times.append(time.perf_counter() - t)
        return work / min(times)

    a, b, x = torch.randn(1024, 1024), torch.randn(1024, 1024), torch.randn(2**24)
    y = torch.empty_like(x)
    return Machine(
        'this machine', best(lambda: a @ b, 2 * 1024**3), best(lambda: y.copy_(x), 2 * 4 * len(x))
    )


class Everywhere(GPT):
    "Logits of every position, as everybody begins: weights multiply afterwards."

    def loss(self, batch, denom=None, noise=None):
        h = self.hidden(
            batch.ids, self.layout(batch.segments, batch.ids.shape, batch.runs), batch.positions
        ).flatten(0, 1)
        w = batch.weights.flatten()
        return head_loss(h, self.head, batch.targets.flatten(), w / w.sum())


class LateRows(GPT):
    "The last block works everywhere; rows are picked after it."

    def loss(self, batch, denom=None, noise=None):
        h = self.hidden(
            batch.ids, self.layout(batch.segments, batch.ids.shape, batch.runs), batch.positions
        ).flatten(0, 1)
        w = batch.weights.flatten()[batch.supervised]
        return head_loss(
            h[batch.supervised], self.head, batch.targets.flatten()[batch.supervised], w / w.sum()
        )


class WholeLogits(GPT):
    "Cross-entropy over one tensor of logits, by torch."

    def loss(self, batch, denom=None, noise=None):
        h, keep, w = self._supervised(batch, noise)
        ce = torch.nn.functional.cross_entropy(
            self.logits(h), batch.targets.flatten()[keep], reduction='none'
        )
        return (ce * w).sum() / w.sum()


class Whole(GPT):
    """Nothing is left out: padding of rows is an episode too, and episodes are worked on to their
    end.
    """

    def layout(self, segments, shape, runs=None, keep=None):
        return super().layout(segments + 1, shape, runs)


def step_of(cls=GPT, fused=True, prepare=None, **settings):
    torch.manual_seed(0)
    model = cls(CFG).train()
    for k, v in settings.items():
        setattr(model, k, v)
    opt = torch.optim.AdamW(
        model.parameters(),
        lr=1e-4,
        weight_decay=0.05,
        fused=fused,
        foreach=False if not fused else None,
    )

    def step(batch):
        b = prepare(batch) if prepare else batch
        model.loss(b).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()

    return step


def padded(episodes):
    "The same episodes, one to a row, as long as the longest."
    return collate([Row([e]) for e in episodes])


def crossing(batch):
    "Each row as one long episode: nobody is kept apart, and every token attends to the row."
    b = batch.to('cpu')
    b.segments, b.runs = (
        torch.ones_like(b.segments),
        torch.arange(0, b.ids.numel() + 1, b.ids.shape[1]),
    )
    return b


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=9)
    p.add_argument('--threads', type=int, default=os.cpu_count())
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    rng = np.random.default_rng(0)
    eps = list(episodes_of(1500, rng))
    order, starts = plan_rows(np.array([len(i) for i, _ in eps]), BLOCK)
    packs = [[eps[j] for j in order[s:e]] for s, e in itertools.pairwise(starts)]
    groups = [packs[i : i + ROWS] for i in range(0, len(packs) - ROWS + 1, ROWS)]
    twins = {
        'complete': step_of(),
        'logits everywhere': step_of(Everywhere),
        'last block everywhere': step_of(LateRows),
        'nothing left out': step_of(Whole),
        'one tensor of logits': step_of(WholeLogits),
        'masked attention': step_of(attention='reference'),
        'rows not isolated': step_of(prepare=crossing),
        'padding in place of packing': step_of(),
        'AdamW tensor by tensor': step_of(fused=False),
        'activations recomputed': step_of(use_checkpoint=True),
    }
    machine, times = this_machine(), {k: [] for k in twins}
    for i in range(a.steps + 1):
        group = groups[i % len(groups)]
        batch, flat = (
            collate([Row(r) for r in group], length=BLOCK),
            [e for r in group for e in r],
        )
        turn = i % len(twins)  # nobody always follows the same one
        for name, step in (list(twins.items()) * 2)[turn : turn + len(twins)]:
            b = padded(flat) if name.startswith('padding') else batch
            t = time.perf_counter()
            step(b)
            if i:
                times[name].append((time.perf_counter() - t) / b.n_tokens)
    med = {k: statistics.median(v) for k, v in times.items()}
    batch = collate([Row(r) for r in groups[0]], length=BLOCK)
    lens = [len(i) for r in groups[0] for i, _ in r]
    predicted = predict(lens, batch, machine)
    for k, v in med.items():
        said = f', predicted {predicted[k]:.2f}' if k in predicted else ''
        print(f'{k}: {v / med["complete"]:.2f} times as long{said}')
    reached = predicted.pop('seconds') / (med['complete'] * batch.n_tokens)
    print(
        f'the complete step reaches {reached:.0%} of what {machine.flops / 1e9:.0f} GFLOP/s and'
        f' {machine.bandwidth / 1e9:.0f} GB/s allow'
    )
    result = dict(
        ratio={k: v / med['complete'] for k, v in med.items()},
        predicted=predicted,
        roofline_share=reached,
        machine_limits=machine._asdict(),
        seconds_per_token=med,
        threads=a.threads,
        machine=cpu_name(),
        versions=dict(torch=torch.__version__, python=platform.python_version()),
        date=time.strftime('%Y-%m-%d'),
    )
    (ROOT / 'results' / 'ablate.json').write_text(json.dumps(result, indent=1) + '\n')


def predict(lens, batch, m):
    "Times of the twins over the complete step's, by the roofline; and the complete step's seconds."
    M, N, rows = batch.n_supervised, batch.n_tokens, [BLOCK] * ROWS

    def cost(parts):
        return sum(p.seconds(m) for p in parts)

    whole = cost(step_parts(CFG, lens, M, half=False))
    late = cost(step_parts(CFG, lens, N, half=False)) - cost(step_parts(CFG, lens, M, half=False))
    head = 6 * (N - M) * CFG.vocab_size * CFG.n_embd / m.flops
    scores = (
        3 * 4 * CFG.n_layer * CFG.n_head * ROWS * BLOCK**2 * 4 / m.bandwidth
    )  # T×T scores, four passes forward and twice back
    long_rows = cost(step_parts(CFG, rows, M, half=False))
    pad = len(lens) * max(lens) / N
    products = sum(
        p.seconds(m)
        for p in step_parts(CFG, lens, M, half=False)
        if 'AdamW' not in p.name and 'head' not in p.name
    )
    forward, worked = (products / 3, sum(n - 1 for n in lens))  # all but each episode's last token
    return {
        'seconds': whole,
        'logits everywhere': 1 + late / whole,
        'last block everywhere': 1 + max(0.0, late - head) / whole,
        'masked attention': (long_rows + scores) / whole,
        'rows not isolated': long_rows / whole,
        'padding in place of packing': 1 + (pad - 1) * products / whole,
        'activations recomputed': 1 + forward / whole,
        'nothing left out': 1 + (ROWS * BLOCK / worked - 1) * products / whole,
    }


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
