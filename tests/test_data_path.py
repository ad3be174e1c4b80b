"""Properties of the data path: round trips, hostile text, checker and schema agreeing, masks."""

import json
import random
import resource
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from jsonschema import Draft202012Validator
from mypt.data.tokenizer import TAGS, get_tokenizer
from mypt.errors import UserError
from mypt.data.episodes import (
    EpisodeError,
    ROLE_FIELDS,
    check_episode,
    iter_episodes,
    json_schema,
    parse_line,
    read_episodes,
)
from mypt.data.masks import POLICIES, encode, encode_batch, role_weights, roles_of
from mypt.data.serialize import LAYOUTS, ROLES, parse, random_episode, serialize, span_ids, to_ids

KINDS = ('byte', 'gpt2:300', 'gpt2:2048', 'gpt2')
HOSTILE = [
    *TAGS,
    '<|endoftext|>',
    '<myPT_',
    'assistant>',
    '</myPT',
    '_user>',
    '<MYPT_EOT>',
    '＜myPT_eot＞',
    '<myPT_eot\u200b>',
    '\\u003cmyPT_eot>',
    '\n',
    ' ',
    '\t',
    '{"name": "f"}',
    '"',
    '\\',
    '🙂',
    'ü',
    '\ufeff',
    '\u202e',
    '\x7f',
    'Hello',
    '[1] (a.md) ',
]


def hostile_text(rng):
    def text():
        return ''.join(rng.choices(HOSTILE, k=rng.randint(1, 6))) + rng.choice(['a', 'ß', '.'])

    return text


@pytest.mark.parametrize('seed', range(10))
def test_ten_thousand_round_trips(seed):
    "parse(serialize(e)) == e over 10,000 episodes that spell tags, all layouts and tokenizers."
    rng = random.Random(seed)
    text = hostile_text(rng)
    for _ in range(1000):
        ep = random_episode(rng, text)
        assert check_episode(ep) == ep
        tok, layout = get_tokenizer(rng.choice(KINDS)), rng.choice(LAYOUTS)
        ids = to_ids(serialize(ep, layout), tok)
        assert parse(ids, tok) == ep
        structural = [s.text for s in serialize(ep, layout) if s.tag]
        assert [tok.token_str(i) for i in ids if tok.is_tag(i)] == structural
        assert tok.endoftext not in ids


anything = st.text(
    st.characters(exclude_categories=['Cs'], exclude_characters='\0'), min_size=1
).filter(str.strip)


def maybe(strategy):
    return st.one_of(st.none(), strategy)


answers = st.tuples(anything, maybe(anything), maybe(anything)).map(
    lambda t: (
        {'role': 'assistant', 'content': t[0]}
        | ({'think': t[1]} if t[1] else {})
        | ({'cite': t[2]} if t[2] else {})
    )
)
json_values = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False, allow_infinity=False),
        anything,
    ),
    lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(anything, x, max_size=3)),
    max_leaves=5,
)


@given(
    st.lists(st.tuples(anything, answers), min_size=1, max_size=3),
    maybe(anything),
    st.sampled_from(KINDS),
    st.sampled_from(LAYOUTS),
)
@settings(max_examples=300, deadline=None)
def test_any_text_survives(turns, system, kind, layout):
    ep = ({'system': system} if system else {}) | {
        'messages': [m for q, a in turns for m in ({'role': 'user', 'content': q}, a)]
    }
    ep, tok = check_episode(ep), get_tokenizer(kind)
    assert parse(to_ids(serialize(ep, layout), tok), tok) == ep


