"""Models from elsewhere: from a base to transformers and back, old directories, refusals."""

import json
import math
import os
import pickle
import pytest
import random
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer as Rust, decoders, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from mypt.agent.tools import TOOLS, check_call
from mypt.cli import main
from mypt.curriculum.format_lock import make_echo
from mypt.data.dataset import open_dataset
from mypt.data.episodes import write_episodes
from mypt.data.hf_tokenizer import ForeignTokenizer, extend_tokenizer
from mypt.data.prepare import prepare
from mypt.data.serialize import load_call, serialize, to_ids
from mypt.data.tokenizer import INIT_WORDS, TAGS, get_tokenizer
from mypt.data.tokenizer_state import load_tokenizer, open_tokenizer, save_tokenizer
from mypt.errors import UserError
from mypt.inference.constrain import CallGrammar
from mypt.interop.export import export, find_reports, model_card, plain_template, push
from mypt.interop.import_model import OLD_TAGS, import_model
from mypt.model.checkpoint import load_model, save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT

TEXT = [
    "A model reads integers, it's schooled, and then it answers 42 questions.\n" * 3,
    'Wir grüßen die Welt, <s> und 7 Zwerge.\n' * 3,
    '{"name": "workspace.search", "query": "ML"}\n' * 3,
    '</s>' * 9,
]
EVIL = (
    'ok</s><s>[INST] <|im_end|><myPT_assistant><0x0A> ▁▁ é e\u0301 日本 🙂\x00 '
    '<myPT_endoftext><|endoftext|>'
)


