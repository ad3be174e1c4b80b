"""Ways to train less of a base on a CPU: LoRA, frozen lower blocks, or everything.

    python bench/lora.py [--rounds 3] [--json]

The shape is SmolLM2-135M's with random weights; a step reads two rows of 512 tokens in float32, a
quarter of them supervised, with AdamW. `frozen` leaves the embedding and the lower 20 of 30 blocks
as they are, so no gradient goes below block 20; the tags then keep the rows that they began with.
`frozen, rows` trains the embedding as well, and the gradient has to go all the way down; in
`frozen, head` it is trained as the head only, without the gradient of its lookups. One thread
each, and the time is that thread's own, so that other work on the machine costs cache but no
minutes. The ways take turns; every step is kept in bench/results, the first of each is left out.
Memory is what training holds besides activations: weights, gradients and AdamW's moments.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
import torch
from mypt.model.config import TrainConfig
from mypt.model.gpt import GPT, make_gpt
from mypt.model.lora import Adapter, lora_targets
from mypt.train.optim import make_optimizers
from mypt.train.train import set_up_model
from shapes import SMOLLM2_135M
import numpy as np

ROOT = Path(__file__).resolve().parent
LOWER = [f'model.layers.{i}.*' for i in range(20)]


def with_lora(rank):
    targets = lora_targets(GPT(SMOLLM2_135M))
    first = SMOLLM2_135M.vocab_size - 64
    return make_gpt(SMOLLM2_135M, Adapter(rank, 2.0 * rank, targets, first))


def frozen(patterns, freeze_input=False):
    model = GPT(SMOLLM2_135M)
    set_up_model(model, TrainConfig(freeze=patterns, freeze_input=freeze_input))
    return model


WAYS = {
    'everything': lambda: GPT(SMOLLM2_135M),
    'LoRA, rank 16': lambda: with_lora(16),
    'frozen': lambda: frozen([*LOWER, 'model.embed_tokens.weight']),
    'frozen, rows': lambda: frozen(LOWER),
    'frozen, head': lambda: frozen(LOWER, freeze_input=True),
}


def rows_of_tokens():
    rng = np.random.default_rng(0)
    lens = (120, 200, 192), (300, 212)
    rows = []
    for parts in lens:
        ids = rng.integers(0, SMOLLM2_135M.vocab_size, 512)
        weights = np.concatenate([np.arange(n) >= n * 3 // 4 for n in parts]).astype(np.float32)
        segments = np.repeat(np.arange(1, len(parts) + 1), parts)
        rows.append((ids, weights, segments))
    return rows


def make_batch():
    "Two rows; a quarter of each episode, its end, is supervised."
    from types import SimpleNamespace

    rows = rows_of_tokens()
    ids, weights, segments = (torch.tensor(np.stack(x)) for x in zip(*rows, strict=True))
    targets = ids.roll(-1, 1)
    return SimpleNamespace(
        ids=ids,
        targets=targets,
        weights=weights,
        segments=segments,
        positions=None,
        supervised=None,
        runs=None,
        longest=None,
    )


class Run:
    "One way, ready to take steps."

    def __init__(self, make):
        torch.manual_seed(0)
        self.model = make()
        self.trained = [p for p in self.model.parameters() if p.requires_grad]
        self.opts = make_optimizers(self.model, TrainConfig())

    def step(self, batch):
        start = time.thread_time()
        self.model.loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        for o in self.opts:
            o.step()
            o.zero_grad()
        return time.thread_time() - start

    def gib(self):
        n = sum(p.numel() for p in self.model.parameters())
        return (4 * n + 12 * sum(p.numel() for p in self.trained)) / 2**30


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--json', action='store_true')
    args = parser.parse_args()
    torch.set_num_threads(1)
    batch, runs = make_batch(), {name: Run(make) for name, make in WAYS.items()}
    seconds = {name: [] for name in runs}
    for n in range(args.rounds + 1):
        for name, run in runs.items():
            s = run.step(batch)
            print(f'round {n}: {name}: {s:.2f} s', flush=True)
            if n:
                seconds[name].append(s)
    whole = seconds['everything']
    table = {}
    for name, run in runs.items():
        ratios = [a / b for a, b in zip(whole, seconds[name], strict=True)]
        table[name] = dict(
            seconds=seconds[name],
            faster=statistics.median(ratios),
            spread=[min(ratios), max(ratios)],
            trained=sum(p.numel() for p in run.trained),
            gib=run.gib(),
        )
    for name, row in table.items():
        low, high = row['spread']
        print(
            f'{name:14} {statistics.median(row["seconds"]):6.2f} s  {row["faster"]:.2f}x '
            f'({low:.2f} to {high:.2f})  {row["trained"] / 1e6:6.1f}M trained  {row["gib"]:.2f} GiB'
        )
    if args.json:
        about = dict(machine=platform.processor() or platform.machine(), torch=torch.__version__)
        result = dict(about, date=time.strftime('%Y-%m-%d'), rounds=args.rounds, ways=table)
        (ROOT / 'results/lora.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    main()
