"""doc_mask: documents packed in a row know nothing of each other, and count their own positions."""
import json
from dataclasses import asdict

import pytest
import torch
from runs import TINY, cut_off, events, losses, make_data, train_here
from test_grow import BIGGER, batch, check_preserved, make
from test_operators import EVEN, EXACT, change

from base.errors import UserError
from data.dataset import read_meta
from data.loader import Loader
from grow import grow, set_mask
from layers import attend, positions_and_mask
from run import compiler, hf
from run.settings import from_dict
from run.trained import open_model
from tools.evaluate import Evaluator
from tools.export import export

KINDS = pytest.mark.parametrize("kind", ["gpt", "llama", "qwen"])
END = 7
META = dict(tokenizer=dict(name="bytes", bert=False), vocab_size=256, dtype="uint8", eot=END, sep=10)


def texts(*lengths):
    """Documents (1, n) of one stream: each begins with END, and is told from the next by it."""
    g = torch.Generator().manual_seed(3)
    return [torch.cat([torch.tensor([END]), torch.randint(8, 61, (n - 1,), generator=g)])[None]
            for n in lengths]


def total(model, stream):
    """The summed loss of a stream (1, n + 1), of which the last token is only predicted."""
    return model(stream[:, :-1], stream[:, 1:])[1] * (stream.size(1) - 1)


@KINDS
@pytest.mark.parametrize("ramp", [False, True])
def test_packed_is_each_alone(kind, ramp):
    """The loss of packed documents is theirs alone, to rounding, gradients too; on a ramp as well."""
    model = make(kind, eot=END)
    if ramp:
        model, _ = grow(model, **BIGGER)
        set_mask(model, 0.3)
    docs = texts(5, 1, 4, 2)
    packed = torch.cat([*docs, torch.tensor([[END]])], 1)
    alone = sum(total(model, torch.cat([d, torch.tensor([[END]])], 1)) for d in docs)
    gradients = torch.autograd.grad(alone, list(model.parameters()))
    together = total(model, packed)
    assert abs(together - alone) < 1e-12 * alone
    for a, b in zip(gradients, torch.autograd.grad(together, list(model.parameters()))):
        assert (a - b).abs().max() < 1e-11
    model.config.eot = None
    assert abs(total(model, packed) - alone) > 1e-3


@KINDS
def test_a_row_that_begins_and_ends_within_documents(kind):
    """Each document of a row is as it would be in a row of its own, in every row of a batch."""
    model, (a, b, c) = make(kind, eot=END), texts(6, 5, 4)
    row = torch.cat([a[:, 2:], b, c[:, :3]], 1)  # (1, 12): END is nowhere at its start
    rows = torch.cat([row, row.roll(4, 1)])
    got, _ = model(rows, rows)
    want = torch.cat([model(part, part)[0] for part in (row[:, :4], row[:, 4:9], row[:, 9:])], 1)
    assert (got[:1] - want).abs().max() < 1e-12
    assert (got[1:] - want).abs().max() > 1e-3


@KINDS
def test_growing_keeps_the_function(kind):
    model = make(kind, eot=END)
    data = batch(kind, model.config)
    data["idx"][:, 4] = END
    grown = check_preserved(kind, model, data=data, **BIGGER)
    assert grown.config.eot == END


def test_other_ways_to_grow():
    start = dict(eot=END)
    assert change("zero_output", "gpt", start=start, n_inner=33, n_head=4, n_layer=5) < EXACT
    assert change("net2net", "llama", start=start, **EVEN, noise=0) < EXACT


@pytest.mark.slow
@pytest.mark.parametrize("kind, mode", [("gpt", "model"), ("qwen", "block")])
def test_compiled(kind, mode):
    """The same loss, chunked where by block, and gradients as without torch.compile."""
    if compiler.broken("cpu"):
        pytest.skip("torch.compile does not work here")
    model, _ = grow(make(kind, eot=END), **BIGGER)
    set_mask(model, 0.5)
    data = batch(kind, model.config)
    data["idx"][0, 4] = data["idx"][1, 9] = END
    want = model(**data)[1]
    gradients = torch.autograd.grad(want, list(model.parameters()))
    compiler.compile_model(model, mode)
    got = model(**data, return_logits=mode == "model")[1]
    assert abs(got - want) < 1e-12
    for a, b in zip(gradients, torch.autograd.grad(got, list(model.parameters()))):
        assert (a - b).abs().max() < 1e-12
    compiler.forget_graphs()


