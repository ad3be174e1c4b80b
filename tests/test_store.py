"Datasets on disk: bit for bit what went in, whole or not there, and damage is found."

import errno
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from mypt.data.masks import POLICIES, encode_batch, role_weights
from mypt.data.packing import pack_arrays, plan_rows
from mypt.data.serialize import LAYOUTS, random_episode
from mypt.data.dataset import METADATA, SCHEMA, open_dataset
from mypt.data.writer import DatasetWriter
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.data.validate import validate_dataset

TOK = get_tokenizer('byte')
STRINGS = [
    'word ',
    'Grüße\n',
    '<myPT_assistant>',
    '</myPT_eot> ',
    '日本',
    '{"a": ',
]  # spelled tags stay text


def say(i):
    both = [
        {'role': 'user', 'content': f'Say {i}.'},
        {'role': 'assistant', 'content': f'{i}.' * (1 + i % 5)},
    ]
    return {'_replay': True, 'text': f'text {i}, trained'} if i % 7 == 6 else {'messages': both}


def encoded(n, weighted=False, policy='pipeline'):
    ids, roles, _, lens = encode_batch(map(say, range(n)), TOK)
    return ids, role_weights(policy, weighted)[roles], np.cumsum(lens) - lens, lens


def write(folder, n=60, block=0, weighted=False, n_val=15, chunk=13, **kw):
    "A dataset of `n` training and `n_val` validation episodes, fed in chunks."
    ids, w, starts, lens = encoded(n + n_val, weighted)
    with DatasetWriter(folder, TOK, block=block, weighted=weighted, **kw) as out:
        for split, a, b in (('train', 0, n), ('val', n, n + n_val)):
            if block:
                order, row_start = plan_rows(lens[a:b], block)
                for i in range(0, len(row_start) - 1, chunk):
                    j = min(i + chunk, len(row_start) - 1)
                    own = order[row_start[i] : row_start[j]]
                    r = pack_arrays(
                        ids,
                        w,
                        starts[a:b],
                        lens[a:b],
                        own,
                        row_start[i : j + 1],
                        block,
                        TOK.endoftext,
                    )
                    out.add(
                        split, r.tokens.ravel(), r.weights.ravel(), r.episodes, r.segments.ravel()
                    )
            else:
                for i in range(a, b, chunk):
                    j = min(i + chunk, b) - 1
                    s = slice(starts[i], starts[j] + lens[j])
                    index = np.stack([starts[i : j + 1] - starts[i], lens[i : j + 1]], 1)
                    out.add(split, ids[s], w[s], index)
        out.commit({'lineage': [{'file': 'made', 'rows': n + n_val}]})
    return Path(folder)


def left(folder):
    return sorted(p.name for p in Path(folder).iterdir())


def contents(d):
    return {p.relative_to(d).as_posix(): p.read_bytes() for p in Path(d).rglob('*') if p.is_file()}


# Round trip


