"""Sessions of the agent's processes: one session lasts from a connect to the end of its orders stream.

State on the event loop only. ``socket_server`` speaks HTTP; ``checkpoint`` decides what to do with a session.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from savepoint.contract import agent_protocol as wire
from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError, Unavailable

from savepoint_sidecar.agent_api.quiesce import Transaction

STREAM_OPEN_SECONDS: Final = 10.0
"""A process that does not open its orders stream within this time after connect is considered dead."""
STREAM_END_SECONDS: Final = 2.0
"""Seconds that a connect waits for the end of a killed predecessor's stream, which may be noticed late."""
REMEMBERED_TRANSACTIONS: Final = 8


class SessionInUse(SavepointError):
    """Another live process is connected as this agent."""

    reason = Reason.SESSION_IN_USE


@dataclass
class ProcessSession:
    """One process of the agent."""

    id: str
    connect: wire.Connect
    """The message with which the process connected."""
    orders: "asyncio.Queue[wire.Order | None]" = field(default_factory=asyncio.Queue)
    """None ends the stream."""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    streaming: bool = False
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    """Set once the process reads its orders: it has taken over the values that its connect returned."""
    transaction: Transaction | None = None
    recent_transactions: dict[str, Transaction] = field(default_factory=dict)
    execution: wire.Execution = field(default_factory=wire.Execution)
    """The position that the agent reported with its last flush."""
    finished: bool = False
    uid: int | None = None
    """The uid of the process, as the kernel reports it; None if it does not."""

    @property
    def alive(self) -> bool:
        """True until the process is known to have ended."""
        return not self.ended.is_set()

    def send(self, order: wire.Order) -> None:
        """Put an order on the stream."""
        if self.alive:
            self.orders.put_nowait(order)

    def begin_transaction(self, transaction: Transaction) -> None:
        """Make this the current transaction; flushes for it are accepted from now on."""
        self.transaction = transaction
        self.recent_transactions[transaction.id] = transaction
        while len(self.recent_transactions) > REMEMBERED_TRANSACTIONS:
            del self.recent_transactions[next(iter(self.recent_transactions))]
        if not self.alive:
            transaction.fail(Unavailable("the agent's process has ended"))

    def cancel_transaction(self, transaction: Transaction, error: SavepointError) -> None:
        """Fail the transaction and tell the agent that its flush is no longer needed."""
        self.send(wire.Cancelled(transaction.id, error.reason, str(error)))
        transaction.fail(error)

    def send_result(
        self, transaction: Transaction, outcome: str, *, checkpoint: str = "", reason: str = "", message: str = ""
    ) -> None:
        """Send the transaction's result to the agent and close the transaction."""
        if self.transaction is transaction:
            self.transaction = None
        self.send(wire.Result(transaction.id, outcome, transaction.request, checkpoint, reason, message))

    def end(self) -> None:
        """Record that the process has ended, and fail its open transaction."""
        if self.ended.is_set():
            return
        self.ended.set()
        self.orders.put_nowait(None)
        if self.transaction is not None:
            self.transaction.fail(Unavailable("the agent's process ended before it had flushed"))


class ProcessSessions:
    """The sessions of one agent, of which at most one is live."""

    def __init__(self, random_id: Callable[[], str]) -> None:
        self._random_id = random_id
        self.current: ProcessSession | None = None
        self.connect_count = 0
        """Number of sessions opened since this container started."""

    @property
    def live(self) -> ProcessSession | None:
        """The session of a process that is running and has not finished its run."""
        session = self.current
        return session if session is not None and session.alive and not session.finished else None

    async def admit(self, connect: wire.Connect) -> ProcessSession:
        """Open a session for this process. Raise SessionInUse while another process is alive."""
        predecessor = self.current
        if predecessor is not None and predecessor.alive:
            if predecessor.connect.instance == connect.instance or predecessor.finished:
                predecessor.end()
            else:
                await self._await_end(predecessor)
        if self.current is not predecessor:
            raise SessionInUse("another process of this agent connected at the same time; try again")
        session = ProcessSession(self._random_id(), connect)
        self.current = session
        self.connect_count += 1
        return session

    def find(self, session: str) -> ProcessSession:
        """Return the live session with this id. Raise Unavailable if it is over."""
        current = self.current
        if current is None or current.id != session or not current.alive:
            raise Unavailable("this session is over; call connect() again in a new process")
        return current

    @staticmethod
    async def _await_end(predecessor: ProcessSession) -> None:
        try:
            async with asyncio.timeout(STREAM_END_SECONDS if predecessor.streaming else STREAM_OPEN_SECONDS):
                await predecessor.ended.wait()
        except TimeoutError as error:
            raise SessionInUse(
                f"another process (pid {predecessor.connect.pid}) is connected as this agent; "
                "only one process per agent calls connect(); share its state with the others"
            ) from error
