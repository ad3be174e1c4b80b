"""Promises of pre-training text, replay, skills and context extension."""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from mypt.agent.documents import Document
from mypt.curriculum.context_extension import (
    CONTEXT,
    blend,
    context_extension,
    long_shards,
    make_long_text,
    make_qa_text,
    qa_from_sets,
    qa_text,
    rotate,
)
from mypt.curriculum.facts import facts
from mypt.curriculum.pretrain import PIECES, PRETRAIN, SENTENCES, make_text, pretrain_suites, side
from mypt.curriculum.replay import make_replay
from mypt.curriculum.synthetic import Shortage, held_out
from mypt.data.episodes import check_episode, write_episodes
from mypt.data.prepare import prepare
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.eval.multiple_choice import load_skills
from mypt.sources.qa import Question

DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'


def real(name):
    return pytest.mark.skipif(not (DATA / name).is_dir(), reason=f'no real data folder {name}')


def texts(eps):
    return [e['text'] for e in eps]


@pytest.mark.parametrize('make', [make_text, make_qa_text, make_long_text])
@pytest.mark.parametrize('language,share', [('en', 0.0), ('de', 1.0), ('mixed', 0.5)])
def test_texts_are_different_legal_repeatable_and_in_the_language(make, language, share):
    eps = list(make(120, language, size=600))
    assert len(set(texts(eps))) == 120 and all(check_episode(e) == e for e in eps)
    assert sum(e['language'] == 'de' for e in eps) / 120 == share
    assert (
        texts(eps[:40])
        == texts(make(40, language, size=600))
        != texts(make(40, language, seed=7, size=600))
    )


def test_no_sentence_that_is_held_out_is_ever_read():
    low = '\n'.join(
        texts([*make_text(3000), *make_text(500, seed=8, size=200), *make_long_text(20)])
    ).lower()
    held = {
        s.whole.lower()
        for what in SENTENCES
        for lang in ('en', 'de')
        for ss in side(what, lang, True).values()
        for s in ss
    }
    assert len(held) > 500 and not [h for h in held if h in low]
    assert not [
        c
        for c in pretrain_suites()['skills']
        if (c['text'] + c['endings'][c['answer']]).lower() in low
    ]


def named_in(eps) -> set[str]:
    "Names that the documents of pieces state something about."
    pages = [page for e in eps for page in re.split('(?m)^(?=# )', e['text'])[1:]]
    read = [facts(Document('a.md', page.split('\n')[0][2:], page)) for page in pages]
    return {f.subject for found in read for f in found if f.kind == 'value'}


def test_names_are_on_the_trained_side():
    names = named_in(make_text(300, kinds=('documents',)))
    assert len(names) > 200 and not any(map(held_out, names))
    held = named_in(make_text(50, kinds=('documents',), size=10, held=True))
    assert len(held) > 30 and all(map(held_out, held))


def test_every_kind_of_piece_alone():
    for kind in PIECES:
        assert len(set(texts(make_text(40, kinds=(kind,), size=300)))) == 40
    with pytest.raises(UserError, match='use facts'):
        next(make_text(1, kinds=('poems',)))
    with pytest.raises(UserError, match='docs_dir'):
        next(make_text(1, kinds=('folder',)))


def test_shipped_skills_are_what_the_generator_makes():
    text = ''.join(json.dumps(c, ensure_ascii=False) + '\n' for c in pretrain_suites()['skills'])
    assert (files('mypt') / 'assets' / 'skills.jsonl').read_text(encoding='utf-8') == text
    cases = load_skills()
    assert len(cases) >= 300 and all(len(set(c.endings)) == 4 for c in cases)
    assert max(Counter(c.answer for c in cases).values()) < 0.35 * len(
        cases
    )  # no place is favoured


def stream(tmp_path, tokenization='byte', name='text', n=60):
    write_episodes(tmp_path / f'{name}.jsonl', make_text(n, size=400))
    return prepare(
        tmp_path / f'{name}.jsonl',
        tmp_path / name,
        format='shards',
        tokenization=tokenization,
        pack_block_size=128,
        val_split=0.1,
    )


