"""
What our training step costs, side by side with transformers'.

    python -m lab.bench                          # two CPU cores: the size of config/pystdlib_msg.py
    python -m lab.bench --model=bert --save=results/bench_bert.json
    python -m lab.bench --preset=gpt2            # GPT-2 124M, for a GPU; also bert-large

Every contestant lives in a process of its own; the rounds alternate between them, so that a noisy
machine is noisy for all. The median and the spread of the rounds are reported. The contestants:
ours-block, ours-model, ours-none (how our model is compiled), peer-compiled, peer-eager (transformers'
model), all with AdamW; muon (ours-block with Muon). What growing costs, lab.plan measures.
"""
import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from dataclasses import replace

import torch

from base.disk import write_json
from base.errors import Parser, UserError, exits_cleanly, library, number
from base.words import table
from lab.campaign import known
from lab.children import listed
from lab.costs import Step, batch, make_model, seconds_of
from model import MODELS
from run import compiler, hf
from run.optim import make_optimizers
from run.parallel.ranks import Ranks, machine
from run.precision import known_peak, pick_dtype
from run.settings import from_dict

PRESETS = {
    "small": dict(n_layer=6, n_head=6, n_embd=192, n_inner=768, head_dim=32, block_size=256,
                  vocab_size=256),
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768, n_inner=3072, head_dim=64, block_size=1024,
                 vocab_size=50304),
    "bert-large": dict(n_layer=24, n_head=16, n_embd=1024, n_inner=4096, head_dim=64,
                       block_size=512, vocab_size=30528)}
ROWS = 16  # of a batch
CONTESTANTS = ["ours-block", "ours-model", "ours-none", "muon", "peer-compiled", "peer-eager"]


def config_of(args):
    size = PRESETS[args.preset]
    return from_dict(dict(size, model=args.model, micro_batch=ROWS, learning_rate=1e-4,
                          batch_tokens=ROWS * size["block_size"], device=args.device, dtype=args.dtype))


# -----------------------------------------------------------------------------
# one contestant, in its own process

def build(name, config, device, dtype):
    """The Step of a contestant, and its model."""
    torch.manual_seed(0)
    kind, _, how = name.partition("-")
    model = (peer(config) if kind == "peer" else make_model(config, {}, config.vocab_size)).to(device)
    if kind != "peer":
        compiler.compile_model(model, how or "block")
    elif how == "compiled":
        model.compile(dynamic=False)
    optimizers = make_optimizers(replace(config, optimizer="muon"), model, dtype, compiled=True) \
        if kind == "muon" else [torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)]
    loss = peer_loss if kind == "peer" else None
    return Step(model, optimizers, batch(config, config.vocab_size, ROWS, device), dtype, loss=loss), model


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
        step, model = build(name, config, device, dtype)
    seconds_of(step, device)
    flops = None if name.startswith("peer") else model.flops_per_token(config.head_fraction())
    print(json.dumps(dict(first_s=time.perf_counter() - started, flops=flops)), flush=True)
    for line in sys.stdin:
        print(json.dumps(seconds_of(lambda: [step() for _ in range(int(line))], device)), flush=True)


# -----------------------------------------------------------------------------
# the referee

def start(name, args):
    command = [sys.executable, "-m", "lab.bench", f"--worker={name}"] + [
        f"--{k}={getattr(args, k)}" for k in ("preset", "model", "device", "dtype", "threads")]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
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
    p.add_argument("--save", default="", type=os.path.expanduser, help="JSON file to write")
    p.add_argument("--verbose", action="store_true", help="show what the contestants say on stderr")
    p.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return p.parse_args(argv)


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    args.model = args.model or ("bert" if args.preset.startswith("bert") else "gpt")
    device = Ranks(args.device).device
    dtype = pick_dtype(args.dtype, device)
    args.device, args.dtype = str(device), str(dtype).split(".")[1]
    if args.worker:
        torch.set_num_threads(args.threads)
        worker(args, config_of(args), device, dtype)
        return
    if args.save and not os.path.isdir(os.path.dirname(args.save) or "."):
        raise UserError(f"save={args.save}: no such folder: make it first")
    result = measure(args)
    if not result:
        raise UserError(f"only={','.join(args.only)}: none could be measured: --verbose says why")
    rows = summary(result, args)
    where = f"{machine(device)}, {args.threads} threads, torch {torch.__version__}"
    print(f"\n{args.preset} {args.model}, {args.dtype}, {where}\n")
    print(table(["contestant", "ms a step", "min", "max", "tokens/s", "time / ours-block",
                 "first step, s", "MFU"], [r.values() for r in rows]))
    if args.save:
        report = {k: getattr(args, k) for k in ("preset", "model", "dtype", "rounds", "steps")}
        write_json(args.save, dict(report, machine=where, rows=rows))


if __name__ == "__main__":
    main()
