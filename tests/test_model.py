"The model's promises as properties; transformers' Llama is the oracle."

import itertools
import re
from dataclasses import fields, replace
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from mypt.agent.tools import TOOLS
from mypt.data.batches import Batch
from mypt.model.config import (
    ModelConfig,
    check_same_arch,
    list_configs,
    load_config,
    make_config,
    matmul_params,
)
from mypt.model.attention import Segments, attention
from mypt.model.cache import KVCache
from mypt.model.gpt import GPT, init_tags
from mypt.model.loss import head_loss
from mypt.train.cost import estimate_memory
from mypt.model.rope import rope_tables
from mypt.data.language import language_of
from mypt.data.prompts import systems_in
from mypt.data.tokenizer import INIT_WORDS, get_tokenizer
from mypt.errors import UserError

torch.set_num_threads(1)
SHAPE = dict(n_layer=2, n_head=4, n_embd=32, block_size=96, vocab_size=320)
ARCHS = {
    'llama': {},
    'grouped': dict(n_kv_head=2),
    'one kv head': dict(n_kv_head=1),
    'scaled': dict(rope_scale=4.0),
    'untied': dict(tie_weights=False),
    'biased': dict(bias=True),
    'old': dict(pos_encoding='learned', mlp_type='gelu', norm_type='layernorm', bias=True),
    'mixed': dict(pos_encoding='rope', mlp_type='gelu', norm_type='layernorm', n_kv_head=2),
}
lengths = st.lists(st.integers(1, 20), min_size=1, max_size=5).filter(lambda ls: max(ls) > 1)


def model_of(name='llama', **kw):
    torch.manual_seed(0)
    model = GPT(ModelConfig(**SHAPE | ARCHS[name] | kw))
    for p in model.parameters():  # biases and norms away from 0 and 1, so that forgetting one shows
        if p.dim() == 1:
            torch.nn.init.normal_(p, p.mean().item(), 0.1)
    return model


def row_of(lens, T, seed=0, weights=None):
    "A batch of one row: episodes of these lengths, then padding."
    g = torch.Generator().manual_seed(seed)
    seg = torch.zeros(1, T, dtype=torch.int32)
    seg[0, : sum(lens)] = (
        torch.arange(1, len(lens) + 1).repeat_interleave(torch.tensor(lens, dtype=torch.long)).int()
    )
    ids = torch.randint(0, 320, (1, T), generator=g)
    w = torch.randint(0, 3, (1, T), generator=g).float() if weights is None else weights
    inside = (seg[:, :-1] == seg[:, 1:]) & (seg[:, 1:] > 0)
    w = F.pad(inside.float(), (0, 1)) * w
    pos = torch.cat([torch.arange(n) for n in lens] + [torch.arange(T - sum(lens))])[None]
    return Batch(ids, ids.roll(-1, 1), w, seg, pos)


def cut(batch, a, b):
    return Batch(*(getattr(batch, f.name)[:, a:b] for f in fields(Batch)[:5]))


def bounds(lens):
    return list(itertools.pairwise([0, *itertools.accumulate(lens)]))


def grads(model, loss):
    model.zero_grad()
    loss.backward()
    return [p.grad.clone() for p in model.parameters()]


def close(a, b, eps=1e-5):
    torch.testing.assert_close(a, b, atol=eps, rtol=eps)


@pytest.mark.parametrize('arch', ARCHS)
@pytest.mark.parametrize('alpha', [0.0, 10.0])
def test_packed_equals_alone(arch, alpha):
    model, lens = model_of(arch).train(), [7, 20, 1, 20, 12, 3]
    model.neftune_alpha = alpha
    pack, noise = row_of(lens, 70), torch.rand(1, 70, 32) * 2 - 1
    total = pack.weights.sum()
    loss = model.loss(pack, total, noise)
    ours = grads(model, loss)
    alone = sum(model.loss(cut(pack, a, b), total, noise[:, a:b]) for a, b in bounds(lens))
    close(loss, alone)
    for x, y in zip(ours, grads(model, alone), strict=True):
        close(x, y)
    model.eval()
    logits = model(pack.ids, pack.segments)
    for a, b in bounds(lens):
        close(logits[:, a:b], model(pack.ids[:, a:b]))


