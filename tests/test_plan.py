"""Planning: costs by arithmetic and by measurement, predictions, and whole tiny searches."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from runs import ENV, ROOT, events, flags, losses, make_data, train, train_here
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lab import plan as planner
from lab import rates, search
from lab.costs import batch, count, make_model, stage_costs, totals, vocab_of
from lab.plan import show
from run.arguments import from_args
from run.curves import crossing
from run.settings import from_dict


def plan(*args, check=True):
    done = subprocess.run([sys.executable, "-m", "lab.plan", *args], cwd=ROOT, env=ENV, timeout=300,
                          capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """With validation text that can be learnt from the training text."""
    folder = make_data(tmp_path_factory.mktemp("data"), 200_000)
    (folder / "val.bin").write_bytes((folder / "train.bin").read_bytes()[:40_000])
    return str(folder)


def plan_here(monkeypatch, *args):
    """The same command, without a new process."""
    monkeypatch.setattr(sys, "argv", ["plan.py", *args])
    monkeypatch.chdir(ROOT)
    return planner.main()


@pytest.mark.parametrize("name", ["bert_base_msg", "bert_large_msg", "gpt2_msg"])
def test_flops_agree_with_the_flop_counter(name):
    """Every kind of stage of the presets within 2 %, on the meta device: shapes, no arithmetic."""
    config = from_args([str(ROOT / "config" / f"{name}.py")])
    vocab = vocab_of(config, guess=True)
    for sizes in (config.sizes()[0], config.sizes()[-1]):
        sizes = {**sizes, "n_layer": 3}  # every layer costs the same, and counting one takes a second
        model = make_model(config, sizes, vocab, "meta")
        data = batch(config, vocab, 1, "meta")
        # the fused kernel's backward computes the scores again, which is not the model's work
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(**data)[1].backward()
        counted = counter.get_total_flops() / config.block_size
        assert count(config, sizes, vocab)[1] == pytest.approx(counted, rel=0.02), sizes


def test_dry_run_of_101_billion_parameters(monkeypatch, capsys):
    plan_here(monkeypatch, "config/flm_101b.py", "--dry", "--flops=312e12", "--mfu=0.5",
              "--processes=192")
    said = capsys.readouterr().out
    assert "102 G" in said and "ceiling on the speedup" in said
    rows = stage_costs(from_args([str(ROOT / "config" / "flm_101b.py")]), 100_352)
    assert [round(r["params"] / 1e9) for r in rows] == [16, 50, 102]
    assert [round(r["tokens"] / 1e9) for r in rows] == [245, 40, 27]


def test_the_ceiling_is_amdahls():
    config = from_args([f"--{k}={v}" for k, v in dict(
        n_layer=1, stages="[dict(at=50, n_layer=4)]", ramp_iters=0, max_iters=100,
        warmup_iters=0).items()])
    rows = stage_costs(config, 64)
    r = rows[0]["flops"] / rows[1]["flops"]
    assert totals(rows)[1] == pytest.approx(1 / (0.5 * r + 0.5))
    for row, s in zip(rows, (0.1, 0.4)):
        row.update(step_s=s, ramp_s=s, compile_s=0)
    cost, ceiling, scratch = totals(rows)
    assert cost == pytest.approx([5, 20]) and scratch == pytest.approx(40) and ceiling == 1.6


def test_a_schedule_that_cannot_pay_off_says_so():
    config = from_args(["--stages=[dict(at=10, n_layer=7)]", "--max_iters=100", "--warmup_iters=1",
                        "--ramp_iters=0"])
    rows = stage_costs(config, 64)
    assert "can hardly pay off" in show(rows, config)
    for row in rows:
        row.update(step_s=0.1, ramp_s=0.1, compile_s=10)
    text = show(rows, config)
    assert "cannot pay off" in text and "leave that stage out" in text


def test_measured_table(data, monkeypatch, capsys):
    plan_here(monkeypatch, *flags(data_dir=data), "--seconds=0.1")
    said = capsys.readouterr().out
    assert said.count("measured n_layer") == 4 and "tokens/s" in said


@pytest.mark.parametrize("bad, names", [
    ("--mfu=2", "--mfu"), ("--mfu=0", "--mfu"), ("--flops=inf", "--flops"), ("--flops=nan", "--flops"),
    ("--processes=0", "--processes"), ("--budget=0.02 --search", "--budget"), ("--seeds=1.5", "--seeds"),
    ("--probe=1 --study", "--probe"), ("--study --search", "not allowed with"), ("--dry=3", "--dry"),
    ("--steps=3", "steps"), ("config/none.py", "none.py"), ("--device=abacus", "device=abacus"),
    ("--search", "needs a config file"), ("--study --stages=[]", "stages=[]")])
def test_bad_input_is_one_line(bad, names, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as e:
        plan_here(monkeypatch, *bad.split(), f"--out_dir={tmp_path}", "--n_layer=1")
    said = capsys.readouterr().err
    assert e.value.code == 2 and names in said and len(said.splitlines()) == 1, said


def test_a_bad_flag_in_a_process():
    done = plan("--mfu=2", check=False)
    assert done.returncode == 2 and done.stderr == \
        "error: argument --mfu: 2: must be a number, at least 0.001 and at most 1: see --help\n"


def test_without_scipy_the_table_works_and_a_search_says_so(monkeypatch, capsys, toy):
    for name in [n for n in sys.modules if n.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    plan_here(monkeypatch, toy, "--dry", "--flops=1e12")
    with pytest.raises(SystemExit) as e:
        plan_here(monkeypatch, toy, "--search")
    assert e.value.code == 2 and "pip install scipy" in capsys.readouterr().err


# -----------------------------------------------------------------------------
# grow_when="rate"

def rated(rate):
    return [dict(at=40, n_inner=48, rate=rate), dict(at=52, n_layer=2, rate=rate)]


def test_growth_by_rate_is_decided_once(data, tmp_path):
    """Early if the next stage's rate is higher, else at `at`; the decision is in the checkpoint."""
    settings = dict(data_dir=data, grow_when="rate", dropout=0.0, schedule="constant")
    early, late = [[0, 1e9], [9, 1e9]], [[0, -1e9]]
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    train_here(out_dir=a, stages=rated(early), keep_checkpoints=20, **settings)
    grown = [(e["iter"], e["n_inner"], e["n_layer"]) for e in events(a, "grow")]
    # evaluations at 7 and 14 are the first after the warmup, 28 and 35 after the ramp
    assert grown == [(15, 48, 1), (36, 48, 2)]
    assert [e["iter"] for e in events(a, "ramp_end")] == [22, 43]
    # cut off right after the decision, and resumed with rates by which it would be another
    shutil.copytree(a, b)
    for name in os.listdir(b):
        if name.endswith(".pt") and name != "ckpt_0000014.pt":
            os.remove(os.path.join(b, name))
    train_here("--resume", out_dir=b, stages=rated(late), **settings)
    assert [e["iter"] for e in events(b, "grow")] == [15, 52]
    x, y = ([v for v in losses(o) if v[1] <= 36 and v[2] == "loss"] for o in (a, b))
    assert x == y and len(x) == 36


