"""A version as ONNX, checked against the original: `nightgate export reviews champion out/ --format onnx`.

The graph takes any number of texts of any length and gives their logits. It is only kept where ONNX Runtime gives, on
texts of several lengths and in batches of several sizes, the logits that PyTorch gives.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nightgate.durable_files import replacing
from nightgate.errors import ConfigurationError, ModelError, SnapshotError
from nightgate.models.version_folder import verify_version
from nightgate.provenance import library_versions

if TYPE_CHECKING:
    from nightgate.engine.base_models import LoadedModel
    from nightgate.home import Home
    from nightgate.registry.versions import VersionRow

log = logging.getLogger(__name__)

TOLERANCE = 1e-3
"""Largest difference of a logit: float32 through other kernels differs by some 1e-5."""
MODEL_FILE, PARITY_FILE = "model.onnx", "parity.json"
PACKAGES = ("onnx", "onnxruntime", "onnxscript")
BATCHES = (1, 2, 5, 16)
"""Texts at once in the check, in turns."""
TEXTS = (
    "Good.",
    "It broke after two days, and the shop never answered.",
    "The colour is not the one in the picture, but it fits well and feels soft; for this price I would buy it again.",
    "¡Perfecto! Llegó a tiempo. 很好。 Очень доволен. 😀",
    " ".join(["I wore it every day for a month and it still looks new."] * 20),
)
"""What parity is checked on where the version's own test rows are gone."""


@dataclass(frozen=True)
class Parity:
    """What ONNX Runtime gave beside PyTorch."""

    texts: int
    max_logit_difference: float
    flipped: int
    """Texts that get another label."""
    tolerance: float = TOLERANCE

    def __str__(self) -> str:
        return f"{self.texts} texts, largest logit difference {self.max_logit_difference:.1e}, {self.flipped} flipped"


def export_onnx(folder: Path, target: Path, texts: Sequence[str] = TEXTS) -> Parity:
    """Write the version in `folder`, verified, as ONNX with its tokenizer and configuration to the new folder `target`.

    Args:
        texts: what parity is checked on, normalised as in training.

    Raises:
        ConfigurationError: the extra `onnx` is not installed, or `target` is in use.
        ModelError: the version is altered, cannot be exported, or its export gives other logits; nothing is left then.
        StorageError: the disk is full, read-only or not ours.
    """
    _require_packages()
    if target.exists():
        raise ConfigurationError(f"{target} exists already", next_step="name a folder that does not exist yet")
    manifest = verify_version(folder)
    named = f"version {manifest['version']} of {manifest['pipeline']}"

    from nightgate.engine import base_models

    loaded = base_models.load_trained(folder, named=named)
    loaded.model.eval()
    with replacing(target) as draft:
        draft.mkdir()
        try:
            _write_graph(loaded, texts, draft / MODEL_FILE)
        except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"{named} cannot be exported to ONNX: {said}",
                next_step="its architecture may need another version of torch or onnxscript; the version is unharmed",
            ) from error
        parity = _compared(loaded, draft / MODEL_FILE, texts)
        log.info("%s as ONNX: %s", named, parity)
        if not parity.max_logit_difference <= TOLERANCE:
            raise ModelError(
                f"{named} as ONNX gives other logits than PyTorch: {parity}, and {TOLERANCE:g} is allowed; nothing was "
                "written",
                next_step="use the version itself; another version of torch or onnxruntime may export it well",
            )
        loaded.model.config.save_pretrained(draft)
        loaded.tokenizer.save_pretrained(draft)
        facts = {"pipeline": manifest["pipeline"], "version": manifest["version"], **asdict(parity)}
        libraries = library_versions() | {name: _version(name) for name in PACKAGES}
        (draft / PARITY_FILE).write_text(json.dumps(facts | {"libraries": libraries}, indent=1) + "\n")
    return parity


def texts_for(home: Home, version: VersionRow, limit: int = 64) -> Sequence[str]:
    """Test rows of the version's own snapshot; texts of ours where that is gone."""
    if version.snapshot_id is None:
        return TEXTS
    from nightgate.data.snapshots import open_snapshot

    try:
        snapshot = open_snapshot(home.snapshots / version.pipeline / version.snapshot_id, verify=False)
        # Sorted by fingerprint, which is no order at all.
        return snapshot.rows("test", ["text"])["text"].astype(str).tolist()[:limit] or TEXTS
    except SnapshotError as error:
        log.info("parity is checked on texts of ours: %s", error.reason)
        return TEXTS


def _require_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigurationError(
            f"the export to ONNX needs {', '.join(missing)}, which this installation lacks",
            next_step="pip install 'nightgate[onnx]'",
        )


def _version(package: str) -> str:
    from importlib import metadata

    return metadata.version(package)


def _write_graph(loaded: LoadedModel, texts: Sequence[str], path: Path) -> None:
    import torch

    class Logits(torch.nn.Module):
        """Tensors in, one tensor out: a graph has no dictionaries."""

        def __init__(self, model: Any, names: Sequence[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *values: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(**dict(zip(self.names, values, strict=True))).logits
            return logits

    # Two texts of different lengths: sizes of one would be taken for constants.
    inputs = _encoded(loaded, [max(texts, key=len), min(texts, key=len)])
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=loaded.max_length)
    with warnings.catch_warnings(), _silenced("torch.onnx"), torch.inference_mode():
        # The exporter warns of its own deprecations, and of packages that it could know as well.
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
        # An input that the model does not use is not in the graph.
        given: NDArray[np.float32] = session.run(
            ["logits"], {name: value.numpy() for name, value in inputs.items() if name in known}
        )[0]
        # NaN stays NaN: it passes no comparison.
        widest = float(np.maximum(widest, np.abs(given - wanted).max()))
        flipped += int((given.argmax(axis=1) != wanted.argmax(axis=1)).sum())
    return Parity(len(texts), widest, flipped)


def _batches(texts: Sequence[str]) -> Iterator[list[str]]:
    start = turn = 0
    while start < len(texts):
        size = BATCHES[turn % len(BATCHES)]
        yield list(texts[start : start + size])
        start, turn = start + size, turn + 1


def _encoded(loaded: LoadedModel, texts: Sequence[str]) -> dict[str, Any]:
    encoded = loaded.tokenizer(
        list(texts), truncation=True, max_length=loaded.max_length, padding=True, return_tensors="pt"
    )
    return dict(encoded)
