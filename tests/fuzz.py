"""False lines and files of every kind for every verb that reads them.

    python tests/fuzz.py 500                    # cases, spread over all readers; always the same
    python tests/fuzz.py 2000 convert --seed 7  # only readers whose names begin so

A fork of this process runs some cases through `mypt.cli.main`, with ten seconds of a core for each
and a gigabyte. A case fails when a Python error leaves `main`, when it takes longer or more, when
what is printed is not one clear line, or when rows in are not rows out and rows reported.
"""

import argparse
import contextlib
import json
import os
import random
import re
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
import fuzz_readers
import torch
from fuzz_accounts import Outcome
from fuzz_readers import Reader, all_readers, main, make_files
from mypt.commands.table import VERBS, signature_of
from mypt.data.tokenizer import get_tokenizer

MOST_SECONDS = 10
WAITED = 90  # seconds of the clock, on a machine that others use too
MOST_BYTES = 2**30
AT_ONCE = 25  # cases of one fork


# ---------------------------------------------------------------- cases


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


def origin_of(reader: Reader, file: str, home: Path) -> Path:
    "The good file that a file of a case is made from."
    for name, source in reader.files.items():
        if file == name or file.startswith(f'{name}/'):
            return home / source / Path(file).relative_to(name)
    raise KeyError(file)


def cases_of(readers: list[Reader], n: int, seed: str, home: Path) -> Iterator[Case]:
    "`n` cases, spread over the readers by their weights; the same ones for the same seed."
    total, due, number = sum(r.weight for r in readers), 0.0, 0
    for r in readers:
        due += n * r.weight / total
        rng = random.Random(f'{seed} {r.name}')
        while number < round(due):
            file = r.false[number % len(r.false)]
            good = origin_of(r, file, home).read_bytes()
            yield Case(number, r, file, r.lie(good, rng))
            number += 1


def lay_out(case: Case, folder: Path, home: Path):
    "The files of a case in an empty folder."
    for name, source in case.reader.files.items():
        place, origin = folder / name, home / source
        place.parent.mkdir(parents=True, exist_ok=True)
        if origin.is_dir():
            shutil.copytree(origin, place, copy_function=shutil.copyfile)
        else:
            shutil.copyfile(origin, place)
    (folder / case.file).write_bytes(case.false)


# ---------------------------------------------------------------- what is a failure

_ERRORS = 'Type Key Attribute Index Value Recursion Memory Assertion ZeroDivision Overflow Runtime'
PYTHON = re.compile(
    rf'\b(?:{"|".join(_ERRORS.split())}|Unicode\w*)Error\b|Traceback|has no attribute|subscriptable'
)
WILD = re.compile(r'[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e\u2066-\u2069]')
MOST_LINE = 1200


def fault(code: int, out: str, err: str) -> str:
    "What is wrong with what a command said."
    if code not in (0, 1, 2):
        return f'exit code {code}'
    line = err.strip('\n').split('\n')[-1]
    if code == 2 and not line.startswith('mypt: '):
        return f'no clear line: {err[-300:]!r}'
    if code == 2 and len(line) > MOST_LINE:
        return f'a line of {len(line)} characters'
    said = out + err
    for what, pattern in (('a Python error as the reason', PYTHON), ('control characters', WILD)):
        m = pattern.search(said)
        if m:
            return f'{what}: {said[max(0, m.start() - 200) : m.end() + 100]!r}'
    return ''


def run_case(case: Case, folder: Path) -> str:
    "The problem of a case, '' when there is none."
    code, said_out, said_err = 0, '', ''
    for command in case.reader.commands:
        try:
            code, out, err = main(command.split(), folder)
        except TimeoutError as e:
            where = ''.join(traceback.format_tb(e.__traceback__)[-3:])
            return f'{command}: longer than {MOST_SECONDS} s: {where}'
        except BaseException as e:
            return f'{command}: {"".join(traceback.format_exception(e)[-7:])}'
        case.code = code
        problem = fault(code, out, err)
        if problem:
            return f'{command}: {problem}'
        said_out, said_err = said_out + out, said_err + err
        if code == 2:
            break
    check = case.reader.check
    return check(Outcome(folder, code, said_out, said_err)) if check else ''


# ---------------------------------------------------------------- forks


def _late(*_):
    raise TimeoutError


def _tell(pipe: int, **what):
    os.write(pipe, json.dumps(what).encode() + b'\n')


