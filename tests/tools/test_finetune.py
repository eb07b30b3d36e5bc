"""finetune.py: metrics against values worked by hand, files as published, and that it learns."""
import json
import statistics
import sys

import numpy as np
import pytest
import torch
from test_evaluate import CHAR, META, main_in_process, save
from test_grow import make

from base.errors import UserError
from data.tokenizer import get_tokenizer
from tools import finetune
from tools.common import batches
from tools.finetune import Encoder, Tuned, best_answers, collate, parse, predict
from tools.glue import TASKS, locate, metric, normalize, read_glue, read_squad, squad_scores

KINDS = pytest.mark.parametrize("kind", ["gpt", "bert"])


# -----------------------------------------------------------------------------
# metrics, in points of 100

WANT = np.array([1, 1, 1, 1, 0, 0, 0, 0, 0, 0])
GOT = np.array([1, 1, 1, 0, 1, 1, 0, 0, 0, 0])  # positives: 3 true, 2 false; negatives: 4, 1


def test_accuracy():
    assert metric("accuracy", GOT, WANT) == pytest.approx(70)
    assert metric("accuracy", np.array([0, 1, 2]), np.array([0, 2, 2])) == pytest.approx(200 / 3)


def test_f1():
    """2 * 3 / (2 * 3 + 2 + 1), of the class 1."""
    pytest.importorskip("sklearn")
    assert metric("f1", GOT, WANT) == pytest.approx(200 / 3)
    assert metric("f1", 1 - GOT, 1 - WANT) == pytest.approx(800 / 11)
    assert metric("f1", 0 * GOT, WANT) == 0


def test_matthews():
    """(3 * 4 - 2 * 1) / sqrt(5 * 4 * 6 * 5)"""
    pytest.importorskip("sklearn")
    assert metric("matthews", GOT, WANT) == pytest.approx(1000 / 600 ** 0.5)
    assert metric("matthews", 1 - WANT, WANT) == pytest.approx(-100)
    assert metric("matthews", WANT, WANT) == pytest.approx(100)
    assert metric("matthews", 0 * GOT, WANT) == 0  # always the same answer


def test_pearson():
    """Products of deviations: 5.5; squares: 5 and 8.75."""
    pytest.importorskip("scipy")
    x, y = np.array([1.0, 2, 3, 4]), np.array([1.0, 3, 2, 5])
    assert metric("pearson", x, y) == pytest.approx(550 / (5 * 8.75) ** 0.5)
    assert metric("pearson", 7 - 2 * x, x) == pytest.approx(-100)


def test_spearman():
    """By ranks: 1 - 6 * (1 + 1) / (4 * 15); ties share the mean rank: 4.5 / sqrt(4.5 * 5)."""
    pytest.importorskip("scipy")
    assert metric("spearman", np.array([1.0, 2, 3, 4]), np.array([1.0, 30, 2, 500])) == \
        pytest.approx(80)
    assert metric("spearman", np.array([1.0, 2, 2, 3]), np.array([1.0, 2, 3, 4])) == \
        pytest.approx(450 / 22.5 ** 0.5)


@pytest.mark.parametrize("name", ["pearson", "spearman"])
@pytest.mark.parametrize("got, want", [([2.0, 2, 2], [1.0, 2, 3]), ([1.0, 2, 3], [2.0, 2, 2]),
                                       ([1.0], [2.0])])
def test_constants_correlate_with_nothing(name, got, want):
    pytest.importorskip("scipy")
    assert metric(name, np.array(got), np.array(want)) == 0


@pytest.mark.parametrize("text, plain", [
    ("The  U.S.A.,", "usa"), ("A man, an apple & the 'theatre'", "man apple theatre"),
    ("co-op", "coop"), ("(the) another\tanthem", "another anthem"), ("$5.50", "550"), ("a the", ""),
    ("The\u00a0End", "end"), ("\u201cquoted\u201d", "\u201cquoted\u201d"), ("", "")])
def test_squad_normalisation(text, plain):
    """As in the official script: case, ASCII punctuation, articles as whole words, white space."""
    assert normalize(text) == plain


