# The family of family.py at a second scale: 2, 4 and 8 layers x 64, four times the weights, at 20 tokens per
# parameter of the largest. Tuned as family.py is; the family's rates are a guess yet. Not run.
from lab.experiments import family as _f

settings = dict(_f.settings, n_embd=64, n_head=2, n_inner=256, muon_learning_rate=0.01)
target = "8 x 64"
ladder = {"2 x 64": dict(n_layer=2, tokens=1), "4 x 64": dict(n_layer=4, tokens=1), "8 x 64": dict(n_layer=8)}
budgets, decays, rates, sweep_at = [20], [0.35, 0.55, 0.75], _f.rates, 20
tune_seeds, seeds = [1], [3, 4]
save_every = 192

families = {"masks": dict(_f.families["masks"], members=list(ladder), rate=0.004)}
