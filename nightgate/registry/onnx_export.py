"""Export a version as ONNX and compare it with the original: `nightgate export reviews champion out/ --format onnx`.

The graph maps any number of texts of any length to logits. It is kept only if ONNX Runtime computes the logits of
PyTorch, on texts of several lengths in batches of several sizes.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nightgate.durable_files import replacing
from nightgate.errors import ConfigurationError, ModelError, SnapshotError, output_errors
from nightgate.models.version_folder import verify_version
from nightgate.provenance import library_versions

if TYPE_CHECKING:
    from nightgate.engine.base_models import LoadedModel
    from nightgate.home import Home
    from nightgate.registry.versions import VersionRow

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest allowed difference of a logit; other float32 kernels differ by some 1e-5."""
MODEL_FILE, PARITY_FILE = "model.onnx", "parity.json"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
BATCHES = (1, 2, 5, 16)
"""Batch sizes of the check, in turns."""
TEXTS = (
    "Good.",
    "It broke after two days, and the shop never answered.",
    "The colour is not the one in the picture, but it fits well and feels soft; for this price I would buy it again.",
    "¡Perfecto! Llegó a tiempo. 很好。 Очень доволен. 😀",
    " ".join(["I wore it every day for a month and it still looks new."] * 20),
)
"""Texts for the check if the version's own test rows are gone."""


@dataclass(frozen=True)
class Parity:
    """The comparison of ONNX Runtime with PyTorch."""

    texts: int
    max_logit_difference: float
    flipped: int
    """Texts with another label."""
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        return f"{self.texts} texts, largest logit difference {self.max_logit_difference:.1e}, {self.flipped} flipped"


def export_onnx(folder: Path, target: Path, texts: Sequence[str] = TEXTS) -> Parity:
    """Verify the version in `folder` and write it as ONNX, with tokenizer and configuration, to a new folder.

    Args:
        texts: for the comparison, normalised as in training.

    Raises:
        ConfigurationError: the extra `onnx` is not installed, or `target` exists or cannot be a folder.
        ModelError: the version is altered, cannot be exported, or its export gives other logits; `target` is not made.
        StorageError: the disk is full, read-only or not ours.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise ConfigurationError(
            f"the export to ONNX needs {', '.join(missing)}, not installed here",
            next_step="pip install 'nightgate[onnx]'",
        )
    if str(target).encode(errors="replace").decode() != str(target):
        raise ConfigurationError(
            f"{str(target)!r} is not UTF-8", next_step="name a folder in UTF-8: ONNX Runtime opens no others"
        )
    with output_errors(target):
        if target.exists():
            raise ConfigurationError(f"{target} exists already", next_step="name a folder that does not exist")
    manifest = verify_version(folder)
    named = f"version {manifest['version']} of {manifest['pipeline']}"

    from nightgate.engine import base_models

    loaded = base_models.load_trained(folder, named=named)
    loaded.model.eval()
    with output_errors(target), replacing(target) as draft:
        draft.mkdir()
        try:
            _write_graph(loaded, texts, draft / MODEL_FILE)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{named} cannot be exported to ONNX: {cause}",
                next_step="try another version of torch or onnxscript; the version itself is unchanged",
            ) from error
        parity = _compared(loaded, draft / MODEL_FILE, texts)
        log.info("%s as ONNX: %s", named, parity)
        if not parity.max_logit_difference <= TOLERANCE:
            raise ModelError(
                f"{named} as ONNX gives other logits than PyTorch: {parity}, and {TOLERANCE:g} is allowed; nothing was "
                "written",
                next_step="use the version itself, or try another version of torch or onnxruntime",
            )
        loaded.model.config.save_pretrained(draft)
        loaded.tokenizer.save_pretrained(draft)
        facts = {"pipeline": manifest["pipeline"], "version": manifest["version"], **asdict(parity)}
        libraries = library_versions() | {name: metadata.version(name) for name in PACKAGES}
        (draft / PARITY_FILE).write_text(json.dumps(facts | {"libraries": libraries}, indent=1) + "\n")
    return parity


def texts_for(home: Home, version: VersionRow, limit: int = 64) -> Sequence[str]:
    """Test rows of the version's own snapshot, or `TEXTS` if that is gone."""
    if version.snapshot_id is None:
        return TEXTS
    from nightgate.data.snapshots import open_snapshot

    try:
        snapshot = open_snapshot(home.snapshots / version.pipeline / version.snapshot_id, verify=False)
        # Sorted by fingerprint: the first rows are a random sample.
        first = np.arange(len(snapshot.rows("test", ["label"])))[:limit]
        return snapshot.rows("test", ["text"], at=first)["text"].astype(str).tolist() or TEXTS
    except SnapshotError as error:
        log.info("compared on built-in texts: %s", error.reason)
        return TEXTS


def _write_graph(loaded: LoadedModel, texts: Sequence[str], path: Path) -> None:
    import torch

    class Logits(torch.nn.Module):
        """The model with tensors in and one tensor out: a graph has no dictionaries."""

        def __init__(self, model: Any, names: Sequence[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(self.names, values, strict=True))).logits
            return logits

    # Two texts of different lengths: the exporter treats sizes of one as constants.
    inputs = _encoded(loaded, [max(texts, key=len), min(texts, key=len)])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=loaded.max_length)
    with warnings.catch_warnings(), _silenced("torch.onnx"), torch.inference_mode():
        # The exporter warns of its own deprecations and of optional packages.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Logits(loaded.model, list(inputs)),
            tuple(inputs.values()),
            path,
            input_names=list(inputs),
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(tuple({0: batch, 1: length} for _ in inputs),),
            verbose=False,
        )


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _compared(loaded: LoadedModel, path: Path, texts: Sequence[str]) -> Parity:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    known = {one.name for one in session.get_inputs()}
    widest, flipped = 0.0, 0
    for some in _batches(texts):
        inputs = _encoded(loaded, some)
        with torch.inference_mode():
            wanted = loaded.model(**inputs).logits.numpy()
        # The graph lacks inputs that the model does not use.
        given: NDArray[np.float32] = session.run(
            ["logits"], {name: value.numpy() for name, value in inputs.items() if name in known}
        )[0]
        # NaN stays NaN, which fails the comparison with the tolerance.
        widest = float(np.maximum(widest, np.abs(given - wanted).max()))
        flipped += int((given.argmax(axis=1) != wanted.argmax(axis=1)).sum())
    return Parity(len(texts), widest, flipped)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    left = iter(texts)
    for size in itertools.cycle(BATCHES):
        if not (batch := list(itertools.islice(left, size))):
            return
        yield batch


def _encoded(loaded: LoadedModel, texts: Sequence[str]) -> dict[str, Any]:
    encoded = loaded.tokenizer(
        list(texts), truncation=True, max_length=loaded.max_length, padding=True, return_tensors="pt"
    )
    return dict(encoded)
