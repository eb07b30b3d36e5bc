# Found by lab.plan --search: 2L_192_6h_512, 55%: layers 6 FFN 768.
# To the loss of a short run from scratch (1.2490, 600 iterations,
# 265 s): 177 s predicted, 184 s measured. rate is the next sizes' (loss, loss per
# second), read only with grow_when="rate".
from config.pystdlib_msg import *  # noqa: F403

dtype = 'bfloat16'
out_dir = "out/pystdlib_msg_found"
n_embd, n_inner, n_head, n_layer = 192, 512, 6, 2
stages = [
    dict(at=935, n_layer=6, n_inner=768,
         rate=[[2.7018, 0.02866], [2.5126, 0.01581], [2.3234, 0.008018], [2.1342, 0.006141], [1.945, 0.005849], [1.7558, 0.002407], [1.5667, 0.0009541], [1.3775, 0.0003319]]),
]
max_iters = 1700
ramp_iters = 60
decay_frac = 0.5
muon_learning_rate = 0.02
eval_interval = 100
