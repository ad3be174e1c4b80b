"Text that an attacker wrote: time stays linear, memory small, and different texts stay different."

import io
import json
import os
import sys
import time
import numpy as np
import pytest
from mypt.cli import main
from mypt.curate.augment import hide, rewrites
from mypt.curate.dedup import dedup, episode_text, minhash, similarity
from mypt.curate.placeholders import Unit, shields, split
from mypt.curate.quality import balance, diversity_of, template
from mypt.data.episodes import read_episodes, write_episodes
from mypt.data.language import guess_language
from mypt.data.masks import encode
from mypt.data.mix import mix
from mypt.data.prepare import _group_numbers, check, prepare
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError, file_name
from mypt.files import MAX_LINE
from mypt.sources import row_files
from mypt.sources.convert import convert
from mypt.sources.rows import split_thought
from mypt.sources.tool_calls import _INVOKE, _PARAMETER


def chat(q, a='Yes.', **more):
    turns = [{'role': 'user', 'content': q}, {'role': 'assistant', 'content': a}]
    return {'messages': turns, **more}


CODE = 'def f(rows):\n' + ''.join(f'    name_{i} = rows[{i}]\n' for i in range(20))
PAIRS = dict(
    factorial=(chat('What is n! for a large n'), chat('What is n for a large n')),
    last_mark=(chat('What is n!'), chat('What is n')),
    bang=(chat('What does user.save! do?'), chat('What does user.save do?')),
    quoted=(chat("What is the type of '5'?"), chat('What is the type of 5?')),
    code=(chat(CODE + '    x = "5"\n    return x'), chat(CODE + '    x = 5\n    return x')),
    tab=(chat('Copy this:\nname\tvalue'), chat('Copy this:\nname value')),
    blanks=(chat('Copy this:\na   b'), chat('Copy this:\na b')),
    blanks_in_a_line=(chat('Copy this: a   b'), chat('Copy this: a b')),
    system=(chat('Who?', system='Be a pirate.'), chat('Who?', system='Be brief.')),
    border=(chat('say it\nred', 'blue'), chat('say it', 'red\nblue')),
)


@pytest.mark.parametrize('threshold', [0.8, 1])
@pytest.mark.parametrize('name', PAIRS)
def test_different_episodes_stay(name, threshold, tmp_path):
    write_episodes(tmp_path / 'in.jsonl', PAIRS[name])
    assert dedup(tmp_path / 'in.jsonl', tmp_path / 'o.jsonl', threshold=threshold)['kept'] == 2


def test_long_texts_are_compared_in_pieces(monkeypatch):
    monkeypatch.setattr('mypt.curate.dedup.BATCH_TEXT', 10_000)
    monkeypatch.setattr('mypt.curate.dedup.LONG', 20_000)
    words = [f'word{i}' for i in range(20_000)]
    a, b = ' '.join(words), ' '.join([*words[:-1000], 'other'])
    x, y = (episode_text(chat(t), 'user') for t in (a, b))
    assert 0.9 < similarity(x, y) < 1
    assert (minhash([x]) == minhash([y])).mean() > 0.9
    assert np.array_equal(minhash([x, y])[1], minhash([y])[0])


def test_a_line_without_end_is_one_line(tmp_path, monkeypatch):
    os.chdir(tmp_path)
    for name in ('in.jsonl', 'in.json', 'in.csv'):
        with open(name, 'wb') as f:
            f.truncate(MAX_LINE + 2)
    with pytest.raises(UserError, match=r'in\.jsonl:1: longer than 16 MiB'):
        dedup('in.jsonl', 'o.jsonl')
    with pytest.raises(UserError, match=r'in\.jsonl:1: longer than 16 MiB'):
        mix(['in.jsonl:1'], 'o.jsonl')
    with pytest.raises(UserError, match=r'in\.csv:1: longer than 16 MiB'):
        convert('in.csv', 'o.jsonl')
    monkeypatch.setattr(row_files, 'MAX_WHOLE', 1000)
    with pytest.raises(UserError, match='element 1 is longer than 16 MiB'):
        convert('in.json', 'o.jsonl')


def test_forty_thousand_messages_with_weights():
    turns = [{'role': 'user', 'content': 'Say.'}, {'role': 'assistant', 'content': 'A'}] * 20_000
    turns = [t | {'weight': 2} if i % 4 == 1 else t for i, t in enumerate(turns)]
    start = time.process_time()
    enc = encode({'messages': turns}, get_tokenizer('byte'))
    assert time.process_time() - start < 8
    twice, once = (set(enc.weights[enc.msgs == i]) for i in (39_997, 39_999))
    assert (twice, once) == ({0, 2}, {0, 1})


def test_a_long_group_takes_its_own_memory_only():
    names = ['b' * 10**6, *'cacac'] * 1000
    assert _group_numbers(names)[:6] == [1, 2, 0, 2, 0, 2] and _group_numbers([]) is None


