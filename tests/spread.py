"""A training run for tests/test_distributed.py, under torchrun or alone; `DIE=rank:step` ends a process the hard way, once.

    torchrun --standalone --nproc_per_node 2 tests/spread.py DATASET MODEL_DIR key=value …
"""
import os, signal, sys
from pathlib import Path
import torch
from mypt.loop import Callback
from mypt.train import train

SETS = ['n_layer=2', 'n_embd=32', 'n_head=2', 'block_size=64', 'max_iters=12', 'eval_interval=4', 'warmup_iters=3', 'eval_iters=3',
        'grad_accum_steps=2', 'learning_rate=3e-3']

class Signal(Callback):
    "Send this process the signal of DIE (`rank:step:number`) after that step, unless it was sent before."
    def __init__(self, rank, step, number, mark): self.rank, self.step, self.number, self.mark = rank, step, number, mark
    def after_step(self, t):
        if (t.rank, t.step) == (self.rank, self.step) and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), self.number)

if __name__ == '__main__':
    torch.set_num_threads(1)
    cbs = [Signal(*map(int, os.environ['DIE'].split(':')), Path(sys.argv[2] + '.mark'))] if 'DIE' in os.environ else []
    train(sys.argv[2], sys.argv[1], sets=SETS + sys.argv[3:], device='cpu', quiet=True, cbs=cbs)
