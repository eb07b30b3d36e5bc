"""What a user gives, as arguments and in files: read, checked, one line where it is wrong."""
import argparse
import json
import os

import torch

from data.reading import read_text
from run.errors import Parser, UserError
from run.ranks import open_device


def model_parser(doc):
    """The arguments of every script that opens a trained model."""
    p = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", type=os.path.expanduser,
                   help="a checkpoint file, a run's folder or a Hugging Face folder")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=open_device)
    return p


def read_json(path, **kinds):
    """The JSON object in a file, which must have these keys; see need()."""
    found = parse_json(path, read_text(path))
    if not isinstance(found, dict):
        raise UserError(f"{path}: is no JSON object")
    need(path, found, **kinds)
    return found


def read_jsonl(path, limit=0):
    """[("FILE:LINE", object), ...]"""
    lines = [(f"{path}:{i}", line) for i, line in enumerate(read_text(path).split("\n"), 1)
             if line.strip()][:limit or None]
    if not lines:
        raise UserError(f"{path}: is empty: one JSON object a line is expected")
    return [(where, parse_json(where, line)) for where, line in lines]


def parse_json(where, text):
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as e:
        raise UserError(f"{where}: not JSON ({e})") from None


def need(where, found, **kinds):
    """The values of an object's keys, each of its kind, or of one of several. UserError else."""
    for key, kind in kinds.items():
        value = found.get(key) if isinstance(found, dict) else None
        if not isinstance(value, kind) or isinstance(value, bool):
            names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else [kind]))
            raise UserError(f"{where}: lacks {key}, or it is no {names}: {', '.join(kinds)} are "
                            "expected")
    return [found[key] for key in kinds]
