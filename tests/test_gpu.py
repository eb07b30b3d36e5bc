"""
What only a GPU can show: pytest tests/test_gpu.py --gpu. `make test` runs it where there is one; every
other test sees none, so that it says the same everywhere. (What CUDA would refuse, without CUDA:
test_cuda.py.)
"""
import math

import pytest
import torch
from runs import ENV, TINY, cut_off, events, losses, make_data, train
from test_grow import BIGGER, CASES, batch, check_preserved, make

from grow import grow
from run import compiler
from run.evaluation import evaluate
from run.settings import from_dict
from train import Run

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU, or without --gpu")
DEVICE = torch.device("cuda")
GPU = dict(device="cuda", compile="auto", dropout=0.0)
SEES = {k: v for k, v in ENV.items() if k != "CUDA_VISIBLE_DEVICES"}


@pytest.fixture(autouse=True)
def fresh_graphs():
    compiler.forget_graphs()


@pytest.mark.parametrize("kind, compiled", [
    *((kind, False) for kind in CASES), ("gpt", True),
    *(pytest.param(kind, True, marks=pytest.mark.slow) for kind in list(CASES)[1:])])
def test_function_preserved(kind, compiled):
    """All four dimensions in float64, on the device's own kernels."""
    model = make(kind).to(DEVICE)
    data = {k: v.to(DEVICE) for k, v in batch(kind, model.config).items()}
    if compiled:
        compiler.compile_model(model, "block")
    check_preserved(kind, model, data=data, **BIGGER)


@pytest.mark.parametrize("kind", CASES)
def test_as_on_the_cpu(kind):
    """The same model, data and growth: the same loss and gradients."""
    def there(device):
        model, _ = grow(make(kind).to(device), **BIGGER)
        data = {k: v.to(device) for k, v in batch(kind, model.config).items()}
        torch.manual_seed(0)
        loss = model(**data)[1]
        loss.backward()
        return loss, torch.stack(torch._foreach_norm([p.grad for p in model.parameters()
                                                      if p.grad is not None]))
    for here, gpu in zip(there("cpu"), there(DEVICE)):
        torch.testing.assert_close(gpu.cpu(), here, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model, optimizer, dtype", [
    ("gpt", "muon", "bfloat16"), ("bert", "adamw", "float16"),
    *(pytest.param("llama", *how, marks=pytest.mark.slow) for how in (("muon", "float32"),
                                                                    ("adamw", "bfloat16")))])
def test_a_step_never_waits_for_the_device(model, optimizer, dtype, tmp_path):
    """Compiled, over a growth of all dimensions and its ramp."""
    data = str(make_data(tmp_path / "data"))
    run = Run(from_dict({
        **TINY, **GPU, "out_dir": str(tmp_path / "out"), "data_dir": data, "model": model,
        "optimizer": optimizer, "dtype": dtype, "max_iters": 12, "doc_mask": model == "llama",
        "stages": [dict(at=3, n_inner=48, n_embd=32, n_head=2, n_layer=3, ramp_iters=5)]}))
    evaluate(run)
    seen = []
    try:
        for it in range(12):
            if run.growth_is_due():
                run.grow()
            run.move_mask()
            data = run.pinned(run.loader.batch(it))
            quiet = it not in (0, 3, 7)  # these make graphs: the start's, the masked, the clean one
            torch.cuda.set_sync_debug_mode("error" if quiet else "default")
            seen.append(run.step(data)[0])
            torch.cuda.set_sync_debug_mode("default")
        assert run.stage == 1 and run.model.masks.c is None and run.is_finite()
        assert torch.stack(seen).isfinite().all() and int(run.bad) <= (3 if dtype == "float16" else 0)
        evaluate(run)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        run.close()


@pytest.mark.parametrize("model, optimizer", [("gpt", "muon"), ("bert", "adamw"), ("llama", "muon")])
def test_learns_as_on_the_cpu(model, optimizer, tmp_path):
    """A run that grows in all dimensions: the same losses as on the CPU, but for TF32's products."""
    data, logged = str(make_data(tmp_path / "data")), {}
    common = dict(data_dir=data, model=model, optimizer=optimizer, dropout=0.0, compile="none")
    for device in ("cpu", "cuda"):
        out = str(tmp_path / device)
        train(out_dir=out, device=device, **common)
        logged[device] = losses(out)
    assert len(logged["cpu"]) == len(logged["cuda"]) > 60
    for here, gpu in zip(logged["cpu"], logged["cuda"]):
        assert here[:3] == gpu[:3] and math.isclose(here[3], gpu[3], rel_tol=0.02), (here, gpu)


@pytest.mark.parametrize("torchrun", [0, 1])
def test_a_run_in_processes_of_its_own(torchrun, tmp_path):
    """train.py as people start it: it grows, compiles, stops, goes on, and a CPU reads what it wrote."""
    data, out = str(make_data(tmp_path / "data")), str(tmp_path / "out")
    settings = dict(GPU, out_dir=out, data_dir=data, optimizer="muon", dtype=None, device=None,
                    schedule="constant")
    train(torchrun=torchrun, env=SEES, **dict(settings, save_interval=45))
    cut_off(out, 45)
    train("--resume", torchrun=torchrun, env=SEES, **settings)
    start = events(out, "start")[-1]
    assert start["device"] == "cuda:0" and start["dtype"] == "bfloat16" and start["compile"] == "block"
    ends = [e["loss"] for e in events(out, "step")]
    assert ends[-1] < ends[0] and len(events(out, "grow")) == 3
    train("--resume", **dict(settings, device="cpu", dtype="float32", compile="none", max_iters=62))
    assert events(out, "eval")[-1]["iter"] == 62


def test_a_run_in_two_parts(tmp_path):
    """Ended in the middle of a ramp, resumed: the losses of a run in one, but for sums in any order."""
    data, logged = str(make_data(tmp_path / "data")), []
    for name in ("whole", "cut"):
        out = str(tmp_path / name)
        settings = dict(GPU, out_dir=out, data_dir=data, compile="none", schedule="constant", save_interval=45)
        train(**settings)
        if name == "cut":
            cut_off(out, 45)
            train("--resume", **settings)
        logged.append({e[:3]: e[3] for e in losses(out)})
    whole, cut = logged
    assert whole.keys() == cut.keys()
    for what in whole:
        assert math.isclose(whole[what], cut[what], rel_tol=0.02), what
