"""Presigned URLs in the cache: how long they are used, and when they are renewed."""

from savepoint.contract.control_protocol import Urls
from savepoint_sidecar.authority.url_cache import RESERVE_SIZE, UrlCache

from tests.unit.sidecar.environment import ManualClock


def test_a_url_is_used_until_shortly_before_it_expires() -> None:
    clock = ManualClock()
    cache = UrlCache(clock)
    cache.add(Urls("1", put={"packs/1-a": "P"}, get={"packs/1-b": "G"}, expires_seconds=600))
    assert (cache.put_url("packs/1-a"), cache.get_url("packs/1-b")) == ("P", "G")
    assert cache.get_url("packs/1-a") is None
    clock.now += 541
    assert cache.put_url("packs/1-a") is None and cache.get_url("packs/1-b") is None


def test_the_reserve_is_renewed_when_it_is_half_expired() -> None:
    clock = ManualClock()
    cache = UrlCache(clock)
    assert cache.reserve_missing() == RESERVE_SIZE
    for number in range(RESERVE_SIZE):
        cache.add(Urls("1", put={f"packs/1-{number}": "P"}, expires_seconds=3600))
        cache.reserve(f"1-{number}")
    assert cache.reserve_missing() == 0
    name = cache.take_reserved()
    assert name is not None and cache.put_url(f"packs/{name}") == "P" and cache.reserve_missing() == 1
    clock.now += 1801
    assert cache.reserve_missing() == RESERVE_SIZE and cache.take_reserved() is None


def test_urls_of_expected_reads_are_renewed() -> None:
    clock = ManualClock()
    cache = UrlCache(clock)
    cache.expect(f"packs/1-{number}" for number in range(100))
    assert len(cache.wanted_reads()) == 64 and cache.wanted_reads("packs/1-99")[0] == "packs/1-99"
    cache.add(Urls("1", get={f"packs/1-{number}": "G" for number in range(100)}))
    assert cache.wanted_reads() == []
    clock.now += 1801
    assert len(cache.wanted_reads()) == 64
