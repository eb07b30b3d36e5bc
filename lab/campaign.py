"""
The parts of a campaign: contestants, the points of their sweeps and the runs these need. It also checks
that a comparison is fair. speedrun.py runs it.
"""
import difflib
import itertools
import math
import os
import re
from dataclasses import asdict, dataclass, field

import numpy as np

from base.errors import UserError, is_number
from base.reading import read_json
from lab import verdict
from lab.children import TRAIN, Job
from lab.costs import compute
from run.arguments import read_file
from run.curves import curve
from run.runlog import read_metrics
from run.settings import (
    TrainConfig,
    check_ramps,
    from_dict,
    idle,
    known_settings,
    plain,
    refuse,
    shortened,
)

OWN = ("config", "against", "sweep", "flops")  # a contestant's keys that are not settings
EXPERIMENT = dict(contestants=dict, settings=dict, config=str, seeds=list, ablation=bool)
KINDS = {dict: "a dict", str: "text", list: "a list", bool: "True or False", (int, float): "a number",
         int: "a whole number"}
RATES = ("learning_rate", "muon_learning_rate")


@dataclass
class Contestant:
    """
    values: all its settings. fixed: those that its own entry gives. sweep: setting -> values to
    try. against: names of the contestants it is compared with.
    """
    name: str
    values: dict
    sweep: dict = field(default_factory=dict)
    against: list = field(default_factory=list)
    fixed: set = field(default_factory=set)

    def points(self):
        """Every combination of the sweep's values, as dicts of settings."""
        return [dict(zip(self.sweep, v)) for v in itertools.product(*self.sweep.values())]


class Run(Job):
    """A contestant at a point of its sweep, with a seed."""

    def __init__(self, point, config):
        super().__init__(config.out_dir, config.max_iters)
        self.point, self.config = point, config

    def command(self):
        """The train.py command, with every setting that differs from its default."""
        usual = asdict(TrainConfig())
        return [*TRAIN, *(f"--{k}={v}" for k, v in asdict(self.config).items() if v != usual[k])]

    def curve(self):
        return curve(read_metrics(self.out_dir))

    def done(self):
        """Is it finished? A folder that holds a run with other settings is an error."""
        if not os.path.exists(self.path("config.json")):
            return False
        had = plain(from_dict(known_settings(read_json(self.path("config.json")))))
        self.check_settings(asdict(had), asdict(self.config), ("out_dir", "init_from", "data_dir"))
        return super().done()

    def tidy(self):
        """Keep only the final checkpoint, ckpt.pt, of a finished run."""
        for name in os.listdir(self.out_dir):
            if re.fullmatch(r"ckpt_\d+\.pt|best\.pt", name):
                os.remove(self.path(name))


