"""sample.py, and what every script does with arguments, texts, models and terminals."""
import io
import os
import subprocess
import sys

import pytest
import torch
from runs import ENV, ROOT
from test_evaluate import CHAR, main_in_process, save

import sample
from run.errors import UserError
from run.hf import open_model
from tools import evaluate, export, finetune, plot


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return save("gpt", tmp_path_factory.mktemp("gpt"))


def test_samples(gpt, monkeypatch, capsys):
    args = [gpt, "--prompt=ab", "--num_samples=3", "--max_new_tokens=20", "--device=cpu"]
    first, again, other = (main_in_process(monkeypatch, capsys, sample, *args, *more)
                           for more in ([], [], ["--seed=2"]))
    assert first == again and first != other and first[0] == 0
    assert first[1].count("-" * 80) == 3 and first[1].startswith("ab")


def test_a_prompt_from_a_file(gpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("from a file")
    code, out, _ = main_in_process(monkeypatch, capsys, sample, gpt, "--prompt=@~/p.txt",
                                   "--max_new_tokens=0")
    assert code == 0 and out.startswith("from a file\n---")


@pytest.mark.parametrize("args, said", [
    (["--num_samples=0"], "--num_samples: 0: must be a whole number, at least 1"),
    (["--num_samples=-3"], "--num_samples: -3: must be"),
    (["--max_new_tokens=-1"], "--max_new_tokens: -1: must be"),
    (["--temperature=nan"], "--temperature: nan: must be"),
    (["--temperature=-1"], "--temperature: -1: must be"),
    (["--temperature=1e-320"], "cannot be sampled"),
    (["--top_k=-1"], "--top_k: -1: must be"), (["--top_k=x"], "--top_k: x: must be a whole number, at least 0"),
    (["--device=cuda:99"], "--device=cuda:99: not on this machine, which has 0 CUDA devices"),
    (["--prompt="], "--prompt is empty"), (["--prompt=@{tmp}/latin.txt"], "not UTF-8 text"),
    (["--prompt=@{tmp}/none.txt"], "none.txt: No such file"), (["--no_such"], "see --help"),
    (["--num_samples"], "expected one argument: see --help")])
def test_bad_arguments(args, said, gpt, tmp_path, monkeypatch, capsys):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    args = [a.format(tmp=tmp_path) for a in args]
    code, out, err = main_in_process(monkeypatch, capsys, sample, gpt, *args)
    assert code == 2 and said in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("script", [sample, evaluate, export, finetune, plot])
def test_one_front_door(script, tmp_path, monkeypatch, capsys):
    """Every script: no arguments, unknown ones, or nothing there: a line and exit code 2."""
    nothing = str(tmp_path / "none")
    more = {evaluate: [f"--tasks=ppl:{__file__}"], finetune: ["SST-2"], export: [nothing + "2"]}
    for args in ([], ["--what"], [nothing, *more.get(script, [])]):
        code, _, err = main_in_process(monkeypatch, capsys, script, *args)
        assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_bert_does_not_write(tmp_path, monkeypatch, capsys):
    code, _, err = main_in_process(monkeypatch, capsys, sample, save("bert", tmp_path))
    assert code == 2 and "is a bert model" in err


@pytest.mark.parametrize("change, said", [
    (lambda s: s.pop("model"), "KeyError: 'model'"), (lambda s: s.pop("config"), "KeyError"),
    (lambda s: s.pop("meta"), "lacks meta"), (lambda s: s.update(meta=[1]), "lacks meta"),
    (lambda s: s.update(model_config=3), "TypeError"), (lambda s: s.update(model=[]), "TypeError"),
    (lambda s: s["model_config"].update(n_embd=24), "size mismatch"),
    (lambda s: s["model_config"].update(n_embd="24"), "not a whole model"),
    (lambda s: s["model_config"].update(n_embd=-1), "not a whole model"),
    (lambda s: s["config"].update(model="mamba"), "KeyError: 'mamba'"),
    (lambda s: s["model"].pop("wte.weight"), "Missing key"),
    (lambda s: s.update(meta={}), "names no tokenizer")])
def test_checkpoints_of_wrong_contents(change, said, gpt, tmp_path, monkeypatch, capsys):
    state = torch.load(gpt)
    change(state)
    torch.save(state, tmp_path / "c.pt")
    code, _, err = main_in_process(monkeypatch, capsys, sample, tmp_path / "c.pt")
    assert code == 2 and said in err and err.count("\n") == 1


def test_a_model_as_a_whole_is_no_checkpoint(gpt, tmp_path):
    torch.save([1], tmp_path / "c.pt")
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        open_model(str(tmp_path / "c.pt"))


def test_a_terminal_without_the_characters(tmp_path, monkeypatch):
    """What stdout cannot encode is escaped, not a traceback."""
    meta = dict(CHAR, tokenizer=dict(name="char", vocab=list("\n é")))
    path = save("gpt", tmp_path, meta, vocab_size=64)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "argv", ["sample.py", path, "--prompt=é", "--max_new_tokens=0"])
    sample.main()
    out.flush()
    assert out.buffer.getvalue().startswith(b"\\xe9\n")


def test_a_reader_that_goes_away(gpt):
    """`| head` ends it quietly: in a process, for it is about how that ends."""
    with subprocess.Popen([sys.executable, "sample.py", gpt, "--max_new_tokens=5", "--device=cpu",
                           "--num_samples=1200"], cwd=ROOT, env=ENV, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as p:
        p.stdout.readline()
        p.stdout.close()
        assert p.stderr.read() == b""
