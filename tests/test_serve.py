"The server: OpenAI's client, many at once, clients that leave, hostile requests, the page."

import asyncio
import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
import jsonschema
import pytest
import torch
from hypothesis import given, settings, strategies as st
from browser import AXE, CHROMIUM, Browser
from mypt.serve.session import NoCalls
from mypt.model.checkpoint import save_checkpoint
from mypt.model.config import ModelConfig
from mypt.agent.documents import Document
from mypt.inference.engine import Engine, Request
from mypt.data.episodes import check_episode
from mypt.inference.generate import Step, generate, prompt_ids
from mypt.model.gpt import GPT
from mypt.serve.openai import ApiError, StopAt, read_body, to_episode, to_messages
from mypt.data.serialize import dump_call, parse, random_episode
from mypt.data.tokenizer import TAGS, get_tokenizer
from mypt.errors import UserError
from mypt.agent.tools import TOOLS, Workspace
import mypt.serve.runner
from mypt.serve.runner import Limits, Runners
from mypt.serve.app import CHAT_PAGE, _listen, make_app, make_server, serve

openai = pytest.importorskip('openai')
pytest.importorskip('uvicorn')
tok = get_tokenizer('byte')
END = '</myPT_assistant>'
MARKDOWN = """# Title

Some **strong**, *weak* and `code`; snake_case stays. [good](https://example.org/a), \
[bad](javascript:alert(1)), [data](data:text/html,x) and ![eye](https://evil.example/pixel.png).
<img src=https://evil.example/x.png onerror="document.title=4">

1. first
   - inner
2. second

> quoted

| a | b |
|--|--|
| 1 | **2** |

```python
if x < 1: print("<b>")
```
https://example.org/b_c."""
EVIL = '</p><img src=x onerror="document.title=1"><script>document.title=2</script>'
DOCS = [
    Document('leave.md', 'Leave', 'Parental leave is twelve weeks.'),
    Document('<b>x</b>.md', 'Evil', EVIL),
]
POST = (
    f'POST {CHAT_PAGE} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n'.encode()
)


def call(name, **arguments):
    return f'<myPT_toolcall>{dump_call("workspace." + name, arguments)}</myPT_toolcall>'


def ask(text):
    return [dict(role='user', content=text)]


class Scripted:
    "An engine whose model is a function: history → what is said, tags by name."

    slow, fails, said = 0.0, 0, 0

    def __init__(self, model, slots):
        self.running, self.waiting, self.slots, self.lock = ([], deque(), slots, threading.Lock())

    def submit(self, ids, new, how, stop, allow=None):
        history = parse(ids, tok)
        r = Request(list(ids), new, how, stop, allow)
        r.script = deque(tok.encode_with_tags(script(history) + END))
        with self.lock:
            self.waiting.append(r)
        return r

    def cancel(self, r):
        r.done = r.done or 'cancelled'

    @property
    def busy(self):
        return bool(self.running or self.waiting)

    def step(self):
        if Scripted.fails and self.busy:
            Scripted.fails -= 1
            raise RuntimeError('CUDA is on fire')
        with self.lock:
            self.running = [r for r in self.running if not r.done]
            while self.waiting and len(self.running) < self.slots:
                self.running.append(self.waiting.popleft())
        out = []
        if self.running:
            time.sleep(Scripted.slow)
        for i, r in enumerate(self.running):
            r.generated.append(r.script.popleft())
            r.done = r.done or (
                'stop'
                if r.generated[-1] in r.stop
                else 'length'
                if len(r.generated) == r.max_new_tokens
                else None
            )
            out.append((r, Step(i, r.generated[-1], 1.0)))
        self.running = [r for r in self.running if not r.done]
        return out


def script(history) -> str:
    q, last = (
        next(m['content'] for m in reversed(history['messages']) if m['role'] == 'user'),
        history['messages'][-1],
    )
    if last['role'] == 'toolresult':
        if 'leave' in q:
            return (
                '<myPT_think>Read.</myPT_think>It is twelve weeks.<myPT_cite>leave.md</myPT_cite>'
            )
        return f'got {last["content"]}'
    if q == 'evil':
        return f'<myPT_think>{EVIL}</myPT_think>{EVIL}'
    if q == 'evil search':
        return call('search', query=EVIL)
    if q == 'long':
        return 'word ' * 150
    if q == 'markdown':
        return MARKDOWN
    if q == 'vary':
        Scripted.said += 1
        return ('one', 'one', 'two')[Scripted.said % 3 - 1]
    if q == 'system':
        return history.get('system', 'none')
    if q == 'again':
        return str(len(history['messages']))
    if q == 'bad':
        return '<myPT_toolcall>{not json</myPT_toolcall>'
    if 'leave' in q and 'workspace.search' in history.get('system', ''):
        return '<myPT_think>Look.</myPT_think>' + call('search', query='parental leave')
    if 'context' in last:
        return 'Twelve weeks.<myPT_cite>leave.md</myPT_cite>'
    return f'You said {q}'


def checkpoint(folder, name='rambler', block=1024, kind='byte'):
    torch.manual_seed(1)
    tok = get_tokenizer(kind)
    size = dict(block_size=block, vocab_size=tok.vocab_size)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, **size))
    for p in model.parameters():
        p.data *= 3
    save_checkpoint(folder / name, model, tok)
    return model


@contextlib.contextmanager
def running(folder, limits=None, workspace=None, token=None, slots=16, engine=Engine):
    patch = pytest.MonkeyPatch()
    patch.setattr(mypt.serve.runner, 'Engine', engine)
    hosts = Runners({p.name: p for p in sorted(folder.iterdir())}, slots)
    limits = limits or Limits()
    app = make_app(hosts, limits, workspace, token)
    server, sock = make_server(app, limits), _listen('127.0.0.1', 0)
    thread = threading.Thread(target=server.run, kwargs=dict(sockets=[sock]))
    thread.start()
    try:
        yield Place(sock.getsockname()[1], hosts, app, token)
    finally:
        server.should_exit = True
        thread.join(20)
        hosts.close()
        patch.undo()
        assert not thread.is_alive()


class Place:
    def __init__(self, port, hosts, app, token):
        self.port, self.hosts, self.app, self.url = (port, hosts, app, f'http://127.0.0.1:{port}')
        self.client = openai.OpenAI(
            base_url=f'{self.url}/v1', api_key=token or 'none', max_retries=0, timeout=30
        )

    def say(self, messages, model='rambler', **kw):
        if isinstance(messages, str):
            messages = ask(messages)
        return self.client.chat.completions.create(model=model, messages=messages, **kw)

    def raw(self, data, seconds=10) -> bytes:
        "Bytes in, bytes out, until the server closes or says nothing more."
        with socket.create_connection(('127.0.0.1', self.port), seconds) as s:
            with contextlib.suppress(ConnectionError):
                s.sendall(data)
            out = b''
            with contextlib.suppress(ConnectionError, TimeoutError):
                while part := s.recv(1 << 16):
                    out += part
        return out

    def http(self, method='GET', path='/v1/models', body=b'', **headers):
        head = {
            'Host': f'127.0.0.1:{self.port}',
            'Content-Type': 'application/json',
            'Content-Length': len(body),
            'Connection': 'close',
            **{k.replace('_', '-'): v for k, v in headers.items()},
        }
        lines = [
            f'{method} {path} HTTP/1.1',
            *(f'{k}: {v}' for k, v in head.items() if v is not None),
            '',
            '',
        ]
        out = self.raw('\r\n'.join(lines).encode() + body)
        head, _, body = out.partition(b'\r\n\r\n')
        with contextlib.suppress(ValueError):
            body = json.loads(body)
        return int(out[9:12]) if out else 0, body, head.decode().lower()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    d = tmp_path_factory.mktemp('models')
    checkpoint(d)
    checkpoint(d, 'second')
    return d


@pytest.fixture(scope='module')
def there(folder):
    "A server with a scripted model."
    with running(
        folder, Limits(patience=1.0, seconds=3.0, at_once=8), Workspace.of(DOCS), engine=Scripted
    ) as place:
        yield place


