"""
Know before training what to grow, when, and what it will save.

    python -m lab.plan config/pystdlib_msg.py                       # costs of each stage, measured here
    python -m lab.plan config/flm_101b.py --dry --flops=312e12 --mfu=0.5 --processes=192
    python -m lab.plan config/pystdlib_msg.py --study               # which dimension learns how fast
    python -m lab.plan config/pystdlib_msg.py --search --budget=30  # find a schedule, in minutes

The table needs no dataset, and with --dry no memory either: models are made on the meta device.
--study is in probes.py, --search in search.py, the arithmetic of their predictions in rates.py.
"""
import argparse
import os
import statistics
import sys
import time
from dataclasses import replace

import torch

from data.loader import read_meta, vocab_needed
from grow import describe, grow, role, set_mask
from lab.bench import batch
from model import MODELS
from run import compiler
from run.errors import UserError, exits_cleanly
from run.optim import make_optimizers
from run.precision import PEAK_FLOPS, pick_dtype
from run.settings import from_args

WORTH_IT = 1.05  # a ceiling on the speedup below this is within the noise of any comparison


def vocab_of(config):
    """The vocabulary of the dataset, padded as train.py pads it; the model's own without one."""
    if config.vocab_size:
        return config.vocab_size
    needed = MODELS[config.model][1]().vocab_size
    if os.path.exists(os.path.join(config.data_dir, "meta.json")):
        needed = vocab_needed(config.model, read_meta(config.data_dir))
    return -(-needed // 64) * 64


def meta_model(config, sizes, vocab_size):
    """The model of `sizes` without memory."""
    cls, _ = MODELS[config.model]
    with torch.device("meta"):
        return cls(replace(config.model_config(vocab_size), **sizes))


def head_fraction(config):
    return config.mask_frac if config.model == "bert" else 1.0


def state_bytes(config, model):
    """Weights, gradients and optimizer state in float32; activations come on top."""
    matrices = sum(p.numel() for n, p in model.named_parameters() if role(n) == "matrix")
    moments = 2 * model.num_params() - (matrices if config.optimizer == "muon" else 0)
    return 4 * (2 * model.num_params() + moments)


def stage_costs(config, vocab_size):
    """
    What each stage costs by arithmetic: a list of dicts of sizes, params, flops (a token of a
    training step), at and iters (iterations), ramp (of them), tokens, state (bytes).
    """
    ends = [s["at"] for s in config.stages] + [config.max_iters]
    rows = []
    for i, sizes in enumerate(config.sizes()):
        model = meta_model(config, sizes, vocab_size)
        at = ends[i - 1] if i else 0
        iters = ends[i] - at
        rows.append(dict(
            sizes=sizes, params=model.num_params(), at=at, iters=iters,
            flops=model.flops_per_token(head_fraction(config)),
            ramp=min(iters, config.ramp_of(config.stages[i - 1])) if i else 0,
            tokens=iters * config.batch_tokens, state=state_bytes(config, model)))
    return rows


# -----------------------------------------------------------------------------
# time: measured here, or from a peak and a utilisation

def micro_rounds(config, processes):
    """Rows of a micro-batch, and how many a process runs an iteration."""
    rows = config.batch_tokens // config.block_size
    micro = min(config.micro_batch, max(1, rows // processes))
    return micro, max(1, round(rows / processes / micro))


def add_estimated(rows, config, flops, mfu, processes):
    """step_s from FLOPs, the device's peak (FLOP/s) and its utilisation."""
    for r in rows:
        r["step_s"] = r["flops"] * config.batch_tokens / (flops * mfu * processes)
        r.update(ramp_s=r["step_s"], compile_s=0.0)


class Stopwatch:
    """Median seconds of a function, run for about `seconds` but at least three times."""

    def __init__(self, device, seconds):
        self.device, self.seconds = device, seconds

    def once(self, f):
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        t0 = time.perf_counter()
        f()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - t0

    def median(self, f):
        taken = []
        while len(taken) < 3 or sum(taken) < self.seconds:
            taken.append(self.once(f))
        return statistics.median(taken)


def peak_memory(device, restart=False):
    """High-water mark of memory in bytes, or None where it cannot be had."""
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
        return None


def measure(config, vocab_size, sizes, before=None, processes=1, seconds=2.0):
    """
    Seconds of a training step of `sizes` on this machine, on random tokens: a dict of step_s,
    ramp_s (of a step while the growth from the sizes `before` is masked), compile_s (both graphs'
    first steps beyond a step), peak (bytes). Between processes there is nothing to measure here.
    """
    device = pick_device(config.device)
    dtype, watch = pick_dtype(config.dtype, device), Stopwatch(device, seconds)
    mode, _ = compiler.choose(config.compile, device)
    compiler.forget_graphs()
    micro, rounds = micro_rounds(config, processes)
    cls, _ = MODELS[config.model]
    peak_memory(device, restart=True)
    model = cls(replace(config.model_config(vocab_size), **(before or sizes))).to(device)
    if before:
        model, _ = grow(model, **{k: v for k, v in sizes.items() if v != before[k]})
        set_mask(model, 0.5)
    optimizers = make_optimizers(config, model)
    data = batch(config.model, dict(block_size=config.block_size, vocab_size=vocab_size), micro,
                 device)

    def forward_backward():
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            loss = model(**data, return_logits=False)[1]
        loss.backward()

    def update():
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or float("inf"))
        for o in optimizers:
            o.step()

    def timed():
        compiler.compile_model(model, mode)
        first = watch.once(forward_backward)
        update()
        fast = watch.median(forward_backward)
        return rounds * fast + watch.median(update), max(0.0, first - fast)
    ramp_s, compile_s = timed() if before else (0.0, 0.0)
    set_mask(model, 1)
    step_s, clean_s = timed()
    return dict(step_s=step_s, ramp_s=ramp_s or step_s, compile_s=compile_s + clean_s,
                peak=peak_memory(device))


def pick_device(name):
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"device={name}: not on this machine; use --device=cpu, or --dry") from None
    return torch.device(name)


# -----------------------------------------------------------------------------
# what it comes to

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


def human(n, unit=""):
    for scale, letter in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"),
                          (1e6, "M"), (1e3, "k")):
        if n >= scale:
            return f"{n / scale:.3g} {letter}{unit}"
    return f"{n:.3g} {unit}".rstrip()


