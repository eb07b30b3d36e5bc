# The baseline of pystdlib_bert_msg: the same target from the start, in about the same time.
from config.pystdlib_bert_msg import *  # noqa: F403

out_dir = "out/pystdlib_bert_scratch"
n_layer, n_embd, n_inner, n_head = 6, 192, 768, 6
stages = []
max_iters = 1300
