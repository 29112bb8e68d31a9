"""What a night outlives, on a real server: Prefect's own guard of a lease, with and without us."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
from prefect._internal.concurrency.cancellation import CancelledError
from prefect.concurrency._leases import maintain_concurrency_lease
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.outages import outlived

pytestmark = pytest.mark.flow


@contextmanager
def forgotten_lease(api_url: str) -> Iterator[None]:
    """The block works as a flow does: under a lease. The server, which was away for too long, has dropped it."""
    with (
        temporary_settings({PREFECT_API_URL: api_url}),
        maintain_concurrency_lease(uuid4(), 300, raise_on_lease_renewal_failure=True),
    ):
        yield


def work(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        time.sleep(0.05)


def test_a_night_outlives_the_loss_of_its_lease(prefect_server: str, caplog: pytest.LogCaptureFixture) -> None:
    with outlived(), forgotten_lease(prefect_server):
        until = time.monotonic() + 60
        while "has given up this run's place" not in caplog.text:
            assert time.monotonic() < until, caplog.text
            work(0.1)
        work(0.5)


@pytest.mark.faults
def test_prefect_would_end_it(prefect_server: str) -> None:
    """The day on which this fails is the day on which `flows.outages` may forget the lease."""
    with pytest.raises(CancelledError), forgotten_lease(prefect_server):
        work(60)
