"A teacher behind HTTP: one that answers well, badly, slowly, or not at all."

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from time import sleep

import pytest

from mypt.cli import main
from mypt.curriculum import teacher
from mypt.data.episodes import read_episodes

THINGS = {
    'lamp': ('The lamp in the hall was built by Ada Berg in 1911.', 'Who built the hall lamp?'),
    'boat': ('The boat belongs to Ida Lund and lies in the port.', 'Whose boat is that?'),
    'mill': ('The mill grinds four sacks of corn every hour.', 'How much corn can the mill take?'),
    'harp': ('The harp has forty strings and stands near the door.', 'How many strings, the harp?'),
}


class Server:
    "What it does next is `mode`; what it was asked is `asked`."

    def __init__(self):
        self.mode, self.asked, self.keys = 'good', [], []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def send(self, status, body, **headers):
                raw = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name.replace('_', '-'), value)
                self.send_header('Content-Length', str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def do_GET(self):
                self.send(200, dict(data=[dict(id='little-teacher')]))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers['Content-Length'])))
                outer.asked.append(body)
                outer.keys.append(self.headers.get('Authorization'))
                outer.answer(self, body)

        self.http = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        self.url = f'http://127.0.0.1:{self.http.server_port}/v1'
        self.http.handle_error = lambda *_: None  # a client that has gone
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def answer(self, handler, body):
        text = body['messages'][1]['content']
        name = text.split('\n')[0].split()[-1]
        said, question = THINGS[name]
        rows = {
            'good': [dict(question=question, answer=said)],
            'lies': [dict(question=question, answer='a hundred years')],
            'echo': [dict(question=f'Is it true: {said}', answer=said)],
            'lost': [dict(question='Zum wem gehört Quxolbat?', answer=said)],
        }
        if self.mode == 'slow':
            sleep(1.5)
        status = dict(key=401, quota=429, busy=429, down=503, gone=404).get(self.mode, 200)
        if status != 200:
            error = dict(error=dict(code='insufficient_quota' if self.mode == 'quota' else 'no'))
            handler.send(status, error, Retry_After='0')
        elif self.mode == 'html':
            handler.send(200, b'<html>hello</html>')
        elif self.mode == 'odd':
            handler.send(200, dict(choices=[]))
        else:
            reply = json.dumps(rows.get(self.mode, [])) if self.mode in rows else 'Ask me later.'
            message = dict(role='assistant', content=f'Here you are:\n```json\n{reply}\n```')
            handler.send(200, dict(choices=[dict(message=message)]))


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(teacher, 'PATIENCE', (0, 0))
    for key in teacher.KEYS:
        monkeypatch.delenv(key, raising=False)
    (tmp_path / 'docs').mkdir()
    for name, (said, _) in THINGS.items():
        text = f'# The {name}\n\nMuch could be told here. {said} More is not known of it today.'
        (tmp_path / 'docs' / f'{name}.md').write_text(text)
    server = Server()
    yield server
    server.http.shutdown()


def make(server, *more):
    argv = ['make', 'rag_chat', '--docs_dir', 'docs', '--output', 'out.jsonl']
    return main([*argv, '--num_examples', '4', '--teacher', server.url, *more])


def test_good_questions_become_episodes(server, capsys, monkeypatch):
    monkeypatch.setenv('MYPT_TEACHER_KEY', 'k-1')
    assert make(server, '--options', 'silent=0') == 0
    made = read_episodes('out.jsonl')
    assert {e['messages'][0]['content'] for e in made} == {q for _, q in THINGS.values()}
    for e in made:
        user, answer = e['messages']
        assert answer['content'] in user['context'] and answer['cite'] in user['context']
    assert 'kept 4' in capsys.readouterr().out
    assert server.asked[0]['model'] == 'little-teacher' and server.keys[0] == 'Bearer k-1'


def test_what_was_written_is_not_asked_again(server):
    assert make(server) == 0
    first, asked = open('out.jsonl', 'rb').read(), len(server.asked)
    assert make(server) == 0
    assert len(server.asked) == asked == 4 and open('out.jsonl', 'rb').read() == first


def test_an_interrupted_teacher_goes_on(server, capsys):
    "Two replies, then the quota is used up: one line, and the next run asks for the other two."
    answer = server.answer

    def two_replies(handler, body):
        server.mode = 'good' if len(server.asked) < 3 else 'quota'
        answer(handler, body)

    server.answer = two_replies
    assert make(server) == 2
    assert 'the quota is used up' in capsys.readouterr().err
    server.answer, server.mode = answer, 'good'
    assert make(server) == 0 and len(server.asked) == 5  # three, of which one failed, and two


def test_an_honest_abstention_shows_no_answer(server):
    assert make(server, '--options', 'silent=1') == 0
    for e in read_episodes('out.jsonl'):
        user, answer = e['messages']
        assert answer['content'] == 'The context does not say.' and 'cite' not in answer
        assert e['_meta']['about']['sentence'] not in user['context']


@pytest.mark.parametrize(
    'mode, counted',
    [
        ('lies', 'answer not in the passage 4'),
        ('echo', 'the question holds its answer 4'),
        ('prose', 'reply without questions 4'),
        ('odd', 'reply without questions 4'),
        ('lost', 'retrieval does not find the passage'),
    ],
)
def test_nonsense_is_counted(server, capsys, mode, counted):
    server.mode = mode
    assert make(server) == 2
    said = capsys.readouterr()
    assert counted in said.out and 'not one episode could be made' in said.err


@pytest.mark.parametrize(
    'mode, message, tries',
    [
        ('key', 'the key is refused (401); set MYPT_TEACHER_KEY', 1),
        ('quota', 'the quota is used up (429)', 1),
        ('gone', 'no such address or model (404', 1),
        ('busy', 'asks to slow down (429)', 3),
        ('down', 'has an error of its own (503)', 3),
        ('html', 'the reply is not JSON', 1),
    ],
)
def test_troubles_are_one_line(server, capsys, mode, message, tries):
    server.mode = mode
    assert make(server) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.strip().splitlines()) == 1
    assert len(server.asked) == tries


def test_a_slow_teacher(server, capsys):
    server.mode = 'slow'
    assert make(server, '--teacher_timeout', '0.2') == 2
    assert 'no answer within 0.2 seconds; --teacher_timeout' in capsys.readouterr().err


def test_no_teacher_at_all(server, capsys):
    server.http.server_close()
    server.url = 'http://127.0.0.1:9/v1'
    assert make(server) == 2
    assert 'start the server, or check --teacher' in capsys.readouterr().err
    assert main(['make', 'echo', '--output', 'e.jsonl', '--teacher', server.url]) == 2
    assert '--teacher is for rag_chat' in capsys.readouterr().err
