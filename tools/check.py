"""Every check of the project, as `make test` and continuous integration run it; closes on `N passed, M failed`.

Counted: each notebook under `nbdev_test`, each pytest test, each check of tools/. Jobs run two at a time with one
thread each; files named tests/test_speed*.py run last, alone and with all threads, for what they measure.
"""

import os, re, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from tools.notebooks import ROOT, read_notebooks

CHECKS = {
    'in_step': 'export and clean leave no diff',
    'import_order': 'imports go down only',
    'room_sizes': 'rooms are small',
    'docstrings': 'public names say what they are',
    'import_cells': 'imports have cells of their own',
    'clean_outputs': 'outputs are clean',
    'sidebar': 'sidebar is in step',
    'readme': 'README is in step',
    'man': 'pages of the commands are in step',
    'docs': 'pages build, links and anchors hold',
}
LIMITS = {'check': 420, 'notebook': 240, 'tests': 540}  # Seconds


@dataclass(frozen=True)
class Job:
    kind: str  # 'check', 'notebook' or 'tests'
    name: str
    command: tuple[str, ...]
    alone: bool = False


@dataclass(frozen=True)
class Result:
    job: Job
    passed: int
    failed: int
    skipped: int
    seconds: float
    output: str


def jobs(root: Path = ROOT) -> list[Job]:  # The long ones first
    "All there is to run."
    py, nbdev = sys.executable, str(Path(sys.executable).with_name('nbdev_test'))
    tests = [p.relative_to(root).as_posix() for p in sorted((root / 'tests').rglob('test_*.py'))]
    return [
        *(Job('tests', t, (py, '-m', 'pytest', '--color=no', t), 'test_speed' in t) for t in tests),
        *(
            Job('check', text, (py, '-m', f'tools.{tool}'))
            for tool, text in reversed(CHECKS.items())
        ),
        *(
            Job('notebook', f'nbs/{nb.name}', (nbdev, '--path', f'nbs/{nb.name}'))
            for nb in read_notebooks(root)
        ),
    ]


def count(job: Job, code: int, output: str) -> tuple[int, int, int]:  # Passed, failed, skipped
    "Pytest says how many; anything else is one, and a failure without a count is one too."
    if job.kind != 'tests':
        return int(code == 0), int(code != 0), 0
    closing = next(
        (
            l
            for l in reversed(output.splitlines())
            if re.search(r'\d+ (passed|failed|error|skipped)', l)
        ),
        '',
    )
    n = {
        k: int(v)
        for v, k in re.findall(r'(\d+) (passed|failed|error|skipped|xfailed|xpassed)', closing)
    }
    failed = n.get('failed', 0) + n.get('error', 0) + n.get('xpassed', 0)
    return (
        n.get('passed', 0) + n.get('xfailed', 0),
        failed or int(code != 0 or not n),
        n.get('skipped', 0),
    )


def run(job: Job, root: Path = ROOT, limit: float | None = None) -> Result:
    "One job in a process group of its own, ended at its limit."
    env = os.environ | {'PYTHONUNBUFFERED': '1', 'PYTHONPATH': str(root)}
    if not job.alone:
        env |= {k: '1' for k in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS')}
    start, limit = time.monotonic(), limit or LIMITS[job.kind]
    p = subprocess.Popen(
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
        out, _ = p.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        os.killpg(p.pid, 9)
        out = p.communicate()[0] + f'\nended after {limit:g} s'
    return Result(job, *count(job, p.returncode, out), time.monotonic() - start, out)


def show(r: Result, done: int, total: int):
    "One line; all that it printed when it failed; why, when it skipped."
    said = [f'{getattr(r, k)} {k}' for k in ('passed', 'failed', 'skipped') if getattr(r, k)]
    counts = f': {", ".join(said)}' if r.job.kind == 'tests' else ''
    print(
        f'{"FAIL" if r.failed else "ok":4} {done:3}/{total} {r.seconds:5.1f} s  {r.job.name}{counts}'
    )
    lines = r.output.strip().splitlines()
    for l in lines[-120:] if r.failed else [l for l in lines if l.startswith('SKIPPED')]:
        print(f'     | {l}')
    sys.stdout.flush()


def main(root: Path = ROOT, only: str = '') -> int:  # 0 when nothing failed
    "Run the jobs whose name contains `only`, and always the one that tells whether the package is what the notebooks say."
    todo = [j for j in jobs(root) if only in j.name or j.name == CHECKS['in_step']]
    together, alone = [j for j in todo if not j.alone], [j for j in todo if j.alone]
    print(f'{len(todo)} jobs, two at a time', flush=True)
    results = []

    def take(r):
        results.append(r)
        show(r, len(results), len(todo))

    with ThreadPoolExecutor(2) as pool:
        for f in as_completed([pool.submit(run, j, root) for j in together]):
            take(f.result())
    for j in alone:
        take(run(j, root))
    passed, failed, skipped = (
        sum(getattr(r, k) for r in results) for k in ('passed', 'failed', 'skipped')
    )
    for r in results:
        if r.failed:
            print(f'failed: {r.job.name}')
    if skipped:
        print(f'skipped, with the reason above: {skipped}')
    print(f'{passed} passed, {failed} failed')
    return int(failed > 0 or passed == 0)


if __name__ == '__main__':
    sys.exit(main(only=' '.join(sys.argv[1:])))
