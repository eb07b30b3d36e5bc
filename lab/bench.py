"""
What growth and our training step cost, side by side.

    python -m lab.bench                          # two CPU cores: the size of config/pystdlib_msg.py
    python -m lab.bench --model=bert --save=results/bench_bert.json
    python -m lab.bench --preset=gpt2            # GPT-2 124M, for a GPU; also bert-large
    python -m lab.bench --run=out/pystdlib_msg   # what growing cost a run that is over

Every contestant lives in a process of its own; the rounds alternate between them, so that a noisy
machine is noisy for all. The median and the spread of the rounds are reported.
"""
import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext

import torch

from grow import grow, role, set_mask
from lab.rates import read_run, shape
from model import MODELS
from run import compiler
from run.errors import UserError, exits_cleanly
from run.precision import PEAK_FLOPS, pick_dtype
from run.ranks import hold_memory
from run.runlog import read_metrics

PRESETS = {
    "small": dict(n_layer=6, n_head=6, n_embd=192, n_inner=768, head_dim=32, block_size=256,
                  vocab_size=256, rows=16),
    "gpt2": dict(n_layer=12, n_head=12, n_embd=768, n_inner=3072, head_dim=64, block_size=1024,
                 vocab_size=50304, rows=16),
    "bert-large": dict(n_layer=24, n_head=16, n_embd=1024, n_inner=4096, head_dim=64,
                       block_size=512, vocab_size=30528, rows=16)}
# what grows in each masked contestant: the size before, as a share of the size after
GROWTHS = {"inner": ["n_inner"], "head": ["n_head"], "embd": ["n_embd"], "layer": ["n_layer"],
           "all": ["n_inner", "n_head", "n_embd", "n_layer"]}


def contestants(model):
    yield from ("ours-block", "ours-model", "ours-none", "peer-compiled", "peer-eager")
    yield from (f"masked-{dims}" for dims in GROWTHS)


# -----------------------------------------------------------------------------
# one contestant, in its own process

def build(name, args):
    """Returns step() -> None, one training step, and the model."""
    size = {k: v for k, v in PRESETS[args.preset].items() if k != "rows"}
    cls, config_cls = MODELS[args.model]
    torch.manual_seed(0)
    kind, _, how = name.partition("-")
    if kind == "peer":
        model = peer(args.model, size)
    elif kind == "masked":
        small = {k: size[k] // 2 if k in GROWTHS[how] else size[k] for k in size}
        model = cls(config_cls(**small))
        model, _ = grow(model, **{k: size[k] for k in GROWTHS[how]})
        set_mask(model, 0.5)
    else:
        model = cls(config_cls(**size))
    model.to(args.device)
    if kind == "peer" and how == "compiled":
        model.compile(dynamic=False)
    elif kind != "peer":
        compiler.compile_model(model, how if kind == "ours" else "block")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    data = batch(args.model, size, PRESETS[args.preset]["rows"], args.device)
    run = peer_loss if kind == "peer" else lambda m, k, d: m(**d, return_logits=False)[1]

    def step():
        with autocast(args):
            loss = run(model, args.model, data)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step, model


def autocast(args):
    return torch.autocast(torch.device(args.device).type, torch.bfloat16) \
        if args.dtype == "bfloat16" else nullcontext()


def batch(model, size, rows, device):
    g = torch.Generator().manual_seed(0)
    T, V = size["block_size"], size["vocab_size"]
    idx = torch.randint(V, (rows, T), generator=g)
    if model == "gpt":
        data = dict(idx=idx, targets=torch.randint(V, (rows, T), generator=g))
    else:
        P = round(0.15 * T)
        data = dict(idx=idx, segments=(torch.arange(T) >= T // 2).long().repeat(rows, 1),
                    keep=torch.ones(rows, T, dtype=torch.bool),
                    positions=torch.rand(rows, T, generator=g).argsort(1)[:, :P],
                    targets=torch.randint(V, (rows, P), generator=g),
                    next_sentence=torch.randint(2, (rows,), generator=g))
    return {k: v.to(device) for k, v in data.items()}


def peer(model, size):
    """transformers' model of the same size, dropout off."""
    import transformers
    if model == "gpt":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=size["vocab_size"], n_positions=size["block_size"], n_embd=size["n_embd"],
            n_layer=size["n_layer"], n_head=size["n_head"], n_inner=size["n_inner"],
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False)).train()
    return transformers.BertForPreTraining(transformers.BertConfig(
        vocab_size=size["vocab_size"], max_position_embeddings=size["block_size"],
        hidden_size=size["n_embd"], num_hidden_layers=size["n_layer"],
        num_attention_heads=size["n_head"], intermediate_size=size["n_inner"],
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)).train()