@settings(max_examples=25, deadline=None)
@given(lengths, st.integers(0, 9))
def test_every_layout_equals_the_reference(lens, pad):
    T = sum(lens) + pad
    batch, g = row_of(lens, T), torch.Generator().manual_seed(1)
    q, k, v, up = (torch.randn(1, T, h, 8, generator=g) for h in (4, 2, 2, 4))
    real = (batch.segments > 0)[..., None, None]

    def run(kind):
        xs = [x.clone().requires_grad_() for x in (q, k, v)]
        layout = Segments.of(batch.segments, (1, T), kind)
        out = layout.put(attention(*map(layout.take, xs), layout)) * real
        return out, *torch.autograd.grad((out * up).sum(), xs)

    for ours, plain in zip(run('sorted'), run('reference'), strict=True):
        close(ours, plain)


@settings(max_examples=25, deadline=None)
@given(st.lists(lengths, min_size=1, max_size=3), st.data())
def test_leaving_out_unneeded_tokens_changes_nothing(rows, data):
    "Targets anywhere, several rows: loss and every gradient are those of the masked reference."
    model, T = model_of('grouped').train(), max(map(sum, rows)) + 2
    weights = torch.tensor(
        data.draw(
            st.lists(
                st.sampled_from([0.0, 0.0, 0.0, 1.0, 0.5]),
                min_size=len(rows) * T,
                max_size=len(rows) * T,
            )
        )
    )
    packs = [row_of(lens, T, seed=i) for i, lens in enumerate(rows)]
    pack = Batch(*(torch.cat([getattr(p, f.name) for p in packs]) for f in fields(Batch)[:5]))
    pack.weights *= weights.view(len(rows), T)
    found = {}
    for model.attention in ('reference', 'sorted'):
        loss = model.loss(pack)
        found[model.attention] = loss, *grads(model, loss)
    for x, y in zip(found['sorted'], found['reference'], strict=True):
        close(x, y)
    keep = pack.weights.flatten().nonzero().flatten()
    n = sum(
        n * L for n, L in Segments.of(pack.segments, pack.ids.shape, 'sorted', keep=keep).shapes
    )
    assert n <= (pack.segments > 0).sum() or not len(keep)


@settings(max_examples=15, deadline=None)
@given(lengths, st.data())
def test_no_bit_of_another_episode_moves(lens, data):
    model, pack = model_of('grouped').eval(), row_of(lens, sum(lens) + 3)
    spans = bounds(lens)
    a, b = spans[data.draw(st.integers(0, len(lens) - 1))]
    other = pack.ids.clone()
    other[:, a:b] = (other[:, a:b] + 1) % 320
    before, after = model(pack.ids, pack.segments), model(other, pack.segments)
    for c, d in spans:
        assert torch.equal(before[:, c:d], after[:, c:d]) == (c != a)


def test_nan_stays_in_its_episode():
    model, pack = model_of().train(), row_of([5, 6, 7], 20)
    noise = torch.zeros(1, 20, 32)
    model.neftune_alpha = 1.0
    noise[:, 5:11] = torch.nan
    h = model.hidden(pack.ids, pack.segments, noise=noise)
    assert h[:, 5:11].isnan().all() and h[:, :5].isfinite().all() and h[:, 11:18].isfinite().all()
    h[:, :5].sum().backward()
    rows = model.model.embed_tokens.weight.grad
    assert all(rows[i].isfinite().all() for i in pack.ids[0, :5])


def test_segments_on_several_rows():
    "Runs end at a row's end, even when the next row goes on with the same number."
    model, lens = model_of().eval(), [[4, 6], [10], [3, 3]]
    rows = [row_of(n, 10, seed=i) for i, n in enumerate(lens)]
    rows[1].segments[:] = 2
    ids, seg = torch.cat([r.ids for r in rows]), torch.cat([r.segments for r in rows])
    out = model(ids, seg)
    for b, r in enumerate(rows):
        close(out[b : b + 1, : sum(lens[b])], model(r.ids, r.segments)[:, : sum(lens[b])])
    assert Segments.of(seg, (3, 10)).positions.tolist()[0] == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5]


def test_a_second_backward_pass_is_right():
    h, W = (torch.randn(n, 8, requires_grad=True) for n in (5, 50))
    loss = head_loss(h, W, torch.arange(5), torch.ones(5))
    (once,), (twice,), (scaled,) = (
        torch.autograd.grad(x, W, retain_graph=True) for x in (loss, loss, loss * 3)
    )
    assert once.equal(twice)
    close(scaled, once * 3)


