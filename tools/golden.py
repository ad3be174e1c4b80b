"""Hashes of what the package makes at fixed seeds, to hold two trees side by side: `python -m
tools.golden TREE [TREE]`.

Every output comes from the command line, so that a tree of any layout can be measured. A change
that only moves or rewrites code leaves every line as it was; `make test` does not run this,
whoever restructures does.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

KINDS = (
    'format_lock', 'echo', 'operators', 'rag_chat', 'multiturn', 'toolcall', 'agentic',
    'text', 'qa_text', 'long_text', 'minimal_qa', 'tasks', 'structured', 'gold',
)  # fmt: skip
COLOURS = ('red', 'green', 'blue', 'grey', 'white', 'black')
FARBEN = ('rot', 'grün', 'blau', 'grau', 'weiß', 'schwarz')
DOCUMENTS = {
    f'{name.lower()}-{i}.md': f'# {name} {i}\n\n{text}\n\n## {head}\n\n{more}\n'
    for i in range(6)
    for name, head, text, more in (
        (
            'Vault',
            'Hours',
            f'The colour of the Nadelkur is {COLOURS[i]}. It weighs {12 + i} tons.',
            f'A vault is a room that protects {i + 3} boxes and opens at {i + 7} in the morning.',
        ),
        (
            'Garten',
            'Lage',
            f'Die Farbe des Tors ist {FARBEN[i]}. Er hat {i + 2} Bänke.',
            f'Der Garten ist ein Ort, der {i + 4} Brunnen hat und abends geschlossen wird.',
        ),
    )
}
PHASES = ('pretrain', '1b', '1', '2', '3', '4', '5', '6', '3a-1')
TINY = [
    'block_size=1024',
    'batch_size=1',
    'max_iters=12',
    'warmup_iters=2',
    'eval_interval=6',
    'eval_iters=2',
]


def digest(path: Path) -> str:
    "The first 16 hex digits of a file's sha256."
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


class Tree:
    "Runs `mypt` of one tree in a scratch folder and collects hashes."

    def __init__(self, root: Path, scratch: Path):
        threads = dict.fromkeys(('OMP_NUM_THREADS', 'MKL_NUM_THREADS'), '1')
        self.env = os.environ | threads | {'PYTHONPATH': str(root.resolve()), 'TQDM_DISABLE': '1'}
        self.scratch, self.hashes = scratch, {}

    def run(self, *argv: str, keep: str = '', fails: bool = False):
        "One command; with `keep` its stdout is hashed under that name."
        command = [sys.executable, '-m', 'mypt.cli', *map(str, argv)]
        done = subprocess.run(
            command, cwd=self.scratch, env=self.env, capture_output=True, text=True
        )
        if done.returncode and not fails:
            raise SystemExit(f'{" ".join(command)}: {done.stderr[-2000:]}')
        if keep:
            text = done.stdout.replace(str(self.scratch), '.')
            self.hashes[keep] = hashlib.sha256(text.encode()).hexdigest()[:16]

    def keep(self, *names: str):
        "Hash files or, for a folder, its arrays, weights and JSON lines."
        for name in names:
            path = self.scratch / name
            if path.is_file():
                self.hashes[name] = digest(path)
            for f in sorted(path.rglob('*')) if path.is_dir() else ():
                if (
                    f.suffix in ('.bin', '.idx', '.safetensors', '.gguf')
                    or f.name == 'rejects.jsonl'
                ):
                    self.hashes[f'{f.relative_to(self.scratch)}'] = digest(f)


def measure(root: Path) -> dict[str, str]:
    "All hashes of one tree, by name."
    with tempfile.TemporaryDirectory() as folder:
        tree = Tree(root, Path(folder))
        docs = tree.scratch / 'docs'
        docs.mkdir()
        for name, text in DOCUMENTS.items():
            (docs / name).write_text(text, encoding='utf-8')
        generators(tree)
        datasets(tree)
        training(tree)
        curation(tree)
        for phase in PHASES:
            tree.run(
                'run',
                '--phase',
                phase,
                '--dry_run',
                '--no_replay',
                keep=f'dry run {phase}',
                fails=True,
            )
        return tree.hashes


def generators(tree: Tree):
    "Every generator, invented documents and a folder."
    for kind in KINDS:
        tree.run('make', kind, '--num_examples', 300, '--output', f'{kind}.jsonl')
        tree.keep(f'{kind}.jsonl')
    for kind in ('rag_chat', 'toolcall', 'agentic', 'multiturn'):
        for language in ('en', 'de'):
            name = f'{kind}-{language}-docs.jsonl'
            args = ('--num_examples', 5, '--language', language, '--docs_dir', 'docs')
            tree.run('make', kind, *args, '--output', name, fails=True)
            tree.keep(name)


def datasets(tree: Tree):
    "Mixing and preparing."
    mixed = (
        '--inputs',
        'format_lock.jsonl:0.5',
        'agentic.jsonl:0.5',
        '--output',
        'mixed.jsonl',
        '--shuffle',
    )
    tree.run('mix', *mixed)
    shares = (
        '--inputs',
        'rag_chat.jsonl:0.6',
        'multiturn.jsonl:0.4',
        '--shares',
        '--output',
        'shares.jsonl',
    )
    tree.run('mix', *shares)
    tree.keep('mixed.jsonl', 'shares.jsonl')
    packed = ('--enable_packing', '--pack_block_size', '1024')
    choices = {
        'packed': ('--tokenization', 'byte', *packed),
        'gpt2': (
            '--tokenization',
            'gpt2',
            *packed,
            '--weighted_mask',
            '--tokens_per_shard',
            '20000',
        ),
        'lines': ('--tokenization', 'gpt2:1024', '--layout', 'lines', '--mask_policy', 'phase3a'),
    }
    for name, flags in choices.items():
        tree.run(
            'prepare', '--input', 'mixed.jsonl', '--output_dir', name, '--val_split', '0.1', *flags
        )
        tree.keep(name)
        tree.run('validate', '--dataset', name, keep=f'validate {name}')
    tree.run(
        'prepare',
        '--input',
        'text.jsonl',
        '--output_dir',
        'text',
        '--tokenization',
        'byte',
        fails=True,
    )
    tree.keep('text')


def training(tree: Tree):
    "Short trainings, generation, a gate."
    for name, extra in {
        'adam': [],
        'muon': ['optimizer=muon'],
        'neftune': ['neftune_alpha=5', 'dropout=0.1'],
    }.items():
        tree.run(
            'train',
            '--model_name',
            name,
            '--config_file',
            'tiny',
            '--dataset_dir',
            'packed',
            '--sets',
            *TINY,
            *extra,
        )
        tree.keep(f'checkpoints/{name}')
    again = (
        'train',
        '--model_name',
        'next',
        '--config_file',
        'tiny',
        '--dataset_dir',
        'packed',
        '--init_from_model',
        'adam',
    )
    tree.run(*again, '--sets', *TINY)
    tree.keep('checkpoints/next')
    ask = ('generate', '--model', 'adam', '--max_new_tokens', 20)
    tree.run(*ask, '--user', 'Say hello.', keep='greedy')
    tree.run(
        *ask,
        '--user',
        'Say hello.',
        '--temperature',
        '0.8',
        '--top_k',
        '20',
        '--seed',
        '3',
        keep='sampled',
    )
    tree.run('export', '--model', 'adam', '--gguf', 'adam.gguf', fails=True)
    tree.keep('adam.gguf')
    tree.run('gate', '--model', 'adam', '--phase', '1', keep='gate', fails=True)


def curation(tree: Tree):
    "Augmentation, near duplicates, conversion, the inspector."
    augment = ('--input', 'minimal_qa.jsonl', '--output', 'augmented.jsonl', '--target_count', 500)
    tree.run('augment', *augment)
    tree.run('diversify', '--input', 'echo.jsonl', '--output', 'diversified.jsonl')
    tree.run('dedup', '--input', 'rag_chat.jsonl', '--output', 'unique.jsonl', fails=True)
    tree.keep('augmented.jsonl', 'diversified.jsonl', 'unique.jsonl')
    for verb in ('diversity', 'quality'):
        tree.run(verb, 'toolcall.jsonl', '--json', keep=verb, fails=True)
    rows = [{'instruction': f'Add {i}.', 'input': '', 'output': f'{i}'} for i in range(20)]
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (tree.scratch / 'alpaca.jsonl').write_text(text, encoding='utf-8')
    tree.run('convert', 'alpaca.jsonl', '--output', 'converted.jsonl', fails=True)
    tree.keep('converted.jsonl')
    tree.run('inspect', '--dataset_dir', 'packed', '--show_samples', '2', keep='inspect')
    tree.run('inspect', '--dataset_dir', 'packed', '--html', 'inspect.html')
    tree.keep('inspect.html')
    english = ('--num_examples', 100, '--language', 'en', '--output', 'english.jsonl')
    tree.run('make', 'minimal_qa', *english)
    tree.run('translate', 'extract', '--input', 'english.jsonl', '--output_dir', 'temp')
    tree.keep(
        'temp/episodes.jsonl',
        *(f'temp/{p.name}' for p in sorted((tree.scratch / 'temp').iterdir())),
    )


def main(trees: list[str]) -> int:
    "Print the hashes of one tree, or the differences of two."
    measured = [measure(Path(t)) for t in trees]
    first, last = measured[0], measured[-1]
    if len(trees) == 1:
        print(json.dumps(first, indent=1))
        return 0
    differing = [k for k in {**first, **last} if first.get(k) != last.get(k)]
    for name in differing:
        print(f'{name}: {first.get(name)} and {last.get(name)}')
    print(f'{len(first)} outputs, {len(differing)} differ')
    return int(bool(differing))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
