"""Planning: costs by arithmetic and by measurement, predictions, and whole tiny searches."""
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from runs import ENV, ROOT, TINY, events, flags, make_data, train, train_here
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from base.errors import UserError
from lab import plan as planner
from lab import probes, rates, search
from lab.costs import batch, count, make_model, stage_costs, totals, vocab_of
from lab.law import Law
from lab.plan import show
from run.arguments import from_args
from run.checkpoint import checkpoint


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
    assert all(s in said for s in ("shard='fsdp'", "27.8 GB", "27 or more"))  # a process of 192; of 80 GB
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
    ("--processes=0", "--processes"), ("--budget=0.02 --search", "--budget"),
    ("--goal=-1 --search", "--goal"), ("--goal=low --search", "--goal"), ("--dry=3", "--dry"),
    ("--steps=3", "steps"), ("config/none.py", "none.py"), ("--device=abacus", "device=abacus"),
    ("--search", "needs a config file"), ("config/gpt2_scratch.py --search --vocab_size=64", "stages=[]"),
    ("config/gpt2_msg.py --search --vocab_size=64 --schedule=cosine", "cosine"),
    ("config/gpt2_msg.py --search --vocab_size=64 --decay_frac=1.0", "max_iters=")])
def test_bad_input_is_one_line(bad, names, monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit) as e:
        plan_here(monkeypatch, *bad.split(), f"--out_dir={tmp_path}", "--n_layer=1")
    said = capsys.readouterr().err
    assert e.value.code == 2 and names in said and len(said.splitlines()) == 1, said


@pytest.mark.slow
def test_a_bad_flag_in_a_process():
    done = plan("--mfu=2", check=False)
    assert done.returncode == 2 and done.stderr == \
        "error: argument --mfu: 2: must be a finite number, at least 0.001 and at most 1: see --help\n"


