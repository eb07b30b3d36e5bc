# A Llama with SmolLM2-135M's sizes, grown in all four dimensions (for GPUs; on eight:
# torchrun --standalone --nproc_per_node=8 train.py config/llama_135m_msg.py).
# Data: data/text/prepare.py.
model = "llama"
data_dir = "data/text"
out_dir = "out/llama_135m_msg"

vocab_size = 49_152
block_size = 2048
head_dim, kv_group = 64, 3  # 9 query heads and 3 key/value heads at the end; heads grow in whole groups
rope_theta = 100_000.0
n_layer, n_embd, n_inner, n_head = 8, 384, 512, 6
stages = [  # the paper's order and places: 10, 20, 30, 40, 50 % of the run, ramps of 5 %
    dict(at=10_000, n_inner=1536),
    dict(at=20_000, n_layer=15),
    dict(at=30_000, n_embd=576),
    dict(at=40_000, n_head=9),
    dict(at=50_000, n_layer=30),
]
ramp_iters = 5_000

max_iters = 100_000
batch_tokens = 524_288  # 256 sequences
micro_batch = 16
learning_rate = 1e-3
schedule = "wsd"
warmup_iters = 2_000
eval_interval = 1_000
eval_seqs = 960
