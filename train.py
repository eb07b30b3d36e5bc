"""
Train a Transformer that grows while it trains.

    python train.py config/pystdlib_msg.py --max_iters=500
    torchrun --standalone --nproc_per_node=4 train.py config/gpt2_msg.py

run/settings.py lists every setting. Batch, mask and learning rate depend on the seed and the
iteration alone. So a run that was killed anywhere continues exactly, on any number of processes.
Dropout also depends on the rank and micro_batch: with dropout, keep their numbers as they were.
"""
import contextlib
import gc
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch

from base.errors import UserError, exits_cleanly, first_line, is_out_of_memory
from base.weights import Weights
from data.dataset import fingerprint, read_meta
from data.loader import LOADERS, padded, vocab_needed
from data.tokenizer import first_id
from grow import describe, set_mask
from model import GROWABLE, MODELS
from run import compiler, family, hf
from run.arguments import from_args
from run.checkpoint import checkpoint
from run.monitor import Monitor
from run.operators import OPERATORS
from run.optim import lr_scale, make_optimizers
from run.parallel import shard
from run.parallel.ranks import Ranks, Stopped, machine
from run.precision import common_dtype
from run.resume import saved_state
from run.settings import OWN_STARTS


class Run:
    """A run: a model on its way to its largest size, its optimizers, its counters."""
    # steps, growths, tokens and FLOPs so far; steps skipped; where the learning rate schedule began anew
    PROGRESS = dict(iter=0, stage=0, tokens=0, flops=0.0, bad=0, rewarm=None)

    def __init__(self, config):
        self.ranks, self.lock = Ranks(config.device), None
        # all ranks take rank 0's settings: other machines may not see the folder they come from
        self.config = config = shard.from_rank_0(self.ranks, lambda: config)
        self.device = self.ranks.device
        self.meta = self.read_meta()
        if config.init_from not in OWN_STARTS and not config.is_branch():
            hf.check_tokenizer(config.init_from, self.meta, config.data_dir)
            self.meta["ids"] = hf.token_ids(config.init_from)
        self.loaded = shard.from_rank_0(self.ranks, self.load) or {}  # the checkpoint that it continues from
        if "ids" in self.loaded.get("meta", {}):
            self.meta["ids"] = self.loaded["meta"]["ids"]
        self.mesh = shard.make_mesh(self.ranks, config.shard)
        self.dtype = common_dtype(config.dtype, self.ranks, self.loaded)
        self.compile, self.warning = compiler.choose(config.compile, self.device)
        self.vocab_size = self.vocabulary()
        self.loader = LOADERS[config.model](config, self.meta, self.vocab_size, self.ranks.rank,
                                            self.ranks.world)
        self.feeder = ThreadPoolExecutor(1)
        self.feeder.submit(int)  # starts its thread, which hears signals while this one waits
        with checkpoint.believed(config.goes_on_from() if self.loaded else None):
            self.begin()
        self.bad_run = torch.zeros((), device=self.device)  # non-finite steps in a row
        self.wrap()

    def read_meta(self):
        """The dataset's meta.json and fingerprint. UserError on all ranks if they differ anywhere."""
        folder, meta, error = self.config.data_dir, None, None
        try:
            meta = read_meta(folder)
            meta["fingerprint"] = fingerprint(folder, meta)
        except UserError as e:
            error = e
        if shard.from_rank_0(self.ranks, lambda: meta) != meta:
            error = error or UserError(f"data_dir={folder}: holds other data on the machine of rank "
                                       f"{self.ranks.rank} than on that of rank 0: copy it from there")
        self.ranks.agree(error)
        return meta

    def begin(self):
        """Make model, optimizers and counters: as loaded, or new."""
        c = self.config
        with self.fits(self.loaded.get("stage", 0)):
            self.make_model()
        self.optimizers = make_optimizers(c, self.model, self.dtype, self.compile != "none")
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        if self.loaded:
            for o, state in zip(self.optimizers, self.loaded.pop("optimizers")):
                decays = [g["weight_decay"] for g in o.param_groups]
                shard.load_optimizer(o, state, self.ranks, self.mesh)
                for g, decay in zip(o.param_groups, decays):
                    g["weight_decay"] = decay  # a branch may have its own
            self.ranks.agree(self.ranks.failed)
            if self.loaded["scaler"]:  # empty after another number format
                self.scaler.load_state_dict(self.loaded["scaler"])
        for k, v in self.PROGRESS.items():
            setattr(self, k, self.loaded.get(k, v))

    def load(self):
        """On rank 0: lock out_dir against other writers. Returns the saved state, or None."""
        self.lock = checkpoint.make_out_dir(self.config.out_dir)
        return saved_state(self.config, self.meta, self.ranks.restarted, self.ranks.ask)

    def resolved(self):
        """What "auto" and 0 came to on this machine and data, for the record."""
        return dict(machine=machine(self.device), device=str(self.device),
                    dtype=str(self.dtype).split(".")[1], compile=self.compile,
                    processes=self.ranks.world, vocab_size=self.vocab_size,
                    threads=torch.get_num_threads(), torch=torch.__version__,
                    data_dir=os.path.abspath(self.config.data_dir), fingerprint=self.meta["fingerprint"])

    def vocabulary(self):
        """vocab_size as set, or the dataset's, padded to a multiple of 64."""
        c, needed = self.config, vocab_needed(self.config.model, self.meta)
        if c.vocab_size and c.vocab_size < needed:
            raise UserError(f"vocab_size={c.vocab_size}: the dataset {c.data_dir} has {needed} token ids; " + (
                f"give {c.init_from} as many, for example by transformers' resize_token_embeddings"
                if c.init_from not in OWN_STARTS and not c.is_branch() else "leave vocab_size out to use that"))
        return c.vocab_size or padded(needed)

    def make_model(self):
        """The model: from a checkpoint, from a Hugging Face folder, or initialised from the seed."""
        c = self.config
        torch.manual_seed(c.seed)
        cls, config_cls = MODELS[c.model]
        with torch.device("meta"):
            self.model = cls(config_cls.from_saved({**self.loaded["model_config"], "dropout": c.dropout})
                             if self.loaded else c.model_config(self.vocab_size, first_id(self.meta)))
        values = self.loaded.pop("model") if self.loaded else None
        if not self.loaded and c.init_from not in OWN_STARTS:
            values = shard.from_rank_0(self.ranks, lambda: hf.state_from_hf(
                self.model, Weights(c.init_from), c.init_from))
        shard.materialize(self.model, self.ranks, self.mesh, values)

    def wrap(self):
        """Compile the model, then wrap it in DDP or FSDP: at the start and after every growth."""
        compiler.compile_model(self.model, self.compile)
        self.parallel = shard.wrap(self.model, self.ranks, self.mesh, self.dtype)
        self.flops_per_token = self.model.flops_per_token(self.config.head_fraction())

    # -- a checkpoint

    def state_dict(self):
        """All that is needed to continue exactly; tensors may be shards. Monitor adds to it."""
        progress = {k: getattr(self, k) for k in self.PROGRESS} | dict(bad=int(self.bad))
        return dict(
            model=self.model.state_dict(), model_config=asdict(self.model.config),
            optimizers=[o.state_dict() for o in self.optimizers],
            autocast=[self.device.type, str(self.dtype).split(".")[1]],
            scaler=self.scaler.state_dict(), config=asdict(self.config), meta=self.meta,
            **progress)

    def is_finite(self):
        """Are all weights finite?"""
        norms = torch._foreach_norm([p.detach() for p in self.model.parameters()])
        return bool(torch.isfinite(shard.gather(torch.stack(norms))).all())

    # -- a batch

    def fetch(self, it):
        """A future of the batch of iteration `it`, made in the background; None past the end."""
        return self.feeder.submit(lambda: self.pinned(self.loader.batch(it))) \
            if it < self.config.max_iters else None

    def pinned(self, data):
        return {k: v.pin_memory() for k, v in data.items()} if self.device.type == "cuda" else data

    def to_device(self, data):
        return {k: v.to(self.device, non_blocking=v.is_pinned()) for k, v in data.items()}

    # -- a step

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def step(self, batch):
        """
        One training step on this rank's rows. Returns loss and gradient norm, both 0-D. The loss is the
        mean over the targets of the whole batch. (BERT's rows differ in how many they have.)
        """
        c = self.config
        for o in self.optimizers:
            for g in o.param_groups:
                g["lr"] = c.after(self.stage, o.rate) * lr_scale(c, self.iter, self.rewarm, o.rate)
        torch.manual_seed(hash((c.seed, self.iter, self.ranks.rank)))  # only dropout draws
        total = torch.zeros((), device=self.device)
        micro_batch = c.after(self.stage, "micro_batch")
        grad_accum_steps = self.loader.grad_accum_steps(micro_batch)
        count = (batch["targets"] >= 0).sum().item() / grad_accum_steps  # a micro-batch's, on average
        n = self.ranks.sum(torch.full((), count, device=self.device)) / self.ranks.world
        for i in range(grad_accum_steps):
            rows = slice(i * micro_batch, (i + 1) * micro_batch)
            data = self.to_device({k: v[rows] for k, v in batch.items()})
            if self.ranks.several:  # DDP averages gradients once a step, FSDP every micro-batch
                self.parallel.require_backward_grad_sync = i == grad_accum_steps - 1
            with self.autocast():
                loss = self.parallel(**data, return_logits=False, n_targets=n)[1] / grad_accum_steps
            self.scaler.scale(loss).backward()
            total += loss.detach()
        for o in self.optimizers:
            self.scaler.unscale_(o)
        norm = shard.gather(torch.nn.utils.clip_grad_norm_(self.model.parameters(),
                                                         c.grad_clip or math.inf))
        self.update(~torch.isfinite(norm))
        self.iter += 1
        self.tokens += c.batch_tokens
        self.flops += self.flops_per_token * c.batch_tokens
        return total, norm

    def update(self, bad):
        """
        Step the optimizers, unless gradients are infinite or NaN (`bad`, 0-D bool). The optimizers
        read `bad` on the device, so the CPU need not wait for it.
        """
        self.bad_run = (self.bad_run + 1) * bad
        self.bad = self.bad + bad
        for o in self.optimizers:
            o.found_inf = bad.float()
            o.step()
            o.zero_grad(set_to_none=True)
        self.scaler.update()

    # -- a growth

    def next_stage(self):
        """The settings of the next stage, or None."""
        return self.config.stages[self.stage] if self.stage < len(self.config.stages) else None

    def growth_is_due(self):
        stage = self.next_stage()
        return stage is not None and self.iter == stage["at"]

    def grow(self):
        """Grow model and optimizers to the next stage, then compile and wrap the model again."""
        c, stage = self.config, self.next_stage()
        sizes = {k: v for k, v in stage.items() if k in GROWABLE}
        torch.manual_seed(hash((c.seed, self.iter)))  # the same new weights on all ranks
        self.parallel = None
        if set(sizes) != {"n_layer"}:
            compiler.forget_graphs()  # widths changed. (By block, new layers reuse the old graphs.)
        operator, _ = OPERATORS[stage.get("operator", c.operator)]
        with self.fits(self.stage + 1):
            self.model, self.optimizers = operator(self.model, self.optimizers, **sizes)
        self.stage += 1
        self.wrap()

    def move_mask(self):
        """
        Set the mask to (k + 1) / ramp_iters in iteration k of a ramp, counted from 0. At 1 the masks
        are removed. Returns whether the ramp has just ended.
        """
        if self.model.masks.c is None:
            return False
        stage = self.config.stages[self.stage - 1]
        value = (self.iter - stage["at"] + 1) / max(1, self.config.ramp_of(stage))
        set_mask(self.model, min(1.0, value))
        return value >= 1

    @contextlib.contextmanager
    def fits(self, stage):
        """Around making the model of a stage: if memory runs out, say how much was needed."""
        try:
            yield
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
            c, sizes = self.config, self.config.sizes()[stage]
            n = c.models(self.vocab_size)[stage].num_params()
            states = 4 if c.optimizer == "adamw" else 3  # weight, gradient, moments; float32
            raise UserError(
                (f"stages[{stage - 1}] ({describe(sizes)})" if stage else describe(sizes)) +
                f" does not fit in memory ({first_line(e)}): its {n:,} parameters, gradients and "
                f"optimizer state take {4 * states * n / 2**30:.1f} GiB and activations come on "
                "top; lower its sizes or micro_batch" + (
                    ", then --resume: the checkpoint from before this growth is safe"
                    if stage else "")) from None

    def close(self):
        self.feeder.shutdown()
        self.parallel = None  # DDP, before the process group that it talks through
        self.ranks.close()
        if self.lock:
            self.lock.close()


