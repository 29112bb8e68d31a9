"""Progress as a line and as a share."""

from __future__ import annotations

import pytest

from nightgate.training.progress import done_share, progress_line
from nightgate.training.protocol import Progress


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        (
            Progress(
                "train",
                1,
                3,
                40,
                75,
                loss=1.2149,
                examples_per_second=53.04,
                tokens_per_second=2280.4,
                eta_seconds=20.3,
            ),
            "epoch 1/3, step 40/75, loss 1.215, 53 examples/s, 2,280 tokens/s, 0:20 left",
        ),
        (
            Progress("train", 1, 3, 40, 75, examples_per_second=12345.6, tokens_per_second=530_000),
            "epoch 1/3, step 40/75, 12,346 examples/s, 530,000 tokens/s",
        ),
        (
            Progress("evaluate", 2, 3, 50, 75, examples_per_second=160, eta_seconds=3725, done=320, total=500),
            "epoch 2/3, evaluating, 320/500, 160 examples/s, 1:02:05 left",
        ),
        (Progress("load", detail="tokenising", done=2000, total=9000), "tokenising, 2000/9000"),
    ],
)
def test_a_line_of_progress_has_what_is_known(progress: Progress, line: str) -> None:
    assert progress_line(progress) == line


def test_the_share_that_is_done_grows_from_nothing_to_all() -> None:
    course = [
        Progress("load", epochs=2, total_steps=20, detail="tokenising", done=5, total=9),
        *(Progress("train", 1, 2, step, 20) for step in (1, 5, 10)),
        *(Progress("evaluate", 1, 2, 10, 20, done=done, total=8) for done in (4, 8)),
        Progress("save", 1, 2, 10, 20),
        *(Progress("train", 2, 2, step, 20) for step in (11, 20)),
        Progress("evaluate", 2, 2, 20, 20, done=4, total=8),
        Progress("save", 2, 2, 20, 20),
    ]
    shares = [done_share(progress) for progress in course]
    assert shares == sorted(shares)
    assert (shares[0], shares[6], shares[-1]) == (0, 0.5, 1)
    assert shares[2] == pytest.approx(0.5 * 0.95 * 0.5)
