"""
Tokenizers, the .bin writer and the prepare scripts. Nothing here needs a network; what needs
GPT-2's files or the tokenizers library is skipped without them.
"""
import gzip
import importlib.util
import io
import json
import lzma
import os
import re
import signal
import subprocess
import sys
import types
import urllib.error
from pathlib import Path

import numpy as np
import pytest

from base.errors import UserError
from data import bin_writer
from data.bin_writer import BinWriter, complete, encode_pieces, pick_split, write_pieces
from data.dataset import read_meta
from data.tokenizer import Tokenizer, cut, get_tokenizer, load

ROOT = Path(__file__).resolve().parents[2]
TEXT_SCRIPT = ROOT / "data" / "text" / "prepare.py"
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s", "a", "dog",
         ".", "!", "?", "[", "]", "sep", "cafe"]


def script(name):
    spec = importlib.util.spec_from_file_location(f"prepare_{name}",
                                                  ROOT / "data" / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


text, pystdlib, shakespeare, openwebtext = map(
    script, ("text", "pystdlib", "shakespeare_char", "openwebtext"))


@pytest.fixture
def gpt2():
    try:
        return load("gpt2")
    except UserError as e:
        pytest.skip(str(e))


@pytest.fixture
def vocab(tmp_path):
    pytest.importorskip("tokenizers")
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(VOCAB) + "\n")
    return path


def prepare(module, *argv):
    module.main([str(a) for a in argv])


