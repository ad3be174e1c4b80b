"Grammars of clients' schemas: what comes out is valid and ends in time."

import json
import random
import time
from itertools import pairwise
import jsonschema
import pytest
from mypt.agent.agent import read_reply
from mypt.agent.tools import Tool
from mypt.data.episodes import MAX_DEPTH
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.inference.constrain import ANY_OBJECT, CallGrammar, JsonGrammar, JsonWriter, answer_schema
from mypt.serve.openai import ApiError, read_body
from mypt.serve.runner import reply_grammar

tok = get_tokenizer('byte')
NODE = {
    '$defs': {
        'node': {
            'type': 'object',
            'properties': {
                'kids': {'type': 'array', 'items': {'$ref': '#/$defs/node'}},
                'name': {'type': 'string', 'maxLength': 4},
            },
            'required': ['name'],
        }
    },
    '$ref': '#/$defs/node',
}
ADDRESS = dict(
    type='object',
    properties=dict(
        street=dict(type='string', minLength=2, maxLength=30), zip=dict(pattern='^[0-9]{5}$')
    ),
    required=['street', 'zip'],
)
PERSON = {
    'title': 'Person',
    'type': 'object',
    'properties': {
        'name': {'type': 'string', 'maxLength': 12},
        'age': {'type': 'integer', 'minimum': 18, 'maximum': 120},
        'score': {'type': 'number', 'exclusiveMinimum': 0, 'maximum': 1},
        'kind': {'enum': ['new', 'known', 'übel "x"', 3, None]},
        'tags': {
            'type': 'array',
            'items': {'type': 'string', 'maxLength': 5},
            'minItems': 1,
            'maxItems': 3,
        },
        'homes': {'type': 'array', 'items': ADDRESS, 'maxItems': 2},
        'since': {'type': 'string', 'format': 'date'},
        'note': {'anyOf': [{'type': 'string', 'maxLength': 3}, {'type': 'null'}]},
    },
    'required': ['name', 'age', 'kind', 'tags', 'homes'],
}
SCHEMAS = dict(
    person=PERSON,
    node=NODE,
    any={},
    object=ANY_OBJECT,
    open={
        'type': 'object',
        'properties': {'a': {'type': 'integer'}},
        'required': ['a', 'b'],
        'additionalProperties': {'type': 'boolean'},
    },
    union={
        'oneOf': [
            {'type': 'integer', 'multipleOf': 7},
            {'type': 'array', 'items': {'const': 'x'}, 'minItems': 2},
        ]
    },
    tuple={
        'type': 'array',
        'prefixItems': [{'type': 'string'}, {'type': 'number'}],
        'items': False,
        'minItems': 2,
    },
    inherited={
        'allOf': [
            {'properties': {'a': {'type': 'string', 'maxLength': 2}}, 'required': ['a']},
            {'properties': {'b': {'type': 'integer'}}, 'required': ['b']},
        ],
        'type': 'object',
    },
    plate={'type': 'string', 'pattern': '^[A-ZÄÖÜ]{1,3}-[A-Z]{1,2} [1-9][0-9]{0,3}$'},
    stars={'type': 'string', 'pattern': '^(ab)*c+d$'},
    long={'type': 'string', 'minLength': 40, 'maxLength': 60},
    many={'type': 'array', 'items': {'type': 'boolean'}, 'minItems': 12, 'maxItems': 12},
    holds=dict(pattern='foo'),
    holds_more=dict(pattern='(a+)+b.?x$'),
    number=dict(pattern=r'\d{3}-\d{4}', maxLength=20),
    types={'type': ['string', 'integer', 'null'], 'maxLength': 3},
    nothing={'type': 'object', 'properties': {}},
    either={
        'type': 'object',
        'properties': {'a': {'type': 'integer'}, 'b': {'type': 'integer'}},
        'anyOf': [{'required': ['a']}, {'required': ['b']}],
    },
    least_of_a_reference={
        'type': 'object',
        'properties': {'x': {'$ref': '#/$defs/l', 'minItems': 6}},
        '$defs': {'l': {'type': 'array', 'items': {'type': 'string', 'minLength': 9}}},
    },
    kana={'type': 'object', 'properties': {'x': {'pattern': '^[ぁ-ん]+$', 'minLength': 30}}},
    nested={'type': 'object', 'properties': {'x': {'pattern': '^(([a-z]{9}-){3}){2}$'}}},
    spread={
        'type': 'object',
        'properties': {
            'x': {
                'type': 'object',
                'allOf': [
                    *({'properties': {k: {'type': 'string', 'minLength': 9}}} for k in 'abcd'),
                    {'required': list('abcd')},
                ],
            }
        },
    },
)


