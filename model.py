"""
GPT, BERT and Llama: three short assemblies of the layers in layers.py.

Every parameter names its axes ("embd", "inner", "head", ...) and its initial distribution (`Spec`).
So growing a model (grow.py) needs no code per layer or per parameter.

While a model grows, a mask multiplies its new coordinates by c, which rises from 0 to 1 (Masked
Structural Growth, Yao et al., ICLR 2024, https://arxiv.org/abs/2305.02869). It acts in four places:

    n_inner   MLP, SwiGLU         proj(m * gelu(fc(x))), proj(m * silu(gate(x)) * up(x))
    n_head    Attention           proj(m * heads(x))
    n_embd    LayerNorm, RMSNorm  statistics weighted by m, output times m
    n_layer   Block               c * block(x) + (1 - c) * x

Only norms read the residual stream, so masking the norms is enough for n_embd.
When nothing grows there are no masks: no tensors, no cost, the graph of a plain model.
"""
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn as nn
from torch.nn import functional as F

from layers import (
    Embedding,
    Linear,
    Masks,
    RowLoss,
    Spec,
    WidthMasks,
    apply_rotary,
    attend,
    cross_entropy,
    head_loss,
    norm,
    parse_rope_scaling,
    positions_and_mask,
    rotary,
)

# the four sizes that can grow -> the axis that each one lengthens
GROWABLE = {"n_embd": "embd", "n_inner": "inner", "n_head": "head", "n_layer": "layer"}
GELU = dict(tanh="tanh", exact="none")  # our name: torch's


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
    eot: int | None = None      # id of the token between documents: attention then stays within a
                                # document (not for BERT). None: a row is one text
    norm_eps: float = 1e-5

    # what tells a GPT from a BERT; then the settings that only Llama can choose
    post_ln, causal, scale_residual, llama = False, True, True, False
    kv_group, qk_norm, qkv_bias, tie = 1, False, False, True

    @classmethod
    def from_saved(cls, saved):
        """The config from a checkpoint's dict. Older ones called eot doc_end; some had zero_proj."""
        return cls(**{"eot" if k == "doc_end" else k: v for k, v in saved.items() if k != "zero_proj"})

    @property
    def n_kv_head(self):
        return self.n_head // self.kv_group

    def axis_sizes(self):
        """The length of every named axis a parameter can have."""
        return dict(embd=self.n_embd, inner=self.n_inner, head=self.n_head * self.head_dim,
                    kv=self.n_kv_head * self.head_dim, within_head=self.head_dim,
                    vocab=self.vocab_size, position=self.block_size, segment=2, label=2)


@dataclass
class BertConfig(GPTConfig):
    """BERT's architecture (Devlin et al. 2018); the defaults are Bert-base, uncased."""
    block_size: int = 512
    vocab_size: int = 30522
    gelu: str = "exact"
    norm_eps: float = 1e-12

    post_ln, causal, scale_residual = True, False, False


@dataclass
class LlamaConfig(GPTConfig):
    """Llama's architecture (Touvron et al. 2023); with its settings, Qwen's. Ignores gelu."""
    bias: bool = False          # Llama has no biases
    kv_group: int = 1           # query heads per key/value head, fixed for a run:
                                # n_kv_head is n_head / kv_group
    rope_theta: float = 10_000.0  # base of the rotary positions' wavelengths
    rope_scaling: str = ""      # stretches those wavelengths for longer texts, see parse_rope_scaling()
    tie: bool = True            # the output head shares the token embedding's weight
    qk_norm: bool = False       # RMSNorm on each head's queries and keys (Qwen3)
    qkv_bias: bool = False      # biases of queries, keys and values (Qwen2)

    llama = True

    def __post_init__(self):
        if self.n_head % self.kv_group:
            raise ValueError(f"n_head={self.n_head}: no multiple of kv_group={self.kv_group}, the query heads that "
                             "share keys and values: heads come in whole groups, so that n_kv_head grows in proportion")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim}: rotary positions turn pairs of coordinates: it must be even")
        if self.bias:
            raise ValueError("bias=True: Llama has no biases: leave it out")
        if self.qk_norm and self.qkv_bias:
            raise ValueError("qkv_bias=True: with qk_norm=True it is no known model: leave one out")
        if self.rope_scaling:
            parse_rope_scaling(self.rope_scaling)


