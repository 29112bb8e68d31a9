"""`make demo`: a night that promotes, one whose broken feed is stopped, one with better data whose candidate wins."""

from __future__ import annotations

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

import pytest

from nightgate.data.refresh import Refreshed, refresh
from nightgate.data.snapshots import open_snapshot
from nightgate.errors import DataCheckError
from nightgate.home import open_home
from nightgate.pipeline_files import load_pipeline
from nightgate.schedule import chosen_night
from tests.support.night import nightgate

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
NIGHTS = ("2026-01-05", "2026-01-06", "2026-01-07")


def test_the_makefile_runs_the_three_nights_and_its_query_is_that_of_the_readme() -> None:
    assert tuple(re.findall(r"nightgate run sample --night (\S+)", MAKEFILE)) == NIGHTS
    [query] = re.findall(r'query = """\n(.*?)"""', MAKEFILE, flags=re.DOTALL)
    assert query in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_broken_feed_is_stopped_by_three_checks_and_costs_nothing(tmp_path: Path) -> None:
    pipeline, home = load_pipeline("sample"), open_home(tmp_path)

    def take_in(night: str, previous: Refreshed | None = None) -> Refreshed:
        chosen = chosen_night(pipeline.schedule, date.fromisoformat(night))
        return refresh(pipeline, chosen, home, previous.snapshot.path if previous else None)

    first = take_in(NIGHTS[0])
    with pytest.raises(DataCheckError) as raised:
        take_in(NIGHTS[1], first)
    failed = {one.name for one in raised.value.checks if one.outcome == "failed"}
    assert failed == {"rows", "quarantined", "labels"}
    assert [path.name for path in (home.snapshots / "sample").glob("s-*")] == [first.snapshot.id]

    mended = take_in(NIGHTS[2], first)
    assert {one.outcome for one in mended.checks} == {"passed", "not_run"}
    assert mended.rows_total > 1.9 * first.rows_total
    before = set(open_snapshot(first.snapshot.path).text_keys().tolist())
    kept = before & set(mended.snapshot.text_keys().tolist())
    # Two of eight days have left the shop's window.
    assert 0.7 < len(kept) / len(before) < 0.8


@pytest.mark.slow
@pytest.mark.process
def test_the_demo_tells_its_story(tmp_path: Path) -> None:
    """With the real base model: minutes."""
    env = {"NIGHTGATE_HOME": str(tmp_path / "home")}
    done = [nightgate("run", "sample", "--night", night, "--no-prefect", cwd=ROOT, env=env) for night in NIGHTS]
    assert [one.returncode for one in done] == [0, 1, 0], "".join(one.stderr for one in done)
    assert "nothing was taken in" in done[1].stderr
    [ask] = re.findall(r"define ASK\n(.*?)endef", MAKEFILE, flags=re.DOTALL)
    printed = subprocess.run([sys.executable, "-c", ask], env=env, cwd=ROOT, capture_output=True, text=True, check=True)
    assert re.findall(r"(2026-01-0\d) +(promoted|held|failed)", printed.stdout) == [
        *zip(NIGHTS, ("promoted", "failed", "promoted"), strict=True)
    ]
