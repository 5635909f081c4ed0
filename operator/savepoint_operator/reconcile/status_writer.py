"""Writes the status and the metadata of the operator's own kinds: merge, compare, patch, and update the cache.

It does not decide what a status says. Every step writes through here, so that all kinds behave alike:

- Conditions are merged into those of the object; ``lastTransitionTime`` moves only when the status changes.
- Nothing is sent when nothing would change.
- The API server's answer goes into the cache at once, before the watch reports it.
- NotFound means that the object was deleted in the meantime. That is not an error: the deletion is reported to the
  reconciler as the watch would report it, and the caller gets None.
"""

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Protocol, TypeVar

from savepoint_operator.cluster.errors import NotFound
from savepoint_operator.cluster.kinds import Kind
from savepoint_operator.model.objects import Meta
from savepoint_operator.reconcile.cluster_cache import ClusterCache
from savepoint_operator.reconcile.cluster_client import ClusterClient, Raw
from savepoint_operator.rules.status.conditions import Condition, changed, merged


class StatusObject(Protocol):
    """An object of one of the operator's own kinds."""

    @property
    def meta(self) -> Meta: ...
    @property
    def status(self) -> Mapping[str, Any]: ...


T = TypeVar("T", bound=StatusObject)


class StatusWriter:
    """Patches one object at a time, relative to the state that the caller has seen."""

    def __init__(
        self,
        cluster: ClusterClient,
        cache: ClusterCache,
        now: Callable[[], datetime],
        observe_deletion: Callable[[Kind, Raw], None],
    ) -> None:
        """``observe_deletion`` is called with the kind and metadata of an object that turns out to be deleted."""
        self._cluster, self._cache, self._now, self._observe_deletion = cluster, cache, now, observe_deletion

    async def write(self, kind: Kind, item: T, patch: Mapping[str, Any], *conditions: Condition) -> T | None:
        """Merge ``patch`` and ``conditions`` into the object's status.

        Args:
            kind: The object's kind.
            item: The object as the caller has seen it; only differences from it are sent.
            patch: A merge patch of the status; None removes a field.
            conditions: Conditions to set; with at least one, ``observedGeneration`` is written too.

        Returns:
            The object as it is now, ``item`` itself if there was nothing to write, or None if it no longer exists.

        Raises:
            SavepointError: The API server cannot be reached or refuses the patch.
        """
        status = dict(patch)
        if conditions:
            generation = item.meta.generation
            status["observedGeneration"] = generation
            status["conditions"] = merged(item.status.get("conditions") or (), conditions, generation, self._now())
        difference = changed(item.status, status)
        return await self._patch(kind, item, {"status": difference}, "status") if difference else item

    async def write_metadata(
        self,
        kind: Kind,
        item: T,
        *,
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> T | None:
        """Set labels and annotations; returns and raises as ``write`` does."""
        difference = {
            name: part
            for name, part in (
                ("labels", changed(item.meta.labels, labels or {})),
                ("annotations", changed(item.meta.annotations, annotations or {})),
            )
            if part
        }
        return await self._patch(kind, item, {"metadata": difference}) if difference else item

    async def _patch(self, kind: Kind, item: T, body: Mapping[str, Any], subresource: str = "") -> T | None:
        meta = item.meta
        try:
            raw = await self._cluster.patch(kind, meta.namespace, meta.name, body, subresource=subresource)
        except NotFound:
            identity = {"namespace": meta.namespace, "name": meta.name, "uid": meta.uid}
            self._observe_deletion(kind, {"metadata": identity})
            return None
        cached: T | None = self._cache.of_kind(kind).put(raw)[1]  # None: the watch has reported its deletion by now
        return cached
