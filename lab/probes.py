"""
The runs of a search: stable ones, which grow but whose learning rate never falls, and decays off
them. Each is train.py in a folder of its own and begins at another's checkpoint, so nothing is
trained twice. Started again with the same arguments, each goes on where it stopped.
"""
import os
import shutil
import signal
import time
from dataclasses import dataclass

from base.disk import write_json
from base.errors import UserError
from base.reading import read_json
from lab.children import TRAIN, Child, slots, stop, wait_for
from run.checkpoint import checkpoint
from run.runlog import read_metrics

GRACE = 30  # seconds a run has to save itself after it was asked to stop


class OutOfTime(Exception):
    """The budget is spent."""


@dataclass
class Stable:
    """
    A run at a constant rate. path: [(sizes, iteration where they begin), ...], the first at 0;
    parent: the Stable whose checkpoint the last of them grows from, or None.
    """
    name: str
    path: list
    parent: "Stable" = None


class Runs:
    """Runs of train.py in `folder`, one after another, within a budget of seconds for all of them."""

    def __init__(self, folder, config_args, budget, goal=None):
        self.folder, self.config_args, self.budget = folder, config_args, budget
        self.lock = checkpoint.make_out_dir(folder)
        self.path = os.path.join(folder, "state.json")
        self.state = dict(args=config_args, goal=goal, spent=0.0)
        if os.path.exists(self.path):
            self.state = read_json(self.path, args=list, spent=(int, float))
            if [self.state["args"], self.state.get("goal")] != [config_args, goal]:
                raise UserError(f"{folder} holds the work of other arguments "
                                f"({' '.join(self.state['args'])}): choose another --out, or "
                                "delete it")
        self.since = time.monotonic()
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, for the child too

    def left(self):
        """Seconds of the budget that are left, after what earlier sessions spent."""
        now = time.monotonic()
        self.state["spent"], self.since = self.state["spent"] + now - self.since, now
        return self.budget - self.state["spent"]

    def save(self):
        self.left()
        write_json(self.path, self.state)

    def events(self, name):
        try:
            return read_metrics(os.path.join(self.folder, name))
        except OSError:
            return []

    def reached(self, name):
        """The iteration of a run's last evaluation."""
        return max((e["iter"] for e in self.events(name) if e["event"] == "eval"), default=0)

    def run(self, name, settings, until, start="scratch", enough=lambda: False):
        """
        Train `name` to iteration `until`, or to where enough() is true; from `start`, as init_from
        has it, or from where it stopped. Raises OutOfTime, and UserError with a failed run's reason.
        """
        def over():
            return self.reached(name) >= until or enough()
        if not over() and self.left() > 0:
            child = self.start(name, dict(settings, max_iters=until), start)
            try:
                while child.process.poll() is None and self.left() > 0 and not enough():
                    self.save()
                    time.sleep(0.5)
            finally:
                stop([child], GRACE)
                self.save()
            if child.process.returncode > 0:
                raise UserError(f"{name}: train.py failed: {child.reason()}")
        if not over():
            raise OutOfTime(f"{name}, iteration {self.reached(name)} of {until}")

    def start(self, name, settings, start):
        """Start or go on with `name`, as a Child."""
        folder = os.path.join(self.folder, name)
        wait_for(folder)
        begun = checkpoint.exists(folder)
        if not begun:  # killed before it saved anything
            shutil.rmtree(folder)
        flags = dict(settings, out_dir=folder, init_from="auto" if begun else start)
        print(f"{name}: to iteration {settings['max_iters']}", flush=True)
        return Child([*TRAIN, *self.config_args, *(f"--{k}={v}" for k, v in flags.items())],
                     folder, slots(1)[0])

    def checkpoint(self, name, at):
        return os.path.join(self.folder, name, f"ckpt_{at:07d}.pt")
