"""What evaluating and fine-tuning share: batches of rows, a table, the result's file."""
import os

import torch
from torch.nn.utils.rnn import pad_sequence

from base.disk import write_json
from base.errors import UserError, number
from run.trained import model_parser


def parser(doc, batch, limit, save):
    """Arguments of evaluate and finetune; limit, save: what --limit counts, the file's name."""
    p = model_parser(doc)
    p.add_argument("--batch", type=number(int, 1), default=batch, help="sequences run at once")
    p.add_argument("--limit", type=number(int, 0), default=0, help=f"only the first N {limit}")
    p.add_argument("--save", type=os.path.expanduser, help=f"where the JSON goes ({save} beside "
                   "the checkpoint)")
    return p


def batches(lengths, size, rng=None):
    """
    Numbers of rows in batches of alike lengths: the longest first, so that what does not fit in
    memory shows at once, or shuffled by rng.
    """
    order = list(range(len(lengths))) if rng is None else rng.permutation(len(lengths)).tolist()
    chunk = len(lengths) if rng is None else 50 * size
    order = [i for c in range(0, len(order), chunk) for i in
             sorted(order[c:c + chunk], key=lengths.__getitem__, reverse=rng is None)]
    groups = [order[i:i + size] for i in range(0, len(order), size)]
    return groups if rng is None else [groups[i] for i in rng.permutation(len(groups))]


def pad(rows, value=0):
    """Lists of numbers as one tensor (B, T), padded on the right."""
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)


def table(rows):
    """Rows of cells as aligned lines, the first row underlined."""
    rows = [[f"{c:.4f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    width = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, width)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in width), *lines[1:]])


def save_result(result, save, checkpoint, name):
    """Write the JSON result to `save`, or beside the checkpoint; returns where."""
    folder = checkpoint if os.path.isdir(checkpoint) else os.path.dirname(checkpoint)
    save = save or os.path.join(folder, name)
    try:
        write_json(save, result)
    except OSError as e:
        raise UserError(f"{save}: cannot be written ({e.strerror}): give --save=FILE") from None
    return save