def clock(seconds):
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else \
        f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def table(header, rows):
    """A Markdown table, columns aligned."""
    widths = [max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))]
    lines = ["| " + " | ".join(str(v).ljust(w) for v, w in zip(r, widths)) + " |"
             for r in [header, *rows]]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def show(rows, config):
    """The table of the stages, and the verdict below it."""
    timed, cost, ceiling, scratch = "step_s" in rows[0], *totals(rows)
    header = ["from", "L / hidden / heads / FFN", "parameters", "FLOPs/token", "tokens", "state",
              *(["peak"] if "peak" in rows[0] else []),
              *(["step", "tokens/s", "time"] if timed else []), "share"]
    lines = []
    for r, c in zip(rows, cost):
        s = r["sizes"]
        lines.append([f"{r['at']:,}",
                      f"{s['n_layer']} / {s['n_embd']} / {s['n_head']} / {s['n_inner']}",
                      human(r["params"]), human(r["flops"]), human(r["tokens"]),
                      human(r["state"], "B"),
                      *([human(r["peak"] or 0, "B")] if "peak" in r else []),
                      *([f"{r['step_s'] * 1e3:,.1f} ms", f"{config.batch_tokens / r['step_s']:,.0f}",
                         clock(c)] if timed else []), f"{c / sum(cost):.1%}"])
    unit = clock if timed else lambda f: human(f, "FLOP")
    out = [table(header, lines), "", f"total {unit(sum(cost))}, of "
           f"{human(sum(r['tokens'] for r in rows))} tokens and "
           f"{human(sum(r['tokens'] * r['flops'] for r in rows), 'FLOP')}"]
    return "\n".join(out + verdict(rows, config, ceiling, scratch - sum(cost), unit))


def verdict(rows, config, ceiling, saved, unit):
    """What growing can save at best, and whether it can at all."""
    if len(rows) == 1:
        return ["from scratch: nothing grows, so there is nothing to save"]
    last = rows[-1]
    out = [f"ceiling on the speedup against scratch, at the same tokens: {ceiling:.2f}x"]
    each = last.get("step_s") or last["flops"] * config.batch_tokens
    what = "time" if "step_s" in last else "FLOPs"
    if ceiling <= 1:
        out.append(f"this schedule cannot pay off: it takes {unit(-saved)} more than training "
                   f"{describe(last['sizes'])} from scratch for as many tokens")
    else:
        out.append(f"break-even: {unit(saved)} saved, worth {saved / each:,.0f} iterations of the "
                   f"last stage ({saved / each / config.max_iters:.0%} of the run): if growing costs "
                   "more than that to reach the same loss, scratch is faster")
        if ceiling < WORTH_IT:
            out.append(f"this schedule can hardly pay off: even a growth that wastes no token saves "
                       f"{1 - 1 / ceiling:.1%}: grow later, or start smaller")
    for r in rows[:-1]:
        if r.get("step_s", r["flops"]) >= last.get("step_s", last["flops"]):
            out.append(f"{describe(r['sizes'])} costs as much {what} a step as the last stage: leave "
                       "that stage out")
    return out


def known_peak(config):
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return config.peak_flops or next((v for k, v in PEAK_FLOPS.items() if k in name), 0)


