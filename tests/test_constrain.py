"Grammars of clients' schemas: what comes out is valid and ends in time."

import json
import random
import jsonschema
import pytest
from mypt.data.tokenizer import get_tokenizer
from mypt.inference.constrain import ANY_OBJECT, JsonGrammar, JsonWriter, answer_schema

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
