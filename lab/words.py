"""Shared output of the commands of lab/: reports, times."""
import os

from base.disk import write_json, written


def write_report(folder, text, report):
    """Write text to report.md and the dict to report.json."""
    with written(os.path.join(folder, "report.md")) as f:
        f.write(text + "\n")
    write_json(os.path.join(folder, "report.json"), report)


def clock(seconds):
    return f"{seconds / 3600:,.1f} h" if seconds >= 5400 else \
        f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.1f} s"
