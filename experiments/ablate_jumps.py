# One jump or several? One layer to seven, all with the compute of 250 iterations from scratch.
from experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.settings, **_c.one_layer, **_c.muon, ramp_iters=25)
contestants = {
    "from scratch": dict(_c.target, max_iters=250),
    "1, 7": dict(stages=[dict(at=400, n_layer=7)]),
    "1, 3, 7": dict(stages=[dict(at=300, n_layer=3), dict(at=400, n_layer=7)]),
    "1, 2, 4, 7": dict(stages=[dict(at=250, n_layer=2), dict(at=325, n_layer=4),
                               dict(at=400, n_layer=7)]),
    "1, 2, 3, ..., 7": dict(stages=[dict(at=200 + 40 * _i, n_layer=2 + _i) for _i in range(6)]),
}
for _name in list(contestants)[1:]:
    contestants[_name]["flops"] = "from scratch"
