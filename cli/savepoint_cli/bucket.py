"""Opens a store in a bucket, with credentials from the environment. minio is imported only when it is needed."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from savepoint.errors import StoreDenied, StoreMisconfigured
from savepoint.storage.signature import S3Config

from savepoint_cli.store_options import Bucket

if TYPE_CHECKING:
    from savepoint.storage.s3 import S3Store

CREDENTIALS: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def bucket_store(bucket: Bucket, environment: Mapping[str, str] = os.environ) -> "S3Store":
    """Create the client for a store in a bucket. No request is sent yet.

    Args:
        bucket: Where the store is.
        environment: Holds the credentials, in the variables that AWS tools read.

    Returns:
        The store; the caller closes it.

    Raises:
        StoreMisconfigured: minio is not installed, the credentials are missing, or an option is invalid.
        StoreDenied: The file with the CAs cannot be read.
    """
    try:
        from savepoint.storage.s3 import S3Store  # noqa: PLC0415 - a store in a folder needs no minio
    except ModuleNotFoundError as error:
        if error.name not in {"minio", "urllib3"}:
            raise
        raise StoreMisconfigured(
            f"cannot read {bucket}: minio is not installed; run pip install 'savepoint-agents[cli]' (in a checkout: "
            "pip install '.[cli]')"
        ) from error
    config = _config(bucket, environment)
    try:
        return S3Store(config)
    except (ValueError, OSError) as error:  # an option that minio rejects, or a CA that is not a certificate
        raise StoreMisconfigured(f"cannot open {bucket}: {error}") from error


def _config(bucket: Bucket, environment: Mapping[str, str]) -> S3Config:
    access, secret = (environment.get(name, "").strip() for name in CREDENTIALS)
    if not access or not secret:
        raise StoreMisconfigured(f"no credentials for {bucket}; set {' and '.join(CREDENTIALS)} in the environment")
    if "@" in bucket.endpoint:  # it may contain a password, so it is not repeated
        raise StoreMisconfigured(f"the endpoint of {bucket} contains a user name; use http(s)://host[:port]")
    try:
        return S3Config(
            endpoint=bucket.endpoint,
            bucket=bucket.name,
            access_key=access,
            secret_key=secret,
            prefix=f"{bucket.prefix}/" if bucket.prefix else "",
            region=bucket.region,
            addressing=bucket.addressing,
            ca_pem=_ca(bucket),
            session_token=environment.get("AWS_SESSION_TOKEN", "").strip() or None,
        )
    except ValueError as error:
        raise StoreMisconfigured(f"cannot open {bucket}: {error}") from error


def _ca(bucket: Bucket) -> str | None:
    if bucket.ca is None:
        return None
    try:
        pem = bucket.ca.read_text(errors="replace")
    except OSError as error:
        raise StoreDenied(f"cannot read CA file {bucket.ca}: {error.strerror}") from error
    if "BEGIN CERTIFICATE" not in pem:
        raise StoreMisconfigured(f"CA file {bucket.ca} contains no PEM certificates")
    return pem
