"""The study of growing against the envelope: equal compute, the order of its jobs, what it reports."""
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
from runs import ENV, ROOT, events, make_data

from base import disk
from base.errors import UserError
from lab import advice, branches, children, frontier_report, speeds
from lab.costs import compute, stage_costs
from lab.frontier import Study, plan
from lab.law import WORTH, Law
from lab.verdict import times
from run.arguments import read_file
from run.packed import PACK
from run.settings import from_dict, known_settings

TINY = dict(
    settings=dict(block_size=16, head_dim=8, batch_tokens=64, micro_batch=4, n_embd=16, n_head=2,
                  n_inner=32, optimizer="muon", warmup_iters=2, eval_interval=50, eval_seqs=8,
                  log_interval=10, device="cpu", dtype="float32", compile="none"),
    target="two", ladder=dict(one=dict(n_layer=1), two=dict(n_layer=2), four=dict(n_layer=4)),
    starts=dict(narrow=dict(n_layer=1, n_embd=8, n_head=1, n_inner=16)),
    budgets=[5, 10, 20], grown_at=[5, 10], decays=[0.2, 0.35, 0.5], sweep_at=5, seeds=[1, 2],
    rates=dict(muon_learning_rate=[0.01, 0.02, 0.04]),
    grown={"early": dict(start="one", growths=[(0.1, dict(n_layer=2))], operator="stack"),
           "late": dict(start="one", growths=[(0.8, dict(n_layer=2))], budgets=[5, 10]),
           "steps": dict(start="narrow", growths=[(0.2, dict(n_embd=16, n_inner=32)),
                                                  (0.5, dict(n_head=2, n_layer=2))])})
FAMILY = dict(members=["one", "two", "four"], tokens=10, trunk=[0.7, 0.2, 0.1], decay=[0.3, 0.4, 0.4])
LAW = Law(E=1.0, A=20, B=60, a=0.4, b=0.4)


@pytest.fixture
def study(tmp_path):
    make_data(tmp_path / "data")
    return make(tmp_path)


def make(tmp_path, only_budgets=None, only_seeds=None, only_names=None, data=None, **changes):
    experiment = {**TINY, **changes}
    experiment["settings"] = dict(experiment["settings"], data_dir=str(data or tmp_path / "data"))
    return Study({k: v for k, v in experiment.items() if v is not None}, str(tmp_path / "out"),
                 only_budgets, only_seeds, only_names)


def play(job, gain=0.0, diverges=lambda job: False, wants=0.02):
    """
    What train.py would leave of a job, in a world where LAW holds and the rate that it `wants` is
    the best; gain: of grown runs, in nats.
    """
    os.makedirs(job.out_dir, exist_ok=True)
    if job.keep:
        open(job.checkpoint(), "w").close()
        open(job.path("ckpt_0000001.pt"), "w").close()  # saved on the way
    c = from_dict(job.values)
    starts = [0, *(s["at"] for s in c.stages)]
    parts = [(s["n_layer"] * 2 * s["n_embd"] * (2 * s["n_head"] * 8 + s["n_inner"]), (b - a) * 64)
             for s, a, b in zip(c.sizes(), starts, [*starts[1:], c.max_iters])]
    share = c.decay_iters / c.max_iters
    loss = LAW.grown_loss(parts) - gain * bool(c.stages) + 0.1 * (share - 0.35)**2 + \
        abs(c.muon_learning_rate - wants)
    with open(job.path("metrics.jsonl"), "a") as f:
        f.write(json.dumps(dict(event="eval", iter=c.max_iters, tokens=c.max_iters * 64,
                                train_s=c.max_iters / 9, flops=compute(c), val_loss=loss)) + "\n")
    with open(job.path("config.json"), "w") as f:
        json.dump(dict(out_dir=job.out_dir, init_from="x/y.pt", resolved=dict(data_dir="z", b=1)), f)
    if diverges(job):
        if job.keep:
            os.remove(job.checkpoint())
        open(job.path("diverged.txt"), "w").close()
    else:
        job.tidy()


def play_all(study, at_once=1000, **more):
    done = []
    while any(study.ready()):
        jobs = {}
        for job in study.ready():
            jobs.setdefault(job.out_dir, job)
        for job in list(jobs.values())[:at_once]:
            assert job.after is None or job.after.done()
            play(job, **more)
            done.append(job)
    return done


def law_point(study, name, budget):
    """(weights, tokens) of a size from scratch"""
    return study.costs(name)[0]["weights"], study.flops(budget) / study.cost(name)


def test_equal_compute(study):
    for name in study.names:
        for budget in study.budgets_of(name):
            C = study.flops(budget)
            for decay in study.decays:
                at, end = study.branch(name, budget, decay)
                leaf = study.leaf(name, budget, 1, decay)
                config = from_dict({**leaf.values, "max_iters": end})
                step = 64 * study.cost(study.target if name in study.grown else name)
                assert abs(compute(config) - C) <= step
                assert abs(sum(j.flops for j in leaf.chain()) - compute(config)) < 1
                assert leaf.flops == pytest.approx(decay * C, abs=2 * step)
                assert leaf.values["decay_iters"] == end - at and leaf.values["schedule"] == "wsd"
                assert leaf.after.values["max_iters"] == at


