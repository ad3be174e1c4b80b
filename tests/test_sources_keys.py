"""Nothing lost on the way in: every key of a row is used or reported, every text arrives whole."""

import json
import time
import pytest
from mypt.data.episodes import read_episodes
from mypt.errors import UserError
from mypt.sources.convert import convert
from talks import talk


@pytest.fixture
def conv(tmp_path, capsys):
    "Converts rows (or a file's bytes) and gives episodes, what was printed, and the rejects."

    def run(rows, name='in.jsonl', **options):
        path, out = tmp_path / name, tmp_path / 'out.jsonl'
        if isinstance(rows, list):
            rows = '\n'.join(json.dumps(row) for row in rows)
        path.write_bytes(rows if isinstance(rows, bytes) else rows.encode())
        out.unlink(missing_ok=True)
        convert(str(path), str(out), **options)
        rejects = tmp_path / 'out.jsonl.rejects.jsonl'
        lines = rejects.read_text().splitlines() if rejects.exists() else []
        return read_episodes(out), capsys.readouterr().out, [json.loads(x) for x in lines]

    return run


def calls(*pairs):
    made = [
        dict(id=i, type='function', function=dict(name='f', arguments=json.dumps(a)))
        for i, a in pairs
    ]
    return dict(role='assistant', content=None, tool_calls=made)


def result(i, value):
    return dict(role='tool', tool_call_id=i, content=value)


# --- keys


def test_keys_that_nobody_read_are_reported(conv):
    row = talk('Hi', dict(role='assistant', content='Ho', refusal='no', audio=None), score=3)
    _, said, _ = conv([row, row])
    assert 'not used: score (2 rows), messages[].refusal (2 rows)' in said
    eps, said, _ = conv([row], keep_meta=['score'])
    assert eps[0]['_meta'] == {'score': 3} and 'score' not in said
    assert conv([row | {'_meta': {'score': 3}}], keep_meta=['score'])[0][0]['_meta'] == {'score': 3}
    with pytest.raises(UserError, match='_meta has another score already'):
        conv([row | {'_meta': {'score': 2}}], keep_meta=['score'])
    with pytest.raises(UserError, match=r'score \(1 row\), messages\[\].refusal \(1 row\)'):
        conv([row], strict=True)
    with pytest.raises(UserError, match=r'keys: messages\[\].refusal \(1 row\); keep'):
        conv([row], strict=True, keep_meta=['all'])


def test_a_message_keeps_its_weight_thought_context_and_citations(conv):
    notes = [dict(type='url_citation', url_citation=dict(title='a.md', start_index=2))]
    row = talk(
        dict(role='user', content='Who?', context='[1] (a.md) Anna.'),
        dict(role='assistant', content='Me.', reasoning_content='Hm.', weight=0),
        'Really?',
        dict(role='assistant', content='Yes.', think='So.', annotations=notes, train=False),
    )
    (ep,), said, _ = conv([row], strict=True)
    user, first, _, second = ep['messages']
    assert user['context'] == '[1] (a.md) Anna.'
    assert (first['think'], first['weight']) == ('Hm.', 0)
    assert second['think'] == 'So.' and second['cite'] == [{'at': 2, 'text': 'a.md'}]
    assert second['weight'] == 0 and 'not used' not in said


def test_an_episode_of_ours_comes_back_as_it_went_in(conv):
    row = dict(
        system='Be kind.',
        messages=[
            dict(role='user', content='Warm?', context='c'),
            dict(role='assistant_toolcall', name='f', arguments={'x': None}, think='Look.'),
            dict(role='toolresult', name='f', content={'t': 1}),
            dict(role='assistant', content='Yes.', cite='a.md', weight=2),
        ],
        language='de',
        id='7',
        _meta={'k': 1},
    )
    (ep,), _, _ = conv([row], strict=True)
    assert ep == row | {'source': 'in'}


@pytest.mark.parametrize('order', [('c1', 'c2'), ('c2', 'c1')])
def test_results_find_their_calls_by_id(conv, order):
    value = {'c1': '{"city": 1}', 'c2': '{"city": 2}'}
    row = talk(
        '?', calls(('c1', {'n': 1}), ('c2', {'n': 2})), *(result(i, value[i]) for i in order), 'x'
    )
    row['messages'][-1]['role'] = 'assistant'
    (ep,), _, _ = conv([row])
    m = ep['messages']
    assert [(m[i]['arguments']['n'], m[i + 1]['content']['city']) for i in (1, 3)] == [
        (1, 1),
        (2, 2),
    ]


