"""The state that an agent would lose with its process: documents, scopes, effects and arrays, as components and back.

It holds no lock, because the caller does, and uses neither threads nor the socket. Changes between two checkpoints are
written to the journal first and to memory second.
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
from savepoint.sdk.replay_point import ReplayPoint, assign_in_place
from savepoint.sdk.scope import Scope, StepRecord
from savepoint.sdk.stage import Stage
from savepoint.sdk.tensors import TensorSet

log: Final = logging.getLogger("savepoint")
Document = dict[str, Any] | list[Any] | bytearray


@dataclass
class _Transaction:
    """The resources of a flushed transaction, kept until its result."""

    journal: int  # the journal number that its checkpoint names
    folder: Path | None  # its files in the stage


class State:
    """The state of one agent in this process."""

    def __init__(self, journal: Journal, stage: Stage | None) -> None:
        self.journal = journal
        self.stage = stage
        self.root = Scope("", None)
        self.ledger = Ledger()
        self.documents: dict[str, Document] = {}
        self.tensors: dict[str, TensorSet] = {}
        self.handles: dict[str, Callable[[], Any]] = {}  # name -> returns the current descriptor
        self.unclaimed: dict[str, wire.Component] = {}  # restored tensors and components of another SDK, not used yet
        self._unclaimed_documents: dict[str, Value] = {}  # restored documents not used yet
        self._unclaimed_descriptors: dict[str, Value] = {}  # restored descriptors of handles not used yet
        self.replay_point: ReplayPoint | None = None  # of the restored checkpoint, until the program reaches it
        self._documents_at_replay_point: list[Value] | None = None  # what documents are set back to there
        self._transactions: dict[str, _Transaction] = {}

    # -- restore --

    def restore(self, components: Iterable[wire.Component], *, steps_count: bool = True) -> int:
        """Load a checkpoint's components and the journal that follows it.

        With ``steps_count`` false the steps of the journal run again, because the files that they changed were set back
        to the checkpoint; effects still count. Returns the number of recorded steps. Raises RestoreFailed,
        FormatTooNew, StageFull, Unavailable.
        """
        try:
            return self._restore(components, steps_count=steps_count)
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise RestoreFailed("the saved execution state or the journal cannot be read") from error

    def _restore(self, components: Iterable[wire.Component], *, steps_count: bool) -> int:
        number = 0
        for component in components:
            match component.name:
                case wire.COMPONENT_DOCUMENTS:
                    self._unclaimed_documents = component_codec.read_values(component, self.stage)
                case wire.COMPONENT_HANDLES:
                    self._unclaimed_descriptors = component_codec.read_values(component, self.stage)
                case wire.COMPONENT_EXECUTION:
                    plain = component_codec.read_versioned(component, self.stage)
                    number = int(plain.get("journal", 0))
                    self.root.load(plain.get("scopes", {}))
                    self.replay_point = ReplayPoint.from_plain(plain.get("at"))
                case wire.COMPONENT_EFFECTS:
                    for effect, raw in component_codec.read_versioned(component, self.stage).get("effects", {}).items():
                        self._add_effect(Effect.from_plain(effect, raw))
                case _:
                    self.unclaimed[component.name] = component
        replayed: list[tuple[str, str, StepRecord | None]] = []
        for record in self.journal.replay(number):
            self._apply(record, replayed)
        if replayed and not steps_count:
            self.journal.append({"t": "steps-undone"}, durable=True)
            self._undo(replayed)
        return _count_steps(self.root)

    def _undo(self, replayed: list[tuple[str, str, StepRecord | None]]) -> None:
        """Forget the steps that the journal has recorded so far, because their files were set back."""
        for path, label, before in reversed(replayed):
            steps = self.root.descendant(path).steps
            if before is None:
                steps.pop(label, None)
            else:
                steps[label] = before
        replayed.clear()

    def document(self, name: str, default: Document) -> Document:
        """Return the document of this name: the one in use, the restored one, or a copy of the default."""
        document = self.documents.get(name)
        if document is None:
            saved = self._unclaimed_documents.get(name)
            if saved is not None:
                document = decode(saved.data, name) if saved.encoding == "json" else bytearray(saved.data)
            elif isinstance(default, bytearray):
                document = bytearray(default)
            else:
                document = decode(encode(default, name), name)
        if document.__class__ is not default.__class__:
            raise RestoreFailed(
                f"document {name!r} was saved as a {document.__class__.__name__}, and this program asks for a "
                f"{default.__class__.__name__}: ask for what was saved and convert it, or use another name"
            )
        self.documents[name] = document
        self._unclaimed_documents.pop(name, None)
        return document

    def descriptor(self, name: str) -> Any:
        """Return the saved descriptor of a handle; None if there is none."""
        saved = self._unclaimed_descriptors.get(name)
        return None if saved is None else decode(saved.data, f"handle {name!r}")

    def register_handle(self, name: str, describe: Callable[[], Any]) -> None:
        """Save the handle's descriptor with each checkpoint from now on."""
        self.handles[name] = describe
        self._unclaimed_descriptors.pop(name, None)

    # -- replay up to the point where the restored checkpoint was taken --

    def iteration_started(self) -> None:
        """Keep the documents for the replay point if this is the first iteration that runs before it."""
        if self.replay_point is not None and self._documents_at_replay_point is None:
            self._documents_at_replay_point = self._document_values()

    def reach_point(self, point: ReplayPoint | None) -> None:
        """Set documents back if the program has reached the point where the restored checkpoint was taken."""
        if self.replay_point is None or point != self.replay_point:
            return
        for value in self._documents_at_replay_point or ():
            document = self.documents.get(value.name)
            if document is not None:
                assign_in_place(document, decode(value.data, value.name) if value.encoding == "json" else value.data)
        self.replay_point = self._documents_at_replay_point = None

    def note_progress(self) -> None:
        """End the replay if new work is recorded during it: the program did not reach the replay point."""
        if self._documents_at_replay_point is not None:
            log.warning(
                "the program did not reach the point where its checkpoint was taken (%s) and continues: changes that "
                "repeated iterations made to documents are in them twice",
                self.replay_point,
            )
            self.replay_point = self._documents_at_replay_point = None

    # -- between two checkpoints --

    def record_step(self, scope: Scope, label: str, record: StepRecord) -> None:
        """Record a finished step."""
        self.journal.append(
            {"t": "step", "p": scope.path, "s": label, "d": record.digest, "r": record.text}, durable=False
        )
        scope.steps[label] = record

    def record_sent(self, effect: Effect) -> None:
        """Record, durably, that an effect is about to be sent."""
        self.journal.append({"t": "effect", "id": effect.id, "e": effect.to_plain()}, durable=True)
        self._add_effect(effect)

    def record_confirmed(self, effect: str, text: str) -> None:
        """Record, durably, that an effect arrived, with its encoded result."""
        self.journal.append({"t": "confirmed", "id": effect, "r": text}, durable=True)
        self.ledger.confirm(effect, text)

    def record_reopened(self, effect: str) -> None:
        """Record, durably, that an effect may be sent again."""
        self.journal.append({"t": "open", "id": effect}, durable=True)
        self.ledger.reopen(effect)

    # -- a checkpoint --

    def capture(self, transaction: str, at: ReplayPoint | None = None) -> tuple[wire.Component, ...]:
        """Return the state as it is now, at point ``at`` of the program.

        Raises NotEncodable, StageFull, StateUnstable, Unavailable. Large arrays are captured first, so that the values
        that change fastest are read last.
        """
        try:
            return self._capture(transaction, at)
        except BaseException:
            self.release(transaction, committed=False)
            raise

    def _capture(self, transaction: str, at: ReplayPoint | None) -> tuple[wire.Component, ...]:
        large = [tensors.flush(transaction) for tensors in self.tensors.values()]
        for name, component in self.unclaimed.items():
            self.unclaimed[name] = component_codec.carry_over(component, self.stage)
        replayed = self._documents_at_replay_point
        values = {wire.COMPONENT_DOCUMENTS: self._document_values() if replayed is None else list(replayed)}
        handles = [Value.from_program(name, describe(), f"handle {name!r}") for name, describe in self.handles.items()]
        if handles or self._unclaimed_descriptors:
            everything = [*handles, *self._unclaimed_descriptors.values()]
            values[wire.COMPONENT_HANDLES] = component_codec.sorted_by_name(everything)
        journal = self.journal.rotate()
        point = self.replay_point or at
        execution = {"scopes": self.root.to_plain(), "at": None if point is None else point.to_plain()}
        values[wire.COMPONENT_EXECUTION] = [Value.versioned("execution", journal=journal, **execution)]
        values[wire.COMPONENT_EFFECTS] = [Value.versioned("ledger", effects=self.ledger.to_plain())]
        small, folder = component_codec.build_components(values, self.stage)
        self._transactions[transaction] = _Transaction(journal, folder)
        return (*small, *large, *self.unclaimed.values())

    def release(self, transaction: str, *, committed: bool) -> None:
        """Free what a transaction needs until its result: it has one, or will never have one."""
        for tensors in self.tensors.values():
            tensors.release(transaction)
        ended = self._transactions.pop(transaction, None)
        if ended is not None:
            if ended.folder is not None and self.stage is not None:
                self.stage.remove(ended.folder)
            if committed:
                self.journal.delete_below(ended.journal)

    def release_all(self) -> None:
        """Free every transaction, because the sidecar that knew them has ended."""
        for transaction in list(self._transactions):
            self.release(transaction, committed=False)
        for tensors in self.tensors.values():
            tensors.release(None)

    # -- internals --

    def _document_values(self) -> list[Value]:
        values = list(self._unclaimed_documents.values())
        try:
            for name, document in self.documents.items():
                values.append(Value.from_program(name, document, name))
        except RuntimeError as error:  # another thread changed a container while it was read
            raise StateUnstable(
                f"document {name!r} changed while it was read: threads that run no loop must change documents inside "
                f"agent.critical()"
            ) from error
        return component_codec.sorted_by_name(values)

    def _add_effect(self, effect: Effect) -> None:
        self.ledger.put(effect)
        self.root.descendant(effect.path).effects[effect.id] = None

    def _apply(self, record: Mapping[str, Any], replayed: list[tuple[str, str, StepRecord | None]]) -> None:
        """Apply one record of the journal; records of unknown types are ignored.

        ``replayed`` lists the steps that were applied, each with the record that it replaced.
        """
        match record.get("t"):
            case "step":
                path, label = str(record["p"]), str(record["s"])
                scope = self.root.descendant(path)
                replayed.append((path, label, scope.steps.get(label)))
                scope.steps[label] = StepRecord(str(record["d"]), str(record["r"]))
            case "steps-undone":
                self._undo(replayed)
            case "effect":
                self._add_effect(Effect.from_plain(str(record["id"]), record["e"]))
            case "confirmed" if self.ledger.get(record["id"]) is not None:
                self.ledger.confirm(record["id"], str(record["r"]))
            case "open" if self.ledger.get(record["id"]) is not None:
                self.ledger.reopen(record["id"])


def _count_steps(scope: Scope) -> int:
    return len(scope.steps) + sum(_count_steps(child) for child in scope.children.values())
