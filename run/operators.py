"""
Other ways to grow a Transformer, for comparison with masked growth. Each is a few lines on top of
grow.py. None has a mask or a ramp: the whole larger model is active at once.

    operator     grows   how                                            keeps the function
    direct       all     old weights in the corner, the rest random     never
    net2net      width   units split: copied, outgoing weights shared   n_inner and n_head; n_embd
                                                                        only if split evenly
    aki          width   as net2net, new units from the layer above     never
    stack        depth   copies of all layers, in order, on top         never
    interleave   depth   each copy right after its source               never
    zero_output  all     new parts write zeros (pre-LN only)            yes

Sources. direct, stack: "Efficient Training of BERT by Progressively Stacking" (Gong et al., ICML
2019); stack with one growth is G_stack (Du et al., NeurIPS 2024, arXiv 2405.15319); net2net: Chen,
Goodfellow, Shlens, ICLR 2016, arXiv 1511.05641; aki: bert2BERT (Chen et al., ACL 2022, arXiv
2110.07143); zero_output: after LEMON (Wang et al., ICLR 2024, arXiv 2310.07999), its
average expansion for LayerNorm. Zero- and one-layer growth (Bu, arXiv 2511.04981) is `stack` from
n_layer = 0 (its new layers are then random) or 1, in one stage.
"""
from dataclasses import replace

import torch

from grow import grow, grown_config, layer_sources, source_of
from layers import WIDTH_AXES, Linear
from model import GROWABLE

SPLIT_NOISE = 0.01  # on the copies of split units, as a share of their tensor's std
WIDTH = tuple(k for k, axis in GROWABLE.items() if axis in WIDTH_AXES)


def direct(model, optimizer=None, **sizes):
    """
    grow() without masks: old weights in the corner, random ones beside them. With n_layer only it is
    StackBERT, G_stack: copies of the layers, in order, on top. From n_layer = 0 new layers are random.
    """
    return grow(model, optimizer, **sizes, masked=False)


def interleave(model, optimizer=None, *, n_layer):
    """Insert each layer's copy right after it."""
    return grow(model, optimizer, n_layer=n_layer, interleave=True, masked=False)


def net2net(model, optimizer=None, *, noise=SPLIT_NOISE, **sizes):
    """
    Net2WiderNet: a new unit copies an old one. If a unit exists k times, the weights that read it are
    divided by k. LayerNorm's statistics count a coordinate k times, so the function is kept only if all
    coordinates are copied equally often. noise: 0 leaves copies symmetric.
    """
    old, new = model.config, grown_config(model.config, **sizes)
    group = old.kv_group * old.head_dim  # heads that share keys and values are split together
    before, after = old.axis_sizes(), new.axis_sizes()
    maps = {axis: split_map(before[axis], after[axis], group if axis == "head" else 1)
            for axis in WIDTH_AXES if after[axis] > before[axis]}
    if "head" in maps:
        kv = maps["head"][::group, None] // old.kv_group + torch.arange(old.head_dim)
        maps["kv"] = kv.flatten()
    maps = {axis: index.to(next(model.parameters()).device) for axis, index in maps.items()}
    times = {axis: torch.bincount(index)[index] for axis, index in maps.items()}

    def fill(new, old, spec):
        source = old
        for i, axis in enumerate(spec.axes):
            if axis in maps:
                source = source.index_select(i, maps[axis])
                if i == 1 and spec.axes[0] not in ("vocab", "position", "segment"):
                    source = source * (1 / times[axis].to(source.dtype))  # a Linear's input axis
        copies = torch.randn_like(new) * (noise * old.float().std(correction=0)) \
            if noise and old.dim() > 1 else torch.zeros_like(new)
        copies[tuple(slice(n) for n in old.shape)] = 0
        new.copy_(source + copies)

    model, optimizer = grow(model, optimizer, **sizes, init=fill, masked=False)
    if "embd" in maps:  # the tied head has copied, undivided weights: divide in the norm before it
        with torch.no_grad():
            for p in (model.ln_t if hasattr(model, "ln_t") else model.ln_f).parameters():
                p.mul_(1 / times["embd"].to(p.dtype))
    return model, optimizer


def aki(model, optimizer=None, **sizes):
    """
    bert2BERT's advanced knowledge initialisation: split as net2net does, then replace each layer's
    new units by those of the layer above. Noise, as net2net's, tells apart units that come from one.
    """
    before = model.config.axis_sizes()
    model, optimizer = net2net(model, optimizer, **sizes, noise=0.0)
    with torch.no_grad():
        for block, above in zip(model.blocks, model.blocks[1:]):  # upwards: `above` is still unchanged
            for layer, source in zip(block.modules(), above.modules()):
                if isinstance(layer, Linear):
                    old = before[layer.spec["weight"].axes[0]]
                    for p, q in zip(layer.parameters(), source.parameters()):
                        p[old:] = q[old:]
        for layer in model.blocks.modules():
            if isinstance(layer, Linear):
                new = layer.weight[before[layer.spec["weight"].axes[0]]:]
                new += SPLIT_NOISE * layer.weight.std() * torch.randn_like(new)
    return model, optimizer


