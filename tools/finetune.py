"""
Fine-tune a BERT or GPT checkpoint on GLUE or SQuAD v1.1 and score it, over several seeds.

    python -m tools.finetune out/bert glue/CoLA --seeds=5
    python -m tools.finetune out/bert squad --task=squad --epochs=2

The folder holds the task's own files: train.tsv and dev.tsv, or train-v1.1.json and dev-v1.1.json
(--train and --dev name others). Scores are in points of 100, as on the leaderboards. BERT is read
at its pooled output, GPT at the last token (--pool=mean: either at the mean over all tokens, for a
BERT whose NSP taught its first token nothing), and for SQuAD both at every token of the passage.
A model is a checkpoint, a run's folder or a Hugging Face folder.
"""
import argparse
import collections
import json
import math
import os
import re
import statistics
import string
import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from tqdm import tqdm

from data.tokenizer import get_tokenizer
from grow import role
from run.errors import UserError, exits_cleanly, library
from run.hf import kind_of, open_model
from tools.evaluate import check_device, save_result, table


class Task(NamedTuple):
    name: str       # as GLUE writes it
    text: tuple     # (column name, its number in a file without a header) of one or two texts
    label: tuple
    classes: tuple  # () = a score to predict
    metrics: tuple
    dev: tuple = ("dev.tsv",)


ENTAILED = ("entailment", "not_entailment")
TASKS = {
    "cola": Task("CoLA", (("sentence", 3),), ("label", 1), ("0", "1"), ("matthews",)),
    "sst2": Task("SST-2", (("sentence", 0),), ("label", -1), ("0", "1"), ("accuracy",)),
    "mrpc": Task("MRPC", (("#1 String", 3), ("#2 String", 4)), ("Quality", 0), ("0", "1"),
                 ("accuracy", "f1")),
    "stsb": Task("STS-B", (("sentence1", 7), ("sentence2", 8)), ("score", -1), (),
                 ("pearson", "spearman")),
    "qqp": Task("QQP", (("question1", 3), ("question2", 4)), ("is_duplicate", 5), ("0", "1"),
                ("accuracy", "f1")),
    "mnli": Task("MNLI", (("sentence1", 8), ("sentence2", 9)), ("gold_label", -1),
                 ("entailment", "neutral", "contradiction"), ("accuracy",),
                 ("dev_matched.tsv", "dev_mismatched.tsv")),
    "qnli": Task("QNLI", (("question", 1), ("sentence", 2)), ("label", -1), ENTAILED, ("accuracy",)),
    "rte": Task("RTE", (("sentence1", 1), ("sentence2", 2)), ("label", -1), ENTAILED, ("accuracy",)),
    "squad": Task("SQuAD v1.1", (), (), (), ("exact", "f1"), ("dev-v1.1.json",)),
}
MAX_ANSWER = 30    # words of an answer, as in BERT
DOC_STRIDE = 0.34  # share of a passage's window by which the next one starts later (BERT: 128 / 384)


# -----------------------------------------------------------------------------
# metrics

def metric(name, got, want):
    """A score in points of 100. got, want: numpy arrays (N,) of classes, or of numbers."""
    if name == "accuracy":
        value = (got == want).mean()
    elif name == "f1":
        value = library("sklearn.metrics", "scikit-learn").f1_score(want, got, zero_division=0)
    elif name == "matthews":
        value = library("sklearn.metrics", "scikit-learn").matthews_corrcoef(want, got)
    else:
        stats = library("scipy.stats", "scipy")
        value = dict(pearson=stats.pearsonr, spearman=stats.spearmanr)[name](got, want).statistic \
            if np.ptp(got) and np.ptp(want) else 0.0  # a constant correlates with nothing
    return 100 * float(value)


def normalize(answer):
    """SQuAD's own: lower case, no punctuation, no articles, single spaces."""
    answer = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def squad_scores(guess, truths):
    """(exact, f1) of a guess, each the best over the true answers, 0 to 1."""
    def f1(a, b):
        a, b = normalize(a).split(), normalize(b).split()
        same = sum((collections.Counter(a) & collections.Counter(b)).values())
        return 2 * same / (len(a) + len(b)) if same else 0.0
    return (float(max(normalize(guess) == normalize(t) for t in truths)),
            max(f1(guess, t) for t in truths))


