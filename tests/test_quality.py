"Duplicates, variants and mixes: what they promise on data that a reader would not enjoy."

import json
import random
import re
from collections import Counter
import numpy as np
import pytest
from mypt.curate.augment import (
    asked,
    augment,
    diversify,
    held_questions,
    hide,
    put_back,
    rewrites,
    variant_language,
    vary,
)
from mypt.curate.dedup import dedup, episode_text, minhash, similarity
from mypt.data.episodes import check_episode, read_episodes, write_episodes
from mypt.curate.mask_report import mask_report
from mypt.curate.mix_general import mix_general
from mypt.curriculum.format_lock import make_echo, make_format_lock
from mypt.data.prepare import prepare
from mypt.curate.quality import (
    balance,
    category_of,
    diversity_of,
    placeholders,
    quality,
    token_budget,
)
from mypt.data.serialize import random_episode
from mypt.data.dataset import open_dataset
from mypt.errors import UserError
from mypt.data.validate import validate_dataset


def chat(q, a='ok', **more):
    return {
        'messages': [{'role': 'user', 'content': q}, {'role': 'assistant', 'content': a}],
        **more,
    }


def texts(rng, n, vocabulary=300):
    words = [
        ''.join(rng.choices('abcdefghijklmnopqrst', k=rng.randrange(3, 9)))
        for _ in range(vocabulary)
    ]
    return [' '.join(rng.choices(words, k=rng.randrange(4, 14))) for _ in range(n)]


# ---- dedup


@pytest.mark.parametrize('threshold', [0.5, 0.7, 0.8, 0.9])
def test_near_duplicates_against_all_pairs(tmp_path, threshold):
    rng = random.Random(threshold)
    lines = texts(rng, 300)
    for q in rng.sample(lines, 120):
        for _ in range(rng.randrange(1, 4)):
            k = rng.randrange(len(q))
            q = q[:k] + rng.choice('uvwxyz') + q[k + 1 :]
        lines.append(q)
    rng.shuffle(lines)
    write_episodes(tmp_path / 'in.jsonl', map(chat, lines))
    dedup(tmp_path / 'in.jsonl', tmp_path / 'out.jsonl', by='user', threshold=threshold)
    s = [episode_text(chat(q), 'user') for q in lines]
    kept, true = [], set()
    for i, x in enumerate(s):  # greedy, every pair compared: the oracle
        if any(similarity(x, s[k]) >= threshold for k in kept):
            true.add(i + 1)
        else:
            kept.append(i)
    rejects = [json.loads(line) for line in open(tmp_path / 'out.jsonl.rejects.jsonl')]
    found = {int(r['where'].rsplit(':', 1)[1]) for r in rejects}
    assert len(found & true) >= 0.95 * len(true) and len(found - true) <= 0.02 * len(lines)
    for r in rejects:  # every removed line really is like a kept one
        i, k = (int(r[w].rsplit(':', 1)[1]) - 1 for w in ('where', 'duplicate_of'))
        assert similarity(s[i], s[k]) >= threshold and k + 1 not in found and k < i


def test_rows_in_are_rows_out_plus_rejects_byte_for_byte(tmp_path):
    rng = random.Random(3)
    eps = [random_episode(rng, lambda: ' '.join(texts(rng, 1)[0].split()[:5])) for _ in range(60)]
    replay = [{'_replay': True, 'text': text} for text in ('Ein Text.', 'ein  Text')]
    eps += [*eps[::7], *replay]
    raw = [json.dumps(e, ensure_ascii=bool(i % 2)) for i, e in enumerate(eps)]
    (tmp_path / 'in.jsonl').write_bytes(b'\xef\xbb\xbf' + '\n\n'.join(raw).encode())
    r = dedup(tmp_path / 'in.jsonl', tmp_path / 'out.jsonl')
    out = (tmp_path / 'out.jsonl').read_text(encoding='utf-8').splitlines()
    gone = [
        json.loads(line)['line']
        for line in (tmp_path / 'out.jsonl.rejects.jsonl').read_text(encoding='utf-8').splitlines()
    ]
    assert Counter(out + gone) == Counter(raw) and r['kept'] == len(out) == 61
    dedup(tmp_path / 'out.jsonl', tmp_path / 'again.jsonl')
    assert (tmp_path / 'again.jsonl').read_bytes() == (tmp_path / 'out.jsonl').read_bytes()


