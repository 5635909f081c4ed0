"""A bucket as a store for the command line: credentials from the environment, minio only where it is needed."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from savepoint.errors import StoreDenied, StoreMisconfigured
from savepoint.storage.signature import S3Config

from savepoint_cli.place import Bucket

if TYPE_CHECKING:
    from savepoint.storage.s3 import S3Store

NEEDED: Final = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def bucket_store(bucket: Bucket, environment: Mapping[str, str] = os.environ) -> "S3Store":
    """The store of a bucket; nothing is asked of it yet. StoreMisconfigured, StoreDenied: what is missing or wrong."""
    try:
        from savepoint.storage.s3 import S3Store  # noqa: PLC0415 - a store in a folder needs no minio
    except ModuleNotFoundError as error:
        if error.name not in {"minio", "urllib3"}:
            raise
        raise StoreMisconfigured(
            "a store in S3 is read with minio, which is not installed: pip install 'savepoint-agents[cli]' (in a "
            "checkout: pip install '.[cli]')"
        ) from error
    config = _config(bucket, environment)
    try:
        return S3Store(config)
    except (ValueError, OSError) as error:  # what minio refuses; a CA that is none
        raise StoreMisconfigured(f"{bucket} cannot be opened: {error}") from error


def _config(bucket: Bucket, environment: Mapping[str, str]) -> S3Config:
    access, secret = (environment.get(name, "").strip() for name in NEEDED)
    if not access or not secret:
        raise StoreMisconfigured(f"{bucket} is read with {' and '.join(NEEDED)}: set both in the environment")
    if "@" in bucket.endpoint:  # a password, perhaps: it is not said again
        raise StoreMisconfigured(f"the endpoint of {bucket} names a user; write http(s)://host[:port]")
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
        raise StoreMisconfigured(f"{bucket} cannot be opened: {error}") from error


def _ca(bucket: Bucket) -> str | None:
    if bucket.ca is None:
        return None
    try:
        pem = bucket.ca.read_text(errors="replace")
    except OSError as error:
        raise StoreDenied(f"the CA at {bucket.ca} cannot be read: {error.strerror}") from error
    if "BEGIN CERTIFICATE" not in pem:
        raise StoreMisconfigured(f"{bucket.ca} holds no PEM certificates")
    return pem
