"""The results so far of a study of lab/frontier.py, in its folder: a table, a picture, a loss law."""
import math
import os
from dataclasses import asdict, replace

import numpy as np
from matplotlib import colormaps
from matplotlib.ticker import MaxNLocator

from base.disk import write_json
from base.errors import UserError
from base.words import human, table
from lab import law, words
from lab.branches import final
from lab.children import machines
from lab.costs import stage_costs, vocab_of
from lab.family_report import family_rows, family_table
from lab.speeds import read_speeds, seconds_of_run
from lab.verdict import interval, picture, plus_minus, ratio_interval, times


def results(study):
    """
    The finished runs: {(contestant, budget): dict of rate, decay (as set), share (the decay's actual share
    of the compute), small (FLOPs before the first growth), parts ([(parameters, tokens), ...]), seeds
    ({seed: dict(loss, flops, seconds)}); for grown runs also recipe and config (of the first seed)}.
    Seconds are iterations at the speeds of lab.speeds, and absent if those are not measured.
    """
    found, speeds = {}, read_speeds(study)
    for name in study.names:
        for budget in study.budgets_of(name):
            rate, decay = study.best(name, budget)
            jobs = {s: study.leaf(name, budget, s, decay, rate) for s in study.seeds}
            ends = {s: j.end() for s, j in jobs.items() if j.final() not in (None, math.inf)}
            if ends:
                about, took = summary(study, name, budget, decay, speeds)
                found[name, budget] = dict(about, rate=rate, decay=decay, seeds={
                    s: dict(took, loss=e["val_loss"], flops=e["flops"]) for s, e in ends.items()})
                if name in study.grown:
                    config = jobs[next(iter(ends))].path("config.json")
                    found[name, budget]["config"] = os.path.relpath(config, study.out)
    return found


def summary(study, name, budget, decay, speeds):
    """Two dicts for a contestant at a budget: what is known without a run, and its seconds."""
    at, end = study.branch(name, budget, decay)
    stages = study.stages(name, budget)
    config = study.config(study.start(name), stages=stages, max_iters=end)
    rows = stage_costs(config, vocab_of(config))
    about = dict(share=1 - study.spent(name, budget, at) / study.spent(name, budget, end),
                 parts=[(r["weights"], r["tokens"]) for r in rows],
                 small=study.spent(name, budget, stages[0]["at"]) if stages else 0.0)
    if stages:
        entry = study.grown[name]
        about["recipe"] = dict(start=rows[0]["sizes"], growths=entry["growths"],
                               operator=entry.get("operator", "msg"))
    return about, dict(seconds=seconds_of_run(rows, speeds)) if speeds else {}


def mean_loss(result):
    return float(np.mean([r["loss"] for r in result["seeds"].values()]))


def envelope(study, found):
    """{budget: the best fixed size, by mean loss over the seeds that all sizes there have}"""
    best = {}
    for b in study.budgets:
        if ran := {n: found[n, b]["seeds"] for n in study.ladder if (n, b) in found}:
            shared = set.intersection(*map(set, ran.values()))
            best[b] = min(ran, key=lambda n: np.mean([ran[n][s]["loss"] for s in shared or ran[n]]))
    return best


def curve(found, names, seed, cost):
    """[(cost, loss)] of a seed, for {budget: size}; where that seed has not run, the mean of all."""
    points = []
    for budget, name in sorted(names.items()):
        seeds = found[name, budget]["seeds"]
        runs = [seeds[seed]] if seed in seeds else list(seeds.values())
        points.append(tuple(float(np.mean([r[k] for r in runs])) for k in (cost, "loss")))
    return points


def cost_of(points, loss):
    """
    (cost of a loss on a curve [(cost, loss), ...], interpolated log-log; 0). Beyond an end of the curve:
    (cost at that end; 1 if the loss costs more, -1 if less). None for fewer than two points that go
    down.
    """
    down = [p for i, p in enumerate(points) if all(p[1] < q[1] for q in points[:i])]
    if len(down) < 2:
        return None
    x, y = np.log(np.array(down)).T
    beyond = int(math.log(loss) < y[-1] - 1e-9) - int(math.log(loss) > y[0] + 1e-9)
    return math.exp(np.interp(-math.log(loss), -y, x)), beyond


def multiplier(found, result, names, cost, given=0.0):
    """
    Compute multiplier (mean, low, high) over seeds: the loss's cost on the baseline's curve, over its
    cost here less `given`. If a seed's curve ends before that loss: (x, x, None), more than x, the
    multiplier at that end. If it begins after it: (x, None, x), less than x. None without a curve.
    """
    ratios, beyond = [], set()
    for seed, r in result["seeds"].items():
        needed = cost_of(curve(found, names, seed, cost), r["loss"])
        if needed is None:
            return None
        ratios.append(needed[0] / (r[cost] - given))
        beyond.add(needed[1])
    mean, low, high = ratio_interval(ratios)
    if {-1, 1} <= beyond:
        return None
    return (mean, mean, None) if 1 in beyond else (mean, None, mean) if -1 in beyond else (mean, low, high)


