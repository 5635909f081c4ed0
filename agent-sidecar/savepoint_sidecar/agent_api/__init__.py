"""The agent's side of the sidecar: the Unix socket of docs/agent-protocol.md, its sessions, and the pauses it asks for.

It captures and stores nothing, and does not know the operator.
"""