class Campaign:
    """The checked contestants, and the runs they need."""

    def __init__(self, experiment, out, seeds=None, sweep=None, overrides=None, ablation=False,
                 only=None):
        check_experiment(experiment)
        self.out, self.ablation = out, ablation or experiment.get("ablation", False)
        self.seeds = seeds or experiment.get("seeds", [1, 2, 3])
        if len(set(self.seeds)) < len(self.seeds):
            raise UserError(f"seeds={self.seeds}: each must be another: they are runs of their own")
        self.contestants = {}
        for name, entry in experiment["contestants"].items():
            path = entry.get("config", experiment.get("config"))
            fixed = {**{k: v for k, v in entry.items() if k not in OWN}, **(overrides or {})}
            values = {**(read_file(path) if path else {}), **experiment.get("settings", {}),
                      **fixed}
            mine = sorted(fixed.keys() & {"seed", "out_dir", "keep_checkpoints"})
            if mine or values.get("init_from", "scratch") not in ("scratch", "auto"):
                raise UserError(f"contestant {name!r}: {[*mine, 'init_from'][0]}: is the campaign's own: leave it out")
            against = entry.get("against", [])
            if self.ablation and self.contestants and "against" not in entry:
                against = [next(iter(self.contestants))]
            against = [against] if isinstance(against, str) else list(against)
            mine = sweep if sweep and not against else entry.get("sweep", {})
            self.contestants[name] = Contestant(name, values, mine, against, set(fixed))
        for name, entry in experiment["contestants"].items():
            if "flops" in entry:
                self.fit_to_budget(name, entry["flops"])
        for c in self.contestants.values():
            self.check(c)
        configs = [from_dict(c.values) for c in self.contestants.values()]
        for key in overrides or ():  # it may have no effect for some: ramp_iters from scratch
            if all(key in idle(config) for config in configs):
                refuse(configs[0], [key])
        if only:
            for name in only:
                known(name, self.contestants, "only")
            wanted = {*only, *(a for name in only for a in self.contestants[name].against)}
            self.contestants = {n: c for n, c in self.contestants.items() if n in wanted}

    def check(self, c):
        """Refuse an unfair comparison before anything runs."""
        for name in c.against:
            known(name, self.contestants, f"contestant {c.name!r}: against")
            if self.contestants[name].against:
                raise UserError(f"contestant {c.name!r}: against={name!r} is no baseline here: it "
                                "is compared with another itself")
            if len(c.points()) > len(self.contestants[name].points()):
                raise UserError(f"contestant {c.name!r}: sweeps {len(c.points())} points, its "
                                f"baseline {name!r} only {len(self.contestants[name].points())}: "
                                "give the baseline the same budget")
        if not c.against and not self.ablation and not any(
                len(c.sweep.get(r, ())) >= 3 for r in RATES):
            raise UserError(f"baseline {c.name!r}: its learning rate is not tuned: give it "
                            "sweep=dict(learning_rate=[...]) with at least 3 values (or "
                            "--sweep=learning_rate:1e-3,2e-3,4e-3; --ablation compares untuned "
                            "arms)")
        for point in c.points():
            check_ramps(self.run(c, point, self.seeds[0]).config)

    def run(self, c, point, seed):
        """The Run of contestant `c`; from_dict checks its settings."""
        parts = [slug(c.name), slug(point_name(point)), f"seed_{seed}"]
        values = {**c.values, **point, "seed": seed, "init_from": "auto", "keep_checkpoints": 1,
                  "out_dir": os.path.join(self.out, *[p for p in parts if p])}
        try:
            config = from_dict(values)
            refuse(config, c.sweep)
            return Run(point, plain(config))
        except UserError as e:
            raise UserError(f"contestant {c.name!r}: {e}") from None

    def fit_to_budget(self, name, budget):
        """
        Set max_iters so that the run costs `budget`: a number of FLOPs, a contestant's name (as many
        as it costs), or (name, share) for a share of that.
        """
        def config(name, **more):
            point = dict(more, warmup_iters=0)
            return self.run(self.contestants[name], point, self.seeds[0]).config
        if isinstance(budget, (str, tuple)):
            like, share = (budget, 1) if isinstance(budget, str) else budget
            known(like, self.contestants, f"contestant {name!r}: flops")
            budget = share * compute(config(like))
        at = max([s["at"] for s in config(name, max_iters=10**9).stages], default=0) + 1
        before, after = (compute(config(name, max_iters=n)) for n in (at, at + 1))
        iters = at + int((budget - before) / (after - before))
        self.contestants[name].values["max_iters"] = iters
        if iters <= at:
            raise UserError(f"contestant {name!r}: its stages take more than flops={budget:.3g}: "
                            "raise that, or grow earlier")

    # -------------------------------------------------------------------------

    def sweep(self, c):
        """All runs of a contestant's sweep."""
        return [self.run(c, point, self.seeds[0]) for point in c.points()]

    def sweeps(self):
        return [r for c in self.contestants.values() if c.sweep for r in self.sweep(c)]

    def best_point(self, c):
        """
        The best values of its own sweep or its baseline's, for settings that it does not set itself.
        None until that sweep is finished.
        """
        tuned = c if c.sweep or not c.against else self.contestants[c.against[0]]
        if not tuned.sweep:
            return {}
        runs = self.sweep(tuned)
        if not all(r.done() for r in runs):
            return None
        best = min(runs, key=lambda r: r.final())
        if not math.isfinite(best.final()):
            raise UserError(f"contestant {tuned.name!r}: every run of its sweep diverged: "
                            "try lower values")
        return {k: v for k, v in best.point.items() if tuned is c or k not in c.fixed}

    def finals(self, c):
        point = self.best_point(c)
        return [] if point is None else [self.run(c, point, seed) for seed in self.seeds]

    def curves(self, c):
        """{seed: curve} of the finished runs."""
        return {r.config.seed: r.curve() for r in self.finals(c)
                if r.done() and math.isfinite(r.final())}

    def all_runs(self):
        return self.sweeps() + [r for c in [*self.contestants.values(), *self.shorter()]
                                for r in self.finals(c)]

    def shorter(self):
        """For each baseline: the same run, shortened to the time of the best run compared with it."""
        made = []
        for b in [] if self.ablation else self.contestants.values():
            rivals = [c for c in self.contestants.values() if b.name in c.against]
            times = {c.name: [v["train_s"][-1] for v in self.curves(c).values()] for c in rivals}
            ours = self.curves(b)
            if b.against or not ours or not any(times.values()):
                continue
            best = min((c for c in rivals if times[c.name]), key=lambda c: (
                -(verdict.compare(self.curves(c), ours)["train_s_speedup"] or [0])[0],
                sum(v["val_loss"][-1] for v in self.curves(c).values()) / len(times[c.name])))
            share = np.mean(times[best.name]) / np.mean([v["train_s"][-1] for v in ours.values()])
            if share < 1:
                iters = max(1, round(share * self.run(b, {}, self.seeds[0]).config.max_iters))
                made.append(Contestant(f"{b.name}, shorter ({iters} iterations)", {
                    **b.values, "max_iters": iters, "warmup_iters": min(
                        iters, b.values.get("warmup_iters", TrainConfig.warmup_iters)),
                    **self.best_point(b)}, against=[b.name]))
        return made

    def report(self, extra=()):
        """Table rows, curves and cautions from the finished runs."""
        rows, cautions = [], []
        every = [*self.contestants.values(), *extra]
        curves = {c.name: runs for c in every if (runs := self.curves(c))}
        for c in every:
            runs = curves.get(c.name, {})
            if len(runs) < len(self.seeds):
                cautions.append(f"{c.name}: {len(runs)} of {len(self.seeds)} seeds finished")
            if not runs:
                continue
            rows.append(dict(
                name=c.name, point=point_name(self.best_point(c)), seeds=sorted(runs),
                final=verdict.interval([v["val_loss"][-1] for v in runs.values()]),
                train_s=verdict.interval([v["train_s"][-1] for v in runs.values()]),
                flops=next(iter(runs.values()))["flops"][-1],
                against={name: verdict.compare(runs, curves[name]) for name in c.against
                         if name in curves}))
        return rows, curves, cautions

    def not_accepted(self, b, extra):
        """Why the baseline `b` is not fair, or not yet. extra: the result of shorter()."""
        if (best := self.best_point(b)) is None or len(self.curves(b)) < len(self.seeds):
            return "its sweep or its seeds are not finished"
        edge = [k for k, tried in b.sweep.items() if best[k] in (min(tried), max(tried))]
        if edge:
            return f"its best {', '.join(edge)} lies at the edge of its sweep: widen it"
        if any(b.name in e.against and len(self.curves(e)) < len(self.seeds) for e in extra):
            return "the shorter run beside it is not finished"
        return ""


