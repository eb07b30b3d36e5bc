"""A folder with one of each kind of file that our scripts read, for the fuzz test."""
import contextlib
import io
import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from runs import TINY, make_data, train_here
from test_evaluate import META as BYTES
from test_evaluate import save
from test_frontier import TINY as STUDY
from test_frontier import play_all

from lab.campaign import Campaign
from lab.frontier import Study
from run import hf
from tools.export import export

SMALL = {**TINY, "stages": [], "max_iters": 4, "warmup_iters": 1, "eval_interval": 2}
WORDS = dict(tokenizer=dict(name="wordpiece", vocab=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"]))
VOCAB = "\n".join(WORDS["tokenizer"]["vocab"]) + "\n"
LAW = dict(E=1.7, A=406.4, B=410.7, a=0.34, b=0.28)
CAMPAIGN = dict(settings=dict(SMALL, data_dir="data"), seeds=[1, 2], contestants={
    "scratch": dict(sweep=dict(learning_rate=[1e-3, 2e-3, 4e-3])),
    "grown": dict(against="scratch", stages=[dict(at=1, n_inner=48, ramp_iters=1)])})
LINES = [dict(query="a", choices=["b", "c"], gold=1), dict(context_options=["a", "b"], continuation="c", gold=0)]
QUESTION = dict(id="q", question="who?", answers=[dict(text="fox", answer_start=4)])


def python(values):
    """A file of assignments."""
    return "".join(f"{k} = {v!r}\n" for k, v in values.items())


def make_world():
    """In the current folder, which is empty."""
    for name in ("CoLA", "STS-B", "squad", "texts", "chars", "shards", "search"):
        os.mkdir(name)
    make_data(Path("data"))
    for name in ("run", "other"):
        train_here(**{**SMALL, "data_dir": "data", "out_dir": name})
    save("bert", Path("saved"), BYTES)
    os.rename("saved/ckpt.pt", "bert.pt")
    for name, model, meta in (("hf", "run", None), ("bert", "bert.pt", WORDS)):
        model, info = hf.open_model(model)
        with contextlib.redirect_stdout(io.StringIO()):
            export(model, meta or info["meta"], name)
    os.remove("bert/nanogrow.json")
    save("llama", Path("saved"), BYTES)
    export(hf.open_model("saved/ckpt.pt")[0], BYTES, "llama")
    for split in ("train", "val"):
        shutil.copy(f"data/{split}.bin", f"chars/{split}.bin")
        tokens = torch.randint(100, (2000,), dtype=torch.int16).numpy().tobytes()
        Path(f"shards/a_{split}_0.bin").write_bytes(
            torch.tensor([20240520, 1, 2000] + [0] * 253, dtype=torch.int32).numpy().tobytes() + tokens)
        Path(f"CoLA/{split}.tsv".replace("val", "dev")).write_text("a\t1\t\tthe cat\na\t0\t\tcat the\n" * 3)
        Path(f"STS-B/{split}.tsv".replace("val", "dev")).write_text("sentence1\tsentence2\tscore\na\tb\t1.5\n" * 3)
        Path(f"squad/{split}-v1.1.json".replace("val", "dev")).write_text(json.dumps(dict(data=[dict(
            paragraphs=[dict(context="the fox ran", qas=[QUESTION])])])))
    Path("chars/meta.pkl").write_bytes(pickle.dumps(dict(itos={i: chr(i) for i in range(256)}, stoi={})))
    Path("x.txt").write_text("The cat sat.\n\nIt ran.\n\n" * 20)
    Path("texts/y.txt").write_text("More.\n\n" * 9)
    Path("vocab.txt").write_text(VOCAB)
    Path("x.jsonl").write_text("".join(json.dumps(dict(text=f"a {i}")) + "\n" for i in range(300)))
    Path("law.json").write_text(json.dumps(LAW))
    Path("choice.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    Path("lambada.jsonl").write_text(json.dumps(dict(context="a b", continuation="c")) + '\n{"text": "a b c"}\n')
    Path("base.py").write_text(python(dict(SMALL, stages=[dict(at=2, n_inner=48, ramp_iters=1)], n_layer=1)))
    Path("search/state.json").write_text(json.dumps(dict(args=["base.py"], goal=None, spent=1.0)))
    Path("speedrun.py").write_text(python(CAMPAIGN))
    study = dict(STUDY, settings=dict(STUDY["settings"], data_dir="data"))
    Path("frontier.py").write_text(python(study))
    play_all(Study(study, "study"))
    campaign = Campaign(CAMPAIGN, "campaign")
    runs = campaign.sweeps() + [r for seed in (1, 2) for c in campaign.contestants.values() for r in
                                [campaign.run(c, {"learning_rate": 2e-3} if c.sweep else {}, seed)]]
    for r in runs:
        os.makedirs(r.config.out_dir, exist_ok=True)
        Path(r.path("config.json")).write_text(json.dumps(asdict(r.config)))
        shutil.copy("run/metrics.jsonl", r.path("metrics.jsonl"))
    os.symlink("/dev/full", "full")
