"""Proofs, computed from what the witnesses saw: reports, model calls, ledger. Pure functions over their JSON; no
cluster here.

The reference is the same program's deterministic part run without any interruption: at equal turns both must agree
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
"""The ledger: by id, what was booked and how often it came."""
WORKSPACE = ("head", "rows", "tree", "logLines", "logDigest")
"""By what the coder says that its workspace is the same: git's head and tree, the table, the log byte for byte."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    name: str
    found: str
    expected: str
    holds: bool
    figure: bool = False
    """A time or a size: shown beside its goal, and no reason to fail: it depends on what else the machine does."""

    @property
    def failed(self) -> bool:
        """Whether the main job was not done."""
        return not self.holds and not self.figure

    @property
    def mark(self) -> str:
        """A word for the table."""
        return "ok" if self.holds else "over" if self.figure else "FAIL"


@dataclass(frozen=True)
class Reference:
    """What an uninterrupted researcher is by turn."""

    digests: tuple[str, ...]
    """Of its whole state."""
    conversations: tuple[str, ...] = ()
    """Of its conversation, which only grows."""
    steps: tuple[tuple[str, str], ...] = ()
    """(document, question) of each turn, the first at 0."""
    replies: tuple[str, ...] = ()
    """What the model answers in each turn, the first at 0; no two are alike, and each is booked as a side effect."""

    @classmethod
    def run(cls, turns: int, *, mebibytes: int, stride: int, documents: int) -> "Reference":
        """Computes turns 0..turns; about 10 ms a turn at 256 MiB."""
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
    """The reports of incarnations and restarts, in order."""
    return [report for report in reports if report.get("event") == "start"]


def last_turn(reports: list[Report]) -> int:
    """The highest turn reported."""
    return max((int(report["turn"]) for report in reports), default=0)


def state_agrees(reports: list[Report], reference: Reference) -> Check:
    """Every report, after every restore, has the digest an uninterrupted run has at that turn."""
    wrong = [report for report in reports if report["digest"] != reference.digests[int(report["turn"])]]
    return Check(
        "state digests equal an uninterrupted run's", f"{len(reports) - len(wrong)} of {len(reports)}", "all", not wrong
    )


def position_agrees(reports: list[Report], reference: Reference) -> Check:
    """Every turn, after every restore, is at the document and question that come next."""
    turns = [report for report in reports if report["event"] == "turn"]
    right = sum((r["document"], r["question"]) == reference.steps[int(r["turn"]) - 1] for r in turns)
    return Check("loop position follows the list", f"{right} of {len(turns)}", "all", right == len(turns) > 0)


def conversation_grows(reports: list[Report], reference: Reference) -> Check:
    """Every conversation is an uninterrupted run's at that turn: each later one begins with each earlier one."""
    turns = [report for report in reports if report["event"] == "turn"]
    right = sum(report["conversation"] == reference.conversations[int(report["turn"])] for report in turns)
    return Check("conversation is a prefix extension", f"{right} of {len(turns)}", "all", right == len(turns) > 0)


def bytes_changed(reports: list[Report], since: float, until: float, *, mebibytes: int, stride: int) -> int:
    """Bytes of weights and momentum that turns between two times touched."""
    from state import RANGES

    turns = [int(r["turn"]) - 1 for r in reports if r["event"] == "turn" and since < r["time"] <= until]
    return len({(turn // stride) % RANGES for turn in turns}) * (mebibytes << 20) // RANGES


def turns_lost(reports: list[Report]) -> list[int]:
    """Per start after the first: turns that had been reported and were not in the state that came back."""
    lost, highest = [], 0
    for report in reports:
        if report.get("event") == "start" and highest:
            lost.append(highest - int(report["turn"]))
        highest = max(highest, int(report["turn"]))
    return lost


def calls_repeated(calls: dict[str, list[int]]) -> int:
    """Model calls whose answer had been delivered and that were asked again."""
    return sum(max(0, completed - 1) for _, completed in calls.values())


def effects_counted(before: list[Report], effects: Effects, after: list[Report], reference: Reference) -> Check:
    """Each turn's side effect is in the ledger under one id, counted once unless that id is listed as uncertain.

    ``before`` and ``after`` are what had been reported before and after the ledger was read: the effect of a turn in
    between, and of the one in flight at the end, may be booked or not. What belongs to no turn may not be.
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
    strange = len(set(ids) - (sound & set(reference.replies[: last_turn(after) + 1])))
    found = f"{right} of {len(turns)} turns" + (f", {strange} wrong in the ledger" if strange else "")
    name = "side effects counted once, or listed as uncertain"
    return Check(name, found, "all", right == len(turns) > 0 and not strange)


def effects_uncertain(reports: list[Report]) -> Check:
    """What was sent and not confirmed when the process was killed comes back, to be looked up by its id."""
    pods = [report["pod"] for report in starts(reports)]
    kills = sum(pod == before for before, pod in itertools.pairwise(pods))  # a pod that is left to end kills nothing
    uncertain = _uncertain(reports)
    arrived = sum(uncertain.values())
    name, expected = "side effects listed as uncertain, and of them arrived", f"≤ {kills}, the one in flight a kill"
    return Check(name, f"{len(uncertain)}, {arrived}", expected, len(uncertain) <= kills)


def _uncertain(reports: list[Report]) -> dict[str, bool]:
    """Ids that a restarted agent was handed back, and whether the ledger had them."""
    return {str(report["effect"]): bool(report["arrived"]) for report in reports if report["event"] == "uncertain"}


def coder_goes_on(reports: list[Report]) -> list[Check]:
    """The coder's workspace: whole, and one it had when it came back; its log grows with every turn.

    In another pod it is the workspace that was reported at this turn. In the same one, killed in place, it is as the
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
        Check("coder: git, SQLite, hooks and links sound", "yes" if sound else "no", "yes", sound),
        Check("coder: its log grows in every turn", f"{lines} lines" if grows else "no", "yes", grows and lines > 0),
        Check("coder: came back with a workspace it had", f"{same} of {total}", "all", same == total),
    ]


def _kept(before: Report, after: Report) -> bool:
    """Nothing that had been reported is set back; of the turn that was killed, everything, a part or nothing is there.

    Its log is only ever added to: while it has no new line it is the same byte for byte.
    """
    turns, lines = (int(after[name]) - int(before[name]) for name in ("turn", "logLines"))
    log = lines > 0 or (lines == 0 and after["logDigest"] == before["logDigest"])
    return turns in (0, 1) and after["rows"] == after["turn"] and log


def summary(proofs: list[Check]) -> str:
    """One line: how many hold, and how many of the figures are over their goals."""
    judged = [entry for entry in proofs if not entry.figure]
    failed = sum(entry.failed for entry in judged)
    figures = [entry for entry in proofs if entry.figure]
    over = sum(not entry.holds for entry in figures)
    text = f"{len(judged) - failed} of {len(judged)} proofs hold"
    text += f", {failed} FAIL" if failed else ""
    text += f"; {over} of {len(figures)} figures over their goals"
    return text + (", which depends on what else the machine does and is no failure" if over else "")


def table(proofs: list[Check]) -> str:
    """The proofs as aligned lines."""
    name = max(len(proof.name) for proof in proofs)
    found = max(len(proof.found) for proof in proofs)
    lines = (
        f"{proof.mark:<4} {proof.name:<{name}}  {proof.found:<{found}}  expected {proof.expected}" for proof in proofs
    )
    return "\n".join(f"  {line}" for line in lines)
