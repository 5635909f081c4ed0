"""Kubernetes label selectors, evaluated as the API server evaluates them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Requirement:
    """One of a label selector's matchExpressions."""

    key: str
    operator: str  # In, NotIn, Exists, DoesNotExist
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Return whether the labels satisfy it. NotIn holds if the key is absent; an unknown operator never holds."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case "DoesNotExist":
                return self.key not in labels
        return False


@dataclass(frozen=True)
class LabelSelector:
    """A label selector; the empty one selects everything."""

    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def parse(cls, raw: Mapping[str, Any]) -> "LabelSelector":
        """Return the selector for a LabelSelector that the API server has validated."""
        exact = (Requirement(key, "In", (value,)) for key, value in sorted((raw.get("matchLabels") or {}).items()))
        expressions = (
            Requirement(item["key"], item["operator"], tuple(item.get("values") or ()))
            for item in raw.get("matchExpressions") or ()
        )
        return cls((*exact, *expressions))

    def selects(self, labels: Mapping[str, str]) -> bool:
        """Return whether every requirement holds."""
        return all(requirement.holds(labels) for requirement in self.requirements)
