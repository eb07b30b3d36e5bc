"""
Record the code of a run, so that results can be traced to it: source.txt (command line, versions, git
commit, untracked files) and source_ITERATION.diff, the changes since that commit.
"""
import os
import platform
import shlex
import subprocess
import sys
import time

import torch

from base.disk import written
from base.errors import first_line

HOUSE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
PATIENCE = 10  # seconds to wait for git


def keep_source(out_dir, iteration=0):
    """
    Add this start of a run to its source.txt. Never fails: returns a line about what could not be kept,
    or None.
    """
    path, commit, diff, new, fault = os.path.join(out_dir, "source.txt"), "none", b"", "", None
    try:
        try:  # ./train.py: fails in a checkout that is not this repository
            commit = git("rev-parse", "HEAD", "HEAD:./train.py").decode().split()[0]
            diff = git("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD", "--", ".")
            new = git("ls-files", "--others", "--exclude-standard", "*.py").decode().replace("\n", " ")
        except (OSError, subprocess.SubprocessError) as e:
            said = getattr(e, "stderr", b"") or b""
            fault = f"no git commit in it ({first_line(said.decode(errors='replace') or e)})"
        with open(path, "a", encoding="utf-8") as f:
            f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime())}, iteration {iteration}: "
                    f"{shlex.join(sys.argv)}\nPython {platform.python_version()}, torch "
                    f"{torch.__version__}, commit {commit}{' and changes' * bool(diff)}\n"
                    + f"not in git: {new}\n" * bool(new))
        if diff:
            with written(os.path.join(out_dir, f"source_{iteration:07d}.diff"), "wb") as f:
                f.write(diff)
    except Exception as e:  # a full disk, a read-only folder
        fault = f"the run's source is not kept ({first_line(e)})"
    return fault and f"{path}: {fault}"


def git(*words):
    env = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    return subprocess.run(["git", "-C", HOUSE, *words], env={**env, "GIT_OPTIONAL_LOCKS": "0"}, check=True,
                          stdin=subprocess.DEVNULL, capture_output=True, timeout=PATIENCE).stdout
