"""What a run records: metrics.jsonl, log.txt, the progress line, and the clock."""
import atexit
import contextlib
import json
import math
import os
import statistics
import textwrap
import time
from collections import deque
from dataclasses import asdict

from tqdm import tqdm

from base.errors import UserError, library
from model import GROWABLE


class Clock:
    """
    Seconds of training: everything a user waits for, except what runs inside `with clock.paused()`.
    wait(): returns when the device has finished its work. The host runs ahead of a GPU, so the clock
    waits before it stops or starts.
    """

    def __init__(self, seconds=0.0, wait=lambda: None):
        self.wait = wait
        wait()
        self.seconds, self.since = seconds, time.perf_counter()

    def read(self):
        now = time.perf_counter()
        if self.since is not None:
            self.seconds, self.since = self.seconds + now - self.since, now
        return self.seconds

    def paused(self):
        return self

    def __enter__(self):
        self.wait()
        self.read()
        self.since = None

    def __exit__(self, kind, *exc):
        if kind is None:  # a failed device may never finish
            self.wait()
        self.since = time.perf_counter()


class Pace:
    """A run's speed in FLOPs, and the time it has left: stages differ in FLOPs per token."""

    def __init__(self, config, flops_per_token):
        """flops_per_token: FLOPs of training, one number per stage."""
        self.config, self.flops_per_token = config, flops_per_token
        self.speeds = deque(maxlen=20)  # FLOPs per second, one per interval

    def seconds_left(self, it, stage, flops, seconds):
        """
        Seconds of training left from iteration `it`, after `stage` growths. flops, seconds: since the
        last call.
        """
        self.speeds.append(flops / max(seconds, 1e-9))
        ends, left = [*(s["at"] for s in self.config.stages), self.config.max_iters], 0.0
        for cost, end in zip(self.flops_per_token[stage:], ends[stage:]):
            left += cost * self.config.batch_tokens * max(0, end - it)
            it = max(it, end)
        return left / statistics.median(self.speeds)  # the median ignores intervals with compilation


class Lines:
    """A file of lines that loses none to a full disk: what it does not take is written with the next line."""

    def __init__(self, path, mode):
        self.path, self.file, self.waiting = path, open(path, mode + "b", buffering=0), b""

    def write(self, line):
        self.waiting += line.encode()
        with contextlib.suppress(OSError):
            while self.waiting:
                self.waiting = self.waiting[self.file.write(self.waiting):]

    def size(self):
        """In bytes, with the lines that wait."""
        return os.fstat(self.file.fileno()).st_size + len(self.waiting)

    def close(self):
        self.write("")
        self.file.close()
        if self.waiting:
            print(f"warning: {self.path}: the disk is full: its last lines are lost")


