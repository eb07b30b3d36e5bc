"""The next size up of a folder: for every kind that people have, in all dimensions; and what is refused."""
import json
import os
import re
import shutil
import subprocess
import sys
import types
from functools import partial

import pytest
import torch
from runs import ENV, events, make_data, train_here
from test_evaluate import main_in_process, save

from base.errors import UserError
from base.weights import Weights, write_weights
from model import MODELS
from run import hf
from run.trained import open_model
from tools import upscale
from tools.upscale import Growth

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")
LLAMA = dict(vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3)
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=16, rope_theta=500.0)
KINDS = {  # name: (transformers' config, its choices)
    "llama": ("LlamaConfig", dict(LLAMA, rms_norm_eps=1e-2)),
    "llama3": ("LlamaConfig", dict(LLAMA, rope_parameters=LLAMA3, head_dim=6, tie_word_embeddings=True)),
    "linear": ("LlamaConfig", dict(LLAMA, rope_parameters=dict(rope_type="linear", factor=4.0, rope_theta=1e4))),
    "mistral": ("MistralConfig", dict(LLAMA, sliding_window=None, head_dim=10)),
    "window": ("MistralConfig", dict(LLAMA, sliding_window=64)),
    "qwen2": ("Qwen2Config", dict(LLAMA, tie_word_embeddings=True)),
    "qwen3": ("Qwen3Config", dict(LLAMA, head_dim=16, rms_norm_eps=1e-2)),
    "gpt2": ("GPT2Config", dict(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=64,
                                initializer_range=0.3))}
LARGER = dict(n_layer=5, n_embd=48, n_inner=144, n_head=6)  # n_head * 8 = n_embd, as GPT-2 wants
ALONE = [dict(n_layer=5), dict(n_inner=144), dict(n_embd=48, n_head=6), dict(n_head=8), LARGER]


def make(kind, folder, dtype=torch.float32, **more):
    """A folder made by transformers, with norms and biases that are not 1 and 0."""
    name, choices = KINDS[kind]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**choices, **more})
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.add_(0.2 * torch.randn_like(p))
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: make(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


def theirs(folder):
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32)
    assert not report["missing_keys"] and not report["unexpected_keys"], report
    return model.eval()


