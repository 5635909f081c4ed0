"""Find what makes a stored policy invalid. Pure.

The API server refuses most of it when a policy is written. What it cannot judge, and what an earlier version accepted,
is reported here; it never stops an agent's checkpoints.
"""

from typing import Final

from savepoint.contract import globs
from savepoint.contract.vocabulary import Reason

from savepoint_operator.model.objects import Policy
from savepoint_operator.model.views import Refusal
from savepoint_operator.rules.admission.state_roots import path_problem

MAX_PROBLEMS: Final = 5
"""Number of problems that a message names."""


def policy_problem(policy: Policy) -> Refusal | None:
    """Return which fields of the policy are invalid and how to correct them, or None."""
    problems = [*_exclude_problems(policy), *_path_problems(policy)]
    if not problems:
        return None
    more = len(problems) - MAX_PROBLEMS
    shown = "; ".join(problems[:MAX_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")
    return Refusal(Reason.POLICY_INVALID, shown)


def _exclude_problems(policy: Policy) -> list[str]:
    found = ((pattern, globs.policy_problem(pattern)) for pattern in policy.exclude)
    return [f"spec.state.exclude: {pattern!r:.80} {problem}" for pattern, problem in found if problem]


def _path_problems(policy: Policy) -> list[str]:
    found = ((path.mount_path, path_problem(path.mount_path)) for path in policy.state_paths)
    return [f"spec.state.paths: {path!r:.80} {problem}" for path, problem in found if problem]
