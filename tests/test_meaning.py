"""`mypt check-meaning` finds every fault that is put into good episodes, and nothing in good ones.

Episodes come from the generators; a fault is made by changing one thing in one of them.
"""

import copy
import inspect
import json
import random
import re
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
import pytest
from mypt.agent.documents import Document
from mypt.curriculum.facts import Fact
from mypt.curriculum.grammar import wrong_forms
from mypt.curriculum.meaning import _said_of, abstains, check_meaning, turns_of
from mypt.curriculum.meaning_calls import no_call_twice
from mypt.curriculum.meaning_form import (
    asked_kinds,
    broken_piece,
    check_exact,
    cut_inside,
    forms_of_address,
    markup_in,
    orders_repetition,
)
from mypt.curriculum.meaning_values import one_value
from mypt.curriculum.questions import follow_up
from mypt.curriculum.rag_chat import _followed_by
from mypt.curriculum.reading import (
    ShownPassage,
    answering_sentence,
    counting_sentence,
    holds,
    sentences_about,
    sentences_of,
    unsupported,
)
from mypt.curriculum.recipe import _asked_shares
from mypt.curriculum.recompute import check_comparison, count_sentences
from mypt.curriculum.run import GENERATORS
from mypt.curriculum.scene import ShownPage, may_answer
from mypt.curriculum.synthetic import Shortage
from mypt.data.episodes import write_episodes
from mypt.eval.instructions import n_sentences
from mypt.cli import main

KINDS = 'format_lock echo operators rag_chat multiturn toolcall agentic minimal_qa tasks'.split()
KINDS += 'structured gold adherence foreign_tools gold_augmented'.split()
HERE = Path(__file__).parent
REAL = HERE.parents[1] / 'shared/data'
FOLDERS = dict(en='owasp_cheatsheets', de='law_de')
ABOUT_DOCUMENTS = [k for k in KINDS if 'docs_dir' in inspect.signature(GENERATORS[k]).parameters]
PRODUCTS = str(HERE / 'products')  # twelve sheets of a small company, six in each language


def quietly(kind: str, n: int, **options) -> list[dict]:
    "Episodes, without the warning that there are fewer of a kind."
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', Shortage)
        return list(GENERATORS[kind](n, **options))


@lru_cache(None)
def made(kind: str, lang: str, n: int = 240, docs_dir: str | None = None) -> list[dict]:
    options = dict(docs_dir=docs_dir) if docs_dir else {}
    return quietly(kind, n, language=lang, seed=5, **options)


@pytest.fixture(scope='module')
def real(tmp_path_factory) -> dict[str, str]:
    "A dozen real documents in English, one law in German."
    if not REAL.is_dir():
        pytest.skip('no ../shared/data beside the repository')
    folders = {}
    for lang, name in FOLDERS.items():
        folder = tmp_path_factory.mktemp(lang)
        paths = sorted((REAL / name).glob('*.md'))[: 12 if lang == 'en' else 1]
        for path in paths:
            shutil.copy(path, folder)
        folders[lang] = str(folder)
    return folders


def found(ep: dict) -> set[str]:
    "The rules that find something in an episode."
    return set(check_meaning([ep]).by_rule())


def found_in(eps: list[dict], docs_dir: str | None = None) -> str:
    "The first findings."
    return '\n'.join(map(str, check_meaning(eps, docs_dir).findings[:5]))


# Good episodes


@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_found_in_what_the_generators_make(kind, lang):
    eps = made(kind, lang)
    assert len(eps) == 240
    assert not found_in(eps)


@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind', ABOUT_DOCUMENTS)
def test_nothing_is_found_about_product_sheets(kind, lang):
    eps = made(kind, lang, 80, PRODUCTS)
    assert len(eps) == 80
    assert not found_in(eps, PRODUCTS)


@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind', ABOUT_DOCUMENTS)
def test_nothing_is_found_about_real_documents(kind, lang, real):
    assert not found_in(made(kind, lang, 60, real[lang]), real[lang])


@pytest.mark.slow
@pytest.mark.parametrize('where', ['invented', 'products', 'real'])
@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind', KINDS)
def test_nothing_is_found_in_ten_thousand(kind, lang, where):
    docs_dir = dict(products=PRODUCTS, real=str(REAL / FOLDERS[lang])).get(where)
    if docs_dir and (kind not in ABOUT_DOCUMENTS or not Path(docs_dir).is_dir()):
        pytest.skip('no such documents for it')
    options = dict(docs_dir=docs_dir) if docs_dir else {}
    eps = quietly(kind, 10_000, language=lang, seed=7, **options)
    assert not found_in(eps, docs_dir)


# Shares

SHARED = 'rag_chat toolcall agentic minimal_qa tasks structured'.split()


def shares_of(
    kind: str, docs_dir: str | None, n: int = 400, language: str = 'mixed'
) -> tuple[dict, str]:
    "Kind → (its share, the one that was asked for), and what is said to be lacking."
    options = dict(docs_dir=docs_dir) if docs_dir else {}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        eps = list(GENERATORS[kind](n, language=language, seed=3, **options))
    counts = Counter(e['_meta']['category'] for e in eps)
    asked = _asked_shares(GENERATORS[kind], {})
    assert asked
    shares = {k: (counts[k] / len(eps), share) for k, share in asked.items()}
    return shares, '\n'.join(str(w.message) for w in told)


@pytest.mark.parametrize('kind', SHARED)
def test_shares_hold_for_invented_documents(kind):
    shares, said = shares_of(kind, None)
    assert not said
    assert all(abs(a - b) <= 0.02 for a, b in shares.values()), shares


@pytest.mark.parametrize('kind', SHARED)
def test_shares_hold_for_product_sheets_or_it_is_said_what_is_lacking(kind):
    shares, said = shares_of(kind, PRODUCTS)
    off = [k for k, (a, b) in shares.items() if abs(a - b) > 0.02]
    assert not off or said, (off, shares)
    assert all(f'{k}: ' in said for k in off if shares[k][0] < shares[k][1]), said
    if kind in ('rag_chat', 'toolcall', 'agentic', 'minimal_qa'):
        assert not off, shares


