"""
Evaluate a trained model: GPT on texts, last words and multiple choice, BERT on masked tokens.

    python -m tools.evaluate out/gpt --tasks=ppl:wiki.txt,lambada:lambada.jsonl,choice:piqa.jsonl
    python -m tools.evaluate out/bert --tasks=mlm

    ppl:FILE       perplexity per token and bits per byte, on any text (.txt, .gz, .xz)
    lambada:FILE   is the last word the most likely one? Lines {"context": ..., "continuation": ...}
                   (CORE's language modeling), or {"text": ...}
    choice:FILE    the most likely of several endings. Lines {"query": ..., "choices": [...],
                   "gold": 0}, or {"context_options": [...], "continuation": ..., "gold": 0} (CORE's
                   multiple choice and schema). query may be called ctx or question; choices,
                   endings; gold, label or answer. gold is a number from 0, a letter or the text
    mlm, mlm:DIR   masked-token accuracy on a dataset's val.bin (default: the run's own)
    layers, layers:DIR   by how much the loss on that val.bin rises without each layer

A model is a checkpoint, a run's folder or a Hugging Face folder. For a family's folder, all finished
members are measured in one table.
"""
import math
import os
import re
import sys
from dataclasses import replace

import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from base.disk import write_json
from base.errors import UserError, exits_cleanly, number
from base.reading import need, read_jsonl, read_text
from data.dataset import read_meta
from data.loader import BertLoader, Loader
from data.tokenizer import get_tokenizer, tokenizer_of
from run import family
from run.evaluation import scores
from run.hf import kind_of
from run.settings import TrainConfig, known_settings
from run.trained import model_parser, open_model

HEAD_ROWS = 1024  # positions with logits in memory at once


