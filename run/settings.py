"""
The single list of every setting of train.py, and the checks of their values. A bad value ends in
one line that names it. run/arguments.py reads what the user gives.
"""
import difflib
import os
import re
from dataclasses import dataclass, field, fields, replace

import torch

from base.errors import UserError, is_number
from grow import grown_config, sizes_of
from model import GROWABLE, MODELS
from run.operators import OPERATORS, refusal

OWN_STARTS = ("scratch", "resume", "auto")
RATES = ("learning_rate", "muon_learning_rate")
STAGE_KEYS = ("at", *GROWABLE, "ramp_iters", "operator", "micro_batch", "finish_iters", *RATES)


@dataclass
class TrainConfig:
    # where things are
    out_dir: str = "out"            # checkpoints, logs and metrics of this run
    data_dir: str = "data/pystdlib"  # folder with train.bin, val.bin, meta.json
    init_from: str = "scratch"      # "scratch"; "resume"; "auto": resume if there is a checkpoint;
                                    # a Hugging Face folder or hub OWNER/NAME of a GPT-2, BERT, Llama or
                                    # Qwen3, which sets the sizes; or
                                    # RUN/ckpt_0003000.pt: branch off from that checkpoint, with the
                                    # settings of its run
    # model: its sizes at the start of the run
    model: str = "gpt"              # "gpt", "bert" or "llama" (Mistral, Qwen2 and Qwen3 too)
    block_size: int = 256           # tokens in a sequence
    vocab_size: int = 0             # 0: the dataset's, rounded up to a multiple of 64
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 192
    n_inner: int = 768
    head_dim: int = 32              # width of a head, a constant of the run
    dropout: float = 0.0
    bias: bool = True               # in GPT and BERT; Llama has none
    gelu: str = ""                  # "tanh", "exact", or "": tanh for GPT, exact for BERT
    doc_mask: bool = False          # documents packed in a row do not attend to each other, and each
                                    # has positions from 0 (not for BERT: one document a row)
    norm_eps: float = 1e-5          # epsilon of the norms in GPT and Llama; BERT's is 1e-12
    # Llama only
    kv_group: int = 1               # query heads that share keys and values, a constant of the run:
                                    # n_kv_head is n_head / kv_group, and grows with it
    rope_theta: float = 10_000.0    # base of the rotary embeddings' wavelengths
    rope_scaling: str = ""          # their scaling for longer contexts: "linear:FACTOR" or
                                    # "llama3:FACTOR,LOW,HIGH,CONTEXT", as in Llama 3.1 and later
    tie: bool = True                # the output head shares the token embedding's weights
    qk_norm: bool = False           # RMSNorm on each head's queries and keys, as in Qwen3
    qkv_bias: bool = False          # biases on queries, keys and values, as in Qwen2
    # growth: [dict(at=600, n_inner=768), dict(at=900, n_layer=6, n_embd=192, ramp_iters=50), ...]
    stages: list = field(default_factory=list)
    finish_stages: int = 0          # iterations of learning rate decay that finish each size before it
                                    # grows, in a folder like out_dir/2x64; 0: none. A stage's finish_iters
                                    # is for the size before it. Needs schedule "wsd" or "constant"
    family: str = "now"             # when finish_stages trains them: "now", before the run grows; or
                                    # "end", after the run, if not done elsewhere by then
    ramp_iters: int = 100           # iterations over which the mask of a growth rises from 0 to 1
    operator: str = "msg"           # how to grow: "msg", or another operator of run/operators.py
    # optimization
    max_iters: int = 2000
    batch_tokens: int = 4096        # tokens per iteration, over all processes and micro-batches
    sampling: str = "epochs"        # "epochs": every token once, then again in another order; or
                                    # "random": windows at random places, as in runs before 2026-12.
                                    # BERT always draws its pairs of segments at random
    micro_batch: int = 16           # sequences a process runs at once; a stage may set its own
    optimizer: str = "adamw"        # "adamw", or "muon": Muon for the blocks' matrices, AdamW for the rest
    learning_rate: float = 1e-3     # peak; a stage may set its own, from its growth on
    muon_learning_rate: float = 0.02  # peak for the matrices, with optimizer="muon"; a stage may too
    schedule: str = "wsd"           # "wsd" (warmup, stable, decay), "cosine" or "constant"
    warmup_iters: int = 50
    rewarm_iters: int = 0           # to continue from a checkpoint whose learning rate has decayed: a
                                    # warmup of so many iterations, from that rate to the peak; then the
                                    # schedule starts again, as if the run began there
    decay_frac: float = 0.25        # wsd: share of the run, at its end, over which the rate decays
    decay_iters: int = 0            # the same in iterations; replaces decay_frac
    min_lr_frac: float = 0.0        # learning rate at the end, as a share of the peak
    weight_decay: float = 0.1       # on matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0          # largest gradient norm; 0: no clipping
    # BERT
    mask_frac: float = 0.15         # share of a row's tokens that are predicted
    # evaluation and logging
    eval_interval: int = 200        # iterations between evaluations
    save_interval: int = 0          # iterations between checkpoints; 0: one with each evaluation
    eval_seqs: int = 128            # validation sequences per evaluation, at most all of them
    log_interval: int = 10          # iterations between lines in metrics.jsonl
    sample_interval: int = 0        # evaluations between generated samples, which go to TensorBoard or
                                    # wandb, else to the log; 0: none. Not for BERT
    keep_checkpoints: int = 2       # keep the last K, and the best one
    tensorboard: bool = False       # also write metrics for TensorBoard, in out_dir
    wandb: str = ""                 # Weights & Biases project to send metrics to; "": none
    # machine
    seed: int = 1337
    device: str = "auto"            # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"             # "auto", "float32", "bfloat16", "float16"
    compile: str = "auto"           # "block", "model", "none", or "auto": block where it works
    shard: str = "none"             # several processes: "none": each has the whole model (DDP); "fsdp":
                                    # each has a shard of model, gradients and optimizer state
    peak_flops: float = 0.0         # peak FLOP/s of the device, for mfu; 0: look up common GPUs
    max_bad_steps: int = 5          # stop after this many steps in a row with loss inf or NaN

    def model_config(self, vocab_size, eot=0):
        """The model's config at the start of the run. eot: id of the end-of-document token, for doc_mask."""
        _, cls = MODELS[self.model]
        chosen = {f.name: getattr(self, f.name) for f in fields(cls) if f.name != "eot"}
        chosen.update(vocab_size=vocab_size, gelu=self.gelu or cls().gelu,
                      bias=self.bias and cls().bias, eot=eot if self.doc_mask else None)
        if self.model == "bert":
            del chosen["norm_eps"]  # BERT has its own
        return cls(**chosen)

    def sizes(self):
        """[sizes at the start, sizes after the first stage, ...]: dicts of the four sizes."""
        sizes = [sizes_of(self.model_config(1))]
        for stage in self.stages:
            sizes.append({**sizes[-1], **{k: v for k, v in stage.items() if k in GROWABLE}})
        return sizes

    def models(self, vocab_size):
        """A model of each of sizes(), on the meta device, where it takes no memory."""
        cls, _ = MODELS[self.model]
        with torch.device("meta"):
            return [cls(replace(self.model_config(vocab_size), **sizes)) for sizes in self.sizes()]

    def finish_of(self, stage):
        """Iterations of the decay that finishes the size before `stage`; 0 if there is none."""
        return self.finish_stages and stage.get("finish_iters", self.finish_stages)

    def after(self, stage, key):
        """A setting that stages may have of their own (micro_batch, RATES), after `stage` growths."""
        return next((s[key] for s in reversed(self.stages[:stage]) if key in s), getattr(self, key))

    def decay_span(self, since=0):
        """Iterations of the "wsd" decay at the run's end. since: the iteration at which a rewarm began."""
        return self.decay_iters or self.decay_frac * (self.max_iters - since)

    def is_branch(self):
        """Does this run start from another run's checkpoint?"""
        return self.init_from.endswith(".pt")

    def goes_on_from(self):
        """The folder or checkpoint file that a continued run loads its state from."""
        return self.init_from if self.is_branch() else self.out_dir

    def head_fraction(self):
        """The share of a sequence's positions that the output head is computed on."""
        return self.mask_frac if self.model == "bert" else 1.0

    def has_ramp(self, stage):
        return stage.get("operator", self.operator) == "msg"  # other operators have no mask

    def ramp_of(self, stage):
        return stage.get("ramp_iters", self.ramp_iters) if self.has_ramp(stage) else 0

    def whole(self, stage):
        """The stage with its operator and ramp_iters filled in."""
        own = dict(ramp_iters=self.ramp_of(stage)) if self.has_ramp(stage) else {}
        return {**{k: v for k, v in stage.items() if k != "ramp_iters"}, **own,
                "operator": stage.get("operator", self.operator)}


