"""Converters: rows of every set's true columns, good and bad, from memory, JSON and Parquet.

Real XQuAD and BFCL files are read where `../shared/data` is there.
"""

import json
import re
from collections import Counter
from itertools import count
import pytest
from mypt.cli import main
from mypt.data.episodes import check_episode, read_episodes
from mypt.data.language import guess_language
from mypt.data.serialize import check_order, parse, serialize, to_ids
from mypt.data.tokenizer import TAGS, get_tokenizer
from mypt.errors import UserError
from mypt.sources.chat import OPEN_TREES
from mypt.sources.convert import HUB, SOURCE_FORMS, convert, form_for
from mypt.sources.qa import QA, QA_SETS, squad_question, trivia_question
from mypt.sources.questions import dataset_questions
from mypt.sources.row_files import json_rows
from mypt.sources.rows import Skip, Tally
from mypt.sources.tool_calls import parse_calls
from mypt.sources.tool_schemas import json_schema_of, tools_of, typed
from mypt.sources.tools import share, split_context


def message(
    i, parent, role, text, rank=None, tree='t1', lang='en', deleted=False, review_result=True
):
    "A row with oasst2's columns."
    return dict(
        message_id=i,
        parent_id=parent,
        user_id='u',
        created_date='2023-02-05T14:23:50+00:00',
        text=text,
        role=role,
        lang=lang,
        review_count=3,
        review_result=review_result,
        deleted=deleted,
        rank=rank,
        synthetic=False,
        model_name=None,
        detoxify={'toxicity': 0.1, 'insult': 0.1},
        message_tree_id=tree,
        tree_state='ready_for_export',
        emojis={'name': ['+1'], 'count': [2]},
        labels={'name': ['quality'], 'value': [0.7], 'count': [3]},
    )


OASST = [
    message('t1', None, 'prompter', 'Why is the sky blue?'),
    message('a1', 't1', 'assistant', 'Because it is.', 1),
    message('a0', 't1', 'assistant', 'Air scatters blue light.', 0),
    message('p1', 'a1', 'prompter', 'Really?'),
    message('p0', 'a0', 'prompter', 'And at sunset?', 0),
    message('q1', 'p0', 'assistant', 'Deleted.', 0, deleted=True),
    message('q2', 'p0', 'assistant', 'Bad.', 1, review_result=False),
    message('q3', 'p0', 'assistant', 'The blue is gone by then.', 2),
    message('p9', 'q3', 'prompter', 'Thanks'),
    message('t2', None, 'prompter', 'Warum ist der Himmel blau?', tree='t2', lang='de'),
    message('d0', 't2', 'assistant', 'Wegen der Luft.', tree='t2', lang='de'),
    message('t3', None, 'prompter', '¿Por qué?', tree='t3', lang='es'),
    message('e0', 't3', 'assistant', 'Porque sí.', 0, tree='t3', lang='es'),
    message('t4', None, 'prompter', 'Nobody answers this', tree='t4'),
    message('x', 'gone', 'assistant', 'Orphan', 0, tree='t5'),
]

WEATHER = dict(
    name='get_weather',
    description='Weather of a city.',
    parameters=dict(
        type='object',
        required=['city'],
        properties=dict(
            city={'type': 'string'},
            days={'type': 'integer'},
            units={'type': 'string'},
            alerts={'type': 'boolean'},
        ),
    ),
)


def say(role, content=None, calls=None, functions=None):
    return dict(role=role, content=content, function_calls=calls, functions=functions)


DOLCI_TOOLS = [
    dict(
        id='d1',
        dataset_source='SimFC',
        messages=[
            say(
                'system',
                'You are a function-calling assistant. Output any function calls within '
                '<function_calls></function_calls> XML tags.',
                functions=json.dumps([WEATHER]),
            ),
            say('user', 'What will the weather be in Bonn and in Trier?'),
            say(
                'assistant',
                None,
                'get_weather(city="Bonn", days=3)\n'
                'get_weather(city="Trier, (old) town", alerts=true)',
            ),
            say('environment', '[{"sky": "grey"}, {"sky": "blue"}]'),
            say('assistant', 'It is grey in Bonn and blue in Trier.'),
        ],
    ),
    dict(
        id='d2',
        dataset_source='x',
        messages=[
            say(
                'system',
                'You help.',
                functions=json.dumps([{'type': 'function', 'function': WEATHER}]),
            ),
            say('user', 'What is the weather in Kiel?'),
            say(
                'assistant',
                '<function_calls><invoke name="get_weather"><parameter name="city">007</parameter>'
                '<parameter name="days">3</parameter></invoke></function_calls>',
            ),
        ],
    ),
    dict(
        id='d3',
        dataset_source='x',
        messages=[
            say('system', '', functions=json.dumps([WEATHER])),
            say('user', 'Tell me what the time is.'),
            say('assistant', None, 'get_time()'),
        ],
    ),
    dict(
        id='d4',
        dataset_source='x',
        messages=[
            say('system', '', functions=json.dumps([WEATHER])),
            say('user', 'What is it like in Ulm?'),
            say('assistant', None, 'get_weather(days=2)'),
        ],
    ),
    dict(
        id='d5',
        dataset_source='x',
        messages=[say('user', 'Say that it is fine.'), say('assistant', None, None)],
    ),
    dict(
        id='d6',
        dataset_source='x',
        messages=[say('user', 'Is this a talk without tools?'), say('assistant', 'Yes, it is.')],
    ),
]

