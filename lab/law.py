"""
What growing can save in theory, by a loss law: L(N, D) = E + A N^-a + B D^-b for N parameters
(without embeddings) trained on D tokens, which costs C = 6 N D FLOPs.

    python -m lab.law --params=7e9 --tokens=35e9
    python -m lab.law --params=7e9 --tokens=35e9 --small 1e9 100e9 --law=out/frontier/law.json

Assumption: only its loss counts for a grown model. After a growth it learns like a model of the new size,
trained from scratch to that loss. Write R = L - E, and alpha = A N^-a / R for the share of R due to size.
Then N = (alpha R / A)^(-1/a) and D = ((1 - alpha) R / B)^(-1/b).
- From scratch a loss costs least where N D is smallest:             alpha = 1 / (1 + a / b).
- At that loss, -dR/dC = b (1 - alpha) R / (6 N D) is largest where alpha = 1 / (1 + a (1 + 1/b)):
  a larger model. An ideal growth always has that size, up to its target's.
"""
import argparse
import os
import sys
from dataclasses import asdict, dataclass

import numpy as np

from base.errors import Parser, UserError, exits_cleanly, library, number
from base.reading import need, read_json
from base.words import count, human, table

WORTH = 1.15  # below this a growth is not worth it: seeds differ by as much


@dataclass
class Law:
    """
    of: what it was fitted to. vocab_size: of its tokenizer, 0 if that is none of ours. embeddings: does
    N count them?
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
        """Loss of N parameters after D tokens, in nats per token."""
        return self.E + self.A * N**-self.a + self.B * D**-self.b

    def tokens(self, N, loss):
        """The tokens that N parameters need to reach a loss; infinite if they never do."""
        with np.errstate(divide="ignore"):
            return (np.maximum(loss - self.E - self.A * N**-self.a, 0) / self.B)**(-1 / self.b)

    def size(self, loss, alpha):
        """The parameters at which size accounts for the share alpha of loss - E."""
        return (alpha * (loss - self.E) / self.A)**(-1 / self.a)

    def best_size(self, loss):
        """The parameters that reach a loss from scratch with least compute."""
        return self.size(loss, 1 / (1 + self.a / self.b))

    def growth_size(self, loss):
        """The parameters that lower the loss most per FLOP, for a model at that loss."""
        return self.size(loss, 1 / (1 + self.a * (1 + 1 / self.b)))

    def best_for(self, C):
        """The parameters that reach the lowest loss from scratch with C FLOPs."""
        return (self.a * self.A / (self.b * self.B) * (C / 6)**self.b)**(1 / (self.a + self.b))

    def balanced_tokens(self, N):
        """The tokens for which N is the best fixed size."""
        return (self.b * self.B * N**self.a / (self.a * self.A))**(1 / self.b)

    def growth_compute(self, loss, largest, start=None):
        """
        The FLOPs of an ideal growth to `loss`, up to `largest` parameters. It begins from scratch, or
        from an existing model, start = (N, D).
        """
        smallest, high = (start[0], self.loss(*start)) if start else (0, np.inf)
        share, k = 1 / (1 + self.a * (1 + 1 / self.b)), 1 / self.a + 1 / self.b

        def fixed(N):  # FLOPs to a loss with N parameters
            return lambda loss: 6 * N * self.tokens(N, loss)

        def ideal(loss):  # the same, always at growth_size()
            return 0 if loss == np.inf else fixed(self.growth_size(loss))(loss) / (
                self.b * (1 - share) * k)
        spent = 0.0  # the existing model while larger than the ideal; the ideal; the target
        for cost, N in ((fixed(smallest), smallest), (ideal, largest), (fixed(largest), np.inf)):
            low = max(loss, self.E + (self.A * N**-self.a / share if N else np.inf))
            if low < high:
                spent, high = spent + cost(low) - cost(high), low
        return float(spent)

    def grown_loss(self, stages):
        """The final loss of [(N, tokens trained on at this N), ...], if only the loss counts."""
        seen = 0.0
        for i, (N, D) in enumerate(stages):
            if i:
                seen = self.tokens(N, self.loss(stages[i - 1][0], seen))
            seen += D
        return float(self.loss(stages[-1][0], seen))

    def savings(self, N, D, small=None):
        """
        A dict for a target of N parameters on D tokens. best_size: for its loss. oversize: N / best_size.
        for_budget: N / best size for its compute. against_target, against_best: FLOPs of the target from
        scratch, and of the best fixed size, over those of an ideal growth to the same loss. With small,
        (parameters, tokens) of an existing model, also against_small: the same for training that one
        on.
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
        The best single growth to N parameters and to their loss after D tokens, a dict. saves: their FLOPs
        over its own. small: the parameters it starts with. at: share of its FLOPs. Argument small: as above.
        """
        goal = self.loss(N, D) - self.E
        top = self.loss(*small) - self.E if small else 30 * goal
        n, had = (np.array([small[0]]), small[1]) if small else (N / np.geomspace(1.2, 100, 60), 0)
        loss = self.E + np.geomspace(goal, max(goal, top), 300)[:, None]  # losses at which it may grow
        first = 6 * n * np.maximum(self.tokens(n, loss) - had, 0)
        total = first + 6 * N * (D - self.tokens(N, loss))
        i, j = np.unravel_index(np.argmin(total), total.shape)
        return dict(saves=float(6 * N * D / total[i, j]), small=float(n[j]),
                    at=float(first[i, j] / total[i, j]))

    def counted(self, params, weights):
        """The N that this law counts for a model: all parameters, or those in its blocks' matrices."""
        return params if self.embeddings else weights


