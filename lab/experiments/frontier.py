# When is growing better than the best fixed size? The target has 6 layers x 64 (0.29M parameters without
# embeddings). Bytes of Python's standard library, one CPU thread. Budgets are tokens per parameter of
# the target. Those of 2.5, 10 and 40 only serve the curves from scratch.
settings = dict(
    data_dir="data/pystdlib", block_size=128, head_dim=32, batch_tokens=2048, micro_batch=16,
    sampling="random",
    n_embd=64, n_head=2, n_inner=256, optimizer="muon", learning_rate=2e-3, warmup_iters=30,
    eval_interval=1000, eval_seqs=512, log_interval=100, dtype="float32",
    compile="none")

target = "6 x 64"
ladder = {
    "1 x 64": dict(n_layer=1),
    "2 x 64": dict(n_layer=2, rate=0.01),  # equals 0.02 within seeds; grown runs start here
    "3 x 64": dict(n_layer=3),
    "6 x 64": dict(n_layer=6),
    "12 x 64": dict(n_layer=12, budgets=[20, 80])}
starts = {"2 x 32": dict(n_layer=2, n_embd=32, n_head=1, n_inner=48)}  # only grown from, not compared

budgets = [2.5, 5, 10, 20, 40, 80]
grown_at = [5, 20, 80]
decays = [0.1, 0.2, 0.35, 0.55, 0.75]  # shares of the compute
rates = dict(muon_learning_rate=[0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16])
sweep_at = 5.0
seeds = [1, 2, 3, 4, 5]

_six = dict(n_layer=6)
_paper = [(0.1, dict(n_inner=256)), (0.2, dict(n_layer=3)), (0.3, dict(n_embd=64)),
          (0.4, dict(n_head=2)), (0.5, dict(n_layer=6))]  # the paper's order and places
_ways = {
    "stack at 2 %": dict(start="2 x 64", growths=[(0.02, _six)], operator="stack"),
    "MSG at 2 %": dict(start="2 x 64", growths=[(0.02, _six)], operator="msg"),
    "MSG at 80 %": dict(start="2 x 64", growths=[(0.8, _six)], operator="msg"),
    "zero output at 80 %": dict(start="2 x 64", growths=[(0.8, _six)], operator="zero_output"),
    "stack at 80 %": dict(start="2 x 64", growths=[(0.8, _six)], operator="stack"),
    "zero output at 65 %": dict(start="2 x 64", growths=[(0.65, _six)], operator="zero_output"),
    "stack at 40 %": dict(start="2 x 64", growths=[(0.4, _six)], operator="stack"),
    "as the paper, MSG": dict(start="2 x 32", growths=_paper, operator="msg"),
}
# at 2.5 tokens per parameter too, those at 80 %: there a growth at 2 % would fall in the warmup
grown = {k: dict(v, budgets=[2.5, *grown_at]) if k.endswith("80 %") else v for k, v in _ways.items()}
_law = [(0.12, dict(n_layer=3)), (0.29, _six)]  # about where lab.law would grow, at 20 tokens per parameter
grown.update({f"as the law, {name}": dict(start="2 x 64", growths=_law, operator=op, budgets=[20])
              for name, op in (("MSG", "msg"), ("zero output", "zero_output"))})
