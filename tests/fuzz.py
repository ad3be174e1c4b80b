"""False lines and files of every kind for every verb that reads them.

    python tests/fuzz.py 500                    # cases, spread over all readers; always the same ones
    python tests/fuzz.py 2000 convert --seed 7  # only readers whose names begin so

A fork of this process runs some cases through `mypt.cli.main`, with a second per case to spare and
a gigabyte to use. A case fails when a Python error leaves `main`, when it takes longer or more, when
what is printed is not one clear line, or when rows in are not rows out and rows reported.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

MOST_SECONDS = 10
MOST_BYTES = 2**30
AT_ONCE = 25  # cases of one fork

# ---------------------------------------------------------------- what strangers write

NUMBERS = [0, -1, 1, 3, 0.5, 10**9, -(10**9), 2**63, 2**64, 10**400, 1e400, -1e308, float('nan')]
OTHERS = [None, True, False, '', ' ', 'x', [], {}, [[]], ['x'], [None], {'a': 1}, [{}], [1, 'x']]
TAGS = [
    *('<myPT_user>', '</myPT_user>', '<myPT_assistant>', '</myPT_assistant>', '<myPT_system>'),
    *('<myPT_toolcall>', '</myPT_toolresult>', '<myPT_cite>', '<myPT_think>', '<|endoftext|>'),
    *('<think>', '</think>', '<tool_call>', '</tool_call>', '<tool_response>', '<tools>'),
    *('<function_calls>', '<functioncall>', '[INST]', '<|im_start|>', '<s>', '<cite 1/>'),
]
WORDS = [
    *(
        '\ud800',
        '\udfff\ud800',
        '\x00',
        '\x1b[2J',
        '\x1b]0;x\x07',
        '\r',
        '\x85',
        '\u2028',
        '\ufeff',
    ),
    *('\u200f', '\u202e', '\u0130', 'ß', 'ﬁ', 'a\u0301' * 9, '🧑\u200d🚀', '\U0010ffff', '\ufffe'),
    *(
        'User: x',
        '\n# Aufgabe: y',
        'Quelle:',
        '```\ncode',
        '    x = 1\n\ty',
        '%5.2f %1$s',
        '{% if %}',
    ),
    *('\\(a^2\\)', '$$x$$', '{"name": "value"}', '[link](x)', 'http://x.y/z', 'a@b.c', "it's", '…'),
    *('{}', '{0}', '{0.__class__}', '%s', '%(x)s', '\\1', '\\g<0>', '../../x', '/etc/passwd', '~'),
    *('nan', '1e400', 'None', 'null', '-', '0', '٣', '²', '½', '１', '١٢٣', 'x' * 300, 'ü' * 300),
    *(
        '"',
        "'",
        '\\',
        '<',
        '>',
        '&',
        '&#0;',
        '&#x110000;',
        '<![CDATA[',
        ']]>',
        '<?xml',
        '<!DOCTYPE',
    ),
]
LONG = [
    *(
        ' ',
        '\n',
        '\t',
        '\u3000',
        '`',
        '~',
        '<!--',
        '<a ',
        '<a b ',
        '{%',
        '{{',
        '$',
        '\\(',
        '[',
        '(',
    ),
    *(
        '"',
        "'",
        '“',
        'a.',
        '1,',
        '1.',
        'http://',
        'a@',
        '<',
        '>',
        '&',
        '*',
        '_',
        '#',
        '|',
        '> ',
        '- ',
    ),
    *(
        '\r\n',
        'a\u0301',
        '\u200d',
        '<think>',
        '</think>',
        '<tool_call>',
        '{"a":',
        '[{',
        '<b>',
        '</b>',
    ),
    *(
        '<td>',
        '<div>',
        '<p',
        '<br',
        '&lt',
        '---\n',
        '===\n',
        '```\n',
        '    x\n',
        'word ',
        'ab',
        '漢',
    ),
    *('\\', '%', '=', '<cite 1/>', '\n\n', 'User:', 'Question:\n', '<pre>', '<script>', '<style>'),
]


def text_of_a_stranger(rng: random.Random) -> str:
    kind = rng.randrange(10)
    if kind < 3:
        return rng.choice(TAGS)
    if kind < 9:
        return rng.choice(WORDS)
    piece = rng.choice(LONG)
    return piece * (rng.choice([100, 3000, 3000, 60_000]) // len(piece))


def spliced(text: str, rng: random.Random) -> str:
    "A text with something else in it, or less of it."
    new = text_of_a_stranger(rng)
    at = rng.randrange(len(text) + 1)
    return rng.choice(
        [new, new + text, text + new, text[:at] + new + text[at:], text[:at], text * 3]
    )


def nested(depth: int):
    value = []
    for _ in range(depth):
        value = {'a': value} if depth % 2 else [value]
    return value


def places(value, path=()):
    "Paths of all entries of a JSON value; of long lists and objects only some."
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in list(entries)[:40]:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, key))


def _other(value, rng: random.Random):
    "Another value in place of one."
    kind = rng.randrange(10)
    if kind < 2:
        return rng.choice(NUMBERS)
    if kind < 4:
        return copy.deepcopy(rng.choice(OTHERS))
    if kind == 4:
        return nested(rng.choice([2, 31, 33, 150, 400]))
    if kind == 5:
        return [value] if rng.random() < 0.5 else {'text': value, 'type': 'text'}
    return spliced(value if isinstance(value, str) else str(value), rng)


def mutated(value, rng: random.Random):
    "A copy of a JSON value in which one to three entries are others."
    value = copy.deepcopy(value)
    for _ in range(rng.choice([1, 1, 2, 3])):
        ways = list(places(value))
        if not ways:
            return value
        *way, key = rng.choice(ways)
        parent = value
        for k in way:
            parent = parent[k]
        kind = rng.randrange(8)
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, dict):
            new = rng.choice(['new', 'ü', '../x', 'k' * 500, rng.choice(WORDS), 'role', 'content'])
            parent[new] = parent.pop(key) if rng.random() < 0.5 else rng.choice(NUMBERS)
        elif kind == 1:
            parent += parent[:1] * rng.choice([1, 7, 200])
        else:
            parent[key] = _other(parent[key], rng)
    return value


def _json(value, rng: random.Random) -> str:
    ascii = rng.random() < 0.7
    text = json.dumps(value, ensure_ascii=ascii)
    return text


def _twice(text: str, rng: random.Random) -> str:
    "A key that stands twice in one object."
    keys = re.findall(r'"\w+": ', text)
    if not keys:
        return text
    at = rng.choice([m.end() for m in re.finditer(r'\{', text)] or [1])
    return (
        f'{text[:at]}{rng.choice(keys)}{rng.choice(["1", "null", "[]", chr(34) * 2])}, {text[at:]}'
    )


def broken_text(text: str, rng: random.Random) -> str:
    "A JSON text that is none, or hardly."
    at = rng.randrange(len(text) + 1)
    numbers = ['1e400', 'NaN', '-Infinity', '9' * 5000, '0x1', '01', '1.', '-', '1e-400', '1E+9']
    return rng.choice(
        [
            text[:at],
            text[at:],
            text + text,
            f'{text} {text}',
            f'[{text}]',
            f'{text},',
            text[:at] + rng.choice(WORDS) + text[at:],
            text.replace('"', "'"),
            re.sub(r': ("[^"]*"|\d+)', f': {rng.choice(numbers)}', text, count=1),
            re.sub(r'\}$', f', "_meta": {{"n": {rng.choice(numbers)}}}}}', text),
            re.sub(r'\}$', r', "_meta": {"n": "\\ud800", "\\udc00": 1}}', text),
            '[' * rng.choice([50, 5000, 100_000]),
            '{"a":' * rng.choice([50, 5000, 50_000]),
            '9' * 5000,
            'null',
            '"text"',
            'true',
            '{}',
            '[]',
            ' ' * rng.choice([5, 100_000]),
            _twice(text, rng),
            _twice(text, rng),
        ]
    )


def _encoded(text: str, rng: random.Random) -> bytes:
    how = rng.choices(['utf-8', 'utf-16', 'latin-1', 'utf-8-sig', 'cp1252'], [60, 1, 2, 3, 1])[0]
    errors = 'surrogatepass' if how.startswith('utf') else 'replace'
    return text.encode(how, errors)


def bent_bytes(raw: bytes, rng: random.Random) -> bytes:
    "Bytes with a few others among them."
    at = rng.randrange(len(raw) + 1)
    new = rng.choice(
        [b'\xff', b'\x80', b'\xc3', b'\0', b'\xed\xa0\x80', b'\r', b'\xef\xbb\xbf', b'\n']
    )
    flipped = bytearray(raw or b'x')
    for _ in range(rng.choice([1, 1, 4, 30])):
        flipped[rng.randrange(len(flipped))] = rng.randrange(256)
    zeros = bytes(rng.choice([1, 8, 4096]))
    size = struct.pack('<Q', rng.choice([0, 1, 2**16, 2**31, 2**32 - 1, 2**63, 2**64 - 1]))
    return rng.choice(
        [
            raw[:at],
            raw[:at] + new + raw[at:],
            bytes(flipped),
            bytes(flipped),
            raw[:at] + zeros + raw[at:],
            raw[:at] + size + raw[at + 8 :],
            size + raw[8:],
            raw[: at // 50] + size[:4] + raw[at // 50 + 4 :],
            raw + raw,
            b'',
        ]
    )


def false_line(line: bytes, rng: random.Random) -> bytes:
    "One line of JSONL as a stranger would write it; without newlines except those of a fault."
    kind = rng.randrange(20)
    if kind < 14:
        return _encoded(_json(mutated(json.loads(line), rng), rng), rng)
    if kind < 18:
        return _encoded(broken_text(line.decode(), rng), rng)
    return bent_bytes(line, rng)


def false_lines(raw: bytes, rng: random.Random) -> bytes:
    "A JSONL file with one to three false lines."
    lines = raw.splitlines()
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        i = rng.randrange(len(lines))
        lines[i] = false_line(raw.splitlines()[i], rng)
    end = rng.choices([b'\n', b'\r\n', b'\n\n'], [8, 1, 1])[0]
    return end.join(lines) + rng.choice([end, b''])


def false_json(raw: bytes, rng: random.Random) -> bytes:
    "A file that is one JSON value."
    kind = rng.randrange(10)
    if kind < 7:
        return _encoded(_json(mutated(json.loads(raw), rng), rng), rng)
    return _encoded(broken_text(raw.decode(), rng), rng) if kind < 9 else bent_bytes(raw, rng)


def false_signed(raw: bytes, rng: random.Random) -> bytes:
    "The same with its checksum made anew."
    from mypt.files import json_text, signed

    value = mutated(json.loads(raw), rng)
    if not isinstance(value, dict) or rng.random() < 0.1:
        return false_json(raw, rng)
    return json_text(signed(value)).encode('utf-8', 'surrogatepass') if _utf8(value) else raw


def _utf8(value) -> bool:
    try:
        return bool(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        return False


def false_text(raw: bytes, rng: random.Random) -> bytes:
    "Prose, a table or a page."
    if rng.random() < 0.2:
        return bent_bytes(raw, rng)
    text = raw.decode()
    for _ in range(rng.choice([1, 2, 5])):
        lines = text.split('\n')
        i = rng.randrange(len(lines))
        kind = rng.randrange(6)
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, rng.choice(lines))
        else:
            lines[i] = spliced(lines[i], rng)
        text = '\n'.join(lines) or 'x'
    return _encoded(text[:300_000], rng)


def false_bytes(raw: bytes, rng: random.Random) -> bytes:
    "A file whose bytes mean something: flipped, cut, with other lengths."
    for _ in range(rng.choice([1, 1, 3])):
        raw = bent_bytes(raw, rng)
    return raw


def false_tensors(raw: bytes, rng: random.Random) -> bytes:
    "A safetensors file with another header."
    (n,) = struct.unpack('<Q', raw[:8])
    if rng.random() < 0.4:
        return false_bytes(raw, rng)
    head = false_json(raw[8 : 8 + n].rstrip(), rng)
    return struct.pack('<Q', len(head)) + head + raw[8 + n :]


def false_zip(raw: bytes, rng: random.Random) -> bytes:
    "An archive in which one file is another."
    if rng.random() < 0.3:
        return false_bytes(raw, rng)
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(raw)) as old, zipfile.ZipFile(out, 'w', 8) as new:
        names = old.namelist()
        chosen = rng.choice([n for n in names if n.endswith('.xml')] or names)
        for name in names:
            inside = old.read(name)
            if name == chosen:
                if rng.random() < 0.2:
                    continue
                try:
                    inside = false_text(inside, rng)
                except UnicodeDecodeError:
                    inside = false_bytes(inside, rng)
            new.writestr(name, inside)
    return out.getvalue()


# ---------------------------------------------------------------- what the verbs must account for


@dataclass
class Outcome:
    "What a command did."

    folder: Path
    code: int
    out: str
    err: str

    def rows(self, name: str) -> int:
        "Lines of a file that are not blank."
        path = self.folder / name
        return (
            sum(bool(line.strip()) for line in path.read_bytes().split(b'\n'))
            if path.exists()
            else 0
        )

    def rows_in(self, name: str) -> int:
        raw = (self.folder / name).read_bytes().removeprefix(b'\xef\xbb\xbf')
        return sum(bool(line.strip()) for line in raw.split(b'\n'))


def _numbers(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    return [int(n.replace(',', '')) for n in found.groups()] if found else []


def converted(o: Outcome) -> str:
    "Every line is an episode or a rejected row; the rejects file holds each of them."
    raw = (o.folder / 'in.jsonl').read_bytes().removeprefix(b'\xef\xbb\xbf').lstrip()
    n_in = o.rows_in('in.jsonl')
    if o.code:
        none = _numbers(r'none of ([\d,]+) rows could be used', o.err)
        told = not none or none[0] == n_in or raw.startswith(b'[')
        return '' if told else f'{n_in} lines, {none[0]} reported'
    n, read = _numbers(r': ([\d,]+) episodes; \S+ of ([\d,]+) rows', o.out)
    reasons = re.findall(r'^  ([\d,]+) rows: ', o.out, re.M)
    rejected = sum(int(k.replace(',', '')) for k in reasons)
    in_file = o.rows('out.jsonl.rejects.jsonl')
    if raw.startswith(b'['):
        n_in = read  # a list has more or fewer elements than lines
    if read != n_in or n != o.rows('out.jsonl') or rejected != in_file or n + rejected != read:
        return (
            f'{n_in} lines: {read} read, {n} used, {o.rows("out.jsonl")} written, {rejected} told'
        )
    return ''


def checked(o: Outcome) -> str:
    if o.code == 2 or 'JSON array' in o.out:
        return ''
    fine, bad = _numbers(r'([\d,]+) fine, ([\d,]+) to mend', o.out)
    listed = len(o.out.strip().split('\n')) - 1
    n_in = o.rows_in('in.jsonl')
    return '' if fine + bad == n_in and listed == bad else f'{n_in} lines: {fine} + {bad}, {listed}'


def prepared(o: Outcome) -> str:
    if o.code:
        return '' if not (o.folder / 'd').exists() else 'a folder is left behind'
    meta = json.loads((o.folder / 'd' / 'dataset_metadata.json').read_text())
    n = meta['num_train_episodes'] + meta['num_val_episodes']
    rejected, n_in = o.rows('d/rejects.jsonl'), o.rows_in('in.jsonl')
    fine = n + rejected == n_in == meta['rows_read'] and rejected == meta['rows_rejected']
    return '' if fine else f'{n_in} lines: {n} + {rejected}, read {meta["rows_read"]}'


def mixed(o: Outcome) -> str:
    if o.code:
        return '' if not o.rows('out.jsonl') else 'an output is left behind'
    n_in = o.rows_in('in.jsonl') + o.rows_in('good.jsonl')
    return '' if o.rows('out.jsonl') == n_in else f'{n_in} rows, {o.rows("out.jsonl")} written'


def deduplicated(o: Outcome) -> str:
    if o.code:
        return '' if not o.rows('out.jsonl') else 'an output is left behind'
    n_in, n = o.rows_in('in.jsonl'), o.rows('out.jsonl')
    told = o.rows('dropped.jsonl')
    return '' if n + told == n_in else f'{n_in} rows: {n} kept, {told} told'


def as_many(o: Outcome) -> str:
    "As many rows out as in."
    if o.code:
        return '' if not o.rows('out.jsonl') else 'an output is left behind'
    n_in, n = o.rows_in('in.jsonl'), o.rows('out.jsonl')
    return '' if n == n_in else f'{n_in} rows, {n} written'


def counted(o: Outcome) -> str:
    "All rows are counted, replay text apart."
    if o.code:
        return ''
    report = json.loads((o.folder / 'r.json').read_text())
    d = report.get('diversity', report)
    n_in, n = o.rows_in('in.jsonl'), d['episodes'] + d['replay']
    return '' if n == n_in else f'{n_in} rows, {n} counted'


def extracted(o: Outcome) -> str:
    if o.code:
        return ''
    n_in, n = o.rows_in('in.jsonl'), o.rows('t/episode_ids.txt')
    return '' if n == n_in else f'{n_in} rows, {n} ids'


# ---------------------------------------------------------------- good files of every kind


def _lines(rows) -> bytes:
    return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in rows).encode()


def _said(user, assistant, **more):
    return dict(
        messages=[dict(role='user', content=user), dict(role='assistant', content=assistant)],
        **more,
    )


_CALL = dict(role='assistant_toolcall', name='weather', arguments={'city': 'Köln', 'days': [1, 2]})
_RESULT = dict(role='toolresult', name='weather', content={'celsius': 21})
EPISODES = [
    _said('What is 2+3?', '5', language='en', id='a'),
    _said('Wie heißt die Stadt am Rhein?', 'Köln.', language='de', system='You are MyPT.'),
    dict(
        messages=[
            dict(
                role='user', content='When was it built?', context='[a.md]\nIt was built in 1248.'
            ),
            dict(role='assistant', content='In 1248.', think='The passage says so.', cite='a.md'),
        ],
        _meta=dict(operator='copy', expected='1248', category='denial'),
    ),
    dict(
        messages=[
            dict(role='user', content='Weather in Köln?'),
            _CALL,
            _RESULT,
            dict(role='assistant', content='It is 21 °C.', weight=2),
            dict(role='user', content='Thanks `x = 1`, "quoted" http://a.b {name}'),
            dict(role='assistant', content='Sure! You are welcome.', train=False),
        ],
        source='tools',
    ),
    _said('Explain at the moment how to bake\n\n    x = 1\n\nplease.', '1. Mix.\n2. Bake.'),
    dict(_replay=True, text='Bread is baked from flour, water and salt. ' * 3),
]
GOOD = _lines(_said(f'What is {i}+1?', f'{i + 1}', language='en') for i in range(6))

_FUNCTION = dict(
    name='get_weather',
    description='The weather',
    parameters=dict(type='object', properties=dict(city=dict(type='string')), required=['city']),
)
_CALLS = [
    dict(id='c1', type='function', function=dict(name='get_weather', arguments='{"city": "Bonn"}'))
]
FORMS = dict(
    messages=[
        dict(
            messages=[dict(role='system', content='Be kind.'), *_said('Hi!', 'Hello.')['messages']]
        ),
        dict(
            tools=[dict(type='function', function=_FUNCTION)],
            messages=[
                dict(role='user', content=[dict(type='text', text='Weather in Bonn?')]),
                dict(role='assistant', content=None, tool_calls=_CALLS),
                dict(role='tool', tool_call_id='c1', content='{"celsius": 21}'),
                dict(role='assistant', content='21 °C.', reasoning_content='It says 21.', weight=1),
            ],
        ),
        dict(
            messages=[
                dict(role='user', content='x?'),
                dict(role='assistant', content='<think>a</think>b'),
            ]
        ),
    ],
    sharegpt=[
        {'conversations': [{'from': 'human', 'value': 'Hi!'}, {'from': 'gpt', 'value': 'Hello.'}]},
        {
            'system': 'You may call <tools>[]</tools>',
            'tools': json.dumps([_FUNCTION]),
            'conversations': [
                {'from': 'human', 'value': 'Weather in Bonn?'},
                {
                    'from': 'gpt',
                    'value': '<tool_call>{"name": "get_weather", "arguments": {"city": "Bonn"}}</tool_call>',
                },
                {'from': 'tool', 'value': '<tool_response>{"celsius": 21}</tool_response>'},
                {'from': 'gpt', 'value': 'It is 21 °C.'},
            ],
        },
    ],
    capybara=[
        {
            'conversation': [
                {'input': 'Hi!', 'output': 'Hello.'},
                {'input': 'Bye!', 'output': 'Bye.'},
            ]
        }
    ],
    alpaca=[
        dict(
            instruction='Add.', input='2, 3', output='5', history=[['Hi', 'Hello']], system='Count.'
        ),
        dict(instruction='Name a city.', input='', output='Köln'),
    ],
    dolly=[dict(instruction='When?', context='It was in 1248.', response='1248', category='qa')],
    oasst=[
        dict(
            message_id='1',
            message_tree_id='t',
            role='prompter',
            lang='en',
            text='Hi!',
            parent_id=None,
            rank=None,
            deleted=False,
        ),
        dict(
            message_id='2',
            message_tree_id='t',
            role='assistant',
            lang='en',
            text='Hello.',
            parent_id='1',
            rank=0.0,
            deleted=False,
        ),
        dict(
            message_id='3',
            message_tree_id='t',
            role='assistant',
            lang='en',
            text='Hey.',
            parent_id='1',
            rank=1.0,
            deleted=False,
        ),
    ],
    hotpot=[
        dict(
            _id='h',
            question='Who?',
            answer='Anna',
            supporting_facts=[['A', 0]],
            context=[['A', ['Anna was it. ', 'Yes.']], ['B', ['No.']]],
        )
    ],
    squad=[
        dict(
            id='q',
            title='T',
            context='It was built in 1248.',
            question='When?',
            answers=dict(text=['1248'], answer_start=[16]),
        )
    ],
    musique=[
        dict(
            id='m',
            question='Who?',
            answer='Anna',
            answer_aliases=['A.'],
            answerable=True,
            paragraphs=[dict(idx=0, title='A', paragraph_text='Anna was it.', is_supporting=True)],
        )
    ],
    marco=[
        dict(
            query_id=1,
            query='when',
            answers=['1248'],
            wellFormedAnswers=['In 1248.'],
            passages=dict(
                is_selected=[1, 0], passage_text=['In 1248.', 'No.'], url=['http://a', 'http://b']
            ),
        )
    ],
    trivia=[
        dict(
            question='Who?',
            question_id='t',
            answer=dict(value='Anna', aliases=['A']),
            entity_pages=dict(title=['P'], wiki_context=['Anna was it.']),
            search_results=dict(title=['S'], search_context=['Nobody.']),
        )
    ],
    xlam=[
        dict(
            id=1,
            query='Weather in Bonn?',
            tools=json.dumps([_FUNCTION]),
            answers='[{"name": "get_weather", "arguments": {"city": "Bonn"}}]',
        )
    ],
    german_tools=[
        {
            'System': 'SYSTEM: Du hast Zugriff auf: ' + json.dumps(_FUNCTION),
            'Chat': 'USER: Wetter in Bonn?\n\nASSISTANT: <functioncall> {"name": "get_weather", "arguments": \'{"city": "Bonn"}\'} <|endoftext|>\n\nFUNCTION RESPONSE: {"celsius": 21}\n\nASSISTANT: 21 Grad. <|endoftext|>',
        }
    ],
    completion=[
        dict(prompt='Hi!', completion='Hello.'),
        dict(prompt=[dict(role='user', content='a')], completion='b'),
    ],
    turns=[dict(id='0', data=['Hi!', 'Hello.', 'Bye!', 'Bye.'])],
    text=[dict(text='Bread is baked from flour.', id=3)],
    bfcl=[
        dict(
            id='b',
            question=[[dict(role='user', content='Weather in Bonn?')]],
            function=[_FUNCTION],
            ground_truth=[{'get_weather': {'city': ['Bonn']}}],
        )
    ],
)

HTML = b"""<!DOCTYPE html><html><head><title>The Mill</title><meta charset="utf-8"></head><body>
<nav><a href="/">Home</a></nav><h1>The Mill</h1><p>It was built in 1248 &amp; grinds <b>corn</b>.
<pre>
x = 1
    y = 2
