"""What `mypt train` chooses, says and refuses: evaluation sets, steps, learning rates, defaults,
broken losses, honest speed."""

import json
import math
import shutil
import time
import numpy as np
import pytest
import torch
from collections import namedtuple
from dataclasses import replace
from mypt.cli import main
from mypt.commands.table import VERBS, signature_of
from mypt.curriculum.run import PHASES
from mypt.curriculum.speedrun import LEGS
from mypt.data.batches import Batches, collate
from mypt.data.dataset import open_dataset
from mypt.data.episodes import write_episodes
from mypt.data.prepare import prepare
from mypt.errors import UserError
from mypt.model.checkpoint import load_meta, load_model
from mypt.model.config import ModelConfig, TrainConfig, list_configs, load_config, make_config
from mypt.model.gpt import GPT
from mypt.train.callbacks import Progress, log_line, read_log
from mypt.train.cost import find_machine, needed_flops, step_parts
from mypt.train.loop import Callback, Trainer, fit
from mypt.train.train import coverage, train

SMALL = ['n_layer=1', 'n_head=2', 'n_embd=32', 'batch_size=2', 'grad_accum_steps=1']
RUN = [*SMALL, 'max_iters=8', 'eval_interval=4', 'eval_iters=2']


def sums(n=80, first=0):
    def one(i):
        answer = {'role': 'assistant', 'content': str(2 * i + 3)}
        return {'messages': [{'role': 'user', 'content': f'What is {i} plus {i + 3}?'}, answer]}

    return [one(i) for i in range(first, first + n)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    "Datasets of bytes and of GPT-2's tokens, packed and not."
    d = tmp_path_factory.mktemp('train')
    write_episodes(d / 'sums.jsonl', sums())
    packed = dict(enable_packing=True)
    prepare(d / 'sums.jsonl', d / 'bytes', tokenization='byte', pack_block_size=64, **packed)
    prepare(d / 'sums.jsonl', d / 'gpt2')
    return d


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def command(capsys, *argv) -> tuple[int, str, str]:  # Exit code, stdout, stderr
    code = main([str(a) for a in argv])
    return code, *capsys.readouterr()


# ---------------------------------------------------------------- every config, evaluation sets


@pytest.mark.parametrize('config', list_configs())
def test_every_shipped_config_trains(config, folder, here, capsys):
    "Model and batch are smaller; all else, evaluation sets too, is the config's."
    data = folder / ('bytes' if load_config(config).model.vocab_size == 320 else 'gpt2')
    base = []
    if 'n_layer' not in load_config(config).given:
        train('base', str(data), sets=RUN, quiet=True)
        base = ['--init_from_model', 'base']
        sets = SMALL[3:]
    else:
        sets = SMALL
    flags = ['--config_file', config, '--dataset_dir', data, '--max_iters', '2', '--quiet']
    code, out, err = command(capsys, 'train', '--model_name', 'm', *flags, *base, '--sets', *sets)
    assert code == 0, err
    named = load_config(config).train.eval_sets
    said = [line for line in out.splitlines() if 'eval sets left out' in line]
    assert len(said) == bool(named) and all(name in said[0] for name in named)


@pytest.mark.parametrize(
    'place', ['run/phase1_format_lock', 'data/phase1_format_lock', 'run/phase1/dataset']
)
def test_an_evaluation_set_is_found_by_name(place, folder, here, capsys):
    "Beside the dataset, under data/, and where `mypt run` puts it."
    write_episodes('x.jsonl', sums(20, first=500))
    (here / place).parent.mkdir(parents=True, exist_ok=True)
    prepare('x.jsonl', place)
    own = 'run/phase2/dataset' if place.endswith('dataset') else 'run/mine'
    (here / own).parent.mkdir(parents=True, exist_ok=True)
    prepare(folder / 'sums.jsonl', own)
    train('m', own, 'phase2_operators', sets=SMALL, max_iters=1, quiet=True)
    assert 'left out' not in capsys.readouterr().out
    assert 'val_loss/phase1_format_lock' in read_log('checkpoints/m/log.jsonl')[0]


def test_ones_own_evaluation_sets_must_be_there_and_fit(folder, here):
    data = str(folder / 'bytes')
    (here / 'own.json').write_text('{"extends": "tiny", "eval_sets": ["colours"]}')
    wrong = {
        "eval set 'colours': no dataset at colours, ": dict(config_file='own.json'),
        "eval set 'gone': no dataset at gone, ": dict(sets=[*RUN, 'eval_sets=["gone"]']),
        "eval set 'gpt2': made with 'gpt2'": dict(sets=[*RUN, 'eval_sets=["gpt2"]']),
        "two eval_sets are named 'bytes'": dict(sets=[*RUN, 'eval_sets=["bytes", "a/bytes"]']),
        "'val' is the dataset's own split": dict(sets=[*RUN, 'eval_sets={"val": "bytes"}']),
        ', the model takes 50; prepare it to match': dict(
            sets=[*RUN, 'block_size=50', 'eval_sets=["bytes"]'], dataset_dir='short'
        ),
    }
    prepare(folder / 'sums.jsonl', 'short', tokenization='byte')
    for words, how in wrong.items():
        if how.get('dataset_dir'):
            how['sets'][-1] = f'eval_sets=["{data}"]'
        with pytest.raises(UserError, match='eval') as e:
            train('m', **dict(dataset_dir=data, quiet=True) | how)
        assert words in str(e.value) and '\n' not in str(e.value)
        assert not (here / 'checkpoints').exists()


def test_a_shipped_set_that_does_not_fit_is_left_out(folder, here, capsys):
    prepare(folder / 'sums.jsonl', 'data/phase1_format_lock', tokenization='byte')
    train('m', str(folder / 'gpt2'), 'phase2_operators', sets=SMALL, max_iters=1, quiet=True)
    out = capsys.readouterr().out
    assert "eval set 'phase1_format_lock' is left out: made with 'byte'" in out


# ---------------------------------------------------------------- rope scale


@pytest.fixture(scope='module')
def base(folder, tmp_path_factory):
    "A model that has learned its sums, under rope_scale 1 and rows of 64."
    d = tmp_path_factory.mktemp('base')
    shape = ['n_layer=2', 'n_embd=64', 'n_head=2', 'block_size=64', 'batch_size=8']
    sets = [*shape, 'learning_rate=0.004', 'eval_interval=200', 'eval_iters=5']
    train(str(d / 'base'), str(folder / 'bytes'), sets=sets, max_iters=200, quiet=True)
    return d / 'base'


def first_loss(model) -> float:
    return read_log(f'checkpoints/{model}/log.jsonl')[0]['val_loss']


def test_a_base_keeps_its_rope_scale(base, folder, here, capsys):
    "A phase's config proposes 4; another scale would make a stranger of the base."
    (here / 'phase.json').write_text(
        '{"extends": "tiny_phase1_format_lock", "n_layer": 2, "n_embd": 64, "n_head": 2, '
        '"block_size": 64}'
    )
    flags = dict(init_from_model=str(base), max_iters=1, quiet=True)
    data = str(folder / 'bytes')
    train('kept', data, 'phase.json', **flags)
    assert 'rope_scale stays 1, which the base learned' in capsys.readouterr().out
    train('same', data, 'phase.json', sets=['rope_scale=1.0'], **flags)
    assert 'rope_scale' not in capsys.readouterr().out
    train('asked', data, 'phase.json', sets=['rope_scale=4.0'], **flags)
    assert 'warning: rope_scale 1 → 4: every position' in capsys.readouterr().out
    scales = {n: load_model(f'checkpoints/{n}')[0].cfg.rope_scale for n in ('kept', 'asked')}
    assert scales == dict(kept=1, asked=4)
    assert first_loss('kept') == first_loss('same') < first_loss('asked') - 1


def test_longer_rows_take_the_rope_scale(base, folder, here, capsys):
    "Context extension: rows longer than any the base has seen."
    sets = ['n_layer=2', 'n_embd=64', 'n_head=2', 'batch_size=1']
    flags = dict(init_from_model=str(base), sets=sets, max_iters=1, quiet=True)
    t = train('m', str(folder / 'bytes'), 'tiny_phase1b_context_extension', **flags)
    said = 'rope_scale 1 → 4 for rows of up to 1,024 tokens in place of 64 (context extension)'
    assert said in capsys.readouterr().out
    assert (t.model.cfg.rope_scale, t.model.cfg.block_size) == (4, 1024)
    train('m', str(folder / 'bytes'), 'tiny_phase1b_context_extension', **flags)  # resumed
    assert 'rope_scale' not in capsys.readouterr().out
    flags['sets'] = [*sets, 'block_size=128', 'rope_scale=2']
    train('n', str(folder / 'bytes'), **flags)
    said = 'rope_scale 1 → 2 for rows of up to 128 tokens in place of 64 (context extension)'
    assert said in capsys.readouterr().out


# ---------------------------------------------------------------- steps, warmup, learning rate


def test_a_long_warmup_is_shortened(folder, here, capsys):
    sets = [*RUN, 'warmup_iters=100', 'max_iters=20', 'learning_rate=0.001']
    train('m', str(folder / 'bytes'), sets=sets, quiet=True)
    assert 'warmup_iters 100 → 2: the run has 20 steps' in capsys.readouterr().out
    rates = [r['lr'] for r in read_log('checkpoints/m/log.jsonl') if 'lr' in r]
    assert max(rates) == pytest.approx(0.001) and rates[0] == pytest.approx(0.0005)


def test_a_jump_of_the_learning_rate_is_said(folder, here, capsys):
    data, sets = str(folder / 'bytes'), [*RUN, 'warmup_iters=2', 'learning_rate=0.001']
    train('m', data, sets=sets, max_iters=10, quiet=True)
    capsys.readouterr()
    train('m', data, sets=sets, max_iters=20, quiet=True)
    out = capsys.readouterr().out
    lr = [r['lr'] for r in read_log('checkpoints/m/log.jsonl') if 'lr' in r]
    assert f'the learning rate goes from 0.0001 to {lr[10]:.2g} at step 11' in out
    assert 'the run now has 20 steps and had 10' in out and lr[10] > 4 * lr[9]
    train('m', data, sets=sets, max_iters=20, quiet=True)
    assert 'learning rate' not in capsys.readouterr().out


def test_an_interrupted_run_goes_on_without_a_word_about_its_rate(folder, here, capsys):
    class Stop(Callback):
        def after_step(self, t):
            if t.step == 5:
                t.stop = 'enough'

    data = str(folder / 'bytes')
    train('m', data, sets=RUN, quiet=True, cbs=[Stop()])
    assert 'next: ' not in capsys.readouterr().out
    train('m', data, sets=RUN, quiet=True)
    out = capsys.readouterr().out
    assert 'learning rate' not in out and out.endswith('next: mypt chat --model_name m\n')


def test_a_finished_run_says_so(folder, here, capsys):
    data = str(folder / 'bytes')
    train('m', data, 'tiny_phase1_format_lock', sets=RUN, quiet=True)
    assert capsys.readouterr().out.endswith(
        'next: mypt gate --model_name m --phase 1, or mypt chat --model_name m\n'
    )
    train('m', data, 'tiny_phase1_format_lock', sets=RUN, quiet=True)
    assert 'already trained to step 8; for more, --max_iters 16' in capsys.readouterr().out


def test_the_phases_configs_name_their_gates():
    for number, phase in PHASES.items():
        assert load_config(phase.config).train.gate == number
    for leg in LEGS:
        assert load_config(leg.config).train.gate == leg.phase.number


def test_finetune_fits_its_steps_to_the_data(folder, here, capsys):
    "64 conversations in a few packed rows made one step."
    write_episodes('few.jsonl', sums(64))
    prepare('few.jsonl', 'few', tokenization='byte', enable_packing=True, pack_block_size=256)
    train('base', 'few', sets=RUN, quiet=True)
    rows = open_dataset('few').train.n_rows
    capsys.readouterr()
    t = train('m', 'few', 'finetune', init_from_model='base', quiet=True)
    out = capsys.readouterr().out
    assert f'{rows} rows would make only 1 step: grad_accum_steps 4 → 1, batch_size 4 → 1' in out
    assert 30 <= t.step == t.max_steps < 40
    t = train('n', 'few', 'finetune', init_from_model='base', sets=['batch_size=4'], quiet=True)
    assert (t.cfg.batch_size, t.cfg.grad_accum_steps) == (4, 1)
    out = capsys.readouterr().out
    assert 'batch_size 4' not in out and 'warning: 10 passes over' in out
    t = train('o', 'few', 'finetune', init_from_model='base', max_iters=3, quiet=True)
    assert t.step == 3 and 'would make only' not in capsys.readouterr().out


def test_enough_data_is_left_alone(here, capsys):
    write_episodes('many.jsonl', sums(600))
    prepare('many.jsonl', 'many', tokenization='byte')
    train('base', 'many', sets=RUN, max_iters=1, quiet=True)
    capsys.readouterr()
    t = train('m', 'many', 'finetune', init_from_model='base', quiet=True)
    assert (t.cfg.batch_size, t.cfg.grad_accum_steps, t.cfg.epochs) == (4, 4, 2)
    assert 'make only' not in capsys.readouterr().out


def test_few_steps_warn_and_steps_beat_passes(folder, here, capsys):
    data = str(folder / 'bytes')
    train('m', data, sets=[*SMALL, 'epochs=1'], quiet=True)
    assert 'warning: 1 pass over' in capsys.readouterr().out
    train('n', data, sets=[*SMALL, 'epochs=0.5'], quiet=True)
    assert 'warning: 0.5 passes over' in capsys.readouterr().out
    assert load_config('finetune', ['max_iters=7']).train.epochs == 0
    assert load_config('finetune', ['max_iters=7', 'epochs=3']).train.epochs == 3


# ---------------------------------------------------------------- defaults that agree


@pytest.mark.parametrize('flags', [[], ['--enable_packing'], ['--tokenization', 'byte']])
def test_a_dataset_of_defaults_trains_with_the_default_config(flags, folder, here, capsys):
    both = [*flags, '--enable_packing'] if 'byte' in flags else flags
    code, _, err = command(
        capsys, 'prepare', '--input', folder / 'sums.jsonl', '--output_dir', 'd', *both
    )
    assert code == 0, err
    train_flags = ['--dataset_dir', 'd', '--max_iters', '1', '--quiet']
    sets = ['n_layer=1', 'batch_size=1']
    code, _, err = command(capsys, 'train', '--model_name', 'm', *train_flags, '--sets', *sets)
    assert code == 0, err


def test_rows_longer_than_the_block_are_one_line(folder, here, capsys):
    flags = ['--dataset_dir', folder / 'bytes', '--sets', 'block_size=32']
    code, _, err = command(capsys, 'train', '--model_name', 'm', *flags)
    assert code == 2 and err.count('\n') == 1
    way = 'raise block_size (--sets block_size=64), or prepare again'
    assert f'36 of 36 rows are longer than block_size 32 (longest 64); {way}' in err
    flags = [*flags[:-1], 'block_size=64', *SMALL, '--max_iters', '1', '--quiet']
    assert command(capsys, 'train', '--model_name', 'm', *flags)[0] == 0  # as the line says


def test_finetune_without_a_base_is_refused(folder, here):
    with pytest.raises(UserError, match='not what the model is; give a base'):
        train('m', str(folder / 'bytes'), 'finetune', quiet=True)


# ---------------------------------------------------------------- devices

USES_A_MODEL = 'train generate chat serve agent rag-chat eval gate check-masks'.split()


@pytest.mark.parametrize('verb', USES_A_MODEL)
def test_every_command_takes_the_gpu_by_default(verb):
    params = {p.name: p for p in signature_of(VERBS[verb].target).params}
    assert params['device'].default == 'auto' and params['device'].help


@pytest.mark.parametrize('verb', USES_A_MODEL)
def test_the_device_reaches_the_model(verb, base, folder, here, capsys, monkeypatch):
    "`auto` is a GPU where torch sees one: every command asks for it."
    if torch.cuda.is_available():
        pytest.skip('a GPU is here')
    (here / 'docs').mkdir()
    (here / 'docs/a.md').write_text('# Colours\n\nThe sky is blue.\n')
    command(capsys, 'rag-index', '--docs_dir', 'docs', '--out_dir', 'index')
    flags = dict(
        train=['--model_name', 'm', '--dataset_dir', folder / 'bytes', '--sets', *SMALL],
        generate=['--model_name', base, '--user', 'hi', '--max_new_tokens', '8'],
        chat=['--model_name', base],
        serve=['--models', base, '--check'],
        agent=['--model_name', base, '--docs_dir', 'docs', '--question', 'hi'],
        eval=['--model', base, '--suite', 'echo'],
        gate=['--model', base, '--phase', '1'],
    )
    flags['rag-chat'] = ['--model_name', base, '--index_dir', 'index', '--question', 'hi']
    flags['check-masks'] = [folder / 'bytes', '--model', base, '--base', base]
    moved = []

    def to(self, device):
        moved.append(str(device))
        raise UserError('moved')

    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    monkeypatch.setattr(GPT, 'to', to)
    monkeypatch.setattr('mypt.train.train.should_recompute', lambda *a: False)
    command(capsys, verb, *flags[verb])
    assert moved[:1] == ['cuda']
    monkeypatch.undo()
    monkeypatch.chdir(here)
    code, _, err = command(capsys, verb, *flags[verb], '--device', 'cuda')
    assert code == 2 and 'device cuda: no GPU is visible; use --device cpu' in err


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    'change, words',
    [
        ('learning_rate=1e400', 'learning_rate is inf, it must be at most 10'),
        ('learning_rate=Infinity', 'at most 10'),
        ('learning_rate=NaN', 'above 0'),
        ('learning_rate=nan', 'a number'),
        ('learning_rate=-0.001', 'above 0'),
        ('learning_rate=1e9', 'at most 10'),
        ('max_iters=1000000000000000000000000', 'at most 2.14748e+09'),
        ('max_iters=1e24', 'a whole number'),
        ('max_iters=0', 'at least 1'),
        ('seed=1000000000000000000000000', 'at most'),
        ('epoch_seed=-1', 'at least 0'),
        ('n_embd=1000000000000000000000000', 'at most 1.04858e+06'),
        ('grad_clip=Infinity', 'at most 1e+06'),
        ('weight_decay=1' + '0' * 400, 'weight_decay is inf'),
        ('seed=' + '9' * 5000, 'seed is '),
        ('eval_sets=[1]', 'each entry must be a string'),
        ('eval_sets={"a": ["b"]}', 'each entry must be a string'),
        ('freeze=[""]', 'each entry must be a string'),
        ('system_prompt=[null]', 'each entry must be a string'),
        ('system_prompt={"en":["a"]}', 'by language it must be {"en": […], "de": […]}'),
        ('system_prompt={"en":["a"],"de":[]}', 'each language needs a text'),
        ('system_prompt={"en":["a"],"de":[""]}', 'each language needs a text'),
        ('system_prompt={"en":["a"],"de":3}', 'each language needs a text'),
        ('curriculum=["a"]', 'a curriculum stage is'),
        ('curriculum=[{"dataset_dir": 3, "until": 5}]', 'a curriculum stage is'),
        ('curriculum=[{"dataset_dir": "a", "until": "5"}]', 'a curriculum stage is'),
        ('curriculum=[{"dataset_dir": "a", "until": 0}]', 'must end after'),
        ('eval_sets=' + '[' * 100_000, 'a list or an object'),
    ],
)
def test_a_wrong_number_is_one_short_line(change, words, here, capsys):
    flags = ['--model_name', 'm', '--dataset_dir', 'd', '--sets', change]
    code, _, err = command(capsys, 'train', '--config_file', 'tiny', *flags)
    assert code == 2 and words in err and err.count('\n') == 1 and len(err) < 300