@given(
    st.dictionaries(anything, json_values, max_size=3),
    st.one_of(anything, st.dictionaries(anything, json_values, max_size=3)),
    anything,
)
@settings(max_examples=200, deadline=None)
def test_any_tool_call_survives(arguments, result, name):
    ep = check_episode(
        {
            'messages': [
                {'role': 'user', 'content': 'q'},
                {'role': 'assistant_toolcall', 'name': name, 'arguments': arguments},
                {'role': 'toolresult', 'name': name, 'content': result},
                {'role': 'assistant', 'content': 'a'},
            ]
        }
    )
    tok = get_tokenizer('gpt2')
    assert parse(to_ids(serialize(ep), tok), tok) == ep


@pytest.mark.parametrize('layout', LAYOUTS)
def test_prompt_is_the_episode_stopped_early(layout):
    rng = random.Random(5)
    text, tok = hostile_text(rng), get_tokenizer('gpt2')
    for _ in range(300):
        ep = random_episode(rng, text)
        whole = to_ids(serialize(ep, layout), tok)
        for i, m in enumerate(ep['messages']):
            if m['role'] not in ('assistant', 'assistant_toolcall'):
                continue
            p = to_ids(serialize({**ep, 'messages': ep['messages'][:i]}, layout, prompt=True), tok)
            assert whole[: len(p)] == p and p[-1] == tok.tag_ids['<myPT_assistant>']


# ---------------------------------------------------------------- every order of §3, written out

U, A = {'role': 'user', 'content': 'Q'}, {'role': 'assistant', 'content': 'A'}
CALL = {'role': 'assistant_toolcall', 'name': 'f', 'arguments': {'x': 1}}
RES = {'role': 'toolresult', 'name': 'f', 'content': {'y': 2}}
CALL_BLOCK = '<assistant><toolcall>{"name": "f", "x": 1}</toolcall></assistant>'
RES_BLOCK = '<toolresult>{"y": 2}</toolresult>'
ORDERS = {  # name: (episode, tokens in blocks, the mask with one digit per span)
    'plain': ({'messages': [U, A]}, '<user>Q</user><assistant>A</assistant><eot>', '0000111'),
    'system': (
        {'system': 'S', 'messages': [U, A]},
        '<system>S</system><user>Q</user><assistant>A</assistant><eot>',
        '0000000111',
    ),
    'context': (
        {'messages': [{**U, 'context': 'C'}, A]},
        '<user><user_context>C</user_context>Q</user><assistant>A</assistant><eot>',
        '0000000111',
    ),
    'assistant context': (
        {'messages': [U, {'role': 'assistant_context', 'content': 'K'}, A]},
        '<user>Q</user><assistant_context>K</assistant_context><assistant>A</assistant><eot>',
        '0000000111',
    ),
    'think': (
        {'messages': [U, {**A, 'think': 'T'}]},
        '<user>Q</user><assistant><think>T</think>A</assistant><eot>',
        '0000111111',
    ),
    'cite': (
        {'messages': [U, {**A, 'cite': 'c'}]},
        '<user>Q</user><assistant>A<cite>c</cite></assistant><eot>',
        '0000111111',
    ),
    'cite inside': (
        {'messages': [U, {'role': 'assistant', 'content': 'AB', 'cite': [{'at': 1, 'text': 'c'}]}]},
        '<user>Q</user><assistant>A<cite>c</cite>B</assistant><eot>',
        '00001111111',
    ),
    'two turns': (
        {'messages': [U, A, U, A]},
        '<user>Q</user><assistant>A</assistant><eot><user>Q</user><assistant>A</assistant><eot>',
        '00001110000111',
    ),
    'tool': (
        {'messages': [U, {**CALL, 'think': 'T'}, RES, A]},
        f'<user>Q</user>{CALL_BLOCK.replace("<toolcall>", "<think>T</think><toolcall>")}'
        f'{RES_BLOCK}<assistant>A</assistant><eot>',
        '000011111110000111',
    ),
    'chain': (
        {'messages': [U, CALL, RES, CALL, RES, A]},
        f'<user>Q</user>{CALL_BLOCK}{RES_BLOCK}{CALL_BLOCK}{RES_BLOCK}<assistant>A</assistant><eot>',
        '00001111000011110000111',
    ),
    'call at the end': ({'messages': [U, CALL]}, f'<user>Q</user>{CALL_BLOCK}<eot>', '000011111'),
    'replay': ({'_replay': True, 'text': 'once'}, 'once', '1'),
}


