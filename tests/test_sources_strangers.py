"""Rows as strangers have them: Arrow's nulls, tables, calls with ids, words that are no thought."""

import csv
import io
import json
from itertools import pairwise
import pytest
from mypt.data.episodes import read_episodes
from mypt.errors import UserError
from mypt.sources.convert import convert
from talks import talk


@pytest.fixture
def conv(tmp_path, capsys, monkeypatch):
    "Converts rows (or a file's text) and gives episodes and what was printed."
    monkeypatch.chdir(tmp_path)

    def run(rows, name='in.jsonl', **options):
        if isinstance(rows, list):
            rows = '\n'.join(json.dumps(row) for row in rows)
        (tmp_path / name).write_text(rows)
        convert(name, 'out.jsonl', **options)
        return read_episodes('out.jsonl'), capsys.readouterr().out

    return run


def table(*lines) -> str:
    out = io.StringIO()
    csv.writer(out).writerows(lines)
    return out.getvalue()


def said(ep) -> list:
    return [m['content'] for m in ep['messages']]


def call(i, city, **more):
    arguments = json.dumps({'city': city})
    return dict(id=i, type='function', function=dict(name='f', arguments=arguments)) | more


TWO = [call('c1', 'Bonn'), call('c2', 'Ulm')]
ASKED = talk('Who is it?', 'It is me.')
PAIR = ['Who is it?', 'It is me.']


TOOL = dict(type='function', function=dict(name='f', parameters=dict(type='object')))
CITY = dict(name='f', parameters=dict(type='object', properties=dict(city=dict(type='string'))))


# --- conversations without a key


SHARE = [{'from': 'human', 'value': PAIR[0]}, {'from': 'gpt', 'value': PAIR[1]}]


@pytest.mark.parametrize('messages', [ASKED['messages'], SHARE])
def test_a_conversation_is_a_list_of_messages(conv, messages):
    "One on each line, one in a whole file, several in a list."
    other = json.loads(json.dumps(messages).replace('me', 'Mia'))
    for rows in ([messages, other], json.dumps([messages, other], indent=1)):
        eps, out = conv(rows)
        assert [said(ep) for ep in eps] == [PAIR, [PAIR[0], 'It is Mia.']]
        assert '100.0% of 2 rows' in out
    for text in (json.dumps(messages, indent=2), '\ufeff' + json.dumps(messages)):
        assert [said(ep) for ep in conv(text, 'in.json')[0]] == [PAIR]


def test_a_bad_line_among_lists_of_messages(conv):
    lines = [json.dumps(SHARE), '[1, 2]', json.dumps(SHARE)]
    eps, out = conv('\n'.join(lines))
    assert [said(ep) for ep in eps] == [PAIR, PAIR] and 'of 3 rows' in out


# --- nulls


@pytest.mark.parametrize(
    'row',
    [
        {
            'conversations': [
                {'role': None, 'content': None, 'from': 'human', 'value': PAIR[0]},
                {'role': None, 'content': None, 'from': 'gpt', 'value': PAIR[1]},
            ]
        },
        ASKED | {'conversations': None},
        {'prompt': PAIR[0], 'completion': None, 'response': PAIR[1]},
        {'messages': None, 'instruction': PAIR[0], 'input': '', 'output': PAIR[1]},
        {
            'contents': [
                {'role': 'user', 'parts': [{'text': PAIR[0], 'functionCall': None}]},
                {'role': 'model', 'parts': [{'text': PAIR[1], 'functionResponse': None}]},
            ]
        },
        talk(*(m | {'name': None, 'arguments': None} for m in ASKED['messages'])),
        {'conversations': PAIR},
        {'data': PAIR},
    ],
)
def test_a_null_is_no_value(conv, row):
    (ep,), _ = conv([row])
    assert said(ep) == PAIR


def test_own_episodes_with_the_nulls_of_arrow(conv):
    empty = dict.fromkeys(('name', 'arguments', 'think', 'cite', 'context', 'weight'))
    row = talk(
        empty | dict(role='user', content='Warm?'),
        empty | dict(role='assistant_toolcall', content=None, name='f', arguments={'c': 'Bonn'}),
        empty | dict(role='toolresult', content='21', name='f'),
        empty | dict(role='assistant', content='Yes.'),
    )
    (ep,), _ = conv([row])
    assert [m['role'] for m in ep['messages']][1:3] == ['assistant_toolcall', 'toolresult']
    assert ep['messages'][1]['arguments'] == {'c': 'Bonn'}


# --- what is a thought, a weight, a wish


