"""The serving check runs the real script in a fresh process, on sound and on broken folders."""

from __future__ import annotations

import errno
import json
import shutil
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from nightgate.engine import base_models
from nightgate.engine.encoding import encode
from nightgate.errors import CrashedError, NightgateError, OutOfMemoryError, StalledError, StorageError
from nightgate.gate.evidence import Serving
from nightgate.models import serving_check, serving_probe
from nightgate.models.serving_check import check_version, model_size, serve
from nightgate.models.version_folder import Staging
from nightgate.pipeline_files import check_pipeline
from nightgate.training import scoring
from tests.support.night_rows import within
from tests.support.trained import write_trained_model

pytestmark = pytest.mark.process

ROOT = Path(serving_check.__file__).parents[2]
LABELS = ("bad", "fine", "good")
TEXTS = [f"{number} {'the lamp broke and it was never good ' * (1 + number % 4)}" for number in range(64)]
MAX_LENGTH = 24

Logits = NDArray[np.float32]


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_trained_model(tmp_path_factory.mktemp("trained"), LABELS, max_length=MAX_LENGTH, sharpness=10)


@pytest.fixture(scope="module")
def logits(best: Path) -> Logits:
    """Logits of the night's own scoring."""
    loaded = base_models.load_trained(best, named="it")
    encoded = encode(loaded.tokenizer, TEXTS, MAX_LENGTH)
    assert encoded.lengths.max() == MAX_LENGTH > encoded.lengths.min(), "some are truncated, some padded"
    return scoring.logits_of(loaded.model, encoded, batch_size=16)


def served(models: dict[str, Path], logits: Logits, **options: Any) -> dict[str, Serving]:
    names = list(models)
    return serve(models, TEXTS, dict.fromkeys(names, logits), dict.fromkeys(names, MAX_LENGTH), LABELS, **options)


# --- one process, many folders ---


@dataclass(frozen=True)
class Seen:
    models: dict[str, Path]
    found: dict[str, Serving]
    environment: str
    imported: list[str]


@pytest.fixture(scope="module")
def seen(best: Path, logits: Logits, tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """Sound and broken folders, served by one process whose environment and imports are recorded."""
    folder = tmp_path_factory.mktemp("served")
    python = folder / "python"
    record = f"exec 2> {folder}/imported; env > {folder}/environment"
    python.write_text(f'#!/bin/sh\n{record}\nexec {sys.executable} -X importtime "$@"\n')
    python.chmod(0o755)
    models = {"sound": best, **_broken(best, folder), "gone": folder / "gone"}
    with pytest.MonkeyPatch.context() as patch:
        for name in ("NIGHTGATE_DATABASE_URL", "PREFECT_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "a secret")
        patch.setenv("PYTHONPATH", str(ROOT))
        found = served(models, logits, python=str(python))
    imported = [line.rpartition("|")[2].strip() for line in (folder / "imported").read_text().splitlines()]
    return Seen(models, found, (folder / "environment").read_text(), imported)


def _broken(best: Path, folder: Path) -> dict[str, Path]:
    import torch
    from safetensors.torch import load_file

    def biased(tensors: dict[str, Any]) -> None:
        tensors["classifier.bias"] = tensors["classifier.bias"] + np.float32([50, 0, -50])

    def turned(tensors: dict[str, Any]) -> None:
        for name in ("classifier.weight", "classifier.bias"):
            tensors[name] = np.ascontiguousarray(tensors[name][[2, 0, 1]])

    def headless(tensors: dict[str, Any]) -> None:
        del tensors["classifier.bias"]

    def labels(*names: str) -> dict[str, Any]:
        return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}

    pickled, mute = changed(best, folder / "pickled"), changed(best, folder / "mute")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mute / name).unlink()
    return {
        "altered": reweighted(changed(best, folder / "altered"), biased),
        "turned": reweighted(changed(best, folder / "turned", **labels("good", "bad", "fine")), turned),
        "nameless": changed(best, folder / "nameless", **labels("LABEL_0", "LABEL_1", "LABEL_2")),
        "foreign": changed(best, folder / "foreign", **labels("a", "b", "c")),
        "headless": reweighted(changed(best, folder / "headless"), headless),
        "pickled": pickled,
        "mute": mute,
    }


def changed(best: Path, folder: Path, **settings: Any) -> Path:
    """A copy with these settings in config.json."""
    shutil.copytree(best, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | settings))
    return folder


