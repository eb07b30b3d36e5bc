"""
Seconds per training step for every size of a study on this machine, with and without a mask. All are
timed in turn, in rounds, so that a disturbance affects all of them. A study's seconds are its
iterations at these speeds, whatever else ran during its training.
"""
import os
import statistics

import torch

from base.disk import write_json
from base.errors import UserError
from base.reading import read_json
from base.words import count, table
from lab.costs import make_step, seconds_of, vocab_of
from run import compiler
from run.parallel.ranks import Ranks, machine

ROUNDS = 9
SECONDS = 0.5  # per size and round


def key(sizes, before=None):
    """A size's name in speeds.json. before: the sizes it grew from, for a step with a mask."""
    name = "{n_layer}L_{n_embd}_{n_head}h_{n_inner}".format_map
    return name(sizes) + (" from " + name(before) if before else "")


def sizes_of_study(study):
    """{key: (sizes, before)} of all that a study trains."""
    found = {}
    runs = [(n, None) for n in study.sizes] + [(n, study.budgets_of(n)[0]) for n in study.grown]
    runs = [study.costs(*run) for run in runs] + [f.costs() for f in study.families.values()]
    for rows in runs:
        for before, row in zip([None, *rows], rows):
            found[key(row["sizes"])] = row["sizes"], None
            if row["ramp"]:
                found[key(row["sizes"], before["sizes"])] = row["sizes"], before["sizes"]
    return found


def whole_step(config, sizes, before, device):
    """The compiled Step of such a model, on random tokens."""
    step = make_step(config, vocab_of(config), sizes, before, device)
    compiler.compile_model(step.model, compiler.choose(config.compile, device)[0])
    return step


def measure_speeds(study):
    """Measure, write speeds.json to the study's folder and return it as a table."""
    config = study.config(study.target)
    device = Ranks(config.device).device
    steps = {k: whole_step(config, *v, device) for k, v in sizes_of_study(study).items()}
    taken = {k: [] for k in steps}
    for step in steps.values():
        step()  # compiles
    each = {k: max(1, round(SECONDS / seconds_of(step, device))) for k, step in steps.items()}
    for _ in range(ROUNDS):
        for k, step in steps.items():
            taken[k].append(seconds_of(lambda: [step() for _ in range(each[k])], device) / each[k])
    step_s = {k: [statistics.median(v), min(v), max(v)] for k, v in taken.items()}
    os.makedirs(study.out, exist_ok=True)
    where = f"{machine(device)}, {count(torch.get_num_threads(), 'thread')}, torch {torch.__version__}"
    write_json(os.path.join(study.out, "speeds.json"), dict(machine=where, rounds=ROUNDS, step_s=step_s))
    return table(["size", "ms a step", "least", "most"],
                 [[k, *(f"{1e3 * s:.1f}" for s in v)] for k, v in step_s.items()]) + f"\n\n{where}"


def read_speeds(study):
    """The contents of speeds.json, or None."""
    path = os.path.join(study.out, "speeds.json")
    return read_json(path, machine=str, step_s=dict) if os.path.exists(path) else None


def seconds_of_run(rows, speeds):
    """Seconds of a run with these stage costs, without growing itself and compiling."""
    try:
        return sum((r["iters"] - r["ramp"]) * speeds["step_s"][key(r["sizes"])][0] + (
            r["ramp"] and r["ramp"] * speeds["step_s"][key(r["sizes"], before["sizes"])][0])
            for before, r in zip([None, *rows], rows))
    except KeyError as e:
        raise UserError(f"speeds.json has no {e}: measure again with --speeds") from None
