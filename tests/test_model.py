"""The models by themselves: shapes, attention, generation, counts, and equality with transformers."""
import random

import pytest
import torch
from test_grow import BIGGER, CASES, CHOICES, START, batch, make, outputs
from torch.utils.flop_counter import FlopCounterMode

from grow import grow, set_mask
from layers import LOGITS_AT_ONCE, attend
from model import GPT, Bert, BertConfig, GPTConfig, Llama, LlamaConfig
from run.hf import state_from_hf

DECODERS = ["gpt", "llama", "qwen"]


@pytest.mark.parametrize("kind", DECODERS)
def test_forward(kind):
    model = make(kind, torch.float32)
    data = batch(kind, model.config)
    logits, loss = model(**data)
    assert logits.shape == (3, 12, 61) and loss.dim() == 0
    last, none = model(data["idx"])
    assert none is None and torch.allclose(last[:, 0], logits[:, -1], atol=1e-5)


@pytest.mark.parametrize("kind", DECODERS)
def test_is_causal(kind):
    model = make(kind)
    idx = batch(kind, model.config)["idx"]
    other = idx.clone()
    other[:, 7:] = (other[:, 7:] + 1) % 61
    a, b = (model(i, i)[0] for i in (idx, other))
    assert torch.equal(a[:, :7], b[:, :7]) and not torch.equal(a[:, 7:], b[:, 7:])


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("n_layer", [0, 2])
def test_generate_cache_agrees_with_full_forward(kind, n_layer):
    """Greedy, beyond block_size: the same tokens as the model without a cache."""
    model = make(kind, n_layer=n_layer).eval()
    idx = batch(kind, model.config)["idx"][:2, :3]
    got = model.generate(idx, 20, temperature=0)
    want = idx
    for _ in range(20):
        logits, _ = model(want[:, -12:])
        want = torch.cat((want, logits[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(got, want)


@pytest.mark.parametrize("eot", [None, 7])
@pytest.mark.parametrize("kind", DECODERS)
def test_any_split_into_cached_pieces_is_the_whole(kind, eot):
    """Property test, in the middle of a ramp: new tokens, one or many, see those before them alone."""
    model, _ = grow(make(kind, block_size=40, eot=eot).eval(), **BIGGER)
    set_mask(model, 0.5)
    rng = random.Random(0)
    for T in (2, 5, 12, 40):
        idx = torch.randint(12, (2, T), generator=torch.Generator().manual_seed(T))
        whole, targets = model(idx, idx)[0], idx
        for _ in range(4):
            cache = [[] for _ in model.blocks]
            ends = [0, *sorted(rng.sample(range(1, T), rng.randint(1, T - 1))), T]
            pieces = [model(idx[:, :end], targets[:, start:end], cache)[0]
                      for start, end in zip(ends, ends[1:])]
            assert (torch.cat(pieces, 1) - whole).abs().max() < 1e-12, ends


def test_generate_top_k_one_is_greedy():
    model = make("gpt").eval()
    idx = torch.zeros(1, 1, dtype=torch.long)
    assert torch.equal(model.generate(idx, 8, top_k=1), model.generate(idx, 8, temperature=0))


@pytest.mark.parametrize("kind", CASES)
def test_too_long_a_sequence(kind):
    with pytest.raises(ValueError, match="block_size is 12"):
        make(kind)(torch.zeros(1, 13, dtype=torch.long))


def test_init_is_gpt2s():
    model = GPT(GPTConfig(block_size=64, vocab_size=512, n_layer=4, n_head=4, n_embd=128, n_inner=512,
                          head_dim=32))
    std = {n: p.std().item() for n, p in model.named_parameters() if p.dim() == 2}
    assert abs(std["wte.weight"] - 0.02) < 1e-3
    assert abs(std["blocks.0.mlp.fc.weight"] - 0.02) < 1e-3
    assert abs(std["blocks.3.mlp.proj.weight"] - 0.02 / 8 ** 0.5) < 1e-3
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith("bias"))


def test_params_of_the_standard_sizes():
    with torch.device("meta"):
        assert GPT(GPTConfig(vocab_size=50257)).num_params() == 124_439_808
        large = BertConfig(n_layer=24, n_head=16, n_embd=1024, n_inner=4096)
        assert Bert(large).num_params() == 336_226_108
        smollm = LlamaConfig(block_size=2048, vocab_size=49152, n_layer=30, n_head=9, kv_group=3,
                             n_embd=576, n_inner=1536)
        assert Llama(smollm).num_params() == 134_515_008
        qwen = LlamaConfig(vocab_size=151_936, n_layer=28, n_head=16, kv_group=2, n_embd=1024,
                           n_inner=3072, head_dim=128, qk_norm=True)  # Qwen3-0.6B
        assert Llama(qwen).num_params() == 596_049_920


@pytest.mark.parametrize("kind", CASES)
def test_flops(kind):
    """Our count against torch's, forward and backward, within 2 %."""
    cls, config = CASES[kind]
    model = cls(config(block_size=128, vocab_size=512, n_layer=3, n_head=4, n_embd=128, n_inner=512,
                       head_dim=32, **CHOICES.get(kind, {})))
    data = batch(kind, model.config)
    data["targets"] = data["targets"].clamp(min=0)
    # the math form of attention: torch counts its two products, forward and backward, one by one
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), \
            FlopCounterMode(display=False) as counter:
        model(**data)[1].backward()
    ours = model.flops_per_token() * data["idx"].numel()
    assert abs(counter.get_total_flops() / ours - 1) < 0.02


def test_padding_influences_nothing():
    model = make("bert", torch.float32).eval()
    data = batch("bert", model.config)
    attn_mask = data["attn_mask"]
    other = {**data, "idx": torch.where(attn_mask, data["idx"], (data["idx"] + 7) % 61)}
    assert not torch.equal(other["idx"], data["idx"])
    for a, b in zip(outputs("bert", model, data), outputs("bert", model, other)):
        assert torch.equal(a, b)


def test_mlm_head_on_some_positions_only():
    model = make("bert").eval()
    data = batch("bert", model.config)
    full, _ = model(**data)
    where = torch.tensor([[1, 4], [0, 2], [3, 5]])
    some, loss = model(**{**data, "positions": where, "targets": data["targets"].gather(1, where)})
    assert some.mlm_logits.shape == (3, 2, 61)
    assert torch.allclose(some.mlm_logits, full.mlm_logits.gather(
        1, where[..., None].expand(-1, -1, 61)), atol=1e-12)


# -----------------------------------------------------------------------------
# transformers' models with the same weights: the same logits

@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.mark.parametrize("gelu", ["tanh", "exact"])
def test_gpt_equals_transformers(transformers, gelu):
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=61, n_positions=12, n_embd=12, n_layer=2, n_head=3, n_inner=20,
        activation_function=dict(tanh="gelu_new", exact="gelu")[gelu],
        initializer_range=0.1)).eval()
    ours = GPT(GPTConfig(**{**START, "n_head": 3, "gelu": gelu})).eval()
    ours.load_state_dict(state_from_hf(ours, theirs.state_dict()))
    idx = torch.randint(61, (3, 12))
    with torch.no_grad():
        assert (ours(idx, idx)[0] - theirs(idx).logits).abs().max() < 1e-5