def reweighted(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", ["sound", "turned", "nameless"])
def test_a_sound_model_gives_the_logits_of_the_night(seen: Seen, name: str) -> None:
    found = seen.found[name]
    assert (found.flaw, found.rows, found.flipped) == ("", 64, 0)
    assert found.logit_difference is not None
    assert found.logit_difference < 1e-4
    assert found.latency_ms is not None
    assert 0.05 < found.latency_ms < 1000
    assert found.size_bytes == sum(file.stat().st_size for file in seen.models[name].iterdir())


def test_weights_altered_after_scoring_change_logits_and_labels(seen: Seen) -> None:
    found = seen.found["altered"]
    assert (found.flaw, found.rows) == ("", 64)
    assert found.logit_difference == pytest.approx(50, abs=1e-3)
    assert found.flipped > 0


@pytest.mark.parametrize(
    ("name", "flaw"),
    [
        ("foreign", "a, b, c"),
        ("headless", "classifier.bias"),
        ("pickled", "model.safetensors"),
        ("mute", "okenizer"),
        ("gone", "gone"),
    ],
)
def test_a_model_that_cannot_be_served_has_a_flaw_and_no_numbers(seen: Seen, name: str, flaw: str) -> None:
    found = seen.found[name]
    assert flaw in found.flaw
    assert (found.rows, found.logit_difference, found.flipped, found.latency_ms) == (0, None, 0, None)
    assert found.size_bytes == model_size(seen.models[name])


def test_the_process_gets_no_secret_and_imports_nothing_of_nightgate(seen: Seen) -> None:
    assert "a secret" not in seen.environment
    assert "HF_HUB_OFFLINE=1" in seen.environment
    assert {"torch", "transformers"} < set(seen.imported)
    assert [name for name in seen.imported if name.startswith("nightgate")] == []


# --- processes that die or hang ---


def script(path: Path, code: str) -> str:
    """A script that is started instead of Python."""
    path.write_text(f"#!{sys.executable}\nimport json, os, runpy, signal, sys, time\n{textwrap.dedent(code)}")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("code", "error", "cause"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", OutOfMemoryError, "SIGKILL.* while starting"),
        ("sys.exit('RuntimeError: DefaultCPUAllocator: not enough memory')", OutOfMemoryError, "not enough memory"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", CrashedError, "SIGSEGV while starting"),
        ("sys.exit('there is no torch')", CrashedError, "while starting: there is no torch"),
        ('print(\'{"stage": "loading", "model": "champ\')', CrashedError, "exit code 0 while starting"),
        (
            'print(json.dumps({"stage": "loading", "model": "champion"}), flush=True); os.abort()',
            CrashedError,
            "SIGABRT while loading the champion",
        ),
        ("sys.exit('OSError: [Errno 28] No space left on device')", StorageError, "No space left on device"),
        ("time.sleep(60)", StalledError, "1 s, while starting"),
    ],
)
def test_a_process_that_dies_is_an_error_that_says_how_and_when(
    code: str, error: type[NightgateError], cause: str, best: Path, logits: Logits, tmp_path: Path
) -> None:
    python, timeout = script(tmp_path / "python", code), 1 if "sleep" in code else 60
    with pytest.raises(error, match=cause) as caught:
        served({"candidate": best, "champion": best}, logits, python=python, timeout=timeout)
    assert "run the same command again" in caught.value.next_step


@pytest.mark.parametrize(
    ("flaw", "number", "error"),
    [
        ("plain transformers raises MemoryError: ", errno.ENOMEM, OutOfMemoryError),
        ("plain transformers raises RuntimeError: can't allocate memory", None, OutOfMemoryError),
        ("plain transformers raises OSError: cannot write", errno.ENOSPC, StorageError),
    ],
)
def test_what_a_process_lacks_is_no_flaw_of_the_model(
    flaw: str, number: int | None, error: type[NightgateError], best: Path, logits: Logits, tmp_path: Path
) -> None:
    answers = [{"model": "candidate", "flaw": flaw, "errno": number}, {"latency_ms": {}}]
    python = script(tmp_path / "python", f"for answer in {answers!r}: print(json.dumps(answer))")
    with pytest.raises(error):
        served({"candidate": best}, logits, python=python)


def test_the_number_of_a_system_error_is_found_behind_others() -> None:
    behind = ValueError("unreadable")
    behind.__cause__ = OSError(errno.ENOSPC, "full")
    assert serving_probe.errno_of(behind) == errno.ENOSPC
    assert serving_probe.errno_of(MemoryError()) == errno.ENOMEM
    assert serving_probe.errno_of(OSError("no file named model.safetensors")) is None


def hanging(path: Path) -> str:
    """The real script with a transformers that takes ten minutes to load a folder named `slow`."""
    return script(
        path,
        """
        import transformers
        load = transformers.AutoModelForSequenceClassification.from_pretrained
        def load_slowly(folder, **options):
            time.sleep(600 if folder.endswith("slow") else 0)
            return load(folder, **options)
        transformers.AutoModelForSequenceClassification.from_pretrained = load_slowly
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        """,
    )


def started() -> list[psutil.Process]:
    """Live processes of the real script."""
    processes = psutil.process_iter(["cmdline", "status"])
    alive = [process for process in processes if process.info["status"] != psutil.STATUS_ZOMBIE]
    return [process for process in alive if str(serving_check.SCRIPT) in (process.info["cmdline"] or [])]


@pytest.mark.faults
def test_a_process_that_hangs_is_killed_and_is_an_error(best: Path, logits: Logits, tmp_path: Path) -> None:
    models = {"champion": changed(best, tmp_path / "slow"), "candidate": best}
    with pytest.raises(StalledError, match="45 s, while loading the champion"):
        served(models, logits, python=hanging(tmp_path / "python"), timeout=45)
    assert started() == []


def scripted(path: Path, *dies: list[str]) -> str:
    """A process that dies of SIGABRT while it loads the last of these sets of models, and serves others."""
    return script(
        path,
        f"""
        names = list(json.load(open(sys.argv[3]))["models"])
        if names in {dies!r}:
            print(json.dumps({{"stage": "loading", "model": names[-1]}}), flush=True)
            os.abort()
        for name in names:
            print(json.dumps({{"model": name, "labels": {LABELS!r}, "logits": [[0, 0, 9]] * {len(TEXTS)}}}))
        print(json.dumps({{"latency_ms": dict.fromkeys(names, 5)}}))
        """,
    )


BOTH, ALONE = ["candidate", "champion"], ["champion"]


def test_a_champion_that_no_process_can_serve_is_not_compared(best: Path, logits: Logits, tmp_path: Path) -> None:
    python = scripted(tmp_path / "python", BOTH, ALONE)
    found = served({"candidate": best, "champion": best}, logits, reference="champion", python=python)
    assert "SIGABRT while loading the champion" in found["champion"].flaw
    assert (found["candidate"].flaw, found["candidate"].rows, found["candidate"].latency_ms) == ("", 64, 5)


@pytest.mark.parametrize("dies", [(BOTH,), (BOTH, ALONE, ["candidate"])], ids=["at one try", "of the candidate"])
def test_a_crash_that_is_not_the_champions_is_an_error(
    dies: tuple[list[str], ...], best: Path, logits: Logits, tmp_path: Path
) -> None:
    with pytest.raises(CrashedError, match="SIGABRT"):
        served(
            {"candidate": best, "champion": best},
            logits,
            reference="champion",
            python=scripted(tmp_path / "python", *dies),
        )


@pytest.mark.faults
def test_the_process_ends_with_its_caller(best: Path, tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
import numpy as np
from nightgate.models.serving_check import serve
folder, python = Path({str(changed(best, tmp_path / "slow"))!r}), {hanging(tmp_path / "python")!r}
serve({{"it": folder}}, ["a"], {{"it": np.zeros((1, 3), np.float32)}}, {{"it": 8}}, {LABELS!r}, python=python)
"""
    caller = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    within(60, started)
    caller.send_signal(signal.SIGKILL)
    caller.wait()
    within(60, lambda: not started())


@pytest.mark.faults
def test_a_process_that_imports_nightgate_fails_the_check(best: Path, logits: Logits, tmp_path: Path) -> None:
    python = script(
        tmp_path / "python",
        f"""
        sys.path.insert(0, {str(ROOT)!r})
        import nightgate
        sys.argv = sys.argv[2:]
        runpy.run_path(sys.argv[0], run_name="__main__")
        """,
    )
    with pytest.raises(CrashedError, match="a module of nightgate"):
        served({"candidate": best}, logits, python=python)


def test_without_rows_the_check_fails(best: Path) -> None:
    empty = np.zeros((0, 3), np.float32)
    found = serve({"candidate": best}, [], {"candidate": empty}, {"candidate": MAX_LENGTH}, LABELS)
    assert "no rows" in found["candidate"].flaw


def test_another_label_counts_as_flipped_only_beyond_the_tolerance() -> None:
    expected = np.array([[0.0, 0.0015], [0.0, 0.0025], [5.0, 0.0]])
    assert serving_check._flipped(expected[:, ::-1], expected) == 2
    assert serving_check._flipped(expected, expected) == 0


@pytest.mark.parametrize(
    ("found", "expected", "difference"),
    [
        ([1.0, 2.0], [1.0, 2.5], 0.5),
        ([np.nan, 2.0], [np.nan, 2.0], 0.0),
        ([np.inf, 2.0], [np.inf, 2.0], 0.0),
        ([np.nan, 2.0], [1.0, 2.0], np.inf),
        ([np.inf, 2.0], [-np.inf, 2.0], np.inf),
        ([np.inf, 2.0], [1.0, 2.0], np.inf),
    ],
)
def test_a_logit_that_is_a_number_on_one_side_only_has_an_infinite_difference(
    found: list[float], expected: list[float], difference: float
) -> None:
    assert serving_check._difference(np.array([found]), np.array([expected])) == difference


def test_a_version_is_checked_against_its_own_classifier(best: Path, tmp_path: Path) -> None:
    data = {"source": {"kind": "sample"}, "labels": list(LABELS)}
    pipeline = check_pipeline({"name": "reviews", "data": data, "training": {"max_length": 20}}, "test")
    facts = {"pipeline": "reviews", "label_names": list(LABELS), "configuration": pipeline.record()}
    version = Staging(tmp_path / "models", best, LABELS).place(1, "card", facts)
    found = check_version(version, TEXTS)
    assert (found.flaw, found.rows, found.flipped) == ("", 64, 0)
    assert found.logit_difference is not None
    assert found.logit_difference < 1e-4
    assert found.size_bytes == model_size(best)
    (version / "config.json").write_text("{}")
    assert "config.json" in check_version(version, TEXTS).flaw
