"""The API of an agent's program: documents, loops, steps, effects, safe points, tensors, checkpoints.

Protocol and format are elsewhere: each call finds its scope, does one thing to the state under the session's lock, and
runs the program's own code outside of the lock.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final, ParamSpec, TypeVar, overload

from savepoint.contract.agent_protocol import KINDS, TENSORS_PREFIX, Kind, Restored
from savepoint.errors import StageFull, Unavailable
from savepoint.sdk.agent_session import AgentSession
from savepoint.sdk.digest import digest
from savepoint.sdk.effect import EffectBlock, EffectCall, OnUncertain, Operation, Uncertain
from savepoint.sdk.encoding import decode, encode
from savepoint.sdk.errors import NotEncodable
from savepoint.sdk.iterations import LoopIterations
from savepoint.sdk.keys import checked_name, numbered
from savepoint.sdk.loop import Loop
from savepoint.sdk.scope import Scope
from savepoint.sdk.step import StepCall
from savepoint.sdk.tensors import Load, Save, TensorSet, read_tensors

T = TypeVar("T")
P = ParamSpec("P")
D = TypeVar("D", dict[str, Any], list[Any], bytearray)
log: Final = logging.getLogger("savepoint")


class Agent:
    """A connected agent, as returned by ``savepoint.connect()``.

    Use it as a context manager, or call ``close()`` or ``finish()`` at the end. Once the session has ended, methods
    that read or record state raise the error that ended it: ``Unavailable`` after ``close()`` or ``finish()``,
    ``SessionInUse`` in a forked child.
    """

    def __init__(self, session: AgentSession) -> None:
        self._session = session
        self._iterations = LoopIterations(session)
        self._warned: set[str] = set()

    # -- identity --

    @property
    def name(self) -> str:
        """The agent's name, under which its checkpoints are kept."""
        return self._session.connected.agent

    @property
    def namespace(self) -> str:
        """The Kubernetes namespace; empty on a laptop."""
        return self._session.connected.namespace

    @property
    def epoch(self) -> int:
        """The fencing number of this incarnation; 0 if the agent is not managed."""
        return self._session.connected.epoch

    @property
    def managed(self) -> bool:
        """True if checkpoints of this agent can be taken; False outside a protected pod and ``savepoint run``."""
        return self._session.link is not None

    @property
    def restored(self) -> Restored | None:
        """The checkpoint that the state was restored from; None on a fresh start."""
        return self._session.connected.restored

    # -- state --

    def document(self, name: str, default: D) -> D:
        """Return a dict, list or bytearray whose content is saved with each checkpoint.

        The object is yours to change; what it holds at a safe point is saved.

        Args:
            name: Name of the document, 1 to 200 printable characters.
            default: Its content if no checkpoint holds it. The default is copied, never returned itself.

        Returns:
            The restored document, or a copy of ``default``. The same name returns the same object every time.

        Raises:
            NotEncodable: The default is not a dict, list or bytearray, or contains a value that cannot be saved.
            RestoreFailed: The saved document is of another type, or is damaged.
            ValueError: The name is not allowed.
        """
        session = self._session
        with session.lock:
            session.raise_if_ended()
            checked_name(name, "document")
            if default.__class__ not in (dict, list, bytearray):
                raise NotEncodable(f"document {name!r}: the default must be a dict, a list or a bytearray", name)
            document: Any = session.state.document(name, default)
            return document  # type: ignore[no-any-return]  # of the default's class: State.document checked it

    def tensors(self, name: str, save: Save, load: Load | None = None, kind: Kind = "ModelWeights") -> None:
        """Register a set of large arrays, which are saved with each checkpoint.

        The stage volume holds two copies of every set; registering the set fills both.

        Args:
            name: Name of the set, 1 to 200 printable characters.
            save: Returns a mapping of names to C-contiguous buffers of any shape (numpy arrays, bytes, bytearrays). It
                is called now and at each checkpoint, during the pause; return views of the live arrays, not copies.
            load: Called at once with a mapping of names to ``Tensor`` if a checkpoint restored the set.
            kind: What the arrays are: ModelWeights, OptimizerState, KVCache, Memory, Execution, Tools, Environment or
                Custom.

        Raises:
            NotEncodable: ``save`` returned something other than a mapping of names to C-contiguous buffers.
            RestoreFailed: The restored arrays cannot be read.
            Unavailable: A file of the stage cannot be read or written.
            ValueError: The name or the kind is not allowed.
        """
        session = self._session
        with session.lock:
            session.raise_if_ended()
            checked_name(name, "tensor set")
            if kind not in KINDS:
                raise ValueError(f"kind must be one of {', '.join(sorted(KINDS))}, not {kind!r}")
            component = session.state.unclaimed.get(f"{TENSORS_PREFIX}{name}")
            stage = session.state.stage
        if component is not None and stage is not None and load is not None:
            load(read_tensors(stage.root, component))
        if stage is None:
            return
        tensors = TensorSet(name, kind, save, stage)
        try:
            tensors.fill_buffers()
        except StageFull as error:  # each checkpoint will fail with this error; the agent continues
            log.warning("tensors %r are not staged: %s", name, error)
        with session.lock:
            session.state.unclaimed.pop(tensors.component, None)
            session.state.tensors[tensors.component] = tensors

    def handle(self, name: str, reopen: Callable[[Any], T], describe: Callable[[T], Any]) -> T:
        """Open something that cannot be saved (a connection, a session, a cursor) from a descriptor that can.

        Args:
            name: Name of the handle, 1 to 200 printable characters.
            reopen: Called now with the saved descriptor, or None if there is none; returns the open object.
            describe: Returns the object's descriptor; called at each checkpoint. The descriptor must be a savable value
                and hold no secrets.

        Returns:
            What ``reopen`` returned.

        Raises:
            RestoreFailed: The saved descriptor is damaged.
            ValueError: The name is not allowed.
        """
        session = self._session
        with session.lock:
            session.raise_if_ended()
            descriptor = session.state.descriptor(checked_name(name, "handle"))
        opened = reopen(descriptor)
        with session.lock:
            session.state.register_handle(name, lambda: describe(opened))
        return opened

    # -- execution --

    @overload
    def loop(self, name: str, items: Iterable[T]) -> Iterator[T]: ...
    @overload
    def loop(self, name: str, items: Iterable[T], key: Callable[[T], object]) -> Iterator[T]: ...
    def loop(self, name: str, items: Iterable[T], key: Callable[[T], object] | None = None) -> Iterator[T]:
        """Iterate over ``items`` and skip the iterations that the restored checkpoint holds as finished.

        Every boundary between two iterations is a safe point. Leaving the loop by an exception or ``break`` keeps its
        position: the next loop of the same name in the same scope continues behind the last finished iteration. A loop
        that ran to its end is skipped as a whole, without reading its items.

        Args:
            name: Name of the loop, 1 to 200 printable characters.
            items: Any iterable that produces the same keys again, in any order; it may be endless.
            key: Returns the key of an item: a string, an integer or a tuple of them. Items that are keys themselves
                need no function.

        Returns:
            An iterator over the items whose iterations are to run. Use it directly in the ``for`` statement.

        Raises:
            LoopKeyRepeated: Two items have the same key.
            NotEncodable: A key is not a string, an integer or a tuple of them.
            RuntimeError: The loop was entered a second time in its scope while this iterator was in use.
            ValueError: The name is not allowed.
        """
        session = self._session
        session.raise_if_ended()
        return Loop(self._iterations, session.position, checked_name(name, "loop"), items, key).iterate()

    def step(self, name: str, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a function once: its result is journaled before it is returned, and replayed after a restart.

        A step whose function raises is not recorded. A step must not change documents, because its function does not
        run when it is replayed.

        Args:
            name: Name of the step, 1 to 200 printable characters. Steps of one name are distinguished by their order
                in the scope.
            function: The function; its result must be a savable value.
            *args: Its positional arguments. A digest of the arguments is recorded, not the arguments.
            **kwargs: Its keyword arguments.

        Returns:
            The function's result, or the recorded one.

        Raises:
            StepChanged: The step is recorded with other arguments.
            NotEncodable: The result cannot be saved.
            RestoreFailed: The recorded result is damaged, or its class is not registered.
            ValueError: The name is not allowed.
        """
        session = self._session
        checked_name(name, "step")
        scope = session.position.current()
        call = StepCall(name, scope, digest((args, kwargs)), self._warned)
        what = f"the result of step {name!r}"
        recorded = call.begin(session)
        if recorded is not None:
            return decode(recorded, what)  # type: ignore[no-any-return]
        try:
            result = self._run(f"step {name!r}", scope, scope.child(call.segment), lambda: function(*args, **kwargs))
            text = encode(result, what)
        except BaseException:
            call.fail(session)
            raise
        call.record(session, text)
        return result

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Give a part of the program (a sub-agent, a thread) its own names for loops, steps and effects.

        Args:
            name: Name of the scope, 1 to 200 printable characters.

        Raises:
            ValueError: The name is not allowed.
        """
        session = self._session
        checked_name(name, "scope")
        outer = session.position.current()
        with session.lock:
            session.raise_if_ended()
            ordinal = outer.ordinals.take(f"scope {name}")
            inner = outer.child(numbered(name, ordinal))
        try:
            inner.begin_pass()
            session.position.move(inner)
            yield
        except BaseException:
            with session.lock:
                outer.ordinals.give_back(f"scope {name}", ordinal)
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
        """Act on the outside world under an id that is the same in every incarnation of this run.

        The intent is on disk before the body runs, and its return is journaled as confirmation. With a function, a
        confirmed effect is skipped and its recorded result returned. Without one, the call is the context expression of
        a ``with`` block, whose body runs every time and reads ``Operation.confirmed`` and ``Operation.sent_before``.

        Args:
            name: Name of the effect, 1 to 200 printable characters.
            function: The body, called with the ``Operation``; its result must be a savable value.
            key: Distinguishes effects of one name: a string, an integer or a tuple of them. Without a key they are
                distinguished by their order in the scope.
            risk: Any text that helps to judge the effect if it becomes uncertain; see ``Uncertain.risk``.
            on_uncertain: What to do if the effect was sent before and never confirmed: ``"raise"``, ``"retry"`` (send
                it again under its id) or ``"skip"`` (record it as confirmed, without a result).

        Returns:
            The result of ``function``, or the recorded one; without a function, a context manager that returns the
            ``Operation``.

        Raises:
            EffectUncertain: The effect was sent before and never confirmed, or another thread is sending it now.
            Superseded: Effects are refused, because another incarnation of this agent may be running.
            NotEncodable: The key or the result cannot be saved. In the second case the effect stays confirmed.
            StageFull: The intent cannot be journaled: the stage volume is full. Nothing was sent.
            Unavailable: The intent cannot be journaled. Nothing was sent.
            ValueError: The name is not allowed.
        """
        session = self._session
        scope = session.position.current()
        if function is None:
            return EffectBlock(session, EffectCall(name, key, risk, "retry", scope))
        call = EffectCall(name, key, risk, on_uncertain, scope)
        operation = call.begin(session)
        if operation.confirmed:
            return operation.result  # type: ignore[no-any-return]
        try:
            result = self._run(f"effect {name!r}", scope, scope.child(call.segment), lambda: function(operation))
        except BaseException:
            call.fail(session, operation)
            raise
        call.confirm(session, operation, result)
        return result

    def uncertain(self) -> list[Uncertain]:
        """Return the effects that were sent and never confirmed, oldest first.

        Decide each with ``confirm()`` or ``retry()`` before the program reaches it again.
        """
        session = self._session
        with session.lock:
            return [Uncertain.from_effect(item, session) for item in session.state.ledger.uncertain()]

    # -- checkpoints --

    def safe_point(self) -> None:
        """Declare that the state is consistent here: a checkpoint that is due is taken.

        Costs well below a microsecond if none is due. A checkpoint that fails here is logged and does not raise.

        Raises:
            NotEncodable: With ``SAVEPOINT_REQUIRED=1``: a value cannot be saved.
            StageFull: With ``SAVEPOINT_REQUIRED=1``: the stage volume has no room for the state.
            Unavailable: With ``SAVEPOINT_REQUIRED=1``: the sidecar was lost and did not return.
            SessionInUse: With ``SAVEPOINT_REQUIRED=1``: another process has taken over the agent.
        """
        session = self._session
        at = session.explicit_point()
        if session.gate.attention or session.state.replay_point is not None:
            session.safe_point(at)

    @contextmanager
    def critical(self) -> Iterator[None]:
        """Prevent checkpoints while the block runs, in whichever thread a safe point is reached."""
        self._session.gate.enter_critical()
        try:
            yield
        finally:
            self._session.gate.leave_critical()

    def checkpoint(self, reason: str = "", timeout: float = 300.0) -> str:
        """Take a checkpoint now and wait until it is committed. The call is a safe point.

        Args:
            reason: Why the checkpoint is taken, for people who read about it later.
            timeout: How long to wait for the result, in seconds.

        Returns:
            The checkpoint's name; an empty string if the agent is not managed.

        Raises:
            NotAtSafePoint: The call is inside ``critical()``.
            DeadlineExceeded: There was no result within ``timeout``.
            QuiesceTimeout: Another thread did not reach a safe point in time.
            NotEncodable: A value cannot be saved.
            StageFull: The stage volume has no room for the state.
            StateUnstable: A document changed while it was read.
            Unavailable: The sidecar or the operator cannot be reached.
            SavepointError: Any other reason for which the checkpoint failed.
        """
        return self._session.checkpoint(reason, timeout)

    def finish(self, timeout: float = 300.0) -> str:
        """Complete the run: take its final checkpoint and end the session. The next run starts fresh.

        Args:
            timeout: How long to wait for other threads and for the commit, in seconds.

        Returns:
            The checkpoint's name; an empty string if the agent is not managed, or if the checkpoint is stored and left
            for the operator to commit.

        Raises:
            NotAtSafePoint: The call is inside ``critical()``.
            DeadlineExceeded: Other threads still run loop iterations.
            NotEncodable: A value cannot be saved.
            StageFull: The stage volume has no room for the state.
            StateUnstable: A document changed while it was read.
            Unavailable: The sidecar cannot be reached; the session is still open, and the call may be repeated.
            SavepointError: Any other reason for which the checkpoint failed.
        """
        name = self._session.finish(timeout)
        self._session.close(Unavailable("the run is finished: savepoint.connect() starts the next one"))
        return name

    def close(self) -> None:
        """End the session without completing the run: the next ``connect()`` continues from the last checkpoint."""
        self._session.close(Unavailable("the session is closed: savepoint.connect() opens another"))

    def __enter__(self) -> "Agent":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- internals --

    def _run(self, what: str, outer: Scope, inner: Scope, body: Callable[[], T]) -> T:
        """Run the program's own code in its own scope, and show it as what the agent is doing."""
        self._session.activity.begin(what)
        try:
            inner.begin_pass()
            self._session.position.move(inner)
            return body()
        finally:
            inner.open = False
            self._session.position.move(outer)
            self._session.activity.end()
