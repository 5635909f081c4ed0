"""The socket protocol between an agent's SDK and its sidecar: paths, limits and messages of docs/agent-protocol.md.

It does no I/O and imports the standard library only. A message is a frozen dataclass with ``to_wire`` and
``from_wire``; on the wire its fields are camelCase. The readers ignore unknown fields and refuse wrong types and paths
that leave the stage.
"""

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, Literal, Self, get_args

PROTOCOL_VERSION: Final = 1
BODY_MAX_BYTES: Final = 2 << 20
INLINE_MAX_BYTES: Final = 1 << 20  # of one message, counted as it stands in the JSON text
CONNECT_TIMEOUT_SECONDS: Final = 600
KEEPALIVE_SECONDS: Final = 5

PATH_CONNECT: Final = "/v1/connect"
PATH_ORDERS: Final = "/v1/orders"
PATH_FLUSH: Final = "/v1/flush"
PATH_FAILED: Final = "/v1/failed"
PATH_RESUMED: Final = "/v1/resumed"
PATH_CHECKPOINT: Final = "/v1/checkpoint"
PATH_FINISH: Final = "/v1/finish"
PATH_STATUS: Final = "/v1/status"

STAGE_AGENT: Final = "agent"  # folders below the stage
STAGE_JOURNAL: Final = "journal"
STAGE_SIDECAR: Final = "sidecar"
STAGE_RESTORED: Final = "restored"

COMPONENT_DOCUMENTS: Final = "documents"
COMPONENT_HANDLES: Final = "handles"
COMPONENT_EXECUTION: Final = "execution"
COMPONENT_EFFECTS: Final = "effects"
TENSORS_PREFIX: Final = "tensors."

FEATURE_REATTACH: Final = "reattach"  # a live process may connect again to a sidecar that was restarted

Encoding = Literal["json", "bytes", "tensor"]
Kind = Literal["ModelWeights", "OptimizerState", "Memory", "KVCache", "Execution", "Tools", "Environment", "Custom"]
ENCODINGS: Final = frozenset(get_args(Encoding))
KINDS: Final = frozenset(get_args(Kind))


class ProtocolError(ValueError):
    """A message that is not one of this protocol's."""


def stage_path(text: str) -> str:
    """``text`` if it is a plain relative path that stays below the stage; else ProtocolError."""
    path = PurePosixPath(text)
    if not text or "\0" in text or path.is_absolute() or ".." in path.parts or str(path) != text or text == ".":
        raise ProtocolError(f"path {text[:80]!r} does not stay below the stage")
    return text


@dataclass(frozen=True)
class _Field:
    name: str
    wire: str
    kind: Any
    default: Callable[[], Any] | None  # None: the field must be there


_FIELDS: Final[dict[type[Any], tuple[_Field, ...]]] = {}


def _fields(cls: "type[_Message]") -> tuple[_Field, ...]:
    known = _FIELDS.get(cls)
    if known is not None:
        return known
    hints = typing.get_type_hints(cls)
    found = []
    for item in fields(cls):
        head, *rest = item.name.split("_")
        default: Callable[[], Any] | None = None
        if item.default is not MISSING:
            default = lambda value=item.default: value  # noqa: E731
        elif item.default_factory is not MISSING:
            default = item.default_factory
        found.append(_Field(item.name, head + "".join(map(str.capitalize, rest)), hints[item.name], default))
    _FIELDS[cls] = tuple(found)
    return _FIELDS[cls]


