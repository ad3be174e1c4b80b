"""The command line as a person meets it: help, aliases of the documents, one line per mistake, exit codes."""
import json, os, re, shlex, subprocess, sys
import pytest
from mypt.cli import VERBS, find_verb, main, overview, signature_of, verb_parser
from mypt.episodes import dump_line, write_episodes
from mypt.manual import EXAMPLES, examples_of

LINE = {'messages': [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]}

def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err

def one_line(err):
    lines = [l for l in err.strip().splitlines() if 'it/s' not in l]
    assert len(lines) == 1 and lines[0].startswith('mypt: '), err
    return lines[0]

def test_help_is_grouped_and_fast():
    "No torch is imported for the overview."
    code = "import sys; from mypt.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert p.returncode == 0 and all(f'  {v} ' in p.stdout for v in VERBS)

@pytest.mark.parametrize('verb', VERBS)
def test_every_verb_has_help_with_a_word_for_every_flag_and_an_example(verb, capsys):
    code, out, _ = run(capsys, *verb.split(), '--help')
    doc, params = signature_of(VERBS[verb].target)
    assert code == 0 and doc and f'usage: mypt {verb} ' in out and 'examples:\n' in out
    assert [p.name for p in params if not p.help] == []
    assert re.search(rf'^  {verb} ', overview(), re.M) and examples_of(verb)

@pytest.mark.parametrize('line', EXAMPLES)
def test_every_example_is_a_call_that_parses(line):
    words = shlex.split(line, comments=True)
    verb, rest = find_verb(words[1:words.index('>') if '>' in words else words.index('>>') if '>>' in words else None])
    given = vars(verb_parser(verb).parse_args(rest))
    assert all(p.name in given for p in signature_of(VERBS[verb].target)[1] if p.required)

@pytest.mark.parametrize('argv,words', [
    (['trian'], "'train'"), (['prepare', '--inptu', 'x'], '--input'), (['prepare'], '--input'), (['check'], 'INPUT'),
    (['prepare', '--input', 'nowhere.jsonl', '--output_dir', 'o'], 'no such file'),
    (['prepare', '--input', 'a', '--output_dir', 'b', '--seed', 'x'], '--seed'),
    (['train', '--model_name', 'm', '--dataset_dir', 'nowhere'], 'nowhere'),
    (['train', '--model_name', 'm', '--dataset_dir', 'd', '--config_file', 'tinny'], "'tiny'"),
    (['generate', '--model_name', 'nobody', '--prompt', 'x'], 'nobody'), (['generate', '--model_name', 'x'], '--prompt'),
    (['gate', '--model', 'nobody', '--phase', '1'], 'nobody'), (['make', 'ecco', '--output', 'x.jsonl'], "'echo'"),
    (['mix', '--inputs', 'a.jsonl:x', '--output', 'b.jsonl'], 'number'), (['validate', 'nowhere'], None)])
