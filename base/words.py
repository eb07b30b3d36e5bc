"""Formatting of numbers and tables."""
import math


def table(header, rows):
    """A Markdown table with aligned columns."""
    rows = [[str(v) for v in r] for r in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(v.ljust(w) for v, w in zip(r, widths)) + " |" for r in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def count(n, noun):
    """1 seed, 2 seeds."""
    return f"{n} {noun}{'s' * (n != 1)}"


def human(n, unit=""):
    """Three significant figures and an SI prefix: 102 G."""
    n = float(f"{n:.3g}")
    power = min(8, int(math.log10(abs(n)) // 3)) if 1 <= abs(n) < math.inf else 0
    return f"{n / 1000**power:g} {' kMGTPEZY'[power].strip()}{unit}".rstrip()
