"""The results of a study's families, per size and in total, against each size trained from scratch."""
import math

import numpy as np

from base.words import human, table
from lab.costs import count, vocab_of
from lab.speeds import key
from lab.verdict import interval


def seconds_of(family, i, trunk, decay, speeds):
    """Seconds of these iterations at the size of member i. A ramp belongs to the trunk."""
    study = family.study
    (after,), ramp = study.config(family.members[i]).sizes(), 0
    plain = speeds["step_s"][key(after)][0]
    if i and family.operator == "msg":
        ramp = min(family.ramp, trunk + decay)
        before, = study.config(family.members[i - 1]).sizes()
        return ramp * speeds["step_s"][key(after, before)][0] + (trunk + decay - ramp) * plain
    return (trunk + decay) * plain


def costs(family, i, speeds):
    """((FLOPs, seconds) of member i in the family: its part of the trunk and its decay; from scratch)."""
    study, name = family.study, family.members[i]
    trunk, decay = family.iters(i)
    alone = study.branch(name, family.budget, study.best(name, family.budget)[1])[1]
    plain = speeds and speeds["step_s"][key(study.config(name).sizes()[0])][0]
    return ((family.flops(i, trunk + decay), speeds and seconds_of(family, i, trunk, decay, speeds)),
            (family.flops(i, alone), speeds and alone * plain))


def finished(family, seeds):
    """[{seed: (its loss, loss from scratch)} for each member], for seeds where both are finished."""
    found = []
    for i in range(len(family.members)):
        pairs = {s: (family.leaf(i, s).final(), family.baseline(i, s).final()) for s in seeds}
        found.append({s: p for s, p in pairs.items() if None not in p and math.inf not in p})
    return found


def saved(grown, alone):
    """1 - grown / alone in percent; "-" if not measured."""
    return f"{100 * (1 - grown / alone):.0f} %" if alone else "-"


def family_rows(study, speeds, fitted=None):
    """A dict for each family, for tuning and for reported seeds, and for each finished member."""
    rows = []
    for family in study.families.values():
        for what, seeds in (("tuning", study.tune_seeds), ("reported", study.seeds)):
            found = finished(family, seeds) if set(seeds) & set(family.seeds()) else []
            for i, pairs in enumerate(found):
                if not pairs or (what == "tuning" and study.tune_seeds == study.seeds[:1]):
                    continue
                own, alone = np.array(list(pairs.values())).T
                cost, cost_alone = costs(family, i, speeds)
                config = study.config(family.members[i])
                rows.append(dict(
                    family=family.name, member=family.members[i], what=what, seeds=sorted(pairs),
                    params=count(config, config.sizes()[0], vocab_of(config))[0], losses={
                        s: dict(family=p[0], scratch=p[1]) for s, p in pairs.items()},
                    loss=interval(own), scratch=interval(alone), less=interval(own - alone),
                    beyond_law=float(own.mean()) - fitted.grown_loss(parts(family, i)) if fitted else None,
                    flops=[cost[0], cost_alone[0]], seconds=[cost[1], cost_alone[1]]))
    return rows


def parts(family, i):
    """[(weights, tokens), ...] that member i trained with, size after size."""
    ends = [*family.ends[:i], family.ends[i] + family.decays[i]]
    study = family.study
    return [(study.costs(m)[0]["weights"], (end - before) * study.batch)
            for m, before, end in zip(family.members, [0, *ends], ends)]


def family_table(study, rows):
    """The rows as Markdown. Below each complete family stands what it saves."""
    lines = []
    for name, what in dict.fromkeys((r["family"], r["what"]) for r in rows):
        mine = [r for r in rows if (r["family"], r["what"]) == (name, what)]
        for r in mine:
            lines.append([name, r["member"], human(r["params"]), f"{len(r['seeds'])}, {what}",
                          signed(r["loss"], "{:.4f}"), signed(r["scratch"], "{:.4f}"), signed(r["less"], "{:+.4f}"),
                          "-" if r["beyond_law"] is None else f"{r['beyond_law']:+.4f}", *shares([r])])
        if len(mine) == len(study.families[name].members):
            lines.append([name, "all", "", "", "", "", "", "", *shares(mine)])
    return table(["family", "model", "parameters", "seeds", "validation loss", "from scratch", "difference",
                  "loss less the law's", "TFLOP", "from scratch", "saved", "s", "from scratch", "saved"], lines)


def signed(pair, form):
    mean, half = pair
    return form.format(mean) + ("" if half is None else f" ± {half:.4f}")


def shares(rows):
    """Cells: FLOPs, from scratch, saved; the same for seconds, with "-" if not measured."""
    cells = []
    for what, unit, form in (("flops", 1e12, "{:.3g}"), ("seconds", 1, "{:.0f}")):
        known = [r[what] for r in rows if None not in r[what]]
        grown, alone = (sum(c[i] for c in known) / unit for i in (0, 1))
        cells += [form.format(grown), form.format(alone), saved(grown, alone)] if known else ["-"] * 3
    return cells
