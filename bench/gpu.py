"""Everything that is to be known of one GPU, in one call of less than eight minutes: training,
memory, a peer, decoding, and what each trick is worth.

python bench/gpu.py              # on a CPU: the same lines at tiny size, to see that it runs

1. agreement: variable-length attention in bfloat16 against the plain masked reference in
float32, values and gradients. 2. training at 750M, bfloat16 over float32 weights, packed and
isolated: rows of 1,024 with chat of about 30 tokens, rows of 4,096 with chat of 30 to 3,000
tokens. Tokens a second count real ones; MFU counts what had to be computed: attention inside
episodes only, the head at supervised positions only (mypt.train.cost). "As usual" counts the head
everywhere. 3. a peer: TRL's SFTTrainer where it is installed, in its best configuration (packing,
variable-length attention, fused loss, compiled); else transformers' Llama, its layers compiled,
with the same attention kernel. 4. decoding, one text and sixteen, in bfloat16: the share of memory
bandwidth that reading weights and cache takes. 5. each trick taken away, beside what the roofline
predicts for that. Graphs are forgotten between any two of these, so none sees another's shapes.

What matters most comes first: past 400 seconds nothing new is begun, and JSON is written after
every line. `--no-peer` and `--no-tricks` leave parts out.

Prints one line each and, with a GPU, writes bench/results/gpu.json.

"""

import argparse
import gc
import itertools
import json
import platform
import statistics
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
import numpy as np
import torch
from mypt.data.batches import collate
from mypt.model.config import ModelConfig, load_config
from mypt.model.attention import Segments, attention
from mypt.model import layers
from mypt.model.gpt import GPT, compile_blocks
from mypt.model.loss import LOGIT_CHUNK
from mypt.data.packing import plan_rows
from mypt.train.cost import A100, H100, H200, Machine, decode_bound, step_parts, utilization

ROOT, CUDA = Path(__file__).resolve().parent, torch.cuda.is_available()
DEVICE, START = torch.device('cuda' if CUDA else 'cpu'), time.monotonic()
LIMIT = 400  # seconds after which nothing new is begun


def machine():
    name = torch.cuda.get_device_name() if CUDA else ''
    return next(
        (m for m in (H200, H100, A100) if m.name in name),
        Machine('unknown, taken as 1e11 FLOP/s and 2e10 B/s', 1e11, 2e10),
    )


def shape(block):
    if CUDA:
        return load_config(
            'pretrain' if block == 1024 else 'phase3_chat_sft', ['dropout=0.0']
        ).model
    return ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=block, vocab_size=2048)


class Row:
    "One packed row, as `mypt.data.dataset` gives it."

    def __init__(self, episodes):
        self.ids, self.weights = (np.concatenate(x) for x in zip(*episodes, strict=False))
        self.segments = np.repeat(np.arange(1, len(episodes) + 1), [len(i) for i, _ in episodes])


