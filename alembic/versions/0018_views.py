"""The views that users query: the SQL contract. Columns are only ever added, at the end.

`env.py` makes them, once the tables are those of the last revision: a later revision that adds a column to a table only
adds it to the texts here.

One text for both engines, and for DuckDB, which reads the views of a SQLite file by parsing their texts itself: hence
`COUNT` of a column and no function that only one engine has.
"""

from __future__ import annotations

from alembic import context

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

METRIC_HISTORY = """
SELECT r.pipeline, r.night, e.run_id, e.attempt, e.epoch, e.step, e.training_loss, e.validation_loss, e.accuracy,
       CASE r.average WHEN 'macro' THEN e.f1_macro ELSE e.f1_weighted END AS f1,
       CASE r.average WHEN 'macro' THEN e.precision_macro ELSE e.precision_weighted END AS precision,
       CASE r.average WHEN 'macro' THEN e.recall_macro ELSE e.recall_weighted END AS recall,
       r.average, e.f1_weighted, e.f1_macro, e.learning_rate, e.examples_per_second, e.nonfinite, e.recorded_at,
       e.support, e.tokens_per_second, a.precision AS compute_precision
FROM epoch AS e
JOIN run AS r ON r.run_id = e.run_id
JOIN attempt AS a ON a.run_id = e.run_id AND a.attempt = e.attempt
"""

# The line that counts. A later attempt replaces all that lies behind the epoch from which it started, as soon as it has
# an epoch of its own or has finished: its own epochs win, and what an earlier attempt had beyond its end is gone.
COUNTS = """
NOT EXISTS (
    SELECT 1 FROM attempt AS later
    WHERE later.run_id = e.run_id AND later.attempt > e.attempt AND (
        EXISTS (SELECT 1 FROM epoch AS own
                WHERE own.run_id = later.run_id AND own.attempt = later.attempt AND own.epoch <= e.epoch)
        OR (later.resumed_from_epoch < e.epoch AND (
            later.status NOT IN ('running', 'failed', 'cancelled')
            OR EXISTS (SELECT 1 FROM epoch AS own
                       WHERE own.run_id = later.run_id AND own.attempt = later.attempt)))))
"""

# Which run of a night counts: a promotion before later tries, a result before what broke, a dry run only alone.
RANK = """CASE WHEN {0}.status = 'promoted' THEN 0 WHEN {0}.status = 'superseded' THEN 4 WHEN {0}.dry_run THEN 3
                 WHEN {0}.status IN ('failed', 'cancelled', 'missed') THEN 2 ELSE 1 END"""

# Refreshes on their own are no runs, and what they find has their id in place of a run's.
RUNS_AND_REFRESHES = """(
    SELECT run_id, pipeline, night FROM run UNION ALL SELECT refresh_id AS run_id, pipeline, night FROM refresh)"""


# Tables with most rows name an attempt by number, and say whether a row is of the test rows.
OF_ATTEMPT = """
JOIN attempt AS a ON a.attempt_id = {row}.attempt_id
JOIN run AS r ON r.run_id = a.run_id"""
SPLIT = "CASE WHEN {row}.is_test THEN 'test' ELSE 'validation' END"
# Of the test rows' scores, of an attempt `a`. Before it was stored all were computed in fp32. CAST: SQLite passes a
# condition into the parts of a UNION ALL only where their columns have the same affinity.
SCORED_IN = "CAST(COALESCE(a.scoring_precision, 'fp32') AS TEXT)"
COMPUTED_IN = f"CASE WHEN {{row}}.is_test THEN {SCORED_IN} ELSE a.precision END AS compute_precision"
OWN_ATTEMPT = "JOIN attempt AS a ON a.run_id = {row}.run_id AND a.attempt = {row}.attempt"


def is_last(table: str, and_: str = "AND own.is_test", row: str = "a") -> str:
    """That the attempt of a row of such a table is the last of its run with rows there.

    Not as `NOT EXISTS`: PostgreSQL compares all attempts of all pipelines then.
    """
    own = f"SELECT 1 FROM {table} AS own WHERE own.attempt_id = other.attempt_id {and_}"
    return f"""{row}.attempt = (
    SELECT MAX(other.attempt) FROM attempt AS other WHERE other.run_id = {row}.run_id AND EXISTS ({own}))"""


