"""What an incarnation is started with: where its state is, how long it may take to end, and time and chance. Values."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from savepoint.contract.agent_protocol import FEATURE_REATTACH

from savepoint_sidecar.files.roots import Root


@dataclass(frozen=True)
class IncarnationConfig:
    """Of one container's life, or one run on a laptop."""

    roots: tuple[Root, ...]
    stage: Path
    socket_path: Path
    pod_uid: str
    grace_seconds: float
    cut_sequence: int | None = None
    """The cut that the roots hold, if no process of the agent has run since: the first connect need not look."""
    features: tuple[str, ...] = (FEATURE_REATTACH,)


@dataclass(frozen=True)
class Clock:
    """Time and chance, handed in."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    clock_ns: Callable[[], int]
    random_id: Callable[[], str]
    """32 hexadecimal digits."""
