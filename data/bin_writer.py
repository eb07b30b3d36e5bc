"""
Writes a dataset, for the prepare scripts: train.bin and val.bin, flat arrays of token ids without a
header, as nanoGPT's, and meta.json, which describes them.

Documents arrive in pieces (split, text, ends), so a document need not fit in memory. `ends` is true
for a document's last piece.
"""
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import parent_process

import numpy as np

from base.errors import Parser, UserError, exits_cleanly, number
from data.dataset import files_of
from data.tokenizer import JSON, cut, get_tokenizer

JOB_CHARS = 1 << 20  # characters tokenized at a time; also the largest piece of a document
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class BinWriter:
    """
    with BinWriter(out, tok, source) as w: w.write("train", ids)

    Tokens go to a temporary folder inside `out`. When the block ends, the dataset replaces any older
    one. After an error or Ctrl-C, `out` is unchanged. source: one line for meta.json. note: further
    entries for it. Raises UserError.
    """

    def __init__(self, out, tok, source, **note):
        self.out, self.tok = os.path.expanduser(out), tok
        self.tmp = os.path.join(self.out, ".unfinished")
        self.count = dict(train=0, val=0)  # tokens
        self.meta = dict(tokenizer=tok.meta(), vocab_size=tok.vocab_size, dtype=tok.dtype,
                         eot=tok.eot, sep=tok.sep, source=source, **note)

    def __enter__(self):
        self.made = not os.path.isdir(self.out)
        try:
            os.makedirs(self.out, exist_ok=True)
            shutil.rmtree(self.tmp, ignore_errors=True)  # left by a killed run
            os.mkdir(self.tmp)
        except OSError as e:
            raise UserError(f"cannot write to {self.out}: {e.strerror}: "
                            "choose another folder with --out") from None
        self.files = {s: open(os.path.join(self.tmp, s + ".bin"), "wb") for s in self.count}
        return self

    def write(self, split, ids):
        """Append token ids, an array or a list, to "train" or "val"."""
        ids = np.asarray(ids, dtype=self.meta["dtype"])
        self.files[split].write(ids.tobytes())
        self.count[split] += len(ids)

    def __exit__(self, kind, error, trace):
        if isinstance(error, OSError):  # a full-disk error names no file
            error.filename = error.filename or self.out
        try:
            for f in self.files.values():
                f.close()
            if kind is None:
                self._commit()
        except OSError as e:
            e.filename = e.filename or self.out
            raise
        finally:
            shutil.rmtree(self.tmp, ignore_errors=True)
            if self.made and not os.listdir(self.out):
                os.rmdir(self.out)

    def _commit(self):
        for split, n in self.count.items():
            if n == 0:
                raise UserError(f"{split}.bin would be empty: give more text"
                                + (", --val FILE, a larger --val-fraction or --val-within"
                                   * (split == "val")))
            self.meta[split + "_tokens"] = n
        spec, names = self.meta["tokenizer"], ["meta.json", "val.bin", "train.bin"]
        if spec["name"] == JSON:  # in its own file, as Hugging Face keeps it
            names.insert(0, JSON)
            with open(os.path.join(self.tmp, JSON), "w", encoding="utf-8", newline="") as f:
                f.write(spec["vocab"])
            self.meta["tokenizer"] = {k: v for k, v in spec.items() if k != "vocab"}
        with open(os.path.join(self.tmp, "meta.json"), "w") as f:
            json.dump(self.meta, f)
        # the old train.bin is removed first and the new one moved last, so an interruption
        # never mixes old and new files into something that looks like a dataset
        train = os.path.join(self.out, "train.bin")
        if os.path.exists(train):
            os.remove(train)
        for name in names:
            os.replace(os.path.join(self.tmp, name), os.path.join(self.out, name))


def complete(out):
    """The meta.json (dict) of the dataset in folder `out`, or None if it is missing or incomplete."""
    out = os.path.expanduser(out)
    try:
        with open(os.path.join(out, "meta.json")) as f:
            meta = json.load(f)
        for split in ("train", "val"):
            size = meta[split + "_tokens"] * np.dtype(meta["dtype"]).itemsize
            if os.path.getsize(os.path.join(out, split + ".bin")) != size:
                return None
        return meta
    except (OSError, ValueError, KeyError, TypeError):
        return None


def describe(out, meta):
    """One line that describes the dataset in `out`."""
    return (f"{out}: {meta['train_tokens']:,} training and {meta['val_tokens']:,} validation "
            f"tokens ({meta['tokenizer']['name']}, {meta['dtype']}; {meta['source']})")


def already_there(out, force):
    """Is the dataset already in `out`, and not to be made again? Prints a line if so. UserError for another's."""
    meta = None if force else complete(out)
    if meta:
        print(f"already there: {describe(out, meta)}; --force makes it anew")
    elif not force:
        refuse_others(out)
    return meta is not None


