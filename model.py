"""
GPT and BERT as two short assemblies of the same parts, and the masks that let both grow.

Every parameter knows what its axes mean ("embd", "inner", "head", ...) and how it is
initialised (`Spec`), so that growing a model (grow.py) needs no code per layer or per parameter.

While a model grows, its new coordinates carry a mask c that rises from 0 to 1 (Masked Structural
Growth, Yao et al., ICLR 2024, https://arxiv.org/abs/2305.02869). It acts in four places:

    n_inner   MLP          proj(m * gelu(fc(x)))
    n_head    Attention    proj(m * heads(x))
    n_embd    LayerNorm    statistics over the unmasked coordinates, output times m
    n_layer   Block        c * block(x) + (1 - c) * x

Nothing but a LayerNorm reads the residual stream, so masking the LayerNorms is enough for n_embd.
With no growth in progress there are no masks: no tensors, no cost, the same graph as without them.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F

from run.loss import RowLoss, head_loss

# the four sizes that grow, and the axis each of them is
GROWABLE = {"n_embd": "embd", "n_inner": "inner", "n_head": "head", "n_layer": "layer"}
WIDTH_AXES = ("embd", "inner", "head")


@dataclass
class GPTConfig:
    """GPT-2's architecture; the defaults are GPT-2 124M with its vocabulary padded to 64."""
    block_size: int = 1024      # longest sequence, tokens
    vocab_size: int = 50304     # number of token ids
    n_layer: int = 12           # blocks
    n_head: int = 12            # attention heads
    n_embd: int = 768           # hidden size, the width of the residual stream
    n_inner: int = 3072         # width of the FFN
    head_dim: int = 64          # width of a head: n_head * head_dim need not equal n_embd
    dropout: float = 0.0
    bias: bool = True           # biases in Linears and LayerNorms, as in GPT-2
    gelu: str = "tanh"          # "tanh" (GPT-2's gelu_new) or "exact"

    # what makes it a GPT rather than a BERT
    post_ln, causal, scale_residual, eps = False, True, True, 1e-5

    def axis_sizes(self):
        """The length of every named axis a parameter can have."""
        return dict(embd=self.n_embd, inner=self.n_inner, head=self.n_head * self.head_dim,
                    vocab=self.vocab_size, position=self.block_size, segment=2, label=2)


@dataclass
class BertConfig(GPTConfig):
    """BERT's architecture (Devlin et al. 2018); the defaults are Bert-base, uncased."""
    block_size: int = 512
    vocab_size: int = 30522
    gelu: str = "exact"

    post_ln, causal, scale_residual, eps = True, False, False, 1e-12


class Spec(NamedTuple):
    """What a parameter is: the meaning of its axes, and the normal distribution it starts from."""
    axes: tuple
    mean: float = 0.0
    std: float = 0.0


class Mask(NamedTuple):
    """The mask of each width axis, (size,) with values in [0, 1]; None where nothing grows."""
    embd: torch.Tensor | None = None
    inner: torch.Tensor | None = None
    head: torch.Tensor | None = None


