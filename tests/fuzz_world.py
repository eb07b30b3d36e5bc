"""
For the fuzz test: a folder with one of each kind of file that our scripts read, every script, and
every file with a script that reads it; and what may be typed, and become of a file.
"""
import contextlib
import io
import json
import os
import pickle
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from runs import TINY, flags, make_data, train_here
from test_evaluate import META as BYTES
from test_evaluate import save
from test_frontier import TINY as STUDY
from test_frontier import play_all

from lab.campaign import Campaign
from lab.frontier import Study
from run import trained
from run.packed import pack
from tools.export import export

SMALL = {**{k: v for k, v in TINY.items() if k != "ramp_iters"}, "stages": [], "max_iters": 4, "warmup_iters": 1, "eval_interval": 2}
WORDS = dict(tokenizer=dict(name="wordpiece", vocab=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"]))
VOCAB = "\n".join(WORDS["tokenizer"]["vocab"]) + "\n"
LAW = dict(E=1.7, A=406.4, B=410.7, a=0.34, b=0.28)
CAMPAIGN = dict(settings=dict(SMALL, data_dir="data"), seeds=[1, 2], contestants={
    "scratch": dict(sweep=dict(learning_rate=[1e-3, 2e-3, 4e-3])),
    "grown": dict(against="scratch", stages=[dict(at=1, n_inner=48, ramp_iters=1)])})
LINES = [dict(query="a", choices=["b", "c"], gold=1), dict(context_options=["a", "b"], continuation="c", gold=0)]
TINY_FLAGS = flags(**SMALL, data_dir="data", out_dir="new/out")
# every script: what is right to type (for train.py, plan, ... also any setting)
SCRIPTS = {
    "train.py": TINY_FLAGS,
    "sample.py": ["run", "--prompt=ab", "--max_new_tokens=2"],
    "data/text/prepare.py": ["--input", "x.txt", "texts", "--out=new/d", "--val-fraction=0.3", "--workers=1"],
    "data/shakespeare_char/prepare.py": ["--input=x.txt", "--out=new/d"],
    "data/pystdlib/prepare.py": ["--out=new/d"],
    "data/openwebtext/prepare.py": ["--out=new/d", "--workers=1"],
    "lab/plan.py": ["base.py", *TINY_FLAGS],
    "lab/speedrun.py": ["speedrun.py", "--out=new/c", "--seeds=1,2", "--only=scratch"],
    "lab/frontier.py": ["frontier.py", "--out=new/f"],
    "lab/saturation.py": ["saturation.py", "--plan", "--out=new/s"],
    "run/packed.py": ["campaign", "new/packed"],
    "lab/law.py": ["--params=7e9", "--tokens=35e9", "--law=law.json", "--small", "1e6", "2e6"],
    "tools/evaluate.py": ["run", "--tasks=ppl:x.txt,lambada:lambada.jsonl,choice:choice.jsonl", "--save=new/e.json"],
    "tools/export.py": ["run", "new/hf"],
    "tools/upscale.py": ["hf", "new/up", "--n_layer=3"],
    "tools/plot.py": ["run", "other", "--save=new/p.png"]}


def case(files, script, *args):
    return pytest.param(files.split(), script, list(args), id=f"{files.replace('/', ' ')} {script}")


# every file that is read: its names, and a script that reads it
READS = [
    case("data/meta.json data/train.bin", "train.py", *TINY_FLAGS),
    case("chars/meta.pkl", "train.py", *TINY_FLAGS[:-2], "--out_dir=new/out", "--data_dir=chars"),
    case("shards/a_train_0.bin", "train.py", *TINY_FLAGS[:-2], "--out_dir=new/out", "--data_dir=shards"),
    case("run/config.json run/ckpt_0000004.pt", "train.py", "--resume", "run", "--max_iters=5"),
    case("run/ckpt_0000004.pt", "train.py", *TINY_FLAGS, "--init_from=run/ckpt_0000004.pt"),
    case("hf/config.json hf/nanogrow.json hf/model.safetensors", "train.py", "--init_from=hf", "--data_dir=data",
         "--out_dir=new/out", *flags(**{k: v for k, v in SMALL.items() if k[:2] != "n_" and k not in (
             "head_dim", "block_size", "batch_tokens")})),
    case("run/ckpt_0000004.pt", "sample.py", "run/ckpt_0000004.pt", "--max_new_tokens=2"),
    case("x.txt", "sample.py", "run", "--max_new_tokens=1", "--prompt=@x.txt"),
    case("hf/config.json hf/nanogrow.json", "sample.py", "hf", "--max_new_tokens=2"),
    case("llama/config.json", "sample.py", "llama", "--max_new_tokens=2"),
    case("bert/config.json bert/tokenizer.json bert/tokenizer_config.json bert/vocab.txt", "tools/export.py",
         "bert", "new/hf"),
    case("bert.pt", "tools/export.py", "bert.pt", "new/hf"),
    case("choice.jsonl", "tools/evaluate.py", "run", "--tasks=choice:choice.jsonl", "--save=new/e.json"),
    case("lambada.jsonl", "tools/evaluate.py", "run", "--tasks=lambada:lambada.jsonl", "--save=new/e.json"),
    case("run/metrics.jsonl", "tools/plot.py", "run", "other", "--save=new/p.png"),
    case("law.json", "lab/law.py", *SCRIPTS["lab/law.py"]),
    case("speedrun.py", "lab/speedrun.py", "speedrun.py", "--plan", "--out=new/c"),
    case("campaign/grown/seed_1/config.json campaign/grown/seed_1/metrics.jsonl", "lab/speedrun.py",
         "speedrun.py", "--report", "--out=campaign"),
    case("frontier.py", "lab/frontier.py", "frontier.py", "--plan", "--out=new/f"),
    case("study/scratch/two/rate_0.02/seed_1/tokens_5_decay_0.35/metrics.jsonl", "lab/frontier.py", "frontier.py",
         "--report", "--out=study"),
    case("law.json run/config.json run/metrics.jsonl", "lab/plan.py", "base.py", "--dry", "--flops=1e12", "--law=law.json",
         "--small=run"),
    case("saturation.py", "lab/saturation.py", "saturation.py", "--plan", "--out=new/s"),
    case("packed/runs.tar.xz", "run/packed.py", "packed", "new/packed"),
    case("campaign/grown/seed_1/config.json", "run/packed.py", "campaign", "new/packed"),
    case("base.py", "train.py", "base.py", "--out_dir=new/out", "--data_dir=data"),
    case("vocab.txt x.txt", "data/text/prepare.py", "--input=x.txt", "--tokenizer=wordpiece", "--vocab=vocab.txt",
         "--out=new/d", "--val-fraction=0.3", "--workers=1"),
    case("hf/config.json hf/model.safetensors", "tools/upscale.py", "hf", "new/up", "--n_layer=3"),
    case("x.jsonl", "data/text/prepare.py", "--input=x.jsonl", "--out=new/d"),
    case("x.txt", "data/shakespeare_char/prepare.py", "--input=x.txt", "--out=new/d")]


def python(values):
    """A file of assignments."""
    return "".join(f"{k} = {v!r}\n" for k, v in values.items())


def make_world():
    """In the current folder, which is empty."""
    for name in ("texts", "chars", "shards"):
        os.mkdir(name)
    make_data(Path("data"))
    for name in ("run", "other"):
        train_here(**{**SMALL, "data_dir": "data", "out_dir": name})
    save("bert", Path("saved"), BYTES, n_head=3)
    os.rename("saved/ckpt.pt", "bert.pt")
    for name, model, meta in (("hf", "run", None), ("bert", "bert.pt", WORDS)):
        model, info = trained.open_model(model)
        with contextlib.redirect_stdout(io.StringIO()):
            export(model, meta or info["meta"], name)
    os.remove("bert/nanogrow.json")
    save("llama", Path("saved"), BYTES, n_head=3)
    export(trained.open_model("saved/ckpt.pt")[0], BYTES, "llama")
    for split in ("train", "val"):
        np.fromfile(f"data/{split}.bin", np.uint8).astype(np.uint16).tofile(f"chars/{split}.bin")
        tokens = torch.randint(100, (2000,), dtype=torch.int16).numpy().tobytes()
        Path(f"shards/a_{split}_0.bin").write_bytes(
            torch.tensor([20240520, 1, 2000] + [0] * 253, dtype=torch.int32).numpy().tobytes() + tokens)
    Path("chars/meta.pkl").write_bytes(pickle.dumps(dict(itos={i: chr(i) for i in range(256)}, stoi={})))
    Path("x.txt").write_text("The cat sat.\n\nIt ran.\n\n" * 20)
    Path("texts/y.txt").write_text("More.\n\n" * 9)
    Path("vocab.txt").write_text(VOCAB)
    Path("x.jsonl").write_text("".join(json.dumps(dict(text=f"a {i}")) + "\n" for i in range(300)))
    Path("law.json").write_text(json.dumps(LAW))
    Path("choice.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    Path("lambada.jsonl").write_text(json.dumps(dict(context="a b", continuation="c")) + '\n{"text": "a b c"}\n')
    Path("base.py").write_text(python(dict(SMALL, stages=[dict(at=2, n_inner=48, ramp_iters=1)], n_layer=1)))
    Path("speedrun.py").write_text(python(CAMPAIGN))
    study = dict(STUDY, settings=dict(STUDY["settings"], data_dir="data"))
    Path("frontier.py").write_text(python(study))
    Path("saturation.py").write_text(python(dict(
        settings=study["settings"], small=dict(n_layer=1), tokens=[5, 10], extras=[0.5], larger={"two": dict(n_layer=2)},
        target="two", rates=dict(learning_rate=1e-3), peaks=[0.5], tune_seed=1, seeds=[2])))
    play_all(Study(study, "study"))
    campaign = Campaign(CAMPAIGN, "campaign")
    runs = campaign.sweeps() + [r for seed in (1, 2) for c in campaign.contestants.values() for r in
                                [campaign.run(c, {"learning_rate": 2e-3} if c.sweep else {}, seed)]]
    for r in runs:
        os.makedirs(r.config.out_dir, exist_ok=True)
        Path(r.path("config.json")).write_text(json.dumps(asdict(r.config)))
        shutil.copy("run/metrics.jsonl", r.path("metrics.jsonl"))
    shutil.copytree("campaign", "packed")
    pack(Path("packed"))
    os.symlink("/dev/full", "full")


# -----------------------------------------------------------------------------
# what is typed

NASTY = ["", " ", "0", "-1", "1", "2", "1.5", "1e400", "nan", "-inf", "9" * 400, "1000000000", "1e15", "1e-320",
         "true", "None", "[]", "[1]", "[[", "{", "a,b", ":", ",", "a:b", "learning_rate:1,2", "é", "\udcff", "a\nb",
         "~", "~/h/x", "~no_such_user/x", "x.txt", "texts", "gone/x", "full", "run", "hf", "bert.pt", "a b", "@", "@x.txt",
         "@gone", "%s", "{}", "cuda", "cuda:9", "meta", "cpu", "auto", "-", "--", "mlm", "ppl:", "dict(at=1)",
         "[dict(at=1, n_layer=9)]", "[dict(at=1, n_layer=1000000000)]", "texts", "[{1: 2}]", "data/meta.json"]
WORD = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_characters="/\0"), max_size=6),
                 st.integers(-2, 99).map(str))


