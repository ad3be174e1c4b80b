"""A training step on packed short episodes: mypt, TRL's SFTTrainer, and a plain transformers loop,
on a CPU in float32.

    pip install trl==1.16.0 datasets && python bench/train_step.py

All train the same Llama shape (6 layers, 256 wide, vocabulary 50,304, tied head) with AdamW on
batches of 4 rows of 1,024 tokens, packed from the same episodes, a quarter of their tokens
supervised: first short ones, of about 30 tokens, then long ones, of 200 to 1,000. Steps take
turns within one process, so that whatever else the machine does falls on all alike; medians are
printed and every step is kept in bench/results/train_step.json.

- TRL runs twice: as `SFTConfig` leaves it (`packing=True` means best-fit decreasing and padding-
free; gradient checkpointing is on), and with gradient checkpointing off. Both with `bf16=False`,
masks from an `assistant_masks` column, nothing reported or saved. - plain: `LlamaForCausalLM`
with SDPA, and labels of -100 where nothing is supervised. Its attention crosses episodes, as it
does in everybody's first loop; keeping them apart would only cost it more. - With
MALLOC_MMAP_THRESHOLD_ and MALLOC_TRIM_THRESHOLD_ set to 8589934592, glibc keeps freed memory
instead of handing it back to the system page by page. That helps whoever asks for most fresh
memory; `--kinds short --out train_step_malloc` measures it. - Everybody clips gradients to 1.0
and uses torch's fused AdamW. Everybody's first step is left out.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from pathlib import Path
import numpy as np
import torch
from mypt.data.batches import collate
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT
import itertools

ROOT = Path(__file__).resolve().parent
CFG = ModelConfig(n_layer=6, n_head=4, n_embd=256, block_size=1024, vocab_size=50304)
ROWS, BLOCK = 4, 1024

KINDS = {
    'short': (1500, 18, 42),
    'long': (120, 200, 1000),
}  # episodes, and their least and greatest length


def make_episodes(kind, rng):
    "(ids, mask) of questions and answers, the last fifth to third of each supervised."
    n, least, most = KINDS[kind]
    for _ in range(n):
        length = int(rng.integers(least, most + 1))
        answer = max(3, int(length * rng.uniform(0.18, 0.34)))
        yield rng.integers(0, 50256, length), np.arange(length) >= length - answer


class Row:
    "One packed row, as `mypt.data.dataset` gives it."

    def __init__(self, episodes):
        self.ids, self.weights = (np.concatenate(x) for x in zip(*episodes, strict=False))
        self.segments = np.repeat(np.arange(1, len(episodes) + 1), [len(i) for i, _ in episodes])


def pack(episodes):
    "Rows of up to 1,024 tokens by best-fit decreasing."
    from mypt.data.packing import plan_rows

    order, starts = plan_rows(np.array([len(i) for i, _ in episodes]), BLOCK)
    return [Row([episodes[j] for j in order[a:b]]) for a, b in itertools.pairwise(starts)]


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = dict(
        hidden_size=CFG.n_embd,
        intermediate_size=CFG.mlp_hidden,
        num_hidden_layers=CFG.n_layer,
        num_attention_heads=CFG.n_head,
        num_key_value_heads=CFG.n_head,
    )
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=CFG.vocab_size,
            max_position_embeddings=BLOCK,
            use_cache=False,
            rms_norm_eps=CFG.norm_eps,
            tie_word_embeddings=True,
            **shape,
        )
    ).train()


def stepper(model, loss_of, batches):
    "A function that takes one optimizer step and returns the number of tokens in it."
    opt = torch.optim.AdamW(
        model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.05, fused=True
    )

    def step():
        batch = collate(next(batches), length=BLOCK)
        loss_of(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        opt.zero_grad()
        return batch.n_tokens

    return step


def mypt_step(batches):
    torch.manual_seed(0)
    model = GPT(CFG).train()
    return stepper(model, model.loss, batches)


def plain_step(batches):
    model = llama()

    def loss_of(b):
        labels = torch.where(b.weights > 0, b.targets, -100)  # already shifted by `collate`
        return model(b.ids, labels=labels, shift_labels=labels).loss

    return stepper(model, loss_of, batches)


def trl_trainer(episodes, steps, checkpointing, out, each):
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
        max_length=BLOCK,
        per_device_train_batch_size=ROWS,
        max_steps=steps,
        learning_rate=1e-4,
        lr_scheduler_type='constant',
        optim='adamw_torch_fused',
        use_cpu=True,
        bf16=False,
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
        model=llama(), args=args, train_dataset=data, processing_class=tok, callbacks=[Each()]
    )
    collator = trainer.data_collator

    def counting(examples):
        batch = collator(examples)
        seen.append(batch['input_ids'].numel())
        return batch

    trainer.data_collator = counting
    return trainer


def cycle(rows):
    "Batches of four rows, round and round."
    while True:
        for i in range(0, len(rows) - ROWS + 1, ROWS):
            yield rows[i : i + ROWS]


def measure(kind, steps, seed=0):
    "Tokens a second of every contender, step by step in turns."
    rng = np.random.default_rng(seed)
    episodes = list(make_episodes(kind, rng))
    rows = pack(episodes)
    ours, plain = mypt_step(cycle(rows)), plain_step(cycle(rows))
    speed = {'mypt': [], 'plain': []}

    def turn(name, step):
        t = time.perf_counter()
        speed[name].append(step() / (time.perf_counter() - t))

    for name, checkpointing in (('trl', True), ('trl_no_checkpointing', False)):
        times, last = speed.setdefault(name, []), [None]

        def each(tokens):
            if last[0]:
                times.append(tokens / (time.perf_counter() - last[0]))
            turn('mypt', ours)
            turn('plain', plain)
            last[0] = time.perf_counter()

        with tempfile.TemporaryDirectory() as out:
            trl_trainer(episodes, steps + 1, checkpointing, out, each).train()
    weights, tokens = sum(r.weights.sum() for r in rows), sum(len(r.ids) for r in rows)
    data = dict(
        episodes=len(episodes),
        rows=len(rows),
        fill=tokens / len(rows) / BLOCK,
        supervised=float(weights / tokens),
        mean_length=tokens / len(episodes),
    )
    return {k: v[1:] for k, v in speed.items()}, data  # everybody's first step warms up


def cpu_name():
    try:
        return next(
            line.split(':')[1].strip()
            for line in open('/proc/cpuinfo')
            if line.startswith('model name')
        )
    except (OSError, StopIteration):
        return platform.processor()


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--steps', type=int, default=8, help='TRL steps of each kind')
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--kinds', nargs='+', choices=KINDS, default=list(KINDS))
    p.add_argument('--out', default='train_step', help='name of the file in bench/results')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    import transformers
    import trl

    versions = {m.__name__: m.__version__ for m in (torch, transformers, trl)} | {
        'python': platform.python_version()
    }
    shape = {k: getattr(CFG, k) for k in ('n_layer', 'n_embd', 'vocab_size', 'n_params')} | dict(
        rows=ROWS, block=BLOCK
    )
    result = dict(
        shape=shape,
        machine=cpu_name(),
        threads=a.threads,
        versions=versions,
        date=time.strftime('%Y-%m-%d'),
    )
    for kind in a.kinds:
        speed, data = measure(kind, a.steps)
        med = {k: statistics.median(v) for k, v in speed.items()}
        ratio = {k: med['mypt'] / v for k, v in med.items() if k != 'mypt'}
        for k, v in ratio.items():
            print(
                f'{kind} episodes: mypt {med["mypt"]:.0f} tokens/s, {k} {med[k]:.0f}, ratio {v:.2f}'
            )
        result[kind] = dict(tokens_per_second=med, ratio=ratio, runs=speed, data=data)
    (ROOT / 'results' / f'{a.out}.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(main())