def test_nothing_supervised():
    for model in (model_of(), model_of('untied')):
        for batch in (row_of([5, 4], 12, weights=torch.zeros(1, 12)), row_of([], 12)):
            for denom in (None, 3.0):
                loss = model.loss(batch, denom)
                assert loss.item() == 0 and all((g == 0).all() for g in grads(model, loss))


@pytest.mark.parametrize('arch', ARCHS)
def test_cache_equals_full_forward(arch):
    "Prompts of unequal length in one batch, then a token at a time."
    model, lens, more = model_of(arch).eval(), torch.tensor([9, 4, 1]), 6
    ids = torch.randint(0, 320, (3, 9 + more))
    whole = [model(ids[b : b + 1, : n + more])[0] for b, n in enumerate(lens)]
    cache, rows = KVCache(model.cfg, 3, 9 + more), torch.arange(3)
    with torch.no_grad():
        out = model.logits(model.hidden(ids[:, :9], cache=cache))
        for b, n in enumerate(lens):
            close(out[b, :n], whole[b][:n])
        for step in range(more):
            at = (lens + step)[:, None]
            out = model.logits(model.hidden(ids[rows[:, None], at], positions=at, cache=cache))
            for b, n in enumerate(lens):
                close(out[b, 0], whole[b][n + step])


def test_cache_in_pieces_and_its_end():
    model = model_of().eval()
    ids, cache = torch.randint(0, 320, (2, 12)), KVCache(model.cfg, 2, 12)
    parts = [model.hidden(ids[:, a:b], cache=cache) for a, b in ((0, 5), (5, 6), (6, 12))]
    close(torch.cat(parts, 1), model.hidden(ids))
    with pytest.raises(UserError, match='13 tokens do not fit a cache of 12'):
        model.hidden(ids[:, :1], cache=cache)


def test_rows_longer_than_the_block():
    ids = torch.zeros(1, 97, dtype=torch.long)
    with pytest.raises(UserError, match='97 tokens exceed block_size 96'):
        model_of()(ids)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 9),
    st.integers(2, 40),
    st.integers(1, 500),
    st.booleans(),
    st.booleans(),
    st.floats(1e-3, 30),
)
def test_head_loss_is_cross_entropy(M, V, chunk, need_h, need_W, size):
    g = torch.Generator().manual_seed(M)
    h = torch.randn(M, 6, generator=g, dtype=torch.double).mul_(size).requires_grad_(need_h)
    W = torch.randn(V, 6, generator=g, dtype=torch.double, requires_grad=need_W)
    y, w = (torch.randint(0, V, (M,), generator=g), torch.rand(M, generator=g, dtype=torch.double))
    ours, plain = (
        head_loss(h, W, y, w, chunk),
        (F.cross_entropy(h @ W.T, y, reduction='none') * w).sum(),
    )
    close(ours, plain, 1e-10)
    if wanted := [x for x in (h, W) if x.requires_grad]:
        pair = (
            torch.autograd.grad(2.5 * x, wanted) for x in (ours, plain)
        )  # what comes from above counts too
        for a, b in zip(*pair, strict=True):
            close(a, b, 1e-10)


def test_head_loss_gradcheck_and_extremes():
    h, W = (torch.randn(n, 4, dtype=torch.double, requires_grad=True) for n in (3, 5))
    y, w = torch.tensor([0, 4, 2]), torch.tensor([1.0, 0.5, 2.0], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda h, W: head_loss(h, W, y, w, 10), (h, W))
    huge = head_loss(torch.tensor([[1e4, -1e4]]), torch.eye(2), torch.tensor([1]), torch.ones(1))
    assert huge.item() == 2e4


def test_loss_never_holds_all_logits():
    biggest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal biggest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                biggest = max(biggest, out.numel())
            return out

    h, W = (torch.randn(64, 4, requires_grad=True), torch.randn(1000, 4, requires_grad=True))
    with Watch():
        head_loss(h, W, torch.zeros(64, dtype=torch.long), torch.ones(64), chunk=8000).backward()
    assert biggest == 8000 < 64 * 1000


