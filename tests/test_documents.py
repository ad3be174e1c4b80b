"The page 'From the documents to mypt': every command on it, in its order, on small data."

import json
import re
import shlex
import shutil
import pytest
import mypt.curate.translate
from mypt.cli import main
from mypt.data.episodes import check_episode, write_episodes
from mypt.curriculum.invented import make_documents
from mypt.curriculum.run import PHASES
from mypt.data.prompts import systems_in
from mypt.data.serialize import serialize
from mypt.data.tokenizer import get_tokenizer
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
    most = dict(num_examples=40, num_episodes=40, target_count=30, max_examples=20)
    most |= dict(max_new_tokens=4, general_target_tokens=4000, max_iters=2)
    named = [flag for flag in most if f'--{flag}' in argv]
    for flag in named:
        argv[argv.index(f'--{flag}') + 1] = str(most[flag])
    if argv[0] == 'make' and not named:
        argv += ['--num_examples', '40']
    if argv[0] == 'context-extension':
        argv += ['--datasets', 'invented', '--tokenization', 'byte', '--block_size', '512']
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
            {'context': f'episode_id: {i:04d}, language: en', 'messages': ask(i), 'language': 'en'}
            for i in range(24)
        ],
    )
    write_episodes(
        d / 'data/general.jsonl',
        [{'_replay': True, 'text': f'Text number {i} speaks of the sea. ' * 30} for i in range(60)],
    )
    write_episodes(
        d / 'data/wiki.jsonl',
        [{'_replay': True, 'text': f'Article {i} is about a hill. ' * 30} for i in range(60)],
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
            said(i, 'c', 'b', 'prompter', 'Which one?', 0),
            said(i, 'd', 'c', 'assistant', f'The number {i}.', 0),
        ][: 2 + 2 * (i % 2)]

    mirror('OpenAssistant/oasst2', [m for i in range(12) for m in tree(i)])
    mirror(
        'mayflowergmbh/alpaca-gpt4_de',
        [
            dict(instruction=f'Was ist die Zahl {i}?', input='', output='Das ist eine Zahl.')
            for i in range(12)
        ],
    )
    mirror(
        'LeoLM/OpenSchnabeltier',
        [
            dict(instruction_de=f'Was ist {i}?', output_de='Das ist eine Zahl von vielen.')
            for i in range(12)
        ],
    )
    spoken = [
        [
            dict(role='user', content=f'Was ist das Haus mit der Nummer {i}?'),
            dict(role='assistant', content='Das ist das Haus am Ende der Straße.'),
        ]
        for i in range(12)
    ]
    mirror('allenai/Dolci-Instruct-SFT', [dict(messages=m) for m in spoken])
    mirror('mayflowergmbh/ultra-chat_de', [dict(messages=m * 2) for m in spoken])
    mirror(
        'flozi00/german-function-calling',
        [
            dict(
                System='SYSTEM: Du bist ein Assistent mit Funktionen -\n' + json.dumps(ADD),
                Chat=f'USER: Was ist eins und {i}?\n\n\nASSISTANT: <functioncall> '
                f'{{"name": "add", "arguments": \'{{"a": 1, "b": {i}}}\'}} <|endoftext|>\n\n\n'
                'FUNCTION RESPONSE: {"sum": 3}\n\n\nASSISTANT: Das ist die Summe. <|endoftext|>',
            )
            for i in range(12)
        ],
    )
    mirror(
        'avemio/German-RAG-SFT-ShareGPT-HESSIAN-AI',
        [
            dict(
                system='Du antwortest nur mit dem Kontext.',
                tools='',
                conversations=[
                    {
                        'from': 'human',
                        'value': 'Kontext 1: Der Fuchs lebt im Wald.\n\n'
                        f'Frage: Wo lebt der Fuchs Nummer {i}?',
                    },
                    {'from': 'gpt', 'value': 'Er lebt im Wald.'},
                ],
            )
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
    assert not [n for n in named if n not in page]


def test_the_page_has_the_hub_sets_flags_and_suites_of_the_documents(root):
    seeds = root.parent / 'shared/seeds'
    if not seeds.exists():
        pytest.skip('the source documents are not beside the repository')
    page = (root / PAGE).read_text(encoding='utf-8')
    text = ''.join(f.read_text(encoding='utf-8') for f in seeds.glob('*.txt'))
    hub = set(re.findall(r'--dataset (\w+/[\w.-]+)', text))
    hub = {name for name in hub if not name.startswith('data/')}
    assert len(hub) == 8 and all(name in page for name in hub)
    suites = set(re.findall(r'phase\d_\w+_ood', text))
    assert len(suites) == 4 and all(f'--suite {name}' in page for name in suites)
    flags = set(re.findall(r'--([a-z_]+)', text)) - {'nproc_per_node'}
    assert not sorted(flag for flag in flags if flag not in page)
    gates = {line.split('--phase ')[1] for line in rows(root) if line.startswith('mypt gate')}
    assert gates >= {*'123456', '3a-1', '3a-2', '3a-3', '3a-4'}


def test_what_the_phases_train_with(root):
    "NEFTune and prompts as the page's table says, and within the documents' tiers."
    page = (root / PAGE).read_text(encoding='utf-8')
    table = dict(re.findall(r'\| (\d) \| (\d+) \| \d[ \w]* \| [\d–]+ \|', page))
    assert table == {'1': '5', '2': '5', '3': '10', '4': '10', '5': '5', '6': '5'}
    tok, tiers = (
        get_tokenizer('gpt2'),
        dict(zip('123456', [(4, 6)] * 2 + [(15, 20)] * 2 + [(70, 90)] * 2, strict=True)),
    )
    for number, (least, most) in tiers.items():
        train = load_config(PHASES[number].config).train
        assert train.neftune_alpha == float(table[number])
        prompts = [p for lang in ('en', 'de') for p in systems_in(train.system_prompt, lang)]
        lengths = [len(tok.encode(p)) for p in prompts]
        assert least <= min(lengths) and max(lengths) <= most, (number, lengths)


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


@pytest.mark.parametrize(
    'context', ['episode_id: 0042, language: en', 'episode_id: 0042\nlanguage: en']
)
def test_metadata_in_a_context_is_not_shown(context):
    "The documents write the language beside the number; neither is a passage."
    talk = [dict(role='user', content='Hi?'), dict(role='assistant', content='Hi.')]
    ep = check_episode(dict(context=context, messages=talk))
    assert ep['language'] == 'en' and ep['_meta'] == dict(episode_id='0042')
    assert 'episode_id' not in ''.join(span.text for span in serialize(ep))
    told = check_episode(dict(context='episode_id: 1 is a ticket', messages=talk))
    assert told['messages'][0]['context'] == 'episode_id: 1 is a ticket'


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


SHAPELESS = [c for c in list_configs() if 'n_layer' not in load_config(c).given]  # need a base


@pytest.mark.parametrize('config', [c for c in list_configs() if c not in SHAPELESS])
def test_every_shipped_config_trains(text, config, monkeypatch, capsys):
    "Also where none of its evaluation sets is there: they are left out, and named."
    monkeypatch.chdir(text)
    assert main(train_argv(config)) == 0, capsys.readouterr().err
    said = capsys.readouterr().out
    wanted = load_config(config).train.eval_sets
    assert all(name in said for name in wanted)


def test_what_says_no_shape_trains_a_base(text, monkeypatch, capsys):
    monkeypatch.chdir(text)
    assert main(train_argv('tiny')) == 0
    for config in SHAPELESS:
        argv = train_argv(config, '--init_from_model', 'tiny')
        assert main(argv) == 0, capsys.readouterr().err


def test_evaluation_sets_that_are_there_are_used(text, monkeypatch, capsys):
    "The documents prepare each phase under its config's name; here beside the dataset."
    monkeypatch.chdir(text)
    shutil.copytree('data/text', 'data/phase1_format_lock')
    assert main([*train_argv('phase2_operators'), 'max_iters=4']) == 0, capsys.readouterr().err
    last = read_log('checkpoints/phase2_operators/log.jsonl')[-1]
    assert last['val_loss/phase1_format_lock'] > 0
