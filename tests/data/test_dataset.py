"""What a folder of .bin files says of itself, and what is refused: meta.json, meta.pkl, shards."""
import json
import os
import pickle
from collections import Counter

import numpy as np
import pytest

from base.errors import UserError
from data.dataset import GPT2, Shards, files_of, fingerprint, open_tokens, read_meta
from data.loader import Loader, vocab_needed
from data.tokenizer import get_tokenizer
from run.settings import TrainConfig

GOOD = dict(tokenizer=dict(name="bytes"), vocab_size=256, dtype="uint8", eot=0, sep=10)


def folder(path, meta=GOOD, tokens=5000, dtype=np.uint8, top=256):
    path.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        rng.integers(top, size=tokens).astype(dtype).tofile(path / f"{split}.bin")
    if meta is not None:
        (path / "meta.json").write_text(meta if isinstance(meta, str) else json.dumps(meta))
    return str(path)


def loader(data_dir, T=32, rows=8, vocab_size=None):
    meta = read_meta(data_dir)
    return Loader(TrainConfig(data_dir=data_dir, block_size=T, batch_tokens=rows * T,
                                        micro_batch=rows, eval_seqs=rows, seed=1),
                  meta, vocab_size or meta["vocab_size"])


def refused(call, *says):
    with pytest.raises(UserError) as e:
        call()
    assert "\n" not in str(e.value) and all(s in str(e.value) for s in says), str(e.value)


# --- meta.json

def without(key):
    return {k: v for k, v in GOOD.items() if k != key}


@pytest.mark.parametrize("meta, says", [
    (without("dtype"), "lacks dtype"), (without("tokenizer"), "lacks tokenizer"),
    (without("vocab_size"), "lacks vocab_size"), ("[]", "lacks tokenizer"), ("3", "lacks tokenizer"),
    ({**GOOD, "dtype": "object"}, 'dtype = "object"'), ({**GOOD, "dtype": "float32"}, "dtype"),
    ({**GOOD, "dtype": ["uint8"]}, "dtype"), ({**GOOD, "dtype": None}, "dtype = null"),
    ({**GOOD, "vocab_size": "256"}, 'vocab_size = "256"'), ({**GOOD, "vocab_size": 0}, "vocab_size"),
    ({**GOOD, "vocab_size": True}, "vocab_size"), ({**GOOD, "vocab_size": 256.5}, "vocab_size"),
    ({**GOOD, "tokenizer": None}, "tokenizer"), ({**GOOD, "tokenizer": ""}, "tokenizer"),
    ({**GOOD, "tokenizer": {}}, "tokenizer"), ({**GOOD, "tokenizer": 7}, "tokenizer"),
    ({**GOOD, "tokenizer": dict(name="char")}, "vocab"),
    ({**GOOD, "tokenizer": dict(name="char", vocab=[1])}, "vocab"),
    ({**GOOD, "eot": "0"}, "eot"), ({**GOOD, "eot": -1}, "eot"), ({**GOOD, "sep": 1.5}, "sep"),
    ({**GOOD, "eot": 256}, "below vocab_size = 256"), ({**GOOD, "sep": 50256}, "below vocab_size = 256"),
    ({**GOOD, "vocab_size": 300, "dtype": "uint8"}, "wide enough for vocab_size = 300"),
    ("{", "cannot be read"), ("", "cannot be read"), ("[" * 100_000, "cannot be read"),
])
def test_a_meta_that_is_nonsense_names_the_key(tmp_path, meta, says):
    path = folder(tmp_path / "d", meta)
    refused(lambda: read_meta(path), os.path.join(path, "meta.json"), says)


