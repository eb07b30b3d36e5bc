"""
When is it worth growing, against the lower envelope over from-scratch sizes? One command that can be
stopped and goes on: sizes from scratch and grown runs at equal compute, tuned rates and decays, seeds.

    python -m lab.frontier lab/experiments/frontier.py --plan
    python -m lab.frontier lab/experiments/frontier.py --out=out/frontier --minutes=60
    python -m lab.frontier lab/experiments/frontier.py --out=out/frontier --budgets=2.5,5 --seeds=1
    python -m lab.frontier lab/experiments/frontier.py --out=out/frontier --report

A trunk is a run at a constant rate, one for each size, rate and seed. From its checkpoints branch off
the decays of every budget, and the grown runs, which are trunks too. The cheapest that say something
come first. docs/frontier.md says how to write an experiment and to read the report.
"""
import functools
import itertools
import math
import os
from pathlib import Path

from base.errors import UserError, exits_cleanly, number
from base.words import human, table
from lab.branches import Branch, run_all
from lab.campaign import check_keys, known, must_be, slug
from lab.children import in_folder, listed, many_parser
from lab.costs import measure, stage_costs, vocab_of
from lab.frontier_report import write_report
from lab.speeds import measure_speeds
from lab.words import clock
from run.arguments import read_file
from run.settings import check_ramps, from_dict, refuse, typed

EXPERIMENT = dict(settings=dict, ladder=dict, starts=dict, grown=dict, target=str, budgets=list,
                  grown_at=list, decays=list, rates=dict, sweep_at=(int, float), seeds=list)
OPTIONAL = ("starts", "grown", "grown_at")
START_S = 8  # seconds from a start of train.py to its first step, and of its evaluation
RAMP = 0.02  # of the iterations that the target from scratch would have

