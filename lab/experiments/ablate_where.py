# Where should new layers go? 2 x 128 to 6 x 128, with the mask and without.
from lab.experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.one_jump, n_layer=2, stages=[dict(at=300, n_layer=6)])
contestants = {
    **{_d: dict(depth=_d) for _d in ("stack", "interleave", "top-random")},
    "copied, stacked, no mask": dict(operator="stack"),
    "copied, interleaved, no mask": dict(operator="interleave")}