# -----------------------------------------------------------------------------
# files

def read_glue(path, task):
    """[(texts, label), ...] of a GLUE .tsv file, with or without a header."""
    try:
        with open(path, encoding="utf-8-sig", newline="\n") as f:
            lines = [line.rstrip("\r\n").split("\t") for line in f]
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: {getattr(e, 'strerror', None) or 'not UTF-8 text'}: "
                        "--train and --dev name other files") from None
    columns, first = [*task.text, task.label], lines[0] if lines else []
    if header := all(name in first for name, _ in task.text):
        if task.label[0] not in first:
            raise UserError(f"{path}: has no column {task.label[0]!r}: a file with labels is needed")
    where = [first.index(name) if header else at for name, at in columns]
    rows, short = [], 0
    for i, cells in enumerate(lines[header:], 1 + header):
        if len(cells) <= max(where) or header and len(cells) < len(first):
            short += cells != [""]  # QQP has a few of these
            continue
        *texts, label = (cells[w] for w in where)
        try:
            rows.append((texts, task.classes.index(label) if task.classes else finite(label)))
        except ValueError:
            raise UserError(f"{path}:{i}: label {label!r}: must be "
                            f"{' or '.join(task.classes) or 'a number'}") from None
    if not rows:
        raise UserError(f"{path}: has no rows of {task.name}, whose columns are "
                        f"{', '.join(name for name, _ in columns)}: --task, --train and --dev "
                        "name another task or other files")
    if short:
        print(f"{path}: {short} lines with too few columns left out")
    return rows


def finite(text):
    if not math.isfinite(value := float(text)):
        raise ValueError(text)
    return value


class Question(NamedTuple):
    id: str
    text: str
    passage: str
    answers: list  # of texts
    start: int     # of the first answer, in characters of the passage


def read_squad(path):
    try:
        with open(path, encoding="utf-8") as f:
            found = [Question(q["id"], q["question"], p["context"],
                              [a["text"] for a in q["answers"]], q["answers"][0]["answer_start"])
                     for article in json.load(f)["data"] for p in article["paragraphs"]
                     for q in p["qas"]]
    except OSError as e:
        raise UserError(f"{path}: {e.strerror}: --train and --dev name other files") from None
    except (ValueError, LookupError, TypeError) as e:
        raise UserError(f"{path}: not SQuAD v1.1's JSON ({type(e).__name__}: {e})") from None
    if not found:
        raise UserError(f"{path}: holds no questions")
    return found


# -----------------------------------------------------------------------------
# from texts to token ids

