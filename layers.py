"""
What models are made of: masks, layers with named axes that respect them, rotary positions,
attention, and the loss of the output head.
"""
import math
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F

WIDTH_AXES = ("embd", "inner", "head")  # the axes with a mask. "kv" needs none: only new heads read new ones


class Spec(NamedTuple):
    """The names of a parameter's axes, and the normal distribution of its initial values."""
    axes: tuple
    mean: float = 0.0
    std: float = 0.0


class WidthMasks(NamedTuple):
    """The mask of each width axis, (size,), values in [0, 1]. None: the axis is not growing."""
    embd: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    head: torch.Tensor | None = None


class Masks(nn.Module):
    """
    The growth in progress. All of it is in buffers, so a checkpoint taken during a ramp is complete:
    `embd`, `inner`, `head`, `layer`: bool, True on the newborn coordinates of a grown axis;
    `c`: the mask's present value on them, 0-D. All are None when nothing grows.
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
        # in Python, not in a tensor: which blocks have a gate decides the graph
        self.new_layers = frozenset(() if layer is None else layer.nonzero().flatten().tolist())

    def width(self):
        """The present masks of the width axes, as WidthMasks."""
        new = self.embd, self.inner, self.head
        return WidthMasks(*(None if n is None else torch.where(n, self.c, 1.0) for n in new))

    def gate(self, i):
        """c for a new block, None for an old one."""
        return self.c if i in self.new_layers else None

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # the state dict decides whether a growth is in progress, whatever this model had before
        for name in (*WIDTH_AXES, "layer", "c"):
            value = state_dict.get(prefix + name)
            self.register_buffer(name, None if value is None else torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._find_new_layers(self.layer)


class Linear(nn.Linear):
    """
    nn.Linear with named axes. In: (..., in_axis). Out: (..., out_axis). m: the mask of in_axis,
    (in_axis,), or None. It multiplies the weight's columns: the same as m * x, and cheaper.
    """

    def __init__(self, config, out_axis, in_axis, std=0.02, bias=None):
        sizes = config.axis_sizes()
        super().__init__(sizes[in_axis], sizes[out_axis], config.bias if bias is None else bias)
        self.spec = dict(weight=Spec((out_axis, in_axis), std=std), bias=Spec((out_axis,)))

    def reset_parameters(self):
        pass  # Transformer.init_weights does it, from the specs

    def forward(self, x, m=None):
        return F.linear(x, self.weight if m is None else self.weight * m, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding with named axes."""

    def __init__(self, config, axis):
        super().__init__(config.axis_sizes()[axis], config.n_embd)
        self.spec = dict(weight=Spec((axis, "embd"), std=0.02))

    def reset_parameters(self):
        pass


