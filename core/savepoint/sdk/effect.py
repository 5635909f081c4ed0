"""Effects on the outside world: the intent is journaled, the body runs, the confirmation is journaled.

It is not exactly-once delivery: what was sent and never confirmed is handed back, under the id it was sent with.
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
from savepoint.sdk.ledger import Effect
from savepoint.sdk.scope import Scope

OnUncertain = Literal["raise", "retry", "skip"]
_NOTHING: Final = "null"
log: Final = logging.getLogger("savepoint")


class Operation:
    """One effect while its body runs. ``id`` is what to give the other side as idempotency key."""

    def __init__(self, effect: Effect, *, confirmed: bool, sent_before: bool) -> None:
        self.id: Final = effect.id
        self.confirmed: Final = confirmed  # it is known to have arrived in an earlier run of the body
        self.sent_before: Final = sent_before  # an earlier attempt under this id may have arrived
        self.result: Any = decode(effect.result) if confirmed else None
        self.sent = True

    def not_sent(self) -> None:
        """Nothing left this process: if the body raises now, the effect is no uncertain one and may be tried again."""
        self.sent = False

    def confirm(self, result: Any = None) -> None:
        """What a ``with`` block gives as the effect's result."""
        self.result = result


@dataclass(frozen=True)
class Uncertain:
    """An effect that was sent and never confirmed: look at the other side, then ``confirm`` or ``retry``."""

    id: str
    name: str
    key: str
    path: str
    risk: str
    time: str  # when it was sent last, UTC
    _session: AgentSession = field(repr=False)

    @classmethod
    def of(cls, effect: Effect, session: AgentSession) -> "Uncertain":
        """From the ledger."""
        return cls(effect.id, effect.name, effect.key, effect.path, effect.risk, effect.time, session)

    def confirm(self, result: Any = None) -> None:
        """It did arrive: the effect is skipped from here on and gives ``result``."""
        with self._session.lock:
            self._session.state.record_confirmed(self.id, encode(result, f"the result of effect {self.name!r}"))

    def retry(self) -> None:
        """It did not arrive, or may arrive twice: the next ``effect`` sends it again under the same id."""
        with self._session.lock:
            self._session.state.record_open(self.id)


@dataclass
class Call:
    """One call of ``Agent.effect``, before it is known what becomes of it."""

    name: str
    key: object
    risk: str
    on_uncertain: OnUncertain
    scope: Scope
    ordinal: int | None = None
    label: str = ""

    def begin(self, session: AgentSession) -> Operation:
        """Journal the intent. Raises EffectUncertain, Superseded, StageFull."""
        checked_name(self.name, "effect")
        with session.lock:
            session.check()
            if self.key is None:
                self.ordinal = self.scope.used.take(f"effect {self.name}")
                self.label = f"#{self.ordinal}"
            else:
                self.label = key_text(self.key, f"effect {self.name!r}")
            try:
                return self._begin(session)
            except BaseException:
                self._give_back()
                raise

    def _begin(self, session: AgentSession) -> Operation:
        ledger = session.state.ledger
        effect_id = session.effect_id(self.scope.path, self.name, self.label)
        known = ledger.get(effect_id)
        if known is not None and known.state == "Confirmed":
            return Operation(known, confirmed=True, sent_before=True)
        sent_before = known is not None and known.state == "Sent"
        if sent_before and effect_id in ledger.running:
            raise EffectUncertain(f"effect {self.name!r} ({effect_id}) runs already in another thread", effect_id)
        if known is not None and sent_before and self.on_uncertain == "skip":
            session.state.record_confirmed(effect_id, _NOTHING)
            return Operation(ledger.get(effect_id) or known, confirmed=True, sent_before=True)
        if sent_before and self.on_uncertain != "retry":
            raise EffectUncertain(
                f"effect {self.name!r} was sent under the id {effect_id} and never confirmed: look at the other side, "
                f"then call confirm() or retry() on it in agent.uncertain(), or pass on_uncertain='retry' where the "
                f"other side ignores an id that it has seen",
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
        """The scope in which the body runs: what it records does not count among its neighbours."""
        return f"{numbered(self.name, '!')}{self.label.translate(SEGMENT_ESCAPES)}"

    def failed(self, session: AgentSession, operation: Operation) -> None:
        """The body raised: nobody knows whether it arrived, unless the body said that nothing was sent."""
        with session.lock:
            session.state.ledger.running.discard(operation.id)
            self._give_back()
            if not operation.sent:
                session.state.record_open(operation.id)

    def confirmed(self, session: AgentSession, operation: Operation, result: Any) -> None:
        """The body returned. Raises NotEncodable, after the confirmation is journaled without the result."""
        with session.lock:
            session.state.ledger.running.discard(operation.id)
            text = _NOTHING
            try:
                text = encode(result, f"the result of effect {self.name!r}")
            finally:
                session.state.ledger.collapse(self.scope.drop(self.segment))
                try:
                    session.state.record_confirmed(operation.id, text)
                except (StageFull, Unavailable) as error:
                    log.warning("effect %r arrived, but a crash would make it uncertain: %s", self.name, error)
                    session.state.ledger.confirm(operation.id, text)

    def _give_back(self) -> None:
        if self.ordinal is not None:
            self.scope.used.give_back(f"effect {self.name}", self.ordinal)


class EffectBlock:
    """``with agent.effect(name) as op:`` — the body runs every time, under the same id; leaving it well confirms."""

    def __init__(self, session: AgentSession, call: Call) -> None:
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
            self._call.failed(self._session, operation)
        else:
            self._call.confirmed(self._session, operation, operation.result)
