"The command line: help, aliases of the documents, one line per mistake, exit codes."

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import pytest
from mypt.cli import find_verb, main, overview, verb_parser
from mypt.commands.table import VERBS, signature_of
from mypt.data.episodes import dump_line, write_episodes
from mypt.commands.shell_completion import PHASE_NUMBERS, completions
from mypt.commands.examples import EXAMPLES, REPORTS, examples_of

LINE = {'messages': [{'role': 'user', 'content': 'q'}, {'role': 'assistant', 'content': 'a'}]}


def run(capsys, *argv):
    code = main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err


def one_line(err):
    lines = [line for line in err.strip().splitlines() if 'it/s' not in line]
    assert len(lines) == 1 and lines[0].startswith('mypt: '), err
    return lines[0]


def test_help_is_grouped_and_fast():
    "No torch is imported for the overview."
    code = (
        "import sys; from mypt.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert p.returncode == 0 and all(f'  {v} ' in p.stdout for v in VERBS)


@pytest.mark.parametrize('verb', VERBS)
def test_every_verb_has_help_with_a_word_for_every_flag_and_an_example(verb, capsys):
    code, out, _ = run(capsys, *verb.split(), '--help')
    doc, params = signature_of(VERBS[verb].target)
    assert code == 0 and doc and f'usage: mypt {verb} ' in out and 'examples:\n' in out
    assert [p.name for p in params if not p.help] == []
    assert re.search(rf'^  {verb} ', overview(), re.M) and examples_of(verb)


@pytest.mark.parametrize('example', EXAMPLES, ids=lambda e: e.call)
def test_every_example_is_a_call_that_parses(example):
    words = shlex.split(example.call)
    redirected = [i for i, w in enumerate(words) if w in ('>', '>>')]
    end = redirected[0] if redirected else len(words)
    verb, rest = find_verb(words[1:end])
    given = vars(verb_parser(verb).parse_args(rest))
    assert all(p.name in given for p in signature_of(VERBS[verb].target)[1] if p.required)


@pytest.mark.parametrize(
    'argv,words',
    [
        (['trian'], "'train'"),
        (['prepare', '--inptu', 'x'], '--input'),
        (['prepare'], '--input'),
        (['check'], 'INPUT'),
        (['prepare', '--input', 'nowhere.jsonl', '--output_dir', 'o'], 'no such file'),
        (['prepare', '--input', 'a', '--output_dir', 'b', '--seed', 'x'], '--seed'),
        (['train', '--model_name', 'm', '--dataset_dir', 'nowhere'], 'nowhere'),
        (['train', '--model_name', 'm', '--dataset_dir', 'd', '--config_file', 'tinny'], "'tiny'"),
        (['generate', '--model_name', 'nobody', '--prompt', 'x'], 'nobody'),
        (['generate', '--model_name', 'x'], '--prompt'),
        (['gate', '--model', 'nobody', '--phase', '1'], 'nobody'),
        (['make', 'ecco', '--output', 'x.jsonl'], "'echo'"),
        (['prepare', '--input'], '--input needs a value'),
        (['prepare', '--input', 'a', '--output_dir', ''], 'an empty name'),
        (
            ['prepare', '--input', 'a', '--output_dir', 'b', '--workers', '-2'],
            "'-2' is not a whole number",
        ),
        (
            ['train', '--model_name', 'm', '--dataset_dir', 'd', '--device', 'tpu'],
            'cpu, cuda or auto',
        ),
        (
            ['prepare', '--input', 'a', '--output_dir', 'b', '--val_split', 'nan'],
            "'nan' is not a number",
        ),
        (['translate'], 'extract, run'),
        (['check', 'a', 'b'], 'unknown argument b'),
        (['completion', 'csh'], 'bash, zsh, fish'),
        (
            [
                'context-extension',
                '--output_dir',
                'x',
                '--datasets',
                'invented',
                '--block_size',
                '0',
            ],
            'at least 16',
        ),
        (['mix', '--inputs', 'a.jsonl:1', '--output', './a.jsonl'], 'another --output'),
        (['dedup', '--input', 'a', '--output', 'a'], 'another'),
        (['mix', '--inputs', 'a.jsonl:x', '--output', 'b.jsonl'], 'number'),
        (['validate', 'nowhere'], None),
        (['prepare', '--input', 'a', '--output_dir', 'b', '--system_prompt', 'gr\udcf6n'], 'UTF-8'),
        (['generate', '--model_name', 'm', '--user', 'gr\udcf6n'], '--user'),
        (['train', '--model_name', 'm', '--dataset_dir', 'd', '--sets', 'a=\udcf6'], '--sets'),
        (['search', '\udcf6l', '--docs_dir', '.'], 'UTF-8'),
    ],
)
def test_a_wrong_call_is_one_line_and_exit_2(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *argv)
    if words is None:
        assert code == 1 and 'nowhere' in out
        return
    assert code == 2 and words in one_line(err)
    assert list(tmp_path.iterdir()) == []


BAD = {
    'broken JSON': b'{"messages": [}\n',
    'wrong type': b'{"messages": 3}\n',
    'unknown role': dump_line({'messages': [{'role': 'bot', 'content': 'x'}]}),
    'empty answer': dump_line(
        {'messages': [LINE['messages'][0], {'role': 'assistant', 'content': ''}]}
    ),
    'NUL': b'{"_replay": true, "text": "a\\u0000"}\n',
    'invalid UTF-8': b'{"_replay": true, "text": "\xff"}\n',
    'order': dump_line({'messages': LINE['messages'][:1]}),
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_lines_fail_prepare_and_leave_nothing(kind, tmp_path, capsys):
    f = tmp_path / 'x.jsonl'
    f.write_bytes(dump_line(LINE) + BAD[kind] + dump_line(LINE))
    code, _, err = run(capsys, 'prepare', '--input', f, '--output_dir', tmp_path / 'd')
    assert code == 2 and f'{f}:2: ' in one_line(err)
    assert [p.name for p in tmp_path.iterdir()] == ['x.jsonl']
    code, out, _ = run(capsys, 'check', f)
    assert code == 1 and '2 fine, 1 to mend' in out


@pytest.mark.parametrize('indent', [None, 1])
def test_a_list_is_told_once_and_named_with_a_way_out(indent, tmp_path, capsys):
    "Its brackets are no repeated lines."
    f = tmp_path / 'x.jsonl'
    f.write_text(json.dumps([LINE, LINE, LINE], indent=indent))
    code, out, _ = run(capsys, 'check', f)
    assert code == 1 and out.count('\n') == 2 and '0 fine, 1 to mend\n' in out
    assert 'mypt convert' in out and 'repeat' not in out


@pytest.mark.parametrize('kind', BAD)
def test_skip_sets_bad_lines_aside_and_the_books_balance(kind, tmp_path, capsys):
    f = tmp_path / 'x.jsonl'
    f.write_bytes(
        dump_line(LINE)
        + BAD[kind]
        + dump_line({**LINE, 'messages': [{'role': 'user', 'content': 'r'}, LINE['messages'][1]]})
    )
    code, _, _ = run(
        capsys,
        'prepare',
        '--input',
        f,
        '--output_dir',
        tmp_path / 'd',
        '--on-error',
        'skip',
        '--val_split',
        '0',
    )
    assert code == 0
    meta = json.loads((tmp_path / 'd' / 'dataset_metadata.json').read_text())
    assert (
        meta['rows_read']
        == meta['num_train_episodes'] + meta['num_val_episodes'] + meta['rows_rejected']
        == 3
    )
    lines = (tmp_path / 'd' / 'rejects.jsonl').read_text().splitlines()
    rejects = [json.loads(line) for line in lines]
    assert [r['where'] for r in rejects] == [f'{f}:2'] and rejects[0]['error']


def test_a_read_only_folder_is_one_line(tmp_path, capsys):
    if os.geteuid() == 0:
        target = '/proc/nowhere'  # root may write anywhere else
    else:
        (tmp_path / 'ro').mkdir(mode=0o500)
        target = tmp_path / 'ro' / 'd'
    write_episodes(tmp_path / 'x.jsonl', [LINE] * 3)
    code, _, err = run(capsys, 'prepare', '--input', tmp_path / 'x.jsonl', '--output_dir', target)
    assert code == 2 and one_line(err)


@pytest.mark.parametrize(
    'change,words',
    [
        ({'learning_rat': 1}, 'learning_rate'),
        ({'n_layer': 'two'}, 'n_layer'),
        ({'n_embd': 100, 'n_head': 3}, 'n_'),
    ],
)
def test_a_wrong_config_names_the_key(change, words, tmp_path, capsys, dataset):
    (tmp_path / 'c.json').write_text(json.dumps({'extends': 'tiny', **change}))
    code, _, err = run(
        capsys,
        'train',
        '--model_name',
        tmp_path / 'm',
        '--dataset_dir',
        dataset,
        '--config_file',
        tmp_path / 'c.json',
    )
    assert code == 2 and words in one_line(err) and not (tmp_path / 'm').exists()


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    d = tmp_path_factory.mktemp('cli')
    write_episodes(
        d / 'x.jsonl',
        [
            {
                'messages': [
                    {'role': 'user', 'content': f'q{i}'},
                    {'role': 'assistant', 'content': f'a{i}'},
                ]
            }
            for i in range(60)
        ],
    )
    assert (
        main(
            [
                'prepare',
                '--input',
                str(d / 'x.jsonl'),
                '--output',
                str(d / 'ds'),
                '--tokenization',
                'byte',
                '--enable-packing',
                '--pack-block-size',
                '64',
            ]
        )
        == 0
    )
    return d / 'ds'


SMALL = [
    '--sets',
    'n_layer=1',
    'n_embd=32',
    'n_head=2',
    'block_size=64',
    'batch_size=2',
    'max_iters=4',
    'eval_interval=2',
]


def test_the_documents_own_commands(dataset, tmp_path, monkeypatch, capsys):
    "Training, its older aliases, typed prompts, inspect and validate, as the documents write them."
    monkeypatch.chdir(tmp_path)
    code, out, err = run(
        capsys,
        'train',
        '--model_name',
        'base',
        '--config_file',
        'tiny',
        '--dataset_dir',
        dataset,
        '--tokenization',
        'byte',
        *SMALL,
    )
    assert code == 0, err
    for words in (
        'Loaded episode-indexed dataset',
        'Schema: episode_indexed_sft_v1',
        'Using loss masking (assistant-only training)',
        'Sampling mode: epoch',
        'Epoch seed:',
        'step 0: val ',
    ):
        assert words in out + err
    assert re.search(r'step 4: val \d+\.\d{4}', out + err)
    code, *_ = run(
        capsys,
        'train',
        '--model',
        'base',
        '--config',
        'tiny',
        '--dataset',
        dataset,
        '--output',
        'checkpoints/chat',
        *SMALL,
    )
    assert (
        code == 0
        and json.loads((tmp_path / 'checkpoints/chat/mypt.json').read_text())['lineage']['base'][
            'name'
        ]
        == 'base'
    )
    for prompt in (
        '<myPT_system>You are helpful.</myPT_system>'
        '<myPT_user>What is 2+2?</myPT_user><myPT_assistant>',
        '<myPT_system>You are MyPT.<myPT_eot>\n<myPT_user>YOUR_TEST<myPT_eot>\n<myPT_assistant>',
    ):
        code, *_ = run(
            capsys,
            'generate',
            '--model',
            'checkpoints/chat',
            '--prompt',
            prompt,
            '--max_new_tokens',
            '5',
            '--temperature',
            '0.7',
            '--crop',
        )
        assert code == 0
    assert run(capsys, 'inspect', '--dataset_dir', dataset, '--show_samples', '2')[0] == 0
    assert run(capsys, 'validate', '--dataset', dataset)[0] == 0
    code, out, _ = run(capsys, 'gate', '--model', 'chat', '--phase', '1')
    assert code == 2 or (code == 1 and 'NOT passed' in out)


def test_an_option_that_is_written_twice_holds_both():
    parser = verb_parser('train')
    needed = ['--model_name', 'm', '--dataset_dir', 'd']
    once = parser.parse_args([*needed, '--sets', 'n_layer=3', 'n_embd=64'])
    twice = parser.parse_args([*needed, '--sets', 'n_layer=3', '--sets', 'n_embd=64'])
    assert once.sets == twice.sets == ['n_layer=3', 'n_embd=64']


def test_a_base_of_another_shape_lists_the_fields(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, 'train', '--model_name', 'base', '--dataset_dir', dataset, *SMALL)[0] == 0
    code, _, err = run(
        capsys,
        'train',
        '--model_name',
        'next',
        '--dataset_dir',
        dataset,
        '--init_from_model',
        'base',
        '--sets',
        'n_layer=3',
        'n_embd=64',
        'n_head=2',
        'block_size=64',
    )
    assert code == 2 and 'n_layer 3 (base: 1)' in one_line(err) and 'n_embd 64 (base: 32)' in err


def test_validation_file_that_shares_questions_is_refused(tmp_path, capsys):
    write_episodes(tmp_path / 't.jsonl', [LINE] * 3)
    write_episodes(tmp_path / 'v.jsonl', [LINE])
    code, _, err = run(
        capsys,
        'prepare',
        '--input',
        tmp_path / 't.jsonl',
        '--val_file',
        tmp_path / 'v.jsonl',
        '--output_dir',
        tmp_path / 'd',
    )
    assert code == 2 and 'validation file' in one_line(err) and not (tmp_path / 'd').exists()


@pytest.mark.parametrize('overlong,rows', [('shrink_context', 2), ('skip', 1)])
def test_overlong_episodes_shrink_their_context_or_are_skipped(overlong, rows, tmp_path, capsys):
    long = {
        'messages': [
            {'role': 'user', 'content': 'Who?', 'context': 'The fox met the dog. ' * 50},
            {'role': 'assistant', 'content': 'The fox did.'},
        ]
    }
    write_episodes(tmp_path / 'x.jsonl', [LINE, long])
    code, out, _ = run(
        capsys,
        'prepare',
        '--input',
        tmp_path / 'x.jsonl',
        '--output_dir',
        tmp_path / 'd',
        '--enable_packing',
        '--pack_block_size',
        '64',
        '--overlong',
        overlong,
        '--val_split',
        '0',
    )
    assert code == 0 and f'{tmp_path}/x.jsonl:2' in out
    assert (
        json.loads((tmp_path / 'd' / 'dataset_metadata.json').read_text())['num_train_episodes']
        == rows
    )
    code, *_ = run(
        capsys,
        'prepare',
        '--input',
        tmp_path / 'x.jsonl',
        '--output_dir',
        tmp_path / 'e',
        '--enable_packing',
        '--pack_block_size',
        '64',
        '--overlong',
        'error',
    )
    assert code == 2 and not (tmp_path / 'e').exists()


def test_the_same_bytes_for_any_number_of_workers(tmp_path, capsys):
    from mypt.curriculum.format_lock import make_echo

    write_episodes(
        tmp_path / 'x.jsonl',
        ({**e, '_meta': {**e['_meta'], 'note': 'x' * 2000}} for e in make_echo(6000)),
    )
    for w in (1, 2):
        assert (
            run(
                capsys,
                'prepare',
                '--input',
                tmp_path / 'x.jsonl',
                '--output_dir',
                tmp_path / f'd{w}',
                '--enable_packing',
                '--workers',
                w,
            )[0]
            == 0
        )
    files = sorted(
        p.relative_to(tmp_path / 'd1') for p in (tmp_path / 'd1').rglob('*') if p.is_file()
    )
    assert files and all(
        (tmp_path / 'd1' / f).read_bytes() == (tmp_path / 'd2' / f).read_bytes() for f in files
    )


def test_text_as_shards_is_an_unbroken_stream(tmp_path, capsys):
    "Every token once, documents closed by endoftext, rows full but the last; turns are refused."
    from mypt.data.dataset import open_dataset
    from mypt.data.validate import validate_dataset

    texts = [f'Page {i}. ' + 'The river flows. ' * (i % 9) for i in range(200)]
    write_episodes(tmp_path / 't.jsonl', ({'_replay': True, 'text': t} for t in texts))
    args = [
        '--output_dir',
        tmp_path / 'd',
        '--format',
        'shards',
        '--tokenization',
        'byte',
        '--pack_block_size',
        '128',
        '--val_split',
        '0',
    ]
    assert run(capsys, 'prepare', '--input', tmp_path / 't.jsonl', *args)[0] == 0
    ds = open_dataset(tmp_path / 'd')
    rows = [ds.train.row(i) for i in range(ds.train.n_rows)]
    assert validate_dataset(tmp_path / 'd') == []
    assert sum((r.segments == 0).any() for r in rows) <= 1
    assert all(r.weights[r.segments > 0].all() for r in rows)
    stream = ''.join(ds.tok.decode(r.ids[r.segments > 0]) for r in rows)
    assert sorted(stream.removesuffix('<|endoftext|>').split('<|endoftext|>')) == sorted(texts)
    write_episodes(tmp_path / 'c.jsonl', [LINE])
    code, _, err = run(
        capsys,
        'prepare',
        '--input',
        tmp_path / 'c.jsonl',
        *[a if a != tmp_path / 'd' else tmp_path / 'e' for a in args],
    )
    assert code == 2 and '--format episodes' in one_line(err)


# --json: one object on stdout and nothing else there, its keys those of the manual


def report(capsys, *argv, codes=(0,)):
    code, out, _ = run(capsys, *argv, '--json')
    assert code in codes and out.count('\n') == 1, out
    found, keys = (
        json.loads(out),
        REPORTS[' '.join(argv[:2]) if ' '.join(map(str, argv[:2])) in VERBS else argv[0]][1],
    )
    assert found.keys() <= keys.keys(), found.keys() - keys.keys()
    return found


def test_json_of_the_data_verbs(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert report(capsys, 'make', 'echo', '--output', 'e.jsonl', '--num_examples', 60) == {
        'episodes': 60
    }
    assert report(capsys, 'check', 'e.jsonl') == {'ok': True, 'problems': []}
    (tmp_path / 'bad.jsonl').write_text('{\n')
    bad = report(capsys, 'check', 'bad.jsonl', codes=(1,))
    assert not bad['ok'] and bad['problems'][0].startswith('bad.jsonl:1: ')
    assert report(capsys, 'mix', '--inputs', 'e.jsonl:0.5', '--output', 'm.jsonl')['rows'] == 30
    assert report(capsys, 'convert', 'e.jsonl', '--output', 'c.jsonl')['episodes'] > 0
    assert report(capsys, 'dedup', '--input', 'e.jsonl', '--output', 'd.jsonl')['rows'] == 60
    assert 0 <= report(capsys, 'diversity', 'e.jsonl')['score'] <= 100
    assert (
        report(capsys, 'quality', 'e.jsonl', '--tokenization', 'byte')['token_budget']['block_size']
        == 1024
    )
    assert report(
        capsys, 'augment', '--input', 'e.jsonl', '--output', 'a.jsonl', '--target_count', 70
    ) == {'episodes': 70}
    assert report(capsys, 'diversify', '--input', 'e.jsonl', '--output', 'v.jsonl').keys() == {
        'changed',
        'before',
        'after',
    }
    made = report(
        capsys, 'prepare', '--input', 'e.jsonl', '--output_dir', 'ds', '--tokenization', 'byte'
    )
    assert (
        made['dataset_dir'] == 'ds'
        and made['rows_read'] == 60 == made['num_train_episodes'] + made['num_val_episodes']
    )
    assert report(capsys, 'validate', 'ds') == {'ok': True, 'problems': []}
    assert report(capsys, 'check-masks', 'ds')['ok'] is True
    assert len(report(capsys, 'inspect', 'ds', '--show_samples', 2)['samples']) == 2
    plan = report(
        capsys,
        'prepare-jobs',
        'plan',
        '--input',
        'e.jsonl',
        '--jobs_dir',
        'jobs',
        '--splits',
        2,
        '--sets',
        'tokenization=byte',
    )
    assert len(plan['splits']) == 2
    for i in (0, 1):
        report(capsys, 'prepare-jobs', 'run', '--jobs_dir', 'jobs', '--split', i)
    assert (
        report(capsys, 'prepare-jobs', 'merge', '--jobs_dir', 'jobs', '--output_dir', 'all')[
            'dataset_dir'
        ]
        == 'all'
    )
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs/a.md').write_text('# Foxes\n\nThe fox is red.\n')
    assert report(capsys, 'rag-index', '--docs_dir', 'docs', '--out_dir', 'index')['documents'] == 1


def test_json_of_the_model_verbs(dataset, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    trained = report(capsys, 'train', '--model_name', 'm', '--dataset_dir', dataset, *SMALL)
    assert (
        trained['step'] == trained['max_steps'] == 4
        and trained['stop'] is None
        and trained['evaluated']['val'] > 0
    )
    assert isinstance(
        report(capsys, 'generate', '--model_name', 'm', '--prompt', 'a', '--max_new_tokens', 3)[
            'text'
        ],
        str,
    )
    (tmp_path / 'docs').mkdir()
    (tmp_path / 'docs/a.md').write_text('# Foxes\n\nThe fox is red.\n')
    run(capsys, 'rag-index', '--docs_dir', 'docs', '--out_dir', 'index')
    (tmp_path / 's.jsonl').write_text('{"user": "a", "want": "b"}\n')
    (tmp_path / 'e.jsonl').write_bytes(b''.join(map(dump_line, [LINE] * 2)))
    assert report(capsys, 'export', 'm')['path'].endswith('m')
    code, out, err = run(capsys, 'gate', '--model', 'nobody', '--phase', '1', '--json')
    assert code == 2 and out == '' and 'nobody' in one_line(err)


# Completion: the shells themselves are asked


def candidates(*words):
    return [c.word for c in completions(list(words))]


def test_completion_lists_all_phases():
    from mypt.curriculum.run import PHASES

    assert [*PHASES] == PHASE_NUMBERS


def test_completion_knows_verbs_flags_and_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'checkpoints/chat').mkdir(parents=True)
    (tmp_path / 'checkpoints/chat/mypt.json').touch()
    assert candidates('ga') == ['gate'] and 'run' in candidates('translate', '')
    assert candidates('gate', '--model', '') == ['chat'] and candidates('make', 'ec') == ['echo']
    assert 'phase1_format_lock' in candidates('train', '--config', 'phase1') and '1b' in candidates(
        'run', '--phase', ''
    )
    assert (
        candidates('prepare', '--pack_b')
        == ['--pack_block_size', '--pack_by_field']
        == candidates('prepare', '--pack-b')
    )
    assert (
        '--seed' not in candidates('prepare', '--seed', '1', '--s')
        and candidates('prepare', '--input', '') == []
    )
    assert candidates('nonsense', '--x') == []


def test_completion_is_light():
    calls = "import sys; from mypt.cli import main; main(['__complete', 'train', '--']); "
    code = calls + "assert not {'torch', 'numpy'} & {*sys.modules}"
    p = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert p.returncode == 0 and '--dataset_dir\t' in p.stdout, p.stderr


ASK = dict(
    bash='eval "$(mypt completion bash)"; COMP_WORDS=(mypt prepare --on_error ""); COMP_CWORD=3; '
    '_mypt mypt; '
    'printf "%s\\n" "${COMPREPLY[@]}"',
    zsh='compdef() { :; }; _describe() { print -l ${(P)2}; }; source <(mypt completion zsh); '
    'words=(mypt prepare --on_error ""); CURRENT=4; _mypt',
    fish='mypt completion fish | source; complete -C "mypt prepare --on_error "',
)


@pytest.mark.parametrize('shell', ASK)
def test_the_shells_complete(shell):
    if not shutil.which(shell):
        pytest.skip(f'no {shell} here')
    env = os.environ | {'PATH': f'{os.path.dirname(sys.executable)}:{os.environ["PATH"]}'}
    flags = dict(bash=['--norc'], zsh=['-f'], fish=['--no-config'])[shell]
    p = subprocess.run([shell, *flags, '-c', ASK[shell]], capture_output=True, text=True, env=env)
    assert [re.split(r'[\t:]', line)[0] for line in p.stdout.split()] == ['fail', 'skip'], p.stderr


# The process: Ctrl-C, a closed pipe, a full disk


def mypt(*argv, **kw):
    return subprocess.Popen(
        [sys.executable, '-m', 'mypt.cli', *map(str, argv)], stderr=subprocess.PIPE, text=True, **kw
    )


def test_ctrl_c_is_quiet(tmp_path):
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  # ignored in `make test &`
    slow, write = os.pipe()
    p = mypt('check', f'/dev/fd/{slow}', pass_fds=[slow], start_new_session=True, preexec_fn=heard)
    os.close(slow)
    with os.fdopen(write, 'wb') as f:
        f.write(dump_line(LINE) + b' ' * 2**20)  # more than a pipe holds: the command reads it
        f.flush()
        time.sleep(0.5)  # it waits for more now
        os.killpg(p.pid, signal.SIGINT)
        assert p.communicate(timeout=60)[1] == '' and p.returncode == 130


def test_a_closed_pipe_is_quiet(tmp_path):
    (tmp_path / 'x.jsonl').write_text('{\n' * 5000)
    p = mypt('check', tmp_path / 'x.jsonl', stdout=subprocess.PIPE)
    p.stdout.close()
    assert p.communicate(timeout=60)[1] == '' and p.returncode == 0


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_is_one_line():
    with open('/dev/full', 'w') as full:
        p = mypt('--help', stdout=full)
    assert one_line(p.communicate(timeout=60)[1]) and p.returncode == 2


def test_a_switch_that_is_on_or_undecided_can_be_turned_off(capsys):
    for verb, on in (('rag-index', False), ('assistant', True)):
        assert main([verb, '--help']) == 0
        told = capsys.readouterr().out
        assert '--vectors, --no-vectors' in told
        assert ('by a small model (72' in ' '.join(told.split())) == on
        words = [c.word for c in completions([verb, '--no-v'])]
        assert words == ['--no-vectors']
    assert not [c.word for c in completions(['assistant', '--no-q'])]