class Masks(nn.Module):
    """
    The growth in progress, as buffers, so that a checkpoint taken mid-ramp has it all:
    `embd`, `inner`, `head`, `layer`: bool, True on the newborn coordinates of a grown axis;
    `c`: 0-D, the present height of the ramp. All are None when nothing grows.
    """

    def __init__(self):
        super().__init__()
        for name in (*WIDTH_AXES, "layer", "c"):
            self.register_buffer(name, None)
        self.new_layers = frozenset()

    def start(self, newborn, device, dtype):
        """newborn: axis -> bool tensor (size,). The ramp starts at 0."""
        for axis, new in newborn.items():
            self.register_buffer(axis, new.to(device))
        self.register_buffer("c", torch.zeros((), device=device, dtype=dtype))
        self._find_new_layers(newborn.get("layer"))

    def stop(self):
        for name in (*WIDTH_AXES, "layer", "c"):
            self.register_buffer(name, None)
        self.new_layers = frozenset()

    def _find_new_layers(self, layer):
        # which blocks are gated is a fact about the graph, so it is known to Python
        self.new_layers = frozenset(() if layer is None else layer.nonzero().flatten().tolist())

    def width(self):
        """The present masks of the width axes, as a Mask."""
        return Mask(*(None if (new := getattr(self, axis)) is None else
                      torch.where(new, self.c, torch.ones_like(self.c)) for axis in WIDTH_AXES))

    def gate(self, i):
        """c for a newborn block, None for the others."""
        return self.c if i in self.new_layers else None

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # the state dict says whether there is a growth in progress, whatever we had before
        for name in (*WIDTH_AXES, "layer", "c"):
            value = state_dict.get(prefix + name)
            self.register_buffer(name, None if value is None else torch.empty_like(value))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._find_new_layers(self.layer)


class Linear(nn.Linear):
    """
    nn.Linear with named axes. In: (..., in_axis), out: (..., out_axis). m: the mask of in_axis,
    (in_axis,): the layer of m * x, reckoned on the weight's columns, which are fewer than x's rows.
    """

    def __init__(self, config, out_axis, in_axis, std=0.02, bias=None):
        sizes = config.axis_sizes()
        super().__init__(sizes[in_axis], sizes[out_axis], config.bias if bias is None else bias)
        self.spec = dict(weight=Spec((out_axis, in_axis), std=std), bias=Spec((out_axis,)))

    def reset_parameters(self):
        pass  # Transformer.init_weights draws every parameter from its spec

    def forward(self, x, m=None):
        return F.linear(x, self.weight if m is None else self.weight * m, self.bias)


class Embedding(nn.Embedding):
    """nn.Embedding with named axes."""

    def __init__(self, config, axis):
        super().__init__(config.axis_sizes()[axis], config.n_embd)
        self.spec = dict(weight=Spec((axis, "embd"), std=0.02))

    def reset_parameters(self):
        pass


class LayerNorm(nn.Module):
    """
    LayerNorm over the residual stream that can ignore masked coordinates. With n = sum(m):
    mu = sum(m x) / n, var = sum(m (x - mu)^2) / n, y = m * ((x - mu) / sqrt(var + eps) * w + b).
    At c = 0 it is plain LayerNorm on the old coordinates and 0 on the new ones, at c = 1 plain
    LayerNorm on all of them. Computed in float32 at least, as autocast does with layer_norm.
    """

    def __init__(self, config):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.n_embd))
        self.bias = nn.Parameter(torch.empty(config.n_embd)) if config.bias else None
        self.eps = config.eps
        self.spec = dict(weight=Spec(("embd",), mean=1.0), bias=Spec(("embd",)))

    def forward(self, x, m=None):
        if m is None:
            return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        n = m.sum()
        d = x - (m * x).sum(-1, keepdim=True) / n
        var = (m * d * d).sum(-1, keepdim=True) / n
        y = d * torch.rsqrt(var + self.eps) * self.weight
        return m * (y if self.bias is None else y + self.bias)