def test_max_iters_is_checked_as_well(folder, here, capsys):
    flags = ['--model_name', 'm', '--dataset_dir', folder / 'bytes', '--max_iters']
    code, _, err = command(capsys, 'train', *flags, '0')
    assert code == 2 and 'max_iters is 0, it must be at least 1' in err
    code, _, err = command(capsys, 'train', *flags, '-5')
    assert code == 2 and err.count('\n') == 1


def test_a_config_with_a_byte_order_mark_is_read(here):
    (here / 'c.json').write_bytes(b'\xef\xbb\xbf{"max_iters": 2}')
    assert load_config('c.json').train.max_iters == 2
    (here / 'utf16.json').write_text('{"max_iters": 2}', encoding='utf-16')
    (here / 'deep.json').write_text('[' * 100_000)
    for name, words in (('utf16.json', 'save it as JSON in UTF-8'), ('deep.json', 'not JSON')):
        with pytest.raises(UserError, match=words):
            load_config(name)
    (here / 'own.json').write_text('{"extends": "phase2_operators", "dropout": 0.3}')
    assert load_config('own.json', ['seed=2']).own == {'dropout', 'seed'}


# ---------------------------------------------------------------- losses that break


class Broken:
    "The model's loss, times NaN from a step on."

    def __init__(self, model, first):
        self.loss, self.first, self.calls = model.loss, first, 0

    def __call__(self, *a, **kw):
        self.calls += 1
        return self.loss(*a, **kw) * (math.nan if self.calls >= self.first else 1.0)