GERMAN_TOOLS = [
    dict(
        System='SYSTEM: Du bist ein hilfreicher Assistent mit Zugriff auf die folgenden '
        'Funktionen. Benutze sie bei Bedarf -\n' + json.dumps(WEATHER),
        Chat='USER: Wie wird das Wetter in Köln? Und was heißt ASSISTANT: hier?\n\n\n'
        'ASSISTANT: <functioncall> {"name": "get_weather", '
        '"arguments": \'{"city": "Köln", "days": "2"}\'} <|endoftext|>\n\n\n'
        'FUNCTION RESPONSE: {"sky": "grau"}\n\n\nASSISTANT: Es wird grau. <|endoftext|>',
    ),
    dict(
        System='SYSTEM: Du hast keine Funktionen.',
        Chat='USER: Wie geht es dir?\n\n\nASSISTANT: Mir geht es gut, und dir? <|endoftext|>',
    ),
    dict(
        System='SYSTEM: Du bist da.',
        Chat='USER: Was ist das?\n\n\nASSISTANT: <functioncall> das ist kaputt <|endoftext|>',
    ),
    dict(System='SYSTEM: Du bist da.', Chat='Was ist das?'),
]

RAG = [
    dict(
        system='Du antwortest nur mit dem Kontext.',
        tools='',
        conversations=[
            {
                'from': 'human',
                'value': 'Kontext 1: Der Fuchs lebt im Wald.\nKontext 2: Die Eule ist wach.\n\n'
                'Frage: Wo lebt der Fuchs?',
            },
            {'from': 'gpt', 'value': 'Er lebt im Wald.'},
        ],
    ),
    dict(system='', tools='', conversations=[{'from': 'human', 'value': 'Was ist das?'}]),
    dict(system='', tools='', conversations=[{'from': 'owl', 'value': 'Was ist das?'}]),
]

ALPACA = [
    dict(
        instruction='What is the capital of the country?',
        input='France',
        output='The capital is Paris.',
        text='…',
    ),
    dict(instruction='What is it?', input='', output='', text='…'),
    dict(instruction=None, input='', output='It is a fox.', text='…'),
]
ALPACA_DE = [
    dict(instruction='Nenne die Farben der Ampel.', input='', output='Rot, gelb und grün.'),
    dict(instruction='Was ist das?', input='', output=' '),
]
DOLLY = [
    dict(
        instruction='Where does the fox live?',
        context='The fox lives\nin the forest.',
        response='In the forest.',
        category='closed_qa',
    ),
    dict(instruction='Name a colour of the sky.', context='', response='Blue.', category='open_qa'),
    dict(instruction='Name it.', context='', response='', category='open_qa'),
]
MESSAGES = [
    dict(
        id='m1',
        source='x',
        messages=[say('user', 'What is the plural of mouse?'), say('assistant', 'It is mice.')],
    ),
    dict(
        id='m2',
        source='x',
        messages=[
            say('user', 'Quelle est la capitale de la France ?'),
            say('assistant', 'Paris, bien sûr.'),
        ],
    ),
    dict(
        id='m3',
        source='x',
        messages=[
            say('user', 'Say what it is.'),
            say('user', 'Say it to me.'),
            say('assistant', 'It is a fox.'),
        ],
    ),
]

CHAT = {  # hub name: (rows, episodes, a reason among those given or None)
    'OpenAssistant/oasst2': (OASST, 2, 'deleted'),
    'tatsu-lab/alpaca': (ALPACA, 1, 'output is empty'),
    'vicgalle/alpaca-gpt4': (ALPACA, 1, 'instruction is missing'),
    'mayflowergmbh/alpaca-gpt4_de': (ALPACA_DE, 1, 'output is empty'),
    'LeoLM/OpenSchnabeltier': (
        [dict(instruction='Say it.', output='It.', instruction_de='Sag es.', output_de='Es.')],
        1,
        None,
    ),
    'mayflowergmbh/ultra-chat_de': (
        [
            dict(
                instruction='Wie geht es?',
                input='',
                output='Gut.',
                history=[['Hallo', 'Guten Tag']],
            )
        ],
        1,
        None,
    ),
    'allenai/Dolci-Instruct-SFT': (MESSAGES, 1, 'language unknown was not asked for'),
    'allenai/Dolci-Instruct-SFT-Tool-Use': (DOLCI_TOOLS, 3, 'a call of a tool that is not offered'),
    'flozi00/german-function-calling': (GERMAN_TOOLS, 2, 'a call in a notation that is not known'),
    'avemio/German-RAG-SFT-ShareGPT-HESSIAN-AI': (RAG, 1, "a role that is not known, 'owl'"),
    'databricks/databricks-dolly-15k': (DOLLY, 2, 'response is empty'),
}

