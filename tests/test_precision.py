"bfloat16 products on CPUs; a CPU without the instructions is made to say that it has them."

import json
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import patch
import numpy as np
import pytest
import torch
from mypt.data.batches import Batch, Batches, collate
from mypt.model.config import ModelConfig, TrainConfig
from mypt.model.gpt import GPT
from mypt.model.half import half_copy
from mypt.train import precision
from mypt.train.loop import RunState, Trainer, fit, restore_trainer, trainer_state
from mypt.train.precision import BF16, BF16_PRODUCTS, FP32, compare_precisions

torch.set_num_threads(1)
SHAPE = ModelConfig(n_layer=2, n_head=4, n_kv_head=2, n_embd=64, block_size=64, vocab_size=256)
T = SHAPE.block_size


@pytest.fixture
def able():
    "A CPU that says it has the instructions."
    precision._CHOSEN.clear()
    with patch('mypt.train.precision.has_bf16', return_value=True):
        yield
    precision._CHOSEN.clear()


class Rows:
    "A text, cut into rows of one or two episodes."

    packed, block = True, T

    def __init__(self, text: bytes):
        ids = np.frombuffer(text, np.uint8)
        self.ids = ids[: len(ids) // T * T].reshape(-1, T).astype(np.int64)
        self.n_rows = len(self.ids)
        self.row_lengths = np.full(self.n_rows, T)

    def row(self, i):
        return Row(self.ids[i])


class Row:
    def __init__(self, ids):
        self.ids, self.weights = ids, np.ones(T)
        self.segments = np.where(np.arange(T) < 40, 1, 2)


def trainer(root, steps=200, choice=None, **kw) -> Trainer:
    "A model of bytes on the licence, which never changes; `choice` is what measuring would say."
    torch.manual_seed(0)
    text = (root / 'LICENSE').read_bytes()
    cfg = TrainConfig(**dict(learning_rate=3e-3, batch_size=4, eval_interval=1000) | kw)
    data = Batches(Rows(text), cfg.batch_size, T, seed=1, grad_accum=cfg.grad_accum_steps)
    t = Trainer(GPT(replace(SHAPE, dropout=0.1)), data, cfg, steps)
    if choice:
        t.choose_precision = lambda: choice
    return t


def run(t: Trainer, until=None) -> list[float]:
    "The losses of its steps."
    losses = []

    class Each:
        def __getattr__(self, hook):
            return lambda t: losses.append(t.record['loss']) if hook == 'after_step' else None

    t.cbs = [Each()]
    fit(t, until)
    return losses


def same_weights(a, b):
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_two_hundred_steps_teach_the_same_in_bfloat16(root):
    """Both precisions learn the same: their curves are nearer to each other than two draws of
    dropout are, and window by window the mean losses agree to a percent."""
    kw = dict(learning_rate=5e-4)  # at 3e-3 rounding alone sends two runs apart
    full = np.array(run(trainer(root, choice=FP32, **kw)))
    other = np.array(run(trainer(root, choice=FP32, seed=1, **kw)))
    t = trainer(root, choice=BF16, **kw)
    half = np.array(run(t))
    assert t.precision == BF16 and not t.skipped and (half != full).any()
    assert full[-20:].mean() < 0.7 * full[0]
    noise, apart = abs(other - full), abs(half - full)
    assert apart.mean() < 0.5 * noise.mean()
    assert apart[:50].mean() < 0.2 * noise[:50].mean()  # before differences have grown
    windows = half.reshape(4, 50).mean(1) / full.reshape(4, 50).mean(1)
    assert windows == pytest.approx(1, abs=0.01)


def test_the_first_loss_is_measured_before_the_first_step(root, able, monkeypatch):
    "A run begins with its validation loss, without gradients; what is timed there needs them."
    monkeypatch.setattr(precision, 'FEW_WEIGHTS', 0)
    t = trainer(root, steps=2)
    t.evals = dict(val=lambda: iter([next(iter(t.data.step_batches(0)))]))
    run(t)
    assert t.precision in (FP32, BF16, BF16_PRODUCTS) and t.step == 2
    assert 0 < t.evaluated['val'] < 10


def test_a_small_model_is_the_same_in_every_run(root, able, capsys):
    "Nothing is timed, so the choice cannot differ; nothing is said of a fastest."
    with patch('mypt.train.precision.time_step', side_effect=AssertionError):
        t = trainer(root, steps=2)
        run(t)
    assert t.precision == FP32 and 'fastest' not in capsys.readouterr().out


@pytest.mark.parametrize('choice', [BF16, BF16_PRODUCTS])
@pytest.mark.parametrize('optimizer', ['adamw', 'muon'])
def test_a_killed_run_ends_bit_for_bit(root, able, choice, optimizer):
    kw = dict(steps=12, grad_accum_steps=2, optimizer=optimizer, neftune_alpha=1.0)
    whole = trainer(root, choice=choice, **kw)
    run(whole)
    first = trainer(root, choice=choice, **kw)
    run(first, until=7)
    state, tensors = trainer_state(first)
    second = trainer(root, choice=FP32, **kw)  # another measurement would say otherwise
    second.model.load_state_dict(first.model.state_dict())
    restore_trainer(second, json.loads(json.dumps(state)), tensors)
    run(second)
    assert second.precision == choice and same_weights(whole.model, second.model)


def test_a_recorded_precision_yields_to_config_device_and_ability(root, able):
    def restored(state, **kw):
        t = trainer(root, **kw)
        restore_trainer(t, trainer_state(t)[0] | state, {})
        return t.precision

    on_cpu = dict(precision=BF16, precision_on='cpu')
    assert restored(on_cpu) == BF16
    assert restored(on_cpu, amp_dtype='fp32') == ''
    assert restored(on_cpu, use_amp=False) == ''
    assert restored(dict(precision=FP32, precision_on='cpu')) == FP32
    assert restored(dict(precision=FP32, precision_on='cpu'), amp_dtype='bf16') == ''
    assert restored(dict(precision=BF16, precision_on='cuda')) == ''
    with patch('mypt.train.precision.has_bf16', return_value=False):
        assert restored(on_cpu) == ''


def test_a_checkpoint_from_before_goes_on_in_float32(root, able):
    t = trainer(root)
    state, tensors = trainer_state(t)
    del state['precision'], state['precision_on']
    restore_trainer(t, state, tensors)
    assert t.precision == FP32


def test_without_the_instructions_nothing_is_timed(root):
    with (
        patch('mypt.train.precision.has_bf16', return_value=False),
        patch('mypt.train.precision.time_step', side_effect=AssertionError),
    ):
        for kind in ('auto', 'bf16', 'fp32'):
            t = trainer(root, steps=1, amp_dtype=kind)
            run(t)
            assert t.precision == FP32


@pytest.mark.parametrize(
    'times, choice',
    [((9, 3, 4), BF16), ((9, 30, 4), BF16_PRODUCTS), ((9, 8.5, 8.8), FP32), ((1, 9, 9), FP32)],
)
def test_a_run_takes_what_is_fastest_and_keeps_it(root, able, capsys, monkeypatch, times, choice):
    monkeypatch.setattr(precision, 'FEW_WEIGHTS', 0)  # this model's size is not the question
    by_name, asked = dict(zip((FP32, BF16, BF16_PRODUCTS), times, strict=True)), []

    def time_step(model, name, shape):
        asked.append(name)
        return by_name[name]

    with patch('mypt.train.precision.time_step', time_step):
        runs = [trainer(root, steps=2) for _ in range(2)]
        for t in runs:
            run(t)
    assert [(t.precision, t.precision_on) for t in runs] == [(choice, 'cpu')] * 2
    assert asked.count(choice) == 1 + precision.ROUNDS  # one measurement for both runs
    assert choice in capsys.readouterr().out
    assert RunState.__dataclass_fields__.keys() >= {'precision', 'precision_on'}


def test_the_slow_are_not_asked_again():
    asked = []

    def seconds(name):
        asked.append(name)
        return {'a': 1.0, 'b': 2.5, 'c': 0.5}[name]

    assert compare_precisions(('a', 'b', 'c'), seconds) == 'c'
    assert [asked.count(x) for x in 'abc'] == [1 + precision.ROUNDS, 2, 1 + precision.ROUNDS]


def test_measuring_leaves_no_trace(root, able):
    "A run that measures and one that is told end alike, though dropout draws while it is timed."
    measured = trainer(root, steps=3)
    run(measured)
    told = trainer(root, steps=3, choice=measured.precision)
    run(told)
    assert same_weights(measured.model, told.model)


def batch_of(rows=2, seed=0) -> Batch:
    g = np.random.default_rng(seed)
    return collate([Row(g.integers(0, 256, T)) for _ in range(rows)], length=T)


ARCHS = {
    'llama': {},
    'untied': dict(tie_weights=False),
    'biased': dict(bias=True),
    'old': dict(pos_encoding='learned', mlp_type='gelu', norm_type='layernorm'),
    'old, biased': dict(mlp_type='gelu', bias=True),
}


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('arch', ARCHS)
def test_gradients_are_near_in_every_architecture(arch, recompute, full):
    torch.manual_seed(0)
    model, batch = GPT(replace(SHAPE, **ARCHS[arch])).train(), batch_of()
    grads = []
    for context in (nullcontext(), torch.autocast('cpu', torch.bfloat16)):
        model.full_attention, model.use_checkpoint = full, recompute
        with context:
            loss = model.loss(batch)
        loss.backward()
        grads.append({n: p.grad for n, p in model.named_parameters()})
        model.zero_grad()
    exact, rough = grads
    for name, g in rough.items():
        assert g.dtype == torch.float32 and g.isfinite().all()
        assert (g - exact[name]).norm() < 0.03 * exact[name].norm(), name


def test_recomputed_gradients_are_the_same_bits():
    torch.manual_seed(0)
    model, batch, grads = GPT(SHAPE).train(), batch_of(), []
    for model.use_checkpoint in (False, True):
        with torch.autocast('cpu', torch.bfloat16):
            loss = model.loss(batch)
        loss.backward()
        grads.append([p.grad for p in model.parameters()])
        model.zero_grad()
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


def test_frozen_weights_get_no_gradient_and_the_rest_the_same():
    torch.manual_seed(0)
    model, batch = GPT(SHAPE).train(), batch_of()

    def grads():
        model.zero_grad()
        with torch.autocast('cpu', torch.bfloat16):
            loss = model.loss(batch)
        loss.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    every = grads()
    frozen = 'model.layers.0.self_attn.q_proj.weight'
    model.get_parameter(frozen).requires_grad_(False)
    rest = grads()
    assert every.keys() - rest.keys() == {frozen}
    assert all(torch.equal(every[n], g) for n, g in rest.items())


def writes():
    "Ways of changing a weight."
    makers = {
        name: lambda W, kw=kw: torch.optim.AdamW([W], **kw).step()
        for name, kw in dict(fused=dict(fused=True), foreach=dict(foreach=True)).items()
    }
    makers['moved'] = lambda W: setattr(W, 'data', W.data.clone() + 1)
    makers['loaded'] = lambda W: W.detach().copy_(torch.ones_like(W))
    return makers


@pytest.mark.parametrize('second', [False, True])
@pytest.mark.parametrize('way', writes())
def test_a_copy_follows_its_weights(way, second):
    A, B = (torch.nn.Parameter(torch.randn(4, 8)) for _ in range(2))
    for W in (A, B):
        W.grad = torch.ones_like(W)
    before = half_copy(A, B)
    assert half_copy(A, B) is before
    writes()[way](B if second else A)
    after = half_copy(A, B)
    assert torch.equal(after, torch.cat([A, B]).detach().bfloat16())
    assert not torch.equal(after, before)


def test_weights_are_turned_once_a_step(root):
    "Micro-batches and the evaluation after them read the same copies."
    made = []

    class Count(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            if func is torch.Tensor.copy_ and args[0].dtype == torch.bfloat16:
                made.append(args[0].shape)
            return func(*args, **kwargs or {})

    t = trainer(root, steps=3, choice=BF16, grad_accum_steps=4)
    with Count():
        run(t)
    assert len(made) == 3 * (7 * SHAPE.n_layer + 1)
