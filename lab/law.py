"""
What growing can save in principle, by a loss law: L(N, D) = E + A N^-a + B D^-b for N parameters
(embeddings left out) trained on D tokens, at a compute of C = 6 N D FLOPs.

    python -m lab.law --params=7e9 --tokens=35e9
    python -m lab.law --params=7e9 --tokens=35e9 --small 1e9 100e9 --law=out/frontier/law.json

A grown model is taken to be worth its loss and nothing more: after a growth it learns like a native
model of its new size at that loss. Write R = L - E and alpha = A N^-a / R, the share of R that size
leaves. Then N = (alpha R / A)^(-1/a) and D = ((1 - alpha) R / B)^(-1/b), and
- a loss costs least from scratch where N D is smallest:             alpha = 1 / (1 + a / b);
- -dR/dC = b (1 - alpha) R / (6 N D) is largest, at that loss, where alpha = 1 / (1 + a (1 + 1/b)):
  a larger model. An ideal growth is that size all along, but no larger than its target.
"""
import argparse
import os
import sys
from dataclasses import asdict, dataclass

import numpy as np

from base.errors import Parser, UserError, exits_cleanly, library, number
from base.reading import need, read_json
from base.words import human, table

WORTH = 1.15  # less than this is not worth a growth: seeds differ by as much


@dataclass
class Law:
    """
    of: what it was fitted to; vocab_size: of the tokenizer whose tokens it is about, 0 if another's;
    embeddings: does N count them?
    """
    E: float
    A: float
    B: float
    a: float
    b: float
    of: str = "a law of unknown origin"
    vocab_size: int = 0
    embeddings: bool = False

    def __str__(self):
        return ", ".join(f"{k} = {getattr(self, k):.4g}" for k in "EABab")

    def loss(self, N, D):
        """Nats a token of N parameters after D tokens."""
        return self.E + self.A * N**-self.a + self.B * D**-self.b

    def tokens(self, N, loss):
        """The tokens that take N parameters to a loss; infinite if they never come there."""
        with np.errstate(divide="ignore"):
            return (np.maximum(loss - self.E - self.A * N**-self.a, 0) / self.B)**(-1 / self.b)

    def size(self, loss, alpha):
        """The parameters that leave the share alpha of loss - E."""
        return (alpha * (loss - self.E) / self.A)**(-1 / self.a)

    def best_size(self, loss):
        """The parameters that reach a loss from scratch with the least compute."""
        return self.size(loss, 1 / (1 + self.a / self.b))

    def growth_size(self, loss):
        """The parameters that take most loss off per FLOP for a model at that loss."""
        return self.size(loss, 1 / (1 + self.a * (1 + 1 / self.b)))

    def best_for(self, C):
        """The parameters that come to the lowest loss with C FLOPs, from scratch."""
        return (self.a * self.A / (self.b * self.B) * (C / 6)**self.b)**(1 / (self.a + self.b))

    def balanced_tokens(self, N):
        """The tokens for which N parameters are neither too many nor too few."""
        return (self.b * self.B * N**self.a / (self.a * self.A))**(1 / self.b)

    def growth_compute(self, loss, largest, start=None):
        """
        The FLOPs of an ideal growth to `loss`, up to `largest` parameters; from nothing, or from start =
        (N, D), a model that is there.
        """
        smallest, high = (start[0], self.loss(*start)) if start else (0, np.inf)
        share, k = 1 / (1 + self.a * (1 + 1 / self.b)), 1 / self.a + 1 / self.b

        def fixed(N):  # the FLOPs to a loss, as N parameters
            return lambda loss: 6 * N * self.tokens(N, loss)

        def ideal(loss):  # the same, as growth_size() all along
            return 0 if loss == np.inf else fixed(self.growth_size(loss))(loss) / (
                self.b * (1 - share) * k)
        spent = 0.0  # as what is there, while that is larger than the ideal; as the ideal; as the target
        for cost, N in ((fixed(smallest), smallest), (ideal, largest), (fixed(largest), np.inf)):
            low = max(loss, self.E + (self.A * N**-self.a / share if N else np.inf))
            if low < high:
                spent, high = spent + cost(low) - cost(high), low
        return float(spent)

    def grown_loss(self, stages):
        """The loss of [(N, tokens it trains on as N parameters), ...] if each is worth its loss alone."""
        seen = 0.0
        for i, (N, D) in enumerate(stages):
            if i:
                seen = self.tokens(N, self.loss(stages[i - 1][0], seen))
            seen += D
        return float(self.loss(stages[-1][0], seen))

    def savings(self, N, D, small=None):
        """
        For a target of N parameters on D tokens, a dict: best_size for its loss; oversize (N / that) and
        for_budget (N / best size for its compute); against_target and against_best (FLOPs of the
        target from scratch, and of the best fixed size, over those of an ideal growth to the same
        loss). small: (parameters, tokens) of a model that is there already; then against_small, too, that
        of training it on.
        """
        if small and small[0] >= N:
            raise UserError(f"the small model has {human(small[0])} parameters, the target {human(N)}: "
                            "a model only grows")
        loss, C = float(self.loss(N, D)), 6 * N * D
        if not self.E * (1 + 1e-9) < loss < np.inf:
            raise UserError(f"{human(N)} parameters on {human(D)} tokens: the law's loss there is {loss:g}, "
                            f"its lowest {self.E:g}: it says nothing about so many or so few")
        grown, best = self.growth_compute(loss, N, small), self.best_size(loss)
        costs = dict(target=C, best=6 * best * self.tokens(best, loss))
        if small:
            costs["small"] = 6 * small[0] * max(0, self.tokens(small[0], loss) - small[1])
        return dict(best_size=best, oversize=N / best, for_budget=N / self.best_for(C), **{
            f"against_{k}": float(c / grown) if grown else np.inf for k, c in costs.items()})

    def one_growth(self, N, D, small=None):
        """
        The best single growth to N parameters and to their loss after D tokens: dict of saves (times less
        FLOPs than theirs), small (the parameters it starts with), at (share of its FLOPs). small: as above.
        """
        goal = self.loss(N, D) - self.E
        top = self.loss(*small) - self.E if small else 30 * goal
        n, had = (np.array([small[0]]), small[1]) if small else (N / np.geomspace(1.2, 100, 60), 0)
        loss = self.E + np.geomspace(goal, max(goal, top), 300)[:, None]  # where it grows
        first = 6 * n * np.maximum(self.tokens(n, loss) - had, 0)
        total = first + 6 * N * (D - self.tokens(N, loss))
        i, j = np.unravel_index(np.argmin(total), total.shape)
        return dict(saves=float(6 * N * D / total[i, j]), small=float(n[j]),
                    at=float(first[i, j] / total[i, j]))

    def counted(self, params, weights):
        """This law's N of a model with so many parameters, of them so many in its blocks' matrices."""
        return params if self.embeddings else weights


