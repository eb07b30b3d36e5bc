"""The loss law: what growing can save in principle, fits, and the verdict in words."""
import json
import math
import sys

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize_scalar

from lab import law
from lab.law import CHINCHILLA, Law
from run.errors import UserError


def balanced_at(c, ratio):
    """The size whose compute-optimal tokens are `ratio` a weight."""
    return (c.b * c.B * ratio**-c.b / (c.a * c.A))**(1 / (c.b - c.a))


# tokens a weight: target / best size for its loss, growth against the target, the best fixed size
TABLE = {20 / 64: ("15", "3.8", "1.06"), 1.25: ("5.4", "1.9", "1.06"), 5: ("2.2", "1.23", "1.06"),
         10: ("1.4", "1.10", "1.06"), 20: ("1", "1.04", "1.04"), 40: ("0.7", "1.02", "0.98"),
         80: ("0.5", "1.01", "0.87")}


@pytest.mark.parametrize("ratio", TABLE)
def test_what_an_ideal_growth_saves(ratio):
    """Targets that come to one loss, whose best fixed size has 20 tokens a weight."""
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
    C = c.best_compute(goal)
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


def test_verdict():
    c, N = CHINCHILLA, balanced_at(CHINCHILLA, 20)
    grow, words = c.verdict(N, D=1.25 * N)
    assert grow and words.startswith("Grow: 25.2 M weights on 31.4 M tokens (1.25 a weight) are 3.5 "
                                     "times too many for their budget")
    assert "1.68 times less compute than they do from scratch, and 1.06 times less" in words
    assert words.endswith("if it need not be the target's size, train those.")
    for ratio in (20, 40, 100):
        grow, words = c.verdict(N, C=6 * ratio * N * N)
        assert not grow and words.startswith("Do not grow") and "too many" not in words
    assert "too few" in words
    small = (N / 4, 20 * N)  # its compute is spent already
    grow, words = c.verdict(N, D=20 * N, small=small)
    assert grow and "growth from what is there takes" in words
    assert c.savings(N, 20 * N, small)["against_best"] > 1.15


def test_verdict_of_made_up_laws():
    size_hardly_matters = Law(E=1, A=0.01, B=100, a=0.3, b=0.3)
    grow, words = size_hardly_matters.verdict(1e8, D=2e9)
    assert grow and "too many for their budget" in words
    size_is_all = Law(E=1, A=1000, B=0.1, a=0.3, b=0.3)
    grow, words = size_is_all.verdict(1e8, D=2e9)
    assert not grow and "too few for their budget" in words
    grow, words = CHINCHILLA.verdict(1e9, D=1e7, small=(9e8, 1e12))
    assert not grow and "what is there is at 2.2361" in words
    with pytest.raises(UserError, match="a model only grows"):
        CHINCHILLA.verdict(1e9, D=1e10, small=(1e9, 1e10))


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
    with pytest.raises(UserError, match="from 5 points of 1 sizes and 5 token counts"):
        law.fit([(1e5, D, 2.0) for D in range(1, 6)])
    with pytest.raises(UserError, match="from 0 points"):
        law.fit([])


def test_command(tmp_path, monkeypatch, capsys):
    def run(*args):
        monkeypatch.setattr(sys, "argv", ["lab.law", "--params=7e9", "--tokens=35e9", *args])
        law.main()
        return capsys.readouterr().out
    assert run().splitlines()[-1].startswith("Grow: 7 G weights on 35 G tokens (5 a weight)")
    path = tmp_path / "law.json"
    path.write_text(json.dumps(dict(E=1, A=1000, B=1, a=0.3, b=0.3)))
    assert run(f"--law={path}", "--small", "1e9", "1e9").splitlines()[-1].startswith("Do not grow")
    path.write_text('{"E": 1}')
    with pytest.raises(SystemExit) as e:
        run(f"--law={path}")
    assert e.value.code == 2 and "lacks A" in capsys.readouterr().err