@pytest.mark.parametrize('block', [0, 64, 300])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('per_shard', [0, 500])
def test_round_trip_bit_for_bit(tmp_path, block, weighted, per_shard):
    ds = open_dataset(
        write(tmp_path / 'd', block=block, weighted=weighted, tokens_per_shard=per_shard)
    )
    assert validate_dataset(tmp_path / 'd') == []
    ids, w, starts, lens = encoded(75, weighted)
    for split, a, b in ((ds.train, 0, 60), (ds.val, 60, 75)):
        assert (split.n_episodes, split.n_tokens) == (b - a, lens[a:b].sum())
        order = plan_rows(lens[a:b], block)[0] + a if block else np.arange(a, b)
        for i, k in enumerate(order):
            e, s = split.episode(i), slice(starts[k], starts[k] + lens[k])
            assert (e.ids == ids[s]).all() and (e.weights == w[s]).all() and (e.segments == 1).all()
            assert (
                e.ids.dtype == np.uint32
                and e.weights.dtype == np.float32
                and e.segments.dtype == np.uint16
            )
        rows = [split.row(i) for i in range(split.n_rows)]
        assert [int((r.segments > 0).sum()) for r in rows] == split.row_lengths.tolist()
        assert sum(int((r.weights > 0).sum()) for r in rows) == split.n_supervised
        if block:
            assert {len(r.ids) for r in rows} == {block} and max(r.segments.max() for r in rows) > 1
        assert (len(split.shards) > 1) == bool(per_shard) or split is ds.val
        if per_shard:
            assert all(len(s.tokens) <= per_shard for s in split.shards)
        with pytest.raises(IndexError):
            split.row(split.n_rows)
        with pytest.raises(IndexError):
            split.episode(-1)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 10**6), min_size=1, max_size=12),
    st.booleans(),
    st.booleans(),
    st.sampled_from([*POLICIES]),
    st.sampled_from(LAYOUTS),
    st.sampled_from([0, 400]),
)
def test_any_legal_episode_validates(
    tmp_path_factory, seeds, packed, weighted, policy, layout, per_shard
):
    "Chat, tool and replay episodes of the serializer's own generator, every policy and layout."
    folder = tmp_path_factory.mktemp('any') / 'd'
    rngs = [random.Random(s) for s in seeds]

    def text_from(r):
        return lambda: f'{r.choice(STRINGS)}{r.random():.2f}'

    episodes = [*(random_episode(r, text_from(r)) for r in rngs), say(6)]
    ids, roles, _, lens = encode_batch(episodes, TOK, layout)
    w, starts = role_weights(policy, weighted)[roles], np.cumsum(lens) - lens
    block = int(lens.max()) + 40 if packed else 0
    how = dict(
        layout=layout,
        mask_policy=policy,
        weighted=weighted,
        block=block,
        tokens_per_shard=per_shard,
    )
    with DatasetWriter(folder, TOK, **how) as out:
        if packed:
            r = pack_arrays(ids, w, starts, lens, *plan_rows(lens, block), block, TOK.endoftext)
            out.add('train', r.tokens.ravel(), r.weights.ravel(), r.episodes, r.segments.ravel())
        else:
            out.add('train', ids, w, np.stack([starts, lens], 1))
        out.commit()
    assert validate_dataset(folder) == []
    shutil.rmtree(folder)


@pytest.mark.parametrize('block', [0, 64])
def test_bytes_do_not_depend_on_how_the_writer_was_fed(tmp_path, block):
    a, b = (
        contents(write(tmp_path / str(c), block=block, chunk=c, tokens_per_shard=300))
        for c in (1, 50)
    )
    assert a == b and len(a) > 12


def test_segments_widen_in_the_middle_of_writing(tmp_path):
    ids, w, starts, lens = encoded(20)
    few = pack_arrays(ids, w, starts, lens, *plan_rows(lens, 400), 400, TOK.endoftext)
    one, a = np.ones(300, int), np.full(300, 65, np.uint32)
    many = pack_arrays(
        a, a.astype(np.uint8), np.arange(300), one, *plan_rows(one, 400), 400, TOK.endoftext
    )
    assert few.segments.dtype == np.uint8 and many.segments.dtype == np.uint16
    with DatasetWriter(tmp_path / 'd', TOK, block=400, tokens_per_shard=800) as out:
        for rows in (few, many, few):
            out.add(
                'train',
                rows.tokens.ravel(),
                rows.weights.ravel(),
                rows.episodes,
                rows.segments.ravel(),
            )
        out.commit()
    ds = open_dataset(tmp_path / 'd')
    assert ds.meta['segment_dtype'] == 'uint16' and validate_dataset(tmp_path / 'd') == []
    seg = np.stack([ds.train.row(i).segments for i in range(ds.train.n_rows)])
    assert (seg == np.concatenate([few.segments, many.segments, few.segments])).all()
    assert not list((tmp_path / 'd').rglob('*.narrow'))


def test_metadata_says_what_the_documents_say(tmp_path):
    m = open_dataset(write(tmp_path / 'd', block=64)).meta
    assert (
        m['schema'] == 'episode_indexed_sft_v1'
        and m['has_loss_mask'] is True
        and m['tokenization'] == 'byte'
    )
    assert (m['num_train_episodes'], m['num_val_episodes']) == (60, 15)
    assert m['lineage'] == [{'file': 'made', 'rows': 75}]
    assert m['train_mask_ratio'] == round(m['num_train_supervised'] / m['num_train_tokens'], 6)
    p = m['packing']
    assert p['enabled'] and p['fill'] == round(m['num_train_tokens'] / (64 * p['rows']), 6)
    assert set(m['files']) == {p for p in contents(tmp_path / 'd') if p != METADATA}