def zip_spans(spans, tok):
    return zip(spans, span_ids(spans, tok), strict=True)


@pytest.mark.parametrize('name', ORDERS)
def test_every_order_exactly(name):
    ep, text, mask = ORDERS[name]
    tok = get_tokenizer('gpt2')
    want = tok.encode_with_tags(
        text.replace('</', '</myPT_').replace('<', '<myPT_').replace('<myPT_/myPT_', '</myPT_')
    )
    spans = serialize(ep)
    assert [int(s.trained) for s in spans] == list(map(int, mask))
    enc = encode(ep, tok)
    assert enc.ids.tolist() == want == to_ids(spans, tok)
    trained = [int(s.trained) for s, ids in zip_spans(spans, tok) for _ in ids]
    assert enc.mask.tolist() == trained
    lines = encode(ep, tok, layout='lines')
    newline = lines.roles == ROLES.index('newline')
    assert lines.ids[~newline].tolist() == want and not lines.mask[newline].any()
    ends = ('system', 'user', 'assistant_context', 'toolresult', 'assistant_close')
    closers = [s for s in spans if s.text.startswith('</') and s.role in ends]
    assert newline.sum() == len(closers) + sum(s.role == 'eot' for s in spans)


def test_the_worked_example_of_the_contract():
    question = {'role': 'user', 'content': 'Say hello.'}
    answer = {'role': 'assistant', 'content': 'Hello.'}
    ep = {'system': 'You are MyPT.', 'messages': [question, answer]}
    enc = encode(ep, get_tokenizer('gpt2'))
    system = [50257, 1639, 389, 2011, 11571, 13, 50258]
    user, assistant = [50259, 25515, 23748, 13, 50260], [50261, 15496, 13, 50262, 50275]
    assert enc.ids.tolist() == system + user + assistant
    assert enc.mask.tolist() == [0] * 13 + [1] * 4


# ---------------------------------------------------------------- masks


@pytest.mark.parametrize('policy', POLICIES)
@pytest.mark.parametrize('weighted', [False, True])
def test_weights_follow_the_span_that_made_the_token(policy, weighted):
    rng = random.Random(7)
    text, tok = hostile_text(rng), get_tokenizer('gpt2:2048')
    table = role_weights(policy, weighted)
    for _ in range(200):
        ep, layout = random_episode(rng, text), rng.choice(LAYOUTS)
        spans = serialize(ep, layout)
        want = [table[ROLES.index(s.role)] for s, ids in zip_spans(spans, tok) for _ in ids]
        enc = encode(ep, tok, policy, layout, weighted)
        assert enc.weights.tolist() == want
        assert (roles_of(enc.ids, tok) == enc.roles).all()
        assert enc.mask.any() and not enc.mask[enc.roles < ROLES.index('assistant_open')].any()


@pytest.mark.parametrize(
    'policy,want',
    [('pipeline', [0, 1, 1, 1]), ('phase3a', [1, 1, 1, 0]), ('rag_chat', [0, 1, 1, 0])],
)
def test_policies_on_open_content_close_eot(policy, want):
    enc = encode({'messages': [U, A]}, get_tokenizer('byte'), policy)
    assert enc.mask[-4:].tolist() == want


def test_batch_encoding_equals_one_by_one():
    rng = random.Random(3)
    eps = [random_episode(rng, hostile_text(rng)) for _ in range(50)]
    tok = get_tokenizer('gpt2')
    batch = encode_batch(eps, tok)
    singles = [encode(e, tok) for e in eps]
    assert batch.lengths.tolist() == [len(e) for e in singles]
    for name in ('ids', 'roles', 'msgs'):
        assert (getattr(batch, name) == np.concatenate([getattr(e, name) for e in singles])).all()


