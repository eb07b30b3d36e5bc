"""Whole runs of train.py, as a user starts them."""
import json
import os

import pytest
import torch
from runs import TINY, events, losses, train


@pytest.fixture(scope="module")
def one(data, tmp_path_factory):
    """A growing run on one process, with gradient accumulation, without dropout."""
    out = str(tmp_path_factory.mktemp("one") / "out")
    return out, train(data_dir=data, out_dir=out, dropout=0.0)


def test_events(one):
    out, _ = one
    ev = events(out)
    steps = [e for e in ev if e["event"] == "step"]
    assert [e["iter"] for e in steps] == list(range(1, 61))
    for key in ("tokens", "flops", "train_s", "loss", "lr", "mask", "n_layer", "n_head", "n_embd",
                "n_inner", "tok_s", "grad_norm"):
        assert key in steps[0], key
    assert steps[-1]["tokens"] == 60 * 256
    assert all(a["train_s"] <= b["train_s"] for a, b in zip(ev, ev[1:]))
    grows = [e for e in ev if e["event"] == "grow"]
    assert [(e["iter"], e["n_layer"], e["n_embd"], e["n_head"], e["n_inner"]) for e in grows] == \
        [(12, 1, 16, 1, 48), (24, 1, 32, 2, 48), (40, 3, 32, 2, 48)]
    assert all(abs(e["val_loss_after"] - e["val_loss_before"]) < 1e-5 for e in grows)
    masks = {e["iter"]: e["mask"] for e in steps}
    assert [masks[i] for i in (12, 13, 16, 19, 20, 21)] == [1, 0.125, 0.5, 0.875, 1, 1]
    assert [e["iter"] for e in ev if e["event"] == "ramp_end"] == [19, 31, 47]


def test_it_learns(one):
    val = [e["val_loss"] for e in events(one[0], "eval")]
    assert val[-1] < val[0] - 0.5


def test_out_dir_contents(one):
    out, done = one
    assert {"ckpt.pt", "best.pt", "config.json", "log.txt", "metrics.jsonl"} <= set(os.listdir(out))
    with open(os.path.join(out, "config.json")) as f:
        assert json.load(f)["n_embd"] == 16
    assert "grown to" in done.stdout + done.stderr


def test_evaluation_does_not_disturb_training(data, one, tmp_path):
    out = str(tmp_path / "out")
    train(data_dir=data, out_dir=out, dropout=0.0, eval_interval=30)
    pick = [[x for x in losses(o) if x[0] == "step"] for o in (one[0], out)]
    assert pick[0] == pick[1]


def test_stages_empty_is_the_baseline(data, tmp_path):
    out = str(tmp_path / "out")
    train(data_dir=data, out_dir=out, stages=[], n_embd=32, n_head=2, n_layer=3, n_inner=48,
          max_iters=10)
    assert not events(out, "grow") and events(out)[-1]["n_embd"] == 32


def test_checkpoint_opens_everywhere(one):
    from run.checkpoint.checkpoint import load_model
    model, state = load_model(one[0])
    assert model.config.n_layer == 3 and state["iter"] == 60
    assert not any("_orig_mod" in k or "module." in k for k in model.state_dict())


def test_compiled_run_and_its_graphs(data, one, tmp_path, graphs_only):
    """
    Block by block: no recompile along a ramp, one graph a state of the model.
    All but the code for the machine, which takes longest and is for test_loss.py and test_speed.py.
    """
    out = str(tmp_path / "out")
    train(data_dir=data, out_dir=out, dropout=0.0, compile="block")
    got = [(e["iter"], e["graphs"]) for e in events(out, "compile")]
    # a block's and the loss's at the start; growth masked, with the loss's anew, then clean; the same;
    # depth: the gate's graph, and none when it goes
    assert got == [(1, 2), (13, 2), (20, 1), (25, 2), (32, 1), (41, 1)]
    assert max(abs(x[3] - y[3]) for x, y in zip(losses(out), losses(one[0]))) < 1e-3


def test_learning_rate_schedules():
    from run.optim import lr_scale
    from run.settings import from_dict
    c = from_dict(dict(max_iters=100, warmup_iters=10, decay_frac=0.2))
    lr = [lr_scale(c, i) for i in range(100)]
    assert lr[0] == 0.1 and lr[9:81] == [1.0] * 72 and lr[90] == 0.5 and lr[99] == pytest.approx(.05)
    c = from_dict(dict(max_iters=100, warmup_iters=10, schedule="cosine", min_lr_frac=0.1))
    assert lr_scale(c, 10) == 1 and lr_scale(c, 100) == pytest.approx(0.1)
    c = from_dict(dict(max_iters=100, warmup_iters=0, schedule="constant"))
    assert [lr_scale(c, i) for i in (0, 50, 99)] == [1.0] * 3


def test_bad_steps_are_skipped(data, tmp_path, monkeypatch):
    """A NaN gradient changes neither weights nor moments."""
    from run.settings import from_dict
    from train import Run
    for optimizer in ("adamw", "muon"):
        config = from_dict({**TINY, "data_dir": data, "out_dir": str(tmp_path / optimizer),
                            "optimizer": optimizer})
        run = Run(config)
        run.step(run.loader.batch(0))
        before = {n: p.detach().clone() for n, p in run.model.named_parameters()}
        forward = run.model.forward
        monkeypatch.setattr(run.model, "forward",
                            lambda **kw: (None, forward(**kw)[1] * torch.nan))
        run.step(run.loader.batch(1))
        assert int(run.bad) == 1 and int(run.bad_run) == 1
        assert all(torch.equal(before[n], p) for n, p in run.model.named_parameters())


def test_a_stage_may_have_its_own_micro_batch(data, one, tmp_path):
    """Which changes nothing but the rounding."""
    stages = [dict(stage, micro_batch=m) for stage, m in zip(TINY["stages"], (8, 2, 1))]
    out = str(tmp_path / "out")
    train(data_dir=data, out_dir=out, dropout=0.0, stages=stages)
    pick = [[x for x in losses(o) if x[0] == "step"] for o in (one[0], out)]
    assert max(abs(a[3] - b[3]) for a, b in zip(*pick)) < 1e-5
    done = train(data_dir=data, out_dir=str(tmp_path / "no"), check=False,
                 stages=[dict(at=12, n_inner=48, micro_batch=3)])
    assert done.returncode == 2 and "micro_batch=3: micro_batch=2 would" in done.stderr