@pytest.mark.parametrize(
    'results, reason',
    [
        ([('c1', 'x')], 'a call without a result before the end'),
        ([('c1', 'x'), ('c3', 'y')], 'a call without a result before the end'),
        ([('c1', 'x'), ('c1', 'y')], 'two results for one call'),
        ([('c1', 'x'), ('c2', 'y'), ('c3', 'z')], 'a result whose id is that of no call'),
        ([('c1', 'x'), (None, 'y')], 'results with and without an id'),
        ([], 'a call without a result before the end'),
    ],
)
def test_results_are_never_made_up(conv, results, reason):
    asked = calls(('c1', {'n': 1}), ('c2', {'n': 2}))
    row = talk('?', asked, *(result(*r) for r in results), dict(role='assistant', content='x'))
    _, said, rejects = conv([talk('a', 'b'), row])
    assert rejects == [{'where': rejects[0]['where'], 'reason': reason, 'row': row}]
    assert rejects[0]['where'].endswith('in.jsonl:2') and reason in said


TWICE = '"city": "Bonn", "city": "Ulm"'


@pytest.mark.parametrize(
    'said',
    [
        dict(
            role='assistant', tool_calls=[dict(function=dict(name='f', arguments=f'{{{TWICE}}}'))]
        ),
        f'<tool_call>{{"name": "f", "arguments": {{{TWICE}}}}}</tool_call>',
        "<tool_call>f(a={'x': 1, 'x': 2})</tool_call>",
        '<tool_call>f(city="Bonn", city="Ulm")</tool_call>',
        '<tool_call><function=f><parameter=city>Bonn</parameter><parameter=city>Ulm</parameter>'
        '</function></tool_call>',
    ],
)
def test_an_argument_that_comes_twice(conv, said):
    "Of two values for one key a reader would keep the last; here the row is rejected."
    said = said if isinstance(said, dict) else dict(role='assistant', content=said)
    row = talk('?', said, dict(role='tool', content='{}'), 'x')
    with pytest.raises(UserError, match=r'given twice|notation that is not known'):
        conv([row])


def test_a_result_whose_key_comes_twice_stays_text(conv):
    twice = f'{{{TWICE}}}'
    (ep,), _, _ = conv([talk('?', calls(('a', {})), result('a', twice), 'x')])
    assert ep['messages'][2]['content'] == twice


@pytest.mark.parametrize('name', ['fr', 'French', 'fr-CA'])
def test_other_languages_are_what_the_row_says(conv, name):
    rows = [talk('Bonjour', 'Salut', language=x) for x in ('fr', 'fr_FR', 'en')]
    rows.append(talk('Bonjour', 'Salut'))
    eps, said, _ = conv(rows, languages=[name])
    assert [ep['language'] for ep in eps] == ['fr', 'fr']
    assert 'language unknown was not asked for' in said
    with pytest.raises(UserError, match='others need a column language'):
        conv([talk('Bonjour', 'Salut')], languages=[name])
    with pytest.raises(UserError, match='--languages klingon: the name of no language'):
        conv(rows, languages=['klingon'])


def test_a_tree_in_another_language(conv):
    tree = dict(message_tree_id='1', lang='pt-BR', deleted=False, rank=None)
    rows = [
        tree | dict(message_id='1', role='prompter', text='Oi?', parent_id=None),
        tree | dict(message_id='2', role='assistant', text='Oi.', parent_id='1'),
    ]
    assert len(conv(rows, languages=['pt'])[0]) == 1


def test_questions_in_a_language_without_a_prompt_of_its_own(conv):
    passage = 'Le renard brun vit dans la forêt, où il chasse la nuit des souris et des baies. ' * 3
    row = dict(question='Où vit le renard ?', context=passage)
    eps, said, _ = conv([row | dict(answers=['dans la forêt']), row | dict(answers=[])])
    assert len(eps) == 1 and 'language' not in eps[0] and 'no wording for that in its' in said
    (ep,), said, _ = conv([row | dict(answers=['dans la forêt'])] * 1, languages=['fr'])
    assert ep['language'] == 'fr' and ep['messages'][1]['content'] == 'dans la forêt'


def test_system_prompts(conv):
    plain = dict(instruction='Name a colour.', output='Blue.')
    assert 'system' not in conv([plain])[0][0]
    assert conv([plain], system_prompt='You are MyPT.')[0][0]['system'] == 'You are MyPT.'
    for column in ('system', 'system_prompt', 'system_message', 'systemPrompt'):
        pirate = plain | {column: 'A pirate.'}
        (ep,), _, _ = conv([talk('a', 'b') | {column: 'A pirate.'}], strict=True)
        assert ep['system'] == 'A pirate.'
        assert conv([pirate], system_prompt='x')[0][0]['system'] == 'A pirate.'
        (ep,), said, _ = conv([pirate], no_system_prompt=True)
        assert 'system' not in ep and '1 row: system prompt removed' in said
        with pytest.raises(UserError, match='--system_prompt or --no_system_prompt, not both'):
            conv([pirate], no_system_prompt=True, system_prompt='x')
    two = talk('a', 'b', system='First.')
    two['messages'] = [dict(role='system', content=x) for x in 'AB'] + two['messages']
    assert conv([two])[0][0]['system'] == 'First.\n\nA\n\nB'
    late = talk('a', 'b', dict(role='developer', content='Now in capitals.'), 'c', 'd')
    late['messages'][3]['role'], late['messages'][4]['role'] = 'user', 'assistant'
    with pytest.raises(UserError, match='a system message in the middle of the conversation'):
        conv([late])


