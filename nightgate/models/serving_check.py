"""Whether a saved model works for those who have torch and transformers only: tried in a fresh process, offline.

    found = serve({"candidate": best, "champion": folder}, texts, expected, max_length, label_names)

The process runs `serve_alone.py`, which imports nothing of ours. It gets no variable of the environment that it does
not need, so no secret, and dies with its caller. Whatever is wrong with a model is told in `Serving.flaw`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate import cpu_threads
from nightgate.errors import ModelError, storage_errors
from nightgate.gate.evidence import Serving
from nightgate.gate.sanity_checks import SERVING_TOLERANCE
from nightgate.models.classifier import Classifier
from nightgate.models.version_folder import CARD, MANIFEST

SCRIPT = Path(__file__).with_name("serving_probe.py")
SECONDS_TO_STOP = 10.0
"""For the kernel to end a process that was killed."""
_KEPT = ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD")
_KEPT_FAMILIES = ("LC_", "OMP_", "GOMP_", "KMP_", "MKL_")
_ALONE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # The CPU, whatever is there: latencies of all nights are of one kind.
    "CUDA_VISIBLE_DEVICES": "",
}

Logits = NDArray[np.float32]


def serve(
    models: Mapping[str, Path],
    texts: Sequence[str],
    expected: Mapping[str, Logits],
    max_length: Mapping[str, int],
    label_names: Sequence[str],
    *,
    timeout: float = 300.0,
    python: str = sys.executable,
) -> dict[str, Serving]:
    """How each model was served. One at which the process dies or hangs has that for its flaw; the others go on.

    Args:
        models: name to stock folder.
        texts: normalised, as the night scored them.
        expected: by model the logits [texts, labels] of the night's own scoring, columns in the order of `label_names`.
        max_length: by model the tokens that a text was cut at there.
        timeout: seconds that one process may take; it is killed then.

    Raises:
        StorageError: the folder for temporary files is full or read-only. Never for a bad model.
    """
    flaws = {name: _known_flaw(folder, texts) for name, folder in models.items()}
    found = {name: Serving(flaw=flaw) for name, flaw in flaws.items() if flaw}
    while left := [name for name in models if name not in found]:
        wanted = {name: {"folder": str(models[name].resolve()), "max_length": max_length[name]} for name in left}
        answer = _ask({"models": wanted, "texts": list(texts)}, timeout, python)
        if answer.died:
            guilty = left if answer.culprit is None else [answer.culprit]
            found |= {name: Serving(flaw=answer.died) for name in guilty}
        else:
            found |= {name: _compared(answer, name, expected[name], label_names) for name in left}
    return {name: replace(found[name], size_bytes=model_size(folder)) for name, folder in models.items()}


def check_version(folder: Path, texts: Sequence[str], *, timeout: float = 300.0) -> Serving:
    """How the version in `folder` was served, against what our own code predicts for the same normalised texts.

    A version that does not match its manifest, or that our code cannot load, has that for its flaw.

    Raises:
        StorageError: as `serve`.
    """
    try:
        own = Classifier.open(folder, device="cpu")
    except ModelError as error:
        return Serving(flaw=error.reason)
    expected = {"it": own.logits(texts).astype(np.float32)}
    served = serve({"it": folder}, texts, expected, {"it": own.max_length}, own.label_names, timeout=timeout)
    return served["it"]


def model_size(folder: Path) -> int | None:
    """Bytes of the stock files in `folder` (weights, configuration, tokenizer), without what Nightgate adds."""
    if not folder.is_dir():
        return None
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sum(file.stat().st_size for file in files if file.name not in (MANIFEST, CARD))


def columns_by_name(own: Sequence[str], label_names: Sequence[str]) -> list[int] | None:
    """Where a model that names its labels `own` has each of `label_names`; None where it knows others.

    A model that carries no names (LABEL_0, LABEL_1, ...) goes by position.
    """
    if list(own) == [f"LABEL_{index}" for index in range(len(label_names))]:
        return list(range(len(label_names)))
    if sorted(own) != sorted(label_names):
        return None
    return [list(own).index(label) for label in label_names]


def _known_flaw(folder: Path, texts: Sequence[str]) -> str:
    if not folder.is_dir():
        return f"its folder {folder} is missing"
    return "" if texts else "there are no rows to try it on"


# --- the process ---


@dataclass(frozen=True)
class _Answer:
    models: Mapping[str, Mapping[str, Any]]
    """What was said of each model: a flaw, or labels and logits."""
    latency_ms: Mapping[str, float]
    died: str = ""
    """Why the process did not come to its end."""
    culprit: str | None = None
    """The model that it was at then."""


def _ask(job: Mapping[str, Any], timeout: float, python: str) -> _Answer:
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="nightgate-") as scratch:
        folder = Path(scratch)
        (folder / "job.json").write_text(json.dumps({**job, "parent": os.getpid()}), encoding="utf-8")
        with (folder / "answers").open("wb") as answers, (folder / "log").open("wb") as log_file:
            process = subprocess.Popen(
                [python, "-I", str(SCRIPT), str(folder / "job.json")],
                stdin=subprocess.DEVNULL,
                stdout=answers,
                stderr=log_file,
                cwd=folder,
                env=_environment(folder),
            )
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout)
                code = process.poll()
            finally:
                process.kill()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(SECONDS_TO_STOP)
        said = _read(folder / "answers")
        log = (folder / "log").read_text(encoding="utf-8", errors="replace")
    latency = next((facts["latency_ms"] for facts in said if "latency_ms" in facts), None)
    if code == 0 and latency is not None:
        return _Answer({facts["model"]: facts for facts in said if "model" in facts and "stage" not in facts}, latency)
    last: dict[str, Any] = next((facts for facts in reversed(said) if "stage" in facts), {"stage": "starting"})
    culprit = last.get("model")
    at = f"{last['stage']} it" if culprit else last["stage"]
    return _Answer({}, {}, f"a fresh process {_how(code, timeout)} while {at}{_last_words(code, log)}", culprit)


def _read(answers: Path) -> list[dict[str, Any]]:
    """Its answers, without a line that the end of the process cut off, or that something else printed."""
    said = []
    for line in answers.read_bytes().splitlines():
        with suppress(ValueError):
            said.append(json.loads(line))
    return [facts for facts in said if isinstance(facts, dict)]


def _environment(scratch: Path) -> dict[str, str]:
    """What such a process needs; caches and tokens of this user's are not in its reach."""
    kept = {name: text for name, text in os.environ.items() if name in _KEPT or name.startswith(_KEPT_FAMILIES)}
    waiting = {name: text for name, text in cpu_threads.openmp_settings().items() if name.startswith(_KEPT_FAMILIES)}
    count = {"OMP_NUM_THREADS": str(cpu_threads.pick_threads()[0])}
    return {**count, **waiting, **kept, **_ALONE, "HOME": str(scratch), "HF_HOME": str(scratch)}


