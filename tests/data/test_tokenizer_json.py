"""Any Hugging Face tokenizer.json: prepared with, trained on, sampled, exported, refused."""
import json
import shutil
import sys

import numpy as np
import pytest
import torch
from runs import make_data, train_here
from test_data import fails, prepare, stream
from test_data import text as script
from test_grow import make

from base.errors import UserError
from data.bin_writer import complete
from data.dataset import fingerprint, read_meta
from data.loader import Loader, padded, vocab_needed
from data.tokenizer import (
    JSON,
    get_tokenizer,
    load,
    open_tokenizer,
    read_json_tokenizer,
    tokenizer_of,
)
from run import hf, trained
from run.settings import from_dict
from tools.export import export

tokenizers = pytest.importorskip("tokenizers")
TEXT = "the cat sat on the mat.\n  naïve 😀 cats' <|eos|> <|start|>\r\n\tit sat"
DOCS = [f"the cat sat {i} times on the mat\nand the mat was sat on\n" for i in range(40)]


def bpe():
    """A small byte-level BPE, which begins a text with <|start|> unless told not to."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.train_from_iterator(DOCS, tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<|start|>", "<|eos|>"], show_progress=False,
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet()))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 0)])
    made.enable_truncation(5)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """As one downloads it."""
    to = tmp_path_factory.mktemp("hf")
    bpe().save(str(to / "tokenizer.json"))
    (to / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eos|>"}}')
    return to


@pytest.fixture(scope="module")
def prepared(folder, tmp_path_factory):
    """A dataset made with it, of which the folder is gone."""
    to = tmp_path_factory.mktemp("prepared")
    copy = shutil.copytree(folder, to / "copy")
    (to / "text.txt").write_text("\n".join(DOCS))
    prepare(script, "--input", to / "text.txt", "--out", to / "data", "--tokenizer", copy,
            "--val-fraction=0.2", "--workers=2")
    shutil.rmtree(copy)
    return to / "data"


def test_round_trip(folder):
    for path in (folder, folder / "tokenizer.json"):
        tok = open_tokenizer(str(path))
        theirs = bpe()
        theirs.no_truncation()
        assert (tok.eot, tok.sep, tok.special, tok.dtype) == (1, None, {}, "uint16")
        assert tok.vocab_size == theirs.get_vocab_size()
        assert tok.encode("the cat sat on") == theirs.encode("the cat sat on", add_special_tokens=False).ids
        ids = tok.encode(TEXT)
        assert not {0, 1} & {*ids} and tok.decode(ids) == TEXT  # no text can forge them
        assert len(tok.encode(TEXT)) > 5 and tok.encode_array(TEXT).tolist() == ids
    assert tok.decode([1, *tok.encode("cat"), 999, 1000]) == "<|eos|>cat\ufffd\ufffd"
    half = tok.encode("😀")[:-1]  # a byte-level piece
    assert tok.decode(half) == "\ufffd"
    assert tok.decode(tok.encode("a\ud800b")) == "a?b"
    again = get_tokenizer(json.loads(json.dumps(dict(tokenizer=tok.meta()))))
    assert again.encode(TEXT) == ids and again.eot == 1 and again.vocab_size == tok.vocab_size


def test_prepared(prepared):
    meta = read_meta(str(prepared))
    assert complete(prepared)["tokenizer"] == dict(name=JSON, eot=1, begin=[0])
    assert (meta["eot"], meta["dtype"], meta["sep"]) == (1, "uint16", None)
    tok = get_tokenizer(meta)
    text = tok.decode(stream(prepared, "train")).split("<|eos|>")
    text += tok.decode(stream(prepared, "val")).split("<|eos|>")
    assert sorted(text) == sorted(["", "", *("<|start|>" + d for d in DOCS)])
    one = fingerprint(str(prepared), meta)
    assert one == fingerprint(str(prepared), read_meta(str(prepared)))
    meta["tokenizer"]["vocab"] += " "
    assert one != fingerprint(str(prepared), meta)


def test_trained_sampled_evaluated_exported(folder, prepared, tmp_path, capsys, monkeypatch):
    """Without the folder that the tokenizer came from, and, once trained, without the data."""
    pytest.importorskip("safetensors")
    out, to, data = str(tmp_path / "out"), str(tmp_path / "hf"), tmp_path / "data"
    shutil.copytree(prepared, data)
    train_here(out_dir=out, data_dir=str(data), max_iters=8, stages=[dict(at=3, n_embd=32, n_head=2)],
               ramp_iters=2, doc_mask=True)
    shutil.rmtree(data)
    model, info = trained.open_model(out)
    tok = get_tokenizer(info["meta"])
    assert model.config.vocab_size == padded(tok.vocab_size) and [model.config.eot] == tok.begin
    export(model, info["meta"], to)
    assert (tmp_path / "hf" / "tokenizer.json").read_text() == (folder / "tokenizer.json").read_text()
    back, said = trained.open_model(to)
    assert back.config.eot == model.config.eot and said["meta"]["tokenizer"] == info["meta"]["tokenizer"]
    import sample
    capsys.readouterr()
    for path in (out, to):
        monkeypatch.setattr(sys, "argv", ["sample.py", path, "--prompt=the cat", "--max_new_tokens=9"])
        sample.main()
        assert capsys.readouterr().out.startswith("the cat")
    from tools.evaluate import Evaluator
    (tmp_path / "x.txt").write_text(DOCS[0])
    assert Evaluator(out).ppl(str(tmp_path / "x.txt")) == pytest.approx(
        Evaluator(to).ppl(str(tmp_path / "x.txt")))
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(to)
    assert theirs("the cat", add_special_tokens=False)["input_ids"] == tok.encode("the cat")
    assert theirs.eos_token_id == tok.eot


def test_from_a_folder_on_its_own_data_and_no_other(folder, prepared, tmp_path):
    """A downloaded model: data of its tokenizer.json are taken, whoever wrote the file out; others not."""
    pytest.importorskip("safetensors")
    to = tmp_path / "hf"
    export(make("gpt", torch.float32, vocab_size=320, n_head=3, block_size=32), dict(tokenizer="bytes"), str(to))
    for name in hf.TOKENIZER_FILES:
        (to / name).unlink(missing_ok=True)
    shutil.copytree(folder, to, dirs_exist_ok=True)
    said = json.loads((to / "tokenizer.json").read_text())
    said["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in said["model"]["merges"]]
    (to / "tokenizer.json").write_text(json.dumps(dict(said, truncation=None), indent=3))
    sizes = dict.fromkeys(("n_layer", "n_head", "n_embd", "n_inner", "head_dim", "block_size"))
    train_here(out_dir=str(tmp_path / "out"), **sizes, init_from=str(to), data_dir=str(prepared), max_iters=4,
               warmup_iters=0, batch_tokens=64, micro_batch=2, stages=[dict(at=1, n_layer=3)], ramp_iters=1)
    with pytest.raises(UserError, match=f"made with tokenizer bytes, but {to} was trained with {JSON}$"):
        hf.check_tokenizer(str(to), read_meta(str(make_data(tmp_path / "data"))), "data/x")
    vocab = said["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    (to / "tokenizer.json").write_text(json.dumps(said))
    with pytest.raises(UserError, match="with tokenizer.json of another vocabulary"):
        hf.check_tokenizer(str(to), read_meta(str(prepared)), "data/x")


def test_what_tells_tokenizers_apart():
    """Layout does not; GPT-2's are GPT-2's by that name too."""
    from test_export import gpt2_vocab
    text = json.dumps(dict(model=dict(vocab=gpt2_vocab(), merges=[])))
    assert tokenizer_of(dict(tokenizer=dict(name=JSON, vocab=text))) == ("gpt2", None)
    assert tokenizer_of(dict(tokenizer="gpt2")) == ("gpt2", None)
    unigram = dict(model=dict(vocab=[["a", -1.0], ["b", -2.0]]), added_tokens=[dict(content="<s>", id=2)])
    assert tokenizer_of(dict(tokenizer=dict(name=JSON, vocab=json.dumps(unigram)))) == \
        (JSON, (dict(a=0, b=1) | {"<s>": 2}, []))


def many_words(n=70_000):
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(n)}, "w0"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(["<end>"])
    return made


def test_ids_beyond_65535(tmp_path):
    many_words().save(str(tmp_path / "words.json"))
    rng = np.random.default_rng(0)
    lines = [" ".join(f"w{i}" for i in rng.integers(65_000, 70_000, 30)) + "\n" for _ in range(60)]
    (tmp_path / "text.txt").write_text("\n".join(lines))
    out = tmp_path / "data"
    prepare(script, "--input", tmp_path / "text.txt", "--out", out, "--tokenizer", tmp_path / "words.json",
            "--eot=<end>", "--val-fraction=0.3", "--workers=1")
    meta, ids = read_meta(str(out)), stream(out, "train")
    assert (meta["dtype"], meta["eot"], meta["vocab_size"]) == ("uint32", 70_000, 70_001)
    assert ids.max() == 70_000 and (ids > 65_535).mean() > 0.8
    config = from_dict(dict(data_dir=str(out), block_size=16, batch_tokens=64, micro_batch=4, doc_mask=True))
    rows = Loader(config, meta, padded(vocab_needed("gpt", meta))).batch(0)
    where = ids.astype(np.int64).tolist()
    row = rows["idx"][0].tolist()
    assert any(where[i:i + 16] == row for i in range(len(where)))
    assert get_tokenizer(meta).decode(row).split() == [
        "<end>" if i == 70_000 else f"w{i}" for i in row]
    # the same as shards with llm.c's header for Llama 3
    whole = Loader(config, meta, 70_016).split["train"]
    for split in ("train", "val"):
        tokens = np.fromfile(out / f"{split}.bin", dtype="<u4")
        (out / f"{split}.bin").unlink()
        for n, part in enumerate(np.array_split(tokens, 2)):
            head = np.zeros(256, dtype="<i4")
            head[:3] = 20240801, 7, len(part)
            (out / f"x_{split}_{n}.bin").write_bytes(head.tobytes() + part.tobytes())
    loader = Loader(config, read_meta(str(out)), 70_016)
    assert (loader.split["train"][0:len(whole)] == whole).all()
    assert (loader.batch(0)["idx"] == rows["idx"]).all()
    (out / "meta.json").unlink()
    with pytest.raises(UserError, match="shards of Llama 3's tokens: put its tokenizer.json beside them and a meta"):
        read_meta(str(out))
    (out / "meta.json").write_text('{"tokenizer": "tokenizer.json", "vocab_size": 70001, "dtype": "uint32"}')
    assert get_tokenizer(read_meta(str(out))).encode("w69999 w3") == [69_999, 3]
    (out / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer.json: .*: the meta.json beside it says"):
        read_meta(str(out))


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"vocab": {"a": 0}}}', "\0\0", "[" * 10_000])
def test_what_is_no_tokenizer(content, tmp_path, capsys):
    (tmp_path / "tokenizer.json").write_text(content)
    (tmp_path / "x.txt").write_text("some text\n\nand more")
    said = fails(script, capsys, "--input", tmp_path / "x.txt", "--out", tmp_path / "o",
                 "--tokenizer", tmp_path)
    assert str(tmp_path / "tokenizer.json") in said and not (tmp_path / "o").exists()


def test_refused(folder, tmp_path):
    lone = tmp_path / "lone"
    lone.mkdir()
    shutil.copy(folder / "tokenizer.json", lone)
    unsaid = r"says which of its tokens ends a document: name it with --eot=TOKEN " \
        r"\(it has <\|start\|>, <\|eos\|>\)"
    with pytest.raises(UserError, match=unsaid):
        open_tokenizer(str(lone))
    assert open_tokenizer(str(lone), eot="<|eos|>").eot == 1
    assert open_tokenizer(str(folder), eot="<|start|>").eot == 0
    with pytest.raises(UserError, match="--eot=</s>: .* has no such token: name another"):
        open_tokenizer(str(folder), eot="</s>")
    (lone / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(UserError, match=unsaid):
        open_tokenizer(str(lone))
    (lone / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="tokenizer_config.json: is no JSON object"):
        read_json_tokenizer(str(lone))
    with pytest.raises(UserError, match="--eot=x: is for a tokenizer.json"):
        open_tokenizer("bytes", eot="x")
    with pytest.raises(UserError, match="BERT cannot take a tokenizer.json"):
        open_tokenizer(str(folder), bert=True)
    with pytest.raises(UserError, match="no-such.json"):
        open_tokenizer("no-such.json")
    with pytest.raises(UserError, match="or the path of a tokenizer.json"):
        open_tokenizer("no-such-folder")


def test_without_the_library(monkeypatch, prepared):
    """Training needs none; whoever reads or writes text is told."""
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    meta = read_meta(str(prepared))
    assert vocab_needed("gpt", meta) == meta["vocab_size"]
    with pytest.raises(UserError, match="pip install tokenizers"):
        load(JSON, meta["tokenizer"]["vocab"])


# -----------------------------------------------------------------------------
# what a tokenizer puts around a text: the same to prepare, sample, evaluate and export

AROUND = {"begin": ["<|start|>", "$A"], "none": ["$A"], "both": ["<|start|>", "$A", "<|eos|>"]}


@pytest.mark.parametrize("kind", AROUND)
def test_what_is_put_around_a_text(kind, tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    transformers = pytest.importorskip("transformers")
    made, template = bpe(), AROUND[kind]
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single=template, special_tokens=[(t, made.token_to_id(t)) for t in template if t != "$A"])
    made.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(
        tokenizer_class="PreTrainedTokenizerFast", bos_token="<|start|>", eos_token="<|eos|>")))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)(DOCS[0])["input_ids"]
    tok = open_tokenizer(str(tmp_path))
    assert theirs == tok.begin + tok.encode(DOCS[0]) + tok.end
    # prepare: each document so, and its end once
    (tmp_path / "text.txt").write_text("\n".join(DOCS))
    prepare(script, "--input", tmp_path / "text.txt", "--out", tmp_path / "data", "--tokenizer", tmp_path,
            "--val-fraction=0.2", "--workers=1")
    ids = stream(tmp_path / "data", "train").tolist()
    docs = [tok.encode(d) for d in DOCS]
    ends = [i for i, x in enumerate(ids) if x == tok.eot]
    assert all(ids[a + 1:b] in [tok.begin + d for d in docs] for a, b in zip([-1, *ends], ends))
    # export: as it came, and the ids that the folder names
    meta = dict(read_meta(str(tmp_path / "data")), ids=dict(
        config=dict(bos_token_id=0, eos_token_id=[1, 7]), generation=dict(eos_token_id=[1, 7], top_p=0.9)))
    model = make("gpt", torch.float32, vocab_size=320, n_head=3, block_size=32)
    export(model, meta, str(tmp_path / "hf"))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")(DOCS[0])["input_ids"] == theirs
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"]) == (0, [1, 7])
    assert json.loads((tmp_path / "hf" / "generation_config.json").read_text()) == meta["ids"]["generation"]
    opened, info = trained.open_model(str(tmp_path / "hf"))
    assert info["meta"]["ids"]["generation"] == meta["ids"]["generation"]
    # sample and evaluate
    import sample
    asked = []
    monkeypatch.setattr(sample, "write", lambda model, ids, *_: asked.append(ids) or [ids])
    monkeypatch.setattr(sys, "argv", ["sample.py", str(tmp_path / "hf"), "--prompt=the cat"])
    capsys.readouterr()
    sample.main()
    assert asked == [tok.begin + tok.encode("the cat")] and capsys.readouterr().out.startswith("the cat\n")
    from tools.evaluate import Evaluator
    evaluator = Evaluator(str(tmp_path / "hf"))
    assert evaluator.pair("the", " cat", "")[0][:1] == (tok.begin or tok.encode("the"))[:1]
    (tmp_path / "x.txt").write_text("the cat sat")
    ids = torch.tensor([(tok.begin or [tok.eot]) + tok.encode("the cat sat")])
    with torch.no_grad():
        want = opened(ids[:, :-1], targets=ids[:, 1:])[1].exp().item()
    assert evaluator.ppl(str(tmp_path / "x.txt"))["ppl"] == pytest.approx(want, rel=1e-5)


def test_datasets_made_before_stay_as_they_are(prepared, tmp_path):
    """Without begin in its meta.json nothing is put around a text, and an export says so."""
    pytest.importorskip("safetensors")
    transformers = pytest.importorskip("transformers")
    shutil.copytree(prepared, tmp_path / "data")
    said = json.loads((tmp_path / "data" / "meta.json").read_text())
    del said["tokenizer"]["begin"]
    (tmp_path / "data" / "meta.json").write_text(json.dumps(said))
    meta = read_meta(str(tmp_path / "data"))
    tok = get_tokenizer(meta)
    assert (tok.begin, tok.end, tok.ending) == ([], [], [tok.eot])
    export(make("gpt", torch.float32, vocab_size=320, n_head=3), meta, str(tmp_path / "hf"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    assert theirs("the cat")["input_ids"] == tok.encode("the cat")