def test_tools_columns_reach_the_prompt(conv):
    tool = dict(name='f', description='', parameters=dict(type='object', properties={}))
    row = dict(instruction='a', output='b', tools=json.dumps([tool]))
    (ep,), _, _ = conv([row], strict=True, system_prompt='Be kind.')
    assert ep['system'] == 'Be kind.\nTools:\n' + json.dumps(tool)


def test_nulls_of_arrow(conv):
    call = dict(id='1', type='function', function=dict(name='f', arguments={'a': 1, 'b': None}))
    row = talk('?', dict(role='assistant', content=None, tool_calls=[call]))
    (ep,), said, _ = conv([row])
    assert ep['messages'][1]['arguments'] == {'a': 1} and 'null arguments of a table' in said
    call['function']['arguments'] = '{"a": 1, "b": null}'
    assert conv([row])[0][0]['messages'][1]['arguments'] == {'a': 1, 'b': None}


def test_a_last_question_is_trimmed_on_demand(conv):
    row = talk('a', 'b', 'c')
    with pytest.raises(UserError, match='an episode ends with the assistant'):
        conv([row])
    (ep,), said, _ = conv([row], trim_last_user=True)
    assert len(ep['messages']) == 2 and 'trimmed' in said


def test_rows_in_are_rows_out_plus_rows_reported(conv):
    good = json.dumps(talk('a', 'b'))
    lines = [good, 'no json', '', '[1]', '{"messages": [], "messages": []}', '{"a": 1}', good]
    eps, said, rejects = conv('\n'.join(lines))
    assert (len(eps), len(rejects)) == (2, 4) and '33.3% of 6 rows' in said
    assert [r['where'].rsplit(':', 1)[1] for r in rejects] == ['2', '4', '5', '6']
    assert rejects[2]['reason'] == "a key twice in one object, 'messages'"


def test_what_is_printed_cannot_steer_a_terminal(conv):
    row = talk('a', 'b') | {'\x1b[31mred\n' + 'k' * 3000: 1}
    _, said, _ = conv([row])
    assert '\x1b' not in said and 'kkkk…' in said and max(map(len, said.splitlines())) < 300


# --- text


WHOLE = '    y = 1\n\n\treturn y  \nUser: no\n### Quelle:\n  x\n<tool_call> is a tag\n'


@pytest.mark.parametrize(
    'row',
    [
        talk(WHOLE, WHOLE),
        dict(conversations=[{'from': f, 'value': WHOLE} for f in ('human', 'gpt')]),
        dict(conversation=[dict(input=WHOLE, output=WHOLE)]),
        dict(data=[WHOLE, WHOLE]),
        dict(prompt=WHOLE, completion=WHOLE),
        dict(
            prompt=[dict(role='user', content=WHOLE)],
            completion=[dict(role='assistant', content=WHOLE)],
        ),
        dict(prompt='p', chosen=talk(WHOLE, WHOLE)['messages'], rejected='no'),
        dict(instruction=WHOLE, input='', output=WHOLE),
        dict(instruction=WHOLE, context='', response=WHOLE),
        talk(
            *(
                [
                    dict(
                        role=r, content=[dict(type='text', text=t) for t in (WHOLE[:9], WHOLE[9:])]
                    )
                    for r in ('user', 'assistant')
                ]
            )
        ),
    ],
)
def test_text_arrives_byte_for_byte(conv, row):
    (ep,), _, _ = conv([row])
    assert [m['content'] for m in ep['messages']] == [WHOLE, WHOLE]


@pytest.mark.parametrize('heading', ['Aufgabe:', 'Quelle:', '### Frage', 'Input:', '**Kontext**'])
def test_a_heading_does_not_flatten_the_code_below_it(conv, heading):
    asked = f'{heading}\nfor i in range(3):\n    print(i)\n\n\tWas gibt es aus?\nQuelle: hier'
    said = [{'from': 'human', 'value': asked}, {'from': 'gpt', 'value': '0 1 2'}]
    (ep,), _, _ = conv([dict(conversations=said)])
    assert ep['messages'][0] == dict(role='user', content=asked)


