# The main job: a small GPT on the bytes of Python's own standard library. It has 2 layers for 650 of
# its 750 iterations, then 6. (gpt2_msg.py grows all four dimensions.)
data_dir = "data/pystdlib"
out_dir = "out/pystdlib_msg"

# where it starts ...
block_size = 256
n_layer, n_embd, n_inner, n_head, head_dim = 2, 192, 768, 6, 32
# ... and how it grows: at iteration `at`, to these sizes
stages = [dict(at=650, n_layer=6)]
ramp_iters = 20

max_iters = 750
batch_tokens = 4096
micro_batch = 16
sampling = "random"  # the numbers in docs/evidence.md were measured so
optimizer = "muon"
muon_learning_rate = 0.04
learning_rate = 2e-3  # of AdamW, for embeddings and vectors
warmup_iters = 50
decay_frac = 1 / 3
eval_interval = 50
eval_seqs = 256
