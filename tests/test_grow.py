"""
Growing preserves the function, for any model, sizes, new weights, order of layers: the same tests
for every model in CASES. All in float64 with dropout off, unless a test says otherwise.
"""
import copy
import itertools
import random
import weakref

import pytest
import torch

import grow as grow_module
from grow import grow, layer_sources, role, set_mask, sizes_of
from layers import RMSNorm
from model import MODELS

START = dict(block_size=12, vocab_size=61, n_layer=2, n_head=2, n_embd=12, n_inner=20, head_dim=4)
BIGGER = dict(n_layer=5, n_head=4, n_embd=20, n_inner=33)
CASES = {**MODELS, "qwen": MODELS["llama"]}
# the llama case has what is simplest, the qwen case all that Llama has a choice of
CHOICES = {"qwen": dict(kv_group=2, qk_norm=True, tie=False, rope_theta=100.0)}
VARIANTS = [(kind, dict(bias=bias)) for kind in ("gpt", "bert") for bias in (True, False)] + [
    ("llama", dict(kv_group=kv_group, qk_norm=qk_norm, tie=tie))
    for kv_group in (1, 2) for qk_norm in (False, True) for tie in (True, False)]
EVERY_SUBSET = [c for r in (1, 2, 4) for c in itertools.combinations(BIGGER, r)]


def make(kind, dtype=torch.float64, seed=0, **kw):
    torch.manual_seed(seed)
    cls, config = CASES[kind]
    model = cls(config(**{**START, **CHOICES.get(kind, {}), **kw})).to(dtype)
    with torch.no_grad():  # biases and LayerNorm weights away from 0 and 1: a used model
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def batch(kind, config, seed=1):
    g = torch.Generator().manual_seed(seed)
    B, T, V = 3, config.block_size, config.vocab_size
    idx, targets = (torch.randint(V, (B, T), generator=g) for _ in range(2))
    if kind != "bert":
        return dict(idx=idx, targets=targets)
    lengths = torch.tensor([T, T - 3, T - 5])
    keep = torch.arange(T) < lengths[:, None]
    targets = torch.where(keep & (torch.rand(B, T, generator=g) < 0.5), targets, -1)
    return dict(idx=idx, segments=(torch.arange(T) >= 5).long().expand(B, T), attn_mask=keep,
                targets=targets, next_sentence=torch.tensor([0, 1, 0]))


def outputs(kind, model, data):
    """Everything the model says, as a list of tensors (padding positions left out)."""
    out, loss = model(**data)
    if kind != "bert":
        return [out, loss]
    return [out.mlm_logits[data["attn_mask"]], out.nsp_logits,
            out.pooled[:, :START["n_embd"]], loss]


def copied(new, old, spec):
    """The old coordinates again, in order."""
    for axis, n in enumerate(old.shape if old is not None else ()):
        old = old.index_select(axis, torch.arange(new.size(axis)) % n) if n else old
    new.normal_() if old is None or not old.numel() else new.copy_(old)


INITS = dict(own=None, zero=lambda new, old, spec: new.zero_(), copy=copied,
             hostile=lambda new, old, spec: new.normal_(0, 10))


def difference(before, after):
    """The largest difference of any output, relative to the largest output."""
    return max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(after, before))


def check_preserved(kind, model, tol=1e-12, data=None, **growth):
    data = data or batch(kind, model.config)
    before = outputs(kind, model, data)
    grown, _ = grow(model, **growth)
    assert difference(before, outputs(kind, grown, data)) < tol
    return grown


@pytest.mark.parametrize("kind, choices", VARIANTS)
@pytest.mark.parametrize("dims", EVERY_SUBSET, ids="+".join)
def test_function_preserved(kind, choices, dims):
    grown = check_preserved(kind, make(kind, **choices), **{d: BIGGER[d] for d in dims})
    assert sizes_of(grown.config) == {d: BIGGER[d] if d in dims else START[d] for d in BIGGER}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("interleave", [False, True])
def test_every_init_and_order(kind, init, interleave):
    check_preserved(kind, make(kind), **BIGGER, interleave=interleave, init=INITS[init])


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("size", [1e3, 1e8, 1e-8, -1e8])
def test_extreme_new_weights(kind, size):
    def extreme(new, old, spec):
        new.fill_(size)
    check_preserved(kind, make(kind), **BIGGER, init=extreme)


