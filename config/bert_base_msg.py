# Bert-base, grown as the MSG paper does (for GPUs). Data: data/text/prepare.py --bert.
model = "bert"
data_dir = "data/text"
out_dir = "out/bert_base_msg"

block_size = 512
head_dim = 64
dropout = 0.1
n_layer, n_embd, n_head, n_inner = 3, 512, 8, 768
stages = [  # growths at 10, 20, 30, 40, 50 % of the run, ramps of 5 %
    dict(at=20_000, n_inner=3072),
    dict(at=40_000, n_layer=6),
    dict(at=60_000, n_embd=768),
    dict(at=80_000, n_head=12),
    dict(at=100_000, n_layer=12),
]
ramp_iters = 10_000

max_iters = 200_000
batch_tokens = 131_072  # 256 sequences of 512
micro_batch = 32
learning_rate = 1e-4
beta2 = 0.999
weight_decay = 0.01
warmup_iters = 10_000
decay_frac = 0.5
eval_interval = 2_000
eval_seqs = 1024
