"""
Save and load checkpoints; this folder in short.

checkpoint.py  the file format: commit, delete old ones, verify, load (on one rank, or rank 0)
saver.py       used by a run: saves now in one file, or in the background on all ranks
sharded.py     the parts that several ranks write together, through torch.distributed.checkpoint

A checkpoint is one file, ckpt_ITER.pt, that ends in a checksum. If several ranks wrote it, its large
tensors are in a folder parts_* beside it; the file names that folder and holds its files' checksums.
ckpt.pt is the newest checkpoint and best.pt the best one, as hard links or copies.

A kill at any moment leaves the previous checkpoint intact. Everything is written to tmp_ckpt.pt or to
a new parts folder, flushed, and only then renamed. Until ckpt_ITER.pt exists, its parts do not count.
The next start deletes the leftovers of a killed save. Loading verifies all checksums, runs no code
from the file, and falls back to the next older checkpoint if the newest is damaged. A lock keeps a
second run out of out_dir.
"""
import contextlib
import os
import re
import shutil

import torch

from base.disk import check_seal, locked, patiently, remove, sync_dir, write_sealed
from base.errors import UserError, first_line, is_out_of_memory
from model import MODELS
from run.checkpoint import sharded
from run.parallel.shard import with_values

LATEST, BEST, PARTS = "ckpt.pt", "best.pt", "parts_"
HALF_SAVED = {}  # {out_dir: iteration of the last save that failed}


def commit(out_dir, state, keep, best=False, numbered=True):
    """
    Write `state` as best.pt (best), as ckpt_ITER.pt with ckpt.pt linked to it (numbered), or both. Then
    delete old checkpoints, except the last `keep` and the iterations in state["kept"]. A kill at any
    moment leaves the previous checkpoint intact. A failed write is retried for a while; then it raises
    OSError or RuntimeError.
    """
    path = path_at(out_dir, state["iter"])
    temporary = os.path.join(out_dir, "tmp_ckpt.pt")

    def write():
        write_sealed(temporary, state)
        if best and not is_beaten(out_dir, state):  # first: the numbered checkpoint records that it exists
            point(temporary, os.path.join(out_dir, BEST))
        if numbered:
            os.replace(temporary, path)
            point(path, os.path.join(out_dir, LATEST))
    try:
        patiently(write)
    except (OSError, RuntimeError):
        HALF_SAVED[out_dir] = state["iter"]
        raise
    finally:
        with contextlib.suppress(OSError):
            remove(temporary)
    sync_dir(out_dir)
    with contextlib.suppress(OSError):  # the save is complete: failing to tidy up is no error
        tidy(out_dir, keep, state.get("kept", ()))


def path_at(out_dir, iteration):
    """The path of an iteration's checkpoint."""
    return os.path.join(out_dir, f"ckpt_{iteration:07d}.pt")


def point(path, name):
    """Make `name` the same file as `path`: a hard link, or a copy where links are not supported."""
    aside = f"{name}.tmp"
    remove(aside)
    try:
        os.link(path, aside)
    except OSError:
        shutil.copyfile(path, aside)
    os.replace(aside, name)


def tidy(out_dir, keep, kept=()):
    """Delete old checkpoints and their parts, except the last `keep` and the iterations in `kept`."""
    for old in {*numbered(out_dir)[keep:]} - {path_at(out_dir, it) for it in kept}:
        remove(old)
    tidy_parts(out_dir)


def tidy_parts(out_dir):
    """
    Delete the parts folders that no checkpoint names, including those of an interrupted save. A folder
    that is being read is left for the next time.
    """
    folders = [name for name in os.listdir(out_dir) if re.fullmatch(rf"{PARTS}\d{{7}}_.+_\d+", name)]
    if folders:
        left = [*numbered(out_dir), *(os.path.join(out_dir, n) for n in (LATEST, BEST))]
        used = {glance(p).get("parts", {}).get("folder") for p in left if os.path.exists(p)}
        for name in folders:
            if name not in used:
                sharded.delete(os.path.join(out_dir, name))


def is_beaten(out_dir, state):
    """Is best.pt better than `state`? A save of this process that failed half-way may have left it there."""
    with contextlib.suppress(OSError, KeyError, TypeError):
        there = glance(os.path.join(out_dir, BEST))
        return there["iter"] == HALF_SAVED.get(out_dir) and there["best"] < state["best"]
    return False


