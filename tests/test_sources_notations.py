"Conversations, calls and thoughts in the notation of another model: read, or told by name."

import json
import time
from contextlib import suppress
import pytest
from mypt.data.episodes import read_episodes
from mypt.errors import UserError
from mypt.sources.convert import convert
from mypt.sources.rows import Skip, place_thought
from mypt.sources.tool_calls import split_at_mark
from talks import talk

GOOD = talk('Who is it?', 'It is me.')


@pytest.fixture
def conv(tmp_path, capsys):
    "Converts rows and gives episodes and what was printed."

    def run(*rows, **options):
        path, out = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
        path.write_text('\n'.join(json.dumps(row) for row in rows))
        out.unlink(missing_ok=True)
        convert(str(path), str(out), **options)
        return read_episodes(out), capsys.readouterr().out

    return run


def call(name='read_file', i='1', **arguments):
    function = dict(name=name, arguments=json.dumps(arguments))
    made = dict(id=i, type='function', function=function)
    return dict(role='assistant', content=None, tool_calls=[made])


def said(ep) -> list:
    return [(m['role'], m['content']) for m in ep['messages']]


def asks(ep) -> list:
    "Thought, name and arguments of each call."
    found = [m for m in ep['messages'] if m['role'] == 'assistant_toolcall']
    return [(m.get('think', ''), m['name'], m['arguments']) for m in found]


# --- results


@pytest.mark.parametrize(
    'text, want',
    [
        ('{"name": "report.txt", "content": "Rose."}', {'name': 'report.txt', 'content': 'Rose.'}),
        ('{"tool_call_id": "7", "content": "Rose."}', {'tool_call_id': '7', 'content': 'Rose.'}),
        ('{"name": "read_file", "content": "Rose."}', 'Rose.'),
        ('{"tool_call_id": "1", "content": "Rose."}', 'Rose.'),
        ({'name': 'report.txt', 'content': 'Rose.'}, {'name': 'report.txt', 'content': 'Rose.'}),
    ],
)
@pytest.mark.parametrize('tag', [False, True])
def test_a_name_in_a_result_is_kept_unless_it_is_the_calls(conv, text, want, tag):
    if tag:
        inside = text if isinstance(text, str) else json.dumps(text)
        text = f'<tool_response>\n{inside}\n</tool_response>'
    result = dict(role='tool', tool_call_id='1', content=text)
    (ep,), _ = conv(talk('?', call(path='r'), result, 'ok'), strict=True)
    assert ep['messages'][2]['content'] == want


# --- conversations in a text

TEXTS = {
    'chatml': '<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n  Hello<|im_end|>\n',
    'llama 3': '<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>'
    '<|start_header_id|>assistant<|end_header_id|>\n\n  Hello<|eot_id|>',
    'gemma': '<bos><start_of_turn>user\nHi<end_of_turn>\n'
    '<start_of_turn>model\n  Hello<end_of_turn>\n',
    'zephyr': '<|user|>\nHi</s>\n<|assistant|>\n  Hello</s>',
    'phi': '<|user|>\nHi<|end|>\n<|assistant|>\n  Hello<|end|>\n<|endoftext|>',
    'deepseek': '<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜>  Hello<｜end▁of▁sentence｜>',
    'guanaco': '### Human: Hi### Assistant:   Hello',
    'alpaca': '### Instruction:\nHi\n\n### Response:\n  Hello',
    'llama 2': '<s>[INST] Hi [/INST]   Hello </s>',
    'mistral': '<s>[INST] Hi[/INST]   Hello</s>',
    'hh': '\n\nHuman: Hi\n\nAssistant:   Hello',
}


@pytest.mark.parametrize('name', TEXTS)
def test_a_conversation_in_a_text_is_cut_into_messages(conv, name):
    (ep,), out = conv(dict(text=TEXTS[name]))
    assert said(ep) == [('user', 'Hi'), ('assistant', '  Hello')]
    assert 'note: 1 row: a conversation in one text, cut into messages' in out