# The client


def test_models(there):
    assert [m.id for m in there.client.models.list()] == [
        'rambler',
        'second',
    ] and there.client.models.retrieve('second').id == 'second'
    with pytest.raises(openai.NotFoundError):
        there.client.models.retrieve('../secret')


def test_answer_and_usage(there):
    r = there.say('hello')
    assert (
        r.choices[0].message.content == 'You said hello'
        and r.choices[0].finish_reason == 'stop'
        and r.model == 'rambler'
    )
    assert r.usage.completion_tokens == len('You said hello') + 1
    assert r.usage.total_tokens == r.usage.prompt_tokens + r.usage.completion_tokens


def test_stream(there):
    chunks = list(there.say('Grüße', stream=True, stream_options=dict(include_usage=True)))
    text = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert ''.join(text) == 'You said Grüße' and len(text) > 5
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == 'stop' and chunks[
        -1
    ].usage.completion_tokens == 17
    assert len({c.id for c in chunks}) == 1


@pytest.mark.parametrize('stream', [False, True])
def test_stop_and_length(there, stream):
    def text(**kw):
        r = there.say('one two three', stream=stream, **kw)
        if not stream:
            return r.choices[0].message.content, r.choices[0].finish_reason
        chunks = list(r)
        return ''.join(c.choices[0].delta.content or '' for c in chunks), chunks[-1].choices[
            0
        ].finish_reason

    assert text(stop=' two') == ('You said one', 'stop') and text(stop=['nothing', 'said']) == (
        'You ',
        'stop',
    )
    assert text(max_tokens=8) == ('You said', 'length') and text(stop='threex') == (
        'You said one two three',
        'stop',
    )


