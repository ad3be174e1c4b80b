"Yardsticks: the rules of the public scorers on hand-made cases, real files, the command line."

import json
import random
import re

import pytest
import torch

from mypt.cli import main
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.eval.bfcl import call_error, read_bfcl
from mypt.eval.leaks import check_leaks, find_leaks, held_texts
from mypt.eval.squad import ask_squad, exact_match, f1, normalise_answer, read_squad
from mypt.eval.suite import Responder
from mypt.eval.yardsticks import Yardstick
from mypt.model.checkpoint import save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT

TOK = get_tokenizer('byte')
END = '</myPT_assistant><myPT_eot>'


def says(answer) -> Responder:
    "A responder that answers the last message with what `answer` makes of it."

    def respond(histories, limit, to_turn_end):
        return [TOK.encode_with_tags(answer(h['messages'][-1])) for h in histories]

    return Responder(respond, TOK)


# what the scripts of SQuAD 1.1 (English) and MLQA (German) make of a text
NORMALISED = [
    ('en', 'The Cat', 'cat'),
    ('en', 'an apple a day', 'apple day'),
    ('en', "the Panthers' 24 points.", 'panthers 24 points'),
    ('en', 'theatre', 'theatre'),
    ('en', '$1,094.50', '109450'),
    ('en', 'well-known', 'wellknown'),
    ('en', '“quoted”', '“quoted”'),
    ('en', '  two   spaces\n', 'two spaces'),
    ('en', 'the', ''),
    ('de', 'Der Hund des Nachbarn', 'hund nachbarn'),
    ('de', 'eines der Länder', 'länder'),
    ('de', 'Die USA', 'usa'),
    ('de', '„Bild“-Zeitung', 'bildzeitung'),
    ('de', '1914–1918', '19141918'),
    ('de', 'keine Ahnung', 'keine ahnung'),
    ('de', 'Dieser', 'dieser'),
    ('de', 'the Who', 'the who'),
]


@pytest.mark.parametrize('lang, text, plain', NORMALISED)
def test_normalised_as_the_official_scripts_do(lang, text, plain):
    assert normalise_answer(text, lang) == plain


@pytest.mark.parametrize(
    'said, wanted, lang, em, shared',
    [
        ('308', ('308',), 'en', 1, 1),
        ('308 points', ('308',), 'en', 0, 2 / 3),
        ('It surrendered 308 points.', ('308',), 'en', 0, 0.4),
        ('Los Angeles Rams', ('Rams', 'the Los Angeles Rams'), 'en', 1, 1),
        ('a a a', ('the',), 'en', 1, 0),
        ('gold', ('silver', 'bronze'), 'en', 0, 0),
        ('den Bundestag', ('der Bundestag',), 'de', 1, 1),
        ('im Bundestag', ('der Bundestag',), 'de', 0, 2 / 3),
        ('x y x y', ('x y',), 'en', 0, 2 / 3),
    ],
)
def test_exact_match_and_f1(said, wanted, lang, em, shared):
    assert exact_match(said, wanted, lang) == em
    assert f1(said, wanted, lang) == pytest.approx(shared)


def function(required=('a',), **properties) -> dict:
    parameters = dict(type='dict', properties=properties, required=list(required))
    return dict(name='m.f', description='Does it.', parameters=parameters)


def kind(name: str, inner: str | None = None) -> dict:
    return dict(type=name) | (dict(items=dict(type=inner)) if inner else {})


# declared type, accepted values, given value, whether the public checker takes it
VALUES = [
    (kind('integer'), [5], 5, True),
    (kind('integer'), [5], 5.0, False),
    (kind('integer'), [5], '5', False),
    (kind('integer'), [1], True, False),
    (kind('float'), [5.0], 5, True),
    (kind('float'), [5], 5.0, True),
    (kind('float'), [0.5], 0.25, False),
    (kind('boolean'), [True], True, True),
    (kind('boolean'), [True], 1, False),
    (kind('string'), ['New York, NY'], 'new york ny', True),
    (kind('string'), ['April 1, 2024'], 'April 1 2024', True),
    (kind('string'), ["it's"], 'it"s', True),
    (kind('string'), ['a(b)'], 'ab', False),
    (kind('string'), ['x^2 + 3'], 'x**2+3', True),
    (kind('string'), ['metric', ''], '', True),
    (kind('array', 'integer'), [[1, 2]], [1, 2], True),
    (kind('array', 'integer'), [[1, 2]], [2, 1], False),
    (kind('array', 'integer'), [[1, 2]], ['1', '2'], False),
    (kind('array', 'float'), [[1, 2]], [1, 2], True),
    (kind('array', 'string'), [['Oslo', 'Rome']], ['oslo', 'rome'], True),
    (kind('array', 'string'), [['Oslo']], 'Oslo', False),
    (kind('tuple', 'float'), [[1.5, 2.0]], [1.5, 2.0], True),
    (kind('dict'), [dict(x=[1], y=['a', ''])], dict(x=1), True),
    (kind('dict'), [dict(x=[1], y=['a', ''])], dict(x=1, y='A'), True),
    (kind('dict'), [dict(x=[1], y=['a'])], dict(x=1), False),
    (kind('dict'), [dict(x=[1])], dict(x=1, z=2), False),
    (kind('array', 'dict'), [[dict(x=[1]), dict(x=[2])]], [dict(x=1), dict(x=2)], True),
    (kind('array', 'dict'), [[dict(x=[1]), dict(x=[2])]], [dict(x=2), dict(x=1)], False),
    (kind('array', 'dict'), [[dict(x=[1])]], [dict(x=1), dict(x=1)], False),
    (kind('any'), ['free text'], 'Free-text', True),
    (kind('integer'), ['size'], 'size', True),
    (kind('integer'), ['size'], 'Size', False),
]


