"""A small real pipeline for tests that run whole nights: synthetic reviews, a tiny random model, seconds an epoch."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from tests.support.tiny import write_tiny_model

NIGHT = "2026-01-05"

PIPELINE = """
name = "{name}"

[data]
source = {{ kind = "sample", rows_per_day = 30, days = 10 }}
id = "review_id"
text = "text"
label = "stars"
labels = [1, 2, 3, 4, 5]
time = "created_at"
slices = ["product"]

[training]
base_model = "{model}"
epochs = 2
learning_rate = 1e-3
max_length = 32

[gate]
# The scores of so small a model mean nothing: these nights test everything else.
min_f1 = 0.0
policy = "threshold_only"
max_share_gap = 1.0
max_calibration_error = 1.0
max_latency_ratio = 100.0
"""


def write_pipeline(folder: Path, name: str = "small") -> Path:
    """`folder/<name>.toml` with a tiny model beside it."""
    model = write_tiny_model(folder / "tiny-model")
    path = folder / f"{name}.toml"
    path.write_text(PIPELINE.format(name=name, model=model), encoding="utf-8")
    tomllib.loads(path.read_text(encoding="utf-8"))
    return path


def command(*arguments: object) -> list[str]:
    """The command line of `nightgate ARGUMENTS` in this installation."""
    return [sys.executable, "-m", "nightgate.cli.app", *map(str, arguments)]


def nightgate(*arguments: object, cwd: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command as a user does, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "200"}
    environment |= options.pop("env", {})
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        **options,
    )


TRAPS = ("tasks", "flows", "nightgate", "deployments", "prefect", "torch")


def set_traps(folder: Path) -> None:
    """Write modules with names of installed ones, each of which leaves a file when it is executed."""
    for name in TRAPS:
        text = "import pathlib\npathlib.Path(__file__).with_suffix('.executed').touch()\nraise ImportError(__file__)\n"
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
