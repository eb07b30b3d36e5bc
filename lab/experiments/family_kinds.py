# Other families than family.py's, on the same tokens: sizes x 1.5 and x 4, and width beside depth. Rates of 2,
# 4 and 8 layers are family.py's best, all else from scratch is tuned as there. Shares and rates of the
# families are family.py's, not tuned.
from lab.experiments import family as _f

settings = dict(_f.settings, eval_seqs=4096)
target = "8 x 32"
ladder = {
    "2 x 32": dict(n_layer=2, tokens=1, rate=0.032),
    "4 x 32": dict(n_layer=4, tokens=1, rate=0.064),
    "6 x 32": dict(n_layer=6, tokens=1),
    "9 x 32": dict(n_layer=9, tokens=1),
    "3 x 40": dict(n_layer=3, n_embd=40, n_inner=160, tokens=1),
    "4 x 48": dict(n_layer=4, n_embd=48, n_inner=192, tokens=1),  # about as many weights as the target
    "8 x 32": dict(n_layer=8, rate=0.016)}
budgets, decays, rates, sweep_at = [20], _f.decays, _f.rates, 20
tune_seeds, seeds = [1], [11, 12]
save_every = 48

_masks = _f.families["masks"]
families = {
    "x 1.5": dict(_masks, members=["4 x 32", "6 x 32", "9 x 32"]),
    "x 2, depth, then width": dict(_masks, members=["2 x 32", "4 x 32", "4 x 48"]),
    "x 2, depth and width": dict(_masks, members=["2 x 32", "3 x 40", "4 x 48"]),
    "x 4": dict(_masks, members=["2 x 32", "8 x 32"], trunk=[0.65, 0.35], decay=[0.35, 0.42])}
