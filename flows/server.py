"""Which Prefect server a run by hand, or a command about deployments, talks to, and whether it lets us in."""

from __future__ import annotations

import contextvars
import os
import signal
import threading
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

from nightgate.errors import ConfigurationError, NightgateError, without_credentials


def local_server() -> str:
    """The server that `nightgate serve` starts on this machine; its port is Prefect's own setting, 4200 unless set."""
    return f"http://127.0.0.1:{PREFECT_SERVER_API_PORT.value()}"


def server_problem(api_url: str) -> str | None:
    """Why the server at `api_url` cannot be used, as `does not answer: ...`; None when it answers and lets us in."""
    with temporary_settings({PREFECT_API_URL: api_url}), get_client(sync_client=True) as client:
        problem = client.api_healthcheck()
        if problem is not None:
            return f"does not answer: {type(problem).__name__}: {problem}"
        # Its health it tells to anybody, whatever authentication it asks for.
        try:
            client.hello()
        except httpx.HTTPStatusError as error:
            if error.response.status_code in {401, 403}:
                return f"{REFUSES} ({error.response.status_code}): {_CREDENTIALS}"
            return f"does not answer: {type(error).__name__}: {error}"
    return None


REFUSES = "refuses us"
_CREDENTIALS = "set PREFECT_API_AUTH_STRING here to the PREFECT_SERVER_API_AUTH_STRING with which it was started"


@contextmanager
def prefect_server() -> Iterator[str]:
    """Settings for a run by hand, and a sentence that says which server it uses.

    The server at `PREFECT_API_URL` when it answers, else the one that `nightgate serve` starts on this machine when
    it runs, else a temporary one, which ends with the run and leaves its history in Prefect's own database.

    Raises:
        NightgateError: the temporary one does not come up.
    """
    configured = PREFECT_API_URL.value()
    why = "PREFECT_API_URL is not set"
    for api_url in (configured, f"{local_server()}/api"):
        if not api_url:
            continue
        problem = server_problem(api_url)
        if problem is None:
            with temporary_settings({PREFECT_API_URL: api_url}):
                yield f"using the Prefect server at {without_credentials(api_url)}"
            return
        if api_url == configured or problem.startswith(REFUSES):
            why = f"the Prefect server at {without_credentials(api_url)} {problem}"
    # 20 s, Prefect's own limit, is too short for the first start in a fresh home.
    seconds = max(120, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value())
    temporary = {
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE: True,
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS: seconds,
        PREFECT_SERVER_ANALYTICS_ENABLED: False,
    }
    os.environ.setdefault("DO_NOT_TRACK", "1")
    with temporary_settings(temporary, restore_defaults={PREFECT_API_URL}):
        try:
            yield f"{why}: starting a temporary one for this run (10 to 30 s)"
        except RuntimeError as error:
            if "ephemeral Prefect API server" not in str(error):
                raise
            raise NightgateError(
                f"the temporary Prefect server was not up within {seconds} s",
                next_step="where the machine is that busy, wait, set PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS "
                "higher, or run the night with --no-prefect",
            ) from error


def start_temporary_server() -> None:
    """Start the temporary server of the current settings, out of reach of Ctrl-C; nothing where they name one.

    Ctrl-C goes to every process of a terminal. A server that it ended first would keep the run, which wants to tell it
    how it ended, waiting for minutes.
    """
    if PREFECT_API_URL.value():
        return
    # Here and not above: a second, for those who have a server.
    from prefect.server.api.server import SubprocessASGIServer

    failed: list[Exception] = []

    def start() -> None:
        # Of this thread alone, from which the server's process has it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            SubprocessASGIServer().start()
        except Exception as error:  # noqa: BLE001 - raised below
            failed.append(error)

    with_settings = contextvars.copy_context().run
    thread = threading.Thread(target=with_settings, args=(start,), name="nightgate-server-start", daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def answers(url: str) -> bool:
    """Whether a Prefect server is healthy at `url`."""
    try:
        return httpx.get(f"{url}/api/health", timeout=2).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def running_server() -> Iterator[str]:
    """Settings for a command about a server that stays: the one at `PREFECT_API_URL`, else that of `nightgate serve`.

    Gives its API's address.

    Raises:
        ConfigurationError: there is none, or it does not let us in.
    """
    configured = PREFECT_API_URL.value()
    api_url = configured or f"{local_server()}/api"
    problem = server_problem(api_url)
    if problem is not None:
        which = "PREFECT_API_URL" if configured else "PREFECT_API_URL is not set, so the one of this machine"
        raise ConfigurationError(
            f"the Prefect server at {without_credentials(api_url)} ({which}) {problem}",
            next_step="start it with `prefect server start`, or set PREFECT_API_URL to the address of yours, such as "
            "http://127.0.0.1:4200/api",
        )
    with temporary_settings({PREFECT_API_URL: api_url}):
        yield api_url