@pytest.mark.slow
@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind', SHARED)
def test_shares_hold_for_real_documents_or_it_is_said_what_is_lacking(kind, lang):
    if not REAL.is_dir():
        pytest.skip('no ../shared/data beside the repository')
    shares, said = shares_of(kind, str(REAL / FOLDERS[lang]), 2000, lang)
    off = [k for k, (a, b) in shares.items() if abs(a - b) > 0.02]
    assert not off or said, (off, shares)
    assert all(f'{k}: ' in said for k in off if shares[k][0] < shares[k][1]), said


def test_a_conversation_says_which_kinds_a_folder_cannot_give(tmp_path):
    (tmp_path / 'lomak.md').write_text('# Lomak\n\nThe price of Lomak is 5 euros.\n')
    (tmp_path / 'zarn.md').write_text('# Zarn\n\nThe colour of Zarn is red.\n')
    with pytest.warns(Shortage, match='clarification: '):
        list(GENERATORS['multiturn'](4000, language='en', docs_dir=str(tmp_path)))


@pytest.mark.parametrize('kind', ['minimal_qa', 'tasks', 'structured'])
def test_system_prompts_come_in_the_language(kind):
    systems = dict(en=('You are MyPT.',), de=('Du bist MyPT.', 'Du heißt MyPT.'))
    for lang, prompts in systems.items():
        eps = GENERATORS[kind](20, language=lang, systems=systems)
        assert {e['system'] for e in eps} == set(prompts)


# German


@pytest.mark.parametrize('kind', KINDS)
def test_no_wrong_form_in_german_episodes(kind):
    assert check_meaning(made(kind, 'de')).judged['case and number']
    assert 'case and number' not in check_meaning(made(kind, 'de')).by_rule()


def strings(x) -> Iterator[str]:
    "All texts in nested lists and objects."
    if isinstance(x, str):
        yield x
    elif isinstance(x, (list, dict)):
        for part in x.values() if isinstance(x, dict) else x:
            yield from strings(part)


def test_no_wrong_form_in_any_suite(root):
    n = 0
    for path in sorted((root / 'mypt/assets/suites').glob('*.jsonl')):
        for case in map(json.loads, path.read_text(encoding='utf-8').splitlines()):
            if 'de' in case['tags']:
                n += 1
                texts = strings([case['episode'], case.get('then'), case['expected']])
                assert not [w for text in texts for w in wrong_forms(text, 'de')], case['id']
    assert n > 1900


def test_a_part_of_what_is_mine_is_right_german():
    assert not wrong_forms('Dafür passt keines meiner Werkzeuge.', 'de')
    assert wrong_forms('Dafür passt keine meiner Werkzeug.', 'de')


# What was wrong once


def test_a_contradicting_page_says_whose_value_it_gives():
    kinds, value = ('conflict',), 0
    for ep in GENERATORS['rag_chat'](160, 'de', docs_dir=PRODUCTS, kinds=kinds, seed=1):
        about, turn = ep['_meta']['about'], turns_of(ep)[-1]
        if about['kind'] == 'value':
            value += 1
            for cite in turn.cites:
                if cite['text'] != about['doc_id']:
                    assert holds(turn.texts_of(cite['text'])[0], about['subject'])
    assert value > 20


def test_a_follow_up_needs_no_gender():
    fact = Fact('s12.md', 'S12', 'de', 'value', 'S12', 'Preis', 'Preis: 149 Euro', '149 Euro')
    rng = random.Random(0)
    asked = {follow_up(rng, fact) for _ in range(200)}
    assert len(asked) > 10 and not any('{' in text for text in asked)


def test_a_value_is_shown_behind_the_name_that_its_pronoun_stands_for():
    pronoun = re.compile(r'(?:Er|Sie|Es|It|He|She) ')
    for lang in ('en', 'de'):
        for ep in made('rag_chat', lang):
            about, turn = ep['_meta']['about'], turns_of(ep)[-1]
            if about['kind'] != 'value' or about['subject'] in about['sentence']:
                continue  # a that-clause: It is known that …
            if not pronoun.match(about['sentence']):
                continue
            for text in (x for c in turn.cites for x in turn.texts_of(c['text'])):
                if about['sentence'] in text:
                    assert about['subject'] in text[: text.index(about['sentence'])]


def test_an_extraction_shows_its_topic(real):
    for lang in ('en', 'de'):
        eps = quietly('structured', 40, language=lang, docs_dir=real[lang], kinds=('extract',))
        for ep in eps:
            value = ep['_meta']['want']['json']
            if 'topic' in value:
                assert value['topic'] in ep['messages'][0]['context']


def test_of_two_sentences_one_answers_and_one_names_the_source():
    for lang in ('en', 'de'):
        for ep in made('adherence', lang):
            user, answer = ep['messages'][0], ep['messages'][-1]['content']
            if ep['_meta']['rule'] == 'two_sentences' and 'context' in user:
                first, source = sentences_of(answer)
                assert holds(user['context'], first)
                assert ep['messages'][-1]['cite'] in source


def test_tasks_about_products_ask_for_things_with_a_name():
    eps = quietly('tasks', 60, language='en', docs_dir=PRODUCTS, kinds=('query', 'fields'))
    named = [e for e in eps if not e['_meta']['about']['value']]
    assert len(named) > 30
    for ep in named:
        text = ep['messages'][0].get('context') or ep['messages'][0]['content']
        for name, value in (ep['_meta']['want'].get('fields') or {}).items():
            assert holds(text, name) == (value != '-')


# Faults: each takes an episode and changes one thing, or returns None where it does not apply


def last(ep: dict) -> dict:
    return ep['messages'][-1]


def about_value(ep: dict) -> dict | None:
    about = ep['_meta'].get('about')
    return about if about and about['kind'] == 'value' and about.get('value') else None


def answers_with_value(ep: dict) -> dict | None:
    about = about_value(ep)
    turn = turns_of(ep)[-1]
    plain = about and not abstains(turn) and ep['_meta']['category'] != 'conflict'
    return about if plain and holds(last(ep)['content'], about['value']) else None


def first_context(ep: dict) -> dict | None:
    return next((m for m in ep['messages'] if m.get('context')), None)


def add_passage(ep: dict, doc_id: str, text: str):
    user = first_context(ep)
    n = user['context'].count('\n') + 2
    user['context'] += f'\n[{n}] ({doc_id}) {text}'