def test_jobs_come_in_order(study):
    done = play_all(study, at_once=2)
    kinds = [os.path.relpath(j.out_dir, study.out).split(os.sep) for j in done]
    first = [k for k in kinds if k[0] == "grown"][0]
    assert {k[2] for k in kinds[:kinds.index(first)]} == {"rate_0.01", "rate_0.02", "rate_0.04"}
    assert {k[1] for k in kinds if k[2] == "rate_0.01"} == {"one", "two", "four"}
    trunks = [(j.out_dir, j.values["max_iters"]) for j in done if j.keep]
    assert len(trunks) == len(set(trunks))
    for folder in {t[0] for t in trunks}:
        pieces = [n for f, n in trunks if f == folder]
        assert pieces == sorted(pieces)
        assert sorted(int(f[5:-3]) for f in os.listdir(folder) if f.startswith("ckpt")) == pieces
    leaf = next(j for j in done if not j.keep)
    assert sorted(os.listdir(leaf.out_dir)) == ["config.json", "metrics.jsonl"]
    # the other seed runs the best decay alone
    assert len([k for k in kinds if k[:2] == ["scratch", "four"] and k[-2] == "seed_2"
                and k[-1].startswith("tokens_5")]) == 1
    assert not any(study.ready()) and not any(make_again(study).ready())


def test_no_place_waits_for_another(study, monkeypatch):
    """Two at once: what can start does so as soon as one is done, and no folder has two runs."""
    now, running, idle = [0], {}, []

    def start(job, place):
        assert job.out_dir not in running and (job.after is None or job.after.done())
        running[job.out_dir] = now[0] + len(job.out_dir) % 7 + 1
        return SimpleNamespace(process=SimpleNamespace(poll=lambda: 0))

    def over(child, job):
        if running[job.out_dir] > now[0]:
            return False
        del running[job.out_dir]
        play(job)
        return True

    def tick(seconds):
        idle.append(len(running) == 1 and len({j.out_dir for j in study.ready()}) > 1)
        now[0] += 1
    monkeypatch.setattr(children.time, "sleep", tick)
    monkeypatch.setattr(branches.Branch, "start", start)
    monkeypatch.setattr(children, "ended", over)
    branches.run_all(study.ready, [1, 2], 1e9)
    assert not any(study.ready()) and not running and not any(idle)


def make_again(study):
    return Study(dict(TINY, settings=study.settings), study.out)


def test_runs_of_another_experiment_are_not_taken_for_its_own(study, tmp_path):
    """Nor is a finished one deleted because it would be longer now."""
    job = study.leaf("two", 10, 1, 0.35)
    for j in job.chain():
        play(j)
        with open(j.path("config.json"), "w") as f:
            json.dump({**j.values, "max_iters": j.last, "weight_decay": 0.1}, f)
    assert make(tmp_path, data=study.settings["data_dir"]).leaf("two", 10, 1, 0.35).done()
    branches.recorded.cache_clear()
    changed = make(tmp_path, data=study.settings["data_dir"])
    changed.settings = dict(changed.settings, weight_decay=0.3)
    with pytest.raises(UserError, match="holds a run with weight_decay=0.1, not 0.3"):
        changed.leaf("two", 10, 1, 0.35).done()
    job.last += 1
    assert not job.done()
    with pytest.raises(UserError, match="holds a finished run of"):
        job.start(("", "", ""))
    with pytest.raises(UserError, match="one setting is swept, not 2"):
        make(tmp_path, rates=dict(learning_rate=[0.1], muon_learning_rate=[0.1]))


def test_a_part_of_the_study_first(study, tmp_path):
    """A budget and the first seed alone; then the rest, and nothing runs twice."""
    one = play_all(make(tmp_path, only_budgets=[10], only_seeds=[1], only_names=["late"]))
    assert {os.path.relpath(j.out_dir, study.out).split(os.sep)[1] for j in one
            if "tokens_10" in j.out_dir} == {"late"}
    assert {os.path.relpath(j.out_dir, study.out).split(os.sep)[1] for j in one
            if "scratch" in j.out_dir and not j.keep} == {study.start("late")}  # no other size is swept
    with pytest.raises(UserError, match="--only: 'lat': no such name, did you mean late"):
        make(tmp_path, only_names=["lat"])
    first = one + play_all(make(tmp_path, only_budgets=[10], only_seeds=[1]))
    assert all("seed_1" in j.out_dir for j in first)
    assert {os.path.basename(j.out_dir).split("_")[1] for j in first if not j.keep} == {"5", "10"}
    assert "x seeds: 5: 6/12, 10: 6/12, 20: 0/6." in frontier_report.write_report(study)
    rest = play_all(study)
    assert not {(j.out_dir, j.values["max_iters"]) for j in first} & {
        (j.out_dir, j.values["max_iters"]) for j in rest}
    assert "5: 12/12, 10: 12/12, 20: 6/6." in frontier_report.write_report(study)