def batches(block, rows, least, most, n, vocab, seed=0):
    """`n` packed batches of chat, a third of whose tokens are supervised; and the lengths of each
    one's episodes.
    """
    rng, out = np.random.default_rng(seed), []
    lens = (
        np.exp(
            rng.uniform(np.log(least), np.log(most + 1), 4 * n * rows * block // least // 8 + 64)
        )
        .astype(int)
        .clip(least, most)
    )
    order, starts = plan_rows(lens, block)
    packs = [lens[order[a:b]].tolist() for a, b in itertools.pairwise(starts)][: n * rows]
    while len(packs) < n * rows:
        packs += packs
    for i in range(n):
        group = packs[i * rows : (i + 1) * rows]
        eps = [[(rng.integers(0, vocab, k), np.arange(k) >= k - k // 3) for k in p] for p in group]
        b = collate([Row(e) for e in eps], length=block)
        out.append((b.pin() if CUDA else b, [k for p in group for k in p]))
    return out


def wait():
    if CUDA:
        torch.cuda.synchronize()


def amp():
    return torch.autocast('cuda', torch.bfloat16, enabled=CUDA)


def measure(step, data, warm=3):
    "Median seconds of a step after `warm` ones, and greatest memory in GiB."
    times = []
    for i, (b, _) in enumerate(data):
        if i == warm and CUDA:
            torch.cuda.reset_peak_memory_stats()
        wait()
        t = time.perf_counter()
        step(b)
        wait()
        if i >= warm:
            times.append(time.perf_counter() - t)
    return statistics.median(times), torch.cuda.max_memory_allocated() / 2**30 if CUDA else 0.0


TRICKS = {  # Name of what is taken away: the arguments of `ours` that take it away
    'blocks compiled': dict(compiled=False),
    'tables from the host': dict(host_tables=False),
    'large slices of logits': dict(chunk=2**24),
    'the longest run told to the kernel': dict(longest=False),
    'one product for what reads the same': dict(joined=False),
    'graphs of fixed shape': dict(fixed=False),
}
NOT_DONE = ('residual stream and norms in bfloat16', 'weights to bfloat16 once a step')
# How near to datasheet speed things are assumed to run, from cautious to hopeful
ASSUMED = {
    'cautious': dict(products=0.62, attention=0.35, memory=0.75),
    'hopeful': dict(products=0.75, attention=0.50, memory=0.90),
}


def step_seconds(parts, m, products, attention, memory):
    "A step's time where each part runs at a share of datasheet speed."
    total = 0.0
    for p in parts:
        speed = attention if p.name == 'attention' else products
        total += max(p.flops / m.flops / speed, p.bytes / m.bandwidth / memory)
    return total


def predicted_mfu(parts, m):
    "Lowest and highest share of peak under `ASSUMED`: a prediction, not a measurement."
    return {
        name: utilization(parts, m, step_seconds(parts, m, **speeds))
        for name, speeds in ASSUMED.items()
    }


def predicted_worth(cfg, lens, supervised, tokens, m):
    """How many times longer a step is predicted to take without each trick; of those not done, how
    many times longer it takes now than it would with them. Rests on `ASSUMED['cautious']`.
    """
    parts = step_parts(cfg, lens, supervised)
    now = step_seconds(parts, m, **ASSUMED['cautious'])
    by_name = {p.name: p for p in parts}
    speed = m.bandwidth * ASSUMED['cautious']['memory']
    pointwise = by_name['norms, angles, gates'].bytes
    C, L = cfg.n_embd, cfg.n_layer
    more_slices = supervised * cfg.vocab_size * (1 / 2**24 - 1 / LOGIT_CHUNK['cuda'])
    # A run of n tokens needs ⌈n/128⌉ thread blocks a head and gets ⌈T/128⌉; an idle one takes
    # about a microsecond of one of 132 processors, forward and twice backward
    row = min(cfg.block_size, tokens)
    idle = sum(-(-row // 128) - -(-n // 128) for n in lens) * cfg.n_head * 3 * L
    extra = {
        'blocks compiled': 1.5 * pointwise / speed,  # unfused, two and a half times the traffic
        'tables from the host': 1e-3,  # two waits, each as long as the queue of launches
        'large slices of logits': more_slices * 8 * cfg.vocab_size * C / speed,
        'the longest run told to the kernel': idle * 1e-6 / 132,
        'one product for what reads the same': 0.02
        * by_name['products of the blocks'].flops
        / m.flops,
        'graphs of fixed shape': 0.0,  # nothing is known that it should cost
        'residual stream and norms in bfloat16': 3 * L * tokens * 5 * C * 2 / speed,
        'weights to bfloat16 once a step': 0.0,  # of one micro-batch; 6 bytes a weight of each more
    }
    worth = {name: (now + seconds) / now for name, seconds in extra.items()}
    return worth | {n: now / (now - extra[n]) for n in NOT_DONE}


def ours(
    cfg, tokens, compiled=True, host_tables=True, chunk=None, longest=True, joined=True, fixed=True
):
    torch.manual_seed(0)
    model = GPT(cfg).to(DEVICE).train()
    layers.JOIN_PRODUCTS = joined
    if compiled and CUDA:
        compile_blocks(model, tokens if fixed else 0)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)

    def step(b):
        b = b.to(DEVICE)
        if not host_tables:
            b.runs = b.supervised = None
        if not longest:
            b.longest = None
        old, LOGIT_CHUNK['cuda'] = LOGIT_CHUNK['cuda'], chunk or LOGIT_CHUNK['cuda']
        with amp():
            loss = model.loss(b, denom=float(len(b.supervised)) if host_tables else None)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        LOGIT_CHUNK['cuda'] = old
        assert torch.isfinite(norm) and torch.isfinite(loss)

    return step


def llama(cfg):
    """transformers' Llama of the same shape, its layers compiled, its attention by the same
    variable-length kernel; None where it is not installed.
    """
    try:
        from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    where = {}

    def packed(module, q, k, v, mask, **_):
        layout = where['layout']
        return (
            layout.put(attention(*(layout.take(x.transpose(1, 2)) for x in (q, k, v)), layout)),
            None,
        )

    AttentionInterface.register('packed', packed)
    conf = LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.n_embd,
        intermediate_size=cfg.mlp_hidden,
        num_hidden_layers=cfg.n_layer,
        num_attention_heads=cfg.n_head,
        max_position_embeddings=cfg.block_size,
        tie_word_embeddings=True,
        use_cache=False,
        rms_norm_eps=cfg.norm_eps,
        attn_implementation='packed',
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(conf).to(DEVICE).train()
    if CUDA:
        torch._dynamo.config.recompile_limit = 64
        for layer in model.model.layers:
            layer.compile()
    opt = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)

    def step(b):
        b = b.to(DEVICE)
        with amp():
            where['layout'] = layout = Segments.of(
                b.segments, b.ids.shape, half=CUDA, runs=b.runs, longest=b.longest
            )
            if layout.cu is not None:
                torch._dynamo.maybe_mark_dynamic(layout.cu, 0)
                torch._dynamo.maybe_mark_dynamic(layout.span, 0)
            labels = torch.where(b.weights > 0, b.targets, -100)
            loss = model(b.ids, position_ids=b.positions, labels=labels, shift_labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()

    return step


def trl(cfg, data, out):
    "Seconds a step and memory of SFTTrainer on the same episodes; None where TRL is not installed."
    try:
        from datasets import Dataset
        from tokenizers import Tokenizer, models
        from transformers import (
            LlamaConfig,
            LlamaForCausalLM,
            PreTrainedTokenizerFast,
            TrainerCallback,
        )
        from trl import SFTConfig, SFTTrainer
    except ImportError:
        return None
    conf = LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.n_embd,
        intermediate_size=cfg.mlp_hidden,
        num_hidden_layers=cfg.n_layer,
        num_attention_heads=cfg.n_head,
        max_position_embeddings=cfg.block_size,
        tie_word_embeddings=True,
        use_cache=False,
    )
    best = 'flash_attention_2' if find_spec('flash_attn') else 'kernels-community/flash-attn2'
    try:
        model = LlamaForCausalLM._from_config(conf, attn_implementation=best)
    except Exception as e:
        return print(
            f'TRL: {best} is not to be had here ({type(e).__name__}); the peer is the plain Llama'
        )
    rows = [
        (b.ids[r][b.segments[r] == s], b.weights[r].roll(1)[b.segments[r] == s])
        for b, _ in data
        for r in range(len(b.ids))
        for s in range(1, int(b.segments[r].max()) + 1)
    ]
    words = Tokenizer(models.WordLevel({'<eos>': 0}, '<eos>'))
    tok = PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<eos>', pad_token='<eos>')
    ds = Dataset.from_dict(
        dict(
            input_ids=[i.tolist() for i, _ in rows],
            assistant_masks=[(w > 0).int().tolist() for _, w in rows],
        )
    )
    args = SFTConfig(
        output_dir=out,
        packing=True,
        max_length=cfg.block_size,
        per_device_train_batch_size=len(data[0][0].ids),
        max_steps=len(data),
        bf16=True,
        optim='adamw_torch_fused',
        gradient_checkpointing=False,
        report_to='none',
        save_strategy='no',
        disable_tqdm=True,
        use_liger_kernel=bool(find_spec('liger_kernel')),
        torch_compile=True,
    )
    times = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *a, **k):
            wait()
            times.append(-time.perf_counter())

        def on_step_end(self, *a, **k):
            wait()
            times[-1] += time.perf_counter()

    torch.cuda.reset_peak_memory_stats()
    SFTTrainer(
        model=model, args=args, train_dataset=ds, processing_class=tok, callbacks=[Clock()]
    ).train()
    return statistics.median(times[3:]), torch.cuda.max_memory_allocated() / 2**30


def agreement():
    """Greatest difference of values and gradients, over the greatest value, between bfloat16 in
    runs and the float32 reference.
    """
    seg = torch.tensor([1] * 100 + [2] * 7 + [3] * 300 + [4] * 90 + [0] * 15, device=DEVICE)[None]
    kind = torch.bfloat16 if CUDA else torch.float32
    q, k, v, g = (torch.randn(1, 512, 4, 64, device=DEVICE) for _ in range(4))
    real = (seg > 0)[..., None, None]

    def run(dtype, layout):
        xs = [x.to(dtype).requires_grad_() for x in (q, k, v)]
        out = layout.put(attention(*map(layout.take, xs), layout)) * real
        return out.detach(), *torch.autograd.grad((out * g.to(dtype)).sum(), xs)

    fast, plain = (
        run(kind, Segments.of(seg, (1, 512), half=CUDA)),
        run(torch.float32, Segments.of(seg, (1, 512), 'reference')),
    )
    return max(
        float((a.float() - b).abs().max() / b.abs().max())
        for a, b in zip(fast, plain, strict=False)
    )


def decode(cfg, m, batch):
    "Tokens a second, and their share of what bandwidth allows."
    from mypt.inference.generate import generate

    kind = torch.bfloat16 if CUDA else torch.float32
    model = GPT(cfg).to(DEVICE, kind).eval()
    prompts, new = (torch.randint(0, cfg.vocab_size, (batch, 256)).tolist(), 256 if CUDA else 16)
    from mypt.data.tokenizer import get_tokenizer

    tok, times = get_tokenizer('byte'), []
    for _ in range(4):
        wait()
        t = time.perf_counter()
        generate(model, tok, prompts, new, stop=frozenset())
        wait()
        times.append(time.perf_counter() - t)
    speed = batch * new / statistics.median(times[1:])
    return speed, speed / decode_bound(cfg, m, 256 + new // 2, batch, 2 if CUDA else 4)


def profile(step, data):
    "Share of a step's GPU time by kind of kernel."
    from torch.profiler import ProfilerActivity, profile as record

    with record(activities=[ProfilerActivity.CUDA if CUDA else ProfilerActivity.CPU]) as p:
        step(data[0][0])
        wait()
    kinds = {
        'attention': ('flash', 'fmha'),
        'products': ('gemm', 'cutlass', 'nvjet', 'mm', 'sm90_x'),
        'fused': ('triton',),
        'optimizer': ('adam', 'multi_tensor'),
        'copies': ('memcpy', 'memset', 'copy'),
    }
    sums = {}
    for e in p.key_averages():
        t = getattr(e, 'self_device_time_total', 0) if CUDA else e.self_cpu_time_total
        kind = next(
            (k for k, names in kinds.items() if any(n in e.key.lower() for n in names)), 'other'
        )
        sums[kind] = sums.get(kind, 0) + t
    total = sum(sums.values()) or 1
    return {k: v / total for k, v in sorted(sums.items(), key=lambda kv: -kv[1])}


class Workload:
    "One length of rows: its model, its batches and what is known of them."

    def __init__(self, block, rows, least, most, steps, m):
        self.block, self.m, self.cfg = block, m, shape(block)
        rows, steps = (rows, steps) if CUDA else (2, 5)
        self.data = batches(block, rows, least, most, steps, self.cfg.vocab_size)
        self.parts = [step_parts(self.cfg, lens, b.n_supervised) for b, lens in self.data]
        self.usual = [step_parts(self.cfg, lens, b.n_tokens) for b, lens in self.data]
        self.tokens = statistics.mean(b.n_tokens for b, _ in self.data)
        self.padded = self.data[0][0].ids.numel()
        batch, lens = self.data[len(self.data) // 2]
        self.line = dict(
            tokens=self.tokens,
            fill=self.tokens / self.padded,
            predicted_mfu=predicted_mfu(self.parts[len(self.parts) // 2], m),
            predicted_worth=predicted_worth(self.cfg, lens, batch.n_supervised, self.padded, m),
            measured_worth={},
        )

    def report(self, name, seconds, gib):
        mid = len(self.parts) // 2
        speed = self.tokens / seconds
        mfu, usual = (utilization(x[mid], self.m, seconds) for x in (self.parts, self.usual))
        self.line[name] = dict(
            tokens_per_second=speed, gib=gib, mfu=mfu, mfu_as_usual=usual, step=seconds
        )
        print(
            f'{self.block} {name}: {speed:,.0f} tokens/s, MFU {mfu:.1%} ({usual:.1%} as usual), '
            f'{gib:.1f} GiB'
        )

    def measure(self, name, **how):
        "A run of ours from no graphs."
        torch._dynamo.reset()
        step = ours(self.cfg, self.padded, **how)
        self.report(name, *measure(step, self.data))
        if name == 'mypt':
            self.line['kernels'] = profile(step, self.data)
        del step
        free_memory()

    def measure_peer(self):
        torch._dynamo.reset()
        with tempfile.TemporaryDirectory() as out:
            got = trl(self.cfg, self.data, out) if CUDA else None
        step = None if got else llama(self.cfg)
        if got:
            self.report('TRL', *got)
        elif step:
            self.report('transformers', *measure(step, self.data))
        del step
        free_memory()
        if peer := self.line.get('TRL') or self.line.get('transformers'):
            mine = self.line['mypt']
            memory = f', {mine["gib"] / peer["gib"]:.2f} of its memory' if CUDA else ''
            ratio = mine['tokens_per_second'] / peer['tokens_per_second']
            print(f"{self.block}: {ratio:.2f} times the peer's tokens a second{memory}")

    def measure_trick(self, name):
        self.measure(f'without: {name}', **TRICKS[name])
        worth = self.line[f'without: {name}']['step'] / self.line['mypt']['step']
        self.line['measured_worth'][name] = worth
        said = self.line['predicted_worth'][name]
        print(f'{self.block} {name}: worth {worth:.2f}, predicted {said:.2f}')


def free_memory():
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()


def first_lines(m):
    result = dict(
        device=torch.cuda.get_device_name() if CUDA else platform.machine(),
        machine=m._asdict(),
        versions=dict(torch=torch.__version__, python=platform.python_version()),
        date=time.strftime('%Y-%m-%d'),
        agreement=agreement(),
        assumed=ASSUMED,
    )
    print(
        f'{result["device"]}: attention differs from the reference by {result["agreement"]:.1e} of'
        ' the greatest value'
    )
    return result


def measure_decoding(result, m, n):
    torch._dynamo.reset()
    speed, share = decode(shape(1024), m, n)
    result[f'decode {n}'] = dict(tokens_per_second=speed, bandwidth_share=share)
    print(f'decoding {n} at once: {speed:,.0f} tokens/s, {share:.0%} of what bandwidth allows')


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=12)
    p.add_argument('--no-peer', action='store_true')
    p.add_argument('--no-tricks', action='store_true')
    a = p.parse_args()
    m = machine()
    result = first_lines(m)
    loads = [
        Workload(block, rows, least, most, a.steps, m)
        for block, rows, least, most in ((1024, 16, 18, 42), (4096, 4, 30, 3000))
    ]
    jobs = [(f'{w.block} mypt', partial(w.measure, 'mypt')) for w in loads]
    if not a.no_peer:
        jobs += [(f'{w.block} peer', w.measure_peer) for w in loads]
    jobs += [(f'decode {n}', partial(measure_decoding, result, m, n)) for n in (1, 16)]
    if CUDA and not a.no_tricks:
        jobs += [
            (f'{w.block} {name}', partial(w.measure_trick, name)) for name in TRICKS for w in loads
        ]
    for w in loads:
        result[str(w.block)] = w.line
        low, high = w.line['predicted_mfu'].values()
        print(f'{w.block}: predicted MFU {low:.0%} to {high:.0%}')
    for name, job in jobs:
        if time.monotonic() - START > LIMIT:
            print(f'{name}: no time left')
            continue
        try:
            job()
        except Exception as e:  # what comes after it is still worth knowing
            result[f'{name} failed'] = f'{type(e).__name__}: {e}'
            print(f'{name} failed: {type(e).__name__}: {e}')
        result['seconds'] = time.monotonic() - START
        if CUDA:
            (ROOT / 'results' / 'gpu.json').write_text(json.dumps(result, indent=1) + '\n')
    print(
        f'all in {result["seconds"]:.0f} s'
        + ('' if CUDA else '; no GPU here: the figures mean nothing and are not kept')
    )


if __name__ == '__main__':
    sys.exit(main())
