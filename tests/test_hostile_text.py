"Text that an attacker wrote: time stays linear, memory small, and different texts stay different."

import io
import json
import os
import sys
import time
from types import SimpleNamespace
import numpy as np
import pytest
from mypt.agent.conversation import passage_names
from mypt.agent.documents import chunks, passages
from mypt.agent.html_text import html_text
from mypt.agent.readers import (
    _W,
    _docx_words,
    markdown_parts,
    read_html,
    read_markdown,
    read_plain,
    read_table,
)
from mypt.agent.tools import is_whole_sentence, sentences, summarize
from mypt.agent.words import index_words
from mypt.cli import main
from mypt.curate.augment import hide, rewrites
from mypt.curate.dedup import dedup, episode_text, minhash, similarity
from mypt.curate.placeholders import Unit, shields, split
from mypt.curate.quality import balance, diversity_of, template
from mypt.curriculum.facts import _sections
from mypt.curriculum.reading import without_files
from mypt.curriculum.values import without_markup
from mypt.data.episodes import check_episode, read_episodes, write_episodes
from mypt.data.language import guess_language, language_of
from mypt.data.masks import encode
from mypt.data.mix import mix
from mypt.data.prepare import _group_numbers, check, prepare
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError, file_name
from mypt.eval.instructions import LIMITS, key_facts, n_sentences, n_words
from mypt.eval.metrics import gives_up, squash
from mypt.eval.same_answer import answer_words
from mypt.eval.squad import normalise_answer
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


def docx_words(text: str) -> str:
    "The words of a Word paragraph of one run."
    return _docx_words(SimpleNamespace(iter=lambda: [SimpleNamespace(tag=f'{_W}t', text=text)]))


def front(line: str) -> bytes:
    "Front matter that YAML does not read, with a line."
    return f'---\na: b: c\n{line}\n---\ntext'.encode()


def named(context: str) -> dict:
    return check_episode(chat('Which?', context=context))


LINEAR = {  # what reads a text, and a hostile text of n pieces
    'a setting and blanks': (read_markdown, lambda n: front('a' + ' ' * min(n, 90_000) + '!')),
    'a title and blanks': (read_markdown, lambda n: front('title' + ' ' * min(n, 90_000) + '!')),
    'front matter without an end': (read_markdown, lambda n: b'---\n' + b'--- x\n' * n),
    'blanks behind charset': (read_html, lambda n: b'<meta charset=' + b' ' * n),
    'many charsets': (read_html, lambda n: b'charset = ' * n),
    'parts of a data address': (read_plain, lambda n: b'data:a/b' + b';c' * n),
    'data addresses': (read_plain, lambda n: b'data:a/b;' * n),
    'blanks in Word': (docx_words, lambda n: 'a' + ' ' * n + 'b'),
    'empty lines in Word': (docx_words, lambda n: 'a' + ' \n' * n + 'b'),
    'one line of fences': (lambda t: [*markdown_parts(t)], lambda n: '`' * n + 'x`'),
    'fences': (lambda t: [*markdown_parts(t)], lambda n: '```\n~~~\n' * n),
    'an open fence': (lambda t: [*markdown_parts(t)], lambda n: '```\n' + ' ' * n + '`\n' * n),
    'hashes': (lambda t: [*markdown_parts(t)], lambda n: '# ' + '#' * n + 'x'),
    'open comments of Markdown': (lambda t: [*markdown_parts(t)], lambda n: '<!-- \n' * n),
    'columns': (read_table, lambda n: b'a;' * n),
    'comments of HTML': (html_text, lambda n: '<!--' * n),
    'tags without an end': (html_text, lambda n: '<a ' * n),
    'equals signs': (html_text, lambda n: '<a b= ' + '= ' * n + '>'),
    'open quotes in a tag': (html_text, lambda n: '<a ' + 'b="' * n),
    'open titles': (html_text, lambda n: '<title' * n),
    'blanks in HTML': (html_text, lambda n: '<p>a' + ' ' * n + '<b>b'),
    'a style of blanks': (html_text, lambda n: f'<p style="display{" " * n}: x">a'),
    'sentences that go on': (sentences, lambda n: 'a. ' * n),
    'marks behind a full stop': (sentences, lambda n: 'It is.' + '“' * n + 'x'),
    'open fences and sentences': (sentences, lambda n: '```\n~~~\n' * n),
    'quotes and items': (sentences, lambda n: '> - 1) ' * n),
    'blank lines': (sentences, lambda n: 'A. ' + '\n ' * n + 'B.'),
    'a whole sentence': (is_whole_sentence, lambda n: 'It is' + '.*' * n + 'x'),
    'a summary': (summarize, lambda n: 'Wort, ' * n),
    'names of passages': (passage_names, lambda n: '[1] (' + ')' * n + '\n[1] (' * n),
    'passages of blanks': (chunks, lambda n: 'a' + ' ' * n + 'b'),
    'passages of full stops': (chunks, lambda n: '. ' * n),
    'passages of headings': (passages, lambda n: '# \n' * n),
    'marks on a letter': (index_words, lambda n: 'ä' + '\u0301' * n),
    'letters and marks': (index_words, lambda n: 'ก\u0e31' * n + '!'),
    'a named episode': (named, lambda n: 'episode_id: x' + ', a: b' * n + '!'),
    'blanks around a name': (
        named,
        lambda n: '\n' * n + 'episode_id:' + ' ' * n + 'x' + '\n' * n + '!',
    ),
    'a language': (language_of, lambda n: 'the ä ' * n),
    'words without letters': (n_words, lambda n: '!' * n),
    'ends of sentences': (n_sentences, lambda n: 'a.' + '”' * n + 'x.' * n),
    'a list of numbers': (lambda t: LIMITS['numbered'](t, 3), lambda n: '1' * n + '. a'),
    'key facts': (key_facts, lambda n: 'KEY_FACTS:\n' + '- a\n' * n + 'SUMMARY:'),
    'words to find': (lambda t: LIMITS['names'](t, 'ab'), lambda n: 'abab' * n),
    'no word that ends': (gives_up, lambda n: 'kein' * n),
    'words of a refusal': (gives_up, lambda n: 'steht kommt no do not ich weiß ' * n),
    'a squashed text': (squash, lambda n: ' .' * n),
    'parts of a number': (answer_words, lambda n: '1.' * n + 'a'),
    'an answer': (normalise_answer, lambda n: 'the a ' * n),
    'bold without an end': (without_markup, lambda n: '**a ' * n),
    'strong blanks': (without_markup, lambda n: '__' + 'a ' * n),
    'stars and backticks': (without_markup, lambda n: '*a `b _c ' * n),
    'a heading of hashes': (lambda t: _sections(t, 'en'), lambda n: '# a' + ' #' * n + 'x'),
    'a name without an ending': (without_files, lambda n: 'a' * n + ' .md'),
}


