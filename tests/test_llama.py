"""Llama in a run, and to and from transformers: LlamaForCausalLM and Qwen3ForCausalLM."""
import json

import pytest
import torch
from runs import cut_off, events, losses, make_data, train_here
from test_grow import VARIANTS, batch, difference, make, outputs

from base.errors import UserError
from grow import grow
from run import hf, trained
from run.arguments import from_args
from tools.export import export

META = dict(tokenizer=dict(name="bytes", bert=False), vocab_size=256, dtype="uint8", eot=0, sep=10)
CHOICES = [choices for kind, choices in VARIANTS if kind == "llama"]


def used(choices, **kw):
    """In float32, its heads together wider than n_embd, which only Llama's may be."""
    return make("llama", torch.float32, **{**choices, "vocab_size": 320, "n_head": 4, **kw}).eval()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run(optimizer, tmp_path):
    """Grown in all dimensions by whole groups; stopped on a ramp, the rest is the same."""
    settings = dict(model="llama", data_dir=str(make_data(tmp_path / "data")), n_head=2, kv_group=2,
                    head_dim=8, qk_norm=True, tie=False, optimizer=optimizer, schedule="constant")
    stages = [dict(at=6, n_inner=48, n_head=4), dict(at=15, n_embd=32, n_layer=3)]
    whole, halves = str(tmp_path / "whole"), str(tmp_path / "halves")
    train_here(out_dir=whole, stages=stages, max_iters=26, save_interval=19, keep_checkpoints=9, **settings)
    cut_off(whole, 19, halves)
    train_here(out_dir=halves, stages=stages, max_iters=26, init_from="resume", **settings)
    pick = [[x for x in losses(o) if x[0] == "step"] for o in (whole, halves)]
    assert pick[0] == pick[1]
    changes = [abs(e["val_loss_after"] - e["val_loss_before"]) for e in events(whole, "grow")]
    assert len(changes) == 2 and max(changes) < 1e-5


@pytest.mark.parametrize("choices", CHOICES, ids=str)
def test_transformers_and_back(choices, tmp_path):
    """Opened by transformers: equal outputs. Saved by transformers, in shards: equal again."""
    transformers = pytest.importorskip("transformers")
    ours = used(choices, rope_theta=300.0, norm_eps=1e-6)
    export(ours, META, str(tmp_path / "a"))
    cls = getattr(transformers, "Qwen3ForCausalLM" if choices["qk_norm"] else "LlamaForCausalLM")
    theirs, report = cls.from_pretrained(tmp_path / "a", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert sum(p.numel() for p in theirs.parameters()) == ours.num_params()
    theirs.eval().save_pretrained(tmp_path / "b", max_shard_size="20KB")
    assert len(list((tmp_path / "b").glob("*.safetensors"))) > 1
    data = batch("llama", ours.config)
    for folder in ("a", "b"):
        back = hf.from_hf(str(tmp_path / folder))
        assert back.config == ours.config
        assert difference(outputs("llama", ours, data), outputs("llama", back, data)) < 1e-6
    with torch.no_grad():
        assert (ours(**data)[0] - theirs(data["idx"]).logits).abs().max() < 1e-5


def test_what_transformers_refuses(tmp_path):
    """Its Llama wants a hidden size that is a multiple of the heads, its Qwen3 does not."""
    with pytest.raises(UserError, match="n_embd=18 is no multiple of n_head=4, which LlamaForCausalLM wants "
                       "whatever head_dim is: grow n_embd to 20 or n_head to 6"):
        export(used(dict(kv_group=2), n_embd=18), META, str(tmp_path / "a"))
    assert not (tmp_path / "a").exists()
    transformers = pytest.importorskip("transformers")
    export(used(dict(qk_norm=True), n_embd=18), META, str(tmp_path / "b"))
    transformers.Qwen3ForCausalLM.from_pretrained(tmp_path / "b")


def test_a_run_from_a_folder(tmp_path):
    """The folder says what the model is; it grows from there and the function is kept."""
    pytest.importorskip("safetensors")
    folder, data = str(tmp_path / "hf"), str(make_data(tmp_path / "data"))
    export(used(dict(kv_group=2, qk_norm=True, tie=False), block_size=32), META, folder)
    sizes = dict.fromkeys(("n_layer", "n_head", "n_embd", "n_inner", "head_dim"))  # the folder's
    settings = dict(sizes, init_from=folder, data_dir=data, block_size=16, batch_tokens=64,
                    micro_batch=2, max_iters=6, stages=[dict(at=2, n_head=6, n_embd=20, n_layer=3)], ramp_iters=2)
    train_here(out_dir=str(tmp_path / "out"), **settings)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["kv_group"] == 2 and config["qk_norm"] and not config["tie"]
    growth, = events(tmp_path / "out", "grow")
    assert abs(growth["val_loss_after"] - growth["val_loss_before"]) < 1e-5
    with pytest.raises(UserError, match="kv_group=1: init_from=.* has kv_group=2: leave it out"):
        train_here(out_dir=str(tmp_path / "other"), **settings, kv_group=1)


@pytest.mark.parametrize("changes, says", [
    (dict(rope_scaling=dict(rope_type="llama3", factor=8.0)), "lacks low_freq_factor"),
    (dict(rope_parameters=dict(rope_type="yarn", rope_theta=1e4)), "'yarn'"),
    (dict(attention_bias=True), "attention_bias=True: only False"),
    (dict(num_key_value_heads=3), "num_key_value_heads=3: must be at least 1 and divide 4 query heads"),
    (dict(num_key_value_heads=0), "must be at least 1"),
    (dict(num_key_value_heads="2"), "num_key_value_heads"),
    (dict(hidden_size=None), "hidden_size"), (dict(hidden_act="gelu"), "hidden_act='gelu'"),
    (dict(head_dim=5), "head_dim=5.*even"), (dict(model_type="bloom"), "model_type must be"),
])
def test_folders_that_are_refused(changes, says, tmp_path):
    export(used({}), META, str(tmp_path))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(UserError, match=says):
        from_args([f"--init_from={tmp_path}"])
        trained.open_model(str(tmp_path))


def test_a_config_that_leaves_out_the_usual(tmp_path):
    """As older folders of Llama are: no head_dim, no key/value heads, rope_theta or eps."""
    export(used(dict(tie=False), n_embd=16), META, str(tmp_path))
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    for key in ("head_dim", "num_key_value_heads", "rope_theta", "rope_parameters", "rms_norm_eps",
                "tie_word_embeddings"):
        del said[key]
    path.write_text(json.dumps({**said, "rope_scaling": None}))
    kind, ours = hf.folder_config(str(tmp_path))
    assert kind == "llama" and ours["head_dim"] == 4 and ours["kv_group"] == 1 and not ours["tie"]
    assert ours["norm_eps"] == 1e-6 and ours["rope_theta"] == 10_000.0


def test_growing_a_folder_keeps_its_function(tmp_path):
    export(used(dict(kv_group=2)), META, str(tmp_path))
    model = hf.from_hf(str(tmp_path)).double()
    data = batch("llama", model.config)
    before = outputs("llama", model, data)
    grown, _ = grow(model, n_layer=4, n_head=8, n_embd=18, n_inner=30)
    assert difference(before, outputs("llama", grown, data)) < 1e-12
