"Preparation that is killed, disturbed, cut into jobs and put together again."

import hashlib
import json
import os
import random
import re
import signal
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from mypt.data import encode as E, prepare as P
from mypt.curate import prepare_jobs as J
from mypt.data.episodes import dump_line, write_episodes
from mypt.files import iter_lines
from mypt.data.prepare import prepare
from mypt.data.dataset import open_dataset
from mypt.errors import UserError
from mypt.data.validate import validate_dataset

HOW = dict(tokenization='byte', enable_packing=True, pack_block_size=128, workers=1)


def rivers(n, start=0):
    for i in range(start, start + n):
        yield {
            'messages': [
                {'role': 'user', 'content': f'How long is river {i % 997}?'},
                {'role': 'assistant', 'content': f'{i * 37} km.'},
            ]
        }


def digest(folder):
    files = sorted(p for p in Path(folder).rglob('*') if p.is_file())
    return hashlib.sha256(
        b''.join(p.relative_to(folder).as_posix().encode() + p.read_bytes() for p in files)
    ).hexdigest()


def left(folder):
    return sorted(p.name for p in folder.iterdir())


def forked(fn):  # Process id
    "Run `fn` in a copy of this process; it never comes back here."
    if pid := os.fork():
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        fn()
    finally:
        os._exit(0)


@pytest.fixture
def src(tmp_path, monkeypatch):
    monkeypatch.setattr(P, 'PART_LINES', 50)
    monkeypatch.setattr(P, 'WINDOW_TOKENS', 20_000)
    monkeypatch.chdir(tmp_path)
    write_episodes('rivers.jsonl', rivers(2000))
    return 'rivers.jsonl'


@pytest.fixture
def counted(monkeypatch):
    "Numbers of lines that were really encoded."
    calls, encode = [], E.encode_lines
    monkeypatch.setattr(
        P, 'encode_lines', lambda lines, recipe: calls.append(len(lines)) or encode(lines, recipe)
    )
    return calls


def killed_after(n, source, out, **how):
    "Prepare, and die by SIGKILL when `n` parts are encoded."

    def run():
        encode, seen = E.encode_lines, []

        def dies(lines, recipe):
            if len(seen) == n:
                os.kill(os.getpid(), signal.SIGKILL)
            seen.append(1)
            return encode(lines, recipe)

        P.encode_lines = dies
        prepare(source, out, **{**HOW, **how})

    assert os.WIFSIGNALED(os.waitpid(forked(run), 0)[1])


# A killed run


def test_twenty_kills_at_random_moments_and_the_same_bytes(src, tmp_path):
    start = time.perf_counter()
    want = digest(prepare(src, 'calm', **HOW).dir)
    whole, rng, kills, kept = time.perf_counter() - start, random.Random(0), 0, 0
    while kills < 20:
        pid = forked(lambda: prepare(src, 'out', **HOW))
        time.sleep(rng.uniform(0, whole))
        os.kill(pid, signal.SIGKILL)
        kills += os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        work = Path('.out.work')
        kept += work.is_dir() and any(work.iterdir())
        if Path('out').exists():  # finished, or killed behind its last rename
            assert digest('out') == want and validate_dataset('out') == []
            subprocess.run(['rm', '-r', 'out'], check=True)
    assert kept > 3
    assert digest(prepare(src, 'out', **HOW).dir) == want
    assert left(tmp_path) == ['calm', 'out', 'rivers.jsonl']


def test_finished_parts_are_not_encoded_again(src, counted):
    killed_after(25, src, 'out')
    assert len(left(Path('.out.work'))) == 25 and not Path('out').exists()
    ds = prepare(src, 'out', **HOW)
    assert len(counted) == 15 and digest(ds.dir) == digest(prepare(src, 'calm', **HOW).dir)


