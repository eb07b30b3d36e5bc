# Sizes from scratch with as little compute as the members of family_64.py's "longer decays": 4 layers x 64 on
# 60 % of the tokens, 8 layers on 67 %. Rates and decay are the best of each size in family_64.py: nothing is tuned here.
from lab.experiments import family_64 as _f

settings, target, budgets, sweep_at, save_every = _f.settings, _f.target, _f.budgets, _f.sweep_at, _f.save_every
ladder = {"8 x 64": dict(n_layer=8, rate=0.008),
          "4 x 64, 60 % of the tokens": dict(n_layer=4, tokens=0.6, rate=0.016),
          "8 x 64, 67 % of the tokens": dict(n_layer=8, tokens=0.67, rate=0.008)}
rates = dict(learning_rate=[0.008])
decays = [0.75]
seeds = [3, 4]
