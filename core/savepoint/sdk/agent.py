"""What an agent's program sees: documents, loops, steps, effects, safe points, tensors, checkpoints.

It holds no protocol and no format: each call finds its scope, does one thing with the state under the session's lock,
and runs the program's own code outside of it.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar, overload

from savepoint.contract.agent_protocol import KINDS, TENSORS_PREFIX, Kind, Restored
from savepoint.errors import StageFull, Unavailable
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.digest import digest
from savepoint.sdk.effect import Call, EffectBlock, OnUncertain, Operation, Uncertain
from savepoint.sdk.encoding import decode, encode
from savepoint.sdk.errors import NotEncodable, StepChanged
from savepoint.sdk.iterations import LoopIterations
from savepoint.sdk.keys import checked_name, numbered
from savepoint.sdk.loop import Loop
from savepoint.sdk.scope import Scope, StepRecord
from savepoint.sdk.stage import Stage
from savepoint.sdk.tensors import Load, Save, TensorSet, restored

T = TypeVar("T")
P = ParamSpec("P")
D = TypeVar("D", dict[str, Any], list[Any], bytearray)
log: Final = logging.getLogger("savepoint")


class Agent:
    """A connected agent; ``savepoint.connect()`` makes it."""

    def __init__(self, session: AgentSession) -> None:
        self._session = session
        self._turns = LoopIterations(session)
        self._warned: set[str] = set()

    # -- who, and from where --

    @property
    def name(self) -> str:
        """The agent's name, which is the name of its lineage of checkpoints."""
        return self._session.connected.agent

    @property
    def namespace(self) -> str:
        """The Kubernetes namespace; empty on a laptop."""
        return self._session.connected.namespace

    @property
    def epoch(self) -> int:
        """The incarnation's fencing number; 0 when not managed."""
        return self._session.connected.epoch

    @property
    def managed(self) -> bool:
        """Whether something takes checkpoints of this agent."""
        return self._session.link is not None

    @property
    def restored(self) -> Restored | None:
        """The checkpoint that the state came from; None on a fresh start."""
        return self._session.connected.restored

    # -- state --

    def document(self, name: str, default: D) -> D:
        """A dict, list or bytearray that is yours to change: what it holds at a safe point is saved.

        After a restore it holds what was saved; ``default`` is copied otherwise. The same name gives the same object.
        """
        session = self._session
        with session.lock:
            session.check()
            checked_name(name, "document")
            if default.__class__ not in (dict, list, bytearray):
                raise NotEncodable(f"document {name!r}: the default is a dict, a list or a bytearray", name)
            document: Any = session.state.document(name, default)
            return document  # type: ignore[no-any-return]  # of the default's class: State.document checked it

    def tensors(self, name: str, save: Save, load: Load | None = None, kind: Kind = "ModelWeights") -> None:
        """Register a set of large arrays. ``save()`` returns names and C-contiguous buffers (numpy arrays, …) and is
        called at each checkpoint, in the pause; ``load()`` is called now if a checkpoint brought the set back.
        """
        session = self._session
        with session.lock:
            session.check()
            checked_name(name, "tensor set")
            if kind not in KINDS:
                raise ValueError(f"kind is one of {', '.join(sorted(KINDS))}, not {kind!r}")
            component = session.state.restored.get(f"{TENSORS_PREFIX}{name}")
            stage = session.state.stage
        if component is not None and stage is not None and load is not None:
            load(restored(stage.root, component))
        if stage is None:
            return
        known = TensorSet(name, kind, save, stage)
        try:
            known.warm()
        except StageFull as error:  # each checkpoint will fail and say so; the agent goes on
            log.warning("tensors %r are not staged: %s", name, error)
        with session.lock:
            session.state.restored.pop(known.component, None)
            session.state.tensors[known.component] = known

    def handle(self, name: str, reopen: Callable[[Any], T], describe: Callable[[T], Any]) -> T:
        """An open thing (a connection, a session, a cursor) that cannot be saved, opened again from what can.

        ``reopen(descriptor)`` is called now, with what was saved or None, and its result returned; ``describe`` gives
        the descriptor at each checkpoint: plain values, no secrets.
        """
        session = self._session
        with session.lock:
            session.check()
            descriptor = session.state.descriptor(checked_name(name, "handle"))
        opened = reopen(descriptor)
        with session.lock:
            session.state.hold(name, lambda: describe(opened))
        return opened

    # -- execution --

    @overload
    def loop(self, name: str, items: Iterable[T]) -> Iterator[T]: ...
    @overload
    def loop(self, name: str, items: Iterable[T], key: Callable[[T], object]) -> Iterator[T]: ...
    def loop(self, name: str, items: Iterable[T], key: Callable[[T], object] | None = None) -> Iterator[T]:
        """Iterate over ``items``; each turn is a safe point, and turns that the cut holds as finished are skipped.

        ``key`` gives each item its key: text, a whole number or a tuple of them (items that are such need none).
        Leaving by an exception or by ``break`` keeps the position; a loop that ran to its end collapses to one mark.
        """
        session = self._session
        session.check()
        return Loop(self._turns, session.position, checked_name(name, "loop"), items, key).turns()

    def step(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` once: its result is journaled before it is returned, and replayed after a restart.

        Raises StepChanged if the recorded step had other arguments, NotEncodable if the result cannot be saved.
        """
        session = self._session
        checked_name(name, "step")
        scope = session.position.now()
        arguments = digest((args, kwargs))
        with session.lock:
            session.check()
            ordinal = scope.used.take(f"step {name}")
            label = numbered(name, ordinal)
            record = scope.steps.get(label)
        self._warn_if_ambiguous(scope, name, ordinal, recorded=record is not None)
        if record is not None:
            if record.digest != arguments:
                scope.used.give_back(f"step {name}", ordinal)
                raise StepChanged(
                    f"step {name!r} ({scope.path or 'top'}/{label}) is on record with other arguments: a step that "
                    f"repeats belongs in agent.loop(); if the program was changed, give the step a new name or start "
                    f"a fresh run"
                )
            return decode(record.text, f"the result of step {name!r}")  # type: ignore[no-any-return]
        inner = scope.child(f"{label}()")
        try:
            result = self._run(f"step {name!r}", scope, inner, lambda: function(*args, **kwargs))
            text = encode(result, f"the result of step {name!r}")
        except BaseException:
            with session.lock:
                scope.used.give_back(f"step {name}", ordinal)
            raise
        with session.lock:
            record = StepRecord(arguments, text)
            try:
                session.state.record_step(scope, label, record)
            except (StageFull, Unavailable) as error:
                log.warning("step %r is not journaled and would run again after a crash: %s", name, error)
                scope.steps[label] = record
            session.state.ledger.collapse(scope.drop(f"{label}()"))
            session.state.moved_on()
        return result

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """A part of the program (a sub-agent, a thread) with names of its own."""
        session = self._session
        checked_name(name, "scope")
        outer = session.position.now()
        with session.lock:
            session.check()
            ordinal = outer.used.take(f"scope {name}")
            inner = outer.child(numbered(name, ordinal))
        try:
            inner.begin_pass()
            session.position.move(inner)
            yield
        except BaseException:
            with session.lock:
                outer.used.give_back(f"scope {name}", ordinal)
            raise
        finally:
            inner.open = False
            session.position.move(outer)

    @overload
    def effect(
        self, name: str, function: Callable[[Operation], T], *, key: object = None, risk: str = "",
        on_uncertain: OnUncertain = "raise",
    ) -> T: ...  # fmt: skip
    @overload
    def effect(self, name: str, *, key: object = None, risk: str = "") -> EffectBlock: ...
    def effect(
        self,
        name: str,
        function: Callable[[Operation], T] | None = None,
        *,
        key: object = None,
        risk: str = "",
        on_uncertain: OnUncertain = "raise",
    ) -> T | EffectBlock:
        """Do something to the outside world under an id that stays the same in every incarnation of this run.

        The intent is journaled before ``function(op)`` runs and its return is journaled as confirmation; a confirmed
        effect is skipped and its result returned. Sent before and never confirmed: EffectUncertain, or send again
        ("retry") or take it for done ("skip"). Without a function: a ``with`` block, whose body runs every time.
        """
        session = self._session
        scope = session.position.now()
        if function is None:
            return EffectBlock(session, Call(name, key, risk, "retry", scope))
        call = Call(name, key, risk, on_uncertain, scope)
        operation = call.begin(session)
        if operation.confirmed:
            return operation.result  # type: ignore[no-any-return]
        try:
            result = self._run(f"effect {name!r}", scope, scope.child(call.segment), lambda: function(operation))
        except BaseException:
            call.failed(session, operation)
            raise
        call.confirmed(session, operation, result)
        return result

    def uncertain(self) -> list[Uncertain]:
        """Effects that were sent and never confirmed, for you to ``confirm()`` or ``retry()``."""
        session = self._session
        with session.lock:
            return [Uncertain.of(item, session) for item in session.state.ledger.uncertain()]

    # -- checkpoints --

    def safe_point(self) -> None:
        """The state is whole here: a checkpoint that is due is taken. Costs next to nothing if none is."""
        session = self._session
        at = session.explicit_point()
        if session.gate.attention or session.state.catching_up is not None:
            session.point(at)

    @contextmanager
    def critical(self) -> Iterator[None]:
        """No checkpoint is taken inside the block, by whichever thread."""
        self._session.gate.enter_critical()
        try:
            yield
        finally:
            self._session.gate.leave_critical()

    def checkpoint(self, reason: str = "", timeout: float = 300.0) -> str:
        """Take a checkpoint now and return its name once it is committed (empty when not managed).

        Raises Unavailable, DeadlineExceeded, NotEncodable, StageFull and whatever else made it fail.
        """
        return self._session.checkpoint(reason, timeout)

    def finish(self, timeout: float = 300.0) -> str:
        """The run is complete: the last checkpoint is taken, and the next run starts fresh. Returns its name."""
        name = self._session.finish(timeout)
        self._session.close(Unavailable("the run is finished: savepoint.connect() starts the next one"))
        return name

    def close(self) -> None:
        """End the session without completing the run: the next connect() goes on from the last checkpoint."""
        self._session.close(Unavailable("the session is closed: savepoint.connect() opens another"))

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside --

    def _run(self, what: str, outer: Scope, inner: Scope, body: Callable[[], T]) -> T:
        """The program's own code, in a scope of its own and known as what the agent is at."""
        self._session.activity.begin(what)
        try:
            inner.begin_pass()
            self._session.position.move(inner)
            return body()
        finally:
            inner.open = False
            self._session.position.move(outer)
            self._session.activity.end()

    def _warn_if_ambiguous(self, scope: Scope, name: str, ordinal: int, *, recorded: bool) -> None:
        if ordinal and not recorded and scope.pauses.get(name) != scope.points and name not in self._warned:
            self._warned.add(name)
            log.warning(
                "step %r runs again in one scope with safe points in between: after a restart its first result would "
                "be replayed; put what repeats into agent.loop()",
                name,
            )
        scope.pauses[name] = scope.points


def stage_of(root: str | None) -> Stage:
    """The agent's part of the stage volume. Raises Unavailable where the environment names none."""
    if not root:
        raise Unavailable("SAVEPOINT_STAGE is not set: the agent and its sidecar need a folder that both can write")
    return Stage(Path(root))
