"""Files that are written whole or not at all."""
import contextlib
import os


@contextlib.contextmanager
def written(path, mode="w"):
    """
    with written(path) as f: what is written goes aside, and takes the place of `path` when the block
    is through: on a full disk, or any error in the block, what was there stays. An OSError names `path`.
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
