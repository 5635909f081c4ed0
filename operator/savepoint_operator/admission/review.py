"""AdmissionReview in, AdmissionReview out: the wire format around ``rules.admission.injection``. Pure.

The patch replaces whole lists (volumes, containers): pods are small, and a patch by index would depend on what other
webhooks do to the same lists.
"""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.injection import Injected

API_VERSION: Final = "admission.k8s.io/v1"
WARNING_MAX_CHARACTERS: Final = 256  # the API server truncates longer ones
_PATCHED: Final = (
    ("metadata", "annotations"),
    ("spec", "initContainers"),
    ("spec", "containers"),
    ("spec", "volumes"),
    ("spec", "tolerations"),
)

Decide = Callable[[Mapping[str, Any], str], Injected | Refusal]
"""(pod, namespace) → the injected pod or its refusal."""


class ReviewError(ValueError):
    """The request is not an AdmissionReview of a pod's creation."""


def answer(review: Any, decide: Decide) -> dict[str, Any]:
    """Return the AdmissionReview to send back. Raises ReviewError."""
    try:
        if review["apiVersion"] != API_VERSION or review["kind"] != "AdmissionReview":
            raise ReviewError(f"expected an AdmissionReview of {API_VERSION}")
        request = review["request"]
        uid, pod = str(request["uid"]), request["object"]
        if request["resource"] != {"group": "", "version": "v1", "resource": "pods"} or request.get("subResource"):
            raise ReviewError("expected a review of pods; correct the webhook configuration's rules")
        if request["operation"] != "CREATE":
            raise ReviewError("expected operation CREATE; correct the webhook configuration's rules")
        response = _response(pod, decide(pod, str(request["namespace"])))
    except (KeyError, TypeError, AttributeError) as error:
        raise ReviewError(f"not an AdmissionReview of a pod: {type(error).__name__} {error}") from error
    return {"apiVersion": API_VERSION, "kind": "AdmissionReview", "response": {"uid": uid} | response}


def _response(pod: Mapping[str, Any], result: Injected | Refusal) -> dict[str, Any]:
    if isinstance(result, Refusal):
        message = f"savepoint: {result.reason}: {result.message}"
        return {"allowed": False, "status": {"code": 422, "reason": "Invalid", "message": message}}
    response: dict[str, Any] = {"allowed": True}
    patch = _patch(pod, result.pod)
    if patch:
        text = json.dumps(patch, separators=(",", ":")).encode()
        response |= {"patchType": "JSONPatch", "patch": base64.b64encode(text).decode("ascii")}
    if result.warnings:
        response["warnings"] = [f"savepoint: {warning}"[:WARNING_MAX_CHARACTERS] for warning in result.warnings]
    return response


def _patch(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON Patch; "add" also replaces an existing member of an object."""
    return [
        {"op": "add", "path": f"/{section}/{field}", "value": after[section][field]}
        for section, field in _PATCHED
        if after[section].get(field) != before[section].get(field)
    ]
