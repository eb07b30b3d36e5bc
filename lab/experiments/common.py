# Shared settings of the CPU experiments: a GPT of 7 layers x 192 (3.2M parameters) on the bytes of
# Python's standard library. This is not an experiment itself.
target = dict(n_layer=7, n_embd=192, n_inner=768, n_head=6)
small = dict(n_layer=2, n_embd=128, n_inner=512, n_head=4)
one_layer = {**target, "n_layer": 1}
tiny = {**small, "n_layer": 1}

settings = dict(
    data_dir="data/pystdlib", block_size=256, head_dim=32, batch_tokens=2048, micro_batch=8,
    sampling="random",
    max_iters=500, schedule="wsd", warmup_iters=25, decay_frac=0.25, ramp_iters=25,
    eval_interval=25, eval_seqs=128)

# ablations compare at these learning rates; evidence tunes its own
muon = dict(optimizer="muon", muon_learning_rate=0.04, learning_rate=2e-3)
adamw = dict(optimizer="adamw", learning_rate=4e-3)
seeds = [1, 2, 3]

# most ablations vary this: one late growth, in a run of a minute
one_jump = dict(settings, **tiny, **muon, max_iters=400,
                stages=[dict(at=300, **{**target, "n_layer": 4})])
