"""Writes Kubernetes Events on pods and on the operator's own objects. A repeated Event only increments its count.

An Event that cannot be written is logged and dropped: Events are news, and the truth is in status.
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
from savepoint_operator.cluster.errors import NamespaceTerminating
from savepoint_operator.cluster.kinds import EVENTS, Kind
from savepoint_operator.model.objects import Meta
from savepoint_operator.rules.status.conditions import stamp

log = logging.getLogger(__name__)

COMPONENT: Final = "savepoint"
REPEAT_SECONDS: Final = 600.0
"""For how long the same message about the same object increments the count of one Event."""
REMEMBERED: Final = 4096
MAX_MESSAGE: Final = 1024


@dataclass(frozen=True)
class EventTarget:
    """The object that an Event is about."""

    kind: Kind
    namespace: str
    name: str
    uid: str

    @classmethod
    def of(cls, kind: Kind, meta: Meta) -> "EventTarget":
        """Return the target for an object with this metadata."""
        return cls(kind, meta.namespace, meta.name, meta.uid)


class EventWriter(Protocol):
    """The part of ``cluster.api.Api`` that is used."""

    async def create(self, kind: Kind, body: Raw) -> Raw: ...
    async def patch(self, kind: Kind, namespace: str, name: str, body: Raw) -> Raw: ...


@dataclass
class _Written:
    """An Event that was written."""

    name: str
    namespace: str
    last: datetime
    count: int = 1


class Events:
    """Writes Events. Those about cluster-scoped objects are in namespace ``default``, as kubectl expects."""

    def __init__(self, api: EventWriter, now: Callable[[], datetime], reporter: str) -> None:
        """``reporter``: the name of this operator's pod."""
        self._api, self._now, self._reporter = api, now, reporter
        self._written: OrderedDict[str, _Written] = OrderedDict()
        self._count = 0

    async def normal(self, target: EventTarget, reason: str, message: str) -> None:
        """Write an Event of type Normal."""
        await self._write("Normal", target, reason, message)

    async def warning(self, target: EventTarget, reason: str, message: str) -> None:
        """Write an Event of type Warning."""
        await self._write("Warning", target, reason, message)

    async def _write(self, event_type: str, target: EventTarget, reason: str, message: str) -> None:
        text = message if len(message) <= MAX_MESSAGE else message[: MAX_MESSAGE - 1] + "…"
        now = self._now()
        parts = (target.uid, target.name, event_type, reason, text)
        key = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        written = self._written.get(key)
        try:
            if written is not None and now - written.last < timedelta(seconds=REPEAT_SECONDS):
                written.count += 1
                written.last = now
                repeated = {"count": written.count, "lastTimestamp": stamp(now)}
                await self._api.patch(EVENTS, written.namespace, written.name, repeated)
                return
            body = self._body(event_type, target, reason, text, now)
            self._remember(key, _Written(body["metadata"]["name"], body["metadata"]["namespace"], now))
            await self._api.create(EVENTS, body)
        except NamespaceTerminating:
            self._written.pop(key, None)  # the Event would be deleted with its namespace
        except SavepointError as error:
            self._written.pop(key, None)
            log.warning("%s %s: cannot write event %s: %s; dropping it", target.kind.kind, target.name, reason, error)

    def _body(self, event_type: str, target: EventTarget, reason: str, message: str, now: datetime) -> dict[str, Any]:
        namespace = target.namespace or "default"
        return {
            "metadata": {"name": f"{target.name}.{self._unique(now)}", "namespace": namespace},
            "involvedObject": {
                "apiVersion": target.kind.api_version,
                "kind": target.kind.kind,
                "namespace": target.namespace,
                "name": target.name,
                "uid": target.uid,
            },
            "type": event_type,
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

    def _remember(self, key: str, written: _Written) -> None:
        self._written[key] = written
        self._written.move_to_end(key)
        while len(self._written) > REMEMBERED:
            self._written.popitem(last=False)