def fails(module, capsys, *argv):
    """The error line of a script that must end with exit code 2."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stop:
            bin_writer.run(lambda: prepare(module, *argv))
    finally:
        signal.signal(signal.SIGTERM, before)
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def stream(out, split):
    meta = json.loads((Path(out) / "meta.json").read_text())
    ids = np.fromfile(Path(out) / f"{split}.bin", dtype=meta["dtype"])
    assert len(ids) == meta[split + "_tokens"]
    return ids


def documents(out, split):
    """The documents in a .bin file of bytes."""
    parts = stream(out, split).tobytes().split(b"\0")
    assert parts[-1] == b""
    return [p.decode() for p in parts[:-1]]


def many(n, word="text"):
    return [f"document {i}\nof {word}\n" for i in range(n)]


# --- tokenizers

def test_bytes_with_and_without_bert():
    tok = load("bytes")
    assert (tok.vocab_size, tok.eot, tok.sep, tok.special, tok.dtype) == (256, 0, 10, {}, "uint8")
    bert = load("bytes", bert=True)
    assert bert.special == dict(cls=256, sep=257, mask=258, pad=259)
    assert (bert.vocab_size, bert.eot, bert.sep, bert.dtype) == (260, 0, 10, "uint8")
    assert tok.decode([104, 105, 0xff]) == "hi\ufffd"
    assert bert.decode(np.array([258, 104, 300])) == "[MASK]h\ufffd"


def test_text_round_trips_as_bytes():
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(deadline=None, max_examples=30)
    @given(st.text(max_size=200))
    def check(s):
        for bert in (False, True):
            tok = load("bytes", bert=bert)
            assert tok.decode(tok.encode(s)) == s
            assert tok.encode_array(s).tolist() == tok.encode(s)
    check()


@pytest.mark.parametrize("name, kw", [("bytes", {}), ("bytes", dict(bert=True)),
                                      ("char", dict(vocab=list("\nab")))])
def test_a_tokenizer_is_rebuilt_from_its_meta(name, kw):
    tok = load(name, **kw)
    again = get_tokenizer(json.loads(json.dumps(dict(tokenizer=tok.meta()))))
    for field in ("name", "vocab_size", "stream_size", "eot", "sep", "special"):
        assert getattr(again, field) == getattr(tok, field)
    assert again.encode("ab\n") == tok.encode("ab\n")


def test_bert_reads_a_byte_dataset_that_was_prepared_for_gpt():
    meta = dict(tokenizer=load("bytes").meta())
    assert get_tokenizer(meta).special == {}
    tok = get_tokenizer(meta, bert=True)
    assert (tok.special["mask"], tok.sep, tok.vocab_size) == (258, 10, 260)


def test_char():
    tok = load("char", "\nab")
    assert tok.encode("ba\n") == [2, 1, 0] and tok.eot is None
    assert tok.decode([2, 1, 0, 9]) == "ba\n\ufffd"
    with pytest.raises(UserError, match="character 'é' is not among the 3"):
        tok.encode("é")


@pytest.mark.parametrize("make, message", [
    (lambda: load("gtp2"), "'gtp2' is unknown.*did you mean gpt2"),
    (lambda: load("char"), "prepare the dataset again"),
    (lambda: get_tokenizer({}), "names no tokenizer: prepare the dataset again"),
    (lambda: get_tokenizer(dict(tokenizer=["gpt2"])), "names no tokenizer"),
])
def test_tokenizers_that_cannot_be_had(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_gpt2(gpt2):
    s = "Hello world, <|endoftext|> naïve 😀\n\n"
    assert gpt2.encode("Hello world") == [15496, 995]
    assert gpt2.eot not in gpt2.encode(s) and gpt2.decode(gpt2.encode(s)) == s
    assert (gpt2.vocab_size, gpt2.eot, gpt2.sep, gpt2.special) == (50257, 50256, None, {})
    assert gpt2.decode([15496, 50256, 50300, -1]) == "Hello<|endoftext|>\ufffd\ufffd"


def test_gpt2_with_bert_specials(gpt2):
    tok = load("gpt2", bert=True)
    assert tok.special == dict(cls=50257, sep=50258, mask=50259, pad=50260)
    assert (tok.vocab_size, tok.sep, tok.dtype) == (50261, 50258, "uint16")
    assert tok.decode([15496, 50259]) == "Hello[MASK]"
    assert get_tokenizer(dict(tokenizer=tok.meta())).sep == 50258
    # nanoGPT's datasets hold no sentence ends, whatever the model that reads them
    assert get_tokenizer(dict(tokenizer="gpt2"), bert=True).sep is None


def test_gpt2_offline_says_what_is_missing_and_where(monkeypatch, tmp_path):
    tiktoken = pytest.importorskip("tiktoken.load") and sys.modules["tiktoken"]
    pytest.importorskip("tiktoken.registry")

    def no_network(url):
        raise ConnectionError("unreachable\nover two lines")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(tiktoken.load, "read_file", no_network)
    monkeypatch.delitem(tiktoken.registry.ENCODINGS, "gpt2", raising=False)
    with pytest.raises(UserError) as e:
        load("gpt2")
    message = str(e.value)
    for part in ("vocab.bpe", "encoder.json", f"TIKTOKEN_CACHE_DIR={tmp_path}",
                 "--tokenizer=bytes"):
        assert part in message
    assert "\n" not in message
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    with pytest.raises(UserError, match="not set"):
        load("gpt2")


@pytest.mark.parametrize("name, remedy", [("tiktoken", "pip install tiktoken"),
                                          ("tokenizers", "pip install tokenizers")])
def test_a_missing_library_is_named(monkeypatch, name, remedy):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=remedy):
        load(dict(tiktoken="gpt2", tokenizers="wordpiece")[name], VOCAB)


def test_wordpiece(vocab):
    tok = load("wordpiece", vocab)
    assert tok.special == dict(cls=2, sep=3, mask=4, pad=0)
    assert (tok.eot, tok.sep, tok.vocab_size, tok.dtype) == (0, 3, len(VOCAB), "uint8")
    assert tok.encode("The Café\ncats sat.") == [5, 17, 6, 8, 7, 11]
    assert tok.encode("[SEP]") == [14, 16, 15]  # no special id can be forged by a text
    assert tok.encode("unheardof") == [1]
    assert tok.decode([2, 5, 6, 8, 7, 11, 99]) == "[CLS] the cats sat. \ufffd"
    again = get_tokenizer(json.loads(json.dumps(dict(tokenizer=tok.meta()))))
    assert again.special == tok.special and again.encode("the dogs") == tok.encode("the dogs")


def test_wordpiece_word_by_word_is_the_library_on_the_whole_text(vocab):
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st
    tok = load("wordpiece", vocab)

    @settings(deadline=None)
    @given(st.one_of(st.text(), st.text("thecatsdog .!?\n\t\u0301\x1c\x85[]")))
    def check(s):
        assert tok.encode(s) == tok.library.encode(s).ids
    check()


@pytest.mark.parametrize("lines, message", [
    (["[PAD]", "[UNK]"], r"vocab.txt has no \[CLS\], \[SEP\], \[MASK\]"),
    (VOCAB + ["cat"], "lists a token twice"), ([], "needs a vocabulary"), (None, "No such file"),
])
def test_bad_vocabularies(vocab, lines, message):
    vocab.unlink() if lines is None else vocab.write_text("\n".join(lines))
    with pytest.raises(UserError, match=message):
        load("wordpiece", vocab)


def test_wordpiece_without_a_vocabulary():
    pytest.importorskip("tokenizers")
    with pytest.raises(UserError, match="--vocab=vocab.txt"):
        load("wordpiece")


# --- the writer

def test_files_are_nanogpts_and_meta_tells_what_they_are(tmp_path):
    with BinWriter(tmp_path / "new" / "folder", load("bytes"), "made up", extra=1) as w:
        w.write("train", [1, 2])
        w.write("train", np.array([3]))
        w.write("val", [4])
    out = tmp_path / "new" / "folder"
    assert sorted(os.listdir(out)) == ["meta.json", "train.bin", "val.bin"]
    assert (out / "train.bin").read_bytes() == bytes([1, 2, 3])
    assert complete(out) == dict(
        tokenizer=dict(name="bytes", bert=False), vocab_size=256, dtype="uint8", eot=0, sep=10,
        source="made up", extra=1, train_tokens=3, val_tokens=1)


def test_larger_vocabularies_take_two_bytes(tmp_path):
    tok = load("char", [chr(i) for i in range(32, 400)])
    with BinWriter(tmp_path, tok, "") as w:
        w.write("train", tok.encode("Ā"))
        w.write("val", [0])
    assert stream(tmp_path, "train").tolist() == [0x100 - 32]
    assert complete(tmp_path)["dtype"] == "uint16"
    assert [load("char", [chr(i) for i in range(n)]).dtype for n in (256, 257, 65536, 65537)] == \
        ["uint8", "uint16", "uint16", "uint32"]


def write_some(out, value, error=None):
    with BinWriter(out, load("bytes"), str(value)) as w:
        w.write("train", [value] * (3 + value))
        w.write("val", [value])
        if error:
            raise error


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), OSError(28, "full")])
def test_an_interrupted_run_leaves_everything_as_it_was(tmp_path, error):
    with pytest.raises(type(error)):
        write_some(tmp_path / "fresh", 1, error)
    assert not (tmp_path / "fresh").exists()
    write_some(tmp_path, 1)
    with pytest.raises(type(error)):
        write_some(tmp_path, 2, error)
    assert stream(tmp_path, "train").tolist() == [1] * 4 and complete(tmp_path)["source"] == "1"
    assert sorted(os.listdir(tmp_path)) == ["meta.json", "train.bin", "val.bin"]


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("stop_at", range(3))
def test_stopping_between_renames_leaves_no_dataset_that_looks_whole(tmp_path, monkeypatch, old,
                                                                     stop_at):
    if old:
        write_some(tmp_path, 1)
    calls, replace = [], os.replace

    def stops(a, b):
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        calls.append(b)
        replace(a, b)

    monkeypatch.setattr(os, "replace", stops)
    with pytest.raises(KeyboardInterrupt):
        write_some(tmp_path, 2)
    assert complete(tmp_path) is None and not (tmp_path / "train.bin").exists()


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(UserError, match="val.bin would be empty.*--val-fraction"):
        with BinWriter(tmp_path / "x", load("bytes"), "") as w:
            w.write("train", [1])
    assert not (tmp_path / "x").exists()


def test_complete_notices_a_file_cut_short(tmp_path):
    write_some(tmp_path, 1)
    (tmp_path / "val.bin").write_bytes(b"")
    assert complete(tmp_path) is None
    (tmp_path / "meta.json").write_text("{}")
    assert complete(tmp_path) is None


def test_what_a_killed_run_left_goes(tmp_path):
    (tmp_path / ".unfinished").mkdir()
    (tmp_path / ".unfinished" / "train.bin").write_bytes(b"half")
    write_some(tmp_path, 1)
    assert sorted(os.listdir(tmp_path)) == ["meta.json", "train.bin", "val.bin"]


def _die(job):
    os._exit(9)


def test_a_dead_worker_is_an_error_not_a_hang(tmp_path, monkeypatch):
    monkeypatch.setattr(bin_writer, "_work", _die)
    with pytest.raises(UserError, match="fewer --workers"):
        with BinWriter(tmp_path / "x", load("bytes"), "") as w:
            write_pieces(w, [("train", "text", True)], workers=2)


# --- documents and sentences

class Letters(Tokenizer):
    """A stand-in for gpt2: ids of letters, no ids for spaces."""
    name, eot, sep, stream_size = "letters", 98, 99, 128

    def encode(self, s):
        return [ord(c) - ord("a") for c in s if c.isalpha()]


def test_sentences_and_documents_of_a_bert_stream():
    pieces = [("train", "ab. c! d?\ne.f\n", False), ("train", "\n  g.  \n", True),
              ("val", "h", True)]
    got = {k: v.tolist() for k, v in encode_pieces(pieces, Letters(), bert=True).items()}
    sep, eot = 99, 98
    assert got == dict(train=[0, 1, sep, 2, sep, 3, sep, 4, 5, sep, 6, sep, eot],
                       val=[7, sep, eot])
    plain = encode_pieces(pieces, Letters(), bert=False)
    assert plain["train"].tolist() == [0, 1, 2, 3, 4, 5, 6, eot]


def test_bytes_serve_gpt_and_bert_alike():
    pieces = [("train", "One. Two.\nThr\0ee", True)]
    tok = load("bytes", bert=True)
    for bert in (False, True):
        ids = encode_pieces(pieces, tok, bert)["train"]
        assert ids.dtype == np.uint8 and ids.tobytes() == b"One. Two.\nThree\0"


def reference(s):
    """Documents of `s` by blank lines, the plain way."""
    parts = re.split(r"(?:^|(?<=\n))[ \t\r]*\n", s)
    return [p for p in parts if p.strip()]


def test_documents_survive_any_cutting_into_pieces(tmp_path):
    pytest.importorskip("hypothesis")
    from hypothesis import assume, given, settings
    from hypothesis import strategies as st
    path = tmp_path / "x.txt"

    def read(size, blank_line):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(text, "JOB_CHARS", size)
            reader = text.Reader("text", blank_line)
            found, whole = [], ""
            for part, ends in reader.documents([path]):
                assert len(part) <= 4 * size
                whole += part
                if ends:
                    found, whole = found + [whole], ""
            assert whole == ""
            return found

    @settings(max_examples=200, deadline=None)
    @given(st.text("ab .\n\t\ré", max_size=60), st.integers(1, 20))
    def check(s, size):
        # a blank line longer than a piece is not seen as one: with a real JOB_CHARS, a megabyte
        assume(all(len(line) < size for line in s.split("\n") if not line.strip()))
        path.write_bytes(s.encode())
        assert [d.strip() for d in read(size, True)] == [d.strip() for d in reference(s)]
        assert "".join(read(size, False)).strip() == s.strip()
        if size == 20:  # and with room enough, to the letter
            assert read(1000, True) == reference(s)
    check()


def test_a_document_in_many_pieces_is_one_document(tmp_path, monkeypatch):
    docs = many(200, "many words, more than fit in one piece")
    (tmp_path / "x.txt").write_text("\n".join(docs))
    found = []
    for size in (1 << 20, 10):
        monkeypatch.setattr(text, "JOB_CHARS", size)
        out = tmp_path / str(size)
        prepare(text, "--input", tmp_path / "x.txt", "--out", out, "--val-fraction=0.2")
        found.append([documents(out, s) for s in ("train", "val")])
    assert found[0] == found[1] and len(found[0][0]) + len(found[0][1]) == 200


def test_a_long_document_is_cut_where_tokens_end(gpt2):
    pytest.importorskip("hypothesis")
    from hypothesis import given, settings
    from hypothesis import strategies as st

    @settings(deadline=None)
    @given(st.text("ab1'!é \n\t", min_size=1))
    def check(s):
        n = cut(s)
        assert 0 < n <= len(s)
        if re.search(r"\S\s", s):
            assert gpt2.encode(s[:n]) + gpt2.encode(s[n:]) == gpt2.encode(s)
    check()


def test_the_choice_of_validation_documents():
    chosen = [pick_split(i, 0.1) for i in range(5000)]
    assert 400 < chosen.count("val") < 600
    assert chosen == [pick_split(i, 0.1) for i in range(5000)]
    assert chosen != [pick_split(i, 0.1, seed=1) for i in range(5000)]


# --- data/text

@pytest.mark.parametrize("suffix, opener", [(".txt", open), (".txt.gz", gzip.open),
                                            (".xz", lzma.open)])
def test_text_files_packed_or_not(tmp_path, suffix, opener):
    docs = many(300, "täxt")
    path = tmp_path / ("x" + suffix)
    with opener(path, "wb") as f:
        f.write("\n".join(docs).encode())
    prepare(text, "--input", path, "--out", tmp_path / "out", "--val-fraction=0.1")
    train, val = (documents(tmp_path / "out", s) for s in ("train", "val"))
    assert train == [d for i, d in enumerate(docs) if pick_split(i, 0.1) == "train"]
    assert val == [d for i, d in enumerate(docs) if pick_split(i, 0.1) == "val"]
    meta = complete(tmp_path / "out")
    assert (meta["eot"], meta["sep"], meta["source"]) == (0, 10, str(path))


def test_folders_whole_files_and_a_validation_file(tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for name, content in (("b.txt", "b\n\nb2\n"), ("deep/a.txt", "a\r\n"), ("none.txt", "\n \n"),
                          ("x.md", "no"), ("y.tar.gz", "no"), ("valid.txt", "\ufeffv\n\nv2")):
        (tmp_path / "in" / name).write_bytes(content.encode())
    prepare(text, "--input", tmp_path / "in", tmp_path / "in" / "b.txt", "--out", tmp_path / "o",
            "--val", tmp_path / "in" / "valid.txt", "--doc-sep=file")
    assert documents(tmp_path / "o", "train") == ["b\n\nb2\n", "a\r\n"]
    assert documents(tmp_path / "o", "val") == ["v\n\nv2"]  # held out of the training folder


def test_links_to_folders_are_followed(tmp_path, monkeypatch, capsys):
    """Each real file once, whatever leads there; loops end. What cannot be read is said."""
    for name in ("in/a.txt", "in/deep/b.txt", "far/c.txt", "far/below/d.txt", "val/v.txt", "val/w.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    for link, to in (("in/link", "far"), ("in/deep/again", "far"), ("in/loop", "in"), ("far/back", "in"),
                     ("far/self", "far/self"), ("in/c2.txt", "far/c.txt"), ("val/loop", "val"),
                     ("more", "val")):
        (tmp_path / link).symlink_to(tmp_path / to)
    prepare(text, "--input", tmp_path / "in", "--out", tmp_path / "o", "--val", tmp_path / "more")
    assert sorted(documents(tmp_path / "o", "train")) == ["far/below/d.txt", "far/c.txt", "in/a.txt",
                                                          "in/deep/b.txt"]
    assert documents(tmp_path / "o", "val") == ["val/v.txt", "val/w.txt"]
    assert "reading 6 files, leaving out 1 that are not" in capsys.readouterr().out  # far/self
    scan = os.scandir

    def refuses(path):
        if str(path).endswith("below"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)
    monkeypatch.setattr(os, "scandir", refuses)
    assert "below: Permission denied" in fails(text, capsys, "--input", tmp_path / "in", "--out", tmp_path / "p")


def test_undecodable_bytes_are_counted(tmp_path, capsys):
    (tmp_path / "x.txt").write_bytes(b"caf\xe9 \xff\n\n" + b"\n".join(s.encode() for s in many(9)))
    prepare(text, "--input", tmp_path / "x.txt", "--out", tmp_path / "o", "--val-fraction=0.5")
    assert "2 bytes were not UTF-8" in capsys.readouterr().err
    both = documents(tmp_path / "o", "train") + documents(tmp_path / "o", "val")
    assert "caf\ufffd \ufffd\n" in both


def test_wordpiece_dataset_is_for_bert_and_holds_its_vocabulary(tmp_path, vocab):
    (tmp_path / "x.txt").write_text("\n".join(["The cat sat. A dog!\n"] * 20))
    prepare(text, "--input", tmp_path / "x.txt", "--out", tmp_path / "o", "--workers=1",
            "--tokenizer=wordpiece", "--vocab", vocab, "--val-fraction=0.3")
    assert stream(tmp_path / "o", "train").tolist()[:9] == [5, 6, 7, 11, 3, 9, 10, 12, 3]
    assert stream(tmp_path / "o", "train")[9] == 0
    vocab.unlink()
    assert get_tokenizer(complete(tmp_path / "o")).decode([5, 6]) == "the cat"


def test_gpt2_dataset(tmp_path, gpt2):
    (tmp_path / "x.txt").write_text("\n".join(["Hello world\n"] * 20))
    prepare(text, "--input", tmp_path / "x.txt", "--out", tmp_path / "o", "--workers=1",
            "--tokenizer=gpt2", "--val-fraction=0.3")
    assert stream(tmp_path / "o", "train").tolist()[:4] == [15496, 995, 198, 50256]
    assert complete(tmp_path / "o")["sep"] is None


def run_script(*argv, **kw):
    return subprocess.run([sys.executable, *map(str, argv)], capture_output=True, text=True, **kw)


def test_the_files_do_not_depend_on_the_number_of_workers(tmp_path, monkeypatch):
    monkeypatch.setattr(bin_writer, "JOB_CHARS", 10_000)
    (tmp_path / "x.txt").write_text("\n".join(many(8000)))  # some twenty jobs
    for n in (1, 3):
        prepare(text, "--input", tmp_path / "x.txt", "--out", tmp_path / str(n), "--workers", n)
    for name in ("train.bin", "val.bin", "meta.json"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads /proc")
@pytest.mark.parametrize("workers", [1, 2])
def test_memory_does_not_grow_with_the_text(tmp_path, workers):
    code = ("import runpy, sys; sys.argv = sys.argv[1:]\n"
            "runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "print(open('/proc/self/status').read().split('VmHWM:')[1].split()[0])")
    peak = []
    for megabytes in (8, 32):  # one document of one line, the worst case
        path = tmp_path / f"{megabytes}.txt.gz"
        with gzip.open(path, "wb", compresslevel=1) as f:
            f.write(b"a document\n\n" * 50)
            for _ in range(megabytes):
                f.write(b"no newline " * (1_000_000 // 11))
        done = run_script("-c", code, TEXT_SCRIPT, "--input", path, "--out",
                          tmp_path / str(megabytes), "--val-fraction=0.2", "--workers", workers)
        assert done.returncode == 0, done.stderr
        peak.append(int(done.stdout.split()[-1]) / 1024)
    assert peak[1] - peak[0] < 8, f"{peak} MB at its peak"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a fifo")
@pytest.mark.parametrize("how, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", -9)])
def test_a_stopped_run_leaves_the_old_dataset(tmp_path, how, code):
    out, pipe = tmp_path / "out", tmp_path / "pipe.txt"
    write_some(out, 1)
    os.mkfifo(pipe)
    run = subprocess.Popen([sys.executable, TEXT_SCRIPT, "--input", pipe, "--out", out, "--force",
                            "--workers=2"], stderr=subprocess.PIPE, text=True)
    with open(pipe, "w") as f:
        f.write("\n".join(many(20_000)))  # more than the pipe holds: the run is at work by now
        f.flush()
        run.send_signal(getattr(signal, how))
        assert run.wait(timeout=20) == code
    assert "Traceback" not in run.stderr.read()
    assert stream(out, "train").tolist() == [1] * 4 and complete(out)["source"] == "1"
    if how != "SIGKILL":
        assert sorted(os.listdir(out)) == ["meta.json", "train.bin", "val.bin"]


def test_errors_of_data_text(tmp_path, capsys, monkeypatch):
    good, out = tmp_path / "good.txt", tmp_path / "out"
    good.write_text("\n".join(many(50)))
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "two.txt").write_text("one\n\ntwo")
    (tmp_path / "bad.txt.xz").write_bytes(b"not xz")
    (tmp_path / "short.gz").write_bytes(gzip.compress(b"long text " * 99)[:-9])
    (tmp_path / "folder").mkdir()
    (tmp_path / "book.pdf").write_text("x")
    cases = [
        ([], "--input"),
        (["--input", tmp_path / "gone"], "gone: no such file or folder"),
        (["--input", tmp_path / "folder"], "folder: holds no .txt, .jsonl, .parquet file"),
        (["--input", tmp_path / "book.pdf"], "book.pdf: is not plain text: unpack it"),
        (["--input", tmp_path / "empty.txt"], "empty.txt: holds no text"),
        (["--input", tmp_path / "two.txt"], "val.bin would be empty: .*--val-fraction.*--val-within"),
        (["--input", tmp_path / "bad.txt.xz"], "bad.txt.xz: is damaged"),
        (["--input", tmp_path / "short.gz"], "short.gz: is damaged"),
        (["--input", good, "--val", good], "--val names all files of --input"),
        (["--input", good, tmp_path / "one.txt", "--doc-sep=file"],
         "all 2 files fall into train.bin: give --val"),
        (["--input", good, "--val-fraction=2"], "--val-fraction 2.0 must lie between 0 and 1"),
        (["--input", good, "--tokenizer=gtp2"], "'gtp2' is unknown.*did you mean gpt2"),
        (["--input", good, "--tokenizer=char"], "--tokenizer char is for"),
        (["--input", good, "--tokenizer=wordpiece"], "pip install tokenizers|--vocab=vocab.txt"),
        (["--input", good, "--doc-sep=page"], "--doc-sep"),
        (["--input", good, "--workers=x"], "--workers"),
        (["--input", good, "--colour=red"], "--colour=red"),
    ]
    for argv, message in cases:
        assert re.search(message, fails(text, capsys, *argv, "--out", out)), argv
        assert not out.exists()
    err = fails(text, capsys, "--input", good, "--out", good / "x")
    assert "cannot write to" in err and "--out" in err
    assert good.read_text() == "\n".join(many(50))


def test_a_dataset_is_replaced_only_by_force(tmp_path, capsys):
    (tmp_path / "x.txt").write_text("\n".join(many(500)))
    write_some(tmp_path / "o", 1)
    argv = ("--input", tmp_path / "x.txt", "--out", tmp_path / "o")
    assert "already holds a dataset (1)" in fails(text, capsys, *argv)
    assert stream(tmp_path / "o", "train").tolist() == [1] * 4
    prepare(text, *argv, "--force")
    assert documents(tmp_path / "o", "train")[0].startswith("document")


def test_others_datasets_are_replaced_only_by_force(tmp_path, capsys):
    """One made elsewhere, with a meta.json by hand or nanoGPT's meta.pkl, in one file or in shards."""
    (tmp_path / "x.txt").write_text("\n".join(many(500)))
    for name in ("train.bin", "fineweb_train_000001.bin"):
        out = tmp_path / name / "d"
        out.mkdir(parents=True)
        (out / name).write_bytes(b"12" * 99)
        assert f"holds {out / name}" in fails(text, capsys, "--input", tmp_path / "x.txt", "--out", out)
        assert (out / name).read_bytes() == b"12" * 99 and len(os.listdir(out)) == 1