def walk(grammar, limit, rng):
    "Ids under a grammar, each picked from all that may come."
    writer, ids = JsonWriter(grammar), []
    for left in range(limit, 0, -1):
        ids.append(rng.choice(writer.mask(left).nonzero()[0].tolist()))
        if ids[-1] == grammar.close:
            return ids[:-1]
        assert writer.read(ids[-1])
    raise AssertionError(f'did not end: {grammar.tok.decode(ids)}')


def check(schema, text):
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize('kind', ['byte', 'gpt2:512'])
@pytest.mark.parametrize('name', SCHEMAS)
def test_random_walks_are_valid_and_end_in_time(name, kind):
    "Uniform choices leave no corner unseen, with many tokens and with hardly enough."
    rng, tok = random.Random(name), get_tokenizer(kind)
    g = JsonGrammar(tok, answer_schema(SCHEMAS[name]))
    check(SCHEMAS[name], tok.decode(g.shortest[:-1]))
    for _ in range(25):
        limit = len(g.shortest) + rng.choice([0, 1, 7, 40, 150])
        check(SCHEMAS[name], tok.decode(walk(g, limit, rng)))


def accepts(grammar, text):
    matcher, ids = grammar.start(), list(text.encode())
    fits = matcher.validate_tokens(ids) == len(ids) and matcher.consume_tokens(ids)
    return bool(fits and matcher.is_accepting())


PATTERNS = [dict(pattern=f'^{"b" * 60}d{i:03}$') for i in range(300)]
LONG = [dict(pattern=f'^b{{1999}}d{i:03}$') for i in range(100)]


@pytest.mark.parametrize('patterns', [PATTERNS, LONG], ids=['many', 'long'])
def test_a_search_for_the_end_is_short_with_many_patterns(patterns):
    "It took 5 s in the model's thread, and minutes where a schema is read."
    s = dict(type='string', pattern='^[bc]*$', minLength=900)
    start = time.thread_time()
    g = JsonGrammar(tok, answer_schema(dict(properties=dict(s=s, p=dict(anyOf=patterns)))))
    writer = JsonWriter(g)
    assert all(writer.read(b) for b in b'{"s": "')
    writer.mask(915)
    assert time.thread_time() - start < 3


def test_counts_in_counts_are_not_built():
    "The example of a match had 400 GB."
    pattern = '^((a{2000}){2000}){100}$'
    g = JsonGrammar(tok, answer_schema(dict(properties=dict(a=dict(pattern=pattern)))))
    assert tok.decode(g.shortest[:-1]) == '{}'