@given(
    st.lists(st.text('abX', max_size=4)),
    st.lists(st.text('abX', min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_texts_in_any_pieces(pieces, stops):
    s, text = StopAt(tuple(stops)), ''.join(pieces)
    out = ''.join(map(s.feed, pieces)) + s.rest()
    ends = [e for e in range(1, len(text) + 1) if text[:e].endswith(tuple(stops))]
    if ends:  # the first stop text that is complete counts, as in generation token by token
        longest = max(len(x) for x in stops if text[: ends[0]].endswith(x))
        text = text[: ends[0] - longest]
    assert out == text and s.hit == bool(ends)


def test_tools_go_out_and_results_come_back(there):
    tools = [
        dict(
            type='function',
            function=dict(name=t.name, description=t.description, parameters=t.parameters),
        )
        for t in TOOLS.values()
    ]
    talk = ask('How long is leave?')
    r = there.say(talk, tools=tools)
    (c,) = r.choices[0].message.tool_calls
    assert r.choices[0].finish_reason == 'tool_calls' and r.choices[0].message.content is None
    assert c.function.name == 'workspace.search' and json.loads(c.function.arguments) == {
        'query': 'parental leave'
    }
    talk += [
        r.choices[0].message.model_dump(exclude_none=True),
        dict(role='tool', tool_call_id=c.id, content='{"total": 0}'),
    ]
    m = there.say(talk, tools=tools).choices[0].message
    assert (
        m.content == 'It is twelve weeks.'
        and m.annotations[0].url_citation.title == 'leave.md'
        and m.reasoning_content == 'Read.'
    )
    deltas = [x.choices[0].delta for x in there.say(talk[:1], tools=tools, stream=True)]
    assert [d.tool_calls[0].function.name for d in deltas if d.tool_calls] == ['workspace.search']


def test_no_tools_no_calls(folder):
    "Without tools the model cannot even begin a call."
    with running(folder) as place:
        for n in range(6):
            assert (
                not place.say(f'call {n}', temperature=1.5, seed=n, max_tokens=60)
                .choices[0]
                .message.tool_calls
            )


def test_a_reply_that_is_no_message_is_still_an_answer(there):
    tools = [dict(type='function', function=dict(name='workspace.search'))]
    r = there.say('bad', tools=tools)
    assert r.choices[0].message.content == '' and r.choices[0].finish_reason == 'stop'


def test_errors_have_their_types(there):
    for kw, kind in [
        (dict(model='gpt-9'), openai.NotFoundError),
        (dict(n=2), openai.BadRequestError),
        (dict(temperature=9), openai.BadRequestError),
        (dict(messages=[]), openai.BadRequestError),
        (dict(messages=ask('x' * 3000)), openai.BadRequestError),
        (dict(max_tokens=5000), openai.BadRequestError),
        (dict(response_format=dict(type='xml')), openai.BadRequestError),
        (dict(extra_body=dict(mypt=dict(mode='root'))), openai.BadRequestError),
        (dict(messages=[*ask('a'), *ask('b')]), openai.BadRequestError),
    ]:
        with pytest.raises(kind) as e:
            there.say(**dict(messages='hi') | kw)
        assert e.value.body['message'] and set(e.value.body) == {'message', 'type', 'param', 'code'}
    with pytest.raises(openai.BadRequestError) as e:
        there.say('x' * 3000)
    assert e.value.code == 'context_length_exceeded'


def test_the_models_own_prompt_and_the_clients(there):
    assert there.say('system').choices[0].message.content == 'You are MyPT.'
    assert (
        there.say([dict(role='system', content='Be brief.'), *ask('system')])
        .choices[0]
        .message.content
        == 'Be brief.'
    )
    tool = dict(
        type='function', function=dict(name='weather', description='say the weather', parameters={})
    )
    assert (
        there.say([dict(role='system', content='Hi.'), *ask('system')], tools=[tool])
        .choices[0]
        .message.content
        == 'Hi. Tools: weather {} to say the weather.'
    )


ORDER = {
    'type': 'object',
    'properties': {
        'customer': {
            'type': 'object',
            'properties': {
                'name': {'type': 'string', 'minLength': 2, 'maxLength': 12},
                'age': {'type': 'integer', 'minimum': 18, 'maximum': 99},
            },
            'required': ['name', 'age'],
        },
        'items': {
            'type': 'array',
            'items': {'type': 'string', 'enum': ['apple', 'pear', 'plüm "x"']},
            'minItems': 1,
            'maxItems': 4,
        },
        'note': {'type': 'string', 'maxLength': 8},
    },
    'required': ['customer', 'items'],
}
AS_ORDER = dict(type='json_schema', json_schema=dict(name='order', strict=True, schema=ORDER))


def buy(name='buy', schema=ORDER):
    return dict(type='function', function=dict(name=name, parameters=schema))


def check_order_json(text):
    jsonschema.Draft202012Validator(ORDER).validate(json.loads(text))


def joined(chunks):
    "Text and calls of a stream, and why it ended."
    deltas = [c.choices[0].delta for c in chunks]
    calls = [call for d in deltas for call in d.tool_calls or ()]
    return ''.join(d.content or '' for d in deltas), calls, chunks[-1].choices[0].finish_reason


@pytest.mark.parametrize('folder_of', ['byte', 'gpt2:512'])
def test_a_clients_schema_holds_in_200_answers_of_200(tmp_path, folder_of):
    "Streamed and whole, at several temperatures and lengths, of a model that knows nothing."
    checkpoint(tmp_path, kind=folder_of)
    with running(tmp_path) as place:

        def one(n):
            how = dict(
                temperature=(0.7, 1.0, 1.5)[n % 3], seed=n, max_tokens=(90, 130, 160)[n % 9 // 3]
            )
            r = place.say(f'Order {n}.', response_format=AS_ORDER, stream=n % 2 == 1, **how)
            if n % 2:
                text, _, why = joined(list(r))
            else:
                text, why = r.choices[0].message.content, r.choices[0].finish_reason
            assert why == 'stop', text
            check_order_json(text)
            return text

        with ThreadPoolExecutor(16) as pool:
            texts = list(pool.map(one, range(100)))
        assert len(set(texts)) > 40  # they are not all the shortest one


@pytest.mark.parametrize('stream', [False, True])
@pytest.mark.parametrize('choice', ['required', dict(type='function', function=dict(name='buy'))])
def test_a_clients_tool_is_called_as_its_schema_says(folder, stream, choice):
    free = buy('ask', dict(type='object', properties=dict(name=dict(type='array'))))
    with running(folder) as place:

        def one(n):
            how = dict(temperature=1.0, seed=n, max_tokens=160, tool_choice=choice, stream=stream)
            r = place.say(f'Order {n}.', tools=[buy(), free], **how)
            if stream:
                _, (call,), why = joined(list(r))
            else:
                (call,), why = r.choices[0].message.tool_calls, r.choices[0].finish_reason
            assert why == 'tool_calls' and call.id
            if call.function.name == 'buy':
                check_order_json(call.function.arguments)
            else:
                arguments = json.loads(call.function.arguments)
                assert isinstance(arguments.get('name', []), list) and set(arguments) <= {'name'}
            return call.function.name

        with ThreadPoolExecutor(9) as pool:
            names = set(pool.map(one, range(9)))
        assert names == {'buy', 'ask'} if choice == 'required' else names == {'buy'}


def test_calls_that_the_model_begins_itself_are_held_too(folder, monkeypatch):
    "With `auto` a call is no duty, but what is called is legal; too few tokens begin none."
    import mypt.inference.constrain as c

    begun = []

    def begin(self, left):
        out = plain(self, left)
        if self.part == 'start' and out[self.tags['<myPT_toolcall>']]:
            begun.append(left)
            return self._only('<myPT_toolcall>')
        return out

    plain = c.ReplyWatch._begin
    monkeypatch.setattr(c.ReplyWatch, '_begin', begin)
    with running(folder) as place:
        for n in range(6):
            how = dict(temperature=1.0, seed=n, max_tokens=150, tools=[buy()])
            (call,) = place.say(f'Order {n}.', **how).choices[0].message.tool_calls
            check_order_json(call.function.arguments)
        assert len(begun) == 6
        r = place.say('Order.', tools=[buy()], max_tokens=40)
        assert not r.choices[0].message.tool_calls and len(begun) == 6


def test_any_object(folder):
    with running(folder) as place:
        for n in range(8):
            how = dict(temperature=1.0, seed=n, max_tokens=(3, 60)[n % 2])
            r = place.say(f'Say {n}.', response_format=dict(type='json_object'), **how)
            assert isinstance(json.loads(r.choices[0].message.content), dict)


SCHEMA_FAULTS = {
    'uniqueItems': dict(type='array', uniqueItems=True),
    'not is not supported': {'not': {}},
    'if is not supported': {'if': {}, 'then': {}},
    'minLength': dict(type='string', minLength=10**30),
    'items': dict(type='array', items=[{}]),
    'place in the schema itself': {'$ref': 'http://evil.example/x'},
    'grammar': {'$ref': '#/$defs/nowhere'},
    'too few': dict(type='string', minLength=1100),
    'no short text': dict(type='string', minLength=900_000),
    'satisfiable': dict(type='integer', minimum=3, maximum=2),
    'regex': dict(type='string', pattern='(?=a)b'),
    'maximum': dict(type='number', maximum=10**40),
    'minProperties': dict(type='object', minProperties=2),
    '32,000': dict(enum=['x' * 40_000]),
}


@pytest.mark.parametrize('word', SCHEMA_FAULTS)
def test_a_schema_that_cannot_be_held_is_named(folder, word):
    with running(folder) as place:
        schema = dict(type='object', properties=dict(a=SCHEMA_FAULTS[word]), required=['a'])
        wanted = dict(type='json_schema', json_schema=dict(name='x', schema=schema))
        for kw in (
            dict(response_format=wanted),
            dict(tools=[buy('f', schema)], tool_choice='required'),
        ):
            with pytest.raises(openai.BadRequestError, match=word) as e:
                place.say('hi', **kw)
            assert '\n' not in e.value.body['message'], word


@pytest.mark.parametrize(
    'choice, why',
    [
        ('required', 'tools'),
        (dict(type='function', function=dict(name='sell')), 'in tools'),
        ('any', 'required'),
        (['auto'], 'required'),
    ],
)
def test_a_choice_that_cannot_be_made_is_named(there, choice, why):
    tools = [] if choice == 'required' else [buy()]
    with pytest.raises(openai.BadRequestError, match=why):
        there.say('hi', extra_body=dict(tools=tools, tool_choice=choice))
    with pytest.raises(openai.BadRequestError, match='comes twice'):
        there.say('hi', tools=[buy(), buy()])


def test_seeds(folder):
    with running(folder) as place:

        def said(**kw):
            reply = place.say('Hello', temperature=1.0, max_tokens=20, **kw)
            return reply.choices[0].message.content

        assert (
            said(seed=5) == said(seed=5)
            and len({said(seed=n) for n in range(4)}) > 1
            and said(seed=2**63)
        )


def test_agent_mode_shows_its_trace(there):
    chunks = list(
        there.say('How long is leave?', stream=True, extra_body=dict(mypt=dict(mode='agent')))
    )
    trace = [c.mypt['trace'] for c in chunks if 'trace' in (getattr(c, 'mypt', None) or {})]
    assert (
        [t['kind'] for t in trace] == ['call', 'result']
        and trace[0]['think'] == 'Look.'
        and 'twelve' in trace[1]['text']
    )
    end = chunks[-1].mypt
    assert end['stopped'] == 'answer' and end['sources'] == [dict(doc_id='leave.md', title='Leave')]
    assert ''.join(c.choices[0].delta.content or '' for c in chunks) == 'It is twelve weeks.'
    assert [m['role'] for m in end['messages']] == ['user', 'assistant', 'tool', 'assistant']
    r = there.say([*end['messages'], *ask('again')], extra_body=dict(mypt=dict(mode='agent')))
    assert r.choices[0].message.content == '5' and r.usage.completion_tokens == 2


def test_passages_mode(there):
    r = there.say('What about parental things?', extra_body=dict(mypt=dict(mode='rag')))
    assert (
        r.choices[0].message.content == 'Twelve weeks.'
        and r.mypt['sources'][0]['doc_id'] == 'leave.md'
    )
    assert '[1] (leave.md) Parental leave' in r.mypt['messages'][0]['context']


def test_an_agents_thread_ends_with_its_client(there):
    Scripted.slow = 0.02
    try:
        before = threading.active_count()
        for _ in range(3):
            stream = there.say(
                'How long is leave?', stream=True, extra_body=dict(mypt=dict(mode='agent'))
            )
            next(iter(stream))
            stream.close()
        wait(lambda: there.app.at_work == 0 and not there.hosts['rambler'].engine.busy)
        assert not there.hosts['rambler'].queues
        assert threading.active_count() <= before + 8  # the pool's own, at most
    finally:
        Scripted.slow = 0.0


def wait(true, seconds=8):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, 'did not happen in time'
        time.sleep(0.02)


# Messages


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False))
def test_messages_round_trip(rng):

    def letters():
        return ''.join(rng.choice('ab <>"é\n') for _ in range(rng.randint(0, 9))) + 'x'

    ep = random_episode(rng, letters)
    ep['messages'] = [m for m in ep['messages'] if m['role'] != 'assistant_context']
    while ep['messages'][-1]['role'] != 'user':
        ep['messages'].pop()
    assert to_episode(json.loads(json.dumps(to_messages(ep)))) == check_episode(ep)


KEYS = """role content tool_calls function name arguments id type text tool_call_id annotations
url_citation start_index title parameters properties mode context reasoning_content""".split()
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(KEYS), x, max_size=5),
    max_leaves=12,
)
roles = st.sampled_from(['system', 'user', 'assistant', 'tool', 'developer', 'me'])
message = st.fixed_dictionaries(
    {'role': roles}, optional={k: anything for k in KEYS if k != 'role'}
)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {'model': st.just('rambler')},
        optional=dict(
            messages=st.lists(message, max_size=4) | anything,
            tools=anything,
            tool_choice=anything,
            stop=anything,
            temperature=anything,
            seed=anything,
            max_tokens=anything,
            mypt=anything,
            stream=anything,
            stream_options=anything,
            n=anything,
            response_format=anything,
        ),
    )
)
def test_any_json_is_an_ask_or_one_line(body):
    try:
        got = read_body(body)
    except ApiError as e:
        assert '\n' not in str(e) and e.status == 400
    else:
        assert got.episode['messages'] and prompt_ids(got.episode, tok)


