"""
A run's own source beside its config, so that a result can be traced to what made it: source.zip with
the modules the run has loaded, its config file, its command line, and git's commit and changes.
"""
import os
import platform
import re
import shlex
import subprocess
import sys
import time
import zipfile
import zlib

import torch

from base.disk import written
from base.errors import first_line

HOUSE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
LIMIT = 1 << 20  # bytes of changes that are kept
PATIENCE = 10    # seconds that git may take


def keep_source(out_dir, iteration=0, resumed=False):
    """
    Write source.zip into out_dir; a resumed run keeps those that are there, and adds
    source_ITERATION.zip if it goes on with another source. Never costs a run: returns a line about
    what could not be kept, or None.
    """
    path = os.path.join(out_dir, f"source_{iteration:07d}.zip" if resumed else "source.zip")
    try:
        files = loaded()
        if resumed and holds(latest(out_dir), files):
            return None
        commit, changes, fault = git_state()
        said = [shlex.join(sys.argv), time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
                f"iteration {iteration}", f"Python {platform.python_version()}, torch {torch.__version__}",
                f"commit {commit}" if commit else "", fault or ""]
        given = [a for a in sys.argv[1:] if a.endswith(".py") and os.path.isfile(a)]
        configs = {in_house(a) or f"config/given/{os.path.basename(a)}": read(a) for a in given}
        write_zip(path, {**files, **configs, "run.txt": "\n".join(filter(None, said)).encode() + b"\n",
                         **({"git.diff": changes} if changes else {})})
        return f"{path}: {fault}" if fault else None
    except Exception as e:  # a full disk, a folder that cannot be written, a file that has just gone
        return f"{path}: the run's source is not kept ({first_line(e)})"


def read(path):
    with open(path, "rb") as f:
        return f.read()


def in_house(path):
    """The name in the house of a source file; None if it is elsewhere, in .venv, or a library's."""
    name = os.path.relpath(os.path.realpath(path), HOUSE).replace(os.sep, "/")
    return None if re.search(r"(^|/)(\.|site-packages/)", name) or not name.endswith(".py") else name


def loaded():
    """{name in the house: bytes} of every module of it that is loaded."""
    paths = [getattr(module, "__file__", None) or "" for module in list(sys.modules.values())]
    names = {in_house(path) for path in paths if os.path.isfile(path)}  # torch's "_classes.py" is none
    return {name: read(os.path.join(HOUSE, name)) for name in sorted(names - {None})}


def latest(out_dir):
    """The newest of a run's archives, or None."""
    names = [n for n in os.listdir(out_dir) if re.fullmatch(r"source(_\d+)?\.zip", n)]
    return os.path.join(out_dir, max(names)) if names else None


def holds(path, files):
    """Are all files in the archive, as they are now?"""
    try:
        with zipfile.ZipFile(path) as z:
            return all(z.read(name) == content for name, content in files.items())
    except (TypeError, KeyError, OSError, RuntimeError, ValueError, EOFError, zlib.error,
            zipfile.BadZipFile):  # none there, or lacks a file, or is damaged
        return False


def write_zip(path, files):
    """Dates say nothing: all 1980."""
    with written(path, "wb") as f, zipfile.ZipFile(f, "w") as z:
        for name, content in files.items():
            z.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)


def git_state():
    """(commit or None, changes since as bytes or None, what is missing or None)."""
    env = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    how = dict(env={**env, "GIT_OPTIONAL_LOCKS": "0"}, stdin=subprocess.DEVNULL)
    try:  # of the house, not of whatever checkout it may lie in
        done = subprocess.run(["git", "-C", HOUSE, "rev-parse", "HEAD", "HEAD:./train.py"],
                              capture_output=True, text=True, errors="replace", timeout=PATIENCE, **how)
    except (OSError, subprocess.TimeoutExpired) as e:
        return None, None, f"no git commit in it ({first_line(e)})"
    if done.returncode:
        return None, None, f"no git commit in it ({first_line(done.stderr)})"
    commit = done.stdout.split()[0]
    try:
        diff = subprocess.run(["git", "-C", HOUSE, "diff", "--no-ext-diff", "--no-textconv", "--no-color",
                               "HEAD", "--", "."], capture_output=True, timeout=PATIENCE, **how)
    except (OSError, subprocess.TimeoutExpired):
        diff = None
    if diff is None or diff.returncode:
        return commit, None, "git's changes since the commit could not be had: left out"
    if len(diff.stdout) > LIMIT:
        return commit, None, f"git's changes since the commit are more than {LIMIT >> 20} MiB: left out"
    return commit, diff.stdout, None