# -----------------------------------------------------------------------------
# what is read

VALUES = st.one_of(st.none(), st.booleans(), st.integers(-2, 9), st.sampled_from([
    10**400, -10**18, 2**63, 1e300, float("nan"), float("inf"), 0.5, "", "x", "\0", "é" * 99, "\ud800", "../x", [], {}, [[]],
    [None], {"": 1}, "nan", "1", [1, 2], {"name": "x"}, {"name": ["x"]}]), st.text(max_size=5))


def paths_in(value, at=()):
    """The way to each value within a value of JSON."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, v in list(inner)[:40]:
        yield from paths_in(v, (*at, key))


def changed(draw, value):
    """A value of JSON with another somewhere in it, or without something."""
    at = draw(st.sampled_from(list(paths_in(value))))
    new, drop = draw(VALUES), draw(st.booleans())
    return put(value, at, new, drop)


def put(value, at, new, drop):
    if not at:
        return new
    inner = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1 and drop:
        del inner[at[0]]
    else:
        inner[at[0]] = put(inner[at[0]], at[1:], new, drop)
    return type(value)(inner) if isinstance(value, tuple) else inner


def spoilt_bytes(draw, raw):
    at = draw(st.integers(0, len(raw)))
    return draw(st.sampled_from([
        raw[:at], b"", raw[:at] + b"\0" + raw[at:], raw[:at] + b"\xff\xfe" + raw[at + 1:], raw + raw, b"\xef\xbb\xbf" + raw,
        raw.decode("latin1").encode("utf-16"), b"[" * 100_000, raw.replace(b"\n", b"\r\n"), bytes(999),
        raw[:at] + bytes([raw[at % len(raw)] ^ 4]) + raw[at + 1:], b"\n" + raw, raw[:at] + b"9" * 5000 + raw[at:]]))


@st.composite
def spoilt(draw, path, raw):
    """The bytes of a file, changed: somewhere in its structure where it has one, else anywhere."""
    if draw(st.integers(0, 2)) == 0:
        return spoilt_bytes(draw, raw)
    if path.endswith((".json", ".jsonl")):
        lines = raw.decode().splitlines() if path.endswith("l") else [raw.decode()]
        at = draw(st.integers(0, len(lines) - 1))
        lines[at] = json.dumps(changed(draw, json.loads(lines[at])), ensure_ascii=draw(st.booleans()))
        return "".join(line + "\n" for line in lines).encode(errors="surrogatepass")
    if path.endswith(".py"):
        names = {}
        exec(raw, {}, names)
        new = changed(draw, names)
        return python(new).replace("nan", "float('nan')").replace("inf", "float('inf')").encode(
            errors="surrogatepass") if isinstance(new, dict) else repr(new).encode(errors="surrogatepass")
    if path.endswith(".pt"):
        out = io.BytesIO()
        torch.save(changed(draw, torch.load(io.BytesIO(raw), weights_only=True)), out)
        return out.getvalue()
    if path.endswith((".tsv", ".txt")):
        cells = re.split(rb"([\t\n])", raw)
        cells[draw(st.integers(0, len(cells) - 1))] = draw(WORD).encode(errors="surrogateescape")
        return b"".join(cells)
    return spoilt_bytes(draw, raw)
