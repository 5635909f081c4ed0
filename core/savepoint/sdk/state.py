"""Everything an agent would lose, in one place: documents, scopes, ledger and arrays, made into components and back.

It holds no lock (the caller does) and knows neither threads nor the socket. What happens between two cuts goes through
the journal first and into memory second.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from savepoint.contract import agent_protocol as wire
from savepoint.errors import StateUnstable
from savepoint.sdk import component_codec
from savepoint.sdk.component_codec import Value
from savepoint.sdk.encoding import decode, encode
from savepoint.sdk.errors import RestoreFailed
from savepoint.sdk.journal import Journal
from savepoint.sdk.ledger import Effect, Ledger
from savepoint.sdk.replay_point import ReplayPoint, become
from savepoint.sdk.scope import Scope, StepRecord
from savepoint.sdk.stage import Stage
from savepoint.sdk.tensors import TensorSet

log: Final = logging.getLogger("savepoint")
Document = dict[str, Any] | list[Any] | bytearray


@dataclass
class _Held:
    """What a transaction holds until its result."""

    journal: int
    folder: Path | None


class State:
    """The state of one agent in this process."""

    def __init__(self, journal: Journal, stage: Stage | None) -> None:
        self.journal = journal
        self.stage = stage
        self.root = Scope("", None)
        self.ledger = Ledger()
        self.documents: dict[str, Document] = {}
        self.tensors: dict[str, TensorSet] = {}
        self.restored: dict[str, wire.Component] = {}  # tensors and foreign components nobody asked for yet
        self.handles: dict[str, Callable[[], Any]] = {}  # give the descriptor as it is now
        self.catching_up: ReplayPoint | None = None  # where the restored cut was taken, until the program comes there
        self._set_back: list[Value] | None = None  # what documents become then
        self._texts: dict[str, Value] = {}  # documents nobody asked for yet
        self._descriptors: dict[str, Value] = {}  # the same of handles
        self._held: dict[str, _Held] = {}

    # -- coming back --

    def restore(self, components: Iterable[wire.Component]) -> int:
        """Take over a cut, then the journal behind it. Returns how many steps are on record. Raises RestoreFailed."""
        try:
            return self._restore(components)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RestoreFailed("the saved execution state or the journal cannot be read") from error

    def _restore(self, components: Iterable[wire.Component]) -> int:
        number = 0
        for component in components:
            match component.name:
                case wire.COMPONENT_DOCUMENTS:
                    self._texts = component_codec.read(component, self.stage)
                case wire.COMPONENT_HANDLES:
                    self._descriptors = component_codec.read(component, self.stage)
                case wire.COMPONENT_EXECUTION:
                    plain = component_codec.read_versioned(component, self.stage)
                    number = int(plain.get("journal", 0))
                    self.root.load(plain.get("scopes", {}))
                    self.catching_up = ReplayPoint.from_plain(plain.get("at"))
                case wire.COMPONENT_EFFECTS:
                    for effect, raw in component_codec.read_versioned(component, self.stage).get("effects", {}).items():
                        self._know(Effect.from_plain(effect, raw))
                case _:
                    self.restored[component.name] = component
        for record in self.journal.replay(number):
            self._replay(record)
        return _count(self.root)

    def document(self, name: str, default: Document) -> Document:
        """The document of this name: the one in use, the restored one, or a copy of the default."""
        known = self.documents.get(name)
        if known is None:
            saved = self._texts.get(name)
            if saved is None:
                known = bytearray(default) if isinstance(default, bytearray) else decode(encode(default, name), name)
            elif saved.encoding == "json":
                known = decode(saved.data, name)
            else:
                known = bytearray(saved.data)
        if known.__class__ is not default.__class__:
            raise RestoreFailed(
                f"document {name!r} was saved as a {known.__class__.__name__}, and this program asks for a "
                f"{default.__class__.__name__}: ask for what was saved and convert it, or use another name"
            )
        self.documents[name] = known
        self._texts.pop(name, None)
        return known

    def descriptor(self, name: str) -> Any:
        """What was saved of a handle; None if nothing was."""
        saved = self._descriptors.get(name)
        return None if saved is None else decode(saved.data, f"handle {name!r}")

    def hold(self, name: str, describe: Callable[[], Any]) -> None:
        """From here on the handle is described at each cut."""
        self.handles[name] = describe
        self._descriptors.pop(name, None)

    # -- catching up --

    def turn_entered(self) -> None:
        """A turn runs; if that is before the program came to where the cut was taken, it runs again."""
        if self.catching_up is not None and self._set_back is None:
            self._set_back = self._document_values()

    def reached(self, point: ReplayPoint | None) -> None:
        """The program is at a point; documents are set back if it is the one where the cut was taken."""
        if self.catching_up is None or point != self.catching_up:
            return
        for value in self._set_back or ():
            document = self.documents.get(value.name)
            if document is not None:
                become(document, decode(value.data, value.name) if value.encoding == "json" else value.data)
        self.catching_up = self._set_back = None

    def moved_on(self) -> None:
        """Something new was done; if that is before the cut's point, the program took another way than before."""
        if self._set_back is not None:
            log.warning(
                "the program did not come to where its checkpoint was taken (%s) and goes on: what the turns that ran "
                "again did to documents is in them twice",
                self.catching_up,
            )
            self.catching_up = self._set_back = None

    # -- between two cuts --

    def record_step(self, scope: Scope, label: str, record: StepRecord) -> None:
        """Journal a finished step, then know it."""
        self.journal.append(
            {"t": "step", "p": scope.path, "s": label, "d": record.digest, "r": record.text}, durable=False
        )
        scope.steps[label] = record

    def record_sent(self, effect: Effect) -> None:
        """Journal, durably, that an effect is about to be sent."""
        self.journal.append({"t": "effect", "id": effect.id, "e": effect.to_plain()}, durable=True)
        self._know(effect)

    def record_confirmed(self, effect: str, text: str) -> None:
        """Journal that an effect arrived."""
        self.journal.append({"t": "confirmed", "id": effect, "r": text}, durable=True)
        self.ledger.confirm(effect, text)

    def record_open(self, effect: str) -> None:
        """Journal that an effect may be sent again."""
        self.journal.append({"t": "open", "id": effect}, durable=True)
        self.ledger.reopen(effect)

    # -- a cut --

    def capture(self, transaction: str, at: ReplayPoint | None = None) -> tuple[wire.Component, ...]:
        """The state as it is now, at this point of the program.

        Raises NotEncodable, StageFull, StateUnstable, Unavailable. Large arrays come first: what changes fastest is
        read last.
        """
        try:
            return self._capture(transaction, at)
        except BaseException:
            self.release(transaction, committed=False)
            raise

    def _capture(self, transaction: str, at: ReplayPoint | None) -> tuple[wire.Component, ...]:
        large = [tensors.flush(transaction) for tensors in self.tensors.values()]
        for name, component in self.restored.items():
            self.restored[name] = component_codec.carried(component, self.stage)
        values = {wire.COMPONENT_DOCUMENTS: self._document_values() if self._set_back is None else list(self._set_back)}
        handles = [Value.of(name, describe(), f"handle {name!r}") for name, describe in self.handles.items()]
        if handles or self._descriptors:
            values[wire.COMPONENT_HANDLES] = component_codec.by_name([*handles, *self._descriptors.values()])
        journal = self.journal.rotate()
        point = self.catching_up or at
        execution = {"scopes": self.root.to_plain(), "at": None if point is None else point.to_plain()}
        values[wire.COMPONENT_EXECUTION] = [Value.versioned("execution", journal=journal, **execution)]
        values[wire.COMPONENT_EFFECTS] = [Value.versioned("ledger", effects=self.ledger.to_plain())]
        small, folder = component_codec.placed(values, self.stage)
        self._held[transaction] = _Held(journal, folder)
        return (*small, *large, *self.restored.values())

    def release(self, transaction: str, *, committed: bool) -> None:
        """The transaction has its result, or never will have one."""
        for tensors in self.tensors.values():
            tensors.release(transaction)
        held = self._held.pop(transaction, None)
        if held is not None:
            if held.folder is not None and self.stage is not None:
                self.stage.remove(held.folder)
            if committed:
                self.journal.forget(held.journal)

    def release_all(self) -> None:
        """The sidecar that knew our transactions is gone."""
        for transaction in list(self._held):
            self.release(transaction, committed=False)
        for tensors in self.tensors.values():
            tensors.release(None)

    # -- inside --

    def _document_values(self) -> list[Value]:
        values = list(self._texts.values())
        try:
            for name, document in self.documents.items():
                values.append(Value.of(name, document, name))
        except RuntimeError as error:  # a container that another thread changed while it was read
            raise StateUnstable(
                f"document {name!r} changed while it was read: change documents inside agent.critical() in threads "
                f"that run no loop"
            ) from error
        return component_codec.by_name(values)

    def _know(self, effect: Effect) -> None:
        self.ledger.put(effect)
        self.root.at(effect.path).effects[effect.id] = None

    def _replay(self, record: Mapping[str, Any]) -> None:
        match record.get("t"):
            case "step":
                scope = self.root.at(str(record["p"]))
                scope.steps[str(record["s"])] = StepRecord(str(record["d"]), str(record["r"]))
            case "effect":
                self._know(Effect.from_plain(str(record["id"]), record["e"]))
            case "confirmed" if self.ledger.get(record["id"]) is not None:
                self.ledger.confirm(record["id"], str(record["r"]))
            case "open" if self.ledger.get(record["id"]) is not None:
                self.ledger.reopen(record["id"])


def _count(scope: Scope) -> int:
    return len(scope.steps) + sum(_count(child) for child in scope.children.values())
