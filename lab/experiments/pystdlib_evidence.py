# The main comparison: is growing faster than training from scratch, and than other ways to grow?
# Both optimizers are tuned. Takes about three hours on two CPU cores.
from lab.experiments import common as _c

settings, seeds = _c.settings, _c.seeds
_muon = dict(optimizer="muon", learning_rate=2e-3)
# AdamW needs twice the iterations to reach a loss where a comparison means something
_adamw = dict(optimizer="adamw", max_iters=1000, warmup_iters=50, ramp_iters=50, eval_interval=50)


def _against(baseline, *settings, share=0.5, **more):
    """A grown run with `share` of the baseline's compute."""
    given = {k: v for s in settings for k, v in s.items()}
    return dict(given, **more, against=baseline, flops=(baseline, share))


def _paper(every):
    """The paper's schedule for Bert-base: its order, places (10, 20, 30, 40, 50 %), proportions."""
    grown = (dict(n_inner=768), dict(n_layer=4), dict(n_embd=192), dict(n_head=6), dict(n_layer=7))
    return dict(n_layer=2, n_embd=128, n_inner=192, n_head=4,
                stages=[dict(at=every * (i + 1), **sizes) for i, sizes in enumerate(grown)])


def _best(at, then):
    """The best schedule found (pystdlib_schedules.py): 1, 3, then 7 layers."""
    return dict(_c.one_layer, stages=[dict(at=at, n_layer=3), dict(at=then, n_layer=7)])


def _late(baseline, *settings, **more):
    """The tiny model almost to the end, then all dimensions at once. A fifth of the compute."""
    return _against(baseline, *settings, _c.tiny, more, share=0.2)


def _two(width, depth):
    """2 x 128, then wider, then deeper. Every operator has this schedule."""
    return _against("scratch Muon", _muon, _c.small, stages=[
        dict(at=300, n_embd=192, n_inner=768, n_head=6, operator=width),
        dict(at=400, n_layer=7, operator=depth)])


def _one(**more):
    """One layer or none, then all layers at once."""
    return _against("scratch Muon", _muon, _c.one_layer, more, stages=[dict(at=450, n_layer=7)])


contestants = {
    "scratch AdamW": dict(_c.target, **_adamw, sweep=dict(learning_rate=[1e-3, 2e-3, 4e-3, 8e-3])),
    "scratch Muon": dict(_c.target, **_muon,
                         sweep=dict(muon_learning_rate=[0.01, 0.02, 0.04, 0.08])),
    # as long as the best schedule found at half the compute
    "scratch AdamW, shorter (540 iterations)": dict(_c.target, **{**_adamw, "max_iters": 540},
                                                    against="scratch AdamW"),
    "scratch Muon, shorter (284 iterations)": dict(_c.target, **_muon, max_iters=284,
                                                   against="scratch Muon"),
    "MSG as in the paper, AdamW": dict(_adamw, **_paper(100), against="scratch AdamW"),
    "MSG as in the paper, Muon": dict(_muon, **_paper(50), against="scratch Muon"),
    "MSG, best found, AdamW": _against("scratch AdamW", _adamw, _best(800, 1100)),
    "MSG, best found, Muon": _against("scratch Muon", _muon, _best(400, 550)),
    "the same, a fifth of the compute, AdamW": _against(
        "scratch AdamW", _adamw, _best(400, 540), share=0.2),
    "the same, a fifth of the compute, Muon": _against(
        "scratch Muon", _muon, _best(200, 270), share=0.2),
    "late jump, zero output, a fifth of the compute, AdamW": _late(
        "scratch AdamW", _adamw, operator="zero_output", decay_frac=0.4,
        stages=[dict(at=2000, **_c.target)], sweep=dict(learning_rate=[2e-3, 4e-3, 8e-3])),
    "late jump, zero output, a fifth of the compute, Muon": _late(
        "scratch Muon", _muon, operator="zero_output", decay_frac=0.4,
        stages=[dict(at=1000, **_c.target)], sweep=dict(muon_learning_rate=[0.01, 0.02, 0.04])),
    "late jump, MSG, a fifth of the compute, Muon": _late(
        "scratch Muon", _muon, ramp_iters=15, decay_frac=0.4, muon_learning_rate=0.02,
        stages=[dict(at=1000, **_c.target)]),
    "one layer, MSG to seven": _one(),
    "one layer, stacked to seven": _one(operator="stack"),
    "no layer, then seven": _one(n_layer=0, operator="stack"),
    "wider, deeper: MSG": _two("msg", "msg"),
    "wider, deeper: direct copy": _two("direct", "direct"),
    "wider, deeper: Net2Net, stacking": _two("net2net", "stack"),
    "wider, deeper: Net2Net, interleaving": _two("net2net", "interleave"),
    "wider, deeper: bert2BERT (AKI, stacking)": _two("aki", "stack"),
    "wider, deeper: zero output (LEMON)": _two("zero_output", "zero_output"),
    "small alone (2 x 128)": _against("scratch Muon", _muon, _c.small),
}
