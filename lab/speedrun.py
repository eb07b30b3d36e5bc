"""
Is growing faster? One command runs contestants x seeds, tunes the baselines and resumes interrupted
runs. It reports wall-clock time and compute to the baseline's final loss, with intervals.

    python -m lab.speedrun lab/experiments/pystdlib_evidence.py --parallel=2
    python -m lab.speedrun config/pystdlib_scratch.py "config/pystdlib_msg.py operator=stack" \\
        --seeds=1,2,3 --sweep=muon_learning_rate:0.02,0.04,0.08 --out=out/mine

An experiment file is plain Python, like those in config/. `contestants` is a dict of name -> settings
of run/settings.py, with four more keys: `config`, a file to start from; `against`, the baselines;
`sweep`; `flops`, its budget, in FLOPs or as (another's name, share). `settings` and `config` apply to
all. `seeds` lists the seeds. `ablation = True`: all have one learning rate and are compared with the
first.

A contestant without `against` is a baseline. It needs a `sweep` of its learning rate with at least
three values. The others use their baseline's best rate, or a sweep of their own that is no larger
than the baseline's. Each baseline also runs a second time, shortened to the time of the best grown
run ("shorter").
"""
import argparse
import os
import re
import sys
from pathlib import Path

from base.errors import UserError, exits_cleanly, library, once
from base.words import table
from lab import verdict, words
from lab.campaign import Campaign, point_name
from lab.children import in_folder, machines, many_parser, side_by_side
from lab.costs import compute
from run.arguments import parse_override, read_file
from run.settings import from_dict, refuse


def run_all(runs, slots):
    """Run all unfinished runs, one per slot at a time. An interrupt saves them all."""
    waiting = iter([r for r in {r.out_dir: r for r in runs}.values() if not r.done()])
    side_by_side(lambda running: next(waiting, None), slots)


def plan(campaign):
    """A markdown table of the runs to come and their costs."""
    rows, cost, runs, total = [], {}, 0, 0.0
    for c in campaign.contestants.values():
        config = campaign.run(c, c.points()[0], campaign.seeds[0]).config
        cost[c.name] = compute(config)
        each = (len(c.points()) if c.sweep else 1) + len(campaign.seeds) - 1
        runs, total = runs + each, total + each * cost[c.name]
        rows.append([c.name, len(c.points()), config.max_iters, f"{cost[c.name] / 1e15:.4g}",
                     f"{cost[c.against[0]] / cost[c.name]:.2f}" if c.against else "-"])
    header = ["run", "points", "iterations", "PFLOP a run", "its baseline's / its"]
    return f"{table(header, rows)}\n\n{runs} runs, {total / 1e15:.4g} PFLOP" + \
        ("." if campaign.ablation else ", and the shorter baselines'.")


def write_report(campaign):
    """Write report.md, report.json and loss.png to the campaign's folder. Returns the text."""
    extra = campaign.shorter()
    rows, curves, cautions = campaign.report(extra)
    if not rows:
        raise UserError(f"{campaign.out}: no finished runs to report on yet")
    timed = sorted({line.strip() for r in campaign.all_runs() if os.path.exists(r.path("place.txt"))
                    for line in open(r.path("place.txt"))})
    if len(timed) > 1:
        cautions.append("runs were timed under different conditions: compare their compute only")
    where = f"{machines(campaign.all_runs())}; {' or '.join(timed)}"
    faults = {} if campaign.ablation else {c.name: campaign.not_accepted(c, extra) for c in
                                           campaign.contestants.values() if not c.against}
    sweeps = {c.name: [dict(point=r.point, val_loss=r.final()) for r in campaign.sweep(c) if r.done()]
              for c in campaign.contestants.values() if c.sweep}
    text = "\n".join([
        verdict.table(rows), "",
        f"95 % t-intervals over seeds {campaign.seeds}. Machine: {where}.", "",
        *(f"Caution: {c}." for c in cautions),
        *(f"Baseline {name}: " + (f"NOT accepted, {why}." if why else "accepted.")
          for name, why in faults.items()),
        *(f"\nSweep of {name} (seed {campaign.seeds[0]}): " + ", ".join(
            f"{point_name(s['point'])}: {s['val_loss']:.4f}" for s in tried)
          for name, tried in sweeps.items())])
    words.write_report(campaign.out, text, dict(
        machine=where, seeds=campaign.seeds, rows=rows, sweeps=sweeps, not_accepted=faults,
        cautions=cautions, curves=curves))
    verdict.draw(rows, curves, os.path.join(campaign.out, "loss.png"))
    return text


