# GPT or Llama for a new run? Both train from scratch, 4 layers x 128 with equal parameters in the layers,
# on the same batches, with learning rates tuned the same way. Bytes of Python's standard library,
# 500 iterations of 4,096 bytes, float32.
settings = dict(
    data_dir="data/pystdlib", block_size=256, head_dim=32, batch_tokens=4096, micro_batch=16,
    sampling="random",
    n_layer=4, n_embd=128, n_head=4, max_iters=500, warmup_iters=30, decay_frac=0.5,
    optimizer="muon", learning_rate=2e-3, eval_interval=50, eval_seqs=512, dtype="float32")
seeds = [1, 2, 3]

_rates = dict(muon_learning_rate=[0.01, 0.02, 0.04, 0.08])
contestants = {
    "GPT": dict(n_inner=512, sweep=_rates),
    "Llama": dict(model="llama", n_inner=344, sweep=_rates, against="GPT")}
