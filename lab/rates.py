"""
The pre-training rate, and what it predicts: pure arithmetic on measured losses, no model.

The rate of a structure is the loss it takes off in a second: loss per iteration, which falls as
training goes on, over seconds per iteration, which do not change (Yao et al., ICLR 2024, section
3.4). Growing preserves the function, so a grown model starts where the small one stopped: at the
same *loss*, not at the same iteration. A schedule's loss is therefore predicted by chaining:

1. Each structure's loss in the stable phase of the learning rate is smoothed, over iterations n, and
   goes on beyond them as a + b (n + c)^-p (`fit`). Seconds an iteration are measured apart from it,
   so that a busy machine does not bend the curve. The target's own run leaves its stable phase
   early; from there it goes on like the probe that came furthest (`continued`).
2. A stage follows the curve of its structure from the iteration where that curve has the present
   loss (`predict`). The first half of a ramp counts for the old structure, the second for the new.
3. A grown model need not learn exactly like a native one of its loss: after a growth it is at
   `kappa` times that iteration. kappa is calibrated on a real grown run (`calibrate`).
4. When the learning rate decays at the end (WSD), the loss drops by much in a short time, whatever
   the rate was before. The two are kept apart: `drop` is how far a real run of the target fell below
   its own stable curve, as a function of the share of the decay that is over, and is subtracted.

Structures that were not probed follow from those that were (`combine`).
"""
from dataclasses import dataclass, replace

import numpy as np

from run.errors import library

KAPPAS = np.geomspace(0.3, 3.0, 61)
SMOOTH = 1e-3  # penalty of the spline through a curve's evaluations
MASKED = 1.15  # a step while a mask rises, against one without, where it was not measured


@dataclass
class Curve:
    """A structure's stable phase: `loss` (falling) at iterations `n` (rising), seconds a step."""
    n: np.ndarray
    loss: np.ndarray
    step_s: float

    def loss_at(self, n):
        return np.interp(n, self.n, self.loss)

    def iters_at(self, loss):
        """The iteration at which the loss is reached; the last known one if it never is."""
        return np.interp(-np.asarray(loss), -self.loss, self.n)

    def rate_at(self, loss):
        """Loss per second at this loss."""
        n = self.iters_at(loss)
        return (self.loss_at(n * 0.92) - self.loss_at(n * 1.08)) / (n * 0.16 * self.step_s)

    def rate_after(self, seconds):
        return self.rate_at(self.loss_at(seconds / self.step_s))


def grid(longest):
    """Iterations that all curves of a search are tabulated at."""
    return np.geomspace(1, 30 * longest, 800)


def fit(iters, losses, step_s, n):
    """
    The Curve through measured losses, tabulated at `n`: within the measured iterations a smooth
    line through them, for a loss that waits on a plateau and then falls is no power law; beyond
    them the power law of all, or of their later half if that is much closer there. Needs three
    points; raises ValueError with fewer.
    """
    x, y = np.maximum(np.asarray(iters, float), 0.5), np.asarray(losses, float)
    if len(x) < 3:
        raise ValueError(f"{len(x)} evaluations are too few to fit a curve to")
    late, trend = x >= min(x[-1] / 2, x[-3]), power_law(x, y)
    tail = power_law(x[late], y[late])
    if np.std(trend(x[late]) - y[late]) < 1.5 * np.std(tail(x[late]) - y[late]):
        tail = trend  # of more points, so the surer guide
    inside = np.minimum(n, x[-1])
    inside = trend(inside) + smooth(x, y - trend(x), inside)  # little of it is left to be smoothed
    return Curve(n, falling(inside + np.where(n > x[-1], tail(n) - tail(x[-1]), 0)), step_s)


def falling(loss):
    """Never rising and never quite flat: curves are inverted."""
    return np.minimum.accumulate(loss) - 1e-9 * np.arange(len(loss))