@torch.no_grad()
def off(a, b, new_tokens=0):
    """Relative difference of the logits of two of transformers' models; equal greedy tokens?"""
    idx = torch.randint(97, (3, 40), generator=torch.Generator().manual_seed(1))
    x, y = a(idx).logits, b(idx).logits
    tokens = [m.generate(idx[:1, :5], max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
              for m in (a, b) if new_tokens]
    return ((x - y).abs().max() / x.abs().max()).item(), not tokens or torch.equal(*tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_read_written_and_grown_by_masks(kind, folders, tmp_path):
    """Logits as transformers has them, written by tools.export too; masks keep the function."""
    from test_grow import check_preserved

    from tools.export import export
    model = hf.from_hf(folders[kind])
    idx = torch.randint(97, (3, 60), generator=torch.Generator().manual_seed(1))
    export(model, dict(tokenizer="bytes"), str(tmp_path / "hf"))
    with torch.no_grad():
        want = theirs(folders[kind])(idx).logits
        for other in (model(idx, targets=idx)[0], theirs(tmp_path / "hf")(idx).logits):
            assert (want - other).abs().max() < 1e-5 * want.abs().max()
    assert hf.from_hf(str(tmp_path / "hf")).config == model.config
    check_preserved("llama", model.double(), **LARGER)


def random_ids(growth):
    return upscale.some_ids(growth.before, growth.folder, None)


@pytest.mark.parametrize("sizes", ALONE, ids=lambda s: "+".join(s))
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_function(kind, sizes, folders, tmp_path):
    if kind == "gpt2" and list(sizes) == ["n_head"]:
        with pytest.raises(UserError, match="n_head=8 heads of 8 are 64 wide, but n_embd=32, and GPT2LMHeadModel "
                           "wants them equal: grow n_embd to 64"):
            Growth(folders[kind], sizes)
        return
    growth = Growth(folders[kind], sizes)
    upscale.upscale(growth, str(tmp_path / "new"))
    difference, same = off(theirs(folders[kind]), theirs(tmp_path / "new"),
                           50 if sizes is LARGER else 0)
    assert difference < 1e-5 and same
    config = hf.folder_config(str(tmp_path / "new"))[1]
    assert {k: config[k] for k in sizes} == sizes
    assert upscale.check(growth, str(tmp_path / "new"), random_ids(growth)).endswith("50 of 50 tokens: the same function")


@pytest.mark.parametrize("kind", KINDS)
def test_in_float64(kind, tmp_path):
    """The folder's own format is kept, and all that it can say is exact."""
    folder = make(kind, tmp_path / "old", torch.float64)
    upscale.upscale(Growth(folder, LARGER), str(tmp_path / "new"))
    idx, logits = torch.randint(97, (3, 60), generator=torch.Generator().manual_seed(1)), []
    for name in (folder, str(tmp_path / "new")):
        sized, config = hf.folder_config(name)
        model = MODELS[sized][0](MODELS[sized][1](**config)).double()
        weights = Weights(name)
        assert {weights.dtype(key) for key in weights} == {"F64"}
        model.load_state_dict(hf.state_from_hf(model, weights))
        with torch.no_grad():
            logits.append(model(idx, targets=idx)[0])
    assert (logits[0] - logits[1]).abs().max() < 1e-12 * logits[0].abs().max()


@pytest.mark.parametrize("where", ["spread", "top"])
@pytest.mark.parametrize("kind", ["llama3", "qwen2", "qwen3", "gpt2"])
def test_new_weights_are_not_dead(kind, where, folders, tmp_path):
    """After one step all that keep_function() made zero has moved; after two, every number has."""
    growth = Growth(folders[kind], LARGER, where=where)
    upscale.upscale(growth, str(tmp_path / "new"))
    model = hf.from_hf(str(tmp_path / "new"))
    assert model.config.n_layer == 5
    torch.manual_seed(0)
    idx = torch.stack([torch.randperm(97)[:64] for _ in range(8)])  # every token is there
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    last = max(i for i, (_, is_new) in enumerate(growth.layers) if not is_new)
    for step in (1, 2):
        model(idx, targets=idx.roll(-1, 1))[1].backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, p in model.named_parameters():
            still = p == start[name]
            block = int(name.split(".")[1]) if name.startswith("blocks") else -1
            if step == 1:
                kept = ".proj." in name or name[:3] in ("wte", "wpe") or \
                    "ln_" in name and not growth.layers[block][1]  # a new layer's wait for its projections
                still &= (start[name] == 0) & kept
                if growth.old.llama and growth.old.tie and (block > last or f"{last}.mlp" in name):
                    still[growth.old.n_embd:] = False  # see keep_function(): nothing reads them yet
            if kind != "gpt2" or not name.endswith("attn.k.bias"):  # it moves no softmax: no gradient
                assert not still.any(), (step, name, still.sum())


def test_what_else_a_folder_has(folders, tmp_path):
    """Comes along as it is; only weights of other formats do not. Lists with an entry a layer grow."""
    old, new = tmp_path / "old", tmp_path / "new"
    make("qwen3", old, torch.bfloat16)
    said = json.loads((old / "config.json").read_text())
    said.update(layer_types=["full_attention"] * 2, per_layer=[7, 9], unknown=dict(a=[1, 2]), eos_token_id=[5, 6])
    (old / "config.json").write_text(json.dumps(said))
    others = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "chat_template.jinja": "{{ x }}",
              "generation_config.json": "{\"eos_token_id\": [5, 6]}", "LICENSE": "free", "special_tokens_map.json": "{}"}
    for name, text in {**others, "pytorch_model.bin": "old weights", "model.gguf": "old weights"}.items():
        (old / name).write_text(text)
    (old / "README.md").write_text("---\nlicense: mit\n---\n# Small\nIt is small.\n")
    growth = Growth(str(old), dict(n_layer=3, n_inner=96), name="me/small")
    upscale.upscale(growth, str(new), shard_size=20_000)
    assert {name: (new / name).read_text() for name in others} == others
    shards = sorted(n for n in os.listdir(new) if n.startswith("model-"))
    assert {*os.listdir(new)} == {*others, *shards, "README.md", "config.json", "model.safetensors.index.json"}
    assert len(shards) > 3 and all(os.path.getsize(new / n) < 20_000 + 2000 for n in shards)
    weights = Weights(str(new))
    assert {weights.dtype(name) for name in weights} == {"BF16"}
    grown = json.loads((new / "config.json").read_text())
    assert grown.pop("layer_types") == ["full_attention"] * 3 and grown.pop("per_layer") == [7, 9, 9]
    assert (grown.pop("num_hidden_layers"), grown.pop("intermediate_size")) == (3, 96)
    assert grown == {k: v for k, v in said.items() if k in grown} and said.keys() - grown.keys() == {
        "layer_types", "per_layer", "num_hidden_layers", "intermediate_size"}
    card = (new / "README.md").read_text()
    assert card.startswith("---\nlicense: mit\n---\n# small with n_layer=3 n_inner=96")
    assert "Layers come from: 0, 1, 1 (copy)." in card and "It is small." in card
    assert off(theirs(old), theirs(new)) == (0, True)


def test_16_bits_round_a_wider_model(tmp_path):
    old = make("llama", tmp_path / "old", torch.bfloat16)
    for float32, says in ((False, "16 bits round"), (True, "the same function")):
        growth = Growth(old, dict(n_embd=48, n_head=6), float32=float32)
        upscale.upscale(growth, str(tmp_path / says))
        assert says in upscale.check(growth, str(tmp_path / says), random_ids(growth))


def command(monkeypatch, capsys, *args):
    return main_in_process(monkeypatch, capsys, upscale, *map(str, args))


def test_a_run_of_ours_from_the_command_line(tmp_path, monkeypatch, capsys):
    save("gpt", tmp_path / "run", n_head=3)
    (tmp_path / "x.txt").write_text("some text")
    code, out, err = command(monkeypatch, capsys, tmp_path / "run", tmp_path / "new", "--n_layer=4", "--n_embd=16",
                             "--n_head=4", f"--text={tmp_path / 'x.txt'}")
    assert code == 0, err
    assert "n_layer=4" in out and "greedy continuations agree for 50 of 50 tokens: the same function" in out
    assert "9 tokens of" in out and (tmp_path / "new" / hf.OURS).exists()


def test_a_text_that_cannot_be_compared_on(folders, tmp_path, monkeypatch, capsys):
    """Is refused before anything is written, so the corrected command works."""
    args = folders["llama"], tmp_path / "new", "--n_layer=3"
    code, _, err = command(monkeypatch, capsys, *args, f"--text={tmp_path}/none.txt")
    assert code == 2 and err.count("\n") == 1 and not (tmp_path / "new").exists()
    (tmp_path / "x.txt").write_text("some text")
    monkeypatch.setattr(upscale, "fits_in_memory", lambda growth: False)
    code, _, err = command(monkeypatch, capsys, *args, f"--text={tmp_path}/x.txt")
    assert code == 2 and "nothing would be compared" in err and not (tmp_path / "new").exists()
    assert command(monkeypatch, capsys, *args)[0] == 0


@pytest.mark.parametrize("operator, order", [("stack", [0, 1, 0]), ("interleave", [0, 1, 1])])
def test_layers_repeated_as_passthrough_does(operator, order, folders, tmp_path, monkeypatch, capsys):
    code, out, err = command(monkeypatch, capsys, folders["llama"], tmp_path / "new", "--n_layer=3",
                             f"--operator={operator}")
    assert code == 0 and f"{operator} changes the function" in out, err
    assert float(re.search(r"at most (\S+) of", out)[1]) > 0.01
    old, new = Weights(folders["llama"]), Weights(str(tmp_path / "new"))
    name = "model.layers.{}.mlp.down_proj.weight".format
    assert all(torch.equal(new[name(i)], old[name(source)]) for i, source in enumerate(order))


@pytest.mark.parametrize("kind", ["gpt2", "llama3"])
def test_trained_on(kind, tmp_path):
    """train.py takes the larger folder, whose eps is its own, grows it by masks, and goes on after a stop."""
    old = make(kind, tmp_path / "old", vocab_size=256)
    (tmp_path / "old" / hf.OURS).write_text(json.dumps(dict(tokenizer="bytes")))
    upscale.upscale(Growth(old, LARGER), str(tmp_path / "new"))
    sizes = dict.fromkeys(("block_size", "n_layer", "n_head", "n_embd", "n_inner", "head_dim"))
    settings = dict(sizes, data_dir=str(make_data(tmp_path / "data")), out_dir=str(tmp_path / "out"), batch_tokens=128,
                    micro_batch=2, eval_seqs=4, ramp_iters=2, stages=[dict(at=2, n_layer=6, n_inner=160)], dropout=None,
                    schedule="constant")
    train_here(f"--init_from={tmp_path / 'new'}", max_iters=5, **settings)
    train_here("--resume", max_iters=7, **settings)
    model = open_model(str(tmp_path / "out"))[0]
    assert model.config.n_layer == 6 and model.config.norm_eps == hf.folder_config(old)[1]["norm_eps"] * 32 / 48
    growth, = events(tmp_path / "out", "grow")
    assert abs(growth["val_loss_after"] - growth["val_loss_before"]) < 1e-4


# -----------------------------------------------------------------------------
# what cannot be, in one line, and nothing is written

BAD = [(["--n_layer=1"], "asked for n_layer=1, but the model has n_layer=2: models only grow"),
       (["--n_layer=2"], "which is no growth"), ([], "no sizes, which is no growth"),
       (["--n_head=5"], "n_head=5: no multiple of kv_group=2"),
       (["--n_head=6"], "n_embd=32 is no multiple of n_head=6, which LlamaForCausalLM wants whatever head_dim "
        "is: grow n_embd to 36 or n_head to 8"),
       (["--n_embd=40", "--operator=stack"], "operator='stack' grows n_layer only, not n_embd"),
       (["--n_inner=96", "--where=top"], "--where: means something with --n_layer and"),
       (["--n_layer=3", "--operator=stack", "--where=top"], "--operator=zero_output only"),
       (["--n_layer=3", "--seed=2"], "--seed: means something with --n_embd, --n_inner or --n_head only"),
       (["--n_layer=3", "--check", "--no-check"], "not allowed with argument --check"),
       (["--n_layer=3", "--no-check", "--text=x"], "--text: means something with a comparison"),
       (["--n_layer=x"], "must be a whole number"), (["--n_layer=3", "--shard-size=big"], "shard-size")]


@pytest.mark.parametrize("args, said", BAD, ids=lambda a: " ".join(a) if isinstance(a, list) else "")
def test_bad_sizes(args, said, folders, tmp_path, monkeypatch, capsys):
    code, _, err = command(monkeypatch, capsys, folders["llama"], tmp_path / "new", *args)
    assert code == 2 and said in err and err.count("\n") == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("change, said", [
    (dict(model_type="bloom"), "model_type must be gpt2 or bert or llama or mistral or qwen2 or qwen3"),
    (dict(model_type="mistral", sliding_window=63), "sliding_window=63 is shorter than the context"),
    (dict(model_type="mistral"), "sliding_window=16 is shorter than the context"),
    (dict(rope_scaling=dict(type="yarn", factor=2.0)), "rotary positions of type 'yarn'"),
    (dict(rope_scaling=dict(type="linear")), "lacks factor"),
    (dict(layer_types=["sliding_attention"] * 2), "layer_types="),
    (dict(quantization_config=dict(bits=4)), "is quantized"), (dict(attention_bias=True), "attention_bias=True")])
def test_folders_of_another_kind(change, said, folders, tmp_path, monkeypatch, capsys):
    shutil.copytree(folders["llama"], tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config = {"sliding_window": 16, **config, **change}
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    code, _, err = command(monkeypatch, capsys, tmp_path / "old", tmp_path / "new", "--n_layer=3")
    assert code == 2 and said in err and err.count("\n") == 1 and not (tmp_path / "new").exists()


@pytest.mark.parametrize("kind, name", [
    ("llama", "lm_head.weight"), ("gpt2", "lm_head.weight"), ("gpt2", "score.weight")])
def test_a_second_head(kind, name, tmp_path, monkeypatch, capsys):
    """A second copy of tied weights may be there, if it is equal. What no language model has would be lost."""
    folder = make(kind, tmp_path / "old", tie_word_embeddings=True)
    weights = Weights(folder)
    entries = {k: weights[k] for k in weights}
    twin = next(v for k, v in entries.items() if k.endswith(("embed_tokens.weight", "wte.weight")))
    for value, said in ((twin, ""), (twin + 1, f"{name} differs from")):
        write_weights(folder, ((k, "F32", v.shape, lambda v=v: v) for k, v in {**entries, name: value}.items()))
        code, _, err = command(monkeypatch, capsys, folder, tmp_path / f"new{len(said)}", "--n_layer=3")
        said = f"has {name}, which a GPT2LMHeadModel has not" if name == "score.weight" else said
        assert code == 2 * bool(said) and said in err


def test_one_layer(tmp_path, monkeypatch, capsys):
    """transformers 5 writes a list of one layer_type."""
    folder = make("qwen3", tmp_path / "old", num_hidden_layers=1)
    assert command(monkeypatch, capsys, folder, tmp_path / "new", "--n_layer=3")[0] == 0
    assert off(theirs(folder), theirs(tmp_path / "new"))[0] < 1e-5


def test_places(folders, tmp_path, monkeypatch, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("mine")
    (tmp_path / "empty").mkdir()
    for source, to, said in [
            (folders["llama"], tmp_path / "full", "is not an empty folder"),
            (folders["llama"], tmp_path / "full" / "a", "is not an empty folder"),
            (tmp_path / "full", tmp_path / "new", "holds neither config.json and model.safetensors nor a run's"),
            ("nowhere", tmp_path / "new", "source='nowhere': must be a folder with config.json")]:
        code, _, err = command(monkeypatch, capsys, source, to, "--n_layer=3")
        assert code == 2 and said in err and err.count("\n") == 1
    assert (tmp_path / "full" / "a").read_text() == "mine" and not (tmp_path / "new").exists()
    code, _, err = command(monkeypatch, capsys, folders["llama"], tmp_path / "empty", "--n_layer=3", "--no-check")
    assert code == 0, err


def test_a_disk_that_is_full(folders, tmp_path, monkeypatch, capsys):
    """Known before the first tensor, or met on the way: nothing is left behind."""
    def usage(path):
        return types.SimpleNamespace(free=1000)
    monkeypatch.setattr(upscale.shutil, "disk_usage", usage)
    code, _, err = command(monkeypatch, capsys, folders["llama"], tmp_path / "new", "--n_layer=3")
    assert code == 2 and "1,000 are free" in err and not (tmp_path / "new").exists()
    monkeypatch.undo()
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, limits[1]))
    try:
        code, _, err = command(monkeypatch, capsys, folders["llama"], tmp_path / "new", "--n_layer=3")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2 and "cannot be written (File too large)" in err and not (tmp_path / "new").exists()


MEASURED = """
import resource, sys
import tools.upscale as u
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
growth = u.Growth(sys.argv[1], dict(n_layer=25, n_embd=1280, n_inner=4096, n_head=20))
before = peak()
u.upscale(growth, sys.argv[2])
print(before, peak())
"""


@pytest.mark.slow
def test_peak_memory(tmp_path):
    """A folder of 650 MB into one of 1 GB, with less than 100 MB: not even a shard is in memory."""
    pytest.importorskip("resource")
    (tmp_path / "old").mkdir()
    config = dict(model_type="llama", vocab_size=8000, hidden_size=1024, intermediate_size=3584, num_hidden_layers=23,
                  num_attention_heads=16, num_key_value_heads=4, max_position_embeddings=512)
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    kind, sizes = hf.folder_config(str(tmp_path / "old"))
    with torch.device("meta"):
        model = MODELS[kind][0](MODELS[kind][1](**sizes))
    shapes = {name: p.shape for name, p in model.named_parameters()}
    write_weights(tmp_path / "old", [(theirs, "BF16", shapes[ours], partial(torch.ones, shapes[ours]))
                                     for theirs, [ours] in hf.their_tensors(model).items()], shard_size=300 * 10**6)
    assert sum(f.stat().st_size for f in (tmp_path / "old").iterdir()) > 600 * 10**6
    done = subprocess.run([sys.executable, "-c", MEASURED, str(tmp_path / "old"), str(tmp_path / "new")],
                          capture_output=True, text=True, env=ENV, check=True)
    before, after = map(int, done.stdout.split())
    print(f"peak {after} MiB, {before} before the first tensor")
    assert after - before < 100
    assert sum(f.stat().st_size for f in (tmp_path / "new").iterdir()) > 1000 * 10**6


def test_transformers_trainer(folders, tmp_path):
    """A larger folder is a plain model: transformers' own Trainer takes three steps on it."""
    pytest.importorskip("accelerate")
    upscale.upscale(Growth(folders["llama"], LARGER), str(tmp_path / "new"))
    model = theirs(tmp_path / "new")
    rows = [dict(input_ids=row, labels=row) for row in torch.randint(97, (24, 32))]
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = transformers.Trainer(model=model, train_dataset=rows, args=transformers.TrainingArguments(
        output_dir=str(tmp_path / "out"), max_steps=3, per_device_train_batch_size=8, learning_rate=1e-3,
        report_to=[], save_strategy="no", use_cpu=True))
    assert trainer.train().global_step == 3
    assert all(not torch.equal(p, start[name]) for name, p in model.named_parameters())
