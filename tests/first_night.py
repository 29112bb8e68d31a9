"""One night that several modules look at: run once per session by the real command line, copied where it is changed."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.night import NIGHT, nightgate, write_pipeline


@dataclass(frozen=True)
class FirstNight:
    """A pipeline `small` whose night of `NIGHT` promoted version 1."""

    pipeline: Path
    home: Path
    done: subprocess.CompletedProcess[str]


@cache
def first_night(session_root: Path) -> FirstNight:
    """Shared by the session: read it, never change it."""
    folder = session_root / "first"
    folder.mkdir()
    pipeline = write_pipeline(folder)
    arguments = ("run", pipeline, "--night", NIGHT, "--no-prefect")
    done = nightgate(*arguments, cwd=folder, env={"NIGHTGATE_HOME": str(folder / "home")})
    assert done.returncode == 0, done.stderr
    return FirstNight(pipeline, folder / "home", done)


def copy_first_night(session_root: Path, home: Path) -> FirstNight:
    """The same night in a home of the test's own: paths in the database are relative, so a home can be copied."""
    first = first_night(session_root)
    shutil.copytree(first.home, home, symlinks=True)
    return FirstNight(first.pipeline, home, first.done)