@pytest.mark.parametrize(
    'harm',
    [
        lambda b: b[: len(b) // 2],
        lambda b: b'',
        lambda b: b[:200] + bytes([b[200] ^ 1]) + b[201:],
        lambda b: b'\x80\x04K\x01.',
    ],
)
def test_a_damaged_part_is_made_again(src, counted, harm):
    killed_after(10, src, 'out')
    for p in list(Path('.out.work').iterdir())[:3]:
        p.write_bytes(harm(p.read_bytes()))
    assert digest(prepare(src, 'out', **HOW).dir) == digest(prepare(src, 'calm', **HOW).dir)
    assert len(counted) == 33 + 40


def test_every_flipped_byte_of_a_part_is_noticed(src, tmp_path):
    part = E.encode_lines(
        [(f'r:{i}', dump_line(ep)) for i, ep in enumerate(rivers(5))], E.EncodeSettings('byte')
    )
    P.save_part(path := tmp_path / 'part', part)
    raw = path.read_bytes()
    for i in range(len(raw)):
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 0xFF]) + raw[i + 1 :])
        got = P.load_part(path)
        assert got is None, i


@pytest.mark.parametrize('days', [-3, 3])
def test_a_clock_that_jumps_spoils_nothing(src, days):
    "An overwrite is killed and the clock is set: finished parts seem old or young."
    want = digest(prepare(src, 'out', **HOW).dir)
    killed_after(20, src, 'out', overwrite=True)
    when = time.time() + days * 86400
    for p in (*Path('.out.work').iterdir(), Path('.out.work')):
        os.utime(p, (when, when))
    assert digest('out') == want and validate_dataset('out') == []
    assert digest(prepare(src, 'out', **HOW | dict(overwrite=True)).dir) == want
    assert not Path('.out.work').exists()


def test_another_input_or_recipe_starts_afresh(src, counted):
    killed_after(20, src, 'out')
    lines = Path(src).read_bytes().splitlines(keepends=True)
    lines[510] = dump_line(next(rivers(1, 5000)))
    Path(src).write_bytes(b''.join(lines))
    other = HOW | dict(layout='lines')
    assert digest(prepare(src, 'out', **other).dir) == digest(prepare(src, 'calm', **other).dir)
    assert len(counted) == 80  # nothing of the old recipe was used
    killed_after(20, src, 'again')
    counted.clear()
    lines[510] = dump_line(next(rivers(1, 6000)))
    Path(src).write_bytes(b''.join(lines))
    prepare(src, 'again', **HOW)
    assert len(counted) == 21  # twenty that nobody reached, and the one that changed


def test_a_bad_line_in_the_middle_keeps_what_came_before(src, counted):
    lines = Path(src).read_bytes().splitlines(keepends=True)
    Path(src).write_bytes(b''.join([*lines[:1020], b'{broken\n', *lines[1021:]]))
    with pytest.raises(UserError, match=r'rivers\.jsonl:1021'):
        prepare(src, 'out', **HOW)
    assert not Path('out').exists() and len(left(Path('.out.work'))) == 20
    counted.clear()
    Path(src).write_bytes(b''.join(lines))
    prepare(src, 'out', **HOW)
    assert len(counted) == 20 and not Path('.out.work').exists()


def test_shrunk_episodes_and_groups_survive_a_kill(src, counted):
    def long(i):
        ask = {'role': 'user', 'content': f'Who is {i}?', 'context': 'The fox ran. ' * 30}
        return {
            '_meta': {'kind': f'k{i % 3}'},
            'messages': [ask, {'role': 'assistant', 'content': 'The fox.'}],
        }

    write_episodes('long.jsonl', map(long, range(300)))
    how = dict(pack_by_field='_meta.kind', val_split=0.2)
    killed_after(4, 'long.jsonl', 'out', **how)
    a, b = (prepare('long.jsonl', 'out', **HOW | how), prepare('long.jsonl', 'calm', **HOW | how))
    assert digest(a.dir) == digest(b.dir) and len(a.meta['shrunk']) == 300 and len(counted) == 2 + 6


def test_a_folder_of_a_finished_run_is_swept(src, tmp_path):
    prepare(src, 'out', **HOW)
    (tmp_path / '.out.work').mkdir()
    (tmp_path / '.out.work' / 'part').write_bytes(b'old')
    os.utime(tmp_path / '.out.work', (1, 1))
    with pytest.raises(UserError, match='exists already'):
        prepare(src, 'out', **HOW)
    assert left(tmp_path) == ['out', 'rivers.jsonl']


def test_two_at_once_is_one_line(src, monkeypatch):
    encode = E.encode_lines

    def again(lines, recipe):
        monkeypatch.setattr(P, 'encode_lines', encode)
        with pytest.raises(UserError, match='another mypt prepare'):
            prepare(src, 'out', **HOW)
        return encode(lines, recipe)

    monkeypatch.setattr(P, 'encode_lines', again)
    assert validate_dataset(prepare(src, 'out', **HOW).dir) == []


