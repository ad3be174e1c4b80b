"""Files and rows that are not read: each is named, with the reason and what to do about it."""

import gzip
import json
import os
from pathlib import Path
import pytest
from mypt.agent.readers import Unreadable, read_table
from mypt.curate.dedup import dedup
from mypt.curate.quality import quality
from mypt.data.episodes import read_episodes
from mypt.data.prepare import check, find_inputs, prepare
from mypt.errors import UserError
from mypt.sources.convert import convert
from mypt.sources.row_files import files_of
from talks import talk


def line(word):
    return json.dumps(talk(word, f'{word}!')) + '\n'


def fill(folder, **words):
    "Files of one episode each; `__` is a slash and `_D_` a dot in their names."
    for name, word in words.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        text = line(word).encode()
        path.write_bytes(gzip.compress(text) if path.suffix == '.gz' else text)


def questions(path):
    return {ep['messages'][0]['content'] for ep in read_episodes(path)}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


# --- folders


MIXED = {
    'a.jsonl': 'one',
    'B.JSONL': 'two',
    'c.ndjson': 'three',
    'dev-team.jsonl': 'four',
    'test-lab-chats.jsonl': 'five',
    'answers_from_support.jsonl': 'six',
    'sub/e.jsonl': 'seven',
    'd.jsonl.gz': 'packed',
    '._a.jsonl': 'hidden',
    '.cache/x.jsonl': 'hidden',
    'a.jsonl.rejects.jsonl': 'rejected',
}


def test_convert_reads_a_folder_or_names_the_file(here, capsys):
    fill(here / 'f', **MIXED, **{'dev.jsonl': 'held out', 'test_sft-00000-of-00001.jsonl': 'kept'})
    convert('f', 'o.jsonl')
    assert questions('o.jsonl') == {'one', 'two', 'three', 'four', 'five', 'six', 'seven'}
    said = capsys.readouterr().out
    assert 'note: f: left out d.jsonl.gz: packed; first gunzip -k it\n' in said
    assert 'note: f: left out a.jsonl.rejects.jsonl: rows that were rejected; ' in said
    assert 'left out dev.jsonl: of the split validation; --split validation takes it\n' in said
    assert 'left out test_sft-00000-of-00001.jsonl: of the split test' in said
    assert (
        'taken for train dev-team.jsonl, test-lab-chats.jsonl: a split is named by the wh' in said
    )
    assert '._a' not in said and '.cache' not in said
    convert('f', 'v.jsonl', split='validation')
    assert questions('v.jsonl') == {'held out'}


def test_prepare_and_check_read_a_folder_or_name_the_file(here, capsys):
    fill(here / 'f', **MIXED)
    (here / 'f' / 'table.CSV').write_text('a,b\n')
    (here / 'f' / 'a.jsonl.mix.json').write_text('{"sources": []}')
    for run in (lambda: check('f'), lambda: prepare('f', 'p', 'byte', verbose=True)):
        run()
        said = capsys.readouterr().out
        assert 'note: f: left out d.jsonl.gz: packed; first gunzip -k it\n' in said
        assert "left out sub/e.jsonl: in a sub-folder; the pattern 'f/**/*.jsonl' takes all" in said
        assert 'note: f: left out a.jsonl.rejects.jsonl: rows that were rejected; ' in said
        assert 'left out table.CSV: not one episode a line; mypt convert reads it\n' in said
        assert '._a' not in said and 'mix' not in said
    read = {'a.jsonl', 'B.JSONL', 'c.ndjson', 'dev-team.jsonl', 'test-lab-chats.jsonl'}
    assert {p.name for p in find_inputs('f')} == read | {'answers_from_support.jsonl'}
    pattern = [p.as_posix() for p in find_inputs('f/**/*.jsonl')]
    assert 'f/sub/e.jsonl' in pattern and 'f/a.jsonl.rejects.jsonl' not in pattern
    assert find_inputs('f/*.rejects.jsonl') == [Path('f/a.jsonl.rejects.jsonl')]


def test_a_folder_of_nothing_else_says_what_it_has(here):
    fill(here / 'f', **{'d.jsonl.gz': 'packed'})
    for read in (find_inputs, files_of):
        with pytest.raises(UserError, match=r'left out d.jsonl.gz: packed; first gunzip -k it$'):
            read('f')