@pytest.mark.parametrize('first, step', [(11, 8), (12, 8), (1, None)])
def test_a_run_that_ends_in_nan_keeps_the_good_checkpoint(first, step, folder, here, capsys):
    "Three bad steps in a row, or one at the very end: an error, and nothing is overwritten."

    class Break(Callback):
        def before_fit(self, t):
            t.loss_fn = Broken(t.model, first)

    sets = [*RUN, 'max_iters=12', 'eval_interval=4']
    with pytest.raises(UserError, match='not finite') as e:
        train('m', str(folder / 'bytes'), sets=sets, quiet=True, cbs=[Break()])
    assert '\n' not in str(e.value) and 'learning_rate' in str(e.value)
    if step is None:
        assert not (here / 'checkpoints/m/model.safetensors').exists()
    else:
        assert load_meta('checkpoints/m')['step'] == step
        assert 'next: ' not in capsys.readouterr().out


def test_weights_that_break_in_an_update_are_not_saved(folder, here):
    "The loss of step 8 was fine, its update was not: the evaluation shows it before the save."

    class Break(Callback):
        def after_step(self, t):
            if t.step == 8:
                next(t.model.parameters()).data.fill_(math.inf)

    with pytest.raises(UserError, match=r'step 8: the loss on val nan is not finite'):
        train('m', str(folder / 'bytes'), sets=[*RUN, 'max_iters=12'], quiet=True, cbs=[Break()])
    model, _, meta = load_model('checkpoints/m', verify=True)
    assert meta['step'] == 4 and all(p.isfinite().all() for p in model.parameters())


