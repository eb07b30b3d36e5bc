"""The files of the GLUE tasks and of SQuAD v1.1, as published, and the tasks' metrics."""
import math
import re
import statistics
import string
from collections import Counter
from typing import NamedTuple

import numpy as np

from base.errors import UserError, library
from base.reading import need, read_json, read_text


class Task(NamedTuple):
    name: str       # as GLUE writes it
    text: tuple     # (column name, its number in a file without a header) of one or two texts
    label: tuple
    classes: tuple  # () = a score to predict
    metrics: tuple
    train: str = "train.tsv"
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
                 ("entailment", "neutral", "contradiction"), ("accuracy",), "train.tsv",
                 ("dev_matched.tsv", "dev_mismatched.tsv")),
    "qnli": Task("QNLI", (("question", 1), ("sentence", 2)), ("label", -1), ENTAILED,
                 ("accuracy",)),
    "rte": Task("RTE", (("sentence1", 1), ("sentence2", 2)), ("label", -1), ENTAILED,
                ("accuracy",)),
    "squad": Task("SQuAD v1.1", (), (), (), (), "train-v1.1.json", ("dev-v1.1.json",)),
}


def metric(name, got, want):
    """A score in points of 100. got, want: numpy arrays (N,) of classes, or of numbers."""
    if name == "accuracy":
        value = (got == want).mean()
    elif name in ("f1", "matthews"):
        m = library("sklearn.metrics", "scikit-learn")
        value = m.matthews_corrcoef(want, got) if name == "matthews" else \
            m.f1_score(want, got, zero_division=0)
    else:  # a constant correlates with nothing
        value = getattr(library("scipy.stats", "scipy"), name + "r")(got, want).statistic \
            if np.ptp(got) and np.ptp(want) else 0.0
    return 100 * float(value)


def normalize(answer):
    """SQuAD's own: lower case, no punctuation, no articles, single spaces."""
    answer = "".join(c for c in answer.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer).split())


def squad_scores(guess, truths):
    """(exact, f1) of a guess, each the best over the true answers, 0 to 1."""
    def f1(a, b):
        a, b = normalize(a).split(), normalize(b).split()
        same = (Counter(a) & Counter(b)).total()
        return 2 * same / (len(a) + len(b)) if same else 0.0
    return (float(max(normalize(guess) == normalize(t) for t in truths)),
            max(f1(guess, t) for t in truths))


def squad_metrics(guess, questions):
    """guess: {question id: text}. Means over the questions, in points of 100."""
    each = [squad_scores(guess[q.id], q.answers) for q in questions]
    return {m: 100 * statistics.mean(v) for m, v in zip(("exact", "f1"), zip(*each))}


# -----------------------------------------------------------------------------

def read_glue(path, task):
    """[(texts, label), ...] of a GLUE .tsv file, with or without a header."""
    text = read_text(path)
    lines = [line.rstrip("\r").split("\t") for line in text.removesuffix("\n").split("\n")]
    columns, first = [*task.text, task.label], lines[0]
    if header := all(name in first for name, _ in task.text):
        if task.label[0] not in first:
            raise UserError(f"{path}: has no column {task.label[0]!r}: a file with labels is "
                            "needed")
    where = [first.index(name) if header else at for name, at in columns]
    rows, short = [], 0
    for i, cells in enumerate(lines[header:], 1 + header):
        if len(cells) <= max(where) or header and len(cells) < len(first):
            short += cells != [""]  # QQP has a few of these
            continue
        *texts, label = (cells[w] for w in where)
        try:
            value = task.classes.index(label) if task.classes else float(label)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            raise UserError(f"{path}:{i}: label {label!r}: must be "
                            f"{' or '.join(task.classes) or 'a number'}")
        rows.append((texts, value))
    if not rows:
        raise UserError(f"{path}: has no rows of {task.name}, whose columns are "
                        f"{', '.join(name for name, _ in columns)}: --task, --train and --dev "
                        "name another task or other files")
    if short:
        print(f"{path}: {short} lines with too few columns left out")
    return rows


class Question(NamedTuple):
    id: str
    text: str
    passage: str
    answers: list  # of texts
    start: int     # of the first answer, in characters of the passage


def read_squad(path):
    """
    The questions of a SQuAD v1.1 file. Where an answer does not stand where the file says, it is
    looked for; questions without it are left out, and both are counted aloud.
    """
    found, moved, lost = [], 0, 0
    for article in read_json(path, data=list)["data"]:
        for p in need(path, article, paragraphs=list)[0]:
            passage, asked = need(path, p, context=str, qas=list)
            for q in asked:
                name, text, answers = need(path, q, id=(str, int), question=str, answers=list)
                said = [need(path, a, text=str, answer_start=int) for a in answers]
                start = locate(passage, *said[0]) if said else None
                if start is None:
                    lost += 1
                    continue
                moved += start != said[0][1]
                found.append(Question(str(name), text, passage, [t for t, _ in said], start))
    if moved:
        print(f"{path}: {moved} answers were not at their answer_start, but found in the passage")
    if lost:
        print(f"{path}: {lost} questions left out: their answer is not in the passage")
    if not found:
        raise UserError(f"{path}: holds no questions with an answer")
    return found


def locate(passage, answer, start):
    """Where the answer is: at `start`, or where it occurs nearest to that; None: nowhere."""
    places = [m.start() for m in re.finditer(f"(?={re.escape(answer)})", passage)]
    return min(places, key=lambda p: abs(p - start), default=None) if answer.strip() else None
