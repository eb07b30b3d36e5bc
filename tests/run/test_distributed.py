"""Several processes: DDP and FSDP train, grow, save and resume like one, and they die together."""
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from runs import ENV, ROOT, Driver, cut_off, events, flags, losses, make_data

from base.errors import UserError
from data.dataset import read_meta
from data.loader import BertLoader
from model import GPT, MODELS, GPTConfig
from run.checkpoint import checkpoint
from run.parallel import shard
from run.parallel.ranks import Ranks, meet
from run.settings import from_dict
from tools.export import export

# shorter than TINY: 5 evaluated rows, so that two ranks have unequally many batches of them
SHORT = dict(dropout=0.0, eval_seqs=5, micro_batch=2, max_iters=26, ramp_iters=5, schedule="constant",
             stages=[dict(at=4, n_inner=48), dict(at=10, n_embd=32, n_head=2), dict(at=16, n_layer=3)])
CUT = 12  # in the middle of the second ramp


class Together(Driver):
    """tests/ranks_driver.py, which forks the ranks of every job it is sent."""

    def __init__(self):
        super().__init__("ranks_driver.py", MALLOC_ARENA_MAX="1", MALLOC_MMAP_THRESHOLD_="65536")

    def say(self, world, log, **job):
        """Returns the exit codes and what rank 0 and rank 1 printed."""
        codes = self.send(world=world, log=log, **job)
        return codes, [open(log + (f".{r}" if r else "")).read() for r in range(min(world, 2))]

    def run(self, out_dir, world, *args, ok=True, job=None, **settings):
        args = [[*flags(**{**SHORT, "out_dir": out_dir, **settings}), *args]] * world
        codes, said = self.say(world, out_dir + ".log", args=args, **job or {})
        assert not ok or codes == [0] * world, "\n".join(said)
        return losses(out_dir) if ok else (codes, said)

    def run_cut(self, *args, **settings):
        """As if the run had been killed after iteration CUT."""
        self.run(*args, save_interval=CUT, keep_checkpoints=9, **settings)
        cut_off(args[0], CUT)

    def call(self, name, world, log, **env):
        codes, said = self.say(world, str(log), call=name, env=env)
        assert codes == [0] * world, "\n".join(said)
        return [json.loads(s.strip().splitlines()[-1]) for s in said]


@pytest.fixture(scope="module")
def driver():
    d = Together()
    yield d
    d.close()


@pytest.fixture(scope="module")
def whole(driver, data, tmp_path_factory):
    """A run of (model, optimizer) on so many processes, made once: its out_dir and losses."""
    done, folder = {}, tmp_path_factory.mktemp("whole")

    def get(model="gpt", optimizer="adamw", world=1, how="none"):
        key = f"{model}_{optimizer}_{world}_{how}"
        if key not in done:
            out = str(folder / key)
            done[key] = out, driver.run(out, world, data_dir=data, model=model, shard=how,
                                        optimizer=optimizer)
        return done[key]
    return get


def assert_close(a, b, tol=1e-5):
    assert a and [x[:3] for x in a] == [x[:3] for x in b]
    assert max(abs(x[3] - y[3]) for x, y in zip(a, b)) < tol


@pytest.mark.parametrize("model,optimizer,how", [
    ("gpt", "adamw", "none"), ("gpt", "muon", "fsdp"), *(pytest.param(*v, marks=pytest.mark.slow) for v in (
        ("gpt", "adamw", "fsdp"), ("gpt", "muon", "none"), ("bert", "muon", "none"),
        ("bert", "muon", "fsdp")))])
