# What should new weights start from? 2 x 128 to 7 x 192, masked; and without a mask.
from experiments import common as _c

ablation = True
seeds = _c.seeds
settings = dict(_c.settings, **_c.small, **_c.muon, max_iters=450,
                stages=[dict(at=300, **_c.target)])
contestants = {f"{_i}{_o}": dict(init=_i, operator=_op)
               for _o, _op in (("", "msg"), (", no mask", "direct"))
               for _i in ("normal", "zero", "copy")}