# ---------------------------------------------------------------- checker and schema

GOOD = [
    {
        'system': 'S',
        'messages': [
            {'role': 'user', 'content': 'q', 'context': 'c'},
            {'role': 'assistant', 'content': 'a', 'think': 't', 'cite': ['x', 'y']},
        ],
        'language': 'en',
        'id': '1',
        '_meta': {'a': 1},
    },
    {
        'messages': [
            {'role': 'system', 'content': 'S'},
            {'role': 'user', 'content': 'q'},
            {
                'role': 'assistant_toolcall',
                'name': 'f',
                'arguments': {'a': [1, None]},
                'think': 't',
            },
            {'role': 'toolresult', 'name': 'f', 'content': {'x': 1}},
            {'role': 'assistant', 'content': 'a', 'cite': 'x'},
        ]
    },
    {
        'messages': [
            {'role': 'user', 'content': 'q'},
            {'role': 'assistant_context', 'content': 'k'},
            {'role': 'assistant', 'content': 'a'},
        ]
    },
    {'_replay': True, 'text': 'some text', 'source': 's'},
]
JUNK = [
    None,
    0,
    1.5,
    True,
    '',
    ' ',
    'x',
    'a\0b',
    '\ud800',
    [],
    {},
    ['x'],
    {'k': 'v'},
    'user',
    'assistant',
    'asistant',
    [{'text': 'c', 'at': 0}],
]


def places(v, path=()):
    yield path
    for k in v if isinstance(v, dict) else range(len(v)) if isinstance(v, list) else ():
        yield from places(v[k], (*path, k))


def mutate(ep, rng):
    ep = json.loads(json.dumps(ep))
    path = rng.choice([p for p in places(ep) if p])
    box = ep
    for k in path[:-1]:
        box = box[k]
    kind, junk = rng.randrange(4), json.loads(json.dumps(rng.choice(JUNK)))
    if kind == 0:
        del box[path[-1]]
    elif kind == 1:
        box[path[-1]] = junk
    elif kind == 2 and isinstance(box, dict):
        keys = ['contents', 'output', 'name', 'cite', 'context', 'zzz', 'text', 'think']
        box[rng.choice(keys)] = junk
    else:
        box[path[-1]] = rng.choice(GOOD[:3])['messages'] if rng.random() < 0.3 else junk
    return ep


BEYOND_SCHEMA = (
    'offset',
    'no user message',
    'keep one of',
    'nested deeper',
    'only a system',
    'no text file can hold',
)


def test_checker_and_schema_agree_on_thousands_of_broken_episodes():
    "Both verdicts are the same where the schema can express a rule; other errors are listed."
    rng, valid = random.Random(0), Draft202012Validator(json_schema()).is_valid
    verdicts = {True: 0, False: 0}
    for _ in range(6000):
        ep = mutate(rng.choice(GOOD), rng)
        for _ in range(rng.randrange(2)):
            ep = mutate(ep, rng) if isinstance(ep, dict) and ep else ep
        why = None
        try:
            check_episode(ep)
        except EpisodeError as e:
            why = str(e)
        if why and any(s in why for s in BEYOND_SCHEMA):
            continue
        assert valid(ep) == (why is None), (ep, why)
        verdicts[why is None] += 1
    assert min(verdicts.values()) > 300


@pytest.mark.parametrize('ep', GOOD)
def test_good_episodes_pass_both(ep):
    check_episode(ep)
    assert Draft202012Validator(json_schema()).is_valid(ep)