def test_the_report_finds_the_law(study):
    play_all(study)
    text = frontier_report.write_report(study)
    with open(os.path.join(study.out, "report.json")) as f:
        report = json.load(f)
    assert "No seconds" in text and not any(r["target_s"] or r["best_s"] for r in report["rows"])
    assert report["best"] == {str(b): min(study.ladder, key=lambda n: LAW.loss(*law_point(study, n, b)))
                              for b in (5, 10, 20)}
    found = Law(**report["law"])
    assert found.loss(3000, 50_000) == pytest.approx(LAW.loss(3000, 50_000), rel=5e-3)
    rows = {(r["name"], r["budget"]): r for r in report["rows"]}
    assert len(rows) == 15 and all(r["seeds"] == [1, 2] for r in rows.values())
    for budget in (5, 10, 20):
        assert rows["two", budget]["target"] == pytest.approx([1, 1, 1], abs=0.01)
        assert rows[report["best"][str(budget)], budget]["best"] == pytest.approx([1, 1, 1], abs=0.01)
    for name in study.grown:  # worth their loss and nothing more
        assert rows[name, 10]["beyond_law"] == pytest.approx(0, abs=0.01)
        given, all_of_it = rows[name, 10]["given_target"], rows[name, 10]["target"]
        assert given[0] > all_of_it[0]
    assert rows["late", 10]["given_best"][0] == pytest.approx(5 * rows["late", 10]["best"][0], rel=0.05)
    assert "Law from scratch: E = " in text and "Caution" in text
    assert os.path.getsize(os.path.join(study.out, "frontier.png")) > 10_000
    with open(os.path.join(study.out, "law.json")) as f:
        assert json.load(f) == report["law"]


def test_seconds_are_iterations_at_measured_speeds(study, monkeypatch):
    """However long the runs took."""
    monkeypatch.setattr(speeds, "SECONDS", 0.0)
    monkeypatch.setattr(speeds, "ROUNDS", 3)
    assert "| 2L_16_2h_32 from 1L_16_2h_32 |" in speeds.measure_speeds(study)
    path = os.path.join(study.out, "speeds.json")
    with open(path) as f:
        found = json.load(f)
    assert set(found["step_s"]) == {
        "1L_16_2h_32", "2L_16_2h_32", "4L_16_2h_32", "1L_8_1h_16", "1L_16_1h_32",
        "1L_16_1h_32 from 1L_8_1h_16", "2L_16_2h_32 from 1L_16_1h_32", "2L_16_2h_32 from 1L_16_2h_32"}
    assert all(0 < low <= median <= high for median, low, high in found["step_s"].values())
    found["step_s"] = {k: [0.5 if " from " in k else 0.1 * int(k[0]), 0, 9] for k in found["step_s"]}
    disk.write_json(path, found)
    play_all(study)
    text = frontier_report.write_report(study)
    with open(os.path.join(study.out, "report.json")) as f:
        report = json.load(f)
    took = {(r["name"], r["budget"]): r["seeds"]["1"]["seconds"] for r in report["runs"]}
    iters = study.iterations(study.costs("four"), study.flops(10))
    assert took["four", 10] == pytest.approx(0.4 * iters)
    decay = study.best("late", 10)[1]
    grow, end = study.stages("late", 10)[0], study.branch("late", 10, decay)[1]
    ramp = min(grow["ramp_iters"], end - grow["at"])
    assert ramp and took["late", 10] == pytest.approx(
        0.1 * grow["at"] + 0.5 * ramp + 0.2 * (end - grow["at"] - ramp))
    rows = {(r["name"], r["budget"]): r for r in report["rows"]}
    assert rows["two", 10]["target_s"] == pytest.approx([1, 1, 1], abs=0.01) and "measured side by" in text
    del found["step_s"]["4L_16_2h_32"]
    disk.write_json(path, found)
    with pytest.raises(UserError, match="has no '4L_16_2h_32': measure again with --speeds"):
        frontier_report.write_report(study)


def said_of(folder, configs, monkeypatch, laws):
    """
    For each (budget, config of a run there): (budget, does the study say grow?, the planner's words). laws: the
    folder whose law.json the planner takes.
    """
    monkeypatch.setattr(advice, "STUDIES", [str(laws), str(folder)])
    with open(os.path.join(folder, "report.json")) as f:
        rows = json.load(f)["rows"]
    out = []
    for budget, config in configs:
        mean, low, _ = max(r["target"] for r in rows if "recipe" in r and r["budget"] == budget)
        args = SimpleNamespace(law="", small=None)
        text = advice.show_advice(config, stage_costs(config, 256), 256, args)
        assert f"{budget:g} tokens per parameter, " in text
        verdict = text.partition("To be trained: ")[2].splitlines()[0]
        out.append((budget, mean >= WORTH and low is not None and low >= 1, verdict))
    return out


@pytest.mark.parametrize("gain", [0.0, 0.3])
def test_the_planner_agrees_with_a_study(study, gain, monkeypatch):
    play_all(study, gain=gain)
    frontier_report.write_report(study)
    config = from_dict(study.leaf("late", 10, 1, 0.35).values)
    (_, grow, words), = said_of(study.out, [(10, config)], monkeypatch, study.out)
    assert words.startswith("Grow") == grow and "measured" in words and (grow or not gain)


@pytest.mark.parametrize("name", map(os.path.basename, advice.STUDIES))
def test_the_planner_agrees_with_the_studies(name, monkeypatch, tmp_path):
    """At every budget at which grown runs were studied, asked with the settings of the run itself."""
    folder = ROOT / "results" / name
    if not (folder / "report.json").exists():
        pytest.skip(f"results/{name} is not there: the study has not been run")
    rows = [r for r in json.loads((folder / "report.json").read_text())["rows"]
            if "recipe" in r and r["target"]]
    with tarfile.open(folder / PACK) as tar:
        had = {r["budget"]: json.load(tar.extractfile(r["config"])) for r in rows}
    configs = [(b, from_dict(known_settings(c))) for b, c in had.items()]
    assert configs
    shutil.copy(ROOT / "results" / "frontier" / "law.json", tmp_path)
    for budget, grow, words in said_of(folder, configs, monkeypatch, tmp_path):
        assert words.startswith("Grow") == grow, (budget, words)