def test_bytes_for_bert_are_read_back(tmp_path):
    (tmp_path / "x.txt").write_text("\n".join(many(500)))
    prepare(text, "--input", tmp_path / "x.txt", "--out", tmp_path / "o", "--bert")
    meta = read_meta(str(tmp_path / "o"))
    assert meta["dtype"] == "uint8" and meta["vocab_size"] == 260


def test_a_script_ends_in_one_line_and_code_2():
    done = run_script(TEXT_SCRIPT, "--input", "/no/such/file")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("error: --input /no/such/file: no such file or folder: "
                           "check the path\n")


# --- data/pystdlib, data/shakespeare_char, data/openwebtext

def test_the_standard_library_of_this_python(tmp_path, capsys):
    prepare(pystdlib, "--out", tmp_path / "a")
    assert "files" in capsys.readouterr().out
    meta = complete(tmp_path / "a")
    assert meta["python"] == sys.version.split()[0] and meta["dtype"] == "uint8"
    assert meta["train_tokens"] > 5e6 and meta["eot"] == 0 and meta["sep"] == 10
    everything = documents(tmp_path / "a", "train") + documents(tmp_path / "a", "val")
    assert Path(json.__file__).read_text() in everything
    prepare(pystdlib, "--out", tmp_path / "a")
    assert "already there" in capsys.readouterr().out