def tool_turns(**function):
    calls = [dict(id='a', function=dict(name='f') | function)]
    result = dict(role='tool', tool_call_id='a', content='1')
    return dict(messages=[*ask('x'), dict(role='assistant', tool_calls=calls), result])


ONE = dict(type='function', function=dict(name='f'))
WRONG_BUT_EMPTY = [
    *(dict(tools=x) for x in ({}, '', 0, False)),
    *(dict(tools=[ONE], tool_choice=x) for x in (0, {}, False, '')),
    *(dict(tools=[buy('f', x)]) for x in ([], 0, '', dict(properties=[]))),
    dict(tools=[dict(type='function', function=dict(name='f', description=[]))]),
    dict(tools=[ONE], tool_choice=dict(type='custom', function=dict(name='f'))),
    *(dict(mypt=x) for x in ([], 0, '')),
    *(dict(stream_options=x) for x in ([], 0, dict(include_usage='no'), dict(include_usage=0))),
    *(tool_turns(arguments=x) for x in (0, [], False)),
    *(
        dict(messages=[*ask('x'), dict(role='assistant', content='y') | x, *ask('z')])
        for x in (dict(reasoning_content=0), dict(annotations={}), dict(tool_calls={}))
    ),
]


@pytest.mark.parametrize('more', WRONG_BUT_EMPTY)
def test_an_empty_value_of_a_wrong_type_is_not_taken_as_absent(more):
    with pytest.raises(ApiError):
        read_body(dict(model='m', messages=ask('x')) | more)


def test_null_is_a_value_left_out():
    left_out = dict.fromkeys(('tools', 'tool_choice', 'mypt', 'stream_options', 'seed'))
    assert read_body(dict(model='m', messages=ask('x')) | left_out).wants.tools == {}
    assert read_body(dict(model='m') | tool_turns(arguments='')).episode['messages'][1]


def test_a_long_key_around_many_numbers_costs_little():
    "The path of every number was built, with the key of 450 KB in it."
    given = '{"' + 'k' * 450_000 + '":[' + '0,' * 200_000 + '0]}'
    start = time.thread_time()
    read_body(dict(model='m') | tool_turns(arguments=given))
    assert time.thread_time() - start < 2
    deep = '{"k": [0, {"x": ' + '[' * 32 + ']' * 32 + '}]}'
    with pytest.raises(ApiError, match=r'arguments\.k\[1\]\.x\[0\]'):
        read_body(dict(model='m') | tool_turns(arguments=deep))


@given(
    st.lists(st.sampled_from([*TAGS, 'text', '\n', '"']), min_size=1).map(
        lambda x: ' '.join(['x', *x])
    )
)
def test_content_never_makes_a_tag(text):
    plain = prompt_ids(
        to_episode([dict(role='system', content='x'), dict(role='user', content='x', context='x')]),
        tok,
    )
    ids = prompt_ids(
        to_episode(
            [dict(role='system', content=text), dict(role='user', content=text, context=text)]
        ),
        tok,
    )
    assert [i for i in ids if i >= tok.endoftext] == [i for i in plain if i >= tok.endoftext]


# Many at once


def test_32_clients_get_their_own_answers(folder):
    model = checkpoint(folder)
    questions = [f'What is {i}?' for i in range(64)]
    prompts = [prompt_ids(dict(system='You are MyPT.', messages=ask(q)), tok) for q in questions]
    expected = [ids for p in prompts for ids in generate(model, tok, [p], 16, allow=[NoCalls(tok)])]
    with running(folder, slots=8) as place:

        async def one(client, k):
            out = []
            for i in (k, k + 32):
                stream = await client.chat.completions.create(
                    model='rambler',
                    messages=ask(questions[i]),
                    max_tokens=16,
                    stream=True,
                    stream_options=dict(include_usage=True),
                )
                text, used = '', 0
                async for c in stream:
                    if c.choices:
                        text += c.choices[0].delta.content or ''
                    if c.usage:
                        used = c.usage.completion_tokens
                out.append((i, text, used))
            return out

        async def everybody():
            clients = [
                openai.AsyncOpenAI(base_url=place.client.base_url, api_key='x', max_retries=0)
                for _ in range(32)
            ]
            return [
                x
                for xs in await asyncio.gather(*(one(c, k) for k, c in enumerate(clients)))
                for x in xs
            ]

        for i, text, used in asyncio.run(everybody()):
            from mypt.serve.session import Reading

            reading = Reading(tok)
            assert text == ''.join(
                t for id in expected[i] for kind, t in reading.feed(id) if kind == 'text'
            ) and used == len(expected[i])
        assert not place.hosts['rambler'].queues and not place.hosts['rambler'].engine.busy


def test_who_leaves_makes_room(there):
    Scripted.slow = 0.02
    try:
        streams = [there.say('long', stream=True) for _ in range(4)]
        for s in streams:
            next(iter(s))
        host = there.hosts['rambler']
        assert len(host.queues) == 4
        for s in streams:
            s.close()
        wait(lambda: not host.queues and not host.engine.busy and there.app.at_work == 0)
        body = json.dumps(
            dict(model='rambler', messages=ask('long'))
        ).encode()  # one that is not streamed
        with socket.create_connection(('127.0.0.1', there.port)) as s:
            s.sendall(POST + f'Content-Length: {len(body)}\r\n\r\n'.encode() + body)
            wait(lambda: host.queues)
        wait(lambda: not host.queues and there.app.at_work == 0)
    finally:
        Scripted.slow = 0.0


def test_too_many_are_told_to_come_back(there):
    Scripted.slow = 0.02
    try:
        streams = [there.say('long', stream=True) for _ in range(8)]
        with pytest.raises(openai.RateLimitError):
            there.say('hello')
        assert there.http()[0] == 200
        for s in streams:
            s.close()
        wait(lambda: there.app.at_work == 0)
        assert there.say('hello').choices[0].message.content == 'You said hello'
    finally:
        Scripted.slow = 0.0


def test_out_of_time(there):
    Scripted.slow = 0.2
    try:
        with pytest.raises(openai.APIStatusError) as e:
            there.say('long')
        assert e.value.status_code == 408
        with pytest.raises(openai.APIError, match='out of time'):
            list(there.say('long', stream=True))
        wait(lambda: there.app.at_work == 0 and not there.hosts['rambler'].queues)
    finally:
        Scripted.slow = 0.0


def test_a_model_that_fails_goes_on(there, capfd):
    Scripted.fails = 1
    with pytest.raises(openai.InternalServerError):
        there.say('hello')
    Scripted.fails = 1
    with pytest.raises(openai.APIError):
        list(there.say('hello', stream=True))
    assert there.say('hello').choices[0].message.content == 'You said hello'
    err = capfd.readouterr().err
    assert 'CUDA is on fire' in err and 'Traceback' not in err


def test_a_bad_request_harms_only_itself(folder, monkeypatch, capfd):
    "Numbers that no float32 holds, and a row that fails: the others get what they get alone."

    def said(place, n, **kw):
        r = place.say(f'What is {n}?', max_tokens=24, **kw)
        return r.choices[0].message.content

    def bad(place):
        with pytest.raises(openai.InternalServerError):
            said(place, 99, temperature=1.999)

    def pick(logits, sampling, *rest):
        if sampling.temperature == 1.999:
            raise RuntimeError('this row has a fault')
        return plain(logits, sampling, *rest)

    import mypt.inference.generate as g

    plain = g.pick
    monkeypatch.setattr(g, 'pick', pick)
    with running(folder) as place:
        how = [dict(temperature=n % 2, seed=n) for n in range(6)]
        alone = [said(place, n, **kw) for n, kw in enumerate(how)]
        greedy = said(place, 7)
        with ThreadPoolExecutor(9) as pool:
            others = [pool.submit(said, place, n, **kw) for n, kw in enumerate(how)]
            cold = pool.submit(said, place, 7, temperature=5e-324)
            faults = [pool.submit(bad, place) for _ in range(2)]
            assert [o.result() for o in others] == alone and cold.result() == greedy
            assert [f.result() for f in faults] == [None, None]
    err = capfd.readouterr().err
    assert 'this row has a fault' in err and 'Traceback' not in err


