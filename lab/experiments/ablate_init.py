# What should new weights start from? 1 x 128 to 4 x 192 in one jump, masked; and without a mask.
from lab.experiments import common as _c

ablation = True
settings, seeds = _c.one_jump, _c.seeds
contestants = {"normal": {}, "zero": dict(init="zero"), "copy": dict(init="copy"),
               "normal, no mask": dict(operator="direct")}
