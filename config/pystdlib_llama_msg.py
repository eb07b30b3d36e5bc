# Llama on the same bytes as pystdlib_msg, grown in all four dimensions. SwiGLU has three matrices:
# 512 wide it weighs what GPT's FFN does with 768. About thirteen minutes on two slow CPU cores.
model = "llama"
data_dir = "data/pystdlib"
out_dir = "out/pystdlib_llama_msg"

block_size = 256
n_layer, n_embd, n_inner, n_head, head_dim, kv_group = 2, 128, 344, 4, 32, 1
stages = [
    dict(at=240, n_embd=192, n_inner=512),
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
