"""A family's folder: every tool does all its members, or the one that is named."""
import json
import os
import shutil
import sys

import pytest
from runs import losses, train

import sample
from base.errors import UserError
from run.checkpoint import checkpoint
from run.trained import open_model
from tools import evaluate, export, plot


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    """Two members: 1x16, finished at 16, and 2x16, the trunk, at 24."""
    out = str(tmp_path_factory.mktemp("members") / "out")
    train(data_dir=data, out_dir=out, finish_stages=6, max_iters=24, decay_iters=6, ramp_iters=3, eval_interval=4,
          stages=[dict(at=10, n_layer=2)])
    return out


def run(main, monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["it.py", *map(str, args)])
    return main()


def test_by_name(out, monkeypatch, capsys):
    """Whether or not there is a folder of that name: the largest is the trunk; older names hold, too."""
    layers = {name: open_model(os.path.join(out, name))[0].config.n_layer for name in
              ("", "1x16", "2x16", "stage_1")}
    assert layers == {"": 2, "1x16": 1, "2x16": 2, "stage_1": 1}
    with pytest.raises(UserError, match="no such checkpoint or folder"):
        open_model(os.path.join(out, "3x16"))
    run(sample.main, monkeypatch, os.path.join(out, "2x16"), "--max_new_tokens=3")
    assert "-----" in capsys.readouterr().out


def test_evaluate_all(out, data, tmp_path, monkeypatch, capsys):
    text = tmp_path / "text.txt"
    text.write_text("some words to be read, " * 20)
    run(evaluate.main, monkeypatch, out, f"--tasks=ppl:{text}", "--device=cpu")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["model", "task"] and {s.split()[0] for s in lines[2:-1]} == {"1x16", "2x16"}
    found = json.load(open(os.path.join(out, "evaluate.json")))["members"]
    assert [(m["name"], m["iter"]) for m in found] == [("1x16", 16), ("2x16", 24)]
    run(evaluate.main, monkeypatch, os.path.join(out, "2x16"), f"--tasks=ppl:{text}", "--device=cpu",
        f"--save={tmp_path}/one.json")
    assert json.load(open(tmp_path / "one.json"))["results"] == found[1]["results"]


def test_export_all(out, tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    run(export.main, monkeypatch, out, tmp_path / "hf")
    assert sorted(os.listdir(tmp_path / "hf")) == ["1x16", "2x16"]
    assert [open_model(str(tmp_path / "hf" / name))[0].config.n_layer for name in ("1x16", "2x16")] == [1, 2]


def test_one_picture(out, data, tmp_path, monkeypatch, capsys):
    """All members, what is given beside them in grey; also while the family is being trained."""
    scratch = str(tmp_path / "scratch")
    train(data_dir=data, out_dir=scratch, stages="[]", max_iters=16, eval_interval=4)
    drawn = {}
    monkeypatch.setattr(plot, "write", lambda fig, save: drawn.update({save: fig}))
    run(plot.main, monkeypatch, out, scratch)
    said = capsys.readouterr().out
    assert f"wrote {out}/loss.png" in said and "one by one" in said
    ax, = drawn[f"{out}/loss.png"].axes
    small, large = (losses(folder)[-1][-1] for folder in (os.path.join(out, "1x16"), out))
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["one by one, from scratch", f"1x16: {small:.3f}", f"2x16: {large:.3f}"]
    assert {text.get_text().strip() for text in ax.texts} == {"scratch", "grown to 2x16"}
    found = json.load(open(os.path.join(out, "family.json")))
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert dots[-1].get_xdata()[0] * 1e6 == pytest.approx(found["flops"], rel=1e-6)  # MFLOP
    os.rename(os.path.join(out, "1x16"), os.path.join(out, "away"))
    run(plot.main, monkeypatch, out)  # the branch has not begun
    os.rename(os.path.join(out, "away"), os.path.join(out, "1x16"))
    assert "not finished" in capsys.readouterr().out


def test_a_picture_of_what_diverged(out, tmp_path, monkeypatch, capsys):
    """Losses that are no number are left out; without any loss it says so."""
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(os.path.join(out, "config.json"), other)
    lines = open(os.path.join(out, "metrics.jsonl")).read().splitlines()
    for kept in (2, 0):
        evaluations, changed = 0, []
        for event in map(json.loads, lines):
            event.update({k: "nan" for k in event if k.startswith("val_loss") and (evaluations > kept or not kept)})
            evaluations += event["event"] == "eval"
            changed.append(json.dumps(event) + "\n")
        (other / "metrics.jsonl").write_text("".join(changed))
        if kept:
            run(plot.main, monkeypatch, other)
            continue
        with pytest.raises(SystemExit):
            run(plot.main, monkeypatch, out, other)
        assert f"{other}: has no evaluation with a finite loss" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            run(plot.main, monkeypatch, other)
        assert "no evaluation with a finite loss" in capsys.readouterr().err


def test_what_is_not_finished_is_left_out(out, tmp_path, monkeypatch):
    half = str(tmp_path / "half")
    os.makedirs(os.path.join(half, "1x16"))
    for name in ("config.json", "metrics.jsonl"):
        os.link(os.path.join(out, name), os.path.join(half, name))
    os.link(checkpoint.path_at(os.path.join(out, "1x16"), 16), checkpoint.path_at(os.path.join(half, "1x16"), 16))
    pytest.importorskip("safetensors")
    run(export.main, monkeypatch, half, tmp_path / "hf")
    assert os.listdir(tmp_path / "hf") == ["1x16"]
