"""
Train a Transformer that grows while it trains.

    python train.py config/pystdlib_msg.py --max_iters=500
    torchrun --standalone --nproc_per_node=4 train.py config/gpt2_msg.py

Every setting is in run/settings.py. Batch, mask, dropout and learning rate are functions of
(seed, iteration), so a run can be cut off anywhere and on any number of processes and continue
as if nothing had happened.
"""
import contextlib
import json
import math
import os
import signal
import sys
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from data.loader import LOADERS, read_meta, vocab_needed
from grow import describe, role, set_mask, sizes_of
from model import GROWABLE, MODELS, BertOutput
from run import ahead, checkpoint, compiler, hf, newborn
from run.errors import UserError, exits_cleanly, first_line
from run.operators import OPERATORS
from run.ranks import PEAK_FLOPS, Ranks, Zero1, pick_dtype
from run.runlog import Clock, RunLog, open_trackers
from run.settings import OWN_STARTS, TrainConfig, from_args


def learning_rate(config, it, last_growth):
    """The learning rate of iteration `it`, as a share of the peak."""
    scale = min(1.0, (it + 1) / config.warmup_iters) if config.warmup_iters else 1.0
    if last_growth is not None and config.rewarm_iters:
        scale *= min(1.0, (it - last_growth + 1) / config.rewarm_iters)
    low = config.min_lr_frac
    if config.schedule == "cosine":
        done = max(0, it - config.warmup_iters) / max(1, config.max_iters - config.warmup_iters)
        scale *= low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule == "wsd" and config.decay_frac:
        left = (config.max_iters - it) / (config.decay_frac * config.max_iters)
        scale *= low + (1 - low) * min(1.0, left)
    return scale


def make_optimizers(config, model):
    """AdamW, or Muon for the blocks' matrices and AdamW for the rest. Weight decay on matrices."""
    named = list(model.named_parameters())

    def group(r, **kw):
        return dict(params=[p for n, p in named if role(n) == r], role=r, **kw)
    adamw = [group("embedding", weight_decay=config.weight_decay), group("vector", weight_decay=0.0)]
    optimizers = []
    if config.optimizer == "muon":
        matrices = [group("matrix", weight_decay=config.weight_decay)]
        optimizers.append(torch.optim.Muon(matrices, lr=config.muon_learning_rate))
    else:
        adamw.insert(0, group("matrix", weight_decay=config.weight_decay))
    optimizers.append(torch.optim.AdamW(adamw, lr=config.learning_rate,
                                        betas=(config.beta1, config.beta2), fused=True))
    for o in optimizers:
        for g in o.param_groups:
            g["peak_lr"] = g["lr"]
    return optimizers


def scores(out, loss, data):
    """Sums over a validation batch, {name: (sum, count)}, whatever the model."""
    if not isinstance(out, BertOutput):
        n = data["targets"].numel()
        return {"val_loss": (loss * n, n)}
    target, n = data["targets"], (data["targets"] >= 0).sum()
    nsp = torch.nn.functional.cross_entropy(out.nsp_logits, data["next_sentence"])
    rows = len(target)
    hit = (out.mlm_logits.argmax(-1) == target).sum()
    nsp_hit = (out.nsp_logits.argmax(-1) == data["next_sentence"]).sum()
    return {"val_loss": ((loss - nsp) * n, n), "mlm_acc": (hit, n),
            "nsp_loss": (nsp * rows, rows), "nsp_acc": (nsp_hit, rows)}


def out_of_memory(config, stage, vocab_size, e):
    """What to tell a user whose model cannot grow: what was asked, what it takes, what to do."""
    cls, _ = MODELS[config.model]
    with torch.device("meta"):
        model = cls(replace(config.model_config(vocab_size), **config.sizes()[stage + 1]))
    states = 4 if config.optimizer == "adamw" else 3  # weight, gradient, moments; float32
    need = 4 * states * model.num_params() / 2**30
    return (f"stages[{stage}] ({describe(sizes_of(model.config))}) does not fit in memory "
            f"({first_line(e)}): its {model.num_params():,} parameters, gradients and "
            f"optimizer state take {need:.1f} GiB and activations come on top; lower its sizes or "
            "micro_batch, then --resume: the checkpoint from before this growth is safe")


