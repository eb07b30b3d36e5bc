"""
Prepare OpenWebText (8 million documents) with GPT-2's BPE, as nanoGPT's data/openwebtext. train.bin is
about 17 GB (9 billion tokens), val.bin has 4 million tokens. Needs `pip install datasets` and a network.
A hash of its number, not nanoGPT's shuffle, sends each document to train or val. This is
data/text/prepare.py with other defaults, and takes its other flags too.

    python data/openwebtext/prepare.py [--workers N] [--bert] [--force]
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from data.bin_writer import run  # noqa: E402
from data.text.prepare import main as prepare  # noqa: E402


def main(argv=None):
    prepare(["--dataset=Skylion007/openwebtext", *(sys.argv[1:] if argv is None else argv)],
            out=HERE, tokenizer="gpt2", val_fraction=0.0005, seed=2357)


if __name__ == "__main__":
    run(main)
