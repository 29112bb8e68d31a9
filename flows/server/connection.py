"""The Prefect server that a command uses: the configured one, the one on this machine, or one started here."""

from __future__ import annotations

import atexit
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_REQUEST_TIMEOUT,
    PREFECT_API_URL,
    PREFECT_CLIENT_MAX_RETRIES,
    PREFECT_SERVER_API_PORT,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS,
    PREFECT_UI_URL,
    get_current_settings,
    temporary_settings,
)
from sqlalchemy.exc import ArgumentError

from nightgate.database_urls import read_url
from nightgate.durable_files import write_once
from nightgate.errors import ConfigurationError, NightgateError, is_misquoted, without_credentials
from nightgate.home import Home, home_path, open_home

LOOPBACK = "127.0.0.1"
SECONDS = 3.0
"""Time-out of a request that a person waits for."""


def local_server() -> str:
    """Address of the server that `nightgate serve` starts; the port is Prefect's own setting, 4200 by default."""
    return f"http://{LOOPBACK}:{PREFECT_SERVER_API_PORT.value()}"


def configured_server() -> str:
    """`PREFECT_API_URL`, '' if it is not set.

    Raises:
        ConfigurationError: it holds a password that is not quoted for a URL, of which an error would show a part.
    """
    api_url = str(PREFECT_API_URL.value() or "").rstrip("/")
    if is_misquoted(api_url):
        raise ConfigurationError(
            "PREFECT_API_URL cannot be read: its user or password holds an unquoted / ? # @ or space",
            next_step="write them as %2F %3F %23 %40 %20, or the password as PREFECT_API_AUTH_STRING=user:password",
        )
    return api_url


def usual_api() -> str:
    """Address of the API at `PREFECT_API_URL`, else of the server that `nightgate serve` starts."""
    return configured_server() or f"{local_server()}/api"


def client_settings(api_url: str) -> dict[Any, str]:
    """Settings of a client of that server: on this machine's own with the password of the home, unless one is set."""
    if not PREFECT_API_AUTH_STRING.value() and urlsplit(api_url).netloc == urlsplit(local_server()).netloc:
        file = password_file(home_path())
        if os.access(file, os.R_OK):
            return {PREFECT_API_URL: api_url, PREFECT_API_AUTH_STRING: file.read_text(encoding="utf-8").strip()}
    return {PREFECT_API_URL: api_url}


def password_file(home: Path) -> Path:
    """Where a home keeps `user:password` of the server that `nightgate serve --auth` starts."""
    return home / "server-password"


def make_password(home: Home) -> str:
    """`user:password` of the home's server, made at the first call and readable by its owner alone."""
    path = password_file(home.root)
    if not path.exists():
        write_once(path, f"nightgate:{secrets.token_urlsafe(24)}\n".encode(), mode=0o600)
    return path.read_text(encoding="utf-8").strip()


def server_problem(api_url: str) -> str | None:
    """Why the server at `api_url` cannot be used, as `does not answer: ...`; None if it answers and accepts us."""
    with temporary_settings(client_settings(api_url)), get_client(sync_client=True) as client:
        return problem_of(client)


def problem_of(client: SyncPrefectClient) -> str | None:
    """`server_problem` of the server of this client."""
    problem = client.api_healthcheck()
    if problem is None:
        # The health check needs no authentication, this does.
        try:
            client.hello()
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and error.response.status_code in {401, 403}:
                return f"{REFUSES} ({error.response.status_code}): {_CREDENTIALS}"
            problem = error
    return None if problem is None else f"does not answer: {type(problem).__name__}: {problem}"


def asks_for_password(api_url: str) -> bool:
    """Whether the server answers 401 to a client without credentials."""
    return stranger(api_url).status_code == 401


