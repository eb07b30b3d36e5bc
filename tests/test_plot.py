"""plot.py: runs of the same name, runs that diverged, damaged files, places that cannot be written."""
import json
import sys

import pytest

from run.errors import UserError
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
                   "a/seed_1: validation loss 2.0000 after 10 s of training, 3.0000 after 5 s",
                   "b/seed_1: validation loss 3.0000 after 10 s of training, 3.0000 after 5 s"]
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
