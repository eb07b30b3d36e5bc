"""
OpenWebText (8 million documents), GPT-2 BPE, as nanoGPT's data/openwebtext: train.bin is about
17 GB, 9 billion tokens; val.bin 4 million. Needs `pip install datasets`, a network and some 60 GB
of disk. Documents go to train or val by a hash of their number, not by nanoGPT's shuffle.

    python data/openwebtext/prepare.py [--workers N] [--bert] [--force]
"""
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(os.path.dirname(HERE)))

from data.bin_writer import (  # noqa: E402
    BinWriter,
    already_there,
    describe,
    in_pieces,
    n_workers,
    pick_split,
    run,
    script_parser,
    write_pieces,
)
from data.reading import open_dataset  # noqa: E402
from data.tokenizer import load  # noqa: E402

VAL_SHARE = 0.0005  # nanoGPT's
SEED = 2357


def pieces(documents):
    for number, document in enumerate(documents):
        for text, ends in in_pieces(document["text"]):
            yield pick_split(number, VAL_SHARE, SEED), text, ends


def main(argv=None):
    from tqdm import tqdm
    parser = script_parser(__doc__, HERE)
    parser.add_argument("--dataset", default="Skylion007/openwebtext",
                        help="its name for datasets.load_dataset")
    parser.add_argument("--bert", action="store_true", help="mark the end of sentences")
    parser.add_argument("--workers", type=n_workers, default=os.cpu_count() or 1)
    args = parser.parse_args(argv)
    if already_there(args.out, args.force):
        return
    tok = load("gpt2", bert=args.bert)  # first, for it fails sooner than 50 GB of download
    documents = open_dataset(args.dataset, streaming=False)
    with BinWriter(args.out, tok, args.dataset) as w:
        bar = tqdm(documents, unit=" documents", disable=None)
        write_pieces(w, pieces(bar), args.bert, args.workers)
    print(describe(args.out, w.meta))


if __name__ == "__main__":
    run(main)
