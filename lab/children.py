"""
Runs of train.py as child processes: where they run, how they start and stop, and what they say
when they fail. None outlives its parent, not even one that is killed; each saves its state first.
"""
import argparse
import ctypes
import math
import os
import re
import signal
import subprocess
import sys
import time

import torch

from base.errors import Parser, UserError, number
from run.checkpoint.checkpoint import make_out_dir
from run.packed import unpacked
from run.runlog import read_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRAIN = [sys.executable, os.path.join(ROOT, "train.py")]
PATIENCE = 60       # seconds for the run of a killed parent to save itself and leave its folder
PR_SET_PDEATHSIG = 1  # Linux's prctl: the signal to get when the parent dies


def slots(n):
    """[(environment, cores to be pinned to or None, description)] of n slots to run in."""
    if torch.cuda.is_available():
        ids = os.environ.get("CUDA_VISIBLE_DEVICES")
        ids = ids.split(",") if ids else [str(i) for i in range(torch.cuda.device_count())]
        shared = "a GPU each" if n <= len(ids) else f"on {len(ids)} GPU(s)"
        return [(dict(CUDA_VISIBLE_DEVICES=i), None, f"{n} at once, {shared}") for i in (n * ids)[:n]]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else \
        list(range(os.cpu_count()))
    if n > len(cores):
        raise UserError(f"parallel={n}: there are {len(cores)} CPU cores here, at least one a run")
    if n == 1:  # as a run by itself is, OMP_NUM_THREADS of the user included
        return [({}, None, f"1 at once, {torch.get_num_threads()} thread(s) each")]
    each = len(cores) // n
    return [(dict(OMP_NUM_THREADS=str(each)), cores[i * each:(i + 1) * each],
             f"{n} at once, {each} thread(s) each") for i in range(n)]


class Child:
    """`command` (TRAIN and its flags) at a place, at work in out_dir; its output goes to run.txt."""

    def __init__(self, command, out_dir, place):
        environment, cores, _ = place
        wait_for(out_dir)
        self.log = os.path.join(out_dir, "run.txt")
        with open(self.log, "ab") as out:
            self.said = out.tell()  # before it: what is in run.txt already
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment},
                # a group of its own, for Ctrl-C is its parent's to hand on; not a session, for nice counts
                # within one only
                process_group=0 if os.name == "posix" else None,
                preexec_fn=prepare(cores) if os.name == "posix" else None)

    def reason(self):
        """Why it failed, in a line: its last error since this start, else how it ended."""
        with open(self.log, "rb") as f:
            f.seek(self.said)
            lines = [s.strip() for s in re.split(r"[\r\n]+", f.read().decode(errors="replace"))]
        code, lines = self.process.returncode, [s for s in lines if s]
        errors = [s for s in lines if re.match(r"error: |[\w.]+(Error|Exception)\b", s)]
        if errors:
            return errors[-1].removeprefix("error: ")
        if code < 0:
            return f"killed by signal {-code}" + ", perhaps for want of memory" * (code == -9)
        return lines[-1] if lines else f"exit code {code}"


class Job:
    """
    A start of train.py that ends at iteration `last`, and what it leaves in its out_dir. Others say
    its command(), and what of a finished one tidy() throws away.
    """

    def __init__(self, out_dir, last):
        self.out_dir, self.last = out_dir, last

    def path(self, name):
        return os.path.join(self.out_dir, name)

    def start(self, place):
        os.makedirs(self.out_dir, exist_ok=True)
        print(f"{time.strftime('%H:%M:%S')} {self.out_dir} to {self.last}", flush=True)
        with open(self.path("place.txt"), "a") as f:
            f.write(place[2] + "\n")
        return Child(self.command(), self.out_dir, place)

    def end(self):
        """The event of its last evaluation, or None before that."""
        if not os.path.exists(self.path("metrics.jsonl")):
            return None
        evals = [e for e in read_metrics(self.out_dir) if e["event"] == "eval"]
        return evals[-1] if evals and evals[-1]["iter"] == self.last else None

    def diverged(self):
        return os.path.exists(self.path("diverged.txt"))

    def done(self):
        return self.diverged() or self.end() is not None

    def final(self):
        """Its last validation loss; infinite if that is no number, None before that."""
        if self.diverged():
            return math.inf
        end = self.end()
        loss = float(end["val_loss"]) if end else None  # "nan", for JSON has none
        return math.inf if end and not math.isfinite(loss) else loss


