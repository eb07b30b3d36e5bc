# A plan like FLM-101B's (arXiv 2309.03852): 16B -> 51B -> 101B, on 245, 40 and 27 billion tokens. The
# last sizes are the published ones. The two smaller are derived from their parameter counts, with
# heads of 128. To see it: python -m lab.plan config/flm_101b.py --dry
data_dir = "data/text"
out_dir = "out/flm_101b"

vocab_size = 100_352  # 100,256 ids, padded to 64 or more
block_size = 2048
head_dim = 128
n_layer, n_embd, n_head, n_inner = 48, 5120, 40, 20_480
stages = [
    dict(at=52_000, n_layer=70, n_embd=7680, n_head=60, n_inner=30_720),
    dict(at=60_400, n_layer=80, n_embd=10_240, n_head=80, n_inner=40_960),
]
ramp_iters = 500

max_iters = 66_020
batch_tokens = 4_718_592  # 2304 sequences of 2048
micro_batch = 2
shard = "fsdp"  # no stage fits one device
learning_rate = 1.5e-4
warmup_iters = 2_000
eval_interval = 1_000
eval_seqs = 960
