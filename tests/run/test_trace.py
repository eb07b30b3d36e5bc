"""source.txt and the diff beside it: what a run was made with, and that it never costs a run."""
import os
import shutil
import subprocess

import pytest

from run import trace
from run.trace import keep_source


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


def test_each_start_says_its_commit_and_changes(checkout, tmp_path, monkeypatch):
    house, git = checkout
    commit = git("rev-parse", "HEAD").strip()
    assert keep_source(str(tmp_path)) is None
    assert f"iteration 0: {os.sys.argv[0]}" in (said := (tmp_path / "source.txt").read_text())
    assert f"commit {commit}\n" in said and not list(tmp_path.glob("*.diff"))
    (house / "train.py").write_text("a = 2\n")
    (house / "mine.py").write_text("b = 1\n")
    monkeypatch.setenv("GIT_DIR", "/nowhere")  # as in a hook of another repository
    assert keep_source(str(tmp_path), 7) is None
    assert b"-a = 1\n+a = 2\n" in (tmp_path / "source_0000007.diff").read_bytes()
    again = (tmp_path / "source.txt").read_text()
    assert again.startswith(said) and f"commit {commit} and changes\nnot in git: mine.py" in again


def test_without_git(checkout, tmp_path, monkeypatch):
    """No git, no checkout, somebody else's checkout: a line, and the rest all the same."""
    house, git = checkout
    inner = house / "unpacked_here"
    inner.mkdir()
    (inner / "train.py").write_text("")
    shutil.copytree(inner, tmp_path / "plain")
    for folder, path in ((inner, None), (house, str(tmp_path / "no_programs")), (tmp_path / "plain", None)):
        monkeypatch.setattr(trace, "HOUSE", str(folder))
        if path:
            monkeypatch.setenv("PATH", path)
        said = keep_source(str(tmp_path))
        assert "source.txt: no git commit in it (" in said and "\n" not in said
        assert "commit none" in (tmp_path / "source.txt").read_text()
        monkeypatch.undo()


def test_what_cannot_be_written_is_one_line(tmp_path):
    said = keep_source(str(tmp_path / "not_there"))
    assert "the run's source is not kept (" in said and "\n" not in said