def test_plain_text_is_a_replay_episode(conv):
    (ep,), _, _ = conv([dict(text=WHOLE, label=1)])
    assert ep['_replay'] is True and ep['text'] == WHOLE


def test_thoughts_at_the_head_of_an_answer(conv):
    def answer(text, **more):
        return conv([talk('q', dict(role='assistant', content=text, **more))])[0][0]['messages'][1]

    assert answer('<think>\nA\n  b\n</think>\n\n  It is 4.') == dict(
        role='assistant', content='  It is 4.', think='A\n  b'
    )
    assert answer('<think>\n\n</think>\n\nIt is 4.') == dict(role='assistant', content='It is 4.')
    assert answer('<think>A</think>4', reasoning_content='B')['think'] == 'B\n\nA'
    assert answer('The tag <think>x</think> is text.')['content'].startswith('The tag <think>')
    with pytest.raises(UserError, match='a thought that does not end'):
        answer('<think>A')


def test_a_part_that_is_no_text_says_so(conv):
    picture = dict(role='user', content=[dict(type='image_url', image_url='x')])
    with pytest.raises(UserError, match="a part of type 'image_url', which is not text"):
        conv([talk(picture, 'b')])


def test_results_between_tags_are_results(conv):
    hermes = [
        dict(role='user', content='?'),
        dict(role='assistant', content='<tool_call>{"name": "f", "arguments": {}}</tool_call>'),
        dict(
            role='tool',
            content='<tool_response>\n{"name": "f", "content": {"t": 1}}\n</tool_response>',
        ),
        dict(role='assistant', content='1'),
    ]
    for role in ('tool', 'user'):
        hermes[2]['role'] = role
        (ep,), _, _ = conv([dict(messages=hermes)])
        assert ep['messages'][2] == dict(role='toolresult', name='f', content={'t': 1})


def test_user_inside_of_an_answer(conv):
    chat = 'USER: Write a play.\n\n\nASSISTANT: Here:\n\nUser: hi\nAssistant: ho <|endoftext|>'
    (ep,), _, _ = conv([dict(system='SYSTEM: You help.', chat=chat)])
    assert ep['messages'][1]['content'] == 'Here:\n\nUser: hi\nAssistant: ho'
    cut = chat.replace('User:', 'USER:')
    with pytest.raises(UserError, match='an answer that ends at a line like a speaker'):
        conv([dict(system='SYSTEM: You help.', chat=cut)])


def test_xlam(conv):
    tools = json.dumps([dict(name='f', description='', parameters=dict(a=dict(type='int')))])
    call = '{"name": "f", "arguments": {"a": 1}}'
    rows = [dict(id=0, query='q', tools=tools, answers=f'[{a}]') for a in (call, f'{call}, {call}')]
    (ep,), said, _ = conv(rows, strict=True)
    assert ep['messages'][1]['arguments'] == {'a': 1} and ep['id'] == '0'
    assert 'several calls at once, and no results' in said


# --- files


@pytest.mark.parametrize(
    'name, data',
    [
        ('a.csv', 'Frage;Antwort\nWas?;"Das,\n  hier."\n'),
        ('b.csv', '\ufeffFrage,Antwort\r\nWas?,"Das,\n  hier."\r\n'),
        ('c.tsv', 'Frage\tAntwort\nWas?\t"Das,\n  hier."\n'),
        ('d.jsonl', json.dumps(dict(Frage='Was?', Antwort='Das,\n  hier.'), indent=2)),
        ('e.json', '\ufeff' + json.dumps([dict(Frage='Was?', Antwort='Das,\n  hier.')])),
    ],
)
def test_tables_and_other_names_of_columns(conv, name, data):
    (ep,), _, _ = conv(data, name, columns=['prompt=Frage', 'completion=Antwort'], strict=True)
    assert [m['content'] for m in ep['messages']] == ['Was?', 'Das,\n  hier.']


@pytest.mark.parametrize('name', ['a.json', 'a.csv'])
def test_another_encoding_is_told_with_a_way_out(conv, name):
    text = (
        '[{"prompt": "Größe", "completion": "x"}]' if 'json' in name else 'prompt,completion\nß,x\n'
    )
    with pytest.raises(
        UserError, match=r'so it is not UTF-8, but perhaps LATIN1; .*iconv -f LATIN1'
    ):
        conv(text.encode('latin-1'), name)
    with pytest.raises(UserError, match='mark of UTF-16'):
        conv(text.encode('utf-16'), name)