# ---------------------------------------------------------------- speed


Row = namedtuple('Row', 'ids weights segments')


def packed_row(lens, share):
    "Episodes of these lengths in a row, the last `share` of each with loss."
    ids = np.concatenate([np.arange(n) % 7 for n in lens])
    weights = np.concatenate([np.arange(n) >= n - round(share * n) for n in lens]).astype(float)
    segments = np.repeat(np.arange(1, len(lens) + 1), lens)
    return Row(ids, weights, segments)


def test_the_operations_of_a_step_are_those_it_needs():
    "Counted by hand for three episodes of 30, 34 and 50 tokens in a row of 128."
    cfg = ModelConfig(n_layer=2, n_head=2, n_embd=8, hidden=16, block_size=128, vocab_size=11)
    batch = collate([packed_row([30, 34, 50], 0.5)], length=128)
    assert batch.n_tokens == 114 and batch.n_supervised == 15 + 17 + 25
    assert batch.n_pairs == 30 * 31 // 2 + 34 * 35 // 2 + 50 * 51 // 2 == 2335
    block = 4 * 8 * 8 + 3 * 8 * 16  # q, k, v, o and the three matrices of the MLP
    last = 3 * 8 * 8  # q, k, v of the last block; the rest of it at supervised tokens
    products = block * 114 + last * 114 + (block - last) * 57
    attention = 2 * 8 * 2 * 2335
    head = 8 * 11 * 57
    needed = needed_flops(cfg, 114, 57, 2335)
    assert needed == 6 * (products + attention + head)
    assert needed == sum(p.flops for p in step_parts(cfg, [30, 34, 50], 57))


