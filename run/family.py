"""
A family: a run that leaves a finished model of each size it grows through. The run itself is the trunk.
A branch starts from the trunk's checkpoint before a growth and finishes that size by learning rate decay.
It is an ordinary run, in a folder inside the trunk's. The trunk's end is the largest model.
"""
import contextlib
import os
import statistics
from dataclasses import asdict, dataclass, replace

from base.disk import remove, write_json, written
from base.errors import UserError
from base.reading import need, read_json
from base.words import count, human, table
from run.checkpoint import checkpoint
from run.optim import REWARM_MAY_CHANGE
from run.packed import unpacked
from run.runlog import read_metrics
from run.settings import TrainConfig, from_dict, known_settings
from run.trace import HOUSE

RESULTS = os.path.join(HOUSE, "results", "family")  # runs from scratch to compare with


@dataclass
class Member:
    """A size of the family. Iterations: born, the trunk reaches it; at, its decay starts; end, its last.
    stage: the number of growths before it."""
    name: str
    out_dir: str
    sizes: dict
    stage: int
    born: int
    at: int
    end: int

    def is_finished(self):
        """Is there a checkpoint of its last iteration, and evaluated? A signal may stop a run in between."""
        path = checkpoint.path_at(self.out_dir, self.end)
        with contextlib.suppress(OSError):  # a damaged checkpoint
            return os.path.exists(path) and checkpoint.glance(path).get("evaluated") == self.end
        return False


def members(config):
    """The members of a trunk's family, from small to large; [] if it finishes no smaller size."""
    found, born = [], 0
    last = dict(at=config.max_iters, finish_iters=0)
    for n, (sizes, stage) in enumerate(zip(config.sizes(), [*config.stages, last])):
        if config.finish_of(stage) or stage is last:
            found.append(Member("{n_layer}x{n_embd}".format(**sizes), config.out_dir, sizes, n, born,
                                stage["at"], stage["at"] + config.finish_of(stage)))
            born = stage["at"]
    names = [m.name for m in found]
    for m in found:
        if names.count(m.name) > 1:
            m.name += "x{n_inner}x{n_head}".format(**m.sizes)
    for m in found[:-1]:
        old = os.path.join(config.out_dir, f"stage_{m.stage + 1}")  # the name in runs before 2026-12
        m.out_dir = old if os.path.isdir(old) else os.path.join(config.out_dir, m.name)
    return found if len(found) > 1 else []


def branch_settings(member):
    """The settings in which the branch that finishes a member differs from its trunk."""
    return dict(out_dir=member.out_dir, schedule="wsd", decay_iters=member.end - member.at,
                finish_stages=0, family=TrainConfig.family)


def due(trunk):
    """
    The branches to run now, in order, as TrainConfigs. Leaves out those that are finished, those that
    another process trains, and those with no trunk checkpoint yet.
    """
    family = members(trunk)
    if not family or trunk.family == "end" and not family[-1].is_finished():
        return []
    return [branch(trunk, m) for m in family[:-1]
            if not m.is_finished() and not is_busy(m.out_dir) and has_start(trunk, m)]


def has_start(trunk, member):
    """Is there a checkpoint to finish the member from?"""
    return checkpoint.exists(member.out_dir) or os.path.exists(checkpoint.path_at(trunk.out_dir, member.at))


def branch(trunk, member):
    start = path = checkpoint.path_at(trunk.out_dir, member.at)
    if checkpoint.exists(member.out_dir):
        start, path = "resume", (checkpoint.numbered(member.out_dir) or [path])[0]
    else:  # perhaps killed before its first checkpoint
        for log in ("metrics.jsonl", "log.txt"):
            remove(os.path.join(member.out_dir, log))
    then = {}  # the trunk may have warmed up again since, with other rates
    with contextlib.suppress(OSError):  # a damaged checkpoint: the run will say so
        had = known_settings(checkpoint.glance(path)["config"])
        then = {k: had[k] for k in {*REWARM_MAY_CHANGE, "stages"} & had.keys()}
    values = {**asdict(trunk), **then, **branch_settings(member), "init_from": start, "rewarm_iters": 0}
    return from_dict({**values, "max_iters": member.end, "stages": values["stages"][:member.stage]})


