"""The operator's side of a sidecar's connection: orders, URLs and answers to offers. Every message may be repeated.

A reader takes messages off the socket and answers heartbeats; one worker handles the rest in order, so a slow store
never makes a sidecar look silent. It owns no attempt (``registry``) and commits nothing itself (``lineage``).
"""

import asyncio
import logging
from contextlib import suppress

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
from savepoint.contract.vocabulary import CheckpointOutcome, Reason
from savepoint.errors import Refused as RefusedError
from savepoint.errors import SavepointError, Superseded, Unavailable

from savepoint_operator.control.connection import TRANSIENT, CloseCode, CloseConnection, Connection
from savepoint_operator.control.dependencies import SessionDependencies
from savepoint_operator.control.welcome import urls, welcome
from savepoint_operator.lineage.held_epoch import HeldEpoch
from savepoint_operator.model.views import Incarnation, Refusal, SessionView
from savepoint_operator.rules.attempt import (
    UNKNOWN_DEADLINE_SECONDS,
    InFlight,
    ReconnectAction,
    is_attempt,
    offer_problem,
    reconnect_action,
    request_problem,
    shortened,
)

SILENT_SECONDS = 30.0
"""Six heartbeats: a sidecar that is silent for this long is disconnected, and reconnects if it is alive."""
QUEUE_MESSAGES = 256
QUEUE_BYTES = 4 << 20
FINISH_SECONDS = 60.0
"""Seconds that handling the messages may take that a sidecar sent before it disconnected."""
REQUEST_DEADLINE_SECONDS = 300
RETRY_SECONDS = 1.0
POD_CHECK_SECONDS = 300.0
"""Seconds between checks that the pod exists: a token is shown only once and may since be held by another peer."""
RENEW_SECONDS = 2 * 24 * 3600.0
"""Age at which an idle session is asked to reconnect: the pending URL it was given is valid for seven days."""

log = logging.getLogger(__name__)


