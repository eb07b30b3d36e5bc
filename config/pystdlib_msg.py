# The main job: a small GPT on the source text of Python's own standard library, byte by byte,
# grown in all four dimensions to 6 layers x 192. 739 s on two cores of an AMD EPYC without bfloat16.
data_dir = "data/pystdlib"
out_dir = "out/pystdlib_msg"

# where it starts ...
block_size = 256
n_layer, n_embd, n_inner, n_head, head_dim = 2, 128, 512, 4, 32
# ... and how it grows: at iteration `at`, to these sizes
stages = [
    dict(at=240, n_embd=192, n_inner=768),
    dict(at=360, n_head=6),
    dict(at=450, n_layer=6),
]
ramp_iters = 40

max_iters = 1000
batch_tokens = 4096
micro_batch = 16
optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 2e-3  # AdamW's, for embeddings and vectors
warmup_iters = 50
decay_frac = 0.5
eval_interval = 100
eval_seqs = 256
