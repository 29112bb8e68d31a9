"""The fingerprint that identifies equal texts, and the hashed split. Pure Python."""

from __future__ import annotations

import hashlib


def fingerprint(text: str) -> str:
    """32 hex digits of the SHA-256 of a normalised, case-folded text: 'GREAT' and 'great' are equal."""
    return hashlib.sha256(text.casefold().encode()).hexdigest()[:32]


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
