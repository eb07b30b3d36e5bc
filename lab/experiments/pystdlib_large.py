# A larger run: 10 layers x 192 (4.5M parameters). Its step costs 9 times that of one layer, and
# 16 times that of the 1 x 128 that it grows from. Takes about an hour on two CPU cores.
from lab.experiments import common as _c

settings = dict(_c.settings, max_iters=400)
seeds = _c.seeds
_target = {**_c.target, "n_layer": 10}
_muon = dict(optimizer="muon", learning_rate=2e-3)
_adamw = dict(optimizer="adamw", max_iters=600, warmup_iters=30, ramp_iters=30, eval_interval=30)


def _late(baseline, settings, at):
    """1 x 128 almost to the end, then all dimensions at once. A fifth of the compute."""
    return dict(settings, **_c.tiny, operator="zero_output", decay_frac=0.4, against=baseline,
                flops=(baseline, 0.2), stages=[dict(at=at, **_target)])


contestants = {
    "scratch AdamW": dict(_target, **_adamw,
                          sweep=dict(learning_rate=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3])),
    "scratch Muon": dict(_target, **_muon, sweep=dict(muon_learning_rate=[0.01, 0.02, 0.04, 0.08])),
    # half the compute
    "one layer, four, ten: MSG, Muon": {
        **_target, **_muon, "n_layer": 1, "against": "scratch Muon", "flops": ("scratch Muon", 0.5),
        "stages": [dict(at=400, n_layer=4), dict(at=550, n_layer=10)]},
    # at the best learning rates of the same two in pystdlib_evidence.py
    "late jump, zero output, AdamW": dict(_late("scratch AdamW", _adamw, 1650), learning_rate=4e-3),
    "late jump, zero output, Muon": dict(_late("scratch Muon", _muon, 1100),
                                         muon_learning_rate=0.02),
}
