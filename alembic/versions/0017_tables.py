"""The tables.

A migration is frozen: it names its own types and never looks at the models, which move on.
"""

from __future__ import annotations

from alembic import op

revision = "0017"
down_revision = None
branch_labels = None
depends_on = None

TYPES = {
    # Text that sorts as time on SQLite, which has no times.
    "sqlite": {"time": "VARCHAR(27)", "bytes": "BLOB", "double": "DOUBLE"},
    "postgresql": {"time": "TIMESTAMP WITH TIME ZONE", "bytes": "BYTEA", "double": "DOUBLE PRECISION"},
}
# A number that the database gives, and tables of short rows, whose key SQLite would store twice otherwise.
TYPES["sqlite"] |= {"number": "INTEGER", "short": "WITHOUT ROWID"}
TYPES["postgresql"] |= {"number": "SERIAL", "short": ""}
KEPT = "ON DELETE RESTRICT ON UPDATE RESTRICT"

TABLES = """
CREATE TABLE data_check (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, check_name TEXT NOT NULL, position INTEGER NOT NULL,
    value {double}, threshold {double}, outcome TEXT NOT NULL, reason TEXT NOT NULL, allowed_by TEXT,
    allowed_reason TEXT,
    CONSTRAINT pk_data_check PRIMARY KEY (run_id, attempt, check_name),
    CONSTRAINT ck_data_check_outcome CHECK (outcome IN ('passed', 'failed', 'allowed', 'not_run'))
) {short};
CREATE TABLE document (
    document_id {number} NOT NULL, digest TEXT NOT NULL, content JSON NOT NULL,
    CONSTRAINT pk_document PRIMARY KEY (document_id),
    CONSTRAINT uq_document_digest UNIQUE (digest)
);
CREATE TABLE document_value (
    document_id INTEGER NOT NULL, name TEXT NOT NULL, value TEXT NOT NULL,
    CONSTRAINT pk_document_value PRIMARY KEY (document_id, name),
    CONSTRAINT fk_document_value_document_id FOREIGN KEY (document_id) REFERENCES document (document_id) {kept}
) {short};
CREATE TABLE drift_statistic (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, reference TEXT NOT NULL, statistic TEXT NOT NULL,
    slice_name TEXT NOT NULL, distance TEXT NOT NULL, value {double}, threshold {double},
    tonight_value {double}, reference_value {double}, rows_used INTEGER NOT NULL,
    reference_rows INTEGER NOT NULL, outcome TEXT NOT NULL, reason TEXT NOT NULL,
    CONSTRAINT pk_drift_statistic PRIMARY KEY (run_id, attempt, reference, statistic, slice_name),
    CONSTRAINT ck_drift_statistic_outcome CHECK (outcome IN ('passed', 'warning')),
    CONSTRAINT ck_drift_statistic_reference CHECK (reference IN ('champion', 'last_week'))
) {short};
CREATE TABLE forgotten (
    pipeline TEXT NOT NULL, id_hash TEXT NOT NULL, forgotten_by TEXT NOT NULL, begun_at {time} NOT NULL,
    finished_at {time}, snapshots INTEGER NOT NULL, rows_redacted INTEGER NOT NULL, golden_rows INTEGER NOT NULL,
    quarantined_rows INTEGER NOT NULL, versions TEXT NOT NULL,
    CONSTRAINT pk_forgotten PRIMARY KEY (pipeline, id_hash)
);
CREATE TABLE label_vote (
    pipeline TEXT NOT NULL, fingerprint TEXT NOT NULL, label TEXT NOT NULL, votes INTEGER NOT NULL,
    chosen BOOLEAN NOT NULL, run_id TEXT NOT NULL,
    CONSTRAINT pk_label_vote PRIMARY KEY (pipeline, fingerprint, label)
) {short};
CREATE TABLE pipeline_freeze (
    freeze_id TEXT NOT NULL, pipeline TEXT NOT NULL, frozen_at {time} NOT NULL, frozen_by TEXT NOT NULL,
    reason TEXT NOT NULL, ended_at {time}, ended_by TEXT, end_reason TEXT,
    CONSTRAINT pk_pipeline_freeze PRIMARY KEY (freeze_id)
);
CREATE UNIQUE INDEX uq_pipeline_freeze_open ON pipeline_freeze (pipeline) WHERE ended_at IS NULL;
CREATE TABLE quarantine (
    pipeline TEXT NOT NULL, row_key TEXT NOT NULL, reason TEXT NOT NULL, run_id TEXT NOT NULL,
    attempt INTEGER NOT NULL, position INTEGER NOT NULL, origin TEXT NOT NULL, part TEXT NOT NULL, row_id TEXT,
    detail TEXT NOT NULL, excerpt TEXT NOT NULL, first_night DATE NOT NULL, last_night DATE NOT NULL,
    resolved_night DATE,
    CONSTRAINT pk_quarantine PRIMARY KEY (pipeline, row_key, reason)
);
CREATE TABLE refresh_count (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, position INTEGER NOT NULL, part TEXT NOT NULL,
    rows_seen INTEGER NOT NULL, rows_taken INTEGER NOT NULL, rows_merged INTEGER NOT NULL,
    rows_replaced INTEGER NOT NULL, rows_deleted INTEGER NOT NULL, rows_quarantined INTEGER NOT NULL,
    rows_conflicting INTEGER NOT NULL, rows_future INTEGER NOT NULL, rows_outside INTEGER NOT NULL,
    rows_vanished INTEGER NOT NULL, bytes BIGINT, modified {time}, unchanged BOOLEAN NOT NULL,
    CONSTRAINT pk_refresh_count PRIMARY KEY (run_id, attempt, position),
    CONSTRAINT ck_refresh_count_balance CHECK (rows_seen = rows_taken + rows_merged + rows_replaced + rows_deleted
        + rows_quarantined + rows_conflicting + rows_future + rows_outside)
) {short};
CREATE TABLE setting (
    key TEXT NOT NULL, value TEXT NOT NULL,
    CONSTRAINT pk_setting PRIMARY KEY (key)
);
CREATE TABLE slice (
    slice_id {number} NOT NULL, slice_name TEXT NOT NULL, slice_value TEXT NOT NULL,
    CONSTRAINT pk_slice PRIMARY KEY (slice_id),
    CONSTRAINT uq_slice_slice_name_slice_value UNIQUE (slice_name, slice_value)
);
CREATE TABLE snapshot (
    pipeline TEXT NOT NULL, snapshot_id TEXT NOT NULL, path TEXT NOT NULL, test_version TEXT NOT NULL,
    rows_total INTEGER NOT NULL, rows_train INTEGER NOT NULL, rows_validation INTEGER NOT NULL,
    rows_test INTEGER NOT NULL, rows_duplicate INTEGER NOT NULL, rows_quarantined INTEGER NOT NULL, data_until {time},
    first_time {time}, last_time {time}, manifest JSON NOT NULL, recorded_at {time} NOT NULL, files_removed_at {time},
    rows_redacted INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT pk_snapshot PRIMARY KEY (pipeline, snapshot_id)
);
CREATE TABLE test_set (
    pipeline TEXT NOT NULL, test_set_id TEXT NOT NULL, kind TEXT NOT NULL, num_rows INTEGER NOT NULL,
    label_names JSON NOT NULL, base_id TEXT, places {bytes}, fingerprints {bytes} NOT NULL, labels {bytes} NOT NULL,
    seen_at {bytes} NOT NULL, groups {bytes}, slices {bytes} NOT NULL, recorded_at {time} NOT NULL,
    CONSTRAINT pk_test_set PRIMARY KEY (pipeline, test_set_id),
    CONSTRAINT ck_test_set_kind CHECK (kind IN ('test', 'golden')),
    CONSTRAINT fk_test_set_pipeline_base_id FOREIGN KEY (pipeline, base_id) REFERENCES test_set (pipeline,
        test_set_id) {kept}
);
CREATE TABLE refresh (
    refresh_id TEXT NOT NULL, pipeline TEXT NOT NULL, night DATE NOT NULL, status TEXT NOT NULL, reason TEXT,
    error_type TEXT, next_step TEXT, data_until {time} NOT NULL, snapshot_id TEXT, rows_new INTEGER,
    rows_total INTEGER, label_revision INTEGER, started_at {time} NOT NULL, finished_at {time} NOT NULL,
    prefect_flow_run_id TEXT,
    CONSTRAINT pk_refresh PRIMARY KEY (refresh_id),
    CONSTRAINT ck_refresh_status CHECK (status IN ('completed', 'failed')),
    CONSTRAINT fk_refresh_pipeline_snapshot_id FOREIGN KEY (pipeline, snapshot_id) REFERENCES snapshot (pipeline,
        snapshot_id) {kept}
);
CREATE INDEX ix_refresh_pipeline_started_at ON refresh (pipeline, started_at);
CREATE TABLE run (
    run_id TEXT NOT NULL, pipeline TEXT NOT NULL, night DATE NOT NULL, status TEXT NOT NULL, attempt INTEGER NOT NULL,
    trigger TEXT NOT NULL, dry_run BOOLEAN NOT NULL, reason TEXT, error_type TEXT, next_step TEXT, verdict TEXT,
    scheduled_for {time}, data_until {time} NOT NULL, snapshot_id TEXT, rows_new INTEGER, rows_total INTEGER,
    rows_trained INTEGER, label_revision INTEGER, best_epoch INTEGER, test_version TEXT, test_rows INTEGER,
    test_accuracy {double}, test_f1 {double}, test_precision {double},
    test_recall {double}, f1_ci_low {double}, f1_ci_high {double}, champion_version INTEGER,
    champion_f1 {double}, f1_delta {double}, window_start {time}, test_rows_all INTEGER,
    test_f1_all {double}, rows_left_out INTEGER, detectable_gain {double},
    champion_fresh_f1 {double}, champion_fresh_rows INTEGER, fresh_ci_low {double},
    fresh_ci_high {double}, anchor_version INTEGER, anchor_f1 {double}, labels_corrected INTEGER,
    metric_key TEXT, nonfinite TEXT NOT NULL, average TEXT NOT NULL, min_f1 {double},
    label_names JSON NOT NULL, base_model TEXT NOT NULL, config_id INTEGER NOT NULL, config_hash TEXT NOT NULL,
    code_version TEXT NOT NULL, inputs JSON, reasons TEXT, started_at {time} NOT NULL, finished_at {time},
    prefect_flow_run_id TEXT, announced_at {time}, closed_at {time}, duration_seconds {double},
    CONSTRAINT pk_run PRIMARY KEY (run_id),
    CONSTRAINT ck_run_average CHECK (average IN ('weighted', 'macro')),
    CONSTRAINT ck_run_status CHECK (status IN ('running', 'waiting', 'promoted', 'held', 'skipped', 'superseded',
        'missed', 'cancelled', 'failed')),
    CONSTRAINT ck_run_trigger CHECK (trigger IN ('schedule', 'manual', 'backfill', 'retry')),
    CONSTRAINT ck_run_verdict CHECK (verdict IN ('promote', 'hold', 'underpowered')),
    CONSTRAINT fk_run_config_id FOREIGN KEY (config_id) REFERENCES document (document_id) {kept},
    CONSTRAINT fk_run_pipeline_snapshot_id FOREIGN KEY (pipeline, snapshot_id) REFERENCES snapshot (pipeline,
        snapshot_id) {kept}
);
CREATE INDEX ix_run_pipeline_night ON run (pipeline, night);
CREATE INDEX ix_run_pipeline_snapshot_id ON run (pipeline, snapshot_id);
CREATE INDEX ix_run_status ON run (status);
CREATE TABLE seed_study (
    study_id TEXT NOT NULL, pipeline TEXT NOT NULL, snapshot_id TEXT NOT NULL, config_hash TEXT NOT NULL,
    code_version TEXT NOT NULL, average TEXT NOT NULL, num_seeds INTEGER NOT NULL, f1_mean {double},
    f1_spread {double}, started_at {time} NOT NULL, finished_at {time},
    CONSTRAINT pk_seed_study PRIMARY KEY (study_id),
    CONSTRAINT fk_seed_study_pipeline_snapshot_id FOREIGN KEY (pipeline, snapshot_id) REFERENCES snapshot
        (pipeline, snapshot_id) {kept}
);
CREATE TABLE approval (
    run_id TEXT NOT NULL, requested_at {time} NOT NULL, deadline {time} NOT NULL, expected_version INTEGER,
    decision TEXT, decided_by TEXT, reason TEXT, decided_at {time},
    CONSTRAINT pk_approval PRIMARY KEY (run_id),
    CONSTRAINT ck_approval_decision CHECK (decision IN ('approved', 'rejected', 'timed_out', 'superseded')),
    CONSTRAINT fk_approval_run_id FOREIGN KEY (run_id) REFERENCES run (run_id) {kept}
);
CREATE TABLE attempt (
    attempt_id {number} NOT NULL, run_id TEXT NOT NULL, attempt INTEGER NOT NULL, status TEXT NOT NULL,
    trigger TEXT NOT NULL, error_type TEXT, reason TEXT, host TEXT NOT NULL, pid INTEGER NOT NULL, owner_started {time},
    owner_ticks BIGINT, process_space TEXT, heartbeat_at {time}, device TEXT, precision TEXT, precision_reason TEXT,
    threads INTEGER, resumed_from_epoch INTEGER, engine TEXT, engine_reason TEXT, micro_batches INTEGER,
    restarts INTEGER NOT NULL DEFAULT 0, slot TEXT, slot_wait_seconds {double}, code_version TEXT NOT NULL,
    prefect_flow_run_id TEXT, started_at {time} NOT NULL, finished_at {time}, duration_seconds {double},
    busy_seconds {double},
    CONSTRAINT pk_attempt PRIMARY KEY (attempt_id),
    CONSTRAINT uq_attempt_run_id_attempt UNIQUE (run_id, attempt),
    CONSTRAINT ck_attempt_status CHECK (status IN ('running', 'waiting', 'promoted', 'held', 'skipped',
        'superseded', 'missed', 'cancelled', 'failed')),
    CONSTRAINT fk_attempt_run_id FOREIGN KEY (run_id) REFERENCES run (run_id) {kept}
);
CREATE TABLE seed_run (
    study_id TEXT NOT NULL, seed BIGINT NOT NULL, best_epoch INTEGER, validation_f1 {double},
    test_f1 {double}, test_accuracy {double}, error TEXT, duration_seconds {double},
    recorded_at {time} NOT NULL,
    CONSTRAINT pk_seed_run PRIMARY KEY (study_id, seed),
    CONSTRAINT fk_seed_run_study_id FOREIGN KEY (study_id) REFERENCES seed_study (study_id) {kept}
);
CREATE TABLE confusion_matrix (
    attempt_id INTEGER NOT NULL, epoch INTEGER NOT NULL, is_test BOOLEAN NOT NULL, counts JSON NOT NULL,
    CONSTRAINT pk_confusion_matrix PRIMARY KEY (attempt_id, epoch, is_test),
    CONSTRAINT fk_confusion_matrix_attempt_id FOREIGN KEY (attempt_id) REFERENCES attempt (attempt_id) {kept}
);
CREATE TABLE epoch (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, epoch INTEGER NOT NULL, step INTEGER NOT NULL,
    training_loss {double}, validation_loss {double}, support INTEGER NOT NULL,
    accuracy {double}, f1_weighted {double}, f1_macro {double},
    precision_weighted {double}, precision_macro {double}, recall_weighted {double},
    recall_macro {double}, learning_rate {double}, examples_per_second {double},
    tokens_per_second {double}, nonfinite TEXT NOT NULL, recorded_at {time} NOT NULL,
    CONSTRAINT pk_epoch PRIMARY KEY (run_id, attempt, epoch),
    CONSTRAINT fk_epoch_run_id_attempt FOREIGN KEY (run_id, attempt) REFERENCES attempt (run_id, attempt) {kept}
) {short};
CREATE TABLE epoch_metric (
    attempt_id INTEGER NOT NULL, epoch INTEGER NOT NULL, is_test BOOLEAN NOT NULL, metric TEXT NOT NULL,
    value {double}, reason TEXT NOT NULL,
    CONSTRAINT pk_epoch_metric PRIMARY KEY (attempt_id, epoch, is_test, metric),
    CONSTRAINT fk_epoch_metric_attempt_id FOREIGN KEY (attempt_id) REFERENCES attempt (attempt_id) {kept}
) {short};
CREATE TABLE gate_check (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, check_name TEXT NOT NULL, slice_name TEXT NOT NULL,
    slice_value TEXT NOT NULL, position INTEGER NOT NULL, metric TEXT NOT NULL, candidate_value {double},
    champion_value {double}, threshold {double}, ci_low {double}, ci_high {double},
    rows_used INTEGER, outcome TEXT NOT NULL, reason TEXT NOT NULL,
    CONSTRAINT pk_gate_check PRIMARY KEY (run_id, attempt, check_name, slice_name, slice_value),
    CONSTRAINT ck_gate_check_outcome CHECK (outcome IN ('passed', 'failed', 'underpowered', 'warning', 'not_run')),
    CONSTRAINT fk_gate_check_run_id_attempt FOREIGN KEY (run_id, attempt) REFERENCES attempt (run_id, attempt) {kept}
) {short};
CREATE TABLE gate_side (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, side TEXT NOT NULL, version INTEGER, data_until {time},
    flaw TEXT NOT NULL, rows_trained_on INTEGER, calibration_error {double}, nonfinite_rows INTEGER NOT NULL,
    latency_ms {double}, size_bytes BIGINT, logit_difference {double}, serving_flaw TEXT NOT NULL,
    facts JSON NOT NULL,
    CONSTRAINT pk_gate_side PRIMARY KEY (run_id, attempt, side),
    CONSTRAINT ck_gate_side_side CHECK (side IN ('candidate', 'champion', 'anchor')),
    CONSTRAINT fk_gate_side_run_id_attempt FOREIGN KEY (run_id, attempt) REFERENCES attempt (run_id, attempt) {kept}
);
CREATE TABLE joint_outcome (
    attempt_id INTEGER NOT NULL, scope TEXT NOT NULL, reference TEXT NOT NULL, counts JSON NOT NULL,
    CONSTRAINT pk_joint_outcome PRIMARY KEY (attempt_id, scope, reference),
    CONSTRAINT ck_joint_outcome_scope CHECK (scope IN ('window', 'all', 'golden', 'slice')),
    CONSTRAINT fk_joint_outcome_attempt_id FOREIGN KEY (attempt_id) REFERENCES attempt (attempt_id) {kept}
);
CREATE TABLE model_version (
    pipeline TEXT NOT NULL, version INTEGER NOT NULL, run_id TEXT NOT NULL, attempt INTEGER NOT NULL,
    path TEXT NOT NULL, created_at {time} NOT NULL, started_from INTEGER, base_model_revision TEXT,
    environment_id INTEGER, size_bytes BIGINT, quarantined_at {time}, quarantined_by TEXT, quarantine_reason TEXT,
    files_removed_at {time},
    CONSTRAINT pk_model_version PRIMARY KEY (pipeline, version),
    CONSTRAINT uq_model_version_run_id UNIQUE (run_id),
    CONSTRAINT fk_model_version_environment_id FOREIGN KEY (environment_id) REFERENCES document (document_id) {kept},
    CONSTRAINT fk_model_version_run_id_attempt FOREIGN KEY (run_id, attempt) REFERENCES attempt (run_id, attempt)
        {kept}
);
CREATE TABLE slice_metric (
    attempt_id INTEGER NOT NULL, slice_id INTEGER NOT NULL, epoch SMALLINT NOT NULL, is_test BOOLEAN NOT NULL,
    support INTEGER NOT NULL, accuracy {double}, f1 {double}, precision {double},
    recall {double},
    CONSTRAINT pk_slice_metric PRIMARY KEY (attempt_id, slice_id, epoch, is_test),
    CONSTRAINT fk_slice_metric_attempt_id FOREIGN KEY (attempt_id) REFERENCES attempt (attempt_id) {kept},
    CONSTRAINT fk_slice_metric_slice_id FOREIGN KEY (slice_id) REFERENCES slice (slice_id) {kept}
) {short};
CREATE TABLE test_prediction (
    run_id TEXT NOT NULL, attempt INTEGER NOT NULL, side TEXT NOT NULL, kind TEXT NOT NULL, pipeline TEXT NOT NULL,
    test_set_id TEXT NOT NULL, model_run_id TEXT NOT NULL, labels {bytes} NOT NULL,
    CONSTRAINT pk_test_prediction PRIMARY KEY (run_id, attempt, side, kind),
    CONSTRAINT ck_test_prediction_kind CHECK (kind IN ('test', 'golden')),
    CONSTRAINT ck_test_prediction_side CHECK (side IN ('candidate', 'champion', 'anchor')),
    CONSTRAINT fk_test_prediction_model_run_id FOREIGN KEY (model_run_id) REFERENCES run (run_id) {kept},
    CONSTRAINT fk_test_prediction_pipeline_test_set_id FOREIGN KEY (pipeline, test_set_id) REFERENCES test_set
        (pipeline, test_set_id) {kept},
    CONSTRAINT fk_test_prediction_run_id_attempt FOREIGN KEY (run_id, attempt) REFERENCES attempt (run_id,
        attempt) {kept}
);
CREATE INDEX ix_test_prediction_model_run_id ON test_prediction (model_run_id);
CREATE TABLE anchor (
    anchor_id TEXT NOT NULL, pipeline TEXT NOT NULL, version INTEGER NOT NULL, run_id TEXT, moved_by TEXT NOT NULL,
    reason TEXT NOT NULL, valid_from {time} NOT NULL, valid_to {time},
    CONSTRAINT pk_anchor PRIMARY KEY (anchor_id),
    CONSTRAINT ck_anchor_order CHECK (valid_to > valid_from),
    CONSTRAINT fk_anchor_pipeline_version FOREIGN KEY (pipeline, version) REFERENCES model_version (pipeline,
        version) {kept},
    CONSTRAINT fk_anchor_run_id FOREIGN KEY (run_id) REFERENCES run (run_id) {kept}
);
CREATE UNIQUE INDEX uq_anchor_open ON anchor (pipeline) WHERE valid_to IS NULL;
CREATE TABLE champion_evaluation (
    evaluation_id {number} NOT NULL, pipeline TEXT NOT NULL, snapshot_id TEXT NOT NULL, model_version INTEGER NOT NULL,
    role TEXT NOT NULL, run_id TEXT, evaluated_at {time} NOT NULL, rows_from {time}, rows_to {time},
    rows INTEGER NOT NULL, f1 {double}, f1_ci_low {double}, f1_ci_high {double}, accuracy {double}, min_f1 {double},
    promotion_f1 {double}, fall {double}, alarms TEXT NOT NULL, reason TEXT NOT NULL, policy JSON NOT NULL,
    announced_at {time},
    CONSTRAINT pk_champion_evaluation PRIMARY KEY (evaluation_id),
    CONSTRAINT uq_champion_evaluation_pipeline_snapshot_id_model_version_role UNIQUE (pipeline, snapshot_id,
        model_version, role),
    CONSTRAINT ck_champion_evaluation_role CHECK (role IN ('champion', 'anchor')),
    CONSTRAINT fk_champion_evaluation_pipeline_model_version FOREIGN KEY (pipeline, model_version) REFERENCES
        model_version (pipeline, version) {kept},
    CONSTRAINT fk_champion_evaluation_run_id FOREIGN KEY (run_id) REFERENCES run (run_id) {kept}
);
CREATE TABLE promotion (
    promotion_id TEXT NOT NULL, pipeline TEXT NOT NULL, version INTEGER NOT NULL, replaced_version INTEGER,
    kind TEXT NOT NULL, run_id TEXT, promoted_by TEXT NOT NULL, reason TEXT NOT NULL, valid_from {time} NOT NULL,
    valid_to {time},
    CONSTRAINT pk_promotion PRIMARY KEY (promotion_id),
    CONSTRAINT ck_promotion_kind CHECK (kind IN ('promote', 'rollback')),
    CONSTRAINT ck_promotion_order CHECK (valid_to > valid_from),
    CONSTRAINT fk_promotion_pipeline_replaced_version FOREIGN KEY (pipeline, replaced_version) REFERENCES
        model_version (pipeline, version) {kept},
    CONSTRAINT fk_promotion_pipeline_version FOREIGN KEY (pipeline, version) REFERENCES model_version (pipeline,
        version) {kept},
    CONSTRAINT fk_promotion_run_id FOREIGN KEY (run_id) REFERENCES run (run_id) {kept}
);
CREATE INDEX ix_promotion_pipeline_valid_from ON promotion (pipeline, valid_from);
CREATE UNIQUE INDEX uq_promotion_champion ON promotion (pipeline) WHERE valid_to IS NULL;
CREATE TABLE champion_evaluation_slice (
    evaluation_id INTEGER NOT NULL, slice_id INTEGER NOT NULL, support INTEGER NOT NULL, accuracy {double},
    f1 {double}, precision {double}, recall {double},
    CONSTRAINT pk_champion_evaluation_slice PRIMARY KEY (evaluation_id, slice_id),
    CONSTRAINT fk_champion_evaluation_slice_evaluation_id FOREIGN KEY (evaluation_id) REFERENCES champion_evaluation
        (evaluation_id) {kept},
    CONSTRAINT fk_champion_evaluation_slice_slice_id FOREIGN KEY (slice_id) REFERENCES slice (slice_id) {kept}
) {short};
"""


def upgrade() -> None:
    for statement in TABLES.format(**TYPES[op.get_context().dialect.name], kept=KEPT).split(";\n"):
        # On one line: SQLAlchemy finds the options of a foreign key in SQLite's text by a pattern.
        op.execute(" ".join(statement.split()))
