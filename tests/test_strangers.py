"""Files from strangers: either they open, or one line says why not; soon, and in little memory.

pytest tests/test_strangers.py
pytest tests/test_strangers.py -m slow      # ten times as many mutations
"""

import copy
import json
import os
import random
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import time
from contextlib import closing
from importlib import import_module as module_of
from pathlib import Path
import numpy as np
import pytest
import torch
from fuzz_lies import nested, places
from mypt.agent.retrieval import Index
from mypt.cli import main
from mypt.curate.dedup import dedup
from mypt.curriculum.format_lock import make_echo
from mypt.curriculum.recipe import Stages, stored_report
from mypt.data.dataset import open_dataset
from mypt.data.episodes import write_episodes
from mypt.data.hf_tokenizer import foreign_tokenizer, tokenizer_json
from mypt.data.mix import mix
from mypt.data.prepare import prepare
from mypt.data.tokenizer import get_tokenizer
from mypt.data.tokenizer_state import load_tokenizer, save_tokenizer
from mypt.data.validate import validate_dataset
from mypt.errors import UserError
from mypt.files import JSON_BYTES, checksums, json_text, lock_folder, read_text, sha256_of, signed
from mypt.interop.export import export
from mypt.interop.gguf_file import gguf_weights, read_gguf
from mypt.interop.import_model import import_model, llama_shape
from mypt.model.checkpoint import folder_to_write, load_model, load_state, recover, save_checkpoint
from mypt.model.config import ModelConfig, TrainConfig, load_config, make_config
from mypt.model.gpt import GPT
from mypt.model.rope import SHORT_TABLE, rope_tables
from mypt.train.distributed import open_shards, read_training_shards
from mypt.train.optim import load_optimizer_tensors, make_optimizers, optimizer_tensors

NUMBERS = [0, -1, 1, 3, 10**9, -(10**9), 2**63, 10**400, 0.5, 1e400, float('nan'), -1e308]
OTHERS = [None, True, False, '', 'x', 'ü🙂', '\ud800', '../../x', '\n\x1b[31m', [], {}, [[]], ['x']]
MOST_SECONDS = 5


# ---------------------------------------------------------------- mutations


def mutated(value, rng):
    "A copy in which one or two entries are others."
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2])):
        all_places = list(places(value))
        if not all_places:
            return value
        *way, key = rng.choice(all_places)
        parent = value
        for k in way:
            parent = parent[k]
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind in (1, 2, 3):
            parent[key] = rng.choice(NUMBERS)
        elif kind in (4, 5):
            parent[key] = copy.deepcopy(rng.choice(OTHERS))
        elif kind == 6:
            parent[key] = nested(rng.choice([3, 150, 400]))
        elif isinstance(parent, dict):
            parent[rng.choice(['new', 'ü', '\ud800', '../x'])] = rng.choice(NUMBERS)
        else:
            parent += parent[:1] * rng.choice([1, 7])
    return value


def broken(text: bytes, rng) -> bytes:
    "The bytes of a file, cut, with other bytes in it, or something else altogether."
    at = rng.randrange(len(text))
    return rng.choice(
        [
            text[:at],
            text[:at] + bytes([rng.randrange(256)]) + text[at + 1 :],
            text[:at] + b'\xff\xfe' + text[at:],
            b'\xef\xbb\xbf' + text,
            b'',
            b'null',
            b'[' * 100_000,
            b'9' * 5000,
            text.decode().encode('utf-16'),
        ]
    )


def dumps(value) -> str:
    return json.dumps(value)  # ASCII: lone surrogates stay escapes


def sign(value) -> str:
    try:
        return json_text(signed(value))
    except UnicodeEncodeError:
        return dumps(value)


def mutations(file: Path, n: int, text=dumps):
    "`n` false versions of a file, as bytes; always the same ones."
    rng = random.Random(file.name)
    raw = file.read_bytes()
    value = json.loads(raw)
    for i in range(n):
        if i % 5 == 4:
            yield broken(raw, rng)
            continue
        false = text(mutated(value, rng))
        yield false.encode('utf-8', 'surrogatepass')


def refused(file: Path, n: int, use, text=dumps) -> list[str]:
    "What is said to `n` false versions of a file; the true one is put back."
    true, said = file.read_bytes(), []
    try:
        for i, false in enumerate(mutations(file, n, text)):
            file.write_bytes(false)
            start = time.process_time()  # other work on the machine does not count
            try:
                use()
            except UserError as e:
                said.append(str(e))
                assert str(e).isprintable(), (i, str(e))
            except BaseException as e:
                raise AssertionError(f'{file.name} {i}: {type(e).__name__} {e}: {false!r}') from e
            assert time.process_time() - start < MOST_SECONDS, (i, false)
    finally:
        file.write_bytes(true)
    use()
    return said


# ---------------------------------------------------------------- one valid file of each kind


def episodes(path, n=8):
    rows = [
        dict(messages=[dict(role='user', content=f'{i}+1'), dict(role='assistant', content=f'{i}')])
        for i in range(n)
    ]
    write_episodes(path, rows)


def llama(folder: Path) -> Path:
    "A Hugging Face directory of the shape of a Llama."
    torch.manual_seed(0)
    gpt = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2, n_kv_head=1, rope_scale=2.0))
    save_checkpoint(folder, gpt, get_tokenizer('byte'))
    (folder / 'mypt.json').unlink()
    (folder / 'tokenizer_state.json').unlink()
    spec = tokenizer_json(get_tokenizer('byte'))
    spec['added_tokens'] = [t for t in spec['added_tokens'] if 'myPT' not in t['content']]
    spec['model']['vocab'] = {k: i for k, i in spec['model']['vocab'].items() if 'myPT' not in k}
    (folder / 'tokenizer.json').write_text(json.dumps(spec))
    return folder


