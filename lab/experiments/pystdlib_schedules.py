# Which schedule? One growth or more, earlier or later, and small models that never grow. One seed, with
# half or a fifth of the compute from scratch. This is how the best schedules of pystdlib_evidence were
# found.
from lab.experiments import common as _c

ablation = True
settings, seeds = _c.settings, [1]
_muon = dict(_c.muon, muon_learning_rate=0.02, against="scratch", flops=("scratch", 0.5))


def _layers(*stages, start=1):
    """Grow layers only: (at, n_layer) pairs."""
    return dict(_c.target, **_muon, n_layer=start,
                stages=[dict(at=at, n_layer=n) for at, n in stages])


def _late(at, operator="zero_output", rate=0.04, start=_c.tiny, **more):
    """From a small model to the target in one growth, with a fifth of the compute."""
    return {**_muon, "flops": ("scratch", 0.2), **start, "operator": operator, "ramp_iters": 10,
            "muon_learning_rate": rate, "stages": [dict(at=at, **_c.target)], **more}


contestants = {
    "scratch": {**_c.target, **_c.muon, "muon_learning_rate": 0.02},
    "1 to 7 at 200": _layers((200, 7)),
    "1 to 7 at 300": _layers((300, 7)),
    "1 to 7 at 450": _layers((450, 7)),
    "2 to 7 at 300": _layers((300, 7), start=2),
    "1, 3, 7 at 300, 400": _layers((300, 3), (400, 7)),
    "1, 3, 7 at 400, 550": _layers((400, 3), (550, 7)),
    "1, 2, 4, 7 at 250, 350, 450": _layers((250, 2), (350, 4), (450, 7)),
    "1, 3, 7 at 200, 500": _layers((200, 3), (500, 7)),
    "three layers alone": _layers(start=3),
    "one layer alone": _layers(),
    "1 x 128, late, MSG": _late(1000, "msg"),
    "1 x 128, late": _late(1000),
    "1 x 128, later": _late(1150),
    "1 x 128, not so late": _late(800),
    "1 x 128, late, longer decay": _late(1000, decay_frac=0.5),
    "1 x 128, late, lower rate": _late(1000, rate=0.02),
    "2 x 128, late": _late(550, start=_c.small, decay_frac=0.4),
    "2 x 128, late, MSG": _late(600, "msg", start=_c.small, decay_frac=0.4),
}