def test_without_scipy_the_table_works_and_a_search_says_so(monkeypatch, capsys, toy):
    for name in [n for n in sys.modules if n.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    plan_here(monkeypatch, toy, "--dry", "--flops=1e12")
    with pytest.raises(SystemExit) as e:
        plan_here(monkeypatch, toy, "--search")
    assert e.value.code == 2 and "pip install scipy" in capsys.readouterr().err


# -----------------------------------------------------------------------------
# prediction

def plateau(n):
    """A loss that waits on a plateau and then falls, as a byte-level one does."""
    return 2.3 + 0.8 * np.exp(-n / 20) - 0.6 / (1 + np.exp((220 - n) / 40))


@pytest.mark.parametrize("true", [plateau, lambda n: 1.2 + 8 * n ** -0.5])
def test_a_curve_is_followed_inverted_and_continued(true):
    n = np.arange(20.0, 700, 20)
    noise = 0.003 * np.random.default_rng(0).normal(size=len(n))
    curve = rates.fit(n, true(n) + noise)
    for at in (60, 150, 250, 400, 660):
        assert curve.loss_at(at) == pytest.approx(true(at), abs=0.02)
    assert (np.diff(curve.loss) < 0).all() and curve.n[-1] == pytest.approx(2 * n[-1])
    assert curve.loss_at(800) == pytest.approx(true(800), abs=0.02)
    for at in (300, 500):
        assert curve.iters_at(true(at)) == pytest.approx(at, rel=0.1)
    with pytest.raises(UserError, match="5 evaluations are too few"):
        rates.fit(n[:5], true(n[:5]))


def test_a_lead_is_measured_in_iterations():
    n = np.arange(20.0, 1000, 20)
    curve = rates.fit(n, 1.2 + 8 * n ** -0.5)
    late = np.arange(300.0, 500, 20)
    assert rates.lead(curve, late, 1.2 + 8 * (late + 120) ** -0.5) == pytest.approx(120, rel=0.05)
    assert rates.lead(curve, late, 1.2 + 8 * (late - 80) ** -0.5) == pytest.approx(-80, rel=0.05)


# -----------------------------------------------------------------------------
# the search

@pytest.fixture
def searched(tmp_path):
    """A Search of pystdlib_msg that has trained nothing."""
    base = str(ROOT / "config" / "pystdlib_msg.py")
    args = [base, "--seed=5", "--ramp_iters=50", "--max_iters=1700"]
    return search.Search(from_args(args), args, str(tmp_path / "search"), 1, 256)


def test_predictions_are_chained_at_equal_loss(searched):
    """Against a small model and a target whose curves are known."""
    s = searched
    n = np.arange(40.0, 1000, 40)
    s.curve, s.needed, s.compile_s, s.goal = rates.fit(n, 1 + 8 * n ** -0.5), 850.0, 0.0, 1.2
    s.paces = dict(a={search.shape(s.start): 0.1, search.shape(s.target): 0.5})
    s.scratch_s = s.seconds([(s.target, 0)], 1700)
    events = [dict(e="", event="eval", iter=at, val_loss=1.1 + 8 * at ** -0.5, mask=1.0, **s.start)
              for at in range(84, 700, 84)]
    s.runs.events = lambda name: events
    point = s.ranking()[0]
    assert point in s.points(s.trunks[0]) and s.scratch_s == pytest.approx(850)
    at = point["path"][-1][1]
    there = (0.1 / 8 + at ** -0.5) ** -2  # where the target has the trunk's loss
    iters = 850 - there + at + s.ramp / 2 + s.decay
    assert point["first"] == pytest.approx(0.1 * at + 0.5 * (iters - at), rel=0.05)


def test_a_law_leaves_out_what_cannot_win(searched):
    config, target, start = searched.config, searched.target, searched.start
    wide = {**target, "n_layer": start["n_layer"]}

    def worth(law, *path):
        return search.worth_it(config, 256, [*path, (target, 400)], law)
    hardly = Law(E=1, A=0.1, B=100, a=0.3, b=0.3)  # size hardly matters: small ones are cheaper all along
    size_is_all = Law(E=1, A=300, B=10, a=0.3, b=0.3)
    for path in ([(start, 0)], [(start, 0), (wide, 100)]):
        assert worth(None, *path) and worth(hardly, *path) and not worth(size_is_all, *path)
    assert not worth(hardly, ({**target, "n_layer": 7}, 0))  # costs more
    searched.worth_it = lambda path: False
    searched.runs.events = lambda name: [dict(event="eval", iter=420, val_loss=1.5, mask=1.0)]
    searched.curve, searched.compile_s = rates.fit(np.arange(40.0, 1000, 40),
                                                   1 + 8 * np.arange(40.0, 1000, 40) ** -0.5), 0.0
    assert searched.ranking() == []


def test_the_config_that_is_written_is_ready(searched, tmp_path):
    s, target = searched, searched.target
    s.goal, s.scratch_s = 1.5, 300.0
    path = [({**target, "n_layer": 1}, 0), (target, 300)]
    winner = dict(path=path, iters=1200.5, second=210.0)
    search.write_config(s, winner, s.runs.config_args[0], str(tmp_path / "found.py"))
    found = from_args([str(tmp_path / "found.py")])
    assert found.sizes() == [path[0][0], target] and found.stages == [dict(at=300, n_layer=6)]
    assert found.seed == 5 and found.ramp_iters == 50 and found.optimizer == s.config.optimizer
    assert found.max_iters == 1201 and found.decay_span() == s.decay
    assert found.out_dir == s.config.out_dir + "_found"


TOY = """
data_dir, out_dir = {data!r}, {out!r}
block_size, n_layer, n_embd, n_inner, n_head, head_dim = 16, 1, 32, 32, 2, 16
stages = [dict(at=60, n_inner=64), dict(at=100, n_layer=3)]
max_iters, ramp_iters, batch_tokens, micro_batch = 160, 6, 64, 4
learning_rate, warmup_iters, eval_seqs = 3e-3, 10, 32
device, dtype, compile = "cpu", "float32", "none"
"""


@pytest.fixture
def toy(data, tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(TOY.format(data=data, out=str(tmp_path / "out")))
    return str(path)


@pytest.fixture
def in_process(monkeypatch):
    """The runs of a search one after another in this process, which needs no start each."""
    def run(self, name, settings, until, start="scratch", enough=lambda: False):
        folder = Path(self.folder) / name
        if self.reached(name) < until and not enough():
            print(f"{name}: to iteration {until}")
            begun = (folder / "ckpt.pt").exists()
            train_here(*self.config_args, **{**dict.fromkeys(TINY), **settings, "max_iters": until},
                       out_dir=folder, init_from="auto" if begun else start)
            self.save()
    monkeypatch.setattr(probes.Runs, "run", run)
    monkeypatch.setattr(search, "BRANCHES", 2)
    monkeypatch.setattr(search, "FINISHES", 1)


def check_found(folder, said, out):
    """found.py trains what the search had pieced together, to the last digit."""
    stages = from_args([str(folder / "found.py")]).stages
    ends = {e["iter"]: e["val_loss"] for decay in folder.glob(f"*_{stages[-1]['at']}_decay_*")
            for e in events(decay, "eval")}
    if ends:  # it was finished, not only predicted
        train_here(str(folder / "found.py"), **{**dict.fromkeys(TINY), "max_iters": max(ends)})
        assert events(out, "eval")[-1]["val_loss"] == ends[max(ends)]


@pytest.mark.parametrize("goal", [[], pytest.param(["--goal=4.1"], marks=pytest.mark.slow)])
def test_search(goal, toy, tmp_path, monkeypatch, capsys, in_process):
    """From the first run to found.py; started again, it runs nothing and says the same."""
    plan_here(monkeypatch, toy, "--search", *goal)
    said, folder = capsys.readouterr().out, tmp_path / "out_search"
    tried = (folder / "tried.md").read_text()
    assert "| from scratch " in tried and "trunk_wide: to iteration" in said
    assert f"{'early' if goal else 'scratch'}: to iteration 120" in said
    if "wrote " in said:
        check_found(folder, said, tmp_path / "out_found")
    plan_here(monkeypatch, toy, "--search", *goal)
    again = capsys.readouterr().out
    assert "to iteration" not in again and "| from scratch " in again
    with pytest.raises(SystemExit):
        plan_here(monkeypatch, toy, "--search", "--goal=3")
    assert "holds the work of other arguments" in capsys.readouterr().err


def test_a_search_that_is_stopped_goes_on(toy, tmp_path):
    """Stopped in a run, that run is saved, and goes on from there; the budget counts on."""
    pytest.importorskip("scipy")
    command = [sys.executable, "-m", "lab.plan", toy, "--search", "--max_iters=100000"]
    first = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True,
                             stderr=subprocess.DEVNULL)
    out = tmp_path / "out_search"
    until = time.monotonic() + 60
    while time.monotonic() < until and not (out / "scratch" / "metrics.jsonl").exists():
        time.sleep(0.2)
    time.sleep(1)
    first.send_signal(signal.SIGTERM)
    assert "the same command continues" in first.communicate(timeout=60)[0] and first.returncode == 0
    reached = checkpoint.load(str(out / "scratch"))["iter"]  # the log may be behind
    runs = probes.Runs(str(out), [toy, "--max_iters=100000"], 600)
    assert 1 < runs.state["spent"] < 90
    runs.run("scratch", dict(n_layer=3, n_inner=64, stages=[], schedule="constant"), reached + 5)
    seen = [e["iter"] for e in events(out / "scratch")]
    assert seen[-1] == reached + 5 and reached > 0 and seen[0] == 0


def test_a_budget_too_small_says_what_to_do(toy, monkeypatch, capsys):
    def never(self, *args):
        raise probes.OutOfTime("scratch, iteration 5 of 120")
    monkeypatch.setattr(probes.Runs, "run", never)
    with pytest.raises(SystemExit):
        plan_here(monkeypatch, toy, "--search")
    assert "iteration 5 of 120): raise --budget" in capsys.readouterr().err


def test_runs_end_with_the_budget(tmp_path):
    runs = probes.Runs(str(tmp_path), ["--none=1"], 0.0)
    with pytest.raises(probes.OutOfTime):
        runs.run("a", {}, 10)
    assert runs.reached("a") == 0


def test_a_run_that_fails_says_why(tmp_path, monkeypatch):
    runs = probes.Runs(str(tmp_path), [], 60.0)
    with pytest.raises(UserError, match="a: train.py failed: nlayer: no such setting"):
        runs.run("a", dict(nlayer=1), 10)


@pytest.mark.slow
def test_a_whole_search(toy, tmp_path):
    """In processes of its own, within its budget; what it found is trained as it says."""
    started = time.monotonic()
    said = plan(toy, "--search", "--budget=4")
    assert time.monotonic() - started < 4 * 60 + 40
    assert "from scratch" in (tmp_path / "out_search" / "tried.md").read_text()
    if not (tmp_path / "out_search" / "found.py").exists():
        assert "no schedule is predicted" in said.stdout
        pytest.skip("nothing was predicted to beat scratch in so short a run")
    found = (tmp_path / "out_search" / "found.py").read_text()
    goal = float(re.search(r"scratch \(([\d.]+),", found).group(1))
    train(str(tmp_path / "out_search" / "found.py"), **dict.fromkeys(TINY))
    if "s measured" in found and "~" not in found:
        assert min(e["val_loss"] for e in events(tmp_path / "out_found", "eval")) < goal + 0.02