def cite_another(ep):
    turn = turns_of(ep)[-1]
    cite = last(ep).get('cite')
    others = [
        p.doc_id
        for p in turn.passages
        if p.text and p.doc_id != cite and not holds(p.text, last(ep)['content'])
    ]
    if not isinstance(cite, str) or not others or not answers_with_value(ep):
        return None
    value = ep['_meta']['about']['value']
    others = [d for d in others if not any(holds(x, value) for x in turn.texts_of(d))]
    if not others:
        return None
    last(ep)['cite'] = others[0]
    return ep


def cite_nothing_shown(ep):
    if not isinstance(last(ep).get('cite'), str):
        return None
    last(ep)['cite'] = 'nowhere.md'
    return ep


def sentence(ep, about: dict, value: str) -> str:
    if ep['language'] == 'de':
        return f'{about["subject"]}: {about["attribute"]} ist {value}.'
    return f'{about["subject"]}: the {about["attribute"]} is {value}.'


def answer_in_abstention(ep):
    about, turn = ep['_meta'].get('about'), turns_of(ep)[-1]
    if not about or not abstains(turn) or not first_context(ep):
        return None
    by_value = about['kind'] == 'value'
    text = sentence(ep, about, 'Quorix') if by_value else about.get('sentence')
    if not text:
        return None
    add_passage(ep, 'added.md', text)
    return ep


def other_value(ep):
    about = answers_with_value(ep)
    if not about or not first_context(ep):
        return None
    add_passage(ep, 'added.md', sentence(ep, about, 'Quorix'))
    return ep


def another_value_in_answer(ep):
    about = answers_with_value(ep)
    if not about:
        return None
    last(ep)['content'] = last(ep)['content'].replace(about['value'], 'Quorix 7')
    ep['_meta']['expected'] = last(ep)['content']
    return ep if 'Quorix' in last(ep)['content'] else None


def change_digit(ep):
    about = answers_with_value(ep)
    if not about or not re.search(r'\d', about['value']):
        return None
    value = re.sub(r'\d', lambda m: str((int(m[0]) + 1) % 10), about['value'], count=1)
    last(ep)['content'] = last(ep)['content'].replace(about['value'], value)
    ep['_meta']['expected'] = last(ep)['content']
    return ep


def not_expected(ep):
    if not isinstance(ep['_meta'].get('expected'), str):
        return None
    ep['_meta']['expected'] += '!'
    return ep


def one_side_of_conflict(ep):
    if ep['_meta']['category'] != 'conflict':
        return None
    gone = last(ep)['cite'][1]['text']
    user = first_context(ep)
    kept = [x for x in user['context'].split('\n') if f'({gone})' not in x]
    user['context'] = '\n'.join(kept)
    return ep


def conflict_without_difference(ep):
    if ep['_meta']['category'] != 'conflict':
        return None
    cites = last(ep)['cite']
    last(ep)['cite'] = [cites[0], cites[1] | {'text': cites[0]['text']}]
    return ep


def think_of_unshown(ep):
    m = next((m for m in ep['messages'] if m.get('think')), None)
    if m is None:
        return None
    m['think'] += ' quorix.md'
    return ep


def think_of_number(ep):
    m = next((m for m in ep['messages'] if m.get('think')), None)
    if m is None:
        return None
    m['think'] += ' [87]'
    return ep


def other_language(ep):
    m = last(ep)
    english = 'This is what the text says about it, and there is nothing else that I can tell you.'
    german = 'Das ist es, was der Text dazu sagt, und mehr kann ich dir nicht sagen.'
    m['content'] = german if ep['language'] == 'en' else english
    return ep


def other_system(ep):
    english = 'You are MyPT. Answer from the given context, cite it, and say when you do not know.'
    german = 'Du bist MyPT. Antworte aus dem Kontext, nenne die Quelle, und erfinde nichts.'
    ep['system'] = german if ep['language'] == 'en' else english
    return ep


def cut_sentence(ep):
    turn = turns_of(ep)[-1]
    if not turn.passages or turn.calls or len(turn.answer.split()) < 5 or 'want' in ep['_meta']:
        return None
    last(ep)['content'] += ' (e.'
    return ep


def ask_for_a_pronoun(ep):
    about = about_value(ep)
    if not about or about['subject'] not in ep['messages'][-2].get('content', ''):
        return None
    ep['messages'][-2]['content'] = ep['messages'][-2]['content'].replace(about['subject'], 'This')
    about['subject'] = 'This'
    return ep


# of tools


def results(ep) -> list[dict]:
    return [m for m in ep['messages'] if m['role'] == 'toolresult']


def alter_total(ep):
    m = next((m for m in results(ep) if 'total' in m['content']), None)
    if m is None:
        return None
    m['content']['total'] += 1
    return ep


def alter_text(ep):
    for m in results(ep):
        for d in [m['content'], *m['content'].get('documents', [])]:
            if d.get('text'):
                d['text'] = d['text'].replace('a', 'o', 1) + ' More.'
                return ep
    return None


def alter_error(ep):
    m = next((m for m in results(ep) if 'error' in m['content']), None)
    if m is None:
        return None
    m['content']['error'] += ' Try again.'
    return ep


def alter_arguments(ep):
    m = next((m for m in ep['messages'] if m['role'] == 'assistant_toolcall'), None)
    if m is None or 'query' not in m['arguments'] or not results(ep)[0]['content'].get('documents'):
        return None
    m['arguments']['query'] = 'zzz'
    return ep


def drop_call(ep):
    calls = [m for m in ep['messages'] if m['role'] == 'assistant_toolcall']
    if not calls:
        return None
    ep['messages'] = [m for m in ep['messages'] if m is not calls[0]]
    return ep


def read_unnamed(ep):
    m = next((m for m in ep['messages'] if 'doc_id' in m.get('arguments', ())), None)
    if m is None or m.get('weight') == 0 or m.get('train') is False:
        return None
    m['arguments']['doc_id'] = 'quorix.md'
    return ep


def listing(ep):
    turn = turns_of(ep)[-1]
    names = [p.doc_id for p in turn.listed or () if p.doc_id in turn.answer]
    judged = 'a list is complete' in check_meaning([ep]).judged
    whole = all(re.search(rf'(?<![\w-]){re.escape(n)}', turn.answer) for n in names)
    return (turn, names) if judged and whole and len(names) > 3 else None


