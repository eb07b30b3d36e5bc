"""Planning: costs by arithmetic and by measurement, predictions, and whole tiny searches."""
import subprocess
import sys

import pytest
from runs import ENV, ROOT, flags, make_data
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lab import plan as planner
from lab.advice import family_by_law
from lab.costs import batch, count, make_model, stage_costs, totals, vocab_of
from lab.law import Law
from lab.plan import show
from run import family
from run.arguments import from_args


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


def test_a_familys_plan(monkeypatch, capsys):
    """Each member's own compute, together what a run is said to take, and the law's word on its loss."""
    plan_here(monkeypatch, "config/pystdlib_family.py", "--dry")
    said = capsys.readouterr().out
    config = from_args([str(ROOT / "config" / "pystdlib_family.py")])
    names, vocab = [m.name for m in family.members(config)], vocab_of(config, guess=True)
    assert all(f"\n| {name} " in said for name in names) and "the family takes" in said and "% less" in said
    costs, rows = family.costs(config, vocab), stage_costs(config, vocab)
    branches = sum((m.end - m.at) * config.batch_tokens * c["flops_per_token"]
                   for m, c in zip(family.members(config), costs))
    assert sum(c["flops"] for c in costs) == pytest.approx(branches + sum(r["tokens"] * r["flops"] for r in rows))


def test_a_family_by_the_law():
    """The first is from scratch; the next begins with what the trunk is worth at its own size, undecayed."""
    law, N = Law(1.0, 300.0, 3e4, 0.6, 0.8), [1e5, 2e5]
    config = from_args(["--stages=[dict(at=600, n_layer=12)]", "--finish_stages=300", "--max_iters=1000",
                        "--vocab_size=256", "--ramp_iters=10"])
    members, tokens = family.members(config), config.batch_tokens
    (first, nothing), (second, worth) = family_by_law(law, N, members, family.costs(config, 256), tokens)
    assert (first, nothing) == (pytest.approx(law.loss(1e5, 900 * tokens)), 0)
    assert law.loss(2e5, worth) == pytest.approx(law.loss(1e5, 600 * tokens))
    assert second == pytest.approx(law.loss(2e5, worth + 400 * tokens))


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
    ("--processes=0", "--processes"), ("--dry=3", "--dry"),
    ("--model=bert --small=1e6", "--small: means nothing for BERT"), ("config/pystdlib_family.py --small=1e6", "a family"),
    ("--steps=3", "steps"), ("config/none.py", "none.py"), ("--device=abacus", "device=abacus")])
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


def test_the_table_works_without_scipy(data, monkeypatch):
    for name in [n for n in sys.modules if n.partition(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "scipy", None)
    plan_here(monkeypatch, *flags(data_dir=data), "--dry", "--flops=1e12")
