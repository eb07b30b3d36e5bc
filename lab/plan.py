"""
Plan before you train: what to grow, when, and how much it saves.

    python -m lab.plan config/pystdlib_msg.py                       # costs of each stage, measured here
    python -m lab.plan config/flm_101b.py --dry --flops=312e12 --mfu=0.5 --processes=192
    python -m lab.plan --fit RUN RUN ... --law=mine.json            # a law of your own ladder

--key=value is a setting of train.py. The table needs no dataset, and with --dry no memory for the model.
Below it stands whether to grow at all, and the best place for a single growth.
"""
import argparse
import os
import sys
from dataclasses import replace

from base.errors import Parser, UserError, exits_cleanly, is_out_of_memory, number
from base.words import human, table
from grow import describe
from lab.advice import fit_ladder, show_advice, show_family, small_one
from lab.costs import has_dataset, measure, split_over_processes, stage_costs, totals, vocab_of
from lab.words import clock
from run.arguments import from_args
from run.family import members
from run.packed import unpacked
from run.parallel.ranks import Ranks
from run.precision import known_peak

WORTH_IT = 1.05  # a speedup below this is within the noise of any comparison


def show(rows, config):
    """Show the table of stages and the verdict."""
    timed, cost, ceiling, scratch = "step_s" in rows[0], *totals(rows)
    sizes, lines = "{n_layer} / {n_embd} / {n_head} / {n_inner}", []
    for r, c in zip(rows, cost):
        line = {"from": f"{r['at']:,}", "L / hidden / heads / FFN": sizes.format(**r["sizes"]),
                "parameters": human(r["params"]), "FLOPs/token": human(r["flops"]),
                "tokens": human(r["tokens"]), "state": human(r["state"], "B")}
        if "peak" in r:
            line["peak"] = human(r["peak"], "B")
        if "held" in r:
            line["a process"] = human(r["held"], "B")
            line["processes"] = f"{r['least']:,} or more" if r["least"] else "none"
        if timed:
            line["step"] = f"{r['step_s'] * 1e3:,.1f} ms"
            line["tokens/s"], line["time"] = f"{config.batch_tokens / r['step_s']:,.0f}", clock(c)
        lines.append({**line, "share": f"{c / sum(cost):.1%}"})
    unit = clock if timed else lambda f: human(f, "FLOP")
    total = f"{'trunk' if members(config) else 'total'} {unit(sum(cost))}, of {human(sum(r['tokens'] for r in rows))} tokens and " \
        f"{human(sum(r['tokens'] * r['flops'] for r in rows), 'FLOP')}"
    return "\n".join([table(lines[0], [line.values() for line in lines]), "", total,
                      *([] if members(config) else verdict(rows, config, ceiling, scratch - sum(cost), unit))])


def verdict(rows, config, ceiling, saved, unit):
    """Can growing save anything, and how much at best?"""
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
            out.append(f"this schedule can hardly pay off by what it spares, {1 - 1 / ceiling:.1%} with a "
                       "growth that wastes no token: grow later, or start smaller")
    for r in rows[:-1]:
        if r.get("step_s", r["flops"]) >= last.get("step_s", last["flops"]):
            out.append(f"{describe(r['sizes'])} costs as much {what} a step as the last stage: leave "
                       "that stage out")
    return out


def measure_all(rows, config, vocab_size, args):
    """Add measured times to the rows; UserError if a stage does not fit in memory."""
    for i, (before, r) in enumerate(zip([None, *(r["sizes"] for r in rows)], rows)):
        try:
            of_stage = replace(config, micro_batch=config.after(i, "micro_batch"))
            r.update(measure(of_stage, vocab_size, r["sizes"], before, args.processes, args.seconds))
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            raise UserError(f"{describe(r['sizes'])} does not fit in memory here (its state takes "
                            f"{human(r['state'], 'B')}): lower micro_batch, or plan with --dry") \
                from None
        print(f"measured {describe(r['sizes'])}: {r['step_s'] * 1e3:.1f} ms a step "
              f"({r['ramp_s'] * 1e3:.1f} ms while its mask rises, {r['compile_s']:.1f} s to "
              "compile)", flush=True)


