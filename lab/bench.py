"""
What growth and our training step cost, side by side.

    python -m lab.bench                          # two CPU cores: the size of config/pystdlib_msg.py
    python -m lab.bench --model=bert --save=results/bench_bert.json
    python -m lab.bench --preset=gpt2            # GPT-2 124M, for a GPU; also bert-large
    python -m lab.bench --run=out/pystdlib_msg   # what growing cost a run that is over

Every contestant lives in a process of its own; the rounds alternate between them, so that a noisy
machine is noisy for all. The median and the spread of the rounds are reported. The contestants:
ours-block, ours-model, ours-none (how our model is compiled), peer-compiled, peer-eager
(transformers' model), nanogpt-compiled, nanogpt-eager (with --nanogpt=FOLDER of its files),
masked-inner, -head, -embd, -layer and -all (ours, that dimension growing), all with AdamW; muon-ours
and muon-torch (ours-block with our Muon, and with torch.optim's).
"""
import argparse
import contextlib
import json
import os
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace

import torch

from base.disk import write_json
from base.errors import Parser, UserError, exits_cleanly, library, number
from base.words import table
from grow import grow, set_mask, sizes_of
from lab.campaign import known
from lab.children import listed
from lab.costs import Step, batch, make_model, read_run, seconds_of, shape
from lab.costs import measure as measure_growth
from model import MODELS
from run import compiler, hf
from run.optim import make_optimizers
from run.parallel.ranks import Ranks, machine
from run.precision import known_peak, pick_dtype
from run.runlog import read_metrics
from run.settings import from_dict

PRESETS = {
    "small": dict(n_layer=6, n_head=6, n_embd=192, n_inner=768, head_dim=32, block_size=256,
                  vocab_size=256),
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768, n_inner=3072, head_dim=64, block_size=1024,
                 vocab_size=50304),
    "bert-large": dict(n_layer=24, n_head=16, n_embd=1024, n_inner=4096, head_dim=64,
                       block_size=512, vocab_size=30528)}
ROWS = 16  # of a batch
# what grows in each masked contestant, from half the size
GROWTHS = {"inner": ["n_inner"], "head": ["n_head"], "embd": ["n_embd"], "layer": ["n_layer"],
           "all": ["n_inner", "n_head", "n_embd", "n_layer"]}
CONTESTANTS = ["ours-block", "ours-model", "ours-none", "muon-ours", "muon-torch", "peer-compiled",
               "peer-eager", "nanogpt-compiled", "nanogpt-eager",
               *(f"masked-{dims}" for dims in GROWTHS)]
FOREIGN = ("peer", "nanogpt")


def config_of(args):
    size = PRESETS[args.preset]
    return from_dict(dict(size, model=args.model, micro_batch=ROWS, learning_rate=1e-4,
                          batch_tokens=ROWS * size["block_size"], device=args.device, dtype=args.dtype))


def halved(config, dims):
    """(sizes of which `dims` are half, the sizes to grow to)."""
    whole = sizes_of(config.model_config(config.vocab_size))
    return {k: v // 2 if k in dims else v for k, v in whole.items()}, {k: whole[k] for k in dims}


# -----------------------------------------------------------------------------
# one contestant, in its own process

def build(name, config, device, dtype, nanogpt=""):
    """The Step of a contestant, and its model. nanogpt: the folder with nanoGPT's model.py."""
    torch.manual_seed(0)
    kind, _, how = name.partition("-")
    if kind == "peer":
        model = peer(config)
    elif kind == "nanogpt":
        model = nanogpt_model(config, nanogpt)
    elif kind == "masked":
        start, grown = halved(config, GROWTHS[how])
        model, _ = grow(make_model(config, start, config.vocab_size), **grown)
        set_mask(model, 0.5)
    else:
        model = make_model(config, {}, config.vocab_size)
    model.to(device)
    if kind not in FOREIGN:
        compiler.compile_model(model, how if kind == "ours" else "block")
    elif how == "compiled":
        model.compile(dynamic=False)
    data = batch(config, config.vocab_size, ROWS, device)
    loss = dict(peer=peer_loss, nanogpt=lambda m, d: m(d["idx"], d["targets"])[1]).get(kind)
    return Step(model, optimizers(kind, how, config, model, dtype), data, dtype, loss=loss), model


def optimizers(kind, how, config, model, dtype):
    """AdamW for all, nanoGPT's as its own file makes it; or AdamW and Muon, ours or torch's."""
    if kind == "nanogpt":
        return [model.configure_optimizers(config.weight_decay, config.learning_rate,
                                           (config.beta1, config.beta2),
                                           next(model.parameters()).device.type)]
    if kind != "muon":
        return [torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)]
    muon, adamw = make_optimizers(replace(config, optimizer="muon"), model, dtype, compiled=True)
    if how == "torch":
        muon = torch.optim.Muon(muon.param_groups[0]["params"], lr=config.muon_learning_rate)
    return [muon, adamw]


