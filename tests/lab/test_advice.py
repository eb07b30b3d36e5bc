"""Whether to grow, before a run: which law, both columns, and laws of a user's own runs."""
import json

import pytest
from test_plan import plan_here

from base import disk
from lab import advice
from lab.law import BESIROGLU, Law, read_law


def test_advice(monkeypatch, capsys, tmp_path):
    """Which law, both columns, units; by a law that is given, for a small model that is given."""
    monkeypatch.setattr(advice, "STUDIES", [str(tmp_path)])
    ask = ["config/pystdlib_msg.py", "--dry", "--vocab_size=256"]
    plan_here(monkeypatch, *ask)
    said = capsys.readouterr().out
    assert "Besiroglu et al. 2024" in said and "another tokenizer" in said and "not measured yet" in said
    assert "To be trained: Grow if" in said and "There already: Grow" in said
    assert len(said.partition("Grow?")[2].splitlines()) < 20
    own = dict(E=1, A=1000, B=0.1, a=0.3, b=0.3, vocab_size=256, of="a toy")
    disk.write_json(str(tmp_path / "law.json"), own)  # the study's
    plan_here(monkeypatch, *ask)
    said = capsys.readouterr().out
    assert "Law: a toy, per token of 256 ids." in said and "To be trained: Do not grow" in said
    plan_here(monkeypatch, "config/gpt2_msg.py", "--dry", f"--law={tmp_path}/law.json", "--small=3e6,5e9")
    said = capsys.readouterr().out
    assert "another tokenizer" in said and "there already: 3 M, 5 G tokens" in said
    with pytest.raises(SystemExit):
        plan_here(monkeypatch, *ask, "--small=9e9")
    assert "a model only grows" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        plan_here(monkeypatch, *ask, "--small=out/none")
    assert "--small: out/none: is no run's folder, no PARAMETERS" in capsys.readouterr().err


def test_the_nearest_of_what_was_measured():
    """First by tokens per parameter, then by weights, then by seeds; of one study's budget the best."""
    rows = [dict(budget=b, weights=w, target=t and [t], seeds=range(n), name=f"{b} {w} {t}") for b, w, t, n in (
        (5, 1e6, 1.3, 3), (5, 1e6, 1.1, 3), (5, 1e6, 1.4, 1), (5, 1e7, 0.8, 1), (20, 1e6, 1.0, 1), (20, 1e7, None, 1))]

    def name(N, ratio):
        return advice.nearest(rows, N, ratio, "target")["name"]
    assert name(1e6, 4) == name(2e6, 0.1) == "5 1000000.0 1.3"
    assert name(4e6, 4) == "5 10000000.0 0.8" and name(1e9, 30) == "20 1000000.0 1.0"
    assert advice.nearest([], 1e6, 5, "target") is None


def test_near_in_all_that_matters(monkeypatch):
    """By what was measured only for such tokens per parameter, weights, and a small model like the study's."""
    monkeypatch.setattr(advice, "find_law", lambda path, vocab_size: BESIROGLU)
    row = dict(budget=5, weights=1e7, vocab_size=0, seeds=[1, 2, 3], small=(2e6, 1e8), less_small=0.02,
               **{k: [9.0, 8.0, 10.0] for k in ("target", "best", "given_target", "given_best")})

    def words(N, ratio, small=None):
        return advice.advise_by(BESIROGLU, N, N * ratio, small, [row])["words"]
    assert words(1e7, 5).startswith("Grow (9x") and "9x" in words(5e7, 6)
    assert "9x" not in words(1e7, 9) and "9x" not in words(2e8, 5)
    assert "9x" in words(1e7, 5, (2.2e6, 9e7)) and "0.02 lower" in words(1e7, 5, (2.2e6, 9e7))
    assert "9x" not in words(1e7, 5, (5e6, 1e8)) and "9x" not in words(1e7, 5, (2e6, 1e6))


