# Which schedule? One seed, half the compute of the run from scratch: one growth or more, earlier or
# later; and small models that never grow. How the best of pystdlib_evidence was looked for.
from experiments import common as _c

ablation = True
settings, seeds = _c.settings, [1]
_muon = dict(_c.muon, against="scratch", flops=("scratch", 0.5))


def _layers(*stages, start=1):
    """Layers only: (at, n_layer) pairs."""
    return dict(_c.target, **_muon, n_layer=start,
                stages=[dict(at=at, n_layer=n) for at, n in stages])


contestants = {
    "scratch": dict(_c.target, **_c.muon),
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
}
