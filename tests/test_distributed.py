"""Several processes compute what one does; they stop, die, and come back together."""

import json
import os
import pytest
import shutil
import signal
import subprocess
import sys
import torch
from pathlib import Path
from safetensors.torch import load_file
from spread import one
from mypt.data.episodes import write_episodes
from mypt.data.prepare import prepare
from mypt.errors import UserError
from mypt.model.checkpoint import load_model, load_state
from mypt.train.distributed import consolidate, join, newest

HERE = Path(__file__).parent
ENV = os.environ | {'OMP_NUM_THREADS': '1', 'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1'}
NOISE = ('dropout=0.1', 'neftune_alpha=5')
VARIANTS = dict(
    ddp=('parallel=ddp',),
    mute=('parallel=ddp', 'mute=1'),
    fsdp=('parallel=fsdp', 'mute=1'),
    muon=(
        'parallel=fsdp',
        'optimizer=muon',
        'use_checkpoint=true',
        'tie_weights=false',
        'grad_clip=0.5',
        'freeze=["model.embed_tokens*", "model.layers.0.mlp*"]',
    ),
)


def launch(world, dataset, *runs, restarts=0) -> subprocess.CompletedProcess:
    "Training runs, each (model directory, settings …), one after the other in `world` processes."
    words = [str(w) for r in runs for w in ('--', *r)][1:]
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
    torchrun += [f'--nproc_per_node={world}', f'--max-restarts={restarts}']
    torchrun += ['--monitor-interval=0.1', HERE / 'spread.py', dataset, *words]
    return subprocess.run(torchrun, env=ENV, capture_output=True, text=True, timeout=80)


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def counts(log):
    return [(r['step'], r.get('tokens'), r.get('supervised')) for r in log]


def same_run(a, b, eps=1e-5):
    "Losses, norms, evaluations and weights of two runs agree to float32 rounding; counts exactly."
    A, B = read_jsonl(a / 'log.jsonl'), read_jsonl(b / 'log.jsonl')
    assert counts(A) == counts(B)
    for x, y in zip(A, B, strict=True):
        assert x.keys() == y.keys()
        for k in x.keys() & {'loss', 'grad_norm', 'val_loss'}:
            assert abs(x[k] - y[k]) < eps, (x['step'], k, x[k], y[k])
    A, B = (load_file(m / 'model.safetensors') for m in (a, b))
    assert A.keys() == B.keys()
    for k in A:
        torch.testing.assert_close(A[k], B[k], atol=eps, rtol=0)


def same_bits(a, b):
    "Weights, optimizer and numbers are equal in every bit."
    for f in ('model.safetensors', 'optimizer.safetensors'):
        A, B = load_file(a / f), load_file(b / f)
        assert A.keys() == B.keys() and all(torch.equal(A[k], B[k]) for k in A), f
    assert load_state(a)[0] == load_state(b)[0]


def addition(i):
    question = {'role': 'user', 'content': f'{i}+{i + 3}'}
    answer = {'role': 'assistant', 'content': str(2 * i + 3)}
    return {'messages': [question, answer]}


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    d = tmp_path_factory.mktemp('data')
    episodes, out = d / 'sums.jsonl', d / 'sums'
    write_episodes(episodes, [addition(i) for i in range(90)])
    packed = dict(enable_packing=True, pack_block_size=64)
    prepare(str(episodes), str(out), tokenization='byte', **packed)
    return out


@pytest.fixture(scope='module')
def alone(dataset, tmp_path_factory):
    "Every variant by one process with a batch of 4."
    d = tmp_path_factory.mktemp('alone')
    for name, sets in VARIANTS.items():
        one(dataset, d / name, *sets, 'batch_size=4')
    return d


