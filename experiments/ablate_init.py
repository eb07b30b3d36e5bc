# What should new weights start from? 1 x 128 to 4 x 192 in one jump, masked; and without a mask.
from experiments import common as _c

ablation = True
settings, seeds = _c.one_jump, _c.seeds
contestants = {f"{_i}{_o}": dict(init=_i, operator=_op)
               for _o, _op in (("", "msg"), (", no mask", "direct"))
               for _i in ("normal", "zero", "copy")}
