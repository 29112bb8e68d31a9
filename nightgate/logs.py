"""Logging of nights: each record carries pipeline, night, run and epoch, and secrets are masked.

    to_stderr()                                    # log this process to its terminal
    with night_context(pipeline="sample", night=date, run_id=run_id, attempt=1, directory=folder):
        set_epoch(2)                               # records from here on belong to epoch 2

Context and masking are filters on handlers, so that they apply to other libraries too; the same filter makes messages
legible. Records of Nightgate from INFO on, and of other libraries from WARNING on, are written to
`runs/<run_id>/log.jsonl`, one JSON object per line. The training process sends its records to its supervisor
(`nightgate.training.supervisor`).
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, quote_plus, unquote

from nightgate.errors import without_credentials
from nightgate.plain_text import legible

log = logging.getLogger(__name__)

LIBRARIES = ("nightgate", "transformers", "datasets", "evaluate", "huggingface_hub", "torch", "py.warnings")
"""Loggers whose records belong to a night; `py.warnings` is that of captured `warnings.warn` calls."""
_WITH_OWN_HANDLERS = ("transformers", "datasets", "huggingface_hub")

FILE = "log.jsonl"
FIELDS = ("pipeline", "night", "run_id", "attempt", "epoch")
"""The attributes that the context adds to a record."""

MASK = "***"
SHORTEST = 6
"""Shorter secrets are not masked: they may be ordinary words."""
LONG = 12
"""Secrets of this length or more are masked inside longer words too."""

_SECRET_ENDINGS = ("TOKEN", "PASSWORD", "SECRET", "KEY", "AUTH_STRING", "WEBHOOK_URL")
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}"  # Hugging Face
    r"|\bpn[ub]_[A-Za-z0-9]{16,}"  # Prefect Cloud
    r"|(?i:(?<=\bbearer )|(?<=\bbasic ))[A-Za-z0-9+/._~=-]{8,}"  # an Authorization header
    r"|(?i:(?<=\bpassword=)|(?<=\bsslpassword=)|(?<=\btoken=)|(?<=\bapi_key=))[^\s&'\",;]+"
)
_ADDRESS = re.compile(r"//(?P<user>[^:@]*:(?P<password>.+))@", re.DOTALL)


@dataclass
class NightContext:
    """The fields of a night's records: one object per night, shared by its threads and tasks."""

    pipeline: str
    night: str
    run_id: str
    attempt: int
    epoch: int | None = None


_current: ContextVar[NightContext | None] = ContextVar("nightgate_night", default=None)


def set_epoch(epoch: int | None) -> None:
    """Set the epoch (from 1, or None) of the records that follow; no effect outside a night."""
    if context := _current.get():
        context.epoch = epoch


@contextmanager
def night_context(
    *, pipeline: str, night: date | str, run_id: str, attempt: int = 1, directory: Path | None = None
) -> Iterator[NightContext]:
    """Add the night to records within the block, and write those of `LIBRARIES` to `directory/log.jsonl`.

    If the file cannot be written, the night continues without it.
    """
    context = NightContext(pipeline, str(night), run_id, attempt)
    before = _current.get()
    _current.set(context)
    try:
        with ExitStack() as stack:
            if directory is not None:
                _write_lines(context, directory, stack)
            yield context
    finally:
        # Not reset(token): a generator may be closed in another context than it was started in.
        _current.set(before)


def _write_lines(context: NightContext, directory: Path, stack: ExitStack) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handler = _NightFile(context, directory / FILE)
    except OSError as error:
        log.warning("the night continues without its log file %s: %s", directory / FILE, error)
        return
    stack.callback(handler.close)
    stack.enter_context(listening(handler))


@contextmanager
def listening(handler: logging.Handler) -> Iterator[None]:
    """Attach `handler` to `LIBRARIES` within the block: Nightgate from INFO on, the others from WARNING on."""
    protect(handler)
    handler.addFilter(belongs_to_night)
    loggers = [logging.getLogger(name) for name in LIBRARIES]
    library = loggers[0]
    level = library.level
    if not library.isEnabledFor(logging.INFO):
        library.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        library.setLevel(level)


def belongs_to_night(record: logging.LogRecord) -> bool:
    """Whether a record's level is high enough for the log of a night."""
    return record.levelno >= (logging.INFO if is_ours(record.name) else logging.WARNING)


def is_ours(name: str) -> bool:
    return name == "nightgate" or name.startswith("nightgate.")


def is_of_a_library(name: str) -> bool:
    """Whether a logger is one of `LIBRARIES` or a child of one."""
    return any(name == one or name.startswith(f"{one}.") for one in LIBRARIES)


def to_stderr() -> None:
    """Log this process to its terminal: Nightgate from INFO on, all others from WARNING on."""
    root = logging.getLogger()
    if not root.handlers:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(TerminalFormatter())
        root.addHandler(handler)
        root.setLevel(logging.WARNING)
    logging.getLogger("nightgate").setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    protect_all()


@contextmanager
def captured_warnings() -> Iterator[None]:
    """Send `warnings.warn` to the log within the block."""
    already = warnings.showwarning.__module__ == logging.__name__
    logging.captureWarnings(capture=True)
    try:
        yield
    finally:
        logging.captureWarnings(capture=already)


def protect(handler: logging.Handler) -> None:
    """Make `handler` add the context and mask secrets."""
    for kind in (WithContext, WithoutSecrets):
        if not any(isinstance(one, kind) for one in handler.filters):
            handler.addFilter(kind())