def test_links_and_pipes_of_a_folder_are_named(here, capsys):
    fill(here, **{'f/a.jsonl': 'one', 'g/b.jsonl': 'two'})
    os.symlink(here / 'g', here / 'f' / 'linked')
    os.symlink('nowhere', here / 'f' / 'gone.jsonl')
    for read in (find_inputs, files_of):
        assert [p.name for p in read('f')] == ['a.jsonl']
        said = capsys.readouterr().out
        assert 'left out linked: a link to a folder; give that folder itself' in said
        assert 'left out gone.jsonl: not a file, or a link to none' in said


@pytest.mark.parametrize(
    'name, split',
    [
        ('test.jsonl', 'test'),
        ('Validation.JSON', 'validation'),
        ('dev-v2.0.json', 'validation'),
        ('data/test-00000-of-00001.parquet', 'test'),
        ('default/test/0000.parquet', 'test'),
        ('validation-00001-of-00002-0123456789abcdef.parquet', 'validation'),
        ('test/chats.jsonl', 'test'),
        ('test-drive.jsonl', 'train'),
        ('valid-answers.jsonl', 'train'),
        ('chats.test.jsonl', 'train'),
        ('part-00000-of-00001.jsonl', 'train'),
    ],
)
def test_a_split_is_a_whole_name(name, split, tmp_path):
    fill(tmp_path, **{name: 'x', 'train.jsonl': 'y', 'test.csv': 'z', 'val.csv': 'z'})
    taken = [p.relative_to(tmp_path).as_posix() for p in files_of(tmp_path, split)]
    assert name in taken


def test_answers_are_left_out_only_beside_their_questions(tmp_path, capsys):
    fill(tmp_path, **{'answers_q.jsonl': 'x', 'answers_r.jsonl': 'y', 'q.jsonl': 'z'})
    assert [p.name for p in files_of(tmp_path)] == ['answers_r.jsonl', 'q.jsonl']
    assert 'left out answers_q.jsonl: answers to the questions' in capsys.readouterr().out


def test_own_rejects_are_no_input(here, capsys):
    (here / 'r.jsonl').write_text(line('a') + line('b') + line('c') + '{"messages": 3}\n')
    convert('r.jsonl', 'data/a.jsonl')
    assert Path('data/a.jsonl.rejects.jsonl').exists()
    assert check('data') == []
    prepare('data', 'p', 'byte')
    convert('data', 'again.jsonl')
    assert questions('again.jsonl') == {'a', 'b', 'c'}
    assert capsys.readouterr().out.count('left out a.jsonl.rejects.jsonl') == 3


def test_a_report_of_several_parts_names_a_file_once(here, capsys):
    fill(here / 'f', **{'a.jsonl': 'one', 'd.jsonl.gz': 'packed'})
    quality('f', 'byte')
    assert capsys.readouterr().out.count('left out d.jsonl.gz') == 1


# --- rows


def test_where_no_row_can_be_used_the_rejects_are_written(here):
    bad = talk('a', system='x')
    bad['messages'] = bad['messages'][:1]
    (here / 'in.jsonl').write_text(f'{json.dumps(bad)}\n' * 2)
    with pytest.raises(UserError, match=r'none of 2 rows .*, first in.jsonl:1\).*--rejects FILE'):
        convert('in.jsonl', 'o.jsonl')
    assert not list(here.glob('o.jsonl*'))
    with pytest.raises(UserError, match=r'rejected rows with their lines → r.jsonl$'):
        convert('in.jsonl', 'o.jsonl', rejects='r.jsonl')
    rejects = [json.loads(x) for x in Path('r.jsonl').read_text().splitlines()]
    assert [r['where'] for r in rejects] == ['in.jsonl:1', 'in.jsonl:2']
    assert rejects[0]['row'] == bad and not Path('o.jsonl').exists()


def test_lines_that_are_all_unreadable_are_written(here):
    (here / 'in.jsonl').write_text('{broken\n{too\n')
    with pytest.raises(
        UserError, match=r'so are all other lines; is it JSON\?; rejected .* r.jsonl'
    ):
        convert('in.jsonl', 'o.jsonl', rejects='r.jsonl')
    rejects = [json.loads(x) for x in Path('r.jsonl').read_text().splitlines()]
    assert [(r['where'], r['row']) for r in rejects] == [
        ('in.jsonl:1', '{broken\n'),
        ('in.jsonl:2', '{too\n'),
    ]


