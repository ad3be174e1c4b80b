"Written texts: the corpus is well formed, its labels are right, nobody's test is in it."

import json
import re
from copy import deepcopy
from importlib.resources import files
from pathlib import Path

import pytest

from mypt.curriculum.grammar import wrong_forms
from mypt.curriculum.meaning import check_meaning
from mypt.curriculum.run import GENERATORS
from mypt.curriculum.synthetic import held_out, phrasings
from mypt.curriculum.written import _leans, make_written, written_groups, written_suites
from mypt.eval.metrics import gives_up
from mypt.eval.suite import load_suite
from mypt.files import text_assets

SHARED = Path(__file__).parents[2] / 'shared' / 'data'
LANGS = pytest.mark.parametrize('lang', ['en', 'de'])


def texts_of(lang: str) -> list:
    return [t for group in written_groups(lang) for t in group]


def plain(text: str) -> str:
    return ' '.join(re.findall(r'\w+', text.lower()))


@LANGS
def test_each_text_has_its_questions_and_each_answer_is_in_it_once(lang):
    texts = texts_of(lang)
    assert len(texts) >= 300
    assert {len(group) for group in written_groups(lang)} == {3}
    for t in texts:
        answered = [q for q in t.questions if q.answer]
        assert 5 <= len(answered) <= 7 and len(t.questions) - len(answered) == 2, t.title
        for q in answered:
            assert t.text.count(q.answer) == 1 and q.answer in t.sentence(q.answer), q
            assert len(q.answer.split()) <= 14 and plain(q.answer) not in plain(q.text), q


@LANGS
def test_no_title_and_no_question_comes_twice(lang):
    ids = [t.doc_id for t in texts_of(lang)]
    asked = [plain(q.text) for t in texts_of(lang) for q in t.questions]
    assert len({*ids}) == len(ids)
    assert len({*asked}) == len(asked) > 1500


@LANGS
def test_questions_are_right_in_form_and_no_text_has_a_tag_or_markup(lang):
    for t in texts_of(lang):
        assert not [q.text for q in t.questions if wrong_forms(q.text, lang)]
        for said in (t.text, *(q.text for q in t.questions)):
            assert not re.search(r'[{}<>\[\]`]', said), said


@LANGS
def test_no_question_of_an_exam_or_a_yardstick_is_among_them(lang):
    asked = {plain(q.text) for t in texts_of(lang) for q in t.questions}
    for name in ('owasp_en', 'law_de'):
        path = files('mypt') / 'assets' / 'exams' / f'{name}.jsonl'
        cases = [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]
        assert cases and not asked & {plain(c['question']) for c in cases}
    if not SHARED.is_dir():
        pytest.skip('no ../shared/data beside the repository')
    squad = json.loads((SHARED / 'xquad' / f'xquad.{lang}.json').read_text(encoding='utf-8'))
    pages = [p for article in squad['data'] for p in article['paragraphs']]
    assert not asked & {plain(q['question']) for p in pages for q in p['qas']}
    contexts = {plain(p['context']) for p in pages}
    assert not contexts & {plain(t.text) for t in texts_of(lang)}


@LANGS
def test_the_independent_check_finds_no_wrong_label(lang):
    report = check_meaning(list(make_written(600, lang, 5)))
    assert report.ok
    assert not report.not_judged
    assert report.judged['the value is in what is cited'] > 1000


def first_cited(ep: dict) -> int:
    return next(i for i, m in enumerate(ep['messages']) if m.get('cite'))


def cite_another(ep: dict):
    i = first_cited(ep)
    shown = re.findall(r'\((\S+\.md)\)', ep['messages'][0]['context'])
    ep['messages'][i]['cite'] = next(d for d in shown if d != ep['messages'][i]['cite'])


def abstain_from_an_answer(ep: dict):
    i = first_cited(ep)
    ep['messages'][i] = {'role': 'assistant', 'content': 'The passages do not say that.'}


def answer_with_other_words(ep: dict):
    ep['messages'][first_cited(ep)]['content'] = 'a brass band of eleven firemen'


@pytest.mark.parametrize('wrong', [cite_another, abstain_from_an_answer, answer_with_other_words])
def test_a_wrong_label_is_found(wrong):
    eps = list(make_written(20, 'en', 6, pages=(2, 3)))
    broken = [deepcopy(e) for e in eps if any(m.get('cite') for m in e['messages'])]
    for ep in broken:
        wrong(ep)
        ep['_meta']['expected'] = ep['messages'][-1]['content']
    lines = {f.line for f in check_meaning(broken).findings}
    assert lines == {*range(1, len(broken) + 1)}


