"""Translates unsuccessful S3 responses into Savepoint's errors. Pure; opens no connection."""

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
_UNKNOWN_USER = {"XAdminUserNotFound"}  # versitygw sends this with status 404 for an access key that it does not know
_FULL = {"XMinioStorageFull", "QuotaExceeded", "XMinioAdminBucketQuotaExceeded", "StorageFull", "InsufficientStorage"}
_TRANSIENT = {
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


def error_code(body: bytes) -> str:
    """Return the error code in an S3 error document, or an empty string."""
    found = _CODE.search(body[:8192])
    return found[1].decode() if found else ""


def s3_error(status: int, code: str, key: str, method: str) -> SavepointError:  # noqa: PLR0911 - one return per meaning
    """Return the error for an unsuccessful response.

    A 404 counts as a missing object only if its code names the object: a missing bucket or a proxy also answers 404.
    """
    response = f"the store answered {status}{f' ({code})' if code else ''} to {method} {key!r}"
    if status in {304, 412}:
        return ObjectExists(f"object {key} already exists")
    if code in _FULL or status == 507:
        return NoSpace(f"{response}: it is full; raise its quota or free some space")
    if code in _MISSING and status == 404:
        return ObjectMissing(f"object {key} is not in the store")
    if code in _TRANSIENT or status in {408, 409, 425, 429} or (status in range(500, 600) and status != 501):
        return StoreUnavailable(f"{response}: a transient fault; try again")
    if status in {401, 403} or code in _UNKNOWN_USER:
        return StoreDenied(f"{response}: check the credentials, their permissions and the clock")
    if code == "ExpiredToken":
        return StoreDenied(f"{response}: the credentials have expired")
    if code in _MISCONFIGURED or status in range(300, 400) or status in {400, 404, 405, 501}:
        return StoreMisconfigured(f"{response}: check endpoint, bucket and region; redirects are not followed")
    return StoreUnavailable(f"{response}, which is not an expected status; try again")