class Attention(nn.Module):

    def __init__(self, config, out_std):
        super().__init__()
        self.head_dim, self.causal, self.group = config.head_dim, config.causal, config.kv_group
        # three matrices rather than one: new heads then go at the end of each axis of heads.
        # Query heads j * kv_group to (j + 1) * kv_group - 1 read kv head j: grow by whole groups
        self.q, self.k, self.v = (Linear(config, axis, "embd", bias=config.bias or config.qkv_bias)
                                  for axis in ("head", "kv", "kv"))
        self.ln_q, self.ln_k = (norm(config, "within_head") if config.qk_norm else nn.Identity()
                                for _ in "qk")
        self.proj = Linear(config, "embd", "head", std=out_std)
        self.attn_dropout, self.dropout = config.dropout, nn.Dropout(config.dropout)

    def forward(self, x, m=None, attn_mask=None, cache=None, rope=None):
        B, T, _ = x.shape
        q, k, v = (y.view(B, T, -1, self.head_dim).transpose(1, 2) for y in self.heads(x))  # (B, heads, T, head_dim)
        q, k = self.ln_q(q), self.ln_k(k)
        if rope is not None:
            q, k = (apply_rotary(t, rope).to(v.dtype) for t in (q, k))
        if cache is not None:
            if cache:
                k, v = torch.cat((cache[0], k), dim=2), torch.cat((cache[1], v), dim=2)
            cache[:] = k, v
        if self.group > 1:  # not SDPA's enable_gqa: some of its kernels lack it
            k, v = (t.repeat_interleave(self.group, dim=1) for t in (k, v))
        y = attend(q, k, v, attn_mask, self.causal, self.attn_dropout if self.training else 0.0)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, T, n_head * head_dim)
        return self.dropout(self.proj(y, m))

    def heads(self, x):
        """q (B, T, n_head * head_dim), k, v (B, T, n_kv_head * head_dim), by one product: three leave a GPU idle."""
        parts = self.q, self.k, self.v
        bias = None if self.q.bias is None else torch.cat([f.bias for f in parts])
        y = F.linear(x, torch.cat([f.weight for f in parts]), bias)
        return y.split([len(f.weight) for f in parts], dim=-1)


class MLP(nn.Module):

    def __init__(self, config, out_std):
        super().__init__()
        self.fc = Linear(config, "inner", "embd")
        self.proj = Linear(config, "embd", "inner", std=out_std)
        self.approximate = GELU[config.gelu]
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, m=None):
        h = F.gelu(self.fc(x), approximate=self.approximate)  # (B, T, n_inner)
        return self.dropout(self.proj(h, m))


class SwiGLU(nn.Module):
    """Llama's FFN (Shazeer 2020): one projection, gated by another."""

    def __init__(self, config, out_std):
        super().__init__()
        self.gate = Linear(config, "inner", "embd")
        self.up = Linear(config, "inner", "embd")
        self.proj = Linear(config, "embd", "inner", std=out_std)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, m=None):
        return self.dropout(self.proj(F.silu(self.gate(x)) * self.up(x), m))


class Block(nn.Module):
    """A Transformer block, pre-LN (GPT, Llama) or post-LN (BERT)."""

    def __init__(self, config):
        super().__init__()
        out_std = 0.02 / math.sqrt(2 * config.n_layer) if config.scale_residual else 0.02
        self.post_ln = config.post_ln
        self.ln_1 = norm(config)
        self.attn = Attention(config, out_std)
        self.ln_2 = norm(config)
        self.mlp = SwiGLU(config, out_std) if config.llama else MLP(config, out_std)

    def forward(self, x, m=WidthMasks(), gate=None, attn_mask=None, cache=None, rope=None):
        """
        x: (B, T, n_embd). m: the masks of the width axes. gate: None, or c of a new block, 0-D.
        attn_mask: None, or bool, True = seen: (B, 1, 1, T) or (B, 1, N, T), N the new tokens.
        cache: None, or this block's list: [] at first, then [k, v], each (B, n_kv_head, T, head_dim).
        rope: None, or the cosines and sines from rotary().
        """
        if self.post_ln:
            y = self.ln_1(x + self.attn(x, m.head, attn_mask, cache), m.embd)
            y = self.ln_2(y + self.mlp(y, m.inner), m.embd)
        else:
            y = x + self.attn(self.ln_1(x, m.embd), m.head, attn_mask, cache, rope)
            y = y + self.mlp(self.ln_2(y, m.embd), m.inner)
        return y if gate is None else gate * y + (1 - gate) * x