@pytest.mark.parametrize("guess, truths, exact, f1", [
    ("the Norman king.", ["Norman King"], 1, 1),
    ("the big cat sat", ["a cat", "the cat sat down"], 0, 2 / 3),  # 2*1/(3+1), 2*2/(3+3)
    ("x x y", ["x y y"], 0, 2 / 3),  # a word counts as often as it occurs
    ("red", ["blue", "Red!", "the red one"], 1, 1),  # the best of several
    ("dog", ["cat"], 0, 0), ("", ["cat"], 0, 0), ("the", ["cat"], 0, 0)])
def test_squad_scores(guess, truths, exact, f1):
    assert squad_scores(guess, truths) == (exact, pytest.approx(f1))


def test_missing_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    with pytest.raises(UserError, match="needs the scikit-learn library: pip install scikit-learn"):
        metric("matthews", GOT, WANT)


# -----------------------------------------------------------------------------
# files: name, content, what is read

FILES = [
    ("cola", "gj04\t1\t\tThe sailors rode.\ngj04\t0\t*\tHe \"quoted rode.\n",
     [(["The sailors rode."], 1), (['He "quoted rode.'], 0)]),
    ("sst2", "sentence\tlabel\na fine film . \t1\r\nunflinching \t0\n",
     [(["a fine film . "], 1), (["unflinching "], 0)]),
    ("rte", "index\tsentence1\tsentence2\tlabel\n"
     "0\tOne.\tTwo.\tnot_entailment\n1\tA\tB\tentailment\n",
     [(["One.", "Two."], 1), (["A", "B"], 0)]),
    ("rte", "2\tOne.\tTwo.\tnot_entailment\n7\tA\tB\tentailment\n",  # without a header
     [(["One.", "Two."], 1), (["A", "B"], 0)]),
    ("mrpc", "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\n1\t70\t71\tHe said\tHe \"said\n",
     [(["He said", 'He "said'], 1)]),
    ("qqp", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n"
     "1\t2\t3\tWhy?\tHow?\t0\n5\tcut\n\n",
     [(["Why?", "How?"], 0)]),
    ("qnli", "index\tquestion\tsentence\tlabel\n0\tWho?\tHe.\tentailment\n",
     [(["Who?", "He."], 0)]),
    ("stsb", "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\t"
     "sentence2\tscore\n0\tmain\tM\t2012\t1\tn\tn\tA plane.\tA jet.\t4.250\n", [(["A plane.", "A jet."], 4.25)]),
    ("mnli", "index\tpromptID\tpairID\tgenre\ts1b\ts2b\ts1p\ts2p\tsentence1\tsentence2\tlabel1\t"
     "gold_label\n0\t1\t2\tg\tb\tb\tp\tp\tOne\tTwo\tneutral\tcontradiction\n",
     [(["One", "Two"], 2)]),
]


@pytest.mark.parametrize("task, content, rows", FILES)
def test_glue_files(task, content, rows, tmp_path):
    (tmp_path / "train.tsv").write_bytes(content.encode())
    assert read_glue(str(tmp_path / "train.tsv"), TASKS[task]) == rows


def test_lines_left_out_are_counted(tmp_path, capsys):
    (tmp_path / "train.tsv").write_text(FILES[5][1])
    read_glue(str(tmp_path / "train.tsv"), TASKS["qqp"])
    assert "train.tsv: 1 lines with too few columns left out" in capsys.readouterr().out


@pytest.mark.parametrize("task, content, said", [
    ("rte", b"index\tsentence1\tsentence2\n0\ta\tb\n", "has no column 'label': a file with labels"),
    ("rte", b"index\tsentence1\tsentence2\tlabel\n0\ta\tb\tyes\n",
     "t.tsv:2: label 'yes': must be entailment or not_entailment"),
    ("cola", b"a sentence\n", "has no rows of CoLA, whose columns are sentence, label"),
    ("cola", b"", "has no rows of CoLA"), ("sst2", b"sentence\tlabel\n", "has no rows of SST-2"),
    ("stsb", b"\t" * 9 + b"high\n", "t.tsv:1: label 'high': must be a number"),
    ("stsb", b"\t" * 9 + b"nan\n", "t.tsv:1: label 'nan': must be a number"),
    ("sst2", b"\xff\xfe", "is UTF-16 text"), ("sst2", None, "No such file")])
