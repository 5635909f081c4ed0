"""Everything that `down` leaves is named; what belongs to others is not."""

from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster import __main__ as command
from e2e.cluster.machine_state import StateBefore, StateNow, engine_rules, remaining

OLD = ("-P INPUT ACCEPT", "-P FORWARD ACCEPT", "-A INPUT -i lo -j ACCEPT")
BEFORE = StateBefore(links=frozenset({"lo", "eth0"}), rules={"filter": OLD, "nat": ()}, ip_forward="0", modules=False)
CLEAN = StateNow(
    processes=(),
    cgroups=(),
    mounts=(),
    links=frozenset({"lo", "eth0"}),
    rules={"filter": OLD, "nat": ()},
    ip_forward="0",
    empty_modules=False,
)


def test_nothing_remains_on_an_unchanged_machine() -> None:
    assert remaining(BEFORE, CLEAN) == []


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        (replace(CLEAN, processes=("71: dockerd",)), "process 71: dockerd"),
        (replace(CLEAN, cgroups=("/sys/fs/cgroup/x",)), "cgroup /sys/fs/cgroup/x"),
        (replace(CLEAN, mounts=("/run/savepoint/exec",)), "mount /run/savepoint/exec"),
        (replace(CLEAN, links=CLEAN.links | {"br-1234"}), "link br-1234"),
        (replace(CLEAN, links=CLEAN.links | {"veth12"}), "link veth12"),
        (replace(CLEAN, rules={"filter": (*OLD, "-N DOCKER")}), "iptables chain DOCKER in table filter"),
        (
            replace(CLEAN, rules={"filter": OLD, "nat": ("-A POSTROUTING -s 172.18.0.0/16 -j MASQUERADE",)}),
            "iptables rule in table nat: -A POSTROUTING -s 172.18.0.0/16 -j MASQUERADE",
        ),
        (
            replace(CLEAN, rules={"filter": (OLD[0], "-P FORWARD DROP", OLD[2])}),
            "iptables policy in table filter: it was -P FORWARD ACCEPT",
        ),
        (replace(CLEAN, ip_forward="1"), "net.ipv4.ip_forward 1: it was 0"),
        (replace(CLEAN, empty_modules=True), "directory /lib/modules: it is empty and did not exist before"),
    ],
)
def test_everything_that_remains_is_named(changed: StateNow, line: str) -> None:
    assert remaining(BEFORE, changed) == [line]


def test_changes_by_others_are_left_out() -> None:
    rules = {"filter": (*OLD, "-N MINE", "-A INPUT -p tcp -j MINE"), "nat": ("-P OUTPUT ACCEPT",)}
    links = CLEAN.links | {"tun0"}
    assert remaining(BEFORE, replace(CLEAN, rules=rules, links=links)) == []
    unchanged = replace(BEFORE, ip_forward="1", modules=True)
    assert remaining(unchanged, replace(CLEAN, ip_forward="1", empty_modules=True)) == []


def test_without_a_recorded_state_only_our_own_names_are_reported() -> None:
    now = replace(CLEAN, links=CLEAN.links | {"br-1234"}, ip_forward="1", processes=("71: kind",))
    assert remaining(None, now) == ["process 71: kind"]


def test_engine_rules_are_distinguished_from_those_of_others() -> None:
    now = (
        *OLD[:1],
        "-P FORWARD DROP",
        *OLD[2:],
        "-N DOCKER",
        "-N DOCKER-USER",
        "-A FORWARD -j DOCKER-USER",
        "-A DOCKER -i br-1 -j ACCEPT",
        "-A INPUT -s 10.0.0.0/8 -j DROP",
    )
    found = engine_rules(OLD, now)
    assert found.chains == ("DOCKER", "DOCKER-USER")
    assert found.rules == ("-A FORWARD -j DOCKER-USER", "-A DOCKER -i br-1 -j ACCEPT")
    assert found.policies == ("-P FORWARD ACCEPT",)


def test_down_fails_and_names_what_remains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SAVEPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAVEPOINT_RUN", str(tmp_path / "run"))
    monkeypatch.setattr("e2e.cluster.engine.stop", lambda paths: ["link br-1234", "process 71: dockerd"])
    assert command.main(["down"]) == 1
    errors = capsys.readouterr().err
    assert "not everything could be removed" in errors
    assert "link br-1234" in errors and "process 71: dockerd" in errors
    monkeypatch.setattr("e2e.cluster.engine.stop", lambda paths: [])
    assert command.main(["down"]) == 0
