# A family of three sizes, trained as one growing run or one by one: 2, 4 and 8 layers x 32. One by one they
# see the same tokens, 20 per parameter of the largest. Bytes of Python's standard library, one CPU thread. Each size
# from scratch has its own learning rate of AdamW, for embeddings and vectors, and its own decay; the family
# has its own too. All are tuned on a seed that is not reported. Muon's rate, 0.02, was the best of all three
# sizes at a rate of AdamW of 0.002 (0.01 and 0.04 were worse), and for 8 layers at 0.016 (0.01 was worse).
settings = dict(
    data_dir="data/pystdlib", block_size=128, head_dim=32, batch_tokens=2048, micro_batch=16,
    n_embd=32, n_head=1, n_inner=128, optimizer="muon", muon_learning_rate=0.02, warmup_iters=30,
    eval_interval=100_000, eval_seqs=14_100,  # only at the end, on the whole validation set
    log_interval=20, dtype="float32", compile="none")

target = "8 x 32"
ladder = {
    "2 x 32": dict(n_layer=2, tokens=1),  # as many tokens as the target, not as much compute
    "4 x 32": dict(n_layer=4, tokens=1),
    "8 x 32": dict(n_layer=8)}

budgets = [20]
decays = [0.2, 0.35, 0.55, 0.75, 0.9]  # shares of the run
rates = dict(learning_rate=[0.004, 0.008, 0.016, 0.032, 0.064, 0.128])
sweep_at = 20
tune_seeds = [1]
seeds = [3, 4, 5, 6, 7]
save_every = 48  # iterations, 1/20 of the run: growths and decays begin at multiples

_sizes = dict(members=["2 x 32", "4 x 32", "8 x 32"], tokens=20)
# shares of the target's iterations: the trunk at each size; the decay of each member
_long = dict(_sizes, trunk=[0.65, 0.2, 0.25], decay=[0.35, 0.35, 0.42])
_shorter = dict(_sizes, trunk=[0.65, 0.15, 0.2], decay=[0.35, 0.35, 0.35])
families = {  # rate: from the first growth on
    "masks": dict(_long, rate=0.008),
    "masks, one rate": dict(_long, tuning=True),
    "masks, rate 0.016": dict(_long, rate=0.016, tuning=True),
    "masks, rate 0.004": dict(_long, rate=0.004, tuning=True),
    "shorter, rate 0.016": dict(_shorter, rate=0.016, tuning=True),
    "shorter, rate 0.008": dict(_shorter, rate=0.008, tuning=True)}