def test_growth_by_rate_on_two_processes(data, tmp_path):
    out = str(tmp_path / "out")
    train(data_dir=data, out_dir=out, grow_when="rate", stages=rated([[0, 1e9]]), torchrun=2,
          micro_batch=2)
    assert [e["iter"] for e in events(out, "grow")] == [15, 36]


def test_growth_by_guessed_rate(data, tmp_path):
    out = str(tmp_path / "out")
    train_here(data_dir=data, out_dir=out, grow_when="rate", stages=[dict(at=50, n_layer=2)])
    seen = events(out, "rate")
    assert seen and all(e["next_rate"] == pytest.approx(seen[0]["next_rate"]) for e in seen)
    assert seen[0]["next_rate"] < seen[0]["rate"]


# -----------------------------------------------------------------------------
# prediction

N = rates.grid(2000)


def power(a, b, p, step_s, noise=0.0):
    """A structure whose stable phase is a + b n^-p, and its evaluations."""
    n = np.arange(50, 2000, 50)
    loss = a + b * n ** -p + noise * np.random.default_rng(0).normal(size=len(n))
    return rates.fit(n, loss, step_s, N), lambda x: a + b * np.asarray(x, float) ** -p


def test_fit_recovers_a_curve_and_inverts_it():
    curve, true = power(1.2, 8, 0.5, 0.1, noise=0.003)
    for n in (100, 500, 1900, 4000):
        assert curve.loss_at(n) == pytest.approx(true(n), abs=0.02)
        assert curve.iters_at(true(n)) == pytest.approx(n, rel=0.1)
    slope = 8 * 0.5 * 1000 ** -1.5 / 0.1
    assert curve.rate_at(true(1000)) == pytest.approx(slope, rel=0.1)
    with pytest.raises(ValueError):
        rates.fit([1, 2], [3, 2], 0.1, N)


