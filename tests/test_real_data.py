"""Real input: XQuAD passages in English and German the whole way, a few minutes; skips where the
data is not there.
"""

import json
import pytest
from mypt.model.checkpoint import load_model
from mypt.data.episodes import read_episodes
from mypt.inference.generate import generate, prompt_ids
from mypt.data.mix import mix
from mypt.data.prepare import prepare
from mypt.sources.convert import convert
from mypt.train.train import train
from mypt.data.validate import validate_dataset


@pytest.fixture(scope='module')
def rag(shared_data, tmp_path_factory):
    "2,380 questions on 240 passages in two languages, as RAG episodes in rows of 1,024."
    d = tmp_path_factory.mktemp('xquad')
    for lang in ('en', 'de'):
        convert(
            str(shared_data / 'xquad' / f'xquad.{lang}.json'),
            str(d / f'{lang}.jsonl'),
            languages=[lang],
        )
    mix([f'{d}/en.jsonl:1', f'{d}/de.jsonl:1'], str(d / 'both.jsonl'), shuffle=True)
    return d, prepare(
        str(d / 'both.jsonl'),
        str(d / 'ds'),
        tokenization='gpt2:2048',
        val_split=0.05,
        enable_packing=True,
        pack_block_size=1024,
    )


def test_every_question_arrives(rag):
    d, ds = rag
    m = ds.meta
    rows = sum(1 for _ in open(d / 'both.jsonl'))
    assert rows >= 2370  # 1,190 questions twice, less any whose answer is not in its passage
    assert (
        m['rows_read']
        == rows
        == m['num_train_episodes'] + m['num_val_episodes'] + m['rows_rejected']
    )
    assert m['packing']['fill'] > 0.9 and 0.002 < m['train_mask_ratio'] < 0.2
    assert validate_dataset(ds.dir) == []


def test_answers_are_whole_and_stand_in_their_context(rag):
    d, _ds = rag
    eps = read_episodes(d / 'both.jsonl')
    assert {e['language'] for e in eps} == {'en', 'de'}
    for e in eps:
        assert e['messages'][1]['content'] in e['messages'][0]['context']


def test_a_model_learns_from_it(rag, tmp_path, monkeypatch):
    """A minute of training: validation loss falls well below what it began with, and the model can
    be sampled.
    """
    d, ds = rag
    monkeypatch.chdir(tmp_path)
    train(
        'rag',
        str(ds.dir),
        'tiny',
        quiet=True,
        sets=[
            'n_layer=3',
            'n_embd=96',
            'n_head=4',
            'block_size=1024',
            'batch_size=4',
            'max_iters=60',
            'vocab_size=2112',
            'eval_interval=30',
            'eval_iters=4',
            'optimizer="muon"',
            'warmup_iters=5',
        ],
    )
    first, *_, last = [
        json.loads(line)['val_loss']
        for line in open(tmp_path / 'checkpoints/rag/log.jsonl')
        if 'val_loss' in line
    ]
    assert last < first - 2
    model, tok, meta = load_model('rag')
    ep = read_episodes(d / 'both.jsonl')[0]
    ids = generate(
        model,
        tok,
        [prompt_ids({**ep, 'messages': ep['messages'][:1]}, tok, meta['layout'])],
        max_new_tokens=24,
    )[0]
    assert 0 < len(ids) <= 24 and tok.decode(ids)
