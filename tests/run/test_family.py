"""finish_stages: one run leaves a finished model of each size that it grew from."""
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import torch
from runs import TINY, events, losses, train
from test_faults import driver  # noqa: F401

from base.errors import UserError
from run import family
from run.checkpoint import checkpoint
from run.monitor import Monitor
from run.settings import from_dict
from run.trained import open_model

NAMES = ["1x16x32x1", "1x16x48x1", "1x32", "3x32"]  # the FFN grows first, and is in the names
SETTINGS = dict(finish_stages=9, dropout=0.0, eval_interval=4, keep_checkpoints=2)
SEED = int(os.environ.get("FAULT_SEED", time.time()))


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("family") / "out")
    train(data_dir=data, out_dir=out, **SETTINGS)
    return out


def folders(out):
    return [os.path.join(out, name) for name in NAMES[:-1]] + [out]


def all_losses(out):
    return [losses(folder) for folder in folders(out)]


def test_one_command_gives_a_family(out):
    """Small, middle and large, each what sample and evaluate open, each before the run grows on."""
    for n, (folder, sizes) in enumerate(zip(folders(out)[:-1], [(1, 16, 32), (1, 16, 48), (1, 32, 48)])):
        model, state = open_model(folder, "cpu")
        c, at = model.config, TINY["stages"][n]["at"]
        assert (c.n_layer, c.n_embd, c.n_inner) == sizes and state["iter"] == at + 9
        assert model.generate(torch.tensor([[65]]), 5).shape == (1, 6)
        assert [e["lr"] for e in events(folder, "step")][-1] < 2e-4  # decayed
        assert events(folder, "eval")[-1]["iter"] == at + 9
    assert open_model(out, "cpu")[0].config.n_layer == 3
    assert sorted(os.path.basename(p) for p in checkpoint.numbered(out)) == [
        f"ckpt_00000{it}.pt" for it in (12, 24, 40, 56, 60)]
    starts = [e["iter"] for e in events(out, "start")]
    assert starts == [0, 12, 24, 40]  # it was left at each growth, and resumed


def test_the_run_itself_is_as_it_was(out, data, tmp_path):
    """Branches before growths, after the run, or none: the same losses, to the last bit."""
    train(data_dir=data, out_dir=tmp_path / "alone", **{**SETTINGS, "finish_stages": 0})
    assert losses(tmp_path / "alone") == losses(out)
    after = str(tmp_path / "after")
    train(data_dir=data, out_dir=after, family="end", **SETTINGS)
    assert all_losses(after) == all_losses(out)
    assert [e["iter"] for e in events(after, "start")] == [0]


def test_the_table(out):
    """A share of the compute for each, by arithmetic and by what the runs counted."""
    found = json.load(open(os.path.join(out, "family.json")))
    assert [m["name"] for m in found["members"]] == NAMES
    ends = [events(folder, "eval")[-1] for folder in folders(out)]
    assert [m["val_loss"] for m in found["members"]] == [e["val_loss"] for e in ends]
    left = {e["iter"]: e["flops"] for e in events(out, "grow")}
    spent = [e["flops"] - left.get(s["at"], 0) for e, s in zip(ends, [dict(at=0), *TINY["stages"]])]
    assert [m["flops"] for m in found["members"]] == pytest.approx(spent)
    assert found["flops"] == pytest.approx(ends[-1]["flops"] + sum(
        e["flops"] - left[s["at"]] for e, s in zip(ends, TINY["stages"])))
    alone = [m["flops_per_token"] * 256 * 21 for m in found["members"]]  # 12 + 9 iterations of 256 tokens
    assert found["saved"] == pytest.approx(1 - found["flops"] / sum(alone))
    text = open(os.path.join(out, "family.md")).read()
    assert text.count("\n| ") == 4 and f"{ends[0]['val_loss']:.4f}" in text and "one by one" in text


