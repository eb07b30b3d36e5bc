"""
Checkpoints that survive: written aside, flushed, renamed; checked before they are believed, by a
checksum over the whole file that stands at its end; loaded without running any code from the file.
One run at a time owns an out_dir.
"""
import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import zipfile

import torch

from model import MODELS
from run.errors import UserError, first_line, is_out_of_memory
from run.writing import written

LATEST, BEST = "ckpt.pt", "best.pt"
SEAL = b"nanogrow sha256:"  # at a checkpoint's end, the digest of all before it follows


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
            sealed = Sealed(f)
            torch.save(state, sealed)
            f.write(SEAL + sealed.digest.digest())
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


class Sealed:
    """A file to write to, in order, and the digest of what was written."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, data):
        self.digest.update(data)
        return self.file.write(data)

    def flush(self):
        self.file.flush()


def check_seal(path):
    """Raise ValueError if the file is not what was written; an old one, unsealed, is a zip's matter."""
    with open(path, "rb") as f:
        digest, left = hashlib.sha256(), os.path.getsize(path) - len(SEAL) - 32
        f.seek(max(left, 0))
        seal = f.read()
        if not seal.startswith(SEAL):
            with zipfile.ZipFile(path) as z:
                if (damaged := z.testzip()) is not None:
                    raise ValueError(f"record {damaged} is damaged")
            return
        f.seek(0)
        while left > 0:
            data = f.read(min(left, 1 << 20))
            digest.update(data)
            left -= len(data)
    if SEAL + digest.digest() != seal:
        raise ValueError("its checksum is wrong")


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
        with contextlib.suppress(OSError):  # some file systems cannot sync a folder
            os.fsync(fd)
        os.close(fd)


def numbered(out_dir):
    """The numbered checkpoints in out_dir, newest first."""
    names = [n for n in os.listdir(out_dir) if re.fullmatch(r"ckpt_\d+\.pt", n)]
    return [os.path.join(out_dir, n) for n in sorted(names, key=lambda n: -int(n[5:-3]))]


def exists(out_dir):
    return os.path.isdir(out_dir) and bool(numbered(out_dir) or any(
        os.path.exists(os.path.join(out_dir, name)) for name in (LATEST, BEST)))


def remains(out_dir):
    """What is left of a run that got as far as a step, although its checkpoints are gone; or None."""
    for name, sign in (("metrics.jsonl", r'"event": "step"|"iter": [1-9]'), ("log.txt", "iter [1-9]")):
        path = os.path.join(out_dir, name)
        with contextlib.suppress(OSError), open(path, errors="replace") as f:
            if any(re.search(sign, line) for line in f):
                return path
    return None


def load(path):
    """
    The state saved in `path`, or in the newest whole checkpoint of the folder `path`.
    Its checksum is verified first. Raises UserError naming the file and the fault.
    """
    if os.path.isdir(path):
        return load_newest(path)
    try:
        check_seal(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as e:  # whatever a damaged file provokes
        raise UserError(f"{path}: damaged or not a checkpoint ({first_line(e)})") from None
    if not isinstance(state, dict) or "model_config" not in state:
        raise UserError(f"{path}: not a checkpoint of this project")
    return state


@contextlib.contextmanager
def believed(where):
    """
    Around the use of what the checkpoint `where` holds: what is missing in it, or of another kind, is
    a UserError. where=None: there is none.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        if where is None or is_out_of_memory(e):
            raise
        said = (str(e).strip() or type(e).__name__).splitlines()[-1].strip()
        raise UserError(f"{where}: not a whole checkpoint of this project ({type(e).__name__}: {said})") \
            from None


def load_newest(out_dir):
    tried, faults = numbered(out_dir), []
    for name in (LATEST, BEST):  # last resorts: the same files, or all that is left of them
        if os.path.exists(os.path.join(out_dir, name)):
            tried.append(os.path.join(out_dir, name))
    for path in tried:
        try:
            state = load(path)
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
    state = load(path)
    cls, config_cls = MODELS[state["config"]["model"]]
    model = cls(config_cls(**state["model_config"]))
    model.load_state_dict(state.pop("model"))
    return model.to(device).eval(), state


def write_json(path, content):
    with written(path) as f:
        json.dump(content, f, indent=1, ensure_ascii=False)


def make_out_dir(out_dir):
    """Create out_dir and lock it against a second run. Returns the open lock: keep it."""
    try:
        os.makedirs(out_dir, exist_ok=True)
        lock = open(os.path.join(out_dir, "lock"), "w")
    except (OSError, ValueError) as e:  # a NUL in the name is a ValueError
        raise UserError(f"out_dir={out_dir}: cannot be written ({getattr(e, 'strerror', e)}): choose "
                        "another with --out_dir=PATH") from None
    try:
        import fcntl
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # no flock on this platform: nothing to check with
    except OSError as e:
        if e.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            return lock  # a file system that has no locks
        raise UserError(f"out_dir={out_dir}: another run is writing there: stop it, or choose "
                        "another --out_dir") from None
    return lock
