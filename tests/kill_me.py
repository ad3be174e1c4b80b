"""Runs for tests/test_faults.py to kill. One process imports everything once, then forks a run for
every line that it reads:

[how it dies or null, function, argument, …]  →  the run's pid at once; at its end {"exit":
status, "said": …}
"""

import ctypes
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
import numpy as np
import torch
from mypt.model.checkpoint import recover, save_checkpoint
from mypt.model.config import ModelConfig
from mypt.model.gpt import GPT
from mypt.data.prepare import prepare
from mypt.agent.retrieval import Index
from mypt.data.writer import DatasetWriter
from mypt.data.tokenizer import get_tokenizer
from mypt.errors import UserError
from mypt.train.train import train as train_

SETS = [
    'n_layer=2',
    'n_embd=32',
    'n_head=2',
    'block_size=64',
    'batch_size=2',
    'eval_interval=7',
    'save_every=5',
    'learning_rate=0.01',
    'dropout=0.1',
    'neftune_alpha=5.0',
    'optimizer="muon"',
    'warmup_iters=5',
    'eval_iters=2',
    'grad_accum_steps=2',
]
TOUCH = {
    'open',
    'write',
    'close',
    'fsync',
    'replace',
    'rename',
    'mkdir',
    'rmdir',
    'unlink',
    'remove',
    'link',
    'serialize_file',
}


def train(dataset, model, steps):  # Seconds that it took
    start = time.monotonic()
    train_(model, dataset, sets=SETS, max_iters=steps, quiet=True)
    return time.monotonic() - start


def save(folder, step):
    "A checkpoint in which every number is `step`."
    model = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2))
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(step)
    save_checkpoint(
        folder,
        model,
        get_tokenizer('byte'),
        dict(step=step),
        {'model.norm.weight/exp_avg': torch.full((32,), float(step))},
    )


def put_right(folder):
    recover(Path(folder))


def dataset(folder, n):
    with DatasetWriter(folder, get_tokenizer('byte'), overwrite=True, block=64) as w:
        w.add(
            'train',
            np.full(64 * n, 65, 'u4'),
            np.ones(64 * n, 'u1'),
            [[64 * i, 64] for i in range(n)],
            np.ones(64 * n, 'u1'),
        )
        w.commit()


def small_disk(folder, size):
    """Mount a file system of `size` KiB that this process alone sees; False where the kernel does
    not allow it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    NEWNS, NEWUSER, REC, PRIVATE = 0x20000, 0x10000000, 0x4000, 0x40000
    if libc.unshare(NEWNS | (NEWUSER if os.geteuid() else 0)):
        return False
    libc.mount(None, b'/', None, REC | PRIVATE, None)
    return not libc.mount(b'none', folder.encode(), b'tmpfs', 0, f'size={size}k'.encode())


def on_small_disk(folder, size, what, *args):
    "What a run says whose disk gets full, and what is left."
    if not small_disk(folder, size):
        return None
    try:
        said = f'ended well: {globals()[what](folder, *args)}'
    except UserError as e:
        said = f'UserError: {e}'
    return [said, sorted(p for p in os.listdir(folder) if p != 'filler')]


def fill(folder, room=0):
    "Leave `room` bytes free."
    with open(f'{folder}/filler', 'wb', buffering=0) as f:
        try:
            while True:
                f.write(bytes(4096))
        except OSError:
            pass
        f.truncate(max(0, f.tell() - room))


def save_twice(folder):
    save(folder + '/m', 1)
    fill(folder)
    save(folder + '/m', 2)


def prepare_big(folder, source):
    prepare(source, folder + '/d', tokenization='byte', workers=1)


def index_twice(folder, docs, more):
    Index.build(docs, folder + '/i')
    fill(folder, 8192)
    Index.build(more, folder + '/i')


def log_on_full_disk(folder, source):
    """Train with the log on a full disk that gets room again; the steps in the log and the size of
    what waits.
    """
    from mypt.train.loop import Callback
    from mypt.train.callbacks import JSONLog, read_log

    log = JSONLog(folder + '/log.jsonl')

    class Room(Callback):
        def after_step(self, t):
            if t.step == 4:
                fill(folder)
            if t.step == 30:
                os.unlink(folder + '/filler')

    train_(source + '/../on_full', source, sets=SETS, max_iters=40, quiet=True, cbs=[Room(), log])
    return [r['step'] for r in read_log(folder + '/log.jsonl')], len(log.waiting)


def die(call=None, size=None):
    """SIGKILL before the `call`-th touch of a file, or in the middle of a write that passes `size`
    bytes.
    """
    if size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    n = 0

    def look(frame, event, arg):
        nonlocal n
        if event == 'c_call' and arg.__name__ in TOUCH:
            if n == call:
                os.kill(os.getpid(), signal.SIGKILL)
            n += 1

    if call is not None:
        sys.setprofile(look)


def run(how, name, *args):  # What it said
    if how:
        die(**how)
    try:
        return globals()[name](*args)
    except UserError as e:
        return f'UserError: {e}'
    finally:
        sys.setprofile(None)


if __name__ == '__main__':
    torch.set_num_threads(1)
    tell = os.fdopen(os.dup(1), 'w', buffering=1)
    os.dup2(2, 1)  # what runs print is no answer
    for line in sys.stdin:
        out, into = os.pipe()
        if not (pid := os.fork()):
            said = run(*json.loads(line))
            os.write(into, json.dumps(said).encode())
            sys.stdout.flush()
            os._exit(0)
        os.close(into)
        print(pid, file=tell)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with os.fdopen(out) as f:
            said = f.read()
        print(json.dumps(dict(exit=status, said=json.loads(said or 'null'))), file=tell)
