"""Script that serves saved models with torch and transformers alone; it imports nothing of Nightgate.

    python -I serving_probe.py JOB.json

The job is {"models": {NAME: {"folder": PATH, "max_length": TOKENS}}, "texts": [...], "parent": PID}. Standard output
gets one JSON object per line: {"stage", "model"} before each step, {"model", "labels", "logits"} or {"model", "flaw",
"errno"} after each model, and at the end {"latency_ms": {NAME: median of one text alone}}.
`nightgate.models.serving_check` starts it and reads its output.
"""

from __future__ import annotations

import errno
import json
import os
import statistics
import sys
import threading
import time
from typing import Any

BATCH_SIZE = 16
TURNS_TO_WARM_UP = 3
SECONDS_TO_TIME = 10.0
"""No text is timed after this."""


class Unusable(Exception):  # noqa: N818 (never leaves this script)
    """A problem that a user of the folder would have."""


def main(job_file: str) -> None:
    # Library output must not mix with the messages.
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def report(**facts: Any) -> None:
        print(json.dumps(facts), file=messages, flush=True)

    with open(job_file, encoding="utf-8") as file:  # noqa: PTH123 - keeps imports to a minimum
        job = json.load(file)
    threading.Thread(target=exit_with_parent, args=[job["parent"]], daemon=True).start()
    served: dict[str, tuple[Any, Any, int]] = {}
    report(stage="importing torch and transformers")
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    with torch.inference_mode():
        for name, wanted in job["models"].items():
            try:
                report(stage="loading", model=name)
                opened = (*load(wanted["folder"]), wanted["max_length"])
                report(stage="predicting", model=name)
                logits = [row for batch in batches(job["texts"]) for row in predict(*opened, batch).tolist()]
                labels = opened[0].config.id2label
                report(model=name, labels=[str(labels[index]) for index in range(len(labels))], logits=logits)
                served[name] = opened
            except Exception as error:  # noqa: BLE001 - the folder may hold anything
                report(model=name, flaw=describe(error), errno=errno_of(error))
        report(stage="timing")
        latency = time_in_turns(served, job["texts"])
    if any(module.partition(".")[0] == "nightgate" for module in sys.modules):
        raise SystemExit("a module of nightgate was imported: the check must use plain transformers")
    report(latency_ms=latency)


def load(folder: str) -> tuple[Any, Any]:
    """Load model and tokenizer as the model card shows it; weights keep their stored type."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    offline = {"local_files_only": True, "trust_remote_code": False}
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, use_safetensors=True, output_loading_info=True, **offline
    )
    if lacking := sorted(map(str, info["missing_keys"])):
        raise Unusable(f"its weights lack {', '.join(lacking[:4])}: transformers would initialise them at random")
    tokenizer = AutoTokenizer.from_pretrained(folder, **offline)
    known = model.get_input_embeddings().num_embeddings
    # AutoTokenizer silently returns an empty tokenizer if the files of the expected class are missing.
    if not known / 2 <= len(tokenizer) <= known:
        raise Unusable(
            f"AutoTokenizer finds a {type(tokenizer).__name__} of {len(tokenizer):,} tokens, the model knows {known:,}:"
            " files of the tokenizer are missing, or of another class than in config.json"
        )
    return model.eval(), tokenizer


def predict(model: Any, tokenizer: Any, max_length: int, texts: list[str]) -> Any:
    """Logits [texts, labels]."""
    inputs = tokenizer(texts, truncation=True, max_length=max_length, padding="longest", return_tensors="pt")
    return model(**inputs).logits.float()


def batches(texts: list[str]) -> list[list[str]]:
    return [texts[start : start + BATCH_SIZE] for start in range(0, len(texts), BATCH_SIZE)]


def time_in_turns(served: dict[str, tuple[Any, Any, int]], texts: list[str]) -> dict[str, float]:
    """Median milliseconds of one text alone, from text to logits, by model.

    Models take turns on each text, each time with another first, so that other load on the machine slows all alike.
    """
    names = list(served)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    began = time.perf_counter()
    for turn, text in enumerate([*texts[:TURNS_TO_WARM_UP], *texts]):
        first = turn % len(names) if names else 0
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            predict(*served[name], [text])
            if turn >= TURNS_TO_WARM_UP:
                seconds[name].append(time.perf_counter() - start)
        if turn >= TURNS_TO_WARM_UP and time.perf_counter() - began > SECONDS_TO_TIME:
            break
    return {name: 1000 * statistics.median(taken) for name, taken in seconds.items() if taken}


def describe(error: Exception) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, Unusable) else f"plain transformers raises {type(error).__name__}: {text}"


def errno_of(error: BaseException | None) -> int | None:
    """The number of the system's error behind an exception; None where there is none."""
    while error is not None:
        if isinstance(error, MemoryError):
            return errno.ENOMEM
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        error = error.__cause__ or error.__context__
    return None


def exit_with_parent(parent: int) -> None:
    """Exit once the process that started this one is gone."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
    # Tearing torch down takes time and may crash after the last message.
    os._exit(0)