def test_weights_that_are_no_numbers_say_so(tmp_path, capfd):
    model = checkpoint(tmp_path)
    for p in model.parameters():
        p.data.fill_(float('nan'))
    save_checkpoint(tmp_path / 'rambler', model, tok)
    with running(tmp_path) as place, pytest.raises(openai.InternalServerError):
        place.say('hello')
    (line,) = capfd.readouterr().err.splitlines()
    assert 'no numbers (NaN)' in line
    with pytest.raises(UserError, match='no numbers'):
        generate(model, tok, [[1, 2]], 3, temperature=1.0)


def test_a_broken_checkpoint_is_the_operators_business(tmp_path, capfd):
    checkpoint(tmp_path)
    (tmp_path / 'rambler/model.safetensors').write_bytes(b'junk')
    with running(tmp_path) as place, pytest.raises(openai.APIStatusError) as e:
        place.say('hello')
    assert (
        e.value.status_code == 503
        and str(tmp_path) not in str(e.value)
        and 'damaged' in capfd.readouterr().err
    )


# Hostile

BODIES = [
    b'',
    b'{',
    b'[]',
    b'null',
    b'"x"',
    b'{"a":' * 100_000,
    b'[' * 500_000,
    b'\xff\xfe{}',
    b'{"model": NaN}',
    b'{"model": 1e999}',
    b'{"model": "rambler", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "rambler", "messages": {"0": 1}}',
    b'{"model": "rambler", "messages": [{"role": "user", "content": "a\\u0000b"}]}',
    b'{"model": "rambler", "seed": ' + b'9' * 5000 + b'}',
    b'{"model": "../../etc", "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "\\udcff", "messages": [{"role": "user", "content": "x"}]}',
    b'{"' + b'k' * 900_000 + b'": 1}',
    b'{"model": "rambler", "messages": [{"role": "user", "content": ""}]}',
    *(
        b'{"model": "rambler", "messages": [{"role": "user", "content": "x"}], ' + more + b'}'
        for more in (
            b'"mypt": {"mode": ["chat"]}',
            b'"mypt": {"mode": {}}',
            b'"temperature": 1' + b'0' * 400,
            b'"top_p": -1' + b'0' * 400,
            b'"stop": "\\udc80"',
            b'"seed": [1]',
            b'"tool_choice": {"type": "function"}',
            b'"tools": [{"type": "function", "function": {"name": ["x"]}}]',
            b'"tools": [{"type": "function", "function": {"name": "\\ud800"}}]',
            b'"user": ' + b'[' * 900 + b']' * 900 + b', "n": 2',
        )
    ),
    b'{"model": ["rambler"], "messages": [{"role": "user", "content": "x"}]}',
    b'{"model": "rambler", "messages": [{"role": ["user"], "content": "x"}]}',
    b'{"model": "rambler", "messages": [{"role": "assistant", "tool_calls": [{"id": "a", '
    b'"function": {"name": "f", "arguments": "{\\"x\\": \\"\\\\ud800\\"}"}}]}]}',
]


def test_bodies(there, capfd):
    for b in BODIES:
        status, said, head = there.http('POST', CHAT_PAGE, b)
        assert status in (400, 404) and set(said['error']) == {
            'message',
            'type',
            'param',
            'code',
        }, (b[:60], status, said)
        assert 'Traceback' not in str(said) and 'content-security-policy' in head
    assert there.say('hello').choices and capfd.readouterr().err == ''


GARBAGE = [
    b'\x00' * 100,
    b'\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03' + bytes(200),
    b'GET\r\n\r\n',
    b'GET / HTTP/9.9\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: localhost\r\nX: ' + b'a' * 200_000 + b'\r\n\r\n',
    b'PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n',
    b'GET /' + b'a' * 100_000 + b' HTTP/1.1\r\n\r\n',
    b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n',
    b'POST '
    + CHAT_PAGE.encode()
    + b' HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n',
    b'POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n'
    b'Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n',
    b'GET /\xff\xfe HTTP/1.1\r\nHost: \xff\r\n\r\n',
    b'GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n',
    b'\r\n' * 50_000,
]


def test_garbage_on_the_wire(there, capfd):
    for g in GARBAGE:
        out = there.raw(g)
        assert not out or out.startswith(b'HTTP/1.1 4'), (g[:40], out[:200])
        assert b'Traceback' not in out
    rng = random.Random(3)
    for _ in range(60):
        there.raw(
            bytes(rng.choices(b'GET POST /v1 HTTP/1.1\r\n\r\n:\x00\xffhost', k=rng.randint(1, 300)))
            + b'\r\n\r\n',
            2,
        )
    assert there.say('hello').choices and 'Traceback' not in capfd.readouterr().err


def test_too_big(there):
    assert there.raw(POST + b'Content-Length: 99999999999\r\n\r\n').startswith(b'HTTP/1.1 413')
    assert there.raw(POST + b'Content-Length: ' + b'9' * 400 + b'\r\n\r\n').startswith(
        b'HTTP/1.1 4'
    )
    out = there.raw(
        POST + b'Transfer-Encoding: chunked\r\n\r\n' + (b'10000\r\n' + b'x' * 65536 + b'\r\n') * 40
    )
    assert not out or out.startswith(b'HTTP/1.1 413')
    wait(lambda: there.app.at_work == 0)


@pytest.mark.parametrize('size', [b'F' * 18, b'7FFFFFFF', b'10000000;x=y'])
def test_a_piece_longer_than_any_body_is_refused_at_once(there, size):
    "To wait for its bytes would keep a place until patience ends."
    out = there.raw(POST + b'Transfer-Encoding: chunked\r\n\r\n' + size + b'\r\n{')
    assert out.startswith(b'HTTP/1.1 400'), out[:99]  # not 408, which is what patience says
    wait(lambda: there.app.at_work == 0)


def test_too_slow(there):
    start = time.monotonic()
    assert there.raw(b'GET / HTTP/1.1\r\nHost: loc') == b''  # a head that never ends
    assert there.raw(b'') == b''
    out = there.raw(POST + b'Content-Length: 50\r\n\r\n{')
    assert out.startswith(b'HTTP/1.1 408') and b'"timeout"' in out and time.monotonic() - start < 8
    with socket.create_connection(
        ('127.0.0.1', there.port), 10
    ) as s:  # the second head on a connection
        s.sendall(b'GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n')
        assert s.recv(1 << 16).startswith(b'HTTP/1.1 200')
        s.sendall(b'GET /health HT')
        s.settimeout(6)
        while s.recv(1 << 16):
            pass


@contextlib.contextmanager
def many(place, n, data=b''):
    "So many connections that send this and then nothing."
    with contextlib.ExitStack() as stack:
        for _ in range(n):
            s = stack.enter_context(socket.create_connection(('127.0.0.1', place.port), 10))
            with contextlib.suppress(ConnectionError):
                s.sendall(data)
        yield