class Encoder:
    """[CLS] a [SEP] b [SEP] for BERT; a, a separator, b, end of document for GPT."""

    def __init__(self, tok, kind, block_size):
        self.tok, self.bert, self.T = tok, kind == "bert", block_size
        self.words = {}
        if self.bert:
            cls, sep = ([tok.special[s]] for s in ("cls", "sep"))
            self.first, self.between, self.last = cls, sep, sep
        else:
            self.between = [tok.sep] if tok.sep is not None else tok.encode("\n")
            self.first, self.last = [], self.between if tok.eot is None else [tok.eot]
        if self.room(True) < 2:
            raise UserError(f"block_size={block_size}: leaves no room for two texts: fine-tune a "
                            "model of longer sequences")

    def room(self, pair):
        """How many tokens of text fit."""
        return self.T - len(self.first) - len(self.last) - (len(self.between) if pair else 0)

    def wrap(self, a, b=None):
        """Everything about a row but its label. a, b: ids that fit."""
        head = self.first + a + ([] if b is None else self.between)
        ids = head + (b or []) + self.last
        return dict(ids=ids, segments=[0] * len(head) + [b is not None] * (len(ids) - len(head)),
                    text_b=len(head))

    def texts(self, texts):
        ids, room = [self.tok.encode(t) for t in texts], self.room(len(texts) == 2)
        while sum(map(len, ids)) > room:
            max(ids, key=len).pop()  # the longer one loses its end
        return self.wrap(*ids)

    def question(self, q):
        """
        The rows of a question, one for each window of its passage. Words and punctuation marks are
        the units; `spans` gives each token of the window its unit's place in the passage. The
        answer's first and last token are the targets, or `null` in windows that lack it.
        """
        asked = self.tok.encode(q.text)[:self.T // 3]
        ids, units = [], []
        for n, m in enumerate(re.finditer(r"\s*(\w+|[^\w\s])", q.passage)):
            piece = self.words.get(m[0])
            if piece is None:
                piece = self.words[m[0]] = self.tok.encode(m[0])
            ids += piece
            units += [(n, m.start(1), m.end(1))] * len(piece)
        end = q.start + len(q.answers[0])
        inside = [i for i, (_, a, b) in enumerate(units) if a < end and b > q.start]
        size, rows = self.room(True) - len(asked), []
        step = max(1, int(DOC_STRIDE * size))
        for low in range(0, max(1, len(ids) - size + step), step):
            row = self.wrap(asked, ids[low:low + size])
            row.update(spans=units[low:low + size], id=q.id,
                       null=0 if self.bert else len(row["ids"]) - 1)
            here = inside and low <= inside[0] and inside[-1] < low + size
            row["label"] = [i - low + row["text_b"] for i in (inside[0], inside[-1])] if here \
                else [row["null"]] * 2
            rows.append(row)
        return rows


def collate(rows, device):
    """A list of rows as padded tensors (B, T)."""
    T = max(len(r["ids"]) for r in rows)
    idx, segments = torch.zeros(len(rows), T, dtype=torch.long), \
        torch.zeros(len(rows), T, dtype=torch.long)
    keep, allowed = torch.zeros(2, len(rows), T, dtype=torch.bool)
    for i, r in enumerate(rows):
        n = len(r["ids"])
        idx[i, :n], segments[i, :n] = torch.tensor(r["ids"]), torch.tensor(r["segments"])
        keep[i, :n] = True
        if "spans" in r:  # where an answer may be
            allowed[i, r["text_b"]:r["text_b"] + len(r["spans"])] = True
            allowed[i, r["null"]] = True
    data = dict(idx=idx, segments=segments, keep=keep, allowed=allowed,
                label=torch.tensor([r["label"] for r in rows]))
    return {k: v.to(device) for k, v in data.items()}


# -----------------------------------------------------------------------------
# the model and its training

class Tuned(nn.Module):
    """A pre-trained model under a new linear head: (B, classes), (B, 1), or (B, T, 2) for spans."""

    def __init__(self, model, task, dropout, pool="own"):
        super().__init__()
        self.pool = pool
        self.model = type(model)(replace(model.config, dropout=dropout))
        self.model.load_state_dict(model.state_dict())
        self.task, self.spans = task, not task.text
        self.head = nn.Linear(model.config.n_embd, 2 if self.spans else len(task.classes) or 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, data):
        keep = data["keep"]
        if kind_of(self.model) == "bert":
            x, own = self.model.hidden(data["idx"], data["segments"], keep)
        else:
            x = self.model.hidden(data["idx"])
            own = x[torch.arange(len(x), device=x.device), keep.sum(1) - 1]  # last token
        if self.pool == "mean" and not self.spans:
            x = (x * keep[..., None]).sum(1) / keep.sum(1, keepdim=True)
        elif not self.spans:
            x = own
        y = self.head(self.dropout(x)).float()
        return y.masked_fill(~data["allowed"][..., None], -1e9) if self.spans else y

    def loss(self, data):
        y, label = self(data), data["label"]
        if self.spans:
            return F.cross_entropy(y, label)  # (B, T, 2) against (B, 2): start and end
        return F.cross_entropy(y, label) if self.task.classes else F.mse_loss(y[:, 0], label.float())


def batches(rows, size, rng=None):
    """Indices of `rows` in batches of alike lengths: in order of length, or shuffled by rng."""
    def length(i):
        return len(rows[i]["ids"])
    order = list(range(len(rows))) if rng is None else rng.permutation(len(rows)).tolist()
    chunk = len(rows) if rng is None else 50 * size
    order = [i for c in range(0, len(order), chunk) for i in sorted(order[c:c + chunk], key=length)]
    groups = [order[i:i + size] for i in range(0, len(order), size)]
    return groups if rng is None else [groups[i] for i in rng.permutation(len(groups))]


def fit(net, rows, args, seed):
    """AdamW, warmup over a tenth, then linear decay, as BERT was fine-tuned."""
    rng, device = np.random.default_rng(seed), torch.device(args.device)
    matrices, rest = ([p for n, p in net.named_parameters() if (role(n) == "vector") == v]
                      for v in (False, True))
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.01),
                                   dict(params=rest, weight_decay=0.0)], lr=args.lr)
    plan = [group for _ in range(args.epochs) for group in batches(rows, args.batch, rng)]
    warmup = max(1, len(plan) // 10)
    net.train()
    for step, group in enumerate(tqdm(plan, desc=f"seed {seed}", leave=False)):
        scale = min((step + 1) / warmup, (len(plan) - step) / max(1, len(plan) - warmup))
        for g in optimizer.param_groups:
            g["lr"] = args.lr * scale
        with autocast(device):
            loss = net.loss(collate([rows[i] for i in group], device))
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 100 == 0 or step == len(plan) - 1:  # now and then, for it waits for the device
            if not torch.isfinite(loss):
                raise UserError(f"the loss became infinite or NaN: lower --lr={args.lr}")


def autocast(device):
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda" and
                          torch.cuda.is_bf16_supported(including_emulation=False))