PATHS = ("out_dir", "data_dir", "init_from")
LLAMA_ALONE = ("kv_group", "rope_theta", "rope_scaling", "tie", "qk_norm", "qkv_bias")
# settings with no effect in some runs: (where they have one, does this config count?)
MEANS = dict(
    **dict.fromkeys(LLAMA_ALONE, ("model='llama'", lambda c: c.model == "llama")),
    **dict.fromkeys(("gelu", "bias"), ("model='gpt' or 'bert'", lambda c: c.model != "llama")),
    **dict.fromkeys(("doc_mask", "norm_eps", "sampling"), ("model='gpt' or 'llama'", lambda c: c.model != "bert")),
    mask_frac=("model='bert'", lambda c: c.model == "bert"),
    finish_stages=("stages to finish", lambda c: any(map(c.finish_of, c.stages))),
    family=("finish_stages", lambda c: c.finish_stages),
    operator=("stages that name no operator themselves", lambda c: any("operator" not in s for s in c.stages)),
    ramp_iters=("stages that have operator='msg' and no ramp_iters themselves",
                lambda c: any("ramp_iters" not in s and c.has_ramp(s) for s in c.stages)),
    muon_learning_rate=("optimizer='muon'", lambda c: c.optimizer == "muon"),
    rewarm_iters=("a checkpoint to go on from, by --resume or init_from=RUN/ckpt_ITER.pt",
                  lambda c: c.is_branch() or c.init_from == "resume"),
    decay_frac=("schedule='wsd' without decay_iters", lambda c: c.schedule == "wsd" and not c.decay_iters),
    decay_iters=("schedule='wsd'", lambda c: c.schedule == "wsd"),
    min_lr_frac=("schedule='cosine', or 'wsd' with a decay",
                 lambda c: c.schedule == "cosine" or c.schedule == "wsd" and c.decay_span()))
