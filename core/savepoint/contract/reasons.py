"""Every reason that users meet: in conditions, Events, refusals and errors. Constants only.

Each ``Reason`` has a page, ``docs/reasons/<Reason>.md``. The index of that folder is generated from ``Reason``; a test
compares the two.
"""

from enum import StrEnum
from typing import Self


class Reason(StrEnum):
    """A reason that a condition, an Event, a refusal or an error carries.

    Each member is its text, its meaning (one sentence), and the places where users see it. The README of docs/reasons
    and the "Seen in" line of each page repeat them: after a change run ``python -m tests.unit.docs.reason_pages``.
    """

    meaning: str
    seen_in: str

    def __new__(cls, value: str, meaning: str, seen_in: str) -> Self:
        """Create a member that equals ``value`` and carries its meaning and the places where users see it."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.meaning = meaning
        member.seen_in = seen_in
        return member

    # Checkpoints

    PENDING = "Pending", "The checkpoint has been requested and has not started.", "AgentCheckpoint"
    QUIESCING = "Quiescing", "The sidecar waits for the agent's next safe point.", "AgentCheckpoint"
    CAPTURING = "Capturing", "The sidecar reads the agent's state.", "AgentCheckpoint"
    UPLOADING = "Uploading", "The agent runs again while its state is uploaded.", "AgentCheckpoint"
    COMMITTING = "Committing", "Everything is stored; the operator writes the commit record.", "AgentCheckpoint"
    READY = (
        "Ready",
        "The checkpoint can be restored, the store can be used, or the policy is in force.",
        "AgentCheckpoint, AgentCheckpointStore, AgentCheckpointPolicy",
    )
    QUIESCE_TIMEOUT = (
        "QuiesceTimeout",
        "The agent did not reach a safe point in time and was resumed.",
        "AgentCheckpoint, Event CheckpointFailed",
    )
    STAGE_FULL = (
        "StageFull",
        "The stage volume has no room for what must be copied during the pause.",
        "AgentCheckpoint, Event CheckpointFailed",
    )
    STATE_TOO_LARGE = "StateTooLarge", "The state exceeds a limit of the repository format.", "AgentCheckpoint"
    STATE_UNSTABLE = (
        "StateUnstable",
        "Files changed while they were read, although the agent was paused.",
        "AgentCheckpoint",
    )
    DATABASE_BUSY = (
        "DatabaseBusy",
        "An SQLite database could not be copied without refusing writes; the checkpoint holds it as before, or not.",
        "logs of savepoint-sidecar and `savepoint run`",
    )
    DEADLINE_EXCEEDED = "DeadlineExceeded", "The attempt did not finish before its deadline.", "AgentCheckpoint"
    SOURCE_POD_REPLACED = (
        "SourcePodReplaced",
        "The pod ended or was replaced before the checkpoint was committed.",
        "AgentCheckpoint",
    )
    AGENT_NOT_RUNNING = "AgentNotRunning", "No sidecar of the agent has been connected for a minute.", "AgentCheckpoint"
    ATTEMPT_IN_FLIGHT = (
        "AttemptInFlight",
        "Another checkpoint of the same agent is in progress.",
        "response to a checkpoint request",
    )
    CHECKPOINT_FAILED = (
        "CheckpointFailed",
        "An attempt failed; the Event carries the cause and the last good checkpoint.",
        "Event on the AgentCheckpoint and on the pod",
    )
    FENCED = (
        "Fenced",
        "A newer pod holds the agent's epoch, so this one can commit nothing.",
        "AgentCheckpoint, message to the sidecar",
    )

    # Restores and rollbacks

    WAITING = "Waiting", "The restore cannot proceed yet; the message says what it waits for.", "AgentRestore"
    PREDECESSOR_RUNNING = (
        "PredecessorRunning",
        "Another pod still holds the agent's epoch.",
        "AgentRestore, Event on the pod and its Deployment, log of savepoint-restore",
    )
    CLAIM_UNREADABLE = (
        "ClaimUnreadable",
        "The operator cannot read a PersistentVolumeClaim of the agent.",
        "AgentRestore, Event on the pod, log of savepoint-restore",
    )
    FETCHING = "Fetching", "The pod holds its epoch and starts to read its checkpoint.", "AgentRestore"
    RESTORING = "Restoring", "The pod waits for its epoch or restores its state.", "ProtectedAgent, AgentRestore"
    RESTORED = "Restored", "The agent's files and documents match the checkpoint.", "AgentRestore, Event on the pod"
    FRESH = "Fresh", "There is no checkpoint; the agent starts from nothing.", "AgentRestore, Event on the pod"
    KEPT_LOCAL = (
        "KeptLocal",
        "The pod's volumes hold state at least as new as the checkpoint; it was kept.",
        "AgentRestore, Event on the pod",
    )
    SUCCEEDED = "Succeeded", "The rollback or reset is recorded and the old pod has ended.", "AgentRestore"
    CHECKPOINTING = (
        "Checkpointing",
        "A final checkpoint is taken before the rollback or reset, so that it can be undone.",
        "AgentRestore",
    )
    EVICTING = "Evicting", "The rollback or reset is recorded; the running pod is being evicted.", "AgentRestore"
    EVICTION_BLOCKED = (
        "EvictionBlocked",
        "A PodDisruptionBudget forbids evicting the pod now.",
        "AgentRestore and its Event",
    )
    CHECKPOINT_NOT_FOUND = (
        "CheckpointNotFound",
        "The named AgentCheckpoint does not exist in this namespace.",
        "AgentRestore",
    )
    CHECKPOINT_NOT_READY = (
        "CheckpointNotReady",
        "The named AgentCheckpoint has failed or is still in progress.",
        "AgentRestore",
    )
    AGENT_NOT_FOUND = (
        "AgentNotFound",
        "No agent of this name has run in this namespace, or is in this store.",
        "AgentRestore, `savepoint log`, `savepoint verify`",
    )
    FILES_REPLACED = (
        "FilesReplaced",
        "A restore moved files aside that the checkpoint does not have, or has with another content.",
        "Event on the pod and the AgentRestore",
    )
    POD_GONE = (
        "PodGone",
        "The pod ended before its restore did, or another pod now has its name.",
        "AgentRestore, response to a sidecar's connection",
    )
    NO_SPACE = (
        "NoSpace",
        "A volume or the store has less free space than the checkpoint needs.",
        "AgentRestore and its Event, Event on the pod, AgentCheckpoint, Event CheckpointFailed, SDK",
    )
    TARGET_NOT_EMPTY = (
        "TargetNotEmpty",
        "A persistent volume holds files that Savepoint did not write, and a checkpoint exists.",
        "AgentRestore and its Event, Event on the pod",
    )
    TARGET_UNUSABLE = "TargetUnusable", "The agent's volume or the stage cannot be written.", "AgentRestore"
    AGENT_NAME_TAKEN = (
        "AgentNameTaken",
        "The agent of this default name has an unfinished run of another command.",
        "`savepoint run`",
    )
    STATE_INEXACT = (
        "StateInexact",
        "The checkpoint is not exactly the state of one moment: files are left out, or changed while it was taken.",
        "Event on the AgentCheckpoint, Event on the pod, `savepoint log`, `savepoint verify`",
    )
    STATE_SHRANK = (
        "StateShrank",
        "The checkpoint holds much less state than the one before it, which is kept.",
        "AgentCheckpoint, ProtectedAgent and their Events, `savepoint log`",
    )
    STATE_LEFT_BEHIND = (
        "StateLeftBehind",
        "The checkpoint holds a state folder that this start neither restores nor drops.",
        "AgentRestore and its Event, Event on the pod, ProtectedAgent, `savepoint run`",
    )
    SCHEMA_TOO_NEW = (
        "SchemaTooNew",
        "The checkpoint was written by a newer version than this one can read.",
        "AgentRestore",
    )
    CONFIGURATION_CHANGED = (
        "ConfigurationChanged",
        "The checkpoint was taken under another configuration of the agent's container.",
        "Event on the pod; its text also in AgentRestore and in the log of savepoint-restore",
    )
    SHARED_VOLUME_LEFT_OUT = (
        "SharedVolumeLeftOut",
        "A ReadWriteMany volume that no policy lists is not part of the state.",
        "Event on the pod; its text also in the logs of savepoint-restore and savepoint-sidecar",
    )
    ROLLED_BACK = (
        "RolledBack",
        "The agent was rolled back or reset while this pod ran.",
        "message to the sidecar, Event on the pod",
    )
    TIMEOUT = (
        "Timeout",
        "The init container could not reach the operator in time; it starts again.",
        "log and termination message of savepoint-restore",
    )
    CANNOT_START = (
        "CannotStart",
        "A container of the pod cannot start.",
        "Event on the pod; its text also in ProtectedAgent",
    )

    # Agents and policies

    PROTECTED = (
        "Protected",
        "The agent's recovery point is current, or its next pod has a checkpoint to start from.",
        "ProtectedAgent",
    )
    AT_RISK = "AtRisk", "A restart now would lose more than it should.", "ProtectedAgent and its Event"
    UNPROTECTED = (
        "Unprotected",
        "The pod carries the agent label but nothing checkpoints it.",
        "ProtectedAgent and its Event, Event on the pod",
    )
    COMPLETED = "Completed", "The run has ended; the next pod starts fresh.", "ProtectedAgent, message to the sidecar"
    AMBIGUOUS_AGENT = (
        "AmbiguousAgent",
        "Several pods claim to be the same agent.",
        "AgentRestore, ProtectedAgent, Event on the pod",
    )
    SELECTORS_OVERLAP = (
        "SelectorsOverlap",
        "Another policy selects some of the same pods; the older policy applies to them.",
        "AgentCheckpointPolicy, condition Conflicting",
    )
    NO_CONFLICT = (
        "NoConflict",
        "No other policy selects the same pods; no other store is the default one or has the same place.",
        "AgentCheckpointPolicy and AgentCheckpointStore, condition Conflicting",
    )
    POLICY_INVALID = (
        "PolicyInvalid",
        "A field of the policy is invalid, for example an exclude pattern; only that part has no effect.",
        "AgentCheckpointPolicy and its Event",
    )
    SUSPENDED = "Suspended", "The policy's scheduled checkpoints are suspended.", "AgentCheckpointPolicy"
    LABEL_NOT_ON_TEMPLATE = (
        "LabelNotOnTemplate",
        "The agent label is on the workload itself, where it has no effect.",
        "Event on the Deployment, StatefulSet or Job",
    )

    # Admission

    AGENT_NAME_INVALID = (
        "AgentNameInvalid",
        "The agent's name is not a DNS label of at most 52 characters.",
        "admission, Event on the pod",
    )
    CONTAINER_NOT_FOUND = "ContainerNotFound", "The policy names a container that the pod does not have.", "admission"
    MOUNT_PATH_RESERVED = (
        "MountPathReserved",
        "A container mounts a volume at one of Savepoint's own paths.",
        "admission",
    )
    PLATFORM_UNSUPPORTED = (
        "PlatformUnsupported",
        "The pod is a Windows pod or a static pod, which cannot be protected.",
        "admission",
    )
    PROCESS_NAMESPACE_SHARED = (
        "ProcessNamespaceShared",
        "The pod shares its process namespace, which would expose the sidecar's keys.",
        "admission",
    )
    RUN_AS_USER_INVALID = (
        "RunAsUserInvalid",
        "Annotation savepoint.dev/run-as-user is not a numeric user ID.",
        "admission",
    )
    CRASH_LOOPING = (
        "CrashLooping",
        "A container keeps crashing since the agent's state was restored.",
        "Event on the ProtectedAgent and on the pod",
    )
    UID_OBSERVED = (
        "UidObserved",
        "The agent's files or its process show a uid that its pod does not declare; its next pod is given it.",
        "Event on the ProtectedAgent",
    )
    RUN_AS_USER_REQUIRED = (
        "RunAsUserRequired",
        "The sidecar must run as the agent's user ID but does not know it, or found files of another user.",
        "admission, AgentCheckpoint, Event CheckpointFailed, AgentRestore and its Event, Event on the pod",
    )
    STATE_PATH_INVALID = (
        "StatePathInvalid",
        "A state path cannot be a state folder, or there are too many.",
        "admission, `savepoint run`",
    )
    TOKEN_MOUNTED = (
        "TokenMounted",
        "A container mounts the token that only Savepoint's containers may use.",
        "admission",
    )

    # Stores and integrity

    REACHABLE = "Reachable", "The store answers.", "AgentCheckpointStore, condition Available"
    SUPPORTED = (
        "Supported",
        "The store supports conditional writes (If-None-Match).",
        "AgentCheckpointStore, condition ConditionalWrites",
    )
    IGNORED = (
        "Ignored",
        "The store ignores conditional writes (If-None-Match).",
        "AgentCheckpointStore, condition ConditionalWrites",
    )
    NOT_PROBED = (
        "NotProbed",
        "The store could not be probed, so its support for conditional writes is unknown.",
        "AgentCheckpointStore, condition ConditionalWrites",
    )
    NOTHING_EXPIRES = (
        "NothingExpires",
        "No lifecycle rule of the bucket deletes or archives the store's objects.",
        "AgentCheckpointStore, condition Retained",
    )
    PACK_LOST = (
        "PackLost",
        "The store no longer holds data that checkpoints need.",
        "Event on the ProtectedAgent and the AgentCheckpoint",
    )
    OBJECTS_EXPIRE = (
        "ObjectsExpire",
        "A lifecycle rule of the bucket deletes or archives objects that checkpoints need.",
        "AgentCheckpointStore, condition Retained, and its Event",
    )
    LIFECYCLE_UNKNOWN = (
        "LifecycleUnknown",
        "The bucket's lifecycle rules cannot be read.",
        "AgentCheckpointStore, condition Retained",
    )
    STORE_READY = (
        "StoreReady",
        "The store can be used, for the first time or again.",
        "Event on the AgentCheckpointStore",
    )
    STORE_UNAVAILABLE = (
        "StoreUnavailable",
        "The store does not answer, or answers with a transient fault.",
        "AgentCheckpointStore and its Event, AgentCheckpoint, AgentRestore and its Event, Event on the pod",
    )
    STORE_DENIED = (
        "StoreDenied",
        "The store rejects the credentials, or they lack a permission.",
        "AgentCheckpointStore and its Event, AgentCheckpoint, AgentRestore and its Event, Event on the pod",
    )
    STORE_MISCONFIGURED = (
        "StoreMisconfigured",
        "The store answers but cannot be used as configured.",
        "AgentCheckpointStore and its Event, AgentRestore and its Event, AgentCheckpoint, Event on the pod",
    )
    DEFAULT_STORE_REPEATED = (
        "DefaultStoreRepeated",
        "Several stores are marked as the default one; the oldest applies.",
        "AgentCheckpointStore, condition Conflicting, and its Event",
    )
    STORE_LOCATION_SHARED = (
        "StoreLocationShared",
        "Another store keeps its checkpoints in the same bucket and prefix.",
        "AgentCheckpointStore, condition Conflicting, and its Event",
    )
    STORE_NOT_ALLOWED = (
        "StoreNotAllowed",
        "The store is not open to this namespace.",
        "AgentRestore, AgentCheckpointPolicy, ProtectedAgent, Event on the pod",
    )
    NO_STORE = (
        "NoStore",
        "The policy names a store that does not exist, or no store is the default.",
        "AgentRestore, AgentCheckpointPolicy, Event on the pod, log of savepoint-restore",
    )
    KEY_MISMATCH = (
        "KeyMismatch",
        "The store was written under another master key.",
        "AgentCheckpointStore and its Event, AgentRestore and its Event, Event on the pod",
    )
    NOT_ADOPTED = (
        "NotAdopted",
        "The bucket and prefix belong to another cluster.",
        "AgentCheckpointStore and its Event, AgentRestore and its Event, Event on the pod",
    )
    INTEGRITY_ERROR = (
        "IntegrityError",
        "Stored bytes differ from what was written.",
        "AgentRestore and its Event, Event on the pod, AgentCheckpoint, Event CheckpointFailed, ProtectedAgent",
    )
    ROLLBACK_DETECTED = (
        "RollbackDetected",
        "The store holds an older or a different chain than the pinned one.",
        "ProtectedAgent, AgentRestore, Event on the AgentCheckpointStore",
    )
    OBJECT_EXISTS = (
        "ObjectExists",
        "A conditional write found that the object already exists.",
        "logs of the operator and the sidecar",
    )
    OBJECT_MISSING = "ObjectMissing", "The store reports that an object does not exist.", "AgentRestore"

    # The SDK

    EFFECT_UNCERTAIN = (
        "EffectUncertain",
        "An effect was sent before a restart and never confirmed; it may have happened.",
        "SDK",
    )
    LOOP_KEY_REPEATED = "LoopKeyRepeated", "A loop's items produced the same key twice.", "SDK"
    NOT_AT_SAFE_POINT = "NotAtSafePoint", "A checkpoint was requested inside critical().", "SDK"
    NOT_ENCODABLE = "NotEncodable", "A value cannot be saved; the message says where it is.", "SDK, AgentCheckpoint"
    RESTORE_FAILED = "RestoreFailed", "The state could not be restored, or is not what the program expects.", "SDK"
    SESSION_IN_USE = "SessionInUse", "Another live process of the container holds the agent's session.", "SDK"
    STEP_CHANGED = "StepChanged", "A recorded step, effect or loop was called with other arguments.", "SDK"

    # Connections and the API server

    UNAVAILABLE = (
        "Unavailable",
        "The operator, the sidecar or the API server cannot be reached now, or there is nothing to capture.",
        "AgentCheckpoint, AgentRestore and its Event, SDK",
    )
    REFUSED = "Refused", "The operator refuses the request; the message says why.", "message to the sidecar"
    NOT_AN_AGENT = "NotAnAgent", "The pod does not carry the agent label.", "response to a sidecar's connection"
    CONFLICT = "Conflict", "The object already exists or has changed since it was read.", "log of the operator"
    FORBIDDEN = (
        "Forbidden",
        "The operator's service account lacks a permission.",
        "log of the operator, AgentRestore and its Event",
    )
    INVALID = "Invalid", "The API server rejects what the operator wrote.", "log of the operator"
    NOT_FOUND = "NotFound", "The object does not exist.", "log of the operator"
    ERROR = "Error", "A fault without a more specific reason.", "logs"
