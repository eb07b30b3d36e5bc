"""
What a campaign of runs says: time and compute to a loss, intervals over seeds, a table, a picture.
Small statistics without dependencies; speedrun.py is what runs the campaign and calls this.
"""
import math

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def t_quantile(df, level=0.95):
    """The two-sided quantile of Student's t with df degrees of freedom: 12.706 for df=1, 95 %."""
    log_c = math.lgamma((df + 1) / 2) - math.lgamma(df / 2) - 0.5 * math.log(df * math.pi)

    def inside(t, n=2000):  # P(|T| < t) by Simpson's rule in the angle: x = sqrt(df) tan(a)
        end = math.atan(t / math.sqrt(df))
        f = [math.cos(end * i / n) ** (df - 1) for i in range(n + 1)]
        total = f[0] + f[-1] + 4 * sum(f[1:-1:2]) + 2 * sum(f[2:-1:2])
        return 2 * math.exp(log_c) * math.sqrt(df) * total * end / n / 3
    low, high = 0.0, 1e4
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < level else (low, middle)
    return (low + high) / 2


def interval(values, level=0.95):
    """(mean, half-width of its t-interval over seeds); the half-width is None for one value."""
    n, mean = len(values), sum(values) / len(values)
    if n < 2:
        return mean, None
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return mean, t_quantile(n - 1, level) * sd / math.sqrt(n)


def ratio_interval(ratios, level=0.95):
    """(geometric mean, low, high) of ratios; low and high are None for one ratio."""
    mean, half = interval([math.log(r) for r in ratios], level)
    return math.exp(mean), *((None, None) if half is None else
                             (math.exp(mean - half), math.exp(mean + half)))


def crossing(xs, ys, target):
    """Where a curve first comes down to `target`, by linear interpolation, or None."""
    for i, y in enumerate(ys):
        if y <= target:
            if i == 0 or ys[i - 1] == y:
                return xs[i]
            share = (ys[i - 1] - target) / (ys[i - 1] - y)
            return xs[i - 1] + share * (xs[i] - xs[i - 1])
    return None


def curve(events):
    """
    The evaluations of a run's metrics, as lists: train_s, flops, iter, val_loss, and whole: is the
    model as large as it ends, and its ramps over?
    """
    points = [e for e in events if e["event"] == "eval" and isinstance(e.get("val_loss"), float)]
    sizes = [[e.get(k) for k in ("n_layer", "n_head", "n_embd", "n_inner")] for e in points]
    return {**{k: [e[k] for e in points] for k in ("train_s", "flops", "iter", "val_loss")},
            "whole": [s == sizes[-1] and e.get("mask", 1) == 1 for s, e in zip(sizes, points)]}


def reaches(curve, x, target):
    """
    Where, in `x`, a run first is at `target` and stays the size it has there: a loss that a
    smaller model had does not count. None if it never is.
    """
    whole = curve["whole"]
    start = len(whole) - [*whole[::-1], False].index(False)
    return crossing(curve[x][start:], curve["val_loss"][start:], target)


