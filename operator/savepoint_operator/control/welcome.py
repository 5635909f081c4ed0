"""The welcome message of a pod that holds an epoch, and the URLs it gets. Values and signatures only; no I/O."""

from savepoint.contract.control_protocol import NeedUrls, Refused, Urls, Welcome
from savepoint.contract.vocabulary import Reason

from savepoint_operator.lineage.held_epoch import HeldEpoch
from savepoint_operator.model.views import Incarnation
from savepoint_operator.rules.urls import refusal

URL_SECONDS = 3600
PENDING_URL_SECONDS = 7 * 24 * 3600
"""It is for a shutdown without an operator, possibly long after the last welcome; S3 allows seven days."""


def welcome(incarnation: Incarnation, held_epoch: HeldEpoch, *, writes: bool) -> Welcome:
    """Return the message for this pod; only a role that writes gets the pending URL."""
    return Welcome(
        agent=incarnation.agent.name,
        namespace=incarnation.agent.namespace,
        epoch=held_epoch.epoch,
        run=held_epoch.run,
        key=held_epoch.key.expose().hex(),
        config_hash=incarnation.config_hash,
        policy=incarnation.policy,
        parent=held_epoch.parent,
        pending_key=held_epoch.pending_key if writes else "",
        pending_url=(
            held_epoch.store.signer.presign_put(held_epoch.object_key(held_epoch.pending_key), PENDING_URL_SECONDS)
            if writes
            else ""
        ),
        store_ca=held_epoch.store.pod_ca_pem,
        shared_roots=tuple(root.name for root in incarnation.shared),
    )


def urls(request: NeedUrls, held_epoch: HeldEpoch, *, writes: bool) -> Urls | Refused:
    """Return presigned URLs for exactly the requested keys, or refuse all of them."""
    problem = refusal(request, held_epoch.epoch, writes=writes)
    if problem is not None:
        return Refused(Reason.REFUSED, f"No URLs were issued: {problem}.", request=request.request)
    signer = held_epoch.store.signer
    return Urls(
        request.request,
        put={key: signer.presign_put(held_epoch.object_key(key), URL_SECONDS) for key in request.put},
        get={key: signer.presign_get(held_epoch.object_key(key), URL_SECONDS) for key in request.get},
        expires_seconds=URL_SECONDS,
    )