class Transformer(nn.Module):
    """What all models share: embeddings, a stack of blocks, the masks."""

    def __init__(self, config):
        super().__init__()
        if config.gelu not in GELU:
            raise ValueError(f"gelu={config.gelu!r}: must be 'tanh' or 'exact'")
        self.config = config
        self.masks = Masks()
        self.wte = Embedding(config, "vocab")
        if not config.llama:
            self.wpe = Embedding(config, "position")
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.row_loss = RowLoss()  # no parameters: it is here to be compiled with the blocks

    def specs(self):
        """Parameter name -> Spec, in the order of named_parameters()."""
        specs = {f"{prefix}.{leaf}".lstrip("."): spec for prefix, module in self.named_modules()
                 for leaf, spec in getattr(module, "spec", {}).items()}
        return {name: specs[name] for name, _ in self.named_parameters()}

    @torch.no_grad()
    def init_weights(self):
        for (_, p), spec in zip(self.named_parameters(), self.specs().values()):
            p.normal_(spec.mean, spec.std)

    def run_blocks(self, x, m, attn_mask=None, cache=None, rope=None):
        for i, block in enumerate(self.blocks):
            x = block(x, m, self.masks.gate(i), attn_mask, None if cache is None else cache[i], rope)
        return x

    def embed(self, idx, t):
        """Token embeddings plus those of positions t (Llama: rotary instead); (B, T, n_embd)."""
        x = self.wte(idx)
        return x if self.config.llama else x + self.wpe(t)

    def num_params(self):
        return sum(p.numel() for p in self.parameters())

    def flops_per_token(self, head_fraction=1.0):
        """
        FLOPs per token of one training step, forward and backward, on sequences of block_size.
        A matrix costs 2 per weight forward and 4 backward; attention costs 4 * T * n_head *
        head_dim per layer forward and twice that backward. head_fraction: share of the positions
        that the vocabulary head is computed on (BERT: the masked ones).
        """
        c = self.config
        body = sum(m.weight.numel() for m in self.blocks.modules() if isinstance(m, Linear))
        attention = c.n_layer * 2 * c.block_size * c.n_head * c.head_dim
        return 6 * (body + attention + head_fraction * self.head_params())


class GPT(Transformer):
    """GPT-2: pre-LN blocks, learned positions, output head tied to the token embedding."""

    def __init__(self, config):
        super().__init__(config)
        self.ln_f = norm(config)
        if not config.tie:
            self.head = Linear(config, "vocab", "embd")
        self.init_weights()

    def head_weight(self):
        return self.wte.weight if self.config.tie else self.head.weight

    def head_params(self):
        return self.head_weight().numel()

    def rope(self, t):
        return None  # embed() has added the positions

    def hidden(self, idx, cache=None):
        """The input of the head, (B, T, n_embd), for the tokens that are not yet in the cache."""
        start = cache[0][0].size(2) if cache and cache[0] else 0
        t, attn_mask = positions_and_mask(self.config, idx, start)
        x = self.dropout(self.embed(idx[:, start:], t))  # (B, T, n_embd)
        m = self.masks.width()
        x = self.run_blocks(x, m, attn_mask, cache, self.rope(t))
        return self.ln_f(x, m.embd)

    def forward(self, idx, targets=None, cache=None, return_logits=True, n_targets=None):
        """
        idx: (B, T) token ids. targets: (B, T) ids to predict, -1 = ignore.
        With targets: (logits (B, T, vocab), the mean loss in nats per token, 0-D).
        With targets and return_logits=False: (None, loss); all logits are never in memory at once.
        Without targets: (logits of the last position (B, 1, vocab), None).
        cache: a list of n_layer lists, empty at first. idx still holds all tokens, cached ones too;
        targets and logits are those of the new ones. n_targets: what the loss is divided by, see target_count().
        """
        x = self.hidden(idx, cache)
        if targets is None:
            return F.linear(x[:, [-1]], self.head_weight()), None
        if not return_logits:
            return None, head_loss(x.flatten(0, 1), self.head_weight(), targets.flatten(),
                                   row_loss=self.row_loss, n_targets=n_targets)
        logits = F.linear(x, self.head_weight())  # (B, T, vocab_size)
        return logits, cross_entropy(logits.flatten(0, 1), targets.flatten(), n_targets)

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None, stop=None):
        """
        Continue idx (B, T) by max_new_tokens tokens, with a key/value cache. Returns (B, T + new).
        temperature 0 takes the likeliest token. The model sees the last block_size tokens.
        stop: the id that ends a row. A finished row is filled with it until all are finished.
        """
        cache, going = None, torch.ones_like(idx[:, :1], dtype=torch.bool)
        for _ in range(max_new_tokens):
            if not cache or idx.size(1) > self.config.block_size:
                cache = [[] for _ in self.blocks]  # the window moves: positions and keys change
            logits, _ = self(idx[:, -self.config.block_size:], cache=cache)
            logits = logits[:, -1].float()  # (B, vocab_size)
            if temperature == 0:
                idx_next = logits.argmax(-1, keepdim=True)
            else:
                logits = logits / temperature
                if top_k is not None:
                    kth = logits.topk(min(top_k, logits.size(-1))).values[:, [-1]]
                    logits = logits.masked_fill(logits < kth, -torch.inf)
                idx_next = torch.multinomial(logits.softmax(-1), 1)
            idx = torch.cat((idx, idx_next if stop is None else idx_next.where(going, stop)), dim=1)
            if stop is not None and not (going := going & (idx_next != stop)).any():
                break
        return idx


