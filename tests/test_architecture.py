"""Who may import whom (docs/ARCHITECTURE.md), no cycle, settings in two places, short files."""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Set
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "retort"
CORE = frozenset({"core"})
ON_CORE = ("wire", "services", "sql", "hostfs", "oci", "sandbox")  # siblings; never each other

ABOVE = {*ON_CORE, "core", "node", "placement", "api", "client", "config"}

#: Package or module -> what of ours it may import, besides itself and what everyone may.
MAY_IMPORT: dict[str, Set[str]] = {
    "errors": frozenset(),
    "units": frozenset(),
    "core": frozenset(),
    **dict.fromkeys(ON_CORE, CORE),
    "node": {"core", "hostfs", "oci", "sandbox"},
    "placement": {"core", "node"},
    "api": {"core", "wire", "services"},
    "client": {"core", "wire"},
    "config": {"core"},
    **dict.fromkeys(("wiring", "embedded"), ABOVE),
    "cli": {"config", "wiring", "client", "core"},  # core: what it prints
}
EVERYONE = {"errors", "units", "__init__"}

#: Longer than 500 lines -> how long it may be, and why it is still one subject.
LONG_FILES: dict[str, int] = {
    "node/engine.py": 560,  # one state that all its events change; what it calls is in other files
}
MAX_LINES = 500

FILES = sorted(path.relative_to(SOURCE) for path in SOURCE.rglob("*.py"))


def room(parts: tuple[str, ...]) -> str:
    """The package, or the module beside the packages, that a module path starts with."""
    return Path(parts[0]).stem if parts else "__init__"


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported(tree: ast.AST) -> set[str]:
    """Names after `retort.` that a file imports when it runs, also inside functions."""
    found: set[str] = set()
    rest: list[ast.AST] = [tree]
    while rest:
        node = rest.pop()
        if is_for_types(node):
            continue
        rest.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.ImportFrom):
            assert not node.level, "imports are absolute here"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name.partition(".")[2] for name in found if name.split(".")[0] == "retort"}


def module_of(name: str) -> str:
    """The file that an imported name lives in: `core.run.Outcome` -> `core/run.py`."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        path = "/".join(parts[:count])
        for file in (f"{path}.py", f"{path}/__init__.py"):
            if Path(file) in FILES:
                return file
    return "__init__.py"


IMPORTS = {file: imported(ast.parse((SOURCE / file).read_text("utf-8"))) for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_only_what_its_room_may(file: Path) -> None:
    own = room(file.parts)
    if own == "__init__":
        assert not IMPORTS[file]
        return
    used = {room(Path(module_of(name)).parts) for name in IMPORTS[file]}
    assert used <= MAY_IMPORT[own] | EVERYONE | {own}


def test_no_import_cycle() -> None:
    graph = {
        str(file): {module_of(name) for name in names} - {str(file)}
        for file, names in IMPORTS.items()
    }
    graphlib.TopologicalSorter(graph).prepare()  # CycleError names the cycle


def test_settings_are_read_by_wiring_and_cli_only() -> None:
    readers = {room(file.parts) for file, names in IMPORTS.items() if any(
        module_of(name).startswith("config/") for name in names)}  # fmt: skip
    assert readers <= {"config", "wiring", "cli", "embedded"}


def test_every_room_has_its_row() -> None:
    assert {room(file.parts) for file in FILES} <= MAY_IMPORT.keys() | {"__init__"}


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_is_short_enough_to_be_one_subject(file: Path) -> None:
    lines = len((SOURCE / file).read_text("utf-8").splitlines())
    assert lines <= LONG_FILES.get(str(file), MAX_LINES)


def test_packages_do_nothing_when_imported() -> None:
    allowed = (ast.Expr, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)
    for file in FILES:
        if file.name == "__init__.py" and "migrations" not in file.parts:
            body = ast.parse((SOURCE / file).read_text("utf-8")).body
            assert all(isinstance(node, allowed) for node in body), file
