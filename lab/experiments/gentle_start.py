# Long runs: is it growing that helps, or a gentle start? The target of frontier.py, 6 layers x 64 (0.29M
# weights), at 20 and 80 tokens per parameter. Early growth is compared with output projections that start
# at 0, and with gates on all layers that open early in the run, together or one by one (Progressive Residual
# Warmup, arXiv 2603.05369). No text is seen twice. AdamW's rate, for embeddings and vectors, and decays are
# tuned on a seed that is not reported. Muon's rate is frontier.py's best at 80. Not run.
from lab.experiments import frontier as _f

settings = dict(_f.settings, muon_learning_rate=0.01, sampling="epochs", eval_interval=100_000,
                eval_seqs=14_100)  # the whole validation set
target = "6 x 64"
_six, _to_80 = dict(n_layer=6), 11_520  # the target's iterations at 80 tokens per parameter
ladder = {
    "6 x 64": dict(_six, budgets=[20, 80, 160]),
    "3 x 64": dict(n_layer=3, budgets=[80]),
    "12 x 64": dict(n_layer=12, budgets=[80]),
    "6 x 64, outputs start at 0": dict(_six, settings=dict(zero_proj=True)),
    **{f"6 x 64, gates open over {share:.0%}, {how}": dict(_six, budgets=[80], settings=dict(
        residual_warmup_iters=round(share * _to_80), stagger=how == "in turn"))
       for share in (0.02, 0.06, 0.12, 0.3) for how in ("in turn", "together")},
}
starts = {"2 x 64": dict(n_layer=2), "1 x 64": dict(n_layer=1),
          "6 x 32": dict(_six, n_embd=32, n_head=1, n_inner=128)}

budgets, grown_at, sweep_at = [20, 80, 160], [20, 80], 80
decays = [0.35, 0.55, 0.75]
rates = dict(learning_rate=[0.002, 0.004, 0.008, 0.016, 0.032])
tune_seeds, seeds = [1], [11, 12, 13, 14, 15]

_wide = dict(n_embd=64, n_head=2, n_inner=256)
grown = {
    "2 to 6 layers at 2 %, masks": dict(start="2 x 64", growths=[(0.02, _six)]),
    "1 to 6 layers at 2 %, masks": dict(start="1 x 64", growths=[(0.02, _six)]),
    "2 to 6 layers at 2 %, masks in turn": dict(start="2 x 64", growths=[(0.02, _six)], ramp=0.06,
                                                settings=dict(stagger=True)),
    "2 to 6 layers at 2 %, copies": dict(start="2 x 64", growths=[(0.02, _six)], operator="stack"),
    **{f"3 to 6 layers at {at:.0%}, {how}": dict(start="3 x 64", growths=[(at, _six)], operator=operator)
       for at in (0.1, 0.25, 0.45) for how, operator in (("masks", "msg"), ("zero outputs", "zero_output"))},
    **{f"32 to 64 wide at {at:.0%}, masks": dict(start="6 x 32", growths=[(at, _wide)]) for at in (0.02, 0.1)},
}