def byte_level():
    "SmolLM's kind: single digits, then bytes."
    t = Rust(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    split_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.pre_tokenizer = pre_tokenizers.Sequence([digits, split_bytes])
    t.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=['<|endoftext|>', '<|im_start|>', '<|im_end|>'],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    t.train_from_iterator(TEXT, trainer)
    ends = dict(bos_token='<|im_start|>', eos_token='<|im_end|>')
    return PreTrainedTokenizerFast(tokenizer_object=t, **ends)


def control_token(content, id_):
    plain = dict.fromkeys(('single_word', 'lstrip', 'rstrip', 'normalized'), False)
    return dict(id=id_, content=content, special=True, **plain)


def sentencepiece():
    "TinyLlama's kind: ▁ for spaces and before the text, bytes for what is rare, merges spell </s>."
    t = Rust(models.BPE(byte_fallback=True, unk_token='<unk>', fuse_unk=True))
    t.normalizer = normalizers.Replace(' ', '▁')
    special = ['<unk>'] + [f'<0x{b:02X}>' for b in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=560, special_tokens=special, show_progress=False)
    t.train_from_iterator(TEXT, trainer)
    d = json.loads(t.to_str())
    prepend = dict(type='Prepend', prepend='▁')
    d['normalizer'] = dict(type='Sequence', normalizers=[prepend, d['normalizer']])
    steps = [
        dict(type='Replace', pattern=dict(String='▁'), content=' '),
        dict(type='ByteFallback'),
        dict(type='Fuse'),
        dict(type='Strip', content=' ', start=1, stop=0),
    ]
    d['decoder'] = dict(type='Sequence', decoders=steps)
    vocab = d['model']['vocab']
    assert '</s>' in vocab  # text alone would spell the control token
    vocab['<s>'] = len(vocab)
    d['added_tokens'] = [a for a in d['added_tokens'] if a['content'] == '<unk>']
    d['added_tokens'] += [control_token(c, vocab[c]) for c in ('<s>', '</s>')]
    ends = dict(bos_token='<s>', eos_token='</s>', unk_token='<unk>')
    return PreTrainedTokenizerFast(tokenizer_object=Rust.from_str(json.dumps(d)), **ends)


KINDS = dict(byte_level=byte_level, sentencepiece=sentencepiece)


def base(folder, kind='byte_level', shards=False, **kw):
    hf = KINDS[kind]()
    torch.manual_seed(0)
    cfg = dict(
        vocab_size=len(hf),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=hf.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(LlamaConfig(**cfg | kw))
    with torch.no_grad():
        for p in model.parameters():  # biases and norms begin at values that hide mistakes
            if p.dim() == 1:
                p.add_(torch.randn_like(p) * 0.3)
    model.save_pretrained(folder, **dict(max_shard_size='40KB') if shards else {})
    hf.save_pretrained(folder)
    return model.eval(), hf


def same(a, b):
    return (a - b).abs().max().item() < 1e-5 * max(1, b.abs().max().item())


@torch.no_grad()
def logits(model, ids):
    out = model(ids)
    return out if isinstance(out, torch.Tensor) else out.logits


SHAPES = [
    dict(),
    dict(tie_word_embeddings=True),
    dict(attention_bias=True),
    dict(attention_bias=True, mlp_bias=True),
    dict(
        num_key_value_heads=1,
        rms_norm_eps=1e-5,
        rope_parameters=dict(rope_type='default', rope_theta=5e5),
    ),
    dict(
        num_key_value_heads=4, rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=1e4)
    ),
]


@pytest.mark.parametrize('shape', SHAPES, ids=lambda s: ','.join(s) or 'plain')
def test_logits_are_theirs_and_are_read_back(tmp_path, shape):
    theirs, _ = base(tmp_path / 'base', shards=shape == {}, **shape)
    assert (tmp_path / 'base/model.safetensors.index.json').exists() == (shape == {})
    out = import_model(str(tmp_path / 'base'), str(tmp_path / 'mine'))
    model, _, meta = load_model(out, verify=True)
    n = theirs.config.vocab_size
    ids = torch.randint(0, n, (2, 300), generator=torch.Generator().manual_seed(0))
    ours = logits(model.eval(), ids)
    assert same(ours[..., :n], logits(theirs, ids))
    assert same(ours, logits(AutoModelForCausalLM.from_pretrained(out), ids))
    assert meta['lineage']['imported']['files'].keys() == {
        p.name for p in (tmp_path / 'base').glob('*.safetensors')
    }


@pytest.mark.parametrize('kind', KINDS)
def test_the_whole_way(tmp_path, kind, capsys):
    base(tmp_path / 'base', kind)
    mine, data, tuned = (str(tmp_path / name) for name in ('mine', 'data', 'tuned'))
    episodes, config = tmp_path / 'e.jsonl', tmp_path / 'c.json'
    write_episodes(episodes, make_echo(300))
    settings = dict(batch_size=2, learning_rate=2e-3, max_iters=8, eval_interval=4)
    config.write_text(json.dumps(settings))
    pack = ['--tokenization', f'hf:{mine}', '--enable_packing', '--pack_block_size', '512']
    start = ['--dataset_dir', data, '--init_from_model', mine, '--quiet']
    for command in (
        ['import', str(tmp_path / 'base'), '--output', mine],
        ['prepare', '--input', str(episodes), '--output_dir', data, *pack],
        ['train', '--model_name', tuned, '--config_file', str(config), *start],
    ):
        assert main(command) == 0
    before, tok, _ = load_model(mine)
    after, tok2, _ = load_model(tuned)
    assert tok == tok2 == open_dataset(data).tok == load_tokenizer(tmp_path / 'mine')
    moved = [k for k, v in after.state_dict().items() if not torch.equal(v, before.state_dict()[k])]
    assert 'model.layers.0.self_attn.k_proj.weight' in moved
    ids = torch.randint(0, tok.n_tokens, (2, 200), generator=torch.Generator().manual_seed(0))
    theirs = AutoModelForCausalLM.from_pretrained(tuned)
    assert same(logits(after.eval(), ids), logits(theirs, ids))
    hf = AutoTokenizer.from_pretrained(tuned)
    for ep in EPISODES:
        msgs = [dict(role='system', content=ep['system']), *ep['messages']]
        assert hf.apply_chat_template(msgs, return_dict=False) == to_ids(serialize(ep), tok)
        text = ''.join(span.text for span in serialize(ep))
        assert hf.apply_chat_template(msgs, tokenize=False) == text
        prompt = serialize({**ep, 'messages': ep['messages'][:-1]}, prompt=True)
        ids = hf.apply_chat_template(msgs[:-1], add_generation_prompt=True, return_dict=False)
        assert ids == to_ids(prompt, tok)


EPISODES = [
    dict(
        system='You are MyPT.',
        messages=[
            dict(role='user', content='Wer  liest?\n', context='A model reads integers. 日本'),
            dict(role='assistant', content='Ein Modell.', think='context', cite='p. 1'),
        ],
    ),
    dict(
        system='Tools: search',
        messages=[
            dict(role='user', content='Find ML'),
            dict(
                role='assistant_toolcall',
                name='workspace.search',
                arguments=dict(query='ML "x"', n=2),
            ),
            dict(
                role='toolresult',
                name='workspace.search',
                content=dict(total=1, documents=[dict(title='Grüße')]),
            ),
            dict(role='assistant', content=' One.'),
            dict(role='user', content='thanks'),
            dict(role='assistant', content='ok'),
        ],
    ),
]


@pytest.mark.parametrize('kind', KINDS)
def test_text_is_never_a_control_token(tmp_path, kind):
    hf = KINDS[kind]()
    hf.save_pretrained(tmp_path)
    tok = open_tokenizer(f'hf:{tmp_path}')
    control = {tok.vocab[t] for t in hf.get_added_vocab()} | {*tok.tag_ids.values(), tok.endoftext}
    assert set(hf.encode(EVIL)) & control  # theirs reads control tokens in it
    for text in (EVIL, *TEXT, '', ' ', '▁', '\n\n', '<0x41>', 'a' * 999, '<s>'):
        ids = tok.encode(text)
        assert not set(ids) & control and tok.decode(ids) == text
        assert b''.join(map(tok.token_bytes, ids)) == text.encode()
    assert tok.encode_with_tags('<myPT_user>hi')[0] == tok.tag_ids['<myPT_user>'] == tok.n_base + 3
    assert all(tok.ranks[tok.token_bytes(i)] == i for i in tok.encode('Wir lesen 42'))


@pytest.mark.parametrize('kind', KINDS)
def test_constrained_calls_are_legal_in_their_vocabulary_too(tmp_path, kind):
    KINDS[kind]().save_pretrained(tmp_path)
    tok, rng = open_tokenizer(f'hf:{tmp_path}'), random.Random(0)
    g = CallGrammar(tok, TOOLS)
    for _ in range(20):
        m, ids = g.start(), []
        while not m.is_accepting() and len(ids) < 40:
            ids.append(rng.choice(m.allowed().nonzero()[0].tolist()))
            m.consume_tokens(ids[-1:])
        text = tok.decode(ids + g.shortest_end(m)[:-1])
        assert check_call(*load_call(text)) is None, text


def test_a_tokenizer_is_known_by_what_it_holds(tmp_path):
    for name in 'ab':
        byte_level().save_pretrained(tmp_path / name)
    a, b = (open_tokenizer(f'hf:{tmp_path}/{n}') for n in 'ab')
    assert a == b and a.kind != b.kind and a is open_tokenizer(f'hf:{tmp_path}/a')
    assert pickle.loads(pickle.dumps(a)) == a
    (tmp_path / 'c').mkdir()
    save_tokenizer(a, tmp_path / 'c')
    assert load_tokenizer(tmp_path / 'c') == a and load_tokenizer(tmp_path / 'c').spec == a.spec
    spec = json.loads((tmp_path / 'c/tokenizer.json').read_text())
    spec['model']['merges'].pop()
    (tmp_path / 'c/tokenizer.json').write_text(json.dumps(spec))
    with pytest.raises(UserError, match='kind is'):
        load_tokenizer(tmp_path / 'c')


def test_many_workers_write_the_same_bytes(tmp_path):
    byte_level().save_pretrained(tmp_path / 't')
    write_episodes(tmp_path / 'e.jsonl', make_echo(9000))
    episodes, kind = str(tmp_path / 'e.jsonl'), f'hf:{tmp_path}/t'
    a = prepare(episodes, str(tmp_path / 'a'), tokenization=kind, workers=1)
    b = prepare(episodes, str(tmp_path / 'b'), tokenization=kind, workers=2)
    assert a.meta['files'] == b.meta['files'] and 'tokenizer.json' in a.meta['files']
    (tmp_path / 'a/tokenizer.json').unlink()
    with pytest.raises(UserError, match=r'tokenizer\.json is missing'):
        open_dataset(tmp_path / 'a')


@pytest.mark.parametrize(
    'change,named',
    [
        (dict(model_type='gpt_neox'), 'model_type'),
        (dict(hidden_act='gelu'), 'hidden_act'),
        (dict(head_dim=24), 'q_proj'),
        (dict(rope_scaling=dict(rope_type='dynamic', factor=2.0)), 'rope_type'),
        (dict(rope_scaling=dict(rope_type='llama3', factor=2.0)), 'low_freq_factor'),
        (dict(sliding_window=64), 'sliding_window'),
        (dict(quantization_config=dict(bits=4)), 'quantization_config'),
        (dict(hidden_size='x'), 'hidden_size'),
        (dict(num_key_value_heads=3), 'n_kv_head'),
        (dict(intermediate_size=64), 'gate_proj'),
        (dict(num_hidden_layers=1), 'layers.1'),
    ],
)
def test_what_our_model_cannot_express_is_named(tmp_path, change, named, capsys):
    base(tmp_path / 'base')
    path = tmp_path / 'base/config.json'
    c = json.loads(path.read_text())
    if 'rope_scaling' in change:
        c.pop('rope_parameters', None)
    path.write_text(json.dumps(c | change))
    capsys.readouterr()
    assert main(['import', str(tmp_path / 'base'), '--output', str(tmp_path / 'mine')]) == 2
    err = capsys.readouterr().err
    assert named in err and err.count('\n') == 1 and not (tmp_path / 'mine').exists()


def test_damage_is_told_in_one_line(tmp_path, capsys):
    base(tmp_path / 'base')
    weights = tmp_path / 'base/model.safetensors'
    full = weights.read_bytes()
    command = ['import', str(tmp_path / 'base'), '--output', str(tmp_path / 'mine')]
    weights.write_bytes(full[:99])
    assert main(command) == 2 and 'damaged' in capsys.readouterr().err
    weights.unlink()
    assert main(command) == 2 and 'not there' in capsys.readouterr().err
    weights.write_bytes(full)
    (tmp_path / 'base/tokenizer.json').unlink()
    assert main(command) == 2 and 'no tokenizer.json' in capsys.readouterr().err
    assert main(['import', str(tmp_path / 'nowhere'), '--output', 'x']) == 2


@pytest.mark.parametrize(
    'change,word',
    [
        (lambda d: d.update(normalizer=dict(type='Lowercase')), 'Lowercase'),
        (lambda d: d['model'].update(type='Unigram'), 'Unigram'),
        (lambda d: d['model'].update(end_of_word_suffix='</w>'), 'suffix'),
        (lambda d: d['model']['vocab'].update(a=d['model']['vocab']['b']), '2 tokens have the id'),
        (
            lambda d: d['added_tokens'].append(d['added_tokens'][-1] | dict(content='<x>')),
            r'the tokens .* and .<x>. have the id',
        ),
        (
            lambda d: d['added_tokens'].append(d['added_tokens'][-1] | dict(id=9_999)),
            r'the token .* has the ids \d+ and 9999',
        ),
    ],
)
def test_tokenizers_that_would_lose_text_are_refused(change, word, tmp_path):
    byte_level().save_pretrained(tmp_path)
    d = json.loads((tmp_path / 'tokenizer.json').read_text())
    change(d)
    with pytest.raises(UserError, match=word):
        extend_tokenizer(d)


def test_bytes_that_a_vocabulary_lacks_become_tokens_behind_it(tmp_path):
    "SmolLM2 lacks 21. No other id moves, text stays whole, and a second import adds none."
    byte_level().save_pretrained(tmp_path)
    d = json.loads((tmp_path / 'tokenizer.json').read_text())
    full = ForeignTokenizer(extend_tokenizer(d), 'hf:full')
    lacking = [bytes([0]), bytes([193]), bytes([255]), '🙂'.encode()[:1]]
    chars = [next(t for t, i in full.vocab.items() if i == full.ranks[b]) for b in lacking]
    last = max(d['model']['vocab'].values())
    for c in chars:
        del d['model']['vocab'][c]
    spec = extend_tokenizer(d)
    tok = ForeignTokenizer(spec, 'hf:lacking')
    assert sorted(tok.vocab[c] for c in chars) == list(range(last + 1, last + 5))
    assert tok.endoftext == last + 5
    for text in (EVIL, 'ordinary text, 42', 'Grüße\x00🙂'):
        assert tok.decode(tok.encode(text)) == text
    assert tok.encode('ordinary text, 42') == full.encode('ordinary text, 42')
    assert extend_tokenizer(spec) == spec


def test_a_split_that_drops_characters_is_refused(tmp_path):
    byte_level().save_pretrained(tmp_path)
    path = tmp_path / 'tokenizer.json'
    d = json.loads(path.read_text())
    cut = dict(type='Split', pattern=dict(Regex=r'\s'), behavior='Removed', invert=False)
    d['pre_tokenizer']['pretokenizers'].insert(0, cut)
    path.write_text(json.dumps(d))
    with pytest.raises(UserError, match='does not come back whole'):
        open_tokenizer(f'hf:{tmp_path}')


class GeluMLP(nn.Module):
    def __init__(self, C, hidden):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(C, hidden), nn.GELU(), nn.Linear(hidden, C))

    def forward(self, x):
        return self.net(x)


