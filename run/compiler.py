"""
torch.compile, in place, so that state-dict keys stay clean: block by block, or the whole model.
One block's graph serves all layers. What varies in time reaches it as tensors, so a ramp never
recompiles; running into Dynamo's recompile limit is an error here, never silent eager.

torch._dynamo is imported in functions, for its import makes the folder of the compile cache, and
dies where that cannot be made; torch's optimizers import it too. choose() sees to that first.
"""
import contextlib
import functools
import os
import signal
import warnings

import torch

from base.errors import UserError, first_line

REMEDIES = (  # what torch says somewhere in its error, and what to type then
    ("Python.h", "its compiler lacks Python's headers: apt-get install python3-dev"),
    ("C++ compiler", "apt-get install g++ (on a Mac, xcode-select --install), or set CXX to a compiler"),
    ("C compiler", "apt-get install gcc, or set CC to a compiler"),
    ("riton", "pip install triton"))


def compile_model(model, mode):
    """Compile `model` in place. mode: "block", "model" or "none"."""
    if mode == "none":
        return
    import torch._dynamo
    # else Dynamo cuts each block's graph in pieces of 1 MiB of parameters under DDP, for the sake of
    # gradients sent early: 27 s to compile a block as wide as GPT-2's, 4 s whole
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    for module in ([*model.blocks, model.row_loss] if mode == "block" else [model]):
        module.compile(fullgraph=True, dynamic=False)


def choose(mode, device):
    """
    Resolve mode "auto": "block" where torch.compile works, else "none". Returns (mode, why). Comes
    before anything else of torch.compile and before the first optimizer is made. UserError where it
    does not work, but was asked for.
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
    """Make the folder of the compile cache, if one is asked for. UserError if that cannot be."""
    path = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    try:
        os.makedirs(os.path.abspath(path), exist_ok=True)
    except OSError as e:
        raise UserError(f"TORCHINDUCTOR_CACHE_DIR={path}: cannot be made ({e.strerror}): name "
                        "another folder, or unset it") from None


@functools.cache
def broken(device_type):
    """None if torch.compile works on the device, else the first line of what it says."""
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
    What this thread starts in here, compilers above all, is deaf to signals to stop: a terminal or a
    scheduler sends them to all processes of a run, which goes on to the end of its step and cannot
    without its compiler. The run itself hears them on its other threads.
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
    """Drop compiled graphs whose shapes will not come back, and what they hold."""
    import torch._dynamo
    torch._dynamo.reset()


def graphs():
    """How many graphs were compiled so far in this process."""
    import torch._dynamo
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
