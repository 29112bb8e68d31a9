"""Logits that one night leaves to the next, by model and row, so that a champion is scored on new rows only.

    <cache>/predictions/<pipeline>/<model>.safetensors      the rows that this model was scored on last

Stored logits are no evidence by themselves: of the rows that are found again a random 1 % is recomputed every night,
and one difference makes all of them worthless.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from nightgate import cache_files
from nightgate.files import sha256_of
from nightgate.gate.evidence import Reuse
from nightgate.gate.health import LOGIT_TOLERANCE

ENGINE_VERSION = 2
"""Raised with every change of forward passes that may change a logit."""
SHARE_RECOMPUTED = 0.01
LEAST_RECOMPUTED = 8
_NOTHING = {"keys": np.zeros((0, cache_files.KEY_BYTES), np.uint8)}
FILES_KEPT = 6
"""Of a pipeline: the candidate's, the champion's and the anchor's, and three more for nights that are run again."""

Logits = NDArray[np.float32]
Compute = Callable[[NDArray[np.int64]], Logits]
"""Logits [len(rows), labels] of these rows, computed now."""


@dataclass(frozen=True)
class Scored:
    """All that a logit of a given text depends on."""

    folder: Path
    tokenizer: str
    """`token_cache.tokenizer_hash`."""
    max_length: int
    label_names: tuple[str, ...]
    """In the order of the logits' columns."""
    device: str
    """As `devices.describe` says it: every kind rounds in its own way."""
    precision: str = "fp32"

    def key(self) -> str:
        """64 hex digits; weights and configuration are read."""
        parts = [
            sorted((file.name, sha256_of(file)) for file in self.folder.glob("*.safetensors")),
            sha256_of(self.folder / "config.json"),
            self.tokenizer,
            self.max_length,
            self.label_names,
            self.device,
            self.precision,
            ENGINE_VERSION,
            [importlib.metadata.version(name) for name in ("torch", "transformers")],
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


class PredictionCache:
    """The stored logits of one model of a pipeline."""

    def __init__(self, cache: Path, pipeline: str, key: str) -> None:
        self.path = cache / "predictions" / pipeline / f"{key}.safetensors"

    def complete(self, texts: Sequence[str], compute: Compute) -> tuple[Logits, Reuse]:
        """Logits [rows, labels] in the order of `texts`: stored ones where they prove sound, computed ones elsewhere.

        `compute` is called with the rows that are not stored and a random sample of those that are, and once more
        with all rows when a recomputed one differs.
        """
        everything = np.arange(len(texts))
        stored = cache_files.read(self.path, {"keys", "logits"}) or _NOTHING
        known, place = cache_files.find(cache_files.text_keys(texts), cache_files.bytes_as_keys(stored["keys"]))
        found = everything[known]
        if not len(found):
            return compute(everything), Reuse(rows=len(texts))
        count = min(len(found), max(LEAST_RECOMPUTED, math.ceil(SHARE_RECOMPUTED * len(found))))
        # Not seeded: nobody can know beforehand which rows are looked at.
        sample = np.random.default_rng().choice(found, count, replace=False)
        rows = np.union1d(everything[~known], sample)
        fresh = compute(rows)
        differing = _differing(stored["logits"][place[sample]], fresh[np.searchsorted(rows, sample)])
        if differing:
            with suppress(OSError):
                self.path.unlink()
            return compute(everything), Reuse(rows=len(texts), recomputed=count, differing=differing)
        logits = np.empty((len(texts), fresh.shape[1]), np.float32)
        logits[known] = stored["logits"][place[known]]
        logits[rows] = fresh
        return logits, Reuse(rows=len(texts), reused=len(found), recomputed=count)

    def keep(self, texts: Sequence[str], logits: Logits) -> None:
        """Store these rows of the model, and no others; nothing when a logit is not finite.

        Of all models of the pipeline only those that were stored last stay.
        """
        if not np.isfinite(logits).all():
            return
        keys, first = np.unique(cache_files.text_keys(texts), return_index=True)
        arrays: cache_files.Arrays = {
            "keys": cache_files.keys_as_bytes(keys),
            "logits": logits[first].astype(np.float32),
        }
        cache_files.write(self.path, arrays)
        cache_files.keep_newest(self.path.parent, FILES_KEPT)


def _differing(stored: Logits, fresh: Logits) -> int:
    """Rows in which a logit or the predicted label is another one."""
    if stored.shape != fresh.shape:
        return len(fresh)
    far = ~(np.abs(stored - fresh) <= LOGIT_TOLERANCE).all(axis=1)
    return int((far | (stored.argmax(axis=1) != fresh.argmax(axis=1))).sum())