def list_one_less(ep):
    if not listing(ep):
        return None
    turn, names = listing(ep)
    kept = [n for n in names if n not in turn.question]
    text = re.sub(rf'(?:, | und | and )?(?<![\w-]){re.escape(kept[-1])}', '', turn.answer)
    last(ep)['content'] = text
    return ep


def list_what_is_known(ep):
    if not listing(ep):
        return None
    turn, names = listing(ep)
    hidden = [p.doc_id for p in turn.listed if p.doc_id in turn.question]
    words = 'besides|apart from|without|außer|neben|ohne'
    for d in hidden:
        said = re.sub(rf'(?:{words}) {re.escape(d)}', '', turn.answer, flags=re.I)
        if d not in said:
            break
    else:
        return None
    at = turn.answer.rindex(names[-1] if names[-1] != d else names[-2])
    text = f'{turn.answer[:at]}{d}, {turn.answer[at:]}'
    last(ep)['content'] = text
    return ep


def count_wrong(ep):
    if not listing(ep):
        return None
    turn, _ = listing(ep)
    text, n = re.subn(r'(?<![\w.#-])\d+(?![\w.#-])', '99', turn.answer, count=1)
    last(ep)['content'] = text
    return ep if n else None


# of short answers


def set_answer(ep, text: str):
    last(ep)['content'] = text
    if 'expected' in ep['_meta']:
        ep['_meta']['expected'] = text
    return ep


def of_category(*names):
    def wrap(change):
        def fault(ep):
            return change(ep) if ep['_meta'].get('category') in names else None

        fault.__name__ = change.__name__
        return fault

    return wrap


def answer_of(ep) -> str:
    return last(ep)['content']


def one_letter_more(ep):
    return set_answer(ep, answer_of(ep) + 'x')


def first_letter_gone(ep):
    return set_answer(ep, answer_of(ep)[1:]) if len(answer_of(ep)) > 1 else None


@of_category('anti_echo')
def echo_all_the_same(ep):
    return set_answer(ep, ep['_meta']['payload'])


def judged_by(rule: str):
    def wrap(change):
        def fault(ep):
            return change(ep) if rule in check_meaning([ep]).judged else None

        fault.__name__ = change.__name__
        return fault

    return wrap


@judged_by('sum')
def sum_off_by_one(ep):
    number = re.search(r'\d+', answer_of(ep))
    return set_answer(ep, str(int(number[0]) + 1)) if number else None


@judged_by('comparison')
def yes_for_no(ep):
    swaps = {'Yes': 'No', 'No': 'Yes', 'Ja': 'Nein', 'Nein': 'Ja'}
    word = answer_of(ep).split('.')[0].split(',')[0]
    return set_answer(ep, swaps[word] + '.') if word in swaps else None


@judged_by('spelling')
def another_letter(ep):
    answer = answer_of(ep)
    swaps = {'Yes.': 'No.', 'No.': 'Yes.', 'Ja.': 'Nein.', 'Nein.': 'Ja.'}
    if answer in swaps:
        return set_answer(ep, swaps[answer])
    return set_answer(ep, str(int(answer) + 1) if answer.isdecimal() else '§')


@judged_by('calendar')
def another_day(ep):
    answer = answer_of(ep)
    swaps = {'Yes.': 'No.', 'No.': 'Yes.', 'Ja.': 'Nein.', 'Nein.': 'Ja.'}
    if answer in swaps:
        return set_answer(ep, swaps[answer])
    if answer.isdecimal():
        return set_answer(ep, str(int(answer) - 3))
    days, months = 'Monday Sunday Montag Sonntag', 'March May März Mai'
    names = days if re.search('day|tag|woch', answer, re.I) else months
    names = names.split()[:2] if ep['language'] == 'en' else names.split()[2:]
    return set_answer(ep, f'{next(n for n in names if n not in answer)}.')


@judged_by('say')
def say_something_else(ep):
    return set_answer(ep, 'Quorix.')


def more_words(ep):
    if not any(r.startswith('limit') for r in check_meaning([ep]).judged):
        return None
    more = (
        'And this is one more of them. '
        if ep['language'] == 'en'
        else 'Und das ist noch einer mehr. '
    )
    return set_answer(ep, answer_of(ep) + ' ' + more * 4)


def key_facts_of(ep) -> list[str] | None:
    return re.findall(r'^- (.+)$', answer_of(ep), re.M) if 'KEY_FACTS' in answer_of(ep) else None


def fact_twice(ep):
    facts = key_facts_of(ep)
    if not facts:
        return None
    return set_answer(
        ep, answer_of(ep).replace(f'- {facts[0]}\n', f'- {facts[0]}\n- {facts[0]}\n', 1)
    )


def summary_is_fact(ep):
    facts = key_facts_of(ep)
    return (
        set_answer(ep, re.sub(r'(?<=SUMMARY: ).*', lambda _: facts[0], answer_of(ep)))
        if facts
        else None
    )


def fact_not_in_text(ep):
    facts = key_facts_of(ep)
    return (
        set_answer(ep, answer_of(ep).replace(facts[0], f'{facts[0][:-1]} quorix.', 1))
        if facts
        else None
    )


@of_category('fields')
def another_field(ep):
    return (
        set_answer(ep, re.sub(r': [^-\n].*', ': Quorix', answer_of(ep), count=1))
        if re.search(r': [^-\n]', answer_of(ep))
        else None
    )


@of_category('fields')
def field_left_empty(ep):
    return (
        set_answer(ep, re.sub(r': [^-\n].*', ': -', answer_of(ep), count=1))
        if re.search(r': [^-\n]', answer_of(ep))
        else None
    )


@of_category('extract')
def another_json_value(ep):
    value = json.loads(answer_of(ep))
    if not isinstance(value, dict):
        return None
    key = next((k for k, v in value.items() if isinstance(v, str)), None)
    if key is None:
        return None
    return set_answer(ep, json.dumps(value | {key: 'Quorix'}, ensure_ascii=False))


