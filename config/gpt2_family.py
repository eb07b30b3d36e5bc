# GPT-2 124M and 350M on OpenWebText in one run, at 20 tokens per parameter of the larger (for GPUs; on
# eight: torchrun --standalone --nproc_per_node=8 train.py config/gpt2_family.py).
# A plan that has not been run. python -m lab.plan config/gpt2_family.py --dry --flops=989e12 --mfu=0.4
# --processes=8 (eight H100) says: 17.6 EFLOP, 24 % less than the 23.2 EFLOP one by one. The 124M takes
# 32 minutes, the 350M 61 more. By Chinchilla's law each reaches its loss from scratch if the growth
# wastes nothing. The learning rates and the lengths of the decays are guesses.
data_dir = "data/openwebtext"
out_dir = "out/gpt2_family"

vocab_size = 50_304
block_size = 1024
head_dim = 64
n_layer, n_embd, n_inner, n_head = 12, 768, 3072, 12
stages = [dict(at=11_520, n_layer=24, n_embd=1024, n_inner=4096, n_head=16)]
finish_stages = 2880
family = "end"  # the log says how to finish the 124M elsewhere meanwhile
ramp_iters = 290

max_iters = 21_200
decay_iters = 2880
batch_tokens = 491_520  # 0.5M, as for GPT-2
micro_batch = 12
optimizer = "muon"
muon_learning_rate = 0.01
learning_rate = 6e-4
warmup_iters = 500
eval_interval = 480
eval_seqs = 960