@pytest.mark.parametrize('word', ['on', 'off', 'High', 'none', 'true'])
def test_a_switch_is_no_thought(conv, word):
    (first, second), out = conv(
        [ASKED | {'reasoning': word}, talk('?', dict(role='assistant', content='!', thinking=word))]
    )
    assert 'think' not in first['messages'][1] and 'think' not in second['messages'][1]
    assert 'not used: ' in out and 'reasoning' in out and 'messages[].thinking' in out


def test_a_tag_in_code_ends_no_thought(conv):
    answer = 'It ends with this line:\n```\n</think>\n```\nThen it answers.'
    (ep,), _ = conv([talk('How?', answer)])
    assert ep['messages'][1] == dict(role='assistant', content=answer)


def test_weights_without_a_place(conv):
    huge = talk('a', dict(role='assistant', content='b', weight=10**400), weight=0.5)
    eps, out = conv([ASKED, huge])
    assert len(eps) == 1 and 'inf is no weight' in out
    (ep,), out = conv([{'text': 'Bread is baked.', 'weight': 0.5}])
    assert ep['text'] == 'Bread is baked.' and 'not used: weight' in out


def test_label_0_is_unwanted_beside_a_completion(conv):
    rows = table(['prompt', 'completion', 'label'], ['a', 'No.', '0'], ['b', 'Yes.', '1'])
    (ep,), _ = conv(rows, 'in.csv')
    assert said(ep) == ['b', 'Yes.']
    assert len(conv([ASKED | {'label': 0}])[0]) == 1  # a class


def test_an_open_dialogue_is_a_prompt(conv):
    prompt = '\n\nHuman: Who?\n\nAssistant: Me.\n\nHuman: Really?\n\nAssistant:'
    (ep,), _ = conv([{'prompt': prompt, 'chosen': ' Yes.', 'rejected': ' No.'}])
    assert said(ep) == ['Who?', 'Me.', 'Really?', 'Yes.']


# --- history


@pytest.mark.parametrize(
    'history, before',
    [
        ('[]', []),
        ([], []),
        ([['a', 'b']], ['a', 'b']),
        ("[['a', 'b']]", ['a', 'b']),
        (['a', 'b'], ['a', 'b']),
        ([dict(role='user', content='a'), dict(role='assistant', content='b')], ['a', 'b']),
        (['a'], None),
        ('nothing', None),
        ([['a', None]], None),
    ],
)
def test_history_in_every_shape(conv, history, before):
    row = dict(instruction=PAIR[0], input='', output=PAIR[1])
    eps, out = conv([row, row | {'history': history}])
    if before is None:
        assert len(eps) == 1 and 'a history that is neither pairs nor messages' in out
    else:
        assert said(eps[1]) == before + PAIR


# --- calls and results


def cities(ep) -> list:
    m = ep['messages']
    return [(a['arguments'].get('city'), b['content']) for a, b in pairwise(m) if 'arguments' in a]


SWAPPED = [
    dict(role='tool', tool_call_id='c2', content='in Ulm'),
    dict(role='tool', tool_call_id='c1', content='in Bonn'),
]
TAGGED = ''.join(
    f'<tool_call>{json.dumps(dict(id=i, name="f", arguments=dict(city=c)))}</tool_call>'
    for i, c in (('c1', 'Bonn'), ('c2', 'Ulm'))
)
WRAPPED = ''.join(
    f'<tool_response>{json.dumps(m | {"name": "f"})}</tool_response>'
    for m in [{k: v for k, v in m.items() if k != 'role'} for m in SWAPPED]
)


@pytest.mark.parametrize(
    'calls, results',
    [
        (dict(content=None, tool_calls=json.dumps(TWO)), SWAPPED),
        (dict(content=None, tool_calls=repr(TWO)), SWAPPED),
        (dict(content=TAGGED), SWAPPED),
        (dict(content=None, tool_calls=TWO), [dict(role='tool', content=WRAPPED)]),
    ],
)
def test_ids_in_every_notation(conv, calls, results):
    end = dict(role='assistant', content='Yes.')
    (ep,), _ = conv([talk('Warm?', dict(role='assistant') | calls, *results, end)])
    assert cities(ep) == [('Bonn', 'in Bonn'), ('Ulm', 'in Ulm')]


def test_one_result_is_not_split_among_calls_with_ids(conv):
    asked = dict(role='assistant', content=None, tool_calls=TWO)
    lines = dict(role='tool', content='Sunny in Bonn.\nWind: 3 km/h')
    eps, out = conv([ASKED, talk('Warm?', asked, lines, dict(role='assistant', content='Yes.'))])
    assert len(eps) == 1 and '2 calls and 1 results' in out


def result_of(conv, text):
    asked = dict(role='assistant', content=None, tool_calls=[call('1', 'Bonn')])
    result = dict(role='tool', tool_call_id='1', content=text)
    (ep,), _ = conv([talk('?', asked, result, dict(role='assistant', content='Done.'))])
    return ep['messages'][2]['content']


