# frontier.py at 5 tokens per parameter, with AdamW's rate tuned too: that of the embeddings and vectors, beside Muon.
# frontier.py left it at 0.002. Is a late growth with zero outputs still cheaper than the target from scratch, and
# dearer than the best fixed size? Muon's rates are frontier.py's best. Seed 1 tunes and is not reported.
from lab.experiments import frontier as _f

settings = dict(_f.settings, eval_seqs=4096)
target = "6 x 64"
_six = dict(n_layer=6)
_slow, _fast = (dict(settings=dict(muon_learning_rate=rate)) for rate in (0.01, 0.02))
ladder = {"2 x 64": dict(_slow, n_layer=2), "3 x 64": dict(_fast, n_layer=3), "6 x 64": dict(_fast, **_six)}

budgets, grown_at, sweep_at = [5], [5], 5
decays = [0.35, 0.55, 0.75]
rates = dict(learning_rate=[0.002, 0.004, 0.008, 0.016, 0.032])
tune_seeds, seeds = [1], [2, 3, 4]

grown = {"zero output at 80 %": dict(start="2 x 64", growths=[(0.8, _six)], operator="zero_output")}
