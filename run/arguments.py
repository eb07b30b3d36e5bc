"""
Read settings: a file of plain Python assignments, then --key=value overrides; or --resume and the
run's folder. Bad input ends in one line.
"""
import ast
import contextlib
import difflib
import glob
import inspect
import itertools
import os
import runpy
import sys
import types
from dataclasses import asdict, fields

from base.errors import UserError, once, say_once
from base.reading import need, read_json
from model import GROWABLE
from run import hf
from run.checkpoint import checkpoint
from run.optim import REWARM_MAY_CHANGE
from run.settings import (
    OWN_STARTS,
    TrainConfig,
    check_ramps,
    from_dict,
    known_settings,
    refuse,
    typed,
    unknown,
)


def from_args(argv):
    """
    argv: at most one config file, then --key=value ... . --resume takes the settings that the run
    recorded, and only the command line changes them. A run's folder may then replace the config file.
    Returns a checked TrainConfig.
    """
    if help := [a for a in argv if a == "-h" or a.startswith("--help")]:
        print(describe_settings(help[0].partition("=")[2]))
        sys.exit(0)
    files = [os.path.expanduser(a) for a in argv if not a.startswith("--")]
    if len(files) > 1:
        raise UserError(f"{files[1]}: only one config file is read; settings are --key=value")
    given = once(parse_override(a) for a in argv if a.startswith("--") and a != "--resume")
    if "--resume" in argv:
        if given.get("init_from", "resume") not in ("resume", "auto"):
            raise UserError(f"init_from={given['init_from']}: --resume goes on from the run's newest checkpoint: "
                            "leave one of the two out")
        config = from_dict({**recorded(files, given), **given, "init_from": "resume"})
        refuse(config, given)
        return config
    file = read_file(files[0]) if files else {}
    values = {**file, **given}
    start = values.get("init_from", "scratch")
    parent = {}
    if isinstance(start, str) and start.endswith(".pt"):
        values, parent = branched(values, given, os.path.expanduser(start))
    elif start not in OWN_STARTS:
        values = sized_by_folder(values)
    config = from_dict(values)
    refuse(config, given)
    if files:
        refuse(config, own_names(files[0]) - given.keys(), {**parent, "max_iters": config.max_iters, **file})
    if not (start == "auto" and checkpoint.exists(config.out_dir)):  # else check_resume() does it
        check_ramps(config)
    return config


def branched(values, given, start):
    """
    The settings of the run that wrote the checkpoint `start`, overridden by `values`, of which those of
    the command line are `given`. Returns them, and that run's own.
    """
    values = {key: typed(key, value) for key, value in values.items()}
    state = checkpoint.settings_of(start)
    need(start, state, config=dict, iter=int, stage=int)
    had = {**asdict(TrainConfig()), **known_settings(state["config"])}
    need(start, had, stages=list)
    if values.get("out_dir", had["out_dir"]) == had["out_dir"]:
        raise UserError(f"init_from={start}: a branch is a run of its own: give it another --out_dir")
    done, stages = state["stage"], values.get("stages", had["stages"])
    if values.get("decay_iters"):
        values.setdefault("schedule", "wsd")
        beside = given if "decay_iters" in given else values
        if "max_iters" not in beside:
            values["max_iters"] = state["iter"] + values["decay_iters"]
            stages = stages if "stages" in beside else stages[:done]  # a decay drops those still to come
    elif values.get("decay_frac"):
        values.setdefault("schedule", "wsd")
        values.setdefault("decay_iters", 0)
    had["rewarm_iters"] = 0  # the checkpoint records past rewarms
    if stages[:done] == had["stages"][:done] and any(
            values.get(k, had[k]) != had[k] for k in ("ramp_iters", "operator")):
        with checkpoint.believed(start):  # stages that have begun keep their settings
            stages = [*map(TrainConfig(**had).whole, stages[:done]), *stages[done:]]
    if values.get("finish_stages", had["finish_stages"]):  # the parent's family finishes the smaller sizes
        stages = [{**s, "finish_iters": 0} if i < done and isinstance(s, dict) else s for i, s in enumerate(stages)]
    return {**had, **values, "stages": stages}, had


def recorded(files, given):
    """The settings of the run to resume, from config.json in its out_dir."""
    if "out_dir" in given and files and os.path.isdir(files[0]):
        raise UserError(f"out_dir={given['out_dir']}: --resume {files[0]} says where the run is: leave one of "
                        "the two out")
    if files and not files[0].endswith(".py") and not os.path.isdir(files[0]):
        raise UserError(f"{files[0]}: no such folder: --resume goes on with a run's out_dir")
    values = {} if not files or os.path.isdir(files[0]) else read_file(files[0])
    folder = given.get("out_dir") or (files[0] if files and not values else
                                      values.get("out_dir", TrainConfig.out_dir))
    had = last_config(os.path.expanduser(str(folder)))
    if had is None:
        return {**values, "out_dir": folder}  # loading the checkpoint decides
    old = known_settings(had)
    if given.keys() & {"max_iters", *REWARM_MAY_CHANGE}:
        old.pop("rewarm_iters", None)  # it belonged to the earlier schedule
    for key in sorted(values.keys() & old.keys() - given.keys() - {"out_dir", "init_from"}):
        if values[key] != old[key]:
            say_once(f"resuming with the run's own {key}={old[key]!r}, not {files[0]}'s "
                     f"{values[key]!r}: give --{key}=... to change it")
    if not os.path.isdir(str(old.get("data_dir"))):  # relative to another working directory
        there = had["resolved"].get("data_dir", "") if isinstance(had.get("resolved"), dict) else ""
        if os.path.isdir(str(there)):
            old.update(data_dir=there)
    return {**old, "out_dir": folder}


