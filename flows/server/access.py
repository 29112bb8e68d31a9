"""Who can reach a Prefect server, judged by what it answers: pages in a browser, other users, the network."""

from __future__ import annotations

import ipaddress
import os
import pwd
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil

from flows.server.connection import stranger
from nightgate.operations.findings import Finding

SITE = "http://doctor.invalid"
"""Origin of a page that no server should know."""
OWN = "start it with `nightgate serve` or `python -m flows.own_server`"
WITH_PASSWORD = "start it with `nightgate serve --auth`, or with PREFECT_SERVER_API_AUTH_STRING"


@dataclass(frozen=True)
class Access:
    """What a server answers to a client without credentials."""

    url: str
    needs_password: bool
    read_by_pages: bool
    """A page of another site may read its answers."""
    changed_by_pages: bool
    """A page of another site may send it changes, by its address or by a name of its own (DNS rebinding)."""
    listens_on: tuple[str, ...]
    """Addresses of this machine on which it listens; empty if they are not known, as those of another machine."""


def access(api_url: str) -> Access:
    """Ask a server as a stranger does. Nothing is changed.

    Raises:
        httpx.HTTPError: it does not answer.
    """
    page = stranger(api_url, Origin=SITE)
    # Counts runs, so it changes nothing; Prefect takes it as it takes changes, without a content type too.
    sent = [
        stranger(api_url, "POST", "/flow_runs/count", **{name: SITE[at:]}) for name, at in (("Origin", 0), ("Host", 7))
    ]
    return Access(
        url=api_url,
        needs_password=stranger(api_url).status_code == 401,
        read_by_pages=page.is_success and "access-control-allow-origin" in page.headers,
        changed_by_pages=any(answer.is_success for answer in sent),
        listens_on=tuple(sorted({one.laddr.ip for one in listeners(api_url)})),
    )


def access_findings(found: Access, users: Sequence[str]) -> Iterator[Finding]:
    """A finding for pages, for other users of this machine, and for the network.

    Args:
        users: other users who can log in to this machine.
    """
    password = "only with the server's password"
    if found.needs_password:
        yield Finding("ok", "reached by web pages", password)
    elif found.read_by_pages or found.changed_by_pages:
        may = " and ".join(["read it"] * found.read_by_pages + ["send it changes"] * found.changed_by_pages)
        yield Finding("warning", "reached by web pages", f"a page of any site in a browser here can {may}", OWN)
    else:
        yield Finding("ok", "reached by web pages", "not by pages of other sites")

    host = urlsplit(found.url).hostname or ""
    everything = "start, change and delete runs, and so run code as its workers' user"
    if found.needs_password:
        yield Finding("ok", "reached by other users", password)
    elif users and is_loopback(host):
        names = ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else "")
        yield Finding("warning", "reached by other users", f"{names} of this machine can {everything}", WITH_PASSWORD)
    elif is_loopback(host):
        yield Finding("ok", "reached by other users", "by every user of this machine, which has no other")

    addresses = found.listens_on or (host,)
    open_to = ", ".join(address for address in addresses if not is_loopback(address))
    if not open_to:
        yield Finding("ok", "reached by the network", f"no: it listens on {', '.join(addresses)}")
    elif found.needs_password:
        yield Finding("ok", "reached by the network", f"at {open_to}, {password}")
    else:
        yield Finding(
            "warning", "reached by the network", f"at {open_to}: anyone there can {everything}", WITH_PASSWORD
        )


def other_users() -> list[str]:
    """Other users of this machine, besides root, who can log in."""
    without_login = ("nologin", "false", "sync")
    return [
        user.pw_name
        for user in pwd.getpwall()
        if 1000 <= user.pw_uid < 65534 and user.pw_uid != os.geteuid() and not user.pw_shell.endswith(without_login)
    ]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def listeners(url: str) -> list[Any]:
    """The sockets of this machine that listen at the port of the URL; empty if they are not known."""
    parts = urlsplit(url)
    if not is_loopback(parts.hostname or ""):
        return []
    try:
        connections = psutil.net_connections("tcp")
    except (psutil.Error, OSError):
        return []
    return [one for one in connections if one.status == psutil.CONN_LISTEN and one.laddr.port == parts.port]
