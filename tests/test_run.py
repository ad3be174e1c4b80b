"`mypt run`: what a dry run prints is what a run does, every phase, from where it stopped."

import hashlib
import json
import shlex
import subprocess
import sys
from inspect import signature
from pathlib import Path

import pytest

from mypt.cli import main
from mypt.curriculum.recipe import MAKE_FLAGS
from mypt.curriculum.run import PHASES, make
from mypt.data.episodes import read_episodes, write_episodes

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
    log = (tmp_path / f'run/checkpoints/phase{phase}/log.jsonl').read_text()
    named = json.loads(log.splitlines()[-1])
    print(named)


def test_documents_and_own_data(capsys, monkeypatch, tmp_path):
    ...


@pytest.mark.slow
def test_every_phase_one_after_the_other(capsys, monkeypatch, tmp_path):
    for phase in PHASES:
        ran, typed = both_ways(capsys, monkeypatch, tmp_path, '--phase', phase, *FEW, *TEXTS)
        assert ran == typed, phase


def test_flags_of_make():
    "Options with a flag of their own are printed as flags."
    assert {*MAKE_FLAGS} <= {*signature(make).parameters}
