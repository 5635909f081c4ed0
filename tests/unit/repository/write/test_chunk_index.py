import hashlib
from concurrent.futures import ThreadPoolExecutor

import pytest
from savepoint.repository.format.chunk import ChunkRef
from savepoint.repository.format.manifest import Pack
from savepoint.repository.write.chunk_index import ChunkIndex, PackUse
from savepoint.repository.write.repack import allowed_packs, packs_to_repack

MIB = 1 << 20


def ref(number: int, pack: str = "p1", offset: int | None = None) -> ChunkRef:
    identity = hashlib.sha256(b"%d" % number).digest()
    return ChunkRef(identity, pack, 8 + number * 100 if offset is None else offset, 100, 83)


def committed(refs: list[ChunkRef], index: ChunkIndex | None = None) -> ChunkIndex:
    index = index or ChunkIndex()
    index.begin()
    for each in refs:
        index.add(each)
        index.mark(each)
        index.add_pack(Pack(each.pack, 1000))
    index.commit()
    return index


def test_chunks_are_found() -> None:
    index = committed([ref(n) for n in range(5000)])
    assert len(index) == 5000
    assert all(index.find(ref(n).id) == ref(n) for n in range(5000))
    assert index.find(ref(5000).id) is None


def test_the_index_needs_less_than_70_bytes_per_chunk() -> None:
    index = committed([ref(n) for n in range(20_000)])
    held = len(index._records) + index._slots.itemsize * len(index._slots) + len(index._marked)
    assert held / 20_000 < 70


def test_packs_that_the_parent_does_not_name_are_forgotten() -> None:
    index = committed([ref(1, "p1"), ref(2, "p2"), ref(3, "p2")])
    index.begin()
    index.mark(ref(2, "p2"))
    index.commit()
    assert index.find(ref(1).id) is None
    assert index.find(ref(2).id) == ref(2, "p2")
    assert index.find(ref(3).id) == ref(3, "p2"), "its pack is kept, so it may be referred to again"
    assert index.pack_uses() == [PackUse("p2", 1000, 100)]
    assert index.all_usable(["p2"])
    assert not index.all_usable(["p1"])
    assert not index.all_usable(["p2", "never"])


def test_an_abandoned_attempt_leaves_nothing() -> None:
    index = committed([ref(1)])
    index.begin()
    index.add(ref(2, "p2"))
    index.mark(ref(2, "p2"))
    index.add_pack(Pack("p2", 500))
    assert index.find(ref(2).id) == ref(2, "p2")
    index.abandon()
    assert index.find(ref(2).id) is None
    assert index.find(ref(1).id) == ref(1)
    assert index.pack_uses() == [PackUse("p1", 1000, 100)]
    index.begin()
    again = ref(2, "p3")
    assert index.add(again) == again
    assert index.find(again.id) == again


def test_packs_of_an_abandoned_attempt_may_be_kept() -> None:
    index = committed([ref(1)])
    index.begin()
    index.add(ref(2, "put"))
    index.add_pack(Pack("put", 500))
    index.add(ref(3, "lost"))
    index.abandon(keep_stored=True)
    assert index.find(ref(2).id) == ref(2, "put")
    assert index.find(ref(3).id) is None
    assert index.pack_uses() == [PackUse("p1", 1000, 100)], "only the parent's packs can be repacked"
    index.begin()
    index.abandon(keep_stored=True)
    index.begin()
    index.mark(ref(2, "put"))
    assert index.needed() == [Pack("put", 500)]
    index.commit()
    assert index.pack_uses() == [PackUse("put", 500, 100)]


def test_kept_packs_are_dropped_by_the_next_attempt_that_keeps_none() -> None:
    index = committed([ref(1)])
    index.begin()
    index.add(ref(2, "put"))
    index.add_pack(Pack("put", 500))
    index.abandon(keep_stored=True)
    index.begin()
    index.abandon()
    assert index.find(ref(2).id) is None


def test_the_first_location_added_for_a_chunk_is_kept() -> None:
    index = ChunkIndex()
    index.begin()
    assert index.add(ref(1, "p1")) == ref(1, "p1")
    assert index.add(ref(1, "p2")) == ref(1, "p1")


def test_needed_packs_and_live_bytes() -> None:
    index = committed([ref(1, "p1"), ref(2, "p2")])
    index.begin()
    index.mark(ref(2, "p2"))
    index.mark(ref(2, "p2"))
    index.add(ref(3, "p3"))
    index.mark(ref(3, "p3"))
    index.add_pack(Pack("p3", 300))
    assert index.needed() == [Pack("p2", 1000), Pack("p3", 300)]
    assert index.live_bytes() == 200


