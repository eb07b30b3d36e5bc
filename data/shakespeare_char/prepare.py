"""
Prepare Tiny Shakespeare, one id per character, as nanoGPT's data/shakespeare_char. The first 90 % of
the text go to train.bin, the rest to val.bin. Downloads 1.1 MB unless --input is given.

    python data/shakespeare_char/prepare.py [--input input.txt] [--force]
"""
import os
import sys
import urllib.request

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from base.errors import UserError  # noqa: E402
from base.reading import read_text  # noqa: E402
from data.bin_writer import BinWriter, already_there, describe, run, script_parser  # noqa: E402
from data.tokenizer import load  # noqa: E402

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


def fetch(path):
    """Download the text to `path` unless it is there."""
    if os.path.exists(path):
        return
    try:
        with urllib.request.urlopen(URL, timeout=30) as answer:
            text = answer.read()
    except OSError as e:  # URLError, a timeout, a broken connection
        raise UserError(f"cannot download {URL} ({getattr(e, 'reason', None) or e}): fetch it "
                        "elsewhere and give --input=FILE, or use data/pystdlib, which needs no "
                        "download") from None
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "wb") as f:
        f.write(text)
    os.replace(path + ".tmp", path)


def main(argv=None):
    parser = script_parser(__doc__, HERE)
    parser.add_argument("--input", help="the text, instead of downloading it")
    args = parser.parse_args(argv)
    if already_there(args.out, args.force):
        return
    path = args.input or os.path.join(os.path.expanduser(args.out), "input.txt")
    if not args.input:
        fetch(path)
    text = read_text(path)
    if not text:
        raise UserError(f"--input {path}: is empty: give a text file")
    tok = load("char", sorted(set(text)))
    n = int(0.9 * len(text))
    with BinWriter(args.out, tok, args.input or URL) as w:
        w.write("train", tok.encode(text[:n]))
        w.write("val", tok.encode(text[n:]))
    print(describe(args.out, w.meta))


if __name__ == "__main__":
    run(main)
