# When to grow? One layer to seven, all with the compute of 250 iterations from scratch.
from experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.settings, **_c.one_layer, **_c.muon)
contestants = {
    "from scratch": dict(_c.target, max_iters=250),
    **{f"after {_at}": dict(stages=[dict(at=_at, n_layer=7)], flops="from scratch")
       for _at in (50, 150, 300, 450, 600)}}
