"What every generator promises: legal, distinct, repeatable, bilingual, grounded, and never a prompt of any suite."

import json, os, signal
from importlib.resources import files
import pytest
from mypt.data.episodes import check_episode
from mypt.curriculum.synthetic import first_question
from mypt.model.checkpoint import load_state
from mypt.train.loop import Callback
from mypt.curriculum.format_lock import PHASE1
from mypt.curriculum.recipe import run_phase
from mypt.curriculum.run import GENERATORS, find_by_name
from mypt.eval.suite import leaks, load_suite
from mypt.errors import UserError

TALKS = [k for k in GENERATORS if k not in ('replay', 'text', 'qa_text', 'long_text')]
SUITES = sorted(
    p.name.removesuffix('.jsonl') for p in (files('mypt') / 'assets' / 'suites').iterdir()
)
dump = lambda eps: [json.dumps(e, ensure_ascii=False, sort_keys=True) for e in eps]
make = lambda kind, n, language='mixed', **kw: list(
    find_by_name('kind', kind, GENERATORS)(n, language=language, **kw)
)


@pytest.fixture(scope='module')
def made():
    return {k: make(k, 1500, seed=42) for k in TALKS}


@pytest.mark.parametrize('kind', TALKS)
def test_legal_distinct_repeatable(kind, made):
    eps = made[kind]
    assert all(
        check_episode(e) == e or 'context' in e for e in eps
    )  # a gold episode's number becomes metadata
    assert len(set(dump(eps))) == len(eps)
    assert (
        dump(make(kind, 200, seed=42))
        == dump(make(kind, 200, seed=42))
        != dump(make(kind, 200, seed=43))
    )


@pytest.mark.parametrize('kind', TALKS)
def test_languages_are_as_asked(kind, made):
    german = sum(e['language'] == 'de' for e in made[kind]) / len(made[kind])
    assert abs(german - 0.5) < 0.02
    for lang in ('en', 'de'):
        assert {e['language'] for e in make(kind, 50, language=lang, seed=1)} == {lang}
    with pytest.raises(UserError, match='language'):
        make(kind, 5, language='fr')


@pytest.mark.parametrize('kind', TALKS)
def test_no_prompt_of_any_suite(kind, made):
    assert leaks(made[kind] + make(kind, 800, seed=7), SUITES) == []


def test_the_leak_check_finds_something():
    for s in SUITES:
        assert leaks([load_suite(s)[0].episode], [s])


@pytest.mark.parametrize('kind', ['multiturn', 'toolcall', 'agentic'])
def test_no_two_first_questions(kind, made):
    assert len({first_question(e) for e in made[kind]}) == len(made[kind])


def test_turns(made):
    turns = [sum(m['role'] == 'user' for m in e['messages']) for e in made['multiturn']]
    assert set(turns) == {2, 3, 4} and min(map(turns.count, (2, 3, 4))) > 300


@pytest.mark.parametrize('kind', ['rag_chat', 'multiturn', 'toolcall', 'agentic'])
def test_a_folder_of_documents(kind, tmp_path):
    "The same generators on real-looking Markdown: grounded in it, sentence by sentence."
    for i, subject in enumerate(
        ('Phishing', 'Clickjacking', 'Tokens', 'Backups', 'Sessions', 'Cookies')
    ):
        parts = ''.join(
            f'## Part {j} of {subject}\n\nPart {j} explains how {subject} is handled in case {i}{j}.\n\n'
            for j in range(12)
        )
        text = (
            f'# {subject}\n\n## Introduction\n\n{subject} is a subject that every team should know about.\n\n'
            f'## Risks\n\nThe risk of {subject} grows with the number of people who ignore it. More follows.\n\n{parts}'
        )
        (tmp_path / f'{subject.lower()}.md').write_text(text, encoding='utf-8')
    n = 0
    for e in make(kind, 40, language='en', docs_dir=str(tmp_path), seed=3):
        shown = ''
        for m in e['messages']:
            shown += m.get('context', '') + (
                json.dumps(m['content']) if m['role'] in ('toolresult', 'assistant_context') else ''
            )
            if isinstance(m.get('cite'), str):
                n += 1
                assert (
                    (tmp_path / m['cite']).exists()
                    and m['content'][:-1] in shown
                    and m['cite'] in shown
                )
    assert n > 15


def test_documents_in_one_language_only(tmp_path):
    (tmp_path / 'a.md').write_text(
        '# A\n\nA is a letter that begins the alphabet of many languages.\n', encoding='utf-8'
    )
    with pytest.raises(UserError, match="'de'"):
        make('rag_chat', 10, language='de', docs_dir=str(tmp_path))
    with pytest.raises(UserError):
        make('rag_chat', 10, docs_dir=str(tmp_path / 'nowhere'))


@pytest.mark.parametrize(
    'number, ends', [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_pipeline_that_a_signal_ends_is_not_done(tmp_path, monkeypatch, number, ends):
    "It stops before the gate, and the same call trains the rest."
    monkeypatch.chdir(tmp_path)

    class Signal(Callback):
        def after_step(self, t):
            if t.step == 2:
                os.kill(os.getpid(), number)

    how = dict(
        config='tiny_phase1_format_lock',
        tokenization='byte',
        quiet=True,
        sets=[
            'n_layer=1',
            'n_embd=16',
            'n_head=2',
            'batch_size=1',
            'max_iters=4',
            'eval_interval=50',
            'eval_iters=1',
        ],
    )
    phase, train_done = (
        PHASE1.with_sources(n=dict(format_lock=60, echo=60)),
        lambda: json.loads((tmp_path / 'data/stages.json').read_text())['train']['done'],
    )
    with pytest.raises(ends):
        run_phase(phase, 'm', tmp_path / 'data', cbs=[Signal()], **how)
    assert (
        not train_done()
        and load_state('m')[0]['step'] == 2
        and not (tmp_path / 'data/gate.json').exists()
    )
    assert run_phase(phase, 'm', tmp_path / 'data', **how) is not None
    assert train_done() and load_state('m')[0]['step'] == 4