def compare(runs, baseline):
    """
    runs, baseline: {seed: curve}. Pairs them by seed: for each, the seconds and the compute until
    the baseline's final validation loss at their full size, and how many times less than the
    baseline needed (its own first time at that loss; it is timed by the same rule). Ratios only if
    all seeds get there. final_ratio: how the final losses compare.
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


def plus_minus(pair, digits=None):
    mean, half = pair
    if digits is None:  # seconds: three figures
        digits = max(0, 2 - int(math.log10(max(mean, 0.01))))
    return f"{mean:.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def times(ratio):
    if ratio is None:
        return "-"
    mean, low, high = ratio
    return f"{mean:.2f}x" + ("" if low is None else f" ({low:.2f} to {high:.2f})")


def percent(ratio):
    """How far a (mean, low, high) ratio is from one."""
    if ratio is None:
        return "-"
    mean, low, high = (None if r is None else 100 * (r - 1) for r in ratio)
    return f"{mean:+.1f} %" + ("" if low is None else f" ({low:+.1f} to {high:+.1f})")


def table(rows):
    """A markdown table of rows as speedrun.py's report makes them."""
    head = ["run", "tuned to", "seeds", "final val loss", "s", "PFLOP", "against",
            "final loss, to its", "reach it", "s to its loss", "faster, wall-clock", "less compute"]
    lines = [head, ["---"] * len(head)]
    for r in rows:
        cells = [r["name"], r["point"] or "-", str(len(r["seeds"])), plus_minus(r["final"], 4),
                 plus_minus(r["train_s"]), f"{r['flops'] / 1e15:.4g}"]
        for against, c in (r["against"] or {"": None}).items():
            lines.append(cells + (["-"] * 6 if c is None else [
                against, percent(c["final_ratio"]), f"{c['reached']} of {c['seeds']}",
                plus_minus(interval(c["train_s_to_loss"])) if c["train_s_speedup"] else "-",
                times(c["train_s_speedup"]), times(c["flops_speedup"])]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(rows, curves, save):
    """
    A row of panels for each baseline and those compared with it. Left: loss against seconds, mean
    and range over the seeds. Right: the final loss of each seed. rows: as table() has them;
    curves: {name: {seed: curve}}.
    """
    against = {r["name"]: list(r["against"]) for r in rows}
    groups = [[name, *(n for n in against if name in against[n])] for name in against
              if not against[name]]
    heights = [max(3.4, 0.25 * len(names) + 1) for names in groups]
    fig, axes = plt.subplots(len(groups), 2, figsize=(11, sum(heights)), height_ratios=heights,
                             squeeze=False)
    for (left, right), names in zip(axes, groups):
        longest = max(c["train_s"][-1] for n in names for c in curves[n].values())
        unit, scale = ("s", 1) if longest < 600 else ("min", 60) if longest < 7200 else ("h", 3600)
        hues = plt.cm.turbo([0.05 + 0.9 * i / len(names) for i in range(len(names) - 1)])
        colors = ["k", *0.8 * hues[:, :3]]  # darker: they are read, too
        for i, (name, color) in enumerate(zip(names, colors)):
            xs, mean, low, high = mean_curve(curves[name].values(), scale)
            left.plot(xs, mean, lw=2 if i == 0 else 1.4, color=color)
            left.fill_between(xs, low, high, alpha=0.15, lw=0, color=color)
            finals = [c["val_loss"][-1] for c in curves[name].values()]
            right.plot(finals, [i] * len(finals), "o", ms=4, alpha=0.6, color=color)
            right.plot(interval(finals)[0], i, "|", ms=14, mew=2, color=color)
            if i == 0:
                goal = interval(finals)[0]
                for line in (left.axhline, right.axvline):
                    line(goal, color="k", ls=":", lw=1)
                left.set_ylim(top=mean[len(mean) // 3])
        ends = [c["val_loss"][-1] for n in names for c in curves[n].values()]
        top = max(left.get_ylim()[1], goal + 0.01)
        left.set_ylim(min(ends) - 0.05 * (top - min(ends)), top)
        left.set(xlabel=f"training time ({unit}; growth and compilation included, evaluation not)",
                 ylabel="validation loss (nats a token)")
        right.set_yticks(range(len(names)), [f"{n} ({len(curves[n])})" for n in names], fontsize=8)
        for label, color in zip(right.get_yticklabels(), colors):
            label.set_color(color)
        right.set(xlabel="final validation loss: seeds (their number), and mean",
                  ylim=(len(names) - 0.5, -0.5))
        for ax in (left, right):
            ax.grid(alpha=0.25)
            ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    fig.savefig(save, dpi=130)
    plt.close(fig)


def mean_curve(runs, scale):
    """Seconds / scale, and the mean, lowest and highest loss, at the evaluations all runs have."""
    n = min(len(c["iter"]) for c in runs)
    seconds, losses = ([[c[k][j] for c in runs] for j in range(n)] for k in ("train_s", "val_loss"))
    return ([interval(v)[0] / scale for v in seconds], [interval(v)[0] for v in losses],
            [min(v) for v in losses], [max(v) for v in losses])
