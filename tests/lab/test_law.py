"""The loss law: what growing can save in principle, fits, and the verdict in words."""
import json
import math
import sys

import numpy as np
import pytest

from base.errors import UserError
from lab import law
from lab.law import Law

integrate, optimize = map(pytest.importorskip, ("scipy.integrate", "scipy.optimize"))
quad, brentq, minimize_scalar = integrate.quad, optimize.brentq, optimize.minimize_scalar
# "Training Compute-Optimal Large Language Models", Hoffmann et al. 2022, arXiv 2203.15556, approach 3
CHINCHILLA = Law(E=1.69, A=406.4, B=410.7, a=0.34, b=0.28, embeddings=True)


def balanced_at(c, ratio):
    """The size whose compute-optimal tokens are `ratio` a weight."""
    return (c.b * c.B * ratio**-c.b / (c.a * c.A))**(1 / (c.b - c.a))


# tokens per parameter: target / best size for its loss, growth against the target, the best fixed size
TABLE = {20 / 64: ("15", "3.8", "1.06"), 1.25: ("5.4", "1.9", "1.06"), 5: ("2.2", "1.23", "1.06"),
         10: ("1.4", "1.10", "1.06"), 20: ("1", "1.04", "1.04"), 40: ("0.7", "1.02", "0.98"),
         80: ("0.5", "1.01", "0.87")}


@pytest.mark.parametrize("ratio", TABLE)
def test_what_an_ideal_growth_saves(ratio):
    """Targets that come to one loss, whose best fixed size has 20 tokens per parameter."""
    c, N = CHINCHILLA, balanced_at(CHINCHILLA, 20)
    assert c.balanced_tokens(N) == pytest.approx(20 * N)
    goal = c.loss(N, 20 * N)
    assert c.best_size(goal) == pytest.approx(N)
    target = math.exp(brentq(lambda x: c.loss(math.exp(x), ratio * math.exp(x)) - goal, 0, 50))
    s = c.savings(target, ratio * target)
    for key, printed in zip(("oversize", "against_target", "against_best"), TABLE[ratio]):
        digits = len(printed.partition(".")[2])
        assert f"{s[key]:.{digits}f}" == printed, key


def test_best_sizes_are_the_best():
    c, goal = CHINCHILLA, 2.5

    def compute(x):
        return math.log(6 * math.exp(x) * c.tokens(math.exp(x), goal))

    def slowness(x):
        N = math.exp(x)
        return -math.log(c.b * c.B * c.tokens(N, goal)**(-c.b - 1) / (6 * N))
    low = math.log(c.size(goal, 0.99))
    assert minimize_scalar(compute, (low, low + 1)).x == pytest.approx(math.log(c.best_size(goal)), abs=1e-3)
    fastest = minimize_scalar(slowness, (low, low + 1)).x
    assert fastest == pytest.approx(math.log(c.growth_size(goal)), abs=1e-3)
    C = math.exp(compute(math.log(c.best_size(goal))))
    assert c.best_for(C) == pytest.approx(c.best_size(goal))
    assert c.loss(c.best_for(C), C / 6 / c.best_for(C)) == pytest.approx(goal)
    assert c.tokens(1e9, c.loss(1e9, 2e10)) == pytest.approx(2e10) and c.tokens(1e3, 2.0) == math.inf


def test_growth_in_small_steps_costs_the_integral():
    """Many small growths, each worth its loss, by the law's own loss(): the same compute."""
    c, N = CHINCHILLA, 1e8
    small = (1e6, 2e7)
    goal = c.loss(N, 3e8)
    losses = np.linspace(c.loss(*small), goal, 3000)
    spent = 0.0
    for high, low in zip(losses, losses[1:]):
        n = min(max(c.growth_size(high), small[0]), N)
        spent += 6 * n * (c.tokens(n, low) - c.tokens(n, high))
    assert c.growth_compute(goal, N, small) == pytest.approx(spent, rel=2e-3)
    # and from nothing, without a limit, by its closed form
    k = 1 / c.a + 1 / c.b
    n, R = c.growth_size(goal), goal - c.E
    share = 1 - 1 / (1 + c.a * (1 + 1 / c.b))
    closed = 6 * n * c.tokens(n, goal) / (c.b * share * k)
    assert c.growth_compute(goal, 1e30) == pytest.approx(closed, rel=1e-4)
    assert quad(lambda r: (r / R)**(-k - 1) / R, R, np.inf)[0] * k == pytest.approx(1, rel=1e-3)


