# Long runs at a quarter of the weights of gentle_start.py: the target has 6 layers x 32 (74 thousand weights
# without embeddings), at 80 tokens per parameter, and at 20. Is it growing that helps, or a gentle start? AdamW's rate
# and the decay are tuned for the contestants that decide, on a seed that is not reported. Muon's rate was tried on the
# target. Gates that open early and outputs that start at 0 ran too, and left the code after 1339b1c. What ran is in
# docs/studies/long_runs.md.
from lab.experiments import gentle_start as _g

settings = dict(_g.settings, n_embd=32, n_head=1, n_inner=128, log_interval=100)
target = "6 x 32"
_six, _at_80, _at_20 = dict(n_layer=6), dict(budgets=[80]), dict(budgets=[20])
_muon = {rate: dict(_at_20, settings=dict(muon_learning_rate=rate)) for rate in (0.02, 0.04)}
_adamw = dict(optimizer="adamw", muon_learning_rate=0.02)  # for matrices too; 0.02 is the default
ladder = {
    "6 x 32": _six,
    "3 x 32": dict(_at_80, n_layer=3, rate=0.008),
    "2 x 32, at 20": dict(_at_20, n_layer=2),
    "3 x 32, at 20": dict(_at_20, n_layer=3),
    "4 x 32, at 20": dict(_at_20, n_layer=4),
    **{f"{n} x 32, Muon {m}, at 20": dict(e, n_layer=n) for n in (2, 3, 6) for m, e in _muon.items()},
    "12 x 32": dict(_at_80, n_layer=12, rate=0.008),
    "6 x 32, Muon 0.02": dict(_six, **_at_80, rate=0.008, settings=dict(muon_learning_rate=0.02)),
    "6 x 32, Muon 0.005": dict(_six, **_at_80, rate=0.008, settings=dict(muon_learning_rate=0.005)),
    "6 x 32, AdamW 0.002": dict(_six, **_at_80, rate=0.002),  # as in frontier.py
    "2 x 32, AdamW alone": dict(_at_80, n_layer=2, settings=_adamw, rate=0.008),
    "3 x 32, AdamW alone": dict(_at_80, n_layer=3, settings=_adamw, rate=0.008),
    "6 x 32, AdamW alone": dict(_six, **_at_80, settings=_adamw),
    "6 x 32, warmup 10 %, AdamW alone": dict(_six, **_at_80, settings=dict(_adamw, warmup_iters=288), rate=0.016),
}
starts = {
    "1 x 32": dict(n_layer=1, rate=0.008),
    "2 x 32": dict(n_layer=2, rate=0.008),
    "3 x 32, rate 0.032 at 20": dict(n_layer=3, rate=0.032),
    **{f"3 x 32, Muon {m}, rate 0.032": dict(n_layer=3, rate=0.032, settings=dict(muon_learning_rate=m))
       for m in _muon},
    "2 x 32, AdamW 0.002": dict(n_layer=2, rate=0.002),
    "2 x 16": dict(n_layer=2, n_embd=16, n_inner=64, rate=0.008),
    "6 x 16": dict(_six, n_embd=16, n_inner=64, rate=0.008),
}

budgets, grown_at, sweep_at = [20, 80], [20, 80], 80
decays = [0.35, 0.55, 0.75]
rates = dict(learning_rate=[0.002, 0.004, 0.008, 0.016, 0.032, 0.064])
tune_seeds, seeds = [1], [11, 12, 13, 14, 15]

_wide, _adamw_2 = dict(n_embd=32, n_inner=128), "2 x 32, AdamW alone"
_early = dict(rate=0.032, decay=0.75)  # as tuned for masks
grown = {
    "2 to 6 layers at 2 %, masks": dict(start="2 x 32", growths=[(0.02, _six)]),
    "2 to 6 layers at 2 %, masks, AdamW 0.002": dict(_at_80, start="2 x 32, AdamW 0.002", growths=[(0.02, _six)],
                                                     rate=0.002),
    "2 to 6 layers at 2 %, masks, AdamW alone": dict(_at_80, start=_adamw_2, growths=[(0.02, _six)]),
    "2 to 6 layers at 2 %, copies, AdamW alone": dict(_at_80, start=_adamw_2, growths=[(0.02, _six)],
                                                      operator="stack"),
    "2 to 6 layers at 2 %, copies": dict(_early, start="2 x 32", growths=[(0.02, _six)], operator="stack"),
    "1 to 6 layers at 2 %, masks": dict(start="1 x 32", growths=[(0.02, _six)]),
    **{f"3 to 6 layers at {at} %, masks": dict(_at_80, start="3 x 32", growths=[(at / 100, _six)], decay=0.55)
       for at in (10, 25, 45)},
    "3 to 6 layers at 45 %, masks, at 20": dict(_at_20, start="3 x 32", growths=[(0.45, _six)]),
    "3 to 6 layers at 45 %, masks, start 0.032, at 20": dict(_at_20, start="3 x 32, rate 0.032 at 20",
                                                             growths=[(0.45, _six)]),
    **{f"3 to 6 layers at 45 %, masks, Muon {m}, start 0.032, at 20": dict(
        _at_20, start=f"3 x 32, Muon {m}, rate 0.032", growths=[(0.45, _six)]) for m in _muon},
    **{f"3 to 6 layers at {at} %, zero outputs": dict(
        _at_80, start="3 x 32", growths=[(at / 100, _six)], operator="zero_output", rate=rate, decay=0.55)
       for at, rate in ((10, 0.008), (25, 0.008), (45, 0.002))},
    **{f"16 to 32 wide at {at} %, masks": dict(_at_80, **_early, start="6 x 16", growths=[(at / 100, _wide)])
       for at in (2, 10)},
    **{f"2 to 6 layers and 16 to 32 wide at {at} %, masks": dict(
        _at_80, rate=0.008, decay=0.55, start="2 x 16", growths=[(at / 100, {**_six, **_wide})]) for at in (2, 10)},
}