class Trainer:
    """A model on its way to its target size, and all that a checkpoint must hold to go on."""

    def __init__(self, config):
        self.config = config
        self.ranks = Ranks(config.device)
        self.device = self.ranks.device
        self.lock = checkpoint.make_out_dir(config.out_dir) if self.ranks.rank == 0 else None
        meta = read_meta(config.data_dir)
        state = self.saved_state(meta)
        self.meta, self.stop, self.compiling = meta, None, None
        self.dtype = self.common_dtype(state)
        needed = vocab_needed(config.model, meta)
        vocab_size = config.vocab_size or -(-needed // 64) * 64
        if vocab_size < needed:
            raise UserError(f"vocab_size={vocab_size}: the dataset {config.data_dir} has "
                            f"{needed} token ids; leave vocab_size out to use that")
        self.vocab_size = vocab_size
        self.loader = LOADERS[config.model](config, meta, vocab_size, self.ranks.rank, self.ranks.world)
        self.compile, why = compiler.choose(config.compile, self.device)

        torch.manual_seed(config.seed)
        cls, config_cls = MODELS[config.model]
        self.model = cls(config_cls(**state["model_config"]) if state else
                         config.model_config(vocab_size))
        if state:
            self.model.load_state_dict(state["model"])
        elif config.init_from not in OWN_STARTS:
            hf.start_from(self.model, config.init_from)
        self.model.to(self.device)
        self.optimizers = make_optimizers(config, self.model)
        self.zero1 = self.shard()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        # grown_at: of the last growth; grow_at: of the next; pace: see weigh_growth
        progress = dict(iter=0, stage=0, tokens=0, flops=0.0, train_s=0.0, best=math.inf, bad=0,
                        evaluated=-1, grown_at=None, grow_at=None, pace=None)
        if state:
            self.load_optimizers(state["optimizers"])
            self.scaler.load_state_dict(state["scaler"])
            progress = {k: state.get(k, v) for k, v in progress.items()}
        for k, v in progress.items():
            setattr(self, k, v)
        self.bad_run = torch.zeros((), device=self.device)  # non-finite steps in a row
        self.log = RunLog(config.out_dir, config.max_iters, self.iter,
                          state["metrics_bytes"] if state else None, quiet=self.ranks.rank != 0,
                          trackers=() if self.ranks.rank else open_trackers(config, self.iter))
        if why:
            self.log.say(why + "; running without it (--compile=none)")
        if self.ranks.rank == 0:
            with open(os.path.join(config.out_dir, "config.json"), "w") as f:
                json.dump(asdict(config), f, indent=1)
        self.wrap()

    def common_dtype(self, state):
        """The dtype to autocast to, the same on all ranks, and the same as before a resume."""
        wanted = self.config.dtype
        if wanted == "auto" and state and state.get("autocast", [""])[0] == self.device.type:
            wanted = state["autocast"][1]
        dtype = pick_dtype(wanted, self.device)
        if wanted == "auto" and self.device.type == "cpu" and \
                self.ranks.any(dtype == torch.float32):  # measured, so ranks may differ
            dtype = torch.float32
        return dtype

    def load_optimizers(self, saved):
        if self.zero1:
            return self.zero1.load(saved)
        for o, state in zip(self.optimizers, saved):
            o.load_state_dict(state)

    def saved_state(self, meta):
        """The checkpoint to go on from, or None; every rank reads the same one."""
        config = self.config
        restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0
        self.ranks.barrier()  # rank 0 has the lock: nobody else writes there
        found = checkpoint.exists(config.out_dir)
        if config.init_from not in OWN_STARTS:
            hf.check_tokenizer(config.init_from, meta, config.data_dir)
        if config.init_from not in ("resume", "auto") and not restarted:
            if found:
                raise UserError(f"out_dir={config.out_dir} holds a run already: --resume continues "
                                "it, or choose another --out_dir, or delete that folder")
            return None
        if not found and config.init_from != "resume":
            return None
        state = checkpoint.load(config.out_dir)
        check_resume(state, config, meta)
        return state

    def save(self, best=False):
        """Every rank holds the same state but what zero1 shards; rank 0 writes it."""
        optimizers = self.zero1.gather() if self.zero1 else [o.state_dict() for o in self.optimizers]
        if self.ranks.rank == 0:
            checkpoint.save(self.config.out_dir, dict(
                model=self.model.state_dict(), model_config=asdict(self.model.config),
                optimizers=optimizers, autocast=[self.device.type, str(self.dtype).split(".")[1]],
                scaler=self.scaler.state_dict(), config=asdict(self.config), meta=self.meta,
                iter=self.iter, stage=self.stage, tokens=self.tokens, flops=self.flops,
                train_s=self.clock.read(), best=self.best, bad=int(self.bad), evaluated=self.evaluated,
                grown_at=self.grown_at, grow_at=self.grow_at, pace=self.pace,
                metrics_bytes=self.log.metrics_bytes()), self.config.keep_checkpoints, best)

    def wrap(self):
        """Compile the model and wrap it in DDP: at the start, and again after every growth."""
        compiler.compile_model(self.model, self.compile)
        self.parallel = self.model
        if self.ranks.several:
            ids = [self.device.index] if self.device.type == "cuda" else None
            with warnings.catch_warnings():  # the new name came after torch 2.11
                warnings.simplefilter("ignore", FutureWarning)
                self.parallel = DDP(self.model, device_ids=ids, broadcast_buffers=False,
                                    gradient_as_bucket_view=True)
        self.compiling = self.compile_ahead()
        self.flops_per_token = self.model.flops_per_token(self.head_fraction())

    def head_fraction(self):
        return self.config.mask_frac if self.config.model == "bert" else 1.0

    def compile_ahead(self):
        """Start making the graphs of the next growth, once a machine; the process, or None."""
        c = self.config
        wanted = c.compile_ahead == "on" or c.compile_ahead == "auto" and self.device.type == "cpu"
        if self.stage == len(c.stages) or self.compile != "block" or not wanted or self.ranks.local:
            return None
        stage = c.stages[self.stage]
        grown = {k: v for k, v in stage.items() if k in GROWABLE}
        if stage.get("operator", c.operator) != "msg":
            return None  # no mask: another graph
        return ahead.start(c, sizes_of(self.model.config), grown, self.vocab_size, self.device,
                           self.dtype)

    def shard(self):
        """The sharing-out of optimizer state, at the start and after every growth; or None."""
        return Zero1(self.ranks, self.optimizers) if self.config.zero1 and self.ranks.several else None

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to_device(self, data):
        return {k: v.to(self.device, non_blocking=v.is_pinned()) for k, v in data.items()}

    def pinned(self, data):
        return {k: v.pin_memory() for k, v in data.items()} if self.device.type == "cuda" else data

    def fetch(self, it):
        """The batch of iteration `it`, made in the background; None past the end."""
        return self.feeder.submit(lambda: self.pinned(self.loader.batch(it))) \
            if it < self.config.max_iters else None

    @torch.no_grad()
    def evaluate(self):
        """Validation scores over all ranks. Eager: worth no compilation, and never any recompile."""
        with self.clock.paused(), torch.compiler.set_stance("force_eager"), self.autocast():
            self.model.eval()
            sums = {}
            for data in self.loader.eval_batches():
                data = self.to_device(self.pinned(data))
                out = self.model(**data, return_logits=self.config.model == "bert")
                for name, pair in scores(*out, data).items():
                    pair = torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in pair])
                    sums[name] = sums.get(name, 0) + pair
            self.model.train()
            names = sorted(sums)
            total = self.ranks.sum(torch.stack([sums[n].cpu() for n in names]))
            return {n: (s / c).item() for n, (s, c) in zip(names, total)}

    # -------------------------------------------------------------------------

    def train(self):
        self.clock = Clock(self.train_s)
        last = self.config.max_iters
        self.feeder = ThreadPoolExecutor(1)
        batch = self.fetch(self.iter)
        while True:
            self.grow_if_due()
            due = self.iter % self.config.eval_interval == 0 or self.iter == last
            if due and self.evaluated != self.iter:  # a checkpoint is taken right after
                self.evaluate_and_save()
            if self.iter >= last or self.stopping():
                break
            self.move_mask()
            started, graphs = time.perf_counter(), compiler.graphs()
            data, batch = batch.result(), self.fetch(self.iter + 1)
            loss, norm = self.step(data)
            self.iter += 1
            # the training step ends here; everything that follows is just diagnostics
            self.tokens += self.config.batch_tokens
            self.flops += self.flops_per_token * self.config.batch_tokens
            if compiler.graphs() > graphs:
                self.note("compile", graphs=compiler.graphs() - graphs,
                          first_step_s=time.perf_counter() - started)
            self.log_step(loss, norm)
        self.feeder.shutdown()
        self.log.close()
        self.parallel = None  # DDP, before the process group that it talks through
        self.ranks.close()

    def step(self, batch):
        """One step of training on this rank's rows. Returns the loss and gradient norm, 0-D."""
        c = self.config
        scale = learning_rate(c, self.iter, self.last_growth())
        for o in self.optimizers:
            for g in o.param_groups:
                g["lr"] = g["peak_lr"] * scale
        torch.manual_seed(hash((c.seed, self.iter, self.ranks.rank)))  # dropout, and nothing else
        total = torch.zeros((), device=self.device)
        rounds = self.loader.accumulation
        for i in range(rounds):
            rows = slice(i * c.micro_batch, (i + 1) * c.micro_batch)
            data = self.to_device({k: v[rows] for k, v in batch.items()})
            if self.ranks.several:  # gradients are averaged once, in the last round
                self.parallel.require_backward_grad_sync = i == rounds - 1
            with self.autocast():
                loss = self.parallel(**data, return_logits=False)[1] / rounds
            self.scaler.scale(loss).backward()
            total += loss.detach()
        for o in self.optimizers:
            self.scaler.unscale_(o)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), c.grad_clip or math.inf)
        self.update(~torch.isfinite(norm))
        return total, norm

    def update(self, bad):
        """Step the optimizers, but not on gradients that are infinite or NaN (`bad`, 0-D bool)."""
        self.bad_run = (self.bad_run + 1) * bad
        self.bad = self.bad + bad
        if self.zero1:
            self.zero1.drop_gradients()
        with self.newborn_rules(bad):
            for o in self.optimizers:
                if self.scaler.is_enabled():
                    self.scaler.step(o)
                elif isinstance(o, torch.optim.AdamW):
                    o.found_inf = bad.float()  # fused AdamW skips on the device, without a sync
                    o.step()
                elif not bad:
                    o.step()
        for o in self.optimizers:
            o.zero_grad(set_to_none=True)
        self.scaler.update()
        if self.zero1:
            self.zero1.share()

    def newborn_rules(self, bad):
        """What the settings want done to newborn coordinates around this step."""
        c = self.config
        if not self.stage or not (c.rewarm_newborn_iters or c.muon_old_block == "separate"):
            return contextlib.nullcontext()
        stage = c.stages[self.stage - 1]
        share = min(1.0, (self.iter - self.last_growth() + 1) / max(1, c.rewarm_newborn_iters))
        separate = c.muon_old_block == "separate" and self.model.masks.c is not None and not bad
        if share == 1 and not separate:
            return contextlib.nullcontext()
        corners = newborn.old_corners(self.model, c.sizes()[self.stage - 1], c.depth_of(stage))
        return newborn.gently(self.optimizers, corners, share, separate)

    # -------------------------------------------------------------------------

    def grow_if_due(self):
        """Grow, and everything anew that hangs on the model: optimizer, graphs, DDP."""
        c = self.config
        if self.stage == len(c.stages) or \
                self.iter not in (self.grow_at, c.stages[self.stage]["at"]):
            return
        stage, before = c.stages[self.stage], self.evaluate()
        sizes = {k: v for k, v in stage.items() if k in GROWABLE}
        with self.clock.paused():
            self.save()  # should growing fail, nothing is lost
        times = [time.perf_counter()]
        ahead.finish(self.compiling)
        times.append(time.perf_counter())
        torch.manual_seed(hash((c.seed, self.iter)))  # the same new weights on all ranks
        self.parallel = None
        if set(sizes) != {"n_layer"}:
            compiler.forget_graphs()  # their shapes will not come back; new layers reuse a graph
        try:
            operator, _ = OPERATORS[stage.get("operator", c.operator)]
            self.model, self.optimizers = operator(
                self.model, self.optimizers, **sizes, init=stage.get("init", c.init),
                depth=c.depth_of(stage))
            if stage.get("moments", c.moments) == "reset":
                for o in self.optimizers:
                    o.state.clear()
        except (RuntimeError, MemoryError) as e:
            if not isinstance(e, (torch.OutOfMemoryError, MemoryError)) and "memory" not in str(e):
                raise
            raise UserError(out_of_memory(c, self.stage, self.vocab_size, e)) from None
        times.append(time.perf_counter())
        self.stage += 1
        self.zero1 = self.shard()
        self.wrap()
        times.append(time.perf_counter())
        wait_s, grow_s, wrap_s = (b - a for a, b in zip(times, times[1:]))
        self.grown_at, self.grow_at, self.pace = self.iter, None, None
        after = self.evaluate()
        self.note("grow", val_loss_before=before["val_loss"], val_loss_after=after["val_loss"],
                  val_loss=after["val_loss"],
                  wait_s=wait_s, grow_s=grow_s, wrap_s=wrap_s, params=self.model.num_params(),
                  mask=0.0)
        self.log.say(f"iter {self.iter}: grown to {describe(sizes_of(self.model.config))}, "
                     f"{self.model.num_params():,} parameters; val loss {before['val_loss']:.4f} "
                     f"-> {after['val_loss']:.4f}, {times[-1] - times[0]:.2f} s")

    def move_mask(self):
        """c = (k + 1) / ramp_iters in the k-th iteration of a ramp; at 1 the masks are gone."""
        if self.model.masks.c is None:
            return
        stage = self.config.stages[self.stage - 1]
        value = (self.iter - self.last_growth() + 1) / max(1, self.config.ramp_of(stage))
        set_mask(self.model, min(1.0, value))
        if value >= 1:
            self.note("ramp_end")

    def evaluate_and_save(self):
        result, self.evaluated = self.evaluate(), self.iter
        self.note("eval", **result)
        self.log.say(f"iter {self.iter}: val loss {result['val_loss']:.4f}, " + "".join(
            f"{k} {v:.4f}, " for k, v in result.items() if k != "val_loss") +
            f"{self.tokens / 1e6:.1f}M tokens, {self.clock.read():.0f} s of training")
        with self.clock.paused():
            if best := result["val_loss"] < self.best:
                self.best = result["val_loss"]
            self.weigh_growth(result["val_loss"])
            self.save(best)

    def last_growth(self):
        """The iteration of the last growth, or None."""
        at = self.config.stages[self.stage - 1]["at"] if self.stage else None
        return at if self.grown_at is None else self.grown_at

    def weigh_growth(self, loss):
        """
        grow_when="rate": after an evaluation, decide whether to grow now rather than at `at`: when
        the loss per second since the evaluation before falls below that of the next stage's sizes
        at this loss. That is the stage's `rate`, measured by plan.py; without one it is guessed that
        a step of the next sizes takes off as much loss as one of the present sizes did at first,
        and costs as much more time as it has more FLOPs. Rank 0 decides for all, and the decision
        goes into the checkpoint taken right after. pace: [iteration, loss, seconds, first rate].
        """
        c = self.config
        if c.grow_when != "rate" or self.stage == len(c.stages) or self.model.masks.c is not None \
                or self.iter <= c.warmup_iters or self.iter == self.last_growth():
            return
        now, due = self.clock.read(), False
        if self.pace is None:
            self.pace = [self.iter, loss, now, None]
            return
        it, had, then, first = self.pace
        rate = (had - loss) / max(now - then, 1e-9)
        first = rate if first is None else first
        points = sorted(c.stages[self.stage].get("rate", []))
        if points:
            following = float(np.interp(loss, *zip(*points)))
        else:
            with torch.device("meta"):
                bigger = type(self.model)(replace(self.model.config, **c.sizes()[self.stage + 1]))
            share = self.head_fraction()
            following = first * self.model.flops_per_token(share) / bigger.flops_per_token(share)
        due = self.ranks.any(self.ranks.rank == 0 and rate < following)
        self.pace = [self.iter, loss, now, first]
        self.note("rate", rate=rate, next_rate=following)
        if due:
            self.grow_at = self.iter + 1
            self.log.say(f"iter {self.iter}: {rate:.3g} loss a second, {following:.3g} expected of "
                         f"the next stage: growing")

    def log_step(self, loss, norm):
        if self.iter % self.config.log_interval:
            self.log.progress()
            return
        loss = (self.ranks.sum(loss.clone()) / self.ranks.world).item()
        now, tokens = self.clock.read(), self.tokens
        before, had = getattr(self, "last_log", (self.train_s, tokens - self.config.batch_tokens))
        self.last_log = now, tokens
        speed = (tokens - had) / max(now - before, 1e-9)
        peak = self.config.peak_flops or next(
            (v for k, v in PEAK_FLOPS.items() if self.device.type == "cuda" and
             k in torch.cuda.get_device_name(self.device)), 0)
        mfu = speed * self.flops_per_token / (peak * self.ranks.world) if peak else None
        self.bad = int(self.bad)
        self.note("step", loss=loss, grad_norm=norm.item(), lr=self.optimizers[-1].param_groups[0]["lr"],
                  tok_s=speed, mfu=mfu, skipped=self.bad or None)
        self.log.progress(loss=f"{loss:.3f}", tok_s=f"{speed:,.0f}")
        if int(self.bad_run) >= self.config.max_bad_steps:
            raise UserError(f"loss was infinite or NaN in the last {int(self.bad_run)} steps: lower "
                            f"learning_rate; the last good checkpoint is "
                            f"{os.path.join(self.config.out_dir, checkpoint.LATEST)}")

    def note(self, event, **values):
        """A line of metrics.jsonl: where the run is, and `values`."""
        mask = self.model.masks.c
        self.log.event(event, **{**dict(
            iter=self.iter, tokens=self.tokens, flops=self.flops, train_s=round(self.clock.read(), 4),
            mask=1.0 if mask is None else round(mask.item(), 6)),
            **sizes_of(self.model.config), **values})

    def stopping(self):
        """Asked to stop by a signal? All ranks agree; the state is saved; a second signal kills."""
        if not self.ranks.any(self.stop is not None):
            return False
        with self.clock.paused():
            self.save()
        self.log.say(f"stopped at iteration {self.iter}; continue with: python train.py "
                     f"{' '.join(a for a in sys.argv[1:] if a != '--resume')} --resume")
        return True

    def on_signal(self, number, frame):
        self.stop = number
        signal.signal(number, signal.SIG_DFL)


