"""
Is growing faster? One command runs contestants x seeds, tunes the baselines, picks up what was
interrupted, and reports wall-clock and compute to the baseline's final loss, with intervals.

    python -m lab.speedrun lab/experiments/pystdlib_evidence.py --parallel=2
    python -m lab.speedrun config/pystdlib_scratch.py "config/pystdlib_msg.py init=zero" \\
        --seeds=1,2,3 --sweep=muon_learning_rate:0.02,0.04,0.08 --out=out/mine

An experiment file is plain Python, like those in config/: `contestants`, a dict of name -> settings
(those of run/settings.py, and four more: `config`, a file to start from; `against`, whom to compare
it with; `sweep`; `flops`, what it may cost, in FLOPs or as (name of another, share)); `settings`
and `config` for all; `seeds`; `ablation = True` for arms at one learning rate, compared with the
first.

A contestant without `against` is a baseline, and must bring a `sweep` of its learning rate with at
least three values. The others train with the rate their baseline found unless they bring a sweep
of their own, which may not be larger than the baseline's. Beside each baseline that is compared
with runs the same for only as long as the best grown run took ("shorter").
"""
import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

import torch

from lab import verdict
from lab.campaign import Campaign, compute, point_name
from run.errors import UserError, exits_cleanly
from run.settings import parse_override, read_file

# -----------------------------------------------------------------------------
# running

def places(n):
    """[(environment, command prefix, description)] of n places to run: a GPU or pinned cores each."""
    if torch.cuda.is_available():
        ids = os.environ.get("CUDA_VISIBLE_DEVICES")
        ids = ids.split(",") if ids else [str(i) for i in range(torch.cuda.device_count())]
        if n > len(ids):
            raise UserError(f"parallel={n}: there are {len(ids)} GPUs here, one a run")
        return [(dict(CUDA_VISIBLE_DEVICES=i), [], f"{n} at once, a GPU each") for i in ids[:n]]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else \
        list(range(os.cpu_count()))
    if n > len(cores):
        raise UserError(f"parallel={n}: there are {len(cores)} CPU cores here, at least one a run")
    each = len(cores) // n
    made = []
    for i in range(n):
        mine = cores[i * each:(i + 1) * each]
        pin = ["taskset", "-c", ",".join(map(str, mine))] if shutil.which("taskset") else []
        made.append((dict(OMP_NUM_THREADS=str(each)), pin, f"{n} at once, {each} thread(s) each"))
    return made


def run_all(runs, slots):
    """Run what is not done yet, as many at once as there are slots. An interrupt saves them all."""
    waiting = [r for r in {r.config.out_dir: r for r in runs}.values() if not r.done()]
    free, running = list(slots), {}
    try:
        while waiting or running:
            while waiting and free:
                run, slot = waiting.pop(0), free.pop(0)
                running[start(run, slot)] = run, slot
                print(f"{time.strftime('%H:%M:%S')} {run.config.out_dir} ({len(waiting)} waiting)",
                      flush=True)
            time.sleep(0.1)
            for process in [p for p in running if p.poll() is not None]:
                run, slot = running.pop(process)
                free.append(slot)
                finish(run, process.returncode)
    finally:  # an error in one, or an interrupt: the others save their state and stop
        for process in running:
            process.terminate()
        for process in running:
            process.wait()


def start(run, slot):
    environment, pin, description = slot
    os.makedirs(run.config.out_dir, exist_ok=True)
    with open(run.path("place.txt"), "a") as f:
        f.write(description + "\n")
    with open(run.path("run.txt"), "a") as out:
        return subprocess.Popen([*pin, *run.command()], env={**os.environ, **environment},
                                stdout=out, stderr=subprocess.STDOUT,
                                start_new_session=os.name == "posix")