QA_ROWS = {
    'rajpurkar/squad_v2': [
        dict(
            id='s1',
            title='Foxes',
            context='The fox lives in the forest.',
            question='Where?',
            answers={'text': ['the forest'], 'answer_start': [17]},
        ),
        dict(
            id='s2',
            title='Foxes',
            context='The fox lives in the forest.',
            question='When?',
            answers={'text': [], 'answer_start': []},
        ),
        dict(
            id='s3',
            title='Foxes',
            context='The fox lives in the forest.',
            question='Who?',
            answers={'text': ['an owl'], 'answer_start': [0]},
        ),
    ],
    'deepset/germanquad': [
        dict(
            id=7,
            context='Der_Fuchs\n\n=== Leben ===\nDer Fuchs lebt im Wald.',
            question='Wo lebt er?',
            answers={'text': ['im Wald'], 'answer_start': [38]},
        )
    ],
    'hotpotqa/hotpot_qa': [
        dict(
            id='h1',
            question='Where was the author born?',
            answer='Steventon',
            type='bridge',
            level='easy',
            supporting_facts={'title': ['Emma', 'Austen'], 'sent_id': [0, 0]},
            context={
                'title': ['Emma', 'Ohm', 'Austen'],
                'sentences': [['Emma is by Austen.'], ['A unit.'], ['Born in', ' Steventon.']],
            },
        )
    ],
    'dgslibisey/MuSiQue': [
        dict(
            id='2hop__1',
            question='Who?',
            answer='Ann',
            answer_aliases=['Anne'],
            answerable=True,
            question_decomposition=[],
            paragraphs=[
                dict(idx=0, title='A', paragraph_text='Ann did.', is_supporting=True),
                dict(idx=1, title='B', paragraph_text='No.', is_supporting=False),
            ],
        ),
        dict(
            id='2hop__2',
            question='Who else?',
            answer='Ann',
            answer_aliases=[],
            answerable=False,
            question_decomposition=[],
            paragraphs=[dict(idx=0, title='B', paragraph_text='No.', is_supporting=False)],
        ),
    ],
    'microsoft/ms_marco': [
        dict(
            query_id=1,
            query='what is ohm',
            query_type='DESCRIPTION',
            answers=['A unit'],
            wellFormedAnswers=['An ohm is a unit.'],
            passages={
                'is_selected': [0, 1],
                'passage_text': ['Nothing.', 'Ohm is a unit.'],
                'url': ['http://a.example', 'http://b.example'],
            },
        ),
        dict(
            query_id=2,
            query='what is it',
            query_type='ENTITY',
            answers=['No Answer Present.'],
            wellFormedAnswers=[],
            passages={
                'is_selected': [0],
                'passage_text': ['Nothing.'],
                'url': ['http://a.example'],
            },
        ),
    ],
    'mandarjoshi/trivia_qa': [
        dict(
            question='Which film?',
            question_id='tc_1',
            question_source='http://t.example',
            entity_pages={
                'doc_source': ['x'],
                'filename': ['G.txt'],
                'title': ['Guns'],
                'wiki_context': [
                    'word ' * 3000 + 'The Guns of Navarone is a film. ' + 'word ' * 3000
                ],
            },
            search_results={
                'description': [],
                'filename': [],
                'rank': [],
                'title': [],
                'url': [],
                'search_context': [],
            },
            answer={
                'aliases': ['The Guns of Navarone'],
                'value': 'Guns of Navarone',
                'type': 'WikipediaEntity',
            },
        ),
        dict(
            question='Which?',
            question_id='tc_2',
            question_source='http://t.example',
            entity_pages={
                'doc_source': ['x'],
                'filename': ['G.txt'],
                'title': ['G'],
                'wiki_context': ['Not here.'],
            },
            search_results={
                'description': [],
                'filename': [],
                'rank': [],
                'title': [],
                'url': [],
                'search_context': [],
            },
            answer={'aliases': ['Zulu'], 'value': 'Zulu', 'type': 'X'},
        ),
    ],
}


def run(rows, form='', **kw):
    "Episodes and books of rows in memory; the books balance and every episode is legal."
    tally = Tally('t', **kw)
    eps = list(form_for(rows[0], form)(iter(rows), tally))
    assert tally.read == len(rows) == tally.used + sum(tally.reasons.values())
    return checked(eps), tally.reasons


def checked(eps):
    tok = get_tokenizer('byte')
    for e in eps:
        assert check_episode(e) == e
        check_order(e['messages'])
        back = parse(to_ids(serialize(e), tok), tok)
        assert [m['role'] for m in back['messages']] == [m['role'] for m in e['messages']]
    return eps


def roles(ep):
    return [m['role'] for m in ep['messages']]


def books(out: str):
    "(rows read, rows rejected, share used) as printed."
    read = int(re.search(r'of ([\d,]+) rows?', out)[1].replace(',', ''))
    return (
        read,
        sum(int(n.replace(',', '')) for n in re.findall(r'^  ([\d,]+) rows?', out, re.M)),
        float(re.search(r'([\d.]+)% of', out)[1]),
    )


def write_parquet(path, rows):
    datasets = pytest.importorskip('datasets')
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(str(path))


# --- each set from a mirror


@pytest.mark.parametrize('kind', ['parquet', 'jsonl', 'json'])
@pytest.mark.parametrize('name', CHAT)
def test_every_chat_set_from_a_mirror(name, kind, tmp_path, capsys, monkeypatch):
    rows, n, reason = CHAT[name]
    folder = tmp_path / 'mirror' / name
    if kind == 'parquet':
        write_parquet(folder / 'data' / 'train-00000-of-00001.parquet', rows)
    else:
        folder.mkdir(parents=True)
        text = '\n'.join(map(json.dumps, rows)) if kind == 'jsonl' else json.dumps(rows, indent=2)
        (folder / f'train.{kind}').write_text(text, encoding='utf-8')
    monkeypatch.setenv('MYPT_DATA_MIRROR', str(tmp_path / 'mirror'))
    assert convert(name, str(tmp_path / 'out.jsonl'), languages=['en', 'de']) == n
    out = capsys.readouterr().out
    eps = checked(read_episodes(tmp_path / 'out.jsonl'))
    assert (
        len(eps) == n
        and {e['source'] for e in eps} == {name}
        and all(e['language'] in ('en', 'de') for e in eps)
    )
    assert reason is None or reason in out
    read, rejected, share = books(out)
    used = 6 if name.endswith('oasst2') else n
    assert read == len(rows) == used + rejected and share == round(100 * used / read, 1)


