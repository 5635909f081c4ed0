"""Errors for the API server's refusals. Transient faults are ``savepoint.errors.Unavailable``."""

from savepoint.contract.vocabulary import Reason
from savepoint.errors import SavepointError


class NotFound(SavepointError):
    """The object does not exist."""

    reason = Reason.NOT_FOUND


class Conflict(SavepointError):
    """The object already exists, or has changed since it was read."""

    reason = Reason.CONFLICT


class Invalid(SavepointError):
    """The API server rejects the object as invalid."""

    reason = Reason.INVALID


class Denied(SavepointError):
    """The operator's service account is unknown or lacks a permission."""

    reason = Reason.FORBIDDEN


class NamespaceTerminating(Denied):
    """The namespace is being deleted, so nothing can be created in it."""


class Blocked(SavepointError):
    """A disruption budget forbids the eviction now."""

    reason = Reason.EVICTION_BLOCKED
