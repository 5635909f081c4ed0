"""Containers that keep crashing after their agent's state was restored, and what to do about it. Pure.

A checkpoint can be read and still not suit the agent: files that it cannot write, state that its new code rejects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from savepoint_operator.model.objects import CheckpointObject, ContainerExit, Pod

STAYED_UP: Final = timedelta(seconds=120)
"""A container that has run for this long does not crash because of what was restored."""
MIN_RESTARTS: Final = 2
"""A single crash is not a loop."""


@dataclass(frozen=True)
class CrashLoop:
    """A container that has crashed again and again since its pod's state was restored."""

    pod: Pod
    container: ContainerExit


@dataclass(frozen=True)
class Crashes:
    """The restarts of a pod's containers since its state was restored."""

    restarts: int = 0
    """Number of restarts of the container that was restarted most."""
    loop: CrashLoop | None = None
    message: str = ""
    """The loop and its remedy; empty if there is none."""

    def status(self) -> dict[str, Any]:
        """Return the fields of a ProtectedAgent's status; None removes one."""
        loop = None
        if self.loop is not None:
            found = self.loop.container
            loop = {"containerName": found.name, "exitCode": found.exit_code, "reason": found.reason or None}
        return {"restartsSinceRestore": self.restarts or None, "crashLoop": loop}


def crashes_of(pod: Pod, restored: str, checkpoints: Sequence[CheckpointObject], now: datetime) -> Crashes:
    """Return the restarts of this pod's containers. ``restored``: the checkpoint with which it started."""
    restarts = max((each.restarts for each in pod.exits), default=0)
    looping = [each for each in pod.exits if _keeps_crashing(each, now)]
    if not looping:
        return Crashes(restarts)
    loop = CrashLoop(pod, max(looping, key=lambda each: each.restarts))
    return Crashes(restarts, loop, _message(loop, restored, _earlier(checkpoints, restored)))


def _keeps_crashing(container: ContainerExit, now: datetime) -> bool:
    """Return whether the container has crashed more than once and has not stayed up since."""
    if container.exit_code == 0 or container.restarts < MIN_RESTARTS:
        return False
    return container.running_since is None or now - container.running_since < STAYED_UP


def _message(loop: CrashLoop, restored: str, earlier: str) -> str:
    pod, found = loop.pod.meta.name, loop.container
    cause = f" ({found.reason})" if found.reason not in ("", "Error") else ""
    back = f"kubectl savepoint rollback {earlier}" if earlier else "kubectl savepoint reset starts over"
    return (
        f"Container {found.name} of pod {pod} has restarted {found.restarts} times since {restored} was restored; it "
        f"last exited with code {found.exit_code}{cause}. The cause is in its log: kubectl logs {pod} -c {found.name} "
        f"--previous. If it is the restored state, go back: {back}."
    )


def _earlier(checkpoints: Sequence[CheckpointObject], restored: str) -> str:
    """Return the name of the newest checkpoint before the restored one; empty if there is none."""
    number = next((each.number for each in checkpoints if each.meta.name == restored), 0)
    older = [each for each in checkpoints if each.ready and not each.meta.deleting and 0 < each.number < number]
    return max(older, key=lambda each: each.number).meta.name if older else ""
