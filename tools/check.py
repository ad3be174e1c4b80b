"""Every check of the project, as `make test` and continuous integration run it; closes on `N
passed, M failed`.

Counted: each notebook under `nbdev_test`, each pytest test, each tool and each check of tools/.
Jobs run three at a time with one thread each, for many wait: for a server, a browser, a disk.
Notebooks and tests run in forks of one process that has imported torch and its like: it takes
seconds, and each would pay them. tests/test_speed.py and tests/test_speed_*.py run last, alone and
with all threads, for what they measure.
`python -m tools.check --list` says what to run by hand for each.
"""

import atexit
import compileall
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from py_compile import PycInvalidationMode

from tools.notebooks import ROOT, read_notebooks

TOOLS = {  # well-kept tools, configured in pyproject.toml: what they hold → command
    'ruff finds nothing': ('ruff', 'check', 'mypt', 'nbs', 'tests', 'tools', 'bench'),
    'lines of notebooks are at most 100 wide': ('ruff', 'check', '--select', 'E501', 'nbs'),
    'ruff would format nothing': ('ruff', 'format', '--check', 'nbs', 'tests', 'tools', 'bench'),
    'imports go down the layers, in no circle': ('lint-imports',),
    'types hold': ('basedpyright',),
}
CHECKS = {  # module of tools/ → what it holds
    'in_step': 'export and clean leave no diff',
    'light_imports': 'light modules load nothing heavy, requirements are used',
    'reading_order': 'chapters link to what they lean on',
    'cells': 'exported cells are small',
    'visible': 'exported code is shown on the site',
    'import_cells': 'imports have cells of their own',
    'clean_outputs': 'outputs are clean',
    'plain_words': 'prose and messages are in plain words',
    'doclinks': 'names in backticks link to what is meant',
    'sidebar': 'sidebar is in step',
    'readme': 'README is in step',
    'man': 'pages of the commands are in step',
    'suites': 'suites are what the phases make',
    'docs': 'pages build, links and anchors hold',
}
ONE_THREAD = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'), '1')
PRELOADED = (  # into the process that is forked; none of ours, for tests import it afresh
    'numpy',
    'torch',
    'torch._dynamo',  # an optimizer's first step imports it
    'torch.nn.attention.varlen',
    'transformers.models.llama.modeling_llama',
    'safetensors.torch',
    'matplotlib.pyplot',
    'tiktoken',
    'tokenizers',
    'pytest',
    'IPython',
    'fastcore.all',
    'nbdev.test',
)
COMPILED = ('mypt', 'tools')  # packages that hundreds of processes import
LIMITS = {'tool': 300, 'check': 700, 'notebook': 400, 'tests': 700}  # seconds
LANES = 3  # jobs at a time
# A start polls all children that there are, and a status can be read once: of two threads that
# read one at the same time, the second takes the child for crashed.
ONE_READS_STATUS = threading.Lock()
MEASURING = re.compile(r'/test_speed(?:_\w+)?\.py$')  # tests that run alone


@dataclass(frozen=True)
class Job:
    "One command to run."

    kind: str  # 'tool', 'check', 'notebook' or 'tests'
    name: str
    command: tuple[str, ...]
    alone: bool = False

    @property
    def by_hand(self) -> str:
        "The command as a person types it, in an activated environment."
        program = Path(self.command[0]).name
        return ' '.join(('python' if program.startswith('python') else program, *self.command[1:]))


@dataclass(frozen=True)
class Result:
    "What came of a job."

    job: Job
    passed: int
    failed: int
    skipped: int
    seconds: float
    output: str


def jobs(root: Path = ROOT) -> list[Job]:
    "All there is to run, the long ones first."
    python = sys.executable

    def beside(program: str) -> str:
        return str(Path(python).with_name(program))

    tests = [p.relative_to(root).as_posix() for p in sorted((root / 'tests').rglob('test_*.py'))]
    notebooks = [f'nbs/{nb.name}' for nb in read_notebooks(root)]
    pytest = (python, '-m', 'pytest', '--color=no')
    return [
        *(Job('tests', t, (*pytest, t), bool(MEASURING.search(t))) for t in tests),
        *(Job('tool', what, (beside(c[0]), *c[1:])) for what, c in TOOLS.items()),
        *(Job('check', CHECKS[t], (python, '-m', f'tools.{t}')) for t in reversed(CHECKS)),
        *(Job('notebook', nb, (beside('nbdev_test'), '--path', nb)) for nb in notebooks),
    ]


def count(job: Job, code: int, output: str) -> tuple[int, int, int]:
    "(passed, failed, skipped): pytest says how many, anything else is one."
    if job.kind != 'tests':
        return int(code == 0), int(code != 0), 0
    pattern = r'(\d+) (passed|failed|error|skipped|xfailed|xpassed)'
    counted = [line for line in output.splitlines() if re.search(pattern, line)]
    found = re.findall(pattern, counted[-1]) if counted else []
    n = {what: int(number) for number, what in found}
    passed = n.get('passed', 0) + n.get('xfailed', 0)
    failed = n.get('failed', 0) + n.get('error', 0) + n.get('xpassed', 0)
    silent_failure = int(code != 0 or not n)  # ended badly, or counted nothing
    return passed, failed or silent_failure, n.get('skipped', 0)


