"""What is done to a run: when it is saved and when it must not be, and what may not cost a run."""
import os
import signal
import subprocess
import sys

import pytest
import torch
from runs import ENV, ROOT, TINY, events, flags, make_data, train

from run import checkpoint
from run.errors import UserError, is_out_of_memory
from run.settings import from_dict
from run.watch import Watch
from train import Run


@pytest.mark.parametrize("intervals", [dict(eval_interval=5, log_interval=1), dict(log_interval=100)])
def test_what_is_no_number_is_never_a_checkpoint(intervals, data, tmp_path):
    """A diverging run ends with an error, and the last good checkpoint stays."""
    out = str(tmp_path / "out")
    done = train(data_dir=data, out_dir=out, learning_rate=1e30, stages=[], check=False,
                 **{"eval_interval": 7, **intervals})
    assert done.returncode == 2 and "infinite or NaN" in done.stderr.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith(os.path.join(out, "ckpt.pt"))
    state = checkpoint.load(out)
    assert all(torch.isfinite(v).all() for v in state["model"].values())


def test_the_leftovers_of_a_run_are_not_overwritten(data, tmp_path):
    for name in ("best.pt", None):
        out = tmp_path / str(name)
        train(data_dir=data, out_dir=out, max_iters=8, stages=[], warmup_iters=1)
        for file in os.listdir(out):
            if file.endswith(".pt") and file != name:
                os.remove(out / file)
        before = (out / "metrics.jsonl").read_text()
        done = train(data_dir=data, out_dir=out, max_iters=8, stages=[], warmup_iters=1, check=False)
        assert done.returncode == 2 and "holds a run" in done.stderr
        assert (out / "metrics.jsonl").read_text() == before


def test_a_flipped_bit_anywhere_is_noticed(data, tmp_path):
    """Also in the zip's directory, whose flags no record's checksum covers."""
    path = str(tmp_path / "ckpt.pt")
    checkpoint.save(str(tmp_path), dict(iter=3, model_config={}, w=torch.arange(100.)), 1)
    raw = open(os.path.join(tmp_path, "ckpt.pt"), "rb").read()
    at = raw.index(b"PK\x01\x02") + 38  # an entry's external attributes
    for i in (at, at + 2, 0, len(raw) // 2, len(raw) - 60):
        bad = bytearray(raw)
        bad[i] ^= 16
        open(path, "wb").write(bad)
        with pytest.raises(UserError, match="damaged"):
            checkpoint.load(path)


def test_old_checkpoints_open(tmp_path):
    """Without a seal, as they were written before."""
    torch.save(dict(iter=3, model_config={}, w=torch.arange(3.)), tmp_path / "ckpt_0000003.pt")
    assert checkpoint.load(str(tmp_path))["w"].tolist() == [0, 1, 2]


def test_only_a_second_ctrl_c_kills():
    watch = Watch.__new__(Watch)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, watch.on_signal)
            watch.on_signal(number, None)
            assert watch.stop == number
        assert signal.getsignal(signal.SIGTERM) == watch.on_signal
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_closed_pipe_costs_no_run(data, tmp_path):
    out = str(tmp_path / "out")
    command = subprocess.list2cmdline([sys.executable, "train.py", *flags(
        data_dir=data, out_dir=out, max_iters=20, stages=[])])
    done = subprocess.run(f"{command} 2>&1 | head -1", shell=True, cwd=ROOT, env=ENV,
                          capture_output=True, text=True, timeout=120)
    assert "Broken" not in done.stderr
    assert events(out)[-1]["iter"] == 20


def test_memory_that_runs_out_at_the_start(data, tmp_path):
    done = train(data_dir=data, out_dir=tmp_path / "out", n_inner=10**13, stages=[], check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "n_inner=10000000000000" in done.stderr and "GiB" in done.stderr


def test_what_running_out_of_memory_is():
    assert is_out_of_memory(MemoryError()) and is_out_of_memory(torch.OutOfMemoryError("x"))
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))


def test_every_rank_may_have_no_validation_rows(data, tmp_path):
    """Rows of the validation set are shared out; a rank without one still agrees."""
    config = from_dict({**TINY, "data_dir": data, "out_dir": str(tmp_path / "a"), "eval_seqs": 1})
    run = Run(config)
    run.loader.rank, run.loader.world = 1, 2
    from run.evaluation import evaluate
    assert list(evaluate(run)) == ["val_loss"]
    run.close()


def test_other_data_in_the_same_place(data, tmp_path):
    """--resume on half of the text, or on another of the same size, is refused."""
    mine, out = make_data(tmp_path / "data"), tmp_path / "out"
    train(data_dir=mine, out_dir=out, max_iters=8, stages=[], warmup_iters=1)
    whole = (mine / "train.bin").read_bytes()
    for other in (whole[:len(whole) // 2], whole[:5000] + bytes([65]) + whole[5001:]):
        (mine / "train.bin").write_bytes(other)
        done = train("--resume", data_dir=mine, out_dir=out, max_iters=9, stages=[], warmup_iters=1,
                     check=False)
        assert done.returncode == 2 and "other data than the checkpoint" in done.stderr
