"""evaluate.py against slow one-by-one references, and what it says to bad input; the trackers."""
import gzip
import json
import math
import sys
import time
import types
from dataclasses import asdict

import pytest
import torch
from runs import make_data
from test_grow import make

from base.errors import UserError
from base.reading import read_jsonl, read_text
from data.tokenizer import get_tokenizer, tokenizer_of
from run import runlog
from run.arguments import from_args
from run.settings import TrainConfig
from run.trained import open_model
from tools import evaluate
from tools.evaluate import (
    Evaluator,
    parse,
    parse_tasks,
    read_question,
    save_result,
    table,
    which,
    windows,
)

META = dict(tokenizer=dict(name="bytes", bert=False), vocab_size=256, dtype="uint8", eot=0, sep=10)
CHAR = dict(tokenizer=dict(name="char", vocab=sorted("\n abcdefgh")), vocab_size=11)
TEXT = "the cat sat on the mat, and the dog\nlay by the döör\n" * 3


def save(kind, folder, meta=META, **sizes):
    """A checkpoint of a model that has opinions, 16 tokens long; returns its path."""
    model = make(kind, torch.float32, **{"block_size": 16, "vocab_size": 320, **sizes})
    with torch.no_grad():
        model.wte.weight.mul_(3)  # some tokens much likelier than others
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(model=model.state_dict(), model_config=asdict(model.config), iter=7, meta=meta,
                    config=dict(asdict(TrainConfig()), model=kind)), folder / "ckpt.pt")
    return str(folder / "ckpt.pt")


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    return save("gpt", tmp_path_factory.mktemp("gpt"))


