"""Rules that decide for which keys a pod may get a URL. Pure: the store's signer signs.

Keys are relative to the agent's own repository, so no pattern here can match another agent's object.
"""

import re

from savepoint.contract.control_protocol import URL_KEYS_MAX, NeedUrls

_MANIFEST = re.compile(r"manifests/[0-9a-f]{64}")
_PACK = re.compile(r"packs/(0|[1-9][0-9]{0,18})-[0-9a-f]{32}")


def may_put(key: str, epoch: int) -> bool:
    """Return whether the key is a pack under the pod's own epoch, or a manifest named by its digest."""
    pack = _PACK.fullmatch(key)
    return _MANIFEST.fullmatch(key) is not None or (pack is not None and pack[1] == str(epoch))


def may_get(key: str) -> bool:
    """Return whether the key is a pack of any epoch, or a manifest; records and pending objects are the operator's."""
    return _MANIFEST.fullmatch(key) is not None or _PACK.fullmatch(key) is not None


def refusal(request: NeedUrls, epoch: int, *, writes: bool) -> str | None:
    """Return why the whole request is refused, or None. ``writes``: the role may write at all."""
    if len(request.put) + len(request.get) > URL_KEYS_MAX:
        return f"{len(request.put) + len(request.get)} keys in one message; request at most {URL_KEYS_MAX}"
    if request.put and not writes:
        return "a restore only reads and gets no URL to write"
    if not all(may_put(key, epoch) for key in request.put):
        return f"only packs/{epoch}-<32 hexadecimal digits> and manifests/<64 hexadecimal digits> may be written"
    if not all(may_get(key) for key in request.get):
        return "only packs and manifests of the agent's own repository may be read"
    return None
