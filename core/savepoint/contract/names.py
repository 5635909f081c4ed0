"""Names that cross a process boundary: labels, annotations, environment, volumes, ports. Constants only."""

from typing import Final

GROUP: Final = "savepoint.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
AUDIENCE: Final = GROUP

# On pods, and on every object that Savepoint creates.
LABEL_AGENT: Final = f"{GROUP}/agent"
ANNOTATION_STATE: Final = f"{GROUP}/state"
ANNOTATION_MOVED_FROM: Final = f"{GROUP}/moved-from"  # on a pod: the workload that ran the agent before, "Kind/name"
ANNOTATION_RUN_AS_USER: Final = f"{GROUP}/run-as-user"
ANNOTATION_CHECKPOINT_NOW: Final = f"{GROUP}/checkpoint-now"
ANNOTATION_INJECTED: Final = f"{GROUP}/injected"  # version of the injection; set by the webhook
ANNOTATION_CONFIG_HASH: Final = f"{GROUP}/config-hash"  # of the pod as its owner wrote it; set by the webhook
AGENT_NAME_MAX: Final = 52

# Injected containers and volumes.
CONTAINER_RESTORE: Final = "savepoint-restore"
CONTAINER_SIDECAR: Final = "savepoint-sidecar"
VOLUME_SOCKET: Final = "savepoint-socket"
VOLUME_STAGE: Final = "savepoint-stage"
VOLUME_TOKEN: Final = "savepoint-token"  # noqa: S105 - a volume's name
VOLUME_NO_API_TOKEN: Final = "savepoint-no-api-token"  # noqa: S105 - a volume's name
STATE_VOLUME_PREFIX: Final = "savepoint-state-"  # of emptyDirs for state paths that are not volumes already

# Environment of the agent's container.
ENV_SOCKET: Final = "SAVEPOINT_SOCKET"
ENV_STAGE: Final = "SAVEPOINT_STAGE"
ENV_REQUIRED: Final = "SAVEPOINT_REQUIRED"
SOCKET_DIRECTORY: Final = "/run/savepoint/socket"
SOCKET_PATH: Final = f"{SOCKET_DIRECTORY}/agent.sock"
STAGE_DIRECTORY: Final = "/run/savepoint/stage"

# Environment of the injected containers.
ENV_CONTROL_URL: Final = "SAVEPOINT_CONTROL_URL"  # wss://…:8443/v1/control
ENV_CONTROL_CA: Final = "SAVEPOINT_CONTROL_CA"  # PEM
ENV_ROOTS: Final = "SAVEPOINT_ROOTS"  # JSON list of {"name","mountPath","path","persistent","chosen"}
ENV_POD_NAME: Final = "SAVEPOINT_POD_NAME"
ENV_POD_NAMESPACE: Final = "SAVEPOINT_POD_NAMESPACE"
ENV_POD_UID: Final = "SAVEPOINT_POD_UID"
ENV_NODE_NAME: Final = "SAVEPOINT_NODE_NAME"
ENV_GRACE_SECONDS: Final = "SAVEPOINT_GRACE_SECONDS"
ENV_UID_SOURCE: Final = "SAVEPOINT_UID_SOURCE"  # a vocabulary.UidSource
TOKEN_DIRECTORY: Final = "/var/run/secrets/savepoint.dev/token"  # noqa: S105 - a path
TOKEN_PATH: Final = f"{TOKEN_DIRECTORY}/token"
API_TOKEN_DIRECTORY: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a path
STATE_DIRECTORY: Final = "/savepoint/state"  # where the injected containers see the agent's volumes

MARKER_DIRECTORY: Final = ".savepoint"
MARKER_PATH: Final = f"{MARKER_DIRECTORY}/marker.json"

CONTROL_PORT: Final = 8443
WEBHOOK_PORT: Final = 9443
HEALTH_PORT: Final = 8080  # liveness, readiness and /metrics
