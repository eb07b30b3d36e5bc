"""
Short real runs of train.py and what they measure: the machinery under --study and --search of
plan.py, and the study of the dimensions itself.

Both work in a folder of their own, one run a subfolder, and remember in state.json what is done and
the seconds spent: started again with the same arguments they continue.
"""
import json
import os
import time
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from lab import rates
from lab.children import TRAIN, Child, interrupt_on_sigterm, places, side_by_side, stop
from lab.verdict import picture
from model import GROWABLE
from run.checkpoint import make_out_dir
from run.errors import UserError
from run.runlog import read_metrics

SHORT = {"n_embd": "hidden", "n_head": "heads", "n_inner": "FFN", "n_layer": "layers"}
EVALS = 24          # evaluations in a run
EVAL_SEQS = 64      # sequences each of them reads
FEWEST = 8          # evaluations without which a probe is not stopped yet
GRACE = 30          # seconds a run has to save itself after it was asked to stop


class Runs:
    """Runs of train.py in `folder`, one after another or pinned side by side, remembered."""

    def __init__(self, folder, config_args, budget=None):
        self.folder, self.config_args, self.budget = folder, config_args, budget
        self.lock = make_out_dir(folder)
        self.path = os.path.join(folder, "state.json")
        self.state = dict(args=config_args, spent=0.0, runs={})
        if os.path.exists(self.path):
            with open(self.path) as f:
                self.state = json.load(f)
            if self.state["args"] != config_args:
                raise UserError(f"{folder} holds the work of other arguments "
                                f"({' '.join(self.state['args'])}): choose another --out, or "
                                "delete it")
        self.since = time.monotonic()
        interrupt_on_sigterm()

    def spent(self):
        """Seconds of the budget that are gone, earlier sessions included."""
        now = time.monotonic()
        self.state["spent"], self.since = self.state["spent"] + now - self.since, now
        return self.state["spent"]

    def left(self):
        return float("inf") if self.budget is None else self.budget - self.spent()

    def save(self):
        self.spent()
        with open(self.path + ".tmp", "w") as f:
            json.dump(self.state, f, indent=1)
        os.replace(self.path + ".tmp", self.path)

    def events(self, name):
        return read_metrics(os.path.join(self.folder, name))

    def run(self, jobs, parallel=1, what="runs"):
        """
        jobs: [(name, settings, seconds or None)], each stopped after its seconds (what earlier
        sessions gave it included) or at its end. Returns once all are done or the budget is spent.
        """
        runs = self.state["runs"]
        todo = [j for j in jobs if not runs.get(j[0], {}).get("done") or
                (j[2] or 0) > runs[j[0]]["wall"] + 1]  # stopped by a limit that has been raised

        def start(job, place):
            name, settings, _ = job
            runs.setdefault(name, dict(wall=0.0, parallel=parallel))
            folder = os.path.join(self.folder, name)
            flags = [f"--{k}={v}" for k, v in dict(settings, out_dir=folder).items()]
            return Child([*TRAIN, *self.config_args, *flags, "--init_from=auto"], folder, place)
        with tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=what, unit="run") as bar:
            try:
                side_by_side(todo, places(parallel), start, lambda c, j: self.over(c, j, bar),
                             lambda: self.left() > 0, GRACE, pause=0.5)
            finally:
                self.save()

    def over(self, child, job, bar):
        """Counts a child's seconds; stops it after those of its job. Is it done?"""
        name, _, limit = job
        now, run = time.monotonic(), self.state["runs"][name]
        run["wall"], child.seen = run["wall"] + now - child.seen, now
        reached, evaluated = self.progress(name)
        if limit and run["wall"] > limit / 2 and evaluated < FEWEST:
            limit *= 3  # a slow start must not leave us with nothing
        bar.set_postfix_str(f"{name}: {run['wall']:.0f} s, iteration {reached}")
        enough = bool(limit) and run["wall"] >= limit
        if enough:
            stop([child], GRACE)
        code = child.process.poll()
        if code and not enough:
            raise UserError(f"{name}: train.py failed: {child.reason()}")
        if code is not None:
            run["done"] = True
            bar.update(1)
        self.save()
        return code is not None

    def progress(self, name):
        """(iteration, evaluations) of a run so far."""
        try:
            events = self.events(name)
        except OSError:
            events = []
        return events[-1]["iter"] if events else 0, sum(e["event"] == "eval" for e in events)


def name_of(sizes):
    return "{n_layer}L_{n_embd}_{n_head}h_{n_inner}".format(**sizes)


