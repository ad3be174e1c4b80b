"What training wrote, read by transformers: the same logits, greedy tokens and prompt."

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from mypt.model.checkpoint import load_model
from mypt.data.episodes import write_episodes
from mypt.inference.generate import generate, prompt_ids
from mypt.curriculum.format_lock import make_echo
from mypt.data.prepare import prepare
from mypt.train.train import train


@pytest.fixture(scope='module', params=['byte', 'gpt2:512'])
def trained(request, tmp_path_factory):
    "A model that the training command wrote, with interpolated positions and grouped heads."
    d = tmp_path_factory.mktemp('llama')
    write_episodes(d / 'e.jsonl', make_echo(800))
    ds = prepare(
        str(d / 'e.jsonl'),
        str(d / 'ds'),
        tokenization=request.param,
        enable_packing=True,
        pack_block_size=128,
    )
    train(
        str(d / 'm'),
        str(d / 'ds'),
        'tiny',
        quiet=True,
        sets=[
            'n_layer=2',
            'n_embd=64',
            'n_head=4',
            'n_kv_head=2',
            'block_size=256',
            'batch_size=8',
            'max_iters=40',
            'rope_scale=4.0',
            'optimizer="muon"',
            f'vocab_size={ds.tok.vocab_size}',
        ],
    )
    return d / 'm'


def test_greedy_generation_is_token_for_token_the_same(trained):
    model, tok, meta = load_model(trained, verify=True)
    theirs, their_tok = (
        AutoModelForCausalLM.from_pretrained(trained),
        AutoTokenizer.from_pretrained(trained),
    )
    for q in ('Say: bridge', 'Wiederhole: Tür', 'Repeat: amber 42', 'Copy this: XK-77'):
        history = {'system': 'You are MyPT.', 'messages': [{'role': 'user', 'content': q}]}
        ids = prompt_ids(history, tok, meta['layout'])
        messages = [{'role': 'system', 'content': 'You are MyPT.'}, *history['messages']]
        assert (
            their_tok.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
            == ids
        )
        ours = generate(model, tok, [ids], 40)[0]
        out = theirs.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids)),
            max_new_tokens=40,
            do_sample=False,
        )
        assert out[0, len(ids) :].tolist() == ours


def test_logits_are_equal(trained):
    model, tok, _ = load_model(trained)
    ids = torch.randint(0, tok.n_base, (3, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        a, b = (model.eval()(ids), AutoModelForCausalLM.from_pretrained(trained)(ids).logits)
    assert (a - b).abs().max() < 1e-5 * max(1, b.abs().max().item())
