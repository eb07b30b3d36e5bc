"""
What is done to a run: when it is saved and when it must not be, what may not cost a run, what its
progress line says, and the texts that it writes.
"""
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import unicodedata
from types import SimpleNamespace

import pytest
import torch
from runs import ENV, ROOT, TINY, events, flags, losses, make_data, train, train_here

from base.errors import UserError, is_out_of_memory
from data.dataset import read_meta
from data.tokenizer import Char
from model import GPT, GPTConfig
from run.arguments import from_args
from run.checkpoint import checkpoint
from run.evaluation import newline, printable, sample_text
from run.monitor import Monitor
from run.resume import saved_state
from run.runlog import Pace, RunLog, open_trackers
from run.settings import from_dict
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
    checkpoint.commit(str(tmp_path), dict(iter=3, model_config={}, w=torch.arange(100.)), 1)
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
    monitor = Monitor.__new__(Monitor)
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        for number in before:
            signal.signal(number, monitor.on_signal)
            monitor.on_signal(number, None)
            assert monitor.stop == number
        assert signal.getsignal(signal.SIGTERM) == monitor.on_signal
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


def test_an_evaluation_reads_the_validation_set_once_at_most(data, tmp_path):
    out = tmp_path / "out"
    train_here(data_dir=data, out_dir=out, max_iters=1, warmup_iters=1, stages=[], eval_seqs=10**15)
    train_here(data_dir=data, out_dir=tmp_path / "all", max_iters=1, warmup_iters=1, stages=[],
               eval_seqs=19999 // TINY["block_size"])
    assert losses(out) == losses(tmp_path / "all")
    said = f"eval_seqs={10**15}: the validation set has 624 sequences of 32, which an evaluation reads once"
    assert said in (out / "log.txt").read_text() and "eval_seqs" not in (tmp_path / "all" / "log.txt").read_text()


@pytest.mark.parametrize("settings, words", [
    (dict(batch_tokens=2**52), f"batch_tokens={2**52}: a batch of so many tokens does not fit in memory"),
    (dict(batch_tokens=2**52 + 32, micro_batch=2**45), "does not divide among 1 processes")])
def test_a_batch_beyond_all_measure(settings, words, data, tmp_path):
    """Refused at once, rather than made until the machine has no memory left."""
    with pytest.raises(UserError, match=words):
        train_here(data_dir=data, out_dir=tmp_path / "out", **{"micro_batch": 1, **settings})


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
    (mine / "train.bin").write_bytes(whole)
    meta = json.loads((mine / "meta.json").read_text())
    (mine / "meta.json").write_text(json.dumps({**meta, "eot": 10}))  # documents end elsewhere
    with pytest.raises(UserError, match="its meta.json has eot=10, but the checkpoint was trained with"):
        saved_state(from_args(["--resume", str(out)]), {**read_meta(str(mine)), "fingerprint": ""})


# -----------------------------------------------------------------------------
# the progress line

@pytest.mark.parametrize("costs", [(1, 4, 10), (1, 1.2, 30), (5, 5, 5)])
def test_the_time_left_counts_each_stage(costs):
    """At a fifth of the time, on a machine that takes as long as there are FLOPs, and compiles first."""
    c = from_dict(dict(max_iters=1000, ramp_iters=10, stages=[
        dict(at=300, n_inner=800), dict(at=700, n_inner=900)]))
    pace, spent, speed = Pace(c, costs), 0.0, 1000.0
    whole = c.batch_tokens * (300 * costs[0] + 400 * costs[1] + 300 * costs[2]) / speed
    for it in range(10, 1001, 10):
        stage = (it > 300) + (it > 700)
        flops = 10 * c.batch_tokens * costs[stage]
        seconds = flops / speed + 0.01 * whole * (it in (10, 310, 710))
        spent += flops / speed
        left = pace.seconds_left(it, stage, flops, seconds)
        if spent >= 0.2 * whole:
            assert abs(left - (whole - spent)) <= 0.15 * (whole - spent) + 1e-6
    assert left == 0


def test_the_progress_line_fits(tmp_path):
    """A hundred columns for a long run of many stages, in a ramp; and all of it is told."""
    log, monitor = RunLog(str(tmp_path), 1_000_000, 999_998), Monitor.__new__(Monitor)
    monitor.run = SimpleNamespace(stage=9, config=SimpleNamespace(stages=[{}] * 11), model=SimpleNamespace(
        masks=SimpleNamespace(c=torch.tensor(0.354))))
    text = monitor.progress(10.98765, 12_345_678.9, 100 * 3600 + 5)
    assert text == "stage 10/12, mask 0.35, loss 10.988, 12,345,679 tok/s, 100:00:05 left"
    log.progress(text)
    line = log.bar.format_meter(**{**log.bar.format_dict, "ncols": 100})
    log.close()
    assert len(line) <= 100 and f"999999/1000000, {text}" in line
    monitor.run.model.masks.c, monitor.run.config.stages = None, []
    assert monitor.progress(2, 1000, 59.6) == "loss 2.000, 1,000 tok/s, 01:00 left"


def test_a_disk_that_takes_no_more_lines_ends_no_run(tmp_path, capsys):
    """The size that a checkpoint records is that of all lines, written or not."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    for name in ("metrics.jsonl", "log.txt"):
        (tmp_path / name).symlink_to("/dev/full")
    log = RunLog(str(tmp_path), 10)
    log.event("step", iter=1, loss=2.5)
    log.say("a line")
    assert log.metrics_bytes() == len('{"event": "step", "iter": 1, "loss": 2.5}\n')
    log.close()
    assert capsys.readouterr().out.count("the disk is full: its last lines are lost") == 2


def test_lines_wait_for_room(tmp_path):
    resource = pytest.importorskip("resource")
    limits, log = resource.getrlimit(resource.RLIMIT_FSIZE), RunLog(str(tmp_path), 10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        for i in range(20_000):  # 1.2 MB
            log.event("step", iter=i, loss=2.5, tokens=1000, train_s=1.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    size = log.metrics_bytes()
    log.event("end")
    log.close()
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 20_001 and len("".join(lines[:-1])) == size


# -----------------------------------------------------------------------------
# texts that the model writes

def test_samples_go_to_the_log_and_change_nothing(data, tmp_path):
    short = dict(data_dir=data, max_iters=20, stages=[], warmup_iters=1, eval_interval=5)
    for name, every in (("with", 2), ("without", 0)):
        train_here(out_dir=tmp_path / name, sample_interval=every, **short)
    text = (tmp_path / "with" / "log.txt").read_text()
    assert text.count("the model writes") == 3  # at 0, 10 and 20
    assert not [c for c in text if unicodedata.category(c) == "Cc" and c not in "\n\t"]
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert "writes" not in (tmp_path / "without" / "log.txt").read_text()


def test_an_alphabet_without_newline():
    model = GPT(GPTConfig(vocab_size=64, block_size=16, n_layer=1, n_embd=8, n_inner=8, n_head=1, head_dim=8)).train()
    run = SimpleNamespace(config=model.config, model=model, device=torch.device("cpu"), autocast=contextlib.nullcontext)
    model.config.seed = 1
    assert len(sample_text(run, Char("ACGT"))) == 16 and model.training
    assert newline(Char("ACGT")) == [0] and newline(Char("A\n")) == [1]


def test_one_process_shards_nothing_and_says_so(data, tmp_path):
    train_here(data_dir=data, out_dir=tmp_path, shard="fsdp", max_iters=1, stages=[], warmup_iters=0)
    assert "shard='fsdp': one process keeps the whole model" in (tmp_path / "log.txt").read_text()


def test_no_control_characters():
    assert printable("a\tb\n\x1b[2J\r\x00\x7f\x9b\udc80é\u200d") == "a\tb\n\ufffd[2J" + "\ufffd" * 5 + "é\u200d"


@pytest.mark.parametrize("settings, words", [
    (dict(model="bert"), "sample_interval=1: a bert model fills gaps"),
    (dict(shard="fsdp"), "sample_interval=1: shard='fsdp' leaves no process the whole model")])
def test_who_cannot_write(settings, words):
    with pytest.raises(UserError, match=words):
        from_dict({**TINY, "sample_interval": 1, **settings})


def test_samples_go_to_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    config = from_dict({**TINY, "tensorboard": True, "out_dir": str(tmp_path)})
    log = RunLog(str(tmp_path), 10, trackers=open_trackers(config))
    log.sample("first\nsecond", 3)
    log.close()
    read, deadline = accumulator.EventAccumulator(str(tmp_path)), time.time() + 30
    while not read.Reload().Tags()["tensors"] and time.time() < deadline:
        time.sleep(0.1)
    [found] = read.Tensors("sample/text_summary")
    assert found.step == 3 and found.tensor_proto.string_val[0] == b"    first\n    second"
    assert "first" not in (tmp_path / "log.txt").read_text()
