"""Events, where users look: on pods and on our objects. The same thing said again becomes a count.

What cannot be written is logged and forgotten: an Event is news, never the truth.
"""

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Protocol

from savepoint.errors import SavepointError

from savepoint_operator.cluster.api import Raw
from savepoint_operator.cluster.errors import Terminating
from savepoint_operator.cluster.kinds import EVENTS, Kind
from savepoint_operator.model.objects import Meta
from savepoint_operator.rules.status.conditions import stamp

log = logging.getLogger(__name__)

COMPONENT: Final = "savepoint"
AGAIN_SECONDS: Final = 600.0
"""For so long the same words about the same object are one Event."""
REMEMBERED: Final = 4096
MESSAGE_MOST: Final = 1024


@dataclass(frozen=True)
class EventTarget:
    """The object that an Event is about."""

    kind: Kind
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, kind: Kind, meta: Meta) -> "EventTarget":
        return cls(kind, meta.namespace, meta.name, meta.uid)


class EventWriter(Protocol):
    """The part of the API door that is used."""

    async def create(self, kind: Kind, body: Raw) -> Raw: ...
    async def patch(self, kind: Kind, namespace: str, name: str, body: Raw) -> Raw: ...


@dataclass
class _Said:
    name: str
    namespace: str
    at: datetime
    count: int = 1


class Events:
    """Cluster-scoped objects have their Events in namespace ``default``, as kubectl expects."""

    def __init__(self, api: EventWriter, now: Callable[[], datetime], reporter: str) -> None:
        """``reporter``: the name of this operator's pod."""
        self._api, self._now, self._reporter = api, now, reporter
        self._said: OrderedDict[str, _Said] = OrderedDict()
        self._count = 0

    async def normal(self, about: EventTarget, reason: str, message: str) -> None:
        """Good news."""
        await self._say("Normal", about, reason, message)

    async def warning(self, about: EventTarget, reason: str, message: str) -> None:
        """Something to look at."""
        await self._say("Warning", about, reason, message)

    async def _say(self, kind: str, about: EventTarget, reason: str, message: str) -> None:
        text = message if len(message) <= MESSAGE_MOST else message[: MESSAGE_MOST - 1] + "…"
        now = self._now()
        key = hashlib.sha256("\0".join((about.uid, about.name, kind, reason, text)).encode()).hexdigest()
        said = self._said.get(key)
        try:
            if said is not None and now - said.at < timedelta(seconds=AGAIN_SECONDS):
                said.count += 1
                said.at = now
                await self._api.patch(
                    EVENTS, said.namespace, said.name, {"count": said.count, "lastTimestamp": stamp(now)}
                )
                return
            body = self._body(kind, about, reason, text, now)
            self._remember(key, _Said(body["metadata"]["name"], body["metadata"]["namespace"], now))
            await self._api.create(EVENTS, body)
        except Terminating:
            self._said.pop(key, None)  # nobody looks there any more
        except SavepointError as error:
            self._said.pop(key, None)
            log.warning("event %s on %s %s could not be written: %s", reason, about.kind.kind, about.name, error)

    def _body(self, kind: str, about: EventTarget, reason: str, message: str, now: datetime) -> dict[str, Any]:
        namespace = about.namespace or "default"
        return {
            "metadata": {"name": f"{about.name}.{self._unique(now)}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": about.kind.api_version,
                "kind": about.kind.kind,
                "namespace": about.namespace,
                "name": about.name,
                "uid": about.uid,
            },
            "type": kind,
            "reason": reason,
            "message": message,
            "source": {"component": COMPONENT},
            "firstTimestamp": stamp(now),
            "lastTimestamp": stamp(now),
            "count": 1,
            "reportingComponent": f"{COMPONENT}.dev/operator",
            "reportingInstance": self._reporter[:128],
        }

    def _unique(self, now: datetime) -> str:
        self._count += 1
        return f"{int(now.timestamp() * 1_000_000):x}{self._count:x}"

    def _remember(self, key: str, said: _Said) -> None:
        self._said[key] = said
        self._said.move_to_end(key)
        while len(self._said) > REMEMBERED:
            self._said.popitem(last=False)
