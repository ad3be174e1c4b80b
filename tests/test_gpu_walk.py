"""Runs as on a GPU from the first step: which shapes meet the compiler, and how often it compiles.
`gpu_standin` says what is real here and what is not."""

import json
import os
import pytest
import random
import subprocess
import sys
import torch
from gpu_standin import Row, as_on_a_gpu, fresh_graphs, longest_runs, n_graphs, register
from pathlib import Path
from mypt.data.batches import collate
from mypt.data.dataset import open_dataset
from mypt.data.episodes import write_episodes
from mypt.data.prepare import prepare
from mypt.model import gpt, layers
from mypt.model.config import ModelConfig, list_configs, load_config
from mypt.model.gpt import GPT, compile_blocks
from mypt.train.callbacks import read_log
from mypt.train.loop import wants_compiled
from mypt.train.train import train

GPU = torch.device('cuda')
PHASE = [
    'use_amp=true',
    'amp_dtype=bf16',
    'n_layer=3',
    'n_embd=32',
    'n_head=2',
    'block_size=128',
    'batch_size=4',
    'eval_interval=3',
    'eval_iters=50',
    'dropout=0.12',
    'neftune_alpha=5',
    'warmup_iters=1',
]


@pytest.fixture(autouse=True)
def no_graphs():
    register()
    fresh_graphs()


def episodes(n, first, least, most):
    rng = random.Random(first)

    def word(least, most):
        return ''.join(rng.choices('abcdefgh', k=rng.randint(least, most)))

    for i in range(first, first + n):
        question = dict(role='user', content=f'{i} {word(least, most)}')
        yield dict(messages=[question, dict(role='assistant', content=word(2, 9))])


def dataset(folder, name, n, n_val, longest, block):
    "A packed dataset with `n_val` long episodes of validation."
    paths = [folder / f'{name}{part}.jsonl' for part in ('', '-val')]
    write_episodes(paths[0], list(episodes(n, 0, 2, longest)))
    write_episodes(paths[1], list(episodes(n_val, 10**5, longest * 3 // 4, longest)))
    out, pack = folder / name, dict(enable_packing=True, pack_block_size=block)
    words = dict(tokenization='byte', workers=1, val_file=str(paths[1]))
    prepare(str(paths[0]), str(out), **words, **pack)
    return out


def test_only_shapes_that_stay_are_compiled():
    "Every shipped config as on a GPU: bfloat16 compiles, float32 (the demo's too) does not."
    for name in list_configs():
        cfg = load_config(name).train
        half = cfg.use_amp and cfg.amp_dtype != 'fp32'
        assert wants_compiled(cfg, GPU) == half, name
    assert not wants_compiled(load_config('tiny_phase1_format_lock').train, GPU)


def test_the_demo_config_trains(tmp_path, monkeypatch):
    "float32 episodes sorted by length have other shapes in every batch: nothing may be compiled."
    as_on_a_gpu(monkeypatch)
    monkeypatch.chdir(tmp_path)
    data = dataset(tmp_path, 'd', 400, 9, 30, 256)
    sets = ['n_layer=2', 'batch_size=2', 'eval_interval=5', 'eval_iters=3']
    t = train('m', data, 'tiny_phase1_format_lock', sets=sets, max_iters=12, quiet=True)
    assert t.step == 12 and not t.model.compiled and n_graphs() == 0


@pytest.fixture(scope='module')
def phase(tmp_path_factory):
    "A phase's dataset and two of earlier phases, of other row lengths, by rows of validation."
    d = tmp_path_factory.mktemp('phase')
    earlier = [
        dataset(d, name, 60, n, 20, block) for name, n, block in (('a', 8, 64), ('b', 17, 96))
    ]
    made = {n: dataset(d, f'own{n}', 120, n, 100, 128) for n in (6, 8, 17)}
    assert [open_dataset(d).val.n_rows for d in made.values()] == [6, 8, 17]
    return earlier, made


def run(name, data, earlier, *sets):
    names = json.dumps([str(d) for d in earlier])
    sets = [*PHASE, f'eval_sets={names}', *sets]
    return train(name, data, sets=sets, max_iters=4, quiet=True, device='cpu')


def test_phases_with_any_number_of_validation_rows(phase, tmp_path, monkeypatch):
    """Training, validation in the same shape, two sets of other shapes: two graphs for each kind.
    A second training in the process compiles nothing, one of other sizes as much as the first.
    """
    earlier, made = phase
    monkeypatch.chdir(tmp_path)
    run('plain', made[6], earlier, 'amp_dtype=fp32')  # the stand-in computes in float32
    as_on_a_gpu(monkeypatch)
    for n_val, data in made.items():
        fast = run(f'fast{n_val}', data, earlier)
        assert fast.step == 4 and fast.model.compiled
        assert fast.evaluated.keys() == {'val', 'a', 'b'}
        assert n_graphs() == 6, n_val
    ours, theirs = (read_log(f'checkpoints/{name}/log.jsonl')[0] for name in ('fast6', 'plain'))
    for key in theirs.keys() - {'seconds'}:  # before the first step: dropout draws differ after it
        assert ours[key] == pytest.approx(theirs[key], abs=1e-5), key
    run('other', made[8], earlier, 'n_embd=64', 'batch_size=3', 'dropout=0')
    assert n_graphs() == 12


def test_evaluation_does_not_make_training_dynamic():
    "A full batch keeps its own graph whatever was evaluated before; other sizes share one."
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=320))
    model.attention = 'varlen'
    seen = []

    def backend(graph, inputs):
        given = [n.meta['example_value'] for n in graph.graph.find_nodes(op='placeholder')]
        x = next(v for v in given if torch.is_tensor(v) and v.shape[2:] == (32,))
        seen.append(type(x.shape[1]) is int)
        return graph

    compile_blocks(model, 2 * 64, backend=backend)
    with torch.no_grad():
        for B, T in ((2, 64), (3, 64), (2, 48), (5, 24)):
            model.loss(collate([Row([10, 7], i) for i in range(B)], length=T))
    assert seen == [True, True, False, False]
    model.loss(collate([Row([10, 7], i) for i in range(2)], length=64)).backward()
    assert seen == [True, True, False, False, True, True]


def test_few_targets_and_lone_episodes():
    "No target, one, one episode in all: the sizes 0 and 1 get no graphs of their own."
    shape = dict(n_layer=2, n_head=2, n_embd=32, block_size=64, vocab_size=320)
    plain, fast = (GPT(ModelConfig(**shape)).train() for _ in range(2))
    fast.load_state_dict(plain.state_dict())
    fast.attention = 'varlen'
    compile_blocks(fast, 64, backend='aot_eager')
    rows = [
        Row([64], 0, 0.0),
        Row([30, 34], 1, 0.0),
        Row([64], 2),
        Row([1] * 64, 3),
        Row([20, 9], 4),
    ]
    rows[1].weights[5] = 1
    for row in rows:
        b = collate([row], length=64)
        losses = []
        for m in (plain, fast):
            m.zero_grad()
            losses.append(m.loss(b))
            losses[-1].backward()
        torch.testing.assert_close(*losses)
        for p, q in zip(plain.parameters(), fast.parameters(), strict=True):
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(plain.token_losses(b), fast.token_losses(b))
    assert n_graphs() == 4


def test_the_kernel_knows_the_longest_run():
    "Not the row's length: thread blocks are started for what it is told."
    longest_runs.clear()
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_size=320))
    model.attention = 'varlen'
    for lens in ([30, 34], [10] * 6, [3] * 21):
        model.loss(collate([Row(lens, 0)], length=sum(lens))).backward()
    assert set(longest_runs) == {(34, 34), (10, 10), (3, 3)}


