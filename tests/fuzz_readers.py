"""A good file of every kind, and the verbs that read it; for tests/fuzz.py."""

import contextlib
import io
import json
import os
import random
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import fuzz_accounts as accounts
import fuzz_lies as lies
import torch
from mypt.agent.retrieval import Index
from tiny_pdf import pdf
from mypt.cli import main as mypt
from mypt.data.hf_tokenizer import tokenizer_json
from mypt.data.prepare import prepare
from mypt.data.tokenizer import get_tokenizer
from mypt.interop.export import export
from mypt.model.checkpoint import save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT


def main(argv: list[str], folder: Path) -> tuple[int, str, str]:
    "Run one command in a folder: (exit code, stdout, stderr)."
    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = mypt(argv)
    return code, out.getvalue(), err.getvalue()


# ---------------------------------------------------------------- good files


def rows_by_kind() -> dict[str, list[dict]]:
    "Rows of every form that `convert` knows, our own episodes, and a suite."
    rows = defaultdict(list)
    for line in Path(__file__).with_name('fuzz_rows.jsonl').read_text('utf-8').splitlines():
        given = json.loads(line)
        rows[given['kind']].append(given['row'])
    return dict(rows)


ROWS = rows_by_kind()
FORMS = [kind for kind in ROWS if kind not in ('episodes', 'suite')]


def said(user: str, assistant: str, **more) -> dict:
    talk = [dict(role='user', content=user), dict(role='assistant', content=assistant)]
    return dict(messages=talk, **more)


def lines(rows) -> bytes:
    return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows).encode()


HTML = b"""<!DOCTYPE html><html><head><title>The Mill</title><meta charset="utf-8"></head><body>
<nav><a href="/">Home</a></nav><h1>The Mill</h1><p>It was built in 1248 &amp; grinds <b>corn</b>.
<pre>
x = 1
    y = 2
</pre><table><tr><td>Wheel</td><td>4 m</td></tr></table><ul><li>One<li>Two</ul>
<script>var x = "<p>";</script><!-- a comment --><footer>2024</footer></body></html>"""
MARKDOWN = """---
title: The Mill
tags: [corn, water]
---
# The Mill

It was built in 1248 and grinds corn for Köln.

## Parts

| part | size |
|------|------|
| wheel | 4 m |

```python
x = 1
```

> quoted

1. One
2. Two [link](x.md)
""".encode()
CSV = """Frage;Antwort;Zahl
"Wie, bitte?";"Köln ""am"" Rhein";1
Wann?;1248;2
Wer?;"Anna
Berta";3
""".encode()
CONFIG = b"""{"extends": "tiny", "n_layer": 1, "n_embd": 32, "n_head": 2, "block_size": 64,
"batch_size": 2, "eval_iters": 1, "warmup_iters": 0, "max_iters": 1, "learning_rate": 0.001,
"system_prompt": null}"""
SQUAD = b"""{"version": "v2.0", "data": [{"title": "T", "paragraphs": [{"context": "In 1248.",
"qas": [{"id": "1", "question": "When?", "answers": [{"text": "1248", "answer_start": 3}],
"is_impossible": false}]}]}]}"""


def word() -> bytes:
    import docx

    document, out = docx.Document(), io.BytesIO()
    document.add_heading('The Mill', 1)
    document.add_paragraph('It was built in 1248.')
    document.add_table(2, 2).cell(0, 0).text = 'wheel'
    document.save(out)
    return out.getvalue()


def parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    table = pyarrow.Table.from_pylist([said('Hi!', 'Hello.')] * 4)
    pyarrow.parquet.write_table(table, out)
    return out.getvalue()


def make_model(home: Path):
    "A model, its GGUF file, and a Hugging Face directory of its shape."
    torch.manual_seed(0)
    gpt = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2, n_kv_head=1, block_size=128))
    tok, folder = get_tokenizer('byte'), home / 'model' / 'checkpoints' / 'm'
    state = dict(step=1, tokens=9, supervised=3, skipped=0, best=1.0, precision='fp32')
    tensors = {'model.norm.weight/exp_avg': torch.ones(32)}
    save_checkpoint(folder, gpt, tok, state, tensors, dict(layout='compact'))
    export(folder, home / 'm.gguf')
    shutil.copytree(folder, home / 'hf')
    for name in ('mypt.json', 'tokenizer_state.json'):
        (home / 'hf' / name).unlink()
    spec = tokenizer_json(tok)
    spec['added_tokens'] = [t for t in spec['added_tokens'] if 'myPT' not in t['content']]
    spec['model']['vocab'] = {k: i for k, i in spec['model']['vocab'].items() if 'myPT' not in k}
    (home / 'hf' / 'tokenizer.json').write_text(json.dumps(spec))


