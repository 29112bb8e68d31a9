"""Files that one night leaves to the next to save work: arrays under a checksum, of which nothing depends.

Whatever is wrong with such a file, or with the disk that it should go to, is a warning: the work is then done anew.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate.errors import StorageError
from nightgate.files import write_whole

log = logging.getLogger(__name__)

KEY_BYTES = 16

Arrays = Mapping[str, NDArray[Any]]
Keys = NDArray[np.bytes_]
"""Shape [rows], dtype S16: one digest for each text."""


def text_keys(texts: Sequence[str]) -> Keys:
    """BLAKE2b of each text as the tokenizer gets it."""
    digests = (hashlib.blake2b(str(text).encode("utf-8", "surrogatepass"), digest_size=KEY_BYTES) for text in texts)
    return np.frombuffer(b"".join(digest.digest() for digest in digests), dtype=f"S{KEY_BYTES}")


def find(keys: Keys, stored: Keys) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Which `keys` are among the ascending `stored` ones, and where; the place of others means nothing."""
    place = np.searchsorted(stored, keys).astype(np.int64)
    inside = place < len(stored)
    known = inside.copy()
    known[inside] = stored[place[inside]] == keys[inside]
    return known, place


def keys_as_bytes(keys: Keys) -> NDArray[np.uint8]:
    """[rows, 16], as a file takes them."""
    return np.ascontiguousarray(keys).view(np.uint8).reshape(len(keys), KEY_BYTES)


def bytes_as_keys(stored: NDArray[np.uint8]) -> Keys:
    return np.ascontiguousarray(stored).reshape(-1).view(f"S{KEY_BYTES}")


def read(path: Path, names: set[str]) -> dict[str, NDArray[Any]] | None:
    """The arrays of a file that `write` wrote; None where there is none, or none that is as it was written."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            digest = (file.metadata() or {}).get("blake2b")
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        log.warning("%s cannot be read, its rows are computed anew: %s", path, error)
        return None
    if digest != _digest(arrays) or set(arrays) != names:
        log.warning("%s is not as it was written, its rows are computed anew", path)
        return None
    return arrays


def write(path: Path, arrays: Arrays) -> None:
    """Replace the file, whole or not at all."""
    from safetensors.numpy import save

    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    try:
        write_whole(path, save(contiguous, metadata={"blake2b": _digest(contiguous)}))
    except (StorageError, OSError) as error:
        log.warning("%s cannot be written, the next night computes its rows anew: %s", path, error)


def keep_newest(folder: Path, count: int) -> None:
    """Remove all files of `folder` but the `count` written (or touched) last."""
    # Another process may be at the same, and a disk may be read-only.
    with suppress(OSError):
        ages = {path: path.stat().st_mtime_ns for path in folder.glob("*.safetensors")}
        for path in sorted(ages, key=lambda path: ages[path], reverse=True)[count:]:
            path.unlink(missing_ok=True)


def _digest(arrays: Arrays) -> str:
    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.data if array.size else b"")
    return digest.hexdigest()