def test_prompts_and_later_turns_of_a_conversation_in_a_text(conv):
    rows = [
        '<|im_start|>system\nBe kind.<|im_end|>\n'
        '<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n'
        '<|im_start|>user\nC<|im_end|>\n<|im_start|>assistant\nD<|im_end|>',
        '<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nA [/INST] B </s><s>[INST] C [/INST] D </s>',
        'A chat between a human and an assistant.### Human: A### Assistant: B### Human: C'
        '### Assistant: D',
    ]
    eps, _ = conv(*(dict(text=text) for text in rows))
    for ep in eps:
        assert [text for _, text in said(ep)] == ['A', 'B', 'C', 'D']
    prompts = [ep['system'] for ep in eps]
    assert prompts == ['Be kind.', 'Be kind.', 'A chat between a human and an assistant.']
    text = (
        'Below is an instruction that describes a task. Write a response.\n\n'
        '### Instruction:\nAdd.\n\n### Input:\n2, 2\n\n### Response:\n4'
    )
    (ep,), _ = conv(dict(text=text))
    assert said(ep) == [('user', 'Add.\n\n2, 2'), ('assistant', '4')]
    text = (
        '<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n<tool_call>\n'
        '{"name": "f", "arguments": {"a": 1}}\n</tool_call><|im_end|>\n'
        '<|im_start|>tool\n5<|im_end|>\n<|im_start|>assistant\nFive.<|im_end|>'
    )
    assert asks(conv(dict(text=text))[0][0]) == [('', 'f', {'a': 1})]


@pytest.mark.parametrize(
    'text, reason',
    [
        ('USER: Hi ASSISTANT: Hello</s>', 'in the notation USER: … ASSISTANT:'),
        ('A chat between two. USER: Hi ASSISTANT: Hello</s>', 'in the notation USER:'),
        ('Human: Hi\nAssistant: Hello', 'in the notation Human: … Assistant:'),
        ('<|start|>user<|message|>Hi<|end|><|start|>assistant', 'in the notation <|start|>'),
        ('<|im_start|>1user\nHi<|im_end|>', r'in the notation <|im_start|>'),
        (f'{TEXTS["chatml"]} and more', 'with words between its turns'),
        ('<|im_start|>user\nHi<|im_end|>', 'no assistant'),
        ('<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n', 'an empty answer'),
        ('<|im_start|>owl\nHi<|im_end|>', "a role that is not known, 'owl'"),
        ('[INST] Hi [/INST][TOOL_CALLS] [{"name": "f"}]</s>', 'in the notation [TOOL_CALLS]'),
        ('[INST] Hi [/INST] a [/INST] b', 'whose [INST] has no end'),
    ],
)
def test_a_conversation_that_cannot_be_read_is_rejected_by_name(conv, text, reason):
    eps, out = conv(dict(text='Bread is baked.'), dict(text=text))
    assert [ep['text'] for ep in eps] == ['Bread is baked.']
    assert reason in out or reason == 'no assistant'


@pytest.mark.parametrize(
    'text, mark',
    [
        ('In ChatML a turn begins with <|im_start|>user and ends.', '<|im_start|>'),
        (f'An example:\n```\n{TEXTS["chatml"]}```\n', '<|im_start|>'),
        ('<|im_start|> is a token.', '<|im_start|>'),
        ('Llama wants [INST] Hi [/INST] around a question.', '[/INST]'),
        ('# Anatomy\n\n### Human: bones\n\nThere are 206.', '### Human:'),
        ('### Human: bones\n\nThere are 206.', '### Human:'),
        ('print("<|user|>")', '<|user|>'),
    ],
)
def test_a_text_that_mentions_a_mark_is_kept_and_told(conv, text, mark):
    (ep,), out = conv(dict(text=text))
    assert ep['_replay'] and ep['text'] == text
    assert f'plain text that mentions {mark}, every token of it trained' in out


# --- calls

