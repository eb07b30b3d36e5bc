"""A run's evaluations as a curve, and where it reaches a loss."""


def crossing(xs, ys, target):
    """The x at which a curve first falls to `target`, by linear interpolation; None if it never does."""
    for i, y in enumerate(ys):
        if y <= target:
            if i == 0 or ys[i - 1] == y:
                return xs[i]
            share = (ys[i - 1] - target) / (ys[i - 1] - y)
            return xs[i - 1] + share * (xs[i] - xs[i - 1])
    return None


def curve(events):
    """
    The evaluations in a run's metrics, a dict of lists: train_s, flops, iter, val_loss, whole.
    whole: has the model its final size, and are its ramps over?
    """
    points = [e for e in events if e["event"] == "eval" and isinstance(e.get("val_loss"), float)]
    sizes = [[e.get(k) for k in ("n_layer", "n_head", "n_embd", "n_inner")] for e in points]
    return {**{k: [e[k] for e in points] for k in ("train_s", "flops", "iter", "val_loss")},
            "whole": [s == sizes[-1] and e.get("mask", 1) == 1 for s, e in zip(sizes, points)]}


def reaches(curve, x, target):
    """
    Where, in units of `x`, a run reaches `target` at its final size; None if it never does.
    The loss of a smaller model does not count.
    """
    whole = curve["whole"]
    start = len(whole) - [*whole[::-1], False].index(False)
    return crossing(curve[x][start:], curve["val_loss"][start:], target)
