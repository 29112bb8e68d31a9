"""The whole way of a person through Prefect's UI: a real server, a real `nightgate serve`, and Chromium to click in it.

Bounds are for two busy cores, where a night of the small pipeline takes 20 to 60 s: whatever is looked for on a page is
there within 30 s, and a verdict within `SECONDS_OF_A_NIGHT`; where a test holds another bound it says so.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import httpx
import psutil
import pytest

from tests.conftest import csrf_headers, free_port
from tests.support.night import command, write_pipeline
from tests.support.prefect_ui import INSTALL, PrefectUI, browser_path, chromium
from tests.support.production import within

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator

# Read at import: before a test, the environment is scrubbed of the developer's settings.
BROWSER = browser_path()

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not BROWSER, reason=f"no Chromium to drive: {INSTALL}"),
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="no Playwright: pip install 'nightgate[dev]'"
    ),
]

ROOT = Path(__file__).parents[2]
NIGHT = "2026-01-05"
SECONDS_OF_A_NIGHT = 150
"""From the click to the verdict on the page."""


@dataclass
class Served:
    """A running `nightgate serve` with a server of its own."""

    process: subprocess.Popen[bytes]
    url: str
    home: Path
    log: Path

    def rows(self, query: str, *parameters: Any) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self.home / "metrics.db", timeout=30)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, parameters)]

    def night(self, prefect_run: str) -> dict[str, Any]:
        """The night that a run of Prefect's belongs to."""
        (night,) = self.rows("SELECT * FROM nightly_runs WHERE prefect_flow_run_id = ?", prefect_run)
        return night

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Ask the API, again where its SQLite file is locked for a moment."""

        def answered() -> httpx.Response | None:
            answer = httpx.request(
                method, f"{self.url}/api{path}", headers=csrf_headers(self.url), timeout=20, **options
            )
            return None if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE else answer

        return within(60, answered, f"the answer to {path}").raise_for_status().json()

    def start(self, deployment: str, **parameters: Any) -> str:
        """Start a run through the API, as an automation does."""
        found = self.ask("GET", f"/deployments/name/{deployment}")
        started = self.ask("POST", f"/deployments/{found['id']}/create_flow_run", json={"parameters": parameters})
        return str(started["id"])

    def ended(self, query: str) -> list[dict[str, Any]]:
        """Nights of the query later than the first one, without those at work."""
        return [row for row in self.rows(query, NIGHT) if row["status"] != "running"]

    def runs(self) -> list[dict[str, Any]]:
        """All runs that the server knows, but for those that are scheduled."""
        found: list[dict[str, Any]] = self.ask("POST", "/flow_runs/filter", json={})
        return [run for run in found if run["state_type"] != "SCHEDULED"]

    def named(self, beginning: str) -> dict[str, Any]:
        """The one run whose name begins so."""
        [found] = [run for run in self.runs() if run["name"].startswith(beginning)]
        return found

    def run(self, run_id: str) -> dict[str, Any]:
        """A run as the server knows it."""
        found: dict[str, Any] = self.ask("GET", f"/flow_runs/{run_id}")
        return found

    def started(self) -> set[str]:
        """The runs that a test started, by id."""
        return {
            run["id"] for run in self.ask("POST", "/flow_runs/filter", json={}) if "auto-scheduled" not in run["tags"]
        }

    def work(self) -> list[psutil.Process]:
        """Processes of nights: what serve has started, and is no server."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                line = " ".join(child.cmdline())
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
            if line and "flows.own_server" not in line and "resource_tracker" not in line:
                found.append(child)
        return found


