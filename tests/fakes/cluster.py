"""A fake of ``cluster.api.Api`` in memory: names, versions, merge patches, conflicts, and faults on demand.

It validates no schema and runs no controller; tests that need these use a real API server.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from savepoint.errors import SavepointError, Unavailable
from savepoint_operator.cluster.errors import Blocked, Conflict, NamespaceTerminating, NotFound
from savepoint_operator.cluster.kinds import EVENTS, PODS, Kind

Raw = dict[str, Any]
Key = tuple[str, str, str]


class FakeCluster:
    """Implements the API client of reconcile, Events, the Lease and certificates."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime(2026, 11, 24, tzinfo=UTC)) -> None:
        self._now = now
        self._objects: dict[Key, Raw] = {}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)
        self.calls: list[tuple[str, str, str]] = []
        """Every call as (verb, kind, name)."""
        self.down = False
        self.fail: dict[tuple[str, str], SavepointError] = {}
        """(verb, kind) → the error that the next such call raises."""
        self.blocked: set[str] = set()
        """Names of pods that a disruption budget protects from eviction."""
        self.terminating: set[str] = set()
        """Namespaces that are being deleted."""
        self.watcher: Callable[[Kind, bool, Raw], None] = lambda *_: None

    # -- the test's side -----------------------------------------------------------------------------------------

    def put(self, kind: Kind, name: str, namespace: str = "", **parts: Any) -> Raw:
        """Create or change an object, and notify the watcher."""
        key = (kind.kind, namespace, name)
        before = self._objects.get(key, {"metadata": {}})
        metadata = {**before["metadata"], "name": name, "namespace": namespace, **parts.pop("metadata", {})}
        metadata.setdefault("uid", f"00000000-0000-4000-8000-{next(self._uids):012d}")
        metadata.setdefault("creationTimestamp", self._time())
        metadata.setdefault("generation", 1)
        return self._save(kind, {**before, **parts, "metadata": metadata})

    def remove(self, kind: Kind, name: str, namespace: str = "") -> None:
        """Remove an object, and notify the watcher."""
        raw = self._objects.pop((kind.kind, namespace, name), None)
        if raw is not None:
            self.watcher(kind, True, copy.deepcopy(raw))

    def object(self, kind: Kind, name: str, namespace: str = "") -> Raw:
        """Return a copy of the object. Raises KeyError if it does not exist."""
        return copy.deepcopy(self._objects[(kind.kind, namespace, name)])

    def every(self, kind: Kind) -> list[Raw]:
        """Return copies of all objects of a kind."""
        return [copy.deepcopy(raw) for key, raw in self._objects.items() if key[0] == kind.kind]

    def events(self, reason: str = "", about: str = "") -> list[str]:
        """Return the messages of the Events with this reason about objects of this kind."""
        return [
            each["message"]
            for each in self.every(EVENTS)
            if reason in ("", each["reason"]) and about in ("", each["involvedObject"]["kind"])
        ]

    # -- the API client's side ------------------------------------------------------------------------------------

    async def get(self, kind: Kind, namespace: str, name: str) -> Raw | None:
        self._call("get", kind, name)
        return copy.deepcopy(self._objects.get((kind.kind, namespace, name)))

    async def list(self, kind: Kind, namespace: str = "", selector: str = "") -> list[Raw]:
        self._call("list", kind, "")
        found = [raw for raw in self.every(kind) if not namespace or raw["metadata"]["namespace"] == namespace]
        return [raw for raw in found if _selected(raw, selector)]

    async def create(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        metadata = body["metadata"]
        key = (kind.kind, metadata.get("namespace", ""), metadata["name"])
        self._call("create", kind, metadata["name"])
        if key in self._objects:
            raise Conflict(f"{key} exists already")
        if key[1] in self.terminating:
            raise NamespaceTerminating(
                f"unable to create new content in namespace {key[1]} because it is being terminated"
            )
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
        patch_type: str = "",
    ) -> Raw:
        self._call("patch", kind, name)
        raw = self._objects.get((kind.kind, namespace, name))
        if raw is None:
            raise NotFound(f"{kind.kind} {namespace}/{name} does not exist")
        allowed = {"status": body.get("status", {})} if subresource == "status" else dict(body)
        if patch_type.startswith("application/strategic"):
            allowed = _strategic(raw, allowed)
        return self._save(kind, _merge(copy.deepcopy(raw), allowed))

    async def replace(self, kind: Kind, body: Mapping[str, Any]) -> Raw:
        metadata = body["metadata"]
        self._call("replace", kind, metadata["name"])
        raw = self._objects.get((kind.kind, metadata.get("namespace", ""), metadata["name"]))
        if raw is None:
            raise NotFound(metadata["name"])
        if metadata.get("resourceVersion") != raw["metadata"]["resourceVersion"]:
            raise Conflict(f"{metadata['name']} has changed")
        return self._save(kind, copy.deepcopy(dict(body)))

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        self._call("delete", kind, name)
        raw = self._objects.get((kind.kind, namespace, name))
        if raw is not None and raw["metadata"]["uid"] == uid:
            self.remove(kind, name, namespace)

    async def evict(self, namespace: str, name: str, uid: str) -> None:
        self._call("evict", PODS, name)
        if name in self.blocked:
            raise Blocked(f"a budget protects {name}")
        await self.delete(PODS, namespace, name, uid)

    async def review(self, spec: Mapping[str, Any]) -> Raw:
        raise NotImplementedError

    # -- internals ---------------------------------------------------------------------------------------------------

    def _call(self, verb: str, kind: Kind, name: str) -> None:
        self.calls.append((verb, kind.kind, name))
        if self.down:
            raise Unavailable("the API server is down")
        error = self.fail.pop((verb, kind.kind), None)
        if error is not None:
            raise error

    def _save(self, kind: Kind, raw: Raw) -> Raw:
        raw["metadata"]["resourceVersion"] = str(next(self._versions))
        raw["kind"] = kind.kind
        metadata = raw["metadata"]
        self._objects[(kind.kind, metadata.get("namespace", ""), metadata["name"])] = raw
        self.watcher(kind, False, copy.deepcopy(raw))
        return copy.deepcopy(raw)

    def _time(self) -> str:
        return self._now().strftime("%Y-%m-%dT%H:%M:%SZ")


def _merge(into: Raw, patch: Mapping[str, Any]) -> Raw:
    """Apply a JSON merge patch (RFC 7386) in place."""
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
    """Return the patch with lists of named items merged by name, as for webhooks."""
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