def test_parquet_without_datasets(tmp_path, conv, monkeypatch):
    import sys

    pa = pytest.importorskip('pyarrow')
    pq = pytest.importorskip('pyarrow.parquet')
    monkeypatch.setitem(sys.modules, 'datasets', None)
    pq.write_table(pa.Table.from_pylist([talk('a', '  b\n')]), tmp_path / 'x.parquet')
    (ep,), _, _ = conv((tmp_path / 'x.parquet').read_bytes(), 'y.parquet')
    assert ep['messages'][1]['content'] == '  b\n'


# --- time


@pytest.mark.parametrize(
    'text',
    [
        'What is this log?' + '\n' * 60_000 + 'end',
        '_' * 200_000,
        '<tools>' * 30_000,
        '<tool_call>' * 30_000,
        '<invoke name="' * 20_000,
        ''.join(f'<a{i}>' for i in range(30_000)),
        'word ' * 60_000,
        '`' * 40_000,
        ' ' * 1_000_000 + 'x',
    ],
)
def test_no_text_takes_more_than_linear_time(conv, text):
    tool = dict(name='f', description='', parameters={})
    rag = dict(conversations=[{'from': 'human', 'value': text}, {'from': 'gpt', 'value': 'ok'}])
    begin = time.process_time()  # of this process: other work on the machine does not count
    conv([rag], format='german_rag')
    for row in (talk(text, text + '</function_calls>'), talk('a', 'b', system=text + 'XML')):
        conv([talk('a', 'b'), row | dict(tools=[tool])])
    conv([dict(system='x', chat='USER: a\n\nASSISTANT: b' + text)], format='german_tools')
    assert time.process_time() - begin < 10


# --- what one set says and others say in other words


def answer_of(conv, row) -> dict:
    (ep,), _, _ = conv([row])
    return ep['messages'][-1]


@pytest.mark.parametrize(
    'text',
    [
        '<think>A</think>4',
        '<think>A</think>\n<think></think>4',
        'A\n</think>\n\n4',
        '<thinking>A</thinking>4',
        '<reasoning>\nA\n</reasoning>\n4',
        '[THINK]A[/THINK]4',
        '<|begin_of_thought|>A<|end_of_thought|>\n<|begin_of_solution|>4<|end_of_solution|>',
        '<THINK>\nA\n</THINK>\n\n4',
        '<Thinking>A</Thinking>4',
        '<seed:think>A</seed:think>4',
        '◁think▷A◁/think▷4',
        '<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>final<|message|>4',
        '<|channel|>analysis<|message|>A<|end|>'
        '<|start|>assistant<|channel|>final<|message|>4<|return|>',
    ],
)
@pytest.mark.parametrize('form', ['messages', 'sharegpt', 'alpaca', 'completion', 'turns'])
def test_a_thought_in_every_notation_and_form(conv, form, text):
    row = dict(
        messages=talk('2+2?', text),
        sharegpt=dict(
            conversations=[{'from': 'human', 'value': '2+2?'}, {'from': 'gpt', 'value': text}]
        ),
        alpaca=dict(instruction='2+2?', output=text),
        completion=dict(prompt='2+2?', completion=text),
        turns=dict(data=['2+2?', text]),
    )[form]
    assert answer_of(conv, row) == dict(role='assistant', content='4', think='A')


def test_a_thought_beside_the_answer_is_its_thought(conv):
    for key in ('reasoning', 'reasoning_content', 'thinking'):
        for row in (dict(prompt='2+2?', completion='4'), dict(instruction='2+2?', output='4')):
            assert answer_of(conv, row | {key: 'A'})['think'] == 'A'


def test_a_thought_in_the_middle_is_no_answer(conv):
    with pytest.raises(UserError, match='a thought in the middle of an answer'):
        conv([talk('q', 'First.\n<think>A</think>\n4')])
    with pytest.raises(UserError, match='a thought within a thought'):
        conv([talk('q', '<think>A <think>B</think> C</think>4')])
    assert answer_of(conv, talk('q', '<think>The tag <think>.</think>4'))['content'] == '4'
    code = 'So:\n```\n<think>\nA</think>\n```'
    assert answer_of(conv, talk('q', code))['content'] == code


@pytest.mark.parametrize('key', ['train', 'training', 'trainable', 'train_on_turn', 'loss'])
def test_false_in_any_word_is_not_trained(conv, key):
    no = {key: False}
    said = dict(role='assistant', content='b') | no
    assert answer_of(conv, talk('a', said))['weight'] == 0
    assert answer_of(conv, dict(conversation=[dict(input='a', output='b') | no]))['weight'] == 0
    for row in (talk('a', 'b'), dict(instruction='a', output='b'), dict(data=['a', 'b'])):
        assert answer_of(conv, row | no)['weight'] == 0
        assert 'weight' not in answer_of(conv, row | {key: True})