def test_runs_from_scratch_to_compare_with(out, data, tmp_path, monkeypatch):
    """Those of the member's size, tokens and data; of several recipes the best with three seeds."""
    for seed, rate in ((1, 1e-3), (2, 1e-3), (3, 1e-3), (1, 3e-3)):  # the rate was chosen on seed 1
        train(data_dir=data, out_dir=str(tmp_path / f"{rate}_{seed}"), **{
            **SETTINGS, "finish_stages": 0, "stages": "[]", "seed": seed, "max_iters": 21, "eval_interval": 21,
            "learning_rate": rate})
    (tmp_path / "newer").mkdir()  # a run of another version is no reason to fail
    (tmp_path / "newer" / "metrics.jsonl").write_text("")
    (tmp_path / "newer" / "config.json").write_text('{"n_layer": "many"}')
    monkeypatch.setattr(family, "RESULTS", str(tmp_path))
    first, *others = family.summary(family.read_trunk(out))["members"]
    ends = [events(tmp_path / f"0.001_{seed}", "eval")[-1] for seed in (2, 3)]
    assert first["scratch"]["seeds"] == [2, 3] and first["scratch"]["flops"] == ends[0]["flops"]
    assert first["scratch"]["mean"] == pytest.approx(sum(e["val_loss"] for e in ends) / 2)
    assert not any(m["scratch"] for m in others)
    mine = json.load(open(os.path.join(out, "config.json")))["resolved"]["fingerprint"]
    for theirs, said in ((mine, False), ("0", True)):
        (tmp_path / "data.json").write_text(json.dumps(dict(fingerprint=theirs, source="text of old")))
        table = family.in_words(family.summary(family.read_trunk(out)))
        assert ("saw another text, the text of old: losses do not compare" in table) == said


