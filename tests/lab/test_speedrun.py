"""Speed claims: the arithmetic, what is refused, and campaigns that are interrupted."""
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from runs import ENV, ROOT, TINY, events, make_data

from base.errors import UserError
from lab import children, costs, speedrun, verdict
from lab.campaign import Campaign, Contestant, Run
from run.curves import crossing, curve, reaches

FAKE = '''
import json, os, re, signal, sys, time
given = dict(a[2:].split("=", 1) for a in sys.argv[1:])
out, n, rate = given["out_dir"], int(given["max_iters"]), float(given["learning_rate"])
layers, seed = int(given["n_layer"]), int(given["seed"])
path = os.path.join(out, "metrics.jsonl")
lines = [json.loads(s) for s in open(path)] if os.path.exists(path) else []
stopped = []
signal.signal(signal.SIGTERM, lambda *a: stopped.append(1))
json.dump(json.load(open(os.path.join(os.path.dirname(__file__), "configs", re.sub(r"\\W", "_", out)))),
          open(os.path.join(out, "config.json"), "w"))
if rate > 1:
    sys.exit("error: loss was infinite or NaN in the last 5 steps")
if rate == 0.5:
    sys.exit("error: data_dir=x: no such folder")
for i in range(lines[-1]["iter"] + 1 if lines else 0, n + 1):
    if stopped:
        sys.exit(0)
    loss = "nan" if rate == 0.3 else 3 - 2 * i / n * min(1, i * layers / 40) + abs(rate - 0.01) + seed / 100
    with open(path, "a") as f:
        f.write(json.dumps(dict(event="eval", iter=i, tokens=i, train_s=0.1 * i * layers, flops=1e9 * i * layers,
                                val_loss=loss)) + "\\n")
    time.sleep(0.003)
'''


@pytest.fixture
def fake(tmp_path, monkeypatch):
    """Campaigns whose runs are played by a small script, in milliseconds."""
    script = tmp_path / "fake.py"
    script.write_text(FAKE)
    (tmp_path / "configs").mkdir()

    def command(run):
        name = re.sub(r"\W", "_", run.config.out_dir)
        (tmp_path / "configs" / name).write_text(json.dumps(asdict(run.config)))
        keys = ("out_dir", "max_iters", "learning_rate", "n_layer", "seed")
        return [sys.executable, str(script), *(f"--{k}={getattr(run.config, k)}" for k in keys)]
    monkeypatch.setattr(Run, "command", command)

    def campaign(contestants=None, seeds=(1, 2), settings=None, **kw):
        return Campaign(dict(contestants=contestants or CONTESTANTS, seeds=list(seeds), settings=dict(
            n_layer=4, max_iters=40, warmup_iters=5, **(settings or {}))), str(tmp_path / "out"), **kw)
    return campaign


SWEEP = dict(learning_rate=[5e-3, 1e-2, 2e-2])
CONTESTANTS = {"scratch": dict(sweep=SWEEP), "grown": dict(against="scratch", n_layer=2)}
SLOTS = [(dict(), None, "test")] * 2


def run_it(campaign):
    speedrun.run_all(campaign.sweeps(), SLOTS)
    speedrun.run_all([r for c in campaign.contestants.values() for r in campaign.finals(c)], SLOTS)
    speedrun.run_all([r for c in campaign.shorter() for r in campaign.finals(c)], SLOTS)


# -----------------------------------------------------------------------------
# arithmetic