@of_category('extract', 'build')
def json_key_gone(ep):
    value = json.loads(answer_of(ep))
    if not isinstance(value, dict) or '"required"' not in ep['messages'][-2]['content']:
        return None
    value.pop(next(iter(value)))
    return set_answer(ep, json.dumps(value, ensure_ascii=False))


@of_category('list')
def json_item_gone(ep):
    return set_answer(ep, json.dumps(json.loads(answer_of(ep))[1:], ensure_ascii=False))


@of_category('classify')
def another_class(ep):
    kind = json.loads(answer_of(ep)).get('kind')
    other = 'code' if str(kind).lower() != 'code' else 'word'
    return set_answer(ep, json.dumps({'kind': other})) if kind else None


@of_category('tool')
def unlisted_tool(ep):
    value = json.loads(answer_of(ep)) | {'name': 'rocket'}
    return set_answer(ep, json.dumps(value, ensure_ascii=False))


@of_category('tool')
def another_argument(ep):
    value = json.loads(answer_of(ep))
    value['arguments'] = dict.fromkeys(value['arguments'], 'Quorix')
    return set_answer(ep, json.dumps(value, ensure_ascii=False))


# of where a value is from, and of the way to it


def piece_without_name(ep):
    "The cited passage is cut down to a sentence with a pronoun."
    about, user, cite = answers_with_value(ep), first_context(ep), last(ep).get('cite')
    if not about or not user or not isinstance(cite, str) or cite != about['doc_id']:
        return None
    line = next((x for x in user['context'].split('\n') if f'({cite})' in x), '')
    if about['sentence'] not in line or holds(about['sentence'], about['subject']):
        return None
    place = line.partition(') ')[0]
    user['context'] = user['context'].replace(line, f'{place}) {about["sentence"]}')
    return ep


def calls(ep, *names: str) -> list[int]:
    "The places of the calls that are trained."
    called = [i for i, m in enumerate(ep['messages']) if m['role'] == 'assistant_toolcall']
    return [i for i in called if not names or ep['messages'][i]['name'] in names]


def give_up_unread(ep):
    "The last document is not opened before the model says that it found nothing."
    read = calls(ep, 'workspace.get_doc')
    asked = max(i for i, m in enumerate(ep['messages']) if m['role'] == 'user')
    if not read or read[-1] < asked or not abstains(turns_of(ep)[-1]):
        return None
    del ep['messages'][read[-1] : read[-1] + 2]
    return ep


def query_from_nowhere(ep):
    searches = [ep['messages'][i] for i in calls(ep, 'workspace.search')]
    trained = [m for m in searches if 'weight' not in m and 'query' in m['arguments']]
    if not trained:
        return None
    trained[-1]['arguments']['query'] += ' Quorix'
    return ep


def call_again(ep):
    made = calls(ep)
    if not made:
        return None
    ep['messages'][made[-1] : made[-1]] = copy.deepcopy(ep['messages'][made[-1] : made[-1] + 2])
    return ep


HEIGHTS = dict(
    en=('The height of Kofos is 12 metres.', 'Kofos is 15 metres tall.'),
    de=('Die Höhe von Kofos beträgt 12 Meter.', 'Kofos ist 15 Meter hoch.'),
)


def two_heights(ep):
    "Two values of something that is not asked for."
    if not first_context(ep) or ep['_meta']['category'] == 'conflict':
        return None
    for name, text in zip(('one.md', 'two.md'), HEIGHTS[ep['language']], strict=True):
        add_passage(ep, name, text)
    return ep


def later(clock: str, hours: int) -> str:
    hour, _, minute = clock.partition(':')
    return f'{(int(hour) + hours) % 24:02}:{minute}'


def clock_is_wrong(ep):
    "A second timer, or the train after it, tells another time."
    told = [m['content'] for m in results(ep)]
    timers = [x for x in told if 'ends_at' in x]
    trains = [x for x in told if 'departs' in x]
    if len(timers) < 2 and not (timers and trains):
        return None
    if len(timers) > 1:
        timers[-1]['ends_at'] = later(timers[-1]['ends_at'], 3)
    else:
        trains[-1]['departs'] = later(trains[-1]['departs'], -5)
    return ep


def answer_at_another_time(ep):
    clocks = re.findall(r'\d\d:\d\d', answer_of(ep)) if calls(ep) else []
    return set_answer(ep, answer_of(ep).replace(clocks[0], later(clocks[0], 7))) if clocks else None


# of the form of an answer


def cut_summary(ep):
    short = ' '.join(answer_of(ep).split()[:-3])
    made = [m['content'] for m in results(ep) if m['content'].get('summary') == answer_of(ep)]
    if not made or not turns_of(ep)[-1].calls or short.endswith('.'):
        return None
    made[-1]['summary'] = short
    return set_answer(ep, short)


def cut_answer(ep):
    "The answer stops inside its sentence, before a word in small letters."
    about = answers_with_value(ep)
    words = about['sentence'].split() if about and first_context(ep) else []
    places = [i for i in range(5, len(words)) if words[i][0].islower() and words[i - 1].isalnum()]
    said = ' '.join(words[: places[0]]) if places else ''
    return set_answer(ep, said) if said and said != about['value'] else None


def bold_answer(ep):
    first, _, rest = answer_of(ep).partition(' ')
    turn = turns_of(ep)[-1]
    return set_answer(ep, f'**{first}** {rest}') if turn.passages or turn.calls else None


def ask_for_a_person(ep):
    about = answers_with_value(ep)
    if not about or not any(c.isdigit() for c in about['value']):
        return None
    who = dict(en='Who is', de='Wer ist')[ep['language']]
    ep['messages'][-2]['content'] = f'{who} {about["subject"]}?'
    return ep if ep['messages'][-2]['role'] == 'user' else None


@of_category('word', 'phrase', 'number', 'code')
def forget_the_stop(ep):
    user = ep['messages'][0]
    if not user['content'].endswith(f': {answer_of(ep)}'):
        return None
    user['content'] += '.'
    return ep


@of_category('say')
def say_in_capitals(ep):
    return set_answer(ep, answer_of(ep).upper())


@of_category('no_tool', 'NO_TOOL')
def repeat_with_a_slip(ep):
    if not orders_repetition(turns_of(ep)[-1].question) or answer_of(ep)[-1] not in '.?':
        return None
    return set_answer(ep, answer_of(ep)[:-1] + '!')