class Llama(GPT):
    """Llama, Mistral and Qwen: RMSNorm, SwiGLU, grouped queries and rotary positions."""

    def rope(self, t):
        c = self.config
        return rotary(t, c.head_dim, c.rope_theta, self.wte.weight.dtype, c.rope_scaling)


class BertOutput(NamedTuple):
    mlm_logits: torch.Tensor | None  # (B, P, vocab) at the given positions, or (B, T, vocab)
    nsp_logits: torch.Tensor  # (B, 2), 0 = the second segment follows the first, 1 = it does not
    pooled: torch.Tensor      # (B, n_embd)


class Bert(Transformer):
    """BERT: post-LN blocks, segments, and the two pre-training heads (MLM tied, NSP)."""

    def __init__(self, config):
        super().__init__(config)
        self.wse = Embedding(config, "segment")
        self.ln_e = norm(config)
        self.pooler = Linear(config, "embd", "embd", bias=True)
        self.transform = Linear(config, "embd", "embd", bias=True)
        self.ln_t = norm(config)
        self.mlm_bias = nn.Parameter(torch.empty(config.vocab_size))
        self.spec = dict(mlm_bias=Spec(("vocab",)))
        self.nsp = Linear(config, "label", "embd", bias=True)
        self.approximate = GELU[config.gelu]
        self.init_weights()

    def head_params(self):
        return self.wte.weight.numel() + self.transform.weight.numel()

    def hidden(self, idx, segments=None, attn_mask=None):
        """Inputs of the heads: all outputs (B, T, n_embd), the first one pooled (B, n_embd)."""
        m = self.masks.width()
        x = self.embed(idx, positions_and_mask(self.config, idx)[0])  # (B, T, n_embd)
        x = x + (self.wse.weight[0] if segments is None else self.wse(segments))
        x = self.dropout(self.ln_e(x, m.embd))
        x = self.run_blocks(x, m, attn_mask=None if attn_mask is None else attn_mask[:, None, None, :])
        pooled = torch.tanh(self.pooler(x[:, 0]))
        if m.embd is not None:
            pooled = pooled * m.embd.to(pooled.dtype)  # the NSP head reads it
        return x, pooled

    def forward(self, idx, segments=None, attn_mask=None, positions=None, targets=None,
                next_sentence=None, return_logits=True, n_targets=None):
        """
        idx: (B, T) token ids. segments: (B, T) 0 or 1. attn_mask: (B, T) bool, False on padding.
        positions: (B, P) where the MLM head is computed; None: everywhere. targets: (B, P) the
        ids there, -1 = ignore. next_sentence: (B,) 0 = next, 1 = random. n_targets: see target_count().
        Returns (BertOutput, loss): loss is MLM plus NSP in nats, or None without targets.
        return_logits=False: mlm_logits is None; all of them are never in memory at once.
        """
        x, pooled = self.hidden(idx, segments, attn_mask)
        nsp_logits = self.nsp(self.dropout(pooled))
        if positions is not None:
            x = x.gather(1, positions[..., None].expand(-1, -1, x.size(-1)))  # (B, P, n_embd)
        x = self.ln_t(F.gelu(self.transform(x), approximate=self.approximate),
                      self.masks.width().embd)
        logits = F.linear(x, self.wte.weight, self.mlm_bias) if return_logits else None
        out = BertOutput(logits, nsp_logits, pooled)
        if targets is None:
            return out, None
        if return_logits:
            loss = cross_entropy(logits.flatten(0, 1), targets.flatten(), n_targets)
        else:
            loss = head_loss(x.flatten(0, 1), self.wte.weight, targets.flatten(), self.mlm_bias,
                             self.row_loss, n_targets)
        if next_sentence is not None:
            loss = loss + F.cross_entropy(nsp_logits, next_sentence)
        return out, loss


# the setting `model` -> (model class, config class)
MODELS = {"gpt": (GPT, GPTConfig), "bert": (Bert, BertConfig), "llama": (Llama, LlamaConfig)}
