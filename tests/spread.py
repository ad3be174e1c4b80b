"""Training runs for tests/test_distributed.py, one after the other, under torchrun or alone.

    torchrun --standalone --nproc_per_node 2 tests/spread.py DATASET MODEL key=value … [-- MODEL …]

Three settings are its own: `mute=1` takes the loss from every other row, `die=rank:step:signal`
ends a process, once, and `base=MODEL` is the model to start from.
"""

import os
import sys
import torch
from itertools import groupby
from pathlib import Path
from mypt.train.loop import Callback
from mypt.train.train import train

SETS = [
    'n_layer=2',
    'n_embd=32',
    'n_head=2',
    'block_size=64',
    'max_iters=12',
    'eval_interval=4',
    'warmup_iters=3',
    'eval_iters=3',
    'grad_accum_steps=2',
    'learning_rate=3e-3',
]


class Mute(Callback):
    "Rows of odd number teach nothing, so that some process has nothing to learn from."

    def before_fit(self, t):
        make, data = t.data.step_batches, t.data

        def muted(step):
            batches = make(step)
            for micro, b in enumerate(batches):
                b.weights[[n % 2 == 1 for n in data.row_numbers(step, micro)]] = 0
            return batches

        data.step_batches = muted


class Die(Callback):
    "Send a signal to this process after a step, unless that was done before (a mark remembers)."

    def __init__(self, rank, step, signal, mark):
        self.rank, self.step = int(rank), int(step)
        self.signal, self.mark = int(signal), mark

    def after_step(self, t):
        if (t.rank, t.step) == (self.rank, self.step) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.signal)


def one(dataset, model, *sets):
    words = dict(s.split('=', 1) for s in sets)
    cbs = [Mute()] if words.pop('mute', None) else []
    die = words.pop('die', None)
    if die:
        cbs.append(Die(*die.split(':'), Path(f'{model}.mark')))
    base = words.pop('base', None)
    sets = SETS + [f'{k}={v}' for k, v in words.items()]
    return train(model, dataset, init_from_model=base, sets=sets, device='cpu', quiet=True, cbs=cbs)


if __name__ == '__main__':
    torch.set_num_threads(1)
    for last, words in groupby(sys.argv[2:], '--'.__eq__):
        if not last:
            one(sys.argv[1], *words)
