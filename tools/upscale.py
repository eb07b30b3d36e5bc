"""
Grow a Hugging Face folder or a run of ours into a larger Hugging Face folder that computes the same
function.

    python -m tools.upscale hf/Qwen3-0.6B hf/Qwen3-0.9B --n_layer=40
    python -m tools.upscale hf/SmolLM2-135M hf/wider --n_embd=768 --n_inner=2048 --n_head=12
    python -m tools.upscale out/mine hf/larger --n_layer=12

Works for Llama, Mistral, Qwen2, Qwen3 and GPT-2. New layers are copies with zero output projections.
New heads, FFN units and coordinates are random, with zeros where they would change the function
(run/operators.py, keep_function()). So the new weights learn from the first steps. Train the folder with
train.py --init_from=hf/larger, or with any other trainer.

Weights are read, grown and written one by one, so memory for two tensors is enough.
"""
import contextlib
import os
import shutil
import sys
import tempfile
from functools import partial

import torch

from base.disk import filled, write_json
from base.errors import Parser, UserError, exits_cleanly, number
from base.reading import read_text
from base.weights import WHOLE, Weights, size_of, write_weights
from data.tokenizer import JSON, get_tokenizer
from grow import (
    describe,
    fill_normal,
    grow_tensor,
    grown_config,
    layer_sources,
    sizes_of,
    source_of,
)
from model import GROWABLE, MODELS
from run import hf
from run.checkpoint import checkpoint
from run.operators import keep_function, refusal, scaled_eps
from run.trained import open_model
from tools.export import export

OPERATORS = ("zero_output", "stack", "interleave")
# weights in any format; all other files of a folder are copied
NOT_COPIED = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pt", ".pth", ".h5",
              ".msgpack", ".gguf", ".onnx", ".ot", ".lock")
GREEDY = 50  # tokens that a check generates


class Growth:
    """Both configs, where layers come from, and both models without weights, for names and axes."""

    def __init__(self, folder, sizes, operator="zero_output", where="spread", float32=False, name=None):
        self.folder, self.operator, self.sizes, self.float32 = folder, operator, sizes, float32
        self.name = name or folder  # the smaller model's name
        self.dialect, self.said = hf.folder_dialect(folder)
        kind, config = hf.folder_config(folder)
        cls, config_cls = MODELS[kind]
        try:
            self.old = config_cls(**config)
            self.new = grown_config(self.old, **sizes)
        except ValueError as e:
            raise UserError(f"{self.name}: {e}") from None
        if why := refusal(operator, sizes, self.old):
            raise UserError(f"{self.name}: {why}")
        if operator == "zero_output":
            self.new = scaled_eps(self.old, self.new)
        hf.check_sizes(f"{self.name} grown to {describe(sizes)}", self.dialect, vars(self.new))
        self.layers = layer_sources(self.old.n_layer, self.new.n_layer, operator == "interleave" or
                                    operator == "zero_output" and where == "spread")
        with torch.device("meta"):
            self.before, self.after = cls(self.old), cls(self.new)
        self.weights = Weights(folder)
        self.read = hf.reader(self.before, self.weights, folder)

    def entries(self, seed=0):
        """Entries for write_weights(): each tensor of the larger model is made when it is written."""
        specs, params = self.after.specs(), dict(self.after.named_parameters())
        transposed = {name: t for name, _, _, t in hf.name_pairs(self.after)}

        def make(names):
            made = []
            for name in names:
                source, is_new = source_of(name, self.layers)
                old = None if source is None else self.read(source)
                if self.float32 and old is not None:
                    old = old.float()
                tensor = grow_tensor(old, specs[name], params[name].shape, fill_normal, "cpu", torch.float32)
                if self.operator == "zero_output":
                    keep_function(name, tensor, specs[name].axes, self.old, self.new, is_new)
                made.append(tensor)
            return hf.join(made, transposed[names[0]])

        torch.manual_seed(seed)
        for theirs, names in hf.their_tensors(self.after).items():
            source = self.read.called.get(source_of(names[0], self.layers)[0])
            dtype = self.weights.dtype(source) if source and not self.float32 else "F32"
            shape = hf.join([params[name] for name in names], transposed[names[0]]).shape
            yield theirs, dtype, shape, torch.no_grad()(partial(make, names))

    def config(self):
        """The larger folder's config.json: the smaller one's with the changes."""
        ours, names = vars(self.new), {o: t for t, o in hf.CONFIG[self.dialect].items()}
        changed = {names[k]: ours[k] for k in (*GROWABLE, "norm_eps", "head_dim") if k in names}
        if self.new.llama:
            changed["num_key_value_heads"] = self.new.n_kv_head
        if self.float32:
            changed.update({k: "float32" for k in ("torch_dtype", "dtype") if k in self.said})
        listed = {k: [v[i] for i, _ in self.layers] for k, v in self.said.items()  # one entry per layer
                  if isinstance(v, list) and len(v) == self.old.n_layer and (k == "layer_types" or (
                      len(v) > 1 and k != "architectures" and not k.endswith("token_id")))}
        return {**self.said, **listed, **changed}

    def card(self):
        """The README.md: where the folder comes from, then the smaller model's own card."""
        path, name = os.path.join(self.folder, "README.md"), os.path.basename(os.path.normpath(self.name))
        before = read_text(path) if os.path.exists(path) else ""
        head, mark, rest = before[4:].partition("\n---\n") if before.startswith("---\n") else ("", "", before)
        how = "It computes the same function: new parts write zeros, until they are trained." \
            if self.operator == "zero_output" else \
            "It does not compute the same function until it is trained."
        was = {k: getattr(self.old, k) for k in self.sizes}
        return (f"---\n{head}{mark}" if mark else "") + (
            f"# {name} with {describe(self.sizes)}\n\nMade from {name} ({describe(was)}) by nanogrow's "
            f"`tools.upscale`, operator {self.operator}. {how}\n\nLayers come from: "
            f"{', '.join(str(i) + ' (copy)' * new for i, new in self.layers)}.\n") + (
            f"\n# What {name} says of itself\n\n{rest.strip()}\n" if rest.strip() else "")

    def verdict(self, off):
        """What a relative difference `off` of the logits means, in words."""
        if self.operator != "zero_output":
            return f"{self.operator} changes the function, which training has to mend"
        if off < 1e-4:
            return "the same function"
        return "16 bits round the norms' new weights, --float32 does not" if not self.float32 and any(
            self.weights.dtype(name) != "F32" for name in self.read.called.values() if name) else \
            "more than rounding, which is a fault of this tool"