def train(run, monitor):
    """
    Train, growing where the stages say, until the last iteration, a signal to stop, or a size that is
    to be finished in a branch before it grows.
    """
    try:
        loop(run, monitor)
    except Stopped:  # in an evaluation: the resumed run repeats it
        monitor.stop_if_asked()
    monitor.finish()


def loop(run, monitor):
    c = run.config
    batch = run.fetch(run.iter)
    while True:
        growing = run.growth_is_due()
        if run.iter % c.eval_interval == 0 or run.iter == c.max_iters or growing:
            monitor.evaluate_and_log()
        monitor.save(anyway=growing)  # before growing: if the growth fails, nothing is lost
        if run.iter >= c.max_iters or monitor.stop_if_asked() or growing and monitor.branch_is_due():
            break
        if growing:
            monitor.grow()
        if run.move_mask():
            monitor.note("ramp_end")
        started, graphs = time.perf_counter(), compiler.graphs()
        data, batch = batch.result(), run.fetch(run.iter + 1)
        loss, norm = run.step(data)
        # the training step ends here; everything that follows is just diagnostics
        if compiler.graphs() > graphs:
            monitor.note("compile", graphs=compiler.graphs() - graphs,
                       first_step_s=time.perf_counter() - started)
        monitor.log_step(loss, norm)


def start_to_end(config, asked, before=None):
    """
    Do the run of `config`. asked: the config that was asked for: `config`, or with finish_stages the
    trunk of its family. before: the Monitor of the run before this one. Returns the config of the run
    that comes next, or None, and this one's Monitor.
    """
    run = Run(config)
    with checkpoint.believed(config.goes_on_from() if run.loaded else None):
        monitor = Monitor(run, asked, before)
    try:
        with compiler.undisturbed():
            train(run, monitor)
    finally:
        monitor.close()  # ends the progress line, so that an error gets a line of its own
        sys.stdout.flush()
        sys.stdout.lost = None  # output that could not be shown is in log.txt: no reason to fail
    following = None if monitor.stopped else shard.from_rank_0(run.ranks, lambda: family.next_run(asked))
    run.close()
    return following, monitor


@exits_cleanly
def main():
    config = asked = from_args(sys.argv[1:])
    monitor = None
    while config is not None:
        config, monitor = start_to_end(config, asked, monitor)
        compiler.forget_graphs()  # they hold the previous run's model
        gc.collect()
    if not monitor.stopped:
        family.conclude(asked)


if __name__ == "__main__":
    main()
