"""
Loss against time and against tokens, one curve a run, growth points marked; and when each run
reached the same loss.

    python -m tools.plot out/pystdlib_msg out/pystdlib_scratch --save=loss.png
"""
import argparse
import os
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from lab.verdict import curve as evaluations  # noqa: E402
from lab.verdict import reaches  # noqa: E402
from run.errors import UserError, exits_cleanly
from run.runlog import read_metrics  # noqa: E402


def curve(events, x, kind="eval", y="val_loss"):
    points = [(e[x], e[y]) for e in events if e["event"] == kind and isinstance(e.get(y), float)]
    return [p[0] for p in points], [p[1] for p in points]


def draw(ax, events, label, color, x, scale):
    xs, ys = curve(events, x)
    ax.plot([v / scale for v in xs], ys, "-", color=color, lw=1.8, label=label)
    xs, ys = curve(events, x, "step", "loss")
    ax.plot([v / scale for v in xs], ys, "-", color=color, lw=0.6, alpha=0.25)
    for i, e in enumerate(e for e in events if e["event"] == "grow"):
        at, loss = e[x] / scale, e["val_loss_after"]
        ax.plot([at], [loss], "o", color=color, ms=6, mec="white", zorder=5)
        below = dict(xytext=(-6, -6), ha="right", va="top")  # a falling curve leaves these free
        above = dict(xytext=(6, 6), ha="left", va="bottom")
        ax.annotate(f"{e['n_layer']}L {e['n_embd']}/{e['n_inner']}\n{e['n_head']} heads",
                    (at, loss), textcoords="offset points", fontsize=7.5, color=color,
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
    last = [curve(events, "iter")[1][-1] for events in runs.values() if curve(events, "iter")[1]]
    first = [curve(events, "iter")[1][0] for events in runs.values() if curve(events, "iter")[1]]
    if last:  # the long fall from the first evaluation says little: show what follows
        low, high = min(last), max(first)
        axes[0].set_ylim(low - 0.05 * (high - low), low + 0.6 * (high - low))
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(title="validation (thin: training); dots: growth", fontsize=9, title_fontsize=8)
    fig.tight_layout()
    fig.savefig(save, dpi=130)
    plt.close(fig)


def report(runs):
    """A line a run: its final validation loss, and when, full-grown, it had the worst of those."""
    goal = max(curve(events, "iter")[1][-1] for events in runs.values())
    for label, events in runs.items():
        seconds, losses = curve(events, "train_s")
        reached = reaches(evaluations(events), "train_s", goal)
        yield (f"{label}: validation loss {losses[-1]:.4f} after {seconds[-1]:.0f} s of training"
               + (f", {goal:.4f} after {reached:.0f} s" if len(runs) > 1 and reached else ""))


@exits_cleanly
def main():
    p = argparse.ArgumentParser(description="Loss against time and against tokens.")
    p.add_argument("out_dirs", nargs="+", metavar="OUT_DIR")
    p.add_argument("--save", help="file to write (default: loss.png in the first OUT_DIR)")
    args = p.parse_args(sys.argv[1:])
    runs = {}
    for out_dir in args.out_dirs:
        if not os.path.isfile(os.path.join(out_dir, "metrics.jsonl")):
            raise UserError(f"{out_dir}: no metrics.jsonl there: give the out_dir of a run")
        events = read_metrics(out_dir)
        if not any(e["event"] == "eval" for e in events):
            raise UserError(f"{out_dir}: no evaluation in metrics.jsonl yet: wait for the first")
        runs[os.path.basename(os.path.normpath(out_dir))] = events
    save = args.save or os.path.join(args.out_dirs[0], "loss.png")
    plot(runs, save)
    print(f"wrote {save}")
    print("\n".join(report(runs)))


if __name__ == "__main__":
    main()
