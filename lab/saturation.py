"""
Upscale a trained model, or train it on? A small model is first fully trained on a number of tokens per
parameter. Then it gets extra compute, either as it is or upscaled first. Both start from its last
checkpoint, with a new warmup and a new decay.

    python -m lab.saturation lab/experiments/saturation.py --plan
    python -m lab.saturation lab/experiments/saturation.py --out=out/saturation --seeds=11
    python -m lab.saturation lab/experiments/saturation.py --out=out/saturation --report

The peak learning rate of every contestant is tuned on a seed that is not reported. Stop it at any time:
the same command resumes.
"""
import math
import os
from pathlib import Path

import numpy as np

from base.errors import UserError, exits_cleanly, is_number
from base.words import human, table
from lab.branches import Branch, run_all, startable
from lab.campaign import check_keys, known, must_be, slug
from lab.children import in_folder, many_parser
from lab.costs import on_meta, vocab_of
from lab.verdict import interval, picture, plus_minus
from lab.words import write_report
from run.arguments import read_file
from run.settings import from_dict, refuse

EXPERIMENT = dict(settings=dict, small=dict, tokens=list, extras=list, larger=dict, target=str, rates=dict,
                  peaks=list, tune_seed=int, seeds=list)
ON, ALONE, ALL = "trained on", "from scratch, extra compute only", "from scratch, small + extra compute"


