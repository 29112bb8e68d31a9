"""Logits of rows, on packed texts where the architecture allows it, else on padded ones.

A few rows are first run both ways: if their logits differ from the stock model's by more than 1e-4, texts are padded.
They are also run in bf16 where that was chosen for a CPU: if their logits differ by more than 5 %, float32 is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nightgate.engine import devices, packing
from nightgate.engine.devices import Picked
from nightgate.engine.distributed import World
from nightgate.engine.encoding import Encoded
from nightgate.engine.partition import cut
from nightgate.errors import first_line

TOLERANCE = 1e-4
"""Largest difference between packed and stock logits, of weights in float32."""
BF16_TOLERANCE = 0.05
"""Largest difference between logits in bf16 and float32, as a share of the largest logit."""
ROWS_TO_CHECK = 8
TOKENS_OF_A_BATCH = 1024
"""Least tokens of a packed batch without gradients: batches of few short texts cost calls rather than products."""
WIDTH_STEP = 8
"""Padded widths are multiples of this, for fewer shapes."""
TOKENS_PER_PART_ON_CPU = 96
"""Overhead of one more part of a padded batch (calls, sums of weight gradients), in tokens of work."""

Rows = NDArray[np.int64]


class Packed:
    """Forward pass on packed batches."""

    kind = "packed"

    def __init__(self, classifier: packing.PackedClassifier, reason: str) -> None:
        self.classifier, self.model, self.reason = classifier, classifier.model, reason
        self.picked = _full(self.model)

    def logits(self, encoded: Encoded, rows: Rows) -> Tensor:
        """[rows, labels], in the order of `rows`."""
        order = np.argsort(encoded.lengths[rows], kind="stable")
        found = self.classifier(encoded.packed(rows[order], self.model.device))
        return found[torch.from_numpy(np.argsort(order)).to(found.device)]

    def batches(self, encoded: Encoded, batch_size: int) -> Iterator[Rows]:
        """All rows, longest first, in batches of at most the tokens of `batch_size` longest rows, or else of
        `TOKENS_OF_A_BATCH`.
        """
        order = np.argsort(-encoded.lengths, kind="stable")
        lengths = encoded.lengths[order]
        budget = max(int(lengths[0]) * batch_size, TOKENS_OF_A_BATCH) if len(order) else 0
        start = 0
        ends = np.cumsum(lengths)
        while start < len(order):
            before = int(ends[start - 1]) if start else 0
            stop = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
            yield order[start:stop]
            start = stop


class Padded:
    """Forward pass of the stock model on padded batches.

    A batch is computed in parts of similar length where that saves more padding than it costs. Their gradients are
    summed: it stays one batch of one step.
    """

    kind = "padded"

    def __init__(self, model: Any, reason: str) -> None:
        self.model, self.reason = model, reason
        self.picked = _full(model)

    def logits(self, encoded: Encoded, rows: Rows) -> Tensor:
        """[rows, labels], in the order of `rows`."""
        device = self.model.device
        order = np.argsort(encoded.lengths[rows], kind="stable")
        parts = []
        for part in self._parts(encoded.lengths[rows][order]):
            inputs = encoded.batch(rows[order[part]], WIDTH_STEP)
            parts.append(self.model(**{name: x.to(device, non_blocking=True) for name, x in inputs.items()}).logits)
        return torch.cat(parts)[torch.from_numpy(np.argsort(order)).to(device)]

    def _parts(self, lengths: NDArray[np.int64]) -> list[slice]:
        """Parts of a batch with these ascending lengths."""
        if self.model.device.type != "cpu":
            return [slice(0, len(lengths))]
        return cut(-(-lengths // WIDTH_STEP) * WIDTH_STEP, 1, TOKENS_PER_PART_ON_CPU)

    def batches(self, encoded: Encoded, batch_size: int) -> Iterator[Rows]:
        """All rows, longest first: little padding, and a lack of memory shows in the first batch."""
        order = np.argsort(-encoded.lengths, kind="stable")
        for start in range(0, len(order), batch_size):
            yield order[start : start + batch_size]


Forward = Packed | Padded


def choose(
    model: Any, encoded: Encoded, picked: Picked | None = None, *, pack: bool = True, cls_only: bool = True
) -> Forward:
    """`Packed` where it gives the stock model's logits on rows of `encoded`, else `Padded`.

    What is returned has the precision, and its reason, as `picked`: that of the argument (None: the model's own type),
    or float32 if that is tentative and this model is narrow or its logits would differ.
    """
    chosen = _choose(model, encoded, pack, cls_only)
    if picked is not None:
        chosen.picked = devices.for_model(picked, model)
        if chosen.picked.is_tentative and len(encoded):
            chosen.picked = _checked(chosen, encoded)
    return chosen


def _choose(model: Any, encoded: Encoded, pack: bool, cls_only: bool) -> Forward:
    if not pack:
        return Padded(model, "padded texts, as requested")
    classifier, why = packing.packed(model, cls_only=cls_only)
    if classifier is None:
        return Padded(model, f"padded texts: {why}")
    if not len(encoded):
        return Padded(model, "padded texts: there are no rows to check packed ones on")
    try:
        difference = _difference(Packed(classifier, ""), Padded(model, ""), encoded)
    except RuntimeError as error:
        # The slower path would hide a lack of memory.
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return Padded(model, f"padded texts: packed ones do not run here ({first_line(error)})")
    if not difference <= TOLERANCE:
        return Padded(
            model,
            f"padded texts: packed logits differ from the stock model's by {difference:.1e}, allowed {TOLERANCE:g}",
        )
    return Packed(classifier, f"packed texts: {why}, logits within {difference:.0e} of the stock model's")


def run(
    chosen: Forward,
    encoded: Encoded,
    batch_size: int,
    on_batch: Callable[[int, int], None] | None = None,
    world: World | None = None,
) -> NDArray[np.float32]:
    """Logits [rows, labels] in the order of `encoded`, the same in every process of `world`.

    `on_batch(rows done, rows)` is called after each batch.
    """
    world = world or World()
    device = chosen.model.device
    logits = torch.zeros(len(encoded), int(chosen.model.config.num_labels), device=device)
    chosen.model.eval()
    done = 0
    # One context: weights are cast once.
    with torch.inference_mode(), chosen.picked.autocast():
        for number, rows in enumerate(chosen.batches(encoded, batch_size)):
            if number % world.size == world.rank:
                logits[torch.from_numpy(rows).to(device)] = chosen.logits(encoded, rows).float()
            done += len(rows)
            if on_batch is not None:
                on_batch(done, len(encoded))
        world.sum([logits])
    found: NDArray[np.float32] = logits.cpu().numpy()
    return found


def _full(model: Any) -> Picked:
    return Picked(model.device, torch.float32, "in the type of the weights")


def _difference(packed: Packed, padded: Padded, encoded: Encoded) -> float:
    """Largest difference between packed and padded logits over rows of all lengths; NaN where packed ones are NaN."""
    ours, stock = _logits_of_few(packed, encoded), _logits_of_few(padded, encoded)
    # NaN in the weights is reported by the training, on both paths.
    return float((ours - stock).abs().max()) if torch.isfinite(stock).all() else 0.0


def _checked(chosen: Forward, encoded: Encoded) -> Picked:
    """The precision of `chosen`, or float32 where its logits differ."""
    full = _logits_of_few(chosen, encoded)
    with chosen.picked.autocast():
        half = _logits_of_few(chosen, encoded)
    apart = float((half - full).abs().max() / full.abs().max().clamp(min=torch.finfo(torch.float32).tiny))
    if apart <= BF16_TOLERANCE or not torch.isfinite(full).all():
        return chosen.picked
    return chosen.picked.in_fp32(f"bf16 changes logits by {apart:.1%} of the largest, allowed is {BF16_TOLERANCE:.0%}")


def _logits_of_few(path: Forward, encoded: Encoded) -> Tensor:
    """Logits of rows of all lengths, without dropout."""
    count = min(ROWS_TO_CHECK, len(encoded))
    rows = np.argsort(encoded.lengths, kind="stable")[np.linspace(0, len(encoded) - 1, count).astype(np.int64)]
    was_training = path.model.training
    path.model.eval()
    try:
        with torch.inference_mode():
            return path.logits(encoded, rows)
    finally:
        path.model.train(was_training)
