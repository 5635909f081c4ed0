"""For which keys a pod may have a URL. Pure; signing is the store's signer's business.

Keys are relative to the agent's own repository, so no pattern here can name another agent's object.
"""

import re

from savepoint.contract.control_protocol import URL_KEYS_MAX, NeedUrls

_MANIFEST = re.compile(r"manifests/[0-9a-f]{64}")
_PACK = re.compile(r"packs/(0|[1-9][0-9]{0,18})-[0-9a-f]{32}")


def may_put(key: str, epoch: int) -> bool:
    """A new pack under the pod's own epoch, or a manifest named by its digest."""
    pack = _PACK.fullmatch(key)
    return _MANIFEST.fullmatch(key) is not None or (pack is not None and pack[1] == str(epoch))


def may_get(key: str) -> bool:
    """A pack of any epoch, or a manifest: commit records and pending objects are the operator's alone."""
    return _MANIFEST.fullmatch(key) is not None or _PACK.fullmatch(key) is not None


def refusal(ask: NeedUrls, epoch: int, *, writes: bool) -> str | None:
    """Why an ask is refused as a whole, None when every key is allowed. ``writes``: the role may put at all."""
    if len(ask.put) + len(ask.get) > URL_KEYS_MAX:
        return f"{len(ask.put) + len(ask.get)} keys in one message; ask for at most {URL_KEYS_MAX}"
    if ask.put and not writes:
        return "a restore only reads; it gets no URL to write"
    if not all(may_put(key, epoch) for key in ask.put):
        return f"only packs/{epoch}-<32 hexadecimal digits> and manifests/<64 hexadecimal digits> may be written"
    if not all(may_get(key) for key in ask.get):
        return "only packs and manifests of the agent's own repository may be read"
    return None