def test_train_on_or_upscale(tmp_path, monkeypatch):
    """The nearest tokens per parameter, then the nearest extra compute, then the best of the larger sizes."""
    monkeypatch.setattr(advice, "SATURATION", str(tmp_path / "none.json"))
    assert advice.train_on_or_upscale(1e6, 1e8, 0.1) == ""
    rows = [dict(tokens=t, extra=e, name=name, less_trained_on=less) for t, e, name, less in (
        (80, 0.1, "x 2", [0.03, 0.01]), (80, 1, "x 2", [0.01]), (80, 1, "x 1.5", [0.004]), (1000, 0.1, "x 2", [-0.03]),
        (1000, 0.1, "trained on", [0.0]), (1000, 0.1, "x 1.5", []), (1000, 0.1, "from scratch", [-1.0]))]
    monkeypatch.setattr(advice, "SATURATION", str(tmp_path / "report.json"))
    (tmp_path / "report.json").write_text(json.dumps(dict(
        rows=rows, weights=24600, larger={"x 2": {}, "x 1.5": {}})))
    for ask, words in (((1e6, 1e8, 0.05), "80 and 0.1: upscaled (x 2) it ended 0.0200 higher than trained on, 2 seeds"),
                       ((1e6, 1e8, 9), "80 and 1: upscaled (x 1.5) it ended 0.0040 higher"),
                       ((1e9, 9e12, 0.1), "1000 and 0.1: upscaled (x 2) it ended 0.0300 lower")):
        assert words in advice.train_on_or_upscale(*ask)


def ladder(folder, law, shapes, **more):
    """Finished runs as train.py leaves them, [(n_layer, iterations), ...], in a world of a law."""
    for n_layer, iters in shapes:
        values = dict(n_layer=n_layer, n_embd=64, n_head=2, n_inner=256, head_dim=32, block_size=64,
                      batch_tokens=1024, max_iters=iters, warmup_iters=2, **more)
        out = folder / f"{n_layer}_{iters}"
        out.mkdir()
        (out / "config.json").write_text(json.dumps(dict(values, resolved=dict(vocab_size=256))))
        (out / "metrics.jsonl").write_text(json.dumps(dict(
            event="eval", iter=iters, tokens=1024 * iters, train_s=1, flops=1,
            val_loss=law.loss(n_layer * 49152, 1024 * iters))) + "\n")
        yield str(out)


@pytest.mark.parametrize("n", [6, 4])
def test_a_law_of_your_own(n, tmp_path, monkeypatch, capsys):
    true = Law(E=0.8, A=40, B=300, a=BESIROGLU.a, b=BESIROGLU.b)
    shapes = [(1, 500), (4, 500), (2, 2000), (8, 2000), (2, 8000), (4, 8000)][:n]
    runs, save = list(ladder(tmp_path, true, shapes)), tmp_path / "mine.json"
    plan_here(monkeypatch, "--fit", *runs, f"--law={save}")
    assert ("too few for the exponents" in capsys.readouterr().out) == (n == 4)
    found = read_law(str(save))
    assert found.vocab_size == 256 and found.loss(3e5, 1e6) == pytest.approx(true.loss(3e5, 1e6), rel=0.01)
    plan_here(monkeypatch, "config/pystdlib_msg.py", "--dry", "--vocab_size=256", f"--law={save}",
              f"--small={runs[0]}")
    said = capsys.readouterr().out
    assert f"Law: {n} runs of" in said and "per token of 256 ids" in said and "already: 49.2 k, 512 k" in said


@pytest.mark.parametrize("shapes, more, names", [
    ([(1, 500), (2, 500)], {}, "2 runs of 2 sizes and 1 token count are too few"),
    ([(1, 500)], dict(stages=[dict(at=10, n_layer=2)]), "grew: a ladder is of runs from scratch")])
def test_what_is_no_ladder(shapes, more, names, tmp_path, monkeypatch, capsys):
    runs = list(ladder(tmp_path, BESIROGLU, shapes, **more))
    with pytest.raises(SystemExit):
        plan_here(monkeypatch, "--fit", *runs, f"--law={tmp_path}/mine.json")
    said = capsys.readouterr().err
    assert names in said and len(said.splitlines()) == 1 and not (tmp_path / "mine.json").exists()