LINEAGE = dict(
    dataset=dict(dir='d', sha256='0' * 64, sources=[]),
    base=dict(name='b', sha256='0' * 64, lineage=dict(base=None, steps=3, config={})),
    steps=5,
    config=dict(learning_rate=1e-3, system_prompt=dict(en=['You are MyPT.'], de='Du bist MyPT.')),
)


class Kind:
    "How a kind of file is made, opened, and written by a stranger."

    def __init__(self, name, make, use, text=dumps):
        self.name, self.make, self.use, self.text = name, make, use, text


def model_file(folder: Path) -> Path:
    gpt = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2))
    state = dict(step=5, tokens=9, supervised=3, skipped=0, best=float('inf'), precision='fp32')
    meta = dict(lineage=LINEAGE, layout='compact')
    return save_checkpoint(folder / 'm', gpt, get_tokenizer('byte'), state, {}, meta)


def dataset_file(folder: Path) -> Path:
    episodes(folder / 'a.jsonl')
    prepare(str(folder / 'a.jsonl'), str(folder / 'd'), tokenization='byte', pack_block_size=64)
    return folder / 'd'


def read_dataset(folder: Path):
    ds = open_dataset(folder)
    for split in ds.splits:
        assert len(split.row_lengths) == split.n_rows
        split.row(0)
    ds._repr_html_()
    validate_dataset(folder)


def use_foreign(folder: Path):
    foreign_tokenizer(folder).encode('Hello, Köln!')


def make_mix(folder: Path) -> Path:
    episodes(folder / 'a.jsonl')
    mix([f'{folder}/a.jsonl:1.0'], str(folder / 'mixed.jsonl'))
    return folder


def use_mix(folder: Path):
    mix([f'{folder}/mixed.jsonl:1.0'], str(folder / 'again.jsonl'))


def make_stages(folder: Path) -> Path:
    use_stages(folder)
    return folder


def use_stages(folder: Path):
    stages = Stages(folder, log=lambda _: None)
    stages.run('make', folder, dict(n=3), lambda: None, clear=lambda: None)


def make_report(folder: Path) -> Path:
    row = dict(name='echo', passed=True, k=3, n=4, floor=0.5, before=None, warns=False)
    report = dict(phase='1', model='m', weights_sha256='0' * 64, suites=[row])
    (folder / 'gate.json').write_text(json.dumps(report))
    return folder


def make_config_file(folder: Path) -> Path:
    keys = dict(extends='tiny', n_layer=2, curriculum=[], eval_sets={}, system_prompt=['a'])
    (folder / 'mine.json').write_text(json.dumps(keys))
    return folder


def use_import(folder: Path):
    out = folder.parent / 'out'
    import_model(str(folder), str(out))
    for f in out.iterdir():
        f.unlink()
    out.rmdir()


def make_index(folder: Path) -> Path:
    llama(folder / 'hf')
    table = dict(metadata={}, weight_map=dict(a='model.safetensors', b='model.safetensors'))
    (folder / 'hf' / 'model.safetensors.index.json').write_text(json.dumps(table))
    return folder / 'hf'


KINDS = dict(
    meta=Kind('mypt.json', model_file, lambda d: load_model(d, verify=True), sign),
    state=Kind('training_state.json', model_file, load_state),
    vocabulary=Kind('tokenizer_state.json', model_file, load_tokenizer),
    dataset=Kind('dataset_metadata.json', dataset_file, read_dataset, sign),
    tokenizer=Kind('tokenizer.json', lambda d: llama(d / 'hf'), use_foreign),
    config=Kind('config.json', lambda d: llama(d / 'hf'), use_import),
    index=Kind('model.safetensors.index.json', make_index, use_import),
    mix=Kind('mixed.jsonl.mix.json', make_mix, use_mix),
    stages=Kind('stages.json', make_stages, use_stages),
    report=Kind('gate.json', make_report, lambda d: stored_report(d / 'gate.json')),
    settings=Kind('mine.json', make_config_file, lambda d: load_config(d / 'mine.json')),
)


def walk(name, folder, n, capsys) -> list[str]:
    kind = KINDS[name]
    home = kind.make(folder)
    said = refused(home / kind.name, n, lambda: kind.use(home), kind.text)
    capsys.readouterr()
    return said


@pytest.mark.parametrize('name', KINDS)
def test_a_false_file_is_one_line_or_works(name, tmp_path, capsys):
    n = 100 if name in ('config', 'index', 'dataset') else 200
    assert len(walk(name, tmp_path, n, capsys)) > n / 5


@pytest.mark.slow
@pytest.mark.parametrize('name', KINDS)
def test_many_false_files(name, tmp_path, capsys):
    walk(name, tmp_path, 2000, capsys)


# ---------------------------------------------------------------- memory

OPENING = """
import resource, sys
from pathlib import Path
from mypt.errors import UserError
from mypt.model.checkpoint import load_model
from mypt.interop.import_model import import_model, llama_shape
used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 512 * 2**20,) * 2)
for folder in map(Path, sys.argv[2:]):
    try:
        import_model(folder, f'{folder}.out') if sys.argv[1] == 'import' else load_model(folder)
        print('works')
    except UserError as e:
        print(e)
"""

VAST = [
    dict(),
    dict(n_layer=10**9),
    dict(n_layer=4096),
    dict(n_head=0),
    dict(vocab_size=2**24),
    dict(n_embd=2**20, hidden=2**20),
    dict(hidden=2**20),
    dict(block_size=2**20, pos_encoding='learned'),
]


