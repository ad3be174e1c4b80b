"""Prepare operator-like episodes for training: `mypt prepare` against TRL's own preparation, two
processes each, in turns.

    python bench/prepare.py            # 100,000 episodes, three rounds; writes prepare.json
    python bench/prepare.py --alone    # mypt's own: to tiktoken, of resuming; prepare_alone.json
    python bench/prepare.py --memory   # mypt alone on 1,000,000 lines: does memory stay flat?

TRL's side is what `SFTTrainer` does before its first step: read the JSONL, apply the chat
template with assistant masks, tokenize, pack rows of 1,024 by `bfd`. It gets mypt's own
tokenizer.json and chat template, so both make the same tokens. Each side runs in a process of
its own with two workers; imports are not timed, starting the workers is. Seconds of the clock,
and seconds of the processors, which say more where other programs run as well.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median
import numpy as np

BLOCK, ROUNDS, WORKERS = 1024, 3, 2
WORDS = (
    'server token password session header cookie request response client browser attack defence'
    ' string number value Haus Straße Gesetz Vertrag Gericht Antrag Recht Pflicht Person Sache'
).split()


def episodes(n):
    "COPY, WRAP and EXTRACT on random payloads."
    rng = random.Random(0)
    for _ in range(n):
        p = ' '.join(rng.choices(WORDS, k=rng.randint(2, 6))) + f' {rng.randrange(10**6)}'
        q, a = rng.choice(
            [
                (f'Copy exactly: {p}', p),
                (f'Wrap in brackets: {p}', f'[{p}]'),
                (f'Extract the text between quotes: "{p}", please.', p),
            ]
        )
        yield {
            'messages': [
                {'role': 'system', 'content': 'You are MyPT.'},
                {'role': 'user', 'content': q},
                {'role': 'assistant', 'content': a},
            ]
        }


def clock():
    "Seconds by the clock, and of the processors: this process and its ended workers."
    return np.array([time.perf_counter(), sum(os.times()[:4])])


def side_mypt(path, tmp, workers=WORKERS):
    from mypt.data.prepare import prepare

    start = clock()
    ds = prepare(
        path,
        f'{tmp}/mypt',
        val_split=0,
        enable_packing=True,
        pack_block_size=BLOCK,
        workers=workers,
        overwrite=True,
    )
    return clock() - start, ds.meta['num_train_tokens']


def side_trl(path, tmp):
    import datasets
    import transformers
    import trl
    from tokenizers import Tokenizer
    from mypt.data.hf_tokenizer import chat_template, tokenizer_json
    from mypt.data.tokenizer import get_tokenizer

    datasets.disable_progress_bars()
    rust = Tokenizer.from_str(json.dumps(tokenizer_json(get_tokenizer('gpt2'))))
    tok = transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust,
        chat_template=chat_template(),
        eos_token='<myPT_eot>',
        pad_token='<|endoftext|>',
    )
    shape = transformers.LlamaConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        vocab_size=50304,
    )
    args = trl.SFTConfig(
        output_dir=f'{tmp}/trl',
        assistant_only_loss=True,
        dataset_num_proc=WORKERS,
        packing=True,
        packing_strategy='bfd',
        max_length=BLOCK,
        use_cpu=True,
        bf16=False,
        report_to=[],
    )
    start = clock()
    data = datasets.load_dataset(
        'json', data_files=path, split='train', cache_dir=f'{tmp}/cache{time.time_ns()}'
    )
    trainer = trl.SFTTrainer(
        transformers.LlamaForCausalLM(shape), args, train_dataset=data, processing_class=tok
    )
    spent = clock() - start
    return spent, sum(map(len, trainer.train_dataset['input_ids']))


def child(side, path, tmp):
    "One side in a process of its own: seconds, tokens, peak MiB."
    p = subprocess.run(
        [sys.executable, __file__, '--side', side, path, tmp], capture_output=True, text=True
    )
    if p.returncode:
        sys.exit(p.stderr[-3000:])
    return json.loads(p.stdout.splitlines()[-1])


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('--side', nargs=3)
    ap.add_argument('--alone', action='store_true')
    ap.add_argument('--memory', action='store_true')
    ap.add_argument('-n', type=int, default=100_000)
    a = ap.parse_args()
    if a.side:
        (seconds, cpu), tokens = dict(mypt=side_mypt, trl=side_trl)[a.side[0]](*a.side[1:])
        status = Path(
            '/proc/self/status'
        ).read_text()  # VmHWM: this program's own peak, not its parent's
        peak = int(status.split('VmHWM:')[1].split()[0]) / 1024
        worker = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        return print(
            json.dumps(
                dict(
                    seconds=float(seconds),
                    cpu=float(cpu),
                    tokens=tokens,
                    peak_mib=peak + WORKERS * worker,
                )
            )
        )
    with tempfile.TemporaryDirectory() as tmp:
        if a.memory:
            return memory(tmp)
        if a.alone:
            return alone(tmp)
        path = write(a.n, tmp)
        runs = {s: [] for s in ('mypt', 'trl')}
        for _ in range(ROUNDS):
            for s in runs:
                runs[s].append(child(s, path, tmp))
    rate = {s: [a.n / r['seconds'] for r in rs] for s, rs in runs.items()}
    ratio = median(m / t for m, t in zip(rate['mypt'], rate['trl'], strict=False))
    cpu = {s: [r['cpu'] for r in rs] for s, rs in runs.items()}
    cpu_ratio = median(t / m for m, t in zip(cpu['mypt'], cpu['trl'], strict=False))
    peak = {s: max(r['peak_mib'] for r in rs) for s, rs in runs.items()}
    for s in runs:
        print(
            f'{s:<5} {median(rate[s]):>9,.0f} episodes/s, {runs[s][0]["tokens"]:,} tokens, peak'
            f' {peak[s]:,.0f} MiB at most'
        )
    print(
        f'ratio {ratio:.1f}× by the clock, {cpu_ratio:.1f}× in processor time (median of {ROUNDS}'
        ' pairs in turn)'
    )
    save(
        'prepare',
        dict(
            episodes=a.n,
            workers=WORKERS,
            rates=rate,
            cpu_seconds=cpu,
            cpu_ratio=cpu_ratio,
            ratio=ratio,
            load=os.getloadavg(),
            peak_mib=peak,
            tokens={s: rs[0]['tokens'] for s, rs in runs.items()},
        ),
    )


@contextlib.contextmanager
def kept(folder):
    "A work folder that never goes, or None: nothing is remembered."
    yield folder


def timed(fn):
    "Processor seconds of a call, which prints nothing."
    start = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):
        fn()
    return time.process_time() - start


def alone(tmp, rounds=3):
    """One worker, one process: prepare's share of tiktoken's own speed on the same text; what
    remembering costs and resuming saves.
    """
    from mypt.data import prepare as P
    from mypt.data.tokenizer import get_tokenizer

    bpe, out = get_tokenizer('gpt2')._bpe, {}
    for name, eps in (('operators', list(episodes(20_000))), ('documents', list(documents(2_000)))):
        path = f'{tmp}/{name}.jsonl'
        with open(path, 'w', encoding='utf-8') as f:
            f.writelines(json.dumps(e, ensure_ascii=False) + '\n' for e in eps)
        texts = [
            '\n'.join(m['content'] for m in e['messages']) if 'messages' in e else e['text']
            for e in eps
        ]

        def run(work):
            folder, P.work_folder = P.work_folder, lambda dir: kept(work)
            try:
                side_mypt(path, tmp, workers=1)
            finally:
                P.work_folder = folder

        rows = []
        for i in range(rounds):
            (work := Path(tmp) / f'work{name}{i}').mkdir()
            fresh, plain, again = (timed(lambda: run(w)) for w in (work, None, work))
            batch = timed(lambda: bpe.encode_ordinary_batch(texts, num_threads=1))
            one = timed(lambda: [bpe.encode_ordinary(t) for t in texts])
            rows.append(
                dict(
                    of_batch=batch / plain,
                    of_encode=one / plain,
                    remembering=fresh / plain,
                    resumed=again / fresh,
                )
            )
        out[name] = {k: round(median(r[k] for r in rows), 3) for k in rows[0]}
        print(name, out[name])
    save('prepare_alone', dict(rounds=rounds, medians=out))


def documents(n):
    "Replay texts of some thousand characters."
    rng = random.Random(1)
    for _ in range(n):
        yield {'_replay': True, 'text': ' '.join(rng.choices(WORDS, k=500))}


def memory(tmp):
    "Peak memory at growing numbers of lines."
    peaks = {}
    for n in (100_000, 300_000, 1_000_000):
        r = child('mypt', write(n, tmp), tmp)
        peaks[n] = r['peak_mib']
        print(f'{n:>9,} lines: {n / r["seconds"]:>8,.0f} episodes/s, peak {r["peak_mib"]:.0f} MiB')
    save('prepare_memory', dict(peak_mib=peaks))


def write(n, tmp):
    path = f'{tmp}/episodes.jsonl'
    with open(path, 'w', encoding='utf-8') as f:
        for ep in episodes(n):
            f.write(json.dumps(ep, ensure_ascii=False) + '\n')
    return path


def save(name, result):
    from importlib.metadata import PackageNotFoundError, version

    def v(p):
        try:
            return version(p)
        except PackageNotFoundError:
            return None

    cpu = next(
        (
            line.split(': ')[1].strip()
            for line in open('/proc/cpuinfo')
            if line.startswith('model name')
        ),
        platform.machine(),
    )
    out = Path(__file__).parent / 'results'
    out.mkdir(exist_ok=True)
    versions = {p: v(p) for p in ('torch', 'trl', 'transformers', 'datasets', 'tiktoken', 'numpy')}
    (out / f'{name}.json').write_text(
        json.dumps(dict(date=str(date.today()), machine=cpu, versions=versions, **result), indent=1)
        + '\n'
    )


if __name__ == '__main__':
    main()