@torch.no_grad()
def predict(net, rows, args):
    """The head's outputs for every row, in order, on the CPU."""
    net.eval()
    out, device = [None] * len(rows), torch.device(args.device)
    for group in batches(rows, args.batch):
        with autocast(device):
            y = net(collate([rows[i] for i in group], device)).cpu()
        for i, one in zip(group, y):
            out[i] = one
    return out


def best_answers(rows, outputs, questions):
    """{question id: text}: the likeliest span over all windows of the question's passage."""
    passage, best = {q.id: q.passage for q in questions}, {}
    for row, y in zip(rows, outputs):
        y = y[:len(row["ids"])].log_softmax(0)[row["text_b"]:][:len(row["spans"])]  # (n, 2)
        starts, ends = (y[:, j].topk(min(20, len(y))).indices.tolist() for j in (0, 1))
        for s in starts:
            for e in ends:
                if s <= e and row["spans"][e][0] - row["spans"][s][0] < MAX_ANSWER:
                    score = (y[s, 0] + y[e, 1]).item()
                    if score > best.get(row["id"], (-1e30,))[0]:
                        best[row["id"]] = score, row["spans"][s][1], row["spans"][e][2]
    return {q: passage[q][best[q][1]:best[q][2]] if q in best else "" for q in passage}


# -----------------------------------------------------------------------------

class GlueData:
    def __init__(self, path, task, encoder, limit=0):
        self.task, rows = task, read_glue(path, task)[:limit or None]
        self.rows = [dict(encoder.texts(texts), label=label) for texts, label in rows]

    def scores(self, outputs):
        y = torch.stack(outputs)
        got = y.argmax(-1).numpy() if self.task.classes else y[:, 0].numpy()
        want = np.array([r["label"] for r in self.rows])
        return {m: metric(m, got, want) for m in self.task.metrics}


class SquadData:
    def __init__(self, path, task, encoder, limit=0):
        self.questions = read_squad(path)[:limit or None]
        self.rows = [row for q in self.questions for row in encoder.question(q)]

    def scores(self, outputs):
        guess = best_answers(self.rows, outputs, self.questions)
        each = [squad_scores(guess[q.id], q.answers) for q in self.questions]
        return {m: 100 * statistics.mean(v) for m, v in zip(("exact", "f1"), zip(*each))}


