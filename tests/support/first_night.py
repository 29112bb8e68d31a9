"""Nights for several test modules: run once per session on the real command line, and copied where they are changed."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from filelock import FileLock

from tests.support.night import NIGHT, nightgate, write_pipeline


@dataclass(frozen=True)
class FirstNight:
    """A pipeline `small` with two metrics of its own, whose night of `NIGHT` promoted version 1."""

    pipeline: Path
    home: Path
    done: subprocess.CompletedProcess[str]


@cache
def first_night() -> FirstNight:
    """The night that all processes of the session share: read it, never change it."""
    folder = _shared() / "first"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            folder.mkdir()
            pipeline = write_pipeline(folder)
            recipe = 'epochs = 2\nmetrics = ["matthews_correlation", "f1"]'
            pipeline.write_text(pipeline.read_text().replace("epochs = 2", recipe), encoding="utf-8")
        return _run(folder / "small.toml", folder / "home", exit_code=0)


@cache
def held_night() -> FirstNight:
    """The same night again in a copy of that home, held by its gate: one epoch in bf16, `start_from = "champion"`."""
    folder = _shared() / "held"
    with FileLock(folder.with_suffix(".lock")):
        if not folder.exists():
            copy_first_night(folder / "home")
        settings = ("training.epochs=1", "training.precision=bf16", "training.start_from=champion", "gate.min_f1=0.99")
        options = [part for setting in settings for part in ("--set", setting)]
        return _run(first_night().pipeline, folder / "home", "--force", "--fail-on-held", *options, exit_code=3)


def _shared() -> Path:
    return Path(os.environ["TESTS_SHARED_ROOT"])


def _run(pipeline: Path, home: Path, *options: str, exit_code: int) -> FirstNight:
    """`nightgate run`, unless a process of the session has run it."""
    kept = home.parent / "done.pickle"
    if not kept.exists():
        arguments = ("run", pipeline, "--night", NIGHT, "--no-prefect", *options)
        done = nightgate(*arguments, cwd=home.parent, env={"NIGHTGATE_HOME": str(home)}, umask=0o022)
        assert done.returncode == exit_code, done.stderr
        kept.write_bytes(pickle.dumps(done))
    return FirstNight(pipeline, home, pickle.loads(kept.read_bytes()))


def copy_first_night(home: Path) -> FirstNight:
    """A copy of the night in another home; paths in the database are relative."""
    first = first_night()
    shutil.copytree(first.home, home, symlinks=True)
    return FirstNight(first.pipeline, home, first.done)
