"""
lab.plan --search: which growth brings the user's own run soonest to the loss that training from
scratch ends at. At full length, but nothing is trained twice: the small model is one stable run, the
trunk; growths branch off its checkpoints, are followed only as far as it takes to tell, and the best
go on to the end with their decay. How the rest is predicted is in rates.py.

Predictions are in iterations. Their seconds, and those of measured iterations, are at the usual pace
of each size of model here, so that a machine that was busy with other things misleads nobody.
"""
import json
import math
import os

from base.disk import written
from base.errors import UserError
from lab import rates
from lab.children import ROOT
from lab.costs import count, read_run, shape
from lab.probes import OutOfTime, Runs, Stable
from lab.words import schedule_name, stages_of
from model import GROWABLE
from run.curves import crossing, curve

EVALS = 40       # evaluations in a run as long as the user's; a trunk has half of them, and grows there
# shares of the user's run:
EARLY = 0.1      # where the trunk that is wide first gets its width
STRETCH = 0.05   # how far a branch is followed after its ramp, to tell
APART = 0.1      # between growth points that are both worth a branch
MARGIN = 0.02    # how far a finish goes beyond its prediction, to see the goal
BRANCHES, FINISHES = 4, 3
RESERVE = 1.5    # times the seconds of the best prediction, kept for finishing it
WRITTEN = {*GROWABLE, "stages", "out_dir", "max_iters", "ramp_iters", "decay_iters", "init_from"}


def worth_it(config, vocab_size, path, law=None):
    """
    Can the last growth of `path` win by a Law? If its sizes are trained all the way to it, and what is
    grown is worth its loss, nothing more: is that cheaper than the target from scratch to that loss?
    """
    if law is None:
        return True
    ends, parts, spent = [at for _, at in path[1:]], [], 0.0
    for (sizes, at), end in zip(path, ends):
        params, flops, _, weights = count(config, sizes, vocab_size)
        parts.append((law.counted(params, weights), (end - at) * config.batch_tokens))
        spent += flops * parts[-1][1]
    params, flops, _, weights = count(config, path[-1][0], vocab_size)
    return spent < flops * law.tokens(law.counted(params, weights), law.grown_loss(parts))


