"""
To and from the Hugging Face format: config.json, model.safetensors, tokenizer files.

    python -m tools.export out/pystdlib_msg hf/pystdlib
    python train.py --init_from=hf/pystdlib --stages='[dict(at=100, n_layer=12)]'

transformers opens the folder as GPT2LMHeadModel or BertForPreTraining with the same logits. The
vocabulary keeps its padding (vocab_size rounded up to 64): cutting it off would change the
softmax. The padded ids belong to no token, and a trained model gives them next to no probability.
"""
import json
import os
import re
from dataclasses import asdict, replace

import torch

from data.tokenizer import get_tokenizer
from model import MODELS, Bert
from run.checkpoint import load_model
from run.errors import UserError, library

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
        "mlm_bias": "cls.predictions.bias"}}
CLASSES = {"gpt": "GPT2LMHeadModel", "bert": "BertForPreTraining"}
MODEL_TYPES = {"gpt": "gpt2", "bert": "bert"}
CONFIG = {  # their setting: ours
    "gpt": dict(vocab_size="vocab_size", n_positions="block_size", n_embd="n_embd", n_layer="n_layer",
                n_head="n_head", n_inner="n_inner", activation_function="gelu"),
    "bert": dict(vocab_size="vocab_size", max_position_embeddings="block_size",
                 hidden_size="n_embd", num_hidden_layers="n_layer", num_attention_heads="n_head",
                 intermediate_size="n_inner", hidden_act="gelu")}
