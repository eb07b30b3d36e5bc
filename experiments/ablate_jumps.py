# One jump or several? One layer to eight, all with the compute of 200 iterations from scratch.
from experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.settings, **_c.one_layer, **_c.muon, ramp_iters=12)
contestants = {
    "from scratch": dict(_c.target, max_iters=200),
    "1, 8": dict(stages=[dict(at=120, n_layer=8)]),
    "1, 4, 8": dict(stages=[dict(at=80, n_layer=4), dict(at=140, n_layer=8)]),
    "1, 2, 4, 8": dict(stages=[dict(at=60, n_layer=2), dict(at=100, n_layer=4),
                               dict(at=140, n_layer=8)]),
    "1, 2, 3, ..., 8": dict(stages=[dict(at=40 + 16 * _i, n_layer=2 + _i) for _i in range(7)]),
}
for _name in list(contestants)[1:]:
    contestants[_name]["flops"] = "from scratch"
