"""
Plot runs: loss over time and tokens with growth points; below, masks, learning rate and gradient norm.
Also says how much sooner than a baseline each run reached the same loss.

    python -m tools.plot out/pystdlib_msg out/pystdlib_scratch --save=loss.png
    python -m tools.plot out/family           # all members over compute; further runs in grey
    watch -n 30 python -m tools.plot out/mine --baseline=out/scratch     # refresh while it trains
"""
import argparse
import itertools
import math
import os
import sys

from matplotlib.figure import Figure

from base.disk import written
from base.errors import Parser, UserError, exits_cleanly
from base.words import human
from model import GROWABLE
from run import family
from run.curves import crossing, curve, reaches
from run.packed import unpacked
from run.runlog import read_metrics

# panels of the lower row: event key -> title
PANELS = dict(mask="mask of the new part", lr="learning rate", grad_norm="gradient norm, before clipping")


def read_run(folder, wait=False):
    """
    The events of a run. Prints how many damaged lines of metrics.jsonl were skipped. A run without an
    evaluation is a UserError, or with `wait` an empty list.
    """
    path = os.path.join(folder, "metrics.jsonl")
    there, damaged = os.path.isfile(path), []
    events = read_metrics(folder, damaged) if there else []
    if not any(e["event"] == "eval" for e in events):
        if wait:
            return []
        raise UserError(f"{folder}: " + ("no evaluation in metrics.jsonl yet: wait for the first"
                        if there else "no metrics.jsonl there: give the out_dir of a run"))
    if damaged:
        print(f"{path}: {len(damaged)} damaged lines left out")
    return events


def names(folders):
    """Labels: the shortest path endings that tell the folders apart."""
    parts = [os.path.abspath(f).split(os.sep) for f in folders]
    for n in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(p[-n:]) for p in parts]
        if len(set(ends)) == len(ends):
            break
    return ends


def points(events, x, kind="eval", y="val_loss"):
    """[(x, y)] of the events of a kind (None: any), without infinite or NaN values."""
    return [(e[x], e[y]) for e in events if kind in (None, e["event"]) and isinstance(e.get(y), float)
            and math.isfinite(e[y])]


# -----------------------------------------------------------------------------
# the lead over a baseline

def pick_baseline(runs, given=None):
    """The label of the baseline: `given`, or the only run that never grew."""
    still = [label for label, events in runs.items() if events and
             not any(e["event"] == "grow" for e in events)]
    return given or (still[0] if len(still) == 1 < len(runs) else None)


def lead(events, base):
    """
    A run's lead over a baseline so far: (loss that both have reached, the run's seconds to reach it, the
    baseline's, has the run reached the baseline's size?). None if they cannot be compared. A loss counts
    only from when a run has its current size.
    """
    events, base = ([e for e in run if points([e], "iter")] for run in (events, base))
    if not events or not base:
        return None
    goal = max(run[-1]["val_loss"] for run in (events, base))
    whole = all(events[-1].get(k) == base[-1].get(k) for k in GROWABLE) and events[-1].get("mask", 1) == 1
    found = []
    for run in (events, base):
        c = curve(run)
        at = reaches(c, "train_s", goal)
        found.append(crossing(c["train_s"], c["val_loss"], goal) if at is None else at)
    return (goal, *found, whole) if None not in found and min(found) > 0 else None


def leads(runs, baseline):
    """One line for each run that can be compared with the baseline."""
    for label, events in runs.items():
        found = lead(events, runs[baseline]) if baseline and label != baseline else None
        if found:
            goal, mine, theirs, whole = found
            much = f"{theirs / mine:.2f}x sooner" if mine <= theirs else f"{mine / theirs:.2f}x later"
            yield (f"{label}: {much} at {goal:.2f} than {baseline}" +
                   ("" if whole else ", not of its size yet"))


# -----------------------------------------------------------------------------
# the picture

def draw(ax, events, label, color, x, scale):
    for kind, y, look in (("eval", "val_loss", dict(lw=1.8, label=label)),
                          ("step", "loss", dict(lw=0.6, alpha=0.25))):
        found = points(events, x, kind, y)
        ax.plot([a / scale for a, _ in found], [b for _, b in found], "-o" if len(found) == 1 else "-",
                color=color, **look)
    for at, after in points(events, x, "grow", "val_loss_after"):
        ax.plot(at / scale, after, "o", color=color, ms=6, mec="white", zorder=5)


def mark_growths(ax, events, color, x, scale):
    for e in events:
        if e["event"] == "grow":
            ax.axvline(e[x] / scale, color=color, lw=0.8, ls=":", alpha=0.7, zorder=0)


def name_growths(ax, runs):
    """Label each growth's line with the new size; where two labels would overlap, only the first."""
    taken, (left, right) = [], ax.get_xlim()
    for i, events in enumerate(runs.values()):
        for e in events:
            at = e["tokens"] / 1e6
            if e["event"] == "grow" and all(abs(at - t) > 0.025 * (right - left) for t in taken):
                taken.append(at)
                ax.text(at, 0.98, f"{e['n_layer']}L {e['n_embd']}/{e['n_inner']} {e['n_head']} heads",
                        transform=ax.get_xaxis_transform(), rotation=90, ha="right", va="top",
                        fontsize=7.5, color=f"C{i}")