def seconds(read, text) -> float:
    "Of this thread: other work on the machine does not count."
    start = time.thread_time()
    read(text)
    return time.thread_time() - start


@pytest.mark.parametrize('what', LINEAR)
def test_four_times_the_text_takes_four_times_as_long(what):
    "Sixteen times would be quadratic; what takes no time at all is not measured."
    read, text = LINEAR[what]
    n = 20_000
    read(text(100))  # what is made once is made
    once = min(seconds(read, text(n)) for _ in range(2))
    assert seconds(read, text(4 * n)) < 9 * once + 0.2


def test_long_numbers_of_a_list_are_no_error():
    assert not LIMITS['numbered']('1' * 5000 + '. a', 1)
    assert LIMITS['numbered']('1. a\n2. b', 2)


def test_the_same_words_as_before():
    "What was made linear reads as it did."
    texts = ('a  b!\n?! 1 - _', '', ' ... ', 'x')
    assert [n_words(t) for t in texts] == [4, 0, 0, 1]
    assert docx_words(' a \n\n\t b c \n') == 'a\nb c'
    assert gives_up('Kein Dokument nennt das.') and gives_up('Keines der Dokumente sagt es nicht.')
    assert [s.heading for s in _sections('# A #B # \n## C', 'en')] == ['', 'A #B', 'C']
    assert without_files('Read a/b-1.md#3 and c.d.txt, not x.mdx.') == 'Read   and  , not x.mdx.'
    assert without_markup('**a b** __c d__ __e__') == 'a b c d __e__'
    assert without_markup('see <https://a.b/c>, <b>x</b>') == 'see https://a.b/c, <b>x</b>'
    settings = ('a = 1', '"a" = 1', 'a\t = 1', 'a b: 1', "'a':", '- x', '[t]', '  x')
    for line in settings:
        assert read_markdown(front(line)).text == 'text', line
    for line in ('a', 'a b!', '"a', 'a:b', '"a" : 1'):
        assert read_markdown(front(line)).text != 'text', line


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
