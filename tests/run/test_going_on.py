"""What a run that goes on, or a branch, takes over: the learning rate, a ramp under way, dropout."""
import json
import shutil

import pytest
from runs import cut_off, events, flags, losses, train, train_here

from base.disk import write_sealed
from base.errors import UserError
from run.arguments import from_args
from run.checkpoint import checkpoint
from run.optim import lr_scale
from run.resume import saved_state
from run.settings import from_dict
from train import Run

FLAT = dict(stages=[], warmup_iters=5, max_iters=40, eval_interval=8, keep_checkpoints=99, dropout=0.0)
NONE = dict.fromkeys(("n_layer", "n_head", "n_embd", "n_inner", "head_dim", "block_size", "stages", "ramp_iters",
                      "max_iters", "batch_tokens", "micro_batch", "warmup_iters", "eval_interval", "eval_seqs",
                      "log_interval", "device", "dtype", "compile", "dropout"))


@pytest.fixture(scope="module")
def trunks(data, tmp_path_factory):
    """{schedule: out_dir} of runs of 40 iterations."""
    out = {s: tmp_path_factory.mktemp("trunks") / s for s in ("wsd", "cosine", "constant")}
    for schedule, folder in out.items():
        train_here(data_dir=data, out_dir=folder, schedule=schedule, **FLAT)
    return out


def rates(out):
    return {e["iter"]: e["lr"] for e in events(out, "step")}


def late(out, after):
    return [x for x in losses(out) if x[0] == "step" and x[1] > after]


def go_on(*argv, **more):
    """train.py with these flags alone."""
    train_here(*argv, **{**NONE, **more})


def meta_of(out):
    """The meta of a run's data, as its checkpoint has it."""
    return checkpoint.load(str(out))["meta"]


def refused(*argv):
    done = train(*argv, check=False, **NONE)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    return done.stderr


@pytest.mark.parametrize("schedule, end, given", [
    ("wsd", 40, ["--max_iters=60"]), ("cosine", 40, ["--max_iters=60"]), ("cosine", 16, ["--max_iters=60"]),
    ("wsd", 32, ["--max_iters=60"]), ("cosine", 16, ["--max_iters=20"]), ("wsd", 24, ["--max_iters=26"])])
def test_a_rate_never_jumps_on_resume(schedule, end, given, trunks, tmp_path):
    """More iterations after, or within, a decay, and fewer: refused, with what can be done instead."""
    cut_off(trunks[schedule], end, tmp_path / "out")
    said = refused("--resume", str(tmp_path / "out"), *given)
    assert said.startswith(f"error: {given[0][2:]}: the learning rate would jump from ") and (
        "--rewarm_iters=" in said or "--decay_iters=" in said)


@pytest.mark.parametrize("schedule, at, given", [
    ("wsd", 40, ["--decay_iters=9"]), ("wsd", 32, ["--decay_iters=9"]), ("cosine", 16, ["--decay_iters=10"]),
    ("cosine", 16, ["--schedule=constant"]), ("wsd", 24, ["--max_iters=28"]), ("constant", 16, ["--schedule=cosine"]),
    ("wsd", 32, ["--min_lr_frac=0.5"]), ("wsd", 32, ["--max_iters=80"])])
def test_nor_in_a_branch(schedule, at, given, trunks, tmp_path):
    said = refused(f"--init_from={trunks[schedule]}/ckpt_00000{at}.pt", f"--out_dir={tmp_path}/branch", *given)
    assert "the learning rate would jump from " in said


@pytest.mark.parametrize("parent, at, given, planned", [
    ("constant", 16, ["--decay_iters=8"], dict(schedule="wsd", decay_iters=8, max_iters=24)),
    ("wsd", 24, ["--max_iters=32"], dict(max_iters=32)),  # a nearer end, whose decay begins there
    ("wsd", 24, ["--max_iters=28", "--decay_iters=4"], dict(max_iters=28, decay_iters=4)),  # the remedy
    ("wsd", 24, ["--max_iters=56", "--min_lr_frac=0.07"], dict(max_iters=56, min_lr_frac=0.07)),
    ("constant", 24, ["--schedule=wsd", "--decay_frac=0.1"], dict(schedule="wsd", decay_frac=0.1))])
