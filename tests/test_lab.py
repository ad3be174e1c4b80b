"""JupyterLab as a person uses it: notebooks run top to bottom, widgets answer, a run stops where it
is told to and is saved.
"""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
import nbformat
import pytest
from browser import CHROMIUM, Browser

OUTPUTS = (
    'jupyterapp.shell.currentWidget.content.model.sharedModel.cells.flatMap(c => c.outputs ?? [])'
)
IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
QUIET = {
    '@jupyterlab/apputils-extension:notification': dict(fetchNews='false', checkForUpdates=False),
    '@jupyterlab/notebook-extension:tracker': dict(windowingMode='none'),
}


class Lab:
    "A JupyterLab server on a folder and a browser in front of it."

    def __init__(self, home: Path, notebooks: Path):
        (home / 'settings').mkdir(parents=True)
        (home / 'settings' / 'overrides.json').write_text(json.dumps(QUIET))
        places = {f'JUPYTER_{k}_DIR': str(home / k.lower()) for k in ('CONFIG', 'DATA', 'RUNTIME')}
        self.home, env = (
            home,
            os.environ
            | places
            | dict(HOME=str(home), IPYTHONDIR=str(home / 'ipython'), OMP_NUM_THREADS='1'),
        )
        options = [
            '--no-browser',
            '--ip=127.0.0.1',
            '--port=0',
            '--allow-root',
            '--expose-app-in-browser',
            '--IdentityProvider.token=t',
            f'--ServerApp.root_dir={notebooks}',
            f'--LabApp.app_settings_dir={home / "settings"}',
            f'--LabApp.workspaces_dir={home / "workspaces"}',
            f'--LabApp.user_settings_dir={home / "user"}',
        ]
        with open(home / 'log', 'w') as log:
            self.server = subprocess.Popen(
                [sys.executable, '-m', 'jupyter', 'lab', *options],
                env=env,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.url, self.browser = self._url(), Browser(1280, 1000)

    def _url(self):
        end = time.time() + 60
        while time.time() < end and self.server.poll() is None:
            for f in (self.home / 'runtime').glob('jpserver-*.json'):
                try:
                    return json.loads(f.read_text())['url']
                except ValueError:
                    pass  # half written
            time.sleep(0.1)
        raise RuntimeError('JupyterLab did not start:\n' + (self.home / 'log').read_text()[-2000:])

    def __enter__(self):
        self.b = self.browser.__enter__()
        return self

    def __exit__(self, *exc):
        self.browser.__exit__(*exc)
        os.killpg(
            self.server.pid, signal.SIGTERM
        )  # the server and its kernels: a group of their own
        try:
            self.server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()

    def open(self, name):
        self.b.open(f'{self.url}lab/tree/{name}?token=t&reset')
        self.b.wait(IDLE, 60)
        return self

    def start(self):
        "Run all cells; returns at once."
        self.b.js(
            "void(window.ran = false, jupyterapp.commands.execute('notebook:run-all-cells').then(()"
            ' => window.ran = true))'
        )
        return self

    def done(self, seconds=60):
        self.b.wait('window.ran', seconds)
        return self

    def outputs(self):
        return self.b.js(f'JSON.parse(JSON.stringify({OUTPUTS}))')

    def texts(self):
        return [''.join(o['text']) for o in self.outputs() if o['output_type'] == 'stream']

    def red(self):
        "Cells that failed."
        return [
            f'{o["ename"]}: {o["evalue"]}' for o in self.outputs() if o['output_type'] == 'error'
        ]


@pytest.fixture(scope='module')
def lab(tmp_path_factory, root):
    if CHROMIUM is None:
        pytest.skip('no Chromium on this machine')
    for name in ('websocket', 'jupyterlab', 'anywidget'):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f'{name} is not installed')
    home = tmp_path_factory.mktemp('lab')
    shutil.copytree(root / 'nbs', home / 'nbs', ignore=shutil.ignore_patterns('_*', '.*'))
    write_training(home / 'nbs')
    with Lab(home / 'home', home / 'nbs') as lab:
        yield lab