@pytest.mark.parametrize(('kv', 'bias'), [(4, False), (2, True)])
def test_joined_products_equal_single_ones(monkeypatch, kv, bias):
    cfg = ModelConfig(n_layer=2, n_head=4, n_kv_head=kv, n_embd=32, vocab_size=320, bias=bias)
    model = GPT(cfg).train()
    model.attention = 'varlen'
    found = []
    for joined in (False, True):
        fresh_graphs()
        monkeypatch.setattr(layers, 'JOIN_PRODUCTS', joined)
        products = []

        def backend(graph, inputs, products=products):
            products.append(sum('linear' in str(n.target) for n in graph.graph.nodes))
            return graph

        compile_blocks(model, 128, backend=backend)
        model.zero_grad()
        model.loss(collate([Row([20, 30, 14], i) for i in range(2)], length=64)).backward()
        found.append([p.grad.clone() for p in model.parameters()])
        assert products == ([4, 4] if joined else [7, 7])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_graphs_are_forgotten_after_some_models(monkeypatch):
    "A process may compile any number of models: here two of four graphs reach the limit of eight."
    monkeypatch.setattr(gpt, 'MODELS', 2)
    monkeypatch.setattr(gpt, 'GRAPHS_PER_MODEL', 4)
    with torch._dynamo.config.patch(recompile_limit=8):
        for n in range(1, 4):
            shape = dict(n_layer=1, n_head=2, n_embd=16 * n, block_size=64, vocab_size=320)
            model = GPT(ModelConfig(**shape))
            model.attention = 'varlen'
            compile_blocks(model, 64, backend='eager')
            for T in (64, 32):
                batch = collate([Row([20, 9], n)], length=T)
                model.loss(batch)
                with torch.no_grad():
                    model.loss(batch)
    assert n_graphs() == 12


@pytest.mark.slow
def test_two_processes_over_compiled_blocks():
    "DDP and FSDP, two graphs each, and the losses of the uncompiled runs."
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    script, env = Path(__file__).parent / 'gpu_spread.py', os.environ | {'OMP_NUM_THREADS': '1'}
    out = subprocess.run([*torchrun, script], env=env, capture_output=True, text=True, timeout=500)
    assert out.returncode == 0, out.stderr
    rows = [line.split() for line in out.stdout.splitlines()]
    assert [(name, graphs) for name, graphs, *_ in rows] == [
        ('DDPTrainer', '0'),
        ('FSDPTrainer', '0'),
        ('DDPTrainer', '2'),
        ('FSDPTrainer', '2'),
    ]
    for *_, loss, norm in rows:
        assert float(loss) == pytest.approx(float(rows[0][2]), abs=1e-5)
        assert float(norm) == pytest.approx(float(rows[0][3]), abs=1e-4)
