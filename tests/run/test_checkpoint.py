"""Saving: how often, what a disk that fails costs, what a resume takes."""
import json
import os
import subprocess
import sys

import pytest
import torch
from runs import ENV, ROOT, events, train_here

from base import disk
from base.errors import UserError
from run import monitor
from run.checkpoint import checkpoint

PLAIN = dict(stages=[], max_iters=20, warmup_iters=1, eval_interval=5, schedule="constant")


@pytest.fixture
def counts(monkeypatch):
    """[iterations of whole evaluations], [iterations of saves]; saves after `broken` of them fail."""
    evals, saves, evaluate, write = [], [], monitor.evaluate, checkpoint.write_sealed
    saves_broken = set()

    def evaluated(run, batches=None, *stop):
        evals.extend([run.iter] * (batches is None))
        return evaluate(run, batches, *stop)

    def written(path, state):
        saves.append(state["iter"])
        if state["iter"] in saves_broken:
            raise OSError(28, "No space left on device")
        write(path, state)
    monkeypatch.setattr(monitor, "evaluate", evaluated)
    monkeypatch.setattr(checkpoint, "write_sealed", written)
    monkeypatch.setattr(disk, "PAUSES", (0, 0))
    return evals, saves, saves_broken


@pytest.mark.parametrize("at,extra", [(10, []), (12, [12])])
def test_a_growth_evaluates_and_saves_once(at, extra, counts, data, tmp_path):
    out = tmp_path / "out"
    train_here(data_dir=data, out_dir=out, **{**PLAIN, "stages": [dict(at=at, n_inner=48)]})
    want = sorted([0, 5, 10, 15, 20, *extra])
    assert counts[0] == counts[1] == want
    growth, = events(out, "grow")
    assert abs(growth["val_loss_after"] - growth["val_loss_before"]) < 1e-5
    if not extra:
        assert growth["val_loss_before"] == events(out, "eval")[2]["val_loss"]


def test_saved_at_an_interval_of_its_own(counts, data, tmp_path):
    out = str(tmp_path / "out")

    def numbered():
        return sorted(int(p[-10:-3]) for p in checkpoint.numbered(out))
    every = {**PLAIN, "data_dir": data, "out_dir": out, "keep_checkpoints": 99}
    train_here(save_interval=4, **{**every, "max_iters": 18})
    assert counts[0] == [0, 5, 10, 15, 18] and numbered() == [0, 4, 8, 12, 16, 18]
    train_here("--resume", save_interval=3, **{**every, "max_iters": 60})
    assert numbered() == [0, 4, 8, 12, 16, 18, *range(21, 60, 3), 60]


def test_a_write_that_fails_does_not_end_the_run(counts, data, tmp_path):
    out = tmp_path / "out"
    counts[2].add(10)
    train_here(data_dir=data, out_dir=out, **PLAIN)
    assert counts[1] == [0, 5, 10, 10, 10, 15, 20]  # twice again
    assert "WARNING" in (out / "log.txt").read_text()
    assert "No space left" in (out / "log.txt").read_text()
    counts[2].add(25)
    with pytest.raises(UserError, match="No space left"):
        train_here("--resume", data_dir=data, out_dir=out, max_iters=25, **{
            k: v for k, v in PLAIN.items() if k != "max_iters"})
    assert checkpoint.load(str(out))["iter"] == 20


@pytest.fixture
def scored(monkeypatch):
    """{iteration: the validation loss that is found there}."""
    found, evaluate = {}, monitor.evaluate
    monkeypatch.setattr(monitor, "evaluate", lambda run, *args, **kw: {
        **evaluate(run, *args, **kw), **({"val_loss": found[run.iter]} if run.iter in found else {})})
    return found


def best(out):
    state = checkpoint.load(str(out / "best.pt"))
    return state["iter"], state["best"]