@pytest.mark.parametrize('text', ['3.10', '007', 'true', 'null', '"x"', '1e5'])
def test_a_result_that_is_no_object_stays_text(conv, text):
    assert result_of(conv, text) == text


def test_words_beside_a_result_stay(conv):
    for text in (
        'Note: cached.\n<tool_response>\n{"n": 1}\n</tool_response>\nEnd.',
        'Between <tool_response> and </tool_response>.',
    ):
        assert result_of(conv, text) == text
    code = '<tool_response>\n    def f():\n        pass\n</tool_response>'
    assert result_of(conv, code) == '    def f():\n        pass'
    assert result_of(conv, '<tool_response>\n{"n": 1}\n</tool_response>') == {'n': 1}


@pytest.mark.parametrize(
    'text',
    [
        '{"name": "f", "city": "Bonn"}',
        "{'name': 'f', 'arguments': {'city': 'Bonn'}}",
        '[{"name": "f", "parameters": {"city": "Bonn"}}]',
    ],
)
def test_a_call_in_text(conv, text):
    end = dict(role='assistant', content='Yes.')
    result = dict(role='tool', content='21')
    tagged = dict(role='assistant', content=f'<tool_call>\n{text}\n</tool_call>')
    named = dict(role='function_call', content=text)
    eps, _ = conv([talk('?', tagged, result, end), talk('?', named, result, end)])
    assert [cities(ep) for ep in eps] == [[('Bonn', '21')]] * 2


def test_keys_of_a_call_in_text_are_reported(conv):
    text = '<tool_call>{"name": "f", "arguments": {"city": "Bonn"}, "why": "x"}</tool_call>'
    assert (
        'messages[].tool_call[].why'
        in conv([ASKED | {'tools': [CITY]}, dict(talk('?', text), tools=[CITY])])[1]
    )


def test_calls_in_brackets_with_names_of_two_words(conv):
    tools = json.dumps([dict(name='Market Trends API', parameters=dict(type='dict'))])
    row = talk('Trends?', '[Market Trends API(country="us", n=3)]')
    (ep, text), _ = conv([row | {'system': tools}, talk('?', '[f(x)]')])
    name, arguments = (ep['messages'][1][k] for k in ('name', 'arguments'))
    assert (name, arguments) == ('Market Trends API', {'country': 'us', 'n': 3})
    assert text['messages'][1]['content'] == '[f(x)]'


def test_tools_and_their_prompt(conv):
    prompt = 'You help with XML files. Answer in one line.'
    (ep,), _ = conv([ASKED | {'system': prompt, 'tools': [TOOL]}])
    assert ep['system'].startswith(prompt)
    infinite = json.loads('{"name": "f", "parameters": {"default": 1e400}}')
    for tool, reason in (
        (dict(type='web_search'), "a tool without a name, 'web_search'"),
        (infinite, 'a tool with a number that JSON does not have'),
    ):
        eps, out = conv([ASKED, ASKED | {'tools': [TOOL, tool]}])
        assert len(eps) == 1 and reason in out


def test_the_first_indent_of_a_dialogue(conv):
    chat = 'USER: Write f.\n\n\nASSISTANT:\n    y = 1\n    return y <|endoftext|>'
    (ep,), _ = conv([dict(system='SYSTEM: You help.', chat=chat)])
    assert said(ep) == ['Write f.', '    y = 1\n    return y']


# --- keys


def test_keys_around_the_rows_are_reported(conv):
    text = json.dumps(
        {'note': 'do not train', 'data': [dict(prompt='a', completion='b')]}, indent=1
    )
    assert 'file.note' in conv(text, 'in.json')[1]
    qa = dict(id='1', question='Where is Bonn?', difficulty=1, system='Be a pirate.')
    qa['answers'] = [dict(text='Rhine', answer_start=17, by='x')]
    paragraph = dict(context='Bonn is on the Rhine.', document_id=7, qas=[qa])
    squad = {'version': '2', 'data': [dict(title='Bonn', paragraphs=[paragraph])]}
    (ep,), out = conv(json.dumps(squad), 'in.json', languages=['en'])
    assert 'pirate' in ep['system'] and 'version' not in out
    for key in ('difficulty', 'paragraph.document_id', 'answers[].by'):
        assert key in out


def test_a_passage_keeps_its_lines(conv):
    context = 'It is so:\n\n    for i in x:\n        print(i)\n\nIt prints three\nnumbers.'
    row = dict(context=context, question='What?', answers=dict(text=['three\nnumbers']))
    (ep,), _ = conv([row, row | {'answers': 'seven'}], languages=['en'])
    assert context in ep['messages'][0]['context'] and said(ep)[1] == 'three\nnumbers'