def run_batch(batch: list[Case], home: Path, pipe: int):
    "In a fork: run cases and write a line about each."
    sys.stdin = open(os.devnull)
    used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, used + MOST_BYTES))
    for number in (signal.SIGPROF, signal.SIGALRM):
        signal.signal(number, _late)
    for case in batch:
        _tell(pipe, number=case.number)
        folder = Path(tempfile.mkdtemp(dir=home.parent))
        lay_out(case, folder, home)
        start = time.process_time()
        signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
        signal.alarm(WAITED)
        try:
            problem = run_case(case, folder)
        except TimeoutError:
            problem = f'longer than {MOST_SECONDS} s'
        except Exception as e:
            problem = f'the test itself: {"".join(traceback.format_exception(e)[-5:])}'
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        seconds = time.process_time() - start
        os.chdir(home)
        shutil.rmtree(folder, ignore_errors=True)
        _tell(pipe, number=case.number, problem=problem, seconds=seconds, code=case.code)


def forked(batch: list[Case], home: Path):
    "Run cases in forks; what a fork does not survive is a problem of the case that it was at."
    todo = list(batch)
    while todo:
        ours, theirs = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(ours)
            try:
                run_batch(todo, home, theirs)
            finally:
                os._exit(0)
        os.close(theirs)
        todo = _listen(todo, ours, pid)


def _listen(todo: list[Case], pipe: int, pid: int) -> list[Case]:
    "Take down what a fork says; the cases that it has not come to."
    waiting, at, text, late = {c.number: c for c in todo}, None, b'', False
    while True:
        if not select.select([pipe], [], [], WAITED + 10)[0]:
            os.kill(pid, signal.SIGKILL)
            late = True
            break
        part = os.read(pipe, 1 << 16)
        if not part:
            break
        *lines, text = (text + part).split(b'\n')
        for line in lines:
            said = json.loads(line)
            at = waiting[said['number']]
            if 'problem' in said:
                at.problem, at.seconds, at.code = said['problem'], said['seconds'], said['code']
                del waiting[at.number]
                at = None
    os.close(pipe)
    _, status = os.waitpid(pid, 0)
    if at is not None:
        at.problem = 'no answer to an alarm' if late else f'the process died ({status})'
        del waiting[at.number]
    return list(waiting.values())


# ---------------------------------------------------------------- the whole


def import_everything():
    "So that no fork has to."
    for verb in VERBS.values():
        import_module(verb.target.split(':')[0])
        signature_of(verb.target)
    for name in ('pyarrow.parquet', 'docx', 'pypdf', 'gguf', 'fastapi.responses', 'uvicorn'):
        with contextlib.suppress(ImportError):
            import_module(name)
    get_tokenizer('gpt2').encode('warm')


def fuzz(
    home: Path,  # Of the good files
    n: int,
    names: list[str],  # Of readers, or their beginnings; all when empty
    seed: str = '0',
) -> tuple[list[Case], float]:  # …, seconds
    readers = [r for r in all_readers(home) if any(map(r.name.startswith, names or ['']))]
    cases = list(cases_of(readers, n, seed, home))
    start = time.monotonic()
    for i in range(0, len(cases), AT_ONCE):
        forked(cases[i : i + AT_ONCE], home)
    os.chdir('/')
    return cases, time.monotonic() - start


def report(cases: list[Case], seconds: float) -> Iterator[dict]:
    "Each failure, and a summary."
    for c in cases:
        if c.problem:
            where = dict(reader=c.reader.name, number=c.number, file=c.file, problem=c.problem)
            yield where | dict(false=repr(c.false[:600]))
    slow = max(cases, key=lambda c: c.seconds)
    yield dict(
        cases=len(cases),
        failed=sum(bool(c.problem) for c in cases),
        seconds=round(seconds, 1),
        per_second=round(len(cases) / seconds, 1),
        codes=Counter(c.code for c in cases),
        slowest=[slow.reader.name, round(slow.seconds, 2)],
        readers=len({c.reader.name for c in cases}),
    )


def sabotaged(how: str):
    "A verb that does wrong, so that a test can see that it is found."

    def verb(argv):
        if how == 'raise':
            raise KeyError('x')
        while how == 'hang':
            pass
        if how == 'memory':
            bytearray(2 * MOST_BYTES)
        if how == 'die':
            os.kill(os.getpid(), signal.SIGKILL)
        if how == 'count':
            print('1 fine, 1 to mend')
        return 0 if how == 'count' else 2

    return verb


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('n', type=int)
    parser.add_argument('names', nargs='*')
    parser.add_argument('--seed', default='0')
    parser.add_argument('--sabotage', nargs='*', default=[])  # each in turn, by the name of one
    args = parser.parse_args()
    torch.set_num_threads(1)
    os.fsync = lambda fd: None  # nothing here has to survive
    with tempfile.TemporaryDirectory() as tmp:
        home = make_files(Path(tmp) / 'home')
        if not args.sabotage:
            import_everything()
        for how in args.sabotage or ['']:
            fuzz_readers.mypt = sabotaged(how) if how else fuzz_readers.mypt
            n = 1 if how == 'hang' else args.n  # each takes its ten seconds
            for row in report(*fuzz(home, n, args.names, args.seed)):
                print(json.dumps(row | dict(sabotage=how)))