@pytest.mark.parametrize('data', [b'', b'GET / HT', POST + b'Content-Length: 50\r\n\r\n{'])
def test_those_who_say_nothing_shut_nobody_out(folder, data):
    "Neither idle connections nor slow bodies take the places of clients that ask."
    limits = Limits(patience=5.0, at_once=4, waiting=12)
    with running(folder, limits, engine=Scripted) as place:
        assert place.say('hello').choices
        Scripted.slow = 0.01
        try:
            stream = iter(place.say('long', stream=True))
            next(stream)
            with many(place, 60, data):
                start = time.monotonic()
                assert place.http()[0] == 200
                body = json.dumps(dict(model='rambler', messages=ask('hello'))).encode()
                status, said, _ = place.http('POST', CHAT_PAGE, body)
                assert status == 200, said
                assert said['choices'][0]['message']['content'] == 'You said hello'
                assert time.monotonic() - start < 3
                wait(lambda: place.app.at_work == 1)
            assert sum(1 for _ in stream) > 100  # an answer at work is not cut off
        finally:
            Scripted.slow = 0.0


class Hostile:
    "One client that does everything wrong, in several threads, until it is told to stop."

    def __init__(self, place):
        self.place, self.stop = place, threading.Event()
        self.done = Counter()
        self.acts = [
            self.numbers,
            self.slow_bodies,
            self.leaves_a_stream,
            self.leaves_before_the_answer,
            self.huge,
            self.malformed,
            self.garbage,
            self.schemas,
            self.idle,
        ]

    def run(self, seed):
        rng = random.Random(seed)
        while not self.stop.is_set():
            act = rng.choice(self.acts)
            with contextlib.suppress(OSError, openai.APIError):
                act(rng)
            self.done[act.__name__] += 1

    def post(self, **body):
        body = dict(model='rambler', messages=ask('x')) | body
        return self.place.http('POST', CHAT_PAGE, json.dumps(body).encode())

    def numbers(self, rng):
        key, value = rng.choice(
            [
                ('temperature', 5e-324),
                ('temperature', 1e-40),
                ('temperature', 2),
                ('top_p', 1e-6),
                ('repetition_penalty', 100),
                ('repetition_penalty', 0.01),
                ('top_k', 10**6),
                ('temperature', -1),
                ('seed', 2**64),
                ('max_tokens', 10**6),
            ]
        )
        self.post(**{key: value, 'temperature': value if key == 'temperature' else 1.0})

    def slow_bodies(self, rng):
        with contextlib.ExitStack() as stack:
            for _ in range(16):
                s = stack.enter_context(socket.create_connection(('127.0.0.1', self.place.port)))
                s.sendall(POST + b'Content-Length: 5000\r\n\r\n{')
            for _ in range(5):
                s.sendall(b' ')
                self.stop.wait(0.1)

    def leaves_a_stream(self, rng):
        stream = self.place.say('long', stream=True, max_tokens=200)
        for _ in range(rng.randrange(3)):
            next(iter(stream))
        stream.close()

    def leaves_before_the_answer(self, rng):
        body = json.dumps(dict(model='rambler', messages=ask('x'), max_tokens=300)).encode()
        head = f'Content-Length: {len(body)}\r\n\r\n'.encode()
        with socket.create_connection(('127.0.0.1', self.place.port)) as s:
            s.sendall(POST + head + body[: rng.choice([5, len(body)])])
            self.stop.wait(rng.random() / 5)

    def huge(self, rng):
        self.place.raw(POST + b'Content-Length: 99999999999\r\n\r\n', 2)
        self.post(messages=ask('x' * rng.choice([3000, 900_000, 3_000_000])))

    def malformed(self, rng):
        self.place.http('POST', CHAT_PAGE, rng.choice(BODIES))

    def garbage(self, rng):
        self.place.raw(rng.choice(GARBAGE), 2)

    def schemas(self, rng):
        wild = dict(
            type='string', pattern=rng.choice(['(a+)+b', '^(.*a.{50}){2}$', '(x|xx|xxx)*y'])
        )
        schema = rng.choice([*SCHEMA_FAULTS.values(), wild])
        name = dict(name='x', schema=dict(type='object', properties=dict(a=schema)))
        self.post(response_format=dict(type='json_schema', json_schema=name), max_tokens=60)

    def idle(self, rng):
        with many(self.place, 64):
            self.stop.wait(0.2)


@pytest.mark.parametrize('seconds', [8, pytest.param(600, marks=pytest.mark.slow)])
def test_64_clients_and_one_of_them_hostile(folder, seconds, capfd):
    "The others get each answer whole, and it is the one that they get alone."
    seconds = float(os.environ.get('HOSTILE_SECONDS') or seconds) if seconds > 60 else seconds
    with running(folder, Limits(at_once=128, patience=5.0, seconds=240.0)) as place:

        def said(n):
            more = dict(response_format=AS_ORDER) if n % 4 == 3 else {}
            how = dict(
                temperature=float(n % 2), seed=n, max_tokens=90 if more else 12, stream=n % 3 == 0
            )
            r = place.say(f'What is {n}?', timeout=280, **how, **more)
            if n % 3 == 0:
                return joined(list(r))[0]
            return r.choices[0].message.content

        alone = {n: said(n) for n in range(24)}
        hostile = Hostile(place)
        end = time.monotonic() + seconds

        def honest(k):
            made = 0
            while time.monotonic() < end or not made:
                n = (k + 7 * made) % 24
                assert said(n) == alone[n]
                made += 1
            return made

        with ThreadPoolExecutor(63 + 6) as pool:
            bad = [pool.submit(hostile.run, seed) for seed in range(6)]
            try:
                made = [f.result() for f in [pool.submit(honest, k) for k in range(63)]]
            finally:
                hostile.stop.set()
            [f.result() for f in bad]
        wait(lambda: place.app.at_work == 0 and not place.hosts['rambler'].engine.busy)
        assert not place.hosts['rambler'].queues and all(made)
        with capfd.disabled():
            print(f'\n{sum(made)} answers beside', dict(hostile.done))
    assert 'Traceback' not in capfd.readouterr().err


TWICE = b'Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n'


@pytest.mark.parametrize('line', [b'POST /nothing', b'GET /health'])
def test_a_body_that_breaks_off_after_its_answer(there, line, capfd):
    head = line + b' HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n'
    with socket.create_connection(('127.0.0.1', there.port), 5) as s:
        s.sendall(head)
        assert s.recv(1 << 16).startswith(b'HTTP/1.1')
        time.sleep(0.2)
        with contextlib.suppress(ConnectionError):
            s.sendall(b'ZZ\r\n')
            while s.recv(1 << 16):  # until it is closed
                pass
    assert 'Traceback' not in capfd.readouterr().err


def test_two_ways_to_read_a_request(there):
    "What another server could read as another request is refused."
    assert b'"two_lengths"' in there.raw(POST + TWICE)
    head = b'GET /health HTTP/1.1\r\nHost: localhost\r\n'
    fine = head + b'Connection: close\r\n\r\n'
    assert there.raw(fine).startswith(b'HTTP/1.1 200')
    for bad in (
        fine.replace(b'\r\n', b'\n'),
        head.replace(b'1.1\r', b'1.1') + b'\r\n',
        head + b'X: a\nY: b\r\n\r\n',
        head + b'\n',
    ):
        assert there.raw(bad).startswith(b'HTTP/1.1 400'), bad
    second = there.raw(head + b'\r\n' + fine.replace(b'\r\n', b'\n'))  # behind a good one
    assert second.count(b'HTTP/1.1 200') == 1 and b'HTTP/1.1 400' in second


def test_who_may_ask(there):
    ok = dict(model='rambler', messages=ask('hi'))
    body, me = json.dumps(ok).encode(), f'http://127.0.0.1:{there.port}'

    def post(**headers):
        return there.http('POST', CHAT_PAGE, body, **headers)[0]

    assert post() == post(Origin=me) == 200
    for host in (
        'evil.example',
        f'evil.example:{there.port}',
        '10.0.0.1',
        '',
        'localhost.evil.example',
        '127.0.0.1.nip.io',
        '[::1',
        '[::2]:80',
    ):
        assert post(Host=host) == 403, host
    assert post(Host='localhost') == post(Host='[::1]:80') == 200
    for origin in (
        'http://evil.example',
        'null',
        'https://127.0.0.1',
        f'http://localhost:{there.port}',
        '',
    ):
        assert post(Origin=origin) == 403, origin
    assert post(Sec_Fetch_Site='cross-site') == 403 and post(Sec_Fetch_Site='same-origin') == 200
    for kind in (
        'text/plain',
        'application/x-www-form-urlencoded',
        'multipart/form-data; boundary=x',
        '',
    ):
        assert post(Content_Type=kind) == 415
    assert there.http('OPTIONS', CHAT_PAGE, Origin='http://evil.example')[0] == 403
    assert 'access-control' not in there.http('OPTIONS', CHAT_PAGE)[2]


