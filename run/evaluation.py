"""Validation scores of a model, as sums that add up over batches and processes; and sample texts."""
import unicodedata
from itertools import islice

import torch
from torch.nn import functional as F

from base.errors import UserError, first_line
from model import BertOutput
from run.parallel.shard import in_lockstep

SAMPLE_TOKENS = 200


def scores(out, loss, data):
    """
    Sums over a batch: {name: (sum, count)}, 0-D tensors on the batch's device. out, loss: what the
    model returned for `data`, a dict from a loader.
    """
    target = data["targets"]
    n = (target >= 0).sum()
    if not isinstance(out, BertOutput):
        return {"val_loss": (loss * n, n)}
    following = data["next_sentence"]
    rows = torch.full_like(n, len(following))
    nsp = F.cross_entropy(out.nsp_logits, following)
    hit = (out.mlm_logits.argmax(-1) == target).sum()
    nsp_hit = (out.nsp_logits.argmax(-1) == following).sum()
    return {"val_loss": ((loss - nsp) * n, n), "mlm_acc": (hit, n),
            "nsp_loss": (nsp * rows, rows), "nsp_acc": (nsp_hit, rows)}


# what scores() returns for each model: a rank without batches sums zeros under the same names
NAMES = {"gpt": ["val_loss"], "llama": ["val_loss"],
         "bert": ["mlm_acc", "nsp_acc", "nsp_loss", "val_loss"]}


@torch.no_grad()
def evaluate(run, batches=None, stop=lambda: False):
    """
    Validation scores of a run over all its ranks, {name: mean}. Each rank evaluates all its batches,
    or the first `batches`; it may have none. If stop() is true on any rank before a batch, all stop.
    Runs eagerly, so that nothing is recompiled.
    """
    names = NAMES[run.config.model]
    exact = torch.float32 if run.device.type == "mps" else torch.float64
    sums = torch.zeros(len(names), 2, dtype=exact, device=run.device)
    run.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), run.autocast():
            for data, counts in in_lockstep(run, islice(run.loader.eval_batches(), batches), stop):
                data = run.to_device(run.pinned(data))
                out = run.model(**data, return_logits=run.config.model == "bert")
                if not counts:
                    continue
                found = scores(*out, data)
                sums += torch.stack([torch.stack([v.to(exact) for v in found[n]]) for n in names])
    finally:
        run.model.train()
    total = run.ranks.sum(sums.cpu())
    return {n: (s / c).item() for n, (s, c) in zip(names, total)}


@torch.no_grad()
def sample_text(run, tokenizer):
    """
    Generate a document of at most SAMPLE_TOKENS tokens, as text without control characters. The seed
    is the run's, so two samples differ by the weights only.
    """
    eot, c = tokenizer.eot, run.config
    start = tokenizer.begin or ([eot] if eot is not None else newline(tokenizer))
    torch.manual_seed(c.seed)  # each training step sets its own seed
    run.model.eval()
    try:
        with torch.compiler.set_stance("force_eager"), run.autocast():
            ids = run.model.generate(torch.tensor([start], device=run.device),
                                     min(SAMPLE_TOKENS, c.block_size), 0.8, 50, eot)[0, len(start):].tolist()
    except RuntimeError as e:  # out of memory, NaN logits: lose the text, not the run
        return f"(nothing: {first_line(e)})"
    finally:
        run.model.train()
    return printable(tokenizer.decode(ids[:ids.index(eot)] if eot in ids else ids))


def newline(tokenizer):
    """The ids of a newline, which a text without a prompt starts with; the first id where there is none."""
    try:
        return tokenizer.encode("\n") or [0]
    except UserError:
        return [0]


def printable(text):
    """The text with control characters, except newline and tab, replaced by U+FFFD."""
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c
                   for c in text)
