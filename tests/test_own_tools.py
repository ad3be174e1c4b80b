"A client's own tools: schemas, calls that cannot raise, mypt agent, data, and the row of a gate."

import asyncio
import contextvars
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from typing import Any, Literal

import pytest
import torch

from mypt.agent.agent import run_agents
from mypt.agent.documents import Document
from mypt.agent.own_tools import MOST_LEFT, Toolbox, load_tools, tool, tool_result, with_own_tools
from mypt.agent.rag_chat import DocumentChat, agent
from mypt.agent.tools import Workspace
from mypt.curriculum.meaning import check_meaning
from mypt.curriculum.own_tools import (
    make_own_tools,
    own_tools_row,
    own_tools_suite,
    passes_own,
    own_wordings,
)
from mypt.curriculum.synthetic import first_question
from mypt.data.masks import encode
from mypt.data.serialize import dump_call
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.eval.metrics import Reply
from mypt.eval.suite import Responder
from mypt.model.checkpoint import save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT

SHOP = """
from typing import Literal
from mypt.agent.own_tools import tool

PRICES = dict(lamp=49, chair=120, desk=320, clock=25)

@tool(
    example=True,
    values=dict(article=list(PRICES)),
    asks=dict(
        en=['What does the {article} cost?', 'Price of the {article}?', 'How much is a {article}?'],
        de=['Was kostet {article}?', 'Preis von {article}?', 'Wie teuer ist {article}?'],
    ),
    says=dict(en=['It costs {result} euros.'], de=['{article} kostet {result} Euro.']),
)
def price(article: str) -> int:
    "What an article costs"
    return PRICES[article]

@tool(example=True)
def stock(
    article: str,  # its name
    places: list[Literal['shop', 'cellar']] = ['shop'],  # where to count
) -> int:
    "How many pieces of an article there are"
    return len(article) * len(places)
"""


@pytest.fixture
def shop(tmp_path):
    path = tmp_path / 'my_tools.py'
    path.write_text(SHOP, encoding='utf-8')
    return path


class Size(Enum):
    small = 's'
    large = 'l'


@tool
def paint(
    colours: list[Literal['red', 'blue']],  # at least one
    size: Size = Size.small,
    coats: int | None = None,
    thick: float = 0.5,
    dry: bool = False,
) -> Any:
    """Paint it

    More on paint, which the model need not know.
    """
    return dict(colours=colours, size=size, coats=coats, thick=thick, dry=dry)


def test_a_signature_is_a_schema():
    properties = paint.parameters['properties']
    assert paint.description == 'Paint it'
    assert paint.parameters['required'] == ['colours']
    assert properties['colours'] == dict(
        type='array', items=dict(type='string', enum=['red', 'blue']), description='at least one'
    )
    assert properties['size'] == dict(type='string', enum=['s', 'l'], default='s')
    assert properties['coats'] == dict(type='integer')
    assert properties['thick'] == dict(type='number', default=0.5)
    assert properties['dry'] == dict(type='boolean', default=False)


def test_arguments_are_checked_and_converted():
    box = Toolbox(dict(paint=paint))
    done = box.call('paint', dict(colours=['red'], size='l', coats=2.0))
    assert done == dict(colours=['red'], size='l', coats=2, thick=0.5, dry=False)
    wrong = {
        "paint: colours must be a list, each item one of 'red', 'blue'": dict(colours=['green']),
        "paint: size must be one of 's', 'l'": dict(colours=[], size='m'),
        'paint: coats must be a whole number': dict(colours=[], coats=2.5),
        'paint: thick must be a number': dict(colours=[], thick='much'),
        'paint: dry must be true or false': dict(colours=[], dry=1),
        'paint: colours is missing': {},
    }
    for error, arguments in wrong.items():
        assert box.call('paint', arguments) == dict(error=error, available_tools=['paint'])
    for name, arguments in ((None, {}), ('paint', None), ('paint', [1]), ({}, {}), ('x', {})):
        assert 'error' in box.call(name, arguments)


def no_hint(x) -> int:
    "Count"
    return 1


def no_schema(x: dict[str, int]) -> int:
    "Count"
    return 1


def two_types(x: int | str) -> int:
    "Count"
    return 1


def no_docstring(x: int) -> int:
    return 1


def many(*x: int) -> int:
    "Count"
    return 1


async def later(x: int) -> int:
    "Count"
    return 1


@pytest.mark.parametrize(
    'function, said',
    [
        (no_hint, 'write x: str'),
        (no_schema, 'has no JSON schema; use str'),
        (two_types, 'has no JSON schema'),
        (no_docstring, 'say in a docstring what it does'),
        (many, r'leave out \*'),
        (later, 'async functions are not supported'),
    ],
)
def test_what_has_no_schema_is_refused_in_one_line(function, said):
    with pytest.raises(UserError, match=said) as e:
        tool(function)
    assert '\n' not in str(e.value)


