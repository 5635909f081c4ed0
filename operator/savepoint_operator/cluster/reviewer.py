"""Reviews projected tokens: a TokenReview proves which pod sent one. Tokens are neither kept nor logged."""

from typing import Final, Protocol

from savepoint.contract.names import AUDIENCE
from savepoint.errors import Unavailable

from savepoint_operator.cluster.api import Raw
from savepoint_operator.cluster.errors import Denied
from savepoint_operator.model.views import PodIdentity

_EXTRA: Final = "authentication.kubernetes.io/"
_ACCOUNT: Final = "system:serviceaccount:"


class Reviews(Protocol):
    """The part of ``cluster.api.Api`` that is used."""

    async def review(self, spec: Raw) -> Raw:
        """Create a TokenReview and return its status."""
        ...


class Reviewer:
    """Implements ``TokenReviewer``."""

    def __init__(self, api: Reviews) -> None:
        self._api = api

    async def review(self, token: str) -> PodIdentity | None:
        """Return the pod that the token proves; None if it is invalid, for another audience, or not bound to a pod.

        Raises Unavailable.
        """
        try:
            status = await self._api.review({"token": token, "audiences": [AUDIENCE]})
        except Denied as error:
            raise Unavailable(f"the operator's service account cannot review tokens: {error}") from error
        if status.get("authenticated") is not True or AUDIENCE not in (status.get("audiences") or ()):
            return None
        user = status.get("user") or {}
        account = str(user.get("username", ""))
        extra = user.get("extra") or {}
        name, uid = _one(extra.get(f"{_EXTRA}pod-name")), _one(extra.get(f"{_EXTRA}pod-uid"))
        if not account.startswith(_ACCOUNT) or not name or not uid:
            return None
        return PodIdentity(account.removeprefix(_ACCOUNT).partition(":")[0], name, uid)


def _one(values: object) -> str:
    """Return the only value; empty if there is none or more than one."""
    return str(values[0]) if isinstance(values, list) and len(values) == 1 else ""