@pytest.mark.parametrize("deaths", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_killed_at_random_moments(deaths, driver, out, data, tmp_path):  # noqa: F811
    """In branches, between them and in the trunk; each time the same command goes on."""
    rng, dead = random.Random(SEED), str(tmp_path / "out")
    moments = [*({"steps": rng.randint(1, 14)} for _ in range(7)), {"replace": rng.randint(1, 9)},
               {"replace": rng.randint(1, 9)}, {"save": rng.randint(1, 3), "bytes": rng.randint(0, 60000)}]
    for moment in rng.sample(moments, deaths):
        assert driver.run(dead, moment, data_dir=data, **SETTINGS)["code"] in (-9, 0), f"FAULT_SEED={SEED}"
    done = driver.run(dead, None, data_dir=data, **SETTINGS)
    assert done["code"] == 0, done["log"]
    assert all_losses(dead) == all_losses(out), f"FAULT_SEED={SEED}, {moments}"
    assert open(os.path.join(dead, "family.md")).read() == open(os.path.join(out, "family.md")).read()


def test_stopped_in_a_branch(out, data, tmp_path, monkeypatch):
    """Told what goes on with all of it, --resume does."""
    dead, log_step = str(tmp_path / "out"), Monitor.log_step

    def stopped(self, *args):
        log_step(self, *args)
        if self.run.iter == 29 and self.run.config.out_dir != dead:
            self.stop = signal.SIGTERM
    monkeypatch.setattr(Monitor, "log_step", stopped)
    done = train(data_dir=data, out_dir=dead, **SETTINGS)
    monkeypatch.undo()
    assert f"--resume {dead}\n" in open(os.path.join(dead, NAMES[1], "log.txt")).read(), done.stderr
    assert events(dead)[-1]["iter"] == 24
    train("--resume", out_dir=dead, **dict.fromkeys(TINY))
    assert all_losses(dead) == all_losses(out)


@pytest.mark.parametrize("end", [21, 60])
def test_stopped_in_a_last_evaluation(end, out, data, tmp_path, monkeypatch):
    """Of a branch, or of the run: that model is finished once --resume has evaluated it, and that it does once."""
    dead, evaluate, ends = str(tmp_path / "out"), Monitor.evaluate, []

    def stopped(self, *args):
        if self.run.iter == self.run.config.max_iters == end:
            ends.append(self.run.iter)
            self.stop = self.stop or (signal.SIGTERM if len(ends) == 1 else None)
            assert len(ends) < 3
        return evaluate(self, *args)
    monkeypatch.setattr(Monitor, "evaluate", stopped)
    train(data_dir=data, out_dir=dead, **SETTINGS)
    train("--resume", out_dir=dead, **dict.fromkeys(TINY))
    assert all_losses(dead) == all_losses(out) and len(ends) == 2
    assert all(m.is_finished() for m in family.members(family.read_trunk(dead)))


def test_a_branch_elsewhere(driver, out, data, tmp_path, monkeypatch):  # noqa: F811
    """
    The printed command, in a process of its own; the run goes on and leaves that model to it. Whoever
    is last writes the table.
    """
    here = str(tmp_path / "out")
    assert driver.run(here, {"iter": 18}, data_dir=data, family="end", **SETTINGS)["code"] == -9
    said = next(s for s in open(os.path.join(here, "log.txt")) if "elsewhere" in s)
    command = shlex.split(said.partition("elsewhere meanwhile: ")[2])
    log_step = Monitor.log_step

    def meanwhile(self, *args):
        log_step(self, *args)
        if self.run.iter == 15:  # the branch is under way: now all the rest
            done = driver.run(here, None, "--resume", init_from=None, **dict.fromkeys(TINY))
            assert done["code"] == 0 and os.path.exists(checkpoint.path_at(here, 60)), done["log"]
            assert "not finished" in open(os.path.join(here, "family.md")).read()
    monkeypatch.setattr(Monitor, "log_step", meanwhile)
    assert command[0] == "python"
    train(*command[2:], **dict.fromkeys(TINY))
    assert all_losses(here) == all_losses(out)
    assert "not finished" not in open(os.path.join(here, "family.md")).read()


def test_an_older_family_is_completed(out, data, tmp_path):
    """Whose branches are in stage_1, stage_2 ..."""
    old = str(tmp_path / "out")
    subprocess.run(["cp", "-r", out, old], check=True)
    config = json.load(open(os.path.join(old, "config.json")))
    del config["family"]
    json.dump({**config, "out_dir": old}, open(os.path.join(old, "config.json"), "w"))
    os.rename(os.path.join(old, NAMES[0]), os.path.join(old, "stage_1"))
    for name in os.listdir(os.path.join(old, NAMES[1])):
        if name.endswith(".pt"):
            os.remove(os.path.join(old, NAMES[1], name))  # killed before its first checkpoint
    train("--resume", out_dir=old, **dict.fromkeys(TINY))
    assert not os.path.exists(os.path.join(old, NAMES[0]))
    assert losses(os.path.join(old, NAMES[1])) == all_losses(out)[1]


def test_a_trunk_that_warmed_up_again(out, data, tmp_path):
    """To a peak of its own: what is still to be finished decays from the rate at which it was trained."""
    longer = shutil.copytree(out, tmp_path / "longer")
    shutil.rmtree(longer / "1x32")
    train(data_dir=data, out_dir=str(longer), init_from="resume", **{
        **SETTINGS, "max_iters": 90, "rewarm_iters": 5, "learning_rate": 4e-4, "min_lr_frac": 0.0})
    assert losses(longer / "1x32") == losses(os.path.join(out, "1x32"))
    assert max(e["lr"] for e in events(longer, "step") if e["iter"] > 60) == 4e-4


def test_a_finished_size_keeps_its_decay(out, tmp_path):
    """And the refusal leaves the settings that the run recorded as they were."""
    again = shutil.copytree(out, tmp_path / "again")
    had = (again / "config.json").read_text()
    done = train("--resume", out_dir=str(again), check=False, **{**dict.fromkeys(TINY), "finish_stages": 8})
    assert done.returncode == 2 and "1x16x32x1: is finished over 9 iterations, not 8: set" in done.stderr
    assert (again / "config.json").read_text() == had


def test_a_member_of_another_family_is_not_adopted(out, data, tmp_path):
    left = tmp_path / "left"
    shutil.copytree(os.path.join(out, "1x32"), left / "1x32")
    done = train(data_dir=data, out_dir=str(left), check=False, **{**SETTINGS, "seed": 5})
    assert done.returncode == 2 and "1x32 of an earlier family: choose another --out_dir" in done.stderr
    assert sorted(os.listdir(left / "1x32")) == sorted(os.listdir(os.path.join(out, "1x32")))


def test_the_table_has_the_last_evaluation(out, data, tmp_path):
    """A run that goes on with other eval_seqs evaluates its last iteration again."""
    again = shutil.copytree(out, tmp_path / "again")
    train(data_dir=data, out_dir=str(again), init_from="resume", **{**SETTINGS, "eval_seqs": 5})
    first, last = (e["val_loss"] for e in events(again, "eval") if e["iter"] == 60)
    found = json.load(open(again / "family.json"))["members"][-1]["val_loss"]
    assert found == last != first


def test_a_branch_of_a_trunk_leaves_its_family_alone(out, tmp_path, capsys):
    """Smaller sizes are finished in the trunk's folder, not again beside a decay branched off by hand."""
    train(f"--init_from={out}/ckpt_0000040.pt", f"--out_dir={tmp_path}/b", "--decay_iters=8", **dict.fromkeys(TINY))
    assert events(tmp_path / "b", "eval")[-1]["iter"] == 48 and "n_layer" in events(tmp_path / "b", "eval")[-1]
    assert not os.path.exists(tmp_path / "b" / "family.md")


def test_each_its_own_decay(data, tmp_path):
    """And a size on the way that is left out."""
    stages = [{**s, "finish_iters": n} for s, n in zip(TINY["stages"], (5, 0, 7))]
    train(data_dir=data, out_dir=tmp_path, **{**SETTINGS, "stages": stages})
    names = [m["name"] for m in json.load(open(tmp_path / "family.json"))["members"]]
    assert names == ["1x16", "1x32", "3x32"]
    assert [events(tmp_path / name, "eval")[-1]["iter"] for name in names[:2]] == [17, 47]


def test_sizes_whose_checkpoints_are_gone(data, tmp_path):
    """finish_stages comes too late: it is said which, and the exit code is 2."""
    out = tmp_path / "out"
    train(data_dir=data, out_dir=out, max_iters=20, stages=[dict(at=6, n_inner=48)], ramp_iters=3, decay_iters=4)
    for name in checkpoint.numbered(str(out)):
        assert not name.endswith("06.pt")
    done = train("--resume", out_dir=out, check=False, **{**dict.fromkeys(TINY), "finish_stages": 5})
    error = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "1x16x32x1: not finished: " in error and "no checkpoint of iteration 6" in error


@pytest.mark.slow
def test_several_processes(out, data, tmp_path):
    train(data_dir=data, out_dir=str(tmp_path / "two"), torchrun=2, **SETTINGS)
    for a, b in zip(all_losses(out), all_losses(str(tmp_path / "two"))):
        one, two = ({x[:3]: x[3] for x in y} for y in (a, b))
        assert one.keys() == two.keys() and all(abs(one[k] - two[k]) < 1e-4 for k in one)


@pytest.mark.parametrize("settings", [
    dict(schedule="cosine"), dict(decay_frac=0.5), dict(warmup_iters=13)])
def test_a_growth_away_from_the_peak_is_refused(settings):
    """The branch's learning rate starts at its peak, so the run's must be there."""
    from_dict({**TINY, "finish_stages": 9})
    with pytest.raises(UserError, match=r"finish_stages=9: stages\[.\] grows at \d+, when"):
        from_dict({**TINY, "finish_stages": 9, **settings})