class Study:
    """An experiment, checked; its jobs, in order. budgets, seeds, only: run these (None: all)."""

    def __init__(self, experiment, out, budgets=None, seeds=None, only=None):
        check_experiment(experiment)
        self.__dict__.update(dict(starts={}, grown={}, grown_at=[]), **experiment)
        self.out, (self.rate_key, values) = out, next(iter(self.rates.items()))
        self.rate_values = [typed(self.rate_key, v) for v in values]
        entries = {**self.starts, **self.ladder}
        self.sizes = {name: {k: v for k, v in entry.items() if k not in ("budgets", "rate")}
                      for name, entry in entries.items()}
        self.given = {n: e["rate"] for n, e in {**entries, **self.grown}.items() if "rate" in e}
        self.tuned = dict(self.given)
        for what, some, every in (("budgets", budgets, self.budgets), ("seeds", seeds, self.seeds)):
            if extra := set(some or ()) - set(every):
                raise UserError(f"--{what}: {min(extra):g} is none of the experiment's {every}")
        self.run_budgets = [b for b in self.budgets if b in (budgets or self.budgets)]
        self.run_seeds = [s for s in self.seeds if s in (seeds or self.seeds) or s == self.seeds[0]]
        for f in ("costs", "stages", "branch", "leaves", "points"):  # arithmetic that is asked for often
            setattr(self, f, functools.cache(getattr(self, f)))
        self.names = [*self.ladder, *self.grown]
        self.run_names = [known(n, self.names, "--only") for n in only or self.names]
        self.decay = self.decays[len(self.decays) // 2]  # of sweeps, and where none is known yet
        self.batch = self.config(self.target).batch_tokens
        self.weights = self.costs(self.target)[0]["weights"]
        for name, g in self.grown.items():
            known(g.get("start"), self.sizes, f"grown {name!r}: start")
            if not g.get("growths") or not all(is_growth(pair) for pair in g["growths"]):
                raise UserError(f"grown {name!r}: growths={g.get('growths')!r}: must be [(share of the "
                                "compute, dict of sizes), ...]")
            if self.config(g["start"], stages=self.stages(name, self.budgets[0])).sizes()[-1] != \
                    self.config(self.target).sizes()[0]:
                raise UserError(f"grown {name!r}: does not end at the size of {self.target}")
            for budget in self.budgets_of(name):
                check_ramps(self.config(g["start"], stages=self.stages(name, budget),
                                        max_iters=self.branch(name, budget, 0)[1]))
        for name, rate in self.given.items():
            self.config(self.start(name), **{self.rate_key: rate})  # or says what is wrong with it
        for name in self.sizes:
            refuse(self.config(name, **{self.rate_key: self.rate_values[0]}), self.rates)
            first, warmup = min(self.points(name), default=10**9), self.config(name).warmup_iters
            if first < warmup:
                raise UserError(f"{name}: its first branch is at iteration {first}, in the warmup: "
                                f"lower warmup_iters={warmup}, or grow later")

    # -- settings and costs

    def config(self, name, **more):
        return from_dict({**self.settings, **self.sizes[name], "max_iters": 10**9, **more})

    def cost(self, name):
        """FLOPs a token of training a size."""
        return self.costs(name)[0]["flops"]

    def costs(self, name, budget=None):
        """costs.stage_costs() of a size, or of a grown contestant at a budget, that never ends."""
        config = self.config(self.start(name), stages=self.stages(name, budget))
        return stage_costs(config, vocab_of(config))

    def flops(self, budget):
        """The compute of the target on `budget` tokens a weight."""
        return budget * self.weights * self.cost(self.target)

    def iterations(self, rows, flops):
        """After how many iterations a run of these stage costs has cost `flops`."""
        for row in rows:
            each = row["flops"] * self.batch
            if flops <= each * row["iters"]:
                break
            flops -= each * row["iters"]
        return row["at"] + round(flops / each)

    def spent(self, name, budget, iters):
        """FLOPs of the first iterations of a contestant at a budget."""
        return sum(r["flops"] * self.batch * min(r["iters"], max(0, iters - r["at"]))
                   for r in self.costs(name, budget))

    def stages(self, name, budget):
        """A grown contestant's stages, placed by shares of the budget's compute; [] from scratch."""
        stages, entry = [], self.grown.get(name, dict(growths=[]))
        for at, sizes in entry["growths"]:
            config, C = self.config(entry["start"], stages=list(stages)), self.flops(budget)
            ramp = entry.get("ramp", RAMP) * self.iterations(self.costs(self.target), C)
            at = self.iterations(stage_costs(config, vocab_of(config)), at * C)
            stages.append(dict(at=at, **sizes, ramp_iters=round(ramp), operator=entry.get("operator", "msg")))
        return stages

    def branch(self, name, budget, decay):
        """(iteration at which the decay begins, at which it ends); what grows later grows within it"""
        rows, C = self.costs(name, budget), self.flops(budget)
        return self.iterations(rows, (1 - decay) * C), self.iterations(rows, C)

    def leaves(self, name, budget, decay):
        """The iteration at which a decay's run leaves the trunk: where it begins, or before a ramp there."""
        at, config = self.branch(name, budget, decay)[0], self.config(self.start(name))
        return min([at, *(s["at"] for s in self.stages(name, budget) if s["at"] < at < s["at"] + config.ramp_of(s))])

    def start(self, name):
        return self.grown[name]["start"] if name in self.grown else name

    def points(self, name, budget=None):
        """
        The iterations at which something branches off a trunk: a size's, or that of a grown
        contestant at a budget.
        """
        if name in self.grown:
            return {self.leaves(name, budget, d) for d in self.decays}
        found = {min(self.stages(g, b)[0]["at"], self.leaves(g, b, d)) for g in self.grown
                 for b in self.budgets_of(g) for d in self.decays if self.start(g) == name}
        return found.union(*({self.leaves(name, b, d) for d in self.decays}
                             for b in self.budgets_of(name)))

    def budgets_of(self, name):
        if name in self.grown:
            return self.grown[name].get("budgets", self.grown_at)
        return self.ladder[name].get("budgets", self.budgets) if name in self.ladder else []

    # -- jobs

    def trunk(self, name, at, seed, rate=None, budget=None):
        """The job that takes a trunk to iteration `at`, with all before it."""
        stages, rate = self.stages(name, budget), self.rate(name) if rate is None else rate
        begin = stages[0]["at"] if stages else 0
        job = self.trunk(self.start(name), min(begin, at), seed) if stages else None
        out_dir = os.path.join(self.folder(name, budget, seed, rate), "trunk")
        points = sorted(p for p in self.points(name, budget) if p > begin)
        for before, p in itertools.pairwise([begin, *(p for p in points if p <= at)]):
            flops = self.spent(name, budget, p) - self.spent(name, budget, before)
            grown = [s for s in stages if s["at"] < p]  # a growth at p is the branch's
            values = dict(self.values(name, grown, seed, rate), schedule="constant", max_iters=p,
                          keep_checkpoints=10**6)
            job = Branch(out_dir, values, flops, job, tuple(points))
        return job

    def leaf(self, name, budget, seed, decay, rate=None):
        """The job that ends a contestant at a budget: the decay, branched off its trunk."""
        (begin, end), at = self.branch(name, budget, decay), self.leaves(name, budget, decay)
        own = self.rate(name) if rate is None else rate
        values = dict(self.values(name, self.stages(name, budget), seed, own), schedule="wsd",
                      max_iters=end, decay_iters=end - begin, keep_checkpoints=1)
        out_dir = os.path.join(self.folder(name, budget, seed, own),
                               f"tokens_{budget:g}_decay_{decay:g}")
        flops = self.spent(name, budget, end) - self.spent(name, budget, at)
        return Branch(out_dir, values, flops, self.trunk(name, at, seed, rate, budget))

    def values(self, name, stages, seed, rate):
        return {**self.settings, **self.sizes[self.start(name)],
                **({"stages": stages} if stages else {}), "seed": seed, self.rate_key: rate}

    def folder(self, name, budget, seed, rate):
        parts = ["grown", slug(name), f"tokens_{budget:g}"] if name in self.grown else \
            ["scratch", slug(name)]
        return os.path.join(self.out, *parts, f"rate_{rate:g}", f"seed_{seed}")

    def swept(self, names):
        """Those of the contestants that have a sweep of their rate."""
        return [n for n in names if self.sweep_at in self.budgets_of(n) and n not in self.given]

    def at_rates(self, name):
        """The jobs of a sweep over all rates."""
        return [self.leaf(name, self.sweep_at, self.seeds[0], self.decay, r) for r in self.rate_values] \
            if self.sweep_at in self.budgets_of(name) else []

    def sweep(self, name):
        """Those that tune its rate."""
        return outward(self.at_rates(name))

    def best_rate(self, name):
        """As given, or by its own sweep; None where that is not done, or there is none."""
        if name not in self.tuned:
            losses = {j.values[self.rate_key]: j.final() for j in self.sweep(name)} \
                if self.swept([name]) else {}
            if not losses or None in losses.values():
                return None
            if min(losses.values()) == math.inf:
                raise UserError(f"{name}: every rate of its sweep diverged: try lower ones")
            self.tuned[name] = min(losses, key=losses.get)
        return self.tuned[name]

    def rate(self, name):
        """Its best, else that of the size from scratch that costs most nearly what it ends at."""
        here = math.log(self.cost(self.target if name in self.grown else name))
        near = sorted(self.ladder, key=lambda n: abs(math.log(self.cost(n)) - here))
        found = (self.best_rate(n) for n in [name, *near])
        # the middle one is for plans; nothing runs at it
        return next((r for r in found if r), self.rate_values[len(self.rate_values) // 2])

    def tried(self, name, budget, seed):
        """Of the first seed those that tune its decay at its best rate, of others the best there is."""
        if seed == self.seeds[0]:
            return outward([self.leaf(name, budget, seed, d) for d in self.decays])
        rate, decay = self.best(name, budget)
        return [self.leaf(name, budget, seed, decay, rate)]

    def best(self, name, budget):
        """(rate, decay) by all that the first seed has finished at this budget."""
        losses = self.finished(name, budget)
        return min(losses, key=losses.get) if losses else (self.rate(name), self.decay)

    def finished(self, name, budget):
        """{(rate, decay): loss} of all that the first seed has finished at this budget."""
        seed = self.seeds[0]
        rates = [self.given[name]] if name in self.given else [
            r for r in self.rate_values if os.path.isdir(self.folder(name, budget, seed, r))]
        jobs = {(r, d): self.leaf(name, budget, seed, d, r) for r in rates for d in self.decays}
        return {key: loss for key, job in jobs.items() if (loss := job.final()) is not None}

    def wanted(self, guess=True):
        """
        (what for, decay) of all jobs, in order of their worth. guess: also those whose rate or decay
        depends on runs that are not done, as far as it is known.
        """
        first, grown = self.seeds[0], [n for n in self.run_names if n in self.grown]

        def sweeps(names):
            return ((("rates", self.sweep_at, first), job) for name in self.swept(names)
                    for job in self.sweep(name))
        yield from sweeps(self.ladder)
        if not guess and None in map(self.best_rate, self.swept(self.ladder)):
            return  # a grown run starts with its start's best rate
        yield from sweeps(grown)
        for budget, seed in sorted(((b, s) for b in self.run_budgets for s in self.run_seeds),
                                   key=lambda p: (p[0] * 2**self.seeds.index(p[1]), p)):
            for name in self.run_names:
                if budget not in self.budgets_of(name) or not (
                        guess or self.best_rate(name) or not self.swept([name])):
                    continue
                if guess or seed == first or all(j.done() for j in self.tried(name, budget, first)):
                    kind = "grown" if name in self.grown else "scratch"
                    yield from (((kind, budget, seed), j) for j in self.tried(name, budget, seed))

    def ready(self):
        """The jobs that can start now, in order of their worth."""
        for _, leaf in self.wanted(guess=False):
            yield from (job for job in leaf.chain()
                        if not job.done() and (job.after is None or job.after.done()))


def outward(jobs):
    """
    Of jobs along the values of a setting those that tune it, as far as is known: the middle one and its
    neighbours, then on while the best lies at an edge.
    """
    low, high = max(0, len(jobs) // 2 - 1), len(jobs) // 2 + 2
    while None not in (losses := [job.final() for job in jobs[low:high]]):
        if losses[0] == min(losses) and low > 0:
            low -= 1
        elif losses[-1] == min(losses) and high < len(jobs):
            high += 1
        else:
            break
    return jobs[low:high]


def is_growth(pair):
    """Is it (share of the compute, dict of sizes)?"""
    return isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], (int, float)) \
        and 0 < pair[0] < 1 and isinstance(pair[1], dict)


def check_experiment(experiment):
    check_keys(experiment, EXPERIMENT)
    for key in EXPERIMENT:
        if key not in OPTIONAL and not experiment.get(key):
            raise UserError(f"experiment: has no {key}, or none in it: see docs/frontier.md")
    known(experiment["target"], experiment["ladder"], "experiment: target")
    for key in ("budgets", "grown_at", "decays"):
        for value in experiment.get(key, []):
            must_be(value, (int, float), f"experiment: {key}: ")
    asked = [experiment["sweep_at"], *experiment.get("grown_at", [])]
    for name, entry in {**experiment["ladder"], **experiment.get("starts", {}),
                        **experiment.get("grown", {})}.items():
        if not isinstance(entry, dict):
            raise UserError(f"experiment: {name!r}: {entry!r}: must be a dict")
        kinds = dict(budgets=list, rate=(int, float), growths=list, start=str)
        for key in entry.keys() & kinds:
            must_be(entry[key], kinds[key], f"experiment: {name!r}: {key}")
        asked += entry.get("budgets", [])
    for b in asked:
        if b not in experiment["budgets"]:
            raise UserError(f"experiment: {b} is none of the budgets {experiment['budgets']}")


def plan(study, speed):
    """Markdown: the phases, in order, and what they cost at `speed` FLOP/s; what is done left out."""
    phases, seen = {}, set()
    for what, leaf in study.wanted():
        for job in leaf.chain():
            key = (job.out_dir, job.last)
            if key not in seen:
                seen.add(key)
                jobs, flops, left = phases.get(what, (0, 0.0, 0.0))
                takes = 0.0 if job.done() else START_S + job.flops / speed
                phases[what] = jobs + 1, flops + job.flops, left + takes
    rows, total = [], 0.0
    for (kind, budget, seed), (jobs, flops, left) in phases.items():
        total += left
        rows.append([kind, f"{budget:g}", seed, jobs, f"{flops / 1e12:.3g}", clock(left), clock(total)])
    return table(["what", "tokens a weight", "seed", "runs", "TFLOP", "still takes", "in all"], rows) \
        + f"\n\nAt {human(speed, 'FLOP/s')}. Target {study.target}: {human(study.weights)} weights."


@exits_cleanly
def main():
    p = many_parser("lab.frontier", __doc__, dict(help="a file such as lab/experiments/frontier.py"))
    p.add_argument("--minutes", type=number(float, 0), default=1e6, help="stop after so many")
    p.add_argument("--speeds", action="store_true",
                   help="measure each size's seconds a step, once, with nothing else running")
    p.add_argument("--budgets", type=listed(number(float, 0)), metavar="2.5,5",
                   help="only these; the report has all")
    args = p.parse_args()
    study = Study(read_file(args.what), args.out or os.path.join("out", Path(args.what).stem),
                  args.budgets, args.seeds, args.only)
    if args.speeds:
        print(measure_speeds(study))
        return
    if not args.report:
        config = study.config(study.target)
        step = measure(config, vocab_of(config), config.sizes()[0])["step_s"]
        print(plan(study, study.cost(study.target) * config.batch_tokens / step), flush=True)
    if args.plan:
        return
    if not args.report:
        in_folder(study.out, args.parallel, lambda slots: run_all(study.ready, slots, args.minutes))
    print("\n" + write_report(study))


if __name__ == "__main__":
    main()
