"The chat template of a checkpoint lays OpenAI's messages out as the server and `serialize` do."

import json
import os
import random
import time
import pytest
from mypt.agent.tools import describe_tools
from mypt.data.hf_tokenizer import chat_template, tokenizer_json
from mypt.data.serialize import dump_json, random_episode, serialize, to_ids
from mypt.data.tokenizer import EOT, get_tokenizer
from mypt.serve.openai import ApiError, _read_tools, strict_json, to_episode, to_messages

tokenizers = pytest.importorskip('tokenizers')
transformers = pytest.importorskip('transformers')
N = int(os.environ.get('MYPT_TEMPLATES', 300))  # conversations; 2,000 take a minute
tok = get_tokenizer('gpt2:300')
WORDS = [
    'Hallo',
    ' Grüße',
    '\n',
    '{"a": 1}',
    '🙂',
    ' x',
    '"',
    "'",
    '&<',
    '\\',
    '{',
    '}',
    ': ',
    '\t',
]


def text(rng):
    return ''.join(rng.choices(WORDS, k=rng.randint(1, 4))) + rng.choice('ab')


def value(rng, depth=2):
    "Any JSON."
    plain = [
        True,
        None,
        rng.randint(-9, 10**6),
        rng.random() * 10 ** rng.randint(-9, 20),
        text(rng),
    ]
    if depth and rng.random() < 0.4:
        some = [value(rng, depth - 1) for _ in range(rng.randint(0, 3))]
        return some if rng.random() < 0.5 else {text(rng): v for v in some}
    return rng.choice(plain)


def spelt(rng, v):
    "JSON as some client may write it."
    return json.dumps(
        v,
        ensure_ascii=rng.random() < 0.5,
        indent=rng.choice([None, 1]),
        separators=rng.choice([None, (',', ':'), (' , ', ' : ')]),
    )


def arguments(rng):
    keys = ['query', 'top_k', 'name', 'arguments', text(rng)]
    return {k: value(rng) for k in rng.sample(keys, rng.randint(0, 3))}


def parts(rng, said):
    "The same text, as a string or in parts."
    if rng.random() < 0.6:
        return said
    at = rng.randint(0, len(said))
    return [dict(type='text', text=t) for t in (said[:at], said[at:])]


def thought(rng):
    return {'reasoning_content': text(rng)} if rng.random() < 0.3 else {}


def calls(rng):
    "An assistant message with one to three calls, and their results in any order."
    made, n = [], rng.randint(1, 3)
    for i in range(n):
        a = arguments(rng)
        given = spelt(rng, a) if rng.random() < 0.8 else a
        function = dict(name=f'tool.{i}', arguments=given if a or rng.random() < 0.5 else '')
        made.append(dict(id=f'c{i}', type='function', function=function))
    out = [dict(role='assistant', content=rng.choice([None, '']), tool_calls=made, **thought(rng))]
    for c in rng.sample(made, n):
        said = rng.choice([text(rng), spelt(rng, value(rng)), spelt(rng, arguments(rng))])
        out.append(dict(role='tool', tool_call_id=c['id'], content=parts(rng, said)))
    return out


def offered(rng):
    "Tools beside the messages, or none."
    out = []
    for i in range(rng.choice([0, 0, 1, 3])):
        properties = {k: dict(type='string', default='x') for k in rng.sample('abc', i)}
        function = dict(name=f'tool.{i}', parameters=dict(type='object', properties=properties))
        if rng.random() < 0.7:
            function['description'] = f'do {text(rng)}'
        out.append(dict(type='function', function=function))
    return out


def conversation(rng):
    out = []
    if rng.random() < 0.6:
        prompt = rng.choice(['You are MyPT.', ' Use tool.1 well. ', text(rng)])
        out.append(dict(role=rng.choice(['system', 'developer']), content=parts(rng, prompt)))
    for _ in range(rng.randint(1, 3)):
        out.append(dict(role='user', content=parts(rng, text(rng))))
        for _ in range(rng.choice([0, 0, 1, 2])):
            out += calls(rng)
        out.append(dict(role='assistant', content=parts(rng, text(rng)), **thought(rng)))
    return out