def test_paths_stay_inside(there, tmp_path):
    assert there.http(path='/v1/documents/leave.md')[1]['text'] == DOCS[0].text
    for path in (
        '../../../../etc/passwd',
        '/etc/passwd',
        '%2e%2e%2f%2e%2e%2fetc%2fpasswd',
        '..%5c..%5cx',
        'leave.md%00',
        '%ff',
        '.',
    ):
        for base in ('/v1/documents/', '/v1/models/', '/', '/chat.js/'):
            assert there.http(path=base + path)[0] in (404, 400), base + path
    assert there.http(path='/docs')[0] == there.http(path='/openapi.json')[0] == 404
    assert there.http('DELETE', '/v1/models')[0] == 405 and there.http('GET', CHAT_PAGE)[0] == 405


def test_a_token(folder):
    with running(folder, workspace=Workspace.of(DOCS), token='a very long secret') as place:
        assert place.client.models.list().data
        for given in (
            None,
            'Bearer',
            'Bearer wrong',
            'Bearer a very long secre',
            'a very long secret!',
            'Basic x',
            'Bearer \xff',
        ):
            for path in ('/v1/models', '/v1/documents', '/v1/documents/leave.md', '/nothing'):
                status, said, _ = place.http(path=path, Authorization=given)
                assert (
                    status == 401
                    and said['error']['code'] == 'invalid_api_key'
                    and 'leave' not in str(said)
                )
        assert place.http('POST', CHAT_PAGE, b'{}')[0] == 401 and place.http('POST', '/')[0] == 401
        assert (
            place.http(path='/')[0] == 200
            and place.hosts['rambler']  # is loaded now, which nobody learns without the token
            and 'rambler' not in str(place.http(path='/health'))
            and place.http(Host='my-box:8000', Authorization='Bearer a very long secret')[0] == 200
        )


def test_starting(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv('MYPT_TOKEN', raising=False)
    model = [str(folder / 'rambler')]
    for kw, why in [
        (dict(host='0.0.0.0'), 'MYPT_TOKEN'),
        (dict(host='::'), 'MYPT_TOKEN'),
        (dict(host=''), 'MYPT_TOKEN'),
        (dict(host='0.0.0.0', token='short'), '16'),
        (dict(models=['nowhere']), 'no such model'),
        (dict(port=99999), 'listen'),
    ]:
        with pytest.raises(UserError, match=why):
            serve(**dict(models=model) | kw)
    with socket.create_server(('127.0.0.1', 0)) as s, pytest.raises(UserError, match='--port'):
        serve(model, port=s.getsockname()[1])
    (tmp_path / 'token').write_text('two words\n')
    for kw, why in [
        (dict(token_file=str(tmp_path / 'token')), 'one word; found 2'),
        (dict(token_file=str(tmp_path / 'none')), 'cannot be read'),
        (dict(token_file=str(tmp_path / 'token'), token='a' * 20), 'not both'),
    ]:
        with pytest.raises(UserError, match=why):
            serve(model, **kw)
    (tmp_path / 'token').write_text('a-very-long-secret\n')
    serve(model, host='0.0.0.0', token_file=str(tmp_path / 'token'), check=True)
    monkeypatch.setenv('MYPT_TOKEN', 'a-very-long-secret')
    serve(model, host='0.0.0.0', check=True)
    monkeypatch.setenv('MYPT_TOKEN', 'short')
    with pytest.raises(UserError, match='shorter than 16'):
        serve(model, check=True)
    monkeypatch.delenv('MYPT_TOKEN')
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match='train one'):
        serve()
    serve(model, check=True)
    assert 'rambler' in capsys.readouterr().out


def test_a_cell_of_a_notebook_serves(folder, capsys):
    "It runs inside of an event loop: the server has a thread of its own there."
    model = [str(folder / 'rambler')]

    async def cell():
        serve(model, check=True)
        assert 'rambler: ' in capsys.readouterr().out
        with serve(model, port=0) as running:
            assert running.url in capsys.readouterr().out and 'at work' in repr(running)
            port = int(running.url.rpartition(':')[2])
            with pytest.raises(UserError, match='--port'):
                serve(model, port=port)
            return running, await asyncio.to_thread(get_json, running.url + '/v1/models'), port

    running, models, port = asyncio.run(cell())
    assert [m['id'] for m in models['data']] == ['rambler'] and 'stopped' in repr(running)
    socket.create_server(('127.0.0.1', port)).close()  # the port is free again


def get_json(url):
    with urllib.request.urlopen(url, timeout=20) as answer:
        return json.load(answer)


def test_the_command_starts_and_stops(folder):
    argv = [
        sys.executable,
        '-m',
        'mypt.cli',
        'serve',
        '--models',
        str(folder / 'rambler'),
        '--port',
        '0',
    ]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as p:
        url = p.stdout.readline().split()[0]
        client = openai.OpenAI(base_url=f'{url}/v1', api_key='x')
        assert (
            client.chat.completions.create(
                model='rambler', messages=ask('hi'), max_tokens=3
            ).usage.completion_tokens
            <= 3
        )
        p.send_signal(2)
        assert p.wait(20) in (0, 130, -2) and 'Traceback' not in p.stderr.read()


# The page

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason='no Chromium')


@pytest.fixture(scope='module')
def browser(there):
    with Browser() as b:
        yield b


def load(b, there):
    b.open(f'{there.url}/')
    b.wait(
        "document.querySelectorAll('#model option').length == 2 && "
        "!document.querySelector('[value=agent]').disabled"
    )
    return b


DONE = (
    "document.getElementById('send').textContent == 'Send' && "
    "document.querySelector('article:last-child')?.ariaBusy == 'false'"
)


def chat(b, text, mode='chat'):
    b.js(
        f"document.querySelector('[value={mode}]').click(); document.getElementById('ask').focus()"
    )
    b.type(text)
    b.press('Enter')
    b.wait(DONE)
    return b.js("document.querySelector('article:last-child .said').textContent")


@needs_browser
def test_page_talks(browser, there):
    b = load(browser, there)
    assert chat(b, 'hello') == 'You said hello' and chat(b, 'again') == '3'
    b.js("document.getElementById('model').value = 'second'")
    assert chat(b, 'How long is leave?', 'agent') == 'It is twelve weeks.'
    assert (
        b.js("document.querySelector('article:last-child .trace summary').textContent")
        == '1 tool call'
    )
    assert b.js(
        "[...document.querySelectorAll('article:last-child .trace li b')].map(e => e.textContent)"
    ) == ['Call', 'Result']
    assert not b.js("document.querySelector('article:last-child .think').open")
    assert b.js("document.querySelector('.think .inside').textContent") == 'Read.'
    b.js("document.querySelector('.sources a').click()")
    b.wait(
        "document.getElementById('paper').open && "
        "document.getElementById('paper-text').textContent != ''"
    )
    assert b.js("document.getElementById('paper-text').textContent") == DOCS[0].text
    b.press('Escape')
    assert chat(b, 'again', 'chat') == '9' and chat(b, 'parental', 'rag') == 'Twelve weeks.'
    b.js("document.getElementById('fresh').click()")
    assert chat(b, 'again', 'chat') == '1' and not b.problems((there.url,))


@needs_browser
def test_page_goes_on_after_an_answer_that_was_cut_off(browser, there):
    b = load(browser, there)
    b.js("document.getElementById('fresh').click()")
    b.js("document.getElementById('tokens').value = '5'")
    assert chat(b, 'parental', 'rag') == 'Twelv'
    b.js("document.getElementById('tokens').value = ''")
    assert chat(b, 'again', 'chat') == '3'