def test_a_good_meta(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder(tmp_path / "d")
    assert read_meta("~/d") == GOOD
    assert loader("~/d").batch(0)["idx"].shape == (8, 32)
    assert fingerprint("~/d", GOOD) == fingerprint(str(tmp_path / "d"), GOOD)
    (tmp_path / "d" / "meta.json").write_text("\ufeff" + json.dumps(GOOD), encoding="utf-8")
    assert read_meta("~/d") == GOOD


def test_bins_that_say_nothing_are_asked_about(tmp_path):
    path = folder(tmp_path / "d", None)
    refused(lambda: read_meta(path), path, json.dumps(GPT2))
    (tmp_path / "d" / "meta.json").write_text(json.dumps(GPT2))  # as the line says
    assert vocab_needed("gpt", read_meta(path)) == 50257
    refused(lambda: read_meta(str(tmp_path)), "holds no meta.json and no train.bin", "prepare.py")
    refused(lambda: read_meta(str(tmp_path / "gone")), "no such folder", "prepare.py")


# --- nanoGPT's meta.pkl

def nanogpt(path, content, raw=False):
    folder(path, None, dtype=np.uint16, top=3)
    (path / "meta.pkl").write_bytes(content if raw else pickle.dumps(content))
    return str(path)


@pytest.mark.parametrize("protocol", range(6))
def test_nanogpts_characters(tmp_path, protocol):
    itos = dict(enumerate("\nab"))
    path = nanogpt(tmp_path / "d", pickle.dumps(dict(
        vocab_size=3, itos=itos, stoi={c: i for i, c in itos.items()}), protocol), raw=True)
    meta = read_meta(path)
    assert (meta["vocab_size"], meta["dtype"], meta["eot"]) == (3, "uint16", None)
    assert get_tokenizer(json.loads(json.dumps(meta))).decode([2, 1, 0]) == "ba\n"
    assert loader(path).batch(0)["idx"].max() == 2


class Runs:
    def __init__(self, *what):
        self.what = what

    def __reduce__(self):
        return self.what


@pytest.mark.parametrize("content", [
    Runs(os.mkdir, ("made",)), dict(itos=Runs(os.mkdir, ("made",))), Runs(eval, ("open('made', 'w')",)),
    dict(itos=Counter("ab")), dict(itos=np.array(["a"])), [], {}, dict(itos={1: "a"}),
    dict(itos={0: "ab"}), dict(itos={0: 7}), dict(itos={}), dict(itos=None), b"\x80\x04", b"", b"text",
    b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f.", b"(" * 1000, b"cos\nsystem\n(S'touch made'\ntR.",
], ids=lambda c: type(c).__name__)
def test_a_pickle_runs_no_code(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    path = nanogpt(tmp_path / "d", content, raw=isinstance(content, bytes))
    refused(lambda: read_meta(path), "meta.pkl", "meta.json")
    assert os.listdir(tmp_path) == ["d"]


# --- shards with llm.c's header

def shard(path, ids, promised=None, magic=20240520, version=1):
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, version, len(ids) if promised is None else promised
    path.write_bytes(head.tobytes() + np.asarray(ids, dtype="<u2").tobytes())


def shards(path, sizes=(500, 1, 700, 33), name="fineweb_{}_{:06d}.bin"):
    path.mkdir()
    ids = np.arange(sum(sizes)) % 50257
    for i, part in enumerate(np.split(ids, np.cumsum(sizes)[:-1])):
        shard(path / name.format("train", i + 1), part)
    shard(path / name.format("val", 0), ids[:400])
    return str(path), ids


@pytest.mark.parametrize("name", ["fineweb_{}_{:06d}.bin", "{}_{}.bin", "Edu-{}-{:02d}.BIN".lower(),
                                  "interval_{}_{}.bin"])
def test_shards_are_one_stream(tmp_path, name):
    path, ids = shards(tmp_path / "d", name=name)
    assert read_meta(path) == GPT2
    flat = tmp_path / "flat"
    flat.mkdir()
    for split, content in (("train", ids), ("val", ids[:400])):
        content.astype(np.uint16).tofile(flat / f"{split}.bin")
    (flat / "meta.json").write_text(json.dumps(GPT2))
    one, many = loader(str(flat)), loader(path)
    for it in range(20):
        assert (one.batch(it)["idx"] == many.batch(it)["idx"]).all()
        assert (one.batch(it)["targets"] == many.batch(it)["targets"]).all()
    assert all((a["idx"] == b["idx"]).all() for a, b in zip(one.eval_batches(), many.eval_batches()))


def test_slices_of_shards():
    whole, parts = np.arange(30), np.split(np.arange(30), [3, 3, 10, 11, 25])
    got = Shards(parts)
    assert len(got) == 30
    for start in range(-31, 33):
        for stop in range(-31, 33, 3):
            assert got[start:stop].tolist() == whole[start:stop].tolist()
    assert got[2:28:5].tolist() == whole[2:28:5].tolist() and got[:].tolist() == whole.tolist()


@pytest.mark.parametrize("spoil, says", [
    (lambda p: os.truncate(p, p.stat().st_size - 10), ["promises 700 tokens", "holds 695"]),
    (lambda p: os.truncate(p, p.stat().st_size - 1), ["holds 699.5"]),
    (lambda p: os.truncate(p, 12), ["promises 700"]), (lambda p: os.truncate(p, 1024), ["holds 0"]),
    (lambda p: shard(p, range(700), 701), ["promises 701"]), (lambda p: shard(p, range(9), -1), ["-1"]),
    (lambda p: os.truncate(p, 0), ["is empty"]),
    (lambda p: shard(p, [60000] * 700), ["token id 60000", "has 50257"]),
])
def test_a_bad_shard_is_one_line(tmp_path, spoil, says):
    path, _ = shards(tmp_path / "d")
    spoil(tmp_path / "d" / "fineweb_train_000003.bin")
    refused(lambda: loader(path), "fineweb_train", *says)


def test_shards_of_another_format_are_not_taken_for_gpt2s(tmp_path):
    path, _ = shards(tmp_path / "d")
    shard(tmp_path / "d" / "fineweb_train_000001.bin", range(500), magic=20240801, version=7)
    refused(lambda: read_meta(path), "Llama 3", "meta.json")
    os.remove(tmp_path / "d" / "fineweb_val_000000.bin")
    refused(lambda: open_tokens(path, "val", GPT2, 50257, 1), "val.bin", "No such file")
    assert [os.path.basename(p) for p in files_of(path, "val")] == ["val.bin"]


def test_ids_beyond_16_bits(tmp_path):
    path = folder(tmp_path / "d", {**GOOD, "dtype": "uint32", "vocab_size": 200_000}, dtype=np.uint32,
                  top=200_000)
    assert loader(path).batch(0)["idx"].max() > 1 << 16
    refused(lambda: loader(path, vocab_size=70_000), "token id", "has 70000")


# --- the fingerprint

def grow(path, n):
    with open(path, "ab") as f:
        f.write(b"x" * n)


def edit(path, at):
    with open(path, "r+b") as f:
        f.seek(at, os.SEEK_SET if at >= 0 else os.SEEK_END)
        f.write(b"\xff\xff\xff")


@pytest.mark.parametrize("tokens", [5000, 20_000_000])
def test_a_fingerprint_tells_whether_the_data_is_the_same(tmp_path, tokens):
    path = folder(tmp_path / "d", tokens=tokens, top=100)
    train, val = (os.path.join(path, s + ".bin") for s in ("train", "val"))
    found = [fingerprint(path, GOOD)]
    os.utime(train)
    assert fingerprint(path, {**GOOD, "source": "elsewhere"}) == found[0]
    for change in (lambda: edit(train, 0), lambda: edit(train, -3), lambda: edit(val, -3),
                   lambda: edit(val, 0), lambda: grow(train, 1), lambda: os.truncate(val, tokens // 2),
                   lambda: np.random.default_rng(9).integers(
                       100, size=tokens).astype(np.uint8).tofile(train)):
        change()
        found.append(fingerprint(path, GOOD))
    found.append(fingerprint(path, {**GOOD, "tokenizer": "gpt2"}))
    assert len(set(found)) == len(found) and all(isinstance(f, str) for f in found)
    assert fingerprint(path, {**GOOD, "tokenizer": dict(name="gpt2")}) == found[-1]
    os.remove(val)
    refused(lambda: fingerprint(path, GOOD), "val.bin", "No such file")


def test_the_fingerprint_of_shards(tmp_path):
    path, _ = shards(tmp_path / "d")
    before = fingerprint(path, GPT2)
    edit(os.path.join(path, "fineweb_train_000003.bin"), 1200)
    assert fingerprint(path, GPT2) != before
