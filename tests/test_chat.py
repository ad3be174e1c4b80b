"The terminal chat: turns, commands, several lines, interruptions, output without controls."

import io
import subprocess
import sys
import pytest
import torch
from hypothesis import given, strategies as st
from mypt.agent.prompts import system_for, with_system
from mypt.serve.session import Reading, Session, Settings
from mypt.serve.terminal import Terminal, chat, read_question, safe
from mypt.model.checkpoint import save_checkpoint
from mypt.model.config import ModelConfig
from mypt.agent.documents import Document
from mypt.data.episodes import read_episodes
from mypt.inference.generate import Step
from mypt.model.gpt import GPT
from mypt.data.serialize import dump_call, parse
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.agent.tools import Workspace
import mypt.serve.session

tok = get_tokenizer('byte')
OFFICE = Workspace.of([Document('leave.md', 'Leave', 'Parental leave is twelve weeks.')])
FIND_LEAVE = dump_call('workspace.search', dict(query='leave'))
SEARCH = f'<myPT_think>Look.</myPT_think><myPT_toolcall>{FIND_LEAVE}</myPT_toolcall>'


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    torch.manual_seed(1)
    return save_checkpoint(
        tmp_path_factory.mktemp('m') / 'small',
        GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=1024)),
        tok,
    )


def script(history):
    last = history['messages'][-1]
    if last['role'] == 'toolresult':
        return 'Twelve weeks.<myPT_cite>leave.md</myPT_cite>'
    return {'leave': SEARCH, 'bad': '', 'evil': '\x1b]0;owned\x07\x1b[2J', 'stop': '!'}.get(
        last['content'], f'You said {last["content"]}'
    )


@pytest.fixture
def screen(model, monkeypatch):
    def steps(m, prompts, new, how, stop, allow=None):
        said = script(parse(prompts[0], tok)) + '</myPT_assistant>'
        for i in tok.encode_with_tags(said):
            if said.startswith('!'):
                raise KeyboardInterrupt
            yield Step(0, i, 1.0)

    monkeypatch.setattr(mypt.serve.session, 'steps', steps)
    return Terminal(Session(model, OFFICE), io.StringIO())


def typed(screen, *lines) -> str:
    at = screen.out.tell()
    for line in lines:
        screen.take(line)
    return screen.out.getvalue()[at:]


def test_turns(screen):
    assert (
        typed(screen, 'hello') == 'You said hello\n'
        and typed(screen, 'two\nlines') == 'You said two\nlines\n'
    )
    assert len(screen.talk.past) == 4 and 'two\nlines' in typed(screen, '/history')
    assert typed(screen, '/undo') == 'taken back: two\nlines\n' and len(screen.talk.past) == 2
    assert typed(screen, '/retry') == 'You said hello\n' and len(screen.talk.past) == 2
    typed(screen, '/new')
    assert (
        screen.talk.past == []
        and 'nothing' in typed(screen, '/undo')
        and 'asked yet' in typed(screen, '/retry')
    )


def test_retry_says_something_else(screen, monkeypatch):
    "An equal beginning is held back, and an equal answer made anew; a temperature of 0 is left."
    answers, seen = ['yes', 'yes', 'yellow', 'yes', 'no'], []

    def steps(m, prompts, new, how, stop, allow=None):
        seen.append(how.temperature)
        for i in tok.encode_with_tags(answers[len(seen) - 1] + '</myPT_assistant>'):
            yield Step(0, i, 1.0)

    monkeypatch.setattr(mypt.serve.session, 'steps', steps)
    assert typed(screen, '/temperature 0', 'well?') == 'temperature 0.0\nyes\n'
    assert typed(screen, '/retry') == 'yellow\n' and typed(screen, '/retry') == 'no\n'
    assert seen == [0.0] + [0.7] * 4 and screen.talk.settings.temperature == 0
    assert [m['content'] for m in screen.talk.past] == ['well?', 'no']
    assert screen.earlier == ['yes', 'yellow', 'no']


def test_agent_and_thoughts(screen):
    typed(screen, '/mode agent')
    out = typed(screen, 'leave')
    assert (
        out.startswith('call: {"name": "workspace.search"')
        and 'result: {"documents"' in out
        and 'Look.' not in out
    )
    assert out.endswith('Twelve weeks.\ncited: leave.md\n')
    assert 'think: Look.' in typed(screen, '/think', 'leave') and 'answered after 1 call' in typed(
        screen, '/trace'
    )


def test_passages(screen):
    assert typed(screen, '/mode rag', 'parental').endswith(
        'You said parental\nretrieved: leave.md\n'
    )
    assert screen.talk.past[0]['context'].startswith('[1] (leave.md) Parental')


def test_what_is_no_answer_is_forgotten(screen):
    assert 'not kept' in typed(screen, 'bad') and screen.talk.past == []
    assert 'stopped' in typed(screen, 'stop') and screen.talk.past == []  # Ctrl-C
    assert typed(screen, 'hello') == 'You said hello\n'


def test_output_holds_no_control_characters(screen, tmp_path):
    assert '\x1b' not in typed(
        screen,
        'evil',
        '/history',
        '/trace',
        '/\x1b[2J',
        '/system \x1b[2J',
        f'/save {tmp_path}/\x1b',
        '\x9b2J',
    )


