"""The GPU's path on a CPU: the variable-length kernel is replaced by the plain reference,
all around it (cumulative lengths, dynamic shapes, one graph for all batches) is the real code."""

import itertools
import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention import varlen
from mypt.data.batches import collate
from mypt.model.config import ModelConfig
from mypt.model.attention import Segments
from mypt.model.gpt import GPT

SHAPE = dict(n_layer=3, n_head=4, n_embd=32, block_size=64, vocab_size=320)


def _runs(
    q, k, v, cu
):  # [N, H, D] → slice, probabilities [H, n, n], keys and values [n, H, D] of each run
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    for a, b in itertools.pairwise(cu.tolist()):
        hidden = torch.ones(b - a, b - a, dtype=torch.bool).triu(1)
        scores = torch.einsum('ihd,jhd->hij', q[a:b], k[a:b]) * q.shape[-1] ** -0.5
        yield (slice(a, b), scores.masked_fill(hidden, -torch.inf).softmax(-1), k[a:b], v[a:b])


def _forward(q, k, v, cu):
    return torch.cat([torch.einsum('hij,jhd->ihd', p, v) for _, p, _, v in _runs(q, k, v, cu)])


def _backward(g, q, k, v, cu):  # a kernel sits below autograd, so by hand
    parts = []
    for at, p, k_, v_ in _runs(q, k, v, cu):
        dp = torch.einsum('ihd,jhd->hij', g[at], v_)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        dk, dv = (torch.einsum('hij,ihd->jhd', a, b[at]) for a, b in ((ds, q), (p, g)))
        parts.append([torch.einsum('hij,jhd->ihd', ds, k_), dk, dv])
    dq, dk, dv = map(torch.cat, zip(*parts, strict=True))
    return dq, *(x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))


@pytest.fixture(scope='module', autouse=True)
def kernel():
    "Stand-ins for FlashAttention on the CPU, forward and backward."

    def causal(window_size):
        assert tuple(window_size) == (-1, 0)

    @varlen._varlen_attn.register_kernel('cpu')
    def forward(
        q, k, v, cu, cu_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *rest
    ):
        causal(window_size)
        assert max_q >= cu.diff().max() and cu.dtype == torch.int32
        return (
            _forward(q, k, v, cu),
            torch.zeros(q.shape[1], len(q)),
            torch.zeros(2, dtype=torch.uint64),
        )

    @varlen._varlen_attn_backward.register_kernel('cpu')
    def backward(
        g, q, k, v, out, lse, cu, cu_k, max_q, max_k, is_causal, rng, scale=None, window_size=None
    ):
        causal(window_size)
        return _backward(g, q, k, v, cu)


class Row:
    def __init__(self, lens, seed):
        g = torch.Generator().manual_seed(seed)
        self.ids = torch.randint(0, 320, (sum(lens),), generator=g).numpy()
        self.weights = torch.randint(0, 2, (sum(lens),), generator=g).numpy()
        self.segments = torch.arange(1, len(lens) + 1).repeat_interleave(torch.tensor(lens)).numpy()


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
    torch._dynamo.reset()
    counters.clear()
    fast.compile_blocks(backend='aot_eager')
    assert fast.state_dict().keys() == plain.state_dict().keys()
    loss_and_grads(fast, BATCHES[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for b in BATCHES:
            for x, y in zip(loss_and_grads(fast, b), loss_and_grads(plain, b), strict=True):
                close(x, y)
    assert not counters['graph_break'], dict(counters['graph_break'])
    assert (
        counters['stats']['unique_graphs'] == 2
    )  # a block, and the last one, which works at supervised positions only
