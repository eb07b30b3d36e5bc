# When to grow? From 1 to 6 layers x 128. All get the compute of 250 iterations of 6 layers.
from lab.experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.one_jump, stages=[])
contestants = {
    "from scratch": dict(n_layer=6, max_iters=250),
    **{f"after {_at}": dict(stages=[dict(at=_at, n_layer=6)], flops="from scratch")
       for _at in (50, 300, 550, 800)}}
