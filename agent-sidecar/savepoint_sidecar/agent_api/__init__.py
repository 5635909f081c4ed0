"""The agent's side of the sidecar: the Unix socket of docs/agent-protocol.md, sessions, and pauses of the agent.

It captures and stores nothing, and does not know the operator.
"""
