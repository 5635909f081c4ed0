"""Tells the agent's SDK when effects must be refused: this incarnation was stopped, or its node may be cut off.

It stops no process and no checkpoint; a commit under an old epoch is refused by the chain itself.
"""

import asyncio
from typing import Final

from savepoint.contract import agent_protocol as wire

from savepoint_sidecar.agent_api.process_session import ProcessSession, ProcessSessions
from savepoint_sidecar.authority.authority import Authority

SILENT_SECONDS: Final = 10.0
LOOK_SECONDS: Final = 1.0


class Fence:
    """Down unless something says otherwise."""

    def __init__(self, authority: Authority, sessions: ProcessSessions) -> None:
        self._authority, self._sessions = authority, sessions
        self._why = ""
        self._for_good = False

    async def watch(self) -> None:
        """Look every second whether anything proves that this node is not cut off."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        """Raise or lower the fence by what has been heard."""
        if self._for_good:
            return
        cut_off = self._authority.silent_seconds > SILENT_SECONDS
        if cut_off and not self._why:
            self._raise(f"neither the operator nor the cluster's API server has been heard for {SILENT_SECONDS:.0f} s")
        elif not cut_off and self._why:
            self._why = ""
            if self._sessions.live is not None:
                self._sessions.live.send(wire.Unfenced())

    def stop(self, message: str) -> None:
        """Raise it for good."""
        self._for_good = True
        self._raise(message)

    def greet(self, session: ProcessSession) -> None:
        """Tell a new session how things stand."""
        if self._why:
            session.send(wire.Fenced(self._why))

    def _raise(self, why: str) -> None:
        self._why = why
        if self._sessions.live is not None:
            self._sessions.live.send(wire.Fenced(why))
