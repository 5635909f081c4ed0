"""The socket protocol between an agent's SDK and its sidecar: paths, limits and messages of docs/agent-protocol.md.

A message is a frozen dataclass with ``to_wire`` and ``from_wire``; its fields are camelCase on the wire. Reading a
message ignores unknown fields and refuses wrong types and paths that leave the stage. The module does no I/O and
imports the standard library and this package only.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, ClassVar, Final, Literal, Self, get_args

from savepoint.contract import codec
from savepoint.contract.vocabulary import ComponentKind, Reason

PROTOCOL_VERSION: Final = 1
BODY_MAX_BYTES: Final = 2 << 20
INLINE_MAX_BYTES: Final = 1 << 20  # of all inline values in one message, counted as escaped in the JSON text
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

COMPONENT_DOCUMENTS: Final = "documents"
COMPONENT_HANDLES: Final = "handles"
COMPONENT_EXECUTION: Final = "execution"
COMPONENT_EFFECTS: Final = "effects"
TENSORS_PREFIX: Final = "tensors."

FEATURE_REATTACH: Final = "reattach"  # a live process may reconnect to a sidecar that was restarted

Encoding = Literal["json", "bytes", "tensor"]
Kind = Literal["ModelWeights", "OptimizerState", "Memory", "KVCache", "Execution", "Tools", "Environment", "Custom"]
"""The members of KINDS as literals, so that an agent's developer passes plain strings and type checkers know them."""
ENCODINGS: Final = frozenset(get_args(Encoding))
KINDS: Final = frozenset(ComponentKind) - {ComponentKind.FILES}  # only the sidecar itself captures file trees

ProtocolError = codec.ProtocolError  # so that users of this protocol import one module

# A null is an absent field, so that SDKs in other languages may write null for a value that is not set. Integers are
# sizes, numbers and process ids, none of which is negative. Errors name the class and the field; their texts reach SDKs
# in answers with status 400 and are kept.
_CODEC: Final = codec.Codec(null_is_absent=True, smallest_integer=0, full_paths=False)


def stage_path(text: str) -> str:
    """Return ``text`` if it is a plain relative path that stays below the stage; else raise ProtocolError."""
    path = PurePosixPath(text)
    if not text or "\0" in text or path.is_absolute() or ".." in path.parts or str(path) != text or text == ".":
        raise ProtocolError(f"path {text[:80]!r} does not stay below the stage")
    return text


@dataclass(frozen=True)
class _Message(codec.Message):
    """A message of this protocol."""

    TYPE: ClassVar[str] = ""  # set for orders only

    def to_wire(self) -> dict[str, Any]:
        """Return the message as a dict for ``json.dumps``."""
        plain = super().to_wire()
        return {"type": self.TYPE, **plain} if self.TYPE else plain

    @classmethod
    def from_wire(cls, raw: object) -> Self:
        """Return the message in ``raw``, a value from ``json.loads``. Raises ProtocolError that names the field."""
        return _CODEC.decode(cls, raw, cls.__name__)


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
        """Return the entry as a dict that has either ``inline`` or ``path``."""
        value = {"inline": self.inline} if self.path is None else {"path": self.path}
        return {"name": self.name, "encoding": self.encoding, "meta": dict(self.meta), "size": self.size, **value}

    def validate(self) -> None:
        """Raise ProtocolError unless the entry has one value, in a place that its encoding allows."""
        if (self.inline is None) == (self.path is None):
            raise ProtocolError("an entry has either 'inline' or 'path'")
        if self.inline is not None and self.encoding != "json":
            raise ProtocolError(f"encoding {self.encoding!r} goes through a file")
        if self.path is not None:
            stage_path(self.path)


@dataclass(frozen=True)
class Component(_Message):
    """A named part of the agent's state, as an ordered set of entries."""

    name: str
    kind: Kind
    entries: tuple[Entry, ...] = ()

    def validate(self) -> None:
        """Raise ProtocolError if two entries have the same name."""
        if len({entry.name for entry in self.entries}) != len(self.entries):
            raise ProtocolError(f"component {self.name[:80]!r} names an entry twice")