def test_bad_glue_files(task, content, said, tmp_path):
    if content is not None:
        (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_glue(str(tmp_path / "t.tsv"), TASKS[task])


PASSAGE = "The cat, a tabby, sat on the old mat. Then it ran (very fast) to the old barn."


def squad(path, *questions, passage=PASSAGE):
    """A file in SQuAD's format; questions: (text, answers)."""
    path.write_text(json.dumps(dict(version="1.1", data=[dict(title="x", paragraphs=[dict(
        context=passage, qas=[dict(id=f"q{i}", question=q, answers=[
            dict(text=a, answer_start=passage.index(a)) for a in answers])
            for i, (q, answers) in enumerate(questions)])])])))
    return str(path)


def test_squad_file(tmp_path):
    [q] = read_squad(squad(tmp_path / "s.json", ("Where?", ["the old mat", "mat"])))
    assert q == ("q0", "Where?", PASSAGE, ["the old mat", "mat"], PASSAGE.index("the old mat"))


@pytest.mark.parametrize("content, said", [
    ("{}", "s.json: lacks data"), ("[1]", "s.json: is no JSON object"), ("{", "s.json: not JSON"),
    ('{"data": [{"paragraphs": [{"qas": []}]}]}', "s.json: lacks context"),
    ('{"data": [{"paragraphs": [{"context": "a", "qas": [{"id": "1", "question": "?", "answers": '
     '[{"text": "a", "answer_start": "0"}]}]}]}]}', "lacks answer_start, or it is no int"),
    (None, "No such file"), ('{"data": []}', "holds no questions")])
def test_bad_squad_files(content, said, tmp_path):
    if content is not None:
        (tmp_path / "s.json").write_text(content)
    with pytest.raises(UserError, match=said):
        read_squad(str(tmp_path / "s.json"))


@pytest.mark.parametrize("answer, start, found", [
    ("the old mat", 25, 25), ("the old mat", 24, 25), ("the old mat", 5, 25), ("the old mat", 9999, 25),
    ("the old mat", -1, 25), ("old", 30, 29), ("old", 60, 69), ("old", 48, 29), ("old", 9999, 69),
    ("a dog", 4, None), ("", 0, None), (" ", 3, None), ("(very fast)", 0, 50)])
def test_where_an_answer_is(answer, start, found):
    """Where its file says; else where it occurs nearest to that; else nowhere."""
    assert locate(PASSAGE, answer, start) == found


def test_answers_that_are_elsewhere_are_counted(tmp_path, capsys):
    path = squad(tmp_path / "s.json", *[(f"{i}?", [a]) for i, a in
                                        enumerate(("cat", "the old mat", "old", "very fast"))])
    content = json.loads((tmp_path / "s.json").read_text())
    asked = content["data"][0]["paragraphs"][0]["qas"]
    asked[1]["answers"][0]["answer_start"] = 100000
    asked[2]["answers"][0]["text"] = "a dog"
    asked.append(dict(id="none", question="?", answers=[]))
    (tmp_path / "s.json").write_text(json.dumps(content))
    assert [(q.id, q.start) for q in read_squad(path)] == [("q0", 4), ("q1", 25), ("q3", 51)]
    out = capsys.readouterr().out
    assert "s.json: 1 answers were not at their answer_start" in out
    assert "s.json: 2 questions left out: their answer is not in the passage" in out


# -----------------------------------------------------------------------------
# rows

def encoder(kind, T, meta=META):
    return Encoder(get_tokenizer(meta, bert=kind == "bert"), kind, T)


def test_rows_of_texts():
    a, b = list(b"one"), list(b"three")
    cls, sep = (get_tokenizer(META, bert=True).special[s] for s in ("cls", "sep"))
    bert, gpt = encoder("bert", 32), encoder("gpt", 32)
    assert bert.texts(["one"]) == dict(ids=[cls, *a, sep], segments=[0] * 5, text_b=4)
    assert bert.texts(["one", "three"]) == dict(
        ids=[cls, *a, sep, *b, sep], segments=[0] * 5 + [1] * 6, text_b=5)
    assert gpt.texts(["one"])["ids"] == [*a, 0]
    assert gpt.texts(["one", "three"])["ids"] == [*a, 10, *b, 0]
    assert encoder("gpt", 32, CHAR).texts(["ab"])["ids"][-1] == 0  # no end of document: a newline


@KINDS
def test_long_texts_are_cut(kind):
    """The longer of the two loses its end, down to what fits."""
    for texts in (["x" * 50, "yz"], ["yz", "x" * 50]):
        row = encoder(kind, 12).texts(texts)
        assert len(row["ids"]) == 12
        assert row["ids"].count(ord("y")) == row["ids"].count(ord("z")) == 1
    assert len(encoder(kind, 12).texts(["x" * 50])["ids"]) == 12
    with pytest.raises(UserError, match="block_size=3: leaves no room"):
        encoder(kind, 3)


@KINDS
@pytest.mark.parametrize("T", [256, 40, 24])
def test_windows_of_a_passage(kind, T, tmp_path):
    """Together they cover the passage; the targets, where there are any, spell the answer."""
    asked = [("Where did it sit?", ["the old mat"]), ("How?", ["very fast"]), ("Who?", ["cat"])]
    for q in read_squad(squad(tmp_path / "s.json", *asked)):
        rows = encoder(kind, T).question(q)
        seen, told = set(), 0
        for row in rows:
            assert len(row["ids"]) <= T and row["null"] in (0, len(row["ids"]) - 1)
            seen.update(row["spans"])
            start, end = row["label"]
            if start != row["null"]:
                told += 1
                a, b = row["spans"][start - row["text_b"]], row["spans"][end - row["text_b"]]
                assert q.passage[a[1]:b[2]] == q.answers[0]
                assert bytes(row["ids"][start:end + 1]).decode().strip() == q.answers[0]
        words = {m for _, m, n in seen for m in range(m, n)}
        assert words == {i for i, c in enumerate(PASSAGE) if not c.isspace()}
        assert told >= 1


@KINDS
def test_best_answers(kind, tmp_path):
    """A head that is sure of the targets gives the answer back; an unsure window gives way."""
    questions = read_squad(squad(tmp_path / "s.json", ("Where?", ["the old mat"]),
                                 ("How fast?", ["very fast"])))
    rows = [r for q in questions for r in encoder(kind, 40).question(q)]
    outputs = []
    for row in rows:
        y = torch.full((len(row["ids"]) + 3, 2), -5.0)  # 3 of padding
        y[-3:] = 99.0  # what is said there is not heard
        y[row["label"], [0, 1]] = 5.0
        outputs.append(y)
    assert best_answers(rows, outputs, questions) == {"q0": "the old mat", "q1": "very fast"}


def test_answers_start_before_they_end(tmp_path):
    questions = read_squad(squad(tmp_path / "s.json", ("?", ["mat"])))
    [row] = encoder("bert", 256).question(questions[0])
    y = torch.zeros(len(row["ids"]), 2)
    first, last = row["text_b"], row["text_b"] + len(row["spans"]) - 1
    y[first, 0], y[last, 1] = 1.0, 1.0
    y[last, 0], y[first, 1] = 3.0, 3.0  # likeliest start at the end, likeliest end at the start
    [answer] = best_answers([row], [y], questions).values()
    assert answer in ("The", ".")


def test_batches():
    rows = np.random.default_rng(0).integers(1, 50, 333).tolist()
    for rng in (None, np.random.default_rng(1)):
        groups = batches(rows, 32, rng)
        assert sorted(i for g in groups for i in g) == list(range(333))
        assert max(map(len, groups)) == 32 and len(groups) == 11
    assert batches(rows, 32, np.random.default_rng(1)) == groups
    assert batches(rows, 32, np.random.default_rng(2)) != groups


@KINDS
@pytest.mark.parametrize("task, pool", [("sst2", "own"), ("sst2", "mean"), ("rte", "own"),
                                        ("rte", "mean"), ("squad", "own")])
def test_padding_and_company_change_nothing(kind, task, pool, tmp_path):
    model = make(kind, torch.float32, block_size=48, vocab_size=320)
    net = Tuned(model, TASKS[task], 0.1, pool).eval()
    e = encoder(kind, 48)
    if task == "squad":
        rows = [r for q in read_squad(squad(tmp_path / "s.json", ("Who?", ["cat"]), (
            "Where did it sit, then?", ["mat"]))) for r in e.question(q)]
    else:
        pair = task == "rte"
        rows = [dict(e.texts(["x" * n, "abc"][:1 + pair]), label=0) for n in (30, 1, 7, 40, 12)]
    args = parse(["x", task, "--batch=4", "--device=cpu"])
    together = predict(net, rows, args)
    for row, y in zip(rows, together):
        with torch.no_grad():
            alone = net(collate([row], "cpu"))[0]
        assert torch.allclose(alone, y[:len(alone)], rtol=1e-4, atol=1e-5)


# -----------------------------------------------------------------------------
# it learns

def trivial(folder, n=160):
    """A pretend SST-2: is there a z in the sentence? And its dev set."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for name, rows in (("train.tsv", n), ("dev.tsv", 60)):
        lines = ["sentence\tlabel"]
        for _ in range(rows):
            label, text = rng.integers(2), rng.choice(list("abcde "), rng.integers(4, 12))
            text[rng.integers(len(text))] = "z" if label else "a"
            lines.append(f"{''.join(text)}\t{label}")
        (folder / name).write_text("\n".join(lines) + "\n")
    return str(folder)


@KINDS
def test_the_mean_of_all_tokens(kind):
    """pool="mean" is the head on the plain mean of what the model says of each token."""
    model = make(kind, torch.float32, block_size=48, vocab_size=320)
    net = Tuned(model, TASKS["sst2"], 0.0, "mean").eval()
    row = encoder(kind, 48).texts(["abcde"])
    data = collate([dict(row, label=0)], "cpu")
    with torch.no_grad():
        x = model.hidden(data["idx"]) if kind == "gpt" else model.hidden(data["idx"])[0]
        assert torch.allclose(net(data), net.head(x.mean(1)), atol=1e-6)


@KINDS
def test_learns(kind, tmp_path, monkeypatch, capsys):
    path = save(kind, tmp_path / "m", n_embd=32, n_head=2, n_inner=64, head_dim=16)
    folder = trivial(tmp_path / "SST-2")
    monkeypatch.setattr(sys, "argv", ["finetune.py", path, folder, "--seeds=2", "--epochs=5",
                                      "--lr=3e-3", "--batch=16", "--dropout=0", "--device=cpu"])
    finetune.main()
    result = json.loads((tmp_path / "m" / "finetune_sst2.json").read_text())
    each = [s["dev.tsv accuracy"] for s in result["seeds"]]
    assert min(each) > 90
    assert result["mean"]["dev.tsv accuracy"] == statistics.mean(each)
    assert result["std"]["dev.tsv accuracy"] == pytest.approx(abs(each[0] - each[1]) / 2 ** 0.5)
    assert result["rows"] == {"train.tsv": 160, "dev.tsv": 60} and result["iter"] == 7
    out = capsys.readouterr().out
    assert f"seed 1: dev.tsv accuracy {each[1]:.2f}" in out and "mean" in out
    if kind == "bert":
        return
    # the same seed, the same numbers
    again = finetune.run(parse([path, folder, "--seeds=1", "--epochs=5", "--lr=3e-3", "--batch=16",
                                "--dropout=0", "--device=cpu"]))
    assert again["seeds"] == result["seeds"][:1] and again["std"]["dev.tsv accuracy"] is None


@KINDS
def test_learns_scores_and_spans(kind, tmp_path):
    """STS-B's regression, and SQuAD with answers that a letter marks."""
    pytest.importorskip("scipy")
    model = save(kind, tmp_path / "m", n_embd=32, n_head=2, n_inner=64, head_dim=16, block_size=40)
    rng = np.random.default_rng(0)
    (tmp_path / "STS-B").mkdir()
    lines = ["\t" * 7 + f"{'x' * k}\t{'y' * 4}\t{k / 2}" for k in rng.integers(0, 11, 120)]
    for name in ("train.tsv", "dev.tsv"):
        (tmp_path / "STS-B" / name).write_text("\n".join(lines) + "\n")
    common = ["--seeds=1", "--lr=3e-3", "--batch=16", "--dropout=0", "--device=cpu"]
    got = finetune.run(parse([model, str(tmp_path / "STS-B"), "--epochs=14", *common]))
    assert got["mean"]["dev.tsv pearson"] > 90 and got["mean"]["dev.tsv spearman"] > 90

    (tmp_path / "squad").mkdir()
    passages = []
    for i in range(60):
        words = ["".join(rng.choice(list("abc"), 2)) for _ in range(5)]
        words[rng.integers(5)] = answer = "zz" + "abc"[i % 3]
        text = " ".join(words)
        passages.append(dict(context=text, qas=[dict(id=str(i), question="?", answers=[
            dict(text=answer, answer_start=text.index(answer))])]))
    for name in ("train-v1.1.json", "dev-v1.1.json"):
        (tmp_path / "squad" / name).write_text(json.dumps(dict(data=[dict(paragraphs=passages)])))
    got = finetune.run(parse([model, str(tmp_path / "squad"), "--epochs=16", *common]))
    assert got["mean"]["dev-v1.1.json exact"] > 80 and got["rows"]["train-v1.1.json"] == 60


def test_mid_ramp(tmp_path):
    """A checkpoint that is growing can be fine-tuned: its masks come along."""
    from grow import grow
    model, _ = grow(make("bert", torch.float32, vocab_size=320), n_embd=16)
    net = Tuned(model, TASKS["sst2"], 0.0)
    rows = [dict(encoder("bert", 12).texts(["abc"]), label=1)]
    net.loss(collate(rows, "cpu")).backward()
    assert net.model.masks.c is not None and net.head.weight.grad[:, 12:].abs().max() == 0


# -----------------------------------------------------------------------------
# bad input

@pytest.mark.parametrize("args, said", [
    (["glue/SST3"], "--task=SST3: must be one of cola, sst2"), (["x", "--task=SQ"], "--task=SQ"),
    (["SST-2", "--seeds=0"], "--seeds: 0: must be a whole number, at least 1"),
    (["SST-2", "--lr=nan"], "--lr: nan: must be a finite number, at least 0"),
    (["squad", "--pool=mean"], "--pool=mean: SQuAD is read at every token"),
    (["SST-2", "--dropout=1"], "--dropout=1.0: must be below 1"),
    (["SST-2", "--device=cuda:99"], "--device=cuda:99: not on this machine")])
def test_bad_settings(args, said):
    with pytest.raises(UserError, match=said):
        parse(["x", *args])


@pytest.mark.parametrize("name, task", [("SST-2", "sst2"), ("a/CoLA/", "cola"), ("STS-B", "stsb")])
def test_the_folder_names_the_task(name, task):
    assert parse(["x", name]).task == task


def test_diverging(tmp_path):
    with pytest.raises(UserError, match="infinite or NaN: lower --lr=1e.30"):
        finetune.run(parse([save("gpt", tmp_path / "m"), trivial(tmp_path / "SST-2"), "--lr=1e30",
                            "--epochs=1", "--device=cpu"]))


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    """One line, exit code 2, nothing written."""
    path = save("gpt", tmp_path / "m")
    code, _, err = main_in_process(monkeypatch, capsys, finetune, path, tmp_path / "SST-2")
    assert code == 2 and err.count("\n") == 1 and "train.tsv" in err
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["ckpt.pt"]
