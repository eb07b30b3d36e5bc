"""
Draws docs/growing.png, the picture in the README: a model that grows, and loss over compute. And
docs/layers.png, of docs/studies/long_runs.md: how much each layer of a trained model is worth.

    python docs/picture.py
"""
import json
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

ROOT = Path(__file__).resolve().parent.parent
OLD, NEW = "#3b6ea5", "#e08214"
# title, text below, the mask on the new part (None: there is no new part)
FRAMES = [("1  a small model", "few layers, narrow:\ntrains fast", None),
          ("2  grow it: mask 0", "new weights, hidden:\nthe same output", 0.0),
          ("3  mask 0 → 1", "the new weights count\nmore and more", 0.5),
          ("4  a large model", "mask gone:\na plain model", 1.0)]

# kinds of trained models: where their runs are, color, shift to the side
KINDS = {"from scratch": (("scratch/6_x_64/", "scratch/6_x_32/"), "0.45", 0),
         "grown from 2 layers at 2 %": ("grown/", NEW, 0.08),
         "gates open in turn": ("scratch/6_x_32_gates", OLD, -0.08)}


def box(ax, x, y, width, color, mask):
    """Part of a layer: as solid as its mask is high, dashed while there is a mask."""
    style = dict(boxstyle="round,pad=0,rounding_size=0.04")
    ax.add_patch(FancyBboxPatch((x, y), width, 0.3, fc=color, alpha=mask, lw=0, **style))
    line = dict(ls="-" if mask == 1 else (0, (2, 1.5)))
    ax.add_patch(FancyBboxPatch((x, y), width, 0.3, fc="none", ec=color, lw=1.1, **line, **style))


def draw_frame(ax, title, text, mask):
    for i in range(2 if mask is None else 4):
        if i < 2:
            box(ax, 0, 0.42 * i, 0.62, OLD, 1)
        if mask is not None:  # more width for the old layers, and new layers
            x = 0.65 if i < 2 else 0
            box(ax, x, 0.42 * i, 1 - x, NEW, mask)
    if mask is None:
        arrow = dict(arrowstyle="->", color="0.4")
        ax.annotate("", (0, 1.62), (0, 0.85), arrowprops=arrow)
        ax.annotate("", (1.02, 0.36), (0.67, 0.36), arrowprops=arrow)
        ax.text(0.06, 1.2, "layers", fontsize=9, color="0.4", va="center")
        ax.text(0.84, 0.44, "width", fontsize=9, color="0.4", ha="center")
    if mask == 0:
        ax.text(0.31, 0.57, "old", color="w", fontsize=9, ha="center", va="center")
        ax.text(0.5, 0.99, "new", color=NEW, fontsize=9, ha="center", va="center")
    ax.set(xlim=(-0.06, 1.08), ylim=(-0.5, 1.66), title=title)
    ax.title.set(fontsize=10.5, fontweight="bold")
    ax.text(0.5, -0.1, text, ha="center", va="top", fontsize=9)
    ax.axis("off")


def draw_family(ax, report):
    """
    Mean validation loss of each member of the family against the compute spent by then, as one run and
    one by one, from the report of the study.
    """
    rows = [r for r in json.loads((ROOT / report).read_text())["families"]
            if (r["family"], r["what"]) == ("masks", "reported")]
    ends = []
    for i, (label, color) in enumerate((("all out of one run that grows", NEW), ("one by one, from scratch", "0.5"))):
        compute = np.cumsum([r["flops"][i] for r in rows]) / 1e12
        loss = [r[("loss", "scratch")[i]][0] for r in rows]
        ax.plot(compute, loss, "o-", color=color, lw=2, ms=7, label=label)
        for r, x, y in zip(rows, compute, loss):
            ax.annotate(f"{r['member'].split()[0]} layers", (x, y), (-9, -4) if i == 0 else (9, 2),
                        textcoords="offset points", ha="right" if i == 0 else "left", fontsize=9, color=color)
        ends.append(compute[-1])
    lowest, highest = (f(r["loss"][0] for r in rows) for f in (min, max))
    at = lowest - 0.022
    ax.annotate("", (ends[0], at), (ends[1], at), arrowprops=dict(arrowstyle="<->", color="0.3"))
    ax.text(sum(ends) / 2, at - 0.013, f"{1 - ends[0] / ends[1]:.0%} saved", ha="center", va="center", fontsize=9)
    ax.margins(x=0.24, y=0.16)
    ax.set_ylim(lowest - 0.05, highest + 0.08)  # with room for the legend
    ax.set(xlabel="compute spent so far (TFLOP)", ylabel="validation loss")
    ax.set_title("three models: loss over compute", fontsize=10.5, fontweight="bold")
    ax.legend(frameon=False, fontsize=9)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)


def draw_layers(axes, answers):
    """
    The rise of the loss without one layer, over that layer: a dot for a trained model, a line through the
    means of its kind. answers: from tools.evaluate --tasks=layers. Each of axes shows one size.
    """
    answers = json.loads((ROOT / answers).read_text())
    for ax, size in zip(axes, ("6 x 64", "6 x 32")):
        for name, (part, color, x) in KINDS.items():
            rises = [[a[f"without layer {k}"] for k in range(1, 7)] for a in answers
                     if a["size"] == size and a["run"].startswith(part)]
            if rises:
                at = np.arange(1, 7) + x
                ax.plot(at, np.mean(rises, 0), color=color, lw=1.3, label=f"{name} ({len(rises)} seeds)")
                ax.plot(np.tile(at, len(rises)), np.ravel(rises), "o", color=color, ms=4, alpha=0.7, mew=0)
        ax.set(yscale="log", xlabel="layer left out", xticks=range(1, 7), yticks=[0.25, 0.5, 1, 2, 4],
               yticklabels=["0.25", "0.5", "1", "2", "4"])
        ax.minorticks_off()
        ax.set_title(size, fontsize=10.5, fontweight="bold")
        ax.legend(frameon=False, fontsize=9)
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("rise of the loss (nats)")


def main():
    fig = Figure(figsize=(11, 3.3), layout="constrained")
    left, right = fig.subfigures(1, 2, width_ratios=[1.75, 1])
    for ax, frame in zip(left.subplots(1, len(FRAMES)), FRAMES):
        draw_frame(ax, *frame)
    draw_family(right.subplots(), "results/family/report.json")
    fig.savefig(ROOT / "docs/growing.png", dpi=130)

    fig = Figure(figsize=(9, 3.3), layout="constrained")
    draw_layers(fig.subplots(1, 2, sharey=True), "results/gentle_start/layers.json")
    fig.savefig(ROOT / "docs/layers.png", dpi=130)


if __name__ == "__main__":
    main()
