"""What the API server's refusals become. Faults that may pass are ``savepoint.errors.Unavailable``."""

from savepoint.errors import SavepointError


class Missing(SavepointError):
    """The API server says that there is no such object."""

    reason = "NotFound"


class Conflict(SavepointError):
    """The object exists already, or has changed since it was read."""

    reason = "Conflict"


class Invalid(SavepointError):
    """The API server refuses the object as it is."""

    reason = "Invalid"


class Denied(SavepointError):
    """The operator's account may not do this, or is not known."""

    reason = "Forbidden"


class Terminating(Denied):
    """Nothing is made any more in a namespace that is being deleted."""


class Blocked(SavepointError):
    """A disruption budget forbids the eviction now."""

    reason = "EvictionBlocked"
