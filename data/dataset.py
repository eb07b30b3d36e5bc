"""
Opens datasets. A dataset is a folder with train.bin and val.bin, flat arrays of token ids, and
meta.json, which describes them. Two other layouts are read too: nanoGPT's meta.pkl of characters,
and shards with llm.c's header (*train*.bin, *val*.bin), whose format implies GPT-2's tokens.
"""
import bisect
import hashlib
import itertools
import json
import os
import pickle
import re

import numpy as np

from base.errors import UserError
from base.reading import read_text
from data.tokenizer import JSON, SPECIALS, spec_of

GPT2 = dict(tokenizer="gpt2", vocab_size=50257, dtype="uint16", eot=50256)
DTYPES = dict(uint8=1 << 8, uint16=1 << 16, uint32=1 << 32)  # and how many ids fit
CHECK_TOKENS = 1 << 22  # ids checked when a file is opened; the loader checks every batch
# llm.c's shard header, 256 int32: magic, version, tokens. GPT-2's are uint16, Llama 3's uint32
HEADER, HEADERS = 1024, {(20240520, 1): "uint16", (20240801, 7): "uint32"}
WHOLE, BLOCK, BLOCKS = 1 << 24, 4096, 64  # what fingerprint() reads, in bytes and blocks


def read_meta(data_dir):
    """
    The dataset's description, a dict with tokenizer, vocab_size, dtype and perhaps eot and sep. It is
    the checked meta.json, or is derived from meta.pkl or the shards' header. If there is none of these,
    the UserError says what to write.
    """
    folder = os.path.expanduser(data_dir)
    if not os.path.isdir(folder):
        raise UserError(f"data_dir={data_dir}: no such folder: {how_to_prepare(data_dir)}")
    path = os.path.join(folder, "meta.json")
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8-sig") as f:
                meta = json.load(f)
        except (OSError, ValueError, RecursionError) as e:
            raise UserError(f"{path}: cannot be read ({e}): {how_to_prepare(data_dir)}") from None
        return with_tokenizer(check_meta(meta, path), folder)
    if os.path.exists(path := os.path.join(folder, "meta.pkl")):
        return read_pickle(path)
    train = files_of(folder, "train")[0]
    if not os.path.exists(train):
        raise UserError(f"data_dir={data_dir}: holds no meta.json and no train.bin: {how_to_prepare(data_dir)}")
    kind, _ = header(train)
    if kind == "uint16":
        return dict(GPT2)
    if kind:
        raise UserError(f"data_dir={data_dir}: holds shards of Llama 3's tokens: put its tokenizer.json "
                        "beside them and a meta.json " + json.dumps(dict(
                            tokenizer=JSON, vocab_size=128256, dtype=kind, eot=128001)))
    raise UserError(f"data_dir={data_dir}: nothing says how its .bin files were made: write a "
                    f"meta.json beside them, for GPT-2's tokens {json.dumps(GPT2)}")


def how_to_prepare(data_dir):
    script = os.path.join(data_dir, "prepare.py")
    if os.path.exists(os.path.expanduser(script)):
        return f"make it with: python {script}"
    return "make one with: python data/text/prepare.py --input FILE --out " + data_dir


def with_tokenizer(meta, folder):
    """The meta.json, with the text of the tokenizer.json beside it included if it names that."""
    spec = spec_of(meta)
    if spec.get("name") != JSON:
        return meta
    try:
        text = read_text(os.path.join(folder, JSON))
    except UserError as e:
        raise UserError(f"{e}: the meta.json beside it says that it is the dataset's tokenizer") from None
    return dict(meta, tokenizer={"eot": meta.get("eot"), **spec, "vocab": text})