def show_plan(config, args):
    vocab_size = vocab_of(config)
    rows = stage_costs(config, vocab_size)
    flops = args.flops or known_peak(config)
    if args.dry and flops:
        add_estimated(rows, config, flops, args.mfu, args.processes)
        print(f"times: {args.processes} x {human(flops, 'FLOP/s')} at {args.mfu:.0%} (not measured)")
    elif not args.dry:
        for i, r in enumerate(rows):
            before = rows[i - 1]["sizes"] if i else None
            try:
                r.update(measure(config, vocab_size, r["sizes"], before, args.processes,
                                 args.seconds))
            except (RuntimeError, MemoryError) as e:
                if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and \
                        "memory" not in str(e):
                    raise
                raise UserError(f"{describe(r['sizes'])} does not fit in memory here (its state "
                                f"takes {human(r['state'], 'B')}): lower micro_batch, or plan with "
                                "--dry") from None
            print(f"measured {describe(r['sizes'])}: {r['step_s'] * 1e3:.1f} ms a step "
                  f"({r['ramp_s'] * 1e3:.1f} ms while its mask rises, {r['compile_s']:.1f} s to "
                  "compile)", flush=True)
    guess = "" if config.vocab_size or os.path.exists(os.path.join(config.data_dir, "meta.json")) \
        else f" (a guess: no dataset in {config.data_dir} yet)"
    print(f"\n{config.model}, vocabulary {vocab_size:,}"
          f"{guess}, {config.batch_tokens:,} tokens an iteration, "
          f"{config.max_iters:,} iterations\n")
    print(show(rows, config))


def run_study(config, args, rest):
    from lab import probes
    vocab_size = vocab_of(config)
    step_s = measure(config, vocab_size, config.sizes()[0], seconds=0.5)["step_s"]
    flops = flops_by_sizes(config, vocab_size)
    sizes = [config.sizes()[0], config.sizes()[-1], *probes.structures(config)[2].values()]
    each = {probes.key_of(s): max(1, int(0.7 * args.probe / probes.EVALS / step_s * flops(sizes[0]) /
                                         flops(s))) for s in sizes}
    header, rows, picture = probes.study(config, rest, args.out or config.out_dir + "_study",
                                         args.probe, args.seeds, args.parallel, each)
    print(table(header, rows))
    print(f"\nwrote {picture}")


def run_search(config, args, rest):
    from lab import search
    base = next((a for a in rest if not a.startswith("--")), None)
    if base is None:
        raise UserError("--search needs a config file, which the one it writes builds on")
    vocab_size, out = vocab_of(config), args.out or config.out_dir + "_search"
    found = search.Search(config, rest, out, args.budget)
    checks, ranking = found.go(
        lambda: measure(config, vocab_size, config.sizes()[-1], seconds=1.0)["step_s"],
        flops_by_sizes(config, vocab_size))
    header, rows, winner = search.report(found, checks, ranking)
    text = table(header, rows) + f"\n\n{len(ranking):,} schedules predicted, " \
        f"{len(checks)} checked, {found.runs.spent() / 60:.1f} of {args.budget:g} minutes spent"
    with open(os.path.join(out, "tried.md"), "w") as f:
        f.write(text + "\n")
    print("\n" + text)
    if winner is None:
        print("no schedule is predicted to reach the loss of the run from scratch: train that way")
        return
    save = os.path.join(out, "found.py")
    search.write_config(found, winner, base, save)
    print(f"wrote {save}: {search.schedule_name(winner['path'])}")
    if (winner["about"] or winner["predicted"]) > found.scratch_s:
        print("but training from scratch was faster than any of them here")


def flops_by_sizes(config, vocab_size):
    return lambda sizes: meta_model(config, sizes, vocab_size).flops_per_token(head_fraction(config))


@exits_cleanly
def main():
    p = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, usage="python -m lab.plan CONFIG "
                                "[options] [--key=value ...]",
                                formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--dry", action="store_true", help="measure nothing, allocate nothing")
    p.add_argument("--flops", type=float, default=0.0, help="with --dry: a device's peak, FLOP/s")
    p.add_argument("--mfu", type=float, default=0.4, help="with --dry: the share of it in use")
    p.add_argument("--processes", type=int, default=1, help="devices that share a batch")
    p.add_argument("--seconds", type=float, default=2.0, help="of each measurement of a stage")
    p.add_argument("--study", action="store_true", help="probe each dimension alone")
    p.add_argument("--probe", type=float, default=60, help="with --study: seconds of a probe run")
    p.add_argument("--seeds", type=int, default=3, help="with --study: probes of each structure")
    p.add_argument("--parallel", type=int, default=1, help="with --study: runs at once, pinned")
    p.add_argument("--search", action="store_true", help="find a schedule")
    p.add_argument("--budget", type=float, default=30, help="with --search: minutes, for all of it")
    p.add_argument("--out", default="", help="folder of a study or a search")
    args, rest = p.parse_known_args()
    if not (args.flops >= 0 and 0 < args.mfu <= 1 and args.processes >= 1):
        raise UserError("--flops must be positive, --mfu between 0 and 1, --processes at least 1")
    if not (args.probe > 0 and args.seeds >= 1 and args.parallel >= 1 and args.budget > 0):
        raise UserError("--probe and --budget must be positive, --seeds and --parallel at least 1")
    config = from_args(rest)
    job = run_study if args.study else run_search if args.search else None
    try:
        job(config, args, rest) if job else show_plan(config, args)
    except KeyboardInterrupt:
        print("stopped; the same command continues" if job else "stopped")


if __name__ == "__main__":
    sys.exit(main())