class Search:
    """The steps of --search in the order in which they run; all they measured is in `runs`."""

    def __init__(self, config, config_args, out, minutes, vocab_size, goal=None, law=None):
        if not config.stages:
            raise UserError("stages=[]: nothing grows, so there is nothing to compare: give a config "
                            "that grows from the smallest start to the target")
        if config.schedule != "wsd":
            raise UserError(f"schedule={config.schedule!r}: has no stable phase and a decay: search "
                            "with --schedule=wsd, which also takes growth better")
        self.config, self.goal = config, goal
        self.worth_it = lambda path: worth_it(config, vocab_size, path, law)
        self.start, self.target = config.sizes()[0], config.sizes()[-1]
        self.extras = {k: v for stage in config.stages for k, v in stage.items()
                       if k in ("ramp_iters", "operator")}
        self.ramp = config.ramp_of(self.extras)
        self.every = max(1, config.max_iters // EVALS)  # iterations between evaluations
        self.early = 2 * self.every * max(1, round(EARLY * config.max_iters / (2 * self.every)))
        self.decay = math.ceil(config.decay_span())
        self.end = config.max_iters - self.decay  # of the stable phase
        if self.end < self.early + self.ramp + 8 * self.every:
            raise UserError(f"max_iters={config.max_iters}: {self.end} iterations before the decay and "
                            f"{self.ramp} of a ramp leave too little to search in: lower decay_frac or "
                            "ramp_iters")
        self.runs = Runs(out, config_args, 60 * minutes, goal)
        self.trunks = [Stable("trunk", [(self.start, 0)])]
        self.tried, self.found, self.paces = [], [], {}

    # -- runs

    def train(self, name, path, until, start, enough=lambda: False, **settings):
        settings = dict(path[0][0], stages=stages_of(path, self.extras),
                        log_interval=max(1, min(self.config.log_interval, self.every // 4)),
                        eval_interval=self.every, **settings)
        self.runs.run(name, settings, until, start, enough)
        self.paces[name] = read_run(self.runs.events(name))["step_s"]

    def stable(self, run, until, enough=lambda: False):
        """A Stable to iteration `until`, or where enough() is true."""
        start = self.config.init_from if run.path[0][0] == self.start else "scratch"
        if run.parent:
            start = self.runs.checkpoint(run.parent.name, run.path[-1][1])
        self.train(run.name, run.path, until, start, enough, schedule="constant",
                   keep_checkpoints=1000 if run in self.trunks else 2)

    def decayed(self, run, at):
        """The curve of the decay off a Stable from iteration `at`."""
        name = f"{run.name}_decay_{at}"
        self.train(name, run.path, at + self.decay, self.runs.checkpoint(run.name, at),
                   schedule="wsd", decay_iters=self.decay, keep_checkpoints=1)
        return curve(self.runs.events(name))

    def grown(self, run):
        """(iterations, losses) of a Stable at the target's size, without a mask."""
        seen = [e for e in self.runs.events(run.name) if e["event"] == "eval" and e["iter"] and
                shape(e) == shape(self.target) and e.get("mask", 1) == 1]
        return [e["iter"] for e in seen], [e["val_loss"] for e in seen]

    # -- predictions

    def step_s(self, sizes):
        """Seconds of a step at the usual pace: that of the first run that had these sizes."""
        return next((s[shape(sizes)] for s in self.paces.values() if shape(sizes) in s), math.inf)

    def seconds(self, path, iters):
        """Of the training of a schedule, at the usual pace."""
        ends = [at for _, at in path[1:]] + [iters]
        return self.compile_s * len(path) + sum(
            max(0, end - at) * self.step_s(s) for (s, at), end in zip(path, ends))

    def predicted(self, path, lead):
        """Iterations to the goal of a run that is `lead` ahead of the reference."""
        return max(self.needed - lead, path[-1][1] + self.ramp) + self.decay

    def points(self, trunk):
        """
        Growing from each checkpoint of a trunk, [dict(path, trunk, first)], by iteration. first:
        the seconds predicted from its loss, of which half the ramp counts for the small model.
        """
        out, least = [], max(self.early, trunk.path[-1][1] + self.ramp + 1)
        for e in self.runs.events(trunk.name):
            at, path = e["iter"], [*trunk.path, (self.target, e["iter"])]
            if e["event"] == "eval" and at >= least and at % (2 * self.every) == 0 and \
                    e["val_loss"] < self.curve.loss[0] and self.worth_it(path):
                lead = float(self.curve.iters_at(e["val_loss"])) - at - self.ramp / 2
                out.append(dict(path=path, trunk=trunk,
                                first=self.seconds(path, self.predicted(path, lead))))
        return out

    def ranking(self):
        """The growth points that are predicted to be faster than scratch, the fastest first."""
        points = [p for t in self.trunks for p in self.points(t) if p["first"] < self.scratch_s]
        return sorted(points, key=lambda p: p["first"])

    # -- the steps

    def reference(self):
        """
        The target from scratch, or, where the goal is given, grown early: the curve that others are
        compared with, and `needed`, the iteration of it from where a decay would bring the goal.
        """
        trunk = self.trunks[0]
        run = Stable("scratch", [(self.target, 0)])
        if self.goal is not None:
            self.stable(trunk, self.early)
            run = Stable("early", [*trunk.path, (self.target, self.early)], trunk)
        self.stable(run, self.end)
        seen = self.decayed(run, self.end)
        self.compile_s = read_run(self.runs.events(run.name))["compile_s"]
        self.curve = rates.fit(*self.grown(run))
        drop = float(self.curve.loss_at(self.end)) - seen["val_loss"][-1]
        self.scratch_s = self.seconds([(self.target, 0)], self.config.max_iters)
        if self.goal is None:
            self.goal = seen["val_loss"][-1]
        self.needed = float(self.curve.iters_at(self.goal + drop))
        print(f"goal: val loss {self.goal:.4f}, from scratch in {self.scratch_s:.0f} s", flush=True)
        if run.parent:
            self.note(dict(path=run.path), seen)

    def explore(self, trunk):
        """Train a trunk as far as growing from it later is still predicted to be better."""
        def enough():
            self.paces[trunk.name] = read_run(self.runs.events(trunk.name))["step_s"]
            first = [p["first"] for p in self.points(trunk)]
            return len(first) > 3 and min(first[-3:]) > min(first)
        self.stable(trunk, self.end, enough)

    def explore_wide(self):
        """A trunk with the target's width from early on, so that layers come last."""
        trunk, wide = self.trunks[0], {**self.target, "n_layer": self.start["n_layer"]}
        if wide not in (self.start, self.target) and all(map(self.can_finish, self.ranking()[:1])):
            self.trunks.append(Stable("trunk_wide", [*trunk.path, (wide, self.early)], trunk))
            self.explore(self.trunks[-1])

    def can_finish(self, point):
        """Would the budget still do for finishing this, after what comes before?"""
        return self.runs.left() > RESERVE * point["first"]

    def is_new(self, point):
        """Is it far enough from all growth points of its trunk that were tried?"""
        return all(p["trunk"] is not point["trunk"] or APART * self.config.max_iters <=
                   abs(p["path"][-1][1] - point["path"][-1][1]) for p in self.tried)

    def stretch(self, point):
        """Grow there, and see how far ahead of the reference the grown model is a little later."""
        path, trunk = point["path"], point["trunk"]
        run = point["run"] = Stable(f"{trunk.name}_{path[-1][1]}", path, trunk)
        until = path[-1][1] + self.ramp + round(STRETCH * EVALS) * self.every
        self.stable(run, until)
        iters, losses = self.grown(run)
        seen = sum(i <= until for i in iters)  # what came later is no prediction
        point["lead"] = rates.lead(self.curve, iters[:seen], losses[:seen])
        self.tried.append(point)

    def foresee(self):
        """Iterations and seconds of those tried, by all that was finished so far."""
        rest = [p for p in self.tried if p not in self.found]
        for p in rest:
            p["iters"] = self.predicted(p["path"], p["lead"])
            p["second"] = self.seconds(p["path"], p["iters"])
        return sorted((p for p in rest if p["second"] < self.scratch_s), key=lambda p: p["second"])

    def finish(self, point):
        """On to where a decay should bring the goal, and the decay."""
        run, margin = point["run"], MARGIN * self.config.max_iters
        until = max(math.ceil(point["iters"] - self.decay + margin), self.grown(run)[0][-1])
        self.stable(run, until)
        missed = self.note(point, self.decayed(run, until))
        self.needed += missed / (1 + sum("second" in p for p in self.found[:-1]))

    def note(self, point, seen):
        """What a finished schedule came to. Returns by how many iterations its prediction was off."""
        path, total, final = point["path"], seen["iter"][-1], seen["val_loss"][-1]
        iters = crossing(seen["iter"], seen["val_loss"], self.goal)
        point["reached"] = iters is not None
        if iters is None:  # then about as far as the reference is from the one loss to the other
            here = self.curve.loss_at(self.needed)
            iters = total + float(self.curve.iters_at(here + self.goal - final)) - self.needed
        point.update(total=math.ceil(max(total, iters)) if math.isfinite(iters) else total,
                     final=final, measured=self.seconds(path, iters))
        self.found.append(point)
        print(f"{schedule_name(path)}: {told(point)} s to the goal", flush=True)
        return iters - point.get("iters", iters)

    def go(self):
        """Everything, to `found`, or as much of it as the budget allows."""
        try:
            self.reference()
        except OutOfTime as e:
            raise UserError(f"the budget ran out in the run to compare with ({e}): raise --budget, "
                            "and the search goes on from here") from None
        try:
            self.explore(self.trunks[0])
            self.explore_wide()
            for p in self.ranking():
                if len(self.tried) < BRANCHES and self.is_new(p) and self.can_finish(p):
                    self.stretch(p)
            while (best := self.foresee()[:1]) and len(self.found) < FINISHES:
                self.finish(best[0])
        except OutOfTime:
            print("the budget is spent", flush=True)

    def winner(self):
        """The fastest that was finished, else the best prediction that beats scratch, or None."""
        done = [p for p in self.found if math.isfinite(p["measured"])]
        return min(done or self.foresee(), default=None,
                   key=lambda p: p.get("measured") or p["second"])


def told(point):
    return f"{point['measured']:.0f}" if point["reached"] else \
        f"~ {point['measured']:.0f} (ended at {point['final']:.4f})"


def write_config(search, winner, base, save):
    """A config file: the base config with the winner's schedule and length."""
    config, path = search.config, winner["path"]
    module = os.path.splitext(os.path.relpath(base, ROOT))[0].replace(os.sep, ".")
    head = f"from {module} import *  # noqa: F403" if module.replace(".", "").isidentifier() and \
        not module.startswith(".") else \
        f"import runpy as _runpy\n\nglobals().update({{k: v for k, v in _runpy.run_path(" \
        f"{os.path.abspath(base)!r}).items() if not k.startswith('_')}})"
    overrides = [a[2:].partition("=")[0] for a in search.runs.config_args if a.startswith("--")]
    seen = f"{told(winner)} s measured" if "measured" in winner else "not checked by a run"
    lines = [f"# Found by lab.plan --search: {schedule_name(path)}.",
             f"# To the loss of the run from scratch ({search.goal:.4f}, {config.max_iters} iterations, "
             f"{search.scratch_s:.0f} s):",
             f"# {winner.get('second', 0):.0f} s predicted, {seen}.", head, "",
             *(f"{k} = {getattr(config, k)!r}" for k in overrides if k not in WRITTEN),
             "out_dir = " + json.dumps(config.out_dir + "_found"),
             f"{', '.join(GROWABLE)} = {', '.join(str(path[0][0][k]) for k in GROWABLE)}",
             "stages = [",
             *(f"    dict({', '.join(f'{k}={v!r}' for k, v in stage.items())}),"
               for stage in stages_of(path, search.extras)), "]",
             f"max_iters = {winner.get('total') or math.ceil(winner['iters'])}",
             f"decay_iters = {search.decay}", f"ramp_iters = {config.ramp_iters}"]
    with written(save) as f:
        f.write("\n".join(lines) + "\n")
