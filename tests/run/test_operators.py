"""What the other growth operators keep and do not keep."""
import copy

import pytest
import torch
from runs import TINY, cut_off, events, losses, make_data, train_here
from test_grow import CASES, START, batch, difference, make, outputs

from base.errors import UserError
from run import operators
from run.settings import from_dict

UNEVEN, EVEN = dict(n_embd=20), dict(n_embd=2 * START["n_embd"])
EXACT, BROKEN = 1e-12, 1e-3


def change(operator, kind="gpt", start=None, **growth):
    """The relative change of the outputs at the moment of growth, float64."""
    model = make(kind, **(start or {}))
    data = batch(kind, model.config)
    before = outputs(kind, model, data)
    torch.manual_seed(1)
    grown, _ = operators.OPERATORS[operator][0](model, **growth)
    assert grown.masks.c is None or operator == "msg"
    assert all(getattr(grown.config, k) == v for k, v in growth.items() if k in ("n_embd", "n_layer"))
    after = outputs(kind, grown, data)
    if kind == "bert":
        after[2] = after[2][:, :START["n_embd"]]
    return difference(before, after)


@pytest.mark.parametrize("kind", CASES)
def test_layernorm_breaks_uneven_splits_but_not_masks(kind):
    """The comparison of the MSG paper's Figure 1: splitting 12 into 20 counts 8 of them twice."""
    assert change("net2net", kind, **UNEVEN, noise=0) > BROKEN
    assert change("net2net", kind, **EVEN, noise=0) < EXACT
    assert change("msg", kind, **UNEVEN) < EXACT
    assert change("msg", kind, **EVEN) < EXACT


@pytest.mark.parametrize("kind", CASES)
def test_net2net_keeps_what_no_layernorm_reads(kind):
    wider = dict(n_inner=33, n_head=4 if kind == "qwen" else 3)
    assert change("net2net", kind, **wider, noise=0) < EXACT
    assert change("net2net", kind, n_inner=3 * START["n_inner"], noise=0) < EXACT  # thirds are exact, too
    assert 1e-8 < change("net2net", kind, **wider) < 0.1  # the noise it trains with


@pytest.mark.parametrize("kind", ["gpt", "qwen"])
def test_what_the_others_do_not_keep(kind):
    wider, deeper = dict(n_inner=33, n_head=4), dict(n_layer=4)
    for operator, growth in [("direct", wider), ("direct", UNEVEN), ("direct", deeper),
                             ("aki", wider), ("aki", EVEN), ("stack", deeper),
                             ("interleave", deeper)]:
        assert change(operator, kind, **growth) > BROKEN, (operator, growth)


@pytest.mark.parametrize("kind", ["gpt", "llama", "qwen"])
def test_zero_output(kind):
    assert change("zero_output", kind, n_inner=33, n_head=4, n_layer=5) < EXACT
    assert change("zero_output", kind, n_layer=5) < EXACT
    every = dict(n_inner=33, n_head=4, n_embd=20, n_layer=5)
    for eps in (None, 0.1):  # which scales with n_embd, and is that of heads too
        start = dict(START, norm_eps=eps) if eps else {}
        assert change("zero_output", kind, start, n_embd=20) < EXACT
        assert change("zero_output", kind, start, **every) < EXACT
    with pytest.raises(ValueError, match="pre-LN"):
        change("zero_output", "bert", n_layer=3)


def test_zero_and_one_layer_growth():
    """From no layer all are random, from one all are copies of it; neither keeps the function."""
    one = make("gpt", n_layer=1)
    grown, _ = operators.direct(copy.deepcopy(one), n_layer=4)
    for block in grown.blocks:
        assert all(torch.equal(p, q) for p, q in zip(block.parameters(), one.blocks[0].parameters()))
    grown, _ = operators.direct(make("gpt", n_layer=0), n_layer=3)
    assert not torch.equal(grown.blocks[0].mlp.fc.weight, grown.blocks[1].mlp.fc.weight)
    for n in (0, 1):
        assert change("stack", start=dict(n_layer=n), n_layer=3) > BROKEN


def test_where_copies_come_from():
    model = make("gpt")
    old = [b.mlp.fc.weight.detach().clone() for b in model.blocks]
    for operator, order in (("stack", (0, 1, 0, 1)), ("interleave", (0, 0, 1, 1))):
        grown, _ = operators.OPERATORS[operator][0](copy.deepcopy(model), n_layer=4)
        assert all(torch.equal(b.mlp.fc.weight, old[i]) for b, i in zip(grown.blocks, order))


def test_aki_takes_new_units_from_the_layer_above():
    model = make("gpt", n_layer=3)
    above = model.blocks[1].mlp.fc.weight.detach().clone()
    torch.manual_seed(1)
    grown, _ = operators.aki(model, n_inner=40)
    new = grown.blocks[0].mlp.fc.weight[20:]  # nearly a permutation of the 20 units above
    assert (new.sort(0).values - above.sort(0).values).abs().max() < 0.01
    top = grown.blocks[2].mlp.fc.weight  # nothing above: nearly its own units
    assert torch.cdist(top[20:], top[:20]).min(1).values.max() < 0.01


