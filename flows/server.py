"""Which Prefect server a run by hand talks to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
from prefect.client.orchestration import get_client
from prefect.settings import (
    PREFECT_API_URL,
    PREFECT_SERVER_ALLOW_EPHEMERAL_MODE,
    PREFECT_SERVER_ANALYTICS_ENABLED,
    PREFECT_SERVER_API_PORT,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    temporary_settings,
)


def local_server() -> str:
    """The server that `nightgate serve` starts on this machine; its port is Prefect's own setting, 4200 unless set."""
    return f"http://127.0.0.1:{PREFECT_SERVER_API_PORT.value()}"


def server_problem(api_url: str) -> str | None:
    """Why the server at `api_url` cannot be used; None when it answers."""
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
    return None if problem is None else f"{type(problem).__name__}: {problem}"


@contextmanager
def prefect_server() -> Iterator[str]:
    """Settings for a run by hand, and a sentence that says which server it uses.

    The server at `PREFECT_API_URL` when it answers, else the one that `nightgate serve` starts on this machine when
    it runs, else a temporary one, which ends with the run and leaves its history in Prefect's own database.
    """
    configured = PREFECT_API_URL.value()
    why = "PREFECT_API_URL is not set"
    for api_url in (configured, f"{local_server()}/api"):
        if not api_url:
            continue
        problem = server_problem(api_url)
        if problem is None:
            with temporary_settings({PREFECT_API_URL: api_url}):
                yield f"using the Prefect server at {api_url}"
            return
        if api_url == configured:
            why = f"the Prefect server at {api_url} does not answer ({problem})"
    # 20 s, Prefect's own limit, is too short for the first start in a fresh home.
    temporary = {
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: 120,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with temporary_settings(temporary, restore_defaults={PREFECT_API_URL}):
        yield f"{why}: starting a temporary one for this run (10 to 30 s)"


def answers(url: str) -> bool:
    """Whether a Prefect server is healthy at `url`."""
    try:
        return httpx.get(f"{url}/api/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False
