"""A training run for tests/test_faults.py to kill: tiny, with dropout, noise, evaluations and frequent saves.

    python tests/kill_me.py DATASET MODEL_DIR        # prints the step after each step
"""
import sys, torch
from mypt.loop import Callback
from mypt.train import train

SETS = ['n_layer=2', 'n_embd=32', 'n_head=2', 'block_size=64', 'batch_size=2', 'max_iters=60', 'eval_interval=7', 'save_every=5',
        'dropout=0.1', 'neftune_alpha=5.0', 'optimizer="muon"', 'warmup_iters=5', 'eval_iters=2', 'grad_accum_steps=2']

class Tell(Callback):
    def after_step(self, t): print(t.step, flush=True)

if __name__ == '__main__':
    torch.set_num_threads(1)
    train(sys.argv[2], sys.argv[1], sets=SETS, quiet=True, cbs=[Tell()])
