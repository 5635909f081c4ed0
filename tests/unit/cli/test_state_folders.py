"""Tests of state folders: their names, the paths that are refused, and what of a checkpoint belongs to them."""

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from savepoint.errors import StateLeftBehind, StatePathInvalid
from savepoint.repository.format.manifest import Manifest
from savepoint.repository.format.tree import TreeFile
from savepoint_cli.state_folders import (
    NAME_MAX,
    check_states,
    make_folder,
    match_components,
    nested,
    root_name,
    shown_path,
    state_roots,
)

from tests.fakes.store import MemoryStore
from tests.unit.sidecar.checkpoints import finish, writer_of


def manifest_of(*names: str) -> Manifest:
    """Return a manifest with a file tree for each root of these names."""
    writer = writer_of(MemoryStore())
    for name in names:
        writer.add_tree(f"files.{name}", "Files", [TreeFile("f", 0o640, 0, writer.store_bytes(name.encode(), "Files"))])
    writer.add_stored_entries("documents", "Memory", ())
    return finish(writer)


def match(
    names: Sequence[str], *states: Path, moved: dict[str, Path] | None = None, dropped: Sequence[str] = ()
) -> dict[str, str]:
    found = match_components(
        manifest_of(*names), state_roots(states), moved=moved or {}, checkpoint="a-1", dropped=dropped
    )
    return {shown_path(old): shown_path(new) for old, new in found.items()}


def names_of(*paths: Path) -> list[str]:
    return [root_name(str(path)) for path in paths]


@pytest.mark.parametrize(
    "path", ["/a", "/a b/%2F~", "/a/" + "x" * 300, "/a/" + "x" * 301, "/a-b", "/a_b", "/A-b", "/\udcff"]
)
def test_a_name_is_a_short_file_name_of_its_own(path: str) -> None:
    name = root_name(path)
    assert "/" not in name and len(name) <= NAME_MAX and name.isascii()
    assert sum(root_name(each) == name for each in ("/a", "/a b/%2F~", "/a/" + "x" * 300, "/a/" + "x" * 301)) <= 1
    if len(path) < 100 and path.isascii():
        assert shown_path(f"files.{name}") == path


def test_folders_match_whatever_their_order_and_base_name(tmp_path: Path) -> None:
    alice, bob = tmp_path / "alice" / "data", tmp_path / "bob" / "data"
    assert match(names_of(alice, bob), bob, alice) == {}


def test_a_folder_that_is_reached_through_a_link_is_the_same(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert match(names_of(tmp_path / "real"), tmp_path / "link") == {str(tmp_path / "real"): str(tmp_path / "link")}
    assert match(names_of(tmp_path / "link"), tmp_path / "real") == {str(tmp_path / "link"): str(tmp_path / "real")}


def test_the_only_folder_of_an_earlier_version_matches_by_its_base_name(tmp_path: Path) -> None:
    assert match(["my-data"], tmp_path / "My Data", tmp_path / "new") == {"my-data": str(tmp_path / "My Data")}


@pytest.mark.parametrize("states", [("a/data", "b/data"), ("a/data",), ("b/data", "a/data")])
def test_folders_of_an_earlier_version_that_shared_a_base_name_are_not_guessed(
    tmp_path: Path, states: tuple[str, ...]
) -> None:
    paths = [tmp_path / each for each in states]
    with pytest.raises(StateLeftBehind, match="holds the state folder data,"):
        match(["data", "data-2"], *paths)
    moved = {"data": tmp_path / "a" / "data", "data-2": tmp_path / "b" / "data"}
    if len(paths) == 2:
        assert match(["data", "data-2"], *paths, moved=moved) == {old: str(new) for old, new in moved.items()}


def test_one_old_folder_and_two_of_its_base_name_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(StateLeftBehind):
        match(["data"], tmp_path / "a" / "data", tmp_path / "b" / "data")


@pytest.mark.parametrize("others", [(), ("data",), ("data", "more")])
def test_a_folder_that_the_run_does_not_name_is_refused_with_both_paths(tmp_path: Path, others: Sequence[str]) -> None:
    old = tmp_path / "workspace"
    with pytest.raises(StateLeftBehind) as caught:
        match(names_of(old), *(tmp_path / each for each in others))
    text = str(caught.value)
    assert f"holds the state folder {old}," in text and f"--drop-state {old}" in text
    assert all(str(tmp_path / each) in text for each in others)


def test_a_folder_is_moved_or_dropped_by_an_explicit_word(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    assert match(names_of(old), new, moved={str(old): new}) == {str(old): str(new)}
    assert match(names_of(old), new, dropped=[str(old)]) == {}
    assert match(names_of(old), dropped=[str(old)]) == {}
    assert match(["old"], dropped=["old"]) == {}


def test_one_of_two_folders_is_still_missed_if_the_other_is_dropped(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    with pytest.raises(StateLeftBehind, match="two"):
        match(names_of(one, two), dropped=[str(one)])


def test_a_moved_or_dropped_folder_must_not_contradict_the_others(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    with pytest.raises(StatePathInvalid, match=f"add --state {new}"):
        match(names_of(old), old, moved={str(old): new})
    with pytest.raises(StatePathInvalid, match="leave one of them out"):
        match(names_of(old), old, dropped=[str(old)])


def test_a_folder_in_another_one_is_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "proj" / "data").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "proj")
    states = [tmp_path / "proj" / "data", tmp_path / "proj", tmp_path / "link", tmp_path / "proj" / "data" / ".."]
    assert [root.mount_path for root in state_roots(states)] == [str(tmp_path / "proj")]
    assert nested(states) == [
        (str(tmp_path / "proj" / "data"), str(tmp_path / "proj")),
        (str(tmp_path / "link"), str(tmp_path / "proj")),
    ]
    assert nested([tmp_path / "proj", tmp_path / "project"]) == []


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ("file", "is not a folder"),
        ("file/below", "cannot be created: .*/file is not a folder"),
        ("pipe", "is not a folder"),
        ("store", "the folder of the store"),
        ("store/local/a", "the folder of the store"),
        ("/", "the whole file system"),
    ],
)
def test_a_path_that_cannot_be_state_is_refused(tmp_path: Path, state: str, text: str) -> None:
    (tmp_path / "file").write_text("x")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "store").mkdir()
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StatePathInvalid, match=text):
        check_states(state_roots([tmp_path / state]), [tmp_path / "store"])
    assert sorted(tmp_path.iterdir()) == before


def test_a_missing_folder_and_one_around_the_store_are_accepted(tmp_path: Path) -> None:
    check_states(state_roots([tmp_path, tmp_path / "new" / "er"]), [tmp_path / "store"])


def test_a_folder_that_cannot_be_created_is_refused() -> None:
    with pytest.raises(StatePathInvalid, match="/proc/no/such/folder cannot be created"):
        make_folder(Path("/proc/no/such/folder"))
