"""A message's own weight reaches every path: masks, prepare, validate, jobs and the inspector."""

import json
import numpy as np
import pytest
from mypt.curate.mask_report import mask_report
from mypt.curate.prepare_jobs import merge_jobs, plan_jobs, run_split
from mypt.data.dataset import open_dataset
from mypt.data.episodes import EpisodeError, check_episode
from mypt.data.masks import encode
from mypt.data.prepare import prepare
from mypt.data.tokenizer import get_tokenizer
from mypt.data.validate import validate_dataset
from mypt.errors import UserError
from mypt.report.inspect import inspect_data, items_of

TOK = get_tokenizer('byte')


def talk(i, *weights):
    "An episode with an answer of each weight; None says nothing of it."
    out = []
    for k, weight in enumerate(weights):
        own = {} if weight is None else {'weight': weight}
        out.append(dict(role='user', content=f'Question {i}.{k}?'))
        out.append(dict(role='assistant', content=f'Answer {weight} of {i}.', think='Hm.') | own)
    return {'messages': out}


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / 'in.jsonl'

    def write(*episodes):
        path.write_text(''.join(json.dumps(e) + '\n' for e in episodes))
        return str(path)

    return write


def said(row, keep):
    return bytes(int(i) for i, k in zip(row.ids, keep, strict=True) if k and i < 256).decode()


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('weighted', [False, True])
def test_weight_0_is_read_and_not_learned(rows, tmp_path, packed, weighted):
    episodes = [talk(i, 0, 1, None) for i in range(20)]
    how = dict(enable_packing=packed, pack_block_size=512, weighted_mask=weighted, val_split=0)
    ds = prepare(rows(*episodes), tmp_path / 'd', 'byte', **how)
    assert ds.meta['message_weights'] is True
    for i in range(ds.train.n_episodes):
        row = ds.train.episode(i)
        learned = said(row, row.weights > 0)
        assert 'Answer 0' not in learned and 'Answer 1' in learned and 'Answer None' in learned
        assert 'Answer 0' in said(row, row.weights >= 0)
        tags = row.weights[row.ids == TOK.tag_ids['<myPT_eot>']]
        assert tags.tolist() == ([0, 2, 2] if weighted else [0, 1, 1])
    assert validate_dataset(tmp_path / 'd') == [] and mask_report(str(tmp_path / 'd')).data['ok']


def test_a_factor_multiplies_the_weight_of_the_role(rows, tmp_path):
    ep = check_episode(talk(1, 0.5, 4))
    plain = encode(check_episode(talk(1, None, None)), TOK, weighted=True)
    own = encode(check_episode(talk(1, 0.5, 4)), TOK, weighted=True)
    for m, factor in ((0, 1), (1, 0.5), (2, 1), (3, 4)):
        a, b = own.weights[own.msgs == m], plain.weights[plain.msgs == m]
        assert set(a.tolist()) == {w * factor for w in b.tolist()}
    assert set(own.weights[own.msgs == 1].tolist()) == {0, 0.5, 0.75, 1}
    ds = prepare(rows(*[ep] * 9), tmp_path / 'd', 'byte', weighted_mask=True, val_split=0)
    assert np.array_equal(ds.train.episode(0).weights, own.weights)
    assert validate_dataset(tmp_path / 'd') == []
    (item,) = items_of(ep, TOK)
    assert set(np.unique(item.weights).tolist()) == {0, 0.5, 4}
    shown = inspect_data([item])['items'][0]['weights']
    assert {0.5, 4.0} <= set(shown[::2])


def test_what_a_mask_cannot_hold_is_told(rows, tmp_path):
    with pytest.raises(
        UserError, match=r'in.jsonl:1: messages\[1\].weight: 0.5, .*--weighted_mask'
    ):
        prepare(rows(talk(1, 0.5)), tmp_path / 'd', 'byte')
    with pytest.raises(UserError, match='every answer has weight 0, so nothing is trained'):
        prepare(rows(talk(1, 0, 0)), tmp_path / 'd', 'byte', weighted_mask=True)


def test_a_mask_that_was_changed_is_found(rows, tmp_path):
    "One token of a message that differs from the others of it."
    prepare(rows(*[talk(i, 0, 1) for i in range(9)]), tmp_path / 'd', 'byte', val_split=0)
    path = tmp_path / 'd' / 'train' / 'mask.bin'
    mask = bytearray(path.read_bytes())
    first = mask.index(1)
    mask[first + 3] = 0
    path.write_bytes(mask)
    problems = validate_dataset(tmp_path / 'd')
    assert any('masks that differ from policy' in p for p in problems)


def test_jobs_keep_the_weights(rows, tmp_path):
    path = rows(*[talk(i, 0, None) for i in range(40)], *[talk(i, None) for i in range(99, 120)])
    plan_jobs(path, str(tmp_path / 'jobs'), 2, ['tokenization=byte', 'val_split=0.2'])
    for k in (0, 1):
        run_split(str(tmp_path / 'jobs'), k)
    merge_jobs(str(tmp_path / 'jobs'), str(tmp_path / 'd'))
    assert validate_dataset(tmp_path / 'd') == []
    assert open_dataset(tmp_path / 'd').meta['message_weights'] is True


def test_data_without_weights_says_nothing_of_them(rows, tmp_path):
    ds = prepare(rows(*[talk(i, None, 1) for i in range(9)]), tmp_path / 'd', 'byte')
    assert 'message_weights' not in ds.meta


@pytest.mark.parametrize('weight', [-0.1, 4.1, 'heavy', True, [1], float('inf'), float('nan')])
def test_a_weight_is_a_number_from_0_to_4(weight):
    with pytest.raises(EpisodeError, match=r'messages\[1\].weight: .* from 0 to 4'):
        check_episode(talk(1, weight))


def test_train_false_is_weight_0():
    ep = talk(1, None)
    ep['messages'][1]['train'] = False
    assert check_episode(ep)['messages'][1]['weight'] == 0
    ep['messages'][1]['train'] = True
    assert check_episode(ep) == check_episode(talk(1, 1.0)) | {
        'messages': check_episode(ep)['messages']
    }
    ep['messages'][1]['train'] = 0
    with pytest.raises(EpisodeError, match='expected true or false, found a number'):
        check_episode(ep)
