"""A Prefect server that Nightgate starts refuses pages of other origins and requests for other hosts."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import pytest
import websockets.exceptions
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from websockets.sync.client import connect

from flows.server.access import access
from flows.server.connection import started_server
from tests.conftest import csrf_headers
from tests.support.production import within

pytestmark = [pytest.mark.flow, pytest.mark.process, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
EVIL = "http://evil.example"
SHELL = [{"prefect.deployments.steps.run_shell_script": {"script": "id"}}]
"""Pull steps with which a deployment runs a shell script."""


@dataclass
class Target:
    """A server as `nightgate serve` starts it, with a deployment to attack."""

    url: str
    deployment_id: UUID

    @property
    def path(self) -> str:
        return f"/api/deployments/{self.deployment_id}"

    def pull_steps(self) -> list[object]:
        with httpx.Client(base_url=self.url) as programs:
            return list(programs.get(self.path).json()["pull_steps"] or [])

    def runs(self) -> int:
        with httpx.Client(base_url=self.url, headers=csrf_headers(self.url)) as programs:
            return int(programs.post("/api/flow_runs/count", json={}).raise_for_status().json())


@pytest.fixture(scope="module")
def target(session_root: Path) -> Iterator[Target]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NIGHTGATE_HOME", str(session_root / "protected-home"))
        patch.setenv("PREFECT_HOME", str(session_root / "protected"))
        # Not the copy in the installed package, which servers of all projects share.
        patch.setenv("PREFECT_SERVER_UI_STATIC_DIRECTORY", str(session_root / "protected-ui"))
        with started_server() as server:
            server.wait_until_up(120, next_step=f"read {server.log}")
            with temporary_settings({PREFECT_API_URL: f"{server.url}/api"}), get_client(sync_client=True) as client:
                flow_id = client.create_flow_from_name("nightly")
                yield Target(server.url, client.create_deployment(flow_id, "sample", enforce_parameter_schema=False))


FOREIGN = {
    "another origin": {"Origin": EVIL},
    "another port of this machine": {"Origin": "http://127.0.0.1:1"},
    "a page without an origin of its own": {"Origin": "null"},
    "a page of another site, from a browser that omits Origin": {"Sec-Fetch-Site": "cross-site"},
    "a page of another port, from a browser that omits Origin": {"Sec-Fetch-Site": "same-site"},
    "another host, by DNS rebinding": {"Host": "evil.example"},
}


@pytest.mark.parametrize("body", ["application/json", "text/plain", ""], ids=["json", "text", "no content type"])
@pytest.mark.parametrize("page", FOREIGN)
def test_what_a_foreign_page_sends_is_refused_and_changes_nothing(target: Target, page: str, body: str) -> None:
    # With a valid token: it is not what refuses them.
    headers = {**csrf_headers(target.url), **FOREIGN[page], **({"Content-Type": body} if body else {})}
    runs = target.runs()
    with httpx.Client(base_url=target.url, headers=headers) as foreign:
        answers = [
            foreign.patch(target.path, content=json.dumps({"pull_steps": SHELL})),
            foreign.post(f"{target.path}/create_flow_run", content="{}"),
            foreign.get(target.path),
            foreign.get("/api/csrf-token?client=evil"),
        ]
    assert {answer.status_code for answer in answers} == {400 if "Host" in FOREIGN[page] else 403}
    assert not any("access-control-allow-origin" in answer.headers for answer in answers)
    assert target.pull_steps() == []
    assert target.runs() == runs


def test_doctor_finds_no_page_that_reaches_it(target: Target) -> None:
    found = access(f"{target.url}/api")
    assert (found.needs_password, found.read_by_pages, found.changed_by_pages) == (False, False, False)
    assert found.listens_on == ("127.0.0.1",)


def test_a_form_without_a_token_is_refused_wherever_it_comes_from(target: Target) -> None:
    runs = target.runs()
    for headers in ({}, {"Origin": target.url}, {"Content-Type": "application/x-www-form-urlencoded"}):
        answer = httpx.post(f"{target.url}{target.path}/create_flow_run", content="{}", headers=headers)
        assert answer.status_code == 403
    assert target.runs() == runs


def test_the_preflight_of_a_foreign_page_is_refused(target: Target) -> None:
    asked = {"Origin": EVIL, "Access-Control-Request-Method": "PATCH", "Access-Control-Request-Headers": "content-type"}
    answer = httpx.options(f"{target.url}{target.path}", headers=asked)
    assert answer.status_code == 403
    assert "access-control-allow-origin" not in answer.headers


def test_a_foreign_page_may_link_to_the_ui_but_not_frame_it(target: Target) -> None:
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Accept": "text/html"}
    followed = httpx.get(f"{target.url}/v2/runs", headers={**link, "Sec-Fetch-Dest": "document"})
    assert (followed.status_code, followed.headers["content-type"].split(";")[0]) == (200, "text/html")
    assert httpx.get(f"{target.url}/v2/runs", headers={**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403


def is_accepted(client: httpx.Client, target: Target, change: dict[str, str]) -> bool:
    """Whether a change is made; Prefect answers 503 while its SQLite file is locked."""
    answer = client.patch(target.path, json=change, headers=csrf_headers(target.url))
    assert answer.status_code in {204, 503}
    return answer.status_code == 204


@pytest.mark.parametrize("name", ["127.0.0.1", "localhost", "[::1]"])
def test_its_own_pages_and_programs_are_answered(target: Target, name: str) -> None:
    port = urlsplit(target.url).port
    own = f"http://{name}:{port}"
    asked = {"Host": f"{name}:{port}", "Origin": own, "Access-Control-Request-Method": "PATCH"}
    assert httpx.options(f"{target.url}{target.path}", headers=asked).headers["access-control-allow-origin"] == own
    for headers in ({"Origin": own}, {}):
        with httpx.Client(base_url=target.url, headers={**headers, "Host": f"{name}:{port}"}) as ours:
            change = {"description": f"{name} {headers}"}
            within(20, partial(is_accepted, ours, target, change), "the change")
            assert ours.get(target.path).json()["description"] == f"{name} {headers}"


@pytest.mark.parametrize(
    ("origin", "host", "status"),
    [(EVIL, None, 403), ("null", None, 403), (None, "evil.example", 400), ("own", None, 0), (None, None, 0)],
)
def test_a_websocket_of_a_foreign_page_is_refused(
    target: Target, origin: str | None, host: str | None, status: int
) -> None:
    port = urlsplit(target.url).port
    with socket.create_connection(("127.0.0.1", port or 0)) as connection:
        opening = partial(
            connect,
            f"ws://{host or '127.0.0.1'}:{port}/api/events/out",
            origin=target.url if origin == "own" else origin,  # type: ignore[arg-type]
            subprotocols=["prefect"],  # type: ignore[list-item]
            # Whatever the name is: a hostile name server may answer with 127.0.0.1.
            sock=connection,
            proxy=None,
        )
        if status:
            with pytest.raises(websockets.exceptions.InvalidStatus) as refused:
                opening()
            assert refused.value.response.status_code == status
        else:
            with opening() as opened:
                opened.send(json.dumps({"type": "auth", "token": None}))
                assert json.loads(opened.recv(timeout=20))["type"] == "auth_success"


@pytest.mark.parametrize(
    ("setting", "error"),
    [("https://prefect.example.com", ""), ("*", ""), ("prefect.example.com", "'prefect.example.com'")],
)
def test_further_origins_come_from_prefects_own_setting(setting: str, error: str) -> None:
    code = "from flows.own_server import own_origins; print(*own_origins())"
    done = subprocess.run(
        [sys.executable, *(["-m", "flows.own_server"] if error else ["-c", code])],
        env={
            **os.environ,
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": setting,
            "PREFECT_SERVER_API_HOST": "10.0.0.7",
            "PREFECT_SERVER_API_PORT": "4321",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if error:
        assert done.returncode == 1
        assert error in done.stderr
        assert "Traceback" not in done.stderr
        return
    own = {f"http://{name}:4321" for name in ("127.0.0.1", "localhost", "[::1]", "10.0.0.7")}
    assert set(done.stdout.split()) == own | ({setting} - {"*"})
