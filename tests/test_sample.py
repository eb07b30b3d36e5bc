"""sample.py, and what every script does with arguments, texts, models and terminals."""
import io
import os
import re
import subprocess
import sys

import pytest
import torch
from runs import ENV, ROOT
from test_evaluate import CHAR, main_in_process, save

import sample
from base.errors import UserError
from run.trained import open_model
from tools import evaluate, export, plot


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return save("gpt", tmp_path_factory.mktemp("gpt"))


def test_samples(gpt, monkeypatch, capsys):
    args = [gpt, "--prompt=ab", "--num_samples=3", "--max_new_tokens=20", "--device=cpu"]
    first, again, other = (main_in_process(monkeypatch, capsys, sample, *args, *more)
                           for more in ([], [], ["--seed=2"]))
    assert first[:2] == again[:2] and first[1] != other[1] and first[0] == 0
    assert first[1].count("-" * 80) == 3 and first[1].startswith("ab")
    assert re.fullmatch(r"\d+ tokens in [\d.]+ s, [\d,]+ a second\n", first[2])


def test_a_hugging_face_folder(gpt, tmp_path, monkeypatch, capsys):
    """The export of a checkpoint writes what the checkpoint does."""
    pytest.importorskip("safetensors")
    path, hf = save("gpt", tmp_path, n_head=3), str(tmp_path / "hf")
    assert main_in_process(monkeypatch, capsys, export, path, hf)[0] == 0
    a, b = (main_in_process(monkeypatch, capsys, sample, p, "--max_new_tokens=9", "--temperature=0",
                            "--device=cpu") for p in (path, hf))
    assert a[:2] == b[:2] and a[0] == 0


def test_each_row_stops_by_itself(gpt):
    """A row ends at the id that stops it; the others are what they are without one."""
    model, _ = open_model(gpt)
    idx = torch.tensor([[1, 2, 3]]).expand(6, -1)

    def rows(**more):
        torch.manual_seed(0)
        return model.generate(idx, 20, temperature=1.5, **more)
    free = rows()
    stop = free[0, 7].item()
    got = rows(stop=stop)
    for had, row in zip(free.tolist(), got.tolist()):
        end = had.index(stop, 3) + 1 if stop in had[3:] else len(had)
        assert row[:end] == had[:end][:len(row)] and set(row[end:]) <= {stop}
    assert got.size(1) == 23 or (got[:, -1] == stop).all()
    alone = model.generate(idx[:1], 20, temperature=0, stop=model.generate(idx[:1], 1, 0)[0, -1].item())
    assert alone.shape == (1, 4)


def test_a_document_ends_and_controls_are_seen(gpt, monkeypatch, capsys):
    """Nothing from the end of a document on; no byte that a terminal obeys; newline and tab stay."""
    def generate(self, idx, n, *how):
        assert idx.shape == (2, 2) and how[-1] == 0  # all samples at once; NUL ends bytes
        ends = torch.tensor([list(b"x\n\ty\x1b[2J\r\x7f\0\0\0"), list(b"abc\0efghijk\x07\x9b")])
        return torch.cat((idx, ends), 1)
    monkeypatch.setattr(sample.GPT, "generate", generate)
    code, out, err = main_in_process(monkeypatch, capsys, sample, gpt, "--prompt=\0b",
                                     "--num_samples=2")
    line = "-" * 80
    assert out == f"\\x00bx\n\ty\\x1b[2J\\r\\x7f\n{line}\n\\x00babc\n{line}\n" and code == 0
    assert err.startswith("13 tokens in ")
    assert sample.visible("é\x85\x9b\u00a0\u200d") == "é\\x85\\x9b\u00a0\u200d"


@pytest.mark.parametrize("given, code, said", [
    (b"from a pipe", 0, "from a pipe\n---"), (b"", 2, "--prompt is empty"),
    (b"caf\xe9", 2, "-: not UTF-8 text"), (b"\xff\xfea\0b\0", 2, "-: is UTF-16 text"),
    (b"\xef\xbb\xbfmark", 0, "mark\n"), (None, 2, "-: Bad file descriptor")])
