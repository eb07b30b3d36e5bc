"""
What models are made of: masks, layers whose axes have names and which can ignore masked coordinates,
rotary positions, attention, and the loss of the output head.
"""
import math
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F

WIDTH_AXES = ("embd", "inner", "head")  # those that carry a mask; "kv" needs none of its own


class Spec(NamedTuple):
    """What a parameter is: the meaning of its axes, and the normal distribution it starts from."""
    axes: tuple
    mean: float = 0.0
    std: float = 0.0


class Mask(NamedTuple):
    """The mask of each width axis, (size,) with values in [0, 1]; None where nothing grows."""
    embd: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    head: torch.Tensor | None = None


class Masks(nn.Module):
    """
    The growth in progress, as buffers, so that a checkpoint taken mid-ramp has it all:
    `embd`, `inner`, `head`, `layer`: bool, True on the newborn coordinates of a grown axis;
    `c`: 0-D, the present height of the ramp. All are None when nothing grows.
    """

    def __init__(self):
        super().__init__()
        self.stop()

    def start(self, newborn, device, dtype):
        """newborn: axis -> bool tensor (size,). The ramp starts at 0."""
        for axis, new in newborn.items():
            self.register_buffer(axis, new.to(device))
        self.register_buffer("c", torch.zeros((), device=device, dtype=dtype))
        self._find_new_layers(newborn.get("layer"))

    def stop(self):
        for name in (*WIDTH_AXES, "layer", "c"):
            self.register_buffer(name, None)
        self.new_layers = frozenset()

    def _find_new_layers(self, layer):
        # which blocks are gated is a fact about the graph, so it is known to Python
        self.new_layers = frozenset(() if layer is None else layer.nonzero().flatten().tolist())

    def width(self):
        """The present masks of the width axes, as a Mask."""
        return Mask(*(None if (new := getattr(self, axis)) is None else
                      torch.where(new, self.c, torch.ones_like(self.c)) for axis in WIDTH_AXES))

    def gate(self, i):
        """c for a newborn block, None for the others."""
        return self.c if i in self.new_layers else None

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # the state dict says whether there is a growth in progress, whatever we had before
        for name in (*WIDTH_AXES, "layer", "c"):
            value = state_dict.get(prefix + name)
            self.register_buffer(name, None if value is None else torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._find_new_layers(self.layer)


class Linear(nn.Linear):
    """
    nn.Linear with named axes. In: (..., in_axis), out: (..., out_axis). m: the mask of in_axis,
    (in_axis,): the layer of m * x, reckoned on the weight's columns, which are fewer than x's rows.
    """

    def __init__(self, config, out_axis, in_axis, std=0.02, bias=None):
        sizes = config.axis_sizes()
        super().__init__(sizes[in_axis], sizes[out_axis], config.bias if bias is None else bias)
        self.spec = dict(weight=Spec((out_axis, in_axis), std=std), bias=Spec((out_axis,)))

    def reset_parameters(self):
        pass  # Transformer.init_weights draws every parameter from its spec

    def forward(self, x, m=None):
        return F.linear(x, self.weight if m is None else self.weight * m, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding with named axes."""

    def __init__(self, config, axis):
        super().__init__(config.axis_sizes()[axis], config.n_embd)
        self.spec = dict(weight=Spec((axis, "embd"), std=0.02))

    def reset_parameters(self):
        pass


class LayerNorm(nn.Module):
    """
    LayerNorm over the residual stream that can ignore masked coordinates. With n = sum(m):
    mu = sum(m x) / n, var = sum(m (x - mu)^2) / n, y = m * ((x - mu) / sqrt(var + eps) * w + b).
    At c = 0 it is plain LayerNorm on the old coordinates and 0 on the new ones, at c = 1 plain
    LayerNorm on all of them. Computed in float32 at least, as autocast does with layer_norm.
    """

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_embd))
        self.bias = nn.Parameter(torch.empty(config.n_embd)) if config.bias else None
        self.eps = config.norm_eps
        self.spec = dict(weight=Spec(("embd",), mean=1.0), bias=Spec(("embd",)))

    def forward(self, x, m=None):
        if m is None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        n = m.sum()
        d = x - (m * x).sum(-1, keepdim=True) / n
        var = (m * d * d).sum(-1, keepdim=True) / n
        y = d * torch.rsqrt(var + self.eps) * self.weight
        return m * (y if self.bias is None else y + self.bias)


class RMSNorm(nn.Module):
    """
    RMSNorm (Zhang and Sennrich 2019) that can ignore masked coordinates:
    y = m * x / sqrt(sum(m x^2) / sum(m) + eps) * w. Computed in float32 at least.
    """

    def __init__(self, config, axis="embd"):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.axis_sizes()[axis]))
        self.eps = config.norm_eps
        self.spec = dict(weight=Spec((axis,), mean=1.0))

    def forward(self, x, m=None):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if m is None:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
        var = (m * x * x).sum(-1, keepdim=True) / m.sum()
        return x * torch.rsqrt(var + self.eps) * (m * self.weight)


def norm(config, axis="embd"):
    return RMSNorm(config, axis) if config.llama else LayerNorm(config)


def positions_and_mask(config, idx, start=0):
    """
    Where the tokens of idx (B, T) from `start` on are: their positions (T - start,), and None.

    With config.eot the documents packed in a row are kept apart: their positions in their documents,
    (B, T - start), and which tokens they see, their own document's up to themselves, bool
    (B, 1, T - start, T). The id between two documents begins the second, whose first token is so
    predicted from that id alone. What a row begins in the middle of counts from the row's start.
    """
    t = torch.arange(idx.size(1), device=idx.device)
    if len(t) > config.block_size:
        raise ValueError(f"sequence of {len(t)} tokens, but block_size is {config.block_size}: "
                         "crop it")
    if config.eot is None:
        return t[start:], None
    number = (idx == config.eot).cumsum(1)  # of the document, in its row
    attn_mask = (number[:, start:, None] == number[:, None]) & (t[start:, None] >= t)
    return attn_mask.sum(-1) - 1, attn_mask[:, None]


def rotary(t, head_dim, theta, like):
    """
    Rotary positions (RoFormer, Su et al. 2021): cosines and sines of t / theta^(2 i / head_dim), each
    (T, head_dim / 2), or (B, 1, T, head_dim / 2) for t (B, T), in float32 at least, as `like` is.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    i = torch.arange(0, head_dim, 2, device=t.device, dtype=dtype)
    angles = t.to(dtype)[..., None] * theta ** (-i / head_dim)
    angles = angles if t.dim() == 1 else angles[:, None]
    return angles.cos(), angles.sin()


def apply_rotary(x, rope):
    """Coordinates i and i + head_dim / 2 of x (B, n_head, T, head_dim) turned by their angles."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q, k, v, attn_mask=None, causal=False, dropout=0.0):
    """
    softmax(q k^T / sqrt(head_dim)) v. q, k, v: (B, n_head, T, head_dim); attn_mask: None or bool,
    (B, 1, 1, T) or (B, 1, T, T), False = not seen; causal: each position sees itself and those
    before (of as many queries as keys), as a attn_mask that is given besides must say too.

    By PyTorch's kernels, but for compiled bfloat16 on the CPU: there the kernel's backward took a
    third of a small model's step (torch 2.13, AMD EPYC). Plain products need about half the time, a
    few queries at a time, so that their scores stay in the cache and a causal model skips most of
    what it masks. Beyond 1024 positions they gain nothing and need memory that grows with T^2.
    """
    plain = torch.compiler.is_compiling() and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not plain or k.size(2) > 1024:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout,
                                              is_causal=causal and attn_mask is None)
    T, rows, y = k.size(2), 128, []
    q = q / math.sqrt(q.size(-1))
    for i in range(0, q.size(2), rows):
        j = min(i + rows, T) if causal else T  # these queries see the keys before j
        scores = q[:, :, i:i + rows] @ k[:, :, :j].transpose(2, 3)
        if causal:
            hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(i + 1)
            scores = scores.masked_fill(hidden, -math.inf)
        if attn_mask is not None:
            seen = attn_mask[..., :j] if attn_mask.size(2) == 1 else attn_mask[:, :, i:i + rows, :j]
            scores = scores.masked_fill(~seen, -math.inf)
        y.append(F.dropout(scores.softmax(-1), dropout) @ v[:, :, :j])
    return torch.cat(y, dim=2)


# -----------------------------------------------------------------------------
# the output head's cross-entropy without all logits in memory: the head runs over a few rows at a time
# and takes their gradients at once

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
