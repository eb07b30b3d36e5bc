"""
Batches from memory-mapped .bin files. A batch depends only on (seed, iteration) and is divided among
the ranks. So N ranks train on exactly the batch of a single process, evaluation does not change the
training data, and a resumed run sees the same batches.
"""
import os

import numpy as np
import torch

from base.errors import UserError
from data.dataset import check_ids, open_tokens
from data.tokenizer import get_tokenizer

ROUNDS = 6  # Feistel rounds of shuffled()


def shuffled(i, n, keys):
    """
    The position of i, 0 <= i < n, in a pseudorandom permutation of n set by the integers `keys`. A
    Feistel network (Luby and Rackoff 1988) permutes a power of 4 below 4 n; it is applied again until
    the result is below n (cycle walking). It needs no table, for any n.
    """
    half = max(1, ((n - 1).bit_length() + 1) // 2)  # bits
    low = (1 << half) - 1
    while True:
        left, right = i >> half, i & low
        for key in keys:
            x = ((right + key) * 0x9E3779B97F4A7C15 & 2**64 - 1) ^ key
            x = (x ^ x >> 31) * 0xBF58476D1CE4E5B9 & 2**64 - 1
            left, right = right, left ^ (x ^ x >> 29) & low
        i = left << half | right
        if i < n:
            return i


class Loader:
    """
    batch(it): this rank's rows of the training batch of iteration `it`. eval_batches(): this rank's
    rows of the validation set, always the same. Both give dicts of int64 tensors, rows first.
    """

    def __init__(self, config, meta, vocab_size, rank=0, world=1):
        self.config, self.vocab_size, self.rank, self.world = config, vocab_size, rank, world
        if config.doc_mask and meta.get("eot") is None:
            raise UserError(f"doc_mask=True: the meta.json of data_dir={config.data_dir} names no eot, "
                            "the token id that ends a document: put it there, or leave doc_mask out")
        self.T = config.block_size
        self.rows = config.batch_tokens // self.T  # of the batch, over all ranks
        each = [config.after(stage, "micro_batch") for stage in range(len(config.stages) + 1)]
        for micro_batch in each:
            self.grad_accum_steps(micro_batch)  # fail now, not when the stage begins
        self.eval_rows = min(each)
        try:
            np.empty((self.rows // world, 2 * self.T), np.int64)
        except (MemoryError, ValueError):
            raise UserError(f"batch_tokens={config.batch_tokens}: a batch of so many tokens does not fit in "
                            "memory: lower it") from None
        self.split = {split: open_tokens(config.data_dir, split, meta, vocab_size, self.need())
                      for split in ("train", "val")}
        # rows of an evaluation over all ranks: at most the validation set once
        self.val_seqs = max(1, (len(self.split["val"]) - 1) // self.T)  # all that there are
        self.eval_seqs = min(config.eval_seqs, self.val_seqs)

    def grad_accum_steps(self, micro_batch):
        """Micro-batches per iteration on each rank. Raises UserError."""
        per_round, rest = micro_batch * self.world, self.rows % (micro_batch * self.world)
        if rest == 0:
            return self.rows // per_round
        each = min(micro_batch, self.rows // self.world, 1 << 16)
        fits = next((n for n in range(each, 0, -1) if self.rows % (n * self.world) == 0), 0)
        raise UserError(
            f"batch_tokens={self.config.batch_tokens} is {self.rows} sequences of {self.T}, which "
            f"does not divide among {self.world} processes x micro_batch={micro_batch}: "
            + (f"micro_batch={fits} would" if fits else
               f"batch_tokens={self.T * per_round * max(1, round(self.rows / per_round))} would"))

    def need(self):
        return self.T + 1

    def batch(self, it):
        """Row r of iteration `it` belongs to rank r // (rows / world)."""
        n = self.rows // self.world
        rows = range(self.rank * n, (self.rank + 1) * n)
        return self.draw("train", [(self.config.seed, it, r) for r in rows])

    def eval_batches(self):
        n, size = self.eval_seqs, self.eval_rows
        mine = range(self.rank, n, self.world)
        for i in range(0, len(mine), size):
            yield self.draw("val", [(r, n) for r in mine[i:i + size]])

    def windows(self):
        """Training windows per epoch. At least T tokens stay spare, so that epochs can shift the windows."""
        return max(1, (len(self.split["train"]) - self.T) // self.T)

    def epochs(self, it):
        """Epochs completed after `it` iterations; 0 if sampling is not by epochs."""
        return it * self.rows // self.windows() if self.config.sampling == "epochs" else 0

    def place(self, seed, it, r):
        """
        Start of the training window of row r of iteration `it`. With sampling="epochs" each epoch visits
        every window once, in its own random order and with its own offset.
        """
        tokens = len(self.split["train"]) - 1
        if self.config.sampling == "random":
            return int(np.random.Philox(key=seed, counter=[0, 0, r, it]).random_raw() % (tokens - self.T + 1))
        epoch, i = divmod(it * self.rows + r, self.windows())
        keys = np.random.Philox(key=seed, counter=[0, 1, 0, epoch]).random_raw(ROUNDS + 1).tolist()
        slack = tokens - self.windows() * self.T
        offset = keys.pop() % min(self.T, slack + 1)
        offset = slack - offset if epoch % 2 else offset  # alternates between start and end, so all tokens are read
        return offset + shuffled(i, self.windows(), keys) * self.T

    def draw(self, split, keys):
        """GPT: windows of T + 1 tokens, evenly spaced in validation."""
        tokens = self.split[split]
        last = len(tokens) - self.T - 1
        starts = [self.place(*key) for key in keys] if split == "train" else \
            [r * last // max(n - 1, 1) for r, n in keys]
        rows = np.stack([tokens[s:s + self.T + 1] for s in starts])
        check_ids(rows, self.vocab_size, os.path.join(self.config.data_dir, split + ".bin"))
        return {k: torch.from_numpy(v.astype(np.int64)) for k, v in dict(
            idx=rows[:, :-1], targets=rows[:, 1:]).items()}


class BertLoader(Loader):
    """
    Rows [CLS] A [SEP] B [SEP] for BERT (Devlin et al. 2018). Half of the time B follows A in its document,
    otherwise it comes from elsewhere. A share mask_frac of a row's tokens is predicted: 80 % of them are
    masked, 10 % random, 10 % unchanged. positions and targets are (B, P), P = mask_frac * block_size; shorter
    rows are padded with position 0 and target -1. Everything is drawn anew for each (seed, iteration, row).
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

    def epochs(self, it):
        return 0  # pairs of segments are drawn at random

    def draw(self, split, keys):
        rngs = [np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, r, it])) for seed, it, r
                in (keys if split == "train" else [(0, 0, r) for r, _ in keys])]
        B, T = len(keys), self.T
        idx, segments = np.full((B, T), self.special["pad"]), np.zeros((B, T), dtype=np.int64)
        attn_mask, words = np.zeros((B, T), dtype=bool), np.zeros((B, T), dtype=bool)
        next_sentence, chance = np.zeros(B, dtype=np.int64), np.empty((B, T + 2 * self.predictions))
        for r, rng in enumerate(rngs):
            a, b, next_sentence[r] = self.pair(split, rng)
            sep, n = len(a) + 1, len(a) + len(b) + 3  # position of A's [SEP]; length of the row
            idx[r, 0], idx[r, sep], idx[r, n - 1] = (self.special[s] for s in ("cls", "sep", "sep"))
            idx[r, 1:sep], idx[r, sep + 1:n - 1] = a, b
            segments[r, sep + 1:n], attn_mask[r, :n] = 1, True
            words[r, 1:sep] = words[r, sep + 1:n - 1] = True
            chance[r] = rng.random(chance.shape[1])
        check_ids(idx, self.vocab_size, os.path.join(self.config.data_dir, split + ".bin"))
        positions, targets = self.hide(idx, words, chance)
        return {k: torch.from_numpy(v) for k, v in dict(
            idx=idx, segments=segments, attn_mask=attn_mask, positions=positions, targets=targets,
            next_sentence=next_sentence).items()}

    def hide(self, idx, words, chance):
        """
        Choose a share mask_frac of each row's words to predict, and mask them in idx (B, T), in place.
        words: (B, T) bool. chance: (B, T + 2 P) in [0, 1). Returns positions and targets, both (B, P).
        """
        P = self.predictions
        where = np.where(words, chance[:, :self.T], 1).argsort(1)[:, :P]  # words come first
        wanted = np.maximum(1, np.round(self.config.mask_frac * words.sum(1)))[:, None]
        chosen = np.arange(P) < wanted
        targets, kind = np.take_along_axis(idx, where, 1), chance[:, self.T:-P]
        others = (chance[:, -P:] * self.tok.stream_size).astype(np.int64)
        hidden = np.where(kind < 0.8, self.special["mask"], np.where(kind < 0.9, others, targets))
        np.put_along_axis(idx, where, np.where(chosen, hidden, targets), 1)
        return np.where(chosen, where, 0), np.where(chosen, targets, -1)

    def window(self, tokens, start):
        """
        Words (N,) from `start` to the end of the document, at most 2 T, and the positions (S,) where a
        sentence ends inside them. Returns (), () if no sentence follows another there.
        """
        w = tokens[start:start + 2 * self.T]
        stop = (w == self.tok.eot).nonzero()[0]
        w = w[:stop[0]] if len(stop) else w
        ends = (w == self.tok.sep).nonzero()[0]
        if self.tok.sep in self.special.values():  # a marker, not text
            w, ends = np.delete(w, ends), ends - np.arange(len(ends))
        else:
            ends = ends + 1
        ends = ends[(ends > 0) & (ends < len(w))]
        return (w, ends) if len(ends) else ((), ())

    def halves(self, split, rng, share, away_from=None):
        """
        Cut a random piece of the data at the end of a sentence: (start in the data, words before the cut,
        words after it). The cut is at about `share` of a row, or of the rest of the document. away_from: a
        place in the data to keep away from.
        """
        tokens, room = self.split[split], self.T - 3
        apart = min(2 * self.T, len(tokens) // 8)
        for _ in range(1000):
            start = int(rng.integers(len(tokens) - 2 * self.T))
            if away_from is not None and abs(start - away_from) < apart:
                continue
            w, ends = self.window(tokens, start)
            if len(ends):
                cut = ends[np.abs(ends - share * min(len(w), room)).argmin()]
                return start, w[max(0, cut - 3 * room // 4):cut], w[cut:cut + room]
        raise UserError(f"{os.path.join(self.config.data_dir, split)}.bin: no documents of two "
                        "sentences found: use longer texts or a smaller block_size")

    def pair(self, split, rng):
        """
        Segments A and B, together at most T - 3 tokens, and 0 if B follows A, else 1. Two pieces are drawn
        and put in random order. A comes from the first piece, B from the first or the second. Lengths are
        those that both pieces allow, so neither B nor the lengths reveal whether B follows A. A may begin
        and B may end inside a sentence.
        """
        share = rng.uniform(0.25, 0.75)
        start, *first = self.halves(split, rng, share)
        n_a = n_b = 0
        for _ in range(8):  # look for a second piece of similar length, so that little is cut off
            _, *other = self.halves(split, rng, share, start)
            a = min(len(first[0]), len(other[0]))
            b = min(len(first[1]), len(other[1]), self.T - 3 - a)
            if a + b > n_a + n_b:
                n_a, n_b, second = a, b, other
            if n_a + n_b >= 0.75 * min(self.T - 3, len(first[0]) + len(first[1])):
                break
        if rng.random() < 0.5:
            first, second = second, first
        is_random = int(rng.random() < 0.5)
        return first[0][-n_a:], (second if is_random else first)[1][:n_b], is_random


LOADERS = {"gpt": Loader, "bert": BertLoader, "llama": Loader}


def padded(vocab_size):
    """Rounded up to a multiple of 64, which makes kernels faster."""
    return -(-vocab_size // 64) * 64


def vocab_needed(model, meta):
    """How many token ids the model must know, including BERT's special tokens."""
    return get_tokenizer(meta, bert=True).vocab_size if model == "bert" else meta["vocab_size"]
