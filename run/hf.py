"""
Hugging Face's names for our weights and settings, and models from its folders.

    python train.py --init_from=hf/pystdlib --stages='[dict(at=100, n_layer=12)]'

A model is opened with its tokenizer, which the folder must name: nothing is guessed.
"""
import os
import re
from dataclasses import replace

import torch

from base.errors import UserError, first_line, library
from base.reading import need, read_json
from data.dataset import with_tokenizer
from data.tokenizer import JSON, is_gpt2, read_json_tokenizer, read_vocab, tokenizer_of
from model import MODELS

# ours: theirs. A block's names are looked up with its number taken out.
NAMES = {
    "gpt": {
        "wte": "wte", "wpe": "wpe", "ln_f": "ln_f", "blocks.N.ln_1": "h.N.ln_1",
        "blocks.N.attn.q": "h.N.attn.c_attn", "blocks.N.attn.k": "h.N.attn.c_attn",
        "blocks.N.attn.v": "h.N.attn.c_attn", "blocks.N.attn.proj": "h.N.attn.c_proj",
        "blocks.N.ln_2": "h.N.ln_2", "blocks.N.mlp.fc": "h.N.mlp.c_fc",
        "blocks.N.mlp.proj": "h.N.mlp.c_proj"},
    "bert": {
        "wte": "bert.embeddings.word_embeddings", "wpe": "bert.embeddings.position_embeddings",
        "wse": "bert.embeddings.token_type_embeddings", "ln_e": "bert.embeddings.LayerNorm",
        **{f"blocks.N.{ours}": f"bert.encoder.layer.N.{theirs}" for ours, theirs in {
            "attn.q": "attention.self.query", "attn.k": "attention.self.key",
            "attn.v": "attention.self.value", "attn.proj": "attention.output.dense",
            "ln_1": "attention.output.LayerNorm", "mlp.fc": "intermediate.dense",
            "mlp.proj": "output.dense", "ln_2": "output.LayerNorm"}.items()},
        "pooler": "bert.pooler.dense", "transform": "cls.predictions.transform.dense",
        "ln_t": "cls.predictions.transform.LayerNorm", "nsp": "cls.seq_relationship",
        "mlm_bias": "cls.predictions.bias"},
    "llama": {
        "wte": "model.embed_tokens", "ln_f": "model.norm", "head": "lm_head",
        **{f"blocks.N.{ours}": f"model.layers.N.{theirs}" for ours, theirs in {
            "attn.q": "self_attn.q_proj", "attn.k": "self_attn.k_proj",
            "attn.v": "self_attn.v_proj", "attn.proj": "self_attn.o_proj",
            "attn.ln_q": "self_attn.q_norm",
            "attn.ln_k": "self_attn.k_norm", "ln_1": "input_layernorm",
            "ln_2": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj",
            "mlp.up": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}.items()}}}
# by what transformers calls it: our "llama" is their llama or, with qk_norm, their qwen3
CLASSES = {"gpt": "GPT2LMHeadModel", "bert": "BertForPreTraining", "llama": "LlamaForCausalLM",
           "qwen3": "Qwen3ForCausalLM"}
MODEL_TYPES = {"gpt": "gpt2", "bert": "bert", "llama": "llama", "qwen3": "qwen3"}
LLAMA = dict(vocab_size="vocab_size", max_position_embeddings="block_size", hidden_size="n_embd",
             num_hidden_layers="n_layer", num_attention_heads="n_head", intermediate_size="n_inner",
             head_dim="head_dim", rms_norm_eps="norm_eps", tie_word_embeddings="tie")
CONFIG = {  # their setting: ours
    "gpt": dict(vocab_size="vocab_size", n_positions="block_size", n_embd="n_embd",
                n_layer="n_layer", n_head="n_head", n_inner="n_inner", activation_function="gelu"),
    "bert": dict(vocab_size="vocab_size", max_position_embeddings="block_size",
                 hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
                 intermediate_size="n_inner", hidden_act="gelu"),
    "llama": LLAMA, "qwen3": LLAMA}  # num_key_value_heads and rope_theta: see rope_and_groups()
