"""
Cross-entropy of a large vocabulary without its logits in memory: the head runs over a few rows at
a time, and their gradients are taken at once, so nothing of the size of the logits is kept.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F

# logits in memory at a time: 64 MiB in float32 on a CPU; GPUs have room for more, and each time
# costs them a pass over the gradient of the head's weights
LOGITS_AT_ONCE = dict(cpu=1 << 24, cuda=1 << 28)


def wide(dtype):
    """What sums of `dtype` are kept in."""
    return torch.promote_types(dtype, torch.float32)


def cross_entropy(logits, targets):
    """
    The mean loss in nats a target, 0-D: F.cross_entropy with ignore_index=-1, but 0 rather than NaN
    when all are ignored. logits: (N, V); targets: (N,).
    """
    total = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp_min(1)


class RowLoss(nn.Module):
    """
    logits (R, V), targets (R,), -1 = ignore -> the summed loss, 0-D, in float32 at least, and its
    gradient with respect to the logits, in their dtype. A module so that it can be compiled
    (compiler.py): its shapes are constants of a run, whatever grows.
    """

    def forward(self, logits, targets):
        wanted = targets >= 0
        index = targets.clamp_min(0)[:, None]
        logp = F.log_softmax(logits.to(wide(logits.dtype)), -1)  # (R, V)
        nats = -logp.gather(1, index)[:, 0]
        grad = logp.exp_()  # softmax minus one-hot, in place: it is large
        grad.scatter_add_(1, index, grad.new_full(index.shape, -1.0))
        grad.mul_(wanted[:, None])
        return (nats * wanted).sum(), grad.to(logits.dtype)


class HeadLoss(torch.autograd.Function):
    """The mean loss of x @ weight.T + bias, gradients computed along with it, chunk by chunk."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, row_loss, rows):
        sums = wide(x.dtype)
        total, n = x.new_zeros((), dtype=sums), (targets >= 0).sum().clamp_min(1)
        dx = torch.empty_like(x)
        dw = torch.zeros_like(weight, dtype=sums)
        db = None if bias is None else torch.zeros_like(bias, dtype=sums)
        for i in range(0, len(x), rows):
            part = x[i:i + rows]
            loss, grad = row_loss(F.linear(part, weight, bias), targets[i:i + rows])
            total += loss
            dx[i:i + rows] = grad @ weight
            dw += grad.T @ part
            if bias is not None:
                db += grad.sum(0, dtype=sums)
        ctx.save_for_backward(dx, dw, db, n)
        return total / n

    @staticmethod
    def backward(ctx, grad):
        dx, dw, db, n = ctx.saved_tensors
        scale = grad / n
        return (dx * scale.to(dx.dtype), (dw * scale).to(dx.dtype),
                None if db is None else (db * scale).to(dx.dtype), None, None, None)


def head_loss(x, weight, targets, bias=None, row_loss=None):
    """
    cross_entropy(F.linear(x, weight, bias), targets), the same to rounding.
    x: (N, n_embd); weight: (V, n_embd); bias: (V,) or None; targets: (N,). Returns a 0-D loss in
    nats a target. Only as many rows at a time as LOGITS_AT_ONCE allows, and equally many, but for
    the last time, so that row_loss, a RowLoss, sees two shapes at most.
    """
    n, device = len(x), x.device.type
    at_once = LOGITS_AT_ONCE.get(device, LOGITS_AT_ONCE["cpu"])
    times = -(-n // max(1, at_once // len(weight)))
    rows = -(-n // max(1, times)) or 1
    if not torch.is_grad_enabled():
        sums = [F.cross_entropy(F.linear(a, weight, bias), b, ignore_index=-1, reduction="sum")
                for a, b in zip(x.split(rows), targets.split(rows))]
        return sum(sums) / (targets >= 0).sum().clamp_min(1)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = (t if t is None else t.to(dtype) for t in (x, weight, bias))
    return HeadLoss.apply(x, weight, bias, targets, row_loss or RowLoss(), rows)
