"""A training step on packed episodes: mypt, TRL's SFTTrainer, and a plain transformers loop, on a
CPU, in float32 and in bfloat16.

    pip install trl==1.16.0 datasets && python bench/train_step.py [--shape 135m] [--json]

All train the same Llama shape with AdamW on batches of rows packed from the same episodes, a
quarter of their tokens supervised. `toy` is 6 layers, 256 wide, vocabulary 50,304, tied head, 4
rows of 1,024 tokens: first short episodes, of about 30 tokens, then long ones, of 200 to 1,000.
`135m` is a real shape with random weights: 30 layers, 576 wide, 9 query and 3 key heads, MLP 1,536,
vocabulary 49,152, tied head, 2 rows of 512 tokens, episodes of 100 to 500. Steps take turns within
one process, so that whatever else the machine does falls on all alike; medians are printed and
every step is kept in bench/results.

- TRL runs twice on the toy: as `SFTConfig` leaves it (`packing=True` means best-fit decreasing and
padding-free; gradient checkpointing is on), and with gradient checkpointing off; on the real shape
only the latter. Masks from an `assistant_masks` column, nothing reported or saved. - plain:
`LlamaForCausalLM` with SDPA, and labels of -100 where nothing is supervised. Its attention crosses
episodes, as it does in everybody's first loop; keeping them apart would only cost it more. -
bfloat16 is autocast over float32 weights for all: `bf16=True` for TRL, `torch.autocast` for plain,
and for mypt the faster of its two ways, chosen as a run chooses it. It is measured on CPUs that
have instructions for it; `--precisions fp32 bf16` measures it anywhere. - With
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set to 8589934592, glibc keeps freed memory
instead of handing it back to the system page by page. That helps whoever asks for most fresh
memory; `--kinds short --out train_step_malloc` measures it. - Everybody clips gradients to 1.0
and uses torch's fused AdamW. Everybody's first step is left out.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple
import numpy as np
import torch
from mypt.data.batches import collate
from mypt.model.config import ModelConfig, TrainConfig
from mypt.model.gpt import GPT
from mypt.model.half import has_bf16
from mypt.train.precision import BF16_PRODUCTS, autocast, pick_precision
from shapes import SMOLLM2_135M

ROOT = Path(__file__).resolve().parent
CPU = torch.device('cpu')


class Shape(NamedTuple):
    "A model, its batches, and whom it is compared with."

    cfg: ModelConfig
    rows: int
    kinds: tuple[str, ...]  # of episodes
    checkpointing: tuple[bool, ...]  # of TRL's runs
    steps: int  # of TRL, per run


TOY = ModelConfig(n_layer=6, n_head=4, n_embd=256, block_size=1024, vocab_size=50304)
SHAPES = {
    'toy': Shape(TOY, 4, ('short', 'long'), (True, False), 8),
    '135m': Shape(SMOLLM2_135M, 2, ('mid',), (False,), 4),
}
KINDS = {
    'short': (1500, 18, 42),
    'long': (120, 200, 1000),
    'mid': (60, 100, 500),
}  # episodes, and their least and greatest length


def make_episodes(kind, vocab_size, rng):
    "(ids, mask) of questions and answers, the last fifth to third of each supervised."
    n, least, most = KINDS[kind]
    for _ in range(n):
        length = int(rng.integers(least, most + 1))
        answer = max(3, int(length * rng.uniform(0.18, 0.34)))
        yield rng.integers(0, vocab_size - 48, length), np.arange(length) >= length - answer


class Row:
    "One packed row, as `mypt.data.dataset` gives it."

    def __init__(self, episodes):
        self.ids, self.weights = (np.concatenate(x) for x in zip(*episodes, strict=False))
        self.segments = np.repeat(np.arange(1, len(episodes) + 1), [len(i) for i, _ in episodes])


def pack(episodes, block):
    "Rows of up to `block` tokens by best-fit decreasing."
    from mypt.data.packing import plan_rows

    order, starts = plan_rows(np.array([len(i) for i, _ in episodes]), block)
    return [Row([episodes[j] for j in order[a:b]]) for a, b in itertools.pairwise(starts)]


def llama(cfg):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(
        hidden_size=cfg.n_embd,
        intermediate_size=cfg.mlp_hidden,
        num_hidden_layers=cfg.n_layer,
        num_attention_heads=cfg.n_head,
        num_key_value_heads=cfg.kv_heads,
    )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=cfg.vocab_size,
            max_position_embeddings=cfg.block_size,
            use_cache=False,
            rms_norm_eps=cfg.norm_eps,
            tie_word_embeddings=True,
            **shape,
        )
    ).train()


def stepper(model, loss_of, batches):
    "A function that takes one optimizer step in a context and returns the number of its tokens."
    opt = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )

    def step(context):
        batch = collate(next(batches), length=batches.block)
        with context:
            loss = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        return batch.n_tokens

    return step


def mypt_steps(shape, batches, precisions):
    "Precision → a step of mypt; all of the same model."
    torch.manual_seed(0)
    model = GPT(shape.cfg).train()
    step = stepper(model, model.loss, batches)
    ways = {'fp32': 'fp32'}
    if 'bf16' in precisions and has_bf16(CPU):
        train = TrainConfig(batch_size=shape.rows, amp_dtype='bf16')
        ways['bf16'] = pick_precision(model, train)
    else:
        ways['bf16'] = BF16_PRODUCTS

    def run(way):
        model.full_attention = way == BF16_PRODUCTS
        return step(autocast(way, CPU))

    return {p: lambda way=ways[p]: run(way) for p in precisions}, ways


def plain_steps(shape, batches, precisions):
    "Precision → a step of a plain loop; all of the same model."
    model = llama(shape.cfg)

    def loss_of(b):
        labels = torch.where(b.weights > 0, b.targets, -100)  # already shifted by `collate`
        return model(b.ids, labels=labels, shift_labels=labels).loss

    step = stepper(model, loss_of, batches)

    def run(precision):
        context = torch.autocast('cpu', torch.bfloat16) if precision == 'bf16' else nullcontext()
        return step(context)

    return {p: lambda p=p: run(p) for p in precisions}


def trl_trainer(shape, episodes, steps, checkpointing, bf16, out, each):
    "An SFTTrainer that calls `each(tokens)` after every step."
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({'<eos>': 0}, '<eos>'))  # not used: the data is ids already
    tok = PreTrainedTokenizerFast(tokenizer_object=words, eos_token='<eos>', pad_token='<eos>')
    ids, masks = zip(*((i.tolist(), m.astype(int).tolist()) for i, m in episodes), strict=False)
    data = Dataset.from_dict(dict(input_ids=ids, assistant_masks=masks))
    off = {} if checkpointing else dict(gradient_checkpointing=False)
    args = SFTConfig(
        output_dir=out,
        packing=True,
        max_length=shape.cfg.block_size,
        per_device_train_batch_size=shape.rows,
        max_steps=steps,
        learning_rate=1e-4,
        lr_scheduler_type='constant',
        optim='adamw_torch_fused',
        use_cpu=True,
        bf16=bf16,
        report_to='none',
        save_strategy='no',
        disable_tqdm=True,
        dataloader_pin_memory=False,
        **off,
    )
    seen = []

    class Each(TrainerCallback):
        def on_step_end(self, *a, **kw):
            each(seen.pop(0))

    trainer = SFTTrainer(
        model=llama(shape.cfg),
        args=args,
        train_dataset=data,
        processing_class=tok,
        callbacks=[Each()],
    )
    collator = trainer.data_collator

    def counting(examples):
        batch = collator(examples)
        seen.append(batch['input_ids'].numel())
        return batch

    trainer.data_collator = counting
    return trainer


class Cycle:
    "Batches of rows, round and round."

    def __init__(self, rows, per_batch, block):
        self.rows, self.per_batch, self.block, self.at = rows, per_batch, block, 0

    def __next__(self):
        if self.at + self.per_batch > len(self.rows):
            self.at = 0
        self.at += self.per_batch
        return self.rows[self.at - self.per_batch : self.at]


def measure(shape, kind, steps, precisions, seed=0):
    "Tokens a second of every contender, step by step in turns."
    cfg, rng = shape.cfg, np.random.default_rng(seed)
    episodes = list(make_episodes(kind, cfg.vocab_size, rng))
    rows = pack(episodes, cfg.block_size)
    ours, ways = mypt_steps(shape, Cycle(rows, shape.rows, cfg.block_size), precisions)
    plain = plain_steps(shape, Cycle(rows, shape.rows, cfg.block_size), precisions)
    mine = {label('mypt', p): step for p, step in ours.items()}
    mine |= {label('plain', p): step for p, step in plain.items()}
    speed = {name: [] for name in mine}

    def turn(name):
        t = time.perf_counter()
        speed[name].append(mine[name]() / (time.perf_counter() - t))

    for precision, checkpointing in itertools.product(precisions, shape.checkpointing):
        name = label('trl' if checkpointing else 'trl_no_checkpointing', precision)
        times, last = speed.setdefault(name, []), [None]

        def each(tokens):
            if last[0]:
                times.append(tokens / (time.perf_counter() - last[0]))
            for other in mine:
                turn(other)
            last[0] = time.perf_counter()

        bf16 = precision == 'bf16'
        with tempfile.TemporaryDirectory() as out:
            trl_trainer(shape, episodes, steps + 1, checkpointing, bf16, out, each).train()
    weights, tokens = sum(r.weights.sum() for r in rows), sum(len(r.ids) for r in rows)
    data = dict(
        episodes=len(episodes),
        rows=len(rows),
        fill=tokens / len(rows) / cfg.block_size,
        supervised=float(weights / tokens),
        mean_length=tokens / len(episodes),
        bf16_of_mypt=ways['bf16'] if 'bf16' in precisions else None,
    )
    return {k: v[1:] for k, v in speed.items()}, data  # everybody's first step warms up


def label(who, precision):
    return who if precision == 'fp32' else f'{who}_{precision}'


def cpu_name():
    try:
        return next(
            line.split(':')[1].strip()
            for line in open('/proc/cpuinfo')
            if line.startswith('model name')
        )
    except (OSError, StopIteration):
        return platform.processor()


def ratios(med):
    "Every contender's share: mypt's speed in the same precision over its own; mypt's own bfloat16."
    out = {}
    for name, speed in med.items():
        suffix = '_bf16' if name.endswith('_bf16') else ''
        ours = f'mypt{suffix}'
        if name != ours:
            out[name] = med[ours] / speed
    if 'mypt_bf16' in med:
        out['mypt_bf16_over_fp32'] = med['mypt_bf16'] / med['mypt']
    return out


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--shape', choices=SHAPES, default='toy')
    p.add_argument('--steps', type=int, help='TRL steps of each kind')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--kinds', nargs='+', choices=KINDS, help='of episodes')
    p.add_argument(
        '--precisions',
        nargs='+',
        choices=['fp32', 'bf16'],
        help='fp32, and bf16 where the CPU has instructions for it',
    )
    p.add_argument('--out', help='name of the file in bench/results')
    p.add_argument('--json', action='store_true', help='print the result as JSON')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    import transformers
    import trl

    shape = SHAPES[a.shape]
    precisions = a.precisions or (['fp32', 'bf16'] if has_bf16(CPU) else ['fp32'])
    versions = {m.__name__: m.__version__ for m in (torch, transformers, trl)} | {
        'python': platform.python_version()
    }
    sizes = {k: getattr(shape.cfg, k) for k in ('n_layer', 'n_embd', 'vocab_size', 'n_params')}
    result: dict = dict(
        shape=sizes | dict(rows=shape.rows, block=shape.cfg.block_size),
        machine=cpu_name(),
        has_bf16=has_bf16(CPU),
        threads=a.threads,
        versions=versions,
        date=time.strftime('%Y-%m-%d'),
    )
    for kind in a.kinds or shape.kinds:
        speed, data = measure(shape, kind, a.steps or shape.steps, precisions)
        med = {k: statistics.median(v) for k, v in speed.items()}
        result[kind] = dict(tokens_per_second=med, ratio=ratios(med), runs=speed, data=data)
        if a.json:
            continue
        for k, v in result[kind]['ratio'].items():
            print(f'{kind} episodes: {k} {med.get(k, med["mypt"]):.0f} tokens/s, ratio {v:.2f}')
    out = a.out or ('train_step' if a.shape == 'toy' else f'train_step_{a.shape}')
    (ROOT / 'results' / f'{out}.json').write_text(json.dumps(result, indent=1) + '\n')
    if a.json:
        print(json.dumps(result, indent=1))


if __name__ == '__main__':
    sys.exit(main())
