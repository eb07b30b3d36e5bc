# Where should new layers go? 2 x 192 to 7 x 192, with the mask and without.
from experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.settings, **{**_c.target, "n_layer": 2}, **_c.muon, max_iters=450,
                stages=[dict(at=300, n_layer=7)])
contestants = {f"{_d}{_o}": dict(depth=_d, operator=_op)
               for _o, _op in (("", "msg"), (", no mask", "direct"))
               for _d in ("stack", "interleave", "top-random")}
