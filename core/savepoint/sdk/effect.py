"""Effects on the outside world: journal the intent, run the body, journal the confirmation.

Effects are not delivered exactly once: an effect that was sent and never confirmed is reported to the program, under
the id with which it was sent.
"""

import logging
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Literal

from savepoint.errors import StageFull, Superseded, Unavailable
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.encoding import decode, encode
from savepoint.sdk.errors import EffectUncertain
from savepoint.sdk.keys import SEGMENT_ESCAPES, checked_name, key_text, numbered
from savepoint.sdk.ledger import Effect, EffectState
from savepoint.sdk.scope import Scope

OnUncertain = Literal["raise", "retry", "skip"]
_NO_RESULT: Final = "null"
log: Final = logging.getLogger("savepoint")


class Operation:
    """One effect while its body runs.

    Attributes:
        id: 32 hexadecimal digits that no restart changes; pass it to the receiver as idempotency key.
        confirmed: True if the effect is known to have arrived in an earlier run of the body.
        sent_before: True if an earlier attempt under this id may have arrived.
        result: The recorded result of a confirmed effect, or what ``confirm`` was given; else None.
    """

    def __init__(self, effect: Effect, *, confirmed: bool, sent_before: bool) -> None:
        self.id: Final = effect.id
        self.confirmed: Final = confirmed
        self.sent_before: Final = sent_before
        self.result: Any = decode(effect.result) if confirmed else None
        self.sent = True

    def not_sent(self) -> None:
        """Declare that nothing left this process.

        If the body raises after this call, the effect is not uncertain and may be tried again.
        """
        self.sent = False

    def confirm(self, result: Any = None) -> None:
        """Set the effect's result inside a ``with`` block; leaving the block without an exception records it.

        Args:
            result: A savable value; later runs of the block find it in ``result``.
        """
        self.result = result


@dataclass(frozen=True)
class Uncertain:
    """An effect that was sent and never confirmed. Check with the receiver, then call ``confirm`` or ``retry``.

    Attributes:
        id: The id under which the effect was sent.
        name: The name given to ``Agent.effect``.
        key: Its key as text, or ``#<n>`` for the n-th effect of the name, counted from 0, if none was given.
        path: The scope that the effect belongs to.
        risk: The text given to ``Agent.effect`` as ``risk``.
        time: When the effect was last sent, as a UTC timestamp.
    """

    id: str
    name: str
    key: str
    path: str
    risk: str
    time: str
    _session: AgentSession = field(repr=False)

    @classmethod
    def from_effect(cls, effect: Effect, session: AgentSession) -> "Uncertain":
        """Return the uncertain effect for an entry of the ledger."""
        return cls(effect.id, effect.name, effect.key, effect.path, effect.risk, effect.time, session)

    def confirm(self, result: Any = None) -> None:
        """Record that the effect arrived: ``Agent.effect`` skips it from now on and returns ``result``.

        Args:
            result: A savable value.

        Raises:
            NotEncodable: The result cannot be saved.
            StageFull: The stage volume has no room for the record.
            Unavailable: The journal cannot be written.
        """
        with self._session.lock:
            self._session.state.record_confirmed(self.id, encode(result, f"the result of effect {self.name!r}"))

    def retry(self) -> None:
        """Record that the effect did not arrive, or may arrive twice: ``Agent.effect`` sends it again, under its id.

        Raises:
            StageFull: The stage volume has no room for the record.
            Unavailable: The journal cannot be written.
        """
        with self._session.lock:
            self._session.state.record_reopened(self.id)