CATS = dict(kind=dict(const='cat', type='string'), lives=dict(type='integer'))
DOGS = dict(kind=dict(const='dog', type='string'), age=dict(type='integer'))
PETS = {
    'oneOf': [{'$ref': '#/$defs/Cat'}, {'$ref': '#/$defs/Dog'}],
    'discriminator': {'propertyName': 'kind'},
    '$defs': dict(
        Cat=dict(type='object', properties=CATS, required=['kind', 'lives']),
        Dog=dict(type='object', properties=DOGS, required=['kind', 'age']),
    ),
}
TEXTS = [  # (schema, texts that are right, texts that are wrong)
    (dict(format='date'), ['"2024-02-29"', '"2000-02-29"'], ['"2023-02-29"', '"1900-02-29"']),
    (dict(format='date'), ['"0001-12-31"'], ['"0000-01-01"', '"2024-04-31"']),
    (dict(format='date-time'), ['"2024-02-29T10:00:00Z"'], ['"2023-02-29T10:00:00Z"']),
    (dict(format='time'), ['"10:00:59.5+01:00"'], ['"10:00:60Z"']),
    (dict(format='date', pattern='^2'), ['"2024-02-29"'], ['"1999-01-01"', '"2023-02-29"']),
    (
        dict(type='number', exclusiveMinimum=0, exclusiveMaximum=1),
        ['0.5', '0.001'],
        ['0.' + '9' * 20, '0.' + '0' * 400 + '1', '0', '1'],
    ),
    (dict(type='integer', exclusiveMinimum=0, exclusiveMaximum=2), ['1'], ['0', '2']),
    (
        dict(required=['a'], allOf=[{}, {}]),
        ['{"a": 1}'],
        ['{"a": 1e999}', '{"a": 1, "\\u0000": 1}'],
    ),
    (PETS, ['{"kind": "cat", "lives": 9}'], ['{"kind": "cat", "age": 9}']),
]


@pytest.mark.parametrize('schema, right, wrong', TEXTS)
def test_what_a_schema_says_is_held(schema, right, wrong):
    g = JsonGrammar(tok, answer_schema(schema))
    assert [t for t in right if not accepts(g, t)] == [] == [t for t in wrong if accepts(g, t)]


REFUSED = [
    (dict(const=2**53), '2\\^53'),
    (dict(enum=[1, {'a': [2**60]}]), '2\\^53'),
    (dict(const='x\0y'), 'U\\+0000'),
    (dict(properties={'a\0': {}}), 'U\\+0000'),
    (dict(properties=dict(a={}), required=['b'], additionalProperties=False), "'b' is not in"),
    (dict(type='number', multipleOf=0.01), 'multipleOf'),
    (dict(oneOf=[dict(type='string', minLength=2), dict(type='string', maxLength=2)]), 'oneOf'),
    *((dict(format=form), 'format') for form in ('regex', 'iri', 'json-pointer')),
    *(
        ({word: False}, word)
        for word in ('unevaluatedProperties', 'unevaluatedItems', 'propertyNames', 'contains', 'if')
    ),
]


@pytest.mark.parametrize('schema, why', REFUSED)
def test_what_cannot_be_held_is_named(schema, why):
    with pytest.raises(UserError, match=why):
        JsonGrammar(tok, answer_schema(schema))


def test_what_forbids_nothing_is_read_over():
    harmless = dict(uniqueItems=False, propertyNames=True, format='int32') | {'not': False}
    JsonGrammar(tok, answer_schema(dict(type='integer', multipleOf=0.25) | harmless))


WHOLE = dict(type='integer')
TWO = dict(properties=dict(a=WHOLE, b=WHOLE))
A = dict(type='object', properties=dict(n=WHOLE), required=['n'])
CALLS = [  # (parameters, calls that are right, calls that are wrong)
    (dict(required=['a']), ['{"name": "f", "a": [1]}'], ['{"name": "f"}']),
    (TWO | dict(required=['a', 'c']), ['{"name": "f", "a": 1, "c": "x"}'], []),
    (
        TWO | dict(additionalProperties=False, minProperties=1),
        ['{"name": "f", "arguments": {"a": 1}}'],
        ['{"name": "f"}', '{"name": "f", "arguments": {}}'],
    ),
    (TWO | dict(const=dict(a=1)), ['{"name": "f", "arguments": {"a": 1}}'], ['{"name": "f"}']),
    (
        {'$ref': '#/$defs/A', '$defs': dict(A=A)},
        ['{"name": "f", "arguments": {"n": 1}}'],
        ['{"name": "f", "arguments": {"n": 1, "z": 1e999}}'],
    ),
    (
        dict(anyOf=[A, dict(type='object', properties=dict(m=WHOLE), required=['m'])]),
        ['{"name": "f", "arguments": {"m": 1}}'],
        ['{"name": "f", "arguments": {"n": 1, "z": 1e999}}'],
    ),
    (
        TWO | dict(oneOf=[dict(required=['a']), dict(required=['a', 'b'])]),
        ['{"name": "f", "a": 1}'],
        ['{"name": "f", "a": 1, "b": 1}', '{"name": "f", "b": 1}'],
    ),
]


