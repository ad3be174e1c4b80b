"""Lines of strangers: what no file can hold is told by `check`, and nothing else meets it."""

import bz2
import gzip
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
import pytest
from mypt.agent.retrieval import search
from mypt.cli import main
from mypt.curate.augment import augment, diversify, held_questions
from mypt.curate.dedup import dedup
from mypt.data.dataset import open_dataset
from mypt.data.episodes import parse_line
from mypt.data.mix import mix
from mypt.data.prepare import check, prepare
from mypt.data.serialize import load_call
from mypt.data.tokenizer import LONG_BLANK, get_tokenizer
from mypt.errors import UserError
from mypt.eval.leaks import check_leaks
from mypt.eval.suite import load_suite
from mypt.files import iter_lines
from mypt.inference.generate import _print_pieces
from mypt.model.config import load_config
from mypt.sources.convert import convert
from mypt.sources.tool_schemas import json_values
from mypt.train.callbacks import read_log

TALK = '"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'


@pytest.mark.parametrize(
    'line, said',
    [
        (f'{{{TALK}, "_meta": {{"n": 1e400}}}}', '_meta.n: inf is not a JSON number'),
        (f'{{{TALK}, "_meta": {{"n": ["\\ud800"]}}}}', r'_meta.n\[0\]: character 0 is U\+D800'),
        (f'{{{TALK}, "_meta": {{"\\udfff": 1}}}}', r'_meta: character 0 is U\+DFFF'),
        (f'{{{TALK}, "_meta": {{"a": {"[" * 40}{"]" * 40}}}}}', 'nested deeper'),
        (f'{{{TALK}, {TALK}}}', "the key 'messages' is given twice in one object"),
        (f'{{{TALK}, "_meta": {{"a": 1, "a": 2}}}}', "the key 'a' is given twice"),
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
    out = str(tmp_path / 'out.jsonl')
    for use in (
        lambda: mix([f'{path}:1.0'], out),
        lambda: dedup(path, out),
        lambda: diversify(str(path), out),
        lambda: augment(str(path), out, target_count=9),
    ):
        with pytest.raises(UserError, match=said):
            use()
    assert not Path(out).exists()


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


# ---------------------------------------------------------------- JSON of strangers, elsewhere

DEEP = '[' * 100_000


def test_deep_brackets_are_one_line_wherever_json_is_read(tmp_path):
    path = tmp_path / 'x.jsonl'
    path.write_text(f'{{"a": {DEEP}\n')
    for use in (
        lambda: load_suite(path),
        lambda: check_leaks([str(path)], ['gold']),
        lambda: held_questions([path]),
        lambda: read_log(path),
        lambda: load_call(DEEP),
        lambda: parse_line(path.read_bytes()),
    ):
        with pytest.raises(UserError):
            use()
    assert json_values(DEEP) == []


@pytest.mark.parametrize(
    'case', ['7', '{"messages": 7}', '{"messages": [{"role": "user"}]}', 'null']
)
def test_what_variants_must_avoid_is_told_when_it_is_none(tmp_path, case):
    path = tmp_path / 'avoid.jsonl'
    path.write_text(case)
    with pytest.raises(UserError, match=r'avoid.jsonl:1: neither a case of a suite nor an episode'):
        held_questions([path])


def test_a_number_of_thousands_of_digits_is_told_in_words(tmp_path):
    line = f'{{{TALK}, "_meta": {{"n": {"9" * 5000}}}}}'
    with pytest.raises(UserError, match='a number of thousands of digits'):
        parse_line(line.encode())
    (tmp_path / 'c.json').write_text(f'{{"n_layer": {"9" * 5000}}}')
    with pytest.raises(UserError, match='a number of thousands of digits'):
        load_config(tmp_path / 'c.json')


@pytest.mark.parametrize('start, length', [(0, 10**9), (10**9, 1), (1, 2**40), (2**63, 2**63)])
def test_an_index_past_the_tokens_takes_no_memory(tmp_path, capsys, start, length):
    path = tmp_path / 'in.jsonl'
    path.write_text(f'{{{TALK}}}\n' * 4)
    prepare(str(path), tmp_path / 'd', 'byte', val_split=0)
    (tmp_path / 'd' / 'train' / 'episodes.idx').write_bytes(struct.pack('<QQ', start, length) * 4)
    split = open_dataset(tmp_path / 'd').train
    for use in (lambda: split.row(0), lambda: split.episode(3), lambda: split.row_lengths):
        with pytest.raises(UserError, match='an episode lies past the last token'):
            use()


def test_documents_cannot_steer_a_terminal(tmp_path, capsys):
    (tmp_path / 'a.md').write_text(
        '# The mill\n\nThe mill \x1b]0;owned\x07 is 🧑\u200d🚀 5\xa0m high.'
    )
    search('mill', docs_dir=str(tmp_path))
    said = capsys.readouterr().out
    assert r'\x1b]0;owned\x07 is 🧑‍🚀 5' in said and '\x1b' not in said


def test_what_a_model_says_cannot_steer_a_terminal(tmp_path, capsys):
    said = ['a\x1b]0;owned\x07', '\x00\n', 'é\u202e']
    assert _print_pieces(said) == ''.join(said)
    assert capsys.readouterr().out == 'a\\x1b]0;owned\\x07\\x00\né\\u202e\n'
    (tmp_path / 'in.jsonl').write_text(f'{{{TALK}}}\n'.replace('"b"', '"b\x85\\u202e"'))
    assert main(['inspect', str(tmp_path / 'in.jsonl'), '--tokenization', 'byte', '--json']) == 0
    out = capsys.readouterr().out
    assert r'\u0085' in out and not set(out) & set('\x85\u202e')
    assert json.loads(out)['samples']


@pytest.mark.parametrize(
    'change, said',
    [
        (dict(check=[[]]), 'check is'),
        (dict(tags='ab'), 'tags is'),
        (dict(tags=[1]), 'tags.0 is'),
        (dict(documents=dict(a=1)), 'documents.a is'),
        (dict(limit=2**70), 'limit is'),
        (dict(expected=None), 'expected is'),
        (dict(episode=dict(_replay=True, text='a')), 'its episode has no messages'),
    ],
)
def test_a_false_case_of_a_suite_is_one_line(tmp_path, change, said):
    asked = dict(messages=[dict(role='user', content='a')])
    case = dict(id='1', episode=asked, check='exact', expected='b', tags=[])
    (tmp_path / 's.jsonl').write_text(json.dumps(case | change))
    with pytest.raises(UserError, match=rf's.jsonl:1: .*{said}'):
        load_suite(tmp_path / 's.jsonl')


@pytest.mark.parametrize('name', ['in.jsonl.gz', 'in.csv', 'in.json', 'in.jsonl'])
def test_a_packed_file_is_told_with_its_program(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(gzip.compress(f'{{{TALK}}}\n'.encode()))
    uses = [lambda: check(name), lambda: convert(name, 'out.jsonl')]
    if 'jsonl' in name:
        uses += [lambda: dedup(name, 'out.jsonl'), lambda: mix([f'{name}:1'], 'out.jsonl')]
    for use in uses:
        with pytest.raises(UserError, match=f'is packed; first gunzip -k {name}'):
            use()
    Path(name).write_bytes(bz2.compress(b'{}'))
    with pytest.raises(UserError, match=f'is packed; first bunzip2 -k {name}'):
        convert(name, 'out.jsonl')
    Path(name).write_bytes(b'PK\x03\x04' + b'x' * 99)
    with pytest.raises(UserError, match='save a table as CSV'):
        convert(name, 'out.jsonl')


@pytest.mark.parametrize('what', ['pipe', '/dev/zero'])
def test_a_pipe_or_device_is_told_at_once(what, tmp_path):
    path = tmp_path / 'in.jsonl' if what == 'pipe' else what
    if what == 'pipe':
        os.mkfifo(path)
    with pytest.raises(UserError, match=r'is a pipe or device, .* write its output to a file'):
        check(str(path))


def piped(command: str, folder) -> subprocess.CompletedProcess:
    "A command line of bash, where `mypt` is this one."
    line = f'mypt() {{ {sys.executable} -m mypt.cli "$@"; }}; {command}'
    env = os.environ | {'PYTHONPATH': str(Path(__file__).parent.parent)}
    return subprocess.run(
        ['bash', '-c', line], cwd=folder, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.mark.skipif(not Path('/dev/fd').exists(), reason='needs /dev/fd')
def test_a_pipe_of_the_shell_is_read_once(tmp_path):
    lines = [f'{{{TALK}}}\n'.replace('"a"', f'"a{i}"') for i in range(20)]
    (tmp_path / 'in.jsonl').write_text(''.join(lines))
    p = piped('mypt check <(cat in.jsonl)', tmp_path)
    assert (p.returncode, p.stdout) == (0, '20 fine, 0 to mend\n'), p.stderr
    p = piped('cat in.jsonl | mypt check /dev/stdin', tmp_path)
    assert (p.returncode, p.stdout) == (0, '20 fine, 0 to mend\n'), p.stderr
    p = piped('mypt inspect --show_samples 1 --tokenization byte <(cat in.jsonl)', tmp_path)
    assert p.returncode == 0 and '⟦b</assistant>' in p.stdout, p.stderr
    p = piped(
        'cat in.jsonl | mypt prepare --input /dev/stdin --output_dir d --tokenization byte',
        tmp_path,
    )
    assert p.returncode == 0 and p.stdout.startswith('18 train + 2 val episodes'), p.stderr
    meta = json.loads((tmp_path / 'd' / 'dataset_metadata.json').read_text())
    assert str(sum(map(len, lines))) in json.dumps(meta['lineage'])
    for command in (
        'mypt mix --inputs <(cat in.jsonl):1.0 --output m.jsonl',
        'mypt dedup --input <(cat in.jsonl) --output m.jsonl',
        'mypt convert <(cat in.jsonl) --output m.jsonl',
        'cat in.jsonl | mypt convert /dev/stdin --output m.jsonl',
    ):
        p = piped(command, tmp_path)
        assert p.returncode == 2 and 'write its output to a file' in p.stderr, (command, p.stderr)
        assert p.stderr.count('\n') == 1 and not (tmp_path / 'm.jsonl').exists()


def test_a_second_reading_of_a_pipe_is_told(tmp_path):
    read, write = os.pipe()
    with os.fdopen(write, 'wb') as f:
        f.write(b'{"a": 1}\n')
    assert [n for n, _ in iter_lines(f'/dev/fd/{read}')] == [1]
    with pytest.raises(UserError, match=r'is a pipe, and this command reads its input twice'):
        list(iter_lines(f'/dev/fd/{read}'))
    os.close(read)


def test_a_very_deep_path_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for verb in (['convert', 'in.jsonl', '--output'], ['prepare', '--input', 'x', '--output_dir']):
        assert main([*verb, 'a/' * 1900 + 'x']) == 2
        said = capsys.readouterr().err
        assert 'has more than 200 folders' in said and said.count('\n') == 1