def opened(how: str, folders: list[Path]) -> list[str]:
    "What a process with 512 MiB says to each folder."
    env = os.environ | {'OMP_NUM_THREADS': '1'}
    command = [sys.executable, '-c', OPENING, how, *map(str, folders)]
    p = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert p.returncode == 0, p.stderr[-2000:]
    return p.stdout.splitlines()


def test_a_vast_config_takes_no_memory(tmp_path):
    folder, folders = model_file(tmp_path), []
    for i, false in enumerate(VAST):
        folders.append(shutil.copytree(folder, tmp_path / f'm{i}'))
        meta = json.loads((folder / 'mypt.json').read_text())
        (folders[-1] / 'mypt.json').write_text(sign(meta | dict(model=meta['model'] | false)))
    works, *said = opened('load', folders)
    assert works == 'works' and len(said) == len(VAST) - 1
    for false, line in zip(folders[1:], said, strict=True):
        with pytest.raises(UserError) as e:
            load_model(false)
        assert line == str(e.value) and (' is ' in line or ' says ' in line)


def test_a_vast_config_is_not_imported(tmp_path):
    folder, folders = llama(tmp_path / 'hf'), []
    wide = dict(hidden_size=2**20, num_attention_heads=2**12, head_dim=2**8, attention_bias=True)
    deep = dict(num_hidden_layers=4096, mlp_bias=True)
    for i, false in enumerate((deep, wide, dict(vocab_size=2**24))):
        folders.append(shutil.copytree(folder, tmp_path / f'm{i}'))
        c = json.loads((folder / 'config.json').read_text())
        (folders[-1] / 'config.json').write_text(json.dumps(c | false))
    said = opened('import', folders)
    assert len(said) == 3 and all('its config says' in line for line in said), said


# ---------------------------------------------------------------- what is no file, and names


def test_no_pipe_no_device_no_folder_no_endless_text(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'zero').symlink_to('/dev/zero')
    (tmp_path / 'folder').mkdir()
    for name in ('pipe', 'zero', 'folder'):
        with pytest.raises(UserError, match=f'{name}: not an ordinary file; restore it'):
            read_text(tmp_path / name)
    with open(tmp_path / 'long', 'wb') as f:
        f.truncate(JSON_BYTES + 1)
    with pytest.raises(UserError, match='long: longer than 64 MiB'):
        read_text(tmp_path / 'long')


@pytest.mark.parametrize('name', ['../victim/tokens.bin', '/etc/hosts', 'train/../../x'])
def test_a_dataset_names_only_its_own_files(name, tmp_path, capsys):
    folder = dataset_file(tmp_path)
    path = folder / 'dataset_metadata.json'
    meta = json.loads(path.read_text())
    meta['files'][name] = dict(bytes=1, sha256='0' * 64)
    path.write_text(sign(meta))
    with pytest.raises(UserError, match=r'not in its folder; copy the dataset again'):
        open_dataset(folder)


def test_a_model_names_only_its_own_files(tmp_path):
    folder = model_file(tmp_path)
    path = folder / 'mypt.json'
    meta = json.loads(path.read_text())
    meta['files_sha256']['../victim'] = '0' * 64
    path.write_text(sign(meta))
    with pytest.raises(UserError, match=r"names the file '../victim', which is not in its folder"):
        load_model(folder, verify=True)


def test_an_import_reads_only_its_own_weights(tmp_path):
    folder = make_index(tmp_path)
    table = dict(weight_map=dict(a='../victim.safetensors'))
    (folder / 'model.safetensors.index.json').write_text(json.dumps(table))
    with pytest.raises(
        UserError, match=r"names the file '../victim.safetensors', which is not in its"
    ):
        import_model(str(folder), str(tmp_path / 'out'))


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(mask_policy='x'), "mask_policy is 'x', it must be 'pipeline'"),
        (dict(layout='x'), "layout is 'x', it must be"),
        (dict(step=-1), 'step is -1, it must lie between'),
        (dict(tags_seen='no'), "tags_seen is 'no', it must be true or false"),
        (dict(mypt_version=7), 'mypt_version is 7, it must be a string'),
        (dict(lineage=dict(steps=0.5)), 'lineage.steps is 0.5, it must be a whole number'),
    ],
)
def test_a_signed_file_with_false_values_is_refused(change, said, tmp_path):
    folder = model_file(tmp_path)
    meta = json.loads((folder / 'mypt.json').read_text())
    (folder / 'mypt.json').write_text(sign(meta | change))
    with pytest.raises(UserError, match=said):
        load_model(folder)


def test_a_tokenizer_of_another_model_is_refused(tmp_path):
    folder = model_file(tmp_path)
    save_tokenizer(get_tokenizer('gpt2'), folder)
    with pytest.raises(UserError, match='reach the id 50275, the model has 320 rows; restore it'):
        load_model(folder)


def relabelled(file: Path, kind: str):
    "Say in the header of a safetensors file that a tensor of floats holds other numbers."
    raw = file.read_bytes()
    n = int.from_bytes(raw[:8], 'little')
    head = raw[8 : 8 + n].replace(b'"dtype":"F32"', b'"dtype":"%s"' % kind.encode(), 1)
    assert len(head) == n and head != raw[8 : 8 + n]
    file.write_bytes(raw[:8] + head + raw[8 + n :])


@pytest.mark.parametrize('kind', ['I32', 'U32'])
def test_weights_that_are_not_floats_are_refused(kind, tmp_path):
    "The bytes fit either way; read as integers they are other weights."
    for folder, use in (
        (model_file(tmp_path), load_model),
        (llama(tmp_path / 'hf'), lambda d: import_model(str(d), str(tmp_path / 'out'))),
    ):
        relabelled(folder / 'model.safetensors', kind)
        with pytest.raises(UserError, match=rf"holds {kind}, a model's weights are F64, F32"):
            use(folder)