def test_bert_equals_transformers(transformers):
    torch.manual_seed(0)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(
        vocab_size=61, max_position_embeddings=12, hidden_size=12, num_hidden_layers=2,
        num_attention_heads=3, intermediate_size=20, initializer_range=0.1)).eval()
    ours = Bert(BertConfig(**{**START, "n_head": 3})).eval()
    ours.load_state_dict(state_from_hf(ours, theirs.state_dict()))
    data = batch("bert", ours.config)
    with torch.no_grad():
        out, _ = ours(**data)
        want = theirs(input_ids=data["idx"], token_type_ids=data["segments"],
                      attention_mask=data["attn_mask"].long())
    attn_mask = data["attn_mask"]
    assert (out.mlm_logits - want.prediction_logits)[attn_mask].abs().max() < 1e-5
    assert (out.nsp_logits - want.seq_relationship_logits).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["Llama", "Qwen3"])
@pytest.mark.parametrize("tie", [True, False])
@pytest.mark.parametrize("kv_group", [1, 2, 4])
def test_llama_equals_transformers(transformers, name, tie, kv_group):
    """Rotary, SwiGLU, RMSNorm, grouped queries, heads of another width than n_embd / n_head."""
    torch.manual_seed(0)
    ours = make("llama", torch.float32, n_head=4, kv_group=kv_group, tie=tie, rope_theta=500.0,
                qk_norm=name == "Qwen3", head_dim=6, norm_eps=1e-6).eval()
    c = ours.config
    theirs = getattr(transformers, name + "ForCausalLM")(getattr(transformers, name + "Config")(
        vocab_size=61, max_position_embeddings=12, hidden_size=12, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=c.n_kv_head, intermediate_size=20, head_dim=6,
        rms_norm_eps=1e-6, rope_theta=500.0,
        rope_parameters=dict(rope_type="default", rope_theta=500.0), tie_word_embeddings=tie)).eval()
    with torch.no_grad():  # norms away from 1: a used model
        for p in theirs.parameters():
            p.add_(0.1 * torch.randn_like(p))
    ours.load_state_dict(state_from_hf(ours, theirs.state_dict()))
    idx = torch.randint(61, (3, 12))
    with torch.no_grad():
        assert (ours(idx, idx)[0] - theirs(idx).logits).abs().max() < 1e-5
        want = theirs.generate(idx[:, :4], attention_mask=torch.ones(3, 4), max_new_tokens=8,
                               do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(ours.generate(idx[:, :4], 8, temperature=0), want)


@pytest.mark.parametrize("tie", [True, False])
def test_chunked_loss_of_llama(tie, monkeypatch):
    """The loss without all logits in memory, and its gradients, tied and untied."""
    monkeypatch.setitem(LOGITS_AT_ONCE, "cpu", 9 * 61)
    found = []
    for return_logits in (True, False):
        model = make("llama", tie=tie)
        loss = model(**batch("llama", model.config), return_logits=return_logits)[1]
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    assert all((a - b).abs().max() < 1e-6 for a, b in zip(*found))


@pytest.mark.parametrize("changes, says", [
    (dict(n_head=3, kv_group=2), "n_head=3: no multiple of kv_group=2"),
    (dict(head_dim=5), "head_dim=5.*even"), (dict(bias=True), "no biases")])
def test_llamas_that_cannot_be(changes, says):
    with pytest.raises(ValueError, match=says):
        make("llama", **changes)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("T, cached", [(7, 0), (128, 0), (200, 0), (200, 60), (300, 160), (7, 6)])
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_attention_in_bfloat16_is_attention(backend, causal, T, cached):
    """The CPU's own path, with rows of queries that do not divide T, against float64's kernel on all T."""
    torch.compiler.reset()  # each has shapes of its own
    torch.manual_seed(0)
    qkv = torch.randn(3, 2, 3, T, 16, dtype=torch.bfloat16, requires_grad=True)
    attn_mask = None if causal else (torch.arange(T) < torch.tensor([[T], [T // 2]]))[:, None, None]
    wanted = attend(*qkv.double(), attn_mask, causal)[:, :, cached:]
    g = torch.randn_like(wanted)
    found = torch.compile(attend, fullgraph=True, dynamic=False, backend=backend)(
        qkv[0, :, :, cached:], *qkv[1:], attn_mask, causal)
    assert found.dtype == torch.bfloat16
    grads = [torch.autograd.grad(y, qkv, g.to(y.dtype))[0].double() for y in (wanted, found)]
    for a, b in ((wanted, found.double()), grads):
        assert (a - b).abs().max() < 0.02 * a.abs().max()
