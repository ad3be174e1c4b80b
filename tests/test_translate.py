"""Translation against a server that speaks DeepL's API; kills, reviews, odd texts.

The server fails in every way that DeepL documents.
"""

import codecs
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from xml.etree import ElementTree
import pytest
from hypothesis import given, settings, strategies as st
from mypt.curate import deepl as deepl_module
from mypt.curate.deepl import BYTES, TEXTS, batches, setting
from mypt.curate.message_lines import escape, unescape
from mypt.curate.placeholders import Unit, rebuild, restore, shield, shields, split
from mypt.curate.translate import extract, merge, recombine, run_translation
from mypt.data.episodes import check_episode, read_episodes, write_episodes
from mypt.data.serialize import random_episode, serialize
from mypt.errors import UserError

KEY = 'sesame-open-1234:fx'


def rot(xml):
    "A translation that is easy to undo: ROT13 of every word outside tags and entities."
    return re.sub(
        r'<[^>]*>|&\w+;|[a-z]{2,}',
        lambda m: m[0] if m[0][0] in '<&' else codecs.encode(m[0], 'rot13'),
        xml,
    )


class Server(ThreadingHTTPServer):
    """DeepL's /v2/translate and /v2/usage.

    `plan` holds what happens to each request: a status, a word, or None for a good answer.
    """

    daemon_threads, allow_reuse_address = True, True

    def __init__(self):
        super().__init__(('127.0.0.1', 0), Handler)
        self.plan, self.requests, self.answered, self.limit, self.hold = (
            [],
            [],
            Counter(),
            10**6,
            threading.Event(),
        )
        self.hold.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f'http://127.0.0.1:{self.server_port}'

    def handle_error(self, *_):
        pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def say(self, status, body):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def authorized(self):
        ok = self.headers.get('Authorization') == f'DeepL-Auth-Key {KEY}'
        if not ok:
            self.say(403, {'message': 'Forbidden'})
        return ok

    def do_GET(self):
        if self.authorized():
            self.say(
                200,
                {
                    'character_count': sum(map(len, self.server.answered.elements())),
                    'character_limit': self.server.limit,
                },
            )

    def do_POST(self):
        raw = self.rfile.read(int(self.headers['Content-Length']))
        if not self.authorized():
            return
        ask, s = json.loads(raw), self.server
        s.requests.append(ask)
        fault = s.plan.pop(0) if s.plan else None
        if fault in ('hold', 'die'):
            s.hold.clear()
        s.hold.wait(20)
        if fault in ('close', 'die'):
            self.close_connection = True
            self.connection.close()
            return
        if isinstance(fault, int):
            return self.say(fault, {'message': f'planned {fault}'})
        if len(raw) > 128 * 1024:
            return self.say(413, {'message': 'too large'})
        if len(ask['text']) > 50 or ask['tag_handling'] != 'xml' or ask['target_lang'] != 'DE':
            return self.say(400, {'message': 'bad'})
        for t in ask['text']:
            ElementTree.fromstring(f'<r>{t}</r>')
        if fault in ('late', 'hang'):
            time.sleep(0.5 if fault == 'late' else 1.5)
        out = [
            dict(text=rot(t), detected_source_language='EN', billed_characters=len(t))
            for t in ask['text']
        ]
        if fault == 'malformed':
            return self.say(200, b'{"translations": [{"text": "Hal')
        if fault == 'page':
            return self.say(200, b'<html>Please log in</html>')
        if fault == 'shape':
            return self.say(200, {'translations': [{'txt': 1}]})
        if fault == 'few':
            out = out[:-1]
        if fault == 'many':
            out += out[:1]
        s.answered.update(ask['text'])
        self.say(200, {'translations': out})


