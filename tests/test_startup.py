"""The start and the end of a command."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from nightgate.startup import load_early


def test_what_was_imported_is_not_searched_for_garbage_at_the_end() -> None:
    code = """
import atexit, gc
# Registered first, so that it runs last.
atexit.register(lambda: print(gc.get_freeze_count() > 10_000, gc.isenabled()))
from nightgate.startup import spare_the_collector
spare_the_collector()
import pydantic, json, asyncio
print(gc.get_threshold()[0] > 10_000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "True", "True"]


def test_a_module_is_there_when_it_is_needed_and_a_broken_one_tells_it_to_whoever_needs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_to_import.py").write_text("VALUE = 7")
    (tmp_path / "broken_at_import.py").write_text("raise ValueError('broken')")
    monkeypatch.syspath_prepend(tmp_path)
    load_early("broken_at_import", "slow_to_import").join(10)
    assert sys.modules.pop("slow_to_import").VALUE == 7
    with pytest.raises(ValueError, match="broken"):
        import broken_at_import  # type: ignore[import-not-found]  # noqa: F401
