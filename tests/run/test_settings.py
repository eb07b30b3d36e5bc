"""What a user types, and what becomes of it: overrides, configs, --help, --resume FOLDER."""
import contextlib
import json

import pytest
import torch
from runs import TINY, events, losses, make_data, train, train_here

from base import disk
from base.disk import write_sealed
from base.errors import UserError
from data.dataset import read_meta
from run.arguments import from_args
from run.checkpoint import checkpoint
from run.monitor import Monitor
from run.resume import saved_state
from run.settings import from_dict
from train import Run
from train import train as go_on


@pytest.mark.parametrize("settings, words", [
    (dict(n_layer=10**300), "n_layer=(too long): must be at least 0"),
    (dict(learning_rate=float("inf")), "and finite"),
    (dict(learning_rate=float("nan")), "learning_rate=nan"),
    (dict(device="meta"), "device=meta: must be auto, cpu"),
    (dict(out_dir="a\0b"), "must be Unicode text without NUL"),
    (dict(out_dir="a\udcff"), "must be Unicode text without NUL"),
    (dict(stages=[{1: 2}]), "stages[0]: 1: no such setting"),
    (dict(stages=[dict(at=3, n_inner=10**400)]), "n_inner=(too long)"),
    (dict(n_layer=0, stages=[dict(at=3, n_inner=64, operator="aki")]), "there is no layer"),
])
def test_values_nobody_meant(settings, words):
    with pytest.raises(UserError) as e:
        from_dict({**TINY, "stages": [], **settings})
    assert words in str(e.value) and len(str(e.value)) < 300


@pytest.mark.parametrize("text, words", [
    ("import sys; sys.exit()", "SystemExit"), ("raise KeyError('x')", "KeyError"),
    ("learning_rate = lambda it: 1e-3", "learning_rate=<function"), ("n_layer = int", "n_layer="),
    ("def (", "SyntaxError"), ("n_embd = '64'", "n_embd='64': must be a whole number")])
def test_a_config_that_is_none(text, words, tmp_path):
    (tmp_path / "c.py").write_text(text)
    with pytest.raises(UserError) as e:
        from_args([str(tmp_path / "c.py")])
    assert words in str(e.value)


def test_names_that_others_use():
    for key, ours in dict(n_kv_head="kv_group", batch_size="micro_batch", lr="learning_rate").items():
        with pytest.raises(UserError, match=f"{key}: no such setting, did you mean {ours}"):
            from_args([f"--{key}=4"])


def test_resume_and_its_folder_are_two_words():
    with pytest.raises(UserError, match="--resume=out/x: is written --resume out/x"):
        from_args(["--resume=out/x"])


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/someone")
    c = from_dict({**TINY, "out_dir": "~/out", "data_dir": "~/data"})
    assert (c.out_dir, c.data_dir) == ("/home/someone/out", "/home/someone/data")


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit) as e:
        from_args(["--help"])
    said = capsys.readouterr().out
    assert not e.value.code and all(f"\n{k}: " in said for k in TINY)
    with pytest.raises(SystemExit):
        from_args(["--help=ramp_iters"])
    assert capsys.readouterr().out.startswith("ramp_iters: int")
    with pytest.raises(UserError, match="did you mean ramp_iters"):
        from_args(["--help=rampiters"])


def test_resume_from_the_folder_alone(tmp_path, monkeypatch):
    """From another working directory, with what the run recorded; only what is given may differ."""
    data, out, whole = make_data(tmp_path / "data"), tmp_path / "out", tmp_path / "whole"
    monkeypatch.chdir(tmp_path)
    constant = dict(stages=[], warmup_iters=3, schedule="constant")
    train(data_dir="data", out_dir=out, max_iters=20, **constant)
    train(data_dir=data, out_dir=whole, max_iters=28, **constant)
    monkeypatch.chdir("/")
    done = train("--resume", str(out), "--max_iters=28", **dict.fromkeys(TINY))
    assert "resuming with max_iters=28, which was 20" in done.stdout
    assert [x for x in losses(out) if x[1] > 21][0][1] == 22
    start = events(out, "start")[0]
    assert start["dtype"] == "float32" and torch.backends.cpu.get_cpu_capability() in start["machine"]
    with open(out / "config.json") as f:
        assert json.load(f)["resolved"]["data_dir"] == str(data)


def test_settings_that_are_no_more_are_said(tmp_path, capsys, monkeypatch):
    """Of a run by an older version: those it had set, once, not what was off; resumed and branched."""
    data, out = make_data(tmp_path / "data"), tmp_path / "out"
    train_here(data_dir=data, out_dir=out, max_iters=4, stages=[dict(at=2, n_layer=2)], warmup_iters=1,
               ramp_iters=2)
    path = str(out / "ckpt_0000004.pt")
    state = checkpoint.load(path)
    state["config"].update(muon_old_iters=10, muon_old_block="")
    state["config"]["stages"][0].update(depth="interleave")
    write_sealed(path, state)
    disk.write_json(str(out / "config.json"), dict(state["config"], resolved={}))
    said = "going on without muon_old_iters=10, stages[0] depth='interleave': there is no such setting any more\n"
    meta = {**read_meta(str(data)), "fingerprint": state["meta"]["fingerprint"]}
    for argv in (["--resume", str(out)], [f"--init_from={path}", f"--out_dir={tmp_path}/branch"]):
        config = from_args(argv)
        capsys.readouterr()
        saved_state(config, meta)
        assert said in capsys.readouterr().out
        monkeypatch.setenv("RANK", "1")
        saved_state(config, meta)
        assert capsys.readouterr().out == ""
        monkeypatch.delenv("RANK")
    for iters in (4, 5):  # gates from the start: their warmup was over at iteration 4, or not
        state["config"]["residual_warmup_iters"] = iters
        write_sealed(path, state)
        with pytest.raises(UserError, match="within that warmup") if iters > 4 else contextlib.nullcontext():
            saved_state(from_args(["--resume", str(out)]), meta)


def test_a_branch_is_a_run_of_its_own(tmp_path):
    """A decay from a checkpoint of the stable phase equals a run that was planned so, to the last bit."""
    data, trunk = make_data(tmp_path / "data"), tmp_path / "trunk"
    stages = [dict(at=6, n_inner=48), dict(at=26, n_layer=2)]
    short = dict(data_dir=data, stages=stages[:1], max_iters=24)
    train_here(data_dir=data, out_dir=trunk, stages=stages, max_iters=40, eval_interval=8,
               schedule="constant", keep_checkpoints=9)
    train_here(out_dir=tmp_path / "whole", eval_interval=8, schedule="wsd", decay_iters=8, **short)
    branch = from_args([f"--init_from={trunk}/ckpt_0000016.pt", f"--out_dir={tmp_path}/branch",
                        "--schedule=wsd", "--decay_iters=8"])
    assert branch.max_iters == 24 and branch.stages == stages[:1]
    run = Run(branch)
    monitor = Monitor(run, run.config)
    go_on(run, monitor)
    monitor.close()
    run.close()
    late = [[x for x in losses(tmp_path / name) if x[0] == "step" and x[1] > 16]
            for name in ("whole", "branch")]
    assert late[0] == late[1] and len(late[0]) == 8
    with pytest.raises(UserError, match="another --out_dir"):
        from_args([f"--init_from={trunk}/ckpt_0000016.pt"])
    with pytest.raises(UserError, match="n_head=2: the checkpoint was trained with 1"):
        Run(from_args([f"--init_from={trunk}/ckpt_0000016.pt", f"--out_dir={tmp_path}/c", "--n_head=2"]))
