"""
The floors of the house. Imports run one way, from a room to those below it, with no exceptions; and
no file is too long to read.
"""
import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# from the ground up: a file at the top, or a folder with all that is in it but for its own folders
FLOORS = [["base"], ["layers"], ["model"], ["grow"], ["data"], ["run.parallel"], ["run.checkpoint"], ["run"],
          ["train"], ["tools", "lab", "sample"]]
ROOMS = ("base", "data", "run", "tools", "lab")
FILES = sorted([*ROOT.glob("*.py"), *(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))])
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f.read_text() for f in FILES}
TREES = {module: ast.parse(text) for module, text in MODULES.items()}
TOP = ("layers", "model", "grow", "train", "sample")


def imports(tree):
    """The modules of the house that are imported anywhere under `tree`."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"relative import of {node.module}: say where from"
            found.update([node.module], (f"{node.module}.{alias.name}" for alias in node.names))
    return found & MODULES.keys()


def room(module):
    """(floor, room) of a module: the innermost room that it lies in."""
    return max((len(name), i, name) for i, floor in enumerate(FLOORS) for name in floor
               if f"{module}.".startswith(f"{name}."))[1:]


def test_imports_run_downwards():
    wrong = [f"{m} imports {other}" for m, tree in TREES.items() for other in imports(tree)
             if room(other)[0] > room(m)[0] or room(other)[0] == room(m)[0] and room(other) != room(m)]
    assert not wrong


def test_no_circles():
    graph = {m: imports(tree) for m, tree in TREES.items()}
    graphlib.TopologicalSorter(graph).prepare()  # its CycleError names the circle


def test_no_import_of_the_house_in_a_function():
    hidden = [f"{m}.{f.name} imports {', '.join(imports(f))}" for m, tree in TREES.items()
              for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and imports(f)]
    assert not hidden


def test_no_file_is_too_long():
    lines = {m: len(text.splitlines()) for m, text in MODULES.items()}
    assert not {m: n for m, n in lines.items() if n > (420 if m in ("layers", "model") else 400)}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_top_is_clear():
    assert sorted(f.stem for f in ROOT.glob("*.py")) == sorted(TOP)
