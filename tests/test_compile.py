"""The GPU's path on a CPU: the variable-length kernel is replaced by the plain reference,
all around it (cumulative lengths, dynamic shapes, one graph for all batches) is the real code."""

import pytest
import re
import subprocess
import sys
import torch
from gpu_standin import Row, fresh_graphs, n_graphs, register
from torch._inductor.utils import run_and_get_code
from mypt.data.batches import collate
from mypt.model import loss
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


@pytest.mark.slow
def test_the_loss_of_a_slice_needs_no_float32_table():
    "One fused function, and of [n, V] only the bfloat16 gradient, however many rows there are."
    z, y, w = torch.randn(64, 5000).bfloat16(), torch.randint(0, 5000, (64, 1)), torch.rand(64, 1)
    plain = loss._slice_loss(z.clone(), y, w)
    fresh_graphs()
    (total, grad), (code,) = run_and_get_code(loss._fused_slice_loss, z, y, w)
    assert code.count('async_compile.cpp_pybinding') == 1
    tables = re.findall(r'empty_strided_cpu\(\(\w+, 5000\), .*torch\.(\w+)\)', code)
    assert tables == ['bfloat16']
    torch.testing.assert_close(total, plain[0])
    torch.testing.assert_close(grad, plain[1])
    for n in (63, 20, 2):
        loss._fused_slice_loss(z[:n], y[:n], w[:n])
    assert n_graphs() == 1


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
def test_both_losses_of_a_slice_agree(dtype):
    z, y = torch.randn(9, 50).to(dtype), torch.randint(0, 50, (9, 1))
    w = torch.tensor([0, 0.5, 1, 1, 2, 0, 1, 1, 1])[:, None].to(z.float().dtype)
    z[3] *= 100  # sure of itself
    for a, b in zip(
        loss._slice_loss(z.clone(), y, w), loss._fusible_slice_loss(z, y, w), strict=True
    ):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_nobody_waits_for_a_compiler_that_is_not_asked_for():
    "It takes as long to import as torch; training and serving on a CPU leave it out."
    heavy = 'mypt.curriculum.run', 'mypt.serve.app', 'mypt.train.train', 'mypt.inference.cpu'
    code = f'import sys\nimport {", ".join(heavy)}\nsys.exit("torch._dynamo" in sys.modules)'
    assert subprocess.run([sys.executable, '-c', code]).returncode == 0
