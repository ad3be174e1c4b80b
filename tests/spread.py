"""Training runs for tests/test_distributed.py, one after the other, under torchrun or alone.

    torchrun --standalone --nproc_per_node 2 tests/spread.py DATASET MODEL key=value … [-- MODEL …]
    python tests/spread.py --forks=2 DATASET MODEL …

The second starts as many processes by itself, after the imports; where one fails all end.

Three settings are its own: `mute=1` takes the loss from every other row, `die=rank:step:signal`
ends a process, once, and `base=MODEL` is the model to start from.
"""

import os
import signal
import socket
import sys
import torch
from importlib import import_module
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


def all_runs(dataset, *words):
    for last, run in groupby(words, '--'.__eq__):
        if not last:
            one(dataset, *run)


def forks(world: int, *words) -> int:  # 0 when all ended well
    "As torchrun, in forks of this process."
    for name in ('torch._dynamo', 'torch.distributed.fsdp', 'torch.distributed.checkpoint'):
        import_module(name)  # training would, in each of them
    with socket.create_server(('127.0.0.1', 0)) as s:
        port = s.getsockname()[1]
    place = dict(WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, MASTER_ADDR='127.0.0.1')
    pids = set()
    for rank in range(world):
        pid = os.fork()
        if not pid:
            where = place | dict(RANK=rank, LOCAL_RANK=rank, MASTER_PORT=port)
            os.environ.update({k: str(v) for k, v in where.items()})
            return all_runs(*words) or 0
        pids.add(pid)
    failed = 0
    while pids:
        pid, status = os.wait()
        pids.remove(pid)
        if status and not failed:
            failed = 1
            for other in pids:
                os.kill(other, signal.SIGKILL)
    return failed


if __name__ == '__main__':
    torch.set_num_threads(1)
    first, *words = sys.argv[1:]
    if first.startswith('--forks='):
        sys.exit(forks(int(first.removeprefix('--forks=')), *words))
    all_runs(first, *words)