def read_experiment(what, overrides=()):
    """
    Read one experiment file, or configs, each followed by `key=value`s. The first config is the baseline.
    overrides: a dict of settings for all.
    """
    if len(what) == 1 and os.path.isfile(what[0]):
        names = read_file(what[0])
        if "contestants" in names:
            return names
    contestants = {}
    for text in what:
        path, pairs = split(text)
        name = " ".join([Path(path).stem, *pairs])
        own = once(parse_override("--" + p) for p in pairs)
        refuse(from_dict({**read_file(path), **once([*own.items(), *dict(overrides).items()])}), own)
        contestants[name] = dict(own, config=path)
        if len(contestants) > 1:
            contestants[name]["against"] = next(iter(contestants))
    return dict(contestants=contestants)


def split(text):
    """(path, which may contain spaces; the key=value strings after it)."""
    path, pairs = re.fullmatch(r"(.*?)((?:\s+\w+=\S*)*)\s*", text, re.DOTALL).groups()
    return path, pairs.split()


def sweep_of(text):
    """For argparse: "learning_rate:1e-3,2e-3" as (setting, [values])."""
    key, colon, values = text.partition(":")
    if not colon or not values:
        raise argparse.ArgumentTypeError(
            f"{text}: is written --sweep=learning_rate:1e-3,2e-3,4e-3")
    return key, [parse_override(f"--{key}={v}")[1] for v in values.split(",")]


def parse(argv):
    """(options, settings of all runs)."""
    p = many_parser("lab.speedrun", __doc__, dict(nargs="+", metavar="EXPERIMENT_OR_CONFIGS"),
                    usage="python -m lab.speedrun EXPERIMENT | CONFIG ... [options] [--key=value ...]",
                    allow_abbrev=False)
    p.add_argument("--sweep", type=sweep_of, action="append", default=[], metavar="KEY:V,V,V",
                   help="of the baselines")
    p.add_argument("--ablation", action="store_true", help="one learning rate for all, no tuning")
    args, more = p.parse_known_args(argv)
    for a in more:
        if not a.startswith("--"):
            raise UserError(f"{a}: settings are written --key=value")
    return args, once(parse_override(a) for a in more)


def run_campaign(campaign, slots):
    run_all(campaign.sweeps(), slots)
    finals = [campaign.finals(c) for c in campaign.contestants.values()]
    # seed by seed, so that a machine that slows down slows all contestants
    run_all([r for of_a_seed in zip(*finals) for r in of_a_seed], slots)
    run_all([r for c in campaign.shorter() for r in campaign.finals(c)], slots)


@exits_cleanly
def main():
    args, overrides = parse(sys.argv[1:])
    out = args.out or os.path.join("out", Path(split(args.what[0])[0]).stem)
    campaign = Campaign(read_experiment(args.what, overrides), out, args.seeds, once(args.sweep), overrides,
                        args.ablation, args.only)
    print(plan(campaign), flush=True)
    if args.plan:
        return
    library("scipy.stats", "scipy")
    if not args.report:
        in_folder(campaign.out, args.parallel, lambda slots: run_campaign(campaign, slots))
    print("\n" + write_report(campaign))


if __name__ == "__main__":
    main()
