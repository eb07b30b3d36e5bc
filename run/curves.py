"""A run's evaluations as a curve, and when it reaches a loss."""


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