def test_the_standard_library_with_odd_files(tmp_path, monkeypatch, capsys):
    lib = tmp_path / "lib"
    for path in [f"m{i}.py" for i in range(60)] + ["site-packages/no.py", "__pycache__/no.py",
                                                   "no.txt"]:
        (lib / path).parent.mkdir(parents=True, exist_ok=True)
        (lib / path).write_text(f"# {path}\n")
    (lib / "latin.py").write_bytes(b"# caf\xe9\n")
    (lib / "nul.py").write_bytes(b"#\0\n")
    (lib / "empty.py").write_text("")
    (lib / "gone.py").symlink_to("nowhere")
    (tmp_path / "far").mkdir()
    (lib / "m0.py").rename(tmp_path / "far" / "m0.py")
    (lib / "linked").symlink_to(tmp_path / "far")
    monkeypatch.setattr(pystdlib.sysconfig, "get_paths", lambda: dict(stdlib=str(lib)))
    found = []
    for out in ("a", "b"):
        prepare(pystdlib, "--out", tmp_path / out)
        found.append([documents(tmp_path / out, s) for s in ("train", "val")])
    assert found[0] == found[1] and "skipped 4" in capsys.readouterr().out
    train, val = found[0]
    assert sorted(train + val) == sorted(f"# m{i}.py\n" for i in range(60))
    assert train != sorted(train)  # shuffled
    assert val == [f"# {p}\n" for p in pystdlib.find_files(lib)
                   if p.startswith("m") and bin_writer.unit_hash(p.encode()) < pystdlib.VAL_SHARE]
    monkeypatch.setattr(pystdlib.sysconfig, "get_paths", lambda: dict(stdlib="/no/such"))
    assert "no Python source files in /no/such" in fails(pystdlib, capsys, "--out", tmp_path / "c")