@pytest.mark.parametrize('kind', ['parquet', 'jsonl'])
@pytest.mark.parametrize('name', QA_SETS)
def test_every_question_set_from_a_mirror(name, kind, tmp_path):
    rows, config = QA_ROWS[name], HUB[name].config
    folder = tmp_path / 'mirror' / name / config
    if kind == 'parquet':
        write_parquet(folder / 'train-00000-of-00001.parquet', rows)
    else:
        folder.mkdir(parents=True)
        (folder / 'train.jsonl').write_text('\n'.join(map(json.dumps, rows)), encoding='utf-8')
    tally = Tally(name)
    qs = list(dataset_questions(name, tally, mirror=str(tmp_path / 'mirror')))
    assert tally.read == len(rows) == len(qs) + sum(tally.reasons.values()) and qs
    for q in qs:
        assert (
            q.question
            and all(t and text for t, text in q.passages)
            and q.language == ('de' if 'german' in name else 'en')
        )
        assert bool(q.answers) == bool(q.gold) and all(0 <= i < len(q.passages) for i in q.gold)
        if q.gold and len(q.gold) == 1:
            assert any(a.lower() in q.passages[q.gold[0]][1].lower() for a in q.answers)
    n = convert(name, str(tmp_path / 'out.jsonl'), mirror=str(tmp_path / 'mirror'))
    eps = checked(read_episodes(tmp_path / 'out.jsonl'))
    assert n == len(eps) == len(qs) and all('context' in e['messages'][0] for e in eps)


# --- what the episodes say


def test_oasst_follows_the_best_ranked_branch():
    eps, why = run(OASST, languages=('en', 'de'))
    assert [m['content'] for m in eps[0]['messages']] == [
        'Why is the sky blue?',
        'Air scatters blue light.',
        'And at sunset?',
        'The blue is gone by then.',
    ]
    assert [e['language'] for e in eps] == ['en', 'de']
    assert why == {
        'not on the best-ranked branch': 2,
        'deleted': 1,
        'failed its review': 1,
        'a prompt that no one answered': 2,
        'language es was not asked for': 2,
        'its tree has no first prompt': 1,
    }


def test_oasst_without_languages_takes_all():
    eps, why = run(OASST)
    assert [e['language'] for e in eps] == ['en', 'de', 'es'] and why[
        'its tree has no first prompt'
    ] == 1


def test_oasst_rows_in_any_order_and_mixed_trees():
    eps, _ = run(OASST[::-1], languages=('en', 'de'))
    assert {e['id']: [m['content'] for m in e['messages']][-1] for e in eps} == {
        't1': 'The blue is gone by then.',
        't2': 'Wegen der Luft.',
    }
    many = [
        m
        for i in range(3 * OPEN_TREES)
        for m in (
            message(f'p{i}', None, 'prompter', f'What is {i}?', tree=f'p{i}'),
            message(f'a{i}', f'p{i}', 'assistant', f'It is {i}.', 0, tree=f'p{i}'),
        )
    ]
    assert [e['id'] for e in run(many)[0]] == [f'p{i}' for i in range(3 * OPEN_TREES)]
    spread = many[::2] + many[1::2]  # every answer stands far behind its prompt
    assert run(spread, form='oasst')[1]['its tree has no first prompt'] > OPEN_TREES


def test_oasst_survives_a_message_that_is_its_own_ancestor():
    rows = [
        message('a', None, 'prompter', 'Hi'),
        message('b', 'a', 'assistant', 'Ho', 0),
        message('a', 'b', 'prompter', 'Hi'),
        message('z', 'z', 'assistant', 'Self', 0),
    ]
    assert [m['content'] for m in run(rows)[0][0]['messages']] == ['Hi', 'Ho']


def test_dolci_calls_are_all_kept_and_typed():
    eps, why = run(DOLCI_TOOLS)
    assert roles(eps[0]) == [
        'user',
        'assistant_toolcall',
        'toolresult',
        'assistant_toolcall',
        'toolresult',
        'assistant',
    ]
    m = eps[0]['messages']
    assert m[1]['arguments'] == {'city': 'Bonn', 'days': 3} and m[3]['arguments'] == {
        'city': 'Trier, (old) town',
        'alerts': True,
    }
    assert (m[2]['content'], m[4]['content']) == ({'sky': 'grey'}, {'sky': 'blue'})
    assert (
        '"get_weather"' in eps[0]['system']
        and 'XML' not in eps[0]['system']
        and '<' not in eps[0]['system']
    )
    assert eps[1]['messages'][1]['arguments'] == {
        'city': '007',
        'days': 3,
    }  # the schema says string, then integer
    assert roles(eps[2]) == ['user', 'assistant'] and 'system' not in eps[2]
    assert why == {
        'a call of a tool that is not offered': 1,
        'a call without a required argument': 1,
        'an empty answer': 1,
    }


def test_openai_tool_calls_and_several_results():
    row = dict(
        tools=[{'type': 'function', 'function': WEATHER}],
        messages=[
            dict(role='user', content='What is the weather in Bonn and in Trier?'),
            dict(
                role='assistant',
                content='I will look.',
                tool_calls=[
                    dict(
                        type='function',
                        id='1',
                        function=dict(name='get_weather', arguments='{"city": "Bonn"}'),
                    ),
                    dict(
                        type='function',
                        id='2',
                        function=dict(name='get_weather', arguments='{"city": "Trier"}'),
                    ),
                ],
            ),
            dict(role='tool', content='grey'),
            dict(role='tool', content='["blue"]'),
            dict(role='assistant', content='It is grey and blue.'),
        ],
    )
    m = run([row])[0][0]['messages']
    assert (
        m[1]['think'] == 'I will look.'
        and 'think' not in m[3]
        and (m[2]['content'], m[4]['content']) == ('grey', {'result': ['blue']})
    )


