"Warnings come when they should and only then; the links of the how-tos lead to headings."

import json
import re
from pathlib import Path
from types import SimpleNamespace
import pytest
from mypt.train.callbacks import Console, Stuck
from mypt.curate.quality import diversity_of

HOW_TO = Path(__file__).parent.parent / 'nbs' / 'how_to'


def said(capsys, losses, window=10, **kw):
    cb, t = Stuck(320, **kw), SimpleNamespace(step=0)
    cb.before_fit(t)
    cb.after_eval(t)  # before the first step
    for t.step, loss in enumerate(losses, 1):
        t.record = dict(loss=loss)
        cb.after_step(t)
        if t.step % window == 0:
            cb.after_eval(t)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    'losses', [[5 / n**0.5 for n in range(1, 41)], [0.3] * 40, [5.7] * 10, [5.7] * 10 + [2.0] * 10]
)
def test_stuck_is_silent(capsys, losses):
    "A falling loss, one that is low already, a run with one window only."
    assert said(capsys, losses) == ''


def test_stuck_warns(capsys):
    assert 'does not fall' in said(capsys, [5.7] * 20)


def test_a_blind_base(capsys):
    assert 'right base' in said(capsys, [5.7], base=True)
    assert said(capsys, [2.5], base=True) == said(capsys, [5.7]) == ''


def test_an_evaluation_tells_the_sets_that_there_are(capsys):
    "Without a validation split there is no line that says `nan`."
    Console().after_eval(SimpleNamespace(step=3, evaluated={'old': 2.0}))
    Console().after_eval(SimpleNamespace(step=4, evaluated={'old': 2.0, 'val': 1.0}))
    Console().after_eval(SimpleNamespace(step=5, evaluated={}))
    out, err = capsys.readouterr()
    lines = ['step 3: old 2.0000', 'step 4: val 1.0000, old 2.0000', 'step 5: no evaluation set']
    assert (out + err).splitlines() == lines


def chat(q, a, *more):
    return {
        'messages': [{'role': 'user', 'content': q}, *more, {'role': 'assistant', 'content': a}]
    }


def test_diversity_tells_manner_and_tools():
    call = {'role': 'assistant_toolcall', 'name': 'workspace.list_docs', 'arguments': {}}
    result = {'role': 'toolresult', 'name': 'workspace.list_docs', 'content': {}}
    numbers = 'one two three four five six seven eight nine ten'.split()
    plain = diversity_of([chat(f'{w}?', f'{w} it is') for w in numbers])
    assert plain.data['tools'] == 0 and not any('begin' in n or 'tool' in n for n in plain.notes)
    episodes = []
    for i, w in enumerate('abcdefgh'):
        tool = [call, result] if i % 2 else []
        episodes.append(chat(f'{w}?', 'Certainly! It is so.', *tool))
    styled = diversity_of(episodes)
    assert styled.data['tools'] == 0.5 and styled.data['answers'][0][1] == 1
    assert styled.notes[-2:] == ['100% of the answers begin: certainly it is', '50% call a tool']


def headings(path):
    cells = json.loads(path.read_text(encoding='utf-8'))['cells']
    text = '\n'.join(''.join(c['source']) for c in cells if c['cell_type'] == 'markdown')
    words = [re.sub(r'[^\w -]', '', h.lower()) for h in re.findall(r'^#+ (.*)$', text, re.M)]
    return {w.strip().replace(' ', '-') for w in words}, text


@pytest.mark.parametrize(
    'page',
    [*sorted(p.name for p in HOW_TO.glob('*.ipynb')), '../explanations/from_the_documents.ipynb'],
)
def test_links_into_pages(page):
    "Every link with an anchor names a heading that is there."
    path = HOW_TO / page
    for to, anchor in re.findall(r'\]\(([\w./]*)#([\w-]+)\)', headings(path)[1]):
        target = (path.parent / to).resolve() if to else path
        assert target.is_file() and anchor in headings(target)[0], f'{page}: {to}#{anchor}'
