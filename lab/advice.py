"""
Advice before a run: is it worth growing? It comes from a loss law (the user's own, the study's or a
published one) and from the nearest measurement of the studies. lab.plan shows it.
"""
import argparse
import math
import os
from dataclasses import asdict, replace
from statistics import mean

from base.disk import write_json
from base.errors import UserError, number
from base.reading import read_json
from base.words import count, human, table
from lab.children import ROOT, Job
from lab.costs import stage_costs, vocab_of
from lab.law import BESIROGLU, advise, enough, fit, fit_three, read_law
from lab.verdict import times
from lab.words import clock
from run import family
from run.packed import PACK, unpacked
from run.settings import from_dict, known_settings

STUDIES = [os.path.join(ROOT, "results", name) for name in (
    "frontier", "frontier_gpu", "gentle_start", "gentle_start_32")]
SATURATION = os.path.join(ROOT, "results", "saturation", "report.json")
NEAR = 1.5  # largest ratio of tokens per parameter, or of small models, at which a measurement counts
NEAR_SIZE = 10  # the same for the target's parameters


def run_point(out_dir):
    """(stage costs, tokens, last validation loss, vocabulary) of a finished run."""
    values = read_json(os.path.join(out_dir, "config.json"), max_iters=int)
    resolved = values.pop("resolved", {})
    config = from_dict(known_settings(values))
    end = Job(out_dir, config.max_iters).end()
    if not end or type(end["val_loss"]) is not float:
        raise UserError(f"{out_dir}: is not finished, or diverged")
    vocab_size = resolved.get("vocab_size") or vocab_of(config)
    return stage_costs(config, vocab_size), end["tokens"], end["val_loss"], vocab_size


def fit_ladder(runs, save):
    """Fit a law to finished runs of fixed sizes and write it to `save`."""
    points, vocab = [], set()
    for out_dir in runs:
        rows, tokens, loss, size = run_point(out_dir)
        if len(rows) > 1:
            raise UserError(f"{out_dir}: grew: a ladder is of runs from scratch")
        points.append((rows[0]["weights"], tokens, loss))
        vocab.add(size)
    if len(vocab) > 1:
        raise UserError(f"the runs have vocabularies of {sorted(vocab)}: a law is of one tokenizer's "
                        "tokens")
    of = f"{len(points)} runs of {len({n for n, _, _ in points})} sizes"
    if not enough(points):
        of += f", too few for the exponents, which are those of {BESIROGLU.of}"
    law = replace(fit(points) if enough(points) else fit_three(points, BESIROGLU), of=of, vocab_size=vocab.pop())
    write_json(save, asdict(law))
    off = max(abs(law.loss(n, d) / loss - 1) for n, d, loss in points)
    print(f"{law}, from {of}; farthest off by {off:.1%}. Wrote {save}")


def find_law(path, vocab_size):
    """The user's law, else the first study's for the same tokens, else a published one."""
    ours = os.path.join(STUDIES[0], "law.json")
    if path:
        return read_law(path)
    law = read_law(ours) if os.path.exists(ours) else BESIROGLU
    return law if law.vocab_size == vocab_size else BESIROGLU


def small_one(text):
    """For argparse's `type`: the folder of a run, or [parameters] or [parameters, tokens]."""
    try:
        return path if os.path.isdir(path := unpacked(text)) else [number(float, 1)(part) for part in text.split(",", 1)]
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text}: is no run's folder, no PARAMETERS and no "
                                         "PARAMETERS,TOKENS") from None


def find_small(given, law, rows):
    """(parameters, tokens) of an existing model: from small_one(), else the config's start."""
    if type(given) is str:
        stages, tokens, _, _ = run_point(given)
        return law.counted(stages[-1]["params"], stages[-1]["weights"]), tokens
    first, *grown = (law.counted(r["params"], r["weights"]) for r in rows)
    usual = first if grown and first < grown[-1] else (grown or [first])[-1] / 4
    N, *D = given or [usual]
    return N, (D or [law.balanced_tokens(N)])[0]