def attend(q, k, v, keep=None, causal=False, dropout=0.0):
    """
    softmax(q k^T / sqrt(head_dim)) v. q, k, v: (B, n_head, T, head_dim); keep: None or bool,
    (B, 1, 1, T), False = not seen; causal: each position sees itself and those before (of as many
    queries as keys).

    By PyTorch's kernels, but for compiled bfloat16 on the CPU: there the kernel's backward took a
    third of a small model's step (torch 2.13, AMD EPYC). Plain products need about half the time, a
    few queries at a time, so that their scores stay in the cache and a causal model skips most of
    what it masks. Beyond 1024 positions they gain nothing and need memory that grows with T^2.
    """
    plain = torch.compiler.is_compiling() and q.device.type == "cpu" and q.dtype == torch.bfloat16
    if not plain or k.size(2) > 1024:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=dropout,
                                              is_causal=causal)
    T, rows, y = k.size(2), 128, []
    q = q / math.sqrt(q.size(-1))
    for i in range(0, q.size(2), rows):
        j = min(i + rows, T) if causal else T  # these queries see the keys before j
        scores = q[:, :, i:i + rows] @ k[:, :, :j].transpose(2, 3)
        if causal:
            hidden = torch.ones(scores.shape[2:], dtype=torch.bool).triu(i + 1)
            scores = scores.masked_fill(hidden, -math.inf)
        if keep is not None:
            scores = scores.masked_fill(~keep[..., :j], -math.inf)
        y.append(F.dropout(scores.softmax(-1), dropout) @ v[:, :, :j])
    return torch.cat(y, dim=2)


class Attention(nn.Module):

    def __init__(self, config, out_std):
        super().__init__()
        self.head_dim, self.causal = config.head_dim, config.causal
        # three matrices rather than one: each has one axis of heads, new heads go at its end
        self.q = Linear(config, "head", "embd")
        self.k = Linear(config, "head", "embd")
        self.v = Linear(config, "head", "embd")
        self.proj = Linear(config, "embd", "head", std=out_std)
        self.attn_dropout, self.dropout = config.dropout, nn.Dropout(config.dropout)

    def forward(self, x, m=None, keep=None, cache=None):
        B, T, _ = x.shape
        q, k, v = (f(x).view(B, T, -1, self.head_dim).transpose(1, 2)  # (B, n_head, T, head_dim)
                   for f in (self.q, self.k, self.v))
        if cache is not None:
            k, v = cache[:] = [torch.cat(kv, dim=2) for kv in zip(cache, (k, v))] if cache else [k, v]
        y = attend(q, k, v, keep, self.causal and k.size(2) == T,
                   self.attn_dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, n_head * head_dim)
        return self.dropout(self.proj(y, m))


class MLP(nn.Module):

    def __init__(self, config, out_std):
        super().__init__()
        self.fc = Linear(config, "inner", "embd")
        self.proj = Linear(config, "embd", "inner", std=out_std)
        self.approximate = dict(tanh="tanh", exact="none")[config.gelu]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, m=None):
        h = F.gelu(self.fc(x), approximate=self.approximate)  # (B, T, n_inner)
        return self.dropout(self.proj(h, m))


class Block(nn.Module):
    """A Transformer block, pre-LN (GPT) or post-LN (BERT)."""

    def __init__(self, config):
        super().__init__()
        out_std = 0.02 / math.sqrt(2 * config.n_layer) if config.scale_residual else 0.02
        self.post_ln = config.post_ln
        self.ln_1 = LayerNorm(config)
        self.attn = Attention(config, out_std)
        self.ln_2 = LayerNorm(config)
        self.mlp = MLP(config, out_std)

    def forward(self, x, m=Mask(), gate=None, keep=None, cache=None):
        """x: (B, T, n_embd); gate: None or 0-D; keep: None or bool (B, 1, 1, T), False = padding."""
        if self.post_ln:
            y = self.ln_1(x + self.attn(x, m.head, keep, cache), m.embd)
            y = self.ln_2(y + self.mlp(y, m.inner), m.embd)
        else:
            y = x + self.attn(self.ln_1(x, m.embd), m.head, keep, cache)
            y = y + self.mlp(self.ln_2(y, m.embd), m.inner)
        return y if gate is None else gate * y + (1 - gate) * x