@pytest.mark.parametrize(
    'name, text, kept, options',
    [
        ('in.csv', 'prompt,completion\n"x"y,precious\nc,d\n', '"x"y,precious\n', {}),
        ('in.csv', 'prompt,completion\n"x\ny",precious,z\nc,d\n', '"x\ny",precious,z\n', {}),
        (
            'in.jsonl',
            '{"q": "x", "p": "precious", "completion": "y"}\n{"q": "x", "completion": "y"}\n',
            '{"q": "x", "p": "precious", "completion": "y"}',
            dict(columns=['prompt=q', 'prompt=p']),
        ),
    ],
)
def test_a_rejected_row_keeps_its_text(name, text, kept, options, here):
    (here / name).write_text(text)
    assert convert(name, 'o.jsonl', **options) == 1
    (reject,) = map(json.loads, Path('o.jsonl.rejects.jsonl').read_text().splitlines())
    assert reject['row'] == kept


def test_one_object_with_a_key_twice_keeps_its_text(here):
    text = '{\n "text": "x",\n "text": "precious"\n}\n'
    (here / 'in.json').write_text(text)
    with pytest.raises(UserError, match='a key twice'):
        convert('in.json', 'o.jsonl', rejects='r.jsonl')
    assert json.loads(Path('r.jsonl').read_text())['row'] == text


def test_parquet_with_two_columns_of_one_name(here):
    pa = pytest.importorskip('pyarrow')
    from pyarrow import parquet

    table = pa.table([pa.array(['first']), pa.array(['second'])], names=['text', 'text'])
    parquet.write_table(table, 'in.parquet')
    with pytest.raises(UserError, match=r"^in.parquet: two columns are named 'text', the name twi"):
        convert('in.parquet', 'o.jsonl')
    assert not list(here.glob('o.jsonl*'))


@pytest.mark.parametrize(
    'text, first',
    [
        ('question,answer\n"how long is it,5 m\nhow high,3 m\nhow deep,2 m\n', 2),
        ('sep=;\nq;a\nb;c\nx;"y\nz;w', 4),
        ('a,b\n"c\nd",e\n"f', 4),
        ('"', 1),
    ],
)
def test_a_quote_that_never_ends_leaves_a_table_out(text, first):
    with pytest.raises(Unreadable, match=f'the quote in line {first} never ends'):
        read_table(text.encode())


@pytest.mark.parametrize(
    'text', ['a,b\n1,"2"', 'a,b\n1,"2\n3"\n', 'a\n\ue000\n', 'a,b\n1,5" x\n', '']
)
def test_a_quote_that_ends_does_not(text):
    read_table(text.encode())


# --- reasons


def test_a_place_below_a_file_names_what_was_asked_for(here):
    fill(here, **{'e.jsonl': 'x'})
    for run in (convert, dedup):
        with pytest.raises(
            UserError, match=r'^e.jsonl/d/o.jsonl: e.jsonl is a file and not a fold'
        ):
            run('e.jsonl', 'e.jsonl/d/o.jsonl')


@pytest.mark.parametrize('name', ['in.jsonl', 'in.json', 'in.csv', 'in.parquet'])
def test_a_pointer_of_git_lfs(name, here):
    if name.endswith('.parquet'):
        pytest.importorskip('pyarrow')
    pointer = f'version https://git-lfs.github.com/spec/v1\noid sha256:{"0" * 64}\nsize 9\n'
    (here / name).write_text(pointer)
    with pytest.raises(UserError, match='a Git LFS pointer and not the data itself; first git lfs'):
        convert(name, 'o.jsonl')
    if name == 'in.jsonl':
        with pytest.raises(UserError, match='a Git LFS pointer'):
            check(name)


@pytest.mark.parametrize('name', ['in.jsonl', 'in.json', 'in.csv'])
@pytest.mark.parametrize('code', ['UTF-16LE', 'UTF-16BE'])
def test_utf_16_without_its_mark(name, code, here):
    text = 'prompt,completion\nx,y\n' if name == 'in.csv' else line('Ärger')
    (here / name).write_bytes(text.encode(code))
    with pytest.raises(UserError, match=f'not UTF-8, but perhaps {code}; save it as UTF-8: iconv'):
        convert(name, 'o.jsonl')
