"""Find the files of paths, globs and URLs: their names, and versions that change with their content."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from nightgate.durable_files import user_path
from nightgate.errors import DataError, SourceUnavailableError, first_line, without_credentials
from nightgate.sources.source import Part

COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
_MARKS = (
    *("etag", "md5hash", "content-md5", "digest", "blob_id"),
    *("lastmodified", "last-modified", "updated", "mtime", "created"),
)
"""What file systems say of a file that changes with it."""


@dataclass(frozen=True)
class FoundFile:
    """A file of this machine or of another."""

    name: str
    """Path or URL."""
    version: str
    """As in `Part`."""
    bytes: int | None = None
    modified: datetime | None = None
    address: str = ""
    """Where it is read, if that is not its name."""

    @cached_property
    def is_local(self) -> bool:
        return "://" not in (self.address or self.name)

    @property
    def part(self) -> Part:
        return Part(self.name, self.version, bytes=self.bytes, modified=self.modified)

    @property
    def path(self) -> Path:
        """The path, without the host of a URL and what follows a question mark."""
        return Path(self.name if self.is_local else unquote(urlsplit(self.name).path))

    @property
    def folder_values(self) -> dict[str, str | None]:
        """The values that folders name, as Hive and Spark write them: `language=en/part-0.parquet`."""
        pairs = (folder.split("=", 1) for folder in self.path.parts[:-1] if "=" in folder)
        return {name: None if value == _NO_VALUE else unquote(value) for name, value in pairs}

    @contextmanager
    def local(self) -> Iterator[Path]:
        """A path on this machine: a file of another one is copied for the time of the block."""
        if self.is_local:
            yield Path(self.address or self.name)
            return
        with tempfile.NamedTemporaryFile(prefix="nightgate-") as copy:
            address = self.address or self.name
            with _reaching(address):
                system, path = _system(address)
                system.get_file(path, copy.name)
            yield Path(copy.name)


def matching_files(patterns: Sequence[str]) -> list[FoundFile]:
    """The files that match paths, globs and URLs, sorted, without duplicates.

    Files and folders whose names begin with `_` or `.` do not match a wildcard: other programs are still writing them,
    or they hold no rows (`_SUCCESS`).

    Raises:
        DataError: a pattern that matches no file, or a server that does not answer.
    """
    found: dict[Any, FoundFile] = {}
    for pattern in patterns:
        if "://" in pattern and not pattern.startswith("file://"):
            found.update((file.name, file) for file in _remote(pattern))
        else:
            for path in sorted(_local(pattern.removeprefix("file://"))):
                found.setdefault(path.resolve(), _on_disk(path))
    return sorted(found.values(), key=lambda file: file.path.parts if file.is_local else (file.name,))


def file_at(address: str, name: str = "") -> FoundFile:
    """The file of a path or URL that exists; `name` is shown in its place.

    Raises:
        DataError: it cannot be reached.
    """
    if "://" not in address:
        file = _on_disk(Path(address))
    else:
        with _reaching(address):
            system, path = _system(address)
            file = _elsewhere(address, system.info(path))
    return replace(file, name=name or file.name, address=address)


def starts_with(address: str, sign: bytes) -> bool:
    """Whether the text of a file, which may be compressed, begins with a sign, behind white space.

    Raises:
        DataError: it cannot be reached.
    """
    import fsspec

    with _reaching(address), fsspec.open(address, "rb", compression="infer") as file:
        return bool(file.read(64).lstrip().startswith(sign))


def _local(pattern: str) -> list[Path]:
    expanded = str(user_path(pattern))
    # A name with brackets is a glob only if no file has that name.
    names = [expanded] if Path(expanded).exists() else glob.glob(expanded, recursive=True)  # noqa: PTH207 (Path.glob refuses absolute patterns)
    files = [Path(name) for name in _shown(names, expanded) if Path(name).is_file()]
    if files:
        return files
    folders = [name for name in sorted(names) if Path(name).is_dir()]
    if folders:
        example = f'"{folders[0].rstrip("/")}/*.parquet"'
        raise DataError(f"{pattern} is a folder", next_step=f"name the files in it, such as {example}")
    raise _no_match(pattern, names, f"searched from {Path.cwd()}")


def _on_disk(path: Path) -> FoundFile:
    stat = path.stat()
    # With the time of the last change of the inode: a copy can keep the time of modification.
    version = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}"
    return FoundFile(str(path), version, stat.st_size, datetime.fromtimestamp(stat.st_mtime, UTC))


def _remote(pattern: str) -> list[FoundFile]:
    with _reaching(pattern):
        system, path = _system(pattern)
        system.invalidate_cache()
        # A question mark begins the query of a web address.
        is_glob = any(sign in path for sign in ("*?[" if not pattern.startswith("http") else "*["))
        infos = system.glob(path, detail=True) if is_glob else {path: system.info(path)}
    names = [name for name, info in infos.items() if info.get("type", "file") == "file"]
    kept = _shown(names, path)
    if not kept:
        raise _no_match(pattern, names, "looked on that server")
    return [_elsewhere(str(system.unstrip_protocol(name)), infos[name]) for name in kept]


def _elsewhere(name: str, info: Mapping[str, Any]) -> FoundFile:
    facts = {key.lower().replace("_modified", "modified"): value for key, value in info.items()}
    marks = [f"{facts[mark]}".strip('"') for mark in _MARKS if facts.get(mark)]
    modified = next((value for value in facts.values() if isinstance(value, datetime) and value.tzinfo), None)
    version = "-".join([str(facts.get("size")), *marks]) if marks else ""
    return FoundFile(name, version, facts.get("size"), modified)


def _shown(names: Sequence[str], pattern: str) -> list[str]:
    """The names without those that a wildcard does not match."""
    fixed = len(Path(pattern.split("*")[0].split("?")[0].split("[")[0] + "x").parts) - 1
    if Path(pattern).name.startswith(("_", ".")) or names == [pattern]:
        return list(names)
    return [name for name in names if not any(part.startswith(("_", ".")) for part in Path(name).parts[fixed:])]


def _no_match(pattern: str, passed_over: Sequence[str], where: str) -> DataError:
    hidden = f"; {len(passed_over)} begin with _ or . and are passed over" if passed_over else ""
    return DataError(
        f"no file matches {without_credentials(pattern)} ({where}{hidden})",
        next_step="check data.source.paths; they are relative to the folder in which the command runs",
    )


def _system(url: str) -> tuple[Any, str]:
    # Imported here because a night on local files does without.
    import fsspec.core

    system, path = fsspec.core.url_to_fs(url)
    return system, path


@contextmanager
def _reaching(url: str) -> Iterator[None]:
    """Turn any exception of a file system into a DataError with a next step."""
    try:
        yield
    except Exception as error:
        shown, detail = without_credentials(url), without_credentials(first_line(error))
        protocol = url.partition("://")[0]
        if isinstance(error, ImportError):
            extra = "nightgate[s3]" if protocol in {"s3", "s3a"} else f"fsspec[{protocol}]"
            problem, next_step = "needs a package that is not installed", f'run pip install "{extra}"'
        elif any("Connect" in kind or "Timeout" in kind for kind in _kinds(error)):
            raise SourceUnavailableError(
                f"{shown} cannot be reached: {detail}", next_step="check the address and the network, and run again"
            ) from error
        elif isinstance(error, FileNotFoundError):
            problem, next_step = "does not exist", "check data.source.paths"
        elif isinstance(error, PermissionError):
            problem, next_step = "may not be read", "check the credentials in this environment"
        elif isinstance(error, ValueError) and "rotocol not known" in detail:
            problem, next_step = "has an unknown protocol", "write a path, or a URL such as s3://bucket/reviews/*.csv"
        else:
            problem, next_step = "cannot be read", "check the address and the credentials, and run again"
        raise DataError(f"{shown} {problem}: {detail}", next_step=next_step) from error


def _kinds(error: BaseException | None) -> set[str]:
    """Names of the types of an error and its causes: of a server that does not answer, fsspec says 'not found'."""
    return {kind.__name__ for kind in type(error).__mro__} | _kinds(error.__cause__) if error else set()