def glance(path):
    """A checkpoint's contents, unverified, tensors memory-mapped. Raises OSError if it is unreadable."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:  # a damaged file may raise anything
        raise OSError(f"{path}: {first_line(e)}") from None


def numbered(out_dir):
    """The numbered checkpoints in out_dir, newest first."""
    names = [n for n in os.listdir(out_dir) if re.fullmatch(r"ckpt_\d+\.pt", n)]
    return [os.path.join(out_dir, n) for n in sorted(names, key=lambda n: -int(n[5:-3]))]


def exists(out_dir):
    return os.path.isdir(out_dir) and bool(numbered(out_dir) or any(
        os.path.exists(os.path.join(out_dir, name)) for name in (LATEST, BEST)))


def remains(out_dir):
    """The log file that shows that a run took a step here, even if its checkpoints are gone; or None."""
    for name, sign in (("metrics.jsonl", r'"event": "step"|"iter": [1-9]'), ("log.txt", "iter [1-9]")):
        path = os.path.join(out_dir, name)
        with contextlib.suppress(OSError), open(path, errors="replace") as f:
            if any(re.search(sign, line) for line in f):
                return path
    return None


def stamp(path):
    """A value that changes when `path` is replaced by another file; None if there is no file."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_ino, found.st_mtime_ns


def load(path, values=True, ask=sharded.alone):
    """
    The state saved in `path`, or in the newest intact checkpoint of the folder `path`. Checksums are
    verified first; all ranks share that work for parts (ask: Ranks.ask). values=False reads no tensor
    before it is used: those in parts become sharded.Stored, which also protects them from deletion, and
    those in the file are memory-mapped. Raises UserError naming the file and the fault.
    """
    if os.path.isdir(path):
        return load_newest(path, values, ask)
    before = stamp(path)
    try:
        return load_file(path, values, ask)
    except UserError:
        if stamp(path) in (before, None):
            raise
    return load(path, values, ask)  # a running job replaced the file meanwhile


def load_file(path, values, ask):
    try:
        check_seal(path)
        state = glance(path) if not values else \
            torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(state, dict) and "parts" in state:
            parts = state.pop("parts")
            folder = sharded.Folder(os.path.join(os.path.dirname(os.path.abspath(path)), parts["folder"]))
            sharded.check(folder.path, parts, ask)
            state = sharded.stored(state, parts, folder)
    except FileNotFoundError as e:
        if os.path.exists(path):
            raise UserError(f"{path}: its part {e.filename} is missing: the folder of parts belongs "
                            "beside it") from None
        raise UserError(f"{path}: no such checkpoint") from None
    except Exception as e:  # a damaged file may raise anything
        raise UserError(f"{path}: damaged or not a checkpoint ({first_line(e)})") from None
    if not isinstance(state, dict) or "model_config" not in state:
        raise UserError(f"{path}: not a checkpoint of this project")
    return with_values(state) if values else state


@contextlib.contextmanager
def believed(where):
    """
    A context for using the contents of the checkpoint `where`: missing or mistyped entries become a
    UserError. where=None: there is no checkpoint, and errors pass through.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        if where is None or is_out_of_memory(e):
            raise
        said = (str(e).strip() or type(e).__name__).splitlines()[-1].strip()
        raise UserError(f"{where}: not a whole checkpoint of this project ({type(e).__name__}: {said})") \
            from None


def load_newest(out_dir, values, ask):
    tried, faults = numbered(out_dir), []
    for name in (LATEST, BEST):  # last resort: usually the same files under other names
        if os.path.exists(os.path.join(out_dir, name)):
            tried.append(os.path.join(out_dir, name))
    for path in tried:
        try:
            state = load(path, values, ask)
        except UserError as e:
            faults.append(str(e))
            continue
        for fault in faults:
            print(f"warning: {fault}; using {path} instead")
        return state
    raise UserError("; ".join(faults) if faults else
                    f"{out_dir}: holds no checkpoint: train first, without --resume")


def settings_of(path):
    """A checkpoint's config, iter and stage, read before rank 0 verifies it. Raises UserError."""
    try:
        state = glance(path)
        return {k: state[k] for k in ("config", "iter", "stage")}
    except (OSError, LookupError, TypeError):
        with believed(path):
            load(path, values=False)  # usually names the fault; otherwise believed() does
            raise


def load_model(path):
    """(model, the rest of the state) from a checkpoint file or a run's folder."""
    state = load(path, values=False)  # the optimizer state stays on disk
    cls, config_cls = MODELS[state["config"]["model"]]
    with torch.device("meta"):
        model = cls(config_cls.from_saved(state["model_config"]))
    values = with_values(state.pop("model"))  # of the file's memory: copied
    model.load_state_dict({k: v.clone() for k, v in values.items()}, assign=True)
    return model.eval(), state


def make_out_dir(out_dir):
    """Create out_dir and lock it against a second run. Returns the open lock file: keep it open."""
    try:
        os.makedirs(out_dir, exist_ok=True)
        lock = open(os.path.join(out_dir, "lock"), "w")
    except (OSError, ValueError) as e:  # a NUL in the name is a ValueError
        raise UserError(f"out_dir={out_dir}: cannot be written ({getattr(e, 'strerror', e)}): choose "
                        "another with --out_dir=PATH") from None
    if not locked(lock):
        raise UserError(f"out_dir={out_dir}: another run is writing there: stop it, or choose "
                        "another --out_dir")
    return lock
