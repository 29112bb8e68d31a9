"""A run goes on when the worker that read its output is gone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
NIGHT = """
import logging, sys
from pathlib import Path
from prefect.logging.configuration import setup_logging
from flows.closed_console import survive_closed_console

setup_logging()
log = logging.getLogger("nightgate.flows")
if sys.argv[1] == "survive":
    survive_closed_console()
print("ready", flush=True)
sys.stdin.readline()  # wait until the reader is gone
for number in range(3):
    log.error("epoch %d", number)
Path(sys.argv[2]).write_text("done")
"""


@pytest.mark.parametrize("kept", [True, False], ids=["with ours", "Prefect alone"])
def test_a_night_survives_a_closed_console_and_would_not_by_prefect_alone(tmp_path: Path, kept: bool) -> None:
    command = [sys.executable, "-c", NIGHT, "survive" if kept else "", str(tmp_path / "end")]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as night:
        assert night.stdin is not None
        assert night.stdout is not None
        while night.stdout.readline() != b"ready\n":
            assert night.poll() is None
        night.stdout.close()
        night.stdin.close()
        night.wait(30)
    assert (tmp_path / "end").exists() == kept