def smooth(x, y, at):
    """
    A smoothing spline of y on log x; constant outside of x. Its penalty is fixed: on known curves
    of 10 to 75 noisy points cross-validation chose worse ones, by up to ten times the error.
    """
    at = np.log(np.clip(at, x[0], x[-1]))
    if len(x) < 5:  # what the spline needs at least
        return np.interp(at, np.log(x), y)
    return library("scipy.interpolate", "scipy").make_smoothing_spline(np.log(x), y, lam=SMOOTH)(at)


def power_law(x, y):
    """The function n -> a + b (n + c)^-p closest to the points, by least squares; a, b, c >= 0."""
    def law(n, a, b, c, p):
        return a + b * (n / x[-1] + c) ** -p
    found = library("scipy.optimize", "scipy").least_squares(
        lambda v: law(x, *v) - y, (y.min() / 2, y.min() / 2, 0.01, 0.5), x_scale="jac",
        bounds=([0, 0, 0, 0.1], [np.inf, np.inf, 4, 2]))
    return lambda n: law(n, *found.x)


def continued(curve, last, reference):
    """
    `curve`, but beyond iteration `last`, the end of what was measured, it goes on like `reference`,
    which was measured further: where that has the same loss, at the same share of its iterations.
    """
    ratio = reference.iters_at(curve.loss_at(last)) / last
    beyond = reference.loss_at(curve.n * ratio)
    return replace(curve, loss=falling(np.where(curve.n <= last, curve.loss, beyond)))


def combine(base, single, full, chosen):
    """
    The curve of a structure that has the dimensions `chosen` of the target and the others of the
    start: loss (at equal iterations) and log seconds a step are the start's plus the effect of each
    dimension alone, plus a part of what all together do beyond that: none of it for one dimension,
    all of it for all. base, full: Curves of start and target; single: dimension -> Curve.
    """
    chosen = set(chosen)
    if not chosen:
        return base
    if chosen == set(single):
        return full
    share = (len(chosen) - 1) / max(1, len(single) - 1)

    def mix(f):
        alone = sum(f(single[d]) - f(base) for d in chosen)
        beyond = f(full) - f(base) - sum(f(s) - f(base) for s in single.values())
        return f(base) + alone + share * beyond
    step_s = float(np.exp(mix(lambda c: np.log(c.step_s))))
    return Curve(base.n, falling(mix(lambda c: c.loss)), step_s)


@dataclass
class Costs:
    """What a run pays and gains beyond its curves."""
    compile_s: float = 0.0       # at the start
    grow_s: float = 0.0          # at each growth: compiling
    masked: float = MASKED       # seconds of a masked step, against a clean one
    decay_frac: float = 0.0      # share of the run over which the learning rate decays
    drop_u: tuple = (0.0, 1.0)   # share of the decay that is over ...
    drop: tuple = (0.0, 0.0)     # ... and how far the loss is then below the stable curve
    kappa: float = 1.0
    slack: float = 1.0           # seconds of a real run, against the sum of the above


def predict(path, iters, ramp, costs, points=24):
    """
    path: [(Curve, iteration at which its stage begins), ...], the first at 0; iters: of the run;
    ramp: iterations of a ramp. Returns arrays (iterations, seconds, losses), with `points` of each
    for every stage, both ends included.
    """
    ends = [at for _, at in path[1:]] + [iters]
    its, secs, losses = [], [], []
    t, before, n = costs.compile_s, None, 0.0  # n: where on the curve `before` its stage ended
    for (curve, start), end in zip(path, ends):
        k = np.linspace(0, end - start, points)
        if before is None:
            y, dt = curve.loss_at(np.maximum(k, 1)), k * curve.step_s
        else:
            t += costs.grow_s
            half = min(ramp, end - start) / 2
            old = before.loss_at(n + np.minimum(k, half))
            at = costs.kappa * curve.iters_at(before.loss_at(n + half))
            y = np.where(k <= half, old,
                         np.minimum(old, curve.loss_at(at + np.maximum(k - half, 0))))
            dt = (k + (costs.masked - 1) * np.minimum(k, ramp)) * curve.step_s
        its.append(start + k)
        secs.append(t + dt)
        losses.append(y)
        t, before, n = secs[-1][-1], curve, curve.iters_at(y[-1])
    its, secs, losses = map(np.concatenate, (its, secs, losses))
    if costs.decay_frac:
        u = 1 - (iters - its) / (costs.decay_frac * iters)
        losses = losses - np.interp(np.maximum(u, 0), costs.drop_u, costs.drop)
    return its, secs * costs.slack, losses