def test_bfloat16_autocast_is_near():
    model, pack = model_of(), row_of([20, 30], 60)
    exact = model.loss(pack)
    with torch.autocast('cpu', torch.bfloat16):
        rough = model.loss(pack)
    assert rough.dtype == torch.float32 and abs(rough - exact) < 0.02 * exact
    a, b = (torch.cat([g.flatten() for g in grads(model, x)]) for x in (exact, rough))
    assert F.cosine_similarity(a, b, dim=0) > 0.99


def test_token_losses_add_up():
    model, pack = model_of(), row_of([9, 15], 30)
    each = model.token_losses(pack)
    close((each * pack.weights).sum() / pack.weights.sum(), model.loss(pack).detach())
    assert (each[pack.weights == 0] == 0).all()


@pytest.mark.parametrize('arch', ['llama', 'old'])
def test_recomputing_changes_nothing(arch):
    model, pack = model_of(arch, dropout=0.2).train(), row_of([9, 15], 30)

    def run(recompute):
        model.use_checkpoint = recompute
        torch.manual_seed(3)
        return grads(model, model.loss(pack))

    for a, b in zip(run(False), run(True), strict=True):
        assert torch.equal(a, b)


def test_dropout_and_noise_only_in_training():
    model, ids = model_of(dropout=0.5), torch.randint(0, 320, (1, 20))
    model.neftune_alpha = 10.0
    model.eval()
    assert torch.equal(model(ids), model(ids))
    model.train()
    assert not torch.equal(model(ids), model(ids))


def llama_of(model):
    transformers = pytest.importorskip('transformers')
    c = model.cfg
    rope = dict(rope_type='linear', factor=c.rope_scale, rope_theta=c.rope_theta)
    hf = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=c.vocab_size,
            hidden_size=c.n_embd,
            intermediate_size=c.mlp_hidden,
            num_hidden_layers=c.n_layer,
            num_attention_heads=c.n_head,
            num_key_value_heads=c.kv_heads,
            max_position_embeddings=c.block_size,
            rms_norm_eps=c.norm_eps,
            tie_word_embeddings=c.tie_weights,
            attention_bias=c.bias,
            mlp_bias=c.bias,
            rope_parameters=rope,
        )
    )
    missing, extra = hf.load_state_dict(model.state_dict(), strict=False)
    assert not extra and missing in ([], ['lm_head.weight'])
    return hf.eval()


@pytest.mark.parametrize('arch', [a for a in ARCHS if a not in ('old', 'mixed')])
def test_llama_agrees(arch):
    model, ids = model_of(arch).eval(), torch.randint(0, 320, (2, 90))
    hf = llama_of(model)
    close(model(ids), hf(ids).logits)
    labels = ids.clone()
    labels[:, :40] = -100
    w = F.pad((labels[:, 1:] >= 0).float(), (0, 1))
    batch = Batch(ids, ids.roll(-1, 1), w, torch.ones_like(ids), torch.arange(90).expand(2, 90))
    close(model.loss(batch), hf(ids, labels=labels).loss)


def test_position_interpolation():
    "With scale 4, position 4p is the old position p."
    (c1, s1), (c4, s4) = rope_tables(64, 1024), rope_tables(64, 4096, scale=4.0)
    close(c4[::4], c1)
    close(s4[::4], s1)
    model = model_of('scaled').eval()
    ids = torch.randint(0, 320, (1, 20))
    unscaled = GPT(replace(model.cfg, rope_scale=1.0, block_size=96)).eval()
    unscaled.load_state_dict(model.state_dict())
    close(model.hidden(ids, positions=torch.arange(0, 80, 4)[None]), unscaled.hidden(ids))


def test_init_tags():
    tok = get_tokenizer('byte')
    for model in (model_of(), model_of('untied')):
        before = model.model.embed_tokens.weight.clone()
        init_tags(model, tok)
        for table in (model.model.embed_tokens.weight, model.head):
            want = torch.stack(
                [table[j] for w in INIT_WORDS['<myPT_eot>'] for j in tok.encode(w)]
            ).mean(0)
            close(table[tok.tag_ids['<myPT_eot>']], want)
        assert torch.equal(model.model.embed_tokens.weight[:257], before[:257])