def test_a_gain_is_seen(study):
    play_all(study, gain=0.1)
    frontier_report.write_report(study)
    with open(os.path.join(study.out, "report.json")) as f:
        rows = {(r["name"], r["budget"]): r for r in json.load(f)["rows"]}
    assert rows["early", 10]["beyond_law"] == pytest.approx(-0.1, abs=0.01)
    assert rows["early", 10]["target"][0] > 1.2
    early, one = rows["early", 10], rows["one", 10]
    assert early["less_small"] == pytest.approx(early["loss"][0] - one["loss"][0])
    two = rows["two", 10]
    assert early["less_target"][0] == pytest.approx(early["loss"][0] - two["loss"][0]) and two["less_target"] is None
    assert early["small"][0] == study.costs("one")[0]["weights"]
    assert one["less_small"] is rows["steps", 10]["less_small"] is None  # starts from no size of the ladder


def test_half_a_study_reports_too(study):
    with pytest.raises(UserError, match="no finished runs"):
        frontier_report.write_report(study)
    for _ in range(12):
        play(next(study.ready()))
    text = frontier_report.write_report(study)
    assert "No law yet: a loss law has 5 numbers" in text and "one decay ran: one (0.35)." in text


def test_divergence(study):
    done = play_all(study, diverges=lambda j: j.values["muon_learning_rate"] == 0.04)
    high = [os.path.relpath(j.out_dir, study.out).split(os.sep) for j in done if "rate_0.04" in j.out_dir]
    assert {name[1] for name in high} == set(study.names)
    for name in high:  # scratch runs get no further than their trunk, late growth has none
        assert name[-1] == ("tokens_5_decay_0.35" if "late" in name else "trunk")
    assert study.rate("two") == 0.02
    assert "5 tokens per parameter: the best muon_learning_rate lies at" not in frontier_report.write_report(study)


@pytest.mark.parametrize("wants, tried", [(0.02, (2, 5)), (0.005, (0, 5)), (0.08, (2, 7)), (0.3, (2, 7))])
def test_a_sweep_goes_on_while_the_best_is_at_its_edge(study, tmp_path, wants, tried):
    rates = [0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16]
    study = make(tmp_path, rates=dict(muon_learning_rate=rates), budgets=[5], grown_at=[5],
                 grown={"late": dict(TINY["grown"]["late"], budgets=[5])})
    play_all(study, wants=wants)
    for folder in ("scratch/two", "grown/late/tokens_5"):
        assert sorted(os.listdir(os.path.join(study.out, folder))) == [
            f"rate_{r:g}" for r in rates[slice(*tried)]]
    best = min(wants, 0.16)
    assert study.rate("two") == study.rate("late") == best
    assert study.leaf("late", 5, 2, 0.35).values["muon_learning_rate"] == best
    assert ("Caution: 5 tokens per parameter: the best muon_learning_rate lies at the edge of those tried: one (0.16); "
            in frontier_report.write_report(study)) == (wants == 0.3)


def test_so_do_decays(study, tmp_path):
    study = make(tmp_path, decays=[0.15, 0.35, 0.5, 0.6, 0.7], budgets=[5], grown_at=[5], seeds=[1],
                 grown={"late": dict(TINY["grown"]["late"], budgets=[5])}, ladder=dict(two=dict(n_layer=2)),
                 starts=dict(one=dict(n_layer=1)))
    play_all(study)
    for folder in ("scratch/two", "grown/late/tokens_5"):
        assert {name for name in os.listdir(os.path.join(study.out, folder, "rate_0.02/seed_1"))
                if "decay" in name} == {f"tokens_5_decay_{d}" for d in (0.15, 0.35, 0.5, 0.6)}
    assert study.best("late", 5) == (0.02, 0.35)


def test_who_has_no_sweep_takes_the_nearest_size(study, tmp_path):
    """By cost; and of an older folder, where only some were swept, too."""
    study = make(tmp_path, ladder=dict(TINY["ladder"], four=dict(n_layer=4, budgets=[20])))
    for name, rate in (("one", 0.04), ("two", 0.01)):
        for job in study.sweep(name):
            for j in (j for j in job.chain() if not j.done()):
                play(j, wants=rate)
    assert [study.rate(n) for n in ("one", "narrow", "two", "four", "late")] == [0.04] * 2 + [0.01] * 3
    text = frontier_report.write_report(study)
    assert "late: no sweep" not in text and "two: no sweep" not in text  # late has not run
    play_all(study, wants=0.01)
    assert "four: no sweep of its own, muon_learning_rate as of the nearest size, 0.01" in \
        frontier_report.write_report(study)
    for job in study.leaf("four", 20, 1, 0.35, 0.04).chain():  # by hand, at a rate of its own
        play(job)
    assert "four: no sweep" not in frontier_report.write_report(study)