def advise(law, N, D, small=None, measured=None):
    """
    Is it worth growing to N parameters that would train on D tokens from scratch? small: (parameters, tokens)
    of a model that is there. measured: the compute that growing saved there, (mean, low, high) against
    the target and against the best fixed size, and with a small model the loss less that of training it
    on, instead of the most that the law allows. A dict: the law's savings(), one (one_growth()), fits
    and words (sentences).
    """
    s = law.savings(N, D, small)
    there = s["against_target"] == np.inf
    size, ratio, how = f"{human(s['best_size'])} parameters", s["for_budget"], "at most"
    saves, sure = s["against_target"], True
    instead, gain = f"train {size} from scratch", s["against_best"]
    if small and s["against_small"] <= gain:
        instead, gain = "train the small one on", s["against_small"]
    against = f"{gain:.3g}x against that"
    better = False  # than all else? The most that a law allows is no promise
    if measured:
        (saves, low, _), best, *lost = measured
        sure, how = low is not None and low >= 1, "measured"
        if lost and lost[0] is not None and lost[0] > 0:
            instead, against = "train the small one on", f"which ended {lost[0]:.2g} lower"
        elif best:
            against = f"{best[0]:.3g}x against that"
            better = best[0] >= WORTH and best[1] is not None and best[1] >= 1
    fits = "as many as" if 0.95 < ratio < 1.05 else \
        f"{max(ratio, 1 / ratio):.2g} times {'more' if ratio > 1 else 'fewer'} than"
    fits = f"{human(N)} parameters on {human(D)} tokens ({D / N:.3g} per parameter) are {fits} this compute " \
        "wants."
    gains = f"{saves:.3g}x against the target from scratch, {how}"
    if there:
        words = "Grow if it must be this size: what is there is better already than the target from " \
            "scratch would be; if not, train it on."
    elif saves < WORTH or not sure:
        words = f"Do not grow ({gains}{', which may be chance' * (saves >= WORTH)}): train the target " \
            "from scratch" + (f", or better {size}." if ratio < 0.8 else ".")
    elif better:
        words = f"Grow ({gains}; {best[0]:.3g}x against {size}, the best fixed size)."
    else:
        words = f"Grow if it must be this size ({gains}); if not, do not grow: {instead} ({against})."
    return dict(s, one=None if there else law.one_growth(N, D, small), fits=fits, words=words)


