"""Growing needs little more memory than the grown model and its optimizer, and leaves nothing behind."""
import subprocess
import sys

import pytest
from runs import ENV, ROOT

PEAK = """
import torch
from grow import grow
from model import GPT, GPTConfig

def rss(key="VmRSS"):
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith(key)) / 1024

def steady(config):
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, fused=True)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer

torch.set_num_threads(1)
small = dict(block_size=256, vocab_size=8192, n_layer=6, n_embd=512, n_head=8, n_inner=2048)
large = dict(n_layer=12, n_embd=768, n_head=12, n_inner=3072)
steady(GPTConfig(**{**small, "n_layer": 1}))  # whatever the libraries take at first use
base = rss()
model, optimizer = steady(GPTConfig(**small))
open("/proc/self/clear_refs", "w").write("5")  # restart the high-water mark
model, optimizer = grow(model, optimizer, **large)
peak = rss("VmHWM") - base
need = 3 * 4 * model.num_params() / 2**20
print(peak, need)
"""

LEAK = """
import gc, os, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from grow import grow, set_mask
from model import GPT, GPTConfig

def rss():
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmRSS")) / 1024

torch.set_num_threads(1)
os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
store = dist.HashStore()
dist.init_process_group("gloo", store=store, rank=0, world_size=1)
model = GPT(GPTConfig(block_size=32, vocab_size=4096, n_layer=4, n_embd=512, n_head=8, n_inner=2048))
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
idx = torch.randint(4096, (2, 32))
seen = []
for n in range(21):
    if n:
        parallel = None
        model, optimizer = grow(model, optimizer, n_inner=model.config.n_inner + 4)
        set_mask(model, 1)
    parallel = DDP(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    parallel(idx, idx)[1].backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    gc.collect()
    seen.append(rss())
live = [t for t in gc.get_objects() if isinstance(t, torch.nn.Parameter) and t.numel()]
print(seen[5], seen[-1], 4 * 4 * model.num_params() / 2**20, len(live), len(list(model.parameters())))
"""


def run(code):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True,
                          text=True, env={**ENV, "MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return map(float, done.stdout.split())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_of_growth():
    peak, need = run(PEAK)
    assert peak < 1.1 * need, f"growing took {peak:.0f} MiB, the grown state is {need:.0f} MiB"


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_nothing_is_left_of_old_models():
    """20 growths under DDP: neither reducers nor parameters nor optimizer state pile up."""
    early, late, size, live, want = run(LEAK)
    assert live == want
    # each of 15 leaked generations would add `size` or, of gradients alone, a quarter of it
    assert late - early < 0.5 * size, f"{early:.0f} -> {late:.0f} MiB for a model of {size:.0f} MiB"
