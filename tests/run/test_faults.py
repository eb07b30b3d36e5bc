"""
Nothing lost: runs are killed at many moments and must go on as if nothing had happened; damaged
files are noticed; bad input ends in one line.
"""
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from runs import ENV, ROOT, TINY, Driver, events, flags, losses, make_data, train

from base.disk import written
from base.errors import UserError, exits_cleanly
from run import compiler
from run.checkpoint import checkpoint

SEED = int(os.environ.get("FAULT_SEED", time.time()))  # printed with every failure


class Crashes(Driver):
    """tests/crash_driver.py, which forks a run for every job it is sent."""

    def __init__(self):
        super().__init__("crash_driver.py")

    def run(self, out_dir, moment=None, /, *args, env=None, **settings):
        log = f"{out_dir}.log"
        args = [*flags(**{"out_dir": out_dir, "init_from": "auto", **settings}), *args]
        result = self.send(moment=moment or {}, args=args, log=log, env=env or {})
        with open(log) as f:
            result["log"] = f.read()
        return result


@pytest.fixture(scope="module")
def driver():
    d = Crashes()
    yield d
    d.close()


@pytest.fixture(scope="module")
def whole(driver, data, tmp_path_factory):
    """The uninterrupted run: three growths, dropout, two micro-batches a step."""
    out = str(tmp_path_factory.mktemp("whole") / "out")
    result = driver.run(out, data_dir=data)
    assert result["code"] == 0, result["log"]
    return out, result["seconds"]


def moments(seconds):
    """At least 20 ways to die, spread over the run, drawn at random from SEED."""
    rng = random.Random(SEED)
    yield from ({"seconds": seconds * (i + rng.random()) / 12} for i in range(12))
    yield from ({"iter": it} for it in rng.sample(range(60), 6))
    yield from ({"grown": n} for n in (1, 2, 3))
    yield from ({"save": rng.randint(1, 9), "bytes": rng.randint(0, 60000)} for _ in range(4))
    yield from ({"replace": n} for n in rng.sample(range(1, 25), 4))


ONE_OF_EACH = (5, 14, 19, 22, 27)


@pytest.mark.parametrize("which", [pytest.param(range(29), marks=pytest.mark.slow), ONE_OF_EACH],
                         ids=len)
def test_killed_runs_go_on_exactly(which, driver, data, whole, tmp_path):
    """Shot at 29 moments, or at one of each kind."""
    out, seconds = whole
    want, killed, them = losses(out), 0, list(moments(seconds))
    for i, moment in ((i, them[i]) for i in which):
        print(f"FAULT_SEED={SEED}, death {i}: {moment}")
        dead = str(tmp_path / str(i))
        first = driver.run(dead, moment, data_dir=data)
        assert first["code"] in (0, -signal.SIGKILL), first["log"]
        killed += first["code"] != 0
        again = driver.run(dead, data_dir=data)
        assert again["code"] == 0, again["log"]
        assert losses(dead) == want
        shutil.rmtree(dead)
    assert killed >= 0.7 * len(which)