@LANGS
def test_a_text_of_the_suite_is_in_no_training(lang):
    held = {t.doc_id for g in written_groups(lang) if held_out(g[0].title) for t in g}
    assert 12 <= len(held) < 0.15 * len(texts_of(lang))
    trained = ' '.join(e['messages'][0]['context'] for e in make_written(400, lang, 8))
    assert not [doc_id for doc_id in held if f'({doc_id})' in trained]
    cases = [c for c in load_suite('written') if lang in c.tags]
    shown = {d for c in cases for d in re.findall(r'\((\S+\.md)\)', str(c.episode))}
    assert len(cases) == 90
    assert shown <= held


@LANGS
def test_questions_are_spread_over_the_corpus(lang):
    eps = make_written(100, lang, 5, turns=(5,), brief=0.0)
    asked = [m['content'] for e in eps for m in e['messages'] if m['role'] == 'user']
    assert len(asked) == 500
    assert len({*asked}) == 500


def test_a_text_without_the_sentence_that_answers_is_silent():
    whole = {t.doc_id: t for t in texts_of('en')}
    answers = {q.text: q.answer for t in whole.values() for q in t.questions if q.answer}
    shorter = asked = 0
    for e in make_written(60, 'en', 7, silent=dict(left_open=1.0), shorter=1.0):
        lines = e['messages'][0]['context'].split('\n')
        shown = {m[1]: m[2] for m in (re.match(r'\[\d\] \((.*?)\) (.*)', x) for x in lines)}
        shorter += sum(text != whole[d].text for d, text in shown.items())
        assert not any(m.get('cite') for m in e['messages'])
        for question in (m['content'] for m in e['messages'] if m['role'] == 'user'):
            for answer in [a for q, a in answers.items() if q in question]:
                asked += 1
                assert not any(answer in text for text in shown.values())
    assert shorter > 60
    assert asked > 50


@LANGS
def test_every_form_of_silence_counts_as_one(lang):
    forms = phrasings(text_assets(f'written_{lang}.txt'))['silent']
    assert len(forms) >= 10
    assert not [form for form in forms if not gives_up(form)]


@LANGS
def test_thoughts_fit_one_text_as_well_as_four(lang):
    eps = list(make_written(80, lang, 4, pages=(1, 4), think=1.0))
    thoughts = [m['think'] for e in eps for m in e['messages'] if m.get('think')]
    assert len(thoughts) == sum(m['role'] == 'assistant' for e in eps for m in e['messages'])
    assert not [t for t in thoughts if re.search(r'\b1 (?:passages|Stellen)|[{}]', t)]


def test_a_sentence_that_points_back_is_not_an_answer_alone():
    leaning = re.compile(r'(?:It|He|She|They|This|Er|Es|Sie|Dieser|Damit|Dort)\b')
    for lang in ('en', 'de'):
        whole = {t.doc_id: t for t in texts_of(lang)}
        for ep in make_written(300, lang, 2, brief=0.0, shorter=0.0):
            for about, m in zip(ep['_meta']['abouts'], ep['messages'][1::2], strict=True):
                if m.get('cite') and m['content'] != about['value']:
                    first = whole[about['doc_id']].text.startswith(m['content'])
                    assert first or not leaning.match(m['content'])
    das = [t for t in texts_of('de') if t.text.startswith('Das ')]
    assert das and not any(_leans(t, t.text.partition('. ')[0]) for t in das)
    assert not _leans(das[0], 'Das Dach ist aus Kupfer.')


def test_half_ask_briefly_and_a_bare_piece_of_the_text_answers():
    turns = []
    for ep in make_written(800, 'mixed', 3):
        for about, m in zip(ep['_meta']['abouts'], ep['messages'][1::2], strict=True):
            turns.append((about, m))
    answered = [(about, m) for about, m in turns if m.get('cite')]
    brief = [m for about, m in answered if m['content'] == about['value']]
    whole = [m for about, m in answered if m['content'] == about['sentence'] != about['value']]
    assert len(brief) + len(whole) == len(answered)
    assert 0.45 < len(brief) / len(answered) < 0.7
    assert 0.67 < len(answered) / len(turns) < 0.73


def test_it_is_a_kind_of_its_own_with_a_suite():
    assert GENERATORS['written'] is make_written
    assert written_suites() == written_suites()
