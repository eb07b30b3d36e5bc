"""
The results of a campaign: time and compute to a loss, intervals over seeds, a table and a picture.
speedrun.py runs the campaign and calls this.
"""
import contextlib
import math

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from base.disk import written
from base.errors import library
from base.words import table as markdown
from run.curves import reaches


def interval(values, level=0.95):
    """(mean, half-width of its t-interval over seeds); the half-width is None for one value."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return mean, None
    t = library("scipy.stats", "scipy").t.ppf((1 + level) / 2, n - 1)
    return mean, float(t * np.std(values, ddof=1) / math.sqrt(n))


def ratio_interval(ratios, level=0.95):
    """(geometric mean, low, high) of ratios; low and high are None for one ratio."""
    mean, half = interval(np.log(ratios), level)
    if half is None:
        return math.exp(mean), None, None
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def compare(runs, baseline):
    """
    Pairs runs with the baseline by seed; both are {seed: curve}. For each: seconds and compute until it
    has the baseline's final validation loss at full size, and the baseline's over these. The baseline
    is timed by the same rule, at its own first time at that loss. Ratios only if all seeds get there.
    final_ratio: ratio of the final losses.
    """
    pairs = [(runs[s], baseline[s]) for s in sorted(runs) if s in baseline]
    result = dict(seeds=len(pairs), reached=0, final_ratio=ratio_interval(
        [a["val_loss"][-1] / b["val_loss"][-1] for a, b in pairs]) if pairs else None)
    for x in ("train_s", "flops"):
        ours = [reaches(a, x, b["val_loss"][-1]) for a, b in pairs]
        theirs = [reaches(b, x, b["val_loss"][-1]) for _, b in pairs]
        result["reached"] = sum(o is not None for o in ours)
        result[f"{x}_to_loss"] = ours
        result[f"{x}_speedup"] = ratio_interval([t / max(o, 1e-9) for o, t in zip(ours, theirs)]) \
            if pairs and None not in ours else None
    return result


def plus_minus(pair, digits=None, sign=""):
    mean, half = pair
    if digits is None:  # seconds: three significant digits
        digits = max(0, 2 - int(math.log10(max(mean, 0.01))))
    return f"{mean:{sign}.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def times(ratio, form="{:.2f}x ({:.2f} to {:.2f})"):
    """
    A (mean, low, high) ratio as text. Without high and low: the mean alone. Without high only: "> 1.20x".
    Without low only: "< 1.20x". None: "-".
    """
    if ratio is None:
        return "-"
    _, low, high = ratio
    if None in (low, high):
        return "<" * (high is not None) + ">" * (low is not None) + " " * (low != high) + \
            form.partition(" (")[0].format(*ratio)
    return form.format(*ratio)


def percent(ratio):
    """How far a (mean, low, high) ratio is from 1, in percent."""
    away = ratio and [None if r is None else 100 * (r - 1) for r in ratio]
    return times(away, "{:+.1f} % ({:+.1f} to {:+.1f})")


def table(rows):
    """A markdown table of the rows of speedrun.py's report."""
    lines = []
    for r in rows:
        cells = [r["name"], r["point"] or "-", len(r["seeds"]), plus_minus(r["final"], 4),
                 plus_minus(r["train_s"]), f"{r['flops'] / 1e15:.4g}"]
        for against, c in (r["against"] or {"": None}).items():
            lines.append(cells + (["-"] * 6 if c is None else [
                against, percent(c["final_ratio"]), f"{c['reached']} of {c['seeds']}",
                plus_minus(interval(c["train_s_to_loss"])) if c["train_s_speedup"] else "-",
                times(c["train_s_speedup"]), times(c["flops_speedup"])]))
    return markdown(["run", "tuned to", "seeds", "final val loss", "s", "PFLOP", "against",
                     "final loss, to its", "reach it", "s to its loss", "faster, wall-clock",
                     "less compute"], lines)


@contextlib.contextmanager
def picture(save, columns, heights=(4.8,)):
    """Axes (rows, columns) to draw on, saved to `save` at the end."""
    fig = Figure(figsize=(12, sum(heights)))
    axes = fig.subplots(len(heights), columns, squeeze=False, height_ratios=heights)
    yield axes
    for ax in axes.flat:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    with written(save, "wb") as f:
        fig.savefig(f, dpi=130)  # png


def draw(rows, curves, save):
    """
    A row of panels for each baseline and the contestants compared with it. Left: loss over seconds,
    mean and range over seeds. Right: final loss of each seed. rows: as in table(). curves:
    {name: {seed: curve}}.
    """
    against = {r["name"]: r["against"] for r in rows}
    groups = [[name, *(n for n in against if name in against[n])] for name in against
              if not against[name]]
    with picture(save, 2, [max(3.4, 0.25 * len(names) + 1) for names in groups]) as axes:
        for (left, right), names in zip(axes, groups):
            hues = colormaps["turbo"](np.linspace(0.05, 0.95, len(names)))
            colors = ["k", *0.8 * hues[:-1, :3]]  # darker, because text has these colors too
            runs = [list(curves[n].values()) for n in names]
            draw_losses(left, runs, colors)
            draw_finals(right, [f"{n} ({len(r)})" for n, r in zip(names, runs)], runs, colors)


def draw_losses(ax, runs, colors):
    """Loss over seconds: mean and range of each list of curves, the baseline's first."""
    longest = max(c["train_s"][-1] for cs in runs for c in cs)
    unit, scale = ("s", 1) if longest < 600 else ("min", 60) if longest < 7200 else ("h", 3600)
    ends = [c["val_loss"][-1] for cs in runs for c in cs]
    goal = np.mean(ends[:len(runs[0])])
    for cs, color in zip(runs, colors):
        n = min(len(c["iter"]) for c in cs)  # evaluations that all curves have
        seconds, losses = (np.array([c[k][:n] for c in cs]) for k in ("train_s", "val_loss"))
        x, mean = seconds.mean(0) / scale, losses.mean(0)
        ax.plot(x, mean, lw=2 if cs is runs[0] else 1.4, color=color)
        ax.fill_between(x, losses.min(0), losses.max(0), alpha=0.15, lw=0, color=color)
        if cs is runs[0]:  # leave out the uninformative fall from the first evaluation
            top = max(mean[n // 3], goal + 0.01)
    ax.axhline(goal, color="k", ls=":", lw=1)
    ax.set(xlabel=f"training time ({unit}; growth and compilation included, evaluation not)",
           ylabel="validation loss (nats a token)",
           ylim=(min(ends) - 0.05 * (top - min(ends)), top))


def draw_finals(ax, labels, runs, colors):
    """The final loss of each seed, a line for each list of curves, and the means."""
    for i, (cs, color) in enumerate(zip(runs, colors)):
        finals = [c["val_loss"][-1] for c in cs]
        ax.plot(finals, [i] * len(finals), "o", ms=4, alpha=0.6, color=color)
        ax.plot(np.mean(finals), i, "|", ms=14, mew=2, color=color)
    ax.axvline(np.mean([c["val_loss"][-1] for c in runs[0]]), color="k", ls=":", lw=1)
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    for label, color in zip(ax.get_yticklabels(), colors):
        label.set_color(color)
    ax.set(xlabel="final validation loss: seeds (their number), and mean",
           ylim=(len(labels) - 0.5, -0.5))
