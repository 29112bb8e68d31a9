"""Prefect's server behind a check of Host and Origin.

    python -m flows.own_server      # in place of `prefect server start`, with the same settings

Prefect 3.8 answers any Host and Origin, and accepts a POST without a content type: a page in any browser on the machine
can make it run shell code. `PREFECT_SERVER_CORS_ALLOWED_ORIGINS` lists origins to allow besides its own, such as a
proxy's; their hosts are allowed too.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Collection
from urllib.parse import urlsplit

from prefect.settings import PREFECT_SERVER_CORS_ALLOWED_ORIGINS, get_current_settings, temporary_settings
from starlette.datastructures import Headers
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from nightgate.errors import ConfigurationError


def own_origins() -> list[str]:
    """The server's addresses on loopback and at `PREFECT_SERVER_API_HOST`, and the origins that settings add.

    Raises:
        ConfigurationError: A setting names something that is no origin.
    """
    api = get_current_settings().server.api
    names = dict.fromkeys(["127.0.0.1", "localhost", "[::1]", f"[{api.host}]" if ":" in api.host else api.host])
    # Prefect's own default is `*`: all origins.
    named = [one.strip().rstrip("/") for one in PREFECT_SERVER_CORS_ALLOWED_ORIGINS.value().split(",")]
    added = [one.lower() for one in named if one not in {"", "*"}]
    for origin in added:
        if not urlsplit(origin).hostname:
            raise ConfigurationError(
                f"PREFECT_SERVER_CORS_ALLOWED_ORIGINS holds {origin!r}, which is not an origin",
                next_step="write scheme, host and port, such as https://prefect.example.com",
            )
    return [*(f"http://{name}:{api.port}" for name in names), *added]


def protected(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    """The application behind a check of Host and Origin."""
    names = {str(urlsplit(origin).hostname) for origin in origins}
    hosts = [f"[{name}]" if ":" in name else name for name in names]
    return TrustedHostMiddleware(OwnOrigins(app, origins), allowed_hosts=hosts, www_redirect=False)


class OwnOrigins:
    """Middleware that answers 403 to pages from other origins, for WebSockets too. Programs send no Origin and pass."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self.app = app
        self.origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in {"http", "websocket"} or not self._is_foreign(headers := Headers(scope=scope)):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(code=1008)(scope, receive, send)  # before it is accepted: 403
        else:
            refusal = PlainTextResponse(
                f"{headers.get('origin', 'another site')} may not use this server; "
                "PREFECT_SERVER_CORS_ALLOWED_ORIGINS lists further origins\n",
                403,
            )
            await refusal(scope, receive, send)

    def _is_foreign(self, headers: Headers) -> bool:
        origin = headers.get("origin")
        if origin is not None:
            return origin not in self.origins
        # Browsers omit Origin for links, which may lead here from anywhere, and for frames and images, which may not.
        is_elsewhere = headers.get("sec-fetch-site") in {"cross-site", "same-site"}
        return is_elsewhere and headers.get("sec-fetch-dest") != "document"


def main(arguments: list[str] | None = None) -> None:
    """Run the server as `prefect server start` does, until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m flows.own_server", description="Start a protected Prefect server.")
    parser.add_argument("--fd", type=int, help="descriptor of a bound socket to listen on; default: host and port")
    parser.add_argument("--temporary", action="store_true", help="no UI, and end when standard input is closed")
    chosen = parser.parse_args(arguments)
    if chosen.temporary:
        threading.Thread(target=_end_with_parent, daemon=True).start()

    import uvicorn
    from prefect.server.api.server import create_app

    origins = own_origins()
    with temporary_settings({PREFECT_SERVER_CORS_ALLOWED_ORIGINS: ",".join(origins)}):
        server = get_current_settings().server
        uvicorn.run(
            protected(create_app(ephemeral=chosen.temporary, final=True), origins),
            host=server.api.host,
            port=server.api.port,
            fd=chosen.fd,
            timeout_keep_alive=server.api.keepalive_timeout,
            ws_ping_interval=server.api.websocket_ping_interval,
            ws_ping_timeout=server.api.websocket_ping_timeout,
            log_level=server.logging_level.lower(),
        )


def _end_with_parent() -> None:
    # Not through sys.stdin, whose lock a daemon thread would hold when the interpreter ends.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    try:
        main()
    except ConfigurationError as error:
        sys.exit(f"error: {error}")
