"""What a pod is told once it holds an epoch, and the URLs it gets. Values and signatures only; no I/O."""

from savepoint.contract.control_protocol import NeedUrls, Refused, Urls, Welcome

from savepoint_operator.lineage.epoch_lease import EpochLease
from savepoint_operator.model.views import Incarnation
from savepoint_operator.rules.urls import refusal

URL_SECONDS = 3600
PENDING_URL_SECONDS = 7 * 24 * 3600
"""It serves a shutdown without operator, which may come long after the last welcome; S3 allows seven days."""


def welcome(who: Incarnation, tenure: EpochLease, *, writes: bool) -> Welcome:
    """The message for this pod; only a role that writes gets the pending URL."""
    return Welcome(
        agent=who.agent.name,
        namespace=who.agent.namespace,
        epoch=tenure.epoch,
        run=tenure.run,
        key=tenure.key.expose().hex(),
        config_hash=who.config_hash,
        policy=who.policy,
        parent=tenure.parent,
        pending_key=tenure.pending_key if writes else "",
        pending_url=(
            tenure.store.signer.presign_put(tenure.object_key(tenure.pending_key), PENDING_URL_SECONDS)
            if writes
            else ""
        ),
        store_ca=tenure.store.pod_ca_pem,
        shared_roots=tuple(root.name for root in who.shared),
    )


def urls(ask: NeedUrls, tenure: EpochLease, *, writes: bool) -> Urls | Refused:
    """Presigned URLs of exactly the keys that were asked for, or none of them."""
    why = refusal(ask, tenure.epoch, writes=writes)
    if why is not None:
        return Refused("Refused", f"No URLs: {why}.", request=ask.request)
    signer = tenure.store.signer
    return Urls(
        ask.request,
        put={key: signer.presign_put(tenure.object_key(key), URL_SECONDS) for key in ask.put},
        get={key: signer.presign_get(tenure.object_key(key), URL_SECONDS) for key in ask.get},
        expires_seconds=URL_SECONDS,
    )