def slow_nats(model, ids, start, T, stride):
    """
    Nats of each of ids[start:] and whether it was the likeliest, one model call a token: tokens
    share a start with all of them if they fit in T; else they are given all before them while that
    fits, later in groups of `stride` that share a start.
    """
    first = len(ids) if len(ids) - start <= T else max(T + 1, start + stride)  # ids before this are scored in the first window
    for p in range(start, len(ids)):
        end = first if p < first else first + ((p - first) // stride + 1) * stride
        low = max(0, min(end, len(ids)) - T - 1)
        logits, _ = model(torch.tensor([ids[low:p]]))  # of the last position
        logp = logits[0, -1].double().log_softmax(-1)
        yield -logp[ids[p]].item(), logp.argmax().item() == ids[p]


def jsonl(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


# -----------------------------------------------------------------------------
# scores

@pytest.mark.parametrize("T, stride, start, n", [
    (4, 2, 1, 11), (4, 4, 1, 11), (4, 1, 1, 9), (5, 3, 3, 17), (4, 4, 9, 12), (8, 4, 1, 5)])
def test_windows_score_each_id_once(T, stride, start, n):
    ids, scored = list(range(n)), []
    for piece, first in windows(ids, start, T, stride):
        assert 2 <= len(piece) <= T + 1 and first >= 1
        assert piece == ids[piece[0]:piece[-1] + 1]
        scored += piece[first:]
        assert first >= min(T - stride, piece[first] - 1)  # how much the first of them is given
    assert scored == ids[start:]


def test_an_end_that_fits_is_one_window():
    assert list(windows(list(range(9)), 6, 4, 2)) == [([4, 5, 6, 7, 8], 2)]
    assert list(windows(list(range(9)), 5, 4, 2)) == [([4, 5, 6, 7, 8], 1)]


@pytest.mark.parametrize("stride, batch", [(1, 4), (5, 1), (8, 4), (16, 1)])
def test_perplexity_equals_the_slow_one(gpt, tmp_path, stride, batch):
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    model, _ = open_model(gpt)
    got = Evaluator(gpt, batch=batch, stride=stride).ppl(str(tmp_path / "a.txt"))
    raw = TEXT.encode()
    with torch.no_grad():
        want = sum(nats for nats, _ in slow_nats(model, [0, *raw], 1, 16, stride))
    assert got["n"] == len(raw) > 100
    assert got["ppl"] == pytest.approx(math.exp(want / len(raw)), rel=1e-5)
    assert got["bits_per_byte"] == pytest.approx(want / math.log(2) / len(raw), rel=1e-5)


def test_a_longer_past_helps_and_bits_count_bytes(tmp_path):
    """A tokenizer of characters, no end of document: the first character is given, not scored."""
    path, model_path = tmp_path / "a.txt", save("gpt", tmp_path / "m", CHAR, vocab_size=64)
    path.write_text("abc abd\nabe" * 9)
    got = Evaluator(model_path).ppl(str(path))
    assert got["n"] == 98
    assert got["bits_per_byte"] == pytest.approx(math.log2(got["ppl"]))  # one byte a token here
    meta = dict(tokenizer=dict(name="char", vocab=sorted("\n abcdefgé")))
    path.write_text("abéé é" * 9, encoding="utf-8")  # 9 bytes, 6 tokens
    accents = Evaluator(save("gpt", tmp_path / "m2", meta, vocab_size=64)).ppl(str(path))
    assert accents["n"] == 53
    assert accents["bits_per_byte"] == pytest.approx(math.log2(accents["ppl"]) * 53 / 80)
    path.write_text("abc abd\nabe" * 9)
    limited = Evaluator(model_path, limit=20).ppl(str(path))
    assert limited["n"] == 20 and limited["ppl"] != got["ppl"]


def test_uniform_model(tmp_path):
    """All weights zero: the perplexity is the number of ids the model knows."""
    path = save("gpt", tmp_path)
    state = torch.load(path)
    state["model"] = {k: torch.zeros_like(v) for k, v in state["model"].items()}
    torch.save(state, path)
    (tmp_path / "a.txt").write_text("é" * 50, encoding="utf-8")
    got = Evaluator(path).ppl(str(tmp_path / "a.txt"))
    assert got == dict(n=100, ppl=pytest.approx(320), bits_per_byte=pytest.approx(math.log2(320)))


def test_compressed_text(tmp_path):
    with gzip.open(tmp_path / "a.txt.gz", "wt", encoding="utf-8") as f:
        f.write(TEXT)
    assert read_text(str(tmp_path / "a.txt.gz")) == TEXT


def slow_pair(model, context, end, stride=8):
    """(nats, all likeliest) of `end` after `context`, alone, on bytes."""
    ids = [*(context.encode() or b"\0"), *end.encode()]
    with torch.no_grad():
        each = list(slow_nats(model, ids, len(ids) - len(end.encode()), 16, stride))
    return sum(n for n, _ in each), all(hit for _, hit in each)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_lambada_equals_the_slow_one(gpt, tmp_path, batch):
    model, _ = open_model(gpt)
    lines = [dict(context="the cat sat on the", continuation="mat"),
             dict(text="a dog lay down by the door"), dict(context="", continuation="x"),
             dict(context="one ", continuation="two"), dict(context="three", continuation=" four")]
    pairs = [("the cat sat on the", " mat"), ("a dog lay down by the", " door"), ("", "x"),
             ("one", " two"), ("three", " four")]
    want = [slow_pair(model, *p) for p in pairs]
    got = Evaluator(gpt, batch=batch).lambada(jsonl(tmp_path / "l.jsonl", *lines))
    assert got == dict(n=len(lines), acc=sum(h for _, h in want) / len(lines), ppl=pytest.approx(
        math.exp(sum(n for n, _ in want) / len(lines)), rel=1e-5))


@pytest.mark.parametrize("n", [15, 16, 17, 40])
def test_last_words_longer_than_the_block(gpt, tmp_path, n):
    """A model of 16 tokens, words of more: each token still given what fits before it."""
    model, _ = open_model(gpt)
    line = dict(context="the cat sat on the", continuation="m" * n)
    want, _ = slow_pair(model, line["context"], " " + line["continuation"])
    got = Evaluator(gpt).lambada(jsonl(tmp_path / "l.jsonl", line))
    assert math.log(got["ppl"]) == pytest.approx(want, rel=1e-5)


def test_unthinkable_words(tmp_path):
    """More nats than a float's exponent holds: infinite, not an error; and JSON has no infinity."""
    path = save("gpt", tmp_path)
    state = torch.load(path)
    state["model"]["wte.weight"] *= 300
    torch.save(state, path)
    got = Evaluator(path).lambada(jsonl(tmp_path / "l.jsonl", dict(context="a", continuation="bcd" * 20)))
    assert got["ppl"] == math.inf and got["acc"] == 0
    saved = save_result(dict(results=[got, dict(x=math.nan)]), None, path)
    text = open(saved).read()
    assert json.loads(text)["results"] == [{**got, "ppl": "Infinity"}, {"x": "NaN"}]


def test_lines_that_end_in_a_newline(gpt, tmp_path):
    """The end of a line is no part of its last word."""
    texts = ["a dog lay down by the door", "a dog lay down by the door\n", "a dog lay down by the door \n\n"]
    got = [Evaluator(gpt).lambada(jsonl(tmp_path / "l.jsonl", dict(text=t))) for t in texts]
    assert got[0] == got[1] == got[2]


def test_lambada_accuracy(gpt, tmp_path):
    """Last words that the model itself writes are right, all others wrong."""
    model, _ = open_model(gpt)
    lines = []
    for n in range(60):
        with torch.no_grad():
            logits, _ = model(torch.tensor([list(f"w{n}".encode())]))
        likeliest = logits[0, -1].argmax().item()
        lines += [dict(context=f"w{n}", continuation=chr(b)) for b in (likeliest, likeliest + 1)
                  if chr(likeliest).isascii() and chr(b).isalnum()]
    rights = sum(slow_pair(model, *line.values())[1] for line in lines)
    assert 0 < rights < len(lines)
    e = Evaluator(gpt)
    pair, e.pair = e.pair, lambda a, b, where: pair(a, b, where, join="")
    got = e.lambada(jsonl(tmp_path / "l.jsonl", *lines))
    assert got["acc"] == rights / len(lines)


def test_last_word_must_be_the_likeliest_in_every_token(gpt):
    """A continuation is right only where greedy decoding writes all of it."""
    e = Evaluator(gpt)
    ids = list(b"some text")
    own = e.model.generate(torch.tensor([ids]), 4, temperature=0)[0].tolist()
    wrong = own[:-1] + [(own[-1] + 1) % 256]
    assert [hit for _, hit in e.nats([(own, len(ids)), (wrong, len(ids)), (own, 1)], "x")] == \
        [True, False, False]
    # over many windows: one wrong token in the first of them, and the model's own words after it
    e = Evaluator(gpt, stride=1)
    own = e.model.generate(torch.tensor([ids]), 30, temperature=0)[0].tolist()
    slip = torch.tensor([own[:12] + [(own[12] + 1) % 256]])
    slip = e.model.generate(slip, 26, temperature=0)[0].tolist()
    assert [hit for _, hit in e.nats([(own, len(ids)), (slip, len(ids))], "x")] == [True, False]


QUESTIONS = [
    dict(query="The man turned on the faucet, therefore", gold=1,
         choices=["the toilet filled with water.", "water flowed."]),
    dict(query="Q:", choices=["a", "bb bb bb bb", "ccc", "the answer that is the longest of all"],
         gold=3),
    dict(context_options=["Sarah was better than Maria so Sarah", "Sarah was so Maria"], gold=0,
         continuation="got it"),
    dict(query="one two ", choices=["three", "3"], gold=0)]


@pytest.mark.parametrize("batch", [1, 4, 64])
def test_choice_equals_the_slow_one(gpt, tmp_path, batch):
    model, _ = open_model(gpt)
    right = right_norm = right_token = 0
    for q in QUESTIONS:
        pairs = [(c.rstrip(), q["continuation"]) for c in q["context_options"]] \
            if "context_options" in q else [(q["query"].rstrip(), c) for c in q["choices"]]
        nats = [slow_pair(model, context, " " + end)[0] for context, end in pairs]
        norm = [n / len(end) for n, (_, end) in zip(nats, pairs)]
        right += nats.index(min(nats)) == q["gold"]
        right_norm += norm.index(min(norm)) == q["gold"]
        token = [n / len(" " + end) for n, (_, end) in zip(nats, pairs)]
        right_token += token.index(min(token)) == q["gold"]
    got = Evaluator(gpt, batch=batch).choice(jsonl(tmp_path / "c.jsonl", *QUESTIONS))
    assert got == dict(n=4, acc=right / 4, acc_norm=right_norm / 4, acc_token=right_token / 4)


@pytest.mark.parametrize("line", [
    dict(ctx="the cat", endings=["sat on", "flew"], label="1"), dict(question="the cat", answer="B",
    choices=["sat on", "flew"]), dict(question="the cat", choices=["sat on", "flew"], answer="flew"),
    dict(query="the cat", choices=["sat on", "flew"], gold=1, ctx="not this", id=3)])
def test_the_names_that_datasets_use(line):
    """HellaSwag's, MMLU's, CORE's: the same question."""
    pairs, gold = read_question("f:1", line)
    assert (pairs, gold) == ([("the cat", "sat on"), ("the cat", "flew")], 1)


@pytest.mark.parametrize("gold, choices, want", [
    ("3", ["3", "4"], 0), ("A", ["B", "A"], "another by its text"), ("B", ["A", "B"], 1),
    ("x", ["a", "b"], "none of the 2"), ("C", ["a", "b"], "none of the 2"),
    ("a", ["a", "a"], "another by its text"), ("", ["a", "b"], "none of"), (-1, ["a", "b"], "none of"),
    ("1", ["1", "0"], "gold='1' is one by its number and another")])
def test_which_choice_is_right(gold, choices, want):
    if isinstance(want, int):
        assert which("f:1", gold, choices) == want
    else:
        with pytest.raises(UserError, match=want):
            which("f:1", gold, choices)


@pytest.mark.parametrize("args, context, continuation", [
    (("one", "two"), "one", " two"), (("one ", "two"), "one", " two"),
    (("one", " two"), "one", " two"), (("", "two"), "\0", "two"),
    (("one\n", "two"), "one\n", "two"),  # what ends a line is given, not scored
    (("one\n", "two", "", "Answer: "), "one\nAnswer:", " two"),
    (("one", "two", "", "\n"), "one\n", "two"), (("one", "two", "", ""), "one", "two")])
def test_where_the_continuation_starts(gpt, args, context, continuation):
    ids, start = Evaluator(gpt).pair(*args[:2], "x", *args[3:])
    assert (bytes(ids[:start]).decode(), bytes(ids[start:]).decode()) == (context, continuation)


def test_a_tokenizer_that_begins_a_text_with_a_space(gpt):
    """As Llama 2's: the context's end and the continuation are cut from the whole text's tokens."""
    e = Evaluator(gpt)
    e.tok = types.SimpleNamespace(begin=[1], eot=None, encode=lambda text: list((" " + text).encode()))
    ids, start = e.pair("one", "two", "x")
    assert (ids[0], bytes(ids[1:start]), bytes(ids[start:])) == (1, b" one", b" two")


def test_byte_pairs(gpt):
    """Apart or together, the tokens of a context and its continuation are the same."""
    e = Evaluator(gpt)
    try:
        e.tok = get_tokenizer(dict(tokenizer="gpt2"))
    except UserError as error:
        pytest.skip(str(error))
    for context, end in (("I don't care about", "signs"), ("Question: dresser\n", "replace it"),
                         ("therefore ", "the toilet's full."), ("1 + 1 =", "2")):
        ids, start = e.pair(context, end, "x")
        joined = context + ("" if context[-1].isspace() else " ") + end
        assert ids == e.tok.encode(joined) and e.tok.decode(ids[start:]).strip() == end


def test_length_normalisation(gpt, tmp_path, monkeypatch):
    """4 nats over 2 characters lose to 5 over 5 by the character, and win in all."""
    e = Evaluator(gpt)
    monkeypatch.setattr(e, "nats", lambda rows, name: [(4.0, False), (5.0, False)])
    path = jsonl(tmp_path / "c.jsonl", dict(query="q", choices=["ab", "abcde"], gold=1))
    assert e.choice(path) == dict(n=1, acc=0.0, acc_norm=1.0, acc_token=1.0)
    path = jsonl(tmp_path / "c.jsonl", dict(query="q", choices=["ab", "éé\u00e9"], gold=1))
    assert e.choice(path) == dict(n=1, acc=0.0, acc_norm=1.0, acc_token=1.0)
    path = jsonl(tmp_path / "c.jsonl", dict(query="q", choices=["abcd", "éé"], gold=1))
    monkeypatch.setattr(e, "nats", lambda rows, name: [(4.0, False), (3.0, False)])
    assert e.choice(path) == dict(n=1, acc=1.0, acc_norm=0.0, acc_token=1.0)  # 2 characters, 4 bytes


def test_padding_and_company_change_nothing(gpt):
    e = Evaluator(gpt, batch=8)
    rows = [(list(range(40, 40 + n)), 1) for n in (2, 30, 9, 3, 17, 16)]
    together = e.nats(rows, "x")
    for row, (nats, hit) in zip(rows, together):
        [(alone, alone_hit)] = e.nats([row], "x")
        assert alone == pytest.approx(nats, rel=1e-6) and alone_hit == hit


def test_mid_ramp(tmp_path):
    """A model that is growing is evaluated as it is: right after the growth, as the small one."""
    from grow import grow
    small = save("gpt", tmp_path / "a")
    model, _ = open_model(small)
    grown, _ = grow(model, n_embd=16, n_layer=3)
    state = torch.load(small)
    state.update(model=grown.state_dict(), model_config=asdict(grown.config))
    torch.save(state, tmp_path / "grown.pt")
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    a, b = (Evaluator(str(p)).ppl(str(tmp_path / "a.txt")) for p in (small, tmp_path / "grown.pt"))
    assert a["ppl"] == pytest.approx(b["ppl"], rel=1e-5)


def test_mlm_equals_the_slow_one(tmp_path):
    """Row by row, without padding, and the same whatever the batch."""
    from data.loader import BertLoader
    data = str(make_data(tmp_path / "data"))
    path = save("bert", tmp_path, block_size=32)
    got = [Evaluator(path, batch=b, limit=10).mlm(data) for b in (1, 4, 16)]
    model, _ = open_model(path)
    config = TrainConfig(model="bert", data_dir=data, block_size=32, batch_tokens=32, micro_batch=1,
                         eval_seqs=10)
    hits, nats, nsp = [], [], []
    for row in BertLoader(config, META, 320).eval_batches():
        n = int(row["attn_mask"].sum())
        with torch.no_grad():
            out, _ = model(row["idx"][:, :n], row["segments"][:, :n])
        for at, target in zip(row["positions"][0], row["targets"][0]):
            if target < 0:
                continue
            logp = out.mlm_logits[0, at].log_softmax(-1)
            hits.append(logp.argmax().item() == target)
            nats.append(-logp[target].item())
        nsp.append(out.nsp_logits.argmax().item() == row["next_sentence"].item())
    for g in got:
        assert g == dict(file=data, n=len(hits), mlm_acc=sum(hits) / len(hits),
                         mlm_loss=pytest.approx(sum(nats) / len(nats), rel=1e-4),
                         nsp_acc=sum(nsp) / len(nsp))


@pytest.mark.parametrize("kind", ["gpt", "llama", "bert"])
def test_the_loss_without_a_layer(kind, tmp_path):
    """It equals that of a model that never had the layer; afterwards the model has it again."""
    data = str(make_data(tmp_path / "data"))
    e = Evaluator(save(kind, tmp_path, block_size=32, n_layer=3), batch=4, limit=10)
    got = e.layers(data)
    assert list(got) == ["file", "n", "val_loss", "without layer 1", "without layer 2", "without layer 3"]
    assert e.layers(data) == got
    e.info["config"]["stages"] = [dict(at=3, n_layer=3, micro_batch=3)]
    assert e.layers(data) == got
    blocks = list(e.model.blocks)
    for i in range(3):
        e.model.blocks = torch.nn.ModuleList(blocks[:i] + blocks[i + 1:])
        s, n = e.sums("", e.loader("layers", data))["val_loss"]
        assert n == got["n"] > 0
        assert s / n - got["val_loss"] == pytest.approx(got[f"without layer {i + 1}"], abs=1e-6)
        assert abs(got[f"without layer {i + 1}"]) > 1e-5


# -----------------------------------------------------------------------------
# from the command line

def main_in_process(monkeypatch, capsys, script, *args):
    """(exit code, stdout, stderr) of a script's main(), without a process for it."""
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, args)])
    code = 0
    try:
        script.main()
    except SystemExit as e:
        code = e.code
    return code, *capsys.readouterr()