@dataclass
class EffectCall:
    """One call of ``Agent.effect``, from its intent to its confirmation or failure."""

    name: str
    key: object
    risk: str
    on_uncertain: OnUncertain
    scope: Scope
    ordinal: int | None = None
    label: str = ""

    def begin(self, session: AgentSession) -> Operation:
        """Journal the intent and return the operation. Raises EffectUncertain, Superseded, StageFull."""
        checked_name(self.name, "effect")
        with session.lock:
            session.raise_if_ended()
            if self.key is None:
                self.ordinal = self.scope.ordinals.take(f"effect {self.name}")
                self.label = f"#{self.ordinal}"
            else:
                self.label = key_text(self.key, f"effect {self.name!r}")
            try:
                return self._begin(session)
            except BaseException:
                self._give_back_ordinal()
                raise

    def _begin(self, session: AgentSession) -> Operation:
        ledger = session.state.ledger
        effect_id = session.effect_id(self.scope.path, self.name, self.label)
        known = ledger.get(effect_id)
        if known is not None and known.state == EffectState.CONFIRMED:
            return Operation(known, confirmed=True, sent_before=True)
        sent_before = known is not None and known.state == EffectState.SENT
        if sent_before and effect_id in ledger.running:
            raise EffectUncertain(f"effect {self.name!r} ({effect_id}) is being sent by another thread", effect_id)
        if known is not None and sent_before and self.on_uncertain == "skip":
            session.state.record_confirmed(effect_id, _NO_RESULT)
            return Operation(ledger.get(effect_id) or known, confirmed=True, sent_before=True)
        if sent_before and self.on_uncertain != "retry":
            raise EffectUncertain(
                f"effect {self.name!r} was sent under the id {effect_id} and never confirmed: check with the receiver, "
                f"then call confirm() or retry() on it in agent.uncertain(), or pass on_uncertain='retry' if the "
                f"receiver ignores an id that it has seen before",
                effect_id,
            )
        if session.fenced is not None:
            raise Superseded(f"effect {self.name!r} was not sent: {session.fenced}")
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        effect = Effect(effect_id, self.scope.path, self.name, self.label, self.risk, now)
        session.state.record_sent(effect)
        ledger.running.add(effect_id)
        return Operation(effect, confirmed=False, sent_before=sent_before or (known is not None))

    @property
    def segment(self) -> str:
        """The path segment of the scope in which the body runs. No loop, step or scope has the same segment."""
        return f"{numbered(self.name, '!')}{self.label.translate(SEGMENT_ESCAPES)}"

    def fail(self, session: AgentSession, operation: Operation) -> None:
        """Handle an exception from the body: the effect is uncertain, unless the body said that nothing was sent."""
        with session.lock:
            session.state.ledger.running.discard(operation.id)
            self._give_back_ordinal()
            if not operation.sent:
                session.state.record_reopened(operation.id)

    def confirm(self, session: AgentSession, operation: Operation, result: Any) -> None:
        """Journal that the body returned.

        Raises NotEncodable if the result cannot be saved; the confirmation is still journaled, without it.
        """
        with session.lock:
            session.state.ledger.running.discard(operation.id)
            text = _NO_RESULT
            try:
                text = encode(result, f"the result of effect {self.name!r}")
            finally:
                session.state.ledger.collapse(self.scope.drop(self.segment))
                try:
                    session.state.record_confirmed(operation.id, text)
                except (StageFull, Unavailable) as error:
                    log.warning(
                        "effect %r arrived but its confirmation is not journaled, so a crash would make it uncertain: "
                        "%s",
                        self.name,
                        error,
                    )
                    session.state.ledger.confirm(operation.id, text)

    def _give_back_ordinal(self) -> None:
        if self.ordinal is not None:
            self.scope.ordinals.give_back(f"effect {self.name}", self.ordinal)


class EffectBlock:
    """The context manager of ``with agent.effect(name) as op:``.

    The body runs every time, under the same id; leaving it without an exception confirms the effect.
    """

    def __init__(self, session: AgentSession, call: EffectCall) -> None:
        self._session = session
        self._call = call
        self._operation: Operation | None = None

    def __enter__(self) -> Operation:
        self._operation = self._call.begin(self._session)
        return self._operation

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        operation = self._operation
        assert operation is not None
        if operation.confirmed:
            return
        if error is not None:
            self._call.fail(self._session, operation)
        else:
            self._call.confirm(self._session, operation, operation.result)
