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
    "ProtectionState",
    "Reason",
    "RestoreMode",
    "RestoreOutcome",
    "RestorePhase",
    "Trigger",
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
