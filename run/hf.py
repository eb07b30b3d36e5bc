"""
Hugging Face's names for our weights and settings, and models from its folders.

    python train.py --init_from=hf/pystdlib --stages='[dict(at=100, n_layer=12)]'

The folder must name its tokenizer: nothing is guessed.
"""
import os
import re
from dataclasses import replace
from functools import partial

import torch

from base.errors import UserError, say_once
from base.reading import need, read_json
from base.weights import INDEX, WHOLE, Weights
from data.dataset import with_tokenizer
from data.tokenizer import JSON, is_gpt2, read_json_tokenizer, read_vocab, spec_of, tokenizer_of
from layers import parse_rope_scaling
from model import MODELS
from run.settings import typed

# our name: theirs. N stands for the number of the block.
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
            "attn.ln_q": "self_attn.q_norm", "attn.ln_k": "self_attn.k_norm", "ln_1": "input_layernorm",
            "ln_2": "post_attention_layernorm", "mlp.gate": "mlp.gate_proj",
            "mlp.up": "mlp.up_proj", "mlp.proj": "mlp.down_proj"}.items()}}}
# keys are transformers' names. Our "llama" is their llama or mistral; with qkv_bias their qwen2, with
# qk_norm their qwen3
CLASSES = {"gpt": "GPT2LMHeadModel", "bert": "BertForPreTraining", "llama": "LlamaForCausalLM",
           "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}
MODEL_TYPES = {"gpt": "gpt2", **{name: name for name in ("bert", "llama", "mistral", "qwen2", "qwen3")}}
LLAMA = dict(vocab_size="vocab_size", max_position_embeddings="block_size", hidden_size="n_embd",
             num_hidden_layers="n_layer", num_attention_heads="n_head", intermediate_size="n_inner",
             head_dim="head_dim", rms_norm_eps="norm_eps", tie_word_embeddings="tie")
CONFIG = {  # their setting: ours
    "gpt": dict(vocab_size="vocab_size", n_positions="block_size", n_embd="n_embd", n_layer="n_layer", n_head="n_head",
                n_inner="n_inner", activation_function="gelu", layer_norm_epsilon="norm_eps"),
    "bert": dict(vocab_size="vocab_size", max_position_embeddings="block_size", hidden_size="n_embd",
                 num_hidden_layers="n_layer", num_attention_heads="n_head", intermediate_size="n_inner",
                 hidden_act="gelu"),
    # num_key_value_heads and rotary positions: see rope_and_groups()
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), LLAMA)}
FIXED = {  # values we cannot change: with others the model would be another function
    "gpt": dict(scale_attn_weights=True, tie_word_embeddings=True, add_cross_attention=False,
                scale_attn_by_inverse_layer_idx=False),
    "bert": dict(layer_norm_eps=1e-12, type_vocab_size=2, position_embedding_type="absolute",
                 tie_word_embeddings=True, is_decoder=False),
    "llama": dict(hidden_act="silu", attention_bias=False, mlp_bias=False),
    "mistral": dict(hidden_act="silu"),
    "qwen2": dict(hidden_act="silu", use_sliding_window=False),
    "qwen3": dict(hidden_act="silu", attention_bias=False, use_sliding_window=False)}
ROPE = dict(default=(), linear=("factor",), llama3=(  # what each kind of rotary embedding must set
    "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"))