FIXED = {  # what we have no choice of: a folder with anything else would be another function
    "gpt": dict(layer_norm_epsilon=1e-5, scale_attn_weights=True, tie_word_embeddings=True,
                scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    "bert": dict(layer_norm_eps=1e-12, type_vocab_size=2, position_embedding_type="absolute",
                 tie_word_embeddings=True, is_decoder=False)}
GELU = {"gelu_new": "tanh", "gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_python": "exact"}
OURS = "nanogrow.json"  # our own extra file: the tokenizer, as a dataset's meta.json has it


def kind_of(model):
    return "bert" if isinstance(model, Bert) else "gpt"


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
    if not model.config.bias:  # biases of 0, as a fresh model has, are the same function
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
    """Weights named as transformers does, {name: tensor}, into `model`; positions may be cropped."""
    modern = {k.removeprefix("transformer.").replace("LayerNorm.gamma", "LayerNorm.weight")
              .replace("LayerNorm.beta", "LayerNorm.bias"): v for k, v in tensors.items()}
    params = dict(model.named_parameters())
    for name, theirs, third, transposed in name_pairs(model):
        if theirs not in modern:
            raise UserError(f"{where}: lacks the weights {theirs}: a {CLASSES[kind_of(model)]} is "
                            "needed, with all its heads")
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
# out

def export(model, meta, folder, source="the checkpoint"):
    """Write `model` as a Hugging Face folder. Returns the names of the files written."""
    safetensors = library("safetensors.torch", "safetensors")
    c, kind = model.config, kind_of(model)
    if model.masks.c is not None:
        raise UserError(f"{source}: a growth is in progress (mask {model.masks.c.item():.3g}), which "
                        f"no {CLASSES[kind]} can express: train on until its ramp has ended, "
                        "or export a checkpoint from before or after it")
    if c.n_head * c.head_dim != c.n_embd:
        raise UserError(
            f"{source}: n_head={c.n_head} heads of {c.head_dim} are {c.n_head * c.head_dim} wide, "
            f"but n_embd={c.n_embd}, and {CLASSES[kind]} wants them equal: grow "
            + (f"n_head to {c.n_embd / c.head_dim:g}" if c.n_head * c.head_dim < c.n_embd else
               f"n_embd to {c.n_head * c.head_dim}") + " in a last stage, then export")
    if os.path.exists(os.path.join(folder, "config.json")) and not is_hf(folder):
        raise UserError(f"{folder}: holds the config.json of something else: choose another folder")
    tok = get_tokenizer(meta, bert=kind == "bert")
    try:
        os.makedirs(folder, exist_ok=True)
        write_json(folder, "config.json", hf_config(model, tok))
        safetensors.save_file(to_hf(model), os.path.join(folder, "model.safetensors"),
                                   metadata=dict(format="pt"))
        write_json(folder, OURS, dict(tokenizer=meta["tokenizer"], vocab_size=tok.vocab_size))
        return ["config.json", "model.safetensors", OURS, *write_tokenizer(folder, tok, c.block_size)]
    except OSError as e:
        raise UserError(f"{folder}: cannot be written ({e.strerror}): choose another") from None


def hf_config(model, tok):
    kind, c = kind_of(model), asdict(model.config)
    names = {ours: theirs for theirs, ours in reversed(GELU.items())}
    ids = dict(pad_token_id=tok.special.get("pad")) if kind == "bert" else \
        dict(bos_token_id=tok.eot, eos_token_id=tok.eot)
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob") if kind == "bert" else \
        ("embd_pdrop", "attn_pdrop", "resid_pdrop")
    return {"architectures": [CLASSES[kind]], "model_type": MODEL_TYPES[kind],
            **{theirs: names[c[ours]] if ours == "gelu" else c[ours]
               for theirs, ours in CONFIG[kind].items()},
            **FIXED[kind], **dict.fromkeys(rates, c["dropout"]), **ids, "torch_dtype": "float32"}


def write_json(folder, name, content):
    with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
        json.dump(content, f, indent=1, ensure_ascii=False)


def write_tokenizer(folder, tok, block_size):
    """tokenizer.json and tokenizer_config.json (and BERT's vocab.txt); [] without the library."""
    try:
        import tokenizers
    except ImportError:
        print("no tokenizer files: they need the tokenizers library (pip install tokenizers)")
        return []
    from tokenizers import decoders, models, pre_tokenizers, processors
    written = ["tokenizer.json", "tokenizer_config.json"]
    if tok.name == "wordpiece":
        lib = tok.library
        lib.decoder = decoders.WordPiece()
        with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as f:
            f.write("\n".join(tok.vocab) + "\n")
        written.append("vocab.txt")
    elif tok.name == "char":
        lib = tokenizers.Tokenizer(models.BPE(dict(tok.stoi), []))
        lib.decoder = decoders.Fuse()
    else:  # bytes are byte-pair encoding without a pair
        ranks = tok.bpe._mergeable_ranks if tok.name == "gpt2" else {bytes([i]): i for i in range(256)}
        look = byte_looks()
        shown = {t: "".join(look[b] for b in t) for t in ranks}
        lib = tokenizers.Tokenizer(models.BPE(
            {shown[t]: i for t, i in ranks.items()},
            [("".join(look[b] for b in x), "".join(look[b] for b in y)) for x, y in merges(ranks)]))
        lib.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False,
                                                     use_regex=tok.name == "gpt2")
        lib.decoder = decoders.ByteLevel()
    special = {f"{s}_token": f"[{s.upper()}]" for s in tok.special}
    if tok.name == "gpt2":
        special.update(bos_token="<|endoftext|>", eos_token="<|endoftext|>")
    by_id = sorted(((tok.special[s] if s in tok.special else tok.eot, text) for s, text in
                    {k.removesuffix("_token"): v for k, v in special.items()}.items()))
    lib.add_special_tokens(list(dict.fromkeys(text for _, text in by_id)))  # in the order of ids
    if tok.special:
        lib.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(f"[{s.upper()}]", tok.special[s]) for s in ("cls", "sep")])
    lib.save(os.path.join(folder, "tokenizer.json"))
    write_json(folder, "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
        "clean_up_tokenization_spaces": False, **special})
    return written


