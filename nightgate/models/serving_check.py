"""Check that saved models can be served with plain torch and transformers, in a fresh process and offline.

    found = serve({"candidate": best, "champion": folder}, texts, expected, max_length, label_names)

The process runs `serving_probe.py`, which imports nothing of Nightgate. It gets only the environment variables that it
needs, so no secrets, and ends with its caller. What it finds wrong with a model is `Serving.flaw`, which is evidence; a
process that is killed, dies or gets no time says nothing about a model, and is an error.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nightgate import cpu_threads
from nightgate.errors import (
    CrashedError,
    ModelError,
    OutOfMemoryError,
    StalledError,
    is_out_of_memory,
    storage_errors,
)
from nightgate.gate.evidence import Serving
from nightgate.gate.sanity_checks import SERVING_TOLERANCE
from nightgate.models.classifier import Classifier
from nightgate.models.version_folder import CARD, LEARNT_FILE, MANIFEST

log = logging.getLogger(__name__)

SCRIPT = Path(__file__).with_name("serving_probe.py")
SECONDS_TO_STOP = 10.0
"""Time for the kernel to end a killed process."""
_KEPT = ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH", "LD_PRELOAD")
_KEPT_FAMILIES = ("LC_", "OMP_", "GOMP_", "KMP_", "MKL_")
_ALONE = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Always the CPU: latencies of different nights are comparable.
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
    reference: str = "",
    timeout: float = 300.0,
    python: str = sys.executable,
) -> dict[str, Serving]:
    """Serve each model and compare its logits.

    Args:
        models: stock folders by name.
        texts: normalised, as the night scored them.
        expected: by model, the night's logits [texts, labels] in float32, columns in the order of `label_names`.
        max_length: by model, the tokens that texts are truncated to.
        reference: a model that is served for comparison only. If a process dies or hangs that serves it alone, that is
            its flaw: a champion that no process can open any more must not fail every night.
        timeout: seconds after which a process is killed.

    Raises:
        OutOfMemoryError, CrashedError, StalledError: the process was killed, died, or gave no answer in time.
        StorageError: the folder for temporary files is full or read-only.
    """
    flaws = {name: _known_flaw(folder, texts) for name, folder in models.items()}
    found = {name: Serving(flaw=flaw) for name, flaw in flaws.items() if flaw}
    wanted = {
        name: {"folder": str(folder.resolve()), "max_length": max_length[name]}
        for name, folder in models.items()
        if name not in found
    }

    def ask(*names: str) -> _Answer:
        return _ask({"models": {name: wanted[name] for name in names}, "texts": list(texts)}, timeout, python)

    if wanted:
        try:
            answer = ask(*wanted)
        except (CrashedError, StalledError):
            flaw = _cause_of_death(ask, reference) if reference in wanted else ""
            if not flaw:
                raise
            del wanted[reference]
            found[reference] = Serving(flaw=flaw)
            answer = ask(*wanted)
        found |= {name: _compared(answer, name, expected[name], label_names) for name in wanted}
    return {name: replace(found[name], size_bytes=model_size(folder)) for name, folder in models.items()}


def check_version(folder: Path, texts: Sequence[str], *, timeout: float = 300.0) -> Serving:
    """Serve the version in `folder` and compare its logits with those of `Classifier` for the same normalised texts.

    A version that does not match its manifest or that `Classifier` cannot load has that as its flaw. Raises as `serve`.
    """
    try:
        own = Classifier.open(folder, device="cpu", precision="fp32")
    except ModelError as error:
        return Serving(flaw=error.reason)
    expected = {"it": own.logits(texts).astype(np.float32)}
    served = serve({"it": folder}, texts, expected, {"it": own.max_length}, own.label_names, timeout=timeout)
    return served["it"]


def model_size(folder: Path) -> int | None:
    """Bytes of the stock files in `folder` (weights, configuration, tokenizer), without card, manifest and what
    grows with the rows."""
    if not folder.is_dir():
        return None
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sum(file.stat().st_size for file in files if file.name not in (MANIFEST, CARD, LEARNT_FILE))


def columns_by_name(own: Sequence[str], label_names: Sequence[str]) -> list[int] | None:
    """The column of each of `label_names` in a model with labels `own`; None if the labels differ.

    For a model without label names (LABEL_0, LABEL_1, ...) the position counts.
    """
    if list(own) == [f"LABEL_{index}" for index in range(len(label_names))]:
        return list(range(len(label_names)))
    if sorted(own) != sorted(label_names):
        return None
    return [list(own).index(label) for label in label_names]


def _cause_of_death(ask: Callable[[str], object], name: str) -> str:
    """How a process dies or hangs that serves this model alone; '' if it does not."""
    try:
        ask(name)
    except (CrashedError, StalledError) as error:
        log.warning("%s", error.reason)
        return error.reason
    return ""


def _known_flaw(folder: Path, texts: Sequence[str]) -> str:
    if not folder.is_dir():
        return f"its folder {folder} is missing"
    return "" if texts else "there are no rows to serve"


# --- the process ---


@dataclass(frozen=True)
class _Answer:
    models: Mapping[str, Mapping[str, Any]]
    """Per model: a flaw, or labels and logits."""
    latency_ms: Mapping[str, float]


def _ask(job: Mapping[str, Any], timeout: float, python: str) -> _Answer:
    with storage_errors(Path(tempfile.gettempdir())), tempfile.TemporaryDirectory(prefix="nightgate-") as scratch:
        folder = Path(scratch)
        (folder / "job.json").write_text(json.dumps({**job, "parent": os.getpid()}), encoding="utf-8")
        # Pipes and not files: a full disk must not cut an answer short.
        process = subprocess.Popen(
            [python, "-I", str(SCRIPT), str(folder / "job.json")],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env=_environment(folder),
        )
        try:
            answers, errors = process.communicate(timeout=timeout)
            code = process.returncode
        except subprocess.TimeoutExpired as expired:
            answers, errors, code = expired.stdout or b"", expired.stderr or b"", None
        finally:
            process.kill()
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)
            for pipe in (process.stdout, process.stderr):
                assert pipe is not None
                pipe.close()
        messages = _read(answers)
        latency = next((facts["latency_ms"] for facts in messages if "latency_ms" in facts), None)
        if code != 0 or latency is None:
            last = next((facts for facts in reversed(messages) if "stage" in facts), {"stage": "starting"})
            at = f"{last['stage']} the {last['model']}" if "model" in last else last["stage"]
            raise _death(code, timeout, at, errors.decode(errors="replace"))
        models = {facts["model"]: facts for facts in messages if "model" in facts and "stage" not in facts}
        for facts in models.values():
            _require_resources(facts)
        return _Answer(models, latency)


def _read(answers: bytes) -> list[dict[str, Any]]:
    """The messages of the process, without lines that are truncated or that something else printed."""
    messages = []
    for line in answers.splitlines():
        with suppress(ValueError):
            messages.append(json.loads(line))
    return [facts for facts in messages if isinstance(facts, dict)]


def _environment(scratch: Path) -> dict[str, str]:
    """The environment of the process, which cannot reach this user's caches and tokens."""
    kept = {name: text for name, text in os.environ.items() if name in _KEPT or name.startswith(_KEPT_FAMILIES)}
    waiting = {name: text for name, text in cpu_threads.openmp_settings().items() if name.startswith(_KEPT_FAMILIES)}
    count = {"OMP_NUM_THREADS": str(cpu_threads.pick_threads()[0])}
    return {**count, **waiting, **kept, **_ALONE, "HOME": str(scratch), "HF_HOME": str(scratch)}