def small_panels(runs):
    """The keys of PANELS that have data."""
    grew = [events for events in runs.values() if any(e["event"] == "grow" for e in events)]
    return [y for y in PANELS if any(
        points(events, "tokens", None, y) for events in (grew if y == "mask" else runs.values()))]


def draw_small(ax, runs, y):
    for i, events in enumerate(runs.values()):
        found = points(events, "tokens", None, y)
        ax.plot([a / 1e6 for a, _ in found], [b for _, b in found], "-", color=f"C{i}", lw=1,
                alpha=0.8)
        mark_growths(ax, events, f"C{i}", "tokens", 1e6)
    ax.set_title(PANELS[y], fontsize=9, loc="left")
    ax.set_xlabel("tokens (millions)")
    if y == "grad_norm" and any(b > 0 for a in ax.lines for b in a.get_ydata()):
        ax.set_yscale("log")
        for set_formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
            set_formatter(lambda v, _: f"{v:g}" if f"{v:.0e}"[0] in "125" else "")  # 0.5, not powers of 10
    elif y == "lr":
        ax.yaxis.set_major_formatter("{x:g}")
        ax.set_ylim(bottom=0)


def show_lead(ax, runs, baseline, scale):
    """Show leads() as the title, and draw a line between the two curves at that loss."""
    ax.set_title("\n".join(leads(runs, baseline)), fontsize=9, loc="left")
    for i, (label, events) in enumerate(runs.items()):
        if baseline and label != baseline and (found := lead(events, runs[baseline])):
            ax.plot([found[1] / scale, found[2] / scale], [found[0]] * 2, "|--", color=f"C{i}", lw=1)


