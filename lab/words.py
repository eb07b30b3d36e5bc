"""
How the commands of lab/ say what they found: reports, times, schedules.
"""
import itertools
import os

from base.disk import write_json, written

SHORT = {"n_embd": "hidden", "n_head": "heads", "n_inner": "FFN", "n_layer": "layers"}


def write_report(folder, text, report):
    """text as report.md, the dict as report.json."""
    with written(os.path.join(folder, "report.md")) as f:
        f.write(text + "\n")
    write_json(os.path.join(folder, "report.json"), report)


def clock(seconds):
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else \
        f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"


def stages_of(path, extras):
    """train.py's stages of a path [(sizes, iteration), ...]; extras: further keys of each."""
    return [dict(at=at, **{k: v for k, v in sizes.items() if v != before[k]}, **extras)
            for (before, _), (sizes, at) in itertools.pairwise(path)]


def schedule_name(path):
    parts = ["{n_layer}L_{n_embd}_{n_head}h_{n_inner}".format(**path[0][0])]
    for stage in stages_of(path, {}):
        grown = " ".join(f"{SHORT[k]} {v}" for k, v in stage.items() if k != "at")
        parts.append(f"at {stage['at']:,} {grown}")
    return ", ".join(parts)
