"""What must cost nothing: the loader, and graphs that are compiled more often than they should."""
import math
import os
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from runs import ENV, losses, make_data, train
from torch._inductor.codecache import get_lock_dir
from torch.utils._filelock import FileLock

from data.dataset import read_meta
from data.loader import LOADERS, vocab_needed
from grow import sizes_of
from lab import bench
from model import GPT, MODELS, GPTConfig
from run import compiler
from run.settings import from_dict


@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_loader_is_twenty_times_faster_than_the_model(model, tmp_path):
    """At the size of config/pystdlib_msg.py, where the model is as small as it gets, in seconds."""
    data = str(make_data(tmp_path / "data"))
    config = from_dict(dict(model=model, data_dir=data, n_layer=2, n_embd=128, n_inner=512, n_head=4))
    meta = read_meta(data)
    loader = LOADERS[model](config, meta, vocab_needed(model, meta))
    net = MODELS[model][0](config.model_config(vocab_needed(model, meta)))
    load, step = [], []
    for it in range(4):
        times = [time.perf_counter()]
        batch = loader.batch(it)
        times.append(time.perf_counter())
        net(**batch, return_logits=False)[1].backward()
        times.append(time.perf_counter())
        load.append(times[1] - times[0])
        step.append(times[2] - times[1])
    assert 20 * min(load) < min(step), (load, step)


def test_the_recompile_limit_is_an_error(monkeypatch, graphs_only):
    """A graph made over and over stops the run; it never goes on silently without torch.compile."""
    model = GPT(GPTConfig(block_size=32, vocab_size=32, n_layer=1, n_head=1, n_embd=8, n_inner=8, head_dim=8))
    compiler.compile_model(model, "block")
    name = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") else "cache_size_limit"
    monkeypatch.setattr(torch._dynamo.config, name, 1)
    model(torch.zeros(1, 4, dtype=torch.long))
    with pytest.raises(Exception, match="(?i)recompile"):
        model(torch.zeros(1, 5, dtype=torch.long))


def test_what_growing_cost_a_run():
    """bench.py --run, on a run worked out by hand: steps of 1 s, masked ones of 1.5 s."""
    def event(kind, it, train_s, n_layer=1, mask=1.0, **more):
        return dict(event=kind, iter=it, train_s=train_s, mask=mask, n_layer=n_layer, n_embd=8,
                    n_head=1, n_inner=8, **more)
    run = [event("compile", 1, 9.0, first_step_s=9.0), event("step", 2, 10.0), event("step", 4, 12.0),
           event("grow", 4, 13.0, 2, 0.0, grow_s=0.5),
           event("compile", 5, 17.0, 2, 0.5, first_step_s=4.0), event("step", 6, 18.5, 2, 0.5),
           event("step", 8, 21.5, 2, 0.9), event("ramp_end", 9, 23.0, 2),
           event("compile", 10, 26.0, 2, first_step_s=3.0), event("step", 12, 28.0, 2),
           event("step", 14, 30.0, 2)]
    assert bench.cost_of_growth(run) == pytest.approx(
        dict(grow_s=0.5, compile_s=(4 - 1) + (3 - 1), masked_s=5 * 0.5))


@pytest.mark.parametrize("flags, words", [
    ("--only=nonsense", "'nonsense': no such name: there are ours-block, "), ("--rounds=0", "at least 1"),
    ("--steps=x", "--steps: x: must be a whole number"), ("--preset=huge", "--preset: invalid choice"),
    ("--device=abacus", "device=abacus"), ("--run=nowhere", "nowhere: no metrics.jsonl"),
    ("--only=ours-none --save=nowhere/x.json", "no such folder"), ("--color=red", "--color=red")])