def test_the_best_of_all_rates_that_were_tried_counts(study):
    """At each budget by itself: a run at another rate, made by hand, is seen, and other seeds follow it."""
    for job in study.leaf("late", 10, 1, 0.35, 0.04).chain():
        play(job, wants=0.04, gain=0.1)
    assert study.best("late", 10) == (0.04, 0.35) and study.best("late", 5) == (0.02, 0.35)
    play_all(study, wants=0.02)
    assert study.best("late", 10) == (0.04, 0.35) and study.rate("late") == 0.02
    assert study.leaf("late", 10, 2, 0.35, 0.04).done() and not study.leaf("late", 10, 2, 0.35).done()
    assert "0.04" in next(line.split("|")[4] for line in frontier_report.write_report(study).splitlines()
                          if line.startswith("| 10 ") and "late" in line)


def test_a_rate_that_is_given(study, tmp_path):
    """It is used, what starts there starts with it, nothing sweeps it; what was better is said."""
    play_all(study)
    ladder = dict(TINY["ladder"], one=dict(n_layer=1, rate=0.04))
    again = make(tmp_path, ladder=ladder)
    assert again.rate("one") == again.rate("narrow") == 0.04 and again.rate("two") == 0.02
    assert "rate_0.04" in again.leaf("late", 10, 1, 0.35).after.out_dir
    assert "one: its muon_learning_rate, 0.04, is given; 0.02 was better by 0.0200" in \
        frontier_report.write_report(again)
    new = make(tmp_path / "new", ladder=ladder, data=tmp_path / "data")
    assert not [j for j in play_all(new) if "scratch/one" in j.out_dir and "rate_0.04" not in j.out_dir]


def test_a_decay_that_is_given(tmp_path):
    """It is used by every seed and at every rate, and nothing tunes it."""
    make_data(tmp_path / "data")
    late = dict(TINY["grown"]["late"], decay=0.5)
    study = make(tmp_path, grown=dict(late=late), ladder=dict(TINY["ladder"], four=dict(n_layer=4, rate=0.02, decay=0.2)))
    play_all(study)
    ends = [os.path.basename(j.out_dir) for _, j in study.wanted() if "late" in j.out_dir or "four" in j.out_dir]
    assert {e.partition("decay_")[2] for e in ends} == {"0.5", "0.2"} and len(ends) >= 2 * 2 + 3 * 2
    assert study.best("late", 10) == (0.02, 0.5) and study.best("four", 20) == (0.02, 0.2)
    assert "one decay ran" not in frontier_report.write_report(study)
    with pytest.raises(UserError, match=r"late: decay=0.6: is none of the experiment's decays \[0.2, 0.35, 0.5\]"):
        make(tmp_path, grown=dict(late=dict(late, decay=0.6)))
    with pytest.raises(UserError, match="narrow: decay=0.2: .*a start has none: leave it out"):
        make(tmp_path, starts=dict(narrow=dict(TINY["starts"]["narrow"], decay=0.2)))


def test_every_rate_diverges(study):
    with pytest.raises(UserError, match="one: every rate of its sweep diverged"):
        play_all(study, diverges=lambda j: True)


def test_what_came_before_a_trunk_diverged_counts(study):
    play_all(study, diverges=lambda j: j.keep and j.values["n_layer"] == 4 and j.keep[-1] ==
             j.values["max_iters"])
    found = frontier_report.results(study)
    assert ("four", 5) in found and ("four", 10) in found
    assert found["four", 20]["decay"] != 0.2  # that branches off last


def test_plan(study):
    text = plan(study, 1e9)
    assert "| rates   | 5                    | 1    |" in text and "Target two: 4.1 k parameters." in text
    play_all(study)
    assert {line.split("|")[6].strip() for line in plan(study, 1e9).splitlines()[2:-2]} == {"0.0 s"}


def test_sizes_are_compared_over_the_seeds_that_all_have():
    study = SimpleNamespace(ladder=dict(one={}, two={}), budgets=[5, 10, 20])

    def seeds(*losses):
        return dict(seeds={s: dict(loss=loss) for s, loss in enumerate(losses, 1) if loss})
    found = {("one", 5): seeds(1.5), ("two", 5): seeds(1.4, 1.7), ("one", 10): seeds(None, 1.5),
             ("two", 10): seeds(1.6)}
    assert frontier_report.envelope(study, found) == {5: "two", 10: "one"}


def test_seeds_that_tune_are_not_reported(study, tmp_path):
    """Two of them: the mean of both decides, and what is reported had no part in it."""
    study = make(tmp_path, tune_seeds=[7, 8], seeds=[1, 2], budgets=[5], grown_at=[5],
                 grown={"late": dict(TINY["grown"]["late"], budgets=[5])})
    done = play_all(study)
    tried = {(j.values["seed"], j.values["muon_learning_rate"]) for j in done}
    assert {seed for seed, rate in tried if rate != 0.02} == {7, 8}
    by_seed = {s: {os.path.basename(j.out_dir) for j in done if j.values["seed"] == s and not j.keep
                   and "two" in j.out_dir} for s in (1, 7, 8)}
    assert len(by_seed[7]) == 3 and by_seed[7] == by_seed[8] and len(by_seed[1]) == 1
    text = frontier_report.write_report(study)
    assert "5: 8/8." in text and all(r["seeds"] == [1, 2] for r in report_of(study)["rows"])
    assert make(tmp_path).tune_seeds == [1]
    other = make(tmp_path / "other", tune_seeds=[7, 8], budgets=[5], grown_at=[], grown={},
                 data=tmp_path / "data")
    for job in other.sweep("two"):  # one of the two likes another rate, by more
        for j in job.chain():
            play(j, wants={7: 0.02, 8: 0.04}[job.values["seed"]], gain=0)
    assert other.rate("two") in (0.02, 0.04)
    assert other.best_rate("one") is None