def test_the_best_is_of_those_that_were_saved(counts, scored, data, tmp_path):
    """A best one that cannot be written is not the one to beat, after a resume neither."""
    out = tmp_path / "out"
    scored.update({0: 5.0, 5: 4.0, 10: 1.0, 15: 3.0, 20: 3.5, 25: 2.0})
    counts[2].add(10)
    train_here(data_dir=data, out_dir=out, **PLAIN)
    assert best(out) == (15, 3.0)
    train_here("--resume", data_dir=data, out_dir=out, **{**PLAIN, "max_iters": 25})
    assert best(out) == (25, 2.0)


def test_the_best_may_be_from_just_before_a_growth(scored, data, tmp_path):
    """Its evaluation counts as any other, wherever it falls."""
    scored.update({0: 5.0, 5: 4.0, 7: 1.0, 10: 3.0, 15: 3.0, 20: 3.0})
    train_here(data_dir=data, out_dir=tmp_path, **{**PLAIN, "ramp_iters": 2, "stages": [dict(at=7, n_layer=2)]})
    assert best(tmp_path) == (7, 1.0)


def test_the_loss_after_a_growth_that_changes_it(data, tmp_path):
    """Is that of the whole validation set, whatever the micro_batch."""
    found = []
    for rows in (1, 8):
        train_here(data_dir=data, out_dir=tmp_path / str(rows), **{
            **PLAIN, "micro_batch": rows, "dropout": 0.0, "operator": "direct", "ramp_iters": None, "max_iters": 4,
            "stages": [dict(at=3, n_embd=32, n_inner=64, n_head=2)]})
        found += [e["val_loss_after"] for e in events(tmp_path / str(rows), "grow")]
    assert found[0] == pytest.approx(found[1], abs=1e-5)


@pytest.mark.parametrize("before, after, found", [(8, 3, (25, 4.5)), (10**6, 10**7, (15, 3.0))])
def test_the_best_on_other_validation_data(before, after, found, scored, data, tmp_path):
    """Losses on other sequences cannot be compared: best.pt starts anew. Both may be all that there are."""
    out = tmp_path / "out"
    scored.update({0: 5.0, 5: 4.0, 10: 3.5, 15: 3.0, 20: 3.2})
    train_here(data_dir=data, out_dir=out, **{**PLAIN, "eval_seqs": before})
    assert best(out) == (15, 3.0)
    scored.update({20: 4.6, 25: 4.5})
    train_here("--resume", data_dir=data, out_dir=out, **{**PLAIN, "eval_seqs": after, "max_iters": 25})
    assert best(out) == found


def test_a_save_that_failed_after_the_best(tmp_path, monkeypatch):
    """best.pt is written first: it stays, whatever is said to be the best afterwards."""
    state = dict(model_config={}, config=dict(eval_seqs=8))
    checkpoint.commit(str(tmp_path), dict(state, iter=1, best=2.0), 2, best=True)
    with monkeypatch.context() as m:
        m.setattr(checkpoint, "LATEST", "none/ckpt.pt")
        m.setattr(disk, "PAUSES", ())
        with pytest.raises(OSError):
            checkpoint.commit(str(tmp_path), dict(state, iter=2, best=1.0), 2, best=True)
    checkpoint.commit(str(tmp_path), dict(state, iter=3, best=1.5), 2, best=True)
    assert best(tmp_path) == (2, 1.0)
    checkpoint.HALF_SAVED.clear()  # another process, whose steps may be others
    checkpoint.commit(str(tmp_path), dict(state, iter=4, best=1.7), 2, best=True)
    assert best(tmp_path) == (4, 1.7)


def test_the_best_between_numbered_checkpoints(counts, scored, data, tmp_path):
    """best.pt alone: it takes no place among the last K, and the numbered ones stay what was asked."""
    out = tmp_path / "out"
    scored.update({0: 5.0, 5: 3.0, 10: 2.0, 15: 4.0, 20: 6.0})
    train_here(data_dir=data, out_dir=out, save_interval=8, keep_checkpoints=9, **PLAIN)
    assert counts[1] == [0, 5, 8, 10, 16, 20] and best(out) == (10, 2.0)
    assert [int(p[-10:-3]) for p in checkpoint.numbered(str(out))] == [20, 16, 8, 0]


