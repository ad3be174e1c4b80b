"Promises of the data of phases 3 and 4: true labels, reading needed, lengths, variety, German."

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mypt.agent.documents import Document
from mypt.curriculum.chat_words import CHAT_FORMS
from mypt.curriculum.facts import facts
from mypt.curriculum.grammar import wrong_forms
from mypt.curriculum.meaning import check_meaning
from mypt.curriculum.multiturn import TURN_KINDS, make_multiturn
from mypt.curriculum.questions import BY_HEADING
from mypt.curriculum.rag_chat import CHAT_KINDS, make_rag_chat
from mypt.curriculum.synthetic import Shortage
from mypt.data.encode import encode
from mypt.data.language import language_of
from mypt.data.tokenizer import get_tokenizer
from shortcuts import bag_of_words, logistic_accuracy, rule_accuracy

MAKERS = dict(rag_chat=make_rag_chat, multiturn=make_multiturn)
DATA = Path(__file__).resolve().parents[2] / 'shared' / 'data'
REAL = dict(en=DATA / 'owasp_cheatsheets', de=DATA / 'law_de')
ABSTAINS = ('insufficient', 'silent')
_PASSAGE = re.compile(r'^\[(\d+)\] \((.*?)\) (.*)$', re.M)

PRODUCTS = {
    'Kettle': (
        'The kettle boils a litre of water in 4 minutes. | '
        'Descaling: Fill it with vinegar once in 8 weeks and rinse it well. | '
        'Cord: The cord is stored in the base below the handle.'
    ),
    'Lamp': (
        'The lamp lights a desk without a shadow. | '
        'Bulb: A new bulb is needed after 900 hours of light. | '
        'Switch: The switch on the cord turns the lamp on and off.'
    ),
    'Router': (
        'The router connects a flat to the network. | '
        'Setup: Wait 30 seconds until the green light stays on. | '
        'Reset: A pin pressed into the small hole deletes all settings.'
    ),
    'Drill': (
        'The drill makes holes in wood and brick. | '
        'Battery: The battery is charged after 50 minutes on the mains. | '
        'Safety: Nobody should work with the drill without glasses.'
    ),
    'Scale': (
        'The scale weighs letters and small parcels. | '
        'Accuracy: It errs by at most 2 grams when it stands level. | '
        'Display: The display goes dark when nothing is weighed.'
    ),
    'Heater': (
        'The heater warms a room of medium size. | '
        'Timer: The timer ends after 6 hours and cannot be set longer. | '
        'Safety: A heater that falls over turns itself off at once.'
    ),
    'Camera': (
        'The camera takes pictures under water. | '
        'Depth: It stays dry down to 15 metres below the surface. | '
        'Battery: A cold battery gives only half as many pictures.'
    ),
    'Speaker': (
        'The speaker plays music from a phone. | '
        'Pairing: Hold the button for 3 seconds until a tone is heard. | '
        'Display: There is no display, only a ring of light.'
    ),
    'Printer': (
        'The printer prints on paper and on cloth. | '
        'Ink: A set of ink lasts for about 400 pages of text. | '
        'Setup: The printer finds the network when it is first started.'
    ),
    'Fan': (
        'The fan cools a room quietly in summer. | '
        'Care: Its blades are wiped with a dry cloth every 2 weeks. | '
        'Switch: A fan has three speeds, chosen with the round switch.'
    ),
    'Toaster': (
        'The toaster browns two slices of bread. | '
        'Crumbs: The tray with the crumbs is emptied after 20 days of use. | '
        'Cord: A damaged cord is replaced by the service only.'
    ),
    'Radio': (
        'The radio receives stations from far away. | '
        'Aerial: The aerial is 80 centimetres long when it is pulled out. | '
        'Reset: Both knobs turned to the left bring back the first station.'
    ),
}


def write_products(folder: Path) -> str:
    "Twelve short product sheets."
    for name, text in PRODUCTS.items():
        first, *parts = text.split(' | ')
        sections = [f'## {head}\n\n{said}\n' for head, said in (p.split(': ') for p in parts)]
        page = '\n'.join([f'# {name} manual\n\n{first}\n', *sections])
        (folder / f'{name.lower()}.md').write_text(page, encoding='utf-8')
    return str(folder)


@pytest.fixture(scope='module')
def made():
    return {kind: list(maker(1200, 'mixed', seed=11)) for kind, maker in MAKERS.items()}