def test_others_files_in_the_way(data, tmp_path):
    """A config.json that no run wrote is refused, and a folder of others' parts is left alone."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"model_type": "gpt2"}')
    for start in ("scratch", "auto"):
        done = train(data_dir=data, out_dir=str(tmp_path / "a"), init_from=start, check=False)
        assert done.returncode == 2 and "holds the config.json of something else" in done.stderr
    assert (tmp_path / "a" / "config.json").read_text() == '{"model_type": "gpt2"}'
    (tmp_path / "b" / "parts_catalog").mkdir(parents=True)
    (tmp_path / "b" / "parts_catalog" / "x").write_text("mine")
    train(data_dir=data, out_dir=str(tmp_path / "b"), max_iters=8, stages=[], eval_interval=8)
    assert (tmp_path / "b" / "parts_catalog" / "x").read_text() == "mine"


@pytest.mark.parametrize("config", ["", None])
def test_a_lost_config_and_half_a_log(config, driver, data, whole, tmp_path):
    """The checkpoint holds the settings, too. What a log lost is said; its next line stands alone."""
    out = tmp_path / "out"
    driver.run(str(out), {"iter": 29}, data_dir=data)
    (out / "config.json").unlink() if config is None else (out / "config.json").write_text(config)
    metrics = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(metrics[:len(metrics) // 3])
    done = train("--resume", out_dir=str(out), **dict.fromkeys(TINY))
    assert "going on with the settings in" in done.stderr + done.stdout
    assert "the lines that it lacks are lost" in (out / "log.txt").read_text()
    assert losses(str(out))[-1] == losses(whole[0])[-1]


def test_killed_again_and_again(driver, data, whole, tmp_path):
    """The same run shot every few iterations until it is through."""
    rng, dead = random.Random(SEED + 1), str(tmp_path / "out")
    for _ in range(30):
        if driver.run(dead, {"seconds": whole[1] * rng.uniform(0.3, 0.9)}, data_dir=data)["code"] == 0:
            break
    else:
        assert driver.run(dead, data_dir=data)["code"] == 0
    assert losses(dead) == losses(whole[0])


@pytest.mark.parametrize("optimizer", ["muon"])
def test_resume_with_another_optimizer(driver, data, optimizer, tmp_path):
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    assert driver.run(a, data_dir=data, optimizer=optimizer)["code"] == 0
    driver.run(b, {"iter": 29}, data_dir=data, optimizer=optimizer)
    assert driver.run(b, "", "--resume", data_dir=data, optimizer=optimizer)["code"] == 0
    assert losses(a) == losses(b)


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_signal_saves_and_says_how_to_go_on(number, data, whole, tmp_path):
    out = str(tmp_path / number.name)
    run = subprocess.Popen([sys.executable, "train.py", *flags(data_dir=data, out_dir=out)],
                           cwd=ROOT, env=ENV, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT)
    metrics = os.path.join(out, "metrics.jsonl")
    while not (os.path.exists(metrics) and '"iter": 15' in open(metrics).read()):
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.005)
    run.send_signal(number)
    said = run.communicate(timeout=60)[0]
    assert run.returncode == 0 and "--resume" in said, said
    train("--resume", data_dir=data, out_dir=out)
    assert losses(out) == losses(whole[0])


def test_compilers_are_deaf_to_the_signals_of_a_run():
    with compiler.undisturbed():
        child = subprocess.Popen([sys.executable, "-c", "print(1, flush=True); input(); print(2)"],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        child.send_signal(number)
    assert child.communicate("\n", timeout=30)[0] == "2\n" and child.returncode == 0
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}


BUSY = """
from run.compiler import undisturbed
from concurrent.futures import ThreadPoolExecutor
import signal
import time
def heard(number, frame):
    signal.signal(number, signal.SIG_DFL)
    print("heard", flush=True)
signal.signal(signal.SIGINT, heard)
feeder = ThreadPoolExecutor(1)
feeder.submit(int)
with undisturbed():
    print("busy", flush=True)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        pass
