# GPT-2 124M on OpenWebText, grown in all four dimensions (for GPUs; on eight A100 of 40 GB:
# torchrun --standalone --nproc_per_node=8 train.py config/gpt2_msg.py).
data_dir = "data/openwebtext"
out_dir = "out/gpt2_msg"

block_size = 1024
head_dim = 64
n_layer, n_embd, n_inner, n_head = 3, 512, 768, 8
stages = [  # the paper's order and places: 10, 20, 30, 40, 50 % of the run, ramps of 5 %
    dict(at=10_000, n_inner=3072),
    dict(at=20_000, n_layer=6),
    dict(at=30_000, n_embd=768),
    dict(at=40_000, n_head=12),
    dict(at=50_000, n_layer=12),
]
ramp_iters = 5_000

max_iters = 100_000
batch_tokens = 491_520  # 0.5M, as for GPT-2
micro_batch = 12
learning_rate = 6e-4
schedule = "wsd"
warmup_iters = 2_000
eval_interval = 1_000
eval_seqs = 960