def refuse_others(out):
    """UserError if `out` holds training data that is no whole dataset of ours."""
    for path in files_of(out, "train"):
        if os.path.exists(path):
            raise UserError(f"--out {out}: holds {path}, with no meta.json of ours that goes with it: choose another "
                            "folder, or --force to replace it")


def unit_hash(name):
    """A number in [0, 1) that depends only on the bytes `name`."""
    return int.from_bytes(hashlib.sha256(name).digest()[:8], "big") / 2**64


def pick_split(number, val_share, seed=0):
    """"train" or "val" for a document, by a hash of its number; a share of val_share goes to "val"."""
    return "val" if unit_hash(f"{seed}:{number}".encode()) < val_share else "train"


def script_parser(doc, out, **more):
    """A parser with the arguments that all prepare scripts share."""
    parser = Parser(description=doc.split("\n\n")[0], **more)
    parser.add_argument("--out", default=out, help="folder for the dataset")
    parser.add_argument("--force", action="store_true", help="make it again if it is there")
    return parser


n_workers = number(int, 1, 1024)  # for argparse's `type`: the number of tokenizing processes


def in_pieces(text):
    """Split a document into (part, ends), each part at most JOB_CHARS long."""
    while len(text) > JOB_CHARS:
        n = cut(text[:JOB_CHARS])
        yield text[:n], False
        text = text[n:]
    yield text, True


def encode_pieces(pieces, tok, bert=False, starts=True):
    """
    Token ids of a list of pieces (split, text, ends), as {split: array}. Each document is put between
    tok.begin and tok.ending. starts: the first piece begins a document. bert: add tok.sep after every
    sentence; a sentence ends after .!? or at the end of its line. Bytes need none added, because their
    sep is the newline.
    """
    ids = dict(train=[], val=[])
    for split, text, ends in pieces:
        if starts and tok.begin:
            ids[split].append(np.array(tok.begin, dtype=tok.dtype))
        starts = ends
        if bert and tok.name != "bytes":
            flat = []
            for line in text.split("\n"):
                for sentence in SENTENCE_END.split(line.strip()):
                    found = tok.encode(sentence)
                    flat += found + [tok.sep] if found else []
            ids[split].append(np.array(flat, dtype=tok.dtype))
        else:  # NUL is the end of a document in a byte dataset
            text = text.replace("\0", "") if tok.name == "bytes" else text
            ids[split].append(tok.encode_array(text).astype(tok.dtype, copy=False))
        if ends:
            ids[split].append(np.array(tok.ending, dtype=tok.dtype))
    return {split: np.concatenate(parts) for split, parts in ids.items() if parts}


def write_pieces(writer, pieces, bert=False, workers=1):
    """
    Tokenize an iterator of pieces on `workers` processes and write them in order. The files do not
    depend on `workers`. At most three jobs of JOB_CHARS per worker are in memory.
    """
    if workers <= 1:
        done = (encode_pieces(job, writer.tok, bert, starts) for job, starts in _jobs(pieces))
    else:
        done = _in_parallel(_jobs(pieces), workers, writer.tok.meta(), bert)
    for ids in done:
        for split, part in ids.items():
            writer.write(split, part)


def _jobs(pieces):
    """Group pieces into jobs of about JOB_CHARS: (pieces, does the first one begin a document?)."""
    job, size, starts = [], 0, True
    for piece in pieces:
        job.append(piece)
        size += len(piece[1]) + 1
        if size >= JOB_CHARS:
            yield job, starts
            job, size, starts = [], 0, piece[2]
    if job:
        yield job, starts


def _in_parallel(jobs, workers, *how):
    """encode_pieces() of each job, in order. Executor.map would read all jobs first."""
    pool, waiting = ProcessPoolExecutor(workers, initializer=_start_worker, initargs=how), deque()
    try:
        for job in jobs:
            waiting.append(pool.submit(_work, job))
            if len(waiting) >= 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool:
        raise UserError("a tokenizing process died, perhaps for want of memory: "
                        "use fewer --workers") from None
    finally:
        pool.shutdown(wait=not waiting, cancel_futures=True)  # a pool that is cut off may never end


def _start_worker(meta, bert):
    global _tok, _bert
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tok, _bert = get_tokenizer(dict(tokenizer=meta)), bert


def _die_with_parent():
    parent_process().join()
    os._exit(1)


def _work(job):
    pieces, starts = job
    return encode_pieces(pieces, _tok, _bert, starts)


def run(main):
    """Run a script's main(): errors become one line and exit code 2."""
    def stop(*_):
        raise KeyboardInterrupt(143)  # unwinds, so that temporary files are removed

    @exits_cleanly
    def guarded():
        try:
            main()
        except KeyboardInterrupt as e:
            print("error: interrupted: nothing was written", file=sys.stderr, flush=True)
            os._exit(e.args[0] if e.args else 130)  # without waiting: the workers end with us

    signal.signal(signal.SIGTERM, stop)
    guarded()
