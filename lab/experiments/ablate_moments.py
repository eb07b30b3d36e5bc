# What should happen to optimizer state, and to newborn weights' updates, at a growth?
from lab.experiments import common as _c

ablation = True
settings, seeds = _c.one_jump, _c.seeds
_arms = {"kept": {}, "reset": dict(moments="reset"), "all re-warmed": dict(rewarm_iters=25),
         "newborn re-warmed": dict(rewarm_newborn_iters=25)}
contestants = {
    **{f"AdamW, {_n}": dict(_c.adamw, against="AdamW, kept" if _a else [], **_a)
       for _n, _a in _arms.items()},
    **{f"Muon, {_n}": dict(_c.muon, against="Muon, kept" if _a else [], **_a)
       for _n, _a in {**_arms, "old block separate": dict(muon_old_block="separate")}.items()}}
