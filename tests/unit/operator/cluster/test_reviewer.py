"""Token reviews: which tokens prove a pod."""

from typing import Any

import pytest
from savepoint.errors import SavepointError, Unavailable
from savepoint_operator.cluster.errors import Denied
from savepoint_operator.cluster.reviewer import Reviewer
from savepoint_operator.model.views import PodIdentity

VALID: dict[str, Any] = {
    "authenticated": True,
    "audiences": ["savepoint.dev"],
    "user": {
        "username": "system:serviceaccount:demo:default",
        "extra": {
            "authentication.kubernetes.io/pod-name": ["coder-1"],
            "authentication.kubernetes.io/pod-uid": ["uid-1"],
        },
    },
}


class Reviews:
    """Answers every review alike, and records the requests."""

    def __init__(self, answer: dict[str, Any] | SavepointError) -> None:
        self.answer = answer
        self.requests: list[Any] = []

    async def review(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.requests.append(spec)
        if isinstance(self.answer, SavepointError):
            raise self.answer
        return self.answer


async def test_a_valid_token_proves_its_pod() -> None:
    reviews = Reviews(VALID)
    assert await Reviewer(reviews).review("t") == PodIdentity("demo", "coder-1", "uid-1")
    assert reviews.requests == [{"token": "t", "audiences": ["savepoint.dev"]}]


@pytest.mark.parametrize(
    "change",
    [
        {"authenticated": False},
        {"audiences": ["https://kubernetes.default.svc"]},
        {"audiences": None},
        {"user": {"username": "admin", "extra": VALID["user"]["extra"]}},
        {"user": {"username": "system:serviceaccount:demo:default", "extra": {}}},
        {"user": {**VALID["user"], "extra": {"authentication.kubernetes.io/pod-name": ["a", "b"]}}},
    ],
)
async def test_any_other_token_proves_nothing(change: dict[str, Any]) -> None:
    assert await Reviewer(Reviews({**VALID, **change})).review("t") is None


async def test_a_missing_permission_to_review_is_a_transient_fault() -> None:
    with pytest.raises(Unavailable):
        await Reviewer(Reviews(Denied("no"))).review("t")