@pytest.mark.parametrize(
    'name, lens, share, too_high',
    [('phase3_chat_sft', [700] * 23, 0.3, 1.29), ('pretrain', [1024] * 12, 1.0, 1.0)],
)
def test_mfu_counts_neither_padding_nor_other_episodes(name, lens, share, too_high):
    "The bar once counted whole rows with a head at every token."
    c = replace(load_config(name).model)
    n = sum(lens)
    rows = 6 * n * (c.n_params + c.n_layer * c.n_embd * (c.block_size + 1))
    needed = needed_flops(c, n, int(share * n), sum(k * (k + 1) // 2 for k in lens))
    assert rows / needed == pytest.approx(too_high, abs=0.02)


def test_the_bar_shows_the_share_of_the_machine(monkeypatch):
    cfg = ModelConfig(n_layer=2, n_head=2, n_embd=8, hidden=16, block_size=128, vocab_size=11)
    bar = Progress(cfg, disable=True)
    needed = needed_flops(cfg, 114, 57, 2335)
    bar.peak, bar.ema, shown = needed / 2 * 4, None, []
    bar.bar = type(
        'Bar',
        (),
        dict(update=lambda s: None, set_postfix_str=lambda s, x, refresh: shown.append(x)),
    )()
    record = dict(loss=1.0, tokens=114, supervised=57, pairs=2335, seconds=2.0)
    bar.after_step(type('T', (), dict(record=record)))
    assert shown == ['loss 1.000, 57 tok/s, 28 supervised/s, MFU 25%']


def test_waiting_for_data_counts():
    "Tokens a second are those of the wall clock, evaluations and saves left out."

    class Slow:
        def __init__(self):
            self.batch = collate([packed_row([30, 34], 0.5)], length=64)

        def step_batches(self, step):
            time.sleep(0.2)
            return [self.batch]

    spent, told = [], []

    class Keep(Callback):
        def after_step(self, t):
            start = time.perf_counter()
            spent.append(log_line(t.record)['seconds'])
            time.sleep(0.05)  # what callbacks do is not the step's
            told.append(time.perf_counter() - start)

    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=64, vocab_size=64))
    start = time.perf_counter()
    t = fit(Trainer(model, Slow(), TrainConfig(), 6, cbs=[Keep()]))
    wall = time.perf_counter() - start - sum(told)
    assert 0.8 * wall <= sum(spent) <= wall
    assert log_line(t.record)['tok_per_s'] == round(64 / t.record['seconds'])


