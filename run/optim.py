"""
What changes the weights: the learning rate, fused AdamW, and Muon for the blocks' matrices.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum
by roughly the nearest orthogonal matrix, found by a few matrix products (Newton-Schulz). All matrices
of one shape form one batch, so a step has few kernels at any depth. The products use the number format
that is fast on the device. With several processes, each orthogonalises its share of a shape's matrices.
They are sent in batches of AT_ONCE entries per process: one collective for whole matrices, two for
sharded ones.
"""
import math

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from grow import role
from run.parallel.shard import all_gather_owned, from_owners, owned, to_owners

# what a run that warms up again may change: learning rates of the steps to come
REWARM_MAY_CHANGE = {"schedule", "decay_frac", "decay_iters", "min_lr_frac", "learning_rate", "muon_learning_rate"}
# entries of the matrices that Muon works on at a time: on a CPU they should fit the cache, elsewhere
# fewer kernels are faster (128 MiB a tensor in float32)
AT_ONCE = dict(cpu=1 << 18)
AT_ONCE_ELSEWHERE = 1 << 25


def lr_scale(config, it, rewarm=None, key="learning_rate"):
    """
    The learning rate `key` of iteration `it`, as a share of its peak. rewarm: (iteration where the schedule
    started again, {key: share of its peak there}, iterations of its warmup).
    """
    began, start, warmup = rewarm or (0, 0.0, config.warmup_iters)
    if isinstance(start, dict):  # older checkpoints have one number for all rates
        start = start[key]
    it, end = it - began, config.max_iters - began
    scale = start + (1 - start) * ((it + 1) / warmup) if it + 1 < warmup else 1.0
    low, span = config.min_lr_frac, config.decay_span(began)
    if config.schedule == "cosine":
        done = max(0, it - warmup) / max(1, end - warmup)
        scale *= low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "wsd" and end - it < span:
        scale *= low + (1 - low) * ((end - it) / span)
    return scale


def make_optimizers(config, model, dtype=torch.float32, compiled=False):
    """
    AdamW, or Muon for the blocks' matrices and AdamW for the rest. Weight decay on matrices only.
    dtype: what the run autocasts to; compiled: whether it compiles. Before step(), set `found_inf` of
    each, a 0-D float on the device: 1 skips the step there, without a wait on the host.
    """
    named = list(model.named_parameters())

    def group(r, **kw):
        return dict(params=[p for n, p in named if role(n) == r], role=r, **kw)
    adamw = [group("embedding", weight_decay=config.weight_decay), group("vector", weight_decay=0.0)]
    optimizers = []
    if config.optimizer == "muon":
        matrices = [group("matrix", weight_decay=config.weight_decay)]
        # on a CPU compiling took 10 s per model size, and a step was no faster
        compiled = compiled and next(model.parameters()).device.type != "cpu"
        optimizers.append(Muon(matrices, lr=config.muon_learning_rate,
                               dtype=products_dtype(dtype), compiled=compiled,
                               several=dist.is_initialized() and dist.get_world_size() > 1))
    else:
        adamw.insert(0, group("matrix", weight_decay=config.weight_decay))
    optimizers.append(torch.optim.AdamW(adamw, lr=config.learning_rate,
                                        betas=(config.beta1, config.beta2), fused=True))
    for o in optimizers:  # the setting with its peak rate
        o.rate = "muon_learning_rate" if isinstance(o, Muon) else "learning_rate"
    return optimizers


def products_dtype(dtype):
    """Muon's number format in a run that autocasts to `dtype`. float16's range is too small."""
    if dtype == torch.float16 and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32 if dtype == torch.float16 else dtype


def newton_schulz(x, coefficients, steps):
    """
    `steps` quintic steps towards the orthogonal factor of each matrix of x, (N, a, b). Its singular
    values must be at most 1; five steps bring them to 0.7 to 1.2. The singular vectors stay.
    """
    a, b, c = coefficients
    wide = x if x.size(1) <= x.size(2) else x.mT  # the smaller of the two Gram matrices
    exact = x.dtype.itemsize >= 4 and x.device.type == "cpu"  # elsewhere float32 may be TF32
    if exact and 2 * wide.size(2) >= 3 * wide.size(1):
        wide = small_side(wide @ wide.mT, coefficients, steps) @ wide
    else:
        for _ in range(steps):
            gram = wide @ wide.mT
            poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            wide = torch.baddbmm(wide, poly, wide, beta=a)
    return wide if x.size(1) <= x.size(2) else wide.mT


def small_side(gram, coefficients, steps):
    """
    The product of all steps for matrices with Gram matrices `gram`, (N, a, a): every step is a
    polynomial of `gram`. Long matrices need fewer products this way. But errors grow with each further
    step, so 16-bit formats and TF32 are too coarse.
    """
    a, b, c = coefficients
    total = torch.eye(gram.size(1), dtype=gram.dtype, device=gram.device).expand_as(gram)
    for step in range(steps):
        poly = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        total = torch.baddbmm(total, poly, total, beta=a)
        if step < steps - 1:
            half = torch.baddbmm(gram, poly, gram, beta=a)
            gram = torch.baddbmm(half, half, poly, beta=a)
    return total


def advance(grad, buffer, bad, group):
    """
    (the new momentum, the matrices to orthogonalise) for a stack of matrices or of their rows.
    grad, buffer: (N, a, b); bad: 0-D bool, True keeps the momentum and ignores `grad`, which may then
    hold NaN.
    """
    grad, m = grad.masked_fill(bad, 0), group["momentum"]
    buffer = torch.where(bad, buffer, torch.lerp(buffer, grad, 1 - m))
    return buffer, torch.lerp(grad, buffer, m) if group["nesterov"] else buffer