def last_config(folder):
    """The run's config.json; if that is missing or damaged, the settings in its newest checkpoint; else None."""
    path = os.path.join(folder, "config.json")
    saved = checkpoint.numbered(folder) if os.path.isdir(folder) else []
    try:
        if os.path.exists(path) or not saved:
            return read_json(path) if os.path.exists(path) else None
        why = "is missing"
    except UserError as e:
        if not saved:
            raise
        why = str(e).removeprefix(f"{path}: ")
    had = checkpoint.settings_of(saved[0])["config"]
    say_once(f"{path}: {why}: going on with the settings in {saved[0]}")
    need(saved[0], dict(config=had), config=dict)
    return had


def describe_settings(wanted=""):
    """The settings with defaults and meanings, from TrainConfig's source; only `wanted`, if given."""
    lines = inspect.getsource(TrainConfig).splitlines()
    start = next(i for i, line in enumerate(lines) if line.lstrip().startswith("#"))
    end = next(i for i, line in enumerate(lines) if line.lstrip().startswith("def "))
    text = [line[4:].replace(" = field(default_factory=list)", " = []") for line in lines[start:end]]
    if not wanted:
        return "python train.py [CONFIG] [--key=value ...]     python train.py --resume OUT_DIR\n\n" + \
            "\n".join(text).rstrip()
    known = [f.name for f in fields(TrainConfig)]
    if wanted not in known:
        raise UserError(unknown(wanted, known))
    i = next(i for i, line in enumerate(text) if line.startswith(wanted + ":"))
    more = list(itertools.takewhile(lambda line: line.startswith("     "), text[i + 1:]))
    return "\n".join([text[i], *more])


def sized_by_folder(values):
    """`values` with the sizes of the folder to start from. UserError if a setting contradicts them."""
    where = str(values["init_from"])
    folder = hf.find(where)
    kind, sizes = hf.folder_config(folder)
    for key, theirs in dict(model=kind, **sizes).items():
        mine = values.get(key, theirs)
        if mine == {"vocab_size": 0, "gelu": ""}.get(key):  # defaults that leave the choice open
            mine = theirs
        if mine != theirs and not (key == "block_size" and type(mine) is int and mine < theirs):
            raise UserError(f"{key}={mine!r}: init_from={where} has {key}={theirs!r}: leave it out"
                            + (", or grow to it in stages" if key in GROWABLE else ""))
        values[key] = mine
    if hf.masked_eot(folder, sizes["vocab_size"]) is not None:
        values.setdefault("doc_mask", True)  # the model was trained with it
    return {**values, "init_from": folder}


def read_file(path):
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        there = [*glob.glob("config/*.py"), *glob.glob("lab/experiments/*.py")]
        near = difflib.get_close_matches(path, there, 1)
        raise UserError(f"{path}: no such config file" + (
            f", did you mean {near[0]}?" if near else ": see config/ and lab/experiments/"))
    sys.path[:0] = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
    try:
        names = runpy.run_path(path)  # a config may import another: from config.gpt2_msg import *
    except KeyboardInterrupt:
        raise
    except BaseException as e:
        raise UserError(f"{path}: not a config file of plain Python assignments: "
                        f"{type(e).__name__}: {e}".splitlines()[0]) from None
    finally:
        del sys.path[0]
    known = {f.name for f in fields(TrainConfig)}
    return {k: v for k, v in names.items() if not k.startswith("_") and (
        k in known or not isinstance(v, (types.ModuleType, types.FunctionType, type)))}


def own_names(path):
    """The names that a config file assigns itself, without those it imports."""
    with open(os.path.expanduser(path), "rb") as f:
        tree = ast.parse(f.read())
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


def parse_override(arg):
    key, eq, text = arg[2:].partition("=")
    kinds = {f.name: f.type for f in fields(TrainConfig)}
    if key == "resume":
        raise UserError(f"{arg}: is written --resume {text}")
    if not eq:
        raise UserError(f"{arg}: settings are written --key=value")
    if key in kinds and kinds[key] is not str:
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
            return key, typed(key, ast.literal_eval(literal(text)))
    return key, typed(key, text)


def literal(text):
    """`text` as a Python literal. Allows true, false and dict(at=1, n_embd=8); rejects duplicate keys."""
    if text.lower() in ("true", "false"):
        return text.title()
    tree = ast.parse(text, mode="eval")

    class Dicts(ast.NodeTransformer):
        def visit_Call(self, node):
            if getattr(node.func, "id", "") != "dict" or node.args:
                raise ValueError(text)
            return ast.Dict(keys=[ast.Constant(k.arg) for k in node.keywords],
                            values=[self.visit(k.value) for k in node.keywords])
    tree = ast.fix_missing_locations(Dicts().visit(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict) and len({ast.unparse(k) for k in node.keys if k}) < len(node.keys):
            raise ValueError(text)
    return ast.unparse(tree)
