"""
torch.compile, in place, so that state-dict keys stay clean: block by block, or the whole model.
One block's graph serves all layers. What varies in time reaches it as tensors, so a ramp never
recompiles; running into Dynamo's recompile limit is an error here, never silent eager.
"""
import functools
import warnings

import torch
import torch._dynamo


def compile_model(model, mode):
    """Compile `model` in place. mode: "block", "model" or "none"."""
    if mode == "none":
        return
    limit = "recompile_limit" if hasattr(torch._dynamo.config, "recompile_limit") \
        else "cache_size_limit"
    setattr(torch._dynamo.config, limit, 64)
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in ([*model.blocks, model.row_loss] if mode == "block" else [model]):
        module.compile(fullgraph=True, dynamic=False)


def choose(mode, device):
    """Resolve mode "auto": "block" where torch.compile works, else "none". Returns (mode, why)."""
    if mode != "auto":
        return mode, ""
    fault = broken(torch.device(device).type)
    return ("block", "") if fault is None else ("none", f"torch.compile does not work here: {fault}")


@functools.cache
def broken(device_type):
    """None if torch.compile works on the device, else the first line of what it says."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            x = torch.ones(8, device=device_type)
            torch.compile(lambda x: x.sin() + 1, fullgraph=True)(x)
        return None
    except Exception as e:  # no compiler, no Triton, an unsupported platform, ...
        return (str(e).strip() or type(e).__name__).splitlines()[0][:200]


def forget_graphs():
    """Drop compiled graphs whose shapes will not come back, and what they hold."""
    torch._dynamo.reset()


def graphs():
    """How many graphs were compiled so far in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