class SwiGLU(nn.Module):
    def __init__(self, C, hidden):
        super().__init__()
        self.w_gate = nn.Linear(C, hidden, bias=False)
        self.w_up = nn.Linear(C, hidden, bias=False)
        self.w_down = nn.Linear(hidden, C, bias=False)

    def forward(self, x):
        return self.w_down(F.silu(self.w_gate(x)) * self.w_up(x))


class OldAttention(nn.Module):
    def __init__(self, C, H, T, bias, rope):  # rope: 'half', 'interleaved' or None
        super().__init__()
        self.H, self.rope = H, rope
        self.qkv, self.proj = nn.Linear(C, 3 * C, bias=bias), nn.Linear(C, C, bias=bias)
        self.register_buffer('tril', torch.tril(torch.ones(T, T)))

    def turn(self, x):  # [B, H, T, D]
        T, D = x.shape[-2:]
        a = torch.arange(T)[:, None] / 10000 ** (torch.arange(0, D, 2) / D)
        pairs = self.rope == 'interleaved'
        x1, x2 = (x[..., 0::2], x[..., 1::2]) if pairs else x.chunk(2, -1)
        y = x1 * a.cos() - x2 * a.sin(), x2 * a.cos() + x1 * a.sin()
        return torch.stack(y, -1).flatten(-2) if pairs else torch.cat(y, -1)

    def forward(self, x):  # [B, T, C]
        B, T, _ = x.shape
        q, k, v = (p.view(B, T, self.H, -1).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        if self.rope:
            q, k = self.turn(q), self.turn(k)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(self.tril[:T, :T] == 0, -torch.inf).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class OldBlock(nn.Module):
    def __init__(self, C, H, T, hidden, gelu, rope):
        super().__init__()
        self.ln1, self.ln2 = old_norm(C, gelu), old_norm(C, gelu)
        self.sa = OldAttention(C, H, T, gelu, rope)
        self.fwd = GeluMLP(C, hidden) if gelu else SwiGLU(C, hidden)

    def forward(self, x):
        x = x + self.sa(self.ln1(x))
        return x + self.fwd(self.ln2(x))


def old_norm(C, gelu):
    return nn.LayerNorm(C) if gelu else nn.RMSNorm(C, 1e-6)


class OldGPT(nn.Module):
    "The older model, written down from its tensor names alone."

    def __init__(self, V, C, H, L, T, hidden, learned, gelu, interleaved=False):
        super().__init__()
        rope = None if learned else 'interleaved' if interleaved else 'half'
        self.learned = learned
        self.token_embedding_table = nn.Embedding(V, C)
        if learned:
            self.position_embedding_table = nn.Embedding(T, C)
        self.blocks = nn.ModuleList(OldBlock(C, H, T, hidden, gelu, rope) for _ in range(L))
        self.ln_f, self.lm_head = old_norm(C, gelu), nn.Linear(C, V, bias=False)
        for p in self.parameters():
            nn.init.normal_(p, std=0.2)

    @torch.no_grad()
    def forward(self, ids):
        x = self.token_embedding_table(ids)
        if self.learned:
            x = x + self.position_embedding_table(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.ln_f(x))


def old(folder, wrap=lambda s: s, **kw):
    torch.manual_seed(0)
    shape = dict(V=50304, C=32, H=4, L=2, T=48, hidden=64, learned=True, gelu=True) | kw
    m = OldGPT(**shape)
    folder.mkdir()
    torch.save(wrap(m.state_dict()), folder / 'model.pt')
    config = dict(n_head=4, block_size=48, dropout=0.1, use_checkpoint=True)
    (folder / 'config.json').write_text(json.dumps(config))
    return m.eval()


def wrap_as_compiled(state):
    "As an old training script saved a compiled model."
    return {'model_state_dict': {f'_orig_mod.{k}': v for k, v in state.items()}, 'step': 7}


@pytest.mark.parametrize(
    'kw',
    [
        dict(),
        dict(learned=False, gelu=False),
        dict(learned=False, gelu=False, interleaved=True),
        dict(learned=True, gelu=False),
    ],
    ids=str,
)
def test_old_directories_give_the_same_logits(tmp_path, kw):
    m = old(tmp_path / 'old', wrap_as_compiled, **kw)
    rope = 'interleaved' if kw.get('interleaved') else 'half'
    import_model(str(tmp_path / 'old'), str(tmp_path / 'new'), '19', rope, 'lines')
    model, _, meta = load_model(tmp_path / 'new')
    ids = torch.randint(0, 50276, (2, 40), generator=torch.Generator().manual_seed(0))
    assert same(logits(model.eval(), ids)[..., :50276], m(ids)[..., :50276])
    assert meta['layout'] == 'lines' and meta['model']['tie_weights'] is False


def test_fifteen_tags_move_to_their_places(tmp_path):
    m = old(tmp_path / 'old', learned=False, gelu=False)
    table = m.token_embedding_table.weight.detach()
    with pytest.raises(UserError, match='--tags 15'):
        import_model(str(tmp_path / 'old'), str(tmp_path / 'x'))
    import_model(str(tmp_path / 'old'), str(tmp_path / 'a'), tags='15')
    (tmp_path / 'old/tokenizer_state.json').write_text(json.dumps(dict(special=OLD_TAGS)))
    import_model(str(tmp_path / 'old'), str(tmp_path / 'b'))
    (a, tok, _), (b, *_) = load_model(tmp_path / 'a'), load_model(tmp_path / 'b')
    rows = a.model.embed_tokens.weight
    assert torch.equal(rows, b.model.embed_tokens.weight)
    assert len(OLD_TAGS) == 15
    assert (OLD_TAGS['<myPT_system>'], OLD_TAGS['<myPT_user_context>']) == (50257, 50261)
    assert (OLD_TAGS['<myPT_assistant>'], OLD_TAGS['</myPT_toolresult>']) == (50263, 50270)
    assert OLD_TAGS['<myPT_eot>'] == 50271
    for t, i in OLD_TAGS.items():
        assert torch.equal(rows[tok.tag_ids[t]], table[i]), t
    for t in set(TAGS) - set(OLD_TAGS):
        words = [i for w in INIT_WORDS[t] for i in tok.encode(w)]
        assert torch.allclose(rows[tok.tag_ids[t]], table[words].mean(0), atol=1e-6)

    def prompt(tags):
        return torch.tensor([[1, tags['<myPT_assistant>'], 2, tags['<myPT_eot>'], 3]])

    ours, theirs = logits(a.eval(), prompt(tok.tag_ids)), m(prompt(OLD_TAGS))
    assert same(ours[..., :50257], theirs[..., :50257])


def test_a_pickle_with_code_is_refused_unopened(tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'burgled'),)

    (tmp_path / 'old').mkdir()
    (tmp_path / 'old/config.json').write_text('{"n_head": 4}')
    torch.save({'model': Evil()}, tmp_path / 'old/model.pt')
    assert main(['import', str(tmp_path / 'old'), '--output', str(tmp_path / 'new')]) == 2
    err = capsys.readouterr().err
    assert 'refused' in err and err.count('\n') == 1
    assert not (tmp_path / 'burgled').exists() and not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    'spoil,word',
    [
        (lambda f: (f / 'model.pt').write_bytes(b'x' * 100), ''),
        (lambda f: (f / 'model.pt').write_bytes((f / 'model.pt').read_bytes()[:5000]), 'damaged'),
        (lambda f: (f / 'config.json').write_text('{}'), 'n_head'),
        (lambda f: (f / 'config.json').write_text('{"n_head": 4, "n_layer": 9}'), 'n_layer'),
        (lambda f: (f / 'config.json').unlink(), 'config.json'),
        (lambda f: torch.save([1], f / 'model.pt'), 'state_dict'),
    ],
)
def test_old_directories_that_are_spoilt(tmp_path, spoil, word, capsys):
    old(tmp_path / 'old')
    spoil(tmp_path / 'old')
    command = ['import', str(tmp_path / 'old'), '--output', str(tmp_path / 'new'), '--tags', '19']
    assert main(command) == 2
    err = capsys.readouterr().err
    assert word in err and err.count('\n') == 1 and not (tmp_path / 'new').exists()


