"""What is given has an effect, is given once, and is a number: else one line that says so."""
import json

import pytest
from runs import TINY, train

import sample
from base.errors import Parser, UserError, number
from base.reading import read_json
from data.text import prepare
from lab import plan
from lab.campaign import Campaign
from lab.law import read_law
from lab.speedrun import read_experiment
from run.arguments import from_args
from run.hf import folder_config
from run.settings import MEANS, TrainConfig, from_dict, idle, plain

GROWS = "--stages=[dict(at=300, n_layer=8)]"
IDLE = [  # flags of which the last means nothing beside the others
    ["--schedule=constant", "--decay_iters=10"], ["--schedule=cosine", "--decay_iters=10"],
    ["--schedule=constant", "--decay_frac=0.5"], ["--decay_iters=10", "--decay_frac=0.5"],
    ["--schedule=constant", "--min_lr_frac=0.1"], ["--decay_frac=0", "--min_lr_frac=0.1"],
    ["--muon_learning_rate=0.1"], ["--ramp_iters=5"], ["--operator=stack"], ["--finish_stages=5"],
    ["--stages=[dict(at=300, n_layer=8, ramp_iters=9)]", "--ramp_iters=5"],
    ["--stages=[dict(at=300, n_layer=8, operator='stack')]", "--ramp_iters=5"],
    ["--stages=[dict(at=300, n_layer=8, operator='msg')]", "--operator=stack"],
    ["--operator=stack", "--stages=[dict(at=300, n_layer=8, ramp_iters=9)]"],
    ["--mask_frac=0.3"], ["--model=bert", "--sampling=random"], ["--model=bert", "--doc_mask=True"],
    ["--model=llama", "--gelu=tanh"], ["--model=llama", "--bias=False"], ["--kv_group=2"], ["--tie=False"],
    ["--model=bert", "--norm_eps=1e-6"], ["--rope_theta=5e5"], ["--rope_scaling=linear:2"], ["--qkv_bias=True"], ["--qk_norm=True"], ["--rewarm_iters=5"],
    ["--init_from=auto", "--rewarm_iters=5"], ["--family=end"],
    ["--stages=[dict(at=300, n_layer=8, finish_iters=0)]", "--finish_stages=5"],
    ["--stages=[dict(at=300, n_layer=8, finish_iters=9)]"]]
USED = [
    ["--decay_iters=10"], ["--schedule=cosine", "--min_lr_frac=0.1"], ["--min_lr_frac=0.1"],
    ["--optimizer=muon", "--muon_learning_rate=0.1", "--beta2=0.9"], [GROWS, "--ramp_iters=5"],
    [GROWS, "--operator=stack"], [GROWS, "--finish_stages=5"], ["--model=bert", "--mask_frac=0.3"],
    ["--model=llama", "--norm_eps=1e-6", "--qk_norm=True"], ["--sampling=random"],
    ["--model=llama", "--bias=True"], ["--stages=[]", "--ramp_iters=100"]]


@pytest.mark.parametrize("flags", IDLE)
def test_a_setting_without_effect_is_refused(flags, tmp_path):
    """On the command line, and in the config file that assigns it."""
    key = flags[-1][2:].partition("=")[0]
    with pytest.raises(UserError, match=rf"^{key}(\[0\] (ramp|finish)_iters)?=.*: means something with .* only: leave it out"):
        from_args(flags)
    (tmp_path / "c.py").write_text("\n".join(
        f"{k} = {json.loads(v) if v in () else v if v[0] in '[0123456789' or v in ('True', 'False') else repr(v)}"
        for k, _, v in (f[2:].partition("=") for f in flags)))
    with pytest.raises(UserError, match="means something with"):
        from_args([str(tmp_path / "c.py")])


@pytest.mark.parametrize("flags", USED)
def test_a_setting_with_effect_is_not(flags):
    from_args(flags)


def test_every_condition_is_tried():
    assert set(MEANS) == {f[-1][2:].partition("=")[0] for f in IDLE if "--stages" not in f[-1]}