@pytest.fixture(scope='module')
def two(dataset, tmp_path_factory):
    "Every variant by two processes with a batch of 2 each, and two uninterrupted runs with noise."
    d = tmp_path_factory.mktemp('two')
    runs = [(d / name, *sets, 'batch_size=2') for name, sets in VARIANTS.items()]
    for p in ('ddp', 'fsdp'):
        runs.append((d / f'calm_{p}', f'parallel={p}', *NOISE, 'batch_size=2'))
    out = launch(2, dataset, *runs)
    assert out.returncode == 0, out.stderr
    assert '2 processes × 2 micro-batches × batch_size 2 = 8 rows a step' in out.stdout
    assert out.stdout.count('step 12: val') == len(VARIANTS) + 2  # one process prints
    return d


def test_two_processes_compute_what_one_does(alone, two):
    for name in VARIANTS:
        same_run(alone / name, two / name)


def test_four_processes_compute_what_one_does(dataset, alone, tmp_path):
    names = 'mute', 'muon'
    runs = [(tmp_path / name, *VARIANTS[name], 'batch_size=1') for name in names]
    out = launch(4, dataset, *runs)
    assert out.returncode == 0, out.stderr
    for name in names:
        same_run(alone / name, tmp_path / name)


@pytest.mark.parametrize('parallel', [pytest.param('ddp', marks=pytest.mark.slow), 'fsdp'])
def test_a_killed_process_comes_back(dataset, two, tmp_path, parallel):
    "SIGKILL of one after step 6; torchrun starts both again from step 4, and no bit differs."
    model, die = tmp_path / 'm', f'die=1:6:{signal.SIGKILL:d}'
    run = (model, f'parallel={parallel}', *NOISE, 'batch_size=2', die)
    out = launch(2, dataset, run, restarts=1)
    assert out.returncode == 0, out.stderr
    assert 'resumed at step 4' in out.stdout and 'exitcode: -9' in out.stderr
    same_bits(two / f'calm_{parallel}', model)


@pytest.mark.slow
def test_another_number_of_processes_goes_on(dataset, alone, tmp_path):
    "Shards of four processes that died go on in two and in one, and become the ordinary directory."
    die = f'die=2:6:{signal.SIGKILL:d}'
    out = launch(4, dataset, (tmp_path / 'm', *VARIANTS['muon'], 'batch_size=1', die))
    shards = [p.name for p in (tmp_path / 'm' / 'sharded').iterdir()]
    assert out.returncode and shards == ['step-00000004']
    assert not (tmp_path / 'm' / 'model.safetensors').exists()
    shutil.copytree(tmp_path / 'm', tmp_path / 'n')
    one(dataset, tmp_path / 'n', *VARIANTS['muon'], 'batch_size=4')
    out = launch(2, dataset, (tmp_path / 'm', *VARIANTS['muon'], 'batch_size=2'))
    assert out.returncode == 0 and 'resumed at step 4' in out.stdout, out.stderr
    for m in 'mn':
        same_run(alone / 'muon', tmp_path / m)
        load_model(tmp_path / m, verify=True)
        assert not (tmp_path / m / 'sharded').exists()


@pytest.mark.slow
def test_one_signal_stops_all_at_the_same_step(dataset, alone, tmp_path):
    "SIGTERM to one process: all stop after that step, and the other engine goes on from there."
    parallels, die = ('ddp', 'fsdp'), f'die=1:7:{signal.SIGTERM:d}'
    runs = [(tmp_path / p, f'parallel={p}', 'batch_size=2', die) for p in parallels]
    out = launch(2, dataset, *runs)
    assert out.returncode == 0 and out.stdout.count('stopped at step 7: SIGTERM') == 2, out
    for p in parallels:
        _, _, meta = load_model(tmp_path / p, verify=True)
        assert load_state(tmp_path / p)[0]['step'] == meta['step'] == 7
    others = dict(ddp='fsdp', fsdp='ddp')
    runs = [(tmp_path / p, f'parallel={others[p]}', 'batch_size=2') for p in parallels]
    out = launch(2, dataset, *runs)
    assert out.returncode == 0, out.stderr
    for p in ('ddp', 'fsdp'):
        same_run(alone / 'ddp', tmp_path / p)