def trained(folder, tok='gpt2:300', **kw):
    "A checkpoint with two generations behind it."
    t = get_tokenizer(tok)
    shape = dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=48, block_size=64)
    torch.manual_seed(0)
    model = GPT(ModelConfig(**shape, vocab_size=t.vocab_size, **kw))
    imported = dict(name='SmolLM', format='llama', license='apache-2.0', files={})
    before = dict(name='phase1', sha256='1' * 64, lineage=dict(base=None, imported=imported))
    source = dict(file='a|b.jsonl', rows=9, sha256_of_lines='e' * 64)
    data = dict(dir='ops', sha256='d' * 64, sources=[source])
    lineage = dict(dataset=data, base=before, steps=5, config=dict(learning_rate=1e-4))
    save_checkpoint(folder, model, t, {'step': 5}, {}, dict(lineage=lineage))
    return load_model(folder)


def gate(path, phase, sha, name):
    counts = dict(k=19, n=20, low=0.76, high=0.99, rate=0.95)
    suite = dict(name=name, passed=True, floor=0.9, before=None, warns=False, **counts)
    report = dict(phase=phase, model='m', passed=True, weights_sha256=sha, suites=[suite])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report))


@pytest.mark.parametrize('tok', ['byte', 'gpt2:300', 'hf'])
@pytest.mark.parametrize('dtype', ['f32', 'f16', 'bf16'])
def test_transformers_reads_the_gguf_as_the_same_model(tmp_path, tok, dtype):
    "The way back is transformers' own code: names, order of queries and keys, vocabulary."
    if tok == 'hf':
        base(tmp_path / 'base')
        import_model(str(tmp_path / 'base'), str(tmp_path / 'm'))
    else:
        trained(tmp_path / 'm', tok, bias=tok == 'byte')
    model, tokenizer, _ = load_model(tmp_path / 'm')
    export(str(tmp_path / 'm'), str(tmp_path / 'g/m.gguf'), dtype)
    assert os.listdir(tmp_path / 'g') == ['m.gguf']
    if model.cfg.bias:
        _check_biases(tmp_path / 'g/m.gguf', model)
        return
    back = AutoModelForCausalLM.from_pretrained(
        tmp_path / 'g', gguf_file='m.gguf', dtype=torch.float32
    )
    ids = torch.randint(0, tokenizer.n_tokens, (2, 60), generator=torch.Generator().manual_seed(0))
    a, b = logits(model.eval(), ids), logits(back.eval(), ids)
    assert (a - b).abs().max() <= dict(f32=1e-6, f16=2e-3, bf16=2e-2)[dtype] * b.abs().max()
    hf = AutoTokenizer.from_pretrained(tmp_path / 'g', gguf_file='m.gguf')
    text = '<myPT_user>Wir lesen 日本 zwei</myPT_user>'
    assert hf(text, add_special_tokens=False).input_ids == tokenizer.encode_with_tags(text)


