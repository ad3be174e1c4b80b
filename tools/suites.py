"The suites in mypt/assets are what the phases make: written by `make export`, checked here."

import json
import sys
from pathlib import Path

from tools.notebooks import ROOT, report


def render() -> dict[str, str]:
    "Path under mypt/assets → text, for every suite."
    from mypt.curriculum.run import shipped_suites

    def dump(case):
        return json.dumps(case, ensure_ascii=False) + '\n'

    return {name: ''.join(map(dump, cases)) for name, cases in shipped_suites().items()}


def check(root: Path = ROOT) -> list[str]:
    "Suites that are missing, or differ from what the phases make."
    wrong = []
    for name, text in render().items():
        path = root / 'mypt/assets' / name
        if not path.is_file() or path.read_text(encoding='utf-8') != text:
            wrong.append(f'mypt/assets/{name} is not what its phase makes; run `make export`')
    return wrong


def write(root: Path = ROOT):
    "Write every suite."
    for name, text in render().items():
        (root / 'mypt/assets' / name).write_text(text, encoding='utf-8')


if __name__ == '__main__':
    write() if '--write' in sys.argv else report('suites', check())