def shortest(path, goal, costs, ramp_share, most):
    """
    The fewest iterations after which the run ends at `goal`, and their seconds, or (None, inf) if
    `most` do not suffice. path: [(Curve, share of the run), ...].
    """
    def end(iters):
        _, seconds, losses = predict([(c, share * iters) for c, share in path], iters,
                                     ramp_share * iters, costs, 3)
        return seconds[-1], losses[-1] - goal
    if end(most)[1] > 0:
        return None, float("inf")
    iters = 1.0 if end(1.0)[1] <= 0 else library("scipy.optimize", "scipy").brentq(
        lambda n: end(n)[1], 1.0, most, rtol=0.001)
    return iters, float(end(iters)[0])


def measured_drop(curve, iters, losses, total, decay_frac):
    """drop_u and drop of Costs, from a run's losses in its decay phase against its stable `curve`."""
    start = (1 - decay_frac) * total
    pairs = [((i - start) / (total - start), max(0.0, float(curve.loss_at(i) - y)))
             for i, y in zip(iters, losses) if i > start]
    return (0.0, *(p[0] for p in pairs)), (0.0, *(p[1] for p in pairs))


def calibrate(path, iters, ramp, costs, measured_iters, measured_losses):
    """The kappa with which `predict` comes closest to a real run after its last growth ramp."""
    last = path[-1][1] + ramp
    seen = [(i, y) for i, y in zip(measured_iters, measured_losses) if i > last]
    if len(path) < 2 or not seen:
        return costs.kappa
    x, y = map(np.array, zip(*seen))

    def error(kappa):
        its, _, losses = predict(path, iters, ramp, replace(costs, kappa=kappa))
        return ((np.interp(x, its, losses) - y) ** 2).sum()
    return float(min(KAPPAS, key=error))


def read_run(events):
    """
    What a run's metrics say: evaluations `iters`, `losses`, `seconds` (of training, growth and
    compilation included); `step_s` and `masked_s`, structure -> seconds of a step (medians);
    `compile_s` at the start and `grow_s` at a growth (seconds of first steps beyond a plain one, and
    of waiting for graphs made ahead).
    A structure is the tuple (n_layer, n_embd, n_head, n_inner).
    """
    clean, masked, start_s, grow_s, last = {}, {}, 0.0, 0.0, dict(event="")
    for e in events:
        if e["event"] == last["event"] == "step" and shape(last) == shape(e) and \
                e["iter"] > last["iter"]:
            seconds = (e["train_s"] - last["train_s"]) / (e["iter"] - last["iter"])
            kind = clean if e["mask"] == last["mask"] == 1 else masked
            kind.setdefault(shape(e), []).append(seconds)
        elif e["event"] == "compile" and e["iter"] == 1:
            start_s += e["first_step_s"]
        elif e["event"] in ("compile", "grow"):
            grow_s += e.get("first_step_s", 0.0) + e.get("wait_s", 0.0)
        if e["event"] in ("step", "compile", "grow"):
            last = e
    growths = sum(e["event"] == "grow" for e in events)
    clean, masked = ({k: float(np.median(v)) for k, v in s.items()} for s in (clean, masked))
    typical = float(np.mean(list(clean.values()))) if clean else 0.0
    evals = {e["iter"]: e for e in events if e["event"] == "eval"}
    evals = [evals[i] for i in sorted(evals)]
    return dict(iters=[e["iter"] for e in evals], losses=[e["val_loss"] for e in evals],
                seconds=[e["train_s"] for e in evals], step_s=clean, masked_s=masked,
                compile_s=max(0.0, start_s - typical),
                grow_s=max(0.0, grow_s - typical) / max(1, growths))


def shape(e):
    return e["n_layer"], e["n_embd"], e["n_head"], e["n_inner"]