def _how(code: int | None, timeout: float) -> str:
    if code is None:
        return f"gave no answer within {timeout:g} s"
    if code == -signal.SIGKILL:
        return "was killed, most likely for lack of memory,"
    return f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _last_words(code: int | None, log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return f": {lines[-1][:300]}" if lines and code is not None and code > 0 else ""


# --- what came of it ---


def _compared(answer: _Answer, name: str, expected: Logits, label_names: Sequence[str]) -> Serving:
    said = answer.models[name]
    if "flaw" in said:
        return Serving(flaw=said["flaw"])
    columns = columns_by_name(said["labels"], label_names)
    if columns is None:
        own = ", ".join(said["labels"])
        return Serving(flaw=f"it knows the labels {own}, the pipeline has {', '.join(label_names)}")
    found = np.array(said["logits"], dtype=np.float64)[:, columns]
    return Serving(
        rows=len(found),
        logit_difference=_difference(found, expected.astype(np.float64)),
        flipped=_flipped(found, expected.astype(np.float64)),
        latency_ms=answer.latency_ms[name],
    )


def _difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Largest of all logits; infinite where only one of two is a number."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(found - expected)
    apart[(found == expected) | (np.isnan(found) & np.isnan(expected))] = 0
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _flipped(found: NDArray[np.float64], expected: NDArray[np.float64]) -> int:
    """Rows of another label, although the two largest logits lie further apart than the tolerance can bring them."""
    largest = np.sort(expected, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        clear = largest[:, 1] - largest[:, 0] > 2 * SERVING_TOLERANCE
    return int((clear & (found.argmax(axis=1) != expected.argmax(axis=1))).sum())