# what a resumed run may change, because it says nothing about the steps already taken
FREE = {"out_dir", "init_from", "max_iters", "micro_batch", "eval_interval", "eval_seqs",
        "log_interval", "keep_checkpoints", "device", "dtype", "compile", "peak_flops",
        "max_bad_steps", "data_dir", "zero1", "compile_ahead", "tensorboard", "wandb"}


def check_resume(state, config, meta):
    """Say what changed since the checkpoint; refuse what would make it another run."""
    if {k: meta.get(k) for k in ("tokenizer", "vocab_size")} != \
            {k: state["meta"].get(k) for k in ("tokenizer", "vocab_size")}:
        raise UserError(f"data_dir={config.data_dir}: made with tokenizer {meta['tokenizer']} "
                        f"({meta['vocab_size']} ids), but the checkpoint was trained with "
                        f"{state['meta']['tokenizer']} ({state['meta']['vocab_size']} ids)")
    if config.max_iters < state["iter"]:
        raise UserError(f"max_iters={config.max_iters}: the checkpoint is at iteration "
                        f"{state['iter']} already; raise max_iters")
    done = state["stage"]
    for f in fields(TrainConfig):
        old, new = state["config"].get(f.name, f.default), getattr(config, f.name)
        if old == new or f.name == "init_from":
            continue
        later = f.name == "stages" and old[:done] == new[:done] and \
            all(s["at"] >= state["iter"] for s in new[done:])
        if f.name not in FREE and not later:
            raise UserError(f"{f.name}={new!r}: the checkpoint was trained with {old!r}; resume "
                            "with that, or start anew in another out_dir")
        if int(os.environ.get("RANK", 0)) == 0:
            print(f"resuming with {f.name}={new!r}, which was {old!r}")


@exits_cleanly
def main():
    config = from_args(sys.argv[1:])
    trainer = Trainer(config)
    for s in (signal.SIGINT, signal.SIGTERM):
        signal.signal(s, trainer.on_signal)
    trainer.train()


if __name__ == "__main__":
    main()