@pytest.mark.parametrize(
    'messages, reason',
    [
        (
            [say('user', 'Say it.'), say('environment', '{}'), say('assistant', 'It is.')],
            'a result without a call',
        ),
        (
            [say('user', 'Say it.'), say('assistant', None, 'f()'), say('assistant', 'It is.')],
            'a call without a result before the end',
        ),
        (
            [say('user', 'Say it.'), say('assistant', None, 'f(1, a=2)')],
            'arguments with and without names',
        ),
        (
            [say('user', 'Say it.'), say('assistant', None, 'f(a=open("x"))')],
            'an argument that is not a value',
        ),
        ([say('user', 'Say it.'), say('assistant', None, 'f(a="x')], 'a call that does not end'),
        (
            [say('user', 'Say it.'), say('assistant', 'It is.'), say('user', 'And that?')],
            'messages[…]: an episode ends with the assistant; add its answer',
        ),
        ([say('assistant', 'It is.')], None),
        ([], 'no messages'),
        ('text', None),
    ],
)
def test_bad_talks_are_rejected_with_a_reason(messages, reason):
    eps, why = run([dict(messages=messages)])
    assert eps == [] and (reason in why if reason else len(why) == 1), why


def test_german_calls_are_mapped():
    eps, why = run(GERMAN_TOOLS, language='de')
    m = eps[0]['messages']
    assert (
        roles(eps[0]) == ['user', 'assistant_toolcall', 'toolresult', 'assistant']
        and 'ASSISTANT: hier?' in m[0]['content']
    )
    assert (m[1]['name'], m[1]['arguments'], m[2]['content']) == (
        'get_weather',
        {'city': 'Köln', 'days': 2},
        {'sky': 'grau'},
    )
    assert not any('functioncall' in json.dumps(e) or 'endoftext' in json.dumps(e) for e in eps)
    assert why == {
        'a call in a notation that is not known': 1,
        'a dialogue that does not begin with a speaker': 1,
    }


def test_german_rag_context_becomes_context():
    eps, _ = run(RAG, 'german_rag')
    user = eps[0]['messages'][0]
    assert user['content'] == 'Wo lebt der Fuchs?'
    assert (
        user['context']
        == '[1] (passage_1.md) Der Fuchs lebt im Wald.\n[2] (passage_2.md) Die Eule ist wach.'
    )
    assert split_context('### Frage: Wo?\n**Kontext:** Hier.') == ('Wo?', ['Hier.'])
    assert split_context('Was heißt Kontext: hier?') == ('Was heißt Kontext: hier?', [])


def test_instructions():
    assert (
        run(ALPACA)[0][0]['messages'][0]['content']
        == 'What is the capital of the country?\n\nFrance'
    )
    assert roles(run(CHAT['mayflowergmbh/ultra-chat_de'][0])[0][0]) == ['user', 'assistant'] * 2
    assert run(CHAT['LeoLM/OpenSchnabeltier'][0])[0][0]['messages'][1]['content'] == 'Es.'
    dolly = run(DOLLY)[0]
    assert dolly[0]['messages'][0]['context'] == '[1] (passage.md) The fox lives\nin the forest.'
    assert dolly[0]['messages'][1]['cite'] == 'passage.md'
    assert 'context' not in dolly[1]['messages'][0]


def test_tags_in_the_data_stay_text():
    rows = [
        dict(
            instruction=' '.join(TAGS),
            input='',
            output='The tag </myPT_assistant><myPT_eot> is text.',
        )
    ]
    ids = to_ids(serialize(run(rows)[0][0]), tok := get_tokenizer('gpt2'))
    blocks = [f'<{slash}myPT_{name}>' for name in ('user', 'assistant') for slash in ('', '/')]
    assert Counter(map(tok.token_str, filter(tok.is_tag, ids))) == Counter([*blocks, '<myPT_eot>'])
    talk = dict(
        messages=[
            say('user', 'What is the tag <tool_call>?'),
            say('assistant', 'It is <tool_call>{"name": "f"}</tool_call>, in the text.'),
        ]
    )
    assert roles(run([talk])[0][0]) == ['user', 'assistant']


PASSAGE = ' Two lines:\r\n\n\tfor x in y:\n\t\tf(x)  # twice \u00a0\n'
WHOLE = {  # as a passage, and as the answer where it is a text of its own
    'hotpot': dict(
        question=PASSAGE,
        answer=PASSAGE,
        supporting_facts={'title': ['A\nB'], 'sent_id': [0]},
        context={'title': ['A\nB', 'C'], 'sentences': [[PASSAGE, PASSAGE], ['No.']]},
    ),
    'musique': dict(
        question=PASSAGE,
        answer=PASSAGE,
        paragraphs=[dict(title='A\nB', paragraph_text=PASSAGE, is_supporting=True)],
    ),
    'marco': dict(
        query=PASSAGE,
        answers=[PASSAGE],
        passages={'is_selected': [1], 'passage_text': [PASSAGE], 'url': ['http://a.example']},
    ),
    'trivia': dict(
        question=PASSAGE,
        answer=dict(value='x in\ny:', aliases=[]),
        entity_pages={'title': ['A\nB'], 'wiki_context': [PASSAGE]},
        search_results={'title': [], 'search_context': []},
    ),
}


@pytest.mark.parametrize('form', WHOLE)
def test_passages_questions_and_answers_come_through_whole(form):
    "They were pressed to one line each."
    row = WHOLE[form]
    q = QA[form](row, 'en')
    text = PASSAGE * 2 if form == 'hotpot' else PASSAGE
    assert q.question == PASSAGE and q.passages[0][1] == text and q.gold == (0,)
    assert q.answers == (('x in\ny:',) if form == 'trivia' else (PASSAGE,))
    assert '\n' not in q.passages[0][0]  # a name, by which it is cited
    (ep,), reasons = run([row], form)
    user, answer = ep['messages']
    assert f') {text}' in user['context'] and user['content'] == PASSAGE and not reasons
    assert answer['content'] == q.answers[0] and answer['cite'] in user['context']


def test_an_answer_is_found_over_a_line_break():
    page = 'word\n' * 3000 + 'The Guns of\n  Navarone is\ta film. ' + 'word  ' * 3000
    row = WHOLE['trivia'] | dict(answer=dict(value='guns of navarone', aliases=['', ' ']))
    q = trivia_question(row | dict(entity_pages={'title': ['G'], 'wiki_context': [page]}))
    text = q.passages[0][1]
    assert q.answers == ('guns of navarone',) and len(text) <= 6000
    assert text in page and 'Guns of\n  Navarone is\ta film. word  word' in text


