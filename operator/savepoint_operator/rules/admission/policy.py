"""What admission needs of an AgentCheckpointPolicy, and which policy counts for a pod. Pure.

It knows nothing of triggers, retention or quiescing: those are the operator's.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

# The stage's medium as the API says it → as an emptyDir says it.
_MEDIA: Final = {"Disk": "", "Memory": "Memory"}


@dataclass(frozen=True)
class Requirement:
    """One of a label selector's matchExpressions."""

    key: str
    operator: str  # In, NotIn, Exists, DoesNotExist
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """As the API server judges it: NotIn holds where the key is absent. An unknown operator holds nowhere."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
        return False


@dataclass(frozen=True)
class LabelSelector:
    """A label selector; the empty one selects everything."""

    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "LabelSelector":
        """From a selector as the API server has validated it."""
        exact = (Requirement(key, "In", (value,)) for key, value in sorted((raw.get("matchLabels") or {}).items()))
        expressions = (
            Requirement(item["key"], item["operator"], tuple(item.get("values") or ()))
            for item in raw.get("matchExpressions") or ()
        )
        return cls((*exact, *expressions))

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Whether every requirement holds."""
        return all(requirement.holds(labels) for requirement in self.requirements)


@dataclass(frozen=True)
class StatePath:
    """A folder of the agent's container that is state but no volume."""

    mount_path: str
    size_limit: str | int | None = None


@dataclass(frozen=True)
class AdmissionPolicy:
    """The part of a policy that shapes a pod."""

    name: str
    created: str = ""  # RFC 3339, as the API server writes it: sorts by time
    selector: LabelSelector = LabelSelector()
    container_name: str | None = None
    state_volumes: tuple[str, ...] | None = None  # None: every writable one
    state_paths: tuple[StatePath, ...] = ()
    stage_size_limit: str | int | None = None
    stage_medium: str = ""  # as emptyDir.medium
    resources: Mapping[str, Any] | None = None
    run_as_user: int | None = None

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "AdmissionPolicy":
        """From an AgentCheckpointPolicy as the API server has validated it."""
        metadata, spec = raw["metadata"], raw.get("spec") or {}
        stage, injection, state = (spec.get(name) or {} for name in ("stage", "injection", "state"))
        return cls(
            name=metadata["name"],
            created=metadata.get("creationTimestamp") or "",
            selector=LabelSelector.parse(spec.get("selector") or {}),
            container_name=spec.get("containerName"),
            state_volumes=tuple(state["volumes"]) if "volumes" in state else None,
            state_paths=tuple(StatePath(item["mountPath"], item.get("sizeLimit")) for item in state.get("paths") or ()),
            stage_size_limit=stage.get("sizeLimit"),
            stage_medium=_MEDIA.get(stage.get("medium", "Disk"), ""),
            resources=injection.get("resources"),
            run_as_user=injection.get("runAsUser"),
        )


def choose_policy(policies: Iterable[AdmissionPolicy], labels: Mapping[str, str]) -> AdmissionPolicy | None:
    """The oldest policy of the namespace that selects the pod; of equally old ones the first by name."""
    selecting = (policy for policy in policies if policy.selector.selects(labels))
    return min(selecting, key=lambda policy: (policy.created, policy.name), default=None)