def test_machines_by_their_names():
    found = {
        'NVIDIA H200': 989e12,
        'NVIDIA H100 80GB HBM3': 989e12,
        'NVIDIA H100 PCIe': 756e12,
        'NVIDIA A100-SXM4-80GB': 312e12,
        'NVIDIA L4': 121e12,
        'NVIDIA L40S': 362e12,
        'NVIDIA GeForce RTX 4090': 165e12,
    }
    assert {name: find_machine(name).flops for name in found} == found
    assert find_machine('NVIDIA L40') is None and find_machine('Tesla T4') is None


def test_one_is_not_many():
    def rows(n, per_step):
        split = type('S', (), dict(packed=True, block=8, n_rows=n, row_lengths=np.full(n, 8)))()
        return Batches(split, per_step, 8)

    assert coverage(rows(1, 1), 1) == '1 row, 1 a step: 1 step is 1.0 pass'
    assert coverage(rows(40, 1), 2000).endswith(
        '50.0 passes; many passes: more data, or epochs=3 (120 steps)'
    )
    assert coverage(rows(4, 1), 200).endswith('many passes over little data: more data helps')


def test_make_config_takes_all_keys_as_ones_own():
    assert make_config({'rope_scale': 4.0}).own == {'rope_scale'}


def test_the_lineage_holds_what_was_chosen(folder, here):
    train('m', str(folder / 'bytes'), sets=[*RUN, 'warmup_iters=100'], quiet=True)
    config = json.loads((here / 'checkpoints/m/mypt.json').read_text())['lineage']['config']
    assert config['warmup_iters'] == 0


