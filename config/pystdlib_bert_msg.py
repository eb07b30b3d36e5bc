# BERT on the same bytes as pystdlib_msg, grown in all four dimensions. Takes about seven minutes on
# one CPU core. In this data a "sentence" is a line, and a document is a file.
model = "bert"
data_dir = "data/pystdlib"
out_dir = "out/pystdlib_bert_msg"

block_size = 128
n_layer, n_embd, n_inner, n_head, head_dim = 2, 64, 256, 2, 32
stages = [
    dict(at=500, n_embd=128, n_inner=512),
    dict(at=650, n_head=4),
    dict(at=800, n_layer=4),
]
ramp_iters = 60

max_iters = 1800
batch_tokens = 2048
micro_batch = 16
optimizer = "muon"
muon_learning_rate = 0.01
learning_rate = 1e-3  # of AdamW, for embeddings, heads and vectors
warmup_iters = 100
decay_frac = 0.5
eval_interval = 100
eval_seqs = 512