CHOICES = dict(model=tuple(MODELS), optimizer=("adamw", "muon"),
               operator=tuple(OPERATORS), family=("now", "end"), schedule=("wsd", "cosine", "constant"),
               sampling=("epochs", "random"), gelu=("", "tanh", "exact"), compile=("auto", "block", "model", "none"),
               shard=("none", "fsdp"), dtype=("auto", "float32", "bfloat16", "float16"))
AT_LEAST = dict.fromkeys(("block_size", "n_head", "n_embd", "n_inner", "head_dim", "kv_group",
                          "rope_theta", "max_iters", "batch_tokens", "micro_batch", "eval_interval",
                          "eval_seqs", "log_interval", "keep_checkpoints", "max_bad_steps"), 1)
AT_MOST = dict(n_layer=10_000, dropout=0.999, decay_frac=1, min_lr_frac=1, beta1=0.9999, beta2=0.99999,
               mask_frac=0.9, seed=2**31)


def from_dict(values):
    config = TrainConfig(**{key: typed(key, value) for key, value in values.items()})
    check(config)
    return config


def typed(key, value):
    """The value, converted to its setting's type: 1e6 may be an int, 1 a float. Raises UserError."""
    kinds = {f.name: f.type for f in fields(TrainConfig)}
    if key not in kinds:
        raise UserError(unknown(key, kinds))
    kind = kinds[key]
    if kind in (int, float) and type(value) in (int, float):
        low, high = AT_LEAST.get(key, 0), AT_MOST.get(key)
        if not is_number(value, low, high, kind):
            raise UserError(f"{key}={shortened(value)}: must be at least {low} and " +
                            ("finite" if high is None else f"at most {high}"))
        value = kind(value) if kind is float or value == int(value) else value
    if type(value) is not kind:
        raise UserError(f"{key}={shortened(value)}: must be {plain_name(kind)}")
    if kind is str and ("\0" in value or value != value.encode(errors="ignore").decode()):
        raise UserError(f"{key}={value!r}: must be Unicode text without NUL")
    return os.path.expanduser(value) if key in PATHS else value


