"""Find stores that contradict each other: two default ones, or two that keep checkpoints in one place. Pure.

The chart's admission policies refuse such a store when it is written. Two that were created at the same moment, or by
an earlier version, are reported here; both stay usable.
"""

from collections.abc import Iterable
from urllib.parse import urlsplit

from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.objects import S3Spec, Store
from savepoint_operator.rules.identity import default_store
from savepoint_operator.rules.status.conditions import Condition

CONFLICTING = "Conflicting"
_DEFAULT_PORTS = {"https": 443, "http": 80}


def conflict(store: Store, stores: Iterable[Store]) -> Condition | None:
    """Return condition Conflicting of a store; None if there is no conflict and its status shows none either."""
    others = sorted((each for each in stores if each.meta.name != store.meta.name), key=lambda each: each.meta.name)
    sharing = [each.meta.name for each in others if _same_place(store.s3, each.s3)]
    if sharing:
        place = f"bucket {store.s3.bucket}, prefix {store.s3.prefix or 'none'}"
        message = (
            f"AgentCheckpointStore {', '.join(sharing)} keeps checkpoints in the same place ({place}), so that agents "
            "of one name write to one history. Give each store its own spec.s3.prefix."
        )
        return Condition.of(CONFLICTING, True, Reason.STORE_LOCATION_SHARED, message)
    defaults = [each for each in others if each.default]
    chosen = default_store([store, *defaults])
    if store.default and defaults and chosen is not None:
        message = (
            f"AgentCheckpointStore {', '.join(each.meta.name for each in defaults)} is marked as default too. The "
            f"oldest one, {chosen.meta.name}, applies; set spec.default to false on the others."
        )
        return Condition.of(CONFLICTING, True, Reason.DEFAULT_STORE_REPEATED, message)
    if any(each.get("type") == CONFLICTING for each in store.status.get("conditions") or ()):
        return Condition.of(CONFLICTING, False, Reason.NO_CONFLICT, "")
    return None


def _same_place(one: S3Spec, other: S3Spec) -> bool:
    """Return whether both stores name the same folder."""
    same_folder = (one.bucket, one.prefix.strip("/")) == (other.bucket, other.prefix.strip("/"))
    return same_folder and _server(one.endpoint) == _server(other.endpoint)


def _server(endpoint: str) -> tuple[str, int | None]:
    """Return host and port; an endpoint that cannot be parsed is compared as text."""
    try:
        url = urlsplit(endpoint)
        return (url.hostname or endpoint).rstrip("."), url.port or _DEFAULT_PORTS.get(url.scheme)
    except ValueError:
        return endpoint, None
