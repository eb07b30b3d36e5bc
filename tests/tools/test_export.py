"""To the Hugging Face format and back, to transformers and back, and growing from there."""
import json
import os
import shutil
import sys

import pytest
import torch
from runs import events, make_data, train_here
from test_evaluate import main_in_process, save
from test_grow import batch, difference, make, outputs

from base.errors import UserError
from base.weights import Weights
from data.tokenizer import GPT2_IDS, get_tokenizer
from grow import grow, set_mask
from run.arguments import from_args
from run.checkpoint import checkpoint

pytest.importorskip("safetensors")
import tools.export
from run import hf, trained
from tools.export import export

META = dict(tokenizer=dict(name="bytes", bert=False), vocab_size=256, dtype="uint8", eot=0, sep=10)
SIZES = dict(n_head=3, vocab_size=320)  # n_head * head_dim = n_embd, bytes and specials fit
VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "sat", "."]
KINDS = pytest.mark.parametrize("kind", ["gpt", "bert"])


def used(kind, **kw):
    return make(kind, torch.float32, **{**SIZES, **kw}).eval()


def theirs(model):
    """Its weights under transformers' names, {name: tensor}."""
    return {name: make().contiguous() for name, _, _, make in hf.entries(model)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """{kind: (model, its Hugging Face folder)}"""
    made = {}
    for kind in ("gpt", "bert"):
        made[kind] = used(kind), str(tmp_path_factory.mktemp(kind) / "hf")
        export(made[kind][0], META, made[kind][1])
    return made


@KINDS
def test_round_trip(kind, folders):
    model, folder = folders[kind]
    back, info = trained.open_model(folder)
    assert back.config == model.config
    assert info["config"]["model"] == kind and info["meta"]["tokenizer"] == META["tokenizer"]
    for (name, a), (_, b) in zip(model.named_parameters(), back.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    data = batch(kind, model.config)
    assert difference(outputs(kind, model, data), outputs(kind, back, data)) < 1e-6


@KINDS
@pytest.mark.parametrize("gelu", ["tanh", "exact"])
@pytest.mark.parametrize("bias", [True, False])
def test_transformers_and_back(kind, gelu, bias, tmp_path):
    """Opened by transformers: equal outputs. Saved by transformers: read back, equal again."""
    transformers = pytest.importorskip("transformers")
    ours = used(kind, gelu=gelu, bias=bias)
    export(ours, META, str(tmp_path / "a"))
    cls = getattr(transformers, hf.CLASSES[kind])
    theirs, report = cls.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert sum(p.numel() for p in theirs.parameters()) == \
        make(kind, **{**SIZES, "bias": True}).num_params()
    theirs.eval().save_pretrained(tmp_path / "b")
    back = hf.from_hf(str(tmp_path / "b"))
    data = batch(kind, ours.config)
    with torch.no_grad():
        want, again = outputs(kind, ours, data), outputs(kind, back, data)
        if kind == "gpt":
            got = [theirs(data["idx"]).logits]
        else:
            out = theirs(input_ids=data["idx"], token_type_ids=data["segments"],
                         attention_mask=data["attn_mask"].long())
            got = [out.prediction_logits[data["attn_mask"]], out.seq_relationship_logits]
    assert difference(want, again) < 1e-6
    assert difference(got, want[:len(got)]) < 1e-6


@KINDS
@pytest.mark.parametrize("tokenizer", ["bytes", "char", "gpt2", "wordpiece"])
def test_tokenizer_files(kind, tokenizer, tmp_path):
    """transformers' tokenizer gives the same ids, and the same text back."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("tokenizers")
    if kind == "bert" and tokenizer == "char":
        pytest.skip("char has no special ids: no BERT can be trained on it")
    text = "the cats sat. the\ncat" if tokenizer == "wordpiece" else "Ā the cats'll sat.\n\n it"
    meta = dict(tokenizer=dict(name=tokenizer, vocab=VOCAB if tokenizer == "wordpiece" else
                               sorted(set(text)) if tokenizer == "char" else None))
    try:
        tok = get_tokenizer(meta, bert=kind == "bert")
    except UserError as e:
        pytest.skip(str(e))
    export(used(kind, vocab_size=64), meta, str(tmp_path / "hf"))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = theirs(text, add_special_tokens=False)["input_ids"]
    assert ids == tok.encode(text)
    assert len(theirs) == tok.vocab_size and theirs.decode(ids) == tok.decode(ids)
    if tok.special:
        s = tok.special
        assert [theirs.cls_token_id, theirs.sep_token_id, theirs.mask_token_id,
                theirs.pad_token_id] == [s["cls"], s["sep"], s["mask"], s["pad"]]
        assert theirs(text, text)["input_ids"] == [s["cls"], *ids, s["sep"], *ids, s["sep"]]
    if tokenizer in ("gpt2", "bytes"):  # lm-evaluation-harness starts an empty context with it
        assert theirs.eos_token_id == theirs.bos_token_id == tok.eot
        assert theirs.decode([*ids, tok.eot], skip_special_tokens=True) == tok.decode(ids)


@KINDS
def test_growing_from_a_folder_preserves_the_function(kind, folders):
    model = hf.from_hf(folders[kind][1])
    data = batch(kind, model.config)
    before = outputs(kind, model, data)
    grown, _ = grow(model, n_layer=3, n_embd=20, n_head=5, n_inner=33)
    assert difference(before, outputs(kind, grown, data)) < 1e-5  # float32
    set_mask(grown, 1)
    assert all(make().shape == shape for _, _, shape, make in hf.entries(grown))


@KINDS
def test_train_starts_and_grows_from_a_folder(kind, folders, tmp_path):
    """The sizes are the folder's; stages grow from there; --resume needs no new flags."""
    data, out = str(make_data(tmp_path / "data")), str(tmp_path / "out")
    settings = dict.fromkeys(("block_size", "n_layer", "n_head", "n_embd", "n_inner", "head_dim"))
    settings.update(data_dir=data, out_dir=out, batch_tokens=48, warmup_iters=1, eval_interval=2, ramp_iters=2,
                    stages=[dict(at=1, n_embd=16, n_head=4, n_layer=3)], learning_rate=0.0)
    where = f"--init_from={folders[kind][1]}"
    train_here(where, max_iters=4, **settings)
    state = checkpoint.load(out)
    assert state["model_config"]["n_embd"] == 16 and state["config"]["n_embd"] == 12
    old, new = folders[kind][0].wte.weight, state["model"]["wte.weight"]
    assert torch.equal(new[:, :12], old)  # learning_rate 0
    [growth] = events(out, "grow")
    assert abs(growth["val_loss_after"] - growth["val_loss_before"]) < 1e-5
    train_here("--resume", max_iters=6, **settings)
    assert checkpoint.load(out)["iter"] == 6


def test_cropped_block_size(folders, tmp_path):
    folder = folders["gpt"][1]
    config = from_args([f"--init_from={folder}", "--block_size=8", "--batch_tokens=64"])
    assert (config.block_size, config.n_embd, config.vocab_size, config.model) == (8, 12, 320, "gpt")
    model = make("gpt", torch.float32, **SIZES, block_size=8)
    model.load_state_dict(hf.state_from_hf(model, Weights(folder)))
    assert torch.equal(model.wpe.weight, folders["gpt"][0].wpe.weight[:8])


def test_names_of_old_files(folders):
    """gamma and beta, as the first BERTs were saved, and no transformer. before GPT-2's names."""
    for kind, (model, _) in folders.items():
        tensors = {k.removeprefix("transformer.").replace("LayerNorm.weight", "LayerNorm.gamma")
                   .replace("LayerNorm.bias", "LayerNorm.beta"): v
                   for k, v in theirs(model).items()}
        other = used(kind)
        other.load_state_dict(hf.state_from_hf(other, tensors))
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters()))


