"""A training process that hangs while it keeps reporting the same step."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path


def stand_in(path: Path, *, hangs: int) -> str:
    """A `python` that reports the same step for ever the first `hangs` times, and is the real one afterwards."""
    code = f"""
        #!{sys.executable}
        import json, os, pathlib, sys, time
        times = pathlib.Path({str(path)!r} + ".times")
        times.write_text((times.read_text() if times.exists() else "") + "x")
        if len(times.read_text()) > {hangs}:
            os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])
        while True:
            step = {{"event": "progress", "phase": "train", "epoch": 2, "epochs": 3, "step": 7, "total_steps": 9}}
            print(json.dumps(step | {{"eta_seconds": time.time() % 60}}), flush=True)
            time.sleep(0.1)
    """
    path.write_text(textwrap.dedent(code).lstrip())
    path.chmod(0o755)
    return str(path)
