"""Kills at random moments and at every moment of a save, full disks, torn and flipped files, NaN:
nothing is lost, nothing half-written, one clear line.

    pytest tests/test_faults.py                  # ten kills, two minutes
    MYPT_KILLS=200 pytest tests/test_faults.py -k random
    pytest tests/test_faults.py -m slow -s       # fifty kills of one run
"""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
import pytest
import torch
from safetensors.torch import load_file
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.data.episodes import write_episodes
from mypt.data.dataset import open_dataset
from mypt.data.prepare import prepare
from mypt.data.validate import validate_dataset
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT
from mypt.model.checkpoint import load_model, load_state, save_checkpoint
from mypt.train.loop import Callback
from mypt.train.callbacks import read_log

HERE = Path(__file__).parent
ENV = os.environ | {'OMP_NUM_THREADS': '1'}


def sums(n=80):
    return [
        {
            'messages': [
                {'role': 'user', 'content': f'{i}+{i + 3}'},
                {'role': 'assistant', 'content': str(2 * i + 3)},
            ]
        }
        for i in range(n)
    ]


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    d = tmp_path_factory.mktemp('data')
    write_episodes(d / 'sums.jsonl', sums())
    prepare(
        str(d / 'sums.jsonl'),
        str(d / 'sums'),
        tokenization='byte',
        enable_packing=True,
        pack_block_size=64,
    )
    return d / 'sums'


class Runs:
    "Starts runs of tests/kill_me.py as forks of one process, which has imported everything."

    def __init__(self):
        self.p = subprocess.Popen(
            [sys.executable, HERE / 'kill_me.py'],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENV,
        )

    def start(self, name, *args, how=None) -> int:  # pid
        self.p.stdin.write(json.dumps([how, name, *args], default=str) + '\n')
        self.p.stdin.flush()
        return int(self.p.stdout.readline())

    def end(self) -> tuple:  # (exit status, what it said)
        return tuple(json.loads(self.p.stdout.readline()).values())

    def run(self, name, *args, how=None):
        self.start(name, *args, how=how)
        return self.end()


@pytest.fixture(scope='module')
def runs():
    r = Runs()
    yield r
    r.p.stdin.close()
    r.p.wait()


def weights(model):
    return load_file(model / 'model.safetensors')


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def readable(model) -> int:  # its step; 0 when nothing is there yet
    "Everything that a checkpoint directory holds can be read and is of one piece."
    try:
        meta = load_model(model, verify=True)[2]
    except UserError as e:
        assert 'no such model' in str(e) or 'nothing is saved there yet' in str(e), e
        return 0
    assert meta['step'] == load_state(model)[0]['step']
    if (model / 'best').exists():
        readable_best(model / 'best')
    assert read_log(model / 'log.jsonl')[-1]['step'] >= meta['step']
    return meta['step']


def readable_best(best):
    try:
        load_model(best, verify=True)
    except UserError as e:
        assert 'nothing is saved there yet' in str(e), e


def log_of(model):
    return [
        {k: v for k, v in r.items() if k not in ('seconds', 'time', 'tok_per_s')}
        for r in read_log(model / 'log.jsonl')
    ]


def wait(seconds, log, lines, jitter):
    "Sleep, but not until a log has more lines than `lines`: the run would be too fast."
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.001)
        if log.exists() and log.read_bytes().count(b'\n') > lines:
            return time.sleep(jitter)


