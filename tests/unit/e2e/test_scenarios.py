"""What the scenes note must be what happened: the moment at which a predecessor had let go."""

from typing import Any

import pytest

from e2e.scenarios.main_job import released_at

AT = "2026-01-01T00:00:{:02d}Z"
MIDNIGHT = 1767225600.0
REPORTS = [{"event": "turn", "time": MIDNIGHT + second} for second in (1, 2, 3.5)]


def checkpoint(completion: int, start: int | None = None) -> dict[str, Any]:
    """As `kubectl get` shows it, committed and begun at these seconds."""
    begun = {} if start is None else {"start": AT.format(start)}
    return {"status": {"timing": {"completion": AT.format(completion), **begun}}}


def test_a_pod_had_let_go_when_the_operator_committed_what_it_offered() -> None:
    assert released_at(checkpoint(6, start=4), REPORTS) == MIDNIGHT + 6
    assert released_at(checkpoint(40, start=4), REPORTS) == MIDNIGHT + 40  # it lived until then


@pytest.mark.parametrize("completion", [6, 40])
def test_the_wait_for_an_operator_that_commits_what_a_pod_has_left_counts(completion: int) -> None:
    assert released_at(checkpoint(completion), REPORTS) == MIDNIGHT + 3.5


def test_it_counts_from_the_earlier_of_both() -> None:
    assert released_at(checkpoint(2), REPORTS) == MIDNIGHT + 2
