"""Which checkpoint a run continues from, if any, and what a resumed run may change."""
import contextlib
import math
import os
from dataclasses import fields

from base.errors import UserError, say_once
from base.reading import need, read_json
from data.tokenizer import tokenizer_of
from model import GROWABLE
from run import family
from run.checkpoint import checkpoint
from run.checkpoint.sharded import alone
from run.optim import REWARM_MAY_CHANGE, lr_scale
from run.settings import RATES, TrainConfig, check_ramps, known_settings, plain

# what a resumed run may change, because it does not affect the steps already taken
RESUME_MAY_CHANGE = {
    "out_dir", "init_from", "max_iters", "micro_batch", "eval_interval", "save_interval", "eval_seqs", "log_interval",
    "keep_checkpoints", "device", "dtype", "compile", "peak_flops", "max_bad_steps", "data_dir", "shard", "tensorboard",
    "wandb", "sample_interval", "finish_stages", "family", "rewarm_iters"}
# what applies to growths: it may change for those to come
OF_STAGES = {"stages", "ramp_iters", "operator"}
# what a branch may also change: settings of the steps to come
BRANCH_MAY_CHANGE = {*REWARM_MAY_CHANGE, "weight_decay", "grad_clip", "ramp_iters", "operator", "dropout"}


def saved_state(config, meta, restarted=False, ask=alone):
    """
    The checkpoint that this run continues from, its own or another run's; or None. restarted: the
    launcher restarted it on its own; ask: see checkpoint.load(). Raises UserError.
    """
    found = checkpoint.exists(config.out_dir)
    if not found and config.init_from != "resume" and (left := checkpoint.remains(config.out_dir)):
        raise UserError(f"out_dir={config.out_dir} holds a run without its checkpoints ({left}): "
                        "choose another --out_dir, or delete that folder")
    if not found and not is_ours(os.path.join(config.out_dir, "config.json")):
        raise UserError(f"out_dir={config.out_dir} holds the config.json of something else: choose another --out_dir")
    if config.init_from not in ("resume", "auto") and not (restarted and found):
        if found:
            raise UserError(f"out_dir={config.out_dir} holds a run already: --resume continues it, "
                            "or choose another --out_dir, or delete that folder")
        for member in family.members(config)[:-1]:
            if checkpoint.exists(member.out_dir):
                raise UserError(f"out_dir={config.out_dir} holds {member.out_dir} of an earlier family: choose "
                                "another --out_dir, or delete that folder")
        return branch_point(config, meta, ask) if config.is_branch() else None
    if not found and config.init_from != "resume":
        return None
    state = checkpoint.load(config.out_dir, values=False, ask=ask)
    with checkpoint.believed(config.out_dir):
        began = need(config.out_dir, state, config=dict)[0].get("init_from")
        if not {config.init_from, began} & {"resume", "auto"} and config.init_from != began:  # another run
            raise UserError(f"out_dir={config.out_dir} holds a run from init_from={began}: choose another --out_dir, "
                            "or delete that folder")
        check_resume(state, config, meta)
    return state


def is_ours(path):
    """Did a run write this config.json? Also True where none can be read."""
    with contextlib.suppress(UserError):
        return not os.path.exists(path) or {"out_dir", "data_dir"} <= read_json(path).keys()
    return True


def branch_point(config, meta, ask):
    """Another run's checkpoint: model, optimizers and place in the data, without its history."""
    state = checkpoint.load(config.init_from, values=False, ask=ask)
    with checkpoint.believed(config.init_from):
        check_resume(state, config, meta, branches=True)
    own = ("metrics_bytes", "best", "evaluated", "saved")
    return {k: v for k, v in state.items() if k not in own}


