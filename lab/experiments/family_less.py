# Sizes from scratch with as little compute as the members of family.py's family: 4 layers x 32 on 55 % of its
# tokens, 8 layers on 67 %. Rates are the best of each size in family.py; decays are tuned on seed 1.
from lab.experiments import family as _f

settings, target, budgets, sweep_at, save_every = _f.settings, _f.target, _f.budgets, _f.sweep_at, _f.save_every
ladder = {"8 x 32": dict(n_layer=8, rate=0.016),
          "4 x 32, 55 % of the tokens": dict(n_layer=4, tokens=0.55, rate=0.064),
          "8 x 32, 67 % of the tokens": dict(n_layer=8, tokens=0.67, rate=0.016)}
rates = dict(learning_rate=[0.016])
decays = [0.35, 0.55, 0.75, 0.9]
tune_seeds, seeds = [1], [3, 4, 5, 6, 7]
