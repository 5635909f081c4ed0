"""The adapter to the Kubernetes API: a few verbs over plain dicts, with Savepoint's errors. It keeps no state.

The generated classes of the official client are not used: they would parse every field of every pod.
"""

import json
from collections.abc import Mapping
from typing import Any, Final

import aiohttp
from kubernetes.aio.client import ApiClient
from kubernetes.aio.client.exceptions import ApiException
from savepoint.errors import SavepointError, Unavailable

from savepoint_operator.cluster.errors import Blocked, Conflict, Denied, Invalid, NamespaceTerminating, NotFound
from savepoint_operator.cluster.kinds import PODS, TOKEN_REVIEWS, Kind

Raw = dict[str, Any]

REQUEST_SECONDS: Final = 15.0
PAGE: Final = 500
MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"

_ERRORS: Final[dict[int, type[SavepointError]]] = {
    400: Invalid,
    401: Denied,
    403: Denied,
    404: NotFound,
    405: Invalid,
    409: Conflict,
    415: Invalid,
    422: Invalid,
}


class Api:
    """Raises NotFound, Conflict, Invalid, Denied (or NamespaceTerminating), and Unavailable for transient faults."""

    def __init__(self, client: ApiClient, request_seconds: float = REQUEST_SECONDS) -> None:
        self._client, self._seconds = client, request_seconds

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        """Return the object, or None if the API server says that it does not exist."""
        try:
            return await self._request("GET", kind.path(namespace, name))
        except NotFound:
            return None

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Raw]:
        """Return every object, read page by page from one consistent state of the API server."""
        items: list[Raw] = []
        query = {"limit": str(PAGE), **({"labelSelector": selector} if selector else {})}
        while True:
            page = await self._request("GET", kind.path(namespace), query=query)
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            query = {**query, "continue": token}

    async def create(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        """Create the object and return it. Raises Conflict if the name is taken."""
        namespace = body["metadata"].get("namespace", "")
        content = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return await self._request("POST", kind.path(namespace), body=content)

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str = "",
        patch_type: str = MERGE,
    ) -> Raw:
        """Apply a merge patch and return the object.

        Raises Conflict if the patch names a resourceVersion that is not the current one.
        """
        return await self._request("PATCH", kind.path(namespace, name, subresource), body=body, content_type=patch_type)

    async def replace(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        """Replace the object and return it. Raises Conflict if it has changed since ``metadata.resourceVersion``."""
        metadata = body["metadata"]
        content = {"apiVersion": kind.api_version, "kind": kind.kind, **body}
        return await self._request("PUT", kind.path(metadata.get("namespace", ""), metadata["name"]), body=content)

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete exactly the object with this UID; do nothing if it does not exist or another object has its name."""
        try:
            await self._request(
                "DELETE",
                kind.path(namespace, name),
                body={"preconditions": {"uid": uid}, "propagationPolicy": "Background"},
            )
        except (NotFound, Conflict):
            return

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        """Evict exactly the pod with this UID; do nothing if it does not exist.

        Raises Blocked while a disruption budget forbids it.
        """
        body = {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"name": name, "namespace": namespace},
            "deleteOptions": {"preconditions": {"uid": uid}},
        }
        try:
            await self._request("POST", PODS.path(namespace, name, "eviction"), body=body, too_many_requests=Blocked)
        except (NotFound, Conflict):
            return

    async def review(self, spec: Mapping[str, Any]) -> Raw:
        """Create a TokenReview and return its status."""
        body = {"apiVersion": TOKEN_REVIEWS.api_version, "kind": TOKEN_REVIEWS.kind, "spec": dict(spec)}
        answer = await self._request("POST", TOKEN_REVIEWS.path(), body=body)
        status: Raw = answer.get("status") or {}
        return status

    async def _request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = "application/json",
        too_many_requests: type[SavepointError] = Unavailable,
    ) -> Raw:
        headers = {"Accept": "application/json", "Content-Type": content_type}
        try:
            request = await self._client.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._client.call_api(*request, _request_timeout=self._seconds)
            content = await response.read()  # type: ignore[no-untyped-call]
        except (ApiException, aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the API server did not answer {method} {path}: {type(error).__name__}") from error
        if 200 <= response.status < 300:
            parsed: Raw = json.loads(content) if content else {}
            return parsed
        message = f"the API server answered {response.status} to {method} {path}: {_message(content)}"
        if response.status == 429:
            raise too_many_requests(message)
        if response.status == 403 and _has_cause(content, "NamespaceTerminating"):
            raise NamespaceTerminating(message)
        raise _ERRORS.get(response.status, Unavailable)(message)


def _has_cause(content: bytes, reason: str) -> bool:
    """Return whether the Status has this cause."""
    try:
        causes = json.loads(content)["details"]["causes"]
        return any(each["reason"] == reason for each in causes)
    except (ValueError, LookupError, TypeError):
        return False


def _message(content: bytes) -> str:
    """Return the message of the Status; never the request, which may hold a Secret."""
    try:
        return str(json.loads(content).get("message", ""))[:500]
    except (ValueError, AttributeError):
        return content[:200].decode(errors="replace")
