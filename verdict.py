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
    """The evaluations of a run's metrics, as lists: train_s, flops, iter, val_loss."""
    points = [e for e in events if e["event"] == "eval" and isinstance(e.get("val_loss"), float)]
    return {k: [e[k] for e in points] for k in ("train_s", "flops", "iter", "val_loss")}


def compare(runs, baseline):
    """
    runs, baseline: {seed: curve}. Pairs them by seed: for each, the seconds and the compute until
    the baseline's final validation loss, and how many times less than the baseline needed (its
    own first time at that loss; it is timed by the same rule). Ratios only if all seeds get there.
    """
    pairs = [(runs[s], baseline[s]) for s in sorted(runs) if s in baseline]
    result = dict(seeds=len(pairs), reached=0)
    for x in ("train_s", "flops"):
        ours = [crossing(a[x], a["val_loss"], b["val_loss"][-1]) for a, b in pairs]
        theirs = [crossing(b[x], b["val_loss"], b["val_loss"][-1]) for _, b in pairs]
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


def table(rows):
    """A markdown table of rows as speedrun.py's report makes them."""
    head = ["run", "tuned to", "seeds", "final val loss", "s", "PFLOP", "against",
            "reach its loss", "s to its loss", "faster, wall-clock", "less compute"]
    lines = [head, ["---"] * len(head)]
    for r in rows:
        cells = [r["name"], r["point"] or "-", str(len(r["seeds"])), plus_minus(r["final"], 4),
                 plus_minus(r["train_s"]), f"{r['flops'] / 1e15:.4g}"]
        for against, c in (r["against"] or {"": None}).items():
            lines.append(cells + (["-"] * 5 if c is None else [
                against, f"{c['reached']} of {c['seeds']}",
                plus_minus(interval(c["train_s_to_loss"])) if c["train_s_speedup"] else "-",
                times(c["train_s_speedup"]), times(c["flops_speedup"])]))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def draw(curves, save):
    """curves: {name: {seed: curve}}. Loss against seconds: mean and range over the seeds."""
    fig, ax = plt.subplots(figsize=(8, 5))
    longest = max(c["train_s"][-1] for runs in curves.values() for c in runs.values())
    unit, scale = ("s", 1) if longest < 300 else ("min", 60) if longest < 7200 else ("h", 3600)
    last = []
    for i, (name, runs) in enumerate(curves.items()):
        n = min(len(c["iter"]) for c in runs.values())  # evaluated at the same iterations
        column = [[[c[k][j] for c in runs.values()] for j in range(n)]
                  for k in ("train_s", "val_loss")]
        xs = [sum(v) / len(v) / scale for v in column[0]]
        ys = [sum(v) / len(v) for v in column[1]]
        style = dict(color=f"C{i % 10}", ls="-" if i < 10 else "--")
        ax.plot(xs, ys, lw=1.6, label=f"{name} ({len(runs)})", **style)
        ax.fill_between(xs, *[[f(v) for v in column[1]] for f in (min, max)], alpha=0.2, lw=0,
                        color=style["color"])
        last.append((ys[-1], ys[0]))
    low, high = min(v for v, _ in last), max(v for _, v in last)
    if high > low:
        ax.set_ylim(low - 0.04 * (high - low), low + 0.5 * (high - low))
    ax.set(xlabel=f"training time ({unit}; growth and compilation included, evaluation not)",
           ylabel="validation loss (nats a token)")
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(title="mean and range over seeds (their number)", fontsize=8, title_fontsize=8)
    fig.tight_layout()
    fig.savefig(save, dpi=130)
    plt.close(fig)