def test_a_branch_equals_a_run_planned_so(parent, at, given, planned, trunks, data, tmp_path):
    """To the last bit; --decay_iters off a constant rate means what it says."""
    branch, whole = tmp_path / "branch", tmp_path / "whole"
    go_on(f"--init_from={trunks[parent]}/ckpt_00000{at}.pt", f"--out_dir={branch}", *given)
    train_here(data_dir=data, out_dir=whole, **{**FLAT, **planned})
    assert late(branch, at) == late(whole, at) != []
    assert rates(branch) == {i: r for i, r in rates(whole).items() if i > at}
    assert min(rates(branch).values()) < max(rates(branch).values())


def test_a_resume_before_the_decay_may_move_the_end(trunks, data, tmp_path):
    cut_off(trunks["wsd"], 24, tmp_path / "out")
    go_on("--resume", str(tmp_path / "out"), "--max_iters=56")
    train_here(data_dir=data, out_dir=tmp_path / "whole", **{**FLAT, "max_iters": 56})
    assert losses(tmp_path / "out")[:-1] == losses(tmp_path / "whole")[:-1]
    go_on("--resume", str(shutil.copytree(trunks["constant"], tmp_path / "c")), "--max_iters=44")


@pytest.mark.parametrize("schedule, low", [("wsd", 0.1), ("cosine", 0.002)])
def test_a_finished_run_warms_up_again(schedule, low, trunks, tmp_path, capsys):
    """From the rate it ended with to the peak, then its own decay; cut off anywhere, it goes on so."""
    out, command = tmp_path / "out", ("--max_iters=80", "--rewarm_iters=10")
    shutil.copytree(trunks[schedule], out)
    go_on("--resume", str(out), *command)
    lr = rates(out)
    change = [abs(lr[i + 1] - lr[i]) for i in range(40, 80)]
    assert lr[40] == pytest.approx(low * 1e-3, rel=0.2) and max(change) < 1.3e-4 and lr[80] < 1.1e-4
    assert lr[49] < 1e-3 == lr[50] == max(lr[i] for i in range(40, 81))
    for name, argv in (("plain", ()), ("again", command)):  # the same command, as a scheduler has it
        cut_off(out, 48, tmp_path / name)
        go_on("--resume", str(tmp_path / name), *argv)
        assert losses(tmp_path / name) == losses(out)
        assert "rewarm_iters=10: the new warmup began at iteration 40 already" in capsys.readouterr().out
    cut_off(out, 40, tmp_path / "early")  # killed before its first checkpoint: config.json still says it
    go_on("--resume", str(tmp_path / "early"))
    assert losses(tmp_path / "early") == losses(out)
    assert "would jump" in refused("--resume", str(out), "--max_iters=90")
    go_on("--resume", str(out), "--max_iters=90", "--rewarm_iters=2")
    assert rates(out)[82] == 1e-3 > rates(out)[90]


def test_a_branch_warms_up_again(trunks, tmp_path):
    """To a peak of its own, from the rate there was; a branch of it before its decay is as planned."""
    out, start = tmp_path / "out", f"--init_from={trunks['wsd']}/ckpt_0000040.pt"
    go_on(start, f"--out_dir={out}", "--rewarm_iters=8", "--max_iters=80", "--learning_rate=5e-4")
    lr = rates(out)
    assert 1e-4 < lr[41] < 1.6e-4 and lr[48] == lr[70] == 5e-4 and lr[80] == pytest.approx(5e-5)
    go_on(f"--init_from={out}/ckpt_0000064.pt", f"--out_dir={tmp_path}/b", "--decay_iters=8")
    go_on(start, f"--out_dir={tmp_path}/c", "--rewarm_iters=8", "--max_iters=72", "--learning_rate=5e-4",
          "--decay_iters=8")
    assert late(tmp_path / "b", 64) == late(tmp_path / "c", 64) != []
    for given, words in ((["--rewarm_iters=8", "--max_iters=47"], "rewarm_iters=8: more than the 7 iterations"),
                         (["--rewarm_iters=8", "--max_iters=50", "--decay_iters=11"], "decay_iters=11: more than")):
        assert words in refused(start, f"--out_dir={tmp_path}/d", *given)


