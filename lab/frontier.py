"""
When is growing better than the best fixed size from scratch? Compares both at equal compute over several
seeds, with tuned learning rates and decays. Stop it at any time: the same command resumes.

    python -m lab.frontier lab/experiments/frontier.py --plan
    python -m lab.frontier lab/experiments/frontier.py --out=out/frontier --minutes=60
    python -m lab.frontier lab/experiments/frontier.py --out=out/frontier --budgets=2.5,5 --seeds=1
    python -m lab.frontier lab/experiments/frontier.py --out=out/frontier --report

A trunk is a run at a constant learning rate, one for each size, rate and seed. The decays of every budget
branch off its checkpoints. So do the grown runs, which are trunks too. The cheapest useful runs come
first. docs/frontier.md explains how to write an experiment and how to read the report.
"""
import functools
import itertools
import math
import os
from pathlib import Path

from base.errors import UserError, exits_cleanly, number
from base.words import human, table
from lab.branches import Branch, final, only_one, outward, run_all, startable
from lab.campaign import check_keys, known, must_be, slug
from lab.children import in_folder, listed, many_parser
from lab.costs import measure, stage_costs, vocab_of
from lab.families import RAMP, Family
from lab.frontier_report import write_report
from lab.speeds import measure_speeds
from lab.words import clock
from run.arguments import read_file
from run.settings import check_ramps, from_dict, refuse, typed

EXPERIMENT = dict(settings=dict, ladder=dict, starts=dict, grown=dict, target=str, budgets=list,
                  grown_at=list, decays=list, rates=dict, sweep_at=(int, float), seeds=list,
                  tune_seeds=list, families=dict, save_every=int)
OPTIONAL = ("starts", "grown", "grown_at", "tune_seeds", "families", "save_every")
START_S = 8  # seconds that a start of train.py spends before its first step and on evaluation
TRUNK_SEQS = 512  # at most, for a trunk's evaluation: it gives no result
NO_SIZES = ("budgets", "rate", "decay", "settings", "tokens")  # other keys of a size's entry