def check_resume(state, config, meta, branches=False):
    """
    Report what changed since the checkpoint, and set state["rewarm"] if the learning rate warms up again.
    UserError for what a resumed run may not change, or one that branches off here.
    """
    need(config.goes_on_from(), state, config=dict, meta=dict, iter=int, stage=int, tokens=int, flops=(int, float))
    if {k: meta.get(k) for k in ("tokenizer", "vocab_size")} != \
            {k: state["meta"].get(k) for k in ("tokenizer", "vocab_size")}:
        names = [tokenizer_of(m)[0] for m in (meta, state["meta"])]
        raise UserError(f"data_dir={config.data_dir}: made with tokenizer {names[0]} "
                        f"({meta['vocab_size']} ids), but the checkpoint was trained with {names[1]} "
                        f"({state['meta']['vocab_size']} ids)" + " of its own" * (names[0] == names[1]))
    for key in ("eot", "sep"):
        if meta.get(key) != state["meta"].get(key):
            raise UserError(f"data_dir={config.data_dir}: its meta.json has {key}={meta.get(key)}, but the "
                            f"checkpoint was trained with {state['meta'].get(key)}: put that back, or start "
                            "anew in another out_dir")
    if meta["fingerprint"] != state["meta"].get("fingerprint", meta["fingerprint"]):
        raise UserError(f"data_dir={config.data_dir}: holds other data than the checkpoint was trained "
                        "on: give the folder of that with --data_dir, or start anew in another out_dir")
    if config.max_iters < state["iter"]:
        raise UserError(f"max_iters={config.max_iters}: the checkpoint is at iteration "
                        f"{state['iter']} already; raise max_iters")
    done, saved, had = state["stage"], state["config"], known_settings(state["config"])
    gone = sorted((k, v) for k, v in saved.items() if k not in had and v)
    if state["iter"] < (gates := saved.get("residual_warmup_iters", 0)):
        raise UserError(f"residual_warmup_iters={gates}: the checkpoint is within that warmup, and there is no such "
                        "setting any more: finish the warmup with commit 1339b1c")
    if had.get("stages") != saved.get("stages"):
        gone += [(f"stages[{i}] {k}", v) for i, s in enumerate(saved["stages"]) for k, v in s.items()
                 if k not in had["stages"][i]]
    if gone:
        say_once(f"going on without {', '.join(f'{k}={v!r}' for k, v in gone)}: there is no such setting any more")
    was = TrainConfig(**had)
    free = RESUME_MAY_CHANGE | (BRANCH_MAY_CHANGE if branches else set())
    due = done + any(s["at"] == state["iter"] for s in config.stages[done:])  # a growth may come next
    rewarm = rewarmed(state, was, config, due, branches)
    anew = rewarm != state.get("rewarm")
    if anew:
        say_once(f"warming up again from iteration {rewarm[0]} on, over {rewarm[2]} iterations")
        state["rewarm"], free = rewarm, free | REWARM_MAY_CHANGE
    elif rewarm and config.rewarm_iters:
        say_once(f"rewarm_iters={config.rewarm_iters}: the new warmup began at iteration {rewarm[0]} already")
    if any(getattr(was, key) != getattr(config, key) for key in ("max_iters", *OF_STAGES)):
        check_ramps(config)  # if not, older runs with longer ramps may end masked, as they were to
    check_members(config)
    for key in ("micro_batch", *RATES):
        if getattr(was, key) != getattr(config, key) and any(key in s for s in config.stages[:due]):
            raise UserError(f"{key}={getattr(config, key)}: a stage has its own: change that, in --stages")
    rates = () if anew or config.is_branch() else RATES  # a rewarm or a branch may change them
    before, now = plain(was), plain(config)  # settings with no effect may differ
    for f in fields(TrainConfig):
        old, new = getattr(before, f.name), getattr(now, f.name)
        if old == new or f.name in ("init_from", "rewarm_iters"):
            continue
        later = past(was, done, rates) == past(config, done, rates) and (
            all(s["at"] >= state["iter"] for s in new[done:]) if f.name == "stages" else
            f.name in OF_STAGES)
        if f.name not in free and not later:
            raise UserError(f"{f.name}={new!r}: the checkpoint was trained with {old!r}; resume "
                            "with that, or start anew in another out_dir")
        if not config.is_branch():  # a branch's command shows it
            say_once(f"resuming with {f.name}={new!r}, which was {old!r}")
    planned = due if was.stages[:due] == config.stages[:due] else done
    for key in RATES:
        old, new = was.after(planned, key), config.after(due, key)
        if old != new and state["iter"] and not anew:
            say_once(f"{key} goes from {old:g} to {new:g} at iteration {state['iter']} in one step: "
                     "--rewarm_iters=N warms up to it")