@tool
def fails(how: str) -> Any:
    "Fail"
    if how == 'exit':
        raise SystemExit(3)
    if how == 'loop':
        loop: list = []
        loop.append(loop)
        return loop
    if how == 'nan':
        return float('nan')
    raise ValueError('no such thing\nin the shop')


def test_errors_of_a_function_are_results():
    box = Toolbox(dict(fails=fails))
    assert box.call('fails', dict(how='raise')) == {
        'error': 'fails failed: ValueError: no such thing in the shop'
    }
    for how in ('exit', 'loop', 'nan'):
        result = box.call('fails', dict(how=how))
        assert isinstance(result, dict) and '\n' not in result['error']


class Mute(Exception):
    def __str__(self):
        raise RuntimeError('no text')


def test_whatever_a_tool_raises_or_returns_is_a_result():
    async def later():
        return 3

    @tool
    def odd(how: str) -> int:
        "Do something odd"
        if how == 'mute':
            raise Mute
        if how == 'cancelled':
            raise asyncio.CancelledError
        if how == 'generator':
            return (i for i in range(3))
        waiting = later()
        waiting.close()
        return waiting

    box = Toolbox(dict(odd=odd))
    said = {how: box.call('odd', dict(how=how))['error'] for how in ('mute', 'cancelled')}
    assert said['mute'] == 'odd failed: Mute: its text cannot be made'
    assert said['cancelled'] == 'odd failed: CancelledError: no reason is given'
    assert 'gave a generator' in box.call('odd', dict(how='generator'))['error']
    assert 'gave a coroutine' in box.call('odd', dict(how='coroutine'))['error']


def test_null_for_an_argument_that_may_be_left_out():
    @tool
    def look(query: str, top: int | None = None, deep: bool = True) -> str:
        "Look something up"
        return f'{query} {top} {deep}'

    box = Toolbox(dict(look=look))
    assert box.call('look', dict(query='a', top=None, deep=None)) == 'a None True'
    assert 'query' in box.call('look', dict(query=None))['error']


def test_defaults_are_json_or_refused():
    class Colour(Enum):
        red = 'red'

    def paint(colours: list[Colour] = [Colour.red]) -> str:  # noqa: B006
        "Paint it"

    def wait(seconds: float = float('inf')) -> str:
        "Wait"

    assert tool(paint).parameters['properties']['colours']['default'] == ['red']
    with pytest.raises(UserError, match='its default inf has no JSON form'):
        tool(wait)


def test_classes_are_no_tools_and_odd_sources_are_read(tmp_path):
    with pytest.raises(UserError, match='a tool is a function'):
        tool(Mute)
    file = tmp_path / 'odd_tools.py'
    file.write_text(
        'from __future__ import annotations\n'
        'from dataclasses import dataclass\n'
        'from mypt.agent.own_tools import tool\n'
        '@dataclass\nclass Price:\n    euros: int\n'
        'def inner():\n'
        '    @tool\n    def price(article: str) -> Price:\n'
        '        """What an article costs\n\nAt the margin.\n"""\n'
        '        return Price(49)\n    return price\n'
        'price = inner()\n'
    )
    box = Toolbox(load_tools(file, say=lambda text: None))
    assert box.call('price', dict(article='lamp')) == dict(euros=49)


def test_results_that_are_no_text_become_json():
    assert tool_result('49 euros') == '49 euros'
    assert tool_result([1, 2]) == '[1, 2]'
    assert tool_result(None) == 'null'
    assert tool_result(dict(a=Size.large, b={2, 1})) == dict(a='l', b=[1, 2])
    assert len(tool_result(list(range(100_000)))) <= 20_000


