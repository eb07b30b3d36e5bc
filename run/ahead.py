"""
The graphs of a run's next growth, compiled in the background while the present stage trains, at
the lowest priority: a process of its own grows a model of one layer the same way, runs it masked
and clean, and leaves what it compiled in torch.compile's disk cache, where the run finds it.

Started by train.py. What goes wrong here costs nothing but the time that would have been saved.
"""
import contextlib
import json
import os
import subprocess
import sys
from dataclasses import asdict

import torch

from grow import grow, set_mask, sizes_of
from model import GROWABLE, MODELS
from run import compiler

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PATIENCE = 300  # seconds to wait for it, far beyond what it takes


def start(config, sizes, grown, rows, vocab_size, device, dtype):
    """
    Start compiling for a model of `sizes` grown by `grown` (dicts of the four sizes) and batches of
    `rows` sequences. Returns the process; finish() it before its graphs are needed.
    """
    values = {**asdict(config.model_config(vocab_size)), **sizes}
    job = dict(model=config.model, values=values, grown=grown, rows=rows,
               device=str(device), dtype=str(dtype).split(".")[1], threads=torch.get_num_threads())
    # a group, so that Ctrl-C spares it, not a session: nice counts within one only
    return subprocess.Popen([sys.executable, "-m", "run.ahead", json.dumps(job)], cwd=ROOT,
                            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, process_group=0 if os.name == "posix" else None)


def start_next(run):
    """Start making the graphs of a run's next growth, once a machine; the process, or None."""
    c, stage = run.config, run.next_stage()
    wanted = c.compile_ahead == "on" or c.compile_ahead == "auto" and run.device.type == "cpu"
    if stage is None or run.compile != "block" or not wanted or run.ranks.local:
        return None
    if stage.get("operator", c.operator) != "msg":
        return None  # no mask: another graph
    return start(c, sizes_of(run.model.config), {k: v for k, v in stage.items() if k in GROWABLE},
                 c.micro_batch_of(run.stage + 1), run.vocab_size, run.device, run.dtype)


def finish(process):
    """
    Wait for it: it is making what the run needs next, and with the run waiting it has the machine
    to itself. It is never killed, for a compiler cut short leaves half a file in the cache; a run
    that ends earlier leaves it to end by itself.
    """
    if process is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=PATIENCE)


def make(job):
    torch.set_num_threads(job["threads"])
    device, dtype = torch.device(job["device"]), getattr(torch, job["dtype"])
    cls, config_cls = MODELS[job["model"]]
    deeper = job["grown"].pop("n_layer", None) is not None
    # one block's graph serves all layers, so one layer, and a new one if there are new ones
    model = cls(config_cls(**{**job["values"], "n_layer": 1})).to(device)
    model, _ = grow(model, **job["grown"], **({"n_layer": 2} if deeper else {}))
    compiler.compile_model(model, "block")
    T = job["values"]["block_size"]
    batch = dict(idx=torch.zeros(job["rows"], T, dtype=torch.long, device=device))
    if job["model"] == "bert":
        batch.update(segments=torch.zeros_like(batch["idx"]), keep=batch["idx"] == 0)
    for value in (0.5, 1):
        set_mask(model, value)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            y = model.hidden(**batch)
        (y[0] if isinstance(y, tuple) else y).float().sum().backward()


if __name__ == "__main__":
    if hasattr(os, "nice"):
        os.nice(19)
    make(json.loads(sys.argv[1]))