def test_two_processes_train_like_one(model, optimizer, how, whole):
    """Through three growths, with gradient accumulation; every training and validation loss."""
    one, two = whole(model, optimizer), whole(model, optimizer, 2, how)
    assert_close(one[1], two[1])
    # and the checkpoint is that of one process, tensor by tensor
    a, b = (checkpoint.load(os.path.join(out, "ckpt.pt")) for out, _ in (one, two))
    assert list(a) == list(b) and list(a["model"]) == list(b["model"])
    assert all((v - b["model"][k]).abs().max() < 1e-3 for k, v in a["model"].items())
    for x, y in zip(a["optimizers"], b["optimizers"], strict=True):
        assert x["param_groups"] == y["param_groups"] and list(x["state"]) == list(y["state"])
        for i, state in x["state"].items():
            assert all((v.shape, v.dtype) == (y["state"][i][k].shape, y["state"][i][k].dtype)
                       for k, v in state.items())


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """Documents of 4 to 60 tokens: BERT's rows of 64 have 1 to 9 targets."""
    folder, rng = make_data(tmp_path_factory.mktemp("uneven")), np.random.default_rng(0)
    for split in ("train", "val"):
        lengths = rng.choice([4, 8, 60], 600, p=[0.5, 0.3, 0.2])
        stream = np.concatenate([[*rng.integers(32, 96, n // 2), 10, *rng.integers(32, 96, n // 2), 0]
                                 for n in lengths])
        stream.astype(np.uint8).tofile(folder / f"{split}.bin")
    return str(folder)


def test_the_loss_is_a_mean_over_the_whole_batch(driver, uneven, tmp_path):
    """BERT's rows have unequally many targets: losses and gradients are the same however they are cut up."""
    found = {}
    for how, world, micro_batch in (("none", 1, 8), ("none", 1, 2), ("none", 1, 1), ("none", 2, 2),
                                    ("fsdp", 2, 1)):
        out = str(tmp_path / f"{how}{world}{micro_batch}")
        driver.run(out, world, data_dir=uneven, model="bert", block_size=64, batch_tokens=512,
                   micro_batch=micro_batch, shard=how, stages=[], max_iters=6)
        found[out] = [(e["loss"], e["grad_norm"]) for e in events(out, "step")]
    first, *others = found.values()
    load = BertLoader(from_dict(dict(data_dir=uneven, model="bert", block_size=64, batch_tokens=512,
                                     micro_batch=8)), read_meta(uneven), 320)
    counts = (load.batch(0)["targets"] >= 0).sum(1)
    assert counts.max() >= 4 * counts.min()
    for other in others:
        worst = max(abs(a / b - 1) for x, y in zip(first, other, strict=True) for a, b in zip(x, y))
        assert worst < 1e-6, found


@pytest.mark.slow
@pytest.mark.parametrize("how", ["none", "fsdp"])
def test_documents_kept_apart(how, driver, data, tmp_path):
    settings = dict(data_dir=data, model="llama", doc_mask=True)
    assert_close(driver.run(str(tmp_path / "one"), 1, **settings),
                 driver.run(str(tmp_path / "two"), 2, shard=how, **settings))


@pytest.mark.parametrize("optimizer,start,resumed", [
    ("adamw", (2, "fsdp"), [(1, "none"), (2, "none")]),
    *(pytest.param(*v, marks=pytest.mark.slow) for v in (
        ("adamw", (1, "none"), [(2, "fsdp")]), ("adamw", (2, "none"), [(4, "fsdp"), (2, "fsdp")]),
        ("adamw", (4, "fsdp"), [(2, "none"), (1, "none")]), ("muon", (2, "none"), [(2, "fsdp")]),
        ("muon", (2, "fsdp"), [(1, "none")])))])
def test_resumed_as_anything(optimizer, start, resumed, driver, data, whole, tmp_path):
    """Stopped in the middle of a ramp; then sharded, whole in each, and on one process."""
    want = [x for x in whole("gpt", optimizer)[1] if x[0] == "step"]
    settings, cut = dict(data_dir=data, optimizer=optimizer), str(tmp_path / "cut")
    driver.run_cut(cut, start[0], shard=start[1], **settings)
    assert 0 < checkpoint.load(cut)["model"]["masks.c"] < 1
    assert bool(parts(cut)) == (start[0] > 1)
    for world, how in resumed:
        out = str(tmp_path / f"{world}{how}")
        shutil.copytree(cut, out)
        got = driver.run(out, world, "--resume", shard=how, **settings)
        assert_close(want, [x for x in got if x[0] == "step"])


def parts(out):
    """The folders of parts, oldest first."""
    return sorted(name for name in os.listdir(out) if name.startswith(checkpoint.PARTS))


def test_parts_of_what_is_kept(whole, tmp_path):
    """Of the last two and the best, no more; and any of them opens as a model, elsewhere too."""
    out, _ = whole("gpt", "adamw", 2, "none")
    kept = [checkpoint.load(p) for p in (*checkpoint.numbered(out), os.path.join(out, "best.pt"))]
    assert len(parts(out)) == len({s["iter"] for s in kept}) and len(checkpoint.numbered(out)) == 2
    there = shutil.copytree(out, tmp_path / "there")
    model, state = checkpoint.load_model(str(there / "best.pt"))
    assert state["iter"] == kept[-1]["iter"]
    assert all(torch.equal(v, kept[-1]["model"][k]) for k, v in model.state_dict().items())
    shutil.rmtree(there / parts(there)[-1])
    with pytest.raises(UserError, match="part .* is missing"):
        checkpoint.load(checkpoint.numbered(there)[0])


@pytest.mark.parametrize("how,fault", [
    ("fsdp", dict(rank=1, save=3, bytes=9000)),
    *(pytest.param(*v, marks=pytest.mark.slow) for v in (
        ("none", dict(rank=0, save=2, bytes=0)), ("fsdp", dict(rank=0, save=3, commit=True))))])
def test_killed_while_saving(how, fault, driver, data, whole, tmp_path):
    """What was half written is not believed, and the run goes on exactly."""
    out, settings = str(tmp_path / "out"), dict(data_dir=data, shard=how, eval_interval=7)
    codes, said = driver.run(out, 2, ok=False, job=dict(fault=fault), **settings)
    assert codes[fault["rank"]] == -signal.SIGKILL, said
    assert len(checkpoint.numbered(out)) == fault["save"] - 1
    driver.run(out, 2, "--resume", **settings)
    assert losses(out) == whole("gpt", "adamw", 2, how)[1]
    assert len(parts(out)) <= 3


def test_a_damaged_part(driver, data, whole, tmp_path):
    """It is named, and the checkpoint before it is used."""
    out = str(tmp_path / "out")
    shutil.copytree(whole("gpt", "adamw", 2, "fsdp")[0], out)
    newest, before = checkpoint.numbered(out)
    part = os.path.join(out, parts(out)[-1], "__1_0.distcp")
    with open(part, "r+b") as f:
        f.seek(os.path.getsize(part) // 2)
        byte = f.read(1)[0]
        f.seek(-1, os.SEEK_CUR)
        f.write(bytes([byte ^ 4]))
    got = driver.run(out, 2, "--resume", data_dir=data, shard="fsdp")
    said = open(out + ".log").read()
    assert f"{newest}: damaged" in said and f"{part} is damaged" in said and before in said
    assert got == whole("gpt", "adamw", 2, "fsdp")[1]


def test_each_rank_checks_its_share_of_the_parts(driver, whole, tmp_path):
    """However long it takes: nobody waits for that in a collective."""
    out = whole("gpt", "adamw", 2, "fsdp")[0]
    found = driver.call("checking", 2, tmp_path / "log", OUT=out, NANOGROW_TIMEOUT="2")
    assert [len(f) for f in found] == [1, 1]
    assert sorted(found[0] + found[1]) == sorted(os.listdir(os.path.join(out, parts(out)[-1])))


@pytest.mark.parametrize("how,read,says", [
    ("fsdp", None, "damaged"), ("none", "error", "cannot be read"), ("fsdp", "gone", "cannot be read")])
def test_no_part_that_can_be_read(how, read, says, driver, data, whole, tmp_path):
    """Damaged where rank 1 checks, or lost to it after that: one line, and all leave with 2."""
    out = str(tmp_path / "out")
    shutil.copytree(whole("gpt", "adamw", 2, "fsdp")[0], out)
    for path in [*checkpoint.numbered(out)[1:], os.path.join(out, "best.pt")]:
        os.remove(path)  # the newest is the only one
    part = os.path.join(out, parts(out)[-1], "__1_0.distcp")
    if read is None:
        with open(part, "r+b") as f:
            f.write(b"?")
    codes, said = driver.run(out, 2, "--resume", ok=False, data_dir=data, shard=how, max_iters=30,
                             job=dict(fault=dict(rank=1, read=read)) if read else None)
    [error] = [line for s in said for line in s.splitlines() if not line.startswith("resuming")]
    assert codes == [2, 2] and error.startswith("error: "), said
    assert says in error and (part if read is None else os.path.dirname(part)) in error


def test_what_is_read_is_not_deleted_meanwhile(whole, tmp_path):
    """A branch, or a tool, pins the parts of a run that goes on; they go once they are read."""
    out = str(tmp_path / "out")
    shutil.copytree(whole("gpt", "adamw", 2, "fsdp")[0], out)
    want, newest = checkpoint.load(out), checkpoint.numbered(out)[0]
    state = checkpoint.load(newest, values=False)
    for path in (newest, *(os.path.join(out, name) for name in ("ckpt.pt", "best.pt"))):
        os.remove(path)
    pinned = parts(out)[-1]
    checkpoint.tidy_parts(out)
    assert pinned in parts(out)
    got = shard.with_values(state)
    assert all(torch.equal(v, want["model"][k]) for k, v in got["model"].items())
    del state
    checkpoint.tidy_parts(out)
    assert pinned not in parts(out)


def test_a_checkpoint_that_is_replaced_while_it_is_opened(whole, monkeypatch, tmp_path):
    """ckpt.pt of a run that goes on: its next one is taken."""
    out = str(tmp_path / "out")
    shutil.copytree(whole("gpt", "adamw", 2, "fsdp")[0], out)
    (newest, before), latest = checkpoint.numbered(out), os.path.join(out, "ckpt.pt")
    checkpoint.point(before, latest)
    it, glance = checkpoint.load(newest)["iter"], checkpoint.glance

    def late(path):
        state = glance(path)
        checkpoint.point(newest, latest)
        shutil.rmtree(os.path.join(out, state["parts"]["folder"]))
        monkeypatch.setattr(checkpoint, "glance", glance)
        return state
    monkeypatch.setattr(checkpoint, "glance", late)
    assert checkpoint.load(latest, values=False)["iter"] == it


def test_a_part_that_cannot_be_written(driver, data, tmp_path):
    """The run goes on without that checkpoint, and says so; at the end it is an error."""
    out, settings = str(tmp_path / "out"), dict(data_dir=data, stages=[], max_iters=20)
    driver.run(out, 2, job=dict(fault=dict(rank=1, save=2)), **settings)
    said = open(out + ".log").read()
    assert "WARNING" in said and "rank 1: [Errno 28] No space left" in said
    assert [checkpoint.load(p)["iter"] for p in checkpoint.numbered(out)] == [20, 14]
    saved = [e["val_loss"] for e in events(out, "eval") if e["iter"] != 7]
    assert checkpoint.load(os.path.join(out, "best.pt"))["best"] == min(saved)
    codes, said = driver.run(out + "2", 2, ok=False, job=dict(fault=dict(rank=1, save=4)), **settings)
    assert codes == [2, 2] and "error: " in said[0] and "No space left" in said[0], said
    assert checkpoint.load(out + "2")["iter"] == 14


def test_disks_that_are_not_shared(driver, data, whole, tmp_path):
    """Rank 0 reads the parts for all, and gathers and writes one file."""
    out = str(tmp_path / "out")
    driver.run_cut(out, 2, data_dir=data, shard="fsdp")
    assert parts(out)
    driver.run(out, 2, "--resume", data_dir=data, shard="fsdp", job=dict(blind=True))
    assert_close(*[[x for x in found if x[0] == "step"] for found in (whole()[1], losses(out))])
    assert os.path.getsize(os.path.join(out, "ckpt.pt")) > 100_000


@pytest.mark.slow
def test_saving_does_not_stop_the_run(driver, tmp_path):
    """25 million parameters and AdamW's state, on two processes: copied in a tenth of the time."""
    for got in driver.call("stall", 2, tmp_path / "log"):
        print(got)
        assert all(v["wait"] <= 0.1 * v["all"] for v in got.values())


def test_only_rank_0_needs_the_checkpoint(driver, data, whole, tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "nothing_here")
    driver.run_cut(a, 1, data_dir=data)
    args = [[*flags(**{**SHORT, "out_dir": out}), f"--data_dir={data}", "--init_from=auto"]
            for out in (a, b)]
    codes, said = driver.say(2, str(tmp_path / "log"), args=args)
    assert codes == [0, 0], said
    assert_close(*[[x for x in found if x[0] == "step"] for found in (whole()[1], losses(a))])
    assert not os.path.exists(b)


def test_all_train_by_the_settings_of_rank_0(driver, data, whole, tmp_path):
    """Where another machine does not see the folder that is resumed, or was started with other flags."""
    out = str(tmp_path / "out")
    args = [[*flags(**{**SHORT, "out_dir": out, "data_dir": data, **more})]
            for more in ({}, dict(learning_rate=0.5, schedule="wsd", decay_iters=3, grad_clip=0.1, seed=7))]
    codes, said = driver.say(2, str(tmp_path / "log"), args=args)
    assert codes == [0, 0], said
    assert losses(out) == whole("gpt", "adamw", 2, "none")[1]


@pytest.mark.parametrize("found, says", [("other", "other data on the machine of rank 1 than"), ("none", "no data there")])
def test_all_read_the_same_data(found, says, driver, data, tmp_path):
    codes, said = driver.run(str(tmp_path / "out"), 2, ok=False, data_dir=data, job=dict(
        fault=dict(rank=1, data=found)))
    assert codes == [2, 2] and len((said[0] + said[1]).splitlines()) == 1 and says in said[1], said


def test_nothing_to_resume_is_said_once(driver, data, tmp_path):
    codes, said = driver.run(str(tmp_path / "out"), 2, "--resume", ok=False, data_dir=data)
    assert codes == [2, 2]
    assert "holds no checkpoint" in said[0] and len(said[0].splitlines()) == 1 and not said[1]


@pytest.mark.parametrize("how", [pytest.param("none", marks=pytest.mark.slow), "fsdp"])
def test_fewer_sequences_to_evaluate_than_processes(how, driver, data, tmp_path):
    settings = dict(data_dir=data, eval_seqs=1, max_iters=3, warmup_iters=1, stages=[])
    one = driver.run(str(tmp_path / "one"), 1, **settings)
    assert_close(one, driver.run(str(tmp_path / "two"), 2, shard=how, **settings))


def test_somebody_elses_model_sharded(driver, data, tmp_path):
    """init_from a Hugging Face folder: the same losses, whole or in shards."""
    pytest.importorskip("safetensors")
    torch.manual_seed(0)
    folder = str(tmp_path / "hf")
    export(GPT(GPTConfig(block_size=32, vocab_size=320, n_layer=1, n_embd=16, n_head=1, n_inner=32,
                         head_dim=16)), read_meta(data), folder)
    settings = dict(data_dir=data, init_from=folder, max_iters=9, stages=SHORT["stages"][:1])
    one = driver.run(str(tmp_path / "one"), 1, **settings)
    assert_close(one, driver.run(str(tmp_path / "two"), 2, shard="fsdp", **settings))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_four_processes(optimizer, driver, data, whole, tmp_path):
    """More ranks than some tensors have rows, and than there are layers."""
    got = driver.run(str(tmp_path / "out"), 4, data_dir=data, shard="fsdp", optimizer=optimizer)
    assert_close(whole("gpt", optimizer)[1], got)


@pytest.mark.slow
def test_sharded_and_compiled(driver, data, whole, tmp_path):
    """The same graphs, and as few, as on one process."""
    out = str(tmp_path / "out")
    got = driver.run(out, 2, data_dir=data, shard="fsdp", compile="block")
    assert_close(whole()[1], got, 1e-3)
    assert [(e["iter"], e["graphs"]) for e in events(out, "compile")] == \
        [(1, 2), (5, 2), (9, 1), (11, 2), (15, 1), (17, 1)]  # at first and in width the head's loss too


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_growing_takes_the_shards_and_one_whole_tensor(driver, tmp_path):
    """So does saving, on all ranks but the one that writes."""
    for rank, got in enumerate(driver.call("memory", 2, tmp_path / "log")):
        growing, saving = got["peaks"]
        limit = 1.1 * got["state"] / 2 + 3 * got["largest"]  # old, new, and what carries them
        assert limit < 0.8 * got["state"]
        print(f"rank {rank}: growing {growing:.0f}, saving {saving:.0f} MiB, limit {limit:.0f}, "
              f"state {got['state']:.0f}, largest {got['largest']:.0f}")
        assert growing < limit and (rank == 0 or saving < limit)


def test_collectives_of_muon(driver, tmp_path):
    """Three shapes: one each for whole matrices, two for sharded ones, however many layers."""
    counts, _ = driver.call("collectives", 2, tmp_path / "log")
    assert counts["none2"] == counts["none5"] == {"all_gather_into_tensor": 3}
    assert counts["fsdp2"] == counts["fsdp5"] == {"all_to_all_single": 6}


def test_blocks_are_gathered_in_bfloat16(driver, tmp_path):
    """Half the traffic. Masks and the residual stream stay float32, losses and gradients are DDP's but for rounding."""
    for got in driver.call("gathering", 2, tmp_path / "log"):
        (loss, norm, _), (loss_f, norm_f, kinds) = got["none"], got["fsdp"]
        assert kinds == ["torch.bfloat16", "torch.float32", "torch.float32"]
        assert abs(loss - loss_f) < 1e-3 and abs(norm / norm_f - 1) < 3e-3, got


def test_muon_takes_no_more_memory_for_more_layers(driver, tmp_path):
    """As on one process: AT_ONCE entries at a time, here four matrices (the rows of eight, sharded)."""
    for got in driver.call("muon_in_pieces", 2, tmp_path / "log"):
        assert got["none"] <= 4 * 512 and got["fsdp"] <= 4 * 512, got
        assert got["none_off"] < 1e-6 and got["fsdp_off"] < 1e-6, got


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
def test_bad_steps_are_skipped_by_all(optimizer, driver, data, tmp_path):
    driver.call("bad_steps", 2, tmp_path / "log", DATA=data, OUT=str(tmp_path / "out"),
                OPTIMIZER=optimizer)


@pytest.mark.parametrize("model", MODELS)
def test_filled_as_drawn(model):
    """Values are those that the model draws when it is made, to the last bit."""
    cls, config_cls = MODELS[model]
    config = config_cls(block_size=8, vocab_size=32, n_layer=2, n_embd=16, n_head=2, n_inner=24)
    torch.manual_seed(3)
    want = cls(config).state_dict()
    with torch.device("meta"):
        got = cls(config)
    torch.manual_seed(3)
    shard.materialize(got, Ranks("cpu"), None)
    assert list(want) == list(got.state_dict())
    assert all(torch.equal(v, want[k]) for k, v in got.state_dict().items())


def test_settings():
    for wrong, says in [(dict(compile="model"), "compile='block'"),
                        (dict(operator="net2net", n_inner=64, stages=[dict(at=5, n_inner=96)]),
                         "stages\\[0\\]: operator='net2net' needs whole tensors")]:
        with pytest.raises(UserError, match=says):
            from_dict(dict(shard="fsdp", **wrong))


def test_a_new_start_has_a_name_of_its_own():
    """Whatever earlier starts left in the store, on whatever machine they were counted."""
    store, names = dist.HashStore(), []
    store.set("here/2", "a rank that died waiting")
    for _ in range(3):
        got = {}
        threads = [threading.Thread(target=lambda r=r, got=got: got.update({r: meet(store, r, 3, 20)}))
                   for r in (1, 0, 2)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert len(got) == 3
        names.append(set(got.values()))
    assert all(len(n) == 1 for n in names) and len(set.union(*names)) == 3
    with pytest.raises(UserError, match="1 of 2 processes"):
        meet(dist.HashStore(), 0, 2, 0.1)


def launch(out, data, *torchrun, **settings):
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *torchrun, "train.py",
         *flags(**{**SHORT, "data_dir": data, "out_dir": out, "max_iters": 200, **settings})],
        cwd=ROOT, env=ENV, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True)


def wait_for(out, it, *running):
    metrics = os.path.join(out, "metrics.jsonl")
    while not (os.path.exists(metrics) and f'"iter": {it}' in open(metrics).read()):
        for r in running:
            assert r.poll() is None, r.stdout.read()
        time.sleep(0.01)


def ranks_of(launcher):
    found = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


@pytest.mark.parametrize("restarts", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_dead_rank_takes_the_job_down(restarts, data, tmp_path):
    """Two processes, one killed: torchrun ends the other soon, and --max-restarts resumes."""
    out = str(tmp_path / "out")
    job = launch(out, data, "--standalone", "--nproc_per_node=2", f"--max-restarts={restarts}",
                 max_iters=80)
    wait_for(out, 30, job)
    os.kill(ranks_of(job)[-1], signal.SIGKILL)
    started = time.time()
    said = job.communicate(timeout=180)[0]
    assert (job.returncode == 0) == (restarts == 1), said
    assert time.time() - started < 90
    if restarts:
        assert events(out)[-1]["iter"] == 80


@pytest.mark.parametrize("world,how,at", [
    (1, "none", 14), (2, "none", 26), (2, "fsdp", 14),
    *(pytest.param(*v, marks=pytest.mark.slow) for v in ((1, "none", 0), (1, "none", 16), (2, "none", 14)))])
def test_a_signal_is_heard_between_the_batches_of_an_evaluation(world, how, at, driver, data, whole, tmp_path):
    """By one rank, for all: saved as before the evaluation, which is done again by the run that goes on."""
    out, settings = str(tmp_path / "out"), dict(data_dir=data, shard=how)
    driver.run(out, world, job=dict(fault=dict(rank=world - 1, evaluating=at)), **settings)
    assert f"stopped at iteration {at}" in open(out + ".log").read()
    assert checkpoint.load(out)["iter"] == at and not [e for e in events(out, "eval") if e["iter"] == at]
    driver.run(out, world, "--resume", **settings)
    assert losses(out) == whole("gpt", "adamw", world, how)[1]
    assert checkpoint.load(os.path.join(out, "best.pt"))["best"] == min(
        e["val_loss"] for e in events(out, "eval"))


@pytest.mark.slow
def test_two_signals_of_a_scheduler(data, tmp_path):
    """SIGTERM to the ranks and to torchrun, which passes it on: saved all the same, on all ranks."""
    out = str(tmp_path / "out")
    job = launch(out, data, "--standalone", "--nproc_per_node=2", shard="fsdp", max_iters=2000,
                 eval_interval=1000)
    wait_for(out, 20, job)
    for pid in (*ranks_of(job), job.pid):
        os.kill(pid, signal.SIGTERM)
    said = job.communicate(timeout=120)[0]
    stopped = checkpoint.load(out)["iter"]
    assert 20 <= stopped < 2000 and f"stopped at iteration {stopped}" in said, said


@pytest.mark.slow
def test_restart_on_two_machines(data, tmp_path):
    """Each machine counts its own restarts; twice a rank of another machine dies, and they go on."""
    out, port = str(tmp_path / "out"), 29000 + os.getpid() % 1000
    jobs = [launch(out, data, "--nnodes=2", "--nproc_per_node=1", "--max-restarts=3",
                   "--rdzv_backend=c10d", f"--rdzv_endpoint=127.0.0.1:{port}", "--rdzv_id=test",
                   "--local_addr=127.0.0.1", max_iters=300, shard="fsdp") for _ in range(2)]
    for it, job in ((30, jobs[0]), (90, jobs[1])):
        wait_for(out, it, *jobs)
        os.kill(ranks_of(job)[-1], signal.SIGKILL)
    said = [job.communicate(timeout=300)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], "\n".join(said)
    assert events(out)[-1]["iter"] == 300
