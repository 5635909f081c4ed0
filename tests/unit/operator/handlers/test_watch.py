"""kopf's settings."""

import itertools

from savepoint_operator.cluster.kinds import PODS, WATCHED
from savepoint_operator.handlers.watch import settings as kopf_settings


def test_kopf_writes_nothing_and_watches_labelled_pods_only() -> None:
    settings = kopf_settings()
    assert not settings.posting.enabled
    assert settings.persistence.finalizer == "savepoint.dev/operator"
    assert isinstance(settings.watching.server_timeout, int)
    assert len({kind.plural for kind in WATCHED}) == len(WATCHED)
    assert PODS in WATCHED
    assert list(itertools.islice(settings.watching.label_selectors.values(), 1)) == ["savepoint.dev/agent"]
