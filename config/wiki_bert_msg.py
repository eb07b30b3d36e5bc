# A small BERT on real text, to try out on GLUE: 4 layers x 192 (3.4M parameters), grown in all four
# dimensions. Takes less than an hour on one CPU core. Data: any English text, prepared with
# --tokenizer=wordpiece and the first 8,192 entries of BERT's vocabulary.
model = "bert"
data_dir = "data/wiki"
out_dir = "out/wiki_bert_msg"

# short rows and twice BERT's share of masks: with longer rows a model this small learns only word
# frequencies for thousands of iterations
block_size = 32
mask_frac = 0.3
n_layer, n_embd, n_inner, n_head, head_dim = 2, 128, 512, 4, 32
stages = [
    dict(at=4000, n_embd=192, n_inner=768),
    dict(at=4400, n_head=6),
    dict(at=4800, n_layer=4),
]
ramp_iters = 200

max_iters = 11000
batch_tokens = 2048
micro_batch = 64
optimizer = "muon"
muon_learning_rate = 0.02
learning_rate = 2e-3  # of AdamW, for embeddings, heads and vectors
warmup_iters = 100
decay_frac = 0.4
eval_interval = 200
eval_seqs = 1024
keep_checkpoints = 60  # all, 2 GB, to compare runs at equal loss
