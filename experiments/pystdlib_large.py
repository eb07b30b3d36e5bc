# A larger run: 12 layers x 256 (9.6M parameters), whose step costs 20 times that of the 2 x 128
# and 11 times that of the one layer it grows from. By estimate two hours on two CPU cores.
from experiments import common as _c

settings = dict(_c.settings, max_iters=320, eval_interval=16)
seeds = _c.seeds
_target = dict(n_layer=12, n_embd=256, n_inner=1024, n_head=8)
_adamw = dict(optimizer="adamw", against="scratch AdamW", flops=("scratch AdamW", 0.6))
_muon = dict(optimizer="muon", learning_rate=4e-3, against="scratch Muon",
             flops=("scratch Muon", 0.6))
_four = dict(_c.small, stages=[dict(at=80, n_embd=256, n_inner=1024, n_head=8),
                               dict(at=140, n_layer=12)])
_one = dict(_target, n_layer=1, stages=[dict(at=100, n_layer=12)])

contestants = {
    "scratch AdamW": dict(_target, optimizer="adamw", sweep=dict(learning_rate=[1e-3, 2e-3, 4e-3])),
    "scratch Muon": dict(_target, optimizer="muon", learning_rate=4e-3,
                         sweep=dict(muon_learning_rate=[0.01, 0.02, 0.04])),
    "2 x 128, wider, deeper: MSG, AdamW": dict(_four, **_adamw),
    "2 x 128, wider, deeper: MSG, Muon": dict(_four, **_muon),
    "one layer, MSG to twelve, AdamW": dict(_one, **_adamw),
    "one layer, MSG to twelve, Muon": dict(_one, **_muon),
}