def test_keys_beside_results_and_of_a_tree(conv):
    asked = dict(role='assistant', content=[dict(type='tool_use', id='a', name='f', input={})])
    result = [dict(type='tool_result', tool_use_id='a', content='21')]
    row = talk('?', asked, dict(role='user', at='noon', content=result), 'Yes.')
    assert 'messages[].at' in conv([row])[1]
    node = dict(message_tree_id='1', lang='en', rank=None, deleted=False)
    first = dict(message_id='1', parent_id=None, role='prompter', text='Who?', labels=1)
    reply = dict(message_id='2', parent_id='1', role='assistant', text='Me.', labels=2)
    (ep,), _ = conv([node | first, node | reply], keep_meta=['labels'])
    assert ep['_meta'] == {'labels': [1, 2]}


# --- tables and files


def test_lists_in_a_table(conv):
    user, answer = ASKED['messages']
    both = [user, answer]
    for lines in (
        [['chosen', 'rejected'], [json.dumps(both), json.dumps([user])]],
        [['prompt', 'completion'], [json.dumps([user]), json.dumps([answer])]],
        [['messages'], [repr(both)]],
    ):
        assert said(conv(table(*lines), 'in.csv')[0][0]) == PAIR
    gemini = [
        dict(role=r, parts=[dict(text=t)]) for r, t in zip(('user', 'model'), PAIR, strict=True)
    ]
    lines = [['systemInstruction', 'contents'], ['Be a pirate.', json.dumps(gemini)]]
    assert conv(table(*lines), 'in.csv')[0][0]['system'] == 'Be a pirate.'
    (ep,), _ = conv([dict(prompt='Show one.', completion=json.dumps(both))])
    assert said(ep)[1] == json.dumps(both)  # in JSON a text is a text


def test_words_of_a_table(conv):
    lines = table(
        ['question', 'context', 'answers', 'is_impossible'],
        ['Where is Bonn?', 'Bonn is on the Rhine.', 'Rhine', 'False'],
        ['Who built it?', 'Bonn is on the Rhine.', '[]', 'True'],
    )
    eps, _ = conv(lines, 'in.csv', languages=['en'])
    assert said(eps[0])[1] == 'Rhine' and 'not' in said(eps[1])[1]
    lines = table(['tools', 'messages'], [repr([TOOL]), json.dumps(ASKED['messages'])])
    assert '"name": "f"' in conv(lines, 'in.csv')[0][0]['system']


def test_a_list_of_answers_is_no_conversation(conv):
    row = dict(question=['q'], answer=['x', 'y', 'z'])
    eps, out = conv([dict(question='q', answer='x'), row])
    assert len(eps) == 1 and 'answer is not text' in out


def test_tables_that_lose_rows_or_columns_are_refused(conv):
    with pytest.raises(UserError, match=r'in.csv:2: a quote that is not closed'):
        conv('prompt,completion\na,"b\nc,d\n', 'in.csv')
    with pytest.raises(UserError, match="'completion', the name twice"):
        conv('prompt,completion,completion\na,b,\n', 'in.csv')
    eps, out = conv('prompt,completion\na,"b" c\nd,e\n', 'in.csv')
    assert len(eps) == 1 and 'not a line of a table' in out


def test_columns_onto_one_name(conv):
    row = dict(prompt='Task 7', question='Who?', answer='Me.')
    (ep,), out = conv([row], columns=['prompt=question', 'completion=answer'])
    assert said(ep) == ['Who?', 'Me.'] and 'not used: prompt (replaced)' in out
    with pytest.raises(UserError, match='two columns become prompt'):
        conv([row], columns=['prompt=prompt', 'prompt=question', 'completion=answer'])


def test_one_number_does_not_end_a_list(conv):
    good = dict(prompt='a', completion='b')
    bad = json.dumps(good)[:-1] + ', "n": ' + '9' * 5000 + '}'
    eps, out = conv(f'[{json.dumps(good)}, {bad}, {json.dumps(good)}]', 'in.json')
    assert len(eps) == 2 and 'a number of thousands of digits' in out


@pytest.mark.parametrize('rejects', ['out.jsonl', 'in.jsonl', './in.jsonl'])
def test_files_are_not_written_over(conv, tmp_path, rejects):
    with pytest.raises(UserError, match='give another --rejects'):
        conv([ASKED], rejects=rejects)
    assert json.loads((tmp_path / 'in.jsonl').read_text()) == ASKED
    with pytest.raises(UserError, match='is the input; give another --output'):
        convert('in.jsonl', str(tmp_path / 'in.jsonl'))
