"""CUDA graphs of whole optimiser steps, one for each size of batch.

At the published recipe a GPU computes a step in about a millisecond and waits tens of milliseconds for its kernels to
be launched one by one. A graph launches them at once, but for fixed shapes and addresses alone. So a batch is filled
to the next multiple of 128 tokens with texts whose loss has weight 0, and copied into persistent buffers.

The first batch of a size runs without a graph, which sets up the optimiser and warms the kernels; the second is
recorded, later ones are replayed. Without CUDA every step runs like the first; the tests do that. Recording and
replaying have not been run on a GPU yet: NIGHTGATE_CUDA_GRAPHS=1 turns graphs on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nightgate.engine.attention import Layout
from nightgate.engine.devices import Picked
from nightgate.engine.encoding import Encoded
from nightgate.engine.forward import Rows
from nightgate.engine.packing import PackedBatch, PackedClassifier
from nightgate.settings import read_settings

log = logging.getLogger(__name__)

BUCKET = 128
"""Tokens; at most the model's maximum length."""
STAGING_BUFFERS = 4
"""Batches that may be in transfer to the device at once."""


@dataclass
class _Bucket:
    """Buffers for batches of one size, and the graph that reads them."""

    whole: Tensor
    """One int64 tensor of which the following are views, so that one copy fills all."""
    token: Tensor
    """Index of each token among all training tokens, [tokens]."""
    batch: PackedBatch
    bounds: Tensor
    """Cumulative lengths, [texts + 1]."""
    target: Tensor
    """Class of each text, [texts]."""
    real: Tensor
    """1 for each text of the batch, 0 for fillers, [texts]."""
    loss: Tensor | None = None
    graph: Any = None
    seen: bool = False


def are_wanted(device: torch.device) -> bool:
    """Whether the setting `cuda_graphs` is on and the device is a GPU."""
    return device.type == "cuda" and read_settings().cuda_graphs


