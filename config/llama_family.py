# Llamas with the sizes of SmolLM2-135M and 360M in one run, at 20 tokens per parameter of the larger (for
# GPUs; on eight: torchrun --standalone --nproc_per_node=8 train.py config/llama_family.py).
# Data: data/text/prepare.py.
# A plan that has not been run. python -m lab.plan config/llama_family.py --dry --flops=989e12 --mfu=0.4
# --processes=8 (eight H100) says: 23.0 EFLOP, 24 % less than the 30.1 EFLOP one by one. The 135M takes
# 47 minutes, the 360M 74 more. By Chinchilla's law each reaches its loss from scratch if the growth
# wastes nothing. The learning rates and the lengths of the decays are guesses.
model = "llama"
data_dir = "data/text"
out_dir = "out/llama_family"

vocab_size = 49_152
block_size = 2048
head_dim, kv_group = 64, 3  # 9 query heads and 3 key/value heads, then 15 and 5
rope_theta = 100_000.0
n_layer, n_embd, n_inner, n_head = 30, 576, 1536, 9
stages = [dict(at=11_040, n_layer=32, n_embd=960, n_inner=2560, n_head=15, micro_batch=8)]
finish_stages = 2760
family = "end"  # the log says how to finish the 135M elsewhere meanwhile
ramp_iters = 280

max_iters = 20_200
decay_iters = 2760
batch_tokens = 524_288  # 256 sequences
micro_batch = 16
optimizer = "muon"
muon_learning_rate = 0.01
learning_rate = 1e-3
warmup_iters = 500
eval_interval = 460
eval_seqs = 960