def shown_before(e: dict, i: int) -> list[tuple[int, str, str]]:
    "Passages as (number, doc_id, text) that stand before the message `i`, or in it."
    blocks = [m.get('context', '') for m in e['messages'][: i + 1]]
    blocks += [m['content'] for m in e['messages'][:i] if m['role'] == 'assistant_context']
    return [(int(n), d, t) for block in blocks for n, d, t in _PASSAGE.findall(block)]


def answered(e: dict) -> list[tuple[dict, dict | None, list]]:
    "Each answer, what it is about, and the passages before it."
    places = [i for i, m in enumerate(e['messages']) if m['role'] == 'assistant']
    meta = e['_meta']
    assert len(meta['abouts']) == len(places) and meta['about'] == meta['abouts'][-1]
    pairs = zip(places, meta['abouts'], strict=True)
    return [(e['messages'][i], about, shown_before(e, i)) for i, about in pairs]


def stated(passages: list, lang: str) -> set[tuple[str, str]]:
    "What passages state by themselves, read again."
    found = []
    for _, doc_id, text in passages:
        head = doc_id.rpartition('.')[0].capitalize()
        found += facts(Document(doc_id, head, f'# {head}\n\n{text}\n'))
    return {(f.subject.lower(), f.attribute) for f in found if f.kind == 'value'}


def check_labels(e: dict, invented: bool) -> Counter:
    "Every answer against the passages before it; counts what was checked."
    done = Counter()
    for m, about, passages in answered(e):
        if isinstance(m.get('cite'), str):
            cited = [text for _, doc_id, text in passages if doc_id == m['cite']]
            assert any(about['sentence'] in text for text in cited), m
            assert about['sentence'] in m['content'] or about['value'] in m['content'], m
            done['cited'] += 1
        elif 'cite' in m:
            end = len(m['content'])
            for place in m['cite']:
                if isinstance(place, str):
                    place = {'at': end, 'text': place}
                said = m['content'][: place['at']]
                cited = [text for _, doc_id, text in passages if doc_id == place['text']]
                ending = re.search(r'\S+$', said.rstrip('.!?“"'))[0].strip('„"“.!?,;:')
                assert any(ending in text for text in cited), (m, ending)
            done['several'] += 1
        elif about and passages and not about['sentence']:  # a number that nothing states
            under = [text for _, _, text in passages if about['subject'] in text]
            unit = about['attribute'].rstrip('se')
            said = rf' {unit}[.)] ' if unit.isdigit() else rf'\d+[\s-]{unit}'
            assert under and not any(re.search(said, t, re.I) for t in under), m
            done['abstained'] += 1
        elif about and passages:
            assert not any(about['sentence'] in text for _, _, text in passages), m
            if invented:
                asked = about['subject'].lower(), about['attribute']
                assert asked not in stated(passages, e['language']), (e['messages'], asked)
            done['abstained'] += 1
    return done


@pytest.mark.parametrize('kind', MAKERS)
def test_labels_are_true(kind, made):
    done = sum((check_labels(e, True) for e in made[kind]), Counter())
    assert done['cited'] > 600 and done['several'] > 60 and done['abstained'] > 60


def test_the_item_of_a_list_is_answered_in_a_sentence(made):
    seen = 0
    for e in made['rag_chat'] + made['multiturn']:
        for m, about, _ in answered(e):
            if about and about['value'] and about['sentence'].endswith(f': {about["value"]}'):
                assert m['content'] != about['sentence']
                seen += 1
    assert seen > 10


def test_the_sentences_of_a_summary_end_with_a_stop(tmp_path):
    made = 0
    for e in make_multiturn(
        60, 'en', docs_dir=write_products(tmp_path), seed=8, kinds=('summary', 'followup')
    ):
        if e['_meta']['category'] == 'summary':
            last = e['messages'][-1]
            places = [c['at'] for c in last['cite'] if isinstance(c, dict)]
            assert all(last['content'][:at].rstrip('"”)')[-1] in '.!?' for at in places), last
            made += 1
    assert made > 10


