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
import functools
import os
import re
import statistics
import sys
from dataclasses import replace

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from tqdm import tqdm

from base.errors import UserError, exits_cleanly, number
from data.tokenizer import get_tokenizer
from grow import role
from run.hf import kind_of
from run.trained import open_model
from tools.common import batches, pad, parser, save_result, table
from tools.glue import TASKS, metric, read_glue, read_squad, squad_metrics

MAX_ANSWER = 30    # words of an answer, as in BERT
DOC_STRIDE = 0.34  # share of a passage's window until the next one starts (BERT: 128 / 384)


# -----------------------------------------------------------------------------
# from texts to token ids

class Encoder:
    """[CLS] a [SEP] b [SEP] for BERT; a, a separator, b, end of document for GPT."""

    def __init__(self, tok, kind, block_size):
        self.tok, self.bert, self.T = tok, kind == "bert", block_size
        self.encode_word = functools.cache(tok.encode)  # there are few words, again and again
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
        second = [int(b is not None)] * (len(ids) - len(head))
        return dict(ids=ids, segments=[0] * len(head) + second, text_b=len(head))

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
            piece = self.encode_word(m[0])
            ids += piece
            units += [(n, m.start(1), m.end(1))] * len(piece)
        end = q.start + len(q.answers[0])  # read_squad has made sure that it is there
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
    data = dict(idx=pad([r["ids"] for r in rows]), segments=pad([r["segments"] for r in rows]),
                attn_mask=pad([[True] * len(r["ids"]) for r in rows]),
                label=torch.tensor([r["label"] for r in rows]))
    if "spans" in rows[0]:  # where an answer may be
        data["allowed"] = torch.zeros_like(data["attn_mask"])
        for allowed, r in zip(data["allowed"], rows):
            allowed[r["text_b"]:r["text_b"] + len(r["spans"])] = True
            allowed[r["null"]] = True
    return {k: v.to(device) for k, v in data.items()}


# -----------------------------------------------------------------------------
# the model and its training

class Tuned(nn.Module):
    """A pre-trained model under a new linear head: (B, classes), (B, 1), or (B, T, 2) for spans."""

    def __init__(self, model, task, dropout, pool="own"):
        super().__init__()
        self.pool = pool
        # a row is one text, whatever it is put together from
        self.model = type(model)(replace(model.config, dropout=dropout, eot=None))
        self.model.load_state_dict(model.state_dict())
        self.task, self.spans = task, not task.text
        self.head = nn.Linear(model.config.n_embd, 2 if self.spans else len(task.classes) or 1)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, data):
        attn_mask = data["attn_mask"]
        if kind_of(self.model) == "bert":
            x, own = self.model.hidden(data["idx"], data["segments"], attn_mask)
        else:
            x = self.model.hidden(data["idx"])
            own = x[torch.arange(len(x), device=x.device), attn_mask.sum(1) - 1]  # last token
        if self.pool == "mean" and not self.spans:
            x = (x * attn_mask[..., None]).sum(1) / attn_mask.sum(1, keepdim=True)
        elif not self.spans:
            x = own
        y = self.head(self.dropout(x)).float()
        return y.masked_fill(~data["allowed"][..., None], -1e9) if self.spans else y

    def loss(self, data):
        y, label = self(data), data["label"]
        if self.spans or self.task.classes:  # spans: (B, T, 2) against (B, 2), start and end
            return F.cross_entropy(y, label)
        return F.mse_loss(y[:, 0], label.float())


def fit(net, rows, args, seed):
    """AdamW, warmup over a tenth, then linear decay, as BERT was fine-tuned."""
    rng, device = np.random.default_rng(seed), torch.device(args.device)
    matrices, rest = ([p for n, p in net.named_parameters() if (role(n) == "vector") == v]
                      for v in (False, True))
    optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=0.01),
                                   dict(params=rest, weight_decay=0.0)], lr=args.lr)
    lengths = [len(r["ids"]) for r in rows]
    plan = [group for _ in range(args.epochs) for group in batches(lengths, args.batch, rng)]
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
    for group in batches([len(r["ids"]) for r in rows], args.batch):
        with autocast(device):
            y = net(collate([rows[i] for i in group], device)).cpu()
        for i, one in zip(group, y):
            out[i] = one
    return out