def is_busy(out_dir):
    """Is another process training in the folder?"""
    try:
        if os.path.isdir(out_dir):
            checkpoint.make_out_dir(out_dir).close()
    except UserError:
        return True
    return False


def next_run(trunk):
    """The config of the family's next run, or None if all are done."""
    family, branches = members(trunk), due(trunk)
    if branches:
        return branches[0]
    return replace(trunk, init_from="resume") if family and not family[-1].is_finished() else None


# -----------------------------------------------------------------------------
# its costs and losses

def read_config(folder):
    """The TrainConfig of the run in a folder; None if there is none that this version can read."""
    with contextlib.suppress(UserError):
        return from_dict({**known_settings(read_json(os.path.join(folder, "config.json"))), "out_dir": folder})


def read_trunk(folder):
    """The config of the trunk in a family's folder; None if it is no family."""
    trunk = read_config(folder)
    return trunk if trunk and members(trunk) else None


def member_at(path):
    """The folder of the member that a path names, RUN/8x64 or RUN/stage_1; or None. It may be the trunk's."""
    folder, name = os.path.split(os.path.normpath(path))
    trunk = read_trunk(folder)
    return next((m.out_dir for m in (members(trunk) if trunk else ())
                 if name in (m.name, f"stage_{m.stage + 1}")), None)


def models(path):
    """[(name, folder)] of the finished members in a family's folder; [("", path)] if there are none."""
    trunk = read_trunk(path)
    found = [(m.name, m.out_dir) for m in (members(trunk) if trunk else ()) if m.is_finished()]
    return found or [("", path)]


def costs(trunk, vocab_size):
    """
    The calculated cost of each member, as dicts of params, flops_per_token, iters (at each stage's size),
    flops, seen (tokens since the start) and alone (FLOPs from scratch, on as many tokens as the smallest
    member sees). A member's share is its decay and the trunk since the previous member's decay started.
    """
    models, family = trunk.models(vocab_size), members(trunk)
    each = [m.flops_per_token(trunk.head_fraction()) for m in models]
    ends, rows = [*(s["at"] for s in trunk.stages), trunk.max_iters], []
    for m in family:
        iters = [max(0, min(end, m.at) - max(start, m.born)) for start, end in zip([0, *ends], ends)]
        iters[m.stage] += m.end - m.at
        rows.append(dict(
            params=models[m.stage].num_params(), flops_per_token=each[m.stage], iters=iters,
            flops=sum(i * f for i, f in zip(iters, each)) * trunk.batch_tokens,
            seen=m.end * trunk.batch_tokens, alone=family[0].end * each[m.stage] * trunk.batch_tokens))
    return rows


def last_evaluation(out_dir, iteration):
    """The last evaluation at `iteration` in a run's metrics, or None. Damaged lines are skipped."""
    if not os.path.exists(os.path.join(out_dir, "metrics.jsonl")):
        return None
    return next((e for e in reversed(read_metrics(out_dir, [])) if e["event"] == "eval" and e["iter"] == iteration and
                 isinstance(e["val_loss"], float)), None)


def from_scratch(trunk, member, tokens):
    """
    {seed: (out_dir, last evaluation)} of runs in RESULTS that trained a member's size from scratch, on
    data of the same name and about as many tokens. Of several recipes, the one with most seeds (up to three),
    then the lowest mean loss. Leaves out seeds that recipes were chosen on. {} if there are none.
    """
    recipes = {}
    for out_dir, below, files in os.walk(unpacked(RESULTS)):
        below[:] = [name for name in below if name not in ("family", "probes", "controls")]  # lab.frontier's
        run = read_config(out_dir) if {"config.json", "metrics.jsonl"} <= set(files) else None
        if run is None:
            continue
        if run.stages:
            below.clear()  # members of a family are not from scratch
        elif run.sizes() == [member.sizes] and run.schedule != "constant" and task(run) == task(trunk) and \
                abs(run.max_iters * run.batch_tokens / tokens - 1) < 0.05 and \
                (end := last_evaluation(out_dir, run.max_iters)):
            recipe = repr(replace(run, seed=0, out_dir="", init_from=""))
            recipes.setdefault(recipe, {})[run.seed] = out_dir, end
    best = min(recipes.values(), default={}, key=lambda runs: (
        -min(3, len(runs)), statistics.mean(end["val_loss"] for _, end in runs.values())))
    fresh = {seed for seed in best if sum(seed in runs for runs in recipes.values()) == 1}
    return {seed: run for seed, run in best.items() if seed in fresh or not fresh}


