import functools
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests run side by side, on tiny models
# the same tests on every machine; those of test_gpu.py want a GPU. Workers of xdist have what this gave them
if "--gpu" not in sys.argv and "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
from runs import make_data

# a shell starts background jobs with Ctrl-C ignored, and what tests start would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
HANDLERS = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


@pytest.fixture(autouse=True)
def signals():
    """Scripts that were started in this process, be it by fixtures, leave handlers of their own."""
    for number, handler in HANDLERS.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def optional_packages():
    """A test that comes to need an optional package skips where it is not installed."""
    from base import errors

    def import_module(name):
        root = name.partition(".")[0]
        if root not in sys.modules and importlib.util.find_spec(root) is None:
            pytest.skip(f"needs {root}")
        return importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(errors, "importlib", SimpleNamespace(import_module=import_module))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The folder of a tiny dataset."""
    return str(make_data(tmp_path_factory.mktemp("data")))


@pytest.fixture
def graphs_only(monkeypatch):
    """torch.compile as far as its graphs, without the code for the machine, which takes longest."""
    import torch

    from run import compiler
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(compiler, "broken", lambda device_type: None)
    compiler.forget_graphs()
    yield
    compiler.forget_graphs()


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")
    parser.addoption("--gpu", action="store_true", help="with tests/test_gpu.py alone: let it see the GPU")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes or gigabytes; run with --slow")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--slow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow: run with --slow"))
