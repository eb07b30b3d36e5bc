"""
plot.py: runs of the same name, runs that diverged, damaged files, places that cannot be written; the
lead over a baseline.
"""
import json
import shutil
import sys

import pytest
from runs import ROOT

from base.errors import UserError
from run.packed import PACK, unpacked
from tools import plot


def make_run(folder, losses, damage=""):
    """A run's metrics.jsonl with a validation loss every ten iterations."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = dict(n_layer=1, n_head=1, n_embd=8, n_inner=16)
    lines = []
    for i, loss in enumerate(losses):
        at = dict(iter=10 * i, tokens=100 * i, train_s=5.0 * i, flops=1e6 * i, **sizes)
        lines += [dict(event="step", loss=loss, **at), dict(event="eval", val_loss=loss, **at)]
    lines.insert(2, dict(event="grow", val_loss_after=losses[0], **at))
    text = [json.dumps(line) + "\n" for line in lines]
    text.insert(3, damage)
    (folder / "metrics.jsonl").write_text("".join(text) + '{"event": "ev')
    return str(folder)


def main(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, args)])
    plot.main()


def failed(monkeypatch, capsys, *args):
    """stderr of a call that must end in one line and exit code 2."""
    with pytest.raises(SystemExit) as e:
        main(monkeypatch, *args)
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.parametrize("folders, names", [
    (["out/one", "out/two"], ["one", "two"]), (["a/seed_1", "b/seed_1"], ["a/seed_1", "b/seed_1"]),
    (["x/a/s", "y/a/s", "y/b/s"], ["x/a/s", "y/a/s", "y/b/s"]), (["out/"], ["out"]),
    (["/s", "/a/s"], ["/s", "a/s"])])
def test_names_tell_runs_apart(folders, names):
    assert plot.names(folders) == names


def test_runs_of_the_same_name(tmp_path, monkeypatch, capsys):
    a, b = (make_run(tmp_path / x / "seed_1", [4.0, 3.0, 2.0 + y]) for x, y in (("a", 0), ("b", 1)))
    main(monkeypatch, a, b, a + "/")  # the same one again is one run
    out = capsys.readouterr().out.splitlines()
    assert out == [f"wrote {a}/loss.png",
                   "a/seed_1: validation loss 2.0000 after 10 s of training",
                   "b/seed_1: validation loss 3.0000 after 10 s of training"]
    assert (tmp_path / "a" / "seed_1" / "loss.png").stat().st_size > 10000


@pytest.mark.parametrize("losses, said", [
    (["nan", "nan"], "no validation loss is finite; 2 of 2 evaluations infinite or NaN, left out"),
    ([3.0, "nan", "inf"], "validation loss 3.0000 after 0 s of training; 2 of 3 evaluations"),
    ([float("nan")] * 2, "no validation loss is finite; 2 of 2")])
@pytest.mark.parametrize("company", [True, False])
def test_runs_that_diverged(losses, said, company, tmp_path, monkeypatch, capsys):
    """A picture all the same, and a line that says what is not in it."""
    runs = [make_run(tmp_path / "bad", losses)] + company * [make_run(tmp_path / "good", [4.0, 3.0])]
    main(monkeypatch, *runs, "--save", tmp_path / "p.png")
    assert f"bad: {said}" in capsys.readouterr().out and (tmp_path / "p.png").exists()


@pytest.mark.parametrize("damage", ['{"event": "st\n', "\n", "7\n", '{"event": "eval"}\n', "\0\0\n",
                                    '{"event": "step", "iter": "x", "tokens": 1}\n'])
def test_damaged_lines_are_counted(damage, tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "r", [4.0, 3.0], damage)
    main(monkeypatch, run)
    out = capsys.readouterr().out
    assert "metrics.jsonl: 1 damaged lines left out" in out and "validation loss 3.0000" in out


@pytest.mark.parametrize("save", ["missing/p.png", "folder.png", "p.nonsense", "r/metrics.jsonl/p"])
def test_places_that_cannot_be_written(save, tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "r", [4.0, 3.0])
    (tmp_path / "folder.png").mkdir()
    assert "cannot be written" in failed(monkeypatch, capsys, run, f"--save={tmp_path / save}")


def test_bad_input(tmp_path, monkeypatch, capsys):
    assert "no metrics.jsonl there" in failed(monkeypatch, capsys, tmp_path)
    assert "see --help" in failed(monkeypatch, capsys, tmp_path, "--no-such")
    (tmp_path / "metrics.jsonl").write_text("")
    assert "no evaluation in metrics.jsonl yet" in failed(monkeypatch, capsys, tmp_path)
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="no evaluation in"):
        plot.read_run(str(tmp_path))


def test_home(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_run(tmp_path / "r", [4.0, 3.0])
    main(monkeypatch, "~/r", "--save=~/p.png")
    assert (tmp_path / "p.png").exists()


# -----------------------------------------------------------------------------
# the lead over a baseline

SMALL, LARGE = (dict(n_layer=n, n_head=1, n_embd=8, n_inner=16) for n in (1, 2))


def evals(losses, seconds, sizes=LARGE, **more):
    return [dict(event="eval", val_loss=float(loss), iter=10 * i, tokens=100 * i, flops=1e6 * i,
                 train_s=float(t), **{**sizes, **more}) for i, (loss, t) in enumerate(zip(losses, seconds))]


def test_the_lead_at_equal_loss():
    base = evals([5, 4, 3, 2], [0, 10, 20, 30])
    ahead = evals([5, 4], [0, 10], SMALL) + evals([3.5, 2], [12, 15])
    assert plot.lead(ahead, base) == (2, 15, 30, True)
    assert plot.lead(ahead[:3], base) == (3.5, 12, 15, True)
    assert plot.lead(ahead[:2], base) == (4, 10, 10, False)
    assert plot.lead(base, evals([5, 4, 3], [0, 5, 10])) == (3, 20, 10, True)
    # what the small model had does not count for the large one: 4.5 at 20 s, not at 5 s
    back = evals([5, 4], [0, 10], SMALL) + evals([4.5], [20])
    assert plot.lead(back, base)[:3] == (4.5, 20, 5)
    assert plot.lead([], base) is None and plot.lead(base[:1], base) is None
    assert plot.lead(evals([float("nan")] * 2, [0, 5]), base) is None
    in_a_ramp = evals([5], [0]) + evals([3], [10], mask=0.5)
    assert plot.lead(in_a_ramp, base) == (3, 10, 20, False)


def test_what_is_said_of_the_lead():
    runs = dict(a=evals([5, 3], [0, 10]), b=evals([5, 3.333], [0, 40], SMALL), c=evals([5, 3], [0, 20]))
    assert list(plot.leads(runs, "c")) == [
        "a: 2.00x sooner at 3.00 than c", "b: 2.40x later at 3.33 than c, not of its size yet"]
    assert list(plot.leads(runs, None)) == []


def test_the_baseline_is_given_or_the_one_that_never_grew():
    grown = [dict(event="grow"), *evals([5], [0])]
    runs = dict(a=grown, b=evals([5], [0]), c=grown)
    assert plot.pick_baseline(runs) == "b" and plot.pick_baseline(runs, "c") == "c"
    assert plot.pick_baseline(dict(a=grown)) is None
    assert plot.pick_baseline(dict(a=runs["b"])) is None
    assert plot.pick_baseline(dict(a=runs["b"], b=runs["b"])) is None


def drawn(monkeypatch, *args):
    """The figure that a call makes, still open."""
    figures = []
    monkeypatch.setattr(plot, "write", lambda fig, save: figures.append(fig))
    main(monkeypatch, *args)
    return figures[-1]


def texts(ax):
    """A panel's words on the picture."""
    return [t for t in (*ax.texts, ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *(
        () if ax.get_legend() is None else ax.get_legend().get_texts())) if t.get_text()]


