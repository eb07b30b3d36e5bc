# A family of three sizes, trained as one growing run or one by one: 2, 4 and 8 layers x 32, on the same
# tokens, 20 per parameter of the largest. Bytes of Python's standard library, one CPU thread. Each size
# from scratch and the family have their own learning rate and decay, tuned on a seed that is not reported.
settings = dict(
    data_dir="data/pystdlib", block_size=128, head_dim=32, batch_tokens=2048, micro_batch=16,
    n_embd=32, n_head=1, n_inner=128, optimizer="muon", learning_rate=2e-3, warmup_iters=30,
    eval_interval=100_000, eval_seqs=14_100,  # only at the end, on the whole validation set
    log_interval=20, dtype="float32", compile="none")

target = "8 x 32"
ladder = {
    "2 x 32": dict(n_layer=2, tokens=1),  # as many tokens as the target, not as much compute
    "4 x 32": dict(n_layer=4, tokens=1),
    "8 x 32": dict(n_layer=8)}

budgets = [20]
decays = [0.2, 0.35, 0.55, 0.75, 0.9]  # shares of the run
rates = dict(muon_learning_rate=[0.005, 0.01, 0.02, 0.04, 0.08])
sweep_at = 20
tune_seeds = [1]
seeds = [3, 4, 5, 6, 7, 8, 9]  # with seed 2 a shorter family was tried: see docs/studies/family.md
save_every = 48  # iterations, 1/20 of the run: growths and decays begin at multiples

_sizes = dict(members=["2 x 32", "4 x 32", "8 x 32"], tokens=20)
_tried = dict(_sizes, trunk=[0.65, 0.2, 0.2], decay=[0.35, 0.35, 0.4], tuning=True)  # shares of the target's iterations
families = {
    "masks": dict(_sizes, trunk=[0.65, 0.2, 0.25], decay=[0.35, 0.35, 0.42]),
    "masks, shorter": _tried,
    "stack, shorter": dict(_tried, operator="stack"),
    "zero output, shorter": dict(_tried, operator="zero_output"),
    "masks, shorter, rate 0.01": dict(_tried, rate=0.01),
    "masks, shortest": dict(_tried, trunk=[0.65, 0.15, 0.2], decay=[0.35, 0.35, 0.35]),
}