"""


def test_a_run_hears_what_its_compilers_do_not():
    """As in Run and Monitor: by its other thread, and a second Ctrl-C kills."""
    run = subprocess.Popen([sys.executable, "-c", BUSY], cwd=ROOT, env=ENV, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "busy\n"
    run.send_signal(signal.SIGINT)
    assert run.stdout.readline() == "heard\n"
    run.send_signal(signal.SIGINT)
    assert run.wait(timeout=70) == -signal.SIGINT


@pytest.mark.slow
def test_a_signal_to_all_processes_while_compiling(data, tmp_path):
    """As from a terminal or a scheduler, to the whole group, with the first graphs half made."""
    out, cache = str(tmp_path / "out"), tmp_path / "cache"
    run = subprocess.Popen(
        [sys.executable, "train.py", *flags(data_dir=data, out_dir=out, compile="block")], cwd=ROOT,
        env={**ENV, "TORCHINDUCTOR_CACHE_DIR": str(cache)}, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, process_group=0)
    while not (os.path.exists(os.path.join(out, "metrics.jsonl")) and
               b"g++" in subprocess.run(["pgrep", "-ag", str(run.pid)], capture_output=True).stdout):
        assert run.poll() is None, run.stdout.read()
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGTERM)
    said = run.communicate(timeout=120)[0]
    assert run.returncode == 0 and "--resume" in said, said


def test_damaged_checkpoints(driver, data, whole, tmp_path):
    """50 flipped bytes and 12 truncations: noticed, or harmless; never loaded wrong."""
    rng = random.Random(SEED + 2)
    print(f"FAULT_SEED={SEED}")
    good = os.path.join(whole[0], "ckpt.pt")
    want, raw = checkpoint.load(good), open(good, "rb").read()
    path, noticed = str(tmp_path / "bad.pt"), 0
    for i in range(62):
        bad = bytearray(raw)
        if i < 50:
            at = rng.randrange(len(raw))
            bad[at] ^= 1 << rng.randrange(8)
        else:
            bad = bad[:rng.randrange(len(raw))]
        with open(path, "wb") as f:
            f.write(bad)
        try:
            got = checkpoint.load(path)
        except UserError as e:
            assert path in str(e) and "\n" not in str(e)
            noticed += 1
        else:
            assert i < 50
            assert same(got, want)
    assert noticed >= 40


def same(a, b):
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_the_previous_checkpoint_is_used(driver, data, whole, tmp_path):
    out = str(tmp_path / "out")
    driver.run(out, {"iter": 38}, data_dir=data)
    newest = checkpoint.numbered(out)[0]
    with open(newest, "r+b") as f:
        f.truncate(1000)
    done = driver.run(out, "", "--resume", data_dir=data)
    assert done["code"] == 0 and newest in done["log"] and "damaged" in done["log"]
    assert losses(out) == losses(whole[0])


def test_no_code_runs_from_a_checkpoint(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)
    torch.save(dict(model_config=Evil()), tmp_path / "evil.pt")
    with pytest.raises(UserError, match="evil.pt"):
        checkpoint.load(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "pwned").exists()


def test_full_disk(driver, data, whole, tmp_path):
    out = str(tmp_path / "out")
    driver.run(out, {"iter": 38}, data_dir=data)
    before = checkpoint.load(out)
    full = driver.run(out, {"full": os.path.getsize(checkpoint.numbered(out)[0]) // 2}, data_dir=data)
    assert full["code"] == 2 and "cannot write the checkpoint" in full["log"], full["log"]
    assert "Traceback" not in full["log"]
    assert same(checkpoint.load(out), before)
    assert driver.run(out, data_dir=data)["code"] == 0
    assert losses(out) == losses(whole[0])


def test_a_disk_that_is_full_from_the_start(driver, data, tmp_path):
    done = driver.run(str(tmp_path / "out"), {"full": 600}, data_dir=data)
    assert done["code"] == 2 and "Traceback" not in done["log"], done["log"]


def test_a_cache_folder_that_cannot_be_made(driver, data, tmp_path):
    """One line, whatever --compile says: torch's optimizers make it too."""
    (tmp_path / "file").touch()
    env = dict(TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "file" / "cache"))
    settings = dict(data_dir=data, max_iters=1, warmup_iters=0, stages=[], env=env)
    for mode in ("none", "auto", "block"):
        done = driver.run(str(tmp_path / mode), compile=mode, **settings)
        assert done["code"] == 2 and len(done["log"].splitlines()) == 1, done["log"]
        assert "TORCHINDUCTOR_CACHE_DIR" in done["log"] and "unset it" in done["log"]


