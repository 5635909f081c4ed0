"""``savepoint.connect()``: from the environment to a connected agent. No other module reads the environment.

It allows one session per process, handles forks, and keeps the stream of orders open, because its end
tells the sidecar that the process has ended. After a restart of the sidecar it reconnects without touching any state.
"""

import logging
import os
import platform
import signal
import threading
import time
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Final
from uuid import uuid4

from savepoint.contract import agent_protocol as wire
from savepoint.contract import stage_layout
from savepoint.contract.names import ENV_GRACE_SECONDS, ENV_REQUIRED, ENV_SOCKET, ENV_STAGE
from savepoint.contract.vocabulary import RestoreOutcome
from savepoint.errors import SavepointError, Unavailable
from savepoint.sdk.agent import Agent
from savepoint.sdk.agent_session import AgentSession, not_managed_error
from savepoint.sdk.client import Client, OrderStream, SocketLink
from savepoint.sdk.errors import SessionInUse
from savepoint.sdk.journal import FileJournal, NoJournal
from savepoint.sdk.stage import open_stage
from savepoint.sdk.state import State
from savepoint.sdk.termination import GRACE_SECONDS, Termination

log: Final = logging.getLogger("savepoint")
_SOCKET_WAIT_SECONDS: Final = 30.0
_REATTACH_SECONDS: Final = 60.0
_RETRY_SECONDS: Final = 0.5
_DEPENDENCIES_MAX: Final = 1000
_DISTRIBUTION: Final = "savepoint-agents"


@dataclass(frozen=True)
class Settings:
    """The environment variables that connect() reads."""

    socket: str | None
    stage: str | None
    required: bool
    grace_seconds: float = GRACE_SECONDS

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> "Settings":
        """Return the settings in a process's environment."""
        return cls(
            socket=environment.get(ENV_SOCKET) or None,
            stage=environment.get(ENV_STAGE) or None,
            required=environment.get(ENV_REQUIRED, "") == "1",
            grace_seconds=_positive(environment.get(ENV_GRACE_SECONDS, ""), GRACE_SECONDS),
        )


def _positive(text: str, default: float) -> float:
    try:
        value = float(text)
    except ValueError:
        return default
    return value if 0 < value < 1e9 else default


class _ProcessState:
    """The live session of this process, if there is one, and the lock that guards it."""

    current: "weakref.ref[_AttachedSession] | None" = None
    lock = threading.Lock()


class _AttachedSession:
    """A session over the socket: its stream of orders, the thread that reads it, SIGTERM and Ctrl-C."""

    def __init__(
        self,
        client: Client,
        connect: wire.Connect,
        connected: wire.Connected,
        session: AgentSession,
        grace_seconds: float,
    ) -> None:
        self._client = client
        self._reattach_message = connect
        self._session_id = connected.session
        self._can_reattach = wire.FEATURE_REATTACH in connected.features
        self.session = session
        self.stream: OrderStream | None = None
        self.termination = Termination(self._on_signal, session.background, grace_seconds)
        self.link = SocketLink(client, self.id, self.close)
        self._closed = False

    def id(self) -> str:
        """Return the sidecar's current id of the session."""
        return self._session_id

    def start(self) -> None:
        """Open the stream of orders and start the thread that reads it."""
        self.stream = self._client.orders(self._session_id)
        threading.Thread(target=self._read, name="savepoint-orders", daemon=True).start()

    def close(self) -> None:
        """End the session: the sidecar sees the stream end."""
        self._closed = True
        if self.stream is not None:
            self.stream.end()
        self.termination.uninstall()
        with _ProcessState.lock:
            if _ProcessState.current is not None and _ProcessState.current() is self:
                _ProcessState.current = None

    def on_forked(self) -> None:
        """Disable the session in a forked child, because it belongs to the parent."""
        self._closed = True
        self.termination.on_forked()
        if self.stream is not None:
            self.stream.detach()
        self.session.on_forked(
            SessionInUse(
                "this is a forked child of an agent, and the session belongs to its parent: call the agent's methods "
                "in the parent only, or start workers with the 'spawn' method"
            )
        )

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGINT:  # handled only where it ends the process
            self.session.exit = self.termination.exit
            self.session.order_seconds = 0.0  # Ctrl-C reaches this process only: the sidecar sends no order
        self.session.stopping = True
        self.session.gate.request_attention()

    def _read(self) -> None:
        while True:
            assert self.stream is not None
            for order in self.stream:
                if isinstance(order, wire.Stopping):
                    self.termination.set_grace(order.grace_seconds)
                self.session.receive(order)
            with self.link.finishing:  # the stream also ends when the sidecar accepts the final checkpoint
                if self._closed:
                    return
            lost = Unavailable(
                "lost connection to the sidecar; the agent continues without checkpoints until the sidecar returns"
            )
            log.warning("%s", lost)
            self.session.on_sidecar_lost(lost)
            if not self._reattach():
                return

    def _reattach(self) -> bool:
        """Reconnect to the restarted sidecar. Returns False if this process will get no more checkpoints."""
        if not self._can_reattach:
            self.session.on_reattach_failed(
                Unavailable("lost connection to the sidecar, and its version does not let a running agent reconnect")
            )
            return False
        until = time.monotonic() + _REATTACH_SECONDS
        warned = False
        while not self._closed:
            try:
                connected = self._client.connect(self._reattach_message, 0)
                self._session_id = connected.session
                self.stream = self._client.orders(self._session_id)
            except SessionInUse as error:
                log.warning("another process has taken over this agent: %s", error)
                self.session.on_reattach_failed(error)
                return False
            except SavepointError as error:
                if time.monotonic() > until and not warned:
                    warned = True
                    log.warning("sidecar is still unreachable: %s", error)
                    self.session.on_reattach_failed(
                        Unavailable(f"the sidecar did not return within {_REATTACH_SECONDS:g} s: {error}")
                    )
                time.sleep(_RETRY_SECONDS)
                continue
            log.info("reconnected to the sidecar")
            self.session.on_reattached()
            return True
        return False