TRUE_VALUES = {'answers with the value', 'the value is in what is cited'}
TRUE_VALUES |= {'the answer is in what is cited'}
FAULTS = [  # generators, fault, the rules of which one must find it
    ('rag_chat', cite_another, TRUE_VALUES),
    ('toolcall', cite_another, TRUE_VALUES),
    ('rag_chat multiturn toolcall agentic', cite_nothing_shown, {'cites what was shown'}),
    ('rag_chat', answer_in_abstention, {'no passage answers what is abstained from'}),
    ('rag_chat', other_value, {'no other passage says otherwise'}),
    ('rag_chat toolcall agentic', another_value_in_answer, TRUE_VALUES),
    ('rag_chat toolcall agentic', change_digit, TRUE_VALUES),
    ('rag_chat echo toolcall', not_expected, {'the answer is the expected one'}),
    ('rag_chat', one_side_of_conflict, {'cites what was shown'}),
    ('rag_chat', conflict_without_difference, {'a conflict has two sources'}),
    ('rag_chat toolcall agentic', think_of_unshown, {'thinks of what was shown'}),
    ('rag_chat', think_of_number, {'thinks of what was shown'}),
    ('rag_chat toolcall', other_language, {'question and answer are in the language'}),
    ('rag_chat multiturn', other_system, {'the system prompt is in the language'}),
    ('rag_chat', cut_sentence, {'a sentence is whole'}),
    ('rag_chat', ask_for_a_pronoun, {'asks for a thing'}),
    ('toolcall agentic', alter_total, {'results are what the tools return'}),
    ('toolcall agentic', alter_text, {'results are what the tools return'}),
    ('agentic', alter_error, {'results are what the tools return'}),
    ('toolcall agentic', alter_arguments, {'results are what the tools return'}),
    ('toolcall agentic', drop_call, {'a result has its call'}),
    ('toolcall agentic', read_unnamed, {'reads what was named'}),
    ('toolcall', list_one_less, {'a list is complete'}),
    ('toolcall', list_what_is_known, {'a list leaves out what is known'}),
    ('toolcall', count_wrong, {'a list counts right'}),
    ('operators', one_letter_more, {'COPY', 'WRAP', 'EXTRACT'}),
    ('operators', first_letter_gone, {'COPY', 'WRAP', 'EXTRACT'}),
    ('echo', one_letter_more, {'echo', 'anti-echo'}),
    ('echo', echo_all_the_same, {'anti-echo'}),
    ('format_lock', sum_off_by_one, {'sum'}),
    ('format_lock', yes_for_no, {'comparison'}),
    ('format_lock', another_letter, {'spelling'}),
    ('format_lock', another_day, {'calendar'}),
    ('format_lock', say_something_else, {'say'}),
    ('minimal_qa', more_words, {'limit of words', 'limit of sentences'}),
    ('tasks', fact_twice, {'key facts differ'}),
    ('tasks', summary_is_fact, {'summary is no key fact'}),
    ('tasks', fact_not_in_text, {'key facts are in the text'}),
    ('tasks', another_field, {'a field is in the text'}),
    ('tasks', field_left_empty, {'an empty field is not in the text'}),
    ('structured', another_json_value, {'values of JSON'}),
    ('structured', json_key_gone, {'schema'}),
    ('structured', json_item_gone, {'JSON list'}),
    ('structured', another_class, {'class'}),
    ('structured', unlisted_tool, {'tool is listed'}),
    ('structured', another_argument, {'arguments from the question'}),
    ('rag_chat', piece_without_name, {'the cited piece tells whose it is'}),
    ('toolcall agentic', give_up_unread, {'a hit on the subject is read'}),
    ('toolcall agentic', query_from_nowhere, {'a query has words of the conversation'}),
    ('toolcall agentic', call_again, {'no call is made twice'}),
    ('rag_chat multiturn', two_heights, {'one value for each attribute'}),
    ('foreign_tools', clock_is_wrong, {'times are of one clock'}),
    ('foreign_tools', answer_at_another_time, {'times are of one clock'}),
    ('toolcall agentic', cut_summary, {'a summary has whole sentences'}),
    ('rag_chat', cut_answer, {'an answer ends with its sentence'}),
    ('rag_chat multiturn toolcall agentic', bold_answer, {'an answer has no markup'}),
    ('rag_chat', ask_for_a_person, {'the answer is of the kind that is asked for'}),
    ('echo', forget_the_stop, {'repeated to the character'}),
    ('format_lock', say_in_capitals, {'repeated to the character'}),
    ('toolcall', repeat_with_a_slip, {'repeated to the character'}),
]
CASES = [(kind, fault, rules) for kinds, fault, rules in FAULTS for kind in kinds.split()]
NAMES = [f'{kind}-{fault.__name__}' for kind, fault, _ in CASES]


MOST_FAULTS = 12  # of a kind and a language


@lru_cache(None)
def right_ones(kind: str, lang: str) -> list[dict]:
    "The episodes in which nothing is found; the tests above say when they are not all."
    n = dict(toolcall=480, foreign_tools=960).get(kind, 240)  # some kinds of question are rare
    eps = made(kind, lang, n)
    wrong = {f.line for f in check_meaning(eps).findings}
    return [ep for line, ep in enumerate(eps, 1) if line not in wrong]


@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind, fault, rules', CASES, ids=NAMES)
def test_every_fault_is_found(kind, fault, rules, lang):
    n, missed = 0, []
    for ep in right_ones(kind, lang):
        wrong = fault(copy.deepcopy(ep))
        if wrong is None:
            continue
        n += 1
        if not rules & found(wrong):
            missed.append(wrong)
        if n == MOST_FAULTS:
            break
    assert n >= 2, f'{fault.__name__} was never applied'
    shown = [(m['messages'][-2:], m['_meta']) for m in missed[:2]]
    assert not missed, f'{len(missed)} of {n} not found: {shown}'