def test_a_flipped_bit_in_a_shard_is_found(dataset, tmp_path):
    "Damaged shards are refused, alone and in several processes, naming the file; whole ones go on."
    args = (tmp_path / 'm', *VARIANTS['fsdp'], 'batch_size=2')
    out = launch(2, dataset, (*args, f'die=1:6:{signal.SIGKILL:d}'))
    shards = tmp_path / 'm' / 'sharded' / 'step-00000004'
    state, names = shards / 'training_state.json', {p.name for p in shards.iterdir()}
    assert out.returncode and names > {'mypt.json', 'training_state.json'}
    last = sorted(shards.glob('*.safetensors'))[-1]
    for victim, spoil in (
        (last, lambda b: b[:-1] + bytes([b[-1] ^ 1])),
        (state, lambda b: b.replace(b'4', b'5', 1)),
        (state, lambda b: b'{torn'),
        (last, None),  # removed
    ):
        whole = victim.read_bytes()
        if spoil:
            victim.write_bytes(spoil(whole))
        else:
            victim.unlink()
        with pytest.raises(UserError, match=f'{victim.name}: .*or remove'):
            consolidate(tmp_path / 'm')
        if victim is last and spoil:
            out = launch(2, dataset, args)
            assert out.returncode and f'{victim.name}: sha256' in out.stderr, out.stderr
        victim.write_bytes(whole)
    consolidate(tmp_path / 'm')
    assert load_model(tmp_path / 'm', verify=True)[2]['step'] == 4


def test_restarts_that_would_hang_are_refused(monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_USE_AGENT_STORE', 'True')
    monkeypatch.setenv('TORCHELASTIC_MAX_RESTARTS', '3')
    with pytest.raises(UserError, match='TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1'):
        join(torch.device('cpu'))


def test_leftovers_of_a_killed_save_are_not_taken(tmp_path):
    "Unfinished shards have no name; the last finished ones count, unless the whole one is later."

    def put(folder, step):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / 'training_state.json').write_text(json.dumps({'step': step}))

    m = tmp_path
    assert newest(m) == m
    put(m / 'sharded' / 'step-00000004', 4)
    put(m / 'sharded' / '.next', 8)
    assert newest(m).name == 'step-00000004'
    put(m / 'sharded' / 'step-00000008', 8)  # killed before the older ones were removed
    assert newest(m).name == 'step-00000008'
    put(m, 8)  # killed between consolidation and removal
    assert newest(m) == m


def test_adapters_are_trained_by_two_processes_too(dataset, tmp_path):
    "DDP and FSDP2 end with the adapters of one process, and the same command finds them done."
    base = tmp_path / 'base'
    one(dataset, base, 'max_iters=2', 'batch_size=2')
    sets = ('lora_rank=4', f'base={base}', 'learning_rate=0.01')
    one(dataset, tmp_path / 'alone', *sets, 'batch_size=4')
    both = [(tmp_path / p, f'parallel={p}', *sets, 'batch_size=2') for p in ('ddp', 'fsdp')]
    out = launch(2, dataset, *both)
    assert out.returncode == 0, out.stderr
    expected = load_file(tmp_path / 'alone/adapter_model.safetensors')
    start = load_model(base).model
    for p in ('ddp', 'fsdp'):
        found = load_file(tmp_path / p / 'adapter_model.safetensors')
        assert found.keys() == expected.keys()
        for name, w in expected.items():
            torch.testing.assert_close(found[name], w, atol=1e-5, rtol=0)
        apart = load_model(tmp_path / p, verify=True, merge=False).model
        frozen = start.state_dict()['model.layers.0.mlp.up_proj.weight']
        assert torch.equal(apart.state_dict()['model.layers.0.mlp.up_proj.weight'], frozen)
        assert load_model(tmp_path / p / 'best').model.adapter is None