def write_training(folder):
    "A notebook that trains until someone stops it."
    cells = [
        """from mypt.data.episodes import write_episodes
from mypt.data.prepare import prepare
from mypt.train.train import train
from mypt.report.board import LivePlot
from mypt.model.checkpoint import load_state
def turn(role, content): return dict(role=role, content=content)
say = [dict(messages=[turn('user', f'Say {k}.'), turn('assistant', f'{k}!')]) for k in range(200)]
write_episodes('say.jsonl', say)
ds = prepare('say.jsonl', 'say', 'byte', enable_packing=True, pack_block_size=256, workers=1,
             overwrite=True)""",
        """small = ['n_layer=1', 'n_embd=64', 'n_head=2', 'block_size=256', 'batch_size=2']
def go(*cbs):
    return train('mine', 'say', 'tiny', max_iters=100_000, quiet=True, sets=small, cbs=cbs)
t = go(LivePlot('mine', every=.2))""",
        """saved = load_state('checkpoints/mine')[0]['step']
print('asked', t.stop, 'at', t.step, 'saved', saved)""",
        """class Short(LivePlot):
    def after_step(self, t):
        super().after_step(t)
        if t.step >= until: t.stop = 'enough'
until = t.step + 5
print('went on to', go(Short('again', over='checkpoints/mine/log.jsonl')).step - until)""",
    ]
    nb = nbformat.v4.new_notebook(
        metadata=dict(kernelspec=dict(display_name='python3', language='python', name='python3'))
    )
    nb.cells = [nbformat.v4.new_code_cell(c) for c in cells]
    nbformat.write(nb, folder / 'stop.ipynb')


@pytest.mark.parametrize('name', ['index.ipynb', '03_masks.ipynb', 'report/inspect.ipynb'])
def test_a_notebook_runs_top_to_bottom(lab, name):
    lab.open(name).start().done(80)
    assert lab.red() == []
    cells = lab.b.js(
        'jupyterapp.shell.currentWidget.content.model.sharedModel.cells.filter(c => c.cell_type ==='
        " 'code').map(c => [c.source.trim() !== '', c.execution_count])"
    )
    assert len(cells) > 1 and all(count for has_code, count in cells if has_code)
    lab.b.picture(lab.home / f'{Path(name).stem}.png')


def test_the_inspector_answers_in_a_notebook(lab):
    "Goes on from the notebook that the test before has run."
    b, w = lab.b, '.jp-OutputArea-output .inspector'
    b.js(f"document.querySelector('{w}').scrollIntoView()")

    def said(what):
        return b.js(f"document.querySelector('{w} {what}').textContent")

    assert said('.where') == '2 of 2'  # as the notebook's `w.index = 1` says
    b.click(f'{w} .pick button:last-child')
    assert said('.where') == '1 of 2'
    b.click(f'{w} .layers label:nth-child(2) span')
    assert b.js(f"document.querySelector('{w}').dataset.layer") == 'trained'
    b.click(f'{w} .search input')
    b.type('Zugspitze')
    assert said('.found').startswith('1 of')
    b.press('Enter')
    assert said('.found').startswith('2 of')
    lab.b.picture(lab.home / 'widget.png')


@pytest.mark.parametrize('how', ['button', 'interrupt'])
def test_a_run_stops_and_is_saved(lab, how):
    """While a cell trains its kernel hears no widget; the button, and the notebook's own ■, still
    end the run with a checkpoint.
    """
    shutil.rmtree(lab.home.parent / 'nbs' / 'checkpoints', ignore_errors=True)
    lab.open('stop.ipynb').start()
    lab.b.wait("window.ran || !!document.querySelector('.mypt.live .panel')", 90)
    assert lab.red() == []
    lab.b.wait(
        "/step [3-9]|step \\d\\d/.test(document.querySelector('.mypt.live .pace')?.textContent)"
    )
    lab.b.picture(lab.home / f'live_{how}.png')
    if how == 'button':
        lab.b.click('.mypt.live .stop')
    else:
        lab.b.js("void(jupyterapp.commands.execute('notebook:interrupt-kernel'))")
    lab.done()
    assert lab.red() == []
    said = next(t for t in lab.texts() if t.startswith('asked'))
    step, saved = int(said.split(' at ')[1].split()[0]), int(said.split()[-1])
    assert 'SIGINT' in said and 3 <= step == saved < 100_000
    assert any('went on to 0\n' in t for t in lab.texts())
    assert (
        lab.b.js("document.querySelectorAll('.jp-OutputArea-output .mypt.board').length") == 2
    )  # plain pictures remain
    assert lab.b.js("document.querySelectorAll('.mypt.live').length") == 0
    lab.b.picture(lab.home / f'stopped_{how}.png')