def test_panels_and_words_of_the_picture(monkeypatch, tmp_path):
    """Real runs: all panels, the lead in words, and no word over another or out of the picture."""
    shutil.copy(ROOT / "results" / "pystdlib" / PACK, tmp_path)
    real = [unpacked(str(tmp_path / name)) for name in ("pystdlib_msg", "pystdlib_scratch")]
    fig = drawn(monkeypatch, *real)
    fig.draw_without_rendering()
    words = [t.get_text() for ax in fig.axes for t in texts(ax)]
    assert any("pystdlib_msg: 1." in w and "sooner at" in w for w in words)
    assert [ax._left_title.get_text().split()[0] for ax in fig.axes[2:]] == ["mask", "learning", "gradient"]
    boxes = [t.get_window_extent() for ax in fig.axes for t in texts(ax)]
    width, height = fig.canvas.get_width_height()
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]
    lines = [line for line in fig.axes[0].lines if line.get_linestyle() == ":"]
    assert len(lines) == 3  # its growths


def test_what_is_missing_is_left_out(monkeypatch, tmp_path):
    """Runs without masks, learning rates and norms in their metrics: the panels that there is data for."""
    run = make_run(tmp_path / "r", [4.0, 3.0])
    assert len(drawn(monkeypatch, run).axes) == 2
