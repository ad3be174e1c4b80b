"""Lines and files as strangers write them, made from good ones; for tests/fuzz.py."""

import copy
import io
import json
import random
import re
import struct
import zipfile
from mypt.files import json_text, signed


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


PDF_PARTS = [b'0', b'-1', b'99999999999', b'1 0 R', b'3 0 R', b'/Pages', b'[', b'<<', b'(', b'']


def false_pdf(raw: bytes, rng: random.Random) -> bytes:
    "Other numbers, names and references in a PDF."
    if rng.random() < 0.3:
        return false_bytes(raw, rng)
    for _ in range(rng.choice([1, 2, 4])):
        spots = list(re.finditer(rb'\d+|/\w+|\[[^\]]*\]|<<|>>|\([^)]*\)', raw))
        m = rng.choice(spots)
        raw = raw[: m.start()] + rng.choice(PDF_PARTS) + raw[m.end() :]
    return raw


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