def ended(child, job):
    """
    Is it? Then look at how: a whole one is tidied; diverged.txt is left where a loss became infinite
    or NaN; UserError for one that failed.
    """
    if child.process.poll() is None:
        return False
    if child.process.returncode == 0 and job.done():
        job.tidy()
        return True
    why = child.reason()
    if "infinite or NaN" not in why:
        raise UserError(f"{job.out_dir}: stopped ({why}): see run.txt there; the same command goes on "
                        "from here")
    with open(job.path("diverged.txt"), "w") as f:
        f.write(why + "\n")
    print(f"{job.out_dir}: diverged", flush=True)
    return True


def machines(jobs):
    """What the runs of jobs say they ran on, wherever this is asked: "A, torch X or B, torch Y"."""
    found = {}
    for job in jobs:
        for e in read_metrics(job.out_dir) if os.path.exists(job.path("metrics.jsonl")) else []:
            if e["event"] == "start":
                found[f"{e.get('machine', 'not recorded')}, torch {e.get('torch')}"] = None
    return " or ".join(found) or "not recorded"


def prepare(cores):
    """What a child does before it starts: pin itself, and die (by SIGTERM, so saved) with us."""
    prctl, parent = getattr(ctypes.CDLL(None), "prctl", None), os.getpid()

    def run():
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        if prctl is not None and sys.platform == "linux":
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # it died before that was said
                os._exit(1)
    return run


def wait_for(out_dir):
    """Until no run writes there; UserError if one still does after PATIENCE seconds."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return make_out_dir(out_dir).close()
        except UserError as e:
            if "another run" not in str(e) or time.monotonic() > until:
                raise
            time.sleep(0.2)


def side_by_side(following, slots, go_on=lambda: True):
    """
    Run Jobs in all slots until there are no more. following(jobs that run) -> the next one or None,
    asked at first and whenever one is done. Whatever ends this, an error, an interrupt or go_on()
    turning False: those that run save their state and stop.
    """
    free, running = list(slots), []
    try:
        while go_on():
            while free and (job := following([job for _, job, _ in running])) is not None:
                place = free.pop(0)
                running.append((job.start(place), job, place))
            if not running:
                break
            done = []
            while go_on() and not done:
                time.sleep(0.1)
                done = [entry for entry in running if ended(*entry[:2])]
            for entry in done:
                running.remove(entry)
                free.append(entry[2])
    finally:
        stop([child for child, _, _ in running])


def stop(children, grace=None):
    """Ask them to save and stop, which train.py does after its step; kill after `grace` seconds."""
    for c in children:
        c.process.terminate()  # if it still runs
    for c in children:
        try:
            c.process.wait(grace)
        except subprocess.TimeoutExpired:
            c.process.kill()
            c.process.wait()


# -----------------------------------------------------------------------------
# the commands that run many

def many_parser(prog, doc, what, **more):
    """The arguments that they have; what: the keywords of the first."""
    p = Parser(prog=f"python -m {prog}", description=doc, **more,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("what", type=os.path.expanduser, **what)
    p.add_argument("--out", type=unpacked, help="folder for it all (out/ and the experiment's name)")
    p.add_argument("--parallel", type=number(int, 1), default=1,
                   help="runs at once, each on its cores, or dealt out to the GPUs (1)")
    p.add_argument("--seeds", type=listed(number(int, 0)), metavar="1,2,3",
                   help="only these; a study adds its first, which tunes")
    p.add_argument("--only", type=listed(str.strip, ";"), metavar="NAME;NAME",
                   help="only these contestants; a campaign adds their baselines")
    p.add_argument("--plan", action="store_true", help="only say what would run and what it costs")
    p.add_argument("--report", action="store_true", help="only report on what is finished")
    return p


def listed(kind, between=","):
    """For argparse's `type`: values of a kind with commas between them."""
    return lambda text: [kind(part) for part in text.split(between)]


def in_folder(out, n, work):
    """work(slots of n runs) with the folder `out` locked. An interrupt is a UserError."""
    free = slots(n)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C, for the children too
    try:
        with make_out_dir(out):
            work(free)
    except KeyboardInterrupt:
        raise UserError("interrupted; every run was saved, the same command goes on from here") \
            from None