def make_files(home: Path) -> Path:
    "Every good file, once; a case copies what it needs."
    good = lines(said(f'What is {i}+1?', f'{i + 1}', language='en') for i in range(6))
    alpaca = ROWS['alpaca']
    files = {f'{form}.jsonl': lines(ROWS[form] * 2) for form in FORMS} | {
        'in.jsonl': lines(ROWS['episodes']),
        'good.jsonl': good,
        'suite.jsonl': lines(ROWS['suite']),
        'texts.jsonl': lines(dict(_replay=True, text=f'Bread {i} ' * 50) for i in range(9)),
        'list.json': json.dumps(alpaca).encode(),
        'pretty.json': json.dumps(alpaca[0], indent=2).encode(),
        'squad.json': SQUAD,
        'table.csv': CSV,
        'table.tsv': CSV.replace(b';', b'\t'),
        'text.txt': MARKDOWN,
        'rows.parquet': parquet(),
        'config.json': CONFIG,
        'words.txt': 'Köln\nMyPT\n'.encode(),
        'docs/a.html': HTML,
        'docs/b.md': MARKDOWN,
        'docs/c.txt': b'Bread is baked from flour.\n\nAnd water.',
        'docs/d.csv': CSV,
        'docs/e.pdf': pdf('The mill was built in 1248.'),
        'docs/f.docx': word(),
    }
    for name, raw in files.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(raw)
    packing = dict(enable_packing=True, pack_block_size=64)
    with contextlib.redirect_stdout(io.StringIO()):
        Index.build(home / 'docs', home / 'index')
        prepare(home / 'good.jsonl', home / 'data', 'byte', 0.3)
        prepare(home / 'good.jsonl', home / 'packed', 'byte', 0.3, **packing)
        prepare(home / 'texts.jsonl', home / 'shards', 'byte', format='shards', **packing)
        make_model(home)
    main('translate extract --input good.jsonl --output_dir t'.split(), home)
    for column in ('user_messages', 'assistant_messages'):
        shutil.copy(home / 't' / f'{column}_en.txt', home / 't' / f'{column}_de.txt')
    return home


# ---------------------------------------------------------------- readers


@dataclass
class Reader:
    "Commands, and a file that they read."

    name: str
    commands: list[str]  # one after the other, until one ends with 2
    lie: Callable[[bytes, random.Random], bytes]  # a good file → a false one
    files: dict[str, str]  # name in the case's folder → name at home
    false: list[str]  # files that are made false, one a case
    check: Callable[[accounts.Outcome], str] | None = None
    weight: float = 1


def reader(
    commands: str,  # divided by ` ; `
    lie,
    files: dict,
    false: str | list = '',
    check=None,
    weight=1.0,
    name: str = '',
) -> Reader:
    given = [false] if isinstance(false, str) else false
    given = [f for f in given if f] or [next(iter(files))]
    split = commands.split(' ; ')
    return Reader(name or split[0], split, lie, files, given, check, weight)


LINES = {'in.jsonl': 'in.jsonl', 'good.jsonl': 'good.jsonl'}
TALK = {'in.jsonl': 'good.jsonl', 'good.jsonl': 'good.jsonl'}  # without replay text
MODEL = {'checkpoints': 'model/checkpoints'}
DATA = MODEL | {'d': 'data', 'p': 'packed', 's': 'shards', 'config.json': 'config.json'}
BYTE = '--tokenization byte'
PREPARE = f'prepare --input in.jsonl --output_dir d {BYTE}'
PACKED = '--enable_packing --pack_block_size'
MIX = 'mix --inputs in.jsonl:1.0 good.jsonl:1.0 --output out.jsonl'
DEDUP = 'dedup --input in.jsonl --output out.jsonl --rejects dropped.jsonl'
JOBS = 'plan --input in.jsonl --jobs_dir j --splits 2 --sets tokenization=byte on_error=skip'
ANSWER = '--model_name m --max_new_tokens 3 --device cpu'
TRAIN = '--quiet --device cpu --config_file config.json'
RECOMBINE = 'translate recombine --original in.jsonl --dir t --output out.jsonl'
DRY = 'translate run --dir t --dry_run'


