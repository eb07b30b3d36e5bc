# Upscale a trained model, or train it on? How does the answer depend on its tokens per parameter? A small
# model of 2 layers x 32 (24.6k weights without embeddings). Bytes of Python's standard library, none twice.
settings = dict(
    data_dir="data/pystdlib", block_size=128, head_dim=16, batch_tokens=2048, micro_batch=16,
    optimizer="muon", warmup_iters=30, decay_frac=0.35, eval_interval=100_000, eval_seqs=4096,
    log_interval=100, dtype="float32", compile="none")
small = dict(n_layer=2, n_embd=32, n_head=2, n_inner=128)
tokens = [80, 320, 1000]     # tokens per parameter of the small model's first training
extras = [0.1, 0.3, 1]       # extra compute afterwards, as shares of the small model's
larger = {                   # the sizes it is upscaled to; zero outputs keep its function exactly
    "x 1.5, depth": dict(n_layer=3),
    "x 1.5, width": dict(n_embd=48),
    "x 2, depth": dict(n_layer=4),
    "x 2, width": dict(n_embd=48, n_head=3, n_inner=160),
    "x 2, both": dict(n_layer=3, n_embd=40, n_inner=144)}
target = "x 2, depth"        # also trained from scratch
rates = dict(muon_learning_rate=0.01, learning_rate=8e-3)  # peak rates from scratch, tuned on the small model
peaks = [1, 0.5, 0.25, 0.125]  # shares of these peaks to continue with; the tuning seed tries all
tune_seed, seeds = 1, [11, 12, 13]
