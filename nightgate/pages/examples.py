"""Misclassified test rows of a night with their texts, which are read from its snapshot."""

from __future__ import annotations

import numpy as np
import pandas as pd

from nightgate.data.snapshots import open_snapshot
from nightgate.database.transactions import Database
from nightgate.errors import RegistryError
from nightgate.runs.evidence_store import load_evidence

LONGEST = 600
"""Characters of a text on a page."""


def misclassified(db: Database, pipeline: str, limit: int) -> pd.DataFrame:
    """Test rows that the newest judged candidate got wrong: the commonest confusions first, `limit` in all.

    Columns: true_label, predicted_label, text.

    Raises:
        RegistryError: no night was judged, or the snapshot is gone.
    """
    query = (
        "SELECT n.run_id, s.path FROM nights AS n "
        "JOIN snapshots AS s ON s.pipeline = n.pipeline AND s.snapshot_id = n.snapshot_id "
        "WHERE n.pipeline = :pipeline AND n.verdict IS NOT NULL AND s.files_removed_at IS NULL "
        "ORDER BY n.night DESC LIMIT 1"
    )
    run_id, path = next(db.frame(query, {"pipeline": pipeline}).itertuples(index=False), ("", ""))
    evidence = load_evidence(db, str(run_id)) if run_id else None
    predicted = evidence.candidate.predictions if evidence else None
    if evidence is None or predicted is None:
        raise RegistryError(
            f"{pipeline} has no judged night whose snapshot is there, from which texts are read",
            next_step=f"run a night with `nightgate run {pipeline}`, or omit --examples",
        )
    labels = np.array(evidence.label_names, dtype=object)
    wrong = np.flatnonzero(predicted != evidence.test.true)
    rows = pd.DataFrame(
        {
            "fingerprint": np.array(evidence.test.fingerprints, dtype=object)[wrong],
            "true_label": labels[evidence.test.true[wrong]],
            "predicted_label": labels[predicted[wrong]],
        }
    )
    rows["confused"] = rows.groupby(["true_label", "predicted_label"])["fingerprint"].transform("size")
    rows = rows.sort_values(
        ["confused", "true_label", "predicted_label", "fingerprint"], ascending=[False, True, True, True]
    )
    texts = open_snapshot(db.home.absolute(str(path)), verify=False).rows("test", ["fingerprint", "text"])
    shown = rows.merge(texts.drop_duplicates("fingerprint"), on="fingerprint").head(limit)
    return shown.assign(text=shown["text"].str.slice(0, LONGEST))[["true_label", "predicted_label", "text"]]