FIXED = {  # what we have no choice of: a folder with anything else would be another function
    "gpt": dict(layer_norm_epsilon=1e-5, scale_attn_weights=True, tie_word_embeddings=True,
                scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    "bert": dict(layer_norm_eps=1e-12, type_vocab_size=2, position_embedding_type="absolute",
                 tie_word_embeddings=True, is_decoder=False),
    "llama": dict(hidden_act="silu", attention_bias=False, mlp_bias=False),
    "qwen3": dict(hidden_act="silu", attention_bias=False, use_sliding_window=False)}
GELU = {"gelu_new": "tanh", "gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_python": "exact"}
OURS = "nanogrow.json"  # our own extra file: the tokenizer, as a dataset's meta.json has it
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
TOKENIZER_FILES = (OURS, "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                   "vocab.txt")


def kind_of(model):
    return next(kind for kind, (cls, _) in MODELS.items() if type(model) is cls)


def dialect_of(model):
    """kind_of(model) as transformers tells them apart: a key of CLASSES."""
    return "qwen3" if model.config.qk_norm else kind_of(model)


# -----------------------------------------------------------------------------
# weights

def name_pairs(model):
    """(our parameter, their tensor, which third of it or None, whether it is transposed)."""
    kind = kind_of(model)
    for name, p in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        block = re.match(r"blocks\.(\d+)\.", name)
        key = re.sub(r"^blocks\.\d+", "blocks.N", module or name)
        theirs = NAMES[kind][key].replace("N.", f"{block[1]}." if block else "N.", 1)
        third = "qkv".index(key[-1]) if theirs.endswith("c_attn") else None
        # GPT-2's Conv1D keeps its weights transposed
        transposed = kind == "gpt" and block is not None and p.dim() == 2
        yield name, f"{theirs}.{leaf}" if module else theirs, third, transposed


def to_hf(model):
    """The weights as transformers names them, {name: tensor}. Missing biases are written as 0."""
    if not (model.config.bias or model.config.llama):
        # biases of 0, as a fresh model has, are the same function
        twin = type(model)(replace(model.config, bias=True))
        twin.load_state_dict(model.state_dict(), strict=False)
        model = twin
    parts, params = {}, dict(model.named_parameters())
    for name, theirs, _, transposed in name_pairs(model):
        value = params[name].detach().float().cpu()
        parts.setdefault(theirs, []).append(value.T if transposed else value)
    prefix = "transformer." if kind_of(model) == "gpt" else ""
    return {prefix + k: torch.cat(v, dim=-1).contiguous().clone() for k, v in parts.items()}


@torch.no_grad()
def load_hf(model, tensors, where="the checkpoint"):
    """Weights as transformers names them, {name: tensor}, into `model`; positions are cropped."""
    modern = {k.removeprefix("transformer.").replace("LayerNorm.gamma", "LayerNorm.weight")
              .replace("LayerNorm.beta", "LayerNorm.bias"): v for k, v in tensors.items()}
    params = dict(model.named_parameters())
    for name, theirs, third, transposed in name_pairs(model):
        if theirs not in modern:
            raise UserError(f"{where}: lacks the weights {theirs}: a {CLASSES[dialect_of(model)]} "
                            "is needed, with all its heads")
        value, p = modern[theirs], params[name]
        if third is not None:
            value = value.chunk(3, dim=-1)[third]
        if transposed:
            value = value.T
        if name == "wpe.weight":
            value = value[:p.size(0)]
        if value.shape != p.shape:
            raise UserError(f"{where}: {theirs} is {tuple(value.shape)}, which does not go with "
                            f"its config.json ({tuple(p.shape)})")
        p.copy_(value)


# -----------------------------------------------------------------------------
# in

def is_hf(folder):
    return os.path.isfile(os.path.join(folder, "config.json")) and any(
        os.path.isfile(os.path.join(folder, name)) for name in WEIGHTS)


def find(where):
    """The local folder of a model, given that folder or its name on the Hugging Face hub."""
    folder = os.path.expanduser(where)
    if is_hf(folder):
        return folder
    if os.path.isdir(folder) or not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise UserError(f"init_from={where!r}: must be scratch, resume, auto, a folder with "
                        "config.json and model.safetensors, or a hub name OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
        return snapshot_download(where, allow_patterns=[
            "config.json", "model*.safetensors", *WEIGHTS, *TOKENIZER_FILES])
    except ImportError:
        why, first = "huggingface_hub is not installed", "pip install huggingface_hub, or "
    except Exception as e:  # no network, no such name, not allowed, ...
        why, first = f"{type(e).__name__} from the Hugging Face hub", "check the name, or "
    raise UserError(f"init_from={where!r}: no such folder, and no download ({why}): {first}where there "
                    f"is a network, hf download {where} --local-dir={where.split('/')[1]}, and give "
                    "that folder")


def folder_config(folder):
    """(kind, {our setting: value}) of a Hugging Face folder, which may leave out what is usual."""
    path = os.path.join(folder, "config.json")
    theirs = read_json(path, model_type=str)
    dialects = {v: k for k, v in MODEL_TYPES.items()}
    dialect = dialects.get(theirs["model_type"])
    if dialect is None:
        raise UserError(f"{path}: model_type must be {' or '.join(dialects)}")
    for key, value in FIXED[dialect].items():
        if theirs.get(key, value) != value:
            raise UserError(f"{path}: {key}={theirs[key]!r}: only {value!r} is supported")
    names = {ours: key for key, ours in CONFIG[dialect].items()}
    heads, width = need(path, theirs, **{names[k]: int for k in ("n_head", "n_embd")})
    usual = dict(n_inner=4 * width, rms_norm_eps=1e-6, tie_word_embeddings=False,
                 num_key_value_heads=heads, rope_theta=10_000.0,
                 head_dim=128 if dialect == "qwen3" else width // max(1, heads))
    theirs = {**usual, **{k: v for k, v in theirs.items() if v is not None}}
    kinds = dict(gelu=str, norm_eps=(int, float))
    need(path, theirs, **{key: kinds.get(k, int) for k, key in names.items() if k != "tie"})
    ours = {k: theirs[key] for k, key in names.items()}
    for k, value in ours.items():
        if type(value) is int and value < 1:
            raise UserError(f"{path}: {names[k]}={value}: must be at least 1")
    if CONFIG[dialect] is LLAMA:
        return "llama", dict(ours, tie=bool(ours["tie"]), norm_eps=float(ours["norm_eps"]),
                             qk_norm=dialect == "qwen3", **rope_and_groups(path, theirs, heads))
    if ours["gelu"] not in GELU:
        raise UserError(f"{path}: activation {ours['gelu']!r}: must be one of {', '.join(GELU)}")
    if width % heads:
        raise UserError(f"{path}: {width} coordinates do not divide among {heads} heads")
    return dialect, dict(ours, gelu=GELU[ours["gelu"]], bias=True, head_dim=width // heads)


def rope_and_groups(path, theirs, heads):
    """What a Llama's config.json says in other words than ours."""
    rope = dict(theirs)
    for key in {"rope_scaling", "rope_parameters"} & {*theirs}:  # the older name and the newer
        [said] = need(path, theirs, **{key: dict})
        rope.update(said)
        if (found := said.get("rope_type", said.get("type", "default"))) != "default":
            raise UserError(f"{path}: {key} of type {found!r}: only 'default' is supported")
    theta, kv = need(path, rope, rope_theta=(int, float), num_key_value_heads=int)
    if kv < 1 or heads % kv:
        raise UserError(f"{path}: num_key_value_heads must be at least 1, and {heads} query heads "
                        f"divide among num_key_value_heads={kv}")
    return dict(rope_theta=float(theta), kv_group=heads // kv)


def read_tensors(folder):
    load_file = library("safetensors.torch", "safetensors").load_file
    path, index = (os.path.join(folder, name) for name in WEIGHTS)
    names = ["model.safetensors"]
    if not os.path.exists(path):
        names = sorted(set(read_json(index, weight_map=dict)["weight_map"].values()))
    try:
        return {k: v for n in names for k, v in load_file(os.path.join(folder, n)).items()}
    except Exception as e:  # whatever a damaged file provokes
        raise UserError(f"{folder}: {', '.join(names)} cannot be read ({first_line(e)})") from None


def folder_meta(folder, kind):
    """The folder's tokenizer, in the form of a dataset's meta.json. UserError if it names none."""
    files = {n: os.path.join(folder, n) for n in TOKENIZER_FILES
             if os.path.exists(os.path.join(folder, n))}
    if OURS in files:
        return with_tokenizer(read_json(files[OURS], tokenizer=(str, dict)), folder)
    words, uncased = said_tokens(files)
    if not words:
        raise UserError(f"{folder}: nothing in it says what its tokenizer is: put its "
                        f"tokenizer.json there, or {OURS} with the \"tokenizer\" of the dataset's "
                        "meta.json")
    if kind == "bert" and uncased:
        return dict(tokenizer=dict(name="wordpiece", vocab=words))
    if kind != "bert" and is_gpt2(words):
        return dict(tokenizer="gpt2")
    if kind != "bert" and JSON in files:
        return dict(tokenizer=read_json_tokenizer(files[JSON]))
    raise UserError(f"{folder}: has a tokenizer of its own: only " + (
        "BERT's uncased WordPiece" if kind == "bert" else "GPT-2's, a tokenizer.json") +
        " and those of tools.export are known")


def said_tokens(files):
    """(tokens in the order of their ids, are capitals ignored?) of {name: path}; [] if unsaid."""
    config = read_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    uncased, vocab = config.get("do_lower_case") is not False, {}
    if JSON in files:
        said = read_json(files[JSON], model=dict)
        [vocab] = need(files[JSON], said["model"], vocab=(dict, list))
        if isinstance(vocab, list):  # of a Unigram: tokens and how likely they are
            vocab = {pair[0]: i for i, pair in enumerate(vocab) if isinstance(pair, list) and pair}
        normalizer = said.get("normalizer")
        uncased = uncased and isinstance(normalizer, dict) and normalizer.get("lowercase") is True
    elif "vocab.json" in files and "merges.txt" in files:
        vocab = read_json(files["vocab.json"])
    elif "vocab.txt" in files:
        vocab = {w: i for i, w in enumerate(read_vocab(files["vocab.txt"]))}
    if not all(isinstance(i, int) for i in vocab.values()):
        raise UserError(f"{', '.join(files.values())}: a token whose id is no number")
    return sorted(vocab, key=vocab.get), uncased


def from_hf(folder):
    """The model in a Hugging Face folder."""
    kind, sizes = folder_config(folder)
    cls, config_cls = MODELS[kind]
    model = cls(config_cls(**sizes, eot=masked_eot(folder, sizes["vocab_size"])))
    load_hf(model, read_tensors(folder), folder)
    return model.eval()


def masked_eot(folder, vocab_size):
    """What doc_mask left in the folder of a model of ours: an id, or None."""
    path = os.path.join(folder, OURS)
    found = read_json(path).get("doc_end") if os.path.exists(path) else None
    if found is not None and not (type(found) is int and 0 <= found < vocab_size):
        raise UserError(f"{path}: doc_end={found!r}: must be a token id, or left out")
    return found


def check_tokenizer(folder, meta, data_dir):
    """Refuse to train a model on the ids of another tokenizer."""
    ours, theirs = map(tokenizer_of, (meta, folder_meta(folder, folder_config(folder)[0])))
    if ours != theirs:
        raise UserError(f"data_dir={data_dir}: made with tokenizer {ours[0]}, but {folder} was "
                        f"trained with {theirs[0]}" + " of another vocabulary" * (ours[0] == theirs[0]))