NAMED = '{"name": "w", "arguments": {"city": "Ulm"}}'


@pytest.mark.parametrize(
    'text',
    [
        f'<tool_call>\n{NAMED}\n</tool_call>',
        f'<tool_call>{NAMED}',
        f'<function_call>{NAMED}</function_call>',
        f'[TOOL_CALLS] [{NAMED}]',
        f'[TOOL_CALLS][{NAMED}]</s>',
        '[TOOL_CALLS]w[ARGS]{"city": "Ulm"}',
        '[TOOL_CALLS]w[CALL_ID]a1b2c3d4e[ARGS]{"city": "Ulm"}',
        '<|python_tag|>{"name": "w", "parameters": {"city": "Ulm"}}<|eom_id|>',
        f'<|tool_call|>[{NAMED}]<|/tool_call|>',
        f'<|action_start|><|plugin|>{NAMED}<|action_end|>',
        '<function=w>{"city": "Ulm"}</function>',
        '<function=w>\n<parameter=city>\nUlm\n</parameter>\n</function>',
        '<tool_call><function=w>{"city": "Ulm"}</function></tool_call>',
    ],
)
@pytest.mark.parametrize('words', ['', 'I look.\n', '<think>I look.</think>'])
@pytest.mark.parametrize('ends', [[], [dict(role='tool', content='5'), 'Five.']])
def test_a_call_in_every_notation_is_a_call(conv, text, words, ends):
    (ep,), _ = conv(talk('Weather?', words + text, *ends))
    assert asks(ep) == [('I look.' if words else '', 'w', {'city': 'Ulm'})]


@pytest.mark.parametrize(
    'text, mark',
    [
        ('<|python_tag|>print(1)', '<|python_tag|>'),
        ('<|python_tag|>brave_search.call(query="x")', '<|python_tag|>'),
        ('[TOOL_CALLS] [{"name": "w", ', '[TOOL_CALLS]'),
        ('[TOOL_CALLS] [{"city": "Ulm"}]', '[TOOL_CALLS]'),
        ('<function=w>{"city": "Ulm"', '<function='),
        ('<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function', '<｜tool▁calls▁begin｜>'),
        ('<|tool_calls_section_begin|><|tool_call_begin|>w', '<|tool_calls_section_begin|>'),
        ('<|channel|>commentary to=functions.w<|message|>{}<|call|>', '<|channel|>commentary to='),
    ],
)
@pytest.mark.parametrize('ends', [[], [dict(role='tool', content='5'), 'Five.']])
def test_a_call_that_cannot_be_read_is_rejected_by_name(conv, text, mark, ends):
    eps, out = conv(GOOD, talk('Weather?', text, *ends))
    assert len(eps) == 1 and f'in the notation {mark}' in out


@pytest.mark.parametrize(
    'text',
    [
        '[TOOL_CALLS] is a token of Mistral.',
        'The token <|python_tag|>{ begins a call.',
        f'So:\n```\n[TOOL_CALLS] [{NAMED}]\n```',
        f'So:\n```\n<tool_call>{NAMED}</tool_call>\n```',
        '<tool_call>\nyour call\n</tool_call>',
        f'Write <tool_call>{NAMED}</tool_call>, and wait.',
        '<function> is an HTML element? No.',
    ],
)
def test_words_about_calls_stay_words(conv, text):
    (ep,), _ = conv(talk('How?', text))
    assert said(ep)[-1] == ('assistant', text)


def test_words_beside_the_arguments_of_a_call_are_not_lost(conv):
    text = '<tool_call><function=w>in Ulm</function></tool_call>'
    eps, out = conv(GOOD, talk('?', text))
    assert len(eps) == 1 and 'a call in a notation that is not known' in out


# --- thoughts


