"""The socket protocol between an agent's SDK and its sidecar: paths, limits and messages of docs/agent-protocol.md.

It does no I/O and imports the standard library only. A message is a frozen dataclass with ``to_wire`` and
``from_wire``; the readers ignore unknown fields and refuse wrong types and paths that leave the stage.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Final, Literal, get_args

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


def _text(raw: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = raw.get(name, default)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise ProtocolError(f"field {name!r} must be a string")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ProtocolError(f"field {name!r} must be a number")
    return value


def _whole(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise ProtocolError(f"field {name!r} must be a whole number, not negative")
    return value


def _texts(raw: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = raw.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ProtocolError(f"field {name!r} must be a list of strings")
    return tuple(value)


def _object(raw: object, where: str) -> Mapping[str, Any]:
    if not isinstance(raw, dict):
        raise ProtocolError(f"{where} must be an object")
    return raw


def _list(raw: Mapping[str, Any], name: str) -> Sequence[object]:
    value = raw.get(name, [])
    if not isinstance(value, list):
        raise ProtocolError(f"field {name!r} must be a list")
    return value


def stage_path(text: str) -> str:
    """``text`` if it is a plain relative path that stays below the stage; else ProtocolError."""
    path = PurePosixPath(text)
    if not text or "\0" in text or path.is_absolute() or ".." in path.parts or str(path) != text or text == ".":
        raise ProtocolError(f"path {text[:80]!r} does not stay below the stage")
    return text


@dataclass(frozen=True)
class Entry:
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
    def from_wire(cls, raw: object) -> "Entry":
        item = _object(raw, "an entry")
        encoding = _text(item, "encoding")
        if encoding not in ENCODINGS:
            raise ProtocolError(f"unknown encoding {encoding[:40]!r}")
        inline, path = item.get("inline"), item.get("path")
        if (inline is None) == (path is None):
            raise ProtocolError("an entry has either 'inline' or 'path'")
        if inline is not None and encoding != "json":
            raise ProtocolError(f"encoding {encoding!r} goes through a file")
        return cls(
            name=_text(item, "name"),
            encoding=encoding,  # type: ignore[arg-type]  # checked against the literals above
            size=_whole(item, "size"),
            inline=None if inline is None else _text(item, "inline"),
            path=None if path is None else stage_path(_text(item, "path")),
            meta=_object(item.get("meta") or {}, "meta"),
        )


@dataclass(frozen=True)
class Component:
    """A named part of the state, as an ordered set of entries."""

    name: str
    kind: Kind
    entries: tuple[Entry, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "entries": [entry.to_wire() for entry in self.entries]}

    @classmethod
    def from_wire(cls, raw: object) -> "Component":
        item = _object(raw, "a component")
        kind = _text(item, "kind")
        if kind not in KINDS:
            raise ProtocolError(f"unknown component kind {kind[:40]!r}")
        entries = tuple(Entry.from_wire(entry) for entry in _list(item, "entries"))
        if len({entry.name for entry in entries}) != len(entries):
            raise ProtocolError(f"component {item.get('name')!r} names an entry twice")
        return cls(_text(item, "name"), kind, entries)  # type: ignore[arg-type]  # checked against the literals


def _components(raw: Mapping[str, Any]) -> tuple[Component, ...]:
    return tuple(Component.from_wire(item) for item in _list(raw, "components"))


# -- session ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connect:
    """``POST /v1/connect``. ``instance`` is random per process.

    ``reattach``: this very process was connected before and is alive; its sidecar was restarted. Nothing is brought
    back, no file is touched, and the answer holds no components.
    """

    pid: int
    instance: str
    sdk: str
    schema_version: str = ""
    dependencies: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    reattach: bool = False
    protocol: int = PROTOCOL_VERSION

    def to_wire(self) -> dict[str, Any]:
        return {
            "protocol": self.protocol,
            "pid": self.pid,
            "instance": self.instance,
            "sdk": self.sdk,
            "schemaVersion": self.schema_version,
            "dependencies": dict(self.dependencies),
            "architecture": self.architecture,
            "reattach": self.reattach,
        }

    @classmethod
    def from_wire(cls, raw: object) -> "Connect":
        item = _object(raw, "connect")
        dependencies = _object(item.get("dependencies") or {}, "dependencies")
        return cls(
            pid=_whole(item, "pid"),
            instance=_text(item, "instance"),
            sdk=_text(item, "sdk", ""),
            schema_version=_text(item, "schemaVersion", ""),
            dependencies={str(key): str(value) for key, value in dependencies.items()},
            architecture=_text(item, "architecture", ""),
            reattach=item.get("reattach") is True,
            protocol=_whole(item, "protocol"),
        )


@dataclass(frozen=True)
class Restored:
    """What came back. ``how`` is Restored (another pod) or Restarted (the same pod or folder)."""

    checkpoint: str
    number: int
    sequence: int
    time: str
    how: str = "Restored"

    def to_wire(self) -> dict[str, Any]:
        return {
            "checkpoint": self.checkpoint,
            "number": self.number,
            "sequence": self.sequence,
            "time": self.time,
            "how": self.how,
        }

    @classmethod
    def from_wire(cls, raw: object) -> "Restored":
        item = _object(raw, "restored")
        return cls(
            checkpoint=_text(item, "checkpoint"),
            number=_whole(item, "number"),
            sequence=_whole(item, "sequence"),
            time=_text(item, "time"),
            how=_text(item, "how", "Restored"),
        )


@dataclass(frozen=True)
class Connected:
    """The answer to connect: who the agent is and the components at the cut."""

    session: str
    agent: str
    namespace: str
    epoch: int
    run: int
    restored: Restored | None = None
    components: tuple[Component, ...] = ()
    features: tuple[str, ...] = ()

    def to_wire(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "agent": self.agent,
            "namespace": self.namespace,
            "epoch": self.epoch,
            "run": self.run,
            "restored": None if self.restored is None else self.restored.to_wire(),
            "components": [component.to_wire() for component in self.components],
            "features": list(self.features),
        }

    @classmethod
    def from_wire(cls, raw: object) -> "Connected":
        item = _object(raw, "the answer to connect")
        restored = item.get("restored")
        return cls(
            session=_text(item, "session"),
            agent=_text(item, "agent"),
            namespace=_text(item, "namespace", ""),
            epoch=_whole(item, "epoch"),
            run=_whole(item, "run"),
            restored=None if restored is None else Restored.from_wire(restored),
            components=_components(item),
            features=_texts(item, "features"),
        )


# -- orders -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prepare:
    """A checkpoint is near: a hint."""

    transaction: str

    def to_wire(self) -> dict[str, Any]:
        return {"type": "prepare", "transaction": self.transaction}


@dataclass(frozen=True)
class Quiesce:
    """Flush at the next safe point, within ``timeout_seconds``; wait at most ``hold_seconds`` for the answer."""

    transaction: str
    timeout_seconds: float
    hold_seconds: float
    trigger: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": "quiesce",
            "transaction": self.transaction,
            "timeoutSeconds": self.timeout_seconds,
            "holdSeconds": self.hold_seconds,
            "trigger": self.trigger,
        }


@dataclass(frozen=True)
class Stopping:
    """As quiesce; the process should end after its flush."""

    transaction: str
    grace_seconds: float

    def to_wire(self) -> dict[str, Any]:
        return {"type": "stopping", "transaction": self.transaction, "graceSeconds": self.grace_seconds}


@dataclass(frozen=True)
class Cancelled:
    """Do not flush for this transaction any more."""

    transaction: str
    reason: str = ""
    message: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": "cancelled",
            "transaction": self.transaction,
            "reason": self.reason,
            "message": self.message,
        }


@dataclass(frozen=True)
class Result:
    """How a transaction ended. outcome: Ready | Unchanged | Failed; ``request`` answers a checkpoint asked for.

    A request that got no transaction (refused, or the operator is away) ends by a result with an empty transaction.
    """

    transaction: str
    outcome: str
    request: str | None = None
    checkpoint: str = ""
    reason: str = ""
    message: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {
            "type": "result",
            "transaction": self.transaction,
            "request": self.request,
            "outcome": self.outcome,
            "checkpoint": self.checkpoint,
            "reason": self.reason,
            "message": self.message,
        }


@dataclass(frozen=True)
class Fenced:
    """Effects must be refused until ``Unfenced``."""

    message: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {"type": "fenced", "message": self.message}


@dataclass(frozen=True)
class Unfenced:
    """Effects may go on."""

    def to_wire(self) -> dict[str, Any]:
        return {"type": "unfenced"}


Order = Prepare | Quiesce | Stopping | Cancelled | Result | Fenced | Unfenced


def order_from_wire(raw: object) -> Order | None:  # noqa: PLR0911 - one return per order
    """One line of the orders stream; None for a keep-alive or an order of a newer protocol."""
    item = _object(raw, "an order")
    match item.get("type"):
        case "prepare":
            return Prepare(_text(item, "transaction"))
        case "quiesce":
            return Quiesce(
                _text(item, "transaction"),
                _number(item, "timeoutSeconds"),
                _number(item, "holdSeconds"),
                _text(item, "trigger", ""),
            )
        case "stopping":
            return Stopping(_text(item, "transaction"), _number(item, "graceSeconds"))
        case "cancelled":
            return Cancelled(_text(item, "transaction"), _text(item, "reason", ""), _text(item, "message", ""))
        case "result":
            return Result(
                transaction=_text(item, "transaction", ""),
                outcome=_text(item, "outcome"),
                request=None if item.get("request") is None else _text(item, "request"),
                checkpoint=_text(item, "checkpoint", ""),
                reason=_text(item, "reason", ""),
                message=_text(item, "message", ""),
            )
        case "fenced":
            return Fenced(_text(item, "message", ""))
        case "unfenced":
            return Unfenced()
    return None


# -- flush, finish, asking --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Execution:
    """Where the agent stands, for people: ``step`` ("docs 42 of 90"), ids of effects, and a line of detail."""

    step: str | None = None
    open: tuple[str, ...] = ()  # sent by a thread that is still at it
    uncertain: tuple[str, ...] = ()  # sent, never confirmed
    detail: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "open": list(self.open),
            "uncertain": list(self.uncertain),
            "detail": self.detail,
        }

    @classmethod
    def from_wire(cls, raw: object) -> "Execution":
        item = _object(raw, "execution")
        step = item.get("step")
        return cls(
            step=None if step is None else _text(item, "step"),
            open=_texts(item, "open"),
            uncertain=_texts(item, "uncertain"),
            detail=_text(item, "detail", ""),
        )


@dataclass(frozen=True)
class Flush:
    """``POST /v1/flush``, and with an empty transaction ``POST /v1/finish``."""

    session: str
    transaction: str
    components: tuple[Component, ...]
    execution: Execution = Execution()

    def to_wire(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "transaction": self.transaction,
            "components": [component.to_wire() for component in self.components],
            "execution": self.execution.to_wire(),
        }

    @classmethod
    def from_wire(cls, raw: object) -> "Flush":
        item = _object(raw, "a flush")
        components = _components(item)
        if len({component.name for component in components}) != len(components):
            raise ProtocolError("a flush names a component twice")
        return cls(
            session=_text(item, "session"),
            transaction=_text(item, "transaction", ""),
            components=components,
            execution=Execution.from_wire(item.get("execution") or {}),
        )


@dataclass(frozen=True)
class Failed:
    """``POST /v1/failed``: the agent cannot flush for this transaction; the sidecar need not wait for its timeout."""

    session: str
    transaction: str
    reason: str  # StageFull, NotEncodable, QuiesceTimeout
    message: str

    def to_wire(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "transaction": self.transaction,
            "reason": self.reason,
            "message": self.message,
        }

    @classmethod
    def from_wire(cls, raw: object) -> "Failed":
        item = _object(raw, "failed")
        return cls(_text(item, "session"), _text(item, "transaction"), _text(item, "reason"), _text(item, "message"))


@dataclass(frozen=True)
class Resumed:
    """``POST /v1/resumed``: the pause as the agent saw it."""

    session: str
    transaction: str
    pause_milliseconds: int

    def to_wire(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "transaction": self.transaction,
            "pauseMilliseconds": self.pause_milliseconds,
        }

    @classmethod
    def from_wire(cls, raw: object) -> "Resumed":
        item = _object(raw, "resumed")
        return cls(_text(item, "session"), _text(item, "transaction"), _whole(item, "pauseMilliseconds"))


@dataclass(frozen=True)
class CheckpointRequest:
    """``POST /v1/checkpoint``: answered 202; a quiesce and a result with this ``request`` follow."""

    session: str
    request: str
    reason: str = ""

    def to_wire(self) -> dict[str, Any]:
        return {"session": self.session, "request": self.request, "reason": self.reason}

    @classmethod
    def from_wire(cls, raw: object) -> "CheckpointRequest":
        item = _object(raw, "a checkpoint request")
        return cls(_text(item, "session"), _text(item, "request"), _text(item, "reason", ""))


@dataclass(frozen=True)
class Problem:
    """The body of every 4xx and 5xx."""

    reason: str
    message: str

    def to_wire(self) -> dict[str, Any]:
        return {"reason": self.reason, "message": self.message}

    @classmethod
    def from_wire(cls, raw: object) -> "Problem":
        item = raw if isinstance(raw, dict) else {}
        return cls(str(item.get("reason", "Error")), str(item.get("message", "")))