def test_a_kept_checkpoint_that_could_not_be_written(counts, data, tmp_path):
    """The run and the rest of the family are finished, and what is not is said."""
    out = tmp_path / "out"
    counts[2].add(6)
    small, middle = "1x16x32x1", "1x16x48x1"
    with pytest.raises(UserError, match=f"{small}: not finished: .* has no checkpoint of iteration 6 to start"):
        train_here(data_dir=data, out_dir=out, **{
            **PLAIN, "finish_stages": 3, "ramp_iters": 2, "schedule": "wsd", "decay_frac": 0.2,
            "stages": [dict(at=6, n_inner=48), dict(at=12, n_layer=2)]})
    assert checkpoint.load(str(out / middle))["iter"] == 15 and not (out / small).exists()
    assert f"{small} will not be finished" in (out / "log.txt").read_text()


def test_a_kill_between_the_names_of_a_checkpoint(monkeypatch, tmp_path):
    """What says that it is the best is never there without best.pt being it."""
    replace = os.replace
    for n in range(3):
        left = [n]

        def killed(a, b, left=left):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            replace(a, b)
        out = tmp_path / str(n)
        out.mkdir()
        checkpoint.commit(str(out), dict(iter=1, best=2.0, model_config={}), 2, best=True)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(os, "replace", killed)
            checkpoint.commit(str(out), dict(iter=2, best=1.0, model_config={}), 2, best=True)
        assert checkpoint.load(str(out / "best.pt"))["best"] <= checkpoint.load(str(out))["best"]


def test_file_systems_without_locks_and_folders_that_are_not_flushed(monkeypatch, tmp_path):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*args):
        raise OSError(95, "Operation not supported")
    monkeypatch.setattr(fcntl, "flock", refuse)
    checkpoint.make_out_dir(str(tmp_path)).close()
    fsync = os.fsync

    def files_only(fd):
        return refuse() if os.path.isdir(f"/proc/self/fd/{fd}") else fsync(fd)
    monkeypatch.setattr(os, "fsync", files_only)
    monkeypatch.setattr(os, "link", refuse)
    checkpoint.commit(str(tmp_path), dict(iter=3, model_config={}, w=torch.arange(100.)), 1, True)
    assert all(checkpoint.load(str(tmp_path / n))["iter"] == 3 for n in ("ckpt.pt", "best.pt"))


RESUME = """
import json, sys, torch
from run.checkpoint import checkpoint
from run.parallel import shard
from run.parallel.ranks import Ranks
def status(key):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key)) / 1024
ranks, peak = Ranks("cpu"), [0]
base = status("RssAnon")
state = checkpoint.load(sys.argv[1], values=False)
loaded = status("RssAnon") - base
got = {k: shard.broadcast(v, ranks, None) for k, v in state["model"].items()}
print(json.dumps([loaded, status("RssAnon") - base]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_resume_reads_what_it_uses(tmp_path):
    """The file is mapped: nothing of it is in memory before it is used, and then once."""
    model = {f"w{i}": torch.randn(1 << 20) for i in range(40)}
    checkpoint.commit(str(tmp_path), dict(iter=1, model_config={}, model=model), 1)
    done = subprocess.run([sys.executable, "-c", RESUME, str(tmp_path)], cwd=ROOT, env=ENV,
                          capture_output=True, text=True)
    loaded, used = json.loads(done.stdout)
    assert loaded < 20 and used < 180, (loaded, used)  # MiB, of 160


def test_a_branch_of_what_is_no_checkpoint(tmp_path):
    """Whole, but without what a branch must know: one line."""
    path = str(tmp_path / "ckpt_0000004.pt")
    disk.write_sealed(path, dict(model_config={}, config={}, stage=0))
    with pytest.raises(UserError, match="not a whole checkpoint of this project .KeyError: 'iter'"):
        checkpoint.settings_of(path)