def _check_biases(path, model):
    from gguf import GGUFReader

    there = {t.name: t.data for t in GGUFReader(path).tensors}
    assert len(there) == len(model.state_dict()) and 'blk.0.ffn_gate.bias' in there
    assert there['blk.1.attn_k.bias'].shape == (24,)


def test_the_gguf_says_what_llama_cpp_must_know(tmp_path):
    from gguf import GGUFReader, TokenType

    _, tok, _ = trained(tmp_path / 'm', rope_scale=4.0, rope_theta=5e5)
    export(str(tmp_path / 'm'), str(tmp_path / 'm.gguf'))
    reader = GGUFReader(tmp_path / 'm.gguf')
    header = {k: field.contents() for k, field in reader.fields.items()}
    for k, value in {
        'llama.rope.scaling.type': 'linear',
        'llama.rope.scaling.factor': 4.0,
        'llama.rope.freq_base': 5e5,
        'llama.attention.head_count': 4,
        'llama.attention.head_count_kv': 2,
        'llama.context_length': 64,
        'llama.vocab_size': tok.vocab_size,
        'tokenizer.ggml.eos_token_id': tok.tag_ids['<myPT_eot>'],
        'tokenizer.ggml.eot_token_id': tok.tag_ids['</myPT_assistant>'],
        'tokenizer.ggml.add_bos_token': False,
        'tokenizer.chat_template': plain_template('compact'),
    }.items():
        assert header[k] == value, k
    tokens, types = header['tokenizer.ggml.tokens'], header['tokenizer.ggml.token_type']
    assert len(tokens) == len(types) == tok.vocab_size
    for t, i in tok.tag_ids.items():
        assert tokens[i] == t and types[i] == TokenType.CONTROL
    assert types[65] == TokenType.NORMAL
    assert all(kind == TokenType.UNUSED for kind in types[tok.n_tokens :])
    assert 'output.weight' not in {t.name for t in reader.tensors}


