# A family of three GPTs with 2, 4 and 8 layers, on the bytes of Python's own standard library. One trunk
# grows from size to size. Its learning rate is constant but for one step down. Before each growth a decay branches off and finishes
# that size, in out/pystdlib_family/2x32 and 4x32. The smallest sees 20 tokens per parameter of the largest.
# The others start from the trunk and need fewer tokens of their own.
data_dir = "data/pystdlib"
out_dir = "out/pystdlib_family"

block_size = 128
n_layer, n_embd, n_inner, n_head, head_dim = 2, 32, 128, 1, 32
stages = [dict(at=624, n_layer=4, learning_rate=8e-3), dict(at=816, n_layer=8)]
finish_stages = 336  # decay iterations that finish 2 layers, and then 4
ramp_iters = 19

max_iters = 1459
decay_iters = 403  # the decay of the 8 layers
batch_tokens = 2048
micro_batch = 16
optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 0.032  # of AdamW, for embeddings and vectors, until the first growth
warmup_iters = 30
dtype = "float32"  # the numbers in docs/evidence.md were measured so
compile = "none"   # models this small train too briefly to repay compiling
eval_interval = 144
eval_seqs = 14_100  # the whole validation set
seed = 3  # the first reported in docs/evidence.md