def run(args):
    """Fine-tune once a seed. Returns the result as it goes into the JSON file."""
    task = TASKS[args.task]
    for m in () if args.task == "squad" else task.metrics:
        metric(m, np.array([0, 1, 1]), np.array([0, 1, 0]))  # is its library here?
    model, info = open_model(args.checkpoint)
    encoder = Encoder(get_tokenizer(info["meta"], bert=kind_of(model) == "bert"), kind_of(model),
                      model.config.block_size)
    data = SquadData if args.task == "squad" else GlueData
    train_name = args.train or ("train-v1.1.json" if args.task == "squad" else "train.tsv")
    dev_names = args.dev.split(",") if args.dev else task.dev
    train = data(os.path.join(args.folder, train_name), task, encoder, args.limit)
    devs = {n: data(os.path.join(args.folder, n), task, encoder, args.limit) for n in dev_names}
    scores = []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        net = Tuned(model, task, args.dropout, args.pool).to(args.device)
        fit(net, train.rows, args, seed)
        scores.append({f"{n} {m}": v for n, d in devs.items()
                       for m, v in d.scores(predict(net, d.rows, args)).items()})
        print(f"seed {seed}: " + ", ".join(f"{k} {v:.2f}" for k, v in scores[-1].items()))
    names = list(scores[0])
    return dict(
        checkpoint=args.checkpoint, iter=info.get("iter"), params=model.num_params(),
        task=task.name, train=train_name, rows={n: len(d.rows) for n, d in {train_name: train,
                                                                            **devs}.items()},
        settings={k: getattr(args, k)
                  for k in ("epochs", "lr", "batch", "dropout", "limit", "pool")},
        seeds=[{k: s[k] for k in names} for s in scores],
        mean={k: statistics.mean(s[k] for s in scores) for k in names},
        std={k: statistics.stdev(s[k] for s in scores) if len(scores) > 1 else None for k in names})


def parse(argv):
    p = argparse.ArgumentParser(description=__doc__,
                                formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("checkpoint", help="a checkpoint file, a run's folder or a Hugging Face folder")
    p.add_argument("folder", help="the task's files")
    p.add_argument("--task", help=f"{', '.join(TASKS)}; by default what the folder is called")
    p.add_argument("--train", help="the file to train on")
    p.add_argument("--dev", help="the file to score on; several joined by commas")
    p.add_argument("--seeds", type=int, default=3, help="how many runs, with seeds 0, 1, ...")
    p.add_argument("--epochs", type=int, default=3)
    p.add_argument("--lr", type=float, default=5e-5, help="peak learning rate (small models: more)")
    p.add_argument("--batch", type=int, default=32)
    p.add_argument("--dropout", type=float, default=0.1)
    p.add_argument("--pool", choices=("own", "mean"), default="own",
                   help="what the head reads: BERT's pooled output or GPT's last token, or the mean")
    p.add_argument("--limit", type=int, default=0, help="only the first N rows of each file")
    p.add_argument("--save", help="where the JSON goes (finetune_TASK.json beside the checkpoint)")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = p.parse_args(argv)
    name = args.task or os.path.basename(os.path.normpath(args.folder))
    args.task = re.sub(r"[^a-z0-9]", "", name.lower())
    if args.task not in TASKS:
        raise UserError(f"--task={name}: must be one of {', '.join(TASKS)}")
    for key, low in dict(seeds=1, epochs=1, batch=1, limit=0, lr=0, dropout=0).items():
        if not low <= getattr(args, key) < float("inf"):  # NaN is neither
            raise UserError(f"--{key}={getattr(args, key)}: must be at least {low}, and finite")
    if args.pool != "own" and args.task == "squad":
        raise UserError(f"--pool={args.pool}: SQuAD is read at every token: leave it out")
    if args.dropout >= 1:
        raise UserError(f"--dropout={args.dropout}: must be below 1, which drops everything")
    check_device(args.device)
    return args


@exits_cleanly
def main():
    args = parse(sys.argv[1:])
    result = run(args)
    print(table([("task", "file and metric", "mean", "std", "seeds")] + [
        (result["task"], k, f"{v:.2f}", "" if args.seeds == 1 else f"{result['std'][k]:.2f}",
         args.seeds) for k, v in result["mean"].items()]))
    saved = save_result(result, args.save, args.checkpoint, f"finetune_{args.task}.json")
    print(f"wrote {saved}")


if __name__ == "__main__":
    main()
