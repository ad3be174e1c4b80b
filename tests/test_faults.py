"""Kills at random moments, full disks, torn and flipped files: nothing is lost, nothing half-written, one clear line."""
import json, os, random, resource, signal, subprocess, sys, time
from pathlib import Path
import pytest, torch
from safetensors.torch import load_file
from mypt.tokens import UserError, get_tokenizer
from mypt.episodes import write_episodes
from mypt.prepare import prepare
from mypt.checkpoint import load_model, load_state, save_checkpoint
from mypt.config import ModelConfig
from mypt.model import GPT

HERE = Path(__file__).parent
ENV = os.environ | {'OMP_NUM_THREADS': '1'}

def sums(n=80):
    return [{'messages': [{'role': 'user', 'content': f'{i}+{i+3}'}, {'role': 'assistant', 'content': str(2*i+3)}]}
            for i in range(n)]

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    d = tmp_path_factory.mktemp('data')
    write_episodes(d/'sums.jsonl', sums())
    prepare(str(d/'sums.jsonl'), str(d/'sums'), tokenization='byte', enable_packing=True, pack_block_size=64)
    return d/'sums'

def start(dataset, model): return subprocess.Popen([sys.executable, HERE/'kill_me.py', dataset, model], stdout=subprocess.PIPE,
                                                   stderr=subprocess.PIPE, text=True, env=ENV)

def first_step(p)->bool: # False when the run ended without making one
    "Wait until steps are being made: kill_me.py prints their numbers."
    return any(line.strip().isdigit() for line in iter(p.stdout.readline, ''))

def weights(model): return load_file(model/'model.safetensors')

def same(a, b): return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)

