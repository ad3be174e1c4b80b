"""The GPU's path on a CPU: the variable-length kernel is replaced by the plain reference,
all around it (cumulative lengths, dynamic shapes, one graph for all batches) is the real code."""

import pytest
import torch
from gpu_standin import Row, fresh_graphs, n_graphs, register
from mypt.data.batches import collate
from mypt.model.attention import Segments
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT, compile_blocks

SHAPE = dict(n_layer=3, n_head=4, n_embd=32, block_size=64, vocab_size=320)


@pytest.fixture(scope='module', autouse=True)
def kernel():
    register()


BATCHES = [
    collate([Row(a, 1), Row(b, 2)], length=64)
    for a, b in (
        ([7, 20, 30], [64]),
        ([3] * 21, [5, 6, 40]),
        ([64], [64]),
        ([10] * 6, [1, 60, 3]),
        ([2] * 32, [33, 31]),
    )
]


def loss_and_grads(model, batch):
    model.zero_grad()
    loss = model.loss(batch)
    loss.backward()
    return loss.detach(), *(p.grad.clone() for p in model.parameters())


def close(a, b):
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('kv', [4, 2])
def test_cumulative_lengths_equal_sorted_episodes(kv):
    model = GPT(ModelConfig(**SHAPE, n_kv_head=kv)).train()
    for b in BATCHES:
        found = {}
        for model.attention in ('sorted', 'varlen'):
            found[model.attention] = loss_and_grads(model, b)
        for x, y in zip(found['varlen'], found['sorted'], strict=True):
            close(x, y)


def test_tables_of_a_batch_say_what_its_segments_say():
    for b in BATCHES:
        found, given = (
            Segments.of(b.segments, b.ids.shape, 'varlen', runs=r) for r in (None, b.runs)
        )
        for f in ('cu', 'lens', 'positions'):
            assert torch.equal(getattr(found, f), getattr(given, f))
        assert torch.equal(b.positions, given.positions)
        assert torch.equal(b.supervised, b.weights.flatten().nonzero().flatten())


@pytest.mark.parametrize('recompute', [False, True])
def test_one_graph_for_all_batches(recompute):
    "Any number of episodes and targets: no graph break, and no compiling after the first batch."
    torch.manual_seed(0)
    plain, fast = (GPT(ModelConfig(**SHAPE)).train() for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    for m in (plain, fast):
        m.attention, m.use_checkpoint = 'varlen', recompute
    fresh_graphs()
    compile_blocks(fast, BATCHES[0].ids.numel(), backend='aot_eager')
    assert fast.state_dict().keys() == plain.state_dict().keys()
    loss_and_grads(fast, BATCHES[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for b in BATCHES:
            for x, y in zip(loss_and_grads(fast, b), loss_and_grads(plain, b), strict=True):
                close(x, y)
    assert n_graphs() == 2  # a block, and the last one, which works at supervised positions only