def peer_loss(model, kind, data):
    ce = torch.nn.functional.cross_entropy
    if kind == "gpt":
        logits = model(input_ids=data["idx"]).logits
        return ce(logits.flatten(0, 1), data["targets"].flatten())
    out = model(input_ids=data["idx"], token_type_ids=data["segments"],
                attention_mask=data["keep"].long())
    logits = out.prediction_logits  # the peer has no way to skip positions that are not predicted
    logits = logits.gather(1, data["positions"][..., None].expand(-1, -1, logits.size(-1)))
    return ce(logits.flatten(0, 1), data["targets"].flatten()) + \
        ce(out.seq_relationship_logits, data["next_sentence"])


def sync(device):
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def worker(name, args):
    """Answers each line on stdin (a number of steps) with the seconds they took."""
    started = time.perf_counter()
    hold_memory()  # as train.py does; the peers get it too
    step, model = build(name, args)
    step()
    sync(args.device)
    flops = model.flops_per_token(0.15 if args.model == "bert" else 1.0) \
        if hasattr(model, "flops_per_token") else None
    print(json.dumps(dict(first_s=time.perf_counter() - started, flops=flops)), flush=True)
    for line in sys.stdin:
        sync(args.device)
        started = time.perf_counter()
        for _ in range(int(line)):
            step()
        sync(args.device)
        print(json.dumps(time.perf_counter() - started), flush=True)


# -----------------------------------------------------------------------------
# growth, part by part, and memory: a process each