def killed_to_the_end(runs, dataset, folder, kills):
    "Kill one run `kills` times over its steps, and compare its end with that of a calm one."
    calm, model, steps = folder / 'calm', folder / 'killed', 40 + 5 * kills
    status, seconds = runs.run('train', dataset, calm, steps)
    assert status == 0, seconds
    rng, life, at, seen = random.Random(kills), seconds * 20 / steps, 0, set()
    for n in range(kills):
        pid = runs.start('train', dataset, model, steps)
        wait(
            rng.random() * life,
            model / 'log.jsonl',
            steps * (n + 1) / (kills + 2),
            rng.random() * 0.03,
        )
        os.kill(pid, signal.SIGKILL)
        assert runs.end()[0] == -signal.SIGKILL, f'the run ended before its kill {n + 1}'
        at = readable(model)
        seen.add(at)
        life *= (
            0.8 if at > steps * n / (kills + 2) else 1.25
        )  # short lives, so that many end at the start or in a save
        assert open_dataset(dataset).train.n_episodes
    assert len(seen) > 2 and at < steps
    status, said = runs.run('train', dataset, model, steps)
    assert status == 0 and not str(said).startswith('UserError'), said
    assert same(weights(calm), weights(model)) and same(
        weights(calm / 'best'), weights(model / 'best')
    )
    (s1, t1), (s2, t2) = load_state(calm), load_state(model)
    assert s1 == s2 and s1['step'] == steps and same(t1, t2)
    assert log_of(calm) == log_of(model)
    assert validate_dataset(dataset) == []
    return len(seen)


def test_kills_at_random_moments_end_bit_for_bit_like_the_undisturbed_run(runs, dataset, tmp_path):
    "Weights, best weights, optimizer, numbers and log; MYPT_KILLS=50 kills as often as that."
    killed_to_the_end(runs, dataset, tmp_path, int(os.environ.get('MYPT_KILLS', 10)))


@pytest.mark.slow
def test_a_run_killed_at_any_moment_of_its_saves(runs, dataset, tmp_path):
    "Killed at every third touch of a file in a run with two saves; each ends the same."
    assert runs.run('train', dataset, tmp_path / 'calm', 10)[0] == 0
    k, status = 0, None
    while status != 0:
        stage(tmp_path / 'm')
        status, _ = runs.run('train', dataset, tmp_path / 'm', 10, how=dict(call=k))
        readable(tmp_path / 'm')
        assert runs.run('train', dataset, tmp_path / 'm', 10)[0] == 0
        assert same(weights(tmp_path / 'calm'), weights(tmp_path / 'm')) and log_of(
            tmp_path / 'calm'
        ) == log_of(tmp_path / 'm')
        k += 3
    assert k > 100


@pytest.mark.slow
def test_fifty_kills(runs, dataset, tmp_path):
    print(killed_to_the_end(runs, dataset, tmp_path, 50), 'different steps were resumed')


def test_sigterm_saves_and_exits_well(runs, dataset, tmp_path):
    pid, log = (runs.start('train', dataset, tmp_path / 'm', 10_000), tmp_path / 'm' / 'log.jsonl')
    while not (log.exists() and len(log.read_bytes().splitlines()) > 3):
        time.sleep(0.01)
    os.kill(pid, signal.SIGTERM)
    assert runs.end()[0] == 0
    assert 3 <= readable(tmp_path / 'm') < 10_000


# ---------------------------------------------------------------- kills at every moment of a save


def every_moment(runs, before, folder, *job):
    "Kill a job before each touch of a file, then within writes; yields after each death."
    k, status = 0, None
    while status != 0:
        before()
        status, said = runs.run(*job, how=dict(call=k))
        assert status in (0, -signal.SIGKILL), said
        k += 1
        yield status
    for size in sorted(random.Random(0).sample(range(1, 20_000), 12)):
        before()
        status, _ = runs.run(*job, how=dict(size=size))
        assert status in (0, -signal.SIGXFSZ)
        yield status


def names(folder) -> list[str]:  # Of all files, hidden ones too
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*'))


def value(folder) -> int:  # The number that all of it is; 0 when nothing is there yet
    before = names(folder)
    try:
        model, _, meta = load_model(folder, verify=True)
    except UserError as e:
        assert 'no such model' in str(e) or 'nothing is saved there yet' in str(e), e
        return 0
    state, tensors = load_state(folder)
    values = {float(w.flatten()[0]) for w in model.state_dict().values()} | {
        float(tensors['model.norm.weight/exp_avg'][0]),
        state['step'],
        meta['step'],
    }
    assert len(values) == 1
    assert names(folder) == before  # a reader changes nothing
    return int(values.pop())


def stage(folder, old=None):
    for p in (folder, *folder.parent.glob(f'.{folder.name}.*')):
        shutil.rmtree(p, ignore_errors=True)
    if old:
        shutil.copytree(old, folder)