class Transformer(nn.Module):
    """What GPT and BERT share: a stack of blocks, the masks, the specs."""

    def __init__(self, config):
        super().__init__()
        if config.gelu not in ("tanh", "exact"):
            raise ValueError(f"gelu={config.gelu!r}: must be 'tanh' or 'exact'")
        self.config = config
        self.masks = Masks()
        self.wte = Embedding(config, "vocab")
        self.wpe = Embedding(config, "position")
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.row_loss = RowLoss()  # has no parameters; here so that it is compiled with the blocks

    def specs(self):
        """Parameter name -> Spec, in the order of named_parameters()."""
        specs = {f"{prefix}.{leaf}".lstrip("."): spec for prefix, module in self.named_modules()
                 for leaf, spec in getattr(module, "spec", {}).items()}
        return {name: specs[name] for name, _ in self.named_parameters()}

    @torch.no_grad()
    def init_weights(self):
        for (_, p), spec in zip(self.named_parameters(), self.specs().values()):
            p.normal_(spec.mean, spec.std)

    def run_blocks(self, x, m, keep=None, cache=None):
        for i, block in enumerate(self.blocks):
            x = block(x, m, self.masks.gate(i), keep, None if cache is None else cache[i])
        return x

    def positions(self, idx, start=0):
        if start + idx.size(1) > self.config.block_size:
            raise ValueError(f"sequence of {start + idx.size(1)} tokens, but block_size is "
                             f"{self.config.block_size}: crop it")
        return self.wpe(torch.arange(start, start + idx.size(1), device=idx.device))

    def num_params(self):
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, head_fraction=1.0):
        """
        Floating-point operations of one training step (forward and backward), a token of a full
        block. A matrix costs 2 a weight forward and 4 backward; attention 4 * T * head width
        forward and twice that backward. head_fraction: the share of positions that the
        vocabulary head is computed on (BERT: the masked ones).
        """
        c = self.config
        body = sum(m.weight.numel() for m in self.blocks.modules() if isinstance(m, Linear))
        attention = c.n_layer * 2 * c.block_size * c.n_head * c.head_dim
        return 6 * (body + attention + head_fraction * self.head_params())


