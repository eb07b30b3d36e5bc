# Long runs: is it growing that helps, or a gentle start? The target of frontier.py, 6 layers x 64 (0.29M weights
# without embeddings), at 80 tokens per parameter, and at 20. No text is seen twice. At 80 AdamW's rate, for embeddings
# and vectors, and the decay are the grown run's as tuned at 6 x 32 (gentle_start_32.py), for all but one: with them the
# target was better on one seed of two. At 20 they are tuned on a seed that is not reported, and the target's come out
# the same. Muon's rate is frontier.py's best at 80. Gates that open early (Progressive Residual
# Warmup, arXiv 2603.05369) left the code after 1339b1c. What ran is in docs/studies/long_runs.md.
from lab.experiments import frontier as _f

settings = dict(_f.settings, muon_learning_rate=0.01, sampling="epochs", eval_interval=100_000, log_interval=20,
                eval_seqs=14_100)  # the whole validation set
target = "6 x 64"
_six, _at_80, _at_20 = dict(n_layer=6), dict(budgets=[80]), dict(budgets=[20])
_best = dict(rate=0.032, decay=0.75)
ladder = {
    "6 x 64": dict(_six, **_best),
    "6 x 64, AdamW 0.008": dict(_six, **_at_80, rate=0.008, decay=0.55),  # as tuned at 6 x 32
    "3 x 64": dict(_at_20, n_layer=3),
    "4 x 64": dict(n_layer=4),
}
starts = {
    "1 x 64": dict(n_layer=1, rate=0.008),
    "2 x 64": dict(n_layer=2, rate=0.008),
    "3 x 64, rate 0.008": dict(n_layer=3, rate=0.008),
    "3 x 64, rate 0.032 at 20": dict(n_layer=3, rate=0.032),
}

budgets, grown_at, sweep_at = [20, 80], [80], 20
decays = [0.35, 0.55, 0.75]
rates = dict(learning_rate=[0.004, 0.008, 0.016, 0.032, 0.064])
tune_seeds, seeds = [1], [11, 12, 13, 14, 15]

grown = {
    "2 to 6 layers at 2 %, masks": dict(start="2 x 64", growths=[(0.02, _six)], **_best),
    "3 to 6 layers at 10 %, masks": dict(start="3 x 64, rate 0.008", growths=[(0.10, _six)], **_best),
    "1 to 6 layers at 2 %, masks": dict(_at_20, start="1 x 64", growths=[(0.02, _six)]),
    "2 to 6 layers at 2 %, masks, at 20": dict(_at_20, start="2 x 64", growths=[(0.02, _six)], rate=0.008, decay=0.75),
    "3 to 6 layers at 45 %, masks": dict(_at_20, start="3 x 64, rate 0.008", growths=[(0.45, _six)], rate=0.008),
    "3 to 6 layers at 45 %, masks, start 0.032, at 20": dict(_at_20, start="3 x 64, rate 0.032 at 20",
                                                             growths=[(0.45, _six)], rate=0.008),
}