def test_a_wrong_call_is_one_line_and_exit_2(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    if words is None: assert code == 1 and 'nowhere' in out; return
    assert code == 2 and words in one_line(err)
    assert list(tmp_path.iterdir()) == []

BAD = {'broken JSON': b'{"messages": [}\n', 'wrong type': b'{"messages": 3}\n',
       'unknown role': dump_line({'messages': [{'role': 'bot', 'content': 'x'}]}),
       'empty answer': dump_line({'messages': [LINE['messages'][0], {'role': 'assistant', 'content': ''}]}),
       'NUL': b'{"_replay": true, "text": "a\\u0000"}\n',
       'invalid UTF-8': b'{"_replay": true, "text": "\xff"}\n', 'order': dump_line({'messages': LINE['messages'][:1]})}

@pytest.mark.parametrize('kind', BAD)
def test_bad_lines_fail_prepare_and_leave_nothing(kind, tmp_path, capsys):
    f = tmp_path/'x.jsonl'
    f.write_bytes(dump_line(LINE) + BAD[kind] + dump_line(LINE))
    code, _, err = run(capsys, 'prepare', '--input', f, '--output_dir', tmp_path/'d')
    assert code == 2 and f'{f}:2: ' in one_line(err)
    assert [p.name for p in tmp_path.iterdir()] == ['x.jsonl']
    code, out, _ = run(capsys, 'check', f)
    assert code == 1 and '2 fine, 1 to mend' in out

@pytest.mark.parametrize('kind', BAD)
def test_skip_sets_bad_lines_aside_and_the_books_balance(kind, tmp_path, capsys):
    f = tmp_path/'x.jsonl'
    f.write_bytes(dump_line(LINE) + BAD[kind] + dump_line({**LINE,
                                                           'messages': [{'role': 'user', 'content': 'r'}, LINE['messages'][1]]}))
    code, _, _ = run(capsys, 'prepare', '--input', f, '--output_dir', tmp_path/'d', '--on-error', 'skip', '--val_split', '0')
    assert code == 0
    meta = json.loads((tmp_path/'d'/'dataset_metadata.json').read_text())
    assert meta['rows_read'] == meta['num_train_episodes'] + meta['num_val_episodes'] + meta['rows_rejected'] == 3
    rejects = [json.loads(l) for l in (tmp_path/'d'/'rejects.jsonl').read_text().splitlines()]
    assert [r['where'] for r in rejects] == [f'{f}:2'] and rejects[0]['error']

def test_a_read_only_folder_is_one_line(tmp_path, capsys):
    if os.geteuid() == 0: target = '/proc/nowhere'         # root may write anywhere else
    else: (tmp_path/'ro').mkdir(mode=0o500); target = tmp_path/'ro'/'d'
    write_episodes(tmp_path/'x.jsonl', [LINE] * 3)
    code, _, err = run(capsys, 'prepare', '--input', tmp_path/'x.jsonl', '--output_dir', target)
    assert code == 2 and one_line(err)

@pytest.mark.parametrize('change,words',
                         [({'learning_rat': 1}, 'learning_rate'), ({'n_layer': 'two'}, 'n_layer'),
                          ({'n_embd': 100, 'n_head': 3}, 'n_')])
def test_a_wrong_config_names_the_key(change, words, tmp_path, capsys, dataset):
    (tmp_path/'c.json').write_text(json.dumps({'extends': 'tiny', **change}))
    code, _, err = run(capsys, 'train', '--model_name', tmp_path/'m', '--dataset_dir', dataset, '--config_file',
                       tmp_path/'c.json')
    assert code == 2 and words in one_line(err) and not (tmp_path/'m').exists()

@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    d = tmp_path_factory.mktemp('cli')
    write_episodes(d/'x.jsonl',
                   [{'messages': [{'role': 'user', 'content': f'q{i}'}, {'role': 'assistant', 'content': f'a{i}'}]}
                    for i in range(60)])
    assert main(['prepare', '--input', str(d/'x.jsonl'), '--output', str(d/'ds'), '--tokenization', 'byte', '--enable-packing',
                 '--pack-block-size', '64']) == 0
    return d/'ds'

SMALL = ['--sets', 'n_layer=1', 'n_embd=32', 'n_head=2', 'block_size=64', 'batch_size=2', 'max_iters=4', 'eval_interval=2']

def test_the_documents_own_commands(dataset, tmp_path, monkeypatch, capsys):
    "train, its older aliases, generate with typed prompts, inspect and validate, as the five documents write them."
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, 'train', '--model_name', 'base', '--config_file', 'tiny', '--dataset_dir', dataset,
                         '--tokenization', 'byte', *SMALL)
    assert code == 0, err
    for words in ('Loaded episode-indexed dataset', 'Schema: episode_indexed_sft_v1',
                  'Using loss masking (assistant-only training)',
                  'Sampling mode: epoch', 'Epoch seed:', 'step 0: val '): assert words in out + err
    assert re.search(r'step 4: val \d+\.\d{4}', out + err)
    code, *_ = run(capsys, 'train', '--model', 'base', '--config', 'tiny', '--dataset', dataset, '--output', 'checkpoints/chat',
                   *SMALL)
    assert code == 0 and json.loads((tmp_path/'checkpoints/chat/mypt.json').read_text())['lineage']['base']['name'] == 'base'
    for prompt in ('<myPT_system>You are helpful.</myPT_system><myPT_user>What is 2+2?</myPT_user><myPT_assistant>',
                   '<myPT_system>You are MyPT.<myPT_eot>\n<myPT_user>YOUR_TEST<myPT_eot>\n<myPT_assistant>'):
        code, *_ = run(capsys, 'generate', '--model', 'checkpoints/chat', '--prompt', prompt, '--max_new_tokens', '5',
                       '--temperature', '0.7', '--crop')
        assert code == 0
    assert run(capsys, 'inspect', '--dataset_dir', dataset, '--show_samples', '2')[0] == 0
    assert run(capsys, 'validate', '--dataset', dataset)[0] == 0
    code, out, _ = run(capsys, 'gate', '--model', 'chat', '--phase', '1')
    assert code == 2 or (code == 1 and 'NOT passed' in out)

