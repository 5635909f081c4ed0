"""The time at which a predecessor released its epoch, as the scenarios compute it."""

from typing import Any

import pytest

from e2e.scenarios.main_job import released_at

AT = "2026-01-01T00:00:{:02d}Z"
MIDNIGHT = 1767225600.0
REPORTS = [{"event": "turn", "time": MIDNIGHT + second} for second in (1, 2, 3.5)]


def checkpoint(completion: int, start: int | None = None) -> dict[str, Any]:
    """Return a checkpoint as `kubectl get` shows it, committed and started at these seconds."""
    started = {} if start is None else {"start": AT.format(start)}
    return {"status": {"timing": {"completion": AT.format(completion), **started}}}


def test_a_pod_releases_its_epoch_when_the_operator_commits_its_offer() -> None:
    assert released_at(checkpoint(6, start=4), REPORTS) == MIDNIGHT + 6
    assert released_at(checkpoint(40, start=4), REPORTS) == MIDNIGHT + 40  # it ran until then


@pytest.mark.parametrize("completion", [6, 40])
def test_the_wait_for_an_operator_that_commits_a_deferred_checkpoint_is_included(completion: int) -> None:
    assert released_at(checkpoint(completion), REPORTS) == MIDNIGHT + 3.5


def test_a_commit_before_the_last_report_counts_as_the_release() -> None:
    assert released_at(checkpoint(2), REPORTS) == MIDNIGHT + 2
