# Found by plan.py --search: 2L_192_4h_768, 55%: layers 6 heads 6.
# To the loss of a short run from scratch (1.5083, 397 iterations,
# 226 s): 133 s predicted, 121 s measured. rate is the next sizes' (loss, loss per
# second), read only with grow_when="rate".
from config.pystdlib_msg import *  # noqa: F403

dtype = 'bfloat16'
out_dir = "out/pystdlib_msg_found"
n_embd, n_inner, n_head, n_layer = 192, 768, 4, 2
stages = [
    dict(at=935, n_layer=6, n_head=6,
         rate=[[2.9448, 0.06484], [2.7066, 0.03505], [2.4685, 0.008305], [2.2304, 0.004643], [1.9922, 0.005378], [1.7541, 0.003266], [1.516, 0.001676], [1.2778, 0.0006592]]),
]
max_iters = 1700
ramp_iters = 60
