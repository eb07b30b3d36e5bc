"""
The cost of each stage of a run. It is computed without memory (models on the meta device), or measured
on this machine with random tokens.
"""
import functools
import math
import os
import statistics
import time
from dataclasses import asdict, replace

import torch

from data.dataset import read_meta
from data.loader import padded, vocab_needed
from grow import grow, role, set_mask
from model import MODELS
from run import compiler
from run.optim import make_optimizers
from run.parallel.ranks import Ranks, synchronize
from run.precision import pick_dtype


def has_dataset(config):
    return os.path.isdir(config.data_dir) and any(
        name.endswith(".bin") for name in os.listdir(config.data_dir))


def vocab_of(config, guess=False):
    """
    The run's vocabulary size, padded as train.py pads it. Without a dataset: a UserError, or with
    `guess` the model's own.
    """
    if config.vocab_size:
        return config.vocab_size
    if guess and not has_dataset(config):
        return padded(MODELS[config.model][1]().vocab_size)
    return padded(vocab_needed(config.model, read_meta(config.data_dir)))


def make_model(config, sizes, vocab_size, device="cpu"):
    with torch.device(device):
        return MODELS[config.model][0](replace(config.model_config(vocab_size), **sizes))


def count(config, sizes, vocab_size):
    """
    (parameters, training FLOPs per token, bytes of state, weights of the blocks' matrices) of a model
    of `sizes`. State: weights, gradients and optimizer state in float32, without activations.
    """
    model = on_meta(config, sizes, vocab_size)
    params = model.num_params()
    matrices = sum(p.numel() for n, p in model.named_parameters() if role(n) == "matrix")
    moments = 2 * params - (matrices if config.optimizer == "muon" else 0)
    return params, model.flops_per_token(config.head_fraction()), 4 * (2 * params + moments), matrices


def on_meta(config, sizes, vocab_size):
    """A model of `sizes` on the meta device, cached because it is needed often."""
    shape = asdict(replace(config.model_config(vocab_size), **sizes))
    return _on_meta(config.model, tuple(shape.items()))


@functools.cache
def _on_meta(kind, shape):
    cls, config_cls = MODELS[kind]
    with torch.device("meta"):
        return cls(config_cls(**dict(shape)))


def split_over_processes(rows, config, vocab_size, processes, memory):
    """
    Add two numbers to each row of stage_costs(). held: bytes on each of `processes` devices. least:
    the number of devices of `memory` bytes needed, 0 if it never fits. With shard="none" a device holds
    all of the state. With "fsdp" it holds a shard, and in full float32 two blocks (one is gathered while
    the other computes), the other weights, and the gradients of the larger of these.
    """
    for r in rows:
        model = on_meta(config, r["sizes"], vocab_size)
        blocks = [sum(p.numel() for p in b.parameters()) for b in model.blocks] or [0]
        block, rest = max(blocks), model.num_params() - sum(blocks)
        whole = 4 * (2 * block + rest + max(block, rest)) if config.shard == "fsdp" else r["state"]
        shared = r["state"] if config.shard == "fsdp" else 0
        room = memory - whole
        r.update(held=whole + shared / processes,
                 least=0 if room <= 0 else max(1, math.ceil(shared / room)))


def stage_costs(config, vocab_size):
    """
    The computed cost of each stage, a list of dicts: sizes, params, weights (of the blocks' matrices,
    which loss laws count), flops (training, per token), at and iters (iterations), ramp (iterations
    with a mask), tokens, state (bytes).
    """
    starts = [0, *(s["at"] for s in config.stages)]
    ramps = [0, *(config.ramp_of(s) for s in config.stages)]
    rows = []
    for sizes, at, end, ramp in zip(config.sizes(), starts, [*starts[1:], config.max_iters], ramps):
        params, flops, state, weights = count(config, sizes, vocab_size)
        rows.append(dict(sizes=sizes, params=params, at=at, iters=end - at, flops=flops,
                         ramp=min(end - at, ramp), tokens=(end - at) * config.batch_tokens,
                         state=state, weights=weights))
    return rows


def compute(config):
    """Total FLOPs of a run."""
    return sum(r["tokens"] * r["flops"] for r in stage_costs(config, vocab_of(config)))


def totals(rows):
    """
    Returns (seconds of each stage, ceiling, seconds from scratch); FLOPs where no times are measured.
    Ceiling: the speedup over the last stage's model from scratch *on as many tokens*. Growing can save
    no more, even if no token is wasted. (Amdahl: stages of cost r for a fraction f of the steps allow
    1 / (f r + 1 - f).)
    """
    timed = "step_s" in rows[0]
    cost = [(r["iters"] - r["ramp"]) * r["step_s"] + r["ramp"] * r["ramp_s"] + r["compile_s"]
            if timed else r["tokens"] * r["flops"] for r in rows]
    last, iters = rows[-1], sum(r["iters"] for r in rows)
    scratch = iters * last["step_s"] + rows[0]["compile_s"] if timed else \
        sum(r["tokens"] for r in rows) * last["flops"]
    return cost, scratch / sum(cost), scratch


