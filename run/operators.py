"""
The other ways to grow a Transformer, each a few lines over grow.py, to compare masked growth with.
None has a mask or a ramp: all of the larger model counts at once.

    operator     grows   how                                            keeps the function
    direct       all     old weights in the corner, the rest random     never
    net2net      width   units split: copied, outgoing weights shared   n_inner and n_head; n_embd
                                                                        only if split evenly
    aki          width   as net2net, new units from the layer above     never
    stack        depth   copies of all layers, in order, on top         never
    interleave   depth   each copy right after its source               never
    zero_output  all     new parts write zeros (pre-LN only)            yes, n_embd up to eps

Sources. direct, stack: "Efficient Training of BERT by Progressively Stacking" (Gong et al., ICML
2019); stack with one growth is G_stack (Du et al., NeurIPS 2024, arXiv 2405.15319); net2net: Chen,
Goodfellow, Shlens, ICLR 2016, arXiv 1511.05641; aki: bert2BERT (Chen et al., ACL 2022, arXiv
2110.07143); zero_output: after LEMON (Wang et al., ICLR 2024, arXiv 2310.07999), its
average expansion for LayerNorm. Zero- and one-layer growth (Bu, arXiv 2511.04981) is `stack` from
n_layer = 0 (its new layers are then random) or 1, in one stage.
"""
import torch

from grow import fill_normal, grow, grown_config, layer_sources
from layers import WIDTH_AXES, LayerNorm, Linear
from model import GROWABLE

SPLIT_NOISE = 0.01  # on the copies of split units, as a share of their tensor's std
WIDTH = tuple(k for k, axis in GROWABLE.items() if axis in WIDTH_AXES)


def direct(model, optimizer=None, **sizes):
    """
    Old weights in the corner, random ones beside them, nothing hidden: grow() without masks. Of layers
    alone it is StackBERT, G_stack: the layers again, in order, on top; random ones from n_layer = 0.
    """
    return grow(model, optimizer, **sizes, masked=False)


def interleave(model, optimizer=None, *, n_layer):
    """Each layer's copy right after it."""
    return grow(model, optimizer, n_layer=n_layer, interleave=True, masked=False)


def net2net(model, optimizer=None, *, noise=SPLIT_NOISE, **sizes):
    """
    Net2WiderNet: a new unit is a copy of an old one, and all that read a unit which is there k
    times weigh it 1/k. LayerNorm sees an old coordinate k times in its statistics: the function
    is kept only if every coordinate is there equally often. noise: 0 leaves copies symmetric.
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
    shares = {axis: 1 / torch.bincount(index)[index] for axis, index in maps.items()}

    def fill(new, old, spec):
        source = old
        for i, axis in enumerate(spec.axes):
            if axis in maps:
                source = source.index_select(i, maps[axis])
                if i == 1 and spec.axes[0] not in ("vocab", "position", "segment"):
                    source = source * shares[axis].to(source.dtype)  # the axis a Linear reads
        copies = torch.randn_like(new) * (noise * old.float().std(correction=0)) \
            if noise and old.dim() > 1 else torch.zeros_like(new)
        copies[tuple(slice(n) for n in old.shape)] = 0
        new.copy_(source + copies)

    model, optimizer = grow(model, optimizer, **sizes, init=fill, masked=False)
    if "embd" in maps:  # the head is tied to the embedding, which is copied: share before it
        with torch.no_grad():
            for p in (model.ln_t if hasattr(model, "ln_t") else model.ln_f).parameters():
                p.mul_(shares["embd"].to(p.dtype))
    return model, optimizer


def aki(model, optimizer=None, **sizes):
    """
    bert2BERT's advanced knowledge initialisation: split as net2net, then the new units of each
    layer are replaced by the same new units of the layer above, which breaks the symmetry.
    """
    before = model.config.axis_sizes()
    model, optimizer = net2net(model, optimizer, **sizes, noise=0.0)
    with torch.no_grad():
        for block, above in zip(model.blocks, model.blocks[1:]):  # from below: `above` is untouched
            for layer, source in zip(block.modules(), above.modules()):
                if isinstance(layer, Linear):
                    old = before[layer.spec["weight"].axes[0]]
                    for p, q in zip(layer.parameters(), source.parameters()):
                        p[old:] = q[old:]
    return model, optimizer


def zero_output(model, optimizer=None, **sizes):
    """
    New parts compute but what they write is zero, so nothing changes (pre-LN): a new layer's
    output projections are 0, nothing reads new heads and FFN units. For n_embd, LEMON's average
    expansion: each new coordinate is the mean of the old ones, which leaves a LayerNorm's mean
    alone, shrinks its variance by r = n_old / n_new (made up for in its weight) and makes the new
    coordinates' output 0; for RMSNorm, which knows no mean, each is 0. Exact but for the norm's
    eps, which should be r eps.
    """
    if model.config.post_ln:
        raise ValueError("zero_output keeps the function of pre-LN models only, this one is post-LN")
    old = model.config
    r = old.n_embd / sizes.get("n_embd", old.n_embd)
    share = 0 if old.llama else 1  # of the old coordinates' mean in the new ones

    def fill(new, old, spec):
        fill_normal(new, old, spec)
        if old is None:
            return
        corner = tuple(slice(n) for n in old.shape)
        if spec.mean:  # a norm's weight
            new[corner] = old * r**0.5
            return
        new[corner] = old
        reads, writes = spec.axes[-1], spec.axes[0]
        if new.dim() == 2 and reads in ("inner", "head"):
            new[:, old.size(1):] = 0
        if writes == "embd" and new.size(0) > old.size(0):  # a Linear into the residual stream
            new[old.size(0):] = new[:old.size(0)].mean(0) * share
        if new.dim() == 2 and writes in ("vocab", "position", "segment"):
            new[:, old.size(1):] = old.mean(1, keepdim=True) * share

    layers = layer_sources(old.n_layer, sizes.get("n_layer", old.n_layer))
    model, optimizer = grow(model, optimizer, **sizes, init=fill, masked=False)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, LayerNorm) and m.bias is not None:
                m.bias[old.n_embd:] = 0
        for block, (_, is_new) in zip(model.blocks, layers):
            if is_new:
                for p in (*block.attn.proj.parameters(), *block.mlp.proj.parameters()):
                    p.zero_()
    return model, optimizer


# name -> (function, sizes it grows); "msg" is the method of this repository
OPERATORS = {"msg": (grow, tuple(GROWABLE)), "direct": (direct, tuple(GROWABLE)),
             "net2net": (net2net, WIDTH), "aki": (aki, WIDTH), "stack": (direct, ("n_layer",)),
             "interleave": (interleave, ("n_layer",)),
             "zero_output": (zero_output, tuple(GROWABLE))}


WHOLE = ("net2net", "aki", "zero_output")  # they mend the grown model's tensors one against another


def refusal(operator, sizes, before, sharded=False):
    """Why `operator` cannot grow the config `before` to `sizes` (a dict), or ""."""
    if sharded and operator in WHOLE:
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
    Which old coordinate each new one is a copy of: (n_new,) indices, the old ones in place, then
    others drawn at random without replacement, so as evenly as the sizes allow. A unit's `unit`
    coordinates (a head's) stay together.
    """
    olds, more = n_old // unit, (n_new - n_old) // unit
    drawn = torch.cat([torch.randperm(olds) for _ in range(-(-more // olds))])[:more]
    units = torch.cat((torch.arange(olds), drawn))
    return (units[:, None] * unit + torch.arange(unit)).flatten()