def _written(value: Any) -> Any:
    if isinstance(value, _Message):
        return value.to_wire()
    if isinstance(value, tuple):
        return [_written(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value


def _read(kind: Any, raw: Any, where: str) -> Any:  # noqa: PLR0911 - one return per kind
    origin = typing.get_origin(kind)
    if origin is types.UnionType:
        (inner,) = (item for item in get_args(kind) if item is not types.NoneType)
        return None if raw is None else _read(inner, raw, where)
    if origin is tuple and isinstance(raw, list):
        return tuple(_read(get_args(kind)[0], item, f"{where}[]") for item in raw)
    if origin is Mapping and isinstance(raw, dict):
        return raw
    if origin is Literal and raw in get_args(kind):
        return raw
    if isinstance(kind, type) and issubclass(kind, _Message):
        return kind.from_wire(raw)
    if kind is bool and isinstance(raw, bool):
        return raw
    if kind is str and isinstance(raw, str):
        return raw
    if kind is int and isinstance(raw, int) and not isinstance(raw, bool) and 0 <= raw < 1 << 63:
        return raw
    if kind is float and isinstance(raw, int | float) and not isinstance(raw, bool):
        return raw
    raise ProtocolError(f"{where}: a {type(raw).__name__} of this value does not belong there")


@dataclass(frozen=True)
class _Message:
    """What can be written to the wire and read from it."""

    TYPE: ClassVar[str] = ""  # of an order

    def to_wire(self) -> dict[str, Any]:
        """As a dict for ``json.dumps``."""
        plain = {item.wire: _written(getattr(self, item.name)) for item in _fields(type(self))}
        return {"type": self.TYPE, **plain} if self.TYPE else plain

    @classmethod
    def from_wire(cls, raw: object) -> Self:
        """From what ``json.loads`` gave. Raises ProtocolError that names the field; null stands for "not there"."""
        if not isinstance(raw, dict):
            raise ProtocolError(f"{cls.__name__} must be an object")
        values = {}
        for item in _fields(cls):
            value = raw.get(item.wire)
            if value is not None:
                values[item.name] = _read(item.kind, value, f"{cls.__name__}.{item.wire}")
            elif item.default is None:
                raise ProtocolError(f"{cls.__name__}: field {item.wire!r} is missing")
        return cls(**values)


@dataclass(frozen=True)
class Entry(_Message):
    """One named value. Exactly one of ``inline`` (JSON text) and ``path`` (relative to the stage) is set."""

    name: str
    encoding: Encoding
    size: int  # bytes of the value itself: of the text in UTF-8, or of the file
    inline: str | None = field(default=None, repr=False)
    path: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_wire(self) -> dict[str, Any]:
        value = {"inline": self.inline} if self.path is None else {"path": self.path}
        return {"name": self.name, "encoding": self.encoding, "meta": dict(self.meta), "size": self.size, **value}

    @classmethod
    def from_wire(cls, raw: object) -> Self:
        entry = super().from_wire(raw)
        if (entry.inline is None) == (entry.path is None):
            raise ProtocolError("an entry has either 'inline' or 'path'")
        if entry.inline is not None and entry.encoding != "json":
            raise ProtocolError(f"encoding {entry.encoding!r} goes through a file")
        if entry.path is not None:
            stage_path(entry.path)
        return entry


@dataclass(frozen=True)
class Component(_Message):
    """A named part of the state, as an ordered set of entries."""

    name: str
    kind: Kind
    entries: tuple[Entry, ...] = ()

    @classmethod
    def from_wire(cls, raw: object) -> Self:
        component = super().from_wire(raw)
        if len({entry.name for entry in component.entries}) != len(component.entries):
            raise ProtocolError(f"component {component.name[:80]!r} names an entry twice")
        return component


# -- session ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connect(_Message):
    """``POST /v1/connect``. ``instance`` is random per process.

    ``reattach``: this very process was connected before and is alive; its sidecar was restarted. Nothing is brought
    back, no file is touched, and the answer holds no components.
    """

    pid: int
    instance: str
    sdk: str = ""
    schema_version: str = ""
    dependencies: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    reattach: bool = False
    protocol: int = PROTOCOL_VERSION

    @classmethod
    def from_wire(cls, raw: object) -> Self:
        connect = super().from_wire(raw)
        if not all(isinstance(version, str) for version in connect.dependencies.values()):
            raise ProtocolError("Connect.dependencies: versions are strings")
        return connect


@dataclass(frozen=True)
class Restored(_Message):
    """What came back. ``how`` is Restored (another pod) or Restarted (the same pod or folder)."""

    checkpoint: str
    number: int
    sequence: int
    time: str
    how: str = "Restored"


@dataclass(frozen=True)
class Connected(_Message):
    """The answer to connect: who the agent is and the components at the cut."""

    session: str
    agent: str
    namespace: str
    epoch: int
    run: int
    restored: Restored | None = None
    components: tuple[Component, ...] = ()
    features: tuple[str, ...] = ()


# -- orders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepare(_Message):
    """A checkpoint is near: a hint."""

    TYPE: ClassVar[str] = "prepare"
    transaction: str


@dataclass(frozen=True)
class Quiesce(_Message):
    """Flush at the next safe point, within ``timeout_seconds``; wait at most ``hold_seconds`` for the answer."""

    TYPE: ClassVar[str] = "quiesce"
    transaction: str
    timeout_seconds: float
    hold_seconds: float
    trigger: str = ""


@dataclass(frozen=True)
class Stopping(_Message):
    """As quiesce; the process should end after its flush."""

    TYPE: ClassVar[str] = "stopping"
    transaction: str
    grace_seconds: float


@dataclass(frozen=True)
class Cancelled(_Message):
    """Do not flush for this transaction any more."""

    TYPE: ClassVar[str] = "cancelled"
    transaction: str
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Result(_Message):
    """How a transaction ended. outcome: Ready | Unchanged | Failed; ``request`` answers a checkpoint asked for.

    A request that got no transaction (refused, or the operator is away) ends by a result with an empty transaction.
    """

    TYPE: ClassVar[str] = "result"
    transaction: str
    outcome: str
    request: str | None = None
    checkpoint: str = ""
    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class Fenced(_Message):
    """Effects must be refused until ``Unfenced``."""

    TYPE: ClassVar[str] = "fenced"
    message: str = ""


@dataclass(frozen=True)
class Unfenced(_Message):
    """Effects may go on."""

    TYPE: ClassVar[str] = "unfenced"


Order = Prepare | Quiesce | Stopping | Cancelled | Result | Fenced | Unfenced
_ORDERS: Final[dict[str, type[Order]]] = {cls.TYPE: cls for cls in get_args(Order)}


def order_from_wire(raw: object) -> Order | None:
    """One line of the orders stream; None for a keep-alive or an order of a newer protocol."""
    if not isinstance(raw, dict):
        raise ProtocolError("an order must be an object")
    cls = _ORDERS.get(str(raw.get("type")))
    return None if cls is None else cls.from_wire(raw)


# -- flush, finish, asking --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Execution(_Message):
    """Where the agent stands, for people: ``step`` ("docs 42 of 90"), ids of effects, and a line of detail."""

    step: str | None = None
    open: tuple[str, ...] = ()  # sent by a thread that is still at it
    uncertain: tuple[str, ...] = ()  # sent, never confirmed
    detail: str = ""


@dataclass(frozen=True)
class Flush(_Message):
    """``POST /v1/flush``, and with an empty transaction ``POST /v1/finish``."""

    session: str
    transaction: str = ""
    components: tuple[Component, ...] = ()
    execution: Execution = Execution()

    @classmethod
    def from_wire(cls, raw: object) -> Self:
        flush = super().from_wire(raw)
        if len({component.name for component in flush.components}) != len(flush.components):
            raise ProtocolError("a flush names a component twice")
        return flush


@dataclass(frozen=True)
class Failed(_Message):
    """``POST /v1/failed``: the agent cannot flush for this transaction; the sidecar need not wait for its timeout."""

    session: str
    transaction: str
    reason: str  # StageFull, NotEncodable, QuiesceTimeout, StateUnstable, Unavailable
    message: str


@dataclass(frozen=True)
class Resumed(_Message):
    """``POST /v1/resumed``: the pause as the agent saw it."""

    session: str
    transaction: str
    pause_milliseconds: int


@dataclass(frozen=True)
class CheckpointRequest(_Message):
    """``POST /v1/checkpoint``: answered 202; a quiesce and a result with this ``request`` follow."""

    session: str
    request: str
    reason: str = ""


@dataclass(frozen=True)
class Problem(_Message):
    """The body of every 4xx and 5xx."""

    reason: str = "Error"
    message: str = ""
