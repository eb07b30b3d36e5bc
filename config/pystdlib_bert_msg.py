# BERT on the same bytes as pystdlib_msg, grown in all four dimensions. About ten minutes on two
# CPU cores. A "sentence" of this data is a line, a document a file.
model = "bert"
data_dir = "data/pystdlib"
out_dir = "out/pystdlib_bert_msg"

block_size = 256
n_layer, n_embd, n_inner, n_head, head_dim = 2, 128, 512, 4, 32
stages = [
    dict(at=400, n_embd=192, n_inner=768),
    dict(at=600, n_head=6),
    dict(at=750, n_layer=6),
]
ramp_iters = 60

max_iters = 1700
batch_tokens = 4096
micro_batch = 16
optimizer = "muon"
muon_learning_rate = 0.01
learning_rate = 1e-3  # AdamW's, for embeddings, heads and vectors
warmup_iters = 100
decay_frac = 0.5
eval_interval = 100
eval_seqs = 512
