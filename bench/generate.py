"""Generation with a cache: mypt and transformers' `LlamaForCausalLM.generate`, on a CPU in float32,
greedy.

    pip install 'mypt[bench]' && python bench/generate.py

Both run the same weights, through a saved checkpoint: 6 layers, 256 wide, 4 heads, vocabulary
50,304. Prompts have 64 to 256 tokens, 128 new ones follow; batch 1 (a prompt of 128) and batch
16 (all lengths differ; transformers gets them padded on the left, with an attention mask).
Nobody stops early. Runs take turns within one process, so that whatever else the machine does
falls on both alike; medians are printed and every run is kept in bench/results/generate.json.

Two more take their turns: mypt without reading tokens as columns, and without the 8-bit head.
They say what each is worth.

Then what the second turn of a conversation costs until its first token: a prompt of 272 tokens
of which 256 stood in the first turn, with the engine's memory and without.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from unittest.mock import patch
import torch
import mypt.inference.generate
from mypt.model.checkpoint import load_model, save_checkpoint
from mypt.model.config import ModelConfig
from mypt.inference.engine import Engine
from mypt.inference.generate import generate
from mypt.model.gpt import GPT
from mypt.data.tokenizer import get_tokenizer

ROOT = Path(__file__).resolve().parent
CFG = ModelConfig(n_layer=6, n_head=4, n_embd=256, block_size=512, vocab_size=50304)
NEW = 128


def prompts_of(B, g):
    lens = [128] if B == 1 else torch.linspace(64, 256, B).int().tolist()
    return [torch.randint(0, 50000, (n,), generator=g).tolist() for n in lens]


def contenders(model, tok, hf, prompts):
    "Functions that make `NEW` tokens for every prompt and return them."
    T = max(map(len, prompts))
    ids = torch.tensor([[0] * (T - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])

    def ours():
        return generate(model, tok, prompts, NEW, stop=frozenset())

    def theirs():
        out = hf.generate(
            ids,
            attention_mask=seen,
            max_new_tokens=NEW,
            min_new_tokens=NEW,
            do_sample=False,
            use_cache=True,
            pad_token_id=0,
        )
        return out[:, T:].tolist()

    def without(name):
        "mypt with `name` of mypt.generate switched off."

        def run():
            with patch.object(mypt.inference.generate, name, Off):
                return ours()

        return run

    def engine():
        e = Engine(model, len(prompts))
        requests = [e.submit(p, NEW) for p in prompts]
        while e.busy:
            e.step()
        return [r.generated for r in requests]

    return {
        'mypt': ours,
        'engine': engine,
        'transformers': theirs,
        'without columns': without('Columns'),
        'without the 8-bit head': without('shortlist'),
    }


class Off:
    "Says that it cannot be used here."

    def __new__(cls, model):
        return None

    of = staticmethod(lambda model: None)


def in_turns(fns, rounds):
    "Seconds of every run, and how many rows all agree on."
    times = {k: [] for k in fns}
    for n in range(rounds + 1):  # the first round warms up
        out = {}
        for k, f in fns.items():
            t = time.perf_counter()
            out[k] = f()
            if n:
                times[k].append(time.perf_counter() - t)
    same = [
        all(o[b] == out['transformers'][b] for o in out.values()) for b in range(len(out['mypt']))
    ]
    return times, sum(same)


def second_turn(model, rounds, g):
    "Seconds to the first token of a second turn, and prompt tokens read, with memory and without."
    times, read = dict(reuse=[], afresh=[]), {}

    def draw(n):
        return torch.randint(0, 50000, (n,), generator=g).tolist()

    for _ in range(rounds):
        first, more = draw(248), draw(16)
        for k in times:
            e = Engine(model, slots=2)
            r = e.submit(first, 9)
            while e.busy:
                e.step()
            if k == 'afresh':
                e = Engine(model, slots=2)
            _again, before = e.submit(r.ids + r.generated[:8] + more, 9), e.prefilled
            t = time.perf_counter()
            e.step()
            times[k].append(time.perf_counter() - t)
            read[k] = e.prefilled - before
    return times, read


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
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--threads', type=int, default=os.cpu_count())
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    import transformers

    g, tok = torch.Generator().manual_seed(0), get_tokenizer('gpt2')
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as d:
        save_checkpoint(Path(d) / 'm', GPT(CFG), tok)
        model, tok, _ = load_model(Path(d) / 'm')
        hf = transformers.AutoModelForCausalLM.from_pretrained(
            Path(d) / 'm', dtype=torch.float32
        ).eval()
    hf.generation_config.eos_token_id = None
    batches = {}
    for B in (1, 16):
        times, same = in_turns(contenders(model, tok, hf, prompts_of(B, g)), a.rounds)
        speed = {k: B * NEW / statistics.median(v) for k, v in times.items()}
        ratio = (speed['mypt'] / speed['transformers'], speed['engine'] / speed['transformers'])
        print(
            f'batch {B:2}: mypt {speed["mypt"]:.0f}, engine {speed["engine"]:.0f}, transformers'
            f' {speed["transformers"]:.0f} tokens/s: {ratio[0]:.2f}× and {ratio[1]:.2f}×, {same} of'
            f' {B} rows equal'
        )
        worth = {k: speed['mypt'] / v for k, v in speed.items() if k.startswith('without')}
        print(f'batch {B:2}: ' + ', '.join(f'{k} {v:.2f} times as long' for k, v in worth.items()))
        batches[B] = dict(
            worth=worth,
            tokens_per_second=speed,
            ratio=dict(zip(('mypt', 'engine'), ratio, strict=False)),
            rows_equal=same,
            runs=times,
        )
    times, read = second_turn(model, 3 * a.rounds, g)
    med = {k: statistics.median(v) * 1e3 for k, v in times.items()}
    print(
        f'second turn: first token after {med["reuse"]:.1f} ms ({read["reuse"]} tokens read),'
        f' afresh {med["afresh"]:.1f} ms ({read["afresh"]} read):'
        f' {med["afresh"] / med["reuse"]:.2f}×'
    )
    versions = {m.__name__: m.__version__ for m in (torch, transformers)} | {
        'python': platform.python_version()
    }
    shape = {
        k: getattr(CFG, k) for k in ('n_layer', 'n_head', 'n_embd', 'vocab_size', 'n_params')
    } | dict(new_tokens=NEW)
    turn = dict(first_token_ms=med, ratio=med['afresh'] / med['reuse'], tokens_read=read)
    result = dict(
        batches=batches,
        second_turn=turn,
        shape=shape,
        machine=cpu_name(),
        threads=a.threads,
        versions=versions,
        date=date.today().isoformat(),
    )
    (ROOT / 'results' / 'generate.json').write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(main())
