"""
What the README, CONTRIBUTING and docs/ say exists: the scripts, flags, configs and targets of every
command, every link, every file named, and every module on the README's map of the files. And the README's
Python example runs.
"""
import re
import shlex
import tarfile
from dataclasses import fields

import pytest
import torch
from test_house import FILES, ROOMS, ROOT

from model import GROWABLE
from run.arguments import from_args
from run.packed import PACK
from run.settings import TrainConfig

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
SETTINGS = {f.name for f in fields(TrainConfig)}
TARGETS = re.findall(r"^([\w./-]+):", (ROOT / "Makefile").read_text(), re.M)
NAMES = {f.name for f in [*FILES, *ROOT.glob("tests/**/*.py")]}
BEFORE = re.compile(r"do|then|nice|taskset|-\w+|\d+|\w+=.*")  # what may stand before a command
STARTS = ("python", "python3", "torchrun", "make")


def code_lines(text):
    """Lines in ``` fences or indented by four, continued lines joined."""
    fenced, lines = False, []
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif fenced or line.startswith("    "):
            lines.append(line.strip())
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def commands(text):
    """The words of each command that starts Python, torchrun or make, also in loops."""
    for line in code_lines(text):
        if not re.search(rf"\b({'|'.join(STARTS)})\b", line):
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words = []
        for token in [*lexer, ";"]:
            if set(token) <= set(";&|"):
                if words and words[0] in STARTS:
                    yield words
                words = []
            elif words or not BEFORE.fullmatch(token):
                words.append(token)


CASES = [(str(page.relative_to(ROOT)), words) for page in PAGES for words in commands(page.read_text())]


def is_packed(path):
    """Is it among a study's packed runs?"""
    for folder in (f for f in path.parents if (f / PACK).is_file()):
        with tarfile.open(folder / PACK) as tar:
            return any(f"{name}/".startswith(f"{path.relative_to(folder)}/") for name in tar.getnames())
    return False


def check_script(path, args):
    assert path in FILES, f"{path.relative_to(ROOT)}: no such script"
    text = path.read_text()  # and that of what it imports: parsers are shared
    for module in re.findall(r"^from ((?:base|run|data|lab|tools)\.[\w.]+) import", text, re.M):
        if (file := ROOT / f"{module.replace('.', '/')}.py").exists():
            text += file.read_text()
    known = set(re.findall(r'"--([\w-]+)"', text))
    if path.name in ("train.py", "plan.py", "speedrun.py"):
        known |= SETTINGS | {"resume"}
    if path.name == "upscale.py":
        known |= set(GROWABLE)
    for arg in args:
        if arg.startswith("--"):
            assert arg[2:].partition("=")[0] in known, f"{path.name}: no flag {arg}"
            continue
        for word in arg.split():  # speedrun takes "config/x.py key=value"
            if re.match(r"(config|lab)/.*\.py$", word):
                assert (ROOT / word).is_file(), word
            elif " " in arg:
                assert word.partition("=")[0] in SETTINGS, word
    of_a_run = ("--resume", "--init_from=hf", "--init_from=out")  # which is not there
    if path.name == "train.py" and not any(a.startswith(of_a_run) for a in args):
        from_args(args)  # a UserError says what is wrong


@pytest.mark.parametrize("page, words", CASES, ids=[f"{p}: {' '.join(w)}" for p, w in CASES])
def test_commands(page, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    start, words = words[0], words[1:]
    if start == "make":
        assert all(w in TARGETS or "=" in w for w in words)
        return
    while start == "torchrun" and words[0].startswith("--"):  # its own flags come first
        del words[0]
    if words[0] != "-m":
        check_script(ROOT / words[0], words[1:])
    elif words[1].split(".")[0] in ROOMS:
        check_script(ROOT.joinpath(*words[1].split(".")).with_suffix(".py"), words[2:])
    else:
        assert words[1] in ("pip", "pytest"), f"{words[1]}: no such module"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_files(page):
    text = page.read_text()
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        file, _, anchor = target.partition("#")
        there = page.parent / file if file else page
        assert there.exists(), target
        titles = re.findall(r"^#+ (.*)", there.read_text(), re.M) if anchor else []
        slugs = [re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles]
        assert not anchor or anchor in slugs, target
    for name in re.findall(r"`([\w./-]+\.py)`", text):
        assert name in NAMES or (ROOT / name).is_file(), f"{name}: no such file"
    for name in re.findall(r"`((?:results|config|docs|data|tests|lab)/[\w./-]+)`", text):
        assert (ROOT / name).exists() or is_packed(ROOT / name), f"{name}: no such file"


def test_the_map_is_whole():
    drawn = re.search(r"```\n(layers\.py.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    room, named = "", set()
    for line in drawn.splitlines():
        room = room if line.startswith(" ") else line.split()[0] if "/" in line else ""
        if line.split()[0].endswith(".py"):
            named.add(room + line.split()[0])
    assert named == {str(f.relative_to(ROOT)) for f in FILES if f.name != "prepare.py" and
                     f.parent.name != "experiments"}


def test_the_example_runs():
    """The README's loop: at the growth the same logits, at the end a plain model of the new sizes."""
    code = re.search(r"```python\n(import torch\n.*?)```", (ROOT / "README.md").read_text(), re.S).group(1)
    code = code.replace("100", "10")  # iterations, to be quick
    before, growth, after = re.split(r"^(model, opt = grow.*\n)", code, flags=re.M)
    names, idx = {}, torch.randint(256, (2, 64))
    exec(before, names)
    logits, _ = names["model"](idx)
    exec(growth, names)
    assert names["model"].config.n_layer == 6 and names["model"].config.n_embd == 192
    torch.testing.assert_close(names["model"](idx)[0], logits, atol=1e-5, rtol=1e-5)
    exec(after, names)
    assert names["model"].masks.c is None
    assert (names["model"](idx)[0] - logits).abs().max() > 1e-3