def advise(law, N, D, small=None, measured=None):
    """
    Is it worth growing to N parameters, for a target trained on D tokens? small: (parameters, tokens) of an
    existing model. measured: used instead of the law's upper bound. It holds the compute multipliers
    (mean, low, high) against the target and the best fixed size; with a small model, the loss less that
    of training it on. Returns a dict: the law's savings(), one (one_growth()), fits and words
    (sentences).
    """
    s = law.savings(N, D, small)
    there = s["against_target"] == np.inf
    size, ratio, how = f"{human(s['best_size'])} parameters", s["for_budget"], "at most"
    saves, sure = s["against_target"], True
    instead, gain = f"train {size} from scratch", s["against_best"]
    if small and s["against_small"] <= gain:
        instead, gain = "train the small one on", s["against_small"]
    against = f"{gain:.3g}x against that"
    better = False  # than everything else? The law gives only an upper bound
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
            "scratch would be."
    elif saves < WORTH or not sure:
        words = f"Do not grow ({gains}{', which may be chance' * (saves >= WORTH)}): train the target " \
            "from scratch" + (f", or better {size}." if ratio < 0.8 else ".")
    elif better:
        words = f"Grow ({gains}; {best[0]:.3g}x against {size}, the best fixed size)."
    else:
        words = f"Grow if it must be this size ({gains}); if not, do not grow: {instead} ({against})."
    return dict(s, one=None if there else law.one_growth(N, D, small), fits=fits, words=words)


# A new fit of Chinchilla's runs: "Chinchilla Scaling: A replication attempt", arXiv 2404.10102
BESIROGLU = Law(E=1.8172, A=482.01, B=2085.43, a=0.3478, b=0.3658, embeddings=True,
                of="Besiroglu et al. 2024, Chinchilla's runs on English web text")


def enough(points):
    """Are there enough points to fit all five numbers of a law?"""
    return len(points) >= 5 and all(len({p[i] for p in points}) >= 3 for i in (0, 1))


def fit(points):
    """Fit a Law to [(N, D, loss), ...]: Huber loss on log residuals, as in arXiv 2203.15556."""
    N, D, L = (np.array(v, dtype=float) for v in zip(*points)) if points else ([], [], [])
    if not enough(points):
        raise UserError(f"a loss law has 5 numbers, and cannot be had from {count(len(points), 'point')} of "
                        f"{count(len(set(N)), 'size')} and {count(len(set(D)), 'token count')}: finish more runs")
    least_squares = library("scipy.optimize", "scipy").least_squares
    n, d = np.exp(np.log(N).mean()), np.exp(np.log(D).mean())  # relative to these, A and B are of order 1

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
    """A Law from too few points for fit(): E, A, B by least squares, exponents from `like`."""
    N, D, L = (np.array(v, dtype=float) for v in zip(*points))
    if len(points) < 3 or len(set(N)) < 2 or len(set(D)) < 2:
        raise UserError(f"{count(len(points), 'run')} of {count(len(set(N)), 'size')} and {count(len(set(D)), 'token count')} "
                        "are too few for a law: 3 runs, 2 sizes and 2 token counts at least, better 5, 3, 3")
    columns = np.stack([np.ones_like(N), N**-like.a, D**-like.b], 1) / L[:, None]
    scale = columns.max(0)
    E, A, B = library("scipy.optimize", "scipy").nnls(columns / scale, np.ones_like(L))[0] / scale
    if not (A and B):
        raise UserError(f"in these runs {'tokens' if A else 'parameters'} make no difference to the loss: "
                        "no law fits them")
    return Law(float(E), float(A), float(B), like.a, like.b)


def read_law(path):
    """Read a Law from a JSON file of its five numbers, as written by lab.frontier or lab.plan --fit."""
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
