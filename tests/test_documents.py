"The page 'From the documents to mypt': every command on it, in its order, on small data."

import json
import re
import shlex
import shutil
import pytest
import mypt.curate.translate
from mypt.cli import main
from mypt.data.episodes import write_episodes
from mypt.curriculum.invented import make_documents
from mypt.model.config import list_configs, load_config
from mypt.train.callbacks import read_log

ADD = dict(
    name='add',
    parameters=dict(type='object', properties=dict(a=dict(type='integer'), b=dict(type='integer'))),
)
PAGE = 'nbs/explanations/from_the_documents.ipynb'
TINY = [  # a small model, small batches and few steps; all else is as shipped
    '--sets',
    'vocab_size=320',
    'n_layer=1',
    'n_head=2',
    'n_embd=32',
    'batch_size=1',
    'grad_accum_steps=1',
    'max_iters=2',
    'eval_interval=2',
    'eval_iters=1',
]


def rows(root):
    nb = json.loads((root / PAGE).read_text(encoding='utf-8'))
    text = '\n'.join(''.join(c['source']) for c in nb['cells'])
    return [
        line.split(' | ')[-1].strip(' |`')
        for line in text.split('\n')
        if re.search(r'\| `mypt ', line)
    ]


def small(line):
    "The same command with a model and numbers that a test can afford."
    argv = shlex.split(line)[1:]
    for flag, most in dict(
        num_examples=40, target_count=30, max_examples=20, max_new_tokens=4
    ).items():
        if f'--{flag}' in argv:
            argv[argv.index(f'--{flag}') + 1] = str(most)
        elif flag == 'num_examples' and argv[0] == 'make':
            argv += [f'--{flag}', str(most)]
    if argv[0] == 'train':
        argv += TINY
    if argv[0] == 'prepare':
        if '--tokenization' in argv:
            argv[argv.index('--tokenization') + 1] = 'byte'
        else:
            argv += ['--tokenization', 'byte']
        if '--format' not in argv:
            argv += ['--overlong', 'skip', '--workers', '1']
    if argv[0] in ('agent', 'rag-chat'):
        argv += ['--max_new_tokens', '4']
    return argv


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    d = tmp_path_factory.mktemp('documents')
    docs = d / 'workspace/docs'
    docs.mkdir(parents=True)
    for doc in make_documents(14, 'en', 1) + make_documents(14, 'de', 1):
        (docs / doc.doc_id).write_text(doc.text, encoding='utf-8')
    (d / 'data').mkdir()

    def ask(i):
        return [
            {'role': 'user', 'content': f'What is a port, and why is number {i} open?'},
            {
                'role': 'assistant',
                'content': f'A port is a door of a machine. Number {i} is for a service.',
            },
        ]

    write_episodes(
        d / 'data/gold_en.jsonl',
        [
            {'context': f'episode_id: {i:04d}', 'messages': ask(i), 'language': 'en'}
            for i in range(24)
        ],
    )
    write_episodes(
        d / 'data/general.jsonl',
        [{'_replay': True, 'text': f'Text number {i} speaks of the sea. ' * 30} for i in range(60)],
    )
    hub = d / 'mirror'

    def mirror(name, lines):
        (hub / name).mkdir(parents=True)
        (hub / name / 'train.jsonl').write_text(
            ''.join(json.dumps(line) + '\n' for line in lines), encoding='utf-8'
        )

    def said(i, me, parent, role, text, rank):
        return dict(
            message_id=f'{i}{me}',
            parent_id=parent and f'{i}{parent}',
            message_tree_id=f'{i}a',
            text=text,
            role=role,
            lang='en',
            rank=rank,
            deleted=False,
        )

    def tree(i):
        return [
            said(i, 'a', None, 'prompter', f'What is {i}?', None),
            said(i, 'b', 'a', 'assistant', 'A number.', 0),
        ]

    mirror('OpenAssistant/oasst2', [m for i in range(12) for m in tree(i)])
    mirror(
        'mayflowergmbh/alpaca-gpt4_de',
        [
            dict(instruction=f'Was ist die Zahl {i}?', input='', output='Das ist eine Zahl.')
            for i in range(12)
        ],
    )
    mirror(
        'allenai/Dolci-Instruct-SFT-Tool-Use',
        [
            dict(
                messages=[
                    dict(role='system', content='Tools.', functions=json.dumps([ADD])),
                    dict(role='user', content=f'Add {i}.'),
                    dict(role='assistant', content='', function_calls=f'add(a=1, b={i})'),
                    dict(role='environment', content='3'),
                    dict(role='assistant', content='It is 3.'),
                ]
            )
            for i in range(12)
        ],
    )
    return d


