"""lab.saturation: what it would run, in which order, and what it says of it. Nothing is trained."""
from pathlib import Path

import pytest
from runs import make_data

from base.errors import UserError
from lab import saturation
from lab.branches import Branch
from run.arguments import read_file


@pytest.fixture
def study(tmp_path, monkeypatch):
    """The committed experiment on a small dataset, its jobs played: a job's loss is `loss`(job)."""
    found = read_file("lab/experiments/saturation.py")
    found["settings"] = dict(found["settings"], data_dir=str(make_data(tmp_path / "data")))
    study, done = saturation.Study(found, str(tmp_path / "out")), {}
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(Branch, "done", lambda job: job.out_dir in done)
    monkeypatch.setattr(Branch, "final", lambda job: done.get(job.out_dir))
    study.played = done
    return study


def loss(job):
    """A half of the peak is best for all; the deeper ones are lower, from scratch is higher."""
    peak = job.values["muon_learning_rate"] / 0.01
    if not job.after:
        return 2.0 + 1e-3 * job.values["seed"]
    grown = job.values["stages"]
    return 1.5 + abs(peak - 0.5) - 0.01 * (grown[0].get("n_layer", 2) - 2 if grown else 0) + 1e-3 * job.values["seed"]


def play(study):
    order = []
    while (job := next(study.ready(), None)) is not None:
        assert job.after is None or job.after.out_dir in study.played
        study.played[job.out_dir] = loss(job)
        order.append(job)
    return order


def test_every_contestant_gets_the_same_extra_compute(study):
    small = study.start(320, 11)
    for name in study.names:
        job = study.branch(name, 320, 0.3, 0.5, 11)
        assert job.flops == pytest.approx(0.3 * small.flops, rel=0.01)
        assert job.values["stages"] == [] if name == saturation.ON else \
            job.values["stages"][0]["at"] == small.last and job.values["stages"][0]["operator"] == "zero_output"
        assert job.after.checkpoint() == small.checkpoint()
    assert study.scratch(saturation.ALONE, 320, 0.3, 11).flops == pytest.approx(0.3 * small.flops, rel=0.01)
    assert study.scratch(saturation.ALL, 320, 0.3, 11).flops == pytest.approx(1.3 * small.flops, rel=0.01)
    for name, times in (("x 1.5, depth", 1.5), ("x 1.5, width", 1.5), ("x 2, width", 2), ("x 2, both", 2)):
        assert study.weights[name] / study.weights[saturation.ON] == pytest.approx(times, rel=0.02)


def test_only_what_is_asked_for(study):
    study.asked, study.seeds = {saturation.ON, saturation.ALL}, [11]
    order = play(study)
    assert all("x_" not in job.out_dir and saturation.ALONE not in job.out_dir for job in order)
    assert {job.values["seed"] for job in order} == {1, 11}
    with pytest.raises(UserError, match="--only"):
        saturation.Study(read_file("lab/experiments/saturation.py"), "out", only=["x 3"])


@pytest.mark.parametrize("changes, seeds, said", [
    (dict(rates=dict(learning_rat=0.01)), None, "learning_rat: no such setting"), (dict(tune_seed=11), None, "what tunes"),
    (dict(small=dict(n_layer=2, muon_learning_rate=0.1)), None, "stands in rates and beside"), ({}, [1], "--seeds: 1 is none")])
def test_what_is_refused(changes, seeds, said):
    with pytest.raises(UserError, match=said):
        saturation.Study({**read_file("lab/experiments/saturation.py"), **changes}, "out", seeds)


def test_a_diverged_run_is_left_out(study, monkeypatch):
    play(study)
    lost = next(job for job in study.wanted() if job.after and job.values["seed"] == 11)
    study.played[lost.out_dir] = float("inf")
    text = saturation.report(study)
    assert f"Diverged, left out: {lost.out_dir}" in text and "inf" not in text.split("Diverged")[0]


def test_what_is_finished_needs_no_checkpoint(study):
    """results/ keeps no checkpoints: a small model is trained again only if something starts from it."""
    play(study)
    last = max((job for job in study.wanted() if job.after), key=lambda job: job.after.last)
    for job in [last, *(j.after for j in study.wanted() if j.after)]:
        study.played.pop(job.out_dir, None)
    assert [job.out_dir for job in play(study)] == [last.after.out_dir, last.out_dir]


def test_tuned_on_a_seed_that_is_not_reported(study):
    order = play(study)
    assert {study.peak(name) for name in study.names} == {0.5}
    tuned = [j for j in order if j.values["seed"] == study.tune_seed]
    assert order[:len(tuned)] == tuned and study.tune_seed not in study.seeds
    text = saturation.report(study)
    assert "x 2, depth (lowest)" in text and "-0.0200 ± 0.0000" in text
    row = next(r for r in saturation.results(study) if r["name"] == "x 1.5, depth")
    assert row["less_trained_on"] == pytest.approx([-0.01] * 3) and set(row["losses"]) == {11, 12, 13}
    assert (Path(study.out) / "saturation.png").stat().st_size > 10_000




def test_it_warms_up_again(study):
    small, job = study.start(320, 11), study.branch(saturation.ON, 320, 0.3, 0.5, 11)
    Path(job.out_dir).mkdir(parents=True)
    assert {"--rewarm_iters=30", f"--init_from={small.checkpoint()}"} <= {*job.command()}