class Study:
    """A checked experiment and its jobs, in order. budgets, seeds, only: run these (None: all)."""

    def __init__(self, experiment, out, budgets=None, seeds=None, only=None):
        check_experiment(experiment)
        self.__dict__.update(dict(starts={}, grown={}, grown_at=[], families={}, save_every=0,
                                  tune_seeds=experiment["seeds"][:1]), **experiment)
        self.out, (self.rate_key, values) = out, only_one(self.rates)
        self.rate_values = [typed(self.rate_key, v) for v in values]
        entries = {**self.starts, **self.ladder}
        self.sizes = {name: {**{k: v for k, v in entry.items() if k not in NO_SIZES},
                             **entry.get("settings", {})} for name, entry in entries.items()}
        self.every_seed = list(dict.fromkeys([*self.tune_seeds, *self.seeds]))
        self.given, self.given_decay = ({n: e[key] for n, e in {**entries, **self.grown}.items() if key in e}
                                        for key in ("rate", "decay"))
        self.tuned = dict(self.given)
        for what, some, every in (("budgets", budgets, self.budgets), ("seeds", seeds, self.every_seed)):
            if extra := set(some or ()) - set(every):
                raise UserError(f"--{what}: {min(extra):g} is none of the experiment's {every}")
        self.run_budgets = [b for b in self.budgets if b in (budgets or self.budgets)]
        self.run_seeds = [s for s in self.every_seed if s in (seeds or self.seeds) or s in self.tune_seeds]
        for f in ("costs", "stages", "branch", "leaves", "points"):  # cached: needed often
            setattr(self, f, functools.cache(getattr(self, f)))
        self.names = [*self.ladder, *self.grown]
        every = [*self.names, *self.families]
        asked = {known(n, every, "--only") for n in only or every}
        asked.update(*(self.families[n].get("members", []) for n in asked & set(self.families)))
        self.run_names = [n for n in every if n in asked]
        self.batch = self.config(self.target).batch_tokens
        self.weights = self.costs(self.target)[0]["weights"]
        for name, g in self.grown.items():
            known(g.get("start"), self.sizes, f"grown {name!r}: start")
            if not g.get("growths") or not all(is_growth(pair) for pair in g["growths"]):
                raise UserError(
                    f"grown {name!r}: growths={g.get('growths')!r}: must be [(share of the compute, dict of sizes), ...]")
            if self.config(name, stages=self.stages(name, self.budgets[0])).sizes()[-1] != \
                    self.config(self.target).sizes()[0]:
                raise UserError(f"grown {name!r}: does not end at the size of {self.target}")
            for budget in self.budgets_of(name):
                check_ramps(self.config(name, stages=self.stages(name, budget),
                                        max_iters=self.branch(name, budget, 0)[1]))
        for name, decay in self.given_decay.items():
            if decay not in self.decays or name not in self.names:
                raise UserError(f"{name}: decay={decay!r}: is none of the experiment's decays {self.decays}"
                                + ", for a start has none: leave it out" * (name not in self.names))
        for name, rate in self.given.items():
            self.config(name, **{self.rate_key: rate})  # raises UserError for a bad entry
        for name in self.names:
            refuse(self.config(name, stages=self.stages(name, self.budgets[0])), self.own(name))
            if self.config(name).batch_tokens != self.batch:
                raise UserError(f"{name}: batch_tokens={self.config(name).batch_tokens}: budgets are counted in "
                                f"batches of {self.batch} here: leave it out")
        self.families = {name: Family(self, name, entry) for name, entry in self.families.items()}
        for name in self.sizes:
            refuse(self.config(name, **{self.rate_key: self.rate_values[0]}), self.rates)
            first, warmup = min(self.points(name), default=10**9), self.config(name).warmup_iters
            if first < warmup:
                raise UserError(f"{name}: its first branch is at iteration {first}, in the warmup: "
                                f"lower warmup_iters={warmup}, or grow later")

    # -- settings and costs

    def config(self, name, **more):
        return from_dict({**self.settings, **self.own(name), "max_iters": 10**9, **more})

    def own(self, name):
        """A contestant's own settings, with the sizes it starts at."""
        return {**self.sizes[self.start(name)], **self.grown.get(name, {}).get("settings", {})}

    def cost(self, name):
        """Training FLOPs per token of a size."""
        return self.costs(name)[0]["flops"]

    def costs(self, name, budget=None):
        """costs.stage_costs() of a size or a grown contestant at a budget, as if it never ended."""
        config = self.config(name, stages=self.stages(name, budget))
        return stage_costs(config, vocab_of(config))

    def flops(self, budget):
        """FLOPs of the target at `budget` tokens per parameter."""
        return budget * self.weights * self.cost(self.target)

    def iterations(self, rows, flops):
        """The iterations after which a run with these stage costs has used `flops`."""
        for row in rows:
            each = row["flops"] * self.batch
            if flops <= each * row["iters"]:
                break
            flops -= each * row["iters"]
        return row["at"] + round(flops / each)

    def spent(self, name, budget, iters):
        """FLOPs of the first iterations of a contestant at a budget."""
        return sum(r["flops"] * self.batch * min(r["iters"], max(0, iters - r["at"])) for r in self.costs(name, budget))

    def stages(self, name, budget):
        """A grown contestant's stages, at shares of the budget's compute; [] from scratch."""
        stages, entry = [], self.grown.get(name, dict(growths=[]))
        for at, sizes in entry["growths"]:
            config, C = self.config(name, stages=list(stages)), self.flops(budget)
            ramp = entry.get("ramp", RAMP) * self.iterations(self.costs(self.target), C)
            at = self.on_grid(self.iterations(stage_costs(config, vocab_of(config)), at * C))
            stages.append(dict(at=at, **sizes, ramp_iters=round(ramp), operator=entry.get("operator", "msg")))
        return stages

    def branch(self, name, budget, decay):
        """(first, last iteration of the decay). Later growths happen during the decay."""
        rows, C = self.costs(name, budget), self.flops(budget)
        if share := self.ladder.get(name, {}).get("tokens"):
            C *= share * self.cost(name) / self.cost(self.target)
        return self.on_grid(self.iterations(rows, (1 - decay) * C)), self.iterations(rows, C)

    def on_grid(self, iters):
        """The nearest iteration at which a trunk saves a checkpoint to branch off."""
        return round(iters / self.save_every) * self.save_every if self.save_every else round(iters)

    def leaves(self, name, budget, decay):
        """The iteration at which a decay leaves the trunk: its start, or that of a ramp still open there."""
        at, config = self.branch(name, budget, decay)[0], self.config(name)
        return min([at, *(s["at"] for s in self.stages(name, budget) if s["at"] < at < s["at"] + config.ramp_of(s))])

    def start(self, name):
        return self.grown[name]["start"] if name in self.grown else name

    def points(self, name, budget=None):
        """The iterations at which runs branch off a trunk, that of a size or of a grown contestant at a budget."""
        if name in self.grown:
            return {self.leaves(name, budget, d) for d in self.decays}
        found = {min(self.stages(g, b)[0]["at"], self.leaves(g, b, d)) for g in self.grown
                 for b in self.budgets_of(g) for d in self.decays if self.start(g) == name}
        found.update(f.ends[0] for f in self.families.values() if f.members[0] == name)
        return found.union(*({self.leaves(name, b, d) for d in self.decays} for b in self.budgets_of(name)))

    def budgets_of(self, name):
        if name in self.grown:
            return self.grown[name].get("budgets", self.grown_at)
        return self.ladder[name].get("budgets", self.budgets) if name in self.ladder else []

    # -- jobs

    def trunk(self, name, at, seed, rate=None, budget=None):
        """The job that trains a trunk to iteration `at`, linked to all jobs before it."""
        stages, rate = self.stages(name, budget), self.rate(name) if rate is None else rate
        begin = stages[0]["at"] if stages else 0
        job = self.trunk(self.start(name), min(begin, at), seed) if stages else None
        out_dir = os.path.join(self.folder(name, budget, seed, rate), "trunk")
        points = sorted(p for p in self.points(name, budget) if p > begin)
        pieces = [begin, *(p for p in points if p <= at)]
        if self.save_every:  # trains in one run: each possible branch point has a checkpoint
            pieces, points = [begin, at], range(0, 10**9, self.save_every)
        for before, p in itertools.pairwise(pieces):
            flops = self.spent(name, budget, p) - self.spent(name, budget, before)
            grown = [s for s in stages if s["at"] < p]  # a growth at p belongs to the branch
            values = dict(self.values(name, grown, seed, rate), max_iters=p, **self.trunk_values())
            job = Branch(out_dir, values, flops, job, points)
        return job

    def trunk_values(self):
        """Settings shared by all trunks."""
        save = {"save_interval": self.save_every} if self.save_every else {}
        return dict(schedule="constant", keep_checkpoints=10**6, **save,
                    eval_seqs=min(self.config(self.target).eval_seqs, TRUNK_SEQS))

    def leaf(self, name, budget, seed, decay, rate=None):
        """The job that finishes a contestant at a budget: the decay that branches off its trunk."""
        (begin, end), at = self.branch(name, budget, decay), self.leaves(name, budget, decay)
        own = self.rate(name) if rate is None else rate
        values = dict(self.values(name, self.stages(name, budget), seed, own), schedule="wsd",
                      max_iters=end, decay_iters=end - begin, keep_checkpoints=1)
        out_dir = os.path.join(self.folder(name, budget, seed, own), f"tokens_{budget:g}_decay_{decay:g}")
        flops = self.spent(name, budget, end) - self.spent(name, budget, at)
        return Branch(out_dir, values, flops, self.trunk(name, at, seed, rate, budget))

    def values(self, name, stages, seed, rate):
        return {**self.settings, **self.own(name),
                **({"stages": stages} if stages else {}), "seed": seed, self.rate_key: rate}

    def folder(self, name, budget, seed, rate):
        parts = ["grown", slug(name), f"tokens_{budget:g}"] if name in self.grown else ["scratch", slug(name)]
        return os.path.join(self.out, *parts, f"rate_{rate:g}", f"seed_{seed}")

    def decays_of(self, name):
        return [self.given_decay[name]] if name in self.given_decay else self.decays

    def middle_decay(self, name):
        """For sweeps, and until the best is known."""
        return self.decays_of(name)[len(self.decays_of(name)) // 2]

    def swept(self, names):
        """The contestants whose learning rate is swept."""
        return [n for n in names if self.sweep_at in self.budgets_of(n) and n not in self.given]

    def at_rates(self, name):
        """The jobs of a sweep over all learning rates: for each a list, one job per tuning seed."""
        return [[self.leaf(name, self.sweep_at, s, self.middle_decay(name), r) for s in self.tune_seeds]
                for r in self.rate_values] if self.sweep_at in self.budgets_of(name) else []

    def sweep(self, name):
        """The jobs that tune its learning rate."""
        return sum(outward(self.at_rates(name)), [])

    def best_rate(self, name):
        """Its learning rate as given, or from its own sweep; None if there is none or it is unfinished."""
        if name not in self.tuned:
            losses = {jobs[0].values[self.rate_key]: final(jobs) for jobs in
                      (outward(self.at_rates(name)) if self.swept([name]) else [])}
            if not losses or None in losses.values():
                return None
            if min(losses.values()) == math.inf:
                raise UserError(f"{name}: every rate of its sweep diverged: try lower ones")
            self.tuned[name] = min(losses, key=losses.get)
        return self.tuned[name]

    def rate(self, name):
        """Its best learning rate, else that of the from-scratch size nearest in cost to its last size."""
        middle = self.rate_values[len(self.rate_values) // 2]  # for plans; no run uses it
        return next(filter(None, map(self.best_rate, self.likest(name))), middle)

    def likest(self, name):
        """The contestants that it takes a learning rate from, most alike first: itself, then sizes by cost."""
        here = math.log(self.cost(self.target if name in self.grown else name))
        return [name, *sorted(self.ladder, key=lambda n: abs(math.log(self.cost(n)) - here))]

    def tried(self, name, budget, seed):
        """A tuning seed: the jobs that tune the decay at the best rate. Other seeds: the best so far."""
        if seed in self.tune_seeds:
            i, tuners = self.tune_seeds.index(seed), self.tune_seeds
            return [jobs[i] for jobs in outward(
                [[self.leaf(name, budget, s, d) for s in tuners] for d in self.decays_of(name)])]
        rate, decay = self.best(name, budget)
        return [self.leaf(name, budget, seed, decay, rate)]

    def best(self, name, budget):
        """The best (rate, decay) so far on the tuning seeds at this budget."""
        losses = self.finished(name, budget)
        return min(losses, key=losses.get) if losses else (self.rate(name), self.middle_decay(name))

    def finished(self, name, budget):
        """{(rate, decay): loss} of the tuning seeds' finished jobs at this budget."""
        rates = [self.given[name]] if name in self.given else [
            r for r in self.rate_values if os.path.isdir(self.folder(name, budget, self.tune_seeds[0], r))]
        jobs = {(r, d): [self.leaf(name, budget, s, d, r) for s in self.tune_seeds]
                for r in rates for d in self.decays_of(name)}
        return {key: loss for key, some in jobs.items() if (loss := final(some)) is not None}

    def wanted(self, guess=True):
        """
        (purpose, decay) of all jobs, most important first. guess: include jobs whose rate or decay depends on
        unfinished runs, at the best values so far.
        """
        grown = [n for n in self.run_names if n in self.grown]

        def sweeps(names):
            return ((("rates", self.sweep_at, job.values["seed"]), job) for name in self.swept(names)
                    for job in self.sweep(name))
        asked = {*self.run_names, *map(self.start, grown)} - self.families.keys()
        first = {next((n for n in self.likest(name) if n in self.given or self.swept([n])), None) for name in asked}
        sizes = [n for n in self.ladder if n in first]  # whose rates are needed
        yield from sweeps(sizes)
        if not guess and None in map(self.best_rate, sizes):
            return  # a grown run starts at the best rate of the size it starts from
        yield from sweeps(grown)
        for budget, seed in sorted(((b, s) for b in self.run_budgets for s in self.run_seeds),
                                   key=lambda p: (p[0] * 2**self.every_seed.index(p[1]), p)):
            for name in self.run_names:
                if name in self.families:
                    family = self.families[name]
                    if budget == family.budget and seed in family.seeds() and (
                            guess or self.is_tuned(family.members, budget)):
                        yield from ((("family", budget, seed), j) for j in family.jobs(seed))
                    continue
                if budget not in self.budgets_of(name) or not (guess or self.best_rate(name) or not self.swept([name])):
                    continue
                if guess or seed in self.tune_seeds or self.is_tuned([name], budget):
                    kind = "grown" if name in self.grown else "scratch"
                    yield from (((kind, budget, seed), j) for j in self.tried(name, budget, seed))

    def is_tuned(self, names, budget):
        """Is the tuning of these at this budget finished?"""
        return all(j.done() for n in names for s in self.tune_seeds for j in self.tried(n, budget, s))

    def ready(self):
        """The jobs that can start now, most important first."""
        return startable(leaf for _, leaf in self.wanted(guess=False))


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
                        **experiment.get("grown", {}), **experiment.get("families", {})}.items():
        if not isinstance(entry, dict):
            raise UserError(f"experiment: {name!r}: {entry!r}: must be a dict")
        kinds = dict(budgets=list, rate=(int, float), growths=list, start=str, settings=dict, tokens=(int, float))
        for key in entry.keys() & kinds:
            must_be(entry[key], kinds[key], f"experiment: {name!r}: {key}")
        asked += entry.get("budgets", [])
    for b in asked:
        if b not in experiment["budgets"]:
            raise UserError(f"experiment: {b} is none of the budgets {experiment['budgets']}")


def plan(study, speed):
    """Markdown: the phases in order and their cost at `speed` FLOP/s, without finished jobs."""
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
    return table(["what", "tokens per parameter", "seed", "runs", "TFLOP", "still takes", "in all"], rows) \
        + f"\n\nAt {human(speed, 'FLOP/s')}. Target {study.target}: {human(study.weights)} parameters."


@exits_cleanly
def main():
    p = many_parser("lab.frontier", __doc__, dict(help="a file such as lab/experiments/frontier.py"))
    p.add_argument("--minutes", type=number(float, 0), default=1e6, help="stop after so many")
    p.modes.add_argument("--speeds", action="store_true", help="measure each size's seconds a step, alone")
    p.add_argument("--budgets", type=listed(number(float, 0)), metavar="2.5,5", help="only these; the report has all")
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
