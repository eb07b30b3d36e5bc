# frontier.py at one budget with AdamW, at its own learning rates.
from lab.experiments import frontier as _f

settings = dict(_f.settings, optimizer="adamw")
target = _f.target
ladder = {f"{n} x 64": dict(n_layer=n) for n in (1, 2, 3, 6)}
budgets, grown_at = [2.5, 5], [5]
decays = [0.35, 0.55]
rates = dict(learning_rate=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 0.016, 0.032])
sweep_at = 5.0
seeds = [1, 2, 3]
grown = {k: v for k, v in _f._ways.items() if k not in ("as the paper, MSG", "zero output at 65 %")}
