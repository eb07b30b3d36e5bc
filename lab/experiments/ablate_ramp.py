# How long should the ramp be? From 1 x 128 to 4 x 192 in one growth, after 300 of 400 iterations.
from lab.experiments import common as _c

ablation = True
settings, seeds = _c.one_jump, _c.seeds
contestants = {f"ramp of {_n}": dict(ramp_iters=_n) for _n in (0, 10, 30, 90)}
