"Promises of every generator: legal, distinct, repeatable, bilingual, grounded, no suite's prompt."

import json
import os
import signal
from importlib.resources import files
from pathlib import Path

import pytest

from mypt.curriculum.format_lock import PHASE1
from mypt.curriculum.recipe import run_phase
from mypt.curriculum.run import GENERATORS, find_by_name
from mypt.curriculum.synthetic import first_question
from mypt.data.episodes import check_episode
from mypt.errors import UserError
from mypt.eval.suite import leaks, load_suite
from mypt.model.checkpoint import load_state
from mypt.train.loop import Callback

OTHERS = ('replay', 'text', 'qa_text', 'long_text', 'own_tools')  # own_tools: test_own_tools.py
TALKS = [k for k in GENERATORS if k not in OTHERS]
SUITES = sorted(
    p.name.removesuffix('.jsonl') for p in (files('mypt') / 'assets' / 'suites').iterdir()
)


def make(kind: str, n: int, language: str = 'mixed', **options) -> list[dict]:
    return list(find_by_name('kind', kind, GENERATORS)(n, language=language, **options))


def as_lines(eps: list[dict]) -> list[str]:
    return [json.dumps(e, ensure_ascii=False, sort_keys=True) for e in eps]


@pytest.fixture(scope='module')
def made():
    return {k: make(k, 800, seed=42) for k in TALKS}


@pytest.mark.parametrize('kind', TALKS)
def test_legal_distinct_repeatable(kind, made):
    eps = made[kind]
    for e in eps:  # the number in a gold episode's context becomes metadata
        assert check_episode(e) == e or 'context' in e
    assert len(set(as_lines(eps))) == len(eps)
    first = as_lines(make(kind, 100, seed=42))
    assert first == as_lines(make(kind, 100, seed=42))
    assert first != as_lines(make(kind, 100, seed=43))


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
    assert leaks(made[kind] + make(kind, 400, seed=7), SUITES) == []


def test_the_leak_check_finds_something():
    for s in SUITES:
        assert leaks([load_suite(s)[0].episode], [s])


@pytest.mark.parametrize('kind', ['toolcall', 'agentic'])
def test_no_two_first_questions(kind, made):
    assert len({first_question(e) for e in made[kind]}) == len(made[kind])


def test_turns(made):
    turns = [sum(m['role'] == 'user' for m in e['messages']) for e in made['multiturn']]
    assert set(turns) == {2, 3, 4}
    assert min(map(turns.count, (2, 3, 4))) > 160  # a fifth of them


def write_documents(folder: Path):
    "Six Markdown files of fourteen sections each."
    subjects = ('Phishing', 'Clickjacking', 'Tokens', 'Backups', 'Sessions', 'Cookies')
    for i, subject in enumerate(subjects):
        sections = [
            f'# {subject}',
            '## Introduction',
            f'{subject} is a subject that every team should know about.',
            '## Risks',
            f'The risk of {subject} grows with the number of people who ignore it. More follows.',
        ]
        for j in range(12):
            sections.append(f'## Part {j} of {subject}')
            sections.append(f'Part {j} explains how {subject} is handled in case {i}{j}.')
        text = '\n\n'.join(sections) + '\n\n'
        (folder / f'{subject.lower()}.md').write_text(text, encoding='utf-8')


@pytest.mark.parametrize('kind', ['rag_chat', 'multiturn', 'toolcall', 'agentic'])
def test_a_folder_of_documents(kind, tmp_path):
    "The same generators on real-looking Markdown: grounded in it, sentence by sentence."
    write_documents(tmp_path)
    cited = 0
    for e in make(kind, 40, language='en', docs_dir=str(tmp_path), seed=3):
        shown = ''
        for m in e['messages']:
            shown += m.get('context', '')
            if m['role'] in ('toolresult', 'assistant_context'):
                shown += json.dumps(m['content'])
            if isinstance(m.get('cite'), str):
                cited += 1
                assert (tmp_path / m['cite']).exists()
                abouts = (*e['_meta'].get('abouts', ()), e['_meta'].get('about'))
                known = [a['sentence'] for a in abouts if a]
                said = [s for s in (m['content'], *known) if s in m['content']]
                assert any(s[:-1] in shown for s in said)
                assert m['cite'] in shown
    assert cited > 15


def test_documents_in_one_language_only(tmp_path):
    text = '# A\n\nA is a letter that begins the alphabet of many languages.\n'
    (tmp_path / 'a.md').write_text(text, encoding='utf-8')
    with pytest.raises(UserError, match="'de'"):
        make('rag_chat', 10, language='de', docs_dir=str(tmp_path))
    with pytest.raises(UserError):
        make('rag_chat', 10, docs_dir=str(tmp_path / 'nowhere'))


class Signal(Callback):
    "Sends a signal to this process after the second step."

    def __init__(self, number: int):
        self.number = number

    def after_step(self, t):
        if t.step == 2:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(
    'number, ends', [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_a_pipeline_that_a_signal_ends_is_not_done(tmp_path, monkeypatch, number, ends):
    "It stops before the gate, and the same call trains the rest."
    monkeypatch.chdir(tmp_path)
    data = tmp_path / 'data'
    size = ['n_layer=1', 'n_embd=16', 'n_head=2']
    steps = ['batch_size=1', 'max_iters=4', 'eval_interval=50', 'eval_iters=1']
    options = dict(config='tiny_phase1_format_lock', tokenization='byte', quiet=True)
    options['sets'] = size + steps
    phase = PHASE1.with_sources(n=dict(format_lock=60, echo=60))

    def train_done():
        return json.loads((data / 'stages.json').read_text())['train']['done']

    with pytest.raises(ends):
        run_phase(phase, 'm', data, cbs=[Signal(number)], **options)
    assert not train_done()
    assert load_state('m')[0]['step'] == 2
    assert not (data / 'gate.json').exists()
    assert run_phase(phase, 'm', data, **options) is not None
    assert train_done()
    assert load_state('m')[0]['step'] == 4
