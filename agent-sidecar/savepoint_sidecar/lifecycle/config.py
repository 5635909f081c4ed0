"""Configuration of an incarnation: its folders, its grace period, and its sources of time and randomness. Values."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from savepoint.contract.agent_protocol import FEATURE_REATTACH

from savepoint_sidecar.files.ownership import ProcessUser
from savepoint_sidecar.files.roots import Root


@dataclass(frozen=True)
class IncarnationConfig:
    """The configuration of one incarnation: of a container, or of one run on a laptop."""

    roots: tuple[Root, ...]
    stage: Path
    socket_path: Path
    pod_uid: str
    grace_seconds: float
    roots_sequence: int | None = None
    """The sequence of the checkpoint that the roots hold, if no process of the agent has run since; else None. The
    first connect then does not compare the files."""
    component_names: Mapping[str, str] = field(default_factory=dict)
    """New names of a loaded checkpoint's components, by the names under which it was stored."""
    damage_remedy: str = ""
    """Remedy for a damaged checkpoint, for the error that reports it."""
    reword: Callable[[str], str] = str
    """Returns a message for the agent in the terms of where it runs."""
    features: tuple[str, ...] = (FEATURE_REATTACH,)
    user: ProcessUser = field(default_factory=ProcessUser.of_this_process)
    """The uid under which the incarnation reads and restores files."""


@dataclass(frozen=True)
class Clock:
    """Sources of time and randomness."""

    now: Callable[[], datetime]
    monotonic: Callable[[], float]
    time_ns: Callable[[], int]
    random_id: Callable[[], str]
    """Returns 32 hexadecimal digits."""