def test_a_branch_of_what_warmed_up_again_may_do_so_too(trunks, tmp_path):
    """Over as many iterations; and AdamW's share of its peak is no matter of the matrices' rate."""
    first, out = tmp_path / "first", tmp_path / "out"
    go_on("--resume", str(shutil.copytree(trunks["wsd"], first)), "--max_iters=80", "--rewarm_iters=8")
    go_on(f"--init_from={first}/ckpt_0000064.pt", f"--out_dir={out}", "--rewarm_iters=8", "--max_iters=96",
          "--learning_rate=2e-3")
    lr = rates(out)
    assert 1e-3 < lr[65] < 1.2e-3 and lr[72] == lr[80] == 2e-3
    cut_off(out, 72)
    go_on("--resume", str(out))
    assert rates(out) == lr
    low = tmp_path / "low"
    go_on(f"--init_from={trunks['wsd']}/ckpt_0000040.pt", f"--out_dir={low}", "--rewarm_iters=8", "--max_iters=80",
          "--learning_rate=1e-4")
    assert rates(low)[41] == pytest.approx(rates(trunks["wsd"])[40])  # at its peak already


def test_a_restart_adopts_no_other_run(trunks, tmp_path):
    """torchrun starts a command again that was refused: it then finds a run, but not its own."""
    cut_off(trunks["wsd"], 24, tmp_path / "out")
    meta = meta_of(tmp_path / "out")
    again = dict(json.loads((trunks["wsd"] / "config.json").read_text()), out_dir=str(tmp_path / "out"))
    again.pop("resolved")
    assert saved_state(from_dict(again), meta, restarted=True)["iter"] == 24
    with pytest.raises(UserError, match="holds a run from init_from=scratch: choose another"):
        saved_state(from_dict({**again, "init_from": f"{trunks['wsd']}/ckpt_0000008.pt"}), meta, restarted=True)
    go_on("--resume", str(tmp_path / "out"))  # as a family's trunk does after a branch
    assert saved_state(from_dict(again), meta, restarted=True)["iter"] == 40


def test_a_past_rewarm_is_not_asked_for_again(trunks, tmp_path):
    out = str(shutil.copytree(trunks["wsd"], tmp_path / "out"))
    go_on("--resume", out, "--max_iters=64", "--rewarm_iters=4", "--decay_frac=0.75")
    cut_off(out, 56)  # within its decay
    for given in ("--min_lr_frac=0.1", "--schedule=constant", "--decay_frac=0.5"):
        assert "would jump" in refused("--resume", out, given)


def test_a_rewarm_moves_each_rate_from_where_it_was(trunks, data, tmp_path):
    """Down to a lower peak as well; with Muon each rate on its own; where nothing moves it is refused."""
    start = f"--init_from={trunks['constant']}/ckpt_0000016.pt"
    go_on(start, f"--out_dir={tmp_path}/a", "--max_iters=24", "--rewarm_iters=4", "--learning_rate=1e-4")
    lr = [rates(tmp_path / "a")[i] for i in range(17, 22)]
    assert lr == pytest.approx([7.75e-4, 5.5e-4, 3.25e-4, 1e-4, 1e-4])
    settings = dict(FLAT, data_dir=data, optimizer="muon", muon_learning_rate=0.01, schedule="constant", max_iters=8)
    train_here(out_dir=tmp_path / "muon", **settings)
    config = from_args([f"--init_from={tmp_path}/muon/ckpt_0000008.pt", f"--out_dir={tmp_path}/b", "--max_iters=16",
                        "--rewarm_iters=4", "--learning_rate=1e-2"])
    state = saved_state(config, meta_of(tmp_path / "muon"))
    assert state["rewarm"] == [8, dict(learning_rate=pytest.approx(0.1), muon_learning_rate=1.0), 4]
    assert [lr_scale(config, it, state["rewarm"], "muon_learning_rate") for it in (8, 9, 15)] == [1.0] * 3
    for given in ([start, f"--out_dir={tmp_path}/c"], ["--resume", str(trunks["constant"])]):
        assert "rewarm_iters=4: the learning rate is at its peak at iteration" in refused(
            *given, "--rewarm_iters=4", "--max_iters=60")