def float32_or_wider(dtype):
    """The dtype for sums of values in `dtype`: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


class LayerNorm(nn.Module):
    """
    LayerNorm over the residual stream that ignores masked coordinates. With n = sum(m):
    mu = sum(m x) / n, var = sum(m (x - mu)^2) / n, y = m * ((x - mu) / sqrt(var + eps) * w + b).
    At c = 0: plain LayerNorm on the old coordinates, 0 on the new ones. At c = 1: plain LayerNorm
    on all of them. Computed in float32 or wider, as autocast does with layer_norm.
    """

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_embd))
        self.bias = nn.Parameter(torch.empty(config.n_embd)) if config.bias else None
        self.eps = config.norm_eps
        self.spec = dict(weight=Spec(("embd",), mean=1.0), bias=Spec(("embd",)))

    def forward(self, x, m=None):
        if m is None:
            w, b = self.weight, self.bias
            if x.dtype == torch.float32 and w.dtype != torch.float32:  # FSDP gathers them in bfloat16
                w, b = w.float(), None if b is None else b.float()
            return F.layer_norm(x, w.shape, w, b, self.eps)
        x = x.to(float32_or_wider(x.dtype))
        n = m.sum()
        d = x - (m * x).sum(-1, keepdim=True) / n
        var = (m * d * d).sum(-1, keepdim=True) / n
        y = d * torch.rsqrt(var + self.eps) * self.weight
        return m * (y if self.bias is None else y + self.bias)


class RMSNorm(nn.Module):
    """
    RMSNorm (Zhang and Sennrich 2019) that ignores masked coordinates:
    y = m * x / sqrt(sum(m x^2) / sum(m) + eps) * w. Computed in float32 or wider.
    """

    def __init__(self, config, axis="embd"):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.axis_sizes()[axis]))
        self.eps = config.norm_eps
        self.spec = dict(weight=Spec((axis,), mean=1.0))

    def forward(self, x, m=None):
        x = x.to(float32_or_wider(x.dtype))
        if m is None:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
        var = (m * x * x).sum(-1, keepdim=True) / m.sum()
        return x * torch.rsqrt(var + self.eps) * (m * self.weight)


def norm(config, axis="embd"):
    return RMSNorm(config, axis) if config.llama else LayerNorm(config)


def positions_and_mask(config, idx, start=0):
    """
    (positions, attention mask) of the tokens of idx (B, T) from `start` on: (T - start,) and None.

    With config.eot, documents packed in a row are kept apart. Positions, (B, T - start), count from
    the start of the document. The mask, bool (B, 1, T - start, T), is True on the tokens of the same
    document up to the present one. The id between two documents counts as the first token of the
    second. A document that began before the row counts from the start of the row.
    """
    t = torch.arange(idx.size(1), device=idx.device)
    if len(t) > config.block_size:
        raise ValueError(f"sequence of {len(t)} tokens, but block_size is {config.block_size}: "
                         "crop it")
    if config.eot is None:
        return t[start:], None
    docs = (idx == config.eot).cumsum(1)  # (B, T), the number of each token's document in its row
    attn_mask = (docs[:, start:, None] == docs[:, None]) & (t[start:, None] >= t)
    return attn_mask.sum(-1) - 1, attn_mask[:, None]


def parse_rope_scaling(text):
    """
    Parse how a Llama's context was made longer: "linear:FACTOR" (Chen et al. 2023, arXiv 2306.15595)
    or "llama3:FACTOR,LOW,HIGH,CONTEXT". Returns (kind, numbers). Raises ValueError.
    """
    kind, _, numbers = text.partition(":")
    try:
        numbers = [float(n) for n in numbers.split(",")]
        fits = len(numbers) == dict(linear=1, llama3=4)[kind] and numbers[0] > 0 and math.isfinite(sum(numbers))
        fits = fits and (kind == "linear" or numbers[1] < numbers[2])
    except (ValueError, KeyError):
        fits = False
    if not fits:
        raise ValueError(f"rope_scaling={text!r}: must be linear:FACTOR, "
                         "llama3:FACTOR,LOW,HIGH,CONTEXT or empty")
    return kind, numbers


def scaled(freq, scaling):
    """
    The angles per token (head_dim / 2,), slowed down for longer texts. llama3: angles that turn fewer
    than LOW times in CONTEXT tokens are divided by FACTOR. Those that turn more than HIGH times stay.
    Between the two the divisor changes gradually.
    """
    kind, numbers = parse_rope_scaling(scaling)
    if kind == "linear":
        return freq / numbers[0]
    factor, low, high, context = numbers
    kept = ((context * freq / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
    return freq * (kept + (1 - kept) / factor)


def rotary(t, head_dim, theta, dtype, scaling=""):
    """
    Rotary positions (RoFormer, Su et al. 2021): cosines and sines of t / theta^(2 i / head_dim),
    slowed down by `scaling`, see parse_rope_scaling().
    t: (T,) or (B, T). Each result: (T, head_dim / 2) or (B, 1, T, head_dim / 2), in `dtype`, but at
    least float32.
    """
    dtype = float32_or_wider(dtype)
    i = torch.arange(0, head_dim, 2, device=t.device, dtype=dtype)
    freq = theta ** (-i / head_dim)
    angles = t.to(dtype)[..., None] * (scaled(freq, scaling) if scaling else freq)
    angles = angles if t.dim() == 1 else angles[:, None]
    return angles.cos(), angles.sin()


def apply_rotary(x, rope):
    """Rotate the pairs of coordinates i, i + head_dim / 2 of x (B, n_head, T, head_dim)."""
    cos, sin = rope
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q, k, v, attn_mask=None, causal=False, dropout=0.0):
    """
    softmax(q k^T / sqrt(head_dim)) v. k, v: (B, n_head, T, head_dim). q: (B, n_head, N, head_dim), of
    the last N positions. attn_mask: None, or bool, False = not seen: (B, 1, 1, T) or (B, 1, N, T).
    causal: a position sees itself and those before it; an attn_mask given besides must be causal too.
    """
    N, T = q.size(2), k.size(2)
    if torch.compiler.is_compiling() and q.device.type == "cpu" and q.dtype == torch.bfloat16 and T <= 1024:
        return attend_plainly(q, k, v, attn_mask, causal, dropout)
    if causal and attn_mask is None and 1 < N < T:  # is_causal would take q for the first positions
        attn_mask = torch.ones(N, T, dtype=torch.bool, device=q.device).tril(T - N)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, dropout_p=dropout,
                                          is_causal=causal and attn_mask is None and N > 1)


def attend_plainly(q, k, v, attn_mask, causal, dropout, rows=128):
    """
    attend() by plain products, for compiled bfloat16 on a CPU: there the kernel's backward took a third
    of a small model's step (torch 2.13, AMD EPYC), and this takes about half the time. It goes through
    `rows` queries at a time: the scores stay in the cache, and causal models skip most masked ones.
    Beyond 1024 positions it gains nothing, and its memory grows with T^2.
    """
    T, start, y = k.size(2), k.size(2) - q.size(2), []
    q = q / math.sqrt(q.size(-1))
    for i in range(0, q.size(2), rows):
        j = min(start + i + rows, T) if causal else T  # these queries see the keys before j
        scores = q[:, :, i:i + rows] @ k[:, :, :j].transpose(2, 3)
        if causal:
            hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(start + i + 1)
            scores = scores.masked_fill(hidden, -math.inf)
        if attn_mask is not None:
            seen = attn_mask[..., :j] if attn_mask.size(2) == 1 else attn_mask[:, :, i:i + rows, :j]
            scores = scores.masked_fill(~seen, -math.inf)
        y.append(F.dropout(scores.softmax(-1), dropout) @ v[:, :, :j])
    return torch.cat(y, dim=2)


# -----------------------------------------------------------------------------
# the output head's cross-entropy without all logits in memory: the head runs over a chunk of rows at
# a time and computes their gradients right away

# logits in a chunk: 64 MiB in float32 on a CPU. GPUs have room for more, and each chunk costs them
# a pass over the gradient of the head's weights
LOGITS_AT_ONCE = dict(cpu=1 << 24, cuda=1 << 28)


def target_count(targets, n_targets=None):
    """
    What a summed loss is divided by, 0-D: the number of targets that are not ignored, or n_targets if given.
    With gradient accumulation, that is the mean number over all micro-batches. The mean of their losses
    is then the loss of the whole batch.
    """
    return (targets >= 0).sum().clamp_min(1) if n_targets is None else n_targets


def cross_entropy(logits, targets, n_targets=None):
    """
    The mean loss in nats per target, 0-D: F.cross_entropy with ignore_index=-1, but 0 instead of
    NaN when all are ignored. logits: (N, V). targets: (N,). n_targets: see target_count().
    """
    return F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum") / target_count(targets, n_targets)


class RowLoss(nn.Module):
    """
    logits (R, V), targets (R,), -1 = ignore -> (the summed loss, 0-D, in float32 or wider; its
    gradient with respect to the logits, in their dtype). It is a module so that it can be compiled
    (run/compiler.py). Its shapes do not depend on the sizes that grow.
    """

    def forward(self, logits, targets):
        wanted = targets >= 0
        index = targets.clamp_min(0)[:, None]
        logp = F.log_softmax(logits.to(float32_or_wider(logits.dtype)), -1)  # (R, V)
        nats = -logp.gather(1, index)[:, 0]
        grad = logp.exp_()  # softmax minus one-hot, in place to save memory
        grad.scatter_add_(1, index, grad.new_full(index.shape, -1.0))
        grad.mul_(wanted[:, None])
        return (nats * wanted).sum(), grad.to(logits.dtype)


class HeadLoss(torch.autograd.Function):
    """The mean loss of x @ weight.T + bias; forward computes the gradients too, chunk by chunk."""

    @staticmethod
    def forward(ctx, x, weight, bias, targets, n, row_loss, rows):
        sums = float32_or_wider(x.dtype)
        total = x.new_zeros((), dtype=sums)
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
                None if db is None else (db * scale).to(dx.dtype), None, None, None, None)


def head_loss(x, weight, targets, bias=None, row_loss=None, n_targets=None):
    """
    cross_entropy(F.linear(x, weight, bias), targets, n_targets), equal up to rounding, with less memory.
    x: (N, n_embd). weight: (V, n_embd). bias: (V,) or None. targets: (N,). Returns the mean loss in
    nats per target, 0-D. A chunk has as many rows as LOGITS_AT_ONCE allows. All chunks but the last
    are equal, so row_loss, a RowLoss, sees at most two shapes.
    """
    device, n = x.device.type, target_count(targets, n_targets)
    at_once = LOGITS_AT_ONCE.get(device, LOGITS_AT_ONCE["cpu"])
    n_chunks = -(-len(x) // max(1, at_once // len(weight)))
    rows = -(-len(x) // max(1, n_chunks)) or 1
    if not torch.is_grad_enabled():
        sums = [F.cross_entropy(F.linear(a, weight, bias), b, ignore_index=-1, reduction="sum")
                for a, b in zip(x.split(rows), targets.split(rows))]
        return sum(sums) / n
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = (t if t is None else t.to(dtype) for t in (x, weight, bias))
    return HeadLoss.apply(x, weight, bias, targets, n, row_loss or RowLoss(), rows)
