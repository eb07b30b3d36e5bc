"""Tiny growing runs for the tests: data, settings, and train.py in a process of its own."""
import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

TINY = dict(
    block_size=32, n_layer=1, n_head=1, n_embd=16, n_inner=32, head_dim=16, dropout=0.1,
    stages=[dict(at=12, n_inner=48), dict(at=24, n_embd=32, n_head=2), dict(at=40, n_layer=3)],
    ramp_iters=8, max_iters=60, batch_tokens=256, micro_batch=4, warmup_iters=5, eval_interval=7,
    eval_seqs=8, log_interval=1, device="cpu", dtype="float32", compile="none")


def make_data(folder, tokens=20000, vocab=96):
    """A byte-level dataset with documents and sentences, learnable and made from a seed."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        words = rng.integers(32, vocab, size=(200, 5))
        stream = words[rng.integers(200, size=tokens // 5)]
        stream[::3, 4], stream[::40, 4] = 10, 0
        stream.reshape(-1).astype(np.uint8).tofile(folder / f"{split}.bin")
    (folder / "meta.json").write_text(json.dumps(dict(
        tokenizer=dict(name="bytes", bert=False), vocab_size=256, dtype="uint8", eot=0, sep=10)))
    return folder


def flags(**settings):
    """TINY's settings and these; None leaves one out; without stages there is no ramp_iters either."""
    given = {**TINY, **settings}
    return [f"--{k}={v}" for k, v in given.items() if v is not None and not (k == "ramp_iters" and given["stages"] in ([], "[]"))]


def train(*args, torchrun=0, check=True, env=None, cwd=ROOT, **settings):
    """
    Run train.py to its end; returns the finished process, output captured. It is this process, but
    for several ranks or another environment.
    """
    if not torchrun and env is None:
        return started_here(args, check, settings)
    command = [sys.executable, str(ROOT / "train.py")] if not torchrun else [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc_per_node={torchrun}", "train.py"]
    done = subprocess.run([*command, *args, *flags(**settings)], cwd=cwd, env=env or ENV,
                          capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def started_here(args, check, settings):
    from base.errors import exits_cleanly
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            exits_cleanly(train_here)(*args, **settings)
        except SystemExit as e:
            code = e.code or 0
    assert not check or code == 0, err.getvalue()[-3000:]
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


def train_here(*args, **settings):
    """train.py in this process, to its end; its lock on out_dir goes with it."""
    from train import main
    argv, sys.argv = sys.argv, ["train.py", *args, *flags(**settings)]
    try:
        main.__wrapped__()
    finally:
        sys.argv = argv



class Driver:
    """A script of tests/ that forks for every job it is sent: JSON lines, there and back."""

    def __init__(self, script, **env):
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / script)], cwd=ROOT, env={**ENV, **env}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def send(self, **job):
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def cut_off(out_dir, iteration, copy=None):
    """A run, or a copy of it, as if it had been killed after the checkpoint of `iteration`, which it kept."""
    out_dir = shutil.copytree(out_dir, copy) if copy else out_dir
    for name in os.listdir(out_dir):
        if name.endswith(".pt") and not name <= f"ckpt_{iteration:07d}.pt":
            os.remove(os.path.join(out_dir, name))


def events(out_dir, *kinds):
    with open(os.path.join(out_dir, "metrics.jsonl")) as f:
        return [e for e in map(json.loads, f) if not kinds or e["event"] in kinds]


def losses(out_dir):
    """Every loss the run logged, training and validation, in order."""
    return [(e["event"], e["iter"], k, e[k]) for e in events(out_dir) for k in
            ("loss", "val_loss", "val_loss_before") if k in e]