def memory(args):
    """Peak memory so far, MiB: the device's if it is a GPU, else the process's."""
    if torch.device(args.device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    with open("/proc/self/status") as f:
        return next(int(line.split()[1]) for line in f if line.startswith("VmHWM")) / 1024


def restart_peak(args):
    if torch.device(args.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")


def growth(args):
    """Grows half the model to the whole in all dimensions; seconds by part and peaks of memory."""
    size = {k: v for k, v in PRESETS[args.preset].items() if k != "rows"}
    half = {k: max(1, size[k] // 2) if k in GROWTHS["all"] else v for k, v in size.items()}
    cls, config_cls = MODELS[args.model]
    rows = PRESETS[args.preset]["rows"]
    data = batch(args.model, size, rows, args.device)
    base = memory(args)
    model = cls(config_cls(**half)).to(args.device)
    named = list(model.named_parameters())
    optimizer = torch.optim.AdamW([dict(params=[p for n, p in named if role(n) == r], role=r) for r in
                                   ("matrix", "embedding", "vector")], lr=1e-4, fused=True)
    parts = {}

    def step():
        with autocast(args):
            loss = model(**data, return_logits=False)[1]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def timed(part, f):
        sync(args.device)
        started = time.perf_counter()
        f()
        sync(args.device)
        parts[part] = time.perf_counter() - started

    def move():
        nonlocal model, optimizer
        compiler.forget_graphs()
        model, optimizer = grow(model, optimizer, **{k: size[k] for k in GROWTHS["all"]})
    compiler.compile_model(model, "block")
    step()
    restart_peak(args)
    timed("move model and optimizer", move)
    peaks = {"growth": memory(args) - base}
    compiler.compile_model(model, "block")
    set_mask(model, 0.5)
    timed("first masked step (compiles)", step)
    restart_peak(args)
    timed("masked step", step)
    peaks["ramp step"] = memory(args) - base
    set_mask(model, 1)
    timed("first clean step (compiles)", step)
    restart_peak(args)
    timed("clean step", step)
    peaks["clean step"] = memory(args) - base
    peaks["grown parameters and AdamW state"] = 12 * model.num_params() / 2**20
    print(json.dumps(dict(parts=parts, peak_mib=peaks)), flush=True)


def cost_of_growth(events):
    """
    What growing added to a run, from its metrics: seconds by part (waiting for graphs made ahead,
    moving weights and moments, wrapping, first steps beyond a plain one, masked steps beyond
    clean ones) and the run's seconds of training, "total".
    """
    run, growths = read_run(events), [e for e in events if e["event"] == "grow"]
    parts = {k: sum(e.get(k, 0.0) for e in growths) for k in ("wait_s", "grow_s", "wrap_s")}
    later = [e for e in events if e["event"] == "compile" and growths and e["iter"] > growths[0]["iter"]]
    parts["compile_s"] = sum(max(0.0, e["first_step_s"] - run["step_s"].get(shape(e), 0.0))
                             for e in later)
    ends = [e["iter"] for e in events if e["event"] == "ramp_end"]
    parts["masked_s"] = sum(
        (end - e["iter"]) * max(0.0, run["masked_s"][shape(e)] - run["step_s"][shape(e)])
        for e, end in zip(growths, ends) if shape(e) in run["masked_s"] and shape(e) in run["step_s"])
    return {**parts, "total": events[-1]["train_s"]}


def show_cost(out_dir):
    parts = cost_of_growth(read_metrics(out_dir))
    total = parts.pop("total")
    print(f"{out_dir}: {total:.1f} s of training, of which growing took {sum(parts.values()):.1f} s, "
          f"{sum(parts.values()) / total:.1%}")
    print("\n".join(f"  {seconds:8.2f} s  {what}" for what, seconds in zip((
        "waiting for graphs still being made ahead", "moving weights and optimizer state",
        "wrapping in torch.compile and DDP", "first steps, beyond a plain step",
        "masked steps, beyond clean ones"), parts.values())))


# -----------------------------------------------------------------------------
# the referee

def start(name, args, **env):
    command = [sys.executable, "-m", "lab.bench", f"--worker={name}"] + [
        f"--{k}={getattr(args, k)}" for k in ("preset", "model", "device", "dtype", "threads")]
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), **env}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env,
                            stderr=None if args.verbose else subprocess.DEVNULL)


def measure(args):
    running, result = {}, {}
    names = [n for n in contestants(args.model) if not args.only or n in args.only.split(",")]
    for name in names:
        process = start(name, args)
        line = process.stdout.readline()
        if not line:
            print(f"{name}: not measured" + (" (pip install transformers for the peer)"
                                             if name.startswith("peer") else ""))
            continue
        running[name], result[name] = process, {**json.loads(line), "seconds": []}
        print(f"{name}: ready after {result[name]['first_s']:.1f} s", flush=True)
    for r in range(args.rounds + 1):
        for name, process in running.items():
            process.stdin.write(f"{args.steps}\n")
            process.stdin.flush()
            seconds = json.loads(process.stdout.readline()) / args.steps
            if r:  # the first round warms up
                result[name]["seconds"].append(seconds)
        print(f"round {r} of {args.rounds}", flush=True)
    for process in running.values():
        process.stdin.close()
        process.wait()
    return result


def last_json(process):
    lines = process.communicate()[0].strip().splitlines()
    return json.loads(lines[-1]) if lines else {}


def summary(result, args):
    """Rows of the table: ms a step (median, min-max), tokens/s, ratios paired round by round."""
    size = PRESETS[args.preset]
    tokens = size["rows"] * size["block_size"]
    ours = result.get("ours-block") or next(iter(result.values()))
    rows = []
    peak = next((v for k, v in PEAK_FLOPS.items() if args.device.startswith("cuda") and
                 k in torch.cuda.get_device_name()), None)
    for name, r in result.items():
        ms = sorted(1e3 * s for s in r["seconds"])
        ratio = statistics.median(a / b for a, b in zip(r["seconds"], ours["seconds"]))
        speed = tokens / (statistics.median(ms) / 1e3)
        rows.append(dict(name=name, ms=round(statistics.median(ms), 1), ms_min=round(ms[0], 1),
                         ms_max=round(ms[-1], 1), tok_s=round(speed), time_to_ours=round(ratio, 3),
                         first_step_s=round(r["first_s"], 1),
                         mfu=round(speed * r["flops"] / peak, 3) if peak and r["flops"] else None))
    return rows


def machine(args):
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.processor()
    if not args.device.startswith("cuda") and os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as f:
            name = next((line.split(":")[1].strip() for line in f if "model name" in line), name)
    return f"{name}, {args.threads} threads, torch {torch.__version__}"


@exits_cleanly
def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    p.add_argument("--preset", choices=PRESETS, default="small")
    p.add_argument("--model", choices=MODELS, default="", help="the preset's, or gpt")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    p.add_argument("--dtype", choices=("auto", "bfloat16", "float32"), default="auto",
                   help="auto: bfloat16 where it is faster, as in train.py")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--rounds", type=int, default=7, help="at least 5 for numbers to report")
    p.add_argument("--steps", type=int, default=4, help="steps a round")
    p.add_argument("--only", default="", help="contestants, comma-separated")
    p.add_argument("--save", default="", help="JSON file to write")
    p.add_argument("--verbose", action="store_true", help="show what the contestants say on stderr")
    p.add_argument("--run", default="", metavar="OUT_DIR", help="say what growing cost this run")
    p.add_argument("--worker", default="", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.run:
        if not os.path.isfile(os.path.join(args.run, "metrics.jsonl")):
            raise UserError(f"{args.run}: no metrics.jsonl there: give the out_dir of a run")
        return show_cost(args.run)
    args.model = args.model or ("bert" if args.preset.startswith("bert") else "gpt")
    if args.dtype == "auto":
        args.dtype = str(pick_dtype("auto", torch.device(args.device))).split(".")[1]
    if args.worker:
        torch.set_num_threads(args.threads)
        return growth(args) if args.worker == "growth" else worker(args.worker, args)
    rows = summary(measure(args), args)
    print(f"\n{args.preset} {args.model}, {args.dtype}, {machine(args)}\n")
    print("| contestant | ms a step (min-max) | tokens/s | time / ours-block | first step, s |")
    print("|---|---|---|---|---|")
    for r in rows:
        print(f"| {r['name']} | {r['ms']} ({r['ms_min']}-{r['ms_max']}) | {r['tok_s']:,} | "
              f"{r['time_to_ours']} | {r['first_step_s']} |")
    with tempfile.TemporaryDirectory() as cache:  # the second time all graphs are on disk, as
        grown = {how: last_json(start("growth", args, TORCHINDUCTOR_CACHE_DIR=cache))
                 for how in ("cold", "graphs made ahead")}  # ahead.py leaves them for a run
    print("\n" + json.dumps(grown, indent=1))
    if args.save:
        with open(args.save, "w") as f:
            json.dump(dict(machine=machine(args), preset=args.preset, model=args.model,
                           dtype=args.dtype, rounds=args.rounds, steps=args.steps, rows=rows,
                           growth=grown), f, indent=1)


if __name__ == "__main__":
    main()
