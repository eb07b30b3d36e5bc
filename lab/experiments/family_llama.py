# family.py with Llama's parts: RMSNorm, SwiGLU, rotary positions. Rate, decay and shares are those that
# family.py tuned for GPT.
from lab.experiments import family as _f

settings = dict(_f.settings, model="llama", n_inner=88, eval_seqs=4096)
target, ladder = _f.target, {name: dict(entry, rate=0.02) for name, entry in _f.ladder.items()}
budgets, decays, rates, sweep_at = [20], [0.35], dict(muon_learning_rate=[0.02]), 20
seeds = [11, 12, 13]
save_every = 48

families = {"masks": _f.families["masks"]}
