"""The words that cross a process boundary: phases, triggers, outcomes and the reasons users see. Constants only.

Every member is a string equal to what is written on the wire, in status fields and in Events. Each reason has a page,
``docs/reasons/<Reason>.md``; a test derives the list of pages, and the index of that folder, from ``Reason``.
"""

from enum import StrEnum
from typing import NewType, Self

AttemptId = NewType("AttemptId", str)
"""Identifies one checkpoint attempt: the UID of its AgentCheckpoint, or 32 random hexadecimal digits."""


class Phase(StrEnum):
    """How far a checkpoint attempt has got. Also the reason of ``Ready=False`` while the attempt runs."""

    QUIESCING = "Quiescing"
    """The sidecar waits for the agent's next safe point."""
    CAPTURING = "Capturing"
    """The sidecar reads the agent's state: first while the agent runs, then, briefly, while it is paused."""
    UPLOADING = "Uploading"
    """The agent runs again; its state is being stored."""
    COMMITTING = "Committing"
    """Everything is stored; the operator writes the commit record."""


class RestorePhase(StrEnum):
    """How far a restore has got. Also the reason of ``Succeeded=Unknown`` while the restore runs."""

    FETCHING = "Fetching"
    """The pod holds its epoch and starts to read its checkpoint."""
    RESTORING = "Restoring"
    """Bytes are verified and written."""


class Trigger(StrEnum):
    """Why a checkpoint was taken."""

    MANUAL = "Manual"
    """A user created an AgentCheckpoint or set the checkpoint-now annotation."""
    INTERVAL = "Interval"
    """The policy's interval was due."""
    DRAIN = "Drain"
    """The pod was evicted."""
    SHUTDOWN = "Shutdown"
    """The pod, or the supervised process, was asked to stop."""
    ROLLBACK = "Rollback"
    """The final checkpoint before a rollback or reset, so that it can be undone."""
    AGENT = "Agent"
    """The agent asked for it."""
    FINISH = "Finish"
    """The agent finished its run. Shown to users as ``Agent``."""


class CheckpointOutcome(StrEnum):
    """How a checkpoint attempt ended."""

    READY = "Ready"
    """Committed."""
    UNCHANGED = "Unchanged"
    """Nothing differed from the latest checkpoint, so nothing was committed."""
    DEFERRED = "Deferred"
    """Complete, and left in the store for an operator that could not be reached. Never on the wire."""
    FAILED = "Failed"
    """Nothing was committed; a ``Reason`` says why."""


class RestoreOutcome(StrEnum):
    """How a restore ended well. A failed restore reports a ``Reason`` instead."""

    RESTORED = "Restored"
    """The checkpoint's files and documents are in place."""
    FRESH = "Fresh"
    """There is no checkpoint; the agent starts from nothing."""
    KEPT_LOCAL = "KeptLocal"
    """The pod's own volumes hold state at least as new as the checkpoint; it was kept."""


class RestoreMode(StrEnum):
    """What an AgentRestore asks for."""

    RESUME = "Resume"
    """Created by the operator for every start of an agent's pod."""
    ROLLBACK = "Rollback"
    """Return to an earlier checkpoint."""
    RESET = "Reset"
    """Start the agent over, without a checkpoint."""


class Consistency(StrEnum):
    """What a checkpoint proves about the moment it shows."""

    APPLICATION = "Application"
    """Taken at a safe point while the agent was paused."""
    FUZZY = "Fuzzy"
    """Read while the agent ran; files may be of slightly different moments."""


class ComponentKind(StrEnum):
    """What a component of a checkpoint holds."""

    MODEL_WEIGHTS = "ModelWeights"
    OPTIMIZER_STATE = "OptimizerState"
    MEMORY = "Memory"
    KV_CACHE = "KVCache"
    EXECUTION = "Execution"
    TOOLS = "Tools"
    ENVIRONMENT = "Environment"
    FILES = "Files"
    """A file tree; the only kind that the sidecar captures itself."""
    CUSTOM = "Custom"


class ProtectionState(StrEnum):
    """The state of an agent: the reason of condition Protected on its ProtectedAgent."""

    PROTECTED = "Protected"
    AT_RISK = "AtRisk"
    UNPROTECTED = "Unprotected"
    RESTORING = "Restoring"
    COMPLETED = "Completed"


