# Does the schedule that lab.plan --search found in 30 minutes (config/pystdlib_found.py) hold up? At
# the search's own length: the run from scratch, the hand-written schedule and the found one, all at
# the same learning rate. The hand-written one gets a tenth more than the search gave it, too little
# to come to the loss of the run from scratch.
ablation = True
config = "config/pystdlib_msg.py"
seeds = [1337, 1, 2]
settings = dict(n_layer=2, n_embd=128, n_inner=512, n_head=4, muon_learning_rate=0.02, decay_frac=0.5,
                warmup_iters=50, ramp_iters=24, eval_interval=28, eval_seqs=64, log_interval=7,
                dtype="bfloat16")
contestants = {
    "from scratch": dict(n_layer=6, n_embd=192, n_inner=768, n_head=6, stages=[], max_iters=600,
                         ramp_iters=21, eval_interval=25, log_interval=6),
    "pystdlib_found": dict(n_layer=2, n_embd=192, n_inner=512, n_head=6, max_iters=683,
                           stages=[dict(at=376, n_layer=6, n_inner=768)]),
    "pystdlib_msg, by hand": dict(max_iters=740, stages=[
        dict(at=174, n_embd=192, n_inner=768), dict(at=261, n_head=6), dict(at=326, n_layer=6)]),
}