def run(job: Job, root: Path = ROOT, limit: float | None = None) -> Result:
    "One job in a process group of its own, ended at its limit."
    limit = limit or LIMITS[job.kind]
    start = time.monotonic()
    forked = job.kind in ('notebook', 'tests') and not job.alone
    code, output = (run_fork if forked else run_command)(job, root, limit)
    return Result(job, *count(job, code, output), time.monotonic() - start, output)


def run_command(job: Job, root: Path, limit: float) -> tuple[int, str]:  # Exit status and output
    "A job as a program of its own."
    env = os.environ | {'PYTHONUNBUFFERED': '1', 'PYTHONPATH': str(root)}
    if not job.alone:
        env |= ONE_THREAD
    process = subprocess.Popen(
        job.command,
        cwd=root,
        env=env,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        errors='replace',
    )
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        output = process.communicate()[0] + f'\nended after {limit:g} s'
    return process.returncode, output


def run_fork(job: Job, root: Path, limit: float) -> tuple[int, str]:  # Exit status and output
    "A notebook or a file of tests, in a fork of the process that has imported the libraries."
    with tempfile.NamedTemporaryFile() as output:
        arguments = job.kind, job.command[-1], root, output.name
        process = multiprocessing.get_context('forkserver').Process(target=in_fork, args=arguments)
        with ONE_READS_STATUS:
            process.start()
        in_time = connection.wait([process.sentinel], limit)
        if not in_time:
            os.killpg(process.pid, 9)
            connection.wait([process.sentinel])
        with ONE_READS_STATUS:
            code = process.exitcode
        text = Path(output.name).read_text(encoding='utf-8', errors='replace')
    return code, text + ('' if in_time else f'\nended after {limit:g} s')


def in_fork(kind: str, path: str, root: Path, output: str):
    "What the fork does: as `nbdev_test --path` or `pytest`, all output in a file."
    os.setsid()
    with open(output, 'w', encoding='utf-8') as f:
        os.dup2(f.fileno(), 1)
        os.dup2(f.fileno(), 2)
    os.chdir(root)
    sys.stdin = open(os.devnull)
    sys.stdout = open(1, 'w', buffering=1, encoding='utf-8')
    sys.stderr = open(2, 'w', buffering=1, encoding='utf-8')
    try:
        if kind == 'tests':
            import pytest

            sys.exit(pytest.main(['--color=no', path]))
        from nbdev.test import nbdev_test

        nbdev_test(path=path)
    finally:
        atexit._run_exitfuncs()  # a child of multiprocessing leaves them out


def show(r: Result, done: int, total: int):
    "One line; all that it printed and how to run it when it failed; why, when it skipped."
    kinds = ('passed', 'failed', 'skipped')
    counts = ', '.join(f'{getattr(r, k)} {k}' for k in kinds if getattr(r, k))
    more = f': {counts}' if r.job.kind == 'tests' else ''
    word = 'FAIL' if r.failed else 'ok'
    print(f'{word:4} {done:3}/{total} {r.seconds:5.1f} s  {r.job.name}{more}')
    lines = r.output.strip().splitlines()
    if r.failed:
        shown = [*lines[-120:], f'by hand: {r.job.by_hand}']
    else:
        shown = [line for line in lines if line.startswith('SKIPPED')]
    for line in shown:
        print(f'     | {line}')
    sys.stdout.flush()


def compile_once(root: Path):
    "Bytecode beside the sources, for where PYTHONDONTWRITEBYTECODE keeps all from writing it."
    for package in COMPILED:
        mode = PycInvalidationMode.CHECKED_HASH  # a module that a test rewrites is compiled again
        compileall.compile_dir(root / package, quiet=1, invalidation_mode=mode)


def run_all(todo: list[Job], root: Path) -> list[Result]:
    "Three at a time, then one by one those that measure."
    compile_once(root)
    os.environ |= ONE_THREAD | {'PYTHONPATH': str(root)}
    multiprocessing.set_forkserver_preload(list(PRELOADED))
    results = []

    def take(result: Result):
        results.append(result)
        show(result, len(results), len(todo))

    with ThreadPoolExecutor(LANES) as pool:
        started = [pool.submit(run, job, root) for job in todo if not job.alone]
        for future in as_completed(started):
            take(future.result())
    for name in ONE_THREAD:
        del os.environ[name]
    for job in todo:
        if job.alone:
            take(run(job, root))
    return results


def main(root: Path = ROOT, only: str = '') -> int:
    "Run the jobs whose name contains `only`, and always the check that mypt/ is what nbs/ exports."
    todo = [j for j in jobs(root) if only in j.name or j.name == CHECKS['in_step']]
    print(f'{len(todo)} jobs, {LANES} at a time', flush=True)
    results = run_all(todo, root)
    for r in results:
        if r.failed:
            print(f'failed: {r.job.name}; by hand: {r.job.by_hand}')
    passed, failed, skipped = (
        sum(getattr(r, k) for r in results) for k in ('passed', 'failed', 'skipped')
    )
    if skipped:
        print(f'skipped, with the reason above: {skipped}')
    print(f'{passed} passed, {failed} failed')
    return int(failed > 0 or passed == 0)


def print_jobs(root: Path = ROOT) -> int:
    "What to run by hand for each job."
    for job in jobs(root):
        print(f'{job.name}\n    {job.by_hand}')
    return 0


if __name__ == '__main__':
    arguments = sys.argv[1:]
    sys.exit(print_jobs() if arguments == ['--list'] else main(only=' '.join(arguments)))