@pytest.mark.parametrize('declared, accepted, given, right', VALUES)
def test_values_as_the_public_checker_judges_them(declared, accepted, given, right):
    wrong = call_error('m.f', dict(a=given), function(a=declared), {'m.f': dict(a=accepted)})
    assert (wrong is None) == right, wrong


@pytest.mark.parametrize(
    'name, arguments, wrong',
    [
        ('m.f', dict(a=1), None),
        ('m.f', dict(a=1, b='x'), None),
        ('m.f', dict(), 'a is missing'),
        ('m.f', dict(a=1, c=2), 'there is no argument c'),
        ('m.f', dict(a=1, d=2), 'there is no argument d'),
        ('m_f', dict(a=1), 'calls m_f, not m.f'),
    ],
)
def test_calls(name, arguments, wrong):
    described = function(a=kind('integer'), b=kind('string'), d=kind('integer'))
    assert call_error(name, arguments, described, {'m.f': dict(a=[1], b=['x', ''])}) == wrong


def test_an_argument_that_may_not_be_left_out():
    described = function(a=kind('integer'), b=kind('string'))
    wrong = call_error('m.f', dict(a=1), described, {'m.f': dict(a=[1], b=['x'])})
    assert wrong == 'b may not be left out'


def passage_heads(context: str) -> list[str]:
    return re.findall(r'^\[\d\] \(', context, re.M)


def test_a_passage_and_a_question_come_through_whole(tmp_path):
    "Two lines became one, and an indent was lost; an answer over a line break is still found."
    texts = ['It is long:\n\n    a  b\n', 'The North\nSea is wide.', 'Rivers flow.', 'All is well.']
    qas = [dict(id='q', question='  How\nwide? ', answers=[dict(text='north sea', answer_start=4)])]
    paragraphs = [dict(context=t, qas=qas if t == texts[0] else []) for t in texts]
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(data=[dict(title='T', paragraphs=paragraphs)])))
    passages, [question] = read_squad(path)
    assert [p.text for p in passages] == texts and question.text == '  How\nwide? '
    shown = []
    ask_squad(says(lambda message: shown.append(message['context']) or END), path)
    assert all('Sea' not in context for context in shown)
    paragraphs[0]['context'] = 7
    path.write_text(json.dumps(dict(data=[dict(title='T', paragraphs=paragraphs)])))
    with pytest.raises(UserError, match='not in the format of SQuAD \\(7 is not a text\\)'):
        read_squad(path)


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_xquad(shared_data, lang):
    "A reader that knows every answer is right where the passage is shown, and only there."
    path = shared_data / 'xquad' / f'xquad.{lang}.json'
    passages, questions = read_squad(path)
    assert (len(passages), len(questions)) == (240, 1190)
    known = {q.text: q for q in questions}
    shown = []

    def reader(message):
        shown.append(message['context'])
        question = next(known[t] for t in known if message['content'].startswith(t))
        if question.passage.text not in message['context']:
            return 'Das steht nicht im Kontext.' + END
        return f'{question.answers[0]}<myPT_cite>{question.passage.name}</myPT_cite>{END}'

    measures = {m.name: m for m in ask_squad(says(reader), path, limit=60).measures()}
    assert {name: m.rate for name, m in measures.items() if not m.less_is_better} == {
        'exact match': 1,
        'F1': 1,
        'holds the answer': 1,
        'cites': 1,
        'abstains without it': 1,
    }
    assert measures['abstains wrongly'].k == 0
    assert all(len(passage_heads(context)) == 3 for context in shown)


def test_no_stranger_holds_the_answer(shared_data):
    "Neither as it is written nor in other letters: else abstaining would be wrong."
    path = shared_data / 'xquad' / 'xquad.en.json'
    _, questions = read_squad(path)
    known = {q.text: q for q in questions}
    held = []

    def look(message):
        question = next(known[t] for t in known if message['content'].startswith(t))
        if question.passage.text not in message['context']:
            held.append(any(a.lower() in message['context'].lower() for a in question.answers))
        return END

    ask_squad(says(look), path, limit=100)
    assert len(held) == 100 and not any(held)


