"""
The single list of every setting of train.py, and what may be in it: whatever is wrong ends in one
line that names it. How settings are given is in run/arguments.py.
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
STAGE_KEYS = ("at", *GROWABLE, "ramp_iters", "operator", "micro_batch", "finish_iters")


@dataclass
class TrainConfig:
    # where things are
    out_dir: str = "out"            # checkpoints, logs and metrics of this run
    data_dir: str = "data/pystdlib"  # folder with train.bin, val.bin, meta.json
    init_from: str = "scratch"      # "scratch"; "resume"; "auto": resume if there is a checkpoint;
                                    # a Hugging Face folder or OWNER/NAME of a GPT-2, BERT, Llama or
                                    # Qwen3, which then says what the sizes are; or
                                    # RUN/ckpt_0003000.pt: branch off from there, with all that this
                                    # run had set
    # model: where the run starts (GPT-2 small and Bert-base by default)
    model: str = "gpt"              # "gpt", "bert" or "llama" (Mistral, Qwen2 and Qwen3 too)
    block_size: int = 256           # tokens in a sequence
    vocab_size: int = 0             # 0: the dataset's, rounded up to a multiple of 64
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 192
    n_inner: int = 768
    head_dim: int = 32              # width of a head, a constant of the run
    dropout: float = 0.0
    zero_proj: bool = False         # the blocks' output projections start at 0
    bias: bool = True               # in GPT and BERT; Llama has none
    gelu: str = ""                  # "tanh", "exact", or "": tanh for GPT, exact for BERT
    doc_mask: bool = False          # documents packed in a row know nothing of each other, and each
                                    # counts its own positions (not BERT, whose rows hold but one)
    norm_eps: float = 1e-5          # of the norms in GPT and Llama; BERT's is 1e-12
    # Llama alone
    kv_group: int = 1               # query heads that share keys and values, a constant of the run:
                                    # n_kv_head is n_head / kv_group, and grows with it
    rope_theta: float = 10_000.0    # base of the rotary positions' wavelengths
    rope_scaling: str = ""          # how they were stretched for longer texts: "linear:FACTOR" or
                                    # "llama3:FACTOR,LOW,HIGH,CONTEXT", as in Llama 3.1 and later
    tie: bool = True                # the output head is the token embedding
    qk_norm: bool = False           # RMSNorm on each head's queries and keys, as in Qwen3
    qkv_bias: bool = False          # biases of queries, keys and values, as in Qwen2
    # growth: [dict(at=600, n_inner=768), dict(at=900, n_layer=6, n_embd=192, ramp_iters=50), ...]
    stages: list = field(default_factory=list)
    finish_stages: int = 0          # a family: iterations of the decay that finishes each size the
                                    # run grows from, in a folder like out_dir/2x64; 0: none. A stage's
                                    # finish_iters are of the size before it ("wsd" or "constant")
    family: str = "now"             # with finish_stages, when: "now", before the run grows; or "end",
                                    # after it, unless that is done elsewhere meanwhile
    ramp_iters: int = 100           # iterations over which a growth's mask rises from 0 to 1
    residual_warmup_iters: int = 0  # from scratch: iterations over which all layers' gates rise from 0 to 1
    stagger: bool = False           # layers' gates, there and in growths, rise one after another,
                                    # the lowest first; else together
    operator: str = "msg"           # how to grow: "msg", or one of its rivals in run/operators.py
    # optimization
    max_iters: int = 2000
    batch_tokens: int = 4096        # tokens an iteration, over all processes and micro-batches
    sampling: str = "epochs"        # "epochs": every token once, then all again in another order; or
                                    # "random": windows from anywhere, as runs before 2026-12 had it.
                                    # BERT's pairs of segments are always drawn at random
    micro_batch: int = 16           # sequences a process runs at once; a stage may have its own
    optimizer: str = "adamw"        # "adamw", or "muon": blocks' matrices Muon, the rest AdamW
    learning_rate: float = 1e-3     # peak
    muon_learning_rate: float = 0.02  # peak, of the matrices, with optimizer="muon"
    schedule: str = "wsd"           # "wsd" (warmup, stable, decay), "cosine" or "constant"
    warmup_iters: int = 50
    rewarm_iters: int = 0           # to go on from a checkpoint whose rate has decayed: a warmup of so
                                    # many iterations, from the rate it ended with to the peak, and then
                                    # the schedule again, as if the run began there
    decay_frac: float = 0.25        # wsd: share of the run at its end over which the rate decays
    decay_iters: int = 0            # the same in iterations, instead of decay_frac
    min_lr_frac: float = 0.0        # the rate at the end, as a share of the peak
    weight_decay: float = 0.1       # on matrices only
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0          # largest gradient norm, 0 = no clipping
    # BERT
    mask_frac: float = 0.15         # share of a row's tokens that are predicted
    # evaluation and logging
    eval_interval: int = 200        # iterations between evaluations
    save_interval: int = 0          # iterations between checkpoints; 0: one with each evaluation
    eval_seqs: int = 128            # validation sequences an evaluation reads, all of them at most
    log_interval: int = 10          # iterations between lines in metrics.jsonl
    sample_interval: int = 0        # evaluations between texts that the model writes, to TensorBoard
                                    # or wandb, else to the log; 0: none. Not BERT
    keep_checkpoints: int = 2       # the last K, besides the best one
    tensorboard: bool = False       # metrics for TensorBoard too, in out_dir
    wandb: str = ""                 # a Weights & Biases project to send metrics to, "" = none
    # machine
    seed: int = 1337
    device: str = "auto"            # "auto", "cpu", "cuda", "cuda:1", "mps"
    dtype: str = "auto"             # "auto", "float32", "bfloat16", "float16"
    compile: str = "auto"           # "block", "model", "none", or "auto": block where it works
    shard: str = "none"             # several processes: "none", the whole model in each (DDP), or
                                    # "fsdp", shards of it, its gradients and optimizer state
    peak_flops: float = 0.0         # of the device, for mfu; 0: known for common GPUs
    max_bad_steps: int = 5          # stop after so many steps in a row with loss inf or NaN

    def model_config(self, vocab_size, eot=0):
        """The model's config at the start of the run; eot: the id that ends a document, for doc_mask."""
        _, cls = MODELS[self.model]
        chosen = {f.name: getattr(self, f.name) for f in fields(cls) if f.name != "eot"}
        chosen.update(vocab_size=vocab_size, gelu=self.gelu or cls().gelu,
                      bias=self.bias and cls().bias, eot=eot if self.doc_mask else None)
        if self.model == "bert":
            del chosen["norm_eps"]  # its own
        return cls(**chosen)

    def sizes(self):
        """[sizes at the start, after the first stage, ...], each a dict of the four sizes."""
        sizes = [sizes_of(self.model_config(1))]
        for stage in self.stages:
            sizes.append({**sizes[-1], **{k: v for k, v in stage.items() if k in GROWABLE}})
        return sizes

    def models(self, vocab_size):
        """A model of each of these sizes on the meta device, where it takes no memory."""
        cls, _ = MODELS[self.model]
        with torch.device("meta"):
            return [cls(replace(self.model_config(vocab_size), **sizes)) for sizes in self.sizes()]

    def finish_of(self, stage):
        """Iterations of the decay that finishes the size from before a stage, or 0."""
        return self.finish_stages and stage.get("finish_iters", self.finish_stages)

    def micro_batch_of(self, stage):
        """Sequences a process runs at once after `stage` growths."""
        given = [s["micro_batch"] for s in self.stages[:stage] if "micro_batch" in s]
        return given[-1] if given else self.micro_batch

    def decay_span(self, since=0):
        """Iterations at the run's end over which "wsd" brings the rate down; since: where a rewarm began."""
        return self.decay_iters or self.decay_frac * (self.max_iters - since)

    def is_branch(self):
        """Does this run go on from another one's checkpoint?"""
        return self.init_from.endswith(".pt")

    def goes_on_from(self):
        """The folder or the checkpoint that a run which goes on has its state from."""
        return self.init_from if self.is_branch() else self.out_dir

    def head_fraction(self):
        """The share of a sequence's positions that the vocabulary head is computed on."""
        return self.mask_frac if self.model == "bert" else 1.0

    def has_ramp(self, stage):
        return stage.get("operator", self.operator) == "msg"  # others have no mask

    def ramp_of(self, stage):
        return stage.get("ramp_iters", self.ramp_iters) if self.has_ramp(stage) else 0

    def whole(self, stage):
        """The stage with all it means said in itself."""
        own = dict(ramp_iters=self.ramp_of(stage)) if self.has_ramp(stage) else {}
        return {**{k: v for k, v in stage.items() if k != "ramp_iters"}, **own,
                "operator": stage.get("operator", self.operator)}


