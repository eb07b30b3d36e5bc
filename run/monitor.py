"""
Everything around training that changes neither weights nor data: timing, evaluation, logging, saving
and stopping.
"""
import math
import os
import shlex
import signal
import sys
import time
from dataclasses import asdict
from functools import partial

from tqdm import tqdm

from base import disk
from base.errors import UserError
from data.tokenizer import get_tokenizer
from grow import describe, sizes_of
from run import family
from run.checkpoint import checkpoint
from run.checkpoint.saver import Saver
from run.evaluation import evaluate, sample_text
from run.parallel.ranks import synchronize
from run.precision import known_peak
from run.runlog import Clock, Pace, RunLog, open_trackers
from run.trace import keep_source


class Monitor:
    """The observer of a run. Its own state (`PROGRESS`) is saved with the run."""
    # seconds of training, best saved validation loss, last evaluated iteration and its loss, last
    # saved iteration
    PROGRESS = dict(train_s=0.0, best=math.inf, evaluated=-1, loss=math.nan, saved=-1)

    def __init__(self, run, asked, before=None):
        """asked: the config that --resume continues with; before: the Monitor of the previous run."""
        self.run, self.asked, config, loaded = run, asked, run.config, run.loaded
        self.stop = None  # the signal to stop that this rank received
        self.stopped = False  # do all ranks know of a signal to stop?
        most = run.loader.val_seqs  # an evaluation reads no more, whatever eval_seqs says
        same = loaded and min(loaded["config"]["eval_seqs"], most) == min(config.eval_seqs, most)
        for k, v in self.PROGRESS.items():
            known = same or k not in ("best", "evaluated", "loss")  # losses of one set compare
            setattr(self, k, loaded.get(k, v) if known else v)
        self.clock = Clock(self.train_s, partial(synchronize, run.device))
        self.saver, self.unsaved = Saver(config, run.ranks), None
        self.last_log = self.train_s, run.tokens, run.flops
        self.eta = Pace(config, [m.flops_per_token(config.head_fraction())
                                 for m in config.models(run.vocab_size)])
        self.tokenizer = get_tokenizer(run.meta) if config.sample_interval else None
        self.log = RunLog(config.out_dir, config.max_iters, run.iter,
                          loaded.get("metrics_bytes"), quiet=run.ranks.rank != 0,
                          trackers=() if run.ranks.rank else open_trackers(config, run.iter))
        if run.warning:
            self.log.say(run.warning)
        if config.shard == "fsdp" and run.mesh is None:
            self.log.say("shard='fsdp': one process keeps the whole model; torchrun starts several")
        if config.eval_seqs > run.loader.eval_seqs:
            self.log.say(f"eval_seqs={config.eval_seqs}: the validation set has {run.loader.eval_seqs} "
                         f"sequences of {config.block_size}, which an evaluation reads once")
        if run.ranks.rank == 0:
            disk.write_json(os.path.join(config.out_dir, "config.json"),
                            dict(asdict(config), resolved=run.resolved()))
            if lost := keep_source(config.out_dir, run.iter):
                self.log.say(lost)
        self.note("start", **run.resolved())
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores SIGHUP
                signal.signal(number, self.on_signal)
        self.stop = self.stop or before and before.stop  # it received signals until now

    def note(self, event, **values):
        """Write a line to metrics.jsonl: the state of the run, and `values`."""
        run, mask = self.run, self.run.model.masks.c
        self.log.event(event, **{**dict(
            iter=run.iter, tokens=run.tokens, flops=run.flops, train_s=round(self.clock.read(), 4),
            mask=1.0 if mask is None else round(mask.item(), 6)),
            **sizes_of(run.model.config), **values})

    def log_step(self, loss, norm):
        """Call after a step. loss, norm: 0-D, this rank's; read every log_interval only, as that waits."""
        run, c = self.run, self.run.config
        if self.saver.done():
            self.settle()
        if (epochs := run.loader.epochs(run.iter)) > run.loader.epochs(run.iter - 1):
            self.log.say(f"epoch {epochs} of the data ends at iteration {run.iter}")
        if run.iter % c.log_interval:
            self.log.progress()
            return
        loss = (run.ranks.sum(loss.clone()) / run.ranks.world).item()
        before, self.last_log = self.last_log, (self.clock.read(), run.tokens, run.flops)
        seconds, tokens, flops = (now - had for now, had in zip(self.last_log, before))
        speed = tokens / max(seconds, 1e-9)
        peak = c.peak_flops or known_peak(run.device)
        self.note("step", loss=loss, grad_norm=norm.item(),
                  lr=run.optimizers[-1].param_groups[0]["lr"], tok_s=speed,
                  mfu=speed * run.flops_per_token / (peak * run.ranks.world) if peak else None,
                  skipped=int(run.bad) or None)
        self.log.progress(self.progress(loss, speed, self.eta.seconds_left(
            run.iter, run.stage, flops, seconds)))
        self.check_steps()

    def progress(self, loss, speed, left):
        """The text of the progress line. speed: tokens per second; left: seconds."""
        run, mask = self.run, self.run.model.masks.c
        stage = f"stage {run.stage + 1}/{len(run.config.stages) + 1}, " * bool(run.config.stages)
        ramp = "" if mask is None else f"mask {mask.item():.2f}, "
        return (f"{stage}{ramp}loss {loss:.3f}, {speed:,.0f} tok/s, "
                f"{tqdm.format_interval(round(left))} left")

    def check_steps(self):
        """UserError after too many bad steps in a row. float16's scale may need 16 to fall to 1."""
        bad, run = int(self.run.bad_run), self.run
        if bad >= run.config.max_bad_steps + 24 * run.scaler.is_enabled():
            raise self.diverged(f"in the last {bad} steps")

    def diverged(self, where):
        """The error for a run whose loss or weights are infinite or NaN."""
        out_dir = self.run.config.out_dir
        good = f"the last good checkpoint is {os.path.join(out_dir, checkpoint.LATEST)}" \
            if checkpoint.exists(out_dir) else "no checkpoint was written yet"
        return UserError(f"loss was infinite or NaN {where}: lower learning_rate; {good}")

    def evaluate(self, batches=None):
        """Validation scores on `batches` batches of each rank, or on all. A signal stops the latter."""
        with self.clock.paused():
            return evaluate(self.run, batches, lambda: batches is None and self.stop is not None)

    def evaluate_and_log(self):
        """Evaluate at most once per iteration: a resumed run may have done so already."""
        run = self.run
        if self.evaluated == run.iter:
            return
        result, self.evaluated, self.saved = self.evaluate(), run.iter, -1  # saved before, it says nothing of this
        self.loss = result["val_loss"]
        self.note("eval", **result)
        self.log.say(f"iter {run.iter}: val loss {self.loss:.4f}, " + "".join(
            f"{k} {v:.4f}, " for k, v in result.items() if k != "val_loss") +
            f"{run.tokens / 1e6:.1f}M tokens, {self.clock.read():.0f} s of training")
        self.check_steps()
        if not math.isfinite(self.loss):
            raise self.diverged(f"in the evaluation of iteration {run.iter}")
        with self.clock.paused():
            self.sample()

    def sample(self):
        """Sample a text every sample_interval evaluations and at the end, on rank 0."""
        run, c = self.run, self.run.config
        if self.tokenizer and run.ranks.rank == 0 and (
                run.iter == c.max_iters or not run.iter % (c.eval_interval * c.sample_interval)):
            self.log.sample(sample_text(run, self.tokenizer), run.iter)

    def branch_is_due(self):
        """
        Call before a growth: must a branch finish the current size first? If the branch comes after
        the run, log the command that trains it elsewhere.
        """
        run, c = self.run, self.run.config
        with self.clock.paused():
            self.settle()
        for m in family.members(c)[:-1]:
            if m.at == run.iter and self.saved != run.iter:
                self.log.say(f"WARNING: without its checkpoint {m.name} will not be finished")
            elif m.at == run.iter and not m.is_finished():
                flags = dict(init_from=checkpoint.path_at(c.out_dir, m.at), **family.branch_settings(m))
                command = shlex.join([sys.argv[0], *(f"--{k}={v}" for k, v in flags.items())])
                self.log.say(f"iter {m.at}: {m.name} is to be finished by {m.end - m.at} iterations of decay in "
                             f"{m.out_dir}, " + ("before this run grows" if c.family == "now" else
                             f"after this run, or elsewhere meanwhile: {self.launcher(alone=True)} {command}"))
        return run.ranks.any(run.ranks.rank == 0 and bool(family.due(c)))

    def grow(self):
        """
        Grow the run and log it. Call after an evaluation. One batch, before and after, shows whether the
        loss changed. If it did, the whole validation set is evaluated again.
        """
        run, before = self.run, self.loss
        had = self.evaluate(1)["val_loss"]
        started = time.perf_counter()
        run.grow()
        self.clock.wait()
        grow_s, model = time.perf_counter() - started, run.model
        change = self.evaluate(1)["val_loss"] - had
        after = before + change if abs(change) < 1e-4 else self.evaluate()["val_loss"]
        self.note("grow", val_loss_before=before, val_loss_after=after, val_loss=after, grow_s=grow_s,
                  params=model.num_params(), mask=0.0)
        self.log.say(f"iter {run.iter}: grown to {describe(sizes_of(model.config))}, "
                     f"{model.num_params():,} parameters; val loss {before:.4f} -> {after:.4f}, "
                     f"{grow_s:.2f} s")

    def is_due(self):
        """Is a numbered checkpoint due?"""
        c, it = self.run.config, self.run.iter
        return it == c.max_iters or (it % c.save_interval == 0 if c.save_interval else
                                     self.evaluated == it)

    def save(self, anyway=False):
        """
        Save a numbered checkpoint if one is due, or `anyway`, at most once per iteration. The best
        evaluation so far is also saved, due or not. Infinite or NaN weights are never written: the
        last good checkpoint stays. If writing fails, the run continues; see finish().
        """
        run = self.run
        if not (anyway or self.is_due() or self.evaluated == run.iter):
            return
        with self.clock.paused():
            self.settle()
            numbered = (anyway or self.is_due()) and self.saved != run.iter
            best = self.evaluated == run.iter and self.loss < self.best
            if not (numbered or best):
                return
            if not run.is_finite():
                raise self.diverged(f"before iteration {run.iter}")
            self.train_s = self.clock.read()
            self.once_saved = {**(dict(best=self.loss) if best else {}),
                               **(dict(saved=run.iter) if numbered else {})}
            self.saver.start({**run.state_dict(), **{k: getattr(self, k) for k in self.PROGRESS},
                              **self.once_saved, "kept": [m.at for m in family.members(run.config)],
                              "metrics_bytes": self.log.metrics_bytes()}, best=best, numbered=numbered)
            if self.saver.done():
                self.settle()

    def settle(self):
        """Wait for a save under way and record it; warn if it failed."""
        if self.saver.saving is None:
            return
        self.unsaved = self.saver.settle()
        if not self.unsaved:
            vars(self).update(self.once_saved)
        else:
            self.log.say(f"WARNING: {self.unsaved}. The run goes on; its next checkpoint is tried in "
                         "its turn")

    def finish(self):
        """Wait until all is written. UserError if the last save failed."""
        self.settle()
        self.run.ranks.agree(self.unsaved)
        self.stopped = self.run.ranks.any(self.stop is not None)

    def stop_if_asked(self):
        """Did a signal to any rank ask to stop? If so, save. A second Ctrl-C kills."""
        if not self.run.ranks.any(self.stop is not None):
            return False
        self.save(anyway=True)
        self.finish()
        again = shlex.join([sys.argv[0], "--resume", self.asked.out_dir])
        self.log.say(f"stopped at iteration {self.run.iter}; continue with: {self.launcher()} {again}")
        return True

    def launcher(self, alone=False):
        """The command that starts train.py with as many processes as now. alone: with one, unless sharded."""
        ranks = self.run.ranks
        if alone and self.run.config.shard == "none":
            return "python"
        if ranks.machines > 1:
            return "torchrun WITH_THE_SAME_FLAGS"
        return f"torchrun --standalone --nproc_per_node={ranks.world}" if ranks.several else "python"

    def on_signal(self, number, frame):
        self.stop = number
        if number == signal.SIGINT:  # others arrive twice, from a scheduler and from torchrun
            signal.signal(number, signal.SIG_DFL)

    def close(self):
        self.saver.settle()  # even after an error
        self.log.close()
        self.run = self.saver = None  # signal handlers keep this object: free the model