def test_a_title_line_is_taken_off_and_the_rest_stays():
    context = 'Der_Fuchs\n\n  == Leben ==\nDer Fuchs lebt\nim Wald. '
    row = dict(context=context, question='Wo?', answers={'text': ['lebt im Wald']})
    q = squad_question(row, 'de')
    assert q.passages == (('Der Fuchs', '  == Leben ==\nDer Fuchs lebt\nim Wald. '),)


def test_the_first_indent_of_a_passage_stays():
    text = 'Frage: Was tut es?\nKontext:\n\n    for x in y:\n        f(x)\n\n'
    assert split_context(text) == ('Was tut es?', ['    for x in y:\n        f(x)'])


def test_trivia_is_cut_around_the_answer():
    q = trivia_question(QA_ROWS['mandarjoshi/trivia_qa'][0])
    assert len(q.passages[0][1]) <= 6000 and 'Guns of Navarone' in q.passages[0][1]


# --- notations


@pytest.mark.parametrize(
    'text, want',
    [
        ('f()', {}),
        ('[f(a=1), ]', {'a': 1}),
        (
            "f(a='x, \\'y\\' (z)', b=[1, {'k': None}], c=-2.5)",
            {'a': "x, 'y' (z)", 'b': [1, {'k': None}], 'c': -2.5},
        ),
        ('f(class="x", b=true, c=null)', {'class': 'x', 'b': True, 'c': None}),
        ('{"name": "f", "arguments": {"a": 1}}', {'a': 1}),
        ('{"name": "f", "parameters": "{\\"a\\": [1]}"}', {'a': [1]}),
        ('<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>', {'a': 'é'}),
        ('<function=f><parameter=a>\n{"k": 1}\n</parameter></function>', {'a': {'k': 1}}),
        ('<f><a>true</a><b>x &lt; y</b></f>', {'a': True, 'b': 'x < y'}),
        ('<function_calls>\nf(a="1==2")\n</function_calls>', {'a': '1==2'}),
    ],
)
def test_notations_of_calls(text, want):
    assert parse_calls(text) == [('f', want)]


def test_several_calls_in_every_notation():
    for text in (
        'f(a=1)\ng(a=2)',
        'f(a=1); g(a=2)',
        '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {"a": 2}}]',
        '{"name": "f", "arguments": {"a": 1}}\n{"name": "g", "arguments": {"a": 2}}',
        '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>\n'
        '<tool_call>{"name": "g", "arguments": {"a": 2}}</tool_call>',
        '<function_calls><invoke name="f"><parameter name="a">1</parameter></invoke>'
        '<invoke name="g"><parameter name="a">2</parameter></invoke></function_calls>',
    ):
        assert parse_calls(text) == [('f', {'a': 1}), ('g', {'a': 2})], text


@pytest.mark.parametrize(
    'v, schema, want',
    [
        ('3', 'integer', 3),
        (3.0, 'int', 3),
        (3, 'float', 3),
        (12345, 'str', '12345'),
        ('True', 'bool', True),
        ('[1]', 'list', [1]),
        (None, 'string', None),
        ('x', 'any', 'x'),
        ('{"a": 1}', 'HashMap', {'a': 1}),
    ],
)
def test_arguments_get_their_types(v, schema, want):
    assert typed(v, {'type': schema}) == want and type(typed(v, {'type': schema})) is type(want)


def test_arguments_that_do_not_fit():
    for v, t in (
        ('three', 'integer'),
        (1.5, 'integer'),
        ([], 'object'),
        ({}, 'string'),
        (True, 'integer'),
    ):
        with pytest.raises(Skip):
            typed(v, {'type': t})
    assert typed(
        [{'n': '1'}],
        {'type': 'array', 'items': {'type': 'dict', 'properties': {'n': {'type': 'int'}}}},
    ) == [{'n': 1}]


def test_schemas_become_json_schema():
    s = json_schema_of(
        {
            'type': 'dict',
            'properties': {
                'a': {'type': 'tuple', 'items': {'type': 'float'}},
                'type': {'type': 'str'},
            },
            'required': ['a'],
        }
    )
    assert s == {
        'type': 'object',
        'properties': {
            'a': {'type': 'array', 'items': {'type': 'number'}},
            'type': {'type': 'string'},
        },
        'required': ['a'],
    }
    assert (
        tools_of('{"name": "f"}\n\n{"name": "g"}').keys() == {'f', 'g'}
        and tools_of('no json') == {}
        and tools_of(None) == {}
    )


def test_results_are_shared_out():
    assert share(['1\n2'], 2) == ['1', '2'] and share(['a\nb'], 2) == ['a', 'b']
    for results, n in ((['all of it, at once'], 3), (['a', 'b'], 3), ([], 2)):
        with pytest.raises(Skip, match=f'{n} calls and {len(results)} results'):
            share(results, n)  # nothing is made up


def test_languages():
    assert [
        guess_language(s)
        for s in (
            'Das ist der Anfang von allem.',
            'This is the start of it all.',
            'こんにちは',
            '',
            'int main() {}',
        )
    ] == ['de', 'en', '', '', '']


# --- files, mirrors, errors


