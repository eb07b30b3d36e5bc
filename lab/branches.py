"""
Runs of train.py that branch off each other. Trunks train piece by piece at a constant learning rate.
Decays and grown runs start from their checkpoints. An interrupted run resumes where it stopped.
"""
import functools
import os
import time

from base.errors import UserError
from base.reading import read_json
from lab.children import TRAIN, Job, side_by_side
from run.checkpoint.checkpoint import numbered
from run.resume import OF_STAGES, RESUME_MAY_CHANGE
from run.settings import TrainConfig, known_settings, plain

LEAVES = {"config.json", "metrics.jsonl"}  # of a finished run
FREE = (RESUME_MAY_CHANGE | OF_STAGES) - {"eval_seqs", "dtype"}  # may differ from what a run recorded


class Branch(Job):
    """
    The next piece of a trunk, up to values["max_iters"], or a whole decay. after: the Branch whose
    checkpoint it starts from. keep: the iterations whose checkpoints a trunk keeps.
    """

    def __init__(self, out_dir, values, flops, after=None, keep=()):
        super().__init__(out_dir, values["max_iters"])
        self.values, self.flops, self.after, self.keep = values, flops, after, keep

    def checkpoint(self):
        return self.path(f"ckpt_{self.last:07d}.pt")

    def command(self):
        start = self.after.checkpoint() if self.after else "scratch"
        config = plain(TrainConfig(**self.values, init_from=start))
        if numbered(self.out_dir):
            return [*TRAIN, self.out_dir, "--resume", f"--max_iters={self.last}", f"--stages={config.stages}"]
        return [*TRAIN, *(f"--{k}={getattr(config, k)}" for k in self.values),
                f"--init_from={start}", f"--out_dir={self.out_dir}"]

    def start(self, place):
        os.makedirs(self.out_dir, exist_ok=True)
        if not numbered(self.out_dir) and os.path.exists(self.path("metrics.jsonl")):
            length = recorded(self.out_dir).get("max_iters")
            if Job(self.out_dir, length).end():
                raise UserError(f"{self.out_dir}: holds a finished run of {length} iterations, but the "
                                f"experiment has {self.last} now: choose another --out, or delete that folder")
            os.remove(self.path("metrics.jsonl"))  # killed before its first checkpoint
        if self.keep and [p for p in numbered(self.out_dir) if p > self.checkpoint()]:
            raise UserError(f"{self.out_dir}: is past iteration {self.last}, where the experiment "
                            "branches off now: choose another --out, or delete that folder")
        return super().start(place)

    def diverged(self):
        """Did this run, or one it starts from, diverge? A trunk that reached its checkpoint did not."""
        if self.keep and os.path.exists(self.checkpoint()):
            return False
        return super().diverged() or bool(self.after and self.after.diverged())

    def done(self):
        self.check_settings(recorded(self.out_dir), self.values, FREE)
        if self.keep:
            return self.diverged() or os.path.exists(self.checkpoint())
        return super().done()

    def chain(self):
        """All runs that must come before this one, in order, then this one."""
        return [*(self.after.chain() if self.after else []), self]

    def tidy(self):
        """Keep only a finished decay's measurements, or a trunk's checkpoints to branch from."""
        if self.keep:
            for path in numbered(self.out_dir):
                if int(path[-10:-3]) not in self.keep:
                    os.remove(path)
            return
        for name in set(os.listdir(self.out_dir)) - LEAVES:
            os.remove(self.path(name))


@functools.cache
def recorded(out_dir):
    """The settings that a run's folder recorded; {} if there are none."""
    path = os.path.join(out_dir, "config.json")
    return known_settings(read_json(path)) if os.path.exists(path) else {}


def only_one(rates):
    """The setting that is swept, and its values."""
    if len(rates) > 1:
        raise UserError(f"experiment: rates: one setting is swept, not {len(rates)}: leave the others out")
    return next(iter(rates.items()))


def startable(jobs):
    """The runs that can start now, in order. What is done needs no checkpoints: results/ keeps none."""
    for job in jobs:
        if not job.done():
            yield from (j for j in job.chain() if not j.done() and (j.after is None or j.after.done()))


def outward(jobs):
    """
    The jobs that tune a setting, as far as is known. jobs: a list of jobs for each value. Starts with
    the middle value and its neighbours, and goes on while the best lies at an edge.
    """
    low, high = max(0, len(jobs) // 2 - 1), len(jobs) // 2 + 2
    while None not in (losses := [final(some) for some in jobs[low:high]]):
        if losses[0] == min(losses) and low > 0:
            low -= 1
        elif losses[-1] == min(losses) and high < len(jobs):
            high += 1
        else:
            break
    return jobs[low:high]


def final(jobs):
    """The mean of the jobs' last validation losses; None until all have one."""
    losses = [job.final() for job in jobs]
    return None if None in losses else sum(losses) / len(losses)


def run_all(ready, slots, minutes):
    """Run the jobs of ready(), most important first, until none is left or the minutes are over."""
    until = time.monotonic() + 60 * minutes

    def following(running):
        busy = {job.out_dir for job in running}
        return next((job for job in ready() if job.out_dir not in busy), None)
    side_by_side(following, slots, lambda: time.monotonic() < until)