@pytest.mark.parametrize('tokenization', ['byte', 'gpt2'])
def test_replay_is_text_of_the_shards_and_no_piece_comes_twice(tmp_path, tokenization):
    ds = stream(tmp_path, tokenization)
    said = '\n'.join(texts(make_text(60, size=400)))
    eps = list(make_replay(50, tmp_path / 'text', max_tokens=32))
    assert len(set(texts(eps))) == 50 and all(check_episode(e) == e for e in eps)
    assert not [t for t in texts(eps) if t not in said or len(ds.tok.encode(t)) > 34]
    assert texts(eps) == texts(make_replay(50, tmp_path / 'text', max_tokens=32))
    assert {e for e in texts(make_replay(10, tmp_path / 'text', 32, language='de'))} <= set(
        texts(make_replay(300, tmp_path / 'text', 32))
    )


def test_the_older_layout_gives_whole_documents(tmp_path):
    tok, docs = get_tokenizer('gpt2'), texts(make_text(20, size=300))
    np.concatenate([[*tok.encode(d), tok.endoftext] for d in docs]).astype('<u2').tofile(
        tmp_path / 'shard_00000.bin'
    )
    np.ones(10, np.uint8).tofile(tmp_path / 'shard_00000_mask.bin')
    assert set(texts(make_replay(20, tmp_path, max_tokens=10_000))) == set(docs)


def test_replay_refuses_turns_and_empty_folders(tmp_path):
    chat = {
        'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'assistant', 'content': 'hello'}]
    }
    write_episodes(tmp_path / 'chat.jsonl', [chat] * 5)
    prepare(tmp_path / 'chat.jsonl', tmp_path / 'chat', tokenization='byte', val_split=0)
    with pytest.raises(UserError, match='turns'):
        list(make_replay(2, tmp_path / 'chat'))
    with pytest.raises(UserError, match='no text here'):
        list(make_replay(2, tmp_path))
    stream(tmp_path)
    with pytest.warns(Shortage, match='ask for fewer'):
        list(make_replay(10**6, tmp_path / 'text'))


def test_needed_passages_go_round_through_four_places():
    pages = tuple((f't{i}', f'text {i}') for i in range(7))
    assert [rotate(pages, (2, 5), slot).index(pages[2]) for slot in range(4)] == [0, 2, 3, 5]
    eps = list(make_qa_text(400, size=500))
    found = Counter(e['_meta']['gold'] for e in eps)
    assert 0.08 < found['none'] / 400 < 0.24 and min(found.values()) > 40
    for e in eps:
        context, _, answer = e['text'].rpartition('\n')
        assert (answer.split(': ', 1)[1] in context) == (e['_meta']['gold'] != 'none')
        assert '<myPT' not in e['text']


def test_a_question_that_is_too_long_loses_what_it_does_not_need():
    tok, pages = (get_tokenizer('byte'), tuple((f't{i}', f'passage {i} ' * 9) for i in range(20)))
    q = Question('Which?', pages, ('That.',), (3, 17), 'en')
    text = qa_text(q, 2, tok, 600)
    assert (
        len(text) <= 600
        and 'passage 3 ' in text
        and 'passage 17 ' in text
        and text.endswith('Answer: That.')
    )
    assert qa_text(q, 2, tok, 150) is None


def squad(i):
    return dict(
        id=str(i),
        title=f'T{i}',
        context=f'Place {i} is {i * 7} km away from the sea.',
        question=f'How far is place {i}?',
        answers=dict(text=[f'{i * 7} km'] if i % 3 else [], answer_start=[0] if i % 3 else []),
    )


def test_sets_are_read_in_turn_and_unanswerable_questions_stay(tmp_path):
    for name in 'ab':
        (tmp_path / f'{name}.jsonl').write_text(
            ''.join(json.dumps(squad(i)) + '\n' for i in range(12))
        )
    said = []
    both = [str(tmp_path / 'a.jsonl'), str(tmp_path / 'b.jsonl')]
    eps = list(qa_from_sets(both, get_tokenizer('gpt2'), 200, max_examples=9, say=said.append))
    assert (
        len(eps) == 18
        and len(said) == 2
        and [Path(e['source']).stem for e in eps[:4]] == ['a', 'b', 'a', 'b']
    )
    assert sum('does not say' in e['text'] for e in eps) == 6


