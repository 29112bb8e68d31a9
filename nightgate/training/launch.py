"""Command and environment of the training process, or of several under `torchrun`; does not import torch.

`NIGHTGATE_PROCESSES` is how many processes train one model: a number, or `gpus` for one on each GPU. They share each
batch, so that results do not depend on it, up to rounding and dropout masks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import nightgate
from nightgate.cpu_threads import openmp_settings, pick_threads
from nightgate.errors import TrainingError
from nightgate.settings import read_settings

PATIENCE = 30.0
"""Seconds for the list of GPUs."""

_ALWAYS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    # Seconds without an answer after which the hub counts as unreachable.
    "HF_HUB_ETAG_TIMEOUT": "10",
    "HF_HUB_DOWNLOAD_TIMEOUT": "30",
    "TRANSFORMERS_VERBOSITY": "warning",
    "PYTHONUNBUFFERED": "1",
}


def processes() -> int:
    """The number of processes that train one model.

    Raises:
        ConfigurationError: as `read_settings`.
        TrainingError: as `gpus`.
    """
    asked = read_settings().processes
    return max(1, len(gpus())) if asked == "gpus" else asked


def command(python: str, job_file: Path, count: int) -> list[str]:
    """The command that runs `nightgate.training.worker` on a job in `count` processes."""
    # -P: a file of the working directory must not shadow a module.
    if count == 1:
        return [python, "-P", "-m", "nightgate.training.worker", str(job_file)]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}", "--max-restarts=0"]
    return [python, "-P", "-m", *torchrun, "-m", "nightgate.training.worker", str(job_file)]


def environment(count: int) -> dict[str, str]:
    """This process's environment without database and orchestrator, and with OpenMP and hub settings."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("PREFECT_") and name != "NIGHTGATE_DATABASE_URL"
    }
    code = str(Path(nightgate.__file__).parents[1])
    path = os.pathsep.join(part for part in (code, kept.get("PYTHONPATH", "")) if part)
    # Processes on one machine share its cores.
    threads = {"OMP_NUM_THREADS": str(max(1, pick_threads()[0] // count))} if count > 1 else {}
    return {**_ALWAYS, **openmp_settings(), **threads, **kept, "PYTHONPATH": path}


def gpus() -> list[str]:
    """Ids of the GPUs that this process may use, as in CUDA_VISIBLE_DEVICES.

    Raises:
        TrainingError: their driver does not answer.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False, timeout=PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise TrainingError(
            f"nvidia-smi does not list the GPUs within {PATIENCE:g} s",
            next_step="see whether their driver hangs (dmesg), or name the GPUs in CUDA_VISIBLE_DEVICES",
        ) from error
    return [str(at) for at in range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))]