@pytest.mark.parametrize(
    'a,b',
    [
        (
            'Please add both numbers and tell me the result: 13 + 24',
            'Please add both numbers and tell me the result: 13 - 24',
        ),
        (
            'Is it allowed to copy the law text for my own use?',
            'Is it not allowed to copy the law text for my own use?',
        ),
        (
            'Darf ich den Text des Gesetzes kopieren und verteilen?',
            'Darf ich den Text des Gesetzes nicht kopieren und verteilen?',
        ),
        (
            'Say exactly this and not one word more or less: "cable"',
            'Say exactly this and not one word more or less: "table"',
        ),
        *(
            [f'Our colleague wrote {x} into the note about it; what follows from this?' for x in ab]
            for ab in [
                *(('-5', '5'), ('5%', '5'), ('5 €', '5 $'), ('5°C', '5°F'), ('x²', 'x³')),
                *(('13+24', '13-24'), ('x*y', 'x/y'), ('a<b', 'a>b'), ('a == b', 'a != b')),
                *(('!x', 'x'), ('a && b', 'a || b'), ('C++', 'C'), ('option B', 'option C')),
            ]
        ),
    ],
)
def test_what_means_something_else_stays(tmp_path, a, b):
    write_episodes(tmp_path / 'in.jsonl', [chat(a), chat(b)])
    assert (
        dedup(tmp_path / 'in.jsonl', tmp_path / 'out.jsonl', by='user', threshold=0.5)['kept'] == 2
    )


@pytest.mark.parametrize('by', ['user', 'episode'])
@pytest.mark.parametrize('threshold', [0.5, 0.8, 1])
@pytest.mark.parametrize(
    'a,b',
    [
        ('What does it do?\nif x:\n    a()\n    b()', 'What does it do?\nif x:\n    a()\nb()'),
        ('Copy this exactly: Hello World', 'Copy this exactly: hello world'),
        ('Copy.\nHELLO', 'Copy.\nhello'),
        ('What is 5!', 'What is 5'),
        ('Wie groß sind die Maße des Regals?', 'Wie groß sind die Masse des Regals?'),
    ],
)
def test_what_differs_in_form_stays(tmp_path, a, b, threshold, by):
    write_episodes(tmp_path / 'in.jsonl', [chat(a), chat(b), chat(a)])
    r = dedup(tmp_path / 'in.jsonl', tmp_path / 'out.jsonl', by=by, threshold=threshold)
    assert (r['kept'], r['exact']) == (2, 1)


def test_a_form_that_says_nothing_is_forgiven(tmp_path):
    same = ['How do I read it?', 'how do I read it', ' How  do I read it ? ']
    write_episodes(tmp_path / 'in.jsonl', map(chat, same))
    assert dedup(tmp_path / 'in.jsonl', tmp_path / 'out.jsonl', threshold=1)['kept'] == 1


def test_generators_hold_no_exact_duplicates(tmp_path):
    write_episodes(tmp_path / 'in.jsonl', [*make_format_lock(1500), *make_echo(1500)])
    r = dedup(tmp_path / 'in.jsonl', tmp_path / 'out.jsonl', threshold=1)
    assert r['exact'] <= 30  # such as `Say: x` of one and `Say x` of the other


