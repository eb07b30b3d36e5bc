"""
Whatever is typed or read: the flags of every script, and every file that one reads, changed as a
hand, a disk or another program might have. Right is exit code 0, or 2 with one line "error: ..." and
no file touched. What takes long, and what would leave the machine, is played.
"""
import ast
import contextlib
import importlib
import io
import os
import re
import resource
import shutil
import sys
from pathlib import Path

import pytest
from test_house import FILES, MODULES, ROOT

from base.errors import UserError
from run.settings import TrainConfig

hypothesis = pytest.importorskip("hypothesis")
for needed in ("tokenizers", "safetensors", "scipy"):
    pytest.importorskip(needed)
from fuzz_world import READS, SCRIPTS, WORD, make_world, spoilt  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

# whose files are among these: a module that reads another kind must bring a case
READERS = {"sample", "run.resume", "lab.branches", "lab.law", "lab.advice", "lab.speeds", "lab.children",
           "lab.campaign", "data.dataset",
           "data.bin_writer", "data.tokenizer", "data.text.prepare", "data.shakespeare_char.prepare", "run.checkpoint.checkpoint",
           "run.hf", "run.arguments", "run.runlog", "run.packed", "base.reading", "tools.evaluate", "tools.plot", "tools.upscale",
           "run.family", "base.weights"}
READING = r"\b(json\.loads?|read_json|read_jsonl|read_metrics|read_text|torch\.load|load_file|Unpickler)\("
TALKS = {"base.reading"}  # only defines it


def test_no_script_and_no_reader_is_forgotten():
    found = {str(f.relative_to(ROOT)) for f in FILES if 'if __name__ == "__main__"' in f.read_text()}
    assert found == SCRIPTS.keys()
    readers = {m for m, text in MODULES.items() if re.search(READING, text)}
    # that dump what json writes, and read it at once
    assert readers - {"base.disk", "tools.export"} == \
        READERS | TALKS


# -----------------------------------------------------------------------------
# a folder with one of each kind, and the scripts in this process

@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """{path: content}; the tests are in that folder."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("world"))
    make_world()
    house = sorted((ROOT / "data").rglob("*.bin"))
    yield {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    os.chdir(before)
    assert sorted((ROOT / "data").rglob("*.bin")) == house  # where scripts write if nobody says where


def played(monkeypatch):
    """No network, no child, no training: what comes before and after is as it is."""
    def no(*args, **kwargs):
        raise UserError("played")
    for name in ("train.train", "lab.speedrun.run_all", "lab.frontier.run_all", "lab.saturation.run_all", "lab.verdict.draw",
                 "lab.frontier_report.draw", "lab.saturation.draw"):
        monkeypatch.setattr(name, lambda *args: None)
    for name in ("lab.plan.measure_all",
                 "data.shakespeare_char.prepare.fetch", "data.tokenizer._gpt2_encoding",
                 "subprocess.Popen.__init__"):
        monkeypatch.setattr(name, no)
    for name in ("text", "pystdlib", "shakespeare_char", "openwebtext"):
        monkeypatch.setattr(f"data.{name}.prepare.HERE", os.path.abspath(f"new/{name}"))  # where they write
    monkeypatch.setattr("lab.frontier.measure", lambda *args: dict(step_s=1.0))
    monkeypatch.setattr("data.pystdlib.prepare.find_files", lambda root: ["ast.py", "bisect.py", "abc.py"])
    monkeypatch.setattr("data.text.prepare.open_dataset", lambda name, split: [dict(text="a\nb")] * 5000)
    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor.submit", no)
    generate = importlib.import_module("model").GPT.generate
    monkeypatch.setattr("model.GPT.generate", lambda self, idx, n, *args, **how: generate(
        self, idx, min(n, 2), *args, **how))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HOME", os.getcwd())


def start(script, argv):
    """(exit code, stderr) of a script as it starts: the end of its file, in this process."""
    module = importlib.import_module(script[:-3].replace("/", "."))
    end = next(node for node in ast.parse(Path(module.__file__).read_text()).body
               if isinstance(node, ast.If) and "__main__" in ast.unparse(node.test))
    code, err, had = 0, io.StringIO(), sys.argv
    sys.argv = [script, *argv]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
            exec(compile(ast.Module(end.body, []), script, "exec"), vars(module))
    except SystemExit as e:
        code = e.code or 0
    finally:
        sys.argv = had
    return code, err.getvalue()


def files():
    """{path: when it was changed}; but locks, and folders, which say nothing while they are empty."""
    return {p: p.lstat().st_mtime_ns for p in Path().rglob("*") if p.name != "lock" and not p.is_dir()}


def check(world, script, argv):
    """Start a script, look at how it ended, and put the folder back as it was."""
    shutil.rmtree("new", ignore_errors=True)
    os.mkdir("new")
    before = files()
    try:
        code, err = start(script, argv)
        said = [line for line in err.splitlines() if line.startswith("error: ")]
        assert (code, len(said)) in ((0, 0), (2, 1)), (code, err)
        if code == 2:
            assert err.rstrip("\n").split("\n")[-1] == said[0] and "Traceback" not in err, err
            assert files() == before, [said, files().items() ^ before.items()]
        assert not Path("~").exists()
    finally:
        for path, when in files().items():
            if path not in before:
                path.unlink()
            elif when != before[path]:
                path.write_bytes(world[path])
    return code


# -----------------------------------------------------------------------------
# what is typed

def flags_of(script):
    """The names of its flags, as its --help lists them."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        module = importlib.import_module(script[:-3].replace("/", "."))
        had, sys.argv = sys.argv, [script, "--help"]
        try:
            module.main()
        finally:
            sys.argv = had
    names = set(re.findall(r"--([a-z][\w-]*)", out.getvalue())) - {"key", "resume"}
    return sorted(names | (set(TrainConfig.__dataclass_fields__) if script in (
        "train.py", "lab/plan.py", "lab/speedrun.py") else set()))


