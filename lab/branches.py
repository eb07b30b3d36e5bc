"""
Runs of train.py that branch off each other: trunks at a constant rate, trained piece by piece, and the
decays and grown runs that start from their checkpoints. What was cut off goes on where it stopped.
"""
import math
import os
import time
from dataclasses import dataclass

from lab.children import TRAIN, Child, ended, side_by_side
from run.checkpoint import numbered, write_json
from run.errors import UserError
from run.given import read_json
from run.runlog import read_metrics

LEAVES = {"config.json", "metrics.jsonl"}  # of a finished run


@dataclass
class Job:
    """
    One start of train.py: a trunk's next piece, up to values["max_iters"], or a whole decay. after:
    the job whose checkpoint it starts from; keep: the iterations whose checkpoints a trunk keeps.
    """
    out_dir: str
    values: dict
    flops: float
    after: "Job | None" = None
    keep: tuple = ()

    def path(self, name):
        return os.path.join(self.out_dir, name)

    def checkpoint(self):
        return self.path(f"ckpt_{self.values['max_iters']:07d}.pt")

    def command(self):
        if os.path.isdir(self.out_dir) and numbered(self.out_dir):
            return [*TRAIN, self.out_dir, "--resume", f"--max_iters={self.values['max_iters']}"]
        start = self.after.checkpoint() if self.after else "scratch"
        return [*TRAIN, *(f"--{k}={v}" for k, v in self.values.items()),
                f"--init_from={start}", f"--out_dir={self.out_dir}"]

    def start(self, place):
        os.makedirs(self.out_dir, exist_ok=True)
        if not numbered(self.out_dir) and os.path.exists(self.path("metrics.jsonl")):
            os.remove(self.path("metrics.jsonl"))  # killed before its first checkpoint
        if self.keep and [p for p in numbered(self.out_dir) if p > self.checkpoint()]:
            raise UserError(f"{self.out_dir}: is past iteration {self.values['max_iters']}, where the "
                            "experiment branches off now: choose another --out, or delete that folder")
        print(f"{time.strftime('%H:%M:%S')} {self.out_dir} to {self.values['max_iters']}", flush=True)
        return Child(self.command(), self.out_dir, place)

    def diverged(self):
        """Did it, or what it starts from? Of a trunk what came before that counts."""
        if self.keep and os.path.exists(self.checkpoint()):
            return False
        return os.path.exists(self.path("diverged.txt")) or bool(self.after and self.after.diverged())

    def done(self):
        return self.diverged() or (os.path.exists(self.checkpoint()) if self.keep else
                                   self.end() is not None)

    def end(self):
        """The last evaluation's event of a decay that is finished, or None."""
        if not os.path.exists(self.path("metrics.jsonl")):
            return None
        evals = [e for e in read_metrics(self.out_dir) if e["event"] == "eval"]
        return evals[-1] if evals and evals[-1]["iter"] == self.values["max_iters"] else None

    def final(self):
        """Its validation loss; infinite if it diverged, None if it is not finished."""
        end = None if self.diverged() else self.end()
        if end is None:
            return math.inf if self.diverged() else None
        loss = float(end["val_loss"])
        return loss if math.isfinite(loss) else math.inf

    def chain(self):
        """What must run before it, in order, and itself."""
        return [*(self.after.chain() if self.after else []), self]

    def tidy(self):
        """Leave of a finished decay what results/ holds, of a trunk the checkpoints to branch from."""
        for path in numbered(self.out_dir) if self.keep else ():
            if int(path[-10:-3]) not in self.keep:
                os.remove(path)
        for name in () if self.keep else set(os.listdir(self.out_dir)) - LEAVES:
            os.remove(self.path(name))
        if not self.keep:
            config = read_json(self.path("config.json"))
            out = os.path.basename(self.out_dir)
            config.update(out_dir=out, init_from=os.path.basename(config["init_from"]))
            config.get("resolved", {}).pop("data_dir", None)
            write_json(self.path("config.json"), config)


def run_all(ready, places, minutes):
    """Run what ready(n) names, n jobs at a time, until it names none, or for so many minutes."""
    until = time.monotonic() + 60 * minutes
    while time.monotonic() < until and (jobs := ready(len(places))):
        side_by_side(jobs, places, Job.start,
                     lambda child, job: ended(child, job.out_dir, job.done, job.tidy), lambda: time.monotonic() < until)