@pytest.mark.parametrize('layout', ['compact', 'lines'])
def test_the_plain_template_lays_out_the_same(tmp_path, layout):
    hf = byte_level()
    for ep in EPISODES:
        msgs = [dict(role='system', content=ep['system']), *ep['messages']]
        template = plain_template(layout)
        assert 'generation' not in template.replace('add_generation_prompt', '')
        text = hf.apply_chat_template(msgs, chat_template=template, tokenize=False)
        assert text == ''.join(span.text for span in serialize(ep, layout))


def test_what_cannot_be_exported_is_told(tmp_path, capsys):
    trained(tmp_path / 'old', pos_encoding='learned')
    base(tmp_path / 'base', 'sentencepiece')
    import_model(str(tmp_path / 'base'), str(tmp_path / 'sp'))
    trained(tmp_path / 'ok')
    capsys.readouterr()
    for args, word in (
        ([str(tmp_path / 'old'), '--gguf', 'x'], 'shape of a Llama'),
        ([str(tmp_path / 'sp'), '--gguf', str(tmp_path / 'x')], 'convert_hf_to_gguf'),
        ([str(tmp_path / 'ok'), '--gguf', 'x', '--dtype', 'q4'], 'f16'),
        ([str(tmp_path / 'ok'), '--gguf', '/dev/null/x'], 'written'),
    ):
        assert main(['export', *args]) == 2
        err = capsys.readouterr().err
        assert word in err and err.count('\n') == 1
    assert not list(tmp_path.glob('*x*')) and not list(tmp_path.glob('.*'))
    assert main(['export', str(tmp_path / 'ok')]) == 0
    assert 'already a Hugging Face directory' in capsys.readouterr().out


