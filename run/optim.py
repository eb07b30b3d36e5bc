"""
What changes the weights: the learning rate, fused AdamW, and Muon for the blocks' matrices.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum
by the nearest orthogonal matrix, about, found by a few products (Newton-Schulz). All matrices of one
shape are one batch here, so a step has few kernels however many layers there are, and the products
are in the number format that is fast on the device.
"""
import math

import torch

from grow import role

# entries of the matrices that Muon works on at a time: on a GPU few kernels count (128 MiB in float32
# a tensor), on a CPU that they stay in its cache (three matrices of 192 x 192: 219 ms a step of six
# layers where all at once took 292)
AT_ONCE = dict(cpu=1 << 17)
AT_ONCE_ELSEWHERE = 1 << 25


def learning_rate(config, it, last_growth):
    """The learning rate of iteration `it`, as a share of the peak."""
    scale = min(1.0, (it + 1) / config.warmup_iters) if config.warmup_iters else 1.0
    if last_growth is not None and config.rewarm_iters:
        scale *= min(1.0, (it - last_growth + 1) / config.rewarm_iters)
    low = config.min_lr_frac
    if config.schedule == "cosine":
        done = max(0, it - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
        scale *= low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "wsd" and config.decay_frac:
        left = (config.max_iters - it) / (config.decay_frac * config.max_iters)
        scale *= low + (1 - low) * min(1.0, left)
    return scale


def make_optimizers(config, model, dtype=torch.float32, compiled=False):
    """
    AdamW, or Muon for the blocks' matrices and AdamW for the rest. Weight decay on matrices.
    dtype: what the run autocasts to; compiled: whether it compiles. Before step(), set `found_inf`
    of each: a 0-D float on the device, 1 skips the step there, without the host knowing.
    """
    named = list(model.named_parameters())

    def group(r, **kw):
        return dict(params=[p for n, p in named if role(n) == r], role=r, **kw)
    adamw = [group("embedding", weight_decay=config.weight_decay), group("vector", weight_decay=0.0)]
    optimizers = []
    if config.optimizer == "muon":
        matrices = [group("matrix", weight_decay=config.weight_decay)]
        # on a CPU compiling took 10 s a size of model, and a step was no faster
        compiled = compiled and next(model.parameters()).device.type != "cpu"
        optimizers.append(Muon(matrices, lr=config.muon_learning_rate,
                               dtype=products_dtype(dtype), compiled=compiled))
    else:
        adamw.insert(0, group("matrix", weight_decay=config.weight_decay))
    optimizers.append(torch.optim.AdamW(adamw, lr=config.learning_rate,
                                        betas=(config.beta1, config.beta2), fused=True))
    for o in optimizers:
        for g in o.param_groups:
            g["peak_lr"] = g["lr"]
    return optimizers


def products_dtype(dtype):
    """Muon's number format in a run that autocasts to `dtype`. float16 has too little range."""
    if dtype == torch.float16 and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if dtype == torch.float16 else dtype


def newton_schulz(x, coefficients, steps):
    """
    Five quintic steps towards the orthogonal factor of each matrix of x, (N, a, b), whose singular
    values are at most 1: they come to about 1, between 0.7 and 1.2, and their vectors stay.
    """
    a, b, c = coefficients
    wide = x if x.size(1) <= x.size(2) else x.mT  # the smaller of the two Gram matrices
    for _ in range(steps):
        gram = wide @ wide.mT
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.baddbmm(wide, poly, wide, beta=a)
    return wide if x.size(1) <= x.size(2) else wide.mT


def muon_update(grad, buffer, bad, scale, group, dtype):
    """
    The new momentum and what to add to the weights, of a stack of matrices of one shape.
    grad, buffer: (N, a, b); bad: 0-D bool, True leaves the momentum as it was; scale: 0-D, minus the
    learning rate; dtype: of the products. What varies from step to step is a tensor, so that this
    is compiled once for each shape. Nothing in `grad` matters when `bad`, NaN neither.
    """
    grad, m = grad.masked_fill(bad, 0), group["momentum"]
    buffer = torch.where(bad, buffer, torch.lerp(buffer, grad, 1 - m))
    x = torch.lerp(grad, buffer, m) if group["nesterov"] else buffer
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)  # no singular value is larger
    x = newton_schulz((x / norm.clamp_min(group["eps"])).to(dtype), group["ns_coefficients"],
                      group["ns_steps"])
    return buffer, x.to(grad.dtype) * scale


class Muon(torch.optim.Optimizer):
    """
    torch.optim.Muon, the same mathematics and state dict, but batched, in `dtype`, and never waited
    for: `found_inf`, if set, a 0-D float, skips a step on the device, as it does in fused AdamW.
    A process may own a share of the matrices: those without a gradient are left alone.
    """

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
                 ns_coefficients=(3.4445, -4.7750, 2.0315), eps=1e-7, ns_steps=5,
                 adjust_lr_fn=None, dtype=torch.float32, compiled=False):
        super().__init__(params, dict(
            lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, eps=eps,
            ns_coefficients=ns_coefficients, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn))
        self.dtype, self.found_inf = dtype, None
        self.update = torch.compile(muon_update, dynamic=False, fullgraph=True) if compiled \
            else muon_update

    def add_param_group(self, group):
        super().add_param_group(group)
        for p in group["params"]:
            if p.dim() != 2:
                raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(p.shape)}")

    def __getstate__(self):  # for copies and pickles: torch's own keeps what it knows of alone
        mine = {k: getattr(self, k) for k in ("dtype", "found_inf", "update")}
        return {**super().__getstate__(), **mine}

    def load_state_dict(self, saved):
        """torch.optim.Muon's too; settings that it says nothing of stay as they are."""
        groups = [{**mine, **theirs} for mine, theirs in
                  zip(self.param_groups, saved["param_groups"], strict=True)]
        super().load_state_dict({**saved, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for params in stacks(p for p in group["params"] if p.grad is not None):
                self.step_stack(group, params)

    def step_stack(self, group, params):
        """Step `params`, which are of one shape."""
        p, lr = params[0], group["lr"]
        bad = p.new_zeros(()) if self.found_inf is None else self.found_inf.to(p.dtype)
        for q in params:
            if "momentum_buffer" not in self.state[q]:
                self.state[q]["momentum_buffer"] = torch.zeros_like(q)
        buffers = [self.state[q]["momentum_buffer"] for q in params]
        settings = {k: group[k] for k in ("momentum", "nesterov", "eps", "ns_coefficients", "ns_steps")}
        buffer, update = self.update(
            torch.stack([q.grad for q in params]), torch.stack(buffers), bad > 0,
            (bad - 1) * (lr * rate_of_shape(p.shape, group["adjust_lr_fn"])), settings, self.dtype)
        torch._foreach_copy_(buffers, buffer.unbind())
        torch._foreach_mul_(params, (bad - 1) * (lr * group["weight_decay"]) + 1)
        torch._foreach_add_(params, update.unbind())


def stacks(params):
    """Lists of parameters of one shape (and device), AT_ONCE entries together, or a larger one."""
    by_shape = {}
    for p in params:
        if p.numel():
            by_shape.setdefault((p.shape, p.dtype, p.device), []).append(p)
    for alike in by_shape.values():
        at_once = AT_ONCE.get(alike[0].device.type, AT_ONCE_ELSEWHERE)
        n = max(1, at_once // alike[0].numel())
        yield from (alike[i:i + n] for i in range(0, len(alike), n))


def rate_of_shape(shape, how):
    """The learning rate of a matrix of `shape` over Muon's; how: see torch.optim.Muon."""
    rows, columns = shape
    if how == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
