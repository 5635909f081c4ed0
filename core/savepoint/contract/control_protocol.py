"""The messages of docs/control-protocol.md as frozen dataclasses, with one encoder and one decoder.

It does no I/O and knows neither socket nor HTTP. On the wire names are camelCase and ``type`` is the
snake_case class name; the decoder ignores unknown fields, refuses wrong types, and never builds anything but the
classes listed here.
"""

import functools
import json
import re
import types
import typing
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Final

PROTOCOL_VERSION: Final = 1
MESSAGE_MAX_BYTES: Final = 1 << 20
URL_KEYS_MAX: Final = 64
HEARTBEAT_SECONDS: Final = 5


class ProtocolError(ValueError):
    """A message that is not one of this protocol's."""


# -- parts ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ObjectName:
    """An object under the repository by its last path element, with its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class CheckpointRef:
    """A committed checkpoint: what the sidecar restores from and deduplicates against."""

    name: str  # the AgentCheckpoint's name, "<agent>-<number>"
    number: int
    sequence: int
    time: str
    manifest: ObjectName


@dataclass(frozen=True)
class PolicyTerms:
    """What a sidecar needs to know of the policy in force."""

    quiesce_timeout_seconds: int = 10
    hold_seconds: int = 5
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttemptState:
    """An attempt in flight, restated after a reconnect. stage: Quiescing, Capturing, Uploading, Committing."""

    attempt: str
    stage: str


@dataclass(frozen=True)
class Timing:
    """Times of an attempt; strings are UTC timestamps."""

    start: str
    quiesced: str | None = None
    resumed: str | None = None
    pause_milliseconds: int | None = None


@dataclass(frozen=True)
class ComponentSummary:
    """One component for status.components."""

    name: str
    kind: str
    digest: str
    size: int


# -- from the pod -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Hello:
    """First message of either role ("restore" or "sidecar")."""

    role: str
    protocol: int
    version: str
    node: str = ""
    epoch: int = 0  # the epoch the sidecar believes it holds; 0 when it does not know yet
    attempts: tuple[AttemptState, ...] = ()


@dataclass(frozen=True)
class Heartbeat:
    """Every HEARTBEAT_SECONDS. session: an SDK is connected; detail: what the agent is at ("step crawl, 94 s")."""

    session: bool = False
    detail: str = ""


@dataclass(frozen=True)
class NeedUrls:
    """Asks for presigned URLs of exact keys, relative to the repository (packs/…, manifests/…)."""

    request: str
    put: tuple[str, ...] = ()
    get: tuple[str, ...] = ()


@dataclass(frozen=True)
class Progress:
    """How far an attempt (or, with attempt "", a restore) is; at most every 2 s."""

    attempt: str
    stage: str
    percent: int = 0
    bytes_done: int = 0
    bytes_total: int = 0
    reason: str = ""  # of a restore that is held up and tried again; empty while it goes on
    message: str = ""


@dataclass(frozen=True)
class Offer:
    """Everything is stored: please commit."""

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
    uncertain_operations: tuple[str, ...] = ()
    completed: bool = False


@dataclass(frozen=True)
class Result:
    """An attempt that ends without an offer. outcome: Unchanged | Failed."""

    attempt: str
    outcome: str
    reason: str = ""
    message: str = ""
    pause_milliseconds: int | None = None


@dataclass(frozen=True)
class RequestCheckpoint:
    """The pod asks for a checkpoint: the agent itself, a shutdown, or the end of the run."""

    request: str
    trigger: str
    reason: str = ""


@dataclass(frozen=True)
class Released:
    """The incarnation has ended its work under this epoch; a successor may be granted the next."""

    epoch: int
    completed: bool = False
    message: str = ""


@dataclass(frozen=True)
class Outcome:
    """How a restore ended: Restored, Fresh, KeptLocal, or a failure's reason."""

    outcome: str
    message: str = ""
    object_key: str = ""
    bytes_restored: int = 0
    milliseconds: int = 0
    config_changed: bool = False  # the checkpoint was made under another configuration hash than the pod's


# -- from the operator ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Welcome:
    """Who the pod is, and what it may do. ``key`` is the agent key, hexadecimal, for memory only."""

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
    store_ca: str = ""  # PEM, empty: system roots
    shared_roots: tuple[str, ...] = ()  # names of state roots that other pods may write: never read, never written