class Evaluator:
    """A model with its tokenizer, and a method for each task."""

    def __init__(self, path, device="cpu", batch=16, stride=0, limit=0, join=" "):
        self.model, self.info = open_model(path, device)
        self.kind, self.config = kind_of(self.model), self.model.config
        self.device, self.batch, self.limit, self.join = device, batch, limit, join
        self.stride = min(stride or self.config.block_size // 2 or 1, self.config.block_size)
        self.tok = get_tokenizer(self.info["meta"], bert=self.kind == "bert")

    # -------------------------------------------------------------------------
    # the likelihood of tokens under a GPT

    @torch.no_grad()
    def nats(self, rows, name):
        """
        Score ids[start:] of each row, every token given those before it. rows: [(ids, start)].
        Returns [(sum of nats, were all of them the most likely tokens?)].
        """
        top = max((max(ids) for ids, _ in rows), default=0)
        if top >= self.config.vocab_size:
            raise UserError(f"{name}: its text has token id {top}, but the model knows only "
                            f"{self.config.vocab_size} ids: it has another tokenizer")
        pieces = [(window, first, i) for i, (ids, start) in enumerate(rows)
                  for window, first in windows(ids, start, self.config.block_size, self.stride)]
        total, greedy = [0.0] * len(rows), [True] * len(rows)
        with tqdm(total=len(pieces), desc=name, dynamic_ncols=True, leave=False) as bar:
            # the longest first, so that running out of memory shows at once
            order = sorted(pieces, key=lambda piece: -len(piece[0]))
            for start in range(0, len(order), self.batch):
                group = order[start:start + self.batch]
                for (_, _, i), (nats, hit) in zip(group, self.score(group)):
                    total[i], greedy[i] = total[i] + nats, greedy[i] and hit
                bar.update(len(group))
        return list(zip(total, greedy))

    def score(self, pieces):
        idx = pad([window[:-1] for window, _, _ in pieces])  # padding on the right: no token attends to it
        targets = pad([[-1] * (first - 1) + window[first:] for window, first, _ in pieces], -1)
        targets = targets.to(self.device)
        where = targets >= 0  # (B, T)
        x = self.model.hidden(idx.to(self.device))[where]  # (N, n_embd): only the scored positions
        nats, hits = [], []
        for part, want in zip(x.split(HEAD_ROWS), targets[where].split(HEAD_ROWS)):
            logits = F.linear(part, self.model.head_weight()).float()
            nats.append(F.cross_entropy(logits, want, reduction="none").double())
            hits.append(logits.argmax(-1) == want)
        counts = where.sum(1).tolist()
        return [(n.sum().item(), bool(h.all())) for n, h in
                zip(torch.cat(nats).split(counts), torch.cat(hits).split(counts))]

    def pair(self, context, continuation, where, join=" "):
        """
        (ids, index where the continuation starts). A `join` of white space is added only if there is
        none yet. The context's last spaces count as continuation, because byte-pair encoding makes one
        token of " word".
        """
        if join.strip() or not (context[-1:].isspace() or continuation[:1].isspace()):
            context += join if context else ""
        start = len(context.rstrip(" "))
        before = self.tok.begin + self.tok.encode(context[:start])
        after = (self.tok.begin + self.tok.encode(context + continuation))[len(before):]
        if not continuation.strip() or not after:
            raise UserError(f"{where}: an end without a text has no likelihood: leave the line out")
        if not before:
            if self.tok.eot is None:
                raise UserError(f"{where}: an empty context, and this tokenizer has no end of "
                                "document to start from: leave the line out")
            before = [self.tok.eot]
        return before + after, len(before)

    # -------------------------------------------------------------------------
    # tasks: each takes a path and returns {metric: value}

    def ppl(self, path):
        text = read_text(path)
        given, ids, scored = self.tok.begin or [self.tok.eot], self.tok.encode(text), text
        if given == [None]:
            given, ids, scored = ids[:1], ids[1:], text[1:]  # no start token: the first character is given
        if self.limit:
            ids = ids[:self.limit]
            scored = self.tok.decode(ids)
        if not ids:
            raise UserError(f"{path}: holds no text to score")
        [(nats, _)] = self.nats([(given + ids, len(given))], "ppl")
        n, size = len(ids), len(scored.encode("utf-8", errors="replace"))
        return dict(n=n, ppl=exp(nats / n), bits_per_byte=nats / math.log(2) / size)

    def lambada(self, path):
        rows = []
        for where, line in read_jsonl(path, self.limit):
            if isinstance(line, dict) and isinstance(line.get("text"), str):  # LAMBADA's original format
                line = dict(zip(("context", "continuation"), line["text"].rstrip().rsplit(" ", 1)))
            context, word = need(where, line, context=str, continuation=str)
            rows.append(self.pair(context, word, where))
        scores = self.nats(rows, "lambada")
        return dict(n=len(rows), acc=sum(hit for _, hit in scores) / len(rows),
                    ppl=exp(sum(nats for nats, _ in scores) / len(rows)))

    def choice(self, path):
        """
        acc compares the nats of whole choices. acc_norm compares nats per character, as in
        lm-evaluation-harness, so that short choices have no advantage. acc_token: nats per token, as CORE.
        """
        rows, chars, questions = [], [], []
        for where, line in read_jsonl(path, self.limit):
            pairs, gold = read_question(where, line)
            questions.append((len(rows), len(rows) + len(pairs), gold))
            rows += [self.pair(*p, where, " " if "context_options" in line else self.join)
                     for p in pairs]
            chars += [max(1, len(end)) for _, end in pairs]
        nats = [n for n, _ in self.nats(rows, "choice")]
        tokens = [len(ids) - start for ids, start in rows]
        scores = dict(acc=nats, acc_norm=[n / size for n, size in zip(nats, chars)],
                      acc_token=[n / size for n, size in zip(nats, tokens)])
        return dict(n=len(questions), **{name: sum(
            min(range(a, b), key=by.__getitem__) - a == gold for a, b, gold in questions
        ) / len(questions) for name, by in scores.items()})

    def mlm(self, path):
        """On rows of a dataset's val.bin, masked as in training."""
        loader = self.loader("mlm", path)
        sums = self.sums("mlm", loader)
        mean = {name: s / n for name, (s, n) in sums.items()}
        return dict(file=loader.config.data_dir, n=sums["mlm_acc"][1], mlm_acc=mean["mlm_acc"],
                    mlm_loss=mean["val_loss"], nsp_acc=mean["nsp_acc"])

    def layers(self, path):
        """By how much the loss on a dataset's val.bin rises without each layer, as Veit et al. (2016) do."""
        loader = self.loader("layers", path)
        (loss, n), rises = self.sums("layers", loader)["val_loss"], {}
        for i, block in enumerate(self.model.blocks, 1):
            block.forward = lambda x, *_: x
            rises[f"without layer {i}"] = (self.sums(f"layer {i}", loader)["val_loss"][0] - loss) / n
            del block.forward
        return dict(file=loader.config.data_dir, n=n, val_loss=loss / n, **rises)

    def loader(self, task, path):
        """Rows of a dataset's val.bin: of the folder `path`, or of the run's own."""
        config = TrainConfig(**known_settings(self.info["config"]))
        T = self.config.block_size
        if not (path or "data_dir" in self.info["config"]):
            raise UserError(f"{task}: a Hugging Face folder names no dataset: give one, {task}:DIR")
        config = replace(config, data_dir=path or config.data_dir, block_size=T, stages=[],
                         micro_batch=self.batch, batch_tokens=self.batch * T,
                         eval_seqs=self.limit or 1024)
        meta = read_meta(config.data_dir)
        if tokenizer_of(meta) != tokenizer_of(self.info["meta"]):
            raise UserError(f"data_dir={config.data_dir}: made with another tokenizer than the "
                            f"model's: give the folder of a dataset that goes with it, {task}:DIR")
        return (BertLoader if self.kind == "bert" else Loader)(config, meta, self.config.vocab_size)

    @torch.no_grad()
    def sums(self, desc, loader):
        """{score: (sum, count)} over the rows of a loader."""
        sums = {}
        total = -(-loader.eval_seqs // self.batch)
        for data in tqdm(loader.eval_batches(), total=total, desc=desc, leave=False):
            data = {k: v.to(self.device) for k, v in data.items()}
            for name, (s, n) in scores(
                    *self.model(**data, return_logits=self.kind == "bert"), data).items():
                a, b = sums.get(name, (0.0, 0))
                sums[name] = a + float(s), b + int(n)
        return sums


DECODERS = ("gpt", "llama")
TASKS = dict(ppl=DECODERS, lambada=DECODERS, choice=DECODERS, mlm=("bert",), layers=(*DECODERS, "bert"))
ON_DATASET = ("mlm", "layers")  # these read a val.bin, that of the run if no folder is given


# names that datasets use for the parts of a question
PARTS = dict(query=("query", "ctx", "question"), choices=("choices", "endings"),
             gold=("gold", "label", "answer"))


def read_question(where, line):
    """([(context, ending), ...], index of the right one) of a multiple-choice line. UserError."""
    if isinstance(line, dict):
        line = {**line, **{part: line[name] for part, names in PARTS.items()
                           for name in reversed(names) if name in line}}
    if isinstance(line, dict) and "context_options" in line:
        choices, end, gold = need(where, line, context_options=list, continuation=str,
                                  gold=(int, str))
        pairs = [(c, end) for c in choices]
    else:
        query, choices, gold = need(where, line, query=str, choices=list, gold=(int, str))
        pairs = [(query, c) for c in choices]
    if not all(isinstance(c, str) for c in choices):
        raise UserError(f"{where}: a choice that is no text")
    return pairs, which(where, gold, choices)


def which(where, gold, choices):
    """Index of the right choice. gold: that index (from 0), a letter (from A) or the choice's text."""
    meant = {gold}
    if isinstance(gold, str):
        meant = {i for i, c in enumerate(choices) if c == gold}
        if re.fullmatch("[0-9]{1,4}|[A-Z]", gold):
            meant.add(int(gold) if gold.isdigit() else ord(gold) - ord("A"))
    meant &= {*range(len(choices))}
    if len(meant) != 1:
        fault = "is one by its number and another by its text" if meant else \
            f"is none of the {len(choices)} choices"
        raise UserError(f"{where}: gold={gold!r} {fault}: give the number of the right one, from 0")
    return meant.pop()


def exp(nats):
    """math.exp, but infinity instead of an overflow error."""
    return math.exp(nats) if not nats > 700 else math.inf


def windows(ids, start, T, stride):
    """
    Yield (piece, first scored position in it). The pieces have at most T + 1 ids (T inputs, T targets)
    and together score each of ids[start:] once. Up to T ids make one piece, with as much context as
    fits, as in lm-evaluation-harness. Otherwise each piece after the first scores `stride` new ids, each
    with at least T - stride ids of context.
    """
    stop = len(ids) if len(ids) - start <= T else max(T + 1, start + stride)
    while start < len(ids):
        stop = min(stop, len(ids))
        low = max(0, stop - T - 1)
        yield ids[low:stop], start - low
        start, stop = stop, stop + stride


def parse_tasks(text):
    """'ppl:a.txt,mlm' -> [("ppl", "a.txt"), ("mlm", "")]; a comma may be part of a name."""
    tasks = []
    for part in re.split(rf",(?=(?:{'|'.join(TASKS)})(?::|,|$))", text):
        name, _, path = part.partition(":")
        path = os.path.expanduser(path)
        if name not in TASKS:
            raise UserError(f"--tasks={text}: {name!r} is no task: use "
                            "ppl:FILE, lambada:FILE, choice:FILE, mlm or layers, joined by commas")
        if not path and name not in ON_DATASET:
            raise UserError(f"--tasks={text}: {name} needs a file: {name}:FILE")
        if path and not os.path.exists(path):  # fail now, not after the tasks before it
            raise UserError(f"--tasks={text}: {path}: no such file: give one for {name} to read")
        tasks.append((name, path))
    return tasks


def pad(rows, value=0):
    """Lists of numbers as one tensor (B, T), padded on the right."""
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True, padding_value=value)


def table(rows):
    """Rows of cells as aligned lines, with the first row underlined."""
    rows = [[f"{c:.4f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    width = [max(map(len, column)) for column in zip(*rows)]
    lines = ["  ".join(c.ljust(w) for c, w in zip(row, width)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in width), *lines[1:]])


def save_result(result, save, checkpoint):
    """Write the JSON result to `save`, or beside the checkpoint. Returns the path."""
    folder = checkpoint if os.path.isdir(checkpoint) else os.path.dirname(checkpoint)
    save = save or os.path.join(folder, "evaluate.json")
    try:
        write_json(save, result)
    except OSError as e:
        raise UserError(f"{save}: cannot be written ({e.strerror}): give --save=FILE") from None
    return save


def parse(argv):
    p = model_parser(__doc__, means=dict(
        stride=("--tasks=ppl:FILE", lambda a: "ppl:" in a.tasks), join=("--tasks=choice:FILE", lambda a: "choice:" in a.tasks)))
    p.add_argument("--batch", type=number(int, 1), default=16, help="sequences run at once")
    p.add_argument("--limit", type=number(int, 0), default=0,
                   help="only the first N lines (ppl: tokens; mlm, layers: rows, 1024 by default)")
    p.add_argument("--save", type=os.path.expanduser,
                   help="where the JSON goes (evaluate.json beside the checkpoint)")
    p.add_argument("--tasks", required=True, help="what to measure, joined by commas; see above")
    p.add_argument("--stride", type=number(int, 0), default=0,
                   help="ppl: new tokens a window (0: half of it)")
    p.add_argument("--join", default=" ", help="choice: what comes between a query and a choice "
                   "(a space where there is none; for example 'Answer: ')")
    return p.parse_args(argv)


def evaluate(path, tasks, args):
    """Yield, after each task, all results so far for the model at `path`, a dict."""
    e = Evaluator(path, args.device, args.batch, args.stride, args.limit, args.join)
    fitting = [name for name, kinds in TASKS.items() if e.kind in kinds]
    for name, _ in tasks:
        if name not in fitting:
            raise UserError(f"{path}: is a {e.kind} model, and {name} is for "
                            f"{' and '.join(TASKS[name])}: use {', '.join(fitting)}")
    result = dict(checkpoint=path, iter=e.info.get("iter"), params=e.model.num_params(),
                  stride=e.stride, limit=e.limit, results=[])
    for name, file in tasks:
        result["results"].append({"task": name, "file": file, **getattr(e, name)(file)})
        yield result


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    tasks = parse_tasks(args.tasks)
    found, members = family.models(args.checkpoint), []
    for name, path in found:
        for result in evaluate(path, tasks, args):  # save after each task, so that an interruption loses little
            whole = dict(checkpoint=args.checkpoint, members=[*members, dict(name=name, **result)]) if name else result
            saved = save_result(whole, args.save, args.checkpoint)
        members.append(dict(name=name, **result))
    rows = [(m["name"], r["task"], os.path.basename(os.path.normpath(r["file"])), r["n"], k, v) for m in members
            for r in m["results"] for k, v in r.items() if k not in ("task", "file", "n")]
    first = 0 if found[0][0] else 1  # a single model needs no name column
    print(table([row[first:] for row in (("model", "task", "file", "n", "metric", "value"), *rows)]))
    print(f"wrote {saved}")


if __name__ == "__main__":
    main()
