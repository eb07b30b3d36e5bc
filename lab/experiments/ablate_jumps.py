# One growth or several? From 1 to 6 layers x 128. All get the compute of 250 iterations of 6 layers.
from lab.experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.one_jump, stages=[])
contestants = {
    "from scratch": dict(n_layer=6, max_iters=250),
    "1, 6": dict(stages=[dict(at=400, n_layer=6)]),
    "1, 3, 6": dict(stages=[dict(at=300, n_layer=3), dict(at=425, n_layer=6)]),
    "1, 2, 4, 6": dict(stages=[dict(at=250, n_layer=2), dict(at=350, n_layer=4),
                               dict(at=425, n_layer=6)]),
}
for _name in list(contestants)[1:]:
    contestants[_name]["flops"] = "from scratch"