# -----------------------------------------------------------------------------
# measured

def batch(config, vocab_size, rows, device):
    """A batch of `rows` rows of random tokens, in the format of config.model's loader."""
    g, T, B = torch.Generator().manual_seed(0), config.block_size, rows
    idx = torch.randint(vocab_size, (B, T), generator=g)
    if config.model != "bert":
        data = dict(idx=idx, targets=torch.randint(vocab_size, (B, T), generator=g))
    else:
        P = max(1, round(config.mask_frac * T))
        data = dict(idx=idx, segments=(torch.arange(T) >= T // 2).long().repeat(B, 1),
                    attn_mask=torch.ones(B, T, dtype=torch.bool),
                    positions=torch.rand(B, T, generator=g).argsort(1)[:, :P],
                    targets=torch.randint(vocab_size, (B, P), generator=g),
                    next_sentence=torch.randint(2, (B,), generator=g))
    return {k: v.to(device) for k, v in data.items()}


class Step:
    """A training step in two parts. The first is repeated for every micro-batch."""

    def __init__(self, model, optimizers, data, dtype, clip=1.0, micro_batches=1):
        self.model, self.optimizers, self.data, self.dtype = model, optimizers, data, dtype
        self.clip, self.micro_batches = clip or float("inf"), micro_batches
        self.device = data["idx"].device

    def forward_backward(self):
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = self.model(**self.data, return_logits=False)[1]
        loss.backward()

    def update(self):
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for o in self.optimizers:
            o.step()

    def __call__(self):
        for _ in range(self.micro_batches):
            self.forward_backward()
        self.update()
        self.model.zero_grad(set_to_none=True)


def seconds_of(f, device):
    """Seconds that f() takes, including the GPU work it starts."""
    synchronize(device)
    t0 = time.perf_counter()
    f()
    synchronize(device)
    return time.perf_counter() - t0


def median_seconds(f, device, seconds):
    """The median over about `seconds` of runs, at least three."""
    taken = []
    while len(taken) < 3 or sum(taken) < seconds:
        taken.append(seconds_of(f, device))
    return statistics.median(taken)


def peak_memory(device, restart=False):
    """Peak memory in bytes, of the GPU or the process; 0 where it is not known."""
    if device.type == "cuda":
        if restart:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    try:
        if restart:
            with open("/proc/self/clear_refs", "w") as f:
                f.write("5")
        with open("/proc/self/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) * 1024
    except OSError:
        return 0


def measure(config, vocab_size, sizes, before=None, processes=1, seconds=2.0):
    """
    Time a training step of `sizes` on this machine with random tokens. Returns a dict: step_s, ramp_s
    (a step while the growth from the sizes `before` is masked), compile_s (extra time of both graphs'
    first steps), peak (bytes). Communication between processes is not measured.
    """
    device = Ranks(config.device).device
    mode, _ = compiler.choose(config.compile, device)
    compiler.forget_graphs()
    peak_memory(device, restart=True)
    step = make_step(config, vocab_size, sizes, before, device, processes)
    model = step.model

    def timed():
        compiler.compile_model(model, mode)
        first = seconds_of(step.forward_backward, device)
        step.update()
        again = median_seconds(step.forward_backward, device, seconds)
        update = median_seconds(step.update, device, seconds)
        return step.micro_batches * again + update, max(0.0, first - again)
    ramp_s, compile_s = timed() if before else (0.0, 0.0)
    set_mask(model, 1)
    step_s, clean_s = timed()
    return dict(step_s=step_s, ramp_s=ramp_s or step_s, compile_s=compile_s + clean_s,
                peak=peak_memory(device))


def make_step(config, vocab_size, sizes, before, device, processes=1):
    """
    The Step of a model of `sizes` on one of `processes`. before: the sizes it grew from (its mask is
    then half open), or None.
    """
    rows = config.batch_tokens / config.block_size / processes  # per process and iteration
    micro = int(min(config.micro_batch, max(1, rows)))
    model = make_model(config, before or sizes, vocab_size).to(device)
    optimizers = make_optimizers(config, model)
    if before:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for o in optimizers:  # creates the optimizer state that the growth moves
            o.step()
        model, _ = grow(model, optimizers, **{k: v for k, v in sizes.items() if v != before[k]})
        set_mask(model, 0.5)
    return Step(model, optimizers, batch(config, vocab_size, micro, device),
                pick_dtype(config.dtype, device), config.grad_clip,
                micro_batches=max(1, round(rows / micro)))