@pytest.mark.parametrize('first', [True, False])
def test_a_save_killed_at_any_moment_leaves_old_or_new(runs, tmp_path, first):
    old, folder, values = tmp_path / 'old', tmp_path / 'm', []
    runs.run('save', old, 1)
    for status in every_moment(
        runs, lambda: stage(folder, None if first else old), folder, 'save', folder, 2
    ):
        values.append(value(folder))
        if status == 0:
            assert values[-1] == 2
    assert set(values) == {0 if first else 1, 2} and len(values) > 50
    runs.run('save', folder, 3)
    assert value(folder) == 3
    assert not [name for name in names(folder) if name.startswith('.')]


def test_a_recovery_killed_at_any_moment_is_finished_by_the_next(runs, tmp_path):
    half, folder = tmp_path / 'half', tmp_path / 'm'
    runs.run('save', half, 1)
    runs.run('save', folder, 2)
    (half / '.commit').mkdir()
    for f in folder.iterdir():
        shutil.copy(f, half / '.commit')
    (half / 'model.safetensors').unlink()
    (half / 'model.safetensors').hardlink_to(half / '.commit' / 'model.safetensors')
    (half / '.next').mkdir()
    (half / '.next' / 'mypt.json').write_text('{')
    for status in every_moment(runs, lambda: stage(folder, half), folder, 'put_right', folder):
        assert value(folder) == 2
        if status == 0:
            assert not [name for name in names(folder) if name.startswith('.')]


@pytest.mark.parametrize('first', [True, False])
def test_a_dataset_killed_at_any_moment_is_old_or_new_or_not_there(runs, tmp_path, first):
    old, folder, seen = tmp_path / 'old', tmp_path / 'd', []
    runs.run('dataset', old, 20)
    for _ in every_moment(
        runs, lambda: stage(folder, None if first else old), folder, 'dataset', folder, 40
    ):
        try:
            seen.append(open_dataset(folder).train.n_episodes)
        except UserError as e:
            assert 'no such dataset' in str(e), e
            seen.append(0)
        assert not seen[-1] or validate_dataset(folder) == []
    assert set(seen) == {0 if first else 20, 40} and len(seen) > 50
    runs.run('dataset', folder, 60)
    assert open_dataset(folder).train.n_episodes == 60 and sorted(
        p.name for p in tmp_path.iterdir()
    ) == ['d', 'old']


# ---------------------------------------------------------------- full disks


def disk(runs, tmp_path, size, *job):
    "A job on a file system of `size` KiB; skips where this machine lets nobody mount one."
    (tmp_path / 'disk').mkdir()
    status, said = runs.run('on_small_disk', tmp_path / 'disk', size, *job)
    assert status == 0, said
    if said is None:
        pytest.skip('no file system may be mounted here')
    return said


def one_line(said):
    assert (
        said.startswith('UserError: ')
        and '\n' not in said
        and ('ree space' in said or 'free some' in said)
    ), said


def test_a_full_disk_keeps_the_old_checkpoint(runs, tmp_path):
    said, left = disk(runs, tmp_path, 400, 'save_twice')
    one_line(said)
    assert left == ['m'] and 'untouched' in said


def test_a_full_disk_leaves_no_dataset(runs, tmp_path):
    write_episodes(tmp_path / 's.jsonl', sums(3000))
    said, left = disk(runs, tmp_path, 200, 'prepare_big', tmp_path / 's.jsonl')
    one_line(said)
    assert left == []


def test_a_full_disk_keeps_the_old_index(runs, tmp_path):
    for n, folder in ((3, 'docs'), (300, 'more')):
        (tmp_path / folder).mkdir()
        for i in range(n):
            (tmp_path / folder / f'{i}.md').write_text(
                f'# Paper {i}\n\n' + ' '.join(f'word{i}x{k}' for k in range(60))
            )
    said, left = disk(runs, tmp_path, 300, 'index_twice', tmp_path / 'docs', tmp_path / 'more')
    one_line(said)
    assert left == ['i']


