"""Our Muon: torch's mathematics, in few kernels, and never a word from the device to the host."""
import copy

import pytest
import torch
from test_grow import batch, make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import _muon
from torch.utils._python_dispatch import TorchDispatchMode

from grow import grow, set_mask
from model import GPT, GPTConfig
from run import compiler, optim
from run.optim import Muon, make_optimizers
from run.settings import TrainConfig

SHAPES = [(8, 8), (8, 8), (24, 8), (8, 24), (8, 8), (1, 5), (5, 1), (1, 1), (0, 4), (7, 11)]


def exact(grad, coefficients, steps, eps):
    """torch's Newton-Schulz, in the format of its input rather than bfloat16."""
    a, b, c = coefficients
    x = grad.T if grad.size(0) > grad.size(1) else grad
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if grad.size(0) > grad.size(1) else x


@pytest.fixture
def torchs(monkeypatch):
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", exact)
    return torch.optim.Muon


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(s, generator=g).to(dtype)) for s in shapes]


def give_gradients(*lists, seed):
    g = torch.Generator().manual_seed(seed)
    for alike in zip(*lists):
        grad = torch.randn(alike[0].shape, generator=g)
        for p in alike:
            p.grad = grad.to(p.dtype, copy=True)


def assert_same(a, b, tol=1e-5):
    for x, y in zip(a, b, strict=True):
        assert x.shape == y.shape
        assert x.numel() == 0 or (x.double() - y).abs().max() <= tol * max(1, y.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("at_once", [1, 200, 1 << 20])
@pytest.mark.parametrize("settings", [{}, dict(nesterov=False, momentum=0.8, ns_steps=3),
                                      dict(adjust_lr_fn="match_rms_adamw", weight_decay=0.0)])
def test_equals_torch(dtype, at_once, settings, torchs, monkeypatch):
    monkeypatch.setitem(optim.AT_ONCE, "cpu", at_once)
    mine, theirs = parameters(dtype=dtype), parameters(dtype=torch.float64)
    a, b = Muon(mine, lr=0.02, dtype=dtype, **settings), torchs(theirs, lr=0.02, **settings)
    for it in range(5):
        give_gradients(mine, theirs, seed=it)
        mine[1].grad = theirs[1].grad = None  # another process's
        for o in (a, b):
            o.param_groups[0]["lr"] = 0.02 / (it + 1)
            o.step()
    assert_same(mine, theirs, 1e-12 if dtype == torch.float64 else 1e-5)
    assert mine[1] not in a.state
    assert_same([a.state[p]["momentum_buffer"] for p in mine if p.numel() and p in a.state],
                [b.state[p]["momentum_buffer"] for p in theirs if p.numel() and p in b.state])


def test_bfloat16_is_what_torch_does():
    """Its own Newton-Schulz, unpatched: apart by no more than bfloat16's rounding."""
    mine, theirs = parameters([(32, 32), (64, 32)]), parameters([(32, 32), (64, 32)])
    a, b = Muon(mine, lr=0.1, dtype=torch.bfloat16), torch.optim.Muon(theirs, lr=0.1)
    give_gradients(mine, theirs, seed=0)
    a.step()
    b.step()
    assert_same(mine, theirs, 0.1 * 0.02)


@pytest.mark.parametrize("kind", ["gpt", "bert"])
def test_across_growths(kind, torchs):
    """grow() carries the momentum, as it does for torch's."""
    runs = []
    for cls in (Muon, torchs):
        model = make(kind)
        config = TrainConfig(optimizer="muon")
        opts = make_optimizers(config, model, torch.float64)
        if cls is torchs:
            opts[0] = torchs([dict(g) for g in opts[0].param_groups], lr=0.02)
        for growth in (None, dict(n_inner=33), dict(n_embd=20, n_head=3), dict(n_layer=5)):
            if growth:
                torch.manual_seed(1)
                model, opts = grow(model, opts, **growth)
                set_mask(model, 0.5)
            for seed in range(2):
                model(**batch(kind, model.config, seed))[1].backward()
                for o in opts:
                    o.step()
                    o.zero_grad()
            if growth:
                set_mask(model, 1)
        runs.append(([*model.parameters()],
                     [opts[0].state[p]["momentum_buffer"] for p in opts[0].param_groups[0]["params"]]))
    assert_same(runs[0][0], runs[1][0], 1e-8)  # AdamW's divides tiny gradients by their roots
    assert_same(runs[0][1], runs[1][1], 1e-8)


@pytest.mark.parametrize("compiled", [False, True])
def test_bad_steps_change_nothing(compiled, graphs_only):
    params = parameters([(4, 4), (4, 4), (8, 4)])
    o = Muon(params, lr=0.1, compiled=compiled)
    for bad in (0, 1, 0, 1):
        give_gradients(params, seed=bad)
        if bad:
            for p in params[1:]:
                p.grad[0, 0] = torch.nan
        before = copy.deepcopy([params, [o.state[p] for p in params]])
        o.found_inf = torch.tensor(float(bad))
        o.step()
        after = [params, [o.state[p] for p in params]]
        for p, q in zip(before[0], after[0]):
            assert torch.equal(p, q) == bool(bad) and q.isfinite().all()
        if bad:
            for p, q in zip(before[1], after[1]):
                assert torch.equal(p["momentum_buffer"], q["momentum_buffer"])


def test_learning_rates_compile_nothing_anew(torchs, graphs_only):
    params, theirs = (parameters([(4, 4), (4, 4), (8, 4)]) for _ in range(2))
    o, b = Muon(params, lr=0.1, compiled=True), torchs(theirs, lr=0.1)
    made = []
    for it in range(5):
        give_gradients(params, theirs, seed=it)
        for x in (o, b):
            x.param_groups[0].update(lr=0.1 / (it + 1), weight_decay=0.1 * it)
        o.found_inf = torch.tensor(0.0)
        o.step()
        b.step()
        made.append(compiler.graphs())
    assert made[0] == made[-1], made
    assert_same(params, theirs)


def test_goes_on_from_torchs_state(torchs):
    """A checkpoint of a run with torch.optim.Muon, whose groups know other keys."""
    mine, theirs = parameters(), parameters()
    a, b = Muon(mine, lr=0.5), torchs(theirs, lr=0.02)
    give_gradients(mine, theirs, seed=0)
    b.step()
    with torch.no_grad():
        for p, q in zip(mine, theirs):
            p.copy_(q)
    saved = copy.deepcopy(b.state_dict())
    saved["param_groups"][0].update(role="matrix", peak_lr=0.02)
    del saved["param_groups"][0]["adjust_lr_fn"]
    a.load_state_dict(saved)
    group = a.param_groups[0]
    assert (group["lr"], group["role"], group["adjust_lr_fn"]) == (0.02, "matrix", None)
    give_gradients(mine, theirs, seed=1)
    a.step()
    b.step()
    assert_same(mine, theirs)
    b.load_state_dict(a.state_dict())  # and back


def test_matrices_only_but_any():
    empty = parameters([(3, 0), (0, 3), (0, 0)])
    give_gradients(empty, seed=0)
    Muon(empty).step()
    Muon(parameters()).step()  # no gradient anywhere
    with pytest.raises(ValueError, match="matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))])


class Kernels(TorchDispatchMode):
    """Counts what is computed: every operation that is not a view."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "aten" and not func.is_view and func is not torch.ops.aten._unsafe_view.default:
            self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_kernels_of_a_step(dtype):
    """GPT-2 124M, 12 layers: Muon and AdamW together in at most 150 operations."""
    with FakeTensorMode():
        with torch.device("cuda:0"):
            model = GPT(GPTConfig())
        opts = make_optimizers(TrainConfig(optimizer="muon"), model, dtype)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(2):  # the first makes the state
            with Kernels() as kernels:
                for o in opts:
                    o.found_inf = torch.zeros((), device="cuda:0")
                    o.step()
    assert len(kernels.names) <= 150, kernels.names


@pytest.mark.parametrize("device, dtype, small", [
    ("cpu", torch.float32, True), ("cpu", torch.float64, True), ("cpu", torch.bfloat16, False),
    ("meta", torch.float32, False)])
def test_the_small_side_is_for_exact_products(device, dtype, small, monkeypatch):
    """Its errors grow from step to step: not in 16 bits, and not on GPUs, whose float32 may be TF32."""
    taken = []
    monkeypatch.setattr(optim, "small_side", lambda gram, *more: taken.append(1) or gram)
    optim.newton_schulz(torch.ones(1, 4, 8, dtype=dtype, device=device), (3.4445, -4.775, 2.0315), 5)
    assert bool(taken) == small
