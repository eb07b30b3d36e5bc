"""How the commands of lab/ take numbers and say them: flags, tables, quantities, times."""
import argparse
import math


def number(kind, low, high=math.inf):
    """For argparse's `type`: an int or float from `low` to `high`, both included, and finite."""
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high or math.isinf(value):
            raise argparse.ArgumentTypeError(
                f"{text}: must be a {'whole ' * (kind is int)}number, at least {low:g}" +
                (f" and at most {high:g}" if high < math.inf else ""))
        return value
    return read


def table(header, rows):
    """A Markdown table, columns aligned."""
    rows = [[str(v) for v in r] for r in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = ["| " + " | ".join(v.ljust(w) for v, w in zip(r, widths)) + " |" for r in rows]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def human(n, unit=""):
    for scale, letter in ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"),
                          (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= scale:
            return f"{n / scale:.3g} {letter}{unit}"
    return f"{n:.3g} {unit}".rstrip()


def clock(seconds):
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else \
        f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