def fit_law(study, found):
    """The Law fitted to all runs from scratch, or why there is none yet."""
    points = [(*found[n, b]["parts"][0], r["loss"]) for n, b in found if n in study.ladder
              for r in found[n, b]["seeds"].values()]
    config = study.config(study.target)
    try:
        return replace(law.fit(points), vocab_size=vocab_of(config), of="the runs from scratch on "
                       f"{os.path.basename(os.path.normpath(config.data_dir))} in lab.frontier"), ""
    except UserError as e:
        return None, str(e)


def make_rows(study, found, best, fitted):
    """A dict for each contestant at each budget: the table's numbers."""
    target = {b: study.target for b in study.budgets_of(study.target) if (study.target, b) in found}
    rows, timed = [], any("seconds" in v for r in found.values() for v in r["seeds"].values())
    for budget in study.budgets:
        for name in (n for n in study.names if (n, budget) in found):
            r = found[name, budget]
            given = r["small"]
            row = dict(name=name, budget=budget, seeds=sorted(r["seeds"]), rate=r["rate"], decay=r["share"],
                       **{k: r[k] for k in ("recipe", "config") if k in r},
                       loss=interval([v["loss"] for v in r["seeds"].values()]))
            for key, names in (("target", target), ("best", best)):
                row[key] = multiplier(found, r, names, "flops")
                row[f"{key}_s"] = multiplier(found, r, names, "seconds") if timed else None
                row[f"given_{key}"] = given and multiplier(found, r, names, "flops", given)
            row["less_target"] = None if name == study.target else less(r, found.get((study.target, budget)))
            row["less_small"] = row["small"] = None
            if name in study.grown:
                row["small"] = r["parts"][0]
                row["less_small"] = (less(r, found.get((study.start(name), budget))) or [None])[0]
            row["beyond_law"] = mean_loss(r) - fitted.grown_loss(r["parts"]) if fitted else None
            rows.append(row)
    return rows


def less(result, other):
    """(mean, half-width) of two results' differences in loss over the seeds that both have; None without any."""
    seeds = result["seeds"].keys() & (other or dict(seeds={}))["seeds"].keys()
    return interval([result["seeds"][s]["loss"] - other["seeds"][s]["loss"] for s in sorted(seeds)]) if seeds else None


def make_table(rows, best):
    lines = [[f"{r['budget']:g}", r["name"] + " (best)" * (best.get(r["budget"]) == r["name"]),
              len(r["seeds"]), f"{r['rate']:g}", f"{100 * r['decay']:.0f} %", plus_minus(r["loss"], 4),
              times(r["target"]), times(r["target_s"]), times(r["best"]), times(r["best_s"]),
              times(r["given_target"] or None), times(r["given_best"] or None),
              "-" if r["less_target"] is None else plus_minus(r["less_target"], 4, sign="+"),
              *("-" if r[k] is None else f"{r[k]:+.4f}" for k in ("less_small", "beyond_law"))]
             for r in rows]
    return table(["tokens per parameter", "contestant", "seeds", "rate", "decay", "final val loss",
                  "target, compute", "target, s", "best fixed size, compute", "best fixed size, s",
                  "small given: target", "small given: best fixed size", "loss less the target's",
                  "loss less the small one's, trained on", "loss less the law's"], lines)


def finished(study, found):
    """One line: how much of the study is finished."""
    said = []
    for budget in study.budgets:
        names = [n for n in study.names if budget in study.budgets_of(n)]
        seeds = [len(found[n, budget]["seeds"]) if (n, budget) in found else 0 for n in names]
        said.append(f"{budget:g}: {sum(seeds)}/{len(names) * len(study.seeds)}")
    return f"Finished, tokens per parameter: contestants x seeds: {', '.join(said)}."


def ran_at(study, name):
    """The learning rates that a contestant's tuning runs finished at, at any budget."""
    return {rate for budget in study.budgets_of(name) for rate, _ in study.finished(name, budget)}


def rates_tried(study, name):
    """{learning rate: loss} of a contestant's finished runs at the sweep's budget, decay and seed."""
    return {jobs[0].values[study.rate_key]: final(jobs) for jobs in study.at_rates(name)
            if final(jobs) is not None}


def cautions(study, found, best):
    said = []
    for name in dict.fromkeys(n for n, _ in found):
        rate, tried = study.rate(name), rates_tried(study, name)
        if name in study.given:
            better = tried.get(rate, math.inf) - min(tried.values(), default=math.inf)
            if better > 0:
                said.append(f"{name}: its {study.rate_key}, {rate:g}, is given; "
                            f"{min(tried, key=tried.get):g} was better by {better:.4f}")
        elif study.best_rate(name) is None and ran_at(study, name) <= {rate}:
            said.append(f"{name}: no sweep of its own, {study.rate_key} as of the nearest size, {rate:g}")
    for budget, name in sorted(best.items()):
        ran = sorted((n for n in study.ladder if (n, budget) in found), key=study.cost)
        if name in (ran[0], ran[-1]):
            said.append(f"{budget:g} tokens per parameter: the best fixed size, {name}, is the "
                        f"{'smallest' if name == ran[0] else 'largest'} that ran: the envelope may "
                        "lie lower")
    where = {}
    for (name, budget), r in found.items():
        tried = zip(*study.finished(name, budget))
        for key, had, could in zip(("rate", "decay"), tried, (study.rate_values, study.decays)):
            setting = study.rate_key if key == "rate" else key
            if name in (study.given if key == "rate" else study.given_decay) or len(could) == 1:
                continue  # given, or the only one
            if len(set(had)) == 1 < len(could):
                what = f"one {setting} ran"
            elif r[key] in (min(had), max(had)):
                what = f"the best {setting} lies at the edge of those tried"
            else:
                continue
            where.setdefault((budget, what), []).append(f"{name} ({r[key]:g})")
    said += [f"{budget:g} tokens per parameter: {what}: {'; '.join(names)}"
             for (budget, what), names in sorted(where.items())]
    return said