def test_the_weight_of_a_row_multiplies(conv):
    (ep,), _, _ = conv(
        [talk('a', dict(role='assistant', content='b', weight=2), 'c', 'd', weight=0.5)]
    )
    assert [m.get('weight') for m in ep['messages']] == [None, None, None, 0.5]
    with pytest.raises(UserError, match='20 is no weight'):
        conv([talk('a', 'b', weight=20)])


def test_system_columns_of_every_form(conv):
    rows = [
        dict(instruction='q', context='It was in 1248.', response='1248'),
        dict(question='When?', context='In 1248.', answers=dict(text=['1248'], answer_start=[3])),
        dict(prompt='q', completion='a'),
        dict(data=['q', 'a']),
    ]
    for row in rows:
        (ep,), said, _ = conv([row | dict(system='Be a pirate.')])
        assert ep['system'] == 'Be a pirate.' and 'not used' not in said


def test_a_row_names_its_language(conv):
    names = ['fr', 'de-AT', 'German', 'python']
    eps, said, _ = conv([talk('The question is', 'the answer', language=x) for x in names])
    assert [ep['language'] for ep in eps] == ['fr', 'de', 'de', 'en']
    assert 'not used: language (1 row)' in said


@pytest.mark.parametrize('asked', ['prompt', 'question', 'query', 'instruction', 'input'])
@pytest.mark.parametrize('answer', ['completion', 'response', 'answer', 'output', 'chosen'])
def test_a_question_and_an_answer_by_any_name(conv, asked, answer):
    (ep,), said, _ = conv([{asked: WHOLE, answer: WHOLE}])
    assert [m['content'] for m in ep['messages']] == [WHOLE, WHOLE] and 'not used' not in said


def test_messages_in_a_table_are_json(conv):
    said = json.dumps(talk('a', 'b')['messages']).replace('"', '""')
    (ep,), _, _ = conv(f'id,messages\n7,"{said}"\n', name='in.csv')
    assert ep['id'] == '7' and [m['content'] for m in ep['messages']] == ['a', 'b']


def test_a_missing_result_is_not_made_up(conv):
    for content in ({'content': None}, {}):
        row = talk(
            'q',
            calls(('c1', {})),
            dict(role='tool', tool_call_id='c1') | content,
            dict(role='assistant', content='b'),
        )
        with pytest.raises(UserError, match='a tool result without content'):
            conv([row])


def test_a_result_among_the_users_words(conv):
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    with pytest.raises(UserError, match='a tool result among words of the user'):
        conv([talk('q', call, 'Here: <tool_response>{"r": 1}</tool_response>', 'b')])


# --- files


@pytest.mark.parametrize(
    'text, texts',
    [
        ('[{"text": "a"}]\n{"text": "b"}\n', 'ab'),
        ('[{"text": "a"}]\n[{"text": "b"}, {"text": "c"}]\n', 'abc'),
        ('[]\n{"text": "b"}\n', 'b'),
        ('[{"text": "a"}, 7]{"text": "b"}', 'ab'),
    ],
)
def test_what_stands_behind_a_list_is_read(conv, text, texts):
    eps, _, rejects = conv(text)
    assert ''.join(ep['text'] for ep in eps) == texts
    assert len(rejects) == text.count('7')


@pytest.mark.parametrize('name', ['in.json', 'in.jsonl'])
@pytest.mark.parametrize(
    'text', ['[' * 100_000, '{\n"data": ' + '[' * 100_000, '[{"a":' + '[' * 50_000]
)
def test_deep_nesting_is_one_line(conv, name, text):
    with pytest.raises(UserError, match=r'nested too deep|is it JSON|not JSON'):
        conv(text, name=name)


@pytest.mark.parametrize('qas', [[7], 'x', None, {'a': 1}, [[]]])
def test_a_wrong_squad_file_is_told_in_words(conv, qas):
    data = dict(version='2', data=[dict(title='t', paragraphs=[dict(context='c', qas=qas)])])
    with pytest.raises(UserError, match=r'a value has another type|could be used'):
        conv(json.dumps(data), name='in.json')


def test_a_row_without_its_answer_is_a_rejected_row(conv):
    eps, _, rejects = conv([dict(prompt='a', completion='b'), dict(prompt='a')])
    assert len(eps) == 1 and rejects[0]['reason'] == 'completion is missing'


# --- calls, results and thoughts among the parts of a message