SLOW = {
    'newlines in an answer': lambda: balance([chat('Which?', 'It' + '\n' * 60_000 + 'is.')]),
    'have to': lambda: balance([chat('I have to ' * 40_000, 'Go.')]),
    'opening quotes': lambda: template('“' * 200_000 + '„' * 200_000 + '«' * 200_000),
    'per cent': lambda: split('What is 100%' + '0' * 60_000 + ' of it?', shields()),
    'a long word': lambda: hide('Explain ' + 'ha' * 50_000 + ' now.'),
    'open brackets': lambda: hide('Explain ' + '[' * 100_000),
    'many and': lambda: rewrites('What is the difference between ' + 'a and ' * 40_000, 'en'),
    'numbers': lambda: hide('1 ' * 1_200_000),
    'open formulas': lambda: split('\\( ' * 60_000 + '\\begin{a}' * 5_000, shields()),
    'braces': lambda: split("{'a': " * 30_000, shields()),
}


@pytest.mark.parametrize('what', SLOW)
def test_linear_time(what):
    start = time.process_time()
    SLOW[what]()
    assert time.process_time() - start < 15


SHIELDED = {
    '1. Run this:\n\n        for i in a:\n            f(i)\n\n2. Go on.': 'for i in a:',
    "Return a dict like {'name': 'value'} only.": "{'name': 'value'}",
    'It gives [1, "name", "value"] here.': '[1, "name", "value"]',
    'Send {"user": {"name": ...}} to it.': '{"user": {"name": ...}}',
    'Write {value:>10} and {value:,.2f} for it.': '{value:>10}',
    'It prints ${user[0].name} here.': '${user[0].name}',
    'It has <script>for (user in name) f(user);</script> in it.': 'for (user in name)',
    'Put <?php if (user) print(name); ?> here.': 'if (user)',
    'Open %name% on this machine.': '%name%',
    'The sum \\[' + 'x_i + ' * 300 + 'for\\] is all.': '+ for\\]',
    'So \\begin{align}' + 'x + ' * 900 + 'for\\end{align} holds.': '+ for\\end',
}


@pytest.mark.parametrize('text', SHIELDED, ids=lambda t: t[:20])
def test_code_is_not_sent(text):
    parts = split(text, shields())
    assert ''.join(p if isinstance(p, str) else p.text for p in parts) == text
    sent = ' '.join(p.xml for p in parts if isinstance(p, Unit))
    assert sent and SHIELDED[text] not in sent


def test_prose_of_a_list_is_sent():
    text = '- One\n\n    and more\n        - deeper text\n\n5 \\( 3\n\nand 4 \\) 2'
    assert [p.text for p in split(text, shields()) if isinstance(p, Unit)] == [
        *('One', 'and more', 'deeper text', 'and 4 \\) 2')
    ]


OTHERS = (
    'Mikä on Suomen pääkaupunki? Se on Helsinki, ja se on maan suurin kaupunki.',
    'Co to jest fotosynteza? Fotosynteza to proces, a tlen to produkt uboczny.',
    'Mi a fotoszintézis? A fotoszintézis az a folyamat, amellyel a növények élnek.',
    'Je to proces, při kterém rostliny a řasy mění světlo na energii a kyslík.',
    'Hvad er hovedstaden i Danmark? Hovedstaden er København, og den ligger her.',
    'Hovedstaden er Oslo, og den er også den største byen.',
    '请解释这段代码：for i in range(10): print(i) 这段代码会打印数字。',
)


@pytest.mark.parametrize('text', OTHERS)
def test_other_languages_are_neither(text):
    assert guess_language(text) == ''


def test_names_and_words_of_the_data_print_as_one_line(tmp_path, capsys):
    bad = 'b\x1b[2J\nfine'
    (tmp_path / f'{bad}.jsonl').write_text('no json\n' + json.dumps(chat('Who is it?')) + '\n')
    check(str(tmp_path))
    prepare(tmp_path, tmp_path / 'd', 'byte', val_split=0, on_error='skip')
    row = chat('Write to [insert \x1b[2J name].', language='en\x1b]0;\x07\nfake')
    print(diversity_of([row, row]))
    out = capsys.readouterr().out
    assert '\x1b' not in out and '\nfine' not in out and '\nfake' not in out


def test_names_that_are_not_utf8(tmp_path, monkeypatch):
    name = os.fsdecode(b'gr\xf6sse.jsonl')
    assert file_name(name) == 'gr\\xf6sse.jsonl'
    os.chdir(tmp_path)
    write_episodes(name, [chat('Is it so?', language='en')])
    assert convert(name, 'o.jsonl') == 1
    mix([f'{name}:1'], 'm.jsonl')
    assert read_episodes('m.jsonl')[0]['mix_source'] == 'gr\\xf6sse'
    raw = io.BytesIO()
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(raw, 'latin-1'))
    assert main(['mix', '--inputs', f'{name}:1', '--output', 'n.jsonl']) == 0
    assert b'\\u2192 n.jsonl' in raw.getvalue()


def test_thoughts_and_tags_take_linear_time():
    start = time.process_time()
    assert split_thought('<think></think>' * 100_000 + 'It is me.') == ('', 'It is me.')
    assert split_thought('<think>a</think>\n<think>b</think>\n c') == ('a\n\nb', ' c')
    for text in ('<function=f' + ' ' * 200_000 + '<x', '<invoke name="f"' + ' ' * 200_000 + '<x'):
        assert _INVOKE.search(text) is None
    assert _PARAMETER.search('<parameter=' + 'a' * 200_000 + '</parameter>') is None
    assert _INVOKE.search('<invoke name="f" >')[1] == 'f'
    assert _PARAMETER.search('<parameter name="a" type="x">')[1] == 'a'
    assert time.process_time() - start < 8
