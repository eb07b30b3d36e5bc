# The baseline of bert_large_msg: Bert-large from scratch, everything else the same.
from config.bert_large_msg import *  # noqa: F403

out_dir = "out/bert_large_scratch"
n_layer, n_embd, n_head, n_inner = 24, 1024, 16, 4096
stages = []