def test_the_card_holds_the_record_and_nothing_else(tmp_path):
    from huggingface_hub import ModelCard

    _, _, meta = trained(tmp_path / 'run/models/m')
    sha = meta['weights_sha256']
    gate(tmp_path / 'run/phase2/gate.json', '2', sha, 'COPY')
    gate(tmp_path / 'run/phase1/gate.json', '1', '1' * 64, 'echo')
    gate(tmp_path / 'run/phase9/gate.json', '9', 'f' * 64, 'of another model')
    (tmp_path / 'run/gate_broken.json').write_text('{')
    (tmp_path / 'run/gate_list.json').write_text('[]')
    assert [r['phase'] for r in find_reports(tmp_path / 'run/models/m', {sha})] == ['2']
    card = model_card(str(tmp_path / 'run/models/m'), 'me/m')
    data = ModelCard(card).data
    assert (data.license, data.library_name, data.tags) == ('apache-2.0', 'transformers', ['mypt'])
    for word in (
        '| 2 | COPY | 19/20 | 76.0% – 99.0% | 90% | passed |',
        '| 1 | echo |',
        '`SmolLM`',
        '`a|b.jsonl`: 9 rows',
        'd' * 16,
        sha[:16],
        '"learning_rate": 0.0001',
        'Intended use and limits',
    ):
        assert word in card, word
    assert 'another model' not in card and str(tmp_path) not in card