def nanogpt_model(config, folder):
    """nanoGPT's own model, from its published file, at the same size; its FFN is four times as wide."""
    path = os.path.join(folder, "model.py")
    if not folder or not os.path.isfile(path):
        raise UserError(f"nanogpt={folder}: holds no model.py: give the folder of nanoGPT's files")
    names = runpy.run_path(path)
    return names["GPT"](names["GPTConfig"](
        block_size=config.block_size, vocab_size=config.vocab_size, n_layer=config.n_layer,
        n_head=config.n_head, n_embd=config.n_embd, dropout=0.0, bias=config.bias))


def peer(config):
    """transformers' model of the same size, dropout off."""
    transformers = library("transformers", "transformers")
    ours = vars(config.model_config(config.vocab_size))
    size = {theirs: ours[k] for theirs, k in hf.CONFIG[config.model].items() if k != "gelu"}
    off = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop", "hidden_dropout_prob",
                         "attention_probs_dropout_prob"), 0.0)
    made = transformers.AutoConfig.for_model(hf.MODEL_TYPES[config.model], **size, **off)
    made.use_cache = False
    return getattr(transformers, hf.CLASSES[config.model])(made).train()


def peer_loss(model, data):
    ce = torch.nn.functional.cross_entropy
    if "attn_mask" not in data:
        return ce(model(input_ids=data["idx"]).logits.flatten(0, 1), data["targets"].flatten())
    out = model(input_ids=data["idx"], token_type_ids=data["segments"],
                attention_mask=data["attn_mask"].long())
    logits = out.prediction_logits  # the peer has no way to skip positions that are not predicted
    logits = logits.gather(1, data["positions"][..., None].expand(-1, -1, logits.size(-1)))
    return ce(logits.flatten(0, 1), data["targets"].flatten()) + \
        ce(out.seq_relationship_logits, data["next_sentence"])


def worker(args, config, device, dtype):
    """Answers each line on stdin (a number of steps) with the seconds they took."""
    started, name = time.perf_counter(), args.worker
    with contextlib.redirect_stdout(sys.stderr):  # whatever a peer says: stdout is for answers
        step, model = build(name, config, device, dtype, args.nanogpt)
    seconds_of(step, device)
    flops = None if name.startswith(FOREIGN) else model.flops_per_token(config.head_fraction())
    print(json.dumps(dict(first_s=time.perf_counter() - started, flops=flops)), flush=True)
    for line in sys.stdin:
        print(json.dumps(seconds_of(lambda: [step() for _ in range(int(line))], device)), flush=True)


def growth(config):
    """What it costs to grow half the model to the whole in all dimensions: see costs.measure."""
    before, sizes = halved(config, GROWTHS["all"])
    print(json.dumps(measure_growth(config, config.vocab_size, sizes, before)), flush=True)


# -----------------------------------------------------------------------------
# a run that is over

def cost_of_growth(events):
    """
    What growing added to a run, from its metrics: seconds by part (growing itself, first steps beyond a
    plain one, masked steps beyond clean ones).
    """
    run, growths = read_run(events), [e for e in events if e["event"] == "grow"]
    parts = dict(grow_s=sum(e.get("grow_s", 0.0) for e in growths))
    later = [e for e in events if e["event"] == "compile" and growths and e["iter"] > growths[0]["iter"]]
    parts["compile_s"] = sum(max(0.0, e["first_step_s"] - run["step_s"].get(shape(e), 0.0))
                             for e in later)
    ends = [e["iter"] for e in events if e["event"] == "ramp_end"]
    return dict(parts, masked_s=sum(
        (end - e["iter"]) * max(0.0, run["masked_s"][shape(e)] - run["step_s"][shape(e)])
        for e, end in zip(growths, ends) if shape(e) in run["masked_s"] and shape(e) in run["step_s"]))


def show_cost(out_dir):
    there = os.path.isfile(os.path.join(out_dir, "metrics.jsonl"))
    events = read_metrics(out_dir) if there else []
    if not events:
        raise UserError(f"{out_dir}: " + ("nothing in metrics.jsonl yet: wait until the run has begun"
                        if there else "no metrics.jsonl there: give the out_dir of a run"))
    parts, total = cost_of_growth(events), events[-1]["train_s"]
    print(f"{out_dir}: {total:.1f} s of training, of which growing took {sum(parts.values()):.1f} s, "
          f"{sum(parts.values()) / max(total, 1e-9):.1%}")
    print("\n".join(f"  {seconds:8.2f} s  {what}" for what, seconds in zip((
        "growing, and wrapping anew", "first steps, beyond a plain step",
        "masked steps, beyond clean ones"), parts.values())))


# -----------------------------------------------------------------------------
# the referee

def start(name, args, **env):
    command = [sys.executable, "-m", "lab.bench", f"--worker={name}"] + [
        f"--{k}={getattr(args, k)}" for k in ("preset", "model", "device", "dtype", "threads", "nanogpt")]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), **env}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                            stderr=None if args.verbose else subprocess.DEVNULL)