def plateau(n):
    """A loss that waits on a plateau and then falls, as a byte-level one does."""
    return 2.3 + 0.8 * np.exp(-n / 20) - 0.6 / (1 + np.exp((220 - n) / 40))


def test_a_plateau_is_followed_and_continued():
    n, grid = np.arange(8, 600, 8), rates.grid(600)
    far = rates.fit(n, plateau(n), 0.1, grid)
    for at in (60, 150, 250, 400, 580):
        assert far.loss_at(at) == pytest.approx(plateau(at), abs=0.02)
    # the same shape a quarter slower, measured to where it has just left the plateau
    short = rates.fit(n[:25], plateau(n[:25] / 1.25), 0.4, grid)
    longer = rates.continued(short, n[24], far)
    assert longer.step_s == 0.4 and (np.diff(longer.loss) < 0).all()
    assert longer.loss_at(100) == pytest.approx(short.loss_at(100), abs=1e-5)
    for at in (300, 450, 700):
        assert longer.loss_at(at) == pytest.approx(plateau(at / 1.25), abs=0.03)


def test_slack_stretches_time_and_nothing_else():
    path = [(power(1.5, 8, 0.5, 0.1)[0], 0), (power(1.0, 8, 0.5, 0.4)[0], 400)]
    a, b = (rates.predict(path, 1000, 50, rates.Costs(compile_s=5, slack=s)) for s in (1.0, 1.2))
    assert (a[0] == b[0]).all() and (a[2] == b[2]).all() and b[1] == pytest.approx(1.2 * a[1])


def test_chained_prediction():
    """A small fast structure, then a large slow one: at the growth the same loss, not the same n."""
    (small, true_s), (large, true_l) = power(1.5, 8, 0.5, 0.1), power(1.0, 8, 0.5, 0.4)
    its, secs, losses = rates.predict([(small, 0), (large, 400)], 1000, 0,
                                      rates.Costs(compile_s=5, grow_s=3))
    assert secs[-1] == pytest.approx(5 + 3 + 400 * 0.1 + 600 * 0.4)
    at = (true_s(400) - 1.0) ** -2 * 64  # where the large one has the loss of the small one
    assert losses[-1] == pytest.approx(true_l(at + 600), abs=0.01)
    assert (np.diff(losses) < 1e-6).all()
    goal = float(true_l(600))
    iters, seconds = rates.shortest([(large, 0)], goal, rates.Costs(), 0, 4000)
    assert iters == pytest.approx(600, rel=0.05) and seconds == pytest.approx(240, rel=0.05)
    assert crossing(secs, losses, 0.5) is None
    assert crossing([0, 10, 20], [3, 2, 1], 1.5) == 15


def test_decay_and_kappa_are_measured():
    """What a run drops in its decay, and how far a grown model is behind, come back as put in."""
    (small, _), (large, _) = power(1.5, 8, 0.5, 0.1), power(1.0, 8, 0.5, 0.4)
    costs = rates.Costs(decay_frac=0.25, drop_u=(0, 0.5, 1), drop=(0, 0.05, 0.2), kappa=0.7)
    path = [(small, 0), (large, 400)]
    its, _, losses = rates.predict(path, 1000, 50, costs)
    assert rates.calibrate(path, 1000, 50, replace(costs, kappa=1.0), its, losses) == \
        pytest.approx(0.7, rel=0.05)
    n = np.arange(100, 1001, 50)
    u, drop = rates.measured_drop(large, n, large.loss_at(n) - 0.2 * np.clip((n - 750) / 250, 0, 1),
                                  1000, 0.25)
    assert drop[-1] == pytest.approx(0.2) and u[-1] == 1 and drop[0] == 0


def test_combined_structures():
    base, full = power(2, 8, 0.5, 0.1)[0], power(1.2, 8, 0.5, 0.4)[0]
    single = dict(n_layer=power(1.6, 8, 0.5, 0.2)[0], n_embd=power(1.8, 8, 0.5, 0.15)[0],
                  n_head=power(1.9, 8, 0.5, 0.11)[0])
    assert rates.combine(base, single, full, []) is base
    assert rates.combine(base, single, full, ["n_layer"]).loss_at(500) == \
        pytest.approx(single["n_layer"].loss_at(500))
    two = rates.combine(base, single, full, ["n_layer", "n_embd"])
    assert full.loss_at(500) < two.loss_at(500) < single["n_layer"].loss_at(500)
    assert single["n_layer"].step_s < two.step_s < full.step_s
    assert rates.combine(base, single, full, single) is full