class GPT(Transformer):
    """GPT-2: pre-LN blocks, learned positions, output head tied to the token embedding."""

    def __init__(self, config):
        super().__init__(config)
        self.ln_f = LayerNorm(config)
        self.init_weights()

    def head_params(self):
        return self.wte.weight.numel()

    def hidden(self, idx, cache=None):
        """What the head reads, (B, T, n_embd)."""
        start = cache[0][0].size(2) if cache and cache[0] else 0
        x = self.dropout(self.wte(idx) + self.positions(idx, start))  # (B, T, n_embd)
        m = self.masks.width()
        return self.ln_f(self.run_blocks(x, m, cache=cache), m.embd)

    def forward(self, idx, targets=None, cache=None, return_logits=True):
        """
        idx: (B, T) token ids; targets: (B, T) ids to predict, -1 = ignore.
        Returns (logits, loss): logits (B, T, vocab) and a 0-D loss in nats a token, or, without
        targets, logits of the last position (B, 1, vocab) and None. return_logits=False: the loss
        alone, (None, loss), without all logits in memory at once.
        cache: a list of n_layer lists, empty at first; idx then continues what it holds.
        """
        x = self.hidden(idx, cache)
        if targets is None:
            return F.linear(x[:, [-1]], self.wte.weight), None
        if not return_logits:
            return None, head_loss(x.flatten(0, 1), self.wte.weight, targets.flatten(),
                                   row_loss=self.row_loss)
        logits = F.linear(x, self.wte.weight)  # (B, T, vocab_size)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        """
        Continue idx (B, T) by max_new_tokens, one at a time, with a key/value cache; (B, T + new).
        temperature 0 takes the likeliest token. Past block_size the last block_size tokens count.
        """
        cache = None
        for _ in range(max_new_tokens):
            fits = cache is not None and idx.size(1) <= self.config.block_size
            if not fits:  # first round, or positions have shifted and all keys with them
                cache = [[] for _ in self.blocks]
            logits, _ = self(idx[:, -1:] if fits else idx[:, -self.config.block_size:], cache=cache)
            logits = logits[:, -1].float()  # (B, vocab_size)
            if temperature == 0:
                nxt = logits.argmax(-1, keepdim=True)
            else:
                logits = logits / temperature
                if top_k is not None:
                    kth = logits.topk(min(top_k, logits.size(-1))).values[:, [-1]]
                    logits = logits.masked_fill(logits < kth, -torch.inf)
                nxt = torch.multinomial(logits.softmax(-1), 1)
            idx = torch.cat((idx, nxt), dim=1)
        return idx


class BertOutput(NamedTuple):
    mlm_logits: torch.Tensor | None  # (B, P, vocab) at the given positions, or (B, T, vocab)
    nsp_logits: torch.Tensor  # (B, 2), 0 = the second segment follows the first, 1 = it does not
    pooled: torch.Tensor      # (B, n_embd)


class Bert(Transformer):
    """BERT: post-LN blocks, segments, and the two pre-training heads (MLM tied, NSP)."""

    def __init__(self, config):
        super().__init__(config)
        self.wse = Embedding(config, "segment")
        self.ln_e = LayerNorm(config)
        self.pooler = Linear(config, "embd", "embd", bias=True)
        self.transform = Linear(config, "embd", "embd", bias=True)
        self.ln_t = LayerNorm(config)
        self.mlm_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.spec = dict(mlm_bias=Spec(("vocab",)))
        self.nsp = Linear(config, "label", "embd", bias=True)
        self.approximate = dict(tanh="tanh", exact="none")[config.gelu]
        self.init_weights()

    def head_params(self):
        return self.wte.weight.numel() + self.transform.weight.numel()

    def hidden(self, idx, segments=None, keep=None):
        """What the heads read: every token's output (B, T, n_embd), the first's pooled (B, n_embd)."""
        m = self.masks.width()
        x = self.wte(idx) + self.positions(idx)  # (B, T, n_embd)
        x = x + (self.wse.weight[0] if segments is None else self.wse(segments))
        x = self.dropout(self.ln_e(x, m.embd))
        x = self.run_blocks(x, m, keep=None if keep is None else keep[:, None, None, :])
        pooled = torch.tanh(self.pooler(x[:, 0]))
        if m.embd is not None:
            pooled = pooled * m.embd.to(pooled.dtype)  # the NSP head reads it
        return x, pooled

    def forward(self, idx, segments=None, keep=None, positions=None, targets=None,
                next_sentence=None, return_logits=True):
        """
        idx: (B, T) token ids; segments: (B, T) 0 or 1; keep: (B, T) bool, False on padding;
        positions: (B, P) where the MLM head is computed (all T when None); targets: (B, P) the
        ids there, -1 = ignore; next_sentence: (B,) 0 = next, 1 = random.
        Returns (BertOutput, loss): loss is MLM plus NSP in nats, or None without targets.
        return_logits=False: mlm_logits are None, and never all in memory at once.
        """
        x, pooled = self.hidden(idx, segments, keep)
        nsp_logits = self.nsp(self.dropout(pooled))
        if positions is not None:
            x = x.gather(1, positions[..., None].expand(-1, -1, x.size(-1)))  # (B, P, n_embd)
        x = self.ln_t(F.gelu(self.transform(x), approximate=self.approximate),
                      self.masks.width().embd)
        logits = F.linear(x, self.wte.weight, self.mlm_bias) if return_logits else None
        out = BertOutput(logits, nsp_logits, pooled)
        if targets is None:
            return out, None
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1) \
            if return_logits else head_loss(x.flatten(0, 1), self.wte.weight, targets.flatten(),
                                            self.mlm_bias, self.row_loss)
        if next_sentence is not None:
            loss = loss + F.cross_entropy(nsp_logits, next_sentence)
        return out, loss


# model of a config -> (the class, its config's class)
MODELS = {"gpt": (GPT, GPTConfig), "bert": (Bert, BertConfig)}
