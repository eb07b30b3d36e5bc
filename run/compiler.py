"""
torch.compile, block by block or for the whole model. It works in place, so state-dict keys stay clean.
One block's graph serves all layers. Values that change over time are tensors, so a ramp never
recompiles. Reaching Dynamo's recompile limit is an error, not a silent fall back to eager.

Importing torch._dynamo creates the compile cache folder, and fails if it cannot. So functions import
it, and choose() creates the folder first. torch's optimizers import it too.
"""
import contextlib
import functools
import os
import signal
import warnings

import torch

from base.errors import UserError, first_line

REMEDIES = (  # part of torch's error message: what to type
    ("Python.h", "its compiler lacks Python's headers: apt-get install python3-dev"),
    ("C++ compiler", "apt-get install g++ (on a Mac, xcode-select --install), or set CXX to a compiler"),
    ("C compiler", "apt-get install gcc, or set CC to a compiler"),
    ("riton", "pip install triton"))


def compile_model(model, mode):
    """Compile `model` in place. mode: "block", "model" or "none"."""
    if mode == "none":
        return
    import torch._dynamo
    # under DDP Dynamo would split each block's graph at 1 MiB of parameters, to send gradients early:
    # a block as wide as GPT-2's then compiles in 27 s, not 4 s
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = 256  # Muon has a graph for each shape and number of layers
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in ([*model.blocks, model.row_loss] if mode == "block" else [model]):
        module.compile(fullgraph=True, dynamic=False)


def choose(mode, device):
    """
    Resolve mode "auto": "block" where torch.compile works, else "none". Returns (mode, why). Call it
    before any other use of torch.compile and before making an optimizer. UserError if torch.compile
    was asked for and does not work.
    """
    make_cache_dir()
    if mode == "none":
        return mode, ""
    fault = broken(torch.device(device).type)
    if fault and mode != "auto":
        raise UserError(f"compile={mode}: torch.compile does not work here ({fault}): put that right, "
                        "or use --compile=none, which is slower")
    if fault:
        return "none", f"torch.compile does not work here, so this run is slower ({fault})"
    return ("block" if mode == "auto" else mode), ""


def make_cache_dir():
    """Make the compile cache folder, if one is named. UserError if it cannot be made."""
    path = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    try:
        os.makedirs(os.path.abspath(path), exist_ok=True)
    except OSError as e:
        raise UserError(f"TORCHINDUCTOR_CACHE_DIR={path}: cannot be made ({e.strerror}): name "
                        "another folder, or unset it") from None


@functools.cache
def broken(device_type):
    """None if torch.compile works on the device, else the first line of its error."""
    try:
        with warnings.catch_warnings(), undisturbed():
            warnings.simplefilter("ignore")
            x = torch.ones(8, device=device_type)
            torch.compile(lambda x: x.sin() + 1, fullgraph=True)(x)
        return None
    except Exception as e:  # no compiler, no Triton, an unsupported platform, ...
        return first_line(e)[:200] + next((f": {todo}" for sign, todo in REMEDIES if sign in str(e)), "")


@contextlib.contextmanager
def undisturbed():
    """
    Block stop signals in this thread, and so in the compilers it starts. A terminal or scheduler sends
    them to all processes of a run, but the run needs its compiler to end its step. Its other threads
    still receive them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    had = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, had)


def forget_graphs():
    """Drop compiled graphs, whose shapes will not come back, and the memory they hold."""
    import torch._dynamo
    torch._dynamo.reset()


def graphs():
    """The number of graphs compiled so far in this process."""
    import torch._dynamo
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