def test_a_wrong_label_is_found(made):
    for e in made['rag_chat']:
        if e['_meta']['category'] == 'answer':
            other = dict(e['messages'][-1], cite='nowhere.md')
            with pytest.raises(AssertionError):
                check_labels(e | {'messages': [*e['messages'][:-1], other]}, True)
            break
    for e in made['rag_chat']:
        if e['_meta']['category'] == 'silent':
            about = e['_meta']['about']
            user = dict(e['messages'][0])
            user['context'] += f'\n[9] (x.md) {about["sentence"]}'
            with pytest.raises(AssertionError):
                check_labels(e | {'messages': [user, *e['messages'][1:]]}, True)
            break


def test_nobody_greets_twice(made):
    greets = re.compile(r'\b(?:hey|hi|hello|hallo|guten morgen|good morning)[,!]', re.I)
    later = [
        [m['content'] for m in e['messages'] if m['role'] == 'user'] for e in made['multiturn']
    ]
    assert not [text for said in later for text in said[1:] if greets.search(text)]


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_what_is_summed_up_is_cited_behind_whole_sentences(lang):
    if not REAL[lang].is_dir():
        pytest.skip(f'{REAL[lang]} is not there')
    summed = 0
    for e in make_multiturn(200, lang, docs_dir=str(REAL[lang]), seed=7):
        for m in e['messages']:
            if isinstance(m.get('cite'), list):
                summed += 1
                for place in m['cite']:
                    at = place['at'] if isinstance(place, dict) else len(m['content'])
                    assert re.search(r'[.!?]["“”»)]*$', m['content'][:at]), m
    assert summed > 5


@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind', MAKERS)
def test_labels_of_real_documents_are_true(kind, lang):
    if not REAL[lang].is_dir():
        pytest.skip(f'{REAL[lang]} is not there')
    counts = {}
    eps = MAKERS[kind](300, lang, docs_dir=str(REAL[lang]), seed=3, made=counts)
    done = sum((check_labels(e, False) for e in eps), Counter())
    assert done['cited'] > 120 and done['abstained'] > 10
    kinds = TURN_KINDS if kind == 'multiturn' else CHAT_KINDS
    assert [k for k in kinds if not counts[k]] == []


def test_a_heading_that_is_shown_does_not_tell_that_there_is_an_answer():
    if not REAL['en'].is_dir():
        pytest.skip(f'{REAL["en"]} is not there')
    docs, kinds = str(REAL['en']), ('answer', 'silent')
    eps = list(make_rag_chat(240, 'en', docs_dir=docs, seed=5, kinds=kinds, long=0))
    named = {k: [] for k in kinds}
    for e in eps:
        about, user = e['_meta']['about'], e['messages'][0]
        named[e['_meta']['category']].append(about['subject'] in user['context'])
        if not about['sentence']:  # a number that nothing states
            assert about['kind'] in ('number', 'date', 'step') and not e['messages'][-1].get('cite')
            user['context'] += (
                f'\n[9] (x.md) # {about["subject"]} It names 12 {about["attribute"]}.'
            )
    assert np.mean(named['silent']) > 0.6 and np.mean(named['answer']) > 0.8
    stated = [e for e in eps if not e['_meta']['about']['sentence']]
    found = {f.line for f in check_meaning(stated, docs).findings}
    units = [i for i, e in enumerate(stated, 1) if e['_meta']['about']['kind'] == 'number']
    assert len(units) > 20 and set(units) <= found


def test_a_conflict_has_both_values_in_its_context(made):
    torn = [e for e in made['rag_chat'] if e['_meta']['category'] == 'conflict']
    assert len(torn) > 60
    for e in torn:
        about = e['_meta']['about']
        sources = {place['text'] for place in e['messages'][-1]['cite']}
        passages = [p for p in _PASSAGE.findall(e['messages'][0]['context']) if p[1] in sources]
        assert len(sources) == len(passages) == 2
        value = re.compile(rf'(?<!\w){re.escape(about["value"])}(?!\w)')  # 3 Jahre is in 13 Jahre
        assert sum(bool(value.search(text)) for _, _, text in passages) == 1
        for p in passages:
            assert about['subject'] in p[2] and p[1] in sources


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_an_abstention_cannot_be_told_without_reading(lang):
    kinds = ('answer', 'insufficient', 'injection', 'silent')
    eps = list(make_rag_chat(2000, lang, seed=5, kinds=kinds, long=0))
    y = np.array([e['_meta']['category'] in ABSTAINS for e in eps], int)
    assert 0.4 < y.mean() < 0.6
    orders = [f.split('{')[0] for forms in CHAT_FORMS['inject'].values() for f in forms]
    assert orders
    plain = [i for i, e in enumerate(eps) if e['_meta']['category'] != 'injection']
    assert logistic_accuracy(bag_of_words(eps)[plain], y[plain]) <= 0.65
    assert rule_accuracy(eps, y) <= 0.65