def test_tags_of_a_thought_are_in_no_thought(conv):
    answer = call() | dict(content='<think>look</think>', reasoning_content='look')
    end = [dict(role='tool', tool_call_id='1', content='5'), 'ok']
    (ep,), _ = conv(talk('x', answer, *end))
    assert asks(ep)[0][0] == 'look'
    (ep,), _ = conv(talk('x', answer | dict(content='<think>A</think>B'), *end))
    assert asks(ep)[0][0] == 'look\n\nA\n\nB'
    plain = dict(role='assistant', content='4', reasoning_content='<think>\nlook\n</think>')
    (ep,), _ = conv(talk('x', plain))
    assert ep['messages'][1] == dict(role='assistant', content='4', think='look')


@pytest.mark.parametrize(
    'text',
    [
        'Sure. <think>hmm</think> Five.',
        'Sure!<think>hmm</think>Five.',
        '**Sure.**\n [THINK]hmm[/THINK] Five.',
        'Sure.\n<THINK>hmm</THINK>\nFive.',
        '```\n1\n```\n<think>hmm</think> Five.',
    ],
)
def test_a_thought_after_a_sentence_is_no_answer(conv, text):
    for answer in (text, call() | dict(content=text)):
        eps, out = conv(GOOD, talk('x', answer))
        assert len(eps) == 1 and 'a thought in the middle of an answer' in out


def test_a_thought_without_its_opening_tag(conv):
    (ep,), _ = conv(talk('x', 'Two twos.</think>Four.'))
    assert ep['messages'][1] == dict(role='assistant', content='Four.', think='Two twos.')


def test_many_tags_take_linear_time():
    start = time.perf_counter()
    for text in ('A. <think>' * 50_000, '```\n<think>\n' * 50_000 + '</think>', '. ' * 200_000):
        with suppress(Skip):
            place_thought(dict(role='assistant', content=text))
    for text in ('<|tool_call|>' * 50_000, '[TOOL_CALLS]' + ' ' * 500_000, '\n ' * 200_000):
        split_at_mark(text, anywhere=True)
        split_at_mark(text)
    assert time.perf_counter() - start < 20


# --- columns


def test_nan_in_a_kept_column_costs_no_row(conv):
    eps, out = conv(GOOD | {'score': float('nan')}, GOOD | {'score': 1}, keep_meta=['score'])
    assert [ep['_meta'] for ep in eps] == [{'score': None}, {'score': 1}], out
    deep = {'score': {'a': [float('nan'), 2]}}
    assert conv(GOOD | deep, keep_meta=['score'])[0][0]['_meta'] == {'score': {'a': [None, 2]}}
    own = GOOD | {'score': float('nan'), '_meta': {'score': 2}}
    with pytest.raises(UserError, match='_meta has another score already'):
        conv(own, keep_meta=['score'])


def test_roles_in_any_case(conv):
    roles = ['System', 'User', 'Assistant', 'USER', 'ASSISTANT']
    messages = [dict(role=r, content=t) for r, t in zip(roles, 'abcde', strict=True)]
    rows = [
        dict(messages=messages),
        dict(conversations=[{'from': m['role'], 'value': m['content']} for m in messages]),
        dict(chosen=messages, rejected=messages[:-1]),
    ]
    for row in rows:
        (ep,), _ = conv(row)
        assert ep['system'] == 'a' and [text for _, text in said(ep)] == list('bcde')


def test_a_conversation_inside_of_a_conversation_says_so(conv):
    rows = (
        (dict(conversations=[GOOD]), 'a conversation in a conversation'),
        (dict(messages=[dict(content='a')]), 'a message without a role'),
    )
    for row, reason in rows:
        with pytest.raises(UserError, match=reason):
            conv(row)


def test_a_system_prompt_of_text_parts(conv):
    parts = [dict(type='text', text='Be kind. '), dict(type='text', text='Be brief.')]
    (ep,), _ = conv(GOOD | {'system': parts}, strict=True)
    assert ep['system'] == 'Be kind. Be brief.'
    eps, out = conv(GOOD, GOOD | {'system': [dict(type='image', source='x')]})
    assert len(eps) == 1 and "a part of type 'image', which is not text" in out