def show_plan(config, args):
    vocab_size = vocab_of(config, guess=True)
    rows = stage_costs(config, vocab_size)
    flops = args.flops or config.peak_flops or known_peak(Ranks("auto").device)
    if args.dry:
        split_over_processes(rows, config, vocab_size, args.processes, args.memory * 1e9)
        print(f"a process: what one of {args.processes} holds with shard={config.shard!r}; processes: how "
              f"many devices of {args.memory:g} GB that takes; activations come on top of both")
    if not args.dry:
        measure_all(rows, config, vocab_size, args)
    elif flops:
        for r in rows:
            step_s = r["flops"] * config.batch_tokens / (flops * args.mfu * args.processes)
            r.update(step_s=step_s, ramp_s=step_s, compile_s=0.0)
        print(f"times: {args.processes} x {human(flops, 'FLOP/s')} at {args.mfu:.0%} (not measured)")
    guess = "" if config.vocab_size or has_dataset(config) else \
        f" (a guess: no dataset in {config.data_dir} yet)"
    print(f"\n{config.model}, vocabulary {vocab_size:,}{guess}, {config.batch_tokens:,} tokens an "
          f"iteration, {config.max_iters:,} iterations\n\n{show(rows, config)}\n")
    show_more = show_family if members(config) else show_advice
    print(show_more(config, rows, vocab_size, args))


def parse(argv):
    """(options, remaining arguments: train.py's settings)."""
    dry, config = ("--dry", lambda a: a.dry), ("a CONFIG, so without --fit", lambda a: not a.fit)
    p = Parser(prog="python -m lab.plan", description=__doc__, allow_abbrev=False,
               means=dict(flops=dry, mfu=dry, memory=dry, dry=config, small=config, processes=config,
                          seconds=("measurements, so without --dry and --fit", lambda a: not (a.dry or a.fit))),
               usage="python -m lab.plan CONFIG [options] [--key=value ...]",
               formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--dry", action="store_true", help="measure nothing, allocate nothing")
    p.add_argument("--flops", type=number(float, 1), default=0.0,
                   help="with --dry: a device's peak, FLOP/s (default: known for common GPUs)")
    p.add_argument("--mfu", type=number(float, 0.001, 1), default=0.4,
                   help="with --dry: the share of it in use (0.4)")
    p.add_argument("--processes", type=number(int, 1), default=1, help="devices that share a batch (1)")
    p.add_argument("--memory", type=number(float, 0.001), default=80.0,
                   help="with --dry: a device's memory, GB (80)")
    p.add_argument("--seconds", type=number(float, 0.01), default=2.0,
                   help="of each measurement of a stage (2)")
    p.add_argument("--law", default="", type=os.path.expanduser,
                   help="a loss law's file (the study's or a published one)")
    p.add_argument("--small", type=small_one, help="the small model that is there: a run's folder, or "
                   "PARAMETERS, or PARAMETERS,TOKENS")
    p.add_argument("--fit", nargs="+", type=unpacked, metavar="RUN",
                   help="fit a law to finished runs, write --law")
    return p.parse_known_args(argv)


@exits_cleanly
def main():
    args, rest = parse(sys.argv[1:])
    if args.fit:
        if rest:
            raise UserError(f"{rest[0]}: means something without --fit only: leave one of the two out")
        if not args.law:
            raise UserError("--fit: needs --law=FILE, where to write the law")
        fit_ladder(args.fit, args.law)
        return
    config = from_args(rest)
    for key in ("small", "law"):
        if getattr(args, key) and (config.model == "bert" or key == "small" and members(config)):
            raise UserError(f"--{key}: means nothing for {'BERT' if config.model == 'bert' else 'a family'}: leave it out")
    show_plan(config, args)


if __name__ == "__main__":
    sys.exit(main())
