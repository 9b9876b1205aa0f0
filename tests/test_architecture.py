"""The rooms of `cae/` and which may import which: the rule of ARCHITECTURE.md."""

import ast
import re
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

ROOMS = [
    "utils",
    "config",
    "kernels",
    "metrics",
    "encoders",
    "data",
    "text",
    "method",
    "models",
    "callbacks",
    "results",
    "report",
    "api",
    "app",
    "evaluation",
    "cli",
]
"""From the ground up: a room imports from itself and from those before it."""


def modules() -> dict[str, Path]:
    """Every module below `cae` by its dotted name."""
    found = {}
    for path in sorted(file for folder in ("cae", "kernels", "callbacks") for file in (ROOT / folder).rglob("*.py")):
        parts = [*path.relative_to(ROOT).with_suffix("").parts]
        if parts[0] != "cae":
            parts = ["cae", *parts]
        found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(module: str, path: Path, names: set[str]) -> set[str]:
    """The modules among `names` that a module imports anywhere, inside functions and for type checkers, too."""
    found = set()
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            # The kernels are published on their own as well, and then do not know under which name: see hub/lay_out.py.
            assert not node.level or room(module) == "kernels", f"{path} imports by a relative path"
            source = resolve_name("." * node.level + (node.module or ""), package)
            parts = {f"{source}.{alias.name}" for alias in node.names}
            found |= {part if part in names else source for part in parts}
    return found & names


def room(module: str) -> str:
    return module.split(".")[1]


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    """What each module imports; the package's own `__init__` and `__main__` stand outside the rooms."""
    found = modules()
    inside = {name for name in found if name not in ("cae", "cae.__main__")}
    return {name: imports(name, found[name], inside) - {name} for name in inside}


def test_every_module_lies_in_a_room(graph):
    assert {room(module) for module in graph} == set(ROOMS)


def test_rooms_import_from_those_below_them_only(graph):
    upward = [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in others
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert upward == []


def test_there_are_no_circles(graph):
    TopologicalSorter(graph).prepare()  # raises CycleError with the modules of a circle


def test_the_kernels_import_nothing_of_cae(graph):
    assert {room(other) for module in graph if room(module) == "kernels" for other in graph[module]} == {"kernels"}


def test_the_method_knows_no_lightning():
    for name, path in modules().items():
        if name.startswith("cae.method"):
            assert not re.search(r"^\s*(from|import) lightning", path.read_text(encoding="utf-8"), re.MULTILINE), name


def test_the_page_names_every_room_in_this_order():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert [row.removesuffix(".py").strip("/") for row in rows] == ROOMS
