"""Imports follow the floors: a room imports only from floors below its own, and no files import each other in a circle.

Every import counts: at the top of a file, inside a function, and under TYPE_CHECKING.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [
    {"base", "masks", "schedules"},
    {"transformer", "adafactor", "memory", "parts", "evaluation"},
    {"data", "report"},
    {"train", "analysis", "sparse"},
    {"study"},
    {"techniques"},
    {"plan"},
    {"__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS, start=1) for room in rooms}
BESIDE = {("base", "schedules")}  # on the same floor: the settings use `at_step`
NAMES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "slt_lib").rglob("*.py"))
}


def room(module: str) -> str:
    """slt_lib.base.files -> base; slt_lib.masks -> masks."""
    return module.split(".")[1]


def imported(tree: ast.AST, module: str) -> set[str]:
    """The modules of slt_lib that a file imports by name: for `from package import module` the module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in NAMES else node.module)
    return {name for name in found if name in NAMES and name != "slt_lib"} - {module}


IMPORTS = {module: imported(ast.parse(path.read_text(encoding="utf-8")), module) for module, path in NAMES.items()}
ARROWS = sorted((module, target) for module, targets in IMPORTS.items() for target in targets)


def test_every_room_has_a_floor():
    assert {room(module) for module in NAMES if module != "slt_lib"} <= FLOOR.keys()


def test_the_imports_are_found():
    text = """
import slt_lib.masks
def f():
    from slt_lib.base import store
if TYPE_CHECKING:
    from slt_lib.plan import text
"""
    assert imported(ast.parse(text), "x") == {"slt_lib.masks", "slt_lib.base.store", "slt_lib.plan"}
    assert ("slt_lib.__main__", "slt_lib.plan") in ARROWS  # imported inside a function


def test_a_room_imports_only_from_lower_floors():
    upward = [
        f"{module} (floor {FLOOR[room(module)]}) imports {target} (floor {FLOOR[room(target)]})"
        for module, target in ARROWS
        if room(module) != room(target)
        and FLOOR[room(target)] >= FLOOR[room(module)]
        and (room(module), room(target)) not in BESIDE
    ]
    assert not upward, "\n".join(upward)


def test_the_report_knows_nothing_of_studies_training_or_data():
    assert not [
        arrow for arrow in ARROWS if room(arrow[0]) == "report" and room(arrow[1]) in ("study", "train", "data")
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The names along one circle of the graph; empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circle_of_files():
    assert not circle(IMPORTS)
