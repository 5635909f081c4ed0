"""The messages of docs/control-protocol.md between pod and operator, as frozen dataclasses, and their JSON text.

Field names are camelCase on the wire, and ``type`` is the class name in snake_case. Decoding ignores unknown fields,
refuses wrong types, and builds only the classes listed here. The module does no I/O; sockets and HTTP are elsewhere.
"""

import json
import re
import typing
from dataclasses import dataclass, field
from typing import Any, Final

from savepoint.contract import codec
from savepoint.contract.capture_report import CaptureReport
from savepoint.contract.shrinkage import DEFAULT_PERCENT, Shrinkage
from savepoint.contract.vocabulary import ChangeDetection, OnContainerRestart, OnUnknownFiles

PROTOCOL_VERSION: Final = 1
MESSAGE_MAX_BYTES: Final = 1 << 20
URL_KEYS_MAX: Final = 64
HEARTBEAT_SECONDS: Final = 5

ProtocolError = codec.ProtocolError  # so that users of this protocol import one module

# Both ends belong to this project, so a null is accepted only for optional fields. Negative integers are accepted here
# and bounded where they are used. Errors name the whole path, because messages nest.
_CODEC: Final = codec.Codec(null_is_absent=False, smallest_integer=1 - codec.INTEGER_LIMIT, full_paths=True)


# -- parts of messages -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectName:
    """The last path element of an object in the repository, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class CheckpointRef:
    """A committed checkpoint, which the sidecar restores from and deduplicates against."""

    name: str  # the AgentCheckpoint's name, "<agent>-<number>"
    number: int
    sequence: int
    time: str
    manifest: ObjectName
    rolled_back: bool = False  # a rollback chose it; otherwise it is the newest checkpoint


@dataclass(frozen=True)
class MovedRoot:
    """A root that is mounted at another path than before, by its names."""

    old: str
    new: str


@dataclass(frozen=True)
class PolicyTerms:
    """The part of the policy in force that a sidecar needs."""

    quiesce_timeout_seconds: int = 10
    hold_seconds: int = 5
    exclude: tuple[str, ...] = ()
    on_container_restart: str = OnContainerRestart.KEEP_LOCAL
    on_unknown_files: str = OnUnknownFiles.REFUSE
    shrink_percent: int = DEFAULT_PERCENT
    moved: tuple[MovedRoot, ...] = ()
    dropped: tuple[str, ...] = ()  # names of roots that a start may leave out
    change_detection: str = ChangeDetection.AUTO  # Auto or Stat


@dataclass(frozen=True)
class AttemptState:
    """An attempt in flight, repeated after a reconnect. ``stage`` is a vocabulary.CheckpointPhase."""

    attempt: str
    stage: str


@dataclass(frozen=True)
class Timing:
    """The times of an attempt, as UTC timestamps, and the length of its pause."""

    start: str
    quiesced: str | None = None
    resumed: str | None = None
    pause_milliseconds: int | None = None


@dataclass(frozen=True)
class ComponentSummary:
    """One component, as shown in status.components."""

    name: str
    kind: str
    digest: str
    size: int


# -- from the pod -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """The first message of either role ("restore" or "sidecar")."""

    role: str
    protocol: int
    version: str
    node: str = ""
    epoch: int = 0  # the epoch the sidecar believes it holds; 0 if it does not know yet
    attempts: tuple[AttemptState, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """Sent every HEARTBEAT_SECONDS.

    ``session`` is true while an SDK is connected; ``detail`` is what the agent is doing ("step crawl, 94 s").
    """

    session: bool = False
    detail: str = ""


@dataclass(frozen=True)
class NeedUrls:
    """A request for presigned URLs of exact keys, relative to the repository (packs/…, manifests/…)."""

    request: str
    put: tuple[str, ...] = ()
    get: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """The progress of an attempt or, with an empty ``attempt``, of a restore; sent at most every 2 s."""

    attempt: str
    stage: str
    percent: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    reason: str = ""  # why a restore is failing and being retried; empty while it makes progress
    message: str = ""


@dataclass(frozen=True)
class Offer:
    """A request to commit an attempt whose objects are all stored."""

    attempt: str
    manifest: ObjectName
    packs: tuple[ObjectName, ...]  # new packs of this attempt only
    trigger: str
    consistency: str
    logical_bytes: int
    stored_bytes: int
    uploaded_bytes: int
    timing: Timing
    components: tuple[ComponentSummary, ...] = ()
    step: str | None = None
    open_operations: int = 0
    uncertain_operations: tuple[str, ...] = ()  # the first of them
    completed: bool = False
    shrinkages: tuple[Shrinkage, ...] = ()  # losses of state, now or before, that no checkpoint has made up for
    agent_uid: int | None = None  # the uid under which the agent runs, if the sidecar runs under another
    capture: CaptureReport | None = None  # what the capture of files found out, if there are files
    uncertain_count: int = 0  # the count of all uncertain operations, where not all are listed


@dataclass(frozen=True)
class Result:
    """The end of an attempt without an offer. ``outcome`` is Unchanged or Failed."""

    attempt: str
    outcome: str
    reason: str = ""
    message: str = ""
    pause_milliseconds: int | None = None
    agent_uid: int | None = None  # as in an offer


@dataclass(frozen=True)
class RequestCheckpoint:
    """A request from the pod for a checkpoint: for the agent itself, a shutdown, or the end of the run."""

    request: str
    trigger: str
    reason: str = ""


@dataclass(frozen=True)
class Released:
    """This incarnation does nothing more under its epoch; a successor may be granted the next one."""

    epoch: int
    completed: bool = False
    message: str = ""


@dataclass(frozen=True)
class Replaced:
    """Files that a restore replaced, and where they are now."""

    path: str  # the folder that they were moved to, as the agent sees it
    entries: int
    names: tuple[str, ...] = ()  # paths of the first ones


@dataclass(frozen=True)
class Outcome:
    """The end of a restore. ``outcome`` is a vocabulary.RestoreOutcome, or the reason of a failure."""

    outcome: str
    message: str = ""
    object_key: str = ""
    bytes_restored: int = 0
    milliseconds: int = 0
    config_changed: bool = False  # the checkpoint's configuration hash differs from the pod's
    replaced: tuple[Replaced, ...] = ()  # files that it moved to .savepoint, by folder


# -- from the operator ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Welcome:
    """The pod's identity and rights.

    ``key`` is the agent's key in hexadecimal; it is kept in memory only.
    """

    agent: str
    namespace: str
    epoch: int
    run: int
    key: str = field(repr=False)
    config_hash: str
    policy: PolicyTerms
    parent: CheckpointRef | None = None
    pending_key: str = ""
    pending_url: str = field(default="", repr=False)
    store_ca: str = ""  # PEM; empty means the system's root certificates
    shared_roots: tuple[str, ...] = ()  # state roots that other pods may write to; never read, never written


@dataclass(frozen=True)
class Grant:
    """The answer to role restore: a welcome under a new epoch.

    The welcome's ``parent`` is the checkpoint to restore; None means start fresh.
    """

    welcome: Welcome


@dataclass(frozen=True)
class Wait:
    """The reason for which the init container must wait, and what would end the wait."""

    reason: str
    message: str


@dataclass(frozen=True)
class Refused:
    """A refusal of the offer or request that ``attempt`` or ``request`` names, or of the whole connection."""

    reason: str
    message: str
    attempt: str = ""
    request: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Take a checkpoint now. ``after`` is Resume or Terminate."""

    attempt: str
    trigger: str
    deadline_seconds: int
    after: str = "Resume"
    request: str = ""