def test_intervals_are_students():
    for n, t in ((2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (101, 1.984)):
        values = [0.0, 1.0] * (n // 2) + [0.5] * (n % 2)
        sd = (sum((v - 0.5) ** 2 for v in values) / (n - 1)) ** 0.5
        assert verdict.interval(values) == (0.5, pytest.approx(t * sd / n**0.5, rel=1e-3))
    assert verdict.interval([0.0, 0.0, 1.0, 1.0], 0.99)[1] == pytest.approx(5.841 / 12**0.5, abs=1e-3)


def test_intervals():
    assert verdict.interval([2.0]) == (2.0, None)
    mean, half = verdict.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / 3**0.5, abs=1e-3)
    mean, low, high = verdict.ratio_interval([2.0, 8.0])
    assert mean == pytest.approx(4) and low * high == pytest.approx(16) and low < 1
    assert verdict.ratio_interval([3.0]) == (pytest.approx(3.0), None, None)


def test_crossing():
    xs, ys = [0, 10, 20, 30], [4.0, 2.0, 3.0, 1.0]
    assert crossing(xs, ys, 3.0) == 5       # interpolated, and the first time counts
    assert crossing(xs, ys, 1.5) == 27.5
    assert crossing(xs, ys, 4.5) == 0 and crossing(xs, ys, 0.9) is None
    assert crossing(xs, ys, 1.0) == 30 and crossing([], [], 1) is None


def test_a_loss_before_the_last_growth_does_not_count():
    """Nor one along the ramp: the model must be what it ends as."""
    def events(*points):
        return [dict(event="eval", iter=i, train_s=10.0 * i, flops=1.0 * i, n_layer=layers, mask=mask,
                     val_loss=loss) for i, (layers, mask, loss) in enumerate(points)]
    grown = curve(events((1, 1.0, 5.0), (1, 1.0, 1.0), (2, 0.5, 1.0), (2, 1.0, 3.0),
                                 (2, 1.0, 1.0)))
    assert grown["whole"] == [False, False, False, True, True]
    assert reaches(grown, "train_s", 2.0) == 35 and reaches(grown, "flops", 3.0) == 3
    assert reaches(grown, "train_s", 0.5) is None
    assert reaches(curve(events((1, 1.0, 5.0), (2, 0.5, 1.0))), "iter", 2.0) is None
    assert reaches(curve(events((1, 1.0, 3.0), (1, 1.0, 1.0))), "iter", 2.0) == 0.5


def test_compare_pairs_by_seed():
    def line(end, last):
        return dict(train_s=[0, end], flops=[0, 2 * end], iter=[0, 1], val_loss=[5.0, last],
                    whole=[True, True])
    base = {1: line(100, 1.0), 2: line(100, 3.0)}
    got = verdict.compare({1: line(50, 1.0), 2: line(50, 1.0)}, base)
    assert got["train_s_to_loss"] == [50, 25] and got["reached"] == 2
    assert got["train_s_speedup"][0] == pytest.approx(8**0.5)
    assert got["final_ratio"][0] == pytest.approx(3**-0.5)
    assert verdict.percent(got["final_ratio"]).startswith("-42.3 % (")
    got = verdict.compare({1: line(50, 2.0), 2: line(50, 1.0)}, base)  # one never gets there
    assert got["reached"] == 1 and got["train_s_speedup"] is None
    assert verdict.compare(base, base)["flops_speedup"] == (1, 1, 1)


# -----------------------------------------------------------------------------
# what is accepted

@pytest.mark.parametrize("contestants, words", [
    ({"a": dict()}, "its learning rate is not tuned"),
    ({"a": dict(sweep=dict(learning_rate=[1e-3, 2e-3]))}, "at least 3 values"),
    ({"a": dict(sweep=dict(weight_decay=[0.1, 0.2, 0.3]))}, "its learning rate is not tuned"),
    ({"a": dict(sweep=SWEEP), "b": dict(against="c")}, "against: 'c': no such name"),
    ({"a": dict(sweep=SWEEP), "b": dict(against="a", sweep=dict(learning_rate=[1., 2., 3., 4.]))},
     "give the baseline the same budget"),
    ({"a": dict(sweep=SWEEP), "b": dict(against="a"), "c": dict(against="b")}, "no baseline here"),
    ({"a": dict(sweep=SWEEP, n_layers=3)}, "contestant 'a': n_layers: no such setting"),
    ({"a": dict(sweep=dict(learning_rat=[1, 2, 3], learning_rate=[1, 2, 3]))}, "no such setting"),
    ({"a": dict(sweep=dict(learning_rate=3))}, "must be a list of values"),
    ({"a": dict(sweep=SWEEP, flops="z")}, "flops: 'z': no such name"),
])
def test_unfair_or_wrong_is_refused(fake, contestants, words):
    with pytest.raises(UserError) as e:
        fake(contestants)
    assert words in str(e.value)


@pytest.mark.parametrize("experiment, words", [
    (dict(), "has no contestants"),
    (dict(contestant={}), "did you mean contestants"),
    (dict(contestants=[1]), "contestants=[1]: must be a dict"),
    (dict(contestants={"a": 3}), "contestant 'a'=3: must be a dict"),
    (dict(contestants={1: {}}), "a contestant's name=1: must be text"),
    (dict(contestants={"a": {}}, seeds=["x"]), "must be whole numbers, such as [1, 2, 3]"),
    (dict(contestants={"a": {}}, seeds=[]), "must be whole numbers, such as [1, 2, 3]"),
    (dict(contestants={"a": dict(config=3)}), "contestant 'a': config=3: must be text"),
    (dict(contestants={"a": dict(sweep=[1])}), "contestant 'a': sweep=[1]: must be a dict"),
    (dict(contestants={"a": dict(against=3)}), "contestant 'a': against=3: must be a list"),
    (dict(contestants={"a": {}, "b": dict(against=[3])}, ablation=True), "against: 3: no such name"),
    (dict(contestants={"a": dict(flops=float("nan"))}, ablation=True), "must be a number of FLOPs"),
    (dict(contestants={"a": dict(flops=("a", "b"))}, ablation=True), "must be a number of FLOPs"),
    (dict(contestants={"a": dict(flops=1e9, stages=[3])}, ablation=True), "contestant 'a': stages[0]=3"),
])
def test_wrong_experiments(experiment, words):
    with pytest.raises(UserError) as e:
        Campaign(experiment, "out")
    assert words in str(e.value)


@pytest.mark.parametrize("flags, words", [
    ("--sweep=learning_rate", "is written --sweep="), ("--seeds=1,x", "--seeds: x: must be a whole number"),
    ("--parallel=0", "at least 1"), ("--parallel=9999 --ablation", "parallel=9999: there are"),
    ("--only=nobody --ablation", "only: 'nobody': no such name"), ("--out", "expected one argument"),
    ("--n_layers=3", "did you mean n_layer?"), ("config/none.py", "config/none.py: no such config"),
])
def test_bad_flags_are_one_line(flags, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(costs, "read_meta", lambda data_dir: dict(vocab_size=256))
    monkeypatch.setattr(sys, "argv", ["speedrun.py", "config/pystdlib_scratch.py", *flags.split()] +
                        [f"--out={tmp_path}"] * (flags != "--out"))
    with pytest.raises(SystemExit) as e:
        speedrun.main()
    said = capsys.readouterr().err
    assert e.value.code == 2 and words in said and len(said.splitlines()) == 1, said


def test_configs_with_settings_behind_them_and_spaces_in_them(tmp_path):
    path = tmp_path / "my configs" / "a b.py"
    path.parent.mkdir()
    path.write_text("n_layer, stages, ramp_iters = 2, [dict(at=300, n_layer=4)], 9")
    made = speedrun.read_experiment([str(path), f"{path} operator=stack n_layer=3"])["contestants"]
    assert made == {"a b": dict(config=str(path)), "a b operator=stack n_layer=3": dict(
        config=str(path), operator="stack", n_layer=3, against="a b")}
    assert speedrun.sweep_of("learning_rate:1e-3,2e-3") == ("learning_rate", [1e-3, 2e-3])
    Campaign(dict(speedrun.read_experiment([str(path)]), ablation=True), "out")


def test_ablations_need_no_sweep_and_compare_with_the_first(fake):
    c = fake({"a": dict(), "b": dict(n_layer=2)}, ablation=True)
    assert c.contestants["b"].against == ["a"] and not c.sweeps()
    run_it(c)
    assert not c.shorter() and [r["name"] for r in c.report()[0]] == ["a", "b"]


def test_the_same_compute(monkeypatch):
    settings = {k: TINY[k] for k in ("block_size", "n_head", "head_dim", "batch_tokens")}
    settings.update(data_dir="not needed", vocab_size=256, warmup_iters=2, max_iters=200, n_inner=64)
    monkeypatch.setattr(costs, "read_meta", lambda data_dir: dict(vocab_size=256))
    c = Campaign(dict(settings=settings, ablation=True, contestants={
        "whole": dict(n_layer=4),
        "grown": dict(n_layer=1, stages=[dict(at=60, n_layer=4)], flops="whole")}), "out")
    cost = {n: costs.compute(c.run(x, {}, 1).config) for n, x in c.contestants.items()}
    assert c.contestants["grown"].values["max_iters"] > 210
    assert cost["grown"] == pytest.approx(cost["whole"], rel=0.01)


# -----------------------------------------------------------------------------
# campaigns

def test_a_campaign_and_its_report(fake, tmp_path):
    campaign = fake(dict(CONTESTANTS, alone=dict(against="scratch", n_layer=1, learning_rate=9e-3)))
    run_it(campaign)
    text = speedrun.write_report(campaign)
    with open(tmp_path / "out" / "report.json") as f:
        report = json.load(f)
    assert [r["name"] for r in report["rows"][:3]] == ["scratch", "grown", "alone"]
    assert [r["point"] for r in report["rows"][:3]] == ["learning_rate=0.01"] * 2 + [""]
    grown = report["rows"][1]["against"]["scratch"]
    assert grown["reached"] == 2 and grown["train_s_speedup"][0] == pytest.approx(2, abs=0.01)
    assert len(report["sweeps"]["scratch"]) == 3 and report["not_accepted"] == {"scratch": ""}
    # the shorter one beside the baseline: half its time, so half its iterations
    assert report["rows"][3]["name"] == "scratch, shorter (20 iterations)"
    assert "Baseline scratch: accepted." in text and "2 of 2" in text
    assert os.path.getsize(tmp_path / "out" / "loss.png") > 10000


def test_a_best_rate_at_the_edge_is_not_accepted(fake):
    campaign = fake({"scratch": dict(sweep=dict(learning_rate=[1e-2, 2e-2, 4e-2]))})
    run_it(campaign)
    assert "edge" in campaign.not_accepted(campaign.contestants["scratch"], [])
    assert "NOT accepted" in speedrun.write_report(campaign)


def test_a_diverged_point_loses_and_a_failed_run_stops(fake, capsys):
    campaign = fake({"scratch": dict(sweep=dict(learning_rate=[5e-3, 1e-2, 0.3, 3.0]))})
    run_it(campaign)
    assert campaign.best_point(campaign.contestants["scratch"]) == dict(learning_rate=1e-2)
    assert "inf" in speedrun.write_report(campaign)
    with pytest.raises(UserError, match="data_dir=x: no such folder.*the same command goes on"):
        run_it(fake({"bad": dict(sweep=dict(learning_rate=[5e-3, 1e-2, 0.5]))}))


def test_an_interrupted_campaign_goes_on(fake, monkeypatch):
    campaign, sleep = fake(), children.time.sleep
    runs = campaign.sweeps()

    def interrupt(seconds):
        sleep(0.01)
        if os.path.exists(runs[2].path("metrics.jsonl")):  # two are over, or nearly so
            raise KeyboardInterrupt
    monkeypatch.setattr(children.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        speedrun.run_all(runs, SLOTS)
    half = [r.curve()["iter"] if os.path.exists(r.path("metrics.jsonl")) else [] for r in runs]
    assert 0 < len(half[2]) < 41
    assert campaign.best_point(campaign.contestants["grown"]) is None and not campaign.report()[0]
    with pytest.raises(UserError, match="no finished runs"):
        speedrun.write_report(campaign)
    monkeypatch.setattr(children.time, "sleep", sleep)
    run_it(fake())  # the same command again
    assert all(r.curve()["iter"] == list(range(41)) for r in runs)
    assert len(campaign.report()[0]) == 2


CRASH = """
import sys
print("error: out_dir=a: another run is writing there", flush=True)
sys.exit(2)
"""


@pytest.mark.parametrize("n, visible, devices, words", [
    (2, None, ["0", "1"], "2 at once, a GPU each"), (3, None, ["0", "1", "0"], "3 at once, on 2 GPUs"),
    (3, "5", ["5", "5", "5"], "3 at once, on 1 GPU")])
def test_runs_are_dealt_out_to_gpus(n, visible, devices, words, monkeypatch):
    monkeypatch.setattr(children.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(children.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    assert children.slots(n) == [(dict(CUDA_VISIBLE_DEVICES=d), None, words) for d in devices]


def test_a_report_names_the_machine_of_the_runs(tmp_path):
    """Not that where the report is made; an old run has none."""
    jobs = [children.Job(str(tmp_path / name), 1) for name in "abc"]
    for job, start in zip(jobs, (dict(machine="A", torch="2"), dict(torch="2"))):
        os.makedirs(job.out_dir)
        with open(job.path("metrics.jsonl"), "w") as f:
            f.write(json.dumps(dict(event="start", iter=0, tokens=0, train_s=0, flops=0, **start)) + "\n")
    assert children.machines(jobs) == "A, torch 2 or not recorded, torch 2"
    assert children.machines(jobs[2:]) == "not recorded"


@pytest.mark.parametrize("script, why", [
    ("print('error: x'); print('100%', end='\\r'); raise SystemExit(2)", "x"),
    ("print('half'); 1 / 0", "ZeroDivisionError: division by zero"),
    ("import os; os.kill(os.getpid(), 9)", "killed by signal 9, perhaps for want of memory"),
    ("print('a word')\nraise SystemExit(3)", "a word"), ("raise SystemExit(3)", "exit code 3")])
def test_why_a_child_failed(script, why, tmp_path):
    """What it said itself since this start, not what is in run.txt of an earlier one."""
    place = children.slots(1)[0]
    for text in (CRASH, script):
        child = children.Child([sys.executable, "-c", text], str(tmp_path), place)
        child.process.wait()
    assert child.reason() == why


PARENT = """
import sys, time
from lab import children
folder, script = sys.argv[1:]
c = children.Child([sys.executable, "-c", script, folder], folder, children.slots(1)[0])
print(c.process.pid, flush=True)
time.sleep(60)
"""
CHILD = """
import os, signal, sys, time
from run.checkpoint.checkpoint import make_out_dir
lock = make_out_dir(sys.argv[1])
def save(*_):
    time.sleep(1)
    open(os.path.join(sys.argv[1], "saved"), "w").close()
    sys.exit()
signal.signal(signal.SIGTERM, save)
open(os.path.join(sys.argv[1], "ready"), "w").close()
time.sleep(60)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="there is no PR_SET_PDEATHSIG")
def test_no_child_outlives_a_killed_parent(tmp_path):
    """It gets SIGTERM and saves; who starts in the same folder next waits for that."""
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), CHILD], cwd=ROOT, env=ENV,
                              stdout=subprocess.PIPE, text=True)
    pid, deadline = int(parent.stdout.readline()), time.monotonic() + 60
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.kill()
    children.wait_for(str(tmp_path))
    assert (tmp_path / "saved").exists()
    while os.path.exists(f"/proc/{pid}") and "State:\tZ" not in open(f"/proc/{pid}/status").read():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_who_still_writes_after_a_while_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(children, "PATIENCE", 0.3)
    with children.make_out_dir(str(tmp_path)), pytest.raises(UserError, match="another run is writing"):
        children.wait_for(str(tmp_path))


def test_runs_older_than_a_setting_are_a_campaigns(fake):
    """Before `sampling` there was, all drew at random: that is what their config.json without it says."""
    settings = dict(sampling="random")
    run_it(fake(settings=settings))
    run = fake(settings=settings).sweeps()[0]
    with open(run.path("config.json")) as f:
        config = {k: v for k, v in json.load(f).items() if k != "sampling"}
    with open(run.path("config.json"), "w") as f:
        json.dump(dict(config, gone=1), f)
    assert run.done()


def test_another_campaign_in_the_same_folder_is_refused(fake):
    run_it(fake())
    with pytest.raises(UserError, match="holds a run with max_iters=40, not 50"):
        run_it(fake(settings=dict(weight_decay=0.1), overrides=dict(max_iters=50)))


def test_real_runs_are_interrupted_and_resumed(tmp_path, monkeypatch):
    """train.py itself: every step logged once, in order, and only the last checkpoint kept."""
    data = str(make_data(tmp_path / "data"))
    settings = {**TINY, "data_dir": data, "stages": [], "max_iters": 90, "eval_interval": 30}
    campaign = Campaign(dict(settings=settings, contestants={"a": {}}, ablation=True, seeds=[3]),
                        str(tmp_path / "out"))
    [run] = campaign.finals(campaign.contestants["a"])
    slots, sleep = children.slots(len(os.sched_getaffinity(0)))[:1], children.time.sleep

    def interrupt(seconds):
        sleep(0.02)
        if os.path.exists(run.path("metrics.jsonl")) and len(events(run.config.out_dir)) > 20:
            raise KeyboardInterrupt
    monkeypatch.setattr(children.time, "sleep", interrupt)
    with pytest.raises(KeyboardInterrupt):
        speedrun.run_all([run], slots)
    monkeypatch.setattr(children.time, "sleep", sleep)
    assert not run.done()
    speedrun.run_all([run], slots)
    assert run.done() and run.curve()["iter"] == [0, 30, 60, 90]
    assert [e["iter"] for e in events(run.config.out_dir, "step")] == list(range(1, 91))
    assert sorted(n for n in os.listdir(run.config.out_dir) if n.endswith(".pt")) == ["ckpt.pt"]
    assert "1 thread each" in open(run.path("place.txt")).read()


@pytest.mark.parametrize("name", sorted(p.stem for p in (ROOT / "lab/experiments").glob("*.py")
                                        if "\ncontestants = " in p.read_text()))
def test_the_experiments_are_ready_to_run(name, monkeypatch):
    """Every experiment passes the checks, and its runs cost what the file says."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(costs, "read_meta", lambda data_dir: dict(vocab_size=256, tokenizer="bytes"))
    campaign = Campaign(speedrun.read_experiment([str(ROOT / "lab/experiments" / f"{name}.py")]), "out")
    if name == "pystdlib_schedules":  # where schedules were looked for, not compared
        assert campaign.seeds == [1]
    else:
        assert campaign.seeds == [1, 2, 3] and len(campaign.contestants) >= (
            2 if name in ("gpt_or_llama", "pystdlib_bert", "pystdlib_main") else 4)
    text = speedrun.plan(campaign)
    assert all(c in text for c in campaign.contestants)
    grows_late = name.startswith("ablate_") or name in (
        "pystdlib_main", "pystdlib_schedules", "pystdlib_evidence", "pystdlib_large")
    for c in campaign.contestants.values():  # growth in the stable phase, or late on purpose
        config = campaign.run(c, {}, 1).config
        for stage in config.stages:
            assert config.schedule == "wsd" and config.warmup_iters <= stage["at"]
            end, decay = stage["at"] + config.ramp_of(stage), (1 - config.decay_frac) * config.max_iters
            assert end <= decay or grows_late and end < config.max_iters
    if name == "pystdlib_large":  # the target's step costs at least 8 times the start's
        steps = [costs.compute(campaign.run(c, {}, 1).config) / c.values["max_iters"] for c in
                 (Contestant("", {**campaign.contestants[n].values, "stages": [], "max_iters": 100})
                  for n in ("scratch Muon", "one layer, four, ten: MSG, Muon"))]
        assert steps[0] > 8 * steps[1]