def test_shakespeare(tmp_path, monkeypatch, capsys):
    def answers(url, timeout):
        return io.BytesIO(b"First Citizen:\n" * 20)

    def no_network(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(shakespeare.urllib.request, "urlopen", no_network)
    err = fails(shakespeare, capsys, "--out", tmp_path / "o")
    assert "cannot download https://" in err and "--input=FILE" in err
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr(shakespeare.urllib.request, "urlopen", answers)
    prepare(shakespeare, "--out", tmp_path / "o")
    meta = complete(tmp_path / "o")
    assert (meta["train_tokens"], meta["val_tokens"], meta["eot"]) == (270, 30, None)
    tok = get_tokenizer(meta)
    assert tok.decode(stream(tmp_path / "o", "train")[:15]) == "First Citizen:\n"
    assert "already there" not in capsys.readouterr().out
    prepare(shakespeare, "--out", tmp_path / "o")
    assert "already there" in capsys.readouterr().out
    assert "gone.txt: No such file" in fails(shakespeare, capsys, "--input",
                                             tmp_path / "gone.txt", "--out", tmp_path / "p")


def test_openwebtext(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("data.text.prepare.open_tokenizer", lambda name, *args: load("bytes"))
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install datasets" in fails(openwebtext, capsys, "--out", tmp_path / "o")
    docs = [dict(text=f"document {i}") for i in range(3000)]
    fake = types.SimpleNamespace(load_dataset=lambda name, config, split, streaming: docs)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    prepare(openwebtext, "--out", tmp_path / "o", "--workers=1")
    train, val = (documents(tmp_path / "o", s) for s in ("train", "val"))
    assert len(train) + len(val) == 3000 and 0 < len(val) < 10

    def old_script(name, config, split, streaming):
        raise RuntimeError("Dataset scripts are no longer supported, but found openwebtext.py")

    fake.load_dataset = old_script
    err = fails(openwebtext, capsys, "--out", tmp_path / "p")
    assert "pip install 'datasets<4'" in err and "--dataset" in err