# Worker processes

SCRIPT = """
import sys
from mypt.data import encode as E, prepare as P
P.PART_LINES, P.PART_BYTES = 50, 4000
{guard}P.prepare('rivers.jsonl', 'out', 'byte', enable_packing=True, pack_block_size=128, workers=2)
"""


def test_an_unguarded_script_is_one_line(src, tmp_path):
    Path('script.py').write_text(SCRIPT.format(guard=''))
    out = subprocess.run([sys.executable, 'script.py'], capture_output=True, text=True, timeout=60)
    lines = out.stderr.splitlines()
    errors = [line for line in lines if re.match(r'\S*(Error|Exception|Pool)\b', line)]
    assert (
        len(errors) == 1
        and errors[0].startswith('mypt.errors.UserError')
        and '__main__' in errors[0]
    ), out.stderr
    assert left(tmp_path) == ['rivers.jsonl', 'script.py']


def test_workers_end_with_their_parent_and_their_work_is_kept(src, monkeypatch):
    Path('script.py').write_text(SCRIPT.format(guard="if __name__ == '__main__': "))
    p = subprocess.Popen(
        [sys.executable, 'script.py'], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    work, until = Path('.out.work'), time.monotonic() + 40
    while (
        not (work.is_dir() and len(list(work.iterdir())) > 2)
        and time.monotonic() < until
        and p.poll() is None
    ):
        time.sleep(0.002)
    kids = Path(f'/proc/{p.pid}/task/{p.pid}/children').read_text().split()
    p.kill()
    p.wait()

    def alive(k):
        return Path(f'/proc/{k}').exists() and ' Z ' not in Path(f'/proc/{k}/stat').read_text()

    while any(map(alive, kids)) and time.monotonic() < until:
        time.sleep(0.01)
    assert kids and not any(map(alive, kids))
    monkeypatch.setattr(P, 'PART_BYTES', 4000)
    assert digest(prepare(src, 'out', **HOW).dir) == digest(prepare(src, 'calm', **HOW).dir)


# Jobs

SETS = ['tokenization=byte', 'enable_packing=true', 'pack_block_size=128', 'val_split=0.2']


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    texts=st.lists(
        st.lists(st.sampled_from([b'a', b'bb' * 20, b'', b'\r', b' ', 'ü'.encode()]), max_size=12),
        min_size=1,
        max_size=3,
    ),
    size=st.integers(1, 80),
    bom=st.booleans(),
    last=st.booleans(),
)
def test_slices_read_what_whole_files_read(tmp_path, texts, size, bom, last):
    paths = [tmp_path / f'{i}.jsonl' for i in range(len(texts))]
    for p, lines in zip(paths, texts, strict=True):
        p.write_bytes(b'\xef\xbb\xbf' * bom + b'\n'.join(lines) + b'\n' * last)
    cuts = list(J.cut_slices(paths, size))
    got = [x for ranges in cuts for x in J.InputSlice(ranges).lines([])]
    assert got == [(f'{p}:{n}', raw) for p in paths for n, raw in iter_lines(p)]
    assert sum(J.InputSlice(r).bytes for r in cuts) == sum(p.stat().st_size for p in paths)


def test_a_line_that_is_too_long_is_refused_and_the_next_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr(J, 'MAX_LINE', 100)
    (tmp_path / 'x').write_bytes(b'a' * 99 + b'\n' + b'b' * 101 + b'\nc\n')
    lines = J.InputSlice(next(J.cut_slices([tmp_path / 'x'], 1000))).lines([])
    assert [(w[-1], raw and len(raw)) for w, raw in lines] == [('1', 100), ('2', None), ('3', 2)]


def merged(order, out='out', splits=5, sets=SETS, jobs='jobs', inputs='rivers.jsonl'):
    m = J.plan_jobs(inputs, jobs, splits, sets)
    for k in order:
        J.run_split(jobs, k)
    return J.merge_jobs(jobs, out, overwrite=True), m