@pytest.fixture
def server(monkeypatch, tmp_path):
    "A server, its address and key in the environment, an empty folder, and no real waiting."
    pytest.importorskip('deepl', reason="pip install 'mypt-lm[translate]'")
    s = Server()
    for k in ('NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(k, '127.0.0.1')
    monkeypatch.setenv('DEEPL_API_KEY', KEY)
    monkeypatch.setenv('DEEPL_SERVER_URL', s.url)
    monkeypatch.chdir(tmp_path)
    s.slept = []
    monkeypatch.setattr(deepl_module, 'sleep', s.slept.append)
    yield s
    s.hold.set()
    s.shutdown()
    s.server_close()


WORDS = 'door window river mountain bread little yellow carefully under between reads opens'.split()


def chat(q, a):
    return {'messages': [{'role': 'user', 'content': q}, {'role': 'assistant', 'content': a}]}


def gold(n, seed=1):
    rng = random.Random(seed)

    def some():
        return ' '.join(rng.choices(WORDS, k=6))

    return [
        {
            'system': 'You are MyPT.',
            'context': f'episode_id: {i:04d}',
            'messages': [
                {'role': 'user', 'content': f'Where {some()} number {i}?'},
                {'role': 'assistant', 'content': f'Here {some()} {i}, run `go {i}` [1].'},
            ],
        }
        for i in range(n)
    ]


def ready(n=130):
    "Extracted messages in the working directory: 2n texts."
    write_episodes('en.jsonl', gold(n))
    extract('en.jsonl', 'temp')


def one_line(e):
    assert '\n' not in str(e.value) and KEY not in str(e.value)
    return str(e.value)


# the way through


def test_the_documents_workflow(server, capsys):
    "Section 4 of the document: its five steps, its file names, its flags."
    ready(130)
    assert sorted(p.name for p in Path('temp').iterdir()) == [
        'assistant_messages_en.txt',
        'episode_ids.txt',
        'user_messages_en.txt',
    ]
    assert Path('temp/episode_ids.txt').read_text().split() == [f'{i:04d}' for i in range(130)]
    report = run_translation('temp')
    assert report['lines'] == 260 and len(server.requests) == 6 and report['must'] == 0
    n = recombine(
        'en.jsonl',
        'de.jsonl',
        user_translated='temp/user_messages_de.txt',
        assistant_translated='temp/assistant_messages_de.txt',
        language='de',
    )
    de = read_episodes('de.jsonl')
    assert n == len(de) == 130 and all(check_episode(e) == e and e['language'] == 'de' for e in de)
    assert [rot(e['messages'][0]['content']) for e in de] == [
        e['messages'][0]['content'] for e in gold(130)
    ]
    assert all(
        f'`go {i}` [1].' in e['messages'][1]['content'] and e['system'] == 'You are MyPT.'
        for i, e in enumerate(de)
    )
    assert merge('en.jsonl', 'de.jsonl', 'both.jsonl', shuffle=True, seed=3) == 260
    both, text = read_episodes('both.jsonl'), Path('both.jsonl').read_bytes()
    assert (
        Counter(e['language'] for e in both) == dict(en=130, de=130)
        and len({e['id'] for e in both}) == 260
    )
    assert set(Counter(e['_meta']['pair'] for e in both).values()) == {2}
    merge('en.jsonl', 'de.jsonl', 'both.jsonl', shuffle=True, seed=3)
    assert Path('both.jsonl').read_bytes() == text
    merge('en.jsonl', 'de.jsonl', 'both.jsonl')
    assert [e['language'] for e in read_episodes('both.jsonl')] == ['en', 'de'] * 130
    assert KEY not in capsys.readouterr().out


def test_each_text_is_sent_once_even_when_it_stands_often(server):
    write_episodes('en.jsonl', [chat('Is the door open?', 'Yes, it is.')] * 40)
    extract('en.jsonl', 'temp')
    run_translation('temp')
    assert server.answered == Counter(['Is the door open?', 'Yes, it is.'])


def test_what_is_sent(server):
    "Code blocks, code, links and the rest never leave the machine."
    code = 'Try this (guide.md):\n```python\nsecret = 5\n```\n'
    code += 'See https://x.example/a?b=1&c=2 or `rm -rf /`, <myPT_user> and {name} [2].'
    write_episodes('en.jsonl', [chat('Please & thanks < always', code)])
    extract('en.jsonl', 'temp')
    run_translation('temp', formality='prefer_less')
    sent = ' '.join(server.answered)
    assert (
        not re.search('secret|guide|x.example|rm -rf|myPT|name', sent)
        and 'Please &amp; thanks &lt; always' in sent
    )
    assert (
        server.requests[0]['formality'] == 'prefer_less'
        and server.requests[0]['source_lang'] == 'EN'
    )
    recombine('en.jsonl', 'de.jsonl', 'temp')
    answer = read_episodes('de.jsonl')[0]['messages'][1]['content']
    assert Counter(m[0] for m in shields().finditer(answer)) == Counter(
        m[0] for m in shields().finditer(code)
    )
    assert '```python\nsecret = 5\n```\n' in answer


# what DeepL can answer


@pytest.mark.parametrize(
    'fault', [429, 529, 500, 503, 'malformed', 'page', 'shape', 'few', 'many', 'close', 'late']
)
def test_what_passes_is_waited_for_and_said(server, fault, capsys):
    ready()
    server.plan = [None, None, fault]
    run_translation('temp')
    out = capsys.readouterr().out
    assert Path('temp/assistant_messages_de.txt').read_text().count('\n') == 130
    assert server.slept == ([] if fault == 'late' else [1]) and ('waiting 1 s' in out) == (
        fault != 'late'
    )
    if fault in (429, 529, 500, 503):
        assert f'({fault})' in out and set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    'fault,words',
    [
        (403, 'does not accept the key'),
        (456, 'quota'),
        (400, 'planned 400'),
        (404, '404'),
        (413, 'too large'),
    ],
)
def test_what_does_not_pass_stops_at_once_and_keeps_the_work(server, fault, words):
    ready()
    server.plan = [None, None, fault]
    with pytest.raises(UserError) as e:
        run_translation('temp')
    assert (
        words in one_line(e)
        and f'{fault}' in str(e.value)
        and 'Kept: 100 of 260' in str(e.value)
        and server.slept == []
    )
    assert not list(Path('temp').glob('*_de.txt'))
    run_translation('temp')
    assert len(server.answered) == 260 and set(server.answered.values()) == {1}