def best_answers(rows, outputs, questions):
    """{question id: text}: the likeliest span over all windows of the question's passage."""
    best = {q.id: (-1e30, 0, 0) for q in questions}
    for row, y in zip(rows, outputs):
        spans = row["spans"]
        y = y[:len(row["ids"])].log_softmax(0)[row["text_b"]:][:len(spans)]  # (n, 2)
        unit = torch.tensor([n for n, _, _ in spans])
        possible = (unit - unit[:, None] < MAX_ANSWER).triu()  # (start, end)
        score = torch.where(possible, y[:, :1] + y[:, 1], -1e30)
        s, e = divmod(score.argmax().item(), len(spans))
        best[row["id"]] = max(best[row["id"]], (score[s, e].item(), spans[s][1], spans[e][2]))
    return {q.id: q.passage[best[q.id][1]:best[q.id][2]] for q in questions}


# -----------------------------------------------------------------------------

class Data:
    """A task's file, as rows of token ids; and how good the outputs for them are."""

    def __init__(self, path, task, encoder, limit=0):
        self.task = task
        if task.text:
            self.rows = [dict(encoder.texts(texts), label=label) for texts, label
                         in read_glue(path, task)[:limit or None]]
        else:
            self.questions = read_squad(path)[:limit or None]
            self.rows = [row for q in self.questions for row in encoder.question(q)]

    def scores(self, outputs):
        if not self.task.text:
            return squad_metrics(best_answers(self.rows, outputs, self.questions), self.questions)
        y, want = torch.stack(outputs), np.array([r["label"] for r in self.rows])
        got = y.argmax(-1).numpy() if self.task.classes else y[:, 0].numpy()
        return {m: metric(m, got, want) for m in self.task.metrics}


def run(args):
    """Fine-tune once a seed. Returns the result as it goes into the JSON file."""
    task = TASKS[args.task]
    for m in task.metrics:
        metric(m, np.array([0, 1, 1]), np.array([0, 1, 0]))  # is its library here?
    model, info = open_model(args.checkpoint)
    kind = kind_of(model)
    tok = get_tokenizer(info["meta"], bert=kind == "bert")
    encoder = Encoder(tok, kind, model.config.block_size)
    train_name, dev_names = args.train or task.train, args.dev or task.dev
    data = {n: Data(os.path.join(args.folder, n), task, encoder, args.limit)
            for n in (train_name, *dev_names)}
    seeds = []
    for seed in range(args.seeds):
        torch.manual_seed(seed)
        net = Tuned(model, task, args.dropout, args.pool).to(args.device)
        fit(net, data[train_name].rows, args, seed)
        seeds.append({f"{n} {m}": v for n in dev_names
                      for m, v in data[n].scores(predict(net, data[n].rows, args)).items()})
        print(f"seed {seed}: " + ", ".join(f"{k} {v:.2f}" for k, v in seeds[-1].items()))
    each = {k: [s[k] for s in seeds] for k in seeds[0]}
    return dict(
        checkpoint=args.checkpoint, iter=info.get("iter"), params=model.num_params(),
        task=task.name, train=train_name, rows={n: len(d.rows) for n, d in data.items()},
        settings={k: getattr(args, k)
                  for k in ("epochs", "lr", "batch", "dropout", "limit", "pool")},
        seeds=seeds, mean={k: statistics.mean(v) for k, v in each.items()},
        std={k: statistics.stdev(v) if len(v) > 1 else None for k, v in each.items()})


def parse(argv):
    p = parser(__doc__, 32, "rows of each file", "finetune_TASK.json")
    p.add_argument("folder", type=os.path.expanduser, help="the task's files")
    p.add_argument("--task", help=f"{', '.join(TASKS)}; by default what the folder is called")
    p.add_argument("--train", type=os.path.expanduser, help="the file to train on")
    p.add_argument("--dev", type=lambda text: list(map(os.path.expanduser, text.split(","))),
                   help="the file to score on; several joined by commas")
    p.add_argument("--seeds", type=number(int, 1), default=3, help="so many runs, of seeds 0, 1, ...")
    p.add_argument("--epochs", type=number(int, 1), default=3)
    p.add_argument("--lr", type=number(float, 0), default=5e-5,
                   help="peak learning rate (small models: more)")
    p.add_argument("--dropout", type=number(float, 0), default=0.1)
    p.add_argument("--pool", choices=("own", "mean"), default="own",
                   help="what the head reads: BERT's pooled output, GPT's last token, or the mean")
    args = p.parse_args(argv)
    name = args.task or os.path.basename(os.path.normpath(args.folder))
    args.task = re.sub(r"[^a-z0-9]", "", name.lower())
    if args.task not in TASKS:
        raise UserError(f"--task={name}: must be one of {', '.join(TASKS)}")
    if args.pool != "own" and args.task == "squad":
        raise UserError(f"--pool={args.pool}: SQuAD is read at every token: leave it out")
    if args.dropout >= 1:
        raise UserError(f"--dropout={args.dropout}: must be below 1, which drops everything")
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
