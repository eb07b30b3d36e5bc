# family.py with Llama's parts: RMSNorm, SwiGLU, rotary positions. Sizes from scratch are tuned as
# there, the family is not.
from lab.experiments import family as _f

settings = dict(_f.settings, model="llama", n_inner=88, eval_seqs=4096)
target, ladder = _f.target, _f.ladder
budgets, decays, rates, sweep_at = [20], _f.decays, _f.rates, 20
tune_seeds, seeds = [1], [11, 12]
save_every = 48

families = {"masks": dict(_f.families["masks"], tuning=False)}