def test_the_order_of_jobs_does_not_matter(src):
    want = digest(merged(range(5))[0].dir)
    for seed in range(2):
        subprocess.run(['rm', '-r', 'jobs'], check=True)
        assert digest(merged(random.Random(seed).sample(range(5), 5))[0].dir) == want
    assert validate_dataset('out') == []


@pytest.mark.parametrize(
    'sets',
    [
        [],
        ['weighted_mask=true'],
        ['enable_packing=false'],
        ['tokens_per_shard=4096'],
        ['pack_block_size=16384', 'system_prompt=S'],
        ['layout=lines', 'mask_policy=phase3a'],
    ],
)
def test_what_is_merged_is_what_one_machine_prepares_but_for_order_and_split(src, sets):
    ds, m = merged(range(5), sets=SETS + sets)
    alone = prepare(src, 'alone', workers=1, **m['settings'])

    def all_of(ds):
        rows = (s.episode(i) for s in ds.splits for i in range(s.n_episodes))
        return sorted(r.ids.tobytes() + r.weights.tobytes() for r in rows)

    assert validate_dataset(ds.dir) == [] and all_of(ds) == all_of(alone)
    assert ds.meta['rows_read'] == 2000 and 0.1 < ds.meta['num_val_episodes'] / 2000 < 0.3
    assert {k for k in alone.meta if k not in ds.meta} == set()


def test_one_question_is_on_one_side_whatever_the_number_of_splits(src):
    def val(splits):
        ds, _ = merged(range(splits), splits=splits, jobs=f'jobs{splits}')
        asked = [
            {ds.tok.decode(s.episode(i).ids).split('</myPT_user>')[0] for i in range(s.n_episodes)}
            for s in ds.splits
        ]
        assert asked[0] and asked[1] and not asked[0] & asked[1]
        return asked[1]

    assert val(2) == val(7)


def test_a_killed_job_is_done_again(src):
    want = digest(merged(range(5))[0].dir)
    subprocess.run(['rm', '-r', 'jobs'], check=True)
    m, rng = J.plan_jobs(src, 'jobs', 5, SETS), random.Random(3)
    for k in range(5):
        pid = forked(partial(J.run_split, 'jobs', k))
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if not (piece := J.piece_folder('jobs', m, k)).exists():
            with pytest.raises(UserError, match=rf'missing: .*\b{k}\b'):
                J.merge_jobs('jobs', 'out', overwrite=True)
        J.run_split('jobs', k)
        assert validate_dataset(piece) == []
    assert digest(J.merge_jobs('jobs', 'out', overwrite=True).dir) == want


def test_a_process_that_is_killed_while_it_draws_a_bar_stops_no_other(tmp_path):
    "Forked processes once shared the lock of the progress bars; a killed one kept it for ever."
    script = tmp_path / 'bars.py'
    script.write_text(
        """import os, signal, time
import mypt.files
from tqdm.auto import tqdm

with open(os.devnull, 'w') as out:
    tqdm(total=1, file=out).update(1)
    child = os.fork()
    if child == 0:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    tqdm(total=1, file=out).update(1)
"""
    )
    subprocess.run([sys.executable, script], check=True, timeout=60)


def test_a_done_job_is_not_done_again(src, counted):
    merged(range(5))
    n = len(counted)
    merged(range(5))
    assert len(counted) == n


def test_what_is_wrong_with_jobs_is_one_line(src, tmp_path):
    for bad, says in (
        (dict(sets=['tokenisation=byte']), 'is not a setting of jobs'),
        (dict(splits=0), 'at least 1'),
        (dict(input='no'), 'no such file'),
    ):
        with pytest.raises(UserError, match=says):
            J.plan_jobs(**dict(input=src, jobs_dir='jobs') | bad)
    with pytest.raises(UserError, match='prepare-jobs plan'):
        J.run_split('nowhere', 0)
    _, m = merged(range(5))
    with pytest.raises(UserError, match='splits 0 to 4'):
        J.run_split('jobs', 5)
    tokens = J.piece_folder('jobs', m, 2) / 'train' / 'tokens.bin'
    raw = bytearray(tokens.read_bytes())
    raw[40] ^= 1
    tokens.write_bytes(raw)
    with pytest.raises(UserError, match=r'00002.*train/tokens\.bin.*run its split again'):
        J.merge_jobs('jobs', 'out', overwrite=True)
    manifest = tmp_path / 'jobs' / 'manifest.json'
    manifest.write_text(manifest.read_text().replace('"val_split": 0.2', '"val_split": 0.3'))
    with pytest.raises(UserError, match='changed since it was written'):
        J.run_split('jobs', 0)


