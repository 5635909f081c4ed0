"""The steps of one agent's reconcile, in the order of ``agents.Agents.reconcile``.

Each step compares what the leader remembers of the agent (``AgentRecord``) and what the cluster cache holds with what
should be, and acts on the difference. A step returns the seconds after which it wants to run again, or None if only an
event can change anything. What a status says is decided in ``rules``.
"""
