"""False lines and files through every verb: no traceback, no hang, no gigabyte, no row lost.

    pytest tests/test_fuzz.py                # every reader a few times
    pytest tests/test_fuzz.py -m slow        # 20,000 lines and files

A failure is made again by `python tests/fuzz.py N READER`; see there.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
import fuzz_lies
import fuzz_readers
import pytest
from mypt.commands.table import VERBS

HERE = Path(__file__).parent
# Verbs that read no file, or none that another verb here does not read in the same way
ELSEWHERE = {
    *('completion', 'demo', 'speedrun', 'gate', 'assistant'),
    *('context-extension', 'prepare-jobs local'),
}


def fuzzed(n: int, *options: str, timeout: int) -> tuple[list[dict], dict]:
    "The failures of a run, and its summary."
    command = [sys.executable, str(HERE / 'fuzz.py'), str(n), *options]
    env = os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(HERE.parent)}
    p = subprocess.run(command, capture_output=True, text=True, env=env, timeout=timeout)
    assert p.returncode == 0, p.stderr[-3000:]
    *failures, summary = [json.loads(line) for line in p.stdout.splitlines()]
    return failures, summary


def told(failures: list[dict]) -> str:
    lines = [f'{f["reader"]} {f["file"]}: {f["problem"]}\n    {f["false"][:300]}' for f in failures]
    return '\n'.join(lines[:20])


def test_false_lines_and_files():
    failures, summary = fuzzed(600, timeout=900)
    assert not failures, told(failures)
    codes = summary['codes']
    assert min(codes['0'], codes['2']) > 100  # neither all refused nor all read


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(4))
def test_twenty_thousand_false_lines_and_files(seed):
    failures, summary = fuzzed(5000, '--seed', f'long {seed}', timeout=7200)
    print(summary)
    assert not failures, told(failures)


# ---------------------------------------------------------------- the test tests what it says


def test_every_verb_is_fuzzed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    readers = fuzz_readers.all_readers(fuzz_readers.make_files(tmp_path / 'home'))
    commands = [command for r in readers for command in r.commands]
    missing = {verb for verb in VERBS if not any(c.startswith(f'{verb} ') for c in commands)}
    assert missing == ELSEWHERE


FOUND = dict(
    {'raise': 'KeyError'},
    memory='MemoryError',
    die='the process died',
    mute='no clear line',
    count='1 + 1',
    hang='longer than 10 s',
)


@pytest.fixture(scope='module')
def sabotages() -> list[dict]:
    "What is found where a verb does wrong in place of `check`, and the summaries."
    failures, last = fuzzed(3, 'check in', '--sabotage', *FOUND, timeout=300)
    return [*failures, last]


@pytest.mark.parametrize('how', FOUND)
def test_each_kind_of_failure_is_found(how, sabotages):
    *failures, summary = [row for row in sabotages if row['sabotage'] == how]
    assert summary['failed'] == len(failures) == (1 if how == 'hang' else 3)
    assert all(FOUND[how] in f['problem'] for f in failures), told(failures)


def test_a_seed_always_makes_the_same_lies():
    line = json.dumps(fuzz_readers.ROWS['episodes'][2]).encode()
    rows = [[fuzz_lies.false_line(line, random.Random(f'a {i}')) for i in range(50)] for _ in '12']
    assert rows[0] == rows[1] and len(set(rows[0])) > 40
