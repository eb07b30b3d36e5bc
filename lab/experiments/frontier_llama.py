# frontier.py at one budget with Llama's parts (RMSNorm, rotary embedding, SwiGLU), at equal parameters.
from lab.experiments import frontier as _f

settings = dict(_f.settings, model="llama", n_inner=172)
target = _f.target
ladder = {f"{n} x 64": dict(n_layer=n) for n in (2, 3, 6)}
budgets, grown_at = [2.5, 5], [5]
decays = [0.35, 0.55]
rates, sweep_at = _f.rates, _f.sweep_at
seeds = [1, 2, 3]
grown = {k: _f._ways[k] for k in ("MSG at 2 %", "MSG at 80 %", "zero output at 80 %")}