def test_json_in_every_layout(tmp_path):
    rows = [{'i': i, 'text': f'}}]," {i} \n' * 9, 'deep': [[i]]} for i in range(4000)]
    for name, text in (
        ('a.json', json.dumps(rows)),
        ('b.json', json.dumps(rows, indent=1)),
        ('c.jsonl', '\n'.join(map(json.dumps, rows))),
        ('d.json', '\ufeff' + '\n'.join(map(json.dumps, rows))),
        ('e.json', ' \n[\n' + ',\n'.join(map(json.dumps, rows)) + '\n]\n'),
        ('f.json', json.dumps({'version': '1', 'data': rows})),
    ):
        (tmp_path / name).write_text(text, encoding='utf-8')
        assert list(json_rows(tmp_path / name)) == rows, name
    (tmp_path / 'g.json').write_text('[1, 22, 333]')
    assert list(json_rows(tmp_path / 'g.json')) == [1, 22, 333]
    (tmp_path / 'cut.json').write_text(json.dumps(rows)[:-9])
    with pytest.raises(UserError, match='a list without its end'):
        list(json_rows(tmp_path / 'cut.json'))


def test_broken_lines_are_counted(tmp_path, capsys):
    (tmp_path / 'a.jsonl').write_text(
        'nope\n' + '\n'.join(map(json.dumps, ALPACA)) + '\n[1]\n{"cut'
    )
    assert convert(str(tmp_path / 'a.jsonl'), str(tmp_path / 'o.jsonl')) == 1
    out = capsys.readouterr().out
    assert (
        '2 rows: a line that is not JSON' in out
        and '1 row: not an object' in out
        and books(out)[:2] == (6, 5)
    )


def test_max_examples_does_not_read_the_rest():
    class Stop(Exception):
        pass

    seen = []

    def endless():
        for i in count():
            if i > 500:
                raise Stop
            seen.append(i)
            yield ALPACA[0]

    tally = Tally('t')
    eps = form_for(ALPACA[0])(endless(), tally)
    assert [next(eps) for _ in range(5)] and len(seen) == 5 and tally.read == tally.used == 5


@pytest.mark.parametrize('name', ['tatsu-lab/alpaca', 'OpenAssistant/oasst2'])
def test_max_examples_and_the_books(name, tmp_path, capsys):
    rows = (
        [dict(ALPACA[0])] * 50
        if 'alpaca' in name
        else [
            m
            for i in range(90)
            for m in (
                message(f'p{i}', None, 'prompter', 'What is it?', tree=f'p{i}'),
                message(f'a{i}', f'p{i}', 'assistant', 'It.', 0, tree=f'p{i}'),
            )
        ]
    )
    write_parquet(tmp_path / name / 'data' / 'train-00000-of-00001.parquet', rows)
    assert (
        convert(name, str(tmp_path / 'o.jsonl'), max_examples=3, mirror=str(tmp_path))
        == 3
        == len(read_episodes(tmp_path / 'o.jsonl'))
    )
    read, rejected, _ = books(capsys.readouterr().out)
    assert read < len(rows) and read - rejected == (3 if 'alpaca' in name else 6)


def test_several_shards_and_splits(tmp_path):
    name = 'mayflowergmbh/alpaca-gpt4_de'
    for i in range(2):
        write_parquet(
            tmp_path / name / 'data' / f'train-0000{i}-of-00002.parquet', ALPACA_DE[:1] * (i + 1)
        )
    write_parquet(tmp_path / name / 'data' / 'test-00000-of-00001.parquet', ALPACA_DE[:1] * 5)
    args = dict(mirror=str(tmp_path), output=str(tmp_path / 'o.jsonl'))
    assert convert(name, **args) == 3 and convert(name, split='test', **args) == 5
    with pytest.raises(UserError, match=r"no split 'validation'; choose test, train with --split"):
        convert(name, split='validation', **args)
    assert (
        convert(str(tmp_path / name), str(tmp_path / 'o2.jsonl')) == 3
    )  # the folder itself, by its columns


@pytest.mark.parametrize(
    'args, said',
    [
        (dict(dataset='OpenAssistant/oast2'), "did you mean 'OpenAssistant/oasst2'"),
        (dict(dataset='nowhere.json'), 'no such file, folder or known data set'),
        (
            dict(dataset='tatsu-lab/alpaca', mirror='m'),
            'not in the mirror m; it holds OpenAssistant/oasst2',
        ),
        (
            dict(dataset='rows.jsonl', format='alpaca'),
            'no column output or output_de, which the form alpaca needs; found grade, instruction',
        ),
        (dict(dataset='rows.jsonl', format='alpacca'), "unknown; did you mean 'alpaca'"),
        (dict(dataset='rows.jsonl'), 'no known form has the columns'),
        (dict(dataset='alpaca.jsonl', languages=['fr']), 'only en and de can be distinguished'),
        (dict(dataset='alpaca.jsonl', languages=['de']), 'none of 3 rows could be used'),
        (
            dict(dataset='mayflowergmbh/alpaca-gpt4_de', languages=['en'], mirror='m'),
            "its rows are 'de'",
        ),
        (dict(dataset='empty.jsonl'), 'it is empty'),
        (dict(dataset='noise.jsonl'), 'so are all other lines'),
        (dict(dataset='bad.parquet'), 'cannot be read as Parquet'),
        (dict(dataset='hollow'), 'no data files'),
    ],
)
def test_errors_are_one_line_and_leave_nothing(args, said, tmp_path, monkeypatch):
    if args['dataset'].endswith('.parquet'):
        pytest.importorskip('datasets')
    monkeypatch.chdir(tmp_path)
    for d in ('m/OpenAssistant/oasst2', 'm/mayflowergmbh/alpaca-gpt4_de', 'hollow'):
        (tmp_path / d).mkdir(parents=True)
    (tmp_path / 'rows.jsonl').write_text('{"instruction": "x", "grade": "y"}\n')
    (tmp_path / 'alpaca.jsonl').write_text('\n'.join(map(json.dumps, ALPACA)))
    for name in ('empty.jsonl', 'bad.parquet'):
        (tmp_path / name).write_bytes(b'')
    (tmp_path / 'noise.jsonl').write_text('{broken\n')
    with pytest.raises(UserError) as e:
        convert(output='out.jsonl', **args)
    assert (
        said in str(e.value) and '\n' not in str(e.value) and not list(tmp_path.glob('*out.jsonl*'))
    )


