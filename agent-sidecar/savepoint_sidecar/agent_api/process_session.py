"""The agent's process as the sidecar sees it: one session from its connect to the end of its orders stream.

State on the event loop only. HTTP is ``socket_server``'s; what a checkpoint does with a session is ``checkpoint``'s.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.quiesce import Transaction

OPEN_SECONDS: Final = 10.0
"""A session whose orders stream is not opened so soon after connect is dead."""
PATIENCE_SECONDS: Final = 2.0
"""How much later than its successor's connect the end of a killed process' stream may be seen."""
REMEMBERED: Final = 8


class SessionInUse(SavepointError):
    """Another live process is connected as this agent."""

    reason = "SessionInUse"


@dataclass
class ProcessSession:
    """One process of the agent."""

    id: str
    hello: wire.Connect
    orders: "asyncio.Queue[wire.Order | None]" = field(default_factory=asyncio.Queue)
    """None ends the stream."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    streaming: bool = False
    transaction: Transaction | None = None
    past: dict[str, Transaction] = field(default_factory=dict)
    execution: wire.Execution = field(default_factory=wire.Execution)
    """Where the agent said it stands, at its last flush."""
    finished: bool = False

    @property
    def alive(self) -> bool:
        """Whether the process is there, as far as is known."""
        return not self.ended.is_set()

    def send(self, order: wire.Order) -> None:
        """Put an order on the stream."""
        if self.alive:
            self.orders.put_nowait(order)

    def begin(self, transaction: Transaction) -> None:
        """A transaction is under way: flushes for it are taken from now on."""
        self.transaction = transaction
        self.past[transaction.id] = transaction
        while len(self.past) > REMEMBERED:
            del self.past[next(iter(self.past))]
        if not self.alive:
            transaction.fail(Unavailable("the agent's process has ended"))

    def cancel(self, transaction: Transaction, error: SavepointError) -> None:
        """Tell the agent that nobody waits for its flush any more."""
        self.send(wire.Cancelled(transaction.id, error.reason, str(error)))
        transaction.fail(error)

    def result(
        self, transaction: Transaction, outcome: str, *, checkpoint: str = "", reason: str = "", message: str = ""
    ) -> None:
        """Tell how a transaction ended, and forget it."""
        if self.transaction is transaction:
            self.transaction = None
        self.send(wire.Result(transaction.id, outcome, transaction.request, checkpoint, reason, message))

    def end(self) -> None:
        """The process is gone: whoever waits for its flush is told."""
        if self.ended.is_set():
            return
        self.ended.set()
        self.orders.put_nowait(None)
        if self.transaction is not None:
            self.transaction.fail(Unavailable("the agent's process ended before it had flushed"))


class ProcessSessions:
    """At most one live session."""

    def __init__(self, random_id: Callable[[], str]) -> None:
        self._random_id = random_id
        self.current: ProcessSession | None = None
        self.connects = 0
        """How many processes have connected in this container's life."""

    @property
    def live(self) -> ProcessSession | None:
        """The session of a process that is there and has not said that it is done."""
        session = self.current
        return session if session is not None and session.alive and not session.finished else None

    async def admit(self, hello: wire.Connect) -> ProcessSession:
        """A session for this process. SessionInUse while another process is alive."""
        before = self.current
        if before is not None and before.alive:
            if before.hello.instance == hello.instance or before.finished:
                before.end()
            else:
                try:
                    async with asyncio.timeout(PATIENCE_SECONDS if before.streaming else OPEN_SECONDS):
                        await before.ended.wait()
                except TimeoutError as error:
                    raise SessionInUse(
                        f"another process (pid {before.hello.pid}) is connected as this agent; "
                        "one process per agent calls connect(), the others use what it hands them"
                    ) from error
        if self.current is not before:
            raise SessionInUse("another process of this agent connected at the same time; try again")
        session = ProcessSession(self._random_id(), hello)
        self.current = session
        self.connects += 1
        return session

    def find(self, session: str) -> ProcessSession:
        """The live session of this id; Unavailable for one that is over."""
        current = self.current
        if current is None or current.id != session or not current.alive:
            raise Unavailable("this session is over; call connect() again in a new process")
        return current