def test_the_measure_finds_a_shortcut():
    eps = list(make_rag_chat(500, 'en', seed=5, kinds=('answer', 'silent'), long=0))
    y = np.array([e['_meta']['category'] == 'silent' for e in eps], int)
    for e, silent in zip(eps, y, strict=True):
        e['messages'][0]['context'] += ' Nothing is known.' if silent else ''
    assert logistic_accuracy(bag_of_words(eps), y) > 0.8


_YOU = re.compile(r'\b(?:du|dich|dir|dein\w*|kannst|hast|weißt)\b', re.I)
_SIE = re.compile(r'\b(?:[Kk]önn(?:t?en)|[Hh]aben|[Ww]issen|[Ss]agen|[Mm]einen) Sie\b|\bIhnen\b')


def test_a_conversation_keeps_to_one_register(made):
    formal = 0
    for e in made['multiturn'] + made['rag_chat']:
        if e['language'] == 'de':
            said = ' '.join(
                m['content'] for m in e['messages'] if m['role'] in ('user', 'assistant')
            )
            formal += bool(_SIE.search(said))
            assert not (_SIE.search(said) and _YOU.search(said)), said
    assert formal > 40


def test_passages_do_not_contradict_one_another_outside_a_conflict(made):
    for e in made['rag_chat'][:500] + made['multiturn'][:200]:
        if e['_meta']['category'] == 'conflict':
            continue
        values = {}
        for _, doc_id, text in shown_before(e, len(e['messages']) - 1):
            for f in facts(Document(doc_id, 'Notes', f'# Notes\n\n{text}\n')):
                if f.kind == 'value':
                    said = values.setdefault((f.subject, f.attribute), f.value)
                    assert said == f.value, (f, said)


@pytest.mark.parametrize('kind', MAKERS)
def test_what_is_asked_by_its_heading_stands_below_it(kind, tmp_path):
    done = 0
    for e in MAKERS[kind](150, 'en', docs_dir=write_products(tmp_path), seed=6):
        for m, about, passages in answered(e):
            if m.get('cite') and about and about['kind'] in BY_HEADING:
                cited = [t for _, d, t in passages if d == about['doc_id']]
                before = [
                    t.partition(about['sentence'])[0] for t in cited if about['sentence'] in t
                ]
                assert any(f'# {about["subject"]}' in text for text in before), (about, cited)
                done += 1
    assert done > 50


def test_a_pronoun_after_an_abstention_stands_for_what_was_asked():
    later = 0
    for e in make_multiturn(300, 'en', seed=3, kinds=('missing', 'followup'), turns=(4,), long=0):
        turns = answered(e)
        asked = [m['content'] for m in e['messages'] if m['role'] == 'user']
        for (m, about, _), question, (_, then, _) in zip(turns, asked[1:], turns[1:], strict=False):
            if about and not m.get('cite') and then and then['subject'] not in question:
                assert then['subject'] == about['subject'], (e['messages'], then)
                later += 1
    assert later > 10


def lengths(eps: list[dict]) -> np.ndarray:
    gpt2 = get_tokenizer('gpt2')
    return np.array([len(encode(e, gpt2)) for e in eps])


@pytest.mark.parametrize('kind, low, high', [('rag_chat', 180, 330), ('multiturn', 350, 600)])
def test_lengths_are_the_documented_ones(kind, low, high, made):
    n = lengths(made[kind])
    assert low < n[n < 2900].mean() < high
    assert 0.03 < (n >= 3000).mean() < 0.07
    assert n.max() <= 4096


@pytest.mark.parametrize(
    'kind, most, options',
    [('rag_chat', 190, dict(pages=(1, 2))), ('multiturn', 310, dict(facts=3))],
)
def test_simple_episodes_are_short(kind, most, options):
    "They fit the window of the speedrun's byte model, 1,024 tokens, asked for as it does."
    eps = list(MAKERS[kind](1000, seed=2, simple=True, **options))
    assert lengths(eps).mean() < most
    in_bytes = np.array([len(encode(e, get_tokenizer('byte'))) for e in eps])
    assert (in_bytes <= 1024).mean() >= 0.97