class Reason(StrEnum):
    """Every reason that a condition, an Event, a refusal or an error carries.

    ``seen_in`` says where users meet the reason, as its page does.
    """

    seen_in: str

    def __new__(cls, value: str, seen_in: str) -> Self:
        """Make a member of its text and of the places where users see it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.seen_in = seen_in
        return member

    # Checkpoints

    PENDING = "Pending", "AgentCheckpoint"
    """The checkpoint has been requested and has not started."""
    QUIESCING = "Quiescing", "AgentCheckpoint"
    """The sidecar waits for the agent's next safe point."""
    CAPTURING = "Capturing", "AgentCheckpoint"
    """The sidecar reads the agent's state."""
    UPLOADING = "Uploading", "AgentCheckpoint"
    """The agent runs again; its state is being stored."""
    COMMITTING = "Committing", "AgentCheckpoint"
    """Everything is stored; the operator writes the commit record."""
    READY = "Ready", "AgentCheckpoint, AgentCheckpointStore, AgentCheckpointPolicy"
    """The checkpoint can be restored, the store can be used, or the policy is in force."""
    QUIESCE_TIMEOUT = "QuiesceTimeout", "AgentCheckpoint, Event CheckpointFailed"
    """The agent did not reach a safe point in time and was resumed."""
    STAGE_FULL = "StageFull", "AgentCheckpoint, Event CheckpointFailed"
    """The stage volume has no room for what must be copied during the pause."""
    STATE_TOO_LARGE = "StateTooLarge", "AgentCheckpoint"
    """The state exceeds a limit of the repository format."""
    STATE_UNSTABLE = "StateUnstable", "AgentCheckpoint"
    """Files changed while they were read, although the agent was paused."""
    DEADLINE_EXCEEDED = "DeadlineExceeded", "AgentCheckpoint"
    """The attempt did not finish before its deadline."""
    SOURCE_POD_REPLACED = "SourcePodReplaced", "AgentCheckpoint"
    """The pod ended or was replaced before the checkpoint was committed."""
    AGENT_NOT_RUNNING = "AgentNotRunning", "AgentCheckpoint"
    """No sidecar of the agent has been connected for a minute."""
    ATTEMPT_IN_FLIGHT = "AttemptInFlight", "refusal of a request"
    """Another checkpoint of the same agent is in progress."""
    CHECKPOINT_FAILED = "CheckpointFailed", "Event on AgentCheckpoint and pod"
    """An attempt failed; the Event carries the cause and the last good checkpoint."""
    FENCED = "Fenced", "AgentCheckpoint, messages to the sidecar"
    """A newer pod holds the agent's epoch, so this one can commit nothing."""

    # Restores and rollbacks

    WAITING = "Waiting", "AgentRestore"
    """The restore cannot proceed yet; the message says what it waits for."""
    PREDECESSOR_RUNNING = "PredecessorRunning", "AgentRestore, Event on pod and Deployment, log of savepoint-restore"
    """Another pod still holds the agent's epoch."""
    CLAIM_UNREADABLE = "ClaimUnreadable", "AgentRestore, Event on the pod, log of savepoint-restore"
    """The operator cannot read a PersistentVolumeClaim of the agent."""
    FETCHING = "Fetching", "AgentRestore"
    """The pod holds its epoch and starts to read its checkpoint."""
    RESTORING = "Restoring", "ProtectedAgent, AgentRestore"
    """The pod waits for its epoch or restores its state."""
    RESTORED = "Restored", "AgentRestore, Event on the pod"
    """The agent's files and documents are as the checkpoint has them."""
    FRESH = "Fresh", "AgentRestore, Event on the pod"
    """There is no checkpoint; the agent starts from nothing."""
    KEPT_LOCAL = "KeptLocal", "AgentRestore, Event on the pod"
    """The pod's volumes hold state at least as new as the checkpoint; it was kept."""
    SUCCEEDED = "Succeeded", "AgentRestore"
    """The rollback or reset is recorded and the old pod is gone."""
    CHECKPOINTING = "Checkpointing", "AgentRestore"
    """A final checkpoint is taken before the rollback or reset, so that it can be undone."""
    EVICTING = "Evicting", "AgentRestore"
    """The rollback or reset is recorded; the running pod is being evicted."""
    EVICTION_BLOCKED = "EvictionBlocked", "AgentRestore and its Event"
    """A PodDisruptionBudget forbids evicting the pod now."""
    CHECKPOINT_NOT_FOUND = "CheckpointNotFound", "AgentRestore"
    """The named AgentCheckpoint does not exist in this namespace."""
    CHECKPOINT_NOT_READY = "CheckpointNotReady", "AgentRestore"
    """The named AgentCheckpoint has failed or is still in progress."""
    AGENT_NOT_FOUND = "AgentNotFound", "AgentRestore"
    """No agent of this name has run in this namespace."""
    POD_GONE = "PodGone", "AgentRestore, refusal of a connection"
    """The pod ended before its restore did, or another pod now has its name."""
    NO_SPACE = (
        "NoSpace",
        "AgentRestore and its Event, Event on the pod; AgentCheckpoint, Event CheckpointFailed; SDK",
    )
    """A volume has less free space than the checkpoint needs."""
    TARGET_NOT_EMPTY = "TargetNotEmpty", "AgentRestore and its Event, Event on the pod"
    """A persistent volume holds files that Savepoint did not write, and a checkpoint exists."""
    TARGET_UNUSABLE = "TargetUnusable", "AgentRestore"
    """The agent's volume or the stage cannot be written."""
    SCHEMA_TOO_NEW = "SchemaTooNew", "AgentRestore"
    """The checkpoint was written by a newer version than this one can read."""
    CONFIGURATION_CHANGED = (
        "ConfigurationChanged",
        "Event on the pod; its words also in AgentRestore and in the log of savepoint-restore",
    )
    """The checkpoint was taken under another configuration of the agent's container."""
    SHARED_VOLUME_LEFT_OUT = (
        "SharedVolumeLeftOut",
        "Event on the pod; its words also in the logs of savepoint-restore and savepoint-sidecar",
    )
    """A ReadWriteMany volume that no policy lists is not part of the state."""
    ROLLED_BACK = "RolledBack", "messages to the sidecar, Event on the pod"
    """The agent was rolled back or reset while this pod ran."""
    TIMEOUT = "Timeout", "log of savepoint-restore and its termination message"
    """The init container could not reach the operator in time; it starts again."""
    CANNOT_START = "CannotStart", "Event on the pod; its words also in ProtectedAgent"
    """A container of the pod cannot start."""

    # Agents and policies

    PROTECTED = "Protected", "ProtectedAgent"
    """The agent's recovery point is current, or its next pod has a checkpoint to start from."""
    AT_RISK = "AtRisk", "ProtectedAgent, Event"
    """A restart now would lose more than the policy intends."""
    UNPROTECTED = "Unprotected", "ProtectedAgent, Event on the pod"
    """The pod carries the agent label but nothing checkpoints it."""
    COMPLETED = "Completed", "ProtectedAgent, messages to the sidecar"
    """The run has ended; the next pod starts fresh."""
    AMBIGUOUS_AGENT = "AmbiguousAgent", "AgentRestore, ProtectedAgent, Event on the pod"
    """Several pods claim to be the same agent."""
    SELECTORS_OVERLAP = "SelectorsOverlap", "AgentCheckpointPolicy, condition Conflicting"
    """Another policy selects some of the same pods; the older one applies."""
    NO_CONFLICT = "NoConflict", "AgentCheckpointPolicy, condition Conflicting"
    """No other policy selects the same pods."""
    SUSPENDED = "Suspended", "AgentCheckpointPolicy"
    """The policy's scheduled checkpoints are suspended."""
    LABEL_NOT_ON_TEMPLATE = "LabelNotOnTemplate", "Event on Deployment, StatefulSet or Job"
    """The agent label is on the workload itself, where it has no effect."""

    # Admission

    AGENT_NAME_INVALID = "AgentNameInvalid", "admission, Event on the pod"
    """The agent's name is not a DNS label of at most 52 characters."""
    CONTAINER_NOT_FOUND = "ContainerNotFound", "admission"
    """The policy names a container that the pod does not have."""
    MOUNT_PATH_RESERVED = "MountPathReserved", "admission"
    """A container mounts a volume at one of Savepoint's own paths."""
    PLATFORM_UNSUPPORTED = "PlatformUnsupported", "admission"
    """Windows pods and static pods cannot be protected."""
    PROCESS_NAMESPACE_SHARED = "ProcessNamespaceShared", "admission"
    """The pod shares its process namespace, which would expose the sidecar's keys."""
    RUN_AS_USER_INVALID = "RunAsUserInvalid", "admission"
    """The run-as-user annotation is not a uid."""
    RUN_AS_USER_REQUIRED = (
        "RunAsUserRequired",
        "admission; AgentCheckpoint, Event CheckpointFailed; AgentRestore and its Event, Event on the pod",
    )
    """The sidecar must run as the agent's uid and does not know it, or meets files of another uid."""
    STATE_PATH_INVALID = "StatePathInvalid", "admission"
    """A state path cannot be mounted as a volume, or there are too many."""
    TOKEN_MOUNTED = "TokenMounted", "admission"
    """A container mounts the token that only Savepoint's containers may use."""

    # Stores and integrity

    REACHABLE = "Reachable", "AgentCheckpointStore, condition Available"
    """The store answers."""
    SUPPORTED = "Supported", "AgentCheckpointStore, condition ConditionalWrites"
    """The store supports conditional writes (If-None-Match)."""
    IGNORED = "Ignored", "AgentCheckpointStore, condition ConditionalWrites"
    """The store ignores conditional writes (If-None-Match)."""
    NOT_PROBED = "NotProbed", "AgentCheckpointStore, condition ConditionalWrites"
    """The store could not be probed, so its support for conditional writes is unknown."""
    STORE_READY = "StoreReady", "Event on AgentCheckpointStore"
    """The store can be used, for the first time or again."""
    STORE_UNAVAILABLE = (
        "StoreUnavailable",
        "AgentCheckpointStore and its Event, AgentCheckpoint, AgentRestore and its Event, Event on the pod",
    )
    """The store does not answer, or answers with a transient fault."""
    STORE_DENIED = (
        "StoreDenied",
        "AgentCheckpointStore and its Event, AgentCheckpoint, AgentRestore and its Event, Event on the pod",
    )
    """The store rejects the credentials or the permission."""
    STORE_MISCONFIGURED = (
        "StoreMisconfigured",
        "AgentCheckpointStore and its Event, AgentRestore and its Event, AgentCheckpoint, Event on the pod",
    )
    """The store answers but cannot be used as configured."""
    STORE_NOT_ALLOWED = "StoreNotAllowed", "AgentRestore, AgentCheckpointPolicy, ProtectedAgent, Event on the pod"
    """The store is not open to this namespace."""
    NO_STORE = "NoStore", "AgentRestore, AgentCheckpointPolicy, Event on the pod, log of savepoint-restore"
    """The policy names a store that does not exist, or no store is the default."""
    KEY_MISMATCH = "KeyMismatch", "AgentCheckpointStore and its Event, AgentRestore and its Event, Event on the pod"
    """The store was written under another master key."""
    NOT_ADOPTED = "NotAdopted", "AgentCheckpointStore and its Event, AgentRestore and its Event, Event on the pod"
    """The store belongs to another cluster."""
    INTEGRITY_ERROR = (
        "IntegrityError",
        "AgentRestore and its Event, Event on the pod; AgentCheckpoint, Event CheckpointFailed; ProtectedAgent",
    )
    """Stored bytes are not what was written."""
    ROLLBACK_DETECTED = "RollbackDetected", "ProtectedAgent, AgentRestore"
    """The store holds an older or different chain than the one that was pinned."""
    OBJECT_EXISTS = "ObjectExists", "operator's and sidecar's log"
    """A conditional write found that the object already exists."""
    OBJECT_MISSING = "ObjectMissing", "AgentRestore"
    """The store reports that an object does not exist."""

    # The SDK

    EFFECT_UNCERTAIN = "EffectUncertain", "SDK"
    """An effect was sent before a restart and never confirmed; it may have happened."""
    LOOP_KEY_REPEATED = "LoopKeyRepeated", "SDK"
    """A loop's items produced the same key twice."""
    NOT_AT_SAFE_POINT = "NotAtSafePoint", "SDK"
    """A checkpoint was requested inside ``critical()``."""
    NOT_ENCODABLE = "NotEncodable", "SDK, AgentCheckpoint"
    """A value cannot be saved; the message says where it is."""
    RESTORE_FAILED = "RestoreFailed", "SDK"
    """The state could not be restored, or is not what the program asks for."""
    SESSION_IN_USE = "SessionInUse", "SDK"
    """Another live process is connected as this agent."""
    STEP_CHANGED = "StepChanged", "SDK"
    """A recorded step, effect or loop was called with other arguments."""

    # Connections and the API server

    UNAVAILABLE = "Unavailable", "AgentCheckpoint, AgentRestore and its Event, SDK"
    """The operator, the sidecar or the API server cannot be reached now, or there is nothing to capture."""
    REFUSED = "Refused", "messages to the sidecar"
    """The operator refuses the request; the message says why."""
    NOT_AN_AGENT = "NotAnAgent", "refusal of a connection"
    """The pod does not carry the agent label."""
    CONFLICT = "Conflict", "operator's log"
    """The object already exists or has changed since it was read."""
    FORBIDDEN = "Forbidden", "operator's log, AgentRestore and its Event"
    """The operator's service account lacks a permission."""
    INVALID = "Invalid", "operator's log"
    """The API server rejects what the operator wrote."""
    NOT_FOUND = "NotFound", "operator's log"
    """The object does not exist."""
    ERROR = "Error", "log"
    """A fault without a more specific reason."""