@pytest.mark.parametrize('parameters, right, wrong', CALLS)
def test_what_a_tool_says_is_held(parameters, right, wrong):
    g = CallGrammar(tok, dict(f=Tool('f', '', parameters)))
    assert [t for t in right if not accepts(g, t)] == [] == [t for t in wrong if accepts(g, t)]


# ---------------------------------------------------------------- schemas within themselves

N, TEXT = {'$ref': '#/$defs/n'}, {'type': 'string', 'maxLength': 2}
MAYBE = {'anyOf': [N, {'type': 'null'}]}


def node(**properties) -> dict:
    return dict(type='object', properties=properties, required=[*properties])


def within(n: dict, whole: dict = N, **others) -> dict:
    "A schema that holds itself as `n`."
    return whole | {'$defs': dict(n=n, **others)}


def either(*schemas) -> dict:
    return {'anyOf': [*schemas]}


def kind(name: str) -> dict:
    return {'const': name}


FILE, LIST = {'$ref': '#/$defs/file'}, {'type': 'array', 'items': N}
WITHIN = dict(
    chain=within(node(next=MAYBE)),
    tree=within(node(left=MAYBE, right=MAYBE)),
    three=within(node(a=MAYBE, b=MAYBE, c=MAYBE)),
    sums=within(either(node(op=kind('add'), a=N, b=N), node(op=kind('number'), x=WHOLE))),
    told_last=within(either(node(a=N, b=N, op=kind('add')), node(x=WHOLE, op=kind('number')))),
    files=within(
        either(node(name=TEXT, inside=LIST | dict(minItems=1)), FILE), file=node(size=WHOLE)
    ),
    lists=within(either(LIST | dict(minItems=2), TEXT)),
    forest=within(node(left=MAYBE, right=MAYBE), LIST | dict(minItems=3)),
    spare=within(dict(type='object', properties=dict(a=N, b=N, x=WHOLE), required=['x'])),
    prefix=within(either(node(k=kind('a'), a=N, b=N), node(k=kind('ab'), x=WHOLE))),
    root=node(kids=dict(type='array', items={'$ref': '#'}), x=WHOLE),
)


def levels(text: str) -> int:
    "Levels of brackets in a JSON text."

    def inside(value):
        values = value.values() if isinstance(value, dict) else value
        return 1 + max(map(inside, values), default=0) if isinstance(value, (dict, list)) else 0

    return inside(json.loads(text))


def deep_walk(grammar, limit, rng, rate=0.8):
    "As `walk`, with a bracket in this share of the places where one may come."
    writer, ids = JsonWriter(grammar), []
    opens = {i for token, i in grammar.tok.ranks.items() if b'{' in token or b'[' in token}
    for left in range(limit, 0, -1):
        allowed = writer.mask(left).nonzero()[0].tolist()
        brackets = [i for i in allowed if i in opens]
        ids.append(rng.choice(brackets if brackets and rng.random() < rate else allowed))
        if ids[-1] == grammar.close:
            return ids[:-1]
        assert writer.read(ids[-1])
    raise AssertionError(f'did not end: {grammar.tok.decode(ids)}')


@pytest.mark.parametrize('kind', ['byte', 'gpt2:512'])
@pytest.mark.parametrize('name', WITHIN)
def test_a_schema_within_itself_is_held_and_ends(name, kind):
    "A tree was refused as one without a short text, since each way to the end opened a node more."
    rng, tok = random.Random(name), get_tokenizer(kind)
    g = JsonGrammar(tok, answer_schema(WITHIN[name]))
    check(WITHIN[name], tok.decode(g.shortest[:-1]))
    for more in (0, 7, 40, 150, 400, 1500):
        for walks in (walk, deep_walk):
            text = tok.decode(walks(g, len(g.shortest) + more, rng))
            check(WITHIN[name], text)
            assert levels(text) <= MAX_DEPTH


