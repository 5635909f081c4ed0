"""The control channel: the WebSocket connections of sidecars and init containers, and their one attempt per agent.

``server`` accepts connections, ``sidecar_session`` and ``restore_session`` speak the protocol, ``registry`` holds the
attempts and implements ``Orders``. Nothing here writes the chain (``lineage``) or objects (``reconcile``).
"""
