"""Two processes over compiled blocks, for tests/test_gpu_walk.py:

    torchrun --standalone --nproc_per_node 2 tests/gpu_spread.py

Prints, for DDP and FSDP, plain and as on a GPU: the number of graphs, loss and gradient norm.
"""

import torch
from gpu_standin import Row, as_on_a_gpu, fresh_graphs, n_graphs
from mypt.data.batches import collate
from mypt.model.config import ModelConfig, TrainConfig
from mypt.model.gpt import GPT
from mypt.train.distributed import DDPTrainer, FSDPTrainer, join
from mypt.train.loop import fit
from pytest import MonkeyPatch

SHAPE = ModelConfig(n_layer=3, n_head=4, n_embd=64, block_size=64, vocab_size=320)


class Data:
    "Two micro-batches a step, others in each process."

    def __init__(self, rank):
        self.rank = rank

    def step_batches(self, step):
        seeds = (100 * step + 10 * micro + self.rank for micro in range(2))
        return [collate([Row([20, 30, 14], s), Row([7] * 9, s + 1)], length=64) for s in seeds]


def run(trainer, rank):
    fresh_graphs()
    torch.manual_seed(0)
    cfg = TrainConfig(grad_accum_steps=2, learning_rate=1e-3, optimizer='muon')
    t = fit(trainer(GPT(SHAPE), Data(rank), cfg, 4))
    return n_graphs(), t.record['loss'], t.record['grad_norm']


if __name__ == '__main__':
    torch.set_num_threads(1)
    rank, _, _ = join(torch.device('cpu'))
    for as_on in (False, True):
        with MonkeyPatch.context() as patch:
            if as_on:
                as_on_a_gpu(patch)
            for trainer in (DDPTrainer, FSDPTrainer):
                found = run(trainer, rank)
                if rank == 0:
                    print(trainer.__name__, *found)
