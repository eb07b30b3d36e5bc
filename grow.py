"""
Growing a model and its optimizer. The same code serves every layer, dimension, model and optimizer,
because every parameter names its axes.

One rule grows a tensor, a parameter or optimizer state of its shape: make the larger tensor, fill it
with new values, write the old tensor over its leading corner. New coordinates go at the end of an
axis; only new layers can go between old ones. Masks (layers.py) hide the new values at first and
let them in over a ramp (Masked Structural Growth, Yao et al., ICLR 2024,
https://arxiv.org/abs/2305.02869, section 3).
"""
import re
from dataclasses import replace

import torch
import torch.nn as nn
from torch.distributed.tensor import DTensor, distribute_tensor

from layers import WIDTH_AXES
from model import GROWABLE


def grow(model, optimizer=None, *, n_layer=None, n_head=None, n_embd=None, n_inner=None,
         init=None, interleave=False, masked=True):
    """
    Grow `model`, and `optimizer` with it, to the given sizes. The grown model computes the same
    function as before, whatever `init` does. Then call `set_mask` to let the new weights in.
    New layers are copies of the old ones, or random if there were none.

    optimizer: one of torch.optim's or a list of them, or another whose state has the names in STATE.
    State grows with its parameter: new entries of momentum start at zero, those of squared gradients
    and step sizes at the mean of the old ones. A new layer starts with its source's state, but with
    no momentum; with Adam, AdamW and Muon with none, so that bias correction starts afresh.
    init: a function (new, old, spec) that fills the tensor `new`; `old` is None for a random
    layer. None: each parameter's own initial distribution.
    interleave: put each new layer right after its source. Otherwise new layers go on top, in order.
    masked: False leaves out the masks, and `init` also decides the old entries. This changes the
    function unless `init` prevents it. It is for other growth operators (run/operators.py).

    Returns (model, optimizer). The old model is used up: its tensors are freed one by one as the
    new ones are made, and its gradients are dropped. The optimizer is the same object; it now
    holds the new parameters, and still those that were not the model's.
    Raises ValueError, before anything is changed, if the sizes are no growth of this model, the
    ramp of an earlier growth is not over, or an optimizer's state cannot grow (LBFGS's).
    """
    wanted = dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_inner=n_inner)
    config = grown_config(model.config, **wanted)
    if model.masks.c is not None:
        raise ValueError(f"asked to grow to {describe(wanted)} while the ramp of the last growth "
                         "is still on: end it first with set_mask(model, 1)")
    if not (init is None or callable(init)):
        raise ValueError(f"init={init!r}: must be a function (new, old, spec) that fills `new`, or None")
    optimizers = [] if optimizer is None else optimizer if isinstance(optimizer, (list, tuple)) else [optimizer]

    with torch.no_grad():
        layers = layer_sources(model.config.n_layer, config.n_layer, interleave)
        new = _grow_tensors(model, config, optimizers, layers, init, masked)
    if masked:
        first = next(new.parameters())
        new.masks.start(_newborn(model.config, config, layers), first.device, first.dtype)
    return new, optimizer


