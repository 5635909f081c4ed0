"""What is missing is installed and nothing else, by stand-ins for dpkg-query and apt-get on the PATH."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from e2e.cluster import bootstrap
from e2e.cluster.bootstrap import BootstrapError, ensure, missing

# What is installed lies as a file in $MACHINE/installed; as dpkg-query does, it exits 1 when one name is unknown.
DPKG_QUERY = """#!/bin/sh
shift 2
unknown=0
for name in "$@"; do
  if [ "$name" = libseccomp-dev ] && [ -e "$MACHINE/installed/$name" ]; then echo "$name:amd64 installed"
  elif [ -e "$MACHINE/installed/$name" ]; then echo "$name installed"
  elif [ "$name" = removed ]; then echo "$name config-files"
  else unknown=1; fi
done
exit $unknown
"""
APT_GET = """#!/bin/sh
echo "$*" >> "$MACHINE/calls"
echo "some words of apt"
for word in "$@"; do case "$word" in
  update) touch "$MACHINE/updated"; exit 0 ;;
  stale) [ -e "$MACHINE/updated" ] || { echo "E: 404 Not Found"; exit 100; } ;;
  broken) echo "E: Unable to locate package broken"; exit 100 ;;
esac; done
for word in "$@"; do case "$word" in -*|*=*|install|absent) ;; *) touch "$MACHINE/installed/$word" ;; esac; done
"""


class Machine:
    """A Debian of files."""

    def __init__(self, room: Path) -> None:
        self.room = room
        (room / "installed").mkdir()
        (room / "bin").mkdir()
        (room / "lists").mkdir()
        self.has("dpkg-query", DPKG_QUERY)
        self.has("apt-get", APT_GET)

    def has(self, program: str, text: str) -> None:
        path = self.room / "bin" / program
        path.write_text(text)
        path.chmod(0o755)

    def install(self, name: str) -> None:
        (self.room / "installed" / name).touch()

    def fetch_lists(self) -> None:
        (self.room / "lists" / "deb_main_Packages").touch()

    @property
    def calls(self) -> list[str]:
        """The verb of each call of apt-get, and what follows it."""
        path = self.room / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition("DPkg::Lock::Timeout=600 ")[2] for line in lines]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    # touch is all that the stand-ins need of the real machine.
    (tmp_path / "bin" / "touch").symlink_to(str(shutil.which("touch")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MACHINE", str(tmp_path))
    monkeypatch.setattr(bootstrap, "LISTS", tmp_path / "lists")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return made


def test_missing_are_those_that_are_not_installed_once_and_in_order(machine: Machine) -> None:
    machine.install("make")
    machine.install("libseccomp-dev")  # dpkg names a library with its architecture
    assert missing(["unknown", "make", "libseccomp-dev", "removed", "unknown"]) == ["unknown", "removed"]
    assert missing([]) == []


def test_nothing_is_called_when_nothing_is_missing(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.install("make")
    ensure(["make"])
    assert machine.calls == []
    assert capfd.readouterr() == ("", "")


def test_what_will_be_installed_is_said_first(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.install("make")
    ensure(["make", "gcc", "iptables"])
    assert machine.calls == ["update", "install --yes --no-install-recommends gcc iptables"]
    out, err = capfd.readouterr()
    assert out == ""  # the targets' output is paths
    assert err.splitlines()[0] == "installing Debian packages: gcc iptables"
    assert missing(["make", "gcc", "iptables"]) == []


def test_fresh_lists_are_not_fetched_again(machine: Machine) -> None:
    machine.fetch_lists()
    ensure(["gcc"])
    assert machine.calls == ["install --yes --no-install-recommends gcc"]


def test_lists_of_this_morning_may_be_stale(machine: Machine) -> None:
    machine.fetch_lists()
    ensure(["stale"])
    assert [call.split()[0] for call in machine.calls] == ["install", "update", "install"]


def test_the_end_of_what_apt_said_is_in_the_error(machine: Machine) -> None:
    with pytest.raises(BootstrapError, match=r"apt-get install .*broken exited 100:\n.*\nE: Unable to locate package"):
        ensure(["broken"])
    assert len(machine.calls) == 2  # fetching the lists anew would change nothing


def test_success_without_the_package_is_none(machine: Machine) -> None:
    with pytest.raises(BootstrapError, match="not installed: absent"):
        ensure(["absent"])


def test_without_root_the_command_is_given(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BootstrapError, match="once as root: apt-get install --no-install-recommends gcc make"):
        ensure(["gcc", "make"])
    assert machine.calls == []


@pytest.mark.parametrize("program", ["dpkg-query", "apt-get"])
def test_another_distribution_is_told_what_is_wanted(machine: Machine, program: str) -> None:
    (machine.room / "bin" / program).unlink()
    with pytest.raises(BootstrapError, match="install by hand what Debian calls gcc make"):
        ensure(["gcc", "make"])
