"""
The order of the house: who may import whom, and how large a file may be. Imports run one way, from
the floors above to those below; on one floor a module sees its own room, run/ and data/ each other.
"""
import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("run", "data", "lab", "tools")
GROUND = ("run.errors", "run.loss", "run.parts")  # what model.py stands on
FLOORS = dict(model=1, grow=2, run=3, data=3, train=4, lab=5, tools=5, sample=5)
FILES = sorted([*ROOT.glob("*.py"), *(f for room in ROOMS for f in (ROOT / room).rglob("*.py"))])
MODULES = {".".join(f.relative_to(ROOT).with_suffix("").parts): f.read_text() for f in FILES}
TREES = {module: ast.parse(text) for module, text in MODULES.items()}


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


def floor(module):
    return 0 if module in GROUND else FLOORS[module.split(".")[0]]


def may_import(upper, lower):
    rooms = {upper.split(".")[0], lower.split(".")[0]}
    if floor(upper) == floor(lower):
        return len(rooms) == 1 or rooms == {"run", "data"}
    return floor(upper) > floor(lower)


def test_imports_run_downwards():
    wrong = [f"{m} imports {other}" for m, tree in TREES.items() for other in imports(tree)
             if not may_import(m, other)]
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
    assert not {m: n for m, n in lines.items() if n > 400}
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_the_top_is_clear():
    assert len(list(ROOT.glob("*.py"))) <= 4