def test_aki_leaves_no_two_units_alike():
    grown, _ = operators.aki(make("gpt", n_layer=3), n_inner=60)  # three times as many: some come from one
    for block in grown.blocks:
        units = block.mlp.fc.weight
        assert (torch.cdist(units, units) + torch.eye(60)).min() > 0


def test_split_map_is_as_even_as_possible_and_keeps_heads_whole():
    for n_old, n_new, unit in ((12, 20, 1), (12, 24, 1), (8, 20, 4), (3, 11, 1)):
        index = operators.split_map(n_old, n_new, unit)
        assert index[:n_old].tolist() == list(range(n_old)) and len(index) == n_new
        counts = torch.bincount(index)
        assert counts.max() - counts.min() <= 1
        heads = index.view(-1, unit)
        assert (heads - heads[:, :1] == torch.arange(unit)).all() and (heads[:, 0] % unit == 0).all()


@pytest.mark.parametrize("kind", ["gpt", "qwen"])
@pytest.mark.parametrize("operator", [o for o in operators.OPERATORS if o != "msg"])
def test_every_rival_trains(kind, operator):
    """Optimizer state travels: a step before and a step after the growth."""
    model = make(kind, torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    data = batch(kind, model.config)
    sizes = {k: v for k, v in dict(n_embd=20, n_inner=33, n_head=4, n_layer=5).items()
             if k in operators.OPERATORS[operator][1]}
    for growth in (sizes, None):
        optimizer.zero_grad()
        loss = model(**data)[1]
        loss.backward()
        optimizer.step()
        if growth:
            model, optimizer = operators.OPERATORS[operator][0](model, optimizer, **growth)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p).all() and p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("settings, words", [
    (dict(operator="stack"), "stages[0]: operator='stack' grows n_layer only, not n_inner"),
    (dict(operator="net2net"), "stages[2]: operator='net2net' grows n_embd, n_inner, n_head"),
    (dict(operator="zero_output", model="bert"), "pre-LN"),
    (dict(qk_norm=True), "qk_norm=True: means something with model='llama' only"),
    (dict(model="bert", rope_theta=5e5), "rope_theta=500000.0: means something with model='llama' only"),
    (dict(model="llama", gelu="exact"), "gelu='exact': means something with model='gpt' or 'bert' only"),
    (dict(model="llama", kv_group=2), "n_head=1: no multiple of kv_group=2"),
    (dict(model="llama", n_head=2, kv_group=2, stages=[dict(at=1, n_head=3)]),
     "stages[0]: n_head=3: no multiple of kv_group=2"),
    (dict(operator="net3net"), "must be one of 'msg', 'direct'"),
    (dict(stages=[dict(at=3, n_layer=2, operator="x")]), "stages[0]: operator='x': must be one of"),
])
def test_bad_settings(settings, words):
    with pytest.raises(UserError) as e:
        from_dict({**TINY, **settings})
    assert words.replace("n_embd, n_inner, n_head", "") in str(e.value).replace(
        "n_embd, n_inner, n_head", "")


def test_operators_in_a_run(tmp_path):
    """Each stage its own operator, no ramp for rivals; stopped mid-way, the rest is the same."""
    data = str(make_data(tmp_path / "data"))
    stages = [dict(at=12, n_inner=48, operator="net2net"),
              dict(at=20, n_embd=32), dict(at=29, n_layer=2, operator="stack")]
    settings = dict(data_dir=data, optimizer="muon", schedule="constant", dropout=0.0)
    whole, halves = str(tmp_path / "whole"), str(tmp_path / "halves")
    train_here(out_dir=whole, stages=stages, max_iters=36, save_interval=23, keep_checkpoints=9, **settings)
    cut_off(whole, 23, halves)  # on a ramp
    train_here(out_dir=halves, stages=stages, max_iters=36, init_from="resume", **settings)
    pick = [[x for x in losses(o) if x[0] == "step"] for o in (whole, halves)]
    assert pick[0] == pick[1]
    changes = [abs(e["val_loss_after"] - e["val_loss_before"]) for e in events(whole, "grow")]
    assert changes[1] < 1e-5 < 1e-4 < changes[2]
    assert [e["iter"] for e in events(whole, "ramp_end")] == [27]


def test_zero_output_in_a_run(tmp_path):
    """The norms' eps goes with the model into its checkpoints: stopped after the growth, the rest is the same."""
    settings = dict(data_dir=str(make_data(tmp_path / "data")), operator="zero_output", dropout=0.0, schedule="constant", ramp_iters=None,
                    stages=[dict(at=6, n_embd=32, n_head=2, n_layer=2)])
    whole, halves = str(tmp_path / "whole"), str(tmp_path / "halves")
    train_here(out_dir=whole, max_iters=16, **settings)
    train_here(out_dir=halves, max_iters=9, **settings)
    train_here(out_dir=halves, max_iters=16, init_from="resume", **settings)
    pick = [[x for x in losses(o) if x[0] == "step"] for o in (whole, halves)]
    assert pick[0] == pick[1]
    [growth] = events(whole, "grow")
    assert abs(growth["val_loss_after"] - growth["val_loss_before"]) < 1e-6
