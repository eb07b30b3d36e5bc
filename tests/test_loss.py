"""The loss of a large vocabulary, taken a few rows at a time: the same loss and gradients."""
import pytest
import torch
from test_grow import batch, make
from torch.nn import functional as F

import layers


def both(monkeypatch, at_once, dtype, bias, n=24, v=50, c=8, ignored=(0, 7)):
    monkeypatch.setitem(layers.LOGITS_AT_ONCE, "cpu", at_once)
    torch.manual_seed(0)
    made = []
    x, w, b = torch.randn(n, c), torch.randn(v, c), torch.randn(v)
    t = torch.randint(v, (n,))
    t[list(ignored)] = -1
    for f in (layers.head_loss, lambda x, w, t, b: F.cross_entropy(F.linear(x, w, b), t, ignore_index=-1)):
        leaves = [p.to(dtype).requires_grad_() for p in (x, w, b)]
        out = f(leaves[0], leaves[1], t, leaves[2] if bias else None)
        (3 * out).backward()
        made.append([out.detach(), *(p.grad for p in leaves if p.grad is not None)])
    return made


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("at_once", [100, 150, 601, 10**6])
def test_equals_cross_entropy(at_once, bias, monkeypatch):
    a, b = both(monkeypatch, at_once, torch.float32, bias)
    assert len(a) == 3 + bias
    for x, y in zip(a, b, strict=True):
        assert (x - y).abs().max() <= 1e-5 * y.abs().max()


def test_float64(monkeypatch):
    for at_once in (100, 10**6):
        a, b = both(monkeypatch, at_once, torch.float64, True)
        for x, y in zip(a, b, strict=True):
            assert x.dtype == y.dtype and (x - y).abs().max() <= 1e-13 * y.abs().max()


@pytest.mark.parametrize("at_once", [100, 10**6])
def test_all_ignored(at_once, monkeypatch):
    """A batch without targets: a loss of 0 and no gradient, chunked or not, in training or not."""
    a, _ = both(monkeypatch, at_once, torch.float32, True, ignored=range(24))
    assert all(x.eq(0).all() for x in a)
    x, w, t = torch.randn(24, 8), torch.randn(50, 8), torch.full((24,), -1)
    with torch.no_grad():
        assert layers.head_loss(x, w, t) == 0 and layers.cross_entropy(x @ w.T, t) == 0
    assert layers.head_loss(x[:0].requires_grad_(), w, t[:0]) == 0  # and one without rows


@pytest.mark.parametrize("kind", ["gpt", "bert"])
@pytest.mark.parametrize("return_logits", [True, False])
def test_micro_batches_of_a_whole(kind, return_logits):
    """n_targets, a micro-batch's mean count: their losses' mean and gradients are the whole's."""
    model = make(kind)
    data = batch(kind, model.config)
    want = model(**data, return_logits=return_logits)[1]
    gradients = torch.autograd.grad(want, list(model.parameters()))
    n = (data["targets"] >= 0).sum().double() / 3
    got = sum(model(**{k: v[i:i + 1] for k, v in data.items()}, return_logits=return_logits,
                    n_targets=n)[1] for i in range(3)) / 3
    assert abs(got - want) < 1e-14
    for a, b in zip(gradients, torch.autograd.grad(got, list(model.parameters()))):
        assert (a - b).abs().max() < 1e-14


def test_under_autocast(monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        a, b = both(monkeypatch, 150, torch.float32, True)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and (x - y).abs().max() <= 0.02 * y.abs().max()


@pytest.mark.parametrize("kind, mode", [("gpt", "none"), ("bert", "none"), ("gpt", "block"), *(
    pytest.param(*v, marks=pytest.mark.slow) for v in (("bert", "block"), ("gpt", "model"), ("bert", "model")))])
def test_models_compiled_or_not(kind, mode, monkeypatch):
    """return_logits=False: the same loss and gradients, no logits of the whole batch."""
    from run import compiler
    model = make(kind, torch.float32)
    data = batch(kind, model.config)
    want = model(**data)[1]
    want.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setitem(layers.LOGITS_AT_ONCE, "cpu", model.config.vocab_size * 4)
    compiler.compile_model(model, mode)
    out, got = model(**data, return_logits=False)
    got.backward()
    assert (out if kind == "gpt" else out.mlm_logits) is None
    assert (got - want).abs() < 1e-5
    for n, p in model.named_parameters():
        assert (p.grad - grads[n]).abs().max() < 1e-5, n
    with torch.no_grad():
        assert (model(**data, return_logits=False)[1] - want).abs() < 1e-5


@pytest.mark.parametrize("n, shapes", [(30, [15, 15]), (31, [16, 15]), (41, [14, 14, 13]), (16, [16])])
def test_chunks_have_two_sizes_at_most(n, shapes, monkeypatch):
    """Few chunks whatever the number of rows, a prime too, and shapes that never vary."""
    monkeypatch.setitem(layers.LOGITS_AT_ONCE, "cpu", 16 * 64)
    seen = []
    row = layers.RowLoss()
    row.register_forward_pre_hook(lambda m, args: seen.append(len(args[0])))
    x, w = torch.randn(n, 4, requires_grad=True), torch.randn(64, 4)
    layers.head_loss(x, w, torch.zeros(n, dtype=torch.long), row_loss=row)
    assert seen == shapes
