"""
BERT's rows: what is predicted, and that nothing but what B says tells whether it follows A.
"""
import functools

import numpy as np
import pytest
import torch

from data.loader import BertLoader
from run.settings import TrainConfig

BYTES = dict(tokenizer=dict(name="bytes"), vocab_size=256, dtype="uint8", eot=0, sep=10)
MARKS = dict(tokenizer=dict(name="wordpiece", vocab=[
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(chr, range(33, 91))]),
    vocab_size=63, dtype="uint8", eot=0, sep=3)


@functools.cache
def stream(sep, eot, low, ends, n_sentences):
    """Documents of so many sentences of 5 to 60 letters, a point or a question mark at the end."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(5, 60, 6000 // n_sentences * n_sentences)
    ids = rng.integers(low, low + 20, lengths.sum())
    at = lengths.cumsum()
    ids[at - 1] = rng.choice(ends, len(at))
    marks = [v for i in range(len(at)) for v in ([sep, eot] if (i + 1) % n_sentences == 0 else [sep])]
    return np.insert(ids, [a for i, a in enumerate(at)
                           for _ in range(1 + ((i + 1) % n_sentences == 0))], marks).astype(np.uint8)


def loader(folder, meta, n_sentences, T, mask_frac=0.15, rows=1):
    low, ends = (97, (46, 63)) if meta is BYTES else (40, (18, 35))
    for split in ("train", "val"):
        stream(meta["sep"], meta["eot"], low, ends, n_sentences).tofile(folder / f"{split}.bin")
    return BertLoader(TrainConfig(
        data_dir=str(folder), block_size=T, batch_tokens=T * rows, micro_batch=rows, eval_seqs=rows,
        mask_frac=mask_frac, seed=1), meta, 512)


def features(batch, unhidden):
    """What could tell of each row: (B, 6) small integers."""
    n = batch["attn_mask"].sum(1)
    len_b = batch["segments"].sum(1) - 1
    last, before = (unhidden[torch.arange(len(n)), n - i] for i in (2, 3))
    return torch.stack([last, len_b, n, batch["attn_mask"].size(1) - n, before, unhidden[:, 1]], 1).numpy()


def guess(x, y, x_test):
    """The answer seen most often with the same x, for each row of x_test."""
    votes = {}
    for key, label in zip(map(tuple, x), y):
        votes[key] = votes.get(key, 0) + 2 * label - 1
    return np.array([votes.get(key, 0) > 0 for key in map(tuple, x_test)])


# every length of row and of document once, all of them together only with --slow
ROWS = [(meta, T, n) for meta, T in ((BYTES, 64), (BYTES, 128), (BYTES, 512), (MARKS, 64))
        for n in (2, 6, 20)]
FIRST = [(BYTES, 64, 2), (BYTES, 128, 6), (BYTES, 512, 20), (MARKS, 64, 6)]


@pytest.mark.parametrize("meta, T, n_sentences", [
    pytest.param(*row, marks=[] if row in FIRST else pytest.mark.slow, id="-".join(
        map(str, (row[0]["tokenizer"]["name"], *row[1:])))) for row in ROWS])
def test_neither_ends_nor_lengths_tell_the_next_sentence(meta, n_sentences, T, tmp_path):
    if meta is MARKS:
        pytest.importorskip("tokenizers")
    load = loader(tmp_path, meta, n_sentences, T, mask_frac=0.0, rows=4000)
    batch = load.batch(0)
    at = batch["positions"][:, :1]  # no more than one position a row is hidden
    unhidden = batch["idx"].scatter(1, at, batch["targets"][:, :1])
    x, y = features(batch, unhidden), batch["next_sentence"].numpy()
    assert 0.46 < y.mean() < 0.54
    tried = {"last": x[:, :1], "last two": x[:, [0, 4]], "length of B": x[:, 1:2], "row": x[:, 2:3],
             "coarse": x[:, :4] // [1, 8, 8, 8], "first of A, last of B": x[:, [0, 5]],
             "ends of sentences": np.isin(x[:, [0, 4, 5]], (10, 46, 63, 18, 35))}
    for name, f in tried.items():
        right = (guess(f[:2000], y[:2000], f[2000:]) == y[2000:]).mean()
        assert right < 0.55, (name, right)
    sklearn = pytest.importorskip("sklearn.linear_model")
    from sklearn.preprocessing import StandardScaler
    f = StandardScaler().fit_transform(np.hstack([x[:, 1:4], x[:, 1:4] ** 2, tried["ends of sentences"]]))
    right = sklearn.LogisticRegression().fit(f[:2000], y[:2000]).score(f[2000:], y[2000:])
    assert right < 0.55, right


@pytest.mark.parametrize("meta", [BYTES, MARKS], ids=["bytes", "wordpiece"])
@pytest.mark.parametrize("mask_frac", [0.15, 0.9])
@pytest.mark.parametrize("n_sentences, T", [(2, 512), (20, 64)])
def test_mask_frac_is_a_share_of_the_row(meta, mask_frac, n_sentences, T, tmp_path):
    if meta is MARKS:
        pytest.importorskip("tokenizers")
    load = loader(tmp_path, meta, n_sentences, T, mask_frac, rows=200)
    batch = load.batch(0)
    P = round(mask_frac * T)
    assert batch["positions"].shape == batch["targets"].shape == (200, P)
    for idx, attn_mask, segments, positions, targets in zip(*(batch[k] for k in (
            "idx", "attn_mask", "segments", "positions", "targets"))):
        n, real = int(attn_mask.sum()), targets >= 0
        assert attn_mask[:n].all() and (idx[n:] == load.special["pad"]).all()
        sep_a = n - 1 - int(segments.sum())
        assert idx[0] == load.special["cls"] and idx[sep_a] == idx[n - 1] == load.special["sep"]
        where = positions[real].tolist()
        assert len(set(where)) == len(where) == max(1, round(mask_frac * (n - 3)))
        assert not {0, sep_a}.intersection(where) and max(where) < n - 1
        assert (positions[~real] == 0).all() and (targets[~real] == -1).all()
    real = batch["targets"] >= 0
    now = batch["idx"].gather(1, batch["positions"])[real]
    masked = (now == load.special["mask"]).float().mean()
    same = (now == batch["targets"][real]).float().mean()
    assert abs(masked - 0.8) < 0.05 and abs(same - 0.1) < 0.05


def test_b_follows_a_or_comes_from_elsewhere(tmp_path):
    load = loader(tmp_path, BYTES, 20, 128, mask_frac=0.0, rows=300)
    load.predictions, batch = 1, load.batch(0)
    whole = load.split["train"].tobytes()
    idx = batch["idx"].scatter(1, batch["positions"], batch["targets"])
    for row, attn_mask, segments, other in zip(idx, batch["attn_mask"], batch["segments"], batch["next_sentence"]):
        n, n_b = int(attn_mask.sum()), int(segments.sum()) - 1
        a, b = bytes(row[1:n - n_b - 2].tolist()), bytes(row[n - 1 - n_b:n - 1].tolist())
        assert a.endswith(b"\n") and a in whole and b in whole and b"\0" not in a + b
        assert len(a) < 20 or (a + b in whole) == (other == 0)


def test_a_text_without_sentences_is_one_line(tmp_path):
    from base.errors import UserError
    load = loader(tmp_path, BYTES, 2, 64)
    load.split["train"] = np.full(10_000, 97, dtype=np.uint8)
    with pytest.raises(UserError, match="no documents of two sentences"):
        load.batch(0)