# -----------------------------------------------------------------------------
# what cannot be, in one line

def test_mid_ramp(tmp_path):
    model, _ = grow(used("gpt"), n_embd=16, n_head=4)
    set_mask(model, 0.25)
    with pytest.raises(UserError, match="mask 0.25.*train on until its ramp has ended"):
        export(model, META, str(tmp_path / "hf"))
    set_mask(model, 1)
    export(model, META, str(tmp_path / "hf"))


@pytest.mark.parametrize("n_head, advice", [(2, "n_head to 3"), (5, "n_embd to 20")])
def test_heads_of_another_width(n_head, advice, tmp_path):
    with pytest.raises(UserError, match=f"n_embd=12.*grow {advice}"):
        export(used("gpt", n_head=n_head), META, str(tmp_path / "hf"))
    assert not (tmp_path / "hf").exists()


def test_a_folder_with_another_config_is_left_alone(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="choose another folder"):
        export(used("gpt"), META, str(tmp_path))


def altered(folder, tmp_path, **changes):
    """A copy of the folder whose config.json is changed."""
    for name in ("model.safetensors", "config.json"):
        shutil.copy(os.path.join(folder, name), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    return str(tmp_path)


@pytest.mark.parametrize("changes, said", [
    (dict(model_type="bloom"), "model_type must be gpt2 or bert or llama"),
    (dict(scale_attn_weights=False), "scale_attn_weights=False: only True"),
    (dict(activation_function="silu"), "activation 'silu'"),
    (dict(n_inner=24), r"h.0.mlp.c_fc.weight is \(12, 20\)|\(20, 12\)"),
])
def test_folders_that_are_something_else(changes, said, folders, tmp_path):
    with pytest.raises(UserError, match=said):
        hf.from_hf(altered(folders["gpt"][1], tmp_path, **changes))


def test_lacking_heads(folders):
    tensors = {k: v for k, v in theirs(folders["bert"][0]).items() if "cls." not in k}
    with pytest.raises(UserError, match="lacks the weights cls.*BertForPreTraining is needed"):
        hf.state_from_hf(used("bert"), tensors)


def test_weights_of_more_layers_than_the_config_says(folders, tmp_path):
    with pytest.raises(UserError, match=r"has the weights of \d layers, but its config.json says 1"):
        hf.from_hf(altered(folders["gpt"][1], tmp_path, n_layer=1))


def test_quantized_weights(folders, tmp_path):
    from safetensors.torch import load_file, save_file
    folder = altered(folders["gpt"][1], tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file({k: (100 * v).to(torch.int8) for k, v in weights.items()}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is I8: only F64"):
        hf.from_hf(folder)


def test_files_of_something_else_stay(folders, tmp_path):
    """A folder that tools.export did not write is not written to: others' weights, vocabularies, configs."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "vocab.txt").write_text("my words")
    shutil.copytree(folders["gpt"][1], tmp_path / "theirs")
    (tmp_path / "theirs" / hf.OURS).unlink()
    for name, holds in (("mine", "vocab.txt"), ("theirs", "config.json")):
        with pytest.raises(UserError, match=f"holds the {holds} of something else"):
            export(folders["gpt"][0], dict(tokenizer="bytes"), str(tmp_path / name))
    assert (tmp_path / "mine" / "vocab.txt").read_text() == "my words"


def test_damaged_weights(folders, tmp_path):
    folder = altered(folders["gpt"][1], tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        hf.from_hf(folder)


@pytest.mark.parametrize("args, said", [
    (["--n_embd=64"], "n_embd=64: init_from=.* has n_embd=12: leave it out, or grow to it"),
    (["--model=bert"], "model='bert': .* has model='gpt'"),
    (["--bias=False"], "bias=False: .* has bias=True"),
    (["--block_size=99"], "block_size=99: .* has block_size=12"),
])
def test_contradicting_settings(args, said, folders):
    with pytest.raises(UserError, match=said):
        from_args([f"--init_from={folders['gpt'][1]}", *args])


def test_another_tokenizer(folders, tmp_path):
    with pytest.raises(UserError, match="made with tokenizer gpt2, but .* trained with bytes"):
        hf.check_tokenizer(folders["gpt"][1], dict(tokenizer="gpt2"), "data/x")


def test_a_hub_name_without_a_network(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def fail(*args, **kwargs):
        raise ConnectionError("no network\nat all")
    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(UserError, match="no-such/model.*no download .ConnectionError.*: check the name, "
                       "or .*hf download no-such/model --local-dir=model, and give that") as e:
        from_args(["--init_from=no-such/model"])
    assert "\n" not in str(e.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="not installed.: pip install huggingface_hub, or "):
        from_args(["--init_from=no-such/model"])


# -----------------------------------------------------------------------------
# folders that say nonsense, or nothing

NONSENSE = [("n_embd", "12"), ("n_embd", -12), ("n_embd", 0), ("n_embd", None), ("n_embd", [12]),
            ("n_embd", 12.0), ("n_layer", True), ("n_head", 5), ("n_positions", "x"),
            ("vocab_size", {}), ("n_inner", "many"), ("activation_function", ["gelu"]),
            ("model_type", ["gpt2"]), ("n_layer", 5), ("n_positions", 99)]


@pytest.mark.parametrize("key, value", NONSENSE)
def test_nonsense_in_config_json(key, value, folders, tmp_path):
    with pytest.raises(UserError) as e:
        trained.open_model(altered(folders["gpt"][1], tmp_path, **{key: value}))
    assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize("content", ["", "[]", "3", "{", "null", "[" * 100000])
@pytest.mark.parametrize("name", ["config.json", hf.OURS])
def test_json_that_is_no_object(name, content, folders, tmp_path):
    shutil.copytree(folders["gpt"][1], tmp_path / "hf")
    (tmp_path / "hf" / name).write_text(content)
    with pytest.raises(UserError, match=f"{name}: (not JSON|is no JSON object)"):
        trained.open_model(str(tmp_path / "hf"))


@pytest.mark.parametrize("content", ["{}", '{"vocab_size": 3}', '{"tokenizer": 7}',
                                     '{"tokenizer": {}}', '{"tokenizer": "none"}',
                                     '{"tokenizer": {"name": "char"}}'])
def test_incomplete_nanogrow_json(content, folders, tmp_path):
    shutil.copytree(folders["gpt"][1], tmp_path / "hf")
    (tmp_path / "hf" / hf.OURS).write_text(content)
    with pytest.raises(UserError, match="lacks tokenizer|no tokenizer|is unknown|needs its"):
        get_tokenizer(trained.open_model(str(tmp_path / "hf"))[1]["meta"])


def gpt2_vocab(**changes):
    return {GPT2_IDS.get(i, f"t{i}"): i for i in range(50257)} | changes


def says(folder, tmp_path, name, content):
    """A copy of the folder in which only these files speak of the tokenizer."""
    to = tmp_path / "hf"
    shutil.copytree(folder, to, dirs_exist_ok=True)
    for old in hf.TOKENIZER_FILES:
        (to / old).unlink(missing_ok=True)
    for n, c in {name: content, **({"merges.txt": ""} if name == "vocab.json" else {})}.items():
        (to / n).write_text(c if isinstance(c, str) else json.dumps(c), encoding="utf-8")
    return str(to)


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.json"])
def test_a_gpts_tokenizer_is_what_its_folder_says(name, folders, tmp_path):
    """GPT-2's, if the vocabulary is GPT-2's; with as many ids and another text for one, it is not."""
    wrap = (lambda v: dict(model=dict(vocab=v))) if name == "tokenizer.json" else dict
    folder = says(folders["gpt"][1], tmp_path, name, wrap(gpt2_vocab()))
    assert hf.folder_meta(folder, "gpt") == dict(tokenizer="gpt2")
    hf.check_tokenizer(folder, dict(tokenizer=dict(name="gpt2", bert=False)), "data/x")
    for other in ({"\u0120the": 300, "t300": 262}, {"more": 50257}):
        folder = says(folders["gpt"][1], tmp_path, name, wrap(gpt2_vocab(**other)))
        refused = "is none that the tokenizers library reads" if name == "tokenizer.json" else \
            "a tokenizer of its own: only GPT-2's"
        with pytest.raises(UserError, match=refused):
            trained.open_model(folder)
        with pytest.raises(UserError, match=refused):  # init_from
            hf.check_tokenizer(folder, dict(tokenizer="gpt2"), "data/x")


@pytest.mark.parametrize("name, content", [
    ("vocab.json", "[1]"), ("vocab.json", {"a": "b", "c": None}), ("tokenizer.json", "{}"),
    ("tokenizer.json", {"model": {"vocab": [["a", 0]]}}), ("tokenizer.json", {"model": {"vocab": {}}}),
    ("tokenizer_config.json", "[]"), ("tokenizer.json", '{"model": {"vocab": {"a": [1]}}}')])
def test_nonsense_in_tokenizer_files(name, content, folders, tmp_path):
    for kind in ("gpt", "bert"):
        with pytest.raises(UserError):
            hf.check_tokenizer(says(folders[kind][1], tmp_path, name, content), META, "data/x")
        shutil.rmtree(tmp_path / "hf")


def test_a_folder_that_names_no_tokenizer(folders, tmp_path):
    """However many ids the model knows."""
    model = used("gpt", vocab_size=50304)
    export(model, META, str(tmp_path / "big"))
    for folder in (folders["gpt"][1], str(tmp_path / "big"), folders["bert"][1]):
        silent = says(folder, tmp_path, "merges.txt", "")
        with pytest.raises(UserError, match="nothing in it says what its tokenizer is"):
            trained.open_model(silent)
        with pytest.raises(UserError, match="nothing in it says"):
            hf.check_tokenizer(silent, META, "data/x")
        shutil.rmtree(silent)


def test_berts_vocabularies(folders, tmp_path):
    """vocab.txt or tokenizer.json, the same; one that tells capitals apart is not ours."""
    folder, want = folders["bert"][1], dict(tokenizer=dict(name="wordpiece", vocab=VOCAB))
    text = says(folder, tmp_path, "vocab.txt", "\n".join(VOCAB) + "\n")
    assert hf.folder_meta(text, "bert") == want
    (tmp_path / "hf" / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(UserError, match="a tokenizer of its own"):
        hf.folder_meta(text, "bert")
    said = dict(model=dict(vocab={w: i for i, w in enumerate(VOCAB)}), normalizer=dict(lowercase=True))
    assert hf.folder_meta(says(folder, tmp_path, "tokenizer.json", said), "bert") == want
    said["normalizer"]["lowercase"] = False
    with pytest.raises(UserError, match="a tokenizer of its own"):
        hf.folder_meta(says(folder, tmp_path, "tokenizer.json", said), "bert")


def test_a_download_has_the_tokenizer(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda name, allow_patterns: asked.extend(
        allow_patterns) or "x")
    assert hf.find("owner/name") == "x"
    assert {"tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"} < set(asked)


# -----------------------------------------------------------------------------
# a disk that is full

def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()} if folder.exists() else None


def test_a_full_disk_keeps_the_old_export(tmp_path):
    """Files may have as many bytes as there is room; whichever does not fit, the old one stays."""
    resource = pytest.importorskip("resource")
    export(used("gpt"), META, str(tmp_path / "old"))
    (tmp_path / "old" / "README.md").write_text("a user's own")
    before, limits = contents(tmp_path / "old"), resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (10, 1000, 10000):
        for name in ("old", "new"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
            try:
                with pytest.raises(UserError, match=f"{name}: cannot be written .*make room"):
                    export(used("gpt", n_layer=3), META, str(tmp_path / name))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            assert contents(tmp_path / name) == (before if name == "old" else None)
    export(used("gpt", n_layer=3), META, str(tmp_path / "old"))
    assert hf.from_hf(str(tmp_path / "old")).config.n_layer == 3
    assert contents(tmp_path / "old").keys() == before.keys()


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_export_leaves_nothing_behind(error, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise error
    monkeypatch.setattr("tools.export.write_weights", fail)
    with pytest.raises((UserError, KeyboardInterrupt)):
        export(used("gpt"), META, str(tmp_path / "hf"))
    assert not contents(tmp_path / "hf")


def test_the_files_of_another_tokenizer_go(tmp_path):
    pytest.importorskip("tokenizers")
    export(used("bert"), dict(tokenizer=dict(name="wordpiece", vocab=VOCAB)), str(tmp_path / "hf"))
    assert (tmp_path / "hf" / "vocab.txt").exists()
    export(used("bert"), META, str(tmp_path / "hf"))
    assert not (tmp_path / "hf" / "vocab.txt").exists()


def test_the_shards_of_an_earlier_export_go(tmp_path, monkeypatch):
    folder, write = str(tmp_path / "hf"), tools.export.write_weights
    for size in (6_000, 10_000, 10**9):
        monkeypatch.setattr(tools.export, "write_weights", lambda aside, entries: write(aside, [*entries], size))
        names = export(used("gpt"), META, folder)
        assert sorted(os.listdir(folder)) == names and any(name.startswith("model") for name in names)
    os.rename(tmp_path / "hf" / "model.safetensors", tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(UserError, match="holds the model-00001-of-00002.safetensors of something else"):
        export(used("gpt"), META, str(tmp_path))


def test_a_file_in_the_way(tmp_path):
    (tmp_path / "hf").write_text("a file")
    with pytest.raises(UserError, match="cannot be written .File exists"):
        export(used("gpt"), META, str(tmp_path / "hf"))


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    save("gpt", tmp_path / "out", n_head=3)
    (tmp_path / "out" / "config.json").write_text("{}")  # a run's, not a Hugging Face folder's
    code, out, err = main_in_process(monkeypatch, capsys, tools.export, "~/out", "~/folder")
    assert code == 0 and "GPT2LMHeadModel.from_pretrained" in out, err
    assert hf.from_hf(str(tmp_path / "folder")).config.n_embd == 12
    code, _, err = main_in_process(monkeypatch, capsys, tools.export, "~/out", "~/out")
    assert code == 2 and err.count("\n") == 1 and "choose another folder" in err


@pytest.mark.parametrize("kind", ["gpt", "bert", "llama"])
def test_an_exported_folder_is_fine_tuned_in_transformers(kind, tmp_path):
    """As docs/evaluation.md says: a step of a classifier of two classes, texts of two lengths."""
    transformers = pytest.importorskip("transformers")
    export(used(kind), META, str(tmp_path / "hf"))
    tok = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    tok.pad_token = tok.pad_token or tok.eos_token
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "hf", num_labels=2, pad_token_id=tok.pad_token_id)
    data = tok(["good", "no"], return_tensors="pt", padding=True)
    loss = model(**data, labels=torch.tensor([0, 1])).loss
    loss.backward()
    assert 0.2 < loss.item() < 2 and all(p.grad is not None for n, p in model.named_parameters() if "layer" in n)