def test_what_another_file_or_run_leaves_is_no_fault(tmp_path):
    """A base config's settings, and a config's that a flag turns off."""
    (tmp_path / "base.py").write_text("optimizer, muon_learning_rate = 'muon', 0.1\n"
                                      "stages, ramp_iters = [dict(at=300, n_layer=8)], 20\n")
    base, mine = str(tmp_path / "base.py"), tmp_path / "mine.py"
    assert from_args([base, "--optimizer=adamw", "--stages=[]"]).ramp_iters == 20
    head = f"import runpy\nglobals().update(runpy.run_path({base!r}))\n"
    mine.write_text(head + "stages = []\noptimizer = 'adamw'\n")
    assert from_args([str(mine)]).muon_learning_rate == 0.1
    mine.write_text(head + "stages = []\nramp_iters = 5\n")
    with pytest.raises(UserError, match="ramp_iters=5: means something with stages"):
        from_args([str(mine)])
    with pytest.raises(UserError, match="muon_learning_rate=0.2"):
        from_args([base, "--optimizer=adamw", "--muon_learning_rate=0.2"])
    config = from_dict(dict(muon_learning_rate=0.1, n_inner=800))
    assert idle(config) and plain(config) == TrainConfig(n_inner=800)


@pytest.mark.parametrize("argv", [
    ["--seed=1", "--seed=2"], ["--seed=1", "--seed=1"],
    ["--stages=[dict(at=300, n_layer=8, at=400)]"], ["--stages=[{'at': 300, 'n_layer': 8, 'at': 400}]"],
    ["--resume", ".", "--out_dir=x"]])
def test_nothing_is_given_twice(argv):
    with pytest.raises(UserError):
        from_args(argv)


def test_no_option_of_a_script_is_given_twice():
    p = Parser()
    p.add_argument("--one", type=number(int, 1), default=1)
    p.add_mutually_exclusive_group().add_argument("--some", nargs="+", default=["x"])
    p.add_argument("--pair", nargs=2)
    for argv in (["--one=1", "--one=1"], ["--on=1", "--one=2"], ["--pair", "a", "b", "--pair", "c", "d"]):
        with pytest.raises(UserError, match="given twice, leave one out"):
            p.parse_args(argv)
    assert p.parse_args(["--some", "a", "b", "--one=2", "--some", "c"]).some == ["a", "b", "c"]
    assert p.parse_args(["--one=3"]).one == 3 and p.parse_args([]).some == ["x"]


LONG = "1" + "0" * 400
NO_NUMBERS = [LONG, f"-{LONG}", "nan", "inf", "-0.0", "1e999", "True"]
FLOATS = [k for k, v in vars(TrainConfig()).items() if type(v) is float]
INTS = [k for k, v in vars(TrainConfig()).items() if type(v) is int]


@pytest.mark.parametrize("key", FLOATS + INTS)
def test_no_number_for_a_setting(key, tmp_path):
    """By flag, config file and config.json: one line that names it."""
    for text in NO_NUMBERS:
        with pytest.raises(UserError, match=f"^{key}="):
            from_args([f"--{key}={text}"])
        value = float(text) if text in ("nan", "inf") else json.loads(text.lower())
        with pytest.raises(UserError, match=f"^{key}="):
            from_dict({key: value})
        (tmp_path / "c.py").write_text(f"{key} = float('{text}')" if text in ("nan", "inf") else f"{key} = {text}")
        with pytest.raises(UserError, match=f"^{key}="):
            from_args([str(tmp_path / "c.py")])
        (tmp_path / "config.json").write_text(json.dumps({key: value}))
        with pytest.raises(UserError, match=f"^{key}="):
            from_args(["--resume", str(tmp_path)])