def known_settings(had):
    """
    The settings of a run's config.json or checkpoint that still exist; it may be of an older version.
    check_resume() reports the others.
    """
    known = {f.name for f in fields(TrainConfig)}
    had = {"sampling": "random", **{k: v for k, v in had.items() if k in known}}
    if isinstance(had.get("stages"), list) and all(isinstance(s, dict) for s in had["stages"]):
        had["stages"] = [{k: v for k, v in s.items() if k in STAGE_KEYS} for s in had["stages"]]
    return had


def plain_name(kind):
    return {int: "a whole number", float: "a number", bool: "True or False", str: "text",
            list: "a list of dict(at=..., n_embd=..., ...)"}[kind]


def shortened(value):
    """A value as text, cut to 60 characters."""
    try:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "(too long)"
    except Exception:  # the repr() of a config's own class may fail
        text = type(value).__name__
    return text if len(text) < 60 else text[:57] + "..."


# the name elsewhere: our name
OTHER_NAMES = dict(n_kv_head="kv_group, which is n_head / n_kv_head", batch_size="micro_batch",
                   gradient_accumulation_steps="batch_tokens, of a whole iteration",
                   lr="learning_rate", min_lr="min_lr_frac", lr_decay_iters="decay_iters",
                   dataset="data_dir", zero1="shard='fsdp'")


def unknown(key, known, otherwise="python train.py --help lists them all"):
    near = [OTHER_NAMES[key]] if key in OTHER_NAMES else difflib.get_close_matches(str(key), known, 1)
    return f"{shortened(key) if not isinstance(key, str) else key}: no such setting" + \
        (f", did you mean {near[0]}?" if near else f": {otherwise}")


def check(config):
    for key, allowed in CHOICES.items():
        if getattr(config, key) not in allowed:
            raise UserError(f"{key}={getattr(config, key)!r}: must be one of "
                            f"{', '.join(repr(a) for a in allowed)}")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", config.device):
        raise UserError(f"device={config.device}: must be auto, cpu, cuda, cuda:0 ..., or mps")
    try:
        config.model_config(1)
    except ValueError as e:
        raise UserError(e) from None
    if config.batch_tokens % config.block_size:
        raise UserError(f"batch_tokens={config.batch_tokens}: must be a multiple of "
                        f"block_size={config.block_size}, one sequence")
    if config.warmup_iters > config.max_iters:
        raise UserError(f"warmup_iters={config.warmup_iters}: more than max_iters="
                        f"{config.max_iters}, the whole run: lower it too")
    if config.shard == "fsdp" and config.compile == "model":
        raise UserError("compile='model': shard='fsdp' gathers a block at a time, between the graphs: "
                        "use compile='block'")
    if config.sample_interval and (config.model == "bert" or config.shard == "fsdp"):
        raise UserError(f"sample_interval={config.sample_interval}: " + (
            "a bert model fills gaps rather than writes on" if config.model == "bert" else
            "shard='fsdp' leaves no process the whole model to write with") + ": leave it out")
    if config.decay_iters > config.max_iters:
        raise UserError(f"decay_iters={config.decay_iters}: more than max_iters={config.max_iters}")
    check_stages(config)
    refuse(config, ("gelu", "doc_mask", "norm_eps", *LLAMA_ALONE))


def idle(config):
    """{setting that is not at its default but has no effect: (its value, where it has an effect)}"""
    found = {k: (getattr(config, k), where) for k, (where, means) in MEANS.items()
             if getattr(config, k) != getattr(TrainConfig, k) and not means(config)}
    for i, s in enumerate(config.stages):
        for key, where, means in (("ramp_iters", "operator='msg'", config.has_ramp(s)),
                                  ("finish_iters", "finish_stages", config.finish_stages),
                                  ("muon_learning_rate", "optimizer='muon'", config.optimizer == "muon")):
            if s.get(key) and not means:
                found[f"stages[{i}] {key}"] = s[key], where
    return found


