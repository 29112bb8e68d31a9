"""One night for several test modules: run once per session on the real command line, and copied where it is changed."""

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
    folder = Path(os.environ["TESTS_SHARED_ROOT"]) / "first"
    with FileLock(folder.with_suffix(".lock")):
        if not (folder / "done.pickle").exists():
            folder.mkdir()
            pipeline = write_pipeline(folder)
            recipe = 'epochs = 2\nmetrics = ["matthews_correlation", "f1"]'
            pipeline.write_text(pipeline.read_text().replace("epochs = 2", recipe), encoding="utf-8")
            arguments = ("run", pipeline, "--night", NIGHT, "--no-prefect")
            done = nightgate(*arguments, cwd=folder, env={"NIGHTGATE_HOME": str(folder / "home")}, umask=0o022)
            assert done.returncode == 0, done.stderr
            (folder / "done.pickle").write_bytes(pickle.dumps(done))
    done = pickle.loads((folder / "done.pickle").read_bytes())
    return FirstNight(folder / "small.toml", folder / "home", done)


def copy_first_night(home: Path) -> FirstNight:
    """A copy of the night in another home; paths in the database are relative."""
    first = first_night()
    shutil.copytree(first.home, home, symlinks=True)
    return FirstNight(first.pipeline, home, first.done)
