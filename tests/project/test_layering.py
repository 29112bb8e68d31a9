"""Who may import whom, read from the source and, where imports are indirect, from a fresh interpreter."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EDGE = sorted((ROOT / "nightgate").glob("cli*.py"))
"""The command line, the outermost edge: inside its functions it may import flows and deployments."""
LAYERS = ["nightgate", "tasks", "flows", "deployments"]
"""Each may import itself and those before it."""
MODULES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))
DATABASE = [
    "columns",
    "schema_gate",
    "schema",
    "connection",
    "database",
    "owners",
    "runs",
    "opening",
    "heartbeat",
    "slots",
    "approvals",
]
DATABASE += ["skips", "settling", "version_rows", "anchors", "freezes", "pointer", "retention", "reigns", "ledger"]
DATABASE += ["evidence_store", "outcomes", "clean", "seeds", "query", "status"]
DATABASE += ["comparison", "rescoring", "replay", "power", "handover"]
TRAINING = [
    "training",
    "worker",
    "supervisor",
    "checkpoints",
    "devices",
    "threads",
    "progress",
    "scoring",
    "encoding",
    "metrics",
    "base_models",
    "jobs",
    "golden",
    "serve_alone",
]
PURE = ["gate", *(f"gate.{path.stem}" for path in sorted((ROOT / "nightgate" / "gate").glob("[a-z]*.py")))]
PURE += ["intervals", "calibration", "diagnosis", "cards", "rendering", "reports.page", "reports.charts"]
PURE += ["comparability", "reports.confusion_chart", "reports.gate_charts"]
HEAVY = {"torch", "transformers", "pandas", "numpy", "sqlalchemy", "datasets", "evaluate", "prefect", "alembic"}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Top-level package of every import in a module, and whether it stands inside a function."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    inside = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.split(".")[0], id(node) in inside
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively: say the module's whole name"
            yield (node.module or "").split(".")[0], id(node) in inside


def loaded_by(*modules: str) -> dict[str, set[str]]:
    """Heavy packages that are loaded once each module was imported, one after the other in one interpreter."""
    code = f"""
import importlib, json, sys
loaded = {{}}
for module in {modules!r}:
    importlib.import_module(module)
    loaded[module] = sorted({HEAVY!r}.intersection(name.split(".")[0] for name in sys.modules))
print(json.dumps(loaded))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return {module: set(packages) for module, packages in json.loads(run.stdout).items()}


def light(names: Iterable[str], forbidden: set[str]) -> dict[str, set[str]]:
    """Which of the modules load what they must not."""
    modules = [f"nightgate.{name}" if name else "nightgate" for name in names]
    return {module: found & forbidden for module, found in loaded_by(*modules).items() if found & forbidden}


def test_imports_run_one_way() -> None:
    wrong = []
    for path in MODULES:
        layer = path.relative_to(ROOT).parts[0]
        above = set(LAYERS[LAYERS.index(layer) + 1 :])
        is_edge = path in EDGE
        for package, in_function in imports(path):
            if package in above and not (is_edge and in_function):
                wrong.append(f"{path.relative_to(ROOT)} imports {package}")
    assert wrong == []


def test_the_library_never_imports_prefect() -> None:
    wrong = [
        str(path.relative_to(ROOT))
        for path in (ROOT / "nightgate").rglob("*.py")
        for package, _ in imports(path)
        if package == "prefect"
    ]
    assert wrong == []


def test_migrations_import_nothing_of_ours_but_the_library() -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {package}"
        for path in (ROOT / "alembic").rglob("*.py")
        for package, _ in imports(path)
        if package in {"tasks", "flows", "deployments", "tests"}
    ]
    assert wrong == []
    revisions = (ROOT / "alembic" / "versions").glob("*.py")
    assert [str(path) for path in revisions for package, _ in imports(path) if package == "nightgate"] == [], (
        "a migration describes the past: it must not change with the library's models"
    )


def test_the_folder_of_migrations_is_no_package() -> None:
    # As a package it would shadow the installed alembic.
    assert not (ROOT / "alembic" / "__init__.py").exists()


def test_importing_nightgate_and_reading_a_configuration_load_nothing_heavy() -> None:
    assert light(["", "errors", "home", "config", "pipelines", "nights", *(path.stem for path in EDGE)], HEAVY) == {}


def test_database_modules_load_no_torch() -> None:
    assert light(DATABASE, {"torch", "transformers", "prefect"}) == {}


def test_training_modules_load_no_sqlalchemy() -> None:
    assert light(TRAINING, {"sqlalchemy", "alembic", "prefect"}) == {}


def test_the_gate_and_what_else_is_pure_load_neither_torch_nor_pandas_nor_a_database() -> None:
    assert light(PURE, HEAVY - {"numpy"}) == {}


def test_the_registry_and_the_serving_check_load_torch_only_to_open_a_model() -> None:
    modules = ["version_files", "classifier", "registry", "serving", "golden"]
    assert light(modules, {"torch", "transformers", "prefect"}) == {}


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "__init__.py"], ids=lambda path: path.stem)
def test_a_module_runs_nothing_at_import_but_definitions(path: Path) -> None:
    """No bare calls at module level, where work at import hides: `configure()`, `mkdir()`, `engine.connect()`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = [
        f"line {node.lineno}" for node in tree.body if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]
    # `app.add_typer(...)` fills a Typer app: a definition in the form of a call.
    allowed = {"cli"}
    assert not calls or path.stem in allowed, calls
