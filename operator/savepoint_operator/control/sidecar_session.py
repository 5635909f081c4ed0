"""A sidecar's side of the channel: orders go down, URLs and commits are answered, and every message may come twice.

A reader takes messages off the socket and keeps heartbeats answered; one worker handles the rest in order, so a slow
store never makes a sidecar look silent. It owns no attempt (``registry``) and commits nothing itself (``lineage``).
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from savepoint.contract.control_protocol import (
    Ack,
    Checkpoint,
    FromOperator,
    FromPod,
    Heartbeat,
    Hello,
    NeedUrls,
    Offer,
    Progress,
    Refused,
    Released,
    RequestCheckpoint,
    Result,
    Stop,
    Urls,
)
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, Superseded, Unavailable

from savepoint_operator.control.connection import MAY_PASS, CloseCode, Closing, Connection
from savepoint_operator.control.liveness import PodLiveness
from savepoint_operator.control.registry import Registry
from savepoint_operator.control.welcome import urls, welcome
from savepoint_operator.lineage.epoch_lease import EpochLease
from savepoint_operator.lineage.service import LineageService
from savepoint_operator.model.ports import PodResolver, Recorder
from savepoint_operator.model.views import Incarnation, Refusal, SessionView
from savepoint_operator.rules.attempt import (
    UNKNOWN_DEADLINE_SECONDS,
    InFlight,
    Resume,
    is_attempt,
    offer_problem,
    request_problem,
    resume,
)

SILENT_SECONDS = 30.0
"""Six heartbeats: a sidecar that says nothing for so long is dropped, and dials again if it lives."""
QUEUE_MESSAGES = 256
QUEUE_BYTES = 4 << 20
FINISH_SECONDS = 60.0
"""How long what a sidecar sent before it went may take to be handled."""
REQUEST_DEADLINE_SECONDS = 300
RETRY_SECONDS = 1.0
LOOK_SECONDS = 300.0
"""How often it is looked whether the pod still exists: a token is shown once, and could be held by somebody else."""
RENEW_SECONDS = 2 * 24 * 3600.0
"""Age at which an idle session is asked to dial again: the pending URL it was given lives for seven days."""

log = logging.getLogger(__name__)


class SidecarSession:
    """One connection of role sidecar, from its hello to its end."""

    def __init__(
        self,
        connection: Connection,
        who: Incarnation,
        hello: Hello,
        *,
        directory: PodResolver,
        lineage: LineageService,
        registry: Registry,
        presence: PodLiveness,
        recorder: Recorder,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        self._connection, self._who, self._hello, self._directory = connection, who, hello, directory
        self._lineage, self._registry, self._presence, self._recorder = lineage, registry, presence, recorder
        self._monotonic, self._connected_at = monotonic, now()
        self._renew_at = monotonic() + RENEW_SECONDS
        self._look_at = monotonic() + LOOK_SECONDS
        self._heartbeat = Heartbeat()
        self._tenure: EpochLease | None = None
        self._queue: asyncio.Queue[tuple[FromPod, int] | None] = asyncio.Queue(QUEUE_MESSAGES)
        self._waiting_bytes = 0

    # -- what the registry needs ----------------------------------------------------------------------------------

    def view(self, attempt: str | None) -> SessionView:
        """How the session stands."""
        return SessionView(
            agent=self._who.agent,
            pod=self._who.pod,
            node=self._who.node,
            epoch=self._tenure.epoch if self._tenure else 0,
            connected_at=self._connected_at,
            sdk_session=self._heartbeat.session,
            detail=self._heartbeat.detail,
            sidecar_version=self._hello.version,
            attempt=attempt,
        )

    async def order(self, message: Checkpoint) -> None:
        """Send an order. Raises Unavailable."""
        await self._connection.send(message)

    async def stop(self, reason: str, message: str) -> None:
        """Tell the sidecar that it commits nothing more, and end the session."""
        await self._answer(Stop(reason, message))
        await self._connection.close(CloseCode.DONE, reason)

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the sidecar until it is gone. Raises Closing where that names a code."""
        self._tenure = tenure = await self._join()
        agent = self._who.agent
        await self._connection.send(welcome(self._who, tenure, writes=True))
        await self._registry.hold(tenure)
        self._registry.attach(agent, self)
        worker = asyncio.ensure_future(self._work())
        try:
            await self._recorder.connected(self.view(None), self._who)
            await self._settle()
            await self._read(worker)
        finally:
            await self._finish(worker)
            if self._registry.detach(agent, self):
                await self._recorder.disconnected(agent, self._who.pod)

    async def _join(self) -> EpochLease:
        """The pod's hold. Raises Closing: after a stop, which is final, or for what passes (also a lost race, after
        which the chain says who holds it)."""
        try:
            answer = await self._lineage.join(self._who, self._hello.epoch)
        except (*MAY_PASS, Superseded) as error:
            raise Closing(CloseCode.NOT_LEADING, f"{error.reason}: dial again") from error
        except SavepointError as error:
            answer = Refusal(error.reason, str(error))
        if isinstance(answer, Refusal):
            await self._connection.send(Stop(answer.reason, answer.message))
            raise Closing(CloseCode.DONE, answer.reason)
        return answer

    async def _settle(self) -> None:
        """Bring the attempt in flight and what the sidecar says of it together."""
        agent = self._who.agent
        for each in filter(lambda state: is_attempt(state.attempt), self._hello.attempts):
            if self._registry.attempt(agent) is None and not self._registry.has_ended(agent, each.attempt):
                deadline = self._monotonic() + UNKNOWN_DEADLINE_SECONDS
                self._registry.begin(agent, InFlight(each.attempt, "", deadline, stage=each.stage))
        attempt = self._registry.attempt(agent)
        if attempt is not None and resume(attempt, self._hello.attempts) is Resume.RESEND:
            left = attempt.seconds_left(self._monotonic())
            await self._answer(Checkpoint(attempt.id, attempt.trigger, left, attempt.after))

    async def _read(self, worker: "asyncio.Task[None]") -> None:
        async for message in self._connection.messages(SILENT_SECONDS):
            if worker.done():
                return
            if isinstance(message, Heartbeat):
                self._heartbeat = message
                await self._answer(Ack("heartbeat"))
                if self._monotonic() > self._renew_at and self._registry.attempt(self._who.agent) is None:
                    raise Closing(CloseCode.NOT_LEADING, "a long session is renewed: dial again")
                if self._monotonic() > self._look_at and self._registry.attempt(self._who.agent) is None:
                    await self._look_again()
                continue
            size = self._connection.received_bytes
            if self._queue.full() or self._waiting_bytes + size > QUEUE_BYTES:
                raise Closing(CloseCode.SLOW, f"more than {QUEUE_MESSAGES} messages or {QUEUE_BYTES} bytes wait")
            self._waiting_bytes += size
            self._queue.put_nowait((message, size))

    async def _look_again(self) -> None:
        """End the session of a pod that is gone: nobody could follow it while it is connected."""
        self._look_at = self._monotonic() + LOOK_SECONDS
        try:
            found = await self._directory.incarnation(self._who.pod)
        except SavepointError:
            return
        if isinstance(found, Refusal) and found.reason == "PodGone":
            await self._answer(Stop(found.reason, found.message))
            raise Closing(CloseCode.DONE, found.reason)

    async def _finish(self, worker: "asyncio.Task[None]") -> None:
        """Handle what the sidecar had sent before it went: its release is often the last word."""
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await self._queue.put(None)
                await asyncio.wait({worker})
        except TimeoutError:
            log.warning("agent %s: what its sidecar sent last was not handled in time", self._who.agent)
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)

    async def _work(self) -> None:
        while (item := await self._queue.get()) is not None:
            message, size = item
            self._waiting_bytes -= size
            try:
                await self._handle(message)
            except SavepointError as error:
                log.warning("agent %s: a message of its sidecar failed: %s: %s", self._who.agent, error.reason, error)

    # -- messages -------------------------------------------------------------------------------------------------

    async def _handle(self, message: FromPod) -> None:
        assert self._tenure is not None
        agent = self._who.agent
        match message:
            case NeedUrls():
                await self._answer(await self._urls(message, self._tenure))
            case Progress():
                if self._registry.stage(agent, message.attempt, message.stage):
                    await self._recorder.progressed(agent, message)
            case Offer():
                await self._commit(message)
            case Result():
                if is_attempt(message.attempt):
                    await self._end(message)
            case RequestCheckpoint():
                await self._request(message)
            case Released():
                await self._release(message)
            case _:
                await self._connection.close(CloseCode.VERSION, "a message of another role")

    async def _urls(self, ask: NeedUrls, tenure: EpochLease) -> Urls | Refused:
        try:
            self._tenure = await self._lineage.renewed(tenure)
        except SavepointError as error:
            return Refused(error.reason, str(error), request=ask.request)
        return urls(ask, self._tenure, writes=True)

    async def _commit(self, offer: Offer) -> None:
        assert self._tenure is not None
        problem = offer_problem(offer)
        if problem is not None:
            await self._answer(Refused("Refused", f"No such offer: {problem}.", attempt=offer.attempt))
            return
        answer = await self._registry.commit(self._tenure, offer)
        await self._answer(answer)
        if isinstance(answer, Refused) and answer.reason == Superseded.reason:
            await self.stop(answer.reason, answer.message)

    async def _end(self, result: Result) -> None:
        assert self._tenure is not None
        with suppress(*MAY_PASS):  # the recovery point advances with the next interval
            await self._registry.result(self._tenure, result)
        await self._answer(Ack("result"))

    async def _request(self, ask: RequestCheckpoint) -> None:
        agent = self._who.agent
        problem = request_problem(ask)
        if problem is not None:
            await self._answer(Refused("Refused", f"No such request: {problem}.", request=ask.request))
            return
        if not self._registry.may_begin(agent):
            text = "This pod asks for checkpoints faster than one a second; ask again later."
            await self._answer(Refused("Refused", text, request=ask.request))
            return
        attempt = await self._recorder.requested(agent, ask)
        if isinstance(attempt, Refusal):
            await self._answer(Refused(attempt.reason, attempt.message, request=ask.request))
            return
        order = Checkpoint(attempt, ask.trigger, REQUEST_DEADLINE_SECONDS, request=ask.request)
        try:
            if not await self._registry.order(agent, order):
                await self._answer(order)
        except RefusedError as error:
            await self._answer(Refused(error.code, str(error), request=ask.request))
        except Unavailable as error:
            await self._answer(Refused(error.reason, str(error), request=ask.request))

    async def _release(self, message: Released) -> None:
        assert self._tenure is not None
        agent, pod = self._who.agent, self._who.pod
        if message.epoch != self._tenure.epoch:
            await self.stop("Fenced", f"Epoch {message.epoch} is not the one this pod holds ({self._tenure.epoch}).")
            return
        if message.completed and not await self._complete():
            return
        attempt = self._registry.attempt(agent)
        if attempt is not None:
            why = "The pod ended before this checkpoint did; earlier checkpoints are kept."
            await self._registry.fail(agent, Result(attempt.id, "Failed", "SourcePodReplaced", why))
        self._presence.released(agent, pod)
        if not message.completed:
            self._registry.awaited(agent)
        await self._recorder.released(agent, pod, message.completed, message.message)
        await self._answer(Ack("released"))

    async def _complete(self) -> bool:
        assert self._tenure is not None
        while True:
            try:
                await self._lineage.complete(self._tenure)
                return True
            except MAY_PASS:
                await asyncio.sleep(RETRY_SECONDS)
            except SavepointError as error:
                await self.stop(error.reason, str(error))
                return False

    async def _answer(self, message: FromOperator) -> None:
        """Send if anyone still listens; what is not heard is asked again after the reconnect."""
        with suppress(Unavailable):
            await self._connection.send(message)