@dataclass(frozen=True)
class Urls:
    """Presigned URLs by key."""

    request: str
    put: dict[str, str] = field(default_factory=dict, repr=False)
    get: dict[str, str] = field(default_factory=dict, repr=False)
    expires_seconds: int = 3600


@dataclass(frozen=True)
class Committed:
    """The commit record exists."""

    attempt: str
    checkpoint: CheckpointRef


@dataclass(frozen=True)
class Ack:
    """The answer to heartbeat, result, outcome and released; ``of`` is that message's type."""

    of: str


@dataclass(frozen=True)
class Stop:
    """Capture and offer nothing more; ``reason`` says why, for example Fenced."""

    reason: str
    message: str


FromPod = Hello | Heartbeat | NeedUrls | Progress | Offer | Result | RequestCheckpoint | Released | Outcome
FromOperator = Welcome | Grant | Wait | Refused | Checkpoint | Urls | Committed | Ack | Stop
Message = FromPod | FromOperator


def type_name(cls: type[Any]) -> str:
    """Return the wire type of a message class: ``NeedUrls`` becomes ``need_urls``."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", cls.__name__).lower()


_BY_TYPE: Final[dict[str, type[Message]]] = {
    type_name(cls): cls for cls in (*typing.get_args(FromPod), *typing.get_args(FromOperator))
}


def encode(message: Message) -> str:
    """Return one message as JSON text."""
    head = {"v": PROTOCOL_VERSION, "type": type_name(type(message))}
    return json.dumps({**head, **codec.encode_fields(message)}, separators=(",", ":"))


def decode(text: str | bytes) -> Message:
    """Return the message in JSON text. Raises ProtocolError that names the field."""
    if len(text) > MESSAGE_MAX_BYTES:
        raise ProtocolError(f"message of {len(text)} bytes; at most {MESSAGE_MAX_BYTES}")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("not JSON") from error
    if not isinstance(raw, dict) or raw.get("v") != PROTOCOL_VERSION:
        raise ProtocolError(f"not a message of protocol {PROTOCOL_VERSION}")
    cls = _BY_TYPE.get(str(raw.get("type")))
    if cls is None:
        raise ProtocolError(f"unknown message type {str(raw.get('type'))[:40]!r}")
    message: Message = _CODEC.decode(cls, raw, type_name(cls))
    return message