@st.composite
def typed(draw, argv, names):
    """argv with one to three things wrong."""
    argv = list(argv)
    for _ in range(draw(st.integers(1, 3))):
        at, word = draw(st.integers(0, len(argv))), draw(WORD)
        match draw(st.sampled_from(["flag", "flag", "value", "drop", "bare", "stray"])):
            case "flag":
                argv.insert(at, f"--{draw(st.sampled_from(names))}={word}")
            case "bare":
                argv.insert(at, f"--{draw(st.sampled_from(names))}")
            case "stray":
                argv.insert(at, word)
            case "drop" if at < len(argv):
                del argv[at]
            case "value" if at < len(argv):
                argv[at] = re.sub(r"(?<==).*|^[^-].*", lambda m: word, argv[at], count=1)
    return argv


# -----------------------------------------------------------------------------

SLOW = pytest.param(400, marks=pytest.mark.slow)


def tried(n, strategy, f):
    """f on n examples: few and the same ones, or, with --slow, many that are new each time."""
    @hypothesis.settings(max_examples=n, deadline=None, database=None, derandomize=n < 100,
                         suppress_health_check=list(hypothesis.HealthCheck))
    @hypothesis.given(strategy)
    def one(example):
        f(example)
    one()


@pytest.fixture(scope="module")
def limited():
    """Address space for no more than this, so that what is too large fails as it would anywhere."""
    had = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (16 << 30, had[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, had)


@pytest.mark.parametrize("n", [12, SLOW])
@pytest.mark.parametrize("script", SCRIPTS)
def test_whatever_is_typed(world, limited, monkeypatch, script, n):
    played(monkeypatch)
    check(world, script, SCRIPTS[script])
    tried(n, typed(SCRIPTS[script], flags_of(script)), lambda argv: check(world, script, argv))


@pytest.mark.parametrize("n", [8, SLOW])
@pytest.mark.parametrize("names, script, argv", READS)
def test_whatever_is_read(world, limited, monkeypatch, names, script, argv, n):
    played(monkeypatch)
    assert check(world, script, argv) == 0
    for path in map(Path, names):
        tried(n // len(names), spoilt(path.name, world[path]), with_content(path, world, script, argv))


def with_content(path, world, script, argv):
    def one(content):
        path.write_bytes(content)
        try:
            check(world, script, argv)
        finally:
            path.write_bytes(world[path])
    return one
