"""
Prepare the default dataset: the source files of Python's own standard library, as bytes. It needs no
download and takes seconds. Each file is a document that ends with NUL. A hash of its name sends a file
to train or, for about 5 %, to val. The dataset serves GPT and BERT (a newline ends a sentence).

    python data/pystdlib/prepare.py [--force]
"""
import os
import platform
import sys
import sysconfig

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

import numpy as np  # noqa: E402

from base.errors import UserError  # noqa: E402
from base.reading import files_below  # noqa: E402
from data.bin_writer import BinWriter, already_there, run, script_parser, unit_hash  # noqa: E402
from data.tokenizer import load  # noqa: E402

VAL_SHARE = 0.05
NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}  # folders that are not standard library


def find_files(root):
    """Relative paths (with /) of the library's .py files, shuffled by hash."""
    found = [os.path.relpath(path, root).replace(os.sep, "/")
             for path in files_below(root, NOT_OURS) if path.endswith(".py")]
    return sorted(found, key=lambda path: (unit_hash(os.fsencode(path)), path))


def read(path):
    """The file's bytes, or None if it is empty or not UTF-8 text (some of the library's tests)."""
    try:
        with open(path, "rb") as f:
            text = f.read()
        text.decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    return text if text.strip() and b"\0" not in text else None


def main(argv=None):
    parser = script_parser(__doc__, HERE)
    args = parser.parse_args(argv)
    if already_there(args.out, args.force):
        return
    root, tok = sysconfig.get_paths()["stdlib"], load("bytes")
    version = platform.python_version()
    n_files, skipped = dict(train=0, val=0), 0
    with BinWriter(args.out, tok, f"standard library of Python {version}", python=version) as w:
        for path in find_files(root):
            text = read(os.path.join(root, path))
            if text is None:
                skipped += 1
                continue
            split = "val" if unit_hash(os.fsencode(path)) < VAL_SHARE else "train"
            n_files[split] += 1
            w.write(split, np.frombuffer(text + bytes([tok.eot]), dtype=np.uint8))
        if 0 in n_files.values():
            raise UserError(f"no Python source files in {root}: prepare a text of your own with "
                            "python data/text/prepare.py --input FILE")
    print(f"{args.out}: Python {version}, " + ", ".join(
        f"{split} {n} files, {w.count[split] / 1e6:.1f} MB" for split, n in n_files.items())
        + f" (skipped {skipped} empty or not UTF-8)")


if __name__ == "__main__":
    run(main)
