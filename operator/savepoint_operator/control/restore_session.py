"""The operator's side of an init container's connection: wait for an epoch, grant it, answer URLs, record the outcome.

It decides nothing: ``lineage`` grants. Transient faults become ``wait``; only what waiting cannot fix is ``refused``.
"""

import asyncio
from collections.abc import Callable

from savepoint.contract.control_protocol import Ack, Grant, Heartbeat, NeedUrls, Outcome, Progress, Refused, Urls, Wait
from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError, Superseded

from savepoint_operator.control.connection import TRANSIENT, CloseCode, CloseConnection, Connection
from savepoint_operator.control.dependencies import SessionDependencies
from savepoint_operator.control.welcome import urls, welcome
from savepoint_operator.lineage.held_epoch import HeldEpoch
from savepoint_operator.model.views import Incarnation, PodIdentity, Refusal

SILENT_SECONDS = 3600.0
"""An init container may wait for long without sending a message; the socket's own pings tell whether it lives."""

REPEAT_SECONDS = 10.0
"""Seconds between two reports of a wait: silence would look like a dead connection."""
PAUSE_GROWTH, MAX_PAUSE_POLLS = 1.5, 8
"""Each waiting pod asks for an unreachable store less and less often, in the end every eight polls."""
REPORT_SECONDS = 5.0
"""Seconds that a refused pod may take to report its outcome on this connection."""


class Backoff:
    """The pause between two decisions: it grows while the same fault repeats that no pod can fix, such as a store's."""

    def __init__(self, shortest_seconds: float) -> None:
        self._shortest = self._seconds = shortest_seconds

    def next(self, *, repeated: bool) -> float:
        """Return the next pause in seconds. ``repeated``: the refusal is the same as last time."""
        grown = min(self._seconds * PAUSE_GROWTH, self._shortest * MAX_PAUSE_POLLS)
        self._seconds = grown if repeated else self._shortest
        return self._seconds


class RestoreSession:
    """One connection of role restore, from its hello to its end."""

    def __init__(
        self,
        connection: Connection,
        pod: PodIdentity,
        dependencies: SessionDependencies,
        *,
        leading: Callable[[], bool],
        poll_seconds: float,
    ) -> None:
        self._connection, self._pod = connection, pod
        self._lineage, self._pod_resolver = dependencies.lineage, dependencies.pod_resolver
        self._registry, self._liveness = dependencies.registry, dependencies.liveness
        self._recorder, self._monotonic = dependencies.recorder, dependencies.clocks.monotonic
        self._leading, self._poll_seconds = leading, poll_seconds
        self._incarnation: Incarnation | None = None
        self._held_epoch: HeldEpoch | None = None
        self._reported = False

    async def run(self) -> None:
        """Serve the pod until it has reported its outcome or disconnected. Raises CloseConnection."""
        reader, granting = asyncio.ensure_future(self._read()), asyncio.ensure_future(self._grant_or_refuse())
        try:
            await asyncio.wait({reader, granting}, return_when=asyncio.FIRST_COMPLETED)
            refused = granting.result() if granting.done() else None
            if refused is None:
                await reader
            else:
                await self._refuse(refused, reader)
        finally:
            for task in (reader, granting):
                task.cancel()
            await asyncio.gather(reader, granting, return_exceptions=True)
            if self._incarnation is not None:
                self._registry.restore_ended(self._incarnation.agent, self)

    async def _grant_or_refuse(self) -> Refusal | None:
        """Repeat the decision until the pod is granted (return None) or finally refused (return the refusal)."""
        shown: Wait | None = None
        first = True
        backoff = Backoff(self._poll_seconds)
        repeat_at = self._monotonic()
        while True:
            if not self._leading():
                raise CloseConnection(CloseCode.TRY_AGAIN_LATER, "the operator is stopping; reconnect")
            answer = await self._decide(first)
            if isinstance(answer, HeldEpoch):
                break
            if isinstance(answer, Refusal) and not answer.retry:
                return answer
            first = first and not isinstance(answer, Wait)
            wait = Wait(answer.reason, answer.message)
            if wait != shown and self._incarnation is not None:
                await self._recorder.waiting(self._incarnation, wait)
            if wait != shown or self._monotonic() >= repeat_at:
                await self._connection.send(wait)
                repeat_at = self._monotonic() + REPEAT_SECONDS
            await self._pause(backoff.next(repeated=isinstance(answer, Refusal) and wait == shown))
            shown = wait
        assert self._incarnation is not None
        self._registry.restore_started(self._incarnation.agent, self)
        await self._registry.set_holder(answer)
        self._held_epoch = answer
        await self._connection.send(Grant(welcome(self._incarnation, answer, writes=False)))
        return None

    async def _refuse(self, refusal: Refusal, reader: "asyncio.Task[None]") -> None:
        """Send the refusal and wait for the container's report; record the outcome if it sends none."""
        await self._connection.send(Refused(refusal.reason, refusal.message))
        if self._incarnation is None:
            raise CloseConnection(CloseCode.NOT_AN_AGENT, refusal.reason)
        await asyncio.wait({reader}, timeout=REPORT_SECONDS)
        if not self._reported:
            await self._recorder.restore_ended(self._incarnation, Outcome(refusal.reason, refusal.message))
        raise CloseConnection(CloseCode.DONE, refusal.reason)

    async def _decide(self, first: bool) -> HeldEpoch | Wait | Refusal:
        try:
            found = await self._pod_resolver.incarnation(self._pod)
            if isinstance(found, Refusal):
                self._incarnation = found.incarnation or self._incarnation
                return found
            self._incarnation = found
            return await self._lineage.grant(found, first=first)
        except Superseded:
            message = "Another operator decided at the same time; the decision is repeated."
            return Refusal(Reason.PREDECESSOR_RUNNING, message, retry=True)
        except TRANSIENT as error:
            return Refusal(error.reason, str(error), retry=True)
        except SavepointError as error:
            return Refusal(error.reason, str(error))

    async def _pause(self, seconds: float) -> None:
        if self._incarnation is None:
            await asyncio.sleep(seconds)
        else:
            await self._liveness.wait_for_change(self._incarnation.agent, seconds)

    async def _urls(self, request: NeedUrls, held_epoch: HeldEpoch) -> Urls | Refused:
        try:
            self._held_epoch = await self._lineage.renewed(held_epoch)
        except SavepointError as error:
            return Refused(error.reason, str(error), request=request.request)
        return urls(request, self._held_epoch, writes=False)

    async def _read(self) -> None:
        async for message in self._connection.messages(SILENT_SECONDS):
            match message:
                case Heartbeat():
                    await self._connection.send(Ack("heartbeat"))
                case Outcome() if self._incarnation is not None:  # possibly before the grant, if it gave up waiting
                    self._registry.restore_ended(self._incarnation.agent, self)
                    self._reported = True
                    await self._recorder.restore_ended(self._incarnation, message)
                    await self._connection.send(Ack("outcome"))
                    if self._held_epoch is None:
                        return
                case _ if self._incarnation is None or self._held_epoch is None:
                    raise CloseConnection(CloseCode.PROTOCOL_ERROR, "this message is not allowed before the grant")
                case NeedUrls():
                    await self._connection.send(await self._urls(message, self._held_epoch))
                case Progress():
                    await self._recorder.restore_progressed(self._incarnation, message)
                case _:
                    raise CloseConnection(CloseCode.PROTOCOL_ERROR, "this message belongs to another role")
