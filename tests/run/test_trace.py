"""source.zip: what a run leaves of its own source, and that it never costs a run."""
import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from runs import ENV, ROOT, make_data, train

from run import trace
from run.trace import git_state, keep_source


def contents(path):
    with zipfile.ZipFile(path) as z:
        assert z.testzip() is None
        return {name: z.read(name) for name in z.namelist()}


def archives(out_dir):
    return sorted(p.name for p in out_dir.iterdir() if p.name.startswith("source"))


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A house of its own with git, which knows train.py; returns (its folder, git)."""
    house = tmp_path / "house"
    house.mkdir()
    (house / "train.py").write_text("a = 1\n")

    def git(*words):
        return subprocess.run(["git", "-C", house, "-c", "user.name=a", "-c", "user.email=b", *words],
                              check=True, capture_output=True, text=True).stdout
    git("init", "-q")
    git("add", "train.py")
    git("commit", "-qm", "one")
    monkeypatch.setattr(trace, "HOUSE", str(house))
    return house, git


def test_a_run_can_be_started_from_its_archive(tmp_path):
    """The modules it loaded, the config given and what that builds on: nothing else is needed."""
    data = make_data(tmp_path / "data")
    config = tmp_path / "mine.py"
    config.write_text("from config.pystdlib_scratch import *\n")
    settings = dict(max_iters=2, warmup_iters=0, stages=[], data_dir=data)
    train(str(config), out_dir=tmp_path / "a", env=ENV, **settings)  # a process that has no tests loaded
    found = contents(tmp_path / "a" / "source.zip")
    assert {"train.py", "model.py", "grow.py", "run/trace.py", "data/loader.py",
            "config/pystdlib_scratch.py", "config/pystdlib_msg.py", "config/given/mine.py"} <= found.keys()
    assert found["model.py"] == (ROOT / "model.py").read_bytes()
    assert not any(n.startswith((".", "tests", "out")) or n.endswith(".bin") for n in found)
    assert b"iteration 0" in found["run.txt"] and b"mine.py --block_size=32" in found["run.txt"]
    with zipfile.ZipFile(tmp_path / "a" / "source.zip") as z:
        z.extractall(tmp_path / "again")
    start = "import train; print(train.from_args(['config/given/mine.py']).n_inner)"
    done = subprocess.run([sys.executable, "-c", start], cwd=tmp_path / "again",
                          env={**ENV, "PYTHONPATH": ""}, capture_output=True, text=True)
    assert done.stdout == "768\n", done.stderr


def test_what_a_resumed_run_adds(tmp_path, monkeypatch):
    """Nothing while its source is the same; another one by the iteration; the first one stays."""
    keep_source(str(tmp_path))
    first = (tmp_path / "source.zip").read_bytes()
    assert keep_source(str(tmp_path), 7, resumed=True) is None and archives(tmp_path) == ["source.zip"]
    changed = {**trace.loaded(), "model.py": b"changed"}
    monkeypatch.setattr(trace, "loaded", lambda: changed)
    for iteration in (9, 11):  # the second time it is the same as the newest
        keep_source(str(tmp_path), iteration, resumed=True)
        assert archives(tmp_path) == ["source.zip", "source_0000009.zip"]
    assert contents(tmp_path / "source_0000009.zip")["model.py"] == b"changed"
    assert (tmp_path / "source.zip").read_bytes() == first
    (tmp_path / "source_0000009.zip").write_bytes(first[:1000])  # damaged: as if it were not there
    keep_source(str(tmp_path), 20, resumed=True)
    assert archives(tmp_path)[-1] == "source_0000020.zip"
    keep_source(str(tmp_path))  # begun anew
    assert contents(tmp_path / "source.zip")["model.py"] == b"changed"


def test_commit_and_changes(checkout, tmp_path, monkeypatch):
    house, git = checkout
    commit = git("rev-parse", "HEAD").strip()
    assert git_state() == (commit, b"", None)
    (house / "train.py").write_text("a = 2\n")
    got, changes, fault = git_state()
    assert got == commit and b"-a = 1\n+a = 2\n" in changes and fault is None
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    assert keep_source(str(tmp_path)) is None
    found = contents(tmp_path / "source.zip")
    assert found["git.diff"] == changes and f"commit {commit}".encode() in found["run.txt"]
    monkeypatch.setattr(trace, "LIMIT", 20)
    said = keep_source(str(tmp_path))
    assert "git's changes since the commit are more than" in said and said.count("\n") == 0
    assert "git.diff" not in contents(tmp_path / "source.zip")


def test_without_git(checkout, tmp_path, monkeypatch):
    """No git, no checkout, somebody else's checkout: a line, and the source all the same."""
    house, git = checkout
    inner = house / "unpacked_here"
    inner.mkdir()
    (inner / "train.py").write_text("")
    cases = [(inner, None), (house, str(tmp_path / "no_programs"))]
    shutil.copytree(inner, tmp_path / "plain")
    cases.append((tmp_path / "plain", None))
    for folder, path in cases:
        monkeypatch.setattr(trace, "HOUSE", str(folder))
        if path:
            monkeypatch.setenv("PATH", path)
        said = keep_source(str(tmp_path))
        assert "source.zip: no git commit in it (" in said and "\n" not in said
        assert said.partition(": ")[2].encode() in contents(tmp_path / "source.zip")["run.txt"]
        monkeypatch.undo()


def test_what_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    said = keep_source(str(tmp_path / "not_there"))
    assert "the run's source is not kept (" in said and "\n" not in said

    def full(*args):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    assert "No space left" in keep_source(str(tmp_path)) and os.listdir(tmp_path) == []
