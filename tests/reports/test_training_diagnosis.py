"""The diagnosis of a run: findings with their numbers and remedies, and none for a healthy run."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from nightgate.config.training import Training
from nightgate.pipeline_files import check_pipeline, parse_settings
from nightgate.reports.training_diagnosis import EarlierNight, EpochFacts, Finding, MachineFacts, diagnose
from tests.support import night_rows

PUBLISHED = [EpochFacts(row[1], row[0], row[3], row[5]) for row in night_rows.PUBLISHED]


def run(training: list[float], validation: list[float], f1: list[float] | None = None) -> list[EpochFacts]:
    scores = f1 or [0.6] * len(training)
    return [EpochFacts(n + 1, *facts) for n, facts in enumerate(zip(training, validation, scores, strict=True))]


def kinds(findings: list[Finding]) -> list[str]:
    return [finding.kind for finding in findings]


def test_the_published_run_overfits_from_epoch_2_on() -> None:
    [finding] = diagnose(PUBLISHED, min_f1=0.54)
    assert finding.kind == "overfitting"
    for number in ("1.0616", "1.2436", "1.0049", "0.6538", "0.5268", "0.5435", "epoch 2"):
        assert number in finding.text


def test_the_order_of_the_epochs_does_not_matter() -> None:
    assert diagnose(PUBLISHED[::-1], 0.54) == diagnose(PUBLISHED, 0.54)


@pytest.mark.parametrize(
    ("epochs", "why"),
    [
        ([], "no epochs"),
        (PUBLISHED[:1], "one epoch"),
        (run([1.0, 0.9, 0.8], [1.0, 0.9, 0.85]), "both losses fall"),
        (run([1.0, 1.1, 1.2], [1.0, 1.1, 1.2]), "training loss rises too"),
        (run([1.0, 1.0, 1.0], [1.0, 1.1, 1.2]), "training loss stands still"),
        (run([1.0, 0.9, 0.8], [1.0, 1.00000001, 1.00000002]), "a rise of float noise"),
        (run([1.0, 0.99999999], [1.0, 1.1]), "a fall of float noise"),
        (run([1.0, 0.9, 0.8], [1.0, 1.05, 0.95]), "the rise was made good"),
        (run([1.0, 0.9, 0.95], [1.0, 0.9, 0.95]), "training loss rises with validation loss at the end"),
    ],
)
def test_no_overfitting_is_claimed_without_it(epochs: list[EpochFacts], why: str) -> None:
    assert diagnose(epochs, min_f1=0.5) == [], why


def test_overfitting_begins_after_the_lowest_validation_loss() -> None:
    [finding] = diagnose(run([1.0, 0.9, 0.8, 0.7], [1.0, 0.9, 0.95, 1.0]), 0.5)
    assert "from epoch 3 on" in finding.text


def test_losses_that_were_not_finite_are_skipped() -> None:
    epochs = [EpochFacts(1, 1.0, None, 0.6), EpochFacts(2, 0.9, 1.0, math.nan), EpochFacts(3, 0.8, 1.1, None)]
    [finding] = diagnose(epochs, 0.5)
    assert "from epoch 3 on" in finding.text
    assert "nan" not in finding.text
    assert "None" not in finding.text


@pytest.mark.parametrize(
    ("f1", "training", "remedy"),
    [
        ([0.60, 0.59, 0.58], {}, "training.epochs=1"),
        ([0.60, 0.61, 0.62], {}, "training.dropout=0.2"),
        ([0.60, 0.61, 0.62], {"dropout": 0.2}, "training.dropout=0.3"),
        ([0.60, 0.61, 0.62], {"dropout": 0.5}, "training.weight_decay=0.01"),
        ([0.60, 0.62, 0.61, 0.60], {}, "training.early_stopping_patience=1"),
        ([0.60, 0.62, 0.61, 0.60], {"early_stopping_patience": 1}, "training.dropout=0.2"),
    ],
)
def test_the_remedy_for_overfitting_depends_on_what_f1_gained(
    f1: list[float], training: dict[str, object], remedy: str
) -> None:
    losses = [1.0, 0.9, 0.8, 0.7][: len(f1)]
    [finding] = diagnose(run(losses, [1.0, 1.1, 1.2, 1.3][: len(f1)], f1), 0.5, Training(**training))  # type: ignore[arg-type]
    assert finding.remedy.endswith(f"--set {remedy}")


@pytest.mark.parametrize(
    ("epochs", "training"),
    [
        (run([1.0], [1.0], [0.4]), {}),
        (run([1.0, 0.9], [1.0, 0.9], [0.4, 0.45]), {}),
        (run([1.0, 1.2], [1.0, 1.2], [0.4, 0.3]), {}),
        (run([1.0, 1.0], [1.0, 1.0], [0.2, 0.2]), {}),
        (run([1.0, 0.9], [1.0, 0.9], [0.45, 0.4]), {}),
        (run([1.0, 0.9], [1.0, 0.9], [0.45, 0.4]), {"max_train_rows": 1000}),
        ([EpochFacts(1, 1.0, 1.0, None)], {}),
    ],
    ids=["one epoch", "still rising", "loss rose", "loss stood still", "stopped rising", "few rows", "nothing finite"],
)
def test_the_remedy_for_a_low_score_depends_on_the_losses(
    epochs: list[EpochFacts], training: dict[str, Any], snapshot: SnapshotAssertion
) -> None:
    [finding] = diagnose(epochs, 0.5, Training(**training))
    assert finding == snapshot


def test_a_score_that_equals_the_threshold_is_not_low() -> None:
    assert diagnose(run([1.0], [1.0], [0.54]), 0.54) == []


def test_a_run_can_overfit_and_score_low() -> None:
    assert kinds(diagnose(PUBLISHED, min_f1=0.6)) == ["overfitting", "low_score"]


def at_speeds(*speeds: float | None) -> list[EpochFacts]:
    """A healthy run whose epochs ran at these examples per second."""
    return [EpochFacts(n + 1, 1.0 / (n + 1), 1.0 / (n + 1), 0.6, speed) for n, speed in enumerate(speeds)]


def earlier(*speeds: float, device: str = "cpu", precision: str = "fp32") -> tuple[EarlierNight, ...]:
    return tuple(EarlierNight(device, precision, speed) for speed in speeds)


CPU = {"device": "cpu", "precision": "fp32"}


def test_nothing_is_said_about_a_machine_that_is_not_known() -> None:
    assert diagnose(at_speeds(50, 1, 50), 0.5) == []


@pytest.mark.parametrize(
    ("speeds", "machine", "why"),
    [
        ((50.0, 48.0, 51.0), {}, "even epochs"),
        ((50.0, 26.0, 50.0), {}, "a little more than half"),
        ((50.0, 10.0), {}, "one other epoch says nothing about what is usual"),
        ((50.0, None, math.nan, 0.0, 51.0), {}, "speeds that are not known"),
        ((), {}, "no epochs"),
        ((1.0, 50.0, 50.0), {"device": "NVIDIA H200"}, "a GPU's first epoch warms up"),
        ((50.0, 50.0), {"earlier": earlier(100.0, 100.0, 100.0)}, "exactly half of what is usual"),
        ((50.0, 50.0), {"earlier": earlier(500.0, 500.0)}, "two nights make no usual speed"),
        ((50.0, 50.0), {"earlier": earlier(*[500.0] * 5, precision="bf16")}, "nights of another precision"),
        ((50.0,), {"device": "NVIDIA H200", "earlier": earlier(*[9.0] * 5)}, "a GPU where there was none"),
        ((50.0,), {"earlier": earlier(60, 60, 60) + earlier(900, 900, 900, device="H200")}, "as often CPU as GPU"),
        ((50.0,), {"micro_batches": 1}, "a whole batch"),
    ],
)
def test_a_sound_machine_has_no_finding(speeds: tuple[float | None, ...], machine: dict[str, Any], why: str) -> None:
    assert diagnose(at_speeds(*speeds), 0.5, machine=MachineFacts(**{**CPU, **machine})) == [], why


@pytest.mark.parametrize(
    ("speeds", "machine"),
    [
        ((), {"restarts": 1}),
        ((), {"restarts": 2, "slot": "gpu1"}),
        ((50, 20, 52), {}),
        ((9, 50, 52, 8), {}),
        ((20, 19), {"slot": "default", "earlier": earlier(50, 52, 40)}),
        ((50, 48), {"train_rows": 100_000, "earlier": earlier(500, 480, 490, device="H200", precision="bf16")}),
        ((), {"earlier": earlier(500, 480, 490, device="H200")}),
        ((50,), {"micro_batches": 4}),
    ],
    ids=["stalled", "twice", "one epoch", "two epochs", "night", "on the CPU", "at no speed", "short of memory"],
)
def test_a_stalled_starved_or_small_machine_has_its_numbers_and_its_remedy(
    speeds: tuple[float, ...], machine: dict[str, Any], snapshot: SnapshotAssertion
) -> None:
    [finding] = diagnose(at_speeds(*speeds), 0.5, machine=MachineFacts(**{**CPU, **machine}))
    assert finding == snapshot


def test_long_texts_are_cut_before_batches_are_made_smaller() -> None:
    [finding] = diagnose(at_speeds(50), 0.5, Training(max_length=512), MachineFacts(**CPU, micro_batches=2))
    assert finding.remedy.endswith("--set training.max_length=128")


def test_what_the_training_shows_comes_before_the_machine() -> None:
    found = diagnose(PUBLISHED, 0.6, machine=MachineFacts(**CPU, restarts=1, micro_batches=2))
    assert kinds(found) == ["overfitting", "low_score", "stalled", "short_of_memory"]


def test_every_remedy_is_a_setting_that_the_configuration_accepts() -> None:
    runs = [
        PUBLISHED,
        run([1.0, 0.9, 0.8, 0.7], [1.0, 1.1, 1.2, 1.3], [0.4, 0.42, 0.41, 0.41]),
        run([1.0, 0.9], [1.0, 1.1], [0.4, 0.3]),
        run([1.0, 1.2], [1.0, 1.2], [0.4, 0.3]),
        run([1.0, 1.0], [1.0, 1.0], [0.4, 0.3]),
        run([1.0], [1.0], [0.4]),
    ]
    for training in (Training(), Training(epochs=1000, learning_rate=1.0, dropout=0.45)):
        for epochs in runs:
            findings = diagnose(epochs, 0.99, training)
            assert findings
            machines = [
                MachineFacts(**CPU, restarts=1, slot=slot, micro_batches=64, earlier=before)
                for slot in ("", "gpu-1")
                for before in (earlier(900, 900, 900), earlier(900, 900, 900, device="H200"))
            ]
            slow = [replace(epoch, examples_per_second=1.0) for epoch in epochs]
            findings += [finding for machine in machines for finding in diagnose(slow, 0.0, training, machine)]
            assert {"stalled", "starved", "other_device", "short_of_memory"} <= set(kinds(findings))
            for finding in findings:
                found = re.search(r"--set (\S+)$", finding.remedy)
                assert found, finding.remedy
                document = {"name": "x", "data": {"source": {"kind": "sample"}, "labels": [1, 2]}}
                check_pipeline(document, "test", parse_settings([found.group(1)]))


def test_no_score_is_low_while_the_threshold_is_not_known() -> None:
    low = run([1.0, 1.2], [1.0, 1.2], [0.4, 0.3])
    assert (kinds(diagnose(low, 0.5)), diagnose(low, None)) == (["low_score"], [])