def report_of(study):
    with open(os.path.join(study.out, "report.json")) as f:
        return json.load(f)


def test_a_contestant_has_settings_of_its_own(study, tmp_path):
    """From scratch from the first iteration on, grown from where it leaves its start's trunk."""
    calm = dict(weight_decay=0.0)
    ladder = dict(TINY["ladder"], **{"two, calm": dict(n_layer=2, settings=calm)})
    study = make(tmp_path, ladder=ladder, grown={"late": dict(TINY["grown"]["late"], settings=calm)})
    jobs = {n: study.leaf(n, 10, 1, 0.35) for n in ("two", "two, calm", "late")}
    assert [j.values.get("weight_decay") for j in jobs.values()] == [None, 0.0, 0.0]
    chain = jobs["late"].chain()
    assert [j.values.get("weight_decay") for j in chain if j.values.get("stages")] and not any(
        "weight_decay" in j.values for j in chain if "scratch" in j.out_dir)
    assert all(j.values["weight_decay"] == 0.0 for j in jobs["two, calm"].chain())
    play_all(study)
    assert "two, calm" in frontier_report.write_report(study)


def test_nothing_is_believed_beyond_the_ends_of_a_curve():
    def seeds(*losses):
        return dict(seeds={s: dict(loss=x, flops=c) for s, (x, c) in enumerate(losses, 1)})
    found = {("two", b): seeds((x, c), (x + 0.1, c)) for b, c, x in ((5, 1.0, 3.0), (10, 4.0, 2.0))}
    names = {5: "two", 10: "two"}

    def ratio(*losses):
        return frontier_report.multiplier(found, seeds(*losses), names, "flops")
    assert times(ratio((2.0, 4.0), (2.1, 4.0))) == "1.00x (1.00 to 1.00)"
    assert times(ratio((1.9, 2.0), (2.1, 2.0))) == "> 2.00x" and ratio((1.9, 2.0)) == (2, 2, None)
    assert times(ratio((3.3, 2.0), (3.1, 2.0))) == "< 0.50x" and times(ratio((2.0, 2.0))) == "2.00x"
    assert ratio((1.9, 2.0), (3.3, 2.0)) is None


def make_family(tmp_path, **changes):
    ladder = dict(one=dict(n_layer=1, tokens=1), two=dict(n_layer=2, tokens=1), four=dict(n_layer=4))
    return make(tmp_path, **{**dict(
        ladder=ladder, target="four", budgets=[10], sweep_at=10, grown=None, grown_at=None, starts=None,
        tune_seeds=[9], seeds=[1, 2], decays=[0.3, 0.5, 0.7], save_every=8, families={"fam": FAMILY}), **changes})


def test_equal_tokens(study, tmp_path):
    study = make_family(tmp_path)
    ends = {study.leaf(n, 10, 1, 0.5).last for n in study.ladder}
    assert ends == {round(10 * study.weights / 64)}
    half = dict(one=dict(n_layer=1, tokens=0.5), four=dict(n_layer=4))
    study = make_family(tmp_path, ladder=half, families=None)
    assert study.leaf("one", 10, 1, 0.5).last == round(5 * study.weights / 64)


def test_a_family_has_one_trunk(study, tmp_path):
    """A decay for each size; the first is the model from scratch, if that decays as long."""
    study = make_family(tmp_path)
    family, iters = study.families["fam"], round(10 * study.weights / 64)
    done = play_all(study)
    assert len({(j.out_dir, j.last) for j in done}) == len(done) and not any(study.ready())
    assert family.ends == pytest.approx([0.7 * iters, 0.9 * iters, iters], abs=4)
    assert not any(end % 8 for end in family.ends)
    one, two, four = family.jobs(1)
    assert one.out_dir == family.baseline(0, 1).out_dir and "scratch" in one.out_dir
    assert two.after.last == four.after.last == family.ends[1] and two.after.after.last == family.ends[0]
    assert [len(j.values.get("stages", [])) for j in (one, two, four)] == [0, 1, 2]
    assert four.last == family.ends[2] + family.decays[2] and four.values["decay_iters"] == family.decays[2]
    assert not os.path.exists(os.path.join(os.path.dirname(two.out_dir), "trunk", "ckpt_0000001.pt"))
    total = sum(j.flops for j in {(j.out_dir, j.last): j for x in (one, two, four) for j in x.chain()}.values())
    own = sum(family.flops(i, sum(family.iters(i))) for i in range(3))
    assert total == pytest.approx(own)
    assert all(j.values["eval_seqs"] == 8 for j in done)  # below the most that a trunk reads


