"""For which keys a pod may get a URL."""

import pytest
from savepoint.contract.control_protocol import URL_KEYS_MAX, NeedUrls
from savepoint_operator.rules.urls import may_get, may_put, refusal

RANDOM = "0123456789abcdef" * 2
MANIFEST = f"manifests/{'ab' * 32}"


@pytest.mark.parametrize(
    "key",
    [
        "",
        "packs/",
        f"packs/07-{RANDOM}",
        f"packs/7-{RANDOM}0",
        f"packs/7-{RANDOM[:-1]}",
        f"packs/7-{RANDOM.upper()}",
        f"packs/7-{RANDOM}\n",
        f"packs/7-{RANDOM}/x",
        f"packs/٧-{RANDOM}",  # noqa: RUF001 - a digit, but not an ASCII one
        f"/packs/7-{RANDOM}",
        f"packs/../packs/7-{RANDOM}",
        f"../other/packs/7-{RANDOM}",
        f"commits/{7:020d}",
        f"pending/7-{RANDOM}",
        "repository.json",
        f"manifests/{'ab' * 31}",
        f"manifests/{'ab' * 32}%2f",
    ],
)
def test_only_packs_and_manifests_get_urls(key: str) -> None:
    assert not may_put(key, 7)
    assert not may_get(key)


def test_a_pack_may_be_written_under_the_own_epoch_and_read_under_any() -> None:
    assert may_put(f"packs/7-{RANDOM}", 7)
    assert not may_put(f"packs/6-{RANDOM}", 7)
    assert not may_put(f"packs/77-{RANDOM}", 7)
    assert may_get(f"packs/6-{RANDOM}")
    assert may_put(MANIFEST, 7)
    assert may_get(MANIFEST)


def test_a_request_is_granted_or_refused_as_a_whole() -> None:
    allowed = NeedUrls("1", put=(f"packs/7-{RANDOM}",), get=(MANIFEST,))
    assert refusal(allowed, 7, writes=True) is None
    assert refusal(allowed, 7, writes=False)
    assert refusal(NeedUrls("1", get=(MANIFEST, "repository.json")), 7, writes=True)
    assert refusal(NeedUrls("1", put=(f"packs/8-{RANDOM}",)), 7, writes=True)
    assert refusal(NeedUrls("1", get=(MANIFEST,) * URL_KEYS_MAX), 7, writes=False) is None
    assert refusal(NeedUrls("1", get=(MANIFEST,) * (URL_KEYS_MAX + 1)), 7, writes=False)