</pre><table><tr><td>Wheel</td><td>4 m</td></tr></table><ul><li>One<li>Two</ul>
<script>var x = "<p>";</script><!-- a comment --><footer>2024</footer></body></html>"""
MARKDOWN = """---
title: The Mill
tags: [corn, water]
---
# The Mill

It was built in 1248 and grinds corn for Köln.

## Parts

| part | size |
|------|------|
| wheel | 4 m |

```python
x = 1
```

> quoted

1. One
2. Two [link](x.md)
""".encode()
CSV = 'Frage;Antwort;Zahl\n"Wie, bitte?";"Köln ""am"" Rhein";1\nWann?;1248;2\nWer?;"Anna\nBerta";3\n'.encode()
CONFIG = dict(
    extends='tiny',
    n_layer=1,
    n_embd=32,
    n_head=2,
    block_size=64,
    batch_size=2,
    eval_iters=1,
    warmup_iters=0,
    max_iters=1,
    learning_rate=1e-3,
    system_prompt=None,
)
SUITE = [
    dict(
        id='s1',
        episode=dict(messages=[dict(role='user', content='What is 2+3?')]),
        check='exact',
        expected='5',
        tags=['sum'],
    ),
    dict(
        id='s2',
        episode=dict(messages=[dict(role='user', content='Say x.')]),
        check='contains',
        expected='x',
        tags=[],
    ),
]


def _pdf() -> bytes:
    "One page with a line of text."
    stream = b'BT /F1 12 Tf 72 720 Td (The mill was built in 1248.) Tj ET'
    objects = [
        b'<< /Type /Catalog /Pages 2 0 R >>',
        b'<< /Type /Pages /Kids [3 0 R] /Count 1 >>',
        b'<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R '
        b'/Resources << /Font << /F1 5 0 R >> >> >>',
        b'<< /Length %d >>\nstream\n%s\nendstream' % (len(stream), stream),
        b'<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>',
    ]
    out, at = b'%PDF-1.4\n', []
    for i, body in enumerate(objects, 1):
        at.append(len(out))
        out += b'%d 0 obj\n%s\nendobj\n' % (i, body)
    table = b''.join(b'%010d 00000 n \n' % a for a in at)
    head = b'xref\n0 %d\n0000000000 65535 f \n' % (len(at) + 1)
    trailer = b'trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n' % (
        len(at) + 1,
        len(out),
    )
    return out + head + table + trailer


def false_pdf(raw: bytes, rng: random.Random) -> bytes:
    "Other numbers, names and references in a PDF."
    if rng.random() < 0.3:
        return false_bytes(raw, rng)
    for _ in range(rng.choice([1, 2, 4])):
        spots = list(re.finditer(rb'\d+|/\w+|\[[^\]]*\]|<<|>>|\([^)]*\)', raw))
        m = rng.choice(spots)
        new = [
            b'0',
            b'-1',
            b'99999999999',
            b'2',
            b'1 0 R',
            b'3 0 R',
            b'/Pages',
            b'[',
            b'<<',
            b'(',
            b'',
        ]
        raw = raw[: m.start()] + rng.choice(new) + raw[m.end() :]
    return raw


def _docx() -> bytes:
    import docx

    d, out = docx.Document(), io.BytesIO()
    d.add_heading('The Mill', 1)
    d.add_paragraph('It was built in 1248.')
    table = d.add_table(2, 2)
    table.cell(0, 0).text = 'wheel'
    d.save(out)
    return out.getvalue()


def _parquet() -> bytes:
    import pyarrow
    import pyarrow.parquet as parquet

    out = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist([_said('Hi!', 'Hello.')] * 4), out)
    return out.getvalue()


def make_files(home: Path) -> None:
    "Every good file, once; readers copy what they need."
    from contextlib import redirect_stdout

    from mypt.agent.retrieval import Index
    from mypt.data.hf_tokenizer import tokenizer_json
    from mypt.data.prepare import prepare
    from mypt.data.tokenizer import get_tokenizer
    from mypt.interop.export import export
    from mypt.model.checkpoint import save_checkpoint
    from mypt.model.config import ModelConfig
    from mypt.model.gpt import GPT
    import torch

    torch.manual_seed(0)
    home.mkdir()
    (home / 'in.jsonl').write_bytes(_lines(EPISODES))
    (home / 'good.jsonl').write_bytes(GOOD)
    for name, rows in FORMS.items():
        (home / f'{name}.jsonl').write_bytes(_lines([*rows, *rows]))
    for name, raw in dict(
        list=json.dumps(FORMS['alpaca']), pretty=json.dumps(FORMS['alpaca'][0], indent=2)
    ).items():
        (home / f'{name}.json').write_text(raw)
    squad = dict(
        version='v2.0',
        data=[
            dict(
                title='T',
                paragraphs=[
                    dict(
                        context='In 1248.',
                        qas=[
                            dict(
                                id='1',
                                question='When?',
                                answers=[dict(text='1248', answer_start=3)],
                                is_impossible=False,
                            )
                        ],
                    )
                ],
            )
        ],
    )
    (home / 'squad.json').write_text(json.dumps(squad))
    for name, raw in {
        'table.csv': CSV,
        'table.tsv': CSV.replace(b';', b'\t'),
        'text.txt': MARKDOWN,
        'rows.parquet': _parquet(),
        'config.json': json.dumps(CONFIG).encode(),
        'suite.jsonl': _lines(SUITE),
        'words.txt': 'Köln\nMyPT\n'.encode(),
    }.items():
        (home / name).write_bytes(raw)
    (home / 'docs').mkdir()
    for name, raw in {
        'a.html': HTML,
        'b.md': MARKDOWN,
        'c.txt': b'Bread is baked from flour.\n\nAnd water.',
        'd.csv': CSV,
        'e.pdf': _pdf(),
        'f.docx': _docx(),
    }.items():
        (home / 'docs' / name).write_bytes(raw)
    with redirect_stdout(io.StringIO()):
        Index.build(home / 'docs', home / 'index')
        for name, more in dict(
            data=dict(), packed=dict(enable_packing=True, pack_block_size=64)
        ).items():
            prepare(str(home / 'good.jsonl'), str(home / name), 'byte', 0.3, **more)
        (home / 'texts.jsonl').write_bytes(
            _lines(dict(_replay=True, text=f'Bread {i} ' * 50) for i in range(9))
        )
        prepare(
            str(home / 'texts.jsonl'),
            str(home / 'shards'),
            'byte',
            format='shards',
            pack_block_size=64,
        )
        small = ModelConfig(n_layer=1, n_embd=32, n_head=2, n_kv_head=1, block_size=128)
        m = home / 'model' / 'checkpoints' / 'm'
        state = dict(step=1, tokens=9, supervised=3, skipped=0, best=1.0, precision='fp32')
        save_checkpoint(
            m,
            GPT(small),
            get_tokenizer('byte'),
            state,
            {'x/m': torch.ones(3)},
            dict(layout='compact'),
        )
        os.chdir(home / 'model')
        export('m', 'm.gguf')
    hf = home / 'hf' / 'hf'
    shutil.copytree(m, hf)
    for name in ('mypt.json', 'tokenizer_state.json'):
        (hf / name).unlink()
    spec = tokenizer_json(get_tokenizer('byte'))
    spec['added_tokens'] = [t for t in spec['added_tokens'] if 'myPT' not in t['content']]
    spec['model']['vocab'] = {k: i for k, i in spec['model']['vocab'].items() if 'myPT' not in k}
    (hf / 'tokenizer.json').write_text(json.dumps(spec))
    (home / 'gguf').mkdir()
    shutil.copy(home / 'model' / 'm.gguf', home / 'gguf' / 'm.gguf')
    main('translate extract --input good.jsonl --output_dir t'.split(), home)
    for column in ('user_messages', 'assistant_messages'):
        shutil.copy(home / 't' / f'{column}_en.txt', home / 't' / f'{column}_de.txt')


def main(argv: list[str], folder: Path) -> tuple[int, str, str]:
    "Run one command in a folder: (exit code, stdout, stderr)."
    from mypt.cli import main as mypt

    out, err = io.StringIO(), io.StringIO()
    os.chdir(folder)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = mypt([str(a) for a in argv])
    return code, out.getvalue(), err.getvalue()


# ---------------------------------------------------------------- readers


@dataclass
class Reader:
    "One verb and a file that it reads."

    name: str
    commands: list[str]  # run one after the other, until one ends with 2
    bend: Callable[[bytes, random.Random], bytes]
    files: dict[str, str]  # name in the case's folder → what is copied there
    false: tuple[str, ...]  # those that are made false, one per case
    check: Callable[[Outcome], str] | None = None
    weight: float = 1


READERS: list[Reader] = []


def reader(name, commands, bend, files, false=(), check=None, weight=1.0):
    commands = [commands] if isinstance(commands, str) else commands
    READERS.append(
        Reader(name, commands, bend, files, tuple(false) or (next(iter(files)),), check, weight)
    )


_GOOD = {'in.jsonl': 'in.jsonl', 'good.jsonl': 'good.jsonl'}


def add_line_readers():
    for form in FORMS:
        keep = '' if form != 'alpaca' else ' --keep_meta all'
        reader(
            f'convert {form}',
            f'convert in.jsonl --output out.jsonl{keep}',
            false_lines,
            {'in.jsonl': f'{form}.jsonl'},
            check=converted if form != 'oasst' else None,
            weight=3 if form in ('messages', 'sharegpt') else 1,
        )
    lines = [
        ('convert episodes', 'convert in.jsonl --output out.jsonl --trim_last_user', converted, 1),
        ('check', 'check in.jsonl', checked, 4),
        (
            'prepare',
            'prepare --input in.jsonl --output_dir d --tokenization byte --on_error skip --val_split 0.2',
            prepared,
            3,
        ),
        (
            'prepare fail',
            'prepare --input in.jsonl --output_dir d --tokenization gpt2',
            prepared,
            1,
        ),
        (
            'prepare packed',
            'prepare --input in.jsonl --output_dir d --tokenization gpt2 --on_error skip --enable_packing --pack_block_size 64 --overlong skip --weighted_mask --layout lines',
            prepared,
            2,
        ),
        (
            'prepare apart',
            'prepare --input in.jsonl --output_dir d --tokenization byte --on_error skip --enable_packing --pack_block_size 512 --pack_by_field _meta.operator --mask_policy rag_chat',
            prepared,
            1,
        ),
        (
            'prepare val',
            'prepare --input good.jsonl --output_dir d --tokenization byte --val_file in.jsonl',
            None,
            1,
        ),
        (
            'prepare shards',
            'prepare --input in.jsonl --output_dir d --tokenization byte --format shards --pack_block_size 64 --on_error skip',
            None,
            1,
        ),
        ('mix', 'mix --inputs in.jsonl:1.0 good.jsonl:1.0 --output out.jsonl --shuffle', mixed, 2),
        (
            'mix tokens',
            'mix --inputs in.jsonl:1.0 good.jsonl:1.0 --output out.jsonl --by tokens --tokenization byte',
            mixed,
            1,
        ),
        (
            'mix characters',
            'mix --inputs in.jsonl:0.5 good.jsonl:0.5 --output out.jsonl --by characters --shares',
            None,
            1,
        ),
        (
            'dedup',
            'dedup --input in.jsonl --output out.jsonl --rejects dropped.jsonl',
            deduplicated,
            2,
        ),
        (
            'dedup user',
            'dedup --input in.jsonl --output out.jsonl --rejects dropped.jsonl --by user --against good.jsonl',
            deduplicated,
            1,
        ),
        (
            'dedup against',
            'dedup --input good.jsonl --output out.jsonl --against in.jsonl',
            None,
            1,
        ),
        ('diversity', 'diversity in.jsonl --report r.json', counted, 1),
        ('quality', 'quality in.jsonl --tokenization byte --report r.json', counted, 2),
        (
            'augment',
            'augment --input in.jsonl --output out.jsonl --target_count 8 --avoid good.jsonl',
            None,
            2,
        ),
        (
            'augment avoid',
            'augment --input good.jsonl --output out.jsonl --target_count 8 --avoid in.jsonl',
            None,
            0.5,
        ),
        (
            'diversify',
            'diversify --input in.jsonl --output out.jsonl --avoid good.jsonl',
            as_many,
            2,
        ),
        ('inspect', 'inspect in.jsonl --tokenization byte --html page.html', None, 1),
        ('inspect json', 'inspect in.jsonl --tokenization gpt2 --json', None, 1),
        ('check-meaning', 'check-meaning in.jsonl', None, 1),
        (
            'translate extract',
            'translate extract --input in.jsonl --output_dir t --system',
            extracted,
            1,
        ),
        (
            'translate merge',
            'translate merge --english in.jsonl --german good.jsonl --output out.jsonl',
            None,
            0.5,
        ),
        ('leaks', 'leaks in.jsonl --against gold', None, 1),
        (
            'prepare-jobs',
            [
                'prepare-jobs plan --input in.jsonl --jobs_dir j --splits 2 --sets tokenization=byte on_error=skip',
                'prepare-jobs run --jobs_dir j --split 0',
                'prepare-jobs run --jobs_dir j --split 1',
                'prepare-jobs merge --jobs_dir j --output_dir d',
            ],
            None,
            1,
        ),
    ]
    for name, commands, check, weight in lines:
        reader(name, commands, false_lines, _GOOD, check=check, weight=weight)
    # without replay text, which these verbs refuse
    talk = {'in.jsonl': 'good.jsonl', 'good.jsonl': 'good.jsonl'}
    ways = ['translate extract --input in.jsonl --output_dir t', 'translate run --dir t --dry_run']
    reader('translate run', ways, false_lines, talk, check=None, weight=2)
    reader(
        'translate recombine lines',
        'translate recombine --original in.jsonl --dir t --output out.jsonl',
        false_lines,
        talk | {'t': 't'},
        check=as_many,
    )
    reader(
        'translate extract talk',
        'translate extract --input in.jsonl --output_dir t',
        false_lines,
        talk,
        check=extracted,
    )
    model = talk | {'checkpoints': 'model/checkpoints', 'suite.jsonl': 'suite.jsonl'}
    reader(
        'eval suite',
        'eval m --suite suite.jsonl --limit 2 --max_new_tokens 4 --device cpu',
        false_lines,
        model,
        ['suite.jsonl'],
    )
    reader(
        'leaks against',
        'leaks good.jsonl --against suite.jsonl',
        false_lines,
        model,
        ['suite.jsonl'],
        weight=0.5,
    )


def add_file_readers():
    columns = '--columns prompt=Frage completion=Antwort'
    for name in ('table.csv', 'table.tsv'):
        reader(
            f'convert {name}',
            f'convert {name} --output out.jsonl {columns} --keep_meta Zahl',
            false_text,
            {name: name},
        )
    for name in ('list.json', 'pretty.json', 'squad.json'):
        reader(f'convert {name}', f'convert {name} --output out.jsonl', false_json, {name: name})
    reader(
        'convert text.txt',
        'convert text.txt --output out.jsonl',
        false_text,
        {'text.txt': 'text.txt'},
        weight=0.5,
    )
    reader(
        'convert rows.parquet',
        'convert rows.parquet --output out.jsonl',
        false_bytes,
        {'rows.parquet': 'rows.parquet'},
    )
    docs = dict(
        a_html=('a.html', false_text),
        b_md=('b.md', false_text),
        c_txt=('c.txt', false_text),
        d_csv=('d.csv', false_text),
        e_pdf=('e.pdf', false_pdf),
        f_docx=('f.docx', false_zip),
    )
    for name, bend in docs.values():
        ways = ['rag-index --docs_dir docs --out_dir i', 'search mill --index_dir i']
        reader(
            f'rag-index {name}',
            ways,
            bend,
            {f'docs/{name}': f'docs/{name}', 'docs/good.md': 'docs/b.md'},
            weight=2 if name in ('a.html', 'b.md') else 1,
        )
    reader(
        'make rag_chat',
        'make rag_chat --docs_dir docs --output out.jsonl --num_examples 3',
        false_text,
        {'docs/b.md': 'docs/b.md', 'docs/c.txt': 'docs/c.txt'},
        weight=0.5,
    )
    model = {'checkpoints': 'model/checkpoints'}
    index = model | {'i': 'index'}
    for verb in (
        'search mill',
        'rag-chat --model_name m --max_new_tokens 4 --device cpu --question mill',
        'agent --model_name m --max_new_tokens 4 --device cpu --question mill',
    ):
        reader(
            f'index {verb.split()[0]}',
            f'{verb} --index_dir i',
            false_bytes,
            index,
            ['i/index.sqlite'],
            weight=1,
        )
    data = {
        'd': 'data',
        'checkpoints': 'model/checkpoints',
        'config.json': 'config.json',
        'p': 'packed',
        's': 'shards',
    }
    for kind in ('d', 'p'):
        ways = [f'validate {kind}', f'inspect {kind}', f'check-masks {kind}']
        train = f'train --model_name new --dataset_dir {kind} --config_file config.json --quiet --device cpu'
        reader(
            f'dataset metadata {kind}', ways, false_signed, data, [f'{kind}/dataset_metadata.json']
        )
        reader(
            f'dataset train {kind}',
            train,
            false_signed,
            data,
            [f'{kind}/dataset_metadata.json'],
            weight=0.3,
        )
        inside = sorted(
            str(Path(kind) / p.relative_to(HOME / data[kind]))
            for p in (HOME / data[kind]).rglob('*')
            if p.is_file() and p.name != 'dataset_metadata.json'
        )
        reader(f'dataset files {kind}', [*ways, train], false_bytes, data, inside, weight=1)
    reader(
        'mix-general',
        'mix-general --sft_dir p --general_dir s --output_dir new',
        false_signed,
        data,
        ['s/dataset_metadata.json', 'p/dataset_metadata.json'],
    )
    reader(
        'config train',
        'train --model_name new --dataset_dir d --config_file config.json --quiet --device cpu',
        false_json,
        data,
        ['config.json'],
        weight=0.5,
    )
    reader(
        'config run',
        'run --phase 1 --config config.json --dry_run --output_dir o',
        false_json,
        data,
        ['config.json'],
    )
    m = 'checkpoints/m'
    uses = {
        'generate': f'generate --model_name m --user hi --max_new_tokens 3 --device cpu',
        'export': 'export m --gguf x.gguf',
        'push': 'push m --repo a/b --dry_run',
        'merge': 'merge m --output x',
        'consolidate': 'consolidate m',
        'train': 'train --model_name m --dataset_dir d --config_file config.json --quiet --device cpu --max_iters 2',
        'from': 'train --model_name new --init_from_model m --dataset_dir d --quiet --device cpu --max_iters 1 --sets batch_size=2 eval_iters=1 warmup_iters=0',
        'chat': 'chat --model_name m --device cpu --max_new_tokens 3',
        'serve': 'serve --models m --check --device cpu',
    }
    bends = {'.json': false_json, '.safetensors': false_tensors, '.jsonl': false_lines}
    inside = sorted(p.name for p in (HOME / 'model' / m).iterdir())
    for verb, command in uses.items():
        for name in inside:
            bend = false_signed if name == 'mypt.json' else bends.get(Path(name).suffix, false_text)
            reader(
                f'model {verb} {name}',
                command,
                bend,
                data,
                [f'{m}/{name}'],
                weight=0.12 if verb not in ('generate', 'export') else 0.25,
            )
    for name in sorted(p.name for p in (HOME / 'hf' / 'hf').iterdir()):
        reader(
            f'import {name}',
            'import hf --output new',
            bends.get(Path(name).suffix, false_text),
            {'hf': 'hf/hf'},
            [f'hf/{name}'],
            weight=0.8,
        )
    reader(
        'import gguf',
        'import m.gguf --output new',
        false_bytes,
        {'m.gguf': 'gguf/m.gguf'},
        weight=1,
    )
    translated = {'good.jsonl': 'good.jsonl', 't': 't'}
    for name in sorted(p.name for p in (HOME / 't').iterdir()):
        ways = [
            'translate run --dir t --dry_run',
            'translate recombine --original good.jsonl --dir t --output out.jsonl',
        ]
        reader(f'translate {name}', ways, false_text, translated, [f't/{name}'], weight=0.4)
    reader(
        'translate keep',
        'translate run --dir t --dry_run --keep words.txt',
        false_text,
        translated | {'words.txt': 'words.txt'},
        ['words.txt'],
        weight=0.3,
    )


HOME = Path()


def add_readers():
    add_line_readers()
    add_file_readers()


# ---------------------------------------------------------------- running


@dataclass
class Case:
    "One false file and who reads it."

    number: int
    reader: Reader
    file: str
    false: bytes
    problem: str = ''
    seconds: float = 0
    code: int = -1


def cases_of(readers: list[Reader], n: int, seed: str):
    "`n` cases, spread over the readers by their weights; the same for the same seed."
    total, due = sum(r.weight for r in readers), 0.0
    number = 0
    for r in readers:
        due += n * r.weight / total
        rng = random.Random(f'{seed} {r.name}')
        k = 0
        while number < round(due):
            file = r.false[k % len(r.false)]
            original = _original(r, file).read_bytes()
            yield Case(number, r, file, r.bend(original, rng))
            number, k = number + 1, k + 1


def _original(r: Reader, file: str) -> Path:
    for name, source in r.files.items():
        if file == name or file.startswith(f'{name}/'):
            return HOME / source / Path(file).relative_to(name)
    raise KeyError(file)


def lay_out(case: Case, folder: Path):
    "The files of a case in an empty folder."
    for name, source in case.reader.files.items():
        place, origin = folder / name, HOME / source
        place.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, place, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(origin, place)
    (folder / case.file).write_bytes(case.false)


_PYTHON = re.compile(
    r'\b(?:Type|Key|Attribute|Index|Value|Unicode\w*|Recursion|Memory|Assertion|ZeroDivision|Overflow)Error\b|Traceback|object has no attribute|not subscriptable|NoneType'
)


_WILD = re.compile(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]')


def fault(code: int, out: str, err: str) -> str:
    "What is wrong with what a command said."
    if code not in (0, 1, 2):
        return f'exit code {code}'
    if code == 2:
        line = err.strip('\n').split('\n')[-1]
        if not line.startswith('mypt: '):
            return f'no clear line: {err[-300:]!r}'
        if len(line) > 1200:
            return f'a line of {len(line)} characters'
    said = out + err
    found = _PYTHON.search(said)
    if found:
        return f'a Python error as the reason: {said[max(0, found.start() - 200) : found.end() + 100]!r}'
    wild = _WILD.search(said)
    if wild:
        return f'control characters: {said[max(0, wild.start() - 100) : wild.end() + 100]!r}'
    return ''


def run_case(case: Case, folder: Path) -> str:
    "The problem of a case, '' when there is none."
    code, said_out, said_err = 0, '', ''
    for command in case.reader.commands:
        try:
            code, out, err = main(command.split(), folder)
        except BaseException as e:
            if isinstance(e, TimeoutError):
                where = traceback.format_tb(e.__traceback__)[-3:]
                return f'{command}: longer than {MOST_SECONDS} s: {"".join(where)}'
            return f'{command}: {"".join(traceback.format_exception(e)[-7:])}'
        finally:
            case.code = code
        problem = fault(code, out, err)
        if problem:
            return f'{command}: {problem}'
        said_out, said_err = said_out + out, said_err + err
        if code == 2:
            break
    if case.reader.check:
        return case.reader.check(Outcome(folder, code, said_out, said_err))
    return ''


def _late(*_):
    raise TimeoutError


def run_batch(batch: list[Case], root: Path, pipe: int):
    "In a fork: run cases and write a line about each."
    sys.stdin = open(os.devnull)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    signal.signal(signal.SIGALRM, _late)
    for case in batch:
        os.write(pipe, json.dumps(dict(number=case.number)).encode() + b'\n')
        folder = Path(tempfile.mkdtemp(dir=root))
        lay_out(case, folder)
        start = time.monotonic()
        signal.alarm(MOST_SECONDS)
        try:
            problem = run_case(case, folder)
        except TimeoutError:
            problem = f'longer than {MOST_SECONDS} s'
        except Exception as e:
            problem = f'the test itself: {"".join(traceback.format_exception(e)[-5:])}'
        signal.alarm(0)
        seconds = time.monotonic() - start
        os.chdir(root)
        shutil.rmtree(folder, ignore_errors=True)
        line = dict(number=case.number, problem=problem, seconds=seconds, code=case.code)
        os.write(pipe, json.dumps(line).encode() + b'\n')


def forked(batch: list[Case], root: Path):
    "Run cases in a fork; what it does not survive is a problem of the case that it was at."
    todo = list(batch)
    while todo:
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ours)
            try:
                run_batch(todo, root, theirs)
            finally:
                os._exit(0)
        os.close(theirs)
        todo = _listen(todo, ours, pid)


def _listen(todo: list[Case], pipe: int, pid: int) -> list[Case]:
    "Take down what a fork says; the cases that it has not come to."
    by_number, at, text, late = {c.number: c for c in todo}, None, b'', False
    while True:
        if not select.select([pipe], [], [], MOST_SECONDS + 10)[0]:
            os.kill(pid, signal.SIGKILL)
            late = True
            break
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        *lines, text = (text + part).split(b'\n')
        for line in lines:
            said = json.loads(line)
            at = by_number[said['number']]
            if 'problem' in said:
                at.problem, at.seconds, at.code = said['problem'], said['seconds'], said['code']
                del by_number[at.number]
                at = None
    os.close(pipe)
    _, status = os.waitpid(pid, 0)
    if at is None:
        return [] if not by_number else list(by_number.values())
    at.problem = 'no answer to an alarm' if late else f'the process died ({status})'
    del by_number[at.number]
    return list(by_number.values())


def import_everything():
    "So that no fork has to."
    from importlib import import_module

    from mypt.commands.table import VERBS, signature_of

    for verb in VERBS.values():
        import_module(verb.target.split(':')[0])
        signature_of(verb.target)
    for name in ('pyarrow.parquet', 'docx', 'pypdf', 'gguf', 'transformers', 'tokenizers', 'yaml'):
        with contextlib.suppress(ImportError):
            import_module(name)
    from mypt.data.tokenizer import get_tokenizer

    get_tokenizer('gpt2').encode('warm')


def fuzz(n: int, names: list[str], seed: str = '0', show: bool = True) -> list[Case]:
    global HOME
    import torch

    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # nothing here is to survive
    with tempfile.TemporaryDirectory() as tmp:
        root = Path(tmp)
        HOME = root / 'home'
        import_everything()
        make_files(HOME)
        READERS.clear()
        add_readers()
        readers = [r for r in READERS if not names or any(r.name.startswith(x) for x in names)]
        done, batch, start = [], [], time.monotonic()
        for case in cases_of(readers, n, seed):
            batch.append(case)
            if len(batch) == AT_ONCE:
                forked(batch, root)
                done += batch
                batch = []
        forked(batch, root)
        done += batch
        seconds = time.monotonic() - start
        os.chdir('/')
    if show:
        report(done, seconds)
    return done


def report(done: list[Case], seconds: float):
    for case in done:
        if case.problem:
            row = dict(reader=case.reader.name, number=case.number, problem=case.problem)
            print(json.dumps(row | dict(file=case.file, false=repr(case.false[:600]))))
    codes = Counter(c.code for c in done)
    slow = max(done, key=lambda c: c.seconds)
    print(
        json.dumps(
            dict(
                cases=len(done),
                failed=sum(bool(c.problem) for c in done),
                seconds=round(seconds, 1),
                per_second=round(len(done) / seconds, 1),
                codes=dict(codes),
                slowest=[slow.reader.name, round(slow.seconds, 2)],
                readers=len({c.reader.name for c in done}),
            )
        )
    )


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('n', type=int)
    parser.add_argument('names', nargs='*')
    parser.add_argument('--seed', default='0')
    args = parser.parse_args()
    fuzz(args.n, args.names, args.seed)
