# family.py with tokens in proportion to size: 20 per parameter of each of 2, 4 and 8 layers x 32.
from lab.experiments import family as _f

settings = dict(_f.settings, eval_seqs=4096)
target = "8 x 32"
ladder = {"2 x 32": dict(n_layer=2, tokens=0.25, rate=0.02), "4 x 32": dict(n_layer=4, tokens=0.5, rate=0.02),
          "8 x 32": dict(n_layer=8, rate=0.02)}
budgets, decays, rates, sweep_at = [20], [0.35], dict(muon_learning_rate=[0.02]), 20
seeds = [11, 12, 13]
save_every = 24

families = {"masks": dict(members=list(ladder), tokens=20, trunk=[0.1625, 0.25, 0.45], decay=[0.0875, 0.175, 0.4])}
