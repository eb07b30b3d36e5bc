"""
lab.plan --search: a grid search over schedules. Every candidate's time to the final loss of a run from
scratch is predicted by rates.py, from probe runs of a few structures; the best are then checked by
real runs, and each of those corrects the predictions that follow. All within a budget of minutes.
"""
import itertools
import json
import os
from dataclasses import replace

import numpy as np

from lab import rates
from lab.children import ROOT
from lab.probes import EVAL_SEQS, EVALS, SHORT, Runs, name_of, probe_curve, settings_of, structures
from lab.rates import shape
from model import GROWABLE
from run.curves import crossing
from run.errors import UserError

# shares of the budget; what is left is for the config's own schedule and checks
SCRATCH, PROBES = 0.18, 0.2
SHARES = (0.1, 0.2, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)  # where a candidate may grow
MOST_GROWTHS = 3
WRITTEN = {*GROWABLE, "stages", "out_dir", "max_iters", "ramp_iters", "init_from"}  # by write_config
MARGIN = 1.1        # a check runs longer than predicted by this, to be sure to see the goal


def candidates(start, target, dims, ramp_share, last):
    """
    Schedules: lists of (sizes, share of the run where that stage begins). Every start that has some
    of the dimensions at the target's size already, every order of growing the others in up to
    MOST_GROWTHS growths, every choice of SHARES a ramp apart and before `last`; and one layer first.
    """
    def at(chosen):
        return {**start, **{d: target[d] for d in chosen}}
    orders = []
    for k in range(len(dims)):
        for first in itertools.combinations(dims, k):
            for parts in ordered_partitions([d for d in dims if d not in first]):
                steps = list(itertools.accumulate([first, *parts], lambda a, b: (*a, *b)))
                orders.append([at(chosen) for chosen in steps])
    if "n_layer" in dims and start["n_layer"] > 1:
        orders.append([{**target, "n_layer": 1}, target])
    shares = [s for s in SHARES if s + ramp_share <= last]
    for order in orders:
        for chosen in itertools.combinations(shares, len(order) - 1):
            if all(b - a >= ramp_share for a, b in itertools.pairwise(chosen)):
                yield list(zip(order, (0.0, *chosen)))


def ordered_partitions(items):
    """All ways to grow `items` in up to MOST_GROWTHS growths: lists of tuples of dimensions."""
    for n in range(1, min(MOST_GROWTHS, len(items)) + 1):
        for where in itertools.product(range(n), repeat=len(items)):
            if set(where) == set(range(n)):
                yield [tuple(d for d, w in zip(items, where) if w == i) for i in range(n)]


def stages_of(path, iters):
    """train.py's stages of a schedule: what changes, and when."""
    return [dict(at=max(1, round(share * iters)),
                 **{k: v for k, v in sizes.items() if v != before[k]})
            for (before, _), (sizes, share) in itertools.pairwise(path)]


def schedule_name(path):
    parts = [name_of(path[0][0])]
    for (before, _), (sizes, share) in itertools.pairwise(path):
        grown = " ".join(f"{SHORT[k]} {v}" for k, v in sizes.items() if v != before[k])
        parts.append(f"{share:.0%}: {grown}")
    return ", ".join(parts)


