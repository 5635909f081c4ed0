"""Under which uid and gid the injected containers run, or why the pod cannot be protected. Pure.

A sidecar can read and restore an agent's files only under the agent's own uid. It copies what the pod declares, or else
takes the uid that an earlier pod of the agent was seen to have; never 0, which only a person may choose. It grants no
capability.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from savepoint.contract.names import ANNOTATION_RUN_AS_USER
from savepoint.contract.vocabulary import Reason, UidSource

from savepoint_operator.model.views import Refusal

RESTRICTED: Final = "restricted"
ROOT: Final = 0
UID_MAX: Final = (1 << 31) - 1


@dataclass(frozen=True)
class RunAs:
    """A uid and gid. User 0 means declared as 0 or not declared; group None leaves the group to the image."""

    user: int
    group: int | None
    source: UidSource = UidSource.NONE

    def security_context(self, agent_context: Mapping[str, Any]) -> dict[str, Any]:
        """Return the securityContext of the injected containers; unless the user is 0 it satisfies level restricted."""
        context: dict[str, Any] = {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": self.user != 0,
            "runAsUser": self.user,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        if self.group is not None:
            context["runAsGroup"] = self.group
        if agent_context.get("seLinuxOptions"):  # under another label the agent's files could not be accessed
            context["seLinuxOptions"] = dict(agent_context["seLinuxOptions"])
        return context


def run_as(
    pod: Mapping[str, Any],
    container: Mapping[str, Any],
    policy_user: int | None,
    enforced_level: str,
    observed_user: int | None = None,
) -> RunAs | Refusal:
    """Return the uid that container, pod, annotation or policy declares, in this order, or why there must be one.

    ``enforced_level``: the Pod Security level that the namespace enforces. ``observed_user``: the uid of the agent's
    earlier pods, which is used if nothing declares one.
    """
    own = container.get("securityContext") or {}
    shared = pod["spec"].get("securityContext") or {}
    user, source = _first(own.get("runAsUser"), shared.get("runAsUser")), UidSource.POD
    if user is None:
        declared = _annotated(pod)
        if isinstance(declared, Refusal):
            return declared
        candidates = (
            (declared, UidSource.ANNOTATION),
            (policy_user, UidSource.POLICY),
            (observed_user or None, UidSource.OBSERVED),
        )
        user, source = next((each for each in candidates if each[0] is not None), (None, UidSource.NONE))
    remedy = f"set securityContext.runAsUser of container {container['name']!r}, or annotation {ANNOTATION_RUN_AS_USER}"
    if user is None and _first(own.get("runAsNonRoot"), shared.get("runAsNonRoot")):
        return Refusal(
            Reason.RUN_AS_USER_REQUIRED,
            "the pod sets runAsNonRoot but no uid, so the sidecar cannot know under which uid to read the agent's "
            f"files: {remedy}, to the uid of the image",
        )
    if not user and enforced_level == RESTRICTED:
        return Refusal(
            Reason.RUN_AS_USER_REQUIRED,
            "the namespace enforces Pod Security level restricted and the pod declares no uid other than 0: "
            f"{remedy}, to the uid of the image",
        )
    return RunAs(user or 0, _first(own.get("runAsGroup"), shared.get("runAsGroup")), source)


def _annotated(pod: Mapping[str, Any]) -> int | Refusal | None:
    text = (pod["metadata"].get("annotations") or {}).get(ANNOTATION_RUN_AS_USER)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= UID_MAX:
        return int(text)
    return Refusal(
        Reason.RUN_AS_USER_INVALID,
        f"annotation {ANNOTATION_RUN_AS_USER} must be a number from 0 to {UID_MAX}, not {text!r:.40}",
    )


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)