def refuse(config, given, alone=None):
    """
    UserError for a setting in `given` that has no effect, neither here nor in a run with the settings
    `alone`. Settings inherited from a base config or an earlier run may be idle.
    """
    for name, (value, where) in idle(config).items():
        if name.partition("[")[0] in given and (alone is None or name in idle(from_dict(alone))):
            raise UserError(f"{name}={value!r}: means something with {where} only: leave it out")


def plain(config):
    """`config` with settings that have no effect back at their defaults."""
    stages = [{k: v for k, v in s.items() if f"stages[{i}] {k}" not in idle(config)}
              for i, s in enumerate(config.stages)]
    usual = {k: getattr(TrainConfig, k) for k in idle(config) if k in MEANS}
    return replace(config, **{**usual, "stages": stages})


def check_ramps(config):
    """UserError if the last ramp ends after the run: the model would stay masked."""
    end = max((s["at"] + config.ramp_of(s) for s in config.stages), default=0)
    if end > config.max_iters:
        raise UserError(f"max_iters={config.max_iters}: the ramp of stages[{len(config.stages) - 1}] ends at "
                        f"iteration {end}, and would leave the model masked: raise max_iters to that, or, "
                        "where it has not begun, lower ramp_iters or grow sooner")


def check_stages(config):
    sizes, free = config.model_config(1), 0
    for i, stage in enumerate(config.stages):
        what = f"stages[{i}]"
        if not isinstance(stage, dict):
            raise UserError(f"{what}={stage!r}: must be dict(at=..., n_embd=..., ...)")
        for key, value in stage.items():
            if key not in STAGE_KEYS:
                raise UserError(f"{what}: " + unknown(key, STAGE_KEYS,
                                                      f"{', '.join(STAGE_KEYS)} are known"))
            if allowed := CHOICES.get(key):
                if value not in allowed:
                    raise UserError(f"{what}: {key}={value!r}: must be one of {', '.join(allowed)}")
            elif key in RATES:
                typed(key, value)
            elif type(value) is not int or not 0 <= value <= AT_MOST.get(key, 2**53):
                raise UserError(f"{what}: {key}={shortened(value)}: must be a whole number, 0 or more"
                                + f" and at most {AT_MOST.get(key)}" * (key in AT_MOST))
            if key == "micro_batch" and value == 0:
                raise UserError(f"{what}: micro_batch=0: must be at least 1")
        if "at" not in stage:
            raise UserError(f"{what}: has no at=ITERATION, when to grow")
        if stage["at"] >= config.max_iters:
            raise UserError(f"{what}: at={stage['at']} is not before max_iters={config.max_iters}")
        if stage["at"] < free:
            raise UserError(f"{what}: at={stage['at']} is before iteration {free}, when the ramp of "
                            "the stage before it ends: grow later, or lower ramp_iters")
        before = sizes
        try:
            sizes = grown_config(sizes, **{k: v for k, v in stage.items() if k in GROWABLE})
        except ValueError as e:
            raise UserError(f"{what}: {e}") from None
        why = refusal(stage.get("operator", config.operator),
                      {k: v for k, v in stage.items() if k in GROWABLE}, before,
                      config.shard == "fsdp")
        if why:
            raise UserError(f"{what}: {why}")
        if config.finish_of(stage):
            check_finish(config, what, stage["at"])
        free = max(stage["at"] + config.ramp_of(stage), stage["at"] + 1)


def check_finish(config, what, at):
    """UserError unless the learning rate is at its peak at iteration `at`, where the decay starts."""
    steady = config.max_iters - (config.decay_span() if config.schedule == "wsd" else 0)
    if config.schedule == "cosine" or not config.warmup_iters <= at <= steady:
        raise UserError(f"finish_stages={config.finish_stages}: {what} grows at {at}, when the learning "
                        "rate is not at its peak, from where a decay starts: grow after warmup_iters "
                        "and before the run's own decay, with schedule='wsd' or 'constant'")
