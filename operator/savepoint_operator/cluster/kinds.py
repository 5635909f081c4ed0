"""Which kinds of the API the operator touches, and where they are. Constants and paths; no I/O."""

from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from savepoint.contract.names import API_VERSION

from savepoint_operator.cluster.errors import Missing


@dataclass(frozen=True)
class Kind:
    """One kind of the API."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True

    @property
    def group(self) -> str:
        """Empty for the core group."""
        return self.api_version.rpartition("/")[0]

    @property
    def version(self) -> str:
        return self.api_version.rpartition("/")[2]

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of the list when there is no name. Missing for what no object can be named.

        Names come from owner references and records as well, which may hold any text: none leads out of its part.
        """
        parts = ["", "apis" if self.group else "api", self.api_version]
        if self.namespaced and namespace:
            parts += ["namespaces", _segment(namespace)]
        parts.append(self.plural)
        parts += [_segment(part) for part in (name, subresource) if part]
        return "/".join(parts)


def _segment(name: str) -> str:
    if name in (".", "..") or "/" in name or "%" in name:
        raise Missing(f"no object can be named {name!r:.120}")
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
"""In the order in which they are listed at the start: policies and stores before the pods that use them."""
OWNER_KINDS: Final = {each.kind: each for each in (DEPLOYMENTS, REPLICASETS, STATEFULSETS, JOBS)}
