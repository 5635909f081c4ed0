"""Checks computed from what the fake services recorded: reports, model calls, ledger. Pure functions over their JSON.

The reference is the deterministic part of the same program, run without interruption: at equal turns both must agree
in every byte.
"""

import hashlib
import itertools
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

AGENTS = Path(__file__).parents[1] / "agents"
sys.path[:0] = [str(AGENTS / "services"), str(AGENTS / "researcher")]

Report = dict[str, Any]
Effects = dict[str, dict[str, Any]]
"""The ledger: for each id its body, and how often it arrived."""
WORKSPACE = ("head", "rows", "tree", "logLines", "logDigest")
"""Fields of the coder's reports that identify its workspace: git head and tree, table rows, log length and digest."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    expected: str
    holds: bool
    figure: bool = False
    """A time or size, shown with its goal. It never fails, because it depends on what else the machine does."""

    @property
    def failed(self) -> bool:
        """True if the check does not hold and is not a figure."""
        return not self.holds and not self.figure

    @property
    def mark(self) -> str:
        """The first column of the table."""
        return "ok" if self.holds else "over" if self.figure else "FAIL"


@dataclass(frozen=True)
class Reference:
    """The state of an uninterrupted researcher, by turn."""

    digests: tuple[str, ...]
    """Digests of its whole state."""
    conversations: tuple[str, ...] = ()
    """Digests of its conversation, which only grows."""
    steps: tuple[tuple[str, str], ...] = ()
    """(document, question) of each turn, the first at 0."""
    replies: tuple[str, ...] = ()
    """The model's answer in each turn, the first at 0; all differ, and each is booked as a side effect."""

    @classmethod
    def run(cls, turns: int, *, mebibytes: int, stride: int, documents: int) -> "Reference":
        """Compute turns 0 to ``turns``; about 10 ms per turn at 256 MiB."""
        from scripted import answer
        from state import QUESTIONS, Network

        network = Network.fresh(mebibytes)
        memory: dict[str, Any] = {"turn": 0, "conversation": [], "index": {}}
        steps = [(f"doc-{d:04d}", question) for d in range(documents) for question in QUESTIONS]
        digests, conversations = [_digest(memory, network.digest())], [_conversation(memory)]
        replies: list[str] = []
        for turn in range(turns):
            document, question = steps[turn]
            prompt = {"role": "user", "content": f"{document}: {question}? (turn {turn})"}
            reply = answer("scripted-1", [*memory["conversation"][-6:], prompt])
            replies.append(reply)
            memory["conversation"] += [prompt, {"role": "assistant", "content": reply}]
            memory["index"].setdefault(reply.split()[0], []).append(f"{document}/{question}")
            network.train(turn, stride)
            memory["turn"] = turn + 1
            digests.append(_digest(memory, network.digest()))
            conversations.append(_conversation(memory))
        return cls(tuple(digests), tuple(conversations), tuple(steps), tuple(replies))


def _conversation(memory: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(memory["conversation"]).encode()).hexdigest()


def _digest(memory: dict[str, Any], network: str) -> str:
    return hashlib.sha256(json.dumps(memory, sort_keys=True).encode() + network.encode()).hexdigest()


def starts(reports: list[Report]) -> list[Report]:
    """Return the reports of starts, in order."""
    return [report for report in reports if report.get("event") == "start"]


def last_turn(reports: list[Report]) -> int:
    """Return the highest turn reported."""
    return max((int(report["turn"]) for report in reports), default=0)


def state_agrees(reports: list[Report], reference: Reference) -> Check:
    """Check that every report has the digest of an uninterrupted run at that turn."""
    wrong = [report for report in reports if report["digest"] != reference.digests[int(report["turn"])]]
    return Check(
        "state digests equal an uninterrupted run's", f"{len(reports) - len(wrong)} of {len(reports)}", "all", not wrong
    )


def position_agrees(reports: list[Report], reference: Reference) -> Check:
    """Check that every turn works on the document and question that come next."""
    turns = [report for report in reports if report["event"] == "turn"]
    right = sum((r["document"], r["question"]) == reference.steps[int(r["turn"]) - 1] for r in turns)
    return Check("loop position follows the list", f"{right} of {len(turns)}", "all", right == len(turns) > 0)


def conversation_grows(reports: list[Report], reference: Reference) -> Check:
    """Check that every conversation is that of an uninterrupted run: each extends all earlier ones."""
    turns = [report for report in reports if report["event"] == "turn"]
    right = sum(report["conversation"] == reference.conversations[int(report["turn"])] for report in turns)
    return Check("conversation is a prefix extension", f"{right} of {len(turns)}", "all", right == len(turns) > 0)