@pytest.mark.parametrize(
    'fault,times,words',
    [
        (429, 9, 'slow down (429)'),
        (500, 9, 'error of its own (500)'),
        ('malformed', 3, 'cannot be read'),
        ('few', 3, 'cannot be read'),
        ('close', 9, 'connection closed'),
    ],
)
def test_patience_ends(server, fault, times, words, capsys):
    ready()
    server.plan = [None] + [fault] * times
    with pytest.raises(UserError) as e:
        run_translation('temp')
    assert (
        words in one_line(e)
        and 'Kept: 50 of 260' in str(e.value)
        and len(server.slept) == times - 1
        and server.plan == []
    )
    assert (
        server.slept == sorted(server.slept)
        and capsys.readouterr().out.count('waiting') == times - 1
    )


def test_a_hanging_answer_is_a_timeout_and_no_hang(server, monkeypatch):
    ready(20)
    monkeypatch.setattr(deepl_module, 'TIMEOUT', 0.2)  # the library makes a second of it
    server.plan = ['hang']
    run_translation('temp')
    assert server.slept == [1]


def test_nobody_there(server, monkeypatch):
    ready(3)
    monkeypatch.setenv('DEEPL_SERVER_URL', 'http://127.0.0.1:9')
    with pytest.raises(UserError, match='connection refused; check the network') as e:
        run_translation('temp')
    one_line(e)
    monkeypatch.setenv('DEEPL_SERVER_URL', 'nonsense')
    with pytest.raises(UserError, match='cannot be reached') as e:
        run_translation('temp')
    one_line(e)
    assert server.slept == []


# the key


def test_a_wrong_key_is_found_before_anything_is_sent(server, monkeypatch):
    ready(3)
    monkeypatch.setenv('DEEPL_API_KEY', 'wrong-key')
    with pytest.raises(UserError, match=r'\(403\)') as e:
        run_translation('temp')
    assert 'wrong-key' not in str(e.value) and server.requests == []


@pytest.mark.parametrize('key', ['two words', 'line\nbreak', 'schlüssel'])
def test_a_key_that_cannot_be_sent_is_not_printed(server, monkeypatch, key):
    ready(3)
    monkeypatch.setenv('DEEPL_API_KEY', key)
    with pytest.raises(UserError, match='unusual characters') as e:
        run_translation('temp')
    assert key not in str(e.value)


@pytest.mark.parametrize(
    'raw',
    [
        f'DEEPL_API_KEY={KEY}\n'.encode(),
        f'A=1\r\nexport DEEPL_API_KEY = "{KEY}"  # free\r\n'.encode(),
        f"\ufeffDEEPL_API_KEY='{KEY}'".encode(),
        f'DEEPL_API_KEY={KEY}\r\n'.encode('utf-16'),
    ],
)
def test_the_key_from_a_file(server, monkeypatch, raw):
    ready(3)
    monkeypatch.delenv('DEEPL_API_KEY')
    with pytest.raises(UserError, match='set DEEPL_API_KEY'):
        run_translation('temp')
    Path('.env').write_bytes(raw)
    assert setting('DEEPL_API_KEY') == KEY and setting('API_KEY') is None
    assert run_translation('temp')['lines'] == 6