def test_no_number_in_a_script(tmp_path):
    """Long ones, NaN, infinities and -0.0: flags of every script, JSON, a law, a Hugging Face config.json."""
    for kind in (int, float):
        for text in NO_NUMBERS:
            with pytest.raises(Exception, match="must be a (whole|finite) number"):
                number(kind, 0)(text)
    law = dict(E=1.0, A=2.0, B=3.0, a=0.3, b=0.3)
    llama = dict(model_type="llama", vocab_size=64, max_position_embeddings=32, hidden_size=16,
                 num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    for text in [*NO_NUMBERS, "-1"]:
        text = {"nan": "NaN", "inf": "Infinity", "True": "true"}.get(text, text)
        path = tmp_path / "law.json"
        path.write_text(json.dumps({**law, "A": "!"}).replace('"!"', text))
        with pytest.raises(UserError, match="law.json"):
            read_law(str(path))
        for key in [*llama, "rms_norm_eps", "rope_theta", "head_dim", "num_key_value_heads"]:
            if key != "model_type":
                (tmp_path / "config.json").write_text(json.dumps({**llama, key: "!"}).replace('"!"', text))
                with pytest.raises(UserError, match="config.json"):
                    folder_config(str(tmp_path))
    (tmp_path / "n.json").write_text('{"n": 1e400}')
    with pytest.raises(UserError, match="lacks n"):
        read_json(str(tmp_path / "n.json"), n=float)


def test_train_says_it_in_one_line(data, tmp_path):
    for settings in (dict(learning_rate=LONG), dict(schedule="constant", decay_iters=9)):
        done = train(data_dir=data, out_dir=tmp_path / "out", check=False, **settings)
        assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert TINY["ramp_iters"] and not (tmp_path / "out").exists()


def test_an_option_without_effect_is_refused():
    p = Parser(means=dict(speed=("--fast", lambda a: a.fast)))
    p.add_argument("--fast", action="store_true")
    p.add_argument("--speed", type=number(float, 0), default=2)
    with pytest.raises(UserError, match="--speed: means something with --fast only: leave it out"):
        p.parse_args(["--speed=3"])
    assert p.parse_args(["--speed=2"]).speed == p.parse_args(["--fast", "--speed=2"]).speed == 2


@pytest.mark.parametrize("parse, argv, where", [
    (prepare.parse, "--input x --limit=3", "--dataset"), (prepare.parse, "--input x --vocab v", "wordpiece"),
    (prepare.parse, "--input x --eot=s", "a tokenizer.json"), (prepare.parse, "--input x --val y --val-fraction=0.2", "--val"),
    (prepare.parse, "--input x --val-within --seed=3", "--val-within"), (prepare.parse, "--dataset x --doc-sep=file", "--input"),
    (sample.parse, "run --temperature=0 --top_k=3", "--temperature above 0"), (plan.parse, "c.py --mfu=0.5", "--dry"),
    (plan.parse, "c.py --dry --seconds=1", "--dry"), (plan.parse, "--fit a --law=l --small=1e6", "a CONFIG")])
def test_of_the_scripts_neither(parse, argv, where):
    with pytest.raises(UserError, match="means something with .*" + where):
        parse(argv.split())


def test_nor_in_a_campaign(tmp_path):
    """A sweep of what has no effect tunes nothing; an override must mean something to one contestant."""
    base = dict(config="config/pystdlib_scratch.py", sweep=dict(learning_rate=[1e-3, 2e-3, 4e-3]))
    grown = dict(config="config/pystdlib_msg.py", against="a")
    for entry, overrides, key in (
            (dict(base, sweep=dict(muon_learning_rate=[0.1, 0.2, 0.3]), optimizer="adamw"), {}, "muon_learning_rate"),
            (base, dict(ramp_iters=9), "ramp_iters"), (base, dict(mask_frac=0.3), "mask_frac")):
        with pytest.raises(UserError, match=f"{key}=.*means something with"):
            Campaign(dict(contestants=dict(a=entry)), str(tmp_path), overrides=overrides)
    Campaign(dict(contestants=dict(a=base, b=grown)), str(tmp_path), overrides=dict(ramp_iters=9))
    for more in (dict(seed=5), dict(out_dir="x"), dict(init_from="hf/small")):  # a campaign's runs have their own
        with pytest.raises(UserError, match=f"{min(more)}: is the campaign's own"):
            Campaign(dict(contestants=dict(a={**base, **more})), str(tmp_path))
    with pytest.raises(UserError, match="ramp_iters=9: means something with stages"):
        read_experiment(["config/pystdlib_msg.py ramp_iters=9 stages=[]"])
    for what, overrides in ((["config/pystdlib_msg.py seed=1 seed=2"], {}),
                            (["config/pystdlib_msg.py seed=1"], dict(seed=2))):
        with pytest.raises(UserError, match="--seed: given twice"):
            read_experiment(what, overrides)
