# Bert-large, grown as the MSG paper does (for GPUs).
from config.bert_base_msg import *  # noqa: F403

out_dir = "out/bert_large_msg"
n_layer, n_embd, n_head, n_inner = 6, 512, 8, 1024
stages = [
    dict(at=20_000, n_inner=4096),
    dict(at=40_000, n_layer=12),
    dict(at=60_000, n_embd=1024),
    dict(at=80_000, n_head=16),
    dict(at=100_000, n_layer=24),
]
micro_batch = 16
