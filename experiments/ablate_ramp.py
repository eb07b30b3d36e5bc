# How long should the ramp be? 2 x 128 to 7 x 192 in one jump.
from experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.settings, **_c.small, **_c.muon, max_iters=450,
                stages=[dict(at=300, **_c.target)])
contestants = {f"ramp of {_n}": dict(ramp_iters=_n) for _n in (0, 5, 25, 60, 120)}