_AGAIN = "then run the same command again"


def _death(code: int | None, timeout: float, at: str, errors: str) -> Exception:
    """The error of a process that ended without its answer, or did not end (`code` None)."""
    who = "the serving process, which opens the saved models as their users will,"
    last = next((line.strip()[:300] for line in reversed(errors.splitlines()) if line.strip()), "")
    if code is None:
        return StalledError(
            f"{who} gave no answer within {timeout:g} s, while {at}",
            next_step=f"wait until this machine is less busy, {_AGAIN}",
        )
    if code == -signal.SIGKILL:
        return _out_of_memory(f"was killed (SIGKILL) while {at}, most likely by the system for lack of memory")
    if is_out_of_memory(RuntimeError(last)):
        return _out_of_memory(f"ended while {at}: {last}")
    if os.strerror(errno.ENOSPC) in last:
        return OSError(errno.ENOSPC, last)
    how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return CrashedError(
        f"{who} {how} while {at}" + (f": {last}" if last else ""),
        next_step=f"`nightgate doctor` checks the installation; {_AGAIN}",
    )


def _require_resources(facts: Mapping[str, Any]) -> None:
    """Raise what the process met on the machine and not in the model: lack of memory, a full disk."""
    if "flaw" not in facts:
        return
    if facts.get("errno") == errno.ENOMEM or is_out_of_memory(RuntimeError(facts["flaw"])):
        raise _out_of_memory(f"had too little memory for the {facts['model']}: {facts['flaw']}")
    if facts.get("errno") in {errno.ENOSPC, errno.EDQUOT}:
        raise OSError(facts["errno"], facts["flaw"])


def _out_of_memory(what: str) -> OutOfMemoryError:
    return OutOfMemoryError(f"the serving process {what}", next_step=f"free memory on this machine, {_AGAIN}")


# --- the comparison ---


def _compared(answer: _Answer, name: str, expected: Logits, label_names: Sequence[str]) -> Serving:
    facts = answer.models[name]
    if "flaw" in facts:
        return Serving(flaw=facts["flaw"])
    columns = columns_by_name(facts["labels"], label_names)
    if columns is None:
        own = ", ".join(facts["labels"])
        return Serving(flaw=f"it has the labels {own}, the pipeline has {', '.join(label_names)}")
    found, wanted = np.array(facts["logits"], dtype=np.float64)[:, columns], expected.astype(np.float64)
    difference, flipped = _difference(found, wanted), _flipped(found, wanted)
    return Serving(rows=len(found), logit_difference=difference, flipped=flipped, latency_ms=answer.latency_ms[name])


def _difference(found: NDArray[np.float64], expected: NDArray[np.float64]) -> float:
    """Largest difference of two logits; infinite if only one of them is a number."""
    with np.errstate(invalid="ignore"):
        apart = np.abs(found - expected)
    apart[(found == expected) | (np.isnan(found) & np.isnan(expected))] = 0
    return float(np.where(np.isnan(apart), np.inf, apart).max())


def _flipped(found: NDArray[np.float64], expected: NDArray[np.float64]) -> int:
    """Rows with another label whose two largest logits are too far apart for the tolerance to explain it."""
    largest = np.sort(expected, axis=1)[:, -2:]
    with np.errstate(invalid="ignore"):
        clear = largest[:, 1] - largest[:, 0] > 2 * SERVING_TOLERANCE
    return int((clear & (found.argmax(axis=1) != expected.argmax(axis=1))).sum())
