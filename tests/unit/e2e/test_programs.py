"""Paths of programs, when they are built, and the state after a failed build; the compiler is a fake."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from e2e.cluster import programs
from e2e.cluster.go.catalogue import GROUPS, Group, ProgramError
from e2e.cluster.programs import NAMES, build, cache_root, group_key, main, path_of, program


class Silent:
    """Progress that is recorded and not shown."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def update(self, line: str) -> None:
        self.lines.append(line)

    def done(self, line: str) -> None:
        self.lines.append(line)


class Compiler:
    """A fake compiler: writes the binary, or fails."""

    def __init__(self) -> None:
        self.built: list[str] = []
        self.expected: list[str] = []
        self.broken = ""

    def __call__(self, group: Group, name: str, target: Path, log: Path, progress: Any, expected: str) -> None:
        assert name in group.packages
        if name == self.broken:
            raise ProgramError(f"{name} does not build; see {log}")
        self.built.append(name)
        self.expected.append(expected)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(b"binary")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SAVEPOINT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    fake = Compiler()
    monkeypatch.setattr(programs, "compile_program", fake)
    return fake


def test_the_environment_selects_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_root() == tmp_path / "cache"
    monkeypatch.delenv("SAVEPOINT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_root() == tmp_path / "xdg" / "savepoint"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_root() == tmp_path / "home" / ".cache" / "savepoint"


def test_every_program_has_its_own_path(cache: Path) -> None:
    paths = {name: path_of(name) for name in NAMES}
    assert len(set(paths.values())) == len(NAMES)
    assert all(path.is_relative_to(cache / "programs") and path.name == name for name, path in paths.items())


def test_an_unknown_name_is_rejected_before_anything_is_built(compiler: Compiler) -> None:
    with pytest.raises(ProgramError, match=r"unknown program 'kubelt'; known are .*kubelet"):
        build(["etcd", "kubelt"], Silent())
    assert compiler.built == []


def test_a_program_is_built_once(compiler: Compiler) -> None:
    assert build(["etcd", "helm"], Silent()) == {"etcd": path_of("etcd"), "helm": path_of("helm")}
    assert program("etcd", Silent()).read_bytes() == b"binary"
    assert compiler.built == ["etcd", "helm"]


def test_the_duration_of_the_last_build_is_shown(compiler: Compiler) -> None:
    program("etcd", Silent())
    path_of("etcd").unlink()
    program("etcd", Silent())
    assert compiler.expected == [" (first time)", " (last time 0 s)"]


def test_a_failed_build_is_retried(compiler: Compiler, capsys: pytest.CaptureFixture[str]) -> None:
    compiler.broken = "helm"
    assert main(["etcd", "helm"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "error: helm does not build" in err
    assert not path_of("helm").exists()
    compiler.broken = ""
    assert main(["etcd", "helm"]) == 0
    assert capsys.readouterr().out.splitlines() == [str(path_of("etcd")), str(path_of("helm"))]
    assert compiler.built == ["etcd", "helm"]


def test_missing_programs_are_listed_before_the_first_build(
    cache: Path, compiler: Compiler, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program("etcd", Silent())
    printed_before: list[str] = []

    def compiling(group: Group, name: str, *rest: Any) -> None:
        printed_before.append(capsys.readouterr().err)
        compiler(group, name, *rest)

    monkeypatch.setattr(programs, "compile_program", compiling)
    assert main(["etcd", "helm", "minio", "helm"]) == 0
    assert printed_before[0] == f"programs to build or download into {cache}: helm minio\n"
    assert compiler.built == ["etcd", "helm", "minio"]
    assert all("to build or download" not in text for text in (*printed_before[1:], capsys.readouterr().err))
    assert main(["etcd", "helm", "minio"]) == 0
    assert capsys.readouterr().err == ""


def test_an_unknown_name_is_an_error_and_nothing_is_listed(
    compiler: Compiler, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["etcd", "kubelt"]) == 1
    assert capsys.readouterr().err.startswith("error: unknown program 'kubelt'")
    assert compiler.built == []


@pytest.mark.parametrize("file", programs.SOURCE_FILES)
def test_a_changed_source_changes_the_key(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "SOURCES", tmp_path)
    group = GROUPS[0]
    (tmp_path / group.name).mkdir()
    before = group_key(group)
    (tmp_path / group.name / file).write_text("another pin\n")
    assert group_key(group) != before
    assert group_key(group) == group_key(group)
