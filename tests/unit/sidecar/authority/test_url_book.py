"""Presigned URLs in the book: how long they are used, and when they are renewed."""

from savepoint.contract.control_protocol import Urls
from savepoint_sidecar.authority.url_book import RESERVE_SIZE, UrlBook

from tests.unit.sidecar.environment import ManualClock


def test_a_url_is_used_until_shortly_before_it_expires() -> None:
    clock = ManualClock()
    book = UrlBook(clock)
    book.add(Urls("1", put={"packs/1-a": "P"}, get={"packs/1-b": "G"}, expires_seconds=600))
    assert (book.put_url("packs/1-a"), book.get_url("packs/1-b")) == ("P", "G")
    assert book.get_url("packs/1-a") is None
    clock.now += 541
    assert book.put_url("packs/1-a") is None and book.get_url("packs/1-b") is None


def test_the_reserve_is_renewed_when_it_is_half_expired() -> None:
    clock = ManualClock()
    book = UrlBook(clock)
    assert book.reserve_missing() == RESERVE_SIZE
    for number in range(RESERVE_SIZE):
        book.add(Urls("1", put={f"packs/1-{number}": "P"}, expires_seconds=3600))
        book.reserve(f"1-{number}")
    assert book.reserve_missing() == 0
    name = book.take_reserved()
    assert name is not None and book.put_url(f"packs/{name}") == "P" and book.reserve_missing() == 1
    clock.now += 1801
    assert book.reserve_missing() == RESERVE_SIZE and book.take_reserved() is None


def test_urls_of_expected_reads_are_renewed() -> None:
    clock = ManualClock()
    book = UrlBook(clock)
    book.expect(f"packs/1-{number}" for number in range(100))
    assert len(book.wanted_reads()) == 64 and book.wanted_reads("packs/1-99")[0] == "packs/1-99"
    book.add(Urls("1", get={f"packs/1-{number}": "G" for number in range(100)}))
    assert book.wanted_reads() == []
    clock.now += 1801
    assert len(book.wanted_reads()) == 64