def measured():
    """Rows of all studies' grown runs, each with its target's weights, vocab_size and folder."""
    rows = []
    for path in filter(os.path.exists, (os.path.join(f, "report.json") for f in STUDIES)):
        report = read_json(path, rows=list, target=dict)
        rows += [dict(r, weights=report["target"]["weights"], folder=os.path.dirname(path),
                      vocab_size=report["target"]["vocab_size"])
                 for r in report["rows"] if "recipe" in r]
    return rows


def nearest(rows, N, ratio, key):
    """
    The row with the budget nearest to `ratio`, then the parameters nearest to N, then the most seeds. Of those the
    best by row[key].
    """
    return max((r for r in rows if r[key]), default=None, key=lambda r: (
        -abs(math.log(r["budget"] / ratio)), -abs(math.log(r["weights"] / N)), len(r["seeds"]), r[key][0]))


def train_on_or_upscale(n, d, extra):
    """
    One line of what was measured for a small model of n parameters, trained on d tokens, and for extra
    compute as a share of its own: at the nearest of the study's cells. "" if the study is not there.
    """
    if not os.path.exists(SATURATION):
        return ""
    found = read_json(SATURATION, rows=list, weights=int, larger=dict)
    rows = [r for r in found["rows"] if r["name"] in found["larger"] and r["less_trained_on"]]
    row = min(rows, key=lambda r: (abs(math.log(r["tokens"] * n / d)), abs(math.log(r["extra"] / extra)),
                                   mean(r["less_trained_on"])))
    less = mean(row["less_trained_on"])
    return (f"If it need not be this size: upscale it, or train it on? It has {d / n:.3g} tokens per parameter, and this "
            f"run's compute is {extra:.2g} of its own. Nearest measured, {row['tokens']:g} and {row['extra']:g}: upscaled "
            f"({row['name']}) it ended {abs(less):.4f} {'lower' if less < 0 else 'higher'} than trained on, "
            f"{count(len(row['less_trained_on']), 'seed')}, {human(found['weights'])} parameters.")


def advise_by(law, N, D, small=None, rows=()):
    """
    law.advise(), and the nearest row of a study. The advice follows the row if it is near in all that
    matters and has the same tokens, and the law is not the user's own.
    """
    keys = ("given_target", "given_best", "less_small") if small else ("target", "best")
    row = nearest(rows, N, D / N, keys[0])
    near = row and law == find_law("", row["vocab_size"]) and law.vocab_size == row["vocab_size"] and all(
        abs(math.log(mine / theirs)) < math.log(limit) for mine, theirs, limit in (
            (D / N, row["budget"], NEAR), (N, row["weights"], NEAR_SIZE),
            *((n / N, m / row["weights"], NEAR) for n, m in zip(small or (), row["small"] or ()))))
    return dict(advise(law, N, D, small, [row[k] for k in keys] if near else None), row=row)


def family_by_law(law, N, members, costs, batch):
    """
    [(a member's loss, tokens that the trunk is worth when it grows to that size)], if growing wastes
    nothing. N: parameters after each growth; costs: family.costs().
    """
    trunk, found = [], []
    for m, c in zip(members, costs):
        own = [[N[stage], iters * batch] for stage, iters in enumerate(c["iters"]) if iters]
        worth = law.tokens(N[m.stage], law.grown_loss(trunk)) if trunk else 0
        found.append((law.grown_loss(trunk + own), worth))
        own[-1][1] -= (m.end - m.at) * batch  # the trunk does not train on the decay's tokens
        trunk += own
    return found