def stranger(api_url: str, method: str = "GET", path: str = "/admin/version", **headers: str) -> httpx.Response:
    """What the server answers to a client without credentials.

    Raises:
        httpx.HTTPError: it does not answer.
    """
    url = httpx.URL(api_url).copy_with(username="", password="")
    # Nothing secret is exchanged.
    with httpx.Client(timeout=SECONDS, verify=False) as client:
        return client.request(method, f"{url}{path}", headers=headers, content=b"{}" if method == "POST" else None)


REFUSES = "refuses these credentials"
_CREDENTIALS = (
    "set PREFECT_API_AUTH_STRING here to the PREFECT_SERVER_API_AUTH_STRING with which it was started, or to the line "
    "in server-password of the home that serves with --auth"
)


@contextmanager
def prefect_server(say: Callable[[str], None]) -> Iterator[None]:
    """Settings for a manual run; `say` gets a sentence about which server that is, before one has to start.

    The server at `PREFECT_API_URL` when it answers, else the one that `nightgate serve` starts on this machine when
    it runs, else a temporary one, which ends with this process and leaves its history in Prefect's own database.

    Raises:
        NightgateError: the temporary one does not come up.
    """
    configured = configured_server()
    why = "PREFECT_API_URL is not set"
    for api_url in (configured, f"{local_server()}/api"):
        if not api_url:
            continue
        problem = server_problem(api_url)
        if problem is None:
            say(f"using the Prefect server at {without_credentials(api_url)}")
            with temporary_settings(client_settings(api_url)):
                yield
            return
        if api_url == configured or problem.startswith(REFUSES):
            why = f"the Prefect server at {without_credentials(api_url)} {problem}"
    say(f"{why}: starting a temporary one for this run (10 to 30 s)")
    with ExitStack() as starting:
        server = starting.enter_context(started_server(temporary=True))
        # 20 s, Prefect's own limit, is too short for the first start in a fresh home.
        server.wait_until_up(
            max(120, PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS.value()),
            next_step=f"read {server.log}; where the machine is that busy, wait, set "
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS higher, or give the command with --no-prefect",
        )
        # Not stopped before the process ends, which is when Prefect sends its last logs and events.
        atexit.register(starting.pop_all().close)
    # It has no UI: without an address Prefect logs no links to its pages.
    own = {PREFECT_API_URL: f"{server.url}/api", PREFECT_API_AUTH_STRING: server.auth, PREFECT_UI_URL: ""}
    with temporary_settings(own):
        yield


