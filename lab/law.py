"""
What growing can save in principle, by a loss law: L(N, D) = E + A N^-a + B D^-b for N weights
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
from dataclasses import dataclass, fields

import numpy as np

from lab.words import human, table
from run.errors import Parser, UserError, exits_cleanly, library
from run.given import number, read_json

WORTH = 1.15  # less than this is not worth a growth: seeds differ by as much


@dataclass
class Law:
    E: float
    A: float
    B: float
    a: float
    b: float

    def loss(self, N, D):
        """Nats a token of N weights after D tokens."""
        return self.E + self.A * N**-self.a + self.B * D**-self.b

    def tokens(self, N, loss):
        """The tokens that take N weights to a loss; infinite if they never come there."""
        with np.errstate(divide="ignore"):
            return (np.maximum(loss - self.E - self.A * N**-self.a, 0) / self.B)**(-1 / self.b)

    def size(self, loss, alpha):
        """The weights that leave the share alpha of loss - E."""
        return (alpha * (loss - self.E) / self.A)**(-1 / self.a)

    def best_size(self, loss):
        """The weights that reach a loss from scratch with the least compute."""
        return self.size(loss, 1 / (1 + self.a / self.b))

    def growth_size(self, loss):
        """The weights that take most loss off per FLOP for a model at that loss."""
        return self.size(loss, 1 / (1 + self.a * (1 + 1 / self.b)))

    def best_for(self, C):
        """The weights that come to the lowest loss with C FLOPs, from scratch."""
        return (self.a * self.A / (self.b * self.B) * (C / 6)**self.b)**(1 / (self.a + self.b))

    def balanced_tokens(self, N):
        """The tokens for which N weights are neither too many nor too few."""
        return (self.b * self.B * N**self.a / (self.a * self.A))**(1 / self.b)

    def best_compute(self, loss):
        """The FLOPs that a loss costs with the best fixed size."""
        N = self.best_size(loss)
        return 6 * N * self.tokens(N, loss)

    def growth_compute(self, loss, largest, start=None):
        """
        The FLOPs of an ideal growth to `loss`, up to `largest` weights; from nothing, or from start =
        (N, D), a model that is there.
        """
        smallest, first = (start[0], self.loss(*start)) if start else (0, self.E + 50 * (loss - self.E))
        if first <= loss:
            return 0.0
        R = np.geomspace(loss - self.E, first - self.E, 4000)
        N = np.clip(self.growth_size(R + self.E), smallest, largest)
        per_log = 6 * N * self.tokens(N, R + self.E) / (self.b * (1 - self.A * N**-self.a / R))
        return float(np.trapezoid(per_log, np.log(R)))

    def grown_loss(self, stages):
        """The loss of [(N, tokens it trains on as N weights), ...] if each is worth its loss alone."""
        seen = 0.0
        for i, (N, D) in enumerate(stages):
            if i:
                seen = self.tokens(N, self.loss(stages[i - 1][0], seen))
            seen += D
        return float(self.loss(stages[-1][0], seen))

    def savings(self, N, D, small=None):
        """
        For a target of N weights on D tokens, a dict: loss; tokens_per_param; oversize (N / best size
        for its loss) and for_budget (N / best size for its compute); against_target and against_best
        (FLOPs of the target from scratch, and of the best fixed size, over those of an ideal growth
        to the same loss). small: (weights, tokens) of a model that is there already.
        """
        loss, C = float(self.loss(N, D)), 6 * N * D
        grown = self.growth_compute(loss, N, small) or np.inf
        return dict(loss=loss, tokens_per_param=D / N, oversize=N / self.best_size(loss),
                    for_budget=N / self.best_for(C), against_target=C / grown,
                    against_best=self.best_compute(loss) / grown, best_size=self.best_size(loss))

    def verdict(self, N, D=None, C=None, small=None):
        """(grow?, why in words) for a target of N weights and D tokens or C FLOPs; see savings()."""
        D = C / (6 * N) if D is None else D
        if small and small[0] >= N:
            raise UserError(f"the small model has {human(small[0])} weights, the target {human(N)}: "
                            "a model only grows")
        s = self.savings(N, D, small)
        if small and (had := self.loss(*small)) <= s["loss"]:
            return False, f"Do not grow: what is there is at {had:.4f}, the target's is {s['loss']:.4f}."
        grow, ratio = s["against_target"] >= WORTH, s["for_budget"]
        fits = "as many as their budget wants" if 0.95 < ratio < 1.05 else (
            f"{max(ratio, 1 / ratio):.2g} times too {'many' if ratio > 1 else 'few'} for their budget")
        words = (f"{'Grow' if grow else 'Do not grow'}: {human(N)} weights on {human(D)} tokens "
                 f"({s['tokens_per_param']:.3g} a weight) are {fits}. To their loss, "
                 f"{s['loss']:.4f}, an ideal growth {'from what is there ' * bool(small)}takes "
                 f"{s['against_target']:.3g} times less compute than they do from scratch")
        if s["best_size"] < 0.95 * N:
            words += (f", and {s['against_best']:.3g} times less than {human(s['best_size'])} weights "
                      "from scratch, the best fixed size for that loss")
        if grow and s["against_best"] < WORTH:
            words += ": if it need not be the target's size, train those"
        return grow, words + "."


# "Training Compute-Optimal Large Language Models", Hoffmann et al. 2022, arXiv 2203.15556, approach 3
CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, a=0.34, b=0.28)
PYSTDLIB = None  # bytes of Python's standard library: not measured yet, lab.frontier writes law.json


def fit(points):
    """The Law of points [(N, D, loss), ...]: Huber's loss on log residuals, as in the paper above."""
    N, D, L = (np.array(v, dtype=float) for v in zip(*points)) if points else ([], [], [])
    if len(points) < 5 or len(set(N)) < 2 or len(set(D)) < 2:
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


def read_law(path):
    """A Law from a JSON file of its five numbers, as lab.frontier writes one."""
    names = {f.name: (int, float) for f in fields(Law)}
    return Law(**{k: float(v) for k, v in read_json(path, **names).items() if k in names})


@exits_cleanly
def main():
    p = Parser(prog="python -m lab.law", description=__doc__,
               formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--params", type=number(float, 1), required=True, help="the target's weights")
    p.add_argument("--tokens", type=number(float, 1), required=True, help="what it trains on")
    p.add_argument("--small", type=number(float, 1), nargs=2, metavar=("WEIGHTS", "TOKENS"),
                   help="a model that is there already")
    p.add_argument("--law", type=os.path.expanduser,
                   help="a JSON file with E, A, B, a, b (default: Chinchilla's)")
    args = p.parse_args(sys.argv[1:])
    law = read_law(args.law) if args.law else CHINCHILLA
    keys = ("oversize", "against_target", "against_best")
    print(table(["tokens a weight", "target / best size for its loss", "ideal growth, against it",
                 "against the best fixed size"],
                [[r, *(f"{law.savings(args.params, r * args.params)[k]:.3g}" for k in keys)]
                 for r in (0.3, 1.25, 5, 10, 20, 40, 80)]), end="\n\n")
    print(law.verdict(args.params, args.tokens, small=args.small)[1])


if __name__ == "__main__":
    main()