# -- ramps

STAGES = [dict(at=12, n_inner=48), dict(at=24, n_embd=32, n_head=2)]


@pytest.fixture(scope="module")
def growing(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("growing") / "out"
    train_here(data_dir=data, out_dir=out, schedule="constant", **{**FLAT, "stages": STAGES})
    return out


@pytest.mark.parametrize("given", [
    ["--ramp_iters=11"], ["--operator=direct"], ["--ramp_iters=3", "--max_iters=36"],
    ["--ramp_iters=16", "--stages=" + repr([*STAGES[:1], dict(at=24, n_layer=2)])]])
def test_a_ramp_under_way_belongs_to_the_checkpoint(given, growing, tmp_path):
    """A branch from its middle changes growths that are still to come alone."""
    go_on(f"--init_from={growing}/ckpt_0000016.pt", f"--out_dir={tmp_path}/branch", *given)
    masks = {e["iter"]: e["mask"] for e in events(tmp_path / "branch", "step")}
    assert masks == {**masks, **{e["iter"]: e["mask"] for e in events(growing, "step") if 16 < e["iter"] <= 24}}
    assert [x for x in late(tmp_path / "branch", 16) if x[1] <= 24] == [x for x in late(growing, 16) if x[1] <= 24]
    later = [m for i, m in masks.items() if 24 < i < 34]
    assert later != [e["mask"] for e in events(growing, "step") if 24 < e["iter"] < 34]
    cut_off(tmp_path / "branch", 16, tmp_path / "again")  # a resume of it, too
    go_on("--resume", str(tmp_path / "again"))
    assert losses(tmp_path / "again") == losses(tmp_path / "branch")


def test_a_ramp_that_outlasts_the_run_is_refused(growing, tmp_path):
    words = "ends at iteration {}, and would leave the model masked: raise max_iters to that, or"
    for argv, end in ((["--stages=[dict(at=90, n_inner=1000)]", "--max_iters=150", "--ramp_iters=61"], 151),
                      ([f"--init_from={growing}/ckpt_0000016.pt", "--out_dir=x", "--ramp_iters=17"], 41),
                      ([f"--init_from={growing}/ckpt_0000016.pt", "--out_dir=x", "--decay_iters=3"], 20)):
        with pytest.raises(UserError, match=words.format(end)):
            from_args(argv)
    cut_off(growing, 24, tmp_path / "b")
    assert words.format(32) in refused("--resume", str(tmp_path / "b"), "--max_iters=30")
    assert from_args([f"--init_from={growing}/ckpt_0000016.pt", "--out_dir=x", "--decay_iters=4"]).max_iters == 20
    old = shutil.copytree(growing, tmp_path / "old")  # by a version that did not mind
    settings = json.loads((old / "config.json").read_text())
    settings["stages"][1]["ramp_iters"] = 50
    (old / "config.json").write_text(json.dumps(settings))
    assert from_args(["--resume", str(old)]).stages == settings["stages"]
    assert from_args(flags(**{**FLAT, "stages": settings["stages"], "out_dir": old, "init_from": "auto"}))


@pytest.mark.parametrize("model", ["gpt", "llama", "bert"])
def test_dropout_of_a_branch_is_its_own(model, data, tmp_path):
    """Up and down; the losses are others than its parent's."""
    train_here(data_dir=data, out_dir=tmp_path / "a", model=model, **{
        **FLAT, "max_iters": 8, "dropout": 0.1, "schedule": "constant"})
    for dropout in (0.0, 0.5):
        run = Run(from_args([f"--init_from={tmp_path}/a/ckpt_0000008.pt", f"--out_dir={tmp_path}/{dropout}",
                             f"--dropout={dropout}", "--max_iters=9"]))
        found = {m.p for m in run.model.modules() if hasattr(m, "p")} | {b.attn.attn_dropout for b in run.model.blocks}
        run.close()
        assert found == {dropout} and run.model.config.dropout == dropout


def test_micro_batch_of_a_stage(data, tmp_path):
    """Of one that has begun it may change, for it says nothing of steps taken; beside it, the run's says nothing."""
    stages = [dict(at=4, n_inner=48, micro_batch=2)]
    train_here(data_dir=data, out_dir=tmp_path / "a", **{
        **FLAT, "stages": stages, "ramp_iters": 2, "max_iters": 8, "schedule": "constant"})
    said = refused("--resume", str(tmp_path / "a"), "--micro_batch=8", "--max_iters=9")
    assert "micro_batch=8: a stage has its own: change that, in --stages" in said
    go_on("--resume", str(tmp_path / "a"), "--max_iters=10", f"--stages={[dict(stages[0], micro_batch=8)]}")
    assert "n_inner=64" in refused("--resume", str(tmp_path / "a"), "--max_iters=12", "--ramp_iters=2",
                                   f"--stages={[dict(stages[0], n_inner=64)]}").replace("'n_inner': ", "n_inner=")


def test_what_means_nothing_stops_no_run(data, tmp_path):
    """An older BERT run, from before sampling, goes on by --init_from=auto, where it may not be given."""
    settings = {**FLAT, "model": "bert", "data_dir": data, "out_dir": str(tmp_path / "a"), "max_iters": 8,
                "schedule": "constant", "init_from": "auto"}
    train_here(**settings)
    path = str(tmp_path / "a" / "ckpt_0000008.pt")
    state = checkpoint.load(path)
    del state["config"]["sampling"]
    write_sealed(path, state)
    train_here(**{**settings, "max_iters": 9})
    assert events(tmp_path / "a", "eval")[-1]["iter"] == 9


def test_a_decay_in_the_file_of_a_branch(trunks, tmp_path):
    """Means a decay, by iterations or by share, whatever schedule the parent had; its end alone says nothing."""
    branch = [f"--init_from={trunks['constant']}/ckpt_0000016.pt", f"--out_dir={tmp_path}/b"]
    for decay in ("max_iters = 32\ndecay_frac = 0.5", "decay_iters = 16"):
        (tmp_path / "b.py").write_text(decay)
        config = from_args([str(tmp_path / "b.py"), *branch])
        assert [lr_scale(config, it) for it in (15, 24)] == [1.0, 0.5]
    for more in ("", "warmup_iters = 5\n"):
        (tmp_path / "b.py").write_text(more + "max_iters = 32\nmin_lr_frac = 0.2")
        with pytest.raises(UserError, match="min_lr_frac=0.2: means something with"):
            from_args([str(tmp_path / "b.py"), *branch])


def test_micro_batch_beside_a_stages_own(growing_by_four, tmp_path):
    """In a decay, which drops the stages still to come, as elsewhere."""
    said = refused(f"--init_from={growing_by_four}/ckpt_0000008.pt", f"--out_dir={tmp_path}/b", "--decay_iters=4",
                   "--micro_batch=1")
    assert "micro_batch=1: a stage has its own" in said


@pytest.fixture(scope="module")
def growing_by_four(data, tmp_path_factory):
    """A trunk with a config file of its own that grows at 4, with a micro_batch, and at 12."""
    folder = tmp_path_factory.mktemp("four")
    settings = dict(FLAT, max_iters=16, eval_interval=4, ramp_iters=2, schedule="constant",
                    stages=[dict(at=4, n_inner=48, micro_batch=4, operator="msg"), dict(at=12, n_layer=4)])
    train_here(data_dir=data, out_dir=folder / "out", **settings)
    (folder / "mine.py").write_text(f"max_iters, stages, ramp_iters = 16, {settings['stages']}, 2\n")
    return folder / "out"


def test_decay_iters_beside_a_config(growing_by_four, tmp_path):
    """--decay_iters sets the end and drops growths to come, also where the config says max_iters and stages."""
    start = f"--init_from={growing_by_four}/ckpt_0000008.pt"
    for file in ([], [str(growing_by_four.parent / "mine.py")]):
        config = from_args([*file, start, f"--out_dir={tmp_path}/b", "--decay_iters=2"])
        assert (config.max_iters, config.schedule, len(config.stages)) == (10, "wsd", 1)
        config = from_args([*file, start, f"--out_dir={tmp_path}/b", "--decay_iters=2", "--max_iters=16"])
        assert config.max_iters == 16 and len(config.stages) == 2
    own = tmp_path / "own.py"  # a branch's own stages
    own.write_text("stages = [dict(at=12, n_layer=4, ramp_iters=2)]\ndecay_iters = 8\n")
    assert [s["at"] for s in from_args([str(own), start, f"--out_dir={tmp_path}/b"]).stages] == [12]


def test_settings_of_growths_to_come(growing_by_four, tmp_path):
    """A decay leaves them out, and a resume may, too. Their operator may change; one that has been used may not."""
    go_on(f"--init_from={growing_by_four}/ckpt_0000008.pt", f"--out_dir={tmp_path}/b", "--decay_iters=2")
    assert rates(tmp_path / "b")[10] < 1e-3
    cut_off(growing_by_four, 8, tmp_path / "c")
    first = from_args(["--resume", str(growing_by_four)]).stages[:1]
    go_on("--resume", str(tmp_path / "c"), f"--stages={first}")
    assert events(tmp_path / "c", "step")[-1]["n_layer"] == 1
    cut_off(growing_by_four, 12, tmp_path / "d")
    go_on("--resume", str(tmp_path / "d"), "--operator=stack")
    assert "operator='stack'" in refused("--resume", str(growing_by_four), "--operator=stack", "--max_iters=20")


def test_a_new_peak_is_said(trunks, tmp_path, capsys):
    start = f"--init_from={trunks['constant']}/ckpt_0000008.pt"
    go_on(start, f"--out_dir={tmp_path}/a", "--learning_rate=5e-3", "--max_iters=10")
    assert "learning_rate goes from 0.001 to 0.005 at iteration 8 in one step: --rewarm_iters=N" in capsys.readouterr().out
    go_on(start, f"--out_dir={tmp_path}/b", "--learning_rate=5e-3", "--max_iters=10", "--rewarm_iters=2")
    assert "in one step" not in capsys.readouterr().out


def test_a_stage_has_its_own_peak(data, tmp_path):
    """From its growth on, to the bit what a branch with that peak does; a resume keeps it, a decay too."""
    stages = [dict(at=8, n_inner=48, learning_rate=4e-4, muon_learning_rate=0.01)]
    settings = dict(FLAT, data_dir=data, ramp_iters=2, max_iters=24, schedule="constant", optimizer="muon")
    train_here(out_dir=tmp_path / "a", **{**settings, "stages": stages})
    assert {it: lr for it, lr in rates(tmp_path / "a").items() if it in (8, 9, 24)} == {8: 1e-3, 9: 4e-4, 24: 4e-4}
    train_here(out_dir=tmp_path / "small", **{**settings, "max_iters": 8})
    go_on(f"--init_from={tmp_path}/small/ckpt_0000008.pt", f"--out_dir={tmp_path}/b", "--max_iters=24", "--ramp_iters=2",
          "--learning_rate=4e-4", "--muon_learning_rate=0.01", f"--stages={[dict(at=8, n_inner=48)]}")
    assert late(tmp_path / "a", 8) == late(tmp_path / "b", 8) != []
    cut_off(tmp_path / "a", 16, tmp_path / "c")
    go_on("--resume", str(tmp_path / "c"))
    assert losses(tmp_path / "c") == losses(tmp_path / "a")
    go_on(f"--init_from={tmp_path}/a/ckpt_0000016.pt", f"--out_dir={tmp_path}/d", "--decay_iters=4")
    assert rates(tmp_path / "d")[17] == 4e-4 > rates(tmp_path / "d")[20]
    assert "learning_rate=0.1: a stage has its own: change that, in --stages" in refused(
        f"--init_from={tmp_path}/a/ckpt_0000016.pt", f"--out_dir={tmp_path}/e", "--learning_rate=0.1")
    due = f"--stages={[dict(at=8, n_inner=48, learning_rate=4e-4, micro_batch=4)]}"
    for key in ("--learning_rate=0.1", "--micro_batch=8"):  # the growth that is due now has its own as well
        assert f"{key[2:]}: a stage has its own" in refused(
            f"--init_from={tmp_path}/small/ckpt_0000008.pt", f"--out_dir={tmp_path}/e", "--max_iters=24", due, key,
            "--ramp_iters=2")
    for bad, words in ((dict(learning_rate="x"), "learning_rate='x'"), (dict(learning_rate=-1), "at least 0"),
                       (dict(muon_learning_rate=0.01), "optimizer='muon' only")):
        with pytest.raises(UserError, match=words):
            from_args(["--stages=" + repr([dict(at=8, n_layer=9, **bad)])])


@pytest.mark.parametrize("given", ["--ramp_iters=6", "--max_iters=13"])
def test_a_later_ramp_that_outlasts_the_run(given, growing_by_four, data, tmp_path):
    """On every way to go on: --resume, and init_from=auto with the whole command."""
    cut_off(growing_by_four, 8, tmp_path / "a")
    assert "would leave the model masked" in refused("--resume", str(tmp_path / "a"), given)
    whole = dict(FLAT, data_dir=data, out_dir=tmp_path / "a", init_from="auto", max_iters=16, eval_interval=4,
                 ramp_iters=2, schedule="constant",
                 stages=[dict(at=4, n_inner=48, micro_batch=4, operator="msg"), dict(at=12, n_layer=4)])
    key, value = given[2:].split("=")
    done = train(check=False, **{**whole, key: value})
    assert done.returncode == 2 and "would leave the model masked" in done.stderr


def test_a_rewarm_with_a_growth_due(data, tmp_path):
    """Its first rate follows from the one before, though the new stage has another peak."""
    train_here(data_dir=data, out_dir=tmp_path / "a", **{**FLAT, "max_iters": 16, "eval_interval": 4})
    go_on("--resume", str(tmp_path / "a"), "--max_iters=32", "--rewarm_iters=8", "--ramp_iters=2",
          f"--stages={[dict(at=16, n_layer=2, learning_rate=1e-2)]}")
    found = rates(tmp_path / "a")
    assert found[17] < 2e-3 and found[24] == 1e-2


def test_a_rewarm_and_what_does_not_go_with_it(trunks, tmp_path):
    """A size that is to be finished within the warmup; another run's checkpoint beside --resume."""
    out = str(shutil.copytree(trunks["wsd"], tmp_path / "out"))
    assert "grows at 44, within the new warmup, which ends at 48" in refused(
        "--resume", out, "--max_iters=99", "--rewarm_iters=8", "--finish_stages=3", "--ramp_iters=2",
        "--stages=[dict(at=44, n_layer=3)]")
    assert "goes on from the run's newest checkpoint" in refused(
        "--resume", out, f"--init_from={out}/ckpt_0000008.pt", "--max_iters=99")