def templates(eps: list[dict], role: str, field: str = 'content') -> Counter:
    "Messages with names, numbers and words of their own context masked."
    found = Counter()
    for e in eps:
        known = set()
        for about in e['_meta']['abouts']:
            if about:
                known |= {about['subject'], about['value'], about['attribute'], about['sentence']}
        for m in e['messages']:
            if m['role'] == role and m.get(field):
                text = m[field]
                for word in sorted(filter(None, known), key=len, reverse=True):
                    text = text.replace(word, '_')
                text = re.sub(r'\[\d+\]|\d+|\b\w+\.md\b', '#', text)
                found[re.sub(r'(?<!^)(?<![.?!:] )\b[A-ZÄÖÜ]\w+', '_', text)] += 1
    return found


@pytest.mark.parametrize('lang', ['en', 'de'])
@pytest.mark.parametrize('kind', MAKERS)
def test_many_forms(kind, lang, made):
    eps = [e for e in made[kind] if e['language'] == lang]
    assert len(templates(eps, 'user')) >= 60
    assert len(templates(eps, 'assistant', 'think')) >= 12
    commonest = templates(eps, 'user').most_common(5)
    asked = sum(templates(eps, 'user').values())
    assert sum(n for _, n in commonest) / asked < 0.5


def test_forms_of_both_languages():
    for name, forms in CHAT_FORMS.items():
        assert len(forms['en']) == len(forms['de']), name
        gaps = {lang: {g for f in forms[lang] for g in re.findall(r'\{\w*\}', f)} for lang in forms}
        articles = {f'{{{g}}}' for g in ('the', 'acc', 'The', 'Acc', 'accb', 'theb')}
        assert gaps['en'] - articles <= gaps['de'] | {'{b}', '{bs}'}, name


def test_german_is_german(made):
    for kind in MAKERS:
        for e in made[kind]:
            if e['language'] != 'de':
                continue
            assert language_of(e['system']) != 'en', e['system']
            for m in e['messages']:
                for field in ('content', 'think'):
                    assert list(wrong_forms(m.get(field) or '', 'de')) == [], m


@pytest.mark.parametrize('kind', MAKERS)
def test_a_small_folder_gives_what_it_can_and_says_it(kind, tmp_path):
    counts = {}
    docs = write_products(tmp_path)
    eps = list(MAKERS[kind](200, 'en', docs_dir=docs, seed=4, made=counts))
    done = sum((check_labels(e, False) for e in eps), Counter())
    assert done['cited'] > 80 and sum(counts.values()) == 200
    kinds = TURN_KINDS if kind == 'multiturn' else CHAT_KINDS
    even = 200 / len(kinds)
    for k, times in Counter(kinds).items():
        assert counts[k] > 0.3 * even * times, counts


def test_too_few_documents_are_said(tmp_path):
    docs = Path(write_products(tmp_path))
    for path in sorted(docs.iterdir())[1:]:
        path.unlink()
    counts = {}
    few = dict(docs_dir=str(docs), kinds=('no_context', 'conflict'), made=counts)
    with pytest.warns(Shortage, match='different episodes of 9,000 could be made'):
        eps = list(make_rag_chat(9000, 'en', **few))
    assert sum(counts.values()) == len(eps) < 9000
    assert counts['no_context'] > 50 and not counts['conflict']  # one sheet contradicts nothing


def test_a_conversation_goes_on_after_a_first_abstention():
    "With a follow-up on the same subject, or with another question that no passage answers."
    made = list(make_multiturn(60, 'en', seed=4, long=0, kinds=('unsaid', 'followup'), turns=(3,)))
    began = [e for e in made if e['_meta']['category'] == 'unsaid']
    assert {e['_meta']['kinds'][0] for e in began} == {'unsaid', 'followup'}
    assert all('cite' not in e['messages'][1] for e in began)
    assert not check_meaning(made).findings


def test_one_kind_alone_is_enough():
    for kind in ('clarification', 'unsaid'):
        made = list(make_multiturn(5, 'en', long=0, kinds=(kind,), turns=(3,)))
        assert [e['_meta']['turns'] for e in made] == [3] * 5
