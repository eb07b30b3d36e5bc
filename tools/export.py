"""
Export a trained model as a Hugging Face folder. transformers opens it as GPT2LMHeadModel,
BertForPreTraining, LlamaForCausalLM, Qwen2ForCausalLM or Qwen3ForCausalLM with the same logits.

    python -m tools.export out/pystdlib_msg hf/pystdlib
    python -m tools.export out/pystdlib_family hf/family     # its members, hf/family/2x32 ...

The vocabulary keeps its padding (vocab_size rounded up to a multiple of 64), because removing it would
change the softmax. The padded ids belong to no token, and a trained model gives them almost no
probability.
"""
import json
import os
import re
import sys
from dataclasses import asdict

from base.disk import filled, remove, write_json
from base.errors import Parser, UserError, exits_cleanly, library
from base.weights import INDEX, SHARD, WHOLE, write_weights
from data.tokenizer import GPT2_URL, JSON, get_tokenizer, put_around
from run import family, hf
from run.trained import open_model

END = "<|endoftext|>"


def export(model, meta, folder, source="the checkpoint"):
    """
    Write `model` as a Hugging Face folder. After an error the old folder is unchanged (see filled()).
    Returns the names of the files written. Raises UserError.
    """
    if model.masks.c is not None:
        raise UserError(f"{source}: a growth is in progress (mask {model.masks.c.item():.3g}), which "
                        f"no {hf.CLASSES[hf.dialect_of(model)]} can express: train on until its ramp "
                        "has ended, or export a checkpoint from before or after it")
    hf.check_sizes(source, hf.dialect_of(model), vars(model.config))
    replaced = ("config.json", "generation_config.json", WHOLE, INDEX, *hf.TOKENIZER_FILES)
    there = os.listdir(folder) if os.path.isdir(folder) else []
    shards = [name for name in there if re.fullmatch(SHARD, name)]
    if theirs := [*(name for name in replaced if name in there), *shards]:
        if not {hf.OURS, "config.json"} <= {*theirs}:
            raise UserError(f"{folder}: holds the {theirs[0]} of something else: choose another folder")
    tok = get_tokenizer(meta, bert=hf.kind_of(model) == "bert")
    with filled(folder) as aside:
        write_tokenizer(aside, tok, model.config.block_size)
        # a tokenizer.json has its own file
        spec = {k: v for k, v in tok.meta().items() if k != "vocab"} if tok.name == JSON else meta["tokenizer"]
        write_json(os.path.join(aside, hf.OURS), dict(
            tokenizer=spec, vocab_size=tok.vocab_size, doc_end=model.config.eot))
        write_weights(aside, hf.entries(model))
        ids = meta.get("ids") or {}
        write_json(os.path.join(aside, "config.json"), {**hf_config(model, tok), **ids.get("config", {})})
        if ids.get("generation"):
            write_json(os.path.join(aside, "generation_config.json"), ids["generation"])
        names = os.listdir(aside)
    for name in {*replaced, *shards} - {*names}:  # left by an earlier export
        remove(os.path.join(folder, name))
    return sorted(names)


def hf_config(model, tok):
    kind, c = hf.dialect_of(model), asdict(model.config)
    names = {ours: theirs for theirs, ours in reversed(hf.GELU.items())}
    ids = dict(pad_token_id=tok.special.get("pad")) if kind == "bert" else \
        dict(bos_token_id=[*tok.begin, tok.eot][0], eos_token_id=tok.eot)
    rates = ("hidden_dropout_prob", "attention_probs_dropout_prob") if kind == "bert" else \
        ("embd_pdrop", "attn_pdrop", "resid_pdrop")
    more = {}
    if model.config.llama:
        rates = ("attention_dropout",)
        more = hf.rope_settings(model.config)
    return {"architectures": [hf.CLASSES[kind]], "model_type": hf.MODEL_TYPES[kind],
            **{theirs: names[c[ours]] if ours == "gelu" else c[ours]
               for theirs, ours in hf.CONFIG[kind].items()},
            **hf.FIXED[kind], **dict.fromkeys(rates, c["dropout"]), **more, **ids,
            "torch_dtype": "float32"}


