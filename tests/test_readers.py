"""Readers beside writers: a reader changes nothing and reads one version, a writer is alone.

pytest tests/test_readers.py
pytest tests/test_readers.py -m slow      # 100 trainings, 20 pairs of writers, 20 killed imports
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from importlib import import_module
from pathlib import Path
import numpy as np
import pytest
import torch
from mypt.agent.retrieval import Index
from mypt.data.dataset import open_dataset
from mypt.data.episodes import write_episodes
from mypt.data.prepare import prepare
from mypt.data.tokenizer import get_tokenizer
from mypt.data.validate import validate_dataset
from mypt.data.writer import DatasetWriter
from mypt.errors import UserError
from mypt.files import atomic_write
from mypt.interop.import_model import import_model
from mypt.model.checkpoint import load_model, load_state, save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT
from mypt.train.train import train

ENV = os.environ | {'OMP_NUM_THREADS': '1'}
TINY = ['n_layer=1', 'n_embd=32', 'n_head=2', 'block_size=64', 'batch_size=2', 'eval_iters=1']
SAVING = [*TINY, 'save_every=1', 'eval_interval=2', 'warmup_iters=0']

READER = """
import sys
from pathlib import Path
from mypt.errors import UserError
from mypt.model.checkpoint import load_model, load_state
folder, n = Path(sys.argv[1]), 0
print('ready', flush=True)
while not (folder / 'stop').exists():
    for model in [*folder.glob('m*'), *folder.glob('m*/best')]:
        try:
            load_model(model, verify=True)
            n += 1
        except UserError as e:
            if 'nothing is saved there yet' not in str(e) and 'no such model' not in str(e):
                raise