def test_no_compiler(driver, data, tmp_path):
    """--compile=block without a C++ compiler is one line."""
    env = dict(TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"), CXX="/nowhere/c++")
    done = driver.run(str(tmp_path / "out"), compile="block", data_dir=data, env=env)
    assert done["code"] == 2 and len(done["log"].splitlines()) == 1, done["log"]
    assert all(s in done["log"] for s in ("torch.compile does not work here", "apt-get install g++", "--compile=none"))


def test_out_of_memory_at_growth(driver, data, whole, tmp_path):
    out, huge = str(tmp_path / "out"), [dict(at=12, n_inner=48), dict(at=24, n_inner=10**9)]
    done = driver.run(out, {"memory": 16 << 30}, data_dir=data, stages=huge)
    assert done["code"] == 2 and "Traceback" not in done["log"], done["log"]
    assert all(s in done["log"] for s in ("stages[1]", "n_inner=1000000000", "GiB", "--resume"))
    assert checkpoint.load(out)["iter"] == 24
    assert driver.run(out, data_dir=data)["code"] == 0  # with the stages of the whole run
    assert losses(out) == losses(whole[0])


def test_a_second_signal_exits_at_once():
    from run.monitor import Monitor
    monitor, before = Monitor.__new__(Monitor), signal.getsignal(signal.SIGTERM)
    try:
        monitor.on_signal(signal.SIGTERM, None)
        assert monitor.stop == signal.SIGTERM
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_only_the_last_checkpoints_are_kept(whole):
    out, _ = whole
    assert len(checkpoint.numbered(out)) == 2
    assert checkpoint.load(os.path.join(out, "best.pt"))["best"] == min(
        e["val_loss"] for e in events(out, "eval"))


def test_two_runs_on_one_out_dir(driver, data, tmp_path):
    out = str(tmp_path / "out")
    lock = checkpoint.make_out_dir(out)
    done = driver.run(out, data_dir=data)
    assert done["code"] == 2 and "another run is writing" in done["log"]
    lock.close()


def test_resume_with_other_settings(driver, data, tmp_path):
    out = str(tmp_path / "out")
    driver.run(out, {"iter": 30}, data_dir=data)
    for settings, says in [
            (dict(n_embd=24), "n_embd"), (dict(seed=1), "seed"), (dict(batch_tokens=512), "batch_tokens"),
            (dict(model="bert"), "model"), (dict(max_iters=20, stages=[], warmup_iters=1), "max_iters"),
            (dict(stages=[]), "stages"), (dict(optimizer="muon"), "optimizer")]:
        done = driver.run(out, "", "--resume", **{"data_dir": data, **settings})
        assert done["code"] == 2 and f"error: {says}=" in done["log"], done["log"]
        assert "Traceback" not in done["log"]
    later = [dict(at=12, n_inner=48), dict(at=24, n_embd=32, n_head=2), dict(at=50, n_layer=2)]
    done = driver.run(out, "", "--resume", data_dir=data, stages=later, max_iters=70, log_interval=5)
    assert done["code"] == 0 and "resuming with max_iters=70, which was 60" in done["log"]
    assert events(out)[-1]["iter"] == 70 and events(out)[-1]["n_layer"] == 2


def no_file(data, name):
    os.remove(os.path.join(data, name))


def meta(data, **change):
    path = os.path.join(data, "meta.json")
    with open(path) as f:
        content = {**json.load(f), **change}
    with open(path, "w") as f:
        json.dump(content, f)


def write(data, name, content):
    with open(os.path.join(data, name), "wb") as f:
        f.write(content)


# what is wrong -> (settings, what is done to the data before, what the one line must say)
BAD_INPUT = {
    "misspelt key": (dict(n_embed=4), None, ["n_embed", "did you mean n_embd"]),
    "unknown key": (dict(zzz=4), None, ["zzz", "no such setting"]),
    "wrong type": (dict(n_embd="big"), None, ["n_embd='big'", "whole number"]),
    "wrong type of stages": (dict(stages=[1]), None, ["stages[0]=1", "dict(at="]),
    "unknown choice": (dict(schedule="linear"), None, ["schedule", "'wsd'"]),
    "out of range": (dict(dropout=2.0), None, ["dropout=2.0", "at most"]),
    "not finite": (dict(learning_rate="1e999"), None, ["learning_rate", "finite"]),
    "stages out of order": (dict(stages=[dict(at=30, n_inner=48), dict(at=10, n_inner=64)]), None,
                            ["stages[1]", "at=10", "iteration 38"]),
    "stage during a ramp": (dict(stages=[dict(at=30, n_inner=48), dict(at=35, n_inner=64)]), None,
                            ["stages[1]", "ramp"]),
    "stage shrinks": (dict(stages=[dict(at=30, n_inner=16)]), None,
                      ["stages[0]", "n_inner=16", "n_inner=32"]),
    "stage misspelt": (dict(stages=[dict(at=30, n_iner=64)]), None, ["n_iner", "n_inner"]),
    "stage too late": (dict(stages=[dict(at=300, n_inner=64)]), None, ["at=300", "max_iters=60"]),
    "stage without at": (dict(stages=[dict(n_inner=64)]), None, ["stages[0]", "at=ITERATION"]),
    "batch and block": (dict(batch_tokens=100), None, ["batch_tokens=100", "block_size=32"]),
    "batch and ranks": (dict(micro_batch=3), None, ["micro_batch=3", "micro_batch=2 would"]),
    "no data folder": (dict(data_dir="/nowhere/data"), None, ["/nowhere/data", "prepare.py"]),
    "missing bin": ({}, lambda d: no_file(d, "val.bin"), ["val.bin", "No such file"]),
    "empty bin": ({}, lambda d: write(d, "train.bin", b""), ["train.bin", "empty"]),
    "short bin": ({}, lambda d: write(d, "train.bin", b"abc"), ["train.bin", "3 tokens", "33"]),
    "odd bin": ({}, lambda d: (meta(d, dtype="uint16"), write(d, "train.bin", b"a" * 999)),
                ["train.bin", "999 bytes"]),
    "other tokens than said": ({}, lambda d: meta(d, train_tokens=5), ["train.bin", "says 5", "cut short"]),
    "layers beyond measure": (dict(n_layer=10**9), None, ["n_layer", "at most 10000"]),
    "bad meta": ({}, lambda d: write(d, "meta.json", b"{"), ["meta.json", "prepare"]),
    "id beyond vocabulary": ({}, lambda d: meta(d, vocab_size=40), ["train.bin", "token id 95",
                                                                   "has 64"]),
    "vocab_size too small": (dict(vocab_size=100), None, ["vocab_size=100", "256"]),
    "out_dir is a file": (dict(out_dir="/dev/null/out"), None, ["/dev/null/out", "--out_dir"]),
    "no such device": (dict(device="cuda"), None, ["device=cuda", "--device=cpu"]),
    "nonsense device": (dict(device="gpu"), None, ["device=gpu"]),
    "float16 on a CPU": (dict(dtype="float16"), None, ["dtype=float16", "CUDA"]),
    "resume from nothing": (dict(init_from="resume"), None, ["holds no checkpoint"]),
    "init_from": (dict(init_from="gpt5"), None, ["init_from='gpt5'", "scratch"]),
    "bert without sentences": (dict(model="bert"), lambda d: meta(
        d, tokenizer=dict(name="char", vocab=[chr(i) for i in range(256)])), ["--bert"]),
}


@pytest.mark.parametrize("what", BAD_INPUT)
def test_bad_input(driver, what, tmp_path):
    settings, spoil, says = BAD_INPUT[what]
    data, out = str(make_data(tmp_path / "data", 4000)), str(tmp_path / "out")
    if spoil:
        spoil(data)
    out = settings.get("out_dir", out)
    done = driver.run(str(tmp_path / "log"), "", **{"data_dir": data, "init_from": "scratch", "out_dir": out, **settings})
    assert done["code"] == 2, done["log"]
    lines = done["log"].strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), done["log"]
    assert all(s in lines[0] for s in says), lines[0]
    assert not os.path.exists(os.path.join(out, "metrics.jsonl"))