def finish(run, code):
    """Look at how a run ended; a finished one keeps its final checkpoint only."""
    if code == 0 and run.done():
        for name in os.listdir(run.config.out_dir):
            if re.fullmatch(r"ckpt_\d+\.pt|best\.pt", name):
                os.remove(run.path(name))
        return
    with open(run.path("run.txt"), errors="replace") as f:
        lines = [line.strip() for line in f.read().replace("\r", "\n").split("\n") if line.strip()]
    why = next((line for line in reversed(lines) if line.startswith("error: ")),
               lines[-1] if lines else f"exit code {code}")
    if "infinite or NaN" in why:
        with open(run.path("diverged.txt"), "w") as f:
            f.write(why + "\n")
        print(f"{run.config.out_dir}: diverged", flush=True)
        return
    raise UserError(f"{run.config.out_dir}: stopped ({why.removeprefix('error: ')}): see run.txt "
                    "there; the same command goes on from here")


# -----------------------------------------------------------------------------

def plan(campaign):
    """What will run and what it costs, as a markdown table."""
    lines = ["| run | points | iterations | PFLOP a run | its baseline's / its |",
             "|---|---|---|---|---|"]
    cost = {}
    for c in campaign.contestants.values():
        config = campaign.run(c, c.points()[0], campaign.seeds[0]).config
        cost[c.name] = compute(config)
        less = f"{cost[c.against[0]] / cost[c.name]:.2f}" if c.against else "-"
        lines.append(f"| {c.name} | {len(c.points())} | {config.max_iters} | "
                     f"{cost[c.name] / 1e15:.4g} | {less} |")
    runs = sum((len(c.points()) if c.sweep else 1) + len(campaign.seeds) - 1
               for c in campaign.contestants.values())
    total = sum(((len(c.points()) if c.sweep else 1) + len(campaign.seeds) - 1) * cost[c.name]
                for c in campaign.contestants.values())
    return "\n".join(lines) + f"\n\n{runs} runs, {total / 1e15:.4g} PFLOP" + \
        ("." if campaign.ablation else ", and the shorter baselines'.")


def write_report(campaign):
    """report.md, report.json and loss.png in the campaign's folder. Returns the text."""
    extra = campaign.shorter()
    rows, curves, cautions = campaign.report(extra)
    if not rows:
        raise UserError(f"{campaign.out}: no finished runs to report on yet")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else \
        f"{platform.machine()} CPU, {os.cpu_count()} cores"
    timed = sorted({line.strip() for r in campaign.all_runs() if os.path.exists(r.path("place.txt"))
                    for line in open(r.path("place.txt"))})
    if len(timed) > 1:
        cautions.append("runs were timed under different conditions: compare their compute only")
    machine = f"{device}, torch {torch.__version__}; {' or '.join(timed)}"
    text = verdict.table(rows) + \
        f"\n\n95 % t-intervals over seeds {campaign.seeds}. Machine: {machine}.\n" \
        + "".join(f"\nCaution: {c}." for c in cautions)
    faults = {} if campaign.ablation else {c.name: campaign.not_accepted(c, extra) for c in
                                           campaign.contestants.values() if not c.against}
    text += "".join(f"\nBaseline {name}: " + (f"NOT accepted, {why}." if why else "accepted.")
                    for name, why in faults.items())
    sweeps = {c.name: [dict(point=r.point, val_loss=r.final()) for p in c.points()
                       for r in [campaign.run(c, p, campaign.seeds[0])] if r.done()]
              for c in campaign.contestants.values() if c.sweep}
    text += "".join(f"\n\nSweep of {name} (seed {campaign.seeds[0]}): " + ", ".join(
        f"{point_name(s['point'])}: {s['val_loss']:.4f}" for s in tried)
        for name, tried in sweeps.items())
    os.makedirs(campaign.out, exist_ok=True)
    with open(os.path.join(campaign.out, "report.json"), "w") as f:
        report = dict(machine=machine, seeds=campaign.seeds, rows=rows, sweeps=sweeps,
                      not_accepted=faults, cautions=cautions, curves=curves)
        json.dump(json.loads(json.dumps(report), parse_constant=str), f, indent=1)  # no Infinity
    with open(os.path.join(campaign.out, "report.md"), "w") as f:
        f.write(text + "\n")
    verdict.draw(rows, curves, os.path.join(campaign.out, "loss.png"))
    return text


