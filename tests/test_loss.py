"""The loss of a large vocabulary, taken a few rows at a time: the same loss and gradients."""
import pytest
import torch
from test_grow import batch, make
from torch.nn import functional as F

from run import loss


def both(monkeypatch, at_once, dtype, bias, n=24, v=50, c=8):
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", at_once)
    torch.manual_seed(0)
    made = []
    x, w, b = torch.randn(n, c), torch.randn(v, c), torch.randn(v)
    t = torch.randint(v, (n,))
    t[[0, 7]] = -1
    for f in (loss.head_loss, lambda x, w, t, b: F.cross_entropy(F.linear(x, w, b), t, ignore_index=-1)):
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


def test_under_autocast(monkeypatch):
    with torch.autocast("cpu", torch.bfloat16):
        a, b = both(monkeypatch, 150, torch.float32, True)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype and (x - y).abs().max() <= 0.02 * y.abs().max()


@pytest.mark.parametrize("kind", ["gpt", "bert"])
@pytest.mark.parametrize("mode", ["none", "block", "model"])
def test_models_compiled_or_not(kind, mode, monkeypatch):
    """return_logits=False: the same loss and gradients, no logits of the whole batch."""
    from run import compiler
    model = make(kind, torch.float32)
    data = batch(kind, model.config)
    want = model(**data)[1]
    want.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters()}
    model.zero_grad()
    monkeypatch.setattr(loss, "LOGITS_AT_ONCE", model.config.vocab_size * 4)
    compiler.compile_model(model, mode)
    out, got = model(**data, return_logits=False)
    got.backward()
    assert (out if kind == "gpt" else out.mlm_logits) is None
    assert (got - want).abs() < 1e-5
    for n, p in model.named_parameters():
        assert (p.grad - grads[n]).abs().max() < 1e-5, n
    with torch.no_grad():
        assert (model(**data, return_logits=False)[1] - want).abs() < 1e-5


def test_chunks_are_equal_in_size():
    """Shapes that never vary: one graph."""
    seen = []
    row = loss.RowLoss()
    row.register_forward_pre_hook(lambda m, args: seen.append(tuple(args[0].shape)))
    x, w = torch.randn(30, 4, requires_grad=True), torch.randn(1 << 22, 4)
    loss.head_loss(x, w, torch.zeros(30, dtype=torch.long), row_loss=row)
    assert seen == [(15, 1 << 22)] * 2