def test_a_token_beyond_the_vocabulary_deep_in_the_file(driver, data, tmp_path):
    """What the check at opening cannot see, the loader sees in the batch that has it."""
    from data.loader import Loader
    from run.settings import from_dict
    folder = str(make_data(tmp_path / "data", 4000))
    c = from_dict(dict(data_dir=folder, block_size=32, batch_tokens=256, micro_batch=4))
    loader = Loader(c, dict(dtype="uint8", vocab_size=256), 128)
    loader.split["train"] = loader.split["train"].copy()
    loader.split["train"][:] = 200
    with pytest.raises(UserError, match="train.bin: holds token id 200"):
        loader.batch(3)


def test_a_run_is_not_overwritten(driver, data, whole):
    done = driver.run(whole[0], data_dir=data, init_from="scratch")
    assert done["code"] == 2 and "holds a run already" in done["log"]


def test_another_tokenizers_data(driver, data, whole, tmp_path):
    other = str(make_data(tmp_path / "data"))
    meta(other, tokenizer=dict(name="gpt2", bert=False), vocab_size=250)
    done = driver.run(whole[0], "", "--resume", data_dir=other)
    assert done["code"] == 2 and "tokenizer" in done["log"]


def test_fuzzed_settings():
    """Whatever is typed: a TrainConfig, or a UserError of one line."""
    hypothesis = pytest.importorskip("hypothesis")
    from hypothesis import strategies as st

    from run.arguments import from_args
    from run.settings import TrainConfig
    keys = st.sampled_from([*TrainConfig.__dataclass_fields__, "n_embed", "stage"])
    value = st.one_of(st.integers().map(str), st.floats().map(str), st.text(max_size=20),
                      st.sampled_from(["true", "[]", "[dict(at=5)]", "[dict(at=5,n_embd=999)]",
                                       "[{'at': 1, 'n_layer': 9}]", "dict(at=1)", "((((", "1e400",
                                       "[dict(**a)]", "[dict(at=True, n_layer=9)]"]))
    arg = st.one_of(st.builds("--{}={}".format, keys, value), st.text(max_size=10))

    @hypothesis.settings(max_examples=200, deadline=None)
    @hypothesis.given(st.lists(arg, max_size=5))
    def check(args):
        try:
            from_args(args)
        except UserError as e:
            assert str(e) and "\n" not in str(e)
    check()


