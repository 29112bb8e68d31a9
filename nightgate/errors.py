"""The exceptions of Nightgate, as one tree. Each names the thing, its value and the next step.

NightgateError                 anything that Nightgate reports as a message instead of a traceback
├── ConfigurationError         a pipeline file, an option or a `--set` is wrong (exit 2)
├── DataError                  the source cannot be read, or holds nothing to train on
│   ├── SnapshotError          a stored snapshot is missing, incomplete or altered
│   ├── DataCheckError         a data check failed: the data look broken
│   └── SourceUnavailableError the source's server cannot be reached now
├── ModelError                 a base model or a stored version is missing, incomplete or altered
├── TrainingError              the training, scoring or serving process ended without a result
│   ├── NonFiniteLossError     NaN or infinity in a loss
│   ├── OutOfMemoryError       the device or the machine had too little memory
│   ├── CrashedError           the process died without reporting why (a signal, a segmentation fault)
│   └── StalledError           the process is alive but makes no progress
├── StorageError               the disk is full, read-only or not writable
├── DatabaseError              the metrics database is unreachable, read-only or at another revision
├── InternalError              a bug in Nightgate: any other exception
└── RegistryError              a version, champion or promotion that does not exist or is not allowed
    └── PromotionLostError     the champion changed meanwhile, or this run may no longer promote
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar


class NightgateError(Exception):
    """Base of all errors that are reported to a user.

    `next_step` is one imperative sentence; `error_type` is what `nightly_runs.error_type` stores.
    """

    error_type: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, next_step: str = "") -> None:
        super().__init__(message)
        self.next_step = next_step

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message}\n  next: {self.next_step}" if self.next_step else message

    @property
    def reason(self) -> str:
        """The message without the next step."""
        return super().__str__()


class ConfigurationError(NightgateError, ValueError):
    """All problems of one configuration, reported together."""

    error_type = "configuration"
    exit_code = 2

    def __init__(self, message: str, problems: Sequence[str] = (), *, next_step: str = "") -> None:
        self.problems = tuple(problems)
        lines = [message, *(f"  - {problem}" for problem in self.problems)]
        super().__init__("\n".join(lines), next_step=next_step)


class DataError(NightgateError, ValueError):
    error_type = "data"
    quarantined: Sequence[Any] = ()
    """The quarantined rows (`nightgate.sources.source_table.Quarantined`) of a refresh that fails."""
    parts: Sequence[Any] = ()
    """Its counts (`nightgate.data.refresh_counts.PartCounts`)."""
    checks: Sequence[Any] = ()
    """Its results (`nightgate.data.checks.CheckResult`), where a data check failed."""


class SnapshotError(DataError):
    error_type = "snapshot"


class DataCheckError(DataError):
    error_type = "data_check_failed"


class SourceUnavailableError(DataError):
    error_type = "source_unavailable"


class ModelError(NightgateError):
    error_type = "model"


class TrainingError(NightgateError):
    error_type = "training"


class NonFiniteLossError(TrainingError):
    error_type = "nonfinite_loss"


class OutOfMemoryError(TrainingError):
    error_type = "out_of_memory"


class CrashedError(TrainingError):
    error_type = "crashed"


class StalledError(TrainingError):
    error_type = "stalled"


class StorageError(NightgateError):
    error_type = "storage"


class DatabaseError(NightgateError):
    error_type = "database"


class RegistryError(NightgateError):
    error_type = "registry"


class PromotionLostError(RegistryError):
    error_type = "promotion_lost"


class InternalError(NightgateError):
    error_type = "internal"

    @classmethod
    def of(cls, error: Exception) -> NightgateError:
        """`error` itself if it is a NightgateError, else an InternalError that describes it."""
        if isinstance(error, NightgateError):
            return error
        step = "this is a bug in Nightgate: report it with the log, then run the same command again"
        return cls(f"{type(error).__name__}: {error}", next_step=step)


ERRORS_BY_TYPE: dict[str, type[NightgateError]] = {
    error.error_type: error
    for parent in (DataError, ModelError, TrainingError, StorageError)
    for error in (parent, *parent.__subclasses__())
}
"""The errors that the training process may report by name to its supervisor."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error` is torch's, Python's or the kernel's way to report that memory ran out."""
    words = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED")
    return (
        isinstance(error, MemoryError)
        # torch's own class, by name: this module does not import torch.
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or any(word in str(error) for word in words)
    )


# To the last @ of the word where a colon comes before it: an unquoted password may hold @ and / itself. An example in a
# next step stays.
_CREDENTIALS = re.compile(r"//(?!user:password@)(?:[^\s:\"'<>]*:[^\s\"'<>]*|[^/\s\"'<>]+)@")


def without_credentials(text: str) -> str:
    """`text` with user and password of every URL masked, also where the password is not quoted for a URL."""
    return _CREDENTIALS.sub("//***@", text)


def is_misquoted(url: str) -> bool:
    """Whether user or password of a URL hold a character that ends them too early, such as an unquoted / or @."""
    return bool(re.search(r"//[^@]*[/?#@\s].*@", url, re.DOTALL))


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn `OSError`s about a full, read-only or forbidden disk under `path` into StorageErrors."""
    remedies = {
        errno.ENOSPC: "free some space there, then run the same command again: nothing complete was lost",
        errno.EDQUOT: "raise the quota or free some space there, then run the same command again",
        errno.EROFS: "mount it writable, or set NIGHTGATE_HOME to a folder that is",
        errno.EACCES: "give this user the right to write there, or set NIGHTGATE_HOME to a folder that it may write",
        errno.EPERM: "give this user the right to write there, or set NIGHTGATE_HOME to a folder that it may write",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in remedies:
            raise
        raise StorageError(f"cannot write to {path}: {error.strerror}", next_step=remedies[error.errno]) from error


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """`storage_errors` for a path that the user named; any other OSError means that nothing can be at such a path."""
    try:
        with storage_errors(path):
            yield
    except OSError as error:
        raise ConfigurationError(
            f"cannot write to {path}: {error.strerror or error}", next_step="name another place"
        ) from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its type where it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