class StepGraphs:
    """Optimiser steps of fixed shape on packed texts.

    Args:
        train: the training rows, with ids of the trimmed vocabulary.
        learn: from logits, classes and weights of a batch, does backward pass and update and returns the mean loss.
    """

    def __init__(
        self,
        classifier: PackedClassifier,
        train: Encoded,
        picked: Picked,
        batch_size: int,
        learn: Callable[[Tensor, Tensor, Tensor], Tensor],
    ) -> None:
        self.classifier, self.train, self.learn = classifier, train, learn
        self.device, self.picked = picked.device, picked
        self.ids = torch.from_numpy(train.ids).to(self.device)
        self.types = None if train.type_ids is None else torch.from_numpy(train.type_ids).to(self.device)
        self.granularity = min(BUCKET, train.max_length)
        self.texts = batch_size + 1
        self.records = self.device.type == "cuda"
        # A graph is not recorded on the default stream, and gradients stay on the stream of their first step.
        self.stream = torch.cuda.Stream(self.device) if self.records else None  # type: ignore[no-untyped-call]
        self._buckets: dict[int, _Bucket] = {}
        self._pool: Any = None
        self._staging: list[tuple[Tensor, Any]] = []
        self._steps = 0

    def step(self, rows: Rows, labels: NDArray[np.int64]) -> Tensor:
        """Take one step at the optimiser's learning rate; returns the mean loss, a scalar on the device."""
        if self.stream is None:
            return self._step(rows, labels)
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            loss = self._step(rows, labels)
        current.wait_stream(self.stream)
        return loss

    def _step(self, rows: Rows, labels: NDArray[np.int64]) -> Tensor:
        bucket = self._fill(rows, labels)
        if bucket.graph is None and bucket.seen and self.records:
            self._record(bucket)
        if bucket.graph is None:
            bucket.loss = self._whole_step(bucket)
            bucket.seen = True
        else:
            bucket.graph.replay()
        self._steps += 1
        assert bucket.loss is not None
        return bucket.loss.clone()

    def _fill(self, rows: Rows, labels: NDArray[np.int64]) -> _Bucket:
        train = self.train
        lengths = train.lengths[rows]
        fillers = self.texts - len(rows)
        real = int(lengths.sum())
        tokens = -(-(real + fillers) // self.granularity) * self.granularity
        spare, more = divmod(tokens - real, fillers)
        filling = np.full(fillers, spare) + (np.arange(fillers) < more)
        lengths = np.concatenate([lengths, filling])
        order = np.argsort(lengths, kind="stable")
        lengths, real_text = lengths[order], order < len(rows)
        starts = np.concatenate([[0], np.cumsum(lengths)])
        place = np.arange(tokens) - np.repeat(starts[:-1], lengths)
        # A filler repeats the first of all training tokens.
        begin = np.concatenate([train.offsets[rows], np.zeros(fillers, np.int64)])[order]
        parts = {
            "token": np.repeat(begin, lengths) + place * np.repeat(real_text, lengths),
            "text_of_token": np.repeat(np.arange(self.texts), lengths),
            "place_in_text": place,
            "first": starts[:-1],
            "bounds": starts,
            "target": np.concatenate([labels, np.zeros(fillers, np.int64)])[order],
            "real": real_text,
        }
        if tokens not in self._buckets:
            self._buckets[tokens] = self._allocate(parts, tokens)
        bucket = self._buckets[tokens]
        if self.device.type == "cpu":
            # Attention on the CPU needs the lengths.
            bucket.batch = PackedBatch(bucket.batch.ids, bucket.batch.types, Layout(lengths, self.device))
        self._copy(np.concatenate(list(parts.values())).astype(np.int64), bucket.whole)
        return bucket

    def _allocate(self, parts: dict[str, NDArray[np.int64]], tokens: int) -> _Bucket:
        whole = torch.zeros(sum(len(part) for part in parts.values()), dtype=torch.int64, device=self.device)
        views = dict(zip(parts, torch.split(whole, [len(part) for part in parts.values()]), strict=True))
        layout = Layout.of_buffers(
            tokens,
            self.train.max_length,
            first=views["first"],
            text_of_token=views["text_of_token"],
            place_in_text=views["place_in_text"],
            bounds=torch.zeros(self.texts + 1, dtype=torch.int32, device=self.device),
        )
        unset = torch.zeros(tokens, dtype=torch.int64, device=self.device)
        batch = PackedBatch(unset, None, layout)
        return _Bucket(whole, views["token"], batch, views["bounds"], views["target"], views["real"])

    def _copy(self, values: NDArray[np.int64], target: Tensor) -> None:
        if self.device.type == "cpu":
            target.copy_(torch.from_numpy(values))
            return
        # The copy from pinned memory is asynchronous: a buffer is free again when its event has passed.
        if len(self._staging) < STAGING_BUFFERS:
            largest = 4 * (self.texts * self.train.max_length + self.granularity) + 4 * self.texts + 8
            self._staging.append((torch.empty(largest, dtype=torch.int64, pin_memory=True), torch.cuda.Event()))  # type: ignore[no-untyped-call]
            buffer, event = self._staging[-1]
        else:
            buffer, event = self._staging[self._steps % STAGING_BUFFERS]
            event.synchronize()
        buffer[: len(values)].copy_(torch.from_numpy(values))
        target.copy_(buffer[: len(values)], non_blocking=True)
        event.record()

    def _whole_step(self, bucket: _Bucket) -> Tensor:
        layout = bucket.batch.layout
        if self.device.type == "cuda":
            layout.bounds.copy_(bucket.bounds)
        types = None if self.types is None else self.types[bucket.token].long()
        batch = PackedBatch(self.ids[bucket.token].long(), types, layout)
        with self.picked.autocast():
            logits = self.classifier(batch)
        return self.learn(logits, bucket.target, bucket.real)

    def _record(self, bucket: _Bucket) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self.stream):
                bucket.loss = self._whole_step(bucket)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.records = False
            log.warning("recording a CUDA graph failed, steps run without: %s", str(error).partition("\n")[0])
            return
        self._pool = graph.pool()
        bucket.graph = graph