def check_meta(meta, path):
    """Return the meta.json if it is valid; otherwise a UserError names the first wrong key."""
    def is_id(value):
        return type(value) is int and value >= 0

    meta = meta if isinstance(meta, dict) else {}
    spec, n = spec_of(meta), meta["vocab_size"] if is_id(meta.get("vocab_size")) else 0
    stored = n - len(SPECIALS) * (spec.get("name") == "bytes")  # BERT's special ids are in no file of bytes
    listed = spec.get("name") not in ("char", "wordpiece") or isinstance(spec.get("vocab"), list) \
        and spec["vocab"] and all(isinstance(token, str) for token in spec["vocab"])
    for key, good, should in (
            ("tokenizer", isinstance(spec.get("name"), str) and spec["name"], 'a name like "gpt2"'),
            ("tokenizer", listed, 'a name with its "vocab", a list of strings'),
            ("vocab_size", is_id(meta.get("vocab_size")) and meta["vocab_size"] > 0,
             "a whole number above 0"),
            ("dtype", str(meta.get("dtype")) in DTYPES, "one of " + ", ".join(DTYPES)),
            ("dtype", stored <= DTYPES.get(str(meta.get("dtype")), n), f"wide enough for vocab_size = {n}"),
            *((key, meta.get(key) is None or is_id(meta[key]) and meta[key] < n,
               f"null or a token id, below vocab_size = {n}") for key in ("eot", "sep"))):
        if not good:
            has = f"has {key} = {json.dumps(meta[key])[:60]}, but {key}" if key in meta else \
                f"lacks {key}, which"
            raise UserError(f"{path}: {has} must be {should}; for GPT-2's tokens the file is "
                            f"{json.dumps(GPT2)}")
    return meta


class _DataOnly(pickle.Unpickler):
    """Unpickles dicts, lists, strings and numbers only. They need no class, so all classes are refused."""

    def find_class(self, module, name):
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no plain data")


def read_pickle(path):
    """nanoGPT's meta.pkl, a dict with itos {id: character}, as a meta.json. Runs no code from the file."""
    try:
        with open(path, "rb") as f:
            itos = _DataOnly(f).load()["itos"]
        vocab = [itos[i] for i in range(len(itos))]
        if not vocab or not all(isinstance(c, str) and len(c) == 1 for c in vocab):
            raise ValueError("its itos is no list of characters")
    except Exception as e:  # a damaged or foreign pickle may raise anything
        raise UserError(f"{path}: is no meta.pkl of nanoGPT's characters ({type(e).__name__}: {e}): "
                        "write a meta.json that names the tokenizer instead") from None
    return dict(tokenizer=dict(name="char", vocab=vocab), vocab_size=len(vocab), dtype="uint16",
                eot=None)


def header(path):
    """(dtype, number of tokens) from llm.c's header of a .bin file; (None, 0) without a header."""
    head = np.fromfile(path, dtype="<i4", count=3).tolist()
    return (HEADERS[*head[:2]], head[2]) if tuple(head[:2]) in HEADERS and len(head) == 3 else (None, 0)


def files_of(folder, split):
    """The paths of a split, in order: train.bin or, if there is none, the shards *train*.bin."""
    path = os.path.join(os.path.expanduser(folder), split + ".bin")
    if os.path.exists(path) or not os.path.isdir(os.path.dirname(path)):
        return [path]
    words = {"train": r"train(ing)?", "val": r"val(id|idation)?"}
    of = {s: re.compile(rf"(?<![a-z]){word}(?![a-z]).*\.bin$", re.I) for s, word in words.items()}
    shards = [n for n in os.listdir(os.path.dirname(path)) if of[split].search(n)
              and (split == "val" or not of["val"].search(n))]
    return [os.path.join(os.path.dirname(path), n) for n in sorted(shards)] or [path]


class Shards:
    """Several arrays that act as one concatenated array, for len() and slices."""

    def __init__(self, parts):
        self.parts = parts
        self.ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self):
        return self.ends[-1]

    def __getitem__(self, where):
        start, stop, step = where.indices(len(self))
        found = []
        i = bisect.bisect_right(self.ends, start)
        while start < stop:
            begin = self.ends[i] - len(self.parts[i])
            found.append(self.parts[i][start - begin:stop - begin])
            start, i = self.ends[i], i + 1
        return (np.concatenate(found) if found else self.parts[0][:0])[::step]