def test_a_base_of_another_shape_lists_the_fields(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, 'train', '--model_name', 'base', '--dataset_dir', dataset, *SMALL)[0] == 0
    code, _, err = run(capsys, 'train', '--model_name', 'next', '--dataset_dir', dataset, '--init_from_model', 'base', '--sets',
                       'n_layer=3', 'n_embd=64',
                       'n_head=2', 'block_size=64')
    assert code == 2 and 'n_layer 3 (base: 1)' in one_line(err) and 'n_embd 64 (base: 32)' in err

def test_validation_file_that_shares_questions_is_refused(tmp_path, capsys):
    write_episodes(tmp_path/'t.jsonl', [LINE] * 3)
    write_episodes(tmp_path/'v.jsonl', [LINE])
    code, _, err = run(capsys, 'prepare', '--input', tmp_path/'t.jsonl', '--val_file', tmp_path/'v.jsonl', '--output_dir',
                       tmp_path/'d')
    assert code == 2 and 'validation file' in one_line(err) and not (tmp_path/'d').exists()

@pytest.mark.parametrize('overlong,rows', [('shrink_context', 2), ('skip', 1)])
def test_overlong_episodes_shrink_their_context_or_are_skipped(overlong, rows, tmp_path, capsys):
    long = {'messages': [{'role': 'user', 'content': 'Who?', 'context': 'The fox met the dog. ' * 50},
                         {'role': 'assistant', 'content': 'The fox did.'}]}
    write_episodes(tmp_path/'x.jsonl', [LINE, long])
    code, out, _ = run(capsys, 'prepare', '--input', tmp_path/'x.jsonl', '--output_dir', tmp_path/'d', '--enable_packing',
                       '--pack_block_size', '64',
                       '--overlong', overlong, '--val_split', '0')
    assert code == 0 and f'{tmp_path}/x.jsonl:2' in out
    assert json.loads((tmp_path/'d'/'dataset_metadata.json').read_text())['num_train_episodes'] == rows
    code, _, err = run(capsys, 'prepare', '--input', tmp_path/'x.jsonl', '--output_dir', tmp_path/'e', '--enable_packing',
                       '--pack_block_size', '64',
                       '--overlong', 'error')
    assert code == 2 and not (tmp_path/'e').exists()

def test_the_same_bytes_for_any_number_of_workers(tmp_path, capsys):
    from mypt.phases.format_lock import make_echo
    write_episodes(tmp_path/'x.jsonl', ({**e, '_meta': {**e['_meta'], 'note': 'x' * 2000}} for e in make_echo(6000)))
    for w in (1, 2):
        assert run(capsys, 'prepare', '--input', tmp_path/'x.jsonl', '--output_dir', tmp_path/f'd{w}', '--enable_packing',
                   '--workers', w)[0] == 0
    files = sorted(p.relative_to(tmp_path/'d1') for p in (tmp_path/'d1').rglob('*') if p.is_file())
    assert files and all((tmp_path/'d1'/f).read_bytes() == (tmp_path/'d2'/f).read_bytes() for f in files)

def test_text_as_shards_is_an_unbroken_stream(tmp_path, capsys):
    "Every token once, documents closed by endoftext, rows full but the last; turns are refused."
    from mypt.store import open_dataset
    from mypt.validate import validate_dataset
    texts = [f'Page {i}. ' + 'The river flows. ' * (i % 9) for i in range(200)]
    write_episodes(tmp_path/'t.jsonl', ({'_replay': True, 'text': t} for t in texts))
    args = ['--output_dir', tmp_path/'d', '--format', 'shards', '--tokenization', 'byte', '--pack_block_size', '128', '--val_split', '0']
    assert run(capsys, 'prepare', '--input', tmp_path/'t.jsonl', *args)[0] == 0
    ds = open_dataset(tmp_path/'d')
    rows = [ds.train.row(i) for i in range(ds.train.n_rows)]
    assert validate_dataset(tmp_path/'d') == []
    assert sum((r.segments == 0).any() for r in rows) <= 1
    assert all(r.weights[r.segments > 0].all() for r in rows)
    stream = ''.join(ds.tok.decode(r.ids[r.segments > 0]) for r in rows)
    assert sorted(stream.removesuffix('<|endoftext|>').split('<|endoftext|>')) == sorted(texts)
    write_episodes(tmp_path/'c.jsonl', [LINE])
    code, _, err = run(capsys, 'prepare', '--input', tmp_path/'c.jsonl', *[a if a != tmp_path/'d' else tmp_path/'e' for a in args])
    assert code == 2 and '--format episodes' in one_line(err)