def test_ten_kills_end_bit_for_bit_like_the_undisturbed_run(dataset, tmp_path):
    "SIGKILL at ten random moments, in steps, evaluations and checkpoint writes; final weights and optimizer are equal in every bit."
    p = start(dataset, tmp_path/'calm')
    assert p.wait() == 0, p.stderr.read()
    rng, killed, model = random.Random(4), 0, tmp_path/'killed'
    while killed < 10:
        p = start(dataset, model)
        if not first_step(p): break
        time.sleep(rng.random() * .12)
        p.send_signal(signal.SIGKILL); p.wait(); killed += 1
    assert killed == 10, 'the run ended before ten kills: make it longer'
    p = start(dataset, model)
    out, err = p.communicate()
    assert p.returncode == 0, err
    assert same(weights(tmp_path/'calm'), weights(model))
    (s1, t1), (s2, t2) = load_state(tmp_path/'calm'), load_state(model)
    assert s1 == s2 and same(t1, t2)
    steps = [json.loads(l)['step'] for l in (model/'log.jsonl').read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 60

def test_sigterm_saves_and_exits_well(dataset, tmp_path):
    p = start(dataset, tmp_path/'m')
    assert first_step(p)
    p.send_signal(signal.SIGTERM)
    assert p.wait(60) == 0
    step = load_state(tmp_path/'m')[0]['step']
    assert 0 < step < 60
    assert load_model(tmp_path/'m', verify=True)[2]['step'] == step

SAVER = '''
import sys, torch
from mypt.tokens import get_tokenizer
from mypt.config import ModelConfig
from mypt.model import GPT
from mypt.checkpoint import save_checkpoint
tok = get_tokenizer('byte')
model = GPT(ModelConfig(n_layer=2, n_embd=128, n_head=2))
for step in range(1, 10000):
    with torch.no_grad():
        for p in model.parameters(): p.fill_(step)
    save_checkpoint(sys.argv[1], model, tok, dict(step=step), {'x/m': torch.full((1000,), float(step))})
    print(step, flush=True)
'''

def test_a_killed_save_leaves_old_or_new_never_a_mixture(tmp_path):
    rng, folder = random.Random(1), tmp_path/'m'
    for _ in range(8):
        p = subprocess.Popen([sys.executable, '-c', SAVER, folder], stdout=subprocess.PIPE, text=True, env=ENV)
        p.stdout.readline()
        time.sleep(rng.random() * .15)
        p.kill(); p.wait()
        model, _, meta = load_model(folder, verify=True)
        state, tensors = load_state(folder)
        values = {float(w.flatten()[0]) for w in model.state_dict().values()} | {float(tensors['x/m'][0])}
        assert values == {float(state['step'])} == {float(meta['step'])}
        assert not (folder/'.next').exists() and not (folder/'.commit').exists()

def small_model(folder, step=1):
    torch.manual_seed(step)
    model, tok = GPT(ModelConfig(n_layer=1, n_embd=32, n_head=2)), get_tokenizer('byte')
    save_checkpoint(folder, model, tok, dict(step=step), {'x/m': torch.ones(10)})
    return model, tok

def test_a_full_disk_keeps_the_old_checkpoint(tmp_path):
    "A file-size limit stands in for a full disk: writing fails in the middle of a file."
    small_model(tmp_path/'m')
    code = f'''
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
import sys; sys.path.insert(0, {str(HERE)!r})
from test_faults import small_model
from mypt.tokens import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try: small_model({str(tmp_path/'m')!r}, step=2)
except UserError as e: print('ONE LINE:', e)
'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV)
    assert out.stdout.startswith('ONE LINE:') and out.stdout.count('\n') == 1, out
    assert load_model(tmp_path/'m', verify=True)[2]['step'] == 1
    assert not (tmp_path/'m'/'.next').exists()

def test_a_full_disk_leaves_no_dataset(tmp_path):
    write_episodes(tmp_path/'s.jsonl', sums(3000))
    code = f'''
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from mypt.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
raise SystemExit(main(['prepare', '--input', {str(tmp_path/'s.jsonl')!r}, '--output_dir', {str(tmp_path/'d')!r}, '--workers', '1']))
'''
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=ENV)
    assert out.returncode == 2 and out.stderr.strip().splitlines()[-1].startswith('mypt: '), out
    assert [p.name for p in tmp_path.iterdir()] == ['s.jsonl']

@pytest.mark.parametrize('name',
                         ['model.safetensors', 'mypt.json', 'tokenizer_state.json', 'optimizer.safetensors',
                          'training_state.json'])
def test_a_damaged_checkpoint_file_is_named(tmp_path, name):
    small_model(tmp_path/'m')
    f = tmp_path/'m'/name
    raw = f.read_bytes()
    f.write_bytes(raw[:len(raw)//2])
    with pytest.raises(UserError, match=name.replace('.', r'\.')):
        load_model(tmp_path/'m', verify=True); load_state(tmp_path/'m')

def test_a_flipped_bit_in_the_weights_is_found(tmp_path):
    small_model(tmp_path/'m')
    f = tmp_path/'m'/'model.safetensors'
    raw = bytearray(f.read_bytes()); raw[-100] ^= 1
    f.write_bytes(raw)
    load_model(tmp_path/'m')                              # loads: still numbers …
    with pytest.raises(UserError, match='sha256'): load_model(tmp_path/'m', verify=True)

def test_flipped_or_short_dataset_stops_training_or_validation(dataset, tmp_path):
    import shutil
    from mypt.train import train
    from mypt.validate import validate_dataset
    shutil.copytree(dataset, tmp_path/'d')
    f = tmp_path/'d'/'train'/'tokens.bin'
    raw = bytearray(f.read_bytes()); raw[10] ^= 1
    f.write_bytes(raw)
    assert validate_dataset(tmp_path/'d')
    f.write_bytes(raw[:-8])
    with pytest.raises(UserError, match='tokens.bin'): train('x', str(tmp_path/'d'), quiet=True)

def test_three_bad_steps_end_the_run_and_keep_the_good_checkpoint(dataset, tmp_path, monkeypatch):
    from mypt.train import train
    from mypt.loop import Callback
    monkeypatch.chdir(tmp_path)
    class Spoil(Callback):
        def after_step(self, t):
            if t.step >= 12: t.model.loss_scale = None; t.loss_fn = lambda b, denom: t.model.loss(b, denom) * float('nan')
    with pytest.raises(UserError, match='3 times in a row'):
        train('m', str(dataset),
              sets=['n_layer=1', 'n_embd=32', 'n_head=2', 'block_size=64', 'max_iters=60', 'save_every=5', 'eval_interval=10'],
              quiet=True, cbs=[Spoil()])
    assert load_state('m')[0]['step'] == 10
    assert all(w.isfinite().all() for w in load_model('m', verify=True)[0].state_dict().values())

# ---------------------------------------------------------------- the rest of what a run can be asked for

TINY = ['n_layer=1', 'n_embd=32', 'n_head=2', 'block_size=64', 'batch_size=2', 'max_iters=8', 'eval_interval=4']

def test_a_curriculum_changes_its_dataset_at_the_step_it_names(dataset, tmp_path, monkeypatch):
    from mypt.train import train
    monkeypatch.chdir(tmp_path)
    ask = lambda i: {'messages': [{'role': 'user', 'content': f'z{i}'}, {'role': 'assistant', 'content': 'zzz'}]}
    write_episodes('b.jsonl', map(ask, range(40)))
    prepare('b.jsonl', 'b', tokenization='byte', enable_packing=True, pack_block_size=64)
    t = train('m', str(dataset), quiet=True, sets=[*TINY, 'curriculum=[{"dataset_dir": "b", "until": 3}]'])
    has_z = lambda step: any((b.ids == ord('z')).any() for b in t.data.step_batches(step))
    assert [has_z(s) for s in range(6)] == [True] * 3 + [False] * 3

def test_evaluation_sets_of_earlier_phases_ride_along(dataset, tmp_path, monkeypatch):
    from mypt.train import train
    monkeypatch.chdir(tmp_path)
    train('m', str(dataset), quiet=True, sets=[*TINY, f'eval_sets={{"phase0": "{dataset}"}}'])
    records = [json.loads(l) for l in open('checkpoints/m/log.jsonl')]
    assert all('val_loss/phase0' in r for r in records if 'val_loss' in r)

def test_frozen_weights_stay_and_overfitting_stops(dataset, tmp_path, monkeypatch):
    from mypt.train import train
    monkeypatch.chdir(tmp_path)
    train('a', str(dataset), quiet=True, sets=TINY)
    train('b', str(dataset), init_from_model='a', quiet=True, sets=[*TINY, 'freeze=["model.embed_tokens.*"]'])
    a, b = (weights(Path('checkpoints')/n) for n in 'ab')
    assert torch.equal(a['model.embed_tokens.weight'], b['model.embed_tokens.weight'])
    assert not torch.equal(a['model.norm.weight'], b['model.norm.weight'])
    t = train('c', str(dataset), quiet=True,
              sets=[*TINY, 'early_stop=true', 'early_stop_gap=0.000001', 'learning_rate=0.05', 'max_iters=400'])
    assert t.step < 400 and 'overfitting' in t.stop

def test_the_best_weights_by_validation_are_kept(dataset, tmp_path, monkeypatch):
    from mypt.train import train
    monkeypatch.chdir(tmp_path)
    train('m', str(dataset), quiet=True, sets=[*TINY, 'max_iters=20'])
    vals = {r['step']: r['val_loss'] for r in map(json.loads, open('checkpoints/m/log.jsonl')) if 'val_loss' in r and r['step']}
    meta = load_model('checkpoints/m/best', verify=True)[2]
    assert meta['val_loss'] == pytest.approx(min(vals.values())) and vals[meta['step']] == pytest.approx(meta['val_loss'])
