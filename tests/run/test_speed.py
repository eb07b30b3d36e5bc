"""What must cost nothing: the loader, and graphs that are compiled more often than they should."""
import time

import pytest
import torch
from runs import make_data

from data.dataset import read_meta
from data.loader import LOADERS, vocab_needed
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