def task(config):
    """What two runs must share for their losses to be compared."""
    return config.model, config.block_size, config.eval_seqs, os.path.basename(os.path.normpath(config.data_dir))


def other_text(resolved):
    """The text of the runs in RESULTS, if a run with `resolved` had another; else None."""
    path = os.path.join(RESULTS, "data.json")
    if "fingerprint" not in resolved or not os.path.exists(path):
        return None
    theirs = read_json(path, fingerprint=str, source=str)
    return theirs["source"] if theirs["fingerprint"] != resolved["fingerprint"] else None


def summary(trunk):
    """Losses and costs of a family, a dict for family.json. Unfinished members have no loss yet."""
    where = os.path.join(trunk.out_dir, "config.json")
    resolved = read_json(where, resolved=dict)["resolved"]
    vocab_size, = need(where, resolved, vocab_size=int)
    rows, family = costs(trunk, vocab_size), members(trunk)
    for row, m in zip(rows, family):
        ends = from_scratch(trunk, m, family[0].end * trunk.batch_tokens)
        losses = [end["val_loss"] for _, end in ends.values()]
        row.update(name=m.name, out_dir=m.out_dir, sizes=m.sizes,
                   val_loss=(last_evaluation(m.out_dir, m.end) or {}).get("val_loss"), scratch=dict(
                       seeds=sorted(ends), mean=statistics.mean(losses),
                       std=statistics.stdev(losses) if len(losses) > 1 else None,
                       flops=statistics.mean(end["flops"] for _, end in ends.values())) if ends else None)
    total, alone = (sum(row[k] for row in rows) for k in ("flops", "alone"))
    other = other_text(resolved) if any(row["scratch"] for row in rows) else None
    return dict(members=rows, flops=total, alone=alone, saved=1 - total / alone, other_text=other)


def in_words(found):
    """summary() as a table and one line of text."""
    rows = []
    for r in found["members"]:
        loss, s = "not finished" if r["val_loss"] is None else f"{r['val_loss']:.4f}", r["scratch"]
        alone = ["not measured", human(r["alone"])]
        if s:
            spread = "" if s["std"] is None else f" \u00b1 {s['std']:.4f}"
            alone = [f"{s['mean']:.4f}{spread}, {count(len(s['seeds']), 'seed')}", human(s["flops"])]
        rows.append([r["name"], f"{r['params']:,}", loss, human(r["flops"]), *alone])
    lines = table(["model", "parameters", "validation loss", "this run's FLOPs for it", "from scratch: loss ± std",
                   "FLOPs"], rows)
    if found["other_text"]:
        lines += f"\n\nThe runs from scratch saw another text, the {found['other_text']}: losses do not compare."
    return f"{lines}\n\nthe family cost {human(found['flops'], 'FLOP')}, trained one by one it costs " \
        f"{human(found['alone'], 'FLOP')}: {found['saved']:.0%} saved"


def conclude(config):
    """After a run: print and save the table of its family, as trunk or as member."""
    above = os.path.dirname(os.path.abspath(config.out_dir))
    trunk = read_trunk(above if member_at(config.out_dir) else config.out_dir)
    if trunk and int(os.environ.get("RANK", 0)) == 0:
        found = summary(trunk)
        text = in_words(found)
        write_json(os.path.join(trunk.out_dir, "family.json"), found)
        with written(os.path.join(trunk.out_dir, "family.md")) as f:
            f.write(text + "\n")
        print(text)
        if gone := [m for m in members(trunk)[:-1] if not m.is_finished() and not has_start(trunk, m)]:
            raise UserError(
                f"{', '.join(m.name for m in gone)}: not finished: {trunk.out_dir} has no checkpoint of iteration "
                f"{', '.join(str(m.at) for m in gone)} to start from: they stay where a run has finish_stages "
                "from its start on")
