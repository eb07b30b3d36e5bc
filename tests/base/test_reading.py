"""Texts as people have them: line ends, marks, encodings, packed files, folders, records."""
import gzip
import json
import lzma
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
from test_data import TEXT_SCRIPT, documents, fails, many, prepare, shakespeare, text

from base.errors import UserError
from base.reading import open_text, read_text
from data.bin_writer import complete
from data.tokenizer import GPT2, GPT2_CHARS, load, read_vocab

TEXT = "one\r\ntwo\rthree\n\n\u2028four\x85é\ufeff\n"


def packed(path, content):
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    if path.suffix.lower() == ".zst":
        content = pytest.importorskip("zstandard").ZstdCompressor().compress(content)
    with opener(path, "wb") as f:
        f.write(content)
    return path


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a", "a.gz", "a.txt.GZ", "a.xz", "a.txt.Xz", "a.zst"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_text_is_what_the_file_holds_but_for_its_mark(tmp_path, name, mark):
    path = packed(tmp_path / name, mark + TEXT.encode())
    assert read_text(path) == TEXT
    with open_text(str(path)) as f:
        assert list(f) == [line + "\n" for line in TEXT.split("\n")[:-1]]


def test_zst_of_many_frames(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    parts = [os.urandom(n).hex() for n in (1, 50_000, 0, 7)] + ["z" * 3_000_000]
    (tmp_path / "x.zst").write_bytes(b"".join(
        zstandard.ZstdCompressor().compress(part.encode()) for part in parts))
    assert read_text(tmp_path / "x.zst") == "".join(parts)


def test_every_script_keeps_crlf_and_drops_the_mark(tmp_path):
    lines = "\r\n".join(["one two", "three", "", "four", ""] * 20)
    path = tmp_path / "x.txt"
    path.write_bytes(b"\xef\xbb\xbf" + lines.encode())
    prepare(text, "--input", path, "--out", tmp_path / "o", "--val-fraction=0.2")
    assert set(documents(tmp_path / "o", "train")) == {"one two\r\nthree\r\n", "four\r\n"}
    prepare(shakespeare, "--input", path, "--out", tmp_path / "s")
    vocab = complete(tmp_path / "s")["tokenizer"]["vocab"]
    assert "\r" in vocab and "\ufeff" not in vocab
    (tmp_path / "vocab.txt").write_bytes(b"\xef\xbb\xbf[PAD]\r\nthe\r\n\r\n")
    assert read_vocab(tmp_path / "vocab.txt") == ["[PAD]", "the"]


NOT_TEXTS = {
    "UTF-16": ("a few words\n" * 9).encode("utf-16"), "UTF-16 big": b"\xfe\xff" + "ab".encode("utf-16-be"),
    "UTF-16LE": ("a few words\n" * 9).encode("utf-16-le"),
    "UTF-16BE": ("naïve words\n" * 9).encode("utf-16-be"),
    "UTF-32LE": ("a few words\n" * 9).encode("utf-32-le"), "UTF-32": ("a few words\n" * 9).encode("utf-32"),
    "binary": bytes(range(256)) * 20, "binary small": b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR",
    "binary numbers": b"\1\0\2\0\3\0\4\0" * 4 + b"\1\2\3\4\0\0\0\0" * 9}


@pytest.mark.parametrize("what", NOT_TEXTS)
@pytest.mark.parametrize("name", ["x.txt", "x.txt.gz"])
def test_what_is_no_text_is_refused_with_a_remedy(tmp_path, capsys, what, name):
    path = packed(tmp_path / name, NOT_TEXTS[what])
    for module in (text, shakespeare):
        err = fails(module, capsys, "--input", path, "--out", tmp_path / "o")
        assert str(path) in err and not (tmp_path / "o").exists()
        assert ("iconv -f UTF-" in err) == what.startswith("UTF")
    assert ("iconv" if what.startswith("UTF") else "binary") in err


def test_strays_are_no_reason_to_refuse(tmp_path, capsys):
    path = tmp_path / "x.txt"
    path.write_bytes(b"text " * 2000 + b"\0caf\xe9")
    with pytest.raises(UserError, match="x.txt: not UTF-8 text.*iconv"):
        read_text(path)
    with open_text(path, errors="replace") as f:
        assert f.read().endswith("text \0caf\ufffd")
    with pytest.raises(UserError, match="gone.txt: No such file"):
        read_text(tmp_path / "gone.txt")
    with pytest.raises(UserError, match="Is a directory"):
        read_text(tmp_path)


@pytest.mark.parametrize("name", ["x.gz", "x.xz", "x.zst"])
@pytest.mark.parametrize("spoil", [lambda b: b[:len(b) // 2], lambda b: b"nonsense", lambda b: b[:-3]])
def test_damaged_packed_files(tmp_path, name, spoil):
    path = packed(tmp_path / name, os.urandom(9000).hex().encode())
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=name):
        read_text(path)


# --- folders

def test_a_folder_is_read_whatever_the_case_and_says_what_it_left_out(tmp_path, capsys):
    folder = tmp_path / "in" / "Deep.txt"  # a folder's name is no file's
    folder.mkdir(parents=True)
    names = ["a.txt", "B.TXT", "c.Txt", "d.gz", "e.txt.gz", "f.txt.GZ", "g.XZ", "Deep.txt/h.txt"]
    for i, name in enumerate(names):
        packed(tmp_path / "in" / name, f"file {i}\n".encode())
    for name in ("i.csv", "j.CSV", "k.json", "l.tar.gz", "m.csv.gz", "n", "o.md"):
        (tmp_path / "in" / name).write_text("no")
    prepare(text, "--input", tmp_path / "in", "--out", tmp_path / "o", "--val-fraction=0.4", "--seed=1")
    said = capsys.readouterr().out.splitlines()[0]
    assert said.startswith("reading 8 files, leaving out 7 that are not .txt, .jsonl, .parquet: 2 .csv")
    for what in ("1 .json", "1 .tar.gz", "1 .csv.gz", "1 without extension", "1 .md"):
        assert what in said
    both = documents(tmp_path / "o", "train") + documents(tmp_path / "o", "val")
    assert sorted(both) == [f"file {i}\n" for i in range(8)]
    for name in names:
        os.remove(tmp_path / "in" / name)
    assert "holds no .txt, .jsonl, .parquet file, packed or not (2 .csv" in fails(
        text, capsys, "--input", tmp_path / "in", "--out", tmp_path / "p")


def test_home_and_names_that_cannot_be_printed(tmp_path):
    name = b"t\xffxt \xc3\xa9.txt".decode(errors="surrogateescape")
    (tmp_path / name).write_text("\n".join(many(300)))
    done = subprocess.run([sys.executable, TEXT_SCRIPT, "--input", "~/" + name, "--out=~/o"],
                          env={**os.environ, "HOME": str(tmp_path), "PYTHONIOENCODING": "ascii"},
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert complete(tmp_path / "o")["source"] == "~/" + name and "training" in done.stdout


# --- records

def jsonl(path, records):
    return packed(path, "".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in records).encode())


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL", "x.jsonl.gz", "x.jsonl.zst"])
def test_jsonl_is_a_document_a_line(tmp_path, name):
    docs = [f"document {i}\n\nwith a blank line\r\n" for i in range(200)]
    path = jsonl(tmp_path / name, [dict(id=1, body=d) for d in docs] + ["\n", dict(body=" "), dict(body=None)])
    prepare(text, "--input", tmp_path, "--out", tmp_path / "o", "--field=body", "--val-fraction=0.2")
    both = documents(tmp_path / "o", "train") + documents(tmp_path / "o", "val")
    assert sorted(both) == sorted(docs) and path.exists()


def test_a_long_record_is_one_document(tmp_path, monkeypatch):
    from data import bin_writer
    monkeypatch.setattr(bin_writer, "JOB_CHARS", 30)
    docs = [f"document {i} " * 20 for i in range(50)]
    jsonl(tmp_path / "x.jsonl", [dict(text=d) for d in docs])
    prepare(text, "--input", tmp_path / "x.jsonl", "--out", tmp_path / "o", "--val-fraction=0.2")
    assert sorted(documents(tmp_path / "o", "train") + documents(tmp_path / "o", "val")) == sorted(docs)


@pytest.mark.parametrize("bad, says", [
    ("{\n", "x.jsonl:2: is not JSON"), ("[1]\n", "x.jsonl:2: has no field 'text', it is no object"),
    (dict(body="a", n=1), "x.jsonl:2: has no field 'text', its fields are body, n: .*--field"),
    (dict(text=[1]), "x.jsonl:2: field 'text' holds no text, but '\\[1\\]'"), ("[" * 10**5, "is not JSON")])
def test_bad_records_are_one_line(tmp_path, capsys, bad, says):
    jsonl(tmp_path / "x.jsonl", [dict(text="good"), bad])
    assert re.search(says, fails(text, capsys, "--input", tmp_path / "x.jsonl", "--out", tmp_path / "o"))


def test_parquet_is_a_document_a_row(tmp_path, capsys):
    pyarrow, written = map(pytest.importorskip, ("pyarrow", "pyarrow.parquet"))
    docs = [f"document {i}\n\nmore" for i in range(600)]
    table = pyarrow.table(dict(id=list(range(601)), text=[*docs, None]))
    written.write_table(table, tmp_path / "x.parquet")
    prepare(text, "--input", tmp_path, "--out", tmp_path / "o", "--val-fraction=0.2")
    assert sorted(documents(tmp_path / "o", "train") + documents(tmp_path / "o", "val")) == sorted(docs)
    argv = ("--input", tmp_path / "x.parquet", "--out", tmp_path / "p")
    assert "its fields are id, text: name one" in fails(text, capsys, *argv, "--field=body")
    assert "field 'id' holds no text" in fails(text, capsys, *argv, "--field=id")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nonsense")
    assert "x.parquet: is damaged" in fails(text, capsys, *argv)


@pytest.mark.parametrize("name, module", [("x.parquet", "pyarrow"), ("x.txt.zst", "zstandard")])
def test_a_missing_library_is_named(tmp_path, capsys, monkeypatch, name, module):
    (tmp_path / name).write_bytes(b"x")
    for m in [m for m in sys.modules if m.split(".")[0] == module] + [module, module + ".parquet"]:
        monkeypatch.setitem(sys.modules, m, None)
    err = fails(text, capsys, "--input", tmp_path / name, "--out", tmp_path / "o")
    assert f"pip install {module}" in err


# --- one document

@pytest.mark.parametrize("size", [1 << 20, 50])
@pytest.mark.parametrize("argv", [[], ["--doc-sep=file"], ["--val-within"]])
def test_one_document_is_split_within(tmp_path, capsys, monkeypatch, argv, size):
    monkeypatch.setattr(text, "JOB_CHARS", size)
    whole = "".join(f"line {i} of a poem\n" for i in range(1000))
    (tmp_path / "x.txt").write_text(whole)
    prepare(text, "--input", tmp_path / "x.txt", "--out", tmp_path / "o", "--val-fraction=0.1", *argv)
    [train], [val] = (documents(tmp_path / "o", s) for s in ("train", "val"))
    assert train + val == whole and abs(len(val) / len(whole) - 0.1) < 0.01
    assert val[0].isspace() and not train[-1].isspace()
    assert ("but one document" in capsys.readouterr().out) == (argv != ["--val-within"])


def test_within_a_few_documents_if_asked(tmp_path, capsys):
    docs = many(5)
    (tmp_path / "x.txt").write_text("\n".join(docs))
    argv = ("--input", tmp_path / "x.txt", "--out", tmp_path / "o", "--val-fraction=0.3")
    prepare(text, *argv, "--val-within")
    train, val = (documents(tmp_path / "o", s) for s in ("train", "val"))
    assert "".join(train + val) == "".join(docs) and train[:3] == docs[:3] and val[-1] == docs[-1]


@pytest.mark.parametrize("whole", ["x" * 1000, "x" * 990 + " y", " \n" * 10 + "word" * 100, "ab",
                                   "a few words and alongone\n", "a b c"])
def test_one_document_with_hardly_a_space(tmp_path, whole):
    (tmp_path / "x.txt").write_text(whole)
    prepare(text, "--input", tmp_path / "x.txt", "--out", tmp_path / "o", "--val-fraction=0.1")
    [train], [val] = (documents(tmp_path / "o", s) for s in ("train", "val"))
    assert (train + val).strip() == whole.strip() and train.strip() and val.strip()


# --- long runs

class Bpe:
    """Stands for tiktoken: a token a character, and it panics as tiktoken does."""

    def encode_ordinary(self, s):
        assert len(s) <= GPT2_CHARS
        return [ord(c) for c in s]


@pytest.mark.parametrize("whole", [" " * 300_000 + "x", "x" + "\n" * 200_000, "a" * 200_000, " \n" * 100_000,
                                   "word " * 60_000, "a b\n" * 70_000 + "c" * 99_999, "", "x"],
                         ids=lambda s: f"{s[:4]!r} {len(s)}")
def test_long_texts_reach_the_library_in_parts(monkeypatch, whole):
    monkeypatch.setattr("data.tokenizer._gpt2_encoding", Bpe)
    assert GPT2().encode(whole) == [ord(c) for c in whole]


def test_parts_do_not_change_the_tokens_of_a_text():
    try:
        tok = load("gpt2")
    except UserError as e:
        pytest.skip(str(e))
    book = Path(text.__file__).read_text() * 10 + "\n\n  indented 'll   " * 9000
    assert len(book) > 4 * GPT2_CHARS
    assert tok.encode(book) == tok.bpe.encode_ordinary(book)
    for run, times in ((" ", 1_000_000), ("\t \n", 300_000), ("a", 200_000), ("-", 200_000)):
        ids = tok.encode("x" + run * times + "y")
        assert tok.bpe.decode(ids) == "x" + run * times + "y"


# --- datasets of the Hugging Face hub

def hub(monkeypatch, records, name="some/texts", config=None, split="train"):
    """A stand-in for the datasets library, which has this one."""
    def load_dataset(*got, **how):
        assert (got, how) == ((name, config), dict(split=split, streaming=True))
        yield from records
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_a_dataset_by_its_name(tmp_path, monkeypatch, capsys):
    """As the same documents in a file; --limit reads no further."""
    def records():
        yield from (dict(body=t) for t in ["", *many(400)])
        raise AssertionError("read too far")
    hub(monkeypatch, records(), config="part", split="all")
    prepare(text, "--dataset=some/texts:part", "--split=all", "--column=body", "--limit=401",
            "--out", tmp_path / "a", "--val-fraction=0.1")
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(dict(text=t)) + "\n" for t in many(400)))
    prepare(text, "--input", tmp_path / "x.jsonl", "--out", tmp_path / "b", "--val-fraction=0.1")
    for split in ("train", "val"):
        assert documents(tmp_path / "a", split) == documents(tmp_path / "b", split) != []
    assert complete(tmp_path / "a")["source"] == "some/texts:part"
    assert "reading some/texts:part\n" in capsys.readouterr().out


def test_a_dataset_and_a_file_for_validation(tmp_path, monkeypatch):
    hub(monkeypatch, [dict(text=t) for t in many(9)])
    (tmp_path / "v.txt").write_text("held out")
    prepare(text, "--dataset=some/texts", "--val", tmp_path / "v.txt", "--out", tmp_path / "o")
    assert documents(tmp_path / "o", "train") == many(9)
    assert documents(tmp_path / "o", "val") == ["held out"]


def test_the_real_library_streams(tmp_path):
    """From a folder, which needs no network."""
    pytest.importorskip("datasets")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "train.jsonl").write_text("".join(json.dumps(dict(body=t)) + "\n" for t in many(60)))
    prepare(text, f"--dataset={tmp_path / 'd'}", "--column=body", "--val-fraction=0.2", "--limit=50",
            "--out", tmp_path / "o")
    assert sorted(documents(tmp_path / "o", "train") + documents(tmp_path / "o", "val")) == \
        sorted(many(50))


