"""
What runs of train.py say of each other: pure arithmetic on measured losses, no model.

Growing preserves the function, so a grown model goes on from the small one's *loss*, and from there
is taken to learn like any model of its size at that loss. So runs of the target's size are compared
by their lead: by how many iterations one is ahead of another's curve at equal loss. That is said of
the stable phase of the learning rate, where a run does not depend on its length; a decay of as many
iterations is taken to bring as much to either.
"""
from dataclasses import dataclass

import numpy as np

from base.errors import UserError, library

SMOOTH = 1e-3  # penalty of the spline through a curve's evaluations
BEYOND = 2     # a curve is continued to so many times its last iteration


@dataclass
class Curve:
    """A stable phase: `loss` (falling) at iterations `n` (rising)."""
    n: np.ndarray
    loss: np.ndarray

    def loss_at(self, n):
        return np.interp(n, self.n, self.loss)

    def iters_at(self, loss):
        """The iteration at which the loss is reached: the first one, or inf, if it is not on here."""
        return np.interp(-np.asarray(loss), -self.loss, self.n, right=np.inf)


def fit(iters, losses):
    """
    The Curve through measured losses: a smooth line over log n, for a loss that waits on a plateau
    and then falls is no power law; beyond the measured ones it goes on as it fell in their last
    third. Raises UserError for fewer than six points.
    """
    if len(iters) < 6:
        raise UserError(f"{len(iters)} evaluations are too few to fit a curve to: raise max_iters, or "
                        "lower decay_frac")
    x, n = np.log(iters), np.log(np.geomspace(iters[0], BEYOND * iters[-1], 800))
    smooth = library("scipy.interpolate", "scipy").make_smoothing_spline(x, losses, lam=SMOOTH)
    late = np.log(iters[-1] * 2 / 3)
    slope = (smooth(x[-1]) - smooth(late)) / (x[-1] - late)
    loss = smooth(np.minimum(n, x[-1])) + slope * np.maximum(n - x[-1], 0)
    # never rising and never quite flat: it is inverted
    return Curve(np.exp(n), np.minimum.accumulate(loss) - 1e-9 * np.arange(len(n)))


def lead(curve, iters, losses):
    """
    By how many iterations a run's evaluations are ahead of `curve`: the mean over their later half,
    for one alone is noisy.
    """
    ahead = curve.iters_at(losses) - np.asarray(iters, float)
    return float(ahead[len(ahead) // 2:].mean())