@given(st.text())
def test_safe(text):
    assert all(c.isprintable() or c in '\n\t' for c in safe(text)) and len(safe(text)) == len(text)


def test_save_and_load(screen, tmp_path):
    file = tmp_path / 'talk.jsonl'
    typed(screen, '/system Be brief.', 'hello', 'more', f'/save {file}')
    (ep,) = read_episodes(file)
    assert (
        ep['system'] == 'Be brief.'
        and [m['role'] for m in ep['messages']] == ['user', 'assistant'] * 2
    )
    typed(screen, '/new', '/system', f'/load {file}')
    assert screen.talk.episode() == ep and 'more' in typed(screen, '/undo')
    for line in ('/save', f'/load {tmp_path}/none', '/load', f'/save {file}/x'):
        assert typed(screen, line).startswith('(')


@pytest.mark.parametrize(
    'line, why',
    [
        ('/temprature 1', "did you mean 'temperature'"),
        ('/temperature hot', 'give a number'),
        ('/temperature -1', 'out of range'),
        ('/tokens 0', 'out of range'),
        ('/mode sleep', 'rag'),
        ('/model nowhere', 'no such model'),
        ('/', 'no such'),
        ('/temperature nan', 'out of range'),
        ('/passages 0', 'out of range'),
        ('/think_', 'think'),
    ],
)
def test_wrong_commands_are_one_line(screen, line, why):
    before = Settings(**vars(screen.talk.settings))
    out = typed(screen, line)
    assert why in out and out.count('\n') == 1 and screen.talk.settings == before


def test_settings_reach_the_model(screen, monkeypatch):
    seen = []
    steps = mypt.serve.session.steps
    monkeypatch.setattr(
        mypt.serve.session,
        'steps',
        lambda m, p, new, how, *a: seen.append((new, how)) or steps(m, p, new, how, *a),
    )
    typed(screen, '/temperature 0.5', '/tokens 50', '/seed 7', 'hello')
    assert seen[0][0] == 50 and (seen[0][1].temperature, seen[0][1].seed) == (0.5, 7)
    assert 'leaves no room' in typed(screen, '/tokens 5000', 'hello')


@given(st.lists(st.text('ab\\" /', max_size=5), max_size=6))
def test_reading_lines_always_ends(lines):
    left = list(lines)

    def read(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    for _ in range(len(lines) + 1):
        last = read_question(read)
    assert last is None


def test_several_lines():
    def read(*lines):
        left = iter(lines)
        return read_question(lambda prompt: next(left))

    assert read('a\\', 'b\\', 'c') == 'a\nb\nc' and read('"""', 'a', '', 'b"""') == 'a\n\nb'
    assert read('"""x"""') == 'x' and read(' a ') == 'a'


def test_reading_gives_whole_letters():
    text = '<myPT_think>Ü?</myPT_think>Für <myPT_cite>ä.md</myPT_cite>€'
    r, out = Reading(tok), {}
    for i in tok.encode_with_tags(text):
        for kind, piece in r.feed(i):
            out[kind] = out.get(kind, '') + piece
    assert out == dict(think='Ü?', text='Für €', cite='ä.md')


def test_prompts_promise_only_what_is_there():
    tools = dict(lineage=dict(config=dict(system_prompt='Use workspace.search.')))
    plain = dict(lineage=dict(config=dict(system_prompt='Be MyPT.')))
    assert (
        system_for(tools, True) == 'Use workspace.search.'
        and system_for(tools, False) == 'You are MyPT.'
    )
    assert system_for(plain, False) == 'Be MyPT.' and system_for({}, False) == 'You are MyPT.'
    both = dict(lineage=dict(config=dict(system_prompt=dict(en=['Be MyPT.'], de=['Sei MyPT.']))))
    assert (system_for(both, False), system_for(both, False, lang='de')) == (
        'Be MyPT.',
        'Sei MyPT.',
    )
    for asked, prompt in [('Wer ist das?', 'Sei MyPT.'), ('Who is it?', 'Be MyPT.')]:
        episode = dict(messages=[dict(role='user', content=asked)])
        assert with_system(episode, {}, both)['system'] == prompt
    assert 'context' in system_for({}, False, True) and 'workspace.search' in system_for({}, True)


def test_bad_calls(model):
    for kw, why in [
        (dict(mode='agent'), '--docs_dir'),
        (dict(mode='x'), 'chat'),
        (dict(docs_dir='a', index_dir='b'), 'not both'),
    ]:
        with pytest.raises(UserError, match=why):
            chat(str(model), **kw)


def test_from_a_pipe(model):
    said = 'hello\n/tokens 4\n"""a\nb"""\n/nothing\n/quit\nnever'
    p = subprocess.run(
        [sys.executable, '-m', 'mypt.cli', 'chat', '--model', str(model), '--max_new_tokens', '8'],
        input=said,
        text=True,
        capture_output=True,
        timeout=120,
    )
    assert (
        p.returncode == 0
        and 'tokens 4' in p.stdout
        and 'no such command' in p.stdout
        and '> ' not in p.stdout
        and p.stderr == ''
    )