def check_members(config):
    """UserError if a size of the family was finished, or began to be, over another number of iterations."""
    for m in family.members(config)[:-1]:
        had = family.read_config(m.out_dir) if checkpoint.exists(m.out_dir) else None
        if had and had.decay_iters != m.end - m.at:
            raise UserError(f"{m.out_dir}: is finished over {had.decay_iters} iterations, not {m.end - m.at}: set its "
                            f"finish_stages or finish_iters to {had.decay_iters}, or delete that folder")


def past(config, done, rates):
    """The first `done` stages, with only what affects the steps already taken, and these rates."""
    keys = ("at", *GROWABLE, "ramp_iters", "operator", *rates)
    return [{k: v for k, v in config.whole(stage).items() if k in keys} for stage in config.stages[:done]]


def rewarmed(state, was, config, due, branches):
    """
    Where the learning rate schedule started again (see optim.lr_scale), or None. The run has `config`
    and continues from the checkpoint `state` of a run with `was`; due: its stage at the next step; branches:
    does it branch off here? UserError if the rate would jump, that is, if `config` gives another rate for
    steps already taken.
    """
    it, stage, had = state["iter"], state["stage"], state.get("rewarm")
    changed = [k for k in ("max_iters", "schedule", "decay_iters", "decay_frac", "min_lr_frac")
               if getattr(was, k) != getattr(config, k)]
    taken = range(it - 1, had[0] - 1 if had else -1, -1) if changed else ()
    jumps = any(lr_scale(was, i, had) != lr_scale(config, i, had) for i in taken)
    last, left = lr_scale(was, it - 1, had) if it else 0.0, config.max_iters - it
    if config.rewarm_iters and (jumps or branches or config.rewarm_iters != was.rewarm_iters):
        for key in ("rewarm_iters", *["decay_iters"] * (config.schedule == "wsd")):
            if getattr(config, key) > left:
                raise UserError(f"{key}={getattr(config, key)}: more than the {left} iterations that are left "
                                f"from iteration {it} on: lower it, or raise max_iters")
        warm = it + config.rewarm_iters
        if early := [s["at"] for s in config.stages[stage:] if config.finish_of(s) and s["at"] < warm]:
            raise UserError(f"finish_stages={config.finish_stages}: a stage grows at {early[0]}, within the new "
                            f"warmup, which ends at {warm}: grow later, or lower rewarm_iters")
        starts = {}  # each rate goes on from where it was
        for key in RATES[:2 if config.optimizer == "muon" else 1]:
            share, peak = lr_scale(was, it - 1, had, key) if it else 0.0, config.after(due, key)
            starts[key] = share * was.after(stage, key) / peak if peak else 1.0
        if not jumps and {*starts.values()} == {1.0}:
            raise UserError(f"rewarm_iters={config.rewarm_iters}: the learning rate is at its peak at iteration "
                            f"{it}, with nothing to warm up to: leave it out")
        return [it, starts, config.rewarm_iters]
    if not jumps:
        return had
    key, decay = changed[0], max(0, math.floor(was.max_iters - was.decay_span(had[0] if had else 0)))
    raise UserError(
        f"{key}={getattr(config, key)!r}: the learning rate would jump from {last:.3g} of its peak to "
        f"{lr_scale(config, it, had):.3g} at iteration {it}, since {key}={getattr(was, key)!r} so far: " + (
            f"branch off there with --decay_iters={left}" if last == 1 and left else
            (f"branch off a checkpoint of iteration {decay} or before, or " if was.schedule == "wsd" else "") +
            "warm up again with --rewarm_iters=N"))
