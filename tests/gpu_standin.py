"""The training path of a GPU, walked on a CPU. FlashAttention is replaced by plain attention below
autograd, forward and backward; `as_on_a_gpu` lets a run choose layout and compilation as it would
on CUDA. All around the kernel is the real code: cumulative lengths, marked sizes, compiled blocks.
What it cannot show: precision, speed, memory.
"""

import itertools
import torch
from collections import Counter
from contextlib import nullcontext
from torch._dynamo.utils import counters
from torch.nn.attention import varlen
from mypt.model import gpt
from mypt.train import loop


def _runs(q, k, v, cu):
    "Slice, probabilities [H, n, n], keys and values [n, H, D] of each run of [N, H, D]."
    k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    for a, b in itertools.pairwise(cu.tolist()):
        hidden = torch.ones(b - a, b - a, dtype=torch.bool).triu(1)
        scores = torch.einsum('ihd,jhd->hij', q[a:b], k[a:b]) * q.shape[-1] ** -0.5
        yield slice(a, b), scores.masked_fill(hidden, -torch.inf).softmax(-1), k[a:b], v[a:b]


def _attend(q, k, v, cu):
    return torch.cat([torch.einsum('hij,jhd->ihd', p, v) for _, p, _, v in _runs(q, k, v, cu)])


def _attend_backward(g, q, k, v, cu):
    parts = []
    for at, p, k_, v_ in _runs(q, k, v, cu):
        dp = torch.einsum('ihd,jhd->hij', g[at], v_)
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
        dk = torch.einsum('hij,ihd->jhd', ds, q[at])
        dv = torch.einsum('hij,ihd->jhd', p, g[at])
        parts.append((torch.einsum('hij,jhd->ihd', ds, k_), dk, dv))
    dq, dk, dv = map(torch.cat, zip(*parts, strict=True))
    return dq, *(x.unflatten(1, (k.shape[1], -1)).sum(2) for x in (dk, dv))


longest_runs = Counter()  # What the kernel was told and what was true, by call


def _check(cu, max_q, window_size):
    assert tuple(window_size) == (-1, 0), 'causal'
    assert cu.dtype == torch.int32
    assert max_q >= cu.diff().max()
    longest_runs[max_q, int(cu.diff().max())] += 1


def register():
    "Let torch's variable-length attention run on a CPU."

    @varlen._varlen_attn.register_kernel('cpu')
    def forward(
        q, k, v, cu, cu_k, max_q, max_k, is_causal=False, scale=None, window_size=None, *rest
    ):
        _check(cu, max_q, window_size)
        lse, state = torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)
        return _attend(q, k, v, cu), lse, state

    @varlen._varlen_attn_backward.register_kernel('cpu')
    def backward(
        g, q, k, v, out, lse, cu, cu_k, max_q, max_k, is_causal, rng, scale=None, window_size=None
    ):
        _check(cu, max_q, window_size)
        return _attend_backward(g, q, k, v, cu)


def as_on_a_gpu(monkeypatch, backend='aot_eager'):
    """Runs decide on compiling as with CUDA; where a model is compiled, it also takes the layout
    of half precision. The arithmetic stays float32, so losses can be compared.
    """
    register()
    gpu, wants, compile_blocks = torch.device('cuda'), loop.wants_compiled, gpt.compile_blocks

    def compile_with_layout(model, tokens=0):
        model.attention = 'varlen'
        compile_blocks(model, tokens, backend=backend)

    monkeypatch.setattr(loop, 'autocast', lambda *_: nullcontext())
    monkeypatch.setattr(loop, 'wants_compiled', lambda cfg, device: wants(cfg, gpu))
    monkeypatch.setattr(loop, 'compile_blocks', compile_with_layout)


def fresh_graphs():
    "Forget all graphs and counts."
    torch._dynamo.reset()
    counters.clear()


def n_graphs() -> int:
    "Graphs compiled since `fresh_graphs`; none of them was broken in two."
    assert not counters['graph_break'], dict(counters['graph_break'])
    return counters['stats']['unique_graphs']


class Row:
    "A packed row of random episodes, as a dataset gives it."

    def __init__(self, lens, seed, supervised=0.5):
        g = torch.Generator().manual_seed(seed)
        n = sum(lens)
        self.ids = torch.randint(0, 320, (n,), generator=g).numpy()
        self.weights = (torch.rand(n, generator=g) < supervised).float().numpy()
        self.segments = torch.arange(1, len(lens) + 1).repeat_interleave(torch.tensor(lens)).numpy()