def open_tokens(data_dir, split, meta, vocab_size, at_least):
    """The checked, read-only tokens of `split`: an array (N,), or Shards, which slices the same way."""
    paths = files_of(data_dir, split)
    tokens = [open_bin(path, meta["dtype"], data_dir) for path in paths]
    tokens = tokens[0] if len(tokens) == 1 else Shards(tokens)
    where = paths[0] + f" and {len(paths) - 1} more" * (len(paths) > 1)
    if len(tokens) < at_least:
        raise UserError(f"{where}: {len(tokens)} tokens, but one sequence takes {at_least}: "
                        "use more text or a smaller block_size")
    promised = meta.get(split + "_tokens", len(tokens))
    if promised != len(tokens):
        raise UserError(f"{where}: holds {len(tokens)} tokens, but meta.json says {promised}: cut short, or "
                        f"of another dataset? Make it anew, or take {split}_tokens out of meta.json")
    step = max(1, len(tokens) // 64)
    for start in range(0, len(tokens), step):
        check_ids(tokens[start:start + CHECK_TOKENS // 64], vocab_size, where)
    return tokens


def open_bin(path, dtype, data_dir):
    """The tokens of one .bin file (N,), memory-mapped."""
    dtype = np.dtype(dtype).newbyteorder("<")
    try:
        size, (kind, promised) = os.path.getsize(path), header(path)
        if size == 0:
            raise UserError(f"{path}: is empty: {how_to_prepare(data_dir)}")
        if kind:
            if dtype != kind:
                raise UserError(f"{path}: is a shard of {kind}, but meta.json says {dtype}")
            if size != HEADER + dtype.itemsize * promised:
                raise UserError(f"{path}: its header promises {promised} tokens, but it holds "
                                f"{(size - HEADER) / dtype.itemsize:g}: cut short? Fetch it again")
            return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)[HEADER // dtype.itemsize:]
        if size % dtype.itemsize:
            raise UserError(f"{path}: {size} bytes is no whole number of {dtype} tokens: "
                            f"cut short? {how_to_prepare(data_dir)}")
        return np.memmap(path, dtype=dtype, mode="r").view(np.ndarray)
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}: {how_to_prepare(data_dir)}") from None


def check_ids(ids, vocab_size, where):
    if len(ids) and (top := int(ids.max())) >= vocab_size:
        raise UserError(f"{where}: holds token id {top}, but the vocabulary has {vocab_size}: "
                        "the file belongs to another tokenizer, or vocab_size is too small")


def fingerprint(data_dir, meta):
    """
    A string for checkpoints to record that changes when the dataset does. It hashes the tokenizer, the
    file sizes and the contents. Beyond WHOLE bytes only BLOCKS evenly spaced blocks are read, including
    the first and the last, so it is fast for any size.
    """
    found = hashlib.sha256(json.dumps([spec_of(meta), meta["dtype"]], sort_keys=True).encode())
    for split in ("train", "val"):
        try:
            sizes = {path: os.path.getsize(path) for path in files_of(data_dir, split)}
            parts = [np.memmap(path, np.uint8, "r") for path, size in sizes.items() if size]
        except OSError as e:
            raise UserError(f"{e.filename}: {e.strerror}: {how_to_prepare(data_dir)}") from None
        total, content = sum(sizes.values()), Shards(parts)
        found.update(json.dumps([split, *sizes.values()]).encode())
        for start in range(0, total, BLOCK) if total <= WHOLE else \
                [i * (total - BLOCK) // (BLOCKS - 1) for i in range(BLOCKS)]:
            found.update(content[start:start + BLOCK].tobytes())
    return found.hexdigest()[:32]
