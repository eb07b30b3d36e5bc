# When to grow? One layer to eight, all with the compute of 200 iterations from scratch.
from experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.settings, **_c.one_layer, **_c.muon)
contestants = {
    "from scratch": dict(_c.target, max_iters=200),
    **{f"after {_at}": dict(stages=[dict(at=_at, n_layer=8)], flops="from scratch")
       for _at in (20, 60, 120, 240, 360)}}