def test_without_the_library(server, monkeypatch):
    ready(3)
    monkeypatch.setitem(sys.modules, 'deepl', None)
    with pytest.raises(UserError, match='pip install deepl'):
        run_translation('temp')


def test_what_is_done_needs_no_key_and_no_network(server, monkeypatch):
    ready(3)
    run_translation('temp')
    monkeypatch.delenv('DEEPL_API_KEY')
    assert run_translation('temp')['characters'] == 0


# kills

CHILD = 'import sys; from mypt.curate.translate import run_translation; run_translation("temp")'


def start():
    return subprocess.Popen(
        [sys.executable, '-c', CHILD], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def test_kills_between_answers_cost_nothing(server):
    "SIGKILL while the next request waits: what was answered before is never sent again."
    ready(200)
    for at in (1, 2, 1, 3):
        server.plan = [None] * at + ['die']
        p = start()
        while server.hold.is_set():
            assert p.poll() is None
            time.sleep(0.01)
        p.send_signal(signal.SIGKILL)
        p.wait()
        server.hold.set()
    p = start()
    assert p.wait() == 0, p.stderr.read()
    assert len(server.answered) == 400 and set(server.answered.values()) == {1}
    assert recombine('en.jsonl', 'de.jsonl', 'temp') == 200


def test_kills_at_any_moment_cost_a_batch_at_most(server):
    ready(220)
    rng, kills = random.Random(2), 0
    while kills < 4:
        server.plan = ['late'] * 3
        p, before = start(), len(server.requests)
        while len(server.requests) == before and p.poll() is None:
            time.sleep(0.005)
        time.sleep(rng.random() * 0.7)
        if p.poll() is not None:
            break
        p.send_signal(signal.SIGKILL)
        p.wait()
        kills += 1
    time.sleep(0.6)
    server.plan = []
    p = start()
    assert p.wait() == 0, p.stderr.read()
    again = sum(n - 1 for n in server.answered.values())
    assert len(server.answered) == 440 and again <= kills * TEXTS and kills >= 2
    assert recombine('en.jsonl', 'de.jsonl', 'temp') == 220


def test_two_runs_at_once(server):
    ready(60)
    server.plan = ['hold']
    p = start()
    while not server.requests:
        assert p.poll() is None
        time.sleep(0.01)
    with pytest.raises(UserError, match='another run'):
        run_translation('temp')
    server.hold.set()
    assert p.wait() == 0


def test_a_torn_journal(server):
    ready(60)
    run_translation('temp')
    for f in Path('temp').glob('*_de.txt'):
        f.unlink()
    path = Path('temp/journal_en_de.jsonl')
    raw = path.read_bytes()
    rows = raw.splitlines(keepends=True)
    path.write_bytes(b''.join(rows[:41])[:-9])  # header, 39 whole rows, a torn one
    server.answered.clear()
    run_translation('temp')
    assert len(server.answered) == 120 - 39
    path.write_bytes(rows[0] + b'{"sent": 3\n' + rows[1])
    with pytest.raises(UserError, match=':2: is damaged'):
        run_translation('temp')
    path.write_bytes(b'7\n')
    with pytest.raises(UserError, match=r'is damaged|was made with'):
        run_translation('temp')
    path.write_bytes(raw)
    with pytest.raises(UserError, match='formality default'):
        run_translation('temp', formality='prefer_more')


def test_an_empty_quota_is_said_before(server, capsys):
    ready(3)
    server.limit = 500_000
    run_translation('temp')
    assert re.search(r'DeepL: 0 of 500,000 characters used, \d+ to send', capsys.readouterr().out)


# review


def losing(texts):
    return [
        t.replace('<x id="0"/>', '') if 'number 1?' in t or ' 1, run' in t else rot(t)
        for t in texts
    ]


def test_a_lost_shield_waits_for_a_person(server):
    ready(3)
    assert run_translation('temp', translator=losing)['must'] == 1
    review, out = Path('temp/review_de.txt'), Path('temp/assistant_messages_de.txt')
    assert (
        out.read_text().splitlines()[1]
        == Path('temp/assistant_messages_en.txt').read_text().splitlines()[1]
    )
    with pytest.raises(UserError, match='lost or doubled: `go 1`') as e:
        recombine('en.jsonl', 'de.jsonl', 'temp')
    assert one_line(e) and not Path('de.jsonl').exists()
    machine, said = (
        review.read_text(),
        [r[4:] for r in review.read_text().splitlines() if r.startswith('de: ')][-1],
    )

    def result():
        recombine('en.jsonl', 'de.jsonl', 'temp')
        return read_episodes('de.jsonl')[1]['messages'][1]['content']

    review.write_text(machine.replace('[ ] assistant', '[x] assistant'))
    assert result() == said
    review.write_text(
        machine.replace(f'de: {said}', 'de: Mit `go 1` [1].\\nEnde.').replace('\n', '\r\n')
    )
    assert result() == 'Mit `go 1` [1].\nEnde.'
    lines = out.read_text().splitlines()
    out.write_text('\n'.join([lines[0], 'Von Hand.', lines[2]]))
    with pytest.raises(UserError, match='edited here and in its own file'):
        result()
    review.write_text(machine)
    assert result() == 'Von Hand.'


def test_a_doubt_does_not_wait_and_an_edit_of_it_counts(server):
    ready(3)
    run_translation('temp', translator=losing)  # user line 2 comes back as it went
    review = Path('temp/review_de.txt')
    assert '] user_messages:2 - not translated (' in review.read_text()
    review.write_text(
        re.sub(r'(?s)(\[ \] user.*?\nde: ).*?\n', r'\1Wo?\n', review.read_text()).replace(
            '[ ] assistant', '[x] assistant'
        )
    )
    recombine('en.jsonl', 'de.jsonl', 'temp')
    assert read_episodes('de.jsonl')[1]['messages'][0]['content'] == 'Wo?'


def test_edited_files_are_never_written_over(server, capsys):
    ready(3)
    run_translation('temp')
    out = Path('temp/user_messages_de.txt')
    out.write_text(edited := out.read_text().replace('?', '!'))
    run_translation('temp')
    assert out.read_text() == edited and 'edited by hand, kept' in capsys.readouterr().out
    write_episodes('en.jsonl', gold(4, seed=5))
    extract('en.jsonl', 'temp')
    with pytest.raises(UserError, match=r'user_messages_de\.txt: was edited'):
        run_translation('temp')
    assert out.read_text() == edited
    run_translation('temp', overwrite=True)
    assert recombine('en.jsonl', 'de.jsonl', 'temp') == 4


@pytest.mark.parametrize(
    'spoil,words',
    [
        (
            lambda d: (d / 'user_messages_de.txt').write_text('one\ntwo\n'),
            r'user_messages_de.txt has 2 lines, en.jsonl has 3 such messages',
        ),
        (lambda d: (d / 'user_messages_de.txt').write_text('1\n2\n3\n4\n'), 'has 4 lines'),
        (
            lambda d: (d / 'user_messages_de.txt').write_text('1\n\n3\n'),
            'user_messages_de.txt:2: is empty',
        ),
        (lambda d: (d / 'user_messages_de.txt').write_bytes(b'1\n\xff\n3\n'), 'is not UTF-8'),
        (lambda d: (d / 'assistant_messages_de.txt').unlink(), 'no such file'),
        (lambda d: write_episodes('en.jsonl', gold(3, seed=9)), 'is not what .* was made from'),
        (
            lambda d: (d / 'review_de.txt').write_text(
                '[ ] user_messages:1 - odd (12345678)\nde: broken\n'
            ),
            'review_de.txt:1: a block',
        ),
        (
            lambda d: (d / 'review_de.txt').write_text(
                '[ ] user_messages:9 - odd (12345678)\nen: a\nde: b\n'
            ),
            'another text',
        ),
    ],
)
def test_what_does_not_fit_is_an_error_and_writes_nothing(server, spoil, words):
    ready(3)
    run_translation('temp')
    spoil(Path('temp'))
    with pytest.raises(UserError, match=words) as e:
        recombine('en.jsonl', 'de.jsonl', 'temp')
    assert one_line(e) and not Path('de.jsonl').exists()


def test_editors_may_change_line_ends(server):
    ready(3)
    run_translation('temp')
    for f in ('user', 'assistant'):
        p = Path(f'temp/{f}_messages_de.txt')
        p.write_bytes(b'\xef\xbb\xbf' + p.read_bytes().replace(b'\n', b'\r\n') + b'\r\n\r\n')
    assert recombine('en.jsonl', 'de.jsonl', 'temp') == 3


def test_wrong_calls(server):
    ready(3)
    with pytest.raises(UserError, match='begin with mypt translate extract'):
        run_translation('.')
    with pytest.raises(UserError, match='--dir'):
        recombine('en.jsonl', 'de.jsonl')
    with pytest.raises(UserError, match='is the original'):
        recombine('en.jsonl', './en.jsonl', 'temp')
    write_episodes('de.jsonl', [gold(1)[0] | {'language': 'de'}])
    with pytest.raises(UserError, match="says language 'de'"):
        extract('de.jsonl', 'x')
    with pytest.raises(UserError, match='right file'):
        merge('de.jsonl', 'de.jsonl', 'x.jsonl')
    write_episodes('r.jsonl', [{'_replay': True, 'text': 'x'}])
    with pytest.raises(UserError, match='replay'):
        extract('r.jsonl', 'x')
    Path('empty.jsonl').touch()
    with pytest.raises(UserError, match='no episodes'):
        extract('empty.jsonl', 'x')
    with pytest.raises(UserError, match='2 translations came back for 6 texts'):
        run_translation('temp', translator=lambda t: t[:2])
    assert not Path('x').exists() and not Path('x.jsonl').exists()


def test_words_to_keep(server):
    write_episodes('en.jsonl', [chat('KEY FACTS about the door', 'KEY FACTS: it opens.')])
    Path('keep.txt').write_text('KEY FACTS\nopens\n')
    extract('en.jsonl', 'temp')
    run_translation('temp', keep='keep.txt')
    assert all('KEY' not in t and 'opens' not in t for t in server.answered)
    recombine('en.jsonl', 'de.jsonl', 'temp')
    assert read_episodes('de.jsonl')[0]['messages'][1]['content'].startswith('KEY FACTS: ')


def test_every_part_of_an_episode(server):
    "Thoughts, contexts, inner citations and `expected` follow; tools, cites and prompts stay."
    ep = {
        'system': 'You are kind.',
        'id': 'a',
        '_meta': {'expected': 'The door opens under bread.', 'category': 'tools'},
        'messages': [
            {
                'role': 'user',
                'content': 'Where is bread?',
                'context': '[1] (a.md) The bread\nis little.',
            },
            {
                'role': 'assistant_toolcall',
                'name': 'workspace.search',
                'arguments': {'query': 'bread'},
                'think': 'Better search bread.',
            },
            {'role': 'toolresult', 'name': 'workspace.search', 'content': {'documents': []}},
            {'role': 'assistant_context', 'content': 'Some river.'},
            {
                'role': 'assistant',
                'content': 'The door opens under bread.',
                'think': 'Found it.',
                'cite': [{'at': 8, 'text': 'a.md'}, 'b.md'],
            },
        ],
    }
    write_episodes('en.jsonl', [ep])
    for system in (False, True):
        extract('en.jsonl', 'temp', system=system)
        run_translation('temp')
        recombine('en.jsonl', 'de.jsonl', 'temp')
        de = read_episodes('de.jsonl')[0]
        back = json.loads(rot(json.dumps(de['messages'][4]['content'])))
        assert back == 'The door opens under bread.' and de['messages'][4]['cite'] == [
            {'at': 8, 'text': 'a.md'},
            'b.md',
        ]
        assert (
            de['messages'][1]['arguments'] == {'query': 'bread'}
            and de['messages'][2] == ep['messages'][2]
        )
        assert (
            de['messages'][0]['context'].startswith('[1] (a.md) ')
            and 'bread' not in de['messages'][0]['context']
        )
        assert de['_meta'] == {'expected': de['messages'][4]['content'], 'category': 'tools'}
        assert de['messages'][3]['content'] != 'Some river.'
        assert (de['system'] == 'You are kind.') != system
        for f in Path('temp').iterdir():
            f.unlink()


# properties

NASTY = [
    '`',
    '```',
    '\n',
    '\r',
    '\\n',
    '\\',
    '<x id="0"/>',
    '<myPT_cite>',
    '&lt;',
    '&',
    '<',
    '>',
    ' ',
    '  ',
    '\t',
    '- ',
    '1. ',
    '# ',
    '> ',
    'word',
    'two words.',
    '[1]',
    '(a.md)',
    'https://a.de/b?c=d',
    '{x}',
    '\u2028',
    '\x85',
    'ä',
    '日本',
    '🙂',
    '5',
    '{"a": 1}',
    '~~~\n',
    '<pre>',
    '</pre>',
    '$',
    '%s',
    '_',
    '.',
    '/',
    'a_b',
    'f()',
    '\x0b',
    '\x1f',
    '"',
    "'",
]
texts = st.lists(st.sampled_from(NASTY), min_size=1, max_size=14).map(''.join)


@given(texts)
@settings(max_examples=400, deadline=None)
def test_nothing_is_lost_on_the_way(text):
    assert unescape(escape(text)) == text and len(escape(text).splitlines()) <= 1
    parts = split(text, shields())
    assert ''.join(p if isinstance(p, str) else p.text for p in parts) == text
    units = [p for p in parts if isinstance(p, Unit)]
    for u in units:
        ElementTree.fromstring(f'<r>{u.xml}</r>')
    assert rebuild(parts, {u.xml: u.xml for u in units})[:2] == (text, [])


@given(texts, st.randoms())
@settings(max_examples=200, deadline=None)
def test_a_mark_that_is_lost_doubled_or_made_up_is_told(text, rng):
    unit = shield(text.strip(), shields())
    marks = re.findall(r'<x id="\d+"/>', unit.xml)
    if marks:
        m = rng.choice(marks)
        assert restore(unit, unit.xml.replace(m, ''))[1] and restore(unit, unit.xml + m)[1]
    assert (
        restore(unit, unit.xml + f'<x id="{len(marks)}"/>')[1]
        and restore(unit, unit.xml + '<b>x</b>')[1]
        and restore(unit, '')[1]
    )


@pytest.mark.parametrize('seed', range(3))
def test_an_identity_gives_the_episodes_back(tmp_path, monkeypatch, seed):
    "Random legal episodes of nasty text, all through the files."
    monkeypatch.chdir(tmp_path)
    rng = random.Random(seed)

    def text():
        return ''.join(rng.choices(NASTY, k=rng.randint(1, 8))) + 'end'

    eps = [check_episode(random_episode(rng, text)) for _ in range(150)]
    write_episodes('en.jsonl', eps)
    extract('en.jsonl', 'temp', system=True)
    run_translation('temp', translator=lambda t: t)
    recombine('en.jsonl', 'de.jsonl', 'temp')
    de = read_episodes('de.jsonl')
    assert [e | {'language': 'de'} for e in eps] == de
    for e in de:
        serialize(e)


@given(st.lists(st.integers(1, 30_000), max_size=120))
@settings(max_examples=50, deadline=None)
def test_batches_hold_the_limits(sizes):
    texts = ['ä' * (n // 6 + 1) for n in sizes]
    out = batches(texts)
    assert [t for b in out for t in b] == texts
    assert all(len(b) <= TEXTS and (len(json.dumps(b)) <= BYTES or len(b) == 1) for b in out)


def test_long_lines_are_cut_and_long_tokens_take_no_time():
    text = (
        'One sentence ends here. ' * 1000
        + 'x' * 50_000
        + ' `'
        + 'code ' * 3000
        + '` '
        + 'a.b/c-' * 5000
    )
    start = time.process_time()
    parts = split(text, shields())
    assert ''.join(p if isinstance(p, str) else p.text for p in parts) == text
    assert (
        max(len(p.xml) for p in parts if isinstance(p, Unit)) < 3 * 4000
        and time.process_time() - start < 3
    )


def test_a_dry_run_counts_and_leaves_nothing(server, capsys):
    "No request, no journal, no key needed; after half a run it counts the other half."
    ready(60)
    before = sorted(p.name for p in Path('temp').iterdir())
    told = run_translation('temp', dry_run=True)
    assert not server.requests and sorted(p.name for p in Path('temp').iterdir()) == before
    server.plan = [None, 456]
    with pytest.raises(UserError):
        run_translation('temp')
    half = run_translation('temp', dry_run=True)
    assert (
        half['texts'] == told['texts'] - len(server.requests[0]['text'])
        and 0 < half['characters'] < told['characters']
    )
    run_translation('temp')
    assert run_translation('temp', dry_run=True)['texts'] == 0


KEPT = [
    (
        'Run this:\n\n    for i in range(3):\n        print(i)\n\nThen go on.',
        '    for i in range(3):\n        print(i)',
    ),
    ('Run this:\n\tmake all\nThen go on.', '\tmake all'),
    ('Hi {% if user %}dear {{ user }}{% endif %}, welcome.', '{% if user %}'),
    ('Hi <%= user.name %>, welcome to <% if x %>us<% end %>.', '<%= user.name %>'),
    ('That is %5.2f percent of %1$s for %-10s and %03d.', ['%5.2f', '%1$s', '%-10s', '%03d']),
    ('Return JSON like {"name": "value"} only.', '{"name": "value"}'),
    (
        'Return {\n  "name": ["value", {"on": true}]\n} only.',
        '{\n  "name": ["value", {"on": true}]\n}',
    ),
    ('Return {"name": <the name>} only.', '{"name": <the name>}'),
    ('The formula \\(a^2 + for\\) holds, and \\[x = for\\] too.', ['a^2', 'x =']),
    ('With $x_{for}$ and $$y = for$$ it holds.', ['x_', 'y =']),
    (
        'See\n\\begin{align}\na &= for \\\\\n\\end{align}\nfor it.',
        '\\begin{align}\na &= for \\\\\n\\end{align}',
    ),
    ('Use ``a ` for`` and `for`.', ['a `', 'for`']),
    ('A <code>for x</code> loop.', '<code>for x</code>'),
    ('Set print(name) or f(x=name, "in") as it.', ['print(name)', 'name, "in"']),
    ('Type:\n\n>>> for x in y:\n...     print(x)\n\nThen go.', ['for x', 'print']),
    ('Type:\n$ ls for\nThen go.', 'ls for'),
    ('He wrote:\n> Run this:\n>\n>     for i in x\n\nThen go.', 'for i in x'),
    ('There are {n, plural, one {# file} other {# files}} for you.', ['plural', 'other', 'files']),
    ('Return {name: "value", user: {on: true, of: {value: 1}}} only.', ['name', 'user', 'of']),
]


@pytest.mark.parametrize('text, kept', KEPT)
def test_code_of_any_kind_is_not_sent(text, kept):
    parts = split(text, shields())
    assert ''.join(p if isinstance(p, str) else p.text for p in parts) == text
    sent = ' '.join(p.words for p in parts if isinstance(p, Unit))
    done = {p.xml: p.xml for p in parts if isinstance(p, Unit)}
    rebuilt = rebuild(parts, done)
    assert rebuilt.text == text
    assert not any(piece in sent for piece in (kept if isinstance(kept, list) else [kept]))


def test_prose_is_still_sent():
    for text in (
        'It costs $5 and $6 today.',
        'About 50% a year, 20 % of it.',
        '- One\n\n    and more of it',
        'A set {1, 2} and [1, 2] here.',
        'The year(s) and the colleague(s) and die Kolleg(inn)en.',
        '> He said so and went.',
        '$ 5 and more.',
    ):
        words = ' '.join(p.words for p in split(text, shields()) if isinstance(p, Unit))
        assert 'and' in words or 'year' in words


def test_the_review_says_what_was_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_episodes(
        'e.jsonl',
        [
            {
                'messages': [
                    {'role': 'user', 'content': 'Run this:\n\n    go\n\nand say {"a": 1}.'},
                    {'role': 'assistant', 'content': 'Good.'},
                ]
            }
        ],
    )
    extract('e.jsonl', 't')
    run_translation('t', translator=lambda texts: texts)
    review = Path('t/review_de.txt').read_text()
    assert '# kept in user_messages:1:     go · {"a": 1}\n' in review
    assert recombine('e.jsonl', 'o.jsonl', 't') == 1


@pytest.mark.parametrize(
    'text',
    [
        '`' * 40_000,
        '~' * 40_000 + '\n',
        '~~~ ' * 10_000 + '\n',
        ''.join('`' * (i % 200 + 1) + ' ' for i in range(400)),
        '{"a": ' * 10_000,
        '<code>' * 10_000,
        '<a b ' * 10_000,
        '\\(' * 20_000,
        '{%' * 20_000,
        '<%' * 20_000,
        '/.' * 20_000,
        '$$' * 20_000,
        '\\begin{a}' * 5_000,
        'x' * 200_000,
        ' ' * 200_000 + 'x',
        '....' * 20_000 + 'x',
        '\n' * 60_000,
    ],
)
def test_no_text_takes_more_than_linear_time_to_shield(text):
    begin = time.monotonic()
    parts = split(f'a {text} b', shields())
    list(shields().finditer(text))
    assert ''.join(p if isinstance(p, str) else p.text for p in parts) == f'a {text} b'
    assert time.monotonic() - begin < 15