def test_a_prompt_from_standard_input(given, code, said, gpt, tmp_path, monkeypatch, capsys):
    (tmp_path / "stdin").write_bytes(given or b"")
    had = os.dup(0)
    try:
        if given is None:
            os.close(0)
        else:
            file = os.open(tmp_path / "stdin", os.O_RDONLY)
            os.dup2(file, 0)
            os.close(file)
        got, out, err = main_in_process(monkeypatch, capsys, sample, gpt, "--prompt=-",
                                        "--max_new_tokens=0", "--device=cpu")
    finally:
        os.dup2(had, 0)
        os.close(had)
    assert got == code and (out if code == 0 else err.removeprefix("error: ")).startswith(said)
    assert err.count("\n") == 1


def test_a_prompt_from_a_file(gpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.txt").write_text("from a file")
    code, out, _ = main_in_process(monkeypatch, capsys, sample, gpt, "--prompt=@~/p.txt",
                                   "--max_new_tokens=0")
    assert code == 0 and out.startswith("from a file\n---")


@pytest.mark.parametrize("args, said", [
    (["--temperature=0", "--num_samples=2"], "--num_samples: means something with --temperature above 0 only"),
    (["--num_samples=0"], "--num_samples: 0: must be a whole number, at least 1"),
    (["--num_samples=-3"], "--num_samples: -3: must be"),
    (["--max_new_tokens=-1"], "--max_new_tokens: -1: must be"),
    (["--temperature=nan"], "--temperature: nan: must be"),
    (["--temperature=-1"], "--temperature: -1: must be"),
    (["--temperature=1e-320"], "cannot be sampled"),
    (["--top_k=-1"], "--top_k: -1: must be"), (["--top_k=x"], "--top_k: x: must be a whole number, at least 0"),
    (["--device=cuda:99"], "--device=cuda:99: not on this machine, which has 0 CUDA devices"),
    (["--prompt="], "--prompt is empty"), (["--prompt=a\udce9"], "--prompt: not UTF-8 text"), (["--prompt=@{tmp}/latin.txt"], "not UTF-8 text"),
    (["--prompt=@{tmp}/none.txt"], "none.txt: No such file"), (["--no_such"], "see --help"),
    (["--num_samples"], "expected one argument: see --help")])
def test_bad_arguments(args, said, gpt, tmp_path, monkeypatch, capsys):
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    args = [a.format(tmp=tmp_path) for a in args]
    code, out, err = main_in_process(monkeypatch, capsys, sample, gpt, *args)
    assert code == 2 and said in err and err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize("script", [sample, evaluate, export, plot])
def test_one_front_door(script, tmp_path, monkeypatch, capsys):
    """Every script: no arguments, unknown ones, or nothing there: a line and exit code 2."""
    nothing = str(tmp_path / "none")
    more = {evaluate: [f"--tasks=ppl:{__file__}"], export: [nothing + "2"]}
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
    (lambda s: s.update(model_config=3), "AttributeError"), (lambda s: s.update(model=[]), "AttributeError"),
    (lambda s: s["model_config"].update(n_embd=24), "size mismatch"),
    (lambda s: s["model_config"].update(n_embd="24"), "not a whole checkpoint"),
    (lambda s: s["model_config"].update(n_embd=-1), "not a whole checkpoint"),
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
    """`| head`: it says no word of that. In a process, for it is about how that ends."""
    with subprocess.Popen([sys.executable, "sample.py", gpt, "--max_new_tokens=5", "--device=cpu",
                           "--num_samples=1200"], cwd=ROOT, env=ENV, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE) as p:
        p.stdout.readline()
        p.stdout.close()
        assert re.fullmatch(rb"\d+ tokens in .* a second\n", p.stderr.read())
