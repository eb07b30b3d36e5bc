"""
Short real runs of train.py and what they measure: the machinery under --study and --search of
plan.py, and the study of the dimensions itself.

Both work in a folder of their own, one run a subfolder, and remember in state.json what is done and
the seconds spent: started again with the same arguments they continue.
"""
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
from tqdm import tqdm

from lab import rates
from model import GROWABLE
from run.errors import UserError
from run.runlog import read_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHORT = {"n_embd": "hidden", "n_head": "heads", "n_inner": "FFN", "n_layer": "layers"}
EVALS = 24          # evaluations in a run
EVAL_SEQS = 64      # sequences each of them reads
FEWEST = 8          # evaluations without which a probe is not stopped yet
GRACE = 30          # seconds a run has to save itself after it was asked to stop


class Runs:
    """Runs of train.py in `folder`, one after another or pinned side by side, remembered."""

    def __init__(self, folder, config_args, budget=None):
        self.folder, self.config_args, self.budget = folder, config_args, budget
        os.makedirs(folder, exist_ok=True)
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
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))

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

    def start(self, name, settings, cores=None):
        command = [sys.executable, os.path.join(ROOT, "train.py"), *self.config_args,
                   *(f"--{k}={v}" for k, v in settings.items()),
                   f"--out_dir={os.path.join(self.folder, name)}", "--init_from=auto"]
        env, pin = dict(os.environ), None
        if cores:
            env["OMP_NUM_THREADS"] = str(len(cores))

            def pin():
                os.sched_setaffinity(0, cores)
        log = open(os.path.join(self.folder, name + ".txt"), "w")
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=env,
                                preexec_fn=pin)

    def run(self, jobs, parallel=1, what="runs"):
        """
        jobs: [(name, settings, seconds or None)], each stopped after its seconds (what earlier
        sessions gave it included) or at its end. Returns once all are done or the budget is spent.
        """
        runs = self.state["runs"]
        todo = [j for j in jobs if not runs.get(j[0], {}).get("done") or
                (j[2] or 0) > runs[j[0]]["wall"] + 1]  # stopped by a limit that has been raised
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        per = max(1, len(cores) // parallel)
        slots = [cores[i * per % len(cores):][:per] if parallel > 1 and cores else None
                 for i in range(parallel)]
        running, bar = {}, tqdm(total=len(jobs), initial=len(jobs) - len(todo), desc=what, unit="run")
        try:
            while (todo or running) and self.left() > 0:
                while todo and slots:
                    job, slot = todo.pop(0), slots.pop()
                    runs.setdefault(job[0], dict(wall=0.0, parallel=parallel))
                    running[job[0]] = self.start(job[0], job[1], slot), job, slot
                then = time.monotonic()
                time.sleep(0.5)
                self.tick(running, slots, bar, time.monotonic() - then)
        finally:  # the budget is spent, or someone asks us to stop
            self.stop([p for p, _, _ in running.values()])
            bar.close()
            self.save()

    def tick(self, running, slots, bar, seconds):
        runs = self.state["runs"]
        for name, (process, (_, _, limit), slot) in list(running.items()):
            runs[name]["wall"] += seconds
            if limit and runs[name]["wall"] > limit / 2 and self.evaluated(name) < FEWEST:
                limit *= 3  # a slow start must not leave us with nothing
            bar.set_postfix_str(f"{name}: {runs[name]['wall']:.0f} s, iteration {self.reached(name)}")
            over = bool(limit) and runs[name]["wall"] >= limit
            if over:
                self.stop([process])
            if process.poll() is not None:
                if process.returncode and not over:
                    raise UserError(f"{name}: train.py failed: {last_line(self.folder, name)}")
                runs[name]["done"] = True
                del running[name]
                slots.append(slot)
                bar.update(1)
        self.save()

    def reached(self, name):
        try:
            return self.events(name)[-1]["iter"]
        except (OSError, IndexError):
            return 0

    def evaluated(self, name):
        try:
            return sum(e["event"] == "eval" for e in self.events(name))
        except OSError:
            return 0

    @staticmethod
    def stop(processes):
        """Ask runs to save and stop; train.py finishes its step and exits cleanly."""
        for p in processes:
            if p.poll() is None:
                p.send_signal(signal.SIGTERM)
        for p in processes:
            try:
                p.wait(GRACE)
            except subprocess.TimeoutExpired:
                p.kill()
                p.wait()


def last_line(folder, name):
    with open(os.path.join(folder, name + ".txt"), errors="replace") as f:
        lines = [line.strip() for line in f if line.strip()]
    return lines[-1] if lines else "no word from it"


def name_of(sizes):
    return "{n_layer}L_{n_embd}_{n_head}h_{n_inner}".format(**sizes)


def key_of(sizes):
    return rates.shape(sizes)


def structures(config):
    """Start, target, and the start with each grown dimension alone at the target's size."""
    if not config.stages:
        raise UserError("stages=[]: nothing grows, so there is nothing to compare: give a config "
                        "that grows from the smallest start to the target")
    start, target = config.sizes()[0], config.sizes()[-1]
    dims = [d for d in GROWABLE if target[d] > start[d]]
    return start, target, {d: {**start, d: target[d]} for d in dims}


def probe_settings(config, sizes, seed, warmup, interval):
    """A run in the stable phase: warmup, then a constant rate, until it is stopped."""
    return dict(**sizes, stages=[], schedule="constant", seed=seed, warmup_iters=warmup,
                max_iters=10**7, eval_interval=interval, eval_seqs=EVAL_SEQS, keep_checkpoints=1,
                log_interval=max(1, min(config.log_interval, interval // 4)))


# -----------------------------------------------------------------------------
# the study of the dimensions

def study(config, config_args, out, seconds, seeds, parallel, interval):
    """
    Probe runs of `seconds` each (all that it takes to run them), `seeds` of them for each structure.
    Draws study.png (the paper's Figure 2); returns a table's header and rows, the pre-training rate
    (loss per second of steps) of each structure at several times, and the picture's path.
    interval: structure -> iterations between its evaluations.
    """
    start, target, single = structures(config)
    named = {"start": start, **{f"start + {SHORT[d]}": s for d, s in single.items()},
             "target": target}
    runs = Runs(out, config_args)
    jobs = [(f"{name_of(s)}_seed{seed}", probe_settings(config, s, seed, config.warmup_iters,
                                                        interval[key_of(s)]), seconds)
            for seed in range(config.seed, config.seed + seeds) for s in named.values()]
    runs.run(jobs, parallel, "probes")
    curves, seen, n = {}, [], rates.grid(10**5)
    for label, s in named.items():
        for i in range(seeds):
            run = rates.read_run(runs.events(f"{name_of(s)}_seed{config.seed + i}"))
            try:
                curves.setdefault(label, []).append(probe_curve(run, s, config.warmup_iters, n))
            except ValueError as e:
                raise UserError(f"{name_of(s)}: {e}: give each probe more time, "
                                f"--probe={2 * seconds:g}") from None
            seen.append(run["iters"][-1] * curves[label][-1].step_s)
        typical = float(np.median([c.step_s for c in curves[label]]))  # one machine, one speed
        curves[label] = [replace(c, step_s=typical) for c in curves[label]]
    seconds = float(np.median(seen))  # of steps: without starting, compiling and evaluating
    times = seconds * np.array([0.15, 0.3, 0.6, 0.9])
    rows = [[label, name_of(named[label]), f"{np.mean([c.step_s for c in cs]) * 1e3:.1f}"] +
            [spread([float(c.rate_at(c.loss_at(t / c.step_s))) * 1e3 for c in cs]) for t in times] +
            [spread([float(c.loss_at(seconds / c.step_s)) for c in cs])]
            for label, cs in curves.items()]
    header = ["structure", "", "ms/step", *(f"rate at {t:.0f} s" for t in times),
              f"loss at {seconds:.0f} s"]
    print(f"\nrate: loss per 1000 s of steps; mean and half the range over {seeds} seeds\n")
    return header, rows, draw_study(curves, seconds, os.path.join(out, "study.png"))


def probe_curve(run, sizes, warmup, n):
    """The Curve of a probe; it must have come past the warmup."""
    seen = list(zip(run["iters"], run["losses"]))
    if sum(i > warmup for i, _ in seen) < 3:
        raise ValueError("too few evaluations after the warmup")
    step = run["step_s"].get(key_of(sizes))
    if step is None:
        raise ValueError("no step was timed")
    return rates.fit(*zip(*seen), step, n)


def spread(values):
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.3g} ± {half:.2g}"


def draw_study(curves, seconds, save):
    from tools.plot import plt
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.8))
    for i, (label, cs) in enumerate(curves.items()):
        t = np.linspace(0.05 * seconds, seconds, 100)
        loss = np.array([c.loss_at(t / c.step_s) for c in cs])
        rate = np.array([c.rate_at(c.loss_at(t / c.step_s)) for c in cs])
        for ax, y in zip(axes, (rate, loss)):
            ax.plot(t, y.mean(0), color=f"C{i}", label=label)
            ax.fill_between(t, y.min(0), y.max(0), color=f"C{i}", alpha=0.15, lw=0)
    axes[0].set(xlabel="seconds of steps", ylabel="pre-training rate (loss per second)", yscale="log")
    axes[1].set(xlabel="seconds of steps", ylabel="validation loss, stable phase")
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=9)
    fig.tight_layout()
    fig.savefig(save, dpi=130)
    plt.close(fig)
    return save