def bytes_changed(reports: list[Report], since: float, until: float, *, mebibytes: int, stride: int) -> int:
    """Return how many bytes of weights and momentum the turns between two times changed."""
    from state import RANGES

    turns = [int(r["turn"]) - 1 for r in reports if r["event"] == "turn" and since < r["time"] <= until]
    return len({(turn // stride) % RANGES for turn in turns}) * (mebibytes << 20) // RANGES


def turns_lost(reports: list[Report]) -> list[int]:
    """Return, for each start after the first, how many reported turns the restored state lacked."""
    lost, highest = [], 0
    for report in reports:
        if report.get("event") == "start" and highest:
            lost.append(highest - int(report["turn"]))
        highest = max(highest, int(report["turn"]))
    return lost


def calls_repeated(calls: dict[str, list[int]]) -> int:
    """Return how many model calls were repeated although their answer had been delivered."""
    return sum(max(0, completed - 1) for _, completed in calls.values())


def effects_counted(before: list[Report], effects: Effects, after: list[Report], reference: Reference) -> Check:
    """Check that each turn's side effect is in the ledger under one id, counted once unless listed as uncertain.

    ``before`` and ``after`` are the reports before and after the ledger was read. The effect of a turn in between, and
    of the one in flight at the end, may or may not be booked. An effect that belongs to no turn must not be booked.
    """
    uncertain, turns = _uncertain(after), {int(report["turn"]) for report in before if report["event"] == "turn"}
    ids: dict[str, list[str]] = {}
    for identifier, entry in effects.items():
        ids.setdefault(str(entry["body"]), []).append(identifier)
    sound = {
        reply
        for reply, (first, *others) in ids.items()
        if not others and (effects[first]["count"] == 1 or first in uncertain)
    }
    right = sum(reference.replies[turn - 1] in sound for turn in turns)
    unexpected = len(set(ids) - (sound & set(reference.replies[: last_turn(after) + 1])))
    found = f"{right} of {len(turns)} turns" + (f", {unexpected} wrong in the ledger" if unexpected else "")
    name = "side effects counted once, or listed as uncertain"
    return Check(name, found, "all", right == len(turns) > 0 and not unexpected)


def effects_uncertain(reports: list[Report]) -> Check:
    """Check that effects sent but not confirmed when the process was killed are listed as uncertain."""
    pods = [report["pod"] for report in starts(reports)]
    # Only starts in the same pod count: a pod that ends gracefully has no effect in flight.
    kills = sum(pod == before for before, pod in itertools.pairwise(pods))
    uncertain = _uncertain(reports)
    arrived = sum(uncertain.values())
    name, expected = "side effects listed as uncertain, and how many arrived", f"≤ {kills}, one in flight per kill"
    return Check(name, f"{len(uncertain)}, {arrived}", expected, len(uncertain) <= kills)


def _uncertain(reports: list[Report]) -> dict[str, bool]:
    """Return the ids that restarted agents found uncertain, and whether the ledger had them."""
    return {str(report["effect"]): bool(report["arrived"]) for report in reports if report["event"] == "uncertain"}


def coder_continues(reports: list[Report]) -> list[Check]:
    """Check that the coder's workspace is intact, is the previous one after each start, and that its log grows.

    In another pod it must be the workspace reported at that turn; in the same pod, killed in place, it must be as the
    crash left it.
    """
    known: dict[int, Report] = {}
    latest: Report = {}
    same, total, sound, grows, lines = 0, 0, True, True, 0
    for report in reports:
        sound = sound and (report["integrity"], report["fsck"], report["hook"]) == ("ok", "ok", "yes")
        sound = sound and report["links"] == "src/1,/nowhere/at/all"
        if report["event"] == "start" and latest:
            total += 1
            before = known.get(int(report["turn"]), {})
            in_place = report["pod"] == latest["pod"]
            same += _kept(latest, report) if in_place else all(before.get(name) == report[name] for name in WORKSPACE)
        grows = grows and (report["event"] != "turn" or int(report["logLines"]) > lines)
        lines = int(report["logLines"])
        known[int(report["turn"])] = latest = report
    return [
        Check("coder: git, SQLite, hooks and links intact", "yes" if sound else "no", "yes", sound),
        Check("coder: its log grows in every turn", f"{lines} lines" if grows else "no", "yes", grows and lines > 0),
        Check("coder: restarted with a workspace it had", f"{same} of {total}", "all", same == total),
    ]


def _kept(before: Report, after: Report) -> bool:
    """Return whether nothing reported was lost; the turn in progress at the kill may be complete, partial or missing.

    The log is append-only: without a new line it must be the same byte for byte.
    """
    turns, lines = (int(after[name]) - int(before[name]) for name in ("turn", "logLines"))
    log = lines > 0 or (lines == 0 and after["logDigest"] == before["logDigest"])
    return turns in (0, 1) and after["rows"] == after["turn"] and log


def summary(found: list[Check]) -> str:
    """Return one line: how many checks hold, and how many figures exceed their goals."""
    judged = [check for check in found if not check.figure]
    figures = [check for check in found if check.figure]
    failed = sum(check.failed for check in judged)
    over = sum(not check.holds for check in figures)
    text = f"{len(judged) - failed} of {len(judged)} checks hold"
    text += f", {failed} FAIL" if failed else ""
    text += f"; {over} of {len(figures)} figures over their goals"
    return text + (" (not a failure: it depends on what else the machine does)" if over else "")


def table(found: list[Check]) -> str:
    """Return the checks as aligned lines."""
    name = max(len(check.name) for check in found)
    value = max(len(check.found) for check in found)
    lines = (
        f"{check.mark:<4} {check.name:<{name}}  {check.found:<{value}}  expected {check.expected}" for check in found
    )
    return "\n".join(f"  {line}" for line in lines)