@pytest.mark.parametrize('half', [False, True])
@pytest.mark.parametrize('dropout', [0.0, 0.1])
@pytest.mark.parametrize('recompute', [False, True])
def test_memory_estimate_against_what_autograd_keeps(half, dropout, recompute):
    c = ModelConfig(
        n_layer=8, n_head=4, n_embd=128, block_size=1024, vocab_size=320, dropout=dropout
    )
    model, batch, kept = (
        GPT(c).train(),
        row_of([200, 300, 500], 1024, weights=torch.ones(1, 1024)),
        {},
    )
    model.use_checkpoint = recompute
    weights = {p.data_ptr() for p in model.parameters()}

    def pack(t):
        s = t.untyped_storage()
        if s.data_ptr() not in weights:
            kept[s.data_ptr()] = (s.nbytes(), s)  # held, so that no address is used twice
        return t

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
    with hooks, torch.autocast('cpu', torch.bfloat16, enabled=half):
        model.loss(batch)
    parts = estimate_memory(c, 1024, use_checkpoint=recompute, half=half)
    assert parts['total'] == pytest.approx(sum(v for k, v in parts.items() if k != 'total'))
    if recompute:
        want = (
            c.n_layer * 1024 * 128 * 4 / 2**30
        )  # one block's worth is made later, in the backward pass
    else:
        want = parts['activations'] + (2 * matmul_params(c) / 2**30 if half else 0)
    assert sum(n for n, _ in kept.values()) / 2**30 == pytest.approx(
        want, rel=0.2 if not recompute else 0.6
    )


def test_every_config_loads_and_obeys_the_rules():
    names = list_configs()
    assert {
        'pretrain',
        'phase1_format_lock',
        '750M_phase3a1_format_lock',
        'micro',
        'small',
        'tiny',
    } <= set(names)
    for n in names:
        c = load_config(n)
        by_language = {lang: systems_in(c.train.system_prompt, lang) for lang in ('en', 'de')}
        assert not any('<' in p for prompts in by_language.values() for p in prompts), n
        assert set(c.train.eval_sets) <= set(names) | {'general', 'domain', 'code', 'retrieval'}, n
        if c.model.n_embd == 1280:
            assert c.model.n_params == 698_860_800, n


@pytest.mark.parametrize(
    'name, variants, least, most',
    [('phase1_format_lock', 1, 4, 6), ('phase2_operators', 1, 4, 6)]
    + [(name, 4, 15, 20) for name in ('phase3_chat_sft', 'phase4_multiturn')]
    + [(name, 8, 70, 90) for name in ('phase5_simple_toolcall', 'phase6_agentic_rag')],
)
def test_system_prompts_are_short_and_in_the_language_of_the_episode(name, variants, least, most):
    gpt2 = get_tokenizer('gpt2')
    for lang in ('en', 'de'):
        prompts = systems_in(load_config(name).train.system_prompt, lang)
        assert len(set(prompts)) == variants
        for p in prompts:
            assert least <= len(gpt2.encode(p)) <= most, p
            assert variants == 1 or language_of(p) == lang, p
            assert variants < 8 or all(tool in p for tool in TOOLS), p


@pytest.mark.parametrize(
    'name, batch, accum, block, dropout, lr, iters, warmup, seed, alpha',
    [
        ('pretrain', 12, 8, 1024, 0.1, 1.5e-4, 75000, 3750, None, 0),
        ('phase1b_context_extension', 4, 4, 4096, 0.05, 3e-5, 12000, 400, 1729, 0),
        ('phase1_format_lock', 16, 1, 1024, 0.1, 7e-5, 2000, 100, 4501, 5),
        ('phase2_operators', 8, 2, 1024, 0.08, 3e-5, 1200, 120, 7778, 5),
        ('phase3_chat_sft', 4, 3, 4096, 0.12, 3e-5, 5000, 150, 3301, 10),
        ('phase4_multiturn', 4, 2, 4096, 0.1, 2.5e-5, 3000, 100, 4401, 10),
        ('phase5_simple_toolcall', 3, 2, 4096, 0.08, 2e-5, 3000, 100, 5501, 5),
        ('phase6_agentic_rag', 3, 2, 4096, 0.08, 1.5e-5, 4000, 120, 6601, 5),
        ('750M_1024_chat_sft_phase3a', 10, 1, 1024, 0.15, 5e-5, 5000, 150, 3301, 0),
    ],
)
def test_configs_are_the_documents(
    name, batch, accum, block, dropout, lr, iters, warmup, seed, alpha
):
    c = load_config(name)
    t = c.train
    assert (t.batch_size, t.grad_accum_steps, c.model.block_size, c.model.dropout) == (
        batch,
        accum,
        block,
        dropout,
    )
    assert (t.learning_rate, t.max_iters, t.warmup_iters, t.neftune_alpha) == (
        lr,
        iters,
        warmup,
        alpha,
    )
    assert seed is None or t.epoch_seed == seed
    assert c.model.rope_scale == (1 if name == 'pretrain' else 4)
    assert (t.weight_decay, t.episode_min_tokens) == (0.05, 10)
    assert t.use_amp and t.amp_dtype in ('auto', 'bf16')


