# The main job, make train: grown late, against the tuned target from scratch, and against the small model
# that never grows and ends where the other grows. Three seeds, float32. Takes 1.5 hours on two cores.
settings = dict(dtype="float32")
seeds = [1, 2, 3]

contestants = {
    "6 layers from scratch": dict(config="config/pystdlib_scratch.py",
                                  sweep=dict(muon_learning_rate=[0.02, 0.04, 0.08])),
    "grown, 2 to 6 layers": dict(config="config/pystdlib_msg.py", against="6 layers from scratch"),
    "2 layers, never grown": dict(config="config/pystdlib_msg.py", stages=[], max_iters=650,
                                  against="6 layers from scratch"),
}
