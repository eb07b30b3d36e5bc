"""The learning rate of an iteration, and the optimizers of a model."""
import math

import torch

from grow import role


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


def make_optimizers(config, model):
    """AdamW, or Muon for the blocks' matrices and AdamW for the rest. Weight decay on matrices."""
    named = list(model.named_parameters())

    def group(r, **kw):
        return dict(params=[p for n, p in named if role(n) == r], role=r, **kw)
    adamw = [group("embedding", weight_decay=config.weight_decay), group("vector", weight_decay=0.0)]
    optimizers = []
    if config.optimizer == "muon":
        matrices = [group("matrix", weight_decay=config.weight_decay)]
        optimizers.append(torch.optim.Muon(matrices, lr=config.muon_learning_rate))
    else:
        adamw.insert(0, group("matrix", weight_decay=config.weight_decay))
    optimizers.append(torch.optim.AdamW(adamw, lr=config.learning_rate,
                                        betas=(config.beta1, config.beta2), fused=True))
    for o in optimizers:
        for g in o.param_groups:
            g["peak_lr"] = g["lr"]
    return optimizers