print(n)
"""


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    d = tmp_path_factory.mktemp('data')
    rows = [
        dict(messages=[dict(role='user', content=f'{i}+1'), dict(role='assistant', content=f'{i}')])
        for i in range(40)
    ]
    write_episodes(d / 'sums.jsonl', rows)
    prepare(str(d / 'sums.jsonl'), str(d / 'sums'), tokenization='byte', pack_block_size=64)
    return d / 'sums'


def start(code, *args) -> subprocess.Popen:
    command = [sys.executable, '-c', code, *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=ENV)


def trainings_under_a_reader(n, dataset, folder):
    reader = start(READER, folder)
    assert reader.stdout.readline() == 'ready\n'
    for i in range(n):
        t = train(folder / f'm{i}', dataset, sets=SAVING, max_iters=6, quiet=True)
        assert t.step == 6 and reader.poll() is None, reader.communicate()
        load_state(folder / f'm{i}')
    (folder / 'stop').touch()
    out, err = reader.communicate(timeout=60)
    assert reader.returncode == 0, err
    return int(out)


def test_trainings_live_under_a_reader(dataset, tmp_path):
    assert trainings_under_a_reader(10, dataset, tmp_path) > 10


@pytest.mark.slow
def test_a_hundred_trainings_live_under_a_reader(dataset, tmp_path):
    print(trainings_under_a_reader(100, dataset, tmp_path), 'models were read')


def mypt(*args, cwd) -> subprocess.Popen:
    command = [sys.executable, '-m', 'mypt.cli', *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=cwd, stdout=pipe, stderr=pipe, text=True, env=ENV)


def two_writers(n, dataset, folder):
    "Start `mypt train` twice on one model: one trains, the other says one line."
    for i in range(n):
        command = 'train', '--model_name', f'm{i}', '--dataset_dir', dataset, '--quiet'
        pair = [mypt(*command, '--max_iters', 100_000, '--sets', *TINY, cwd=folder) for _ in '12']
        while [p.poll() for p in pair] == [None, None]:
            time.sleep(0.1)
        loser, winner = sorted(pair, key=lambda p: p.returncode is None)
        _, said = loser.communicate()
        assert loser.returncode == 2 and said.count('\n') == 1, said
        assert 'another process writes it; wait until it ends' in said
        while not (folder / 'checkpoints' / f'm{i}' / 'log.jsonl').exists():
            time.sleep(0.1)
        winner.send_signal(signal.SIGTERM)  # it saves
        _, said = winner.communicate(timeout=120)
        assert winner.returncode == 0, said
        load_model(folder / 'checkpoints' / f'm{i}', verify=True)


def test_two_writers(dataset, tmp_path):
    two_writers(1, dataset, tmp_path)


@pytest.mark.slow
def test_twenty_pairs_of_writers(dataset, tmp_path):
    two_writers(20, dataset, tmp_path)


# ---------------------------------------------------------------- datasets


def numbered(folder, n):
    "A dataset whose every token is `n`, in `n` rows."
    with DatasetWriter(folder, get_tokenizer('byte'), overwrite=True, block=64) as w:
        size = 64 * n
        places = [[64 * i, 64] for i in range(n)]
        ones = np.ones(size, 'u1')
        w.add('train', np.full(size, n, 'u4'), ones, places, ones)
        w.commit()


def test_a_dataset_is_read_in_one_version(tmp_path):
    folder = tmp_path / 'd'
    numbered(folder, 1)
    writer = threading.Thread(target=lambda: [numbered(folder, n) for n in range(2, 50)])
    writer.start()
    seen = []
    while writer.is_alive():
        ds = open_dataset(folder)
        rows = [ds.train.row(i).ids for i in range(ds.train.n_rows)]
        assert {int(t) for ids in rows for t in ids} == {len(rows)}
        seen.append(len(rows))
    assert len(set(seen)) > 3 and seen == sorted(seen)
    assert validate_dataset(folder) == []
    assert [p.name for p in tmp_path.iterdir()] == ['d']


def test_writers_of_one_dataset_wait_for_each_other(tmp_path):
    numbered(tmp_path / 'd', 1)
    faults = []

    def write(k):
        try:
            for n in range(20):
                numbered(tmp_path / 'd', 1 + n % 7 + k)
        except UserError as e:
            faults.append(str(e))

    writers = [threading.Thread(target=write, args=[k]) for k in range(3)]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    assert faults == []
    assert validate_dataset(tmp_path / 'd') == []
    assert [p.name for p in tmp_path.iterdir()] == ['d']


# ---------------------------------------------------------------- folders of strangers


def listing(folder) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob('*')) if p.is_file()}


def model(folder, fill=0.0):
    gpt = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2))
    for w in gpt.state_dict().values():
        w.fill_(fill)
    save_checkpoint(folder, gpt, get_tokenizer('byte'), dict(step=int(fill)), {})


@pytest.mark.parametrize('name', ['.commit', '.next', '.done'])
def test_a_link_in_a_model_is_not_followed(tmp_path, name):
    model(tmp_path / 'evil')
    victim = tmp_path / 'victim'
    victim.mkdir()
    (victim / 'thesis.txt').write_text('mine')
    (tmp_path / 'evil' / name).symlink_to(victim)
    before = listing(tmp_path)
    load_model(tmp_path / 'evil', verify=True)
    assert listing(tmp_path) == before and (tmp_path / 'evil' / name).is_symlink()
    model(tmp_path / 'evil', 1.0)  # a writer removes the link
    assert load_model(tmp_path / 'evil', verify=True).meta['step'] == 1
    assert [p.name for p in victim.iterdir()] == ['thesis.txt']


def test_opening_what_is_not_there_changes_nothing(tmp_path):
    numbered(tmp_path / '.gone.old', 3)
    before = sorted(p.name for p in tmp_path.iterdir())
    assert validate_dataset(tmp_path / 'gone') == []
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_weights_that_are_replaced_while_they_are_opened_are_read_again(tmp_path, monkeypatch):
    "safetensors opens a file, and torch opens it again; between the two a save may be finished."
    model(tmp_path / 'm', 1.0)
    checkpoint, said = import_module(load_model.__module__), []

    def gone_once(path, kind, real=checkpoint.safe_open):
        if said:
            return real(path, kind)
        said.append(path)
        model(tmp_path / 'm', 2.0)
        raise RuntimeError(f'unable to open file <{path}> in read-only mode: No such file (2)')

    monkeypatch.setattr(checkpoint, 'safe_open', gone_once)
    assert load_model(tmp_path / 'm').meta['step'] == 2 and len(said) == 1


def test_a_model_is_read_where_nothing_may_be_written(tmp_path):
    model(tmp_path / 'm', 1.0)
    model(tmp_path / 'other', 2.0)
    (tmp_path / 'other').rename(tmp_path / 'm' / '.commit')  # a save that was killed
    os.chmod(tmp_path / 'm', 0o555)
    try:
        assert load_model(tmp_path / 'm', verify=True).meta['step'] == 2
        assert load_state(tmp_path / 'm').numbers['step'] == 2
    finally:
        os.chmod(tmp_path / 'm', 0o755)


# ---------------------------------------------------------------- what killed writers leave

HALF_WRITTEN = """
import os, signal, sys
from mypt.files import atomic_write
with atomic_write(sys.argv[1]) as f:
    f.write(b'half')
    f.flush()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_leftovers_of_dead_writers_go_and_those_of_living_ones_stay(tmp_path):
    path = tmp_path / 'report.json'
    assert start(HALF_WRITTEN, path).wait() == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 1
    with atomic_write(path) as mine:
        with atomic_write(path) as theirs:
            theirs.write(b'first')
        mine.write(b'second')
    assert path.read_bytes() == b'second'
    assert [p.name for p in tmp_path.iterdir()] == ['report.json']


