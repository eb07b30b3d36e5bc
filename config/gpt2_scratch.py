# The baseline of gpt2_msg: GPT-2 124M from scratch, everything else the same.
from config.gpt2_msg import *  # noqa: F403

out_dir = "out/gpt2_scratch"
n_layer, n_embd, n_inner, n_head = 12, 768, 3072, 12
stages = []
