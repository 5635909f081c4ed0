"""Find what makes a stored policy invalid. Pure.

The API server refuses most of it when a policy is written. What it cannot judge, and what an earlier version accepted,
is reported here; it never stops an agent's checkpoints.
"""

from collections.abc import Iterator
from itertools import combinations
from typing import Final

from savepoint.contract import globs
from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.objects import Policy
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.state_roots import path_problem
from savepoint_operator.rules.quantity import parse_quantity

MAX_PROBLEMS: Final = 5
"""Number of problems that a message names."""
MEMORY_MIN: Final = "64Mi"
"""Smallest memory limit with which the injected containers start."""
RESOURCES: Final = ("cpu", "memory", "ephemeral-storage")


def policy_problem(policy: Policy) -> Refusal | None:
    """Return which fields of the policy are invalid and how to correct them, or None."""
    problems = [*_exclude_problems(policy), *_path_problems(policy), *_resource_problems(policy)]
    if not problems:
        return None
    more = len(problems) - MAX_PROBLEMS
    shown = "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
    return Refusal(Reason.POLICY_INVALID, shown)


def _exclude_problems(policy: Policy) -> list[str]:
    found = ((pattern, globs.policy_problem(pattern)) for pattern in policy.exclude)
    return [f"spec.state.exclude: {pattern!r:.80} {problem}" for pattern, problem in found if problem]


def _path_problems(policy: Policy) -> Iterator[str]:
    paths = sorted(path.mount_path for path in policy.state_paths)
    for path in paths:
        problem = path_problem(path)
        if problem:
            yield f"spec.state.paths: {path!r:.80} {problem}"
    for outer, inner in combinations(paths, 2):
        if inner.startswith(f"{outer}/"):
            yield f"spec.state.paths: {inner!r:.80} is inside {outer!r:.80}, which includes it; remove it"


def _resource_problems(policy: Policy) -> Iterator[str]:
    resources = policy.resources or {}
    requests, limits = (resources.get(kind) or {} for kind in ("requests", "limits"))
    for kind, quantities in (("requests", requests), ("limits", limits)):
        for name, value in quantities.items():
            field = f"spec.injection.resources.{kind}.{name:.80}"
            number = parse_quantity(value)
            if name not in RESOURCES:
                yield f"{field} is not a resource that can be set; use {', '.join(RESOURCES)}"
            elif number is None or number < 0:
                yield f"{field}: {str(value)!r:.40} is not a quantity of at least 0, such as 100m or 320Mi"
    memory, least = parse_quantity(limits.get("memory", MEMORY_MIN)), parse_quantity(MEMORY_MIN)
    if memory is not None and least is not None and memory < least:
        yield f"spec.injection.resources.limits.memory: the injected containers need at least {MEMORY_MIN}"
    for name in sorted(requests.keys() & limits.keys()):
        request, limit = parse_quantity(requests[name]), parse_quantity(limits[name])
        if request is not None and limit is not None and request > limit:
            yield f"spec.injection.resources.requests.{name:.80} exceeds the limit of the same name; lower it"
