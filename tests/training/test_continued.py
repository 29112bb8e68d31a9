"""Which rows a night learns that goes on from a version, and what its line has learnt then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightgate.config.training import Training
from nightgate.engine.optimizer import learning_rates
from nightgate.errors import ModelError
from nightgate.models.serving_check import model_size
from nightgate.models.version_folder import LEARNT_FILE
from nightgate.training.continued import (
    LabelledKeys,
    continued_recipe,
    draw,
    lost,
    read_learnt,
    write_learnt,
)


def rows(labels: dict[int, int]) -> LabelledKeys:
    return LabelledKeys(np.array([*labels], np.uint64), np.array([*labels.values()], np.int64))


def as_dict(found: LabelledKeys) -> dict[int, int]:
    return dict(zip(found.keys.tolist(), found.labels.tolist(), strict=True))


some_rows = st.dictionaries(st.integers(1, 2**64 - 1) | st.integers(1, 30), st.integers(0, 4), max_size=60).map(rows)


@given(some_rows, some_rows, st.floats(0, 4), st.integers(0, 20), st.integers(0, 2**32))
def test_a_night_learns_every_new_row_and_as_many_old_ones_as_it_should(
    available: LabelledKeys, learnt: LabelledKeys, replay: float, least: int, seed: int
) -> None:
    at = draw(available, learnt, replay=replay, least=least, seed=(seed, 1))
    known = as_dict(learnt)
    is_new = np.array([known.get(key) != label for key, label in as_dict(available).items()], bool)
    num_new = int(is_new.sum())
    assert (np.diff(at) > 0).all()
    assert is_new[at].sum() == num_new
    num_old = min(len(available) - num_new, max(round(replay * num_new), least - num_new))
    assert len(at) == num_new + num_old
    again = draw(available, learnt, replay=replay, least=least, seed=(seed, 1))
    assert np.array_equal(at, again)


def test_old_rows_are_drawn_uniformly_and_others_every_night() -> None:
    learnt, available = rows(dict.fromkeys(range(1, 101), 0)), rows(dict.fromkeys(range(1, 121), 0))
    drawn = [draw(available, learnt, replay=1.0, least=16, seed=(42, night)) for night in range(500)]
    counts = np.bincount(np.concatenate(drawn), minlength=120)
    assert (counts[100:] == 500).all()
    # Each old row is drawn with probability 1/5: 100 of 500, with a standard deviation of 9.
    assert (counts[:100].min(), counts[:100].max()) > (60, 100)
    assert counts[:100].max() < 145


@given(some_rows, some_rows)
def test_a_line_keeps_every_row_with_its_newest_label(before: LabelledKeys, tonight: LabelledKeys) -> None:
    line = before.joined(tonight)
    assert as_dict(line) == as_dict(before) | as_dict(tonight)
    assert lost(line, tonight) == lost(before, tonight), "what was corrected is lost in every later night, too"
    assert len(line.joined(tonight)) == len(line)
    assert before.within(line.joined(before)).all(), "a label that was corrected back is not new again"
    tonight_at, before_at = (replace(one, times=one.keys.astype(np.int64) % 1000) for one in (tonight, before))
    if len(tonight):
        oldest = tonight_at.times.min()
        is_young = before_at.times >= oldest
        assert lost(before_at, tonight_at) == (~before.within(tonight) & is_young).sum()
    held = as_dict(tonight)
    assert lost(before, tonight) == sum(held.get(key) != label for key, label in as_dict(before).items())


def test_what_was_learnt_is_read_as_it_was_written_and_a_damaged_file_is_named(tmp_path: Path) -> None:
    learnt = rows({2**64 - 1: 3, 7: 0, 12: 1})
    write_learnt(tmp_path, learnt)
    assert as_dict(read_learnt(tmp_path)) == as_dict(learnt)
    assert read_learnt(tmp_path).times is None
    write_learnt(tmp_path, replace(learnt, times=np.array([30, 10, -20])))
    assert read_learnt(tmp_path).times.tolist() == [10, -20, 30]  # type: ignore[union-attr]
    write_learnt(tmp_path, learnt.joined(rows({7: 1, 5: 2})))
    assert as_dict(read_learnt(tmp_path)) == as_dict(learnt) | {7: 1, 5: 2}
    assert model_size(tmp_path) == 0, "a candidate with more rows than the champion is no larger a model"
    (tmp_path / LEARNT_FILE).write_bytes(b"PAR1")
    with pytest.raises(ModelError, match=LEARNT_FILE) as raised:
        read_learnt(tmp_path)
    assert "training.start_from=base" in raised.value.next_step


def test_a_night_that_goes_on_is_one_pass_at_a_share_of_the_rate_whose_schedule_starts_anew() -> None:
    recipe = Training(epochs=4, learning_rate=2e-5, warmup_ratio=0.25, early_stopping_patience=2)
    going_on = continued_recipe(recipe)
    assert (going_on.epochs, going_on.early_stopping_patience) == (1, 0)
    assert max(map(learning_rates(going_on, 8), range(1, 9))) == pytest.approx(2e-6)
    # A warm-up starts at a rate of 0.
    assert learning_rates(going_on, 1)(1) == pytest.approx(2e-6)
