"""
Safe file writing. A file is written whole or not at all, flushed to disk, and ends in a checksum.
A failed write (full disk, network disk not answering) is retried.
"""
import contextlib
import errno
import hashlib
import json
import os
import tempfile
import time
import zipfile

import torch

from base.errors import UserError

SEAL = b"nanogrow sha256:"  # ends a file, followed by the digest of everything before it
PAUSES = (1, 4, 15)  # seconds to wait before each retry of a failed write


class Sealed:
    """A file that is written sequentially, with a running digest of its contents."""

    def __init__(self, file):
        self.file, self.digest = file, hashlib.sha256()

    def __getattr__(self, name):  # tell, flush, fileno, close
        return getattr(self.file, name)

    def write(self, data):
        self.digest.update(data)
        return self.file.write(data)


def write_sealed(path, state):
    """torch.save with a seal, flushed to disk. Raises OSError, or torch's RuntimeError."""
    remove(path)  # a killed run may have left a link to a good checkpoint: never overwrite in place
    with open(path, "wb") as f:
        sealed = Sealed(f)
        torch.save(state, sealed)
        f.write(SEAL + sealed.digest.digest())
        f.flush()
        os.fsync(f.fileno())


def check_seal(path):
    """Raise ValueError if the file is damaged. Old files have no seal: their zip checksums are used."""
    left = os.path.getsize(path) - len(SEAL) - 32
    with open(path, "rb") as f:
        f.seek(max(left, 0))
        seal = f.read()
    if not seal.startswith(SEAL):
        with zipfile.ZipFile(path) as z:
            if (damaged := z.testzip()) is not None:
                raise ValueError(f"record {damaged} is damaged")
    elif SEAL + sha256(path, left) != seal:
        raise ValueError("its checksum is wrong")


def sha256(path, size):
    """The digest of a file's first `size` bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while size > 0 and (data := f.read(min(size, 1 << 20))):
            digest.update(data)
            size -= len(data)
    return digest.digest()


def locked(file, shared=False):
    """
    Lock an open file until it is closed, exclusively or shared. Returns False if another process holds
    a conflicting lock. Returns True where locks are not supported.
    """
    try:
        import fcntl
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as e:
        return e.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def patiently(work):
    """Call work(), retrying failed writes after each of PAUSES; the last error is raised."""
    for pause in PAUSES:
        try:
            return work()
        except (OSError, RuntimeError):  # torch reports a failed write as a RuntimeError
            time.sleep(pause)
    return work()


def remove(path):
    with contextlib.suppress(FileNotFoundError):
        os.remove(path)


def sync_dir(path):
    """Flush a folder's entries to disk. Ignored on file systems that cannot do so."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


@contextlib.contextmanager
def written(path, mode="w"):
    """
    with written(path) as f: write to a temporary file, which replaces `path` when the block ends. After
    an error, such as a full disk, the old file is still there. An OSError names `path`.
    """
    special = os.path.exists(path) and not os.path.isfile(path)  # /dev/stdout, a pipe
    aside = path if special else f"{path}.tmp"
    try:
        with open(aside, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
        if not special:
            os.replace(aside, path)
    except OSError as e:
        e.filename = path
        raise
    finally:
        if not special:
            with contextlib.suppress(OSError):
                os.remove(aside)


def write_json(path, content):
    """Write `content` as JSON. Infinity and NaN become strings, because JSON has no such numbers."""
    content = json.loads(json.dumps(content), parse_constant=str)
    with written(path) as f:
        json.dump(content, f, indent=1, ensure_ascii=False)
        f.write("\n")


@contextlib.contextmanager
def filled(folder):
    """
    with filled(folder) as aside: write files into the temporary folder `aside`. They move to `folder`
    when the block ends. After an error, such as a full disk, the old files are still there. An OSError
    becomes a UserError.
    """
    try:
        os.makedirs(folder, exist_ok=True)
        # inside `folder`, because its parent may be on another disk
        with tempfile.TemporaryDirectory(prefix="tmp_", dir=folder) as aside:
            yield aside
            for name in os.listdir(aside):
                os.replace(os.path.join(aside, name), os.path.join(folder, name))
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror or e}): make room or choose another; "
                        "what was there is intact") from None
    finally:
        with contextlib.suppress(OSError):
            os.rmdir(folder)  # if it is empty
