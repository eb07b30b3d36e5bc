# The baseline of wiki_bert_msg: the same target from scratch, for as many iterations.
from config.wiki_bert_msg import *  # noqa: F403

out_dir = "out/wiki_bert_scratch"
n_layer, n_embd, n_inner, n_head = 4, 192, 768, 6
stages = []