def write_tokenizer(folder, tok, block_size):
    """Write tokenizer.json, tokenizer_config.json (and BERT's vocab.txt) if tokenizers is installed."""
    if tok.name == JSON:
        text = tok.vocab if put_around(tok.library) == (tok.begin, tok.end) else as_trained(tok)
        special = {f"{s}_token": tok.library.id_to_token(i) for s, i in
                   (("bos", [*tok.begin, None][0]), ("eos", tok.eot)) if i is not None}
    else:
        text, special = made_tokenizer(folder, tok)
    if text:
        with open(os.path.join(folder, JSON), "w", encoding="utf-8", newline="") as f:
            f.write(text)
        write_json(os.path.join(folder, "tokenizer_config.json"), {
            "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": block_size,
            "clean_up_tokenization_spaces": False, **special})


def as_trained(tok):
    """The tokenizer.json, changed to add the ids that the model's documents had around them."""
    around = [[(tok.library.id_to_token(i), i) for i in ids] for ids in (tok.begin, tok.end)]
    before, after = [[token for token, _ in ids] for ids in around]
    tok.library.post_processor = library("tokenizers", "tokenizers").processors.TemplateProcessing(
        single=[*before, "$A", *after], pair=[*before, "$A", "$B", *after], special_tokens=[*around[0], *around[1]])
    return tok.library.to_str(pretty=True)


def made_tokenizer(folder, tok):
    """(text of tokenizer.json, special tokens) for one of our own tokenizers."""
    try:
        import tokenizers
    except ImportError:
        print("no tokenizer files: they need the tokenizers library (pip install tokenizers)")
        return "", {}
    if tok.name == "wordpiece":
        lib = tok.library
        lib.decoder = tokenizers.decoders.WordPiece()
        with open(os.path.join(folder, "vocab.txt"), "w", encoding="utf-8") as f:
            f.write("\n".join(tok.vocab) + "\n")
    elif tok.name == "char":
        lib = tokenizers.Tokenizer(tokenizers.models.BPE(dict(tok.stoi), []))
        lib.decoder = tokenizers.decoders.Fuse()
    else:
        byte_level = tokenizers.pre_tokenizers.ByteLevel
        lib = tokenizers.Tokenizer(tokenizers.models.BPE(*byte_pairs(tok, byte_level.alphabet())))
        lib.pre_tokenizer = byte_level(add_prefix_space=False, use_regex=tok.name == "gpt2")
        lib.decoder = tokenizers.decoders.ByteLevel()
    special = {f"{s}_token": f"[{s.upper()}]" for s in tok.special}
    ids = {f"[{s.upper()}]": i for s, i in tok.special.items()}
    if tok.name in ("gpt2", "bytes"):  # other tools start an empty context with these, and stop at them
        special.update(bos_token=END, eos_token=END)
        ids[END] = tok.eot
    lib.add_special_tokens(sorted(ids, key=ids.get))
    if tok.special:
        lib.post_processor = tokenizers.processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[(text, ids[text]) for text in ("[CLS]", "[SEP]")])
    return lib.to_str(pretty=True), special


def byte_pairs(tok, alphabet):
    """({token: id}, pairs to merge) of a byte-level BPE: GPT-2's files, or single bytes without merges."""
    if tok.name == "gpt2":
        from tiktoken.load import read_file_cached
        lines = read_file_cached(GPT2_URL + "vocab.bpe").decode().splitlines()[1:]  # skips the title
        return json.loads(read_file_cached(GPT2_URL + "encoder.json")), \
            [tuple(line.split()) for line in lines]
    # a printable byte stands for itself; the others, in order, for the characters after 255
    seen = {ord(c) for c in alphabet if ord(c) < 256}
    ids = dict(zip(sorted(alphabet), [*sorted(seen), *sorted({*range(256)} - seen)]))
    return {END if i == tok.eot else char: i for char, i in ids.items()}, []


@exits_cleanly
def main():
    p = Parser(description="Write a checkpoint as a Hugging Face folder.")
    p.add_argument("checkpoint", type=os.path.expanduser, help="a checkpoint or a run's folder")
    p.add_argument("folder", type=os.path.expanduser, help="where to write")
    args = p.parse_args(sys.argv[1:])
    for member, path in family.models(args.checkpoint):  # each member of a family gets its own folder
        (model, info), folder = open_model(path), os.path.join(args.folder, member).rstrip(os.sep)
        for name in export(model, info["meta"], folder, path):
            print(f"{os.path.join(folder, name)}  {os.path.getsize(os.path.join(folder, name)):,} bytes")
        cls = hf.CLASSES[hf.dialect_of(model)]
        print(f"open it with transformers.{cls}.from_pretrained({folder!r})")


if __name__ == "__main__":
    main()