def label(key: str) -> str:
    """The name of the label whose number is a key of JSON counts."""
    return f"(SELECT n.slice_value FROM slice AS n WHERE n.slice_id = CAST({key} AS INTEGER))"


def of_last_attempt(table: str, row: str) -> str:
    later = f"later.run_id = {row}.run_id AND later.attempt > {row}.attempt"
    return f"NOT EXISTS (SELECT 1 FROM {table} AS later WHERE {later})"


IS_BEST = "COALESCE(s.epoch = r.best_epoch, 1 = 0) AS is_best"

# --- what changed ---

# By kind and name: a fact of a run `r`, of its version `v` and of the attempt `a` that made it, as text. {0} is '' for
# a night and 'b' for the one before.
FACTS = {
    ("code", "code_version"): "{0}r.code_version",
    ("base_model", "base_model"): "{0}r.base_model",
    ("base_model", "base_model_revision"): "{0}v.base_model_revision",
    ("test_version", "test_version"): "{0}r.test_version",
    ("labels", "labels"): "CAST({0}r.label_names AS TEXT)",
    ("average", "average"): "{0}r.average",
    ("metric", "metric_key"): "{0}r.metric_key",
    ("device", "device"): "{0}a.device",
    ("device", "precision"): "{0}a.precision",
    ("precision", "scoring_precision"): "COALESCE({0}a.scoring_precision, 'fp32')",
    # In force when the run started. The index has it first.
    ("champion", "champion_version"): """CAST((
                SELECT CASE WHEN c.valid_to IS NULL OR c.valid_to > {0}r.started_at THEN c.version END
                FROM promotion AS c WHERE c.pipeline = {0}r.pipeline AND c.valid_from <= {0}r.started_at
                ORDER BY c.valid_from DESC LIMIT 1) AS TEXT)""",
    ("rows", "rows_total"): "CAST({0}r.rows_total AS TEXT)",
    # NULL where no night goes on from another.
    ("training", "training"): "COALESCE({0}r.training, 'full')",
}
# Documents: their kind of change, and the number of the one that a night has.
DOCUMENTS = {"setting": "config_id", "library": "environment_id"}
KINDS = " UNION ALL ".join(
    [
        *(
            f"SELECT CAST('{kind}' AS TEXT) AS kind, CAST('{name}' AS TEXT) AS name, NULL AS path"
            for kind, name in FACTS
        ),
        """
    SELECT DISTINCT CAST('setting' AS TEXT) AS kind, d.name, d.name AS path
    FROM document_value AS d WHERE d.name LIKE '%.%' AND d.name NOT LIKE 'libraries.%'""",
        """
    SELECT DISTINCT CAST('library' AS TEXT) AS kind, SUBSTR(d.name, 11) AS name, d.name AS path
    FROM document_value AS d WHERE d.name LIKE 'libraries.%'""",
        "SELECT CAST('library' AS TEXT) AS kind, CAST('Python' AS TEXT) AS name, CAST('python' AS TEXT) AS path",
    ]
)
BY_NAME = {name: fact for (_, name), fact in FACTS.items()}
BY_NAME |= {"config_id": "{0}r.config_id", "environment_id": "{0}v.environment_id"}
# Nights with a version, so that all facts are known, each beside the one before it; a dry run changes no pipeline. The
# window has one column: it is computed over all nights, also where few are asked for.
BESIDE = f"""
        SELECT n.pipeline, n.night, n.run_id, n.before_run_id,
               {", ".join(f"{fact.format('')} AS {name}" for name, fact in BY_NAME.items())},
               {", ".join(f"{fact.format('b')} AS before_{name}" for name, fact in BY_NAME.items())}
        FROM (
            SELECT r.pipeline, r.night, r.run_id,
                   LAG(r.run_id) OVER (PARTITION BY r.pipeline ORDER BY r.night) AS before_run_id
            FROM nights AS r WHERE r.model_version IS NOT NULL AND NOT r.dry_run) AS n
        JOIN run AS r ON r.run_id = n.run_id
        JOIN model_version AS v ON v.run_id = r.run_id
        JOIN attempt AS a ON a.run_id = v.run_id AND a.attempt = v.attempt
        JOIN run AS br ON br.run_id = n.before_run_id
        JOIN model_version AS bv ON bv.run_id = br.run_id
        JOIN attempt AS ba ON ba.run_id = bv.run_id AND ba.attempt = bv.attempt"""