def test_a_family_is_compared_with_its_sizes_from_scratch(study, tmp_path, monkeypatch):
    study = make_family(tmp_path, families={"fam": FAMILY, "try": dict(FAMILY, operator="stack", tuning=True)})
    play_all(study, gain=0.05)
    family, text = study.families["fam"], frontier_report.write_report(study)
    rows = {(r["family"], r["what"], r["member"]): r for r in report_of(study)["families"]}
    assert {k[:2] for k in rows} == {("fam", "tuning"), ("fam", "reported"), ("try", "tuning")}
    for i, name in enumerate(family.members):
        row = rows["fam", "reported", name]
        pairs = [(family.leaf(i, s).final(), family.baseline(i, s).final()) for s in (1, 2)]
        assert row["seeds"] == [1, 2] and row["less"][0] == pytest.approx(np.mean([a - b for a, b in pairs]))
        assert row["less"][1] == pytest.approx(0, abs=1e-9)  # this world has no noise
        assert row["flops"][1] == pytest.approx(study.cost(name) * 64 * family.baseline(i, 1).last)
    grown, alone = (sum(rows["fam", "reported", m]["flops"][i] for m in family.members) for i in (0, 1))
    line = next(x for x in text.splitlines() if x.startswith("| fam ") and "| all " in x)
    assert f"{100 * (1 - grown / alone):.0f} %" in line and "| -" in line  # no speeds yet
    monkeypatch.setattr(speeds, "SECONDS", 0.0)
    monkeypatch.setattr(speeds, "ROUNDS", 1)
    assert "4L_16_2h_32 from 2L_16_2h_32" in speeds.measure_speeds(study)
    frontier_report.write_report(study)
    assert all(r["seconds"][0] > 0 and r["seconds"][1] > 0 for r in report_of(study)["families"])


def test_a_family_alone_is_run_by_its_name(study, tmp_path):
    """With its sizes from scratch, that it is compared with."""
    both = {"fam": FAMILY, "other": FAMILY}
    study = make_family(tmp_path, only_names=["fam"], families=both)
    done = play_all(study)
    kinds = {tuple(os.path.relpath(j.out_dir, study.out).split(os.sep)[:2]) for j in done}
    for job in (j for j in done if j.keep):
        os.remove(job.checkpoint())
    assert not any(study.ready())  # as in results/, which holds no checkpoints
    assert kinds == {("scratch", "one"), ("scratch", "two"), ("scratch", "four"), ("family", "fam")}


def test_trunks_read_little_and_results_the_whole_validation_set(study, tmp_path):
    settings = dict(TINY["settings"], eval_seqs=5000)
    study = make(tmp_path, settings=settings)
    leaf = study.leaf("late", 10, 1, 0.35)
    assert leaf.values["eval_seqs"] == 5000
    assert {j.values["eval_seqs"] for j in leaf.chain()[:-1]} == {512}


def test_cost_of_a_loss():
    curve = [(1, 4.0), (4, 2.0), (16, 1.0)]
    assert frontier_report.cost_of(curve, 2.0) == (pytest.approx(4), 0)
    assert frontier_report.cost_of(curve, 2.0**0.5) == (pytest.approx(8), 0)
    assert frontier_report.cost_of(curve, 5.0) == (pytest.approx(1), -1)
    assert frontier_report.cost_of(curve, 0.9) == (pytest.approx(16), 1)
    assert frontier_report.cost_of(curve[:1], 4.0) is None
    assert frontier_report.cost_of([(1, 4.0), (2, 4.5), (4, 2.0)], 2.0) == (pytest.approx(4), 0)


@pytest.mark.parametrize("changes, message", [
    (dict(target="tow"), "target: 'tow': no such name, did you mean two"),
    (dict(decays=None), "experiment: has no decays"),
    (dict(ladder=dict(one=dict(n_layer=1), two=2)), "experiment: 'two': 2: must be a dict"),
    (dict(starts=dict(narrow=dict(TINY["starts"]["narrow"], rate="0.1x"))), "'narrow': rate='0.1x'"),
    (dict(seeds=[]), "experiment: has no seeds, or none in it"),
    (dict(sweep_at=7), "7 is none of the budgets"),
    (dict(ladder=dict(TINY["ladder"], four=dict(n_layer=4, budgets=[5, 7]))), "7 is none of the budgets"),
    (dict(grown={"x": dict(start="one", growths=None)}), "'x': growths=None: must be"),
    (dict(grown={"x": dict(start="one", growths=[None])}), r"\[\(share of the compute"),
    (dict(grown={"x": dict(start="one", budgets=5)}), "'x': budgets=5: must be"),
    (dict(sweep_at="5"), "sweep_at='5': must be a number"),
    (dict(ladder=[1]), r"ladder=\[1\]: must be a dict"),
    (dict(bugdets=[5]), "no such name, did you mean budgets"),
    (dict(only_budgets=[5, 7]), r"--budgets: 7 is none of the experiment's \[5, 10, 20\]"),
    (dict(only_seeds=[3]), "--seeds: 3 is none"),
    (dict(grown={"x": dict(start="five", growths=[(0.1, dict(n_layer=2))])}), "grown 'x': start"),
    (dict(grown={"x": dict(start="one", growths=[(2, dict(n_layer=2))])}), r"\[\(share of the compute"),
    (dict(grown={"x": dict(start="one", growths=[(0.1, dict(n_layer=3))])}), "does not end at the size"),
    (dict(grown={"x": dict(start="one", growths=[(0.001, dict(n_layer=2))])}), "lower warmup_iters=2"),
    (dict(ladder=dict(TINY["ladder"], one=dict(n_layer=1, settings=dict(batch_tokens=32)))),
     "one: batch_tokens=32: budgets are counted in batches of 64"),
    (dict(ladder=dict(TINY["ladder"], one=dict(n_layer=1, settings=dict(qk_norm=True)))), "qk_norm"),
    (dict(ladder=dict(TINY["ladder"], one=dict(n_layer=1, settings=5))), "settings=5: must be a dict"),
    (dict(save_every="8"), "save_every='8': must be a whole number"),
    (dict(families={"f": dict(FAMILY, members=["one", "tow"])}), "members: 'tow': no such name"),
    (dict(families={"f": dict(FAMILY, trunk=[0.5, 0.2])}), "each of two members or more, and has 3"),
    (dict(families={"f": dict(FAMILY, tokens=7)}), "tokens=7: is none of the budgets"),
    (dict(families={"f": dict(FAMILY, tail=1)}), "family 'f': 'tail': no such name"),
    (dict(families={"f": dict(FAMILY, members=["two", "one"], trunk=[1, 1], decay=[1, 1])}), "n_layer"),
])
def test_what_is_no_study(tmp_path, changes, message):
    make_data(tmp_path / "data")
    with pytest.raises(UserError, match=message):
        make(tmp_path, **changes)


