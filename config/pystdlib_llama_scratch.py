# The baseline of pystdlib_llama_msg: the same target from scratch, with the same optimizer and
# schedule, and as many iterations as fit in about the same time.
from config.pystdlib_llama_msg import *  # noqa: F403

out_dir = "out/pystdlib_llama_scratch"
n_layer, n_embd, n_inner, n_head = 6, 192, 512, 6
stages = []
max_iters = 690