def test_leftovers_of_an_index_go(tmp_path):
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'a.md').write_text('# A\n\nBread is baked.')
    (tmp_path / 'index').mkdir()
    (tmp_path / 'index' / '.index.sqlite.4711.tmp').write_bytes(b'half')
    Index.build(tmp_path / 'docs', tmp_path / 'index')
    assert [p.name for p in (tmp_path / 'index').iterdir()] == ['index.sqlite']


# ---------------------------------------------------------------- import


def base(folder):
    "An old model, as `model.pt`."
    torch.manual_seed(0)
    gpt = GPT(ModelConfig(n_layer=2, n_embd=32, n_head=2))
    save_checkpoint(folder / 'ours', gpt, get_tokenizer('byte'))
    (folder / 'base').mkdir()
    for f in (folder / 'ours').iterdir():
        if f.name not in ('mypt.json', 'tokenizer_state.json'):
            (folder / 'base' / f.name).write_bytes(f.read_bytes())
    return folder / 'base'


def killed_imports(n, folder):
    "Kill `mypt import` while it saves, `n` times; the same command then ends well."
    source = base(folder)
    import_model(source, folder / 'calm')
    calm = load_model(folder / 'calm', verify=True)
    for i in range(n):
        out = folder / f'm{i}'
        p = mypt('import', source, '--output', out, cwd=folder)
        while not out.exists() and p.poll() is None:
            time.sleep(0.001)
        time.sleep(i * 0.01)
        p.kill()
        p.communicate()
        again = mypt('import', source, '--output', out, cwd=folder)
        _, said = again.communicate(timeout=120)
        assert again.returncode == 0, said
        ours = load_model(out, verify=True).model.state_dict()
        assert all(torch.equal(w, ours[k]) for k, w in calm.model.state_dict().items())
        assert not [p for p in out.iterdir() if p.name.startswith('.')]


def test_killed_imports(tmp_path):
    killed_imports(1, tmp_path)


@pytest.mark.slow
def test_twenty_killed_imports(tmp_path):
    killed_imports(20, tmp_path)


def test_import_refuses_what_it_did_not_write(tmp_path):
    source = base(tmp_path)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'notes.txt').write_text('mine')
    with pytest.raises(UserError, match=r'holds notes\.txt and no model; choose another --output'):
        import_model(source, tmp_path / 'mine')
    assert json.dumps(sorted(p.name for p in (tmp_path / 'mine').iterdir())) == '["notes.txt"]'
    assert Path(tmp_path / 'mine' / 'notes.txt').read_text() == 'mine'