def test_worth_its_loss_and_nothing_more():
    c = CHINCHILLA
    assert c.grown_loss([(1e6, 5e7)]) == pytest.approx(c.loss(1e6, 5e7))
    assert c.grown_loss([(1e6, 5e7), (1e7, 0)]) == pytest.approx(c.loss(1e6, 5e7))
    grown = c.grown_loss([(1e6, 5e7), (1e7, 1e8)])
    assert c.loss(1e7, 1.5e8) < grown < c.loss(1e7, 1e8)  # less than as many tokens as itself


def test_advice():
    c, N = CHINCHILLA, balanced_at(CHINCHILLA, 20)
    said = law.advise(c, N, 1.25 * N)
    assert said["fits"] == ("25.2 M parameters on 31.4 M tokens (1.25 per parameter) are 3.5 times more than this "
                            "compute wants.")
    assert said["words"] == (
        "Grow if it must be this size (1.68x against the target from scratch, at most); if not, do not "
        "grow: train 5.83 M parameters from scratch (1.06x against that).")
    for ratio in (20, 40, 100):
        said = law.advise(c, N, ratio * N)
        assert said["words"].startswith("Do not grow")
        assert "more than" not in said["fits"]
    assert "fewer than" in said["fits"] and "or better " in said["words"]
    small = (N / 4, 20 * N)  # its compute is spent already
    said = law.advise(c, N, 20 * N, small)
    assert said["words"].startswith("Grow if it must be this size") and said["against_best"] > 1.15
    assert said["against_small"] > 1.15 and "not, do not grow: train" in said["words"]  # the most it may be
    said = law.advise(c, N, 5 * N, (N / 1.5, 3 * N))
    assert 1 < said["against_small"] < 1.15 and "do not grow: train the small one on (1x" in said["words"]


def test_advice_by_what_was_measured():
    c, N = CHINCHILLA, balanced_at(CHINCHILLA, 20)
    for target, best, grow, words in (
            ((1.4, 1.3, 1.5), None, True, "Grow if it must be this size (1.4x"),
            ((1.4, None, None), (1.3, None, None), False, "chance"),  # one seed
            ((1.4, 1.3, 1.5), (1.3, 1.2, 1.4), True, "Grow (1.4x against the target from scratch, measured; "
             "1.3x against"),
            ((1.4, 1.3, 1.5), (1.3, 0.9, 1.8), True, "Grow if it must be this size (1.4x"),
            ((1.4, 0.9, 2.0), (1.3, 0.9, 1.8), False, "Do not grow (1.4x against the target from "
             "scratch, measured, which may be chance)"),
            ((0.9, 0.8, 1.0), (0.8, 0.7, 0.9), False, "Do not grow (0.9x")):
        said = law.advise(c, N, 5 * N, measured=(target, best))
        assert said["words"].startswith("Grow") == grow and words in said["words"]
    said = law.advise(c, N, 5 * N, (N / 4, 4 * N), ((6, 5, 7), (4, 3, 5), 0.02))
    assert said["words"] == (
        "Grow if it must be this size (6x against the target from scratch, measured); if not, do not grow: "
        "train the small one on (which ended 0.02 lower).")
    assert law.advise(c, N, 5 * N, (N / 4, 4 * N), ((6, 5, 7), (4, 3, 5), -0.02))["words"].startswith("Grow (6x")


def test_advice_of_made_up_laws():
    small_always_wins = Law(E=1, A=0.01, B=100, a=0.3, b=0.3)
    said = law.advise(small_always_wins, 1e8, 2e9)
    assert said["words"].startswith("Grow if it must be this size") and "more than" in said["fits"]
    assert "if not, do not grow: train" in said["words"] and said["best_size"] < 1e6
    size_is_all = Law(E=1, A=1000, B=0.1, a=0.3, b=0.3)
    said = law.advise(size_is_all, 1e8, 2e9)
    assert not said["words"].startswith("Grow") and "fewer than" in said["fits"] and said["against_target"] > 0.999
    c, N = CHINCHILLA, balanced_at(CHINCHILLA, 20)
    D = brentq(lambda d: c.savings(N, d)["against_target"] - 3, N / 100, N)
    said = law.advise(c, N, D)
    assert said["words"].startswith("Grow") and "(3x against the target" in said["words"]
    at_best = law.advise(c, N, c.balanced_tokens(N))  # where nothing is too large or too small
    assert not at_best["words"].startswith("Grow") and at_best["against_target"] < 1.05 and "as many as" in at_best["fits"]
    there = law.advise(CHINCHILLA, 1e9, 1e7, small=(9e8, 1e12))
    assert there["words"].startswith("Grow") and "better already" in there["words"] and there["one"] is None
    seen = law.advise(CHINCHILLA, 1e9, 1e7, small=(9e8, 1e12), measured=((0.9, 0.8, 1.0), (0.9, 0.8, 1.0)))
    assert [seen[k] for k in ("words", "one")] == [there[k] for k in ("words", "one")]
    with pytest.raises(UserError, match="a model only grows"):
        law.advise(CHINCHILLA, 1e9, 1e10, small=(1e9, 1e10))