def write_report(study):
    """Write report.md, report.json, law.json and frontier.png to the study's folder. Returns the text."""
    found = results(study)
    speeds = read_speeds(study)
    families = family_rows(study, speeds, fit_law(study, found)[0])
    if not found and not families:
        raise UserError(f"{study.out}: no finished runs to report on yet")
    best = envelope(study, found)
    fitted, why = fit_law(study, found)
    rows, said = make_rows(study, found, best, fitted), cautions(study, found, best)
    where = machines(study.leaf(n, b, s, r["decay"], r["rate"]) for (n, b), r in found.items()
                     for s in r["seeds"])
    took = "Seconds: iterations at the speeds measured side by side on " + speeds["machine"] if speeds \
        else "No seconds, for no speeds are measured: see --speeds"
    whole = [family_table(study, families), "", "Differences and losses: mean and 95 % t-interval over seeds, "
             "differences paired by seed. A member's TFLOP and s: its part of the trunk, and its decay.", ""]
    text = "\n".join([
        *(whole if families else []),
        make_table(rows, best), "", finished(study, found),
        f"Target {study.target}, {human(study.weights)} parameters; 95 % t-intervals over seeds. "
        f"Machine: {where}. {took}.", "",
        f"Law from scratch: {fitted}." if fitted else f"No law yet: {why}.", "",
        *(f"Caution: {c}." for c in said)])
    sweeps = {n: rates_tried(study, n) for n in study.names}
    words.write_report(study.out, text, dict(
        machine=where, rows=rows, best=best, target=dict(
            name=study.target, weights=study.weights, vocab_size=vocab_of(study.config(study.target))),
        law=fitted and asdict(fitted), sweeps=sweeps, cautions=said, **({"families": families} if families else {}),
        runs=[dict(name=n, budget=b, **r) for (n, b), r in found.items()]))
    if fitted:
        write_json(os.path.join(study.out, "law.json"), asdict(fitted))
    if found:
        draw(study, found, best, rows, os.path.join(study.out, "frontier.png"))
    return text


def draw(study, found, best, rows, save):
    """Left: final loss over compute of sizes, envelope and grown runs. Right: relative to the envelope."""
    hues = dict(zip(study.names, colormaps["turbo"](np.linspace(0.05, 0.95, len(study.names)))))
    budgets = sorted({b for _, b in found})
    with picture(save, 2, (5.4,)) as axes:
        left, right = axes[0]
        for name in study.names:
            look, scratch = dict(ms=4, lw=1, color=hues[name]), name in study.ladder
            ends = [(study.flops(b), mean_loss(found[name, b])) for b in study.budgets_of(name)
                    if (name, b) in found]
            if ends:
                left.plot(*zip(*ends), "o-" if scratch else "D", label=name, **look)
            mine = [r for r in rows if r["name"] == name and r["best"]]
            right.plot([r["budget"] for r in mine], [r["best"][0] for r in mine],
                       "o-" if scratch else "D--", **look)
            for r in mine:
                if r["best"][1] and r["best"][2]:
                    right.plot([r["budget"]] * 2, r["best"][1:], lw=1, alpha=0.5, color=hues[name])
        left.plot([study.flops(b) for b in sorted(best)],
                  [mean_loss(found[best[b], b]) for b in sorted(best)], "k", lw=4, alpha=0.25, zorder=0,
                  label="best fixed size, from scratch")
        left.set(xscale="log", yscale="log", xlabel="compute (TFLOP; tokens per parameter of the target)",
                 ylabel="final validation loss (nats a token)")
        left.legend(fontsize=7)
        right.axhline(1, color="k", ls=":", lw=1)
        right.set(xscale="log", yscale="log", xlabel="tokens per parameter of the target",
                  ylabel="compute multiplier against the best fixed size")
        left.set_xticks([study.flops(b) for b in budgets],
                        [f"{study.flops(b) / 1e12:.3g}\n{b:g}" for b in budgets])
        right.set_xticks(budgets, [f"{b:g}" for b in budgets])
        for ax in (left, right):
            ax.minorticks_off()
            ax.yaxis.set_major_locator(MaxNLocator(8))
            ax.yaxis.set_major_formatter("{x:.3g}")
