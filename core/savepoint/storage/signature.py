"""The address and credentials of a bucket, and presigned URLs: each permits one operation on one object.

AWS Signature Version 4 in the query string. It is implemented here because the signed headers must include
``if-none-match``, so that a PUT URL can never replace an object. This module opens no connection; the time comes from
the caller's clock.
"""

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal
from urllib.parse import quote, urlsplit

from savepoint.storage.store import check_key, check_prefix

MAX_EXPIRES_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True, slots=True)
class S3Config:
    """The address and credentials of one bucket. Raises ValueError for an invalid endpoint, bucket or prefix."""

    endpoint: str
    """``http(s)://host[:port]``, without a path."""
    bucket: str
    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    prefix: str = ""
    """Prepended to every key; ends in ``/`` unless empty."""
    region: str = "us-east-1"
    addressing: Literal["path", "virtual"] = "path"
    ca_pem: str | None = field(default=None, repr=False)
    """PEM certificates to trust instead of the system's."""
    session_token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        try:
            url = urlsplit(self.endpoint)
            port = url.port
        except ValueError as error:
            raise ValueError(f"not an S3 endpoint: {self.endpoint!r} ({error}); write http(s)://host[:port]") from error
        if port == 0 or not (url.hostname or "").strip("."):
            raise ValueError(
                f"not an S3 endpoint: {self.endpoint!r} has no host or port 0; write http(s)://host[:port]"
            )
        if url.scheme not in {"http", "https"} or url.username or url.password:
            raise ValueError(f"not an S3 endpoint: {self.endpoint!r}; write http(s)://host[:port]")
        if url.path.strip("/") or url.query or url.fragment:
            raise ValueError(f"an S3 endpoint has no path: {self.endpoint!r}; set the prefix separately")
        if not self.bucket or "/" in self.bucket:
            raise ValueError(f"not a bucket name: {self.bucket!r}")
        if self.prefix and not self.prefix.endswith("/"):
            raise ValueError(f"a prefix ends in a slash: {self.prefix!r}")
        check_prefix(self.prefix)

    @property
    def secure(self) -> bool:
        """True if the endpoint uses TLS."""
        return urlsplit(self.endpoint).scheme == "https"

    @property
    def host(self) -> str:
        """The bucket's ``host[:port]`` as the Host header carries it: without the scheme's default port."""
        url = urlsplit(self.endpoint)
        assert url.hostname is not None
        name = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        if self.addressing == "virtual":
            name = f"{self.bucket}.{name}"
        default = 443 if self.secure else 80
        return name if url.port in {None, default} else f"{name}:{url.port}"

    def path(self, key: str) -> str:
        """Return the URL path of an object, percent-encoded."""
        bucket = f"/{quote(self.bucket, safe='')}" if self.addressing == "path" else ""
        return f"{bucket}/{quote(self.prefix + check_key(key), safe='/-_.~')}"


class Presigner:
    """Signs URLs for a bucket. A PUT must carry ``If-None-Match: *``, or the store rejects its signature."""

    def __init__(self, config: S3Config, now: Callable[[], datetime]) -> None:
        """Sign with the credentials of ``config``, at the times that ``now`` returns (aware, in UTC)."""
        self._config, self._now = config, now

    def __repr__(self) -> str:
        return f"Presigner({self._config!r})"

    def presign_put(self, key: str, expires_seconds: int) -> str:
        """Return a URL that creates ``key``, once.

        Args:
            key: The object's key.
            expires_seconds: How long the URL is valid, from 1 second to 7 days.

        Raises:
            ValueError: The key or the validity is out of range.
        """
        return self._presign("PUT", key, expires_seconds, {"if-none-match": "*"})

    def presign_get(self, key: str, expires_seconds: int) -> str:
        """Return a URL that reads ``key``; a Range header may be added. Arguments and errors as in ``presign_put``."""
        return self._presign("GET", key, expires_seconds, {})

    def _presign(self, method: str, key: str, expires_seconds: int, headers: Mapping[str, str]) -> str:
        if not 1 <= expires_seconds <= MAX_EXPIRES_SECONDS:
            raise ValueError(f"a URL is valid for 1 second to 7 days, not {expires_seconds} s")
        config = self._config
        stamp = self._now().strftime("%Y%m%dT%H%M%SZ")
        scope = f"{stamp[:8]}/{config.region}/s3/aws4_request"
        signed = {"host": config.host, **headers}
        names = ";".join(sorted(signed))
        query = {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{config.access_key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(expires_seconds),
            "X-Amz-SignedHeaders": names,
        }
        if config.session_token:
            query["X-Amz-Security-Token"] = config.session_token
        encoded = "&".join(f"{_escape(name)}={_escape(query[name])}" for name in sorted(query))
        lines = "".join(f"{name}:{signed[name]}\n" for name in sorted(signed))
        path = config.path(key)
        request = f"{method}\n{path}\n{encoded}\n{lines}\n{names}\nUNSIGNED-PAYLOAD"
        digest = hashlib.sha256(request.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
        signature = hmac.new(self._signing_key(stamp[:8]), text.encode(), hashlib.sha256).hexdigest()
        scheme = "https" if config.secure else "http"
        return f"{scheme}://{config.host}{path}?{encoded}&X-Amz-Signature={signature}"

    def _signing_key(self, day: str) -> bytes:
        key = b"AWS4" + self._config.secret_key.encode()
        for element in (day, self._config.region, "s3", "aws4_request"):
            key = hmac.new(key, element.encode(), hashlib.sha256).digest()
        return key


def _escape(text: str) -> str:
    return quote(text, safe="-_.~")