def orthogonal(x, group, dtype):
    """The approximate orthogonal factors of a stack of whole matrices, in `dtype`."""
    norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)  # bounds the singular values
    return newton_schulz((x / norm.clamp_min(group["eps"])).to(dtype), group["ns_coefficients"],
                         group["ns_steps"])


def muon_update(grad, buffer, bad, scale, group, dtype):
    """
    (the new momentum, what to add to the weights) for a stack of matrices of one shape.
    grad, buffer: (N, a, b); bad: see advance(); scale: 0-D, minus the learning rate; dtype: of the
    products. What changes between steps is a tensor, so each shape is compiled once.
    """
    buffer, x = advance(grad, buffer, bad, group)
    return buffer, orthogonal(x, group, dtype).to(grad.dtype) * scale


class Muon(torch.optim.Optimizer):
    """
    torch.optim.Muon with the same mathematics and state dict, but batched and in `dtype`. The host never
    waits: `found_inf`, if set, is a 0-D float that skips a step on the device, as in fused AdamW.
    several: the processes share the work, and all must step; else each does all of it. Sharded
    parameters (DTensors of rows) always share it.
    """

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True,
                 ns_coefficients=(3.4445, -4.7750, 2.0315), eps=1e-7, ns_steps=5,
                 adjust_lr_fn=None, dtype=torch.float32, compiled=False, several=False):
        super().__init__(params, dict(
            lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, eps=eps,
            ns_coefficients=ns_coefficients, ns_steps=ns_steps, adjust_lr_fn=adjust_lr_fn))
        self.dtype, self.found_inf, self.several = dtype, None, several
        self.update, self.advance, self.orthogonal = (
            torch.compile(f, dynamic=False, fullgraph=True) if compiled else f
            for f in (muon_update, advance, orthogonal))

    def add_param_group(self, group):
        super().add_param_group(group)
        for p in group["params"]:
            if p.dim() != 2:
                raise ValueError(f"Muon is for matrices, not for a parameter of shape {tuple(p.shape)}")

    def load_state_dict(self, saved):
        """Also loads torch.optim.Muon's; settings that it lacks stay as they are."""
        groups = [{**mine, **theirs} for mine, theirs in
                  zip(self.param_groups, saved["param_groups"], strict=True)]
        super().load_state_dict({**saved, "param_groups": groups})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for alike in by_shape(p for p in group["params"] if p.grad is not None):
                together = isinstance(alike[0], DTensor) or self.several
                for params in pieces(alike, dist.get_world_size() if together else 1):
                    self.step_stack(group, params, together)

    def step_stack(self, group, params, together):
        """Step `params`, all of one shape: see muon_update(). together: all processes share the work."""
        shape, lr = params[0].shape, group["lr"]
        for q in params:
            if "momentum_buffer" not in self.state[q]:
                self.state[q]["momentum_buffer"] = torch.zeros_like(q)
        buffers = local(self.state[q]["momentum_buffer"] for q in params)
        grads = local(q.grad for q in params)
        settings = {k: group[k] for k in ("momentum", "nesterov", "eps", "ns_coefficients", "ns_steps")}
        mesh, params = getattr(params[0], "device_mesh", None), local(params)
        bad = params[0].new_zeros(()) if self.found_inf is None else self.found_inf.to(params[0].dtype)
        args = (torch.stack(grads), torch.stack(buffers), bad > 0,
                (bad - 1) * (lr * rate_of_shape(shape, group["adjust_lr_fn"])), settings, self.dtype)
        buffer, change = self.update_together(*args, shape[0], mesh) if together else self.update(*args)
        torch._foreach_copy_(buffers, buffer.unbind())
        torch._foreach_mul_(params, (bad - 1) * (lr * group["weight_decay"]) + 1)
        torch._foreach_add_(params, change.unbind())

    def update_together(self, grad, buffer, bad, scale, group, dtype, n_rows, mesh):
        """
        muon_update() shared by all processes. Each has all matrices or, with a mesh, some rows of every
        matrix of n_rows rows. Each orthogonalises the matrices that it owns.
        """
        buffer, x = self.advance(grad, buffer, bad, group)
        n = len(x)
        mine = x[owned(n, dist.get_rank(), dist.get_world_size())] if mesh is None else \
            to_owners(x, n_rows, mesh)
        done = self.orthogonal(mine, group, dtype) if len(mine) else mine.to(dtype)
        x = all_gather_owned(done, n) if mesh is None else from_owners(done, n, mesh)
        return buffer, x.to(grad.dtype) * scale


def local(tensors):
    """This process's part of each tensor: its rows, if it is sharded."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def by_shape(params):
    """Lists of non-empty parameters of the same shape, dtype and device."""
    alike = {}
    for p in params:
        if p.numel():
            alike.setdefault((p.shape, p.dtype, p.device), []).append(p)
    return alike.values()


def pieces(alike, world=1):
    """
    Split matrices of one shape into lists of AT_ONCE entries on each of `world` processes. A full list
    has the same number of matrices for every process, at least one.
    """
    each = -(-alike[0].numel() // (world if isinstance(alike[0], DTensor) else 1))
    n = AT_ONCE.get(alike[0].device.type, AT_ONCE_ELSEWHERE) // each // world * world or world
    return [alike[i:i + n] for i in range(0, len(alike), n)]


def rate_of_shape(shape, how):
    """The factor on Muon's learning rate for a matrix of `shape`. how: see torch.optim.Muon."""
    rows, columns = shape
    if how == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    return math.sqrt(max(1, rows / columns))
