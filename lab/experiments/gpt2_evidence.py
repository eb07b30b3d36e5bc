# GPT-2 124M on 2.5 billion tokens of OpenWebText, for GPUs. --parallel=8 gives each run its own GPU.
config = "config/gpt2_scratch.py"
settings = dict(max_iters=5000, warmup_iters=250, ramp_iters=250, micro_batch=24, eval_interval=100,
                decay_frac=0.25)
seeds = [1, 2, 3]
_start = dict(n_layer=3, n_embd=512, n_inner=768, n_head=8)
_paper = dict(_start, stages=[
    dict(at=500, n_inner=3072), dict(at=1000, n_layer=6), dict(at=1500, n_embd=768),
    dict(at=2000, n_head=12), dict(at=2500, n_layer=12)])
_one = dict(n_layer=1, stages=[dict(at=1500, n_layer=12)])
_adamw = dict(optimizer="adamw", against="scratch AdamW")
_muon = dict(optimizer="muon", learning_rate=1.8e-3, against="scratch Muon")

contestants = {
    "scratch AdamW": dict(optimizer="adamw", sweep=dict(learning_rate=[6e-4, 1.2e-3, 2.4e-3])),
    "scratch Muon": dict(optimizer="muon", learning_rate=1.8e-3,
                         sweep=dict(muon_learning_rate=[0.01, 0.02, 0.04])),
    "MSG as in the paper, AdamW": dict(_paper, **_adamw),
    "MSG as in the paper, Muon": dict(_paper, **_muon),
    "one layer, MSG to twelve, AdamW": dict(_one, **_adamw, flops=("scratch AdamW", 0.6)),
    "one layer, MSG to twelve, Muon": dict(_one, **_muon, flops=("scratch Muon", 0.6)),
    "one layer, stacked to twelve, Muon": dict(_one, **_muon, operator="stack",
                                               flops=("scratch Muon", 0.6)),
}