@pytest.mark.parametrize("streams, code", [(">&-", 0), (">&- 2>&-", 0), ("<&- >&- 2>&-", 0), (">/dev/full", 2),
                                           ("2>/dev/full", 0), (">/dev/full 2>&1", 2), ("| head -c 0", 0)])
def test_streams_that_are_closed_or_full_cost_no_work(streams, code, tmp_path):
    (tmp_path / "x.txt").write_text("a few words\n" * 99)
    done = subprocess.run(f"{sys.executable} {ROOT}/data/shakespeare_char/prepare.py --input x.txt --out o "
                          + streams, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == code and done.stderr.count("\n") <= 1 and "Traceback" not in done.stderr
    assert sorted(os.listdir(tmp_path / "o")) == ["meta.json", "train.bin", "val.bin"]


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / "x")
    for content in ("old", "new"):
        with written(path) as f:
            f.write(content)
    with pytest.raises(OSError, match="x"), written(path) as f:
        f.write("half")
        raise OSError(28, "No space left on device")
    with pytest.raises(OSError, match="gone/x"), written(str(tmp_path / "gone" / "x")):
        pass
    assert open(path).read() == "new" and os.listdir(tmp_path) == ["x"]
    with written("/dev/null") as f:  # a device stays one
        f.write("x")
    assert not os.path.isfile("/dev/null")


def test_what_ends_a_script_is_one_line(capsys):
    for error, code, says in ((KeyboardInterrupt(), 130, "interrupted"), (MemoryError(), 2, "out of memory"),
                              (OSError(28, "No space left on device", "f"), 2, "f: No space left .*make room"),
                              (RuntimeError("CUDA out of memory"), 2, "out of memory"), (UserError("a\nb"), 2, "a b")):
        @exits_cleanly
        def main(error=error):
            raise error
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == code and re.fullmatch(f"error: {says}.*\n", capsys.readouterr().err)