class SidecarSession:
    """One connection of role sidecar, from its hello to its end."""

    def __init__(
        self,
        connection: Connection,
        incarnation: Incarnation,
        hello: Hello,
        dependencies: SessionDependencies,
    ) -> None:
        self._connection, self._incarnation, self._hello = connection, incarnation, hello
        self._lineage, self._pod_resolver = dependencies.lineage, dependencies.pod_resolver
        self._registry, self._liveness = dependencies.registry, dependencies.liveness
        self._recorder, self._monotonic = dependencies.recorder, dependencies.clocks.monotonic
        self._connected_at = dependencies.clocks.now()
        self._renew_at = self._monotonic() + RENEW_SECONDS
        self._check_pod_at = self._monotonic() + POD_CHECK_SECONDS
        self._heartbeat = Heartbeat()
        self._held_epoch: HeldEpoch | None = None
        self._queue: asyncio.Queue[tuple[FromPod, int] | None] = asyncio.Queue(QUEUE_MESSAGES)
        self._waiting_bytes = 0

    # -- SidecarConnection ----------------------------------------------------------------------------------------

    def view(self, attempt: str | None) -> SessionView:
        """Return the state of the session."""
        return SessionView(
            agent=self._incarnation.agent,
            pod=self._incarnation.pod,
            node=self._incarnation.node,
            epoch=self._held_epoch.epoch if self._held_epoch else 0,
            connected_at=self._connected_at,
            sdk_session=self._heartbeat.session,
            detail=self._heartbeat.detail,
            sidecar_version=self._hello.version,
            attempt=attempt,
        )

    async def order(self, message: Checkpoint) -> None:
        """Send the order. Raises Unavailable."""
        await self._connection.send(message)

    async def stop(self, reason: str, message: str) -> None:
        """Tell the sidecar that it may commit nothing more, and end the session. Never raises."""
        await self._answer(Stop(reason, message))
        await self._connection.close(CloseCode.DONE, reason)

    # -- lifecycle ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve the sidecar until it disconnects. Raises CloseConnection to close with a code."""
        self._held_epoch = held_epoch = await self._join()
        agent = self._incarnation.agent
        await self._connection.send(welcome(self._incarnation, held_epoch, writes=True))
        await self._registry.set_holder(held_epoch)
        self._registry.attach(agent, self)
        worker = asyncio.ensure_future(self._work())
        try:
            await self._recorder.connected(self.view(None), self._incarnation)
            await self._reconcile_attempts()
            await self._read(worker)
        finally:
            await self._finish(worker)
            if self._registry.detach(agent, self):
                await self._recorder.disconnected(agent, self._incarnation.pod)

    async def _join(self) -> HeldEpoch:
        """Return the epoch that the pod holds.

        Raises CloseConnection: after a Stop, which is final, or for a transient fault, so that the sidecar reconnects.
        A lost race is transient: after the reconnect the chain says which pod holds the epoch.
        """
        try:
            answer = await self._lineage.join(self._incarnation, self._hello.epoch)
        except (*TRANSIENT, Superseded) as error:
            raise CloseConnection(CloseCode.TRY_AGAIN_LATER, f"{error.reason}: reconnect") from error
        except SavepointError as error:
            answer = Refusal(error.reason, str(error))
        if isinstance(answer, Refusal):
            await self._connection.send(Stop(answer.reason, answer.message))
            raise CloseConnection(CloseCode.DONE, answer.reason)
        return answer

    async def _reconcile_attempts(self) -> None:
        """Reconcile the attempt in flight with the attempts that the sidecar restates."""
        agent = self._incarnation.agent
        for each in filter(lambda state: is_attempt(state.attempt), self._hello.attempts):
            if self._registry.attempt(agent) is None and not self._registry.has_ended(agent, each.attempt):
                deadline = self._monotonic() + UNKNOWN_DEADLINE_SECONDS
                self._registry.track(agent, InFlight(each.attempt, "", deadline, phase=each.stage))
        attempt = self._registry.attempt(agent)
        if attempt is not None and reconnect_action(attempt, self._hello.attempts) is ReconnectAction.RESEND:
            left = attempt.seconds_left(self._monotonic())
            await self._answer(Checkpoint(attempt.id, attempt.trigger, left, attempt.after))

    async def _read(self, worker: "asyncio.Task[None]") -> None:
        async for message in self._connection.messages(SILENT_SECONDS):
            if worker.done():
                return
            if isinstance(message, Heartbeat):
                self._heartbeat = message
                await self._answer(Ack("heartbeat"))
                if self._monotonic() > self._renew_at and self._registry.attempt(self._incarnation.agent) is None:
                    raise CloseConnection(
                        CloseCode.TRY_AGAIN_LATER, "this long-lived session must be renewed: reconnect"
                    )
                if self._monotonic() > self._check_pod_at and self._registry.attempt(self._incarnation.agent) is None:
                    await self._check_pod()
                continue
            size = self._connection.received_bytes
            if self._queue.full() or self._waiting_bytes + size > QUEUE_BYTES:
                raise CloseConnection(
                    CloseCode.LIMIT_EXCEEDED, f"more than {QUEUE_MESSAGES} messages or {QUEUE_BYTES} bytes are queued"
                )
            self._waiting_bytes += size
            self._queue.put_nowait((message, size))

    async def _check_pod(self) -> None:
        """End the session of a pod that no longer exists; while it is connected it would have no successor."""
        self._check_pod_at = self._monotonic() + POD_CHECK_SECONDS
        try:
            found = await self._pod_resolver.incarnation(self._incarnation.pod)
        except SavepointError:
            return
        if isinstance(found, Refusal) and found.reason == Reason.POD_GONE:
            await self._answer(Stop(found.reason, found.message))
            raise CloseConnection(CloseCode.DONE, found.reason)

    async def _finish(self, worker: "asyncio.Task[None]") -> None:
        """Handle the messages that the sidecar sent before it disconnected: the last one is often its release."""
        try:
            async with asyncio.timeout(FINISH_SECONDS):
                await self._queue.put(None)
                await asyncio.wait({worker})
        except TimeoutError:
            log.warning("agent %s: the last messages of its sidecar were not handled in time", self._incarnation.agent)
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
                kind, agent = type(message).__name__, self._incarnation.agent
                log.warning("agent %s: cannot handle its sidecar's %s: %s: %s", agent, kind, error.reason, error)

    # -- messages -------------------------------------------------------------------------------------------------

    async def _handle(self, message: FromPod) -> None:
        assert self._held_epoch is not None
        agent = self._incarnation.agent
        match message:
            case NeedUrls():
                await self._answer(await self._urls(message, self._held_epoch))
            case Progress():
                if self._registry.set_phase(agent, message.attempt, message.stage):
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
                await self._connection.close(CloseCode.PROTOCOL_ERROR, "this message belongs to another role")

    async def _urls(self, request: NeedUrls, held_epoch: HeldEpoch) -> Urls | Refused:
        try:
            self._held_epoch = await self._lineage.renewed(held_epoch)
        except SavepointError as error:
            return Refused(error.reason, str(error), request=request.request)
        return urls(request, self._held_epoch, writes=True)

    async def _commit(self, offer: Offer) -> None:
        assert self._held_epoch is not None
        problem = offer_problem(offer)
        if problem is not None:
            await self._answer(Refused(Reason.REFUSED, f"The offer is malformed: {problem}.", attempt=offer.attempt))
            return
        answer = await self._registry.commit(self._held_epoch, shortened(offer))
        await self._answer(answer)
        if isinstance(answer, Refused) and answer.reason == Superseded.reason:
            await self.stop(answer.reason, answer.message)

    async def _end(self, result: Result) -> None:
        assert self._held_epoch is not None
        with suppress(*TRANSIENT):  # the recovery point advances with the next scheduled checkpoint
            await self._registry.result(self._held_epoch, result)
        await self._answer(Ack("result"))

    async def _request(self, request: RequestCheckpoint) -> None:
        agent = self._incarnation.agent
        problem = request_problem(request)
        if problem is not None:
            await self._answer(
                Refused(Reason.REFUSED, f"The request is malformed: {problem}.", request=request.request)
            )
            return
        if not self._registry.may_begin_attempt(agent):
            text = "This pod requests more than one checkpoint per second. Request it again later."
            await self._answer(Refused(Reason.REFUSED, text, request=request.request))
            return
        attempt = await self._recorder.requested(agent, request)
        if isinstance(attempt, Refusal):
            await self._answer(Refused(attempt.reason, attempt.message, request=request.request))
            return
        order = Checkpoint(attempt, request.trigger, REQUEST_DEADLINE_SECONDS, request=request.request)
        try:
            if not await self._registry.order(agent, order):
                await self._answer(order)
        except RefusedError as error:
            await self._answer(Refused(error.code, str(error), request=request.request))
        except Unavailable as error:
            await self._answer(Refused(error.reason, str(error), request=request.request))

    async def _release(self, message: Released) -> None:
        assert self._held_epoch is not None
        agent, pod = self._incarnation.agent, self._incarnation.pod
        if message.epoch != self._held_epoch.epoch:
            await self.stop(
                Reason.FENCED, f"Epoch {message.epoch} is not the one that this pod holds ({self._held_epoch.epoch})."
            )
            return
        if message.completed and not await self._complete():
            return
        attempt = self._registry.attempt(agent)
        if attempt is not None:
            cause = "The pod ended before this checkpoint did; earlier checkpoints are kept."
            await self._registry.fail(
                agent, Result(attempt.id, CheckpointOutcome.FAILED, Reason.SOURCE_POD_REPLACED, cause)
            )
        self._liveness.released(agent, pod)
        if not message.completed:
            self._registry.expect_successor(agent)
        await self._recorder.released(agent, pod, message.completed, message.message)
        await self._answer(Ack("released"))

    async def _complete(self) -> bool:
        assert self._held_epoch is not None
        while True:
            try:
                await self._lineage.complete(self._held_epoch)
                return True
            except TRANSIENT:
                await asyncio.sleep(RETRY_SECONDS)
            except SavepointError as error:
                await self.stop(error.reason, str(error))
                return False

    async def _answer(self, message: FromOperator) -> None:
        """Send the message if the connection is open; the sidecar repeats its request after a reconnect."""
        with suppress(Unavailable):
            await self._connection.send(message)
