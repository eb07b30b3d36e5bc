"""Open a trained model: from a run's folder, one of its checkpoints, or a Hugging Face folder."""
import argparse
import difflib
import os

import torch

from base.errors import Parser, UserError
from base.reading import need
from run import family
from run.checkpoint.checkpoint import believed, load_model
from run.hf import folder_meta, from_hf, is_hf, kind_of, token_ids
from run.parallel.ranks import open_device


def model_parser(doc, **more):
    """The argument parser of every script that opens a trained model."""
    p = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, **more)
    p.add_argument("checkpoint", type=os.path.expanduser,
                   help="a checkpoint file, a run's folder, a family's member (RUN/2x64) or a Hugging "
                   "Face folder")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", type=open_device)
    return p


def open_model(path, device="cpu"):
    """
    The model and its info (config, meta; iter, if from a run) from a checkpoint, a run's folder, a
    Hugging Face folder or a family's member (RUN/2x64). Raises UserError.
    """
    path = path if os.path.exists(path) else family.member_at(path) or path
    if not os.path.exists(path):
        folder, name = os.path.split(path.rstrip(os.sep))
        near = difflib.get_close_matches(name, os.listdir(folder or ".") if os.path.isdir(folder or ".")
                                         else [], 1)
        raise UserError(f"{path}: no such checkpoint or folder" + "".join(
            f" (did you mean {os.path.join(folder, n)}?)" for n in near) + ": give a run's out_dir, a "
            "checkpoint or a Hugging Face folder (hf download OWNER/NAME --local-dir=FOLDER makes one)")
    with believed(path):
        if is_hf(path):
            model = from_hf(path)
            kind = kind_of(model)
            info = dict(config=dict(model=kind), meta=dict(folder_meta(path, kind), ids=token_ids(path)))
        else:
            model, info = load_model(path)
    need(path, info, config=dict, meta=dict)
    return model.to(device), info