def connect(*, schema_version: str = "", sigterm: bool = True) -> Agent:
    """Connect this process to its sidecar and restore the agent's state.

    Blocks until documents and files are restored to one consistent checkpoint. In a process that Savepoint does not
    manage (neither in a protected pod nor under ``savepoint run``) it returns an agent that works in memory and saves
    nothing, unless ``SAVEPOINT_REQUIRED=1``. A process has at most one session at a time.

    Args:
        schema_version: Names the shape of your documents; it is stored with each checkpoint.
        sigterm: Whether to install handlers that, in the main thread, flush at the next safe point after SIGTERM or
            Ctrl-C and then end the process: with exit code 143, or with KeyboardInterrupt.

    Returns:
        The connected agent. Use it as a context manager, or call ``close()`` or ``finish()`` at the end.

    Raises:
        SessionInUse: This process is connected already, or another live process is connected as this agent.
        Unavailable: The sidecar cannot be reached, or the process is not managed and ``SAVEPOINT_REQUIRED=1``.
        RestoreFailed: The saved state cannot be read.
        FormatTooNew: The saved state was written by a newer SDK.
        SavepointError: Any other reason for which the sidecar could not restore the state.
    """
    settings = Settings.read(os.environ)
    if settings.socket is None:
        if settings.required:
            raise not_managed_error()
        log.warning("not managed by Savepoint: this run works as usual, and nothing of it is saved")
        return _connect_unmanaged()
    with _ProcessState.lock:
        current = _ProcessState.current() if _ProcessState.current is not None else None
        if current is not None:
            raise SessionInUse("this process is connected already: use the agent that connect() returned")
        attached = _attach(settings, schema_version)
        _ProcessState.current = weakref.ref(attached)
    try:
        attached.start()
    except SavepointError:
        attached.close()
        raise
    if sigterm and attached.termination.install() and attached.termination.owns_exit:
        attached.session.exit = attached.termination.exit
    return Agent(attached.session)


def _attach(settings: Settings, schema_version: str) -> _AttachedSession:
    assert settings.socket is not None
    client = Client(Path(settings.socket))
    message = wire.Connect(
        pid=os.getpid(),
        instance=uuid4().hex,
        sdk=f"python {_version()}",
        schema_version=schema_version,
        dependencies=_dependencies(),
        architecture=platform.machine(),
    )
    connected = client.connect(message, _SOCKET_WAIT_SECONDS)
    stage = open_stage(settings.stage)
    state = State(FileJournal(stage_layout.journal_folder(stage.root, connected.run)), stage)
    restored = connected.restored
    steps_count = restored is None or restored.files != RestoreOutcome.RESTORED
    steps = state.restore(connected.components, steps_count=steps_count)
    if restored is not None:
        log.info("%s from %s: recorded_steps=%d", restored.how.lower(), restored.checkpoint, steps)
    session = AgentSession(connected, state, required=settings.required)
    reattach = replace(message, reattach=True)
    attached = _AttachedSession(client, reattach, connected, session, settings.grace_seconds)
    session.attach(attached.link)
    session.keep_alive = attached
    return attached


def _connect_unmanaged() -> Agent:
    """Return an agent that works in memory.

    Its run is a random number, so that the ids of its effects differ from those of any other run.
    """
    connected = wire.Connected("", "local", "", 0, uuid4().int >> 65)
    return Agent(AgentSession(connected, State(NoJournal(), None), required=False))


def _version() -> str:
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:  # running from a source tree
        return "0"


def _dependencies() -> dict[str, str]:
    """Return installed distributions and versions, a record of the software that wrote the state."""
    found = {str(item.metadata["Name"]): item.version for item in metadata.distributions() if item.metadata["Name"]}
    return dict(sorted(found.items())[:_DEPENDENCIES_MAX])


def _after_fork() -> None:
    _ProcessState.lock = threading.Lock()  # the thread that may hold it does not exist in the child
    current = _ProcessState.current() if _ProcessState.current is not None else None
    if current is not None:
        _ProcessState.current = None
        current.on_forked()


os.register_at_fork(after_in_child=_after_fork)