# ---------------------------------------------------------------- models, data sets and indexes


def unsigned(path: Path, change):
    "Change a signed file as a stranger may: without its own sum."
    meta = json.loads(path.read_text())
    meta.pop('sha256')
    change(meta)
    path.write_text(json.dumps(meta))


def resigned(path: Path, change):
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(sign(meta))


@pytest.mark.parametrize('name', ['mypt.json', 'model.safetensors'])
def test_a_pipe_in_a_model_does_not_wait(name, tmp_path):
    folder = model_file(tmp_path)
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(UserError, match=f'{name}: not an ordinary file; restore it'):
        load_model(folder)


def test_a_pipe_or_device_in_a_dataset_does_not_wait(tmp_path):
    path = dataset_file(tmp_path) / 'dataset_metadata.json'
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match='No episodes found'):
        open_dataset(path.parent)
    path.unlink()
    path.symlink_to('/dev/zero')
    with pytest.raises(UserError, match='No episodes found'):
        open_dataset(path.parent)


def test_hidden_folders_of_another_project_stay(tmp_path):
    source, site = llama(tmp_path / 'hf'), tmp_path / 'site'
    for name in ('.next', '.commit'):
        (site / name).mkdir(parents=True)
        (site / name / 'notes.txt').write_text('theirs')
    (site / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match=r'holds notes\.txt and no model; choose another'):
        import_model(str(source), str(site))
    recover(site)
    said = {p.relative_to(site).as_posix(): p.read_text() for p in site.rglob('*.txt')}
    assert said == {'.next/notes.txt': 'theirs', '.commit/notes.txt': 'theirs', 'notes.txt': 'mine'}


def test_a_first_save_killed_while_it_is_moved_is_a_model(tmp_path):
    folder = model_file(tmp_path)
    shutil.copytree(folder, folder / '.commit')
    (folder / 'mypt.json').unlink()  # not moved yet
    assert folder_to_write(folder) == folder
    recover(folder)
    assert load_model(folder, verify=True).meta['step'] == 5 and not (folder / '.commit').exists()


@pytest.mark.parametrize('name', ['notes.txt', 'base'])
def test_a_save_beside_something_else_is_whole(name, tmp_path):
    (tmp_path / 'm').mkdir()
    (tmp_path / 'm' / name).write_text('mine')
    folder = model_file(tmp_path)
    assert load_model(folder, verify=True).meta['step'] == 5 and not (folder / '.commit').exists()
    assert (folder / name).read_text() == 'mine'


@pytest.mark.parametrize('name', ['best', 'base', 'log.jsonl'])
def test_no_link_leads_out_of_a_model(name, tmp_path):
    folder = model_file(tmp_path)
    (tmp_path / 'victim').mkdir()
    (folder / name).symlink_to(tmp_path / 'victim')
    with pytest.raises(UserError, match=f'{name}: is a link'):
        folder_to_write(folder)


@pytest.mark.parametrize('kind', ['old', 'tmp-notes'])
def test_hidden_folders_beside_a_dataset_stay(kind, tmp_path):
    mine = tmp_path / f'.d.{kind}' / 'keep.txt'
    mine.parent.mkdir()
    mine.write_text('mine')
    folder = dataset_file(tmp_path)
    again = str(tmp_path / 'a.jsonl'), str(folder), 'byte'
    if kind == 'old':
        with pytest.raises(UserError, match=r'\.d\.old: is in the way; rename it'):
            prepare(*again, overwrite=True)
    else:
        prepare(*again, overwrite=True)
    assert mine.read_text() == 'mine' and open_dataset(folder).train.n_episodes == 7


def packed(folder: Path) -> Path:
    episodes(folder / 'a.jsonl')
    how = dict(enable_packing=True, pack_block_size=64, val_split=0)
    prepare(str(folder / 'a.jsonl'), str(folder / 'd'), 'byte', **how)
    return folder / 'd'


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(packing=dict(enabled=True, block_size=40)), 'no whole rows of 40'),
        (dict(packing=dict(enabled=True, block_size=2**20)), 'no whole rows of 1,048,576'),
        (dict(num_train_tokens=0), 'impossible'),
        (dict(num_train_supervised=2**40), 'impossible'),
    ],
)
def test_signed_counts_that_no_dataset_has(change, said, tmp_path):
    folder = packed(tmp_path)
    resigned(folder / 'dataset_metadata.json', lambda meta: meta.update(change))
    with pytest.raises(UserError, match=said):
        open_dataset(folder)
    assert len(validate_dataset(folder)) == 1


def test_a_signed_block_that_cuts_episodes(tmp_path):
    folder = packed(tmp_path)
    resigned(folder / 'dataset_metadata.json', lambda m: m['packing'].update(block_size=16))
    with pytest.raises(UserError, match='an episode lies in two rows of 16'):
        open_dataset(folder).train.row_lengths  # noqa: B018


def test_validation_counts(tmp_path):
    folder = packed(tmp_path)
    path = folder / 'dataset_metadata.json'
    resigned(path, lambda m: m.update(num_train_tokens=m['num_train_tokens'] - 1))
    [problem] = validate_dataset(folder)
    assert 'its metadata says' in problem


def test_ids_beyond_the_vocabulary(tmp_path):
    folder = packed(tmp_path)
    ids = np.memmap(folder / 'train' / 'tokens.bin', '<u4', 'r+')
    ids[3] = 70_000
    ids.flush()
    with pytest.raises(UserError, match='train: the id 70000 is none of the 276'):
        open_dataset(folder).train.row(0)