class Hub:
    def __init__(self, error=None):
        self.calls, self.error = [], error

    def create_repo(self, repo, **kw):
        if self.error:
            raise self.error
        self.calls.append(('create', repo, kw))

    def upload_folder(self, **kw):
        self.calls.append(('upload', kw))


def test_push_uploads_what_a_reader_needs(tmp_path):
    from huggingface_hub.utils import filter_repo_objects

    trained(tmp_path / 'm')
    (tmp_path / 'm/log.jsonl').write_text('{}')
    hub = Hub()
    push(str(tmp_path / 'm'), 'me/m', private=True, api=hub)
    (_, repo, kw), (_, up) = hub.calls
    assert repo == up['repo_id'] == 'me/m' and kw == dict(private=True, exist_ok=True)
    names = [p.name for p in tmp_path.glob('m/*')] + ['best/model.safetensors']
    assert set(filter_repo_objects(names, ignore_patterns=up['ignore_patterns'])) == {
        'README.md',
        'config.json',
        'generation_config.json',
        'model.safetensors',
        'mypt.json',
        'tokenizer.json',
        'tokenizer_config.json',
        'tokenizer_state.json',
    }


def test_push_fails_in_one_line(tmp_path, capsys, monkeypatch):
    trained(tmp_path / 'm')
    m, weights = str(tmp_path / 'm'), tmp_path / 'm/model.safetensors'
    monkeypatch.delenv('HF_TOKEN', raising=False)
    assert main(['push', m, '--repo', 'me/m']) == 2 and 'HF_TOKEN' in capsys.readouterr().err
    assert main(['push', m, '--repo', 'nowhere']) == 2 and 'you/name' in capsys.readouterr().err
    with pytest.raises(UserError, match='403 Forbidden'):
        push(m, 'me/m', api=Hub(RuntimeError('403 Forbidden\nlong story')))
    (tmp_path / 'm/README.md').unlink()
    assert (
        main(['push', m, '--repo', 'me/m', '--dry_run']) == 0
        and (tmp_path / 'm/README.md').exists()
    )
    weights.write_bytes(weights.read_bytes()[:-1] + b'!')
    hub = Hub()
    with pytest.raises(UserError, match='sha256'):
        push(m, 'me/m', api=hub)
    assert not hub.calls