class Search:
    """The steps of --search, in the order in which they run; the state of each is in `runs`."""

    def __init__(self, config, config_args, out, minutes):
        if config.schedule == "cosine":
            raise UserError("schedule='cosine': has no stable phase to predict from: search with "
                            "--schedule=wsd, which also takes growth better")
        self.config, self.seconds = config, 60 * minutes
        self.start, self.target, self.single = structures(config)
        self.runs = Runs(out, config_args, self.seconds)
        self.state = self.runs.state
        self.decay = config.decay_frac if config.schedule == "wsd" else 0.0
        self.ramp_share = config.ramp_iters / config.max_iters
        self.costs = rates.Costs(decay_frac=self.decay)
        self.slacks, self.kappas = [], []  # what each check said of Costs.slack and Costs.kappa
        self.checks, self.ranking = {}, []

    def remember(self, key, value):
        """state[key], computed by value() the first time."""
        if key not in self.state:
            self.state[key] = value()
            self.runs.save()
        return self.state[key]

    def measured(self, name):
        return rates.read_run(self.runs.events(name))

    def whole_run(self, name, path, iters, what):
        """A real run of a schedule, like the base config in all else. Did it come to its end?"""
        settings = dict(path[0][0], stages=stages_of(path, iters), max_iters=iters,
                        ramp_iters=max(1, round(self.ramp_share * iters)),
                        warmup_iters=self.state["warmup"],
                        eval_interval=max(1, iters // EVALS), eval_seqs=EVAL_SEQS,
                        keep_checkpoints=1,
                        log_interval=max(1, min(self.config.log_interval, iters // (4 * EVALS))))
        self.runs.run([(name, settings, None)], what=what)
        return self.state["runs"].get(name, {}).get("done")

    # -- the measurements

    def scratch(self, step_s):
        """The target from scratch: its end is the goal, its stable phase the target's curve."""
        self.iters = self.remember("scratch_iters", lambda: max(
            2 * EVALS, int(SCRATCH * self.seconds * 0.75 / step_s)))
        self.remember("warmup", lambda: max(1, min(self.config.warmup_iters, self.iters // 10)))
        if not self.whole_run("scratch", [(self.target, 0.0)], self.iters, "from scratch"):
            raise UserError("the budget ran out in the run from scratch: this machine is slower than "
                            "it was a minute ago; raise --budget and start again")
        run, key = self.measured("scratch"), shape(self.target)
        stable = [(i, y) for i, y in zip(run["iters"], run["losses"])
                  if i <= (1 - self.decay) * self.iters]
        if len(stable) < 3 or key not in run["step_s"]:
            raise UserError(f"decay_frac={self.decay}: leaves too little of the run from scratch to "
                            "predict from: lower it, or raise --budget")
        self.n, self.stable_end = rates.grid(self.iters), stable[-1][0]
        self.curves = {key: rates.fit(*zip(*stable), run["step_s"][key], self.n)}
        self.costs.compile_s = self.costs.grow_s = run["compile_s"]
        self.goal, self.scratch_s = run["losses"][-1], run["seconds"][-1]
        # what a run costs beyond the time it trains: starting, evaluating, saving
        self.overhead = max(0.0, self.state["runs"]["scratch"]["wall"] - self.scratch_s)

    def probes(self, flops):
        """The stable phase of the start, of each dimension alone, and of one layer."""
        wanted = [self.start, *self.single.values()]
        if "n_layer" in self.single and self.start["n_layer"] > 1:
            wanted.append({**self.target, "n_layer": 1})
        wanted = {f"probe_{name_of(s)}": s for s in wanted if s != self.target}
        each, jobs = PROBES * self.seconds / len(wanted), []
        for name, s in wanted.items():
            estimate = self.curves[shape(self.target)].step_s * (flops(s) / flops(self.target)) ** 0.8
            # resumed probes must keep the interval that they began with
            interval = self.remember(f"interval_{name}",
                                     lambda: max(1, int(0.6 * each / estimate / EVALS)))
            jobs.append((name, settings_of(self.config, s, self.config.seed,
                                              self.state["warmup"], interval), each))
        self.runs.run(jobs, what="probes")
        ends = {}
        for name, s in wanted.items():
            try:
                run = self.measured(name)
                self.curves[shape(s)] = probe_curve(run, s, self.state["warmup"], self.n)
            except (ValueError, OSError) as e:
                raise UserError(f"{name}: {e}: too little time for a probe; raise --budget") from None
            ends[shape(s)] = run["losses"][-1]
        if self.decay:
            self.finish_target(min(ends, key=ends.get), min(ends.values()))

    def finish_target(self, furthest, loss):
        """
        The target's stable curve beyond its own stable phase, by the probe that came furthest, to
        `loss`; and what a decay takes off it.
        """
        key = shape(self.target)
        if loss < self.curves[key].loss_at(self.stable_end):
            self.curves[key] = rates.continued(self.curves[key], self.stable_end, self.curves[furthest])
        run = self.measured("scratch")
        self.costs.drop_u, self.costs.drop = rates.measured_drop(
            self.curves[key], run["iters"], run["losses"], self.iters, self.decay)

    def curve(self, sizes):
        """Measured, or combined from what was."""
        c = self.curves
        if shape(sizes) not in c:
            chosen = [d for d in self.single if sizes[d] == self.target[d]]
            if any(sizes[d] not in (self.start[d], self.target[d]) for d in self.single):
                raise KeyError(sizes)  # between the two: neither measured nor combined
            c[shape(sizes)] = rates.combine(
                c[shape(self.start)], {d: c[shape(s)] for d, s in self.single.items()},
                c[shape(self.target)], chosen)
        return c[shape(sizes)]

    # -- the search

    def predict(self, path, iters, **costs):
        """rates.predict of a schedule, by the curves and costs known so far."""
        return rates.predict([(self.curve(sizes), share * iters) for sizes, share in path], iters,
                             self.ramp_share * iters, replace(self.costs, **costs))

    def shortest(self, path, goal, **costs):
        """(iterations, seconds) to the goal, by the curves and costs known so far."""
        return rates.shortest([(self.curve(sizes), share) for sizes, share in path], goal,
                              replace(self.costs, **costs), self.ramp_share, 4 * self.iters)

    def rank(self):
        """All candidates that reach the goal, the fastest first: [(seconds, iterations, path)]."""
        last = 1 - 0.75 * self.decay  # further in, what is newborn has no time left to learn
        found = []
        for path in candidates(self.start, self.target, list(self.single), self.ramp_share, last):
            iters, seconds = self.shortest(path, self.goal)
            if iters is not None:
                found.append((seconds, iters, path))
        self.ranking = sorted(found, key=lambda f: f[0])

    def foretell(self, path):
        """What a check of this schedule should show; None if too little of the budget is left."""
        iters, _ = self.shortest(path, self.goal)
        if iters is None:
            return None
        iters = int(np.ceil(iters * MARGIN))
        its, secs, losses = self.predict(path, iters)
        if 1.05 * secs[-1] + self.overhead > self.runs.left():
            return None
        return dict(path=path, iters=iters, kappa=self.costs.kappa, end=float(losses[-1]),
                    predicted=crossing(secs, losses, self.goal),
                    predicted_iters=crossing(its, losses, self.goal))

    def check(self, name, path):
        """
        Predict a schedule, run it, compare. Remembers the prediction before the run begins.
        Is False, and nothing is checked, when what is left of the budget is too little.
        """
        known = self.state.get(name) or self.foretell(path)
        if known is None:
            return False
        self.remember(name, lambda: known)
        if not self.whole_run(name, path, known["iters"], f"{name}: {schedule_name(path)}"):
            return False
        run = self.measured(name)
        known.update(measured=crossing(run["seconds"], run["losses"], self.goal),
                     measured_iters=crossing(run["iters"], run["losses"], self.goal),
                     measured_end=run["losses"][-1], seconds=run["seconds"][-1],
                     pace=self.pace(run))
        kappa = self.learn(path, known["iters"], run)
        known["about"] = known["measured"] or self.extrapolated(path, known, kappa)
        self.runs.save()
        self.checks[name] = known
        print(told(known, self.scratch_s), flush=True)
        return True

    def pace(self, run):
        """Seconds of a step of the target in this run, against the run from scratch: the machine."""
        usual = self.curves[shape(self.target)].step_s
        return run["step_s"].get(shape(self.target), usual) / usual

    def extrapolated(self, path, known, kappa):
        """
        Seconds to the goal of a run that ended short of it, had it been longer: by the curves, with
        this run's own kappa, moved so that they end where the run ended. None if they never do.
        """
        _, secs, losses = self.predict(path, known["iters"], kappa=kappa)
        found, seconds = self.shortest(path, self.goal + losses[-1] - known["measured_end"],
                                       kappa=kappa)
        return None if found is None else known["seconds"] * seconds / float(secs[-1])

    def learn(self, path, iters, run):
        """What a real grown run says of growing itself: kappa, compiling, masked steps, slack."""
        if run["grow_s"]:
            self.costs.grow_s = run["grow_s"]
        ratios = [m / run["step_s"][k] for k, m in run["masked_s"].items() if k in run["step_s"]]
        if ratios:
            self.costs.masked = float(np.median(ratios))
        pace = self.pace(run)
        for k, s in run["step_s"].items():
            if k in self.curves and k != shape(self.target):
                self.curves[k] = replace(self.curves[k], step_s=s / pace)
        _, secs, _ = self.predict(path, iters, slack=1.0)
        self.slacks.append(run["seconds"][-1] / float(secs[-1]))
        self.costs.slack = float(np.exp(np.mean(np.log(self.slacks))))
        self.kappas.append(rates.calibrate([(self.curve(s), share * iters) for s, share in path],
                                           iters, self.ramp_share * iters, self.costs,
                                           run["iters"], run["losses"]))
        self.costs.kappa = float(np.exp(np.mean(np.log(self.kappas))))
        return self.kappas[-1]

    def own_path(self):
        """The base config's own schedule, where it can be predicted; else one growth at 30 %."""
        ats = [0, *(s["at"] for s in self.config.stages)]
        path = [(s, at / self.config.max_iters) for s, at in zip(self.config.sizes(), ats)]
        try:
            if self.shortest(path, self.goal)[0] is not None:
                return path
        except KeyError:
            pass
        return [(self.start, 0.0), (self.target, 0.3)]

    def go(self, step_s, flops):
        """Everything, to `checks` and `ranking`. step_s(): of the target; flops(sizes) -> FLOPs."""
        self.scratch(self.remember("step_s", step_s))
        print(f"from scratch: val loss {self.goal:.4f} in {self.scratch_s:.0f} s "
              f"({self.iters} iterations): the goal", flush=True)
        self.probes(flops)
        self.check("own", self.own_path())
        self.rank()
        while True:
            name = f"check{len(self.checks)}"
            tried = [c["path"] for c in self.checks.values()]
            path = self.state.get(name, {}).get("path") or next(
                (p for _, _, p in self.ranking if not any(alike(p, t) for t in tried)), None)
            if not path or not self.check(name, [tuple(stage) for stage in path]):
                return
            self.rank()  # by what that run taught


def alike(a, b):
    """The same sizes in the same order, grown at nearly the same places: no need to run both."""
    return len(a) == len(b) and all(x[0] == y[0] and abs(x[1] - y[1]) < 0.06 for x, y in zip(a, b))


def told(c, scratch_s):
    seen = f"measured {c['measured']:.0f} s ({scratch_s / c['measured']:.2f}x)" \
        if c["measured"] else \
        f"not reached in {c['seconds']:.0f} s (ended at {c['measured_end']:.4f}" + \
        (f", about {c['about']:.0f} s by extrapolation)" if c["about"] else ")")
    return f"{schedule_name(c['path'])}: predicted {c['predicted']:.0f} s, {seen}"


def report(search):
    """
    (header, rows, winner) of what was tried: seconds and iterations to the goal, predicted and
    measured ("~": extrapolated, the run ended short of it), and how long a step of the target took
    against the run from scratch: far from 1, the machine was not the same, and seconds mislead.
    winner: the fastest check, or, had none a time to the goal, the best prediction; a dict with path,
    iters, predicted, about (or None).
    """
    checks, ranking = search.checks, search.ranking
    rows = [["from scratch", "", f"{search.scratch_s:.0f}", "",
             f"{search.state['scratch_iters']:,}", "1.00", "1.00x"]]
    for name, c in checks.items():
        about = c["about"]
        its = f"{c['measured_iters']:,.0f}" if c["measured_iters"] else f"not in {c['iters']:,}"
        rows.append([
            ("(the config's) " if name == "own" else "") + schedule_name(c["path"]),
            f"{c['predicted']:.0f}", f"{'' if c['measured'] else '~ '}{about:.0f}" if about else "",
            f"{c['predicted'] / about - 1:+.0%}" if about else f"ended at {c['measured_end']:.4f}",
            f"{c['predicted_iters']:,.0f} / {its}", f"{c['pace']:.2f}",
            f"{search.scratch_s / about:.2f}x" if about else ""])
    tried = [c["path"] for c in checks.values()]
    for seconds, iters, path in ranking:
        if len(rows) < 14 and not any(alike(path, t) for t in tried):
            tried.append(path)
            rows.append([schedule_name(path), f"{seconds:.0f}", "", "", f"{iters:,.0f} /", "",
                         f"({search.scratch_s / seconds:.2f}x)"])
    winner = min((c for c in checks.values() if c["about"]), key=lambda c: c["about"], default=None)
    if winner is None and ranking:
        seconds, iters, path = ranking[0]
        winner = dict(path=path, iters=int(iters), predicted=seconds, about=None)
    return ["schedule", "predicted, s", "measured, s", "off by", "iterations, predicted / measured",
            "step against scratch's", "speedup"], rows, winner


def write_config(search, winner, base, save):
    """A config file: the base config with the winner's schedule at the same shares of its run."""
    config, path = search.config, [tuple(p) for p in winner["path"]]
    module = os.path.splitext(os.path.relpath(base, ROOT))[0].replace(os.sep, ".")
    head = f"from {module} import *  # noqa: F403" if module.replace(".", "").isidentifier() and \
        not module.startswith(".") else \
        f"import runpy as _runpy\n\nglobals().update({{k: v for k, v in _runpy.run_path(" \
        f"{os.path.abspath(base)!r}).items() if not k.startswith('_')}})"
    overrides = [a[2:].partition("=")[0] for a in search.state["args"] if a.startswith("--")]
    seen = "not checked by a run" if not winner["about"] else f"{winner['about']:.0f} s measured" + \
        ("" if winner["measured"] else " (by extrapolation)")
    lines = [f"# Found by lab.plan --search: {schedule_name(path)}.",
             f"# To the loss of a short run from scratch ({search.goal:.4f}, "
             f"{search.state['scratch_iters']} iterations,",
             f"# {search.scratch_s:.0f} s): {winner['predicted']:.0f} s predicted, {seen}. rate is "
             "the next sizes' (loss, loss per",
             '# second), read only with grow_when="rate".', head, "",
             *(f"{k} = {getattr(config, k)!r}" for k in overrides if k not in WRITTEN),
             "out_dir = " + json.dumps(config.out_dir + "_found"),
             f"{', '.join(GROWABLE)} = {', '.join(str(path[0][0][k]) for k in GROWABLE)}",
             "stages = ["]
    for stage, (sizes, _) in zip(stages_of(path, config.max_iters), path[1:]):
        curve = search.curve(sizes)
        losses = np.linspace(curve.loss_at(winner["iters"] / 20),
                             curve.loss_at(2 * winner["iters"]), 8)
        points = [[round(float(y), 4), float(f"{curve.rate_at(y):.4g}")] for y in losses]
        lines += [f"    dict({', '.join(f'{k}={v}' for k, v in stage.items())},",
                  f"         rate={points}),"]
    with open(save, "w") as f:
        f.write("\n".join([*lines, "]", f"max_iters = {config.max_iters}",
                           f"ramp_iters = {config.ramp_iters}"]) + "\n")
