"`mypt mix`: what numbers behind a file mean, counted in rows or in tokens, and never in silence."

import pytest

from mypt.cli import main
from mypt.data.episodes import read_episodes, write_episodes
from mypt.data.mix import amounts_to_take, mix
from mypt.data.masks import encode
from mypt.data.tokenizer_state import open_tokenizer
from mypt.errors import UserError


def texts(n: int, words: int, name: str) -> list[dict]:
    return [{'_replay': True, 'text': f'{name} {i} ' + 'and on ' * words} for i in range(n)]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_episodes('replay.jsonl', texts(40, 4, 'old'))
    write_episodes('phase.jsonl', texts(190, 4, 'new'))
    write_episodes('long.jsonl', texts(120, 90, 'long'))


def rows(file: str) -> dict[str, int]:
    counts = {}
    for ep in read_episodes(file):
        counts[ep['mix_source']] = counts.get(ep['mix_source'], 0) + 1
    return counts


def test_the_documented_five_per_cent_copies_nothing(files, capsys):
    "`A:1.0 B:19.0` is one part and nineteen, every row at most once, and it says so."
    argv = ['mix', '--inputs', 'replay.jsonl:1.0', 'phase.jsonl:19.0', '--output', 'm.jsonl']
    assert main([*argv, '--shuffle']) == 0
    assert rows('m.jsonl') == dict(replay=10, phase=190)
    said = capsys.readouterr().out
    assert 'numbers above 1 are parts of the result' in said
    assert '5.0%         10 of 40 rows' in said and '30 rows left out' in said
    assert len({ep['text'] for ep in read_episodes('m.jsonl')}) == 200


def test_the_documents_phase_3_replay_adds_up(files):
    "1.0, 0.6, 0.6 and 19.0: five per cent of raw text, three each of two phases."
    taken = amounts_to_take([2000, 9000, 9000, 9500], [1.0, 0.6, 0.6, 19.0])
    assert [round(k / sum(taken), 2) for k in taken] == [0.05, 0.03, 0.03, 0.90]


def test_rows_are_repeated_only_when_asked(files, capsys):
    mix(['replay.jsonl:2'], 'twice.jsonl', repeat=True)
    assert rows('twice.jsonl') == dict(replay=80)
    assert '40 of its rows are repeated' in capsys.readouterr().out
    report = mix(['replay.jsonl:0.5', 'phase.jsonl:0.5'], 'half.jsonl', shares=True, repeat=True)
    assert rows('half.jsonl') == dict(replay=190, phase=190)
    assert [s['repeated'] for s in report['sources']] == [150, 0]
    mix(['replay.jsonl:0.5', 'phase.jsonl:0.5'], 'less.jsonl', shares=True)
    assert rows('less.jsonl') == dict(replay=40, phase=40)
    assert '150 rows left out: replay.jsonl is used up' in capsys.readouterr().out


@pytest.mark.parametrize('by', ['tokens', 'characters'])
def test_shares_of_tokens(files, by):
    "Rows of ninety words and of four: the shares are those of the text, not of the rows."
    inputs = ['phase.jsonl:0.4', 'long.jsonl:0.6']
    report = mix(inputs, 'm.jsonl', shares=True, by=by, tokenization='byte')
    tok, size = open_tokenizer('byte'), dict(phase=0, long=0)
    for ep in read_episodes('m.jsonl'):
        size[ep['mix_source']] += len(encode(ep, tok)) if by == 'tokens' else len(ep['text'])
    share = size['phase'] / sum(size.values())
    assert abs(share - 0.4) < 0.02
    assert abs(report['sources'][0]['share'] - share) < 1e-4
    assert report['sources'][0]['rows'] == 190 and report['sources'][1]['rows'] < 25


def test_an_unknown_unit(files):
    with pytest.raises(UserError, match='--by words: count rows, tokens, characters'):
        mix(['phase.jsonl'], 'm.jsonl', by='words')