GELU = {"gelu_new": "tanh", "gelu": "exact", "gelu_pytorch_tanh": "tanh", "gelu_python": "exact"}
OURS = "nanogrow.json"  # our extra file: the tokenizer, as in a dataset's meta.json
TOKENIZER_FILES = (OURS, "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "vocab.txt")


def kind_of(model):
    return next(kind for kind, (cls, _) in MODELS.items() if type(model) is cls)


def dialect_of(model):
    """The kind of model in transformers' terms: a key of CLASSES."""
    c = model.config
    return "qwen3" if c.qk_norm else "qwen2" if c.qkv_bias else kind_of(model)


# -----------------------------------------------------------------------------
# weights

TWICE = {  # a second copy that some files hold: the end of the first one's name
    "lm_head.weight": ("wte.weight", "embed_tokens.weight"), "cls.predictions.decoder.bias": "cls.predictions.bias",
    "cls.predictions.decoder.weight": "word_embeddings.weight"}
BUFFERS = r"attn\.(masked_)?bias$|inv_freq$|position_ids$"  # what old files hold besides weights


def name_pairs(model):
    """Yields (our parameter, their tensor, which third of it or None, is it transposed?)."""
    kind = kind_of(model)
    for name, p in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        block = re.match(r"blocks\.(\d+)\.", name)
        key = re.sub(r"^blocks\.\d+", "blocks.N", module or name)
        theirs = NAMES[kind][key].replace("N.", f"{block[1]}." if block else "N.", 1)
        third = "qkv".index(key[-1]) if theirs.endswith("c_attn") else None
        # GPT-2's Conv1D stores its weights transposed
        transposed = kind == "gpt" and block is not None and p.dim() == 2
        yield name, f"{theirs}.{leaf}" if module else theirs, third, transposed


def their_tensors(model):
    """{their tensor: the parameters of ours that make it up, in order}."""
    prefix, made = "transformer." if kind_of(model) == "gpt" else "", {}
    for name, theirs, *_ in name_pairs(model):
        made.setdefault(prefix + theirs, []).append(name)
    return made


def join(values, transposed):
    """Their tensor, made from our parameters."""
    values = [v.T if transposed else v for v in values]
    return values[0] if len(values) == 1 else torch.cat(values, dim=-1)


def entries(model):
    """Entries for write_weights() under transformers' names. Missing biases become 0."""
    if not (model.config.bias or model.config.llama):
        # a fresh model's biases are 0: the same function
        twin = type(model)(replace(model.config, bias=True))
        twin.load_state_dict(model.state_dict(), strict=False)
        model = twin
    params = {name: p.detach() for name, p in model.named_parameters()}
    transposed = {name: t for name, _, _, t in name_pairs(model)}
    for theirs, ours in their_tensors(model).items():
        make = partial(join, [params[n] for n in ours], transposed[ours[0]])
        yield theirs, "F32", make().shape, make


def reader(model, tensors, where="the checkpoint"):
    """
    A function from our name of a weight to its tensor, in the model's shape; position embeddings are
    cropped. tensors: {their name: tensor}, or a Weights. The function raises UserError.
    """
    called = {k.removeprefix("transformer.").replace("LayerNorm.gamma", "LayerNorm.weight")
              .replace("LayerNorm.beta", "LayerNorm.bias"): k for k in tensors}
    places = {name: place for name, *place in name_pairs(model)}
    shapes = {name: p.shape for name, p in model.named_parameters()}
    layers = 1 + max((int(i) for k in called for i in re.findall(r"\b(?:h|layers?)\.(\d+)\.", k)), default=-1)
    if layers > model.config.n_layer:
        raise UserError(f"{where}: has the weights of {layers} layers, but its config.json says {model.config.n_layer}")
    theirs = {place[0] for place in places.values()}
    for name in (k for k in called if k not in theirs and not re.search(BUFFERS, k)):
        twin = next((k for k in theirs if name in TWICE and k.endswith(TWICE[name])), None)
        if twin not in called:
            raise UserError(f"{where}: has {name}, which a {CLASSES[dialect_of(model)]} has not: it would be lost")
        if not torch.equal(tensors[called[name]], tensors[called[twin]]):
            raise UserError(f"{where}: {name} differs from {twin}, but its config.json says that they are one")

    def read(name):
        theirs, third, transposed = places[name]
        if theirs not in called:
            raise UserError(f"{where}: lacks the weights {theirs}: a {CLASSES[dialect_of(model)]} "
                            "is needed, with all its heads")
        value = tensors[called[theirs]]
        if third is not None:
            value = value.chunk(3, dim=-1)[third]
        if transposed:
            value = value.T
        if name == "wpe.weight":
            value = value[:shapes[name][0]]
        if value.shape != shapes[name]:
            raise UserError(f"{where}: {theirs} is {tuple(value.shape)}, which does not go with "
                            f"its config.json ({tuple(shapes[name])})")
        return value
    read.called = {name: called.get(theirs) for name, (theirs, *_) in places.items()}
    return read


def state_from_hf(model, tensors, where="the checkpoint"):
    """The state dict of `model`, on any device, from weights under transformers' names, {name: tensor}."""
    read = reader(model, tensors, where)
    return {name: read(name).to(p.dtype).contiguous() for name, p in model.named_parameters()}


def check_sizes(where, dialect, sizes):
    """UserError if transformers has no model of these sizes, a dict of config values."""
    n, width, dim = sizes["n_head"], sizes["n_embd"], sizes["head_dim"]
    if dialect in ("gpt", "bert") and n * dim != width:
        heads = max(n, -(-width // dim))
        larger = dict(n_head=(n, heads), n_embd=(width, heads * dim))
        advice = " and ".join(f"{k} to {wanted}" for k, (has, wanted) in larger.items() if wanted > has)
        raise UserError(f"{where}: n_head={n} heads of {dim} are {n * dim} wide, but n_embd={width}, "
                        f"and {CLASSES[dialect]} wants them equal: grow {advice}")
    if dialect == "llama" and width % n:
        group = sizes["kv_group"]
        others = [f"n_head to {m}" for m in range(n, width + 1) if width % m == m % group == 0][:1]
        raise UserError(f"{where}: n_embd={width} is no multiple of n_head={n}, which "
                        f"{CLASSES[dialect]} wants whatever head_dim is: grow "
                        + " or ".join([f"n_embd to {-(-width // n) * n}", *others]))


# -----------------------------------------------------------------------------
# import

def is_hf(folder):
    return os.path.isfile(os.path.join(folder, "config.json")) and any(
        os.path.isfile(os.path.join(folder, name)) for name in (WHOLE, INDEX))


def find(where, key="init_from"):
    """The local folder of a model, given as that folder or a Hugging Face hub name. key: for errors."""
    folder = os.path.expanduser(where)
    if is_hf(folder):
        return folder
    if os.path.isdir(folder) or not re.fullmatch(r"[\w.-]+/[\w.-]+", where):
        starts = "scratch, resume, auto, " if key == "init_from" else ""
        raise UserError(f"{key}={where!r}: must be {starts}a folder with config.json and "
                        "model.safetensors, or a hub name OWNER/NAME")
    try:
        from huggingface_hub import snapshot_download
        return snapshot_download(where, allow_patterns=[
            "config.json", "generation_config.json", "model*.safetensors", INDEX, "*.jinja", "README.md",
            "LICENSE*", *TOKENIZER_FILES])
    except ImportError:
        why, first = "huggingface_hub is not installed", "pip install huggingface_hub, or "
    except Exception as e:  # no network, no such name, not allowed, ...
        why, first = f"{type(e).__name__} from the Hugging Face hub", "check the name, or "
    raise UserError(f"{key}={where!r}: no such folder, and no download ({why}): {first}where there "
                    f"is a network, hf download {where} --local-dir={where.split('/')[1]}, and give "
                    "that folder")


def folder_dialect(folder):
    """(a key of CLASSES, the config.json) of a Hugging Face folder. UserError if it is not supported."""
    path = os.path.join(folder, "config.json")
    theirs = read_json(path, model_type=str)
    dialect = {v: k for k, v in MODEL_TYPES.items()}.get(theirs["model_type"])
    if dialect is None:
        raise UserError(f"{path}: model_type must be {' or '.join(MODEL_TYPES.values())}")
    if theirs.get("quantization_config"):
        raise UserError(f"{path}: is quantized: take the folder of the full weights")
    for key, value in FIXED[dialect].items():
        if theirs.get(key, value) != value:
            raise UserError(f"{path}: {key}={theirs[key]!r}: only {value!r} is supported")
    kinds = theirs.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise UserError(f"{path}: layer_types={kinds!r}: only 'full_attention' is supported")
    return dialect, theirs


def folder_config(folder):
    """(kind, {our setting: value}) of a Hugging Face folder. What it leaves out gets the usual value."""
    path = os.path.join(folder, "config.json")
    dialect, theirs = folder_dialect(folder)
    names = {ours: key for key, ours in CONFIG[dialect].items()}
    heads, width = need(path, theirs, **{names[k]: int for k in ("n_head", "n_embd")})
    window = theirs.get("sliding_window", 4096) if dialect == "mistral" else None  # Mistral's default
    usual = dict(n_inner=4 * width, rms_norm_eps=1e-6, layer_norm_epsilon=1e-5,
                 tie_word_embeddings=False, num_key_value_heads=heads, rope_theta=10_000.0,
                 head_dim=128 if dialect == "qwen3" else width // max(1, heads))
    theirs = {**usual, **{k: v for k, v in theirs.items() if v is not None}}
    kinds = dict(gelu=str, norm_eps=(int, float))
    need(path, theirs, **{key: kinds.get(k, int) for k, key in names.items() if k != "tie"})
    ours = {k: theirs[key] for k, key in names.items()}
    for k, value in ours.items():
        if type(value) is int and value < 1 and k != "norm_eps":
            raise UserError(f"{path}: {names[k]}={value}: must be at least 1")
    if CONFIG[dialect] is LLAMA:
        if window is not None and not (type(window) is int and window >= ours["block_size"]):
            raise UserError(f"{path}: sliding_window={window!r} is shorter than the context: only without "
                            "one is it a model of ours: lower max_position_embeddings to it, or make it null")
        return "llama", checked(path, dict(ours, qk_norm=dialect == "qwen3", qkv_bias=dialect == "qwen2",
                                           **rope_and_groups(path, theirs, heads)))
    if ours["gelu"] not in GELU:
        raise UserError(f"{path}: activation {ours['gelu']!r}: must be one of {', '.join(GELU)}")
    if width % heads:
        raise UserError(f"{path}: {width} coordinates do not divide among {heads} heads")
    return dialect, checked(path, dict(ours, gelu=GELU[ours["gelu"]], bias=True, head_dim=width // heads))


def checked(path, ours):
    """A file's values for our settings, each converted to its type."""
    try:
        return {key: typed(key, value) for key, value in ours.items()}
    except UserError as e:
        raise UserError(f"{path}: {e}") from None


def rope_and_groups(path, theirs, heads):
    """rope_theta, rope_scaling and kv_group from a Llama's config.json, as a dict."""
    rope = {}
    for key in ("rope_parameters", "rope_scaling"):  # the newer name, then the older, which wins
        if key in theirs:
            [said] = need(path, theirs, **{key: dict})
            rope.update(said, rope_type=said.get("rope_type", said.get("type", "default")))
    kind = rope.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in ROPE:
        raise UserError(f"{path}: rotary positions of type {kind!r}: only {', '.join(ROPE)} are supported")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"{path}: partial_rotary_factor={rope['partial_rotary_factor']}: only 1 is supported")
    rope = {"original_max_position_embeddings": theirs["max_position_embeddings"], **theirs, **rope}
    said = need(path, rope, **dict.fromkeys(ROPE[kind], (int, float)))
    theta, kv = need(path, rope, rope_theta=(int, float), num_key_value_heads=int)
    if kv < 1 or heads % kv:
        raise UserError(f"{path}: num_key_value_heads={kv}: must be at least 1 and divide {heads} query heads")
    return dict(rope_theta=theta, kv_group=heads // kv,
                rope_scaling=f"{kind}:{','.join(f'{n:.17g}' for n in said)}" if said else "")


def rope_settings(c):
    """The reverse of rope_and_groups(), for a config.json: under the newer and the older names."""
    kind, numbers = parse_rope_scaling(c.rope_scaling) if c.rope_scaling else ("default", ())
    said = {k: int(n) if n.is_integer() and k.endswith("embeddings") else n for k, n in zip(ROPE[kind], numbers)}
    rope = dict(rope_type=kind, rope_theta=c.rope_theta, **said)
    return dict(num_key_value_heads=c.n_kv_head, rope_theta=c.rope_theta, rope_parameters=rope,
                **dict(rope_scaling=rope) if said else {})


def folder_meta(folder, kind):
    """The folder's tokenizer, as in a dataset's meta.json. UserError if the folder names none."""
    files = {n: os.path.join(folder, n) for n in TOKENIZER_FILES if os.path.exists(os.path.join(folder, n))}
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


def token_ids(folder):
    """Ids of a folder's special tokens: {"config": {bos_token_id, ...}, "generation": {...}}."""
    said, path = read_json(os.path.join(folder, "config.json")), os.path.join(folder, "generation_config.json")
    return dict(config={k: v for k, v in said.items() if k.endswith("_token_id") and v is not None},
                generation=read_json(path) if os.path.exists(path) else {})


def said_tokens(files):
    """(tokens in the order of their ids, is it uncased?) from {name: path}; no tokens if none are listed."""
    config = read_json(files["tokenizer_config.json"]) if "tokenizer_config.json" in files else {}
    uncased, vocab = config.get("do_lower_case") is not False, {}
    if JSON in files:
        said = read_json(files[JSON], model=dict)
        [vocab] = need(files[JSON], said["model"], vocab=(dict, list))
        if isinstance(vocab, list):  # Unigram: [token, log probability]
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
    with torch.device("meta"):
        model = cls(config_cls(**sizes, eot=masked_eot(folder, sizes["vocab_size"])))
    model.load_state_dict(state_from_hf(model, Weights(folder), folder), assign=True)
    return model.eval()


def masked_eot(folder, vocab_size):
    """The end-of-document id in a folder that we exported with doc_mask, or None."""
    path = os.path.join(folder, OURS)
    found = read_json(path).get("doc_end") if os.path.exists(path) else None
    if found is not None and not (type(found) is int and 0 <= found < vocab_size):
        raise UserError(f"{path}: doc_end={found!r}: must be a token id, or left out")
    return found


def check_tokenizer(folder, meta, data_dir):
    """UserError if the data was made with another tokenizer than the model."""
    its = folder_meta(folder, folder_config(folder)[0])
    ours, theirs = map(tokenizer_of, (meta, its))
    if spec_of(meta).get("begin") != spec_of(its).get("begin"):
        say_once(f"warning: the documents of data_dir={data_dir} do not begin as {folder}'s tokenizer lets "
                 "them: prepare them again with that tokenizer")
    if ours != theirs:
        raise UserError(f"data_dir={data_dir}: made with tokenizer {ours[0]}, but {folder} was "
                        f"trained with {theirs[0]}" + " of another vocabulary" * (ours[0] == theirs[0]))