def differ(name: str) -> str:
    """Whether a fact changed; a number of rows by more than a tenth."""
    if name == "rows_total":
        return (
            f"10 * ABS(CAST(p.{name} AS INTEGER) - CAST(p.before_{name} AS INTEGER)) > CAST(p.before_{name} AS INTEGER)"
        )
    if name in DOCUMENTS.values():
        return f"p.{name} <> p.before_{name}"
    return f"COALESCE(p.{name}, '') <> COALESCE(p.before_{name}, '')"


def shown(side: str) -> str:
    """A fact of a night, or of the one before it, by kind and name."""
    of_document = "(SELECT d.value FROM document_value AS d WHERE d.document_id = p.{0}{1} AND d.name = k.path)"
    setting, library = (of_document.format(side, name) for name in DOCUMENTS.values())
    facts = " ".join(f"WHEN '{name}' THEN p.{side}{name}" for _, name in FACTS)
    return f"""CASE k.kind WHEN 'setting' THEN {setting}
                WHEN 'library' THEN TRIM({library}, '"')
                ELSE CASE k.name {facts} END END"""


VIEWS = {
    "metric_history": METRIC_HISTORY,
    "epoch_results": f"{METRIC_HISTORY} WHERE {COUNTS}",
    "nightly_runs": """
SELECT r.pipeline, r.night, r.run_id, r.status, r.reason, r.error_type, r.next_step, r.verdict, r.trigger,
       (SELECT CAST(COUNT(a.attempt) AS INTEGER) FROM attempt AS a WHERE a.run_id = r.run_id) AS attempts,
       r.scheduled_for, r.data_until, r.snapshot_id, r.rows_new, r.rows_total, r.best_epoch,
       r.test_version, r.test_rows, r.test_f1, r.f1_ci_low, r.f1_ci_high,
       r.champion_version, r.champion_f1, r.f1_delta, v.version AS model_version,
       r.base_model, r.config_hash, r.code_version, d.device, d.precision,
       r.started_at, r.finished_at, r.duration_seconds, r.prefect_flow_run_id,
       r.dry_run, r.average, r.min_f1, r.test_accuracy, r.test_precision, r.test_recall, r.nonfinite,
       d.engine, d.micro_batches, q.slot, q.slot_wait_seconds, r.announced_at,
       r.window_start, r.test_rows_all, r.test_f1_all, r.rows_left_out, r.detectable_gain, r.champion_fresh_f1,
       r.champion_fresh_rows, r.fresh_ci_low, r.fresh_ci_high, r.anchor_version, r.anchor_f1, r.metric_key,
       r.labels_corrected, r.rows_trained, r.label_revision, r.reasons,
       CAST(SUBSTR(CAST(r.night AS TEXT), 1, 7) AS TEXT) AS month,
       CAST(COALESCE((SELECT SUM(g.busy_seconds) FROM attempt AS g
                      WHERE g.run_id = r.run_id AND g.device <> 'cpu'), 0) AS DOUBLE PRECISION) AS gpu_seconds,
       CAST(r.label_names AS TEXT) AS labels,
       CASE WHEN r.test_rows IS NOT NULL THEN COALESCE(d.scoring_precision, 'fp32') END AS scoring_precision,
       r.training, r.started_from, r.training_reason
FROM run AS r
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN attempt AS d ON d.run_id = r.run_id AND d.attempt = (
    SELECT MAX(known.attempt) FROM attempt AS known WHERE known.run_id = r.run_id AND known.device IS NOT NULL)
LEFT JOIN attempt AS q ON q.run_id = r.run_id AND q.attempt = r.attempt
""",
    # Not the first by `ORDER BY`: PostgreSQL would expect few rows of `run_id = (SELECT ...)`, and join them in loops.
    "nights": f"""
SELECT n.* FROM nightly_runs AS n
WHERE NOT EXISTS (
    SELECT 1 FROM run AS c
    WHERE c.pipeline = n.pipeline AND c.night = n.night AND (
        {RANK.format("c")} < {RANK.format("n")}
        OR {RANK.format("c")} = {RANK.format("n")}
        AND (c.started_at > n.started_at OR c.started_at = n.started_at AND c.run_id > n.run_id)))
""",
    "attempts": f"""
SELECT r.pipeline, r.night, a.run_id, a.attempt, a.status, a.trigger, a.error_type, a.reason, a.host, a.device,
       a.precision, a.precision_reason, a.threads, a.engine, a.engine_reason, a.micro_batches, a.restarts,
       a.resumed_from_epoch,
       (SELECT CAST(COUNT(e.epoch) AS INTEGER) FROM epoch AS e
        WHERE e.run_id = a.run_id AND e.attempt = a.attempt) AS epochs,
       (SELECT CAST(COUNT(e.epoch) AS INTEGER) FROM epoch AS e
        WHERE e.run_id = a.run_id AND e.attempt = a.attempt AND NOT ({COUNTS})) AS epochs_lost,
       CAST(CASE WHEN a.device <> 'cpu' THEN COALESCE(a.busy_seconds, 0) ELSE 0 END AS DOUBLE PRECISION)
           AS gpu_seconds,
       a.slot, a.slot_wait_seconds, a.code_version, a.prefect_flow_run_id, a.started_at, a.finished_at,
       a.heartbeat_at, a.duration_seconds, a.pid, a.owner_started, a.owner_ticks, a.process_space,
       a.scoring_precision
FROM attempt AS a
JOIN run AS r ON r.run_id = a.run_id
""",
    # DISTINCT keeps engines from joining `k` before they have left out the nights on which nothing changed.
    # A setting that one side lacks and the other has as its default is no change: a release added or removed it.
    "night_changes": f"""
SELECT c.pipeline, c.night, c.run_id, c.kind, c.name, c.before, c.after, c.before_run_id
FROM (
    SELECT p.pipeline, p.night, p.run_id, k.kind, k.name, p.before_run_id, {shown("before_")} AS before,
           {shown("")} AS after,
           (SELECT COUNT(d.name) FROM document_value AS d WHERE d.document_id IN (p.config_id, p.before_config_id)
                AND d.name = k.path AND d.is_default) AS defaults
    FROM (SELECT DISTINCT p.* FROM ({BESIDE}) AS p WHERE {" OR ".join(differ(name) for name in BY_NAME)}) AS p
    JOIN ({KINDS}) AS k ON CASE k.kind
        {" ".join(f"WHEN '{kind}' THEN {differ(name)}" for kind, name in DOCUMENTS.items())}
        ELSE CASE k.name {" ".join(f"WHEN '{name}' THEN {differ(name)}" for _, name in FACTS)} END END) AS c
WHERE COALESCE(c.before, '') <> COALESCE(c.after, '')
      AND (c.defaults = 0 OR (c.before IS NOT NULL AND c.after IS NOT NULL))
""",
    # Of the documents with the same hash, which differ in what changes no result, the one that was new last.
    "settings": """
SELECT h.pipeline, h.config_hash, v.name AS setting, v.value
FROM (SELECT r.pipeline, r.config_hash, MAX(r.config_id) AS config_id FROM run AS r
      GROUP BY r.pipeline, r.config_hash) AS h
JOIN document_value AS v ON v.document_id = h.config_id
""",
    "gate_checks": f"""
SELECT r.pipeline, r.night, g.run_id, g.check_name, g.slice_name, g.slice_value, g.metric,
       g.candidate_value, g.champion_value, g.threshold, g.ci_low, g.ci_high, g.rows_used, g.outcome, g.reason,
       g.attempt, g.position, {SCORED_IN} AS precision
FROM gate_check AS g
JOIN run AS r ON r.run_id = g.run_id
{OWN_ATTEMPT.format(row="g")}
WHERE {of_last_attempt("gate_check", "g")}
""",
    "slice_metrics": f"""
SELECT r.pipeline, r.night, r.run_id, a.attempt, CAST(s.epoch AS INTEGER) AS epoch,
       CAST({SPLIT.format(row="s")} AS TEXT) AS split, n.slice_name, n.slice_value, s.support,
       s.accuracy, s.f1, s.precision, s.recall, {COMPUTED_IN.format(row="s")}
FROM slice_metric AS s
JOIN slice AS n ON n.slice_id = s.slice_id{OF_ATTEMPT.format(row="s")}
""",
    # Of validation the attempts of `epoch_results`; the test rows are scored once an attempt, by its best epoch.
    "slice_results": f"""
SELECT r.pipeline, r.night, e.run_id, e.attempt, e.epoch, CAST('validation' AS TEXT) AS split, n.slice_name,
       n.slice_value, s.support, s.accuracy, s.f1, s.precision, s.recall, {IS_BEST}, r.test_version,
       a.precision AS compute_precision
FROM epoch AS e
JOIN run AS r ON r.run_id = e.run_id
JOIN attempt AS a ON a.run_id = e.run_id AND a.attempt = e.attempt
JOIN slice_metric AS s ON s.attempt_id = a.attempt_id AND s.epoch = e.epoch AND NOT s.is_test
JOIN slice AS n ON n.slice_id = s.slice_id
WHERE {COUNTS.strip()}
UNION ALL
SELECT r.pipeline, r.night, r.run_id, a.attempt, CAST(s.epoch AS INTEGER) AS epoch, CAST('test' AS TEXT) AS split,
       n.slice_name, n.slice_value, s.support, s.accuracy, s.f1, s.precision, s.recall, {IS_BEST}, r.test_version,
       {SCORED_IN} AS compute_precision
FROM run AS r
JOIN attempt AS a ON a.run_id = r.run_id
JOIN slice_metric AS s ON s.attempt_id = a.attempt_id AND s.is_test
JOIN slice AS n ON n.slice_id = s.slice_id
WHERE {is_last("slice_metric")}
""",
    "epoch_metrics": f"""
SELECT r.pipeline, r.night, r.run_id, a.attempt, m.epoch, CAST({SPLIT.format(row="m")} AS TEXT) AS split, m.metric,
       m.value, m.reason, {COMPUTED_IN.format(row="m")}
FROM epoch_metric AS m{OF_ATTEMPT.format(row="m")}
""",
    "confusion": f"""
SELECT e.run_id, e.epoch, CAST({SPLIT.format(row="e")} AS TEXT) AS split, CAST({label("t.key")} AS TEXT) AS true_label,
       CAST({label("p.key")} AS TEXT) AS predicted_label, CAST(CAST(p.value AS TEXT) AS INTEGER) AS count, e.pipeline,
       e.night, e.attempt, e.compute_precision
FROM (SELECT r.pipeline, r.night, r.run_id, a.attempt, m.attempt_id, m.epoch, m.is_test, m.counts,
             {COMPUTED_IN.format(row="m")}
      FROM confusion_matrix AS m{OF_ATTEMPT.format(row="m")}) AS e
CROSS JOIN json_each(e.counts) AS t
CROSS JOIN json_each(t.value) AS p
WHERE CASE WHEN e.is_test THEN {is_last("confusion_matrix", row="e")} ELSE {COUNTS.strip()} END
""",
    "champion_timeline": """
SELECT p.pipeline, p.version AS model_version, v.run_id, p.valid_from, p.valid_to, p.promoted_by, p.reason,
       p.kind, v.path
FROM promotion AS p
JOIN model_version AS v ON v.pipeline = p.pipeline AND v.version = p.version
""",
    "promotions": """
SELECT p.pipeline, p.promotion_id, p.kind, p.version AS model_version, p.replaced_version,
       p.run_id AS promoting_run_id, p.promoted_by, p.reason, p.valid_from AS promoted_at, p.valid_to AS ended_at
FROM promotion AS p
""",
    "model_versions": """
SELECT v.pipeline, v.version, v.run_id, r.night,
       CASE WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version
                         AND p.valid_to IS NULL) THEN 'champion'
            WHEN v.quarantined_at IS NOT NULL THEN 'quarantined'
            WHEN EXISTS (SELECT 1 FROM promotion AS p WHERE p.pipeline = v.pipeline AND p.version = v.version)
            THEN 'former'
            ELSE 'held' END AS status,
       v.path, r.test_f1, r.f1_ci_low, r.f1_ci_high, r.test_rows, r.test_version, r.best_epoch, r.snapshot_id,
       r.data_until, r.base_model, r.config_hash, r.code_version, v.created_at, v.attempt,
       v.started_from, v.base_model_revision, v.size_bytes, v.quarantined_at, v.quarantined_by, v.quarantine_reason,
       v.files_removed_at, r.rows_trained, r.average, COALESCE(a.scoring_precision, 'fp32') AS scoring_precision,
       r.training, r.training_reason, r.dry_run
FROM model_version AS v
JOIN run AS r ON r.run_id = v.run_id
JOIN attempt AS a ON a.run_id = v.run_id AND a.attempt = v.attempt
""",
    "approvals": """
SELECT r.pipeline, r.night, a.run_id, v.version AS model_version, a.requested_at, a.deadline, a.expected_version,
       a.decision, a.decided_by, a.reason, a.decided_at
FROM approval AS a
JOIN run AS r ON r.run_id = a.run_id
LEFT JOIN model_version AS v ON v.run_id = a.run_id
""",
    "anchor_timeline": """
SELECT a.pipeline, a.version AS model_version, a.valid_from, a.valid_to, a.run_id AS moving_run_id, a.moved_by, a.reason
FROM anchor AS a
""",
    "freezes": """
SELECT f.pipeline, f.frozen_at, f.frozen_by, f.reason, f.ended_at, f.ended_by, f.end_reason
FROM pipeline_freeze AS f
""",
    "gate_sides": f"""
SELECT r.pipeline, r.night, g.run_id, g.side, g.version AS model_version, g.data_until, g.flaw, g.rows_trained_on,
       g.calibration_error, g.nonfinite_rows, g.latency_ms, g.size_bytes, g.logit_difference, g.serving_flaw, g.attempt,
       CAST(g.facts AS TEXT) AS facts, {SCORED_IN} AS precision
FROM gate_side AS g
JOIN run AS r ON r.run_id = g.run_id
{OWN_ATTEMPT.format(row="g")}
WHERE {of_last_attempt("gate_side", "g")}
""",
    "joint_outcomes": f"""
SELECT r.pipeline, r.night, r.run_id, j.scope, n.slice_name, n.slice_value, j.reference,
       CAST({label("t.key")} AS TEXT) AS true_label, CAST(COALESCE({label("o.key")}, '') AS TEXT) AS reference_label,
       CAST({label("c.key")} AS TEXT) AS candidate_label, CAST(CAST(c.value AS TEXT) AS INTEGER) AS count, a.attempt,
       {SCORED_IN} AS precision
FROM joint_outcome AS j{OF_ATTEMPT.format(row="j")}
CROSS JOIN json_each(j.counts) AS s
CROSS JOIN json_each(s.value) AS t
CROSS JOIN json_each(t.value) AS o
CROSS JOIN json_each(o.value) AS c
JOIN slice AS n ON n.slice_id = CAST(s.key AS INTEGER)
WHERE {is_last("joint_outcome", "")}
""",
    "champion_evaluations": """
SELECT e.pipeline, e.model_version, e.evaluated_at, e.rows_from, e.rows_to, e.rows, e.f1, e.f1_ci_low, e.f1_ci_high,
       e.accuracy, NULLIF(e.alarms, '') AS alarm, e.role, e.reason, e.snapshot_id, e.run_id, e.min_f1, e.promotion_f1,
       e.fall, e.announced_at, CASE WHEN e.f1 IS NOT NULL THEN COALESCE(e.precision, 'fp32') END AS precision
FROM champion_evaluation AS e
""",
    "champion_evaluation_slices": """
SELECT e.pipeline, e.model_version, e.evaluated_at, e.role, e.snapshot_id, n.slice_name, n.slice_value, s.support,
       s.accuracy, s.f1, s.precision, s.recall, COALESCE(e.precision, 'fp32') AS compute_precision
FROM champion_evaluation_slice AS s
JOIN slice AS n ON n.slice_id = s.slice_id
JOIN champion_evaluation AS e ON e.evaluation_id = s.evaluation_id
""",
    "seed_studies": """
SELECT s.pipeline, s.study_id, s.snapshot_id, s.config_hash, s.code_version, s.average, s.num_seeds, s.f1_mean,
       s.f1_spread, s.started_at, s.finished_at
FROM seed_study AS s
""",
    "seed_runs": """
SELECT s.pipeline, n.study_id, n.seed, n.best_epoch, n.validation_f1, n.test_f1, n.test_accuracy, n.error,
       n.duration_seconds, n.recorded_at,
       CASE WHEN n.test_f1 IS NOT NULL THEN COALESCE(n.precision, 'fp32') END AS precision
FROM seed_run AS n
JOIN seed_study AS s ON s.study_id = n.study_id
""",
    "snapshots": """
SELECT s.pipeline, s.snapshot_id, s.path, s.test_version, s.rows_total, s.rows_train, s.rows_validation, s.rows_test,
       s.rows_duplicate, s.rows_quarantined, s.data_until, s.first_time, s.last_time, s.recorded_at,
       (SELECT CAST(COUNT(r.run_id) AS INTEGER) FROM run AS r
        WHERE r.pipeline = s.pipeline AND r.snapshot_id = s.snapshot_id) AS runs, s.files_removed_at, s.rows_redacted,
       COALESCE((SELECT CAST(CAST(m.value AS TEXT) AS BIGINT) FROM json_each(s.manifest) AS m WHERE m.key = 'bytes'),
                (SELECT CAST(SUM(CAST(CAST(f.value AS TEXT) AS BIGINT)) AS BIGINT)
                 FROM json_each(s.manifest) AS m CROSS JOIN json_each(m.value) AS of CROSS JOIN json_each(of.value) AS f
                 WHERE m.key = 'files' AND f.key = 'bytes')) AS bytes,
       (SELECT CAST(CAST(m.value AS TEXT) AS INTEGER) FROM json_each(s.manifest) AS m WHERE m.key = 'format') AS format
FROM snapshot AS s
""",
    "snapshot_documents": """
SELECT s.pipeline, s.snapshot_id, CAST(s.manifest AS TEXT) AS manifest
FROM snapshot AS s
""",
    "test_sets": """
SELECT t.pipeline, t.test_set_id, t.kind, t.num_rows, CAST(t.label_names AS TEXT) AS label_names, t.fingerprints,
       t.labels, t.seen_at, t.groups, t.slices, t.recorded_at, t.base_id, t.places
FROM test_set AS t
""",
    "test_predictions": f"""
SELECT t.pipeline, r.night, t.run_id, t.attempt, t.side, t.kind, t.test_set_id, t.model_run_id, t.labels,
       {SCORED_IN} AS precision
FROM test_prediction AS t
JOIN run AS r ON r.run_id = t.run_id
{OWN_ATTEMPT.format(row="t")}
""",
    "refreshes": """
SELECT f.pipeline, f.night, f.refresh_id, f.status, f.reason, f.error_type, f.next_step, f.data_until, f.snapshot_id,
       f.rows_new, f.rows_total, f.label_revision, f.started_at, f.finished_at, f.prefect_flow_run_id
FROM refresh AS f
""",
    "refresh_counts": f"""
SELECT r.pipeline, r.night, c.run_id, c.attempt, c.position, c.part, c.rows_seen, c.rows_taken, c.rows_merged,
       c.rows_replaced, c.rows_deleted, c.rows_quarantined, c.rows_conflicting, c.rows_future, c.rows_outside,
       c.rows_vanished, c.bytes, c.modified, c.unchanged
FROM refresh_count AS c
JOIN {RUNS_AND_REFRESHES} AS r ON r.run_id = c.run_id
WHERE {of_last_attempt("refresh_count", "c")}
""",
    "data_checks": f"""
SELECT r.pipeline, r.night, c.run_id, c.attempt, c.position, c.check_name, c.value, c.threshold, c.outcome, c.reason,
       c.allowed_by, c.allowed_reason
FROM data_check AS c
JOIN {RUNS_AND_REFRESHES} AS r ON r.run_id = c.run_id
WHERE {of_last_attempt("data_check", "c")}
""",
    "data_drift": f"""
SELECT r.pipeline, r.night, d.run_id, d.attempt, d.reference, d.statistic, d.slice_name, d.distance, d.value,
       d.threshold, d.tonight_value, d.reference_value, d.rows_used, d.reference_rows, d.outcome, d.reason
FROM drift_statistic AS d
JOIN {RUNS_AND_REFRESHES} AS r ON r.run_id = d.run_id
""",
    "label_votes": f"""
SELECT v.pipeline, r.night, v.run_id, v.fingerprint, v.label, v.votes, v.chosen
FROM label_vote AS v
JOIN {RUNS_AND_REFRESHES} AS r ON r.run_id = v.run_id
""",
    "quarantined_rows": """
SELECT q.pipeline, q.last_night AS night, q.run_id, q.origin, q.row_id, q.reason, q.detail, q.excerpt, q.position,
       q.part, q.first_night, q.last_night, q.resolved_night
FROM quarantine AS q
""",
    # Documents as text: what a run was asked to do, its labels, and how the version that it made was trained.
    "run_documents": """
SELECT r.pipeline, r.night, r.run_id, r.started_at, r.snapshot_id, r.config_hash, CAST(o.content AS TEXT) AS config,
       CAST(r.label_names AS TEXT) AS label_names,
       (SELECT CAST(c.value AS TEXT) FROM json_each(s.manifest) AS m CROSS JOIN json_each(m.value) AS c
        WHERE m.key = 'rules' AND c.key = 'classes') AS classes,
       CAST(w.content AS TEXT) AS environment
FROM run AS r
JOIN document AS o ON o.document_id = r.config_id
LEFT JOIN snapshot AS s ON s.pipeline = r.pipeline AND s.snapshot_id = r.snapshot_id
LEFT JOIN model_version AS v ON v.run_id = r.run_id
LEFT JOIN document AS w ON w.document_id = v.environment_id
""",
    # What a reader has to know before it reads.
    "reading": """
SELECT s.key, s.value FROM setting AS s WHERE s.key = 'home_id'
UNION ALL
SELECT CAST('revision' AS TEXT) AS key, CAST(v.version_num AS TEXT) AS value FROM alembic_version AS v
""",
    "forgotten_rows": """
SELECT f.pipeline, f.id_hash, f.forgotten_by, f.begun_at, f.finished_at, f.snapshots, f.rows_redacted, f.golden_rows,
       f.quarantined_rows, f.versions
FROM forgotten AS f
""",
}


def upgrade() -> None:
    pass


def make_views() -> None:
    """Make all views, in place of those that are there."""
    for name, query in VIEWS.items():
        # On PostgreSQL a view that is there is replaced: dropped, it would lose who may read it. SQLite has no grants.
        if context.get_context().dialect.name == "postgresql":
            context.execute(f"CREATE OR REPLACE VIEW {name} AS {query.strip()}")
        else:
            context.execute(f"DROP VIEW IF EXISTS {name}")
            context.execute(f"CREATE VIEW {name} AS {query.strip()}")