def set_mask(model, value):
    """
    Set the mask of the new coordinates to `value`, from 0 (hidden) to 1. The change is in place:
    nothing recompiles, no device sync. At 1 the masks are removed.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"mask value {value}: must be between 0 and 1")
    if value == 1:
        model.masks.stop()
    elif model.masks.c is None:
        raise ValueError(f"mask value {value}, but nothing is growing: call grow() first")
    else:
        model.masks.c.fill_(value)


def grown_config(config, **sizes):
    """The config after growing to `sizes` (None = unchanged). ValueError if that is no growth."""
    sizes = {k: v for k, v in sizes.items() if v is not None}
    have = {k: getattr(config, k) for k in sizes}
    for k, v in sizes.items():
        if isinstance(v, bool) or not isinstance(v, int):
            raise ValueError(f"asked for {k}={v!r}: sizes are whole numbers")
        if v < have[k]:
            raise ValueError(f"asked for {k}={v}, but the model has {k}={have[k]}: "
                             f"models only grow, ask for more than {have[k]}")
    if sizes == have:
        raise ValueError(f"asked for {describe(sizes) or 'no sizes'}, which is no growth: the "
                         f"model has {describe(sizes_of(config))}")
    return replace(config, **sizes)


def layer_sources(n_old, n_new, interleave=False):
    """
    For each of the n_new layers: (the old layer it comes from, or None if random; is it new?).
    >>> layer_sources(2, 4)
    [(0, False), (1, False), (0, True), (1, True)]
    >>> layer_sources(2, 4, interleave=True)
    [(0, False), (0, True), (1, False), (1, True)]
    """
    if n_old == 0:
        return [(None, True)] * n_new
    if not interleave:
        return [(i % n_old, i >= n_old) for i in range(n_new)]
    sources = [((i + 1) * n_old - 1) // n_new for i in range(n_new)]
    return [(s, i > 0 and sources[i - 1] == s) for i, s in enumerate(sources)]


def grow_tensor(old, spec, shape, fill, device=None, dtype=None, keep_old=True):
    """A tensor of `shape`, filled by `fill`, with `old` written over its leading corner."""
    if old is not None and tuple(old.shape) == tuple(shape):
        return old
    if isinstance(old, DTensor):  # sharded: gathered for a moment, the same on every rank
        return shard_like(grow_tensor(old.full_tensor(), spec, shape, fill, keep_old=keep_old), old)
    new = torch.empty(shape, device=device if old is None else old.device,
                      dtype=dtype if old is None else old.dtype)
    fill(new, old, spec)
    if old is not None and keep_old:
        new[tuple(slice(n) for n in old.shape)] = old
    return new


def shard_like(whole, like):
    """`whole`, which every rank has, sharded as `like` is. A plain `like`: unchanged."""
    if not isinstance(like, DTensor) or isinstance(whole, DTensor):
        return whole
    shards = distribute_tensor(whole, like.device_mesh, like.placements, src_data_rank=None)
    return shards.clone()  # not a view, which would keep the whole


def put(model, params):
    """Set `params`, name -> Parameter, in the model."""
    for name, p in params.items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, p)


def describe(sizes):
    return " ".join(f"{k}={v}" for k, v in sizes.items() if v is not None)


# -----------------------------------------------------------------------------
# how new entries are filled: functions (new, old, spec) that write all of `new`

def fill_normal(new, old, spec):
    new.normal_(spec.mean, spec.std)


def fill_zero(new, old, spec):
    """Momentum."""
    new.zero_()


def fill_square(new, old, spec):
    """
    Running means of squared gradients (Adam's exp_avg_sq), and what else sets the size of updates:
    newborn coordinates start from the mean of the old ones in their row and column. Why not zero:
    under the old `step` Adam's first updates would be sqrt((1 - beta1)^2 / (1 - beta2)) = 3.2 times
    the learning rate with beta2 = 0.999, and up to 6.8 times later. This way they stay near 1 while
    gradients are of the old ones' size.
    """
    new.zero_()
    if old.numel() == 0:
        return
    filled = [slice(n) for n in old.shape]
    new[tuple(filled)] = old
    for axis, (n, size) in enumerate(zip(old.shape, new.shape)):
        mean = new[tuple(filled)].mean(axis, keepdim=True)
        filled[axis] = slice(n, size)
        new[tuple(filled)] = mean
        filled[axis] = slice(size)


# optimizer state of a parameter's shape -> how new entries are filled (None: with the new weights)
STATE = {**dict.fromkeys(("exp_avg", "momentum_buffer", "grad_avg", "prev"), fill_zero),
         **dict.fromkeys(("exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum",
                          "variance", "row_var", "col_var", "step_size"), fill_square), "ax": None}
SUMMED = dict(row_var=-1, col_var=-2)  # Adafactor's: of length 1 along that axis
FRESH = ("Adam", "AdamW", "Muon")  # without state their updates are at most the learning rate


# -----------------------------------------------------------------------------
# the bookkeeping

def _newborn(old, new, layers):
    """For each axis that grew: axis -> bool (size,), True on the new coordinates."""
    before, after = old.axis_sizes(), new.axis_sizes()
    born = {a: torch.arange(after[a]) >= before[a] for a in WIDTH_AXES if after[a] > before[a]}
    if new.n_layer > old.n_layer:
        born["layer"] = torch.tensor([is_new for _, is_new in layers])
    return born


def _grow_tensors(model, config, optimizers, layers, init, masked):
    """A model of `config` made from the old tensors. Empties `model`, updates the optimizers."""
    with torch.device("meta"):
        new = type(model)(config)
    specs, shapes = new.specs(), {n: p.shape for n, p in new.named_parameters()}
    old = dict(model.named_parameters())
    some = next(iter(old.values()))
    # old parameter, or None -> [(new parameter made from it, is it in a new layer?), ...]
    heirs = {}
    for name in shapes:
        source, is_new = source_of(name, layers)
        heirs.setdefault(source, []).append((name, is_new))
    # these two raise ValueError, so they come before anything is changed
    groups = _param_groups(optimizers, old, heirs)
    _check_state(optimizers, old, [groups[name] for name, _ in heirs.get(None, ())])

    made = {}
    # largest first: this keeps the peak memory low
    for source in sorted(heirs, key=lambda s: -old[s].numel() if s else 0):
        p = old.get(source)
        for name, is_new in heirs[source]:
            tensor = grow_tensor(None if p is None else p.detach(), specs[name], shapes[name],
                                 init or fill_normal, some.device, some.dtype,
                                 keep_old=masked or init is None)
            tensor = shard_like(tensor, some)
            if is_new and p is not None and tensor.shape == p.shape:
                tensor = tensor.clone()
            made[name] = nn.Parameter(tensor, requires_grad=p is None or p.requires_grad)
        if p is not None:
            original, = (made[name] for name, is_new in heirs[source] if not is_new)
            copies = [made[name] for name, is_new in heirs[source] if is_new]
            for o in optimizers:
                _move_state(o, p, original, specs[source], copies)
            p.grad = None
            _free(p, original)

    put(new, made)
    ours = {id(p) for p in old.values()}
    for group in (g for o in optimizers for g in o.param_groups):
        others = [p for p in group["params"] if id(p) not in ours]  # of another module
        group["params"][:] = [made[name] for name in shapes if groups[name] is group] + others  # LBFGS holds this list
    _keep_modes(model, new, layers)
    return new


def _keep_modes(old, new, layers):
    """Each module keeps its source's training or evaluation mode, a random layer the model's."""
    modes = {name: module.training for name, module in old.named_modules()}
    for name, module in new.named_modules():
        source, _ = source_of(name, layers)
        module.training = modes.get(source, old.training)


def _free(p, heir):
    """Free the old parameter's memory now, even if something else still refers to it."""
    if not isinstance(p, DTensor):
        p.data = torch.empty(0, device=p.device, dtype=p.dtype)
    elif p.shape != heir.shape:  # otherwise both are the same shards
        p.to_local().untyped_storage().resize_(0)


def source_of(name, layers):
    """(The old parameter or module that `name` is made from, or None; is it in a new layer?)."""
    match = re.match(r"blocks\.(\d+)(.*)", name)
    if match is None:
        return name, False
    i, is_new = layers[int(match[1])]
    return (None if i is None else f"blocks.{i}{match[2]}"), is_new


def _state_shape(key, shape):
    """The shape of optimizer state `key` of a parameter of `shape`."""
    return [1 if i - len(shape) == SUMMED.get(key) else n for i, n in enumerate(shape)]


def _check_state(optimizers, params, random):
    """Raises ValueError for state that cannot grow. random: param_groups of layers without a source."""
    for o in optimizers:
        kind, adds = type(o).__name__, any(g is mine for g in random for mine in o.param_groups)
        for name, p in params.items():
            for key, value in o.state.get(p, {}).items():
                if isinstance(value, (int, float, type(None))) or torch.is_tensor(value) and not value.dim():
                    continue
                if key not in STATE or list(getattr(value, "shape", ())) != _state_shape(key, p.shape):
                    raise ValueError(f"{kind}'s state {key!r} of {name} cannot grow: make a new {kind} "
                                     "after grow(model), or use another optimizer, like AdamW")
                if adds and kind not in FRESH and STATE[key] is not fill_zero:
                    raise ValueError(f"{kind}'s state {key!r}: the new layers have no source to take it "
                                     "from: start with n_layer=1, or use AdamW or Muon")


def _move_state(optimizer, old, new, spec, copies=()):
    """Move the optimizer state of `old` to `new`; give its `copies` the state they start with."""
    state = optimizer.state.pop(old, None)
    if state is None:
        return
    if type(optimizer).__name__ in FRESH:
        copies = ()  # they start without state
    for p in (new, *copies):
        optimizer.state[p] = {}
    for key in list(state):
        value = state.pop(key)  # popped: the old tensor is freed before the next is made
        if torch.is_tensor(value) and value.dim():
            fill = STATE[key] or (lambda x, *_: x.copy_(new.full_tensor() if isinstance(new, DTensor) else new))
            value = grow_tensor(value, spec, _state_shape(key, new.shape), fill)
        optimizer.state[new][key] = value
        for p in copies:
            if torch.is_tensor(value):
                value = torch.zeros_like(value) if STATE.get(key) is fill_zero else value.clone()
            optimizer.state[p][key] = value


def _param_groups(optimizers, old, heirs):
    """New parameter -> its param_group, or None: that of its source or, in a random layer, that of its role."""
    every = [group for o in optimizers for group in o.param_groups]
    owner = {id(p): group for group in every for p in group["params"]}
    found = {name: owner.get(id(old[source])) for source in heirs if source for name, _ in heirs[source]}
    for name, _ in heirs.get(None, ()):
        fitting = [group for group in every if len(every) == 1 or group.get("role") == role(name)]
        if every and not fitting:
            raise ValueError(f"no param_group for {name}: the model has no block to go by, so give the "
                             "optimizer's groups a 'role' ('matrix', 'embedding' or 'vector')")
        found[name] = fitting[0] if fitting else None
    return found


def role(name):
    """A parameter's kind, for optimizers: "vector" (bias, norm), "matrix" (of a block), "embedding" (the rest)."""
    if name.endswith("bias") or ".ln_" in name or name.startswith("ln_"):
        return "vector"
    return "matrix" if name.startswith("blocks.") else "embedding"


def sizes_of(config):
    """The four sizes that can grow, as a dict."""
    return {k: v for k, v in vars(config).items() if k in GROWABLE}
