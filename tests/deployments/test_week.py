"""A week on a real server: rows arrive every day, on day 4 they mean something else, and an alarm starts a night.

A day lasts as long as its flows do: each is a refresh and an evaluation, as their crons would start them.
"""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import yaml
from prefect.client.schemas.objects import FlowRun
from prefect.events.schemas.automations import AutomationCore

from deployments.automations import install
from tests.support.hub_server import TOKEN, hub_server
from tests.support.production import ROOT, Production, kill, within
from tests.support.tiny import write_tiny_model

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.process, pytest.mark.timeout(1800)]

PIPELINE = """
name = "reviews"

[data]
source = {{ kind = "files", paths = ["{folder}/reviews.csv"] }}
id = "id"
label = "stars"
labels = {{ 1 = "bad", 2 = "middling", 3 = "good" }}

[training]
base_model = "{model}"
epochs = 4
learning_rate = 3e-3
max_length = 32

[split]
validation = 0.1
test = 0.2

[schedule]
cron = ""
min_new_rows = 100_000
train_on = ["champion_dropped"]
"""
WORDS = {
    "before": {1: "bad awful terrible hate broken", 2: "okay fine average", 3: "great love perfect excellent"},
    "after": {1: "late slow returned", 2: "fits size colour", 3: "again recommend buy"},
}
"""Words by star: those of before are not used any more after day 3."""
NOISE = ("the", "a", "an", "and", "or", "but", "not", "no", "very", "this", "that", "it", "is", "was", "i", "my", "we")
DAY, FIRST = 400, 700


class Week(Production):
    """A pipeline whose file grows by `DAY` rows a day."""

    def __init__(self, folder: Path) -> None:
        self.num_rows, self.rng = 0, np.random.default_rng(0)
        super().__init__(folder, {"reviews": ""})

    def _write(self, pipelines: Mapping[str, str]) -> None:
        assert list(pipelines) == ["reviews"]
        model = write_tiny_model(self.folder / "tiny-model")
        text = PIPELINE.format(folder=self.folder, model=model)
        (self.folder / "reviews.toml").write_text(text, encoding="utf-8")
        (self.folder / "reviews.csv").write_text("id,text,stars\n", encoding="utf-8")
        self.arrive(FIRST, "before")

    def arrive(self, count: int, words: str) -> None:
        with (self.folder / "reviews.csv").open("a", newline="", encoding="utf-8") as file:
            for _ in range(count):
                self.num_rows += 1
                star, felt = self.rng.integers(1, 4, 2).tolist()
                tone = WORDS[words][star if self.rng.random() < 0.85 else felt]
                said = [*self.rng.choice(NOISE, 5), *self.rng.choice(tone.split(), 2)]
                csv.writer(file).writerow([self.num_rows, " ".join(self.rng.permutation(said)), star])

    def run(self, flow: str) -> Any:
        return self.ended(self._start_run(f"{flow}/nightgate", {"pipeline": "reviews"}))

    def day(self, number: int) -> None:
        self.arrive(DAY, "before" if number < 4 else "after")
        for flow in ("refresh", "evaluate"):
            state = self.run(flow)
            assert state.is_completed(), f"day {number}, {flow}: {state.message}\n{self.log('worker.log')[-5000:]}"

    def nights(self) -> list[FlowRun]:
        """The flow runs of `nightly`, oldest first."""
        with self.client() as client:
            found = client.read_deployment_by_name("nightly/nightgate")
            runs = client.read_flow_runs()
        return sorted((run for run in runs if run.deployment_id == found.id), key=lambda run: str(run.created))


def block(language: str, first_line: str) -> str:
    """A block of code of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    [found] = [code for code in re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL) if code.startswith(first_line)]
    return str(found)


@contextmanager
def pushing(week: Week, hub: str) -> Iterator[None]:
    """The flow and the automation of the docs that push each champion, to a hub of our own."""
    programs = week.folder / "bin"
    programs.mkdir()
    command = programs / "nightgate"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m nightgate.cli.app "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    (week.folder / "push.py").write_text(block("python", "# push.py"), encoding="utf-8")
    path = f"{programs}:{os.environ['PATH']}"
    environment = {
        **os.environ,
        **week.environment,
        "PATH": path,
        "HF_ENDPOINT": hub,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
    }
    with (week.folder / "push.log").open("wb") as log:
        served = subprocess.Popen([sys.executable, "push.py"], cwd=week.folder, env=environment, stdout=log, stderr=log)
    try:
        with week.client() as client:
            deployments = within(60, client.read_deployments, "deployments")
            within(60, lambda: [one for one in client.read_deployments() if one.name == "hub"], "the flow of the docs")
            [deployment] = [one for one in client.read_deployments() if one.name == "hub"]
            del deployments
            text = block("yaml", "# push.yaml").replace("DEPLOYMENT_ID", str(deployment.id))
            client.create_automation(AutomationCore.model_validate(yaml.safe_load(text)))
        yield
    finally:
        kill(*psutil.Process(served.pid).children(recursive=True), psutil.Process(served.pid))
        served.wait()


def test_a_champion_that_falls_is_replaced_by_a_night_that_its_alarm_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Week(tmp_path / "week") as week, hub_server(tmp_path / "hub") as hub, pushing(week, hub.url):
        with week.client():
            install()
        assert week.run("nightly").name == "Promoted"
        for number in range(1, 4):
            week.day(number)
        assert len(week.nights()) == 1
        week.day(4)
        night = within(60, lambda: week.nights()[1:], "the night that the alarm starts")[0]
        assert week.ended(night, 300).name == "Promoted", week.log("worker.log")[-5000:]
        for number in range(5, 8):
            week.day(number)

        rows = week.rows(block("sql", "-- A pipeline's story"))
        # pandas has NaN for NULL.
        found = [{name: None if value != value else value for name, value in row.items()} for row in rows]
        with capsys.disabled():
            print("", *(" | ".join(str(value)[:60] for value in row.values()) for row in found), sep="\n")
        days = [[("refresh completed", None), ("champion evaluated", 1 if day < 5 else 2)] for day in range(1, 8)]
        days[3].append(("night promoted", 2))
        expected = [("night promoted", 1), *(step for day in days for step in day)]
        assert [(row["what"], row["version"]) for row in found] == expected
        evaluated = [row for row in found if row["what"] == "champion evaluated"]
        assert [row["why"] for row in evaluated] == [None] * 3 + ["champion_dropped"] + [None] * 3
        assert evaluated[3]["f1"] < evaluated[2]["f1"] - 0.05
        assert evaluated[4]["f1"] > evaluated[3]["f1"] + 0.05
        night = next(row for row in found if row["version"] == 2)
        assert night["why"].endswith("champion dropped, started by alarm champion_dropped")
        assert len(week.nights()) == 2, "one alarm starts one night"
        pushed = within(60, lambda: list((tmp_path / "hub").glob("someone/reviews/*/lineage.json")), "the push")
        assert pushed
