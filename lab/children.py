"""
Runs of train.py as child processes: where they run, how they start and stop, and how failures are
reported. No child outlives its parent, even if the parent is killed. Each saves its state first.
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
from base.words import count
from run.checkpoint.checkpoint import make_out_dir
from run.packed import unpacked
from run.runlog import read_metrics

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRAIN = [sys.executable, os.path.join(ROOT, "train.py")]
PATIENCE = 60       # seconds for a killed parent's run to save its state and leave its folder
PR_SET_PDEATHSIG = 1  # Linux's prctl: the signal to get when the parent dies


def slots(n):
    """[(environment, cores to be pinned to or None, description)] of n slots to run in."""
    if torch.cuda.is_available():
        ids = os.environ.get("CUDA_VISIBLE_DEVICES")
        ids = ids.split(",") if ids else [str(i) for i in range(torch.cuda.device_count())]
        shared = "a GPU each" if n <= len(ids) else f"on {count(len(ids), 'GPU')}"
        return [(dict(CUDA_VISIBLE_DEVICES=i), None, f"{n} at once, {shared}") for i in (n * ids)[:n]]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else \
        list(range(os.cpu_count()))
    if n > len(cores):
        raise UserError(f"parallel={n}: there are {len(cores)} CPU cores here, at least one a run")
    if n == 1:  # like a run started by hand: keep the user's OMP_NUM_THREADS
        return [({}, None, f"1 at once, {count(torch.get_num_threads(), 'thread')} each")]
    each = len(cores) // n
    return [(dict(OMP_NUM_THREADS=str(each)), cores[i * each:(i + 1) * each],
             f"{n} at once, {count(each, 'thread')} each") for i in range(n)]


class Child:
    """A running `command` (TRAIN and its flags) in out_dir, in a slot. Its output goes to run.txt."""

    def __init__(self, command, out_dir, place):
        environment, cores, _ = place
        wait_for(out_dir)
        self.log = os.path.join(out_dir, "run.txt")
        with open(self.log, "ab") as out:
            self.said = out.tell()  # run.txt may hold output of earlier starts
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **environment},
                # its own group, because the parent hands on Ctrl-C; no session of its own, because
                # nice counts only within one
                process_group=0 if os.name == "posix" else None,
                preexec_fn=prepare(cores) if os.name == "posix" else None)

    def reason(self):
        """Why it failed, in one line: its last error since this start, else its exit status."""
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
    A start of train.py that ends at iteration `last`, and the files in its out_dir. Subclasses define
    its command(), and tidy(), which deletes what a finished run no longer needs.
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

    def check_settings(self, had, wanted, free):
        """UserError if the settings that its folder recorded differ from those wanted, but for those in `free`."""
        for key in sorted({*had} & {*wanted} - {*free}):
            if had[key] != wanted[key]:
                raise UserError(f"{self.out_dir}: holds a run with {key}={had[key]!r}, not {wanted[key]!r}: choose "
                                "another --out, or delete that folder")

    def end(self):
        """The event of its last evaluation; None until then."""
        if not os.path.exists(self.path("metrics.jsonl")):
            return None
        evals = [e for e in read_metrics(self.out_dir) if e["event"] == "eval"]
        return evals[-1] if evals and evals[-1]["iter"] == self.last else None

    def diverged(self):
        return os.path.exists(self.path("diverged.txt"))

    def done(self):
        return self.diverged() or self.end() is not None

    def final(self):
        """Its last validation loss: infinite if it is NaN, None until there is one."""
        if self.diverged():
            return math.inf
        end = self.end()
        loss = float(end["val_loss"]) if end else None  # JSON has no NaN: it is the string "nan"
        return math.inf if end and not math.isfinite(loss) else loss


def ended(child, job):
    """
    Has it ended? If so, a finished run is tidied. A loss that became infinite or NaN leaves
    diverged.txt. A run that failed is a UserError.
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
    """The machines that the jobs ran on, from their own metrics: "A, torch X or B, torch Y"."""
    found = {}
    for job in jobs:
        for e in read_metrics(job.out_dir) if os.path.exists(job.path("metrics.jsonl")) else []:
            if e["event"] == "start":
                found[f"{e.get('machine', 'not recorded')}, torch {e.get('torch')}"] = None
    return " or ".join(found) or "not recorded"


def prepare(cores):
    """In the child, before it starts: pin it, and have it get SIGTERM (so it saves) if we die."""
    prctl, parent = getattr(ctypes.CDLL(None), "prctl", None), os.getpid()

    def run():
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        if prctl is not None and sys.platform == "linux":
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            if os.getppid() != parent:  # the parent died before prctl was called
                os._exit(1)
    return run


def wait_for(out_dir):
    """Wait until no run writes there; UserError if one still does after PATIENCE seconds."""
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
    Run Jobs in all slots until none is left. following(running jobs) -> the next job or None. It is
    called at the start and whenever a job ends. On an error, an interrupt or go_on() == False, the
    running jobs save their state and stop.
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
    """Ask the runs to save and stop after their step; kill those left after `grace` seconds."""
    for c in children:
        c.process.terminate()  # no effect if it has ended
    for c in children:
        try:
            c.process.wait(grace)
        except subprocess.TimeoutExpired:
            c.process.kill()
            c.process.wait()


# -----------------------------------------------------------------------------
# commands that start many runs

def many_parser(prog, doc, what, **more):
    """The arguments that these commands share. what: keywords of the first one."""
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
    p.modes = p.add_mutually_exclusive_group()
    p.modes.add_argument("--plan", action="store_true", help="only say what would run and what it costs")
    p.modes.add_argument("--report", action="store_true", help="only report on what is finished")
    return p


def listed(kind, between=","):
    """For argparse's `type`: comma-separated values of one type."""
    return lambda text: [kind(part) for part in text.split(between)]


def in_folder(out, n, work):
    """Call work(n slots) with the folder `out` locked. An interrupt becomes a UserError."""
    free = slots(n)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C, so that the children stop too
    try:
        with make_out_dir(out):
            work(free)
    except KeyboardInterrupt:
        raise UserError("interrupted; every run was saved, the same command goes on from here") \
            from None
