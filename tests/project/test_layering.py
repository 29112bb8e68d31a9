"""Which folder may import which, that nothing is re-exported and that no imports form a circle, read from the source;
what imports load is asked of a fresh interpreter.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LAYERS = ["nightgate", "tasks", "flows", "deployments", "benchmarks"]
"""Each may import itself and those before it."""
SHARED = {"config"}
"""Folders that all share, like the modules beside them."""
ROOMS = [
    {"sources"},
    {"data", "engine", "metrics"},
    {"database"},
    {"frames", "gate"},
    {"models"},
    {"training"},
    {"runs"},
    {"registry"},
    {"analysis", "pages", "prediction"},
    {"operations", "reports", "setup"},
    {"night"},
    {"cli"},
]
"""Folders of `nightgate/`, from the bottom: each imports only lower rows and what all share."""
LARGEST_FOLDER = 16
HEAVY = {"torch", "transformers", "pandas", "numpy", "sqlalchemy", "datasets", "evaluate", "prefect", "alembic"}
LIGHT = (
    {
        # What `nightgate --help` and reading a configuration load.
        "nightgate": HEAVY,
        "nightgate.pipeline_files": HEAVY,
        "nightgate.schedule": HEAVY,
        "nightgate.cli.app": HEAVY,
        "nightgate.gate": HEAVY - {"numpy"},
        "nightgate.metrics": HEAVY - {"numpy"},
        "nightgate.frames": {"torch", "transformers", "datasets", "evaluate", "prefect"},
        # Thirty nights may wait for their slot at once: what needs torch runs in processes of its own.
        "nightgate.night": {"torch", "transformers", "evaluate", "prefect"},
        "nightgate.pages": {"torch", "transformers", "evaluate", "prefect"},
        "nightgate.reports": {"torch", "transformers", "evaluate", "prefect"},
        "nightgate.setup": {"torch", "transformers", "evaluate", "prefect"},
        "nightgate.database": {"torch", "transformers", "prefect"},
        "nightgate.runs": {"torch", "transformers", "prefect"},
        "nightgate.registry": {"torch", "transformers", "prefect"},
        "nightgate.analysis": {"torch", "transformers", "prefect"},
    },
    {
        "nightgate.engine": {"sqlalchemy", "alembic", "prefect"},
        "nightgate.training": {"sqlalchemy", "alembic", "prefect"},
    },
)
"""What importing a module, or each module of a folder, must not load. Those of a dictionary are imported one after
the other by one interpreter: the strictest come first."""


@cache
def modules() -> dict[str, ast.Module]:
    """Every module of ours by its dotted name; a package by its folder's."""
    found = {}
    for layer in LAYERS:
        for path in (ROOT / layer).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports(name: str, *, inside_functions: bool = True) -> Iterator[tuple[str, str]]:
    """Each import of one of our modules: the module, and the name that is taken from it ('' for the module itself)."""
    tree = modules()[name]
    skipped = set()
    if not inside_functions:
        skipped = {
            id(child)
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types_only(node)
            for child in ast.walk(node)
        }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names if alias.name in modules())
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: write the module's whole name"
            for alias in node.names:
                if f"{node.module}.{alias.name}" in modules():
                    yield f"{node.module}.{alias.name}", ""
                elif node.module in modules():
                    yield str(node.module), alias.name


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def room(module: str) -> int:
    """The row of a module's folder; -1 for what all share."""
    folder = module.split(".")[1] if "." in module else ""
    return next((row for row, folders in enumerate(ROOMS) if folder in folders), -1)


def in_library(module: str) -> bool:
    return module.split(".")[0] == "nightgate"