def test_a_deep_report_makes_no_dataset(tmp_path):
    episodes(tmp_path / 'a.jsonl')
    (tmp_path / 'a.jsonl.mix.json').write_text('{"a":' * 150 + '{}' + '}' * 150)
    with pytest.raises(UserError, match=r'damaged \(nested too deep\); mix its file again'):
        prepare(str(tmp_path / 'a.jsonl'), str(tmp_path / 'd'), 'byte')
    assert not (tmp_path / 'd').exists()


def test_a_vast_context_makes_no_vast_table(tmp_path):
    cfg = ModelConfig(n_layer=1, n_embd=256, n_head=1, block_size=2**20)
    model = GPT(cfg).eval()
    rope_tables.cache_clear()
    ids = torch.randint(0, 300, (1, 9))
    with torch.no_grad():
        said = model(ids)
        model.cfg.block_size = 64
        assert torch.equal(said, model(ids))
    cos, _ = rope_tables(*cfg.rope_key(SHORT_TABLE), 'cpu')
    assert rope_tables.cache_info().misses == 2 and len(cos) == SHORT_TABLE


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(rope_scaling=dict(rope_type=['yarn'])), 'its rope_type must be llama3 or yarn'),
        (dict(rope_theta=1.0), 'YaRN needs one above 1'),
        (dict(rope_scaling=dict(beta_fast=5e-324)), 'its numbers must be above 0'),
    ],
)
def test_scalings_that_cannot_be_computed(change, said):
    yarn = dict(rope_type='yarn', factor=2.0, original_max_position_embeddings=64)
    own = dict(rope_scaling=yarn | change.get('rope_scaling', {}))
    with pytest.raises(UserError, match=said):
        make_config(change | own)


def test_a_config_of_many_keys_is_told_soon(tmp_path):
    path = tmp_path / 'c.json'
    path.write_text(json.dumps({f'key{i}': 1 for i in range(60_000)}))
    with pytest.raises(UserError, match="unknown key 'key0'"):
        load_config(path)
    path.write_text('{"n_layer": 1, "n_layer": 2}')
    with pytest.raises(UserError, match="'n_layer' occurs twice"):
        load_config(path)


def adam(change) -> None:
    "Give a model's optimizer state back after a change."
    model = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2))
    opts = make_optimizers(model, TrainConfig())
    model(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    for o in opts:
        o.step()
    tensors = optimizer_tensors(model, opts)
    fresh = GPT(model.cfg)
    empty = make_optimizers(fresh, TrainConfig())
    try:
        load_optimizer_tensors(fresh, empty, change(tensors))
    except UserError:
        assert not optimizer_tensors(fresh, empty), 'a refused state was filled in part'
        raise


@pytest.mark.parametrize(
    'change, said',
    [
        (lambda t: dict(x=torch.zeros(2)), "state for 'x', which this model does not train"),
        (
            lambda t: {k: torch.zeros(3) if 'avg' in k else v for k, v in t.items()},
            r'is \(3,\) of torch.float32, the weight is',
        ),
        (lambda t: {k: v for k, v in t.items() if 'step' not in k}, "has 'exp_avg', 'exp_avg_sq'"),
        (lambda t: {k: v.int() for k, v in t.items()}, 'torch.int32'),
    ],
)
def test_optimizer_state_of_another_model(change, said):
    adam(lambda t: t)
    with pytest.raises(UserError, match=said):
        adam(change)


def test_words_of_bytes_in_an_index(tmp_path):
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'a.md').write_text('# Login\n\nThe password lies in the safe.')
    index = Index.build(tmp_path / 'docs', tmp_path / 'i')
    with closing(sqlite3.connect(tmp_path / 'i' / 'index.sqlite')) as db:
        db.execute('update gram set words = cast(words as blob)')
        db.commit()
    index = Index.open(tmp_path / 'i')
    with pytest.raises(UserError, match=r'words that are not text.*mypt rag-index'):
        index.search('passwordx')


def test_one_writer_of_an_index(tmp_path):
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'a.md').write_text('# A\n\nBread is baked.')
    (tmp_path / 'i').mkdir()
    lock = lock_folder(tmp_path / 'i')
    with pytest.raises(UserError, match='another process writes it; wait until it ends'):
        Index.build(tmp_path / 'docs', tmp_path / 'i')
    os.close(lock)
    Index.build(tmp_path / 'docs', tmp_path / 'i')


# ---------------------------------------------------------------- imports


def put_tensor(file: Path, name: str, n: int, kind: str = 'F32'):
    "A further tensor of `n` numbers of four bytes, as a hole in the file."
    raw = file.read_bytes()
    size = int.from_bytes(raw[:8], 'little')
    head, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    head[name] = dict(dtype=kind, shape=[n], data_offsets=[len(data), len(data) + 4 * n])
    text = json.dumps(head).encode()
    with open(file, 'wb') as f:
        f.write(len(text).to_bytes(8, 'little') + text + data)
        f.truncate(f.tell() + 4 * n)


def trained_model(folder: Path) -> Path:
    "A model with the state of its optimizer."
    torch.manual_seed(0)
    gpt = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2))
    opts = make_optimizers(gpt, TrainConfig())
    gpt(torch.zeros(1, 3, dtype=torch.long)).sum().backward()
    for o in opts:
        o.step()
    state = dict(step=5, tokens=9, supervised=3, skipped=0, best=1.0, precision='fp32')
    tensors = optimizer_tensors(gpt, opts)
    return save_checkpoint(folder / 'm', gpt, get_tokenizer('byte'), state, tensors)


def sign_again(folder: Path):
    "Note the files as they are now."

    def change(meta):
        sums = checksums(folder / name for name in meta['files_sha256'])
        meta.update(files_sha256=sums, weights_sha256=sha256_of(folder / 'model.safetensors'))

    resigned(folder / 'mypt.json', change)


