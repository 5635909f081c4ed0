"""An API server in memory, at the door: names, versions, merge patches and conflicts, and faults on demand.

It knows no schema and runs no controller. What a real API server does beyond this is tested against a real one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from savepoint.errors import SavepointError, Unavailable
from savepoint_operator.cluster.errors import Blocked, Conflict, Missing, Terminating
from savepoint_operator.cluster.kinds import EVENTS, PODS, Kind

Raw = dict[str, Any]
Key = tuple[str, str, str]


class FakeCluster:
    """Implements the door of reconcile, of events, of the Lease and of certificates."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime(2026, 11, 24, tzinfo=UTC)) -> None:
        self._now = now
        self._objects: dict[Key, Raw] = {}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self.calls: list[tuple[str, str, str]] = []
        """(verb, kind, name)."""
        self.down = False
        self.fail: dict[tuple[str, str], SavepointError] = {}
        """(verb, kind) → what it raises, once."""
        self.blocked: set[str] = set()
        """Pods that a disruption budget protects."""
        self.terminating: set[str] = set()
        """Namespaces that are being deleted."""
        self.watcher: Callable[[Kind, bool, Raw], None] = lambda *_: None

    # -- what the test does ---------------------------------------------------------------------------------------

    def put(self, kind: Kind, name: str, namespace: str = "", **parts: Any) -> Raw:
        """An object as it is, new or changed; its watcher is told."""
        key = (kind.kind, namespace, name)
        before = self._objects.get(key, {"metadata": {}})
        metadata = {**before["metadata"], "name": name, "namespace": namespace, **parts.pop("metadata", {})}
        metadata.setdefault("uid", f"00000000-0000-4000-8000-{next(self._uids):012d}")
        metadata.setdefault("creationTimestamp", self._time())
        metadata.setdefault("generation", 1)
        return self._keep(kind, {**before, **parts, "metadata": metadata})

    def remove(self, kind: Kind, name: str, namespace: str = "") -> None:
        """Gone; its watcher is told."""
        raw = self._objects.pop((kind.kind, namespace, name), None)
        if raw is not None:
            self.watcher(kind, True, copy.deepcopy(raw))

    def object(self, kind: Kind, name: str, namespace: str = "") -> Raw:
        """The object; KeyError when there is none."""
        return copy.deepcopy(self._objects[(kind.kind, namespace, name)])

    def every(self, kind: Kind) -> list[Raw]:
        """All of a kind."""
        return [copy.deepcopy(raw) for key, raw in self._objects.items() if key[0] == kind.kind]

    def events(self, reason: str = "", about: str = "") -> list[str]:
        """Messages of the Events with this reason, about objects of this kind."""
        return [
            each["message"]
            for each in self.every(EVENTS)
            if reason in ("", each["reason"]) and about in ("", each["involvedObject"]["kind"])
        ]

    # -- the door -------------------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        self._pass("get", kind, name)
        return copy.deepcopy(self._objects.get((kind.kind, namespace, name)))

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Raw]:
        self._pass("list", kind, "")
        found = [raw for raw in self.every(kind) if not namespace or raw["metadata"]["namespace"] == namespace]
        return [raw for raw in found if _selected(raw, selector)]

    async def create(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        metadata = body["metadata"]
        key = (kind.kind, metadata.get("namespace", ""), metadata["name"])
        self._pass("create", kind, metadata["name"])
        if key in self._objects:
            raise Conflict(f"{key} exists already")
        if key[1] in self.terminating:
            raise Terminating(f"unable to create new content in namespace {key[1]} because it is being terminated")
        parts = {name: value for name, value in body.items() if name not in ("metadata", "status")}
        return self.put(kind, key[2], key[1], metadata=dict(copy.deepcopy(metadata)), **copy.deepcopy(parts))

    async def patch(
        self,
        kind: Kind,
        namespace: str,
        name: str,
        body: Mapping[str, Any],
        *,
        subresource: str = "",
        how: str = "",
    ) -> Raw:
        self._pass("patch", kind, name)
        raw = self._objects.get((kind.kind, namespace, name))
        if raw is None:
            raise Missing(f"{kind.kind} {namespace}/{name} does not exist")
        allowed = {"status": body.get("status", {})} if subresource == "status" else dict(body)
        if how.startswith("application/strategic"):
            allowed = _strategic(raw, allowed)
        return self._keep(kind, _merge(copy.deepcopy(raw), allowed))

    async def replace(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        metadata = body["metadata"]
        self._pass("replace", kind, metadata["name"])
        raw = self._objects.get((kind.kind, metadata.get("namespace", ""), metadata["name"]))
        if raw is None:
            raise Missing(metadata["name"])
        if metadata.get("resourceVersion") != raw["metadata"]["resourceVersion"]:
            raise Conflict(f"{metadata['name']} has changed")
        return self._keep(kind, copy.deepcopy(dict(body)))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        self._pass("delete", kind, name)
        raw = self._objects.get((kind.kind, namespace, name))
        if raw is not None and raw["metadata"]["uid"] == uid:
            self.remove(kind, name, namespace)

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        self._pass("evict", PODS, name)
        if name in self.blocked:
            raise Blocked(f"a budget protects {name}")
        await self.delete(PODS, namespace, name, uid)

    async def review(self, spec: Mapping[str, Any]) -> Raw:
        raise NotImplementedError

    # -- inside ---------------------------------------------------------------------------------------------------

    def _pass(self, verb: str, kind: Kind, name: str) -> None:
        self.calls.append((verb, kind.kind, name))
        if self.down:
            raise Unavailable("the API server is down")
        error = self.fail.pop((verb, kind.kind), None)
        if error is not None:
            raise error

    def _keep(self, kind: Kind, raw: Raw) -> Raw:
        raw["metadata"]["resourceVersion"] = str(next(self._versions))
        raw["kind"] = kind.kind
        metadata = raw["metadata"]
        self._objects[(kind.kind, metadata.get("namespace", ""), metadata["name"])] = raw
        self.watcher(kind, False, copy.deepcopy(raw))
        return copy.deepcopy(raw)

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")


def _merge(into: Raw, patch: Mapping[str, Any]) -> Raw:
    """RFC 7386."""
    for name, value in patch.items():
        if value is None:
            into.pop(name, None)
        elif isinstance(value, Mapping):
            before = into.get(name)
            into[name] = _merge(before if isinstance(before, dict) else {}, value)
        else:
            into[name] = copy.deepcopy(value)
    return into


def _strategic(raw: Raw, patch: Raw) -> Raw:
    """Lists of named items are merged by name, as webhooks are."""
    merged: Raw = {}
    for field, value in patch.items():
        if isinstance(value, list):
            by_name = {each["name"]: copy.deepcopy(each) for each in raw.get(field, [])}
            for each in value:
                by_name[each["name"]] = _merge(by_name.get(each["name"], {}), each)
            merged[field] = list(by_name.values())
        else:
            merged[field] = value
    return merged


def _selected(raw: Raw, selector: str) -> bool:
    labels = raw["metadata"].get("labels") or {}
    name, equals, value = selector.partition("=")
    if not selector:
        return True
    return labels.get(name) == value if equals else name in labels