def upscale(growth, folder, shard_size=5 * 10**9, seed=0):
    """Write the larger folder, completely or not at all. Raises UserError."""
    entries = list(growth.entries(seed))
    total = sum(size_of(*entry[1:3]) for entry in entries)
    with filled(folder) as aside:
        if (room := shutil.disk_usage(aside).free) < total:
            raise UserError(f"{folder}: cannot be written ({total:,} bytes, and {room:,} are free): make "
                            "room or choose another")
        copy_others(growth.folder, aside)
        write_weights(aside, entries, shard_size)
        write_json(os.path.join(aside, "config.json"), growth.config())
        card = growth.card()
        with open(os.path.join(aside, "README.md"), "w", encoding="utf-8") as f:
            f.write(card)


def copy_others(folder, to):
    """Copy everything except weights: tokenizer, chat template, generation_config.json, licence."""
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.startswith(".") or name.lower().endswith(NOT_COPIED):
            continue
        if os.path.isfile(path):
            shutil.copyfile(path, os.path.join(to, name))
        elif name == "additional_chat_templates":
            shutil.copytree(path, os.path.join(to, name))


# -----------------------------------------------------------------------------
# the check

@torch.no_grad()
def answers(model, idx):
    """(logits of idx (B, T), greedy continuation of its first row)."""
    if model.config.post_ln:
        return model(idx)[0].mlm_logits, None
    start = idx[:1, :max(1, model.config.block_size - GREEDY)]
    return model(idx, targets=idx)[0], model.generate(start, GREEDY, temperature=0)


def some_ids(model, folder, text, rows=4):
    """Token ids (B, T) to compare a model with others on, from a text or random."""
    config, T = model.config, min(model.config.block_size, 128)
    if not text:
        return torch.randint(config.vocab_size, (rows, T), generator=torch.Generator().manual_seed(0))
    kind = "gpt" if os.path.exists(os.path.join(folder, JSON)) else hf.kind_of(model)  # any tokenizer.json will do
    ids = get_tokenizer(hf.folder_meta(folder, kind)).encode(read_text(text))[:rows * T]
    if not ids:
        raise UserError(f"{text}: holds no text to compare on")
    n = len(ids) // T
    return torch.tensor(ids[:n * T]).view(n, T) if n else torch.tensor([ids])