def test_a_log_on_a_full_disk_does_not_end_training_and_loses_nothing(runs, dataset, tmp_path):
    said, _ = disk(runs, tmp_path, 100, 'log_on_full_disk', dataset)
    assert said == f'ended well: {([*range(41)], 0)}', said
    shutil.rmtree(dataset / '..' / 'on_full')


def test_a_file_size_limit_fails_like_a_full_disk(runs, tmp_path):
    "The same for machines on which nobody may mount anything."
    small_model(tmp_path / 'm')
    code = """
import resource
import signal
import sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
sys.path.insert(0, HERE)
from kill_me import prepare, save, UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
for f in (lambda: save(M, 2), lambda: prepare(S, D, tokenization='byte', workers=1)):
    try: f()
    except UserError as e: print('ONE LINE:', e)
"""
    write_episodes(tmp_path / 's.jsonl', sums(3000))
    paths = [str(p) for p in (HERE, tmp_path / 'm', tmp_path / 's.jsonl', tmp_path / 'd')]
    code = f'HERE, M, S, D = {paths!r}\n{code}'
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV)
    assert [line[:9] for line in out.stdout.splitlines() if 'cannot be' in line] == [
        'ONE LINE:'
    ] * 2, out
    assert load_model(tmp_path / 'm', verify=True)[2]['step'] == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ['m', 's.jsonl']


# ---------------------------------------------------------------- torn, zeroed and flipped files


def small_model(folder, step=1):
    torch.manual_seed(step)
    model, tok = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2)), get_tokenizer('byte')
    save_checkpoint(
        folder, model, tok, dict(step=step), {'model.norm.weight/exp_avg': torch.ones(32)}
    )
    return model, tok


CHECKPOINT = [
    'config.json',
    'generation_config.json',
    'model.safetensors',
    'mypt.json',
    'optimizer.safetensors',
    'tokenizer.json',
    'tokenizer_config.json',
    'tokenizer_state.json',
    'training_state.json',
]


def harms(
    raw: bytes, rng
):  # yields damaged copies: cut anywhere, a tail of zeros as after a power cut, flipped bits
    cuts = {0, 1, len(raw) // 2, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(3))}
    for n in sorted(cuts):
        yield raw[:n]
    for n in sorted(cuts - {0}):
        yield raw[:n] + bytes(len(raw) - n)
    for at in (0, len(raw) - 1, *(rng.randrange(len(raw)) for _ in range(8))):
        bad = bytearray(raw)
        bad[at] ^= 1 << rng.randrange(8)
        yield bytes(bad)


def plain(f):  # True when it was read; a `UserError` of one line is fine, anything else is not
    try:
        f()
    except UserError as e:
        assert '\n' not in str(e)
        return False
    return True


@pytest.mark.parametrize('name', CHECKPOINT)
def test_every_damage_to_a_checkpoint_is_found_and_named(tmp_path, name):
    "`verify=True` finds every damage; a plain load finds what makes a file unreadable."
    small_model(tmp_path / 'm')
    assert sorted(p.name for p in (tmp_path / 'm').iterdir()) == CHECKPOINT
    f, rng, found = tmp_path / 'm' / name, random.Random(name), []
    raw = f.read_bytes()
    for bad in harms(raw, rng):
        if bad == raw:
            continue
        f.write_bytes(bad)
        with pytest.raises(UserError) as e:
            load_model(tmp_path / 'm', verify=True)
        assert name in str(e.value) and '\n' not in str(e.value)
        found.append(
            not (
                plain(lambda: load_model(tmp_path / 'm'))
                and plain(lambda: load_state(tmp_path / 'm'))
            )
        )
    if name == 'mypt.json':
        assert all(found)  # it bears its own sum
    if name == 'model.safetensors':
        assert not all(found)  # flipped numbers are numbers


def test_nobody_trains_on_from_flipped_weights(dataset, tmp_path, monkeypatch):
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)
    train('m', str(dataset), quiet=True, sets=TINY)
    for name in ('model.safetensors', 'optimizer.safetensors', 'training_state.json'):
        f = Path('checkpoints/m') / name
        raw = f.read_bytes()
        f.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
        with pytest.raises(UserError, match=f'{name}.*sha256'):
            train('m', str(dataset), quiet=True, sets=[*TINY, 'max_iters=12'])
        with pytest.raises(UserError, match=f'{name}.*sha256'):
            train('n', str(dataset), init_from_model='m', quiet=True, sets=TINY)
        f.write_bytes(raw)
    assert train('m', str(dataset), quiet=True, sets=[*TINY, 'max_iters=12']).step == 12