NORM = 'model.norm.weight'
FALSE_STATES = [  # a further tensor of an optimizer
    ('junk', 2**20, 'F32', "state for 'junk', which this model does not train"),
    (f'{NORM}/momentum_buffer', 2**20, 'F32', r'is \(1048576,\) of F32, the weight is \(32,\)'),
    (f'{NORM}/momentum_buffer', 32, 'I32', r'is \(32,\) of I32, the weight is'),
    (f'{NORM}/spare', 32, 'F32', 'is none of step, exp_avg, exp_avg_sq, momentum_buffer'),
]


def not_read(*_):
    pytest.fail('was read')


@pytest.mark.parametrize('name, n, kind, said', FALSE_STATES)
def test_an_optimizer_of_another_model_is_refused_before_it_is_read(
    name, n, kind, said, tmp_path, monkeypatch
):
    "All of it was read before a word was said."
    folder = trained_model(tmp_path)
    assert len(load_state(folder).tensors) > 9
    put_tensor(folder / 'optimizer.safetensors', name, n, kind)
    monkeypatch.setattr(module_of(load_state.__module__), 'read_tensors', not_read)
    with pytest.raises(UserError, match=said) as e:
        load_state(folder)
    assert 'optimizer.safetensors: ' in str(e.value) and str(e.value).isprintable()


@pytest.mark.parametrize('name, n, kind, said', FALSE_STATES)
def test_shards_of_another_model_are_refused_before_they_are_read(name, n, kind, said, tmp_path):
    folder = trained_model(tmp_path)
    model = open_shards(folder, alone=True).model
    tensors = read_training_shards(model, folder, alone=True)
    assert torch.equal(model.head, load_model(folder).model.head)
    assert tensors.keys() == load_state(folder).tensors.keys()
    put_tensor(folder / 'optimizer.safetensors', name, n, kind)
    sign_again(folder)
    with pytest.raises(UserError, match=said):
        open_shards(folder, alone=True)


def test_shards_of_other_weights_are_refused(tmp_path):
    folder = trained_model(tmp_path)
    resigned(folder / 'mypt.json', lambda meta: meta['model'].update(tie_weights=False))
    with pytest.raises(UserError, match=r'lm_head.weight is missing|files hold'):
        open_shards(folder, alone=True)


def test_a_weight_in_two_files_is_refused_before_it_is_read(tmp_path, monkeypatch):
    "The shape of the last one was compared, and both were read."
    folder = make_index(tmp_path)
    shutil.copy(folder / 'model.safetensors', folder / 'a.safetensors')
    table = dict(weight_map=dict(a='a.safetensors', b='model.safetensors'))
    (folder / 'model.safetensors.index.json').write_text(json.dumps(table))
    monkeypatch.setattr(module_of(import_model.__module__), 'read_weight_shards', not_read)
    with pytest.raises(UserError, match=r'is in another file too; fetch it again'):
        import_model(str(folder), str(tmp_path / 'x'))


def test_a_gguf_file_is_compared_before_it_is_read(tmp_path, monkeypatch):
    gguf = pytest.importorskip('gguf')
    model_file(tmp_path)
    export(str(tmp_path / 'm'), str(tmp_path / 'm.gguf'))
    gguf_with(tmp_path / 'm.gguf', tmp_path / 'norm.gguf', {}, {'output_norm.weight': np.zeros(7)})
    monkeypatch.setattr(gguf.quants, 'dequantize', not_read)
    found = read_gguf(tmp_path / 'norm.gguf')
    with pytest.raises(UserError, match=r'is \(7,\), its config says \(32,\)'):
        gguf_weights(found, llama_shape(found.config))
    long = {'rope_freqs.weight': np.zeros(2**14, np.float32)}
    gguf_with(tmp_path / 'm.gguf', tmp_path / 'rope.gguf', {}, long)
    monkeypatch.setattr(module_of(read_gguf.__module__), '_llama3_scaling', not_read)
    with pytest.raises(UserError, match="rope_freqs are not Llama 3's"):
        import_model(str(tmp_path / 'rope.gguf'), str(tmp_path / 'x'))


def test_an_unknown_tensor_is_refused_before_it_is_read(tmp_path, monkeypatch):
    folder = llama(tmp_path / 'hf')
    put_tensor(folder / 'model.safetensors', 'junk', 2**20)
    monkeypatch.setattr(
        module_of(import_model.__module__), 'read_weight_shards', lambda *_: pytest.fail('was read')
    )
    with pytest.raises(UserError, match=r"'junk' is \(1048576,\), its config says no such tensor"):
        import_model(str(folder), str(tmp_path / 'x'))


def test_of_a_vast_card_the_first_lines_are_read(tmp_path):
    folder = llama(tmp_path / 'hf')
    with open(folder / 'README.md', 'wb') as f:
        f.write(b'---\nlicense: mit\n---\n')
        f.truncate(3 * 2**30)
    out = import_model(str(folder), str(tmp_path / 'x'))
    assert load_model(out).meta['lineage']['imported']['license'] == 'mit'


def spec_of(folder: Path, change):
    path = folder / 'tokenizer.json'
    spec = json.loads(path.read_text())
    change(spec)
    path.write_text(json.dumps(spec))
    return folder


def test_a_token_of_letters_that_are_no_bytes(tmp_path):
    "As in the library: it is what it spells, and no text is encoded to it."
    folder = spec_of(llama(tmp_path), lambda s: s['model']['vocab'].update({'日本': 270}))
    tok = foreign_tokenizer(folder)
    assert tok.decode([270]) == '日本' and tok.decode(tok.encode('日本')) == '日本'
    assert 270 not in tok.ranks.values() and 270 not in tok.encode('日本')