def check(growth, folder, idx, text=None):
    """Compare both folders in float32 on token ids (B, T). Returns one line that says how closely they agree."""
    model = hf.from_hf(growth.folder)
    want, tokens = answers(model, idx)
    del model
    got, others = answers(hf.from_hf(folder), idx)
    off = ((got - want).abs().max() / want.abs().max()).item()
    line = f"on {idx.numel()} tokens of {text or 'random ids'}, in float32: logits differ by at most " \
        f"{off:.1e} of the largest"
    if tokens is not None:
        same = (tokens == others).long().cumprod(1).sum().item() - tokens.size(1) + GREEDY
        line += f", greedy continuations agree for {same} of {GREEDY} tokens"
    return f"{line}: {growth.verdict(off)}"


def fits_in_memory(growth):
    """Does the larger model fit in memory in float32, with room to work?"""
    try:
        with open("/proc/meminfo") as f:
            room = 1024 * int(next(line for line in f if line.startswith("MemAvailable")).split()[1])
    except (OSError, StopIteration):
        room = 4 * 2**30  # no /proc/meminfo: assume 4 GiB
    return 5 * growth.after.num_params() < room


# -----------------------------------------------------------------------------

def n_bytes(text):
    """The number of bytes in "5GB", "500MB", "80KB" or a plain number."""
    units = dict(GB=10**9, MB=10**6, KB=10**3, B=1)
    unit = next((u for u in units if text.upper().endswith(u)), "")
    return int(number(float, 1e-9, 1e9)(text[:len(text) - len(unit)]) * units.get(unit, 1))


def parse(argv):
    p = Parser(description=__doc__.split("\n\n")[0].strip(), means=dict(
        text=("a comparison, so without --no-check", lambda a: a.check is not False),
        seed=("--n_embd, --n_inner or --n_head", lambda a: a.n_embd or a.n_inner or a.n_head),
        where=("--n_layer and --operator=zero_output", lambda a: a.n_layer and a.operator == "zero_output")))
    add = p.add_argument
    add("source", help="a Hugging Face folder, OWNER/NAME on its hub, or a run or checkpoint of ours")
    add("folder", type=os.path.expanduser, help="where to write: a new or empty folder")
    for size in GROWABLE:
        add(f"--{size}", type=number(int, 1), help=f"the larger {size}; left out, it stays")
    add("--operator", choices=OPERATORS, default="zero_output",
        help="zero_output keeps the function; stack and interleave copy layers as mergekit's passthrough does")
    add("--where", choices=("spread", "top"),
        help="new layers: each after its source, evenly spread (the default), or all on top")
    add("--shard-size", type=n_bytes, default="5GB", help="the largest file of weights: 5GB, 500MB")
    add("--float32", action="store_true", help="write float32, whatever the folder's own format is")
    add("--seed", type=number(int, 0), default=0, help="of the new random weights")
    either = p.add_mutually_exclusive_group()
    either.add_argument("--check", action="store_true", default=None,
                        help="compare both models (done anyhow where they fit in memory)")
    either.add_argument("--no-check", dest="check", action="store_false", help="do not compare them")
    add("--text", help="a file whose text to compare them on, instead of random ids")
    return p.parse_args(argv)


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    sizes = {k: getattr(args, k) for k in GROWABLE if getattr(args, k) is not None}
    if os.path.exists(args.folder) and (not os.path.isdir(args.folder) or os.listdir(args.folder)):
        raise UserError(f"{args.folder}: is not an empty folder: choose another name")
    source = os.path.expanduser(args.source)
    with contextlib.ExitStack() as stack:
        if not os.path.exists(source):
            folder = hf.find(source, "source")
        elif hf.is_hf(source):
            folder = source
        elif os.path.isdir(source) and not checkpoint.exists(source):
            raise UserError(f"{source}: holds neither config.json and {WHOLE} nor a run's checkpoints")
        else:
            model, info = open_model(source)
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            export(model, info["meta"], folder, source)
            del model
        growth = Growth(folder, sizes, args.operator, args.where or "spread", args.float32, source)
        compares = args.check or args.check is None and fits_in_memory(growth)
        if args.text and not compares:
            raise UserError("--text: the larger model does not fit in memory, so nothing would be compared: leave it "
                            "out, or add --check")
        idx = some_ids(growth.before, growth.folder, args.text) if compares else None
        upscale(growth, args.folder, args.shard_size, args.seed)
        before, after = growth.before.num_params(), growth.after.num_params()
        print(f"{args.folder}: {hf.CLASSES[growth.dialect]}, {describe(sizes_of(growth.new))}, {after:,} "
              f"parameters, {after / before:.2f} times {source}'s")
        if compares:
            print(check(growth, args.folder, idx, args.text))
        print(f"continue training: python train.py --init_from={args.folder}")


if __name__ == "__main__":
    main()
