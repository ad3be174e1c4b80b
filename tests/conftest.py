"Shared by all tests."

import os
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent


def pytest_configure(config):
    """One intra-op thread per core unless the environment says otherwise; torch reads this when it
    is first imported.
    """
    os.environ.setdefault('OMP_NUM_THREADS', str(min(2, os.cpu_count() or 1)))


def pytest_collection_modifyitems(config, items):
    "Tests marked `slow` run only when asked for by `-m`."
    if config.option.markexpr:
        return
    for item in items:
        if item.get_closest_marker('slow'):
            item.add_marker(pytest.mark.skip(reason='slow; runs with `pytest -m slow`'))


@pytest.fixture(scope='session')
def root() -> Path:
    "The repository."
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    "Real data beside the repository; its tests skip where it is absent."
    path = ROOT.parent / 'shared' / 'data'
    if not path.is_dir():
        pytest.skip('no ../shared/data beside the repository')
    return path