class RunLog:
    """The log of a run. Rank 0 writes; other ranks (quiet=True) are silent."""

    def __init__(self, out_dir, total, start=0, metrics_bytes=None, quiet=False, trackers=()):
        """metrics_bytes: on resume, the size of metrics.jsonl at the checkpoint. Later lines of a
        killed run are cut off, as they will be written again."""
        self.quiet, self.trackers = quiet, trackers
        if quiet:
            return
        path, mode = os.path.join(out_dir, "metrics.jsonl"), "w" if metrics_bytes is None else "a"
        self.metrics, self.text = Lines(path, mode), Lines(os.path.join(out_dir, "log.txt"), mode)
        self.bar = tqdm(total=total, initial=start, dynamic_ncols=True, mininterval=0.5,
                        bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}")
        if metrics_bytes is not None:
            with open(path, "rb") as f:
                kept = f.read(metrics_bytes)
            self.metrics.file.truncate(kept.rfind(b"\n") + 1)  # whole lines
            if len(kept) < metrics_bytes:
                self.say(f"{path}: is shorter than when this checkpoint was written: the lines that it lacks are lost")

    def event(self, event, **values):
        """Write a JSON object to metrics.jsonl. Infinity and NaN become text: JSON lacks them."""
        if not self.quiet:
            self.metrics.write(json.dumps({"event": event, **{
                k: str(v) if isinstance(v, float) and not math.isfinite(v) else v
                for k, v in values.items() if v is not None}}) + "\n")
            for track in self.trackers:
                track({f"{event}/{k}": v for k, v in values.items()
                       if k != "iter" and isinstance(v, (int, float))}, values.get("iter"))

    def say(self, line):
        """Print a line to the terminal and to log.txt."""
        if not self.quiet:
            self.bar.write(line)
            self.text.write(line + "\n")

    def sample(self, text, it):
        """Log a text that the model wrote: to the trackers, or as a line if there are none."""
        for track in self.trackers:
            track({"sample": text}, it)
        if not self.trackers:
            self.say(f"iter {it}: the model writes\n" + textwrap.indent(text, "  | ", lambda _: True))

    def progress(self, text=""):
        """Advance by one iteration. text: the new end of the progress line."""
        if not self.quiet:
            self.bar.update(1)
            if text:
                self.bar.set_postfix_str(text, refresh=False)

    def metrics_bytes(self):
        """The size that metrics.jsonl has once the disk has taken all of it."""
        if self.quiet:
            return 0
        with contextlib.suppress(OSError):
            os.fsync(self.metrics.file.fileno())
        return self.metrics.size()

    def close(self):
        if not self.quiet:
            self.bar.close()
            self.metrics.close()
            self.text.close()


def open_trackers(config, start=0):
    """
    A function ({name: number or text}, iteration) for each tracker that is on. Other trackers are not
    imported.
    """
    made = []
    if config.tensorboard:
        SummaryWriter = library("torch.utils.tensorboard", "tensorboard").SummaryWriter
        # on resume, hide what came after the checkpoint: it will be written again
        board = SummaryWriter(config.out_dir, purge_step=start + 1 if start else None, flush_secs=10)
        atexit.register(board.close)
        made.append(lambda values, it: [  # text is Markdown there: indented, it stays verbatim
            board.add_text(k, textwrap.indent(v, "    "), it) if isinstance(v, str) else
            board.add_scalar(k, v, it) for k, v in values.items()])
    if config.wandb:
        wandb = library("wandb", "wandb")
        try:
            name = os.path.join(*os.path.abspath(config.out_dir).split(os.sep)[-2:])
            run = wandb.init(project=config.wandb, name=name, dir=config.out_dir,
                             config=asdict(config), reinit=True)  # ends an earlier run in this process
        except Exception as e:  # not logged in, no network, ...
            raise UserError(f"wandb={config.wandb}: cannot start ({type(e).__name__}: {e}); "
                            "WANDB_MODE=offline needs no network".replace("\n", " ")) from None
        made.append(lambda values, it: run.log(values, step=it))
    return made


# numbers that an event of a kind must have, besides those that all have
EVENTS = dict(eval=("val_loss",), step=GROWABLE, grow=GROWABLE, compile=(*GROWABLE, "first_step_s"))


def read_metrics(out_dir, damaged=None):
    """
    The events of a run, a list of dicts, without an incomplete last line. damaged: a list that collects
    the numbers of damaged lines, which are skipped; with None such a line is a UserError.
    """
    events, path = [], os.path.join(out_dir, "metrics.jsonl")
    with open(path, encoding="utf-8", errors="replace") as f:
        for n, line in enumerate(f, 1):
            if not line.endswith("\n"):
                continue
            try:
                e = json.loads(line)
                if not (e["event"] and all(0 <= e[k] < 1e300 for k in ("iter", "tokens", "train_s",
                                                                       "flops"))):
                    raise ValueError(line)
                for key in EVENTS.get(e["event"], ()):
                    float(e[key])  # it may be "nan"
                events.append(e)
            except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
                if damaged is None:
                    raise UserError(f"{path}:{n}: damaged: is no event of a run: take that line out") \
                        from None
                damaged.append(n)
    return events