def byte_looks():
    """The printable character that stands for each byte in GPT-2's vocabulary."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def merges(ranks):
    """The pairs that byte-pair encoding merged, in order, from {token: rank} alone."""
    for token in sorted(ranks, key=ranks.get):
        parts = [bytes([b]) for b in token]
        while len(parts) > 2:  # the earliest merges first, until its last two parts are left
            order = [ranks.get(a + b, len(ranks)) for a, b in zip(parts, parts[1:])]
            i = order.index(min(order))
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            yield tuple(parts)


# -----------------------------------------------------------------------------
# in

def is_hf(folder):
    return os.path.isfile(os.path.join(folder, "config.json")) and any(
        os.path.isfile(os.path.join(folder, "model.safetensors" + end)) for end in ("", ".index.json"))


def find(where):
    """The local folder of a model, given that folder or its name on the Hugging Face hub."""
    if is_hf(where):
        return where
    if os.path.isdir(where) or not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        raise UserError(f"init_from={where!r}: must be scratch, resume, auto, a folder with "
                        "config.json and model.safetensors, or a hub name OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
        return snapshot_download(where, allow_patterns=[
            "config.json", "model*.safetensors", "model.safetensors.index.json", "vocab.txt"])
    except ImportError:
        why = "huggingface_hub is not installed"
    except Exception as e:  # no network, no such name, not allowed, ...
        why = f"{type(e).__name__} from the Hugging Face hub"
    raise UserError(f"init_from={where!r}: no such folder, and no download ({why}): give a folder "
                    "with config.json and model.safetensors")


def folder_config(folder):
    """(kind, {our setting: value}) of a Hugging Face folder."""
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as f:
            theirs = json.load(f)
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({e})") from None
    kinds = {v: k for k, v in MODEL_TYPES.items()}
    kind = kinds.get(theirs.get("model_type") if isinstance(theirs, dict) else None)
    if kind is None:
        raise UserError(f"{path}: model_type must be {' or '.join(kinds)}")
    for key, value in FIXED[kind].items():
        if theirs.get(key, value) != value:
            raise UserError(f"{path}: {key}={theirs[key]!r}: only {value!r} is supported")
    if missing := [k for k in CONFIG[kind] if k not in theirs and k != "n_inner"]:
        raise UserError(f"{path}: lacks {missing[0]}")
    ours = {mine: theirs.get(k) for k, mine in CONFIG[kind].items()}
    if ours["gelu"] not in GELU:
        raise UserError(f"{path}: activation {ours['gelu']!r}: must be one of {', '.join(GELU)}")
    ours.update(gelu=GELU[ours["gelu"]], n_inner=ours["n_inner"] or 4 * ours["n_embd"], bias=True,
                head_dim=ours["n_embd"] // ours["n_head"])
    return kind, ours


def read_tensors(folder):
    load_file = library("safetensors.torch", "safetensors").load_file
    path, index = (os.path.join(folder, "model.safetensors" + end) for end in ("", ".index.json"))
    try:
        if os.path.exists(path):
            return load_file(path)
        with open(index) as f:
            names = set(json.load(f)["weight_map"].values())
        return {k: v for n in sorted(names) for k, v in load_file(os.path.join(folder, n)).items()}
    except Exception as e:  # whatever a damaged file provokes
        raise UserError(f"{path}: cannot be read ({e})".splitlines()[0]) from None


def folder_meta(folder, kind, vocab_size):
    """What is known of the folder's tokenizer, in the form of a dataset's meta.json."""
    path = os.path.join(folder, OURS)
    if os.path.exists(path):
        try:
            with open(path, encoding="utf-8") as f:
                return json.load(f)
        except (OSError, ValueError) as e:
            raise UserError(f"{path}: cannot be read ({e}): export the model again") from None
    words = os.path.join(folder, "vocab.txt")
    if kind == "bert" and os.path.exists(words):
        with open(words, encoding="utf-8") as f:
            return dict(tokenizer=dict(name="wordpiece", vocab=f.read().rstrip("\n").split("\n")))
    return dict(tokenizer="gpt2") if kind == "gpt" and 50257 <= vocab_size <= 50304 else {}


def from_hf(folder):
    """(model, info) of a Hugging Face folder; info has config, model_config and meta."""
    kind, sizes = folder_config(folder)
    cls, config_cls = MODELS[kind]
    model = cls(config_cls(**sizes))
    load_hf(model, read_tensors(folder), folder)
    return model.eval(), dict(config=dict(model=kind), model_config=asdict(model.config),
                              meta=folder_meta(folder, kind, sizes["vocab_size"]))


def open_model(path, device="cpu"):
    """The model and its info from a checkpoint, a run's folder or a Hugging Face folder."""
    if is_hf(path):
        model, info = from_hf(path)
        if not info["meta"]:
            raise UserError(f"{path}: nothing in it says what its tokenizer is: only GPT-2's own "
                            "vocabulary, a BERT vocab.txt and the folders of tools.export are known")
        return model.to(device), info
    return load_model(path, device)


def start_from(model, folder):
    """Weights for train.py's init_from."""
    load_hf(model, read_tensors(folder), folder)


def check_tokenizer(folder, meta, data_dir):
    """Refuse to train a model on the ids of another tokenizer."""
    kind, sizes = folder_config(folder)
    theirs = folder_meta(folder, kind, sizes["vocab_size"])
    if theirs and not same_tokenizer(theirs, meta):
        a, b = tokenizer_of(meta)[0], tokenizer_of(theirs)[0]
        raise UserError(f"data_dir={data_dir}: made with tokenizer {a}, but {folder} was trained "
                        f"with {b}" + (" of another vocabulary" if a == b else ""))


def tokenizer_of(meta):
    """(name, vocabulary or None) of the tokenizer in a meta.json."""
    spec = meta.get("tokenizer")
    return (spec["name"], spec.get("vocab")) if isinstance(spec, dict) else (spec, None)


def same_tokenizer(a, b):
    return tokenizer_of(a) == tokenizer_of(b)
