"""
What is done to the updates of newborn coordinates after a growth: one rule over named axes for
every parameter and optimizer. Everything follows from the config and the iteration, so a resumed
run needs nothing saved.
"""
import contextlib
from dataclasses import replace

import torch

from grow import _source, layer_sources


def old_corners(model, before, depth):
    """
    Which part of each parameter is older than the last growth: parameter -> slices of its old
    corner, None for a parameter that is new as a whole; parameters without newborn coordinates
    are left out. before: the four sizes before that growth; depth: where its new layers went.
    """
    old = replace(model.config, **before)
    sizes, layers = old.axis_sizes(), layer_sources(old.n_layer, model.config.n_layer, depth)
    corners = {}
    for (name, p), spec in zip(model.named_parameters(), model.specs().values()):
        corner = tuple(slice(sizes[axis]) for axis in spec.axes)
        if _source(name, layers)[1]:
            corners[p] = None
        elif p[corner].shape != p.shape:
            corners[p] = corner
    return corners


@contextlib.contextmanager
def gently(optimizers, corners, share=1.0, separate=False):
    """
    Around one step of the optimizers, on the parameters of `corners` (from old_corners):
    share: newborn coordinates take this share of their update (of the update, for Adam and Muon
    hardly mind the scale of a gradient);
    separate: Muon orthogonalises the old corner of a matrix by itself, as if it had not grown.
    """
    started = {p: p.detach().clone() for p in corners} if share < 1 else {}
    alone = [(p, corners[p], *_muon_alone(o, group, p, corners[p])) for o in optimizers
             if separate and isinstance(o, torch.optim.Muon)
             for group in o.param_groups for p in group["params"]
             if corners.get(p) is not None and p.grad is not None]
    yield
    with torch.no_grad():
        for p, corner, twin, muon in alone:
            muon.step()
            p[corner] = twin
        for p, start in started.items():
            gentle = torch.lerp(start, p, share)
            if corners[p] is not None:
                gentle[corners[p]] = p[corners[p]]
            p.copy_(gentle)


def _muon_alone(optimizer, group, p, corner):
    """A copy of the old corner of `p`, and a Muon that is about to step it as p's would."""
    twin = torch.nn.Parameter(p.detach()[corner].clone())
    twin.grad = p.grad[corner].clone()
    settings = {k: v for k, v in group.items() if k in optimizer.defaults}
    muon = torch.optim.Muon([twin], **settings)
    if p in optimizer.state:
        buffer = optimizer.state[p]["momentum_buffer"]
        muon.state[twin] = {"momentum_buffer": buffer[corner].clone()}
    return twin, muon
