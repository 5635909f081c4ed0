"""The init container's side of the channel: it waits for an epoch, is told what to restore, and reports how it ended.

It decides nothing: ``lineage`` grants. Whatever may pass is a ``wait``; only what waiting does not mend is a
``refused``.
"""

import asyncio
from collections.abc import Callable

from savepoint.contract.control_protocol import Ack, Grant, Heartbeat, NeedUrls, Outcome, Progress, Refused, Urls, Wait
from savepoint.errors import SavepointError, Superseded

from savepoint_operator.control.connection import MAY_PASS, CloseCode, Closing, Connection
from savepoint_operator.control.liveness import PodLiveness
from savepoint_operator.control.registry import Registry
from savepoint_operator.control.welcome import urls, welcome
from savepoint_operator.lineage.epoch_lease import EpochLease
from savepoint_operator.lineage.service import LineageService
from savepoint_operator.model.ports import PodResolver, Recorder
from savepoint_operator.model.views import Incarnation, PodIdentity, Refusal
from savepoint_operator.rules.takeover import PREDECESSOR_RUNNING

SILENT_SECONDS = 3600.0
"""An init container may wait for long without a word; whether it lives is told by the socket's own pings."""

REPEAT_SECONDS = 10.0
"""How often a wait is said again: silence would look like a dead connection."""
PAUSE_GROWTH, PAUSE_MOST = 1.5, 8
"""A store that is away is asked for ever less often, at last every eight polls, by each pod that waits."""
REPORT_SECONDS = 5.0
"""How long a pod that was refused may take to report it on this connection."""


class Pauses:
    """Between two looks: they grow while the same thing is in the way that no pod can mend, such as a store."""

    def __init__(self, shortest_seconds: float) -> None:
        self._shortest = self._seconds = shortest_seconds

    def next(self, *, again: bool) -> float:
        """``again``: the same refusal as the last time."""
        self._seconds = min(self._seconds * PAUSE_GROWTH, self._shortest * PAUSE_MOST) if again else self._shortest
        return self._seconds


class RestoreSession:
    """One connection of role restore, from its hello to its end."""

    def __init__(
        self,
        connection: Connection,
        pod: PodIdentity,
        *,
        lineage: LineageService,
        directory: PodResolver,
        registry: Registry,
        presence: PodLiveness,
        recorder: Recorder,
        leading: Callable[[], bool],
        monotonic: Callable[[], float],
        poll_seconds: float,
    ) -> None:
        self._connection, self._pod = connection, pod
        self._lineage, self._directory, self._registry = lineage, directory, registry
        self._presence, self._recorder = presence, recorder
        self._leading, self._monotonic, self._poll_seconds = leading, monotonic, poll_seconds
        self._who: Incarnation | None = None
        self._tenure: EpochLease | None = None
        self._reported = False

    async def run(self) -> None:
        """Serve the pod until it has reported its outcome or is gone. Raises Closing where that names a code."""
        reader, asker = asyncio.ensure_future(self._read()), asyncio.ensure_future(self._ask())
        try:
            await asyncio.wait({reader, asker}, return_when=asyncio.FIRST_COMPLETED)
            refused = asker.result() if asker.done() else None
            if refused is None:
                await reader
            else:
                await self._refuse(refused, reader)
        finally:
            for task in (reader, asker):
                task.cancel()
            await asyncio.gather(reader, asker, return_exceptions=True)
            if self._who is not None:
                self._registry.restored(self._who.agent, self)

    async def _ask(self) -> Refusal | None:
        """Ask until the pod is granted (None) or refused for good."""
        shown: Wait | None = None
        first = True
        pauses = Pauses(self._poll_seconds)
        again_at = self._monotonic()
        while True:
            if not self._leading():
                raise Closing(CloseCode.NOT_LEADING, "the operator stops; dial again")
            answer = await self._evaluate(first)
            if isinstance(answer, EpochLease):
                break
            if isinstance(answer, Refusal) and not answer.retry:
                return answer
            first = first and not isinstance(answer, Wait)
            wait = Wait(answer.reason, answer.message)
            if wait != shown and self._who is not None:
                await self._recorder.waiting(self._who, wait)
            if wait != shown or self._monotonic() >= again_at:
                await self._connection.send(wait)
                again_at = self._monotonic() + REPEAT_SECONDS
            await self._pause(pauses.next(again=isinstance(answer, Refusal) and wait == shown))
            shown = wait
        assert self._who is not None
        agent = self._who.agent
        self._registry.restoring(agent, self)
        await self._registry.hold(answer)
        self._tenure = answer
        await self._connection.send(Grant(welcome(self._who, answer, writes=False)))
        return None

    async def _refuse(self, refusal: Refusal, reader: "asyncio.Task[None]") -> None:
        """Say so, and hear how the container reports it; one that reports nothing is reported for."""
        await self._connection.send(Refused(refusal.reason, refusal.message))
        if self._who is None:
            raise Closing(CloseCode.NOT_AN_AGENT, refusal.reason)
        await asyncio.wait({reader}, timeout=REPORT_SECONDS)
        if not self._reported:
            await self._recorder.restored(self._who, Outcome(refusal.reason, refusal.message))
        raise Closing(CloseCode.DONE, refusal.reason)

    async def _evaluate(self, first: bool) -> EpochLease | Wait | Refusal:
        try:
            who = await self._directory.incarnation(self._pod)
            if isinstance(who, Refusal):
                self._who = who.who or self._who
                return who
            self._who = who
            return await self._lineage.grant(who, first=first)
        except Superseded:
            return Refusal(PREDECESSOR_RUNNING, "Another operator decided at the same time; asking again.", True)
        except MAY_PASS as error:
            return Refusal(error.reason, str(error), retry=True)
        except SavepointError as error:
            return Refusal(error.reason, str(error))

    async def _pause(self, seconds: float) -> None:
        if self._who is None:
            await asyncio.sleep(seconds)
        else:
            await self._presence.changed(self._who.agent, seconds)

    async def _urls(self, ask: NeedUrls, tenure: EpochLease) -> Urls | Refused:
        try:
            self._tenure = await self._lineage.renewed(tenure)
        except SavepointError as error:
            return Refused(error.reason, str(error), request=ask.request)
        return urls(ask, self._tenure, writes=False)

    async def _read(self) -> None:
        async for message in self._connection.messages(SILENT_SECONDS):
            match message:
                case Heartbeat():
                    await self._connection.send(Ack("heartbeat"))
                case Outcome() if self._who is not None:  # also before the grant: it waited as long as it may
                    self._registry.restored(self._who.agent, self)
                    self._reported = True
                    await self._recorder.restored(self._who, message)
                    await self._connection.send(Ack("outcome"))
                    if self._tenure is None:
                        return
                case _ if self._who is None or self._tenure is None:
                    raise Closing(CloseCode.VERSION, "nothing can be asked before the grant")
                case NeedUrls():
                    await self._connection.send(await self._urls(message, self._tenure))
                case Progress():
                    await self._recorder.restore_progress(self._who, message)
                case _:
                    raise Closing(CloseCode.VERSION, "a message of another role")
