"""
Batches out of memory-mapped .bin files. The batch of an iteration is a function of (seed,
iteration) alone, cut up by rank: N processes train on exactly the batch that one process would,
evaluation never disturbs it, and a resumed run sees what it would have seen.
"""
import json
import os

import numpy as np
import torch

from data.tokenizer import get_tokenizer
from run.errors import UserError

CHECK_TOKENS = 1 << 22  # ids looked at when a file is opened; the loader checks every batch


def read_meta(data_dir):
    """The dataset's meta.json; a folder without one is taken for nanoGPT's (uint16, GPT-2 BPE)."""
    path = os.path.join(data_dir, "meta.json")
    if not os.path.isdir(data_dir):
        raise UserError(f"data_dir={data_dir}: no such folder: {how_to_prepare(data_dir)}")
    if not os.path.exists(path):
        return dict(tokenizer="gpt2", vocab_size=50257, dtype="uint16", eot=50256)
    try:
        with open(path) as f:
            return json.load(f)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({e}): {how_to_prepare(data_dir)}") from None


def how_to_prepare(data_dir):
    script = os.path.join(data_dir, "prepare.py")
    if os.path.exists(script):
        return f"make it with: python {script}"
    return "make one with: python data/text/prepare.py --input FILE --out " + data_dir


