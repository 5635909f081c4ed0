"""What `down` has left is named; what is somebody else's is not."""

from dataclasses import replace
from pathlib import Path

import pytest

from e2e.cluster import __main__ as command
from e2e.cluster.remains import Before, Machine, filter_of_ours, left

OLD = ("-P INPUT ACCEPT", "-P FORWARD ACCEPT", "-A INPUT -i lo -j ACCEPT")
BEFORE = Before(links=frozenset({"lo", "eth0"}), rules={"filter": OLD, "nat": ()}, ip_forward="0", modules=False)
CLEAN = Machine(
    processes=(),
    cgroups=(),
    mounts=(),
    links=frozenset({"lo", "eth0"}),
    rules={"filter": OLD, "nat": ()},
    ip_forward="0",
    empty_modules=False,
)


def test_a_machine_as_it_was_has_nothing_left() -> None:
    assert left(BEFORE, CLEAN) == []


@pytest.mark.parametrize(
    ("changed", "words"),
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
        (replace(CLEAN, empty_modules=True), "directory /lib/modules, which is empty and was not there"),
    ],
)
def test_each_thing_that_is_left_is_named(changed: Machine, words: str) -> None:
    assert left(BEFORE, changed) == [words]


def test_what_others_have_added_meanwhile_is_not_ours() -> None:
    rules = {"filter": (*OLD, "-N MINE", "-A INPUT -p tcp -j MINE"), "nat": ("-P OUTPUT ACCEPT",)}
    links = CLEAN.links | {"tun0"}
    assert left(BEFORE, replace(CLEAN, rules=rules, links=links)) == []
    assert left(replace(BEFORE, ip_forward="1", modules=True), replace(CLEAN, ip_forward="1", empty_modules=True)) == []


def test_without_a_record_only_our_own_names_count() -> None:
    strange = replace(CLEAN, links=CLEAN.links | {"br-1234"}, ip_forward="1", processes=("71: kind",))
    assert left(None, strange) == ["process 71: kind"]


def test_rules_are_removed_before_the_chains_that_they_jump_to() -> None:
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
    found = filter_of_ours(OLD, now)
    assert found.chains == ("DOCKER", "DOCKER-USER")
    assert found.rules == ("-A FORWARD -j DOCKER-USER", "-A DOCKER -i br-1 -j ACCEPT")
    assert found.policies == ("-P FORWARD ACCEPT",)


def test_down_fails_and_names_what_is_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("SAVEPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SAVEPOINT_RUN", str(tmp_path / "run"))
    monkeypatch.setattr("e2e.cluster.engine.stop", lambda paths: ["link br-1234", "process 71: dockerd"])
    assert command.main(["down"]) == 1
    said = capsys.readouterr().err
    assert "still there" in said and "link br-1234" in said and "process 71: dockerd" in said
    monkeypatch.setattr("e2e.cluster.engine.stop", lambda paths: [])
    assert command.main(["down"]) == 0