def test_a_file_that_is_none_says_so(tmp_path):
    path = tmp_path / 'x.py'
    for text, said in (
        ('1 / 0', 'cannot be run: ZeroDivisionError'),
        ('def (', 'cannot be run: SyntaxError'),
        ('raise SystemExit(1)', 'cannot be run: SystemExit'),
        ('x = 1', 'no tools in it'),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            load_tools(path)
    with pytest.raises(UserError, match='not a Python file'):
        load_tools(tmp_path / 'none.py')


def reply_ids(tok, call=None, answer=''):
    "The ids of a reply: a call, or an answer."
    if call:
        inside = [tok.tag_ids['<myPT_toolcall>'], *tok.encode(dump_call(*call))]
        inside.append(tok.tag_ids['</myPT_toolcall>'])
    else:
        inside = tok.encode(answer)
    return [*inside, tok.tag_ids['</myPT_assistant>']]


def test_a_scripted_model_calls_an_own_tool_and_a_document(shop):
    tok, own = get_tokenizer('byte'), load_tools(shop, say=lambda text: None)
    space = Workspace.of([Document('a.md', 'A', 'Lamps are bright.')])
    replies = [
        reply_ids(tok, ('price', dict(article='lamp'))),
        reply_ids(tok, ('price', dict(article='moon'))),
        reply_ids(tok, ('workspace.list_docs', {})),
        reply_ids(tok, answer='It costs 49 euros.'),
    ]
    history = dict(messages=[dict(role='user', content='What does the lamp cost?')])
    (run,) = run_agents(lambda hs: [replies.pop(0)], tok, [Toolbox(own, space)], [history])
    assert run.answer == 'It costs 49 euros.'
    assert [step.result for step in run.steps[:2]] == [
        '49',
        dict(error="price failed: KeyError: 'moon'"),
    ]
    assert run.steps[2].result['total'] == 1


# ---------------------------------------------------------------- a tool that never returns

LATE = {'error': 'stuck did not answer within 0.2 seconds'}


@pytest.fixture
def stuck():
    "A tool that answers when the test is over."
    over = threading.Event()

    @tool(seconds=0.2)
    def stuck() -> str:
        "Wait for something that never comes"
        over.wait(60)
        return 'late'

    yield stuck
    over.set()
    while any(t.name == 'tool stuck' for t in threading.enumerate()):
        time.sleep(0.01)


def left() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == 'tool stuck']


def test_a_tool_that_never_answers_is_given_up(stuck):
    start = time.monotonic()
    assert Toolbox(dict(stuck=stuck)).call('stuck', {}) == LATE
    assert time.monotonic() - start < 5
    assert [t.daemon for t in left()] == [True]  # it does not keep the program from ending


def test_in_the_threads_of_a_server_too(stuck):
    box = Toolbox(dict(stuck=stuck))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: box.call('stuck', {}), range(4)))
    assert results == [LATE] * 4


def test_the_agent_goes_on_without_the_result(stuck):
    tok = get_tokenizer('byte')
    replies = [reply_ids(tok, ('stuck', {})), reply_ids(tok, answer='It cannot be reached.')]
    history = dict(messages=[dict(role='user', content='Is it there?')])
    box = Toolbox(dict(stuck=stuck))
    (run,) = run_agents(lambda hs: [replies.pop(0)], tok, [box], [history])
    assert run.steps[0].result == LATE and run.answer == 'It cannot be reached.'


def test_calls_that_were_given_up_do_not_pile_up(stuck):
    box = Toolbox(dict(stuck=stuck, paint=paint))
    for _ in range(MOST_LEFT):
        assert box.call('stuck', {}) == LATE
    refused = {'error': f'paint was not called: {MOST_LEFT} earlier calls have not ended'}
    assert box.call('paint', dict(colours=['red'])) == refused and len(left()) == MOST_LEFT


def test_a_tool_without_a_limit_runs_in_the_callers_thread():
    who = contextvars.ContextVar('who', default='nobody')

    def where() -> dict:
        "Where it runs"
        return dict(here=threading.current_thread() is threading.main_thread(), who=who.get())

    who.set('me')  # a limit changes the thread, not what the caller has set
    for seconds, here in ((None, True), (9, False)):
        box = Toolbox(dict(where=tool(seconds=seconds)(where)))
        assert box.call('where', {}) == dict(here=here, who='me')


@pytest.mark.parametrize('seconds', [0, -1, float('nan'), float('inf'), 1e30, '60'])
def test_seconds_are_a_time_to_wait(seconds):
    with pytest.raises(UserError, match='give a number above 0, or None'):
        tool(seconds=seconds)(paint.function)


def test_whatever_a_result_raises_is_a_result():
    class Odd:
        def __str__(self):
            raise RuntimeError('no text')

    @tool
    def odd() -> Any:
        "Give something odd"
        return [Odd()]

    assert Toolbox(dict(odd=odd)).call('odd', {}) == {'error': 'odd failed: RuntimeError: no text'}


def test_no_data_from_a_tool_that_never_answers(tmp_path):
    path = tmp_path / 'slow_tools.py'
    path.write_text(
        'import threading\nfrom mypt.agent.own_tools import tool\n'
        '@tool(example=True, seconds=0.1)\n'
        'def stuck(article: str) -> str:\n    "Wait"\n    threading.Event().wait(2)\n'
    )
    with pytest.raises(UserError, match=r'stuck did not answer within 0.1 seconds; give calls='):
        list(make_own_tools(5, 'en', 1, str(path), dict(own_tool=1.0)))


@pytest.fixture
def tiny(tmp_path):
    "A byte model that was not trained."
    tok = get_tokenizer('byte')
    torch.manual_seed(1)
    cfg = ModelConfig(vocab_size=tok.vocab_size, n_layer=2, n_head=2, n_embd=64, block_size=1024)
    return tok, cfg, tmp_path / 'm'