def chain(n: int) -> dict | None:
    return dict(next=chain(n - 1)) if n else None


def call_of(args: dict) -> str:
    return json.dumps(dict(name='f') | args)


def message_of(call: str):
    tags = tok.tag_ids
    ids = [tags['<myPT_toolcall>'], *call.encode(), tags['</myPT_toolcall>']]
    return read_reply([*ids, tags['</myPT_assistant>']], tok)


def test_the_grammar_allows_no_call_that_a_message_cannot_hold():
    "A call of 40 levels was lost after it was written."
    whole = dict(type='object', properties=dict(first=N), required=['first'])
    parameters = within(node(next=MAYBE), whole)
    g = CallGrammar(tok, dict(f=Tool('f', '', parameters)))
    for n in (1, MAX_DEPTH - 1, MAX_DEPTH, 40):
        call = call_of(dict(first=chain(n)))
        assert accepts(g, call) == (n < MAX_DEPTH)
        assert not accepts(g, call) or message_of(call)[0] is not None
    for seed in range(6):
        text = tok.decode(deep_walk(g, 1500, random.Random(seed), rate=1))
        message, problem = message_of(text)
        assert message is not None and not problem and 28 < levels(text) <= MAX_DEPTH


def deep(n: int, schema: dict) -> dict:
    return node(a=deep(n - 1, schema)) if n else schema


FAR = within(deep(20, dict(type='integer')), deep(20, N))
ENDLESS = [
    (within(node(next=N)), r'the schema: a value always holds another of its kind'),
    (within(node(a=node(next=LIST | dict(minItems=1)))), 'never ends; let one be left out'),
    (node(x=WHOLE) | dict(properties=dict(x=WHOLE, y=within(node(z=N), {})['$defs']['n'])), 'ends'),
    (FAR, 'a value has 40 levels at least, 31 are possible; flatten it'),
    (deep(18, dict(const=[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]])), 'has 34 levels at least'),
]


@pytest.mark.parametrize('schema, why', ENDLESS)
def test_what_has_no_near_end_is_one_line_before_a_row_begins(schema, why):
    schema = schema | {'$defs': dict(n=node(z=N)) | schema.get('$defs', {})}
    wanted = dict(type='json_schema', json_schema=dict(name='x', schema=schema))
    body = dict(model='m', messages=[dict(role='user', content='x')], response_format=wanted)
    with pytest.raises(ApiError, match=why) as e:
        reply_grammar(tok, read_body(body).wants)
    assert e.value.status == 400 and '\n' not in str(e.value)


def test_many_references_are_measured_soon():
    "Each reads the next, the last one first."
    names = [f'd{i}' for i in range(600)]
    defs = {b: {'anyOf': [{'$ref': f'#/$defs/{a}'}]} for a, b in pairwise(names)}
    start = time.thread_time()
    JsonGrammar(tok, answer_schema({'$ref': '#/$defs/d599', '$defs': defs | dict(d0=WHOLE)}))
    assert time.thread_time() - start < 5


def test_a_call_is_not_nested_too_deep_for_an_episode():
    "A schema within itself has no end, but the row goes to one."
    g = JsonGrammar(tok, answer_schema(NODE))
    writer, text = JsonWriter(g), b''
    for left in range(900, 0, -1):
        allowed = writer.mask(left)
        kids = b'"kids": [' if text.endswith(b'{') else b'{"'
        begun = next((k for k in range(len(kids), -1, -1) if text.endswith(kids[:k])), 0)
        wanted = [b for b in (*kids[begun:][:1], *b'{"k') if allowed[b]]
        i = wanted[0] if wanted else int(allowed.argmax())
        if i == g.close:
            break
        text += bytes([i])
        assert writer.read(i)
    assert 20 <= text.count(b'{') + text.count(b'[') < 32
    check(NODE, text.decode())