@pytest.mark.parametrize("heads", [1, 3])
def test_plain_products_and_kernels_agree(heads, monkeypatch):
    """Those that compiled bfloat16 takes on a CPU, over more than one part."""
    config = make("gpt", block_size=300, eot=END).config
    idx = torch.randint(20, (2, 300))
    _, attn_mask = positions_and_mask(config, idx)
    q, k, v = (torch.randn(2, heads, 300, 4, dtype=torch.bfloat16) for _ in "qkv")
    want = attend(q, k, v, attn_mask, True)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert (attend(q, k, v, attn_mask, True).float() - want.float()).abs().max() < 0.1


@KINDS
def test_generation(kind):
    """Without the id as without doc_mask; with it as from full forward passes, past block_size too."""
    model = make(kind, eot=END).eval()
    plain = make(kind).eval()
    idx = texts(4)[0][:, 1:]
    got = model.generate(idx, 6, temperature=0)
    assert (got == END).any() or torch.equal(got, plain.generate(idx, 6, temperature=0))
    idx = torch.cat([torch.cat([*texts(2, 3)], 1), torch.cat([*texts(4, 1)], 1)])
    want = idx
    for _ in range(14):
        want = torch.cat((want, model(want[:, -12:])[0][:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(model.generate(idx, 14, temperature=0), want)


@pytest.mark.parametrize("model, optimizer", [("gpt", "adamw"), ("llama", "muon")])
def test_a_run(model, optimizer, data, tmp_path):
    """Grown, stopped on a ramp and resumed from the folder alone; evaluated and exported alike."""
    settings = dict(model=model, data_dir=data, doc_mask=True, optimizer=optimizer, schedule="constant")
    stages = [dict(at=6, n_inner=48, n_head=2), dict(at=15, n_embd=32, n_layer=3)]
    whole, halves, off = (str(tmp_path / n) for n in ("whole", "halves", "off"))
    train_here(out_dir=whole, stages=stages, max_iters=24, save_interval=19, keep_checkpoints=9, **settings)
    cut_off(whole, 19, halves)
    train_here("--resume", **dict.fromkeys(TINY), out_dir=halves)
    train_here(out_dir=off, stages=stages, max_iters=24, **{**settings, "doc_mask": False})
    pick = [[x for x in losses(o) if x[0] == "step"] for o in (whole, halves, off)]
    assert pick[0] == pick[1] != pick[2]
    changes = [abs(e["val_loss_after"] - e["val_loss_before"]) for e in events(whole, "grow")]
    assert len(changes) == 2 and max(changes) < 1e-5
    with pytest.raises(UserError, match="doc_mask=False: the checkpoint was trained with True"):
        train_here("--resume", **{**dict.fromkeys(TINY), "max_iters": 30}, out_dir=halves, doc_mask=False)
    evaluator, rows = Evaluator(whole), [([*b"\0some words\0other words"], 1), ([*b"\0other words"], 1)]
    assert evaluator.config.eot == 0
    [(both, _), (other, _)], [(some, _)] = (evaluator.nats(r, "x") for r in (
        rows, [([*b"\0some words\0"], 1)]))
    assert abs(both - some - other) < 1e-4 * both
    evaluator.config.eot = None
    assert evaluator.nats(rows, "x")[0][0] != both


def test_an_exported_folder_knows_it(tmp_path):
    pytest.importorskip("safetensors")
    model = make("llama", torch.float32, vocab_size=256, eot=END)
    export(model, META, str(tmp_path / "hf"))
    assert hf.from_hf(str(tmp_path / "hf")).config == model.config
    said = json.loads((tmp_path / "hf" / hf.OURS).read_text())
    for wrong in ("7", -1, 256):
        (tmp_path / "hf" / hf.OURS).write_text(json.dumps({**said, "doc_end": wrong}))
        with pytest.raises(UserError, match="doc_end"):
            open_model(str(tmp_path / "hf"))


def test_refused(tmp_path):
    with pytest.raises(UserError, match="doc_mask=True: means something with model='gpt'"):
        from_dict(dict(model="bert", doc_mask=True))
    folder = make_data(tmp_path / "data")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "eot": None}))
    config = from_dict(dict(data_dir=str(folder), doc_mask=True))
    with pytest.raises(UserError, match="doc_mask=True: .*names no eot"):
        Loader(config, read_meta(str(folder)), 256)


def test_an_older_checkpoint_called_it_doc_end():
    config = make("gpt", eot=END).config
    saved = {"doc_end" if k == "eot" else k: v for k, v in asdict(config).items()}
    assert type(config).from_saved(saved) == config
