"`mypt run`: what a dry run prints is what a run does, every phase, from where it stopped."

import hashlib
import json
import shlex
import subprocess
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest

from mypt.cli import main
from mypt.curriculum.invented import make_documents
from mypt.curriculum.recipe import MAKE_FLAGS
from mypt.curriculum.run import PHASES, make
from mypt.curriculum.speedrun import LEGS
from mypt.data.episodes import read_episodes, write_episodes
from mypt.train.callbacks import read_log

SMALL = [
    'n_layer=1',
    'n_head=1',
    'n_embd=8',
    'batch_size=1',
    'grad_accum_steps=1',
    'max_iters=2',
    'eval_interval=2',
    'eval_iters=1',
]
FEW = ['--num_examples', '60', '--quiet', '--sets', *SMALL]
TEXTS = ['vocab_size=4160', '--tokenization', 'gpt2:4096']  # phase 1b's texts fit into its rows


def run(*argv: str) -> int:
    code = main(['run', *argv])
    assert code in (0, 1)  # a gate of a model that has learned nothing is red
    return code


def dry_run(capsys, *argv: str) -> list[str]:
    capsys.readouterr()
    assert main(['run', *argv, '--dry_run']) == 0
    return capsys.readouterr().out.splitlines()


def type_in(lines: list[str]):
    "Run the lines as typed into a shell, in this process."
    for line in lines:
        words = shlex.split(line, comments=True)
        if words:
            assert words[0] == 'mypt'
            code = main(words[1:])
            assert code == 0 or (words[1] == 'gate' and code == 1), line


def files(folder: Path) -> dict[str, str]:
    "Sums of all that a run leaves, but for notes of progress and times."
    sums = {}
    for path in sorted(folder.rglob('*')):
        weights = path.name == 'model.safetensors'
        made = path.is_file() and 'data' in path.relative_to(folder).parts
        if weights or (made and path.name != 'stages.json'):
            name = str(path.relative_to(folder))
            sums[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return sums


def both_ways(capsys, monkeypatch, tmp_path, *argv: str) -> tuple[dict, dict]:
    "What a run leaves, and what its printed commands leave, in folders that were alike before."
    sums = []
    for name in ('run', 'typed'):
        (tmp_path / name).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / name)
        lines = dry_run(capsys, *argv)
        if name == 'run':
            run(*argv)
        else:
            type_in(lines)
        sums.append(files(tmp_path / name))
    return sums[0], sums[1]


def test_the_same_bytes_in_a_shell(capsys, monkeypatch, tmp_path):
    argv = ['--phase', '1', '--language', 'de', '--format_lock_mode', 'minimal', *FEW]
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'run').mkdir()
    (tmp_path / 'typed').mkdir()
    lines = dry_run(capsys, *argv)
    script = f'mypt() {{ {shlex.quote(sys.executable)} -m mypt.cli "$@"; }}\n' + '\n'.join(lines)
    done = subprocess.run(['bash', '-c', script], cwd='typed', capture_output=True, text=True)
    assert done.returncode == 1, done.stderr  # of the gate
    monkeypatch.chdir(tmp_path / 'run')
    assert run(*argv) == 1
    typed = files(tmp_path / 'typed')
    assert typed == files(tmp_path / 'run')
    assert {'checkpoints/phase1/model.safetensors', 'data/phase1/gate.json'} <= set(typed)


@pytest.mark.parametrize('phase', ['2', '5'])
def test_a_dry_run_prints_what_runs(capsys, monkeypatch, tmp_path, phase):
    "In an empty folder: the data of earlier phases is made, found and named."
    ran, typed = both_ways(capsys, monkeypatch, tmp_path, '--phase', phase, *FEW, *TEXTS)
    assert ran == typed
    for earlier in PHASES[phase].replay:
        assert f'data/phase{earlier}/dataset/train/tokens.bin' in ran
    log = tmp_path / f'run/checkpoints/phase{phase}/log.jsonl'
    evaluated = [name for name in read_log(log)[-1] if name.startswith('val_loss/')]
    assert evaluated == [f'val_loss/{PHASES[n].config}' for n in PHASES[phase].replay]


