"""The operator's log at its most verbose level, with a real S3 server."""

import logging
from collections.abc import Iterator

import pytest
from savepoint.storage.s3 import S3Store
from savepoint_operator.main import set_up_logs

from tests.servers.s3 import S3Server

NAMES = ("kopf", "aiohttp.access", "urllib3", "minio", "kubernetes", "kopf._core.reactor.running")


@pytest.fixture
def levels() -> Iterator[None]:
    before = {name: logging.getLogger(name).level for name in NAMES}
    yield
    for name, level in before.items():
        logging.getLogger(name).setLevel(level)


def test_no_signed_url_is_logged_at_any_level(
    s3_versitygw: S3Server, levels: None, caplog: pytest.LogCaptureFixture
) -> None:
    store = S3Store(s3_versitygw.config("logs"))
    caplog.set_level(logging.DEBUG)
    set_up_logs("DEBUG")
    store.put_new("commits/1", b"record")
    assert store.get("commits/1", max_bytes=10) == b"record"
    store.close()
    assert "X-Amz" not in caplog.text
    assert s3_versitygw.access_key not in caplog.text
