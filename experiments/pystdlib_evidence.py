# The main comparison: is growing faster than training from scratch, with both optimizers tuned,
# and than the other ways to grow? By estimate two hours on two CPU cores.
from experiments import common as _c

settings, seeds = _c.settings, _c.seeds
_adamw = dict(optimizer="adamw", against="scratch AdamW")
_muon = dict(optimizer="muon", learning_rate=4e-3, against="scratch Muon")
_share = 0.67  # of the baseline's compute: to be faster, a grown run must be over sooner

# as the paper grows Bert-base: order, places (10, 20, 30, 40, 50 %), ramps (5 %), proportions
_paper = dict(
    n_layer=2, n_embd=128, n_inner=192, n_head=4, max_iters=400, ramp_iters=20,
    stages=[dict(at=40, n_inner=768), dict(at=80, n_layer=4), dict(at=120, n_embd=192),
            dict(at=160, n_head=6), dict(at=200, n_layer=8)])
# one layer, then all of them at once
_one = dict(_c.one_layer, stages=[dict(at=120, n_layer=8)])


def _two(width, depth):
    """2 x 128, then wider, then deeper: the same schedule for every operator."""
    return dict(_muon, **_c.small, flops=("scratch Muon", _share), stages=[
        dict(at=60, n_embd=192, n_inner=768, n_head=6, operator=width),
        dict(at=140, n_layer=8, operator=depth)])


contestants = {
    "scratch AdamW": dict(_c.target, optimizer="adamw",
                          sweep=dict(learning_rate=[1e-3, 2e-3, 4e-3, 8e-3])),
    "scratch Muon": dict(_c.target, optimizer="muon", learning_rate=4e-3,
                         sweep=dict(muon_learning_rate=[0.01, 0.02, 0.04, 0.08])),
    "MSG as in the paper, AdamW": dict(_paper, **_adamw),
    "MSG as in the paper, Muon": dict(_paper, **_muon),
    "one layer, MSG to eight, AdamW": dict(_one, **_adamw, flops=("scratch AdamW", _share)),
    "one layer, MSG to eight, Muon": dict(_one, **_muon, flops=("scratch Muon", _share)),
    "one layer, stacked to eight, Muon": dict(_one, **_muon, operator="stack",
                                              flops=("scratch Muon", _share)),
    "no layer, then eight, Muon": dict(_one, **_muon, n_layer=0, operator="stack",
                                       flops=("scratch Muon", _share)),
    "wider, deeper: MSG": _two("msg", "msg"),
    "wider, deeper: direct copy": _two("direct", "direct"),
    "wider, deeper: Net2Net, stacking": _two("net2net", "stack"),
    "wider, deeper: Net2Net, interleaving": _two("net2net", "interleave"),
    "wider, deeper: bert2BERT (AKI, stacking)": _two("aki", "stack"),
    "wider, deeper: zero output (LEMON)": _two("zero_output", "zero_output"),
    "small alone (2 x 128)": dict(_muon, **_c.small, flops=("scratch Muon", _share)),
}