@pytest.fixture(scope="module")
def served(session_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Three pipelines: `reviews` and `careful` take seconds, `endless` trains until it is stopped."""
    folder = tmp_path_factory.mktemp("served")
    hour = (datetime.now(UTC).hour + 12) % 24
    files = [write_pipeline(folder, name) for name in ("reviews", "careful", "endless")]
    for file in files:
        text = file.read_text() + f'\n[schedule]\ncron = "30 {hour} * * *"\n'
        if file.stem == "endless":
            text = text.replace("epochs = 2", "epochs = 1000")
        if file.stem == "reviews":  # on a schedule of its own, so that nights do not
            text += 'predict = { cron = "0 0 1 1 *" }\n[predict]\noutput = "predicted.csv"\n'
            text += 'source = { kind = "sample", rows_per_day = 3, days = 2 }\n'
        file.write_text(text)
    url, log = f"http://127.0.0.1:{free_port()}", folder / "serve.log"
    own = {
        "NIGHTGATE_HOME": str(folder / "home"),
        "PREFECT_HOME": str(session_root / "browser-server"),
        "PREFECT_SERVER_API_PORT": url.split(":")[-1],
        # Not the copy in the installed package, which servers of all projects share.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(session_root / "browser-ui"),
        "PYTHONPATH": str(ROOT),
    }
    with log.open("ab") as output:
        process = subprocess.Popen(
            command("serve", *files), cwd=folder, env={**os.environ, **own}, stdout=output, stderr=output
        )
    one = Served(process, url, folder / "home", log)
    try:
        within(240, lambda: "Ctrl-C ends" in log.read_text() or process.poll() is not None, "nightgate serve")
        assert process.poll() is None, log.read_text()
        within(60, lambda: _has(one, "careful") and _has(one, "endless"), "the deployments")
        yield one
    finally:
        process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()


def _has(served: Served, name: str) -> bool:
    return httpx.get(f"{served.url}/api/deployments/name/nightly/{name}", timeout=20).status_code == 200


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium(BROWSER) as running:
        yield running


@pytest.fixture
def ui(served: Served, browser: Browser, tmp_path: Path) -> Iterator[PrefectUI]:
    """A tab; how it looked at the end lies in the test's folder."""
    opened = PrefectUI(browser, served.url)
    yield opened
    opened.close(tmp_path / "page.png")


# --- a page of another origin ---

ATTACK = """
async (api) => {
  const body = JSON.stringify({pull_steps: [{"prefect.deployments.steps.run_shell_script": {script: "id"}}]});
  const id = DEPLOYMENT;
  const tries = {
    read: () => fetch(`${api}/deployments/${id}`),
    token: () => fetch(`${api}/csrf-token?client=evil`),
    patch: () => fetch(`${api}/deployments/${id}`,
      {method: "PATCH", headers: {"Content-Type": "application/json"}, body}),
    text: () => fetch(`${api}/deployments/${id}/create_flow_run`, {method: "POST", body: "{}"}),
    untyped: () => fetch(`${api}/deployments/${id}/create_flow_run`, {method: "POST", body: new Blob(["{}"])}),
    // The answer may not be read, but the request is sent.
    blind: () => fetch(`${api}/deployments/${id}/create_flow_run`,
      {method: "POST", mode: "no-cors", body: new Blob(["{}"])})
      .then((answer) => { if (answer.type === "opaque") throw new TypeError("opaque"); }),
    socket: () => new Promise((opened, failed) => {
      const socket = new WebSocket(api.replace("http", "ws") + "/events/out", "prefect");
      socket.onopen = opened;
      socket.onerror = () => failed(new TypeError("refused"));
    }),
  };
  const came = [];
  for (const [name, attempt] of Object.entries(tries)) {
    try { await attempt(); came.push(name); } catch (error) { if (!(error instanceof TypeError)) throw error; }
  }
  return came;
}
"""


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[str]:
    """A web server on another port, whose pages are foreign."""
    (tmp_path / "index.html").write_text("<title>elsewhere</title>", encoding="utf-8")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_page_of_another_origin_reads_and_changes_nothing_and_starts_no_run(
    served: Served, ui: PrefectUI, elsewhere: str, host: str
) -> None:
    api = f"{served.url}/api".replace("127.0.0.1", host)
    deployment = httpx.get(f"{served.url}/api/deployments/name/nightly/reviews", timeout=20).json()
    before = served.started()
    ui.page.goto(f"http://{elsewhere}/")
    assert ui.page.evaluate(ATTACK.replace("DEPLOYMENT", json.dumps(deployment["id"])), api) == []

    form = "<form method=post enctype=text/plain action={}><input name='{{\"x\":\"' value='\"}}'></form>"
    ui.page.set_content(form.format(f"{api}/deployments/{deployment['id']}/create_flow_run"))
    with ui.page.expect_response("**/create_flow_run") as answered:
        ui.page.locator("form").evaluate("form => form.submit()")
    assert answered.value.status == 403

    after = httpx.get(f"{served.url}/api/deployments/name/nightly/reviews", timeout=20).json()
    assert after["pull_steps"] == deployment["pull_steps"]
    assert served.started() == before


# --- the parts of a night ---


@pytest.mark.parametrize("part", ["refresh", "evaluate", "predict"])
def test_each_part_is_started_with_the_pipeline_as_a_choice(
    served: Served, ui: PrefectUI, part: str, request: pytest.FixtureRequest
) -> None:
    if part != "refresh":
        request.getfixturevalue("custom_run")  # its night promotes a champion
    ui.open_custom_run(f"{part}/nightgate")
    assert ui.choices("pipeline") == ["careful", "endless", "reviews"]
    ui.choose("pipeline", "reviews")
    run = ui.submit_and_view()
    ui.wait_for_state("Completed", SECONDS_OF_A_NIGHT)
    ui.title().filter(has_text=f"reviews {part}: ").wait_for()
    assert {"nightgate", "reviews"} <= set(served.run(run)["tags"])
    if part == "predict":
        assert (served.home.parent / "predicted.csv").is_file()
    else:
        view = {"refresh": "refreshes", "evaluate": "champion_evaluations"}[part]
        assert served.rows(f"SELECT * FROM {view} WHERE pipeline = 'reviews'")


# --- the list of runs ---

WEEK = [f"2026-01-{day:02}" for day in range(6, 13)]


def test_nights_are_told_apart_in_the_list_after_a_week(served: Served, ui: PrefectUI, tmp_path: Path) -> None:
    for night in WEEK:
        # On the third night nothing is good enough.
        gate = {"min_f1": 1.0} if night == WEEK[2] else {}
        served.start("nightly/nightgate", pipeline="reviews", night=night, training={"epochs": 1}, gate=gate)
    ended = "SELECT night, status, test_f1 FROM nightly_runs WHERE pipeline = 'reviews' AND night > ?"
    within(len(WEEK) * SECONDS_OF_A_NIGHT, lambda: len(served.ended(ended)) == len(WEEK), "the week")
    cancelled = served.start("nightly/nightgate", pipeline="endless")
    within(90, lambda: served.rows("SELECT 1 FROM run WHERE pipeline = 'endless'"), "the start of the endless night")
    served.ask("POST", f"/flow_runs/{cancelled}/set_state", json={"state": {"type": "CANCELLING"}})
    within(90, lambda: served.run(cancelled)["state_type"] == "CANCELLED", "the end of the endless night")
    assert served.run(cancelled)["name"].endswith(": cancelled")
    [stopped] = served.rows("SELECT status FROM nightly_runs WHERE prefect_flow_run_id = ?", cancelled)
    assert stopped["status"] == "cancelled"
    week = {row["night"]: row for row in served.ended(ended)}
    assert week[WEEK[2]]["status"] == "held"

    ui.page.goto(f"{served.url}/v2/runs")
    for night, row in week.items():
        name = f"reviews {night}: {row['status']}, F1 {row['test_f1']:.4f}"
        ui.main.get_by_role("link", name=name, exact=True).wait_for()
    held = served.named(f"reviews {WEEK[2]}: held")
    assert (held["state_name"], "held" in held["tags"], "reviews" in held["tags"]) == ("Held", True, True)
    reconciles = [run for run in served.runs() if run["name"] == "reconcile"]
    assert len(reconciles) <= 1
    ui.page.set_viewport_size({"width": 1000, "height": 1800})
    ui.page.screenshot(path=tmp_path / "runs.png")


# --- the form ---


def test_custom_run_shows_every_field_with_the_files_value_its_bounds_and_choices(
    served: Served, ui: PrefectUI
) -> None:
    deployment = httpx.get(f"{served.url}/api/deployments/name/nightly/reviews", timeout=20).json()
    ui.open_custom_run("reviews")
    for name in ("night", "force", "dry_run"):
        ui.page.get_by_text(f"{name} (Optional)", exact=True).wait_for()
    assert ui.page.get_by_text("more (Optional)", exact=True).count() == 2
    # The file's own, which are not the defaults.
    own = {"epochs": "2", "learning_rate": "0.001", "max_length": "32", "policy": "threshold_only"}
    for name, value in own.items():
        assert ui.block(name).get_by_text(f"Empty: {value}, as in the file of reviews.").is_visible()
    for form in ("TrainingForm", "GateForm"):
        shown = deployment["parameter_openapi_schema"]["definitions"][form]["properties"]
        for name, field in ({key: shown[key] for key in shown if key != "more"} | shown["more"]["properties"]).items():
            ui.page.get_by_text(f"{name} (Optional)", exact=True).wait_for()
            assert ui.page.get_by_text(field["description"], exact=True).is_visible(), name
            if field.get("type") in {"integer", "number"}:
                shown = [ui.field(name).get_attribute(bound) for bound in ("type", "min", "max")]
                stated = [str(field[bound]) if bound in field else None for bound in ("minimum", "maximum")]
                assert [one and one.removesuffix(".0") for one in shown] == [
                    "number",
                    *(one and one.removesuffix(".0") for one in stated),
                ], name
                assert ui.field(name).input_value() == "", name
            elif "enum" in field:
                assert ui.choices(name) == [str(one).lower() for one in field["enum"]], name
    # Two kinds of a value are two tabs, and nothing but the choice of the night has an empty one.
    assert [ui.page.get_by_role("tab", name=kind).count() for kind in ("a number", "majority", "model")] == [2, 1, 1]
    # What people change first is above the rest of its part.
    above = [ui.field(name).bounding_box() for name in ("epochs", "learning_rate", "max_train_rows", "batch_size")]
    assert [box["y"] for box in above if box] == sorted(box["y"] for box in above if box)
    assert ui.page.get_by_text('Property is type "None"').count() == 1
    assert ui.field("pipeline").input_value() == "reviews"


def test_a_number_out_of_bounds_is_refused_in_words_and_nothing_starts(served: Served, ui: PrefectUI) -> None:
    before = served.started()
    ui.open_custom_run("reviews")
    ui.field("epochs").fill("0")
    ui.submit()
    message = ui.field("epochs").evaluate("input => input.validationMessage")
    assert message == "Value must be greater than or equal to 1."
    # What is no number cannot be typed into a number's field.
    ui.field("epochs").fill("1")
    ui.field("learning_rate").click()
    ui.page.keyboard.type("fast")
    assert ui.field("learning_rate").input_value() == ""
    assert served.started() == before


def test_a_wrong_value_is_answered_beside_its_field_in_either_part_and_nothing_starts(
    served: Served, ui: PrefectUI, tmp_path: Path
) -> None:
    before = served.started()
    ui.open_custom_run("reviews")
    # The margin is in units of F1 in the file, which `margin` alone does not show; the base model there is a folder.
    wrong = {"learning_rate": "0", "warmup_ratio": "1", "margin": "3", "base_model_revision": "main"}
    for name, value in wrong.items():
        ui.field(name).fill(value)
    ui.submit()
    assert len(ui.complaints()) == len(wrong)
    for name, words in {
        "learning_rate": "0 is less than or equal to the minimum of 0",
        "warmup_ratio": "1 is greater than or equal to the maximum of 1",
        "margin": "3 is greater than the maximum of 1",
        "base_model_revision": "'' was expected",
    }.items():
        ui.block(name).get_by_text(words).wait_for()
    ui.page.screenshot(path=tmp_path / "wrong.png", full_page=True)
    assert "/run" in ui.page.url
    assert served.started() == before


def test_a_text_in_place_of_a_number_is_refused_in_words_and_nothing_starts(served: Served, ui: PrefectUI) -> None:
    before = served.started()
    ui.open_custom_run("reviews")
    ui.type_json("learning_rate", '"fast"')
    ui.submit()
    assert ui.complaints() == ["'fast' is not valid under any of the given schemas"]
    assert "/run" in ui.page.url
    assert served.started() == before


def test_paths_addresses_and_other_texts_that_are_no_names_are_refused_and_nothing_starts(
    served: Served, ui: PrefectUI
) -> None:
    before = served.started()
    ui.open_custom_run("reviews")
    wrong = {
        "base_model": "../../etc/passwd",
        "base_model_revision": "https://example.org/main",
        "approval_timeout": "tomorrow",
    }
    for name, text in wrong.items():
        ui.field(name).fill(text)
    ui.submit()
    complaints = ui.complaints()
    assert len(complaints) == len(wrong)
    for text in wrong.values():
        assert any(one.startswith(f"'{text}' does not match") for one in complaints), complaints
    assert "/run" in ui.page.url
    assert served.started() == before


# --- a night, from the form to its report ---


@dataclass
class CustomRun:
    run: str
    title: str
    seconds: float


@pytest.fixture(scope="module")
def custom_run(served: Served, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> CustomRun:
    """Custom run with a night, an epoch and a choice filled in, watched on its page until the verdict is there."""
    ui = PrefectUI(browser, served.url)
    try:
        ui.open_custom_run("reviews")
        ui.choose_night(NIGHT)
        ui.field("epochs").fill("2")
        ui.choose("lr_scheduler_type", "cosine")
        clicked = time.monotonic()
        run = ui.submit_and_view()
        ui.wait_for_state("Promoted", SECONDS_OF_A_NIGHT)
        seconds = time.monotonic() - clicked
        verdict = re.compile("promoted")
        ui.title().filter(has_text=verdict).wait_for()
        return CustomRun(run, ui.title().inner_text(), seconds)
    finally:
        ui.close(tmp_path_factory.mktemp("custom-run") / "page.png")


def test_a_custom_run_completes_with_what_was_filled_in(served: Served, custom_run: CustomRun) -> None:
    night = served.night(custom_run.run)
    assert (night["pipeline"], night["night"], night["status"]) == ("reviews", NIGHT, "promoted")
    record = (served.home / "runs" / night["run_id"]).rglob("*.json")
    assert any('"lr_scheduler_type": "cosine"' in file.read_text() for file in record)
    assert custom_run.seconds < SECONDS_OF_A_NIGHT


def test_the_run_page_says_pipeline_night_and_verdict_and_has_a_task_run_for_each_epoch(
    served: Served, custom_run: CustomRun, ui: PrefectUI
) -> None:
    night = served.night(custom_run.run)
    assert f"reviews {NIGHT}: promoted, F1 {night['test_f1']:.4f}" in custom_run.title
    ui.open_run(custom_run.run)
    tasks = ui.tab("Task Runs")
    epochs = tasks.get_by_role("link", name=re.compile(r"^epoch \d"))
    epochs.first.wait_for()
    stored = served.rows("SELECT epoch, f1 FROM epoch_results WHERE run_id = ? ORDER BY epoch DESC", night["run_id"])
    assert len(stored) == 2
    for shown, row in zip(epochs.all_inner_texts(), stored, strict=True):
        assert shown.startswith(f"epoch {row['epoch']}")
        assert f"{row['f1']:.4f}" in shown


@pytest.mark.parametrize("mode", ["Light", "Dark"])
def test_the_report_is_among_the_artifacts_and_its_pictures_are_there_and_legible(
    mode: Literal["Light", "Dark"], custom_run: CustomRun, ui: PrefectUI, tmp_path: Path
) -> None:
    ui.colours(mode)
    ui.open_run(custom_run.run)
    ui.open_report("reviews-night")
    pictures = ui.main.locator("img")
    pictures.first.wait_for()
    ui.page.screenshot(path=tmp_path / f"report-{mode.lower()}.png", full_page=True)
    shown = pictures.evaluate_all("all => all.map(one => [one.alt, one.complete && one.naturalWidth > 0])")
    assert [alt for alt, is_there in shown if not is_there] == []
    _all_told([alt for alt, _ in shown])
    background, _ = _extremes(ui.page.screenshot(clip={"x": 300, "y": 5, "width": 20, "height": 5}))
    assert (background < 0.1) == (mode == "Dark")
    for picture in pictures.all():
        _is_legible(picture)


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_the_same_report_lies_beside_the_run_as_a_page_that_needs_nothing_else(
    mode: Literal["light", "dark"], served: Served, custom_run: CustomRun, ui: PrefectUI
) -> None:
    file = served.home / "runs" / served.night(custom_run.run)["run_id"] / "report.html"
    asked: list[str] = []
    ui.page.on("request", lambda request: asked.append(request.url))
    ui.page.emulate_media(color_scheme=mode)
    ui.page.goto(file.as_uri())
    assert asked == [file.as_uri()]
    pictures = ui.page.get_by_role("img")
    _all_told([str(picture.get_attribute("alt")) for picture in pictures.all()])
    for picture in pictures.all():
        _is_legible(picture)


def _all_told(names: list[str]) -> None:
    """Every picture that a night's report is to have, by what its description says."""
    wanted = ("test rows", "Loss", "Confusion", "by label", "by product", "text lengths", "Share of rows by label")
    for what in (*wanted, "Share of rows by product"):
        assert any(what in name for name in names), (what, names)


def _is_legible(picture: Locator) -> None:
    darkest, lightest = _extremes(picture.screenshot())
    # WCAG 2.2 asks for 4.5 between a text and what it stands on.
    assert (lightest + 0.05) / (darkest + 0.05) >= 4.5


def _extremes(png: bytes) -> tuple[float, float]:
    """Relative luminance, as WCAG defines it, of the darkest and the lightest one in 500 pixels."""
    import numpy as np
    from PIL import Image

    value = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=float) / 255
    linear = np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    return float(np.quantile(luminance, 0.002)), float(np.quantile(luminance, 0.998))


# --- a promotion that waits for a person ---


def test_a_suspended_promotion_shows_its_evidence_and_is_approved_in_the_ui(served: Served, ui: PrefectUI) -> None:
    """Suspended within the bound of a night, its processes gone 15 s later, promoted within 90 s of the decision."""
    ui.open_custom_run("careful")
    ui.choose("approval", "true")
    run = ui.submit_and_view()
    ui.wait_for_state("Suspended", SECONDS_OF_A_NIGHT)
    night = served.night(run)
    assert night["status"] == "waiting"
    within(15, lambda: not served.work(), "the end of its processes")
    assert served.rows("SELECT * FROM champion_timeline WHERE pipeline = 'careful'") == []

    ui.action("Resume")
    form = ui.page.get_by_role("dialog")
    form.get_by_text("Without a decision by").wait_for()
    evidence = form.inner_text()
    for fact in ("careful", night["night"], f"{night['test_f1']:.4f}", "no champion"):
        assert fact in evidence
    form.get_by_role("button", name="Resume", exact=True).click()
    ui.page.get_by_text("'decision' is a required property").wait_for()
    assert served.night(run)["status"] == "waiting"

    ui.choose("Decision", "approve")
    form.get_by_label("Name", exact=True).fill("Ada")
    form.get_by_label("Reason", exact=True).fill("The confusion matrix looks right")
    ui.confirm("Resume")
    ui.wait_for_state("Promoted", 90)
    ui.title().filter(has_text="promoted").wait_for()
    assert served.night(run)["status"] == "promoted"
    (approval,) = served.rows("SELECT * FROM approvals WHERE run_id = ?", night["run_id"])
    assert (approval["decision"], approval["decided_by"]) == ("approved", "Ada")
    assert approval["reason"] == "The confusion matrix looks right"
    (promotion,) = served.rows("SELECT * FROM champion_timeline WHERE pipeline = 'careful'")
    assert (promotion["run_id"], promotion["promoted_by"]) == (night["run_id"], "Ada")


# --- quick run, cancel, retry ---


def test_a_quick_run_is_cancelled_and_its_retry_goes_on_from_the_last_epoch(served: Served, ui: PrefectUI) -> None:
    """Cancelled on the page and in SQL within 60 s; the retry's first epoch within the bound of a night."""
    ui.open_deployment("endless")
    run = ui.quick_run()

    def epochs(attempt: int) -> list[int]:
        query = (
            "SELECT epoch FROM metric_history JOIN nightly_runs USING (run_id) "
            "WHERE prefect_flow_run_id = ? AND attempt = ? ORDER BY epoch"
        )
        return [row["epoch"] for row in served.rows(query, run, attempt)]

    within(SECONDS_OF_A_NIGHT, lambda: epochs(1), "the first epoch's row")
    ui.wait_for_state("Running", 30)
    ui.action("Cancel")
    ui.confirm("Cancel Flow Run")
    ui.wait_for_state("Cancelled", 60)
    night = served.night(run)
    assert (night["status"], night["attempts"]) == ("cancelled", 1)
    assert served.work() == []
    done = epochs(1)

    ui.action("Retry")
    ui.confirm("Retry")
    again = within(SECONDS_OF_A_NIGHT, lambda: epochs(2), "an epoch of the retry")
    night = served.night(run)
    assert (night["status"], night["attempts"]) == ("running", 2)
    # Epochs that were saved when Cancel came may get their rows now.
    assert again[0] == len(epochs(1)) + 1
    assert again[0] > len(done)

    ui.wait_for_state("Running", 30)
    ui.action("Cancel")
    ui.confirm("Cancel Flow Run")
    ui.wait_for_state("Cancelled", 60)
    assert served.night(run)["status"] == "cancelled"