PATHS = ("out_dir", "data_dir", "init_from")
LLAMA_ALONE = ("kv_group", "rope_theta", "rope_scaling", "tie", "qk_norm", "qkv_bias")
# what means nothing in some runs: (where it means something; is that so in a config?)
MEANS = dict(
    **dict.fromkeys(LLAMA_ALONE, ("model='llama'", lambda c: c.model == "llama")),
    **dict.fromkeys(("gelu", "bias"), ("model='gpt' or 'bert'", lambda c: c.model != "llama")),
    **dict.fromkeys(("doc_mask", "norm_eps", "sampling"), ("model='gpt' or 'llama'", lambda c: c.model != "bert")),
    mask_frac=("model='bert'", lambda c: c.model == "bert"),
    stagger=("stages that add layers by masks, or residual_warmup_iters", lambda c: c.residual_warmup_iters or any(
        "n_layer" in s and c.has_ramp(s) for s in c.stages)),
    finish_stages=("stages", lambda c: c.stages), family=("finish_stages", lambda c: c.finish_stages),
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
    """A setting's value as its kind has it: 1e6 is a whole number too, and 1 a number. UserError else."""
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
    if kind is str and "\0" in value:
        raise UserError(f"{key}={value!r}: holds a NUL, which no name can")
    return os.path.expanduser(value) if key in PATHS else value


def known_settings(had):
    """
    Of what a run's config.json or checkpoint holds, perhaps an older version's, the settings that there
    still are; check_resume() says which others it had.
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
    """A value as it is shown, however long somebody made it."""
    try:
        text = repr(value) if not isinstance(value, int) or abs(value) < 10**40 else "(too long)"
    except Exception:  # a config's own class may fail even here
        text = type(value).__name__
    return text if len(text) < 60 else text[:57] + "..."


# what others call it: what it is here
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
    if config.residual_warmup_iters and config.init_from not in OWN_STARTS and not config.is_branch():
        raise UserError(f"residual_warmup_iters={config.residual_warmup_iters}: init_from={config.init_from} is trained "
                        "already, and its layers would be hidden: leave it out")
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
    """{what is not at its default and means nothing in `config`: (its value, where it means something)}"""
    found = {k: (getattr(config, k), where) for k, (where, means) in MEANS.items()
             if getattr(config, k) != getattr(TrainConfig, k) and not means(config)}
    for i, s in enumerate(config.stages):
        for key, where, means in (("ramp_iters", "operator='msg'", config.has_ramp(s)),
                                  ("finish_iters", "finish_stages", config.finish_stages)):
            if s.get(key) and not means:
                found[f"stages[{i}] {key}"] = s[key], where
    return found


def refuse(config, given, alone=None):
    """
    UserError for what was given and means nothing, in a run by the settings `alone` neither. Of a base
    config, or of a run before, anything may be left over.
    """
    for name, (value, where) in idle(config).items():
        if name.partition("[")[0] in given and (alone is None or name in idle(from_dict(alone))):
            raise UserError(f"{name}={value!r}: means something with {where} only: leave it out")


def plain(config):
    """`config` without what means nothing in it, so that all of it may be given."""
    stages = [{k: v for k, v in s.items() if f"stages[{i}] {k}" not in idle(config)}
              for i, s in enumerate(config.stages)]
    usual = {k: getattr(TrainConfig, k) for k in idle(config) if k in MEANS}
    return replace(config, **{**usual, "stages": stages})


def check_ramps(config):
    """UserError if the last ramp outlasts the run: its model would stay masked."""
    end = max((s["at"] + config.ramp_of(s) for s in config.stages), default=0)
    if end > config.max_iters:
        raise UserError(f"max_iters={config.max_iters}: the ramp of stages[{len(config.stages) - 1}] ends at "
                        f"iteration {end}, and would leave the model masked: raise max_iters to that, or, "
                        "where it has not begun, lower ramp_iters or grow sooner")


def check_stages(config):
    sizes, free = config.model_config(1), config.residual_warmup_iters
    for i, stage in enumerate(config.stages):
        what = f"stages[{i}]"
        if not isinstance(stage, dict):
            raise UserError(f"{what}={stage!r}: must be dict(at=..., n_embd=..., ...)")
        for key, value in stage.items():
            if key not in STAGE_KEYS:
                raise UserError(f"{what}: " + unknown(key, STAGE_KEYS,
                                                      f"{', '.join(STAGE_KEYS)} are known"))
            allowed = CHOICES.get(key)
            if allowed and value not in allowed:
                raise UserError(f"{what}: {key}={value!r}: must be one of {', '.join(allowed)}")
            high = AT_MOST.get(key, 2**53)
            if not allowed and (type(value) is not int or not 0 <= value <= high):
                raise UserError(f"{what}: {key}={shortened(value)}: must be a whole number, 0 or more"
                                + f" and at most {high}" * (key in AT_MOST))
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
    """A decay can only start where the learning rate is at its peak, and stages are where they were."""
    steady = config.max_iters - (config.decay_span() if config.schedule == "wsd" else 0)
    if config.schedule == "cosine" or not config.warmup_iters <= at <= steady:
        raise UserError(f"finish_stages={config.finish_stages}: {what} grows at {at}, when the learning "
                        "rate is not at its peak, from where a decay starts: grow after warmup_iters "
                        "and before the run's own decay, with schedule='wsd' or 'constant'")
