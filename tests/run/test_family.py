"""finish_stages: one run leaves a finished model of each size that it grew from."""
import os

import pytest
import torch
from runs import TINY, events, losses, train

from base.errors import UserError
from run.checkpoint import checkpoint
from run.settings import from_dict
from run.trained import open_model

SIZES = [(1, 16, 32), (1, 16, 48), (1, 32, 48)]
SETTINGS = dict(finish_stages=9, dropout=0.0, eval_interval=4, keep_checkpoints=2)


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("family") / "out")
    train(data_dir=data, out_dir=out, **SETTINGS)
    return out


def branch(out, n):
    return os.path.join(out, f"stage_{n}")


def test_one_command_gives_a_family(out):
    """Small, middle and large, each what sample and evaluate open; the log says how to do it beside."""
    for n, sizes in enumerate(SIZES, 1):
        model, state = open_model(branch(out, n), "cpu")
        c, at = model.config, TINY["stages"][n - 1]["at"]
        assert (c.n_layer, c.n_embd, c.n_inner) == sizes and state["iter"] == at + 9
        assert model.generate(torch.tensor([[65]]), 5).shape == (1, 6)
        assert [e["lr"] for e in events(branch(out, n), "step")][-1] < 2e-4  # decayed
        assert events(branch(out, n), "eval")[-1]["iter"] == at + 9
    assert open_model(out, "cpu")[0].config.n_layer == 3
    assert sorted(os.path.basename(p) for p in checkpoint.numbered(out)) == [
        f"ckpt_00000{it}.pt" for it in (12, 24, 40, 56, 60)]
    text = open(os.path.join(out, "log.txt")).read()
    assert f"--init_from={out}/ckpt_0000012.pt --out_dir={out}/stage_1 --schedule=wsd --decay_iters=9" in text


def test_the_run_itself_is_as_it_was(out, data, tmp_path):
    train(data_dir=data, out_dir=tmp_path / "alone", **{**SETTINGS, "finish_stages": 0})
    assert losses(tmp_path / "alone") == losses(out)


def test_a_killed_family_is_completed(out):
    """By --resume of the run: what was finished stays, what was cut off goes on, the rest is made."""
    whole = [losses(branch(out, n)) for n in (1, 2, 3)]
    kept = os.stat(os.path.join(branch(out, 1), "metrics.jsonl"))
    for name in (*checkpoint.numbered(branch(out, 2))[:1], *(
            os.path.join(branch(out, 2), n) for n in ("ckpt.pt", "best.pt"))):
        os.remove(name)  # killed before the last checkpoint
    for name in os.listdir(branch(out, 3)):
        if name.endswith(".pt"):
            os.remove(os.path.join(branch(out, 3), name))  # killed before the first
    train("--resume", out_dir=out, **dict.fromkeys(TINY))
    assert os.stat(os.path.join(branch(out, 1), "metrics.jsonl")).st_mtime_ns == kept.st_mtime_ns
    assert [losses(branch(out, n)) for n in (1, 2, 3)] == whole


@pytest.mark.slow
def test_several_processes(out, data, tmp_path):
    train(data_dir=data, out_dir=str(tmp_path / "two"), torchrun=2, **SETTINGS)
    for n in (1, 2, 3):
        one, two = ({x[:3]: x[3] for x in losses(branch(o, n))} for o in (out, str(tmp_path / "two")))
        assert one.keys() == two.keys()
        assert all(abs(one[k] - two[k]) < 1e-4 for k in one)


@pytest.mark.parametrize("settings", [
    dict(schedule="cosine"), dict(decay_frac=0.5), dict(warmup_iters=13)])
def test_a_growth_away_from_the_peak_is_refused(settings):
    """The branch's learning rate starts at its peak, so the run's must be there."""
    from_dict({**TINY, "finish_stages": 9})
    with pytest.raises(UserError, match=r"finish_stages=9: stages\[.\] grows at \d+, when"):
        from_dict({**TINY, "finish_stages": 9, **settings})