@needs_browser
def test_page_renders_markdown_and_loads_nothing(browser, there):
    b = load(browser, there)
    chat(b, 'markdown')
    one = "document.querySelector('article:last-child .said')"

    def texts(selector):
        return b.js(f'[...{one}.querySelectorAll({selector!r})].map(e => e.textContent)')

    assert texts('h3, strong, em, p > code') == ['Title', 'strong', 'weak', 'code', '2']
    assert texts('ol > li > p') == ['first', 'second'] and texts('ol li ul li') == ['inner']
    assert texts('blockquote') == ['quoted'] and texts('th, td') == ['a', 'b', '1', '2']
    assert texts('pre code') == ['if x < 1: print("<b>")'] and texts('.copy') == ['Copy python']
    assert b.js(f"[...{one}.querySelectorAll('a')].map(a => a.href + ' ' + a.rel)") == [
        'https://example.org/a noopener noreferrer',
        'https://example.org/b_c noopener noreferrer',
    ]
    assert texts('.picture') == ['[picture: eye]'] and 'snake_case stays' in texts('p')[0]
    assert ', bad, data and' in texts('p')[0] and '<img src=' in texts('p')[0]
    assert b.js("document.querySelectorAll('img').length") == 0 and b.js('document.title') == (
        'mypt chat'
    )
    assert not b.problems((there.url,))


NASTY = [
    '*' * 40_000,
    '`' * 40_000,
    '[' * 40_000,
    '](' * 20_000,
    '_a' * 20_000,
    '> ' * 20_000,
    '- ' * 20_000,
    '|' * 40_000 + '\n' + '|-' * 20_000,
    '![' * 20_000,
    'https://' * 5_000,
    '\n' * 40_000,
    ' ' * 40_000 + 'x',
    '```\n' * 10_000,
    '- - -' * 8_000,
    '**a' * 13_000,
    '<!--' * 10_000,
]


@needs_browser
def test_markdown_takes_any_text_in_linear_time(browser, there):
    b = load(browser, there)
    for text in NASTY:
        start = time.monotonic()
        n = b.js(
            f'(t => {{ const d = document.createElement("div"); markdown(t, d); '
            f'return d.textContent.length }})({json.dumps(text)})'
        )
        assert n <= len(text) + 100 and time.monotonic() - start < 8, text[:10]


@needs_browser
def test_page_keeps_conversations(browser, there):
    b = load(browser, there)
    b.js('localStorage.clear(); newChat()')
    chat(b, 'hello')
    chat(b, 'How long is leave?', 'agent')
    b.js("document.getElementById('fresh').click()")
    chat(b, 'other', 'chat')
    load(b, there)  # a reload
    titles = "[...document.querySelectorAll('#chat-list .open')].map(e => e.textContent)"
    assert b.js(titles) == ['other', 'hello']
    assert b.js("document.querySelectorAll('article').length") == 0
    b.js("document.querySelectorAll('#chat-list .open')[1].click()")
    said = "[...document.querySelectorAll('.said')].map(e => e.textContent)"
    assert b.js(said) == ['hello', 'You said hello', 'How long is leave?', 'It is twelve weeks.']
    shown = "document.querySelector('.sources').textContent + "
    shown += "document.querySelector('.trace summary').textContent"
    assert b.js(shown) == 'Sources: leave.md1 tool call'
    assert chat(b, 'again') == '7'  # 2 + 4 messages before it
    b.js("document.querySelector('#chat-list li:last-child .drop').click()")
    assert b.js(titles) == ['hello']
    b.js("localStorage.setItem('mypt-chats', '{broken'); listChats()")
    assert chat(b, 'hello') == 'You said hello' and b.js(titles) == ['hello']
    assert not b.problems((there.url,))


@needs_browser
def test_page_answers_again_in_other_words(browser, there):
    b = load(browser, there)
    Scripted.said = 0
    assert chat(b, 'vary') == 'one'
    b.js("document.querySelector('article:last-child .again').click()")
    b.wait(DONE)
    assert b.js("document.querySelector('article:last-child .said').textContent") == 'two'
    assert b.js("document.querySelectorAll('article').length") == 2 and chat(b, 'again') == '3'


@needs_browser
def test_page_shows_the_temperature_and_what_was_only_read(browser, there):
    b = load(browser, there)
    b.js(
        'window.bodies = []; const f = fetch; window.fetch = (u, o) => '
        '{ if (o?.body) bodies.push(JSON.parse(o.body)); return f(u, o) }'
    )
    heat = "document.getElementById('heat').textContent"
    assert b.js(heat) == '0.7'
    chat(b, 'parental things', 'rag')
    assert b.js("document.querySelector('article:last-child .sources').textContent").endswith(
        'leave.md'
    )
    b.js('document.querySelector(\'#wording [value="0"]\').click()')
    assert b.js(heat) == '0'
    chat(b, 'hello', 'chat')
    assert b.js('bodies.map(b => b.temperature)') == [0.7, 0]


@needs_browser
def test_page_shows_no_html_of_others(browser, there):
    b = load(browser, there)
    assert chat(b, 'evil') == EVIL
    chat(b, 'evil search', 'agent')
    chat(b, EVIL)
    b.js("location.hash = 'doc=' + encodeURIComponent('<b>x</b>.md')")
    b.wait("document.getElementById('paper').open")
    b.wait("document.getElementById('paper-text').textContent.includes('<script>')")
    assert (
        b.js(
            "document.querySelectorAll('main img, main script, dialog img, dialog script, "
            "main b > *').length"
        )
        == 0
    )
    assert b.js('document.title') == 'mypt chat'
    b.js(
        "document.body.append(Object.assign(document.createElement('script'), "
        "{textContent: 'document.title = 3'}))"
    )
    assert b.js('document.title') == 'mypt chat'  # the policy holds


@needs_browser
def test_page_stops_and_tells_errors(browser, there):
    b = load(browser, there)
    Scripted.slow = 0.05
    try:
        b.js("document.getElementById('ask').focus()")
        b.type('long')
        b.press('Enter')
        b.wait(
            "document.getElementById('send').textContent == 'Stop' && "
            "document.querySelector('.model .said').textContent.length > 5"
        )
        b.press('Escape')
        b.wait("document.querySelector('article:last-child .note')?.textContent == 'Stopped.'")
        wait(lambda: there.app.at_work == 0)
    finally:
        Scripted.slow = 0.0
    chat(b, 'x' * 3000)
    assert 'exceed the context' in b.js(
        "document.querySelector('article:last-child .note').textContent"
    )
    assert chat(b, 'hello') == 'You said hello'


@needs_browser
def test_page_asks_for_the_token(folder):
    with running(folder, token='a very long secret', engine=Scripted) as place, Browser() as b:
        b.open(f'{place.url}/')
        for given in ('wrong', 'a very long secret'):
            b.wait(
                "document.getElementById('door').open && document.activeElement.id == 'token' && "
                "document.activeElement.value == ''"
            )
            b.type(given)
            b.press('Enter')
        b.wait("document.querySelectorAll('#model option').length == 2")
        assert chat(b, 'hello') == 'You said hello'


@needs_browser
@pytest.mark.skipif(
    not AXE.exists(), reason='no axe-core: npm pack axe-core, AXE_CORE=…/axe.min.js'
)
@pytest.mark.parametrize('dark', [False, True])
def test_page_is_accessible(there, dark):
    with Browser(420 if dark else 1100, 800, dark=dark) as b:
        load(b, there)
        assert b.axe() == []
        chat(b, 'How long is leave?', 'agent')
        b.js(
            "document.querySelectorAll('details').forEach(d => d.open = true); "
            "document.getElementById('more').click()"
        )
        assert b.axe() == []
        b.js("document.querySelector('.sources a').click()")
        b.wait("document.getElementById('paper').open")
        assert b.axe() == []
