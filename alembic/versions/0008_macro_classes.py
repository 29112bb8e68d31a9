"""Nights whose stored macro scores also averaged classes without true rows get a metric key of their own.

Later scores average only the classes that have true rows in the test window. The two differ exactly on nights on which
a scored model predicted another class, which the joint counts of the window show.
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

KEY_LENGTH = len("m-0123456789ab")

# By the whole primary key up to true_label: a lookup for each cell, however many labels there are.
NO_TRUE_ROW = """
NOT EXISTS (
    SELECT 1 FROM joint_outcome AS t
    WHERE t.run_id = j.run_id AND t.attempt = j.attempt AND t.scope = j.scope
      AND t.slice_name = '' AND t.slice_value = '' AND t.reference = j.reference AND t.true_label = {predicted})
"""

MARK = f"""
UPDATE run SET metric_key = metric_key || '-predicted'
WHERE average = 'macro' AND metric_key IS NOT NULL AND EXISTS (
    SELECT 1 FROM joint_outcome AS j
    WHERE j.run_id = run.run_id AND j.scope = 'window'
      AND j.attempt = (SELECT MAX(known.attempt) FROM joint_outcome AS known WHERE known.run_id = run.run_id)
      AND ({NO_TRUE_ROW.format(predicted="j.candidate_label")}
        OR CASE j.reference WHEN 'champion' THEN run.champion_f1 WHEN 'anchor' THEN run.anchor_f1 END IS NOT NULL
        AND {NO_TRUE_ROW.format(predicted="j.reference_label")}))
"""


def upgrade() -> None:
    op.execute(MARK)


def downgrade() -> None:
    op.execute(f"UPDATE run SET metric_key = substr(metric_key, 1, {KEY_LENGTH})")
