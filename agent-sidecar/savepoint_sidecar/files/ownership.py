"""The uid of a process that restores an agent's files, and whether the agent can write what it restores.

The injected containers have no capability, so what they restore belongs to their own uid. If the agent has another one,
it cannot write its own files.
"""

import os
from dataclasses import dataclass
from typing import Final

from savepoint.contract.names import ANNOTATION_RUN_AS_USER
from savepoint.contract.vocabulary import UidSource
from savepoint.errors import RunAsUserRequired
from savepoint.repository.read.ownership import may_change_owners

ROOT: Final = 0


@dataclass(frozen=True)
class ProcessUser:
    """The uid of a process that captures and restores an agent's files, and where it comes from."""

    uid: int
    source: UidSource | None = None
    """None: the same user runs this process and the agent, as on a laptop."""

    @classmethod
    def of_this_process(cls, source: UidSource | None = None) -> "ProcessUser":
        """Return the user of this process."""
        return cls(os.geteuid(), source)

    @property
    def is_agents(self) -> bool:
        """True if the agent certainly runs under this uid too: it owns what is restored."""
        return self.source in (None, UidSource.POD)


def require_restorable(user: ProcessUser, agent_uid: int | None, checkpoint: str) -> None:
    """Raise RunAsUserRequired if the agent, which ran as ``agent_uid``, could not write what this process restores.

    Root can write any file, and a checkpoint that does not record the uid is restored as it always was.
    """
    if not agent_uid or agent_uid == user.uid or user.is_agents or may_change_owners():
        return
    raise RunAsUserRequired(
        f"the agent ran as uid {agent_uid} when {checkpoint} was taken, but this container runs as uid {user.uid} and "
        f"may not change owners, so the agent could not write its files; nothing was changed. {remedy(agent_uid)} If "
        "status.runAsUser of the ProtectedAgent is that uid already, it is enough to delete the pod. If the agent has "
        "another uid now, set that one as runAsUser on its container: it is then given the files.",
        agent_uid,
    )


def remedy(uid: int) -> str:
    """Return the ways in which a person declares the agent's uid."""
    return (
        f"Set runAsUser: {uid} on the agent's container, or annotate the pod template with "
        f'{ANNOTATION_RUN_AS_USER}: "{uid}".'
    )
