# The baseline of pystdlib_msg: the same target from scratch, with tuned learning rate and decay.
from config.pystdlib_msg import *  # noqa: F403

out_dir = "out/pystdlib_scratch"
n_layer = 6
stages = []
max_iters = 500
decay_frac = 0.4  # tried 0.3, 0.5 and 0.7: the first two were alike