def test_a_pattern_that_never_ends_is_one_line(tmp_path, capfd):
    cut = dict(type='Split', pattern=dict(Regex=r'([\s\S]+)+(?!)'), behavior='Isolated')
    steps = [cut | dict(invert=False)]

    def change(spec):
        whole = [*steps, spec['pre_tokenizer']]
        spec['pre_tokenizer'] = dict(type='Sequence', pretokenizers=whole)

    with pytest.raises(UserError, match=r'cannot cut this text .*; take another base'):
        foreign_tokenizer(spec_of(llama(tmp_path), change))
    assert 'panicked' not in capfd.readouterr().err


def old_model(**more) -> dict:
    C, Z = 8, torch.zeros
    block = {
        'sa.qkv.weight': Z(3 * C, C),
        'sa.proj.weight': Z(C, C),
        'ln1.weight': Z(C),
        'ln2.weight': Z(C),
        'fwd.w_gate.weight': Z(64, C),
        'fwd.w_up.weight': Z(64, C),
        'fwd.w_down.weight': Z(C, 64),
    }
    whole = {f'blocks.0.{k}': w for k, w in block.items()}
    return {'token_embedding_table.weight': Z(50304, C), 'ln_f.weight': Z(C)} | whole | more


OLD_LIES = dict(
    keys=lambda: {0: torch.zeros(3)},
    flat=lambda: old_model(**{'token_embedding_table.weight': torch.zeros(5)}),
    scalar=lambda: old_model(**{'blocks.0.fwd.w_up.weight': torch.zeros(())}),
    qkv=lambda: old_model(**{'blocks.0.sa.qkv.weight': torch.zeros(11, 8)}),
    meta=lambda: {k: w.to('meta') for k, w in old_model().items()},
    sparse=lambda: old_model(**{'ln_f.weight': torch.zeros(8).to_sparse()}),
    vast=lambda: old_model(**{'ln_f.weight': torch.zeros(1).half().expand(2**40)}),
    stack=lambda: b'\x80\x02.',
)


@pytest.mark.parametrize('name', OLD_LIES)
def test_a_false_model_pt_is_one_line(name, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(dict(n_head=2)))
    lie = OLD_LIES[name]()
    if isinstance(lie, bytes):
        (tmp_path / 'model.pt').write_bytes(lie)
    else:
        torch.save(lie, tmp_path / 'model.pt')
    with pytest.raises(UserError, match=r'restore|no state_dict in it|refused'):
        import_model(str(tmp_path), str(tmp_path / 'x'), tags='none')


def test_what_nobody_thought_of_is_one_line_too(tmp_path, monkeypatch):
    monkeypatch.setattr(module_of(import_model.__module__), 'import_llama', lambda _: [].pop())
    with pytest.raises(UserError, match=r'IndexError: pop from empty list\)') as e:
        import_model(str(llama(tmp_path / 'hf')), str(tmp_path / 'x'))
    assert isinstance(e.value.__cause__, IndexError) and not (tmp_path / 'x').exists()


def text_of(*parts) -> bytes:
    "Strings of a GGUF file, with their lengths before them, between other bytes."
    return b''.join(struct.pack('<Q', len(p)) + p.encode() if type(p) is str else p for p in parts)


@pytest.mark.parametrize('n', [2**40, 2**23])
def test_a_gguf_array_is_not_longer_than_its_file(n, tmp_path):
    pytest.importorskip('gguf')
    kind = struct.pack('<IIQ', 9, 0, n)
    head = b'GGUF' + struct.pack('<IQQ', 3, 0, 1)
    (tmp_path / 'a.gguf').write_bytes(head + text_of('x', kind))
    os.truncate(tmp_path / 'a.gguf', 2**24)  # a hole, so that the shorter one has its bytes
    with pytest.raises(UserError, match=f'an array of {n:,} items'):
        read_gguf(tmp_path / 'a.gguf')


def gguf_with(source: Path, target: Path, fields: dict, tensors: dict):
    "A GGUF file again, with other fields (name → value, kind, kind of items) and tensors."
    import gguf

    array, reader = gguf.GGUFValueType.ARRAY, gguf.GGUFReader(source)
    arch = reader.fields['general.architecture'].contents()
    writer = gguf.GGUFWriter(target, arch)
    for name, f in reader.fields.items():
        value, kind = f.contents(), f.types[0]
        skip = name.startswith('GGUF.') or name == 'general.architecture' or name in fields
        if not skip and (kind != array or value):
            writer.add_key_value(name, value, kind, f.types[-1] if kind == array else None)
    for name, field in fields.items():
        writer.add_key_value(name.replace('ARCH', arch), *field)
    for t in reader.tensors:
        if t.name not in tensors:
            writer.add_tensor(t.name, np.array(t.data), raw_dtype=t.tensor_type)
    for name, a in tensors.items():
        writer.add_tensor(name, a)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_lies(kinds) -> dict:
    "Name → (fields, tensors), what is said."
    text, floats, ints = kinds.STRING, kinds.FLOAT32, kinds.INT32
    yarn = {
        'ARCH.rope.scaling.type': ('yarn', text, None),
        'ARCH.rope.scaling.factor': (0.0, floats, None),
        'ARCH.rope.scaling.attn_factor': (2.0, floats, None),
    }
    numbers = {'tokenizer.ggml.tokens': ([1, 2, 3], kinds.ARRAY, ints)}
    scores = {
        'tokenizer.ggml.model': ('llama', text, None),
        'tokenizer.ggml.scores': ([0.0], kinds.ARRAY, floats),
    }
    table, rope = 'token_embd.weight', 'rope_freqs.weight'
    return dict(
        table=(({}, {table: np.zeros(320, np.float32)}), 'token_embd.weight is no matrix'),
        rope=(({}, {rope: np.zeros((2, 3), np.float32)}), "are not Llama 3's"),
        yarn=((yarn, {}), 'rope_scaling'),
        tokens=((numbers, {}), 'its tokens are no texts'),
        scores=((scores, {}), '1 scores for more tokens'),
    )