def zero_output(model, optimizer=None, **sizes):
    """New parts output zero, so the function is kept (pre-LN only): see keep_function()."""
    if model.config.post_ln:
        raise ValueError("zero_output keeps the function of pre-LN models only, this one is post-LN")
    old = model.config
    layers = layer_sources(old.n_layer, sizes.get("n_layer", old.n_layer))
    model, optimizer = grow(model, optimizer, **sizes, masked=False)
    model.config = scaled_eps(old, model.config)
    for m in model.modules():
        if hasattr(m, "eps"):
            m.eps = model.config.norm_eps
    specs = model.specs()
    with torch.no_grad():
        for name, p in model.named_parameters():
            keep_function(name, p, specs[name].axes, old, model.config, source_of(name, layers)[1])
    return model, optimizer


def scaled_eps(old, new):
    """The config `new` with the norm_eps that keeps the function: see keep_function()."""
    return replace(new, norm_eps=old.norm_eps * old.n_embd / new.n_embd)


def keep_function(name, p, axes, old, new, is_new):
    """
    Change a tensor grown from config `old` to `new`, in place, so that the model's function is kept.
    Its new entries are random before. is_new: it belongs to a new layer.

    A new layer's output projections become 0, as do the columns that read new heads and FFN units.
    n_embd grows by LEMON's average expansion: each new coordinate of the residual stream is the mean of
    the old ones. A LayerNorm's mean stays; its variance shrinks by r = n_old / n_new, which its weight
    and eps correct. It outputs 0 at the new coordinates. RMSNorm has no mean, so they are 0 there. With
    qk_norm, queries and keys shrink as eps does (not in 16 bits: rounding would change more). Zeroed
    weights get a gradient from the first step. The exception is RMSNorm with a tied head: in that step
    nothing reads what the last layers write to new coordinates.
    """
    d, r = old.n_embd, old.n_embd / new.n_embd
    if is_new and axes[0] == "embd" and ".proj." in name:
        p.zero_()
    elif len(axes) == 2 and axes[1] in ("inner", "head"):
        p[:, old.axis_sizes()[axes[1]]:] = 0
    if r == 1:
        return
    if ".ln_" in name or name.startswith("ln_"):
        if name.endswith("bias"):
            p[d:] = 0
        elif axes[0] == "embd":
            p[:d] *= r**0.5
    elif axes[0] == "embd":  # writes into the residual stream
        p[d:] = 0 if old.llama else p[:d].mean(0)
    elif name in ("wte.weight", "wpe.weight"):
        p[:, d:] = 0 if old.llama else p[:, :d].mean(1, keepdim=True)
    elif old.qk_norm and (".attn.q." in name or ".attn.k." in name) and p.element_size() > 2:
        p *= r**0.5


# name -> (function, sizes it can grow); "msg" is this repository's method
OPERATORS = {"msg": (grow, tuple(GROWABLE)), "direct": (direct, tuple(GROWABLE)),
             "net2net": (net2net, WIDTH), "aki": (aki, WIDTH), "stack": (direct, ("n_layer",)),
             "interleave": (interleave, ("n_layer",)),
             "zero_output": (zero_output, tuple(GROWABLE))}


NEED_WHOLE = ("net2net", "aki", "zero_output")  # they adjust the grown model's tensors to one another


def refusal(operator, sizes, before, sharded=False):
    """Why `operator` cannot grow the config `before` to `sizes`, a dict; "" if it can."""
    if sharded and operator in NEED_WHOLE:
        return (f"operator={operator!r} needs whole tensors, which shard='fsdp' has none of: use "
                "shard='none'")
    grows = OPERATORS[operator][1]
    wrong = [k for k in sizes if k not in grows]
    if wrong:
        return (f"operator={operator!r} grows {', '.join(grows)} only, not {wrong[0]}: grow that "
                "in another stage with another operator")
    if operator == "aki" and before.n_layer == 0:
        return "operator='aki' takes new units from the layer above, but there is no layer: use another"
    if operator == "zero_output" and before.post_ln:
        return "operator='zero_output' is for pre-LN models (gpt, llama) only: use another"
    return ""


def split_map(n_old, n_new, unit=1):
    """
    The old coordinate that each new one copies, (n_new,) indices. The old ones come first, then random
    draws without replacement, so copies are as even as the sizes allow. The `unit` coordinates of a
    unit (a head) stay together.
    """
    olds, more = n_old // unit, (n_new - n_old) // unit
    drawn = torch.cat([torch.randperm(olds) for _ in range(-(-more // olds))])[:more]
    units = torch.cat((torch.arange(olds), drawn))
    return (units[:, None] * unit + torch.arange(unit)).flatten()