def test_the_page_has_every_script_of_the_documents(root):
    "Scripts by name: the page must know each that the documents call."
    seeds = root.parent / 'shared/seeds'
    if not seeds.exists():
        pytest.skip('the source documents are not beside the repository')
    page = (root / PAGE).read_text(encoding='utf-8')
    named = set(
        re.findall(
            r'(?:scripts/[\w/]*|python )(\w+\.py)',
            ''.join(f.read_text(encoding='utf-8') for f in seeds.glob('*.txt')),
        )
    )
    known = {
        'build_context_extension_dataset.py',
        'prepare_context_extension.py',
    }  # on the page of phase 1b
    assert not [n for n in named - known if n not in page]


def test_every_command_runs(root, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv('MYPT_DATA_MIRROR', str(place / 'mirror'))

    def german(texts):
        return [t.replace('What is', 'Was ist').replace('door', 'Tür') for t in texts]

    real = mypt.curate.translate.run_translation

    def run(dir: str = 'data/temp', target: str = 'de', source: str = 'en'):
        return real(dir, target, source, translator=german)

    monkeypatch.setattr(mypt.curate.translate, 'run_translation', run)
    lines = rows(root)
    assert len(lines) > 50
    for line in lines:
        code = main(small(line))
        said = capsys.readouterr()
        judged = line.split()[1] in ('gate', 'validate', 'check-masks')
        assert code == 0 or (judged and code == 1), f'{line}\n{said.err}\n{said.out[-1500:]}'


def train_argv(config, *more):
    named = ['--model_name', config, '--config_file', config, '--dataset_dir', 'data/text']
    return ['train', *named, *more, *TINY]


@pytest.fixture(scope='module')
def text(tmp_path_factory):
    "A folder with a dataset whose rows fit into every shipped config."
    d = tmp_path_factory.mktemp('text')
    lines = [
        {'_replay': True, 'text': f'Text number {i} speaks of the sea. ' * 4} for i in range(9)
    ]
    write_episodes(d / 'text.jsonl', lines)
    argv = ['prepare', '--input', str(d / 'text.jsonl'), '--output_dir', str(d / 'data/text')]
    assert main([*argv, '--tokenization', 'byte', '--val_split', '0.2']) == 0
    return d


@pytest.mark.parametrize('config', [c for c in list_configs() if c != 'finetune'])
def test_every_shipped_config_trains(text, config, monkeypatch, capsys):
    "Also where none of its evaluation sets is there: they are left out, and named."
    monkeypatch.chdir(text)
    assert main(train_argv(config)) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    wanted = load_config(config).train.eval_sets
    assert all(name in said for name in wanted)


def test_finetune_trains_a_base(text, monkeypatch, capsys):
    monkeypatch.chdir(text)
    assert main(train_argv('tiny')) == 0
    assert main(train_argv('finetune', '--init_from_model', 'tiny')) == 0, capsys.readouterr().err


def test_evaluation_sets_that_are_there_are_used(text, monkeypatch, capsys):
    "The documents prepare each phase under its config's name; here beside the dataset."
    monkeypatch.chdir(text)
    shutil.copytree('data/text', 'data/phase1_format_lock')
    assert main([*train_argv('phase2_operators'), 'max_iters=4']) == 0, capsys.readouterr().err
    last = read_log('checkpoints/phase2_operators/log.jsonl')[-1]
    assert last['val_loss/phase1_format_lock'] > 0