def test_from_the_command_line(gpt, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a, b.txt").write_text(TEXT, encoding="utf-8")
    jsonl(tmp_path / "c.jsonl", *QUESTIONS)
    code, out, err = main_in_process(monkeypatch, capsys, evaluate, gpt,
                                     "--tasks=ppl:~/a, b.txt,choice:~/c.jsonl", "--save=~/r.json")
    assert code == 0, err
    lines, save_to = out.splitlines(), tmp_path / "r.json"
    assert lines[0].split() == ["task", "file", "n", "metric", "value"] and len(lines) == 8
    assert lines[-1] == f"wrote {save_to}"
    result = json.loads(save_to.read_text())
    assert [r["task"] for r in result["results"]] == ["ppl", "choice"]
    assert result["iter"] == 7 and result["results"][0]["n"] == len(TEXT.encode())


def test_what_is_done_is_kept(gpt, tmp_path, monkeypatch, capsys):
    """The second task's file is bad: the first one's result is on disk."""
    (tmp_path / "a.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "c.jsonl").write_text("{}\n")
    code, _, err = main_in_process(monkeypatch, capsys, evaluate, gpt, "--save", tmp_path / "r.json", "--tasks",
                          f"ppl:{tmp_path}/a.txt,choice:{tmp_path}/c.jsonl")
    assert code == 2 and "c.jsonl:1: lacks query" in err
    assert [r["task"] for r in json.loads((tmp_path / "r.json").read_text())["results"]] == ["ppl"]


@pytest.mark.parametrize("kind, tasks, said", [
    ("gpt", "mlm", "is a gpt model, and mlm is for bert: use ppl, lambada, choice, layers"),
    ("bert", "ppl:{a}", "is a bert model, and ppl is for gpt and llama: use mlm, layers"),
    ("gpt", "blimp", "'blimp' is no task: use ppl:FILE"),
    ("gpt", "ppl", "ppl needs a file: ppl:FILE"),
    ("gpt", "ppl:{a}.missing", "a.txt.missing: no such file"),
    ("gpt", "ppl:{dir}", "Is a directory"),
    ("gpt", "ppl:{empty}", "holds no text to score"),
    ("gpt", "lambada:{empty}", "is empty: one JSON object a line"),
    ("gpt", "lambada:{a}", "a.txt:1: not JSON"),
    ("gpt", "ppl:{latin}", "not UTF-8 text"),
    ("gpt", "ppl:{cut}", "cut.gz: is damaged"),
    ("bert", "mlm:{dir}/none", "no such file"), ("gpt", "layers:{dir}", "make one with"),
    ("bert", "mlm:{dir}", "make one with"),
])
def test_bad_input(kind, tasks, said, gpt, tmp_path, monkeypatch, capsys):
    files = dict(a=TEXT.encode(), empty=b"", latin="é".encode("latin-1") * 9)
    for name, content in files.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    (tmp_path / "cut.gz").write_bytes(gzip.compress(TEXT.encode() * 99)[:60])
    tasks = tasks.format(dir=tmp_path, cut=tmp_path / "cut.gz",
                         **{name: tmp_path / f"{name}.txt" for name in files})
    path = gpt if kind == "gpt" else save("bert", tmp_path)
    code, _, err = main_in_process(monkeypatch, capsys, evaluate, path, f"--tasks={tasks}", f"--save={tmp_path}/r")
    assert code == 2 and said in err and err.count("error: ") == 1 and err.endswith("\n")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("args, said", [
    (["--batch=0"], "--batch: 0: must be a whole number, at least 1"), (["--stride=-1"], "--stride: -1: must be"),
    (["--device=cuda:99"], "--device=cuda:99: not on this machine"),
    (["--device=toaster"], "--device=toaster: not on this machine")])
def test_bad_settings(args, said):
    with pytest.raises(UserError, match=said):
        parse(["x", "--tasks=mlm", *args])


@pytest.mark.parametrize("line, said", [
    ('7', "lacks query"), ('{"query": "q", "choices": ["a", "b"]}', "lacks gold"),
    ('{"query": "q", "choices": "ab", "gold": 0}', "lacks choices, or it is no list"),
    ('{"query": "q", "choices": ["a", "b"], "gold": 2}', "gold=2 is none of the 2 choices"),
    ('{"query": "q", "choices": ["a", "b"], "gold": true}', "lacks gold, or it is no int or str"),
    ('{"query": "q", "choices": ["a", 3], "gold": 0}', "a choice that is no text"),
    ('{"query": "q", "choices": ["a", " "], "gold": 0}', "an end without a text"),
    ('{"query": "q", "choices": [], "gold": 0}', "none of the 0 choices"),
    ('{"context_options": ["a", null], "continuation": "b", "gold": 0}', "a choice that is no"),
    ('{"query": ', "not JSON")])
def test_bad_questions(line, said, gpt, tmp_path):
    (tmp_path / "c.jsonl").write_text(json.dumps(QUESTIONS[0]) + "\n\n" + line + "\n")
    with pytest.raises(UserError, match=f"c.jsonl:3: .*{said}"):
        Evaluator(gpt).choice(str(tmp_path / "c.jsonl"))


@pytest.mark.parametrize("line, said", [
    ('[1]', "lacks context"), ('{"text": "word"}', "lacks continuation"),
    ('{"context": "a b", "continuation": ""}', "an end without a text"),
    ('{"context": 3, "continuation": "x"}', "lacks context, or it is no str")])
def test_bad_last_words(line, said, gpt, tmp_path):
    (tmp_path / "l.jsonl").write_text(line)
    with pytest.raises(UserError, match=f"l.jsonl:1: .*{said}"):
        Evaluator(gpt).lambada(str(tmp_path / "l.jsonl"))


def test_an_empty_context_needs_an_end_of_document(tmp_path):
    path = jsonl(tmp_path / "l.jsonl", dict(context="", continuation="abc"))
    with pytest.raises(UserError, match="l.jsonl:1: an empty context"):
        Evaluator(save("gpt", tmp_path, CHAR, vocab_size=64)).lambada(path)


def test_another_tokenizer(tmp_path, gpt):
    data = make_data(tmp_path / "data")
    (data / "meta.json").write_text(json.dumps({**META, "tokenizer": dict(name="gpt2", bert=True)}))
    with pytest.raises(UserError, match="made with another tokenizer than the model's"):
        Evaluator(save("bert", tmp_path)).mlm(str(data))
    with pytest.raises(UserError, match="knows only 64 ids"):
        small = Evaluator(save("gpt", tmp_path / "s", vocab_size=64))
        small.lambada(jsonl(tmp_path / "l.jsonl", dict(context="a", continuation="b")))
    assert tokenizer_of(dict(tokenizer="gpt2")) == tokenizer_of(dict(tokenizer=dict(name="gpt2", bert=True)))
    assert tokenizer_of(META) != tokenizer_of(CHAR)


def test_no_checkpoint(tmp_path):
    with pytest.raises(UserError, match="none.pt: no such checkpoint or folder: give .*hf download"):
        Evaluator(str(tmp_path / "none.pt"))
    (tmp_path / "my_run").mkdir()
    with pytest.raises(UserError, match="my_rum: no such .*did you mean .*/my_run"):
        Evaluator(str(tmp_path / "my_rum"))
    with pytest.raises(UserError, match="nowhere/x: no such checkpoint or folder: give"):
        Evaluator(str(tmp_path / "nowhere" / "x"))
    (tmp_path / "my_run").rmdir()
    with pytest.raises(UserError, match="holds no checkpoint"):
        Evaluator(str(tmp_path))


def test_small_parts(tmp_path):
    assert parse_tasks("mlm") == [("mlm", "")]
    assert table([("a", "bb"), (1.0, "x")]) == "a       bb\n------  --\n1.0000  x"
    path = jsonl(tmp_path / "a", 1, 2, 3)
    assert read_jsonl(path, 2) == [(f"{path}:1", 1), (f"{path}:2", 2)]


def test_a_folder_of_an_unknown_tokenizer(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    from run import hf
    from tools.export import export
    export(make("gpt", torch.float32, vocab_size=64, n_head=3), CHAR, str(tmp_path / "hf"))
    assert Evaluator(str(tmp_path / "hf")).tok.name == "char"
    with pytest.raises(UserError, match="layers: a Hugging Face folder names no dataset: give one, layers:DIR"):
        Evaluator(str(tmp_path / "hf")).layers("")
    (tmp_path / "hf" / hf.OURS).write_text("{")
    with pytest.raises(UserError, match="nanogrow.json: not JSON"):
        open_model(str(tmp_path / "hf"))
    for name in hf.TOKENIZER_FILES:
        (tmp_path / "hf" / name).unlink(missing_ok=True)
    with pytest.raises(UserError, match="nothing in it says what its tokenizer is"):
        open_model(str(tmp_path / "hf"))
    assert safetensors


# -----------------------------------------------------------------------------
# the trackers of runlog.py

def test_trackers_off_import_nothing(tmp_path, monkeypatch):
    for name in ("wandb", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it would fail
    assert runlog.open_trackers(from_args([f"--out_dir={tmp_path}"])) == []


@pytest.mark.parametrize("setting, modules, package", [
    ("--tensorboard=True", ("tensorboard", "torch.utils.tensorboard"), "tensorboard"),
    ("--wandb=mine", ("wandb",), "wandb")])
def test_trackers_missing(setting, modules, package, monkeypatch):
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"needs the {package} library: pip install {package}"):
        runlog.open_trackers(from_args([setting]))


class Board:
    """Stands for tensorboard's SummaryWriter."""
    def __init__(self, folder, purge_step=None, flush_secs=0):
        self.folder, self.purge_step, self.got = folder, purge_step, []
        Board.last = self

    def add_scalar(self, name, value, step):
        self.got.append((name, value, step))

    def close(self):
        pass


def log_something(out_dir, config, start=0):
    log = runlog.RunLog(str(out_dir), 10, quiet=False, trackers=runlog.open_trackers(config, start))
    log.event("step", iter=3, loss=1.5, note="text", skipped=None)
    log.event("eval", iter=5, val_loss=2)
    log.close()
    return [("step/loss", 1.5, 3), ("eval/val_loss", 2, 5)]


def test_tensorboard_gets_the_numbers(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard",
                        types.SimpleNamespace(SummaryWriter=Board))
    monkeypatch.setattr(runlog.atexit, "register", lambda f: None)
    want = log_something(tmp_path, from_args(["--tensorboard=True", f"--out_dir={tmp_path}"]), 4)
    assert Board.last.got == want
    assert Board.last.folder == str(tmp_path) and Board.last.purge_step == 5


def test_wandb_gets_the_numbers(tmp_path, monkeypatch):
    got, started = [], {}

    def init(**kw):
        started.update(kw)
        return types.SimpleNamespace(log=lambda numbers, step: got.extend(
            (k, v, step) for k, v in numbers.items()))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = from_args(["--wandb=mine", f"--out_dir={tmp_path}"])
    assert log_something(tmp_path, config) == got
    assert started["project"] == "mine" and started["name"] == \
        f"{tmp_path.parent.name}/{tmp_path.name}"  # seed_1 alone would be many runs'
    assert started["config"]["learning_rate"] == config.learning_rate


def test_wandb_cannot_start(monkeypatch):
    def init(**kw):
        raise ConnectionError("no\nnetwork")
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(UserError, match="cannot start .ConnectionError: no network.; WANDB_MODE"):
        runlog.open_trackers(from_args(["--wandb=mine"]))


def test_real_tensorboard(tmp_path):
    """What runlog.py writes can be read back by TensorBoard itself."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    want = log_something(tmp_path, from_args(["--tensorboard=True", f"--out_dir={tmp_path}"]))
    deadline = time.time() + 30  # it writes in a thread of its own
    read = accumulator.EventAccumulator(str(tmp_path))
    while len(read.Reload().Tags()["scalars"]) < len(want) and time.time() < deadline:
        time.sleep(0.1)
    assert [(n, s.value, s.step) for n, _, _ in want for s in read.Scalars(n)] == want
