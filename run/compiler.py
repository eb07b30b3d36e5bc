"""
torch.compile, in place, so that state-dict keys stay clean: block by block, or the whole model.
One block's graph serves all layers. What varies in time reaches it as tensors, so a ramp never
recompiles; running into Dynamo's recompile limit is an error here, never silent eager.
"""
import functools
import glob
import os
import struct
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
    if mode != "none":
        sweep_cache()
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


def sweep_cache():
    """
    Remove from torch.compile's disk cache what a killed compiler left half written: Inductor takes
    any .so that is there for a finished one. What another process is writing now is left alone.
    Returns the paths removed.
    """
    from torch._inductor.codecache import get_lock_dir
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    from torch.utils._filelock import FileLock
    removed = []
    for path in glob.glob(os.path.join(glob.escape(cache_dir()), "*", "*.*o")):
        if path.endswith((".so", ".o")) and not whole_elf(path):
            key = os.path.basename(path).partition(".")[0]
            try:
                with FileLock(os.path.join(get_lock_dir(), key + ".lock"), timeout=0):
                    if not whole_elf(path):  # it may have been finished just now
                        os.remove(path)
                        removed.append(path)
            except (OSError, TimeoutError):  # somebody has it in hand
                pass
    return removed


def whole_elf(path):
    """False for an ELF file (.so or .o of 64 bits, what compilers write on Linux) that ends early."""
    with open(path, "rb") as f:
        head = f.read(64)
    if len(head) < 64 or not any(head):  # the linker fills in the header last
        return False
    if head[:5] != b"\x7fELF\x02":
        return True  # another platform's format: nothing to say
    order = "<" if head[5] == 1 else ">"
    sections, = struct.unpack_from(order + "Q", head, 40)  # e_shoff: the table at the file's end
    size, count = struct.unpack_from(order + "HH", head, 58)
    return sections > 0 and os.path.getsize(path) >= sections + size * count


def forget_graphs():
    """Drop compiled graphs whose shapes will not come back, and what they hold."""
    torch._dynamo.reset()


def graphs():
    """How many graphs were compiled so far in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