def test_rejects_are_kept(tmp_path):
    ids, w, starts, lens = encoded(3)
    with DatasetWriter(tmp_path / 'd', TOK) as out:
        out.add('train', ids, w, np.stack([starts, lens], 1))
        out.reject([b'{"line": 7}\n'])
        out.commit()
    assert (tmp_path / 'd' / 'rejects.jsonl').read_bytes() == b'{"line": 7}\n' and validate_dataset(
        tmp_path / 'd'
    ) == []


# Damage


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path_factory, data):
    base = tmp_path_factory.getbasetemp() / 'flip'
    if not base.exists():
        write(base, block=64, weighted=True, tokens_per_shard=1000)
    path = data.draw(st.sampled_from(sorted(p for p in base.rglob('*') if p.is_file())))
    good = path.read_bytes()
    bad = bytearray(good)
    bad[data.draw(st.integers(0, len(bad) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        path.write_bytes(bad)
        problems = validate_dataset(base)
    finally:
        path.write_bytes(good)
    assert problems and all(isinstance(p, str) and '\n' not in p for p in problems)
    assert validate_dataset(base, full=False) == []


@pytest.mark.parametrize('damage', ['short', 'long', 'empty', 'missing'])
def test_every_file_of_the_wrong_size_is_found_at_open(tmp_path, damage):
    good = write(tmp_path / 'good', block=64, weighted=True)
    for name in [*open_dataset(good).meta['files'], METADATA]:
        bad = Path(shutil.copytree(good, tmp_path / 'bad'))
        path = bad / name
        raw = path.read_bytes()
        if damage == 'missing':
            path.unlink()
        else:
            path.write_bytes({'short': raw[:-1], 'long': raw + b' ', 'empty': b''}[damage])
        with pytest.raises(UserError) as e:
            open_dataset(bad)
        assert path.name in str(e.value) and '\n' not in str(e.value) and ';' in str(e.value)
        assert validate_dataset(bad, full=False) == [str(e.value)]
        shutil.rmtree(bad)


def test_an_unknown_policy_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match='pipeline'):
        write(tmp_path / 'd', mask_policy='pipelin')
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    'make,words',
    [
        (lambda p: None, 'no such dataset'),
        (Path.touch, 'no such dataset'),
        (Path.mkdir, 'No episodes found'),
    ],
)
def test_what_is_no_dataset(tmp_path, make, words):
    make(tmp_path / 'x')
    with pytest.raises(UserError, match=words):
        open_dataset(tmp_path / 'x')


@pytest.mark.parametrize(
    'text', ['{"schema": "other"}', '[]', 'null', '{', '\xff', '{"schema": "' + SCHEMA + '"}']
)
def test_strange_metadata(tmp_path, text):
    (write(tmp_path / 'd') / METADATA).write_bytes(text.encode('latin1'))
    with pytest.raises(UserError, match=METADATA) as e:
        open_dataset(tmp_path / 'd')
    assert '\n' not in str(e.value)


def damaged(tmp_path, block, **change):
    "Rows whose arrays were changed before they were written: all sums are right."
    ids, w, starts, lens = encoded(40)
    r = pack_arrays(ids, w, starts, lens, *plan_rows(lens, block), block, TOK.endoftext)
    for name, f in change.items():
        f(getattr(r, name))
    with DatasetWriter(tmp_path / 'd', TOK, block=block, overwrite=True) as out:
        out.add('train', r.tokens.ravel(), r.weights.ravel(), r.episodes, r.segments.ravel())
        out.commit()
    return validate_dataset(tmp_path / 'd')


def put(where, value):
    def f(a):
        a[where] = value

    return f


def test_data_that_was_written_wrong_is_found(tmp_path):
    assert damaged(tmp_path, 80) == []
    for change, words in (
        (dict(weights=put((0, 0), 1)), 'masks that differ from policy pipeline'),
        (dict(weights=put(..., 0)), 'episodes that train nothing'),
        (dict(tokens=put((1, 3), 5000)), 'ids outside the vocabulary: 1, the first at token 83'),
        (dict(tokens=put((slice(None), -1), 7)), 'padding that is not endoftext'),
        (dict(segments=put((2, 0), 9)), 'segment numbers'),
        (dict(weights=put((slice(None), -1), 1)), 'masks that differ'),
    ):
        problems = damaged(tmp_path, 80, **change)
        assert any(words in p for p in problems), (words, problems)


# Whole or not at all


def test_an_exception_leaves_nothing_and_a_rerun_works(tmp_path):
    with pytest.raises(RuntimeError):
        with DatasetWriter(tmp_path / 'd', TOK) as out:
            ids, w, starts, lens = encoded(5)
            out.add('train', ids, w, np.stack([starts, lens], 1))
            raise RuntimeError
    assert left(tmp_path) == []
    with DatasetWriter(tmp_path / 'd', TOK):
        pass  # never committed
    assert left(tmp_path) == []
    write(tmp_path / 'd')
    assert left(tmp_path) == ['d']


def test_nothing_to_train_on_is_an_error(tmp_path):
    with pytest.raises(UserError, match='no episodes to write'):
        with DatasetWriter(tmp_path / 'd', TOK) as out:
            out.commit()
    assert left(tmp_path) == []


def test_overwrite_only_when_asked_and_only_a_dataset(tmp_path):
    old = contents(write(tmp_path / 'd', n=20))
    with pytest.raises(UserError, match='--overwrite'):
        write(tmp_path / 'd')
    with pytest.raises(RuntimeError):
        with DatasetWriter(tmp_path / 'd', TOK, overwrite=True):
            raise RuntimeError
    assert contents(tmp_path / 'd') == old and left(tmp_path) == ['d']
    write(tmp_path / 'd', n=30, overwrite=True)
    assert open_dataset(tmp_path / 'd').train.n_episodes == 30 and left(tmp_path) == ['d']
    (tmp_path / 'home').mkdir()
    (tmp_path / 'home' / 'thesis.tex').write_text('x')
    with pytest.raises(UserError, match='not a dataset'):
        write(tmp_path / 'home', overwrite=True)
    (tmp_path / 'file').write_text('x')
    with pytest.raises(UserError, match='not a dataset'):
        write(tmp_path / 'file', overwrite=True)
    (tmp_path / 'empty').mkdir()
    write(tmp_path / 'empty')
    assert left(tmp_path / 'home') == ['thesis.tex'] and left(tmp_path) == [
        'd',
        'empty',
        'file',
        'home',
    ]


WRITER = """
import os
import sys
import time
import numpy as np
from mypt.data.writer import DatasetWriter
from mypt.data.tokenizer import get_tokenizer
ids = np.full(1000, 65, np.uint32)
with DatasetWriter(sys.argv[1], get_tokenizer('byte'), overwrite=True) as w:
    for i in range(int(sys.argv[2])):
        w.add('train', ids, np.ones(1000, np.uint8), [[0, 1000]])
        if i == 20: print('writing', flush=True)
    w.commit()
print('done', flush=True)
"""


def run(folder, n, **kw):
    cmd, pipe = [sys.executable, '-c', WRITER, str(folder), str(n)], subprocess.PIPE
    return subprocess.Popen(cmd, stdout=pipe, stderr=pipe, text=True, **kw)


def test_killed_while_writing(tmp_path):
    target = tmp_path / 'd'
    for delay in (0, 0.01, 0.05):
        p = run(target, 10**8)
        assert p.stdout.readline() == 'writing\n'
        time.sleep(delay)
        p.send_signal(signal.SIGKILL)
        p.wait()
        assert (
            not target.exists() and len(left(tmp_path)) == 1
        )  # only the dead writer's hidden folder
    write(target)
    assert left(tmp_path) == ['d'] and validate_dataset(target) == []


def test_killed_at_random_moments_of_an_overwrite_old_or_new_is_there(tmp_path):
    target = write(tmp_path / 'd', n=20)
    rng = np.random.default_rng(0)
    for _ in range(6):
        p = run(target, 40)
        p.stdout.readline()
        time.sleep(float(rng.random()) * 0.02)
        p.send_signal(signal.SIGKILL)
        p.wait()
        assert open_dataset(target).train.n_episodes in (20, 40) and validate_dataset(target) == []
    write(target, overwrite=True)
    assert left(tmp_path) == ['d']


def test_killed_between_the_two_renames_the_old_one_comes_back(tmp_path):
    target = write(tmp_path / 'd', n=20)
    target.rename(tmp_path / '.d.old')
    assert open_dataset(target).train.n_episodes == 20
    assert left(tmp_path) == ['.d.old']  # a reader changes nothing
    write(target, n=30, overwrite=True)
    assert open_dataset(target).train.n_episodes == 30 and left(tmp_path) == ['d']
    target.rename(tmp_path / '.d.old')
    with pytest.raises(UserError, match='exists already'):
        write(target)


def test_a_living_writer_is_not_swept_away(tmp_path):
    with DatasetWriter(tmp_path / 'd', TOK) as one:
        ids, w, starts, lens = encoded(5)
        write(tmp_path / 'd')
        one.add('train', ids, w, np.stack([starts, lens], 1))
        with pytest.raises(UserError):
            one.commit()  # it came second; the first one stays
    assert open_dataset(tmp_path / 'd').train.n_episodes == 60 and left(tmp_path) == ['d']


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    "A limit on file sizes fails like a full disk, in the middle of a write."
    p = run(
        tmp_path / 'd',
        10**5,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000)),
    )
    out, err = p.communicate(timeout=60)
    last = err.strip().splitlines()[-1]
    assert p.returncode and 'done' not in out
    assert last.startswith('mypt.errors.UserError') and 'nothing was kept' in last
    assert left(tmp_path) == []