def theirs(layout='compact'):
    rust = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(tok)))
    template = chat_template(layout)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=rust, chat_template=template, eos_token=EOT
    )


def ours(messages, tools, layout, prompt):
    "Ids by the server's reading of the messages, and `serialize`."
    *history, last = messages
    ep = to_episode(history if last['role'] == 'assistant' else messages)
    system = ep.get('system', '')
    new = {k: t for k, t in _read_tools(tools).items() if k not in system}
    if new:
        ep['system'] = f'{system} {describe_tools(new)}'.strip()
    if not prompt:
        m = to_episode([*history, last, dict(role='user', content='x')])['messages'][-2]
        ep['messages'].append(m)
    return to_ids(serialize(ep, layout, prompt), tok)


@pytest.mark.parametrize('layout', ['compact', 'lines'])
def test_openai_conversations(layout):
    rng, hf = random.Random(11), theirs(layout)
    for n in range(N // 2):
        messages, tools, prompt = conversation(rng), offered(rng), rng.random() < 0.5
        if prompt:
            messages.pop()
        got = hf.apply_chat_template(
            messages, tools=tools or None, return_dict=False, add_generation_prompt=prompt
        )
        assert got == ours(messages, tools, layout, prompt), (n, messages, tools)


def test_the_servers_own_messages():
    rng, hf = random.Random(12), theirs()
    for _ in range(200):
        ep = random_episode(rng, lambda: text(rng))
        ep['messages'] = [m for m in ep['messages'] if m['role'] != 'assistant_context']
        got = hf.apply_chat_template(to_messages(ep), return_dict=False)
        assert got == to_ids(serialize(ep), tok)


def said(call, result, **kw):
    function = dict(name='f', arguments=call)
    talk = [
        dict(role='user', content='x'),
        dict(role='assistant', content=None, tool_calls=[dict(id='a', function=function)]),
        dict(role='tool', tool_call_id='a', content=result),
    ]
    return theirs().apply_chat_template(talk, tokenize=False, **kw)


ODD = [
    '',
    '{',
    '}',
    '{}',
    '[]',
    '{"a"}',
    '{"a": }',
    '{"a": 1,}',
    '{"a": 01}',
    '{"a": 1.}',
    '{"a": .5}',
    '{"a": -0}',
    '{"a": 1e5, "b": -1.50}',
    '{"a": 1e999}',
    '{"a": NaN}',
    '{"a": nul}',
    '{a: 1}',
    '{"a": 1} x',
    ' {"a": 1} ',
    '{"a": "\\u00fc\\ud83d\\ude42\\n\\/\\\\"}',
    '{"a": "\\ud83d"}',
    '{"a": "\\x"}',
    '{"a": "\\u00g0"}',
    '{"a": "\n"}',
    '{"a": "\\""}',
    '{"a\\"": [1, {"b": []}]}',
    '{"a": [1 2]}',
    '{"a": [1}]',
    '{"a" 1}',
    '{"a": "b" "c"}',
    '{"a": tr ue}',
    '{"": {"": ""}}',
    '{"a": 1_0}',
    '{"a": "\\u0_11"}',
    '{"a": +1}',
    '{"a": 1e}',
    '{"a": "\\ud83d\\n"}',
    '{"a":1,,"b":2}',
    '{"a": 1, "a": 2}',
    '{"a": 1, "\\u0061": 2}',
    '{"b": {"a": 1, "c": [], "a": 1}}',
    '{"a": [{"b": 1}, {"b": 2}], "b": {"a": {"b": 0}}, "c": "a"}',
    '{"": 1, "": 2}',
    '{"a": 1٣2}',
    '{"a": 1.٣2}',
    '{"a": ' + '7' * 500 + '}',
    '{"a": 1.' + '7' * 6000 + '}',
    '{"a": 1, "A": 2}',
    json.dumps({f'key{i}': i for i in range(450)}),
    json.dumps({f'key{i}': {'b': i} for i in range(450)})[:-1] + ', "key7": 0}',
]


@pytest.mark.parametrize('odd', ODD)
def test_json_in_a_string(odd):
    "What is a JSON object to Python is one to the template, and spelt as `dump_json` spells it."
    try:
        value = strict_json(odd)
        wanted = dump_json(value)
    except ValueError:
        value = wanted = None
    is_object = isinstance(value, dict)
    shown = said('{}', odd).partition('<myPT_toolresult>')[2].partition('</myPT_toolresult>')[0]
    assert shown == (wanted if is_object else dump_json(odd))
    if is_object or not odd:
        call = said(odd, 'x').partition('<myPT_toolcall>')[2].partition('</myPT_toolcall>')[0]
        assert json.loads(call) == {'name': 'f', **(value or {})}
    else:
        with pytest.raises(Exception, match='JSON object'):
            said(odd, 'x')


def test_what_has_no_place_is_an_error():
    hf, user = theirs(), dict(role='user', content='x')
    calls = [dict(id=i, function=dict(name='f', arguments='{}')) for i in 'ab']
    called = dict(role='assistant', content=None, tool_calls=calls)
    result = dict(role='tool', tool_call_id='a', content='y')
    for talk, problem in [
        ([dict(role='usr', content='x')], 'unknown role usr'),
        ([user, dict(role='system', content='x')], 'only the first'),
        ([user, called], 'no result'),
        ([user, called, result, user], 'no result'),
        ([user, result], 'answers no tool call'),
        ([user, called, result, result], 'answers no tool call'),
        ([user, called | dict(content='Let me see.')], 'either text or tool calls'),
        ([dict(role='user', content=[dict(type='image_url')])], 'text only'),
        ([dict(role='user', content=None)], 'a string'),
        ([user, user], 'a user speaks first'),
        (
            [user, dict(role='assistant', content='a'), dict(role='assistant', content='b'), user],
            'answers once',
        ),
        ([dict(role='user', content=' ')], 'is empty'),
        ([dict(role='assistant', content='a'), user], 'a user speaks first'),
        ([dict(role='system', content='s'), dict(role='assistant', content='a'), user], 'first'),
        ([user, called, result, result | dict(tool_call_id='b'), user], 'after an answer'),
        ([user, dict(role='assistant', content=''), user], 'is empty'),
    ]:
        with pytest.raises(Exception, match=problem):
            hf.apply_chat_template(talk, tokenize=False)
        with pytest.raises(ApiError):
            to_episode(talk)
    answered = [user, dict(role='assistant', content='a')]
    with pytest.raises(Exception, match='is an answer'):
        hf.apply_chat_template(answered, tokenize=False, add_generation_prompt=True)
    last = hf.apply_chat_template(
        [user, called, result], tokenize=False
    )  # the second is at the end
    assert last.count('<myPT_toolcall>') == 2 and last.endswith('<myPT_eot>')


def test_long_results_take_linear_time():
    for long in (
        '{"a": "' + '\\n' * 20_000 + '"}',
        '{"a": "' + 'x' * 10**6 + '"}',
        'x' * 10**6,
        '{' + 'x' * 10**5,
        '{"a": ' + '[' * 10**5,
        json.dumps({f'key{i}': 0 for i in range(5_000)}),
    ):
        start = time.process_time()
        said('{}', long)
        assert time.process_time() - start < 8, long[:10]


def test_an_empty_system_message_is_none():
    talk = [dict(role='system', content=''), dict(role='user', content='x')]
    got = theirs().apply_chat_template(talk, return_dict=False, add_generation_prompt=True)
    assert got == ours(talk, [], 'compact', True)