def test_every_damage_to_a_dataset_is_found_and_named(dataset, tmp_path):
    "Opening finds what has another length; `mypt validate` finds every bit."
    shutil.copytree(dataset, tmp_path / 'd')
    rng = random.Random(3)
    for f in sorted(p for p in (tmp_path / 'd').rglob('*') if p.is_file()):
        raw = f.read_bytes()
        for bad in harms(raw, rng):
            if bad == raw:
                continue
            f.write_bytes(bad)
            problems = validate_dataset(tmp_path / 'd')
            assert any(f.name in p for p in problems) and not any('\n' in p for p in problems), (
                f.name,
                problems,
            )
            if plain(lambda: open_dataset(tmp_path / 'd')):
                assert len(bad) == len(raw) and f.name != 'dataset_metadata.json'
        f.write_bytes(raw)
    assert validate_dataset(tmp_path / 'd') == []


@pytest.mark.parametrize('tail', [b'{"step": 9, "lo', b'\0' * 300, b'{"step": 9}\0\0\0', b'\xff'])
def test_a_torn_log_is_mended(dataset, tmp_path, monkeypatch, tail):
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)
    train('m', str(dataset), quiet=True, sets=TINY)
    log = Path('checkpoints/m/log.jsonl')
    log.write_bytes(log.read_bytes() + tail)
    train('m', str(dataset), quiet=True, sets=[*TINY, 'max_iters=12'])
    assert [json.loads(line)['step'] for line in log.read_bytes().splitlines()] == [*range(13)]


# ---------------------------------------------------------------- NaN, clocks that jump

NAN = [
    'n_layer=1',
    'n_embd=32',
    'n_head=2',
    'block_size=64',
    'grad_accum_steps=3',
    'batch_size=2',
    'save_every=5',
    'eval_interval=10',
]


class Spoil(Callback):
    "The loss of one micro-batch of three is not a number, in the steps named."

    def __init__(self, steps):
        self.steps = steps

    def before_fit(self, t):
        n, good = iter(range(10**6)), t.loss_fn
        t.loss_fn = lambda b, denom: (
            good(b, denom) * (math.nan if (k := next(n)) % 3 == 1 and k // 3 in self.steps else 1.0)
        )


def test_bad_steps_are_skipped_and_counted_and_three_in_a_row_end_the_run(
    dataset, tmp_path, monkeypatch
):
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)

    def go(name, *steps):
        spoil = Spoil(steps)
        return train(name, str(dataset), max_iters=20, sets=NAN, quiet=True, cbs=[spoil])

    t = go('few', 3, 6, 7, 9)
    assert t.step == 20 and t.skipped == 4 == load_state('few')[0]['skipped']
    assert [r['step'] for r in read_log('checkpoints/few/log.jsonl') if r.get('skipped')] == [
        4,
        7,
        8,
        10,
    ]
    with pytest.raises(UserError, match='3 times in a row'):
        go('three', 12, 13, 14)
    assert load_state('three')[0]['step'] == 10  # the last good one
    assert all(
        w.isfinite().all() for w in load_model('three', verify=True)[0].state_dict().values()
    )
    go('three')
    go('calm')
    assert same(weights(Path('checkpoints/calm')), weights(Path('checkpoints/three')))
    assert log_of(Path('checkpoints/calm')) == log_of(Path('checkpoints/three'))