def test_a_changed_input_is_noticed_by_its_job_alone(src):
    m = J.plan_jobs(src, 'jobs', 3, SETS)
    at = m['splits'][1][0]['start'] + 60
    with open(src, 'r+b') as f:
        f.seek(at)
        f.write(b'9')
    J.run_split('jobs', 0)
    J.run_split('jobs', 2)
    with pytest.raises(UserError, match='changed since the plan'):
        J.run_split('jobs', 1)


def test_bad_lines_are_named_by_their_line_in_the_file_and_empty_pieces_are_fine(src):
    lines = Path(src).read_bytes().splitlines(keepends=True)
    Path(src).write_bytes(b''.join([*lines[:1000], *[b'{broken\n'] * 400, *lines[1400:]]))
    ds, _ = merged(range(9), splits=9, sets=[*SETS, 'on_error=skip'])
    rejects = (ds.dir / 'rejects.jsonl').read_text().splitlines()
    wrong = [json.loads(line)['where'] for line in rejects]
    assert (
        wrong == [f'rivers.jsonl:{n}' for n in range(1001, 1401)] and ds.meta['rows_read'] == 2000
    )
    assert ds.meta['rows_rejected'] == 400 and validate_dataset(ds.dir) == []
    J.plan_jobs(src, 'strict', 9, SETS)
    with pytest.raises(UserError, match=r'rivers\.jsonl:1\d\d\d: not JSON'):
        for k in range(9):
            J.run_split('strict', k)


def test_pieces_without_anything_to_train(src):
    write_episodes('a.jsonl', rivers(300))
    Path('b.jsonl').write_bytes(b'{broken\n' * 3000)
    ds, m = merged(range(4), splits=4, sets=[*SETS, 'on_error=skip'], inputs='[ab].jsonl')
    pieces = [open_dataset(J.piece_folder('jobs', m, k)) for k in range(4)]
    assert 0 in [p.meta['num_train_episodes'] for p in pieces]
    assert (
        ds.meta['num_train_episodes'] + ds.meta['num_val_episodes'] == 300
        and validate_dataset(ds.dir) == []
    )


def test_text_as_shards_in_jobs(src):
    write_episodes(
        'text.jsonl',
        (
            {'_replay': True, 'text': f'Page {i}. ' + 'The river flows. ' * (i % 9)}
            for i in range(600)
        ),
    )
    ds, _ = merged(
        range(3),
        splits=3,
        sets=['tokenization=byte', 'format=shards', 'pack_block_size=128'],
        inputs='text.jsonl',
    )
    assert validate_dataset(ds.dir) == [] and ds.meta['packing']['fill'] > 0.98


def test_a_job_that_dies_is_started_again(src, tmp_path, monkeypatch):
    m = J.plan_jobs(src, 'jobs', 2, SETS)
    wrapper = tmp_path / 'python'
    dies_once = 'if [ ! -e once ]; then touch once; kill -9 $$; fi'
    wrapper.write_text(f'#!/bin/sh\n{dies_once}\nexec {sys.executable} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(sys, 'executable', str(wrapper))
    J._SplitStep('jobs', 2)(None, 1)
    assert Path('once').exists() and validate_dataset(J.piece_folder('jobs', m, 1)) == []
    Path('once').unlink()
    with pytest.raises(UserError, match='split 0: died 1 times'):
        J._SplitStep('jobs', 1)(None, 0)


def test_two_local_workers_by_datatrove(src):
    pytest.importorskip('datatrove')
    want = digest(merged(range(4), splits=4)[0].dir)
    subprocess.run(['rm', '-r', 'jobs'], check=True)
    J.plan_jobs(src, 'jobs', 4, SETS)

    def run(*words):
        command = [sys.executable, '-m', 'mypt.cli', 'prepare-jobs', *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=80)

    out = run('local', '--jobs_dir', 'jobs', '--workers', '2')
    assert out.returncode == 0, out.stderr[-2000:]
    assert (
        run('merge', '--jobs_dir', 'jobs', '--output_dir', 'byjobs').returncode == 0
        and digest('byjobs') == want
    )