# Chinchilla's runs, fitted again: "Chinchilla Scaling: A replication attempt", arXiv 2404.10102
BESIROGLU = Law(E=1.8172, A=482.01, B=2085.43, a=0.3478, b=0.3658, embeddings=True,
                of="Besiroglu et al. 2024, Chinchilla's runs on English web text")


def enough(points):
    """Are there points for all five numbers of a law?"""
    return len(points) >= 5 and all(len({p[i] for p in points}) >= 3 for i in (0, 1))


def fit(points):
    """The Law of points [(N, D, loss), ...]: Huber's loss on log residuals, as in arXiv 2203.15556."""
    N, D, L = (np.array(v, dtype=float) for v in zip(*points)) if points else ([], [], [])
    if not enough(points):
        raise UserError(f"a loss law has 5 numbers, and cannot be had from {len(points)} points of "
                        f"{len(set(N))} sizes and {len(set(D))} token counts: finish more runs")
    least_squares = library("scipy.optimize", "scipy").least_squares
    n, d = np.exp(np.log(N).mean()), np.exp(np.log(D).mean())  # A and B there are of order 1

    def residuals(p):
        E, A, B, a, b = p
        return np.log(E + np.exp(A) * (N / n)**-a + np.exp(B) * (D / d)**-b) - np.log(L)
    low, high = [0, -15, -15, 0.02, 0.02], [L.min(), 5, 5, 3, 3]
    tried = [least_squares(residuals, [E * L.min(), np.log(0.3), np.log(0.3), a, b], loss="huber",
                           f_scale=1e-3, x_scale=[0.1, 1, 1, 0.1, 0.1], bounds=(low, high))
             for E in (0.2, 0.8) for a in (0.2, 0.7) for b in (0.2, 0.7)]
    E, A, B, a, b = map(float, min(tried, key=lambda r: r.cost).x)
    return Law(E, float(np.exp(A) * n**a), float(np.exp(B) * d**b), a, b)


def fit_three(points, like):
    """The Law of points too few for fit(): E, A, B by least squares, with the exponents of `like`."""
    N, D, L = (np.array(v, dtype=float) for v in zip(*points))
    if len(points) < 3 or len(set(N)) < 2 or len(set(D)) < 2:
        raise UserError(f"{len(points)} runs of {len(set(N))} sizes and {len(set(D))} token counts are "
                        "too few for a law: 3 runs, 2 sizes and 2 token counts at least, better 5, 3, 3")
    columns = np.stack([np.ones_like(N), N**-like.a, D**-like.b], 1) / L[:, None]
    scale = columns.max(0)
    E, A, B = library("scipy.optimize", "scipy").nnls(columns / scale, np.ones_like(L))[0] / scale
    if not (A and B):
        raise UserError(f"in these runs {'tokens' if A else 'parameters'} make no difference to the loss: "
                        "no law fits them")
    return Law(float(E), float(A), float(B), like.a, like.b)


def read_law(path):
    """A Law from a JSON file of its five numbers, as lab.frontier and lab.plan --fit write one."""
    found = read_json(path, **dict.fromkeys("EABab", (int, float)))
    five = {k: float(found[k]) for k in "EABab"}
    if not all(0 <= v < np.inf for v in five.values()) or not all(five[k] for k in "ABab"):
        raise UserError(f"{path}: E, A, B, a and b of a loss law are numbers above zero: {five}")
    more = need(path, {**asdict(Law(**five)), **found}, of=str, vocab_size=int)
    return Law(**five, of=more[0], vocab_size=more[1], embeddings=found.get("embeddings") is True)


@exits_cleanly
def main():
    p = Parser(prog="python -m lab.law", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--params", type=number(float, 1), required=True, help="the target's parameters")
    p.add_argument("--tokens", type=number(float, 1), required=True, help="what it trains on")
    p.add_argument("--small", type=number(float, 1), nargs=2, metavar=("PARAMETERS", "TOKENS"),
                   help="a model that is there already")
    p.add_argument("--law", type=os.path.expanduser,
                   help="a JSON file with E, A, B, a, b (default: Besiroglu et al. 2024)")
    args = p.parse_args(sys.argv[1:])
    law = read_law(args.law) if args.law else BESIROGLU
    keys = ("oversize", "against_target", "against_best")
    said = advise(law, args.params, args.tokens, args.small)
    print(table(["tokens per parameter", "target / best fixed size for its loss", "ideal growth, against it",
                 "against the best fixed size"],
                [[r, *(f"{law.savings(args.params, r * args.params)[k]:.3g}" for k in keys)]
                 for r in (0.3, 1.25, 5, 10, 20, 40, 80)]), end="\n\n")
    print(f"{said['fits']} {said['words']}\nLaw: {law.of}.")


if __name__ == "__main__":
    main()