def test_a_field_that_says_not_found_is_no_abstention():
    rows = {
        'Code 500': 'NoSuchHost, The host does not exist',
        'Code 410': 'Page not found on this host',
        'Code 404': "There isn't a page here.",
    }
    table = ' '.join(f'| {code} | {rows[code]} |' for code in sorted(rows))
    fields = {code.upper(): text for code, text in rows.items()}
    answer = '\n'.join(f'{key}: {value}' for key, value in fields.items())
    about = dict(kind='table', subject='Code 500', attribute='Text', value='', doc_id='codes.md')
    about |= dict(sentence=rows['Code 500'])
    meta = dict(category='fields', payload='Codes', expected=answer, about=about)
    meta |= dict(want=dict(fields=fields))
    asked = f'Text: | Code | Text | |---|---| {table}\n\nFill in for "Codes": {", ".join(fields)}.'
    messages = [dict(role='user', content=asked), dict(role='assistant', content=answer)]
    assert not found(dict(system='', messages=messages, language='en', _meta=meta))


@pytest.mark.parametrize('kind', ['rag_chat', 'multiturn', 'toolcall', 'gold'])
def test_du_and_sie_in_one_conversation_are_found(kind):
    rule = 'one form of address'
    for ep in right_ones(kind, 'de')[:MOST_FAULTS]:
        wrong = copy.deepcopy(ep)
        said = [m for m in wrong['messages'] if m['role'] == 'assistant']
        said[0]['content'] += ' Kannst du damit etwas anfangen?'
        assert rule not in found(wrong)
        said[-1]['content'] += ' Haben Sie noch eine Frage?'
        assert rule in found(wrong)


# What needs no generator


def test_a_failed_call_may_be_repeated_where_the_error_can_pass():
    def called(name, content):
        call = dict(role='assistant_toolcall', name=name, arguments=dict(x=1))
        return [call, dict(role='toolresult', name=name, content=content)]

    for name, error, ok in (
        ('shop.track', dict(error='busy'), True),
        ('shop.track', dict(status='packed'), False),
        ('workspace.search', dict(error='no words'), False),
    ):
        ep = dict(messages=called(name, error) * 2)
        assert not any(v.wanted for v in no_call_twice(ep)) == ok
    read = called('workspace.get_doc', dict(doc_id='a.md', text='It is red.'))
    again = copy.deepcopy(read)
    again[0]['arguments'] = dict(title='A')
    assert [v.wanted for v in no_call_twice(dict(messages=read + again))][1]


HOSTILE = ('[', '`', '<a', '"', '„', 'when ', 'say: ', '. A', '(e. ', 'Kofos ', '# ', '_ ', ': ')