def plot(runs, save, baseline=None):
    """Write the plot to `save`. runs: {label: events}. baseline: one of the labels, or None."""
    small = small_panels(runs)
    rows = [["train_s"] * 3 + ["tokens"] * 3]
    if small:
        rows.append([y for y in small for _ in range(6 // len(small))])
    fig = Figure(figsize=(12, 7.6 if small else 4.8))
    axes = fig.subplot_mosaic(rows, height_ratios=[1.9, 1][:len(rows)])
    left, right = axes["train_s"], axes["tokens"]
    right.sharey(left)
    longest = max(e["train_s"] for events in runs.values() for e in events)
    unit, scale = ("minutes", 60) if longest < 7200 else ("hours", 3600)
    for i, (label, events) in enumerate(runs.items()):
        for x, s in (("train_s", scale), ("tokens", 1e6)):
            draw(axes[x], events, label, f"C{i}", x, s)
            mark_growths(axes[x], events, f"C{i}", x, s)
    left.set(xlabel=f"training time ({unit}, growth and compilation included)",
             ylabel="loss (nats a token)")
    right.set(xlabel="tokens (millions)")
    show_lead(left, runs, baseline, scale)
    name_growths(right, runs)
    found = [points(events, "iter") for events in runs.values()]
    low = min((p[-1][1] for p in found if p), default=0)
    high = max((p[0][1] for p in found if p), default=0)
    if high > low:  # cut off the initial drop, which says little
        left.set_ylim(low - 0.05 * (high - low), low + 0.6 * (high - low))
    left.legend(title="validation (thin: training); dots: growth", fontsize=9, title_fontsize=8)
    for y in small:
        draw_small(axes[y], runs, y)
    for ax in axes.values():
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    write(fig, save)


# -----------------------------------------------------------------------------
# a family

def plot_family(trunk, others, save):
    """
    Plot a family's loss over total compute, one size after another. In grey: the same sizes trained from
    scratch one by one, where results/ has them, and the separate runs in the folders `others`.
    """
    members, found = family.members(trunk), family.summary(trunk)
    spent, alone = ([0, *itertools.accumulate(r[k] for r in found["members"])] for k in ("flops", "alone"))
    lines = [[(x + before, y) for x, y in family_line(trunk, m)] for m, before in zip(members, spent)]
    grey = [(os.path.basename(path), points(read_run(path), "flops")) for path in others]
    if empty := [path for path, (_, line) in zip(others, grey) if not line]:
        raise UserError(f"{empty[0]}: has no evaluation with a finite loss to draw: leave it out")
    for m, before in zip(members, alone):
        grey += [(m.name, line) for line in scratch_lines(trunk, m, before)]
    if not lines[0]:
        raise UserError(f"{trunk.out_dir}: has no evaluation with a finite loss to draw yet")
    top = max(x for line in [*lines, *(g for _, g in grey)] for x, _ in line)
    value, unit = human(top, "FLOP").split()
    fig, scale = Figure(figsize=(9, 5.6)), 1000 ** round(math.log(top / float(value), 1000))
    ax = fig.subplots()

    def draw_line(line, **look):
        ax.plot([x / scale for x, _ in line], [y for _, y in line], **look)
    for i, (name, line) in enumerate(grey):
        draw_line(line, color="0.75", lw=1, zorder=1)
        draw_line(line[-1:], color="0.6", marker="o", ls="", zorder=1, label="" if i else
                  "one by one, from scratch")
        if name not in [other for other, _ in grey[:i]]:
            ax.annotate(name, (line[-1][0] / scale, line[-1][1]), xytext=(6, 6), textcoords="offset points",
                        fontsize=8, color="0.5")
    for i, (m, line) in enumerate(zip(members, lines)):
        draw_line(line, color=f"C{i}", lw=2)
        draw_line(line[-1:], color=f"C{i}", marker="o", ls="", ms=8,
                  label=f"{m.name}: {line[-1][1]:.3f}" if line else "")
        if i and line:  # from where the previous size left the trunk
            r, had = found["members"][i - 1], members[i - 1]
            left = spent[i] - (had.end - had.at) * trunk.batch_tokens * r["flops_per_token"]
            draw_line([(left, line[0][1]), line[0]], color="0.5", lw=0.8, ls=":", zorder=0)
            ax.text(spent[i] / scale, line[0][1], f" grown to {m.name}", fontsize=8, color="0.3", va="bottom")
    losses = [y for line in [*lines, *(g for _, g in grey)] for _, y in line]
    high = max((y for x, y in lines[0] if x > 0.2 * lines[0][-1][0]), default=min(losses) + 1)
    ax.set(xlabel=f"total compute so far ({unit})", ylabel="validation loss (nats a token)",
           ylim=(min(losses) - 0.05 * (high - min(losses)), high + 0.1 * (high - min(losses))))
    ax.set_title(family.in_words(found).splitlines()[-1], fontsize=10, loc="left")
    ax.legend(fontsize=9)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
    fig.tight_layout()
    write(fig, save)


def scratch_lines(trunk, member, before):
    """Such a line for each run from scratch of a member's size, shifted by `before` FLOPs."""
    runs = family.from_scratch(trunk, member, family.members(trunk)[0].end * trunk.batch_tokens)
    return [[(x + before, y) for x, y in points(read_run(path), "flops")] for path, _ in runs.values()]


def family_line(trunk, member):
    """[(FLOPs, validation loss), ...] of a member, from when the trunk reaches its size to its end."""
    own = [e for e in read_run(trunk.out_dir) if member.born <= e["iter"] <= member.at]
    line = points([e for e in own if e["iter"] == member.born], "flops", "grow", "val_loss_after")
    line += points([e for e in own if e["iter"] > member.born], "flops")
    line += points([e for e in own if e["iter"] == member.at], "flops", "grow", "val_loss_before")
    branch = read_run(member.out_dir, wait=True) if member.out_dir != trunk.out_dir else []
    line += points([e for e in branch if e["iter"] > member.at], "flops")
    return [(x - line[0][0] * bool(member.born), y) for x, y in line]


def write(fig, save):
    """Save the figure atomically, so that a viewer never sees half a picture."""
    try:
        with written(save, "wb") as f:
            fig.savefig(f, dpi=130, format=os.path.splitext(save)[1][1:])
    except (OSError, ValueError) as e:  # ValueError: no such format
        raise UserError(f"{save}: cannot be written ({getattr(e, 'strerror', None) or e}): give "
                        "--save=FILE.png in a folder that is there") from None


# -----------------------------------------------------------------------------
# the script

def report(runs):
    """One line per run: its final validation loss."""
    for label, events in runs.items():
        evals, finite = sum(e["event"] == "eval" for e in events), points(events, "train_s")
        said = "validation loss {1:.4f} after {0:.0f} s of training".format(*finite[-1]) if finite else \
            "no validation loss is finite"
        lost = evals - len(finite)
        yield f"{label}: {said}" + (
            f"; {lost} of {evals} evaluations infinite or NaN, left out" if lost else "")


def parse(argv):
    p = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("out_dirs", nargs="+", metavar="OUT_DIR", type=unpacked)
    p.add_argument("--save", type=os.path.expanduser,
                   help="file to write (default: loss.png in the first OUT_DIR)")
    p.add_argument("--baseline", metavar="OUT_DIR", type=unpacked,
                   help="the run to compare with (default: the only one that never grew)")
    return p.parse_args(argv)


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    given = [*args.out_dirs, *([args.baseline] if args.baseline else [])]
    folders = list(dict.fromkeys(os.path.normpath(f) for f in given))
    baseline = args.baseline and names(folders)[folders.index(os.path.normpath(args.baseline))]
    save = args.save or os.path.join(folders[0], "loss.png")
    save += "" if os.path.splitext(save)[1] else ".png"

    if trunk := family.read_trunk(folders[0]):
        plot_family(trunk, folders[1:], save)
        print(f"wrote {save}", family.in_words(family.summary(trunk)), sep="\n\n")
        return
    runs = dict(zip(names(folders), map(read_run, folders)))
    base = pick_baseline(runs, baseline)
    plot(runs, save, base)
    print("\n".join([f"wrote {save}", *report(runs), *leads(runs, base)]))


if __name__ == "__main__":
    main()