@pytest.mark.parametrize('hours', [-5, 5])
def test_a_clock_that_jumps_changes_no_rate(dataset, tmp_path, monkeypatch, capsys, hours):
    "The wall clock is a label in the log; speeds use the clock that only goes forward."
    import tqdm.std  # noqa: F401

    bars = sys.modules['tqdm.std']
    from mypt.train.callbacks import Progress
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)
    real, jump, shown = time.time, [0], []

    def now():
        return real() + jump[0]

    monkeypatch.setattr(time, 'time', now)
    monkeypatch.setattr(bars, 'time', now)

    class Jump(Callback):
        def after_step(self, t):
            if t.step == 5:
                jump[0] = hours * 3600
            bar = next(cb for cb in t.cbs if isinstance(cb, Progress)).bar
            shown.append(bar.format_dict['elapsed'])

    train('m', str(dataset), sets=TINY, max_iters=20, cbs=[Jump()])
    log = read_log('checkpoints/m/log.jsonl')
    assert all(0 < r['seconds'] < 60 and r['tok_per_s'] > 0 for r in log if r['step'])
    assert len(shown) == 20 and shown == sorted(shown) and 0 <= shown[0] and shown[-1] < 60
    jumps = [b['time'] - a['time'] for a, b in pairwise(log[1:])]
    assert any(abs(seconds - hours * 3600) < 60 for seconds in jumps)  # it did jump


# ---------------------------------------------------------------- what else a run can do

TINY = [
    'n_layer=1',
    'n_embd=32',
    'n_head=2',
    'block_size=64',
    'batch_size=2',
    'max_iters=8',
    'eval_interval=4',
]


def test_a_curriculum_changes_its_dataset_at_the_step_it_names(dataset, tmp_path, monkeypatch):
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)

    def ask(i):
        answer = {'role': 'assistant', 'content': 'zzz'}
        return {'messages': [{'role': 'user', 'content': f'z{i}'}, answer]}

    write_episodes('b.jsonl', map(ask, range(40)))
    prepare('b.jsonl', 'b', tokenization='byte', enable_packing=True, pack_block_size=64)
    t = train(
        'm', str(dataset), quiet=True, sets=[*TINY, 'curriculum=[{"dataset_dir": "b", "until": 3}]']
    )

    def has_z(step):
        return any((b.ids == ord('z')).any() for b in t.data.step_batches(step))

    assert [has_z(s) for s in range(6)] == [True] * 3 + [False] * 3


def test_evaluation_sets_of_earlier_phases_ride_along(dataset, tmp_path, monkeypatch):
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)
    train('m', str(dataset), quiet=True, sets=[*TINY, f'eval_sets={{"phase0": "{dataset}"}}'])
    records = [json.loads(line) for line in open('checkpoints/m/log.jsonl')]
    assert all('val_loss/phase0' in r for r in records if 'val_loss' in r)


def test_frozen_weights_stay_and_overfitting_stops(dataset, tmp_path, monkeypatch):
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)
    train('a', str(dataset), quiet=True, sets=TINY)
    train(
        'b',
        str(dataset),
        init_from_model='a',
        quiet=True,
        sets=[*TINY, 'freeze=["model.embed_tokens.*"]'],
    )
    a, b = (weights(Path('checkpoints') / n) for n in 'ab')
    assert torch.equal(a['model.embed_tokens.weight'], b['model.embed_tokens.weight'])
    assert not torch.equal(a['model.norm.weight'], b['model.norm.weight'])
    t = train(
        'c',
        str(dataset),
        quiet=True,
        sets=[
            *TINY,
            'early_stop=true',
            'early_stop_gap=0.000001',
            'learning_rate=0.05',
            'max_iters=400',
        ],
    )
    assert t.step < 400 and 'overfitting' in t.stop


def test_the_best_weights_by_validation_are_kept(dataset, tmp_path, monkeypatch):
    from mypt.train.train import train

    monkeypatch.chdir(tmp_path)
    train('m', str(dataset), quiet=True, sets=[*TINY, 'max_iters=20'])
    vals = {
        r['step']: r['val_loss']
        for r in map(json.loads, open('checkpoints/m/log.jsonl'))
        if 'val_loss' in r and r['step']
    }
    meta = load_model('checkpoints/m/best', verify=True)[2]
    assert meta['val_loss'] == pytest.approx(min(vals.values())) and vals[
        meta['step']
    ] == pytest.approx(meta['val_loss'])
