"""A headless Chromium for tests, driven over its own protocol: open a page, evaluate, press keys,
take a picture.
"""

import base64
import itertools
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

NAMES = ('chromium', 'chromium-browser', 'google-chrome', 'google-chrome-stable')
AXE = Path(
    os.environ.get('AXE_CORE') or Path(__file__).parent.parent / 'node_modules/axe-core/axe.min.js'
)  # npm pack axe-core
CHROMIUM = next((p for n in NAMES if (p := shutil.which(n))), None)
KEYS = dict(
    ArrowLeft=37,
    ArrowUp=38,
    ArrowRight=39,
    ArrowDown=40,
    Tab=9,
    Enter=13,
    Escape=27,
    Home=36,
    End=35,
)


def _said(result) -> str:
    return result['exceptionDetails'].get('exception', {}).get('description', 'JavaScript error')


class Browser:
    "One Chromium with one tab and no network; use as a context manager."

    def __init__(self, width=1100, height=900, dark=False):
        self.size, self.dark = (width, height), dark

    def __enter__(self):
        from websocket import create_connection

        self.dir = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        flags = [
            '--headless',
            '--no-sandbox',
            '--disable-gpu',
            '--disable-background-networking',
            '--hide-scrollbars',
            '--no-first-run',
            '--disable-dev-shm-usage',
            '--remote-debugging-port=0',
            '--proxy-server=127.0.0.1:9',
            f'--user-data-dir={self.dir.name}',
            'about:blank',
        ]
        self.process = subprocess.Popen(
            [CHROMIUM, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.ids, self.events, self.session = itertools.count(1), [], None
        self.ws = create_connection(self._endpoint(), timeout=60, suppress_origin=True)
        target = self('Target.createTarget', url='about:blank')['targetId']
        self.session = self('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
        for domain in ('Page', 'Runtime', 'Network', 'Log'):
            self(f'{domain}.enable')
        self.resize(*self.size)
        scheme = dict(name='prefers-color-scheme', value='dark' if self.dark else 'light')
        self('Emulation.setEmulatedMedia', features=[scheme])
        return self

    def __exit__(self, *exc):
        self.ws.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.dir.cleanup()

    def _endpoint(self):
        file, end = Path(self.dir.name) / 'DevToolsActivePort', time.time() + 60
        while time.time() < end:
            port, _, path = file.read_text().partition('\n') if file.exists() else ('', '', '')
            if path:
                return f'ws://127.0.0.1:{port}{path.strip()}'
            if self.process.poll() is not None:
                break
            time.sleep(0.05)
        raise RuntimeError('Chromium did not start')

    def __call__(self, method, **params):
        "One command of the DevTools protocol."
        i = next(self.ids)
        session = dict(sessionId=self.session) if self.session else {}
        self.ws.send(json.dumps(dict(id=i, method=method, params=params) | session))
        while True:
            msg = json.loads(self.ws.recv())
            if msg.get('id') == i:
                if 'error' in msg:
                    raise RuntimeError(f'{method}: {msg["error"]["message"]}')
                return msg['result']
            if 'method' not in msg:
                continue  # the answer to a command that nobody waits for
            self.events.append(msg)
            if msg['method'] == 'Page.javascriptDialogOpening':
                self._leave()

    def _leave(self):
        "A page that asks whether to leave it holds everything up: yes."
        self.ws.send(
            json.dumps(
                dict(
                    id=next(self.ids),
                    method='Page.handleJavaScriptDialog',
                    params=dict(accept=True),
                    sessionId=self.session,
                )
            )
        )

    def resize(self, width, height):
        self(
            'Emulation.setDeviceMetricsOverride',
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def open(self, url):
        "Load a page (a path or a URL) and wait until it has loaded."
        self.events.clear()
        self(
            'Page.navigate',
            url=Path(url).resolve().as_uri() if not re.match(r'\w+:', str(url)) else url,
        )
        end = time.time() + 30
        while not any(e['method'] == 'Page.loadEventFired' for e in self.events):
            if time.time() > end:
                raise RuntimeError(f'{url}: not loaded in 30 s')
            self('Runtime.evaluate', expression='1')
        return self

    def js(self, code):
        "The value of a JavaScript expression; a promise is awaited."
        r = self('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True)
        if 'exceptionDetails' in r:
            raise RuntimeError(_said(r))
        return r['result'].get('value')

    def wait(self, code, seconds=30):
        "Wait until a JavaScript expression is true; its value."
        end, said = time.time() + seconds, ''
        while time.time() < end:
            try:
                if value := self.js(code):
                    return value
            except RuntimeError as e:
                said = f' ({e})'
            time.sleep(0.1)
        raise RuntimeError(f'not within {seconds} s: {code}{said}')

    def press(self, key, times=1, shift=False):
        "Press a key as a person would."
        text = key if len(key) == 1 else '\r' if key == 'Enter' else ''
        for _ in range(times):
            code = KEYS.get(key, ord(key[0].upper()))
            common = dict(key=key, windowsVirtualKeyCode=code, modifiers=8 if shift else 0)
            self(
                'Input.dispatchKeyEvent',
                type='keyDown',
                **common,
                **(dict(text=text) if text else {}),
            )
            self('Input.dispatchKeyEvent', type='keyUp', **common)

    def type(self, text):
        "Put text into the focused field."
        self('Input.insertText', text=text)

    def hover(self, selector):
        "Move the mouse onto an element; where it then is."
        box = f'document.querySelector({json.dumps(selector)}).getBoundingClientRect()'
        x, y = self.js(f'(r => [r.x + r.width/2, r.y + r.height/2])({box})')
        self('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)
        return x, y

    def click(self, selector):
        "Scroll to an element and click it with the mouse."
        self.js(
            f'document.querySelector({json.dumps(selector)}).scrollIntoView({{block: "center"}})'
        )
        x, y = self.hover(selector)
        for kind in ('mousePressed', 'mouseReleased'):
            self('Input.dispatchMouseEvent', type=kind, x=x, y=y, button='left', clickCount=1)

    def axe(self, within='document'):
        "What axe-core finds serious or critical, as `rule: first element`."
        self.js(AXE.read_text(encoding='utf-8') + ';0')
        found = self.js(
            f"""axe.run({within}, {{resultTypes: ['violations']}}).then(r => r.violations
            .filter(v => ['serious', 'critical'].includes(v.impact))
            .map(v => [v.id, v.nodes.length, v.nodes[0].html.slice(0, 160),
                       v.nodes[0].failureSummary].join(' ')))"""
        )
        return found

    @contextmanager
    def frame(self, k=0):
        "The page within the k-th isolated frame: inside, commands go there."
        frames = [t for t in self('Target.getTargets')['targetInfos'] if t['type'] == 'iframe']
        page, self.session = (
            self.session,
            self('Target.attachToTarget', targetId=frames[k]['targetId'], flatten=True)[
                'sessionId'
            ],
        )
        try:
            yield self
        finally:
            self.session = page

    def problems(self, own=()):
        """Errors of scripts, of the console, and requests for anything but the page itself and
        addresses that begin like `own`.
        """
        self.js('1')
        out = []
        for e in self.events:
            m, p = e['method'], e.get('params', {})
            if m == 'Runtime.exceptionThrown':
                out.append(_said(p))
            elif m == 'Log.entryAdded' and p['entry']['level'] == 'error':
                out.append(p['entry']['text'])
            elif m == 'Network.requestWillBeSent' and not p['request']['url'].startswith(
                ('file:', 'data:', 'about:', *own)
            ):
                out.append('request: ' + p['request']['url'])
        return out

    def picture(self, path):
        Path(path).write_bytes(
            base64.b64decode(self('Page.captureScreenshot', format='png')['data'])
        )
