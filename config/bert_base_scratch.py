# The baseline of bert_base_msg: Bert-base from scratch, everything else the same.
from config.bert_base_msg import *  # noqa: F403

out_dir = "out/bert_base_scratch"
n_layer, n_embd, n_head, n_inner = 12, 768, 12, 3072
stages = []
