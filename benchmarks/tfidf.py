"""A night's model against TF-IDF with logistic regression, on the same split of the same snapshot.

    python -m benchmarks.tfidf PIPELINE        (after `nightgate run PIPELINE`; needs the extra `dev`)

Takes the newest night of PIPELINE that was judged. The baseline is fitted on all training rows of that night's
snapshot, also where `max_train_rows` gave the model fewer: once as scikit-learn has it by default, once tuned. All are
compared on the test rows, with the paired 95 % bootstrap interval of the difference in F1.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from nightgate.config import Pipeline
from nightgate.data.refresh import training_rows
from nightgate.data.snapshots import open_snapshot
from nightgate.database.transactions import Database
from nightgate.errors import NightgateError, RegistryError
from nightgate.home import open_home
from nightgate.metrics import classification
from nightgate.metrics.bootstrap import f1_difference
from nightgate.pipeline_files import load_pipeline
from nightgate.runs.evidence_store import load_evidence

Labels = NDArray[np.int64]
Score = Callable[[Labels, Labels], float]

NEWEST = """
SELECT r.run_id, r.night, r.duration_seconds, r.best_epoch, r.data_until, s.path
FROM nightly_runs r JOIN snapshots s ON s.pipeline = r.pipeline AND s.snapshot_id = r.snapshot_id
WHERE r.pipeline = :pipeline AND r.verdict IS NOT NULL ORDER BY r.night DESC, r.started_at DESC LIMIT 1
"""


def compare(pipeline: Pipeline) -> str:
    """The table, as text.

    Raises:
        RegistryError: no night of this pipeline has been judged yet.
    """
    home = open_home()
    with Database.open(home) as db:
        found = db.frame(NEWEST, {"pipeline": pipeline.name})
        if found.empty:
            raise RegistryError(
                f"no night of {pipeline.name} has been judged", next_step=f"nightgate run {pipeline.name}"
            )
        run = found.iloc[0]
        ours = load_evidence(db, run["run_id"]).candidate.predictions
    snapshot = open_snapshot(home.absolute(run["path"]))
    train, validation, test = (snapshot.rows(split) for split in ("train", "validation", "test"))
    num_labels = len(pipeline.data.label_names)
    average = pipeline.gate.average

    references = test["label"].to_numpy()
    assert ours is not None
    used = len(training_rows(snapshot, pipeline, run["data_until"]))
    model = f"{pipeline.training.base_model}, {pipeline.training.epochs} epochs"
    rows = [(model, used, ours, run["duration_seconds"])]
    for name, fit in (("scikit-learn's defaults", _default), ("tuned on validation", _tuned)):
        started = time.perf_counter()
        predicted = fit(
            train, validation, test["text"], lambda a, b: classification.score(a, b, num_labels).f1(average) or 0
        )
        rows.append((f"TF-IDF and logistic regression, {name}", len(train), predicted, time.perf_counter() - started))
    lines = [
        f"{pipeline.name}, night {run['night']}, run {run['run_id']}, {len(test):,} test rows",
        "",
        "| model | training rows | accuracy | F1 | seconds | the night's F1 minus this one, paired 95 % interval |",
        "|---|---|---|---|---|---|",
    ]
    for name, count, predicted, took in rows:
        scores = classification.score(references, predicted, num_labels)
        interval = ""
        if predicted is not ours:
            interval = str(f1_difference(references, predicted, ours, num_labels, average).interval)
        lines.append(
            f"| {name} | {count:,} | {scores.accuracy:.4f} | {scores.f1(average):.4f} | {took:.0f} | {interval} |"
        )
    return "\n".join(lines)


def _default(train: pd.DataFrame, validation: pd.DataFrame, texts: pd.Series[str], score: Score) -> Labels:
    """Single words, regularisation as it comes."""
    del validation, score
    vectorizer = TfidfVectorizer()
    model = LogisticRegression(max_iter=2000).fit(vectorizer.fit_transform(train["text"]), train["label"])
    return np.asarray(model.predict(vectorizer.transform(texts)), dtype=np.int64)


def _tuned(train: pd.DataFrame, validation: pd.DataFrame, texts: pd.Series[str], score: Score) -> Labels:
    """Words and pairs, the regularisation that is best on the validation rows."""
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    features = vectorizer.fit_transform(train["text"])
    known, truth = vectorizer.transform(validation["text"]), validation["label"].to_numpy()
    fitted = [LogisticRegression(C=c, max_iter=2000).fit(features, train["label"]) for c in (0.3, 1.0, 3.0, 10.0, 30.0)]
    best = max(fitted, key=lambda model: score(truth, model.predict(known)))
    return np.asarray(best.predict(vectorizer.transform(texts)), dtype=np.int64)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m benchmarks.tfidf PIPELINE")
    try:
        print(compare(load_pipeline(sys.argv[1])))
    except NightgateError as error:
        sys.exit(f"error: {error}")
