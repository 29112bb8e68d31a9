"""Files as streams of bytes or text: plain or compressed, in memory that does not grow with them."""

from __future__ import annotations

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, BinaryIO

import zstandard

from nightgate.errors import DataError

MOST_EXPANSION = 200
"""Times its own size to which a compressed file may expand. Text shrinks to a tenth, zeros to a thousandth."""
FREE_EXPANSION = 64 * 2**20
"""Bytes that any compressed file may expand to."""
_CHUNK = 2**18
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst"}
_PIECE = 4096
"""Compressed bytes that are unpacked at a time; zstd makes at most 128 MiB of them."""


def codec_of(encoding: str) -> str:
    """The codec of an encoding: that of UTF-8 skips a byte order mark."""
    return "utf-8-sig" if encoding.lower().replace("_", "-") in {"utf-8", "utf8"} else encoding


@dataclass(frozen=True)
class File:
    """A file on this machine, with the name by which its user knows it."""

    path: Path
    name: str
    compression: str | None
    """"gzip", "zstd" or None."""


@contextmanager
def open_text(file: File, encoding: str, newline: str) -> Iterator[io.TextIOWrapper]:
    """The text of a file, with `newline` as in `open`.

    Raises:
        DataError: it cannot be read or unpacked, is in another encoding or holds NUL bytes. Also while it is read.
    """
    with _errors(file), file.path.open("rb") as binary:
        parts = _checked(_unpacked(binary, file), file, encoding)
        with io.TextIOWrapper(io.BufferedReader(_Stream(parts), _CHUNK), codec_of(encoding), newline=newline) as text:
            try:
                yield text
            except UnicodeDecodeError as error:
                raise _undecodable(file, encoding) from error


def guess_encoding(file: File) -> str:
    """UTF-8; else UTF-16 or, as of Windows, cp1252; by the first 64 MiB of a text.

    Raises:
        DataError: it cannot be read or unpacked.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    with _errors(file), file.path.open("rb") as binary:
        for number, part in enumerate(islice(_unpacked(binary, file), 2**26 // _CHUNK)):
            if number == 0 and (wide := _wide_encoding(part)):
                return wide
            try:
                decoder.decode(part)
            except UnicodeDecodeError:
                return "cp1252"
    return "utf-8"


def unpack(file: File, target: IO[bytes]) -> None:
    """Write the unpacked bytes of a file to `target`.

    Raises:
        DataError: it cannot be read or unpacked.
    """
    with _errors(file), file.path.open("rb") as binary:
        for part in _unpacked(binary, file):
            target.write(part)


def empty_file(file: File) -> DataError:
    return DataError(f"{file.name} is empty", next_step="write it again, or remove it from data.source.paths")


@contextmanager
def _errors(file: File) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        what = (
            "ends too early" if isinstance(error, EOFError) else f"is not {file.compression}, or is damaged ({error})"
        )
        raise DataError(
            f"{file.name} {what}", next_step="copy or write it again; none of its rows were used"
        ) from error
    except OSError as error:
        raise DataError(
            f"cannot read {file.name}: {error.strerror}", next_step="give this user the right to read it"
        ) from error


class _Stream(io.RawIOBase):
    """A stream of the bytes of an iterator."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        self._parts = parts
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = memoryview(part)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def _unpacked(binary: BinaryIO, file: File) -> Iterator[bytes]:
    if file.compression is None:
        while part := binary.read(_CHUNK):
            yield part
        return
    size, total = file.path.stat().st_size, 0
    limit = max(FREE_EXPANSION, MOST_EXPANSION * size)
    for part in (_gzip_parts if file.compression == "gzip" else _zstd_parts)(binary):
        total += len(part)
        if total > limit:
            raise DataError(
                f"{file.name} has {size:,} bytes and expands to more than {limit:,}: none of its rows were used",
                next_step="if its rows are meant, unpack it and name the unpacked file in data.source.paths",
            )
        yield part


def _gzip_parts(packed: BinaryIO) -> Iterator[bytes]:
    with gzip.GzipFile(fileobj=packed) as file:
        while part := file.read(_CHUNK):
            yield part


def _zstd_parts(packed: BinaryIO) -> Iterator[bytes]:
    # The stream reader of zstandard says nothing when a frame ends too early; a decompressor's `eof` does.
    rest = packed.read(_PIECE)
    while rest:
        frame = zstandard.ZstdDecompressor(max_window_size=2**31).decompressobj()
        while not frame.eof:
            if not rest:
                raise EOFError
            yield frame.decompress(rest)
            rest = packed.read(_PIECE)
        rest = frame.unused_data + rest


def _checked(parts: Iterator[bytes], file: File, encoding: str) -> Iterator[bytes]:
    """The parts of a text; only UTF-16 and UTF-32 have NUL bytes.

    Raises:
        DataError: it is compressed, in UTF-16 unawares, or has NUL bytes.
    """
    wide = len("a".encode(encoding)) > 1
    lines = 0
    for part in parts:
        if not lines and (ending := next((_MAGIC[magic] for magic in _MAGIC if part.startswith(magic)), "")):
            raise DataError(f"{file.name} is compressed", next_step=f"its name must end in {ending}")
        if not wide and (guess := _wide_encoding(part)):
            raise DataError(
                f"{file.name} is not {encoding}: it looks like UTF-16",
                next_step=f'name its encoding in data.source: encoding = "{guess}"',
            )
        if not wide and (nul := part.find(b"\0")) >= 0:
            raise DataError(
                f"{file.name}, line {1 + lines + part.count(10, 0, nul)}: NUL byte in a text file",
                next_step="write the file again; a crash during writing often leaves NUL bytes",
            )
        lines += part.count(10)
        yield part


def _wide_encoding(part: bytes) -> str:
    """The UTF-16 that a byte order mark shows, or the NUL bytes of its Latin letters; '' for other text."""
    if part.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" not in part:
        return ""
    even, odd = (part[start::2].count(0) / (len(part) / 2) for start in (0, 1))
    if max(even, odd) < 0.3 or min(even, odd) > 0.05:
        return ""
    return "utf-16-le" if odd > even else "utf-16-be"


def _undecodable(file: File, encoding: str) -> DataError:
    """The error that names the first byte that is not in this encoding: reads the file again."""
    decoder = codecs.getincrementaldecoder(codec_of(encoding))()
    place, lines, wrong = 0, 1, "??"
    with file.path.open("rb") as binary:
        for part in _unpacked(binary, file):
            pending = decoder.getstate()[0]
            try:
                decoder.decode(part)
            except UnicodeDecodeError as error:
                # The bytes of a character may begin in the part before.
                start = error.start - len(pending)
                place, lines = place + start, lines + part.count(10, 0, max(0, start))
                wrong = error.object[error.start : error.start + 1].hex()
                break
            place, lines = place + len(part), lines + part.count(10)
    guess = "cp1252" if codec_of(encoding) == "utf-8-sig" else "utf-8"
    return DataError(
        f"{file.name} is not {encoding}: byte {place} (line {lines}) is 0x{wrong}",
        next_step=f'name its encoding in data.source, such as encoding = "{guess}", or save it as UTF-8',
    )