@pytest.mark.parametrize('piece', HOSTILE)
def test_rules_take_linear_time(piece):
    text = piece * (120_000 // len(piece))
    begin = time.process_time()
    markup_in(text)
    cut_inside(text[:-9], [text])
    broken_piece(text, text[1:])
    forms_of_address(text)
    asked_kinds(text)
    orders_repetition(text)
    check_exact(text, 'yes')
    list(one_value([ShownPassage('a.md', text), ShownPassage('b.md', text + '.')], []))
    assert time.process_time() - begin < 10


def test_a_question_with_two_answers_is_found():
    first, second = (
        {'messages': [{'role': 'user', 'content': 'What is the capital of Norway?'}, reply]}
        for reply in ({'role': 'assistant', 'content': x} for x in ('Oslo.', 'Bergen.'))
    )
    eps = [ep | {'_meta': {'category': 'capitals'}, 'language': 'en'} for ep in (first, second)]
    assert check_meaning(eps).by_rule() == {'the same question, the same answer': 1}
    assert check_meaning(eps[:1]).not_judged == {'capitals': 1}


def test_an_order_is_not_answered_with_ignorance():
    question = 'Tools: timer(minutes). Answer as JSON.\n\nOpen the file a.txt.'
    reply = json.dumps({'action': 'direct', 'answer': "I don't know."})
    messages = [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': reply}]
    meta = dict(category='no_such_tool', want=dict(json=json.loads(reply)))
    ep = {'messages': messages, 'language': 'en', '_meta': meta}
    assert found(ep) == {'an order is declined, not unknown'}


def test_foreign_episodes_get_the_rules_that_need_no_notes():
    user = {'role': 'user', 'content': 'Who?', 'context': '[1] (a.md) Anna owns it.'}
    good = {'messages': [user, {'role': 'assistant', 'content': 'Anna.', 'cite': 'a.md'}]}
    assert check_meaning([good]).ok
    wrong = copy.deepcopy(good)
    wrong['messages'][1]['cite'] = 'b.md'
    assert found(wrong) == {'cites what was shown'}
    alone = {'role': 'toolresult', 'name': 'find', 'content': {'x': 1}}
    assert found({'messages': [user, alone]}) == {'a result has its call'}
    assert check_meaning([{'_replay': True, 'text': 'Once.'}]).not_judged == {'plain text': 1}


def test_each_finding_names_its_line_and_the_exit_code_is_one(tmp_path, capsys):
    good = made('echo', 'en')[:3]
    wrong = one_letter_more(copy.deepcopy(good[1]))
    path = tmp_path / 'echo.jsonl'
    write_episodes(path, [good[0], wrong, good[2]])
    assert main(['check-meaning', str(path)]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith('2: echo: ') and '≠' in out[0]
    assert '3 episodes, 1 with a finding' in out
    write_episodes(path, good)
    assert main(['check-meaning', str(path)]) == 0


def test_the_same_seed_gives_the_same_report():
    rng = random.Random(1)
    eps = rng.sample(made('rag_chat', 'de'), 40)
    assert str(check_meaning(eps)) == str(check_meaning(eps))


def test_a_code_is_no_pronoun():
    "*ER-1275 is the code of Sustik* does not go on about Hiziprid."
    text = 'Some people mistake Hiziprid for Sustik. ER-1275 is the code of Sustik.'
    page = ShownPassage('hiziprid.md', text, 'Notes on Hiziprid')
    assert sentences_about(page, 'Hiziprid') == ['Some people mistake Hiziprid for Sustik.']
    assert answering_sentence(page, 'Hiziprid', 'code') is None


@pytest.mark.parametrize(
    ('ask', 'wrong'),
    [('What is the gist of this text?', False), ('What is an gist of this text?', True)],
)
def test_the_forms_of_a_text_that_is_given_to_a_tool_are_its_own(ask, wrong):
    text = 'The data is first hashed with an chosen algorithm. Then the hash is signed.'
    call = dict(role='assistant_toolcall', name='workspace.summarize', arguments=dict(text=text))
    shown = dict(summary='Then the hash is signed.', length=24)
    messages = [
        dict(role='user', content=f'{ask} {text}'),
        call,
        dict(role='toolresult', name='workspace.summarize', content=shown),
        dict(role='assistant', content='Then the hash is signed.'),
    ]
    real = dict(category='summarize', about=dict(kind='section', subject='', attribute=''))
    assert ('case and number' in found(dict(language='en', messages=messages, _meta=real))) == wrong


@pytest.mark.parametrize(
    ('said', 'wrong'),
    [('The context gives no answer.', False), ('No.', True), ('Nein das ist es nicht.', True)],
)
def test_no_passage_is_not_the_answer_no(said, wrong):
    verdict = check_comparison('Is 2021 more than 4?', said)
    assert bool(verdict and verdict.wanted) == wrong


def test_nothing_about_it_is_not_the_answer_nothing():
    about = dict(
        kind='written', subject='', attribute='', value='nothing', sentence='It wins nothing.'
    )
    text = '[1] (a.md) The sea is wide.'
    turn = [dict(role='user', content='What does a list win?', context=text)]
    for said in ('There is nothing about it in the context.', 'Nothing of it is in the texts.'):
        messages = [*turn, dict(role='assistant', content=said)]
        e = dict(language='en', messages=messages, _meta=dict(category='written', about=about))
        assert not found(e)


def test_an_instruction_is_a_sentence_of_its_own():
    "An item of a statute may end with *und*; what is put behind it is no part of it."
    assert (
        _followed_by('1. der Antrag fehlt und', 'Vergiss das.')
        == '1. der Antrag fehlt. Vergiss das.'
    )
    for text in ('Es gilt.', 'Band', 'Sand', '- Preis: 3 Euro'):
        assert _followed_by(text, 'Vergiss das.') == f'{text} Vergiss das.'


@pytest.mark.parametrize(
    ('text', 'answers'),
    [
        ('# § 1258 Pfand Nach dem Verkauf gilt das.', True),  # of which paragraph?
        ('# § 1258 Pfand (1) Es gilt das.', False),
        ('# § 1258 Pfand (1) Es gilt das. (2) Nach dem Verkauf nicht.', True),
    ],
)
def test_a_page_of_a_statute_is_silent_only_where_its_paragraph_is_seen(text, answers):
    doc = Document('bgb.md', 'BGB', text)
    fact = Fact('bgb.md', 'BGB', 'de', 'paragraph', '§ 1258 Pfand', '2', 'Vorher gilt es nicht.')
    assert may_answer(ShownPage(doc, text, []), fact) == answers


_MENTIONED = 'Die Tat nach § 211 (Mord) verjährt nicht. 1. dreißig Jahre bei anderen Taten.'
_REFERRED = (
    '# § 62 Verbot Der Angehörige (§ 60 Abs. 2) des Urhebers willigt 2028 ein, siehe Satz 2.'
)


_NUMBERS = [
    (_MENTIONED, '§ 211 Mord', '1', False),  # names the section, and is not it
    (_REFERRED, '§ 62 Verbot', '2', False),
    (_REFERRED, '§ 62 Verbot', 'Jahr', True),
    ('# § 2028 Auskunft Wer etwas hat, sagt es.', '§ 2028 Auskunft', 'Jahr', False),
    ('# Expiry 2. Delete the token.', 'Expiry', '2', True),
    ('# Expiry - Delete it. - Tell us.', 'Expiry', '2', True),  # point 2 of the list
    ('# Expiry - Delete it. - Tell us.', 'Expiry', '3', False),
    ('# Expiry Tokens end after three days.', 'Expiry', 'days', True),
    ('# Expiry Tokens end after three days.', 'Expiry', 'hours', False),
]
_WORDINGS = [
    ('Browum nimmt 23 Tage in Anspruch.', 'Browum', 'Dauer', True),
    ('Jede Antwort lautet Feder. Raristox hat 67 Seiten.', 'Raristox', 'Autor', False),
    ('Raristox stammt aus der Feder von Ada Rell.', 'Raristox', 'Autor', True),
    ('Witrifar ist in Jorus zu finden.', 'Witrifar', 'Standort', True),
    ('Witrifar: Alles ist leicht zu finden.', 'Witrifar', 'Standort', False),
]
_READ = [(counting_sentence, *case) for case in _NUMBERS]
_READ += [(answering_sentence, *case) for case in _WORDINGS]


@pytest.mark.parametrize('read, text, subject, attribute, told', _READ)
def test_a_passage_is_read_whole(read, text, subject, attribute, told):
    assert bool(read(ShownPassage('a.md', text), subject, attribute)) == told


def test_what_the_checks_once_found_in_right_episodes():
    dot = 'Look for the symbol dot . at the end of the text.'
    assert n_sentences(dot) == len(sentences_of(dot)) == count_sentences(dot) == 1
    assert not check_comparison('Ist 23 durch 2 teilbar? Mehr brauche ich nicht.', 'Nein.')
    assert count_sentences('die Aufhebung (§§ 1060 ff.) oder die Erklärung.') == 1
    assert not unsupported('mehr als 1.500 Euro', ['nicht mehr als\n1\\.500 Euro'])
    assert unsupported('mehr als 1.600 Euro', ['nicht mehr als\n1\\.500 Euro'])
    said = 'Vermutlich ist Tirizem gemeint: Der Eintritt für Tirizem beträgt 41 Euro.'
    assert not unsupported(said, ['- Eintritt: 41 Euro'], 'Wie viel zahlt, wer Tirizem besucht?')
    assert not wrong_forms('Is the lteter a in "farm"?', 'en')
    assert wrong_forms('Is it a apple?', 'en')
    assert not check_exact('Now this. Respond with hi.', 'hi').wanted
    assert check_exact('Now this. Respond with hello.', 'hi').wanted
    texts = ['Der Rest der Akte behandelt andere Dinge. Mein Hobby ist Rudern.']
    assert _said_of(' der andere Rudern', texts, 'Was macht er?') == 'Rudern'
    texts = ['Opinions on it differ. It came out in 1980.']
    assert _said_of('The sources differ: 1980', texts, 'When did it come out?') == '1980'