def test_bad_flags_of_bench_are_one_line(flags, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.py", *flags.split()])
    with pytest.raises(SystemExit) as e:
        bench.main()
    said = capsys.readouterr().err
    assert e.value.code == 2 and words in said and len(said.splitlines()) == 1, said


@pytest.mark.parametrize("name", ["ours-none", "masked-all", "peer-eager"])
@pytest.mark.parametrize("model", ["gpt", "bert"])
def test_contestants_take_a_step(name, model, monkeypatch):
    """Ours and theirs begin at the loss of a guess; masked ones have the size that all have."""
    if name == "peer-eager":
        pytest.importorskip("transformers")
    monkeypatch.setitem(bench.PRESETS, "small", dict(
        n_layer=2, n_head=2, n_embd=16, n_inner=32, head_dim=8, block_size=16, vocab_size=64))
    monkeypatch.setattr(bench.compiler, "compile_model", lambda model, mode: None)
    config = bench.config_of(SimpleNamespace(preset="small", model=model, device="cpu", dtype="float32"))
    step, net = bench.build(name, config, torch.device("cpu"), torch.float32)
    guess = math.log(64) + (math.log(2) if model == "bert" else 0)
    assert step.loss(net, step.data).item() == pytest.approx(guess, abs=0.3)
    before = [p.clone() for p in net.parameters()]
    step()
    assert any((p != q).any() for p, q in zip(net.parameters(), before))
    if name == "masked-all":
        assert sizes_of(net.config) == dict(n_layer=2, n_head=2, n_embd=16, n_inner=32)


def test_sweep_passes_over_what_it_cannot_read(tmp_path, monkeypatch):
    """Files of the cache that are finished, that another process builds, or that are not ours to remove."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    made = tmp_path / "ab"
    for name in ("half", "odd", "busy"):
        (made / f"{name}.main_CxxBuild").mkdir(parents=True)
    (made / "odd.main.so").mkdir()
    for name in ("half.main.so", "half.main.o", "half.main.cpp", "busy.main.so", "whole.main.so"):
        (made / name).write_bytes(b"\x7fELF")
    with FileLock(os.path.join(get_lock_dir(), "busy.lock")):
        compiler.sweep_cache()
    assert {p.name for p in made.glob("*.main.*")} == {"half.main.cpp", "odd.main.so", "busy.main.so", "whole.main.so"}
    assert {p.name for p in made.glob("*_CxxBuild")} == {"odd.main_CxxBuild", "busy.main_CxxBuild"}


@pytest.mark.parametrize("said, todo", [
    ("InductorError: x\n/x.cpp:1: fatal error: Python.h: No such file", "apt-get install python3-dev"),
    ("Failed to find C compiler. Please specify", "apt-get install gcc"),
    ("Cannot find a working triton installation", "pip install triton"), ("quite another", "quite another")])
def test_what_to_type_where_it_cannot_compile(said, todo, monkeypatch):
    def fail(*args, **how):
        raise RuntimeError(said)
    monkeypatch.setattr(torch, "compile", fail)
    got = compiler.broken.__wrapped__("cpu")
    assert got.startswith(said.splitlines()[0]) and todo in got and "\n" not in got


@pytest.mark.slow
def test_what_a_killed_compiler_left_is_compiled_again(tmp_path):
    """Unfinished files in the disk cache are noticed at the next start; finished ones stay."""
    if compiler.broken("cpu"):
        pytest.skip("torch.compile does not work here")
    env = {**ENV, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    settings = dict(compile="block", max_iters=2, warmup_iters=1, stages=[], data_dir=make_data(tmp_path / "data"))

    def libraries():
        return {p: p.stat().st_ino for p in (tmp_path / "cache").glob("*/*.so")}
    train(out_dir=tmp_path / "a", env=env, **settings)
    made = libraries()
    assert len(made) >= 3
    for path, length in zip(made, (0, 100, 5000)):  # the last: a header, but not the end
        os.truncate(path, length)
        path.with_name(f"{path.stem}_CxxBuild").mkdir()
    train(out_dir=tmp_path / "b", env=env, **settings)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    now = libraries()
    assert sum(now[p] == made[p] for p in made) == len(made) - 3
