"""
What the stages of a run cost: by arithmetic, which takes no memory (models are made on the meta
device), or measured here on random tokens.
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
    The vocabulary of the run, padded as train.py pads it. guess: without a dataset the model's
    own, where a UserError would say that there is none.
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
    (parameters, FLOPs a token of a training step, bytes of weights, gradients and optimizer state
    in float32; activations come on top, weights of the blocks' matrices) of a model of `sizes`.
    """
    model = on_meta(config, sizes, vocab_size)
    params = model.num_params()
    matrices = sum(p.numel() for n, p in model.named_parameters() if role(n) == "matrix")
    moments = 2 * params - (matrices if config.optimizer == "muon" else 0)
    return params, model.flops_per_token(config.head_fraction()), 4 * (2 * params + moments), matrices


def on_meta(config, sizes, vocab_size):
    """A model of `sizes` on the meta device; made once, for it is asked for often."""
    shape = asdict(replace(config.model_config(vocab_size), **sizes))
    return _on_meta(config.model, tuple(shape.items()))


@functools.cache
def _on_meta(kind, shape):
    cls, config_cls = MODELS[kind]
    with torch.device("meta"):
        return cls(config_cls(**dict(shape)))


def split_over_processes(rows, config, vocab_size, processes, memory):
    """
    Adds to each of stage_costs()'s rows what one of `processes` devices holds in bytes, `held`, and
    how many devices of `memory` bytes that takes, `least`; 0: it never fits. shard="none": all of
    the state. "fsdp": a share of it, and whole in float32 two blocks (one is fetched while the
    other computes), the rest's weights, and the gradients of the larger of these.
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
    What each stage costs by arithmetic: a list of dicts of sizes, params, weights (of the blocks'
    matrices: what loss laws count), flops (a token of a training step), at and iters (iterations),
    ramp (of them), tokens, state (bytes).
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
    """The FLOPs of a whole run."""
    return sum(r["tokens"] * r["flops"] for r in stage_costs(config, vocab_of(config)))


def totals(rows):
    """
    Seconds of each stage, and the ceiling: the speedup over training the last stage's model from
    scratch *for as many tokens*, which is all that growing can save if no token is wasted
    (Amdahl: stages of cost r for a fraction f of the steps allow 1 / (f r + 1 - f)).
    Without times it counts FLOPs. Returns (list of seconds or FLOPs, ceiling, scratch's).
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
    """Random tokens as the loader of config.model would give them, `rows` of them."""
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
    """A training step in its two parts, of which the first is done for every micro-batch."""

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
    """Seconds that f() takes, with all that it started on a GPU."""
    synchronize(device)
    t0 = time.perf_counter()
    f()
    synchronize(device)
    return time.perf_counter() - t0


def median_seconds(f, device, seconds):
    """Their median, run for about `seconds` but at least three times."""
    taken = []
    while len(taken) < 3 or sum(taken) < seconds:
        taken.append(seconds_of(f, device))
    return statistics.median(taken)


def peak_memory(device, restart=False):
    """High-water mark of memory in bytes (GPU's, or the process's); 0 where it cannot be had."""
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
    Seconds of a training step of `sizes` on this machine, on random tokens: a dict of step_s,
    ramp_s (of a step while the growth from the sizes `before` is masked), compile_s (both graphs'
    first steps beyond a step), peak (bytes). Between processes there is nothing to measure here.
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
    The Step of a model of `sizes`, one of `processes`; before: the sizes it is grown from, its mask
    half risen, or None.
    """
    rows = config.batch_tokens / config.block_size / processes  # a process's, an iteration
    micro = int(min(config.micro_batch, max(1, rows)))
    model = make_model(config, before or sizes, vocab_size).to(device)
    optimizers = make_optimizers(config, model)
    if before:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for o in optimizers:  # so that there is optimizer state to move
            o.step()
        model, _ = grow(model, optimizers, **{k: v for k, v in sizes.items() if v != before[k]})
        set_mask(model, 0.5)
    return Step(model, optimizers, batch(config, vocab_size, micro, device),
                pick_dtype(config.dtype, device), config.grad_clip,
                micro_batches=max(1, round(rows / micro)))