# -- session ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Connect(_Message):
    """``POST /v1/connect``. ``instance`` is random per process.

    ``reattach`` is set by a live process that was connected before and whose sidecar was restarted: the sidecar
    restores nothing, touches no file and answers without components.
    """

    pid: int
    instance: str
    sdk: str = ""
    schema_version: str = ""
    dependencies: Mapping[str, str] = field(default_factory=dict)
    architecture: str = ""
    reattach: bool = False
    protocol: int = PROTOCOL_VERSION

    def validate(self) -> None:
        """Raise ProtocolError if a dependency's version is not a string."""
        if not all(isinstance(version, str) for version in self.dependencies.values()):
            raise ProtocolError("Connect.dependencies: versions are strings")


@dataclass(frozen=True)
class Restored(_Message):
    """The checkpoint that an agent's state was restored from; see ``Agent.restored``.

    Attributes:
        checkpoint: Name of the checkpoint, for example ``coder-41``.
        number: Its number, counted per agent from 1.
        sequence: Position of its commit record in the agent's checkpoint history.
        time: When it was taken, as a UTC timestamp (RFC 3339).
        how: ``"Restored"`` in another pod, ``"Restarted"`` in the same pod or folder.
        files: ``"KeptLocal"`` if the state folders stayed as they were, which may be newer than the checkpoint;
            ``"Restored"`` if they are the checkpoint's, and steps after it run again. Empty without state folders.
    """

    checkpoint: str
    number: int
    sequence: int
    time: str
    how: str = "Restored"
    files: str = ""


@dataclass(frozen=True)
class Connected(_Message):
    """The answer to connect: the agent's identity and the components of the restored checkpoint."""

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
    """A hint that a checkpoint is about to be taken."""

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
    """Flush as for quiesce; the process should exit after its flush."""

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
    """The end of a transaction. ``outcome`` is Ready, Unchanged or Failed.

    ``request`` names the checkpoint request that this result answers. A request for which no transaction was started
    (it was refused, or the operator is unreachable) is answered by a result with an empty transaction.
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
    """Refuse effects until ``Unfenced``."""

    TYPE: ClassVar[str] = "fenced"
    message: str = ""


@dataclass(frozen=True)
class Unfenced(_Message):
    """Effects are allowed again."""

    TYPE: ClassVar[str] = "unfenced"


Order = Prepare | Quiesce | Stopping | Cancelled | Result | Fenced | Unfenced
_ORDERS: Final[dict[str, type[Order]]] = {cls.TYPE: cls for cls in get_args(Order)}


def order_from_wire(raw: object) -> Order | None:
    """Return the order in one line of the orders stream; None for a keep-alive or an order of a newer protocol."""
    if not isinstance(raw, dict):
        raise ProtocolError("an order must be an object")
    cls = _ORDERS.get(str(raw.get("type")))
    return None if cls is None else cls.from_wire(raw)


# -- flush, finish, checkpoint requests ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Execution(_Message):
    """The agent's progress for people to read.

    ``step`` is a position such as "docs 42 of 90", ``open`` and ``uncertain`` are effect ids, ``detail`` is one line.
    """

    step: str | None = None
    open: tuple[str, ...] = ()  # being sent by a thread now
    uncertain: tuple[str, ...] = ()  # sent, never confirmed
    detail: str = ""


@dataclass(frozen=True)
class Flush(_Message):
    """``POST /v1/flush``, and with an empty transaction ``POST /v1/finish``."""

    session: str
    transaction: str = ""
    components: tuple[Component, ...] = ()
    execution: Execution = Execution()

    def validate(self) -> None:
        """Raise ProtocolError if two components have the same name."""
        if len({component.name for component in self.components}) != len(self.components):
            raise ProtocolError("a flush names a component twice")


@dataclass(frozen=True)
class Failed(_Message):
    """``POST /v1/failed``: the agent cannot flush for this transaction; the sidecar need not wait for its timeout."""

    session: str
    transaction: str
    reason: str  # StageFull, NotEncodable, QuiesceTimeout, StateUnstable, Unavailable
    message: str


@dataclass(frozen=True)
class Resumed(_Message):
    """``POST /v1/resumed``: how long the agent was paused, as measured by the agent."""

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
    """The body of every answer with status 4xx or 5xx."""

    reason: str = Reason.ERROR
    message: str = ""
