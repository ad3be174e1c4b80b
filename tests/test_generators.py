"Promises of the phase-1 generators and of the suites that judge it."

import json
from collections import Counter
from importlib.resources import files
from itertools import islice

import pytest

from mypt.curriculum.format_lock import format_lock_suites, make_echo, make_format_lock
from mypt.curriculum.synthetic import held_out
from mypt.data.episodes import check_episode
from mypt.data.masks import encode
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.eval.suite import leaks, load_suite

MAKERS = dict(format_lock=make_format_lock, echo=make_echo)
SUITES = files('mypt') / 'assets' / 'suites'


def pair(e: dict) -> tuple[str, str]:
    return e['messages'][0]['content'], e['messages'][1]['content']


@pytest.mark.parametrize('kind', MAKERS)
def test_ten_thousand_are_different_legal_and_repeatable(kind):
    eps = list(MAKERS[kind](10_000))
    assert len(set(map(pair, eps))) == 10_000
    assert all(check_episode(e) == e for e in eps)
    assert eps[:300] == list(MAKERS[kind](300))
    assert eps[:50] != list(MAKERS[kind](50, seed=43))


@pytest.mark.parametrize('kind', MAKERS)
@pytest.mark.parametrize('language,share', [('en', 0.0), ('de', 1.0), ('mixed', 0.5)])
def test_languages_are_as_asked(kind, language, share):
    eps = list(MAKERS[kind](500, language))
    assert abs(sum(e['language'] == 'de' for e in eps) / 500 - share) < 0.02


def test_no_question_of_any_suite_is_ever_generated():
    "Thirty thousand of each kind, other seeds too, against every shipped case."
    names = [p.name.removesuffix('.jsonl') for p in SUITES.iterdir()]
    assert len(names) >= 5
    assert all(len(load_suite(n)) >= 100 for n in names)
    made = [
        *make_format_lock(14_000),
        *make_echo(30_000),
        *make_format_lock(8000, seed=7),
        *make_echo(10_000, seed=8),
    ]
    assert leaks(made, names) == []
    assert leaks([load_suite('echo')[3].episode], names)  # the check can find something


def test_shipped_suites_are_what_the_generator_makes():
    for name, cases in format_lock_suites().items():
        text = ''.join(json.dumps(c, ensure_ascii=False) + '\n' for c in cases)
        assert (SUITES / f'{name}.jsonl').read_text(encoding='utf-8') == text


def test_payloads_of_the_echo_suite_are_held_out():
    for c in format_lock_suites()['echo']:
        words = c['expected'].split() if c['tags'][-1] == 'phrase' else [c['expected']]
        assert all(map(held_out, words))
    trained = {w for e in make_echo(5000) for w in e['_meta']['payload'].lower().split()}
    assert not {c['expected'].lower() for c in format_lock_suites()['echo']} & trained


def test_answers_are_short_enough_to_close_within_twenty_bytes():
    tok = get_tokenizer('byte')
    for e in make_format_lock(3000):
        assert encode(e, tok).mask.sum() <= 20
    for e in make_format_lock(100, held=True):
        assert encode(e, tok).mask.sum() <= 20


def test_anti_echo_never_says_its_payload_and_contrast_repeats_one():
    eps = list(make_echo(4000))
    anti = [e for e in eps if e['_meta']['category'] == 'anti_echo']
    assert 0.08 < len(anti) / len(eps) < 0.17
    assert all(e['_meta']['payload'] != e['messages'][1]['content'] for e in anti)
    echoed = {e['_meta']['payload'] for e in eps if e['_meta']['category'] != 'anti_echo'}
    assert sum(e['_meta']['payload'] in echoed for e in anti) > len(anti) / 3


@pytest.mark.parametrize(
    'kw,only',
    [
        (dict(math='only'), {'maths'}),
        (dict(mode='minimal', math='exclude'), {'say', 'yesno', 'status'}),
    ],
)
def test_modes(kw, only):
    assert {e['_meta']['category'] for e in make_format_lock(200, **kw)} <= only


@pytest.mark.parametrize('kw', [dict(gibberish='exclude'), dict(gibberish='only')])
def test_gibberish(kw):
    kinds = Counter(e['_meta']['category'] for e in make_echo(400, anti_echo=False, **kw))
    only = kw['gibberish'] == 'only'
    assert ('gibberish' in kinds) == only
    assert (len(kinds) == 1) == only


def test_asking_for_too_many_says_how_many_there_are():
    with pytest.raises(UserError, match=r'only .* different'):
        list(make_format_lock(10**6, 'en', mode='minimal'))


@pytest.mark.parametrize(
    'call',
    [
        lambda: make_echo(1, 'fr'),
        lambda: make_echo(1, gibberish='x'),
        lambda: make_format_lock(1, mode='x'),
        lambda: make_format_lock(1, math='x'),
    ],
)
def test_wrong_options_are_named(call):
    with pytest.raises(UserError):
        list(islice(call(), 1))