@pytest.mark.parametrize(
    'name, n', [('simple_python', 400), ('multiple', 200), ('irrelevance', 240)]
)
def test_bfcl(shared_data, name, n):
    "Every case is read; a call of the first accepted values is right, and a foreign name is not."
    cases = read_bfcl(shared_data / 'bfcl' / f'BFCL_v4_{name}.json')
    assert len(cases) == n
    for case in cases:
        assert all(f['name'] in case.episode['system'] for f in case.functions)
        if case.answer is None:
            continue
        ((called, accepted),) = case.answer.items()
        described = next(f for f in case.functions if f['name'] == called)
        arguments = {k: first(v) for k, v in accepted.items() if first(v) is not None}
        assert call_error(called, arguments, described, case.answer) is None
        assert call_error(called, arguments | dict(zzz=1), described, case.answer)


def first(accepted: list):
    "The first value that is accepted; None where only leaving it out is."
    value = next((a for a in accepted if a != ''), None)
    if isinstance(value, dict):
        return {k: first(v) for k, v in value.items() if first(v) is not None}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [first([v]) for v in value]
    return value


def test_several_calls_are_refused(shared_data):
    path = shared_data / 'bfcl' / 'BFCL_v4_multi_turn_base.json'
    with pytest.raises(UserError, match='not a case'):
        read_bfcl(path)


@pytest.fixture(scope='module')
def model(tmp_path_factory) -> str:
    "A model with random weights, for the way and not the numbers."
    torch.manual_seed(1)
    config = ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=8192)
    return str(save_checkpoint(tmp_path_factory.mktemp('m') / 'small', GPT(config), TOK))


def test_the_command_line(shared_data, model, tmp_path, capsys):
    squad = f'squad:{shared_data}/xquad/xquad.de.json'
    bfcl = f'bfcl:{shared_data}/bfcl/BFCL_v4_irrelevance.json'
    report = tmp_path / 'report.json'
    asked = ['--suite', squad, bfcl, 'echo', '--limit', '3', '--report', str(report)]
    assert main(['eval', '--model', model, '--device', 'cpu', *asked]) == 0
    said = capsys.readouterr().out
    assert 'squad:xquad.de.json' in said and 'exact match' in said and 'no call' in said
    kept = json.loads(report.read_text())
    assert [m['n'] for m in kept[squad]] == [3] * 6 and kept['echo']['n'] == 3


def test_a_gate_prints_yardsticks_beside_its_verdict(shared_data, model, tmp_path, capsys):
    squad = f'squad:{shared_data}/xquad/xquad.en.json'
    report = tmp_path / 'gate.json'
    asked = ['--model', model, '--phase', '1', '--limit', '4', '--device', 'cpu']
    assert main(['gate', *asked, '--yardsticks', squad, '--report', str(report)]) == 1
    said = capsys.readouterr().out
    assert said.index('gate of phase 1: NOT passed') < said.index('squad:xquad.en.json')
    kept = json.loads(report.read_text())
    names = [row['name'] for row in kept['suites']]
    assert 'exact match' not in names and kept['yardsticks']['squad:xquad.en.json'][1]['n'] == 4


@pytest.mark.parametrize(
    'spec, says_so',
    [
        ('squad:none.json', 'no such file'),
        ('squad:', 'not an ordinary file'),
        ('bfcl:none.json', 'none.json'),
    ],
)
def test_a_wrong_yardstick_is_told_before_the_model_is_loaded(spec, says_so, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=says_so):
        Yardstick(spec)


def test_leaks_in_the_command_line(shared_data, tmp_path, capsys):
    "A question in the middle of a user's message is found, and a file without one is clean."
    path = shared_data / 'xquad' / 'xquad.en.json'
    _, questions = read_squad(path)
    rng = random.Random(1)
    known = rng.sample([q.text for q in questions if len(q.text.split()) > 9], 3)
    lines = [
        dict(messages=[dict(role='user', content=f'Well, {q.lower()} Tell me.')]) for q in known
    ]
    leaky, clean = tmp_path / 'leaky.jsonl', tmp_path / 'clean.jsonl'
    leaky.write_text('\n'.join(map(json.dumps, lines)))
    clean.write_text(json.dumps(dict(text='Nothing of that kind was ever asked here.')))
    assert main(['leaks', str(leaky), '--against', f'squad:{path}']) == 1
    assert '3 of 1,190 questions' in capsys.readouterr().out
    assert main(['leaks', str(clean), '--against', f'squad:{path}', 'echo']) == 0
    assert '0 of 1,190 questions' in capsys.readouterr().out


def test_runs_of_words_are_found_however_they_are_cut():
    held = held_texts('regression_basics')
    long = [t.text for t in held if len(t.text.split()) >= 6]
    for text in long[:20]:
        words = text.split()
        assert find_leaks([f'so {" ".join(words)} yes'], held, 5).leaked
        assert not find_leaks([' '.join(words[::2])], held, 6).leaked


def test_leaks_need_a_file(tmp_path):
    with pytest.raises(UserError, match=r'no such file|not there'):
        check_leaks([str(tmp_path / 'none.jsonl')], ['echo'])