@pytest.mark.parametrize(
    'd, words',
    [
        ({'learning_rat': 1}, "did you mean 'learning_rate'"),
        ({'n_layer': 2.5}, 'a whole number'),
        ({'n_layer': True}, 'a whole number'),
        ({'warmup_iters': -1}, 'at least 0'),
        ({'rope_scale': 0.5}, 'at least 1'),
        ({'beta2': 1.0}, 'below 1'),
        ({'eval_sets': 'P1'}, 'a list or an object'),
        ({'n_head': 3, 'n_embd': 64}, 'n_embd 64 is not a multiple of n_head 3'),
        ({'n_head': 4, 'n_kv_head': 3}, 'not a multiple'),
        ({'optimizer': 'sgd'}, 'adamw, muon'),
        ({'pos_encoding': 'learned', 'rope_scale': 2}, 'rope_scale'),
        ({'learning_rate': float('nan')}, 'above 0'),
        ({'dropout': float('nan')}, 'at least 0'),
    ],
)
def test_bad_config(d, words):
    with pytest.raises(UserError, match=words) as e:
        make_config(d, 'x.json')
    assert str(e.value).startswith('x.json: ') and '\n' not in str(e.value)


@pytest.mark.parametrize(
    'asked, words',
    [
        ('learning_rate=abc', "sets: learning_rate is 'abc'"),
        ('learning_rat=1', "sets: unknown key 'learning_rat', did you mean 'learning_rate'"),
        ('max_iters=-1', 'sets: max_iters is -1'),
    ],
)
def test_no_file_is_blamed_for_what_was_asked(asked, words):
    with pytest.raises(UserError, match=re.escape(words)):
        load_config('tiny', [asked])


def test_config_files(tmp_path):
    (tmp_path / 'a.json').write_text('{"extends": "tiny", "epochs": 2}')
    (tmp_path / 'b.json').write_text('{"extends": "a", "n_layer": 2}')
    c = load_config(tmp_path / 'b.json', {'seed': 7})
    assert (c.model.n_layer, c.train.epochs, c.train.seed, c.model.vocab_size) == (2, 2.0, 7, 320)
    (tmp_path / 'a.json').write_text('{"extends": "b"}')
    with pytest.raises(UserError, match='extends itself'):
        load_config(tmp_path / 'b.json')
    bad = {
        '{"n_layer": 1, "n_layer": 2}': 'twice',
        '[1]': 'this is a list',
        '{': 'not JSON',
        '{"extends": 3}': 'extends',
    }
    for text, words in bad.items():
        (tmp_path / 'c.json').write_text(text)
        with pytest.raises(UserError, match=words):
            load_config(tmp_path / 'c.json')
    with pytest.raises(UserError, match='write key=value'):
        load_config('tiny', ['n_layer'])


def test_base_decides_the_architecture():
    base = ModelConfig(**SHAPE)
    cfg = make_config(dict(n_layer=2, dropout=0.1, rope_scale=4.0, block_size=200, hidden=None))
    new = check_same_arch(base, cfg)
    assert new == replace(base, dropout=0.1, rope_scale=4.0, block_size=200)
    with pytest.raises(
        UserError, match=r'n_embd 64 \(base: 32\), mlp_type gelu \(base: swiglu\)|mlp_type.*n_embd'
    ):
        check_same_arch(base, make_config(dict(n_embd=64, mlp_type='gelu')))
    assert check_same_arch(base, make_config({'n_kv_head': 4})) == base


def test_generation_first_training_after():
    "Angle tables made in inference mode are shared with training, which must still go backward."
    rope_tables.cache_clear()
    model, pack = model_of().train(), row_of([5, 9], 16)
    with torch.inference_mode():
        model(pack.ids)
    assert all(g.isfinite().all() for g in grads(model, model.loss(pack)))