def test_documents_and_own_data(capsys, monkeypatch, tmp_path):
    "German documents make German episodes and a German gate; own data has its share."
    docs = tmp_path / 'docs'
    docs.mkdir()
    for doc in make_documents(12, 'de', 1):
        (docs / doc.doc_id).write_text(doc.text, encoding='utf-8')
    talk = [{'role': 'user', 'content': 'Was ist 0?'}, {'role': 'assistant', 'content': 'Null.'}]
    write_episodes(tmp_path / 'own.jsonl', [{'messages': talk, 'id': str(i)} for i in range(12)])
    raw = [{'_replay': True, 'text': f'Das Meer Nummer {i} ist weit.'} for i in range(9)]
    write_episodes(tmp_path / 'raw.jsonl', raw)
    argv = ['--phase', '3', '--docs_dir', '../docs', '--data', '../own.jsonl:0.2']
    argv += ['--pretrain_replay', '../raw.jsonl']
    ran, typed = both_ways(capsys, monkeypatch, tmp_path, *argv, *FEW)
    assert ran == typed
    data = tmp_path / 'run/data'
    made = read_episodes(data / 'phase3/rag_chat.jsonl') + read_episodes(data / 'phase1/echo.jsonl')
    assert {e['language'] for e in made} == {'de'}
    mixed = json.loads((data / 'phase3/mixed.jsonl.mix.json').read_text())
    shares = {s['file']: s['share'] for s in mixed['sources']}
    assert abs(shares['own.jsonl'] - 0.2) < 0.02 and abs(shares['raw.jsonl'] - 0.05) < 0.02
    gate = json.loads((data / 'phase3/gate.json').read_text())
    assert {r['n'] for r in gate['suites'] if r['name'] == 'cites'} == {80}  # of 160 in both
    assert main(['run', *argv, *FEW, '--dry_run']) == 0
    said = capsys.readouterr().out
    assert '# ../docs: 0 in English, 12 in German' in said
    assert '# ../own.jsonl: 12 episodes at a share of 0.2 make a mix of 60' in said


