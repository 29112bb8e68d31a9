"""The fingerprint that identifies equal texts, and the hashed split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray


def fingerprint(text: str) -> str:
    """32 hex digits of the SHA-256 of a normalised, case-folded text: 'GREAT' and 'great' are equal."""
    return hashlib.sha256(text.casefold().encode()).hexdigest()[:32]


def digests(texts: Iterable[str]) -> NDArray[np.uint64]:
    """The 128 bits of each text's fingerprint as two numbers in the order of its hex digits, shape [texts, 2]."""
    sha256 = hashlib.sha256
    joined = b"".join([sha256(text.casefold().encode()).digest()[:16] for text in texts])
    return np.frombuffer(joined, ">u8").astype(np.uint64).reshape(-1, 2)


def text_keys(fingerprints: Iterable[str]) -> NDArray[np.uint64]:
    """The first halves of fingerprints as numbers."""
    return np.array([int(mark[:16], 16) for mark in fingerprints], np.uint64)


def hashed_fraction(seed: int, key: str) -> float:
    """A number in [0, 1) from `seed` and `key` alone, the same on any machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{key}".encode()).digest()[:6], "big") / 2**48


def side_of(key: str, *, seed: int, validation: float, test: float) -> str:
    """The split of a fingerprint or group by its hash: `test`, `validation` or `train`.

    Test comes first, so that another `validation` share moves no row in or out of it.
    """
    place = hashed_fraction(seed, key)
    if place < test:
        return "test"
    return "validation" if place < test + validation else "train"


def sides_of(keys: Iterable[str], *, seed: int, validation: float, test: float) -> NDArray[np.int8]:
    """`side_of` many keys, as 0 for train, 1 for validation and 2 for test."""
    seeded = hashlib.sha256(f"{seed}\n".encode())

    def hashed() -> Iterator[int]:
        for key in keys:
            digest = seeded.copy()
            digest.update(key.encode())
            yield int.from_bytes(digest.digest()[:6], "big")

    places = np.fromiter(hashed(), np.float64) / 2**48
    return np.where(places < test, 2, np.where(places < test + validation, 1, 0)).astype(np.int8)
