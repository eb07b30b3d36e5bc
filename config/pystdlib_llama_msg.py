# Llama on the bytes of the main job, grown in all four dimensions, at GPT's learning rates. SwiGLU has
# three matrices: at width 512 it has as many parameters as GPT's FFN at 768.
from config.pystdlib_msg import *  # noqa: F403

model = "llama"
out_dir = "out/pystdlib_llama_msg"
n_layer, n_embd, n_inner, n_head = 2, 128, 344, 4
stages = [
    dict(at=240, n_embd=192, n_inner=512),
    dict(at=360, n_head=6),
    dict(at=450, n_layer=6),
]
ramp_iters = 40
max_iters = 1000
decay_frac = 0.5
muon_learning_rate = 0.02
eval_interval = 100
