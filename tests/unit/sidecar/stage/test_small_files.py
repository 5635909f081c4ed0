"""Tests that an agent which replaces the sidecar's files in the stage can harm only itself."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from savepoint.contract import agent_protocol as wire
from savepoint_sidecar.stage.components import INDEX_MAX_BYTES, index_sequence, read_index, write_index
from savepoint_sidecar.stage.small_files import create_small_file, read_small_file


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)


def _link(path: Path, secret: Path) -> None:
    path.symlink_to(secret)


def _endless(path: Path, _: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


def _folder(path: Path, _: Path) -> None:
    path.mkdir()


REPLACEMENTS = [_pipe, _link, _endless, _folder]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("replace", REPLACEMENTS)
def test_a_replaced_index_is_ignored(replace: Callable[[Path, Path], None], tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text('{"sequence": 3, "components": []}')
    stage = tmp_path / "stage"
    write_index(stage, 3, ())
    assert read_index(stage, 3) == ()
    index = stage / "restored" / "index.json"
    index.unlink()
    replace(index, secret)
    assert read_index(stage, 3) is None
    assert index_sequence(stage) is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("replace", REPLACEMENTS[:3])
def test_creating_a_file_writes_to_no_other_file(replace: Callable[[Path, Path], None], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("untouched")
    path = tmp_path / "own"
    replace(path, other)
    with create_small_file(path) as file:
        file.write(b"ours")
    assert other.read_text() == "untouched"
    assert read_small_file(path, 100) == "ours"
    assert not path.is_symlink()


def test_the_index_has_room_for_a_whole_answer(tmp_path: Path) -> None:
    entries = tuple(wire.Entry(str(number), "json", 1000, inline="x" * 1000) for number in range(500))
    component = wire.Component("documents", "Memory", entries)
    write_index(tmp_path, 7, (component,))
    assert read_index(tmp_path, 7) == (component,)
    assert INDEX_MAX_BYTES > 8 * (512 << 10)
