"""
Checkpoints that survive: written aside, flushed, renamed; checked before they are believed;
loaded without running any code from the file. One run at a time owns an out_dir.
"""
import contextlib
import json
import os
import re
import shutil
import zipfile

import torch

from model import MODELS
from run.errors import UserError, first_line

LATEST, BEST = "ckpt.pt", "best.pt"


def save(out_dir, state, keep, best=False):
    """
    Write `state` as ckpt_ITER.pt, point ckpt.pt (and best.pt) at it, delete all but the last
    `keep`. At any moment of this, a kill leaves the previous checkpoint whole.
    Raises UserError when it cannot be written; the previous checkpoint is then intact.
    """
    path = os.path.join(out_dir, f"ckpt_{state['iter']:07d}.pt")
    temporary = os.path.join(out_dir, "tmp_ckpt.pt")
    try:
        remove(temporary)  # a killed run's may be a link to a good checkpoint: never write into it
        with open(temporary, "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        for name in [LATEST] + [BEST] * best:
            point(path, os.path.join(out_dir, name), temporary)
        sync_dir(out_dir)
    except (OSError, RuntimeError) as e:  # torch reports a failed write as a RuntimeError
        with contextlib.suppress(OSError):
            remove(temporary)
        raise UserError(f"{path}: cannot write the checkpoint ({first_line(e)}): make room or "
                        "change out_dir; the previous checkpoint is intact, --resume "
                        "continues from it") from None
    for old in numbered(out_dir)[keep:]:
        remove(old)


def point(path, name, temporary):
    """Make `name` the same file as `path` (a hard link, or a copy where links are not to be had)."""
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    os.replace(temporary, name)


def remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def sync_dir(path):
    if os.name == "posix":
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def numbered(out_dir):
    """The numbered checkpoints in out_dir, newest first."""
    names = [n for n in os.listdir(out_dir) if re.fullmatch(r"ckpt_\d+\.pt", n)]
    return [os.path.join(out_dir, n) for n in sorted(names, key=lambda n: -int(n[5:-3]))]


def exists(out_dir):
    return os.path.isdir(out_dir) and bool(
        numbered(out_dir) or os.path.exists(os.path.join(out_dir, LATEST)))


def load(path, device="cpu"):
    """
    The state saved in `path`, or in the newest whole checkpoint of the folder `path`.
    Every record's checksum is verified first. Raises UserError naming the file and the fault.
    """
    if os.path.isdir(path):
        return load_newest(path, device)
    try:
        with zipfile.ZipFile(path) as z:
            if (damaged := z.testzip()) is not None:
                raise zipfile.BadZipFile(f"record {damaged} is damaged")
        state = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as e:  # whatever a damaged file provokes
        raise UserError(f"{path}: damaged or not a checkpoint ({first_line(e)})") from None
    if not isinstance(state, dict) or "model_config" not in state:
        raise UserError(f"{path}: not a checkpoint of this project")
    return state


def load_newest(out_dir, device="cpu"):
    tried, faults = numbered(out_dir), []
    for name in (LATEST, BEST):  # last resorts: the same files, or all that is left of them
        if os.path.exists(os.path.join(out_dir, name)):
            tried.append(os.path.join(out_dir, name))
    for path in tried:
        try:
            state = load(path, device)
        except UserError as e:
            faults.append(str(e))
            continue
        for fault in faults:
            print(f"warning: {fault}; using {path} instead")
        return state
    raise UserError("; ".join(faults) if faults else
                    f"{out_dir}: holds no checkpoint: train first, without --resume")


def load_model(path, device="cpu"):
    """The model in a checkpoint (a file, or a run's folder) and that checkpoint's other contents."""
    state = load(path, device)
    cls, config_cls = MODELS[state["config"]["model"]]
    model = cls(config_cls(**state["model_config"]))
    model.load_state_dict(state.pop("model"))
    return model.to(device).eval(), state


def write_json(path, content):
    with open(path, "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1, ensure_ascii=False)


def make_out_dir(out_dir):
    """Create out_dir and lock it against a second run. Returns the open lock: keep it."""
    try:
        os.makedirs(out_dir, exist_ok=True)
        lock = open(os.path.join(out_dir, "lock"), "w")
    except OSError as e:
        raise UserError(f"out_dir={out_dir}: cannot be written ({e.strerror}): choose another "
                        "with --out_dir=PATH") from None
    try:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # no flock on this platform: nothing to check with
    except OSError:
        raise UserError(f"out_dir={out_dir}: another run is writing there: stop it, or choose "
                        "another --out_dir") from None
    return lock
