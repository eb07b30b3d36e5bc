"""The order of the training windows: each once an epoch, whoever draws them and wherever a run was cut."""
import json
import os
import time
from itertools import islice

import numpy as np
import pytest
from runs import TINY, events, losses, make_data, train, train_here

from data.dataset import read_meta
from data.loader import Loader, shuffled
from run.checkpoint import checkpoint
from run.settings import from_dict

KEYS = [3, 2**64 - 1, 17, 0, 5, 11]
# no stages: 93 windows of 32 tokens, 8 a batch
PLAIN = dict(stages=[], max_iters=26, block_size=32, batch_tokens=256, dropout=0.0)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 16, 17, 63, 64, 65, 1000, 4096, 4097])
def test_shuffled_is_a_permutation(n):
    orders = [[shuffled(i, n, keys) for i in range(n)] for keys in (KEYS, KEYS[::-1])]
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert n < 16 or orders[0] != orders[1] != list(range(n))


def test_every_place_is_as_likely():
    """Where the first and the last of ten come, and whether neighbours stay neighbours, over 4,000 orders."""
    keys = np.random.default_rng(0).integers(2**63, size=(4000, 6)).tolist()
    orders = np.array([[shuffled(i, 10, k) for i in range(10)] for k in keys])
    for i in (0, 9):
        assert np.abs(np.bincount(orders[:, i], minlength=10) - 400).max() < 5 * 19
    following = (np.diff(orders) == 1).mean()  # 9 of the 90 ordered pairs
    assert abs(following - 0.1) < 0.01


@pytest.mark.parametrize("n", [2**40 + 1, 10**15, 2**62])
def test_huge_numbers_of_windows_take_no_table_and_no_time(n):
    started = time.process_time()
    found = [shuffled(i, n, KEYS) for i in range(2000)]
    assert time.process_time() - started < 2 and len(set(found)) == 2000
    assert 0.3 < np.mean(found) / n < 0.7 and min(found) >= 0 and max(found) < n


@pytest.fixture(scope="module")
def numbered(tmp_path_factory):
    """A text whose tokens say where they are: 2,999 of them."""
    folder = tmp_path_factory.mktemp("numbered")
    for split in ("train", "val"):
        np.arange(2999, dtype=np.uint16).tofile(folder / f"{split}.bin")
    (folder / "meta.json").write_text(json.dumps(dict(
        tokenizer=dict(name="bytes"), vocab_size=3000, dtype="uint16", eot=0, sep=10)))
    return str(folder)


def starts(data, world, T=32, rows=8, **settings):
    """Where the windows begin, in order, iteration by iteration, of all ranks together."""
    config = from_dict(dict(data_dir=data, block_size=T, batch_tokens=T * rows,
                            micro_batch=rows // world, **settings))
    ranks = [Loader(config, read_meta(data), 3008, r, world) for r in range(world)]
    for it in range(60):
        for rank in ranks:
            yield from rank.batch(it)["idx"][:, 0].tolist()


@pytest.mark.parametrize("T, windows", [(32, 92), (100, 28), (1499, 1), (2000, 1)])
def test_each_window_once_an_epoch(T, windows, numbered):
    """Over any number of ranks; another order and other places each epoch; nothing past the end."""
    found = list(starts(numbered, 1, T))
    for world in (2, 4):
        assert list(starts(numbered, world, T)) == found
    epochs = [found[i:i + windows] for i in range(0, len(found) - windows + 1, windows)]
    assert len(epochs) >= 5
    for epoch in epochs:
        assert len(set(epoch)) == windows and {(s - epoch[0]) % T for s in epoch} == {0}
        assert 0 <= min(epoch) < max(2 * T, 999) and max(epoch) + T < 2999
        assert max(epoch) - min(epoch) == (windows - 1) * T  # all of it
    assert len({min(epoch) for epoch in epochs}) > 1
    orders = {tuple(s - min(epoch) for s in epoch) for epoch in epochs}
    assert len(orders) == (len(epochs) if windows > 1 else 1)


def test_no_token_is_left_out(numbered):
    """400 epochs of 6 windows of 400: once an epoch, but for the ends, which are seen now and then."""
    seen = np.zeros(2999, dtype=int)
    for s in islice(starts(numbered, 1, 400, rows=40), 400 * 6):
        seen[s:s + 401] += 1  # the last one is a target only
        seen[s] -= 1  # so the first one is counted where it is a target
    assert (seen[600:2400] == 400).all() and seen.max() == 400
    assert seen[60:-60].min() > 0 and abs(seen[300] - 200) < 60 and abs(seen[-300] - 200) < 60


def said(out):
    with open(os.path.join(out, "log.txt")) as f:
        return [line.strip() for line in f if line.startswith("epoch")]


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    return str(make_data(tmp_path_factory.mktemp("short"), tokens=3000))


def test_a_line_for_each_epoch_and_an_exact_resume_within_one(short, tmp_path):
    whole, cut, constant, random, bert = (
        str(tmp_path / n) for n in ("whole", "cut", "constant", "random", "bert"))
    train(data_dir=short, out_dir=whole, **PLAIN)
    ends = [f"epoch {n} of the data ends at iteration {-(-n * 92 // 8)}" for n in (1, 2)]
    assert said(whole) == ends == ["epoch 1 of the data ends at iteration 12",
                                   "epoch 2 of the data ends at iteration 23"]
    train(data_dir=short, out_dir=cut, **{**PLAIN, "max_iters": 17, "schedule": "constant"})
    train(data_dir=short, out_dir=constant, **PLAIN, schedule="constant")
    train_here("--resume", **{**dict.fromkeys(TINY), "max_iters": 26}, out_dir=cut)
    steps = [[x for x in losses(o) if x[0] == "step"] for o in (cut, constant)]
    assert steps[0] == steps[1] and len(steps[0]) == 26 and said(cut) == ends
    train(data_dir=short, out_dir=random, sampling="random", **PLAIN)
    train(data_dir=short, out_dir=bert, model="bert", **{**PLAIN, "max_iters": 13})
    assert said(random) == said(bert) == []
    assert [e["loss"] for e in events(random, "step")] != [e["loss"] for e in events(whole, "step")]


def test_runs_from_before_there_were_epochs_go_on_at_random(short, tmp_path):
    """Resumed by their folder, and branched off: their record knows no `sampling`."""
    whole, old, branch = (str(tmp_path / n) for n in ("whole", "old", "branch"))
    settings = dict(data_dir=short, sampling="random", schedule="constant")
    train(out_dir=whole, **settings, **PLAIN)
    train(out_dir=old, **settings, **{**PLAIN, "max_iters": 14})
    state = checkpoint.load(old)
    del state["config"]["sampling"]
    checkpoint.commit(old, state, 2)
    path = os.path.join(old, "config.json")
    with open(path) as f:
        config = json.load(f)
    del config["sampling"]
    with open(path, "w") as f:
        json.dump(config, f)
    nothing = dict.fromkeys(TINY)
    train_here(**{**nothing, "max_iters": 26}, init_from=os.path.join(old, "ckpt_0000014.pt"), out_dir=branch)
    train_here("--resume", **{**nothing, "max_iters": 26}, out_dir=old)
    want = [x for x in losses(whole) if x[0] == "step"]
    assert [x for x in losses(old) if x[0] == "step"] == want
    assert [x for x in losses(branch) if x[0] == "step"] == want[14:]