def test_minhash_estimates_without_bias():
    rng = random.Random(5)
    base = texts(rng, 200)
    pairs = [
        (
            episode_text(chat(q), 'user'),
            episode_text(chat(q[: len(q) // 2] + texts(rng, 1)[0]), 'user'),
        )
        for q in base
    ]
    true = np.array([similarity(*p) for p in pairs])
    a, b = minhash([p[0] for p in pairs]), minhash([p[1] for p in pairs])
    error = (a == b).mean(1) - true
    assert abs(error.mean()) < 0.01 and np.abs(error).max() < 0.17


def test_dedup_says_what_is_wrong(tmp_path):
    (tmp_path / 'empty.jsonl').write_text('\n')
    (tmp_path / 'bad.jsonl').write_text('{"messages": 3}\n')
    for name, kw, what in (
        ('empty', {}, 'no episodes'),
        ('bad', {}, 'bad.jsonl:1'),
        ('bad', dict(threshold=2), 'threshold'),
        ('none', {}, 'no such file'),
    ):
        with pytest.raises(UserError, match=what):
            dedup(tmp_path / f'{name}.jsonl', tmp_path / 'out.jsonl', **kw)
    assert not (tmp_path / 'out.jsonl').exists()


@pytest.mark.parametrize('rejects', ['in.jsonl', 'out.jsonl', 'held.jsonl', 'link.jsonl'])
def test_dedup_writes_over_no_file_that_it_reads(tmp_path, monkeypatch, rejects):
    monkeypatch.chdir(tmp_path)
    for name in ('in', 'held'):
        (tmp_path / f'{name}.jsonl').write_text('{"messages": 3}\n')
    (tmp_path / 'link.jsonl').hardlink_to('in.jsonl')
    with pytest.raises(UserError, match='give another --rejects'):
        dedup('in.jsonl', 'out.jsonl', rejects=rejects, against=['held.jsonl'])
    with pytest.raises(UserError, match='give another --output'):
        dedup('in.jsonl', './in.jsonl')


# ---- quality


def test_score_orders_sets_as_a_reader_would():
    rng = random.Random(0)
    free = [chat(q[:1].upper() + q[1:] + '?') for q in texts(rng, 400, 900)]
    same = [chat(f'What is the capital of {q.split()[0].title()}?') for q in texts(rng, 400)]
    scores = [diversity_of(e).data['score'] for e in (same * 3, same, free)]
    assert scores == sorted(scores) and scores[0] < 50 and scores[2] > 90
    big = diversity_of(free * 1).data['score'], diversity_of(free[:200]).data['score']
    assert abs(big[0] - big[1]) <= 6  # the size of a set is not its variety


def test_balance_asks_for_what_is_missing():
    eps = [
        chat('q', 'a', _meta={'category': c})
        for c, n in dict(
            technical=40, how_to=20, multi_turn=15, denial=10, limitation=10, uncertainty=5
        ).items()
        for _ in range(n)
    ]
    assert not any(balance(eps).data['missing'].values())
    assert balance(eps[1:]).data['missing']['technical'] == 1
    assert category_of(chat('q', 'a', _meta={'category': 'echo'})) == 'other'


@pytest.mark.parametrize(
    'text,n',
    [
        ('See [specific example].', 1),
        ('Lorem ipsum dolor sit amet', 2),
        ('Hallo {name}!', 1),
        ('TODO: x', 1),
        ('See [1] and [the docs](http://x.y).', 0),
        ('```\nf"{name}"\n```', 0),
        ('Use `{x}`.', 0),
        ('A set {1, 2}', 0),
        ('[Hier Beispiel einfügen]', 1),
        ('Erkläre X, als wäre ich ein Kind.', 2),
    ],
)
def test_placeholders(text, n):
    assert sum(placeholders([chat('Frage?', text)]).data['kinds'].values()) == n


def test_quality_writes_everything(tmp_path, capsys):
    write_episodes(
        tmp_path / 'in.jsonl', [*make_format_lock(200), {'_replay': True, 'text': 'x y z'}]
    )
    quality(tmp_path / 'in.jsonl', 'byte', 40, tmp_path / 'q.json')
    data = json.loads((tmp_path / 'q.json').read_text())
    assert (
        set(data) == {'diversity', 'balance', 'token_budget', 'placeholders'}
        and data['token_budget']['over']
    )
    with pytest.raises(UserError):
        token_budget([])


# ---- augment


def corpus():
    eps = [*make_format_lock(400), *make_echo(400)]
    qs = [
        'How do I open `a_b.py` and "x" in C:\\tmp with 3 tries?',
        'Explain {slot} to <myPT_user>.',
        'Wie kann ich 3,5 % von 20 € berechnen?',
        'Summarize https://x.y/z?a=1 for example in 2 lines.',
        'Why is it so? And what is next?',
        'Erkläre „Rekursion“ in 2 Sätzen.',
    ]
    return eps + [chat(q, 'Sure! Done.') for q in qs]


KEPT = re.compile(r'`[^`]*`|"[^"]*"|„[^“]*“|<[^>]*>|\{[^}]*\}|https?://\S+|\d+(?:[.,]\d+)*')


def test_variants_change_the_words_and_keep_the_rest():
    rng, n = random.Random(1), 0
    for ep in corpus():
        for _ in range(3):
            new = vary(ep, rng)
            if new is None:
                continue
            n += 1
            assert (
                check_episode(new) == new
                and asked(new) != asked(ep)
                and variant_language(new) == variant_language(ep)
            )
            for a, b in zip(ep['messages'], new['messages'], strict=False):
                assert KEPT.findall(a['content']) == KEPT.findall(b['content'])
            meta = ep.get('_meta', {})
            if (
                meta.get('payload')
                and meta['category'] != 'anti_echo'
                and meta['payload'] != ep['messages'][0]['content']
            ):
                assert meta['payload'] in new['messages'][0]['content']
            if 'expected' in meta:
                assert new['messages'][1] == ep['messages'][1]
    assert n > 2000


def test_nothing_is_said_twice_politely():
    for q in (
        'Please explain recursion.',
        'Show me the list, please.',
        'Bitte erkläre Rekursion.',
        'Zeig mir bitte die Liste.',
    ):
        for lang in ('en', 'de'):
            assert all(len(re.findall('please|bitte', w, re.I)) <= 1 for w in rewrites(q, lang))


def test_hiding_is_undone_and_a_lost_piece_is_noticed():
    for ep in corpus():
        text = ep['messages'][0]['content']
        hidden, kept = hide(text)
        assert put_back(hidden, kept) == text
        if kept:
            assert put_back(hidden.replace('\ue000', ''), kept) is None


def test_augment_is_repeatable_grows_and_asks_no_suite_question(tmp_path):
    write_episodes(tmp_path / 'in.jsonl', eps := corpus())
    for name, seed in (('a', 1), ('b', 1), ('c', 2)):
        augment(tmp_path / 'in.jsonl', tmp_path / name, target_count=2000, seed=seed)
    a, b, c = ((tmp_path / n).read_bytes() for n in 'abc')
    assert a == b != c
    new, held = read_episodes(tmp_path / 'a')[len(eps) :], held_questions(None)
    keys = [asked(e) for e in new]
    assert (
        len(new) == 2000 - len(eps)
        and len(set(keys)) == len(keys)
        and not set(keys) & set(map(asked, eps))
    )
    assert len(held) > 400 and not {q for k in keys for q in k} & held
    assert all('augmented_from' in e['_meta'] for e in new)


def test_diversify_keeps_rows_and_answers(tmp_path):
    write_episodes(tmp_path / 'in.jsonl', eps := list(make_format_lock(300, simple=True)))
    r = diversify(tmp_path / 'in.jsonl', tmp_path / 'out.jsonl')
    new = read_episodes(tmp_path / 'out.jsonl')
    assert [e['messages'][1] for e in new] == [e['messages'][1] for e in eps] and r['after'] > r[
        'before'
    ]
    assert len(set(map(asked, new))) == len(set(map(asked, eps)))


# ---- mask checks and general text


@pytest.mark.parametrize('policy', ['pipeline', 'phase3a', 'rag_chat'])
@pytest.mark.parametrize('packed', [False, True])
def test_mask_report_agrees_with_prepare(tmp_path, policy, packed):
    rng = random.Random(2)
    eps = [random_episode(rng, lambda: texts(rng, 1)[0]) for _ in range(80)] + [
        {'_replay': True, 'text': 'a b'}
    ]
    write_episodes(tmp_path / 'in.jsonl', eps)
    prepare(
        str(tmp_path / 'in.jsonl'),
        str(tmp_path / 'ds'),
        'byte',
        enable_packing=packed,
        pack_block_size=4096,
        mask_policy=policy,
        workers=1,
    )
    r = mask_report(tmp_path / 'ds')
    assert r.data['ok'], str(r)
    assert all(
        k == 0
        for role, (n, k) in r.data['roles'].items()
        if role in ('system', 'user', 'user_context', 'toolresult')
    )


@pytest.mark.parametrize('packed', [False, True])
@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('ratio', [0.2, 0.3, 0.4])
def test_mix_general_keeps_the_ratio_and_the_episodes(tmp_path, packed, weighted, ratio):
    rng = random.Random(4)
    write_episodes(
        tmp_path / 'chat.jsonl',
        [chat(q, a) for q, a in zip(texts(rng, 200), texts(rng, 200), strict=False)],
    )
    write_episodes(
        tmp_path / 'text.jsonl',
        [{'_replay': True, 'text': ' '.join(texts(rng, rng.randrange(1, 20)))} for _ in range(90)],
    )
    sft = prepare(
        str(tmp_path / 'chat.jsonl'),
        str(tmp_path / 'sft'),
        'byte',
        enable_packing=packed,
        pack_block_size=600,
        weighted_mask=weighted,
        workers=1,
    )
    prepare(
        str(tmp_path / 'text.jsonl'),
        str(tmp_path / 'text'),
        'byte',
        format='shards',
        pack_block_size=512,
        val_split=0.0,
        workers=1,
    )
    args = str(tmp_path / 'sft'), str(tmp_path / 'text')
    for shuffle in (False, True):
        ds = mix_general(*args, str(tmp_path / f'mix{shuffle}'), ratio, 300, shuffle)
        assert validate_dataset(tmp_path / f'mix{shuffle}') == []
        assert abs(ds.meta['mix_general']['realised'] - ratio) < 1e-3
        share = 1 - sft.train.n_tokens / ds.train.n_tokens
        assert abs(share - ratio) < 1e-3

        def of(split):
            return Counter(
                (r.ids.tobytes(), r.weights.tobytes())
                for r in map(split.episode, range(split.n_episodes))
            )

        assert not of(sft.train) - of(ds.train) and of(sft.val) == of(ds.val)
        assert [s['dataset'] for s in ds.meta['lineage']] == ['sft', 'text']
    a, b = (open_dataset(tmp_path / f'mix{s}') for s in (False, True))
    assert of(a.train) == of(b.train)
    with pytest.raises(UserError, match='exists already'):
        mix_general(*args, str(tmp_path / 'mixTrue'), ratio, 300)
