"""Missing packages are installed and nothing else; fakes of dpkg-query and apt-get are on the PATH."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from e2e.cluster import bootstrap
from e2e.cluster.bootstrap import BootstrapError, ensure, missing

# An installed package is a file in $MACHINE/installed. Like dpkg-query, it exits with 1 if one name is unknown.
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
echo "some output of apt"
for word in "$@"; do case "$word" in
  update) touch "$MACHINE/updated"; exit 0 ;;
  stale) [ -e "$MACHINE/updated" ] || { echo "E: 404 Not Found"; exit 100; } ;;
  broken) echo "E: Unable to locate package broken"; exit 100 ;;
esac; done
for word in "$@"; do case "$word" in -*|*=*|install|absent) ;; *) touch "$MACHINE/installed/$word" ;; esac; done
"""


class Machine:
    """A fake Debian machine in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "installed").mkdir()
        (root / "bin").mkdir()
        (root / "lists").mkdir()
        self.add_program("dpkg-query", DPKG_QUERY)
        self.add_program("apt-get", APT_GET)

    def add_program(self, program: str, text: str) -> None:
        path = self.root / "bin" / program
        path.write_text(text)
        path.chmod(0o755)

    def install(self, name: str) -> None:
        (self.root / "installed" / name).touch()

    def fetch_lists(self) -> None:
        (self.root / "lists" / "deb_main_Packages").touch()

    @property
    def calls(self) -> list[str]:
        """The arguments of each call of apt-get, from the verb on."""
        path = self.root / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition("DPkg::Lock::Timeout=600 ")[2] for line in lines]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    fake = Machine(tmp_path)
    # touch is the only real program that the fakes need.
    (tmp_path / "bin" / "touch").symlink_to(str(shutil.which("touch")))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("MACHINE", str(tmp_path))
    monkeypatch.setattr(bootstrap, "LISTS", tmp_path / "lists")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return fake


def test_missing_packages_are_listed_once_and_in_order(machine: Machine) -> None:
    machine.install("make")
    machine.install("libseccomp-dev")  # dpkg lists a library with its architecture
    assert missing(["unknown", "make", "libseccomp-dev", "removed", "unknown"]) == ["unknown", "removed"]
    assert missing([]) == []


def test_apt_get_is_not_called_if_nothing_is_missing(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.install("make")
    ensure(["make"])
    assert machine.calls == []
    assert capfd.readouterr() == ("", "")


def test_packages_are_announced_before_they_are_installed(machine: Machine, capfd: pytest.CaptureFixture[str]) -> None:
    machine.install("make")
    ensure(["make", "gcc", "iptables"])
    assert machine.calls == ["update", "install --yes --no-install-recommends gcc iptables"]
    out, err = capfd.readouterr()
    assert out == ""  # standard output is for the paths of programs
    assert err.splitlines()[0] == "installing Debian packages: gcc iptables"
    assert missing(["make", "gcc", "iptables"]) == []


def test_fresh_package_lists_are_not_updated(machine: Machine) -> None:
    machine.fetch_lists()
    ensure(["gcc"])
    assert machine.calls == ["install --yes --no-install-recommends gcc"]


def test_package_lists_are_updated_if_an_install_fails(machine: Machine) -> None:
    machine.fetch_lists()
    ensure(["stale"])
    assert [call.split()[0] for call in machine.calls] == ["install", "update", "install"]


def test_the_error_contains_the_end_of_the_output_of_apt_get(machine: Machine) -> None:
    with pytest.raises(
        BootstrapError, match=r"apt-get install .*broken exited with 100:\n.*\nE: Unable to locate package"
    ):
        ensure(["broken"])
    assert len(machine.calls) == 2  # the lists have just been updated, so a retry would not help


def test_a_package_that_is_still_missing_is_an_error(machine: Machine) -> None:
    with pytest.raises(BootstrapError, match="not installed: absent"):
        ensure(["absent"])


def test_the_error_without_root_contains_the_command(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BootstrapError, match="once as root: apt-get install --no-install-recommends gcc make"):
        ensure(["gcc", "make"])
    assert machine.calls == []


@pytest.mark.parametrize("program", ["dpkg-query", "apt-get"])
def test_the_error_on_another_distribution_names_the_packages(machine: Machine, program: str) -> None:
    (machine.root / "bin" / program).unlink()
    with pytest.raises(BootstrapError, match="install the equivalents of these Debian packages: gcc make"):
        ensure(["gcc", "make"])
