"""
The number format of a run, decided in one place for the model's products, Muon's products and
float16's gradient scaling.
"""
import functools
import math
import platform
import re
import time

import torch

from base.errors import UserError

PEAK_FLOPS = {"B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12,
              "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12, "V100": 125e12,
              "T4": 65e12}  # dense, half precision, from the data sheets; longer names first


def known_peak(device):
    """A device's peak FLOP/s in half precision, looked up by name; 0 if unknown."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((v for k, v in PEAK_FLOPS.items() if re.search(rf"(?<!\d){k}(?!\d)", name)), 0.0)


def common_dtype(wanted, ranks, saved=None):
    """The dtype to autocast to: the same on all ranks, and the same after a resume."""
    if wanted == "auto" and saved and saved.get("autocast", [""])[0] == ranks.device.type:
        wanted = saved["autocast"][1]
    dtype = pick_dtype(wanted, ranks.device)
    if wanted == "auto" and ranks.device.type == "cpu" and \
            ranks.any(dtype == torch.float32):  # it is measured, so ranks may differ
        dtype = torch.float32
    if ranks.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # float32 products may use TF32 tensor cores
    return dtype


def pick_dtype(wanted, device):
    """The dtype to autocast to. "auto": bfloat16 where it is faster, else float16 (CUDA) or float32."""
    if wanted == "float16" and device.type != "cuda":
        raise UserError(f"dtype=float16: only on CUDA devices (this is {device.type}), where its "
                        "gradients are scaled; use --dtype=auto")
    if wanted != "auto":
        return getattr(torch, wanted)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and bfloat16_pays() else torch.float32


@functools.cache
def bfloat16_pays():
    """
    Is bfloat16 faster than float32 on this CPU? Not without bfloat16 instructions. With them it is
    measured, as the best of several products: some such CPUs are twice as fast in float32.
    """
    known = getattr(torch.cpu, "get_capabilities", dict)()
    if platform.machine() in ("x86_64", "AMD64") and (
            torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")  # or ATEN_CPU_CAPABILITY
            or known and not known.get("avx512_bf16") and not known.get("amx_bf16")):
        return False
    x, best = torch.randn(512, 512), {torch.bfloat16: math.inf, torch.float32: math.inf}
    for dtype in [*best] * 20:
        a, started = x.to(dtype), time.perf_counter()
        torch.mm(a, a)
        best[dtype] = min(best[dtype], time.perf_counter() - started)
    return best[torch.bfloat16] < 0.8 * best[torch.float32]