class Study:
    """The jobs of an experiment. Losses come from the last evaluation. seeds, only: run these (None: all)."""

    def __init__(self, experiment, out, seeds=None, only=None):
        check_experiment(experiment)
        self.__dict__.update(experiment, seeds=seeds or experiment["seeds"])
        if extra := set(self.seeds) - set(experiment["seeds"]):
            raise UserError(f"--seeds: {min(extra):g} is none of the experiment's {experiment['seeds']}")
        if experiment["tune_seed"] in experiment["seeds"]:
            raise UserError(f"experiment: tune_seed={experiment['tune_seed']} is one of its seeds: what tunes is not reported")
        for key in self.rates:
            if key in {**self.settings, **self.small}:
                raise UserError(f"experiment: {key}: stands in rates and beside them: leave one out")
        refuse(from_dict({**self.settings, **self.small, **self.rates}), self.rates)
        self.out, self.names = out, [ON, *self.larger]
        self.asked = {known(name, [*self.names, ALONE, ALL], "--only") for name in only or [*self.names, ALONE, ALL]}
        self.cost, self.weights = {}, {}
        for name, sizes in {ON: {}, **self.larger}.items():
            config = from_dict({**self.settings, **self.small, **sizes})
            model = on_meta(config, config.sizes()[0], vocab_of(config))
            self.cost[name] = model.flops_per_token() * config.batch_tokens  # per iteration
            self.weights[name] = sum(p.numel() for n, p in model.named_parameters()
                                     if n.startswith("blocks.") and p.dim() == 2)
        self.batch = config.batch_tokens

    def length(self, tokens):
        """Iterations of the small model's first training."""
        return round(tokens * self.weights[ON] / self.batch)

    def iterations(self, name, tokens, extra):
        """Iterations that the extra compute buys a contestant."""
        return max(1, round(extra * self.length(tokens) * self.cost[ON] / self.cost[name]))

    def folder(self, *parts):
        return os.path.join(self.out, *(slug(str(p)) for p in parts))

    def start(self, tokens, seed):
        """The small model, trained to its end."""
        n = self.length(tokens)
        values = dict(self.settings, **self.small, **self.rates, seed=seed, max_iters=n)
        return Branch(self.folder(f"tokens_{tokens}", "small", f"seed_{seed}"), values, n * self.cost[ON],
                      keep=(n,))

    def branch(self, name, tokens, extra, peak, seed):
        """The small model trained on, or upscaled and trained on."""
        small, n = self.start(tokens, seed), self.iterations(name, tokens, extra)
        grown = [dict(at=small.last, **self.larger[name], operator="zero_output")] if name != ON else []
        values = dict(small.values, **{k: v * peak for k, v in self.rates.items()}, stages=grown,
                      max_iters=small.last + n, rewarm_iters=min(30, max(1, n // 10)), decay_frac=0.75)
        out = self.folder(f"tokens_{tokens}", f"extra_{extra}", name, f"peak_{peak}", f"seed_{seed}")
        return Branch(out, values, n * self.cost[name], small)

    def scratch(self, name, tokens, extra, seed):
        """The target from scratch, on the extra compute alone or on the total."""
        n = self.iterations(self.target, tokens, extra + (name == ALL))
        values = dict(self.settings, **{**self.small, **self.larger[self.target]}, **self.rates, seed=seed,
                      max_iters=n, warmup_iters=min(30, max(1, n // 10)), decay_frac=0.55)
        return Branch(self.folder(f"tokens_{tokens}", f"extra_{extra}", name, f"seed_{seed}"), values,
                      n * self.cost[self.target])

    def tuning(self, name):
        """The jobs that tune a contestant's peak rate, at the middle value of tokens and of extras."""
        at = self.tokens[len(self.tokens) // 2], self.extras[len(self.extras) // 2]
        return [self.branch(name, *at, peak, self.tune_seed) for peak in self.peaks]

    def peak(self, name):
        found = [job.final() for job in self.tuning(name)]
        return None if None in found else self.peaks[found.index(min(found))]

    def jobs(self, seed, tokens, extra):
        """{contestant: its job, or None until its peak rate is known}."""
        peaks = {name: self.peak(name) for name in self.names}
        return {**{name: peak and self.branch(name, tokens, extra, peak, seed) for name, peak in peaks.items()},
                **{name: self.scratch(name, tokens, extra, seed) for name in (ALONE, ALL)}}

    def cells(self):
        """(tokens, extra), cheapest first."""
        return sorted(((t, e) for t in self.tokens for e in self.extras), key=lambda c: c[0] * (1 + c[1]))

    def wanted(self):
        """The jobs that are asked for, in order; without those whose peak is not tuned yet."""
        tuning = [job for name in self.names if name in self.asked for job in self.tuning(name)]
        return tuning + [job for seed in self.seeds for cell in self.cells()
                         for name, job in self.jobs(seed, *cell).items() if job and name in self.asked]

    def ready(self):
        """The jobs that can start now, in order."""
        return startable(self.wanted())


def check_experiment(experiment):
    check_keys(experiment, EXPERIMENT)
    if missing := EXPERIMENT.keys() - experiment.keys():
        raise UserError(f"experiment: has no {min(missing)}: see lab/experiments/saturation.py")
    known(experiment["target"], experiment["larger"], "experiment: target")
    for sizes in experiment["larger"].values():
        must_be(sizes, dict, "experiment: larger: ")
    for key in ("tokens", "extras", "peaks", "seeds"):
        for value in experiment[key] or [None]:
            must_be(value, (int, float), f"experiment: {key}: ")
            if not is_number(value, 0 if key == "seeds" else 1e-6, 1e9) or key == "seeds" and value != int(value):
                raise UserError(f"experiment: {key}: {value}: must be a number above 0, or a seed")
    for value in experiment["rates"].values():
        must_be(value, (int, float), "experiment: rates: ")


def results(study):
    """
    A dict for every cell and finished contestant: its losses by seed, and their differences from the
    trained-on model with the same seed.
    """
    found = []
    for tokens, extra in study.cells():
        losses = {}
        for seed in study.seeds:
            for name, job in study.jobs(seed, tokens, extra).items():
                if job and job.final() not in (None, math.inf):
                    losses.setdefault(name, {})[seed] = job.final()
        for name, by_seed in losses.items():
            ahead = [loss - losses[ON][s] for s, loss in by_seed.items() if s in losses.get(ON, {})]
            found.append(dict(tokens=tokens, extra=extra, name=name, losses=by_seed, less_trained_on=ahead))
    return found


def mean_loss(row):
    return float(np.mean([*row["losses"].values()]))


def report(study):
    rows, found = [], results(study)
    for r in found:
        best = min((q for q in found if (q["tokens"], q["extra"]) == (r["tokens"], r["extra"])),
                   key=mean_loss)
        rows.append([r["tokens"], r["extra"], r["name"] + " (lowest)" * (r is best), len(r["losses"]),
                     study.peak(r["name"]) if r["name"] in study.names else "-",
                     f"{mean_loss(r):.4f}",
                     plus_minus(interval(r["less_trained_on"]), 4) if r["less_trained_on"] and r["name"] != ON else "-"])
    head = ["tokens per parameter", "extra compute", "contestant", "seeds", "peak", "final loss", "less trained on"]
    text = table(head, rows) + (
        f"\n\nThe small model: {human(study.weights[ON])} weights. Extra compute: a share of the small model's own. "
        "Peak: a share of the rate from scratch, tuned on a seed that is not reported. Less trained on: paired "
        "by seed, 95 % t-interval; below zero, it pays.")
    if lost := [job.out_dir for job in study.wanted() if job.final() == math.inf]:
        text += f"\n\nDiverged, left out: {', '.join(lost)}."
    write_report(study.out, text, dict(rows=found, weights=study.weights[ON], larger=study.larger))
    draw(study, found)
    return text


def draw(study, found):
    """saturation.png: loss minus the trained-on model's over extra compute, a panel for each tokens value."""
    ends = [0, *(np.mean(r["less_trained_on"]) for r in found if r["name"] in study.larger and r["less_trained_on"])]
    with picture(os.path.join(study.out, "saturation.png"), len(study.tokens)) as axes:
        for ax, tokens in zip(axes[0], study.tokens):
            for name in [*study.larger, ALL]:
                points = sorted((study.extras.index(r["extra"]), np.mean(r["less_trained_on"])) for r in found
                                if r["name"] == name and r["tokens"] == tokens and r["less_trained_on"])
                ax.plot([x for x, _ in points], [y for _, y in points], "o-" if name != ALL else "o--",
                        label=f"upscaled {name}" if name != ALL else name, color=None if name != ALL else "0.6")
            ax.axhline(0, color="k", lw=1)
            ax.set(xlim=(-0.3, len(study.extras) - 0.7), ylim=(min(ends) - 0.02, max(ends) + 0.02),
                   xlabel="extra compute, of the small model's", title=f"trained for {tokens:g} tokens per parameter")
            ax.set_xticks(range(len(study.extras)), [f"{e:g}" for e in study.extras])
        axes[0][0].set_ylabel("loss less that of training on, nats\n(below 0: upscaling wins)")
        axes[0][0].legend(fontsize=7)


@exits_cleanly
def main():
    args = many_parser("lab.saturation", __doc__, dict(help="a file such as lab/experiments/saturation.py")).parse_args()
    study = Study(read_file(args.what), args.out or os.path.join("out", Path(args.what).stem), args.seeds, args.only)
    if args.plan:
        jobs = {j.out_dir: j for job in study.wanted() for j in job.chain()}
        left = [j for j in jobs.values() if not j.done()]
        print(f"{len(jobs)} runs, {len(left)} to do, {human(sum(j.flops for j in left), 'FLOP')}, "
              "and those whose peak is not tuned yet")
        return
    os.makedirs(study.out, exist_ok=True)
    if not args.report:
        in_folder(study.out, args.parallel, lambda slots: run_all(study.ready, slots, 1e6))
    print(report(study))


if __name__ == "__main__":
    main()