class DatasetNotFoundError(FileNotFoundError):
    pass


@pytest.mark.parametrize("fault, said", [
    (ConnectionError("Couldn't reach 'some/texts' on the Hub"),
     "ConnectionError: Couldn't reach .*: where there is a network, hf download some/texts "
     "--repo-type=dataset --local-dir=my_texts; then here, python data/text/prepare.py --input my_texts"),
    (DatasetNotFoundError("Dataset 'some/texts' doesn't exist on the Hub"),
     "doesn't exist on the Hub.: check the name at huggingface.co/datasets: --dataset=OWNER/NAME"),
    (ValueError("Config name is missing.\nPlease pick one among: ['a', 'b']"),
     r"is missing. Please pick one among: \['a', 'b'\]\): .*--dataset=OWNER/NAME:CONFIG"),
    (ValueError("Bad split: nope. Available splits: ['train']"), r"\['train'\]\): .*--split=NAME"),
    (RuntimeError(), "cannot be read .RuntimeError: RuntimeError.: check"),
    (OSError(28, "No space left on device"), "No space left on device: make room")])
@pytest.mark.parametrize("when", [0, 20])
def test_a_dataset_that_cannot_be_read(fault, said, when, tmp_path, monkeypatch, capsys):
    """At once, or in the middle of it: a line that says what to type next, and nothing is written."""
    def records():
        yield from (dict(text=t) for t in many(when))
        raise fault
    hub(monkeypatch, records())
    err = fails(text, capsys, "--dataset=some/texts", "--out", tmp_path / "o")
    assert re.search(said, err) and not (tmp_path / "o").exists()


def test_bad_requests_for_a_dataset(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)  # not installed
    some = ["--dataset=some/texts", "--out", tmp_path / "o"]
    assert "pip install datasets" in fails(text, capsys, *some)
    hub(monkeypatch, [dict(body="x")])
    assert "--dataset=some/texts: has no field 'text', its fields are body: name one with --field" in \
        fails(text, capsys, *some)
    for more, said in ((["--limit=0"], "--limit: 0: must be a whole number, at least 1"),
                       (["--val-within"], "--val-within reads its texts twice"),
                       (["--input", "x"], "not allowed with argument")):
        assert said in fails(text, capsys, *some, *more)
    hub(monkeypatch, [dict(text=" ")])
    assert "some/texts: holds no text" in fails(text, capsys, *some)
    assert not (tmp_path / "o").exists()
