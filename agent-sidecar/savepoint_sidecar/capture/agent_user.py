"""Finds out under which uid the agent runs: from the process that connects, or from the owners of its files.

An image may set the uid, and then nothing in the pod's specification says it. A checkpoint records what was found out,
so that no restore gives the files to another user.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from savepoint.contract.names import ANNOTATION_RUN_AS_USER
from savepoint.contract.vocabulary import UidSource
from savepoint.errors import RunAsUserRequired

from savepoint_sidecar.capture.draft import Draft
from savepoint_sidecar.files.ownership import ROOT, ProcessUser, remedy
from savepoint_sidecar.files.walk import FileNode

_FIELDS: Final[Mapping[UidSource, str]] = {
    UidSource.ANNOTATION: f"annotation {ANNOTATION_RUN_AS_USER} of the pod template",
    UidSource.POLICY: "spec.injection.runAsUser of the policy",
}


class AgentUser:
    """The agent's uid, as far as its files and its process show it."""

    def __init__(self, process: ProcessUser, started_ns: int) -> None:
        """``started_ns``: when this process started, by the clock of the file system's time stamps."""
        self._process, self._started_ns = process, started_ns
        self.connected: int | None = None
        """The uid of the agent's process that connected last."""

    def examine(self, drafts: Sequence[Draft]) -> int | None:
        """Return the agent's uid; None if nothing shows it.

        RunAsUserRequired if files of the agent could not be read, or if each of its later pods would be given another
        uid than it has.
        """
        errors = [error for draft in drafts for error in (*draft.unreadable.values(), *draft.walk.unreadable.values())]
        uid = self._uid(drafts, errors)
        if uid is None or uid == self._process.uid:
            return uid
        own = next((error for error in errors if error.owner == uid), None)
        if own is not None:
            raise own
        field = _FIELDS.get(self._process.source) if self._process.source is not None else None
        if field is not None and uid != ROOT:
            raise RunAsUserRequired(
                f"the agent runs as uid {uid}, but {field} says {self._process.uid}, and a restore would give it files "
                f"that it cannot write. Correct that number. {remedy(uid)}",
                uid,
            )
        return uid

    def _uid(self, drafts: Sequence[Draft], errors: Iterable[RunAsUserRequired]) -> int | None:
        if self._process.is_agents:
            return self._process.uid
        if self.connected is not None:
            return self.connected
        nodes = [node for draft in drafts for node in draft.walk.nodes]
        owners = Counter(node.uid for node in nodes)
        owners.update(error.owner for error in errors if error.owner is not None)
        if self._process.uid != ROOT and owners[self._process.uid]:
            return self._process.uid
        written = self._written(nodes)
        if self._process.uid == ROOT and written:
            return _most_common(written)
        del owners[ROOT]  # images and init containers leave files of root behind
        return _most_common(owners) if owners else None

    def _written(self, nodes: Iterable[FileNode]) -> Counter[int]:
        """Return the owners of what was created or changed since this process started, so not by a restore."""
        return Counter(node.uid for node in nodes if node.signature.ctime_ns >= self._started_ns)


def _most_common(owners: Counter[int]) -> int:
    """Return the uid that most entries belong to, the largest of several."""
    return max(owners, key=lambda uid: (owners[uid], uid))
