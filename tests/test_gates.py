"""Gates of layers that rise one after another: in a growth, and from scratch (residual warmup)."""
import pytest
from runs import cut_off, events, losses, make_data, train_here
from test_grow import CASES, check_preserved, make

from base.errors import UserError
from grow import set_mask, warm_up_residuals
from run.arguments import from_args
from run.settings import from_dict


def open_gates(model, c):
    set_mask(model, c)
    return [1.0 if (g := model.masks.gate(i)) is None else round(g.item(), 6)
            for i in range(model.config.n_layer)]


def test_layers_come_one_after_another():
    model = make("gpt", n_layer=4)
    warm_up_residuals(model)
    assert open_gates(model, 0.0) == [0, 0, 0, 0]
    assert open_gates(model, 0.25) == [1, 0.5, 0.333333, 0.25]  # min(t / (T l), 1), T a quarter of the ramp
    assert open_gates(model, 0.75) == [1, 1, 1, 0.75]
    warm_up_residuals(model, stagger=False)
    assert open_gates(model, 0.25) == [0.25] * 4


@pytest.mark.parametrize("kind", CASES)
def test_a_staggered_growth_keeps_the_function(kind):
    model = make(kind)
    old = model.config.n_layer
    model = check_preserved(kind, model, n_layer=old + 3, stagger=True)
    assert open_gates(model, 0.5) == [1] * old + [1, 0.75, 0.5]


def test_a_run_and_its_resume(tmp_path):
    settings = dict(data_dir=str(make_data(tmp_path / "data")), n_layer=2, residual_warmup_iters=8, stagger=True,
                    schedule="constant")
    train_here(out_dir=tmp_path / "whole", max_iters=16, **settings, stages=[dict(at=12, n_layer=4)], ramp_iters=4)
    masks = {e["iter"]: e["mask"] for e in events(tmp_path / "whole", "step")}
    assert masks[1] == 0.125 and masks[7] == 0.875 and masks[8] == 1 and masks[13] == 0.25
    given = dict(out_dir=tmp_path / "cut", max_iters=12, **settings, stages=[], ramp_iters=None, eval_interval=5)
    train_here(**given, keep_checkpoints=9)
    cut_off(tmp_path / "cut", 5)
    train_here("--resume", **given)
    steps = [[x for x in losses(tmp_path / run) if x[0] == "step"][:12] for run in ("whole", "cut")]
    assert len(steps[0]) == 12 and steps[0] == steps[1]


def test_a_growth_within_the_warmup_is_refused(tmp_path):
    with pytest.raises(UserError, match="before iteration 14"):
        from_dict(dict(residual_warmup_iters=14, stages=[dict(at=12, n_layer=8)]))


def test_a_warmup_that_outlasts_the_run_is_refused():
    with pytest.raises(UserError, match="residual_warmup_iters=14: more than max_iters=12, "):
        from_args(["--residual_warmup_iters=14", "--max_iters=12", "--warmup_iters=5"])
    from_args(["--residual_warmup_iters=12", "--max_iters=12", "--warmup_iters=5"])


def test_a_trained_model_is_not_hidden_again():
    for setting in (dict(residual_warmup_iters=14), dict(zero_proj=True)):
        with pytest.raises(UserError, match="trained already"):
            from_dict(dict(setting, init_from="hf/somebody"))