def show_family(config, rows, vocab_size, args):
    """
    Cost and predicted loss of each member of a family, beside the same size from scratch on as many
    tokens as the smallest sees. rows: stage_costs(), with or without seconds.
    """
    members, costs, law = family.members(config), family.costs(config, vocab_size), find_law(args.law, vocab_size)
    header, D = ["model", "parameters", "iterations", "tokens seen", "FLOPs", "from scratch"], costs[0]["seen"]
    lines = [[m.name, human(c["params"]), f"{sum(c['iters']):,}", human(c["seen"]), human(c["flops"]),
              human(c["alone"])] for m, c in zip(members, costs)]
    if "step_s" in rows[0]:
        header.append("time")
        for line, c in zip(lines, costs):
            line.append(clock(sum(n * r["step_s"] for n, r in zip(c["iters"], rows))))
    total, alone = (sum(c[k] for c in costs) for k in ("flops", "alone"))
    out = [f"the family takes {human(total, 'FLOP')}, one by one on {human(D)} tokens each it takes "
           f"{human(alone, 'FLOP')}: {1 - total / alone:.0%} less"]
    if config.model != "bert":  # loss laws hold for models that predict the next token
        N = [law.counted(r["params"], r["weights"]) for r in rows]
        found = family_by_law(law, N, members, costs, config.batch_tokens)
        header += ["loss by the law", "from scratch"]
        for line, m, (loss, _) in zip(lines, members, found):
            line += [f"{loss:.4f}", f"{law.loss(N[m.stage], D):.4f}"]
        least = sum(c["flops_per_token"] * max(0, D - worth) for c, (_, worth) in zip(costs, found))
        out.append(f"by the law of {law.of}, with growths that waste nothing, the losses from scratch are "
                   f"there with {1 - least / alone:.0%} less")
    return "\n".join([table(header, lines), "", *out])


def show_advice(config, rows, vocab_size, args):
    """Show on one screen whether to grow, from a new small model and from an existing one."""
    if config.model == "bert":
        return "Whether to grow: loss laws are of models that predict the next token, not of BERT."
    law, last = find_law(args.law, vocab_size), rows[-1]
    N = law.counted(last["params"], last["weights"])
    if not N:
        return "Whether to grow: loss laws are of models with layers."
    D = sum(r["tokens"] * r["flops"] for r in rows) / last["flops"]  # for the same compute
    small, tried = find_small(args.small, law, rows), measured()
    both = [advise_by(law, N, D, s, tried) for s in (None, small)]
    lines = [[f"ideal growth, against the {whom}", *(
        f"{a[key]:.2f}x" if a[key] < math.inf else "it is there" for a in both)] for whom, key in (
        ("target", "against_target"),
        (f"best fixed size, {human(both[0]['best_size'])}", "against_best"))]
    lines.append(["best single growth, against the target", *(
        f"{one['saves']:.2f}x, from {human(one['small'])} " + (
            "at once" if one["at"] < 0.005 else "at the end" if one["at"] > 0.995 else
            f"at {one['at']:.0%} of the compute")
        if (one := a["one"]) else "-" for a in both)])
    for whom, *keys in (("target", "target", "given_target"), ("best fixed size", "best", "given_best")):
        lines.append([f"measured, against the {whom}", *(
            f"{times(a['row'][k])}: {a['row']['name']}, {count(len(a['row']['seeds']), 'seed')}, "
            f"{a['row']['budget']:g} tokens per parameter, {human(a['row']['weights'])} parameters"
            if a["row"] else "not measured yet" for a, k in zip(both, keys))])
    own = law.vocab_size == vocab_size
    out = [f"Grow? {both[0]['fits']}", f"Law: {law.of}, per token of " + (
        f"{vocab_size:,} ids." if own else "another tokenizer: a guess, which --fit makes better."), "",
        table(["less compute to its loss", "small model to be trained",
               f"there already: {human(small[0])}, {human(small[1])} tokens"], lines), "",
        f"To be trained: {both[0]['words']}", f"There already: {both[1]['words']}"]
    if args.small and (line := train_on_or_upscale(*small, N * D / (small[0] * small[1]))):
        out.append(line)
    if row := both[0]["row"]:
        r = row["recipe"]
        grown = "; ".join(f"at {at:.0%} of the compute {sizes}" for at, sizes in r["growths"])
        pack = os.path.join(os.path.relpath(row["folder"]), PACK)
        out += [f"Nearest measured: {row['name']}: {r['start']}, {grown} ({r['operator']}), decay "
                f"{row['decay']:.0%}: tar -xOf {pack} {row['config']}"]
    return "\n".join(out)
