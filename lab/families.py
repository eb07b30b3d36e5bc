"""
Families in a study of lab/frontier.py. A trunk grows through several sizes at a constant learning rate.
At each size a decay branches off it and leaves a finished model. Each is compared with the same size
trained from scratch.
"""
import itertools
import os

from base.errors import UserError
from lab.branches import Branch
from lab.campaign import check_keys, known, slug
from lab.costs import stage_costs, vocab_of
from model import GROWABLE

RAMP = 0.02  # share of the iterations of the target from scratch
KEYS = dict(members=list, tokens=(int, float), trunk=list, decay=list, operator=str, ramp=(int, float),
            rate=(int, float), tuning=bool)


class Family:
    """A checked entry of an experiment's `families`, its jobs and their costs."""

    def __init__(self, study, name, entry):
        what = f"family {name!r}"
        if not isinstance(entry, dict):
            raise UserError(f"{what}: {entry!r}: must be a dict")
        check_keys(entry, KEYS, what)
        self.study, self.name, self.members = study, name, entry.get("members", [])
        for member in self.members:
            known(member, study.ladder, f"{what}: members")
        for key in ("trunk", "decay"):
            shares, n = entry.get(key, []), len(self.members)
            if len(shares) != n or n < 2 or not all(isinstance(x, (int, float)) and x > 0 for x in shares):
                raise UserError(f"{what}: {key}={shares}: must be a share of the target's iterations for "
                                f"each of two members or more, and has {n}")
        if entry.get("tokens") not in study.budgets:
            raise UserError(f"{what}: tokens={entry.get('tokens')}: is none of the budgets {study.budgets}")
        self.budget, self.given, self.tuning = entry["tokens"], entry.get("rate"), entry.get("tuning")
        iters = study.branch(study.target, self.budget, 1)[1]
        self.ends = [study.on_grid(share * iters) for share in itertools.accumulate(entry["trunk"])]
        self.decays = [round(share * iters) for share in entry["decay"]]
        self.ramp = round(entry.get("ramp", RAMP) * iters)
        self.operator = entry.get("operator", "msg")
        sizes = [study.config(m).sizes()[0] for m in self.members]
        self.stages = [dict(at=at, **{k: after[k] for k in GROWABLE if after[k] != before[k]},
                            ramp_iters=self.ramp, operator=self.operator)
                       for at, (before, after) in zip(self.ends, itertools.pairwise(sizes))]
        study.config(self.members[0], stages=self.stages)  # raises UserError for a bad entry

    def costs(self):
        """lab.costs.stage_costs() of the trunk, as if it never ended."""
        config = self.study.config(self.members[0], stages=self.stages)
        return stage_costs(config, vocab_of(config))

    def rate(self, i=1):
        """Learning rate of member i. Default, and always for the first: that of its size from scratch."""
        return i and self.given or self.study.rate(self.members[0])

    def iters(self, i):
        """(iterations of the trunk, of the decay) at the size of member i."""
        return self.ends[i] - (self.ends[i - 1] if i else 0), self.decays[i]

    def flops(self, i, iters):
        return iters * self.study.batch * self.study.cost(self.members[i])

    def path(self, seed, name):
        return os.path.join(self.study.out, "family", slug(self.name), f"rate_{self.rate():g}",
                            f"seed_{seed}", name)

    def values(self, i, seed, last, **more):
        return dict(self.study.values(self.members[0], self.stages[:i], seed, self.rate(i)),
                    max_iters=last, **more)

    def trunk(self, i, seed):
        """The job that trains the trunk to the end of its part at the size of member i."""
        if i == 0:
            return self.study.trunk(self.members[0], self.ends[0], seed)
        values = self.values(i, seed, self.ends[i], **self.study.trunk_values())
        return Branch(self.path(seed, "trunk"), values, self.flops(i, self.iters(i)[0]),
                      self.trunk(i - 1, seed), tuple(self.ends[1:-1]))

    def leaf(self, i, seed):
        """The job that finishes member i. The last member is the end of the trunk."""
        alone = self.baseline(i, seed)
        last = i == len(self.members) - 1
        values = self.values(i, seed, self.ends[i] + self.decays[i], schedule="wsd",
                             decay_iters=self.decays[i], keep_checkpoints=1)
        if i == 0 and alone.values == values:
            return alone
        return Branch(self.path(seed, slug(self.members[i])), values,
                      self.flops(i, sum(self.iters(i)) if last else self.decays[i]),
                      self.trunk(i - last, seed))

    def baseline(self, i, seed):
        """The job that ends member i's size from scratch, at its best learning rate and decay so far."""
        rate, decay = self.study.best(self.members[i], self.budget)
        return self.study.leaf(self.members[i], self.budget, seed, decay, rate)

    def jobs(self, seed):
        return [self.leaf(i, seed) for i in range(len(self.members))]

    def seeds(self):
        """The seeds that it runs on."""
        study = self.study
        return {True: study.tune_seeds, False: study.seeds, None: study.every_seed}[self.tuning]
