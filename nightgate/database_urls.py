"""URLs of databases, as SQLAlchemy reads them and as logs and errors may show them."""

from __future__ import annotations

import re
from urllib.parse import quote, quote_plus

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError


def read_url(text: str) -> URL:
    """SQLAlchemy's reading of a URL.

    Raises:
        ArgumentError, ValueError: it is none, or an unquoted @ would make a part of the password the host.
    """
    url = sa.make_url(text)
    read = re.match(r"[^:]*://(?:[^:/]*(?::[^@]*)?@)?", text)
    if url.get_backend_name() != "sqlite" and read and "@" in text[read.end() :]:
        raise ValueError
    return url


def safe_url(url: str | URL) -> str:
    """`url` for logs and errors: with user, host and database, without secrets."""
    if isinstance(url, str):
        scheme, separator, _ = url.partition("://")
        try:
            url = read_url(url)
        except (ArgumentError, ValueError):
            return f"{scheme}://***" if separator else "***"
    if url.get_backend_name() == "sqlite":
        return url.database or "sqlite"
    kept = {key: value for key, value in url.query.items() if key in {"host", "port", "dbname", "user", "sslmode"}}
    return url.set(query=kept, drivername=url.get_backend_name()).render_as_string(hide_password=True)


def without_secrets(text: str, url: URL) -> str:
    """`text` without the secrets of `url`, on one line."""
    secrets = [url.password, *(value for key, value in url.query.items() if re.search("pass|token|secret|key", key))]
    for secret in secrets:
        for value in (secret,) if isinstance(secret, str) else secret or ():
            for written in {value, quote(value), quote(value, safe=""), quote_plus(value)} - {""}:
                text = text.replace(written, "***")
    return " ".join(text.split())[:500]