@dataclass(frozen=True)
class Grant:
    """The answer to role restore: a welcome under a fresh epoch; ``parent`` is what to restore, None: start fresh."""

    welcome: Welcome


@dataclass(frozen=True)
class Wait:
    """The init container waits inside: why, and what would end it."""

    reason: str
    message: str


@dataclass(frozen=True)
class Refused:
    """An end: of an offer or request (attempt/request says which) or of the whole ask."""

    reason: str
    message: str
    attempt: str = ""
    request: str = ""


@dataclass(frozen=True)
class Checkpoint:
    """Take a checkpoint now. after: Resume | Terminate."""

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
    """Answers heartbeat, result, outcome and released; ``of`` is that message's type."""

    of: str


@dataclass(frozen=True)
class Stop:
    """Fenced: capture and offer nothing more."""

    reason: str
    message: str


FromPod = Hello | Heartbeat | NeedUrls | Progress | Offer | Result | RequestCheckpoint | Released | Outcome
FromOperator = Welcome | Grant | Wait | Refused | Checkpoint | Urls | Committed | Ack | Stop
Message = FromPod | FromOperator


class _Types:
    by_name: ClassVar[dict[str, type[Any]]] = {}


def type_name(cls: type[Any]) -> str:
    """``NeedUrls`` → ``need_urls``."""
    return re.sub(r"(?<!^)([A-Z])", r"_\1", cls.__name__).lower()


for _cls in (*typing.get_args(FromPod), *typing.get_args(FromOperator)):
    _Types.by_name[type_name(_cls)] = _cls


def encode(message: Message) -> str:
    """One message as JSON text."""
    return json.dumps(
        {"v": PROTOCOL_VERSION, "type": type_name(type(message)), **_to_wire(message)}, separators=(",", ":")
    )


def decode(text: str | bytes) -> Message:
    """Parse one message. Raises ProtocolError that names the field."""
    if len(text) > MESSAGE_MAX_BYTES:
        raise ProtocolError(f"message of {len(text)} bytes; at most {MESSAGE_MAX_BYTES}")
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ProtocolError("not JSON") from error
    if not isinstance(raw, dict) or raw.get("v") != PROTOCOL_VERSION:
        raise ProtocolError(f"not a message of protocol {PROTOCOL_VERSION}")
    cls = _Types.by_name.get(str(raw.get("type")))
    if cls is None:
        raise ProtocolError(f"unknown message type {str(raw.get('type'))[:40]!r}")
    message: Message = _from_wire(cls, raw, type_name(cls))
    return message


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _to_wire(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return {_camel(item.name): _to_wire(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple):
        return [_to_wire(item) for item in value]
    return value


@functools.cache
def _shape(kind: type[Any]) -> tuple[tuple[str, str, Any, bool], ...]:
    """Of each field: name, name on the wire, type, whether it must be there."""
    hints = typing.get_type_hints(kind)
    return tuple(
        (item.name, _camel(item.name), hints[item.name], item.default is MISSING and item.default_factory is MISSING)
        for item in fields(kind)
    )


def _from_wire(kind: Any, raw: Any, where: str) -> Any:  # noqa: PLR0911 - one return per shape
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        if raw is None:
            return None
        (inner,) = (item for item in typing.get_args(kind) if item is not types.NoneType)
        return _from_wire(inner, raw, where)
    if origin is tuple and isinstance(raw, list):
        return tuple(_from_wire(typing.get_args(kind)[0], item, f"{where}[]") for item in raw)
    if origin is dict and isinstance(raw, dict):
        return {str(key): _from_wire(typing.get_args(kind)[1], item, f"{where}.{key}") for key, item in raw.items()}
    if is_dataclass(kind) and isinstance(kind, type) and isinstance(raw, dict):
        values = {}
        for name, wire, hint, needed in _shape(kind):
            if wire in raw:
                values[name] = _from_wire(hint, raw[wire], f"{where}.{wire}")
            elif needed:
                raise ProtocolError(f"{where}: field {wire!r} is missing")
        return kind(**values)
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool) and abs(raw) < 1 << 63:
        return raw
    if kind is str and isinstance(raw, str):
        return raw
    raise ProtocolError(f"{where}: expected {getattr(kind, '__name__', kind)}")