def open_tokens(data_dir, split, meta, vocab_size, at_least):
    """The tokens of `split` as a read-only memmap (N,), checked."""
    path = os.path.join(data_dir, split + ".bin")
    dtype = np.dtype(meta["dtype"])
    try:
        size = os.path.getsize(path)
        if size == 0:
            raise UserError(f"{path}: is empty: {how_to_prepare(data_dir)}")
        tokens = np.memmap(path, dtype=dtype, mode="r") if size % dtype.itemsize == 0 else None
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}: {how_to_prepare(data_dir)}") from None
    if tokens is None:
        raise UserError(f"{path}: {size} bytes is no whole number of {dtype} tokens: "
                        f"cut short? {how_to_prepare(data_dir)}")
    if len(tokens) < at_least:
        raise UserError(f"{path}: {len(tokens)} tokens, but one sequence takes {at_least}: "
                        "use more text or a smaller block_size")
    step = max(1, len(tokens) // 64)
    for start in range(0, len(tokens), step):
        check_ids(tokens[start:start + CHECK_TOKENS // 64], vocab_size, path)
    return tokens


def check_ids(ids, vocab_size, where):
    if len(ids) and (top := int(ids.max())) >= vocab_size:
        raise UserError(f"{where}: holds token id {top}, but the vocabulary has {vocab_size}: "
                        "the file belongs to another tokenizer, or vocab_size is too small")


class Loader:
    """
    batch(it): this rank's rows of the training batch of iteration `it`; eval_batches(): this
    rank's rows of the validation set, always the same. Both as dicts of int64 tensors, rows first.
    """

    def __init__(self, config, meta, vocab_size, rank=0, world=1):
        self.config, self.meta, self.vocab_size = config, meta, vocab_size
        self.rank, self.world = rank, world
        self.T = config.block_size
        self.rows = config.batch_tokens // self.T  # of the whole batch
        per_round = config.micro_batch * world
        if self.rows % per_round:
            fits = [n for n in range(1, config.micro_batch + 1) if self.rows % (n * world) == 0]
            raise UserError(
                f"batch_tokens={config.batch_tokens} is {self.rows} sequences of {self.T}, which "
                f"does not divide among {world} processes x micro_batch={config.micro_batch}: "
                + (f"micro_batch={fits[-1]} would" if fits else
                   f"batch_tokens={self.T * per_round * max(1, round(self.rows / per_round))} would"))
        self.accumulation = self.rows // per_round
        self.split = {split: open_tokens(config.data_dir, split, meta, vocab_size, self.need())
                      for split in ("train", "val")}

    def need(self):
        return self.T + 1

    def batch(self, it):
        """Row r of iteration `it` belongs to rank r // (rows / world)."""
        n = self.rows // self.world
        rows = range(self.rank * n, (self.rank + 1) * n)
        return self.draw("train", [(self.config.seed, it, r) for r in rows])

    def eval_batches(self):
        n, size = self.config.eval_seqs, self.config.micro_batch
        mine = range(self.rank, n, self.world)
        for i in range(0, len(mine), size):
            yield self.draw("val", [(r, n) for r in mine[i:i + size]])

    def draw(self, split, keys):
        """GPT: windows of T + 1 tokens, at random in training, evenly spread in validation."""
        tokens = self.split[split]
        last = len(tokens) - self.T - 1
        if split == "train":
            starts = [int(np.random.Philox(key=seed, counter=[0, 0, r, it]).random_raw() % (last + 1))
                      for seed, it, r in keys]
        else:
            starts = [r * last // max(n - 1, 1) for r, n in keys]
        rows = np.stack([tokens[s:s + self.T + 1] for s in starts])
        check_ids(rows, self.vocab_size, os.path.join(self.config.data_dir, split + ".bin"))
        rows = torch.from_numpy(rows.astype(np.int64))
        return dict(idx=rows[:, :-1].contiguous(), targets=rows[:, 1:].contiguous())


class BertLoader(Loader):
    """
    Rows [CLS] A [SEP] B [SEP] for BERT (Devlin et al. 2018): B follows A in its document, or, half
    of the time, comes from elsewhere; a fixed number of predictions a row, 80 % of them masked,
    10 % random, 10 % left. All drawn afresh for each (seed, iteration, row).
    """

    def __init__(self, config, meta, *args, **kwargs):
        tok = get_tokenizer(meta, bert=True)
        if tok.sep is None or tok.eot is None:
            raise UserError(f"data_dir={config.data_dir}: has no ends of sentences or documents, "
                            "which BERT needs: prepare it with data/text/prepare.py --bert")
        self.tok, self.special = tok, tok.special
        self.predictions = max(1, round(config.mask_frac * config.block_size))
        if config.block_size < 8:
            raise UserError(f"block_size={config.block_size}: BERT needs at least 8 to hold two "
                            "segments and three special tokens")
        super().__init__(config, meta, *args, **kwargs)

    def need(self):
        return 4 * self.T

    def draw(self, split, keys):
        rngs = [np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, r, it])) for seed, it, r
                in (keys if split == "train" else [(0, 0, r) for r, _ in keys])]
        rows = [self.row(self.split[split], rng, split) for rng in rngs]
        rows = {k: torch.from_numpy(np.stack([row[k] for row in rows])) for k in rows[0]}
        check_ids(rows["idx"], self.vocab_size, os.path.join(self.config.data_dir, split + ".bin"))
        return rows

    def window(self, tokens, rng):
        """From the start of a sentence, no further than its document's end: T - 3 words or fewer."""
        start = int(rng.integers(len(tokens) - 2 * self.T))
        w = np.asarray(tokens[start:start + 2 * self.T], dtype=np.int64)
        ends = np.flatnonzero((w == self.tok.sep) | (w == self.tok.eot))
        if not len(ends):
            return w[:0]
        w = w[ends[0] + 1:]
        stop = np.flatnonzero(w == self.tok.eot)
        w = w[:stop[0]] if len(stop) else w
        return w[self.is_word(w).cumsum() <= self.T - 3]

    def is_word(self, w):
        """False for the marks of ends of sentences that are no text."""
        return (w != self.tok.sep) | (self.tok.sep not in self.special.values())

    def pair(self, tokens, rng, split):
        """
        Segments A and B, together at most T - 3 tokens, and 0 if B follows A, else 1. A random B
        is as long as the one it stands for, or the row's length would tell them apart.
        """
        is_random = int(rng.random() < 0.5)
        for _ in range(1000):
            w = self.window(tokens, rng)
            cuts = np.flatnonzero(w == self.tok.sep) + 1
            cuts = cuts[cuts < len(w)]
            if not len(cuts):
                continue
            cut = cuts[np.abs(cuts - rng.uniform(0.25, 0.75) * len(w)).argmin()]
            a, b = (half[self.is_word(half)] for half in (w[:cut], w[cut:]))
            if not len(a) or not len(b) or len(a) + len(b) < self.predictions:
                continue
            if not is_random:
                return a, b, 0
            for _ in range(20):
                other = self.window(tokens, rng)
                other = other[self.is_word(other)][:len(b)]
                if len(other) == len(b):
                    return a, other, 1
        raise UserError(f"{os.path.join(self.config.data_dir, split)}.bin: no documents of two "
                        f"sentences and {self.predictions} tokens found: use longer texts or a "
                        "smaller block_size")

    def row(self, tokens, rng, split):
        a, b, is_random = self.pair(tokens, rng, split)
        s, n = self.special, len(a) + len(b) + 3
        idx = np.full(self.T, s["pad"], dtype=np.int64)
        idx[:n] = np.concatenate(([s["cls"]], a, [s["sep"]], b, [s["sep"]]))
        segments = np.zeros(self.T, dtype=np.int64)
        segments[len(a) + 2:n] = 1
        where = np.delete(np.arange(1, n - 1), len(a))  # all but the special tokens
        where = np.sort(rng.permutation(where)[:self.predictions])
        targets, kind = idx[where].copy(), rng.random(self.predictions)
        others = rng.integers(self.tok.stream_size, size=self.predictions)
        idx[where] = np.where(kind < 0.8, s["mask"], np.where(kind < 0.9, others, targets))
        return dict(idx=idx, segments=segments, keep=np.arange(self.T) < n, positions=where,
                    targets=targets, next_sentence=np.int64(is_random))


LOADERS = {"gpt": Loader, "bert": BertLoader, "llama": Loader}


def vocab_needed(model, meta):
    """How many token ids the model must know: BERT's special tokens included."""
    return get_tokenizer(meta, bert=True).vocab_size if model == "bert" else meta["vocab_size"]