SERVER_ENVIRONMENT = {
    # In memory, Prefect's default, a restart forgets which run holds a deployment and a second one starts beside it.
    "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
"""Defaults for the servers that are started here; the environment overrides them."""


@dataclass(frozen=True)
class StartedServer:
    """A Prefect server that this process has started."""

    url: str
    log: Path
    process: subprocess.Popen[bytes]
    auth: str = ""
    """user:password that it asks for; '' for none."""

    def wait_until_up(self, seconds: float, *, next_step: str) -> None:
        """Return once the server answers.

        Raises:
            NightgateError: It ended, or does not answer within `seconds`.
        """
        deadline = time.monotonic() + seconds
        while not answers(self.url):
            code = self.process.poll()
            if code is not None or time.monotonic() > deadline:
                why = f"within {seconds:.0f} s" if code is None else f"and ended with code {code}"
                raise NightgateError(f"the Prefect server at {self.url} did not come up {why}", next_step=next_step)
            time.sleep(0.2)


@contextmanager
def started_server(port: int = 0, *, auth: str = "", temporary: bool = False) -> Iterator[StartedServer]:
    """Start `flows.own_server` on a loopback port, a free one by default, and stop it at the end.

    It has a session of its own: Ctrl-C in a terminal would end it before its runs have reported. A temporary server has
    no UI and a password that only this process knows, and ends with this process, even a killed one.

    Args:
        auth: user:password to ask for. Default: Prefect's own setting.

    Raises:
        NightgateError: the port is taken, or the password in the address of its database is not quoted for a URL.
    """
    try:
        read_url(str(PREFECT_SERVER_DATABASE_CONNECTION_URL.value() or "sqlite://"))
    except (ArgumentError, ValueError):
        raise ConfigurationError(
            "PREFECT_SERVER_DATABASE_CONNECTION_URL cannot be read",
            next_step="write it as postgresql+asyncpg://user:password@host/prefect, with @ : / ? # % of the password "
            "as %40 %3A %2F %3F %23 %25",
        ) from None
    auth = f"nightgate:{secrets.token_urlsafe(24)}" if temporary else auth
    log = open_home().root / "prefect-server.log"
    with socket.socket() as bound, log.open("ab") as output:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((LOOPBACK, port))
        except OSError as error:
            raise NightgateError(
                f"no Prefect server can start on port {port} of {LOOPBACK}: {error.strerror}",
                next_step="choose a free one with --port of `nightgate serve` or PREFECT_SERVER_API_PORT, or set "
                "PREFECT_API_URL to a running server",
            ) from error
        port = bound.getsockname()[1]
        environment = {
            **SERVER_ENVIRONMENT,
            **os.environ,
            **get_current_settings().to_environment_variables(exclude_unset=True),
            "PREFECT_SERVER_API_HOST": LOOPBACK,
            "PREFECT_SERVER_API_PORT": str(port),
            "PYTHONSAFEPATH": "1",
            **({"PREFECT_SERVER_API_AUTH_STRING": auth} if auth else {}),
        }
        # The server's pages would use that address.
        environment.pop("PREFECT_API_URL", None)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "flows.own_server", "--fd", str(bound.fileno())),
                *(["--temporary"] if temporary else []),
            ],
            stdin=subprocess.PIPE if temporary else subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            pass_fds=[bound.fileno()],
            start_new_session=True,
        )
    try:
        yield StartedServer(f"http://{LOOPBACK}:{port}", log, process, auth)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdin is not None:
            process.stdin.close()


def answers(url: str) -> bool:
    """Whether a Prefect server is healthy at `url`."""
    return not silence(f"{url}/api")


def silence(api_url: str) -> str:
    """Why no Prefect server is healthy there; '' if one is. Not by Prefect's client, which retries for minutes."""
    try:
        # No secret is exchanged here; Prefect's client verifies the certificate later.
        answer = httpx.get(f"{api_url}/health", timeout=SECONDS, verify=False)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    status = answer.status_code
    return "" if status == 200 else f"its health check answers {status}, where Prefect answers 200"


@contextmanager
def usual_server() -> Iterator[str]:
    """Settings for the server at `PREFECT_API_URL`, else that of `nightgate serve`; never a temporary one.

    Yields why it cannot be used; '' if it answers and accepts us.
    """
    api_url = usual_api()
    quick: dict[Any, Any] = {PREFECT_CLIENT_MAX_RETRIES: 0, PREFECT_API_REQUEST_TIMEOUT: 10}
    with temporary_settings(client_settings(api_url) | quick):
        problem = server_problem(api_url)
        yield f"the Prefect server at {without_credentials(api_url)} {problem}" if problem else ""


@contextmanager
def running_server() -> Iterator[str]:
    """Settings for the running server at `PREFECT_API_URL`, else that of `nightgate serve`; yields its API's address.

    Raises:
        ConfigurationError: It does not answer, or refuses these credentials.
    """
    api_url = usual_api()
    problem = server_problem(api_url)
    if problem is not None:
        is_configured = bool(configured_server())
        which = "PREFECT_API_URL" if is_configured else "PREFECT_API_URL is not set, so the one of this machine"
        raise ConfigurationError(
            f"the Prefect server at {without_credentials(api_url)} ({which}) {problem}",
            next_step="start it with `nightgate serve` or `python -m flows.own_server`, or set PREFECT_API_URL to its "
            "address, such as http://127.0.0.1:4200/api",
        )
    with temporary_settings(client_settings(api_url)):
        yield api_url
