"""Gates of layers that rise one after another: in a growth, and from scratch (residual warmup)."""
import pytest
from runs import events, losses, make_data, train_here
from test_grow import CASES, check_preserved, make

from base.errors import UserError
from grow import set_mask, warm_up_residuals


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
    data = str(make_data(tmp_path / "data"))
    settings = dict(data_dir=data, n_layer=2, residual_warmup_iters=8, stagger=True, dropout=0.0,
                    schedule="constant", stages=[dict(at=12, n_layer=4)])
    train_here(out_dir=tmp_path / "whole", max_iters=24, **settings)
    train_here(out_dir=tmp_path / "cut", max_iters=5, **{**settings, "stages": []})
    train_here("--resume", out_dir=tmp_path / "cut", max_iters=24, **settings)
    steps = [[x for x in losses(tmp_path / run) if x[0] == "step"] for run in ("whole", "cut")]
    assert steps[0] == steps[1]
    masks = {e["iter"]: e["mask"] for e in events(tmp_path / "whole", "step")}
    assert masks[1] == 0.125 and masks[7] == 0.875 and masks[8] == 1 and masks[13] == 0.125
    with pytest.raises(UserError, match="before iteration 14"):
        train_here(out_dir=tmp_path / "no", max_iters=24, **{**settings, "residual_warmup_iters": 14})
