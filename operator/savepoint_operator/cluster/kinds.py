"""The API kinds that the operator uses, and their URL paths. Constants; no I/O."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from savepoint.contract.names import API_VERSION

from savepoint_operator.cluster.errors import NotFound


@dataclass(frozen=True)
class Kind:
    """One kind of the API."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """The API group; empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        """The API version without its group."""
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of an object, or of the list if ``name`` is empty.

        Names also come from owner references and from records in a bucket, which may hold any text, so each one is kept
        within its path segment. Raises NotFound for a name that no object can have.
        """
        parts = ["", "apis" if self.group else "api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        parts += [_segment(part) for part in (name, subresource) if part]
        return "/".join(parts)


def _segment(name: str) -> str:
    if name in (".", "..") or "/" in name or "%" in name:
        raise NotFound(f"{name!r:.120} is not a valid object name")
    return quote(name, safe="")


CHECKPOINTS: Final = Kind(API_VERSION, "AgentCheckpoint", "agentcheckpoints")
RESTORES: Final = Kind(API_VERSION, "AgentRestore", "agentrestores")
POLICIES: Final = Kind(API_VERSION, "AgentCheckpointPolicy", "agentcheckpointpolicies")
AGENTS: Final = Kind(API_VERSION, "ProtectedAgent", "protectedagents")
STORES: Final = Kind(API_VERSION, "AgentCheckpointStore", "agentcheckpointstores", namespaced=False)

PODS: Final = Kind("v1", "Pod", "pods")
CLAIMS: Final = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
NODES: Final = Kind("v1", "Node", "nodes", namespaced=False)
SECRETS: Final = Kind("v1", "Secret", "secrets")
NAMESPACES: Final = Kind("v1", "Namespace", "namespaces", namespaced=False)
EVENTS: Final = Kind("v1", "Event", "events")
LEASES: Final = Kind("coordination.k8s.io/v1", "Lease", "leases")
DEPLOYMENTS: Final = Kind("apps/v1", "Deployment", "deployments")
REPLICASETS: Final = Kind("apps/v1", "ReplicaSet", "replicasets")
STATEFULSETS: Final = Kind("apps/v1", "StatefulSet", "statefulsets")
JOBS: Final = Kind("batch/v1", "Job", "jobs")
TOKEN_REVIEWS: Final = Kind("authentication.k8s.io/v1", "TokenReview", "tokenreviews", namespaced=False)
WEBHOOKS: Final = Kind(
    "admissionregistration.k8s.io/v1", "MutatingWebhookConfiguration", "mutatingwebhookconfigurations", namespaced=False
)

OWN: Final = (STORES, POLICIES, AGENTS, CHECKPOINTS, RESTORES)
WORKLOADS: Final = (DEPLOYMENTS, STATEFULSETS, JOBS)
WATCHED: Final = (*OWN, PODS, NODES, *WORKLOADS)
"""Listed in this order at the start: stores and policies before the pods that use them."""
OWNER_KINDS: Final = {each.kind: each for each in (DEPLOYMENTS, REPLICASETS, STATEFULSETS, JOBS)}