def test_layers_import_one_way() -> None:
    # The command line is the outermost edge: inside its functions it starts flows and deployments.
    wrong = [
        f"{module} imports {target}"
        for module in modules()
        for target, _ in imports(module, inside_functions=not module.startswith("nightgate.cli."))
        if LAYERS.index(target.split(".")[0]) > LAYERS.index(module.split(".")[0])
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_import_one_way() -> None:
    wrong = [
        f"{module} imports {target}"
        for module in modules()
        if in_library(module) and module != "nightgate"
        for target, _ in imports(module)
        if in_library(target)
        and target.split(".")[1:2] != module.split(".")[1:2]
        and room(target) >= 0
        and room(target) >= room(module)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_folder_of_the_library_has_its_row() -> None:
    assert {path.parent.name for path in (ROOT / "nightgate").glob("*/__init__.py")} == SHARED.union(*ROOMS)


def test_folders_are_small() -> None:
    sizes = {
        str(folder.relative_to(ROOT)): len([path for path in folder.glob("*.py") if path.stem != "__init__"])
        for layer in ("nightgate", "tasks", "flows", "deployments")
        for folder in (path.parent for path in (ROOT / layer).rglob("__init__.py"))
    }
    sizes.pop("nightgate")  # what all rooms share
    assert {folder: size for folder, size in sizes.items() if size > LARGEST_FOLDER} == {}


def test_no_imports_form_a_circle() -> None:
    graph = {
        module: {target for target, _ in imports(module) if target != "nightgate"}
        for module in modules()
        # The public names of the package are loaded on demand; the command line imports flows inside its functions.
        if module != "nightgate"
    }
    TopologicalSorter(graph).prepare()


def test_names_are_imported_from_where_they_are_defined() -> None:
    wrong = [
        f"{module} takes {name} from {target}"
        for module in modules()
        for target, name in imports(module)
        if name and name not in _defined(target)
    ]
    assert not wrong, "\n".join(wrong)


@cache
def _defined(module: str) -> set[str]:
    names: set[str] = {"__version__"}
    for node in ast.walk(modules()[module]):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    if module == "nightgate":
        names |= {"champion", "history", "load_champion", "versions"}
    return names


def test_the_library_never_imports_prefect() -> None:
    assert [name for name in modules() if in_library(name) and "prefect" in _packages(modules()[name])] == []


def test_migrations_import_nothing_of_ours_but_what_runs_them() -> None:
    ours = {*LAYERS, "tests"}
    packages = {
        path: _packages(ast.parse(path.read_text(encoding="utf-8"))) for path in (ROOT / "alembic").rglob("*.py")
    }
    assert packages.pop(ROOT / "alembic" / "env.py") & ours == {"nightgate"}
    # A migration describes the past: it must not change with the library's models.
    assert [str(path) for path, found in packages.items() if found & ours] == []


def test_the_folder_of_migrations_is_no_package() -> None:
    # As a package it would shadow the installed alembic.
    assert not (ROOT / "alembic" / "__init__.py").exists()


def _packages(tree: ast.Module) -> set[str]:
    """Top-level names of all that a module imports."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


@pytest.mark.process
@pytest.mark.parametrize("places", LIGHT, ids=["without torch", "with torch"])
def test_importing_loads_nothing_heavier_than_it_needs(places: dict[str, set[str]]) -> None:
    wanted = [
        (name, place)
        for place in places
        for name in sorted(modules())
        if name == place or (room(place) >= 0 and name.startswith(f"{place}."))
    ]
    code = f"""
import importlib, json, sys
loaded = {{}}
for module, place in {wanted!r}:
    importlib.import_module(module)
    loaded[module] = sorted({places!r}[place].intersection(name.split(".")[0] for name in sys.modules))
print(json.dumps(loaded))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert {module: packages for module, packages in json.loads(run.stdout).items() if packages} == {}


def test_modules_run_nothing_at_import_but_definitions() -> None:
    """No bare calls at module level, where work at import hides: `configure()`, `mkdir()`, `engine.connect()`."""
    calls = [
        f"{name}:{node.lineno}"
        for name, tree in modules().items()
        for node in tree.body
        # `app.add_typer(...)` fills a Typer app: a definition in the form of a call.
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and name != "nightgate.cli.app"
    ]
    assert calls == []
