"""Lines of strangers: what no file can hold is told by `check`, and nothing else meets it."""

import json
import pytest
from mypt.data.episodes import parse_line
from mypt.data.prepare import check, prepare
from mypt.data.tokenizer import LONG_BLANK, get_tokenizer
from mypt.errors import UserError

TALK = '"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'


@pytest.mark.parametrize(
    'line, said',
    [
        (f'{{{TALK}, "_meta": {{"n": 1e400}}}}', '_meta.n: inf is not a JSON number'),
        (f'{{{TALK}, "_meta": {{"n": ["\\ud800"]}}}}', r'_meta.n\[0\]: character 0 is U\+D800'),
        (f'{{{TALK}, "_meta": {{"\\udfff": 1}}}}', r'_meta: character 0 is U\+DFFF'),
        (f'{{{TALK}, "_meta": {{"a": {"[" * 40}{"]" * 40}}}}}', 'nested deeper'),
        (f'{{{TALK}, {TALK}}}', "the key 'messages' stands twice in one object"),
        (f'{{{TALK}, "_meta": {{"a": 1, "a": 2}}}}', "the key 'a' stands twice"),
        (
            f'{{{TALK}, "ticket_id": 7}}',
            'mypt convert FILE --keep_meta ticket_id puts it into _meta',
        ),
    ],
)
def test_every_reader_tells_the_same(line, said, tmp_path, capsys):
    path = tmp_path / 'in.jsonl'
    path.write_text(f'{{{TALK}}}\n{line}\n')
    (bad,) = check(str(path))
    with pytest.raises(UserError, match=said):
        parse_line(line.encode())
    with pytest.raises(UserError, match=said):
        prepare(str(path), tmp_path / 'd', 'byte', val_split=0)
    prepare(str(path), tmp_path / 'd', 'byte', val_split=0, on_error='skip')
    assert str(path) in bad


@pytest.mark.parametrize('where', ['key', 'role', 'inner'])
def test_errors_quote_one_short_printable_line(where):
    wild = '\x1b[2J\n' + 'k' * 3000
    ep = json.loads(f'{{{TALK}}}')
    if where == 'key':
        ep[wild] = 1
    elif where == 'role':
        ep['messages'][0]['role'] = wild
    else:
        ep['messages'][0][wild] = 1
    with pytest.raises(UserError) as e:
        parse_line(json.dumps(ep).encode())
    assert str(e.value).isprintable() and len(str(e.value)) < 700


@pytest.mark.parametrize('kind', ['gpt2', 'gpt2:512', 'byte'])
@pytest.mark.parametrize('blank', [' ', '\n', '\t', '\u3000'])
def test_a_million_blanks_are_only_long(kind, blank):
    tok, text = get_tokenizer(kind), f'a{blank * 1_100_000} b'
    assert tok.decode(tok.encode(text)) == text


def test_shorter_blanks_are_not_cut():
    tok = get_tokenizer('gpt2')
    text = 'word ' * 50_000 + ' ' * (LONG_BLANK - 1) + 'x'
    assert tok.encode(text) == tok._bpe.encode_ordinary(text)