def test_candidates_are_schedules():
    start = dict(n_embd=32, n_inner=128, n_head=2, n_layer=2)
    target = dict(n_embd=64, n_inner=256, n_head=4, n_layer=6)
    found = list(search.candidates(start, target, list(start), 0.03, 0.7))
    assert len({json.dumps(f) for f in found}) == len(found) > 1000
    for path in found[::50] + found[-1:]:
        stages = search.stages_of(path, 1000)
        config = from_dict(dict(**path[0][0], stages=stages, max_iters=1000, ramp_iters=30))
        assert config.sizes()[-1] == target
    assert found[-1][0][0] == {**target, "n_layer": 1}


def test_the_config_that_is_written_is_ready(tmp_path):
    base = str(ROOT / "config" / "pystdlib_msg.py")
    args = [base, "--seed=5", "--ramp_iters=50"]
    config = from_args(args)
    curve, _ = power(1.2, 8, 0.5, 0.1)
    done = SimpleNamespace(config=config, goal=1.5, scratch_s=300.0, curve=lambda sizes: curve,
                           state=dict(args=args, scratch_iters=1000))
    target = config.sizes()[-1]
    path = [[{**target, "n_layer": 1}, 0.0], [target, 0.3]]
    winner = dict(path=path, iters=1200, predicted=210.0, about=None)
    search.write_config(done, winner, base, str(tmp_path / "found.py"))
    found = from_args([str(tmp_path / "found.py"), "--grow_when=rate"])
    assert found.sizes() == [path[0][0], target] and found.stages[0]["at"] == round(0.3 * found.max_iters)
    assert found.seed == 5 and found.ramp_iters == 50 and found.optimizer == config.optimizer
    assert len(found.stages[0]["rate"]) == 8 and found.out_dir == config.out_dir + "_found"


TOY = """
data_dir, out_dir = {data!r}, {out!r}
block_size, n_layer, n_embd, n_inner, n_head, head_dim = 32, 1, 32, 32, 2, 16
stages = [dict(at=250, n_inner=128), dict(at=400, n_layer=3)]
max_iters, ramp_iters, batch_tokens, micro_batch = 1000, 30, 256, 8
learning_rate, warmup_iters = 3e-3, 20
device, dtype, compile = "cpu", "float32", "none"
"""


@pytest.fixture
def toy(data, tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(TOY.format(data=data, out=str(tmp_path / "out")))
    return str(path)


@pytest.mark.slow
def test_study(toy, tmp_path):
    done = plan(toy, "--study", "--probe=5", "--seeds=2", "--parallel=2")
    for label in ("start", "start + FFN", "start + layers", "target"):
        assert f"| {label} " in done.stdout
    assert (tmp_path / "out_study" / "study.png").stat().st_size > 10000
    folder = tmp_path / "out_study"

    def iterations():
        return {d: events(folder / d)[-1]["iter"] for d in os.listdir(folder) if (folder / d).is_dir()}
    reached = iterations()
    assert plan(toy, "--study", "--probe=5", "--seeds=2", "--parallel=2").stdout == done.stdout
    assert iterations() == reached  # nothing was run again
    plan(toy, "--study", "--probe=20", "--seeds=2", "--parallel=2")  # more time for each
    assert all(events(folder / d)[-1]["iter"] > n for d, n in reached.items())


@pytest.mark.slow
def test_search_keeps_its_budget_and_continues(toy, tmp_path):
    command = [sys.executable, "-m", "lab.plan", toy, "--search", "--budget=4"]
    started = time.monotonic()
    first = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL)
    time.sleep(30)
    first.send_signal(signal.SIGTERM)
    assert "the same command continues" in first.communicate(timeout=60)[0] and first.returncode == 0
    plan(toy, "--search", "--budget=4")
    assert time.monotonic() - started < 4 * 60 + 60
    assert "from scratch" in (tmp_path / "out_search" / "tried.md").read_text()
    assert from_args([str(tmp_path / "out_search" / "found.py")]).sizes()[-1]["n_layer"] == 3
