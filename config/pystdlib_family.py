# A family of three GPTs, 2, 4 and 8 layers, on the source text of Python's own standard library, byte by
# byte. One trunk at a constant rate grows from size to size. Before each growth a decay branches off it
# and leaves that size finished, in out/pystdlib_family/2x32 and 4x32. The smallest sees 20 tokens for each
# weight of the largest; the others start from the trunk, and need fewer of their own.
data_dir = "data/pystdlib"
out_dir = "out/pystdlib_family"

block_size = 128
n_layer, n_embd, n_inner, n_head, head_dim = 2, 32, 128, 1, 32
stages = [dict(at=624, n_layer=4), dict(at=816, n_layer=8)]
finish_stages = 336  # iterations of the decay that finishes 2 layers, then 4
ramp_iters = 19

max_iters = 1459
decay_iters = 403  # that of the 8 layers
batch_tokens = 2048
micro_batch = 16
optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 2e-3  # AdamW's, for embeddings and vectors
warmup_iters = 30
dtype = "float32"  # as its numbers in docs/evidence.md were measured
compile = "none"   # compiling takes longer than it spares, so small are they
eval_interval = 144
eval_seqs = 14_100  # all of the validation text
seed = 3  # the first of those that docs/evidence.md tells of