def test_listed_chunks_count_once() -> None:
    index = committed([ref(1, "p1"), ref(2, "p1")])
    index.begin()
    index.mark_listed({"p1"}, [ref(1).id, ref(2).id, ref(1).id, ref(9).id])
    index.mark(ref(1))
    assert index.needed() == [Pack("p1", 1000)]
    assert index.live_bytes() == 200


class TestRepacking:
    def test_packs_to_repack_stay_usable_until_something_new_is_stored(self) -> None:
        index = committed([ref(1, "p1"), ref(2, "p2")])
        index.begin(["p1"])
        assert index.find(ref(1).id) == ref(1, "p1")
        assert index.all_usable(["p1"])
        index.add(ref(3, "p3"))
        assert index.find(ref(1).id) is None
        assert not index.all_usable(["p1"])
        moved = ref(1, "p3", 500)
        assert index.add(moved) == moved
        assert index.find(ref(1).id) == moved
        index.mark(moved)
        index.mark(ref(2, "p2"))
        index.commit()
        assert [use.name for use in index.pack_uses()] == ["p2", "p3"]
        assert index.find(ref(1).id) == moved

    def test_a_reference_from_before_repacking_stays_valid(self) -> None:
        index = committed([ref(1, "p1")])
        index.begin(["p1"])
        early = index.find(ref(1).id)
        assert early is not None
        index.start_repacking()
        moved = index.add(ref(1, "p2"))
        index.mark(early)
        index.mark(moved)
        assert [pack.name for pack in index.needed()] == ["p1", "p2"]
        index.commit()
        assert index.find(ref(1).id) == moved

    def test_an_abandoned_attempt_makes_packs_to_repack_usable_again(self) -> None:
        index = committed([ref(1, "p1")])
        index.begin(["p1"])
        index.start_repacking()
        index.add(ref(1, "p2"))
        index.abandon()
        assert index.find(ref(1).id) == ref(1, "p1")
        assert index.pack_uses() == [PackUse("p1", 1000, 100)]


def test_old_packs_do_not_pile_up() -> None:
    index = committed([ref(0, "keep")])
    for number in range(1, 2000):
        index.begin()
        index.mark(ref(0, "keep"))
        new = ref(number, f"p{number}")
        index.add(new)
        index.mark(new)
        index.add_pack(Pack(new.pack, 200))
        index.commit()
    assert len(index._names) < 600
    assert len(index) < 600
    assert index.find(ref(0).id) == ref(0, "keep")
    assert index.find(ref(1999).id) == ref(1999, "p1999")


def test_many_threads_add_and_find() -> None:
    index = ChunkIndex()
    index.begin()

    def work(thread: int) -> None:
        for number in range(2000):
            mine = ref(number, f"p{thread}")
            found = index.find(mine.id) or index.add(mine)
            assert index.find(mine.id) == found

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(index) == 2000


class TestPacksToRepack:
    def test_full_packs_are_kept(self) -> None:
        assert packs_to_repack([PackUse(f"p{n}", 32 * MIB, 30 * MIB) for n in range(100)]) == []

    def test_wasteful_packs_are_repacked_worst_first_within_the_budget(self) -> None:
        uses = [PackUse(f"p{n}", 32 * MIB, (9 - n) * MIB) for n in range(9)]
        chosen = packs_to_repack(uses)
        assert chosen == ["p8", "p7", "p6", "p5", "p4", "p3", "p2"]
        assert sum(use.live for use in uses if use.name in chosen) <= 32 * MIB

    @pytest.mark.parametrize(("size", "live"), [(32 * MIB, 10 * MIB), (MIB, 1), (100, 1)])
    def test_packs_that_are_not_wasteful_are_kept(self, size: int, live: int) -> None:
        assert packs_to_repack([PackUse("p", size, live)]) == []

    def test_many_small_packs_are_merged(self) -> None:
        uses = [PackUse(f"p{n:03}", 100_000, 100_000 - n) for n in range(120)]
        chosen = packs_to_repack(uses)
        assert len(uses) - len(chosen) == 64
        assert "p119" in chosen, "the least used go first"
        assert "p000" not in chosen
        assert packs_to_repack(uses[:112]) == []

    def test_the_budget_bounds_the_repacking(self) -> None:
        uses = [PackUse(f"p{n:03}", 4 * MIB, 4 * MIB) for n in range(128)]
        assert len(packs_to_repack(uses)) == 8

    def test_a_large_state_may_have_more_packs(self) -> None:
        assert allowed_packs(0) == 128
        assert allowed_packs(16 << 30) == 1024
        assert packs_to_repack([PackUse(f"p{n}", 32 * MIB, 31 * MIB) for n in range(512)]) == []