def protect_all() -> None:
    """Protect every handler that this process has now, and take over those of libraries."""
    for handler in all_handlers():
        protect(handler)
    adopt_libraries()


def adopt_libraries() -> bool:
    """Remove the handlers that libraries add to their own loggers at import, so that each line is logged once, masked.

    Returns False, and changes nothing, in a process whose logging Nightgate did not set up.
    """
    if not any(isinstance(one, WithoutSecrets) for handler in logging.getLogger().handlers for one in handler.filters):
        return False
    for logger in map(logging.getLogger, _WITH_OWN_HANDLERS):
        for handler in list(logger.handlers):
            if type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
                logger.propagate = True
    return True


def all_handlers() -> list[logging.Handler]:
    """Every handler on every logger of this process, without duplicates."""
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    found = [handler for logger in loggers if isinstance(logger, logging.Logger) for handler in logger.handlers]
    return list(dict.fromkeys(found))


class WithContext(logging.Filter):
    """Adds the night's `FIELDS` to records; None outside a night."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "run_id"):
            context = _current.get()
            for field in FIELDS:
                setattr(record, field, getattr(context, field, None))
        return True


class WithoutSecrets(logging.Filter):
    """Masks secrets in messages and tracebacks, and replaces control characters."""

    def filter(self, record: logging.LogRecord) -> bool:
        try:
            message = record.getMessage()
        except Exception:  # noqa: BLE001 - placeholders that do not match the values; the handler reports it
            return True
        shown = legible(without_secrets(message))
        if shown != message:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[0] is not None and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text and (traceback := legible(without_secrets(record.exc_text))) != record.exc_text:
            # Without exc_info no other formatter can print the original.
            record.exc_text, record.exc_info = traceback, None
        if record.stack_info:
            record.stack_info = without_secrets(record.stack_info)
        return True


def without_secrets(text: str) -> str:
    """Mask passwords in URLs, tokens, and the values of secret environment variables.

    A variable is secret if its name ends in one of `_SECRET_ENDINGS`; so is a password in the URL of any variable. They
    are also masked as quoted in a URL or a literal.
    """
    if known := _pattern(frozenset(_secrets(os.environ))):
        text = known.sub(MASK, text)
    return _SHAPES.sub(MASK, without_credentials(text))


def _secrets(environment: Mapping[str, str]) -> Iterator[str]:
    for name, value in environment.items():
        if name.upper().endswith(_SECRET_ENDINGS):
            yield value
            if name.upper().endswith("AUTH_STRING"):
                yield value.partition(":")[2]
        if "://" in value:
            if found := _ADDRESS.search(value):
                yield from (found["password"], found["user"])
            query = parse_qsl(value.partition("?")[2])
            yield from (given for key, given in query if key.lower().endswith(("password", "token")))


@lru_cache(maxsize=8)
def _pattern(secrets: frozenset[str]) -> re.Pattern[str] | None:
    forms = {form for secret in secrets for form in _forms(secret.strip()) if len(form) >= SHORTEST}
    if not forms:
        return None
    # Longest first: one may contain another.
    return re.compile("|".join(_as_word(form) for form in sorted(forms, key=len, reverse=True)))


def _forms(secret: str) -> Iterator[str]:
    """A secret as it is, and as quoted in a URL or a literal."""
    for plain in (secret, unquote(secret)):
        yield from (plain, quote(plain, safe=""), quote_plus(plain), repr(plain)[1:-1], json.dumps(plain)[1:-1])


def _as_word(secret: str) -> str:
    if len(secret) >= LONG:
        return re.escape(secret)
    before = r"(?<!\w)" if re.match(r"\w", secret[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", secret[-1]) else ""
    return f"{before}{re.escape(secret)}{after}"


class TerminalFormatter(logging.Formatter):
    """`03:15:07 [sample 2026-01-05, epoch 2] message`, with the level before it from WARNING on."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(context)s%(message)s", datefmt="%H:%M:%S")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's own name
        night = " ".join(str(getattr(record, field)) for field in ("pipeline", "night") if getattr(record, field, None))
        context = ", ".join(part for part in (night, epoch_of(record)) if part)
        level = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        record.context = (f"[{context}] " if context else "") + level
        return super().formatMessage(record)


def epoch_of(record: logging.LogRecord) -> str:
    """`epoch 2`; '' for a record without an epoch, or whose message begins with it."""
    epoch = getattr(record, "epoch", None)
    return f"epoch {epoch}" if epoch is not None and not record.getMessage().startswith("epoch ") else ""


class JsonLines(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, context and traceback.

    `context` is for records without one, such as those of another library's thread.
    """

    def __init__(self, context: NightContext | None = None) -> None:
        super().__init__()
        self._context = context

    def format(self, record: logging.LogRecord) -> str:
        context = record if getattr(record, "run_id", None) else self._context
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **{field: getattr(context, field, None) for field in FIELDS},
        }
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            line["exception"] = record.exc_text
        return json.dumps(line, ensure_ascii=False, default=str)


class _NightFile(logging.FileHandler):
    """The log file of one night. A full disk is reported once, on the other handlers."""

    def __init__(self, context: NightContext, path: Path) -> None:
        super().__init__(path, mode="a", encoding="utf-8", errors="backslashreplace")
        self.setFormatter(JsonLines(context))
        self._context = context
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        # Other nights of this process have their own files; records of threads without a night go to all.
        if not self._failed and _current.get() in (None, self._context):
            super().emit(record)

    def close(self) -> None:
        # Closing flushes again what a full disk refused.
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's own name
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        self._failed = True
        log.warning("the night continues without its log file %s: %s", self.baseFilename, error)