def known(name, names, what):
    """`name` if it is one of `names`, else a UserError that begins with `what`."""
    if not isinstance(name, str) or name not in names:
        near = difflib.get_close_matches(str(name), names, 1)
        raise UserError(f"{what}: {name!r}: no such name" + (
            f", did you mean {near[0]}?" if near else f": there are {', '.join(names)}"))
    return name


def check_keys(experiment, kinds, what="experiment"):
    """UserError for an unknown key or a value of the wrong type."""
    for key, value in experiment.items():
        must_be(value, kinds[known(key, kinds, what)], f"{what}: {key}")


def check_experiment(experiment):
    """UserError if this is not an experiment. Settings are checked later, when runs are made."""
    check_keys(experiment, EXPERIMENT)
    if not experiment.get("contestants"):
        raise UserError("experiment: has no contestants = {name: dict(...), ...}")
    seeds = experiment.get("seeds", [1])
    if not seeds or any(type(s) is not int for s in seeds):
        raise UserError(f"experiment: seeds={seeds!r}: must be whole numbers, such as [1, 2, 3]")
    for name, entry in experiment["contestants"].items():
        must_be(name, str, "experiment: a contestant's name")
        what = f"contestant {name!r}"
        must_be(entry, dict, what)
        must_be(entry.get("config", ""), str, f"{what}: config")
        against = entry.get("against", [])
        must_be([] if isinstance(against, (str, tuple)) else against, list, f"{what}: against")
        must_be(entry.get("sweep", {}), dict, f"{what}: sweep")
        for key, tried in entry.get("sweep", {}).items():
            if not isinstance(tried, (list, tuple)) or not tried:
                raise UserError(f"{what}: sweep {key}={tried!r}: must be a list of values")
        budget = entry.get("flops", 1)
        share = budget[1] if isinstance(budget, tuple) and len(budget) == 2 else \
            1 if isinstance(budget, str) else budget
        if type(share) not in (int, float) or not 0 < share < math.inf:
            raise UserError(f"{what}: flops={budget!r}: must be a number of FLOPs, the name of a "
                            "contestant, or (name, share)")


def must_be(value, kind, what):
    if not isinstance(value, kind) or kind == (int, float) and not is_number(value):
        raise UserError(f"{what}={shortened(value)}: must be {KINDS[kind]}")


def slug(text):
    return re.sub(r"[^A-Za-z0-9._=-]+", "_", text).strip("_")


def point_name(point):
    return " ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in point.items())