def test_from_one_phase_to_the_next(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    first = ['--phase', 'pretrain', *FEW, *TEXTS]
    assert run(*first) == 1
    said = capsys.readouterr().out
    assert 'RANDOM' not in said and 'mypt run --phase 1b --sets n_layer=1' in said.splitlines()[-1]
    assert run(*first) == 1  # done before: one line, the next command, the same verdict
    done, following = capsys.readouterr().out.splitlines()
    assert done.startswith('phase pretrain was done before') and 'did NOT pass' in done
    assert following == said.splitlines()[-1]
    lines = dry_run(capsys, '--phase', '1', *FEW)
    assert lines[0] == '# phase 1 starts from checkpoints/phasepretrain'
    train = next(line for line in lines if line.startswith('mypt train'))
    assert '--init_from_model phasepretrain' in train
    assert any('--tokenization gpt2:4096' in line for line in lines)  # the base brings its own
    lines = dry_run(capsys, '--phase', '1', '--fresh', *FEW)
    assert not any('--init_from_model' in line for line in lines)
    lines = dry_run(capsys, '--phase', '1', '--device', 'cpu', *FEW)
    assert [line.split()[1] for line in lines if '--device cpu' in line] == ['train', 'gate']


@pytest.mark.parametrize(
    'flags, message',
    [
        (['--phase', '1', '--docs_dir', 'docs'], 'does not use documents'),
        (['--phase', '2', '--echo_gibberish', 'only'], 'makes no echo'),
        (['--phase', '2', '--language', 'fr'], 'there is en, de'),
        (['--phase', '2', '--language', 'French'], 'bring episodes (mypt convert) or translate'),
        (['--phase', '2', '--data', 'own.jsonl'], 'own.jsonl:0.3'),
        (['--phase', '2', '--data', 'own.jsonl:0.2'], 'no such file'),
        (['--phase', '2', '--device', 'tpu'], 'tpu'),
        (['--phase', '2', '--init_from_model', 'nobody'], 'nobody'),
        (['--phase', '2', '--fresh', '--init_from_model', 'x'], 'leave one out'),
    ],
)
def test_what_a_run_refuses(capsys, monkeypatch, tmp_path, flags, message):
    "One line, before anything is made."
    monkeypatch.chdir(tmp_path)
    assert main(['run', *flags]) == 2
    assert message in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_a_short_context_shortens_rows(capsys, monkeypatch, tmp_path):
    "Rows of this phase, and of the earlier phases that it is evaluated on."
    monkeypatch.chdir(tmp_path)
    lines = dry_run(capsys, '--phase', '3', '--sets', 'block_size=256')
    assert [line.count('--pack_block_size 256') for line in lines if ' prepare ' in line] == [1] * 3


def test_data_of_the_hub_takes_its_place(capsys, monkeypatch, tmp_path):
    "What stands in for it is named, and is not made where it is given."
    monkeypatch.chdir(tmp_path)
    lines = dry_run(capsys, '--phase', '5')
    told = next(line for line in lines if line.startswith('# the mix:'))
    assert 'foreign_tools stand in for tool use of the hub' in told and '--data FILE:SHARE' in told
    talk = [{'role': 'user', 'content': 'Hi?'}, {'role': 'assistant', 'content': 'Hi.'}]
    write_episodes('hub.jsonl', [{'messages': talk, 'id': str(i)} for i in range(9)])
    lines = dry_run(capsys, '--phase', '5', '--data', 'hub.jsonl:0.3')
    assert not any('foreign_tools' in line for line in lines if not line.startswith('# '))
    mixed = next(line for line in lines if line.startswith('mypt mix --inputs data/phase5/'))
    shares = dict(word.rsplit(':', 1) for word in mixed.split() if '.jsonl:' in word)
    own = [float(shares[f'data/phase5/{kind}.jsonl']) for kind in ('toolcall', 'no_tool')]
    assert shares['hub.jsonl'] == '0.3' and own[0] == pytest.approx(2 * own[1], abs=1e-5)
    assert sum(map(float, shares.values())) == pytest.approx(1, abs=1e-4)


def test_text_of_pre_training_is_found(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert any(
        'no pre-training text under data' in line for line in dry_run(capsys, '--phase', '1')
    )
    raw = [{'_replay': True, 'text': f'The sea number {i} is wide. ' * 9} for i in range(90)]
    write_episodes('raw.jsonl', raw)
    argv = ['prepare', '--input', 'raw.jsonl', '--output_dir', 'data/general']
    assert main([*argv, '--format', 'shards', '--tokenization', 'byte']) == 0
    lines = dry_run(capsys, '--phase', '1', '--num_examples', '100')
    (made,) = [line for line in lines if line.startswith('mypt make replay')]
    assert '--dataset_dir data/general' in made
    mixed = next(line for line in lines if line.startswith('mypt mix'))
    assert 'data/phase1/replay.jsonl:0.05' in mixed
    lines = dry_run(capsys, '--phase', '1')  # more than the text gives: its share is what it is
    assert any('pieces are' in line and 'not 5%' in line for line in lines)
    assert not any('make replay' in line for line in dry_run(capsys, '--phase', '1', '--no_replay'))


def test_speedrun_ends_with_the_verdict_of_its_gates(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    leg = replace(LEGS[0], n=dict(text=60), needed=True)
    monkeypatch.setattr('mypt.curriculum.speedrun.LEGS', (leg,))
    sizes = [s for s in SMALL if not s.startswith('n_head')]
    argv = ['speedrun', '--quiet', '--language', 'de', '--sets', *sizes, '--json']
    assert main(argv) == 1
    (phase,) = json.loads(capsys.readouterr().out)['phases']
    assert phase['phase'] == 'pretrain' and phase['gate']['passed'] is False
    assert {e['language'] for e in read_episodes('speedrun/phasepretrain/text.jsonl')} == {'de'}
    monkeypatch.setattr('mypt.curriculum.speedrun.LEGS', (replace(leg, needed=False),))
    assert main(argv[:-1]) == 0


@pytest.mark.slow
def test_every_phase_one_after_the_other(capsys, monkeypatch, tmp_path):
    for phase in PHASES:
        ran, typed = both_ways(capsys, monkeypatch, tmp_path, '--phase', phase, *FEW, *TEXTS)
        assert ran == typed, phase


def test_flags_of_make():
    "Options with a flag of their own are printed as flags."
    assert {*MAKE_FLAGS} <= {*signature(make).parameters}
