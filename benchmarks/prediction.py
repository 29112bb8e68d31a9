"""Predictions of many rows, beside `transformers.pipeline("text-classification")` at its best.

    python -m benchmarks.prediction --shape l6|multi [--rows 600] [--median 31] [--rounds 5]

Both have the same version, the same texts and the same number of threads, and give every class's probability, in
float32 and, where the hardware computes it natively, in bf16, for which the pipeline loads bf16 weights. The pipeline
gets the texts sorted by length, in inference mode, with the batch size of 1 to 128 that is fastest in a trial. Then all
are timed in turns. It exits with 1 if the probabilities differ or ours is not ahead.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.results import (
    Result,
    at_most,
    exit_code,
    facts_list,
    log,
    machine_facts,
    median,
    parser,
    ratio,
    results_table,
)
from benchmarks.workload import BATCH, LABELS, MAX_LENGTH, SHAPES, Shape, base_model, drawn, load
from nightgate.cpu_threads import pick_threads
from nightgate.engine import devices
from nightgate.models.classifier import Classifier

BATCH_SIZES = (1, 4, 8, 16, 32, 64, 128)
TRIAL_ROWS = 128
MOST_DIFFERENT = {"fp32": 1e-4, "bf16": 0.02}
"""Of a probability, from the pipeline's in float32."""
Predict = Callable[[Sequence[str]], NDArray[np.float64]]


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    scratch = Path(tempfile.mkdtemp(prefix="nightgate-benchmark-"))
    try:
        results = _run(options, SHAPES[options.shape], scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return exit_code(results)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    options = parser("prediction", __doc__)
    options.add_argument("--shape", choices=sorted(SHAPES), default="l6")
    options.add_argument("--rows", type=int, default=600, help="texts of a round")
    options.add_argument("--median", type=int, default=31, help="tokens of a text")
    options.add_argument("--rounds", type=int, default=5)
    return options.parse_args(arguments)


def _run(options: argparse.Namespace, shape: Shape, scratch: Path) -> list[Result]:
    facts = machine_facts("torch", "transformers")
    threads = pick_threads()[0]
    torch.set_num_threads(threads)
    precisions = ["fp32", "bf16"] if devices.pick("auto").precision == "bf16" else ["fp32"]
    variants: dict[str, Predict] = {}
    for precision in precisions:
        version = _version(shape, scratch / precision, precision)
        texts = _texts(shape, version, options.rows, options.median)
        best, facts[f"pipeline in {precision}: rows per second and core by batch"] = _best(version, precision, texts)
        variants[f"pipeline, {precision}"] = best
        classifier = Classifier.open(version, device="cpu")
        variants[f"ours, {precision}"] = partial(classifier.probabilities, batch_size=BATCH)
    taken: dict[str, list[float]] = {name: [] for name in variants}
    found: dict[str, NDArray[np.float64]] = {}
    for turn in range(options.rounds + 1):
        for name in list(variants)[:: 1 if turn % 2 else -1]:
            spent, found[name] = _seconds(variants[name], texts)
            if turn:  # the first round warms up
                taken[name].append(spent)
        log(f"round {turn} of {options.rounds}")
    results = []
    for name, values in taken.items():
        results.append(
            Result(f"{name}: rows per second and core", str(median(len(texts) / threads / v for v in values)))
        )
    for precision in precisions:
        faster = ratio(taken[f"pipeline, {precision}"], taken[f"ours, {precision}"])
        results.append(Result(f"ours, {precision}, times as fast", str(faster), "more than 1", faster.median > 1))
        apart = float(np.abs(found[f"ours, {precision}"] - found["pipeline, fp32"]).max())
        results.append(
            at_most(f"ours, {precision}: largest difference of a probability", apart, MOST_DIFFERENT[precision])
        )
    facts |= {"model": f"{shape.name}, {shape.layers} layers", "threads": str(threads)}
    facts |= {"texts": f"{len(texts)} of {options.median} tokens in the median, cut at {MAX_LENGTH}"}
    print(facts_list(facts), results_table(results), sep="\n\n")
    return results


def _best(version: Path, precision: str, texts: Sequence[str]) -> tuple[Predict, str]:
    """The pipeline with its fastest batch size, and how fast each was."""
    log(f"trying batch sizes of the pipeline in {precision}")
    stock = _pipeline(version, precision)
    trial = texts[:: max(1, len(texts) // TRIAL_ROWS)][:TRIAL_ROWS]
    seconds = {size: min(_seconds(stock(size), trial)[0] for _ in range(2)) for size in BATCH_SIZES}
    rates = {size: len(trial) / torch.get_num_threads() / spent for size, spent in seconds.items()}
    return stock(min(seconds, key=seconds.__getitem__)), ", ".join(
        f"{size}: {rate:.0f}" for size, rate in rates.items()
    )


def _version(shape: Shape, scratch: Path, precision: str) -> Path:
    """A version with a fresh head, as a night of this precision registers it."""
    from nightgate.engine.base_models import save_model
    from nightgate.models.version_folder import Staging

    loaded = load(base_model(shape, scratch / "base"))
    save_model(loaded, scratch / "best")
    facts = {
        "pipeline": "benchmark",
        "label_names": list(LABELS),
        "configuration": {"training": {"max_length": MAX_LENGTH, "eval_batch_size": BATCH, "precision": precision}},
    }
    return Staging(scratch / "models", scratch / "best", LABELS).place(1, "card", facts)


def _texts(shape: Shape, version: Path, rows: int, median: int) -> list[str]:
    """Texts as long as reviews, without their first and last token, which the tokenizer adds."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(version, local_files_only=True)
    workload = drawn(shape, rows, seed=7, median=median)
    ids = [
        workload.ids[start + 1 : end - 1] for start, end in zip(workload.offsets, workload.offsets[1:], strict=False)
    ]
    return [" ".join(tokenizer.convert_ids_to_tokens(some.tolist())) or "fine" for some in ids]


def _pipeline(version: Path, precision: str) -> Callable[[int], Predict]:
    """The pipeline of transformers by its batch size: probabilities in the order of LABELS."""
    from transformers import pipeline

    dtype = devices.DTYPES[precision]
    stock: Any = pipeline("text-classification", model=str(version), device="cpu", dtype=dtype, top_k=None)

    def with_batches(batch_size: int) -> Predict:
        def predict(texts: Sequence[str]) -> NDArray[np.float64]:
            order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
            with torch.inference_mode():
                answers = stock(
                    [texts[row] for row in order], batch_size=batch_size, truncation=True, max_length=MAX_LENGTH
                )
            found = np.empty((len(texts), len(LABELS)))
            for row, answer in zip(order, answers, strict=True):
                by_label = {one["label"]: one["score"] for one in answer}
                found[row] = [by_label[label] for label in LABELS]
            return found

        return predict

    return with_batches


def _seconds(predict: Predict, texts: Sequence[str]) -> tuple[float, NDArray[np.float64]]:
    began = time.perf_counter()
    found = predict(texts)
    return time.perf_counter() - began, found


if __name__ == "__main__":
    sys.exit(main())
