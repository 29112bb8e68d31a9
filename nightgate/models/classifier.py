"""Predictions of a version: `nightgate.load_champion("reviews").predict(["Fits well", "Broke at once"])`.

Texts are normalised, tokenised and truncated by the code of training, and computed in its precision, so the test score
holds for these predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from numpy.typing import NDArray

from nightgate.config.training import Precision
from nightgate.errors import DataError, ModelError
from nightgate.models.version_folder import RESTORE, verify_version
from nightgate.text_rules import join_texts

if TYPE_CHECKING:
    from nightgate.engine.devices import Picked
    from nightgate.engine.forward import Forward

TEXTS_TO_PACK = 64
"""With fewer, checking packed texts against the stock model would take longer than they save."""


@dataclass(frozen=True)
class Prediction:
    label: str
    probability: float
    """Of `label`."""
    probabilities: dict[str, float]
    """By label, in the order of the classes; the sum is 1."""


class Classifier:
    """A verified version, loaded in evaluation mode. Not thread-safe: the tokenizer has state."""

    def __init__(self, path: Path, manifest: dict[str, Any], loaded: Any, picked: Picked) -> None:
        configured = int(manifest["configuration"]["training"]["max_length"])
        self.path = path
        self.manifest = manifest
        self.pipeline: str = manifest["pipeline"]
        self.version: int = manifest["version"]
        self.label_names: tuple[str, ...] = tuple(manifest["label_names"])
        self.max_length: int = min(configured, loaded.max_length)
        self.device = str(picked.device)
        self._picked = picked
        self._model = loaded.model.to(picked.device).eval()
        self._tokenizer = loaded.tokenizer
        self._packed: Forward | None = None
        """How many texts at once are computed, chosen when there are some."""

    @classmethod
    def open(cls, path: Path, *, device: str | None = None, precision: Precision | None = None) -> Classifier:
        """Verify and load the version at `path`.

        Args:
            device: as PyTorch names it; None uses a GPU if there is one.
            precision: 'auto', 'bf16', 'fp16' or 'fp32', as `training.precision`; None uses that of the version.

        Raises:
            ModelError: the folder is incomplete or altered, or cannot be loaded.
            DataError: there is no such precision.
        """
        if precision is not None and precision not in get_args(Precision):
            raise DataError(f"precision is {precision!r}", next_step=f"give one of {', '.join(get_args(Precision))}")
        manifest = verify_version(path)
        named = f"version {manifest['version']} of {manifest['pipeline']}"
        with _transformers_settings_restored():
            # Imported here: commands that only list versions need no PyTorch.
            from nightgate.engine import base_models, devices

            picked = devices.pick(precision or manifest["configuration"]["training"]["precision"], device)
            loaded = base_models.load_trained(path, named=named)
            found = base_models.labels_of(loaded.model)
        if found != manifest["label_names"]:
            raise ModelError(
                f"{named} has the labels {found}, its manifest says {manifest['label_names']}", next_step=RESTORE
            )
        return cls(path, manifest, loaded, picked)

    def __repr__(self) -> str:
        return f"<Classifier {self.pipeline} version {self.version} on {self.device} in {self.precision}>"

    @property
    def precision(self) -> str:
        """'bf16', 'fp16' or 'fp32'. On a CPU the first texts may turn bf16 into fp32, where its logits would differ."""
        return self._picked.precision

    def predict(self, texts: Sequence[str | Sequence[str]], batch_size: int = 32) -> list[Prediction]:
        """Predict the label of each text, in order; texts longer than `max_length` tokens are truncated.

        Args:
            texts: strings, or sequences of parts if the pipeline joins several columns.

        Raises:
            DataError: not a list, an item that is empty or not a text, or a batch size below 1.
        """
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}", next_step="give the number of texts per batch, 1 or more")
        if isinstance(texts, str):
            raise DataError("predict takes a list of texts, not one text", next_step="write predict([text])")
        clean = [_normalised(text, position) for position, text in enumerate(texts)]
        return [self._prediction(row) for row in self.probabilities(clean, batch_size)]

    def _prediction(self, shares: NDArray[np.float64]) -> Prediction:
        best = int(shares.argmax())
        by_label = dict(zip(self.label_names, map(float, shares), strict=True))
        return Prediction(self.label_names[best], float(shares[best]), by_label)

    def probabilities(
        self, texts: Sequence[str], batch_size: int = 32, on_batch: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float64]:
        """Probabilities [texts, labels] of normalised texts, in their order and that of `label_names`.

        `on_batch(texts done, texts)` is called after each batch.

        Raises:
            ModelError: one is NaN or infinite.
        """
        logits = self.logits(texts, batch_size, on_batch)
        shares: NDArray[np.float64] = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        if not np.isfinite(shares).all():
            raise ModelError(f"version {self.version} of {self.pipeline} predicts NaN or infinity", next_step=RESTORE)
        return shares

    def logits(
        self, texts: Sequence[str], batch_size: int = 32, on_batch: Callable[[int, int], None] | None = None
    ) -> NDArray[np.float64]:
        """Logits [texts, labels] of normalised texts, as `probabilities`."""
        from nightgate.engine import forward
        from nightgate.engine.encoding import encode

        encoded = encode(self._tokenizer, texts, self.max_length)
        chosen = self._packed
        if chosen is None:
            are_many = len(encoded) >= TEXTS_TO_PACK
            chosen = forward.choose(self._model, encoded, self._picked, pack=are_many)
            self._packed = chosen if are_many else None
            # Decided by the first texts, once and for all that follow.
            self._picked = chosen.picked._replace(is_tentative=False) if len(encoded) else self._picked
        return forward.run(chosen, encoded, batch_size, on_batch).astype(np.float64)


def _normalised(text: str | Sequence[str], position: int) -> str:
    parts = [text] if isinstance(text, str) else text
    if not isinstance(parts, Sequence) or not all(isinstance(part, str) for part in parts):
        raise DataError(
            f"text {position} (from 0) is not a text: {text!r}", next_step="remove missing values from the list"
        )
    joined = join_texts(parts)
    if not joined:
        raise DataError(f"text {position} (from 0) is empty: {text!r}", next_step="remove empty texts from the list")
    return joined


@contextmanager
def _transformers_settings_restored() -> Iterator[None]:
    """Restore the caller's log level and progress bars of transformers: loading changes them."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
