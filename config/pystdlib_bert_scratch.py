# The baseline of pystdlib_bert_msg: the same target from scratch, with about the same compute.
from config.pystdlib_bert_msg import *  # noqa: F403

out_dir = "out/pystdlib_bert_scratch"
n_layer, n_embd, n_inner, n_head = 4, 128, 512, 4
stages = []
max_iters = 1200