def measure(args):
    """{contestant: dict(first_s, flops, seconds=[of a step, in each round])}"""
    running, result = {}, {}
    for name in args.only:
        process = start(name, args)
        line = process.stdout.readline()
        if not line:
            print(f"{name}: not measured (--verbose says why)")
            continue
        running[name], result[name] = process, {**json.loads(line), "seconds": []}
        print(f"{name}: ready after {result[name]['first_s']:.1f} s", flush=True)
    for r in range(args.rounds + 1):
        for name, process in running.items():
            process.stdin.write(f"{args.steps}\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                raise UserError(f"{name}: ended in round {r}: --verbose says why")
            if r:  # the first round warms up
                result[name]["seconds"].append(json.loads(line) / args.steps)
        print(f"round {r} of {args.rounds}", flush=True)
    for process in running.values():
        process.communicate()
    return result


def growth_costs(args):
    """What growth() says: with an empty cache of graphs, and with all of them there."""
    grown = {}
    with tempfile.TemporaryDirectory() as cache:  # the second time all graphs are on disk
        for how in ("cold", "cached"):
            said = start("growth", args, TORCHINDUCTOR_CACHE_DIR=cache).communicate()[0].splitlines()
            grown[how] = json.loads(said[-1]) if said else {}
    return grown


def summary(result, args):
    """Rows of the table: ms a step (median, min-max), tokens/s, ratios paired round by round."""
    tokens = ROWS * PRESETS[args.preset]["block_size"]
    ours = result.get("ours-block") or next(iter(result.values()))
    peak = known_peak(torch.device(args.device))
    rows = []
    for name, r in result.items():
        ms = sorted(1e3 * s for s in r["seconds"])
        ratio = statistics.median(a / b for a, b in zip(r["seconds"], ours["seconds"]))
        speed = tokens / (statistics.median(ms) / 1e3)
        rows.append(dict(name=name, ms=round(statistics.median(ms), 1), ms_min=round(ms[0], 1),
                         ms_max=round(ms[-1], 1), tok_s=round(speed), time_to_ours=round(ratio, 3),
                         first_step_s=round(r["first_s"], 1),
                         mfu=round(speed * r["flops"] / peak, 3) if peak and r["flops"] else None))
    return rows


def parse(argv):
    p = Parser(prog="python -m lab.bench", description=__doc__, allow_abbrev=False,
               formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--preset", choices=PRESETS, default="small", help="the size (small)")
    p.add_argument("--model", choices=MODELS, default="", help="the preset's, or gpt")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (auto)")
    p.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                   help="auto: bfloat16 where it is faster, as in train.py")
    p.add_argument("--threads", type=number(int, 1), default=os.cpu_count(), help="(all cores)")
    p.add_argument("--rounds", type=number(int, 1), default=7,
                   help="at least 5 for numbers to report (7)")
    p.add_argument("--steps", type=number(int, 1), default=4, help="steps a round (4)")
    p.add_argument("--only", type=listed(lambda n: known(n.strip(), CONTESTANTS, "--only")),
                   default=CONTESTANTS, metavar="NAME,NAME", help="contestants (all)")
    p.add_argument("--nanogpt", default="", metavar="FOLDER", type=os.path.expanduser,
                   help="where nanoGPT's model.py is")
    p.add_argument("--save", default="", type=os.path.expanduser, help="JSON file to write")
    p.add_argument("--verbose", action="store_true", help="show what the contestants say on stderr")
    p.add_argument("--run", default="", metavar="OUT_DIR", type=os.path.expanduser,
                   help="say what growing cost this run")
    p.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return p.parse_args(argv)


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    if args.run:
        show_cost(args.run)
        return
    args.model = args.model or ("bert" if args.preset.startswith("bert") else "gpt")
    device = Ranks(args.device).device
    dtype = pick_dtype(args.dtype, device)
    args.device, args.dtype = str(device), str(dtype).split(".")[1]
    if args.worker:
        torch.set_num_threads(args.threads)
        if args.worker == "growth":
            growth(config_of(args))
        else:
            worker(args, config_of(args), device, dtype)
        return
    if args.save and not os.path.isdir(os.path.dirname(args.save) or "."):
        raise UserError(f"save={args.save}: no such folder: make it first")
    if not args.nanogpt or args.model != "gpt":
        args.only = [n for n in args.only if not n.startswith("nanogpt")]
    result = measure(args)
    if not result:
        raise UserError(f"only={','.join(args.only)}: none could be measured: --verbose says why")
    rows = summary(result, args)
    where = f"{machine(device)}, {args.threads} threads, torch {torch.__version__}"
    print(f"\n{args.preset} {args.model}, {args.dtype}, {where}\n")
    print(table(["contestant", "ms a step", "min", "max", "tokens/s", "time / ours-block",
                 "first step, s", "MFU"], [r.values() for r in rows]))
    grown = growth_costs(args)
    print("\n" + json.dumps(grown, indent=1))
    if args.save:
        report = {k: getattr(args, k) for k in ("preset", "model", "dtype", "rounds", "steps")}
        write_json(args.save, dict(report, machine=where, rows=rows, growth=grown))


if __name__ == "__main__":
    main()
