# family.py with tokens in proportion to size: 20 per parameter of each of 2, 4 and 8 layers x 32. The rate
# of 8 layers is family.py's best, all else from scratch is tuned as there; the family is not tuned.
from lab.experiments import family as _f

settings = dict(_f.settings, eval_seqs=4096, warmup_iters=20)
target = "8 x 32"
ladder = {"2 x 32": dict(n_layer=2, tokens=0.25), "4 x 32": dict(n_layer=4, tokens=0.5), "8 x 32": dict(n_layer=8, rate=0.016)}
budgets, decays, rates, sweep_at = [20], [0.35, 0.55, 0.75], _f.rates, 20
tune_seeds, seeds = [1], [11, 12]
save_every = 24

families = {"masks": dict(_f.families["masks"], trunk=[0.1625, 0.25, 0.45], decay=[0.0875, 0.175, 0.4],
                          tuning=False)}