# ----------------------------------------------------------------- models that no run may replace


@pytest.mark.parametrize('kind', ['best', 'merged', 'no state'])
@pytest.mark.parametrize('base', [None, 'other'])
def test_a_model_without_a_run_is_not_replaced(kind, base, folder, here, capsys):
    "What `mypt import` and `mypt merge` write has no state to go on from."
    train('m', str(folder / 'bytes'), sets=RUN, quiet=True)
    model = here / 'checkpoints/m'
    if base:
        shutil.copytree(model, here / 'checkpoints/other')
    if kind == 'best':
        shutil.copytree(model / 'best', here / 'checkpoints/best')
        model = here / 'checkpoints/best'
    if kind == 'merged':
        (model / 'optimizer.safetensors').unlink()
    (model / 'training_state.json').unlink(missing_ok=True)
    before = (model / 'model.safetensors').read_bytes()
    options = ['--init_from_model', base] if base else []
    sets = ['--config_file', 'tiny', '--quiet', '--sets', *RUN]
    flags = ['--model_name', model.name, '--dataset_dir', folder / 'bytes', *options, *sets]
    code, _, err = command(capsys, 'train', *flags)
    assert code == 2 and 'holds a model' in err and '--init_from_model' in err
    assert (model / 'model.safetensors').read_bytes() == before


def test_a_base_that_a_run_did_not_begin_with_is_named(folder, here, capsys):
    data = str(folder / 'bytes')
    train('base', data, sets=RUN, quiet=True)
    train('m', data, sets=RUN, quiet=True, init_from_model='base')
    sets = ['--config_file', 'tiny', '--quiet', '--sets', *RUN]
    flags = ['--model_name', 'm', '--dataset_dir', data, '--max_iters', '9']
    for asked, said in (('base', False), ('checkpoints/base', False), ('no_such_base', True)):
        code, out, _ = command(capsys, 'train', *flags, '--init_from_model', asked, *sets)
        assert code == 0 and ('is not used' in out) is said and ('no_such' in out) is said
    flags[1] = 'base'
    _, out, _ = command(capsys, 'train', *flags, '--init_from_model', 'm', *sets)
    assert 'began with fresh weights: m is not used' in out