def line_readers():
    "Verbs that read episodes."
    one = partial(reader, lie=lies.false_lines, files=LINES)
    yield one('convert in.jsonl --output out.jsonl --trim_last_user', check=accounts.converted)
    yield one('check in.jsonl', check=accounts.checked, weight=4)
    yield one(f'{PREPARE} --on_error skip', check=accounts.prepared, weight=3)
    yield one(PREPARE.replace('byte', 'gpt2'), check=accounts.prepared)
    how = f'{PACKED} 64 --overlong skip --weighted_mask --layout lines'
    yield one(f'{PREPARE} --on_error skip {how}', check=accounts.prepared, weight=2)
    how = f'{PACKED} 512 --pack_by_field _meta.operator --mask_policy rag_chat'
    yield one(f'{PREPARE} --on_error skip {how}', check=accounts.prepared)
    yield one(f'prepare --input good.jsonl --output_dir d {BYTE} --val_file in.jsonl')
    yield one(f'{PREPARE} --format shards --pack_block_size 64 --on_error skip')
    yield one(f'{MIX} --shuffle', check=accounts.mixed, weight=2)
    yield one(f'{MIX} --by tokens {BYTE}', check=accounts.mixed)
    yield one(f'{MIX.replace("1.0", "0.5")} --by characters --shares')
    yield one(DEDUP, check=accounts.deduplicated, weight=2)
    yield one(f'{DEDUP} --by user --against good.jsonl', check=accounts.deduplicated)
    yield one('dedup --input good.jsonl --output out.jsonl --against in.jsonl')
    yield one('diversity in.jsonl --report r.json', check=accounts.counted)
    yield one(f'quality in.jsonl --report r.json {BYTE}', check=accounts.counted, weight=2)
    yield one('augment --input in.jsonl --output out.jsonl --target_count 8 --avoid good.jsonl')
    yield one('augment --input good.jsonl --output out.jsonl --target_count 8 --avoid in.jsonl')
    diversify = 'diversify --input in.jsonl --output out.jsonl --avoid good.jsonl'
    yield one(diversify, check=accounts.as_many, weight=2)
    yield one(f'inspect in.jsonl {BYTE} --html page.html')
    yield one('inspect in.jsonl --tokenization gpt2 --json')
    yield one('check-meaning in.jsonl')
    yield one('leaks in.jsonl --against gold')
    runs = 'prepare-jobs run --jobs_dir j --split 0 ; prepare-jobs run --jobs_dir j --split 1'
    merge = 'prepare-jobs merge --jobs_dir j --output_dir d'
    yield one(f'prepare-jobs {JOBS} ; {runs} ; {merge}')
    yield one('translate extract --input in.jsonl --output_dir t', check=accounts.extracted)
    yield one('translate merge --english in.jsonl --german good.jsonl --output out.jsonl')


def talk_readers():
    "Verbs that take no replay text, and those that read suites."
    one = partial(reader, lie=lies.false_lines, files=TALK)
    extract = 'translate extract --input in.jsonl --output_dir t --system'
    yield one(f'{extract} ; {DRY}', check=accounts.extracted, weight=2)
    yield one(RECOMBINE, files=TALK | {'t': 't'}, check=accounts.as_many)
    suite = TALK | MODEL | {'suite.jsonl': 'suite.jsonl'}
    evaluate = 'eval m --suite suite.jsonl --limit 2 --max_new_tokens 3 --device cpu'
    yield one(evaluate, files=suite, false='suite.jsonl')
    yield one('leaks good.jsonl --against suite.jsonl', files=suite, false='suite.jsonl')


def convert_readers():
    "Other people's rows, in every form and file."
    for form in FORMS:
        check = None if form == 'oasst' else accounts.converted  # of a tree one branch is taken
        keep = ' --keep_meta all' if form == 'alpaca' else ''
        files = {'in.jsonl': f'{form}.jsonl'}
        weight = 3 if form in ('messages', 'sharegpt') else 1
        command, name = f'convert in.jsonl --output out.jsonl{keep}', f'convert {form}'
        yield reader(command, lies.false_lines, files, '', check, weight, name)
    names = '--columns prompt=Frage completion=Antwort --keep_meta Zahl'
    lie_of = dict(csv=lies.false_text, tsv=lies.false_text, txt=lies.false_text)
    lie_of |= dict(json=lies.false_json, parquet=lies.false_bytes)
    for file in (*('table.csv', 'table.tsv', 'text.txt'), *('list.json', 'pretty.json')):
        more = names if file.startswith('table') else ''
        command = f'convert {file} --output out.jsonl {more}'
        yield reader(command, lie_of[file.split('.')[1]], {file: file})
    for file in ('squad.json', 'rows.parquet'):
        lie = lie_of[file.split('.')[1]]
        yield reader(f'convert {file} --output out.jsonl', lie, {file: file})


