"""What an S3 answer that is no success means, in our own errors. Pure: a status and a code, no connection."""

import re

from savepoint.errors import (
    NoSpace,
    ObjectExists,
    ObjectMissing,
    SavepointError,
    StoreDenied,
    StoreMisconfigured,
    StoreUnavailable,
)

_CODE = re.compile(rb"<Code>\s*([A-Za-z0-9_.]{1,64})\s*</Code>")

_MISSING = {"NoSuchKey", "NoSuchObject"}
_MISCONFIGURED = {
    "NoSuchBucket",
    "InvalidBucketName",
    "PermanentRedirect",
    "AuthorizationHeaderMalformed",
    "AuthorizationQueryParametersError",
    "IllegalLocationConstraintException",
    "NotImplemented",
    "MethodNotAllowed",
}
_UNKNOWN_USER = {"XAdminUserNotFound"}  # versitygw says it with 404, of an access key that it does not know
_FULL = {"XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "StorageFull", "InsufficientStorage"}
_PASSING = {
    "ConditionalRequestConflict",
    "OperationAborted",
    "RequestTimeout",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "InternalError",
    "ServiceUnavailable",
    "XMinioServerNotInitialized",
}


def code_of(body: bytes) -> str:
    """The error code in an S3 error document, or an empty string."""
    found = _CODE.search(body[:8192])
    return found[1].decode() if found else ""


def fault(status: int, code: str, key: str, doing: str) -> SavepointError:  # noqa: PLR0911 - one return per meaning
    """The error for an answer. A 404 counts as missing only with the code that says so about the object."""
    said = f"the store answered {status}{f' ({code})' if code else ''} to {doing} {key!r}"
    if status in {304, 412}:
        return ObjectExists(f"object {key} exists already")
    if code in _FULL or status == 507:
        return NoSpace(f"{said}: it is full; raise its quota or free some space")
    if code in _MISSING and status == 404:
        return ObjectMissing(f"object {key} is not in the store")
    if code in _PASSING or status in {408, 409, 425, 429} or (status in range(500, 600) and status != 501):
        return StoreUnavailable(f"{said}; it may pass, try again")
    if status in {401, 403} or code in _UNKNOWN_USER:
        return StoreDenied(f"{said}: check the credentials, their permissions, and the clock")
    if code == "ExpiredToken":
        return StoreDenied(f"{said}: the credentials have expired")
    if code in _MISCONFIGURED or status in range(300, 400) or status in {400, 404, 405, 501}:
        return StoreMisconfigured(f"{said}: check endpoint, bucket and region; redirects are not followed")
    return StoreUnavailable(f"{said}, which is not understood")
