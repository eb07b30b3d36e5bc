# Does the schedule that plan.py --search found in 30 minutes (config/pystdlib_found.py) hold up? At
# the search's own length: the run from scratch, the hand-written schedule and the found one, each as
# long as the search ran it, all at the same learning rate.
ablation = True
config = "config/pystdlib_msg.py"
seeds = [1337, 1, 2]
settings = dict(warmup_iters=39, ramp_iters=16, max_iters=453, eval_interval=18, eval_seqs=64,
                log_interval=4, dtype="bfloat16")
contestants = {
    "from scratch": dict(n_layer=6, n_embd=192, n_inner=768, n_head=6, stages=[], max_iters=397,
                         ramp_iters=14, eval_interval=16),
    "pystdlib_msg, by hand": dict(stages=[dict(at=107, n_embd=192, n_inner=768),
                                          dict(at=160, n_head=6), dict(at=200, n_layer=6)]),
    "pystdlib_found": dict(n_layer=2, n_embd=192, n_inner=768, n_head=4,
                           stages=[dict(at=249, n_layer=6, n_head=6)]),
}