@pytest.mark.parametrize("small", [None, (2e6, 4e7)])
def test_one_growth(small):
    """No better than the ideal, no worse than its neighbours; its cost by the law's own arithmetic."""
    c, N, D = CHINCHILLA, 2.5e7, 1e8
    found = c.one_growth(N, D, small)
    assert 1 < found["saves"] < c.savings(N, D, small)["against_target"]
    n, spent = found["small"], found["at"] * 6 * N * D / found["saves"]
    d = spent / (6 * n) + (small[1] if small else 0)
    rest = D - c.tokens(N, c.loss(n, d))
    assert spent + 6 * N * rest == pytest.approx(6 * N * D / found["saves"])
    assert c.grown_loss([(n, d), (N, rest)]) == pytest.approx(c.loss(N, D))
    for other in (0.7 * d, 1.4 * d):
        if not small or other > small[1]:
            cost = 6 * n * (other - (small[1] if small else 0)) + \
                6 * N * max(0, D - c.tokens(N, c.loss(n, other)))
            assert cost > spent + 6 * N * rest


@pytest.mark.parametrize("noise", [0, 1e-3])
def test_fit(noise):
    true, rng = Law(E=0.6, A=30, B=60, a=0.35, b=0.4), np.random.default_rng(0)
    points = [(N, D, true.loss(N, D) * math.exp(noise * rng.normal()))
              for N in (2e4, 5e4, 1.2e5, 3.3e5) for D in (3e5, 1e6, 4e6, 1.6e7, 6e7)]
    found = law.fit(points)
    for N, D, _ in points:
        assert found.loss(N, D) == pytest.approx(true.loss(N, D), rel=1e-4 + 3 * noise)
    assert found.best_size(1.5) == pytest.approx(true.best_size(1.5), rel=0.01 + 100 * noise)
    points[7] = (*points[7][:2], 1.5 * points[7][2])  # an outlier
    assert law.fit(points).loss(1e5, 1e7) == pytest.approx(true.loss(1e5, 1e7), rel=0.01)


def test_too_little_to_fit():
    with pytest.raises(UserError, match="from 5 points of 1 size and 5 token counts"):
        law.fit([(1e5, D, 2.0) for D in range(1, 6)])
    with pytest.raises(UserError, match="from 0 points"):
        law.fit([])
    true = Law(E=0.6, A=30, B=60, a=CHINCHILLA.a, b=CHINCHILLA.b)
    points = [(N, D, true.loss(N, D)) for N, D in ((1e5, 1e6), (4e5, 1e6), (1e5, 8e6))]
    found = law.fit_three(points, CHINCHILLA)
    assert [getattr(found, k) for k in "EABab"] == pytest.approx([getattr(true, k) for k in "EABab"])
    with pytest.raises(UserError, match="2 runs of 2 sizes and 1 token count are too few"):
        law.fit_three(points[:2], CHINCHILLA)
    with pytest.raises(UserError, match="parameters make no difference"):
        law.fit_three([(1e5, 1e6, 2), (4e5, 1e6, 2), (1e5, 8e6, 1.5)], CHINCHILLA)


def test_command(tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["lab.law", "--params=7e9", "--tokens=35e9", *args])
        law.main()
        return capsys.readouterr().out
    assert run().splitlines()[-2].startswith("7 G parameters on 35 G tokens (5 per parameter) are 2")
    path = tmp_path / "law.json"
    path.write_text(json.dumps(dict(E=1, A=1000, B=1, a=0.3, b=0.3)))
    assert "Do not grow" in run(f"--law={path}", "--small", "1e9", "1e9").splitlines()[-2]
    for bad, said in (('{"E": 1}', "lacks A"), ('{"E": 1, "A": 0, "B": 1, "a": 1, "b": 1}', "above zero"),
                      ('{"E": 1, "A": 1, "B": 1, "a": 1, "b": 1, "of": 3}', "lacks of")):
        path.write_text(bad)
        with pytest.raises(SystemExit) as e:
            run(f"--law={path}")
        assert e.value.code == 2 and said in capsys.readouterr().err