def test_shares_hold_at_every_point():
    have = Counter()
    qa, general = (({'text': 'q' * 30} for _ in count()), ({'text': 'g' * 70} for _ in count()))
    eps = list(blend(qa, general, 0.4, 7000, lambda e: len(e['text']), have))
    for n in range(40, len(eps)):
        q = sum(len(e['text']) for e in eps[:n] if e['mix_source'] == 'qa')
        assert abs(q / sum(len(e['text']) for e in eps[:n]) - 0.4) < 0.06
    assert have['general'] == 7000


def test_the_command_from_shards_and_a_file(tmp_path, capsys):
    stream(tmp_path, 'gpt2', n=300)
    (tmp_path / 'qa.jsonl').write_text(''.join(json.dumps(squad(i)) + '\n' for i in range(400)))
    ds = context_extension(
        str(tmp_path / 'ctx'),
        str(tmp_path / 'text'),
        12_000,
        [str(tmp_path / 'qa.jsonl')],
        block_size=512,
        val_split=0.05,
    )
    m = ds.meta
    assert m['train_mask_ratio'] == 1 and m['packing']['fill'] > 0.94 and not m['rows_rejected']
    assert int(ds.train.row_lengths.max()) <= 512
    assert '40.' in capsys.readouterr().out or abs(m['num_train_tokens'] - 20_000) < 2000
    long = [e['text'] for e in long_shards(tmp_path / 'text', ds.tok, 512)]
    sizes = [len(ds.tok.encode(t)) for t in long]
    assert max(sizes) <= 512 and np.median(sizes) > 400
    for bad in (dict(qa_share=1.2), dict(languages=['fr'])):
        with pytest.raises(UserError):
            context_extension(str(tmp_path / 'no'), datasets=['invented'], **bad)


@pytest.mark.parametrize(
    'tokenization, tokens', [('byte', 20_000), ('gpt2:1024', 80_000), ('gpt2', 20_000)]
)
def test_invented_text_fills_rows_of_every_tokenizer(tmp_path, tokenization, tokens):
    ds = context_extension(
        str(tmp_path / 'ctx'),
        None,
        tokens,
        ['invented'],
        tokenization=tokenization,
        block_size=1024,
    )
    assert ds.meta['packing']['fill'] > 0.84 and not ds.meta['rows_rejected']


def test_recipes():
    assert (
        PRETRAIN.prepare['format'] == 'shards'
        and CONTEXT.pack_block_size == 4096
        and CONTEXT.base == 'pretrain'
    )
    assert {s.kind: s.share for s in CONTEXT.sources} == dict(qa_text=0.4, long_text=0.6)
    tok = get_tokenizer('gpt2')
    for s in CONTEXT.sources:
        assert max(len(tok.encode(t)) for t in texts(s.make(60, language='mixed', seed=3))) <= 4096


@real('owasp_cheatsheets')
def test_real_documents_as_text_and_shards(tmp_path):
    eps = list(make_text(60, 'en', docs_dir=DATA / 'owasp_cheatsheets', kinds=('folder',)))
    assert len(set(texts(eps))) == 60
    write_episodes(tmp_path / 'd.jsonl', eps)
    ds = prepare(
        tmp_path / 'd.jsonl',
        tmp_path / 'd',
        format='shards',
        tokenization='gpt2',
        pack_block_size=256,
    )
    assert ds.meta['train_mask_ratio'] == 1
    assert len(list(make_replay(30, tmp_path / 'd'))) == 30
    with pytest.raises(UserError, match="'de'"):
        list(make_text(3, 'de', docs_dir=DATA / 'owasp_cheatsheets', kinds=('folder',)))


@real('law_de')
def test_real_german_law_mixes_with_english_facts():
    eps = list(make_text(40, 'mixed', docs_dir=DATA / 'law_de'))
    assert sum('§' in e['text'] for e in eps if e['language'] == 'de') > 5
    assert not any('§' in e['text'] for e in eps if e['language'] == 'en')