@pytest.mark.parametrize("name, weights", [
    ("frontier", 294_912), ("frontier_adamw", 294_912), ("frontier_llama", 296_448),
    ("frontier_gpu", 10_616_832), ("family", 98_304), ("family_64", 393_216), ("family_in_proportion", 98_304)])
def test_the_experiments_of_this_house(name, weights, tmp_path):
    made = read_file(str(ROOT / "lab/experiments" / f"{name}.py"))
    made["settings"] = dict(made["settings"], data_dir=str(make_data(tmp_path / "data")))
    study = Study(made, str(tmp_path / "out"))
    costs = [study.cost(n) for n in study.ladder]
    assert len(costs) >= 3 and all(1.4 < b / a < 2.2 for a, b in zip(costs, costs[1:]))
    assert study.weights == weights


def test_a_killed_job_starts_again(tmp_path, monkeypatch):
    """What a kill left before the first checkpoint is no run to go on from."""
    job = branches.Branch(str(tmp_path / "run"), dict(max_iters=5), 1.0)
    place = dict(), None, "test"
    os.makedirs(job.out_dir)
    open(job.path("metrics.jsonl"), "w").close()
    monkeypatch.setattr(children, "Child", lambda command, out_dir, place: command)
    assert "--init_from=scratch" in job.start(place)
    assert not os.path.exists(job.path("metrics.jsonl"))
    open(job.path("ckpt_0000002.pt"), "w").close()
    assert job.start(place)[2:] == [job.out_dir, "--resume", "--max_iters=5", "--stages=[]"]
    job.values["stages"] = [dict(at=3, n_layer=9, operator="stack", ramp_iters=2)]  # a ramp that means nothing
    assert "ramp_iters" not in job.start(place)[-1] and "'operator': 'stack'" in job.start(place)[-1]
    open(job.path("ckpt_0000007.pt"), "w").close()
    job.keep = (5, 7)
    with pytest.raises(UserError, match="is past iteration 5, where the experiment branches off now"):
        job.start(place)


@pytest.mark.slow
def test_end_to_end(tmp_path):
    """train.py itself: trunks, decays, grown runs; stopped in between."""
    made = dict(TINY, settings=dict(TINY["settings"], data_dir=str(make_data(tmp_path / "data"))),
                budgets=[5, 10], decays=[0.3], seeds=[1],
                ladder={k: TINY["ladder"][k] for k in ("one", "two")},
                rates=dict(muon_learning_rate=[0.02]),
                families={"fam": dict(members=["one", "two"], tokens=10, trunk=[0.5, 0.2], decay=[0.3, 0.3],
                                      operator="stack")})
    path = tmp_path / "toy.py"
    path.write_text("\n".join(f"{k} = {v!r}" for k, v in made.items()))
    command = [sys.executable, "-m", "lab.frontier", str(path), f"--out={tmp_path / 'out'}"]
    first = subprocess.Popen(command, cwd=ROOT, env=ENV, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 300
    while time.monotonic() < until and not list((tmp_path / "out").glob("scratch/*/*/*/trunk/ckpt*")):
        time.sleep(0.2)
    first.send_signal(signal.SIGTERM)
    assert "the same command goes on" in first.communicate(timeout=100)[1] and first.returncode == 2
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-2000:]
    study = Study(read_file(str(path)), str(tmp_path / "out"))
    assert not any(study.ready())
    for name in study.names:
        for budget in study.budgets_of(name):
            leaf = study.leaf(name, budget, 1, study.best(name, budget)[1])
            end = events(leaf.out_dir, "eval")[-1]
            assert end["n_layer"] == from_dict(leaf.values).sizes()[-1]["n_layer"]
            assert end["flops"] == pytest.approx(study.flops(budget), rel=0.05)
            assert end["mask"] == 1
    family = study.families["fam"]
    for i, leaf in enumerate(family.jobs(1)):
        end = events(leaf.out_dir, "eval")[-1]
        assert end["n_layer"] == i + 1 and end["iter"] == leaf.last == family.ends[i] + family.decays[i]
    assert "| early" in done.stdout and "| fam " in done.stdout and plan(study, 1e9).count("0.0 s") == 7