@pytest.mark.parametrize("cases", [10, pytest.param(25, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", CASES)
def test_random_sizes(kind, cases):
    """Property test: random starts, random growths, chains of three with a ramp in between."""
    rng = random.Random(0)
    for case in range(cases):
        group = rng.randint(1, 3) if kind == "qwen" else 1  # heads come in whole groups
        choices = dict(kv_group=group, tie=rng.random() < 0.5, qk_norm=rng.random() < 0.5,
                       head_dim=rng.choice([2, 4, 8])) if kind in ("llama", "qwen") else dict(
            bias=rng.random() < 0.5, gelu=rng.choice(["tanh", "exact"]),
            head_dim=rng.choice([1, 2, 4, 8]))
        model = make(kind, seed=case, n_layer=rng.randint(0, 3), n_head=group * rng.randint(1, 4),
                     n_embd=rng.randint(1, 24), n_inner=rng.randint(1, 40), **choices)
        if model.config.n_embd < 3:  # post-LN of one or two coordinates is a step function
            continue
        data = batch(kind, model.config)
        for _ in range(3):
            steps = {d: rng.randint(0, 5) * (group if d == "n_head" else 1) for d in BIGGER
                     if rng.random() < 0.6}
            sizes = {d: getattr(model.config, d) + n for d, n in steps.items() if n}
            if not sizes:
                continue
            before = outputs(kind, model, data)
            width = model.config.n_embd
            model, _ = grow(model, **sizes, init=rng.choice(list(INITS.values())),
                            interleave=rng.random() < 0.5)
            after = outputs(kind, model, data)
            if kind == "bert":
                before[2], after[2] = before[2][:, :width], after[2][:, :width]
            assert difference(before, after) < 1e-12, (case, sizes)
            set_mask(model, rng.random())
            set_mask(model, 1)


@pytest.mark.parametrize("kind", CASES)
def test_float32(kind):
    check_preserved(kind, make(kind, torch.float32), tol=1e-5, **BIGGER)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("interleave", [False, True])
def test_gradients(kind, interleave):
    """Old weights keep their gradients, newborn ones get none while the mask is 0."""
    model = make(kind)
    data = batch(kind, model.config)
    model(**data)[1].backward()
    before = {n: p.grad.clone() for n, p in model.named_parameters()}
    layers = layer_sources(START["n_layer"], BIGGER["n_layer"], interleave)
    grown, _ = grow(model, **BIGGER, interleave=interleave)
    grown(**data)[1].backward()
    scale = max(g.abs().max() for g in before.values())
    for name, p in grown.named_parameters():
        parts = name.split(".")
        if parts[0] == "blocks":
            source, is_new = layers[int(parts[1])]
            if is_new:
                assert p.grad.count_nonzero() == 0, name
                continue
            name = ".".join(["blocks", str(source), *parts[2:]])
        old = before[name]
        corner = tuple(slice(n) for n in old.shape)
        assert (p.grad[corner] - old).abs().max() < 1e-10 * scale, name
        newborn = p.grad.clone()
        newborn[corner] = 0
        assert newborn.count_nonzero() == 0, name


@pytest.mark.parametrize("kind, choices", [("gpt", {}), ("bert", {}), *VARIANTS[4:]])
def test_all_at_once_with_large_new_weights(kind, choices):
    """New weights N(0, 3): outputs to a few roundings, newborn gradients exactly 0."""
    def large(new, old, spec):
        new.normal_(0, 3)
    model = make(kind, **choices)
    data = batch(kind, model.config)
    before = outputs(kind, model, data)
    grown, _ = grow(model, **BIGGER, init=large)
    assert difference(before, outputs(kind, grown, data)) < 1e-14
    grown(**data)[1].backward()
    small = dict(type(model)(model.config).named_parameters())  # on top are only new layers
    for name, p in grown.named_parameters():
        newborn = p.grad.clone()
        if name in small:
            newborn[tuple(slice(n) for n in small[name].shape)] = 0
        assert newborn.count_nonzero() == 0, name


def test_rms_norm_must_not_count_newborn_coordinates(monkeypatch):
    """With the mean over all coordinates instead, logits of size 1 move by 1."""
    def over_all(self, x, m=None):
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight
        return y if m is None else m * y

    def large(new, old, spec):
        new.normal_(0, 3)
    model = make("llama")
    data = batch("llama", model.config)
    before = outputs("llama", model, data)[0]
    grown, _ = grow(model, **BIGGER, init=large)
    assert (outputs("llama", grown, data)[0] - before).abs().max() < 1e-13
    monkeypatch.setattr(RMSNorm, "forward", over_all)
    assert (outputs("llama", grown, data)[0] - before).abs().max() > 0.5 * before.abs().max()


def test_heads_grow_in_whole_groups():
    model = make("qwen")
    with pytest.raises(ValueError, match="n_head=3: .* kv_group=2.*whole groups.*n_kv_head"):
        grow(model, n_head=3)
    k = model.blocks[0].attn.k.weight.detach().clone()
    grown, _ = grow(model, n_head=6)
    assert grown.config.n_kv_head == 3 and grown.config.axis_sizes()["kv"] == 12
    assert torch.equal(grown.blocks[0].attn.k.weight[:4], k)


@pytest.mark.parametrize("kind", CASES)
def test_mask_one_is_a_plain_model(kind):
    """At mask 1 the model is a freshly built one with the same weights, bit for bit."""
    grown, _ = grow(make(kind, torch.float32), **BIGGER)
    set_mask(grown, 0.3)
    set_mask(grown, 1)
    cls, _ = CASES[kind]
    fresh = cls(grown.config)
    fresh.load_state_dict(grown.state_dict())
    data = batch(kind, grown.config)
    for a, b in zip(outputs(kind, grown, data), outputs(kind, fresh, data)):
        assert torch.equal(a, b)


@pytest.mark.parametrize("kind", CASES)
def test_ramp_is_continuous_and_reaches_the_clean_model(kind):
    grown, _ = grow(make(kind), **BIGGER)
    data = batch(kind, grown.config)
    set_mask(grown, 1 - 1e-9)
    almost = outputs(kind, grown, data)
    set_mask(grown, 1)
    assert difference(outputs(kind, grown, data), almost) < 1e-6


@pytest.mark.parametrize("kind", CASES)
def test_mid_ramp_state_dict(kind):
    """A checkpoint taken mid-ramp carries the masks, and a clean one clears them."""
    model = make(kind)
    clean = copy.deepcopy(model.state_dict())
    assert not any("mask" in k for k in clean)
    data = batch(kind, model.config)
    grown, _ = grow(model, **BIGGER, interleave=True)
    set_mask(grown, 0.25)
    other = type(grown)(grown.config).double()
    other.load_state_dict(grown.state_dict())
    for a, b in zip(outputs(kind, grown, data), outputs(kind, other, data)):
        assert torch.equal(a, b)
    set_mask(grown, 1)
    other.load_state_dict(grown.state_dict())
    assert other.masks.c is None and not other.masks.new_layers


def optimizers_of(model, names):
    made = []
    for name in names:
        roles = dict(muon=["matrix"]).get(name, ["matrix", "embedding", "vector"]
                                          if len(names) == 1 else ["embedding", "vector"])
        groups = [dict(params=[p for n, p in model.named_parameters() if role(n) == r], role=r)
                  for r in roles]
        made.append(torch.optim.Muon(groups, lr=0.02) if name == "muon" else
                    torch.optim.AdamW(groups, lr=1e-2, fused=name == "fused"))
    return made


def train(model, optimizers, data, steps):
    losses = []
    for _ in range(steps):
        loss = model(**data)[1]
        loss.backward()
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)
        losses.append(loss.item())
    return losses


def test_an_optimizer_of_more_than_the_model():
    """It keeps what is not the model's: a second module's parameters, with their state."""
    model, probe = make("gpt", torch.float32), torch.nn.Linear(3, 1)
    opt = torch.optim.AdamW([dict(params=[*probe.parameters(), *model.parameters()])], lr=1e-2)
    probe(torch.ones(3)).sum().backward()
    opt.step()
    model, opt = grow(model, opt, n_inner=2 * model.config.n_inner)
    held = {id(p) for p in opt.param_groups[0]["params"]}
    assert held == {id(p) for p in [*probe.parameters(), *model.parameters()]} and probe.weight in opt.state


@pytest.mark.parametrize("names", [["adamw"], ["fused"], ["muon", "adamw"]], ids="+".join)
@pytest.mark.parametrize("n_layer", [0, 2])
@pytest.mark.parametrize("kind", CASES)
def test_optimizer_state_travels(kind, names, n_layer):
    model = make(kind, torch.float32, n_layer=n_layer)
    data = batch(kind, model.config)
    optimizers = optimizers_of(model, names)
    train(model, optimizers, data, 4)
    old = {n: {k: v.clone() if torch.is_tensor(v) else v for k, v in o.state[p].items()}
           for n, p in model.named_parameters() for o in optimizers if p in o.state}
    assert set(old) == {n for n, _ in model.named_parameters()}
    lr_before = [g["lr"] for o in optimizers for g in o.param_groups]
    model, same = grow(model, optimizers, **BIGGER)
    assert same is optimizers
    assert [g["lr"] for o in optimizers for g in o.param_groups] == lr_before
    for name, p in model.named_parameters():
        owners = [(o, g) for o in optimizers for g in o.param_groups
                  if any(q is p for q in g["params"])]
        assert len(owners) == 1 and owners[0][1]["role"] == role(name), name
        state = owners[0][0].state.get(p, {})
        if name not in old:
            assert not state, f"{name}: a new layer starts with no state"
            continue
        for key, before in old[name].items():
            if before.dim() == 0:
                assert state[key] == before
            else:
                corner = tuple(slice(n) for n in before.shape)
                assert state[key].shape == p.shape and torch.equal(state[key][corner], before)
                state[key][corner] = 0
                # momentum starts at zero, squares at the old ones' level: see the next test
                assert (state[key].count_nonzero() == 0) == (not key.endswith("_sq") or
                                                             p.shape == before.shape)
    live = {id(p) for p in model.parameters()}
    assert all(id(p) in live for o in optimizers for p in o.state)
    losses = train(model, optimizers, data, 3)
    assert all(torch.isfinite(torch.tensor(losses)))
    set_mask(model, 1)
    train(model, optimizers, data, 2)


TORCHS = [n for n in dir(torch.optim) if isinstance(getattr(torch.optim, n), type) and n != "Optimizer"]
MORE = [("Adam", dict(amsgrad=True)), ("AdamW", dict(fused=True)), ("AdamW", dict(foreach=True)),
        ("RMSprop", dict(centered=True, momentum=0.9)), ("SGD", dict(momentum=0.9, dampening=0.9)),
        ("Adagrad", dict(initial_accumulator_value=0.1))]


def noisy_steps(model, optimizer, steps):
    """Steps on random gradients, of one size everywhere; returns how far the last moved each parameter."""
    for _ in range(steps):
        had = {n: p.detach().clone() for n, p in model.named_parameters()}
        for p in model.parameters():
            g = torch.randn_like(p)
            p.grad = g.to_sparse() if isinstance(optimizer, torch.optim.SparseAdam) else g
        optimizer.step(*[lambda: 0.0] * isinstance(optimizer, torch.optim.LBFGS))
    return {n: p.detach() - had[n] for n, p in model.named_parameters()}


def rms(pieces):
    return torch.cat([x.flatten() for x in pieces]).square().mean().sqrt()


@pytest.mark.parametrize("dims", [["n_embd", "n_inner", "n_head"], ["n_layer"]], ids="+".join)
@pytest.mark.parametrize("name, settings", [*((n, {}) for n in TORCHS), *MORE])
def test_every_optimizer_of_torch(name, settings, dims):
    """Newborn entries' updates are at most 1.2 times the old ones', or it is refused before anything happens."""
    model = make("gpt", torch.float32)
    for p in model.parameters():
        p.requires_grad_(name != "Muon" or p.dim() == 2)
    optimizer = getattr(torch.optim, name)([p for p in model.parameters() if p.requires_grad], **settings)
    sizes = {d: BIGGER[d] for d in dims}
    noisy_steps(model, optimizer, 3 if name == "LBFGS" else 40)
    small = {n: p.detach().clone() for n, p in model.named_parameters()}
    if name == "LBFGS":
        with pytest.raises(ValueError, match="LBFGS's state .* cannot grow: make a new LBFGS"):
            grow(model, optimizer, **sizes)
        assert all(torch.equal(p, small[n]) for n, p in model.named_parameters())
        noisy_steps(model, optimizer, 1)
        grow(model, optimizer := torch.optim.LBFGS(model.parameters()), **sizes)
        return
    model, _ = grow(model, optimizer, **sizes)
    for _ in range(3):
        moved = noisy_steps(model, optimizer, 1)
        if name == "Muon":
            moved = {n: d for n, d in moved.items() if d.dim() == 2}
        old = rms([d[tuple(slice(k) for k in small[n].shape)] for n, d in moved.items() if n in small])
        newborn = []
        for n, d in moved.items():
            born = torch.ones_like(d, dtype=torch.bool)
            if n in small:
                born[tuple(slice(k) for k in small[n].shape)] = False
            newborn.append(d[born])
        if dims != ["n_layer"] or name not in ("Adam", "AdamW", "Rprop"):  # which are checked below
            assert 0.1 * old < rms(newborn) <= 1.2 * old
    if dims == ["n_layer"]:
        source, copied = (optimizer.state[model.blocks[i].mlp.fc.weight] for i in (1, 3))
        assert source.keys() == copied.keys() and (name not in ("Adam", "AdamW") or copied["step"] == 3)


def test_an_averaged_weight_starts_as_the_weight():
    model = make("gpt", torch.float32)
    optimizer = torch.optim.ASGD(model.parameters(), t0=1)
    noisy_steps(model, optimizer, 5)
    model, _ = grow(model, optimizer, n_inner=33)
    for block in model.blocks:
        assert torch.equal(optimizer.state[block.mlp.fc.weight]["ax"][20:], block.mlp.fc.weight[20:])


def test_state_that_cannot_grow_is_an_error():
    """Of another shape, or of a name that nobody knows; and a layer from none, where it would need some."""
    for wrong in (dict(exp_avg=torch.ones(3)), dict(momenta=[torch.ones(2)]), dict(mystery=torch.ones(61, 12))):
        model = make("gpt", torch.float32)
        optimizer = torch.optim.SGD(model.parameters())
        optimizer.state[model.wte.weight] = wrong
        with pytest.raises(ValueError, match="SGD's state .* of wte.weight cannot grow"):
            grow(model, optimizer, n_inner=30)
        assert model.config.n_inner == model.blocks[0].mlp.fc.weight.size(0) == 20
    for name in ("Adagrad", "RMSprop", "RAdam"):
        model = make("gpt", torch.float32, n_layer=0)
        optimizer = getattr(torch.optim, name)(model.parameters())
        noisy_steps(model, optimizer, 2)
        with pytest.raises(ValueError, match="new layers have no source"):
            grow(model, optimizer, n_layer=2)
        assert not model.blocks and all(p.numel() for p in model.parameters())


@pytest.mark.parametrize("beta2", [0.95, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("steps_before", [1, 30, 2000])
@pytest.mark.parametrize("kind", ["steady", "random", "rows"])
def test_newborn_updates_stay_within_the_learning_rate(kind, steps_before, beta2):
    """AdamW's first updates of newborn coordinates: at most 1.2 x lr, under the old `step`."""
    torch.manual_seed(0)
    rows = torch.logspace(-3, 0, 12, dtype=torch.float64)[:, None]  # as in an embedding
    p, new = (torch.nn.Parameter(torch.zeros(n, m, dtype=torch.float64)) for n, m in ((12, 8), (16, 12)))

    def gradient(shape):
        g = torch.ones(shape, dtype=torch.float64) if kind == "steady" else \
            torch.randn(shape, dtype=torch.float64)
        if kind == "rows":  # new rows get gradients as the middling of the old ones
            g[:12] *= rows
            g[12:] *= rows.mean()
        return g
    optimizer = torch.optim.AdamW([p], lr=1.0, betas=(0.9, beta2), weight_decay=0.0, fused=True)
    for _ in range(steps_before):
        p.grad = gradient(p.shape)
        optimizer.step()
    grow_module._move_state(optimizer, p, new, None)
    optimizer.param_groups[0]["params"] = [new]
    most = 0.0
    for _ in range(1200):
        before, new.grad = new.detach().clone(), gradient(new.shape)
        optimizer.step()
        moved = (new.detach() - before).abs()
        moved[:12, :8] = 0
        most = max(most, moved.max().item())
    assert most <= 1.2


@pytest.mark.parametrize("kind", CASES)
def test_old_weights_move_as_if_nothing_had_grown(kind):
    """AdamW at mask 0: the old weights take exactly the steps they would have taken."""
    small, big = make(kind), make(kind)
    data = batch(kind, small.config)
    opt_small, opt_big = (torch.optim.AdamW(m.parameters(), lr=1e-2) for m in (small, big))
    train(small, [opt_small], data, 3)
    train(big, [opt_big], data, 3)
    big, _ = grow(big, opt_big, **BIGGER)
    a, b = train(small, [opt_small], data, 5), train(big, [opt_big], data, 5)
    assert max(abs(x - y) for x, y in zip(a, b)) < 1e-10


@pytest.mark.parametrize("kind", CASES)
def test_wholly_new_parameters_get_bias_correction(kind):
    model = make(kind, torch.float32)
    data = batch(kind, model.config)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    train(model, [opt], data, 50)
    model, _ = grow(model, opt, n_layer=3)
    set_mask(model, 0.5)
    w = model.blocks[2].mlp.proj.weight
    before = w.detach().clone()
    train(model, [opt], data, 1)
    assert (w - before).abs().max() < 1.01e-3  # one step of lr, not three


def test_optimizer_is_optional_and_single():
    model = make("gpt", torch.float32)
    opt = torch.optim.AdamW(model.parameters())
    grown, same = grow(model, opt, n_inner=30)
    assert same is opt and len(opt.param_groups[0]["params"]) == len(list(grown.parameters()))
    assert grow(make("gpt"), n_inner=30)[1] is None


@pytest.mark.parametrize("kind", CASES)
def test_old_tensors_are_freed(kind):
    model = make(kind)
    opt = torch.optim.AdamW(model.parameters())
    train(model, [opt], batch(kind, model.config), 1)
    shapes = {n: p.shape for n, p in model.named_parameters()}
    refs = {n: (weakref.ref(p), weakref.ref(opt.state[p]["exp_avg"]))
            for n, p in model.named_parameters()}
    big, _ = grow(model, opt, **BIGGER)
    assert sum(p.numel() for p in model.parameters()) == 0
    del model
    grown = [n for n, p in big.named_parameters() if n in shapes and p.shape != shapes[n]]
    assert len(grown) >= 20  # all but a few that have no axis that grows
    assert not any(r() is not None and r().numel() for n in grown for r in refs[n])


def test_layer_sources():
    assert layer_sources(3, 5) == [(0, False), (1, False), (2, False), (0, True), (1, True)]
    assert layer_sources(2, 4, interleave=True) == [(0, False), (0, True), (1, False), (1, True)]
    assert layer_sources(0, 2) == [(None, True), (None, True)]
    for n_old, n_new in itertools.product(range(1, 7), range(1, 14)):
        if n_new >= n_old:
            for interleave in (False, True):
                originals = [s for s, new in layer_sources(n_old, n_new, interleave) if not new]
                assert originals == list(range(n_old))


@pytest.mark.parametrize("sizes, says", [
    (dict(n_embd=8), ["n_embd=8", "n_embd=12", "more than 12"]),
    (dict(), ["no growth", "n_layer=2"]),
    (dict(n_layer=2, n_inner=20), ["no growth", "n_inner=20"]),
    (dict(n_head=2.5), ["n_head=2.5", "whole"]),
    (dict(n_inner=30, init="xavier"), ["xavier", "function"]),
])
def test_errors_leave_everything_as_it_was(sizes, says):
    model = make("gpt")
    data = batch("gpt", model.config)
    before = model(**data)[1]
    with pytest.raises(ValueError) as e:
        grow(model, **sizes)
    assert all(s in str(e.value) for s in says), e.value
    assert torch.equal(before, model(**data)[1])


def test_growing_during_a_ramp_is_an_error():
    model, _ = grow(make("gpt"), n_inner=30)
    with pytest.raises(ValueError, match="ramp.*set_mask"):
        grow(model, n_inner=40)
    set_mask(model, 1)
    grow(model, n_inner=40)


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_set_mask_range(value):
    model, _ = grow(make("gpt"), n_inner=30)
    with pytest.raises(ValueError, match="between 0 and 1"):
        set_mask(model, value)


def test_set_mask_without_growth():
    with pytest.raises(ValueError, match="nothing is growing"):
        set_mask(make("gpt"), 0.5)


def test_an_error_leaves_everything_as_it_was():
    """Also the one that is found late: no param_group for the layers of a model that had none."""
    model = make("gpt", torch.float32, n_layer=0)
    optimizer = torch.optim.AdamW([dict(params=[p]) for p in model.parameters()])
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    with pytest.raises(ValueError, match="no param_group"):
        grow(model, optimizer, n_layer=2)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert [g["params"][0] is p for g, p in zip(optimizer.param_groups, model.parameters())]


def test_each_module_keeps_its_mode():
    model = make("gpt")
    model.train()
    model.blocks[1].eval()
    model.dropout.eval()
    grown, _ = grow(model, n_layer=4, n_embd=20)
    assert [b.training for b in grown.blocks] == [True, False, True, False]
    assert grown.training and not grown.dropout.training and not grown.blocks[3].mlp.training
