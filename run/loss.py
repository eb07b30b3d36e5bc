"""
Cross-entropy of a large vocabulary without its logits in memory: the head runs over a few rows at
a time, and their gradients are taken at once, so nothing of the size of the logits is kept.
"""
import torch
import torch.nn as nn
from torch.nn import functional as F

LOGITS_AT_ONCE = 1 << 26  # logits in memory at a time: 256 MiB in float32


class RowLoss(nn.Module):
    """
    logits (R, V), targets (R,), -1 = ignore -> the summed loss, 0-D float32, and its gradient with
    respect to the logits, in their dtype. A module so that it can be compiled (compiler.py): its
    shapes are constants of a run, whatever grows.
    """

    def forward(self, logits, targets):
        wanted = targets >= 0
        index = targets.clamp_min(0)[:, None]
        z = logits.float()
        lse = z.logsumexp(-1, keepdim=True)  # (R, 1)
        nats = (lse - z.gather(1, index))[:, 0]
        hit = torch.arange(z.size(1), device=z.device) == index  # (R, V)
        grad = ((z - lse).exp() - hit.float()) * wanted[:, None]
        return (nats * wanted).sum(), grad.to(logits.dtype)


class HeadLoss(torch.autograd.Function):
    """The mean loss of x @ weight.T + bias, gradients computed along with it, chunk by chunk."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, row_loss, rows):
        total, n = x.new_zeros((), dtype=torch.float32), (targets >= 0).sum().clamp_min(1)
        dx = torch.empty_like(x)
        dw = torch.zeros_like(weight, dtype=torch.float32)
        db = None if bias is None else torch.zeros_like(bias, dtype=torch.float32)
        for i in range(0, len(x), rows):
            part = x[i:i + rows]
            loss, grad = row_loss(F.linear(part, weight, bias), targets[i:i + rows])
            total += loss
            dx[i:i + rows] = grad @ weight
            dw += grad.T @ part
            if bias is not None:
                db += grad.sum(0, dtype=torch.float32)
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
    F.cross_entropy(F.linear(x, weight, bias), targets, ignore_index=-1), the same to rounding.
    x: (N, n_embd); weight: (V, n_embd); bias: (V,) or None; targets: (N,). Returns a 0-D loss in
    nats a target. Only as many rows at a time as LOGITS_AT_ONCE allows, always equally many.
    """
    n, v = len(x), len(weight)
    rows = next(n // c for c in range(1, n + 1) if n % c == 0 and n // c * v <= LOGITS_AT_ONCE or c == n)
    if rows == n:
        return F.cross_entropy(F.linear(x, weight, bias), targets, ignore_index=-1)
    if not torch.is_grad_enabled():
        sums = [F.cross_entropy(F.linear(a, weight, bias), b, ignore_index=-1, reduction="sum")
                for a, b in zip(x.split(rows), targets.split(rows))]
        return sum(sums) / (targets >= 0).sum()
    device = x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = (t if t is None else t.to(dtype) for t in (x, weight, bias))
    return HeadLoss.apply(x, weight, bias, targets, row_loss or RowLoss(), rows)