def test_gguf_files_that_contradict_themselves(tmp_path):
    gguf = pytest.importorskip('gguf')
    model_file(tmp_path)
    export(str(tmp_path / 'm'), str(tmp_path / 'm.gguf'))
    for name, (change, said) in gguf_lies(gguf.GGUFValueType).items():
        gguf_with(tmp_path / 'm.gguf', tmp_path / f'{name}.gguf', *change)
        with pytest.raises(UserError, match=said):
            import_model(str(tmp_path / f'{name}.gguf'), str(tmp_path / 'x'))
    assert not (tmp_path / 'x').exists()
    gguf_with(tmp_path / 'm.gguf', tmp_path / 'norm.gguf', {}, {'output_norm.weight': np.zeros(7)})
    found = read_gguf(tmp_path / 'norm.gguf')
    with pytest.raises(UserError, match=r'is \(7,\), its config says \(32,\)'):
        gguf_weights(found, llama_shape(found.config))


# ---------------------------------------------------------------- where results go


def test_nothing_but_a_file_is_replaced_by_a_file(tmp_path, monkeypatch):
    "A device, a pipe, a link or a folder at --output stays what it was; one line says so."
    monkeypatch.chdir(tmp_path)
    os.mkfifo('pipe')
    Path('kept.txt').write_text('mine')
    Path('link').symlink_to('kept.txt')
    Path('broken').symlink_to('nowhere.txt')
    write_episodes('e.jsonl', make_echo(30))
    for name in ('pipe', 'link', 'broken', '.', '..', '/', '/dev/null'):
        for write in (
            lambda name=name: write_episodes(name, make_echo(3)),
            lambda name=name: mix(['e.jsonl:1.0'], name),
            lambda name=name: dedup('e.jsonl', name),
        ):
            with pytest.raises(UserError, match=r'is a (folder|link|device)'):
                write()
    for name in ('pipe', 'link', 'broken', '/', '.', '..'):
        with pytest.raises(UserError, match=r'choose another|name (one|a folder) in it'):
            prepare('e.jsonl', name, tokenization='byte', workers=1)
    assert stat.S_ISFIFO(os.stat('pipe').st_mode) and stat.S_ISCHR(os.stat('/dev/null').st_mode)
    assert Path('link').is_symlink() and Path('kept.txt').read_text() == 'mine'
    assert not Path('nowhere.txt').exists()
    assert sorted(os.listdir()) == ['broken', 'e.jsonl', 'kept.txt', 'link', 'pipe']


@pytest.mark.parametrize('name', ['x/' * 3000 + 'y', 'n' * 300, 'x\x1b[2J/' * 200 + 'y'])
def test_a_path_beyond_all_bounds_is_one_line(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_episodes('e.jsonl', make_echo(30))
    for line in ('mix --inputs e.jsonl:1.0 --output', 'diversity e.jsonl --report', 'check'):
        code = main([*line.split(), name])
        said = capsys.readouterr().err.strip()
        assert code in (0, 1, 2)
        if code == 2:
            assert said.startswith('mypt: ') and len(said) < 1100
            assert said.isprintable()


@pytest.mark.parametrize(
    'line',
    [
        'make echo --output e2.jsonl --seed 18446744073709551616',
        'make echo --output e2.jsonl --num_examples 1000000000000000',
        'run --phase 1 --output_dir r --num_examples 1000000000000000',
        'assistant --docs_dir . --output_dir r --num_examples 1000000000000000',
        'context-extension --output_dir r --general_target_tokens 3000000000000',
        'prepare --input e.jsonl --output_dir d --seed 99999999999999999999999',
        'prepare --input e.jsonl --output_dir d --enable_packing --pack_block_size 1000000000000',
        'mix --inputs e.jsonl:1e400 --output m.jsonl',
        'train --model_name / --config_file tiny --dataset_dir d',
        'train --model_name .. --config_file tiny --dataset_dir d',
        'train --model_name own --config_file tiny --dataset_dir d',
        'rag-index --docs_dir . --out_dir /',
        'translate extract --input e.jsonl --output_dir /',
        'run --phase 1 --output_dir /',
        'prepare-jobs plan --input e.jsonl --jobs_dir / --tokenization byte',
        'export --model_name m --output /',
    ],
)
def test_numbers_and_names_beyond_all_bounds_are_one_line(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_episodes('e.jsonl', make_echo(30))
    prepare('e.jsonl', 'd', tokenization='byte', workers=1)
    Path('checkpoints/own').mkdir(parents=True)
    Path('checkpoints/own/diary.txt').write_text('Monday')
    before = sorted(os.listdir())
    capsys.readouterr()
    assert main(line.split()) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith('mypt: ') and '\n' not in said and len(said) < 300
    assert sorted(os.listdir()) == before and os.listdir('checkpoints/own') == ['diary.txt']


def test_any_temperature_is_an_answer_or_one_line(tmp_path, capsys):
    ask = [
        'generate',
        '--model',
        str(model_file(tmp_path)),
        '--user',
        'hi',
        '--max_new_tokens',
        '5',
    ]

    def said(temperature):
        code = main([*ask, '--temperature', temperature])
        return code, *capsys.readouterr()

    greedy = said('0')
    assert greedy[0] == 0 and greedy[2] == ''
    for cold in ('1e-40', '5e-324', '1e-400'):
        assert said(cold) == greedy
    for wrong in ('1e308', '1e400', 'nan', 'inf', '-1', 'x'):
        code, out, err = said(wrong)
        assert (code, out, err.count('\n')) == (2, '', 1) and 'temperature' in err
