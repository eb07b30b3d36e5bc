# The family of family.py at a second scale: 2, 4 and 8 layers x 64, four times the weights, at 20 tokens per
# parameter of the largest. Each size from scratch is tuned. "masks" takes family.py's shares, untuned. The others were
# tried on seed 1: another rate from the first growth on, longer decays. The best of these is reported. For 8 layers
# AdamW's rate was 0.004 nats better at 0.008 than at 0.016.
from lab.experiments import family as _f

settings = dict(_f.settings, n_embd=64, n_head=2, n_inner=256, eval_seqs=4096)
target = "8 x 64"
ladder = {"2 x 64": dict(n_layer=2, tokens=1), "4 x 64": dict(n_layer=4, tokens=1), "8 x 64": dict(n_layer=8, rate=0.008)}
budgets, decays, sweep_at = [20], [0.75, 0.55], 20
rates = dict(learning_rate=[0.004, 0.008, 0.016, 0.032, 0.064])
tune_seeds, seeds = [1], [3, 4]
save_every = 192

_longer = dict(members=list(ladder), tokens=20, trunk=[0.45, 0.15, 0.1], decay=[0.55, 0.45, 0.57])
families = {
    "masks": dict(_f.families["masks"], members=list(ladder), rate=0.004, tuning=False),
    "masks, rate 0.008": dict(_f.families["masks"], members=list(ladder), rate=0.008, tuning=True),
    "longer decays, rate 0.008": dict(_longer, rate=0.008, tuning=True),
    "longer decays, rate 0.004": dict(_longer, rate=0.004)}