ANTHROPIC = [
    dict(role='user', content='?'),
    dict(
        role='assistant',
        content=[
            dict(type='thinking', thinking='Hm.', signature='s'),
            dict(type='text', text='I look.'),
            dict(type='tool_use', id='a', name='f', input=dict(x=1)),
            dict(type='tool_use', id='b', name='f', input=dict(x=2)),
        ],
    ),
    dict(
        role='user',
        content=[
            dict(type='tool_result', tool_use_id='b', content=[dict(type='text', text='two')]),
            dict(type='tool_result', tool_use_id='a', content='one'),
        ],
    ),
    dict(role='assistant', content=[dict(type='text', text='x', citations=[1])]),
]
GEMINI = [
    dict(role='user', parts=[dict(text='?')]),
    dict(role='model', parts=[dict(functionCall=dict(name=n, args=dict(x=1))) for n in 'fg']),
    dict(
        role='function',
        parts=[dict(functionResponse=dict(name=n, response=dict(r=n))) for n in 'gf'],
    ),
    dict(role='model', parts=[dict(text='x'), dict(text='y')]),
]


def test_anthropics_parts(conv):
    tool = dict(name='f', input_schema=dict(type='object', properties=dict(x=dict(type='integer'))))
    (ep,), said, _ = conv([dict(messages=ANTHROPIC, tools=[tool])])
    first, one, second, two = ep['messages'][1:5]
    assert first['think'] == 'Hm.\n\nI look.' and first['arguments'] == {'x': 1}
    assert (one['content'], second['arguments'], two['content']) == ('one', {'x': 2}, 'two')
    assert '"x": {"type": "integer"}' in ep['system']
    assert 'content[].signature (1 row)' in said and 'content[].citations (1 row)' in said


def test_geminis_contents(conv):
    declared = [dict(name=n, parameters=dict(x=dict(type='INTEGER'))) for n in 'fg']
    row = dict(contents=GEMINI, systemInstruction=dict(parts=[dict(text='Be kind.')]))
    (ep,), _, _ = conv([row | dict(tools=[dict(functionDeclarations=declared)])], strict=True)
    assert [m.get('content') for m in ep['messages']] == [
        '?',
        None,
        {'r': 'f'},
        None,
        {'r': 'g'},
        'xy',
    ]
    assert ep['system'].startswith('Be kind.\nTools:\n{"name": "f"')


def test_words_behind_a_call_are_not_moved(conv):
    row = dict(messages=json.loads(json.dumps(ANTHROPIC)))
    row['messages'][1]['content'].reverse()
    with pytest.raises(UserError, match='text after a call in one message'):
        conv([row])


def test_a_result_of_another_tool_is_not_given_to_the_call(conv):
    asked = calls(('', {}))
    row = talk(
        '?', asked, dict(role='tool', name='g', content='G'), dict(role='assistant', content='x')
    )
    with pytest.raises(UserError, match='results that name other tools than the calls'):
        conv([row])


def test_keys_of_calls_and_tools_are_accounted_for(conv):
    call = dict(id='1', type='function', function=dict(name='f', arguments='{}'), signature='s')
    tool = dict(type='function', function=dict(name='f', parameters={}, strict=True))
    row = talk('?', dict(role='assistant', content=None, tool_calls=[call]), tools=[tool])
    with pytest.raises(UserError, match=r'tool_calls\[\].signature .*, tools\[\].function.strict'):
        conv([row], strict=True)


def test_an_unwanted_answer_is_not_learned(conv):
    for key in ('label', 'kto_tag'):
        for row in (talk('a', 'b'), dict(prompt='a', completion='b')):
            with pytest.raises(UserError, match=f'marked as unwanted .{key}.'):
                conv([row | {key: False}])
            conv([row | {key: True}], strict=True)


def test_the_chosen_answer_in_every_form(conv):
    chosen, rejected = {'from': 'gpt', 'value': 'good'}, {'from': 'gpt', 'value': 'bad'}
    for row in (
        dict(conversations=[{'from': 'human', 'value': 'q'}], chosen=chosen, rejected=rejected),
        dict(chosen=talk('q', 'good')['messages'], rejected=talk('q', 'bad')['messages']),
        dict(prompt='q', chosen='good', rejected='bad'),
    ):
        (ep,), said, _ = conv([row])
        assert [m['content'] for m in ep['messages']] == ['q', 'good']
        assert 'not used: rejected (1 row)' in said


def test_dialogues_in_one_text(conv):
    "HH keeps both dialogues whole, in a text each."
    talk_of = '\n\nHuman: 2+2?\n\nAssistant: 4\n\nHuman: Why?\n\nAssistant: {}'
    good = 'Two twos.\n\n  Human: no speaker.\nAssistant: nor this'
    row = dict(chosen=talk_of.format(good), rejected=talk_of.format('No.'))
    (ep,), said, _ = conv([row])
    assert [m['content'] for m in ep['messages']] == ['2+2?', '4', 'Why?', good]
    assert 'not used: rejected (1 row)' in said
    (ep,), _, _ = conv([dict(prompt='q', chosen=row['chosen'], rejected='x')])
    assert ep['messages'][1]['content'] == row['chosen']  # with a prompt it is the answer
    with pytest.raises(UserError, match='user after user'):
        conv([dict(chosen='\n\nHuman: a\n\nHuman: b\n\nAssistant: c', rejected='x')])