def document_readers():
    "Folders of documents, and indexes of them."
    text = lies.false_text
    kinds = {'a.html': text, 'b.md': text, 'c.txt': text, 'd.csv': text}
    kinds |= {'e.pdf': lies.false_pdf, 'f.docx': lies.false_zip}
    for name, lie in kinds.items():
        files = {f'docs/{name}': f'docs/{name}', 'docs/good.md': 'docs/b.md'}
        commands = 'rag-index --docs_dir docs --out_dir i ; search mill --index_dir i'
        yield reader(commands, lie, files, weight=1.5, name=f'rag-index {name}')
    files = {'docs/b.md': 'docs/b.md', 'docs/c.txt': 'docs/c.txt'}
    yield reader('make rag_chat --docs_dir docs --output out.jsonl --num_examples 3', text, files)
    index = MODEL | {'i': 'index'}
    for verb in (
        'search mill',
        f'rag-chat {ANSWER} --question mill',
        f'agent {ANSWER} --question m',
    ):
        yield reader(f'{verb} --index_dir i', lies.false_bytes, index, 'i/index.sqlite')


def dataset_readers(home: Path):
    "Datasets and configs."
    for d, origin in (('d', 'data'), ('p', 'packed')):
        look = f'validate {d} ; inspect {d} ; check-masks {d}'
        train = f'train --model_name new --dataset_dir {d} {TRAIN}'
        meta = f'{d}/dataset_metadata.json'
        yield reader(look, lies.false_signed, DATA, meta)
        yield reader(train, lies.false_signed, DATA, meta, weight=0.4)
        paths = [p.relative_to(home / origin) for p in (home / origin).rglob('*.*') if p.is_file()]
        inside = sorted(f'{d}/{p}' for p in paths if p.suffix != '.json')
        for commands in (look, train):
            yield reader(commands, lies.false_bytes, DATA, inside, name=f'bytes {commands}')
    both = ['s/dataset_metadata.json', 'p/dataset_metadata.json']
    mix = 'mix-general --sft_dir p --general_dir s --output_dir new'
    yield reader(mix, lies.false_signed, DATA, both)
    train = f'train --model_name new --dataset_dir d {TRAIN}'
    run = 'run --phase 1 --config config.json --dry_run --output_dir o'
    for command in (train, run):
        yield reader(command, lies.false_json, DATA, 'config.json', name=f'config {command}')


def lie_about(name: str):
    "How a file of a model is made false."
    if name == 'mypt.json':
        return lies.false_signed
    kinds = {'.json': lies.false_json, '.safetensors': lies.false_tensors}
    return kinds.get(Path(name).suffix, lies.false_text)


FROM = '--init_from_model m --quiet --device cpu --max_iters 1 --sets batch_size=2 eval_iters=1'
USES = [
    f'generate --user hi {ANSWER}',
    'export m --gguf x.gguf',
    'push m --repo a/b --dry_run',
    'merge m --output x',
    'consolidate m',
    f'train --model_name m --dataset_dir d {TRAIN} --max_iters 2',
    f'train --model_name new --dataset_dir d {FROM} warmup_iters=0',
    f'chat {ANSWER}',
    'serve --models m --check --device cpu',
]


def model_readers(home: Path):
    "Checkpoints, bases to import, translated files."
    for command in USES:
        weight = 0.25 if command.startswith(('generate', 'export')) else 0.12
        for name in sorted(os.listdir(home / 'model' / 'checkpoints' / 'm')):
            false, title = f'checkpoints/m/{name}', f'{command.split()[0]} {name}'
            yield reader(command, lie_about(name), DATA, false, None, weight, title)
    for name in sorted(os.listdir(home / 'hf')):
        title = f'import {name}'
        command = 'import hf --output new'
        yield reader(command, lie_about(name), {'hf': 'hf'}, f'hf/{name}', None, 0.8, title)
    yield reader('import m.gguf --output new', lies.false_bytes, {'m.gguf': 'm.gguf'})
    files = TALK | {'t': 't', 'words.txt': 'words.txt'}
    for name in sorted(os.listdir(home / 't')):
        title = f'translate {name}'
        commands = f'{DRY} ; {RECOMBINE}'
        yield reader(commands, lies.false_text, files, f't/{name}', None, 0.4, title)
    yield reader(f'{DRY} --keep words.txt', lies.false_text, files, 'words.txt', None, 0.3)


def all_readers(home: Path) -> list[Reader]:
    return [
        *line_readers(),
        *talk_readers(),
        *convert_readers(),
        *document_readers(),
        *dataset_readers(home),
        *model_readers(home),
    ]