@pytest.mark.parametrize(
    'bad,words',
    [
        ({'messages': [{'role': 'usr', 'content': 'q'}]}, ['messages[0].role', "'user'"]),
        (
            {'messages': [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': ''}]},
            ['messages[1].content', 'empty'],
        ),
        ({'messages': [{'role': 'user', 'content': 3}]}, ['messages[0].content', 'a number']),
        ({'mesages': []}, ['mesages', "'messages'"]),
        ({'messages': [{'role': 'user', 'content': 'q', 'contxt': 'c'}]}, ['contxt', "'context'"]),
        ({'messages': 'hi'}, ['messages', 'a string']),
        ('x', ['$', 'a string']),
    ],
)
def test_errors_name_place_and_way_out(bad, words):
    with pytest.raises(EpisodeError) as e:
        check_episode(bad)
    assert '\n' not in str(e.value)
    for w in words:
        assert w in str(e.value)


def test_order_breaks_name_the_rule():
    u, a = {'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}
    for msgs in ([a], [u], [u, u, a], [u, a, a]):
        with pytest.raises(EpisodeError, match='messages'):
            serialize({'messages': msgs})


# ---------------------------------------------------------------- files

LINE = b'{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'


@pytest.mark.parametrize(
    'raw,words',
    [
        (b'{"messages": [}\n', ['not JSON', 'column']),
        (b'{"text": "caf\xe9"}\n', ['UTF-8', '0xe9']),
        (b'{"a": NaN}\n', ['NaN']),
        (b'{"_replay": true, "text": "a\x00b"}\n', ['not JSON']),
        (b'{"_replay": true, "text": "a\\u0000b"}\n', ['U+0000']),
        (b'{"_replay": true, "text": "a\\ud800b"}\n', ['U+D800']),
        (b'[' * 100000 + b'\n', ['nested']),
        (b'null\n', ['null']),
    ],
)
def test_bad_lines_say_where_and_what(tmp_path, raw, words):
    f = tmp_path / 'x.jsonl'
    f.write_bytes(LINE + raw + LINE)
    found = list(iter_episodes(f))
    assert [n for n, _ in found] == [1, 2, 3] and isinstance(found[1][1], UserError)
    message = str(found[1][1])
    assert message.startswith(f'{f}:2: ') and '\n' not in message
    for w in words:
        assert w in message


def test_bom_crlf_blank_lines_and_a_missing_newline(tmp_path):
    f = tmp_path / 'x.jsonl'
    f.write_bytes(b'\xef\xbb\xbf' + LINE.replace(b'\n', b'\r\n') + b'\n  \n' + LINE.rstrip())
    assert len(read_episodes(f)) == 2


def test_a_line_of_fifty_megabytes_is_one_error_and_little_memory(tmp_path):
    f = tmp_path / 'x.jsonl'
    with open(f, 'wb') as out:
        out.write(LINE + b'{"_replay": true, "text": "')
        for _ in range(50):
            out.write(b'a' * 2**20)
        out.write(b'"}\n' + LINE)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = list(iter_episodes(f))
    assert [n for n, _ in found] == [1, 2, 3] and '16 MiB' in str(found[1][1])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000  # KiB


@pytest.mark.parametrize('name', ['nowhere.jsonl', '.'])
def test_missing_file_and_folder(tmp_path, name):
    with pytest.raises(UserError, match=r'no such file|folder'):
        read_episodes(tmp_path / name)


def test_older_forms(tmp_path):
    ep = parse_line(
        b'{"context": "episode_id: 0042", "messages": [{"role": "user", "content": "q"}, '
        b'{"role": "assistant", "content": "a"}]}'
    )
    assert ep['_meta'] == {'episode_id': '0042'} and 'context' not in ep['messages'][0]
    ep = check_episode({'context': '[1] (a.md) x', 'messages': GOOD[2]['messages']})
    assert ep['messages'][0]['context'] == '[1] (a.md) x'


def test_every_role_of_the_schema_is_serialized():
    roles = 'user assistant assistant_toolcall toolresult assistant_context'
    assert set(ROLE_FIELDS) == set(roles.split())