def test_a_prompt_inside_of_a_pair(conv):
    (ep,), _, _ = conv([dict(conversation=[dict(system='S', input='q', output='x')])], strict=True)
    assert ep['system'] == 'S'


# --- weights in the words of tables and of other sets


@pytest.mark.parametrize(
    'fields, weight',
    [
        (dict(weight='0'), 0),
        (dict(weight='0.5'), 0.5),
        (dict(weight=False), 0),
        (dict(weight=True), None),
        (dict(loss_weight=0.5), 0.5),
        (dict(train='False'), 0),
        (dict(train=0), 0),
        (dict(train='1'), None),
        (dict(loss_mask=0), 0),
        (dict(masked=True), 0),
        (dict(masked=0), None),
        (dict(mask=True), 0),
    ],
)
def test_a_weight_in_other_words(conv, fields, weight):
    said = dict(role='assistant', content='b') | fields
    assert answer_of(conv, talk('a', said)).get('weight') == weight
    assert answer_of(conv, dict(instruction='a', output='b') | fields).get('weight') == weight


LISTED = [
    (dict(weights=[0, 0, 0, 1]), [0, None]),
    (dict(weights=[0, 0.5]), [0, 0.5]),
    (dict(weights=['0', None]), [0, None]),
    (dict(weight=[1, 0]), [None, 0]),
    (dict(loss_weights='[0, 2]'), [0, 2]),
    (dict(loss_mask=[False, True, False, False]), [None, 0]),
    (dict(train=['yes', 'no']), [None, 0]),
    (dict(weights=[0.5, 1], train=[True, False]), [0.5, 0]),
]


@pytest.mark.parametrize('fields, weights', LISTED)
def test_weights_in_a_list_beside_the_messages(conv, fields, weights):
    (ep,), _, _ = conv([talk('a', 'b', 'c', 'd', **fields)], strict=True)
    assert [m.get('weight') for m in ep['messages'][1::2]] == weights
    assert not any('weight' in m for m in ep['messages'][::2])


def test_lists_beside_a_prompt_calls_and_pairs(conv):
    for row in (
        dict(prompt='q', completion='x', weights=[0, 0.5]),
        dict(instruction='q', output='x', weights=[0.5]),
        dict(conversation=[dict(input='q', output='x')], weights=[0.5]),
    ):
        (ep,), _, _ = conv([row], strict=True)
        assert ep['messages'][1]['weight'] == 0.5
    row = talk('?', calls(('a', {})), result('a', '1'), 'x', weights=[0, 2, 0, 0.5])
    (ep,), _, _ = conv([row], strict=True)
    assert [m.get('weight') for m in ep['messages']] == [None, 2, None, 0.5]


def test_a_list_that_cannot_be_shared_out(conv):
    for weights in ([1, 0, 1], [0, 'heavy'], [1, 5]):
        with pytest.raises(UserError, match='none of 1 rows could be used'):
            conv([talk('a', 'b', 'c', 'd', weights=weights)])
    _, said, _ = conv([talk('a', 'b', 'c', 'd', loss_mask=[0, 0, 1, 1, 1, 1, 0])])
    assert 'not used: loss_mask (1 row)' in said  # of tokens, not of messages


def test_weights_in_a_table_and_in_a_tree(conv):
    eps, _, _ = conv(
        'prompt,completion,weight,train\nq,x,0,\nr,y,0.5,true\ns,z,,no\n', name='in.csv'
    )
    assert [ep['messages'][1].get('weight') for ep in eps] == [0, 0.5, 0]
    tree = dict(message_tree_id='1', lang='en', deleted=False, rank=None)
    rows = [
        tree | dict(message_id='1', role='prompter', text='q', parent_id=None),
        tree | dict(message_id='2', role='assistant', text='x', parent_id='1', weight=0),
    ]
    assert conv(rows)[0][0]['messages'][1]['weight'] == 0


def test_what_is_no_weight_is_reported_or_refused(conv):
    _, said, _ = conv([dict(instruction='a', output='b', weight='3 kg', mask=1, loss=0.25)])
    assert 'weight (1 row), mask (1 row), loss (1 row)' in said
    with pytest.raises(UserError, match="'heavy' is no weight"):
        conv([talk('a', dict(role='assistant', content='b', weight='heavy'))])
    with pytest.raises(UserError, match='a text that is not to be trained'):
        conv([dict(text='a', train=False)])
