# The main job with Llama: the same bytes, schedule and rates. SwiGLU has three matrices: 512 wide it
# weighs what GPT's FFN does with 768.
from config.pystdlib_msg import *  # noqa: F403

model = "llama"
out_dir = "out/pystdlib_llama_msg"
n_inner = 344
stages = [
    dict(at=240, n_embd=192, n_inner=512),
    dict(at=360, n_head=6),
    dict(at=450, n_layer=6),
]
