"""
Loss against time and against tokens, one curve a run, growth points marked; and when each run
reached the same loss.

    python -m tools.plot out/pystdlib_msg out/pystdlib_scratch --save=loss.png
"""
import math
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from run.curves import curve, reaches  # noqa: E402
from run.errors import Parser, UserError, exits_cleanly  # noqa: E402
from run.runlog import read_metrics  # noqa: E402
from run.writing import written  # noqa: E402


def read_run(folder):
    """The events of a run. Says how many lines of metrics.jsonl were damaged and left out."""
    path = os.path.join(folder, "metrics.jsonl")
    if not os.path.isfile(path):
        raise UserError(f"{folder}: no metrics.jsonl there: give the out_dir of a run")
    events = read_metrics(folder, damaged := [])
    if damaged:
        print(f"{path}: {len(damaged)} damaged lines left out")
    if not any(e["event"] == "eval" for e in events):
        raise UserError(f"{folder}: no evaluation in metrics.jsonl yet: wait for the first")
    return events


def names(folders):
    """The shortest ends of the folders' paths that tell them apart."""
    parts = [os.path.abspath(f).split(os.sep) for f in folders]
    for n in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(p[-n:]) for p in parts]
        if len(set(ends)) == len(ends):
            break
    return ends


def points(events, x, kind="eval", y="val_loss"):
    """[(x, y)] of the events of a kind, without what is infinite or NaN."""
    return [(e[x], e[y]) for e in events if e["event"] == kind and isinstance(e.get(y), float)
            and math.isfinite(e[y])]


def draw(ax, events, label, color, x, scale):
    for kind, y, look in (("eval", "val_loss", dict(lw=1.8, label=label)),
                          ("step", "loss", dict(lw=0.6, alpha=0.25))):
        found = points(events, x, kind, y)
        ax.plot([a / scale for a, _ in found], [b for _, b in found], "-", color=color, **look)
    grown = [e for e in events if points([e], x, "grow", "val_loss_after")]
    for i, e in enumerate(grown):
        at = (e[x] / scale, e["val_loss_after"])
        ax.plot(*at, "o", color=color, ms=6, mec="white", zorder=5)
        below = dict(xytext=(-6, -6), ha="right", va="top")  # a falling curve leaves these free
        above = dict(xytext=(6, 6), ha="left", va="bottom")
        ax.annotate(f"{e['n_layer']}L {e['n_embd']}/{e['n_inner']}\n{e['n_head']} heads",
                    at, textcoords="offset points", fontsize=7.5, color=color,
                    **(below if i % 2 else above))


def plot(runs, save):
    """runs: {label: events}. Writes the picture to `save`."""
    fig, axes = plt.subplots(1, 2, figsize=(12, 4.8), sharey=True)
    longest = max(e["train_s"] for events in runs.values() for e in events)
    unit, scale = ("minutes", 60) if longest < 7200 else ("hours", 3600)
    for i, (label, events) in enumerate(runs.items()):
        draw(axes[0], events, label, f"C{i}", "train_s", scale)
        draw(axes[1], events, label, f"C{i}", "tokens", 1e6)
    axes[0].set(xlabel=f"training time ({unit}, growth and compilation included)",
                ylabel="loss (nats a token)")
    axes[1].set(xlabel="tokens (millions)")
    found = [points(events, "iter") for events in runs.values()]
    low = min((p[-1][1] for p in found if p), default=0)
    high = max((p[0][1] for p in found if p), default=0)
    if high > low:  # the long fall from the first evaluation says little: show what follows
        axes[0].set_ylim(low - 0.05 * (high - low), low + 0.6 * (high - low))
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(title="validation (thin: training); dots: growth", fontsize=9, title_fontsize=8)
    fig.tight_layout()
    try:
        with written(save, "wb") as f:
            fig.savefig(f, dpi=130, format=os.path.splitext(save)[1][1:])
    except (OSError, ValueError) as e:  # ValueError: no such format
        raise UserError(f"{save}: cannot be written ({getattr(e, 'strerror', None) or e}): give "
                        "--save=FILE.png in a folder that is there") from None
    finally:
        plt.close(fig)


def report(runs):
    """A line a run: its final validation loss, and when, full-grown, it had the worst of those."""
    ends = {label: points(events, "train_s")[-1:] for label, events in runs.items()}
    goal = max((loss for end in ends.values() for _, loss in end), default=None)
    for label, events in runs.items():
        evals = [e for e in events if e["event"] == "eval"]
        lost = len(evals) - len(points(events, "train_s"))
        left_out = f"; {lost} of {len(evals)} evaluations infinite or NaN, left out" if lost else ""
        if not ends[label]:
            yield f"{label}: no validation loss is finite{left_out}"
            continue
        [(seconds, loss)] = ends[label]
        reached = reaches(curve(events), "train_s", goal) if len(runs) > 1 else None
        yield (f"{label}: validation loss {loss:.4f} after {seconds:.0f} s of training"
               + (f", {goal:.4f} after {reached:.0f} s" if reached else "") + left_out)


@exits_cleanly
def main():
    p = Parser(description="Loss against time and against tokens.")
    p.add_argument("out_dirs", nargs="+", metavar="OUT_DIR", type=os.path.expanduser)
    p.add_argument("--save", type=os.path.expanduser,
                   help="file to write (default: loss.png in the first OUT_DIR)")
    args = p.parse_args(sys.argv[1:])
    folders = list(dict.fromkeys(os.path.normpath(f) for f in args.out_dirs))
    runs = dict(zip(names(folders), map(read_run, folders)))
    save = args.save or os.path.join(folders[0], "loss.png")
    save += "" if os.path.splitext(save)[1] else ".png"
    plot(runs, save)
    print(f"wrote {save}")
    print("\n".join(report(runs)))


if __name__ == "__main__":
    main()