def test_an_earlier_output_survives_a_failure(tmp_path):
    (tmp_path / 'out.jsonl').write_text('before')
    (tmp_path / 'cut.json').write_text(json.dumps(ALPACA * 9)[:-20])
    with pytest.raises(UserError):
        convert(str(tmp_path / 'cut.json'), str(tmp_path / 'out.jsonl'))
    assert (tmp_path / 'out.jsonl').read_text() == 'before'


def test_the_hub_is_the_default_and_its_failures_are_told(monkeypatch, tmp_path):
    datasets, seen = pytest.importorskip('datasets'), []
    monkeypatch.delenv('MYPT_DATA_MIRROR', raising=False)

    def load(name, config=None, **kw):
        seen.append((name, config, kw))
        return iter([dict(ALPACA[0])] * 9)

    monkeypatch.setattr(datasets, 'get_dataset_config_names', lambda name: ['default'])
    monkeypatch.setattr(datasets, 'load_dataset', load)
    assert convert('tatsu-lab/alpaca', str(tmp_path / 'o.jsonl'), max_examples=2) == 2
    assert seen == [('tatsu-lab/alpaca', 'default', dict(split='train', streaming=True))]
    for error, said in (
        (ConnectionError('offline'), 'the hub cannot be reached'),
        (ValueError('Unknown split "x"'), 'check --split'),
        (KeyError('x'), 'cannot be read from the hub'),
    ):

        def fail(*a, error=error, **kw):
            raise error

        monkeypatch.setattr(datasets, 'load_dataset', fail)
        with pytest.raises(UserError, match=said):
            convert('tatsu-lab/alpaca', str(tmp_path / 'p.jsonl'))


def test_without_the_library(monkeypatch, tmp_path):
    import sys

    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(UserError, match=r"pip install 'mypt-lm\[hub\]'"):
        convert('tatsu-lab/alpaca', str(tmp_path / 'o.jsonl'))
    (tmp_path / 'a.jsonl').write_text(json.dumps(ALPACA[0]))  # JSON needs none
    assert convert(str(tmp_path / 'a.jsonl'), str(tmp_path / 'o.jsonl')) == 1


def test_every_form_can_be_loaded():
    for name, form in SOURCE_FORMS.items():
        assert form_for({c.split('|')[0]: '' for c in form.columns}, name).__doc__
    assert all(known.form in SOURCE_FORMS or not known.form for known in HUB.values())


# --- real files


@pytest.mark.parametrize('lang', ['en', 'de'])
def test_xquad(lang, shared_data, tmp_path, capsys):
    path = shared_data / 'xquad' / f'xquad.{lang}.json'
    n = convert(str(path), str(tmp_path / 'o.jsonl'))  # the language is found out
    eps = read_episodes(tmp_path / 'o.jsonl')
    read, rejected, _ = books(capsys.readouterr().out)
    assert read == 1190 == n + rejected and n >= 1185
    assert Counter(e['language'] for e in eps).most_common(1)[0] == (lang, n)
    for e in eps:
        assert e['messages'][1]['content'] in e['messages'][0]['context']


@pytest.mark.parametrize(
    'name, rows, calls',
    [('simple_python', 400, True), ('multiple', 200, True), ('irrelevance', 240, False)],
)
def test_bfcl(name, rows, calls, shared_data, tmp_path, capsys):
    Draft202012Validator = pytest.importorskip('jsonschema').Draft202012Validator
    n = convert(
        str(shared_data / 'bfcl' / f'BFCL_v4_{name}.json'), str(tmp_path / 'o.jsonl'), format='bfcl'
    )
    read, rejected, share = books(capsys.readouterr().out)
    eps = read_episodes(tmp_path / 'o.jsonl')
    checked(eps[:40])
    assert read == rows == n + rejected and share > 98
    for e in eps:
        assert roles(e) == ['user', 'assistant_toolcall' if calls else 'assistant'] and e[
            'system'
        ].startswith('Tools:\n')
        offered = {
            t['name']: t['parameters'] for t in map(json.loads, e['system'].splitlines()[1:])
        }
        if calls:
            call = e['messages'][1]
            schema = offered[call['name']]
            assert (
                set(schema.get('required', ()))
                <= call['arguments'].keys()
                <= schema['properties'].keys()
            )
            Draft202012Validator(schema).validate(call['arguments'])


def test_bfcl_without_schemas_says_so(shared_data, tmp_path, capsys):
    with pytest.raises(UserError, match='no column function, which the form bfcl needs'):
        convert(
            str(shared_data / 'bfcl' / 'BFCL_v4_multi_turn_base.json'),
            str(tmp_path / 'o.jsonl'),
            format='bfcl',
        )
    assert (
        convert(str(shared_data / 'bfcl'), str(tmp_path / 'o.jsonl')) > 830
    )  # the folder: that file's rows are counted
    assert (
        '200 rows: BFCL_v4_multi_turn_base.json has columns that fit no known form'
        in capsys.readouterr().out
    )


def test_the_command(tmp_path, capsys):
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, ALPACA)))
    assert (
        main(
            [
                'convert',
                '--dataset',
                str(tmp_path / 'a.jsonl'),
                '--output',
                str(tmp_path / 'o.jsonl'),
                '--languages',
                'en',
                'de',
                '--max_examples',
                '1',
            ]
        )
        == 0
    )
    assert (
        main(['convert', '--dataset', 'OpenAssistant/oast2', '--output', str(tmp_path / 'o.jsonl')])
        == 2
    )
