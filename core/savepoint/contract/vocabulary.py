"""The vocabulary that crosses a process boundary: phases, triggers, outcomes and the reasons users see. Constants only.

Every member is a string equal to what is written on the wire, in status fields and in Events. Reasons are in a module
of their own, ``savepoint.contract.reasons``, and are imported from here.
"""

from enum import StrEnum

from savepoint.contract.reasons import Reason

__all__ = [
    "CheckpointOutcome",
    "CheckpointPhase",
    "ComponentKind",
    "Consistency",
    "OnContainerRestart",
    "OnUnknownFiles",
    "ProtectionState",
    "Reason",
    "RestoreMode",
    "RestoreOutcome",
    "RestorePhase",
    "Trigger",
    "UidSource",
]


class CheckpointPhase(StrEnum):
    """The progress of a checkpoint attempt. Also the reason of ``Ready=False`` while the attempt runs."""

    QUIESCING = "Quiescing"
    """The sidecar waits for the agent's next safe point."""
    CAPTURING = "Capturing"
    """The sidecar reads the agent's state: first while the agent runs, then, briefly, while it is paused."""
    UPLOADING = "Uploading"
    """The agent runs again while its state is uploaded."""
    COMMITTING = "Committing"
    """Everything is stored; the operator writes the commit record."""


class RestorePhase(StrEnum):
    """The progress of a restore. Also the reason of ``Succeeded=Unknown`` while the restore runs."""

    FETCHING = "Fetching"
    """The pod holds its epoch and starts to read its checkpoint."""
    RESTORING = "Restoring"
    """The checkpoint's bytes are verified and written."""


class Trigger(StrEnum):
    """The cause of a checkpoint."""

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
    """The agent requested it."""
    FINISH = "Finish"
    """The agent finished its run. Shown to users as ``Agent``."""


class CheckpointOutcome(StrEnum):
    """The result of a checkpoint attempt."""

    READY = "Ready"
    """The checkpoint was committed."""
    UNCHANGED = "Unchanged"
    """Nothing differed from the latest checkpoint, so nothing was committed."""
    DEFERRED = "Deferred"
    """The checkpoint is complete in the store, for an operator that could not be reached. Never on the wire."""
    FAILED = "Failed"
    """Nothing was committed; a ``Reason`` says why."""


class RestoreOutcome(StrEnum):
    """The result of a successful restore. A failed restore reports a ``Reason`` instead."""

    RESTORED = "Restored"
    """The checkpoint's files and documents are in place."""
    FRESH = "Fresh"
    """There is no checkpoint; the agent starts from nothing."""
    KEPT_LOCAL = "KeptLocal"
    """The pod's own volumes hold state at least as new as the checkpoint; it was kept."""


class RestoreMode(StrEnum):
    """The kind of restore that an AgentRestore requests."""

    RESUME = "Resume"
    """Created by the operator for every start of an agent's pod."""
    ROLLBACK = "Rollback"
    """Return to an earlier checkpoint."""
    RESET = "Reset"
    """Start the agent over, without a checkpoint."""


class OnContainerRestart(StrEnum):
    """The treatment of an agent's files when its container or process starts again in place."""

    KEEP_LOCAL = "KeepLocal"
    """They stay as they are."""
    RESTORE = "Restore"
    """They go back to the latest checkpoint; what differs is moved to .savepoint."""


class OnUnknownFiles(StrEnum):
    """The treatment of a persistent volume that holds files of unknown origin."""

    REFUSE = "Refuse"
    """Nothing is changed, and the agent does not start: TargetNotEmpty."""
    MOVE_ASIDE = "MoveAside"
    """They are moved to .savepoint, and the checkpoint is restored."""


class ChangeDetection(StrEnum):
    """The way in which it is decided that a file did not change, and is not read again."""

    AUTO = "Auto"
    """Stat where the file system was seen to be reliable, Contents elsewhere."""
    STAT = "Stat"
    """An equal stat counts as equal content."""
    CONTENTS = "Contents"
    """Contents are read and compared at every checkpoint."""


class Consistency(StrEnum):
    """The guarantee that a checkpoint gives about the moment it captures."""

    APPLICATION = "Application"
    """Taken at a safe point while the agent was paused; every file was captured, and none changed meanwhile."""
    FUZZY = "Fuzzy"
    """Read while the agent ran, or something else changed files: they may date from slightly different moments, and
    what could not be read is left out. The log names the files."""


class ComponentKind(StrEnum):
    """The kind of state in one component of a checkpoint."""

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


class UidSource(StrEnum):
    """The source of the injected containers' uid; it decides whether the agent certainly runs under that uid too."""

    POD = "Pod"
    """The pod's securityContext: the kubelet runs the agent under it too."""
    ANNOTATION = "Annotation"
    """The pod's annotation savepoint.dev/run-as-user."""
    POLICY = "Policy"
    """The policy's spec.injection.runAsUser."""
    OBSERVED = "Observed"
    """An earlier pod of the agent, whose files belonged to this uid."""
    NONE = "None"
    """Nothing: the containers run as uid 0, and the agent under the uid of its image."""