@pytest.mark.parametrize('at', ['add', 'commit'])
def test_no_space_left(tmp_path, monkeypatch, at):
    "The error that a really full disk gives, at the first write and at the last sync."

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(
        'mypt.data.writer.' + ('_SummedFile.write' if at == 'add' else 'sync'), full
    )
    with pytest.raises(UserError, match=r'No space left on device.*free space') as e:
        write(tmp_path / 'd')
    assert '\n' not in str(e.value) and left(tmp_path) == []


def test_a_read_only_folder_is_one_line(tmp_path):
    folder = tmp_path / 'ro'
    folder.mkdir()
    folder.chmod(0o555)
    for p in (tmp_path, *tmp_path.parents[:2]):
        p.chmod(p.stat().st_mode | 0o055)
    out, inp = os.pipe()
    if not (pid := os.fork()):
        if os.geteuid() == 0:
            os.setuid(65534)  # root may write anywhere, so be somebody else
        try:
            write(folder / 'd')
            said = 'written'
        except UserError as e:
            said = str(e)
        except BaseException as e:
            said = f'not a UserError: {e!r}'
        os.write(inp, said.encode())
        os._exit(0)
    os.waitpid(pid, 0)
    os.close(inp)
    with open(out) as f:
        said = f.read()
    folder.chmod(0o755)
    assert (
        'Permission denied' in said
        and said.startswith(str(folder))
        and '\n' not in said
        and left(folder) == []
    )


def test_chunks_that_do_not_belong_together_are_a_bug(tmp_path):
    ids, ones, index = np.zeros(10, np.uint32), np.ones(10), [[0, 10]]
    with (
        DatasetWriter(tmp_path / 'd', TOK) as plain,
        DatasetWriter(tmp_path / 'p', TOK, block=5) as packed,
    ):
        bad = [(plain, ones, i, None) for i in ([[0, 9]], [[0, 0], [0, 10]], [[5, 5], [0, 5]], [])]
        bad += [
            (plain, ones[:9], index, None),
            (plain, ones, index, ones),
            (packed, ones, index, None),
        ]
        bad += [(packed, ones, i, ones) for i in (index, [[0, 11]], [[0, 5], [4, 5]])]
        for w, weights, episodes, segments in bad:
            with pytest.raises(ValueError, match='chunk of'):
                w.add('train', ids, weights, episodes, segments)
        with pytest.raises(ValueError, match='one row of 5'):
            packed.add('train', ids[:9], ones[:9], [[0, 5]], ones[:9])