def structures(config):
    """Start, target, and the start with each grown dimension alone at the target's size."""
    if not config.stages:
        raise UserError("stages=[]: nothing grows, so there is nothing to compare: give a config "
                        "that grows from the smallest start to the target")
    start, target = config.sizes()[0], config.sizes()[-1]
    dims = [d for d in GROWABLE if target[d] > start[d]]
    return start, target, {d: {**start, d: target[d]} for d in dims}


def settings_of(config, sizes, seed, warmup, interval):
    """A run in the stable phase: warmup, then a constant rate, until it is stopped."""
    return dict(**sizes, stages=[], schedule="constant", seed=seed, warmup_iters=warmup,
                max_iters=10**7, eval_interval=interval, eval_seqs=EVAL_SEQS, keep_checkpoints=1,
                log_interval=max(1, min(config.log_interval, interval // 4)))


def probe_curve(run, sizes, warmup, n):
    """The Curve of a probe; ValueError if it did not come past the warmup."""
    step = run["step_s"].get(rates.shape(sizes))
    if sum(i > warmup for i in run["iters"]) < 3 or step is None:
        raise ValueError("too few evaluations after the warmup")
    return rates.fit(run["iters"], run["losses"], step, n)


# -----------------------------------------------------------------------------
# the study of the dimensions

def study(config, config_args, out, seconds, seeds, parallel, interval):
    """
    Probe runs of `seconds` each (all that it takes to run them), `seeds` of them for each structure.
    Draws study.png (the paper's Figure 2); returns a table's header and rows, the pre-training rate
    (loss per second of steps) of each structure at several times, and the picture's path.
    interval: sizes -> iterations between evaluations.
    """
    start, target, single = structures(config)
    named = {"start": start, **{f"start + {SHORT[d]}": s for d, s in single.items()},
             "target": target}
    runs = Runs(out, config_args)
    jobs = [(f"{name_of(s)}_seed{seed}", settings_of(config, s, seed, config.warmup_iters,
                                                        interval(s)), seconds)
            for seed in range(config.seed, config.seed + seeds) for s in named.values()]
    runs.run(jobs, parallel, "probes")
    curves, seen, n = {}, [], rates.grid(10**5)
    for label, s in named.items():
        curves[label] = []
        for seed in range(config.seed, config.seed + seeds):
            run = rates.read_run(runs.events(f"{name_of(s)}_seed{seed}"))
            try:
                curves[label].append(probe_curve(run, s, config.warmup_iters, n))
            except ValueError as e:
                raise UserError(f"{name_of(s)}: {e}: give each probe more time, "
                                f"--probe={2 * seconds:g}") from None
            seen.append(run["iters"][-1] * curves[label][-1].step_s)
        typical = float(np.median([c.step_s for c in curves[label]]))  # one machine, one speed
        curves[label] = [replace(c, step_s=typical) for c in curves[label]]
    seconds = float(np.median(seen))  # of steps: without starting, compiling and evaluating
    print(f"\nrate: loss per 1000 s of steps; mean and half the range over {seeds} seeds\n")
    times = seconds * np.array([0.15, 0.3, 0.6, 0.9])
    header = ["structure", "", "ms/step", *(f"rate at {t:.0f} s" for t in times),
              f"loss at {seconds:.0f} s"]
    rows = [[label, name_of(named[label]), f"{cs[0].step_s * 1e3:.1f}",
             *(spread([1e3 * c.rate_after(t) for c in cs]) for t in times),
             spread([c.loss_at(seconds / c.step_s) for c in cs])] for label, cs in curves.items()]
    return header, rows, draw_study(curves, seconds, os.path.join(out, "study.png"))


def spread(values):
    return f"{np.mean(values):.3g} ± {np.ptp(values) / 2:.2g}"


def draw_study(curves, seconds, save):
    t = np.linspace(0.05 * seconds, seconds, 100)
    with picture(save, 2) as [axes]:
        for i, (label, cs) in enumerate(curves.items()):
            for ax, y in zip(axes, (np.array([c.rate_after(t) for c in cs]),
                                    np.array([c.loss_at(t / c.step_s) for c in cs]))):
                ax.plot(t, y.mean(0), color=f"C{i}", label=label)
                ax.fill_between(t, y.min(0), y.max(0), color=f"C{i}", alpha=0.15, lw=0)
        axes[0].set(xlabel="seconds of steps", ylabel="pre-training rate (loss per second)",
                    yscale="log")
        axes[1].set(xlabel="seconds of steps", ylabel="validation loss, stable phase")
        axes[0].legend(fontsize=9)
    return save