def read_experiment(what):
    """One experiment file; or configs, each with `key=value`s after it, the first the baseline."""
    if len(what) == 1 and os.path.isfile(what[0]):
        names = read_file(what[0])
        if "contestants" in names:
            return names
    contestants = {}
    for text in what:
        path, *pairs = text.split(" ")
        values = {k: v for k, v in (parse_override("--" + p) for p in pairs if p)}
        name = os.path.splitext(os.path.basename(path))[0] + "".join(" " + p for p in pairs)
        contestants[name] = dict(values, config=path)
        if len(contestants) > 1:
            contestants[name]["against"] = next(iter(contestants))
    return dict(contestants=contestants)


def parse_sweep(text):
    """"learning_rate:1e-3,2e-3" as {setting: [values]}."""
    key, colon, values = text.partition(":")
    if not colon or not values:
        raise UserError(f"sweep={text}: is written --sweep=learning_rate:1e-3,2e-3,4e-3")
    return {key: [parse_override(f"--{key}={v}")[1] for v in values.split(",")]}


def stop(number, frame):
    raise KeyboardInterrupt


@exits_cleanly
def main():
    p = argparse.ArgumentParser(allow_abbrev=False, description="Is growing faster? Contestants x "
                                "seeds, and a verdict. --key=value: a setting of all runs.")
    p.add_argument("what", nargs="+", metavar="EXPERIMENT_OR_CONFIGS")
    p.add_argument("--out", help="folder of the campaign (default: out/ and the experiment's name)")
    p.add_argument("--seeds", help="such as 1,2,3")
    p.add_argument("--sweep", action="append", default=[], metavar="KEY:V,V,V",
                   help="of the baselines")
    p.add_argument("--only", help="contestants, separated by semicolons, and their baselines")
    p.add_argument("--parallel", type=int, default=1, help="runs at once, each on its cores or GPU")
    p.add_argument("--ablation", action="store_true", help="one learning rate for all, no tuning")
    p.add_argument("--plan", action="store_true", help="only say what would run and what it costs")
    p.add_argument("--report", action="store_true", help="only report on what is finished")
    args, more = p.parse_known_args(sys.argv[1:])
    for a in more:
        if not a.startswith("--"):
            raise UserError(f"{a}: settings are written --key=value")
    overrides = dict(parse_override(a) for a in more)
    try:
        seeds = [int(s) for s in args.seeds.split(",")] if args.seeds else None
    except ValueError:
        raise UserError(f"seeds={args.seeds}: whole numbers with commas, such as 1,2,3") from None
    if args.parallel < 1:
        raise UserError(f"parallel={args.parallel}: must be at least 1")
    name = os.path.splitext(os.path.basename(args.what[0].split(" ")[0]))[0]
    sweep = {k: v for text in args.sweep for k, v in parse_sweep(text).items()}
    campaign = Campaign(read_experiment(args.what), args.out or os.path.join("out", name), seeds,
                        sweep, overrides, args.ablation,
                        [n.strip() for n in args.only.split(";")] if args.only else None)
    print(plan(campaign), flush=True)
    if args.plan:
        return
    signal.signal(signal.SIGTERM, stop)
    try:
        if not args.report:
            slots = places(args.parallel)
            run_all(campaign.sweeps(), slots)
            finals = [campaign.finals(c) for c in campaign.contestants.values()]
            # seed by seed, so that a machine that slows down slows all contestants
            run_all([r for of_a_seed in zip(*finals) for r in of_a_seed], slots)
            run_all([r for c in campaign.shorter() for r in campaign.finals(c)], slots)
    except KeyboardInterrupt:
        raise UserError("interrupted; every run was saved, the same command goes on from here") \
            from None
    print("\n" + write_report(campaign))


if __name__ == "__main__":
    main()