def test_mypt_agent_with_own_tools_and_no_documents(shop, tiny, capsys):
    tok, cfg, folder = tiny
    save_checkpoint(folder, GPT(cfg), tok)
    (run,) = agent(str(folder), tools=str(shop), question='Price of the lamp?', max_new_tokens=20)
    assert 'ran its code; tools: price, stock' in capsys.readouterr().out
    assert '"name": "price"' in run.episode['system']
    with pytest.raises(UserError, match='or own tools with --tools'):
        agent(str(folder), question='x')


def test_mypt_agent_trained_on_own_data_calls_the_tool(shop, tiny):
    "A model of 0.1 M weights that learned one question calls the tool, reads and answers."
    tok, cfg, folder = tiny
    model = GPT(cfg)
    shares = dict(own_tool=1.0)
    made = list(make_own_tools(8, 'en', 3, str(shop), shares, think=0.0))
    episode = next(e for e in made if e['messages'][1]['name'] == 'price')
    system = with_own_tools('You are MyPT.', load_tools(shop))
    episode = dict(system=system, messages=episode['messages'])
    question = first_question(episode)
    encoded = encode(episode, tok)
    ids = torch.tensor(encoded.ids.astype('int64'))[None]
    weights = torch.tensor(encoded.weights.astype('float32'))[None]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(150):
        logits = model(ids[:, :-1])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), ids[:, 1:].flatten(), reduction='none'
        )
        loss = (loss * weights[0, 1:]).sum() / weights[0, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    save_checkpoint(folder, model, tok)
    (run,) = agent(str(folder), tools=str(shop), question=question, max_new_tokens=80)
    assert run.calls == [('price', episode['messages'][1]['arguments'])]
    assert run.answer == episode['messages'][3]['content']


def test_data_for_own_tools(shop):
    own = load_tools(shop, say=lambda text: None)
    made = list(make_own_tools(200, 'mixed', 5, str(shop)))
    assert len({first_question(e) for e in made}) == 200
    box = Toolbox(own)
    for e in made:
        for call, result in zip(e['messages'], e['messages'][1:], strict=False):
            if call['role'] == 'assistant_toolcall' and call['name'] in own:
                assert box.call(call['name'], call['arguments']) == result['content']
        if e['_meta']['category'] == 'no_tool':
            assert all('arguments' not in m for m in e['messages'])
        if e['_meta']['category'] == 'lacking':
            assert len([n for n in own if f'"name": "{n}"' in e['system']]) == 1
    kinds = {e['_meta']['category'] for e in made}
    assert kinds == {'own_tool', 'workspace', 'no_tool', 'lacking'}


def test_the_suite_asks_in_wordings_that_are_not_trained(shop):
    own = load_tools(shop, say=lambda text: None)
    cases = own_tools_suite(own, 60)
    asked = {c['messages'][0]['content'] for c in cases}
    for seed in (7, 8, 9):
        trained = {first_question(e) for e in make_own_tools(300, 'mixed', seed, str(shop))}
        assert not asked & trained
    assert own_wordings(own['price'], 'en', held=True) == ('How much is a {article}?',)
    assert {c['call'][0] for c in cases if c['call']} == {'price', 'stock'}
    assert sum(c['call'] is None for c in cases) == len(cases) // 4  # every fourth needs no tool


def test_the_row_of_a_gate(shop):
    tok, row = get_tokenizer('byte'), own_tools_row(shop)
    right = reply_ids(tok, ('price', dict(article='lamp')))
    assert passes_own(Reply(tuple(right), tok), ('price', dict(article='lamp')))
    assert not passes_own(Reply(tuple(right), tok), ('price', dict(article='desk')))
    assert not passes_own(Reply(tuple(right), tok), None)
    always = Responder(lambda histories, most, end: [right] * len(histories), tok)
    k, n = row.count(always)
    assert 0 < k < n / 3 and row.floor == 0.80


def test_labels_hold(shop):
    made = list(make_own_tools(150, 'mixed', 9, str(shop)))
    assert check_meaning(made).findings == []


def test_choices_may_be_numbers():
    @tool
    def floor(level: Literal[1, 2]) -> str:
        "Where a floor is"
        return f'up {level}'

    assert floor.parameters['properties']['level'] == dict(type='integer', enum=[1, 2])
    assert Toolbox(dict(floor=floor)).call('floor', dict(level=2)) == 'up 2'


def test_a_constrained_call_keeps_to_the_schema(shop, tiny):
    pytest.importorskip('llguidance')
    tok, cfg, folder = tiny
    save_checkpoint(folder, GPT(cfg), tok)
    own = load_tools(shop, say=lambda text: None)
    talk = DocumentChat(folder, Toolbox(own), constrain=True, max_new_tokens=120)
    assert talk.turn.workspace.tools == own
